"""JSON documents that tell their row of every edit in place, however deep, so that the edit is saved.

A document keeps its row alive, and one that no row would save any more refuses every edit: none is lost in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Self, SupportsIndex

from sqlalchemy import event, inspect
from sqlalchemy.orm import InstanceEvents, InstanceState, QueryableAttribute
from sqlalchemy.orm.attributes import flag_modified

from shared.db.errors import StaleDocumentError

# Nearly all that documents hold: known at a glance, where asking for a Mapping takes longer than all the rest.
_SCALARS = frozenset({str, int, float, bool, type(None)})
# In place of a row: the document was read as a column, or as a part of one, and nobody knows which row it is from.
_NO_ROW: Final = object()
_PICKLED = "shared_db_documents"
# What fills a row's attributes past the event "set". Of merge(load=False) onto a row that is there SQLAlchemy 2.1 tells
# its own extension alone; 2.0 tells "load".
_FILLED = ("load", *(name for name in ("_sa_event_merge_wo_load",) if hasattr(InstanceEvents, name)))


class TrackedJSON:
    """A container of a JSON document.

    The one at the top knows its row; one inside passes the news up to its owner. What is put into it is copied in, so
    that two rows never share a document.
    """

    _owner: TrackedJSON | None = None
    # Held: in `get_by_id(...).config_json["levels"] = 30` nobody else holds the row.
    _row: Any = None
    _attribute = ""

    @contextmanager
    def _edited(self) -> Iterator[None]:
        """Around each edit: refuse it beforehand if no row would save it, and tell the row afterwards."""
        top = self._top
        if top._row is _NO_ROW:
            raise StaleDocumentError("it was read as a column, and no row is known that would save the edit")
        if top._row is not None and not top._is_held:
            raise StaleDocumentError("its row was expired, read again, rolled back or deleted since")
        yield
        if top._row is not None:
            flag_modified(top._row, top._attribute)

    @property
    def _top(self) -> TrackedJSON:
        top = self
        while top._owner is not None:
            top = top._owner
        return top

    @property
    def _is_held(self) -> bool:
        """Whether the row still has this very document."""
        state = inspect(self._row)
        return state.dict.get(self._attribute) is self and not state.was_deleted

    @property
    def _in_use(self) -> bool:
        return self._owner is not None or (self._row not in (None, _NO_ROW) and self._is_held)

    def _belongs_to(self, state: InstanceState[Any], attribute: str) -> None:
        self._row, self._attribute = state.obj(), attribute

    def _adopt(self, value: Any) -> Any:
        if type(value) in _SCALARS:
            return value
        if isinstance(value, TrackedJSON) and value._owner is self:
            return value
        if isinstance(value, (Mapping, list, tuple)):
            value = _container(value)
            value._owner = self
        return value


class TrackedDict(TrackedJSON, dict[str, Any]):
    """A dict that tells its row of every change."""

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), **more: Any) -> None:
        dict.__init__(self, items, **more)
        for key, item in self.items():
            if type(item) not in _SCALARS:
                dict.__setitem__(self, key, self._adopt(item))

    def __setitem__(self, key: str, value: Any) -> None:
        with self._edited():
            dict.__setitem__(self, key, self._adopt(value))

    def __delitem__(self, key: str) -> None:
        with self._edited():
            dict.__delitem__(self, key)

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
        with self._edited():
            return dict.pop(self, *args)

    def popitem(self) -> tuple[str, Any]:
        """As dict's."""
        with self._edited():
            return dict.popitem(self)

    def clear(self) -> None:
        """As dict's."""
        with self._edited():
            dict.clear(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return TrackedDict, (dict(self),)


class TrackedList(TrackedJSON, list[Any]):
    """A list that tells its row of every change."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        list.__init__(self)
        list.extend(self, [self._adopt(item) for item in items])

    def __setitem__(self, index: Any, value: Any) -> None:
        with self._edited():
            list.__setitem__(
                self,
                index,
                [self._adopt(item) for item in value] if isinstance(index, slice) else self._adopt(value),
            )

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        with self._edited():
            list.__delitem__(self, index)

    def append(self, item: Any) -> None:
        """As list's."""
        with self._edited():
            list.append(self, self._adopt(item))

    def extend(self, items: Iterable[Any]) -> None:
        """As list's."""
        with self._edited():
            list.extend(self, [self._adopt(item) for item in items])

    def __iadd__(self, items: Iterable[Any]) -> Self:  # type: ignore[misc] # list's own overloads
        self.extend(items)
        return self

    def __imul__(self, times: SupportsIndex) -> Self:
        self[:] = list(self) * times
        return self

    def insert(self, index: SupportsIndex, item: Any) -> None:
        """As list's."""
        with self._edited():
            list.insert(self, index, self._adopt(item))

    def pop(self, index: SupportsIndex = -1) -> Any:
        """As list's."""
        with self._edited():
            return list.pop(self, index)

    def remove(self, item: Any) -> None:
        """As list's."""
        with self._edited():
            list.remove(self, item)

    def clear(self) -> None:
        """As list's."""
        with self._edited():
            list.clear(self)

    def sort(self, **how: Any) -> None:
        """As list's."""
        with self._edited():
            list.sort(self, **how)

    def reverse(self) -> None:
        """As list's."""
        with self._edited():
            list.reverse(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return TrackedList, (list(self),)


def track(attribute: QueryableAttribute[Any], refuse: Callable[[str], Exception]) -> None:
    """Have the documents of a mapped attribute tell their row; `refuse` makes the error for what cannot be one."""
    model, key = attribute.class_, attribute.key

    def filled(state: InstanceState[Any], *args: Any) -> None:
        document = state.dict.get(key)
        if not isinstance(document, (dict, list)):
            return  # none, or a bare value that another program has stored
        if not isinstance(document, TrackedJSON) or (document._in_use and document._row is not state.obj()):
            document = state.dict[key] = _container(document)
        document._belongs_to(state, key)

    def refilled(state: InstanceState[Any], context: Any, attributes: Iterable[str] | None) -> None:
        if not attributes or key in attributes:
            filled(state)

    def assigned(state: InstanceState[Any], value: Any, old: Any, initiator: Any) -> Any:
        if value is old:
            return value
        if isinstance(old, TrackedJSON):
            old._row = None  # it was given up on purpose, and may be edited and given back
        if value is None:
            return None
        document = _assignable(value, refuse)
        document._belongs_to(state, key)
        return document

    # The row's own pickle comes before what its attributes hold.
    def pickled(state: InstanceState[Any], pickle: dict[str, Any]) -> None:
        pickle.setdefault(_PICKLED, {})[key] = state.dict.get(key)

    def unpickled(state: InstanceState[Any], pickle: dict[str, Any]) -> None:
        document = pickle.get(_PICKLED, {}).get(key)
        if isinstance(document, TrackedJSON):
            document._belongs_to(state, key)

    for name in _FILLED:
        event.listen(model, name, filled, raw=True)
    for name in ("refresh", "refresh_flush"):
        event.listen(model, name, refilled, raw=True)
    event.listen(attribute, "set", assigned, raw=True, retval=True)
    event.listen(model, "pickle", pickled, raw=True)
    event.listen(model, "unpickle", unpickled, raw=True)


def as_read(value: Any) -> Any:
    """A stored document for whoever reads it: one that a row may take over, and that refuses edits until then."""
    if isinstance(value, (dict, list)):
        document = _container(value)
        document._row = _NO_ROW
        return document
    return value


def as_stored(document: Any, plain: Any) -> Any:
    """`plain`, what is stored of `document`, in the place of `document`'s own content; no edit."""
    if isinstance(document, TrackedDict):
        if any(type(key) is not str for key in document):
            values = list(document.values())
            dict.clear(document)
            dict.update(document, zip(plain, values, strict=True))
        for key, item in plain.items():
            dict.__setitem__(document, key, as_stored(document[key], item))
    elif isinstance(document, TrackedList):
        for index, item in enumerate(plain):
            list.__setitem__(document, index, as_stored(document[index], item))
    else:
        return plain
    return document


def _assignable(value: Any, refuse: Callable[[str], Exception]) -> TrackedJSON:
    if isinstance(value, TrackedJSON) and not value._in_use:
        return value
    if not isinstance(value, (dict, list, tuple, Mapping)):
        raise refuse(f"a JSON document is a dict or a list, not {type(value).__name__}")
    try:
        return _container(value)
    except RecursionError:
        raise refuse("the JSON document is nested too deeply, or contains itself") from None


def _container(value: Mapping[str, Any] | list[Any] | tuple[Any, ...]) -> TrackedJSON:
    return TrackedDict(value) if isinstance(value, (dict, Mapping)) else TrackedList(value)
