"""What a mapped object holds of a column once it was written: the value that the column would give back.

A price given as text, a time of another zone, an enumeration's member, a Decimal in a document: after the flush the
object in hand has what a later reader gets. So does what a default brought, and what an UPDATE set on loaded objects.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import Connection, Engine, event, inspect
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
            event.listen(model, name, _before_writing, raw=True)
        event.listen(model, "refresh_flush", _filled, raw=True)
        event.listen(model, "refresh", _refreshed, raw=True)


@cache
def _kinds(mapper: Mapper[Any]) -> Kinds:
    columns = {attribute.key: attribute.columns[0].type for attribute in mapper.column_attrs}
    return {
        name: (kind, kind.kept_as_given | {type(None)})
        for name, kind in columns.items()
        if isinstance(kind, CheckedType)
    }


@lru_cache(maxsize=1024)
def _in_doubt(
    mapper: Mapper[Any], names: tuple[str, ...], types: tuple[type, ...]
) -> list[tuple[str, CheckedType, bool]]:
    """Of attributes with values of these types, those that may come back as something else, and no expressions are."""
    kinds = _kinds(mapper)
    return [
        (name, kinds[name][0], given in _VALUES)
        for name, given in zip(names, types, strict=True)
        if name in kinds and given not in kinds[name][1]
    ]


def keep_as_stored(session: Session, entity: object) -> None:
    """Have an object that is not stored yet hold what it would hold afterwards; `InvalidValueError` if it cannot be."""
    state = inspect(entity)
    _keep(state, state.dict, session.get_bind(state.mapper))


def _before_writing(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    _keep(state, state.committed_state if state.has_identity else state.dict, connection)


def _filled(state: InstanceState[Any], context: Any, attributes: Iterable[str] | None) -> None:
    if attributes and state.session is not None:
        _keep(state, attributes, state.session.get_bind(state.mapper))


def _refreshed(state: InstanceState[Any], context: Any, attributes: Iterable[str] | None) -> None:
    if context is None and state.session is not None:  # not read from the database, but taken over from a statement
        # What the object never had, SQLAlchemy leaves out: it would be None for good.
        kinds = _kinds(state.mapper)
        unknown = [name for name in attributes or () if name in kinds and name not in state.dict]
        if unknown:
            state.session.expire(state.object, unknown)
        _filled(state, context, attributes)


def _keep(state: InstanceState[Any], names: Iterable[str], bind: Connection | Engine) -> None:
    held, given = state.dict, tuple(names)
    for name, kind, plain in _in_doubt(state.mapper, given, tuple(map(type, map(held.get, given)))):
        value = held[name]
        if plain or not (isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")):
            held[name] = kind.kept(value, bind.dialect)
