"""Where rows wait until they are written: in memory, and in the spool if there is one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from shared.db.bulk.rows import Row
from shared.db.errors import RecorderFullError
from shared.db.recording.row_text import RowText
from shared.db.recording.spool import Mark, Spool

# Rows of one journal record: a single add() of any size must not become one record that has to be read at once.
_PART_ROWS = 500


class Part(NamedTuple):
    """Rows that were accepted together, and their place in the spool."""

    rows: list[Row]
    end: Mark | None


class Accepting(NamedTuple):
    """Rows on their way in, as mappings and, if there is a spool, as text."""

    parts: list[list[Row]]
    records: list[tuple[bytes, int]]
    total: int


class Buffer:
    """The rows that wait, oldest first; at most `max_rows` of them in memory. The recorder's lock guards it.

    With a spool all of them are in it. Those that memory has no room for are there alone, and as long as there are
    any, new ones go there too, so that the order is kept.
    """

    def __init__(self, text: RowText, spool: Spool | None, max_rows: int, batch_rows: int) -> None:
        self._text = text
        self._spool = spool
        self._max_rows = max_rows
        self._batch_rows = batch_rows
        self._queue: deque[Part] = deque()
        self.in_memory = 0
        self.in_spool_alone = 0 if spool is None else spool.rows
        self._next = None if spool is None else spool.start  # the place before the first that is in the spool alone

    @property
    def waiting(self) -> int:
        """All rows that wait."""
        return self.in_memory + self.in_spool_alone

    @property
    def spool_bytes(self) -> int:
        """The spool's size on disk."""
        return 0 if self._spool is None else self._spool.size

    def accepting(self, rows: Iterable[object]) -> Accepting:
        """The rows, ready for `add`. Needs no lock. Raises `InvalidValueError` for what is no row."""
        parts = self._text.taken(rows, _PART_ROWS)
        records = [] if self._spool is None else [(self._text.encoded(part), len(part)) for part in parts]
        return Accepting(parts, records, sum(map(len, parts)))

    def add(self, rows: Accepting) -> None:
        """Let rows wait: all of them, or none if it raises `RecorderFullError` or `SpoolError`."""
        if self._spool is not None:
            self._add_to_spool(self._spool, rows)
        elif self.in_memory + rows.total > self._max_rows:
            raise RecorderFullError(
                f"{self.in_memory} rows wait in memory, {self._max_rows} may, and none of these {rows.total} was "
                "accepted; bring the database back, add them in smaller parts, raise max_buffered, or give a spool"
            )
        else:
            self._queue += [Part(part, None) for part in rows.parts]
            self.in_memory += rows.total

    def next_batch(self, lock: threading.Condition) -> list[Part]:
        """The oldest parts, read from the spool if memory has none; they stay until they are `done`.

        Takes the lock itself, and reads without it. Called by the writing thread alone.
        """
        with lock:
            load = not self._queue and self.in_spool_alone > 0
            place, wanted = self._next, min(self.in_spool_alone, self._batch_rows, self._max_rows)
        if load and self._spool is not None and place is not None:
            records = self._spool.read(place, wanted)
            parts = [Part(self._text.decoded(record.payload), record.end) for record in records]
            with lock:
                self._queue += parts
                loaded = sum(record.rows for record in records)
                self.in_memory += loaded
                # An add() that was interrupted after its rows were in the journal has not counted them.
                self.in_spool_alone = max(0, self.in_spool_alone - loaded)
                self._next = records[-1].end
        batch: list[Part] = []
        count = 0
        with lock:
            for part in self._queue:
                if batch and count + len(part.rows) > self._batch_rows:
                    break
                batch.append(part)
                count += len(part.rows)
        return batch

    def done(self, batch: list[Part]) -> None:
        """Forget the parts that `next_batch` gave: they are written."""
        end = batch[-1].end
        if self._spool is not None and end is not None:
            self._spool.drop(end)
        for part in batch:
            self._queue.popleft()
            self.in_memory -= len(part.rows)

    def rows(self) -> list[Row]:
        """What waits in memory."""
        return [row for part in self._queue for row in part.rows]

    def close(self) -> None:
        """Let go of the spool."""
        if self._spool is not None:
            self._spool.close()

    def abandon(self) -> None:
        """Let go of the spool and touch nothing in it."""
        if self._spool is not None:
            self._spool.abandon()

    def _add_to_spool(self, spool: Spool, rows: Accepting) -> None:
        before = spool.end
        for part, end in zip(rows.parts, spool.append(rows.records), strict=True):
            if self.in_spool_alone or self.in_memory + len(part) > self._max_rows:
                if not self.in_spool_alone:
                    self._next = before
                self.in_spool_alone += len(part)
            else:
                self._queue.append(Part(part, end))
                self.in_memory += len(part)
            before = end
