"""Rows of a declared stream from a file that `export` wrote, checked whole before the first of them is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.db.bulk import RejectedRow
from shared.db.database import DatabaseFactory
from shared.db.errors import InputError
from shared.db.models import Base
from shared.db.operations.interruption import came, check, interruptible
from shared.db.operations.row_files import read_export
from shared.db.repositories import Repository
from shared.db.tables import stream_of
from shared.db.tenancy.user_ids import UNSET, UserId

_BLOCK = 10_000


@dataclass
class RowImport:
    """What became of the rows of a file: new ones, those that were stored already, and those that a rule refused."""

    file: str
    table: str
    inserted: int = 0
    skipped: int = 0
    rejected: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return asdict(self)


def import_rows(
    db: DatabaseFactory,
    path: str | Path,
    model: type[Base],
    *,
    user_id: UserId = UNSET,
    on_rejected: Callable[[RejectedRow], None] = lambda row: None,
) -> RowImport:
    """Store the rows of a file that `export` wrote of `model`; a second time changes nothing.

    `user_id` is whose they are, where they belong to users: a row that is not this user's, or names a parent that is
    not, is a `TenantViolation`, with which nothing of its block of 10,000 is stored. A row that violates a rule is
    told to `on_rejected`. Raises `InputError` for a file that is missing, damaged, or of another table, before any
    row is stored.
    """
    stream = stream_of(model)
    report = RowImport(str(path), model.__tablename__)
    source = read_export(path, on_rejected=on_rejected)
    if source.layout.model is not model:
        raise InputError(f"{path} holds rows of {source.layout.model.__tablename__}, not of {report.table}")
    db.check_schema()
    with interruptible("what was stored stays, in whole blocks; run the same command again to go on"):
        source.check_whole(came)
        for block in source.blocks(_BLOCK):
            check()
            with db.get_session(user_id=user_id) as session:
                result = Repository(session, model).bulk_create(
                    block.rows, on_conflict="fill" if stream.fills else "skip", errors="collect"
                )
            report.inserted += result.inserted
            report.skipped += result.skipped + result.updated
            refused = [row._replace(position=block.line_of(row.position)) for row in result.errors]
            report.rejected += len(block.rejected) + len(refused)
            for row in (*block.rejected, *refused):
                on_rejected(row)
    return report
