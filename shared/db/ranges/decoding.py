"""Values as the drivers give them fastest, made into the exact ones that mapped objects have, a column at a time.

A column is decoded by `map` over functions of the interpreter's own: no line of Python runs for a row, which is what
most of the time would go into.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, Final, Self

from sqlalchemy import Cast, Column, ColumnElement, Dialect, Select, func, select

from shared.db.dialects import port_of
from shared.db.ranges.sql_functions import longest_text, one_text
from shared.db.value_forms.forms import forms_of

# Rows before they are decoded.
RawPages = Iterable[Sequence[Any]]


# What of a letter may be missing where a text is cut off, in bytes.
_LETTER = 4


def undecoded(columns: Sequence[Column[Any]], dialect: Dialect) -> list[ColumnElement[Any]]:
    """The columns as `decode_rows` takes them."""
    return [forms_of(column.type).fetched(column, dialect) for column in columns]


class InOneText:
    """A page of rows as one text, for a driver of Python's own that takes its time for each row and each value.

    NUL stands between the values, which no text of ours has in it. NULL is an empty text, where a column may be NULL,
    and a value has a mark before it.
    """

    most: Final = 20_000
    """How many rows a text takes, so that it stays far below the 16 MB at which servers cut it off."""

    def __init__(self, columns: Sequence[Column[Any]], dialect: Dialect) -> None:
        self._columns, self._dialect = columns, dialect
        self._nullable = [place for place, column in enumerate(columns) if column.nullable]

    @classmethod
    def of(cls, columns: Sequence[Column[Any]], dialect: Dialect) -> Self | None:
        """None where a driver needs none, or a column is no text as it is fetched."""
        texts = all(forms_of(column.type).fetches_text(dialect) for column in columns)
        return cls(columns, dialect) if texts and port_of(dialect).reads_by_value else None

    def asking(self, statement: Select[Any], order: Sequence[Column[Any]], *, reverse: bool) -> Select[Any]:
        """The statement, for a text in place of its rows, which come in this order there too.

        With their number, and how long a text may be: of one that is longer the server cuts the end off.
        """
        page = statement.with_only_columns(*self._columns, maintain_column_froms=True).subquery().c
        # What is put together becomes text as by CAST, which would take the server a second look at each value.
        fetched = [part.clause if isinstance(part, Cast) else part for part in undecoded([*page], self._dialect)]
        for place in self._nullable:
            fetched[place] = func.coalesce(func.concat("=", fetched[place]), "")
        row = func.concat_ws("\0", *fetched)
        ordered = [page[column.name].desc() if reverse else page[column.name] for column in order]
        asked: list[ColumnElement[Any]] = [func.count(), longest_text(), one_text(row, *ordered)]
        return select(*asked)

    def split(self, answer: Sequence[Any]) -> Sequence[Any] | None:
        """The rows of a text; None where it was too long, or somebody else has stored a text with NUL in it."""
        ((number, longest, text),) = answer
        if not number:
            return []
        # Without a row that was too long by itself there are fewer values than there should be, or no text at all.
        if text is None or len(text.encode()) > longest - _LETTER:
            return None
        values = text.split("\0")
        width = len(self._columns)
        if len(values) != number * width:
            return None
        columns: list[Sequence[Any]] = [values[place::width] for place in range(width)]
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
