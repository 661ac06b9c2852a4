"""The functions that SQLite lacks: each connection of `DatabaseFactory` brings them along."""

from __future__ import annotations

import json
import sqlite3
from decimal import Context, Decimal
from typing import Any

from shared.db.column_types import money_units
from shared.db.dialects.sqlite import note_damage
from shared.db.value_forms.amounts import MONEY_PLACES

_EXACT = Context(prec=100)


def register(connection: sqlite3.Connection) -> None:
    """Give a connection what the dialect's exact sums are written as."""
    # finalize() may give NULL, which the stubs do not know.
    connection.create_aggregate("exact_sum", 1, _ExactSum)  # type: ignore[arg-type] # as said
    connection.create_aggregate("exact_product_sum", 2, _ExactProductSum)  # type: ignore[arg-type] # as said
    connection.create_function("document_holds", 2, _document_holds, deterministic=True)
    connection.create_collation("exact_money", lambda one, other: int(Decimal(one).compare(Decimal(other), _EXACT)))


def _document_holds(document: str | None, part: str | None) -> bool | None:
    """The function behind `holds`: what PostgreSQL's operator @> says of an object."""
    if document is None or part is None:
        return None
    try:
        return _holds(json.loads(document), json.loads(part))
    except (TypeError, ValueError, RecursionError):
        note_damage()
        raise


def _holds(document: Any, part: Any) -> bool:
    if isinstance(part, dict):
        named = isinstance(document, dict) and document.keys() >= part.keys()
        return named and all(_holds(document[name], value) for name, value in part.items())
    # True is 1 in Python, and in no document.
    return bool(document == part) and isinstance(document, bool) is isinstance(part, bool)


class _ExactSum:
    """The aggregate behind `exact_sum`.

    Scaled integers inside SQLite's own SUM would be faster, but they overflow 64 bits at 9.2e10.
    """

    def __init__(self) -> None:
        self._units: int | None = None

    def step(self, value: float | None) -> None:
        """Add one stored value."""
        if value is not None:
            try:
                self._units = (self._units or 0) + money_units(value)
            except (ArithmeticError, TypeError, ValueError):
                note_damage()
                raise

    def finalize(self) -> str | None:
        """The sum as text, which keeps every digit."""
        return None if self._units is None else format(_EXACT.scaleb(self._units, -MONEY_PLACES), "f")


class _ExactProductSum:
    """The aggregate behind `exact_product_sum`."""

    def __init__(self) -> None:
        self._units: int | None = None

    def step(self, first: float | None, second: float | None) -> None:
        """Add the product of two stored values."""
        if first is not None and second is not None:
            try:
                self._units = (self._units or 0) + money_units(first) * money_units(second)
            except (ArithmeticError, TypeError, ValueError):
                note_damage()
                raise

    def finalize(self) -> str | None:
        """The sum as text, which keeps every digit."""
        return None if self._units is None else format(_EXACT.scaleb(self._units, -2 * MONEY_PLACES), "f")
