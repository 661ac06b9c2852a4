"""What a fork does to open connections: the child never uses its parent's, and the parent's survive.

A socket that two processes read from gives each of them rows of the other. An inherited SQLite connection is worse:
its locks belong to the parent, yet the child's SQLite counts on them and takes none for what it opens next, and what
it commits there is gone when the parent closes the file.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import weakref
from typing import Any

from sqlalchemy import Engine, event

from shared.db.errors import ForkError

_FILE = "shared_db_file"
# A connection that was in use when its pool was given up for a fork.
_OUTLIVED = "shared_db_outlived"

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
# SQLAlchemy's records of open connections, each with the pool's proxy for who uses it now.
_records: weakref.WeakSet[Any] = weakref.WeakSet()
# Device and inode of the SQLite files that were in use by the parent when this process was forked.
_files_in_use: set[tuple[int, int]] = set()


def protect(engine: Engine) -> None:
    """Have `engine` open connections of its own in every child. Not for in-memory databases: a fork copies those."""
    _engines.add(engine)
    event.listen(engine, "connect", _note_connection)
    event.listen(engine, "checkin", _close_outlived)


def _note_connection(connection: Any, record: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        file = os.stat(connection.execute("PRAGMA database_list").fetchone()[2])
        record.info[_FILE] = file.st_dev, file.st_ino
        if record.info[_FILE] in _files_in_use:
            connection.close()
            raise ForkError(
                "this process was forked while a session was open on its SQLite file, and what it wrote there could "
                "get lost; fork between sessions, or start processes with multiprocessing's 'spawn'"
            )
    _records.add(record)


def _close_outlived(connection: Any, record: Any) -> None:
    # It comes back to a pool that nobody has any more, and would be left to the garbage collector.
    if record.info.pop(_OUTLIVED, False):
        record.close()


def _before_fork() -> None:
    for record in list(_records):
        if _FILE in record.info and record.in_use:
            record.info[_OUTLIVED] = True
    # Not one by one: another thread may be about to use what was idle a moment ago.
    for engine in list(_engines):
        if engine.dialect.name == "sqlite":
            engine.dispose()  # it opens again when asked


def _after_fork_in_child() -> None:
    for record in list(_records):
        if record.dbapi_connection is not None:
            if _FILE in record.info:
                _files_in_use.add(record.info[_FILE])
            # Never freed, not even at exit: closing it would roll back what the parent is doing.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(record.dbapi_connection))
            record.dbapi_connection = _ParentsConnection()
            user = record.fairy_ref and record.fairy_ref()
            if user is not None:
                user.dbapi_connection = record.dbapi_connection
    _records.clear()
    for engine in list(_engines):
        engine.dispose(close=False)


class _ParentsConnection:
    """Stands where an inherited connection was: giving up works, and nothing else does."""

    def rollback(self) -> None:
        """Nothing to do: the transaction is the parent's."""

    def close(self) -> None:
        """Nothing to do: the connection is the parent's."""

    def __getattr__(self, name: str) -> Any:
        raise ForkError(
            "this session was opened before the fork and belongs to the parent process; open one in the child"
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
