"""Values as the drivers give them fastest, made into the exact ones that mapped objects have, a column at a time.

A column is decoded by `map` over functions of the interpreter's own: no line of Python runs for a row, which is what
most of the time would go into.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import partial
from itertools import chain, repeat
from operator import add, eq
from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, Dialect, Float, Numeric, Text, cast, func, type_coerce
from sqlalchemy.types import NullType, TypeEngine

from shared.db.column_types import MONEY_PLACES, SCALABLE, UNREADABLE, CheckedType, Money, UTCDateTime
from shared.db.dialects import port_of

_T = TypeVar("_T")
_Stored = TypeVar("_Stored")
# Rows before they are decoded.
RawPages = Iterable[Sequence[Any]]
# What a stored time lacks to be read as UTC.
_UTC_OFFSET = "+00:00"
_QUANTUM = Decimal(1).scaleb(-MONEY_PLACES)
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)


def undecoded(columns: Sequence[Column[Any]], dialect: Dialect) -> list[ColumnElement[Any]]:
    """The columns as `decode_rows` takes them: times as ISO text, amounts as text or, from SQLite, as floats.

    All others come as the driver gives them.
    """
    if port_of(dialect).money_is_float:
        return [type_coerce(column, NullType()) for column in columns]
    # psycopg2 makes its own Decimals and datetimes one by one; text comes faster, and the server's time zone is out.
    return [
        cast(func.timezone("UTC", column) if isinstance(column.type, UTCDateTime) else column, Text)
        if isinstance(column.type, (Money, UTCDateTime))
        else type_coerce(column, NullType())
        for column in columns
    ]


def decode_rows(
    pages: RawPages, columns: Sequence[Column[Any]], row: type[Any], same: tuple[str, Any], dialect: Dialect
) -> Iterator[Any]:
    """Pages of `undecoded(columns)` as plain rows; `same` is the name and value of the column that is not read."""
    name, value = same
    place = row._fields.index(name)
    decoders = [decoder(column, dialect) for column in columns]

    def decoded() -> Iterator[Iterable[Any]]:
        for page in pages:
            # strict=False: the column that is the same has no end, and the others are equally long as it is.
            values = [decode(column) for decode, column in zip(decoders, zip(*page, strict=False), strict=True)]
            values.insert(place, repeat(value))
            # tuple.__new__ takes half the time of the class's own.
            yield map(tuple.__new__, repeat(row), zip(*values, strict=False))

    return chain.from_iterable(decoded())


def decode_time(stored: str, column: Column[Any]) -> datetime:
    """One time, as `undecoded` gives it. `DatabaseCorruptError` if the column holds something else there."""
    return unless_damaged(column, datetime.fromisoformat, f"{stored}{_UTC_OFFSET}")


def decode_amounts(stored: Sequence[Any], dialect: Dialect) -> Iterable[Decimal | None]:
    """A column of amounts, as `undecoded` gives it, as Decimals with 8 places."""
    distinct = set(stored)
    exact = _from_floats if port_of(dialect).money_is_float else _from_texts
    if len(distinct) * 2 > len(stored) and None not in distinct:
        return exact(stored)
    # Prices and sizes repeat, and looking one up takes a tenth of decoding it.
    distinct.discard(None)
    return map(dict(zip(distinct, exact(distinct), strict=True)).get, stored)


def unless_damaged(column: Column[Any], read: Callable[[_Stored], _T], stored: _Stored) -> _T:
    """What `read` makes of what a column holds. `DatabaseCorruptError`, as by the column's own type, if it cannot."""
    kind = column.type
    assert isinstance(kind, CheckedType)
    try:
        return read(stored)
    except UNREADABLE:
        pass  # raised below and without this one, which quotes the value
    raise kind.damaged()


def decoder(column: Column[Any], dialect: Dialect) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """What reads the values of a column as `undecoded` gives them, many at once."""
    # Lists: what cannot be read has to be found here, and not by whoever takes the rows.
    if isinstance(column.type, Money):
        return partial(unless_damaged, column, lambda stored: list(decode_amounts(stored, dialect)))
    if isinstance(column.type, UTCDateTime):
        return partial(unless_damaged, column, _decode_times)
    read = column.type.dialect_impl(dialect).result_processor(dialect, _oid(column.type))
    return (lambda stored: stored) if read is None else (lambda stored: list(map(read, stored)))


def _oid(kind: TypeEngine[Any]) -> int | None:
    """PostgreSQL's number for a type of numbers: there SQLAlchemy's own reader depends on it."""
    if isinstance(kind, Float):
        return 701
    return 1700 if isinstance(kind, Numeric) else None


def _decode_times(stored: Sequence[str | None]) -> list[datetime | None]:
    if None in stored:
        return [None if text is None else datetime.fromisoformat(text + _UTC_OFFSET) for text in stored]
    return list(map(datetime.fromisoformat, map(add, stored, repeat(_UTC_OFFSET))))


def _from_texts(stored: Collection[str]) -> Iterable[Decimal]:
    # The column's own 8 places are in the text.
    return map(Decimal, stored)


def _from_floats(stored: Collection[float]) -> Iterable[Decimal]:
    texts = list(map(float.__format__, stored, repeat(f".{MONEY_PLACES}f")))
    # Below SCALABLE at most one number of 8 places stands for a float: if it does, it has the digits of repr().
    if max(map(abs, stored), default=0.0) < SCALABLE and all(map(eq, map(float, texts), stored)):
        return map(Decimal, texts)
    # As `Money` does it.
    return map(_EXACT.quantize, map(Decimal, map(repr, stored)), repeat(_QUANTUM))
