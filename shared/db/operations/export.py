"""Trades of a symbol or executions of a run into a file: streamed, in flat memory, there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from shared.db.database import DatabaseFactory
from shared.db.errors import InputError
from shared.db.models import PrivateExecution, PublicTrade
from shared.db.operations.row_files import writing
from shared.db.operations.row_layout import EXECUTIONS, TRADES, Format, Layout
from shared.db.repositories import RunRepository

# What `watch` counts up to: the share of the time range that is done, since counting rows beforehand takes long.
WHOLE = 1_000_000
_BATCH = 2_000
_MICROSECOND = timedelta(microseconds=1)

Watch = Callable[[int, int], None]


def export_trades(
    db: DatabaseFactory,
    path: str | Path,
    symbol: str,
    start: datetime | None = None,
    end: datetime | None = None,
    kind: Format = "csv",
    watch: Watch = lambda done, rows: None,
) -> int:
    """Write a symbol's trades from `start` to `end`, both included, to `path`, by time; the number of rows.

    `watch` is told how far it is, of `WHOLE`, and the rows so far. Raises `InputError` if the file cannot be
    written, `MissingExtraError` for Parquet without pyarrow.
    """
    db.check_schema()
    with db.get_session(read_only=True) as session:
        return _export(session, TRADES, [PublicTrade.symbol == symbol], start, end, Path(path), kind, watch)


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
    """Write the executions of a user's run from `start` to `end`, both included, as `export_trades` does.

    Raises `InputError` if the user has no such run.
    """
    db.check_schema()
    with db.get_session(user_id=user_id, read_only=True) as session:
        if RunRepository(session).get_by_id(run_id) is None:
            raise InputError(f"user {user_id!r} has no run {run_id!r}; check both ids")
        mine = [PrivateExecution.run_id == run_id]
        return _export(session, EXECUTIONS, mine, start, end, Path(path), kind, watch)


def _export(
    session: Session,
    layout: Layout,
    criteria: list[ColumnElement[bool]],
    start: datetime | None,
    end: datetime | None,
    path: Path,
    kind: Format,
    watch: Watch,
) -> int:
    model: Any = layout.model
    if start is not None:
        criteria = [*criteria, model.exchange_ts >= start]
    if end is not None:
        criteria = [*criteria, model.exchange_ts <= end]
    tie = model.trade_id if layout is TRADES else model.exec_id
    columns = [getattr(model, name) for name in layout.columns]
    # Two queries: SQLite looks only a single minimum or maximum up in the index, for both it would read all of it.
    first: Any = session.scalar(select(func.min(model.exchange_ts)).where(*criteria))
    last: Any = session.scalar(select(func.max(model.exchange_ts)).where(*criteria))
    rows = session.execute(
        select(*columns).where(*criteria).order_by(model.exchange_ts, tie), execution_options={"yield_per": _BATCH}
    )
    written = 0
    with writing(path, layout, kind) as write:
        while batch := list(islice(rows, _BATCH)):
            write(batch)
            written += len(batch)
            watch(WHOLE * (batch[-1].exchange_ts - first) // max(last - first, _MICROSECOND), written)
    return written
