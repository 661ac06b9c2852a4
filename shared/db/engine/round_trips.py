"""Round trips to PostgreSQL that a session is spared: the BEGIN and COMMIT around a lone read, and needless pings."""

from __future__ import annotations

import select
import time
from typing import Any

from sqlalchemy import Connection, Engine, event

from shared.db.dialects.postgresql import STATUS_READY, InsufficientPrivilege, InvalidParameterValue
from shared.db.tenancy import row_security
from shared.db.tenancy.confined_sql import ALONE
from shared.db.tenancy.session_scope import adopt_now, adoption_postponed

# A second holds a bot's next few questions, and is far below the idle times after which networks forget connections.
_TRUSTED_SECONDS = 1.0


def spare(engine: Engine) -> None:
    """Install both savings on a PostgreSQL engine."""
    event.listen(engine, "before_cursor_execute", _adopt_first, retval=True)  # SQLAlchemy would wrap it otherwise
    event.listen(engine, "do_execute", _read_alone)
    if hasattr(select, "poll"):
        _ping_when_in_doubt(engine)


def _stands_alone(context: Any, driver: Any) -> bool:
    """Whether a statement can be its own transaction: one that may be, where none has begun that lasts."""
    if context is None or not context.execution_options.get(ALONE) or driver.status != STATUS_READY:
        return False
    if not driver.readonly or driver.isolation_level is not None or driver.autocommit:
        return False
    return bool(context.dialect.default_isolation_level == "READ COMMITTED")


def _adopt_first(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> tuple[str, Any]:
    if adoption_postponed(connection) is not None and not _stands_alone(context, cursor.connection):
        adopt_now(connection)
    return statement, parameters


def _read_alone(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    """Send the SELECT as one message, which the server runs as one transaction, and a read-only one.

    Nothing is lost: under READ COMMITTED every statement has a snapshot of its own anyway. What confines a user under
    PostgreSQL's policies is in the message. Whatever else a session does, raw SQL included, begins a transaction that
    lasts, and the reads that follow are part of it.
    """
    driver = cursor.connection
    if not _stands_alone(context, driver):
        return False
    connection: Connection = context.root_connection
    adoption = adoption_postponed(connection)
    adopting = b"" if adoption is None else row_security.adopting(cursor, *adoption)
    # While these are set in this order psycopg2 sends nothing: it would tell the server of `readonly` in autocommit.
    driver.readonly = None
    driver.autocommit = True
    try:
        cursor.execute(b"SET TRANSACTION READ ONLY; " + adopting + cursor.mogrify(statement, parameters))
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
    adopt_now(connection)
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
