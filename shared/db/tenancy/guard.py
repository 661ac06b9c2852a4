"""Whether a row is the user's: what is proved before users' sessions and repositories write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Integer, String, bindparam, case, cast, literal_column, null, select, union_all
from sqlalchemy.orm import Session

from shared.db.errors import TenantViolation
from shared.db.tables import Reference, columns_to_agree, ownership_of, primary_key
from shared.db.tenancy.ownership import owned_rows, readable_rows

_CHUNK = 500
# What a key may be that is judged here: nothing, text, or a number.
_PLAIN = frozenset({str, int, type(None)})
_NOBODYS: Final = object()
_REMEMBERED = 10_000

KEPT: Final = object()
"""What a row that is judged has for a public row's key that is stored in it already: it may be private by now."""


def as_bound(value: object) -> Any:
    """A key as the driver will have it: of a subclass its content, whatever its own methods say that it equals.

    What is neither text nor a number is nobody's.
    """
    if type(value) in _PLAIN or value is KEPT:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    return int.__int__(value) if isinstance(value, int) else _NOBODYS


class ProvedBefore:
    """Rows that were a user's own when a session of this process asked, by user, model and key.

    They need not be any more: for who has the server look at each row that is written, as its policies do.
    """

    def __init__(self) -> None:
        self._rows: set[tuple[str, type[Any], Any]] = set()

    def __contains__(self, row: tuple[str, type[Any], Any]) -> bool:
        return row in self._rows

    def add(self, row: tuple[str, type[Any], Any]) -> None:
        """Remember one more."""
        if len(self._rows) >= _REMEMBERED:
            self._rows.clear()
        self._rows.add(row)


class OwnershipGuard:
    """Checks that what is written belongs to one user, and so does every row it names, unless that is public.

    Own rows once proved are remembered until `forget()`. Others' public ones never: they may be private by now. With
    `proved_before`, which `distrust()` takes away, the parents of a row that is written need no question where that
    has them.
    """

    def __init__(self, user_id: str, proved_before: ProvedBefore | None = None) -> None:
        self.user_id = user_id
        self._proved: dict[tuple[type[Any], Any], dict[str, Any]] = {}
        self._public: dict[tuple[type[Any], Any], dict[str, Any]] = {}
        self._proved_before = proved_before
        self._trusted: set[tuple[type[Any], Any]] = set()

    def forget(self, model: type[Any] | None = None, identity: tuple[Any, ...] | None = None) -> None:
        """Forget what was proved of one row, or of all: it may have changed, or been rolled back."""
        if model is None:
            self._proved.clear()
            self._trusted.clear()
        elif identity is not None:
            self._proved.pop((model, identity[0]), None)

    def distrust(self, session: Session) -> None:
        """Ask for all from now on, and for what was trusted in this transaction: nobody else looks at the rows."""
        self._proved_before = None
        trusted, self._trusted = self._trusted, set()
        for model, key in trusted:
            self.require_owned(session, "flush", model, {key})

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
        """`TenantViolation` unless every row (column name to value) is the user's own and names what it may.

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
            named[reference] = [
                row
                for row in naming
                if row[reference.column] is not KEPT and (reference.parent, row[reference.column]) not in coming
            ]
            keys.setdefault(reference.parent, set()).update(row[reference.column] for row in named[reference])
        self._prove_all(session, {parent: self._not_trusted(parent, named) for parent, named in keys.items()})
        for reference, naming in named.items():
            for row in naming:
                self._check_reference(operation, model, reference, row, own=reference.column == ownership.column)

    def reads(self, session: Session, model: type[Any], key: Any) -> bool:
        """Whether the row with this primary key exists, and is the user's or public."""
        key = as_bound(key)
        self._prove(session, model, {key})
        return (model, key) in self._proved or (model, key) in self._public

    def require_owned(self, session: Session, operation: str, model: type[Any], keys: Iterable[Any]) -> None:
        """`TenantViolation` unless every one of these primary keys is a row of the user's."""
        keys = {as_bound(key) for key in keys}
        self._prove(session, model, keys)
        if any((model, key) in self._public for key in keys):
            raise self.violation(operation, model, "the row is public, and another user's: its owner alone writes it")
        if any((model, key) not in self._proved for key in keys):
            raise self.violation(operation, model, "its key names no row of the user")

    def refuse_public(self, session: Session, operation: str, model: type[Any], key: Any) -> None:
        """`TenantViolation` if the row is another user's that all may read; where there is none, nothing is said."""
        if self.reads(session, model, key):
            self.require_owned(session, operation, model, {key})

    def violation(self, operation: str, model: type[Any], reason: str) -> TenantViolation:
        """The error to raise."""
        return TenantViolation(operation, model.__name__, self.user_id, reason)

    def _check_reference(
        self, operation: str, model: type[Any], reference: Reference, row: dict[str, Any], *, own: bool
    ) -> None:
        place = (reference.parent, row[reference.column])
        parent = {} if place in self._trusted else self._proved.get(place)
        if parent is None and not own:
            parent = self._public.get(place)
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

    def _not_trusted(self, parent: type[Any], keys: set[Any]) -> set[Any]:
        """Those of the parents' keys that are to be proved now: what must agree with a row is not remembered."""
        if self._proved_before is None or columns_to_agree(parent):
            return keys
        trusted = {
            (parent, key)
            for key in keys
            if (parent, key) not in self._proved and (self.user_id, parent, key) in self._proved_before
        }
        self._trusted |= trusted
        return {key for key in keys if (parent, key) not in trusted}

    def _prove(self, session: Session, parent: type[Any], keys: Iterable[Any]) -> None:
        self._prove_all(session, {parent: keys})

    def _prove_all(self, session: Session, named: Mapping[type[Any], Iterable[Any]]) -> None:
        """Remember which of the named rows, keys by model, are the user's, and for the moment which are public."""
        self._public.clear()
        asked = {parent: self._unknown(parent, keys) for parent, keys in named.items()}
        unknown: dict[Any, list[Any]] = {parent: keys for parent, keys in asked.items() if keys}
        if not unknown:
            return
        connection = Session.connection(session)
        if all(len(keys) == 1 for keys in unknown.values()):
            # A row under its parents, all of them asked for at once: what a bot writes most of the time.
            given = {_key_of(number): keys[0] for number, keys in enumerate(unknown.values())}
            asked_for = [(parent, columns_to_agree(parent)) for parent in unknown]
            for number, key, own, *values in connection.execute(_named_ones(*asked_for), given | {_USER: self.user_id}):
                parent, columns = asked_for[number]
                self._note(parent, key, own, dict(zip(columns, values, strict=False)))
            return
        for parent, keys in unknown.items():
            columns = columns_to_agree(parent)
            for start in range(0, len(keys), _CHUNK):
                given = {_key_of(0): keys[start : start + _CHUNK], _USER: self.user_id}
                for key, own, *values in connection.execute(_named_among(parent, columns), given):
                    self._note(parent, key, own, dict(zip(columns, values, strict=True)))

    def _note(self, parent: type[Any], key: Any, own: int, values: dict[str, Any]) -> None:
        (self._proved if own else self._public)[parent, key] = values
        if own and self._proved_before is not None:
            self._proved_before.add((self.user_id, parent, key))

    def _unknown(self, parent: type[Any], keys: Iterable[Any]) -> list[Any]:
        return sorted(key for key in keys if (parent, key) not in self._proved and type(key) in (str, int))


_USER: Final = "user"


def _key_of(number: int) -> str:
    return f"key_{number}"


# Made once: building a statement costs as much as running it.
@lru_cache
def _named_among(parent: Any, columns_to_agree: tuple[str, ...]) -> Any:
    """A SELECT of those of many rows that the user may name: key, whether it is own, and what must agree with it."""
    table = parent.__table__
    key = table.c[primary_key(parent)]
    columns = [table.c[name] for name in columns_to_agree]
    among = key.in_(bindparam(_key_of(0), expanding=True))
    return select(key, _is_own(parent), *columns).where(among, readable_rows(parent, bindparam(_USER)))


def _is_own(model: Any) -> Any:
    """1 for own rows and 0 for public ones, as all databases have it."""
    ownership = ownership_of(model)
    if ownership is None or ownership.public is None:
        return literal_column("1", Integer)
    return case((owned_rows(model, bindparam(_USER)), literal_column("1", Integer)), else_=literal_column("0", Integer))


@lru_cache
def _named_ones(*parents: tuple[Any, tuple[str, ...]]) -> Any:
    """The same for one row of each parent, which its number tells."""
    width = max(len(agreeing) for _, agreeing in parents)
    asked = []
    for number, (parent, agreeing) in enumerate(parents):
        table = parent.__table__
        key = table.c[primary_key(parent)]
        columns: list[Any] = [table.c[name] for name in agreeing]
        columns += [cast(null(), String)] * (width - len(columns))
        chosen = select(literal_column(str(number), Integer), key, _is_own(parent), *columns)
        asked.append(chosen.where(key == bindparam(_key_of(number)), readable_rows(parent, bindparam(_USER))))
    return asked[0] if len(asked) == 1 else union_all(*asked)
