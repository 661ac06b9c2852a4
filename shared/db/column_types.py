"""Values that mean the same on every database: money, UTC time, JSON, bounded text, closed vocabularies, ids.

Each type refuses in Python, with `InvalidValueError`, what one of the databases would change, reject or keep
differently. The checks sit where SQLAlchemy binds a value, so ORM, Core and bulk statements meet the same ones.
"""

from __future__ import annotations

import importlib
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from enum import StrEnum
from functools import partial
from types import ModuleType
from typing import Any, ClassVar, Final, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Index,
    Interval,
    Numeric,
    String,
    Table,
    Text,
    bindparam,
    cast,
    event,
    func,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement, FunctionElement
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from shared.db.dialects import port_of
from shared.db.errors import DatabaseCorruptError, InvalidValueError
from shared.db.tracked_json import as_read, as_stored
from shared.db.value_forms import amounts, files, instants, texts
from shared.db.value_forms.amounts import EXACT, MONEY_DIGITS, MONEY_PLACES, QUANTUM, SCALABLE, UNITS
from shared.db.value_forms.forms import Convert, Forms, Rounded, Shortcut, each, remembering

_MONEY_LIMIT = Decimal(10) ** (MONEY_DIGITS - MONEY_PLACES)
_ZERO = Decimal(0).quantize(QUANTUM)
# Of 15 digits and a point every 8-byte float gives all back.
_SURELY_EXACT = 16
_SHOWN = 40
# So many digits every 8-byte float gives back.
_FLOAT_DIGITS = Context(prec=15, rounding=ROUND_HALF_EVEN)
_TOWARDS_ZERO = Context(prec=15, rounding=ROUND_DOWN)
# A day inside what both drivers can read back in any server time zone.
_EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
_LATEST = datetime(9999, 12, 30, tzinfo=UTC)
_INT64 = 2**63
_PATTERNS = frozenset(
    {
        operators.like_op,
        operators.not_like_op,
        operators.ilike_op,
        operators.not_ilike_op,
        operators.startswith_op,
        operators.endswith_op,
        operators.contains_op,
        operators.istartswith_op,
        operators.iendswith_op,
        operators.icontains_op,
    }
)
# Far more than any document of ours, and far less than the interpreter's stack.
_JSON_DEPTH = 100

UNREADABLE: Final = (ValueError, TypeError, ArithmeticError, RecursionError)
"""What reading a damaged value raises; it quotes the value."""


_T = TypeVar("_T")


class CheckedType(Forms, TypeDecorator[Any]):
    """Base of the types here: knows its column's name, so that an error can tell it."""

    impl: Any = Text
    cache_ok = True
    column_name: str | None = None
    frozen: ClassVar[str | None] = None
    """How revisions write the type, with the SQL type behind it to be filled in; None for that type itself."""
    # Python's types of which every value that can be stored comes back as it is.
    kept_as_given: ClassVar[frozenset[type]] = frozenset()

    def refuse(self, problem: str) -> InvalidValueError:
        """The error to raise for a value that does not fit."""
        return InvalidValueError(problem, self.column_name)

    def kept(self, value: Any, dialect: Dialect) -> Any:
        """What reading will give for `value` once it is stored, or `InvalidValueError`."""
        bound = self.process_bind_param(value, dialect)
        alters = type(self).process_result_value is not TypeDecorator.process_result_value
        return self.process_result_value(bound, dialect) if alters else bound

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        """What reads a stored value. `DatabaseCorruptError` for one that nothing of this library can have stored."""
        read = super().result_processor(dialect, coltype)
        if read is None or port_of(dialect).checks_types:
            return read

        return partial(self.unless_damaged, read)

    def damaged(self) -> DatabaseCorruptError:
        """The error to raise for a stored value that nothing of this library can have stored."""
        place = self.column_name or "a column"
        return DatabaseCorruptError(ValueError(f"{place} holds what cannot be read as {type(self).__name__}"))

    def unless_damaged(self, read: Callable[[Any], _T], stored: Any) -> _T:
        """What `read` makes of what the column holds. `DatabaseCorruptError` if it cannot."""
        try:
            return read(stored)
        except UNREADABLE:
            pass  # raised below and without this one, which quotes the value
        raise self.damaged()

    @property
    def has_lines(self) -> bool:
        """Whatever is no secret."""
        return not self.secret

    def _binding(self, dialect: Dialect) -> Callable[[Any], Any]:
        return lambda value: self.process_bind_param(value, dialect)


@event.listens_for(Column, "after_parent_attach")
def _tell_type_its_column(column: Column[Any], table: Any) -> None:
    # A type object belongs to one column here; one shared by several would tell the last one's name.
    if isinstance(column.type, CheckedType) and isinstance(table, Table):
        column.type.column_name = f"{table.name}.{column.name}"


class Money(CheckedType):
    """An exact decimal with 20 digits, 8 of them after the point: prices, quantities, fees, profit and loss.

    Takes `Decimal`, `int` and `str`; gives `Decimal` with 8 places. More than 8 places are rounded half-even,
    on every database alike. Refuses NaN, Infinity, float (write `Decimal(str(x))`) and 10**12 or more. SQLite
    stores 8-byte floats: there, a value that would not come back digit for digit is refused too (none of 15
    digits or fewer is), so that comparisons, AVG and price * size mean the same in SQL, up to the rounding of
    floats. A number beside a money column in SQL is money too, and rounded as such.
    `func.avg(column, type_=Money())` gives a Decimal everywhere; without the type it is a float on SQLite. For sums
    see `exact_sum`.

    With `never_to_zero` an amount that rounding would make 0 is refused. `kept_in` names the JSON column of the same
    table that keeps all digits of the amount, where it is not NULL: `bulk_create` then stores what `nearest` gives.
    """

    impl = Numeric(MONEY_DIGITS, MONEY_PLACES)
    cache_ok = True
    frozen = "frozen.money()"
    escaped = False

    def __init__(self, *, never_to_zero: bool = False, kept_in: str | None = None) -> None:
        super().__init__()
        self.never_to_zero = never_to_zero
        self.kept_in = kept_in

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """NUMERIC, and REAL on SQLite."""
        return dialect.type_descriptor(port_of(dialect).money(MONEY_DIGITS, MONEY_PLACES))

    def process_bind_param(self, value: Any, dialect: Dialect) -> Decimal | float | None:
        """The value to store."""
        if value is None:
            return None
        amount = self.exact(value)
        return self.as_float(amount) if port_of(dialect).money_is_float else amount

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """The stored value as a Decimal with 8 places."""
        if value is None:
            return None
        # repr() is the shortest decimal that gives the same float: the digits that as_float() let in.
        amount = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        return EXACT.quantize(amount, QUANTUM) if amount else _ZERO

    def kept(self, value: Any, dialect: Dialect) -> Any:
        """The exact amount, or the value as it is where the column refuses it: binding tells."""
        try:
            return self.exact(value)
        except InvalidValueError:
            return value

    def exact(self, value: Any) -> Decimal:
        """The value rounded to 8 places, or `InvalidValueError`."""
        if type(value) is Decimal and value.same_quantum(QUANTUM) and value.copy_abs() < _MONEY_LIMIT:
            return value or _ZERO  # as it was made here before
        given = self.amount(value)
        # The magnitude first: quantizing Decimal("1e999999") would need a million digits.
        if given and given.adjusted() >= MONEY_DIGITS:
            raise self.refuse("the amount does not fit Numeric(20, 8): it must be below 10**12")
        amount = EXACT.quantize(given, QUANTUM)
        # Not abs(): that rounds in the caller's context.
        if amount.copy_abs() >= _MONEY_LIMIT:
            raise self.refuse("the amount does not fit Numeric(20, 8): it must be below 10**12")
        if self.never_to_zero and given and not amount:
            raise self.refuse(f"{given} would become 0, since Numeric(20, 8) has 8 places; store it in a larger unit")
        return amount or _ZERO

    def amount(self, value: Any) -> Decimal:
        """The value as it was given, or `InvalidValueError` if it is no amount."""
        if type(value) is Decimal and value.is_finite():
            return value
        if isinstance(value, float):
            raise self.refuse(f"a float is not exact money; write Decimal(str(x)) for {value!r}")
        if isinstance(value, bool) or not isinstance(value, (Decimal, int, str)):
            raise self.refuse(f"money takes Decimal, int or str, not {type(value).__name__}")
        try:
            amount = Decimal(value)
        except (InvalidOperation, ValueError):
            raise self.refuse(
                "the text is not a decimal number; write it like '123.45', and use None for no value"
            ) from None
        if not amount.is_finite():
            raise self.refuse(f"{amount} is not an amount of money; use None for no value")
        return amount

    def nearest(self, value: Any, dialect: Dialect, *, nullable: bool) -> Decimal | float | None:
        """What to store of a value whose digits are kept elsewhere: never another amount, nor 0 for one that is none.

        On SQLite that is the amount of 15 digits where the float would not give back all of them; and None, if the
        column is `nullable`, is for what rounding would make 0 and for what is too large.
        """
        given = self.amount(value)
        try:
            amount = self.exact(value)
        except InvalidValueError:
            if nullable:
                return None
            raise
        if given and not amount and nullable:
            return None
        if not port_of(dialect).money_is_float:
            return amount
        try:
            return self.as_float(amount)
        except InvalidValueError:
            fewer = _FLOAT_DIGITS.plus(amount)
            return float(fewer if fewer.copy_abs() < _MONEY_LIMIT else _TOWARDS_ZERO.plus(amount))

    def as_float(self, amount: Decimal) -> float:
        """The 8-byte float from which SQLite gives `amount` back digit for digit, or `InvalidValueError`."""
        stored = float(amount)
        if Decimal(repr(stored)) != amount:
            raise self.refuse(
                f"{amount} has more digits than SQLite's 8-byte floats give back (15 always fit); "
                "round it, or use PostgreSQL"
            )
        return stored

    def shortcut(self, dialect: Dialect) -> Shortcut:
        """For amounts of at most 8 places."""
        return amounts.usual_floats if port_of(dialect).money_is_float else amounts.usual_texts

    def arrow_checked(self, values: Any, dialect: Dialect, arrow: ModuleType) -> Any:
        """Decimals that lose no digits, and whole numbers."""
        return arrow.amounts(values)

    def rounding(self, dialect: Dialect, *, nullable: bool) -> Callable[[Any, bool], Rounded]:
        """What is lost is told."""
        floats = port_of(dialect).money_is_float

        def made(value: Any, kept: bool) -> Rounded:
            bound = self.nearest(value, dialect, nullable=nullable) if kept else self.process_bind_param(value, dialect)
            given, lost = self.amount(value), None
            if bound is None or given != (Decimal(repr(bound)) if isinstance(bound, float) else bound):
                stored = "NULL" if bound is None else f"{Decimal(str(bound)):f}"
                lost = f"{str(given)[:_SHOWN]} is stored as {stored}"
            return Rounded(bound if bound is None or floats else str(bound), lost)

        return made

    def line_writer(self) -> Callable[[Any], str | None]:
        """Decimal digits. A text stays one: money takes it as well, and makes the same of it."""
        return lambda value: str(value) if type(value) is Decimal else value if type(value) is str else None

    def line_reader(self) -> Callable[[str], Decimal]:
        """A decimal."""
        return Decimal

    def written(self, file: files.Format, *, nullable: bool) -> files.Form:
        """Plain digits; in Parquet decimal128(20, 8)."""
        return files.as_it_is if file == "parquet" else files.plain_digits

    def read(self, file: files.Format, *, nullable: bool) -> files.Form:
        """Plain digits of at most 8 places."""
        return _from_digits

    def fetched(self, column: Column[Any], dialect: Dialect) -> ColumnElement[Any]:
        """Floats from SQLite. Elsewhere text: the driver makes its Decimals one by one."""
        return super().fetched(column, dialect) if port_of(dialect).money_is_float else cast(column, Text)

    def fetches_text(self, dialect: Dialect) -> bool:
        """But from SQLite."""
        return not port_of(dialect).money_is_float

    def decoding(self, dialect: Dialect) -> Callable[[Sequence[Any]], Iterable[Any]]:
        """Decimals with 8 places."""
        floats = port_of(dialect).money_is_float
        # A list: what cannot be read has to be found here, and not by whoever takes the rows.
        return partial(self.unless_damaged, lambda stored: list(amounts.exact_amounts(stored, floats=floats)))

    def arrow_type(self, arrow: Any) -> Any:
        """Exact."""
        return arrow.decimal128(MONEY_DIGITS, MONEY_PLACES)

    def arrow_array(self, stored: Sequence[Any], dialect: Dialect, arrow: Any) -> Any:
        """Texts, or the floats that SQLite stores, as exact decimals."""
        if not port_of(dialect).money_is_float:
            return arrow.array(self.decoding(dialect)(stored), self.arrow_type(arrow))
        return self.unless_damaged(partial(self._arrow_units, arrow, dialect), stored)

    def _arrow_units(self, arrow: Any, dialect: Dialect, stored: Sequence[Any]) -> Any:
        compute, kind = importlib.import_module("pyarrow.compute"), self.arrow_type(arrow)
        floats = arrow.array(stored, arrow.float64())
        farthest = compute.max(compute.abs(floats)).as_py()
        if farthest is None or farthest >= SCALABLE:
            return arrow.array(self.decoding(dialect)(stored), kind)
        units = compute.round(compute.multiply(floats, UNITS)).cast(arrow.int64())
        # A decimal128 is a number of units; where its point stands is noted in the type alone.
        return arrow.Array.from_buffers(kind, len(units), units.cast(arrow.decimal128(19)).buffers())

    def copied(self, column: Column[Any], source: Dialect, target: Dialect) -> ColumnElement[Any]:
        """Floats from SQLite, text elsewhere."""
        stored = type_coerce(column, NullType())
        return stored if port_of(source).money_is_float else cast(stored, Text)

    def converting(self, source: Dialect, target: Dialect) -> Convert:
        """The decimal that a stored float stands for, and back."""
        return remembering(self._stored_float if port_of(target).money_is_float else self._stored_digits)

    def _stored_digits(self, stored: Any) -> str:
        if isinstance(stored, float) and -SCALABLE < stored < SCALABLE:
            return f"{stored:.{MONEY_PLACES}f}"  # off by less than half of the last digit
        # repr() is the shortest decimal that gives the same float: what reading it gives, too.
        return format(self.exact(repr(stored) if isinstance(stored, float) else stored), "f")

    def _stored_float(self, stored: str) -> float:
        return float(stored) if len(stored) <= _SURELY_EXACT else self.as_float(self.exact(stored))

    def digest(self, column: Column[Any]) -> dict[str, ColumnElement[Any]]:
        """The exact sum."""
        return {"sum": exact_sum(column)}


def _from_digits(value: Any) -> Decimal | None:
    amount = files.from_digits(value)
    exponent = 0 if amount is None else amount.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -MONEY_PLACES:
        raise ValueError(f"{str(value)[:40]} has more than the {MONEY_PLACES} decimal places that are stored")
    return amount


class MoneyTotal(Money):
    """What `exact_sum` gives: on SQLite text, which keeps every digit, in an order of numbers by its collation."""

    cache_ok = True

    class comparator_factory(TypeDecorator.Comparator[Any], Numeric.Comparator[Any]):
        """Arithmetic on a total gives a number again, so what it is compared with must be one too."""

        def _adapt_expression(self, op: Any, other: Any) -> tuple[Any, TypeEngine[Any]]:
            return op, Money()

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Text on SQLite."""
        return dialect.type_descriptor(port_of(dialect).total())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """The amount to compare a total with."""
        if value is None:
            return None
        return format(self.exact(value), "f") if port_of(dialect).money_is_float else self.exact(value)


class UTCDateTime(CheckedType):
    """An instant, to the microsecond. Takes aware datetimes of any zone, gives aware UTC ones.

    Refuses naive datetimes (write `datetime.now(UTC)` or `.replace(tzinfo=UTC)`), and instants within a day of
    the first or last that datetime can hold.
    """

    impl = DateTime(timezone=True)
    cache_ok = True
    frozen = "frozen.instant()"
    escaped = False
    alike = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """A time with its zone, where there are such."""
        return dialect.type_descriptor(port_of(dialect).instant())

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        """A duration beside a time stays one."""
        return Interval() if isinstance(value, timedelta) else self

    def process_bind_param(self, value: Any, dialect: Dialect) -> datetime | None:
        """The instant in UTC; naive on SQLite, which keeps no zone."""
        if value is None:
            return None
        instant = self.instant(value)
        return instant if port_of(dialect).keeps_zone else instant.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """The stored instant as aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    def kept(self, value: Any, dialect: Dialect) -> datetime:
        """The instant in UTC."""
        if type(value) is datetime and value.tzinfo is UTC:
            return value  # what it may not be, binding it refuses
        return self.instant(value)

    def instant(self, value: Any) -> datetime:
        """The value in UTC, or `InvalidValueError`."""
        if not isinstance(value, datetime):
            raise self.refuse(f"an instant takes an aware datetime, not {type(value).__name__}")
        if value.tzinfo is None or value.utcoffset() is None:
            raise self.refuse(
                "a naive datetime does not say which instant it means; "
                "write datetime.now(UTC), or .replace(tzinfo=UTC) if it is UTC"
            )
        if getattr(value, "nanosecond", 0):
            raise self.refuse("nanoseconds would be lost; round to microseconds first")
        try:
            instant = value.astimezone(UTC)
        except OverflowError:
            instant = None
        if instant is None or not _EARLIEST <= instant <= _LATEST:
            raise self.refuse(f"the instant must lie between {_EARLIEST.date()} and {_LATEST.date()}")
        return instant

    def shortcut(self, dialect: Dialect) -> Shortcut:
        """For plain datetimes."""
        return instants.stored_texts_with_zone if port_of(dialect).keeps_zone else instants.stored_texts

    def arrow_checked(self, values: Any, dialect: Dialect, arrow: ModuleType) -> Any:
        """Times with a zone, of whole microseconds."""
        return arrow.instants(values, _EARLIEST, _LATEST)

    def line_writer(self) -> Callable[[Any], str | None]:
        """ISO 8601, in the value's own zone."""
        return instants.iso_text

    def line_reader(self) -> Callable[[str], datetime]:
        """A datetime with the zone that stands there, if one does."""
        return datetime.fromisoformat

    def written(self, file: files.Format, *, nullable: bool) -> files.Form:
        """ISO 8601 in UTC to the microsecond; in Parquet timestamp[us, UTC]."""
        return files.as_it_is if file == "parquet" else files.utc_text

    def read(self, file: files.Format, *, nullable: bool) -> files.Form:
        """A time with its offset."""
        return files.from_empty(files.from_utc_text) if nullable else files.from_utc_text

    def fetched(self, column: Column[Any], dialect: Dialect) -> ColumnElement[Any]:
        """UTC as text: the driver makes its datetimes one by one, and in the server's time zone."""
        port = port_of(dialect)
        if port.times_are_text:
            return super().fetched(column, dialect)
        return cast(func.timezone("UTC", column) if port.keeps_zone else column, Text)

    def fetches_text(self, dialect: Dialect) -> bool:
        """From every database."""
        return True

    def decoding(self, dialect: Dialect) -> Callable[[Sequence[Any]], Iterable[Any]]:
        """Aware datetimes in UTC."""
        return partial(self.unless_damaged, instants.from_stored_texts)

    def arrow_type(self, arrow: Any) -> Any:
        """To the microsecond, in UTC."""
        return arrow.timestamp("us", "UTC")

    def arrow_read(self, arrow: Any) -> Any:
        """Both databases are asked for UTC without saying so."""
        return arrow.timestamp("us")

    def exported(self, column: Column[Any]) -> ColumnElement[Any]:
        """UTC without saying so."""
        return func.timezone("UTC", column)

    def arrow_array(self, stored: Sequence[Any], dialect: Dialect, arrow: Any) -> Any:
        """Arrow reads the texts by itself."""
        kind = self.arrow_read(arrow)
        return self.unless_damaged(lambda texts: arrow.array(texts, arrow.string()).cast(kind), stored)

    def copied(self, column: Column[Any], source: Dialect, target: Dialect) -> ColumnElement[Any]:
        """As SQLite stores it, for SQLite."""
        if port_of(source).keeps_zone and not port_of(target).keeps_zone:
            return func.to_char(func.timezone("UTC", column), "YYYY-MM-DD HH24:MI:SS.US")
        if not (port_of(source).keeps_zone or port_of(source).times_are_text):
            return cast(type_coerce(column, NullType()), Text)
        return super().copied(column, source, target)

    def converting(self, source: Dialect, target: Dialect) -> Convert:
        """The same text; its length is looked at, since SQLite takes any text and PostgreSQL also knows infinity."""
        return instants.with_offset if port_of(target).keeps_zone else instants.unchanged

    def digest(self, column: Column[Any]) -> dict[str, ColumnElement[Any]]:
        """The first and the last."""
        return {"first": func.min(column), "last": func.max(column)}


class BoundedString(CheckedType):
    """Text of at most `length` characters: the limit that PostgreSQL keeps and SQLite does not."""

    impl = String
    cache_ok = True
    frozen = "frozen.text({0.length})"
    kept_as_given = frozenset({str})

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """VARCHAR; on PostgreSQL ordered by code point, as SQLite orders, and faster than by a locale's rules."""
        return dialect.type_descriptor(port_of(dialect).text(self.length))

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """The text itself."""
        return None if value is None else self.text(value)

    def shortcut(self, dialect: Dialect) -> Shortcut:
        """For ASCII."""
        return texts.bounded(self.length)

    def arrow_checked(self, values: Any, dialect: Dialect, arrow: ModuleType) -> Any:
        """Text of at most `length` characters."""
        return arrow.texts(values, most=self.length)

    def text(self, value: Any) -> str:
        """The text, or `InvalidValueError`."""
        text = checked_text(self, value)
        if len(text) > self.length:
            raise self.refuse(f"text of {len(text)} characters does not fit; at most {self.length} are allowed")
        return text


class CheckedText(CheckedType):
    """Text of any length."""

    impl = Text
    cache_ok = True
    frozen = "frozen.long_text()"
    kept_as_given = frozenset({str})

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """TEXT, or what is as long elsewhere."""
        return dialect.type_descriptor(port_of(dialect).long_text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """The text itself."""
        return None if value is None else checked_text(self, value)

    def arrow_checked(self, values: Any, dialect: Dialect, arrow: ModuleType) -> Any:
        """Text."""
        return arrow.texts(values)


class Vocabulary(CheckedType):
    """One word of a closed list: takes the `StrEnum`'s members or their strings, gives plain strings."""

    impl = String
    cache_ok = True
    frozen = "frozen.word({0.length})"
    kept_as_given = frozenset({str})

    def __init__(self, words: type[StrEnum], length: int) -> None:
        super().__init__(length)
        self.words = words
        self.length = length
        self._allowed = {word.value: word.value for word in words}

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        """A pattern is no word, and of equals only a word makes sense."""
        return String() if op in _PATTERNS else self

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """The word as a plain string."""
        if value is None:
            return None
        word = self._allowed.get(value) if isinstance(value, str) else None
        if word is None:
            shown = repr(str(value)[:50]) if isinstance(value, str) else type(value).__name__
            raise self.refuse(f"{shown} is not allowed; use one of {', '.join(self._allowed)}")
        return word

    def shortcut(self, dialect: Dialect) -> Shortcut:
        """For plain strings."""
        return texts.words(frozenset(self._allowed))

    def arrow_checked(self, values: Any, dialect: Dialect, arrow: ModuleType) -> Any:
        """Words of the list."""
        return arrow.texts(values, allowed=self._allowed)


def one_of(column: str, words: type[StrEnum]) -> CheckConstraint:
    """A CHECK, named after the column, with the words that a `Vocabulary` takes: for a model's `__table_args__`."""
    return CheckConstraint(f"{column} IN ({', '.join(repr(word.value) for word in words)})", name=column)


class CheckedInteger(CheckedType):
    """A 64-bit whole number; INTEGER on SQLite, the only type that counts up by itself there."""

    impl = BigInteger
    cache_ok = True
    frozen = "frozen.whole_number()"
    kept_as_given = frozenset({int})

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """INTEGER on SQLite, BIGINT elsewhere."""
        return dialect.type_descriptor(port_of(dialect).whole_number())

    def process_bind_param(self, value: Any, dialect: Dialect) -> int | None:
        """The number itself."""
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(f"a whole number is needed, not {type(value).__name__}")
        if not -_INT64 <= value < _INT64:
            raise self.refuse("the number does not fit 64 bits")
        return int(value)

    def arrow_checked(self, values: Any, dialect: Dialect, arrow: ModuleType) -> Any:
        """Whole numbers."""
        return arrow.whole_numbers(values)


class CheckedBoolean(CheckedType):
    """True or False, and nothing that merely looks like it."""

    impl = Boolean
    cache_ok = True
    frozen = "frozen.flag()"
    kept_as_given = frozenset({bool})

    def process_bind_param(self, value: Any, dialect: Dialect) -> bool | None:
        """The value itself."""
        if value is None or isinstance(value, bool):
            return value
        raise self.refuse(f"True or False is needed, not {type(value).__name__}")

    def arrow_checked(self, values: Any, dialect: Dialect, arrow: ModuleType) -> Any:
        """True and False."""
        return arrow.flags(values)

    def converting(self, source: Dialect, target: Dialect) -> Convert | None:
        """Whole numbers on SQLite."""
        return super().converting(source, target) if port_of(target).takes_texts else each(int)


class Json(CheckedType):
    """A JSON document, a dict or a list: JSONB on PostgreSQL, JSON elsewhere. None is SQL NULL.

    Decimal, aware datetime, date and UUID are written as strings, tuples as lists. Refuses what one of the
    databases would change or reject: NaN and Infinity, NUL and lone surrogates in text, keys that are not text,
    floats that JSONB gives back as another number, more than 100 levels.
    """

    impl = JSON
    cache_ok = True
    frozen = "frozen.document()"
    document = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """JSONB on PostgreSQL."""
        return dialect.type_descriptor(port_of(dialect).document())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """The document in plain JSON types."""
        return None if value is None else self.plain(value)

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        """A whole document is checked as a stored one; what is compared with a part of it keeps JSON's own rules."""
        if op in (operators.eq, operators.ne) and value is not None:
            return self if isinstance(value, (Mapping, list, tuple)) else self.impl_instance
        return self.impl_instance.coerce_compared_value(op, value)

    def kept(self, value: Any, dialect: Dialect) -> Any:
        """The document itself, with strings where it had a Decimal and the like."""
        return as_stored(value, self.plain(value))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """The stored document; a bare value that another program has stored as it is."""
        return as_read(value)

    def plain(self, value: Any) -> Any:
        """The document in dict, list, str, int, float, bool and None, or `InvalidValueError`."""
        if not isinstance(value, (Mapping, list, tuple)):
            raise self.refuse(f"a JSON document is a dict or a list, not {type(value).__name__}")
        return self._plain(value, _JSON_DEPTH)

    def shortcut(self, dialect: Dialect) -> Shortcut | None:
        """For documents of plain types, where the extra `fast` is installed."""
        return texts.documents()

    def cell(self, dialect: Dialect) -> Callable[[Any], str]:
        """The document as text."""
        return lambda value: json.dumps(self.plain(value), ensure_ascii=False, separators=(",", ":"))

    def written(self, file: files.Format, *, nullable: bool) -> files.Form:
        """Itself in JSON lines, text elsewhere."""
        return files.as_it_is if file == "jsonl" else files.json_text

    def read(self, file: files.Format, *, nullable: bool) -> files.Form:
        """The way back."""
        return files.as_it_is if file == "jsonl" else files.from_json_text

    def copied(self, column: Column[Any], source: Dialect, target: Dialect) -> ColumnElement[Any]:
        """The text as it is stored."""
        stored = type_coerce(column, NullType())
        return cast(stored, Text) if port_of(source).takes_texts else stored

    def _plain(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return checked_text(self, value)
        if isinstance(value, int):
            if value.bit_length() > 1024:
                raise self.refuse("the JSON document holds a number too long for it; write it as a string")
            return int(value)
        if isinstance(value, float):
            return self._plain_float(float(value))
        if isinstance(value, (Mapping, list, tuple)) and depth == 0:
            raise self.refuse("the JSON document is nested too deeply, or contains itself")
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise self.refuse(f"JSON keys are text, not {type(key).__name__}; write str(key)")
            return {checked_text(self, key): self._plain(item, depth - 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._plain(item, depth - 1) for item in value]
        if isinstance(value, Decimal):
            if not value.is_finite():
                raise self.refuse("JSON has no NaN or Infinity; use null")
            return str(value)
        if isinstance(value, datetime):
            if value.tzinfo is None:
                raise self.refuse("the JSON document holds a naive datetime; write datetime.now(UTC)")
            return value.isoformat()
        if isinstance(value, date):
            return value.isoformat()
        if isinstance(value, uuid.UUID):
            return str(value)
        raise self.refuse(f"{type(value).__name__} has no JSON form; convert it to text, numbers, lists or dicts")

    def _plain_float(self, number: float) -> float:
        if not math.isfinite(number):
            raise self.refuse("JSON has no NaN or Infinity; use null")
        # JSONB keeps decimal digits and prints 1e23 as a whole number, which reads back as another one.
        if abs(number) >= 2**53 and int(Decimal(repr(number))) != number:
            raise self.refuse(f"the float {number!r} would come back changed; write it as a string")
        return number


def checked_text(kind: CheckedType, value: Any) -> str:
    """`value` as a plain string, or `InvalidValueError` for other types, NUL and lone surrogates."""
    if not isinstance(value, str):
        raise kind.refuse(f"text is needed, not {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise kind.refuse("the text holds a lone surrogate, which has no UTF-8 form") from None
    if "\0" in value:
        raise kind.refuse("the text holds a NUL character, which PostgreSQL cannot store")
    return str.__str__(value)  # of an enumeration's member its text, not its name


class utc_now(FunctionElement[datetime]):
    """The database's clock, in the form in which `UTCDateTime` is stored: for server-side defaults."""

    type = UTCDateTime()
    inherit_cache = True


class new_uuid(FunctionElement[str]):
    """A random UUID as 36 characters of text, made by the database: for server-side defaults."""

    type = BoundedString(36)
    inherit_cache = True


class exact_sum(FunctionElement[Decimal]):
    """SUM of a money column without float drift: exact on every database, NULL for no rows.

    On SQLite it needs a connection that `DatabaseFactory` opened, which brings the function along.
    """

    type = MoneyTotal()
    inherit_cache = True
    name = "exact_sum"

    def __init__(self, column: ColumnElement[Any] | Any) -> None:
        super().__init__(column)


class holds(FunctionElement[bool]):
    """Whether the document in a `Json` column holds all that another one says, at any depth.

    `where(holds(Signal.strategies, {"macd": {"signal": "BUY"}}))`. An object holds one with some of its names whose
    values are held by its own; any other value holds its equal. An index of `document_index` finds such rows on
    PostgreSQL; elsewhere each is looked at. Raises `InvalidValueError` for what is no dict, and for a list in it, which
    the databases compare differently.
    """

    type = Boolean()
    inherit_cache = True
    name = "holds"

    def __init__(self, column: ColumnElement[Any] | Any, document: Mapping[str, Any]) -> None:
        if not isinstance(document, Mapping):
            raise InvalidValueError(f"what a document holds is a dict, not {type(document).__name__}", str(column))
        part = Json().plain(document)
        # Of both its texts: documents are stored as ASCII by one way in, and as they are by another.
        paths = [path for escaped in (True, False) for path in _paths(part, "$", column, escaped)]
        super().__init__(column, bindparam(None, part, Json()), *(bindparam(None, path, String()) for path in paths))


def _paths(document: dict[str, Any], above: str, column: Any, escaped: bool) -> Iterator[str]:
    """Where the values of a document stand in one of its texts."""
    for name, value in document.items():
        path = f"{above}.{json.dumps(name, ensure_ascii=escaped)}"
        if isinstance(value, list):
            raise InvalidValueError(f"{path} is a list; name what is an object or a value alone", str(column))
        if value and isinstance(value, dict):
            yield from _paths(value, path, column, escaped)
        else:
            yield path


def document_index(column: str) -> Index:
    """An index by which PostgreSQL finds what `holds` asks of a `Json` column: for a model's `__table_args__`.

    No other database has one there. In a revision it is `frozen.create_document_index(table, column)`.
    """
    index = Index(None, column, postgresql_using="gin", postgresql_ops={column: "jsonb_path_ops"})
    return index.ddl_if(callable_=lambda *_, dialect, **__: port_of(dialect).indexes_documents)


@compiles(utc_now)
def _now(element: utc_now, compiler: SQLCompiler, **how: Any) -> str:
    return port_of(compiler.dialect).now()


@compiles(new_uuid)
def _uuid(element: new_uuid, compiler: SQLCompiler, **how: Any) -> str:
    return port_of(compiler.dialect).new_uuid()


@compiles(exact_sum)
def _exact_sum(element: exact_sum, compiler: SQLCompiler, **how: Any) -> str:
    return port_of(compiler.dialect).exact_sum(compiler.process(element.clauses, **how))


@compiles(holds)
def _holds(element: holds, compiler: SQLCompiler, **how: Any) -> str:
    return port_of(compiler.dialect).holds(*(partial(compiler.process, each, **how) for each in element.clauses))


def money_units(stored: float) -> int:
    """The amount, as SQLite stores it, in units of 1e-8."""
    if -SCALABLE < stored < SCALABLE:
        return round(stored * UNITS)
    return int(EXACT.scaleb(Decimal(repr(stored)), MONEY_PLACES))
