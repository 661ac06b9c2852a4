"""Files of rows, read a block at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from shared.db.bulk import RejectedRow
from shared.db.bybit.values import Row


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
