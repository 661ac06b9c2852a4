"""What a statement has written as it was given: names, types and operators, each judged by the text that comes out.

SQLAlchemy quotes names and spells types, except where it is told not to (`quoted_name(..., quote=False)`), or where a
type takes text. All names pass through its identifier preparer and all types through its type compiler.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final, Protocol

# A name that is written as it stands, or inside the dialect's quotes, which nothing in it closes (MySQL's others are of
# texts, where a backslash escapes); or the place of a schema's name, which is filled in when the statement is sent, and
# comes here then.
_NAMES = {
    quote: re.compile(rf"[A-Za-z_][A-Za-z0-9_$]*|__\[SCHEMA_\w+\]|{quote}(?:[^{quote}]|{quote}{quote})*{quote}")
    for quote in ('"', "`")
}
# An operator given as text may be made of operator characters only, and begin no comment.
_OPERATOR = re.compile(r"(?!.*(--|/\*))[-+*/<>=~!@#%^&|?]+")
# A type given as text may hold no parentheses but those around its numbers: it could close the CAST it stands in.
_WORD: Final = r'(?:\w+|"[^"]*")'
_TYPE_NAME = re.compile(rf"{_WORD}(?:\.{_WORD})?( \w+)*(\(\d+(, ?\d+)*\))?( \w+)*(\[\])*( COLLATE {_WORD})?")


class Refusing(Protocol):
    """Whoever writes the statement."""

    def refuse(self, what: str) -> None:
        """Raise, unless raw SQL passes."""


_writing: ContextVar[Refusing | None] = ContextVar("shared_db_writing", default=None)


@contextmanager
def writing(by: Refusing) -> Iterator[None]:
    """While the block runs, types are written for this statement."""
    token = _writing.set(by)
    try:
        yield
    finally:
        _writing.reset(token)


def is_operator(text: str) -> bool:
    """Whether an operator given as text is one."""
    return _OPERATOR.fullmatch(text) is not None


class CheckedNames:
    """A dialect's identifier preparer that refuses a name which would be written as SQL."""

    refusing: Refusing
    initial_quote: str

    def quote(self, ident: Any, *args: Any, **options: Any) -> str:
        """The name, quoted where it must be."""
        text: str = super().quote(ident, *args, **options)  # type: ignore[misc] # SQLAlchemy's, mixed in below
        if not _NAMES[self.initial_quote].fullmatch(text):
            self.refusing.refuse("a name that is not quoted")
        return text


class CheckedTypes:
    """A dialect's type compiler that, inside a confined statement, refuses a type which would be written as SQL."""

    def process(self, type_: Any, **options: Any) -> str:
        """The type as SQL."""
        text: str = super().process(type_, **options)  # type: ignore[misc] # SQLAlchemy's, mixed in below
        refusing = _writing.get()
        if refusing is not None and not _TYPE_NAME.fullmatch(text):
            refusing.refuse("a type that is more than a name")
        return text


def checking_names(preparer: Any, refusing: Refusing) -> Any:
    """A copy of a dialect's preparer for one statement."""
    if isinstance(preparer, CheckedNames):  # made of one for this statement, to fill in schemas
        return preparer
    checking = copy.copy(preparer)
    kind: Any = type(preparer)
    checking.__class__ = _mixed(CheckedNames, kind)
    checking.refusing = refusing
    return checking


def check_types(dialect: Any) -> None:
    """Have a dialect's type compiler check."""
    kind: Any = type(dialect.type_compiler_instance)
    dialect.type_compiler_instance = _mixed(CheckedTypes, kind)(dialect)


@lru_cache
def _mixed(checked: Any, kind: Any) -> Any:
    return type(f"{checked.__name__}Of{kind.__name__}", (checked, kind), {})
