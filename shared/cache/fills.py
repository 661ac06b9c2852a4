"""`FillFeed`: what a recorder commits of a user's executions, in a stream that other processes read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from shared.cache.client import SyncRedisClient
from shared.cache.errors import CacheAwayError
from shared.cache.values import checked_user_id
from shared.db import DatabaseFactory, ExecutionRow, PrivateExecutionRepository, SharedDBError

_log = logging.getLogger(__name__)
_AT_ONCE = 500
_PLACES = Decimal("1e-8")


class FillFeed:
    """Every execution that a recorder of a user commits, once each, in the stream `stream` of that user.

    `Recorder(db, PrivateExecution, user_id=uid, on_written=feed)`, with `redis.for_user(uid)`; close it after the
    recorder. An entry's value is a dict with the fields of `ExecutionRow`, as they were when the fill was first stored.

    The database is the judge: a run's first fill in this process, and the first that can be published after Redis was
    away or lost its data, brings whatever of the run's executions the stream does not know. So nothing is lost when
    Redis, the recorder or the reader is killed, as long as the run goes on or `catch_up` is called for it.
    """

    def __init__(
        self, redis: SyncRedisClient, db: DatabaseFactory, *, stream: str = "fills", pause: float = 1.0
    ) -> None:
        self._user_id = checked_user_id(redis.user_id)
        self._redis, self._db, self._stream, self._pause = redis, db, stream, pause
        self._lock = threading.Lock()
        self._complete: dict[str, bool] = {}  # whether the stream knows all of a run
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Publish executions that are in the database. Raises nothing for Redis: a thread tries it again."""
        runs: dict[str, dict[str, Any]] = {}
        for row in rows:
            runs.setdefault(row["run_id"], {})[row["exec_id"]] = _fill(row)
        for run_id, fills in runs.items():
            try:
                self._bring(run_id, fills)
            except CacheAwayError as error:
                _log.warning("fills of run %s wait in the database: %s", run_id, error)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._try_again, name="shared.cache fills", daemon=True)
                    self._thread.start()

    @property
    def behind(self) -> frozenset[str]:
        """The runs whose fills wait in the database for Redis to come back."""
        return frozenset(run_id for run_id, complete in [*self._complete.items()] if not complete)

    def catch_up(self, run_id: str) -> None:
        """Publish what the database has of a run and the stream does not know. Raises `CacheAwayError`."""
        self._bring(run_id)

    def close(self) -> None:
        """Try no more. What is behind stays in the database, for `catch_up` or the run's next fill to bring."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        if self.behind:
            _log.warning("fills of %d runs are not in the stream; catch_up brings them", len(self.behind))

    def _bring(self, run_id: str, fills: Mapping[str, Any] | None = None) -> None:
        with self._lock:
            publish = partial(self._redis.publish, self._stream, part=run_id)
            complete, self._complete[run_id] = self._complete.get(run_id), False  # until all is done
            # If Redis knew nothing of a run that was complete, it has lost its data.
            if fills is None or not complete or publish(fills).first:
                with self._db.get_session(user_id=self._user_id, read_only=True, max_staleness=0) as session:
                    stored = iter(PrivateExecutionRepository(session).iter_run_range(run_id))
                    while chunk := list(islice(stored, _AT_ONCE)):
                        publish({row.exec_id: _fill(row._asdict()) for row in chunk})
            self._complete[run_id] = True

    def _try_again(self) -> None:
        while not self._closed.wait(self._pause):
            for run_id in sorted(self.behind):
                try:
                    self._bring(run_id)
                except CacheAwayError:
                    break  # it was said
                except (SharedDBError, SQLAlchemyError) as error:
                    _log.warning("fills cannot be read again: %s", type(error).__name__)


def _fill(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an execution, amounts with the 8 places that the database gives them."""
    fill: dict[str, Any] = {name: row.get(name) for name in ExecutionRow._fields}
    for name in ("exec_price", "exec_qty", "exec_fee", "closed_pnl"):
        if fill[name] is not None:
            fill[name] = Decimal(fill[name]).quantize(_PLACES)
    return fill
