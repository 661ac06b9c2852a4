"""Frames into PostgreSQL in binary form: what is stored is what the rows of the frame would store one by one."""

from __future__ import annotations

import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache, partial
from itertools import product
from typing import Any, ClassVar, get_args

import pandas as pd
import polars as pl
import psycopg2.extensions
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Dialect, Text, cast, delete, insert, select, text
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session, mapped_column

from shared.db import (
    SHARED_BY_ALL,
    Base,
    CheckedInteger,
    CheckedText,
    DatabaseFactory,
    InvalidValueError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    TenantViolation,
)
from shared.db.bulk import BulkResult, OnBadRow, OnConflict, bulk_create, cells
from shared.db.bulk.cells import CellLayout, Digits
from shared.db.tests.kinds import Mood, a_kind
from shared.db.tests.outside import outside_tables
from shared.db.tests.support import execution_values, trade_values, two_runs, with_and_without_policies

BINARY, TEXT = "FORMAT binary", "ENCODING 'UTF8'"


class Told(psycopg2.extensions.cursor):
    """The driver's cursor, which tells what it was asked to COPY."""

    copies: ClassVar[list[str]] = []

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        """As the driver does it."""
        self.copies.append(sql)
        super().copy_expert(sql, file, size)


@contextmanager
def copies(session: Session) -> Iterator[list[str]]:
    """The forms in which rows are copied in the block."""
    driver: Any = Session.connection(session).connection.dbapi_connection
    Told.copies.clear()
    forms: list[str] = []
    driver.cursor_factory = Told
    try:
        yield forms
    finally:
        driver.cursor_factory = None
        forms += [BINARY if BINARY in copy else TEXT for copy in Told.copies]


ARROW_TYPES = {
    "words": (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())),
    "short": (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.large_string())),
    "mood": (pa.string(), pa.dictionary(pa.int8(), pa.string())),
    "amount": (pa.decimal128(20, 8), pa.decimal128(38, 8), pa.decimal256(50, 8)),
    "at": (pa.timestamp("us", "UTC"), pa.timestamp("us", "Asia/Kolkata")),
    "number": (pa.int64(),),
    "flag": (pa.bool_(),),
    "document": (pa.struct({"a": pa.int64(), "b": pa.list_(pa.string())}),),
    "ratio": (pa.float64(),),
    "small": (pa.int16(), pa.int64()),
    "plain": (pa.string(), pa.string_view()),
}
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
values = st.fixed_dictionaries(
    {
        "words": st.none() | texts,
        "short": st.none() | texts.map(lambda one: one[:6]),
        "mood": st.none() | st.sampled_from([mood.value for mood in Mood]),
        "amount": st.none()
        | st.integers(-(10**20) + 1, 10**20 - 1).map(lambda units: Decimal(units).scaleb(-8))
        | st.sampled_from([-(2**63), 2**63, 2**64 - 1, 2**64, -(2**64), 5 * 2**64, 10**20 - 1, 1 - 10**20, 0]).map(
            lambda units: Decimal(units).scaleb(-8)
        ),
        "at": st.none() | st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 29), timezones=st.just(UTC)),  # noqa: DTZ001 # bounds
        "number": st.none() | st.integers(-(2**63), 2**63 - 1),
        "flag": st.none() | st.booleans(),
        "document": st.none() | st.fixed_dictionaries({"a": st.integers(-9, 9), "b": st.none() | st.lists(texts)}),
        "ratio": st.none() | st.floats().map(lambda one: one or 0.0),  # of -0.0 the driver makes 0 in an INSERT
        "small": st.none() | st.integers(-(2**15), 2**15 - 1),
        "plain": st.none() | texts.map(lambda one: one[:10]),
    }
)
MIDDLE: dict[str, Any] = {
    "words": "tab\t, \\N and\r\n",
    "short": "",
    "mood": "calm",
    "amount": Decimal("-0.00000001"),
    "at": datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    "number": -1,
    "flag": False,
    "document": {"a": 1, "b": None},
    "ratio": 5e-324,
    "small": 0,
    "plain": "Ω" * 10,
}


def as_text(session: Session, kind: type[Any], write: Callable[[], object]) -> list[Any]:
    """What the database has after `write`, each value as the server writes it; nothing of it stays."""
    with session.begin_nested() as nested:
        write()
        columns = kind.__table__.columns
        found = session.execute(select(*(cast(column, Text) for column in columns)).order_by(columns["key"])).all()
        nested.rollback()
    return list(found)


@settings(
    deadline=None, max_examples=150, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(values, min_size=1, max_size=5), st.data())
@example([MIDDLE, dict.fromkeys(MIDDLE), MIDDLE], None)
def test_every_value_is_stored_as_a_row_of_its_own_would_store_it(
    server: DatabaseFactory, kind: type[Any], rows: list[dict[str, Any]], data: Any
) -> None:
    """Over the full range of each type, whatever Arrow's type, in chunks, slices and with NULLs."""
    rows = [{"key": number, **row} for number, row in enumerate(rows)]
    types = {
        name: one[0] if data is None else data.draw(st.sampled_from(one), name) for name, one in ARROW_TYPES.items()
    }
    schema = pa.schema({"key": pa.int64(), **types})
    # A slice out of the middle, and each row a chunk of its own.
    around = [{"key": -1, **MIDDLE}]
    cut = [pa.Table.from_pylist([*around, row, *around], schema).slice(1, 1) for row in rows]
    frames = [pa.concat_tables(cut), pa.Table.from_pylist(around + rows + around, schema).slice(1, len(rows))]
    with server.get_session() as session:
        expected = as_text(session, kind, lambda: session.execute(insert(kind), rows))
        for frame in frames:
            with copies(session) as forms:
                assert as_text(session, kind, partial(bulk_create, session, kind, frame)) == expected
            assert forms == [BINARY]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(values, min_size=1, max_size=5), st.sampled_from(("sqlite", "postgresql", "mysql")), st.data())
def test_an_arrays_cells_are_those_of_its_values(rows: list[dict[str, Any]], dialect: str, data: Any) -> None:
    """Where a frame goes by cells, on SQLite for one, each column has the cells of a list, or the same error."""
    layout = layout_on(dialect)
    for name, types in ARROW_TYPES.items():
        column = layout.columns[layout.names.index(name)]
        array = pa.array([row[name] for row in [MIDDLE, *rows]], types[0])[1:]
        array = array.cast(data.draw(st.sampled_from(types), name)) if len(types) > 1 else array

        def outcome(values: Any, column: Any = column) -> Any:
            try:
                return [as_number(cell) for cell in column.cells(values, len(values), Digits(None, {}, 0))]
            except InvalidValueError as error:
                return str(error)

        assert outcome(array) == outcome(array.to_pylist())


@cache
def layout_on(dialect: str) -> CellLayout:
    """The table's cells."""
    with outside_tables():
        return CellLayout(a_kind().__table__, dialect, True)


def as_number(cell: Any) -> Any:
    """A cell; equal numbers are written in several ways."""
    if isinstance(cell, float) and cell != cell:
        return "NaN"
    return Decimal(cell) if type(cell) is str and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?(E[-+]?[0-9]+)?", cell) else cell


def trades_table(rows: list[dict[str, Any]], **types: Any) -> pa.Table:
    """Trades as an Arrow table."""
    money, time = pa.decimal128(20, 8), pa.timestamp("us", "UTC")
    kinds = {"exchange_ts": time, "local_ts": time, "price": money, "size": money} | types
    return pa.Table.from_pylist(rows, pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]]))


def trades(*numbers: int, **other: Any) -> list[dict[str, Any]]:
    """Trades with these numbers."""
    return [trade_values(number, **other) for number in numbers]


def as_pandas(table: pa.Table) -> Any:
    """A pandas frame as its users have it: exact decimals are objects."""
    return table.to_pandas()


def polars_frame(table: pa.Table) -> pl.DataFrame:
    """A polars frame."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


FRAMES: dict[str, Callable[[pa.Table], Any]] = {
    "arrow": lambda table: table,
    "batch": lambda table: table.to_batches()[0],
    "polars": polars_frame,
    "pandas": as_pandas,
    "polars with objects": lambda table: polars_frame(table).with_columns(
        pl.Series("size", table["size"].to_pylist(), dtype=pl.Object)
    ),
    "pandas of Arrow": lambda table: table.to_pandas(types_mapper=pd.ArrowDtype),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_every_kind_of_frame_goes_in_binary(server: DatabaseFactory, frame: Callable[[pa.Table], Any]) -> None:
    """A batch at a time, and the rows are those that a list of dicts gives."""
    rows = trades(*range(20))
    with server.get_session() as session:
        with copies(session) as forms:
            result = PublicTradeRepository(session).bulk_create(frame(trades_table(rows)), batch_size=2)
        assert (result, forms) == (BulkResult(inserted=20), [BINARY] * 3)
        assert stored_trades(session) == rows


def stored_trades(session: Session) -> list[dict[str, Any]]:
    """The stored trades as they were given."""
    table = PublicTrade.__table__
    columns = [column for column in table.columns if column.name != "id"]
    return [dict(row) for row in session.execute(select(*columns).order_by(table.c.exchange_ts)).mappings()]


def test_an_empty_frame_is_no_work(server: DatabaseFactory) -> None:
    """Of any kind."""
    empty = trades_table(trades(1)).slice(0, 0)
    with server.get_session() as session:
        for frame in (empty, pl.from_arrow(empty), empty.to_pandas()):
            assert PublicTradeRepository(session).bulk_create(frame) == BulkResult()


@pytest.mark.parametrize("on_conflict", ["skip", "update", "fill", "error"])
def test_stored_rows_are_met_as_those_of_dicts_are(server: DatabaseFactory, on_conflict: OnConflict) -> None:
    """Counts, notes and rows are the same in every mode, and the stage takes binary rows too."""
    known, given = trades(*range(5)), [*trades(3, 4, size=Decimal(9)), *trades(5, 6, 6)]

    def outcome(rows: Any) -> tuple[Any, list[Any], list[str]]:
        with server.get_session() as session:
            PublicTradeRepository(session).bulk_create(known)
            with copies(session) as forms:
                try:
                    with session.begin_nested():
                        told: Any = PublicTradeRepository(session).bulk_create(rows, on_conflict=on_conflict)
                except IntegrityError as error:
                    told = str(error)
            found = stored_trades(session)
            session.execute(delete(PublicTrade))
            return told, found, forms

    told, found, forms = outcome(trades_table(given))
    assert (told, found) == outcome(given)[:2]
    assert set(forms) == {BINARY}
    assert len(forms) == (1 if on_conflict == "error" else 2)


AT, FAR = datetime(2025, 5, 19, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
WRAPPED = Decimal(4305222527502229219 * 2**64).scaleb(-8)
NOT_BINARY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text for money": ({"price": "1.5"}, {"price": pa.string()}),
    "a float for money": ({"price": 1.5}, {"price": pa.float64()}),
    "True for money": ({"price": True}, {"price": pa.bool_()}),
    "nine places": ({"size": Decimal("1.000000001")}, {"size": pa.decimal128(20, 9)}),
    "an amount that would become 0": ({"size": Decimal("0.000000001")}, {"size": pa.decimal128(20, 9)}),
    "a large amount": ({"size": Decimal(10**12)}, {"size": pa.decimal128(38, 8)}),
    "a negative one": ({"size": Decimal(-(10**12))}, {"size": pa.decimal128(38, 8)}),
    "a huge one": ({"size": Decimal(10**29)}, {"size": pa.decimal128(38, 8)}),
    "one that 64 bits would wrap": ({"size": WRAPPED}, {"size": pa.decimal128(38, 8)}),
    "no value": ({"size": None}, {}),
    "a NUL": ({"trade_id": "a\0b"}, {}),
    "a long text": ({"trade_id": "é" * 51}, {}),
    "no word of the list": ({"side": "buy"}, {}),
    "a number for text": ({"trade_id": 7}, {"trade_id": pa.int64()}),
    "a time without a zone": ({"exchange_ts": AT.replace(tzinfo=None)}, {"exchange_ts": pa.timestamp("us")}),
    "a time too far": ({"exchange_ts": FAR}, {}),
    "a day": ({"exchange_ts": AT.date()}, {"exchange_ts": pa.date32()}),
    "a column that is not there": ({"none": "x"}, {}),
}


@pytest.mark.parametrize("errors", ["raise", "collect"])
@pytest.mark.parametrize(("wrong", "types"), NOT_BINARY.values(), ids=NOT_BINARY)
def test_what_the_binary_form_does_not_hold_goes_as_text(
    server: DatabaseFactory, wrong: dict[str, Any], types: dict[str, Any], errors: Any
) -> None:
    """With the result, the notes and the errors of the same rows as dicts."""
    missing = dict.fromkeys(wrong.keys() - trade_values().keys())
    rows = [*(row | missing for row in trades(*range(3))), trade_values(3) | wrong]
    if set(types) & {"price", "exchange_ts", "trade_id"}:
        rows = rows[3:]
    table = trades_table(rows, **types)

    def outcome(rows: Any) -> tuple[Any, list[str]]:
        with server.get_session() as session, copies(session) as forms:
            try:
                with session.begin_nested():
                    told: Any = PublicTradeRepository(session).bulk_create(rows, errors=errors)
                    told = told, stored_trades(session)
                    session.execute(delete(PublicTrade))
            except InvalidValueError as error:
                told = str(error)
        return told, forms

    told, forms = outcome(table)
    assert told == outcome(table.to_pylist())[0]
    assert BINARY not in forms


def test_what_the_server_refuses_it_refuses_in_the_same_words(server: DatabaseFactory, kind: type[Any]) -> None:
    """Of a type that checks nothing; with errors="collect" the rows beside it are stored."""
    rows = [{"key": number, "plain": "x" * (11 if number == 3 else 10)} for number in range(6)]
    frame = pa.Table.from_pylist(rows)
    with server.get_session() as session:
        said = []
        for given in (frame, rows):
            with pytest.raises(DataError) as refused, session.begin_nested():
                bulk_create(session, kind, given)
            said.append(str(refused.value))
        assert said[0] == said[1]
        assert "character varying(10)" in said[0]
        with copies(session) as forms:
            result = bulk_create(session, kind, frame, errors="collect")
        assert forms[0] == BINARY
        assert (result.inserted, [one.position for one in result.errors]) == (5, [3])
        assert result.errors[0].reason in said[0]


def test_a_column_that_somebody_has_altered_gets_text(server: DatabaseFactory, kind: type[Any]) -> None:
    """A float's column would take the bytes of a whole number for those of a float; so would a stage made before."""
    frame = pa.table({"key": [1, 2], "number": [3, 4]})
    for altered, form in (("double precision", TEXT), ("bigint", BINARY), ("double precision", TEXT)):
        with server.get_session() as session:
            session.execute(text(f"ALTER TABLE kinds ALTER number TYPE {altered}"))
        for on_conflict in ("error", "update"):
            with server.get_session() as session:
                session.execute(delete(kind))
                bulk_create(session, kind, frame.slice(0, 1))
                session.execute(text("UPDATE kinds SET number = 9"))
                with copies(session) as forms:
                    bulk_create(session, kind, frame.slice(on_conflict == "error"), on_conflict=on_conflict)
                assert set(forms) == {form}
                numbers = session.scalars(text("SELECT number::bigint FROM kinds ORDER BY key")).all()
                assert numbers == [9 if on_conflict == "error" else 3, 4]


def test_another_encoding_of_the_connection_gets_text(server: DatabaseFactory, kind: type[Any]) -> None:
    """In binary form the server would read UTF-8 as the connection's own."""
    with server.get_session() as session:
        session.execute(text("SET LOCAL client_encoding TO latin1"))
        with copies(session) as forms:
            bulk_create(session, kind, pa.table({"key": [1], "words": ["né"]}))
        assert forms == [TEXT]
    with server.get_session() as session:
        assert session.scalars(select(kind.words)).all() == ["né"]


def test_numpy_is_asked_of_nobody(server: DatabaseFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a frame goes as text."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.delitem(sys.modules, "shared.db.value_forms.binary", raising=False)
    monkeypatch.setattr(cells, "_binary", cells._binary.__wrapped__)  # which remembers what is installed
    with server.get_session() as session, copies(session) as forms:
        assert PublicTradeRepository(session).bulk_create(trades_table(trades(1, 2))).inserted == 2
    assert forms == [TEXT]


def executions(run: Any, numbers: range, **other: Any) -> list[dict[str, Any]]:
    """Executions, some of which have no fee."""
    return [execution_values(run, number, exec_fee=None if number % 3 else Decimal(1), **other) for number in numbers]


def test_a_users_frame_holds_his_own_rows_alone(server: DatabaseFactory) -> None:
    """Under the policies too; another's row among them is refused, and nothing is written."""
    own, foreign = two_runs(server, executions=1)
    kinds: dict[str, Any] = {
        name: pa.decimal128(20, 8) for name in ("exec_price", "exec_qty", "exec_fee", "closed_pnl")
    }
    kinds["exchange_ts"] = pa.timestamp("us", "UTC")

    def frame(rows: list[dict[str, Any]]) -> pa.Table:
        return pa.table({name: pa.array([row[name] for row in rows], kinds.get(name)) for name in rows[0]})

    for start in (100, 300):
        for _ in with_and_without_policies(server):
            start += 50
            mine, others = executions(own, range(start, start + 40)), executions(foreign, range(start, start + 1))
            borrowed = [mine[0] | {"account_id": foreign.account_id}]
            with server.get_session(user_id="ann") as session:
                repository = PrivateExecutionRepository(session)
                for strange in (others, borrowed):
                    for kind, errors in product((frame, pd.DataFrame), get_args(OnBadRow)):
                        with pytest.raises(TenantViolation):
                            repository.bulk_create(kind(mine + strange), errors=errors)
                with copies(session) as forms:
                    assert repository.bulk_create(frame(mine)) == BulkResult(inserted=40)
                assert forms == [BINARY]
                found = [row.exec_id for row in repository.iter_run_range(own.run_id)]
                assert set(found) >= {row["exec_id"] for row in mine}
                session.execute(delete(PrivateExecution).where(PrivateExecution.exec_id.in_(found)))


class Forged(str):
    """Text that claims to be another."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other == "run-ann"

    def __hash__(self) -> int:
        return hash("run-ann")


def test_an_object_in_a_frame_is_not_believed_whose_it_is(server: DatabaseFactory) -> None:
    """A pandas frame holds any object, one too that claims to be the user's own run."""
    own, _ = two_runs(server, executions=1)
    rows = executions(own, range(100, 103))
    rows[1] |= {"run_id": Forged("run-bob")}
    frame = pd.DataFrame(rows).astype({"symbol": "string"})
    frame["run_id"] = pd.Series([row["run_id"] for row in rows], dtype=object)
    with server.get_session(user_id="ann") as session, pytest.raises(TenantViolation):
        PrivateExecutionRepository(session).bulk_create(frame)


def test_a_frame_has_each_column_once(session: Session) -> None:
    """Of two of a name one would be lost without a word; on every database."""
    table = trades_table(trades(1))
    for frame in (table.append_column("price", table["price"]), table.append_column("price", table["price"]).to_pandas):
        with pytest.raises(InvalidValueError, match="more than one column 'price'"):
            PublicTradeRepository(session).bulk_create(frame() if callable(frame) else frame)


def test_a_pandas_frames_missing_values_are_null(session: Session, sample_run: Any) -> None:
    """NA, NaT and NaN, which pandas has for no value; on every database."""
    rows = [execution_values(sample_run, number, raw_json={"n": number}) for number in range(4)]
    frame = pd.DataFrame(rows)
    frame["closed_pnl"] = pd.Series([None, pd.NA, float("nan"), Decimal(1)], dtype=object)
    frame["order_link_id"] = pd.Series(["a", None, pd.NA, "b"], dtype="string")
    assert bulk_create(session, PrivateExecution, frame).inserted == 4
    found = session.scalars(select(PrivateExecution).order_by(PrivateExecution.exec_id)).all()
    assert [row.closed_pnl for row in found] == [None, None, None, Decimal(1)]
    assert [row.order_link_id for row in found] == ["a", None, None, "b"]
    assert [row.raw_json for row in found] == [row["raw_json"] for row in rows]
    assert [row.exchange_ts for row in found] == [row["exchange_ts"] for row in rows]


class Loud(CheckedText):
    """A type that another package derives, and that stores something else."""

    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """In capitals."""
        return None if value is None else str(value).upper()


def test_a_type_that_derives_from_one_of_ours_has_its_say(empty_db: DatabaseFactory) -> None:
    """A frame's column is not taken past what it makes of a value; on every database."""
    with outside_tables():
        body = {
            "__tablename__": "shouts",
            "__ownership__": SHARED_BY_ALL,
            "key": mapped_column(CheckedInteger(), primary_key=True, autoincrement=False),
            "words": mapped_column(Loud(), nullable=False),
        }
        kind: Any = type("Shout", (Base,), body)
        empty_db.create_tables()
        with empty_db.get_session() as session:
            bulk_create(session, kind, pa.table({"key": [1, 2], "words": ["a", "b"]}))
            assert session.scalars(select(kind.words).order_by(kind.key)).all() == ["A", "B"]


def test_a_large_frame_takes_the_memory_of_a_batch(server: DatabaseFactory) -> None:
    """Beside the frame itself, which its owner holds."""
    first, count = trades_table(trades(0)), 60_000
    when = pa.array([AT + timedelta(milliseconds=number) for number in range(count)], pa.timestamp("us", "UTC"))
    whole = pa.table(
        {name: when if name.endswith("_ts") else pa.repeat(first[name][0], count) for name in first.column_names}
    )
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    with server.get_session() as session:
        PublicTradeRepository(session).bulk_create(first)
        pa.set_memory_pool(pool)
        tracemalloc.start()
        try:
            assert PublicTradeRepository(session).bulk_create(whole).inserted == count - 1
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(before)
    assert peak + (pool.max_memory() or 0) < 6_000_000
