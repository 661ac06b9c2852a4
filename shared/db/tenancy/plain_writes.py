"""What a plain session may write for one user: repositories' writes are judged before the flush, and in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import event, inspect
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.util import identity_key

from shared.db.errors import RowNotFoundError, TenantViolation
from shared.db.tables import ownership_of
from shared.db.tenancy.entity_values import column_values, judged_values, key_of, only_named, written_values
from shared.db.tenancy.guard import OwnershipGuard
from shared.db.tenancy.ownership import owner_of


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
        linked = list(_written(session, written))
        new = [(type(one), key_of(one)) for one in linked if instance_state(one).identity is None]
        # Any other key names nothing, and perhaps cannot be hashed; its column refuses it.
        coming = {(model, key) for model, key in new if isinstance(key, (str, int))}
        try:
            for one in linked:
                rows = [judged_values(session, one)]
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
        for one in _written(session, written):
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


def _written(session: Session, entity: object) -> Iterator[object]:
    """`entity` and what one flush writes together with it; a public row that is only named is not among that."""
    for one in _linked(entity):
        if one is entity or not only_named(session, instance_state(one)):
            yield one


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
