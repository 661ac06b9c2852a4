"""An append-only journal in a folder: what is appended is there after kill -9, and read back in order.

The folder holds numbered segments and a lock. A segment is a sequence of records, each with its length and checksums:

    payload's crc32, length, rows, crc32 of these three; 8 hex digits each, one space or newline behind
    payload, newline

The first record says whose journal it is and how many rows came before; a record without rows behind it is a mark,
which says up to which place the rows are done with; the rest are the caller's. Marks stand in the journal itself, and
not beside it, so that whatever a power cut leaves of the end, no mark is there without what it speaks of.

Only the end of the last segment can be half written, by a process that died before it was told that the rows are
accepted: it is cut off. Anything else that does not add up raises `SpoolError` and is left as it is.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shared.db.errors import SpoolError, SpoolFullError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment] # None is what tells

_log = logging.getLogger(__name__)
_HEAD = 4 * 9
_SEGMENT = 16 * 2**20
_SEGMENTS_AT_LEAST = 8
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SUFFIX = ".rows"
_LOCK = "lock"
_DONE = "done_through"


class Mark(NamedTuple):
    """A place in the journal, between two records."""

    segment: int
    offset: int


class Record(NamedTuple):
    """What was appended at once, the number of rows in it, and the place behind it."""

    payload: bytes
    rows: int
    end: Mark


class Spool:
    """The journal in `folder`, at most `limit` bytes in all. `about` says whose rows it holds.

    `rows` is how many it held when it was opened and not done with, `size` its bytes now. Not
    thread-safe, except that `read` may run beside `append`. With `fsync` an append has reached the disk, and so
    survives a power cut too.

    Raises `SpoolError` if another spool has the folder, if it is about something else, or if it is damaged.
    """

    def __init__(self, folder: Path, about: str, *, limit: int, fsync: bool = False) -> None:
        self.folder = folder
        self.rows = 0
        self._about = about
        self._limit = limit
        self._opening_size = len(self._opening(0))
        # One that was emptied, to its opening, is filled again.
        self._segment_size = max(min(_SEGMENT, limit // _SEGMENTS_AT_LEAST), self._opening_size + 1)
        self._fsync = fsync
        self._sizes: dict[int, int] = {}  # of the segments that are there, oldest first
        self._file: int | None = None
        self._first = 0  # rows before the last segment, ever
        self._in_last = 0  # rows in the last segment
        self._rows_end = Mark(0, 0)  # the place behind the newest record with rows
        self._done = self._marked = Mark(0, 0)  # up to where the rows are done with, and the journal says so
        self._broken = False
        self._lock: int | None = locked_folder(folder)
        self._watch(self._lock, folder / _LOCK)
        try:
            self._check_all()
        except BaseException:
            self._unlock()
            raise

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(self._sizes.values())

    @property
    def start(self) -> Mark:
        """The place before the oldest record that is not done with."""
        return max(self._done, Mark(next(iter(self._sizes), 0), 0))

    @property
    def end(self) -> Mark:
        """The place behind the newest record."""
        if not self._sizes:
            return Mark(0, 0)
        number = next(reversed(self._sizes))
        return Mark(number, self._sizes[number])

    def append(self, records: Sequence[tuple[bytes, int]]) -> list[Mark]:
        """Write payloads, each with its number of rows: all of them or none. The places behind each.

        Raises `SpoolFullError` if that would exceed the limit or the disk is full, `SpoolError` if it fails otherwise.
        """
        if self._broken:
            raise SpoolError(
                str(self.folder), "an earlier write left it unfinished; close the recorder, and make another"
            )
        written = [_record(payload, rows) for payload, rows in records]
        total = sum(map(len, written))
        if self.size + total > self._limit:
            raise SpoolFullError(str(self.folder), f"{self.size:,} bytes of {self._limit:,}, and {total:,} to add")
        self._require_folder()
        try:
            if self._file is None or self.end.offset >= self._segment_size:
                self._open_next()
            self._write(b"".join(written), self._fsync)
        except OSError as error:
            if error.errno in _FULL:
                raise SpoolFullError(str(self.folder), error.strerror or "no space left") from error
            raise SpoolError(str(self.folder), f"cannot be written: {error.strerror}") from error
        number, offset = self.end
        offset -= total
        ends = []
        for record in written:
            offset += len(record)
            ends.append(Mark(number, offset))
        self._in_last += sum(rows for _, rows in records)
        self._rows_end = self.end
        return ends

    def read(self, after: Mark, rows: int) -> list[Record]:
        """The records behind a place, until they have `rows` rows or there are no more."""
        found: list[Record] = []
        missing = rows
        for record in self._records(after):
            found.append(record)
            missing -= record.rows
            if missing <= 0:
                break
        return found

    def _records(self, after: Mark) -> Iterator[Record]:
        """The records with rows behind a place."""
        for number, size in list(self._sizes.items()):
            if number < after.segment:
                continue
            try:
                with self._path(number).open("rb") as file:
                    file.seek(after.offset if number == after.segment else 0)
                    while file.tell() < size:
                        record = self._next(file, number, size)
                        assert record is not None
                        if record.rows:
                            yield record
            except OSError as error:
                raise SpoolError(str(self._path(number)), f"cannot be read: {error.strerror}") from error

    def drop(self, through: Mark) -> None:
        """Be done with the records up to a place: whoever opens the spool next does not find them.

        Space comes back by whole segments, or when nothing is left. Where a full disk leaves no room to note the place,
        it is noted the next time.
        """
        self._done = through
        self._note_done()
        for number in [number for number in self._sizes if number < self._done.segment]:
            self._path(number).unlink(missing_ok=True)
            del self._sizes[number]

    def close(self) -> None:
        """Let go of the folder; records that were not dropped stay in it."""
        if self._file is not None and self._done < self._rows_end and self._marked < self._done:
            self._note_done()
            if self._marked < self._done:
                _log.warning(
                    "%s: the disk is full, and the next recorder writes rows again that are written", self.folder
                )
        if self._file is not None and not self._in_last and len(self._sizes) == 1:
            self._path(self.end.segment).unlink(missing_ok=True)
        self._unlock()

    def _note_done(self) -> None:
        if self._file is None:
            return
        if self._done == self._rows_end:
            os.ftruncate(self._file, self._opening_size)
            number = self.end.segment
            self._sizes[number] = self._opening_size
            self._done = self._rows_end = Mark(number, self._opening_size)
            self._in_last = 0
        else:
            with suppress(OSError):  # full: the rows are done with all the same
                self._write(_record(json.dumps({_DONE: self._done}).encode(), 0), fsync=False)
                self._marked = self._done

    def abandon(self) -> None:
        """Close the files and touch nothing: for a forked child, whose parent goes on with them."""
        for file in (self._file, self._lock):
            if file is not None:
                os.close(file)
        self._file = self._lock = None

    def _unlock(self) -> None:
        # Closing is not enough: a child that was forked a moment ago may not have closed its copy yet.
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        self.abandon()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:010}{SUFFIX}"

    def _opening(self, first: int) -> bytes:
        # As long for every number of rows: what is cut off behind it must not depend on it.
        return _record(json.dumps({"about": self._about, "rows_before": f"{first:020}"}).encode(), 0)

    def _write(self, text: bytes, fsync: bool) -> None:
        assert self._file is not None
        number, offset = self.end
        try:
            left = memoryview(text)
            while left:
                left = left[os.write(self._file, left) :]
            if fsync:
                os.fsync(self._file)
        except BaseException:
            self._broken = True
            os.ftruncate(self._file, offset)
            self._broken = False
            raise
        self._sizes[number] = offset + len(text)

    def _require_folder(self) -> None:
        """Raise `SpoolError` if somebody has deleted or moved the files: what is appended would be nowhere."""
        opened, path = self._watched
        try:
            there = os.stat(path)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != opened:
            raise SpoolError(
                path, "was deleted or moved under the recorder; nothing was accepted: close it, and make another"
            )

    def _watch(self, descriptor: int, path: Path) -> None:
        """Have this file, the newest, tell whether the folder is still there."""
        opened = os.fstat(descriptor)
        self._watched = ((opened.st_dev, opened.st_ino), str(path))

    def _open_next(self) -> None:
        number = self.end.segment + 1
        path = self._path(number)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        opening = self._opening(self._first + self._in_last)
        try:
            if os.write(file, opening) < len(opening):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._fsync:
                os.fsync(file)
                _sync_folder(self.folder)
        except BaseException:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        if self._file is not None:
            os.close(self._file)
        self._file = file
        self._watch(file, path)
        self._first += self._in_last
        self._in_last = 0
        self._sizes[number] = len(opening)

    def _check_all(self) -> None:
        """Read everything once: count the rows, cut off a half-written end, and raise for what does not add up."""
        numbers = sorted(int(path.stem) for path in self.folder.glob(f"*{SUFFIX}"))
        expected: int | None = None
        for number in numbers:
            path = self._path(number)
            if self._sizes and number != self.end.segment + 1:
                raise self._damaged(self._path(self.end.segment + 1), "is missing")
            size, is_last = path.stat().st_size, number == numbers[-1]
            with path.open("rb") as file:
                opening = self._next(file, number, size, may_end=is_last)
                if opening is None:  # its process died while it began
                    path.unlink()
                    continue
                self._first = self._rows_before(path, opening.payload)
                if expected not in (None, self._first):
                    raise self._damaged(path, "does not continue the one before it")
                self._in_last, whole = 0, file.tell()
                while whole < size and (record := self._next(file, number, size, may_end=is_last)) is not None:
                    self._in_last += record.rows
                    whole = file.tell()
                    if record.rows:
                        self._rows_end = record.end
                    elif (done := done_in(record.payload)) is not None:
                        self._done = self._marked = done
            if whole < size:
                _log.warning("%s: cut off %d bytes that were never accepted", path, size - whole)
                os.truncate(path, whole)
            self._sizes[number] = whole
            expected = self._first + self._in_last
        if self._sizes:
            path = self._path(self.end.segment)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
            self._watch(self._file, path)
            self.rows = sum(record.rows for record in self._records(self.start))
            if not self.rows:
                self.drop(self._rows_end)

    def _rows_before(self, path: Path, opening: bytes) -> int:
        try:
            said = json.loads(opening)
            about, first = said["about"], int(said["rows_before"])
        except (ValueError, KeyError, TypeError):
            raise self._damaged(path, "does not begin as a segment does") from None
        if about != self._about:
            raise SpoolError(
                str(self.folder), f"holds rows of {about}, not of {self._about}; name another folder for these"
            )
        return first

    def _next(self, file: BinaryIO | io.BufferedReader, number: int, size: int, may_end: bool = False) -> Record | None:
        """The record that begins here. None, if it `may_end`, for one whose end was never written."""
        begin = file.tell()
        head = file.read(_HEAD)
        path = self._path(number)
        if len(head) < _HEAD:
            if may_end:
                return None
            raise self._damaged(path, f"ends within the record at byte {begin}")
        try:
            crc, length, rows, _ = (int(part, 16) for part in head.split())
            sound = head == _head(crc, length, rows)
        except ValueError:
            sound = False
        if not sound:
            if may_end and not (head + file.read()).strip(b"\0"):
                return None  # a power cut can leave zeros where the data did not reach the disk
            raise self._damaged(path, f"is damaged in the record at byte {begin}")
        payload = file.read(length + 1)
        if len(payload) <= length and may_end:
            return None
        if len(payload) <= length or payload[-1:] != b"\n" or zlib.crc32(payload[:-1]) != crc:
            if may_end and begin + _HEAD + length + 1 >= size and not payload.strip(b"\0"):
                return None
            raise self._damaged(path, f"is damaged in the record at byte {begin}")
        return Record(payload[:-1], rows, Mark(number, file.tell()))

    @staticmethod
    def _damaged(path: Path, problem: str) -> SpoolError:
        return SpoolError(
            str(path),
            f"{problem}; nothing was changed: python -m shared.db replay {path.parent} stores every row that is whole, "
            "and sets the damaged file aside",
        )


def _record(payload: bytes, rows: int) -> bytes:
    return b"%b%b\n" % (_head(zlib.crc32(payload), len(payload), rows), payload)


def done_in(payload: bytes) -> Mark | None:
    """The place that a record without rows notes; None for a segment's opening."""
    said = json.loads(payload)
    return Mark(*said[_DONE]) if _DONE in said else None


def salvaged(segment: Path) -> Iterator[Record | None]:
    """A segment's records that are whole, in order; None for each stretch that is of none of them."""
    text = segment.read_bytes()
    number = int(segment.stem)
    place = 0
    broken = False
    while place < len(text):
        found = _record_at(text, place)
        if found is not None:
            payload, rows = found
            place += _HEAD + len(payload) + 1
            yield Record(payload, rows, Mark(number, place))
            broken = False
            continue
        if not broken:
            yield None
        broken = True
        # A record begins behind a line's end; payloads have none within.
        place = text.find(b"\n", place) + 1 or len(text)


def _record_at(text: bytes, place: int) -> tuple[bytes, int] | None:
    head = text[place : place + _HEAD]
    try:
        crc, length, rows, _ = (int(part, 16) for part in head.split())
    except ValueError:
        return None
    begin = place + _HEAD
    payload = text[begin : begin + length]
    whole = (
        head == _head(crc, length, rows)
        and len(payload) == length
        and text[begin + length : begin + length + 1] == b"\n"
    )
    return (payload, rows) if whole and zlib.crc32(payload) == crc else None


def _head(crc: int, length: int, rows: int) -> bytes:
    said = b"%08x %08x %08x " % (crc, length, rows)
    return b"%b%08x\n" % (said, zlib.crc32(said))


def locked_folder(folder: Path) -> int:
    """The descriptor of a lock on the folder, made if it is missing; the end of the process gives it up in any case."""
    if fcntl is None:
        raise SpoolError(str(folder), "a spool needs the file locks of a POSIX system; leave it out here")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SpoolError(
            str(folder), f"is no folder that can be used ({error.strerror}); name one that this user may write to"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise SpoolError(
            str(folder), "another recorder has this spool; close that one first, or name another folder"
        ) from error
    return file


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
