"""The engine of one database: how it connects, how a transaction begins, and what its failures are called.

What differs between SQLite and PostgreSQL in connecting and in beginning a transaction is here and nowhere else.
"""

from __future__ import annotations

import math
import sqlite3
import time
import weakref
from typing import Any

import psycopg2.extensions
from psycopg2.errors import ReadOnlySqlTransaction
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import PoolProxiedConnection, QueuePool, StaticPool

from shared.db import database_file, forking, round_trips, same_answers, transaction_control, write_lock
from shared.db.column_types import register_sqlite_functions
from shared.db.database_url import is_secret
from shared.db.driver_errors import hide_row, is_interruption, named_errors, typed_failure
from shared.db.errors import PermissionDeniedError, PoolExhaustedError, ServerReadOnlyError
from shared.db.hidden import HiddenText
from shared.db.numbering import numbering_error
from shared.db.ranges import sql_functions
from shared.db.settings import DatabaseSettings
from shared.db.tenancy import confined_sql, leftovers, row_security
from shared.db.transactions import note_failure, refuse_aborted, refuse_aborted_savepoint

_READ_ONLY = "shared_db_read_only"
_COMMITTING = "shared_db_committing"
_JOURNAL_UNKNOWN = "shared_db_journal_unknown"
_CONNECT_TIMEOUT = 10
# A server that is silent is given up after half a minute, between questions (keepalives) and in the midst of one (what
# was sent is not acknowledged). The system's own two hours are longer than anybody watches a bot.
_SILENCE = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}


def make_engine(settings: DatabaseSettings, folder: str, url: URL | None = None) -> Engine:
    """An engine for `settings`, or for another `url` with them. Nothing is opened before it is needed, nor made.

    A relative SQLite path counts from `folder`.
    """
    url = url or settings.url
    # hide_parameters: neither echo_sql nor an error text may show a secret that is being stored.
    common: dict[str, Any] = {"echo": settings.echo_sql, "hide_parameters": True}
    pool: dict[str, Any] = {
        "poolclass": _SQLitePool if settings.is_sqlite else _Pool,
        "pool_size": settings.pool_size,
        "max_overflow": settings.max_overflow,
        "pool_timeout": settings.pool_timeout,
    }
    if not settings.is_sqlite:
        hidden = {key: value for key, value in url.query.items() if is_secret(key)}
        engine = create_engine(
            url.difference_update_query(hidden),
            **common,
            **pool,
            pool_recycle=settings.pool_recycle,
            pool_pre_ping=settings.pool_pre_ping,
            connect_args={
                **_unless_in_url(
                    url, application_name=settings.application_name, connect_timeout=_CONNECT_TIMEOUT, **_SILENCE
                ),
                # Whatever the URL, the environment or the database prefers: COPY writes UTF-8, and what a session in
                # another encoding cannot decode it cannot read back.
                "client_encoding": "utf8",
                "connection_factory": _PostgreSQLConnection,
                "cursor_factory": transaction_control.Cursor,
                # Out of the URL, which the engine's repr shows, or in place of its part, which a traceback with its
                # frames' variables would show.
                **{key: HiddenText(value if isinstance(value, str) else value[-1]) for key, value in hidden.items()},
                **({} if url.password is None else {"password": HiddenText(url.password)}),
            },
        )
        event.listen(engine, "do_connect", _connect_postgresql)
        event.listen(engine, "begin", _begin_postgresql)
        event.listen(engine, "checkin", _write_again)
        round_trips.spare(engine)
        leftovers.watch(engine)
        forking.protect(engine)
    elif settings.is_memory:
        engine = create_engine(url, **common, poolclass=_MemoryPool, connect_args={"check_same_thread": False})
        event.listen(engine, "connect", _on_connect_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(
            database_file.located(url, folder),
            **common,
            **pool,
            connect_args={"check_same_thread": False} | _unless_in_url(url, timeout=settings.sqlite_busy_timeout),
        )
        forking.protect(engine)
        database_file.watch(engine)
        event.listen(engine, "connect", _on_connect_sqlite)
        event.listen(engine, "connect", _on_connect_sqlite_file)
        event.listen(engine, "begin", _begin_sqlite)
    transaction_control.watch(engine)
    event.listen(engine, "release_savepoint", refuse_aborted_savepoint)
    event.listen(engine, "commit", _before_commit)
    event.listen(engine, "handle_error", _name_failure)
    same_answers.unify(engine)
    confined_sql.confine(engine)
    return engine


def make_probe(settings: DatabaseSettings, folder: str, timeout: float) -> Engine:
    """An engine to look around with: it creates no file, writes nothing, and waits `timeout` seconds at most.

    Not for in-memory databases, which nobody sees from outside.
    """
    url = settings.url
    if settings.is_sqlite:
        url = database_file.as_uri(url, folder).update_query_dict({"mode": "ro", "timeout": str(timeout)})
    else:
        # The driver takes a second for two.
        url = url.update_query_dict({"connect_timeout": str(max(2, math.ceil(timeout)))})
    return as_read_only(make_engine(settings, folder, url))


def as_read_only(engine: Engine) -> Engine:
    """The same engine, whose transactions cannot write."""
    return engine.execution_options(**{_READ_ONLY: True})


def _unless_in_url(url: URL, **options: Any) -> dict[str, Any]:
    """The driver's options, without those that the URL's query sets: that was written for this one database."""
    return {key: value for key, value in options.items() if key not in url.query}


class _PostgreSQLConnection(psycopg2.extensions.connection):
    """The driver's connection, which SQLAlchemy's pool logs: its own repr hides the password, and no other secret."""

    def __repr__(self) -> str:
        return f"<PostgreSQL connection {id(self):#x}, closed: {self.closed}>"

    __str__ = __repr__  # the driver has one of its own, which says as much


def _connect_postgresql(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> Any:
    try:
        return dialect.connect(*arguments, **options)
    except dialect.loaded_dbapi.Error as error:
        # Without the driver's frames, one of which has the password among its variables.
        raise error.with_traceback(None)  # noqa: B904 # the same error


def _on_connect_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    # The driver must not begin transactions by itself: it does so only before a write, deferred, and then a
    # read-modify-write loses updates (889 of 960 with 16 processes). `_begin_sqlite` does it.
    connection.isolation_level = None
    register_sqlite_functions(connection)
    sql_functions.register(connection)
    same_answers.register(connection)
    connection.execute("PRAGMA foreign_keys=ON")
    # Deleted secrets are overwritten, not just unlinked.
    connection.execute("PRAGMA secure_delete=ON")


def _on_connect_sqlite_file(connection: sqlite3.Connection, record: Any) -> None:
    _read_schema(connection)
    record.info[_JOURNAL_UNKNOWN] = True
    # After a large transaction the log would keep its size for good; so a later commit cuts it to this.
    connection.execute(f"PRAGMA journal_size_limit={database_file.USUAL_LOG}")
    # NORMAL may lose the last commits when the power fails.
    connection.execute("PRAGMA synchronous=FULL")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    # WAL: readers and the writer do not block each other. Asked first, since switching takes an exclusive lock.
    # mmap_size is left alone: with it, SQLite's rare WAL-reset race has corrupted files.
    deadline = time.monotonic() + connection.execute("PRAGMA busy_timeout").fetchone()[0] / 1000
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            # Where the file system has no shared memory SQLite keeps the mode it had: slower, as safe.
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            # Several processes that open a new file at once switch at once, and SQLite does not wait here.
            if error.sqlite_errorname == "SQLITE_READONLY":
                break
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_postgresql(connection: Connection) -> None:
    # In place of SQLAlchemy's own option `postgresql_readonly`, whose handling takes as long as a round trip.
    if connection.get_execution_options().get(_READ_ONLY):
        driver: Any = connection.connection.dbapi_connection
        driver.readonly = True  # psycopg2 sends BEGIN READ ONLY before the first statement


def _is_read_only(connection: Connection) -> bool:
    driver: Any = connection.connection.dbapi_connection
    return bool(connection.get_execution_options().get(_READ_ONLY) or driver.readonly)


def _write_again(connection: Any, record: Any) -> None:
    # Not one that was lost, nor one of the parent's after a fork.
    if isinstance(connection, psycopg2.extensions.connection) and not connection.closed and connection.readonly:
        connection.readonly = None


def _read_schema(connection: sqlite3.Connection) -> None:
    """Have SQLite read the schema, and name one whose text is damaged: the driver cannot even decode what it says."""
    try:
        connection.execute("PRAGMA journal_mode")
    except UnicodeDecodeError:
        pass  # raised below and without this one, which has the bytes
    else:
        return
    damaged = sqlite3.DatabaseError("malformed database schema")
    damaged.sqlite_errorcode, damaged.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
    raise damaged


def _begin_sqlite(connection: Connection) -> None:
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection)
    if driver.in_transaction:
        return  # another session on the same in-memory database has begun already
    read_only = bool(connection.get_execution_options().get(_READ_ONLY))
    if read_only != connection.info.get(_READ_ONLY, False):
        driver.execute(f"PRAGMA query_only={'ON' if read_only else 'OFF'}")
        connection.info[_READ_ONLY] = read_only
    if not read_only:
        write_lock.refuse_self_deadlock(connection)
    # Not when connecting: who only reads leaves the file as it is.
    if not read_only and _JOURNAL_UNKNOWN in connection.info:
        with named_errors(connection):
            _switch_to_wal(driver)
        del connection.info[_JOURNAL_UNKNOWN]
    # IMMEDIATE takes the write lock first, under the busy timeout. A transaction that reads first and asks for
    # the lock later is refused at once, timeout or not, when somebody has written in between.
    # By the driver itself: SQLAlchemy's way to it takes as long as a question.
    begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
    with named_errors(connection, begin):
        driver.execute(begin)
    if not read_only:
        write_lock.note(connection)
    try:
        database_file.check(connection)  # now, since the wait for the lock may have been long
    except BaseException:
        driver.execute("ROLLBACK")
        raise


def _before_commit(connection: Connection) -> None:
    refuse_aborted(connection)
    database_file.check(connection)
    connection.info[_COMMITTING] = weakref.ref(connection.get_transaction())


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
    if isinstance(error, ReadOnlySqlTransaction) and not _is_read_only(connection):
        context.is_disconnect = True  # and with it every connection that was made before now
        return ServerReadOnlyError(error, context.statement, True)
    transaction = connection.get_transaction()
    committing = connection.info.get(_COMMITTING, lambda: None)() is transaction is not None
    writing = not connection.get_execution_options().get(_READ_ONLY)
    failure = numbering or typed_failure(
        error, context.statement, connection_lost=context.is_disconnect, committing=committing and writing
    )
    if not committing and not context.is_disconnect:
        note_failure(connection, failure, error)
    if isinstance(failure, PermissionDeniedError) and connection.info.get(row_security.ADOPTED):
        failure.remedy = row_security.REMEDY_FOR_USERS
    return row_security.violation_of(context) or failure


class _Pool(forking.ForkAwarePool, QueuePool):
    """A pool that says, when nothing comes free, what to do about it."""

    _sqla_logger_namespace = "sqlalchemy.pool.impl.QueuePool"  # where everybody looks for what a pool logs

    def connect(self) -> PoolProxiedConnection:
        """A connection; `PoolExhaustedError` after the wait."""
        try:
            return super().connect()
        except PoolTimeoutError as error:
            raise PoolExhaustedError(
                f"no connection of this process came free ({error.args[0]}); end sessions sooner (a `with` block for "
                "each, none across a network call), or raise GRIDBOT_DB_POOL_SIZE or GRIDBOT_DB_MAX_OVERFLOW"
            ) from error


class _SQLitePool(forking.SQLitePool, _Pool):
    pass


class _MemoryPool(forking.SQLitePool, StaticPool):
    _sqla_logger_namespace = "sqlalchemy.pool.impl.StaticPool"
