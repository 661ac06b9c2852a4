"""Every way to reach for another user's rows from a user's session. Each is refused, or changes nothing."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from sqlalchemy import case, delete, func, insert, literal, select, text, update
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value

from shared.db import (
    ApiCredential,
    Base,
    BybitAccount,
    PrivateExecution,
    PrivateExecutionRepository,
    Run,
    RunRepository,
    Strategy,
    TenantError,
    User,
    UserSession,
)
from shared.db.bulk import bulk_create
from shared.db.dialects import MYSQL, port_of
from shared.db.errors import RowNotFoundError
from shared.db.tests.two_users.forms import INSERTS, KEYS, OBJECTS, Form, place_in, references, try_form
from shared.db.tests.two_users.reads import REPOSITORIES
from shared.db.tests.two_users.world import KEYED, MADE, MADE_KEYED, NAMES, OWNED, TEXTS, NotNow, Values, World, loaded
from shared.db.tests.two_users.writes import column_of, dialect_insert

REFUSALS = (TenantError, RowNotFoundError)
# A key that is taken tells so by colliding: a hole that docs/tenancy.md names.
COLLISIONS = (IntegrityError,)


@dataclass(frozen=True)
class Attack:
    """One way. `errors`: what may stop it; `harmless`: nothing need stop it, since it finds nothing to change."""

    attempt: Callable[[Session, World, Random], object]
    errors: tuple[type[Exception], ...]
    harmless: bool
    # It was refused before the session had anything to take back.
    clean: bool


ATTACKS: dict[str, Attack] = {}


def _attack(
    *more: type[Exception], harmless: bool = False, clean: bool = False
) -> Callable[[Callable[[Session, World, Random], object]], None]:
    def register(attempt: Callable[[Session, World, Random], object]) -> None:
        ATTACKS[attempt.__name__.strip("_")] = Attack(attempt, (*REFUSALS, *more), harmless, clean)

    return register


def _foreign_values(world: World, model: type[Base], rng: Random) -> tuple[str, Values]:
    name = world.a_foreign(model, rng)
    return name, world.rows[model][name]


def _one_of(
    forms: Mapping[str, Form], models: tuple[type[Base], ...], session: Session, world: World, rng: Random
) -> None:
    """One of the forms that the adversarial cases try one after the other."""
    model = rng.choice(models)
    place = place_in(world, model, *rng.choice(references(model)), rng)
    try_form(forms[rng.choice(sorted(forms))], session, place)


def _misplaced(world: World, rng: Random, models: tuple[type[Base], ...] = MADE) -> tuple[type[Base], Values]:
    """A new row that names something of the other user's."""
    model = rng.choice(models)
    column, parent = rng.choice(references(model))
    return model, world.new(model, rng) | {column: world.a_foreign(parent, rng)}


def _outsider(world: World, model: type[Base], name: str) -> Any:
    """The other user's object, as if another session had loaded it."""
    entity = model(**{NAMES[model]: name})
    make_transient_to_detached(entity)
    for column, value in world.rows[model][name].items():
        set_committed_value(entity, column, value)
    return entity


# Objects


@_attack(clean=True)
def _add_a_foreign_object(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(KEYED)
    entity = _outsider(world, model, world.a_foreign(model, rng))
    session.add(pickle.loads(pickle.dumps(entity)) if rng.random() < 0.5 else entity)


@_attack(clean=True)
def _delete_a_foreign_object(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(KEYED)
    session.delete(_outsider(world, model, world.a_foreign(model, rng)))


@_attack(clean=True)
def _smuggle_a_ghost(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(KEYED)
    ghost = model(**{NAMES[model]: world.a_foreign(model, rng)})
    make_transient_to_detached(ghost)
    session.add(ghost)


@_attack(clean=True)
def _merge_a_foreign_object(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(KEYED)
    entity = _outsider(world, model, world.a_foreign(model, rng))
    session.merge(entity, load=rng.random() < 0.5)


@_attack()
def _merge_a_stolen_key(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(MADE_KEYED)
    session.merge(model(**world.new(model, rng) | {NAMES[model]: world.a_foreign(model, rng)}))


@_attack()
def _merge_a_stolen_child(session: Session, world: World, rng: Random) -> None:
    account = world.an_own(BybitAccount, rng)
    run = Run(**world.new(Run, rng) | {"run_id": world.a_foreign(Run, rng)})
    session.merge(BybitAccount(account_id=account, runs=[run]))


@_attack()
def _store_by_an_object(session: Session, world: World, rng: Random) -> None:
    _one_of(OBJECTS, MADE, session, world, rng)


@_attack()
def _store_by_a_key(session: Session, world: World, rng: Random) -> None:
    _one_of(KEYS, MADE_KEYED, session, world, rng)


@_attack(*COLLISIONS)
def _add_a_taken_key(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(MADE_KEYED)
    session.add(model(**world.new(model, rng) | {NAMES[model]: world.a_foreign(model, rng)}))


@_attack()
def _add_under_a_foreign_object(session: Session, world: World, rng: Random) -> None:
    foreign = _outsider(world, BybitAccount, world.a_foreign(BybitAccount, rng))
    values = world.new(Run, rng)
    del values["account_id"]
    session.add(Run(**values, account=foreign))


@_attack()
def _take_in_a_foreign_child(session: Session, world: World, rng: Random) -> None:
    account = loaded(session, BybitAccount, world.an_own(BybitAccount, rng))
    account.runs.append(_outsider(world, Run, world.a_foreign(Run, rng)))


@_attack(*COLLISIONS)
def _take_a_foreign_key(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(KEYED)
    entity = loaded(session, model, world.an_own(model, rng))
    setattr(entity, NAMES[model], world.a_foreign(model, rng))


@_attack()
def _forge_the_key_of_an_object(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(KEYED)
    name = world.an_own(model, rng)
    entity = loaded(session, model, name)
    # Whatever becomes of it, it is no object to be found in the session any more.
    session.expunge(entity)
    session.add(entity)
    set_committed_value(entity, NAMES[model], world.a_foreign(model, rng))
    if rng.random() < 0.5:
        setattr(entity, TEXTS[model], world.text(model))
    else:
        session.delete(entity)


@_attack(harmless=True)
def _set_what_another_row_holds(session: Session, world: World, rng: Random) -> None:
    run = loaded(session, Run, world.an_own(Run, rng))
    before = run.gridcore_version
    secrets = select(func.max(ApiCredential.api_key_id)).where(ApiCredential.api_key_id.like("key-%"))
    run.gridcore_version = case((secrets.scalar_subquery() == f"key-{world.other}", "seen"), else_=None)
    session.flush()
    assert session.scalar(select(Run.gridcore_version).where(Run.run_id == run.run_id)) is None
    run.gridcore_version = before  # where PostgreSQL's policies let it see nothing


# Statements


@_attack(clean=True)
def _store_by_a_statement(session: Session, world: World, rng: Random) -> None:
    _one_of(INSERTS, MADE, session, world, rng)


@_attack(clean=True)
def _insert_from_select(session: Session, world: World, rng: Random) -> None:
    session.execute(insert(User).from_select(["username"], select(literal(world.text()))))


@_attack(clean=True)
def _upsert_a_foreign_row(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(MADE_KEYED)
    values = world.new(model, rng) | {NAMES[model]: world.a_foreign(model, rng)}
    _upsert(session, model, values, [NAMES[model]], {TEXTS[model]: world.text(model)})


@_attack(clean=True)
def _upsert_into_a_foreign_run(session: Session, world: World, rng: Random) -> None:
    name, foreign = _foreign_values(world, PrivateExecution, rng)
    values = world.new(PrivateExecution, rng, run_id=foreign["run_id"], exec_id=name)
    _upsert(session, PrivateExecution, values, ["run_id", "exec_id"], {"order_id": "stolen"})


def _upsert(session: Session, model: type[Base], values: Values, key: list[str], changes: Values) -> None:
    if port_of(session) is MYSQL:
        session.execute(mysql.insert(model).values(**values).on_duplicate_key_update(**changes))
        return
    statement = dialect_insert(session)(model).values(**values)
    session.execute(statement.on_conflict_do_update(index_elements=key, set_=changes))


@_attack(harmless=True)
def _skip_a_taken_key(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(MADE_KEYED)
    values = world.new(model, rng) | {NAMES[model]: world.a_foreign(model, rng)}
    session.flush()
    session.execute(dialect_insert(session)(model).values(**values).on_conflict_do_nothing())


@_attack(harmless=True)
def _update_a_foreign_row(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    column = column_of(model, NAMES[model])
    statement = update(model).where(column == world.a_foreign(model, rng)).values({TEXTS[model]: world.text(model)})
    options = {"synchronize_session": False}
    if port_of(session) is MYSQL:  # which has no RETURNING of an UPDATE
        changed: Any = session.execute(statement, execution_options=options)
        assert changed.rowcount == 0
    else:
        assert session.scalars(statement.returning(column), execution_options=options).all() == []


@_attack(clean=True)
def _update_foreign_keys(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(KEYED)
    names = [world.an_own(model, rng), world.a_foreign(model, rng)]
    session.execute(update(model), [{NAMES[model]: name, TEXTS[model]: world.text(model)} for name in names])


@_attack(harmless=True)
def _delete_a_foreign_row(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(OWNED)
    column = column_of(model, NAMES[model])
    statement = delete(model).where(column == world.a_foreign(model, rng)).returning(column)
    assert session.scalars(statement, execution_options={"synchronize_session": False}).all() == []


@_attack(clean=True)
def _legacy_bulk_methods(session: Session, world: World, rng: Random) -> None:
    model, values = _misplaced(world, rng)
    way = rng.randrange(3)
    if way == 0:
        session.bulk_save_objects([model(**values)])
    elif way == 1:
        session.bulk_insert_mappings(model.__mapper__, [values])
    else:
        model = rng.choice(KEYED)
        session.bulk_update_mappings(
            model.__mapper__, [{NAMES[model]: world.a_foreign(model, rng), TEXTS[model]: world.text(model)}]
        )


@_attack(clean=True, harmless=True)
def _raw_writes(session: Session, world: World, rng: Random) -> None:
    assert isinstance(session, UserSession)
    model = rng.choice(OWNED)
    name, column = world.a_foreign(model, rng), NAMES[model]
    table: Any = model.__table__
    raw: Any = rng.choice(
        [
            text(f"UPDATE {table.name} SET {TEXTS[model]} = '{world.text(model)}' WHERE {column} = '{name}'"),
            text(f"DELETE FROM {table.name} WHERE {column} = '{name}'"),
            update(table).where(table.c[column] == name).values({TEXTS[model]: world.text(model)}),
            delete(table).where(table.c[column] == name),
        ]
    )
    session.execute(raw)


# Many at once, and repositories


@_attack(clean=True)
def _bulk_create_misplaced_rows(session: Session, world: World, rng: Random) -> None:
    model, values = _misplaced(world, rng)
    rows = [world.new(model, rng), values]
    options: dict[str, Any] = {
        "on_conflict": rng.choice(["skip", "error", *(["update", "fill"] if model is PrivateExecution else [])]),
        "errors": rng.choice(["raise", "collect"]),
        "batch_size": rng.choice([1, 5000]),
    }
    if model is PrivateExecution:
        PrivateExecutionRepository(session).bulk_create(iter(rows), **options)
    else:
        bulk_create(session, model, iter(rows), **options)


@_attack(clean=True)
def _bulk_upsert_a_foreign_row(session: Session, world: World, rng: Random) -> None:
    values = world.new(Run, rng) | {"run_id": world.a_foreign(Run, rng)}
    bulk_create(session, Run, [values], on_conflict=rng.choice(["update", "fill"]))


@_attack(clean=True)
def _bulk_update_foreign_rows(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(MADE_KEYED)
    own, text_ = world.an_own(model, rng), world.text(model)
    if rng.random() < 0.5:
        bad: Values = {NAMES[model]: world.a_foreign(model, rng), TEXTS[model]: text_}
    else:
        column, parent = rng.choice(references(model))
        bad = {NAMES[model]: own, column: world.a_foreign(parent, rng)}
    REPOSITORIES[model](session).bulk_update([{NAMES[model]: own, TEXTS[model]: text_}, bad])


@_attack(clean=True)
def _write_for_the_other_user(session: Session, world: World, rng: Random) -> None:
    kind: Any = REPOSITORIES[rng.choice(OWNED)]
    model = kind.model
    way = rng.randrange(4)
    if way == 0:
        kind(session).create(model(), user_id=world.other)
    elif way == 1:
        kind(session).bulk_update([{}], user_id=world.other)
    elif way == 2:
        RunRepository(session).finish(world.a_foreign(Run, rng), user_id=world.other)
    else:
        PrivateExecutionRepository(session).bulk_create([], user_id=world.other)


@_attack(clean=True)
def _change_by_repository(session: Session, world: World, rng: Random) -> None:
    model = rng.choice(MADE_KEYED)
    repository = REPOSITORIES[model](session)
    name = world.a_foreign(model, rng)
    way = rng.randrange(4)
    if way == 0:
        misplaced, values = _misplaced(world, rng, MADE_KEYED)
        REPOSITORIES[misplaced](session).create(misplaced(**values))
    elif way == 1:
        repository.update(model(**{NAMES[model]: name, TEXTS[model]: world.text(model)}))
    elif way == 2:
        repository.delete(model(**{NAMES[model]: name}))
    else:
        getattr(RunRepository(session), rng.choice(["finish", "fail", "heartbeat"]))(world.a_foreign(Run, rng))


@_attack(harmless=True)
def _close_foreign_orphans(session: Session, world: World, rng: Random) -> None:
    strategy = world.a_foreign(Strategy, rng)
    if any(run["strategy_id"] == strategy for run in world.own(Run).values()):
        raise NotNow  # an administrator crossed one
    assert RunRepository(session).close_orphans(strategy, "live") == 0
