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

from sqlalchemy import Column, Select, select
from sqlalchemy.orm import Session

from shared.db.dialects import POSTGRESQL, dialect_of, port_of
from shared.db.dialects.postgresql import has_copy
from shared.db.driver_errors import named_errors
from shared.db.errors import MissingExtraError
from shared.db.ranges.bounds import RowRange
from shared.db.ranges.streams import flushed, raw_pages
from shared.db.value_forms.forms import forms_of

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

_PAGE_SIZE = 20_000


def to_arrow(session: Session, rows: RowRange) -> pyarrow.Table:
    """The range as a pyarrow Table, with the columns of its plain rows. `MissingExtraError` without pyarrow."""
    arrow = _library("pyarrow")
    forms = {column.name: forms_of(column.type) for column in rows.source.read_columns}
    types = {name: one.arrow_read(arrow) for name, one in forms.items()}
    # Under a wait callback (gevent with psycogreen) the driver has no COPY.
    copying = port_of(session) is POSTGRESQL and has_copy()
    read = _read_copy if copying else _read_pages
    table = read(session, rows, types, arrow)
    for place, name in enumerate(table.column_names):
        if types[name] != (kind := forms[name].arrow_type(arrow)):
            table = table.set_column(place, name, table[name].cast(kind))
    by = rows.source.column(rows.source.stream.by)
    place = rows.source.row._fields.index(by.name)
    return table.add_column(
        place, by.name, arrow.repeat(arrow.scalar(rows.key, forms_of(by.type).arrow_read(arrow)), len(table))
    )


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


def _read_copy(session: Session, rows: RowRange, types: dict[str, Any], arrow: Any) -> Any:
    columns = [forms_of(column.type).exported(column) for column in rows.source.read_columns]
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
    dialect, columns = dialect_of(session), rows.source.read_columns

    def array(column: Column[Any], values: tuple[Any, ...]) -> Any:
        return forms_of(column.type).arrow_array(values, dialect, arrow)

    batches = [
        arrow.record_batch(list(map(array, columns, zip(*page, strict=True))), names=list(types))
        for page in raw_pages(session, rows, page_size=_PAGE_SIZE)
    ]
    return arrow.Table.from_batches(batches, arrow.schema(list(types.items())))
