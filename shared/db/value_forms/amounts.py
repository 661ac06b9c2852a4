"""Columns of amounts, many values at once: to the cells of a bulk statement, and back to exact Decimals."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from itertools import repeat
from operator import eq
from typing import Any, Final

from shared.db.value_forms.forms import Cells, Values
from shared.db.value_forms.texts import StoredTexts

MONEY_DIGITS: Final = 20
MONEY_PLACES: Final = 8
QUANTUM: Final = Decimal(1).scaleb(-MONEY_PLACES)
# Never the caller's decimal context: it may be set to a few digits, or to another rounding.
EXACT: Final = Context(prec=60, rounding=ROUND_HALF_EVEN)
UNITS: Final = 10.0**MONEY_PLACES
# Below, the errors of the stored float and of its product with 1e8 make less than half a unit together; above, only
# its digits tell which amount it stands for.
SCALABLE: Final = 2.0**24
# A decimal point and nine digits: one too many. It stops at the points alone, which is what makes it fast.
_TOO_PRECISE = re.compile(r"\.[0-9]{9}").search
_PLAIN_NUMBER = re.compile(rf"-?[0-9]{{1,{MONEY_DIGITS - MONEY_PLACES}}}(?:\.[0-9]{{1,{MONEY_PLACES}}})?").fullmatch
_LIMIT = 10 ** (MONEY_DIGITS - MONEY_PLACES)
_EXACT_LIMIT = 10.0 ** (15 - MONEY_PLACES)


class AmountTexts(StoredTexts[Decimal]):
    """Amounts as decimal digits: at most 12, and perhaps a point and at most 8 behind it."""

    @staticmethod
    def value(text: str) -> Decimal:
        """The amount."""
        return Decimal(text)


def usual_texts(values: Values) -> Cells | None:
    """The amounts as decimal digits; None where one of them needs a closer look."""
    if isinstance(values, AmountTexts):
        return values.texts
    texts = _decimal_texts(values)
    # A number of so few characters is below the limit.
    if texts is None or max(map(len, texts)) <= MONEY_DIGITS - MONEY_PLACES:
        return texts
    return texts if all(map(_PLAIN_NUMBER, texts)) else None


def usual_floats(values: Values) -> Cells | None:
    """The amounts as the floats that give back every digit; None where one of them needs a closer look."""
    texts = values.texts if isinstance(values, AmountTexts) else _decimal_texts(values)
    if texts is None:
        return None
    floats = list(map(float, texts))
    # Every 8-byte float gives 15 digits as they were: 7 before the point and 8 behind it, or those of 16 characters.
    if min(floats) > -_EXACT_LIMIT and max(floats) < _EXACT_LIMIT:
        return floats
    return floats if max(map(len, texts)) <= 16 and all(map(_PLAIN_NUMBER, texts)) else None


def _decimal_texts(values: Values) -> Cells | None:
    """The texts of numbers of at most 8 decimal places, written without an exponent."""
    try:
        texts = list(map(Decimal.__str__, values))
    except TypeError:
        return _number_texts(values)
    together = " ".join(texts)
    # Of a Decimal's text only exponents, NaN and Infinity have letters.
    if "E" in together or "e" in together or "N" in together or "I" in together or _TOO_PRECISE(together):
        return None
    return texts


def _number_texts(values: Values) -> Cells | None:
    kinds = set(map(type, values))
    if kinds == {str}:
        return values if all(map(_PLAIN_NUMBER, values)) else None
    if kinds == {int}:
        return list(map(str, values)) if min(values) > -_LIMIT and max(values) < _LIMIT else None
    return None


def exact_amounts(stored: Sequence[Any], *, floats: bool) -> Iterable[Decimal | None]:
    """A column of stored amounts, texts or floats, as Decimals with 8 places."""
    distinct = set(stored)
    exact = _from_floats if floats else _from_texts
    if len(distinct) * 2 > len(stored) and None not in distinct:
        return exact(stored)
    # Prices and sizes repeat, and looking one up takes a tenth of decoding it.
    distinct.discard(None)
    return map(dict(zip(distinct, exact(distinct), strict=True)).get, stored)


def _from_texts(stored: Collection[str]) -> Iterable[Decimal]:
    # The column's own 8 places are in the text.
    return map(Decimal, stored)


def _from_floats(stored: Collection[float]) -> Iterable[Decimal]:
    texts = list(map(float.__format__, stored, repeat(f".{MONEY_PLACES}f")))
    # Below SCALABLE at most one number of 8 places stands for a float: if it does, it has the digits of repr().
    if max(map(abs, stored), default=0.0) < SCALABLE and all(map(eq, map(float, texts), stored)):
        return map(Decimal, texts)
    # As `Money` does it.
    return map(EXACT.quantize, map(Decimal, map(repr, stored)), repeat(QUANTUM))
