"""A driver's error becomes the failure that `errors.py` has a name for; which one it is, its dialect knows."""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from shared.db.dialects import port_of_error
from shared.db.errors import DatabaseFailure


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
    port = port_of_error(driver_error)
    if port is None or not isinstance(driver_error, Exception):
        return None
    kind = port.failure(driver_error)
    if connection_lost:
        kind = port.lost(committing) or kind
    return kind(driver_error, statement, connection_lost)


def is_interruption(driver_error: BaseException | None) -> bool:
    """Whether a signal's handler raised in a function that the driver called, which says only that it failed."""
    port = port_of_error(driver_error)
    return port is not None and isinstance(driver_error, Exception) and port.is_interruption(driver_error)


def hide_row(driver_error: BaseException | None, wrapped: SQLAlchemyError | None) -> None:
    """Cut from the driver's error what it tells of the row.

    From the error itself and from SQLAlchemy's around it: both are chained to whatever is raised in their place, and
    printed with it. hide_parameters does not help against what the server says.
    """
    port = port_of_error(driver_error)
    if port is None or not isinstance(driver_error, Exception):
        return
    said = str(driver_error)
    kept = port.hide_row(driver_error)
    if kept == said:
        return
    if str(driver_error) != kept:
        driver_error.args = (kept,)
    if wrapped is not None:
        wrapped.args = tuple(part.replace(said, kept) if isinstance(part, str) else part for part in wrapped.args)


class named_errors:  # noqa: N801 # who calls it does not mind what it is
    """What the driver raises in the block, as SQLAlchemy and `errors.py` name it; `statement` is what was tried."""

    def __init__(self, connection: Connection, statement: str | None = None) -> None:
        self._connection, self._statement = connection, statement

    def __enter__(self) -> None:
        """Nothing yet."""

    def __exit__(self, kind: object, raised: BaseException | None, trace: object) -> None:
        if raised is not None:
            driver_error = self._connection.dialect.loaded_dbapi.Error
            # psycopg2 stumbles over a server that ends in the midst of COPY: its own error is the cause of Python's.
            error = raised.__cause__ if isinstance(raised, SystemError) else raised
            if isinstance(error, driver_error):
                # There is no public way to what SQLAlchemy does with it, the engine's own handler included.
                self._connection._handle_dbapi_exception(error, self._statement, None, None, None)
