"""Values mean the same on every database: what goes in comes back, or is refused before anything is written."""

from __future__ import annotations

import decimal
import math
import random
import struct
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import ROUND_HALF_EVEN, Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    Column,
    Connection,
    Dialect,
    MetaData,
    Select,
    Table,
    func,
    insert,
    inspect,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from shared.db import (
    ApiCredential,
    Base,
    BybitAccount,
    DatabaseFactory,
    InvalidValueError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Run,
    Strategy,
    User,
)
from shared.db.column_types import (
    BoundedString,
    CheckedBoolean,
    CheckedInteger,
    CheckedText,
    CheckedType,
    Json,
    Money,
    UTCDateTime,
    Vocabulary,
    exact_sum,
    holds,
    new_uuid,
    utc_now,
)
from shared.db.tests.support import execution_values, new_strategy, stored, trade_values

MANY = 10_000
DIALECTS: tuple[Dialect, ...] = (sqlite.dialect(), postgresql.dialect())  # type: ignore[no-untyped-call] # untyped there
PLACES = Decimal("0.00000001")
# What SQLite computes goes through 8-byte floats: this share of the true value may be lost in each step.
FLOAT = Decimal("1e-15")


def values_table(column_type: CheckedType) -> Table:
    """A table with one column of the type."""
    return Table(
        "values_under_test",
        MetaData(),
        Column("number", CheckedInteger(), primary_key=True),
        Column("value", column_type),
    )


def store(connection: Connection, column_type: CheckedType, values: Iterable[Any]) -> Table:
    """A new table with one row a value, numbered from 1."""
    table = values_table(column_type)
    table.metadata.create_all(connection)
    connection.execute(insert(table), [{"number": n, "value": value} for n, value in enumerate(values, 1)])
    return table


def stored_values(connection: Connection, table: Table) -> Sequence[Any]:
    """What the table gives back, in the order in which it was stored."""
    return connection.scalars(select(table.c.value).order_by(table.c.number)).all()


def accepted(column_type: CheckedType, values: Iterable[Any], dialect: Dialect) -> tuple[list[Any], list[Any]]:
    """The values that the type takes on this database, and those that it refuses."""
    taken, refused = [], []
    for value in values:
        try:
            column_type.process_bind_param(value, dialect)
        except InvalidValueError:
            refused.append(value)
        else:
            taken.append(value)
    return taken, refused


def significant_digits(amount: Decimal) -> int:
    """The number of digits from the first to the last that is not 0."""
    return len(str(abs(int(amount.scaleb(8)))).strip("0"))


# --- money -----------------------------------------------------------------------------------------------------


def amounts(seed: int, count: int = MANY, digits: int = 20) -> list[Decimal]:
    """Random amounts over all magnitudes of Numeric(20, 8), of at most `digits` digits."""
    rng = random.Random(seed)
    made = [Decimal(0), Decimal("999999999999.99999999"), Decimal("-999999999999.99999999"), PLACES, -PLACES]
    while len(made) < count:
        length = rng.randint(1, digits)
        number = rng.randrange(10 ** (length - 1), 10**length)
        shift = rng.randint(-8, 12 - length) if length <= 20 else -8
        made.append(Decimal(rng.choice((1, -1)) * number).scaleb(shift))
    return [amount for amount in made if significant_digits(amount) <= digits]


def test_money_comes_back_digit_for_digit_or_is_refused(db: DatabaseFactory) -> None:
    """10,000 amounts of the full range: servers keep all, SQLite all that its floats give back, and none change."""
    dialect = db.engine.dialect
    given_amounts = amounts(1)
    taken, refused = accepted(Money(), given_amounts, dialect)
    with db.engine.begin() as connection:
        table = store(connection, Money(), taken)
        read = stored_values(connection, table)
    assert read == taken
    assert all(isinstance(amount, Decimal) and amount.as_tuple().exponent == -8 for amount in read)
    if dialect.name != "sqlite":
        assert not refused
    else:
        assert all(significant_digits(amount) > 15 for amount in refused)
        assert 0 < len(refused) < MANY / 2
        assert Decimal("999999999999.99999999") in refused
        with db.engine.begin() as connection, pytest.raises(InvalidValueError, match="use PostgreSQL"):
            connection.execute(insert(table), [{"value": 1}, {"value": refused[0]}])


def test_fifteen_digits_are_never_refused(db: DatabaseFactory) -> None:
    """Up to 15 significant digits, anywhere in the range, are exact on every database."""
    given_amounts = amounts(2, digits=15)
    taken, refused = accepted(Money(), given_amounts, db.engine.dialect)
    assert refused == []
    with db.engine.begin() as connection:
        assert stored_values(connection, store(connection, Money(), taken)) == given_amounts


def test_money_is_ordered_and_compared_as_numbers(db: DatabaseFactory) -> None:
    """ORDER BY, <, <=, =, BETWEEN, IN, min and max in SQL agree with Decimal's own."""
    given_amounts = amounts(3, 2000, digits=15)
    with db.engine.begin() as connection:
        table = store(connection, Money(), given_amounts)
        value = table.c.value
        assert connection.scalars(select(value).order_by(value)).all() == sorted(given_amounts)
        assert connection.scalars(select(value).order_by(value.desc())).all() == sorted(given_amounts, reverse=True)
        assert connection.execute(select(func.min(value), func.max(value))).one() == (
            min(given_amounts),
            max(given_amounts),
        )
        for pivot in given_amounts[:25]:
            counted = connection.execute(
                select(
                    *(
                        func.count().filter(test)
                        for test in (value < pivot, value <= pivot, value == pivot, value.between(-pivot, pivot))
                    )
                )
            ).one()
            assert counted == (
                sum(amount < pivot for amount in given_amounts),
                sum(amount <= pivot for amount in given_amounts),
                sum(amount == pivot for amount in given_amounts),
                sum(-pivot <= amount <= pivot for amount in given_amounts),
            )
        some = given_amounts[:50]
        found = connection.scalars(select(value).where(value.in_(some))).all()
        assert set(found) == set(some)


def test_arithmetic_in_sql_means_the_same_everywhere(db: DatabaseFactory) -> None:
    """SUM, AVG, price * size, price / size and price + size are the true values, on SQLite within float rounding."""
    rng = random.Random(4)
    pairs = [
        (Decimal(rng.randrange(1, 10**12)).scaleb(-4), Decimal(rng.randrange(1, 10**9)).scaleb(-8)) for _ in range(2000)
    ]
    exact = db.engine.dialect.name == "postgresql"
    rows = [trade_values(n, price=price, size=size) for n, (price, size) in enumerate(pairs)]
    with db.engine.begin() as connection, decimal.localcontext() as context:
        context.prec = 50
        connection.execute(insert(PublicTrade), rows)
        price, size = PublicTrade.price, PublicTrade.size
        read = connection.execute(select(price * size, price / size, price + size).order_by(PublicTrade.trade_id)).all()
        named = sorted(zip((row["trade_id"] for row in rows), pairs, strict=True))
        for results, (_, (p, s)) in zip(read, named, strict=True):
            for result, true in zip(results, (p * s, p / s, p + s), strict=True):
                # The result is money too: rounded to 8 places, where a server's own rounding may have come before.
                assert abs(result - true) <= PLACES + (0 if exact else abs(true) * FLOAT)
        count = len(pairs)
        total = sum((p for p, _ in pairs), Decimal(0))
        worth = sum((p * s for p, s in pairs), Decimal(0))
        for aggregate, true in (
            (func.sum(price), total),
            (func.avg(price, type_=Money()), total / count),
            (func.sum(price * size), worth),
            (func.sum(price * size) / func.sum(size), worth / sum(s for _, s in pairs)),
        ):
            got = connection.scalar(select(aggregate))
            assert isinstance(got, Decimal)
            assert abs(got - true) <= PLACES + (0 if exact else abs(true) * FLOAT * 100)
        # Without a type SQLAlchemy leaves AVG as the driver gives it: a float on SQLite, the same number.
        assert (
            abs(Decimal(connection.scalar(select(func.avg(price))) or 0) - total / count) <= total / count * FLOAT * 100
        )


def test_whole_amounts_divide_as_decimals(db: DatabaseFactory) -> None:
    """5 / 2 is 2.5 on every database, in the type's own expressions and in raw SQL."""
    with db.engine.begin() as connection:
        table = store(connection, Money(), [Decimal(5)])
        assert connection.scalar(select(table.c.value / 2)) == Decimal("2.5")
        assert connection.exec_driver_sql("SELECT value / 2 FROM values_under_test").scalar() == Decimal("2.5")


def test_library_sums_are_exact_where_floats_drift(db: DatabaseFactory) -> None:
    """`exact_sum` loses nothing over mixed magnitudes, where SQLite's own SUM is off."""
    given_amounts = [Decimal("9999999.99999999"), Decimal("0.1"), -PLACES] * 3000 + amounts(5, 3000, digits=15)
    with db.engine.begin() as connection:
        table = store(connection, Money(), given_amounts)
        value = table.c.value
        with decimal.localcontext() as context:
            context.prec = 60
            true = sum(given_amounts)
            halves = [sum(given_amounts[start::2]) for start in (1, 0)]
        assert connection.scalar(select(exact_sum(value))) == true
        if db.engine.dialect.name == "sqlite":
            assert connection.scalar(select(func.sum(value))) != true
        grouped = select(table.c.number % 2, exact_sum(value)).group_by(table.c.number % 2).order_by(table.c.number % 2)
        assert [total for _, total in connection.execute(grouped)] == halves
        assert connection.scalar(select(exact_sum(value)).where(table.c.number < 0)) is None
        connection.execute(table.update().values(value=None))
        assert connection.scalar(select(exact_sum(value))) is None
        connection.execute(table.update().where(table.c.number == 7).values(value=Decimal("-2.5")))
        total = connection.scalar(select(exact_sum(value)))
        assert (total, str(total)) == (Decimal("-2.5"), "-2.50000000")


def test_library_sums_are_ordered_and_compared_as_numbers(db: DatabaseFactory) -> None:
    """ORDER BY an exact sum or its label, HAVING, and arithmetic on sums mean numbers, digit for digit."""
    sizes = [Decimal(text) for text in ("9", "100.5", "-3", "0.1", "19999999.99999998", "20000000.00000002")]
    trades = [
        trade_values(n, symbol=f"S{n // 2}", size=size / 2)
        for n, size in enumerate(each for each in sizes for _ in "12")
    ]
    symbols = [f"S{n}" for n in sorted(range(len(sizes)), key=lambda n: sizes[n])]
    total = exact_sum(PublicTrade.size)
    by_symbol = select(PublicTrade.symbol).group_by(PublicTrade.symbol)
    with db.engine.begin() as connection:
        connection.execute(insert(PublicTrade), trades)
        labelled = by_symbol.add_columns(total.label("total"))
        for ordered in (by_symbol.order_by(total), labelled.order_by(text("total")), labelled.order_by("total")):
            assert connection.scalars(ordered).all() == symbols
        assert connection.scalars(labelled.order_by(total.desc())).all() == symbols[::-1]
        inner = labelled.subquery()
        assert connection.scalars(select(inner.c.symbol).order_by(inner.c.total)).all() == symbols
        for bound in (*sizes, Decimal(0), Decimal(20000000)):
            greater = {f"S{n}" for n, size in enumerate(sizes) if size > bound}
            assert set(connection.scalars(by_symbol.having(total > bound))) == greater
            assert set(connection.scalars(by_symbol.having(total - 1 > bound - 1))) == greater
            assert set(connection.scalars(select(inner.c.symbol).where(inner.c.total > bound))) == greater
            equal = {f"S{n}" for n, size in enumerate(sizes) if size == bound}
            assert set(connection.scalars(by_symbol.having(total == bound))) == equal
        assert (
            connection.scalars(by_symbol.having(total * 2 > func.max(PublicTrade.size) * 3).order_by(total)).all()
            == symbols[1:]
        )


@pytest.mark.parametrize(
    ("given_amount", "kept"),
    [
        ("0.000000005", "0E-8"),
        ("0.000000015", "2E-8"),
        ("0.000000025", "2E-8"),
        ("0.0000000250000001", "3E-8"),
        ("-0.000000015", "-2E-8"),
        ("-0.000000005", "0E-8"),
        ("-0", "0E-8"),
        ("-0.0", "0E-8"),
        ("0E-20", "0E-8"),
        ("0E+500", "0E-8"),
        ("1E-999999", "0E-8"),
        (" 12.5 ", "12.50000000"),
        ("1e3", "1000.00000000"),
        (".5", "0.50000000"),
        ("+7", "7.00000000"),
        (7, "7.00000000"),
        (-3, "-3.00000000"),
        (Decimal("1E+11"), "100000000000.00000000"),
        ("99999999999.9999999949", "99999999999.99999999"),
        (Decimal("123456.123456785"), "123456.12345678"),
        (Decimal("123456.123456775"), "123456.12345678"),
    ],
)
def test_money_is_rounded_half_even_to_eight_places(given_amount: object, kept: str) -> None:
    """More than 8 places round to the nearest, ties to the even digit, on every database; there is no minus zero."""
    assert str(Money().exact(given_amount)) == kept
    for dialect in DIALECTS:
        try:
            bound = Money().process_bind_param(given_amount, dialect)
        except InvalidValueError:
            assert dialect.name == "sqlite"
            assert significant_digits(Decimal(kept)) > 15
            continue
        read = Money().process_result_value(bound, dialect)
        assert str(read) == kept


@settings(max_examples=500, deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12) + 1, max_value=10**12 - 1))
def test_rounding_is_the_nearest_and_final(amount: Decimal) -> None:
    """What is kept differs by at most half a unit of the last place, and is kept unchanged from then on."""
    kept = Money().exact(amount)
    assert abs(Fraction(kept) - Fraction(amount)) <= Fraction(PLACES) / 2
    assert Money().exact(kept) == kept
    with decimal.localcontext() as context:
        context.prec = 60
        assert kept == amount.quantize(PLACES, ROUND_HALF_EVEN)


class FloatOfALibrary(float):
    """As numpy's float64, a subclass."""


class IntegerOfALibrary:
    """As numpy's int64, no subclass of int."""

    def __int__(self) -> int:
        return 1


BAD_MONEY: list[object] = [
    1.5,
    0.0,
    float("nan"),
    float("inf"),
    FloatOfALibrary(1.5),
    True,
    False,
    b"1",
    [1],
    IntegerOfALibrary(),
    Fraction(1, 3),
    1j,
    "",
    " ",
    "abc",
    "1,5",
    "1.2.3",
    "0x10",
    "NaN",
    "Infinity",
    "-inf",
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("-Infinity"),
    Decimal(10) ** 12,
    -(10**12),
    "999999999999.999999995",
    "1e12",
    "1e20",
    "1e999999",
    Decimal("1e999999"),
    "1e99999999999999999999",
    10**400,
]


@pytest.mark.parametrize("value", BAD_MONEY, ids=lambda value: repr(value)[:30])
def test_what_is_no_amount_is_refused(value: object) -> None:
    """NaN, Infinity, floats, bools, texts that are no number and what does not fit are refused on both databases."""
    for dialect in DIALECTS:
        with pytest.raises(InvalidValueError) as caught:
            Money().process_bind_param(value, dialect)
        assert caught.value.column is None
        assert caught.value.__cause__ is None


def test_a_float_is_refused_with_the_way_to_write_it() -> None:
    """The message for a float names Decimal(str(x))."""
    with pytest.raises(InvalidValueError, match=r"write Decimal\(str\(x\)\) for 1\.5"):
        Money().exact(1.5)


@pytest.mark.parametrize("rounding", [decimal.ROUND_UP, decimal.ROUND_FLOOR])
def test_the_callers_decimal_context_changes_nothing(db: DatabaseFactory, rounding: str) -> None:
    """With 3 digits of precision, other rounding and every trap set, amounts are written, read and summed exactly."""
    given_amounts = [Decimal("999999999.999999"), Decimal("123456.789"), Decimal("-0.00000001"), Decimal("1E+11")]
    true = sum(given_amounts)
    with db.engine.begin() as connection, decimal.localcontext() as context:
        context.prec = 3
        context.rounding = rounding
        for trap in context.traps:
            context.traps[trap] = trap is not decimal.FloatOperation
        table = store(connection, Money(), given_amounts)
        assert stored_values(connection, table) == given_amounts
        assert connection.scalar(select(exact_sum(table.c.value))) == true
        assert Money().exact("999999999999.99999999") == Decimal("999999999999.99999999")
        with pytest.raises(InvalidValueError):
            Money().exact("abc")
        with pytest.raises(InvalidValueError):
            Money().exact(Decimal("sNaN"))


# --- time ------------------------------------------------------------------------------------------------------


class SummerTime(tzinfo):
    """A zone an hour ahead, two in summer; 2025-10-26 02:30 happens twice there, as fold says."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        """The offset of a local time."""
        assert when is not None
        local = when.replace(tzinfo=None, fold=0)
        start, end = (
            local.replace(month=month, day=26, hour=hour, minute=0, second=0, microsecond=0)
            for month, hour in ((3, 2), (10, 3))
        )
        summer = start <= local < end
        if end - timedelta(hours=1) <= local < end:
            summer = when.fold == 0
        return timedelta(hours=2 if summer else 1)

    def dst(self, when: datetime | None) -> timedelta:
        """What summer adds."""
        return self.utcoffset(when) - timedelta(hours=1)

    def tzname(self, when: datetime | None) -> str:
        """Its name."""
        return "Summer"


EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, tzinfo=UTC)


def instants(seed: int, count: int = MANY) -> list[datetime]:
    """Random instants of the full range in random zones, with microseconds."""
    rng = random.Random(seed)
    span = (LATEST - EARLIEST) // timedelta(microseconds=1)
    made = [EARLIEST, LATEST, EARLIEST.replace(microsecond=1), datetime(1970, 1, 1, tzinfo=UTC)]
    while len(made) < count:
        zone = timezone(timedelta(seconds=rng.randint(-86399, 86399)))
        when = EARLIEST + timedelta(microseconds=rng.randrange(span))
        try:
            made.append(when.astimezone(rng.choice((zone, UTC, SummerTime()))))
        except OverflowError:
            continue  # not to be written in that zone
    return made


def test_instants_come_back_to_the_microsecond_in_utc(db: DatabaseFactory) -> None:
    """10,000 instants of the full range, given in any zone, come back equal and as aware UTC."""
    given_instants = instants(6)
    with db.engine.begin() as connection:
        table = store(connection, UTCDateTime(), given_instants)
        read = stored_values(connection, table)
        assert read == given_instants
        assert all(when.tzinfo is UTC for when in read)
        value = table.c.value
        in_utc = [when.astimezone(UTC) for when in given_instants]
        assert connection.scalars(select(value).order_by(value)).all() == sorted(in_utc)
        for pivot in given_instants[:10]:
            before = connection.scalar(select(func.count()).where(value < pivot))
            assert before == sum(when < pivot.astimezone(UTC) for when in in_utc)
            assert pivot in connection.scalars(select(value).where(value == pivot)).all()
        assert connection.execute(select(func.min(value), func.max(value))).one() == (EARLIEST, LATEST)


def test_the_hour_that_happens_twice_is_two_hours(db: DatabaseFactory) -> None:
    """Local times that only `fold` tells apart are stored as the two instants that they mean."""
    twice = [datetime(2025, 10, 26, 2, 30, tzinfo=SummerTime(), fold=fold) for fold in (0, 1)]
    with db.engine.begin() as connection:
        read = stored_values(connection, store(connection, UTCDateTime(), twice))
    assert read == [datetime(2025, 10, 26, hour, 30, tzinfo=UTC) for hour in (0, 1)]


def test_a_servers_own_time_zone_changes_nothing(empty_postgresql_url: Any) -> None:
    """A PostgreSQL session in another zone gives and takes the same instants, at the extremes too."""
    given_instants = instants(7, 500)
    with DatabaseFactory(empty_postgresql_url) as db, db.engine.begin() as connection:
        table = store(connection, UTCDateTime(), given_instants)
        for zone in ("America/New_York", "Asia/Kathmandu", "Pacific/Kiritimati", "Etc/GMT+12"):
            connection.exec_driver_sql(f"SET LOCAL TIME ZONE '{zone}'")
            assert stored_values(connection, table) == given_instants
            connection.execute(table.delete())
            connection.execute(insert(table), [{"number": n, "value": v} for n, v in enumerate(given_instants, 1)])
            connection.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
            assert stored_values(connection, table) == given_instants


def test_sqlite_keeps_one_text_form_which_is_that_of_the_default(tmp_path: Any) -> None:
    """Every time is stored as 26 characters of UTC, by the type and by the schema's default."""
    with DatabaseFactory(f"sqlite:///{tmp_path}/a.db") as db, db.engine.begin() as connection:
        store(connection, UTCDateTime(), [datetime(2025, 5, 19, 14, tzinfo=timezone(timedelta(hours=2)))])
        db_text = connection.exec_driver_sql("SELECT value FROM values_under_test").scalar_one()
        assert db_text == "2025-05-19 12:00:00.000000"
        default = str(utc_now().compile(dialect=connection.dialect))
        made = connection.exec_driver_sql(f"SELECT {default}").scalar_one()
        assert len(made) == len(db_text)
        assert datetime.strptime(made, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)


class Nanoseconds(datetime):
    """As pandas's Timestamp, a datetime with more digits."""

    nanosecond = 1


BAD_INSTANTS: list[object] = [
    datetime(2025, 5, 19),  # noqa: DTZ001 # the naive one that is refused
    date(2025, 5, 19),
    "2025-05-19T00:00:00Z",
    1747612800,
    1747612800.5,
    datetime.min.replace(tzinfo=UTC),
    datetime.max.replace(tzinfo=UTC),
    datetime(1, 1, 1, 23, 59, tzinfo=UTC),
    datetime(9999, 12, 30, 0, 0, 0, 1, tzinfo=UTC),
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=12))),
    Nanoseconds(2025, 5, 19, tzinfo=UTC),
]


# --- text, numbers, booleans -------------------------------------------------------------------------------------


def texts(seed: int, length: int, count: int = MANY) -> list[str]:
    """Random texts up to `length` characters, of every plane, with signs, blanks, combining marks and quotes."""
    rng = random.Random(seed)
    ranges = [
        (1, 0x7F),
        (0x20, 0x7E),
        (0x80, 0x24F),
        (0x300, 0x36F),
        (0x4E00, 0x9FFF),
        (0xE000, 0xFFFF),
        (0x10000, 0x10FFFF),
    ]
    made = ["", " ", "'", '"', "\\", "%s", ":x", "\ufeff", "x" * length, "𝄞" * length, "\n\t\r", "a ", "a"]
    while len(made) < count:
        low, high = rng.choice(ranges)
        made.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(0, length))))
    return made


@pytest.mark.parametrize("column_type", [BoundedString(20), CheckedText()], ids=["bounded", "unbounded"])
def test_text_comes_back_character_for_character(db: DatabaseFactory, column_type: CheckedType) -> None:
    """10,000 texts of all of Unicode come back equal, blanks and all, and are compared exactly."""
    given_texts = texts(8, 20)
    with db.engine.begin() as connection:
        table = store(connection, column_type, given_texts)
        assert stored_values(connection, table) == given_texts
        for wanted in given_texts[:25]:
            found = connection.scalars(select(table.c.number).where(table.c.value == wanted)).all()
            assert len(found) == given_texts.count(wanted)


def test_bounded_text_is_ordered_by_code_point_everywhere(db: DatabaseFactory) -> None:
    """ORDER BY, < and max on a text column are Python's own, whatever the server's locale."""
    given_texts = texts(9, 20, 2000)
    with db.engine.begin() as connection:
        table = store(connection, BoundedString(20), given_texts)
        value = table.c.value
        assert connection.scalars(select(value).order_by(value)).all() == sorted(given_texts)
        assert connection.scalar(select(func.max(value))) == max(given_texts)
        below = connection.scalar(select(func.count()).where(value < "a"))
        assert below == sum(given_text < "a" for given_text in given_texts)


class Colour(str, Enum):  # noqa: UP042 # the older form, whose str() is not its text
    """An enumeration of texts."""

    RED = "red"


class Level(IntEnum):
    """An enumeration of numbers."""

    HIGH = 3


class Word(StrEnum):
    """A vocabulary."""

    YES = "yes"
    NO = "no"


def test_what_is_a_text_or_a_number_by_inheritance_keeps_its_value(db: DatabaseFactory) -> None:
    """Members of enumerations are stored as their values, not as their names."""
    with db.engine.begin() as connection:
        assert stored_values(connection, store(connection, BoundedString(20), [Colour.RED, Word.YES])) == ["red", "yes"]
    with db.engine.begin() as connection:
        values_table(CheckedText()).metadata.drop_all(connection)
        assert stored_values(connection, store(connection, CheckedInteger(), [Level.HIGH])) == [3]
    with db.engine.begin() as connection:
        values_table(CheckedText()).metadata.drop_all(connection)
        document = {Colour.RED: Colour.RED, "level": Level.HIGH, "word": [Word.NO]}
        read = stored_values(connection, store(connection, Json(), [document]))
        assert read == [{"red": "red", "level": 3, "word": ["no"]}]


def test_whole_numbers_come_back_over_64_bits(db: DatabaseFactory) -> None:
    """10,000 numbers from -2**63 to 2**63 - 1 come back equal and in order; the next ones are refused."""
    rng = random.Random(10)
    given_numbers = [
        -(2**63),
        2**63 - 1,
        0,
        *(rng.randrange(-(2**63), 2**63) >> rng.randint(0, 63) for _ in range(MANY)),
    ]
    with db.engine.begin() as connection:
        table = store(connection, CheckedInteger(), given_numbers)
        assert stored_values(connection, table) == given_numbers
        value = table.c.value
        assert connection.scalars(select(value).order_by(value)).all() == sorted(given_numbers)


def test_booleans_come_back_as_booleans(db: DatabaseFactory) -> None:
    """True, False and None, and nothing in between."""
    given_values = [True, False, None] * 5
    with db.engine.begin() as connection:
        table = store(connection, CheckedBoolean(), given_values)
        read = stored_values(connection, table)
        assert [value is given for value, given in zip(read, given_values, strict=True)] == [True] * 15
        assert connection.scalar(select(func.count()).where(table.c.value)) == 5
        assert connection.scalar(select(func.count()).where(~table.c.value)) == 5
        assert connection.scalar(select(func.count()).where(table.c.value.is_(None))) == 5


def test_a_vocabulary_takes_members_and_words_and_gives_words(db: DatabaseFactory) -> None:
    """Members and their strings are the same; what comes back is a plain string."""
    with db.engine.begin() as connection:
        read = stored_values(connection, store(connection, Vocabulary(Word, 3), [Word.YES, "no", None]))
    assert read == ["yes", "no", None]
    assert [type(value) for value in read] == [str, str, type(None)]


def test_row_ids_count_up_by_themselves(db: DatabaseFactory) -> None:
    """The big tables number their rows without being told, and take a number that is given."""
    with db.get_session() as session:
        session.add_all([PublicTrade(**trade_values(n)) for n in range(3)])
        session.flush()
        numbers = session.scalars(select(PublicTrade.id).order_by(PublicTrade.id)).all()
        assert numbers == [1, 2, 3]
        session.add(PublicTrade(**trade_values(9), id=2**62))
        session.flush()
        assert session.scalar(select(func.max(PublicTrade.id))) == 2**62


def test_ids_made_by_the_database_are_random_uuids(db: DatabaseFactory) -> None:
    """`new_uuid()` gives 36 characters of a version 4 UUID, another one for each row."""
    made = new_uuid()
    with db.engine.begin() as connection:
        table = store(connection, CheckedInteger(), range(2000))
        ids = connection.scalars(select(made).select_from(table)).all()
    assert len(set(ids)) == 2000
    for made_id in ids:
        parsed = uuid.UUID(made_id)
        assert (str(parsed), parsed.version, parsed.variant) == (made_id, 4, uuid.RFC_4122)
    assert {made_id[19] for made_id in ids} == set("89ab")


def test_the_databases_clock_is_ours(db: DatabaseFactory) -> None:
    """`utc_now()` in a query is an aware UTC datetime of this moment."""
    with db.engine.begin() as connection:
        now = connection.scalar(select(utc_now()))
    assert now is not None
    assert now.tzinfo is UTC
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=60)


# --- JSON --------------------------------------------------------------------------------------------------------


def random_document(rng: random.Random, depth: int) -> Any:
    """A random JSON value with at most `depth` levels below."""
    kind = rng.randrange(9 if depth else 7)
    if kind == 0:
        return None
    if kind == 1:
        return rng.random() < 0.5
    if kind == 2:
        return rng.randrange(-(10**6), 10**6) * 10 ** rng.randrange(20)
    if kind in (3, 4):
        return (
            struct.unpack("<d", rng.randbytes(8))[0] if kind == 3 else round(rng.uniform(-1e6, 1e6), rng.randrange(9))
        )
    if kind in (5, 6):
        return "".join(
            chr(rng.choice((rng.randint(1, 0x7F), rng.randint(0x80, 0xD7FF), rng.randint(0x10000, 0x10FFFF))))
            for _ in range(rng.randrange(8))
        )
    if kind == 7:
        return [random_document(rng, depth - 1) for _ in range(rng.randrange(5))]
    return {f"k{rng.randrange(99)}é": random_document(rng, depth - 1) for _ in range(rng.randrange(5))}


def same(one: Any, other: Any) -> bool:
    """Whether two documents are equal, and of the same kinds: True is no 1 here."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (bool, str)) or one is None:
        return type(one) is type(other) and bool(one == other)
    return isinstance(other, (int, float)) and not isinstance(other, bool) and one == other


def test_documents_come_back_equal_or_are_refused(db: DatabaseFactory) -> None:
    """10,000 random documents, any float among them: what is taken comes back equal, on every database the same."""
    rng = random.Random(11)
    given_documents = [{"d": random_document(rng, 3)} for _ in range(MANY)]
    taken, refused = accepted(Json(), given_documents, db.engine.dialect)
    with db.engine.begin() as connection:
        read = stored_values(connection, store(connection, Json(), taken))
    assert all(map(same, taken, read))
    # Random bits make many huge floats and a few NaN; a float below 2**53 is never refused.
    assert MANY / 2 < len(taken) < MANY
    assert all(any(abs(number) >= 2**53 or number != number for number in _floats(document)) for document in refused)


def _floats(document: Any) -> list[float]:
    if isinstance(document, dict):
        return [number for item in document.values() for number in _floats(item)]
    if isinstance(document, list):
        return [number for item in document for number in _floats(item)]
    return [document] if isinstance(document, float) else []


def test_what_has_a_text_form_is_written_as_text(db: DatabaseFactory) -> None:
    """Decimal, aware datetime, date and UUID become strings, a tuple a list, a mapping a dict."""
    key = uuid.uuid4()
    document = {
        "decimal": Decimal("0.10"),
        "huge": Decimal("1E+500"),
        "when": datetime(2025, 5, 19, 12, 0, 0, 5, tzinfo=timezone(timedelta(hours=2))),
        "day": date(2025, 5, 19),
        "id": key,
        "pair": (1, (Decimal(2),)),
    }
    with db.engine.begin() as connection:
        (read,) = stored_values(connection, store(connection, Json(), [document]))
    assert read == {
        "decimal": "0.10",
        "huge": "1E+500",
        "when": "2025-05-19T12:00:00.000005+02:00",
        "day": "2025-05-19",
        "id": str(key),
        "pair": [1, ["2"]],
    }


def test_no_document_is_null_and_an_empty_one_is_none(db: DatabaseFactory) -> None:
    """None is SQL NULL, not JSON's null; empty containers stay empty containers."""
    with db.engine.begin() as connection:
        table = store(connection, Json(), [None, {}, []])
        assert stored_values(connection, table) == [None, {}, []]
        assert connection.scalars(select(table.c.number).where(table.c.value.is_(None))).all() == [1]


def test_paths_into_a_document_work_on_every_database(db: DatabaseFactory) -> None:
    """Values inside a document can be selected and compared."""
    with db.engine.begin() as connection:
        table = store(connection, Json(), [{"grid": {"levels": 20, "step": "0.2"}}, {"grid": {"levels": 5}}])
        levels = table.c.value["grid"]["levels"].as_integer()
        assert connection.scalars(select(levels).order_by(levels)).all() == [5, 20]
        assert connection.scalars(select(table.c.number).where(levels > 10)).all() == [1]
        step = table.c.value["grid"]["step"].as_string()
        assert connection.scalars(select(table.c.number).where(step == "0.2")).all() == [1]
        assert connection.scalars(select(table.c.value["grid"]).order_by(table.c.number)).all()[1] == {"levels": 5}


def small_document(rng: random.Random, depth: int, *, lists: bool = True) -> Any:
    """A document of a few names and values, so that one often holds another."""
    kind = rng.random() if depth else 0
    if kind < 0.4:
        return rng.choice((True, False, None, 0, 1, 1.5, -(2**60), "", "a", "A", "ä", 'x"\\'))
    if kind < 0.6 and lists:
        return [small_document(rng, depth - 1) for _ in range(rng.randrange(3))]
    names = ("a", "b.c", "ä", 'x"\\')
    return {name: small_document(rng, depth - 1, lists=lists) for name in names if rng.random() < 0.4}


def is_held(part: Any, document: Any) -> bool:
    """What `holds` promises."""
    if not isinstance(part, dict):
        return same(part, document)
    return isinstance(document, dict) and all(
        name in document and is_held(value, document[name]) for name, value in part.items()
    )


def test_a_document_holds_its_parts_on_every_database(db: DatabaseFactory) -> None:
    """1,000 random documents, asked for 200 random parts: the same are found everywhere."""
    rng = random.Random(12)
    documents = [{"d": small_document(rng, 3)} for _ in range(1_000)]
    found = 0
    with db.engine.begin() as connection:
        table = store(connection, Json(), [*documents, None])
        for _ in range(200):
            part = {"d": small_document(rng, 2, lists=False)} if rng.random() < 0.9 else {}
            held = {n for n, one in enumerate(documents, 1) if is_held(part, one)}
            assert {*connection.scalars(select(table.c.number).where(holds(table.c.value, part)))} == held
            others = {*connection.scalars(select(table.c.number).where(~holds(table.c.value, part)))}
            assert others == {*range(1, 1_001)} - held, "NULL neither holds it nor does not"
            found += len(held)
    assert found > 1_000


@pytest.mark.parametrize("part", [[], "a", None, 5, {"a": [1]}, {"a": {"b": []}}, {"a": float("nan")}, {1: 1}])
def test_what_a_document_holds_has_names_and_values(part: Any) -> None:
    """Anything else is refused before a database is asked: lists are compared differently by each."""
    with pytest.raises(InvalidValueError, match=r"is a dict, not|is a list|NaN|keys are text"):
        holds(Strategy.config_json, part)


def nested(levels: int) -> Any:
    """Lists in lists, so many levels."""
    document: list[Any] = []
    for _ in range(levels - 1):
        document = [document]
    return document


_cycle: dict[str, Any] = {}
_cycle["again"] = _cycle

BAD_DOCUMENTS: list[object] = [
    "a scalar",
    5,
    1.5,
    True,
    b"bytes",
    {1, 2},
    {"x": float("nan")},
    {"x": float("-inf")},
    {"x": Decimal("NaN")},
    {"x": [Decimal("Infinity")]},
    {"x": 1e23},
    {"x": [{"y": 1.7976931348623157e308}]},
    {"x": 10**400},
    {"x": "a\0b"},
    {"a\0b": 1},
    {"x": ["\ud800"]},
    {"\udfff": 1},
    {1: "x"},
    {"x": {None: 1}},
    {"x": {("a",): 1}},
    {"x": {1, 2}},
    {"x": b"bytes"},
    {"x": object()},
    {"x": datetime(2025, 5, 19)},  # noqa: DTZ001 # the naive one that is refused
    {"x": 1j},
    nested(101),
    nested(5000),
    _cycle,
]


def test_a_hundred_levels_come_back(db: DatabaseFactory) -> None:
    """Documents of 100 levels are written and read, in Core and through the ORM."""
    with db.engine.begin() as connection:
        assert stored_values(connection, store(connection, Json(), [nested(100)])) == [nested(100)]
    with db.get_session() as session:
        user = User(username="u", accounts=[BybitAccount(account_name="a", environment="testnet")])
        session.add(user)
        session.flush()
        strategy = new_strategy(user.accounts[0], config_json=nested(100))
        session.add(strategy)
        session.flush()
        session.expire_all()
        assert strategy.config_json == nested(100)


# --- one refusal on every path -----------------------------------------------------------------------------------

BAD_TEXTS: list[object] = [5, b"bytes", None.__class__, "a\0b", "\ud800", "x" * 33, "é" * 33]
# Values that PublicTrade's columns refuse.
REFUSED_TRADES: list[tuple[str, object]] = [
    *(("symbol", value) for value in BAD_TEXTS),
    ("trade_id", "x" * 51),
    ("trade_id", uuid.UUID(int=1)),
    *(("exchange_ts", value) for value in BAD_INSTANTS),
    ("local_ts", datetime(2025, 5, 19)),  # noqa: DTZ001 # the naive one that is refused
    *(("side", value) for value in ("buy", "BUY", "Long", "", 1, b"Buy", "Buy\0")),
    *(("price", value) for value in BAD_MONEY),
    ("size", 0.038),
    *(("id", value) for value in (True, 1.0, "1", 2**63, -(2**63) - 1)),
]


def refused_on(column: str, attempt: Callable[[], object]) -> None:
    """`attempt` must be refused with the one error, which names the column."""
    with pytest.raises(InvalidValueError) as caught:
        attempt()
    assert caught.value.column == column
    assert str(caught.value).startswith(f"{column}: ")
    assert isinstance(caught.value, ValueError)


def test_a_value_is_refused_alike_on_every_path(db: DatabaseFactory) -> None:
    """ORM flush, Core insert of one and of many, WHERE, and bulk_create of mappings and objects refuse alike."""
    for name, value in REFUSED_TRADES:
        with db.get_session() as session:
            _try_every_path(session, name, value)
            session.rollback()
            assert session.scalar(select(func.count()).select_from(PublicTrade)) == 0


def _try_every_path(session: Session, name: str, value: object) -> None:
    column = f"public_trades.{name}"
    good, bad = trade_values(1, id=1), trade_values(2, id=2) | {name: value}
    attribute = getattr(PublicTrade, name)
    trades = PublicTradeRepository(session)
    refused_on(column, lambda: session.execute(insert(PublicTrade).values(**bad)))
    refused_on(column, lambda: session.execute(insert(PublicTrade), [good, bad]))
    refused_on(column, lambda: session.connection().execute(insert(Base.metadata.tables["public_trades"]), [good, bad]))
    refused_on(column, lambda: session.execute(update(PublicTrade).values({name: value})))
    refused_on(column, lambda: trades.bulk_create([good, bad]))
    refused_on(column, lambda: trades.bulk_create([PublicTrade(**good), PublicTrade(**bad)]))
    if not isinstance(value, (list, bool)):  # SQLAlchemy makes IN and IS of these
        refused_on(column, lambda: session.execute(select(PublicTrade.id).where(attribute == value)))
        refused_on(column, lambda: session.execute(select(PublicTrade.id).where(attribute.in_([value]))))
    session.add_all([PublicTrade(**good), PublicTrade(**bad)])
    refused_on(column, session.flush)


def test_a_document_is_refused_alike_on_every_path(session: Session, sample_run: Run, sample_user: User) -> None:
    """The same for JSON: on assignment or at the flush, in Core and in bulk_create, with the column's name."""
    session.commit()
    for document in BAD_DOCUMENTS:
        _try_every_path_of_a_document(session, sample_run, sample_user.user_id, document)
        session.rollback()
        assert session.scalar(select(func.count()).select_from(PrivateExecution)) == 0


def _try_every_path_of_a_document(session: Session, run: Run, user_id: str, document: object) -> None:
    column = "private_executions.raw_json"
    good, bad = execution_values(run, 1), execution_values(run, 2, raw_json=document)
    executions = PrivateExecutionRepository(session, user_id=user_id)
    refused_on(column, lambda: session.execute(insert(PrivateExecution).values(**bad)))
    refused_on(column, lambda: session.execute(insert(PrivateExecution), [good, bad]))
    refused_on(column, lambda: executions.bulk_create([good, bad]))
    refused_on(column, lambda: stored(session, PrivateExecution(**bad)))


@pytest.mark.parametrize("value", [1, 0, "true", "", 1.0, None.__class__], ids=repr)
def test_what_only_looks_like_a_boolean_is_refused(
    session: Session, sample_account: BybitAccount, value: object
) -> None:
    """1 and "true" are no booleans: SQLite would take them and PostgreSQL not."""
    refused_on(
        "strategies.is_enabled",
        lambda: session.execute(
            insert(Strategy).values(
                account_id=sample_account.account_id,
                strategy_type="GridStrategy",
                symbol="X",
                config_json={},
                is_enabled=value,
            )
        ),
    )


def test_a_secret_is_refused_without_being_quoted(session: Session, sample_account: BybitAccount) -> None:
    """An API secret that cannot be stored is not part of the error."""
    session.add(ApiCredential(account_id=sample_account.account_id, api_key_id="k", api_secret="canary-4711\0"))
    with pytest.raises(InvalidValueError) as caught:
        session.flush()
    assert caught.value.column == "api_credentials.api_secret"
    assert "canary" not in str(caught.value)
    session.rollback()


@pytest.mark.parametrize("table", Base.metadata.sorted_tables, ids=lambda table: table.name)
def test_every_column_checks_and_knows_its_name(table: Table) -> None:
    """Each column of the schema has one of the checking types, which tells the column's name, also in a copy."""
    for each in (table, table.to_metadata(MetaData(), name="a_copy")):
        for column in each.columns:
            assert isinstance(column.type, CheckedType)
            assert column.type.column_name == f"{each.name}.{column.name}"
    for column in table.columns:
        assert column.type.column_name == f"{table.name}.{column.name}"  # type: ignore[attr-defined] # as asserted


# --- vocabularies ------------------------------------------------------------------------------------------------

VOCABULARIES = [
    (table, column, column.type)
    for table in Base.metadata.sorted_tables
    for column in table.columns
    if isinstance(column.type, Vocabulary)
]


def test_the_vocabularies_are_closed() -> None:
    """The columns with a closed list of words are these, with these words."""
    assert {
        f"{table.name}.{column.name}": [word.value for word in kind.words] for table, column, kind in VOCABULARIES
    } == {
        "users.status": ["active", "suspended", "deleted"],
        "bybit_accounts.environment": ["mainnet", "testnet"],
        "bybit_accounts.status": ["enabled", "disabled", "error"],
        "runs.run_type": ["live", "backtest", "shadow", "recording"],
        "runs.status": ["running", "completed", "failed"],
        "public_trades.side": ["Buy", "Sell"],
        "private_executions.side": ["Buy", "Sell"],
        "audit_log.action": ["create", "update", "delete"],
    }


def test_the_schema_refuses_the_same_words(db: DatabaseFactory) -> None:
    """For every vocabulary a named CHECK takes exactly its words, also from raw SQL."""
    for table, column, kind in VOCABULARIES:
        words = [word.value for word in kind.words]
        assert max(map(len, words)) <= kind.length
        name = f"ck_{table.name}_{column.name}"
        with db.engine.connect() as connection:
            assert name in {check["name"] for check in inspect(connection).get_check_constraints(table.name)}
            # A copy with nothing but the vocabularies and their checks, so that no parent row is needed.
            copy = f"copy_of_{table.name}_{column.name}"
            connection.exec_driver_sql(_check_alone(connection, table, column.name, name, copy))
            for word in words:
                connection.exec_driver_sql(f"INSERT INTO {copy} VALUES ('{word}')")
            for word in (*(word.upper() for word in words), words[0][:-1], "x", ""):
                with pytest.raises(IntegrityError, match=name), connection.begin_nested():
                    connection.exec_driver_sql(f"INSERT INTO {copy} VALUES ('{word}')")


def _check_alone(connection: Connection, table: Table, column: str, name: str, copy: str) -> str:
    """DDL of a table with one column and the live schema's CHECK of that name."""
    checks = inspect(connection).get_check_constraints(table.name)
    (condition,) = [check["sqltext"] for check in checks if check["name"] == name]
    texts = " COLLATE utf8mb4_nopad_bin" if connection.dialect.name == "mysql" else ""
    return f"CREATE TEMPORARY TABLE {copy} ({column} VARCHAR(20){texts}, CONSTRAINT {name} CHECK ({condition}))"


def test_an_unknown_word_is_refused_with_the_known_ones() -> None:
    """The error for a typo lists what is allowed."""
    with pytest.raises(InvalidValueError, match="'buy' is not allowed; use one of Buy, Sell"):
        PublicTrade.__table__.c.side.type.process_bind_param("buy", DIALECTS[0])  # type: ignore[attr-defined] # a Vocabulary


def test_results_of_expressions_keep_their_meaning(db: DatabaseFactory) -> None:
    """Literals and coerced expressions pass the same types: a text becomes money, a time aware UTC."""
    with db.engine.begin() as connection:
        statement: Select[Any] = select(
            type_coerce(text("1.5"), Money()),
            type_coerce(text("CURRENT_TIMESTAMP"), UTCDateTime()),
        )
        amount, when = connection.execute(statement).one()
    assert amount == Decimal("1.5")
    assert when.tzinfo is UTC
    assert math.isclose(when.timestamp(), datetime.now(UTC).timestamp(), abs_tol=60)
