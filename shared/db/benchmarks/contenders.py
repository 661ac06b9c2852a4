"""The ways to write rows that `writes.py` lets compete. Each is opened on a database of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import orjson
import psycopg2
from sqlalchemy import URL
from sqlalchemy.dialects import postgresql, sqlite

from shared.db import DatabaseFactory, PrivateExecution, PrivateExecutionRepository, PublicTrade, PublicTradeRepository
from shared.db.benchmarks.data import Rows

Batches = list[Rows]
Way = Callable[[Batches], None]

TRADE_COLUMNS = ("symbol", "trade_id", "exchange_ts", "local_ts", "side", "price", "size")
EXECUTION_COLUMNS = (
    "run_id", "account_id", "symbol", "exec_id", "order_id", "order_link_id", "exchange_ts", "side",
    "exec_price", "exec_qty", "exec_fee", "closed_pnl", "raw_json",
)  # fmt: skip
_INTO_TRADES = f"public_trades ({', '.join(TRADE_COLUMNS)})"
_INTO_EXECUTIONS = f"private_executions ({', '.join(EXECUTION_COLUMNS)})"


def bulk_trades(url: URL) -> Way:
    """Our own bulk_create, a session and a commit for each batch."""
    db = DatabaseFactory(url)

    def write(batches: Batches) -> None:
        for batch in batches:
            with db.get_session() as session:
                PublicTradeRepository(session).bulk_create(batch)

    return write


def bulk_executions(url: URL) -> Way:
    """Our own bulk_create, a session and a commit for each batch."""
    db = DatabaseFactory(url)

    def write(batches: Batches) -> None:
        for batch in batches:
            with db.get_session() as session:
                PrivateExecutionRepository.across_users(session).bulk_create(batch)

    return write


class _Stream:
    """A file for COPY: 250 rows a read, so that server and client work at the same time."""

    def __init__(self, rows: Rows, text: Callable[[Rows], str]) -> None:
        self._chunks: Iterator[Rows] = (rows[start : start + 250] for start in range(0, len(rows), 250))
        self._text = text

    def read(self, size: int = -1) -> bytes:
        chunk = next(self._chunks, None)
        return b"" if chunk is None else self._text(chunk).encode()


def _trades_text(rows: Rows) -> str:
    return "".join(
        [
            f"{row['symbol']}\t{row['trade_id']}\t{row['exchange_ts'].isoformat()}\t{row['local_ts'].isoformat()}\t"
            f"{row['side']}\t{row['price']}\t{row['size']}\n"
            for row in rows
        ]
    )


def _executions_text(rows: Rows) -> str:
    return "".join(
        [
            f"{row['run_id']}\t{row['account_id']}\t{row['symbol']}\t{row['exec_id']}\t{row['order_id']}\t"
            f"{row['order_link_id'] or _NULL}\t{row['exchange_ts'].isoformat()}\t{row['side']}\t{row['exec_price']}\t"
            f"{row['exec_qty']}\t{row['exec_fee']}\t{row['closed_pnl']}\t"
            f"{orjson.dumps(row['raw_json']).decode().replace(_SLASH, _SLASH * 2)}\n"
            for row in rows
        ]
    )


_NULL = "\\N"
_SLASH = "\\"


def copy_trades(url: URL) -> Way:
    """psycopg2's COPY by hand: no checks, no escaping, a commit for each batch."""
    return _copy(url, _INTO_TRADES, _trades_text)


def copy_executions(url: URL) -> Way:
    """The same for executions, the document by orjson."""
    return _copy(url, _INTO_EXECUTIONS, _executions_text)


def _copy(url: URL, into: str, text: Callable[[Rows], str]) -> Way:
    connection = _psycopg2(url)

    def write(batches: Batches) -> None:
        for batch in batches:
            with connection.cursor() as cursor:
                cursor.copy_expert(f"COPY {into} FROM STDIN", _Stream(batch, text))
            connection.commit()

    return write


def stage_trades(url: URL) -> Way:
    """The same through a temporary table and ON CONFLICT."""
    connection = _psycopg2(url)
    columns = ", ".join(TRADE_COLUMNS)
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TEMP TABLE stage ON COMMIT DELETE ROWS AS SELECT {columns} FROM public_trades WITH NO DATA"
        )
    connection.commit()

    def write(batches: Batches) -> None:
        for batch in batches:
            with connection.cursor() as cursor:
                cursor.copy_expert("COPY stage FROM STDIN", _Stream(batch, _trades_text))
                cursor.execute(f"INSERT INTO {_INTO_TRADES} SELECT {columns} FROM stage ON CONFLICT DO NOTHING")
            connection.commit()

    return write


def copy_ready_text(url: URL) -> Callable[[list[str]], None]:
    """The server alone: the text is there already, all of it in one piece."""
    connection = _psycopg2(url)

    def write(texts: list[str]) -> None:
        for text in texts:
            chunks = iter([text.encode()])
            with connection.cursor() as cursor:
                cursor.copy_expert(f"COPY {_INTO_TRADES} FROM STDIN", _Ready(chunks))
            connection.commit()

    return write


class _Ready:
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def read(self, size: int = -1) -> bytes:
        return next(self._chunks, b"")


def ready_texts(batches: Batches) -> list[str]:
    """What `copy_ready_text` takes."""
    return [_trades_text(batch) for batch in batches]


def executemany_trades(url: URL) -> Way:
    """sqlite3 by hand, with the library's settings of the file."""

    def values(rows: Rows) -> Iterable[tuple[Any, ...]]:
        return [
            (
                row["symbol"],
                row["trade_id"],
                row["exchange_ts"].replace(tzinfo=None).isoformat(" ", "microseconds"),
                row["local_ts"].replace(tzinfo=None).isoformat(" ", "microseconds"),
                row["side"],
                float(row["price"]),
                float(row["size"]),
            )
            for row in rows
        ]

    return _executemany(url, _INTO_TRADES, len(TRADE_COLUMNS), values)


def executemany_executions(url: URL) -> Way:
    """The same for executions, the document by orjson."""

    def values(rows: Rows) -> Iterable[tuple[Any, ...]]:
        return [
            (
                row["run_id"],
                row["account_id"],
                row["symbol"],
                row["exec_id"],
                row["order_id"],
                row["order_link_id"],
                row["exchange_ts"].replace(tzinfo=None).isoformat(" ", "microseconds"),
                row["side"],
                float(row["exec_price"]),
                float(row["exec_qty"]),
                float(row["exec_fee"]),
                float(row["closed_pnl"]),
                orjson.dumps(row["raw_json"]).decode(),
            )
            for row in rows
        ]

    return _executemany(url, _INTO_EXECUTIONS, len(EXECUTION_COLUMNS), values)


def _executemany(url: URL, into: str, width: int, values: Callable[[Rows], Iterable[tuple[Any, ...]]]) -> Way:
    # A connection of the library's own, for its settings; SQLAlchemy is not met again.
    connection = DatabaseFactory(url).engine.raw_connection().dbapi_connection
    assert isinstance(connection, sqlite3.Connection)
    statement = f"INSERT INTO {into} VALUES ({', '.join('?' * width)}) ON CONFLICT DO NOTHING"

    def write(batches: Batches) -> None:
        for batch in batches:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(statement, values(batch))
            connection.execute("COMMIT")

    return write


def values_list(model: type[Any]) -> Callable[[URL], Way]:
    """One INSERT with a VALUES list for each batch: what users of this layer wrote."""

    def opened(url: URL) -> Way:
        db = DatabaseFactory(url)
        insert: Any = postgresql.insert if url.get_backend_name() == "postgresql" else sqlite.insert

        def write(batches: Batches) -> None:
            for batch in batches:
                with db.get_session() as session:
                    session.execute(insert(model).values(batch).on_conflict_do_nothing())

        return write

    return opened


trades_by_values_list = values_list(PublicTrade)
executions_by_values_list = values_list(PrivateExecution)


def duckdb_trades(url: URL) -> Way:
    """DuckDB with the same key, fed through Arrow, which is its fastest way in; ON CONFLICT would be far slower."""
    import duckdb
    import pyarrow as pa

    money = pa.decimal128(20, 8)
    schema = pa.schema(
        [
            ("symbol", pa.string()),
            ("trade_id", pa.string()),
            ("exchange_ts", pa.timestamp("us", "UTC")),
            ("local_ts", pa.timestamp("us", "UTC")),
            ("side", pa.string()),
            ("price", money),
            ("size", money),
        ]
    )
    connection = duckdb.connect(f"{url.database}.duckdb")
    connection.execute("CREATE SEQUENCE numbers")
    connection.execute(
        "CREATE TABLE public_trades (id BIGINT DEFAULT nextval('numbers') PRIMARY KEY, symbol VARCHAR, trade_id "
        "VARCHAR, exchange_ts TIMESTAMPTZ, local_ts TIMESTAMPTZ, side VARCHAR, price DECIMAL(20, 8), "
        "size DECIMAL(20, 8), UNIQUE (symbol, exchange_ts, trade_id))"
    )

    def write(batches: Batches) -> None:
        for batch in batches:
            connection.register("batch", pa.Table.from_pylist(batch, schema))
            connection.execute(f"INSERT INTO {_INTO_TRADES} SELECT * FROM batch")

    return write


def django_trades(url: URL) -> Way:
    """Django's bulk_create into PostgreSQL, skipping duplicates."""
    from django.db import transaction

    model, alias = _django(url)

    def write(batches: Batches) -> None:
        for batch in batches:
            with transaction.atomic(using=alias):
                model.objects.using(alias).bulk_create([model(**row) for row in batch], ignore_conflicts=True)

    return write


def _django(url: URL) -> tuple[Any, str]:
    import django
    from django.conf import settings
    from django.db import connections

    if not settings.configured:
        engine = {"ENGINE": "django.db.backends.postgresql"}
        settings.configure(USE_TZ=True, DATABASES={"default": engine}, INSTALLED_APPS=[])
        django.setup()
    alias = str(url.database)
    connections.databases[alias] = connections.databases["default"] | {
        "NAME": url.database,
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": url.query.get("host", url.host) or "",
        "PORT": url.port or "",
    }
    return _django_model(), alias


@cache
def _django_model() -> Any:
    from django.db import models

    class Trade(models.Model):  # type: ignore[misc] # Django brings no types
        id = models.BigAutoField(primary_key=True)
        symbol = models.CharField(max_length=20)
        trade_id = models.CharField(max_length=50)
        exchange_ts = models.DateTimeField()
        local_ts = models.DateTimeField()
        side = models.CharField(max_length=4)
        price = models.DecimalField(max_digits=20, decimal_places=8)
        size = models.DecimalField(max_digits=20, decimal_places=8)

        class Meta:
            app_label = "benchmarks"
            db_table = "public_trades"
            managed = False

    return Trade


def _psycopg2(url: URL) -> Any:
    return psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
