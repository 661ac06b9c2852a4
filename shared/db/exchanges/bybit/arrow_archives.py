"""Lines of Bybit's archives as Arrow's columns: those in which nothing needs a closer look, many at once.

Needs pyarrow, so it is imported late. What is taken is what `archives` takes, and gives the same rows; anything else
is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from shared.db.bulk.rows import Row
from shared.db.exchanges.bybit.archives import TradeColumns
from shared.db.exchanges.bybit.values import SECONDS, SIDES, TRADE_ID_LENGTH, RefusedError
from shared.db.value_forms.arrow import INSTANT, MONEY, NOT_HELD, require

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND, _MILLIS = 10, 3
_TEXT = pa.string()
_SIDES_GIVEN = pa.array([*SIDES, *SIDES.values()], _TEXT)
_SIDES_STORED = pa.array([*SIDES.values(), *SIDES.values()], _TEXT)


class ArrowTrades(TradeColumns):
    """The same trades, as Arrow's columns."""

    def __init__(self, batches: Sequence[Any] = ()) -> None:
        self._batches = [*batches]

    def __len__(self) -> int:
        return sum(len(batch) for batch in self._batches)

    def __iter__(self) -> Iterator[Row]:
        for batch in self._batches:
            yield from batch.to_pylist()

    def add_batch(self, batch: Any) -> None:
        """Append rows as `trades_of` gave them."""
        self._batches.append(batch)
        self.__dict__.pop("_table", None)

    def by_symbol(self) -> dict[str, tuple[Sequence[datetime], list[str]]]:
        """Times and ids of the rows of each symbol."""
        symbols = pc.unique(self._table["symbol"]).to_pylist()
        found: dict[str, tuple[Sequence[datetime], list[str]]] = {}
        for symbol in symbols:
            rows = self._table if len(symbols) == 1 else self._table.filter(pc.equal(self._table["symbol"], symbol))
            found[symbol] = _Instants(rows["exchange_ts"]), rows["trade_id"].to_pylist()
        return found

    def slice(self, start: int, length: int) -> ArrowTrades:
        """Some of the rows."""
        return ArrowTrades(self._table.slice(start, length).to_batches())

    def to_pydict(self) -> dict[str, Sequence[Any]]:
        """The values by column name."""
        return {name: self._table[name].combine_chunks() for name in self._table.column_names}

    @cached_property
    def _table(self) -> Any:
        return pa.Table.from_batches(self._batches)


class _Instants(Sequence[datetime]):
    """Instants of an array, each of which is made when it is asked for."""

    def __init__(self, array: Any) -> None:
        self._micros = array.cast(pa.int64())

    def __len__(self) -> int:
        return len(self._micros)

    def __getitem__(self, index: Any) -> Any:
        return _instant(self._micros[index].as_py())

    @property
    def ends(self) -> tuple[datetime, datetime]:
        """The first instant and the last."""
        ends = pc.min_max(self._micros).as_py()
        return _instant(ends["min"]), _instant(ends["max"])


def _instant(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def trades_of(
    text: str, widths: Collection[int], columns: Sequence[int], symbols_of: Callable[[list[str]], list[str]]
) -> Any | None:
    """The trades in whole lines as a record batch; None where a line has not one of `widths`, or is unusual.

    `columns` and `symbols_of` are where the values are, as the archive's reader has it.
    """
    text = text.replace("\r\n", "\n")
    text = text if text.endswith("\n") else text + "\n"
    there = text.count(",", 0, text.index("\n")) + 1
    if "\r" in text or there not in widths:
        return None
    try:
        return _batch(text, there, columns, symbols_of)
    except (*NOT_HELD, RefusedError, UnicodeEncodeError):  # half a character among other reasons
        return None


def _batch(text: str, width: int, columns: Sequence[int], symbols_of: Callable[[list[str]], list[str]]) -> Any:
    data = text.encode()
    names = [str(number) for number in range(width)]
    table = csv.read_csv(
        pa.BufferReader(data),
        csv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
        csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
        csv.ConvertOptions(
            column_types=dict.fromkeys(names, _TEXT), include_columns=[names[at] for at in dict.fromkeys(columns)]
        ),
    )
    require(len(table) == text.count("\n"))
    symbols, trade_ids, times, sides, prices, sizes = (table[names[at]].combine_chunks() for at in columns)
    when = _instants(times)
    return pa.RecordBatch.from_pydict(
        {
            "symbol": _symbols(symbols, symbols_of),
            "trade_id": _ids(trade_ids),
            "exchange_ts": when,
            "local_ts": when,
            "side": _sides(sides),
            "price": _amounts(prices),
            "size": _amounts(sizes),
        }
    )


def _symbols(texts: Any, symbols_of: Callable[[list[str]], list[str]]) -> Any:
    given = pc.unique(texts).to_pylist()
    checked = symbols_of(given)
    if checked == given:
        return texts
    require(len(set(checked)) == 1)
    return pa.repeat(checked[0], len(texts))


def _ids(texts: Any) -> Any:
    lengths = pc.min_max(pc.binary_length(texts)).as_py()
    require(lengths["min"] >= 1 and lengths["max"] <= TRADE_ID_LENGTH)
    require(_all(pc.ascii_is_printable(texts)) and not pc.any(pc.match_substring(texts, "+")).as_py())
    return texts


def _instants(texts: Any) -> Any:
    """Ten digits, a point and a fraction, cut to the millisecond; or milliseconds."""
    if _all(pc.equal(pc.binary_length(texts), _SECOND + _MILLIS)) and _all(pc.ascii_is_decimal(texts)):
        millis = texts.cast(pa.int64())
    else:
        whole, point = pc.utf8_slice_codeunits(texts, 0, _SECOND), pc.utf8_slice_codeunits(texts, _SECOND, _SECOND + 1)
        fraction = pc.utf8_slice_codeunits(texts, _SECOND + 1)
        require(_all(pc.ascii_is_decimal(whole)) and _all(pc.equal(point, ".")) and _all(pc.ascii_is_decimal(fraction)))
        parts = pc.utf8_rpad(pc.utf8_slice_codeunits(fraction, 0, _MILLIS), _MILLIS, "0").cast(pa.int64())
        millis = pc.add(pc.multiply(whole.cast(pa.int64()), 1000), parts)
    ends = pc.min_max(millis).as_py()
    require(SECONDS.start * 1000 <= ends["min"] and ends["max"] < SECONDS.stop * 1000)
    return pc.multiply(millis, 1000).view(INSTANT)


def _sides(texts: Any) -> Any:
    places = pc.index_in(texts, _SIDES_GIVEN)
    require(not places.null_count)
    return _SIDES_STORED.take(places)


def _amounts(texts: Any) -> Any:
    """Digits above zero, a point among them or none."""
    require(_all(pc.ascii_is_decimal(pc.replace_substring(texts, ".", "", max_replacements=1))))
    amounts = texts.cast(MONEY)
    require(pc.min(amounts).as_py() > 0)
    return amounts


def _all(held: Any) -> bool:
    return pc.all(held).as_py() is True
