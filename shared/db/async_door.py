"""Transactions for asyncio: in threads of the factory's own, and what is told to a caller who stops waiting."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from shared.db.errors import TransactionAbandonedError
from shared.db.retry import Caller
from shared.db.settings import DatabaseSettings

T = TypeVar("T")

# What a healthy transaction rarely takes, and a caller who wants to end can bear.
_CANCELLED_WAITS = 10.0

_log = logging.getLogger("shared.db")


class AsyncDoor:
    """As many transactions at once as there may be connections: more threads would only wait for one.

    Not in the event loop's default executor, which resolves host names and serves everybody else.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def renew(self) -> None:
        """In a forked child: the threads, and who held the lock, are the parent's."""
        self._lock, self._executor = threading.Lock(), None

    def close(self) -> None:
        """Let the threads end when they have done what they were given."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)

    async def run(self, transaction: Callable[[Caller], T]) -> T:
        """What `transaction` returns, which has the caller's context variables.

        A task that is cancelled gets its answer within `_CANCELLED_WAITS` seconds: what never began is left undone; a
        transaction that ends meanwhile has ended; the COMMIT of any other is not sent any more, and the log tells what
        became of it.
        """
        caller = Caller()
        running = self._submit(contextvars.copy_context().run, transaction, caller)
        answer = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError as error:
            cancelled = error
        if running.cancel():
            raise cancelled
        caller.is_cancelled.set()
        try:
            await asyncio.wait([answer], timeout=_CANCELLED_WAITS)
        except asyncio.CancelledError as error:
            cancelled = error  # once more: he does not wait at all
        if answer.done():
            raise cancelled from answer.exception()
        caller.has_gone.set()
        answer.cancel()  # nobody looks at it, and the event loop may be closed by then
        running.add_done_callback(_tell)
        raise cancelled from TransactionAbandonedError(
            "the transaction of a cancelled task has not ended yet; it is undone, unless its COMMIT is on its way "
            "already: the log of shared.db tells which"
        )

    def _submit(self, *work: Any) -> Future[Any]:
        with self._lock:
            if self._executor is None:
                settings = self._settings
                connections = 1 if settings.is_memory else settings.pool_size + settings.max_overflow
                self._executor = ThreadPoolExecutor(connections, "shared.db transaction")
            return self._executor.submit(*work)


def _tell(ended: Future[Any]) -> None:
    error = ended.exception()
    if error is None:
        _log.warning("the transaction of a cancelled task has been committed after all")
    elif isinstance(error, TransactionAbandonedError):
        _log.warning("the transaction of a cancelled task was undone")
    else:
        _log.warning("the transaction of a cancelled task failed with %s", type(error).__name__)
