"""Tenancy fails closed: under a SQLAlchemy that asks for text by other names, and where a session's work is undone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from sqlalchemy import Executable, delete, event, insert, select, text, update
from sqlalchemy.orm import ORMExecuteState, Session

from shared.db import (
    DatabaseFactory,
    PublicTrade,
    Run,
    TenantScopeError,
    TenantViolation,
    User,
    UserSession,
)
from shared.db.tenancy import self_check
from shared.db.tenancy.confined_sql import ConfinedCompiler
from shared.db.tenancy.session_scope import TenantRequiredSession
from shared.db.tenancy.written_text import CheckedNames, CheckedTypes
from shared.db.tests.fleet import everything_of, run_values
from shared.db.tests.support import trade_values

TABLES: Any = Run.metadata.tables
RUNS, TRADES = TABLES["runs"], TABLES["public_trades"]

# Without `_compose_select_body` every table is confined by itself, which is as safe. Without these so is the target of
# MySQL's statements over several tables, which the server refuses.
FOR_USE = ("update_tables_clause", "delete_extra_from_clause")
HOOKS = [
    (owner, name)
    for owner in (ConfinedCompiler, CheckedNames, CheckedTypes)
    for name, value in vars(owner).items()
    if callable(value) and (not name.startswith("_") or name == "__init__") and name not in ("refuse", *FOR_USE)
]


@pytest.fixture
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test is the first of its process."""
    monkeypatch.setattr(self_check, "_proved", set())


@pytest.mark.usefixtures("unproved")
@pytest.mark.parametrize(("owner", "name"), HOOKS, ids=[f"{owner.__name__}.{name}" for owner, name in HOOKS])
def test_a_hook_that_is_asked_for_by_another_name_closes_users_sessions(
    unpoliced_fleet: DatabaseFactory, monkeypatch: pytest.MonkeyPatch, owner: type[Any], name: str
) -> None:
    """As if a release of SQLAlchemy had renamed the method that this one stands in for."""
    monkeypatch.delattr(owner, name)
    with unpoliced_fleet.get_session(user_id="ann") as session, pytest.raises(TenantScopeError, match="are closed"):
        session.scalars(select(User.user_id)).all()


@pytest.mark.usefixtures("unproved")
def test_a_table_that_is_left_out_beside_another_closes_users_sessions(
    unpoliced_fleet: DatabaseFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement with the user in it may still read everybody's rows: each of its tables counts."""
    confined = ConfinedCompiler.visit_table

    def visit_table(self: Any, table: Any, **options: Any) -> Any:
        if table.name != "users":
            return confined(self, table, **options)
        return super(ConfinedCompiler, self).visit_table(table, **options)

    monkeypatch.setattr(ConfinedCompiler, "visit_table", visit_table)
    with unpoliced_fleet.get_session(user_id="ann") as session, pytest.raises(TenantScopeError, match="not confined"):
        session.scalars(select(User.user_id)).all()


@pytest.mark.usefixtures("unproved")
@pytest.mark.parametrize("name", ["_locking", "_condition_of_target"])
def test_what_is_written_without_being_asked_for_closes_users_sessions(
    unpoliced_fleet: DatabaseFactory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A public row may be read: what locks, changes or deletes rows has to say that it does."""
    instead = {"_locking": lambda *_: nullcontext(), "_condition_of_target": lambda *_: None}
    monkeypatch.setattr(ConfinedCompiler, name, instead[name])
    with unpoliced_fleet.get_session(user_id="ann") as session, pytest.raises(TenantScopeError, match="are closed"):
        session.scalars(select(User.user_id)).all()


@pytest.mark.usefixtures("unproved")
def test_options_that_are_kept_by_another_name_close_users_sessions(
    unpoliced_fleet: DatabaseFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler would find nobody's confinement in a statement."""

    def options(self: Any, *given: Any) -> Any:
        copied = self._generate()
        copied._renamed = given
        return copied

    monkeypatch.setattr(Executable, "options", options)
    with unpoliced_fleet.get_session(user_id="ann") as session, pytest.raises(TenantScopeError, match="are closed"):
        session.scalars(select(User.user_id)).all()


@pytest.mark.usefixtures("unproved")
def test_a_text_that_went_on_with_its_first_user_closes_users_sessions(
    unpoliced_fleet: DatabaseFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the values of an execution came by another way."""

    def of_the_first(self: Any, params: Any = None, *args: Any, **options: Any) -> Any:
        found = super(ConfinedCompiler, self).construct_params(params, *args, **options)
        if self.confinement is not None:
            found |= dict.fromkeys(self.user_parameters, self.confinement.user.value)
        return found

    monkeypatch.setattr(ConfinedCompiler, "construct_params", of_the_first)
    with unpoliced_fleet.get_session(user_id="ann") as session, pytest.raises(TenantScopeError, match="its first user"):
        session.scalars(select(User.user_id)).all()


@pytest.mark.usefixtures("unproved")
def test_a_version_that_does_as_it_should_is_proved_once(
    unpoliced_fleet: DatabaseFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later sessions of the process do not pay for it."""
    for _ in range(2):
        with unpoliced_fleet.get_session(user_id="ann") as session:
            assert session.scalars(select(User.user_id)).all() == ["ann"]
        monkeypatch.setattr(self_check, "_problems", None)


@pytest.mark.usefixtures("unproved")
def test_an_error_in_the_proof_closes_users_sessions(
    unpoliced_fleet: DatabaseFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not there any more is no proof either; the error says which SQLAlchemy is installed."""
    monkeypatch.delattr(ConfinedCompiler, "user_parameters")
    with (
        unpoliced_fleet.get_session(user_id="ann") as session,
        pytest.raises(TenantScopeError, match=r"SQLAlchemy 2\..*AttributeError"),
    ):
        session.scalars(select(User.user_id)).all()


@pytest.mark.usefixtures("unproved")
def test_require_tenant_is_closed_with_it(unpoliced_fleet: DatabaseFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain sessions that must not touch users' tables rely on the same compiler."""
    monkeypatch.delattr(ConfinedCompiler, "visit_textclause")
    settings = unpoliced_fleet.settings.model_copy(update={"require_tenant": True})
    with (
        DatabaseFactory(settings) as closed,
        closed.get_session() as session,
        pytest.raises(TenantScopeError, match="are closed"),
    ):
        session.scalars(select(PublicTrade.id)).all()


@pytest.mark.usefixtures("unproved")
def test_plain_sessions_go_on(unpoliced_fleet: DatabaseFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody relies on the proof in them."""
    monkeypatch.delattr(ConfinedCompiler, "visit_table")
    with unpoliced_fleet.get_session() as session:
        assert set(session.scalars(select(Run.run_id))) == {"run-ann", "run-bob"}


# What stands in the place of the statement that a session confined

REPLACED: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "an ORM statement": (lambda: select(PublicTrade.id), lambda: select(Run.run_id)),
    "a Core statement": (lambda: select(TRADES.c.id), lambda: select(RUNS.c.run_id)),
    "text": (lambda: select(TRADES.c.id), lambda: text("SELECT run_id FROM runs")),
    "an UPDATE": (lambda: update(PublicTrade).values(symbol="x"), lambda: update(Run).values(gridcore_version="x")),
    "a DELETE": (lambda: delete(PublicTrade), lambda: delete(Run)),
    "an INSERT": (
        lambda: insert(PublicTrade).values(**trade_values(1)),
        lambda: insert(Run).values(**run_values("bob")),
    ),
}
LISTENERS: dict[str, Callable[[ORMExecuteState, Any], Any]] = {
    "assigns": lambda state, statement: setattr(state, "statement", statement),
    "invokes": lambda state, statement: state.invoke_statement(statement=statement),
}


def _replaced(db: DatabaseFactory, kind: type[Session], what: str, how: str, **user: Any) -> str:
    """What is found when a listener that was registered last replaces the statement."""
    original, replacement = REPLACED[what]

    def replace(state: ORMExecuteState) -> Any:
        return LISTENERS[how](state, replacement())

    event.listen(kind, "do_orm_execute", replace)
    try:
        with db.get_session(**user) as session:
            result: Any = session.execute(original(), execution_options={"synchronize_session": False})
            return str(result.all() if getattr(result, "returns_rows", True) else [])
    finally:
        event.remove(kind, "do_orm_execute", replace)


WAYS = [(what, how) for what in REPLACED for how in LISTENERS]


def test_a_listener_does_not_put_an_unconfined_statement_in_the_place_of_a_confined_one(
    fleet: DatabaseFactory,
) -> None:
    """As recipes for caching and rewriting do: registered later, it has the last word, and is refused when sent."""
    before = everything_of(fleet, "bob")
    with fleet.get_session(user_id="ann") as session:
        assert isinstance(session, UserSession)
        policies = session.confined_by_server
    for what, how in WAYS:
        # Where the server confines too, the statement may pass, and finds her own rows; a new row of bob's is refused.
        with nullcontext() if policies and what != "an INSERT" else pytest.raises(TenantViolation):
            assert "bob" not in _replaced(fleet, UserSession, what, how, user_id="ann"), (what, how)
    assert everything_of(fleet, "bob") == before


def test_nor_does_it_where_a_tenant_is_required(unpoliced_fleet: DatabaseFactory) -> None:
    """Users' tables stay out of a plain session's reach."""
    settings = unpoliced_fleet.settings.model_copy(update={"require_tenant": True})
    with DatabaseFactory(settings) as closed:
        if settings.is_memory:
            closed.create_tables()  # another factory's database in memory is another one
        for what, how in WAYS:
            with pytest.raises(TenantScopeError):
                _replaced(closed, TenantRequiredSession, what, how)


def test_a_listener_may_add_to_a_statement(fleet: DatabaseFactory) -> None:
    """What keeps the session's confinement passes, and stays confined."""

    def add(state: ORMExecuteState) -> None:
        statement: Any = state.statement
        state.statement = statement.where(Run.status == "running").order_by(Run.run_id)

    event.listen(UserSession, "do_orm_execute", add)
    try:
        with fleet.get_session(user_id="ann") as session:
            assert session.scalars(select(Run.run_id)).all() == ["run-ann"]
    finally:
        event.remove(UserSession, "do_orm_execute", add)


def test_the_values_that_are_sent_are_the_sessions_users(
    unpoliced_fleet: DatabaseFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If ever a text that is kept went on with another user, it would not be sent."""
    with unpoliced_fleet.get_session(user_id="ann") as session:
        session.scalars(select(Run.run_id)).all()
        monkeypatch.delattr(ConfinedCompiler, "construct_params")
        with pytest.raises(TenantViolation):
            session.scalars(select(Run.run_id), {"shared_db_user_id_1": "bob"}).all()
