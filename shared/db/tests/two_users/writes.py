"""Every way to write one's own rows in a user's session. Each tells the `World` what it did."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from shared.db import (
    ApiCredential,
    ApiCredentialRepository,
    Base,
    BulkResult,
    BybitAccount,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Run,
    RunRepository,
    Strategy,
    User,
)
from shared.db.bulk import bulk_create
from shared.db.dialects import MYSQL, port_of
from shared.db.tests.two_users.reads import REPOSITORIES, expect
from shared.db.tests.two_users.world import (
    KEYED,
    MADE,
    MADE_KEYED,
    NAMES,
    OUTSIDE,
    OWNED,
    TEXTS,
    NotNow,
    Values,
    World,
    loaded,
    values_of,
)

Write = Callable[[Session, World, Random], None]
WRITES: dict[str, Write] = {}
# More rows than these of one kind make no new cases, only slow ones.
_MANY = 8


def _write(function: Write) -> Write:
    WRITES[function.__name__.strip("_")] = function
    return function


def flush(session: Session, rng: Random) -> None:
    """Have what is pending written in one of the ways in which that happens."""
    how = rng.randrange(4)
    if how == 0:
        session.flush()
    elif how == 1:
        session.scalars(select(User.user_id)).all()  # autoflush
    elif how == 2:
        session.begin_nested().commit()
    else:
        PublicTradeRepository(session).coverage()


def dialect_insert(session: Session) -> Any:
    """The INSERT that has ON CONFLICT."""
    if port_of(session) is MYSQL:
        raise NotNow  # there is none
    return (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert


def column_of(model: type[Base], name: str) -> Any:
    """A mapped column."""
    return getattr(model, name)


def _one_more(world: World, rng: Random, models: tuple[type[Base], ...] = MADE) -> type[Base]:
    model = rng.choice(models)
    if len(world.own(model)) >= _MANY:
        raise NotNow
    return model


def _changed(world: World, model: type[Base], name: str) -> tuple[str, Any]:
    """The column to change of a row, and the value that it gets."""
    value = world.text(model)
    world.rows[model][name][TEXTS[model]] = value
    return TEXTS[model], value


# Objects


@_write
def _add(session: Session, world: World, rng: Random) -> None:
    model = _one_more(world, rng)
    values = world.new(model, rng)
    session.add(model(**values))
    world.put(model, values)
    if rng.random() < 0.8:
        flush(session, rng)


@_write
def _add_all(session: Session, world: World, rng: Random) -> None:
    model = _one_more(world, rng)
    rows = [world.new(model, rng), world.new(model, rng)]
    session.add_all([model(**values) for values in rows])
    for values in rows:
        world.put(model, values)
    flush(session, rng)


@_write
def _add_a_whole_family(session: Session, world: World, rng: Random) -> None:
    _one_more(world, rng, (BybitAccount,))
    account = world.new(BybitAccount, rng)
    strategy = world.new(Strategy, rng, account_id=account["account_id"])
    run = world.new(Run, rng, account_id=account["account_id"], strategy_id=strategy["strategy_id"])
    execution = world.new(PrivateExecution, rng, run_id=run["run_id"], account_id=account["account_id"])
    parent = BybitAccount(**account)
    child = Run(**_without(run, "account_id", "strategy_id"), account=parent, strategy=Strategy(**strategy))
    parent.strategies.append(child.strategy)
    child.executions.append(PrivateExecution(**_without(execution, "run_id")))
    session.add(rng.choice([parent, child]))
    for model, values in ((BybitAccount, account), (Strategy, strategy), (Run, run), (PrivateExecution, execution)):
        world.put(model, values)
    flush(session, rng)


def _without(values: Values, *names: str) -> Values:
    return {name: value for name, value in values.items() if name not in names}


@_write
def _change(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    name = world.an_own(model, rng)
    entity = loaded(session, model, name)
    setattr(entity, *_changed(world, model, name))
    flush(session, rng)


@_write
def _move_an_execution(session: Session, world: World, rng: Random) -> None:
    name, run = world.an_own(PrivateExecution, rng), world.an_own(Run, rng)
    execution = loaded(session, PrivateExecution, name)
    if rng.random() < 0.5:
        execution.run_id = run
    else:
        execution.run = loaded(session, Run, run)
    world.put(PrivateExecution, {"exec_id": name, "run_id": run})
    session.flush()
    session.expire_all()  # the run that it left still has it in memory


@_write
def _move_a_run(session: Session, world: World, rng: Random) -> None:
    name, strategy = world.an_own(Run, rng), world.an_own(Strategy, rng)
    account = world.rows[Strategy][strategy]["account_id"]
    run = loaded(session, Run, name)
    run.strategy_id, run.account_id = strategy, account
    world.put(Run, {"run_id": name, "strategy_id": strategy, "account_id": account})
    session.flush()
    session.expire_all()


@_write
def _delete(session: Session, world: World, rng: Random) -> None:
    model, name = _doomed(world, rng)
    session.delete(loaded(session, model, name))
    world.delete(model, name)
    flush(session, rng)
    session.expunge_all()  # what the database's cascade took along is still in memory


def _doomed(world: World, rng: Random) -> tuple[type[Base], str]:
    model = User if rng.random() < 0.02 else rng.choice(MADE)
    name = world.an_own(model, rng)
    if not world.deletable(model, name):
        raise NotNow
    return model, name


@_write
def _merge(session: Session, world: World, rng: Random) -> None:
    model = _one_more(world, rng, MADE_KEYED)
    if rng.random() < 0.5:
        name = world.an_own(model, rng)
        merged = session.merge(model(**{NAMES[model]: name}, **dict([_changed(world, model, name)])))
    else:
        values = world.new(model, rng)
        name = values[NAMES[model]]
        merged = session.merge(model(**values))
        world.put(model, values)
    flush(session, rng)
    assert values_of(merged) == world.rows[model][name]


@_write
def _take_out_and_bring_back(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    name = world.an_own(model, rng)
    entity = loaded(session, model, name)
    session.flush()
    session.expunge_all()  # a pickle takes along what is linked to the object
    if rng.random() < 0.5:
        entity = pickle.loads(pickle.dumps(entity))
    session.add(entity)
    setattr(entity, *_changed(world, model, name))
    flush(session, rng)


# Statements


@_write
def _update_one(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    name = world.an_own(model, rng)
    column, value = _changed(world, model, name)
    how: Any = rng.choice(["auto", "fetch", "evaluate", False])
    statement: Any = update(model).where(column_of(model, NAMES[model]) == name).values({column: value})
    if rng.random() < 0.5 and port_of(session) is not MYSQL:  # which has no RETURNING of an UPDATE
        statement = statement.returning(column_of(model, NAMES[model]))
        assert session.scalars(statement, execution_options={"synchronize_session": how}).all() == [name]
    else:
        session.execute(statement, execution_options={"synchronize_session": how})
    if how is False:
        session.expire_all()


@_write
def _update_all(session: Session, world: World, rng: Random) -> None:
    models: list[type[Base]] = [Strategy, Run, PrivateExecution, ApiCredential, *OUTSIDE]
    model = rng.choice(models)
    world.wholly_own(model)
    value = world.text(model)
    if rng.random() < 0.5:
        session.execute(update(model).values({TEXTS[model]: value}))
    else:
        session.query(model).update({TEXTS[model]: value})
    for values in world.own(model).values():
        values[TEXTS[model]] = value


@_write
def _update_by_keys(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(KEYED)
    name = world.an_own(model, rng)
    session.flush()
    session.execute(update(model), [{NAMES[model]: name} | dict([_changed(world, model, name)])])
    session.expire_all()


@_write
def _delete_by_statement(session: Session, world: World, rng: Random) -> None:
    model, name = _doomed(world, rng)
    chosen = column_of(model, NAMES[model]) == name
    if rng.random() < 0.5:
        session.execute(delete(model).where(chosen))
    else:
        session.query(model).where(chosen).delete()
    world.delete(model, name)
    session.expunge_all()


@_write
def _lock_rows(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    world.wholly_own(model)  # PostgreSQL asks the policies for UPDATE before it locks a row
    expect(session.scalars(select(model).with_for_update()), world.own(model))


@_write
def _delete_all_executions(session: Session, world: World, rng: Random) -> None:
    session.execute(delete(PrivateExecution))
    for name in world.own(PrivateExecution):
        world.delete(PrivateExecution, name)
    session.expunge_all()


@_write
def _insert(session: Session, world: World, rng: Random) -> None:
    model = _one_more(world, rng)
    rows = [world.new(model, rng), world.new(model, rng)]
    way = rng.randrange(4)
    if model is ApiCredential and sqlalchemy.__version__.startswith("2.0"):
        way = 1 + way % 2  # a list beside the statement does not reach a hybrid there, and is refused for its NULL
    session.flush()
    if way == 0:
        session.execute(insert(model), rows)
    elif way == 1:
        session.execute(insert(model).values(rows))
    elif way == 2:
        rows = rows[:1]
        session.execute(insert(model).values(**rows[0]))
    else:
        entities = session.scalars(insert(model).returning(model), rows).all()
        assert {getattr(entity, NAMES[model]) for entity in entities} == {row[NAMES[model]] for row in rows}
    for values in rows:
        world.put(model, values)


@_write
def _upsert(session: Session, world: World, rng: Random) -> None:
    name = world.an_own(PrivateExecution, rng)
    run = world.rows[PrivateExecution][name]["run_id"]
    values = world.new(PrivateExecution, rng, run_id=run, exec_id=name)
    statement = dialect_insert(session)(PrivateExecution).values(**values)
    if rng.random() < 0.5:
        session.execute(statement.on_conflict_do_nothing())
        return
    key = ["run_id", "exec_id"]
    session.execute(statement.on_conflict_do_update(index_elements=key, set_={"order_id": values["order_id"]}))
    world.put(PrivateExecution, {"exec_id": name, "order_id": values["order_id"]})
    session.expire_all()


# Many at once, and repositories


@_write
def _bulk_executions(session: Session, world: World, rng: Random) -> None:
    if len(world.own(PrivateExecution)) >= _MANY:
        raise NotNow
    known = world.an_own(PrivateExecution, rng)
    run = world.rows[PrivateExecution][known]["run_id"]
    if world.is_crossed(Run, run):
        raise NotNow
    new = world.new(PrivateExecution, rng)
    again = world.new(PrivateExecution, rng, run_id=run, exec_id=known)
    on_conflict: Any = rng.choice(["skip", "update", "fill", "error"])
    errors: Any = rng.choice(["raise", "collect"])
    create = PrivateExecutionRepository(session).bulk_create
    rows = [new, again, *([new | {"side": "sideways"}] if errors == "collect" else [])]
    if on_conflict == "error" and errors == "raise":
        with session.begin_nested() as savepoint:
            with pytest.raises(IntegrityError):
                create(rows, on_conflict=on_conflict, errors=errors)
            savepoint.rollback()
        return
    result = create(iter(rows), on_conflict=on_conflict, errors=errors, batch_size=rng.choice([1, 2, 5000]))
    rejected = len(rows) - 2 + (on_conflict == "error")
    # What the stored row lacks, if anything, depends on how it was made; its order is another one.
    assert result.contradicted == (on_conflict == "fill")
    updated = result.updated if on_conflict == "fill" else on_conflict == "update"
    counted = (result.inserted, result.skipped, result.updated, result.rejected)
    assert counted == (1, on_conflict != "error" and not updated, updated, rejected)
    world.put(PrivateExecution, new)
    if on_conflict == "update":
        world.put(PrivateExecution, again)


@_write
def _bulk_rows(session: Session, world: World, rng: Random) -> None:
    model = _one_more(world, rng)
    rows = [world.new(model, rng), world.new(model, rng)]
    assert bulk_create(session, model, rows) == BulkResult(inserted=2)
    for values in rows:
        world.put(model, values)


@_write
def _bulk_update(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(KEYED)
    name = world.an_own(model, rng)
    assert REPOSITORIES[model](session).bulk_update([{NAMES[model]: name, **dict([_changed(world, model, name)])}]) == 1


@_write
def _repository(session: Session, world: World, rng: Random) -> None:
    model = _one_more(world, rng, MADE_KEYED)
    repository = REPOSITORIES[model](session)
    what = rng.randrange(3)
    if what == 0:
        values = world.new(model, rng)
        repository.create(model(**values))
        world.put(model, values)
    elif what == 1:
        name = world.an_own(model, rng)
        repository.update(model(**{NAMES[model]: name}, **dict([_changed(world, model, name)])))
    else:
        model, name = _doomed(world, rng)
        REPOSITORIES[model](session).delete(loaded(session, model, name))
        world.delete(model, name)
        session.expunge_all()


@_write
def _life_of_a_run(session: Session, world: World, rng: Random) -> None:
    _one_more(world, rng, (Run,))
    world.wholly_own(Run)  # starting one closes the others
    values = world.new(Run, rng)
    run = RunRepository(session).start(Run(**values))
    world.put(Run, values)
    RunRepository(session).heartbeat(run.run_id)
    RunRepository(session).finish(run.run_id)
    assert run.run_id not in {found.run_id for found in RunRepository(session).get_running()}


@_write
def _rotate_a_key(session: Session, world: World, rng: Random) -> None:
    _one_more(world, rng, (ApiCredential,))
    account, text = world.an_own(BybitAccount, rng), world.text()
    new = ApiCredentialRepository(session).rotate(account, text, "secret")
    world.put(ApiCredential, {"credential_id": new.credential_id, "account_id": account, "api_key_id": text})


@_write
def _public_trades(session: Session, world: World, rng: Random) -> None:
    trades = world.rows[PublicTrade]
    if len(trades) >= _MANY:
        session.execute(delete(PublicTrade))
        trades.clear()
        session.expunge_all()
        return
    values = world.new(PublicTrade, rng)
    if rng.random() < 0.5:
        session.add(PublicTrade(**values))
        flush(session, rng)
    else:
        assert PublicTradeRepository(session).bulk_create([values, values]) == BulkResult(inserted=1, skipped=1)
    world.put(PublicTrade, values)
