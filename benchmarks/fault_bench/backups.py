"""Backups of a database that is being written to, each restored and compared with what was acknowledged before."""

from __future__ import annotations

import shutil
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from sqlalchemy import URL

from benchmarks.fault_bench.checker import Verdict, check
from benchmarks.fault_bench.clients import kill, open_counters, start, stored_counters, stored_rows
from benchmarks.fault_bench.figures import Figure, of_verdict
from benchmarks.fault_bench.ground import Ground
from benchmarks.fault_bench.images import url_of
from benchmarks.fault_bench.journal import read_journals
from benchmarks.fault_bench.kills import damages, write
from shared.db import DatabaseFactory
from shared.db.errors import SharedDBError
from shared.db.operations.backup import back_up, restore

_WRITERS = 2


def backups(ground: Ground) -> list[Figure]:
    """Two writers write on; meanwhile backups are made, restored into new databases, and compared with the journals."""
    count = ground.of(15, 3)
    return [
        _back_up(ground, "SQLite", ground.new_sqlite(), count),
        _back_up(ground, "PostgreSQL", ground.new_postgresql(), count),
        _control(ground),
    ]


def _back_up(ground: Ground, name: str, url: URL, count: int) -> Figure:
    folder, kept = ground.new_folder(), ground.new_folder()
    writers = _start_writers(url, folder)
    _wait_for_rows(folder)
    total = Verdict()
    problems: list[str] = []
    for number in range(count):
        time.sleep(0.2)  # so that each backup has more to hold than the one before
        began = time.monotonic()
        with DatabaseFactory(url) as db:
            report = back_up(db, kept / f"{number}", pg_bin=ground.server.programs)
        target = ground.new_sqlite() if name == "SQLite" else ground.new_postgresql()
        with DatabaseFactory(target) as db:
            restored = restore(db, report.path, pg_bin=ground.server.programs)
            verdict = check(read_journals(folder), stored_rows(db), stored_counters(db), since=began)
        if restored.rows != report.rows:
            problems.append(f"backup {number} and its restore count differently")
        if not verdict.acknowledged:
            problems.append(f"nothing was acknowledged before backup {number}")
        problems += damages(target)
        total.acknowledged = verdict.acknowledged
        total.acknowledged_rows = verdict.acknowledged_rows
        total.findings += verdict.findings
    for writer in writers:
        kill(writer)
    return of_verdict(f"{count} backups under load, restored, {name}", total, problems=problems)


def _start_writers(url: URL, folder: Path) -> list[BaseProcess]:
    clients = [f"c{number}" for number in range(_WRITERS)]
    open_counters(url, clients)
    return [start(write, url, folder, client) for client in clients]


def _wait_for_rows(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while sum(event.kind == "ok" for event in read_journals(folder)) < 20:
        if time.monotonic() > deadline:
            raise TimeoutError("the writers write nothing")
        time.sleep(0.1)  # the writers need the processors too


def _control(ground: Ground) -> Figure:
    """What `cp` makes: the main file alone, without the write-ahead log beside it."""
    url, folder = ground.new_sqlite(), ground.new_folder()
    writers = _start_writers(url, folder)
    _wait_for_rows(folder)
    target = ground.folder / "copied.db"
    began = time.monotonic()
    shutil.copyfile(str(url.database), target)
    for writer in writers:
        kill(writer)
    with DatabaseFactory(url_of(target)) as db:
        try:
            verdict = check(read_journals(folder), stored_rows(db), since=began)
            seen, told = verdict.count("lost") > 0, str(verdict)
        except SharedDBError as error:
            seen, told = True, f"{type(error).__name__}"
    return Figure("control: a plain copy of the SQLite file under load", "rows lost", told, seen, control=True)
