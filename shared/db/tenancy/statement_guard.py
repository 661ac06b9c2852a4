"""What a statement in a user's session may say.

Reads are confined by criteria that SQLAlchemy adds to every mapped class it finds. What it cannot see through is
refused here: text, Core tables, literal columns, hints. Writes that criteria do not reach (INSERT, upserts, bulk
UPDATE by key, assignments to owner and parent columns) are checked against the user's guard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy
from sqlalchemy import CompoundSelect, Executable, Select, Table, TableClause
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import ORMExecuteState
from sqlalchemy.sql import visitors
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import BindParameter, ClauseElement, ColumnClause, TextClause
from sqlalchemy.sql.selectable import AliasedReturnsRows, TextualSelect

from shared.db.errors import TenantViolation
from shared.db.models import Base
from shared.db.tenancy.guard import OwnershipGuard
from shared.db.tenancy.ownership import OWNERSHIP, Ownership, owned_by, ownership_of, primary_key

_SHARED_TABLES = frozenset(model.__table__ for model, entry in OWNERSHIP.items() if entry is None)
_MODELS = {model.__table__: model for model in OWNERSHIP}
_CRITERIA_MISS_CONDITIONS = sqlalchemy.__version__.startswith("2.0.")
_MAPPED = {"parententity", "parentmapper"}
if _CRITERIA_MISS_CONDITIONS:
    # The mark of what any() and has() read from, which confine_conditions() takes care of.
    _MAPPED.add("no_replacement_traverse")
# count(*), EXISTS (SELECT 1 ...): what SQLAlchemy itself writes as a literal column.
_HARMLESS_LITERALS = frozenset({"*", "1"})
_REMEDY = "use mapped classes (select(Run)), or a plain session from db.get_session() for raw SQL"


class RawSQL(Exception):
    """A part of a statement through which nobody can see whose rows it touches."""


def refuse_raw_sql(guard: OwnershipGuard, statement: Executable) -> None:
    """`TenantViolation` if any part of `statement` escapes the session's criteria."""
    if not isinstance(statement, (Select, CompoundSelect, UpdateBase)) and not _is_from_statement(statement):
        raise TenantViolation("raw SQL", type(statement).__name__, guard.user_id, _REMEDY)
    try:
        _walk(statement, set(), top=True)
    except RawSQL as found:
        raise TenantViolation("raw SQL", str(found), guard.user_id, _REMEDY) from None


def _is_from_statement(statement: Any) -> bool:
    return getattr(statement, "is_from_statement", False) or type(statement).__name__ == "FromStatement"


def _walk(element: Any, seen: set[int], mapped: frozenset[Any] = frozenset(), *, top: bool = False) -> None:
    """Visit what the statement was made of. `mapped` are the tables whose mapped class the enclosing SELECT reads."""
    if isinstance(element, (TextClause, TextualSelect)):
        raise RawSQL("text()")
    if isinstance(element, UpdateBase) and not top:
        raise RawSQL("a data-changing CTE")
    if isinstance(element, ColumnClause):
        _walk_column(element, seen, mapped)
        return
    if isinstance(element, TableClause):
        if not _is_mapped(element) and element not in _SHARED_TABLES:
            raise RawSQL(f"the table {element.name}")
        return
    if isinstance(element, AliasedReturnsRows) and isinstance(element.element, TableClause):
        if not _is_mapped(element):
            _walk(element.element, seen)
        return
    # Below here nothing depends on where an element stands: a CTE that is named twice is visited once.
    if id(element) in seen:
        return
    seen.add(id(element))
    if any(getattr(element, name, ()) for name in ("_prefixes", "_suffixes", "_hints", "_statement_hints")):
        raise RawSQL("a prefix, suffix or hint")
    if isinstance(element, Select):
        mapped = frozenset(_mapped_tables(element))
    # A Select's own get_children() adds the tables of its columns, mapped or not: the columns tell which.
    for child in ClauseElement.get_children(element):
        _walk(child, seen, mapped)


def _walk_column(column: Any, seen: set[int], mapped: frozenset[Any]) -> None:
    if column.is_literal:
        if column.name not in _HARMLESS_LITERALS:
            raise RawSQL("literal_column()")
        return
    table = column.table
    # Session.get() asks by the table's own column, which is confined with the mapped class it stands beside.
    if table is None or (_is_mapped(column) and _is_plain(table)) or table in mapped:
        return
    _walk(table, seen)


def _is_mapped(element: Any) -> bool:
    """Whether an element is part of a mapped class, which the criteria reach; one that they do not know is refused."""
    if _MAPPED.isdisjoint(element._annotations):
        return False
    mapper = element._annotations.get("parentmapper")
    if mapper is not None and mapper.class_ not in OWNERSHIP:
        raise RawSQL(f"the class {mapper.class_.__name__}, which has no entry in tenancy/ownership.py")
    return True


def _is_plain(table: Any) -> bool:
    return isinstance(table, TableClause) or (
        isinstance(table, AliasedReturnsRows) and isinstance(table.element, TableClause)
    )


def _mapped_tables(select: Select[Any]) -> Iterator[Any]:
    for element in (*select._raw_columns, *select._from_obj):
        if _is_mapped(element):
            table = element.table if isinstance(element, ColumnClause) else element
            if isinstance(table, TableClause):
                yield table


def confine_conditions(statement: Any, user_id: str) -> Any:
    """`statement` with criteria for what its SELECTs name in WHERE alone, which SQLAlchemy 2.0 does not confine.

    That is EXISTS over a mapped class, relationship.any() and .has(), and a forgotten join. SQLAlchemy 2.1 adds its
    loader criteria there too.
    """
    if not _CRITERIA_MISS_CONDITIONS:
        return statement

    def confine(select: Any) -> None:
        sources = {id(source): source for source in (*select._from_obj, *_tables_in(select._where_criteria))}
        for source in sources.values():
            table: Any = source.element if isinstance(source, AliasedReturnsRows) else source
            model = _MODELS.get(table)
            criterion = None if model is None else owned_by(model, user_id, source)
            if criterion is not None:
                select._where_criteria += (criterion,)

    return visitors.cloned_traverse(statement, {}, {"select": confine})


def _tables_in(conditions: Iterable[Any]) -> Iterator[Any]:
    for condition in conditions:
        if isinstance(condition, ColumnClause):
            if condition.table is not None and _is_plain(condition.table):
                yield condition.table
        elif not isinstance(condition, (Select, CompoundSelect)):
            yield from _tables_in(ClauseElement.get_children(condition))


def may_touch_users(statement: Any) -> bool:
    """Whether a statement reads or writes a table that holds users' rows, or says so little that it might."""
    for element in visitors.iterate(statement):
        if isinstance(element, TableClause) and element not in _SHARED_TABLES:
            return True
        if isinstance(element, (TextClause, TextualSelect)) or (
            isinstance(element, ColumnClause) and element.is_literal and element.name not in _HARMLESS_LITERALS
        ):
            return True
    return False


def check_insert(guard: OwnershipGuard, state: ORMExecuteState, model: type[Base]) -> None:
    """Refuse rows that are not the user's, and upserts that could change one that is not."""
    ownership = ownership_of(model)
    if ownership is None:
        return
    statement: Any = state.statement
    if statement.select is not None:
        raise guard.violation("INSERT FROM SELECT", model, "its rows cannot be checked; select them first")
    guard.check_rows(state.session, "INSERT", model, list(inserted_rows(statement, state.parameters)))
    upsert = statement._post_values_clause
    if upsert is not None and not isinstance(
        upsert, (postgresql.dml.OnConflictDoNothing, sqlite.dml.OnConflictDoNothing)
    ):
        if ownership.column not in _conflict_columns(model, upsert):
            raise guard.violation(
                "upsert", model, f"its conflict columns lack {ownership.column}, so it could change another user's row"
            )
        _check_assigned(guard, "upsert", model, ownership, dict(upsert.update_values_to_set))


def check_update(guard: OwnershipGuard, state: ORMExecuteState, model: type[Base]) -> None:
    """Refuse a change of owner or parent, other users' keys, and other users' rows as a source."""
    ownership = ownership_of(model)
    if ownership is None:
        return
    statement: Any = state.statement
    parameters: Any = state.parameters
    assigned = [_name(column) for column in (statement._values or {})]
    assigned += [_name(column) for column, _ in (getattr(statement, "_ordered_values", None) or ())]
    if isinstance(parameters, list):
        # Bulk UPDATE by primary key, to which SQLAlchemy adds no criteria.
        key = primary_key(model)
        guard.require_owned(state.session, "bulk UPDATE", model, {row.get(key) for row in parameters})
        assigned += [name for row in parameters for name in row if name != key]
    else:
        assigned += list(parameters or ())
    _check_assigned(guard, "UPDATE", model, ownership, assigned)
    check_sources(guard, state, model)


def check_sources(guard: OwnershipGuard, state: ORMExecuteState, model: type[Base]) -> None:
    """Refuse UPDATE ... FROM and DELETE ... USING: criteria reach the target, not the other tables."""
    for column in _columns_outside_selects(state.statement):
        table = column.table
        if table is not None and table is not model.__table__ and getattr(table, "name", "") != model.__tablename__:
            raise guard.violation(
                "UPDATE or DELETE", model, f"it reads {getattr(table, 'name', 'another table')}; use a subquery"
            )


def _check_assigned(
    guard: OwnershipGuard, operation: str, model: type[Base], ownership: Ownership, columns: Iterable[Any]
) -> None:
    fixed = {ownership.column, primary_key(model), *(reference.column for reference in ownership.parents)}
    for column in columns:
        if _name(column) in fixed:
            raise guard.violation(
                operation, model, f"it assigns {_name(column)}; change owners and parents on objects, one by one"
            )


def inserted_rows(statement: Any, parameters: Any) -> Iterator[dict[str, Any]]:
    """The rows that an INSERT gives, by the names it uses; none if a SELECT gives them."""
    if statement.select is not None:
        return
    common = {_name(column): _value(value) for column, value in (statement._values or {}).items()}
    multiple = [row for rows in (statement._multi_values or ()) for row in rows]
    for row in multiple:
        named = row if isinstance(row, Mapping) else dict(zip(statement.table.columns, row, strict=False))
        yield common | {_name(column): _value(value) for column, value in named.items()}
    given = [parameters] if isinstance(parameters, Mapping) else list(parameters or ())
    for row in given:
        yield common | {_name(column): _value(value) for column, value in row.items()}
    if not multiple and not given:
        yield common


def _conflict_columns(model: type[Base], upsert: Any) -> set[str]:
    if upsert.inferred_target_elements:
        return {_name(column) for column in upsert.inferred_target_elements}
    table = model.__table__
    assert isinstance(table, Table)
    target = upsert.constraint_target
    keys: list[Any] = [*table.constraints, *table.indexes]
    return {column.name for key in keys if key.name == target and target is not None for column in key.columns}


def _columns_outside_selects(element: Any) -> Iterator[Any]:
    for child in ClauseElement.get_children(element):
        if isinstance(child, ColumnClause):
            yield child
        elif not isinstance(child, (Select, CompoundSelect)):
            yield from _columns_outside_selects(child)


def _name(column: Any) -> str:
    return column if isinstance(column, str) else str(column.name)


def _value(value: Any) -> Any:
    return value.effective_value if isinstance(value, BindParameter) else value
