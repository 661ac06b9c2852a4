"""What a fork does to open connections: the child never uses its parent's, and the parent's survive.

A socket that two processes read from gives each of them rows of the other. An inherited SQLite connection is worse:
its locks belong to the parent, yet the child's SQLite counts on them and takes none for what it opens next, and what
it commits there is gone when the parent closes the file.

SQLite also has locks for the threads of a process. One that another thread holds at the moment of a fork is never let
go in the child, and whoever asks for it there waits for good, in whatever file. So a fork waits until no other thread
is inside SQLite and keeps them out for its moment; if that takes too long, the child is refused SQLite by name.

SQLAlchemy counts sessions, loads and cursors under locks of its own, for an instant each; the child gets new ones.

A fork by a C library (uWSGI) calls none of Python's hooks, so whoever takes a connection compares the process's number.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import Engine, event
from sqlalchemy.dialects.postgresql import _psycopg_common
from sqlalchemy.orm import loading
from sqlalchemy.orm import session as orm_session
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection

from shared.db.errors import ForkError

# Another thread's long transaction must not hold up a fork for good.
_FORK_WAITS = 5.0
_FILE = "shared_db_file"
_USES = "shared_db_uses"
_REMEDY = (
    "fork between sessions, start processes with multiprocessing's 'spawn', or have each worker of uWSGI (lazy-apps) "
    "or gunicorn (without preload) load the program itself"
)

# By id, and not in a WeakSet: a list of these can be made while other threads add to them.
_engines: WeakValueDictionary[int, Engine] = WeakValueDictionary()
# SQLAlchemy's records of open connections, each with the pool's proxy for who uses it now.
_records: WeakValueDictionary[int, Any] = WeakValueDictionary()
# Device and inode of the SQLite files that were in use by the parent when this process was forked.
_files_in_use: set[tuple[int, int]] = set()
_also_in_child: list[Callable[[], None]] = []

_process = os.getpid()
# One lock a process: in a child that a C library forked, an older one may be held by a thread that is not there.
_noticing: dict[int, threading.Lock] = {}

# There is no public way to these; a test notices when one of them is another thing.
_COUNTERS = (orm_session._new_sessionid, loading._new_runid, _psycopg_common._server_side_id)
_MAPPING: Any = sys.modules["sqlalchemy.orm.mapper"]  # the package has a function in this name's place
_LOCK = type(threading.Lock())

# Who is inside SQLite: a token for each use, with its thread.
_inside: dict[object, int] = {}
_forking: int | None = None  # the thread that is about to fork
_turn = threading.RLock()  # held while it does
_somebody_left = threading.Condition()
_locks_are_lost = False  # another thread of the parent was inside SQLite


def protect(engine: Engine) -> None:
    """Have `engine` open connections of its own in every child. Not for in-memory databases: a fork copies those."""
    _engines[id(engine)] = engine
    event.listen(engine, "connect", _note_connection)


def in_child(work: Callable[[], None]) -> None:
    """Call `work` in every forked child, once its parent's connections are out of reach.

    There must be no matter of order between one and another of these: modules add them as they are imported.
    """
    _also_in_child.append(work)


def notice_fork() -> None:
    """Do what a fork asks for, if this is a child by a fork that Python was not told of."""
    if os.getpid() != _process:
        with _noticing.setdefault(os.getpid(), threading.Lock()):
            if os.getpid() != _process:
                _after_fork_in_child()


@contextmanager
def inside_sqlite() -> Iterator[None]:
    """Keep forks out of a block that uses SQLite without an engine, as an engine's pool does by itself."""
    token = _enter()
    try:
        yield
    finally:
        _leave(token)


class ForkAwarePool(Pool):
    """A pool that notices in whose process it is."""

    # The pool that its engine got in its place at a fork. Who asks this one then was on the way to it already.
    successor: Pool | None = None

    def connect(self) -> PoolProxiedConnection:
        """A connection of this process."""
        notice_fork()
        return super().connect() if self.successor is None else self.successor.connect()


class SQLitePool(ForkAwarePool):
    """A pool that knows which threads are inside SQLite: from before a connection is opened until it is back."""

    def connect(self) -> PoolProxiedConnection:
        """A connection; `ForkError` where SQLite itself did not survive the fork."""
        notice_fork()  # now, since who is inside is another question in a child
        if _locks_are_lost:
            raise ForkError(f"this process was forked while another thread was using SQLite; {_REMEDY}")
        token = _enter()
        try:
            connection = super().connect()
            connection.info.setdefault(_USES, []).append(token)
        except BaseException:
            _leave(token)
            raise
        return connection

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        # Here and not with the event "checkin": what the pool has no room for is closed after that.
        tokens = record.info.pop(_USES, ())
        try:
            if self.successor is not None:
                record.close()  # nobody has this pool any more, and it would be left to the garbage collector
            super()._do_return_conn(record)
        finally:
            for token in tokens:
                _leave(token)

    def dispose(self) -> None:
        """Close what is idle."""
        with inside_sqlite():
            super().dispose()


def _enter() -> object:
    # Without a lock: it is one dictionary's entry, made before the look at who forks, as the other side looks after it
    # has said that it forks.
    token, me = object(), threading.get_ident()
    while True:
        _inside[token] = me
        # Who is inside already must not wait for a fork that waits for them.
        if _forking is None or _forking == me or list(_inside.values()).count(me) > 1:
            return token
        _leave(token)
        with _turn:
            pass


def _leave(token: object) -> None:
    _inside.pop(token, None)
    if _forking is not None:
        with _somebody_left:
            _somebody_left.notify_all()


def _others_are_inside() -> bool:
    me = threading.get_ident()
    return any(who != me for who in list(_inside.values()))


def _note_connection(connection: Any, record: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        file = os.stat(connection.execute("PRAGMA database_list").fetchone()[2])
        record.info[_FILE] = file.st_dev, file.st_ino
        if record.info[_FILE] in _files_in_use:
            connection.close()
            raise ForkError(
                "this process was forked while its parent had its SQLite file open, and what it wrote there could get "
                f"lost; {_REMEDY}"
            )
    _records[id(record)] = record


def _before_fork() -> None:
    global _forking
    _turn.acquire()
    _forking = threading.get_ident()
    with _somebody_left:
        _somebody_left.wait_for(lambda: not _others_are_inside(), _FORK_WAITS)
    # Not one connection by one: a thread that could not be waited for may be about to use what was idle a moment ago.
    for engine in _living(_engines):
        if isinstance(engine.pool, SQLitePool):
            _replace_pool(engine, close=True)


def _after_fork_in_parent() -> None:
    global _forking
    _forking = None
    _turn.release()


def _after_fork_in_child() -> None:
    global _process, _forking, _turn, _somebody_left, _locks_are_lost
    _locks_are_lost = _locks_are_lost or _others_are_inside()
    _inside.clear()
    _forking, _turn, _somebody_left = None, threading.RLock(), threading.Condition()
    for counter in _COUNTERS:
        for cell in counter.__closure__ or ():
            if isinstance(cell.cell_contents, _LOCK):
                cell.cell_contents = threading.Lock()
    _MAPPING._CONFIGURE_MUTEX = threading.RLock()
    for record in _living(_records):
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
    for engine in _living(_engines):
        _replace_pool(engine, close=False)
    for work in _also_in_child:
        work()
    _process = os.getpid()


def _replace_pool(engine: Engine, *, close: bool) -> None:
    pool = engine.pool
    engine.dispose(close=close)  # it opens again when asked
    assert isinstance(pool, ForkAwarePool)
    pool.successor = engine.pool


def _living(those: WeakValueDictionary[int, Any]) -> list[Any]:
    return [one for one in (reference() for reference in those.valuerefs()) if one is not None]


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
    # The library's only hooks, so that their order stands here and does not hang on that of imports.
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
