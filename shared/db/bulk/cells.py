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
from typing import Any, NamedTuple

from sqlalchemy import Column, Dialect, Table
from sqlalchemy.engine import make_url

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
from shared.db.dialects import PORTS, SQLITE, port_of
from shared.db.errors import InvalidValueError

try:
    import orjson
except ImportError:  # the extra `fast` is not installed
    orjson = None  # type: ignore[assignment] # None is what tells

Values = Sequence[Any]
Cells = Sequence[Any]
# Cells for all of the values; None, or `TypeError`, where any of them needs a closer look.
Shortcut = Callable[[Values], Cells | None]
# What amounts have become, by the index of the row, for those that have lost digits.
Rounded = dict[int, str]

_SHOWN = 40
_DIALECTS: dict[str, Dialect] = {port.name: make_url(f"{port.driver}://").get_dialect()() for port in PORTS}
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

    def cells(self, chunk: Chunk, rounded: Rounded, first: int = 0) -> list[Cells]:
        """One sequence of cells for each column; `InvalidValueError` if any value does not fit.

        What loses digits is noted in `rounded`, where the chunk's first row has the index `first`.
        """
        given = self._given(chunk)
        made: dict[Any, Cells] = {}
        cells = []
        for column in self.columns:
            values = given.get(column.name)
            # Archives know no local time and give the exchange's twice: the very same times are converted once.
            key = (id(values), column.nullable) if column.is_time and values is not None else column.name
            if key not in made:
                kept = given.get(column.kept_in) if column.kept_in is not None else None
                made[key] = column.cells(values, chunk.size, Digits(kept, rounded, first))
            cells.append(made[key])
        return cells

    def check(self, chunk: Chunk) -> None:
        """`InvalidValueError` if any value that is given does not fit; missing columns are none of its business."""
        given = self._given(chunk)
        for column in self.columns:
            if column.name in given:
                column.cells(given[column.name], chunk.size, Digits(None, {}, 0))

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


class Digits(NamedTuple):
    """Where the digits of amounts are kept that a column cannot hold, if anywhere, and where that is noted."""

    kept: Values | None
    rounded: Rounded
    first: int


class CellColumn:
    """One column of a layout."""

    def __init__(self, column: Column[Any], dialect: Dialect) -> None:
        self.name = column.name
        self.nullable = bool(column.nullable)
        self.is_time = isinstance(column.type, UTCDateTime)
        self.is_text = not isinstance(column.type, (Money, UTCDateTime))
        self.kept_in = column.type.kept_in if isinstance(column.type, Money) else None
        self._column = column
        self._place = f"{column.table.name}.{column.name}"
        self._dialect = dialect
        self._on_sqlite = port_of(dialect) is SQLITE
        self._bind = (
            None if isinstance(column.type, CheckedType) else column.type.dialect_impl(dialect).bind_processor(dialect)
        )
        self._shortcut = _shortcut(column.type, self._on_sqlite)

    def cells(self, values: Values | None, size: int, digits: Digits) -> Cells:
        """The cells of `values`; of the default if the rows do not name the column."""
        if values is None:
            values = self._defaults(size)
        cells = self._quickly(values)
        if cells is not None:
            return cells
        present = [value for value in values if value is not None]
        if len(present) < len(values):
            if not self.nullable:
                raise InvalidValueError("a value is needed", self._place)
            if not present:
                return values
            cells = self._quickly(present)
            if cells is not None:
                made = iter(cells)
                return [None if value is None else next(made) for value in values]
        cell = self._cell
        if isinstance(self._column.type, Money):
            return [None if value is None else self._amount(value, index, digits) for index, value in enumerate(values)]
        return [None if value is None else cell(value) for value in values]

    def _amount(self, value: Any, index: int, digits: Digits) -> Any:
        kind = self._column.type
        assert isinstance(kind, Money)
        if digits.kept is not None and digits.kept[index] is not None:
            bound = kind.nearest(value, self._dialect, nullable=self.nullable)
        else:
            bound = kind.process_bind_param(value, self._dialect)
        given = kind.amount(value)
        if bound is None or given != (Decimal(repr(bound)) if isinstance(bound, float) else bound):
            stored = "NULL" if bound is None else f"{Decimal(str(bound)):f}"
            row = digits.first + index
            said = f"{self.name} {str(given)[:_SHOWN]} is stored as {stored}"
            digits.rounded[row] = f"{digits.rounded[row]}; {said}" if row in digits.rounded else said
        return bound if bound is None or self._on_sqlite else str(bound)

    def _quickly(self, values: Values) -> Cells | None:
        try:
            return None if self._shortcut is None else self._shortcut(values)
        except TypeError:
            return None

    def _cell(self, value: Any) -> Any:
        """What the ORM's own way would hand to the driver, in the form in which the driver would send it."""
        kind = self._column.type
        if isinstance(kind, Json):
            return json.dumps(kind.plain(value), ensure_ascii=False, separators=(",", ":"))
        if isinstance(kind, CheckedType):
            bound = kind.process_bind_param(value, self._dialect)
        else:
            bound = value if self._bind is None else self._bind(value)
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


def prepared(layout: Layout, batch: Batch, rounded: Rounded) -> Iterator[list[Cells]]:
    """The cells of a batch, a chunk at a time; `InvalidValueError` with the position of the first bad row."""
    rounded.clear()  # a second attempt makes all of them again
    for start in range(0, len(batch), CHUNK):
        stop = min(start + CHUNK, len(batch))
        try:
            first = start
            for chunk in batch.chunks(start, stop):
                yield layout.cells(chunk, rounded, first)
                first += chunk.size
        except InvalidValueError:
            for index in range(start, stop):
                cells_of_row(layout, batch, index, {})
            raise


def cells_of_row(layout: Layout, batch: Batch, index: int, rounded: Rounded) -> list[Cells]:
    """The cells of a single row; `InvalidValueError` with its position."""
    try:
        (chunk,) = batch.chunks(index, index + 1)
        return layout.cells(chunk, rounded, index)
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
_LIMIT = 10 ** (MONEY_DIGITS - MONEY_PLACES)
_EXACT_LIMIT = 10.0 ** (15 - MONEY_PLACES)


def _money_texts(values: Values) -> Cells | None:
    texts = _decimal_texts(values)
    # A number of so few characters is below the limit.
    if texts is None or max(map(len, texts)) <= MONEY_DIGITS - MONEY_PLACES:
        return texts
    return texts if all(map(_PLAIN_NUMBER, texts)) else None


def _money_floats(values: Values) -> Cells | None:
    texts = _decimal_texts(values)
    if texts is None:
        return None
    floats = list(map(float, texts))
    # Every 8-byte float gives 15 digits as they were: 7 before the point and 8 behind it, or those of 16 characters.
    if min(floats) > -_EXACT_LIMIT and max(floats) < _EXACT_LIMIT:
        return floats
    return floats if max(map(len, texts)) <= 16 and all(map(_PLAIN_NUMBER, texts)) else None


def _decimal_texts(values: Values) -> Cells | None:
    """The texts of numbers of at most 8 decimal places, written without an exponent."""
    try:
        texts = list(map(Decimal.__str__, values))
    except TypeError:
        return _number_texts(values)
    together = " ".join(texts)
    # Of a Decimal's text only exponents, NaN and Infinity have letters.
    if "E" in together or "e" in together or "N" in together or "I" in together or _TOO_PRECISE(together):
        return None
    return texts


def _number_texts(values: Values) -> Cells | None:
    kinds = set(map(type, values))
    if kinds == {str}:
        return values if all(map(_PLAIN_NUMBER, values)) else None
    if kinds == {int}:
        return list(map(str, values)) if min(values) > -_LIMIT and max(values) < _LIMIT else None
    return None


def _times(values: Values) -> Cells | None:
    return instant_texts(values, with_zone=False) if set(map(type, values)) == {datetime} else None


def _times_with_zone(values: Values) -> Cells | None:
    return instant_texts(values, with_zone=True) if set(map(type, values)) == {datetime} else None


def _words(allowed: frozenset[str]) -> Shortcut:
    return lambda values: values if _are_str(values) and allowed.issuperset(values) else None


def _are_str(values: Values) -> bool:
    # Exactly: what derives from str may claim to equal what it is not, the account of another user for one.
    return set(map(type, values)) == {str}


def _bounded(length: int) -> Shortcut:
    def texts(values: Values) -> Cells | None:
        if not _are_str(values):
            return None
        together = "".join(values)
        # Symbols, runs and accounts are mostly all the same.
        same = values[0] == values[-1] and values.count(values[0]) == len(values)
        longest = len(values[0]) if same else max(map(len, values))
        return values if longest <= length and together.isascii() and "\0" not in together else None

    return texts


_SCALARS = {str, int, bool, _NONE}
_CONTAINERS = {dict, list}


def _documents(values: Values) -> Cells | None:
    if not set(map(type, values)) <= _CONTAINERS:
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
