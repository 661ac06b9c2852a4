"""Columns of Arrow arrays: checked as a column type checks its values, many at once, and turned into cells.

Needs pyarrow, so it is imported late. What a check does not pass for certain (another type, an amount of more digits,
text with a NUL) raises one of `NOT_HELD`: it goes the way of Python's objects, which says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import repeat
from operator import sub
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from shared.db.dialects.port import Port
from shared.db.value_forms.amounts import MONEY_DIGITS, MONEY_PLACES, UNITS
from shared.db.value_forms.forms import Cells, Values
from shared.db.value_forms.texts import StoredTexts

MONEY: Final = pa.decimal128(MONEY_DIGITS, MONEY_PLACES)
INSTANT: Final = pa.timestamp("us", "UTC")
_WIDE = pa.decimal128(38, MONEY_PLACES)
_ARROW_TEXTS = frozenset({"string", "large_string", "string_view"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Below, the quotient is the float that gives back all of the 15 digits.
_SURELY_EXACT = 10**15


class NotHeldError(Exception):
    """Values that are not held for certain."""


NOT_HELD: Final = (NotHeldError, pa.ArrowException, OverflowError)


def amounts(values: Any) -> Any:
    """Decimals and whole numbers that lose no digits, as decimal128(20, 8)."""
    require(pa.types.is_decimal(values.type) or pa.types.is_integer(values.type))
    return _one(values if values.type == MONEY else values.cast(_WIDE).cast(MONEY))


def instants(values: Any, earliest: datetime, latest: datetime) -> Any:
    """Times with a zone, of whole microseconds and between the two, as timestamp[us, UTC]."""
    require(pa.types.is_timestamp(values.type) and values.type.tz is not None)
    array = _one(values if values.type == INSTANT else values.cast(INSTANT))
    between = pc.min_max(array.view(pa.int64())).as_py()
    if between["min"] is not None:
        first, last = ((one - _EPOCH) // _MICROSECOND for one in (earliest, latest))
        require(first <= between["min"] and between["max"] <= last)
    return array


def whole_numbers(values: Any) -> Any:
    """Whole numbers of 64 bits."""
    require(pa.types.is_integer(values.type))
    return _one(values.cast(pa.int64()))


def floats(values: Any) -> Any:
    """Floats of 64 bits."""
    require(pa.types.is_floating(values.type))
    return _one(values.cast(pa.float64()))


def flags(values: Any) -> Any:
    """True and False."""
    require(pa.types.is_boolean(values.type))
    return _one(values)


def texts(values: Any, *, most: int | None = None, allowed: Collection[str] | None = None) -> Any:
    """Texts of at most so many characters, or words of a closed list."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    require(str(kind) in _ARROW_TEXTS)
    array = _one(values.cast(pa.string()))
    array.validate(full=True)  # UTF-8 for one thing
    if allowed is not None:
        known = pc.is_in(array, pa.array([*allowed, None], pa.string()))
        require(pc.all(known).as_py() is not False)
        return array
    longest = pc.max(pc.binary_length(array)).as_py() or 0
    require(most is None or longest <= most or pc.max(pc.utf8_length(array)).as_py() <= most)
    require(not _has_nul(array))
    return array


def array_of(values: Values) -> Any:
    """An array of Python's numbers or times, all of one type, and of the None among them.

    Texts and documents have cells that are as fast to make.
    """
    kind = None if isinstance(values, StoredTexts) else type(next((one for one in values if one is not None), None))
    make = _MADE_OF.get(kind)
    if make is None or not (kinds := set(map(type, values))) <= {kind, type(None)}:
        raise NotHeldError
    try:
        return make(values, len(kinds) > 1)
    except Exception as error:  # a time without a zone or with one that does not work, for one thing
        raise NotHeldError from error


def _of_decimals(values: Values, some: bool) -> Any:
    array = pa.array(values, MONEY)
    require(some or not array.null_count)  # NaN may stand for nothing there
    return array


def _of_times(values: Values, some: bool) -> Any:
    passed = [one and one - _EPOCH for one in values] if some else list(map(sub, values, repeat(_EPOCH)))
    return pa.array(passed, pa.duration("us")).view(INSTANT)


_MADE_OF: Final[dict[Any, Callable[[Values, bool], Any]]] = {
    int: lambda values, some: pa.array(values, pa.int64()),
    float: lambda values, some: pa.array(values, pa.float64()),
    bool: lambda values, some: pa.array(values, pa.bool_()),
    Decimal: _of_decimals,
    datetime: _of_times,
}


def cells(array: Any, port: Port) -> Cells:
    """The cells of a checked array on a database."""
    kind = array.type
    if pa.types.is_decimal(kind):
        return _floats_of(array) if port.money_is_float else _list(array.cast(pa.string()))
    if pa.types.is_timestamp(kind):
        as_text = array.cast(pa.timestamp("us")).cast(pa.string())
        return _list(pc.binary_join_element_wise(as_text, "+00:00", "") if port.keeps_zone else as_text)
    if pa.types.is_string(kind):
        return _list(array)
    require(not port.takes_texts)
    return _list(array.cast(pa.int64()) if pa.types.is_boolean(kind) else array)


def _floats_of(array: Any) -> Cells:
    # A decimal128 is a number of units; where its point stands is noted in the type alone.
    units = pa.Array.from_buffers(pa.decimal128(MONEY_DIGITS), len(array), array.buffers(), offset=array.offset)
    whole = units.cast(pa.int64())
    require(pc.all(pc.less(pc.abs(whole), _SURELY_EXACT)).as_py() is not False)
    return _list(pc.divide(whole.cast(pa.float64()), UNITS))


def _has_nul(array: Any) -> bool:
    _, offsets, data = array.buffers()
    if not len(array) or data is None:
        return False
    first, *_, last = memoryview(offsets).cast("i")[array.offset :][: len(array) + 1]
    return 0 in data[first:last].to_pybytes()


def _list(array: Any) -> list[Any]:
    converted: list[Any] = array.to_pylist()
    return converted


def _one(values: Any) -> Any:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def require(held: object) -> None:
    """`NotHeldError` unless it is so."""
    if not held:
        raise NotHeldError
