"""Values as the drivers give them fastest, made into the exact ones that mapped objects have, a column at a time.

A column is decoded by `map` over functions of the interpreter's own: no line of Python runs for a row, which is what
most of the time would go into.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any

from sqlalchemy import Column, ColumnElement, Dialect

from shared.db.value_forms.forms import forms_of

# Rows before they are decoded.
RawPages = Iterable[Sequence[Any]]


def undecoded(columns: Sequence[Column[Any]], dialect: Dialect) -> list[ColumnElement[Any]]:
    """The columns as `decode_rows` takes them."""
    return [forms_of(column.type).fetched(column, dialect) for column in columns]


def decode_rows(
    pages: RawPages, columns: Sequence[Column[Any]], row: type[Any], same: tuple[str, Any], dialect: Dialect
) -> Iterator[Any]:
    """Pages of `undecoded(columns)` as plain rows; `same` is the name and value of the column that is not read."""
    name, value = same
    place = row._fields.index(name)
    decoders = [forms_of(column.type).decoding(dialect) for column in columns]

    def decoded() -> Iterator[Iterable[Any]]:
        for page in pages:
            # strict=False: the column that is the same has no end, and the others are equally long as it is.
            values = [decode(column) for decode, column in zip(decoders, zip(*page, strict=False), strict=True)]
            values.insert(place, repeat(value))
            # tuple.__new__ takes half the time of the class's own.
            yield map(tuple.__new__, repeat(row), zip(*values, strict=False))

    return chain.from_iterable(decoded())
