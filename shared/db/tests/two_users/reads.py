"""Every way to read in a user's session. Each compares what it finds with the `World`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from sqlalchemy import exists, func, inspect, literal, select, text, true, union_all
from sqlalchemy.exc import NoResultFound
from sqlalchemy.orm import (
    Bundle,
    Session,
    aliased,
    contains_eager,
    immediateload,
    joinedload,
    load_only,
    selectinload,
    subqueryload,
    with_parent,
)

from shared.db import (
    ApiCredential,
    ApiCredentialRepository,
    Base,
    BaseRepository,
    BybitAccount,
    BybitAccountRepository,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Repository,
    Run,
    RunRepository,
    Strategy,
    StrategyRepository,
    TenantScopeError,
    TenantViolation,
    User,
    UserRepository,
    UserSession,
)
from shared.db.dialects import MYSQL, port_of
from shared.db.tests.two_users.world import (
    KEYED,
    NAMES,
    OUTSIDE,
    OWNED,
    STREAMS,
    TEXTS,
    TRACKED,
    NotNow,
    Values,
    World,
    loaded,
    one_of,
    values_of,
)

Read = Callable[[Session, World, Random], None]
READS: dict[str, Read] = {}
REPOSITORIES: dict[type[Base], type[BaseRepository[Any]]] = {
    kind.model: kind
    for kind in (
        UserRepository,
        BybitAccountRepository,
        ApiCredentialRepository,
        StrategyRepository,
        RunRepository,
        PrivateExecutionRepository,
    )
} | {model: type(f"{model.__name__}Repository", (Repository,), {"model": model}) for model in OUTSIDE}
_LONG_AGO, _LATER = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


def _read(function: Read) -> Read:
    READS[function.__name__.strip("_")] = function
    return function


@dataclass(frozen=True)
class Relation:
    """A relationship and the column by which the `World` knows it."""

    model: type[Base]
    name: str
    target: type[Base]
    column: str
    many: bool

    @property
    def attribute(self) -> Any:
        """The mapped attribute."""
        return getattr(self.model, self.name)

    def of(self, world: World, values: Values) -> dict[str, Values]:
        """What a row of `model` has there: own rows only."""
        own = world.own(self.target)
        if self.many:
            return {name: row for name, row in own.items() if row[self.column] == values[NAMES[self.model]]}
        return {name: row for name, row in own.items() if name == values[self.column]}


RELATIONS = [
    Relation(model, relation.key, relation.mapper.class_, column.name, bool(relation.uselist))
    for model in OWNED
    for relation in inspect(model).relationships
    for column in (relation.local_remote_pairs[0][1 if relation.uselist else 0],)
]


def expect(entities: Any, expected: dict[str, Values]) -> None:
    """These objects, and no others, with these values."""
    found = [values_of(entity) for entity in entities]
    assert len(found) == len(expected), (found, expected)
    for values in found:
        assert values in expected.values(), (values, expected)


def _names(world: World, model: type[Base]) -> list[str]:
    return sorted(world.own(model))


def _a_name(world: World, model: type[Base], rng: Random) -> str:
    return one_of(_names(world, model), rng)


def _foreign_name(world: World, model: type[Base], rng: Random) -> str:
    return rng.choice([*world.of(model, world.other), "nobody", f"{world.user}' OR '1'='1", world.user.upper()])


def _column(model: Any) -> Any:
    return getattr(model, NAMES[model])


# Statements


@_read
def _entities(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    expect(session.scalars(select(model)), world.own(model))


@_read
def _columns(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    rows = session.execute(select(*(getattr(model, column) for column in TRACKED[model]))).mappings().all()
    expected = world.own(model)
    assert {row[NAMES[model]]: dict(row) for row in rows} == expected
    assert len(rows) == len(expected)


@_read
def _bundles(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    bundle: Any = Bundle("it", _column(model), getattr(model, TEXTS[model]))
    found = {tuple(row.it) for row in session.execute(select(bundle))}
    assert found == {(name, values[TEXTS[model]]) for name, values in world.own(model).items()}


@_read
def _queries(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    expect(session.query(model).all(), world.own(model))
    assert session.query(model).count() == len(world.own(model))
    foreign = _foreign_name(world, model, rng)
    assert session.query(model).filter_by(**{NAMES[model]: foreign}).one_or_none() is None


@_read
def _counts(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    spelt = rng.choice(
        [
            select(func.count(_column(model))),
            select(func.count()).select_from(model),
            select(func.count()).select_from(select(model).subquery()),
            select(select(func.count(_column(model))).scalar_subquery()),
        ]
    )
    assert session.scalar(spelt) == len(world.own(model))


@_read
def _existence(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    for name, there in ((_a_name(world, model, rng), True), (_foreign_name(world, model, rng), False)):
        assert session.scalar(select(exists().where(_column(model) == name))) is there
        assert (session.scalar(select(literal(1)).where(literal(name).in_(select(_column(model))))) == 1) is there


@_read
def _aliases(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    one, other = aliased(model), aliased(model)
    expect(session.scalars(select(one)), world.own(model))
    name: str = NAMES[model]
    pairs = session.execute(select(getattr(one, name), getattr(other, name)).join(other, true())).all()
    assert len(pairs) == len(world.own(model)) ** 2


@_read
def _subqueries(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    names = select(_column(model))
    statement: Any = rng.choice(
        [
            select(names.cte().c[NAMES[model]]),
            select(names.subquery().c[NAMES[model]]),
            names.where(_column(model).in_(names)),
            select(getattr(aliased(model, select(model).subquery()), NAMES[model])),
        ]
    )
    assert sorted(session.scalars(statement)) == _names(world, model)


@_read
def _unions(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    names = select(_column(model))
    assert sorted(session.scalars(union_all(names, names))) == sorted(_names(world, model) * 2)
    statement = select(model).from_statement(union_all(select(model), select(model)))
    expect(session.scalars(statement).unique(), world.own(model))


@_read
def _joins(session: Session, world: World, rng: Random) -> None:
    relation = rng.choice(RELATIONS)
    pairs = [
        (name, other) for name, values in world.own(relation.model).items() for other in relation.of(world, values)
    ]
    # aliased(): a column of the target then cannot be taken for one of the model.
    target = aliased(relation.target)
    joined = select(_column(relation.model), getattr(target, NAMES[relation.target]))
    joined = joined.join(relation.attribute.of_type(target))
    assert sorted(map(tuple, session.execute(joined))) == sorted(pairs)


@_read
def _outer_joins(session: Session, world: World, rng: Random) -> None:
    relation = rng.choice(RELATIONS)
    pairs: set[tuple[str, str | None]] = {
        (name, other)
        for name, values in world.own(relation.model).items()
        for other in list[str | None](relation.of(world, values)) or [None]
    }
    joined = select(_column(relation.model), _column(relation.target)).outerjoin(relation.attribute)
    assert {tuple(row) for row in session.execute(joined)} == pairs


@_read
def _full_joins(session: Session, world: World, rng: Random) -> None:
    if port_of(session) is MYSQL:
        raise NotNow  # there are none
    model, other = rng.sample(OWNED, 2)
    never = _column(model) == _column(other) + "-"
    found = session.execute(select(_column(model), _column(other)).outerjoin(other, never, full=True)).all()
    assert {row[0] for row in found} - {None} == set(world.own(model))
    assert {row[1] for row in found} - {None} == set(world.own(other))


@_read
def _any_and_has(session: Session, world: World, rng: Random) -> None:
    relation = rng.choice(RELATIONS)
    name = _foreign_name(world, relation.target, rng) if rng.random() < 0.5 else _a_name(world, relation.target, rng)
    compared = _column(relation.target) == name
    matching = relation.attribute.any(compared) if relation.many else relation.attribute.has(compared)
    expected = {key: row for key, row in world.own(relation.model).items() if name in relation.of(world, row)}
    expect(session.scalars(select(relation.model).where(matching)), expected)


@_read
def _windows_and_limits(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    own = _names(world, model)
    numbers = session.scalars(select(func.row_number().over(order_by=_column(model)))).all()
    assert list(numbers) == list(range(1, len(own) + 1))
    page = select(_column(model)).order_by(_column(model)).limit(2).offset(1)
    assert list(session.scalars(page)) == own[1:3]
    assert session.scalar(select(func.max(_column(model)))) == (own[-1] if own else None)


@_read
def _streams(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    expect(session.scalars(select(model).execution_options(yield_per=1)), world.own(model))
    pages = session.scalars(select(model).execution_options(yield_per=2)).partitions()
    expect([entity for page in pages for entity in page], world.own(model))


@_read
def _raw_sql(session: Session, world: World, rng: Random) -> None:
    assert isinstance(session, UserSession)
    session.flush()
    table: Any = rng.choice(OWNED).__table__
    name = NAMES[next(model for model in OWNED if model.__table__ is table)]
    own = sorted(world.own(next(model for model in OWNED if model.__table__ is table)))
    if session.confined_by_server:
        assert sorted(session.connection().scalars(text(f"SELECT {name} FROM {table.name}"))) == own
        assert sorted(session.scalars(select(table.c[name]))) == own
        return
    refused: list[Callable[[], object]] = [
        lambda: session.connection(),
        lambda: session.execute(text(f"SELECT {name} FROM {table.name}")),
        lambda: session.execute(select(table.c[name])),
        lambda: session.execute(select(User.user_id).where(text("true"))),
        lambda: session.scalars(select(User).from_statement(text("SELECT * FROM users"))),
    ]
    with pytest.raises(TenantViolation):
        rng.choice(refused)()


# Objects


@_read
def _keys(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(KEYED)
    options: dict[str, Any] = {"populate_existing": True} if rng.random() < 0.3 else {}
    foreign = _foreign_name(world, model, rng)
    assert session.get(model, foreign, **options) is None
    with pytest.raises(NoResultFound):
        session.get_one(model, foreign, **options)
    name = _a_name(world, model, rng)
    assert values_of(session.get_one(model, name, **options)) == world.rows[model][name]


@_read
def _numbers(session: Session, world: World, rng: Random) -> None:
    # Executions have numbers for keys, which can be guessed.
    first = rng.randrange(1, 40)
    found = {key: session.get(PrivateExecution, key) for key in range(first, first + 5)}
    numbers = {row.exec_id: row.id for row in session.execute(select(PrivateExecution.exec_id, PrivateExecution.id))}
    there = {key: execution.exec_id for key, execution in found.items() if execution is not None}
    assert there == {key: name for name, key in numbers.items() if key in found}
    assert set(numbers) == set(world.own(PrivateExecution))


@_read
def _lazy_loads(session: Session, world: World, rng: Random) -> None:
    relation = rng.choice(RELATIONS)
    name = _a_name(world, relation.model, rng)
    entity = loaded(session, relation.model, name)
    session.expire(entity, [relation.name])
    found = getattr(entity, relation.name)
    expect(
        found if relation.many else [found] if found is not None else [],
        relation.of(world, world.rows[relation.model][name]),
    )


@_read
def _eager_loads(session: Session, world: World, rng: Random) -> None:
    relation = rng.choice(RELATIONS)
    how = rng.choice([joinedload, selectinload, subqueryload, immediateload])
    statement = select(relation.model).options(how(relation.attribute))
    entities = session.scalars(statement.execution_options(populate_existing=True)).unique().all()
    expect(entities, world.own(relation.model))
    for entity in entities:
        found = inspect(entity).dict[relation.name]
        expect(found if relation.many else [found] if found is not None else [], relation.of(world, values_of(entity)))


@_read
def _eager_loads_two_levels_deep(session: Session, world: World, rng: Random) -> None:
    how = rng.choice([joinedload, selectinload, subqueryload])
    statement = select(BybitAccount).options(how(BybitAccount.runs).options(how(Run.executions)))
    for account in session.scalars(statement.execution_options(populate_existing=True)).unique():
        for run in account.runs:
            assert world.owner(Run, run.run_id) == world.user
            of_run = {k: v for k, v in world.own(PrivateExecution).items() if v["run_id"] == run.run_id}
            expect(run.executions, of_run)


@_read
def _contains_eager(session: Session, world: World, rng: Random) -> None:
    statement = select(BybitAccount).join(BybitAccount.runs).options(contains_eager(BybitAccount.runs))
    for account in session.scalars(statement.execution_options(populate_existing=True)).unique():
        runs = {k: v for k, v in world.own(Run).items() if v["account_id"] == account.account_id}
        expect(account.runs, runs)


@_read
def _parents_criteria(session: Session, world: World, rng: Random) -> None:
    account = loaded(session, BybitAccount, _a_name(world, BybitAccount, rng))
    runs = {k: v for k, v in world.own(Run).items() if v["account_id"] == account.account_id}
    expect(session.scalars(select(Run).where(with_parent(account, BybitAccount.runs))), runs)


@_read
def _refreshes(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    name = _a_name(world, model, rng)
    entity = loaded(session, model, name)
    if rng.random() < 0.5:
        session.refresh(entity)
    else:
        session.expire(entity)
    assert values_of(entity) == world.rows[model][name]


@_read
def _partial_loads(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    session.expunge_all()
    expect(session.scalars(select(model).options(load_only(_column(model)))), world.own(model))


# Repositories


@_read
def _repositories(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    repository = REPOSITORIES[model](session, **({"user_id": world.user} if rng.random() < 0.3 else {}))
    expect(repository.get_all(), world.own(model))
    if model in KEYED:
        assert repository.get_by_id(_foreign_name(world, model, rng)) is None
        name = _a_name(world, model, rng)
        assert values_of(repository.get_by_id(name, user_id=world.user)) == world.rows[model][name]


@_read
def _contradicting_users(session: Session, world: World, rng: Random) -> None:
    kind: Any = REPOSITORIES[rng.choice(OWNED)]
    refused: list[Callable[[], object]] = [
        lambda: kind(session, user_id=world.other),
        lambda: kind(session).get_all(user_id=world.other),
        lambda: kind(session).get_by_id(1, user_id=world.other),
        lambda: kind(session, user_id=None),
        lambda: kind.across_users(session),
        lambda: RunRepository(session).get_by_user_id(world.other),
        lambda: RunRepository(session).get_running(world.other),
        lambda: PrivateExecutionRepository(session).totals("x", user_id=world.other),
    ]
    with pytest.raises(TenantScopeError):
        rng.choice(refused)()


@_read
def _questions(session: Session, world: World, rng: Random) -> None:
    account = rng.choice([*world.rows[BybitAccount], "nobody"])
    own_runs = world.own(Run)
    of_account = {k: v for k, v in own_runs.items() if v["account_id"] == account}
    expect(RunRepository(session).get_by_account_id(account), of_account)
    expect(RunRepository(session).get_by_user_id(world.user), own_runs)
    expect(RunRepository(session).get_by_run_type("live"), own_runs)
    expect(BybitAccountRepository(session).get_by_user_id(world.user), world.own(BybitAccount))
    strategies = {k: v for k, v in world.own(Strategy).items() if v["account_id"] == account}
    expect(StrategyRepository(session).get_by_account_id(account), strategies)
    credentials = ApiCredentialRepository(session).get_by_account_id(account)
    assert {row.credential_id for row in credentials} <= set(world.own(ApiCredential))
    assert UserRepository(session).get_by_username(f"name-{world.other}") is None


@_read
def _ranges(session: Session, world: World, rng: Random) -> None:
    run = rng.choice([*world.rows[Run], "nobody"])
    expected = {k: v for k, v in world.own(PrivateExecution).items() if v["run_id"] == run}
    executions = PrivateExecutionRepository(session)
    page = rng.choice([1, 2, 2000])
    reverse = rng.random() < 0.5
    rows = executions.iter_run_range(run, reverse=reverse, page_size=page)
    assert {row.exec_id: row.account_id for row in rows} == {k: v["account_id"] for k, v in expected.items()}
    expect(executions.iter_run_range(run, as_objects=True, page_size=page), expected)
    expect(executions.get_by_run_range(run, _LONG_AGO, _LATER), expected)
    latest = executions.get_execution_at_or_before(run, _LATER)
    assert (latest is not None) == bool(expected)
    assert latest is None or latest.exec_id in expected


@_read
def _sums_and_frames(session: Session, world: World, rng: Random) -> None:
    run = rng.choice([*world.rows[Run], "nobody"])
    expected = {k: v for k, v in world.own(PrivateExecution).items() if v["run_id"] == run}
    executions = PrivateExecutionRepository(session)
    assert executions.totals(run).count == len(expected)
    assert executions.totals(run).sell_volume == Decimal("0.5") * len(expected)
    assert (executions.get_last_execution_ts(run_id=run) is not None) == bool(expected)
    for name in world.rows[PrivateExecution]:
        assert executions.exists_by_exec_id(name) == (name in world.own(PrivateExecution))
    table = executions.to_arrow(run)
    assert sorted(table.column("exec_id").to_pylist()) == sorted(expected)


@_read
def _declared_streams(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(STREAMS)
    by = model.__stream__.by
    key = rng.choice([*sorted({values[by] for values in world.rows[model].values()}), "nobody"])
    expected = {name: values for name, values in world.own(model).items() if values[by] == key}
    repository: Any = REPOSITORIES[model](session)
    rows = repository.iter_range(key, reverse=rng.random() < 0.5, page_size=rng.choice([1, 2, 2000]))
    assert sorted(getattr(row, NAMES[model]) for row in rows) == sorted(expected)
    assert repository.to_arrow(key).num_rows == len(expected)
    latest = repository.latest(key)
    assert (latest is not None) == bool(expected)
    assert latest is None or getattr(latest, NAMES[model]) in expected


@_read
def _public_trades(session: Session, world: World, rng: Random) -> None:
    trades = world.rows[PublicTrade]
    repository = PublicTradeRepository(session)
    assert {row.trade_id for row in repository.iter_symbol_range("BTCUSDT")} == set(trades)
    expect(session.scalars(select(PublicTrade)), trades)
    assert sum(candle.count for candle in repository.candles("BTCUSDT", None, None, timedelta(hours=1))) == len(trades)
    assert sum(found.count or 0 for found in repository.coverage()) == len(trades)
    assert repository.to_arrow("BTCUSDT").num_rows == len(trades)
