"""`Leader`: one process that trades a strategy, kept apart from all others by Redis and by the run's row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from sqlalchemy.orm import Session

from shared.cache.client import SyncRedisClient
from shared.cache.errors import CacheAwayError, LeadershipLostError
from shared.cache.values import checked_ttl, checked_user_id
from shared.db import DatabaseFactory, Run, RunEndedError, RunRepository


class Leader:
    """A process that wants to lead one strategy of a user: `redis` is `for_user(uid)`, `ttl` seconds of the lock.

    `acquire()`, then `start(run)`, then every write in a `session()`, and `renew()` well within every `ttl`.

    The lock's token is the id of the run that the leader starts. `start` checks the lock while it holds the strategy's
    row, and closes the run of whoever led before; `session` checks, and holds until its commit, the row of the run. So
    a leader that slept past its lock, or whose Redis lost it, is refused by the database and writes nothing.
    """

    def __init__(self, redis: SyncRedisClient, db: DatabaseFactory, strategy_id: str, *, ttl: int = 10) -> None:
        self._user_id = checked_user_id(redis.user_id)
        self._redis, self._db, self._ttl = redis, db, checked_ttl(ttl)
        self._name = f"leader:{strategy_id}"
        self._strategy_id = strategy_id
        self.token = str(uuid4())
        """The fencing token: the id of this leader's run."""

    def acquire(self) -> bool:
        """Take the lock; False while another holds it. Raises `CacheAwayError`: who leads is not known then."""
        return self._redis.lock(self._name, self.token, self._ttl)

    def start(self, run: Run) -> Run:
        """Store `run` as running, with the token as its id; the run of who led before is closed.

        Raises `LeadershipLostError` if the lock is not this leader's any more, and `CacheAwayError`; nothing is stored.
        """
        run.run_id, run.strategy_id = self.token, self._strategy_id
        with self._db.get_session(user_id=self._user_id) as session:
            started = RunRepository(session).start(run)
            # No other leader gets past this point before our COMMIT: it waits for the strategy's row.
            if not self.acquire():
                raise LeadershipLostError(f"another process leads strategy {self._strategy_id}; do not start")
            return started

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session of the user for one transaction of the leader: whoever leads next waits for it to end.

        Raises `LeadershipLostError` if another one has started, and notes the run's heartbeat otherwise.
        """
        with self._db.get_session(user_id=self._user_id) as session:
            try:
                RunRepository(session).heartbeat(self.token)
            except RunEndedError as error:
                raise LeadershipLostError(f"{error}; this process must stop trading it") from error
            yield session

    def renew(self) -> None:
        """Hold the lock for as long again, and note the run's heartbeat.

        Raises `LeadershipLostError` if another process has the lock or has started. While Redis is away the leader goes
        on: nobody can take the lock then, and the run's row is the judge.
        """
        with self.session():
            pass
        try:
            held = self.acquire()
        except CacheAwayError:
            return
        if not held:
            raise LeadershipLostError(f"another process took the lead of strategy {self._strategy_id}")

    def release(self) -> None:
        """Let go of the lock, which otherwise ends by itself. The run is ended by `RunRepository.finish`."""
        self._redis.unlock(self._name, self.token)
