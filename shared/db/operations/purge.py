"""Old rows of a stream, deleted in batches that let every writer in between.

SQLite has one writer at a time. Each batch is a transaction of its own, as many rows as take a twentieth of a second
on this machine, and is followed by a pause of twice its time: a writer that waits gets in, whatever it is told to wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from shared.db.database import DatabaseFactory
from shared.db.errors import InputError, InvalidValueError, PermissionDeniedError
from shared.db.models import Base, PrivateExecution, PublicTrade, RunStatus
from shared.db.operations.partitions import DropReport, drop_whole
from shared.db.operations.progress import Watch
from shared.db.ranges.bounds import Source, source_of
from shared.db.ranges.reading import StreamReading
from shared.db.repositories import Repository, RunRepository
from shared.db.tables import OWNERSHIP, index_leads_to, primary_key
from shared.db.tenancy.user_ids import UNSET, UserId

_log = logging.getLogger(__name__)
# Seconds that one batch may hold the write lock, about.
_BATCH_TIME = 0.05
_SHORTEST_PAUSE = 0.02
_SMALLEST, _LARGEST = 100, 20_000


@dataclass(frozen=True)
class PurgeReport:
    """How many rows went, or would go in a dry run; `finished` is False if it was stopped on the way.

    `longest_batch` is the longest time in seconds that writers were kept out. `partitions` are those that went whole.
    """

    table: str
    rows: int
    dry_run: bool
    finished: bool
    longest_batch: float
    seconds: float
    partitions: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return asdict(self)


def purge_rows(
    db: DatabaseFactory,
    model: type[Base],
    before: datetime | None = None,
    key: Any = None,
    *,
    user_id: UserId = UNSET,
    dry_run: bool = False,
    watch: Watch = lambda done, rows: None,
    stop: Callable[[], bool] = lambda: False,
) -> PurgeReport:
    """Delete the rows of a stream strictly before `before`, of one key if given, oldest first key by key.

    `user_id` is whose they are, where they belong to users; nobody else's go. A partition of which every row is older
    is dropped, where all keys are meant and the login owns it. A dry run counts the rows and deletes nothing. When
    `stop()` says so it ends after the batch at hand; called again, it goes on. Raises
    `InvalidValueError` for a naive time, a model without a stream, and for neither `before` nor `key`.
    """
    source = source_of(model)
    if before is None and key is None:
        raise InvalidValueError("everything would go; name a time as before=, or a key")
    before = source.instant(before)
    db.check_schema()
    by, time = getattr(model, source.stream.by), getattr(model, source.stream.time)
    old = () if before is None else (time < before,)
    whole = None
    if key is None:
        if before is not None and not dry_run and OWNERSHIP[model] is None:
            whole = _dropped(db, source, before, stop)
        with db.get_session(user_id=user_id, read_only=True, max_staleness=0) as session:
            covered = StreamReading.coverage(Repository(session, model), count=False)
        chosen = [(by == found.key, *old) for found in covered if before is None or found.first_ts < before]
    else:
        chosen = [(by == key, *old)]
    # In the order of an index, which is not the stream's own where its key alone is unique.
    ordered = source.stream.by in index_leads_to(model, source.stream.time)
    columns = [getattr(model, name) for name in source.stream.order]
    order = tuple(columns if ordered else columns[1:] or columns)
    report = _Purge(db, model, order, user_id).run(chosen, dry_run, watch, stop)
    if whole is None:
        return report
    return replace(
        report,
        rows=report.rows + whole.rows,
        seconds=report.seconds + whole.seconds,
        longest_batch=max(report.longest_batch, whole.longest),
        partitions=whole.dropped,
    )


def _dropped(db: DatabaseFactory, source: Source, before: datetime, stop: Callable[[], bool]) -> DropReport | None:
    try:
        return drop_whole(db, source, before, stop=stop)
    except PermissionDeniedError as error:
        _log.warning(
            "partitions are dropped by their owner alone, and their rows deleted in batches: %s", error.problem
        )
        return None


def purge_trades(
    db: DatabaseFactory,
    before: datetime,
    symbol: str | None = None,
    *,
    dry_run: bool = False,
    watch: Watch = lambda done, rows: None,
    stop: Callable[[], bool] = lambda: False,
) -> PurgeReport:
    """Delete the trades strictly before `before`, of one symbol if given, as `purge_rows` does."""
    return purge_rows(db, PublicTrade, before, symbol, dry_run=dry_run, watch=watch, stop=stop)


def purge_executions(
    db: DatabaseFactory,
    run_id: str,
    user_id: str,
    before: datetime | None = None,
    *,
    dry_run: bool = False,
    watch: Watch = lambda done, rows: None,
    stop: Callable[[], bool] = lambda: False,
) -> PurgeReport:
    """Delete the executions of one run of a user, those strictly before `before` if given; the run itself stays.

    All else as `purge_rows`. Raises `InputError` if the user has no such run, or if it is still running.
    """
    db.check_schema()
    with db.get_session(user_id=user_id, read_only=True, max_staleness=0) as session:
        run = RunRepository(session).get_by_id(run_id)
    if run is None:
        raise InputError(f"user {user_id!r} has no run {run_id!r}; check both ids")
    if run.status == RunStatus.RUNNING:
        raise InputError(f"run {run_id!r} is still running; finish it first, its executions are being recorded")
    return purge_rows(db, PrivateExecution, before, run_id, user_id=user_id, dry_run=dry_run, watch=watch, stop=stop)


def give_way(seconds: float) -> None:
    """Let others write for twice as long as a batch has kept them waiting."""
    time.sleep(max(2 * seconds, _SHORTEST_PAUSE))  # SQLite gives its lock to whoever happens to ask


class _Purge:
    """Deletes rows of one table, in the order of an index."""

    def __init__(self, db: DatabaseFactory, model: Any, order: tuple[Any, ...], user_id: UserId) -> None:
        self._db = db
        self._model = model
        self._key = getattr(model, primary_key(model))
        self._order = order
        self._user_id = user_id

    def run(self, chosen: list[tuple[Any, ...]], dry_run: bool, watch: Watch, stop: Callable[[], bool]) -> PurgeReport:
        """Delete, or count, what meets any of the criteria."""
        started = time.monotonic()
        if dry_run:
            with self._db.get_session(user_id=self._user_id, read_only=True, max_staleness=0) as session:
                rows = sum(self._count(session, criteria) for criteria in chosen)
            return self._report(rows, True, True, 0.0, started)
        rows, size, longest = 0, _SMALLEST, 0.0
        for criteria in chosen:
            while True:
                if stop():
                    return self._report(rows, False, False, longest, started)
                with self._db.get_session(user_id=self._user_id) as session:
                    Session.connection(session)  # begins: what it takes to wait for others is not this batch's time
                    begun = time.monotonic()
                    deleted = self._delete(session, criteria, size)
                took = time.monotonic() - begun
                rows, longest = rows + deleted, max(longest, took)
                watch(rows, rows)
                if deleted < size:
                    break
                size = max(_SMALLEST, min(_LARGEST, int(size * _BATCH_TIME / max(took, _BATCH_TIME / 2))))
                give_way(took)
        return self._report(rows, False, True, longest, started)

    def _count(self, session: Session, criteria: tuple[Any, ...]) -> int:
        return session.scalar(select(func.count()).select_from(self._model).where(*criteria)) or 0

    def _delete(self, session: Session, criteria: tuple[Any, ...], size: int) -> int:
        oldest = select(self._key).where(*criteria).order_by(*self._order).limit(size).subquery()
        # In a subquery of its own: MariaDB takes no LIMIT right within IN.
        statement = delete(self._model).where(self._key.in_(select(*oldest.c)))
        result: Any = session.execute(statement, execution_options={"synchronize_session": False})
        return int(result.rowcount)

    def _report(self, rows: int, dry_run: bool, finished: bool, longest: float, started: float) -> PurgeReport:
        table = str(self._model.__tablename__)
        return PurgeReport(table, rows, dry_run, finished, longest, time.monotonic() - started)
