"""What the end of the program, and a fork, mean for recorders that are open."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Open:
    """What is open, with a thread of its own behind it.

    `writing` is held while the thread may have a session open. `close_at_exit` is called at the program's end, in its
    main thread, and must not raise; `leave_to_parent` in a forked child, where the thread is not.
    """

    writing: threading.Lock
    close_at_exit: Callable[[], None]
    leave_to_parent: Callable[[], None]


# A database that does not answer must not hold up a fork for good.
_FORK_WAITS = 5.0

_open: set[Open] = set()
_held: dict[int, list[threading.Lock]] = {}


def note_open(one: Open) -> None:
    """From now on it is told."""
    _open.add(one)


def note_closed(one: Open) -> None:
    """It need not be told any more."""
    _open.discard(one)


def _close_all() -> None:
    for one in list(_open):
        one.close_at_exit()


def _before_fork() -> None:
    # A child whose parent had a session open cannot use that SQLite file. Who forks cannot know when the recorder's
    # thread has one, so the fork waits for it.
    _held[threading.get_ident()] = [one.writing for one in list(_open) if one.writing.acquire(timeout=_FORK_WAITS)]


def _after_fork_in_parent() -> None:
    for lock in _held.pop(threading.get_ident(), ()):
        lock.release()


def _after_fork_in_child() -> None:
    for one in list(_open):
        one.leave_to_parent()
    _open.clear()
    _held.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
