"""The same condition finds the same rows, in the same order, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    URL,
    Date,
    String,
    and_,
    asc,
    case,
    cast,
    desc,
    extract,
    func,
    literal,
    not_,
    null,
    or_,
    select,
    text,
)
from sqlalchemy.orm import Session

from shared.db import (
    BybitAccount,
    DatabaseFactory,
    InvalidValueError,
    PrivateExecution,
    PublicTrade,
    Run,
    SharedDBError,
    Strategy,
    User,
)
from shared.db.tests.support import execution_values, new_run, new_strategy, run_on_server, stored

START = datetime(2025, 5, 3, 23, 30, tzinfo=UTC)
SYMBOLS = ("BTCUSDT", "btcusdt", "Btc_Usdt", "A%B", "A\\B", "ETHUSDT", "ÄTH")
AMOUNTS = ("0.1", "0.2", "0.3", "0.30000001", "0.00000001", "3", "65065.8", "999999.99999999", "-12.5")
DOCUMENTS: tuple[dict[str, Any], ...] = (
    {"levels": 20, "step": "0.2"},
    {"step": "0.2", "levels": 20},
    {"levels": 20.0, "step": "0.2"},
    {"levels": 3, "live": True, "nested": {"a": [1, 2]}},
    {"levels": None, "live": False, "nested": {"a": [2, 1]}},
    {"name": "20", "step": "15.5"},
    {},
)


@pytest.fixture(scope="module")
def pair(
    postgresql_server: URL, postgresql_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[DatabaseFactory, DatabaseFactory]]:
    """SQLite and PostgreSQL with the same rows, which no test changes; PostgreSQL's sessions are not in UTC."""
    name = f"{postgresql_template}_answers"
    run_on_server(
        postgresql_server,
        f"CREATE DATABASE {name} TEMPLATE {postgresql_template}",
        f"ALTER DATABASE {name} SET TimeZone = 'Asia/Tokyo'",
    )
    with (
        DatabaseFactory(f"sqlite:///{tmp_path_factory.mktemp('answers') / 'a.db'}") as lite,
        DatabaseFactory(postgresql_server.set(database=name)) as server,
    ):
        lite.create_tables()
        for db in (lite, server):
            with db.get_session() as session:
                session.add(User(user_id="ann", username="ann"))
                session.flush()
                session.add(BybitAccount(account_id="acc", user_id="ann", account_name="main", environment="testnet"))
                session.flush()
                add_rows(session)
        yield lite, server
    run_on_server(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")


def add_rows(session: Session) -> None:
    """Strategies, runs and executions whose values meet each other's edges."""
    for number, (symbol, document) in enumerate(zip(SYMBOLS, DOCUMENTS, strict=True)):
        session.add(
            Strategy(
                strategy_id=f"s-{number}",
                account_id="acc",
                symbol=symbol,
                strategy_type="Grid" if number % 2 else "grid",
                config_json=document,
                is_enabled=number % 3 > 0,
            )
        )
    session.flush()
    ends = (None, timedelta(minutes=30), timedelta(days=1), timedelta(days=1, microseconds=1), None, timedelta(0))
    for number, end in enumerate(ends):
        start = START + timedelta(minutes=17 * number)
        session.add(
            Run(
                run_id=f"r-{number}",
                user_id="ann",
                account_id="acc",
                strategy_id=f"s-{number % 3}",
                run_type="live",
                status="running" if end is None else "completed",
                start_ts=start,
                end_ts=None if end is None else start + end,
                host=None if number % 2 else ("Lost" if number else "lost"),
            )
        )
    session.flush()
    run = session.get_one(Run, "r-0")
    for number, amount in enumerate(AMOUNTS):
        other = AMOUNTS[(number + 3) % len(AMOUNTS)]
        values = {"exec_price": amount, "exec_qty": "3", "exec_fee": None if number % 3 else other, "closed_pnl": other}
        session.add(PrivateExecution(**execution_values(run, number, **values)))


class Kind(NamedTuple):
    """A kind of condition: what it asks, and the values that it is asked with."""

    model: type[Any]
    condition: Callable[[Any], Any]
    values: st.SearchStrategy[Any] = st.none()


_patterns = st.text("AaBbTtUu%_\\c", max_size=4)
_words = st.sampled_from([*SYMBOLS, "B", "b", "usdt", "USDT", "50%", "_", "%", "\\", "Ä", "ä"])
_amounts = st.sampled_from([Decimal(amount) for amount in (*AMOUNTS, "0.9", "0.6", "195197.4", "0.03333333", "0")])
_times = st.sampled_from([START + timedelta(minutes=17 * n, microseconds=n) for n in range(-1, 7)])
_durations = st.sampled_from(
    [timedelta(0), timedelta(minutes=30), timedelta(days=1), timedelta(days=1, microseconds=1), timedelta(days=-1)]
)
_documents = st.sampled_from([*DOCUMENTS, {"levels": 4}, [1, 2]])
_numbers = st.integers(-2, 25)

KINDS: dict[str, Kind] = {
    # text
    "=": Kind(Strategy, lambda v: Strategy.symbol == v, _words),
    "!=": Kind(Strategy, lambda v: Strategy.symbol != v, _words),
    "text <": Kind(Strategy, lambda v: Strategy.symbol < v, _words),
    "text between": Kind(Strategy, lambda v: Strategy.symbol.between("A", v), _words),
    "like": Kind(Strategy, lambda v: Strategy.symbol.like(v.rstrip("\\")), _patterns),
    "not like": Kind(Strategy, lambda v: Strategy.symbol.not_like(v.rstrip("\\")), _patterns),
    "like with an escape": Kind(Strategy, lambda v: Strategy.symbol.like("%" + v, escape="/"), _words),
    "ilike": Kind(Strategy, lambda v: Strategy.symbol.ilike(v.rstrip("\\")), _patterns),
    "not ilike": Kind(Strategy, lambda v: Strategy.symbol.not_ilike(v.rstrip("\\")), _patterns),
    "startswith": Kind(Strategy, lambda v: Strategy.symbol.startswith(v, autoescape=True), _words),
    "endswith": Kind(Strategy, lambda v: Strategy.symbol.endswith(v, autoescape=True), _words),
    "contains": Kind(Strategy, lambda v: Strategy.symbol.contains(v, autoescape=True), _words),
    "contains a pattern": Kind(Strategy, lambda v: Strategy.symbol.contains(v), _words),
    "icontains": Kind(Strategy, lambda v: Strategy.symbol.icontains(v, autoescape=True), _words),
    "a word like": Kind(Run, lambda v: Run.status.like(v), st.sampled_from(["run%", "RUN%", "%ed"])),
    "free text like": Kind(Run, lambda v: Run.host.like(v), st.sampled_from(["lost", "L%", "LOST"])),
    "lower": Kind(Strategy, lambda v: func.lower(Strategy.symbol) == v.lower(), st.sampled_from(SYMBOLS[:6])),
    "length": Kind(Strategy, lambda v: func.length(Strategy.symbol) > v, _numbers),
    "concatenation": Kind(Strategy, lambda v: Strategy.symbol + "-" + Strategy.strategy_type == v + "-Grid", _words),
    "in": Kind(Strategy, lambda v: Strategy.symbol.in_([v, "ETHUSDT"]), _words),
    "not in": Kind(Strategy, lambda v: Strategy.symbol.not_in([v]), _words),
    "true": Kind(Strategy, lambda v: Strategy.is_enabled.is_(True)),
    # NULL
    "is null": Kind(Run, lambda v: Run.end_ts.is_(None)),
    "= NULL": Kind(Run, lambda v: Run.end_ts == null()),
    "is distinct from": Kind(Run, lambda v: Run.end_ts.is_distinct_from(v), _times),
    "coalesce": Kind(Run, lambda v: func.coalesce(Run.end_ts, Run.start_ts) > v, _times),
    # time
    "time <": Kind(Run, lambda v: Run.start_ts < v, _times),
    "time =": Kind(Run, lambda v: Run.start_ts == v, _times),
    "time between": Kind(Run, lambda v: Run.start_ts.between(START, v), _times),
    "time - time": Kind(Run, lambda v: Run.end_ts - Run.start_ts > v, _durations),
    "time - time =": Kind(Run, lambda v: Run.end_ts - Run.start_ts == v, _durations),
    "time - value": Kind(Run, lambda v: Run.start_ts - v <= timedelta(minutes=30), _times),
    "time + duration": Kind(Run, lambda v: Run.start_ts + v >= Run.end_ts, _durations),
    "time - duration": Kind(Run, lambda v: Run.end_ts - v <= Run.start_ts, _durations),
    "time + difference": Kind(Run, lambda v: Run.start_ts + (Run.end_ts - Run.start_ts) == Run.end_ts),
    "now": Kind(Run, lambda v: Run.start_ts < func.now()),
    "now - duration": Kind(Run, lambda v: Run.start_ts < func.now() - v, _durations),
    "hour": Kind(Run, lambda v: extract("hour", Run.start_ts) == v, st.integers(0, 23)),
    "day": Kind(Run, lambda v: cast(Run.start_ts, Date) == v, st.sampled_from([date(2025, 5, 3), date(2025, 5, 4)])),
    # money
    "money =": Kind(PrivateExecution, lambda v: PrivateExecution.exec_price == v, _amounts),
    "money <": Kind(PrivateExecution, lambda v: PrivateExecution.exec_price < v, _amounts),
    "money in": Kind(PrivateExecution, lambda v: PrivateExecution.exec_price.in_([v, Decimal(3)]), _amounts),
    "money * 3": Kind(PrivateExecution, lambda v: PrivateExecution.exec_price * 3 == v, _amounts),
    "money * money": Kind(
        PrivateExecution, lambda v: PrivateExecution.exec_price * PrivateExecution.exec_qty >= v, _amounts
    ),
    "money + money": Kind(
        PrivateExecution, lambda v: PrivateExecution.exec_price + PrivateExecution.closed_pnl == v, _amounts
    ),
    "money - NULL": Kind(
        PrivateExecution, lambda v: PrivateExecution.exec_price - PrivateExecution.exec_fee <= v, _amounts
    ),
    "money / 3": Kind(PrivateExecution, lambda v: PrivateExecution.exec_price / 3 == v, _amounts),
    "money % 3": Kind(PrivateExecution, lambda v: PrivateExecution.exec_price % Decimal("0.2") == v, _amounts),
    "value = money * 3": Kind(
        PrivateExecution,
        lambda v: literal(v, PrivateExecution.exec_price.type) == PrivateExecution.exec_price * 3,
        _amounts,
    ),
    "a calculated amount in": Kind(
        PrivateExecution, lambda v: (PrivateExecution.exec_price * 3).in_([v, Decimal("0.9")]), _amounts
    ),
    "a calculated amount between": Kind(
        PrivateExecution, lambda v: (PrivateExecution.exec_price * 3).between(v, Decimal("0.9")), _amounts
    ),
    "a whole number / 2": Kind(PrivateExecution, lambda v: PrivateExecution.id / 2 > v, _numbers),
    "a whole number // 2": Kind(PrivateExecution, lambda v: PrivateExecution.id // 2 == v, _numbers),
    "a whole number % 3": Kind(PrivateExecution, lambda v: PrivateExecution.id % 3 == v, _numbers),
    "case": Kind(
        PrivateExecution,
        lambda v: case((PrivateExecution.exec_price > 1, PrivateExecution.exec_qty), else_=Decimal(0)) >= v,
        _amounts,
    ),
    # documents
    "document =": Kind(Strategy, lambda v: Strategy.config_json == v, _documents),
    "document !=": Kind(Strategy, lambda v: Strategy.config_json != v, _documents),
    "document part =": Kind(Strategy, lambda v: Strategy.config_json["levels"] == v, _numbers),
    "document part = text": Kind(Strategy, lambda v: Strategy.config_json["step"] == v, st.sampled_from(["0.2", "20"])),
    "document part = document": Kind(Strategy, lambda v: Strategy.config_json["nested"] == v, st.just({"a": [1, 2]})),
    "document part missing": Kind(Strategy, lambda v: Strategy.config_json["live"].is_(None)),
    "as text": Kind(Strategy, lambda v: Strategy.config_json["levels"].as_string() == v, st.sampled_from(["20", "3"])),
    "truth as text": Kind(Strategy, lambda v: Strategy.config_json["live"].as_string() == v, st.just("true")),
    "as a truth": Kind(Strategy, lambda v: Strategy.config_json["live"].as_boolean().is_(True)),
    "text as a number": Kind(
        Strategy, lambda v: Strategy.config_json["step"].as_float() > v, st.sampled_from([0.1, 0.2, 10.0])
    ),
    "text as an integer": Kind(Strategy, lambda v: Strategy.config_json["name"].as_integer() >= v, _numbers),
    "a path": Kind(Strategy, lambda v: Strategy.config_json[("nested", "a", 0)].as_integer() == v, _numbers),
    # other rows
    "exists": Kind(Strategy, lambda v: Strategy.runs.any(Run.end_ts - Run.start_ts > v), _durations),
    "in a subquery": Kind(
        Strategy, lambda v: Strategy.strategy_id.in_(select(Run.strategy_id).where(Run.start_ts < v)), _times
    ),
    "has": Kind(Run, lambda v: Run.strategy.has(Strategy.symbol.contains(v, autoescape=True)), _words),
    "latest of": Kind(
        Strategy,
        lambda v: (
            select(Run.run_id)
            .where(Run.strategy_id == Strategy.strategy_id)
            .order_by(Run.end_ts.desc(), Run.run_id)
            .limit(1)
            .scalar_subquery()
            .in_(["r-0", "r-3", "r-4"])
        ),
    ),
}
ORDERS: dict[type[Any], list[Any]] = {
    Strategy: [
        Strategy.symbol,
        Strategy.symbol.desc(),
        Strategy.is_enabled,
        Strategy.config_json["levels"].as_float(),
    ],
    Run: [
        Run.end_ts,
        asc(Run.end_ts),
        Run.end_ts.desc(),
        desc(Run.host.is_(None)),
        Run.end_ts.desc().nulls_last(),
        Run.end_ts.nulls_first(),
        Run.end_ts - Run.start_ts,
        (Run.end_ts - Run.start_ts).desc(),
        func.coalesce(Run.end_ts, Run.start_ts),
    ],
    PrivateExecution: [
        PrivateExecution.exec_fee,
        PrivateExecution.exec_fee.desc(),
        PrivateExecution.exec_price * 3,
        -PrivateExecution.exec_price,
    ],
}
KEYS: dict[type[Any], Any] = {
    Strategy: Strategy.strategy_id,
    Run: Run.run_id,
    PrivateExecution: PrivateExecution.exec_id,
}


@st.composite
def questions(draw: st.DrawFn) -> Any:
    """A SELECT whose condition is made of several kinds, in one of the orders, with and without a limit."""
    model = draw(st.sampled_from([Strategy, Run, PrivateExecution]))
    kinds = [kind for kind in KINDS.values() if kind.model is model]

    def atoms() -> st.SearchStrategy[Any]:
        return st.sampled_from(kinds).flatmap(lambda kind: kind.values.map(kind.condition))

    condition = draw(
        st.recursive(
            atoms(),
            lambda inner: st.one_of(
                st.builds(and_, inner, inner), st.builds(or_, inner, inner), st.builds(not_, inner)
            ),
            max_leaves=4,
        )
    )
    order = draw(st.sampled_from(ORDERS[model]))
    return select(KEYS[model]).where(condition).order_by(order, KEYS[model]).limit(draw(st.sampled_from([None, 1, 3])))


def answers(pair: tuple[DatabaseFactory, DatabaseFactory], question: Any) -> list[Any]:
    """What each of the databases says, in a plain session and in a user's; an error is an answer too."""
    found: list[Any] = []
    for db in pair:
        for opened in (db.get_session(read_only=True), db.get_session(read_only=True, user_id="ann")):
            with opened as session:
                try:
                    found.append(session.scalars(question).all())
                except SharedDBError as error:
                    found.append(type(error))
                    session.rollback()
    return found


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_condition_finds_the_same_rows(name: str, pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """Each of them by itself, with each of its values, and turned round."""
    kind = KINDS[name]
    key = KEYS[kind.model]

    @settings(max_examples=6, deadline=None, database=None)
    @given(kind.values)
    def same(value: Any) -> None:
        for condition in (kind.condition(value), not_(kind.condition(value))):
            found = answers(pair, select(key).where(condition).order_by(key))
            assert found == [found[-1]] * 4
            assert isinstance(found[0], list), found

    same()


def test_questions_made_of_them_have_the_same_answers(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """In whatever combination and order, with whatever limit."""

    @settings(max_examples=100, deadline=None, database=None)
    @given(questions())
    def same(question: Any) -> None:
        found = answers(pair, question)
        assert found == [found[-1]] * 4

    same()


def test_null_has_its_place_in_a_window_too(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """Ascending last and descending first."""
    for order in (Run.end_ts, Run.end_ts.desc(), Run.end_ts.desc().nulls_last()):
        place = func.row_number().over(order_by=(order, Run.run_id)).label("place")
        found = answers(pair, select(func.coalesce(place, 0)).order_by(Run.run_id))
        assert found == [found[-1]] * 4


def test_rows_that_an_outer_join_makes_up_have_the_same_place(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """There a column may be NULL that never is in its table."""
    for order in (Run.start_ts, Run.start_ts.desc()):
        joined = select(Strategy.strategy_id).outerjoin(Run).order_by(order, Strategy.strategy_id)
        found = answers(pair, joined)
        assert found == [found[-1]] * 4
        assert len(found[0]) > len(SYMBOLS)


def test_a_time_that_the_database_sets_compares_as_any_other(session: Session, sample_account: BybitAccount) -> None:
    """In the form, and to the fraction of a second, in which times are stored."""
    run = stored(session, new_run(sample_account, stored(session, new_strategy(sample_account))))
    for clock in (func.now(), func.current_timestamp()):
        run.heartbeat_ts = clock
        session.flush()
        session.refresh(run)
        assert session.scalars(select(Run.run_id).where(Run.heartbeat_ts == run.heartbeat_ts)).all() == [run.run_id]
        assert session.scalars(select(Run).where(func.length(cast(Run.heartbeat_ts, String)) > 19)).all() == [run]


def test_what_no_rule_makes_the_same_is_refused(db: DatabaseFactory) -> None:
    """In place of an answer that another database would not give."""
    with db.get_session() as session:
        for condition in (Strategy.config_json > {"levels": 1}, Strategy.config_json["levels"] >= 1):
            with pytest.raises(InvalidValueError, match="documents have no order"):
                session.scalars(select(Strategy).where(condition)).all()
        if session.get_bind().dialect.name == "sqlite":
            with pytest.raises(InvalidValueError, match="calculate anything else in Python"):
                session.scalars(select(Run).where(Run.end_ts + Run.start_ts > Run.end_ts)).all()


def test_nothing_is_added_where_an_index_gives_the_order(tmp_path: Path) -> None:
    """For a column that is never NULL SQLite need not sort."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'a.db'}") as db:
        db.create_tables()
        newest = select(PublicTrade.id).where(PublicTrade.symbol == "BTCUSDT").order_by(PublicTrade.exchange_ts.desc())
        with db.get_session() as session:
            written = str(newest.compile(db.engine, compile_kwargs={"literal_binds": True}))
            plan = session.execute(text(f"EXPLAIN QUERY PLAN {written}")).all()
        assert "NULLS" not in written
        assert not [step for step in plan if "TEMP B-TREE" in str(step)]
