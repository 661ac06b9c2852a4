"""What a flush of a user's session may write: the objects' side of `statement_guard`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy.orm import InstanceState, Session
from sqlalchemy.sql.elements import ClauseElement, ColumnClause
from sqlalchemy.sql.selectable import SelectBase

from shared.db.tables import ownership_of, primary_key, public_among
from shared.db.tenancy.confined_sql import Confinement, elements_of
from shared.db.tenancy.entity_values import column_values, judged_values, only_named, parents_of
from shared.db.tenancy.guard import OwnershipGuard, as_bound

# What most objects hold and nothing else, themselves included, and no expression is.
_PLAIN = frozenset({type(None), str, int, float, bool, Decimal, datetime, bytes, InstanceState})


def check_identity(guard: OwnershipGuard, state: InstanceState[Any]) -> None:
    """`TenantViolation` if the flush would write another row than the one that was proved when the object came in.

    Proved is the identity; the flush goes by the key that the attribute was loaded with.
    """
    if state.identity is None:
        return
    name = state.mapper.get_property_by_column(state.mapper.primary_key[0]).key
    key = state.committed_state.get(name, state.dict.get(name, state.identity[0]))
    if as_bound(key) != as_bound(state.identity[0]):
        raise guard.violation("flush", state.mapper.class_, "its key is not the one it was loaded with")


def check_expressions(session: Session, state: InstanceState[Any], confinement: Confinement) -> None:
    """The confinement's refusal if an attribute is an SQL expression that reads other rows or is raw SQL.

    The flush writes such expressions out by itself, and nothing confines what they read.
    """
    for name, expression in expressions(state):
        for element in elements_of(expression):
            if isinstance(element, SelectBase) or (
                isinstance(element, ColumnClause) and element.table not in {None, state.mapper.local_table}
            ):
                raise confinement.refusal(f"the value of {state.mapper.class_.__name__}.{name}, which reads other rows")
        # Compiling is what refuses raw SQL.
        column: Any = expression
        select(column).options(confinement).compile(dialect=session.get_bind().dialect)


def expressions(state: InstanceState[Any]) -> Iterator[tuple[str, ClauseElement]]:
    """The attributes that the flush would write out as SQL, by name."""
    names = state.dict if state.identity is None else state.committed_state
    if _PLAIN.issuperset(map(type, map(state.dict.get, names))):
        return
    for name in names:
        value: Any = state.dict.get(name)
        expression = value.__clause_element__() if hasattr(value, "__clause_element__") else value
        if isinstance(expression, ClauseElement):
            yield name, expression


def check_own(guard: OwnershipGuard, session: Session, state: InstanceState[Any], *, deleted: bool = False) -> None:
    """`TenantViolation` if the object's row may be public, and would be written, and is not the user's."""
    model = public_among(state.mapper.tables)
    if model is not None and (deleted or not only_named(session, state)):
        guard.require_owned(session, "flush", model, state.identity or ())


def check_flushed(guard: OwnershipGuard, session: Session, *, complete: bool) -> None:
    """`TenantViolation` unless every new row, and every one that changes owner or parent, is the user's own.

    Before the flush what it will fill in may be missing; after it the rows are `complete`.
    """
    if session.deleted:
        # The database's cascade may take rows along that were proved.
        guard.forget()
    rows_of: dict[type[Any], list[dict[str, Any]]] = {}
    coming: set[tuple[type[Any], Any]] = set()
    for entity in session.new:
        model = type(entity)
        if ownership_of(model) is not None:
            row = column_values(entity) if complete else judged_values(session, entity)
            rows_of.setdefault(model, []).append(row)
            if not complete:
                # A parent that this flush inserts cannot be looked up before it; afterwards it can.
                coming.add((model, as_bound(row[primary_key(model)])))
    for entity in session.dirty:
        if _moves(inspect(entity)) and not only_named(session, inspect(entity)):
            guard.forget(type(entity), inspect(entity).identity)
            row = judged_values(session, entity)
            rows_of.setdefault(type(entity), []).append(row)
            if not complete:
                # What names it is asked to agree with what it will be, which only afterwards can be looked up.
                coming.add((type(entity), inspect(entity).identity[0]))
    for model, rows in rows_of.items():
        guard.check_rows(session, "flush", model, rows, complete=complete, coming=coming)


def _moves(state: InstanceState[Any]) -> bool:
    """Whether a stored row gets another owner or parent; else it stays the user's, as it was when it came in."""
    ownership = ownership_of(state.mapper.class_)
    if ownership is None:
        return False
    columns = state.mapper.local_table.c
    names = {state.mapper.get_property_by_column(columns[name]).key for name in ownership.columns}
    names.update(name for name, _ in parents_of(state.mapper))
    return not names.isdisjoint(state.committed_state)
