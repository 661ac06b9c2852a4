"""The file of an SQLite database: made private, and watched, so that nothing is written into one that is gone.

SQLite goes on in a file that somebody deleted or replaced, and every commit succeeds and is lost. (It notices only
without a write-ahead log.) So an engine remembers which file it opened and looks at each transaction whether that is
the one that still stands at its path.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from sqlalchemy import URL, Engine, event

from shared.db.dialects.sqlite import coded
from shared.db.errors import DatabaseMissingError, DatabaseMovedError

# Bytes of a write-ahead log beyond which something is unusual; a thousand pages, 4 MB, are folded in at a time.
USUAL_LOG = 64 << 20

_OPENED = "shared_db_opened_file"
_ANOTHER = "another file stands at its path"


class OpenedFile(NamedTuple):
    """A file by its absolute path, and by what tells it from another one that stands there later."""

    path: str
    file: tuple[int, int]
    """Device and inode."""


def located(url: URL, folder: str) -> URL:
    """The URL with an absolute path."""
    assert url.database is not None
    if url.database.startswith("file:"):
        return url  # a SQLite URI says itself where and how to open
    return url.set(database=absolute(url.database, folder))


def make(url: URL) -> None:
    """Make the folder and the file, readable by its owner alone, unless they are there."""
    path = _path_of(url)
    if path is None:
        return
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # Created here, since SQLite would give it the umask's mode; -wal and -shm take over the file's. Never opened
        # if it is there already: closing it would drop every lock that this process holds on it, and another process
        # would delete the write-ahead log under our open connections.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError:
        pass  # it is there; or connecting says what is wrong with the path, as SQLite sees it and with a remedy


def require(url: URL) -> None:
    """Raise `DatabaseMissingError` if there is no file: SQLite would make an empty one."""
    path = _path_of(url)
    if path is None or os.path.exists(path):
        return
    cause = coded(sqlite3.OperationalError(os.strerror(errno.ENOENT)), "SQLITE_CANTOPEN")
    raise DatabaseMissingError(cause) from cause


def _path_of(url: URL) -> str | None:
    return None if url.database is None or url.database.startswith("file:") else url.database


def absolute(path: str, folder: str) -> str:
    """The path of a database file, a relative one from `folder` on."""
    return os.path.abspath(os.path.join(folder, os.path.expanduser(path)))


def path_of(url: URL) -> str:
    """Where the file of a prepared URL is, also of a SQLite URI."""
    assert url.database is not None
    if url.database.startswith("file:"):
        return os.path.abspath(unquote(urlsplit(url.database).path))
    return url.database


def as_uri(url: URL, folder: str) -> URL:
    """The same database as a SQLite URI, which can say how to open it."""
    assert url.database is not None
    if url.database.startswith("file:"):
        return url
    return url.set(database=f"file:{quote(absolute(url.database, folder))}").update_query_dict({"uri": "true"})


def watch(engine: Engine) -> None:
    """Have `engine` refuse, with `DatabaseMovedError`, every transaction in another file than the one it opened first.

    A new connection too: it would find, or create, another database than the ones that are open.
    """
    first: list[OpenedFile] = []

    def before_connect(dialect: Any, record: Any, arguments: Any, options: Any) -> None:
        if first:
            refuse_another(first[0])

    def after_connect(connection: sqlite3.Connection, record: Any) -> None:
        opened = opened_file(connection)
        record.info[_OPENED] = opened
        if not first:
            first.append(opened)
        if opened != first[0]:
            connection.close()
            raise _moved(_ANOTHER)

    event.listen(engine, "do_connect", before_connect)
    event.listen(engine, "connect", after_connect)


def check(info: Mapping[Any, Any]) -> None:
    """Raise `DatabaseMovedError` if the file under the connection of this `info` is no longer the one at its path."""
    opened = info.get(_OPENED)
    if opened is not None:
        refuse_another(opened)


def file_under(info: Mapping[Any, Any]) -> tuple[int, int] | None:
    """What tells the file under the connection of this `info` from every other; None for a database in memory."""
    opened = info.get(_OPENED)
    return None if opened is None else opened.file


def opened_file(connection: sqlite3.Connection) -> OpenedFile:
    """The main file of a connection."""
    path = connection.execute("PRAGMA database_list").fetchone()[2]
    there = os.stat(path)
    return OpenedFile(path, (there.st_dev, there.st_ino))


def refuse_another(opened: OpenedFile) -> None:
    """Raise `DatabaseMovedError` if another file than `opened`, or none, is at its path."""
    try:
        there = os.stat(opened.path)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
    else:
        if (there.st_dev, there.st_ino) == opened.file:
            return
        reason = _ANOTHER
    raise _moved(reason)


def _moved(reason: str) -> DatabaseMovedError:
    # As the driver says it where SQLite notices by itself.
    cause = coded(sqlite3.OperationalError(reason), "SQLITE_READONLY_DBMOVED")
    error = DatabaseMovedError(cause)
    error.__cause__ = cause
    return error
