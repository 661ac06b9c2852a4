"""Bybit's texts as the values that are stored, or the reason why not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from shared.db.column_types import BoundedString
from shared.db.models import PublicTrade, Side
from shared.db.value_forms.amounts import EXACT, MONEY_DIGITS, MONEY_PLACES, QUANTUM
from shared.db.value_forms.instants import InstantTexts, second_text

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
# A number above zero that is stored as it is written: how nearly all of them come.
_PLAIN = re.compile(
    rf"(?=[0.]*[1-9])[0-9]{{1,{MONEY_DIGITS - MONEY_PLACES}}}(?:\.[0-9]{{1,{MONEY_PLACES}}})?", re.ASCII
).fullmatch
# What a spreadsheet makes of an id of 19 digits.
_SHORTENED = re.compile(r"\d(?:[.,]\d+)?[eE]\+\d+", re.ASCII)
_LONGEST_NUMBER = 1_024  # bits
# 2010 to 2100: a unit mixed up (microseconds, say) falls far outside.
SECONDS = range(1_262_304_000, 4_102_444_800)
# Up to this many digits a whole number is seconds, above it milliseconds: the border lies in the year 5138.
_SECOND_DIGITS = 11
SIDES = {side.value.lower(): side.value for side in Side}
_STORED_SIDES = frozenset(SIDES.values())
# Prices and sizes repeat themselves among neighbouring trades.
_CACHE = 8192
_MANY_SECONDS = 1_000
_SHOWN = 40


def stored_length(column: Any) -> int:
    """How many characters a text column of a model holds."""
    kind = column.type
    assert isinstance(kind, BoundedString)
    return kind.length


SYMBOL_LENGTH = stored_length(PublicTrade.symbol)
TRADE_ID_LENGTH = stored_length(PublicTrade.trade_id)


class TradeFields(NamedTuple):
    """What the fields of a public trade are called somewhere; in this order everywhere."""

    symbol: str
    trade_id: str
    time: str
    side: str
    price: str
    size: str


class RefusedError(ValueError):
    """Why a row is not taken."""


def written(entry: Mapping[str, Any], name: str) -> str:
    """A field as text; whole numbers and decimals may stand without quotation marks."""
    value = entry.get(name)
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        raise RefusedError(
            f"{name} came as a float, which has lost digits; decode with json.loads(parse_float=Decimal)"
        )
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise RefusedError(f"{name} is missing" if value is None else f"{name} is {type(value).__name__}, not text")
    return _whole_text(value, name) if isinstance(value, int) else str(value)


def _whole_text(number: int, name: str) -> str:
    if number.bit_length() > _LONGEST_NUMBER:
        raise RefusedError(f"{name} is a number of more than 300 digits")
    return str(number)


def fitting_text(value: Any, name: str, length: int) -> str:
    """A text that is not empty and fits; a whole number counts as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = _whole_text(value, name)
    if not value:
        raise RefusedError(f"{name} is missing or empty")
    if not isinstance(value, str) or not value.isprintable():
        raise RefusedError(f"{name} is not plain text")
    if len(value) > length:
        raise RefusedError(f"{name} has {len(value)} characters, more than the {length} that are stored")
    return value


def checked_id(value: Any, name: str, length: int) -> str:
    """Such a text that identifies something, and has not lost digits on its way."""
    text = fitting_text(value, name, length)
    if _SHORTENED.fullmatch(text):
        raise RefusedError(f"{name} {text} is what a spreadsheet leaves of a number; take it from where it came from")
    return text


def checked_ids(texts: Sequence[str], name: str, length: int) -> Sequence[str]:
    """The same for many texts at once."""
    lengths, together = set(map(len, texts)), "".join(texts)
    if min(lengths) < 1 or max(lengths) > length or not together.isprintable() or "+" in together:
        return [checked_id(text, name, length) for text in texts]
    return texts


def fill_amount(entry: Mapping[str, Any], name: str) -> Decimal:
    """A price or quantity of a fill: of any sign, with as many decimal places as it came, and 0 only if it is 0."""
    text = written(entry, name)
    amount = _decimal(text, name)
    if amount and not amount.quantize(QUANTUM, context=EXACT):
        raise RefusedError(f"{name} {text[:_SHOWN]} would become 0, with the {MONEY_PLACES} places that are stored")
    return amount


def told_amount(entry: Mapping[str, Any], name: str) -> Decimal | None:
    """A fee or profit, of any size; None where Bybit has nothing to say, and writes "" or nothing."""
    return None if entry.get(name) in (None, "") else _any_number(written(entry, name), name)


def _any_number(text: str, name: str) -> Decimal:
    if not _NUMBER.fullmatch(text):
        raise RefusedError(f"{name} {text[:_SHOWN]!r} is not a number" if text else f"{name} is empty")
    return Decimal(text)


def _decimal(text: str, name: str) -> Decimal:
    amount = _any_number(text, name)
    if amount and amount.adjusted() >= MONEY_DIGITS - MONEY_PLACES:
        raise RefusedError(f"{name} {text[:_SHOWN]} is too large for Numeric({MONEY_DIGITS}, {MONEY_PLACES})")
    return amount


def _exact_text(text: str, name: str) -> str:
    if _PLAIN(text):
        return text
    amount = _decimal(text, name)
    if amount <= 0:
        raise RefusedError(f"{name} {text[:_SHOWN]} is not above zero")
    # A public trade is stored exactly or not at all: nothing beside it keeps the digits that rounding takes.
    stored = amount.quantize(QUANTUM, context=EXACT)
    if amount != stored:
        raise RefusedError(f"{name} {text[:_SHOWN]} has more than the {MONEY_PLACES} decimal places that are stored")
    return format(stored, "f")


@lru_cache(_CACHE)
def price_text(text: str) -> str:
    """The price of a public trade, for `AmountTexts`: above zero, and stored as exactly as it is written."""
    return _exact_text(text, "price")


@lru_cache(_CACHE)
def size_text(text: str) -> str:
    """The size of a public trade, for `AmountTexts`: above zero, and stored as exactly as it is written."""
    return _exact_text(text, "size")


@lru_cache(_CACHE)
def price_of(text: str) -> Decimal:
    """The same as a number."""
    return Decimal(price_text(text))


@lru_cache(_CACHE)
def size_of(text: str) -> Decimal:
    """The same as a number."""
    return Decimal(size_text(text))


@lru_cache(64)
def side_of(text: str) -> str:
    """Buy or Sell, however its letters are cased."""
    side = SIDES.get(text.lower())
    if side is None:
        raise RefusedError(f"side {text[:20]!r} is neither Buy nor Sell")
    return side


def sides_of(texts: list[str]) -> list[str]:
    """The same for many texts at once."""
    return texts if _STORED_SIDES.issuperset(texts) else list(map(side_of, texts))


def instant_of(text: str) -> datetime:
    """The time to the millisecond, from milliseconds, or from seconds with or without a fraction."""
    return InstantTexts.value(instant_text(text))


def instant_text(text: str) -> str:
    """The same for `InstantTexts`."""
    whole, point, fraction = text.partition(".")
    if point and not _are_digits(fraction):
        raise RefusedError(f"time {text[:_SHOWN]!r} is not a number")
    if len(whole) > _SECOND_DIGITS:
        whole, fraction = whole[:-3], whole[-3:]
    try:
        return _BEGINNINGS[f"{whole}."] + _FRACTIONS[fraction[:3] or "0"]
    except KeyError:
        raise RefusedError(
            f"time {text[:_SHOWN]!r} is no Unix time between 2010 and 2100, in seconds or milliseconds"
        ) from None


def instant_texts(texts: list[str]) -> list[str]:
    """The same for many texts at once, in half the time where all have ten digits and a point, or are milliseconds."""
    pointed = [f"{text[:10]}.{text[10:]}" for text in texts] if set(map(len, texts)) == {13} else texts
    beyond = "".join([text[14:] for text in pointed])
    try:
        if _are_digits(beyond or "0"):
            return [_BEGINNINGS[text[:11]] + _FRACTIONS[text[11:14]] for text in pointed]
    except KeyError:
        pass
    # Trades that one order makes have one time.
    known = {text: instant_text(text) for text in set(texts)}
    return [known[text] for text in texts]


class _Beginnings(dict[str, str]):
    """Texts of instants up to the point, by Unix seconds with a point behind them; `KeyError` for any other."""

    def __missing__(self, text: str) -> str:
        seconds = text[:-1]
        passed = int(seconds) if len(seconds) <= _SECOND_DIGITS and _are_digits(seconds) else 0
        if passed not in SECONDS or text[-1] != ".":
            raise KeyError(text)
        if len(self) >= _MANY_SECONDS:
            self.clear()
        begun = self[text] = second_text(passed)
        return begun


_BEGINNINGS = _Beginnings()
_FRACTIONS = {
    digits: f"{digits:0<6}" for places in range(1, 4) for digits in map(f"{{:0{places}}}".format, range(10**places))
}


def _are_digits(text: str) -> bool:
    return text.isdecimal() and text.isascii()
