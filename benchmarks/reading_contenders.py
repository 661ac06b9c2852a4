"""The ways to read rows that `reads.py` lets compete. Each opens a connection of its own, and a session a call."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from decimal import Context, Decimal
from typing import Any

import pandas
import psycopg2
import pyarrow
from pyarrow import csv
from pymysql.constants import FIELD_TYPE
from pymysql.converters import conversions
from pymysql.cursors import SSCursor
from sqlalchemy import URL, create_engine, select, text

from benchmarks.mysql_server import pymysql_connection
from shared.db import DatabaseFactory, PublicTrade, PublicTradeRepository, TradeRow

Span = tuple[datetime, datetime]
Way = Callable[[Any], Any]

_COLUMNS = ", ".join(TradeRow._fields)
_ORDER = "ORDER BY exchange_ts, trade_id"
_PLACES, _EXACT = Decimal("1e-8"), Context(prec=60)
_TYPES = {
    name: pyarrow.decimal128(20, 8) if name in ("price", "size") else pyarrow.string() for name in TradeRow._fields
} | {name: pyarrow.timestamp("us", "UTC") for name in ("exchange_ts", "local_ts")}
_SYMBOL = "BTCUSDT"


def plain_rows(url: URL) -> Way:
    """Our own iter_symbol_range."""
    db = DatabaseFactory(url)

    def read(span: Span) -> list[Any]:
        with db.get_session(read_only=True) as session:
            return list(PublicTradeRepository(session).iter_symbol_range(_SYMBOL, *span))

    return read


def objects(url: URL) -> Way:
    """Our own iter_symbol_range, as mapped objects."""
    db = DatabaseFactory(url)

    def read(span: Span) -> list[Any]:
        with db.get_session(read_only=True) as session:
            return list(PublicTradeRepository(session).iter_symbol_range(_SYMBOL, *span, as_objects=True))

    return read


def stream(url: URL, **how: Any) -> Way:
    """Our own iter_symbol_range over everything, no row kept."""
    db = DatabaseFactory(url)

    def read(load: None) -> int:
        with db.get_session(read_only=True) as session:
            return sum(1 for _ in PublicTradeRepository(session).iter_symbol_range(_SYMBOL, **how))

    return read


def frame(url: URL, method: str) -> Way:
    """Our own to_arrow, to_polars or to_pandas."""
    db = DatabaseFactory(url)

    def read(span: Span) -> Any:
        with db.get_session(read_only=True) as session:
            return getattr(PublicTradeRepository(session), method)(_SYMBOL, *span)

    return read


def orm_objects(url: URL) -> Way:
    """What a consumer of mapped classes writes."""
    db = DatabaseFactory(url)

    def read(span: Span) -> list[Any]:
        with db.get_session(read_only=True) as session:
            return list(session.scalars(_statement(PublicTrade, span=span)))

    return read


def core_rows(url: URL) -> Way:
    """The same columns as SQLAlchemy's own rows."""
    db = DatabaseFactory(url)
    columns = [PublicTrade.__table__.c[name] for name in TradeRow._fields]

    def read(span: Span) -> list[Any]:
        with db.get_session(read_only=True) as session:
            return list(session.execute(_statement(*columns, span=span)))

    return read


def core_stream(url: URL) -> Way:
    """SQLAlchemy's own rows, 2,000 a fetch, no row kept."""
    db = DatabaseFactory(url)
    columns = [PublicTrade.__table__.c[name] for name in TradeRow._fields]

    def read(load: None) -> int:
        with db.get_session(read_only=True) as session:
            everything = _statement(*columns, span=None).execution_options(yield_per=2_000)
            return sum(1 for _ in session.execute(everything))

    return read


def psycopg2_rows(url: URL) -> Way:
    """The driver's own tuples, with its own Decimals and datetimes."""
    connection = psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))

    def read(span: Span) -> list[Any]:
        with connection, connection.cursor() as cursor:
            cursor.execute(_postgresql(), (_SYMBOL, *span))
            return cursor.fetchall()

    return read


def named_cursor(url: URL) -> Way:
    """The driver's cursor at the server, 2,000 rows a fetch, no row kept."""
    connection = psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))

    def read(load: None) -> int:
        count = 0
        with connection, connection.cursor("everything") as cursor:
            cursor.itersize = 2_000
            cursor.execute(f"SELECT {_COLUMNS} FROM public_trades WHERE symbol = %s {_ORDER}", (_SYMBOL,))
            for _ in cursor:
                count += 1
        return count

    return read


def sqlite3_rows(url: URL) -> Way:
    """The driver's tuples, decoded to the same exact values."""
    connection = sqlite3.connect(str(url.database))

    def read(span: Span) -> list[Any]:
        return list(_decoded(connection.execute(_sqlite(), (_SYMBOL, *map(_stored, span))).fetchall()))

    return read


def sqlite3_undecoded(url: URL) -> Way:
    """The driver's tuples as they come: floats and strings."""
    connection = sqlite3.connect(str(url.database))

    def read(span: Span) -> list[Any]:
        return connection.execute(_sqlite(), (_SYMBOL, *map(_stored, span))).fetchall()

    return read


def sqlite3_cursor(url: URL) -> Way:
    """The driver's cursor over everything, decoded, no row kept."""
    connection = sqlite3.connect(str(url.database))

    def read(load: None) -> int:
        found = connection.execute(f"SELECT {_COLUMNS} FROM public_trades WHERE symbol = ? {_ORDER}", (_SYMBOL,))
        return sum(1 for _ in _decoded(found))

    return read


def pymysql_stream(url: URL, *, as_text: bool) -> Way:
    """PyMySQL's cursor at the server over everything, no row kept; times and amounts as text, or as it makes them."""
    texts = dict.fromkeys((FIELD_TYPE.DATETIME, FIELD_TYPE.NEWDECIMAL)) if as_text else {}
    connection = pymysql_connection(url, cursorclass=SSCursor, conv=conversions | texts)

    def read(load: None) -> int:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {_COLUMNS} FROM public_trades WHERE symbol = %s {_ORDER}", (_SYMBOL,))
            return sum(1 for _ in cursor)

    return read


def copy_to_arrow(url: URL) -> Way:
    """COPY TO STDOUT as CSV, read by pyarrow with exact types."""
    connection = psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))

    def read(span: Span) -> Any:
        received = io.BytesIO()
        with connection, connection.cursor() as cursor:
            selected = cursor.mogrify(_postgresql(), (_SYMBOL, *span)).decode()
            cursor.copy_expert(f"COPY ({selected}) TO STDOUT (FORMAT csv)", received)
        return csv.read_csv(
            pyarrow.BufferReader(received.getbuffer()),
            read_options=csv.ReadOptions(column_names=list(TradeRow._fields)),
            convert_options=csv.ConvertOptions(column_types=_TYPES),
        )

    return read


def pandas_read_sql_typed(url: URL) -> Way:
    """What a consumer of pandas writes who has the mapped classes: times come as times, money as floats."""
    db = DatabaseFactory(url)
    columns = [PublicTrade.__table__.c[name] for name in TradeRow._fields]

    def read(span: Span) -> Any:
        with db.get_session(read_only=True) as session:
            return pandas.read_sql(_statement(*columns, span=span), session.connection())

    return read


def pandas_read_sql(url: URL) -> Way:
    """What a consumer of pandas writes who has none: from SQLite, times come as strings."""
    engine = create_engine(url)
    query = text(
        f"SELECT {_COLUMNS} FROM public_trades WHERE symbol = :symbol AND exchange_ts BETWEEN :start AND :end {_ORDER}"
    )

    def read(span: Span) -> Any:
        start, end = span if engine.dialect.name == "postgresql" else map(_stored, span)
        with closing(engine.connect()) as connection:
            return pandas.read_sql(query, connection, params={"symbol": _SYMBOL, "start": start, "end": end})

    return read


def _decoded(rows: Any) -> Iterator[tuple[Any, ...]]:
    return (
        (
            symbol,
            trade_id,
            datetime.fromisoformat(when + "+00:00"),
            datetime.fromisoformat(seen + "+00:00"),
            side,
            _EXACT.quantize(Decimal(repr(price)), _PLACES),
            _EXACT.quantize(Decimal(repr(size)), _PLACES),
        )
        for symbol, trade_id, when, seen, side, price, size in rows
    )


def _statement(*columns: Any, span: Span | None) -> Any:
    table = PublicTrade.__table__.c
    found = select(*columns).where(table.symbol == _SYMBOL).order_by(table.exchange_ts, table.trade_id)
    return found if span is None else found.where(table.exchange_ts.between(*span))


def _postgresql() -> str:
    return f"SELECT {_COLUMNS} FROM public_trades WHERE symbol = %s AND exchange_ts BETWEEN %s AND %s {_ORDER}"


def _sqlite() -> str:
    return _postgresql().replace("%s", "?")


def _stored(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%d %H:%M:%S.%f")
