"""SQL functions that the summaries need and not every database has."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from decimal import Context
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Dialect, Integer, Text, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from shared.db.column_types import MONEY_PLACES, money_units
from shared.db.driver_errors import note_damage
from shared.db.tenancy.functions import allow_functions

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST = datetime(1, 1, 1, tzinfo=UTC)
_EXACT = Context(prec=100)


class exact_product_sum(FunctionElement[str]):
    """SUM of the products of two money columns, exact on every database: a decimal number as text, 16 places.

    On SQLite it needs a connection that `DatabaseFactory` opened, which brings the function along.
    """

    type = Text()
    inherit_cache = True
    name = "exact_product_sum"

    def __init__(self, first: Column[Any], second: Column[Any]) -> None:
        super().__init__(first, second)


class BucketStart(TypeDecorator[datetime]):
    """The instant that `time_bucket` gives; SQLite counts it in microseconds since 1970."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """A whole number on SQLite."""
        return dialect.type_descriptor(Integer() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """The instant as aware UTC."""
        if isinstance(value, int):
            return _EPOCH + timedelta(microseconds=value)
        return None if value is None else value.astimezone(UTC)


class time_bucket(FunctionElement[datetime]):
    """The start of the interval in which an instant lies; intervals of `length` count from 1970-01-01T00:00Z."""

    type = BucketStart()
    inherit_cache = True
    name = "time_bucket"

    def __init__(self, column: Column[Any], length: timedelta) -> None:
        micros = length // timedelta(microseconds=1)
        before_1970 = (_EPOCH - _EARLIEST) // length + 1
        super().__init__(column, literal(micros, BigInteger()), literal(micros * before_1970, BigInteger()))


allow_functions(exact_product_sum, time_bucket)


@compiles(exact_product_sum)
def _exact_product_sum(element: exact_product_sum, compiler: SQLCompiler, **how: Any) -> str:
    first, second = (compiler.process(clause, **how) for clause in element.clauses)
    return f"CAST(sum({first} * {second}) AS TEXT)"


@compiles(exact_product_sum, "sqlite")
def _exact_product_sum_sqlite(element: exact_product_sum, compiler: SQLCompiler, **how: Any) -> str:
    return f"exact_product_sum({compiler.process(element.clauses, **how)})"


@compiles(time_bucket)
def _time_bucket(element: time_bucket, compiler: SQLCompiler, **how: Any) -> str:
    column, length, _ = (compiler.process(clause, **how) for clause in element.clauses)
    return f"date_bin({length} * interval '1 microsecond', {column}, timestamptz '1970-01-01 00:00:00+00')"


@compiles(time_bucket, "sqlite")
def _time_bucket_sqlite(element: time_bucket, compiler: SQLCompiler, **how: Any) -> str:
    column, length, shift = (compiler.process(clause, **how) for clause in element.clauses)
    # strftime would round a fraction up to the next second: it gets none. The shift keeps the division from rounding
    # towards 1970 what lies before it.
    micros = f"strftime('%s', substr({column}, 1, 19)) * 1000000 + substr({column}, 21, 6)"
    return f"(({micros} + {shift}) / {length} * {length} - {shift})"


class _ExactProductSum:
    """The aggregate behind `exact_product_sum` on SQLite."""

    def __init__(self) -> None:
        self._units: int | None = None

    def step(self, first: float | None, second: float | None) -> None:
        """Add the product of two stored values."""
        if first is not None and second is not None:
            try:
                self._units = (self._units or 0) + money_units(first) * money_units(second)
            except (ArithmeticError, TypeError, ValueError):
                note_damage()
                raise

    def finalize(self) -> str | None:
        """The sum as text, which keeps every digit."""
        return None if self._units is None else format(_EXACT.scaleb(self._units, -2 * MONEY_PLACES), "f")


def register(connection: sqlite3.Connection) -> None:
    """Give a SQLite connection what the functions here compile to."""
    # finalize() may give NULL, which the stubs do not know.
    connection.create_aggregate("exact_product_sum", 2, _ExactProductSum)  # type: ignore[arg-type] # as said
