"""Whether a database that has grown writes more slowly."""

from __future__ import annotations

from contextlib import closing

import psycopg2
from sqlalchemy import URL

from benchmarks.contenders import bulk_trades
from benchmarks.data import Rows, TradeStream
from benchmarks.harness import Contender, Goal, Place, compare
from shared.db import DatabaseFactory

_MILLION = 1_000_000
# The trades that are written later, BTCUSDT, then have their place amidst the others, as in a fleet's database.
_SYMBOLS = ("ADAUSDT", "BTCUSDT", "ETHUSDT", "XRPUSDT")
_INTO = "INSERT INTO public_trades (symbol, trade_id, exchange_ts, local_ts, side, price, size)"
_POSTGRESQL = f"""
{_INTO}
SELECT (ARRAY{list(_SYMBOLS)})[1 + n % {len(_SYMBOLS)}], gen_random_uuid()::text, moment, moment, 'Buy',
       65000 + n % 1000 * 0.1, 0.001 + n % 100 * 0.001
FROM generate_series(%(first)s, %(last)s) AS n,
     LATERAL (SELECT timestamptz '2020-01-01Z' + n * interval '4 ms') AS t (moment)
"""
_SQLITE = f"""
WITH RECURSIVE numbers (n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last),
rows AS (SELECT n, strftime('%Y-%m-%d %H:%M:%f000', 1577836800 + n * 0.004, 'unixepoch') AS moment FROM numbers)
{_INTO}
SELECT CASE n % {len(_SYMBOLS)} {" ".join(f"WHEN {place} THEN '{name}'" for place, name in enumerate(_SYMBOLS))} END,
       lower(hex(randomblob(18))), moment, moment, 'Buy', 65000 + n % 1000 * 0.1, 0.001 + n % 100 * 0.001
FROM rows
"""


def growth(here: Place) -> None:
    """20 million trades stored against 1 million, written in turn, 10,000 a batch (takes minutes to fill them)."""
    _compare(here, _MILLION, 20 * _MILLION)


def small_growth(here: Place) -> None:
    """The same with 1 million against 100,000, for a quick look."""
    _compare(here, _MILLION // 10, _MILLION)


SHORT = {"small-growth": small_growth}
LONG = {"growth": growth}


def _compare(here: Place, few: int, many: int) -> None:
    for name, new in (("PostgreSQL", here.new_postgresql), ("SQLite file", here.new_sqlite)):
        stream = TradeStream()

        def load(number: int, stream: TradeStream = stream) -> list[Rows]:
            return [stream.take(10_000) for _ in range(2)]

        full, grown = f"{few:,} trades stored", f"{many:,} trades stored"
        compare(
            f"Growth, {name}",
            [
                Contender(full, bulk_trades(_filled(new(), few))),
                Contender(grown, bulk_trades(_filled(new(), many))),
            ],
            load,
            here.rounds,
            count=20_000,
            goals=[Goal(grown, 0.8, full)],
        )


def _filled(url: URL, count: int) -> URL:
    """The database with so many trades in it, made by itself; a million at a time."""
    parts = [{"first": first, "last": min(first + _MILLION, count + 1) - 1} for first in range(1, count + 1, _MILLION)]
    if url.get_backend_name() == "sqlite":
        with DatabaseFactory(url) as db:
            driver = db.engine.raw_connection().dbapi_connection
            for part in parts:
                driver.execute(_SQLITE, part)  # type: ignore[union-attr] # it is connected
        return url
    with closing(
        psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    ) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for part in parts:
                cursor.execute(_POSTGRESQL.replace(" % ", " %% "), part)
            cursor.execute("VACUUM ANALYZE public_trades")
            cursor.execute("CHECKPOINT")
    return url
