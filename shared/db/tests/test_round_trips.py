"""Reads that are spared the BEGIN and COMMIT around them, and connections that are not pinged."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INTRANS
from sqlalchemy import URL, func, select, text
from sqlalchemy.orm import Session

from shared.db import (
    DatabaseFactory,
    DatabaseReadOnlyError,
    DatabaseUnreachableError,
    RunRepository,
    User,
    UserRepository,
    round_trips,
)
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
    """Under policies it is in the transaction that they are set for; in both cases it finds his rows alone."""
    with DatabaseFactory(postgresql_url) as db:
        two_runs(db)
        for _ in with_and_without_policies(db):
            policies = db.row_security_status().enabled
            with db.get_session(user_id="ann", read_only=True) as session:
                assert [run.user_id for run in RunRepository(session).get_running()] == ["ann"]
                state = TRANSACTION_STATUS_INTRANS if policies else TRANSACTION_STATUS_IDLE
                assert transaction_of(session) == state
                assert RunRepository(session).get_by_id("run-bob") is None
                assert RunRepository(session).get_by_id("run-ann") is not None


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
