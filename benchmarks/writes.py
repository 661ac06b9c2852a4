"""Rows in, by the library, by the drivers alone and by others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, get_args

import polars
import pyarrow
from sqlalchemy import URL

from benchmarks import contenders as ways
from benchmarks import other_contenders as others
from benchmarks.data import ExecutionStream, Rows, TradeStream
from benchmarks.harness import Contender, Goal, Place, at_most, compare, print_outcomes, print_table
from benchmarks.memory import peak_growth
from shared.db import (
    BybitAccount,
    DatabaseFactory,
    Environment,
    PublicTradeRepository,
    Run,
    RunType,
    Strategy,
    User,
)
from shared.db.bulk import BATCH_SIZE, OnConflict

_RUN, _ACCOUNT = "run-of-the-benchmark", "account-of-the-benchmark"


_COPY, _COPY_COLUMNS = "psycopg2 COPY, by hand", "psycopg2 COPY, by columns"
_STAGE, _STAGE_COLUMNS = "COPY and INSERT .. ON CONFLICT, by hand", "the same, by columns"
_SQLITE3, _SQLITE3_COLUMNS = "sqlite3 executemany, by hand", "sqlite3 executemany, by columns"
_OURS, _DJANGO, _DUCKDB, _VALUES = "bulk_create", "Django bulk_create", "DuckDB", "insert().values(list)"
_BINARY = "psycopg 3, COPY (FORMAT BINARY)"
_TOTAL = 10_000


def trades_postgresql(here: Place) -> None:
    """New trades into PostgreSQL, from dicts with datetime and Decimal; a transaction a batch."""
    for size, of_driver, of_values in ((1_000, 0.90, 13), (10_000, 0.97, 24)):
        compare(
            f"Trades, PostgreSQL, batches of {size:,}",
            [
                Contender(_COPY, ways.copy_trades(here.new_postgresql())),
                Contender(_COPY_COLUMNS, ways.copy_trades_by_columns(here.new_postgresql())),
                Contender(_OURS, ways.bulk_trades(here.new_postgresql())),
                Contender(_BINARY, ways.each(ways.psycopg_binary_copy(here.new_postgresql()))),
                Contender(
                    "server alone: COPY of ready text",
                    ways.copy_ready_text(here.new_postgresql()),
                    prepare=ways.ready_texts,
                ),
                Contender(_DJANGO, others.django_trades(here.new_postgresql()), every=3),
                Contender(_VALUES, ways.trades_by_values_list(here.new_postgresql()), every=3),
            ],
            _batches_of(size),
            here.rounds,
            count=_TOTAL,
            goals=[
                Goal(_OURS, of_driver, _COPY),
                Goal(_OURS, of_driver, _COPY_COLUMNS),
                Goal(_OURS, 1, _BINARY),
                Goal(_OURS, 3, _DJANGO),
                Goal(_OURS, of_values, _VALUES),
            ],
        )


def duplicates_postgresql(here: Place) -> None:
    """Trades into PostgreSQL of which one in ten is stored already; a transaction a batch."""
    for size in (1_000, 10_000):
        compare(
            f"10 % duplicates, PostgreSQL, batches of {size:,}",
            [
                Contender(_STAGE, ways.stage_trades(here.new_postgresql())),
                Contender(_STAGE_COLUMNS, ways.stage_trades_by_columns(here.new_postgresql())),
                Contender(_OURS, ways.bulk_trades(here.new_postgresql())),
                Contender(_DJANGO, others.django_trades(here.new_postgresql()), every=3),
                Contender(_VALUES, ways.trades_by_values_list(here.new_postgresql()), every=3),
            ],
            _batches_of(size, duplicates=0.1),
            here.rounds,
            count=_TOTAL,
            goals=[Goal(_OURS, 0.95, _STAGE), Goal(_OURS, 0.95, _STAGE_COLUMNS), Goal(_OURS, 10, _VALUES)],
        )


def trades_sqlite(here: Place) -> None:
    """New trades into an SQLite file; a transaction a batch, the same settings of the file for all."""
    for size in (1_000, 10_000):
        compare(
            f"Trades, SQLite file, batches of {size:,}",
            [
                Contender(_SQLITE3, ways.executemany_trades(here.new_sqlite())),
                Contender(_SQLITE3_COLUMNS, ways.executemany_trades_by_columns(here.new_sqlite())),
                Contender(_OURS, ways.bulk_trades(here.new_sqlite())),
                Contender(_DUCKDB, others.duckdb_trades(here.new_sqlite())),
                Contender(
                    "DuckDB, skipping what it has",
                    others.duckdb_trades(here.new_sqlite(), "ON CONFLICT DO NOTHING"),
                    every=3,
                ),
                Contender(_VALUES, ways.trades_by_values_list(here.new_sqlite()), every=3),
            ],
            _batches_of(size),
            here.rounds,
            count=_TOTAL,
            goals=[
                Goal(_OURS, 0.95, _SQLITE3),
                Goal(_OURS, 0.95, _SQLITE3_COLUMNS),
                Goal(_OURS, 1, _DUCKDB),
                Goal(_OURS, 20, _VALUES),
            ],
        )


def executions(here: Place) -> None:
    """50,000 executions and more, each with a raw_json of 600 bytes; batches of 1,000, by hand with orjson."""
    stream = ExecutionStream(_RUN, _ACCOUNT)
    rounds = max(here.rounds, 10)

    def load(number: int) -> list[Rows]:
        return [stream.take(1_000) for _ in range(5)]

    def postgresql() -> URL:
        return _with_run(here.new_postgresql())

    def sqlite() -> URL:
        return _with_run(here.new_sqlite())

    compare(
        "Executions, PostgreSQL",
        [
            Contender(_COPY, ways.copy_executions(postgresql())),
            Contender(_COPY_COLUMNS, ways.copy_executions_by_columns(postgresql())),
            Contender(_OURS, ways.bulk_executions(postgresql())),
            Contender(_VALUES, ways.executions_by_values_list(postgresql()), every=3),
        ],
        load,
        rounds,
        count=5_000,
        goals=[Goal(_OURS, 0.90, _COPY), Goal(_OURS, 0.90, _COPY_COLUMNS), Goal(_OURS, 10, _VALUES)],
    )
    compare(
        "Executions, SQLite file",
        [
            Contender(_SQLITE3, ways.executemany_executions(sqlite())),
            Contender(_SQLITE3_COLUMNS, ways.executemany_executions_by_columns(sqlite())),
            Contender(_OURS, ways.bulk_executions(sqlite())),
            Contender(_VALUES, ways.executions_by_values_list(sqlite()), every=3),
        ],
        load,
        rounds,
        count=5_000,
        goals=[Goal(_OURS, 0.90, _SQLITE3), Goal(_OURS, 0.90, _SQLITE3_COLUMNS), Goal(_OURS, 10, _VALUES)],
    )


def filling(here: Place) -> None:
    """`on_conflict="fill"` beside skip and update: 5,000 executions, new ones, stored ones, and half known ones."""
    stream = ExecutionStream(_RUN, _ACCOUNT)
    known = [stream.take(1_000) for _ in range(5)]
    unknown = dict.fromkeys(("order_link_id", "exec_fee", "closed_pnl", "raw_json"))

    def new() -> Rows:
        return stream.take(1_000)

    def from_both_streams() -> list[Rows]:
        whole = stream.take(500)
        return [[row | unknown for row in whole], whole]

    loads: dict[str, Callable[[int], list[Rows]]] = {
        "new executions": lambda number: [new() for _ in range(5)],
        "10 % duplicates": lambda number: [new()[:900] + known[part][:100] for part in range(5)],
        "executions that are stored": lambda number: known,
        "executions without and then with their fees": lambda number: [
            batch for _ in range(5) for batch in from_both_streams()
        ],
    }
    for database, place in (("PostgreSQL", here.new_postgresql), ("SQLite file", here.new_sqlite)):
        for name, load in loads.items():
            ours: list[Contender] = []
            for way in get_args(OnConflict)[:3]:
                write = ways.bulk_executions(_with_run(place()), way)
                write(known)
                ours.append(Contender(way, write))
            goal = [Goal("fill", 0.87, "skip")] if name.startswith(("new", "10")) else []
            compare(f"{name.capitalize()}, {database}", ours, load, max(here.rounds, 15), count=5_000, goals=goal)


def frames_in(here: Place) -> None:
    """200,000 new trades as a frame in one call, beside dicts, and beside drivers that check nothing."""
    count, stream = 200_000, TradeStream()

    def polars_frame(rows: Rows) -> Any:
        return polars.from_arrow(ways.trades_table(rows))

    def contenders(new: Callable[[], URL]) -> list[Contender]:
        return [
            Contender(_DICTS, ways.bulk_frame(new())),
            Contender(_ARROW, ways.bulk_frame(new()), prepare=ways.trades_table),
            Contender(_POLARS, ways.bulk_frame(new()), prepare=polars_frame),
        ]

    compare(
        "200,000 trades, PostgreSQL",
        [
            Contender(_ADBC, ways.adbc_ingest(here.new_postgresql()), prepare=ways.trades_table),
            *contenders(here.new_postgresql),
            Contender(_BINARY, ways.psycopg_binary_copy(here.new_postgresql())),
        ],
        lambda number: stream.take(count),
        here.rounds,
        count=count,
        goals=[
            *(Goal(ours, 1, rival) for ours in (_ARROW, _POLARS) for rival in (_ADBC, _DICTS)),
            Goal(_DICTS, 1, _BINARY),
        ],
    )
    compare(
        "200,000 trades, SQLite file",
        contenders(here.new_sqlite),
        lambda number: stream.take(count),
        here.rounds,
        count=count,
        goals=[Goal(ours, 1.2, _DICTS) for ours in (_ARROW, _POLARS)],
    )


_DICTS, _ARROW, _POLARS = "bulk_create of dicts", "of a pyarrow Table", "of a polars DataFrame"
_ADBC = "adbc_ingest of a pyarrow Table"


def memory(here: Place) -> None:
    """Extra memory of one call at its peak, in a new process, above the rows that the caller holds."""
    reached = [
        at_most(
            f"{count:,} rows in one batch, PostgreSQL",
            _EXTRA_MB,
            peak_growth(partial(_opened, here.new_postgresql(), count), _insert_all),
            "MB",
        )
        for count in (1_000, 10_000, 100_000, 300_000)
    ]
    print_outcomes("", reached)
    frame = peak_growth(partial(_opened_frame, here.new_postgresql(), _MANY), _insert_all)
    print_outcomes("", [at_most(f"{_MANY:,} rows of a pyarrow Table, PostgreSQL", _FRAME_MB, frame, "MB")])
    sqlite = peak_growth(partial(_opened, here.new_sqlite(), 100_000), _insert_all)
    rows = [("100,000 rows in one batch, SQLite file", f"{sqlite:.1f}")]
    for name, new in (("PostgreSQL", here.new_postgresql), ("SQLite file", here.new_sqlite)):
        lazy = peak_growth(partial(_opened, new(), 300_000, lazy=True), _insert_all)
        rows.append((f"300,000 rows from a generator, 5,000 a batch, those included, {name}", f"{lazy:.1f}"))
    print_table("Without a goal", ("one call of bulk_create", "MB at the peak"), rows)


_EXTRA_MB = 2
_MANY, _FRAME_MB = 1_000_000, 10


def _opened(url: URL, count: int, lazy: bool = False) -> tuple[DatabaseFactory, Iterable[Any], int]:
    """A database that has done all that is done once, and rows: a list, or a generator of them."""
    db, stream = DatabaseFactory(url), TradeStream()
    with db.get_session() as session:
        PublicTradeRepository(session).bulk_create(stream.take(BATCH_SIZE))  # so many load Arrow
    if lazy:
        return db, (stream.take(1)[0] for _ in range(count)), BATCH_SIZE
    return db, stream.take(count), count


def _opened_frame(url: URL, count: int) -> tuple[DatabaseFactory, Any, int]:
    db = DatabaseFactory(url)
    few = ways.trades_table(TradeStream().take(1_000))
    with db.get_session() as session:
        PublicTradeRepository(session).bulk_create(few.slice(10))
    table = pyarrow.concat_tables([few] * (count // len(few)))
    times = pyarrow.array(range(1_735_689_600_000_000, 1_735_689_600_000_000 + count)).cast(table["local_ts"].type)
    return db, table.set_column(2, "exchange_ts", times).combine_chunks(), BATCH_SIZE


def _insert_all(opened: tuple[DatabaseFactory, Iterable[Any], int]) -> None:
    db, rows, size = opened
    with db.get_session() as session:
        PublicTradeRepository(session).bulk_create(rows, batch_size=size)


def _batches_of(size: int, duplicates: float = 0.0) -> Callable[[int], list[Rows]]:
    """A load for `compare`: the next trades, in batches of this size."""
    stream = TradeStream()
    return lambda number: [stream.take(size, duplicates) for _ in range(_TOTAL // size)]


def _with_run(url: URL) -> URL:
    """The database with a run in it."""
    with DatabaseFactory(url) as db, db.get_session() as session:
        user = User(user_id="user-of-the-benchmark", username="bench")
        account = BybitAccount(account_id=_ACCOUNT, user=user, account_name="a", environment=Environment.TESTNET)
        strategy = Strategy(account=account, strategy_type="GridStrategy", symbol="BTCUSDT", config_json={})
        session.add(Run(run_id=_RUN, user=user, account=account, strategy=strategy, run_type=RunType.BACKTEST))
    return url


BENCHMARKS = {
    "trades-postgresql": trades_postgresql,
    "duplicates-postgresql": duplicates_postgresql,
    "trades-sqlite": trades_sqlite,
    "executions": executions,
    "filling": filling,
    "frames-in": frames_in,
    "memory": memory,
}
