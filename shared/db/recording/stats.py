"""What a recorder tells about itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class RecorderStats:
    """What a recorder has done so far.

    In rows, at any moment: accepted + recovered == written + duplicates + rejected + buffered + spooled.
    """

    accepted: int
    """Rows that `add` took."""
    recovered: int
    """Rows that were in the spool when the recorder was made."""
    written: int
    """Rows that were new to the database."""
    duplicates: int
    """Rows that were stored already, also by a batch of this recorder whose COMMIT was not answered."""
    filled: int
    """Duplicates that knew more of an execution than what was stored, and filled it."""
    contradicted: int
    """Duplicates that have another value of an execution than what is stored, which stays; `on_note` is told."""
    rounded: int
    """Executions with an amount of more digits than its column keeps; raw_json has them, and `on_note` is told."""
    rejected: int
    """Rows that a rule refused."""
    buffered: int
    """Rows that wait in memory (and in the spool, if there is one)."""
    spooled: int
    """Rows that wait in the spool alone."""
    spool_bytes: int
    """The spool's size on disk."""
    batches: int
    """Batches committed."""
    failures: int
    """Attempts to write that failed; the rows were kept."""
    callback_errors: int
    """Exceptions that `on_error`, `on_note` and `on_written` raised."""
    away_since: datetime | None
    """Since when nothing can be written, UTC: an attempt failed, or has not ended for 15 seconds. None: all is well."""
    last_error: str | None
    """What went wrong last, now or earlier: a refused row, a failed attempt to write, or `on_error`."""
    newest_written: datetime | None
    """The newest time of a row that is in the database by this recorder, UTC."""
