"""The ways to write rows that `writes.py` lets compete. Each is opened on a database of its own.

Each driver is there twice. "By hand" is what a good programmer writes: a row at a time, `isoformat()`, no checks, no
escaping. "By columns" is the fastest that we know: 250 rows at a time as columns, times out of `bulk_create`'s own
tables, still no checks: how far it is ahead of `bulk_create` is what the checks, the session and the counts cost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from operator import itemgetter
from typing import Any

import adbc_driver_postgresql.dbapi
import orjson
import psycopg
import psycopg2
import pyarrow
from sqlalchemy import URL, insert
from sqlalchemy.dialects import postgresql, sqlite

from benchmarks.data import Rows
from benchmarks.mysql_server import pymysql_connection
from shared.db import DatabaseFactory, PrivateExecution, PrivateExecutionRepository, PublicTrade, PublicTradeRepository
from shared.db.bulk import OnConflict
from shared.db.value_forms.instants import instant_texts

Batches = list[Rows]
Way = Callable[[Batches], None]

TRADE_COLUMNS = ("symbol", "trade_id", "exchange_ts", "local_ts", "side", "price", "size")
EXECUTION_COLUMNS = (
    "run_id", "account_id", "symbol", "exec_id", "order_id", "order_link_id", "exchange_ts", "side",
    "exec_price", "exec_qty", "exec_fee", "closed_pnl", "raw_json",
)  # fmt: skip
INTO_TRADES = f"public_trades ({', '.join(TRADE_COLUMNS)})"
_INTO_EXECUTIONS = f"private_executions ({', '.join(EXECUTION_COLUMNS)})"


def bulk_trades(url: URL) -> Way:
    """Our own bulk_create, a session and a commit for each batch."""
    db = DatabaseFactory(url)

    def write(batches: Batches) -> None:
        for batch in batches:
            with db.get_session() as session:
                PublicTradeRepository(session).bulk_create(batch)

    return write


def bulk_frame(url: URL) -> Callable[[Any], None]:
    """Our own bulk_create of rows of any kind in one call: dicts, a frame."""
    db = DatabaseFactory(url)

    def write(rows: Any) -> None:
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create(rows)

    return write


def trades_table(rows: Rows) -> pyarrow.Table:
    """Trades as an Arrow table with exact columns."""
    money, time, text = pyarrow.decimal128(20, 8), pyarrow.timestamp("us", "UTC"), pyarrow.string()
    kinds = dict(zip(TRADE_COLUMNS, (text, text, time, time, text, money, money), strict=True))
    return pyarrow.Table.from_pylist(rows, pyarrow.schema(list(kinds.items())))


def adbc_ingest(url: URL) -> Callable[[Any], None]:
    """ADBC's own way for Arrow tables: binary COPY, no checks."""
    connection = adbc_driver_postgresql.dbapi.connect(
        url.set(drivername="postgresql").render_as_string(hide_password=False)
    )

    def write(table: Any) -> None:
        with connection.cursor() as cursor:
            cursor.adbc_ingest("public_trades", table, mode="append")
        connection.commit()

    return write


def psycopg_binary_copy(url: URL) -> Callable[[Rows], None]:
    """COPY in binary form by psycopg 3, a row at a time, as its documentation has it: no checks."""
    connection = psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    types = ("varchar", "varchar", "timestamptz", "timestamptz", "varchar", "numeric", "numeric")

    def write(rows: Rows) -> None:
        with connection.cursor() as cursor, cursor.copy(f"COPY {INTO_TRADES} FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(types)
            for row in map(_TRADE, rows):
                copy.write_row(row)
        connection.commit()

    return write


def each(write: Callable[[Rows], None]) -> Way:
    """What writes rows, for each batch."""

    def write_all(batches: Batches) -> None:
        for batch in batches:
            write(batch)

    return write_all


def bulk_executions(url: URL, on_conflict: OnConflict = "skip") -> Way:
    """Our own bulk_create, a session and a commit for each batch."""
    db = DatabaseFactory(url)

    def write(batches: Batches) -> None:
        for batch in batches:
            with db.get_session() as session:
                PrivateExecutionRepository.across_users(session).bulk_create(batch, on_conflict=on_conflict)

    return write


_CHUNK = 250


class _Stream:
    """A file for COPY: 250 rows a read, so that server and client work at the same time."""

    def __init__(self, rows: Rows, text: Callable[[Rows], str]) -> None:
        self._chunks: Iterator[Rows] = (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))
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


def _trades_text_by_columns(rows: Rows) -> str:
    symbols, trade_ids, times, local_times, sides, prices, sizes = zip(*map(_TRADE, rows), strict=True)
    return _lines(symbols, trade_ids, _times(times), _times(local_times), sides, map(str, prices), map(str, sizes))


def _executions_text_by_columns(rows: Rows) -> str:
    *ids, links, times, sides, prices, quantities, fees, profits, documents = zip(*map(_EXECUTION, rows), strict=True)
    return _lines(
        *ids,
        [link or _NULL for link in links],
        _times(times),
        sides,
        *(map(str, amounts) for amounts in (prices, quantities, fees, profits)),
        [orjson.dumps(document).decode().replace(_SLASH, _SLASH * 2) for document in documents],
    )


def _lines(*columns: Iterable[str]) -> str:
    return "\n".join(map("\t".join, zip(*columns, strict=True))) + "\n"


def _times(values: Iterable[datetime], *, with_zone: bool = True) -> list[str]:
    texts = instant_texts(values, with_zone=with_zone)
    assert texts is not None
    return texts


_TRADE = itemgetter(*TRADE_COLUMNS)
_EXECUTION = itemgetter(*EXECUTION_COLUMNS)


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
    return _copy(url, INTO_TRADES, _trades_text)


def copy_executions(url: URL) -> Way:
    """The same for executions, the document by orjson."""
    return _copy(url, _INTO_EXECUTIONS, _executions_text)


def copy_trades_by_columns(url: URL) -> Way:
    """The fastest COPY that we know."""
    return _copy(url, INTO_TRADES, _trades_text_by_columns)


def copy_executions_by_columns(url: URL) -> Way:
    """The same for executions."""
    return _copy(url, _INTO_EXECUTIONS, _executions_text_by_columns)


def _copy(url: URL, into: str, text: Callable[[Rows], str]) -> Way:
    connection = _psycopg2(url)

    def write(batches: Batches) -> None:
        for batch in batches:
            with connection.cursor() as cursor:
                cursor.copy_expert(f"COPY {into} FROM STDIN", _Stream(batch, text))
            connection.commit()

    return write


def stage_trades(url: URL) -> Way:
    """COPY by hand into a temporary table, then ON CONFLICT."""
    return _stage(url, _trades_text)


def stage_trades_by_columns(url: URL) -> Way:
    """The same by columns."""
    return _stage(url, _trades_text_by_columns)


def _stage(url: URL, text: Callable[[Rows], str]) -> Way:
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
                cursor.copy_expert("COPY stage FROM STDIN", _Stream(batch, text))
                cursor.execute(f"INSERT INTO {INTO_TRADES} SELECT {columns} FROM stage ON CONFLICT DO NOTHING")
            connection.commit()

    return write


def copy_ready_text(url: URL) -> Callable[[list[str]], None]:
    """The server alone: the text is there already, all of it in one piece."""
    connection = _psycopg2(url)

    def write(texts: list[str]) -> None:
        for text in texts:
            chunks = iter([text.encode()])
            with connection.cursor() as cursor:
                cursor.copy_expert(f"COPY {INTO_TRADES} FROM STDIN", _Ready(chunks))
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

    return _executemany(url, INTO_TRADES, len(TRADE_COLUMNS), values)


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


def executemany_trades_by_columns(url: URL) -> Way:
    """The fastest executemany that we know: no list of tuples."""

    def values(rows: Rows) -> Iterable[tuple[Any, ...]]:
        for start in range(0, len(rows), _CHUNK):
            columns = zip(*map(_TRADE, rows[start : start + _CHUNK]), strict=True)
            symbols, trade_ids, times, local_times, sides, prices, sizes = columns
            yield from zip(
                symbols,
                trade_ids,
                _times(times, with_zone=False),
                _times(local_times, with_zone=False),
                sides,
                map(float, prices),
                map(float, sizes),
                strict=True,
            )

    return _executemany(url, INTO_TRADES, len(TRADE_COLUMNS), values)


def executemany_executions_by_columns(url: URL) -> Way:
    """The same for executions."""

    def values(rows: Rows) -> Iterable[tuple[Any, ...]]:
        for start in range(0, len(rows), _CHUNK):
            columns = zip(*map(_EXECUTION, rows[start : start + _CHUNK]), strict=True)
            *ids, links, times, sides, prices, quantities, fees, profits, documents = columns
            yield from zip(
                *ids,
                links,
                _times(times, with_zone=False),
                sides,
                *(map(float, amounts) for amounts in (prices, quantities, fees, profits)),
                [orjson.dumps(document).decode() for document in documents],
                strict=True,
            )

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


def literals(url: URL, on_conflict: str = "") -> Way:
    """PyMySQL by hand: literals made here, 2,000 rows a statement; no checks, no escaping."""
    return _literals(url, on_conflict, _trade_literals)


def literals_by_columns(url: URL, on_conflict: str = "") -> Way:
    """The same by columns, the fastest that we know."""
    return _literals(url, on_conflict, _trade_literals_by_columns)


def _trade_literals(rows: Rows) -> str:
    return ",".join(
        [
            f"('{row['symbol']}','{row['trade_id']}','{row['exchange_ts'].replace(tzinfo=None).isoformat(' ')}',"
            f"'{row['local_ts'].replace(tzinfo=None).isoformat(' ')}','{row['side']}',{row['price']},{row['size']})"
            for row in rows
        ]
    )


def _trade_literals_by_columns(rows: Rows) -> str:
    symbols, trade_ids, times, local_times, sides, prices, sizes = zip(*map(_TRADE, rows), strict=True)
    moments, others = _times(times, with_zone=False), _times(local_times, with_zone=False)
    texts = map("','".join, zip(symbols, trade_ids, moments, others, sides, strict=True))
    amounts = map(",".join, zip(map(str, prices), map(str, sizes), strict=True))
    return "('" + "),('".join(map("',".join, zip(texts, amounts, strict=True))) + ")"


def _literals(url: URL, on_conflict: str, text: Callable[[Rows], str]) -> Way:
    connection = pymysql_connection(url)

    def write(batches: Batches) -> None:
        for batch in batches:
            with connection.cursor() as cursor:
                for start in range(0, len(batch), 2_000):
                    values = text(batch[start : start + 2_000])
                    cursor.execute(f"INSERT INTO {INTO_TRADES} VALUES {values} {on_conflict}")
            connection.commit()

    return write


def pymysql_executemany(url: URL) -> Way:
    """PyMySQL's own way: it makes a literal of each value, and statements of many rows."""
    connection = pymysql_connection(url)
    statement = f"INSERT INTO {INTO_TRADES} VALUES ({', '.join(['%s'] * len(TRADE_COLUMNS))})"

    def write(batches: Batches) -> None:
        for batch in batches:
            with connection.cursor() as cursor:
                cursor.executemany(statement, [_TRADE(row) for row in batch])
            connection.commit()

    return write


def insert_list(url: URL) -> Way:
    """SQLAlchemy's `insert(Model)` with a list of dicts."""
    return _inserting(url, lambda session, batch: session.execute(insert(PublicTrade), batch))


def insert_values(url: URL) -> Way:
    """SQLAlchemy's `insert(Model).values(list)`."""
    return _inserting(url, lambda session, batch: session.execute(insert(PublicTrade).values(batch)))


def _inserting(url: URL, run: Callable[[Any, Rows], Any]) -> Way:
    db = DatabaseFactory(url)

    def write(batches: Batches) -> None:
        for batch in batches:
            with db.get_session() as session:
                run(session, batch)

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


def _psycopg2(url: URL) -> Any:
    return psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
