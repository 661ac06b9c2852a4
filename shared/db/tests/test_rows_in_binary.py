"""Thousands of mappings into PostgreSQL: in binary form, and what is stored and said is what text stores and says."""

from __future__ import annotations

import sys
import tracemalloc
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar, get_args

import psycopg2.extensions
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Date, Numeric, delete, select, text
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import mapped_column

from shared.db import (
    SHARED_BY_ALL,
    Base,
    CheckedInteger,
    DatabaseFactory,
    InvalidValueError,
    Money,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    TenantViolation,
)
from shared.db.bulk import BulkResult, OnConflict, bulk_create, cells
from shared.db.tests.outside import outside_tables
from shared.db.tests.support import two_runs, with_and_without_policies
from shared.db.tests.test_frames_in import (
    AT,
    BINARY,
    MIDDLE,
    TEXT,
    Forged,
    as_text,
    copies,
    executions,
    stored_trades,
    texts,
    trades,
    values,
)

NEVER = 10**9


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A few rows are enough."""
    monkeypatch.setattr(cells, "_FEWEST_PACKED", 1)
    monkeypatch.setattr(cells, "CHUNK", 2)
    return monkeypatch


zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-12), "far")])
# Beside what is usual, what another way than the fast one takes, what is rounded, and what is refused.
others: dict[str, st.SearchStrategy[Any]] = {
    "words": st.text() | st.integers(),
    "short": texts,
    "mood": texts,
    "amount": st.decimals() | st.integers() | st.floats() | st.booleans() | st.decimals(-99, 99, places=10).map(str),
    "at": st.datetimes() | st.datetimes(timezones=zones) | st.dates(),
    "number": st.integers() | st.booleans() | st.decimals(),
    "flag": st.integers(),
    "document": st.dictionaries(texts, st.decimals() | texts) | texts,
}


@st.composite
def unusual(draw: st.DrawFn) -> dict[str, Any]:
    """A row of which a few values are unusual."""
    row = draw(values)
    for name in draw(st.lists(st.sampled_from(sorted(others)), max_size=2, unique=True)):
        row[name] = draw(others[name])
    return dict(row)


def a_row(**other: Any) -> dict[str, Any]:
    """A row with these values among usual ones."""
    return MIDDLE | other


@settings(
    deadline=None, max_examples=300, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(values, min_size=1, max_size=5) | st.lists(unusual(), min_size=1, max_size=5))
@example([MIDDLE, dict.fromkeys(MIDDLE), MIDDLE])
@example([dict.fromkeys(MIDDLE)])
@example([a_row(amount=Decimal("1.000000001"))] * 3)
@example([a_row(amount=Decimal("NaN")), MIDDLE])
@example([MIDDLE, a_row(amount=Decimal("1E+3")), a_row(amount=Decimal("0E+30")), a_row(amount=Decimal("-0"))])
@example([MIDDLE, a_row(amount=Decimal(1234567890123))])
@example([a_row(at=datetime(1, 1, 1, 23, tzinfo=UTC)), MIDDLE])
@example([a_row(at=datetime(9999, 12, 30, tzinfo=UTC)), a_row(at=datetime(9999, 12, 30, 0, 0, 1, tzinfo=UTC))])
@example([a_row(words="\ud800"), MIDDLE])
@example([a_row(number=2**63), MIDDLE])
def test_mappings_are_stored_and_refused_as_text_does_it(
    server: DatabaseFactory, kind: type[Any], packing: pytest.MonkeyPatch, rows: list[dict[str, Any]]
) -> None:
    """Over the full range of each type: the same values, the same rounding told, the same error at the same place."""
    rows = [{"key": number, **row} for number, row in enumerate(rows)]

    def outcome() -> Any:
        told: list[Any] = []
        with server.get_session() as session:
            try:
                found = as_text(session, kind, lambda: told.append(bulk_create(session, kind, rows)))
            except (InvalidValueError, DataError, ValueError) as error:
                return type(error), str(error)
        result = told[0]
        return found, result.rounded, [(note.position, note.text) for note in result.notes]

    binary = outcome()
    packing.setattr(cells, "_FEWEST_PACKED", NEVER)
    text_way = outcome()
    packing.setattr(cells, "_FEWEST_PACKED", 1)
    assert binary == text_way


def test_usual_mappings_go_in_binary_and_only_by_the_thousand(server: DatabaseFactory) -> None:
    """A list in sixteen batches' size, an iterable in one, fewer rows as text; all of them are there afterwards."""
    rows = trades(*range(10_000))
    with server.get_session() as session:
        repository = PublicTradeRepository(session)
        for given_rows, forms in ((rows, [BINARY]), (iter(rows), [BINARY] * 2), (rows[:4_999], [TEXT])):
            session.execute(delete(PublicTrade))
            with copies(session) as found:
                repository.bulk_create(given_rows)
            assert found == forms
        repository.bulk_create(rows)
        assert stored_trades(session) == rows


class _Measuring(psycopg2.extensions.cursor):
    """The driver's cursor, which tells how long the messages were in which it sent what it copied."""

    lengths: ClassVar[list[int]] = []

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        """As the driver does it."""

        class Measured:
            def read(self, size: int = -1) -> bytes:
                sent: bytes = file.read(size)
                _Measuring.lengths.append(len(sent))
                return sent

        measured: Any = Measured()
        super().copy_expert(sql, measured, size)


@pytest.mark.parametrize("form", ["a list", "a frame"])
def test_binary_rows_go_in_messages_of_which_a_socket_holds_several(server: DatabaseFactory, form: str) -> None:
    """A message that fills it leaves the server idle: it begins with the first row when it has the last."""
    rows = trades(*range(10_000))
    _Measuring.lengths.clear()
    with server.get_session() as session:
        driver: Any = session.connection().connection.dbapi_connection
        driver.cursor_factory = _Measuring
        try:
            PublicTradeRepository(session).bulk_create(rows if form == "a list" else pa.Table.from_pylist(rows))
        finally:
            driver.cursor_factory = None
        assert stored_trades(session) == rows
    assert max(_Measuring.lengths) <= 2**15 < sum(_Measuring.lengths)


@pytest.mark.parametrize("on_conflict", get_args(OnConflict))
def test_stored_rows_are_met_in_binary_as_in_text(
    server: DatabaseFactory, packing: pytest.MonkeyPatch, on_conflict: OnConflict
) -> None:
    """Counts, notes and rows are the same in every mode, and the stage takes binary rows too."""
    known, new = trades(*range(5)), [*trades(3, 4, size=Decimal(9)), *trades(5, 6, 6)]

    def outcome() -> tuple[Any, list[Any], list[str]]:
        with server.get_session() as session:
            PublicTradeRepository(session).bulk_create(known)
            with copies(session) as forms:
                try:
                    with session.begin_nested():
                        told: Any = PublicTradeRepository(session).bulk_create(new, on_conflict=on_conflict)
                except IntegrityError as error:
                    told = str(error)
            found = stored_trades(session)
            session.execute(delete(PublicTrade))
            return told, found, forms

    *binary, forms = outcome()
    assert set(forms) == {BINARY}
    packing.setattr(cells, "_FEWEST_PACKED", NEVER)
    *text_way, forms = outcome()
    assert set(forms) == {TEXT}
    assert binary == text_way


def test_the_first_bad_row_of_thousands_is_named_and_nothing_is_stored(server: DatabaseFactory) -> None:
    """Although the server has most of the rows by then; with errors="collect" the others are stored."""
    rows = trades(*range(9_000))
    rows[8_765]["price"] = Decimal("NaN")
    with server.get_session() as session:
        with copies(session) as forms, pytest.raises(InvalidValueError) as refused:
            PublicTradeRepository(session).bulk_create(rows)
        assert (forms, refused.value.position) == ([BINARY], 8_765)
        assert stored_trades(session) == []
        result = PublicTradeRepository(session).bulk_create(rows, errors="collect")
        assert (result.inserted, [one.position for one in result.errors]) == (8_999, [8_765])


def test_rows_of_many_shapes_keep_their_order(server: DatabaseFactory) -> None:
    """Those that name fewer columns get the default, and small chunks of them go before the larger ones that follow."""
    with outside_tables():
        body: dict[str, Any] = {
            "__tablename__": "shapes",
            "__ownership__": SHARED_BY_ALL,
            "place": mapped_column(CheckedInteger(), primary_key=True, autoincrement=False),
            "number": mapped_column(CheckedInteger(), default=7),
        }
        shape: Any = type("Shape", (Base,), body)
        server.create_tables()
        rows = [{"place": place, "number": place} for place in range(5_100)]
        for row in rows[:300:3]:
            del row["number"]
        with server.get_session() as session:
            with copies(session) as forms:
                assert bulk_create(session, shape, rows).inserted == 5_100
            assert forms == [BINARY]
            found = session.execute(select(shape.place, shape.number).order_by(text("ctid"))).all()
            assert found == [(row["place"], row.get("number", 7)) for row in rows]


def test_what_is_rounded_among_thousands_is_told(server: DatabaseFactory) -> None:
    """With its place, and the rows still go in binary form."""
    rows = trades(*range(5_000))
    rows[4_321]["size"] = Decimal("1.000000001")
    with server.get_session() as session:
        with copies(session) as forms:
            result = PublicTradeRepository(session).bulk_create(rows)
        assert (forms, result.rounded, [note.position for note in result.notes]) == ([BINARY], 1, [4_321])


def a_foreign_kind() -> type[Any]:
    """A table with types that know nothing of a binary form."""
    body: dict[str, Any] = {
        "__tablename__": "foreign_kinds",
        "__ownership__": SHARED_BY_ALL,
        "key": mapped_column(CheckedInteger(), primary_key=True, autoincrement=False),
        "number": mapped_column(Numeric(20, 8)),
        "amount": mapped_column(Money()),
    }
    return type("ForeignKind", (Base,), body)


@pytest.mark.parametrize("on_conflict", ["skip", "update"])
def test_a_value_that_the_binary_form_does_not_hold_sends_the_rows_as_text(
    server: DatabaseFactory, packing: pytest.MonkeyPatch, on_conflict: OnConflict
) -> None:
    """Found out on the way, when the server has some of the rows: they are undone, and go again."""
    with outside_tables():
        foreign = a_foreign_kind()
        server.create_tables()
        rows = [{"key": number, "number": Decimal(number), "amount": 1} for number in range(600)]
        with server.get_session() as session:
            bulk_create(session, foreign, rows[:3])
            rows[590]["number"] = Decimal("NaN")
            with copies(session) as forms:
                result = bulk_create(session, foreign, rows, on_conflict=on_conflict)
            assert result.inserted == 597
            assert (forms[0], forms[-1]) == (BINARY, TEXT)
            assert session.scalar(text("SELECT count(*) FROM foreign_kinds WHERE number = 'NaN'")) == 1
            assert session.scalar(text("SELECT count(*) FROM foreign_kinds")) == 600
            with copies(session) as forms:  # in the batches that follow nobody tries again
                bulk_create(session, foreign, rows[590:] * 50, on_conflict=on_conflict, batch_size=100)
            assert forms.count(BINARY) == 1


def test_a_number_of_other_digits_goes_as_text(server: DatabaseFactory, packing: pytest.MonkeyPatch) -> None:
    """Where somebody has altered the column, its zeros are those of the text."""
    with outside_tables():
        foreign = a_foreign_kind()
        server.create_tables()
        with server.get_session() as session:
            session.execute(text("ALTER TABLE foreign_kinds ALTER amount TYPE numeric"))
            with copies(session) as forms:
                bulk_create(session, foreign, [{"key": 1, "number": Decimal(1), "amount": Decimal("1.5")}])
            assert forms == [TEXT]
            assert session.scalar(text("SELECT amount::text FROM foreign_kinds")) == "1.5"


def test_a_table_with_a_type_without_a_binary_form_gets_text(
    server: DatabaseFactory, packing: pytest.MonkeyPatch
) -> None:
    """From the start."""
    with outside_tables():
        body: dict[str, Any] = {
            "__tablename__": "days",
            "__ownership__": SHARED_BY_ALL,
            "key": mapped_column(CheckedInteger(), primary_key=True, autoincrement=False),
            "day": mapped_column(Date()),
        }
        days: Any = type("Day", (Base,), body)
        server.create_tables()
        with server.get_session() as session:
            with copies(session) as forms:
                bulk_create(session, days, [{"key": 1, "day": date(2025, 5, 3)}])
            assert forms == [TEXT]
            assert session.scalars(select(days.day)).all() == [date(2025, 5, 3)]


def test_a_user_writes_his_own_rows_alone_by_the_thousand(server: DatabaseFactory, packing: pytest.MonkeyPatch) -> None:
    """Under the policies too; another's among them is refused, and an object that claims to be his is not believed."""
    own, foreign = two_runs(server, executions=1)
    start = 100
    for _ in with_and_without_policies(server):
        start += 50
        mine, others_row = executions(own, range(start, start + 40)), executions(foreign, range(start, start + 1))
        forged = [mine[0] | {"run_id": Forged("run-bob")}]
        borrowed = [mine[0] | {"account_id": foreign.account_id}]
        with server.get_session(user_id="ann") as session:
            repository = PrivateExecutionRepository(session)
            for strange in (others_row, borrowed, forged):
                with pytest.raises(TenantViolation):
                    repository.bulk_create(mine + strange)
            with copies(session) as forms:
                assert repository.bulk_create(mine) == BulkResult(inserted=40)
            assert forms == [BINARY]


def test_numpy_is_loaded_by_nobody_until_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that writes a few thousand rows does not wait for it."""
    monkeypatch.setattr(cells._Unpacked, "rows", 0)
    assert cells.pays_to_pack(5_000)
    monkeypatch.delitem(sys.modules, "numpy")
    assert not cells.pays_to_pack(5_000)
    calls = [cells.pays_to_pack(20_000) for _ in range(12)]
    assert calls == sorted(calls)
    assert (calls[0], calls[-1]) == (False, True)


def test_without_numpy_thousands_of_rows_go_as_text(server: DatabaseFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra makes it faster, and nothing else."""
    monkeypatch.setattr(cells, "_binary", lambda: None)
    with server.get_session() as session, copies(session) as forms:
        assert PublicTradeRepository(session).bulk_create(trades(*range(5_500))).inserted == 5_500
    assert forms == [TEXT]


def test_thousands_of_rows_take_the_memory_of_a_few(server: DatabaseFactory) -> None:
    """Beside the rows themselves, which their owner holds."""
    rows = [
        trade | {"exchange_ts": AT + timedelta(milliseconds=number)} for number, trade in enumerate(trades(0) * 60_000)
    ]
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    with server.get_session() as session:
        write = partial(PublicTradeRepository(session).bulk_create, batch_size=60_000)
        write(rows[:5_000])
        pa.set_memory_pool(pool)
        tracemalloc.start()
        try:
            assert write(rows[5_000:]).inserted == 55_000
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(before)
    assert peak + (pool.max_memory() or 0) < 4_000_000
