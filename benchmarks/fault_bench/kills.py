"""Writers that are killed at random moments, and the database that they leave behind."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

from sqlalchemy import URL

from benchmarks.fault_bench.checker import Fault, Verdict, check
from benchmarks.fault_bench.clients import (
    apply,
    batch,
    kill,
    open_counters,
    start,
    stored_counters,
    stored_rows,
)
from benchmarks.fault_bench.figures import Figure, of_verdict
from benchmarks.fault_bench.ground import Ground
from benchmarks.fault_bench.journal import Journal, read_journals
from shared.db import DatabaseFactory, PublicTrade
from shared.db.bulk import bulk_create

_WRITERS = 4
_ROWS = 10
Writer = Callable[[URL, Path, str], None]


def kills(ground: Ground) -> list[Figure]:
    """Kill -9 of four writers of batches in turn, each fifth time of all at once, on each database."""
    count = ground.of(200, 30)
    figures = []
    for name, url in ground.new_databases():
        verdict = _kill(ground, url, count, write)
        figures.append(
            of_verdict(
                f"{count} kill -9 of writers, {name}",
                verdict,
                problems=damages(url),
                more=f"{verdict.unknown} in flight, of which {verdict.unknown_applied} applied",
            )
        )
    figures.append(_control(ground, "log ok before they commit", "rows lost", _acknowledge_early, "lost"))
    figures.append(_control(ground, "commit a batch in two halves", "partial batches", _commit_in_halves, "partial"))
    return figures


def _control(ground: Ground, how: str, promised: str, writer: Writer, fault: Fault) -> Figure:
    """Careless writers, killed in rounds of 20 until one dies at the moment that matters."""
    killed, verdict = 0, Verdict()
    while killed < 200 and not verdict.count(fault):
        verdict = _kill(ground, ground.new_sqlite(), 20, writer)
        killed += 20
    return Figure(
        f"control: {killed} kills of writers that {how}",
        promised,
        str(verdict),
        verdict.count(fault) > 0,
        control=True,
    )


def damages(url: URL) -> list[str]:
    """What SQLite's own check of a file finds; nothing for PostgreSQL, which has no such check."""
    if url.get_backend_name() != "sqlite":
        return []
    with sqlite3.connect(str(url.database)) as connection:
        found = [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
        found += [f"foreign key: {row}" for row in connection.execute("PRAGMA foreign_key_check")]
    connection.close()
    return found


def _kill(ground: Ground, url: URL, count: int, writer: Writer) -> Verdict:
    names = [f"c{number}" for number in range(count + _WRITERS)]
    open_counters(url, names)
    folder = ground.new_folder()
    waiting = iter(names)

    def begin() -> BaseProcess:
        return start(writer, url, folder, next(waiting))

    writers = [begin() for _ in range(_WRITERS)]
    for victims in _turns(ground, count):
        time.sleep(ground.random.uniform(0.05, 0.35))  # the moment is what is random here
        for victim in victims:
            kill(writers[victim])
        for victim in victims:
            writers[victim] = begin()
    for process in writers:
        kill(process)
    if url.get_backend_name() == "postgresql":
        ground.server.wait_until_idle(str(url.database))
    with DatabaseFactory(url) as db:
        return check(read_journals(folder), stored_rows(db), stored_counters(db))


def _turns(ground: Ground, count: int) -> Iterator[list[int]]:
    """Which writers die together, until `count` have died."""
    left = count
    for turn in itertools.count(1):
        victims = list(range(_WRITERS)) if turn % 5 == 0 else [ground.random.randrange(_WRITERS)]
        yield victims[:left]
        left -= len(victims)
        if left <= 0:
            return


def write(url: URL, folder: Path, client: str) -> None:
    """Write batches until the end comes."""
    with Journal(folder, client) as journal, DatabaseFactory(url) as db:
        for op in itertools.count():
            journal.write(op, "invoke", _ROWS)
            with db.get_session() as session:
                apply(session, client, op, _ROWS)
            journal.write(op, "ok", _ROWS)


def _acknowledge_early(url: URL, folder: Path, client: str) -> None:
    with Journal(folder, client) as journal, DatabaseFactory(url) as db:
        for op in itertools.count():
            with db.get_session() as session:
                apply(session, client, op, _ROWS)
                journal.write(op, "ok", _ROWS)


def _commit_in_halves(url: URL, folder: Path, client: str) -> None:
    with Journal(folder, client) as journal, DatabaseFactory(url) as db:
        for op in itertools.count():
            journal.write(op, "invoke", _ROWS)
            values = batch(client, op, _ROWS)
            for half in (values[: _ROWS // 2], values[_ROWS // 2 :]):
                with db.get_session() as session:
                    bulk_create(session, PublicTrade, half)
            journal.write(op, "ok", _ROWS)
