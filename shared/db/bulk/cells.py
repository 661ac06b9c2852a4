"""Columns of values, checked and turned into what a driver takes: `cells`.

The rules are those of `column_types`, and so is the code where anything is unusual. What is usual (plain Decimals
of 8 places, aware datetimes, ASCII text) is recognised a chunk at a time and takes a shorter way to the same cells:
a test with random values holds the two ways equal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from itertools import chain
from typing import Any

from sqlalchemy import Column, Dialect, Table
from sqlalchemy.dialects import postgresql, sqlite

from shared.db.bulk.instants import instant_texts
from shared.db.bulk.rows import CHUNK, Batch, Chunk
from shared.db.column_types import (
    MONEY_DIGITS,
    MONEY_PLACES,
    BoundedString,
    CheckedType,
    Json,
    Money,
    UTCDateTime,
    Vocabulary,
)
from shared.db.errors import InvalidValueError

try:
    import orjson
except ImportError:  # the extra `fast` is not installed
    orjson = None  # type: ignore[assignment] # None is what tells

Values = Sequence[Any]
Cells = Sequence[Any]
# Cells for all of the values, or None where any of them needs a closer look.
Shortcut = Callable[[set[type], Values], Cells | None]

_DIALECTS: dict[str, Dialect] = {"postgresql": postgresql.dialect(), "sqlite": sqlite.dialect()}  # type: ignore[no-untyped-call] # SQLAlchemy's own
_NONE = type(None)


class Layout:
    """Which column of a table gets which cells, on one dialect.

    `numbered` says whether rows bring the number that the database would give them otherwise.
    """

    def __init__(self, table: Table, dialect: str, numbered: bool) -> None:
        self.table = table
        self.columns = [
            CellColumn(column, _DIALECTS[dialect])
            for column in table.columns
            if numbered or column is not table.autoincrement_column
        ]
        self.names = [column.name for column in self.columns]
        self._names = frozenset(self.names)

    def cells(self, chunk: Chunk) -> list[Cells]:
        """One sequence of cells for each column; `InvalidValueError` if any value does not fit."""
        given = self._given(chunk)
        made: dict[Any, Cells] = {}
        cells = []
        for column in self.columns:
            values = given.get(column.name)
            # Archives know no local time and give the exchange's twice: the very same times are converted once.
            key = (id(values), column.nullable) if column.is_time and values is not None else column.name
            if key not in made:
                made[key] = column.cells(values, chunk.size)
            cells.append(made[key])
        return cells

    def check(self, chunk: Chunk) -> None:
        """`InvalidValueError` if any value that is given does not fit; missing columns are none of its business."""
        given = self._given(chunk)
        for column in self.columns:
            if column.name in given:
                column.cells(given[column.name], chunk.size)

    def _given(self, chunk: Chunk) -> dict[str, Values]:
        for name in chunk.names:
            if name in self._names:
                continue
            if name in self.table.columns:
                raise InvalidValueError(
                    "give it in every row, or leave it to the database in all of them", f"{self.table.name}.{name}"
                )
            raise InvalidValueError(
                f"there is no column {name!r}; the columns are {', '.join(self.names)}", str(self.table.name)
            )
        return dict(zip(chunk.names, chunk.columns, strict=True))


@lru_cache(maxsize=64)
def layout_of(table: Table, dialect: str, numbered: bool) -> Layout:
    """The layout, made once."""
    return Layout(table, dialect, numbered)


class CellColumn:
    """One column of a layout."""

    def __init__(self, column: Column[Any], dialect: Dialect) -> None:
        self.name = column.name
        self.nullable = bool(column.nullable)
        self.is_time = isinstance(column.type, UTCDateTime)
        self.is_text = not isinstance(column.type, (Money, UTCDateTime))
        self._column = column
        self._place = f"{column.table.name}.{column.name}"
        self._dialect = dialect
        self._on_sqlite = dialect.name == "sqlite"
        self._shortcut = _shortcut(column.type, self._on_sqlite)

    def cells(self, values: Values | None, size: int) -> Cells:
        """The cells of `values`; of the default if the rows do not name the column."""
        if values is None:
            values = self._defaults(size)
        kinds = set(map(type, values))
        if _NONE not in kinds:
            return self._present(kinds, values)
        if not self.nullable:
            raise InvalidValueError("a value is needed", self._place)
        if len(kinds) == 1:
            return values
        present = iter(self._present(kinds - {_NONE}, [value for value in values if value is not None]))
        return [None if value is None else next(present) for value in values]

    def _present(self, kinds: set[type], values: Values) -> Cells:
        cells = None if self._shortcut is None else self._shortcut(kinds, values)
        return [self._cell(value) for value in values] if cells is None else cells

    def _cell(self, value: Any) -> Any:
        """What the ORM's own way would hand to the driver, in the form in which the driver would send it."""
        kind = self._column.type
        if isinstance(kind, Json):
            return json.dumps(kind.plain(value), ensure_ascii=False, separators=(",", ":"))
        bound = kind.process_bind_param(value, self._dialect) if isinstance(kind, CheckedType) else value
        if isinstance(bound, datetime):
            return bound.isoformat(" ", "microseconds")
        if self._on_sqlite:
            return int(bound) if isinstance(bound, bool) else bound
        if isinstance(bound, bool):
            return "t" if bound else "f"
        return bound if isinstance(bound, str) else str(bound)

    def _defaults(self, size: int) -> Values:
        default: Any = self._column.default
        if default is None:
            return [None] * size
        return [default.arg(None) for _ in range(size)] if default.is_callable else [default.arg] * size


def prepared(layout: Layout, batch: Batch) -> Iterator[list[Cells]]:
    """The cells of a batch, a chunk at a time; `InvalidValueError` with the position of the first bad row."""
    for start in range(0, len(batch), CHUNK):
        stop = min(start + CHUNK, len(batch))
        try:
            for chunk in batch.chunks(start, stop):
                yield layout.cells(chunk)
        except InvalidValueError:
            for index in range(start, stop):
                cells_of_row(layout, batch, index)
            raise


def cells_of_row(layout: Layout, batch: Batch, index: int) -> list[Cells]:
    """The cells of a single row; `InvalidValueError` with its position."""
    try:
        (chunk,) = batch.chunks(index, index + 1)
        return layout.cells(chunk)
    except InvalidValueError as error:
        raise InvalidValueError(error.problem, error.column, batch.position + index) from None


def _shortcut(kind: Any, on_sqlite: bool) -> Shortcut | None:
    if isinstance(kind, Money):
        return _money_floats if on_sqlite else _money_texts
    if isinstance(kind, UTCDateTime):
        return _times if on_sqlite else _times_with_zone
    if isinstance(kind, Vocabulary):
        return _words(frozenset(word.value for word in kind.words))
    if isinstance(kind, BoundedString):
        return _bounded(kind.length)
    if isinstance(kind, Json):
        return None if orjson is None else _documents
    return None


# A decimal point and nine digits: one too many. It stops at the points alone, which is what makes it fast.
_TOO_PRECISE = re.compile(r"\.[0-9]{9}").search
_PLAIN_NUMBER = re.compile(rf"-?[0-9]{{1,{MONEY_DIGITS - MONEY_PLACES}}}(?:\.[0-9]{{1,{MONEY_PLACES}}})?").fullmatch
_MONEY_LIMIT = 10 ** (MONEY_DIGITS - MONEY_PLACES)


def _money_texts(kinds: set[type], values: Values) -> Cells | None:
    if kinds == {Decimal}:
        texts = list(map(str, values))
        together = " ".join(texts)
        # Of a Decimal's text only exponents, NaN and Infinity have letters.
        if "E" in together or "e" in together or "N" in together or "I" in together:
            return None
        # Most amounts are too short to be too precise or too large: their lengths are known sooner than their values.
        longest = max(map(len, texts))
        if longest > MONEY_PLACES + 1 and _TOO_PRECISE(together):
            return None
        whole = MONEY_DIGITS - MONEY_PLACES
        return texts if longest <= whole or max(map(Decimal.adjusted, values)) < whole else None
    if kinds == {str}:
        return values if all(map(_PLAIN_NUMBER, values)) else None
    if kinds == {int}:
        return list(map(str, values)) if min(values) > -_MONEY_LIMIT and max(values) < _MONEY_LIMIT else None
    return None


def _money_floats(kinds: set[type], values: Values) -> Cells | None:
    texts = _money_texts(kinds, values)
    # 15 digits and a point: every 8-byte float gives as many back.
    return None if texts is None or max(map(len, texts)) > 16 else list(map(float, texts))


def _times(kinds: set[type], values: Values) -> Cells | None:
    return instant_texts(values, with_zone=False) if kinds == {datetime} else None


def _times_with_zone(kinds: set[type], values: Values) -> Cells | None:
    return instant_texts(values, with_zone=True) if kinds == {datetime} else None


def _words(allowed: frozenset[str]) -> Shortcut:
    return lambda kinds, values: values if kinds == {str} and allowed.issuperset(values) else None


def _bounded(length: int) -> Shortcut:
    def texts(kinds: set[type], values: Values) -> Cells | None:
        if kinds != {str} or max(map(len, values)) > length:
            return None
        together = "".join(values)
        return values if together.isascii() and "\0" not in together else None

    return texts


_SCALARS = {str, int, bool, _NONE}
_CONTAINERS = {dict, list}


def _documents(kinds: set[type], values: Values) -> Cells | None:
    if not kinds <= _CONTAINERS:
        return None
    try:
        if not _are_plain(values):
            return None
        texts = [orjson.dumps(value).decode() for value in values]
    except TypeError:  # keys that are not text, numbers above 64 bits, lone surrogates
        return None
    # The first test is much the faster one, and mostly enough.
    return None if any("\\" in text and "\\u0000" in text for text in texts) else texts


def _are_plain(documents: Iterable[Any], levels: int = 10) -> bool:
    """Whether they hold text, whole numbers, true, false, null, dicts and lists, and exactly these types."""
    items = [document.values() if type(document) is dict else document for document in documents]
    kinds = set(map(type, chain.from_iterable(items)))
    if kinds <= _SCALARS:
        return True
    return (
        kinds <= _SCALARS | _CONTAINERS
        and levels > 0
        and _are_plain((item for item in chain.from_iterable(items) if type(item) in _CONTAINERS), levels - 1)
    )
