"""Files of rows, read a block at a time."""

from __future__ import annotations

import io
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from shared.db.bulk import RejectedRow
from shared.db.bulk.rows import Row
from shared.db.errors import InputError
from shared.db.exchanges.file_kinds import refuse_beginning, refuse_no_file

# As much as stays in the processor's cache.
_UNPACKED_AT_ONCE = 2**15
_PACKED_AT_ONCE = 2**14
_GZIP = 16 + zlib.MAX_WBITS


class Block(NamedTuple):
    """Some lines of a file, from `first_line` on: the rows that they gave, for `bulk_create`, and those not taken.

    The position of a rejected row is its line, counted from 1, the header included.
    """

    rows: Any
    rejected: list[RejectedRow]
    first_line: int

    def line_of(self, index: int) -> int:
        """The line of the row at `index` (from 0) among `rows`."""
        line = self.first_line + index
        for rejected in self.rejected:
            line += rejected.position <= line
        return line


class BlockReader(ABC, Iterable[Row]):
    """The rows of a file, in its order. Iterating again starts again.

    `rejected` lists the rows that the last iteration did not take, with their lines as positions, unless `on_rejected`
    gets them. `bytes_read` is how far into the file, compressed or not, the reading is.
    """

    def __init__(self, on_rejected: Callable[[RejectedRow], None] | None) -> None:
        self.rejected: list[RejectedRow] = []
        self.bytes_read = 0
        self._on_rejected = on_rejected

    def __iter__(self) -> Iterator[Row]:
        self.rejected = []
        reject = self._on_rejected or self.rejected.append
        for block in self.blocks(1):
            for rejected in block.rejected:
                reject(rejected)
            yield from block.rows

    in_arrow = False
    """Whether blocks may have Arrow's columns where a reader knows to make them and pyarrow is installed. Their values
    are the same; as Python's they are slower to have."""

    numbered_by_file = False
    """Whether the trade ids may count from 1 in this file, so that they mean nothing in another one."""

    @abstractmethod
    def check_whole(self, stop: Callable[[], bool]) -> bool:
        """`InputError` if the file is damaged anywhere, as far as it can tell; False if `stop()` ended it early."""

    @abstractmethod
    def as_row(self, given: Any) -> Row:
        """What a row that was not taken says, by the table's columns; texts where no value can be made of them."""

    @abstractmethod
    def blocks(self, size: int) -> Iterator[Block]:
        """The rows by blocks of about `size` lines; the rows not taken are in the block."""


@contextmanager
def open_text(path: Path) -> Iterator[tuple[io.BufferedReader, io.TextIOWrapper]]:
    """A file for reading, and its text, unpacked if it is gzip (its content says so, not its name).

    Bytes that are no UTF-8 come through as lone surrogates, which no check lets pass. Raises `InputError` for a
    file that is missing, of a kind that holds no rows or, while it is read, turns out to be damaged.
    """
    with opened(path) as (file, unpacked):
        refuse_beginning(path, unpacked.peek(512)[:512])
        with io.TextIOWrapper(unpacked, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as text:
            yield file, text


def check_whole(path: Path, stop: Callable[[], bool]) -> bool:
    """`InputError` if a packed file is damaged anywhere: its check sum stands at its end, and the rows before it.

    False if `stop()` ended it early.
    """
    with opened(path) as (file, unpacked):
        while unpacked is not file and unpacked.read(_UNPACKED_AT_ONCE):
            if stop():
                return False
    return True


@contextmanager
def opened(path: Path) -> Iterator[tuple[io.BufferedReader, Any]]:
    """A file for reading, and what gives its bytes unpacked. Raises `InputError` as `open_text` does."""
    refuse_no_file(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}") from error
    with file:
        try:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            yield file, io.BufferedReader(_Unpacked(file), _UNPACKED_AT_ONCE) if packed else file
        except (EOFError, zlib.error) as error:
            raise InputError(f"{path} is damaged or only half there ({error}); download it again") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error


class _Unpacked(io.RawIOBase):
    """What is packed in a gzip file, whose check sums zlib looks at.

    Python's own reader unpacks 8 KB at a time, after each of which a thread waits for its turn.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._rest = b""
        self._member = zlib.decompressobj(_GZIP)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Some bytes; 0 at the end. `zlib.error` or `EOFError` if they are damaged, or the end is missing."""
        unpacked = b""
        while not unpacked:
            packed = self._rest or self._file.read(_PACKED_AT_ONCE)
            if self._member.eof:
                self._rest = packed.lstrip(b"\0")  # the padding of a tape
                if not packed:
                    return 0
                if self._rest:
                    self._member = zlib.decompressobj(_GZIP)
                continue
            unpacked = self._member.decompress(packed, len(buffer))
            self._rest = self._member.unconsumed_tail or self._member.unused_data
            if not (packed or unpacked or self._member.eof):
                raise EOFError("it ends before its end mark")
        buffer[: len(unpacked)] = unpacked
        return len(unpacked)
