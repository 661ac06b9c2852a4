"""The lake beside PostgreSQL: out of the one, into the other, and candles of a month of each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sqlalchemy import URL, text

from benchmarks.data import TradeStream
from benchmarks.harness import Contender, Goal, Outcome, Place, at_most, compare, outcomes, print_outcomes
from benchmarks.memory import peak_growth
from shared.db import DatabaseFactory, PublicTradeRepository
from shared.db.lake import Lake

_COUNT, _LOAD = 500_000, 50_000
_START = TradeStream.time_of(0)
_STEP = timedelta(days=31) / _COUNT
_END = _START + timedelta(days=31)
_SPEED, _BYTES, _MB = 700_000, 45.0, 100.0
_DATABASE, _LAKE = "PostgreSQL", "the lake"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CANDLES = """
    SELECT epoch_us(exchange_ts) // 60000000 AS minute, arg_min(price, file_row_number), max(price), min(price),
        arg_max(price, file_row_number), sum(size), count(*)
    FROM read_parquet($file, file_row_number = true) GROUP BY minute ORDER BY minute
"""


def lake(here: Place) -> None:
    """A month of 500,000 trades of a symbol: written into the lake, and 1-minute candles of it."""
    url, folder = here.new_postgresql(), here.folder / "lake"
    _fill(url)
    with DatabaseFactory(url) as full, DatabaseFactory(here.new_postgresql()) as empty:
        writing = Contender(_LAKE, lambda number: _write(full, here.folder / f"lake-{number}"))
        ceiling = Contender("COPY, thrown away", partial(_thrown_away, full))
        compare(
            "PostgreSQL into the lake, by the trade",
            [ceiling, writing],
            lambda number: number,
            here.rounds,
            count=_COUNT,
        )
        speed = _COUNT / min(writing.seconds.values())
        size = sum(path.stat().st_size for path in (here.folder / "lake-0").rglob("*.parquet"))
        fast = Outcome(f"rows a second, at least {_SPEED:,}", f"{speed:,.0f}", "-", speed >= _SPEED)
        outcomes.append(fast)
        grown = peak_growth(partial(_ready, url, folder), _write_ready)
        small = [at_most("the file", _BYTES, size / _COUNT, "bytes a row"), at_most("memory", _MB, grown, "MB more")]
        print_outcomes("", [fast, *small])

        with full.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE public_trades"))  # as it is a minute later
        reading = Lake(folder).reading(empty)
        file = next(folder.rglob("*.parquet"))
        contenders = [
            Contender(_DATABASE, partial(_of_database, full)),
            Contender(_LAKE, lambda load: reading.candles("BTCUSDT", _START, _END, "1m")),
            Contender("DuckDB, plain tuples of the file", lambda load: _of_duckdb(file)),
        ]
        found = contenders[0].run(0)
        same = found == contenders[1].run(0) and [candle[:-1] for candle in found] == contenders[2].run(0)
        outcomes.append(Outcome("candles are equal digit for digit", "yes" if same else "no", "-", same))
        compare(
            "1-minute candles of a month, by the trade",
            contenders,
            lambda number: number,
            here.rounds,
            count=_COUNT,
            goals=[Goal(_LAKE, 5, _DATABASE)],
        )


def _thrown_away(db: DatabaseFactory, load: int) -> None:
    with db.engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        nowhere = SimpleNamespace(write=bool)
        driver.cursor().copy_expert("COPY public_trades TO STDOUT (FORMAT binary)", nowhere)


def _of_database(db: DatabaseFactory, load: int) -> Any:
    with db.get_session(read_only=True) as session:
        return PublicTradeRepository(session).candles("BTCUSDT", _START, _END, "1m")


def _of_duckdb(file: Path) -> Any:
    import duckdb

    with duckdb.connect() as connection:
        found = connection.execute(_CANDLES, {"file": str(file)}).fetchall()
    return [(_EPOCH + timedelta(minutes=minutes), *told) for minutes, *told in found]


def _fill(url: URL) -> None:
    stream = TradeStream()
    with DatabaseFactory(url) as db:
        for start in range(0, _COUNT, _LOAD):
            rows = [row | {"exchange_ts": _START + _STEP * (start + n)} for n, row in enumerate(stream.take(_LOAD))]
            with db.get_session() as session:
                PublicTradeRepository(session).bulk_create(rows)


def _ready(url: URL, folder: Path) -> tuple[DatabaseFactory, Path]:
    db = DatabaseFactory(url)
    db.check_schema()
    Lake(folder).write(db, key="NONE")  # what is loaded at first use
    return db, folder


def _write(db: DatabaseFactory, folder: Path) -> None:
    assert Lake(folder).write(db).periods[0].rows == _COUNT


def _write_ready(given: tuple[DatabaseFactory, Path]) -> None:
    _write(*given)


BENCHMARKS = {"lake": lake}
