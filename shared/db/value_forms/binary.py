"""Checked Arrow arrays in PostgreSQL's binary form, many values at once, and rows of them as COPY takes them.

Needs numpy and pyarrow, so it is imported late. What it does not hold raises one of `arrow.NOT_HELD`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared.db.value_forms.amounts import MONEY_PLACES
from shared.db.value_forms.arrow import INSTANT, MONEY, NotHeldError

_TEXTS: Final = frozenset({"text", "varchar", "bpchar", "json"})
_WHOLE_NUMBERS = {"int2": pa.int16(), "int4": pa.int32(), "int8": pa.int64()}
_VERSION_OF_JSONB = "\x01"
_SINCE_1970 = 946_684_800_000_000
# A numeric is digits of base 10,000: three of them make the 12 places before the point, two the 8 behind it.
_BASE = 10_000
_UNITS = 10**MONEY_PLACES
_HIGH_WHOLE, _HIGH_UNITS = divmod(2**64, _UNITS)
_NEGATIVE = 0x4000
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


def column_of_cells(cells: Sequence[str | None], stored_as: str) -> Column:
    """What is checked, and has the form in which COPY takes it as text."""
    if stored_as == "jsonb":
        versioned = [None if cell is None else _VERSION_OF_JSONB + cell for cell in cells]
        return column(pa.array(versioned, pa.string()), "json")
    kinds = {"numeric": MONEY, "timestamptz": INSTANT} | dict.fromkeys(_WHOLE_NUMBERS, pa.int64())
    return column(pa.array(cells, pa.string()).cast(kinds.get(stored_as, pa.string())), stored_as)


def rows(columns: Sequence[Column], count: int) -> Iterator[bytes]:
    """Whole rows, as COPY takes them with FORMAT binary; some at a time, while the server stores those before."""
    yield _HEADER
    for start in range(0, count, _PART):
        yield _part(columns, start, min(_PART, count - start))
    yield _TRAILER


def _part(columns: Sequence[Column], start: int, count: int) -> bytes:
    pieces: list[tuple[str, Any]] = [(">i2", len(columns))]
    segments = []
    for array, stored_as in columns:
        if array is None:
            pieces.append((">i4", -1))
            continue
        values, valid = array.slice(start, count), None
        if values.null_count:
            valid = values.is_valid().to_numpy(zero_copy_only=False)
            empty = "" if pa.types.is_string(values.type) else False if pa.types.is_boolean(values.type) else 0
            values = values.fill_null(pa.scalar(empty, values.type))
        field = _field(values, stored_as)
        size = sum(np.dtype(kind).itemsize for kind, _ in field.pieces)
        if field.body is not None:
            size = np.diff(_offsets_of(field.body))
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
        return _Field(body=values.cast(pa.binary()))
    if stored_as == "numeric":
        return _Field(_numeric(values))
    if stored_as == "timestamptz":
        return _Field([(">i8", values.cast(pa.int64()).to_numpy() - _SINCE_1970)])
    numbers = values.to_numpy(zero_copy_only=False)
    return _Field([(f">{numbers.dtype.kind}{numbers.dtype.itemsize}", numbers)])


def _numeric(array: Any) -> list[tuple[str, Any]]:
    """With 8 places, of halves of 64 bits: the higher one is that of the magnitude, below 6."""
    low, high = np.frombuffer(array.buffers()[1], np.uint64).reshape(-1, 2)[array.offset :][: len(array)].T
    below = high >= 2**63
    if below.any():
        low = np.where(below, ~low + np.uint64(1), low)
        high = np.where(below, ~high + (low == 0), high)
    whole, units = low // _UNITS, low % _UNITS
    if high.any():
        units += high * np.uint64(_HIGH_UNITS)
        whole += high * np.uint64(_HIGH_WHOLE) + units // _UNITS
        units %= _UNITS
    digits = [whole // _UNITS, whole // _BASE % _BASE, whole % _BASE, units // _BASE, units % _BASE]
    heading = [(">i2", len(digits)), (">i2", 2), (">u2", below * np.uint16(_NEGATIVE)), (">i2", MONEY_PLACES)]
    return [*heading, *((">i2", digit) for digit in digits)]


def _fixed(pieces: Sequence[tuple[str, Any]], count: int, valid: Any = None) -> Any:
    """Records of one size, one after another, as a binary array; one that is not valid is empty."""
    record = np.empty(count, [(f"f{number}", kind) for number, (kind, _) in enumerate(pieces)])
    for number, (_, values) in enumerate(pieces):
        record[f"f{number}"] = values
    ends = np.arange(1, count + 1) if valid is None else np.cumsum(valid)
    offsets = np.concatenate(([0], ends * record.itemsize)).astype(np.int32)
    data = record if valid is None else record[valid]
    return pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data.tobytes())])


def _offsets_of(body: Any) -> Any:
    return np.frombuffer(body.buffers()[1], np.int32)[body.offset :][: len(body) + 1]


def _bytes_of(body: Any) -> memoryview:
    offsets, data = _offsets_of(body), body.buffers()[2]
    return memoryview(b"" if data is None else data)[offsets[0] : offsets[-1]]
