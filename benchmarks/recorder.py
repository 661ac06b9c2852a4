"""A live stream through a Recorder, a message at a time, against writing the same rows oneself."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import URL

from benchmarks.data import Rows, TradeStream
from benchmarks.harness import Contender, Place, compare, print_table
from shared.db import DatabaseFactory, PublicTrade, PublicTradeRepository, Recorder

_ROWS, _BATCH, _FEW = 2_000, 1_000, 200
_numbers = itertools.count()


def recorder(here: Place) -> None:
    """Trades that come one by one, unless said otherwise, until all of them are committed."""
    stream = TradeStream()
    for name, new in (("PostgreSQL", here.new_postgresql), ("SQLite file", here.new_sqlite)):
        with ExitStack() as recorders:
            _compare(name, new, stream, here, recorders)


def _compare(name: str, new: Callable[[], URL], stream: TradeStream, here: Place, recorders: ExitStack) -> None:
    def recorded(at_once: int = 1, **how: Any) -> Callable[[Rows], None]:
        recorder = recorders.enter_context(_new_recorder(new(), here.folder, max_rows=_BATCH, **how))

        def write(rows: Rows) -> None:
            for start in range(0, len(rows), at_once):
                recorder.add(rows[start : start + at_once])
            recorder.flush()

        return write

    compare(
        f"{name}: {_ROWS:,} trades, {_BATCH:,} a batch",
        [
            Contender("bulk_create, batches by hand", _in_batches(new())),
            Contender("Recorder", recorded()),
            Contender("Recorder with a spool", recorded(spool=True)),
            Contender("Recorder with a spool, 20 trades a message", recorded(20, spool=True)),
        ],
        lambda number: stream.take(_ROWS),
        here.rounds,
        count=_ROWS,
    )
    compare(
        f"{name}: {_FEW:,} trades",
        [
            Contender("a session and session.add() for each", _added_one_by_one(new())),
            Contender("a session and bulk_create for each", _one_by_one(new())),
            Contender("Recorder with a spool and fsync", recorded(spool=True, fsync=True)),
            Contender("Recorder with a spool", recorded(spool=True)),
            Contender("Recorder", recorded()),
        ],
        lambda number: stream.take(_FEW),
        here.rounds,
        count=_FEW,
    )


def recorder_add(here: Place) -> None:
    """What one add() of one trade costs its caller, in microseconds, while the recorder's thread writes nothing."""
    stream, url = TradeStream(), here.new_sqlite()
    rows = []
    ways: list[tuple[str, dict[str, Any], int]] = [
        ("in memory", {}, _ROWS),
        ("with a spool", {"spool": True}, _ROWS),
        ("with a spool and fsync", {"spool": True, "fsync": True}, 200),
    ]
    for name, how, count in ways:
        spent = []
        for _ in range(max(3, here.rounds // 3)):
            taken = stream.take(count)
            with _new_recorder(url, here.folder, max_rows=count + 1, max_seconds=3600.0, **how) as one:
                for row in taken:
                    start = time.perf_counter()
                    one.add([row])
                    spent.append(time.perf_counter() - start)
        spent.sort()
        rows.append((name, f"{median(spent) * 1e6:.1f}", f"{spent[int(len(spent) * 0.99)] * 1e6:.1f}"))
    print_table("", ("one add() of one trade", "median µs", "99 % within µs"), rows)


def _new_recorder(url: URL, folder: Path, *, spool: bool = False, **how: Any) -> Recorder:
    place = folder / f"spool-{next(_numbers)}" if spool else None
    return Recorder(DatabaseFactory(url), PublicTrade, spool=place, **how)


def _in_batches(url: URL) -> Callable[[Rows], None]:
    db = DatabaseFactory(url)

    def write(rows: Rows) -> None:
        for start in range(0, len(rows), _BATCH):
            with db.get_session() as session:
                PublicTradeRepository(session).bulk_create(rows[start : start + _BATCH])

    return write


def _one_by_one(url: URL) -> Callable[[Rows], None]:
    db = DatabaseFactory(url)

    def write(rows: Rows) -> None:
        for row in rows:
            with db.get_session() as session:
                PublicTradeRepository(session).bulk_create([row])

    return write


def _added_one_by_one(url: URL) -> Callable[[Rows], None]:
    db = DatabaseFactory(url)

    def write(rows: Rows) -> None:
        for row in rows:
            with db.get_session() as session:
                session.add(PublicTrade(**row))

    return write


BENCHMARKS = {"recorder": recorder, "recorder-add": recorder_add}
