"""Who is meant, and whether a row is his: what repositories and users' sessions check before they write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from enum import Enum
from typing import Any, Final, Literal

from sqlalchemy import event, inspect, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.util import identity_key

from shared.db.errors import TenantScopeError, TenantViolation
from shared.db.models import ID_LENGTH
from shared.db.tenancy.ownership import Reference, columns_to_agree, owned_keys, ownership_of, primary_key

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
        return str(user_id)
    shown = "an over-long text" if isinstance(user_id, str) and len(user_id) > ID_LENGTH else repr(user_id)
    raise TenantScopeError(
        f"{shown} is not a user id; pass the user's user_id (1 to {ID_LENGTH} characters), "
        "or leave user_id out where no single user is meant"
    )


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
        rows = list(rows)
        if ownership.parent is None:
            for row in rows:
                owner = row.get(ownership.column)
                if owner != self.user_id and (complete or owner is not None):
                    raise self.violation(operation, model, f"its {ownership.column} is not the user's own")
        for reference in ownership.parents:
            named = [row for row in rows if row.get(reference.column) is not None]
            if complete and len(named) < len(rows):
                raise self.violation(operation, model, f"it names no {reference.column}")
            named = [row for row in named if (reference.parent, row[reference.column]) not in coming]
            self._prove(session, reference.parent, {row[reference.column] for row in named})
            for row in named:
                self._check_reference(operation, model, reference, row)

    def owns(self, session: Session, model: type[Any], key: Any) -> bool:
        """Whether the row with this primary key exists and is the user's."""
        self._prove(session, model, {key})
        return (model, key) in self._proved

    def require_owned(self, session: Session, operation: str, model: type[Any], keys: set[Any]) -> None:
        """`TenantViolation` unless every one of these primary keys is a row of the user's."""
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

    def _prove(self, session: Session, parent: type[Any], keys: set[Any]) -> None:
        unknown = sorted(key for key in keys if (parent, key) not in self._proved and isinstance(key, (str, int)))
        table = parent.__table__
        key_column = table.c[primary_key(parent)]
        columns = [table.c[name] for name in (key_column.name, *columns_to_agree(parent))]
        owned = owned_keys(parent, self.user_id)
        for start in range(0, len(unknown), _CHUNK):
            query = select(*columns).where(key_column.in_(unknown[start : start + _CHUNK]), key_column.in_(owned))
            for row in Session.connection(session).execute(query).mappings():
                self._proved[parent, row[key_column.name]] = dict(row)


def column_values(entity: object) -> dict[str, Any]:
    """The loaded column values of a mapped object, by column name; nothing is fetched."""
    mapper = inspect(entity).mapper
    loaded = inspect(entity).dict
    return {column.name: loaded.get(mapper.get_property_by_column(column).key) for column in mapper.columns}


@contextmanager
def acting_for(session: Session, user_id: str, operation: str, entity: object) -> Iterator[None]:
    """Let a plain session write `entity` only as `user_id`'s own; other objects are none of its business.

    What is known beforehand is refused before anything happens. What only the flush brings to light (a parent
    given as an object) raises inside it, which leaves the session good for nothing but a rollback.
    """
    guard = OwnershipGuard(user_id)
    guard.check_rows(session, operation, type(entity), [column_values(entity)], complete=False)

    def check(session: Session, *args: Any) -> None:
        # merge() writes the session's own object of the same identity.
        written = entity if entity in session else session.identity_map.get(identity_key(instance=entity))
        guard.check_rows(session, operation, type(entity), [column_values(written)])

    event.listen(session, "after_flush", check)
    try:
        yield
    finally:
        event.remove(session, "after_flush", check)
