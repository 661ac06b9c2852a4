"""Trades in partitions by the month, beside the same trades in one table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import text

from benchmarks.data import TradeStream
from benchmarks.harness import Contender, Goal, Place, at_most, compare, print_outcomes, print_table
from shared.db import DatabaseFactory, PublicTrade, PublicTradeRepository
from shared.db.operations.partitions import enable_partitions, extend_partitions
from shared.db.operations.purge import purge_trades

_ROWS, _MONTH_ROWS, _BATCH, _CALLS, _ROUNDS = 240_000, 200_000, 10_000, 200, 20
_PLAIN, _PARTITIONED = "one table", "partitions"
_NOW = datetime.now(UTC)
_FILL = text(
    """
    INSERT INTO public_trades (symbol, trade_id, exchange_ts, local_ts, side, price, size)
    SELECT 'S' || n % 20, 't' || n, CAST(:start AS timestamptz) + n * CAST(:step AS interval), now(), 'Buy', 1, 1
    FROM generate_series(0, :count - 1) AS n
    """
)
_MICROSECOND = timedelta(microseconds=1)


def partitions(here: Place) -> None:
    """240,000 trades of 20 symbols in 12 months: ingest, ranges, the newest of a symbol, and a month that is purged."""
    year = timedelta(days=360)
    with DatabaseFactory(here.new_postgresql()) as plain, DatabaseFactory(here.new_postgresql()) as parted:
        enable_partitions(parted, PublicTrade)
        extend_partitions(parted, PublicTrade, since=_NOW - year)
        extend_partitions(parted, PublicTrade, since=datetime(2025, 1, 1, tzinfo=UTC))  # where the new rows go
        both = {_PLAIN: plain, _PARTITIONED: parted}
        for db in both.values():
            _fill(db, _NOW - year, year / _ROWS, _ROWS)
        stream = TradeStream()
        compare(
            "PostgreSQL, trades in batches of 10,000",
            [Contender(name, partial(_write, db)) for name, db in both.items()],
            lambda number: stream.take(2 * _BATCH),
            here.rounds,
            count=2 * _BATCH,
            goals=[Goal(_PARTITIONED, 0.95, _PLAIN)],
        )
        for title, length, goal in (("1 day", 1, 0.9), ("7 days across a month's end", 7, 0.9)):
            start = (_NOW - timedelta(days=150)).replace(day=28)
            _ask(here, both, title, partial(_range, start=start, end=start + timedelta(days=length)), goal)
        _ask(here, both, "the newest trade of a symbol", _newest, None)
        reached = [
            at_most(
                "the newest trade of a symbol, by the server's and the driver's account", 0.1, _by_driver(both), "ms"
            )
        ]
        month = (_NOW - timedelta(days=200)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        spent = {}
        for name, db in both.items():
            purge_trades(db, month)
            _fill(db, month, timedelta(days=27) / _MONTH_ROWS, _MONTH_ROWS, "m")
            begun = time.perf_counter()
            purge_trades(db, (month + timedelta(days=31)).replace(day=1))
            spent[name] = time.perf_counter() - begun
        reached.append(
            at_most("a month of 200,000 trades and more purged from partitions", 0.5, spent[_PARTITIONED], "s")
        )
        print_outcomes("", reached)
        print(f"a month purged: {spent}")


def _fill(db: DatabaseFactory, start: datetime, step: timedelta, count: int, prefix: str = "t") -> None:
    with db.engine.begin() as connection:
        connection.execute(
            text(str(_FILL).replace("'t'", f"'{prefix}'")),
            {"start": start, "step": f"{step // _MICROSECOND} microseconds", "count": count},
        )
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE public_trades"))


def _write(db: DatabaseFactory, rows: list[dict[str, Any]]) -> None:
    for place in range(0, len(rows), _BATCH):
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create(rows[place : place + _BATCH])


def _ask(
    here: Place,
    both: dict[str, DatabaseFactory],
    title: str,
    ask: Callable[[PublicTradeRepository, int], Any],
    goal: float | None,
) -> None:
    def asked(db: DatabaseFactory, numbers: range) -> None:
        for number in numbers:
            with db.get_session(read_only=True) as session:
                ask(PublicTradeRepository(session), number)

    compare(
        f"PostgreSQL, {title}",
        [Contender(name, partial(asked, db)) for name, db in both.items()],
        lambda number: range(_CALLS if goal is None else 20),
        here.rounds,
        count=_CALLS if goal is None else 20,
        goals=[] if goal is None else [Goal(_PARTITIONED, goal, _PLAIN)],
    )


def _range(trades: PublicTradeRepository, number: int, *, start: datetime, end: datetime) -> None:
    for _ in trades.iter_symbol_range(f"S{number % 20}", start, end):
        pass


def _newest(trades: PublicTradeRepository, number: int) -> None:
    assert trades.latest(f"S{number % 20}") is not None


def _by_driver(both: dict[str, DatabaseFactory]) -> float:
    """The least milliseconds in which the driver has the answer to the question that `latest` asks of partitions first.

    Beside it, by turns: the same of one table, and of partitions what it would be to name the newest one, which is no
    answer as long as a later one or the default one has rows, and to keep the plan with the connection.
    """
    start = _NOW.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    question = (
        "SELECT id, symbol, trade_id, exchange_ts, local_ts, side, price, size FROM {} "
        "WHERE symbol = 'S3' AND exchange_ts >= {} ORDER BY exchange_ts DESC, trade_id DESC LIMIT 1"
    )
    since = f"timestamptz '{start.isoformat()}'"
    asked = question.format("public_trades", since)
    questions = {
        _PLAIN: (_PLAIN, asked),
        _PARTITIONED: (_PARTITIONED, asked),
        "the newest of them": (_PARTITIONED, question.format(f"public_trades_{start:%Y_%m}", since)),
        "partitions, by a kept plan": (_PARTITIONED, f"EXECUTE newest({since})"),
    }
    with ExitStack() as opened:
        cursors = {}
        for name, db in both.items():
            session = opened.enter_context(db.get_session(read_only=True))
            cursors[name] = session.connection().connection.cursor()
        cursors[_PARTITIONED].execute("SET LOCAL plan_cache_mode = force_generic_plan")
        cursors[_PARTITIONED].execute(f"PREPARE newest (timestamptz) AS {question.format('public_trades', '$1')}")
        spent: dict[str, list[float]] = {what: [] for what in questions}
        told: dict[str, list[tuple[float, ...]]] = {what: [] for what in questions}
        for _ in range(_ROUNDS):
            for what, (name, statement) in questions.items():
                cursor = cursors[name]
                for _ in range(_CALLS):
                    begun = time.perf_counter()
                    cursor.execute(statement)
                    cursor.fetchall()
                    spent[what].append((time.perf_counter() - begun) * 1000)
                cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT json) {statement}")
                (((plan,),),) = cursor.fetchall()
                told[what].append((plan["Planning Time"], plan["Execution Time"]))
    rows = []
    for what, every in spent.items():
        middle, ratio = statistics.median(every), min(every) / min(spent[_PLAIN])
        planned, run = (min(each) for each in zip(*told[what], strict=True))
        rows.append((what, f"{min(every):.3f}", f"{middle:.3f}", f"{ratio:.2f} x", f"{planned:.3f}", f"{run:.3f}"))
    head = ("newest trade of a symbol", "least ms", "median ms", "of one table", "least planned", "least run")
    print_table("PostgreSQL, the newest trade of a symbol by the driver alone", head, rows)
    return min(spent[_PARTITIONED])


BENCHMARKS = {"partitions": partitions}
