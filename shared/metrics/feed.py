"""`MetricsFeed`: what recorders, the database and runs have to tell, measured every few seconds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

from sqlalchemy.exc import SQLAlchemyError

from shared.db import DatabaseFactory, PrivateExecutionRepository, Recorder, RunRepository, SharedDBError
from shared.metrics.client import InfluxDBClientWrapper
from shared.metrics.points import Point, nanoseconds

_log = logging.getLogger(__name__)


class MetricsFeed:
    """Writes, every `every` seconds and once more when it closes, what is known of a database and its bots.

    Of each recorder that it watches its `stats()` (measurement `recorder`), of the database its `health()`
    (`database_health`), and of every running run of `user_id` its totals (`performance_metrics`, whose `bot_id` is the
    run's id). Prices and volumes of trades come with `Recorder(db, PublicTrade, on_written=feed.market)`.

    It runs in a thread of its own and stops nobody: what fails is logged, and tried again the next time.
    """

    def __init__(
        self,
        client: InfluxDBClientWrapper,
        db: DatabaseFactory,
        *,
        user_id: str | None = None,
        every: float = 10.0,
    ) -> None:
        self._client, self._db, self._every = client, db, every
        self._recorders: dict[str, Recorder] = {}
        self._user_id = user_id
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shared.metrics feed", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def watch(self, name: str, recorder: Recorder) -> None:
        """Write this recorder's `stats()` too, under a name, until it is closed or the feed is."""
        self._recorders[name] = recorder

    def close(self) -> None:
        """Write once more, and end."""
        self._closed.set()
        self._thread.join()

    def market(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write trades that are in the database: of each symbol and moment the last price, and the volume."""
        found: dict[tuple[str, int], list[float]] = {}
        for row in rows:
            market = found.setdefault((row["symbol"], nanoseconds(row["exchange_ts"])), [0.0, 0.0])
            market[:] = float(row["price"]), market[1] + float(row["size"])
        self._client.write_points(
            Point("market_data", {"price": price, "volume": volume}, {"symbol": symbol}, moment)
            for (symbol, moment), (price, volume) in found.items()
        )

    def measure(self) -> None:
        """Write what there is to tell now. Raises what the database or the metrics server say."""
        for name, recorder in list(self._recorders.items()):
            stats = recorder.stats()
            away = {"away": stats.away_since is not None}
            self._client.write_point(Point("recorder", _numbers(asdict(stats)) | away, {"recorder": name}))
        health = self._db.health()
        told = {"problems": len(health.problems), "warnings": len(health.warnings), "reachable": health.reachable}
        in_use = {} if health.pool is None else {"connections": health.pool.checked_out}
        self._client.write_point(Point("database_health", _numbers(health.as_dict()) | told | in_use))
        if self._user_id is not None:
            client = self._client.for_user(self._user_id)
            with self._db.get_session(user_id=self._user_id, read_only=True) as session:
                for run in RunRepository(session).get_running():
                    totals = PrivateExecutionRepository(session).totals(run.run_id)
                    numbers = {name: value for name, value in totals._asdict().items() if name != "fees_by_currency"}
                    client.write_performance_metrics(run.run_id, numbers)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._closed.wait(self._every)
            try:
                self.measure()
            except (SharedDBError, SQLAlchemyError) as error:
                _log.warning("nothing was measured: %s", error)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}
