"""Bybit's daily archives (https://public.bybit.com) as row values."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from shared.db.bulk import RejectedRow
from shared.db.bulk.rows import Row
from shared.db.errors import InputError
from shared.db.exchanges.bybit.values import (
    SYMBOL_LENGTH,
    TRADE_ID_LENGTH,
    RefusedError,
    TradeFields,
    checked_ids,
    fitting_text,
    instant_of,
    instant_texts,
    price_text,
    side_of,
    sides_of,
    size_text,
)
from shared.db.exchanges.file_kinds import about_header
from shared.db.exchanges.files import Block, BlockReader, check_whole, open_text
from shared.db.value_forms.amounts import AmountTexts
from shared.db.value_forms.instants import InstantTexts

Category = Literal["linear", "inverse", "spot"]

_DERIVATIVES = TradeFields("symbol", "trdmatchid", "timestamp", "side", "price", "size")
# Spot archives have no symbol, and something must stand in its place.
_SPOT = TradeFields("id", "id", "timestamp", "side", "price", "volume")
_ARCHIVES = (_DERIVATIVES, _SPOT)

_LINE_LIMIT = 10_000
# Characters converted together: few enough for what they become to stay in the processor's cache.
_CHUNK = 16_384
# A call into Arrow costs more: so many of them, and no more than the lines that were asked for.
_ARROW_CHUNK, _LINE = 2**18, 128
# BTCUSDT2025-05-19.csv.gz, BTCUSDT_2025-05-19.csv.gz and, for a month, BTCUSDT-2025-05.csv.gz, perhaps behind words in
# lower case. A symbol ends in what its coin is quoted in; anything else might be no symbol at all.
_SYMBOL_IN_NAME = re.compile(
    r"(?:[a-z]+[_-])*"
    r"([A-Z0-9]+(?:USDT|USDC|USDE|USD1|USDQ|USD|EUR|EURQ|BTC|ETH|DAI|BRL|BRZ|PLN|TRY|MNT|GBP|AED|SOL|KZT))"
    r"[_-]?\d{4}-\d\d(?:-\d\d)?(?!\d)"
)
# Spot files of 2026-07 have a sixth value in each row, which their header does not name.
_UNNAMED = ["id", "timestamp", "price", "volume", "side"]


def read_archive(
    path: str | Path,
    symbol: str | None = None,
    category: Category | None = None,
    *,
    on_rejected: Callable[[RejectedRow], None] | None = None,
) -> Archive:
    """The trades of a daily or monthly archive from public.bybit.com, csv or csv.gz, linear, inverse or spot.

    Spot archives name no symbol: it is `symbol`, or taken from a file name such as BTCUSDT_2025-05-19.csv.gz. For
    the others a given `symbol` is the only one taken. A given `category` must be the file's. Archives know no
    local time, so the exchange's stands in for it. Reading starts with the iteration, streams, and may be repeated;
    it raises `InputError` for a file that is missing, damaged, or of another kind.
    """
    return Archive(Path(path), symbol, category, on_rejected)


class TradeColumns(Iterable[Row]):
    """Trades by columns: what `bulk_create` takes fastest. It knows a frame by these methods, which are Arrow's."""

    def __init__(self, columns: tuple[list[str], ...] | None = None) -> None:
        self._columns = columns or tuple([] for _ in TradeFields._fields)

    def __len__(self) -> int:
        return len(self._columns[0])

    def __iter__(self) -> Iterator[Row]:
        columns = self.to_pydict()
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))

    def add(self, *columns: Sequence[str]) -> None:
        """Append rows, given by columns of checked texts: symbol, trade id, time, side, price and size.

        Times, prices and sizes are those of `InstantTexts` and `AmountTexts`.
        """
        for column, more in zip(self._columns, columns, strict=True):
            column += more

    def by_symbol(self) -> dict[str, tuple[Sequence[datetime], list[str]]]:
        """Times and ids of the rows of each symbol."""
        symbols, ids, times, *_ = self._columns
        names = set(symbols)
        if len(names) == 1:
            return {names.pop(): (InstantTexts(times), ids)}
        places = {name: [place for place, symbol in enumerate(symbols) if symbol == name] for name in names}
        return {
            name: (InstantTexts([times[at] for at in there]), [ids[at] for at in there])
            for name, there in places.items()
        }

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self)

    def slice(self, start: int, length: int) -> TradeColumns:
        """Some of the rows."""
        return TradeColumns(tuple(column[start : start + length] for column in self._columns))

    def to_pydict(self) -> dict[str, Sequence[Any]]:
        """The values by column name. Both times are the same column, which is converted once."""
        symbols, ids, times, sides, prices, sizes = self._columns
        instants = InstantTexts(times)
        return {
            "symbol": symbols,
            "trade_id": ids,
            "exchange_ts": instants,
            "local_ts": instants,
            "side": sides,
            "price": AmountTexts(prices),
            "size": AmountTexts(sizes),
        }


class Archive(BlockReader):
    """The rows of an archive, in the file's order. Made by `read_archive`."""

    def __init__(
        self,
        path: Path,
        symbol: str | None,
        category: Category | None,
        on_rejected: Callable[[RejectedRow], None] | None,
    ) -> None:
        super().__init__(on_rejected)
        if category not in (None, "linear", "inverse", "spot"):
            raise InputError(f"there is no category {category!r}; it is linear, inverse or spot")
        self.path = path
        self.symbol = symbol
        self.category = category

    numbered_by_file = True

    def check_whole(self, stop: Callable[[], bool]) -> bool:
        """`InputError` if a packed archive is damaged anywhere; False if `stop()` ended it early."""
        return check_whole(self.path, stop)

    def as_row(self, given: Any) -> Row:
        """What a line that was not taken says."""
        columns, symbols_of = self._columns
        values = given.rstrip("\r").split(",")
        symbol, trade_id, time, side, price, size = (values[at] if at < len(values) else "" for at in columns)
        when = _if_it_can(instant_of, time)
        return {
            "symbol": _if_it_can(lambda text: symbols_of([text])[0], symbol),
            "trade_id": trade_id,
            "exchange_ts": when,
            "local_ts": when,
            "side": _if_it_can(side_of, side),
            "price": price,
            "size": size,
        }

    def blocks(self, size: int) -> Iterator[Block]:
        """The rows by blocks of about `size` lines, as columns, which `bulk_create` takes fastest."""
        arrow: Any = _arrow() if self.in_arrow else None
        with open_text(self.path) as (file, text):
            header = text.readline(_LINE_LIMIT).rstrip("\r\n").split(",")
            layout = self._columns = self._layout(header)
            unnamed = int([name.strip().lower() for name in header] == _UNNAMED)
            widths = [len(header) + more for more in range(unnamed + 1)]
            lines = _Lines(widths, *layout)
            line, at_once = 2, _CHUNK if arrow is None else min(_ARROW_CHUNK, max(_CHUNK, size * _LINE))
            block = Block(TradeColumns(), [], line)
            while chunk := text.read(at_once) + text.readline(_LINE_LIMIT):
                trades = None if arrow is None else arrow.trades_of(chunk, widths, *layout)
                if (trades is None) is not (type(block.rows) is TradeColumns):
                    if len(block.rows) or block.rejected:
                        yield block
                    block = Block(TradeColumns() if trades is None else arrow.ArrowTrades(), [], line)
                if trades is None:
                    line = lines.convert(chunk, line, block)
                else:
                    block.rows.add_batch(trades)
                    line += len(trades)
                self.bytes_read = file.tell()
                if line - block.first_line >= size:
                    yield block
                    block = Block(type(block.rows)(), [], line)
            yield block

    def _layout(self, header: list[str]) -> tuple[list[int], Callable[[list[str]], list[str]]]:
        """The columns of symbol, trade id, time, side, price and size, and what turns the first into the symbols."""
        present = [name.strip().lower() for name in header]
        wanted = next((names for names in _ARCHIVES if set(names) <= set(present)), None)
        if wanted is None:
            line = ",".join(header)
            told = about_header(line) or (
                f"its first line is {line[:100]!r}; take the files from https://public.bybit.com/trading/ or /spot/"
            )
            raise InputError(f"{self.path} is not a trade archive of Bybit: {told}")
        if self.category is not None and (self.category == "spot") != (wanted is _SPOT):
            raise InputError(
                f"{self.path} is {'a spot archive' if wanted is _SPOT else 'an archive of derivatives'}, "
                f"not one of category {self.category}; leave the category out, or correct it"
            )
        columns = [present.index(name) for name in wanted]
        if wanted is _SPOT:
            own = self._symbol_of_file()
            return columns, lambda trade_ids: [own] * len(trade_ids)
        return columns, self._checked_symbols

    def _symbol_of_file(self) -> str:
        found = _SYMBOL_IN_NAME.match(self.path.name)
        symbol = self.symbol if self.symbol is not None else found and found[1]
        if symbol is None:
            raise InputError(
                f"{self.path} names no symbol, as no spot archive does, and its name does not begin with one; "
                "pass symbol= (--symbol), or name the file like BTCUSDT_2025-05-19.csv.gz"
            )
        try:
            return fitting_text(symbol, "symbol", SYMBOL_LENGTH)
        except RefusedError as error:
            raise InputError(f"{self.path}: {error}") from None

    def _checked_symbols(self, texts: list[str]) -> list[str]:
        for symbol in set(texts):
            if self.symbol is not None and symbol != self.symbol:
                raise RefusedError(f"symbol is {symbol!r}, and only {self.symbol!r} was asked for")
            fitting_text(symbol, "symbol", SYMBOL_LENGTH)
        return texts


@cache
def _arrow() -> Any:
    try:
        return importlib.import_module("shared.db.exchanges.bybit.arrow_archives")
    except ImportError:  # pyarrow is not installed
        return None


def _if_it_can(convert: Callable[[str], Any], text: str) -> Any:
    try:
        return convert(text)
    except RefusedError:
        return text


class _Lines:
    """The lines of an archive of one layout, turned into columns, some hundred lines at a time.

    This runs millions of times a file, and a call into C for many values takes half the time of as many calls. Bybit
    quotes nothing, so that split() will do, in a third of the csv module's time; and a stray quotation mark spoils
    its own line alone.
    """

    def __init__(self, widths: list[int], columns: list[int], symbols_of: Callable[[list[str]], list[str]]) -> None:
        self._widths = widths
        self._columns = columns
        self._symbols_of = symbols_of

    def convert(self, chunk: str, first_line: int, block: Block) -> int:
        """Add whole lines to the block, to its rows or to its rejected ones; the number of the line after them."""
        if "\r" in chunk:
            chunk = chunk.replace("\r\n", "\n")
        if not chunk.endswith("\n"):
            chunk += "\n"
        try:
            self._add(chunk, block.rows)
        except RefusedError:
            for position, line in enumerate(chunk.split("\n")[:-1], first_line):
                try:
                    self._add(f"{line}\n", block.rows)
                except RefusedError as error:
                    if line.strip():
                        block.rejected.append(RejectedRow(position, str(error), line))
        return first_line + chunk.count("\n")

    def _add(self, chunk: str, rows: TradeColumns) -> None:
        there = chunk.count(",", 0, chunk.index("\n")) + 1
        columns = there if there in self._widths else self._widths[0]
        # Every line end becomes a value of its own, which then must stand in its own column: a line cut off may end
        # in half an id, one with a comma too many has its columns shifted.
        width = columns + 1
        values = chunk.replace("\n", ",\n,").split(",")
        if len(values) % width != 1 or set(values[columns::width]) != {"\n"}:
            raise RefusedError(f"the line has {there} columns, not the header's {columns}")
        symbols, trade_ids, times, sides, prices, sizes = (values[column:-1:width] for column in self._columns)
        rows.add(
            self._symbols_of(symbols),
            checked_ids(trade_ids, "trade id", TRADE_ID_LENGTH),
            instant_texts(times),
            sides_of(sides),
            list(map(price_text, prices)),
            list(map(size_text, sizes)),
        )
