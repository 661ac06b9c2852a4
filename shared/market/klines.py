"""Candles as others tell them: Bybit's REST answers and archives, and frames of yfinance's shape.

What comes out goes into `CandleRepository.store`, which checks each value: a row that cannot be read comes out as it
is, and is refused there, with its position and the reason.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Context, Decimal, DivisionByZero, InvalidOperation
from pathlib import Path
from typing import Any

from shared.db import InputError, parse_answer
from shared.market.models import interval_length

_MINUTES = {
    "1": "1m",
    "3": "3m",
    "5": "5m",
    "15": "15m",
    "30": "30m",
    "60": "1h",
    "120": "2h",
    "240": "4h",
    "360": "6h",
    "720": "12h",
    "D": "1d",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PRICES = ("open", "high", "low", "close", "volume")
# The clock of these archives, all year round.
_METATRADER = timezone(timedelta(hours=3))
_ARCHIVE = re.compile(r"(?P<symbol>\w+?)_(?P<minutes>\d+)_\d{4}-\d\d-\d\d_\d{4}-\d\d-\d\d\.csv(\.gz)?", re.ASCII)
_ALIGNED = ("1m", "3m", "5m", "15m", "30m", "1h")
_FRAME = {
    "Open": "open",
    "High": "high",
    "Low": "low",
    "Close": "close",
    "Volume": "volume",
    "Dividends": "dividends",
    "Stock Splits": "splits",
}
_TOLD = ("Open", "High", "Low", "Close", "Volume")
_PLACES = Decimal("1E-8")
_EXACT = Context(prec=100)


def parse_klines(answer: Any, interval: str) -> list[Any]:
    """The candles of an answer of `/v5/market/kline`, which does not tell the interval that was asked for.

    `answer` is the whole answer or its `result`, as a mapping or as JSON text; `interval` is one of ours or as Bybit
    writes it ("60"). The newest candle may be under way; it
    is renewed when it is told again. `vwap` is made from the turnover. Raises `InputError` for an answer that reports
    a failure, is of no symbol or has no list, `InvalidValueError` for another interval.
    """
    told = parse_answer(answer)
    symbol, entries = told.get("symbol"), told.get("list")
    if not isinstance(symbol, str) or not isinstance(entries, list):
        raise InputError("the answer has no symbol or no list of candles; hand over the whole answer as Bybit sent it")
    inverse = told.get("category") == "inverse"
    interval = _MINUTES.get(interval, interval)
    interval_length(interval)  # refuses what is none, in place of each candle
    return [_kline(entry, symbol, interval, inverse=inverse) for entry in entries]


def read_klines(path: str | Path, symbol: str | None = None, interval: str | None = None) -> list[Any]:
    """The candles of an archive of https://public.bybit.com/kline_for_metatrader4, packed or not.

    Symbol and interval are read off its name (`BTCUSDT_1_2022-01-01_2022-01-31.csv.gz`) unless they are given. Its
    clock is three hours before UTC all year round, and so only candles of up to an hour are those of other sources:
    longer ones raise `InputError`, as a file does that is damaged or not there, or whose name says too little.
    """
    path = Path(path)
    named = _ARCHIVE.fullmatch(path.name)
    symbol = symbol or (named and named["symbol"])
    interval = interval or (named and _MINUTES.get(named["minutes"]))
    if symbol is None or interval is None:
        raise InputError(f"{path.name} does not tell its symbol and interval; give symbol= and interval=")
    if interval not in _ALIGNED:
        raise InputError(f"the days and hours of {path.name} do not begin as those of UTC do; ask REST for {interval}")
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as an archive of candles ({error}); take it from its source again"
        ) from None
    return [_archived(line, symbol, interval) for line in csv.reader(text.splitlines())]


def frame_candles(frame: Any, symbol: str, interval: str = "1d") -> list[dict[str, Any]]:
    """The candles of a pandas DataFrame as yfinance gives it, of one symbol or of several.

    Its index is their beginning: of days the date counts, wherever the exchange is, and of the others the instant
    (a naive one is refused). Its floats are taken at their shortest decimal. Raises `InputError` for a frame without
    this symbol or without prices, `InvalidValueError` for another interval.
    """
    interval_length(interval)
    if frame.columns.nlevels > 1:
        level = next((level for level in (0, 1) if symbol in frame.columns.get_level_values(level)), None)
        if level is None:
            raise InputError(f"the frame has nothing of {symbol}; its columns are {list(frame.columns)[:8]}")
        frame = frame.xs(symbol, axis=1, level=level)
    missing = [name for name in _TOLD if name not in frame.columns]
    if missing:
        raise InputError(f"the frame has no {', '.join(missing)}; hand it over as yfinance gives it")
    there = [name for name in _FRAME if name in frame.columns]
    columns = [[_amount(value) for value in frame[name].tolist()] for name in there]
    return [
        {"symbol": symbol, "interval": interval, "open_ts": _day(when) if interval == "1d" else when}
        | dict(zip((_FRAME[name] for name in there), values, strict=True))
        for when, *values in zip(frame.index.tolist(), *columns, strict=True)
    ]


def _kline(entry: Any, symbol: str, interval: str, *, inverse: bool) -> Any:
    if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) < 7:
        return entry
    when, *prices, turnover = entry[:7]
    row = {"symbol": symbol, "interval": interval, "open_ts": _instant(when), **dict(zip(_PRICES, prices, strict=True))}
    coins, money = (turnover, prices[-1]) if inverse else (prices[-1], turnover)
    return row | {"vwap": _mean(money, coins)}


def _archived(line: list[str], symbol: str, interval: str) -> Any:
    if len(line) != 1 + len(_PRICES):
        return line
    try:
        when: Any = datetime.strptime(line[0], "%Y.%m.%d %H:%M").replace(tzinfo=_METATRADER)
    except ValueError:
        when = line[0]
    return {"symbol": symbol, "interval": interval, "open_ts": when, **dict(zip(_PRICES, line[1:], strict=True))}


def _instant(milliseconds: Any) -> Any:
    try:
        return _EPOCH + timedelta(milliseconds=int(milliseconds))
    except (TypeError, ValueError, OverflowError):
        return milliseconds


def _day(when: Any) -> Any:
    try:
        return datetime(when.year, when.month, when.day, tzinfo=UTC)
    except (AttributeError, TypeError, ValueError):
        return when


def _amount(value: Any) -> Any:
    return Decimal(repr(value)) if isinstance(value, float) else value


def _mean(money: Any, coins: Any) -> Decimal | None:
    try:
        return _EXACT.divide(Decimal(money), Decimal(coins)).quantize(_PLACES, context=_EXACT)
    except (InvalidOperation, DivisionByZero, TypeError, ValueError):
        return None
