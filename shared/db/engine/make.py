"""An engine for settings: its dialect's own, and around it what holds on every database."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.engine.interfaces import ExceptionContext, ExecutionContext

from shared.db import database_file, same_answers, transaction_control
from shared.db.dialects import MYSQL, POSTGRESQL, SQLITE, PerDatabase, Port
from shared.db.driver_errors import hide_row, is_interruption, typed_failure
from shared.db.engine import mysql, postgresql, sqlite
from shared.db.engine.options import READ_ONLY, Request, only_reads
from shared.db.errors import PermissionDeniedError, ServerReadOnlyError
from shared.db.numbering import numbering_error
from shared.db.settings import DatabaseSettings
from shared.db.tenancy import confined_sql, leftovers, row_security
from shared.db.transactions import note_failure, refuse_aborted, refuse_aborted_savepoint

_COMMITTING = "shared_db_committing"
_KINDS: PerDatabase[Any] = PerDatabase("way to connect", {SQLITE: sqlite, POSTGRESQL: postgresql, MYSQL: mysql})


def make_engine(settings: DatabaseSettings, folder: str, url: URL | None = None) -> Engine:
    """An engine for `settings`, or for another `url` with them. Nothing is opened before it is needed, nor made.

    A relative SQLite path counts from `folder`.
    """
    engine: Engine = _KINDS.named(settings.port.name).make(Request(settings, folder, url or settings.url))
    event.listen(engine, "before_cursor_execute", _before_statement, retval=True)  # SQLAlchemy would wrap it otherwise
    event.listen(engine, "after_cursor_execute", _after_statement)
    event.listen(engine, "release_savepoint", refuse_aborted_savepoint)
    event.listen(engine, "commit", partial(_before_commit, settings.port))
    event.listen(engine, "handle_error", _name_failure)
    same_answers.unify(engine)
    confined_sql.confine(engine)
    return engine


def make_probe(settings: DatabaseSettings, folder: str, timeout: float) -> Engine:
    """An engine to look around with: it creates no file, writes nothing, and waits `timeout` seconds at most.

    Not for in-memory databases, which nobody sees from outside.
    """
    url = _KINDS.named(settings.port.name).probing(settings.url, folder, timeout)
    return as_read_only(make_engine(settings, folder, url))


def as_read_only(engine: Engine) -> Engine:
    """The same engine, whose transactions cannot write."""
    return engine.execution_options(**{READ_ONLY: True})


def _before_statement(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: ExecutionContext, executemany: bool
) -> tuple[str, Any]:
    if transaction_control.is_raw(context):
        leftovers.note(connection, cursor, statement)
    transaction_control.refuse(connection, cursor, statement, context)
    confined_sql.refuse_unconfined(context)
    return statement, parameters


def _after_statement(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: ExecutionContext, executemany: bool
) -> None:
    if transaction_control.is_raw(context):
        transaction_control.make_sure(connection)


def _before_commit(port: Port, connection: Connection) -> None:
    info = connection.info
    if leftovers.SOILED in info:
        leftovers.sweep(connection)
    refuse_aborted(port, connection, info)
    database_file.check(info)
    info[_COMMITTING] = weakref.ref(connection.get_transaction())


def _name_failure(context: ExceptionContext) -> BaseException | None:
    if context.is_pre_ping:
        return None  # the pool knows the driver's own error, and replaces the connection
    error, connection = context.original_exception, context.connection
    if is_interruption(error):
        return KeyboardInterrupt("Ctrl-C, or a signal's handler, ended a statement")
    numbering = numbering_error(context)
    hide_row(error, context.sqlalchemy_exception)
    if connection is None:
        return typed_failure(error)
    if _KINDS.of(connection).became_read_only(error, connection):
        context.is_disconnect = True  # and with it every connection that was made before now
        return ServerReadOnlyError(error, context.statement, True)
    transaction = connection.get_transaction()
    committing = connection.info.get(_COMMITTING, lambda: None)() is transaction is not None
    writing = not only_reads(connection)
    failure = numbering or typed_failure(
        error, context.statement, connection_lost=context.is_disconnect, committing=committing and writing
    )
    if not committing and not context.is_disconnect:
        note_failure(connection, failure, error)
    if isinstance(failure, PermissionDeniedError) and connection.info.get(row_security.ADOPTED):
        failure.remedy = row_security.REMEDY_FOR_USERS
    return row_security.violation_of(context) or failure
