"""The lake beside PostgreSQL: out of the one, into the other, and candles of a month of each."""

from __future__ import annotations

import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL

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


def lake(here: Place) -> None:
    """A month of 500,000 trades of a symbol: written into the lake, and 1-minute candles of it."""
    url, folder = here.new_postgresql(), here.folder / "lake"
    _fill(url)
    with DatabaseFactory(url) as full, DatabaseFactory(here.new_postgresql()) as empty:
        speeds = []
        for number in range(3):
            begun = time.perf_counter()
            report = Lake(here.folder / f"lake-{number}").write(full)
            assert report.periods[0].rows == _COUNT
            speeds.append(_COUNT / (time.perf_counter() - begun))
        size = sum(path.stat().st_size for path in (here.folder / "lake-0").rglob("*.parquet"))
        fast = Outcome(f"rows a second, at least {_SPEED:,}", f"{max(speeds):,.0f}", "-", max(speeds) >= _SPEED)
        outcomes.append(fast)
        grown = peak_growth(partial(_ready, url, folder), _write)
        small = [at_most("the file", _BYTES, size / _COUNT, "bytes a row"), at_most("memory", _MB, grown, "MB more")]
        print_outcomes("PostgreSQL into the lake", [fast, *small])

        reading = Lake(folder).reading(empty)
        contenders = [
            Contender(_DATABASE, partial(_of_database, full)),
            Contender(_LAKE, lambda load: reading.candles("BTCUSDT", _START, _END, "1m")),
        ]
        same = contenders[0].run(0) == contenders[1].run(0)
        outcomes.append(Outcome("candles are equal digit for digit", "yes" if same else "no", "-", same))
        compare(
            "1-minute candles of a month, by the trade",
            contenders,
            lambda number: number,
            here.rounds,
            count=_COUNT,
            goals=[Goal(_LAKE, 5, _DATABASE)],
        )


def _of_database(db: DatabaseFactory, load: int) -> Any:
    with db.get_session(read_only=True) as session:
        return PublicTradeRepository(session).candles("BTCUSDT", _START, _END, "1m")


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
    Lake(folder).verify(db)  # what is loaded at first use
    return db, folder


def _write(given: tuple[DatabaseFactory, Path]) -> None:
    db, folder = given
    Lake(folder).write(db)


BENCHMARKS = {"lake": lake}
