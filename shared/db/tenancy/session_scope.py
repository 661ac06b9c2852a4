"""Enforcer 1: a session in which nothing of another user can be read or written."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Executable, event, inspect, select
from sqlalchemy.orm import (
    InstanceState,
    LoaderCriteriaOption,
    ORMExecuteState,
    Session,
    SessionTransaction,
    UOWTransaction,
)
from sqlalchemy.sql.dml import UpdateBase

from shared.db.errors import TenantScopeError, TenantViolation
from shared.db.models import Base, User
from shared.db.tenancy import row_security
from shared.db.tenancy.guard import OwnershipGuard, column_values, written_values
from shared.db.tenancy.ownership import OWNERSHIP, owned_by, ownership_of, primary_key
from shared.db.tenancy.statement_guard import (
    check_insert,
    check_sources,
    check_update,
    confine_conditions,
    may_touch_users,
    refuse_raw_sql,
)

_TENANT_REQUIRED = (
    "require_tenant is set, and this session without a user would touch users' data; open "
    "db.get_session(user_id=...), or for a tool a DatabaseFactory whose settings have require_tenant=False"
)
_T = TypeVar("_T")


class UserSession(Session):
    """A session in which nothing of another user can be read or written.

    Made by `DatabaseFactory.get_session(user_id=...)`. Every ORM statement gets the user's criteria; every object
    that enters is checked at the door, every row that leaves is checked before and after the flush. Raw SQL is
    refused, except where PostgreSQL's own policies confine it (`confined_by_server`).
    """

    def __init__(self, *args: Any, user_id: str, adopt: tuple[str, str] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.info["user_id"] = user_id
        self.guard = OwnershipGuard(user_id)
        self._adopt = adopt

    @property
    def confined_by_server(self) -> bool:
        """Whether PostgreSQL's row-level security confines this session too."""
        return self._adopt is not None

    def connection(self, *args: Any, **options: Any) -> Connection:
        """The transaction's connection, where the server confines it; else `TenantViolation`."""
        if not self.confined_by_server:
            raise self.guard.violation(
                "connection()", User, "a bare connection sees every user's rows; open a plain session for it"
            )
        return super().connection(*args, **options)

    def merge(self, instance: _T, *, load: bool = True, options: Any = None) -> _T:
        """As Session.merge(); `TenantViolation` for another user's key, or without loading."""
        model = type(instance)
        if ownership_of(model) is not None:
            if not load:
                raise self.guard.violation("merge(load=False)", model, "it trusts what nobody has looked up")
            (key,) = inspect(instance).mapper.primary_key_from_instance(instance)
            if key is not None and not self.guard.owns(self, model, key) and self._exists_for_anybody(model, key):
                raise self.guard.violation("merge", model, "its key belongs to another user's row")
        return super().merge(instance, load=load, options=options)

    def bulk_save_objects(self, *args: Any, **options: Any) -> None:
        """Refused: it passes by every check. Use `add_all()` or a repository's `bulk_create()`."""
        raise self._legacy("bulk_save_objects")

    def bulk_insert_mappings(self, *args: Any, **options: Any) -> None:
        """Refused: it passes by every check. Use a repository's `bulk_create()`."""
        raise self._legacy("bulk_insert_mappings")

    def bulk_update_mappings(self, *args: Any, **options: Any) -> None:
        """Refused: it passes by every check. Use `update()` statements."""
        raise self._legacy("bulk_update_mappings")

    def _legacy(self, name: str) -> TenantViolation:
        return self.guard.violation(f"{name}()", User, "it passes by every check; use add_all() or bulk_create()")

    def _exists_for_anybody(self, model: type[Any], key: Any) -> bool:
        connection = Session.connection(self)
        table = model.__table__
        found = select(table.c[primary_key(model)]).where(table.c[primary_key(model)] == key)
        if self._adopt is None:
            return connection.scalar(found) is not None
        # Under the tenant role the server hides what we ask for here.
        connection.exec_driver_sql("SELECT set_config('role', 'none', true)")
        try:
            return connection.scalar(found) is not None
        finally:
            row_security.adopt(connection, *self._adopt)


class TenantRequiredSession(Session):
    """The plain session under `require_tenant`: users' tables, and SQL that may hide them, are out of its reach."""

    def connection(self, *args: Any, **options: Any) -> Connection:
        """Refused: a bare connection sees every user's rows."""
        raise TenantScopeError(_TENANT_REQUIRED)


@event.listens_for(TenantRequiredSession, "do_orm_execute")
def _require_tenant(state: ORMExecuteState) -> None:
    if may_touch_users(state.statement):
        raise TenantScopeError(_TENANT_REQUIRED)


def connection_for(session: Session, statement: Executable) -> Connection:
    """The transaction's connection in any kind of session, for a Core statement that confines itself to its user.

    Raises `TenantScopeError` where `require_tenant` asks for a user's session.
    """
    if isinstance(session, TenantRequiredSession) and may_touch_users(statement):
        raise TenantScopeError(_TENANT_REQUIRED)
    return Session.connection(session)


@event.listens_for(TenantRequiredSession, "before_flush")
def _require_tenant_to_write(session: Session, context: UOWTransaction, instances: Any) -> None:
    if any(ownership_of(type(entity)) is not None for entity in (*session.new, *session.dirty, *session.deleted)):
        raise TenantScopeError(_TENANT_REQUIRED)


@event.listens_for(UserSession, "after_begin")
def _enter(session: UserSession, transaction: SessionTransaction, connection: Connection) -> None:
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        raise TenantScopeError(
            "a user's session needs transactions: what confines it ends with each one; do not use AUTOCOMMIT"
        )
    if session._adopt is not None and not transaction.nested:
        row_security.adopt(connection, *session._adopt)


@event.listens_for(UserSession, "do_orm_execute")
def _confine(state: ORMExecuteState) -> None:
    session = state.session
    assert isinstance(session, UserSession)
    if not (state.is_relationship_load or state.is_column_load):
        if not session.confined_by_server:
            refuse_raw_sql(session.guard, state.statement)
        _check_writes(session.guard, state)
    if state.is_orm_statement and not state.is_insert and not state.is_column_load:
        criteria = criteria_of(session.guard.user_id)
        # A statement that SQLAlchemy derives from one that was here already brings them along.
        if criteria[0] not in state.statement._with_options:
            state.statement = confine_conditions(state.statement, session.guard.user_id).options(*criteria)


def _check_writes(guard: OwnershipGuard, state: ORMExecuteState) -> None:
    if not isinstance(state.statement, UpdateBase) or state.bind_mapper is None:
        return
    model = state.bind_mapper.class_
    if state.is_insert:
        check_insert(guard, state, model)
    elif state.is_update:
        check_update(guard, state, model)
    else:
        check_sources(guard, state, model)
        guard.forget()


@event.listens_for(UserSession, "before_attach")
def _at_the_door(session: UserSession, instance: object) -> None:
    """An object that already has a row may enter only if the row is the user's."""
    state = inspect(instance)
    if state.key is None or state.session_id == session.hash_key:
        return
    model = state.mapper.class_
    if ownership_of(model) is not None:
        session.guard.require_owned(session, "adding an object", model, {state.key[1][0]})


@event.listens_for(UserSession, "before_flush")
def _before_flush(session: UserSession, context: UOWTransaction, instances: Any) -> None:
    # What is known already, so that a colliding key is not reported before the wrong owner.
    _check_flushed(session, complete=False)


@event.listens_for(UserSession, "after_flush")
def _after_flush(session: UserSession, context: UOWTransaction) -> None:
    # The flush fills in parents that were given as objects; raising here undoes it, inside savepoints too.
    _check_flushed(session, complete=True)


def _check_flushed(session: UserSession, *, complete: bool) -> None:
    changed: dict[type[Any], list[dict[str, Any]]] = {}
    for entity in (*session.new, *session.dirty):
        if ownership_of(type(entity)) is not None:
            values = written_values(session, entity) if complete else column_values(entity)
            changed.setdefault(type(entity), []).append(values)
    for entity in (*session.dirty, *session.deleted):
        session.guard.forget(type(entity), inspect(entity).identity)
    # A parent that this flush inserts cannot be looked up before it; afterwards it can.
    coming = (
        set() if complete else {(model, row[primary_key(model)]) for model, rows in changed.items() for row in rows}
    )
    for model, rows in changed.items():
        session.guard.check_rows(session, "flush", model, rows, complete=complete, coming=coming)


@event.listens_for(UserSession, "after_soft_rollback")
def _forget(session: UserSession, transaction: SessionTransaction) -> None:
    session.guard.forget()


@event.listens_for(UserSession, "loaded_as_persistent")
def _strip_loaded(session: UserSession, instance: object) -> None:
    _strip_criteria(inspect(instance))


@event.listens_for(Base, "refresh", propagate=True)
def _strip_refreshed(instance: object, context: Any, names: Any) -> None:
    _strip_criteria(inspect(instance))


def _strip_criteria(state: InstanceState[Any]) -> None:
    # SQLAlchemy leaves them on each object, for its later loads. Every load here gets them anew, and an object
    # that keeps them cannot be pickled and stays filtered in another session.
    if state.load_options:
        state.load_options = tuple(
            option for option in state.load_options if not getattr(option, "_is_criteria_option", False)
        )


class OwnRowsOnly(LoaderCriteriaOption):
    """Loader criteria that also reach an alias joined on a plain condition, to which SQLAlchemy does not adapt them."""

    # SQLAlchemy looks for the parts of a cache key in the class itself; the user id is one of them.
    _traverse_internals = LoaderCriteriaOption._traverse_internals

    def _resolve_where_criteria(self, ext_info: Any) -> ColumnElement[bool]:
        criterion = super()._resolve_where_criteria(ext_info)
        if not ext_info.is_aliased_class:
            return criterion
        adapted: ColumnElement[bool] = ext_info._adapter.traverse(criterion)
        return adapted


@lru_cache(maxsize=256)
def criteria_of(user_id: str) -> tuple[LoaderCriteriaOption, ...]:
    """The loader criteria that confine every mapped class to one user."""
    criteria = ((model, owned_by(model, user_id)) for model in OWNERSHIP)
    return tuple(
        OwnRowsOnly(model, criterion, include_aliases=True, propagate_to_loaders=True)
        for model, criterion in criteria
        if criterion is not None
    )
