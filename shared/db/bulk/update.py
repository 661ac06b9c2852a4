"""`bulk_update`: changes to many rows of a small table, found by their primary key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Table, inspect, select
from sqlalchemy.orm import Session

from shared.db.bulk.cells import CellLayout, cell_layout_of
from shared.db.bulk.rows import Chunk, Row, mapping_of
from shared.db.dialects import port_of
from shared.db.errors import InvalidValueError, RowNotFoundError
from shared.db.tables import primary_key
from shared.db.tenancy.entity_values import as_changed
from shared.db.tenancy.guard import OwnershipGuard
from shared.db.tenancy.ownership import owned_by
from shared.db.tenancy.session_scope import UserSession
from shared.db.value_forms.forms import secrets_of

# Well below the number of variables that any database takes in one statement.
_KEYS_AT_ONCE = 500


def bulk_update(
    session: Session,
    model: type[Any],
    mappings: Iterable[Mapping[str, Any]],
    *,
    guard: OwnershipGuard | None = None,
) -> int:
    """Write the columns that each mapping names to the row with its primary key; the number of mappings.

    Through the ORM, for tables of thousands of rows and not of millions: the objects are loaded, and those that the
    session holds show the change. The last mapping wins where two name the same row.

    Raises `RowNotFoundError` for a row that is not there (or not the user's), `TenantViolation` for a change that
    would give a row or hang it under a parent to another user, `InvalidValueError` with the mapping's position for a
    value that does not fit; then nothing of the call is written.
    """
    if guard is None and isinstance(session, UserSession):
        guard = session.guard
    table: Table = model.__table__
    key = primary_key(model)
    session.flush()
    layout = cell_layout_of(table, port_of(session).name, True)
    changes = [_checked(layout, key, mapping_of(row, model), position) for position, row in enumerate(mappings)]
    entities = _load(session, model, [change[key] for change in changes], guard)
    for change in changes:
        if change[key] not in entities:
            if guard is not None:
                guard.refuse_public(session, "bulk_update", model, change[key])
            raise RowNotFoundError(model.__name__, change[key])
    if guard is not None:
        rows = [as_changed(entities[change[key]], change) for change in changes]
        guard.check_rows(session, "bulk_update", model, rows)
    attribute_of = {column.name: inspect(model).get_property_by_column(column).key for column in table.columns}
    with session.begin_nested():
        for change in changes:
            for name, value in change.items():
                if name != key:
                    setattr(entities[change[key]], attribute_of[name], value)
    return len(changes)


def _checked(layout: CellLayout, key: str, row: Row, position: int) -> Row:
    """The mapping itself, if its names and values could be stored."""
    if row.get(key) is None:
        raise InvalidValueError("a mapping names the primary key of its row", f"{layout.table.name}.{key}", position)
    # A secret is sealed to its row, and checked, by the object that it is set on.
    secrets = secrets_of(layout.table)
    checked = {name: value for name, value in row.items() if name not in secrets}
    try:
        layout.check(Chunk(tuple(checked), [[value] for value in checked.values()], 1))
    except InvalidValueError as error:
        raise InvalidValueError(error.problem, error.column, position) from None
    return row


def _load(session: Session, model: type[Any], keys: list[Any], guard: OwnershipGuard | None) -> dict[Any, Any]:
    """The user's objects with these primary keys, as they are now; nobody else changes them any more.

    In order: two processes that each wait for a row of the other would end in a deadlock.
    """
    column = getattr(model, primary_key(model))
    # A user's session adds the criterion by itself.
    criterion = None if guard is None or isinstance(session, UserSession) else owned_by(model, guard.user_id)
    found = {}
    keys = sorted(set(keys))
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        statement = select(model).where(column.in_(keys[start : start + _KEYS_AT_ONCE])).order_by(column)
        statement = statement.with_for_update(key_share=True).execution_options(populate_existing=True)
        for entity in session.scalars(statement if criterion is None else statement.where(criterion)):
            found[getattr(entity, column.key)] = entity
    return found
