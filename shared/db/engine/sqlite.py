"""How SQLite connects and begins: WAL, foreign keys, and a write lock that is taken first."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import StaticPool

from shared.db import database_file, forking, sqlite_functions, write_lock
from shared.db.dialects.sqlite import coded
from shared.db.driver_errors import named_errors
from shared.db.engine.options import READ_ONLY, Pool, Request, only_reads
from shared.db.same_answers import sqlite as same_answers

_JOURNAL_UNKNOWN = "shared_db_journal_unknown"


def make(request: Request) -> Engine:
    """An engine for a file, or for a database in memory."""
    connect_args: dict[str, Any] = {"check_same_thread": False}
    if request.settings.is_memory:
        engine = create_engine(request.url, **request.common, poolclass=_MemoryPool, connect_args=connect_args)
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", _begin)
        return engine
    engine = create_engine(
        database_file.located(request.url, request.folder),
        **request.common,
        **request.pool,
        poolclass=_FilePool,
        connect_args=connect_args | request.unless_in_url(timeout=request.settings.sqlite_busy_timeout),
    )
    forking.protect(engine)
    database_file.watch(engine)
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "connect", _on_connect_to_file)
    event.listen(engine, "begin", _begin)
    return engine


def probing(url: URL, folder: str, timeout: float) -> URL:
    """The URL by which to look at the file, which makes none."""
    return database_file.as_uri(url, folder).update_query_dict({"mode": "ro", "timeout": str(timeout)})


def _on_connect(connection: sqlite3.Connection, record: Any) -> None:
    # The driver must not begin transactions by itself: it does so only before a write, deferred, and then a
    # read-modify-write loses updates (889 of 960 with 16 processes). `_begin` does it.
    connection.isolation_level = None
    sqlite_functions.register(connection)
    same_answers.register(connection)
    connection.execute("PRAGMA foreign_keys=ON")
    # Deleted secrets are overwritten, not just unlinked.
    connection.execute("PRAGMA secure_delete=ON")


def _on_connect_to_file(connection: sqlite3.Connection, record: Any) -> None:
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
            time.sleep(0.01)  # the busy timeout does not hold for a change of the journal's mode


def _read_schema(connection: sqlite3.Connection) -> None:
    """Have SQLite read the schema, and name one whose text is damaged: the driver cannot even decode what it says."""
    try:
        connection.execute("PRAGMA journal_mode")
    except UnicodeDecodeError:
        pass  # raised below and without this one, which has the bytes
    else:
        return
    raise coded(sqlite3.DatabaseError("malformed database schema"), "SQLITE_CORRUPT")


def _begin(connection: Connection) -> None:
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection)
    if driver.in_transaction:
        return  # another session on the same in-memory database has begun already
    info, read_only = connection.info, only_reads(connection)
    if read_only != info.get(READ_ONLY, False):
        driver.execute(f"PRAGMA query_only={'ON' if read_only else 'OFF'}")
        info[READ_ONLY] = read_only
    # In memory sessions share one connection, and so the lock.
    to_write = None if read_only else database_file.file_under(info)
    if to_write is not None:
        write_lock.refuse_self_deadlock(to_write)
        # Not when connecting: who only reads leaves the file as it is.
        if _JOURNAL_UNKNOWN in info:
            with named_errors(connection):
                _switch_to_wal(driver)
            del info[_JOURNAL_UNKNOWN]
    # IMMEDIATE takes the write lock first, under the busy timeout. A transaction that reads first and asks for
    # the lock later is refused at once, timeout or not, when somebody has written in between.
    # By the driver itself: SQLAlchemy's way to it takes as long as a question.
    begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
    with named_errors(connection, begin):
        driver.execute(begin)
    if to_write is not None:
        write_lock.note(connection, to_write)
    try:
        database_file.check(info)  # now, since the wait for the lock may have been long
    except BaseException:
        driver.execute("ROLLBACK")
        raise


def became_read_only(error: BaseException, connection: Connection) -> bool:
    """Never: there is no server that could."""
    return False


class _FilePool(forking.SQLitePool, Pool):
    pass


class _MemoryPool(forking.SQLitePool, StaticPool):
    _sqla_logger_namespace = "sqlalchemy.pool.impl.StaticPool"
