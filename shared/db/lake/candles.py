"""Candles of trades in Arrow tables, exact, a column of many trades at a time.

Amounts are whole numbers of their smallest unit: of 64 bits where that holds them and what is made of them, and
Python's own elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import accumulate
from typing import Any

from shared.db.lake.libraries import np, pa, pc
from shared.db.lake.places import EPOCH, MICROSECOND
from shared.db.lake.seam import numbers
from shared.db.ranges.summaries import Candle, PartOfCandle, Piece, piece_of
from shared.db.value_forms.amounts import EXACT, MONEY_PLACES
from shared.db.value_forms.arrow import MONEY

TIME, TIE, PRICE, SIZE = "exchange_ts", "trade_id", "price", "size"
# Bits of a number that may be added to another one of as many.
_BITS = 62
# Of a sum of so many floats that many bits are certain, less one for each doubling of their number.
_CERTAIN_BITS = 52


def pieces(tables: Iterable[Any], length: timedelta) -> Iterator[Piece]:
    """The candles of each table or batch of trades in order of time.

    Those of one instant are in the order of candles already, or they are all in one table, and their ids too.
    """
    for table in tables:
        if len(table):
            yield _piece(_in_order(table) if TIE in table.schema.names else table, length // MICROSECOND)


def _in_order(table: Any) -> Any:
    keys = pa.table([table[TIME], pc.utf8_length(table[TIE]), table[TIE]], ["time", "length", "tie"])
    return table.take(pc.sort_indices(keys, [(name, "ascending") for name in keys.schema.names]))


def _piece(trades: Any, micros: int) -> Piece:
    times, prices, sizes = numbers(trades[TIME]), _units(trades[PRICE]), _units(trades[SIZE])
    opened = times // micros * micros
    starts = np.flatnonzero(np.concatenate(([True], opened[1:] != opened[:-1])))
    counts = np.diff(starts, append=len(times))
    if not _held(prices, sizes, starts, counts):
        prices, sizes = prices.astype(object), sizes.astype(object)
    ends = starts + counts - 1
    highest, lowest = np.maximum.reduceat(prices, starts), np.minimum.reduceat(prices, starts)
    volumes = np.add.reduceat(sizes, starts)
    columns = [
        _starts(opened[starts], micros),
        *_repeated(np.stack([prices[starts], highest, lowest, prices[ends]])),
        _decimals(volumes),
        counts.tolist(),
    ]
    # Of 64 bits, those of products that are beyond them are lost, and not missed: the float has them.
    turnovers = np.add.reduceat(prices * sizes, starts)
    if prices.dtype == object:
        parts = zip(*columns, map(_product, turnovers.tolist()), strict=True)
        return piece_of(list(map(PartOfCandle._make, parts)))
    divisors = np.maximum(volumes, 1)
    whole = np.rint(np.add.reduceat(prices.astype(float) * sizes, starts) / divisors).astype(np.int64)
    rest = turnovers - whole * divisors
    whole, rest = whole + rest // divisors, rest % divisors
    half = divisors - rest
    means: list[Decimal | None] = _decimals(whole + ((rest > half) | ((rest == half) & (whole % 2 == 1))))
    for at in np.flatnonzero(volumes == 0):
        means[at] = None
    first, last = (
        PartOfCandle._make(
            (*(column[at] for column in columns), _product(int(whole[at]) * int(divisors[at]) + int(rest[at])))
        )
        for at in (0, -1)
    )
    inner = zip(*(column[1:-1] for column in columns), means[1:-1], strict=True)
    # tuple.__new__ takes half the time of the class's own.
    return Piece(first, list(map(partial(tuple.__new__, Candle), inner)), last if len(starts) > 1 else None)


def _starts(micros: Any, length: int) -> list[datetime]:
    """Times that are multiples of a length: from one to the next Python gets four times as fast as from the epoch."""
    steps = np.diff(micros) // length
    known = {step: step * length * MICROSECOND for step in np.unique(steps).tolist()}
    return list(accumulate(map(known.__getitem__, steps.tolist()), initial=EPOCH + int(micros[0]) * MICROSECOND))


def _held(prices: Any, sizes: Any, starts: Any, counts: Any) -> bool:
    """Whether 64 bits, and floats for those above, are enough for all sums, products and means."""
    if prices.dtype == object or sizes.dtype == object or sizes.min() < 0:
        return False
    if max(-prices.min(), prices.max(), np.add.reduceat(sizes.astype(float), starts).max()) >= 2**_BITS:
        return False
    worth = np.add.reduceat(np.abs(prices).astype(float) * sizes, starts)
    return bool((worth * (counts + 8) < 2.0 ** (_BITS + _CERTAIN_BITS)).all())


def _units(values: Any) -> Any:
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    halves = np.frombuffer(array.buffers()[1], np.int64).reshape(-1, 2)[array.offset :][: len(array)]
    low, high = halves[:, 0].copy(), halves[:, 1]
    return low if (high == low >> 63).all() else high.astype(object) * 2**64 + low.view(np.uint64).astype(object)


def _decimals(units: Any) -> list[Any]:
    """As Decimals with 8 places."""
    if units.dtype == object:
        return [EXACT.scaleb(Decimal(one), -MONEY_PLACES) for one in units]
    halves = pa.py_buffer(np.stack([units, units >> 63], axis=1))
    texts = pa.Array.from_buffers(MONEY, len(units), [None, halves]).cast(pa.string())
    return list(map(Decimal, texts.to_pylist()))


def _repeated(units: Any) -> list[list[Any]]:
    """The same of several columns in which amounts come again and again: each is made once."""
    if units.dtype == object:
        return list(map(_decimals, units))
    found = pa.Array.from_buffers(pa.int64(), units.size, [None, pa.py_buffer(units)]).dictionary_encode()
    distinct = np.array(_decimals(numbers(found.dictionary)), object)
    places = np.frombuffer(found.indices.buffers()[1], np.int32)[: units.size]
    lists: list[list[Any]] = distinct[places].reshape(units.shape).tolist()
    return lists


def _product(units: int) -> Decimal:
    return EXACT.scaleb(Decimal(units), -2 * MONEY_PLACES)
