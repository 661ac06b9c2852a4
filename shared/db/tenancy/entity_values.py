"""What a mapped object holds of its row, by column: loaded, about to be written, or just written."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Mapper, RelationshipDirection, Session
from sqlalchemy.orm.attributes import instance_state

from shared.db.tables import ownership_of, primary_key


def column_values(entity: object) -> dict[str, Any]:
    """The loaded column values of a mapped object, by column name; nothing is fetched."""
    state = instance_state(entity)
    names, attributes = _attributes(state.mapper)
    return dict(zip(names, map(state.dict.get, attributes), strict=True))


def values_to_come(session: Session, entity: object) -> dict[str, Any]:
    """The column values that a flush is about to write, and what stays as it is of owner and parents.

    Parents that came as objects are told by their keys, which new ones may not have yet.
    """
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
    for name, pairs in parents_of(state.mapper):
        # A relationship that was only loaded says nothing: what its column was set to since counts.
        if name in state.committed_state and (parent := state.dict.get(name)) is not None:
            values.update({column: instance_state(parent).dict.get(key) for column, key in pairs})
    return values


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
    return values


def key_of(entity: object) -> Any:
    """The primary key of a mapped object, stored or not."""
    state = instance_state(entity)
    return (state.identity or state.mapper.primary_key_from_instance(entity))[0]
