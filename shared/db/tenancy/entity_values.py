"""What a mapped object holds of its row, by column: loaded, about to be written, or just written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import InstanceState, Mapper, RelationshipDirection, Session
from sqlalchemy.orm.attributes import instance_state

from shared.db.tables import open_references, ownership_of, primary_key, public_among
from shared.db.tenancy.guard import KEPT


def column_values(entity: object) -> dict[str, Any]:
    """The loaded column values of a mapped object, by column name; nothing is fetched."""
    state = instance_state(entity)
    names, attributes = _attributes(state.mapper)
    return dict(zip(names, map(state.dict.get, attributes), strict=True))


def values_to_come(session: Session, entity: object) -> dict[str, Any]:
    """The column values that a flush is about to write, and what stays as it is of owner and parents.

    Parents that came as objects are told by their keys, which new ones may not have yet.
    """
    return _stored_and_to_come(session, entity)[1]


def judged_values(session: Session, entity: object) -> dict[str, Any]:
    """The same as `OwnershipGuard` judges it."""
    return _with_kept(instance_state(entity), *_stored_and_to_come(session, entity))


def _stored_and_to_come(session: Session, entity: object) -> tuple[dict[str, Any], dict[str, Any]]:
    state = instance_state(entity)
    values = column_values(entity)
    ownership = ownership_of(type(entity))
    if ownership is not None and state.identity is not None:
        attributes = zip(*_attributes(state.mapper), strict=True)
        unknown = [name for name, key in attributes if name in ownership.columns and key not in state.dict]
        if unknown:
            table = state.mapper.local_table
            stored = select(*(table.c[name] for name in unknown)).where(
                state.mapper.primary_key[0] == state.identity[0]
            )
            values.update(Session.connection(session).execute(stored).mappings().first() or {})
    before = dict(values)
    for name, pairs in parents_of(state.mapper):
        # A relationship that was only loaded says nothing: what its column was set to since counts.
        if name in state.committed_state and (parent := state.dict.get(name)) is not None:
            values.update({column: instance_state(parent).dict.get(key) for column, key in pairs})
    return before, values


def _with_kept(state: InstanceState[Any], stored: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values as they are judged: of a stored row's names of public rows those alone that change."""
    kept = {}
    for column in open_references(state.mapper.class_) if state.identity is not None else ():
        key = state.mapper.get_property_by_column(state.mapper.local_table.c[column]).key
        if values[column] is not None and values[column] == state.committed_state.get(key, stored[column]):
            kept[column] = KEPT
    return values | kept


def as_changed(entity: object, change: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a stored object, by column name, as they are judged once `change` is written."""
    stored = column_values(entity)
    return _with_kept(instance_state(entity), stored, stored | dict(change))


def only_named(session: Session, state: InstanceState[Any]) -> bool:
    """Whether the object's row may be public, and a flush leaves it as it is."""
    public = state.identity is not None and public_among(state.mapper.tables) is not None
    return public and not session.is_modified(state.obj(), include_collections=False)


@lru_cache
def parents_of(mapper: Mapper[Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The relationships that lead to one parent: each one's name, with its columns here and the attributes there."""
    return [
        (relation.key, [(here.name, relation.mapper.get_property_by_column(there).key) for here, there in pairs])
        for relation in mapper.relationships
        if relation.direction is RelationshipDirection.MANYTOONE
        for pairs in [relation.local_remote_pairs or []]
    ]


@lru_cache
def _attributes(mapper: Mapper[Any]) -> tuple[list[str], list[str]]:
    """The names of its columns, and of the attributes that hold them."""
    columns = list(mapper.columns)
    return [column.name for column in columns], [mapper.get_property_by_column(column).key for column in columns]


def written_values(session: Session, entity: object) -> dict[str, Any]:
    """The column values of a mapped object just flushed; owner and parents as stored where they are not loaded."""
    values = column_values(entity)
    model: type[Any] = type(entity)
    ownership = ownership_of(model)
    if ownership is not None:
        names = [ownership.column, *(reference.column for reference in ownership.parents)]
        if any(values[name] is None for name in names):
            table = model.__table__
            stored = select(*(table.c[name] for name in names)).where(table.c[primary_key(model)] == key_of(entity))
            values.update(Session.connection(session).execute(stored).mappings().one())
    return _with_kept(instance_state(entity), values, values)


def key_of(entity: object) -> Any:
    """The primary key of a mapped object, stored or not."""
    state = instance_state(entity)
    return (state.identity or state.mapper.primary_key_from_instance(entity))[0]
