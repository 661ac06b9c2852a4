"""`get_or_create()`: the row that is known by more than its primary key, made by whoever comes first."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import inspect

from shared.db.errors import ConstraintError, StoredDifferentlyError
from shared.db.mapped_values import keep_as_stored
from shared.db.tenancy.entity_values import column_values, parents_of, values_to_come
from shared.db.tenancy.plain_writes import discard_changes
from shared.db.tenancy.user_ids import UNSET, UserId

T = TypeVar("T")


class ByNaturalKey(Generic[T]):
    """What a repository has whose table says by a unique constraint which rows are the same."""

    # The columns of that constraint.
    natural_key: ClassVar[tuple[str, ...]]

    def get_or_create(self: Any, entity: T, *, user_id: UserId = UNSET) -> T:
        """The row that is stored with `entity`'s natural key, or `entity` itself, inserted, where there is none.

        Two processes that ask for the same at once both get the one row. Raises `StoredDifferentlyError` if that row
        has another value for anything that is set on `entity`, and whatever `create()` raises.
        """
        self._resolve(user_id)
        if _hangs_on_a_new_row(entity):
            created: T = self.create(entity, user_id=user_id)
            return created
        found: T | None = self._same(entity, user_id)
        if found is None:
            # A savepoint begins with a flush, which must not meet what is not in the session yet.
            discard_changes(self.session, entity)
            try:
                with self.session.begin_nested():
                    found = self.create(entity, user_id=user_id)
            except ConstraintError:
                found = self._same(entity, user_id)  # another process was first
                if found is None:
                    raise
        return found

    def _same(self: Any, entity: Any, user_id: UserId) -> Any:
        session, columns = self.session, self.model.__table__.c
        with session.no_autoflush:
            keep_as_stored(session, entity)
            said = _said(session, entity)
            key = {name: said.get(name) for name in self.natural_key}
            if None in key.values():
                return None
            found = self._first(self._mine(user_id).where(*(columns[name] == value for name, value in key.items())))
            if found is not None and found is not entity:
                discard_changes(session, entity)  # what it was linked to must not think that it comes along
                stored = column_values(found)
                different = sorted(name for name, value in said.items() if stored[name] != value)
                if different:
                    raise StoredDifferentlyError(self.model.__name__, self.natural_key, different)
            return found


def _hangs_on_a_new_row(entity: Any) -> bool:
    """Whether a parent comes as an object that has no row yet, so that nothing can be stored below it."""
    parents = [entity.__dict__.get(name) for name, _ in parents_of(inspect(entity).mapper)]
    return any(inspect(parent).identity is None for parent in parents if parent is not None)


def _said(session: Any, entity: Any) -> dict[str, Any]:
    """The column values that are set on an object, by itself or by a parent that came as an object."""
    mapper = inspect(entity).mapper
    attributes = {column.name: mapper.get_property_by_column(column).key for column in mapper.columns}
    values = values_to_come(session, entity)
    return {name: value for name, value in values.items() if value is not None or attributes[name] in entity.__dict__}
