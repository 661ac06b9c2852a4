"""Sessions and transactions for asyncio: in threads of the factory's own, and what a caller who stops waiting is told.

A session of asyncio is today's session, whole, in one of these threads, from its beginning to its end; a coroutine
hands it one piece of work after the other. So whatever holds for a session in a thread holds for it: whose it is, what
its errors are called, its locks, its bulk writes and its ranges.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from itertools import islice
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from sqlalchemy import CursorResult, Executable, Result, ScalarResult, Select
from sqlalchemy.orm import Session

from shared.db.errors import (
    AsyncSessionError,
    ForkError,
    InvalidValueError,
    PoolExhaustedError,
    TransactionAbandonedError,
)
from shared.db.retry import Caller
from shared.db.sessions import NamingSession
from shared.db.settings import DatabaseSettings

T = TypeVar("T")
P = ParamSpec("P")

# What a healthy transaction rarely takes, and a caller who wants to end can bear.
_CANCELLED_WAITS = 10.0
_ROWS_AT_ONCE = 1000
# Threads at work where the interpreter is what all wait for; how often it is looked whether it is, in seconds; and the
# share of a processor below which it is not.
_AT_ONCE, _LOOKS, _IDLE = 2, 0.02, 0.7
_LATELY = 5 * _LOOKS
_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})

_log = logging.getLogger("shared.db")


def _connections(settings: DatabaseSettings) -> int:
    return 1 if settings.is_memory else settings.pool_size + settings.max_overflow


class _Turns:
    """Has few transactions at work at once: each thread that wants the interpreter keeps the event loop from it.

    As many more as it takes where they wait for the database: where the process has been idle, or none has ended.
    Sessions need none of this: between one piece of their work and the next stands the event loop itself.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._changed = threading.Condition()
        self._at_once = _AT_ONCE
        self._taken = 0
        self._ended = False
        self._looked, self._used = 0.0, 0.0

    def __enter__(self) -> None:
        with self._changed:
            while self._taken >= self._at_once:
                self._changed.wait(_LOOKS)
                self._look()
            self._taken += 1

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._taken -= 1
            self._ended = True
            self._changed.notify()

    def _look(self) -> None:
        now, used = time.monotonic(), time.process_time()
        passed = now - self._looked
        if passed < _LOOKS:
            return
        is_idle = passed < _LATELY and used - self._used < _IDLE * passed
        if is_idle or not self._ended:
            self._at_once = min(self._at_once + 1, _connections(self._settings))
            self._changed.notify()
        elif passed < _LATELY:
            self._at_once = max(self._at_once - 1, _AT_ONCE)
        self._looked, self._used, self._ended = now, used, False


class AsyncDoor:
    """As many transactions at once as there may be connections: more threads would only wait for one.

    Not in the event loop's default executor, which resolves host names and serves everybody else.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._last_end = 0.0
        self.renew()

    def renew(self) -> None:
        """In a forked child: the threads, and who held the locks, are the parent's."""
        self._lock, self._turns = threading.Lock(), _Turns(self._settings)
        self._executor: ThreadPoolExecutor | None = None

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
        running = self._submit(transaction, caller, turns=self._turns)
        return await self.answer(running, running, caller)

    @asynccontextmanager
    async def session(self, opened: Callable[[], AbstractContextManager[Session]]) -> AsyncGenerator[AsyncSession]:
        """The session of `opened()`, which is entered, used and left in one thread; left as the block is left."""
        worker = _Worker()
        running = self._submit(worker.work, opened)
        session = None
        try:
            session = AsyncSession(self, worker, running, await self.answer(worker.opened, running))
            yield session
        except BaseException as error:
            worker.end(undo=True)
            # Nobody is there to wait where a coroutine is thrown away, and whoever went was told so already.
            if session is not None and session._abandoned is None and not isinstance(error, GeneratorExit):
                with suppress(_Undone):
                    await self.answer(running, running)
            raise
        worker.end(undo=session._abandoned is not None)
        if session._abandoned is not None:
            raise session._abandoned
        await self.answer(running, running)

    async def answer(self, work: Future[T], whole: Future[Any], caller: Caller | None = None) -> T:
        """What `work` returns, which is all or part of the transaction that is the `whole`.

        A task that is cancelled gets it within `_CANCELLED_WAITS` seconds, and the log tells what became of the whole
        after that. Raises `PoolExhaustedError` for what no thread was free to begin.
        """
        answer = asyncio.wrap_future(work)
        try:
            while not answer.done():
                waits = self._settings.pool_timeout
                await asyncio.wait([answer], timeout=None if work.running() else waits)
                # A queue that moves is no reason to give up; one in which each waits for the other is.
                stands = time.monotonic() - self._last_end >= waits
                if not answer.done() and not work.running() and stands and work.cancel():
                    raise PoolExhaustedError(
                        f"every session and transaction that may be under way at once was, and none of them ended for "
                        f"{waits:g} s; open no session in a task that has one open, or raise GRIDBOT_DB_POOL_SIZE or "
                        "GRIDBOT_DB_MAX_OVERFLOW"
                    )
            return answer.result()
        except asyncio.CancelledError as error:
            cancelled = error
        if work.cancel():
            raise cancelled
        if caller is not None:
            caller.is_cancelled.set()
        try:
            await asyncio.wait([answer], timeout=_CANCELLED_WAITS)
        except asyncio.CancelledError as error:
            cancelled = error  # once more: the caller does not wait at all
        if answer.done():
            raise cancelled from answer.exception()
        if caller is not None:
            caller.has_gone.set()
        answer.cancel()  # nobody looks at it, and the event loop may be closed by then
        whole.add_done_callback(_tell)
        raise cancelled from TransactionAbandonedError(
            "the transaction of a cancelled task has not ended yet; it is undone, unless its COMMIT is on its way "
            "already: the log of shared.db tells which"
        )

    def _submit(
        self, work: Callable[..., T], *arguments: Any, turns: AbstractContextManager[None] | None = None
    ) -> Future[T]:
        running: Future[T] = Future()

        def begin() -> None:
            with turns or nullcontext():
                if running.set_running_or_notify_cancel():
                    try:
                        running.set_result(work(*arguments))
                    except BaseException as error:  # noqa: BLE001 # whoever waits for it raises it
                        running.set_exception(error)

        running.add_done_callback(self._note_end)
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(_connections(self._settings), "shared.db transaction")
            self._executor.submit(contextvars.copy_context().run, begin)
        return running

    def _note_end(self, ended: Future[Any]) -> None:
        self._last_end = time.monotonic()


class AsyncSession:
    """A session for asyncio, of `DatabaseFactory.get_async_session()`: each call is done in the session's own thread.

    Its methods are those of SQLAlchemy's `Session` to be awaited, with the same arguments, answers and errors. Results
    have been read whole; `run_sync` and `aiter` are for repositories. Objects are ordinary ones, but what they have not
    loaded is refused here (`AsyncSessionError`), as is a call while another one is under way: it is one task's session.
    """

    def __init__(self, door: AsyncDoor, worker: _Worker, whole: Future[None], session: Session) -> None:
        self.sync_session = session
        """The session behind it, for `run_sync` and for objects; what asks the database is refused elsewhere."""
        self._door = door
        self._worker = worker
        self._whole = whole
        self._last: Future[Any] | None = None
        self._abandoned: TransactionAbandonedError | None = None

    @property
    def info(self) -> dict[Any, Any]:
        """As Session.info."""
        return self.sync_session.info

    async def run_sync(self, work: Callable[Concatenate[Session, P], T], *args: P.args, **options: P.kwargs) -> T:
        """What `work(session, ...)` returns, a plain function that runs in the session's thread.

        Raises `InvalidValueError` for a coroutine function, and for what returns an iterator, which would be read
        outside: have it make a list, or take `aiter`.
        """
        if inspect.iscoroutinefunction(work):
            raise InvalidValueError("work must be a plain function: nobody would await a coroutine")

        def checked(session: Session) -> T:
            found = work(session, *args, **options)
            if isinstance(found, Iterator):
                raise InvalidValueError(
                    f"a {type(found).__name__} would ask the database where it is read: return a list, or use aiter()"
                )
            return found

        return await self._do(checked)

    async def aiter(self, rows: Callable[[Session], Iterable[T]]) -> AsyncIterator[T]:
        """The rows of `rows(session)`, such as a repository's `iter_symbol_range`, which are read as they are needed.

        A thousand of them at a time are fetched by the session's thread.
        """
        iterator = await self._do(lambda session: self._worker.keep_open(iter(rows(session))))
        while found := await self._do(lambda _: list(islice(iterator, _ROWS_AT_ONCE))):
            for row in found:
                yield row

    async def execute(
        self, statement: Executable, params: Any = None, *, execution_options: Mapping[str, Any] = _NO_OPTIONS
    ) -> Result[Any]:
        """As Session.execute(); the result has been read whole."""

        def read(session: Session) -> Result[Any]:
            options = {**execution_options, "prebuffer_rows": True}  # which makes the objects of all rows at once
            result: Result[Any] = session.execute(statement, params, execution_options=options)
            return result.freeze()() if isinstance(result, CursorResult) and result.returns_rows else result

        return await self._do(read)

    @overload
    async def scalars(
        self, statement: Select[T], params: Any = None, *, execution_options: Mapping[str, Any] = ...
    ) -> ScalarResult[T]: ...
    @overload
    async def scalars(
        self, statement: Executable, params: Any = None, *, execution_options: Mapping[str, Any] = ...
    ) -> ScalarResult[Any]: ...
    async def scalars(
        self, statement: Any, params: Any = None, *, execution_options: Mapping[str, Any] = _NO_OPTIONS
    ) -> ScalarResult[Any]:
        """As Session.scalars(); the result has been read whole."""
        result = await self.execute(statement, params, execution_options=execution_options)
        return result.scalars()

    @overload
    async def scalar(self, statement: Select[T], params: Any = None) -> T | None: ...
    @overload
    async def scalar(self, statement: Executable, params: Any = None) -> Any: ...
    async def scalar(self, statement: Any, params: Any = None) -> Any:
        """As Session.scalar()."""
        return await self._do(lambda session: session.scalar(statement, params))

    async def get(self, entity: type[T], ident: Any, **options: Any) -> T | None:
        """As Session.get()."""
        return await self._do(lambda session: session.get(entity, ident, **options))

    async def get_one(self, entity: type[T], ident: Any, **options: Any) -> T:
        """As Session.get_one()."""
        return await self._do(lambda session: session.get_one(entity, ident, **options))

    def add(self, instance: object) -> None:
        """As Session.add(): it is written with the next flush. For what has a row already, take `merge`."""
        self._require_turn()
        self.sync_session.add(instance)

    def add_all(self, instances: Iterable[object]) -> None:
        """As Session.add_all()."""
        self._require_turn()
        self.sync_session.add_all(instances)

    async def merge(self, instance: T, **options: Any) -> T:
        """As Session.merge()."""
        return await self._do(lambda session: session.merge(instance, **options))

    async def delete(self, instance: object) -> None:
        """As Session.delete()."""
        await self._do(lambda session: session.delete(instance))

    async def refresh(self, instance: object, attribute_names: Iterable[str] | None = None) -> None:
        """As Session.refresh(), which loads relationships too, where `attribute_names` has them."""
        await self._do(lambda session: session.refresh(instance, attribute_names))

    async def flush(self) -> None:
        """As Session.flush()."""
        await self._do(lambda session: session.flush())

    async def commit(self) -> None:
        """As Session.commit(): what was done so far is stored, and the session goes on in another transaction."""
        await self._do(lambda session: session.commit())

    async def rollback(self) -> None:
        """As Session.rollback()."""
        await self._do(lambda session: session.rollback())

    @asynccontextmanager
    async def begin_nested(self) -> AsyncGenerator[None]:
        """A savepoint, to which a block that raises goes back, and nothing outside of it."""
        savepoint = await self._do(lambda session: session.begin_nested().__enter__())
        try:
            yield
        except BaseException as error:
            left = type(error), error, error.__traceback__
            await self._do(lambda _: savepoint.__exit__(*left))
            raise
        await self._do(lambda _: savepoint.__exit__(None, None, None))

    def __contains__(self, instance: object) -> bool:
        return instance in self.sync_session

    def _require_turn(self) -> None:
        self._worker.require_this_process()
        if self._whole.done():
            raise AsyncSessionError("this session has ended")
        if self._last is not None and not self._last.done():
            raise AsyncSessionError(
                "this session is at work already; it does one thing at a time: open one for each task"
            )

    async def _do(self, work: Callable[[Session], T]) -> T:
        self._require_turn()
        self._last = job = self._worker.take(work)
        try:
            return await self._door.answer(job, self._whole)
        except asyncio.CancelledError as error:
            if isinstance(error.__cause__, TransactionAbandonedError):
                self._abandoned = error.__cause__
            raise


class _Undone(TransactionAbandonedError):
    """Leaves the block of a session in its thread."""


class _Worker:
    """A thread for as long as a session lasts: it does what it is given, one after the other."""

    def __init__(self) -> None:
        self.opened: Future[Session] = Future()
        self._process = os.getpid()
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[Session], Any]] | bool] = queue.SimpleQueue()
        self._iterators: list[Any] = []
        _workers.add(self)

    def work(self, opened: Callable[[], AbstractContextManager[Session]]) -> None:
        """In the thread: open the session, do what comes, and leave its block as the coroutine left its own."""
        if not self.opened.set_running_or_notify_cancel():
            return
        try:
            with opened() as session:
                if isinstance(session, NamingSession):
                    session.thread = threading.get_ident()
                self.opened.set_result(session)
                try:
                    while self._do_one(session):
                        pass
                finally:
                    for iterator in self._iterators:
                        if hasattr(iterator, "close"):
                            iterator.close()
        except BaseException as error:
            if not self.opened.done():
                self.opened.set_exception(error)
            raise

    def _do_one(self, session: Session) -> bool:
        job = self._jobs.get()
        if isinstance(job, bool):
            if job:
                raise _Undone("the block of this session was left by an error")
            return False
        future, function = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(session))
            except BaseException as error:  # noqa: BLE001 # whoever waits for it raises it
                future.set_exception(error)
        return True

    def take(self, function: Callable[[Session], T]) -> Future[T]:
        """Have it do that next."""
        job: Future[T] = Future()
        self._jobs.put((job, function))
        return job

    def end(self, *, undo: bool) -> None:
        """Have it end the session, after what it was given before."""
        self._jobs.put(undo)

    def keep_open(self, iterator: Iterator[T]) -> Iterator[T]:
        """In the thread: close it there, at the latest when the session ends."""
        self._iterators.append(iterator)
        return iterator

    def require_this_process(self) -> None:
        """`ForkError` in a child, which does not have its parent's threads."""
        if os.getpid() != self._process:
            raise ForkError(
                "this session was opened before the fork and belongs to the parent process; open one in the child"
            )


_workers: weakref.WeakSet[_Worker] = weakref.WeakSet()


def _end_all() -> None:
    # A session that nobody left must not keep the process from ending, which waits for the executors' threads.
    for worker in list(_workers):
        worker.end(undo=True)


# There is no public way to be asked before those threads are waited for; a test notices when there is none at all.
threading._register_atexit(_end_all)  # type: ignore[attr-defined] # the one that concurrent.futures uses


def _tell(ended: Future[Any]) -> None:
    error = ended.exception()
    if error is None:
        _log.warning("the transaction of a cancelled task has been committed after all")
    elif isinstance(error, TransactionAbandonedError):
        _log.warning("the transaction of a cancelled task was undone")
    else:
        _log.warning("the transaction of a cancelled task failed with %s", type(error).__name__)
