"""What a bulk call did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

OnConflict = Literal["skip", "update", "error"]
OnBadRow = Literal["raise", "collect"]


class RejectedRow(NamedTuple):
    """A row that was not written: its position in what was given (from 0), why not, and the row itself."""

    position: int
    reason: str
    row: Any


@dataclass(frozen=True, slots=True)
class BulkResult:
    """How many rows a bulk call inserted, skipped, updated and rejected; their sum is the rows it was given.

    `errors` has one entry a rejected row, in the order given.
    """

    inserted: int = 0
    skipped: int = 0
    updated: int = 0
    rejected: int = 0
    errors: tuple[RejectedRow, ...] = ()
