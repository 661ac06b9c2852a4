"""Sessions that only read ask the standby, and never get an answer that is older than they take."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from sqlalchemy import URL, delete, func, select, text
from sqlalchemy.orm import Session

from benchmarks.fault_bench.server import PostgreSQLServer, Restored, Standby
from shared.db import (
    ApiCredential,
    BybitAccount,
    DatabaseFactory,
    DatabaseReadOnlyError,
    DatabaseSettings,
    InvalidValueError,
    PrivateExecution,
    Run,
    RunRepository,
    SettingsError,
    TenantScopeError,
    UnsupportedError,
    User,
    UserRepository,
)
from shared.db.commands import status
from shared.db.encryption import generate_entry
from shared.db.migrations import runner
from shared.db.operations.backup import back_up
from shared.db.operations.copy_database import copy_database
from shared.db.operations.key_rotation import rotate_keys
from shared.db.operations.purge import purge_executions
from shared.db.tests.support import new_run, new_strategy, two_runs
from shared.db.tests.test_documents import DOCS, blocks, section

_LONG = 3600.0


class Pair(NamedTuple):
    """A primary and its standby, and the folder that their servers' folders are in."""

    primary: PostgreSQLServer
    standby: Standby
    folder: Path


@pytest.fixture(scope="module")
def servers() -> Iterator[Pair]:
    """Two servers of this module's own; their folders' names are short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="pair-"))
    folder.chmod(0o755)
    try:
        with (
            PostgreSQLServer(folder / "a") as primary,
            Standby(primary, folder / "b") as standby,
        ):
            standby.ask("ALTER SYSTEM SET wal_retrieve_retry_interval = '50ms'")  # soon back after the primary was away
            standby.ask("SELECT pg_reload_conf()")
            yield Pair(primary, standby, folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def pair(servers: Pair) -> Iterator[Pair]:
    """The same, with an empty database in both, and the standby going on at the end."""
    servers.primary.ask("DROP DATABASE IF EXISTS fleet WITH (FORCE)")
    servers.primary.ask("CREATE DATABASE fleet")
    ((position,),) = servers.primary.ask("SELECT pg_current_wal_flush_lsn()")
    # A standby without the database would end a login that came to it first.
    deadline = time.monotonic() + 60
    while servers.standby.ask("SELECT pg_last_wal_replay_lsn() < %s::pg_lsn", position) == [(True,)]:
        assert time.monotonic() < deadline
    yield servers
    servers.standby.ask("SELECT pg_wal_replay_resume()")


def at(server: PostgreSQLServer) -> str:
    """The URL of the server's database."""
    return server.url.set(database="fleet").render_as_string(hide_password=False)


@pytest.fixture
def db(pair: Pair) -> Iterator[DatabaseFactory]:
    """A factory with a standby, and in the database two users with a run each."""
    settings = DatabaseSettings(
        database_url=at(pair.primary), replica_url=at(pair.standby), max_staleness=_LONG, _env_file=None
    )
    with DatabaseFactory(settings) as db:
        db.create_tables()
        two_runs(db, executions=1)
        wait_until_the_standby_has_all(db)
        yield db


def is_standby(session: Session) -> bool:
    """Which of the two it asks."""
    return bool(session.scalar(text("SELECT pg_is_in_recovery()")))


def asked(db: DatabaseFactory, **how: Any) -> str:
    """Which of the two a session asks that only reads."""
    with db.get_session(read_only=True, **how) as session:
        return "standby" if is_standby(session) else "primary"


def wait_until_the_standby_has_all(db: DatabaseFactory) -> None:
    """A read waits for some milliseconds only, before the primary answers."""
    position, deadline = db.write_position(), time.monotonic() + 60
    while asked(db, after=position) != "standby":
        assert time.monotonic() < deadline


def add_user(db: DatabaseFactory, name: str) -> None:
    """Store one more."""
    with db.get_session() as session:
        assert not is_standby(session)
        session.add(User(user_id=name, username=name))


def test_sessions_that_only_read_ask_the_standby_and_all_others_the_primary(db: DatabaseFactory) -> None:
    """By the setting, by the argument, for users and for asyncio; a serializable one needs the primary."""
    assert asked(db) == "standby"
    assert asked(db, max_staleness=0) == "primary"
    assert db.run_in_transaction(is_standby, read_only=True)
    assert not db.run_in_transaction(is_standby, read_only=True, serializable=True)
    assert not db.run_in_transaction(is_standby)
    assert asyncio.run(db.arun_in_transaction(is_standby, read_only=True))

    async def in_loop(**how: Any) -> bool:
        async with db.get_async_session(read_only=True, **how) as session:
            return await session.run_sync(is_standby)

    assert asyncio.run(in_loop())
    assert not asyncio.run(in_loop(max_staleness=0))
    assert db.open_sessions == 0
    assert db._opened().replica.engine.pool.checkedout() == 0  # type: ignore[union-attr] # it is there


def test_a_user_s_session_on_the_standby_shows_own_rows_alone(db: DatabaseFactory) -> None:
    """With the policies and without, by one message and in a transaction; writes are refused."""
    for policies in (False, True):
        if policies:
            db.enable_row_security()
            wait_until_the_standby_has_all(db)
        for _ in range(2):
            with db.get_session(user_id="ann", read_only=True) as session:
                assert [run.run_id for run in RunRepository(session).get_running()] == ["run-ann"]
                assert session.get_bind().engine is db._opened().replica.engine  # type: ignore[union-attr] # it is there
                driver: Any = Session.connection(session).connection.dbapi_connection
                assert driver.info.transaction_status == TRANSACTION_STATUS_IDLE  # it was one message
                assert [run.run_id for run in session.scalars(select(Run))] == ["run-ann"]
        with pytest.raises(DatabaseReadOnlyError), db.get_session(user_id="ann", read_only=True) as session:
            session.add(BybitAccount(user_id="ann", account_name="second", environment="testnet"))
        with pytest.raises(TenantScopeError), db.get_session(user_id="ann", read_only=True) as session:
            RunRepository(session).get_by_user_id("bob")


def test_what_was_written_is_read_after_its_position(db: DatabaseFactory) -> None:
    """Every time, wherever it is asked, also while nothing is replayed."""
    for number in range(200):
        add_user(db, f"user-{number}")
        with db.get_session(read_only=True, after=db.write_position()) as session:
            assert UserRepository(session).get_by_username(f"user-{number}") is not None


def test_a_standby_that_stands_still_is_not_asked_for_more_than_it_has(db: DatabaseFactory, pair: Pair) -> None:
    """Neither by a position nor by an age; whoever takes older answers goes on getting them."""
    pair.standby.ask("SELECT pg_wal_replay_pause()")
    while pair.standby.ask("SELECT pg_get_wal_replay_pause_state()") != [("paused",)]:
        time.sleep(0.01)  # until it stands
    add_user(db, "late")
    position = db.write_position()
    for max_staleness in (None, _LONG):
        with db.get_session(read_only=True, max_staleness=max_staleness, after=position) as session:
            assert not is_standby(session)
            assert UserRepository(session).get_by_username("late") is not None
    with db.get_session(read_only=True) as session:
        assert is_standby(session)
        assert UserRepository(session).get_by_username("late") is None
    (age,) = pair.standby.ask("SELECT extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())")[0]
    assert asked(db, max_staleness=float(age)) == "primary"
    pair.standby.ask("SELECT pg_wal_replay_resume()")
    wait_until_the_standby_has_all(db)


def test_no_answer_is_older_than_asked(db: DatabaseFactory, pair: Pair) -> None:
    """While the standby stops and goes on: what was committed longer ago than the bound is always there."""
    bound, written = 0.2, dict[str, float]()
    deadline = time.monotonic() + 60
    for turn in range(3):
        for expected, statement in (("primary", "pg_wal_replay_pause"), ("standby", "pg_wal_replay_resume")):
            pair.standby.ask(f"SELECT {statement}()")
            found = ""
            while found != expected:
                assert time.monotonic() < deadline
                name = f"user-{turn}-{len(written)}"
                add_user(db, name)
                written[name] = time.monotonic()
                needed = {name for name, at in written.items() if at < time.monotonic() - bound}
                with db.get_session(read_only=True, max_staleness=bound) as session:
                    there = set(session.scalars(select(User.username)))
                    found = "standby" if is_standby(session) else "primary"
                assert needed <= there


def test_a_standby_that_is_away_costs_no_read(
    db: DatabaseFactory, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """The primary answers, the log says so once, and the standby is asked again when it is back."""
    assert asked(db) == "standby"
    with caplog.at_level(logging.WARNING, "shared.db"):
        pair.standby.stop("immediate")
        try:
            assert [asked(db) for _ in range(5)] == ["primary"] * 5
            health = db.health()
            assert [(store.name, store.reachable) for store in health.stores] == [("replica", False)]
        finally:
            pair.standby.start()
    assert sum("the primary is asked instead" in record.getMessage() for record in caplog.records) == 1
    deadline = time.monotonic() + 30
    while asked(db) != "standby":
        assert time.monotonic() < deadline
    assert db.health().stores[0].reachable


def test_a_read_that_the_standby_breaks_off_is_run_again_on_the_primary(db: DatabaseFactory, pair: Pair) -> None:
    """Its server may cancel what is in the way of the log, or end."""
    places = []

    def read(session: Session) -> int:
        places.append(is_standby(session))
        if len(places) == 1:
            pair.standby.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'fleet'")
        return len(session.scalars(select(User)).all())

    assert db.run_in_transaction(read, read_only=True) == 2
    assert places == [True, False]


def test_health_tells_the_roles_and_what_a_promotion_would_lack(db: DatabaseFactory, pair: Pair) -> None:
    """The primary names its standbys and what they have not got, the standby how far behind it is."""
    health = db.health()
    assert health.role == "primary"
    (found,) = health.standbys
    assert (found.name, found.state, found.sync_state) == ("standby", "streaming", "async")
    assert found.missing_bytes is not None
    assert found.missing_bytes >= 0
    with DatabaseFactory(DatabaseSettings(database_url=at(pair.standby), read_only=True, _env_file=None)) as standby:
        there = standby.health()
        with pytest.raises(UnsupportedError, match="leave out serializable=True"):
            standby.run_in_transaction(is_standby, serializable=True)
    assert (there.role, there.standbys) == ("standby", ())
    assert there.replay_lag_bytes is not None
    assert there.replay_lag_seconds is not None
    assert there.warnings == ()
    told = "\n".join([*status._lines(health), *status._lines(there)])
    assert re.search(
        r"standby standby \(streaming, async\): a promotion would lose .*; its readers are .* behind", told
    )
    assert re.search(r"role: standby, .* to replay, which a promotion does first; its newest row was .* s ago", told)


def test_health_tells_what_a_promotion_would_not_find(db: DatabaseFactory, pair: Pair) -> None:
    """A standby that replays or receives nothing, a slot that fills the disk, and COMMITs that wait for nobody."""
    pair.standby.ask("SELECT pg_wal_replay_pause()")
    ((where,),) = pair.standby.ask("SHOW primary_conninfo")
    with DatabaseFactory(DatabaseSettings(database_url=at(pair.standby), read_only=True, _env_file=None)) as standby:
        assert ["replay of the log is paused" in warning for warning in standby.health().warnings] == [True]
        pair.standby.ask("SELECT pg_wal_replay_resume()")
        pair.standby.ask("ALTER SYSTEM SET primary_conninfo = ''")
        pair.standby.ask("SELECT pg_reload_conf()")
        try:
            deadline = time.monotonic() + 30
            while not any("pg_drop_replication_slot('standby')" in warning for warning in db.health().warnings):
                assert time.monotonic() < deadline
            assert ["receives nothing" in warning for warning in standby.health().warnings] == [True]
            assert db.health().problems == ()
            pair.primary.ask("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            pair.primary.ask("SELECT pg_reload_conf()")
            while not any("COMMIT waits" in problem for problem in db.health().problems):
                assert time.monotonic() < deadline
        finally:
            pair.primary.ask("ALTER SYSTEM RESET synchronous_standby_names")
            pair.primary.ask("SELECT pg_reload_conf()")
            pair.standby.ask("ALTER SYSTEM SET primary_conninfo = '{}'".format(where.replace("'", "''")))
            pair.standby.ask("SELECT pg_reload_conf()")
    while db.health().warnings:
        assert time.monotonic() < deadline


def test_a_migration_names_those_whom_a_standby_waits_for(
    db: DatabaseFactory, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """Before it changes anything; nobody is named where nobody reads there, or nothing is to be done."""
    newest = runner.status(db).code_revision

    def told() -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "shared.db"):
            runner.upgrade(db)
            runner.downgrade(db, "0004", allow_data_loss=True)
        return [record.getMessage() for record in caplog.records]

    with db.get_session(read_only=True) as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        assert is_standby(session)
        warnings = told()
    assert len(warnings) == 1  # an upgrade of what is new already does nothing
    assert f"process {pid} (shared.db, for " in warnings[0]
    assert "max_standby_streaming_delay there: 30s" in warnings[0]
    assert told() == []
    with DatabaseFactory(DatabaseSettings(database_url=at(pair.primary), _env_file=None)) as alone:
        caplog.clear()
        runner.upgrade(alone)
        assert "1 standbys that this process does not know" in caplog.text
    assert runner.status(db).database_revision in (None, newest)


def test_what_keeps_or_changes_the_database_reads_the_primary(db: DatabaseFactory, pair: Pair, tmp_path: Path) -> None:
    """A backup, a copy, a purge, a rotation of keys and a migration, whatever age of answers other sessions take."""
    pair.standby.ask("SELECT pg_wal_replay_pause()")
    ring = db.settings.model_copy(update={"encryption_keys": generate_entry("a")})
    with DatabaseFactory(ring) as sealing:
        with sealing.get_session() as session:
            session.add(User(user_id="late", username="late"))
            account = BybitAccount(account_id="acc-late", user_id="late", account_name="a", environment="testnet")
            session.add(account)
            session.flush()
            strategy = new_strategy(account)
            session.add(strategy)
            session.flush()
            session.add(new_run(account, strategy, run_id="run-late"))
            session.add(ApiCredential(account_id="acc-late", api_key_id="key", api_secret="the secret"))
        assert rotate_keys(sealing).by_key_id == {"a": 1}
    assert back_up(db, tmp_path / "fleet.dump", pg_bin=pair.primary.programs).rows["users"] == 3
    with DatabaseFactory(f"sqlite:///{tmp_path / 'copy.db'}") as copied:
        assert copy_database(db, copied).rows["users"] == 3
    assert purge_executions(db, "run-late", "late").rows == 0
    runner.downgrade(db, "0004", allow_data_loss=True)
    assert runner.status(db).state == "behind"
    with db.get_session(read_only=True) as session:
        assert is_standby(session)
        assert session.get(User, "late") is None


def test_a_server_is_restored_as_it_was_at_a_moment(db: DatabaseFactory, pair: Pair, tmp_path: Path) -> None:
    """By the very lines of docs/scale.md: with all that was committed before, and nothing that came after."""
    page, archive = section(DOCS / "scale.md", "Back to a moment"), pair.folder / "archive"
    archive.mkdir()
    pair.primary.give(archive)
    configuration, keep, bring_back = (
        block.replace("/archive", str(archive)) for language in ("ini", "sh") for block in blocks(page, language)
    )
    with (pair.primary.data / "postgresql.conf").open("a") as file:
        file.write(configuration)
    pair.primary.stop("fast")
    pair.primary.start()
    try:
        pair.primary.run(keep, PRIMARY=f"host={pair.primary.url.query['host']} user=postgres")
        add_user(db, "before")
        ((moment,),) = pair.primary.ask("SELECT clock_timestamp()::text")
        with db.get_session() as session:
            session.execute(delete(User).where(User.user_id == "ann"))  # the mistake
        add_user(db, "after")
        ((last,),) = pair.primary.ask("SELECT pg_walfile_name(pg_switch_wal())")
        deadline = time.monotonic() + 30
        while pair.primary.ask("SELECT count(*) FROM pg_stat_archiver WHERE last_archived_wal >= %s", last) == [(0,)]:
            assert time.monotonic() < deadline
        lines = re.sub(r"(?<=recovery_target_time = ').*(?=')", moment, bring_back)
        with Restored(pair.folder / "c", lines) as server:
            while server.ask("SELECT pg_is_in_recovery()") != [(False,)]:
                assert time.monotonic() < deadline
            with DatabaseFactory(at(server)) as restored:
                restored.check_schema()
                add_user(restored, "new")
                with restored.get_session() as session:
                    assert set(session.scalars(select(User.username))) == {"ann", "bob", "before", "new"}
                    assert session.scalar(select(func.count()).select_from(PrivateExecution)) == 2
    finally:
        pair.primary.ask("ALTER SYSTEM SET archive_command = '/bin/true'")
        pair.primary.ask("SELECT pg_reload_conf()")
    with db.get_session() as session:
        assert set(session.scalars(select(User.username))) == {"bob", "before", "after"}
    wait_until_the_standby_has_all(db)


def test_several_hosts_lead_to_the_primary_and_several_replicas_to_one_that_answers(pair: Pair, tmp_path: Path) -> None:
    """Whichever stands first, also for the program that makes a backup."""
    hosts = [str(server.url.query["host"]) for server in (pair.standby, pair.primary)]
    both, nowhere = ",".join(hosts), str(tmp_path / "nowhere")
    settings = DatabaseSettings(
        database_url=f"postgresql://postgres@/fleet?host={both}",
        replica_url=f"postgresql://postgres@/fleet?host={nowhere},{hosts[1]},{hosts[0]}&load_balance_hosts=random",
        max_staleness=_LONG,
        _env_file=None,
    )
    with DatabaseFactory(settings) as db:
        db.create_tables()
        two_runs(db, executions=1)
        wait_until_the_standby_has_all(db)
        assert db.health().role == "primary"
        assert back_up(db, tmp_path / "fleet.dump", pg_bin=pair.primary.programs).rows["users"] == 2
    for wanted, role in (("primary", "primary"), ("standby", "standby"), ("prefer-standby", "standby")):
        chosen = settings.model_copy(update={"target_session_attrs": wanted, "read_only": True, "replica_url": None})
        with DatabaseFactory(chosen) as db:
            assert db.health().role == role


def test_sealed_values_are_read_from_the_standby(pair: Pair) -> None:
    """It has the same key ring."""
    settings = DatabaseSettings(
        database_url=at(pair.primary),
        replica_url=at(pair.standby),
        max_staleness=_LONG,
        encryption_keys=generate_entry("a"),
        _env_file=None,
    )
    with DatabaseFactory(settings) as db:
        db.create_tables()
        two_runs(db, executions=1)
        with db.get_session() as session:
            session.add(ApiCredential(account_id="acc-ann", api_key_id="key", api_secret="the secret"))
        wait_until_the_standby_has_all(db)
        with db.get_session(read_only=True) as session:
            assert is_standby(session)
            assert session.scalars(select(ApiCredential)).one().api_secret == "the secret"


@pytest.mark.parametrize(
    "how", [{"max_staleness": -1}, {"max_staleness": "5"}, {"after": "0"}, {"after": 7}, {"after": "1/2\n"}]
)
def test_what_is_no_age_and_no_position_is_refused(db: DatabaseFactory, how: dict[str, Any]) -> None:
    """Before anything is asked; and both are for sessions that only read."""
    with pytest.raises(InvalidValueError), db.get_session(read_only=True, **how):
        pass
    with pytest.raises(InvalidValueError, match="read_only=True"), db.get_session(max_staleness=1):
        pass
    assert db.open_sessions == 0


def test_other_databases_have_no_standby(tmp_path: Path) -> None:
    """Every answer is new there, so both arguments are taken; a setting that cannot be is refused by name."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'a.db'}") as db:
        db.create_tables()
        assert db.write_position() is None
        with db.get_session(read_only=True, max_staleness=0, after=db.write_position()) as session:
            assert session.scalars(select(User)).all() == []
    url = "postgresql://bot:canary@standby:5432/fleet"
    settings = DatabaseSettings(db_name=str(tmp_path / "a.db"), replica_url=url, _env_file=None)
    assert "canary" not in repr(settings) + str(settings.model_dump())
    with pytest.raises(SettingsError, match="GRIDBOT_DB_REPLICA_URL"), DatabaseFactory(settings).get_session():
        pass
    with pytest.raises(SettingsError, match="PostgreSQL standby"):
        DatabaseSettings(replica_url="sqlite:///a.db", _env_file=None)


def test_of_several_standbys_the_first_that_answers_is_asked() -> None:
    """As libpq does; a primary only where there is none."""
    url = "postgresql://bot@/fleet?host=a,b&port=1,2"
    settings = DatabaseSettings(database_url="postgresql://bot@c/fleet", replica_url=url, _env_file=None)
    assert isinstance(settings.replica, URL)
    assert settings.replica.query["target_session_attrs"] == "prefer-standby"
