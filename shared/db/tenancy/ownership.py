"""The path from a table to the user who owns its rows, as SQL: what the registry tells, rendered."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Table, null, select

from shared.db.tables import ownership_of, primary_key


def owned_by(model: type[Any], user_id: Any) -> ColumnElement[bool] | None:
    """The criterion that a row of `model` belongs to `user_id`; None if the model is shared by all."""
    ownership = ownership_of(model)
    if ownership is None:
        return None
    column: Any = getattr(model, ownership.column)
    criterion: ColumnElement[bool] = (
        column == user_id if ownership.parent is None else column.in_(owned_keys(ownership.parent, user_id))
    )
    return criterion


def owned_keys(model: type[Any], user_id: Any) -> Any:
    """A SELECT of the primary keys of the rows of `model` that belong to `user_id`."""
    # Never correlated: the enclosing query may read the same table, for other rows.
    return select(model.__table__.c[primary_key(model)]).where(owned_rows(model, user_id)).correlate(None)


def owned_rows(model: type[Any], user_id: Any) -> ColumnElement[bool]:
    """The criterion that a row of the table of `model`, which holds users' rows, belongs to `user_id`."""
    table: Table = model.__table__
    ownership = ownership_of(model)
    assert ownership is not None, "only owned rows are named as parents"
    column = table.c[ownership.column]
    return column == user_id if ownership.parent is None else column.in_(owned_keys(ownership.parent, user_id))


def owner_of(model: type[Any], key: Any) -> Any:
    """A SELECT of the user who owns the row of `model` with this primary key; NULL if the row is shared by all."""
    table: Table = model.__table__
    ownership = ownership_of(model)
    if ownership is None:
        return select(null()).where(table.c[primary_key(model)] == key)
    named = select(table.c[ownership.column]).where(table.c[primary_key(model)] == key)
    return named if ownership.parent is None else owner_of(ownership.parent, named.scalar_subquery())
