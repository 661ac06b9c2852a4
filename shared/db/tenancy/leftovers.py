"""What a user's raw SQL leaves on a pooled connection is gone before anybody else gets it.

Where PostgreSQL's policies confine a user's session, raw SQL passes. The role and the user end with the transaction;
temporary tables, cursors WITH HOLD, prepared statements, settings, advisory locks and LISTEN do not, and all users
share the connections, plain sessions too. So a connection on which a user's raw SQL ran is swept twice: before COMMIT,
inside of the transaction, since behind PgBouncer this is the last moment at which the server's connection is ours; and
when it goes back to the pool, which reaches what an error left, where the connection leads to the server itself.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any, Final

from sqlalchemy import Connection, Engine, event

from shared.db.dialects import POSTGRESQL
from shared.db.dialects import postgresql as dialect
from shared.db.dialects.port import TransactionStatus
from shared.db.driver_errors import named_errors
from shared.db.errors import TenantViolation, TransactionControlError
from shared.db.tenancy.row_security import ADOPTED
from shared.db.transaction_control import statements

SOILED = "shared_db_raw_sql"
# DISCARD ALL in pieces: it may not stand in a transaction. The driver itself asks for the date style, when it connects.
_SWEEP: Final = (
    "SET SESSION AUTHORIZATION DEFAULT; CLOSE ALL; UNLISTEN *; DEALLOCATE ALL; "
    "SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; RESET ALL; SET datestyle TO 'ISO'"
)


def watch(engine: Engine) -> None:
    """Have a PostgreSQL engine sweep its connections."""
    event.listen(engine, "rollback", sweep)
    event.listen(engine, "checkin", _reset)


def soil(connection: Connection) -> None:
    """Note that raw SQL may have run on the connection, unseen."""
    connection.info[SOILED] = True


def note(connection: Connection, cursor: Any, statement: str) -> None:
    """Before a raw statement is sent: `TenantViolation` for one that makes others wait, in a session under policies.

    What the compiler made of plain constructs leaves nothing behind, and confines itself.
    """
    adoption = getattr(cursor.connection, "adoption", None)
    if adoption is not None:
        adoption.now()  # whether it is confined must be known before it is sent
    user_id = connection.info.get(ADOPTED)
    if user_id is None:
        return
    if POSTGRESQL.status(cursor.connection) is TransactionStatus.NONE:
        # With the transaction the role has gone, and the statement would run as the login.
        raise TransactionControlError("something before this statement")
    soil(connection)
    if any(words[:1] == ["LOCK"] for words in statements(statement)):
        raise TenantViolation("LOCK TABLE", "a table", user_id, "every user's sessions would wait for this one")


def sweep(connection: Connection) -> None:
    """Before COMMIT or ROLLBACK: take away, inside of the transaction, what raw SQL may have left."""
    if connection.invalidated or SOILED not in connection.info:
        return
    driver: Any = connection.connection.dbapi_connection
    # In a transaction that an error has ended nothing more runs.
    if POSTGRESQL.status(driver) is TransactionStatus.OPEN:
        with named_errors(connection), closing(driver.cursor()) as cursor:
            cursor.execute(_SWEEP)


def _reset(connection: Any, record: Any) -> None:
    record.info.pop(ADOPTED, None)
    if isinstance(connection, dialect.Connection):
        connection.adoption = None
    if not record.info.pop(SOILED, False) or not isinstance(connection, dialect.Connection):
        return
    try:
        connection.autocommit = True
        with closing(connection.cursor()) as cursor:
            cursor.execute("DISCARD ALL")
            if not str(connection.get_parameter_status("DateStyle")).startswith("ISO"):
                cursor.execute("SET datestyle TO 'ISO'")
        connection.autocommit = False
    except dialect.PostgreSQL.error:
        record.close()  # the next one gets another
