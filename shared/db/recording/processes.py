"""What the end of the program, and a fork, mean for recorders that are open."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from dataclasses import dataclass

from shared.db import forking


@dataclass(frozen=True, eq=False)
class Open:
    """What is open, with a thread of its own behind it.

    `close_at_exit` is called at the program's end, in its main thread, and must not raise; `leave_to_parent` in a
    forked child, where the thread is not.
    """

    close_at_exit: Callable[[], None]
    leave_to_parent: Callable[[], None]


_open: set[Open] = set()


def note_open(one: Open) -> None:
    """From now on it is told about forks and the end of the program."""
    _open.add(one)


def note_closed(one: Open) -> None:
    """It need not be told any more."""
    _open.discard(one)


def _close_all() -> None:
    forking.notice_fork()
    for one in list(_open):
        one.close_at_exit()


def _leave_all() -> None:
    for one in list(_open):
        one.leave_to_parent()
    _open.clear()


atexit.register(_close_all)
forking.in_child(_leave_all)
