"""What every session of a factory does beside SQLAlchemy's own.

It names what goes wrong in the ORM itself, and each of its transactions sees what the database has.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Delete, TextClause, event, inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import InstanceState, Mapper, ORMExecuteState, Session, SessionTransaction, UOWTransaction
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError

from shared.db.errors import AsyncSessionError, SharedDBError, StaleRowError
from shared.db.staleness import give_back, read_again, read_again_below, read_again_of

_DELETED = "shared_db_deleted"


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that stands still while this thread waits, if there is one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class NamingSession(Session):
    """A session whose own errors have names of `errors.py`; the driver's get theirs in the engine.

    What it has loaded is read again in its next transaction, and stays readable when it has closed.
    """

    thread: int | None = None
    """The only one that may ask the database for it, where it works for a coroutine; None for any."""

    in_event_loops = True
    """Whether it may be asked where an event loop would stand still meanwhile, as any coroutine may do with it."""

    def get_bind(self, *args: Any, **options: Any) -> Any:
        """As Session.get_bind(), by which every question goes, a lazy load's too; refused outside of its thread."""
        if self.thread is not None and self.thread != threading.get_ident():
            raise AsyncSessionError(
                "this would ask the database in another thread than its session's: load it before (selectinload(), "
                "refresh()), or do it in `await session.run_sync(...)`"
            )
        if not self.in_event_loops and running_loop() is not None:
            raise AsyncSessionError(
                "this session would hold up the event loop, and with it every other request: make this a plain `def`, "
                "which runs in a thread, or take the session for asyncio"
            )
        return super().get_bind(*args, **options)

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """As Session.flush(); `StaleRowError` for a row that is gone."""
        try:
            super().flush(objects)
        except StaleDataError as error:
            raise StaleRowError(str(error)) from error

    def execute(self, *args: Any, **options: Any) -> Any:
        """As Session.execute(); `StaleRowError` for a row that is gone, among those of an UPDATE by primary keys."""
        try:
            return super().execute(*args, **options)
        except StaleDataError as error:
            raise StaleRowError(str(error)) from error

    def refresh(self, *args: Any, **options: Any) -> None:
        """As Session.refresh(); `StaleRowError` for a row that is gone."""
        try:
            super().refresh(*args, **options)
        except InvalidRequestError as error:
            if isinstance(error, SharedDBError) or not str(error).startswith("Could not refresh"):
                raise
            raise StaleRowError(str(error)) from error

    def get(self, *args: Any, **options: Any) -> Any:
        """As Session.get(), in a transaction: one from memory alone would be of the transaction before."""
        self._in_transaction()
        return super().get(*args, **options)

    def get_one(self, *args: Any, **options: Any) -> Any:
        """As Session.get_one(), in a transaction."""
        self._in_transaction()
        return super().get_one(*args, **options)

    def _in_transaction(self) -> None:
        if not self.in_transaction():
            self.begin()

    def expunge(self, instance: object) -> None:
        """As Session.expunge()."""
        state = inspect(instance)
        give_back([state])
        give_back(cascaded[2] for cascaded in state.mapper.cascade_iterator("expunge", state))
        super().expunge(instance)

    def expunge_all(self) -> None:
        """As Session.expunge_all(), which closing does too."""
        give_back(self.identity_map.all_states())
        super().expunge_all()


# Objects stay as they are after COMMIT, since bots use them after their session has closed; so it is here that a
# session which goes on stops answering from memory.
@event.listens_for(NamingSession, "after_transaction_create", propagate=True)
def _look_again(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None and session.identity_map:
        read_again(session, session.identity_map.all_states())


@event.listens_for(NamingSession, "after_soft_rollback", propagate=True)
def _look_again_after_savepoint(session: Session, transaction: SessionTransaction) -> None:
    if transaction.nested:  # after any other SQLAlchemy expires all itself, here only what was changed by attributes
        read_again(session, session.identity_map.all_states())


@event.listens_for(NamingSession, "after_flush", propagate=True)
def _note_deleted(session: Session, context: UOWTransaction) -> None:
    if session.deleted:
        context.attributes[_DELETED] = [inspect(entity) for entity in session.deleted]


@event.listens_for(NamingSession, "after_flush_postexec", propagate=True)
def _look_below(session: Session, context: UOWTransaction) -> None:
    if _DELETED in context.attributes:
        read_again_below(session, context.attributes[_DELETED])


@event.listens_for(NamingSession, "do_orm_execute", propagate=True)
def _look_after_deleting(state: ORMExecuteState) -> Any:
    statement = state.statement
    if isinstance(statement, Delete):
        result = state.invoke_statement()
        read_again_of(state.session, statement.table)
        return result
    if isinstance(statement, TextClause) and "delete" in statement.text.lower():
        result = state.invoke_statement()
        read_again(state.session, state.session.identity_map.all_states())
        return result
    return None


@event.listens_for(Mapper, "mapper_configured")
def _name_what_is_gone(mapper: Mapper[Any], model: type[Any]) -> None:
    manager: Any = mapper.class_manager
    manager.expired_attribute_loader = partial(_load_expired, manager.expired_attribute_loader)


def _load_expired(load: Callable[..., None], state: InstanceState[Any], *args: Any) -> None:
    try:
        load(state, *args)
    except ObjectDeletedError as error:
        raise StaleRowError(str(error)) from error
