"""Round trips to PostgreSQL that a session is spared.

The adoption of a user's role, the BEGIN and COMMIT around a lone read, and needless pings.
"""

from __future__ import annotations

import select
import time
from typing import Any

from sqlalchemy import Engine, event

from shared.db.dialects.postgresql import (
    STATUS_READY,
    TRANSACTION_STATUS_INERROR,
    Adoption,
    Cursor,
    DivisionByZero,
    InsufficientPrivilege,
    InvalidParameterValue,
)
from shared.db.tenancy.confined_sql import ALONE

# A second holds a bot's next few questions, and is far below the idle times after which networks forget connections.
_TRUSTED_SECONDS = 1.0


def spare(engine: Engine) -> None:
    """Install the savings that an engine has; its connections' cursors have the other."""
    event.listen(engine, "do_execute", _read_alone)
    if hasattr(select, "poll"):
        _ping_when_in_doubt(engine)


class AdoptingCursor(Cursor):
    """The driver's cursor, whose first statement in a user's transaction adopts the role, whoever sends it and how.

    In one message with it, if it can be: then it costs no round trip. Whatever fails to be adopted is not sent.
    """

    connection: Any

    def execute(self, query: Any, vars: Any = None) -> None:
        """As the driver's."""
        driver = self.connection
        if driver.adoption is not None and self._carries(driver, driver.adoption, query, vars):
            return
        super().execute(query, vars)

    def _carries(self, driver: Any, adoption: Adoption, query: Any, vars: Any) -> bool:
        """Send the adoption with a statement, or before it; False if the statement is still to be sent."""
        front = None
        if self.name is None and driver.status == STATUS_READY and not driver.autocommit:
            front = adoption.in_front(self)
        if front is None:
            self._adopt()
            return False
        message = front + self.mogrify(query, vars)
        try:
            super().execute(message)
        except (DivisionByZero, InsufficientPrivilege, InvalidParameterValue):
            # The policies are gone by now, or the role is, or the statement is refused: which of them, is found out in
            # a transaction anew. Nothing is lost, since this was the first message of it.
            driver.rollback()
            adoption.now()
            return False
        adoption.took_place()
        return True

    def _adopt(self) -> None:
        adoption = self.connection.adoption
        # In a transaction that an error has ended, nothing more runs, whatever it would be confined to.
        if adoption is not None and self.connection.get_transaction_status() != TRANSACTION_STATUS_INERROR:
            adoption.now()

    def executemany(self, query: Any, vars_list: Any) -> None:
        """As the driver's."""
        self._adopt()
        super().executemany(query, vars_list)

    def callproc(self, procname: Any, parameters: Any = None) -> Any:
        """As the driver's."""
        self._adopt()
        return super().callproc(procname, parameters)

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        """As the driver's."""
        self._adopt()
        super().copy_expert(sql, file, size)

    def copy_from(self, *args: Any, **options: Any) -> None:
        """As the driver's."""
        self._adopt()
        super().copy_from(*args, **options)

    def copy_to(self, *args: Any, **options: Any) -> None:
        """As the driver's."""
        self._adopt()
        super().copy_to(*args, **options)


def _stands_alone(context: Any, driver: Any) -> bool:
    """Whether a statement can be its own transaction: one that may be, where none has begun that lasts."""
    if context is None or not context.execution_options.get(ALONE) or driver.status != STATUS_READY:
        return False
    if not driver.readonly or driver.isolation_level is not None or driver.autocommit:
        return False
    return bool(context.dialect.default_isolation_level == "READ COMMITTED")


def _read_alone(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    """Send the SELECT as one message, which the server runs as one transaction, and a read-only one.

    Nothing is lost: under READ COMMITTED every statement has a snapshot of its own anyway. What confines a user under
    PostgreSQL's policies is in the message. Whatever else a session does, raw SQL included, begins a transaction that
    lasts, and the reads that follow are part of it.
    """
    driver = cursor.connection
    if not _stands_alone(context, driver):
        return False
    adoption = driver.adoption
    adopting = b"" if adoption is None else adoption.unasked(cursor)
    # While these are set in this order psycopg2 sends nothing: it would tell the server of `readonly` in autocommit.
    driver.readonly = None
    driver.autocommit = True
    try:
        # Past what would adopt the role for the rest of a transaction: it ends with this message.
        Cursor.execute(cursor, b"SET TRANSACTION READ ONLY; " + adopting + cursor.mogrify(statement, parameters))
    except (InsufficientPrivilege, InvalidParameterValue):
        if adoption is None:
            raise
    else:
        return True
    finally:
        if not driver.closed:
            driver.autocommit = False
            driver.readonly = True
    # The policies are gone by now, or the role is: which of them, the statement that is meant for it finds out.
    adoption.now()
    return False


def _ping_when_in_doubt(engine: Engine) -> None:
    """Skip the ping of a connection used within the last second, unless its socket has something to read."""
    dialect = engine.dialect
    ping = dialect.do_ping

    def alive(connection: Any) -> bool:
        if time.monotonic() - connection.last_used > _TRUSTED_SECONDS:
            return ping(connection)
        # A server that ends a connection says so, and one that does not has nothing to say.
        arrived = select.poll()
        arrived.register(connection.fileno(), select.POLLIN)
        return ping(connection) if arrived.poll(0) else True

    dialect.do_ping = alive  # type: ignore[assignment,method-assign] # the engine's own dialect, which has no such event
