"""A few numbers about a table that tell two copies of it apart, the same on every database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Table, func, select

from shared.db.value_forms.forms import forms_of

Digest = dict[str, Any]


def digest(connection: Connection, table: Table) -> Digest:
    """The number of rows; of each column the exact sum, the first and last value, or the length of all text.

    And how many values are not NULL.
    """
    asked: dict[str, ColumnElement[Any]] = {"rows": func.count()}
    for column in table.columns:
        asked |= {f"{name} of {column.name}": what for name, what in sums(column).items()}
    statement = select(*(what.label(name) for name, what in asked.items())).select_from(table)
    return dict(connection.execute(statement).mappings().one())


def differences(table: Table, source: Digest, target: Digest) -> list[str]:
    """What differs, in words; nothing of a value but sums, counts and bounds."""
    return [
        f"{table.name}: {name} is {source[name]} in the source and {target[name]} in the target"
        for name in source
        if source[name] != target[name]
    ]


def sums(column: Column[Any]) -> dict[str, ColumnElement[Any]]:
    """What is asked of one column, by name."""
    present: dict[str, ColumnElement[Any]] = {"values": func.count(column)} if column.nullable else {}
    return present | forms_of(column.type).digest(column)
