"""What a table declares about itself, and the one registry of what was declared.

A mapped class says whose rows it holds in `__ownership__`. It enters the registry when it is mapped, whichever
package it is from, and whoever needs to know asks here at the moment of use: users' sessions, repositories,
PostgreSQL's policies, the audit log. The built-in tables are declared like any other.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any, Final, Literal

from sqlalchemy import Column, Table
from sqlalchemy.exc import NoReferenceError

from shared.db.errors import DeclarationError, UndeclaredTableError


class _Shared(Enum):
    """What a table declares whose rows belong to nobody: every user reads and writes them."""

    SHARED_BY_ALL = "shared by all"

    def __repr__(self) -> str:
        return self.name


# Not None: a value that somebody forgot must not open a table to everybody.
SHARED_BY_ALL: Final = _Shared.SHARED_BY_ALL


@dataclass(frozen=True)
class Reference:
    """A column that names a row of `parent`, which must belong to the same user.

    Every foreign key to a table of users' rows is such a reference by itself. Declare one where there is no foreign
    key, or where more must agree: `agrees` names columns that must hold the same value here and there, as a run's
    strategy must be one of the run's own account. A NULL names no row.
    """

    column: str
    parent: type[Any]
    agrees: tuple[str, ...] = ()
    optional: bool = False
    """Whether the column may be NULL; read off the table."""


@dataclass(frozen=True)
class Ownership:
    """Where the owner of a table's rows is found.

    `column` holds the owner's `user_id` itself, or the key of a row of `parent`, whose owner is then meant. The
    parent is read off the column's foreign key; name it where there is none. `references` are columns that name
    further rows, which must belong to the same user: those with a foreign key are found by themselves and may be
    named for the reader, the others are given as `Reference`.
    """

    column: str
    parent: type[Any] | None = None
    references: tuple[Reference | str, ...] = ()

    @cached_property
    def further(self) -> tuple[Reference, ...]:
        """The references, once the class is mapped."""
        return tuple(reference for reference in self.references if isinstance(reference, Reference))

    @cached_property
    def parents(self) -> tuple[Reference, ...]:
        """Every row that a row of this table names and whose owner must be its own."""
        leading = () if self.parent is None else (Reference(self.column, self.parent),)
        return leading + self.further

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns that say whose a row is."""
        return frozenset({self.column, *(reference.column for reference in self.parents)})

    @cached_property
    def judged(self) -> tuple[str, ...]:
        """Those, and the columns in which a parent must agree with the row, by name."""
        return tuple(sorted(self.columns.union(*(reference.agrees for reference in self.parents))))


class _Registry(Mapping[type[Any], Ownership | None]):
    """Each declared class with its ownership, None if it is shared by all; in the order of declaration."""

    def __init__(self) -> None:
        self._ownership: dict[type[Any], Ownership | None] = {}
        self._models: dict[Any, type[Any]] = {}
        self._agreeing: dict[type[Any], tuple[str, ...]] = {}

    def __getitem__(self, model: type[Any]) -> Ownership | None:
        return self._ownership[model]

    def __iter__(self) -> Iterator[type[Any]]:
        return iter(tuple(self._ownership))

    def __len__(self) -> int:
        return len(self._ownership)

    def items(self) -> ItemsView[type[Any], Ownership | None]:
        """A copy: another thread may import a package meanwhile."""
        return dict(self._ownership).items()

    def enter(self, model: type[Any], ownership: Ownership | None) -> None:
        self._ownership[model] = ownership
        self._models[model.__table__] = model
        self._note_what_agrees()

    def leave(self, model: type[Any]) -> None:
        self._ownership.pop(model, None)
        self._models.pop(model.__table__, None)
        self._note_what_agrees()

    def model_of(self, table: Any) -> type[Any] | None:
        return self._models.get(table)

    def columns_to_agree(self, parent: type[Any]) -> tuple[str, ...]:
        return self._agreeing.get(parent, ())

    def _note_what_agrees(self) -> None:
        named: dict[type[Any], set[str]] = {}
        for reference in (one for entry in self._ownership.values() if entry is not None for one in entry.further):
            named.setdefault(reference.parent, set()).update(reference.agrees)
        self._agreeing = {parent: tuple(sorted(columns)) for parent, columns in named.items()}


OWNERSHIP: Final = _Registry()
"""The registry. Never copy it: a package that is imported later declares more."""


def declare(model: type[Any]) -> None:
    """Enter a class that was just mapped. Raises `DeclarationError` for a declaration that cannot be.

    A class that declares nothing is left out, and refused at its first use in a user's session.
    """
    declared: Any = getattr(model, "__ownership__", Ellipsis)
    if declared is Ellipsis or model_of(model.__table__) is not None:  # it may share its parent class's table
        return
    try:
        OWNERSHIP.enter(model, _read(model, declared))
    except DeclarationError:
        table: Table = model.__table__
        table.metadata.remove(table)
        raise


def redeclare(model: type[Any], ownership: Any) -> None:
    """Take another declaration in place of the one that a class made."""
    OWNERSHIP.enter(model, _read(model, ownership))


def forget(model: type[Any]) -> None:
    """Take back what `declare` did, for a class that is thrown away."""
    OWNERSHIP.leave(model)


def model_of(table: Any) -> type[Any] | None:
    """The class that declared `table`, if one did."""
    return OWNERSHIP.model_of(table)


def is_shared(table: Any) -> bool:
    """Whether `table` was declared to be shared by all."""
    model = model_of(table)
    return model is not None and OWNERSHIP[model] is None


def is_table_name(name: str) -> bool:
    """Whether a declared table has this name, however it is written."""
    return any(model.__tablename__.lower() == name.lower() for model in OWNERSHIP)


def ownership_of(model: type[Any]) -> Ownership | None:
    """The ownership of `model`, None if it is shared by all. Raises `UndeclaredTableError` if it declared neither."""
    try:
        return OWNERSHIP[model]
    except KeyError:
        raise UndeclaredTableError(model.__name__) from None


def primary_key(model: type[Any]) -> str:
    """The name of the model's single primary-key column."""
    (column,) = model.__table__.primary_key.columns
    return str(column.name)


def columns_to_agree(parent: type[Any]) -> tuple[str, ...]:
    """The columns of `parent` that rows naming it must agree with."""
    return OWNERSHIP.columns_to_agree(parent)


def _read(model: type[Any], declared: Ownership | Literal[_Shared.SHARED_BY_ALL]) -> Ownership | None:
    """What `model` declares, with all that its foreign keys tell."""
    table: Table = model.__table__
    if len(table.primary_key.columns) != 1:
        raise DeclarationError(
            model.__name__, "its primary key has several columns; give it one, and a UniqueConstraint over the others"
        )
    if declared is SHARED_BY_ALL:
        return None
    if not isinstance(declared, Ownership):
        raise DeclarationError(model.__name__, f"{declared!r} is neither an Ownership nor SHARED_BY_ALL")
    parent = declared.parent or _parent(model, _column(model, declared.column))
    if parent is not None:
        _require_owned(model, declared.column, parent)
    references = _by_foreign_keys(model, declared.column)
    for reference in declared.references:
        if isinstance(reference, Reference):
            column = _column(model, reference.column)
            _require_owned(model, reference.column, reference.parent)
            for name in reference.agrees:
                _column(model, name)
                _column(reference.parent, name)
            references[reference.column] = replace(reference, optional=bool(column.nullable))
        elif reference not in references:
            _column(model, reference)
            raise DeclarationError(
                model.__name__,
                f"{reference} has no foreign key to a table of users' rows; give Reference({reference!r}, THE_MODEL)",
            )
    return Ownership(declared.column, parent, tuple(references.values()))


def _column(model: type[Any], name: str) -> Column[Any]:
    table: Table = model.__table__
    if name not in table.c:
        raise DeclarationError(model.__name__, f"the table {table.name} has no column {name}")
    return table.c[name]


def _named(model: type[Any], column: Column[Any]) -> list[type[Any]]:
    """The declared classes whose rows the column's foreign keys name."""
    try:
        named = {key.column.table: key.column for key in column.foreign_keys if key.column.primary_key}
    except NoReferenceError as error:
        raise DeclarationError(
            model.__name__, f"{column.name} names a table that is not there yet; import its class first"
        ) from error
    return [found for table in named if (found := model_of(table)) is not None]


def _parent(model: type[Any], column: Column[Any]) -> type[Any] | None:
    """Whose key the owner's column holds; None if it is the user's id itself."""
    named = _named(model, column)
    if len(named) > 1:
        found = " and ".join(sorted(parent.__name__ for parent in named))
        raise DeclarationError(model.__name__, f"{column.name} leads to {found}; name the one that is meant as parent=")
    if named:
        return None if _is_users(named[0]) else named[0]
    if column.name != "user_id":
        raise DeclarationError(
            model.__name__,
            f"{column.name} has no foreign key, and so no path to a user_id; name the class of its rows as parent=",
        )
    return None


def _is_users(model: type[Any]) -> bool:
    """Whether the rows of `model` are the users themselves."""
    entry = OWNERSHIP[model]
    return entry is not None and entry.parent is None and entry.column == primary_key(model)


def _require_owned(model: type[Any], column: str, parent: type[Any]) -> None:
    if OWNERSHIP.get(parent) is None:
        raise DeclarationError(
            model.__name__, f"{column} leads to {parent.__name__}, whose rows belong to no user; name another column"
        )


def _by_foreign_keys(model: type[Any], owner: str) -> dict[str, Reference]:
    """What the foreign keys tell: every row of users' tables that a row names, but for the owner's column."""
    table: Table = model.__table__
    found: dict[str, Reference] = {}
    for column in table.c:
        parents = [parent for parent in _named(model, column) if OWNERSHIP[parent] is not None]
        if column.name == owner or not parents:
            continue
        if len(parents) > 1:
            raise DeclarationError(
                model.__name__, f"{column.name} names rows of several tables; give each a column of its own"
            )
        found[column.name] = Reference(column.name, parents[0], optional=bool(column.nullable))
    return found
