"""Round trips to PostgreSQL that a session is spared: the BEGIN and COMMIT around a lone read, and needless pings."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

from psycopg2.extensions import STATUS_READY
from sqlalchemy import Engine, event

ALONE: Final[Mapping[str, Any]] = {"shared_db_alone": True}
"""Execution options of a SELECT that calls nothing: in a read-only session it may be a transaction of its own."""

# A second holds a bot's next few questions, and is far below the idle times after which networks forget connections.
_TRUSTED_SECONDS = 1.0


def spare(engine: Engine) -> None:
    """Have a PostgreSQL engine go without them."""
    event.listen(engine, "do_execute", _read_alone)
    if hasattr(select, "poll"):
        _ping_when_in_doubt(engine)


def _read_alone(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    """Send the SELECT as one message, which the server runs as one transaction, and a read-only one.

    Nothing is lost: under READ COMMITTED every statement has a snapshot of its own anyway. Whatever else a session
    does, raw SQL included, begins a transaction that lasts, and the reads that follow are part of it. So are those of
    a user under PostgreSQL's policies, since what confines him is set for a transaction.
    """
    options, driver = context.execution_options, cursor.connection
    if not (options.get("shared_db_alone") and driver.readonly) or driver.status != STATUS_READY:
        return False
    if driver.isolation_level is not None or driver.autocommit:
        return False
    if context.dialect.default_isolation_level != "READ COMMITTED":
        return False
    # While these are set in this order psycopg2 sends nothing: it would tell the server of `readonly` in autocommit.
    driver.readonly = None
    driver.autocommit = True
    try:
        cursor.execute(b"SET TRANSACTION READ ONLY; " + cursor.mogrify(statement, parameters))
    finally:
        if not driver.closed:
            driver.autocommit = False
            driver.readonly = True
    return True


def _ping_when_in_doubt(engine: Engine) -> None:
    """Of a connection that was in use a moment ago, ask the system and not the server whether it is alive."""
    dialect = engine.dialect
    ping = dialect.do_ping
    used: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    def note(connection: Any, record: Any) -> None:
        if connection is not None:
            used[connection] = time.monotonic()

    def alive(connection: Any) -> bool:
        since = used.get(connection)
        if since is None or time.monotonic() - since > _TRUSTED_SECONDS:
            return ping(connection)
        # A server that ends a connection says so, and one that does not has nothing to say.
        arrived = select.poll()
        arrived.register(connection.fileno(), select.POLLIN)
        return ping(connection) if arrived.poll(0) else True

    event.listen(engine, "checkin", note)
    dialect.do_ping = alive  # type: ignore[assignment,method-assign] # the engine's own dialect, which has no such event
