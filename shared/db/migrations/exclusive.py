"""One process at a time changes the schema, and none of them harms the data or holds up the bots."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from shared.db.database import DatabaseFactory
from shared.db.dialects import MYSQL, POSTGRESQL, SQLITE, PerDatabase, port_of
from shared.db.dialects.mysql import schema_lock
from shared.db.dialects.postgresql import lock_schema
from shared.db.engine.mysql import expect_ddl
from shared.db.errors import MigrationError, PermissionDeniedError
from shared.db.schema_version import bookkeeping


@contextmanager
def exclusive_connection(db: DatabaseFactory, lock_timeout: float) -> Iterator[Connection]:
    """A connection of its own, on which nobody else changes the schema until the block ends.

    On SQLite the block is one transaction, committed only if no row has been lost and every foreign key still
    points at one. On PostgreSQL and MariaDB the block commits by itself; a statement that waits longer than
    `lock_timeout` seconds for a table (MariaDB: whole ones) raises `DatabaseLockedError`.
    """
    with db.engine.connect() as connection, _EXCLUSIVE.of(connection)(connection, lock_timeout):
        yield connection


@contextmanager
def _exclusive_on_sqlite(connection: Connection, lock_timeout: float) -> Iterator[None]:
    with _without_foreign_keys(connection), connection.begin():
        before = _row_counts(connection)
        yield
        _check_rows(connection, before)


@contextmanager
def _exclusive_on_postgresql(connection: Connection, lock_timeout: float) -> Iterator[None]:
    _refuse_pooler(connection)
    try:
        lock_schema(connection, "pg_try_advisory_lock")
        # Whoever waits for a table makes every later reader wait too.
        timeout = f"{int(lock_timeout * 1000)}ms"
        connection.execute(text("SELECT set_config('lock_timeout', :timeout, false)"), {"timeout": timeout})
        connection.commit()
        yield
    finally:
        # Not back to the pool: the lock and the timeout end with the server's session.
        connection.invalidate()


@contextmanager
def _exclusive_on_mysql(connection: Connection, lock_timeout: float) -> Iterator[None]:
    seconds = {"seconds": max(1, math.ceil(lock_timeout))}
    try:
        with schema_lock(connection):
            expect_ddl(connection)
            connection.execute(text("SET SESSION lock_wait_timeout = :seconds"), seconds)
            connection.commit()
            yield
    finally:
        connection.invalidate()  # as above


_EXCLUSIVE: PerDatabase[Callable[[Connection, float], AbstractContextManager[None]]] = PerDatabase(
    "migrations",
    {SQLITE: _exclusive_on_sqlite, POSTGRESQL: _exclusive_on_postgresql, MYSQL: _exclusive_on_mysql},
)


def lock_holders(db: DatabaseFactory) -> str:
    """Who holds locks on the tables of the schema: for the message of a migration that waited in vain.

    Without the text of their statements, which may hold secrets. Nobody where the server does not say it.
    """
    with db.engine.connect() as connection:
        query = _HOLDERS.of(connection)
        try:
            holders = connection.execute(text(query)).all() if query else []
        except PermissionDeniedError:
            return ""  # MariaDB tells those alone that may see every process
    return "; ".join(f"process {row.pid} ({row.application_name}, {row.state}, for {row.age})" for row in holders)


_HOLDERS: PerDatabase[str] = PerDatabase(
    "locks",
    {
        SQLITE: "",
        POSTGRESQL: """
        SELECT DISTINCT a.pid, a.application_name, a.state, age(clock_timestamp(), a.xact_start) AS age
        FROM pg_locks l
        JOIN pg_class c ON c.oid = l.relation AND c.relnamespace = to_regnamespace(quote_ident(current_schema()))
        JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.granted AND c.relkind IN ('r', 'p') AND l.pid <> pg_backend_pid()
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        """,
        # Who has a transaction open, on whichever tables.
        MYSQL: """
        SELECT p.id AS pid, p.user AS application_name, lower(p.command) AS state,
          concat(timestampdiff(SECOND, t.trx_started, now()), ' s') AS age
        FROM information_schema.innodb_trx t
        JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id
        WHERE p.db = database() AND p.id <> connection_id()
        """,
    },
)


def standbys_readers(db: DatabaseFactory) -> str | None:
    """Who reads on a PostgreSQL primary's standbys and holds up there what a migration does; None if nobody does.

    The standby of `replica_url` is asked; of others no more can be told than that they are there.
    """
    with db.engine.connect() as connection:
        standbys = connection.scalar(_STANDBYS) if port_of(connection) is POSTGRESQL else 0
    if not standbys:
        return None
    with db.get_session(read_only=True, max_staleness=math.inf) as session:
        connection = Session.connection(session)
        asked = bool(connection.scalar(text("SELECT pg_is_in_recovery()")))
        readers = connection.execute(_READERS).all() if asked else []
        delay = connection.scalar(text("SHOW max_standby_streaming_delay")) if asked else "30s unless set otherwise"
    who = [f"process {row.pid} ({row.application_name}, for {row.age})" for row in readers]
    if standbys > asked:
        who.append(f"whoever pg_stat_activity shows on {standbys - asked} standbys that this process does not know")
    return f"{'; '.join(who)} (max_standby_streaming_delay there: {delay})" if who else None


# A program that keeps the log, such as pg_receivewal, replays nothing. Without privileges all but the number is NULL.
_STANDBYS = text("SELECT count(*) FROM pg_stat_replication WHERE state IS NULL OR replay_lsn IS NOT NULL")
_READERS = text("""
    SELECT pid, application_name, age(clock_timestamp(), xact_start) AS age FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL ORDER BY xact_start
""")


def _refuse_pooler(connection: Connection) -> None:
    # PgBouncer and its like give every transaction another session of the server, and none of them ever ends: the
    # lock would be held for good by whichever got it.
    driver: Any = connection.connection.dbapi_connection
    if driver.get_backend_pid() != connection.scalar(text("SELECT pg_backend_pid()")):
        raise MigrationError(
            "this address leads to a connection pooler (PgBouncer), and a migration needs one session of the server "
            "from beginning to end; give it the server's own host and port"
        )


@contextmanager
def _without_foreign_keys(connection: Connection) -> Iterator[None]:
    # SQLite changes a table by making a new one and dropping the old: with foreign keys on, that deletes every row
    # below it and says nothing. The pragma only works outside of a transaction, hence before BEGIN.
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.execute("PRAGMA foreign_keys=OFF")
    if driver.execute("PRAGMA foreign_keys").fetchone()[0]:
        raise MigrationError("a session on this in-memory database is still open; close it before migrating")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def _row_counts(connection: Connection) -> dict[str, int]:
    quoted = connection.dialect.identifier_preparer.quote
    ignored = bookkeeping(connection)
    return {
        table: connection.execute(text(f"SELECT count(*) FROM {quoted(table)}")).scalar_one()
        for table in port_of(connection).tables(connection)
        if table not in ignored
    }


def _check_rows(connection: Connection, before: dict[str, int]) -> None:
    problems = [
        f"{table} had {before[table]} rows and would have {count}"
        for table, count in _row_counts(connection).items()
        if count < before.get(table, 0)  # what a step adds is its own business
    ]
    broken = connection.execute(text("PRAGMA foreign_key_check")).all()
    problems += sorted({f"{row.table} has rows that name no row of {row.parent}" for row in broken})
    if problems:
        raise MigrationError(f"undone, the database is as it was: {'; '.join(problems)}")
