"""How a connection's transaction stands, by its driver's own account; no server is asked."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import closing
from typing import Any, NamedTuple, NoReturn

from sqlalchemy import Connection

from shared.db.dialects import Port, port_of
from shared.db.dialects.port import TransactionStatus
from shared.db.errors import DatabaseFailure, TransactionAbortedError

_FAILURE = "shared_db_failure"


def transaction_status(connection: Connection) -> TransactionStatus:
    """How the transaction of a connection stands, as its driver knows."""
    return port_of(connection).status(connection.connection.dbapi_connection)


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
    if not port_of(connection).begin_again(connection.connection.dbapi_connection, error):
        return  # undone is the statement alone
    if isinstance(failure, TransactionAbortedError):
        _tell_earlier(connection, failure)
        return
    said = str(error).strip().partition("\n")[0]
    connection.info[_FAILURE] = _Failure(weakref.ref(transaction), said, failure is not None and failure.transient)


def refuse_aborted(port: Port, connection: Connection, info: Mapping[Any, Any]) -> None:
    """Before COMMIT: `TransactionAbortedError` where the database has given the transaction up, which is rolled back.

    PostgreSQL answers COMMIT by ROLLBACK then, and SQLite has nothing to commit, both without an error.
    """
    driver: Any = connection.connection.dbapi_connection
    if port.rolls_back_statements:
        aborted = _FAILURE in info and _failure_of(connection) is not None
    else:
        aborted = port.status(driver) is TransactionStatus.ABORTED
    if aborted:
        driver.rollback()
        _refuse(connection)


def refuse_aborted_savepoint(connection: Connection, name: str, context: Any) -> None:
    """The same before RELEASE of a savepoint: undone is what it holds, and what surrounds it can go on."""
    driver: Any = connection.connection.dbapi_connection
    if transaction_status(connection) is TransactionStatus.ABORTED:
        with closing(driver.cursor()) as cursor:
            cursor.execute(f"ROLLBACK TO SAVEPOINT {connection.dialect.identifier_preparer.quote(name)}")
        _refuse(connection)


def _refuse(connection: Connection) -> NoReturn:
    cause = port_of(connection).aborted()
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
