"""Statements that store a row which names what is the other user's, as functions of any declared table.

The two-user machine takes one of them at a time, the adversarial cases all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle
from random import Random
from typing import Any

from sqlalchemy import Enum, String, bindparam, func, insert, inspect, literal, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.types import TypeDecorator

from shared.db import Base, PublicTrade, User
from shared.db.bulk import bulk_create
from shared.db.tables import OWNERSHIP, primary_key
from shared.db.tests.two_users.reads import REPOSITORIES
from shared.db.tests.two_users.world import KEYED, MADE, NAMES, TEXTS, Values, World, loaded
from shared.db.tests.two_users.writes import column_of


@dataclass(frozen=True)
class Place:
    """A column of a table by which a row can name what is the other user's, and rows to put it in.

    `mine` is what stands there in an own row, `theirs` what must not.
    """

    model: type[Base]
    column: str
    mine: str
    theirs: str
    values: Values
    """A new own row."""
    beside: Values
    """And another one."""
    own: str
    """The name of an own row that is stored, and of one of the other user's."""
    foreign: str

    def row(self, value: Any, **more: Any) -> Values:
        """A new row with that value there."""
        return self.values | {self.column: value} | more

    def rows(self, value: Any) -> list[Values]:
        """An own one before it."""
        return [self.beside | {self.column: self.mine}, self.row(value)]

    @property
    def attribute(self) -> Any:
        """The column as the class has it."""
        return column_of(self.model, self.column)

    @property
    def key(self) -> str:
        """The name of the primary key."""
        return primary_key(self.model)

    @property
    def required(self) -> bool:
        """Whether a row must name something there."""
        return not self.model.__table__.c[self.column].nullable

    def object(self, session: Session) -> Any:
        """The session's object of the own row."""
        return loaded(session, self.model, self.own)

    def key_of(self, session: Session) -> Any:
        """The primary key of the own row."""
        return getattr(self.object(session), self.key)


Form = Callable[[Session, Place], object]


def references(model: type[Base]) -> list[tuple[str, type[Base]]]:
    """The columns by which a row of the table names a row that must be its owner's, or the owner; with whose key."""
    ownership = OWNERSHIP[model]
    assert ownership is not None
    return [(reference.column, reference.parent) for reference in ownership.parents] + (
        [(ownership.column, User)] if ownership.parent is None and model is not User else []
    )


def place_in(world: World, model: type[Base], column: str, parent: type[Base], rng: Random) -> Place:
    """A place of the table, with rows of the session's user that are as they should be."""
    own, values = world.an_own(model, rng), world.new(model, rng)
    # Where a row is called as the one that it hangs on, there may be no second one to hang a row on.
    beside = values if NAMES[model] in dict(references(model)) else world.new(model, rng)
    if column not in values:  # a reference to nothing, so far
        values[column] = world.an_own(parent, rng)
    theirs = world.a_foreign(parent, rng)
    return Place(model, column, values[column], theirs, values, beside, own, world.a_foreign(model, rng))


def places(world: World, models: tuple[type[Base], ...], rng: Random) -> Iterator[Place]:
    """Every place of these tables."""
    for model in models:
        for column, parent in references(model):
            hangs_on = dict(references(model)).get(NAMES[model])
            if hangs_on is not None:
                world.store(hangs_on, rng)
            yield place_in(world, model, column, parent, rng)


def shape(model: type[Base]) -> tuple[object, ...]:
    """What tells tables apart for whoever guards them: how far the owner is, what else is named, and the key."""
    far, ownership = 0, OWNERSHIP[model]
    while ownership is not None and ownership.parent is not None:
        far, ownership = far + 1, OWNERSHIP[ownership.parent]
    given = OWNERSHIP[model]
    assert given is not None
    agrees = any(reference.agrees for reference in given.further)
    return far, bool(given.further), agrees, any(one.optional for one in given.further), model in KEYED


SHAPES: tuple[type[Base], ...] = tuple({shape(model): model for model in reversed(MADE)}.values())
"""The first table of each shape."""


class _Chameleon(str):
    """Text that says it equals whatever it is compared with."""

    __slots__ = ("like",)
    like: str

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return hash(self.like)


def seeming(theirs: str, mine: str) -> str:
    """What is the other's, and seems to be one's own."""
    chameleon = _Chameleon(theirs)
    chameleon.like = mine
    return chameleon


class _Anything:
    """No text at all, which says it equals whatever it is compared with."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment] # as of a class that says when it is equal


class _Turning(TypeDecorator[str]):
    """A type that binds another value than it is given."""

    impl = String
    cache_ok = False

    def __init__(self, bound: str) -> None:
        super().__init__()
        self.bound = bound

    def process_bind_param(self, value: Any, dialect: Any) -> str:
        return self.bound


class _TurningString(String):
    """The same without a decorator."""

    def __init__(self, bound: str) -> None:
        super().__init__()
        self.bound = bound  # SQLAlchemy copies a type by the names of its arguments

    def bind_processor(self, dialect: Any) -> Any:
        return lambda value: self.bound


def _seems(place: Place) -> str:
    return seeming(place.theirs, place.mine)


def _turned(place: Place) -> Any:
    return literal(place.mine, _Turning(place.theirs))


def _named_after(place: Place) -> Any:
    """A member whose text is one's own id and whose name, which such a type stores, the other's."""
    kind: Any = StrEnum("kind", {place.theirs: place.mine})  # type: ignore[misc] # its members are known only now
    return literal(kind(place.mine), Enum(kind))


def _insert(make: Callable[[Place], Any], parameters: Callable[[Place], Any] | None = None, **options: Any) -> Form:
    def run(session: Session, place: Place) -> object:
        return session.execute(make(place), parameters(place) if parameters else None, **options)

    return run


def _of(place: Place) -> Any:
    return insert(place.model)


def _twice(place: Place) -> dict[Any, Any]:
    return {**place.row(place.mine), place.model.__table__.c[place.column]: place.theirs}


# Statements, each refused before anything is written.
INSERTS: Mapping[str, Form] = {
    "a list of rows": _insert(_of, lambda p: p.rows(p.theirs)),
    "many values": _insert(lambda p: _of(p).values(p.rows(p.theirs))),
    "RETURNING": _insert(lambda p: _of(p).returning(column_of(p.model, NAMES[p.model])), lambda p: p.rows(p.theirs)),
    "an expression": _insert(lambda p: _of(p).values(p.row(func.lower(p.theirs)))),
    "a parameter for a bindparam": _insert(
        lambda p: _of(p).values(**p.row(bindparam("uid", p.mine))), lambda p: {"uid": p.theirs}
    ),
    "parameters for a bindparam": _insert(
        lambda p: _of(p).values(**p.row(bindparam("uid", p.mine))), lambda p: [{"uid": p.theirs}, {"uid": p.mine}]
    ),
    "a bindparam named like a column": _insert(
        lambda p: _of(p).values(**_without(p.row(bindparam(TEXTS[p.model], p.mine)), TEXTS[p.model])),
        lambda p: {TEXTS[p.model]: p.theirs},
    ),
    "a bindparam whose value changes": _insert(
        lambda p: _of(p).values(**p.row(bindparam(None, callable_=cycle([p.mine, p.theirs]).__next__)))
    ),
    "a parameter for one of many values": _insert(
        lambda p: _of(p).values([p.row(p.mine)]), lambda p: {f"{p.column}_m0": p.theirs}
    ),
    "a parameter for a literal": _insert(
        lambda p: _of(p).values(**p.row(literal(p.mine))), lambda p: {"param_1": p.theirs}
    ),
    "a parameter in place of a value": _insert(
        lambda p: _of(p).values(**p.row(p.mine)), lambda p: {p.column: p.theirs}
    ),
    "a column named twice": _insert(lambda p: _of(p).values(_twice(p))),
    "a column named in two calls": _insert(lambda p: _of(p).values(**p.row(p.mine)).values({p.attribute: p.theirs})),
    "another mapper's name": _insert(_of, lambda p: [p.row(p.theirs)], bind_arguments={"mapper": inspect(PublicTrade)}),
    "the strategy raw": _insert(_of, lambda p: [p.row(p.theirs)], execution_options={"dml_strategy": "raw"}),
    "NULL where something must be named": _insert(lambda p: _of(p).values(**p.row(None if p.required else p.theirs))),
    "a foreign row's rows": _insert(
        lambda p: _of(p).from_select([NAMES[p.model], p.column], select(User.username, literal(p.theirs)))
    ),
    "a value that seems to be another": _insert(lambda p: _of(p).values(**p.row(_seems(p)))),
    "a list with such a value": _insert(_of, lambda p: [p.row(_seems(p))]),
    "a member of an enumeration": _insert(lambda p: _of(p).values(**p.row(_named_after(p)))),
    "a type that binds another value": _insert(lambda p: _of(p).values(**p.row(_turned(p)))),
    "a text type that binds another value": _insert(
        lambda p: _of(p).values(**p.row(literal(p.mine, _TurningString(p.theirs))))
    ),
    "such a type in a list": _insert(_of, lambda p: [p.row(_turned(p))]),
    "bulk_create": lambda session, p: bulk_create(session, p.model, p.rows(p.theirs)),
    "bulk_create of a value that seems to be another": lambda session, p: bulk_create(
        session, p.model, p.rows(_seems(p))
    ),
}


def _without(values: Values, name: str) -> Values:
    return {column: value for column, value in values.items() if column != name}


def _changed(session: Session, place: Place, value: Any) -> None:
    setattr(place.object(session), place.column, value)
    session.flush()


def _added(session: Session, place: Place, value: Any) -> None:
    session.add(place.model(**place.row(value)))
    session.flush()


def _added_beside(session: Session, place: Place) -> None:
    session.add_all([place.model(**values) for values in place.rows(_seems(place))])
    session.flush()


def _update_keys(session: Session, place: Place) -> object:
    own = place.key_of(session)
    changed = {TEXTS[place.model]: getattr(place.object(session), TEXTS[place.model])}
    return session.execute(update(place.model), [{place.key: key, **changed} for key in (own, _seeming_key(place))])


def _seeming_key(place: Place) -> str:
    return seeming(place.foreign, place.own)


def _forge_a_loaded_key(session: Session, place: Place) -> None:
    entity = place.object(session)
    set_committed_value(entity, place.key, _seeming_key(place))
    session.delete(entity)
    session.flush()


def _merge_keys(session: Session, place: Place) -> None:
    for key in (place.own, _seeming_key(place)):
        session.merge(place.model(**place.row(place.mine, **{place.key: key})))


# What a session's objects do, refused at the latest when they are written.
OBJECTS: Mapping[str, Form] = {
    "a new object": lambda session, p: _added(session, p, p.theirs),
    "a new object's value that seems to be another": lambda session, p: _added(session, p, _seems(p)),
    "a new object's value that is no text": lambda session, p: _added(session, p, _Anything()),
    "a new object's value of a type that binds another": lambda session, p: _added(session, p, _turned(p)),
    "a new object beside a proved one": _added_beside,
    "a changed object": lambda session, p: _changed(session, p, p.theirs),
    "a changed object's value that seems to be another": lambda session, p: _changed(session, p, _seems(p)),
    "an UPDATE's value": lambda session, p: session.execute(
        update(p.model).values({p.column: p.theirs}), execution_options={"synchronize_session": False}
    ),
    "bulk_update": lambda session, p: REPOSITORIES[p.model](session).bulk_update(
        [{p.key: p.key_of(session), p.column: _seems(p)}]
    ),
}
# The same by the key, of those tables whose rows are named by it.
KEYS: Mapping[str, Form] = {
    "a key that was loaded": _forge_a_loaded_key,
    "a merged key": _merge_keys,
    "a key of a bulk UPDATE": _update_keys,
}


def forms_of(place: Place) -> Mapping[str, Form]:
    """Every form that there is for a place."""
    return {**INSERTS, **OBJECTS, **(KEYS if place.model in KEYED else {})}


def try_form(form: Form, session: Session, place: Place) -> None:
    """Try it, to its end."""
    form(session, place)
    session.flush()
