"""Many rows at once: what is written, what is counted, what is refused, and that both databases agree."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, delete, event, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from shared.db import (
    BybitAccount,
    BybitAccountRepository,
    DatabaseFactory,
    DatabaseFailure,
    DatabaseReadOnlyError,
    DatabaseSettings,
    InvalidValueError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    RowNotFoundError,
    Run,
    RunRepository,
    Side,
    Strategy,
    StrategyRepository,
    TenantScopeError,
    TenantViolation,
    User,
)
from shared.db.bulk import BulkResult, OnBadRow, OnConflict, bulk_create, bulk_update, cells
from shared.db.tests.support import execution_values, new_run, new_strategy, run_on_server, stored, trade_values
from shared.db.value_forms import instants
from shared.db.value_forms import texts as text_forms
from shared.db.value_forms.amounts import AmountTexts

# Fixtures live as long as the test, not the example: each example below cleans up behind itself.
several = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
_numbers = itertools.count()
CHOICES: tuple[OnConflict, ...] = ("skip", "update", "fill", "error")


class Parents(NamedTuple):
    """The ids that an execution names; unlike a Run they outlive every rollback."""

    run_id: str
    account_id: str


@pytest.fixture
def parents(sample_run: Run) -> Any:
    """The ids of a stored run and its account."""
    return Parents(sample_run.run_id, sample_run.account_id)


def trades(*numbers: int, **values: Any) -> list[dict[str, Any]]:
    """Trades with these numbers."""
    return [trade_values(number, **values) for number in numbers]


def stored_ids(session: Session) -> list[str]:
    """The trade ids in the table, in order."""
    return list(session.scalars(select(PublicTrade.trade_id).order_by(PublicTrade.exchange_ts)))


def ids(*numbers: int) -> list[str]:
    """The trade ids of these numbers."""
    return [f"trade-{number}" for number in numbers]


# --- what a call means, against a plain model of it -------------------------------------------------------------


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[dict[str, Any]], OnConflict, OnBadRow, int]:
    """Some rows (keys 0 to 5, some columns missing, some values bad) and how to write them."""
    row = st.fixed_dictionaries(
        {"exec_id": st.sampled_from("abcdef"), "exec_qty": st.integers(1, 9)},
        optional={
            "exec_fee": st.sampled_from((None, Decimal(1), Decimal(2), Decimal(3), Decimal(4), 0.5)),
            "order_link_id": st.sampled_from((None, "x", "y")),
        },
    )
    alike = st.fixed_dictionaries({"exec_id": st.sampled_from("ab"), "exec_qty": st.integers(1, 9)})
    rows = draw(st.one_of(st.lists(row, max_size=12), st.lists(alike, max_size=6)))
    return rows, draw(st.sampled_from(CHOICES)), draw(st.sampled_from(("raise", "collect"))), draw(st.integers(1, 13))


Table = dict[str, dict[str, Any]]


def expected(
    table: Table, rows: list[dict[str, Any]], on_conflict: str, errors: str, batch_size: int
) -> tuple[Table, Any]:
    """What `bulk_create` promises, row by row: the table afterwards, and the counts or the first batch's error."""
    after = {key: dict(row) for key, row in table.items()}
    inserted = known = updated = 0
    rejected, contradicted = [], []
    for position, row in enumerate(rows):
        key = row["exec_id"]
        if errors == "raise" and position % batch_size == 0:
            batch = rows[position : position + batch_size]
            if any(isinstance(one.get("exec_fee"), float) for one in batch):
                return table, InvalidValueError
        if isinstance(row.get("exec_fee"), float):
            rejected.append(position)
        elif key not in after:
            after[key] = {"exec_fee": None, "order_link_id": None} | row
            inserted += 1
        elif on_conflict == "error":
            if errors == "raise":
                return table, IntegrityError
            rejected.append(position)
        else:
            known += 1
            if on_conflict == "update":
                after[key] |= row
                updated += 1
            elif on_conflict == "fill":
                told = {name: value for name, value in row.items() if value is not None}
                differing = [name for name in told if after[key][name] not in (None, told[name])]
                if differing:
                    contradicted.append((position, sorted(differing)))
                news = {name: value for name, value in told.items() if after[key][name] is None}
                after[key] |= news
                updated += bool(news)
    return after, (inserted, known - updated, updated, rejected, contradicted)


@several
@given(st.lists(calls(), min_size=1, max_size=4))
def test_rows_and_counts_are_those_of_writing_one_row_after_the_other(
    session: Session, parents: Any, several_calls: list[Any]
) -> None:
    """Whatever the batch size and the duplicates: same rows, same counts, nothing half-written after an error."""
    session.execute(delete(PrivateExecution))  # of an example that failed
    table: Table = {}
    for rows, on_conflict, errors, batch_size in several_calls:
        full = [execution_values(parents) | {"order_link_id": None, "exec_fee": None} | row for row in rows]
        for filled, row in zip(full, rows, strict=True):
            for column in ("order_link_id", "exec_fee"):
                if column not in row:
                    del filled[column]
        table, outcome = expected(table, rows, on_conflict, errors, batch_size)

        def call(
            full: Any = full, on_conflict: Any = on_conflict, errors: Any = errors, batch_size: int = batch_size
        ) -> BulkResult:
            given = iter(full)
            return bulk_create(
                session, PrivateExecution, given, on_conflict=on_conflict, errors=errors, batch_size=batch_size
            )

        if isinstance(outcome, type):
            with pytest.raises(outcome):
                call()
        else:
            result = call()
            positions = [error.position for error in result.errors]
            told = [(note.position, sorted(note.text.partition(":")[0].split(", "))) for note in result.notes]
            assert (result.inserted, result.skipped, result.updated, positions, told) == outcome
            assert result.contradicted == len(told)
            assert result.rejected == len(positions)
            assert all(error.row is full[error.position] for error in result.errors)
        columns = (
            PrivateExecution.exec_id,
            PrivateExecution.exec_qty,
            PrivateExecution.exec_fee,
            PrivateExecution.order_link_id,
        )
        now = {row.exec_id: dict(row._mapping) for row in session.execute(select(*columns))}
        assert now == table
    session.execute(delete(PrivateExecution))
    session.commit()


# --- the same values as through the ORM ---------------------------------------------------------------------------

money = st.one_of(
    st.decimals(allow_nan=True, allow_infinity=True),
    st.decimals(places=8, min_value=-(10**6), max_value=10**6),
    st.decimals(places=10, min_value=-100, max_value=100),
    st.integers(-(10**13), 10**13),
    st.sampled_from(("1", "1.50", "-0.1", "", "x", " 2 ", "1e3", "1_000", "+1", ".5", "NaN", "0.123456785")),
    st.sampled_from((Decimal("-0"), Decimal("0E+3"), Decimal("999999999999.999999994"), 1.5, True, None)),
)
zones = st.one_of(st.just(UTC), st.none(), st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone))
times = st.one_of(st.datetimes(timezones=zones), st.sampled_from((None, "2025-05-19", 0)))
texts = st.one_of(
    st.text(max_size=52),
    st.sampled_from(
        ("a\tb", "a\nb", "\\N", "\\", "a\rb", "\\.", "naïve", "\0", "\ud800", "x" * 50, "", None, 7, Side.BUY)
    ),
)
sides = st.sampled_from(("Buy", "Sell", "buy", "", None, Side.SELL, 1))
documents = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.dictionaries(
        st.one_of(st.text(max_size=4), st.integers(0, 1)),
        st.recursive(
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(),
                st.integers(2**63, 2**70),
                st.floats(),
                st.text(max_size=5),
                st.sampled_from(("\0", "\ud800", "\\u0000", "\\", '"', Decimal("1.10"), Side.BUY, (1, 2), {1})),
                st.datetimes(timezones=zones),
            ),
            lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner)),
            max_leaves=6,
        ),
        max_size=4,
    ),
)
one_value = st.one_of(
    *(
        st.fixed_dictionaries({name: kind})
        for name, kind in (
            ("order_link_id", texts),
            ("exchange_ts", times),
            ("side", sides),
            ("exec_fee", money),
            ("raw_json", documents),
        )
    )
)


@several
@given(one_value)
@example({"exec_fee": Decimal("0.000000005")})
@example({"exec_fee": Decimal("123456789012.12345678")})
@example({"raw_json": {"a": 1e23}})
@example({"raw_json": {"a": float("nan")}})
def test_a_row_is_stored_or_refused_as_the_orm_does_it(session: Session, parents: Any, values: dict[str, Any]) -> None:
    """The same value comes back, or the same error with the same words; only the row's position is added.

    Where no message keeps the digits, that is: see `test_digits_that_a_column_cannot_hold`.
    """
    row = execution_values(parents, raw_json=None) | values

    def outcome(write: Callable[[], object]) -> Any:
        try:
            with session.begin_nested():
                write()
                session.expire_all()
                execution = session.scalars(select(PrivateExecution)).one()
                found = {name: getattr(execution, name) for name in row}
                session.execute(delete(PrivateExecution))
                session.expunge_all()
                return found
        except InvalidValueError as error:
            return error.problem
        except IntegrityError:  # the ORM leaves a missing value to the database, a bulk call cannot
            return "a value is needed"

    def by_orm() -> None:
        session.add(PrivateExecution(**row))
        session.flush()

    assert outcome(lambda: bulk_create(session, PrivateExecution, [row])) == outcome(by_orm)


# Homogeneous columns: those are what the shortcuts are for.
columns_of_values = st.one_of(
    *(
        st.tuples(st.just(name), st.lists(kind, min_size=1, max_size=8))
        for name, kind in (
            ("exec_fee", st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**14), max_value=10**14)),
            ("exec_fee", st.decimals(places=8, min_value=-(10**12), max_value=10**12)),
            ("exec_fee", st.decimals(places=3, min_value=-(10**4), max_value=10**4)),
            ("exec_fee", st.integers(-(10**13), 10**13)),
            ("exec_fee", st.from_regex(r"-?[0-9]{1,13}(\.[0-9]{1,9})?", fullmatch=True)),
            ("exec_fee", money),
            ("exchange_ts", st.datetimes(timezones=zones)),
            ("exchange_ts", st.datetimes(timezones=st.just(UTC))),
            ("exchange_ts", times),
            ("order_link_id", texts),
            ("order_link_id", st.text("ab\t\\", max_size=51)),
            ("side", sides),
            ("raw_json", documents),
        )
    )
)


@settings(deadline=None, max_examples=600, derandomize=True)
@given(columns_of_values, st.sampled_from(("postgresql", "sqlite")))
@example(("exec_fee", [Decimal("-0.00")]), "sqlite")
@example(("exec_fee", [Decimal("999999999999.99999999")]), "sqlite")
@example(("exec_fee", [Decimal("79099442.28268421")]), "sqlite")  # 16 digits that a float does not keep
@example(("exec_fee", [Decimal(1000000000000)]), "postgresql")
@example(("exec_fee", [10**5000]), "sqlite")
@example(("exec_fee", ["1" * 13]), "postgresql")
@example(("order_link_id", ["a\0b"]), "postgresql")
@example(("raw_json", [{"a": "\0"}]), "postgresql")
@example(("exchange_ts", [datetime(1, 1, 1, 23, 59, tzinfo=UTC)]), "postgresql")
@example(("exchange_ts", [datetime(9999, 12, 30, 0, 0, 1, tzinfo=UTC)]), "postgresql")
def test_the_shortcuts_give_what_the_column_types_give(column_and_values: Any, dialect: str) -> None:
    """Where a shortcut answers at all, it gives the cells that the types' own code gives, one value at a time."""
    name, values = column_and_values
    layout = cells.cell_layout_of(PrivateExecution.metadata.tables["private_executions"], dialect, False)
    column = layout.columns[layout.names.index(name)]
    present = [value for value in values if value is not None]
    assert column.shortcut is not None
    if not present or (short := column._quickly(present)) is None:
        return
    slow = [column.cell(value) for value in present]  # raises if the shortcut took what the types refuse
    if name == "raw_json":
        assert [json.loads(text) for text in short] == [json.loads(text) for text in slow]
    elif dialect == "postgresql" and name == "exec_fee":
        assert [Decimal(text) for text in short] == [Decimal(text) for text in slow]
    else:
        assert list(short) == slow


@settings(deadline=None)
@given(
    st.lists(st.from_regex(r"[0-9]{1,12}(\.[0-9]{1,8})?", fullmatch=True), min_size=1, max_size=3),
    st.lists(st.integers(0, 4 * 10**15), min_size=1, max_size=3),  # microseconds since 1970
    st.sampled_from(("postgresql", "sqlite", "mysql")),
)
@example(["79099442.28268421"], [0], "sqlite")  # 16 digits that a float does not keep
@example(["0.0000000"], [0], "postgresql")  # as a Decimal it is written 0E-7
def test_values_given_as_their_texts_make_the_same_cells(digits: list[str], passed: list[int], dialect: str) -> None:
    """A column of checked texts is the column of its values, which it gives to whoever looks at them."""
    layout = cells.cell_layout_of(PublicTrade.metadata.tables["public_trades"], dialect, False)
    price, when = (layout.columns[layout.names.index(name)] for name in ("price", "exchange_ts"))
    amounts = AmountTexts(digits)
    assert list(amounts) == [Decimal(text) for text in digits]
    quick = price._quickly(amounts)
    if quick is not None:
        assert list(map(Decimal, quick)) == list(map(Decimal, map(price.cell, amounts)))
    utc = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros) for micros in passed]
    texts = instants.InstantTexts([f"{time:%Y-%m-%d %H:%M:%S.%f}" for time in utc])
    assert list(texts[0:]) == utc
    assert when._quickly(texts) == list(map(when.cell, utc))


def test_dates_that_were_written_once_do_not_pile_up() -> None:
    """A process that imports years of trades remembers a bounded number of dates."""
    first = datetime(2000, 1, 1, tzinfo=UTC)
    days = [first + timedelta(days=number) for number in range(5000)]
    assert instants.instant_texts(days, with_zone=False) == [f"{day:%Y-%m-%d} 00:00:00.000000" for day in days]
    assert len(instants._DAYS) <= instants._MANY_DAYS


def test_json_is_the_same_without_orjson(session: Session, parents: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra makes it faster, and nothing else."""
    documents = [
        {"execId": "1", "isMaker": True, "seq": 4_688_002_127, "extra": None, "nested": [{"a": 'naïve \\ "'}, []]},
        {"price": Decimal("1.10"), "number": 2**70, "float": 0.1, "at": datetime(2025, 5, 3, tzinfo=UTC)},
        {},
    ]
    rows = [execution_values(parents, number, raw_json=document) for number, document in enumerate(documents)]

    def written() -> list[Any]:
        bulk_create(session, PrivateExecution, rows)
        found = list(session.scalars(select(PrivateExecution.raw_json).order_by(PrivateExecution.exec_id)))
        session.execute(delete(PrivateExecution))
        return found

    with_orjson = written()
    monkeypatch.setattr(text_forms, "orjson", None)
    cells.cell_layout_of.cache_clear()
    assert written() == with_orjson
    cells.cell_layout_of.cache_clear()


# --- what is taken ------------------------------------------------------------------------------------------------


def test_objects_and_named_tuples_are_rows_too(session: Session) -> None:
    """A model's objects, stored ones included, and named tuples are written like mappings."""

    class Row(NamedTuple):
        symbol: str
        trade_id: str
        exchange_ts: datetime
        local_ts: datetime
        side: str
        price: Decimal
        size: Decimal

    known = stored(session, PublicTrade(**trade_values(1)))
    rows = [PublicTrade(**trade_values(2)), Row(**trade_values(3)), trade_values(4), known]
    assert PublicTradeRepository(session).bulk_create(rows) == BulkResult(inserted=3, skipped=1)
    assert stored_ids(session) == ids(1, 2, 3, 4)


def arrow_table(rows: list[dict[str, Any]]) -> Any:
    """The rows as an Arrow table with exact columns."""
    money, time = pa.decimal128(20, 8), pa.timestamp("us", "UTC")
    kinds = {"exchange_ts": time, "local_ts": time, "price": money, "size": money}
    return pa.Table.from_pylist(rows, pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]]))


@pytest.mark.parametrize(
    "frame",
    [
        arrow_table,
        lambda rows: arrow_table(rows).to_batches()[0],
        lambda rows: pl.from_arrow(arrow_table(rows)),
        lambda rows: arrow_table(rows).replace_schema_metadata({"from": "elsewhere"}).combine_chunks(),
    ],
    ids=["arrow table", "record batch", "polars", "combined"],
)
def test_frames_give_the_rows_they_hold(session: Session, frame: Callable[[Any], Any]) -> None:
    """An Arrow table, a record batch and a polars frame are written exactly, whatever the batch size."""
    rows = trades(*range(20))
    whole = frame(rows)
    for expected_result in (BulkResult(inserted=20), BulkResult(skipped=20)):
        assert PublicTradeRepository(session).bulk_create(whole, batch_size=7) == expected_result
    found = session.execute(select(*PublicTrade.__table__.columns).order_by(PublicTrade.exchange_ts)).mappings()
    assert [{name: row[name] for name in rows[0]} for row in found] == rows


def test_a_bad_row_of_a_frame_is_reported_with_its_position(session: Session) -> None:
    """Floats in a frame are no money either, and rows of a frame can be rejected one by one."""
    rows = trades(*range(10), price=1.5)
    with pytest.raises(InvalidValueError, match=r"^public_trades.price: a float is not exact money.* \(row 0\)$"):
        PublicTradeRepository(session).bulk_create(pl.DataFrame(rows))
    some = pl.DataFrame({**pl.DataFrame(trades(*range(3))).to_dict(), "side": ["Buy", "buy", "Sell"]})
    result = PublicTradeRepository(session).bulk_create(some, errors="collect")
    assert (result.inserted, [error.position for error in result.errors]) == (2, [1])
    assert result.errors[0].row["side"] == "buy"


def test_nanoseconds_of_a_frame_are_refused_and_not_cut_off(session: Session) -> None:
    """Polars would hand them over rounded, without a word."""
    times = pl.Series([1_747_612_800_000_000_001]).cast(pl.Datetime("ns", "UTC"))
    frame = pl.DataFrame(trades(0)).with_columns(exchange_ts=times)
    with pytest.raises(InvalidValueError, match="nanoseconds"):
        PublicTradeRepository(session).bulk_create(frame)
    whole = frame.with_columns(exchange_ts=times.dt.truncate("1us"))
    assert PublicTradeRepository(session).bulk_create(whole).inserted == 1


@pytest.mark.parametrize("rows", [trade_values(), "BTCUSDT", 7, None], ids=["mapping", "text", "number", "none"])
def test_what_is_no_collection_of_rows_is_refused(session: Session, rows: Any) -> None:
    """A single mapping above all: its keys would be taken for rows."""
    with pytest.raises(InvalidValueError, match="a single row goes into a list"):
        PublicTradeRepository(session).bulk_create(rows)


def test_no_rows_are_no_work(session: Session) -> None:
    """An empty iterable is an empty result."""
    assert PublicTradeRepository(session).bulk_create([]) == BulkResult()


@pytest.mark.parametrize(
    "wrong", [{"on_conflict": "ignore"}, {"errors": "ignore"}, {"batch_size": 0}], ids=lambda wrong: next(iter(wrong))
)
def test_unknown_choices_are_refused(session: Session, wrong: dict[str, Any]) -> None:
    """A typing error in an option must not pick a behaviour."""
    with pytest.raises(InvalidValueError):
        PublicTradeRepository(session).bulk_create(trades(1), **wrong)
    assert stored_ids(session) == []


def test_at_most_one_batch_of_an_iterable_is_in_memory(session: Session) -> None:
    """Rows that are written are let go."""

    class Row(dict[str, Any]):
        __slots__ = ("__weakref__",)

    alive: list[weakref.ref[Row]] = []
    most = 0

    def six_hundred() -> Iterator[Row]:
        nonlocal most
        for number in range(600):
            row = Row(trade_values(number))
            alive.append(weakref.ref(row))
            most = max(most, sum(reference() is not None for reference in alive))
            yield row

    for on_conflict in CHOICES:
        PublicTradeRepository(session).bulk_create(six_hundred(), batch_size=100, on_conflict=on_conflict)
        session.execute(delete(PublicTrade))
    assert 100 <= most <= 101


def test_the_rows_may_come_out_of_the_same_session(session: Session) -> None:
    """Reading while writing, on one connection: the iterable is not asked for rows while COPY runs."""
    PublicTradeRepository(session).bulk_create(trades(*range(700)))

    def copied() -> Iterator[dict[str, Any]]:
        for number in range(700):
            price = session.scalar(select(PublicTrade.price).where(PublicTrade.trade_id == f"trade-{number}"))
            yield trade_values(number, symbol="COPY", price=price)

    assert PublicTradeRepository(session).bulk_create(copied(), batch_size=300).inserted == 700


def test_missing_columns_get_their_defaults(session: Session, sample_account: BybitAccount) -> None:
    """Python-side defaults are filled in row by row, columns that may be NULL are NULL."""
    account = {"user_id": sample_account.user_id, "environment": "testnet"}
    rows = [account | {"account_name": name} for name in ("a", "b")]
    assert bulk_create(session, BybitAccount, rows).inserted == 2
    made = session.scalars(select(BybitAccount).where(BybitAccount.account_name != "main")).all()
    assert len({one.account_id for one in made} | {sample_account.account_id}) == 3
    assert {one.status for one in made} == {"enabled"}
    assert all(one.created_at.tzinfo is not None for one in made)


def test_ids_may_be_given_in_every_row_or_in_none(session: Session) -> None:
    """A copied table keeps its numbers; a row without one among others with one is an oversight."""
    numbered = [trade_values(number, id=1000 + number) for number in range(3)]
    assert bulk_create(session, PublicTrade, numbered).inserted == 3
    assert list(session.scalars(select(PublicTrade.id).order_by(PublicTrade.id))) == [1000, 1001, 1002]
    for rows in ([*trades(7), trade_values(8, id=8)], [trade_values(8, id=8), *trades(7)]):
        with pytest.raises(InvalidValueError, match=r"^public_trades.id: .* \(row 1\)$"):
            bulk_create(session, PublicTrade, rows)


def test_rows_with_ids_and_rows_without_may_both_be_there_already(session: Session) -> None:
    """On one connection after the other: what either left behind does not stand in the other's way."""
    trades = PublicTradeRepository(session)
    trades.bulk_create([trade_values(1)])
    assert trades.bulk_create([trade_values(1)]).skipped == 1
    assert trades.bulk_create([trade_values(1, id=7), trade_values(2, id=8)]) == BulkResult(inserted=1, skipped=1)
    assert trades.bulk_create([trade_values(2)]).skipped == 1


def test_any_text_survives(session: Session, parents: Any) -> None:
    """COPY's own special characters, and those of other scripts, are nothing special in a value."""
    special = [
        "\\N",
        "\\.",
        "a\tb",
        "a\nb",
        "a\rb",
        "a\\",
        "",
        " ",
        "na\u00efve",
        "\u2028",
        "😀",
        "'\";--",
        "{}",
        "NULL",
    ]
    rows = [execution_values(parents, number, order_link_id=text) for number, text in enumerate(special)]
    bulk_create(session, PrivateExecution, rows)
    found = session.scalars(select(PrivateExecution.order_link_id).order_by(PrivateExecution.exchange_ts))
    assert list(found) == special


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"symbol": None}, "public_trades.symbol: a value is needed"),
        ({"side": "buy"}, "public_trades.side: 'buy' is not allowed; use one of Buy, Sell"),
        ({"prize": 1}, "public_trades: there is no column 'prize'; the columns are symbol, trade_id"),
        ({"price": Decimal("1e12")}, "public_trades.price: the amount does not fit"),
        ({"exchange_ts": datetime(2025, 5, 19)}, "public_trades.exchange_ts: a naive datetime"),  # noqa: DTZ001 # the point
        ({"trade_id": "x" * 51}, "public_trades.trade_id: text of 51 characters does not fit"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_first_bad_row_is_named_and_nothing_is_written(
    session: Session, wrong: dict[str, Any], message: str
) -> None:
    """Column and position are told before the database sees the row; rows around it are not written either."""
    stored(session, PublicTrade(**trade_values(9000)))
    rows = [*trades(*range(700)), trade_values(700) | wrong, *trades(701), trade_values(702, price=1.0)]
    for handed_over in (iter(rows), rows):
        with pytest.raises(InvalidValueError) as caught:
            PublicTradeRepository(session).bulk_create(handed_over, batch_size=300)
        assert str(caught.value).startswith(message)
        assert str(caught.value).endswith(" (row 700)")
        assert caught.value.position == 700
        assert stored_ids(session) == ids(9000)


def test_a_missing_column_is_named(session: Session) -> None:
    """A row without a column that must have a value is refused like one with None in it."""
    row = trade_values()
    del row["price"]
    with pytest.raises(InvalidValueError, match=r"^public_trades.price: a value is needed \(row 0\)$"):
        PublicTradeRepository(session).bulk_create([row])


@pytest.mark.parametrize("begun", [False, True], ids=["first in its transaction", "after other work"])
@pytest.mark.parametrize("on_conflict", CHOICES)
def test_an_iterable_that_raises_takes_the_whole_call_with_it(
    db: DatabaseFactory, begun: bool, on_conflict: OnConflict
) -> None:
    """Its own error comes through, what it gave before is undone, and what the transaction did before is not."""

    def breaking() -> Iterator[dict[str, Any]]:
        yield from trades(*range(500))
        raise RuntimeError("the feed broke")

    with db.get_session() as session:
        if begun:
            stored(session, PublicTrade(**trade_values(9000)))
        with pytest.raises(RuntimeError, match="the feed broke"):
            PublicTradeRepository(session).bulk_create(breaking(), batch_size=200, on_conflict=on_conflict)
        PublicTradeRepository(session).bulk_create(trades(9001))
    with suppress(RuntimeError), db.get_session() as session:
        with suppress(RuntimeError):
            PublicTradeRepository(session).bulk_create(breaking(), on_conflict=on_conflict)
        PublicTradeRepository(session).bulk_create(trades(9002))
        raise RuntimeError
    with db.get_session() as session:
        assert stored_ids(session) == (ids(9000, 9001) if begun else ids(9001))


@pytest.mark.parametrize("begun", [False, True], ids=["first in its transaction", "after other work"])
def test_a_duplicate_is_an_error_where_it_is_asked_to_be_one(db: DatabaseFactory, begun: bool) -> None:
    """on_conflict="error": IntegrityError, nothing of the call is written, the transaction goes on."""
    with db.get_session() as session:
        PublicTradeRepository(session).bulk_create(trades(5))
    with db.get_session() as session:
        if begun:
            stored(session, PublicTrade(**trade_values(9000)))
        with pytest.raises(IntegrityError):
            PublicTradeRepository(session).bulk_create(trades(*range(9)), on_conflict="error", batch_size=2)
    with db.get_session() as session:
        assert stored_ids(session) == (ids(5, 9000) if begun else ids(5))


def test_rows_that_only_the_database_refuses_are_isolated(session: Session, parents: Any) -> None:
    """With errors="collect" a row of a run that does not exist is reported, and the others are written."""
    rows = [execution_values(parents, number) for number in range(600)]
    rows[17]["run_id"] = rows[402]["run_id"] = "no-such-run"
    rows[404]["exec_fee"] = 0.5
    result = bulk_create(session, PrivateExecution, rows, errors="collect", batch_size=400)
    assert (result.inserted, result.rejected) == (597, 3)
    assert [error.position for error in result.errors] == [17, 402, 404]
    assert "foreign key" in result.errors[0].reason.lower()
    assert result.errors[2].reason.startswith("private_executions.exec_fee: a float is not exact money")
    assert result.errors[1].row is rows[402]
    with pytest.raises(IntegrityError):
        bulk_create(session, PrivateExecution, rows[17:18])
    assert session.scalar(select(func.count()).select_from(PrivateExecution)) == 597


def test_things_that_are_no_rows_are_isolated(session: Session) -> None:
    """Whatever stands among the rows is reported with its position."""
    rows: list[Any] = [None, *trades(0), "BTCUSDT", 7, User(username="x"), *trades(1), {}, {"price": []}]
    result = PublicTradeRepository(session).bulk_create(rows, errors="collect")
    assert (result.inserted, [error.position for error in result.errors]) == (2, [0, 2, 3, 4, 6, 7])
    assert result.errors[0].reason == "public_trades: a row is a mapping or a PublicTrade, not a NoneType"
    with pytest.raises(InvalidValueError, match=r"^public_trades: a row is a mapping.* \(row 0\)$"):
        PublicTradeRepository(session).bulk_create(rows)


def test_a_read_only_session_writes_nothing(db: DatabaseFactory) -> None:
    """The refusal has the same name as everywhere else."""
    with pytest.raises(DatabaseReadOnlyError), db.get_session(read_only=True) as session:
        PublicTradeRepository(session).bulk_create(trades(1))


def test_a_lost_connection_is_told_as_one(postgresql_url: Any) -> None:
    """The server going away in the middle of a call is a DatabaseFailure, and nothing is written."""
    with DatabaseFactory(postgresql_url) as db:

        def rows() -> Iterator[dict[str, Any]]:
            yield from trades(*range(10))
            with db.engine.connect() as other:
                other.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND datname = current_database()"
                )
            yield from trades(*range(10, 20))

        with pytest.raises(DatabaseFailure), db.get_session() as session:
            PublicTradeRepository(session).bulk_create(rows(), batch_size=10)
        with db.get_session() as session:
            assert stored_ids(session) == []


# --- transactions, sessions, connections --------------------------------------------------------------------------


def test_a_call_is_part_of_the_callers_transaction(db: DatabaseFactory) -> None:
    """It commits and rolls back with everything else, in savepoints too; pending objects go first."""
    with suppress(RuntimeError), db.get_session() as session:
        PublicTradeRepository(session).bulk_create(trades(1))
        raise RuntimeError
    with db.get_session() as session:
        session.add(PublicTrade(**trade_values(2)))
        assert PublicTradeRepository(session).bulk_create(trades(2, 3)) == BulkResult(inserted=1, skipped=1)
        with session.begin_nested() as savepoint:
            assert PublicTradeRepository(session).bulk_create(trades(3, 4)) == BulkResult(inserted=1, skipped=1)
            savepoint.rollback()
        assert PublicTradeRepository(session).bulk_create(trades(4, 3)) == BulkResult(inserted=1, skipped=1)
    with db.get_session() as session:
        assert stored_ids(session) == ids(2, 3, 4)


def test_a_failed_call_leaves_another_session_on_the_same_memory_alone() -> None:
    """Sessions on one memory database share a transaction; undoing a call must not undo the other's work."""
    with DatabaseFactory(DatabaseSettings(db_name=":memory:", _env_file=None)) as db:
        db.create_tables()
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create(trades(1))
            opened = db.get_session()
            with pytest.warns(UserWarning, match="share a single transaction"):
                other = opened.__enter__()
            with pytest.raises(InvalidValueError):
                PublicTradeRepository(other).bulk_create([*trades(*range(2, 600)), {}])
            assert stored_ids(session) == ids(1)
            opened.__exit__(None, None, None)


def test_objects_in_the_session_show_an_update(session: Session) -> None:
    """An object read before tells the values that are stored now."""
    trade = stored(session, PublicTrade(**trade_values(1)))
    changed = trades(1, size=Decimal(7))
    assert PublicTradeRepository(session).bulk_create(changed, on_conflict="update") == BulkResult(updated=1)
    assert trade.size == Decimal(7)


def test_clean_and_colliding_batches_on_one_connection_do_not_mix(db: DatabaseFactory) -> None:
    """Whichever way a batch takes on PostgreSQL, and however often in a transaction, only its own rows count."""
    for first in (0, 3000):
        with db.get_session() as session:
            repository = PublicTradeRepository(session)
            for start in range(first, first + 2000, 500):
                assert repository.bulk_create(trades(*range(start, start + 500))) == BulkResult(inserted=500)
                again = trades(*range(start + 400, start + 600))
                assert repository.bulk_create(again) == BulkResult(inserted=100, skipped=100)
                session.execute(
                    delete(PublicTrade).where(PublicTrade.trade_id.in_(ids(*range(start + 500, start + 600))))
                )
    with db.get_session() as session:
        assert stored_ids(session) == ids(*range(2000), *range(3000, 5000))


def test_two_writers_of_the_same_rows_store_each_once(db_settings: DatabaseSettings) -> None:
    """The second waits for the first and finds its rows there; both counts are true."""
    if db_settings.is_memory:
        return  # one connection, one writer
    with DatabaseFactory(db_settings) as db:
        db.create_tables()
        results: list[BulkResult] = []

        def second() -> None:
            with db.get_session() as session:
                results.append(PublicTradeRepository(session).bulk_create(trades(*range(5, 15))))

        thread = threading.Thread(target=second)
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create(trades(*range(10)))
            thread.start()
        thread.join()
        assert results == [BulkResult(inserted=5, skipped=5)]


def test_the_variable_limit_of_stock_sqlite_is_never_near(tmp_path: Path) -> None:
    """A statement has as many variables as the table has columns; a build that allows 10 takes any number of rows."""
    with DatabaseFactory(DatabaseSettings(db_name=str(tmp_path / "small.db"), _env_file=None)) as db:
        db.create_tables()

        def limit(connection: sqlite3.Connection, record: Any) -> None:
            connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 10)

        db.close()
        event.listen(db.engine, "connect", limit)
        with db.get_session() as session:
            for on_conflict in reversed(CHOICES):
                PublicTradeRepository(session).bulk_create(trades(*range(6000)), on_conflict=on_conflict)
            assert session.scalar(select(func.count()).select_from(PublicTrade)) == 6000


# --- whose rows ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet_templates(postgresql_server: URL) -> Iterator[dict[str, str]]:
    """PostgreSQL databases with ann's and bob's runs in them, without and with the policies."""
    names = {place: f"shared_db_bulk_{place}_{os.getpid()}" for place in ("postgresql", "policies")}
    for place, name in names.items():
        run_on_server(postgresql_server, f"CREATE DATABASE {name}")
        with DatabaseFactory(postgresql_server.set(database=name)) as db:
            _fill(db)
            if place == "policies":
                db.enable_row_security()
    yield names
    for name in names.values():
        run_on_server(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=("memory", "file", "postgresql", "policies"))
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A database in which ann and bob have a run each, also under PostgreSQL's policies."""
    if request.param in ("memory", "file"):
        name = ":memory:" if request.param == "memory" else str(tmp_path / "fleet.db")
        with DatabaseFactory(DatabaseSettings(db_name=name, _env_file=None)) as db:
            _fill(db)
            yield db
        return
    server: URL = request.getfixturevalue("postgresql_server")
    template = request.getfixturevalue("fleet_templates")[request.param]
    copy = f"{template}_{next(_numbers)}"
    run_on_server(server, f"CREATE DATABASE {copy} TEMPLATE {template}")
    with DatabaseFactory(server.set(database=copy)) as db:
        yield db
    run_on_server(server, f"DROP DATABASE {copy} WITH (FORCE)")


def _fill(db: DatabaseFactory) -> None:
    db.create_tables()
    with db.get_session() as session:
        for user in ("ann", "bob"):
            account = BybitAccount(account_id=f"acc-{user}", user_id=user, account_name="a", environment="testnet")
            strategy = new_strategy(account, strategy_id=f"str-{user}")
            session.add_all([User(user_id=user, username=user), account, strategy])
            session.add(new_run(account, strategy, run_id=f"run-{user}"))


ANN, BOB = Parents("run-ann", "acc-ann"), Parents("run-bob", "acc-bob")


def fills(parents: Any, *numbers: int, **values: Any) -> list[dict[str, Any]]:
    """Executions with these numbers."""
    return [execution_values(parents, number, **values) for number in numbers]


Open = Callable[[DatabaseFactory], tuple[Any, dict[str, Any]]]
WAYS: dict[str, Open] = {
    "user's session": lambda db: (db.get_session(user_id="ann"), {}),
    "plain session": lambda db: (db.get_session(), {"user_id": "ann"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_user_writes_his_own_executions(fleet: DatabaseFactory, way: str) -> None:
    """With the same counts as anybody, whichever enforcer watches."""
    opened, who = WAYS[way](fleet)
    with opened as session:
        create = PrivateExecutionRepository(session, **who).bulk_create
        assert create(fills(ANN, *range(600)), batch_size=250) == BulkResult(inserted=600)
        assert create(fills(ANN, 598, 599, 600, 600)) == BulkResult(inserted=1, skipped=3)
        changed = fills(ANN, 600, 601, exec_fee=Decimal(1))
        assert create(changed, on_conflict="update") == BulkResult(inserted=1, updated=1)
        with pytest.raises(IntegrityError):
            create(fills(ANN, 700, 601), on_conflict="error")
        bad = [*fills(ANN, 700), *fills(ANN, 701, exec_fee=0.5), *fills(ANN, 702)]
        assert create(bad, errors="collect").inserted == 2
        assert PublicTradeRepository(session).bulk_create(trades(1, 2, 2)) == BulkResult(inserted=2, skipped=1)
        assert PublicTradeRepository(session).bulk_create(trades(2, 3)) == BulkResult(inserted=1, skipped=1)
    with fleet.get_session() as session:  # on the same connection, under another role
        assert PublicTradeRepository(session).bulk_create(trades(3, 4)) == BulkResult(inserted=1, skipped=1)
        assert session.scalar(select(func.count()).select_from(PrivateExecution)) == 604
        assert session.scalar(select(PrivateExecution.exec_fee).where(PrivateExecution.exec_id == "exec-600")) == 1


class Forged(str):
    """Text that claims to be another."""

    __slots__ = ("claims",)

    def __eq__(self, other: object) -> bool:
        return other == "run-ann"

    def __hash__(self) -> int:
        return hash("run-ann")


FOREIGN: dict[str, Any] = {
    "run": {"run_id": "run-bob"},
    "account": {"account_id": "acc-bob"},
    "both": {"run_id": "run-bob", "account_id": "acc-bob"},
    "unknown run": {"run_id": "run-nobody"},
    "no run": {"run_id": None},
    "forged": {"run_id": Forged("run-bob")},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_row_of_another_user_is_refused_and_nothing_is_written(fleet: DatabaseFactory, way: str) -> None:
    """Wherever among the rows it stands; errors="collect" does not turn it into a bad row."""
    choices: tuple[OnBadRow, ...] = ("raise", "collect")
    for errors, (what, foreign) in product(choices, FOREIGN.items()):
        if errors == "collect" and what == "no run":
            continue  # a row without a run is nobody's: it is rejected like any other bad row
        opened, who = WAYS[way](fleet)
        rows = [*fills(ANN, *range(600)), *fills(ANN, 600, **foreign)]
        with opened as session:
            with pytest.raises(TenantViolation):
                PrivateExecutionRepository(session, **who).bulk_create(iter(rows), errors=errors, batch_size=200)
            assert PrivateExecutionRepository(session, **who).get_all() == []
            assert PrivateExecutionRepository(session, **who).bulk_create(rows[:1]).inserted == 1
        with fleet.get_session() as session:
            assert session.scalars(select(PrivateExecution.exec_id)).all() == ["exec-0"]
            session.execute(delete(PrivateExecution))


def test_the_function_itself_obeys_a_users_session(fleet: DatabaseFactory) -> None:
    """The guard of a user's session applies without being passed along."""
    with fleet.get_session(user_id="ann") as session:
        with pytest.raises(TenantViolation):
            bulk_create(session, PrivateExecution, fills(BOB, 1))
        with pytest.raises(TenantViolation):
            bulk_create(
                session, Strategy, [{"account_id": "acc-bob", "symbol": "X", "strategy_type": "G", "config_json": {}}]
            )
        own = {"account_id": "acc-ann", "symbol": "X", "strategy_type": "G", "config_json": {}}
        assert bulk_create(session, Strategy, [own, own]) == BulkResult(inserted=1, skipped=1)


@pytest.mark.parametrize("way", WAYS)
def test_an_upsert_cannot_take_over_another_users_row(fleet: DatabaseFactory, way: str) -> None:
    """Where the conflicting row may be anybody's (a run is found by its id alone), there is no upsert."""
    opened, who = WAYS[way](fleet)
    mine = {
        "run_id": "run-bob",
        "user_id": "ann",
        "account_id": "acc-ann",
        "strategy_id": "str-ann",
        "run_type": "live",
    }
    with opened as session:
        guard = RunRepository(session, **who)._guard("ann")
        for changing in ("update", "fill"):
            with pytest.raises(TenantViolation):
                bulk_create(session, Run, [mine], on_conflict=changing, guard=guard)
        assert bulk_create(session, Run, [mine], guard=guard) == BulkResult(skipped=1)
    with fleet.get_session() as session:
        run = session.get(Run, "run-bob")
        assert run is not None
        assert run.user_id == "bob"


def test_a_session_that_requires_a_user_requires_one_here(tmp_path: Path) -> None:
    """require_tenant closes the bulk door of plain sessions too, except for what all users share."""
    settings = DatabaseSettings(db_name=str(tmp_path / "t.db"), require_tenant=True, _env_file=None)
    with DatabaseFactory(settings) as db:
        db.create_tables()
        with db.get_session() as session:
            assert PublicTradeRepository(session).bulk_create(trades(1)).inserted == 1
            with pytest.raises(TenantScopeError):
                bulk_create(session, PrivateExecution, fills(ANN, 1))
            with pytest.raises(TenantScopeError):
                bulk_update(session, Run, [{"run_id": "run-ann", "status": "failed"}])


# --- bulk_update --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_many_rows_are_updated_by_their_key(fleet: DatabaseFactory, way: str) -> None:
    """Only the columns named change; a JSON column and objects already loaded included."""
    opened, who = WAYS[way](fleet)
    with opened as session:
        repository = StrategyRepository(session, **who)
        (strategy,) = repository.get_all()
        changes: Iterable[Any] = [
            {"strategy_id": "str-ann", "is_enabled": False},
            {"strategy_id": "str-ann", "config_json": {"levels": 5}},
        ]
        assert repository.bulk_update(iter(changes)) == 2
        assert (strategy.is_enabled, strategy.config_json) == (False, {"levels": 5})
    with fleet.get_session() as session:
        found = session.get(Strategy, "str-ann")
        assert found is not None
        assert (found.is_enabled, found.config_json, found.symbol) == (False, {"levels": 5}, "BTCUSDT")


REFUSED_CHANGES: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"run_id": "run-bob", "status": "failed"}, RowNotFoundError),
    ({"run_id": "run-nobody", "status": "failed"}, RowNotFoundError),
    ({"run_id": "run-ann", "user_id": "bob"}, TenantViolation),
    ({"run_id": "run-ann", "account_id": "acc-bob"}, TenantViolation),
    ({"run_id": "run-ann", "strategy_id": "str-bob"}, TenantViolation),
    ({"run_id": "run-ann", "status": "done"}, InvalidValueError),
    ({"run_id": "run-ann", "status": None}, InvalidValueError),
    ({"run_id": "run-ann", "stat": "failed"}, InvalidValueError),
    ({"status": "failed"}, InvalidValueError),
]


@pytest.mark.parametrize("way", WAYS)
def test_an_update_that_is_refused_changes_nothing(fleet: DatabaseFactory, way: str) -> None:
    """Another user's row, another user's parent, a bad value: not even the good changes before it are made."""
    for change, error in REFUSED_CHANGES:
        opened, who = WAYS[way](fleet)
        with opened as session:
            with pytest.raises(error):
                RunRepository(session, **who).bulk_update([{"run_id": "run-ann", "gridcore_version": "2"}, change])
            session.commit()
        with fleet.get_session() as session:
            found = session.execute(select(Run.user_id, Run.account_id, Run.status, Run.gridcore_version)).all()
            assert set(found) == {("ann", "acc-ann", "completed", None), ("bob", "acc-bob", "completed", None)}, change


def test_an_update_that_the_database_refuses_is_undone(fleet: DatabaseFactory) -> None:
    """A collision with another row undoes the whole call, not the transaction."""
    with fleet.get_session(user_id="ann") as session:
        repository = BybitAccountRepository(session)
        repository.create(BybitAccount(account_id="second", user_id="ann", account_name="b", environment="testnet"))
        with pytest.raises(IntegrityError):
            repository.bulk_update(
                [{"account_id": "acc-ann", "status": "error"}, {"account_id": "second", "account_name": "a"}]
            )
        names = {account.account_id: (account.account_name, account.status) for account in repository.get_all()}
        assert names == {"acc-ann": ("a", "enabled"), "second": ("b", "enabled")}
