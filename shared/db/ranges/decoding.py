"""Values as the drivers give them fastest, made into the exact ones that mapped objects have, a column at a time.

A column is decoded by `map` over functions of the interpreter's own: no line of Python runs for a row, which is what
most of the time would go into.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, Self

from sqlalchemy import Column, ColumnElement, Dialect, Select, func

from shared.db.dialects import port_of
from shared.db.value_forms.forms import forms_of

# Rows before they are decoded.
RawPages = Iterable[Sequence[Any]]


def undecoded(columns: Sequence[Column[Any]], dialect: Dialect) -> list[ColumnElement[Any]]:
    """The columns as `decode_rows` takes them."""
    return [forms_of(column.type).fetched(column, dialect) for column in columns]


class InOneText:
    """A row's columns as one text, for a driver of Python's own that takes its time for each value of a row.

    NUL stands between the values, which no text of ours has in it. NULL is an empty text, where a column may be NULL,
    and a value has a mark before it.
    """

    def __init__(self, columns: Sequence[Column[Any]], fetched: Sequence[ColumnElement[Any]]) -> None:
        self._nullable = [place for place, column in enumerate(columns) if column.nullable]
        self._width = len(columns)
        parts = [
            func.coalesce(func.concat("=", part), "") if column.nullable else part
            for column, part in zip(columns, fetched, strict=True)
        ]
        self._text = func.concat_ws("\0", *parts)

    @classmethod
    def of(cls, columns: Sequence[Column[Any]], dialect: Dialect) -> Self | None:
        """None where a driver needs none, or a column is no text as it is fetched."""
        texts = all(forms_of(column.type).fetches_text(dialect) for column in columns)
        return cls(columns, undecoded(columns, dialect)) if texts and port_of(dialect).reads_by_value else None

    def asking(self, statement: Select[Any]) -> Select[Any]:
        """The statement, for the texts in place of its columns."""
        return statement.with_only_columns(self._text, maintain_column_froms=True)

    def split(self, page: Sequence[Any]) -> Sequence[Any] | None:
        """The rows of a page of texts; None where somebody else has stored a text with NUL in it, or one too long."""
        try:
            values = "\0".join([text for (text,) in page]).split("\0") if page else []
        except TypeError:  # one of them is None: it was longer than the server makes a text
            return None
        if len(values) != len(page) * self._width:
            return None
        columns: list[Sequence[Any]] = [values[place :: self._width] for place in range(self._width)]
        for place in self._nullable:
            columns[place] = [text[1:] if text else None for text in columns[place]]
        return list(zip(*columns, strict=True))


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
