"""A primary that is lost under writers and readers, and a standby that is promoted in its place."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from sqlalchemy import URL, func, select, text
from sqlalchemy.orm import Session

from benchmarks.fault_bench.clients import batch, finish, open_counters, start
from benchmarks.fault_bench.figures import Figure, of_verdict
from benchmarks.fault_bench.ground import Ground
from benchmarks.fault_bench.restarts import STOP, checked, done, wait_for_all, write
from benchmarks.fault_bench.server import PostgreSQLServer, Standby
from shared.db import DatabaseFactory, DatabaseSettings, PublicTrade

_WRITERS, _READERS = 4, 2
# Seconds: until all write again, the bound of readers while a standby lags, and the wait for an own write.
_SERVICE, _STALENESS, _WAIT = 2.0, 0.5, 0.010
_PLACE = text("SELECT pg_is_in_recovery()")
_COUNT = select(func.count()).where(PublicTrade.symbol == "reader")


def promotions(ground: Ground) -> list[Figure]:
    """A standby takes over, asynchronous and synchronous; and what its readers get before."""
    count = ground.of(5, 1)
    promoted = [figure for synchronous in (False, True) for figure in _promoted(ground, synchronous, count)]
    return [*promoted, *_read(ground)]


def _promoted(ground: Ground, synchronous: bool, count: int) -> list[Figure]:
    kind = "synchronous" if synchronous else "asynchronous"
    figures, longest = [], 0.0
    for number in range(count):
        figure, seconds = _promote(ground, synchronous, f"promotion {number + 1} of {count}, {kind} standby")
        figures.append(figure)
        longest = max(longest, seconds)
    promised = f"all write again within {_SERVICE:g} s"
    back = Figure(f"{count} promotions, {kind}", promised, f"{longest:.2f} s at most", longest <= _SERVICE)
    return [*figures, back]


def _promote(ground: Ground, synchronous: bool, what: str) -> tuple[Figure, float]:
    folder, servers = ground.new_folder(), _folder_of_servers(ground)
    clients = [f"c{number}" for number in range(_WRITERS)]
    with PostgreSQLServer(servers / "a") as primary, Standby(primary, servers / "b") as standby:
        url = _made(primary, standby)
        open_counters(url, clients)
        if synchronous:
            primary.ask("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            primary.ask("SELECT pg_reload_conf()")
        workers = [start(write, url, folder, client, number % 2 == 0) for number, client in enumerate(clients)]
        workers += [start(_look, url, standby.url.set(database="fleet"), folder) for _ in range(_READERS)]
        wait_for_all(folder, clients)
        time.sleep(ground.random.uniform(0, 1))  # the moment is what is random here
        primary.stop("immediate")
        standby.promote()
        began, before = time.monotonic(), done(folder)
        while any(done(folder)[client] <= before[client] for client in clients):
            if time.monotonic() - began > 60:
                raise TimeoutError("a writer does not get through")
            time.sleep(0.02)  # the writers need the processors too
        seconds = time.monotonic() - began
        wait_for_all(folder, clients)
        (folder / STOP).touch()
        problems = finish(workers, 120)
        verdict = checked(url, folder)
        if not synchronous:  # which may lose what it had not sent; never half of it, and nothing twice
            verdict.findings[:] = [finding for finding in verdict.findings if finding.fault != "lost"]
        primary.start()  # to be stopped as all are
    shutil.rmtree(servers)
    return of_verdict(what, verdict, problems=problems), seconds


def _look(url: URL, replica: URL, folder: Path) -> None:
    """Read by whatever answers: nothing but what may pass comes up, and the retry takes that."""
    logging.disable()
    settings = DatabaseSettings(
        database_url=url.render_as_string(hide_password=False),
        replica_url=replica.render_as_string(hide_password=False),
        max_staleness=60,
        _env_file=None,
    )
    with DatabaseFactory(settings) as db:
        while not (folder / STOP).exists():
            db.run_in_transaction(_rows, read_only=True)


def _rows(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(PublicTrade)) or 0


def _read(ground: Ground) -> list[Figure]:
    """Own writes at once, and never an answer that is too old while the standby lags."""
    servers = _folder_of_servers(ground)
    with PostgreSQLServer(servers / "a") as primary, Standby(primary, servers / "b") as standby:
        url = _made(primary, standby)
        settings = DatabaseSettings(
            database_url=url.render_as_string(hide_password=False),
            replica_url=standby.url.set(database="fleet").render_as_string(hide_password=False),
            _env_file=None,
        )
        open_counters(url, ["own"])
        folder = ground.new_folder()
        writers = [start(write, url, folder, "own", True)]  # the log has more to bring than what is waited for
        with DatabaseFactory(settings) as db:
            count = ground.of(10_000, 300)
            own = _own_writes(db, count, timed=not ground.short)
            lagging = _lagging(db, standby, ground.of(30, 6), count)
        (folder / STOP).touch()
        problems = finish(writers, 120)
        if problems:
            raise RuntimeError(f"the writer beside them: {problems}")
    shutil.rmtree(servers)
    return [own, lagging]


def _own_writes(db: DatabaseFactory, count: int, *, timed: bool) -> Figure:
    found, from_standby, waits = 0, 0, []
    for number in range(count):
        with db.get_session() as session:
            session.add(_trade(number))
        position, began = db.write_position(), time.monotonic()
        with db.get_session(read_only=True, after=position) as session:
            waits.append(time.monotonic() - began)
            found += session.scalar(_COUNT) == number + 1
            from_standby += bool(session.scalar(_PLACE))
    late = sorted(waits)[int(count * 0.99)]
    measured = f"{found:,}, {from_standby:,} from the standby; waited {late * 1000:.1f} ms at most, 99 times in 100"
    promised = f"{count:,} of {count:,}, {_WAIT * 1000:.0f} ms"
    holds = found == count and (late <= _WAIT or not timed)
    return Figure("own writes read after their position", promised, measured, holds)


def _lagging(db: DatabaseFactory, standby: Standby, seconds: int, number: int) -> Figure:
    """The standby stands still for whole stretches, as one that lags behind; each read is held to its bound."""
    late, reads, places = 0, 0, set[bool]()
    written: list[tuple[float, int]] = [(0.0, number)]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        halted = int(time.monotonic()) % 2 == 0
        standby.ask("SELECT pg_wal_replay_pause()" if halted else "SELECT pg_wal_replay_resume()")
        for _ in range(20):
            with db.get_session() as session:
                session.add(_trade(number))
            number += 1
            written.append((time.monotonic(), number))
            needed = max(count for at, count in written if at < time.monotonic() - _STALENESS)
            with db.get_session(read_only=True, max_staleness=_STALENESS) as session:
                reads += 1
                late += (session.scalar(_COUNT) or 0) < needed
                places.add(bool(session.scalar(_PLACE)))
    standby.ask("SELECT pg_wal_replay_resume()")
    measured = f"{late} of {reads:,} reads, {'by both' if len(places) == 2 else 'by one server alone'}"
    return Figure(f"older than {_STALENESS:g} s while a standby lags", "none", measured, not late and len(places) == 2)


def _trade(number: int) -> PublicTrade:
    return PublicTrade(**batch("reader", number, 1)[0])


def _folder_of_servers(ground: Ground) -> Path:
    folder = ground.new_folder()
    folder.chmod(0o755)
    return folder


def _made(primary: PostgreSQLServer, standby: Standby) -> URL:
    """A database with the schema on both; by its URL a process finds whichever may be written."""
    primary.ask("CREATE DATABASE fleet")
    hosts = ",".join(str(server.url.query["host"]) for server in (primary, standby))
    url = primary.url.set(database="fleet", query={"host": hosts, "target_session_attrs": "read-write"})
    with DatabaseFactory(url) as db:
        db.create_tables()
    return url
