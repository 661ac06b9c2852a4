"""Rows in, by the library, by the drivers alone and by others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL

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
from shared.db.benchmarks import contenders as ways
from shared.db.benchmarks.data import ExecutionStream, Rows, TradeStream
from shared.db.benchmarks.harness import Contender, Place, compare, peak_growth, print_table

_RUN, _ACCOUNT = "run-of-the-benchmark", "account-of-the-benchmark"


def trades_postgresql(here: Place) -> None:
    """New trades into PostgreSQL, from dicts with datetime and Decimal; a transaction a batch."""
    for size in (1_000, 10_000):
        stream = TradeStream()

        def load(number: int, size: int = size, stream: TradeStream = stream) -> list[Rows]:
            return [stream.take(size) for _ in range(10_000 // size)]

        compare(
            f"Batches of {size:,}",
            [
                Contender("psycopg2 COPY, streamed, by hand", ways.copy_trades(here.new_postgresql())),
                Contender("bulk_create", ways.bulk_trades(here.new_postgresql())),
                Contender(
                    "server alone: COPY of ready text",
                    ways.copy_ready_text(here.new_postgresql()),
                    prepare=ways.ready_texts,
                ),
                Contender("Django bulk_create", ways.django_trades(here.new_postgresql()), every=3),
                Contender("insert().values(list)", ways.trades_by_values_list(here.new_postgresql()), every=5),
            ],
            load,
            here.rounds,
            count=10_000,
        )


def duplicates_postgresql(here: Place) -> None:
    """Trades into PostgreSQL of which one in ten is stored already; a transaction a batch."""
    for size in (1_000, 10_000):
        stream = TradeStream()

        def load(number: int, size: int = size, stream: TradeStream = stream) -> list[Rows]:
            return [stream.take(size, duplicates=0.1) for _ in range(10_000 // size)]

        compare(
            f"Batches of {size:,}",
            [
                Contender("staging by hand: COPY, INSERT .. ON CONFLICT", ways.stage_trades(here.new_postgresql())),
                Contender("bulk_create", ways.bulk_trades(here.new_postgresql())),
                Contender("Django bulk_create", ways.django_trades(here.new_postgresql()), every=3),
                Contender("insert().values(list)", ways.trades_by_values_list(here.new_postgresql()), every=5),
            ],
            load,
            here.rounds,
            count=10_000,
        )


def trades_sqlite(here: Place) -> None:
    """New trades into an SQLite file; a transaction a batch, the same settings of the file for all."""
    for size in (1_000, 10_000):
        stream = TradeStream()

        def load(number: int, size: int = size, stream: TradeStream = stream) -> list[Rows]:
            return [stream.take(size) for _ in range(10_000 // size)]

        compare(
            f"Batches of {size:,}",
            [
                Contender("sqlite3 executemany, by hand", ways.executemany_trades(here.new_sqlite())),
                Contender("bulk_create", ways.bulk_trades(here.new_sqlite())),
                Contender("DuckDB with its indexes, from Arrow", ways.duckdb_trades(here.new_sqlite())),
                Contender("insert().values(list)", ways.trades_by_values_list(here.new_sqlite()), every=5),
            ],
            load,
            here.rounds,
            count=10_000,
        )


def executions(here: Place) -> None:
    """50,000 executions and more, each with a raw_json of 600 bytes; batches of 1,000."""
    stream = ExecutionStream(_RUN, _ACCOUNT)
    rounds = max(here.rounds, 10)

    def load(number: int) -> list[Rows]:
        return [stream.take(1_000) for _ in range(5)]

    def postgresql() -> URL:
        return _with_run(here.new_postgresql())

    def sqlite() -> URL:
        return _with_run(here.new_sqlite())

    compare(
        "PostgreSQL",
        [
            Contender("psycopg2 COPY with orjson, by hand", ways.copy_executions(postgresql())),
            Contender("bulk_create", ways.bulk_executions(postgresql())),
            Contender("insert().values(list)", ways.executions_by_values_list(postgresql()), every=5),
        ],
        load,
        rounds,
        count=5_000,
    )
    compare(
        "SQLite file",
        [
            Contender("sqlite3 executemany with orjson, by hand", ways.executemany_executions(sqlite())),
            Contender("bulk_create", ways.bulk_executions(sqlite())),
            Contender("insert().values(list)", ways.executions_by_values_list(sqlite()), every=5),
        ],
        load,
        rounds,
        count=5_000,
    )


def memory(here: Place) -> None:
    """Extra memory of one call, at its peak, above the rows that the caller holds."""
    rows = []
    for size in (1_000, 10_000, 100_000):
        batch = TradeStream().take(size)
        measured = [(name, _growth(new(), batch)) for name, new in _databases(here)]
        rows += [(f"{size:,} rows, {name}", f"{grown:.1f}") for name, grown in measured]
    for name, new in _databases(here):
        rows.append((f"1,000,000 rows from a generator, {name}", f"{_growth(new(), None):.1f}"))
    print_table("", ("one call of bulk_create", "MB at the peak"), rows)


def growth(here: Place) -> None:
    """Rows per second at 20 million rows against those at 1 million (takes several minutes)."""
    rows = []
    for name, new in _databases(here):
        db, stream = DatabaseFactory(new()), TradeStream()
        rates: dict[int, float] = {}
        for written in range(0, 20_000_000, 10_000):
            batch = stream.take(10_000)
            start = time.perf_counter()
            with db.get_session() as session:
                PublicTradeRepository(session).bulk_create(batch)
            spent = time.perf_counter() - start
            million = written // 1_000_000
            rates[million] = rates.get(million, 0.0) + spent
        first, last = rates[0], rates[19]
        rows.append((name, f"{first / last:.2f}", f"{1000 / first:,.0f}", f"{1000 / last:,.0f}"))
        db.close()
    print_table("", ("database", "ratio", "k rows/s, first million", "k rows/s, twentieth million"), rows)


def _databases(here: Place) -> list[tuple[str, Callable[[], URL]]]:
    return [("PostgreSQL", here.new_postgresql), ("SQLite file", here.new_sqlite)]


def _growth(url: URL, batch: Rows | None) -> float:
    def prepare() -> tuple[DatabaseFactory, Any]:
        db, stream = DatabaseFactory(url), TradeStream(seed=2)
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create(stream.take(1_000))  # what is loaded once is loaded now
        return db, batch if batch is not None else (row for _ in range(1_000) for row in stream.take(1_000))

    def work(prepared: tuple[DatabaseFactory, Any]) -> None:
        db, rows = prepared
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create(rows, batch_size=10_000 if batch is None else len(batch))

    return peak_growth(prepare, work)


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
    "memory": memory,
}
LONG = {"growth": growth}
