"""Reads that are spared the BEGIN and COMMIT around them, and connections that are not pinged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INTRANS
from sqlalchemy import URL, func, select, text
from sqlalchemy.orm import Session

from shared.db import (
    DatabaseFactory,
    DatabaseReadOnlyError,
    DatabaseUnreachableError,
    PrivateExecutionRepository,
    RowSecurityError,
    Run,
    RunRepository,
    TenantViolation,
    User,
    UserRepository,
    UserSession,
)
from shared.db.engine import round_trips
from shared.db.tests.support import run_on_server, two_runs, with_and_without_policies


def transaction_of(session: Session) -> int:
    """Whether the server has a transaction open for the session, as the driver's library knows it."""
    driver: Any = Session.connection(session).connection.dbapi_connection
    return int(driver.info.transaction_status)


def test_a_repositorys_read_in_a_read_only_session_opens_no_transaction(postgresql_url: URL) -> None:
    """It is one message to the server. Raw SQL begins a transaction that lasts, and that later reads are part of."""
    with DatabaseFactory(postgresql_url) as db:
        two_runs(db)
        with db.get_session(read_only=True) as session:
            assert len(RunRepository(session).get_running("ann")) == 1
            assert transaction_of(session) == TRANSACTION_STATUS_IDLE
            assert session.scalar(text("SHOW transaction_read_only")) == "on"
            assert transaction_of(session) == TRANSACTION_STATUS_INTRANS
            began = session.scalar(select(func.now()))
            assert len(RunRepository(session).get_by_user_id("ann", limit=5)) == 1
            assert session.scalar(select(func.now())) == began
        with db.get_session() as session:
            assert len(RunRepository(session).get_running("ann")) == 1
            assert transaction_of(session) == TRANSACTION_STATUS_INTRANS
            session.add(User(username="written on the same connection"))
        assert db.engine.pool.checkedin() == 1  # type: ignore[attr-defined] # a QueuePool


def test_a_users_lone_read_is_confined_with_and_without_policies(postgresql_url: URL) -> None:
    """It is one message, in which the policies are told whose it is; in both cases it finds his rows alone."""
    with DatabaseFactory(postgresql_url) as db:
        two_runs(db)
        for _ in with_and_without_policies(db):
            with db.get_session(user_id="ann", read_only=True) as session:
                assert [run.user_id for run in RunRepository(session).get_running()] == ["ann"]
                assert transaction_of(session) == TRANSACTION_STATUS_IDLE
                assert RunRepository(session).get_by_id("run-bob") is None
                assert RunRepository(session).get_by_id("run-ann") is not None
                assert transaction_of(session) == TRANSACTION_STATUS_IDLE
                assert session.scalars(select(Run.run_id)).all() == ["run-ann"]
                assert transaction_of(session) == TRANSACTION_STATUS_INTRANS
                assert RunRepository(session).get_by_id("run-bob") is None


def test_a_lone_read_leaves_the_connection_as_it_came(policed_fleet: DatabaseFactory) -> None:
    """The next session on it is not under the role, and knows of no user."""
    with policed_fleet.get_session(user_id="ann", read_only=True) as session:
        assert len(RunRepository(session).get_running()) == 1
    asked = text("SELECT current_user = session_user, current_setting('shared_db.user_id', true)")
    with policed_fleet.get_session(read_only=True) as plain:
        assert tuple(plain.execute(asked).one()) in ((True, ""), (True, None))
        assert len(RunRepository(plain).get_running("bob")) == 1


WHAT_BEGINS: dict[str, Callable[[UserSession], Any]] = {
    "an entity": lambda session: session.scalars(select(Run.run_id)).all(),
    "raw SQL": lambda session: session.scalars(text("SELECT run_id FROM runs")).all(),
    "a connection": lambda session: session.connection().scalars(text("SELECT run_id FROM runs")).all(),
    "its base's": lambda session: Session.connection(session).scalars(text("SELECT run_id FROM runs")).all(),
    "a savepoint": lambda session: session.begin_nested().session.scalars(text("SELECT run_id FROM runs")).all(),
    "a stream": lambda session: session.scalars(select(Run.run_id).execution_options(stream_results=True)).all(),
    "rows": lambda session: [row.run_id for row in PrivateExecutionRepository(session).iter_run_range("run-ann")],
    "a frame": lambda session: PrivateExecutionRepository(session).to_arrow("run-ann")["run_id"].to_pylist(),
    "a lone question": lambda session: [run.run_id for run in RunRepository(session).get_running()],
}


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("first", WHAT_BEGINS)
@pytest.mark.parametrize("second", [None, "raw SQL", "a frame", "a lone question"])
def test_whatever_comes_first_in_a_session_comes_under_the_policies(
    policed_fleet: DatabaseFactory, first: str, second: str | None, read_only: bool
) -> None:
    """The role is adopted when it is first needed: before everything else, and again after a question that was alone.

    The server shows who asks: policies that let nobody see anything hide even one's own rows.
    """
    with policed_fleet.get_session(user_id="ann", read_only=read_only) as session:
        assert isinstance(session, UserSession)
        for step in (first, second):
            assert step is None or WHAT_BEGINS[step](session) == ["run-ann"], step
    with policed_fleet.engine.begin() as administrator:
        for table in ("runs", "private_executions"):
            administrator.execute(text(f"ALTER POLICY shared_db_own_rows ON {table} USING (false)"))
    with policed_fleet.get_session(user_id="ann", read_only=read_only) as session:
        assert isinstance(session, UserSession)
        for step in (first, second):
            assert step is None or WHAT_BEGINS[step](session) == [], step
        session.rollback()
        assert WHAT_BEGINS[first](session) == []
    with policed_fleet.get_session(read_only=True) as plain:
        assert [run.run_id for run in RunRepository(plain).get_running("bob")] == ["run-bob"]


def test_a_question_that_stands_alone_holds_no_raw_sql(policed_fleet: DatabaseFactory) -> None:
    """Nobody asked whether the policies hold, so nothing may rely on them."""
    with_text: Any = select(Run).where(text("true"))
    for read_only in (True, False):
        with policed_fleet.get_session(user_id="ann", read_only=read_only) as session:
            with pytest.raises(TenantViolation):
                RunRepository(session)._all(with_text)
            assert session.scalars(select(Run.run_id).where(text("true"))).all() == ["run-ann"]


def test_a_lone_read_goes_on_without_the_policies_that_were_turned_off(policed_fleet: DatabaseFactory) -> None:
    """By another process, between two questions of a read-only session: its own rows still, and no raw SQL any more."""
    raw = text("SELECT run_id FROM runs")
    with (
        DatabaseFactory(policed_fleet.settings) as other,
        policed_fleet.get_session(user_id="ann", read_only=True) as session,
    ):
        runs = RunRepository(session)
        assert [run.run_id for run in runs.get_running()] == ["run-ann"]
        other.disable_row_security()
        for _ in range(2):
            assert [run.run_id for run in runs.get_running()] == ["run-ann"]
            with pytest.raises(TenantViolation):
                session.execute(raw)
            session.rollback()
        other.enable_row_security()
    with policed_fleet.get_session(user_id="ann", read_only=True) as session:
        assert [run.run_id for run in RunRepository(session).get_running()] == ["run-ann"]
        session.rollback()
        other.disable_row_security()
        with pytest.raises(TenantViolation):
            session.execute(raw)


def test_a_lone_read_says_that_the_role_cannot_be_adopted(policed_fleet: DatabaseFactory) -> None:
    """As every other first statement says it, with the remedy."""
    with (
        DatabaseFactory(policed_fleet.settings.model_copy(update={"tenant_role": "nobody_knows"})) as db,
        pytest.raises(RowSecurityError, match="row-security status"),
        db.get_session(user_id="ann", read_only=True) as session,
    ):
        RunRepository(session).get_running()


def test_a_lone_read_cannot_write(postgresql_url: URL) -> None:
    """Also what a function in it would write is refused, with the error of every read-only session."""
    with DatabaseFactory(postgresql_url) as db:
        with db.get_session() as session:
            session.add(User(username="alice"))
        counts_up: Any = select(User).where(func.nextval("public_trades_id_seq") > 0)
        with pytest.raises(DatabaseReadOnlyError), db.get_session(read_only=True) as session:
            UserRepository(session)._all(counts_up)
        with db.get_session() as session:
            assert len(UserRepository(session)._all(counts_up)) == 1


def test_a_snapshot_that_was_asked_for_is_kept(postgresql_url: URL) -> None:
    """Under REPEATABLE READ all reads of a session are one transaction, as they always were."""
    with DatabaseFactory(postgresql_url) as db, db.get_session(read_only=True) as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        users = UserRepository(session)
        assert users.get_all() == []
        with db.get_session() as other:
            other.add(User(username="later"))
        assert users.get_all() == []
        assert transaction_of(session) == TRANSACTION_STATUS_INTRANS


def test_a_connection_lost_under_a_lone_read_has_its_name(postgresql_url: URL) -> None:
    """The error is the named one, and the next session has a connection again."""
    with DatabaseFactory(postgresql_url) as db:
        with pytest.raises(DatabaseUnreachableError), db.get_session(read_only=True) as session:
            users = UserRepository(session)
            assert users.get_all() == []
            driver: Any = Session.connection(session).connection.dbapi_connection
            run_on_server(postgresql_url, f"SELECT pg_terminate_backend({driver.info.backend_pid}, 10000)")
            users.get_all()
        with db.get_session(read_only=True) as session:
            assert UserRepository(session).get_all() == []


@pytest.mark.parametrize(("trusted", "pinged"), [(1e9, False), (-1.0, True)])
def test_a_connection_is_pinged_when_it_was_idle(
    postgresql_url: URL, monkeypatch: pytest.MonkeyPatch, trusted: float, pinged: bool
) -> None:
    """The server is asked before a connection is used again, but not about one that was in use a moment ago."""
    monkeypatch.setattr(round_trips, "_TRUSTED_SECONDS", trusted)
    with DatabaseFactory(postgresql_url) as db, DatabaseFactory(postgresql_url) as watcher:
        with db.get_session() as session:
            backend = session.scalar(text("SELECT pg_backend_pid()"))
        with db.engine.connect(), watcher.get_session() as session:
            last = session.scalar(text("SELECT query FROM pg_stat_activity WHERE pid = :pid"), {"pid": backend})
        assert (last == "SELECT 1") is pinged
