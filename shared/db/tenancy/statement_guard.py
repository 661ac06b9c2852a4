"""What a statement in a user's session may write.

Which rows a statement reads, changes or deletes is seen to where it is written out (`confined_sql`). What is new in
it (the rows of an INSERT, what an upsert or an UPDATE assigns to owner and parent columns) is checked here, against
the user's guard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import BigInteger, Integer, String, Table, Text, Unicode, inspect, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import ORMExecuteState
from sqlalchemy.sql.dml import Insert, UpdateBase
from sqlalchemy.sql.elements import BindParameter, ColumnClause
from sqlalchemy.types import NullType

from shared.db.column_types import BoundedString, CheckedInteger
from shared.db.models import Base
from shared.db.tables import Ownership, model_of, ownership_of, primary_key, public_among
from shared.db.tenancy.confined_sql import ON_SQLALCHEMY_2_0
from shared.db.tenancy.guard import OwnershipGuard

# The types that keys and owners have, and those that SQLAlchemy finds for a plain value.
_BOUND_AS_GIVEN = frozenset({BoundedString, CheckedInteger, String, Text, Unicode, Integer, BigInteger, NullType})


def check_written(guard: OwnershipGuard, state: ORMExecuteState) -> None:
    """`TenantViolation` unless what an INSERT, UPDATE or DELETE brings in is the user's own."""
    statement: Any = state.statement
    assert isinstance(statement, UpdateBase)
    # The statement's own table, and not the mapper that the caller may give for choosing an engine.
    model = model_of(statement.table)
    ownership = None if model is None else ownership_of(model)
    if model is None or ownership is None:
        return
    if isinstance(statement, Insert):
        _check_insert(guard, state, statement, model, ownership)
    elif state.is_update:
        _check_update(guard, state, statement, model, ownership)
    else:
        # The database's cascade may take rows along that were proved.
        guard.forget()


def narrow_to_own(guard: OwnershipGuard, state: ORMExecuteState) -> None:
    """Say in an UPDATE or DELETE itself that public rows of others are none of its rows.

    The compiler says so in the SQL alone, and SQLAlchemy would change or expunge the objects that the statement names.
    """
    statement: Any = state.statement
    model = public_among([statement.table])
    if model is None or isinstance(statement, Insert) or isinstance(state.parameters, list):
        return
    state.statement = statement.where(_is_own(model, guard.user_id))


def _is_own(model: type[Any], user_id: str) -> Any:
    """The criterion that a row is the user's, in mapped attributes: on those of objects SQLAlchemy evaluates it."""
    ownership = ownership_of(model)
    assert ownership is not None, "only owned rows are public, or hang on others"
    owner = _attribute(model, ownership.column)
    if ownership.parent is None:
        return owner == user_id
    own_parents = select(_attribute(ownership.parent, primary_key(ownership.parent)))
    return owner.in_(own_parents.where(_is_own(ownership.parent, user_id)).correlate(None))


def _attribute(model: type[Any], column: str) -> Any:
    return getattr(model, inspect(model).get_property_by_column(model.__table__.c[column]).key)


def _check_insert(
    guard: OwnershipGuard, state: ORMExecuteState, statement: Any, model: type[Base], ownership: Ownership
) -> None:
    if statement.select is not None:
        raise guard.violation("INSERT FROM SELECT", model, "its rows cannot be checked; select them first")
    _check_spelling(guard, model, statement, state.parameters)
    guard.check_rows(state.session, "INSERT", model, list(inserted_rows(statement, state.parameters)))
    upsert = statement._post_values_clause
    if upsert is None or isinstance(upsert, (postgresql.dml.OnConflictDoNothing, sqlite.dml.OnConflictDoNothing)):
        return
    if not isinstance(upsert, (postgresql.dml.OnConflictDoUpdate, sqlite.dml.OnConflictDoUpdate)):
        raise guard.violation("upsert", model, "it has more than one ON CONFLICT; give one")
    if ownership.column not in _conflict_columns(model, upsert):
        raise guard.violation(
            "upsert", model, f"its conflict columns lack {ownership.column}, so it could change another user's row"
        )
    _check_assigned(guard, "upsert", model, ownership, dict(upsert.update_values_to_set))


def _check_update(
    guard: OwnershipGuard, state: ORMExecuteState, statement: Any, model: type[Base], ownership: Ownership
) -> None:
    parameters: Any = state.parameters
    assigned = [*(statement._values or {})]
    if ON_SQLALCHEMY_2_0:
        assigned += [column for column, _ in statement._ordered_values or ()]
    if isinstance(parameters, list):
        # Bulk UPDATE by primary key: of a foreign key it would find no row, and say so in words of its own.
        key = primary_key(model)
        guard.require_owned(state.session, "bulk UPDATE", model, (row.get(key) for row in parameters))
        assigned += [name for row in parameters for name in row if name != key]
    else:
        assigned += list(parameters or ())
    _check_assigned(guard, "UPDATE", model, ownership, assigned)


def _check_assigned(
    guard: OwnershipGuard, operation: str, model: type[Base], ownership: Ownership, columns: Iterable[Any]
) -> None:
    fixed = {primary_key(model), *ownership.columns}
    for column in columns:
        if _name(column) in fixed:
            raise guard.violation(
                operation, model, f"it assigns {_name(column)}; change owners and parents on objects, one by one"
            )


def inserted_rows(statement: Any, parameters: Any) -> Iterator[dict[str, Any]]:
    """The rows that an INSERT gives, by the names it uses; none if a SELECT gives them."""
    if statement.select is not None:
        return
    common = _plain(statement._values or {})
    multiple = [row for rows in (statement._multi_values or ()) for row in rows]
    for row in multiple:
        named = row if isinstance(row, Mapping) else dict(zip(statement.table.columns, row, strict=False))
        yield common | _plain(named)
    given = [parameters] if isinstance(parameters, Mapping) else list(parameters or ())
    for row in given:
        yield common | _plain(row)
    if not multiple and not given:
        yield common


def _check_spelling(guard: OwnershipGuard, model: type[Base], statement: Any, parameters: Any) -> None:
    """Refuse what would store other values than `inserted_rows` tells."""
    named = {*model.__table__.columns.keys(), *inspect(model).all_orm_descriptors.keys()}
    for row in [parameters] if isinstance(parameters, Mapping) else parameters or ():
        # It would fill in a bindparam() of the statement.
        if not named >= row.keys():
            raise guard.violation("INSERT", model, "it has a parameter that is no column; give plain values")


def _plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {_name(column): _value(value) for column, value in values.items()}


def _value(value: Any) -> Any:
    """What will be stored, as far as the statement tells; of any other SQL expression, the expression."""
    # Any other bindparam() may get its value later, from the caller's parameters; of one whose value comes from a
    # function this is None, which is nobody's. A type may bind something else than it was given.
    if isinstance(value, BindParameter) and value.unique and type(value.type) in _BOUND_AS_GIVEN:
        return value.value
    return value


def _conflict_columns(model: type[Base], upsert: Any) -> set[str]:
    if upsert.inferred_target_elements:
        return {_name(column) for column in upsert.inferred_target_elements if isinstance(column, (str, ColumnClause))}
    table = model.__table__
    assert isinstance(table, Table)
    target = upsert.constraint_target
    keys: list[Any] = [*table.constraints, *table.indexes]
    return {column.name for key in keys if key.name == target and target is not None for column in key.columns}


def _name(column: Any) -> str:
    return column if isinstance(column, str) else str(column.name)
