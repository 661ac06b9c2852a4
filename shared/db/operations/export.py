"""Rows of a stream into a file: streamed, in flat memory, there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

from shared.db.database import DatabaseFactory
from shared.db.errors import InputError
from shared.db.models import Base, PrivateExecution, PublicTrade
from shared.db.operations.interruption import check, interruptible
from shared.db.operations.progress import WHOLE, Watch
from shared.db.operations.replacing import refuse_database
from shared.db.operations.row_files import writing
from shared.db.operations.row_layout import FileLayout, file_layout_of
from shared.db.ranges.bounds import source_of
from shared.db.repositories import Repository, RunRepository
from shared.db.tenancy.user_ids import UNSET, UserId
from shared.db.value_forms.files import Format

_BATCH = 2_000
_MICROSECOND = timedelta(microseconds=1)


def export_rows(
    db: DatabaseFactory,
    path: str | Path,
    model: type[Base],
    key: Any,
    start: datetime | None = None,
    end: datetime | None = None,
    kind: Format = "csv",
    watch: Watch = lambda done, rows: None,
    *,
    user_id: UserId = UNSET,
) -> int:
    """Write the rows of one key of a stream from `start` to `end`, both included, to `path`, by time; their number.

    `user_id` is whose they are, where they belong to users. `watch` is told how far it is, of `WHOLE`, and the rows so
    far. Raises `InputError` if the file cannot be written, `MissingExtraError` for Parquet without pyarrow, and
    `InvalidValueError` for a model without a stream.
    """
    layout = file_layout_of(model)
    _refuse_reversed(start, end)
    refuse_database(db, Path(path))
    db.check_schema()
    with db.get_session(user_id=user_id, read_only=True) as session:
        # As objects where the plain rows leave out what the file has.
        as_objects = not set(layout.columns) <= set(source_of(model).row._fields)
        asked = partial(Repository(session, model).iter_range, key, start, end, as_objects=as_objects)
        with interruptible(f"{path} is as it was"):
            return _write_all(asked(), asked(reverse=True, page_size=1), layout, Path(path), kind, watch)


def export_trades(
    db: DatabaseFactory,
    path: str | Path,
    symbol: str,
    start: datetime | None = None,
    end: datetime | None = None,
    kind: Format = "csv",
    watch: Watch = lambda done, rows: None,
) -> int:
    """Write a symbol's trades, as `export_rows` does."""
    return export_rows(db, path, PublicTrade, symbol, start, end, kind, watch)


def export_executions(
    db: DatabaseFactory,
    path: str | Path,
    run_id: str,
    user_id: str,
    start: datetime | None = None,
    end: datetime | None = None,
    kind: Format = "csv",
    watch: Watch = lambda done, rows: None,
) -> int:
    """Write the executions of a user's run, as `export_rows` does. Raises `InputError` if the user has no such run."""
    _refuse_reversed(start, end)
    refuse_database(db, Path(path))
    db.check_schema()
    with db.get_session(user_id=user_id, read_only=True) as session:
        if RunRepository(session).get_by_id(run_id) is None:
            raise InputError(f"user {user_id!r} has no run {run_id!r}; check both ids")
    return export_rows(db, path, PrivateExecution, run_id, start, end, kind, watch, user_id=user_id)


def _refuse_reversed(start: datetime | None, end: datetime | None) -> None:
    if start is not None and end is not None and start.tzinfo and end.tzinfo and start > end:
        raise InputError(f"the export would begin at {start} and end before that, at {end}; swap the two")


def _write_all(
    rows: Iterator[Any], newest_first: Iterator[Any], layout: FileLayout, path: Path, kind: Format, watch: Watch
) -> int:
    last: Any = next(newest_first, None)
    values = map(attrgetter(*layout.columns), rows)
    time = layout.columns.index(layout.stream.time)
    written, first, until = 0, None, last and getattr(last, layout.stream.time)
    with writing(path, layout, kind) as write:
        while batch := list(islice(values, _BATCH)):
            check()
            write(batch)
            first = first or batch[0][time]
            written += len(batch)
            now = batch[-1][time]
            watch(WHOLE * (now - first) // max((until or now) - first, _MICROSECOND), written)
    return written
