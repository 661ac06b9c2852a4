"""What a bulk call did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

OnConflict = Literal["skip", "update", "fill", "error"]
OnBadRow = Literal["raise", "collect"]

NOTES = 1_000
"""So many rows a call are told of those that are stored otherwise than they were given; all are counted."""


class RejectedRow(NamedTuple):
    """A row that was not written: its position in what was given (from 0), why not, and the row itself."""

    position: int
    reason: str
    row: Any


class RowNote(NamedTuple):
    """A row that is stored otherwise than it was given: its position (from 0), in what, and the row itself."""

    position: int
    text: str
    row: Any


@dataclass(frozen=True, slots=True)
class BulkResult:
    """How many rows a bulk call inserted, skipped, updated and rejected; their sum is the rows it was given.

    `errors` has one entry a rejected row, in the order given. Two more figures count rows among the others:
    `contradicted`, with `on_conflict="fill"`, those that have another value than what is stored, which stays; and
    `rounded`, those with an amount of more digits than its column keeps. `notes` says in what, for the first
    thousand of them, in the order given.
    """

    inserted: int = 0
    skipped: int = 0
    updated: int = 0
    rejected: int = 0
    errors: tuple[RejectedRow, ...] = ()
    contradicted: int = 0
    rounded: int = 0
    notes: tuple[RowNote, ...] = ()
