"""What a table declares about itself, and the one registry of what was declared.

A mapped class says whose rows it holds in `__ownership__`. It enters the registry when it is mapped, whichever
package it is from, and whoever needs to know asks here at the moment of use: users' sessions, repositories,
PostgreSQL's policies, the audit log. The built-in tables are declared like any other.

A class whose rows follow each other in time says so in `__stream__`. What is done with ranges of rows then works for
it: repositories' ranges and frames, the recorder, files, purge, health.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import ItemsView, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from functools import cached_property
from typing import Any, Final, Literal

from sqlalchemy import Boolean, Column, Table, UniqueConstraint
from sqlalchemy.exc import NoReferenceError

from shared.db.column_types import CheckedBoolean, UTCDateTime
from shared.db.errors import DeclarationError, InvalidValueError, UndeclaredTableError
from shared.db.value_forms.forms import forms_of, secrets_of


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

    `public` names a column of the table, True or False and never NULL: a row where it is True can be read, and named
    by a reference, by every user, and is written by its owner alone. It opens the row itself: rows that hang on it
    have a column of their own, or stay private.
    """

    column: str
    parent: type[Any] | None = None
    references: tuple[Reference | str, ...] = ()
    public: str | None = None

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


@dataclass(frozen=True)
class Stream:
    """A table whose rows follow each other in time, as trades, fills, tickers or orders do.

    A range is the rows with one value of the column `by` (a symbol, a run), ordered by the column `time`, and those
    of one instant by the column `tie`, which is left out where there is one row per instant. The three are never NULL,
    `time` is a `UTCDateTime`, and a unique key lies in them, so that the order is the same each time. An index on
    (`by`, `time`, `tie`) makes ranges fast.
    """

    by: str
    time: str
    tie: str | None = None
    fills: bool = False
    """Whether several messages tell of one row, each knowing more: then the recorder fills what is NULL."""
    row: type[Any] | None = None
    """The named tuple that plain rows come as, with the columns to read as its fields. One is made if none is given,
    of all columns but a generated key, documents and secrets."""
    exported: tuple[str, ...] = ()
    """The columns of an exported file, in their order: all but a generated key and secrets, unless given."""
    from_json: Mapping[str, str] = field(default_factory=dict)
    """Further columns of an exported CSV, and the name under which the document in raw_json has them."""

    @property
    def order(self) -> tuple[str, ...]:
        """The columns by which the rows of a range are ordered."""
        return (self.time,) if self.tie is None else (self.time, self.tie)


def cursor_text(when: datetime, tie: Any = "") -> str:
    """Where a row stands in its range, as printable text."""
    return f"{when.isoformat()}/{tie}"


class _Registry(Mapping[type[Any], Ownership | None]):
    """Each declared class with its ownership, None if it is shared by all; in the order of declaration."""

    def __init__(self) -> None:
        self._ownership: dict[type[Any], Ownership | None] = {}
        self._models: dict[Any, type[Any]] = {}
        self._streams: dict[type[Any], Stream] = {}
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

    def enter(self, model: type[Any], ownership: Ownership | None, stream: Stream | None) -> None:
        self._ownership[model] = ownership
        if stream is not None:
            self._streams[model] = stream
        self._models[model.__table__] = model
        self._note_what_agrees()

    def leave(self, model: type[Any]) -> None:
        self._ownership.pop(model, None)
        self._streams.pop(model, None)
        self._models.pop(model.__table__, None)
        self._note_what_agrees()

    def model_of(self, table: Any) -> type[Any] | None:
        return self._models.get(table)

    def streams(self) -> dict[type[Any], Stream]:
        return dict(self._streams)

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
        OWNERSHIP.enter(model, _read(model, declared), _read_stream(model))
    except DeclarationError:
        table: Table = model.__table__
        table.metadata.remove(table)
        raise


def redeclare(model: type[Any], ownership: Any) -> None:
    """Take another declaration in place of the one that a class made."""
    OWNERSHIP.enter(model, _read(model, ownership), None)


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


def streams() -> dict[type[Any], Stream]:
    """Every class that declared a stream, in the order of declaration."""
    return OWNERSHIP.streams()


def stream_of(model: type[Any]) -> Stream:
    """The stream of `model`. `InvalidValueError` if it declared none."""
    found = OWNERSHIP.streams().get(model)
    if found is None:
        known = ", ".join(sorted(one.__name__ for one in OWNERSHIP.streams()))
        raise InvalidValueError(
            f"{getattr(model, '__name__', model)} is no stream of rows; give the class a __stream__ = Stream(by=..., "
            f"time=..., tie=...), or take one that has it: {known}"
        )
    return found


def stream_named(table: str) -> type[Any] | None:
    """The class that declared a stream in the table of this name, if one did."""
    return next((model for model in OWNERSHIP.streams() if model.__tablename__ == table), None)


def generated_key(model: type[Any]) -> str | None:
    """The name of a key that the database gives, and that says nothing outside of it."""
    table: Table = model.__table__
    return None if table.autoincrement_column is None else str(table.autoincrement_column.name)


def index_leads_to(model: type[Any], time: str) -> tuple[str, ...]:
    """The columns that come right before `time` at the beginning of an index."""
    return tuple(sorted(columns[0] for columns in _indexed(model) if columns[1:2] == [time]))


def begins_index(model: type[Any], *names: str) -> bool:
    """Whether these columns, in this order, are the beginning of an index."""
    return any(columns[: len(names)] == [*names] for columns in _indexed(model))


def _indexed(model: type[Any]) -> list[list[str]]:
    table: Table = model.__table__
    keys: list[Any] = [one for one in table.constraints if isinstance(one, UniqueConstraint)]
    return [[column.name for column in one.columns] for one in (*keys, *table.indexes)]


def public_among(tables: Iterable[Any]) -> type[Any] | None:
    """The class of the first of these tables that may hold public rows, None if there is none."""
    for model in map(model_of, tables):
        ownership = None if model is None else OWNERSHIP[model]
        if ownership is not None and ownership.public is not None:
            return model
    return None


def open_references(model: type[Any]) -> tuple[str, ...]:
    """The columns of `model`, which holds users' rows, by which a row may name another user's public one."""
    ownership = OWNERSHIP.get(model)
    references = () if ownership is None else ownership.further
    return tuple(one.column for one in references if public_among([one.parent.__table__]) is not None)


def holds_users_rows(model: type[Any]) -> bool:
    """Whether the rows of `model` belong to users; neither those shared by all do, nor the users themselves."""
    return ownership_of(model) is not None and not _is_users(model)


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
    _check_public(model, declared)
    return Ownership(declared.column, parent, tuple(references.values()), declared.public)


def _check_public(model: type[Any], declared: Ownership) -> None:
    """Refuse a column that cannot say which rows everybody may read."""
    if declared.public is None:
        return
    column = _column(model, declared.public)
    if not isinstance(column.type, (Boolean, CheckedBoolean)) or column.nullable:
        raise DeclarationError(
            model.__name__,
            f"{declared.public} cannot say what is public; make it a CheckedBoolean() that is never NULL",
        )
    if secrets_of(model.__table__):
        raise DeclarationError(
            model.__name__, "every user would read the secrets of a public row; keep them in a table of their own"
        )
    if declared.column == primary_key(model) and declared.parent is None:
        raise DeclarationError(
            model.__name__, "its rows are the users themselves; keep what all may read in a table of its own"
        )


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


def _read_stream(model: type[Any]) -> Stream | None:
    """What `model` declares of its order, with the class of its plain rows."""
    declared = getattr(model, "__stream__", None)
    if declared is None:
        return None
    if not isinstance(declared, Stream):
        raise DeclarationError(model.__name__, f"__stream__ is {declared!r}, and no Stream(by=..., time=..., tie=...)")
    named = (declared.by, *declared.order)
    columns = [_column(model, name) for name in named]
    if not isinstance(columns[1].type, UTCDateTime):
        raise DeclarationError(model.__name__, f"{declared.time} is no time; a stream's is a UTCDateTime()")
    for column in columns:
        if column.nullable:
            raise DeclarationError(model.__name__, f"{column.name} may be NULL, which has no place in an order")
    if not any(unique <= {*named} for unique in _unique_keys(model)):
        raise DeclarationError(
            model.__name__, f"rows may be alike in {', '.join(named)}; name a tie that is unique, by a UniqueConstraint"
        )
    for name in (*declared.exported, *(declared.row._fields if declared.row else ())):
        _column(model, name)
    table: Table = model.__table__
    own = [column for column in table.c if column.name in named or column.name != generated_key(model)]
    told = [column for column in own if column.name not in secrets_of(table)]
    return replace(
        declared,
        row=declared.row or _plain_row(model, declared, [one.name for one in told if not forms_of(one.type).document]),
        exported=declared.exported or tuple(column.name for column in told),
    )


def _unique_keys(model: type[Any]) -> list[set[str]]:
    table: Table = model.__table__
    keys: list[Any] = [table.primary_key, *(one for one in table.constraints if isinstance(one, UniqueConstraint))]
    # One that holds for a part of the rows says nothing of the others.
    keys += [one for one in table.indexes if one.unique and not any(name.endswith("_where") for name in one.kwargs)]
    return [{column.name for column in key.columns} for key in keys]


def _plain_row(model: type[Any], stream: Stream, names: list[str]) -> type[Any]:
    make: Any = namedtuple  # noqa: PYI024 # its fields are known only now
    fields = make(f"{model.__name__}Row", names)
    cursor = property(
        lambda row: cursor_text(*(getattr(row, name) for name in stream.order)),
        doc="Where this row stands in its range: `after=row.cursor` continues behind it.",
    )
    return type(fields.__name__, (fields,), {"__slots__": (), "__module__": model.__module__, "cursor": cursor})
