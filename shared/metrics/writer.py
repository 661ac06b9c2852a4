"""Lines on their way to the server: in batches, tried again while it is away, and never more than may wait."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice

from shared.metrics.errors import MetricsAwayError, MetricsError

_log = logging.getLogger(__name__)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


@dataclass
class MetricsStats:
    """What became of the points: accepted == written + refused + dropped + waiting.

    `refused` are those of batches that the server refused (it may have kept some), `dropped` the oldest of those for
    which there was no room while it was away. `away_since` (UTC) is None while it answers.
    """

    accepted: int = 0
    written: int = 0
    refused: int = 0
    dropped: int = 0
    waiting: int = 0
    away_since: datetime | None = None
    last_error: str | None = None


class Writer:
    """A thread that gives lines to `send`, which raises `MetricsAwayError` or, for good, `MetricsError`."""

    def __init__(self, send: Callable[[bytes], None], batch_size: int, interval: float, limit: int) -> None:
        self._send, self._batch_size, self._interval, self._limit = send, batch_size, interval, limit
        self._changed = threading.Condition()
        self._lines: deque[str] = deque()
        self._under_way = 0  # how many of the first lines are
        self._stats = MetricsStats()
        self._refusal: MetricsError | None = None  # not told yet
        self._failure: MetricsAwayError | None = None
        self._hurry = self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def stats(self) -> MetricsStats:
        """What happened so far."""
        with self._changed:
            return replace(self._stats, waiting=len(self._lines))

    def add(self, lines: Sequence[str]) -> None:
        """Let lines wait for their batch. Raises what the server refused since the last call; these are taken first."""
        with self._changed:
            if self._thread is None:
                self._closed = False
                self._thread = threading.Thread(target=self._run, name="shared.metrics", daemon=True)
                self._thread.start()
            self._lines.extend(lines)
            self._stats.accepted += len(lines)
            self._shorten()
            self._changed.notify_all()
            self._tell_refusal()

    def flush(self, timeout: float) -> None:
        """Return when all lines are written. Raises what went wrong, at the first failure or at the timeout."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._failure = None
            while self._lines and self._failure is None and time.monotonic() < deadline:
                self._hurry = True
                self._changed.notify_all()
                self._changed.wait(deadline - time.monotonic())
            self._tell_refusal()
            if self._lines:
                raise self._failure or MetricsAwayError(f"{len(self._lines)} points were not written in {timeout} s")

    def close(self, timeout: float) -> None:
        """Flush, and end the thread; what cannot be written is dropped and told."""
        try:
            self.flush(timeout)
        finally:
            with self._changed:
                self._closed, thread, self._thread = True, self._thread, None
                self._changed.notify_all()
            if thread is not None:
                thread.join(timeout)
            with self._changed:
                self._stats.dropped += len(self._lines)
                self._lines.clear()

    def _tell_refusal(self) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal

    def _shorten(self) -> None:
        # Those that are under way may be written already.
        too_many = min(len(self._lines) - self._limit, len(self._lines) - self._under_way)
        if too_many > 0:
            kept = [self._lines.popleft() for _ in range(self._under_way)]
            for _ in range(too_many):
                self._lines.popleft()
            self._lines.extendleft(reversed(kept))
            self._stats.dropped += too_many

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._lines) or self._closed)
                self._changed.wait_for(self._is_due, self._interval)
                batch = list(islice(self._lines, self._batch_size))
                if self._closed and (not batch or self._failure is not None):
                    return
                self._under_way = len(batch)
            try:
                self._send("\n".join(batch).encode())
            except MetricsAwayError as error:
                self._note_away(error)
                pause = min(2 * pause, _LONGEST_PAUSE)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._hurry, pause)
                    continue
            except Exception as error:  # noqa: BLE001 # a thread that ends unnoticed would lose all that comes after
                refused = error if isinstance(error, MetricsError) else MetricsError(f"not sent: {error!r}")
                self._done(batch, refused)
            else:
                self._done(batch)
            pause = _FIRST_PAUSE

    def _is_due(self) -> bool:
        return len(self._lines) >= self._batch_size or self._hurry or self._closed

    def _done(self, batch: list[str], refused: MetricsError | None = None) -> None:
        with self._changed:
            for _ in batch:
                self._lines.popleft()
            self._under_way = 0
            self._hurry = self._hurry and bool(self._lines)
            if refused is None:
                self._stats.written += len(batch)
            else:
                self._stats.refused += len(batch)
                self._refusal, self._stats.last_error = refused, str(refused)
                _log.error("%d points were refused: %s", len(batch), refused)
            if self._stats.away_since is not None:
                self._stats.away_since = None
                _log.warning("points are written again; %d were dropped so far", self._stats.dropped)
            self._changed.notify_all()

    def _note_away(self, error: MetricsAwayError) -> None:
        with self._changed:
            self._under_way, self._hurry = 0, False
            self._failure, self._stats.last_error = error, str(error)
            if self._stats.away_since is None:
                self._stats.away_since = datetime.now(UTC)
                _log.warning("%s; %d points wait", error, len(self._lines))
            self._shorten()
            self._changed.notify_all()
