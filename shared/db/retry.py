"""Which transactions are run again, how soon, and when to give up."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from shared.db.errors import CommitUnknownError, DatabaseFailure, DatabaseUnreachableError, InvalidValueError

T = TypeVar("T")

ATTEMPTS = 20
MAX_SECONDS = 60.0
# The wait before a repetition is drawn from 0 to 0.01 s, then to 0.02 s, 0.04 s and so on up to 5.12 s: drawn, so that
# those who met do not meet again; growing, so that a server which restarts is given about half a minute in all.
_FIRST_WAIT = 0.01
_DOUBLINGS = 9

_log = logging.getLogger("shared.db")


class Caller:
    """What waits for a transaction that runs in another thread."""

    def __init__(self) -> None:
        self.is_cancelled = threading.Event()
        """He waits for this attempt alone."""
        self.has_gone = threading.Event()
        """He does not wait any more, and was told that it is undone unless COMMIT is on its way."""


def until_done(
    transaction: Callable[[], T],
    *,
    idempotent: bool,
    attempts: int = ATTEMPTS,
    max_seconds: float = MAX_SECONDS,
    caller: Caller | None = None,
) -> T:
    """What `transaction` returns, which is run again as long as its failure is transient.

    After a COMMIT whose outcome is unknown (`CommitUnknownError`), only `idempotent` work is run again. It is run
    at most `attempts` times, and not again once `max_seconds` would have passed or `caller` is cancelled; then, and for
    every other error, the error itself is raised.
    """
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        raise InvalidValueError(f"attempts must be a whole number from 1, not {attempts!r}")
    if isinstance(max_seconds, bool) or not isinstance(max_seconds, (int, float)) or not max_seconds >= 0:
        raise InvalidValueError(f"max_seconds must be a number of seconds from 0, not {max_seconds!r}")
    caller = caller or Caller()
    started = time.monotonic()
    for attempt in range(1, attempts + 1):
        try:
            return transaction()
        except DatabaseFailure as error:
            if not (error.transient or (idempotent and isinstance(error, CommitUnknownError))):
                raise
            longest = _FIRST_WAIT * 2 ** min(attempt - 1, _DOUBLINGS)
            wait = random.uniform(0, longest)  # noqa: S311 # no secret hangs on it
            elapsed = time.monotonic() - started
            if attempt == attempts or elapsed + wait > max_seconds or caller.is_cancelled.is_set():
                error.add_note(f"given up after {attempt} attempts in {elapsed:.1f} s")
                raise
            _log.log(
                logging.WARNING if isinstance(error, DatabaseUnreachableError) else logging.INFO,
                "%s in attempt %d of %d; running the transaction again in %.2f s",
                type(error).__name__,
                attempt,
                attempts,
                wait,
            )
        # Outside of the except block: what runs next must not carry this failure as its context.
        caller.is_cancelled.wait(wait)
    raise AssertionError("the last attempt returns or raises")
