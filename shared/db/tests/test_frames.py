"""Ranges as Arrow tables and as polars and pandas frames."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pandas
import polars
import pyarrow
import pytest
from sqlalchemy import URL, text
from sqlalchemy.orm import Session

from shared.db import (
    DatabaseCorruptError,
    DatabaseFactory,
    ExecutionRow,
    InvalidValueError,
    MissingExtraError,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    StatementRefusedError,
    TenantScopeError,
    TradeRow,
)
from shared.db.ranges import frames
from shared.db.ranges.bounds import source_of
from shared.db.tests.support import execution_values, trade_values, two_runs, with_and_without_policies
from shared.db.value_forms import binary_rows

MONEY = pyarrow.decimal128(20, 8)
INSTANT = pyarrow.timestamp("us", "UTC")
TEXT = pyarrow.string()
TRADE_TYPES = [TEXT, TEXT, INSTANT, INSTANT, TEXT, MONEY, MONEY]

# What CSV, floats or a careless cast would change: quotes, separators, line ends, empty text, the smallest and the
# largest amounts, values next to where scaling a float to units of 1e-8 would go wrong, and microseconds.
AWKWARD: list[dict[str, Any]] = [
    {"trade_id": "a\"b,c\nd\r\ne'", "price": Decimal("0.00000001"), "size": Decimal("16777215.99999999")},
    {"trade_id": "", "price": Decimal("16777216.00000001"), "size": Decimal("123456789.1")},
    {"trade_id": "NULL", "price": Decimal("999999999999.123"), "size": Decimal("67108864.1")},
    {"trade_id": "é"},
    {"trade_id": "Ω\\N", "price": Decimal("65065.8"), "size": Decimal(0)},
    {"trade_id": "old", "exchange_ts": datetime(1890, 1, 1, 0, 0, 0, 1, tzinfo=UTC), "size": Decimal(-5)},
    {"trade_id": "far", "exchange_ts": datetime(2999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)},
]


def fill(session: Session) -> list[TradeRow]:
    """Store the awkward trades; their plain rows."""
    PublicTradeRepository(session).bulk_create(trade_values(number, **row) for number, row in enumerate(AWKWARD))
    return list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT"))


def as_rows(table: Any) -> list[tuple[Any, ...]]:
    """An Arrow table as plain tuples."""
    return [tuple(row.values()) for row in table.to_pylist()]


@pytest.fixture
def postgresql_db(postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """A factory on PostgreSQL."""
    with DatabaseFactory(postgresql_url) as db:
        yield db


@pytest.mark.parametrize("page_size", [2, 20_000])
def test_an_arrow_table_equals_the_plain_rows(
    session: Session, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    """Types are decimal128(20, 8) and timestamp[us, UTC], and every value is the plain row's own."""
    monkeypatch.setattr(frames, "_PAGE_SIZE", page_size)
    rows = fill(session)
    table = PublicTradeRepository(session).to_arrow("BTCUSDT")
    assert table.schema == pyarrow.schema(list(zip(TradeRow._fields, TRADE_TYPES, strict=True)))
    assert as_rows(table) == rows
    table.validate(full=True)


def test_line_ends_in_ids_split_no_row(session: Session) -> None:
    """More text than Arrow parses in one piece comes out whole, with a line end in every row."""
    rows = [trade_values(number, trade_id=f"{number:040}\n") for number in range(10_000)]
    PublicTradeRepository(session).bulk_create(rows)
    table = PublicTradeRepository(session).to_arrow("BTCUSDT")
    assert table["trade_id"].to_pylist() == [row["trade_id"] for row in rows]


def test_a_range_in_a_table_has_the_bounds_of_any_other(session: Session) -> None:
    """Bounds are inclusive and aware, and a range without rows has the same columns."""
    rows = [row for row in fill(session) if row.trade_id not in ("old", "far")]
    repository = PublicTradeRepository(session)
    assert as_rows(repository.to_arrow("BTCUSDT", rows[0].exchange_ts, rows[2].exchange_ts)) == rows[:3]
    assert as_rows(repository.to_arrow("BTCUSDT", rows[1].exchange_ts, rows[1].exchange_ts)) == rows[1:2]
    empty = repository.to_arrow("ETHUSDT")
    assert empty.num_rows == 0
    assert empty.schema == repository.to_arrow("BTCUSDT").schema
    with pytest.raises(InvalidValueError):
        repository.to_arrow("BTCUSDT", datetime(2025, 5, 19))  # noqa: DTZ001 # what the test is about


def test_frames_keep_every_digit(session: Session) -> None:
    """Polars and pandas frames hold the same exact values as the rows, in types of their own."""
    rows = fill(session)
    repository = PublicTradeRepository(session)
    polar = repository.to_polars("BTCUSDT")
    assert polar.schema["price"] == polars.Decimal(20, 8)
    assert polar.schema["exchange_ts"] == polars.Datetime("us", "UTC")
    assert polar.rows() == rows
    panda = repository.to_pandas("BTCUSDT")
    assert list(panda.columns) == list(TradeRow._fields)
    assert [kind.pyarrow_dtype for kind in panda.dtypes if isinstance(kind, pandas.ArrowDtype)] == TRADE_TYPES
    assert panda["size"].tolist() == [row.size for row in rows]
    assert panda["exchange_ts"].tolist() == [row.exchange_ts for row in rows]


def test_pending_rows_and_uncommitted_ones_are_in_the_table(session: Session) -> None:
    """A table is read in the session's own transaction, after what is pending in it was flushed."""
    rows = fill(session)
    session.add(PublicTradeRepository.model(**trade_values(99)))
    assert PublicTradeRepository(session).to_arrow("BTCUSDT").num_rows == len(rows) + 1


def test_the_servers_settings_change_nothing(session: Session) -> None:
    """Neither the connection's time zone nor its encoding reaches a table."""
    rows = [row for row in fill(session) if "Ω" not in row.trade_id]
    session.execute(text("DELETE FROM public_trades WHERE trade_id LIKE 'Ω%'"))
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SET LOCAL TIME ZONE 'America/New_York'"))
        session.execute(text("SET LOCAL client_encoding TO latin1"))
    assert as_rows(PublicTradeRepository(session).to_arrow("BTCUSDT")) == rows


def test_binary_rows_hold_every_amount(postgresql_db: DatabaseFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all lengths and signs, in batches of any size, with NULLs between them; none of them goes by way of CSV."""
    amounts = [
        Decimal(sign * digits * 10**power).scaleb(-8) for power in range(20) for digits in (1, 9) for sign in (1, -1)
    ]
    amounts += [Decimal(0), Decimal("999999999999.99999999"), Decimal("-184467440737.09551616")]
    run, _ = two_runs(postgresql_db, executions=0)
    rows = [
        execution_values(
            run, number, closed_pnl=amount, exec_fee=None if number % 3 else amount, order_id="o" * (number % 4)
        )
        for number, amount in enumerate(amounts)
    ]
    monkeypatch.setattr(frames, "_read_csv", None)
    with postgresql_db.get_session(user_id="ann") as session:
        repository = PrivateExecutionRepository(session)
        repository.bulk_create(rows)
        plain = list(repository.iter_run_range(run.run_id))
        assert {row.closed_pnl for row in plain} == set(amounts)
        for size in (1, 7, len(rows), len(rows) + 1):
            monkeypatch.setattr(binary_rows, "_BATCH", size)
            table = repository.to_arrow(run.run_id)
            table.validate(full=True)
            assert as_rows(table) == plain


def test_pages_of_a_new_table_are_not_sorted(postgresql_db: DatabaseFactory) -> None:
    """Where the server has no statistics yet it would sort all that is left, to disk, for each page of a range."""
    columns = [source_of(PublicTrade).column(name) for name in ("exchange_ts", "trade_id", "price")]
    with postgresql_db.get_session() as session:
        start = datetime(2025, 5, 1, tzinfo=UTC)
        rows = [trade_values(number, exchange_ts=start + timedelta(seconds=number)) for number in range(3000)]
        PublicTradeRepository(session).bulk_create(rows)
        session.execute(text("SET LOCAL work_mem = '64kB'"))
        session.execute(text("SET LOCAL log_temp_files = 0"))
        session.execute(text("SET LOCAL client_min_messages = log"))
        driver: Any = session.connection().connection.dbapi_connection
        for reverse in (False, True):
            pages = frames.batches(session, source_of(PublicTrade).range("BTCUSDT"), columns, 2000, reverse=reverse)
            found = pyarrow.Table.from_batches(pages)
            times = found["exchange_ts"].to_pylist()
            assert times == sorted(times, reverse=reverse)
            assert len(times) == len(rows)
        assert not [notice for notice in driver.notices if "temporary file" in notice]
        # As it would be told of them: what has no index is sorted.
        driver.cursor().execute("SELECT * FROM public_trades ORDER BY price, trade_id")
        assert [notice for notice in driver.notices if "temporary file" in notice]


def test_what_has_no_place_in_binary_rows_goes_by_way_of_csv(postgresql_db: DatabaseFactory) -> None:
    """Digits that a column of the server's own may have, and PostgreSQL's infinite times, are Arrow's own errors."""
    with postgresql_db.get_session() as session:
        fill(session)
        session.execute(text("ALTER TABLE public_trades ALTER COLUMN price TYPE numeric"))
        for change in ("local_ts = 'infinity'", "price = 1e-9", "price = 'NaN'"):
            with session.begin_nested() as savepoint:
                session.execute(text(f"UPDATE public_trades SET {change} WHERE trade_id = 'old'"))
                with pytest.raises(pyarrow.ArrowInvalid):
                    PublicTradeRepository(session).to_arrow("BTCUSDT")
                savepoint.rollback()
        session.rollback()


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        *(("price", kind) for kind in ("double precision", "real", "bigint", "numeric", "text", "varchar(40)")),
        *(("local_ts", kind) for kind in ("timestamp", "date", "text", "timestamptz(0)")),
        *(("trade_id", kind) for kind in ("text", "char(60)")),
    ],
)
def test_a_column_that_somebody_altered_is_read_as_its_text_is(
    postgresql_db: DatabaseFactory, monkeypatch: pytest.MonkeyPatch, column: str, kind: str
) -> None:
    """Whatever is made of it: digit for digit the plain rows, where a cast to the declared type would lose some."""
    # The second one has 16 digits, which a float of 8 bytes keeps.
    prices = ("0.1", "12345678.12345678", "3")
    with postgresql_db.get_session() as session:
        trades = PublicTradeRepository(session)
        trades.bulk_create([trade_values(number, price=price) for number, price in enumerate(prices)])
        session.execute(text(f"ALTER TABLE public_trades ALTER COLUMN {column} TYPE {kind} USING {column}::{kind}"))
        session.execute(text("SET LOCAL TIME ZONE 'America/New_York'"))
        plain = _told(session, lambda: [getattr(row, column) for row in trades.iter_symbol_range("BTCUSDT")])
        found = _told(session, lambda: trades.to_arrow("BTCUSDT")[column].to_pylist())
        assert found == plain
        monkeypatch.setattr(frames, "_read_binary", lambda *_: None)
        assert _told(session, lambda: trades.to_arrow("BTCUSDT")[column].to_pylist()) == found
        session.rollback()


def _told(session: Session, ask: Callable[[], list[Any]]) -> list[Any] | None:
    """What is read, None where it is refused."""
    with session.begin_nested() as savepoint:
        try:
            return ask()
        except (DatabaseCorruptError, StatementRefusedError, pyarrow.ArrowInvalid):
            savepoint.rollback()
            return None


def test_executions_in_a_table_equal_their_plain_rows(db: DatabaseFactory) -> None:
    """NULL stays apart from empty text, rebates stay negative, and a symbol narrows the table."""
    run, _ = two_runs(db)
    with db.get_session() as session:
        repository = PrivateExecutionRepository(session, "ann")
        table = repository.to_arrow(run.run_id)
        assert table.schema.names == list(ExecutionRow._fields)
        assert as_rows(table) == list(repository.iter_run_range(run.run_id))
        assert table["exec_fee"].type == MONEY
        assert {None, ""} == set(table["order_link_id"].to_pylist())
        only = repository.to_polars(run.run_id, symbol="ETHUSDT")
        assert only["symbol"].unique().to_list() == ["ETHUSDT"]
        assert len(repository.to_pandas(run.run_id, run.start_ts + timedelta(days=10_000))) == 0


def test_a_column_of_nulls_alone_keeps_its_type(db: DatabaseFactory) -> None:
    """Where no row has a fee, the column is still one of decimals."""
    run, _ = two_runs(db, executions=1)
    with db.get_session() as session:
        table = PrivateExecutionRepository(session, "ann").to_arrow(run.run_id)
        assert table["exec_fee"].type == MONEY
        assert table["exec_fee"].to_pylist() == [None]


def test_another_users_executions_are_in_no_table(db: DatabaseFactory) -> None:
    """A user's session, and a user named to the repository, get his own rows; nobody gets an error."""
    own, foreign = two_runs(db)
    with db.get_session() as session:
        assert PrivateExecutionRepository(session, "ann").to_arrow(foreign.run_id).num_rows == 0
        assert PrivateExecutionRepository.across_users(session).to_arrow(foreign.run_id).num_rows == 20
        with pytest.raises(TenantScopeError):
            PrivateExecutionRepository(session).to_arrow(own.run_id)
        fill(session)
    for _ in with_and_without_policies(db):
        with db.get_session(user_id="ann") as session:
            repository = PrivateExecutionRepository(session)
            assert repository.to_arrow(own.run_id).num_rows == 20
            assert repository.to_arrow(foreign.run_id).num_rows == 0
            assert PublicTradeRepository(session).to_arrow("BTCUSDT").num_rows == len(AWKWARD)


def test_values_are_quoted_into_the_statement(session: Session) -> None:
    """A symbol that looks like SQL, or like a placeholder, is looked for as it is."""
    for symbol in ("x' OR '1'='1", "%s%(a)s%%", "a\\' OR 1=1 --", '"; DROP TABLE x'):
        PublicTradeRepository(session).bulk_create([trade_values(symbol=symbol)])
        assert PublicTradeRepository(session).to_arrow(symbol)["symbol"].to_pylist() == [symbol]


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("pyarrow", lambda repository: repository.to_arrow("BTCUSDT")),
        ("polars", lambda repository: repository.to_polars("BTCUSDT")),
        ("pandas", lambda repository: repository.to_pandas("BTCUSDT")),
    ],
)
def test_a_missing_library_names_its_extra(
    session: Session, monkeypatch: pytest.MonkeyPatch, library: str, call: Callable[[PublicTradeRepository], Any]
) -> None:
    """Without the library the error says which one it is and how to install it."""
    PublicTradeRepository(session).to_arrow("BTCUSDT")  # pyarrow looks for pandas once, and keeps it
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"{library} is not installed.*WHEEL\[frames\]") as missing:
        call(PublicTradeRepository(session))
    assert (missing.value.library, missing.value.extra) == (library, "frames")
