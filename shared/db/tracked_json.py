"""JSON documents that tell their row of every edit in place, however deep, so that the edit is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, SupportsIndex, TypeVar

from sqlalchemy.ext.mutable import Mutable
from sqlalchemy.orm.attributes import flag_modified
from sqlalchemy.types import TypeEngine

ColumnType = TypeVar("ColumnType", bound=TypeEngine[Any])
# Nearly all that documents hold: known at a glance, where asking for a Mapping takes longer than all the rest.
_SCALARS = frozenset({str, int, float, bool, type(None)})


class TrackedJSON(Mutable):
    """A container of a JSON document.

    The one at the top is known to its row; one inside passes the news up to its owner. What is put into it is
    copied in, so that two rows never share a document.
    """

    _owner: TrackedJSON | None = None

    def changed(self) -> None:
        """Tell the row, or the container this one stands in."""
        for state, attribute in list(self._parents.items()):
            row = state.obj()
            # A document that was replaced since is no longer the row's. (One that expired is, and raises.)
            if row is not None and state.dict.get(attribute, self) is self:
                flag_modified(row, attribute)
        if self._owner is not None:
            self._owner.changed()

    def _adopt(self, value: Any) -> Any:
        if type(value) in _SCALARS:
            return value
        if isinstance(value, TrackedJSON) and value._owner is self:
            return value
        if isinstance(value, (Mapping, list, tuple)):
            value = _container(value)
            value._owner = self
        return value

    @property
    def _in_use(self) -> bool:
        held = (state.dict.get(attribute) is self for state, attribute in self._parents.items())
        return self._owner is not None or any(held)


class TrackedDict(TrackedJSON, dict[str, Any]):
    """A dict that tells its row of every change."""

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), **more: Any) -> None:
        dict.__init__(self, items, **more)
        for key, item in self.items():
            if type(item) not in _SCALARS:
                dict.__setitem__(self, key, self._adopt(item))

    def __setitem__(self, key: str, value: Any) -> None:
        dict.__setitem__(self, key, self._adopt(value))
        self.changed()

    def __delitem__(self, key: str) -> None:
        dict.__delitem__(self, key)
        self.changed()

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As dict's."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **more: Any) -> None:
        """As dict's."""
        for key, value in dict(*args, **more).items():
            self[key] = value

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc] # dict's own overloads
        self.update(other)
        return self

    def pop(self, *args: Any) -> Any:
        """As dict's."""
        value = dict.pop(self, *args)
        self.changed()
        return value

    def popitem(self) -> tuple[str, Any]:
        """As dict's."""
        item = dict.popitem(self)
        self.changed()
        return item

    def clear(self) -> None:
        """As dict's."""
        dict.clear(self)
        self.changed()

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return TrackedDict, (dict(self),)


class TrackedList(TrackedJSON, list[Any]):
    """A list that tells its row of every change."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        list.__init__(self)
        list.extend(self, [self._adopt(item) for item in items])

    def __setitem__(self, index: Any, value: Any) -> None:
        list.__setitem__(
            self,
            index,
            [self._adopt(item) for item in value] if isinstance(index, slice) else self._adopt(value),
        )
        self.changed()

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        list.__delitem__(self, index)
        self.changed()

    def append(self, item: Any) -> None:
        """As list's."""
        list.append(self, self._adopt(item))
        self.changed()

    def extend(self, items: Iterable[Any]) -> None:
        """As list's."""
        list.extend(self, [self._adopt(item) for item in items])
        self.changed()

    def __iadd__(self, items: Iterable[Any]) -> Self:  # type: ignore[misc] # list's own overloads
        self.extend(items)
        return self

    def __imul__(self, times: SupportsIndex) -> Self:
        self[:] = list(self) * times
        return self

    def insert(self, index: SupportsIndex, item: Any) -> None:
        """As list's."""
        list.insert(self, index, self._adopt(item))
        self.changed()

    def pop(self, index: SupportsIndex = -1) -> Any:
        """As list's."""
        item = list.pop(self, index)
        self.changed()
        return item

    def remove(self, item: Any) -> None:
        """As list's."""
        list.remove(self, item)
        self.changed()

    def clear(self) -> None:
        """As list's."""
        list.clear(self)
        self.changed()

    def sort(self, **how: Any) -> None:
        """As list's."""
        list.sort(self, **how)
        self.changed()

    def reverse(self) -> None:
        """As list's."""
        list.reverse(self)
        self.changed()

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return TrackedList, (list(self),)


def tracked(column_type: ColumnType, refuse: Callable[[str], Exception]) -> ColumnType:
    """`column_type`, made to give tracked documents; `refuse` makes the error for what cannot be one."""

    class Slot(Mutable):
        # Registered in place of TrackedJSON itself: what is assigned then passes here even if it is tracked
        # already, by another row that must not see this one's edits.
        @classmethod
        def coerce(cls, key: str, value: Any) -> Any:
            if value is None or (isinstance(value, TrackedJSON) and not value._in_use):
                return value
            if not isinstance(value, (dict, list, tuple, Mapping)):
                raise refuse(f"a JSON document is a dict or a list, not {type(value).__name__}")
            try:
                return _container(value)
            except RecursionError:
                raise refuse("the JSON document is nested too deeply, or contains itself") from None

    Slot.as_mutable(column_type)
    return column_type


def _container(value: Mapping[str, Any] | list[Any] | tuple[Any, ...]) -> TrackedJSON:
    return TrackedDict(value) if isinstance(value, (dict, Mapping)) else TrackedList(value)
