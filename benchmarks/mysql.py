"""MariaDB: rows in and out, and users' sessions, beside PyMySQL alone and SQLAlchemy's own ways."""

from __future__ import annotations

import itertools
import statistics
import time

from sqlalchemy import URL

from benchmarks import contenders as ways
from benchmarks import reading_contenders as reading
from benchmarks.data import TradeStream
from benchmarks.harness import Contender, Goal, Outcome, Place, compare, outcomes, print_outcomes, print_table
from benchmarks.mysql_server import MySQLServer, program
from benchmarks.tenancy import confined
from shared.db import DatabaseFactory, PublicTradeRepository

_TOTAL, _STORED, _PAGE = 10_000, 100_000, 2_000
_OURS, _HAND, _COLUMNS = "bulk_create", "PyMySQL, literals by hand", "PyMySQL, literals by columns"
_LIST, _VALUES = "insert(list)", "insert().values(list)"
_UPSERT, _UPSERT_COLUMNS = "ON DUPLICATE KEY UPDATE by hand", "the same, by columns"
_STREAM, _TEXT = "iter_symbol_range", "PyMySQL, times and amounts as text"
_SKIP = "ON DUPLICATE KEY UPDATE id = id"


def mysql(here: Place) -> None:
    """MariaDB, flushed at each commit: trades in, trades out, and one user's work; left out where there is none."""
    if program() is None:
        print("NOT RUN: there is no mariadbd or mysqld")
        return
    with MySQLServer(here.folder / "mysql") as server:
        _writes(server, here.rounds)
        _reads(server.new_database(), here.rounds)
        with DatabaseFactory(server.new_database()) as db:
            rows = list(confined(db, "MariaDB", here.rounds))
        print_table("A user's session to a plain one", ("work", "ratio", "quartiles", "goal"), rows)


def _writes(server: MySQLServer, rounds: int) -> None:
    for size in (1_000, 10_000):
        stream = TradeStream()
        compare(
            f"Trades, MariaDB, batches of {size:,}",
            [
                Contender(_HAND, ways.literals(server.new_database())),
                Contender(_COLUMNS, ways.literals_by_columns(server.new_database())),
                Contender(_OURS, ways.bulk_trades(server.new_database())),
                Contender("PyMySQL executemany", ways.pymysql_executemany(server.new_database()), every=3),
                Contender(_LIST, ways.insert_list(server.new_database()), every=3),
                Contender(_VALUES, ways.insert_values(server.new_database()), every=3),
            ],
            lambda number, stream=stream, size=size: [stream.take(size) for _ in range(_TOTAL // size)],  # type: ignore[misc]
            rounds,
            count=_TOTAL,
            goals=[Goal(_OURS, 0.75, _HAND), Goal(_OURS, 3, _LIST), Goal(_OURS, 8, _VALUES)],
        )
    compare(
        "10 % duplicates, MariaDB, batches of 10,000",
        [
            Contender(_UPSERT, ways.literals(server.new_database(), _SKIP)),
            Contender(_UPSERT_COLUMNS, ways.literals_by_columns(server.new_database(), _SKIP)),
            Contender(_OURS, ways.bulk_trades(server.new_database())),
        ],
        lambda number: [stream.take(10_000, 0.1) for _ in range(_TOTAL // 10_000)],
        rounds,
        count=_TOTAL,
        goals=[Goal(_OURS, 0.9, _UPSERT)],
    )


def _reads(url: URL, rounds: int) -> None:
    stream = TradeStream()
    with DatabaseFactory(url) as db:
        with db.get_session() as session:
            for _ in range(_STORED // 10_000):
                PublicTradeRepository(session).bulk_create(stream.take(10_000))
        compare(
            f"MariaDB, {_STORED:,} rows streamed",
            [
                Contender(_TEXT, reading.pymysql_stream(url, as_text=True)),
                Contender(_STREAM, reading.stream(url)),
                Contender("PyMySQL, its own values", reading.pymysql_stream(url, as_text=False), every=3),
                Contender("SQLAlchemy Core, yield_per=2000", reading.core_stream(url), every=3),
            ],
            lambda number: None,
            rounds,
            count=_STORED,
            goals=[Goal(_STREAM, 0.85, _TEXT)],
        )
        ratios = [_last_to_first(db) for _ in range(rounds)]
    low, _, high = statistics.quantiles(ratios, n=4)
    measured = statistics.median(ratios)
    title = f"MariaDB, a page at the end of {_STORED:,} rows to one at their beginning: at most 1.2"
    outcomes.append(Outcome(title, f"{measured:.2f}", f"{low:.2f}-{high:.2f}", measured <= 1.2))
    print_outcomes("", outcomes[-1:])


def _last_to_first(db: DatabaseFactory) -> float:
    """The time of the last ten pages of a stream to that of ten at its beginning, the very first one left out."""
    times = []
    with db.get_session(read_only=True) as session:
        rows = PublicTradeRepository(session).iter_symbol_range("BTCUSDT", page_size=_PAGE)
        while True:
            began = time.perf_counter()
            if sum(1 for _ in itertools.islice(rows, _PAGE)) < _PAGE:
                break
            times.append(time.perf_counter() - began)
    return sum(times[-10:]) / sum(times[1:11])


BENCHMARKS = {"mysql": mysql}
