"""Enforcer 1: a session in which nothing of another user can be read or written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import CompoundSelect, Connection, Executable, Select, event, inspect, select
from sqlalchemy.orm import (
    FromStatement,
    Mapper,
    ORMExecuteState,
    Session,
    SessionTransaction,
    UOWTransaction,
    object_session,
)
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql.dml import UpdateBase

from shared.db.errors import TenantScopeError, TenantViolation
from shared.db.models import User
from shared.db.sessions import NamingSession
from shared.db.tables import ownership_of, primary_key
from shared.db.tenancy import leftovers, row_security
from shared.db.tenancy.confined_sql import ALONE, CONFINED_TO, NoUsersRows, is_confined, own_rows_of
from shared.db.tenancy.flush_guard import (
    check_expressions,
    check_flushed,
    check_identity,
    check_own,
    expressions,
)
from shared.db.tenancy.guard import OwnershipGuard, ProvedBefore
from shared.db.tenancy.self_check import prove
from shared.db.tenancy.statement_guard import check_written, narrow_to_own
from shared.db.tenancy.user_ids import UNSET, UserId

_T = TypeVar("_T")
_NO_TRANSACTIONS = "a user's session needs transactions: what confines it ends with each one; do not use AUTOCOMMIT"
_CONFINABLE = (Select, CompoundSelect, UpdateBase, FromStatement)


class UserSession(NamingSession):
    """A session in which nothing of another user can be read or written.

    Made by `DatabaseFactory.get_session(user_id=...)`. Every statement is written out with the user's own rows only;
    every object that enters is checked at the door, every row that leaves is checked before and after the flush. Raw
    SQL is refused, except where PostgreSQL's own policies confine it (`confined_by_server`).
    """

    def __init__(
        self,
        *args: Any,
        user_id: str,
        adopt: tuple[str, str] | None = None,
        proved_before: ProvedBefore | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.info["user_id"] = user_id
        self.guard = OwnershipGuard(user_id, None if adopt is None else proved_before)
        self._rely_on(adopt)

    def _rely_on(self, adopt: tuple[str, str] | None) -> None:
        self._adopt = adopt
        self.own_rows = own_rows_of(self.guard.user_id, policed=adopt is not None)

    def _begin(self, connection: Connection) -> None:
        if self._adopt is not None:
            driver: Any = connection.connection.dbapi_connection
            driver.adoption = _Adoption(self, connection, driver, *self._adopt)
            if driver.has_other_cursors:
                driver.adoption.now()

    def _adopt_role(self, connection: Connection) -> None:
        if self._adopt is not None and not row_security.adopt_role(connection, *self._adopt):
            # The policies were taken away while this process ran: nothing confines raw SQL any more.
            self._rely_on(None)
            self.guard.distrust(self)

    @property
    def confined_by_server(self) -> bool:
        """Whether PostgreSQL's row-level security confines this session too.

        Asks the server, with the transaction that this begins: the policies may have gone while this process ran.
        """
        return self.is_confined_by_server()

    def is_confined_by_server(self, bind_arguments: Mapping[str, Any] | None = None) -> bool:
        """The same of the database that a statement goes to. Whatever is let through for it must ask this before."""
        if self._adopt is not None:
            connection = Session.connection(self, bind_arguments=dict(bind_arguments or {}))
            driver: Any = connection.connection.dbapi_connection
            if driver.adoption is not None:
                driver.adoption.now()
        return self._adopt is not None

    def connection(self, *args: Any, **options: Any) -> Connection:
        """The transaction's connection, where the server confines it; else `TenantViolation`."""
        if not self.confined_by_server:
            raise self.guard.violation(
                "connection()", User, "a bare connection sees every user's rows; open a plain session for it"
            )
        connection = super().connection(*args, **options)
        leftovers.soil(connection)
        return connection

    def merge(self, instance: _T, *, load: bool = True, options: Any = None) -> _T:
        """As Session.merge(); `TenantViolation` for another user's key, also among the objects that go along."""
        self.check_merged(instance)
        return super().merge(instance, load=load, options=options)

    def check_merged(self, instance: object) -> None:
        """`TenantViolation` if an object that is to be merged, or one that goes along, has another user's key."""
        state = inspect(instance)
        self._refuse_foreign_key(instance)
        for item in state.mapper.cascade_iterator("merge", state):
            self._refuse_foreign_key(item[0])

    def merge_all(self, instances: Iterable[_T], *, load: bool = True, options: Any = None) -> Sequence[_T]:
        """As merge(), one by one."""
        return [self.merge(instance, load=load, options=options) for instance in instances]

    def _refuse_foreign_key(self, instance: Any) -> None:
        model = type(instance)
        if ownership_of(model) is None:
            return
        (key,) = inspect(instance).mapper.primary_key_from_instance(instance)
        # A public row comes along with what names it. The flush refuses to change it.
        if key is not None and not self.guard.reads(self, model, key) and self._exists_for_anybody(model, key):
            raise self.guard.violation("merge", model, "its key belongs to another user's row")

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
        row_security.leave(connection)
        try:
            return connection.scalar(found) is not None
        finally:
            self._adopt_role(connection)


def user_of(session: Session) -> UserId:
    """The user whose session it is, UNSET for a plain one. What `session.info` says is for display."""
    return session.guard.user_id if isinstance(session, UserSession) else UNSET


class _Adoption:
    """The role that a session's transaction has yet to adopt: with its first statement, or when the session says so.

    The driver's connection has it, whose cursors send nothing before; there it stays until it took place.
    """

    __slots__ = ("_connection", "_driver", "_session", "_whose")

    def __init__(self, session: UserSession, connection: Connection, driver: Any, role: str, user_id: str) -> None:
        self._session, self._connection, self._driver = session, connection, driver
        self._whose = role, user_id

    def in_front(self, cursor: Any) -> bytes | None:
        return row_security.adopting(self._connection, cursor, *self._whose)

    def unasked(self, cursor: Any) -> bytes:
        return row_security.adopting_unasked(cursor, *self._whose)

    def took_place(self) -> None:
        self._driver.adoption = None
        self._connection.info[row_security.ADOPTED] = self._whose[1]

    def now(self) -> None:
        if self._driver.autocommit:
            raise TenantScopeError(_NO_TRANSACTIONS)
        self._driver.adoption = None  # for the statement that adopts it
        try:
            self._session._adopt_role(self._connection)
        except BaseException:
            self._driver.adoption = self
            raise


class TenantRequiredSession(NamingSession):
    """The plain session under `require_tenant`: users' tables, and SQL that may hide them, are out of its reach."""

    no_users_rows = NoUsersRows()

    def connection(self, *args: Any, **options: Any) -> Connection:
        """Refused: a bare connection sees every user's rows."""
        raise self.no_users_rows.refusal("connection()")

    def bulk_save_objects(self, *args: Any, **options: Any) -> None:
        """Refused: it passes by every check."""
        raise self.no_users_rows.refusal("bulk_save_objects()")

    def bulk_insert_mappings(self, *args: Any, **options: Any) -> None:
        """Refused: it passes by every check."""
        raise self.no_users_rows.refusal("bulk_insert_mappings()")

    def bulk_update_mappings(self, *args: Any, **options: Any) -> None:
        """Refused: it passes by every check."""
        raise self.no_users_rows.refusal("bulk_update_mappings()")


@event.listens_for(TenantRequiredSession, "do_orm_execute")
def _require_tenant(state: ORMExecuteState) -> None:
    session = state.session
    assert isinstance(session, TenantRequiredSession)
    if not isinstance(state.statement, _CONFINABLE):
        raise session.no_users_rows.refusal(type(state.statement).__name__)
    state.statement = state.statement.options(session.no_users_rows)
    state.update_execution_options(**{CONFINED_TO: session.no_users_rows})


def connection_for(session: Session, statement: Executable) -> Connection:
    """The transaction's connection in any kind of session, for a Core statement that confines itself to its user.

    Raises `TenantScopeError` where `require_tenant` asks for a user's session.
    """
    connection = Session.connection(session)
    if isinstance(session, TenantRequiredSession):
        refused_if_it_touches_users: Any = statement.options(session.no_users_rows)
        refused_if_it_touches_users.compile(dialect=connection.dialect)
    return connection


@event.listens_for(TenantRequiredSession, "before_flush")
def _require_tenant_to_write(session: TenantRequiredSession, context: UOWTransaction, instances: Any) -> None:
    for entity in (*session.new, *session.dirty, *session.deleted):
        if ownership_of(type(entity)) is not None:
            raise session.no_users_rows.refusal("flush")
        check_expressions(session, inspect(entity), session.no_users_rows)


def _require_confined(connection: Connection) -> None:
    if not is_confined(connection):
        raise TenantScopeError("a user's session works on a DatabaseFactory's own engine only")
    prove(connection.dialect)


@event.listens_for(TenantRequiredSession, "after_begin")
def _enter_without_users(
    session: TenantRequiredSession, transaction: SessionTransaction, connection: Connection
) -> None:
    _require_confined(connection)


@event.listens_for(UserSession, "after_begin")
def _enter(session: UserSession, transaction: SessionTransaction, connection: Connection) -> None:
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        raise TenantScopeError(_NO_TRANSACTIONS)
    _require_confined(connection)
    if not transaction.nested:
        session._begin(connection)


@event.listens_for(UserSession, "do_orm_execute")
def _confine(state: ORMExecuteState) -> None:
    session = state.session
    assert isinstance(session, UserSession)
    if state.execution_options.get("compiled_cache") is not None:
        raise session.guard.violation("compiled_cache", User, "it may hold what another session compiled")
    alone = bool(state.execution_options.get(ALONE))
    # Asked first of all: what `own_rows` lets through depends on it.
    confined = not alone and session.is_confined_by_server(state.bind_arguments)
    if not isinstance(state.statement, _CONFINABLE):
        if not confined:
            raise session.own_rows.refusal(type(state.statement).__name__)
        return
    loading = state.is_relationship_load or state.is_column_load
    if not loading and isinstance(state.statement, UpdateBase):
        check_written(session.guard, state)
        narrow_to_own(session.guard, state)
    own_rows = session.own_rows.alone if alone else session.own_rows
    state.statement = (own_rows.to_load if loading else own_rows).on(state.statement)
    if not own_rows.raw_sql:
        # Whoever listens after this may put another statement in its place.
        state.update_execution_options(**{CONFINED_TO: own_rows})


@event.listens_for(UserSession, "before_attach")
def _at_the_door(session: UserSession, instance: object) -> None:
    """An object that already has a row may enter only if the row is the user's, or public."""
    state = inspect(instance)
    if state.key is None or state.session_id == session.hash_key:
        return
    model = state.mapper.class_
    if ownership_of(model) is not None and not session.guard.reads(session, model, state.key[1][0]):
        raise session.guard.violation("adding an object", model, "its key names no row of the user")


@event.listens_for(UserSession, "before_flush")
def _before_flush(session: UserSession, context: UOWTransaction, instances: Any) -> None:
    # What is known already, so that a colliding key is not reported before the wrong owner.
    for entity in (*session.new, *session.dirty, *session.deleted):
        state = instance_state(entity)
        check_identity(session.guard, state)
        if any(expressions(state)):
            # What relies on the server's policies asks for them first.
            if session.confined_by_server:
                leftovers.soil(Session.connection(session))
            else:
                check_expressions(session, state, session.own_rows)
    for entity in session.deleted:
        # Before what it is linked to is told that it goes.
        check_own(session.guard, session, instance_state(entity), deleted=True)
    check_flushed(session.guard, session, complete=False)


# Told right before the SQL: a flush writes more than what was changed before it, such as what another object's
# relationship has lost or was given.
@event.listens_for(Mapper, "before_update")
def _before_update(mapper: Mapper[Any], connection: Connection, entity: object) -> None:
    session = object_session(entity)
    if isinstance(session, UserSession):
        check_own(session.guard, session, inspect(entity))


@event.listens_for(Mapper, "before_delete")
def _before_delete(mapper: Mapper[Any], connection: Connection, entity: object) -> None:
    session = object_session(entity)
    if isinstance(session, UserSession):
        check_own(session.guard, session, inspect(entity), deleted=True)


@event.listens_for(UserSession, "after_flush")
def _after_flush(session: UserSession, context: UOWTransaction) -> None:
    # The flush fills in parents that were given as objects; raising here undoes it, inside savepoints too.
    check_flushed(session.guard, session, complete=True)


@event.listens_for(UserSession, "after_soft_rollback")
def _forget(session: UserSession, transaction: SessionTransaction) -> None:
    session.guard.forget()
