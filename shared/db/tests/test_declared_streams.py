"""What follows for a table from the `__stream__` that another package declares."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    URL,
    Date,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    Numeric,
    String,
    UniqueConstraint,
    Uuid,
    select,
    text,
)
from sqlalchemy import Enum as SqlEnum
from sqlalchemy.orm import mapped_column

from shared.db import (
    SHARED_BY_ALL,
    Base,
    BaseRepository,
    BoundedString,
    CheckedBoolean,
    CheckedInteger,
    DatabaseFactory,
    DeclarationError,
    InputError,
    InvalidValueError,
    Json,
    Money,
    Ownership,
    PublicTrade,
    Recorder,
    Repository,
    Run,
    RunRepository,
    Stream,
    StreamCoverage,
    TenantScopeError,
    TenantViolation,
    UTCDateTime,
    cursor_of,
)
from shared.db.column_types import CheckedType
from shared.db.operations.copy_database import copy_database
from shared.db.operations.export import export_rows
from shared.db.operations.import_rows import import_rows
from shared.db.operations.purge import purge_rows
from shared.db.operations.replaying import replay
from shared.db.tables import OWNERSHIP
from shared.db.tests.fleet import MYSQL, PLACES, fill
from shared.db.tests.outside import outside_tables, source_at
from shared.db.value_forms.files import FORMATS, Form, Format, optional

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
BY_RUN = Stream(by="run_id", time="placed_ts", tie="order_id")


@pytest.fixture(autouse=True)
def _forgotten_afterwards() -> Iterator[None]:
    """No table of a test is there for the next one."""
    with outside_tables():
        yield


class Ratio(CheckedType):
    """A type that another package brings: a fraction, kept as text."""

    impl = String(40)
    cache_ok = True

    @property
    def value_type(self) -> type[Any]:
        """Fractions."""
        return Fraction

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """The text."""
        return None if value is None else str(Fraction(value))

    def process_result_value(self, value: Any, dialect: Dialect) -> Fraction | None:
        """The way back."""
        return None if value is None else Fraction(value)

    def line_writer(self) -> Callable[[Any], str | None]:
        """The text."""
        return lambda value: str(value) if isinstance(value, Fraction) else None

    def line_reader(self) -> Callable[[str], Fraction]:
        """The way back."""
        return Fraction

    def written(self, file: Format, *, nullable: bool) -> Form:
        """The text."""
        return optional(str)

    def read(self, file: Format, *, nullable: bool) -> Form:
        """The way back."""
        return lambda value: Fraction(value) if value else None


def an_order(stream: Any = BY_RUN, **columns: Any) -> type[Any]:
    """A table as another package declares it: with an owner, a stream, and columns of many types."""
    body: dict[str, Any] = {
        "__tablename__": "orders",
        "__ownership__": Ownership("run_id"),
        "__stream__": stream,
        "__table_args__": (UniqueConstraint("run_id", "placed_ts", "order_id"),),
        "id": mapped_column(CheckedInteger(), primary_key=True, autoincrement=True),
        "run_id": mapped_column(BoundedString(36), ForeignKey("runs.run_id", ondelete="CASCADE"), nullable=False),
        "order_id": mapped_column(BoundedString(50), nullable=False),
        "placed_ts": mapped_column(UTCDateTime(), nullable=False),
        "filled_ts": mapped_column(UTCDateTime(), nullable=True),
        "price": mapped_column(Money(), nullable=False),
        "reduce_only": mapped_column(CheckedBoolean(), nullable=False),
        "leverage": mapped_column(Float(), nullable=True),
        "day": mapped_column(Date(), nullable=True),
        "group": mapped_column(Uuid(), nullable=True),
        "odds": mapped_column(Ratio(), nullable=True),
        "message": mapped_column(Json(), nullable=True),
    }
    return type("Order", (Base,), body | columns)


def a_ticker() -> type[Any]:
    """One that is shared by all, told apart by a number, and without a number of the database's own."""
    body = {
        "__tablename__": "tickers",
        "__ownership__": SHARED_BY_ALL,
        "__stream__": Stream(by="symbol", time="seen_ts", tie="seq"),
        "__table_args__": (UniqueConstraint("symbol", "seen_ts", "seq"),),
        "key": mapped_column(BoundedString(80), primary_key=True),
        "symbol": mapped_column(BoundedString(32), nullable=False),
        "seen_ts": mapped_column(UTCDateTime(), nullable=False),
        "seq": mapped_column(CheckedInteger(), nullable=False),
        "last": mapped_column(Money(), nullable=False),
    }
    return type("Ticker", (Base,), body)


def order(number: int, run: str = "run-ann", **other: Any) -> dict[str, Any]:
    """One of ann's orders, a minute after the one before; two share each minute."""
    return {
        "run_id": run,
        "order_id": f"order-{number:03}",
        "placed_ts": START + timedelta(minutes=number // 2),
        "filled_ts": None if number % 2 else START,
        "price": Decimal(number + 1) / 8,
        "reduce_only": number % 3 == 0,
        "leverage": number / 4,
        "day": date(2026, 1, 1 + number % 20),
        "group": UUID(int=number),
        "odds": Fraction(number, 3),
        "message": {"n": number},
    } | other


def ticker(number: int, symbol: str = "BTCUSDT") -> dict[str, Any]:
    """A price; ten share a second, so that their numbers as text would be in another order."""
    seen = START + timedelta(seconds=number // 20)
    return {"key": f"{symbol}-{number}", "symbol": symbol, "seen_ts": seen, "seq": number, "last": Decimal(number)}


@pytest.fixture(params=(*PLACES, *MYSQL))
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A filled database with the two tables; with policies in the fourth case."""
    with DatabaseFactory(source_at(request, tmp_path)) as db:
        an_order(), a_ticker()
        db.create_tables()
        fill(db)
        if request.param == "policies":
            db.enable_row_security()
        yield db


def model(name: str) -> Any:
    """One of the two classes."""
    (found,) = [declared for declared in OWNERSHIP if declared.__name__ == name]
    return found


def ids(rows: Any) -> list[int]:
    """The numbers of orders, in their order."""
    return [int(row.order_id[-3:]) for row in rows]


def stored(db: DatabaseFactory, *rows: dict[str, Any]) -> None:
    """Store orders of ann."""
    with db.get_session(user_id="ann") as session:
        Repository(session, model("Order")).bulk_create(rows)


# What a declaration may say


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (Stream(by="symbol", time="placed_ts", tie="order_id"), "no column symbol"),
        (Stream(by="run_id", time="price", tie="order_id"), "no time"),
        (Stream(by="run_id", time="filled_ts", tie="order_id"), "may be NULL"),
        (Stream(by="run_id", time="placed_ts", tie="price"), "rows may be alike"),
        (Stream(by="run_id", time="placed_ts", tie="order_id", exported=("none",)), "no column none"),
        (Stream(by="run_id", time="placed_ts"), "rows may be alike in run_id, placed_ts"),
        ("run_id", "no Stream"),
    ],
    ids=range(7),
)
def test_a_stream_that_cannot_be_is_refused_when_the_class_is_made(stream: Any, told: str) -> None:
    """With what is wrong; no table is left behind."""
    with pytest.raises(DeclarationError, match=told):
        an_order(stream)
    assert "orders" not in Base.metadata.tables


def test_a_key_that_holds_for_a_part_of_the_rows_makes_no_order() -> None:
    """Of the other rows it says nothing."""
    partial_key = Index("uq_part", "run_id", "placed_ts", "order_id", unique=True, sqlite_where=text("price > 1"))
    with pytest.raises(DeclarationError, match="rows may be alike"):
        an_order(__table_args__=(partial_key,))


def test_a_model_without_a_stream_is_named(house: DatabaseFactory) -> None:
    """By whatever asks for one, with what to add; its rows can be made and read all the same."""
    with house.get_session(user_id="ann") as session:
        runs = Repository(session, Run)
        assert [run.run_id for run in runs.get_all()] == ["run-ann"]
        for ask in (runs.iter_range, runs.to_arrow, runs.latest, runs.coverage):
            with pytest.raises(InvalidValueError, match="Run is no stream"):
                ask()
    with pytest.raises(InvalidValueError, match="Run is no stream"):
        Recorder(house, Run, user_id="ann")
    with pytest.raises(InvalidValueError, match="no row of a stream"):
        cursor_of(Run())


# Columns of any type

_EMPTY = {"postgresql": "empty_postgresql_url", "mysql": "mysql_url"}


class Mood(Enum):
    """Words of an enumeration of SQLAlchemy's."""

    CALM = "calm"
    WILD = "wild"


@pytest.mark.parametrize("through", ["postgresql", *MYSQL])
def test_columns_of_sqlalchemys_own_types_are_copied(
    tmp_path: Path, request: pytest.FixtureRequest, postgresql_url: URL, through: str
) -> None:
    """To each kind of database, and back: every value is there, and the copy was compared with its source."""
    an_order(
        fee=mapped_column(Numeric(12, 4), nullable=True),
        local=mapped_column(DateTime(), nullable=True),
        sent=mapped_column(DateTime(timezone=True), nullable=True),
        seal=mapped_column(LargeBinary(), nullable=True),
        mood=mapped_column(SqlEnum(Mood), nullable=True),
    )
    kind = model("Order")
    more: dict[str, Any] = {
        "fee": Decimal("-0.1250"),
        "local": datetime(2026, 1, 2, 3, 4, 5, 678),  # noqa: DTZ001 # of a column without a zone
        "sent": START,
        "seal": b"\0\\ab\t\xff",
        "mood": Mood.WILD,
    }
    none: dict[str, Any] = dict.fromkeys(("leverage", "day", "group", "odds", "message", *more))
    given = [order(0, **more), order(1, **none)]

    def rows_of(db: DatabaseFactory) -> list[dict[str, Any]]:
        with db.get_session() as session:
            rows = session.scalars(select(kind).order_by(kind.order_id)).all()
            values = [{name: getattr(row, name) for name in given[0]} for row in rows]
        # SQLite has no zone to give back.
        return [one | {"sent": one["sent"] and one["sent"].replace(tzinfo=UTC)} for one in values]

    with (
        DatabaseFactory(f"sqlite:///{tmp_path / 'first.db'}") as file,
        DatabaseFactory(postgresql_url) as server,
        DatabaseFactory(f"sqlite:///{tmp_path / 'second.db'}") as second,
        DatabaseFactory(request.getfixturevalue(_EMPTY[through])) as other,
    ):
        file.create_tables()
        fill(file)
        stored(file, *given)
        assert rows_of(file) == given
        for source, target in ((file, other), (other, server), (server, other), (other, second)):
            target.drop_tables()
            copy_database(source, target)
            assert rows_of(target) == given


# Repositories without a class of their own


def test_a_repository_takes_the_model(house: DatabaseFactory) -> None:
    """`Repository(session, Order)` and `BaseRepository(session, Order)` do what one with a class of its own does."""
    kind = model("Order")
    with house.get_session() as session:
        for repository in (Repository(session, kind, "ann"), BaseRepository(session, kind, user_id="ann")):
            made = repository.create(kind(**order(len(repository.get_all()))))
            key: int = made.id
            assert repository.get_by_id(key) is made
            assert type(repository)(session, kind, "bob").get_by_id(key) is None
        with pytest.raises(TenantScopeError):
            Repository(session, kind).get_all()
        assert len(Repository.across_users(session, kind).get_all()) == 2
        with pytest.raises(TenantViolation):
            Repository(session, kind, "bob").bulk_create([order(7)])
        with pytest.raises(InvalidValueError, match="is of Run, not of Order"):
            RunRepository(session, kind)
        with pytest.raises(InvalidValueError, match="name the class"):
            Repository(session)


# Ranges


def test_ranges_are_read_in_order_from_any_row_on(house: DatabaseFactory) -> None:
    """Both ways, page by page, as rows and as objects; columns of every type come back as they were given."""
    given = [order(number) for number in range(9)]
    stored(house, *reversed(given))
    with house.get_session(user_id="ann") as session:
        orders = Repository(session, model("Order"))
        rows = list(orders.iter_range("run-ann", page_size=2))
        assert [row._asdict() for row in rows] == [
            {name: value for name, value in one.items() if name != "message"} for one in given
        ]
        assert ids(orders.iter_range(run_id="run-ann", reverse=True, page_size=4)) == list(range(8, -1, -1))
        assert ids(orders.iter_range("run-ann", after=rows[3].cursor, page_size=1)) == [4, 5, 6, 7, 8]
        objects = list(orders.iter_range("run-ann", as_objects=True, page_size=2))
        assert [one.message for one in objects] == [one["message"] for one in given]
        assert [cursor_of(one) for one in objects] == [cursor_of(row) for row in rows]
        minute = START + timedelta(minutes=1)
        assert ids(orders.iter_range("run-ann", minute, minute)) == [2, 3]
        assert ids(orders.iter_range("run-ann", reduce_only=True)) == [0, 3, 6]
        assert ids([orders.latest("run-ann"), orders.at_or_before("run-ann", minute)]) == [8, 3]
        assert [gap.length for gap in orders.gaps("run-ann", 30)] == [timedelta(minutes=1)] * 4
        for wrong in ({"key": None}, {"key": "run-ann", "nonsense": 1}, {"key": "run-ann", "after": "x"}):
            with pytest.raises(InvalidValueError):
                list(orders.iter_range(**wrong))


def test_ranges_of_another_user_are_empty(house: DatabaseFactory) -> None:
    """Rows, objects, frames, coverage, gaps and the newest."""
    stored(house, order(0), order(1))
    with house.get_session(user_id="bob") as session:
        orders = Repository(session, model("Order"))
        assert list(orders.iter_range("run-ann")) == []
        assert list(orders.iter_range("run-ann", as_objects=True)) == []
        assert orders.to_arrow("run-ann").num_rows == 0
        assert orders.coverage() == []
        assert orders.latest("run-ann") is None
        assert [gap.length for gap in orders.gaps("run-ann", 1, START, START + timedelta(hours=1))] == [
            timedelta(hours=1)
        ]


def test_a_tie_that_is_a_number_is_ordered_as_one(house: DatabaseFactory) -> None:
    """From page to page and from a cursor on, in a table whose rows the database gives no number."""
    tickers = model("Ticker")
    with house.get_session(user_id="ann") as session:
        repository = Repository(session, tickers)
        repository.bulk_create([ticker(number) for number in range(45)] + [ticker(3, "ETHUSDT")])
        rows = list(repository.iter_range("BTCUSDT", page_size=4))
        assert [row.seq for row in rows] == list(range(45))
        behind = repository.iter_range("BTCUSDT", after=rows[9].cursor, page_size=7)
        before = repository.iter_range("BTCUSDT", after=rows[9].cursor, reverse=True)
        assert [row.seq for row in behind] == [*range(10, 45)]
        assert [row.seq for row in before] == [*range(8, -1, -1)]
        assert repository.coverage() == [
            StreamCoverage("BTCUSDT", START, START + timedelta(seconds=2), 45),
            StreamCoverage("ETHUSDT", START, START, 1),
        ]


def test_a_range_does_not_grow_while_it_is_read(house: DatabaseFactory) -> None:
    """Whoever writes ahead of where he reads comes to an end, in either direction."""
    with house.get_session() as session:
        tickers = Repository(session, model("Ticker"))
        tickers.bulk_create([ticker(number) for number in range(100, 110)])
        for reverse, step in ((False, 1), (True, -1)):
            for read, row in enumerate(tickers.iter_range("BTCUSDT", reverse=reverse, page_size=2), 1):
                tickers.bulk_create([ticker(row.seq + step * 1000 * read)])
                assert read < 50


def test_where_there_is_one_row_an_instant_no_tie_is_needed(house: DatabaseFactory) -> None:
    """Pages, cursors and purge go by the time alone."""
    body: dict[str, Any] = {
        "__tablename__": "marks",
        "__ownership__": SHARED_BY_ALL,
        "__stream__": Stream(by="symbol", time="seen_ts"),
        "__table_args__": (UniqueConstraint("symbol", "seen_ts"),),
        "key": mapped_column(BoundedString(80), primary_key=True),
        "symbol": mapped_column(BoundedString(32), nullable=False),
        "seen_ts": mapped_column(UTCDateTime(), nullable=False),
    }
    marks: type[Any] = type("Mark", (Base,), body)
    house.create_tables()
    times = [START + timedelta(seconds=number) for number in range(7)]
    with house.get_session() as session:
        repository = Repository(session, marks)
        repository.bulk_create([{"key": str(when), "symbol": "A", "seen_ts": when} for when in times])
        rows = list(repository.iter_range("A", page_size=2))
        assert [row.seen_ts for row in rows] == times
        assert [row.seen_ts for row in repository.iter_range("A", after=rows[2].cursor, page_size=2)] == times[3:]
        assert [row.seen_ts for row in repository.iter_range("A", after=rows[2].cursor, reverse=True)] == times[1::-1]
    assert purge_rows(house, marks, times[5]).rows == 5


def test_frames_hold_what_the_rows_hold(house: DatabaseFactory) -> None:
    """With a type for each column, on every database the same."""
    given = [order(number) for number in range(5)] + [order(9, leverage=None, day=None, group=None)]
    stored(house, *given)
    with house.get_session(user_id="ann") as session:
        table = Repository(session, model("Order")).to_arrow("run-ann")
    kinds = [str(table.schema.field(name).type) for name in ("placed_ts", "price", "reduce_only", "leverage", "day")]
    assert kinds == [
        "timestamp[us, tz=UTC]",
        "decimal128(20, 8)",
        "bool",
        "double",
        "date32[day]",
    ]
    assert table.to_pylist() == [
        {
            name: str(value) if isinstance(value, (UUID, Fraction)) else value
            for name, value in one.items()
            if name != "message"
        }
        for one in given
    ]


# Recording, files, purge, health


def test_a_recorder_writes_any_stream(house: DatabaseFactory, tmp_path: Path) -> None:
    """Twice is once; what a rule refuses is in the dead letters, and goes in by replay once it is corrected."""
    with Recorder(house, model("Order"), user_id="ann", spool=tmp_path / "spool") as recorder:
        recorder.add([order(0), order(1, price="much"), order(0)])
        recorder.flush()
        stats = recorder.stats()
    assert (stats.written, stats.duplicates, stats.rejected, stats.newest_written) == (1, 1, 1, START)
    letters = tmp_path / "spool" / "rejected.jsonl"
    said = json.loads(letters.read_text())
    said["row"]["price"] = "0.25"
    letters.write_text(json.dumps(said) + "\n")
    assert replay(house, letters).inserted == 1
    with house.get_session(user_id="ann") as session:
        rows = list(Repository(session, model("Order")).iter_range("run-ann", as_objects=True))
        assert [(one.order_id, one.day, one.group, one.message) for one in rows] == [
            (one["order_id"], one["day"], one["group"], one["message"]) for one in (order(0), order(1))
        ]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_of_any_stream_reads_back_equal(house: DatabaseFactory, tmp_path: Path, kind: Format) -> None:
    """Every column of every type, NULL included; a second import changes nothing, and another user's is refused."""
    orders, file = model("Order"), tmp_path / f"orders.{kind}"
    given = [order(number) for number in range(5)] + [order(9, leverage=None, day=None, group=None, message=None)]
    stored(house, *given)

    def rows() -> list[dict[str, Any]]:
        with house.get_session(user_id="ann") as session:
            found = Repository(session, orders).iter_range("run-ann", as_objects=True)
            return [{name: getattr(one, name) for name in given[0]} for one in found]

    before = rows()
    assert before == given
    assert export_rows(house, file, orders, "run-ann", kind=kind, user_id="ann") == 6
    assert import_rows(house, file, orders, user_id="ann").skipped == 6
    with pytest.raises(TenantViolation):
        import_rows(house, file, orders, user_id="bob")
    with pytest.raises(InputError, match="holds rows of orders, not of public_trades"):
        import_rows(house, file, PublicTrade)
    assert purge_rows(house, orders, key="run-ann", user_id="bob").rows == 0
    assert purge_rows(house, orders, key="run-ann", user_id="ann").rows == 6
    assert rows() == []
    assert import_rows(house, file, orders, user_id="ann").inserted == 6
    assert rows() == before


def test_purge_takes_what_is_older_of_every_key(house: DatabaseFactory) -> None:
    """Strictly, and nothing without being told what."""
    tickers = model("Ticker")
    with house.get_session() as session:
        Repository(session, tickers).bulk_create([ticker(n, symbol) for n in range(45) for symbol in ("A", "B")])
    assert purge_rows(house, tickers, START + timedelta(seconds=1), dry_run=True).rows == 40
    assert purge_rows(house, tickers, START + timedelta(seconds=1)).rows == 40
    assert purge_rows(house, tickers, START + timedelta(seconds=2), "B").rows == 20
    with house.get_session() as session:
        assert [each.count for each in Repository(session, tickers).coverage()] == [25, 5]
    with pytest.raises(InvalidValueError, match="everything would go"):
        purge_rows(house, tickers)


def test_health_tells_the_newest_row_of_every_stream(house: DatabaseFactory) -> None:
    """Of tables of other packages as of the built-in ones, where an index leads to it."""
    stored(house, *(order(number) for number in range(4)))
    found = {(each.table, each.key): each.newest for each in house.health().streams}
    assert found["orders", "run-ann"] == START + timedelta(minutes=1)
    assert ("private_executions", "acc-ann") in found
