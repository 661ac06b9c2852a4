"""Many rows at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Literal

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from shared.db.bulk.result import BulkResult, RejectedRow
from shared.db.models import Base
from shared.db.tenancy.guard import OwnershipGuard

__all__ = ["BATCH_SIZE", "BulkResult", "OnBadRow", "OnConflict", "RejectedRow", "bulk_create", "bulk_update"]

OnConflict = Literal["skip", "update", "error"]
OnBadRow = Literal["raise", "collect"]

BATCH_SIZE = 5000
_INSERT: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
_KEYS = {"public_trades": ("symbol", "exchange_ts", "trade_id"), "private_executions": ("run_id", "exec_id")}


def bulk_create(
    session: Session,
    model: type[Base],
    rows: Iterable[Any],
    *,
    on_conflict: OnConflict = "skip",
    errors: OnBadRow = "raise",
    batch_size: int = BATCH_SIZE,
    guard: OwnershipGuard | None = None,
) -> BulkResult:
    """Insert rows of `model`, any number of them, as one unit of the caller's transaction.

    `rows`: mappings, objects of the model, NamedTuples with the columns' names, a pyarrow Table or RecordBatch, a
    polars DataFrame, or any iterable of the first three; of an iterable, at most `batch_size` rows are in memory.

    A row whose unique key is stored already is left out (`on_conflict="skip"`: of rows given twice the first wins),
    changes the columns it names (`"update"`: the last wins), or raises `IntegrityError` (`"error"`).

    A row that does not fit raises `InvalidValueError`, and nothing of the call is written; with `errors="collect"`
    it is left out and reported in the result, and so is a row that only the database refuses.
    """
    if on_conflict != "skip" or errors != "raise":
        raise NotImplementedError
    session.flush()
    connection = Session.connection(session)
    key = _KEYS[str(model.__table__.name)]
    statement = _INSERT[connection.dialect.name](model.__table__).on_conflict_do_nothing(index_elements=key)
    counted = statement.returning(model.__table__.c[key[0]])
    inserted = given = 0
    iterator = iter(rows)
    while batch := [dict(row) for row in islice(iterator, batch_size)]:
        if guard is not None:
            guard.check_rows(session, "bulk_create", model, batch)
        given += len(batch)
        inserted += len(connection.execute(counted, batch).all())
    return BulkResult(inserted=inserted, skipped=given - inserted)


def bulk_update(
    session: Session,
    model: type[Base],
    mappings: Iterable[Mapping[str, Any]],
    *,
    guard: OwnershipGuard | None = None,
) -> int:
    """Write to rows of `model`, found by their primary key, the columns that the mappings name; how many rows.

    For the small tables: the rows are loaded. Raises `RowNotFoundError` for a key that is not there (or not the
    user's), `TenantViolation` for a row or parent of another user, `InvalidValueError` for a value that does not
    fit; then nothing of the call is written.
    """
    raise NotImplementedError
