"""Through a real PgBouncer, set as docs/pgbouncer.md has it, with two connections for all transactions.

Needs the program `pgbouncer` and runs with `pytest -m pgbouncer` only.
"""

from __future__ import annotations

import asyncio
import configparser
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import URL, func, select, text

from shared.db import (
    DatabaseFactory,
    DatabaseReadOnlyError,
    MigrationError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTradeRepository,
    Run,
    RunRepository,
    Strategy,
    TenantViolation,
)
from shared.db.migrations.runner import upgrade
from shared.db.tests.fleet import fill
from shared.db.tests.support import execution_values, in_threads, trade_values
from shared.db.tests.test_documents import DOCS, blocks

pytestmark = pytest.mark.pgbouncer
SERVER_CONNECTIONS = 2


@dataclass(frozen=True)
class Bouncer:
    """A PgBouncer that runs."""

    port: int

    def in_front_of(self, url: URL) -> URL:
        """The address of the same database through it."""
        return URL.create(url.drivername, url.username, url.password, "127.0.0.1", self.port, url.database)


@pytest.fixture(scope="session")
def bouncer(postgresql_server: URL) -> Iterator[Bouncer]:
    """A PgBouncer in front of the test server."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.fail("these tests need the program pgbouncer: apt-get install pgbouncer", pytrace=False)
    host = str(postgresql_server.query.get("host") or postgresql_server.host or "127.0.0.1")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="shared-db-pgbouncer-") as folder:
        options: dict[str, Any] = {}
        if (
            os.getuid() == 0
        ):  # as which it refuses to run: then as the server's user, to whom the socket's folder is open
            user = pwd.getpwuid(os.stat(host).st_uid) if os.path.isdir(host) else pwd.getpwnam("nobody")
            options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(folder, user.pw_uid, user.pw_gid)
        settings = Path(folder) / "pgbouncer.ini"
        page = configparser.ConfigParser()
        page.read_string(blocks((DOCS / "pgbouncer.md").read_text(), "ini")[0])
        page["databases"] = {"*": f"host={host} port={postgresql_server.port or 5432}"}
        page["pgbouncer"].update(
            {
                "listen_port": str(port),
                "unix_socket_dir": "",
                "default_pool_size": str(SERVER_CONNECTIONS),
                "auth_type": "trust",
                "auth_file": f"{folder}/users.txt",
                "logfile": f"{folder}/log",
            }
        )
        with settings.open("w") as file:
            page.write(file)
        (Path(folder) / "users.txt").write_text(
            f'"{postgresql_server.username}" "{postgresql_server.password or ""}"\n'
        )
        process = subprocess.Popen([program, "-q", str(settings)], **options)
        running = Bouncer(port)
        try:
            _wait_for(running.in_front_of(postgresql_server), process)
            yield running
        finally:
            process.terminate()
            process.wait()


def _wait_for(url: URL, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)).close()
            return
        except psycopg2.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)  # it is starting


@pytest.fixture(params=("without", "with policies"))
def pooled(request: pytest.FixtureRequest, bouncer: Bouncer, postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """Ann's and bob's rows, reached through PgBouncer, also for setting it all up."""
    with DatabaseFactory(bouncer.in_front_of(postgresql_url)) as db:
        fill(db)
        if request.param == "with policies":
            db.enable_row_security()
            assert db.row_security_status().enabled
        yield db


@pytest.fixture
def policed(bouncer: Bouncer, postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """The same with policies."""
    with DatabaseFactory(bouncer.in_front_of(postgresql_url)) as db:
        fill(db)
        db.enable_row_security()
        yield db


def test_users_on_many_threads_never_mix(pooled: DatabaseFactory) -> None:
    """Eight threads take turns as ann and bob on two server connections: each reads and writes own rows only."""
    wrong: list[Any] = []
    backends: set[int] = set()

    def work(number: int) -> None:
        for turn in range(40):
            user = ("ann", "bob")[(number + turn) % 2]
            with pooled.get_session(user_id=user, read_only=turn % 3 == 0) as session:
                # First a question that stands alone, where the session is read-only.
                wrong.extend(run for run in RunRepository(session).get_by_user_id(user) if run.run_id != f"run-{user}")
                wrong.extend(found for found in session.scalars(select(Run.user_id)) if found != user)
                if session.confined_by_server:  # type: ignore[attr-defined] # a UserSession
                    rows = session.execute(text("SELECT user_id, current_setting('shared_db.user_id') FROM runs"))
                    wrong.extend(row for row in rows if tuple(row) != (user, user))
                    backends.add(session.scalar(text("SELECT pg_backend_pid()")))
                if turn % 3:
                    session.get_one(Strategy, f"str-{user}").symbol = f"{user}-{turn}"

    in_threads(8, work)
    assert wrong == []
    assert len(backends) <= SERVER_CONNECTIONS
    with pooled.get_session() as plain:
        symbols = plain.execute(select(Strategy.strategy_id, Strategy.symbol))
        assert all(symbol.startswith(key.removeprefix("str-")) for key, symbol in symbols)


def test_nothing_of_a_user_stays_on_the_servers_connection(policed: DatabaseFactory) -> None:
    """After users' sessions, failed ones too, plain sessions on the same connections are the login and see all."""
    backends = set()
    for turn in range(30):
        user = ("ann", "bob")[turn % 2]
        if turn % 5 == 0:
            with pytest.raises(TenantViolation), policed.get_session(user_id=user) as session:
                session.execute(text("UPDATE runs SET user_id = 'nobody'"))
        else:
            with policed.get_session(user_id=user) as session:
                assert session.scalars(text("SELECT user_id FROM runs")).all() == [user]
        with policed.get_session() as plain:
            row = plain.execute(
                text("SELECT current_user = session_user, current_setting('shared_db.user_id', true), pg_backend_pid()")
            ).one()
            assert row[:2] in {(True, None), (True, "")}
            backends.add(row[2])
            assert len(plain.scalars(select(Run)).all()) == 2
    assert len(backends) <= SERVER_CONNECTIONS


def test_nothing_of_a_users_raw_sql_stays_on_the_servers_connection(policed: DatabaseFactory) -> None:
    """What outlives a transaction is swept before its COMMIT: afterwards the connection is somebody else's."""
    backends = set()
    for turn in range(30):
        with policed.get_session(user_id="bob") as session:
            session.execute(text("CREATE TEMP TABLE report AS SELECT * FROM api_credentials"))
            session.execute(text("PREPARE q AS SELECT 1"))
            session.execute(text("SELECT pg_advisory_lock(42)"))
            session.execute(text("SET search_path = pg_catalog"))
        with policed.get_session(user_id=("ann", "bob")[turn % 2]) as session:
            assert session.scalar(text("SELECT to_regclass('report')")) is None
            assert session.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0
            assert session.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")) == 0
            assert len(session.scalars(select(Run)).all()) == 1
            backends.add(session.scalar(text("SELECT pg_backend_pid()")))
    assert len(backends) <= SERVER_CONNECTIONS


def test_bulk_writes_of_many_sessions_do_not_meet(pooled: DatabaseFactory) -> None:
    """Temporary tables stay behind on the server's connections, where another user's session finds them empty."""
    runs = {user: Run(run_id=f"run-{user}", account_id=f"acc-{user}") for user in ("ann", "bob")}

    def work(number: int) -> None:
        for turn in range(5):
            user = ("ann", "bob")[(number + turn) % 2]
            rows = [execution_values(runs[user], number * 1000 + turn * 10 + n, symbol=user) for n in range(10)]
            with pooled.get_session(user_id=user) as session:
                executions = PrivateExecutionRepository(session)
                assert executions.bulk_create(rows[:7]).inserted == 7
                assert executions.bulk_create(rows, batch_size=4).skipped == 7
            with pooled.get_session() as plain:
                tools = PrivateExecutionRepository.across_users(plain)
                assert tools.bulk_create(rows).skipped == 10
                PublicTradeRepository(plain).bulk_create([trade_values(n) for n in (1, turn, number)])

    in_threads(6, work)
    with pooled.get_session() as plain:
        keys = (PrivateExecution.run_id, PrivateExecution.symbol)
        stored = plain.execute(select(*keys, func.count()).where(PrivateExecution.symbol.in_(runs)).group_by(*keys))
        counts = {tuple(row) for row in stored}
    assert counts == {("run-ann", "ann", 150), ("run-bob", "bob", 150)}


def test_streams_of_two_users_run_side_by_side(pooled: DatabaseFactory) -> None:
    """Server-side cursors live in their transaction; one that ends in the middle goes on in the next."""
    for user in ("ann", "bob"):
        run = Run(run_id=f"run-{user}", account_id=f"acc-{user}")
        with pooled.get_session(user_id=user) as session:
            PrivateExecutionRepository(session).bulk_create([execution_values(run, n) for n in range(50)])
    with pooled.get_session(user_id="ann") as of_ann, pooled.get_session(user_id="bob", read_only=True) as of_bob:
        streams = [
            PrivateExecutionRepository(session).iter_run_range(f"run-{user}", page_size=7)
            for user, session in (("ann", of_ann), ("bob", of_bob))
        ]
        found: list[list[str]] = [[], []]
        for number, rows in enumerate(zip(*streams, strict=True)):
            for own, row in zip(found, rows, strict=True):
                own.append(row.run_id)
            if number == 20:
                of_ann.commit()
                of_bob.commit()
    assert found == [["run-ann"] * 51, ["run-bob"] * 51]


def test_a_read_only_session_leaves_the_connection_writable(pooled: DatabaseFactory) -> None:
    """It is the transaction that is read-only: writes are refused in it, and work right after it."""
    for turn in range(6):
        with pytest.raises(DatabaseReadOnlyError), pooled.get_session(user_id="ann", read_only=True) as session:
            session.get_one(Run, "run-ann").gridcore_version = "x"
        with pooled.get_session(user_id="ann") as session:
            session.get_one(Run, "run-ann").gridcore_version = str(turn)
    with pooled.get_session(read_only=True) as plain:
        assert plain.scalar(select(Run.gridcore_version).where(Run.user_id == "ann")) == "5"


def test_many_processes_create_the_schema_at_once(bouncer: Bouncer, empty_postgresql_url: URL) -> None:
    """The lock on the schema ends with its transaction, so the server's connection does not keep it."""

    def create(number: int) -> bool:
        with DatabaseFactory(bouncer.in_front_of(empty_postgresql_url)) as db:
            return db.create_tables()

    assert sorted(in_threads(6, create)) == [False] * 5 + [True]
    with DatabaseFactory(empty_postgresql_url) as direct:
        direct.check_schema()
        assert not direct.create_tables()


def test_a_migration_asks_for_the_servers_own_address(bouncer: Bouncer, empty_postgresql_url: URL) -> None:
    """Its lock lasts longer than a transaction; the pooler would keep it for ever. Refused, and nothing is locked."""
    with DatabaseFactory(bouncer.in_front_of(empty_postgresql_url)) as db:
        with pytest.raises(MigrationError, match="pooler"):
            upgrade(db)
        with db.get_session() as plain:
            assert plain.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")) == 0
        with DatabaseFactory(empty_postgresql_url) as direct:
            made = upgrade(direct)
        assert upgrade(db).before == made.after  # nothing to do, so nothing to lock


def test_sessions_of_many_tasks_do_not_meet(pooled: DatabaseFactory) -> None:
    """Tasks of ann and bob on two server connections, which wait within a transaction: each sees own rows only."""

    async def task(number: int) -> list[Any]:
        user = ("ann", "bob")[number % 2]
        async with pooled.get_async_session(user_id=user, read_only=number % 3 == 0) as session:
            found = list(await session.scalars(select(Run.user_id)))
            await asyncio.sleep(0)
            found += [run.user_id for run in await session.run_sync(lambda s: RunRepository(s).get_by_user_id(user))]
            if number % 3:
                (await session.get_one(Strategy, f"str-{user}")).symbol = f"{user}-{number}"
        return [one for one in found if one != user]

    async def main() -> list[list[Any]]:
        return await asyncio.gather(*map(task, range(40)))

    assert asyncio.run(main()) == [[]] * 40
    with pooled.get_session() as plain:
        assert {symbol[:3] for symbol in plain.scalars(select(Strategy.symbol))} == {"ann", "bob"}
