"""What a mapped object holds of a column once it was written: the value that the column would give back.

A price given as text, a time of another zone, an enumeration's member, a Decimal in a document: after the flush the
object in hand has what a later reader gets. So does what a default brought, and what an UPDATE set on loaded objects.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from functools import cache, partial
from typing import Any

from sqlalchemy import Connection, Dialect, event, inspect
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlalchemy.sql.elements import ClauseElement

from shared.db.column_types import CheckedType
from shared.db.tracked_json import TrackedDict, TrackedList, track

# Of each column its type, and Python's types of which a value needs no look.
Kinds = dict[str, tuple[CheckedType, frozenset[type]]]
# What most columns beside text hold, and no expression is.
_VALUES = frozenset({Decimal, datetime, TrackedDict, TrackedList})


@event.listens_for(Mapper, "mapper_configured")
def _watch(mapper: Mapper[Any], model: type[Any]) -> None:
    """Every mapped class with such columns, whichever base and package it is from."""
    kinds = _kinds(mapper)
    for name, (kind, _) in kinds.items():
        if kind.document:
            track(getattr(model, name), kind.refuse)
    if kinds:
        for name in ("before_insert", "before_update"):
            event.listen(model, name, partial(_before_writing, kinds), raw=True)
        event.listen(model, "refresh_flush", partial(_filled, kinds), raw=True)
        event.listen(model, "refresh", partial(_refreshed, kinds), raw=True)


@cache
def _kinds(mapper: Mapper[Any]) -> Kinds:
    columns = {attribute.key: attribute.columns[0].type for attribute in mapper.column_attrs}
    return {
        name: (kind, kind.kept_as_given | {type(None)})
        for name, kind in columns.items()
        if isinstance(kind, CheckedType)
    }


def keep_as_stored(session: Session, entity: object) -> None:
    """Have an object that is not stored yet hold what it would hold afterwards; `InvalidValueError` if it cannot be."""
    state = inspect(entity)
    _keep(_kinds(state.mapper), state, state.dict, session.get_bind(state.mapper).dialect)


def _before_writing(kinds: Kinds, mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    _keep(kinds, state, state.committed_state if state.has_identity else state.dict, connection.dialect)


def _filled(kinds: Kinds, state: InstanceState[Any], context: Any, attributes: Iterable[str] | None) -> None:
    if attributes and state.session is not None:
        _keep(kinds, state, attributes, state.session.get_bind(state.mapper).dialect)


def _refreshed(kinds: Kinds, state: InstanceState[Any], context: Any, attributes: Iterable[str] | None) -> None:
    if context is None and state.session is not None:  # not read from the database, but taken over from a statement
        # What the object never had, SQLAlchemy leaves out: it would be None for good.
        unknown = [name for name in attributes or () if name in kinds and name not in state.dict]
        if unknown:
            state.session.expire(state.object, unknown)
        _filled(kinds, state, context, attributes)


def _keep(kinds: Kinds, state: InstanceState[Any], names: Iterable[str], dialect: Dialect) -> None:
    held = state.dict
    # Most values are text, and are told at a glance.
    for name in [name for name in names if name in kinds and type(held.get(name)) not in kinds[name][1]]:
        value = held[name]
        if type(value) in _VALUES or not (isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")):
            held[name] = kinds[name][0].kept(value, dialect)
