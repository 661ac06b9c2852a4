"""Checked Arrow arrays in PostgreSQL's binary form, many values at once, and rows of them as COPY takes them.

Needs numpy and pyarrow, so it is imported late. What it does not hold raises one of `arrow.NOT_HELD`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared.db.value_forms.amounts import MONEY_PLACES
from shared.db.value_forms.arrow import INSTANT, MONEY, NotHeldError
from shared.db.value_forms.forms import Cells

_TEXTS: Final = frozenset({"text", "varchar", "bpchar", "json"})
_WHOLE_NUMBERS = {"int2": pa.int16(), "int4": pa.int32(), "int8": pa.int64()}
HELD: Final = _TEXTS | _WHOLE_NUMBERS.keys() | {"numeric", "timestamptz", "float8", "bool", "jsonb"}
"""What the server calls the types whose values the binary form may hold."""
_OF_TEXT = {"numeric": MONEY, "timestamptz": INSTANT, "float8": pa.float64()} | dict.fromkeys(
    _WHOLE_NUMBERS, pa.int64()
)
_FLAGS = {"t": True, "f": False, None: None}
_VERSION_OF_JSONB = "\x01"
_SINCE_1970 = 946_684_800_000_000
# A numeric is digits of base 10,000: three of them make the 12 places before the point, two the 8 behind it.
_BASE = 10_000
_UNITS = 10**MONEY_PLACES
_HIGH_WHOLE, _HIGH_UNITS = divmod(2**64, _UNITS)
_NEGATIVE = 0x4000
_DIGITS = 4
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_PART = 2_500


class Column(NamedTuple):
    """A column that the binary form holds: an array, None for NULLs alone, and what the server calls its type."""

    array: Any
    stored_as: str


class _Field(NamedTuple):
    """Values: those of one size are pieces, with numpy's type of each; others are a binary array."""

    pieces: Sequence[tuple[str, Any]] = ()
    body: Any = None


def column(array: Any, stored_as: str) -> Column:
    """A checked array for a column that the server calls `stored_as`."""
    kind = array.type
    if stored_as in _WHOLE_NUMBERS and pa.types.is_integer(kind):
        return Column(array.cast(_WHOLE_NUMBERS[stored_as]), stored_as)
    if not (
        (stored_as in _TEXTS and pa.types.is_string(kind))
        or (stored_as == "numeric" and kind == MONEY)
        or (stored_as == "timestamptz" and kind == INSTANT)
        or (stored_as == "float8" and pa.types.is_floating(kind))
        or (stored_as == "bool" and pa.types.is_boolean(kind))
    ):
        raise NotHeldError
    return Column(array, stored_as)


def column_of_cells(cells: Any, stored_as: str) -> Column:
    """What is checked: an array, or cells in the form in which COPY takes them as text."""
    if isinstance(cells, pa.Array):
        return column(cells, stored_as)
    if stored_as == "jsonb":
        cells, stored_as = [None if cell is None else _VERSION_OF_JSONB + cell for cell in cells], "json"
    if stored_as == "bool":
        array = pa.array(map(_FLAGS.__getitem__, cells), pa.bool_())
    else:
        # Symbols, runs and accounts are mostly all the same.
        same = cells[0] is not None and cells[0] == cells[-1] and cells.count(cells[0]) == len(cells)
        array = pa.repeat(cells[0], len(cells)) if same else pa.array(cells, pa.string())
        if stored_as in _OF_TEXT:
            array = array.cast(_OF_TEXT[stored_as])
    return Column(None, stored_as) if array.null_count == len(array) else column(array, stored_as)


def rows(columns: Sequence[Column], count: int) -> Iterator[bytes]:
    """Whole rows, as COPY takes them with FORMAT binary; some at a time, while the server stores those before."""
    yield _HEADER
    for start in range(0, count, _PART):
        yield _part(columns, start, min(_PART, count - start))
    yield _TRAILER


def rows_of_cells(chunks: Iterable[Sequence[Cells]], stored_as: Sequence[str]) -> Iterator[bytes]:
    """As `rows`, of chunks of such cells."""
    yield _HEADER
    for cells in _together(chunks):
        columns = list(map(column_of_cells, cells, stored_as))
        yield _part(columns, 0, len(cells[0]))
    yield _TRAILER


def _together(chunks: Iterable[Sequence[Cells]]) -> Iterator[Sequence[Cells]]:
    """The same rows; small chunks without arrays, as rows of different columns come in, are put together."""
    held: list[list[Any]] = []
    for chunk in chunks:
        if any(isinstance(cells, pa.Array) for cells in chunk):
            if held:
                yield held
                held = []
            yield chunk
            continue
        held = held or [[] for _ in chunk]
        for cells, more in zip(held, chunk, strict=True):
            cells += more
        if len(held[0]) >= _PART:
            yield held
            held = []
    if held:
        yield held


def _part(columns: Sequence[Column], start: int, count: int) -> bytes:
    pieces: list[tuple[str, Any]] = [(">i2", len(columns))]
    segments = []
    for array, stored_as in columns:
        if array is None:
            pieces.append((">i4", -1))
            continue
        values, valid = array if count == len(array) else array.slice(start, count), None
        if values.null_count:
            valid = values.is_valid().to_numpy(zero_copy_only=False)
            empty = "" if pa.types.is_string(values.type) else False if pa.types.is_boolean(values.type) else 0
            values = values.fill_null(pa.scalar(empty, values.type))
        field = _field(values, stored_as)
        size: Any
        if field.body is None:
            size = _record_of(*(kind for kind, _ in field.pieces)).itemsize
        else:
            size = _lengths_of(field.body)
        pieces.append((">i4", size if valid is None else np.where(valid, size, -1)))
        if field.body is None and valid is None:
            pieces.extend(field.pieces)
            continue
        segments += [_fixed(pieces, count), _fixed(field.pieces, count, valid) if field.body is None else field.body]
        pieces = []
    if pieces:
        segments.append(_fixed(pieces, count))
    return bytes(_bytes_of(pc.binary_join_element_wise(*segments, pa.scalar(b"", pa.binary()))))


def _field(values: Any, stored_as: str) -> _Field:
    if stored_as in _TEXTS:
        body = values.view(pa.binary())
        lengths = _lengths_of(body)
        size = int(lengths[0])
        if size and (lengths == size).all():
            return _Field([(f"V{size}", np.frombuffer(_bytes_of(body), f"V{size}"))])
        return _Field(body=body)
    if stored_as == "numeric":
        return _Field(_numeric(values))
    if stored_as == "timestamptz":
        return _Field([(">i8", values.view(pa.int64()).to_numpy() - _SINCE_1970)])
    numbers = values.to_numpy(zero_copy_only=False)
    return _Field([(f">{numbers.dtype.kind}{numbers.dtype.itemsize}", numbers)])


def _numeric(array: Any) -> list[tuple[str, Any]]:
    """With 8 places, of halves of 64 bits: the higher one is that of the magnitude, below 6."""
    low, high = np.frombuffer(array.buffers()[1], np.uint64).reshape(-1, 2)[array.offset :][: len(array)].T
    below, sign = high >= 2**63, 0
    if below.any():
        low = np.where(below, ~low + np.uint64(1), low)
        high = np.where(below, ~high + (low == 0), high)
        sign = below * np.uint64(_NEGATIVE << 16)
    whole = low // _UNITS
    units = low - whole * _UNITS
    if high.any():
        units += high * np.uint64(_HIGH_UNITS)
        more = units // _UNITS
        whole += high * np.uint64(_HIGH_WHOLE) + more
        units -= more * _UNITS
    # Four digits in 64 bits; the server strips zeros that lead, so that a fifth stands before them or before none.
    upper, lower = whole // _BASE, units // _BASE
    first, middle = upper // _BASE, whole - upper * _BASE
    four = ((upper - first * _BASE) << 48) | (middle << 32) | (lower << 16) | (units - lower * _BASE)
    fifth = int(first.any())
    heading = (_DIGITS + fifth << 48) | (1 + fifth << 32) | sign | MONEY_PLACES
    return [(">u8", heading), *([(">u2", first)] if fifth else []), (">u8", four)]


def _fixed(pieces: Sequence[tuple[str, Any]], count: int, valid: Any = None) -> Any:
    """Records of one size, one after another, as a binary array; one that is not valid is empty."""
    kind = _record_of(*(kind for kind, _ in pieces))
    record = np.empty(count, kind)
    for name, (_, values) in zip(kind.names, pieces, strict=True):
        record[name] = values
    offsets = np.arange(0, (count + 1) * kind.itemsize, kind.itemsize, dtype=np.int32)
    data = record
    if valid is not None:
        offsets, data = np.concatenate(([0], np.cumsum(valid) * kind.itemsize)).astype(np.int32), record[valid]
    return pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data.view(np.uint8))])


@lru_cache(maxsize=256)
def _record_of(*kinds: str) -> Any:
    return np.dtype([(f"f{number}", kind) for number, kind in enumerate(kinds)])


def _offsets_of(body: Any) -> Any:
    return np.frombuffer(body.buffers()[1], np.int32)[body.offset :][: len(body) + 1]


def _lengths_of(body: Any) -> Any:
    offsets = _offsets_of(body)
    return offsets[1:] - offsets[:-1]


def _bytes_of(body: Any) -> memoryview:
    offsets, data = _offsets_of(body), body.buffers()[2]
    return memoryview(b"" if data is None else data)[offsets[0] : offsets[-1]]
