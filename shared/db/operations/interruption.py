"""Ctrl-C and a service manager's stop, taken at a moment that suits the work, and told with the state that it left.

Python raises `KeyboardInterrupt` wherever it happens to be: within a function that a driver calls, which turns it into
an error of its own, or between a COMMIT and the note of it. So an operation notes the signal and looks for it where
it can stop.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from shared.db.errors import CommitUnknownError, DatabaseFailure, SharedDBError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM ended an operation. The text says in which state it left what it works on."""


@dataclass
class _Operation:
    state: str | Callable[[], str]
    came: bool = False
    stop: Callable[[], object] | None = None  # ends what the operation waits for
    finishes: bool = False  # nothing is raised

    def note(self, number: int, frame: FrameType | None) -> None:
        again, self.came = self.came, True
        if self.stop is not None:
            self.stop()
        elif again and not self.finishes:  # a second one means now
            raise KeyboardInterrupt

    @property
    def interrupted(self) -> Interrupted:
        return Interrupted(self.state if isinstance(self.state, str) else self.state())


# The innermost last; of the main thread, where Python delivers signals.
_operations: list[_Operation] = []


@contextmanager
def interruptible(state: str | Callable[[], str]) -> Iterator[None]:
    """An operation that stops at a `check`, and raises `Interrupted` with the `state` it has reached by then.

    A second signal stops it wherever it is. What drivers raise after a signal is that signal's doing, and no failure of
    the database.
    """
    operation = _Operation(state)
    with _noting(operation):
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if not isinstance(error, KeyboardInterrupt) and not (operation.came and _is_of_a_driver(error)):
                raise
            # Without its cause, whose text speaks of damage or of a lost connection.
            raise operation.interrupted from None
    if operation.came:
        raise operation.interrupted


@contextmanager
def noted_signals(state: str) -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come since; it ends nothing by itself, only a second one does.

    `state` is what may be said of the work at any moment.
    """
    operation = _Operation(state)
    with _noting(operation):
        yield lambda: operation.came


@contextmanager
def between_operations(state: str, *, end: Callable[[Interrupted], object], last: bool) -> Iterator[None]:
    """A program's block, outside of whose operations a signal calls `end` with the `state`, or what one has left since.

    Where it is the `last` thing that the process does, signals are ignored from its end on: all is done, and told.
    Within functions that Python calls by itself, as when it collects garbage, an exception would be printed and lost.
    """
    operation = _Operation(state)
    operation.stop = lambda: end(operation.interrupted)
    with _noting(operation, afterwards=signal.SIG_IGN if last else None):
        yield


def came() -> bool:
    """Whether the operation at hand is to stop: for functions that a driver calls, which must not raise."""
    return bool(_operations) and _operations[-1].came and not _operations[-1].finishes and _in_main_thread()


def check() -> None:
    """Raise `Interrupted` if the operation at hand is to stop."""
    if came():
        raise _operations[-1].interrupted


@contextmanager
def waiting(stop: Callable[[], object]) -> Iterator[None]:
    """A block that waits for another program, which a signal has `stop` end."""
    if not _operations or not _in_main_thread():
        yield
        return
    operation = _operations[-1]
    operation.stop = stop
    try:
        if operation.came:
            stop()
        yield
    finally:
        operation.stop = None
    check()


@contextmanager
def finishing(state: str) -> Iterator[None]:
    """A block that no signal ends; once it is through, the operation has reached `state`."""
    if not _operations or not _in_main_thread():
        yield
        return
    operation = _operations[-1]
    before, operation.finishes = operation.finishes, True
    try:
        yield
        operation.state = state
    finally:
        operation.finishes = before


@contextmanager
def _noting(operation: _Operation, *, afterwards: signal.Handlers | None = None) -> Iterator[None]:
    if not _in_main_thread():
        yield
        return
    # A signal that is ignored, as SIGINT in a shell's background job, stays so.
    before: dict[signal.Signals, Any] = {
        number: signal.getsignal(number)
        for number in _SIGNALS
        if signal.getsignal(number) not in (signal.SIG_IGN, None)
    }
    outer = _operations[-1:]
    _operations.append(operation)
    try:
        for number in before:
            signal.signal(number, operation.note)
        yield
    finally:
        for one in outer:
            one.state = operation.state
        for number, handler in before.items():
            signal.signal(number, handler if afterwards is None else afterwards)
        _operations.remove(operation)


@contextmanager
def blocked_signals() -> Iterator[None]:
    """A block that is not interrupted, and whose child processes never are."""
    if not hasattr(signal, "pthread_sigmask"):  # not a POSIX system
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_of_a_driver(error: BaseException) -> bool:
    # What this library itself has found wrong is told; so is a COMMIT of which nothing is known.
    named = isinstance(error, SharedDBError) and not isinstance(error, DatabaseFailure)
    return not named and not isinstance(error, CommitUnknownError)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
