"""Nothing of a user's raw SQL is on a pooled connection when the next session gets it, under PostgreSQL's policies."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pytest
from sqlalchemy import ColumnElement, event, func, select, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session

from shared.db import (
    ApiCredential,
    ApiCredentialRepository,
    DatabaseFactory,
    PrivateExecution,
    PrivateExecutionRepository,
    Run,
    RunRepository,
    TransactionControlError,
    UserSession,
)
from shared.db.tests.fleet import run_values
from shared.db.tests.support import execution_values, run_on_server

# What outlives a transaction, as the next session on the same connection would find it.
STATE = text(
    """
    SELECT 'role', current_user::text WHERE current_user <> session_user
    UNION ALL SELECT 'prepared', statement FROM pg_prepared_statements
    UNION ALL SELECT 'cursor', name FROM pg_cursors WHERE is_holdable
    UNION ALL SELECT 'channel', pg_listening_channels()
    UNION ALL SELECT 'lock', objid::text FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
    UNION ALL SELECT 'table', relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
    UNION ALL SELECT 'function', proname FROM pg_proc WHERE pronamespace = pg_my_temp_schema()
    UNION ALL SELECT name, setting FROM pg_settings WHERE source = 'session'
    UNION ALL SELECT 'user', current_setting('shared_db.user_id', true)
    WHERE current_setting('shared_db.user_id', true) <> ''
    """
)


def _run(*statements: str) -> Callable[[Session], object]:
    return lambda session: [session.execute(text(statement)) for statement in statements]


def _by_connection(session: Session) -> None:
    session.connection().exec_driver_sql("CREATE TEMP TABLE report AS SELECT * FROM api_credentials")


def _by_cursor(session: Session) -> None:
    with closing(session.connection().connection.cursor()) as cursor:
        cursor.execute("CREATE TEMP TABLE report AS SELECT * FROM api_credentials")


def _by_function(session: Session) -> None:
    session.execute(select(func.set_config("statement_timeout", "1min", False), func.pg_advisory_lock(42)))


def _in_a_flush(session: Session) -> None:
    session.get_one(Run, "run-bob").gridcore_version = func.set_config("application_name", "x", False)
    session.flush()


class _Setting(ColumnElement[str]):
    """A construct whose text nobody sees: the flush confines nothing, so its compiler looks for none."""

    inherit_cache = False


@compiles(_Setting)
def _set(element: _Setting, compiler: Any, **how: Any) -> str:
    return "set_config('application_name', 'x', false)"


def _by_a_construct_in_a_flush(session: Session) -> None:
    session.get_one(Run, "run-bob").gridcore_version = _Setting()
    session.flush()


LEFTOVERS: dict[str, Callable[[Session], object]] = {
    "a temporary table": _run("CREATE TEMP TABLE report AS SELECT * FROM api_credentials"),
    "temporary tables named like ours": _run(
        *(
            f"CREATE TEMP TABLE {table} (LIKE public.{table} INCLUDING DEFAULTS)"
            for table in ("users", "bybit_accounts", "api_credentials", "runs")
        )
    ),
    "a temporary function": _run("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
    "a cursor that holds": _run("DECLARE c CURSOR WITH HOLD FOR SELECT api_key_id FROM api_credentials"),
    "a prepared statement": _run("PREPARE q AS SELECT 'of bob'"),
    "a role and a user": _run("SET ROLE shared_db_tenant", "SELECT set_config('shared_db.user_id', 'bob', false)"),
    "settings": _run(
        "SET search_path = pg_catalog",
        "SET statement_timeout = '1min'",
        "SET default_transaction_read_only = on",
        "SET datestyle = 'German'",
        "SET timezone = 'Asia/Kolkata'",
    ),
    "a lock": _run("SELECT pg_advisory_lock(42)"),
    "a channel": _run("LISTEN x"),
    "a block": _run("DO $$ BEGIN EXECUTE 'CREATE TEMP TABLE report (x int)'; PERFORM pg_advisory_lock(7); END $$"),
    "a bare connection": _by_connection,
    "the driver's cursor": _by_cursor,
    "functions": _by_function,
    "an expression that is flushed": _in_a_flush,
    "a construct that is flushed": _by_a_construct_in_a_flush,
}


def _state(db: DatabaseFactory) -> set[Any]:
    with db.get_session() as plain:
        assert plain.scalar(text("SELECT pg_backend_pid()")) is not None
        return {tuple(row) for row in plain.execute(STATE)}


@pytest.mark.parametrize("name", LEFTOVERS)
@pytest.mark.parametrize("ending", ["commit", "exception", "error of the server"])
def test_the_next_session_finds_a_connection_as_new(policed_fleet: DatabaseFactory, name: str, ending: str) -> None:
    """Whatever bob's raw SQL left, in a session that was committed, rolled back, or failed in the database."""
    before = _state(policed_fleet)
    with policed_fleet.get_session() as plain:
        backend = plain.scalar(text("SELECT pg_backend_pid()"))
    with suppress(ZeroDivisionError), policed_fleet.get_session(user_id="bob") as session:
        LEFTOVERS[name](session)
        if ending == "exception":
            raise ZeroDivisionError
        if ending == "error of the server":
            with suppress(Exception):
                session.execute(text("SELECT 1/0"))
            raise ZeroDivisionError
    with policed_fleet.get_session() as plain:
        assert plain.scalar(text("SELECT pg_backend_pid()")) == backend  # else this proves nothing
    assert _state(policed_fleet) == before
    with policed_fleet.get_session(user_id="ann") as session:
        assert isinstance(session, UserSession)
        assert session.confined_by_server
        ApiCredentialRepository(session).rotate("acc-ann", "key-2", "secret-2")
    with policed_fleet.get_session() as plain:
        stored = plain.execute(select(ApiCredential.account_id, ApiCredential.api_key_id).order_by("api_key_id"))
        assert stored.all() == [("acc-ann", "key-2"), ("acc-ann", "key-ann"), ("acc-bob", "key-bob")]


def _states_after_transactions(db: DatabaseFactory) -> list[set[str]]:
    """What each transaction to come leaves: what a pooler such as PgBouncer would hand to whoever comes next."""
    found: list[set[str]] = []

    def look(connection: Any, record: Any, state: Any) -> None:
        with closing(connection.cursor()) as cursor:
            cursor.execute(str(STATE))
            found.append({kind for kind, _ in cursor.fetchall()})
        connection.rollback()

    event.listen(db.engine, "reset", look)
    return found


@pytest.mark.parametrize("name", LEFTOVERS)
def test_a_transaction_sweeps_before_it_is_committed(policed_fleet: DatabaseFactory, name: str) -> None:
    """A pooler gives the server's connection to somebody else with COMMIT, before ours is back in the pool."""
    left = _states_after_transactions(policed_fleet)
    with policed_fleet.get_session(user_id="bob") as session:
        LEFTOVERS[name](session)
    assert left[-1] <= {"DateStyle"}  # ISO, as the driver wants it


def test_behind_a_pooler_an_error_leaves_what_a_rollback_does_not_undo(policed_fleet: DatabaseFactory) -> None:
    """In a transaction that failed nothing more runs: prepared statements and advisory locks stay with the server.

    What can still be run before a rollback sweeps them.
    """
    left = _states_after_transactions(policed_fleet)
    for error in (True, False):
        with suppress(ZeroDivisionError), policed_fleet.get_session(user_id="bob") as session:
            for name in ("a temporary table", "a cursor that holds", "a prepared statement", "a lock", "a channel"):
                LEFTOVERS[name](session)
            with suppress(Exception):
                session.execute(text("SELECT 1/0" if error else "SELECT 1"))
            raise ZeroDivisionError
        assert left[-1] - {"DateStyle"} == ({"prepared", "lock"} if error else set())


def test_what_leaves_nothing_is_not_swept(policed_fleet: DatabaseFactory) -> None:
    """A session without raw SQL, bulk writes included, costs no round trip more: its temporary tables stay, empty."""
    with policed_fleet.get_session(user_id="bob") as session:
        session.execute(text("SELECT 1"))
    with policed_fleet.engine.connect() as connection:
        connection.execute(text("PREPARE canary AS SELECT 1"))
        connection.commit()
    with policed_fleet.get_session(user_id="bob") as session:
        session.add(Run(run_id="run-2", **run_values("bob")))
        session.flush()
        executions = PrivateExecutionRepository(session)
        run = Run(run_id="run-2", account_id="acc-bob")
        assert executions.bulk_create([execution_values(run)] * 2).inserted == 1
        assert len(list(executions.iter_run_range("run-2"))) == executions.totals("run-2").count == 1
        assert RunRepository(session).finish("run-2")
        with session.begin_nested():
            session.get_one(Run, "run-bob").gridcore_version = "2"
    assert ("prepared", "PREPARE canary AS SELECT 1") in _state(policed_fleet)


def test_a_transaction_that_the_driver_ended_is_over_for_the_session(policed_fleet: DatabaseFactory) -> None:
    """With it the role has gone: nothing runs any more, and so nothing as the login."""

    def attempt(end: str) -> None:
        with policed_fleet.get_session(user_id="ann") as session:
            getattr(session.connection().connection.dbapi_connection, end)()
            session.execute(text("UPDATE runs SET gridcore_version = 'stolen'"))

    for end in ("commit", "rollback"):
        with pytest.raises(TransactionControlError):
            attempt(end)
    with policed_fleet.get_session() as plain:
        assert plain.scalars(select(Run.gridcore_version)).all() == [None, None]


def test_a_sweep_keeps_the_dates_that_the_driver_reads(policed_fleet: DatabaseFactory) -> None:
    """A server may write dates in another way: the driver asks for ISO once, and DISCARD ALL would undo it."""
    name = policed_fleet.settings.url.database
    run_on_server(policed_fleet.settings.url, f"ALTER DATABASE {name} SET datestyle = 'German'")
    policed_fleet.close()
    for end in (None, ZeroDivisionError):
        with suppress(ZeroDivisionError), policed_fleet.get_session(user_id="ann") as session:
            when = session.scalars(text("SELECT exchange_ts FROM private_executions")).one()
            if end is not None:
                raise end
        with policed_fleet.get_session() as plain:
            assert plain.scalar(text("SHOW datestyle")) == "ISO, DMY"
            assert when in plain.scalars(select(PrivateExecution.exchange_ts)).all()


def test_a_connection_that_cannot_be_swept_is_closed(policed_fleet: DatabaseFactory) -> None:
    """Nobody gets it."""
    with policed_fleet.get_session(user_id="bob") as session:
        session.execute(text("SELECT pg_advisory_lock(42)"))
        backend = session.scalar(text("SELECT pg_backend_pid()"))
        record: Any = session.connection().connection._connection_record
        # A transaction that somebody begins at the last moment: DISCARD ALL may not stand in one.
        record.finalize_callback.append(lambda driver: driver.cursor().execute("SELECT 1"))
    with policed_fleet.get_session() as plain:
        assert plain.scalar(text("SELECT pg_backend_pid()")) != backend
    assert _state(policed_fleet) == set()
