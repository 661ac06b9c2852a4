"""Rows that were refused, kept in a file of JSON lines from which they can be written again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from shared.db.bulk import RejectedRow
from shared.db.recording.row_text import RowText

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment] # None is what tells

# Its name in the folder of a spool.
DEAD_LETTERS = "rejected.jsonl"


class DeadLetters:
    """The file at `path`, to which rows of one table, and of one user if given, are appended; several may share it.

    A line has the row's `table` and `user_id`, its `position` among the rows of its recorder, the `reason`, the `row`
    as `RowText` writes it, and `noted_at`. The file is made with the first one, readable by its owner alone.
    """

    def __init__(self, path: Path, text: RowText, user_id: str | None) -> None:
        self.path = path
        self._text = text
        self._about = {"table": text.model.__tablename__, "user_id": user_id}

    def append(self, rejected: Sequence[RejectedRow]) -> None:
        """Add rows, with the reason of each; they have reached the disk when this returns. Raises `OSError`."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        lines = b""
        for position, reason, row in rejected:
            (written,) = json.loads(self._text.encoded([row]))
            said = {**self._about, "position": position, "reason": reason, "row": written, "noted_at": now}
            lines += json.dumps(said, separators=(",", ":")).encode() + b"\n"
        append_lines(self.path, lines)


def append_lines(path: Path, lines: bytes) -> None:
    """Add whole lines to a file of dead letters; they have reached the disk when this returns. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(path) as file:
        # Somebody died within a line: what is added must not be part of it.
        if (end := os.fstat(file).st_size) and os.pread(file, 1, end - 1) != b"\n":
            lines = b"\n" + lines
        left = memoryview(lines)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """The file, made if it is missing and opened to read and append, which nobody else changes or moves meanwhile."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever had the lock before may have moved it away.
            if os.path.exists(path) and os.path.samestat(os.fstat(file), os.stat(path)):
                yield file
                return
        finally:
            os.close(file)
