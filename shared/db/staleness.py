"""Loaded objects that the database may have changed or deleted since: they are read again before they answer.

What such an object held last stays with it, for whoever reads it after its session has closed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

from sqlalchemy import ForeignKey, Table, inspect
from sqlalchemy.orm import InstanceState, Session
from sqlalchemy.orm.attributes import set_committed_value

# An attribute of the state, which no pickle takes along: secrets are among the values.
_LAST_SEEN: Final = "shared_db_last_seen"
Key = tuple[Table, Any]


def read_again(session: Session, states: Iterable[InstanceState[Any]]) -> None:
    """Have these objects read their rows before they answer again; changes that are not flushed stay.

    The primary key stays too: it says which row is meant, and does not change.
    """
    for state in states:
        entity = state.obj()  # held meanwhile: a session does not keep its objects from the collector
        if entity is not None and not state.expired:
            keys = {state.mapper.get_property_by_column(column).key for column in state.mapper.primary_key}
            columns = [attribute.key for attribute in state.mapper.column_attrs if attribute.key not in keys]
            loaded = [relation.key for relation in state.mapper.relationships if relation.key in state.dict]
            _expire(session, state, columns + loaded)
            # What makes session.get() look whether the row is still there.
            state.expired = True


def give_back(states: Iterable[InstanceState[Any]]) -> None:
    """Let objects that are about to leave their session hold what they held last, where they were not read since."""
    for state in states:
        for name, value in state.__dict__.pop(_LAST_SEEN, {}).items():
            if name not in state.dict and name not in state.committed_state and state.obj() is not None:
                set_committed_value(state.obj(), name, value)


def read_again_below(session: Session, deleted: Collection[InstanceState[Any]]) -> None:
    """After a flush deleted these: so may the database have deleted rows below them that the session has loaded.

    A row is spared where the session holds the whole way up from it, and knows that all of that is still there.
    """
    lost = {_key(state) for state in deleted}
    tables = {table for table, _ in lost}
    in_doubt = set(below(tables))
    states = {_key(state): state for state in session.identity_map.all_states()}
    kept = {key: state for key, state in states.items() if key not in lost}

    def is_lost(state: InstanceState[Any], reference: ForeignKey) -> bool:
        parent = reference.column.table
        if parent not in tables and parent not in in_doubt:
            return False
        attribute = state.mapper.get_property_by_column(reference.parent).key
        if attribute not in state.dict or not reference.column.primary_key:
            return True
        named = parent, state.dict[attribute]
        return named[1] is not None and (named in lost or (parent in in_doubt and named not in kept))

    found = True
    while found:
        more = {
            key: state
            for key, state in kept.items()
            if key[0] in in_doubt and any(is_lost(state, reference) for reference in key[0].foreign_keys)
        }
        found = bool(more)
        lost.update(more)
        for key in more:
            del kept[key]
    gone = set(deleted) | {states[key] for key in lost if key in states}
    read_again(session, (state for state in gone if state not in deleted))
    _leave_out(session, kept.values(), gone, set(deleted))


def read_again_of(session: Session, table: Any) -> None:
    """After a statement deleted from a table: all rows of it, and below it, that the session has loaded."""
    tables = {table, *below({table})}
    in_doubt = {state for state in session.identity_map.all_states() if state.mapper.local_table in tables}
    read_again(session, in_doubt)
    kept = (state for state in session.identity_map.all_states() if state not in in_doubt)
    for state in kept:
        for relation in state.mapper.relationships:
            if relation.key in state.dict and relation.mapper.local_table in tables:
                _expire(session, state, [relation.key])


def _leave_out(
    session: Session,
    kept: Iterable[InstanceState[Any]],
    gone: set[InstanceState[Any]],
    deleted: set[InstanceState[Any]],
) -> None:
    """Have what hangs on these objects read again where some of it may be gone."""
    for state in kept:
        for relation in state.mapper.relationships:
            linked = state.dict.get(relation.key)
            among = [inspect(one) for one in (linked if relation.uselist else [linked]) or () if one is not None]
            if gone.intersection(among):
                _expire(session, state, [relation.key])
                if relation.uselist and not gone.difference(deleted).intersection(among):
                    remaining = [one.obj() for one in among if one not in gone]
                    getattr(state, _LAST_SEEN)[relation.key] = remaining
                else:
                    getattr(state, _LAST_SEEN).pop(relation.key, None)


def _expire(session: Session, state: InstanceState[Any], names: Iterable[str]) -> None:
    entity = state.obj()
    if entity is None:
        return
    names = [name for name in names if name not in state.committed_state]
    seen = {name: state.dict[name] for name in names if name in state.dict}
    setattr(state, _LAST_SEEN, getattr(state, _LAST_SEEN, {}) | seen)
    session.expire(entity, names)


def _key(state: InstanceState[Any]) -> Key:
    identity = state.identity or (None,)
    return state.mapper.local_table, identity[0] if len(identity) == 1 else identity  # type: ignore[return-value] # a table, of our models


def below(tables: Collection[Any]) -> Iterator[Any]:
    """The tables whose rows name rows of these, and those below them in turn."""
    found, reached = set(tables), set(tables)
    while reached:
        every = {table for parent in reached for table in parent.metadata.tables.values()}
        named = {table for table in every if any(key.column.table in reached for key in table.foreign_keys)}
        reached = named - found
        found |= reached
        yield from reached
