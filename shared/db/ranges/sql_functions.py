"""SQL functions that the summaries need and not every database has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Dialect, Integer, Text, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from shared.db.dialects import port_of
from shared.db.tenancy.functions import allow_functions

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST = datetime(1, 1, 1, tzinfo=UTC)


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
        return dialect.type_descriptor(port_of(dialect).bucket())

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


class one_text(FunctionElement[str]):
    """All of a text's rows as one, in the order of what follows, with NUL between them."""

    type = Text()
    inherit_cache = True
    name = "one_text"


class longest_text(FunctionElement[int]):
    """Where the server cuts off such a text, in bytes."""

    type = Integer()
    inherit_cache = True
    name = "longest_text"


allow_functions(exact_product_sum, time_bucket, one_text, longest_text)


@compiles(exact_product_sum)
def _exact_product_sum(element: exact_product_sum, compiler: SQLCompiler, **how: Any) -> str:
    first, second = (compiler.process(clause, **how) for clause in element.clauses)
    return port_of(compiler.dialect).exact_product_sum(first, second)


@compiles(time_bucket)
def _time_bucket(element: time_bucket, compiler: SQLCompiler, **how: Any) -> str:
    column, length, shift = (compiler.process(clause, **how) for clause in element.clauses)
    return port_of(compiler.dialect).time_bucket(column, length, shift)


@compiles(one_text)
def _one_text(element: one_text, compiler: SQLCompiler, **how: Any) -> str:
    text, *order = (compiler.process(clause, **how) for clause in element.clauses)
    return f"group_concat({text} ORDER BY {', '.join(order)} SEPARATOR 0x00)"


@compiles(longest_text)
def _longest_text(element: longest_text, compiler: SQLCompiler, **how: Any) -> str:
    return "least(@@group_concat_max_len, @@max_allowed_packet)"
