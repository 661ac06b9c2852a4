"""Ranges of trades and executions, read in flat memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, delete, event, func, select, text, update
from sqlalchemy.orm import Session

from shared.db import (
    DatabaseCorruptError,
    DatabaseFactory,
    DatabaseSettings,
    DatabaseUnreachableError,
    ExecutionRow,
    InvalidValueError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    TenantScopeError,
    TradeRow,
    cursor_of,
)
from shared.db.tests.support import run_on_server, trade_values, two_runs, with_and_without_policies

START = datetime(2025, 5, 19, tzinfo=UTC)
TRADE_FIELDS = TradeRow._fields

# Amounts of 15 digits, which every database holds: with 8 places, and with 3 for the large ones.
units = st.integers(1, 10**15 - 1)
amounts = st.one_of(units.map(lambda number: Decimal(number).scaleb(-8)), units.map(lambda n: Decimal(n).scaleb(-3)))
instants = st.datetimes(
    datetime(1600, 1, 1),  # noqa: DTZ001 # hypothesis wants bounds without a zone
    datetime(2200, 1, 1),  # noqa: DTZ001 # likewise
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5))]),
)
trades = st.builds(
    trade_values,
    # Few ids and times: ties are what an order has to break.
    trade_id=st.text("ab/Ω'\n", min_size=1, max_size=3),
    exchange_ts=st.one_of(instants, st.integers(0, 3).map(lambda n: START + timedelta(microseconds=n))),
    local_ts=instants,
    side=st.sampled_from(["Buy", "Sell"]),
    price=amounts,
    size=amounts,
)


def key(row: Any) -> tuple[datetime, str]:
    """What a range of trades is ordered by."""
    return row.exchange_ts, row.trade_id


def fill(session: Session, count: int, **values: Any) -> list[str]:
    """Store that many trades, one a millisecond; their ids in order."""
    rows = [trade_values(number, trade_id=f"{number:06}", **values) for number in range(count)]
    PublicTradeRepository(session).bulk_create(rows)
    return [row["trade_id"] for row in rows]


def ids(rows: Iterator[TradeRow]) -> list[str]:
    """The rows' trade ids."""
    return [row.trade_id for row in rows]


def test_plain_rows_have_the_values_of_mapped_objects(db: DatabaseFactory) -> None:
    """Every field of a plain row equals the attribute that the ORM loads, digit for digit, in the promised order."""

    @settings(max_examples=30, deadline=None)
    @given(st.lists(trades, max_size=12, unique_by=lambda row: (row["exchange_ts"], row["trade_id"])))
    def check(given_rows: list[dict[str, Any]]) -> None:
        with db.get_session() as session:
            session.execute(delete(PublicTrade))
            session.add_all(PublicTrade(**row) for row in given_rows)
            session.flush()
            session.expunge_all()
            rows = list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT", page_size=5))
            objects = sorted(session.scalars(select(PublicTrade)), key=key)
            shown = [tuple(str(getattr(entity, name)) for name in TRADE_FIELDS) for entity in objects]
            assert rows == [tuple(getattr(entity, name) for name in TRADE_FIELDS) for entity in objects]
            assert [tuple(map(str, row)) for row in rows] == shown

    check()


def test_plain_rows_round_as_mapped_objects_do(session: Session) -> None:
    """What SQL computed into a money column, finer than 8 places or above what floats tell apart, reads alike too."""
    prices = [Decimal(text) for text in ("0.00000001", "0.00000003", "7", "16777217.00000001", "999999999999.99")]
    for number, price in enumerate(prices):
        session.add(PublicTrade(**trade_values(number, trade_id=str(number), price=price)))
    session.flush()
    for divisor in (1, 2, 3):
        for page in (1, 5):
            session.execute(update(PublicTrade).values(size=PublicTrade.price / divisor))
            rows = list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT", page_size=page))
            session.expunge_all()
            expected = session.scalars(select(PublicTrade).order_by(PublicTrade.exchange_ts)).all()
            assert [str(row.size) for row in rows] == [str(entity.size) for entity in expected]


def test_an_iteration_resumes_behind_any_row_in_either_direction(db: DatabaseFactory) -> None:
    """Reading up to any row, and then from its cursor on, gives every row once and in order, whatever the pages."""

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(trades, min_size=1, max_size=12, unique_by=lambda row: (row["exchange_ts"], row["trade_id"])),
        st.integers(1, 12),
        st.integers(1, 4),
        st.booleans(),
        st.booleans(),
    )
    def check(given_rows: list[dict[str, Any]], taken: int, page: int, reverse: bool, objects: bool) -> None:
        with db.get_session() as session:
            session.execute(delete(PublicTrade))
            session.add_all(PublicTrade(**row) for row in given_rows)
            session.flush()
            repository = PublicTradeRepository(session)
            how: dict[str, Any] = {"reverse": reverse, "as_objects": objects, "page_size": page}
            head = list(islice(repository.iter_symbol_range("BTCUSDT", **how), taken))
            tail = list(repository.iter_symbol_range("BTCUSDT", after=cursor_of(head[-1]), **how))
            assert [key(row) for row in (*head, *tail)] == sorted(map(key, (*head, *tail)), reverse=reverse)
            assert len(head) + len(tail) == len(given_rows)

    check()


def test_bounds_are_inclusive_and_of_any_zone(session: Session) -> None:
    """Rows exactly at `start` and at `end` belong to the range, whichever zone the bounds are written in."""
    fill(session, 10)
    repository = PublicTradeRepository(session)
    start, end = START + timedelta(milliseconds=2), START + timedelta(milliseconds=5)
    assert ids(repository.iter_symbol_range("BTCUSDT", start, end)) == ["000002", "000003", "000004", "000005"]
    zone = timezone(timedelta(hours=5, minutes=30))
    assert ids(repository.iter_symbol_range("BTCUSDT", end.astimezone(zone), None))[0] == "000005"
    assert ids(repository.iter_symbol_range("BTCUSDT", end, start)) == []
    assert ids(repository.iter_symbol_range("ETHUSDT")) == []


@pytest.mark.parametrize("reverse", [False, True])
def test_a_cursor_outside_the_bounds_does_not_widen_them(session: Session, reverse: bool) -> None:
    """`after` narrows a range and never opens it."""
    fill(session, 10)
    repository = PublicTradeRepository(session)
    rows = list(repository.iter_symbol_range("BTCUSDT", reverse=reverse))
    start, end = rows[5].exchange_ts, rows[5].exchange_ts
    how: dict[str, Any] = {"reverse": reverse}
    before, behind = rows[0].cursor, rows[-1].cursor
    assert list(repository.iter_symbol_range("BTCUSDT", start, end, after=before, **how)) == [rows[5]]
    assert list(repository.iter_symbol_range("BTCUSDT", start, end, after=behind, **how)) == []
    assert list(repository.iter_symbol_range("BTCUSDT", start, end, after=rows[5].cursor, **how)) == []


def test_bad_input_is_refused_at_the_call(session: Session) -> None:
    """Naive bounds, a symbol that is none, an invented cursor and an empty page raise before any row is asked for."""
    repository = PublicTradeRepository(session)
    naive = datetime(2025, 5, 19)  # noqa: DTZ001 # what the test is about
    for call in (
        lambda: repository.iter_symbol_range("BTCUSDT", naive),
        lambda: repository.iter_symbol_range("BTCUSDT", None, naive),
        lambda: repository.iter_symbol_range("X" * 33),
        lambda: repository.iter_symbol_range(None),  # type: ignore[call-overload] # what the test is about
        lambda: repository.iter_symbol_range("BTCUSDT", after="yesterday"),
        lambda: repository.iter_symbol_range("BTCUSDT", after="2025-05-19T00:00:00/naive"),
        lambda: repository.iter_symbol_range("BTCUSDT", page_size=0),
        lambda: repository.iter_symbol_range("BTCUSDT", page_size=2.5),  # type: ignore[call-overload] # likewise
    ):
        with pytest.raises(InvalidValueError):
            call()


def test_a_cursor_is_the_same_for_a_row_and_its_object(session: Session) -> None:
    """A cursor is printable text, and plain rows and mapped objects agree about it."""
    fill(session, 1)
    repository = PublicTradeRepository(session)
    (row,) = repository.iter_symbol_range("BTCUSDT")
    (entity,) = repository.iter_symbol_range("BTCUSDT", as_objects=True)
    assert row.cursor == cursor_of(row) == cursor_of(entity)
    assert row.cursor.isprintable()


def test_objects_are_the_sessions_own(session: Session) -> None:
    """Objects come from the session: a change to one is written with its next flush."""
    fill(session, 5)
    for trade in PublicTradeRepository(session).iter_symbol_range("BTCUSDT", as_objects=True, page_size=2):
        trade.side = "Sell"
    session.flush()
    assert session.scalar(select(func.count()).where(PublicTrade.side == "Sell")) == 5


def test_what_is_pending_in_the_session_is_part_of_the_range(session: Session) -> None:
    """Objects that were added and not flushed yet are read too, as in every other query."""
    session.add(PublicTrade(**trade_values()))
    assert len(list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT"))) == 1


def test_a_consumer_may_stop_early(session: Session) -> None:
    """An iteration that was left after a row holds nothing: the session goes on, and no cursor stays open."""
    fill(session, 50)
    repository = PublicTradeRepository(session)
    for _ in range(3):
        for row in repository.iter_symbol_range("BTCUSDT", page_size=10):
            if row.trade_id == "000015":
                break
    if session.get_bind().dialect.name == "postgresql":
        assert session.scalar(text("SELECT count(*) FROM pg_cursors")) == 0
    session.add(PublicTrade(**trade_values(99)))
    session.commit()
    assert len(list(repository.iter_symbol_range("BTCUSDT"))) == 51


@pytest.mark.parametrize("as_objects", [False, True])
def test_what_the_consumer_writes_meanwhile_does_not_come(session: Session, as_objects: bool) -> None:
    """Writing ahead of where one reads comes to an end."""
    fill(session, 30)
    repository = PublicTradeRepository(session)
    how: dict[str, Any] = {"as_objects": as_objects}
    read = 0
    for row in repository.iter_symbol_range("BTCUSDT", page_size=4, **how):
        read += 1
        assert read <= 30
        later = trade_values(1000 + read, trade_id=f"later-{row.trade_id}")
        session.add(PublicTrade(**later))
        session.flush()
    assert read == 30


@pytest.mark.parametrize("as_objects", [False, True])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_iteration_outlives_the_transaction(session: Session, end: str, as_objects: bool) -> None:
    """Whoever commits or rolls back while he reads misses no row and gets none twice."""
    expected = fill(session, 30)
    session.commit()
    how: dict[str, Any] = {"as_objects": as_objects}
    seen = []
    for row in PublicTradeRepository(session).iter_symbol_range("BTCUSDT", page_size=4, **how):
        seen.append(row.trade_id)
        getattr(session, end)()
    assert seen == expected


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_iteration_outlives_the_savepoint_it_began_in(session: Session, end: str) -> None:
    """A savepoint may end while it is read in: PostgreSQL closes its cursor with it, and the reading goes on."""
    expected = fill(session, 30)
    savepoint = session.begin_nested()
    rows = PublicTradeRepository(session).iter_symbol_range("BTCUSDT", page_size=4)
    seen = [next(rows).trade_id]
    getattr(savepoint, end)()
    seen += ids(rows)
    assert seen == expected


def test_a_bulk_write_meanwhile_disturbs_no_reading(session: Session) -> None:
    """Rows can be written in bulk, some of them twice, between the rows of an iteration."""
    expected = fill(session, 30)
    repository = PublicTradeRepository(session)
    seen = []
    for row in repository.iter_symbol_range("BTCUSDT", page_size=4):
        seen.append(row.trade_id)
        assert repository.bulk_create([row._asdict(), row._asdict() | {"symbol": "ETHUSDT"}]).inserted == 1
    assert seen == expected
    assert ids(repository.iter_symbol_range("ETHUSDT")) == expected


def test_iterations_nest(session: Session) -> None:
    """Several ranges can be read at once in one session."""
    expected = fill(session, 12)
    fill(session, 12, symbol="ETHUSDT")
    repository = PublicTradeRepository(session)
    pairs = zip(
        repository.iter_symbol_range("BTCUSDT", page_size=5),
        repository.iter_symbol_range("ETHUSDT", reverse=True, page_size=3),
        strict=True,
    )
    assert [(one.trade_id, other.trade_id) for one, other in pairs] == list(
        zip(expected, reversed(expected), strict=True)
    )


def test_an_iterator_left_after_its_session_ended_disturbs_nobody(db: DatabaseFactory) -> None:
    """Dropping an iterator late touches no connection: by then it may be in other hands."""
    with db.get_session() as session:
        fill(session, 30)
        rows = PublicTradeRepository(session).iter_symbol_range("BTCUSDT", page_size=4)
        next(rows)
    with db.get_session() as other:
        assert other.scalar(select(func.count()).select_from(PublicTrade)) == 30
        del rows
        other.add(PublicTrade(**trade_values(99)))
    with db.get_session(read_only=True) as session:
        assert len(list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT"))) == 31


def test_only_a_page_is_in_memory(session: Session) -> None:
    """Reading ten times the rows takes no more memory."""
    fill(session, 10_000)
    repository = PublicTradeRepository(session)
    peaks = []
    for end in (START + timedelta(milliseconds=999), None):
        list(repository.iter_symbol_range("BTCUSDT", START, START, page_size=200))  # caches
        tracemalloc.start()
        count = sum(1 for _ in repository.iter_symbol_range("BTCUSDT", START, end, page_size=200))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert count == 10_000
    assert peaks[1] < peaks[0] * 1.5


def test_postgresql_reads_through_a_cursor_of_its_own(session: Session) -> None:
    """On PostgreSQL the rows wait at the server, since its driver would fetch all of them at once."""
    if session.get_bind().dialect.name == "postgresql":
        fill(session, 30)
        rows = PublicTradeRepository(session).iter_symbol_range("BTCUSDT", page_size=4)
        next(rows)
        assert session.scalar(text("SELECT count(*) FROM pg_cursors")) == 1
        assert len(list(rows)) == 29
        assert session.scalar(text("SELECT count(*) FROM pg_cursors")) == 0


def test_the_servers_time_zone_changes_nothing(session: Session) -> None:
    """Times come back as UTC whatever the connection's own zone is."""
    fill(session, 3)
    expected = list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT"))
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SET LOCAL TIME ZONE 'America/New_York'"))
    assert list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT")) == expected
    assert all(row.exchange_ts.tzinfo is UTC for row in expected)


def test_damage_found_in_the_middle_has_its_name(tmp_path: Path) -> None:
    """What SQLite reports while rows are fetched is named, as from any other query."""
    path = tmp_path / "grid_bot.db"
    with DatabaseFactory(DatabaseSettings(db_name=str(path), _env_file=None)) as db:
        db.create_tables()
        with db.get_session() as session:
            fill(session, 5_000)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * (size // 4))
    with (
        DatabaseFactory(DatabaseSettings(db_name=str(path), _env_file=None)) as db,
        db.get_session(read_only=True) as session,
    ):
        with pytest.raises(DatabaseCorruptError):
            list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT", page_size=5_000))
        session.rollback()


def test_a_lost_connection_in_the_middle_has_its_name(postgresql_url: URL) -> None:
    """A server that goes away while rows are fetched is named, as from any other query."""
    with DatabaseFactory(postgresql_url) as db, db.get_session() as session:
        fill(session, 30)
        rows = PublicTradeRepository(session).iter_symbol_range("BTCUSDT", page_size=4)
        next(rows)
        backend = session.scalar(text("SELECT pg_backend_pid()"))
        run_on_server(postgresql_url, f"SELECT pg_terminate_backend({backend})")
        with pytest.raises(DatabaseUnreachableError):
            list(rows)
        session.rollback()


# Executions: the same reading, confined to their user.


def test_plain_executions_have_the_values_of_mapped_objects(db: DatabaseFactory) -> None:
    """Every field of a plain row equals the attribute that the ORM loads: NULL, empty text and fractions included."""
    run, _ = two_runs(db)
    with db.get_session() as session:
        rows = list(PrivateExecutionRepository(session, "ann").iter_run_range(run.run_id, page_size=7))
        objects = session.scalars(
            select(PrivateExecution).where(PrivateExecution.run_id == run.run_id).order_by(PrivateExecution.exec_id)
        ).all()
    assert rows == [tuple(getattr(entity, name) for name in ExecutionRow._fields) for entity in objects]
    assert [cursor_of(row) for row in rows] == [cursor_of(entity) for entity in objects]
    assert len(rows) == 20


def test_a_run_can_be_read_by_symbol_from_a_cursor_and_backwards(db: DatabaseFactory) -> None:
    """Symbol, bounds, direction and cursor narrow a run's executions together."""
    run, _ = two_runs(db)
    with db.get_session() as session:
        repository = PrivateExecutionRepository(session, "ann")
        rows = list(repository.iter_run_range(run.run_id))
        wanted = [row for row in rows if row.symbol == "ETHUSDT"][::-1]
        back: dict[str, Any] = {"symbol": "ETHUSDT", "reverse": True, "page_size": 2}
        assert list(repository.iter_run_range(run.run_id, **back)) == wanted
        assert list(repository.iter_run_range(run.run_id, after=wanted[1].cursor, **back)) == wanted[2:]
        assert list(repository.iter_run_range(run.run_id, rows[4].exchange_ts, rows[7].exchange_ts)) == rows[4:8]


@pytest.mark.parametrize("as_objects", [False, True])
def test_executions_of_another_user_do_not_come(db: DatabaseFactory, as_objects: bool) -> None:
    """Neither in a user's session nor for a user named to the repository does another user's run have any rows."""
    own, foreign = two_runs(db)
    how: dict[str, Any] = {"as_objects": as_objects, "page_size": 6}
    with db.get_session() as session:
        named = PrivateExecutionRepository(session, "ann")
        assert len(list(named.iter_run_range(own.run_id, **how))) == 20
        assert list(named.iter_run_range(foreign.run_id, **how)) == []
        everybody = PrivateExecutionRepository.across_users(session)
        assert len(list(everybody.iter_run_range(foreign.run_id, **how))) == 20
    for _ in with_and_without_policies(db):
        with db.get_session(user_id="ann") as session:
            scoped = PrivateExecutionRepository(session)
            assert len(list(scoped.iter_run_range(own.run_id, **how))) == 20
            assert list(scoped.iter_run_range(foreign.run_id, **how)) == []
            rows = scoped.iter_run_range(own.run_id, **how)
            next(rows)
            session.commit()
            assert len(list(rows)) == 19


def test_a_user_reads_public_trades(db: DatabaseFactory) -> None:
    """A user's session streams the trades that all users share."""
    with db.get_session() as session:
        fill(session, 3)
    two_runs(db, executions=0)
    for _ in with_and_without_policies(db):
        with db.get_session(user_id="ann") as session:
            assert len(list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT"))) == 3


def test_executions_are_not_read_for_nobody(session: Session) -> None:
    """Without a user the repository raises at the call, before any query."""
    with pytest.raises(TenantScopeError):
        PrivateExecutionRepository(session).iter_run_range("run-ann")


def test_a_factory_that_requires_a_user_streams_public_trades_alone(db_settings: DatabaseSettings) -> None:
    """Under `require_tenant` a plain session reads shared rows, and nobody's executions on any path."""
    settings = db_settings.model_copy(update={"require_tenant": True})
    with DatabaseFactory(settings) as db:
        db.create_tables()
        with db.get_session() as session:
            fill(session, 3)
            assert len(list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT"))) == 3
            for as_objects in (False, True):
                how: dict[str, Any] = {"as_objects": as_objects}
                rows = PrivateExecutionRepository(session, "somebody").iter_run_range("run", **how)
                with pytest.raises(TenantScopeError):
                    next(rows)
            with pytest.raises(TenantScopeError):
                PrivateExecutionRepository(session, "somebody").to_arrow("run")
            with pytest.raises(TenantScopeError):
                PrivateExecutionRepository(session, "somebody").totals("run")


@pytest.mark.parametrize("reverse", [False, True])
def test_pages_come_from_an_index_in_order(tmp_path: Path, reverse: bool) -> None:
    """On SQLite no page of trades is sorted, and each begins where the one before ended: its time does not grow."""
    with DatabaseFactory(DatabaseSettings(db_name=str(tmp_path / "grid_bot.db"), _env_file=None)) as db:
        db.create_tables()
        two_runs(db)
        asked: list[tuple[str, Any]] = []
        event.listen(db.engine, "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
        with db.get_session() as session:
            fill(session, 20)
            start, end = START, START + timedelta(days=9999)
            asked.clear()
            list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT", start, end, reverse=reverse, page_size=8))
            pages = [(sql, values) for sql, values in asked if "ORDER BY" in sql]
            assert len(pages) == 3
            driver: Any = session.connection().connection.dbapi_connection
            plans = [[row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {sql}", values)] for sql, values in pages]
        assert not [plan for plan in plans if any("TEMP B-TREE" in line for line in plan)]
        behind = "_id)<(" if reverse else "_id)>("
        assert all(any(behind in line for line in plan) for plan in plans[1:])
