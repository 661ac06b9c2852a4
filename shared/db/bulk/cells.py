"""Columns of values, checked and turned into what a driver takes: `cells`.

The rules are those of the column's type, which has two ways to a cell. What is usual (plain Decimals of 8 places, aware
datetimes, ASCII text) is recognised a chunk at a time and takes the shorter way to the same cells: a test with random
values holds the two equal.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, lru_cache, partial
from itertools import chain
from types import ModuleType
from typing import Any, NamedTuple

from sqlalchemy import Column, Dialect, Table

from shared.db.bulk.rows import CHUNK, Chunk, RowBatch, is_array, listed
from shared.db.dialects import port_of
from shared.db.errors import InvalidValueError
from shared.db.value_forms.forms import DIALECTS, Cells, Rounded, Values, forms_of

# Below, a chunk's calls into Arrow cost more than the server saves. So many are made while it stores what a socket has.
_FEWEST_PACKED, _MOST_PACKED = 5_000, 700
_LOADING_PAYS = 200_000
# What amounts have become, by the index of the row, for those that have lost digits.
Losses = dict[int, str]


class CellLayout:
    """Which column of a table gets which cells, on one dialect.

    `numbered` says whether rows bring the number that the database would give them otherwise; `packing`, that the cells
    are for COPY's binary form.
    """

    def __init__(self, table: Table, dialect: str, numbered: bool, *, packing: bool = False) -> None:
        self.table = table
        self.packing = packing
        self._key = table, dialect, numbered
        self.columns = [
            CellColumn(column, DIALECTS[dialect], packing)
            for column in table.columns
            if numbered or column is not table.autoincrement_column
        ]
        self.names = [column.name for column in self.columns]
        self._names = frozenset(self.names)

    def cells(self, chunk: Chunk, rounded: Losses, first: int = 0) -> list[Cells]:
        """One sequence of cells for each column; `InvalidValueError` if any value does not fit.

        What loses digits is noted in `rounded`, where the chunk's first row has the index `first`.
        """
        given = self._given(chunk)
        made: dict[Any, Cells] = {}
        cells = []
        for column in self.columns:
            values = given.get(column.name)
            # Archives know no local time and give the exchange's twice: the very same times are converted once.
            key = (id(values), column.nullable) if column.alike and values is not None else column.name
            if key not in made:
                kept = given.get(column.kept_in) if column.kept_in is not None else None
                made[key] = column.cells(values, chunk.size, Digits(kept, rounded, first))
            cells.append(made[key])
        return cells

    def packed(self, columns: Mapping[str, Any], size: int, stored_as: Mapping[str, str]) -> Packed | None:
        """The same rows for PostgreSQL in binary form, of columns of which some are Arrow arrays.

        `stored_as` has the names of the server's types. None where that form does not hold all values.
        """
        binary = _binary()
        if binary is None or not self._names.issuperset(columns):
            return None
        try:
            held = [
                column.packed(columns.get(column.name), size, stored_as.get(column.name, ""), binary)
                for column in self.columns
            ]
        except (*_arrow().NOT_HELD, InvalidValueError):
            return None
        return Packed(partial(binary.rows, held, size), size)

    def packed_cells(
        self, make: Callable[[CellLayout], Iterator[list[Cells]]], size: int, stored_as: Mapping[str, str]
    ) -> Packed | None:
        """The rows whose cells `make` makes in a layout, in the same form, of which Python's values are made as needed.

        None where the server has a type that the form does not hold. A value that it does not hold raises
        `NotPackedError` while it is written.
        """
        binary, kinds = _binary(), [stored_as.get(name, "") for name in self.names]
        if binary is None or not binary.HELD.issuperset(kinds):
            return None

        def parts() -> Iterator[bytes]:
            try:
                yield from binary.rows_of_cells(make(packing_layout_of(*self._key)), kinds)
            except _arrow().NOT_HELD as error:
                raise NotPackedError from error

        return Packed(parts, size)

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
def cell_layout_of(table: Table, dialect: str, numbered: bool) -> CellLayout:
    """The layout, made once."""
    return CellLayout(table, dialect, numbered)


@lru_cache(maxsize=64)
def packing_layout_of(table: Table, dialect: str, numbered: bool) -> CellLayout:
    """Likewise, for the binary form."""
    return CellLayout(table, dialect, numbered, packing=True)


def pays_to_pack(count: int) -> bool:
    """Whether so many rows are faster in binary form; counts them, if they are not.

    Loading numpy and pyarrow takes a quarter of a second: where nobody has, as many rows go without as would have
    saved that.
    """
    if count < _FEWEST_PACKED:
        return False
    if arrow_is_loaded():
        return True
    _Unpacked.rows += count
    return _Unpacked.rows > _LOADING_PAYS


def arrow_is_loaded() -> bool:
    """Whether somebody in this process has loaded what the binary form needs."""
    return {"numpy", "pyarrow"} <= sys.modules.keys()


class _Unpacked:
    rows = 0


@cache
def _binary() -> ModuleType | None:
    try:
        return importlib.import_module("shared.db.value_forms.binary")
    except ImportError:  # numpy is not installed
        return None


@cache
def _arrow() -> Any:
    """What there is for Arrow arrays, whose library is there if they are."""
    return importlib.import_module("shared.db.value_forms.arrow")


class Digits(NamedTuple):
    """Where the digits of amounts are kept that a column cannot hold, if anywhere, and where that is noted."""

    kept: Values | None
    rounded: Losses
    first: int

    def of_part(self, start: int, size: int) -> Digits:
        """Those of some of the rows."""
        kept = None if self.kept is None else self.kept[start : start + size]
        return Digits(kept, self.rounded, self.first + start)


class Packed(NamedTuple):
    """Rows in the binary form that COPY takes."""

    parts: Callable[[], Iterator[bytes]]
    size: int


class NotPackedError(Exception):
    """The binary form does not hold a value; as text it may be stored, or refused with the reason."""


class CellColumn:
    """One column of a layout."""

    def __init__(self, column: Column[Any], dialect: Dialect, packing: bool) -> None:
        forms = forms_of(column.type)
        self.name = column.name
        self.nullable = bool(column.nullable)
        self.alike, self.escaped, self.kept_in = forms.alike, forms.escaped, forms.kept_in
        self.shortcut, self.cell = forms.shortcut(dialect), forms.cell(dialect)
        self._has_arrays, self._packing = _has_arrays(type(forms)), packing
        self._check, self._dialect, self._document = forms.arrow_checked, dialect, forms.document
        self._rounding = forms.rounding(dialect, nullable=self.nullable)
        self._default: Any = column.default
        self._place = f"{column.table.name}.{column.name}"

    def cells(self, values: Values | None, size: int, digits: Digits) -> Cells:
        """The cells of `values`; of the default if the rows do not name the column."""
        if values is None:
            values = self._defaults(size)
        if is_array(values):
            with suppress(*_arrow().NOT_HELD):
                checked = self._checked(values)
                return [None] * size if checked is None else _arrow().cells(checked, port_of(self._dialect))
            values = listed(values)
        if self._packing and size >= CHUNK:
            with suppress(*_arrow().NOT_HELD):
                array = self._checked(_arrow().array_of(values))
                return values if array is None else array
            if self._rounding is not None and size > CHUNK:
                # One amount that is looked at more closely costs its neighbours as much.
                parts = (
                    self._cells(values[start : start + CHUNK], digits.of_part(start, CHUNK))
                    for start in range(0, size, CHUNK)
                )
                return list(chain.from_iterable(parts))
        return self._cells(values, digits)

    def _cells(self, values: Values, digits: Digits) -> Cells:
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
        if self._rounding is not None:
            return [
                None if value is None else self._rounded(self._rounding, value, index, digits)
                for index, value in enumerate(values)
            ]
        cell = self.cell
        return [None if value is None else cell(value) for value in values]

    def packed(self, values: Any, size: int, stored_as: str, binary: ModuleType) -> Any:
        """The `binary.Column` of `values`; `InvalidValueError`, or one of `arrow.NOT_HELD`, where it has none."""
        if self._document:
            values = listed(values)
        if is_array(values):
            checked = self._checked(values)
            return binary.Column(None, stored_as) if checked is None else binary.column(checked, stored_as)
        lost: Losses = {}
        cells = self.cells(values, size, Digits(None, lost, 0))
        if lost:
            raise _arrow().NotHeldError
        return binary.column_of_cells(cells, stored_as)

    def _checked(self, values: Any) -> Any:
        """The array as `arrow_checked` gives it; None for NULLs alone."""
        arrow = _arrow()
        if not self._has_arrays or (values.null_count and not self.nullable):
            raise arrow.NotHeldError
        return None if values.null_count == len(values) else self._check(values, self._dialect, arrow)

    def _rounded(self, make: Callable[[Any, bool], Rounded], value: Any, index: int, digits: Digits) -> Any:
        cell, lost = make(value, digits.kept is not None and digits.kept[index] is not None)
        if lost is not None:
            row, said = digits.first + index, f"{self.name} {lost}"
            digits.rounded[row] = f"{digits.rounded[row]}; {said}" if row in digits.rounded else said
        return cell

    def _quickly(self, values: Values) -> Cells | None:
        try:
            return None if self.shortcut is None else self.shortcut(values)
        except TypeError:
            return None

    def _defaults(self, size: int) -> Values:
        default = self._default
        if default is None:
            return [None] * size
        return [default.arg(None) for _ in range(size)] if default.is_callable else [default.arg] * size


def _has_arrays(forms: type[Any]) -> bool:
    """Whether what a type says of arrays holds: one that derives from it may change what is made of a value."""
    for kind in forms.__mro__:
        if "arrow_checked" in vars(kind):
            return True
        if not vars(kind).keys().isdisjoint(("process_bind_param", "cell", "shortcut", "rounding")):
            return False
    return False


def prepared(layout: CellLayout, batch: RowBatch, rounded: Losses) -> Iterator[list[Cells]]:
    """The cells of a batch, a chunk at a time; `InvalidValueError` with the position of the first bad row."""
    rounded.clear()  # a second attempt makes all of them again
    for start, stop in _spans(len(batch), batch.step, layout.packing):
        try:
            first = start
            for chunk in batch.chunks(start, stop):
                yield layout.cells(chunk, rounded, first)
                first += chunk.size
        except InvalidValueError:
            for index in range(start, stop):
                cells_of_row(layout, batch, index, {})
            raise


def _spans(count: int, step: int, packing: bool) -> Iterator[tuple[int, int]]:
    """Where chunks begin and end.

    Those for the binary form are larger, since a call into Arrow costs more; the first ones are not, so that the server
    soon has something to do.
    """
    stop = 0
    while stop < count:
        start, stop = stop, min(stop + step, count)
        if packing:
            step = min(step * 3 // 2, _MOST_PACKED)
            stop = count if count - stop < step // 2 else stop
        yield start, stop


def cells_of_row(layout: CellLayout, batch: RowBatch, index: int, rounded: Losses) -> list[Cells]:
    """The cells of a single row; `InvalidValueError` with its position."""
    try:
        (chunk,) = batch.chunks(index, index + 1)
        return layout.cells(chunk, rounded, index)
    except InvalidValueError as error:
        raise InvalidValueError(error.problem, error.column, batch.position + index) from None
