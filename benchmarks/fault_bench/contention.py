"""Many processes that read a number, add one and write it back."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from sqlalchemy import URL, create_engine
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.fault_bench.checker import Verdict, check_counter
from benchmarks.fault_bench.clients import count_up, finish, open_counters, start, stored_counters
from benchmarks.fault_bench.figures import Figure
from benchmarks.fault_bench.ground import Ground
from benchmarks.fault_bench.journal import Journal, read_journals
from shared.db import DatabaseFactory

_PROCESSES = 16
_COUNTER = "shared"
Sessions = Callable[[URL], Callable[[], AbstractContextManager[Session]]]


def contention(ground: Ground) -> list[Figure]:
    """16 processes that increment one counter on SQLite, read-modify-write, each in a session of its own."""
    each = ground.of(500, 100)
    began = time.monotonic()
    verdict, worst, problems = _contend(ground, each, _library)
    rate = verdict.acknowledged / (time.monotonic() - began)
    control, _, _ = _contend(ground, 30, _stock)
    total = _PROCESSES * each
    return [
        Figure(
            f"contended read-modify-write, SQLite, {_PROCESSES} processes x {each}",
            f"{total:,} of {total:,}, no error",
            f"{verdict.acknowledged - verdict.count('lost'):,} of {total:,}, {verdict.refused} errors; "
            f"{rate:,.0f}/s, longest wait {worst:.1f} s",
            verdict.holds and verdict.acknowledged == total and not problems,
        ),
        Figure(
            f"control: the same with a stock engine (WAL, timeout 30 s), {_PROCESSES} x 30",
            "updates lost or refused",
            f"{verdict_of_control(control)}",
            control.count("lost") + control.refused > 0,
            control=True,
        ),
    ]


def verdict_of_control(verdict: Verdict) -> str:
    """What a way that loses updates did to them."""
    return f"{verdict.count('lost'):,} of {verdict.acknowledged:,} acknowledged lost, {verdict.refused:,} refused"


def _contend(ground: Ground, each: int, sessions: Sessions) -> tuple[Verdict, float, list[str]]:
    url, folder = ground.new_sqlite(), ground.new_folder()
    open_counters(url, [_COUNTER])
    processes = [start(_count, url, folder, f"c{number}", each, sessions) for number in range(_PROCESSES)]
    problems = finish(processes, 600)
    events = list(read_journals(folder))
    begun = {(event.client, event.op): event.at for event in events if event.kind == "invoke"}
    worst = max(event.at - begun[event.client, event.op] for event in events)
    with DatabaseFactory(url) as db:
        return check_counter(events, stored_counters(db)[_COUNTER]), worst, problems


def _count(url: URL, folder: Path, client: str, times: int, sessions: Sessions) -> None:
    session_of = sessions(url)
    with Journal(folder, client) as journal:
        for op in range(times):
            journal.write(op, "invoke", 1)
            try:
                with session_of() as session:
                    count_up(session, _COUNTER)
            except Exception as error:  # noqa: BLE001 # whatever surfaces is what is counted
                journal.write(op, "fail", 1, repr(error))
            else:
                journal.write(op, "ok", 1)


def _library(url: URL) -> Callable[[], AbstractContextManager[Session]]:
    return DatabaseFactory(url).get_session


def _stock(url: URL) -> Callable[[], AbstractContextManager[Session]]:
    return sessionmaker(create_engine(url, connect_args={"timeout": 30})).begin
