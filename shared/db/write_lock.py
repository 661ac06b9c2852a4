"""Who holds the write lock of an SQLite file: a thread that would wait for itself is told so at once."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from typing import NamedTuple

from sqlalchemy import Connection

from shared.db.dialects.sqlite import coded
from shared.db.errors import SelfDeadlockError
from shared.db.sessions import running_loop

File = tuple[int, int]


class _Holder(NamedTuple):
    connection: weakref.ref[Connection]
    thread: int
    loop: weakref.ref[asyncio.AbstractEventLoop] | None


# The last of this process to take the lock of each file: there is one at a time.
_holders: dict[File, _Holder] = {}
# The same of this thread's own course of action. A web framework begins a session in one thread and may end it in
# another; what the first thread does meanwhile has another context, and does not wait in vain.
_further_out: ContextVar[Mapping[File, _Holder]] = ContextVar("shared_db_write_locks", default={})  # noqa: B039 # never changed


def note(connection: Connection, file: File) -> None:
    """Remember that `connection` has just taken the lock of `file`."""
    loop = running_loop()
    holder = _Holder(weakref.ref(connection), threading.get_ident(), None if loop is None else weakref.ref(loop))
    _holders[file] = holder
    living = {other: held for other, held in _further_out.get().items() if held.connection() is not None}
    _further_out.set(living | {file: holder})


def refuse_self_deadlock(file: File) -> None:
    """`SelfDeadlockError` if who holds the lock of `file` cannot go on before whoever asks for it now has got it.

    That is a session further out in the same code, or one of another coroutine of the event loop, which stands still
    meanwhile.
    """
    holder = _holders.get(file)
    holding = None if holder is None or holder.thread != threading.get_ident() else holder.connection()
    if holder is None or holding is None or not holding.in_transaction():
        return
    loop = running_loop()
    if _further_out.get().get(file) is holder or (
        loop is not None and holder.loop is not None and holder.loop() is loop
    ):
        cause = coded(sqlite3.OperationalError("database is locked"), "SQLITE_BUSY")
        raise SelfDeadlockError(cause) from cause
