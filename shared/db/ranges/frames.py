"""A range as an Arrow table, a polars or a pandas frame, exact: decimal128(20, 8) and timestamp[us, UTC].

Needs the extra `frames`. PostgreSQL sends the rows as CSV by COPY, in the session's own transaction and under its
policies, and Arrow parses them; from SQLite, and where the driver has no COPY, the columns are built page by page from
what the driver gives.
"""

from __future__ import annotations

import importlib
import io
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import (
    Boolean,
    Column,
    Date,
    Dialect,
    Enum,
    Float,
    Integer,
    Numeric,
    Select,
    TypeDecorator,
    func,
    select,
)
from sqlalchemy.orm import Session

from shared.db.column_types import MONEY_DIGITS, MONEY_PLACES, SCALABLE, UNITS, Money, UTCDateTime
from shared.db.dialects import POSTGRESQL, dialect_of, port_of
from shared.db.dialects.postgresql import has_copy
from shared.db.driver_errors import named_errors
from shared.db.errors import MissingExtraError
from shared.db.ranges.bounds import RowRange
from shared.db.ranges.decoding import decode_amounts, decoder, unless_damaged
from shared.db.ranges.streams import flushed, raw_pages

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

_PAGE_SIZE = 20_000
_MOST_DIGITS = 38  # of Arrow's decimal128


def to_arrow(session: Session, rows: RowRange) -> pyarrow.Table:
    """The range as a pyarrow Table, with the columns of its plain rows. `MissingExtraError` without pyarrow."""
    arrow = _library("pyarrow")
    types = {column.name: _type_of(column.type, arrow) for column in rows.source.read_columns}
    # Under a wait callback (gevent with psycogreen) the driver has no COPY.
    copying = port_of(session) is POSTGRESQL and has_copy()
    read = _read_copy if copying else _read_pages
    table = read(session, rows, types, arrow)
    for place, name in enumerate(table.column_names):
        if arrow.types.is_timestamp(table.field(name).type):
            table = table.set_column(place, name, table[name].cast(arrow.timestamp("us", "UTC")))
    by = rows.source.column(rows.source.stream.by)
    place = rows.source.row._fields.index(by.name)
    return table.add_column(place, by.name, arrow.repeat(arrow.scalar(rows.key, _type_of(by.type, arrow)), len(table)))


def to_polars(session: Session, rows: RowRange) -> polars.DataFrame:
    """The range as a polars DataFrame. `MissingExtraError` without pyarrow or polars."""
    frame: polars.DataFrame = _library("polars").from_arrow(to_arrow(session, rows))
    return frame


def to_pandas(session: Session, rows: RowRange) -> pandas.DataFrame:
    """The range as a pandas DataFrame of Arrow types, which are exact where pandas' own are floats.

    `MissingExtraError` without pyarrow or pandas.
    """
    mapper = _library("pandas").ArrowDtype
    frame: pandas.DataFrame = to_arrow(session, rows).to_pandas(types_mapper=mapper)
    return frame


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(name, "frames") from error


def arrow_type(kind: Any, arrow: Any) -> Any:
    """The Arrow type of a column type's values: exact, and text for what Arrow has no type for."""
    if isinstance(kind, Money):
        return arrow.decimal128(MONEY_DIGITS, MONEY_PLACES)
    if isinstance(kind, UTCDateTime):
        return arrow.timestamp("us", "UTC")
    kind = kind.impl if isinstance(kind, TypeDecorator) else kind
    if isinstance(kind, Float):
        return arrow.float64()
    if isinstance(kind, Numeric):
        return arrow.decimal128(kind.precision or _MOST_DIGITS, kind.scale or 0)
    known = {Integer: arrow.int64, Boolean: arrow.bool_, Date: arrow.date32}
    return next((made() for one, made in known.items() if isinstance(kind, one)), arrow.string())


def _type_of(kind: Any, arrow: Any) -> Any:
    # Both databases are asked for UTC without saying so; the zone is added when all is read.
    return arrow.timestamp("us") if isinstance(kind, UTCDateTime) else arrow_type(kind, arrow)


def _read_copy(session: Session, rows: RowRange, types: dict[str, Any], arrow: Any) -> Any:
    columns = [
        func.timezone("UTC", column) if isinstance(column.type, UTCDateTime) else column
        for column in rows.source.read_columns
    ]
    statement = select(*columns).where(*rows.criteria(), *rows.confined).order_by(*rows.order())
    text = _copy_out(session, statement)
    if not text:
        return arrow.schema(list(types.items())).empty_table()
    csv = _library("pyarrow.csv")
    return csv.read_csv(
        arrow.BufferReader(text),
        read_options=csv.ReadOptions(column_names=list(types)),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        # In PostgreSQL's CSV an empty text is quoted and NULL is not.
        convert_options=csv.ConvertOptions(
            column_types=types,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            true_values=["t"],
            false_values=["f"],
        ),
    )


def _copy_out(session: Session, statement: Select[Any]) -> memoryview:
    connection = flushed(session, statement)
    # COPY takes no parameters: psycopg2 writes them into the statement, quoted as in any other.
    compiled = statement.compile(dialect=connection.dialect)
    received = io.BytesIO()
    with named_errors(connection), closing(cast(Any, connection.connection.cursor())) as cursor:
        selected = cursor.mogrify(str(compiled), compiled.params).decode()
        cursor.copy_expert(f"COPY ({selected}) TO STDOUT (FORMAT csv, ENCODING 'UTF8')", received)
    return received.getbuffer()


def _read_pages(session: Session, rows: RowRange, types: dict[str, Any], arrow: Any) -> Any:
    dialect = dialect_of(session)

    def array(column: Column[Any], values: tuple[Any, ...]) -> Any:
        kind = types[column.name]
        if isinstance(column.type, Money):
            return unless_damaged(column, lambda stored: _amounts(stored, kind, dialect, arrow), values)
        if isinstance(column.type, UTCDateTime):
            return unless_damaged(column, lambda stored: arrow.array(stored, arrow.string()).cast(kind), values)
        if isinstance(column.type, Enum):
            return arrow.array(values, kind)  # the word that is stored, as from PostgreSQL
        found = decoder(column, dialect)(values)
        if arrow.types.is_string(kind):
            found = [value if value is None else str(value) for value in found]
        return arrow.array(found, kind)

    batches = [
        arrow.record_batch(list(map(array, rows.source.read_columns, zip(*page, strict=True))), names=list(types))
        for page in raw_pages(session, rows, page_size=_PAGE_SIZE)
    ]
    return arrow.Table.from_batches(batches, arrow.schema(list(types.items())))


def _amounts(stored: tuple[Any, ...], kind: Any, dialect: Dialect, arrow: Any) -> Any:
    """Texts, or the floats that SQLite stores, as exact decimals."""
    if not port_of(dialect).money_is_float:
        return arrow.array(list(decode_amounts(stored, dialect)), kind)
    compute = _library("pyarrow.compute")
    floats = arrow.array(stored, arrow.float64())
    farthest = compute.max(compute.abs(floats)).as_py()
    if farthest is None or farthest >= SCALABLE:
        return arrow.array(list(decode_amounts(stored, dialect)), kind)
    units = compute.round(compute.multiply(floats, UNITS)).cast(arrow.int64())
    # A decimal128 is a number of units; where its point stands is noted in the type alone.
    return arrow.Array.from_buffers(kind, len(units), units.cast(arrow.decimal128(19)).buffers())
