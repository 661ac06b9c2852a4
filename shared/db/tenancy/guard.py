"""Who is meant, and whether a row is his: what repositories and users' sessions check before they write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from enum import Enum
from functools import lru_cache
from typing import Any, Final, Literal

from sqlalchemy import Integer, String, bindparam, cast, event, inspect, literal_column, null, select, union_all
from sqlalchemy.orm import Mapper, RelationshipDirection, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.util import identity_key

from shared.db.errors import RowNotFoundError, TenantScopeError, TenantViolation
from shared.db.models import ID_LENGTH
from shared.db.tables import Reference, columns_to_agree, ownership_of, primary_key
from shared.db.tenancy.ownership import owned_rows, owner_of

_CHUNK = 500


class Unset(Enum):
    """The type of `UNSET`."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


# The default of every `user_id` parameter. None is not: a value that somebody forgot must not open all data.
UNSET: Final = Unset.UNSET
UserId = str | Literal[Unset.UNSET]


def checked_user_id(user_id: object) -> str:
    """`user_id` if it can be one, else `TenantScopeError`."""
    if isinstance(user_id, str) and 0 < len(user_id) <= ID_LENGTH and "\0" not in user_id:
        # A plain string, also of an enumeration's member; a lone surrogate has no form that a driver could send.
        with suppress(UnicodeEncodeError):
            return str.encode(user_id).decode()
    shown = "an over-long text" if isinstance(user_id, str) and len(user_id) > ID_LENGTH else repr(user_id)
    raise TenantScopeError(
        f"{shown} is not a user id; pass the user's user_id (1 to {ID_LENGTH} characters), "
        "or leave user_id out where no single user is meant"
    )


# What a key may be that is judged here: nothing, text, or a number.
_PLAIN = frozenset({str, int, type(None)})
_NOBODYS: Final = object()


def as_bound(value: object) -> Any:
    """A key as the driver will have it: of a subclass its content, whatever its own methods say that it equals.

    What is neither text nor a number is nobody's.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    return int.__int__(value) if isinstance(value, int) else _NOBODYS


def agreed_user(*given: object) -> str | None:
    """The one user that all of `given` name, None if none names any; `TenantScopeError` if they differ."""
    users = {checked_user_id(user_id) for user_id in given if user_id is not UNSET}
    if len(users) > 1:
        raise TenantScopeError(
            "the session, the repository and the call name different users; open a session for the user you mean"
        )
    return users.pop() if users else None


class OwnershipGuard:
    """Checks that what is written belongs to one user, and so does every row it names.

    Parents once proved are remembered until `forget()`.
    """

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self._proved: dict[tuple[type[Any], Any], dict[str, Any]] = {}

    def forget(self, model: type[Any] | None = None, identity: tuple[Any, ...] | None = None) -> None:
        """Forget what was proved of one row, or of all: it may have changed, or been rolled back."""
        if model is None:
            self._proved.clear()
        elif identity is not None:
            self._proved.pop((model, identity[0]), None)

    def check_rows(
        self,
        session: Session,
        operation: str,
        model: type[Any],
        rows: Iterable[dict[str, Any]],
        *,
        complete: bool = True,
        coming: AbstractSet[tuple[type[Any], Any]] = frozenset(),
    ) -> None:
        """`TenantViolation` unless every row (column name to value) is the user's own and names only own parents.

        A column that a row lacks is an error when the row is `complete`, and left for later when it is not; so
        are parents that are `coming` with the same flush.
        """
        ownership = ownership_of(model)
        if ownership is None:
            return
        rows = [{name: as_bound(row[name]) for name in ownership.judged if name in row} for row in rows]
        if ownership.parent is None:
            for row in rows:
                owner = row.get(ownership.column)
                if owner != self.user_id and (complete or owner is not None):
                    raise self.violation(operation, model, f"its {ownership.column} is not the user's own")
        named: dict[Reference, list[dict[str, Any]]] = {}
        keys: dict[type[Any], set[Any]] = {}
        for reference in ownership.parents:
            naming = [row for row in rows if row.get(reference.column) is not None]
            if complete and not reference.optional and len(naming) < len(rows):
                raise self.violation(operation, model, f"it names no {reference.column}")
            named[reference] = [row for row in naming if (reference.parent, row[reference.column]) not in coming]
            keys.setdefault(reference.parent, set()).update(row[reference.column] for row in named[reference])
        self._prove_all(session, keys)
        for reference, naming in named.items():
            for row in naming:
                self._check_reference(operation, model, reference, row)

    def owns(self, session: Session, model: type[Any], key: Any) -> bool:
        """Whether the row with this primary key exists and is the user's."""
        key = as_bound(key)
        self._prove(session, model, {key})
        return (model, key) in self._proved

    def require_owned(self, session: Session, operation: str, model: type[Any], keys: Iterable[Any]) -> None:
        """`TenantViolation` unless every one of these primary keys is a row of the user's."""
        keys = {as_bound(key) for key in keys}
        self._prove(session, model, keys)
        if any((model, key) not in self._proved for key in keys):
            raise self.violation(operation, model, "its key names no row of the user")

    def violation(self, operation: str, model: type[Any], reason: str) -> TenantViolation:
        """The error to raise."""
        return TenantViolation(operation, model.__name__, self.user_id, reason)

    def _check_reference(self, operation: str, model: type[Any], reference: Reference, row: dict[str, Any]) -> None:
        parent = self._proved.get((reference.parent, row[reference.column]))
        if parent is None:
            raise self.violation(
                operation, model, f"its {reference.column} names no {reference.parent.__name__} of the user"
            )
        for column in reference.agrees:
            if row.get(column) is not None and row[column] != parent[column]:
                raise self.violation(
                    operation,
                    model,
                    f"its {reference.column} names a {reference.parent.__name__} of another {column}",
                )

    def _prove(self, session: Session, parent: type[Any], keys: Iterable[Any]) -> None:
        self._prove_all(session, {parent: keys})

    def _prove_all(self, session: Session, named: Mapping[type[Any], Iterable[Any]]) -> None:
        """Remember which of the named rows, keys by model, are the user's."""
        asked = {parent: self._unknown(parent, keys) for parent, keys in named.items()}
        unknown: dict[Any, list[Any]] = {parent: keys for parent, keys in asked.items() if keys}
        if not unknown:
            return
        connection = Session.connection(session)
        if all(len(keys) == 1 for keys in unknown.values()):
            # A row under its parents, all of them asked for at once: what a bot writes most of the time.
            given = {_key_of(number): keys[0] for number, keys in enumerate(unknown.values())}
            asked_for = [(parent, columns_to_agree(parent)) for parent in unknown]
            for number, key, *values in connection.execute(_owned_ones(*asked_for), given | {_USER: self.user_id}):
                parent, columns = asked_for[number]
                self._proved[parent, key] = dict(zip(columns, values, strict=False))
            return
        for parent, keys in unknown.items():
            columns = columns_to_agree(parent)
            for start in range(0, len(keys), _CHUNK):
                given = {_key_of(0): keys[start : start + _CHUNK], _USER: self.user_id}
                for key, *values in connection.execute(_owned_among(parent, columns), given):
                    self._proved[parent, key] = dict(zip(columns, values, strict=True))

    def _unknown(self, parent: type[Any], keys: Iterable[Any]) -> list[Any]:
        return sorted(key for key in keys if (parent, key) not in self._proved and type(key) in (str, int))


_USER: Final = "user"


def _key_of(number: int) -> str:
    return f"key_{number}"


# Made once: building a statement costs as much as running it.
@lru_cache
def _owned_among(parent: Any, columns_to_agree: tuple[str, ...]) -> Any:
    """A SELECT of those of many rows that are the user's: their key, and what rows that name them must agree with."""
    table = parent.__table__
    key = table.c[primary_key(parent)]
    columns = [table.c[name] for name in columns_to_agree]
    among = key.in_(bindparam(_key_of(0), expanding=True))
    return select(key, *columns).where(among, owned_rows(parent, bindparam(_USER)))


@lru_cache
def _owned_ones(*parents: tuple[Any, tuple[str, ...]]) -> Any:
    """The same for one row of each parent: the parent's number, the key, and what must agree."""
    width = max(len(agreeing) for _, agreeing in parents)
    asked = []
    for number, (parent, agreeing) in enumerate(parents):
        table = parent.__table__
        key = table.c[primary_key(parent)]
        columns: list[Any] = [table.c[name] for name in agreeing]
        columns += [cast(null(), String)] * (width - len(columns))
        chosen = select(literal_column(str(number), Integer), key, *columns)
        asked.append(chosen.where(key == bindparam(_key_of(number)), owned_rows(parent, bindparam(_USER))))
    return asked[0] if len(asked) == 1 else union_all(*asked)


def column_values(entity: object) -> dict[str, Any]:
    """The loaded column values of a mapped object, by column name; nothing is fetched."""
    state = instance_state(entity)
    loaded = state.dict
    return {name: loaded.get(attribute) for name, attribute in _attributes(state.mapper)}


def values_to_come(session: Session, entity: object) -> dict[str, Any]:
    """The column values that a flush is about to write, and what stays as it is of owner and parents.

    Parents that came as objects are told by their keys, which new ones may not have yet.
    """
    state = instance_state(entity)
    values = column_values(entity)
    ownership = ownership_of(type(entity))
    if ownership is not None and state.identity is not None:
        unknown = [
            name for name, key in _attributes(state.mapper) if name in ownership.columns and key not in state.dict
        ]
        if unknown:
            table = state.mapper.local_table
            stored = select(*(table.c[name] for name in unknown)).where(
                state.mapper.primary_key[0] == state.identity[0]
            )
            values.update(Session.connection(session).execute(stored).mappings().first() or {})
    for name, pairs in parents_of(state.mapper):
        # A relationship that was only loaded says nothing: what its column was set to since counts.
        if name in state.committed_state and (parent := state.dict.get(name)) is not None:
            values.update({column: instance_state(parent).dict.get(key) for column, key in pairs})
    return values


@lru_cache
def parents_of(mapper: Mapper[Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The relationships that lead to one parent: each one's name, with its columns here and the attributes there."""
    return [
        (relation.key, [(here.name, relation.mapper.get_property_by_column(there).key) for here, there in pairs])
        for relation in mapper.relationships
        if relation.direction is RelationshipDirection.MANYTOONE
        for pairs in [relation.local_remote_pairs or []]
    ]


@lru_cache
def _attributes(mapper: Mapper[Any]) -> list[tuple[str, str]]:
    return [(column.name, mapper.get_property_by_column(column).key) for column in mapper.columns]


def written_values(session: Session, entity: object) -> dict[str, Any]:
    """The column values of a mapped object just flushed; owner and parents as stored where they are not loaded."""
    values = column_values(entity)
    model: type[Any] = type(entity)
    ownership = ownership_of(model)
    if ownership is not None:
        names = [ownership.column, *(reference.column for reference in ownership.parents)]
        if any(values[name] is None for name in names):
            table = model.__table__
            stored = select(*(table.c[name] for name in names)).where(table.c[primary_key(model)] == key_of(entity))
            values.update(Session.connection(session).execute(stored).mappings().one())
    return values


def key_of(entity: object) -> Any:
    """The primary key of a mapped object, stored or not."""
    state = instance_state(entity)
    return (state.identity or state.mapper.primary_key_from_instance(entity))[0]


def discard_changes(session: Session, entity: object) -> None:
    """Take back what was set on `entity` and not flushed, so that no later flush writes it.

    A relationship is taken back at its other end too: each end alone would write the foreign key.
    """
    state = inspect(entity)
    for relation in state.mapper.relationships:
        if not relation.back_populates:
            continue
        history = state.attrs[relation.key].history
        for other in (*(history.added or ()), *(history.deleted or ())):
            if other is not None and inspect(other).persistent and other in session:
                session.expire(other, [relation.back_populates])
    if entity in session:
        if state.persistent:
            session.expire(entity)
        else:
            session.expunge(entity)


@contextmanager
def discarding_what_is_refused(session: Session, entity: object) -> Iterator[None]:
    """When the block is refused, leave nothing of `entity` for the next flush of whoever catches that."""
    try:
        yield
    except (TenantViolation, RowNotFoundError):
        with session.no_autoflush:
            for refused in {entity, _in_session(session, entity) or entity}:
                discard_changes(session, refused)
        raise


@contextmanager
def acting_for(session: Session, user_id: str | None, operation: str, entity: object) -> Iterator[None]:
    """Let a plain session write `entity`, and what hangs on it, only as `user_id`'s own; other objects are not judged.

    Without `user_id` it may be anybody's, but all of it the same user's. What is known beforehand is refused before
    the flush, and taken back. What only the flush brings to light (the key of a new parent) raises inside it, which
    leaves the session good for nothing but a rollback.
    """
    acting = _Acting(user_id, operation, entity)
    every = session.info.setdefault(_ACTING, [])
    every.append(acting)
    try:
        yield
    finally:
        every.remove(acting)


_ACTING: Final = "shared_db_acting"


class _Acting:
    """One `acting_for()` under way, in a plain session."""

    def __init__(self, user_id: str | None, operation: str, entity: object) -> None:
        known = column_values(entity)
        ownership = ownership_of(type(entity))
        # A tool's row says whose it is meant to be, unless only its parent does.
        said = known[ownership.column] if ownership is not None and ownership.parent is None else None
        meant = user_id or (said if isinstance(said, str) else None)
        self._entity, self._user_id, self._operation = entity, user_id, operation
        # Parents are asked for once, unless what is written with the entity may have changed them.
        self._guard = None if meant is None else OwnershipGuard(meant)

    def check_beforehand(self, session: Session) -> None:
        """Before the flush."""
        written = _in_session(session, self._entity)
        if self._guard is None or written is None:
            return
        linked = list(_linked(written))
        new = [(type(one), key_of(one)) for one in linked if instance_state(one).identity is None]
        # Any other key names nothing, and perhaps cannot be hashed; its column refuses it.
        coming = {(model, key) for model, key in new if isinstance(key, (str, int))}
        try:
            for one in linked:
                rows = [values_to_come(session, one)]
                self._guard.check_rows(session, self._operation, type(one), rows, complete=False, coming=coming)
        except TenantViolation:
            with session.no_autoflush:
                for one in linked:
                    discard_changes(session, one)
            raise

    def check(self, session: Session) -> None:
        """In the flush, once it has filled in what came as objects."""
        written = _in_session(session, self._entity)
        guard = self._guard
        if guard is None or self._user_id is None:
            guard = OwnershipGuard(_owner(session, written))
        elif session.dirty or session.deleted:
            guard.forget()
        for one in _linked(written):
            guard.check_rows(session, self._operation, type(one), [written_values(session, one)])


# Of every session, also one that no factory made: to add and remove them around each write takes longer than to look.
@event.listens_for(Session, "before_flush")
def _check_beforehand(session: Session, *args: Any) -> None:
    for acting in session.info.get(_ACTING, ()):
        acting.check_beforehand(session)


@event.listens_for(Session, "after_flush")
def _check(session: Session, *args: Any) -> None:
    for acting in session.info.get(_ACTING, ()):
        acting.check(session)


def _in_session(session: Session, entity: object) -> object:
    """What a flush writes of `entity`: itself, or what merge() made of it; None if neither is there."""
    key = key_of(entity)
    if entity in session or key is None:
        return entity if entity in session else None
    return session.identity_map.get(identity_key(type(entity), key))


def _owner(session: Session, entity: object) -> str:
    owner: str = Session.connection(session).execute(owner_of(type(entity), key_of(entity))).scalar_one()
    return owner


def _linked(entity: object) -> Iterator[object]:
    """`entity` and what its relationships are about to be linked to, and so on: what one flush writes together."""
    seen: set[int] = set()
    found = [entity]
    while found:
        one = found.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            state = instance_state(one)
            for relation in state.mapper.relationships:
                found += [other for other in state.attrs[relation.key].history.added or () if other is not None]
