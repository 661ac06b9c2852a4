"""The SQL of `on_conflict="fill"`: what a stored row takes from one with the same key, and where the two disagree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Column, Table

from shared.db.value_forms.forms import forms_of


class Filling:
    """Expressions over a stored row and a given one, which stand under the names `stored` and `given`.

    A NULL takes what is given, and nothing else changes, but for documents (JSON): one is replaced by that of a row
    which fills something and contradicts nothing, since such a row knows more. Documents and sealed secrets are never
    compared: two messages about one thing always differ, and so do two seals of one secret.
    """

    def __init__(
        self, table: Table, names: Sequence[str], quote: Callable[[str], str], *, stored: str, given: str
    ) -> None:
        def pair(text: str, column: Column[Any]) -> str:
            name = quote(column.name)
            return text.format(f"{stored}.{name}", f"{given}.{name}")

        def assigned(column: Column[Any]) -> str:
            if column.onupdate is not None:
                return pair("{1}", column)
            if forms_of(column.type).document:
                brings = pair(f"{{0}} IS NULL OR ({{1}} IS NOT NULL AND {self.differs} IS NOT TRUE)", column)
                return pair(f"CASE WHEN {brings} THEN {{1}} ELSE {{0}} END", column)
            return pair("COALESCE({0}, {1})", column)

        columns = [table.columns[name] for name in names]
        told = [column for column in columns if column.onupdate is None]
        differing = {column.name: pair("{0} <> {1}", column) for column in told if forms_of(column.type).comparable}
        self.differs = _any_of(differing.values())
        """Whether the two have different values in a column, neither of them NULL; may be NULL, for no."""
        self.fills = _any_of(pair("({0} IS NULL AND {1} IS NOT NULL)", column) for column in told if column.nullable)
        """Whether the given row knows what the stored one does not."""
        quoted = {name.replace("'", "''"): differs for name, differs in differing.items()}
        told_names = [f"CASE WHEN {differs} THEN '{name} ' ELSE '' END" for name, differs in quoted.items()]
        self.names = " || ".join(told_names) or "''"
        """The columns that differ, as text, each with a blank behind it."""
        # The others are never NULL; one of them stands there where no column can be filled.
        changed = [
            column for column in columns if column.nullable or column.onupdate or forms_of(column.type).document
        ] or columns[:1]
        self.assignments = ", ".join(f"{quote(column.name)} = {assigned(column)}" for column in changed)
        """The SET list for a row that fills."""


def _any_of(conditions: Iterable[str]) -> str:
    return f"({' OR '.join(conditions) or '1 = 0'})"
