"""Rows out, by the library, by the drivers alone and by others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg2
from sqlalchemy import URL

from shared.db import DatabaseFactory, PublicTradeRepository
from shared.db.benchmarks import reading_contenders as ways
from shared.db.benchmarks.data import TradeStream
from shared.db.benchmarks.harness import Contender, Place, compare, peak_growth, print_table

_RANGE = 20_000
_STORED = 100_000
_MANY = 1_000_000


def ranges(here: Place) -> None:
    """20,000 trades of a symbol out of 100,000, all of them in memory at the end."""
    url, span = _filled(here.new_postgresql(), _STORED)
    compare(
        "PostgreSQL",
        [
            Contender("psycopg2, fetchall", ways.psycopg2_rows(url)),
            Contender("iter_symbol_range", ways.plain_rows(url)),
            Contender("SQLAlchemy Core, tuples", ways.core_rows(url)),
            Contender("iter_symbol_range(as_objects=True)", ways.objects(url), every=3),
            Contender("session.scalars(select(PublicTrade))", ways.orm_objects(url), every=3),
        ],
        span,
        here.rounds,
        count=_RANGE,
    )
    url, span = _filled(here.new_sqlite(), _STORED)
    compare(
        "SQLite file",
        [
            Contender("sqlite3, fetchall, decoded", ways.sqlite3_rows(url)),
            Contender("iter_symbol_range", ways.plain_rows(url)),
            Contender("SQLAlchemy Core, tuples", ways.core_rows(url)),
            Contender("iter_symbol_range(as_objects=True)", ways.objects(url), every=3),
            Contender("session.scalars(select(PublicTrade))", ways.orm_objects(url), every=3),
        ],
        span,
        here.rounds,
        count=_RANGE,
    )


def frames(here: Place) -> None:
    """The same range as columns: Arrow, polars and pandas."""
    url, span = _filled(here.new_postgresql(), _STORED)
    compare(
        "PostgreSQL",
        [
            Contender("COPY TO as CSV, read by pyarrow, by hand", ways.copy_to_arrow(url)),
            Contender("to_arrow", ways.frame(url, "to_arrow")),
            Contender("to_polars", ways.frame(url, "to_polars")),
            Contender("to_pandas", ways.frame(url, "to_pandas")),
            Contender("pandas.read_sql (floats, strings)", ways.pandas_read_sql(url)),
        ],
        span,
        here.rounds,
        count=_RANGE,
    )
    url, span = _filled(here.new_sqlite(), _STORED)
    compare(
        "SQLite file",
        [
            Contender("sqlite3, fetchall, decoded", ways.sqlite3_rows(url)),
            Contender("to_arrow", ways.frame(url, "to_arrow")),
            Contender("to_polars", ways.frame(url, "to_polars")),
            Contender("to_pandas", ways.frame(url, "to_pandas")),
            Contender("pandas.read_sql (floats, strings)", ways.pandas_read_sql(url)),
            Contender("sqlite3, fetchall, as it comes", ways.sqlite3_undecoded(url)),
        ],
        span,
        here.rounds,
        count=_RANGE,
    )


def streaming(here: Place) -> None:
    """A million trades, one after another, none of them kept; and what that takes in memory."""
    url, _ = _filled(here.new_postgresql(), _MANY)
    compare(
        "PostgreSQL",
        [
            Contender("psycopg2, named cursor", ways.named_cursor(url)),
            Contender("iter_symbol_range", ways.stream(url)),
            Contender("iter_symbol_range(as_objects=True)", ways.stream(url, as_objects=True), every=5),
        ],
        lambda number: None,
        min(here.rounds, 7),
        count=_MANY,
    )
    rows = _memory("PostgreSQL", url)
    url, _ = _filled(here.new_sqlite(), _MANY)
    compare(
        "SQLite file",
        [
            Contender("sqlite3, driver's cursor, decoded", ways.sqlite3_cursor(url)),
            Contender("iter_symbol_range", ways.stream(url)),
            Contender("iter_symbol_range(as_objects=True)", ways.stream(url, as_objects=True), every=5),
        ],
        lambda number: None,
        min(here.rounds, 7),
        count=_MANY,
    )
    print_table("", ("read by iter_symbol_range", "MB at the peak"), rows + _memory("SQLite file", url))


def _memory(name: str, url: URL) -> list[tuple[str, str]]:
    def grown(count: int, **how: Any) -> float:
        end = TradeStream.time_of(count)

        def prepare() -> DatabaseFactory:
            db = DatabaseFactory(url)
            read(db, TradeStream.time_of(5_000))  # what is loaded once is loaded now
            return db

        def read(db: DatabaseFactory, until: datetime) -> None:
            with db.get_session(read_only=True) as session:
                for _ in PublicTradeRepository(session).iter_symbol_range("BTCUSDT", None, until, **how):
                    pass

        return peak_growth(prepare, lambda db: read(db, end))

    return [(f"{count:,} rows, {name}", f"{grown(count):.1f}") for count in (_MANY // 10, _MANY)] + [
        (f"{_MANY:,} objects, {name}", f"{grown(_MANY, as_objects=True):.1f}")
    ]


def _filled(url: URL, count: int) -> tuple[URL, Callable[[int], tuple[datetime, datetime]]]:
    """The database with trades in it, and what gives each round a range of its own."""
    stream = TradeStream()
    with DatabaseFactory(url) as db, db.get_session() as session:
        PublicTradeRepository(session).bulk_create(trade for _ in range(count // 1_000) for trade in stream.take(1_000))
    if url.drivername.startswith("postgresql"):
        connection = psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE public_trades")
        connection.close()

    def span(number: int) -> tuple[datetime, datetime]:
        first = 1 + number * 1_000 % (count - _RANGE)
        return TradeStream.time_of(first), TradeStream.time_of(first + _RANGE - 1)

    return url, span


BENCHMARKS = {"ranges": ranges, "frames": frames, "streaming": streaming}
