"""`Recorder`: a live stream written in batches, which keeps what it could not write yet.

`add` puts rows into a buffer, and into the spool if there is one, and a thread of the recorder's own takes them from
there to the database, in order. Rows leave the buffer and the spool when they are committed; a batch that was, but
whose answer got lost, is written again and changes nothing, since trades and executions have unique keys. So is the
last batch of a recorder that was killed between its COMMIT and the note of it in the spool, and no other.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from shared.db import forking
from shared.db.bulk import BATCH_SIZE, RejectedRow
from shared.db.database import DatabaseFactory
from shared.db.errors import (
    AuthenticationError,
    DatabaseFileError,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseReadOnlyError,
    DatabaseUnreachableError,
    DeadLettersError,
    ForkError,
    InvalidValueError,
    RecorderError,
    RecorderFullError,
    TransactionConflictError,
)
from shared.db.models import Base
from shared.db.recording import processes
from shared.db.recording.buffer import Buffer, Part
from shared.db.recording.dead_letters import DEAD_LETTERS, DeadLetters
from shared.db.recording.refusals import OnError, OnNote, OnWritten, Refusals, shown
from shared.db.recording.row_text import RowText
from shared.db.recording.spool import Spool
from shared.db.recording.stats import RecorderStats
from shared.db.recording.storing import Stored, Storing
from shared.db.tables import stream_of
from shared.db.tenancy.user_ids import UNSET, UserId

_log = logging.getLogger(__name__)

SPOOL_LIMIT = 2**30
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_CONFLICTS_IN_A_ROW = 5
_REMINDER = 60.0
# A batch takes a fraction of a second, and a connection that cannot be made fails after 10.
_SILENCE = 15.0
# What passes by itself, or once somebody has seen to it. Anything else needs a person, and is logged as an error.
_PASSING = (
    AuthenticationError,
    DatabaseFileError,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseReadOnlyError,
    DatabaseUnreachableError,
    PoolTimeoutError,
    RecorderError,
    TransactionConflictError,
)


class Recorder:
    """Writes rows of a stream in the background, of any model with a `__stream__`. Safe to share between threads.

    `user_id` is whose rows they are: they are written in that user's session. Without it a recorder of a model whose
    rows belong to users raises `TenantScopeError`, unless `across_users=True` says that they are everybody's.

    A batch is written when `max_rows` wait (or half of `max_buffered`), or the oldest has waited for `max_seconds`.
    While the database is away rows are kept: up to `max_buffered` in memory, and with `spool`, a folder, up to
    `spool_limit` bytes in it, from which they survive the end of the process, however it comes. Then `add` has
    appended rows to the journal there before it returns (with `fsync=True` they also survive a power cut), and the
    next recorder on the same folder writes what it finds first. When there is no room left, `add` raises and takes
    nothing.

    A row that violates a rule is left out, written to the file `dead_letters` (`rejected.jsonl` in the spool's
    folder, unless given) and told to `on_error`, which is called with a `RejectedRow` in the recorder's thread: its
    `position` counts the rows that this recorder wrote or refused, from 0.

    Executions, as any `Stream(fills=True)`, are written with `on_conflict="fill"`: what a later message of a fill knows
    goes into what is NULL.
    `on_note` is called likewise, with a `RowNote`, for one that contradicts what is stored, which stays, and for one
    whose amounts have more digits than their columns.

    `on_written` is called likewise after each commit, with the rows that are in the database by it, as they were added:
    once, and again with the same rows after a kill that came between the two.

    Use it as a context manager, `with` or `async with`, which closes it.
    """

    def __init__(
        self,
        db: DatabaseFactory,
        model: type[Base],
        *,
        user_id: UserId = UNSET,
        across_users: bool = False,
        max_rows: int = 1000,
        max_seconds: float = 1.0,
        max_buffered: int = 100_000,
        on_error: OnError | None = None,
        on_note: OnNote | None = None,
        on_written: OnWritten | None = None,
        spool: str | Path | None = None,
        spool_limit: int = SPOOL_LIMIT,
        fsync: bool = False,
        dead_letters: str | Path | None = None,
    ) -> None:
        for name, number in (("max_rows", max_rows), ("max_buffered", max_buffered), ("spool_limit", spool_limit)):
            if number < 1:
                raise InvalidValueError(f"{name} is at least 1, not {number}")
        if not max_seconds >= 0:
            raise InvalidValueError(f"max_seconds is 0 or more, not {max_seconds}")
        self._storing = Storing(db, model, user_id, across_users)
        self._time = stream_of(model).time
        self._name = model.__tablename__
        text = RowText(model)
        journal: Spool | None = None
        if spool is not None:
            folder = Path(spool).absolute()
            about = json.dumps({"table": self._name, "user_id": self._storing.user_id})
            journal = Spool(folder, about, limit=spool_limit, fsync=fsync)
            dead_letters = dead_letters or folder / DEAD_LETTERS
        self._keeps_in = "memory" if spool is None else "the spool"
        letters = (
            None if dead_letters is None else DeadLetters(Path(dead_letters).absolute(), text, self._storing.user_id)
        )
        self._refusals = Refusals(self._name, letters, on_error, on_note, on_written, _log)
        # Without waiting for the buffer to be full, when it raises.
        self._max_rows = min(max_rows, max(1, max_buffered // 2))
        self._max_seconds = max_seconds

        # All below is guarded by this; notified when rows come, or when what happened to some is known.
        self._changed = threading.Condition(threading.Lock())
        self._buffer = Buffer(text, journal, max_buffered, max(max_rows, BATCH_SIZE))
        self._recovered = self._buffer.waiting
        self._oldest = time.monotonic()
        self._accepted = self._written = self._duplicates = self._rejected = 0
        self._filled = self._contradicted = self._rounded = 0
        self._batches = self._failures = 0
        self._newest: datetime | None = None
        self._last_error: str | None = None
        self._wanted = 0  # flush() waits for this many rows to be done
        self._failure: Exception | None = None  # why nothing can be written now
        self._away_since: datetime | None = None
        self._reminded: float | None = None  # when the log last said so
        self._unlucky = 0  # failed attempts in a row
        self._retry_at: float | None = None
        self._begun: float | None = None  # when the batch that is under way was
        self._deadline: float | None = None  # set by close()
        self._failures_at_close = 0
        self._closed = False
        self._ended_by: BaseException | None = None
        self._ended = False  # the thread writes nothing more
        self._forked = False
        if self._recovered:
            _log.warning(
                "%s: %d rows of an earlier recorder wait in the spool and are written first; they are new, but for its "
                "last batch if it was killed",
                self._name,
                self._recovered,
            )
        self._thread = threading.Thread(target=self._run, name=f"shared.db recorder of {self._name}", daemon=True)
        self._threads = self._new_threads()
        self._over = threading.Event()
        self._open = processes.Open(self._close_at_exit, self._leave_to_parent)
        processes.note_open(self._open)
        self._thread.start()
        threading.Thread(target=self._watch, name=f"{self._thread.name}, watch", daemon=True).start()

    def __repr__(self) -> str:
        return f"<Recorder of {self._name}, {self._buffer.waiting} rows waiting>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def add(self, rows: Iterable[Any]) -> None:
        """Accept rows, whatever `bulk_create` takes: all of them, or none if it raises.

        With a spool they are in its journal when this returns. Raises `InvalidValueError` for what is no row,
        `SpoolFullError` or `RecorderFullError` if there is no room, `RecorderError` after `close()`.
        """
        accepting = self._buffer.accepting(rows)
        self._require_usable()
        with self._changed:
            self._require_usable()
            if not accepting.total:
                return
            idle = self._buffer.waiting == 0
            try:
                self._buffer.add(accepting)
            except RecorderFullError as error:
                if error.__cause__ is None and self._failure is not None:
                    raise error from self._failure.with_traceback(None)
                raise
            self._accepted += accepting.total
            if idle:
                self._oldest = time.monotonic()
            if idle or self._buffer.waiting >= self._max_rows:
                self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> None:
        """Return when all rows accepted so far are in the database, or refused.

        Raises the database's own error as soon as an attempt fails, and `RecorderError` after `timeout` seconds or when
        the database has not answered for 15; the rows are kept either way, and written later.
        """
        self._require_not_own_thread()
        self._require_usable()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            failures = self._failures
            target = self._accepted + self._recovered
            while self._done < target:
                self._require_alive()
                if self._failure is not None and (self._failures > failures or self._is_silent()):
                    raise self._failure.with_traceback(None)
                if deadline is not None and time.monotonic() >= deadline:
                    raise RecorderError(
                        f"{target - self._done} rows were not written within {timeout} s; they are kept"
                    )
                if self._wanted < target:
                    self._wanted = target
                    self._retry_at = None
                    self._changed.notify_all()
                self._changed.wait(None if deadline is None else deadline - time.monotonic())

    def stats(self) -> RecorderStats:
        """What happened so far."""
        self._require_own_process()
        with self._changed:
            return RecorderStats(
                accepted=self._accepted,
                recovered=self._recovered,
                written=self._written,
                duplicates=self._duplicates,
                filled=self._filled,
                contradicted=self._contradicted,
                rounded=self._rounded,
                rejected=self._rejected,
                buffered=self._buffer.in_memory,
                spooled=self._buffer.in_spool_alone,
                spool_bytes=self._buffer.spool_bytes,
                batches=self._batches,
                failures=self._failures,
                callback_errors=self._refusals.callback_errors,
                away_since=self._away_since,
                last_error=self._last_error,
                newest_written=self._newest,
            )

    def close(self, timeout: float = 30.0) -> None:
        """Write what waits, and end; again changes nothing.

        With a spool, rows that cannot be written now stay there for the next recorder. Without one, writing is tried
        for `timeout` seconds; what is left then goes to the dead letters, if there are any, and `RecorderError` says
        how many rows are not in the database.
        """
        self._require_not_own_thread()
        forking.notice_fork()
        if self._forked or self._closed:
            return
        with self._changed:
            self._deadline = time.monotonic() + timeout
            self._failures_at_close = self._failures
            self._retry_at = None
            self._changed.notify_all()
        self._thread.join(timeout + 1)
        with self._changed:
            self._closed = True
            self._over.set()
            processes.note_closed(self._open)
            ended = not self._thread.is_alive()
            left, failure = self._buffer.waiting, self._ended_by or self._failure
            first, rows = self._done, self._buffer.rows()
        why = "there was no time" if failure is None else shown(failure)
        if left and self._keeps_in == "memory":
            self._refusals.give_up(rows, first, why, failure)
        if left:
            _log.warning("%s: %d rows stay in the spool (%s); the next recorder writes them", self._name, left, why)
        if not ended:
            raise RecorderError(
                f"the database has not answered for {timeout} s; {left} rows are not known to be written, and stay in "
                "the spool"
            )

    async def aadd(self, rows: Iterable[Any]) -> None:
        """`add` for asyncio: what may wait for a disk runs in a thread. Concurrent calls have no order."""
        if self._keeps_in == "memory":
            self.add(rows)
        else:
            await self._in_thread(self.add, rows)

    async def aflush(self, timeout: float | None = None) -> None:
        """`flush` for asyncio, in a thread."""
        await self._in_thread(self.flush, timeout)

    async def aclose(self, timeout: float = 30.0) -> None:
        """`close` for asyncio, in a thread."""
        await self._in_thread(self.close, timeout)

    async def _in_thread(self, call: Callable[..., None], *arguments: Any) -> None:
        forking.notice_fork()
        await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _new_threads(self) -> ThreadPoolExecutor:
        # Not the event loop's: a flush that waits must not hold up what everybody shares.
        return ThreadPoolExecutor(4, f"shared.db recorder of {self._name}, asyncio")

    def _close_at_exit(self) -> None:
        """The program ends: close, and tell what went wrong in the log."""
        _log.warning("%s: the recorder was not closed before the end of the program; closing it", self._name)
        try:
            self.close()
        except Exception as error:  # noqa: BLE001 # other recorders have rows too; what went wrong here is told
            _log.error("%s: %s", self._name, shown(error))

    def _leave_to_parent(self) -> None:
        """In a forked child: the rows, the thread and the spool are the parent's."""
        self._forked = True
        self._threads = self._new_threads()
        self._buffer.abandon()

    def _watch(self) -> None:
        """In a thread of its own: tell of a database that does not answer, which no attempt that fails ever would."""
        while not self._over.wait(_SILENCE / 3):
            with self._changed:
                if not self._is_silent():
                    continue
                failure = RecorderError(f"the database has not answered for more than {_SILENCE:.0f} s")
                self._last_error = shown(failure)
                telling = self._note_away(failure)
            self._tell_away(failure, telling)

    def _is_silent(self) -> bool:
        begun = self._begun
        return begun is not None and time.monotonic() - begun > _SILENCE

    @property
    def _done(self) -> int:
        return self._written + self._duplicates + self._rejected

    def _require_own_process(self) -> None:
        forking.notice_fork()
        if self._forked:
            raise ForkError(
                "this recorder belongs to the parent process; make one in the child, with a spool of its own"
            )

    def _require_usable(self) -> None:
        self._require_own_process()
        if self._deadline is not None:
            raise RecorderError("this recorder is closed; make another one")
        self._require_alive()

    def _require_alive(self) -> None:
        if self._ended_by is not None:
            raise RecorderError("the recorder's thread has ended, and nothing is recorded") from self._ended_by
        if self._ended:
            raise RecorderError("the recorder was closed before these rows were written")

    def _require_not_own_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise RecorderError("on_error runs in the recorder's own thread, which cannot wait for itself; add() works")

    # From here on in the recorder's own thread.

    def _run(self) -> None:
        try:
            while self._work_comes():
                self._write_batch()
            with self._changed:
                self._ended = True
                self._buffer.close()
                self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 # a thread that ends unnoticed loses everything that comes after
            _log.critical("%s: NOTHING IS RECORDED any more: the recorder ended by %s", self._name, shown(error))
            with self._changed:
                self._ended_by = error
                self._last_error = shown(error)
                self._buffer.close()
                self._changed.notify_all()
        finally:
            self._over.set()

    def _work_comes(self) -> bool:
        """Wait until there is something to write; False if the recorder is to end."""
        with self._changed:
            while True:
                now = time.monotonic()
                if self._deadline is not None and (not self._buffer.waiting or self._gives_up(now, self._deadline)):
                    return False
                due: float | None = None
                if self._retry_at is not None:
                    due = self._retry_at
                elif self._buffer.waiting >= self._max_rows or self._wanted > self._done or self._deadline is not None:
                    due = now
                elif self._buffer.waiting:
                    due = self._oldest + self._max_seconds
                if due is not None and due <= now and self._buffer.waiting:
                    return True
                wakes = [moment for moment in (due, self._deadline) if moment is not None]
                self._changed.wait(min(wakes) - now if wakes else None)

    def _gives_up(self, now: float, deadline: float) -> bool:
        return now >= deadline or (self._keeps_in != "memory" and self._failures > self._failures_at_close)

    def _write_batch(self) -> None:
        try:
            batch = self._buffer.next_batch(self._changed)
            rows = [row for part in batch for row in part.rows]
            self._begun = time.monotonic()
            try:
                stored = self._storing.store(rows)
            finally:
                self._begun = None
            if stored.rejected:
                self._report(stored.rejected)
            if stored.notes:
                self._tell_notes(stored)
            refused = {row.position for row in stored.rejected}
            written = [row for position, row in enumerate(rows) if position not in refused] if refused else rows
            if written:
                self._note_raised(self._refusals.written(written))
            newest = max((row[self._time].astimezone(UTC) for row in written), default=None)
            self._note_written(batch, stored, newest)
        except Exception as error:  # noqa: BLE001 # the rows are kept, the error is told, and the next attempt comes
            self._note_failure(error)

    def _note_written(self, batch: list[Part], stored: Stored, newest: datetime | None) -> None:
        with self._changed:
            self._buffer.done(batch)
            self._written += stored.inserted
            self._duplicates += stored.duplicates
            self._rejected += len(stored.rejected)
            self._filled += stored.filled
            self._contradicted += stored.contradicted
            self._rounded += stored.rounded
            self._batches += 1
            self._newest = max((when for when in (self._newest, newest) if when is not None), default=None)
            away_since, waiting = self._away_since, self._buffer.waiting
            self._failure = self._away_since = self._retry_at = self._reminded = None
            self._unlucky = 0
            self._oldest = time.monotonic()
            self._changed.notify_all()
        if away_since is not None:
            away = (datetime.now(UTC) - away_since).total_seconds()
            _log.warning("%s: recording again, after %.1f s; %d rows still wait", self._name, away, waiting)

    def _note_failure(self, error: Exception) -> None:
        with self._changed:
            self._failures += 1
            self._unlucky += 1
            self._last_error = shown(error)
            now = time.monotonic()
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self._unlucky - 1, 10))
            self._retry_at = now + pause * random.uniform(0.5, 1)  # noqa: S311 # so that recorders do not retry in step
            # Two writers met, and the server had one of them give way: that is no failure of the database.
            if isinstance(error, TransactionConflictError) and self._unlucky <= _CONFLICTS_IN_A_ROW:
                return
            telling = self._note_away(error)
        self._tell_away(error, telling)

    def _note_away(self, error: Exception) -> int | None:
        """Nothing can be written, for whatever reason. Under the lock; how many rows wait, if it is time to say so."""
        if self._away_since is None:
            begun = self._begun
            under_way = 0.0 if begun is None else time.monotonic() - begun
            self._away_since = datetime.now(UTC) - timedelta(seconds=under_way)
        self._failure = error
        self._wanted = 0
        self._changed.notify_all()
        now = time.monotonic()
        if self._reminded is not None and now - self._reminded < _REMINDER:
            return None
        self._reminded = now
        return self._buffer.waiting

    def _tell_away(self, error: Exception, waiting: int | None) -> None:
        if waiting is not None:
            # Up to those that were refused everything is in the database.
            stopped = "HELD UP" if isinstance(error, DeadLettersError) else "NOTHING IS RECORDED"
            _log.log(
                logging.WARNING if isinstance(error, _PASSING) else logging.ERROR,
                "%s: %s since %s: %s; %d rows wait in %s, and are written when it works again",
                self._name,
                stopped,
                self._away_since,
                shown(error),
                waiting,
                self._keeps_in,
            )

    def _report(self, refused: Sequence[RejectedRow]) -> None:
        """Keep and tell the rows that were refused, before the batch counts as done: twice rather than never."""
        with self._changed:
            first = self._done
        last = self._refusals.tell([RejectedRow(first + row.position, row.reason, row.row) for row in refused])
        with self._changed:
            self._last_error = last

    def _tell_notes(self, stored: Stored) -> None:
        with self._changed:
            first = self._done
        notes = [note._replace(position=first + note.position) for note in stored.notes]
        self._note_raised(self._refusals.note(notes, stored.contradicted))

    def _note_raised(self, raised: str | None) -> None:
        if raised is not None:
            with self._changed:
                self._last_error = raised
