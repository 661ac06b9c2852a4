"""The path from a table to the user who owns its rows, as SQL: what the registry tells, rendered."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ARRAY, ColumnElement, Table, any_, func, null, or_, select

from shared.db.tables import ownership_of, primary_key


def owned_by(model: type[Any], user_id: Any) -> ColumnElement[bool] | None:
    """The criterion that a row of `model` belongs to `user_id`; None if the model is shared by all."""
    return None if ownership_of(model) is None else owned_rows(model, user_id)


def readable_by(model: type[Any], user_id: Any) -> ColumnElement[bool] | None:
    """The criterion that `user_id` may read a row of `model`; None if the model is shared by all."""
    return None if ownership_of(model) is None else readable_rows(model, user_id)


def readable_rows(model: type[Any], user_id: Any) -> ColumnElement[bool]:
    """The criterion that a row of the table of `model`, which holds users' rows, is of `user_id` or public."""
    return or_public(model, model.__table__, owned_rows(model, user_id))


def or_public(model: type[Any], source: Any, own: ColumnElement[bool]) -> ColumnElement[bool]:
    """The criterion `own` on `source`, the table of `model` under any name, widened to the rows that all may read."""
    ownership = ownership_of(model)
    assert ownership is not None, "what is shared by all has no rows of its own"
    return own if ownership.public is None else or_(own, source.c[ownership.public])


def owned_keys(model: type[Any], user_id: Any) -> Any:
    """A SELECT of the primary keys of the rows of `model` that belong to `user_id`."""
    # Never correlated: the enclosing query may read the same table, for other rows.
    return select(model.__table__.c[primary_key(model)]).where(owned_rows(model, user_id)).correlate(None)


def owned_rows(model: type[Any], user_id: Any) -> ColumnElement[bool]:
    """The criterion that a row of the table of `model`, which holds users' rows, belongs to `user_id`."""
    table: Table = model.__table__
    ownership = ownership_of(model)
    assert ownership is not None, "only owned rows are named as parents"
    keys = None if ownership.parent is None else owned_keys(ownership.parent, user_id)
    return is_own(table.c[ownership.column], user_id, keys)


def is_own(column: ColumnElement[Any], user_id: Any, keys: Any, *, policed: bool = False) -> ColumnElement[bool]:
    """The criterion on the column that says whose a row is: the user's id, or one of the `keys` of own parents.

    `policed` gives it the form of PostgreSQL's policies. Beside theirs a hash join would be built for nothing.
    """
    if keys is None:
        return column == user_id  # type: ignore[no-any-return] # the user may be a bound value of any kind
    if policed:
        return column == any_(func.array(keys.scalar_subquery(), type_=ARRAY(column.type)))
    return column.in_(keys)


def owner_of(model: type[Any], key: Any) -> Any:
    """A SELECT of the user who owns the row of `model` with this primary key; NULL if the row is shared by all."""
    table: Table = model.__table__
    ownership = ownership_of(model)
    if ownership is None:
        return select(null()).where(table.c[primary_key(model)] == key)
    named = select(table.c[ownership.column]).where(table.c[primary_key(model)] == key)
    return named if ownership.parent is None else owner_of(ownership.parent, named.scalar_subquery())
