"""A driver's error (sqlite3 or psycopg2) becomes the failure that `errors.py` has a name for."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from shared.db.errors import (
    AuthenticationError,
    CommitUnknownError,
    ConnectionLostError,
    ConstraintError,
    DatabaseCorruptError,
    DatabaseDiskError,
    DatabaseFailure,
    DatabaseFileError,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseMovedError,
    DatabaseReadOnlyError,
    DatabaseUnreachableError,
    NotADatabaseError,
    PermissionDeniedError,
    StatementCanceledError,
    StatementRefusedError,
    TextEncodingError,
    TooManyConnectionsError,
    TransactionAbortedError,
    TransactionConflictError,
    UnnamedFailure,
    UnsupportedError,
    ValueRefusedError,
)

# SQLite's extended result codes, longest match first, and PostgreSQL's SQLSTATEs, class or whole.
_SQLITE_FAILURES: tuple[tuple[str, type[DatabaseFailure]], ...] = (
    ("SQLITE_READONLY_DBMOVED", DatabaseMovedError),
    ("SQLITE_READONLY", DatabaseReadOnlyError),
    ("SQLITE_BUSY", DatabaseLockedError),
    ("SQLITE_LOCKED", DatabaseLockedError),
    ("SQLITE_FULL", DatabaseFullError),
    ("SQLITE_CORRUPT", DatabaseCorruptError),
    ("SQLITE_NOTADB", NotADatabaseError),
    ("SQLITE_CANTOPEN", DatabaseFileError),
    ("SQLITE_IOERR", DatabaseDiskError),
    ("SQLITE_PROTOCOL", DatabaseLockedError),
    ("SQLITE_PERM", DatabaseFileError),
    ("SQLITE_CONSTRAINT", ConstraintError),
    ("SQLITE_MISMATCH", ConstraintError),
    ("SQLITE_ABORT_ROLLBACK", TransactionAbortedError),
    ("SQLITE_INTERRUPT", StatementCanceledError),
    ("SQLITE_ERROR", StatementRefusedError),
)
_POSTGRESQL_FAILURES: tuple[tuple[str, type[DatabaseFailure]], ...] = (
    ("55P03", DatabaseLockedError),
    ("40001", TransactionConflictError),
    ("40P01", TransactionConflictError),
    ("53100", DatabaseFullError),
    ("25006", DatabaseReadOnlyError),
    ("25P02", TransactionAbortedError),
    ("57014", StatementCanceledError),
    ("22P05", TextEncodingError),
    ("22021", TextEncodingError),
    ("XX001", DatabaseCorruptError),
    ("XX002", DatabaseCorruptError),
    ("28", AuthenticationError),
    ("42501", PermissionDeniedError),
    ("53300", TooManyConnectionsError),
    ("57P0", DatabaseUnreachableError),
    ("08", DatabaseUnreachableError),
    ("58030", DatabaseDiskError),
    ("23", ConstraintError),
)
# What neither has an entry above: by the driver's own class.
_OTHER_FAILURES: tuple[tuple[tuple[type[Exception], ...], type[DatabaseFailure]], ...] = (
    ((sqlite3.IntegrityError, psycopg2.IntegrityError), ConstraintError),
    ((sqlite3.DataError, psycopg2.DataError), ValueRefusedError),
    ((sqlite3.NotSupportedError, psycopg2.NotSupportedError), UnsupportedError),
    ((sqlite3.ProgrammingError, psycopg2.ProgrammingError), StatementRefusedError),
)
# Text that is no UTF-8, a document that is no JSON: nothing of this library can have stored them.
_NO_TEXT_OF_OURS = ("Could not decode to UTF-8", "malformed JSON")
# An exact sum is a function of ours, of whose failure SQLite tells nothing else. It failed since a value is no number,
# which `note_damage` was told, or since Ctrl-C came while it ran.
_AGGREGATE_FAILED = "user-defined aggregate's"
_found = threading.local()
# Of stored text that is no UTF-8 it quotes all: 'column 'api_secret' with text '...''.
_UNDECODABLE = re.compile(r"(Could not decode to UTF-8 column '\w+') with text .*", re.DOTALL)
# What these say of a value they say after a colon: invalid input syntax for type integer: "...".
_QUOTED_VALUE = re.compile(r':? ?".*"', re.DOTALL)
# libpq gives no SQLSTATE for a connection that was never made, only the server's words. A role is named in many of
# them ("too many connections for role"): only these two mean that the login was refused.
_CONNECT_FAILURES: tuple[tuple[re.Pattern[str], type[DatabaseFailure]], ...] = (
    (re.compile(r'FATAL: +role ".*" (does not exist|is not permitted to log in)'), AuthenticationError),
    (re.compile(r"FATAL: +(\S+ authentication failed for user|(no )?pg_hba\.conf )"), AuthenticationError),
    (re.compile(r"no password supplied$", re.MULTILINE), AuthenticationError),
    (re.compile(r"FATAL: +permission denied for database"), PermissionDeniedError),
    (re.compile(r"FATAL: +(sorry, )?too many (clients|connections)|FATAL: +remaining conn"), TooManyConnectionsError),
    (re.compile(""), DatabaseUnreachableError),
)


def typed_failure(
    driver_error: BaseException | None,
    statement: str | None = None,
    *,
    connection_lost: bool = False,
    committing: bool = False,
) -> DatabaseFailure | None:
    """The named failure for a driver's exception; None for any other.

    `connection_lost` says that the connection was there and is gone; `committing`, that COMMIT was on its way.
    """
    if driver_error is None:
        return None
    kind = _kind_of(driver_error)
    if connection_lost and isinstance(driver_error, psycopg2.Error):
        # Whatever it said last: of a COMMIT without an answer nobody knows.
        kind = CommitUnknownError if committing else ConnectionLostError
    return None if kind is None else kind(driver_error, statement, connection_lost)


def note_damage() -> None:
    """Say of a function that SQLite calls that it fails because of a stored value, before it raises."""
    _found.damage = True


def is_interruption(driver_error: BaseException | None) -> bool:
    """Whether a signal's handler raised in a function that SQLite called, which says only that the function failed."""
    failed = isinstance(driver_error, sqlite3.Error) and str(driver_error).startswith(_AGGREGATE_FAILED)
    return failed and not getattr(_found, "damage", False)


def _damage_was_noted() -> bool:
    noted, _found.damage = getattr(_found, "damage", False), False
    return noted


def _kind_of(driver_error: BaseException) -> type[DatabaseFailure] | None:
    if isinstance(driver_error, sqlite3.Error):
        code, table = getattr(driver_error, "sqlite_errorname", None) or "", _SQLITE_FAILURES
        said = str(driver_error)
        if said.startswith(_NO_TEXT_OF_OURS) or (said.startswith(_AGGREGATE_FAILED) and _damage_was_noted()):
            return DatabaseCorruptError
    elif isinstance(driver_error, psycopg2.Error):
        code, table = driver_error.pgcode or "", _POSTGRESQL_FAILURES
        if not code and isinstance(driver_error, psycopg2.OperationalError):
            said = str(driver_error)
            return next(failure for words, failure in _CONNECT_FAILURES if words.search(said))
    else:
        return None
    by_code = (failure for prefix, failure in table if code.startswith(prefix))
    by_class = (failure for kinds, failure in _OTHER_FAILURES if isinstance(driver_error, kinds))
    return next(by_code, None) or next(by_class, UnnamedFailure)


def hide_row(driver_error: BaseException | None, wrapped: SQLAlchemyError | None) -> None:
    """Cut from the driver's error what it tells of the row: "Failing row contains", "Key (...)", "LINE 1: ...".

    From the error itself and from SQLAlchemy's around it: both are chained to whatever is raised in their place, and
    printed with it. hide_parameters does not help against what the server says.
    """
    said = str(driver_error)
    if isinstance(driver_error, sqlite3.Error):
        kept = _UNDECODABLE.sub(r"\1", said)
    elif isinstance(driver_error, psycopg2.Error) and driver_error.diag.message_primary is not None:
        code = driver_error.pgcode or ""
        kept = driver_error.diag.message_primary
        if code.startswith("22"):
            kept = _QUOTED_VALUE.sub("", kept)
        restored: Any = driver_error
        restored.__setstate__({"pgerror": kept, "pgcode": code})
    else:
        return
    if kept == said:
        return
    driver_error.args = (kept,)
    if wrapped is not None:
        wrapped.args = tuple(part.replace(said, kept) if isinstance(part, str) else part for part in wrapped.args)


@contextmanager
def named_errors(connection: Connection, statement: str | None = None) -> Iterator[None]:
    """What the driver raises in the block, as SQLAlchemy and `errors.py` name it; `statement` is what was tried."""
    driver_error: type[Exception] = connection.dialect.loaded_dbapi.Error
    try:
        yield
    except (driver_error, SystemError) as raised:
        # psycopg2 stumbles over a server that ends in the midst of COPY: its own error is then the cause of Python's.
        error = raised if isinstance(raised, driver_error) else raised.__cause__
        if not isinstance(error, driver_error):
            raise
        # There is no public way to what SQLAlchemy does with a driver's error, the engine's own handler included.
        connection._handle_dbapi_exception(error, statement, None, None, None)
