"""How a user's transaction comes under PostgreSQL's policies: with its first statement, whichever that is."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2.errors
import psycopg2.extensions
import psycopg2.extras
import pytest
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.orm import Session

from shared.db import (
    DatabaseFactory,
    PermissionDeniedError,
    PrivateExecution,
    PrivateExecutionRepository,
    RowSecurityError,
    Run,
    RunRepository,
    TenantScopeError,
    TenantViolation,
    UserSession,
    ValueRefusedError,
)
from shared.db.tests.cutting_proxy import CuttingProxy
from shared.db.tests.support import execution_values

RUN = Run(run_id="run-ann", account_id="acc-ann")
ADOPTS = b"set_config('role', 'shared_db_tenant', true)"


def execution(number: int) -> PrivateExecution:
    """One of ann's run, which is not stored."""
    return PrivateExecution(**execution_values(RUN, number))


def driver_of(session: Session) -> Any:
    """The driver's connection, got without the session's own door, which would adopt the role."""
    return Session.connection(session).connection.dbapi_connection


@contextmanager
def seen(db: DatabaseFactory, tmp_path: Path) -> Iterator[tuple[DatabaseFactory, list[bytes]]]:
    """The same database through a proxy that keeps what is sent, after what is asked once by each process."""
    with (
        CuttingProxy(db.settings.url, tmp_path) as proxy,
        DatabaseFactory(proxy.url.render_as_string(hide_password=False)) as through,
    ):
        with through.get_session(user_id="ann") as session:
            session.add(execution(0))
            session.flush()
            session.rollback()
        proxy.messages.clear()
        yield through, proxy.messages


def test_the_role_costs_a_transaction_no_message(policed_fleet: DatabaseFactory, tmp_path: Path) -> None:
    """It comes with the question whose the parents are; without one, with the INSERT or whatever else is first."""
    with seen(policed_fleet, tmp_path) as (db, messages):
        with db.get_session(user_id="bob") as session:
            session.add(PrivateExecution(**execution_values(Run(run_id="run-bob", account_id="acc-bob"), 1)))
            session.commit()
            assert [ADOPTS in message for message in messages] == [False, True, False, False]
            assert b"BEGIN" in messages[0]
            assert b"FROM runs" in messages[1]
        messages.clear()
        with db.get_session(user_id="ann") as session:
            session.add(execution(1))
            session.commit()
            assert [ADOPTS in message for message in messages] == [False, True, False]
            assert b"INSERT INTO private_executions" in messages[1]
            messages.clear()
            RunRepository(session).get_running()
            assert [ADOPTS in message for message in messages] == [False, True]
            session.rollback()
        messages.clear()
        with db.get_session(user_id="ann") as session:
            session.begin_nested()
            session.connection()
        assert b"SAVEPOINT" in messages[1]
        assert sum(ADOPTS in message for message in messages) == 1
        messages.clear()
        with db.get_session(user_id="ann") as session:
            Session.connection(session)
        assert messages == []


WAYS: dict[str, Callable[[UserSession], Any]] = {
    "objects": lambda session: session.add(execution(1)),
    "several objects": lambda session: session.add_all(map(execution, range(1, 4))),
    "a savepoint": lambda session: session.begin_nested().session.add(execution(1)),
    "an insert": lambda session: session.execute(insert(PrivateExecution).values(execution_values(RUN, 1))),
    "an insert of many": lambda session: session.execute(
        insert(PrivateExecution), [execution_values(RUN, number) for number in (1, 2)]
    ),
    "an update": lambda session: session.execute(update(Run).values(status="failed")),
    "a repository's": lambda session: RunRepository(session).fail("run-ann"),
    "many rows": lambda session: PrivateExecutionRepository(session).bulk_create([execution_values(RUN, 1)]),
    "rows that are merged": lambda session: session.merge(Run(run_id="run-ann", status="failed")),
    "raw SQL": lambda session: session.execute(text("UPDATE runs SET status = 'failed'")),
    "a connection": lambda session: session.connection().execute(text("UPDATE runs SET status = 'failed'")),
    "its base's": lambda session: Session.connection(session).execute(text("UPDATE runs SET status = 'failed'")),
    "the driver's cursor": lambda session: driver_of(session).cursor().execute("UPDATE runs SET status = 'failed'"),
    "a cursor of another kind": lambda session: (
        driver_of(session)
        .cursor(cursor_factory=psycopg2.extras.DictCursor)
        .execute("UPDATE runs SET status = 'failed'")
    ),
    "the driver's executemany": lambda session: (
        driver_of(session).cursor().executemany("UPDATE runs SET status = %s", [["failed"]])
    ),
    "bytes in pieces": lambda session: psycopg2.extras.execute_values(
        driver_of(session).cursor(),
        "UPDATE runs SET status = given.status FROM (VALUES %s) given (status)",
        [["failed"]],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_writes_first_writes_under_the_policies(policed_fleet: DatabaseFactory, way: str) -> None:
    """Where they let nobody write anything, each way is refused by the server itself, also in a second transaction."""
    with policed_fleet.engine.begin() as administrator:
        for table in ("runs", "private_executions"):
            administrator.execute(text(f"ALTER POLICY shared_db_own_rows ON {table} WITH CHECK (false)"))
    with policed_fleet.get_session(user_id="ann") as session:
        assert isinstance(session, UserSession)
        for _ in range(2):
            with pytest.raises((TenantViolation, psycopg2.errors.InsufficientPrivilege)):
                WAYS[way](session)
                session.flush()
            session.rollback()


def asked_by_copy(cursor: Any) -> str:
    """Who asks, by COPY."""
    into = io.StringIO()
    cursor.copy_expert("COPY (SELECT current_user) TO STDOUT", into)
    return into.getvalue().strip()


def asked_with_many(cursor: Any) -> str:
    """Who asks, after what executemany() had to send first."""
    cursor.executemany("SELECT %s", [[1], [2]])
    return asked(cursor)


def asked_by_call(cursor: Any) -> str:
    """Who asks, by a call."""
    cursor.callproc("current_setting", ["role"])
    return str(cursor.fetchone()[0])


def asked(cursor: Any) -> str:
    """Who asks."""
    cursor.execute("SELECT current_user")
    return str(cursor.fetchone()[0])


def copied(cursor: Any, table: str, *, out: bool) -> str:
    """Who asks, after a COPY of the driver's that names a table."""
    if out:
        cursor.copy_to(io.StringIO(), table)
    else:
        # Policies let nobody COPY into a table: the server says so of a role that they hold, and of no other.
        with pytest.raises(psycopg2.errors.FeatureNotSupported):
            cursor.copy_from(io.StringIO(""), table)
        return "shared_db_tenant"
    return asked(cursor)


CURSORS: dict[str, Callable[[Any], str]] = {
    "execute()": lambda driver: asked(driver.cursor()),
    "bytes": lambda driver: (lambda cursor: (cursor.execute(b"SELECT 1"), asked(cursor))[1])(driver.cursor()),
    "executemany()": lambda driver: asked_with_many(driver.cursor()),
    "callproc()": lambda driver: asked_by_call(driver.cursor()),
    "copy_expert()": lambda driver: asked_by_copy(driver.cursor()),
    "copy_to()": lambda driver: copied(driver.cursor(), "runs", out=True),
    "copy_from()": lambda driver: copied(driver.cursor(), "runs", out=False),
    "a cursor of the server's": lambda driver: asked(driver.cursor("named")),
    "a cursor of another kind": lambda driver: asked(driver.cursor(cursor_factory=psycopg2.extras.DictCursor)),
    "the same, by place": lambda driver: asked(driver.cursor(None, psycopg2.extensions.cursor)),
}


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("way", CURSORS)
def test_each_way_of_the_drivers_cursor_asks_as_the_role(
    policed_fleet: DatabaseFactory, way: str, read_only: bool
) -> None:
    """Whatever sends the first message of a transaction, the login itself is never the one that asks."""
    with policed_fleet.get_session(user_id="ann", read_only=read_only) as session:
        for _ in range(2):
            assert CURSORS[way](driver_of(session)) == "shared_db_tenant"
            session.rollback()
    with policed_fleet.get_session() as plain:
        assert plain.scalar(text("SELECT current_user = session_user")) is True


def test_a_large_object_is_made_as_the_role(policed_fleet: DatabaseFactory) -> None:
    """It needs no cursor, and adopts the role all the same."""
    with policed_fleet.get_session(user_id="ann") as session:
        number = driver_of(session).lobject(0, "w").oid
        owner = text("SELECT lomowner::regrole::text FROM pg_largeobject_metadata WHERE oid = :number")
        assert session.scalar(owner, {"number": number}) == "shared_db_tenant"


def test_what_cannot_be_sent_leaves_the_role_to_the_next_statement(policed_fleet: DatabaseFactory) -> None:
    """A parameter that the driver refuses has sent nothing, and so adopted nothing."""
    with policed_fleet.get_session(user_id="ann") as session:
        cursor = driver_of(session).cursor()
        with pytest.raises(psycopg2.ProgrammingError, match="can't adapt"):
            cursor.execute("SELECT %s", [object()])
        assert asked(cursor) == "shared_db_tenant"


def test_a_first_statement_that_fails_says_so_and_its_session_goes_on_confined(policed_fleet: DatabaseFactory) -> None:
    """As its own error, not the adoption's, also where both are of one kind; until a rollback all else is refused."""
    with policed_fleet.get_session(user_id="ann") as session:
        cursor = driver_of(session).cursor()
        for statement, error in (
            ("SELECT 1 / 0", psycopg2.errors.DivisionByZero),
            ("SELECT * FROM pg_authid", psycopg2.errors.InsufficientPrivilege),
            ("SELECT set_config('role', 'nobody knows', true)", psycopg2.errors.InvalidParameterValue),
            ("SELECT nothing", psycopg2.errors.UndefinedColumn),
        ):
            with pytest.raises(error):
                cursor.execute(statement)
            with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
                cursor.execute("SELECT 1")
            session.rollback()
            Session.connection(session)
            cursor = driver_of(session).cursor()
            assert asked(cursor) == "shared_db_tenant"
        session.rollback()
        divides: Any = select(Run).where(func.length(Run.run_id) / (func.length(Run.run_id) - 7) > 0)
        with pytest.raises(ValueRefusedError):
            RunRepository(session)._all(divides)
        session.rollback()


def test_no_transaction_no_role(policed_fleet: DatabaseFactory) -> None:
    """A connection that has come to commit by itself would forget the role at once, and sends nothing."""
    with policed_fleet.get_session(user_id="ann") as session:
        driver = driver_of(session)
        driver.autocommit = True
        try:
            for send in (CURSORS["execute()"], CURSORS["copy_expert()"], CURSORS["executemany()"]):
                with pytest.raises(TenantScopeError, match="AUTOCOMMIT"):
                    send(driver)
        finally:
            driver.autocommit = False


def test_a_role_that_cannot_be_adopted_refuses_again(policed_fleet: DatabaseFactory) -> None:
    """Whoever goes on after the error, also with the driver alone, is not the login all of a sudden."""
    with (
        DatabaseFactory(policed_fleet.settings.model_copy(update={"tenant_role": "nobody_knows"})) as db,
        db.get_session(user_id="ann") as session,
    ):
        driver = driver_of(session)
        for _ in range(2):
            with pytest.raises(RowSecurityError, match="row-security status"):
                driver.cursor().execute("SELECT 1")
            driver.rollback()
        session.rollback()


def test_a_cursor_that_was_kept_asks_as_the_role_in_the_next_transaction(policed_fleet: DatabaseFactory) -> None:
    """One of another kind cannot adopt it, so from then on its connection does as soon as a transaction begins."""
    with policed_fleet.get_session(user_id="ann") as session:
        kept: Any = session.connection().connection.cursor(cursor_factory=psycopg2.extensions.cursor)
        session.commit()
        Session.connection(session)
        assert asked(kept) == "shared_db_tenant"


def test_raw_sql_by_the_base_class_is_known_to_be_a_users(policed_fleet: DatabaseFactory) -> None:
    """It comes under the role before it is looked at, also where it is the first statement."""
    with policed_fleet.get_session(user_id="ann") as session:
        with pytest.raises(TenantViolation, match="LOCK TABLE"):
            Session.connection(session).execute(text("LOCK TABLE runs"))
        session.rollback()


def test_what_was_not_adopted_is_not_for_the_next_session(policed_fleet: DatabaseFactory) -> None:
    """A user's session that asks nothing leaves nothing on its connection, which the next one gets."""
    with policed_fleet.get_session(user_id="ann") as session:
        driver = driver_of(session)
    with policed_fleet.get_session() as plain:
        assert driver_of(plain) is driver
        assert asked(driver.cursor()) != "shared_db_tenant"
    with policed_fleet.get_session(user_id="bob") as session:
        assert driver_of(session) is driver
        assert session.scalars(select(Run.run_id)).all() == ["run-bob"]


def test_a_flush_goes_on_without_the_policies_that_were_turned_off(policed_fleet: DatabaseFactory) -> None:
    """By another process, before the first statement of a session that relies on them: it is confined by itself."""
    with DatabaseFactory(policed_fleet.settings) as other, policed_fleet.get_session(user_id="ann") as session:
        assert session.confined_by_server  # type: ignore[attr-defined] # a UserSession
        session.rollback()
        other.disable_row_security()
        session.add(execution(1))
        session.flush()
        assert not session.confined_by_server  # type: ignore[attr-defined] # as above
        with pytest.raises(TenantViolation):
            session.execute(text("SELECT 1"))
        with pytest.raises(TenantViolation):
            session.execute(delete(Run).where(text("true")))
        session.rollback()
        session.add(PrivateExecution(**execution_values(Run(run_id="run-bob", account_id="acc-bob"))))
        with pytest.raises(TenantViolation):
            session.flush()
        session.rollback()


def test_the_grants_that_are_gone_refuse_the_first_flush(policed_fleet: DatabaseFactory) -> None:
    """The policies are in force, and the role may not write any more: the server's word is the session's."""
    with policed_fleet.engine.begin() as administrator:
        administrator.execute(text("REVOKE INSERT ON private_executions FROM shared_db_tenant"))
    with pytest.raises(PermissionDeniedError), policed_fleet.get_session(user_id="ann") as session:
        session.add(execution(1))


def test_many_rows_under_policies_are_looked_for_where_some_were_stored_already(
    policed_fleet: DatabaseFactory, tmp_path: Path
) -> None:
    """As without policies: a batch is stored as it is, until the server says that one of its rows is there."""
    with seen(policed_fleet, tmp_path) as (db, messages), db.get_session(user_id="ann") as session:
        repository = PrivateExecutionRepository(session)

        def looked_up(numbers: range, **options: Any) -> tuple[int, int, int, bool]:
            messages.clear()
            result = repository.bulk_create([execution_values(RUN, number) for number in numbers], **options)
            assert b"shared_db_stage_private_executions_of_tenant" in b"".join(messages)
            return result.inserted, result.skipped, result.updated, b" ON CONFLICT " in b"".join(messages)

        assert looked_up(range(10)) == (10, 0, 0, False)
        assert looked_up(range(10, 20), on_conflict="update") == (10, 0, 0, False)
        assert looked_up(range(15, 25)) == (5, 5, 0, True)
        assert looked_up(range(25, 35)) == (10, 0, 0, True)
        assert looked_up(range(35, 45), on_conflict="fill") == (10, 0, 0, False)
        assert looked_up(range(40, 50), on_conflict="update") == (5, 0, 5, True)
