"""What holds for every table that is declared, by the registry: other packages' too, where they are imported."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from shared.db import (
    Base,
    DatabaseFactory,
    PublicTrade,
    Repository,
    RowNotFoundError,
    TenantViolation,
)
from shared.db.tables import OWNERSHIP, generated_key, primary_key
from shared.db.tenancy.user_ids import UNSET, UserId
from shared.db.tests.fleet import fill
from shared.db.tests.support import trade_values
from shared.db.tests.two_users.reads import REPOSITORIES, expect
from shared.db.tests.two_users.world import MADE, NAMES, OWNED, STREAMS, TEXTS, Values, World, needed, stored

SHARED = tuple(model for model, ownership in OWNERSHIP.items() if ownership is None)
NO_SYNC = {"synchronize_session": False}
_START, _END = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


def _row(world: World, model: type[Base], user: str) -> Values:
    """The user's one row, as it is stored."""
    (name,) = world.of(model, user)
    return stored(world.db)[model][name]


def test_a_repository_reads_the_rows_of_the_user_that_it_names(fleet: DatabaseFactory) -> None:
    """In a plain session, which nothing else confines: all rows, one by its key, and the questions about a stream."""
    world = World(fleet)
    foreign = {model: _row(world, model, "bob") for model in OWNED}
    with fleet.get_session() as plain:
        for model in OWNED:
            repository: Any = REPOSITORIES[model](plain, user_id="ann")
            found = repository.get_all()
            expect(found, world.of(model, "ann"))
            key = primary_key(model)
            assert repository.get_by_id(getattr(found[0], key)) is found[0]
            assert repository.get_by_id(foreign[model][key]) is None, model
            if model not in STREAMS:
                continue
            by = model.__stream__.by
            for row, there in ((vars(found[0]), 1), (foreign[model], 0)):
                assert len(list(repository.iter_range(row[by]))) == there, model
                assert repository.to_arrow(row[by]).num_rows == there, model
                assert (repository.latest(row[by]) is not None) == there, model
                assert (repository.at_or_before(row[by], _END) is not None) == there, model
                assert len(list(repository.gaps(row[by], 60, _START, _END))) == 1 + there, model
            assert len(repository.coverage()) == 1, model


def _misplaced(model: type[Base], own: Values, foreign: Values) -> Iterator[Values]:
    """New rows, each of which names one thing that is the other user's; of a user there is nothing above."""
    for column in OWNERSHIP[model].columns if model in MADE else ():  # type: ignore[union-attr] # users' rows
        values = own | {NAMES[model]: "stolen"} | {column: foreign[column]}
        values.pop(generated_key(model) or "", None)
        yield values


def _refused(model: type[Base], own: Values, foreign: Values) -> Iterator[tuple[type[Exception], str, Any]]:
    """Error, method and argument: of changes to a foreign row, and of new rows that name what is foreign."""
    key = primary_key(model)
    change = {key: foreign[key], TEXTS[model]: own[TEXTS[model]]}
    yield RowNotFoundError, "bulk_update", [change]
    yield RowNotFoundError, "update", model(**change)
    yield RowNotFoundError, "delete", model(**{key: foreign[key]})
    for values in _misplaced(model, own, foreign):
        yield TenantViolation, "create", model(**values)
        if issubclass(REPOSITORIES[model], Repository):
            yield TenantViolation, "bulk_create", [values]


@pytest.mark.parametrize("whose", [UNSET, "ann"], ids=["plain session", "ann's session"])
def test_a_repository_writes_the_rows_of_the_user_that_it_names(fleet: DatabaseFactory, whose: UserId) -> None:
    """A foreign row is not there for it, a foreign parent is refused, and nothing is written."""
    world = World(fleet)
    for model in OWNED:
        before = stored(fleet)
        for error, method, argument in _refused(model, _row(world, model, "ann"), _row(world, model, "bob")):
            with pytest.raises(error), fleet.get_session(user_id=whose) as session:
                getattr(REPOSITORIES[model](session, user_id="ann"), method)(argument)
        assert stored(fleet) == before, model


def test_a_statement_stores_no_row_that_names_what_is_foreign(fleet: DatabaseFactory) -> None:
    """Nor does one past the session on its connection, which only PostgreSQL's policies let anybody have."""
    world = World(fleet)
    for model in OWNED:
        before = stored(fleet)
        for values in _misplaced(model, _row(world, model, "ann"), _row(world, model, "bob")):
            with pytest.raises(TenantViolation), fleet.get_session(user_id="ann") as session:
                session.execute(insert(model).values(**values))
            with pytest.raises(TenantViolation), fleet.get_session(user_id="ann") as session:
                session.connection().execute(insert(model.__table__).values(**values))  # type: ignore[arg-type] # a Table
        assert stored(fleet) == before, model


def test_what_is_shared_by_all_is_read_and_written_by_everybody(fleet: DatabaseFactory) -> None:
    """A row that one user's session stores is there for the other's, to be changed and deleted too."""
    fill(fleet)
    for model in SHARED:
        values = trade_values() if model is PublicTrade else needed(model)
        (name, value), *_ = values.items()
        column = getattr(model, name)
        with fleet.get_session(user_id="ann") as session:
            session.execute(delete(model), execution_options=NO_SYNC)
            session.add(model(**values))
        with fleet.get_session(user_id="bob") as session:
            assert session.scalars(select(column)).all() == [value], model
            assert len(Repository(session, model).get_all()) == 1, model
            changed: Any = session.execute(update(model).values({name: column}), execution_options=NO_SYNC)
            assert changed.rowcount == 1, model
        with fleet.get_session(user_id="ann") as session:
            session.delete(session.scalars(select(model)).one())
        with fleet.get_session() as plain:
            assert plain.scalars(select(column)).all() == [], model
