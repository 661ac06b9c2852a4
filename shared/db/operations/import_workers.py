"""Several files of trades at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from shared.db.database import DatabaseFactory
from shared.db.errors import SharedDBError
from shared.db.operations.interruption import blocked_signals
from shared.db.operations.trade_file import FileReport, ImportOptions, import_file
from shared.db.settings import DatabaseSettings

_TICK = 0.2
_SWITCH_INTERVAL = 0.00001


@contextmanager
def short_turns() -> Iterator[None]:
    """Have threads take turns more often, for a process that does nothing but import: the whole process is changed.

    Python lets a thread run for 5 ms before another one gets its turn. While one reads a file for so long, the server
    runs out of the rows that another one sends: which it does some 800 times for 200,000 rows, so that even half a
    millisecond of waiting each time is a third of the import.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


@dataclass
class _Shared:
    """What parent and workers share: which turn is next, how far each is, whether to stop, and the reports."""

    next_file: Any
    bytes_done: Any
    rows_done: Any
    stopped: Any
    reports: Any

    def take(self, count: int) -> int | None:
        with self.next_file.get_lock():
            index: int = self.next_file.value
            self.next_file.value += 1
        return index if index < count else None


def import_in_parallel(
    settings: DatabaseSettings,
    paths: list[Path],
    turns: list[list[int]],
    options: ImportOptions,
    workers: int,
    watch: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> list[FileReport]:
    """`import_file` for every path, by so many processes; each takes a turn, some places in `paths`, after another.

    Raises `SharedDBError` when one of them fails.

    New processes, not forked ones: a fork would share the parent's connections, and its locks in whatever state.
    """
    context = multiprocessing.get_context("spawn")
    shared = _Shared(
        context.Value("i", 0),
        context.Array("q", len(paths), lock=False),
        context.Array("q", len(paths), lock=False),
        context.Event(),
        context.SimpleQueue(),
    )
    processes = [
        context.Process(target=_work, args=(settings, paths, turns, options, shared), daemon=True)
        for _ in range(workers)
    ]
    reports = [FileReport(str(path)) for path in paths]
    failure: str | None = None
    try:
        # Ctrl-C reaches every process of a terminal, a service manager's stop every one of a service: what that means
        # is for the parent to decide, from a child's first moment on. It takes over the signals that are blocked here.
        with blocked_signals():
            for process in processes:
                process.start()
        running = list(processes)
        while running:
            wait([process.sentinel for process in running], timeout=_TICK)
            # Asked before the queue is emptied: what ended has sent its last report by then.
            running = [process for process in running if process.is_alive()]
            while not shared.reports.empty():
                index, report = shared.reports.get()
                if isinstance(report, FileReport):
                    reports[index] = report
                else:
                    failure = failure or report
            if any(process.exitcode for process in processes):
                failure = failure or "a worker process ended by itself"
            if failure or stop():
                shared.stopped.set()
            watch(sum(shared.bytes_done), sum(shared.rows_done))
    finally:
        shared.stopped.set()
        for process in processes:
            if process.pid is None:
                continue  # never begun
            process.join(timeout=10)
            process.kill()
            process.join()
    if failure and not stop():
        raise SharedDBError(f"{failure}; what is stored stays, run the same command again to go on")
    return reports


def _work(
    settings: DatabaseSettings, paths: list[Path], turns: list[list[int]], options: ImportOptions, shared: _Shared
) -> None:
    parent = multiprocessing.parent_process()

    def stop() -> bool:
        return shared.stopped.is_set() or (parent is not None and not parent.is_alive())

    def note(index: int, done: int, rows: int) -> None:
        shared.bytes_done[index], shared.rows_done[index] = done, rows

    with short_turns(), DatabaseFactory(settings) as db:
        while not stop() and (turn := shared.take(len(turns))) is not None:
            for index in turns[turn]:
                try:
                    report = import_file(db, paths[index], options, partial(note, index), stop)
                except (SharedDBError, SQLAlchemyError) as error:
                    shared.reports.put((index, str(error).strip().splitlines()[0]))
                    return
                shared.reports.put((index, report))
                if stop():
                    return
