"""Rows of PostgreSQL's binary form, as COPY sends them, as Arrow arrays: many values at once, none of them parsed.

Needs numpy and pyarrow, so it is imported late. What it does not hold raises one of `arrow.NOT_HELD`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from shared.db.value_forms.amounts import MONEY_DIGITS, MONEY_PLACES
from shared.db.value_forms.arrow import INSTANT, MONEY, require

_HEADER: Final = 19
_TRAILER: Final = b"\xff\xff"
_SINCE_1970: Final = 946_684_800_000_000
_UNITS: Final = 10**MONEY_PLACES
_NEGATIVE: Final = 0x4000
# A numeric is digits of base 10,000; the first one's exponent of that base is given.
_BASE: Final = 10_000
_HIGHEST: Final = (MONEY_DIGITS - MONEY_PLACES) // 4 - 1
_LOWEST: Final = -MONEY_PLACES // 4
_LONGEST_TEXT = 2**31 - 1
_PADDING = bytes(32)
# While one is made the server sends no more than its socket takes.
_BATCH = 2_500
_HALF, _LOW = 32, 2**32 - 1

Sink = Generator[None, bytes, None]


class Receiver:
    """Takes what COPY sends, a message a row, and makes batches of it.

    `write` is what a driver calls. It never raises, which a driver would not survive: what went wrong does so in
    `batches`. Of `few` rows batches are made at the end, which takes two thirds of the time.
    """

    def __init__(self, names: Sequence[str], kinds: Sequence[Any], *, few: bool = False) -> None:
        self._schema = pa.schema(list(zip(names, kinds, strict=True)))
        self._made: list[Any] = []
        self._error: BaseException | None = None
        self._rows: list[bytes] = []
        self._sink = self._received()
        next(self._sink)
        # A built-in method, or a generator's own: one of ours would take a tenth of the whole time.
        self.write: Callable[[bytes], None] = self._rows.append if few else self._sink.send
        self._few = few

    def batches(self) -> list[Any]:
        """All rows, once there are no more of them. Raises what any of them could not be made of."""
        self._sink.close()
        if self._few:
            first = self._rows[0][_HEADER:]
            self._rows[:1] = [first] if first else []
        if self._rows[-1:] == [_TRAILER]:
            del self._rows[-1]
        self._make(self._rows)
        if self._error is not None:
            raise self._error
        return self._made

    def _received(self) -> Sink:
        first = (yield)[_HEADER:]
        self._rows = [first] if first else []
        while True:
            keep = self._rows.append
            for _ in range(_BATCH):
                keep((yield))
            # The last one may be no row but the end.
            *rows, last = self._rows
            self._rows = [last]
            self._make(rows)

    def _make(self, rows: Sequence[bytes]) -> None:
        if self._error is not None or not rows:
            return
        try:
            self._made.append(_batch(rows, self._schema))
        except BaseException as error:  # noqa: BLE001 # kept, and raised as soon as COPY has ended
            self._error = error


def holds(kind: Any) -> bool:
    """Whether values of this Arrow type are read here."""
    return kind in _READERS


def _batch(rows: Sequence[bytes], schema: Any) -> Any:
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    data = b"".join((*rows, _PADDING))
    place = np.cumsum(sizes) - sizes + 2
    arrays = []
    for kind in schema.types:
        size = _numbers(data, ">i4", place)
        place += 4
        valid = size >= 0
        size = np.maximum(size, 0)
        found = _READERS[kind](data, place, size, valid)
        buffers = found if isinstance(found, tuple) else (found,)
        some = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
        arrays.append(pa.Array.from_buffers(kind, len(rows), [some, *map(pa.py_buffer, buffers)]))
        place += size
    return pa.record_batch(arrays, schema=schema)


def _numbers(data: bytes, kind: str, place: Any) -> Any:
    # A view of the bytes in which a number begins at each of them.
    size = np.dtype(kind).itemsize
    return np.ndarray(len(data) - size + 1, kind, data, strides=(1,))[place]


def _texts(data: bytes, place: Any, size: Any, valid: Any) -> tuple[Any, Any]:
    offsets = np.concatenate(([0], np.cumsum(size, dtype=np.int64)))
    require(offsets[-1] <= _LONGEST_TEXT)
    if size.min() == size.max() > 0:
        text: Any = _numbers(data, f"V{size[0]}", place)
    else:
        text = np.frombuffer(data, np.uint8)[np.repeat(place - offsets[:-1], size) + np.arange(offsets[-1])]
    return offsets.astype(np.int32), text.tobytes()


def _whole_numbers(data: bytes, place: Any, size: Any, valid: Any) -> Any:
    require(((size == 8) | ~valid).all())
    return _numbers(data, ">i8", place).astype(np.int64)


def _instants(data: bytes, place: Any, size: Any, valid: Any) -> Any:
    since_2000 = _whole_numbers(data, place, size, valid)
    # The first and the last are PostgreSQL's infinities.
    require((np.abs(since_2000[valid]) < 2**62).all())
    return since_2000 + _SINCE_1970


def _floats(data: bytes, place: Any, size: Any, valid: Any) -> Any:
    require(((size == 8) | ~valid).all())
    return _numbers(data, ">f8", place).astype(np.float64)


def _flags(data: bytes, place: Any, size: Any, valid: Any) -> Any:
    return np.packbits(_numbers(data, "u1", place), bitorder="little")


def _amounts(data: bytes, place: Any, size: Any, valid: Any) -> Any:
    """As numbers of 128 bits, of which each has its lower half first."""
    heading = np.where(valid, _numbers(data, ">u8", place).astype(np.uint64), 0)
    count, weight = heading >> 48, (heading >> 32).astype(np.int16)
    sign = (heading >> 16) & 0xFFFF
    require(((sign == 0) | (sign == _NEGATIVE)).all())
    require(((weight <= _HIGHEST) & (weight + 1 - _LOWEST >= count.astype(np.int16)) | (count == 0)).all())
    halves = np.empty((len(place), 2), np.int64)
    # Below 10**8 all digits stand in 64 bits.
    made = _smaller if (weight < _HIGHEST).all() else _larger
    halves[:, 0], halves[:, 1] = made(data, place + 8, count, weight)
    below = sign == _NEGATIVE
    if below.any():
        negative = ~halves[below]
        negative[:, 0] += 1
        negative[:, 1] += negative[:, 0] == 0
        halves[below] = negative
    return halves


def _smaller(data: bytes, place: Any, count: Any, weight: Any) -> tuple[Any, Any]:
    together = _numbers(data, ">u8", place).astype(np.uint64)
    digits = np.where(count > 0, together >> ((4 - count) << 4), 0)
    found = (digits >> 48) * _BASE**3 + ((digits >> 32) & 0xFFFF) * _BASE**2
    found += ((digits >> 16) & 0xFFFF) * _BASE + (digits & 0xFFFF)
    return found * _POWERS[weight + 1 - _LOWEST - count.astype(np.int16)], 0


def _larger(data: bytes, place: Any, count: Any, weight: Any) -> tuple[Any, Any]:
    whole, units = np.zeros(len(place), np.uint64), np.zeros(len(place), np.uint64)
    for number in range(int(count.max())):
        exponent = weight - number
        digit = np.where(number < count, _numbers(data, ">u2", place + 2 * number), 0).astype(np.uint64)
        whole += np.where(exponent < 0, 0, digit * _POWERS[exponent])
        units += np.where(exponent < 0, digit * _POWERS[exponent - _LOWEST], 0)
    # Whole numbers have at most 40 bits: of the product, the parts below and above 32 bits of them.
    low = (whole & _LOW) * _UNITS + units
    above = (whole >> _HALF) * _UNITS + (low >> _HALF)
    return (above << _HALF) | (low & _LOW), above >> _HALF


# By their exponent, those of numbers below it, which stand for nothing, included.
_POWERS: Final = np.array([_BASE ** (exponent % 5) for exponent in range(16)], np.uint64)
_READERS: Final[dict[Any, Callable[[bytes, Any, Any, Any], Any]]] = {
    pa.string(): _texts,
    pa.int64(): _whole_numbers,
    INSTANT: _instants,
    MONEY: _amounts,
    pa.float64(): _floats,
    pa.bool_(): _flags,
}
