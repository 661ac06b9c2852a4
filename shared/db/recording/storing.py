"""How one batch of a recorder gets into the database: the good rows in one transaction, the others told apart."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from shared.db import numbering
from shared.db.bulk import BulkResult, OnConflict, RejectedRow, RowNote
from shared.db.bulk.rows import Row
from shared.db.database import DatabaseFactory
from shared.db.errors import InvalidValueError, NumberingError, SharedDBError, TenantScopeError, TenantViolation
from shared.db.models import Base, PublicTrade
from shared.db.recording.source_watch import SourceWatch
from shared.db.repositories import Repository
from shared.db.tables import ownership_of, stream_of
from shared.db.tenancy.user_ids import UNSET, UserId, checked_user_id

# What a row is to blame for.
_ROW_FAULTS = (InvalidValueError, TenantViolation, IntegrityError, DataError)
# What no row is to blame for, besides what only its own methods can raise.
_OTHER_FAULTS = (SQLAlchemyError, SharedDBError, OSError, MemoryError, Warning)


@dataclass(frozen=True)
class Stored:
    """What became of a batch; the position of a rejected row, and of a note, is its place in the batch.

    `filled` counts the duplicates that brought what a stored row lacked.
    """

    inserted: int = 0
    duplicates: int = 0
    rejected: tuple[RejectedRow, ...] = ()
    filled: int = 0
    contradicted: int = 0
    rounded: int = 0
    notes: tuple[RowNote, ...] = ()


class Storing:
    """Writes rows of `model` as one user, across users, or as nobody where they belong to none.

    Raises `TenantScopeError` where it is not clear whose data is meant, as a repository does.
    """

    def __init__(self, db: DatabaseFactory, model: type[Base], user_id: UserId, across_users: bool) -> None:
        stream = stream_of(model)
        if db.settings.read_only:
            raise InvalidValueError("a recorder writes, and GRIDBOT_DB_READ_ONLY lets this factory only read")
        self.user_id = None if user_id is UNSET else checked_user_id(user_id)
        if self.user_id is not None and across_users:
            raise TenantScopeError(
                "user_id names one user and across_users=True means all of them; give one of the two"
            )
        ownership = ownership_of(model)
        if ownership is not None and self.user_id is None:
            if not across_users:
                raise TenantScopeError(
                    f"a recorder of {model.__name__} needs to know whose data is meant: pass user_id=, or, in a tool "
                    "that records everybody's, across_users=True"
                )
            if db.settings.require_tenant:
                raise TenantScopeError(
                    "GRIDBOT_DB_REQUIRE_TENANT closes users' tables to across_users=True; pass user_id="
                )
        self._db = db
        self._model = model
        self._across_users = across_users
        # One fill comes on several streams, each of which knows something else of it. A trade is the same everywhere.
        self._on_conflict: OnConflict = "fill" if stream.fills else "skip"
        self._watch = SourceWatch() if model is PublicTrade else None
        # The columns that say whose a row is: rows that have them in common are refused or taken together.
        self._owners = [] if ownership is None else sorted(ownership.columns)

    def store(self, rows: list[Row]) -> Stored:
        """Write the rows that fit, in order, and commit. Raises whatever no row is to blame for."""
        try:
            return self._store(rows)
        except NumberingError:
            # The role of users' sessions may not set a sequence; the login that it belongs to mostly may.
            with self._db.engine.begin() as connection:
                mended = numbering.mend(connection)
            if not mended:
                raise
            return self._store(rows)

    def _store(self, rows: list[Row]) -> Stored:
        try:
            with self._session() as session:
                return _stored(self._bulk_create(session, rows))
        except _ROW_FAULTS:
            with self._session() as session:
                return self._apart(session, rows)
        except _OTHER_FAULTS:
            raise
        except Exception as error:  # noqa: BLE001 # a value whose methods raise: the row is found and told, not hidden
            if len(rows) == 1:
                reason = f"{type(error).__name__} while the row was looked at"
                return Stored(rejected=(RejectedRow(0, reason, rows[0]),))
            half = len(rows) // 2
            return _joined([self._store(rows[:half]), self._store(rows[half:])], [0, half])

    def _apart(self, session: Session, rows: list[Row]) -> Stored:
        """The slower way, which tells which rows are bad."""
        parts: list[Stored] = []
        starts: list[int] = []
        start = 0
        for _, alike in groupby(rows, key=self._owner_of):
            group = list(alike)
            try:
                parts.append(_stored(self._bulk_create(session, group, errors="collect")))
            except TenantViolation as error:
                reason = str(error)
                parts.append(Stored(rejected=tuple(RejectedRow(n, reason, row) for n, row in enumerate(group))))
            starts.append(start)
            start += len(group)
        return _joined(parts, starts)

    def _owner_of(self, row: Row) -> list[Any]:
        return [row.get(name) for name in self._owners]

    def _bulk_create(self, session: Session, rows: list[Row], **how: Any) -> BulkResult:
        model = self._model
        where = Repository.across_users(session, model) if self._across_users else Repository(session, model)
        if self._watch is not None:
            self._watch.look(session, rows)
        return where.bulk_create(rows, on_conflict=self._on_conflict, batch_size=len(rows), **how)

    def _session(self) -> AbstractContextManager[Session]:
        return self._db.get_session(user_id=UNSET if self.user_id is None else self.user_id)


def _stored(result: BulkResult) -> Stored:
    return Stored(
        result.inserted,
        result.skipped + result.updated,
        result.errors,
        result.updated,
        result.contradicted,
        result.rounded,
        result.notes,
    )


def _joined(parts: Sequence[Stored], starts: Sequence[int]) -> Stored:
    placed = list(zip(parts, starts, strict=True))
    return Stored(
        sum(part.inserted for part in parts),
        sum(part.duplicates for part in parts),
        tuple(row._replace(position=start + row.position) for part, start in placed for row in part.rejected),
        sum(part.filled for part in parts),
        sum(part.contradicted for part in parts),
        sum(part.rounded for part in parts),
        tuple(note._replace(position=start + note.position) for part, start in placed for note in part.notes),
    )
