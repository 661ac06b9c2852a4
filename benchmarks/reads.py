"""Rows out, by the library, by the drivers alone and by others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import psycopg2
from sqlalchemy import URL

from benchmarks import reading_contenders as ways
from benchmarks.data import TradeStream
from benchmarks.harness import Contender, Goal, Place, at_most, compare, print_outcomes
from benchmarks.memory import peak_growth
from shared.db import DatabaseFactory, PublicTradeRepository

_RANGE = 20_000
_STORED = 100_000
_MANY = 1_000_000
_FLAT_MB = 10

_ROWS, _OBJECTS, _ORM = (
    "iter_symbol_range",
    "iter_symbol_range(as_objects=True)",
    "session.scalars(select(PublicTrade))",
)
_PSYCOPG2, _SQLITE3, _NAMED = "psycopg2, fetchall", "sqlite3, fetchall, decoded", "psycopg2, named cursor"
_COPY, _ARROW = "COPY TO as CSV, read by pyarrow, by hand", "to_arrow"
_READ_SQL, _READ_TEXT = "pandas.read_sql(select(..)): floats", "pandas.read_sql(text(..)): floats"
_READ_STRINGS = "pandas.read_sql(text(..)): floats, times as strings"


def ranges(here: Place) -> None:
    """20,000 trades of a symbol out of 100,000, all of them in memory at the end."""
    for title, new, driver, rows in (
        ("PostgreSQL", here.new_postgresql, _PSYCOPG2, ways.psycopg2_rows),
        ("SQLite file", here.new_sqlite, _SQLITE3, ways.sqlite3_rows),
    ):
        url, span = _filled(new(), _STORED)
        compare(
            f"{title}, 20,000 rows",
            [
                Contender(driver, rows(url)),
                Contender(_ROWS, ways.plain_rows(url)),
                Contender("SQLAlchemy Core, tuples", ways.core_rows(url)),
                Contender(_OBJECTS, ways.objects(url), every=3),
                Contender(_ORM, ways.orm_objects(url), every=3),
            ],
            span,
            here.rounds,
            count=_RANGE,
            # The plain rows are the light objects as well: attributes by name, no __dict__.
            goals=[Goal(_ROWS, 0.90, driver), Goal(_ROWS, 3, _ORM)],
        )


def frames(here: Place) -> None:
    """The same range as columns: Arrow, polars and pandas."""
    url, span = _filled(here.new_postgresql(), _STORED)
    compare(
        "PostgreSQL, 20,000 rows in a table",
        [
            Contender(_COPY, ways.copy_to_arrow(url)),
            *_our_frames(url),
            Contender(_READ_SQL, ways.pandas_read_sql_typed(url), every=3),
            Contender(_READ_TEXT, ways.pandas_read_sql(url), every=3),
        ],
        span,
        here.rounds,
        count=_RANGE,
        goals=[Goal(_ARROW, 0.88, _COPY), Goal(_ARROW, 4, _READ_SQL), Goal(_ARROW, 4, _READ_TEXT)],
    )
    url, span = _filled(here.new_sqlite(), _STORED)
    compare(
        "SQLite file, 20,000 rows in a table",
        [
            Contender(_SQLITE3, ways.sqlite3_rows(url)),
            *_our_frames(url),
            Contender(_READ_SQL, ways.pandas_read_sql_typed(url), every=3),
            Contender(_READ_STRINGS, ways.pandas_read_sql(url), every=3),
            Contender("sqlite3, fetchall, as it comes", ways.sqlite3_undecoded(url)),
        ],
        span,
        here.rounds,
        count=_RANGE,
        goals=[Goal(_ARROW, 0.85, _SQLITE3), Goal(_ARROW, 4, _READ_SQL)],
    )


def large_frames(here: Place) -> None:
    """A million rows in a table, where opening and asking no longer count."""
    url, _ = _filled(here.new_postgresql(), _MANY)
    compare(
        "PostgreSQL, 1,000,000 rows in a table",
        [Contender(_COPY, ways.copy_to_arrow(url)), Contender(_ARROW, ways.frame(url, _ARROW))],
        lambda number: (TradeStream.time_of(0), TradeStream.time_of(_MANY)),
        min(here.rounds, 5),
        count=_MANY,
        goals=[Goal(_ARROW, 1.3, _COPY)],
    )


def _our_frames(url: URL) -> list[Contender]:
    return [Contender(name, ways.frame(url, name)) for name in (_ARROW, "to_polars", "to_pandas")]


def streaming(here: Place) -> None:
    """A million trades, one after another, none of them kept; and what that takes in memory."""
    flat = []
    for title, new, driver, rows, goal in (
        ("PostgreSQL", here.new_postgresql, _NAMED, ways.named_cursor, 0.85),
        ("SQLite file", here.new_sqlite, "sqlite3, driver's cursor, decoded", ways.sqlite3_cursor, None),
    ):
        url, _ = _filled(new(), _MANY)
        compare(
            f"{title}, 1,000,000 rows streamed",
            [
                Contender(driver, rows(url)),
                Contender(_ROWS, ways.stream(url)),
                Contender("SQLAlchemy Core, yield_per=2000", ways.core_stream(url), every=3),
            ],
            lambda number: None,
            min(here.rounds, 8),
            count=_MANY,
            goals=[] if goal is None else [Goal(_ROWS, goal, driver)],
        )
        flat += [
            at_most(f"{title}, {count:,} rows streamed, peak growth", _FLAT_MB, _growth(url, count), "MB")
            for count in (_STORED, _MANY)
        ]
        objects = _growth(url, _STORED, as_objects=True)
        flat.append(at_most(f"{title}, {_STORED:,} objects streamed, peak growth", _FLAT_MB, objects, "MB"))
    print_outcomes("Memory", flat)


def _growth(url: URL, count: int, **how: Any) -> float:
    opened = partial(_opened, url.render_as_string(hide_password=False), how)
    return peak_growth(opened, partial(_read, end=TradeStream.time_of(count), how=how))


def _opened(url: str, how: dict[str, Any]) -> DatabaseFactory:
    db = DatabaseFactory(url)
    _read(db, TradeStream.time_of(5_000), how)  # what is loaded once is loaded now
    return db


def _read(db: DatabaseFactory, end: datetime, how: dict[str, Any]) -> None:
    with db.get_session(read_only=True) as session:
        for _ in PublicTradeRepository(session).iter_symbol_range("BTCUSDT", None, end, **how):
            pass


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


BENCHMARKS = {"ranges": ranges, "frames": frames, "large-frames": large_frames, "streaming": streaming}
