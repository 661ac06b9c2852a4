"""How a connection's transaction stands, by its driver's own account; no server is asked."""

from __future__ import annotations

import sqlite3
import weakref
from contextlib import closing
from enum import Enum
from typing import Any, NamedTuple, NoReturn

import psycopg2.errors
from psycopg2 import extensions
from sqlalchemy import Connection

from shared.db.errors import DatabaseFailure, TransactionAbortedError

_FAILURE = "shared_db_failure"


class TransactionStatus(Enum):
    """What a driver knows of its connection's transaction."""

    NONE = "none has begun, or it has ended"
    OPEN = "it has begun, and goes on"
    ABORTED = "an error has aborted it: the server rolls it back, whatever else it is asked"
    UNKNOWN = "the connection is closed or lost"


_POSTGRESQL = {
    extensions.TRANSACTION_STATUS_IDLE: TransactionStatus.NONE,
    extensions.TRANSACTION_STATUS_ACTIVE: TransactionStatus.OPEN,
    extensions.TRANSACTION_STATUS_INTRANS: TransactionStatus.OPEN,
    extensions.TRANSACTION_STATUS_INERROR: TransactionStatus.ABORTED,
}


def transaction_status(driver: Any) -> TransactionStatus:
    """How the transaction of a driver's connection (sqlite3 or psycopg2) stands."""
    if isinstance(driver, sqlite3.Connection):
        return TransactionStatus.OPEN if driver.in_transaction else TransactionStatus.NONE
    return _POSTGRESQL.get(driver.get_transaction_status(), TransactionStatus.UNKNOWN)


class _Failure(NamedTuple):
    """What broke a transaction. Not the error itself: that holds the frames it passed through."""

    transaction: Any
    said: str
    transient: bool


def note_failure(connection: Connection, failure: DatabaseFailure | None, error: BaseException) -> None:
    """Remember what broke the transaction under way, so that `refuse_aborted` can tell whoever goes on with it."""
    transaction = connection.get_transaction()
    if transaction is None or connection.invalidated:
        return
    driver: Any = connection.connection.dbapi_connection
    status = transaction_status(driver)
    if isinstance(driver, sqlite3.Connection):
        if status is TransactionStatus.OPEN:
            return  # undone is the statement alone
        # A full disk and the like end the whole transaction, and what follows would be stored at once, by itself. So
        # it goes into a transaction again, which is never committed.
        driver.execute("BEGIN")
    elif status is not TransactionStatus.ABORTED:
        return
    if isinstance(failure, TransactionAbortedError):
        _tell_earlier(connection, failure)
        return
    said = str(error).strip().partition("\n")[0]
    connection.info[_FAILURE] = _Failure(weakref.ref(transaction), said, failure is not None and failure.transient)


def refuse_aborted(connection: Connection) -> None:
    """Before COMMIT: `TransactionAbortedError` where the database has given the transaction up, which is rolled back.

    PostgreSQL answers COMMIT by ROLLBACK then, and SQLite has nothing to commit, both without an error.
    """
    driver: Any = connection.connection.dbapi_connection
    if isinstance(driver, sqlite3.Connection):
        aborted = _FAILURE in connection.info and _failure_of(connection) is not None
    else:
        aborted = driver.get_transaction_status() == extensions.TRANSACTION_STATUS_INERROR
    if aborted:
        driver.rollback()
        _refuse(connection)


def refuse_aborted_savepoint(connection: Connection, name: str, context: Any) -> None:
    """The same before RELEASE of a savepoint: undone is what it holds, and what surrounds it can go on."""
    driver: Any = connection.connection.dbapi_connection
    if transaction_status(driver) is TransactionStatus.ABORTED:
        with closing(driver.cursor()) as cursor:
            cursor.execute(f"ROLLBACK TO SAVEPOINT {connection.dialect.identifier_preparer.quote(name)}")
        _refuse(connection)


def _refuse(connection: Connection) -> NoReturn:
    cause: sqlite3.Error | psycopg2.Error
    if isinstance(connection.connection.dbapi_connection, sqlite3.Connection):
        cause = sqlite3.OperationalError("the transaction was rolled back")
        cause.sqlite_errorcode, cause.sqlite_errorname = sqlite3.SQLITE_ABORT_ROLLBACK, "SQLITE_ABORT_ROLLBACK"
    else:
        cause = psycopg2.errors.InFailedSqlTransaction("current transaction is aborted")
    failure = TransactionAbortedError(cause)
    _tell_earlier(connection, failure)
    raise failure from cause


def _tell_earlier(connection: Connection, failure: TransactionAbortedError) -> None:
    earlier = _failure_of(connection)
    if earlier is not None:
        failure.earlier, failure.earlier_transient = earlier.said, earlier.transient


def _failure_of(connection: Connection) -> _Failure | None:
    failure: _Failure | None = connection.info.get(_FAILURE)
    return None if failure is None or failure.transaction() is not connection.get_transaction() else failure
