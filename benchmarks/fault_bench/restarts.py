"""A PostgreSQL server that restarts, crashes, and breaks connections at COMMIT, under writers who use the retry."""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import cycle, islice
from pathlib import Path

from sqlalchemy import URL, create_engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.fault_bench.checker import Verdict, check, check_counter
from benchmarks.fault_bench.clients import (
    apply,
    count_up,
    finish,
    open_counters,
    start,
    stored_counters,
    stored_rows,
)
from benchmarks.fault_bench.figures import Figure, of_verdict
from benchmarks.fault_bench.ground import Ground
from benchmarks.fault_bench.journal import Journal, read_journals
from shared.db import DatabaseFactory, PublicTrade
from shared.db.errors import CommitUnknownError
from shared.db.tests.cutting_proxy import CuttingProxy

_WRITERS, _ROWS = 16, 6
STOP = "stop"


def restarts(ground: Ground) -> list[Figure]:
    """Restarts under 16 writers: fast, immediate, kill -9 of a backend in turn; then COMMITs cut off one by one."""
    count = ground.of(12, 3)
    return [_restart(ground, count), _cut_commits(ground, ground.of(60, 16)), _control(ground)]


def _restart(ground: Ground, count: int) -> Figure:
    url, server = ground.new_postgresql(), ground.server

    def fast() -> None:
        server.stop("fast")
        server.start()

    def immediate() -> None:
        server.stop("immediate")
        server.start()

    faults = (fast, immediate, lambda: server.kill_backend(str(url.database)))
    return under_writers(f"{count} restarts of PostgreSQL", ground, url, _WRITERS, islice(cycle(faults), count))


def under_writers(what: str, ground: Ground, url: URL, count: int, faults: Iterable[Callable[[], None]]) -> Figure:
    """One fault after the other under `count` writers, each at a moment of its own, when all have got on."""
    folder = ground.new_folder()
    clients = [f"c{number}" for number in range(count)]
    open_counters(url, clients)
    writers = [start(write, url, folder, client, number % 2 == 0) for number, client in enumerate(clients)]
    for fault in faults:
        wait_for_all(folder, clients)
        time.sleep(ground.random.uniform(0, 0.5))  # the moment is what is random here
        fault()
    wait_for_all(folder, clients)
    (folder / STOP).touch()
    problems = finish(writers, 120)
    return _figure(f"{what} under {count} writers", checked(url, folder), folder, problems)


def wait_for_all(folder: Path, clients: list[str]) -> None:
    """Wait until each client has got another operation done: a retry is bounded, and the next restart a new one."""
    before = done(folder)
    deadline = time.monotonic() + 120
    while any(now <= before[client] for client, now in done(folder).items()) or len(done(folder)) < len(clients):
        if time.monotonic() > deadline:
            raise TimeoutError("a writer does not get through")
        time.sleep(0.1)  # the writers need the processors too


def done(folder: Path) -> Counter[str]:
    """How many operations each client has ended."""
    done = Counter[str]()
    for event in read_journals(folder):
        done[event.client] += event.kind != "invoke"
    return done


def _figure(what: str, verdict: Verdict, folder: Path, problems: list[str]) -> Figure:
    """Every operation ended as `ok`: what was unknown at first was found out, and nothing was given up."""
    whys = Counter(event.why for event in read_journals(folder) if event.why)
    surfaced = [f"{verdict.refused} refused", f"{verdict.unknown} unresolved"]
    if not verdict.refused and not verdict.unknown:
        surfaced = []
    told = ", ".join(f"{count:,} {why}" for why, count in sorted(whys.items()))
    return of_verdict(what, verdict, problems=[*problems, *surfaced], more=told)


def checked(url: URL, folder: Path) -> Verdict:
    """The journals beside what is stored."""
    with DatabaseFactory(url) as db:
        return check(read_journals(folder), stored_rows(db), stored_counters(db))


def write(url: URL, folder: Path, client: str, idempotent: bool) -> None:
    """One operation after the other, until a file called `STOP` is in the folder."""
    logging.disable()  # each of the many repetitions would be told
    with Journal(folder, client) as journal, DatabaseFactory(url) as db:
        for op in itertools.count():
            if (folder / STOP).exists():
                return
            _do(db, journal, op, idempotent=idempotent)


def _do(db: DatabaseFactory, journal: Journal, op: int, *, idempotent: bool) -> None:
    """One operation, until it is known to be done.

    Half of the writers declare it idempotent, which it is. The others are told when nobody knows, look, and begin again
    only if nothing is there.
    """
    client, why = journal.client, ""
    journal.write(op, "invoke", _ROWS)
    try:
        while True:
            try:
                db.run_in_transaction(lambda session: apply(session, client, op, _ROWS), idempotent=idempotent)
            except CommitUnknownError:
                if db.run_in_transaction(lambda session: _is_there(session, client, op), read_only=True):
                    why = "unknown commits that were done"
                else:
                    why = "unknown commits that were not"
                    continue
            break
    except Exception as error:  # noqa: BLE001 # whatever surfaces is what is counted
        journal.write(op, "fail", _ROWS, f"{type(error).__name__} surfaced: {error}")
    else:
        journal.write(op, "ok", _ROWS, why)


def _is_there(session: Session, client: str, op: int) -> bool:
    found = select(func.count()).where(PublicTrade.symbol == client, PublicTrade.trade_id.startswith(f"{op}-"))
    return bool(session.scalar(found))


def _cut_commits(ground: Ground, count: int) -> Figure:
    url, folder = ground.new_postgresql(), ground.new_folder()
    clients = ["eager", "asking"]
    open_counters(url, clients)
    sockets = ground.new_folder()
    with CuttingProxy(url, sockets) as proxy, DatabaseFactory(proxy.url) as db:
        for client in clients:
            with Journal(folder, client) as journal:
                for op in range(count // 2):
                    proxy.cut(b"COMMIT\0", "before" if op % 2 else "after")
                    _do(db, journal, op, idempotent=client == "eager")
    return _figure(f"{count} COMMITs cut off, before and after the server did it", checked(url, folder), folder, [])


def _control(ground: Ground) -> Figure:
    """A loop that runs again whatever failed, as one writes it by hand."""
    url, folder = ground.new_postgresql(), ground.new_folder()
    open_counters(url, ["shared"])
    with CuttingProxy(url, ground.new_folder()) as proxy, Journal(folder, "hand") as journal:
        sessions = sessionmaker(create_engine(proxy.url))
        for op in range(10):
            proxy.cut(b"COMMIT\0", "after")
            journal.write(op, "invoke", 1)
            _until_it_works(sessions.begin, "shared")
            journal.write(op, "ok", 1)
    with DatabaseFactory(url) as db:
        verdict = check_counter(read_journals(folder), stored_counters(db)["shared"])
    return Figure(
        "control: 10 increments, each run again after its COMMIT was cut off",
        "counted twice",
        f"{verdict.count('miscounted')} counted twice",
        verdict.count("miscounted") > 0,
        control=True,
    )


def _until_it_works(begin: Callable[[], AbstractContextManager[Session]], counter: str) -> None:
    while True:
        try:
            with begin() as session:
                count_up(session, counter)
        except DBAPIError:
            continue
        return
