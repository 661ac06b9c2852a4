"""Columns of texts and documents, many values at once, to the cells of a bulk statement; None for a closer look."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Self, TypeVar, overload

from shared.db.value_forms.forms import Cells, Shortcut, Values

try:
    import orjson
except ImportError:  # the extra `fast` is not installed
    orjson = None  # type: ignore[assignment] # None is what tells

_SCALARS = {str, int, bool, type(None)}
_CONTAINERS = {dict, list}
Value = TypeVar("Value")


class StoredTexts(Sequence[Value]):
    """A column of values, each as the text of its cell, which saves making the value and then the text of it again.

    Whoever makes one has checked every text. Where a cell is no text, and for everybody else, these are the values.
    """

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    @staticmethod
    @abstractmethod
    def value(text: str) -> Value:
        """What a text stands for."""

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[Value]:
        return map(self.value, self.texts)

    @overload
    def __getitem__(self, at: int) -> Value: ...

    @overload
    def __getitem__(self, at: slice) -> Self: ...

    def __getitem__(self, at: int | slice) -> Value | Self:
        return type(self)(self.texts[at]) if isinstance(at, slice) else self.value(self.texts[at])


def words(allowed: frozenset[str]) -> Shortcut:
    """For words of a closed list."""
    return lambda values: values if _are_str(values) and allowed.issuperset(values) else None


def bounded(length: int) -> Shortcut:
    """For ASCII texts of at most `length` characters."""

    def texts(values: Values) -> Cells | None:
        if not _are_str(values):
            return None
        together = "".join(values)
        # Symbols, runs and accounts are mostly all the same.
        same = values[0] == values[-1] and values.count(values[0]) == len(values)
        longest = len(values[0]) if same else max(map(len, values))
        return values if longest <= length and together.isascii() and "\0" not in together else None

    return texts


def _are_str(values: Values) -> bool:
    # Exactly: what derives from str may claim to equal what it is not, the account of another user for one.
    return set(map(type, values)) == {str}


def documents() -> Shortcut | None:
    """For JSON documents that orjson writes as the standard library does; None without orjson."""
    return None if orjson is None else _documents


def _documents(values: Values) -> Cells | None:
    if not set(map(type, values)) <= _CONTAINERS:
        return None
    try:
        if not _are_plain(values):
            return None
        texts = [orjson.dumps(value).decode() for value in values]
    except TypeError:  # keys that are not text, numbers above 64 bits, lone surrogates
        return None
    # The first test is much the faster one, and mostly enough.
    return None if any("\\" in text and "\\u0000" in text for text in texts) else texts


def _are_plain(documents: Iterable[Any], levels: int = 10) -> bool:
    """Whether they hold text, whole numbers, true, false, null, dicts and lists, and exactly these types."""
    items = [document.values() if type(document) is dict else document for document in documents]
    kinds = set(map(type, chain.from_iterable(items)))
    if kinds <= _SCALARS:
        return True
    return (
        kinds <= _SCALARS | _CONTAINERS
        and levels > 0
        and _are_plain((item for item in chain.from_iterable(items) if type(item) in _CONTAINERS), levels - 1)
    )
