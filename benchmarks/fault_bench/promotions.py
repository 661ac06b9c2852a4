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
# Seconds: until all write again, and the bound of readers while a standby lags. Milliseconds: how much later an own
# write is read.
_SERVICE, _STALENESS, _WAIT = 2.0, 0.5, 10.0
_PARTS = 0.5, 0.99
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
            lagging = [_lagging(db, standby, ground.of(30, 6), count)]
        with DatabaseFactory(settings) as db:
            with db.get_session() as session:
                stored = session.scalar(_COUNT) or 0
            lagging += _delayed(db, standby, ground.of(10.0, 1.0), stored)
        (folder / STOP).touch()
        problems = finish(writers, 120)
        if problems:
            raise RuntimeError(f"the writer beside them: {problems}")
    shutil.rmtree(servers)
    return [own, *lagging]


def _own_writes(db: DatabaseFactory, count: int, *, timed: bool) -> Figure:
    """How long it takes until the own write is read; beside it, as the machine may be busy, a read of the primary."""
    found, from_standby, opened, taken, of_primary = 0, 0, list[float](), list[float](), list[float]()
    for number in range(count):
        with db.get_session() as session:
            session.add(_trade(number))
        position, began = db.write_position(), time.monotonic()
        with db.get_session(read_only=True, after=position) as session:
            opened.append(time.monotonic() - began)
            found += session.scalar(_COUNT) == number + 1
            taken.append(time.monotonic() - began)
            from_standby += bool(session.scalar(_PLACE))
        began = time.monotonic()
        with db.get_session(read_only=True, max_staleness=0) as session:
            session.scalar(_COUNT)
            of_primary.append(time.monotonic() - began)
    waited, late, usual = (
        [sorted(each)[int(count * part)] * 1000 for part in _PARTS] for each in (opened, taken, of_primary)
    )
    measured = (
        f"{found:,}, {from_standby:,} from the standby; half and 99 of 100 read within {_both(late)} ms, of which "
        f"{_both(waited)} until it had them, and on the primary within {_both(usual)}"
    )
    promised = f"{count:,} of {count:,}, 99 of 100 at most {_WAIT:.0f} ms later than on the primary"
    holds = found == count and (late[1] - usual[1] <= _WAIT or not timed)
    return Figure("own writes read after their position", promised, measured, holds)


def _both(milliseconds: list[float]) -> str:
    return " and ".join(f"{each:.1f}" for each in milliseconds)


def _lagging(db: DatabaseFactory, standby: Standby, seconds: int, number: int) -> Figure:
    """The standby stands still for whole stretches, as one that lags behind; each read is held to its bound."""
    written, end = _Written(db, number), time.monotonic() + seconds
    while time.monotonic() < end:
        halted = int(time.monotonic()) % 2 == 0
        standby.ask("SELECT pg_wal_replay_pause()" if halted else "SELECT pg_wal_replay_resume()")
        for _ in range(20):
            written.one_more()
            written.read(_STALENESS)
    standby.ask("SELECT pg_wal_replay_resume()")
    return written.figure("stands still at times", _STALENESS, by_primary=True, by_standby=True)


def _delayed(db: DatabaseFactory, standby: Standby, lag: float, number: int) -> list[Figure]:
    """The standby replays all that much later: no answer of it for whoever takes less, and none that is too old."""
    standby.ask(f"ALTER SYSTEM SET recovery_min_apply_delay = '{lag * 1000:.0f}ms'")
    standby.ask("SELECT pg_reload_conf()")
    written, more, end = _Written(db, number), lag * 1.5, time.monotonic() + lag * 3
    while time.monotonic() < end:
        written.one_more()
        written.read(_STALENESS)
        written.read(more)
    standby.ask("ALTER SYSTEM RESET recovery_min_apply_delay")
    standby.ask("SELECT pg_reload_conf()")
    what = f"is {lag:g} s behind"
    return [
        written.figure(what, _STALENESS, by_primary=True, by_standby=False),
        written.figure(what, more, by_primary=False, by_standby=True),
    ]


class _Written:
    """What was committed when, and how the reads since were held to it."""

    def __init__(self, db: DatabaseFactory, number: int) -> None:
        self._db = db
        self._committed: list[tuple[float, int]] = [(0.0, number)]
        self._reads: dict[float, list[tuple[bool, bool]]] = {}

    def one_more(self) -> None:
        number = self._committed[-1][1]
        with self._db.get_session() as session:
            session.add(_trade(number))
        self._committed.append((time.monotonic(), number + 1))

    def read(self, bound: float) -> None:
        """Whether an answer of that age lacks what was committed before, and who gave it."""
        needed = max(count for at, count in self._committed if at < time.monotonic() - bound)
        with self._db.get_session(read_only=True, max_staleness=bound) as session:
            late = (session.scalar(_COUNT) or 0) < needed
            self._reads.setdefault(bound, []).append((late, bool(session.scalar(_PLACE))))

    def figure(self, what: str, bound: float, *, by_primary: bool, by_standby: bool) -> Figure:
        """None may be late, and those who must have answered at times did: else nothing was shown."""
        late, standby = (sum(each) for each in zip(*self._reads[bound], strict=True))
        reads = len(self._reads[bound])
        measured = f"{late} of {reads:,} reads, {standby:,} of them answered by the standby"
        answered = (standby < reads or not by_primary) and (standby > 0 or not by_standby)
        return Figure(f"older than {bound:g} s while a standby {what}", "none", measured, not late and answered)


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
