"""A range as an Arrow table, a polars or a pandas frame, exact: decimal128(20, 8) and timestamp[us, UTC].

Needs the extra `frames`. PostgreSQL sends the rows by COPY, in the session's own transaction and under its policies: in
binary form, of which nothing is parsed, and as CSV, which Arrow parses, where a value has no place in that. From
SQLite, and where the driver has no COPY, the columns are built page by page from what the driver gives.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from typing import cast as cast_to

from sqlalchemy import (
    CHAR,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Double,
    Integer,
    Numeric,
    Select,
    SmallInteger,
    String,
    Text,
    cast,
    literal_column,
    select,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from shared.db.dialects import POSTGRESQL, dialect_of, port_of
from shared.db.dialects.postgresql import along_an_index, has_copy, sends_utf8
from shared.db.driver_errors import named_errors
from shared.db.errors import MissingExtraError
from shared.db.ranges.bounds import Position, RowRange
from shared.db.ranges.streams import flushed, raw_pages
from shared.db.value_forms.forms import forms_of

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

_PAGE_SIZE = 20_000
_INSTANT = "timestamp[us, tz=UTC]"
# What the server may store for a value to be sent as an Arrow type just as it is, and first as what it sends that.
_SENT_AS: dict[str, tuple[TypeEngine[Any], ...]] = {
    "decimal128(20, 8)": (Numeric(),),
    _INSTANT: (DateTime(timezone=True),),
    "string": (Text(), String(), CHAR()),
    "int64": (BigInteger(), Integer(), SmallInteger()),
    "double": (Double(),),
    "bool": (Boolean(),),
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_arrow(session: Session, rows: RowRange) -> pyarrow.Table:
    """The range as a pyarrow Table, with the columns of its plain rows. `MissingExtraError` without pyarrow."""
    arrow = _library("pyarrow")
    columns = rows.source.read_columns
    table = _read_copy(session, rows, columns, arrow) if _copies(session) else None
    if table is None:
        table = arrow.Table.from_batches(_read_pages(session, rows, columns, arrow), _schema(columns, arrow))
    by = rows.source.column(rows.source.stream.by)
    place = rows.source.row._fields.index(by.name)
    return table.add_column(
        place, by.name, arrow.repeat(arrow.scalar(rows.key, forms_of(by.type).arrow_read(arrow)), len(table))
    )


def to_polars(session: Session, rows: RowRange) -> polars.DataFrame:
    """The range as a polars DataFrame. `MissingExtraError` without pyarrow or polars."""
    return as_polars(to_arrow(session, rows))


def to_pandas(session: Session, rows: RowRange) -> pandas.DataFrame:
    """The range as a pandas DataFrame of Arrow types, which are exact where pandas' own are floats.

    `MissingExtraError` without pyarrow or pandas.
    """
    return as_pandas(to_arrow(session, rows))


def as_polars(table: Any) -> polars.DataFrame:
    """An Arrow table as a polars DataFrame."""
    frame: polars.DataFrame = _library("polars").from_arrow(table)
    return frame


def as_pandas(table: Any) -> pandas.DataFrame:
    """An Arrow table as a pandas DataFrame of Arrow types."""
    frame: pandas.DataFrame = table.to_pandas(types_mapper=_library("pandas").ArrowDtype)
    return frame


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(name, "frames") from error


def batches(
    session: Session,
    rows: RowRange,
    columns: Sequence[Column[Any]],
    size: int = _PAGE_SIZE,
    *,
    reverse: bool = False,
) -> Iterator[Any]:
    """The range in Arrow batches with these columns, those of its order among them; some of it at a time in memory.

    The session has to see the database as it is at one moment, as `at_one_moment` has it do.
    """
    arrow = _library("pyarrow")
    if not _copies(session):
        yield from _read_pages(session, rows, columns, arrow, size, reverse=reverse)
        return
    position: Position | None = None
    came = False
    while True:
        chosen = select().where(*rows.criteria(position, reverse=reverse), *rows.confined)
        chosen = chosen.order_by(*rows.order(reverse=reverse)).limit(size)
        page = _read_binary(session, chosen, columns, arrow, page=True)
        came = came or bool(page)
        # Once rows came the columns are known to be as they are declared: without one it is the end.
        if page is None or not came:
            page = _read_csv(session, chosen, columns, arrow, page=True)
        yield from page.to_batches()
        if len(page) < size:
            return
        when, *tie = (page[name][-1] for name in rows.source.stream.order)
        # A time's own as_py() imports pandas, wherever it is installed.
        position = _EPOCH + timedelta(microseconds=when.value), *(one.as_py() for one in tie)


def _copies(session: Session) -> bool:
    # Under a wait callback (gevent with psycogreen) the driver has no COPY.
    return port_of(session) is POSTGRESQL and has_copy()


def _schema(columns: Sequence[Column[Any]], arrow: Any) -> Any:
    return arrow.schema([(column.name, forms_of(column.type).arrow_type(arrow)) for column in columns])


def _read_copy(session: Session, rows: RowRange, columns: Sequence[Column[Any]], arrow: Any) -> Any:
    chosen = select().where(*rows.criteria(), *rows.confined).order_by(*rows.order())
    return _read_binary(session, chosen, columns, arrow) or _read_csv(session, chosen, columns, arrow)


def _read_binary(
    session: Session, chosen: Select[Any], columns: Sequence[Column[Any]], arrow: Any, *, page: bool = False
) -> Any | None:
    """None where a type, a value or the client's encoding has no place in the binary form.

    Without a row it may be that somebody altered a column, of which CSV tells.
    """
    _library("numpy")
    checked = importlib.import_module("shared.db.value_forms.arrow")
    binary = importlib.import_module("shared.db.value_forms.binary_rows")
    schema = _schema(columns, arrow)
    driver = flushed(session, chosen).connection.dbapi_connection
    if not all(map(binary.holds, schema.types)) or not sends_utf8(driver):
        return None
    receiver = binary.Receiver(schema.names, schema.types, few=page)
    sent, unaltered = [], []
    for column, kind in zip(columns, map(str, schema.types), strict=True):
        sent.append(_sent(column, kind))
        unaltered.append(_is_unaltered(column, kind, dialect_of(session)))
    _copy_out(session, chosen.with_only_columns(*sent).where(*unaltered), "FORMAT binary", receiver, page)
    try:
        return arrow.Table.from_batches(receiver.batches(), schema)
    except checked.NOT_HELD:
        return None


def _sent(column: Column[Any], kind: str) -> ColumnElement[Any]:
    # Neither needs a cast, and one to text would cut the blanks at the end of a CHAR.
    if kind == _INSTANT or forms_of(column.type).is_text:
        return column
    return cast(forms_of(column.type).exported(column), _SENT_AS[kind][0])


def _is_unaltered(column: Column[Any], kind: str, dialect: Dialect) -> ColumnElement[bool]:
    """Whether the server has the column as it is declared: of one that somebody altered a cast might change a value.

    It tells that without looking at a row, and gives none for no.
    """
    quote = dialect.identifier_preparer
    # As text all goes that Arrow has no type for.
    is_other = kind == "string" and not forms_of(column.type).is_text
    types = [one.compile(dialect).replace("'", "''") for one in ((column.type,) if is_other else _SENT_AS[kind])]
    stored = f"(CAST(NULL AS {quote.format_table(column.table)})).{quote.quote(column.name)}"
    known = ", ".join(f"to_regtype('{one}')" for one in types)
    return literal_column(f"pg_typeof({stored}) IN ({known})", Boolean())


def _read_csv(
    session: Session, chosen: Select[Any], columns: Sequence[Column[Any]], arrow: Any, *, page: bool = False
) -> Any:
    forms = {column.name: forms_of(column.type) for column in columns}
    types = {name: one.arrow_read(arrow) for name, one in forms.items()}
    received = io.BytesIO()
    exported = chosen.with_only_columns(*(forms_of(column.type).exported(column) for column in columns))
    _copy_out(session, exported, "FORMAT csv, ENCODING 'UTF8'", received, page)
    text = received.getbuffer()
    if not text:
        return _schema(columns, arrow).empty_table()
    csv = _library("pyarrow.csv")
    table = csv.read_csv(
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
    return table.cast(_schema(columns, arrow))


def _copy_out(session: Session, statement: Select[Any], options: str, received: Any, page: bool) -> None:
    connection = flushed(session, statement)
    # COPY takes no parameters: psycopg2 writes them into the statement, quoted as in any other.
    compiled = statement.compile(dialect=connection.dialect)
    with named_errors(connection), closing(cast_to(Any, connection.connection.cursor())) as cursor:
        selected = cursor.mogrify(str(compiled), compiled.params).decode()
        with along_an_index(cursor) if page else nullcontext():
            cursor.copy_expert(f"COPY ({selected}) TO STDOUT ({options})", received)


def _read_pages(
    session: Session,
    rows: RowRange,
    columns: Sequence[Column[Any]],
    arrow: Any,
    size: int = _PAGE_SIZE,
    *,
    reverse: bool = False,
) -> Iterator[Any]:
    dialect, schema = dialect_of(session), _schema(columns, arrow)

    def array(column: Column[Any], values: tuple[Any, ...]) -> Any:
        forms = forms_of(column.type)
        return forms.arrow_array(values, dialect, arrow).cast(forms.arrow_type(arrow))

    for page in raw_pages(session, rows, columns=columns, reverse=reverse, page_size=size):
        yield arrow.record_batch(list(map(array, columns, zip(*page, strict=True))), schema=schema)
