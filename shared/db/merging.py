"""What was changed on an object, carried over to the session's own object of the same row."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState, Mapper, Session

from shared.db.errors import RowNotFoundError, StaleRowError

T = TypeVar("T")


def merge_changes(session: Session, entity: T) -> dict[InstanceState[Any], Any]:
    """As `session.merge()`, but of an object that was loaded once, only what was changed on it since is taken over.

    An object that never had a row gives all that is set on it. So do those that come along by cascade. Returns the
    session's own objects by the states of what was given, `entity` first; of the others only those that had something
    to say. Raises `RowNotFoundError` if a row to change is gone.
    """
    root = inspect(entity)
    if root.session is session:
        return {root: entity}
    merging = _Merging(session)
    coming = [root, *(linked[2] for linked in root.mapper.cascade_iterator("merge", root))]
    with session.no_autoflush:
        for state in coming:
            if state is root or state.key is None or state.modified:
                merging.own(state)
    return merging.found


class _Merging:
    def __init__(self, session: Session) -> None:
        self._session = session
        self.found: dict[InstanceState[Any], Any] = {}

    def own(self, state: InstanceState[Any]) -> Any:
        """The session's own object for `state`, which has what `state` has to say."""
        if state not in self.found:
            self.found[state] = mine = self._stored_or_new(state)
            if mine is not state.obj():
                self._take_over(state, mine)
        return self.found[state]

    def _stored_or_new(self, state: InstanceState[Any]) -> Any:
        if state.session is self._session:
            return state.obj()
        mapper = state.mapper
        key = state.identity or mapper.primary_key_from_instance(state.obj())
        mine = self._session.get(mapper.class_, tuple(key)) if all(part is not None for part in key) else None
        if mine is None:
            if state.key is not None:
                raise RowNotFoundError(mapper.class_.__name__, key[0] if len(key) == 1 else key)
            mine = mapper.class_manager.new_instance()
            self._session.add(mine)
        return mine

    def _take_over(self, state: InstanceState[Any], mine: Any) -> None:
        mapper: Mapper[Any] = state.mapper
        if state.key is not None:
            _refuse_other_version(state, mine)
        for column in mapper.column_attrs:
            if state.key is None:
                if column.key in state.dict:
                    setattr(mine, column.key, state.dict[column.key])
            elif (history := state.attrs[column.key].history).has_changes():
                setattr(mine, column.key, history.added[0] if history.added else None)
        for relation in mapper.relationships:
            if relation.cascade.merge and not relation.viewonly:
                take_over = self._take_over_many if relation.uselist else self._take_over_one
                take_over(relation.key, state, mine)

    def _take_over_one(self, name: str, state: InstanceState[Any], mine: Any) -> None:
        changed = state.attrs[name].history.has_changes() if state.key is not None else name in state.dict
        if changed:
            other = state.dict.get(name)
            setattr(mine, name, None if other is None else self.own(inspect(other)))

    def _take_over_many(self, name: str, state: InstanceState[Any], mine: Any) -> None:
        if name not in state.dict:
            return
        added, unchanged, deleted = state.attrs[name].history
        if state.key is None:
            setattr(mine, name, [self.own(inspect(other)) for other in (*(unchanged or ()), *(added or ()))])
        elif added or deleted:
            others = getattr(mine, name)
            for other in (self.own(inspect(one)) for one in added or ()):
                if other not in others:
                    others.append(other)
            for other in (self.own(inspect(one)) for one in deleted or ()):
                if other in others:
                    others.remove(other)


def _refuse_other_version(state: InstanceState[Any], mine: Any) -> None:
    version = state.mapper.version_id_col
    if version is not None:
        name = state.mapper.get_property_by_column(version).key
        seen, stored = state.committed_state.get(name, state.dict.get(name)), getattr(mine, name)
        if name in state.dict and seen != stored:
            raise StaleRowError(f"{state.mapper.class_.__name__} has version {stored} by now, and this is {seen}")
