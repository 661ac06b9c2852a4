"""`DatabaseFactory.on_commit()`: which tables a commit wrote, told to whoever keeps something that hangs on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final

from sqlalchemy import Delete, TextClause, event, inspect
from sqlalchemy.orm import ORMExecuteState, Session, UOWTransaction
from sqlalchemy.sql.dml import UpdateBase

from shared.db.models import Base
from shared.db.sessions import NamingSession
from shared.db.staleness import below

OnCommit = Callable[[frozenset[str]], object]
CALLBACKS: Final = "shared_db_on_commit"  # in the `info` of a factory's sessions: its list of callbacks
_WRITTEN: Final = "shared_db_written"

_log = logging.getLogger(__name__)


def note(session: Session, tables: Iterable[Any]) -> None:
    """Remember that the session's transaction writes these tables."""
    if session.info.get(CALLBACKS):
        session.info.setdefault(_WRITTEN, set()).update(str(table.name) for table in tables)


def tell(session: Session) -> None:
    """Tell the callbacks what was written since they were told last."""
    written = session.info.pop(_WRITTEN, None)
    for callback in session.info[CALLBACKS] if written else ():
        try:
            callback(frozenset(written))
        except Exception as error:  # noqa: BLE001 # what is committed must not look as if it had failed
            _log.error("what a commit wrote was not told: %r raised %s", callback, type(error).__name__)


@cache
def watch() -> None:
    """Have sessions note what they write; where nobody asks for it, none of them pays for it."""
    for name, listener in (
        ("after_flush", _note_flushed),
        ("do_orm_execute", _note_statement),
        ("after_commit", _tell_committed),
    ):
        event.listen(NamingSession, name, listener, propagate=True)


def _note_flushed(session: Session, context: UOWTransaction) -> None:
    if session.info.get(CALLBACKS):
        note(session, (inspect(entity).mapper.local_table for entity in (*session.new, *session.dirty)))
        _note_deleted(session, {inspect(entity).mapper.local_table for entity in session.deleted})


def _note_statement(state: ORMExecuteState) -> None:
    if not state.session.info.get(CALLBACKS):
        return
    statement: Any = state.statement
    statement = getattr(statement, "element", statement)  # select(...).from_statement(...)
    if isinstance(statement, Delete):
        _note_deleted(state.session, {statement.table})
    elif isinstance(statement, UpdateBase):
        note(state.session, [statement.table])
    elif isinstance(statement, TextClause) and not statement.text.lstrip().lower().startswith("select"):
        note(state.session, Base.metadata.tables.values())  # whatever it is that it writes


def _tell_committed(session: Session) -> None:
    if _WRITTEN in session.info and not session.in_nested_transaction():
        tell(session)


def _note_deleted(session: Session, tables: set[Any]) -> None:
    note(session, (*tables, *below(tables)))  # the database deletes what hangs on a row
