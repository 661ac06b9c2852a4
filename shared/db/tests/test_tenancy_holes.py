"""The holes that docs/tenancy.md names, each as it is today: who closes one finds its test here."""

from __future__ import annotations

import re
from contextlib import closing, nullcontext
from typing import Any

import pytest
from sqlalchemy import ColumnElement, select, text, type_coerce, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.types import UserDefinedType

from shared.db import (
    ApiCredential,
    Base,
    BybitAccount,
    DatabaseFactory,
    ForkError,
    PrivateExecution,
    PublicTrade,
    Run,
    Strategy,
    TenantViolation,
    User,
    UserSession,
)
from shared.db.tests.fleet import run_values
from shared.db.tests.support import execution_values, in_children, trade_values


def _change_is_refused_by_policies_alone(session: Session, entity: Base, column: str) -> None:
    """Whatever the outcome, nothing of the change is left."""
    assert isinstance(session, UserSession)
    with session.begin_nested() as savepoint:
        setattr(entity, column, "2")
        with pytest.raises(TenantViolation) if session.confined_by_server else nullcontext():
            session.flush()
        savepoint.rollback()


def test_an_object_in_memory_outlives_a_change_of_its_owner(busy_fleet: DatabaseFactory) -> None:
    """What a session has loaded it proved once: another process may give the row away, and the object is still in hand.

    Its next transaction reads nothing of it, but a write to it changes what is the other user's by now, except under
    PostgreSQL's policies.
    """

    def write() -> None:
        with busy_fleet.get_session(user_id="ann") as session:
            assert isinstance(session, UserSession)
            run = session.get_one(Run, "run-ann")
            session.commit()
            with busy_fleet.get_session() as plain:
                plain.execute(update(Run).where(Run.run_id == "run-ann").values(**run_values("bob")))
            run.gridcore_version = "2"
            if session.confined_by_server:
                with pytest.raises(StaleDataError):
                    session.flush()
                session.rollback()
            session.commit()
            assert session.get(Run, "run-ann") is None

    write()
    with busy_fleet.get_session() as plain:
        written = plain.get_one(Run, "run-ann")
        policies = busy_fleet.engine.dialect.name == "postgresql" and busy_fleet.row_security_status().enabled
        assert (written.user_id, written.gridcore_version) == ("bob", None if policies else "2")


def test_the_engine_sees_everything(fleet: DatabaseFactory) -> None:
    """`db.engine` belongs to no session, and a session's connection can be had through its base class."""
    with fleet.engine.connect() as connection:
        assert len(connection.execute(text("SELECT run_id FROM runs")).all()) == 2
    with fleet.get_session(user_id="ann") as session:
        assert isinstance(session, UserSession)
        seen = Session.connection(session).execute(text("SELECT run_id FROM runs")).all()
        assert len(seen) == (1 if session.confined_by_server else 2)


def test_hostile_sql_leaves_the_role(policed_fleet: DatabaseFactory) -> None:
    """The policies are a net for mistakes: raw SQL that resets the role, or names another user, sees his rows."""
    with policed_fleet.get_session(user_id="ann") as session:
        session.execute(text("RESET ROLE"))
        assert len(session.execute(text("SELECT run_id FROM runs")).all()) == 2
    with policed_fleet.get_session(user_id="ann") as session:
        session.execute(text("SELECT set_config('shared_db.user_id', 'bob', true)"))
        assert session.execute(text("SELECT run_id FROM runs")).all() == [("run-bob",)]
    with policed_fleet.get_session(user_id="ann") as session:
        assert session.execute(text("SELECT run_id FROM runs")).all() == [("run-ann",)]


@pytest.mark.parametrize("taken", ["key", "username"])
def test_a_collision_tells_that_something_is_there(fleet: DatabaseFactory, taken: str) -> None:
    """Keys and usernames are unique across users, so a taken one is refused; whose it is, it does not say."""

    def collide() -> None:
        with fleet.get_session(user_id="ann") as session:
            if taken == "key":
                session.add(Run(run_id="run-bob", **run_values("ann")))
            else:
                session.get_one(User, "ann").username = "name-bob"

    with pytest.raises(IntegrityError) as refused:
        collide()
    assert "bob" not in str(refused.value)


def test_an_execution_may_name_anybodys_account_except_under_policies(fleet: DatabaseFactory) -> None:
    """No key leads from executions to accounts: what a plain session writes there it is trusted to mean.

    The owner of its run reads the execution, and changes it; PostgreSQL's policies look at the whole row with every
    change, and refuse it.
    """
    with fleet.get_session() as plain:
        plain.execute(update(PrivateExecution).where(PrivateExecution.run_id == "run-ann").values(account_id="acc-bob"))
    with fleet.get_session(user_id="ann") as session:
        _change_is_refused_by_policies_alone(session, session.scalars(select(PrivateExecution)).one(), "order_id")


def test_an_execution_outlives_the_account_that_it_names(fleet: DatabaseFactory) -> None:
    """If its run moved on before the account was deleted, it is kept and read; policies refuse all changes of it."""
    with fleet.get_session(user_id="ann") as session:
        session.add(BybitAccount(account_id="acc-2", user_id="ann", account_name="2", environment="testnet"))
        session.flush()
        session.add(Strategy(strategy_id="str-2", account_id="acc-2", strategy_type="G", symbol="X", config_json={}))
        session.flush()
        run = session.get_one(Run, "run-ann")
        run.account_id, run.strategy_id = "acc-2", "str-2"
        session.flush()
        session.delete(session.get_one(BybitAccount, "acc-ann"))
    with fleet.get_session(user_id="ann") as session:
        execution = session.scalars(select(PrivateExecution)).one()
        assert (execution.run_id, execution.account_id) == ("run-ann", "acc-ann")
        _change_is_refused_by_policies_alone(session, execution, "order_id")
        execution.account_id = "acc-2"
        execution.order_id = "3"


def test_public_trades_are_everybodys_to_change(fleet: DatabaseFactory) -> None:
    """What is shared by all can be written, and deleted, in every session."""
    with fleet.get_session(user_id="bob") as session:
        session.add(PublicTrade(**trade_values()))
    with fleet.get_session(user_id="ann") as session:
        session.delete(session.scalars(select(PublicTrade)).one())
    with fleet.get_session() as plain:
        assert plain.scalars(select(PublicTrade)).all() == []


def test_an_open_session_does_not_cross_a_fork(busy_fleet: DatabaseFactory) -> None:
    """The child's copy of it reads nothing; the parent's goes on."""

    def read(session: Session) -> str | None:
        try:
            session.scalars(select(Run.user_id)).all()
        except ForkError as error:
            return type(error).__name__
        return None

    with busy_fleet.get_session(user_id="ann", read_only=True) as session:
        assert session.scalars(select(Run.user_id)).all() == ["ann"]
        assert in_children(2, lambda number: read(session)) == ["ForkError"] * 2
        assert session.scalars(select(Run.user_id)).all() == ["ann"]


class _WritesSQL(ColumnElement[str]):
    inherit_cache = False


@compiles(_WritesSQL)
def _writes_sql(element: _WritesSQL, compiler: Any, **how: Any) -> str:
    return "(SELECT max(api_key_id) FROM api_credentials)"


class _TypeOfSQL(UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **options: Any) -> str:
        """Text."""
        return "TEXT"

    def column_expression(self, column: Any) -> Any:
        """Another user's data in place of the column."""
        return _WritesSQL()


def test_a_type_makes_a_construct_that_is_not_seen(unpoliced_fleet: DatabaseFactory) -> None:
    """A construct with a compile function is refused where a statement holds it, and not where a type makes it."""
    with unpoliced_fleet.get_session(user_id="ann") as session:
        with pytest.raises(TenantViolation):
            session.execute(select(Run.run_id, _WritesSQL())).all()
        assert session.execute(select(type_coerce(Run.run_id, _TypeOfSQL()))).all() == [("key-bob",)]


def test_the_server_shows_statements_with_their_values(postgresql_fleet: DatabaseFactory) -> None:
    """To the same login and to who may read all statistics; not to a user's session."""
    running = text("SELECT query FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()")
    with postgresql_fleet.get_session(user_id="bob") as writing:
        writing.add(ApiCredential(account_id="acc-bob", api_key_id="key-2", api_secret="secret-2", is_active=False))
        writing.flush()
        with postgresql_fleet.get_session() as plain:
            assert "secret-2" in str(plain.execute(running).all())
        with postgresql_fleet.get_session(user_id="ann") as session:
            assert isinstance(session, UserSession)
            with nullcontext() if session.confined_by_server else pytest.raises(TenantViolation):
                assert "secret-2" not in str(session.execute(running).all())


def test_explain_estimates_from_everybodys_rows(policed_fleet: DatabaseFactory) -> None:
    """The planner's statistics know no users: how many rows there may be of a symbol, they tell."""
    with policed_fleet.get_session() as plain:
        run = plain.get_one(Run, "run-bob")
        plain.add_all(
            PrivateExecution(**execution_values(run, number, symbol="BOBUSDT", exec_id=f"many-{number}"))
            for number in range(300)
        )
    with policed_fleet.engine.begin() as connection:
        connection.execute(text("ANALYZE private_executions"))

    def estimated(symbol: str) -> int:
        with policed_fleet.get_session(user_id="ann") as session:
            asked = text(f"EXPLAIN SELECT 1 FROM private_executions WHERE symbol = '{symbol}'")
            assert session.scalars(select(PrivateExecution.symbol).where(PrivateExecution.symbol == symbol)).all() == []
            return max(int(rows) for rows in re.findall(r"rows=(\d+)", " ".join(session.scalars(asked))))

    assert estimated("BOBUSDT") > estimated("NOSUCHUSDT")


def test_a_lock_can_hide_in_a_block(policed_fleet: DatabaseFactory) -> None:
    """LOCK TABLE is refused by name; in a function or DO block, or by the driver's cursor, nobody sees it.

    It ends with the transaction.
    """
    held = text("SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'runs'::regclass")

    def in_a_block(session: Session) -> None:
        session.execute(text("DO $$ BEGIN LOCK TABLE runs IN ACCESS EXCLUSIVE MODE; END $$"))

    def by_the_cursor(session: Session) -> None:
        with closing(session.connection().connection.cursor()) as cursor:
            cursor.execute("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")

    for lock in (in_a_block, by_the_cursor):
        with policed_fleet.get_session(user_id="ann") as session:
            lock(session)
            assert session.scalar(held) == 1
        with policed_fleet.get_session() as plain:
            assert plain.scalar(held) == 0
