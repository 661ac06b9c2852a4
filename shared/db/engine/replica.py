"""A standby for sessions that only read, and whether its answers are new enough for them."""

from __future__ import annotations

import logging
import math
import re
import time
from typing import Any, Final, NamedTuple

from sqlalchemy import URL, Connection

from shared.db.dialects import POSTGRESQL
from shared.db.engine.make import as_read_only, make_engine
from shared.db.errors import DatabaseFailure, InvalidValueError
from shared.db.settings import DatabaseSettings

_SEEN: Final = "shared_db_replica_seen"
# Between two looks whether a write has arrived, and for how long there are any: nearly all have at the first or second
# look, and whoever reads does not wait for 10 ms before the primary is asked. No server up to 18 waits by itself.
_PAUSE = 0.0005
_PATIENCE = 0.008
# So long the primary is asked once the standby could not be: each session of a crowd would wait for it else.
_AWAY = 1.0
# A server that was promoted meanwhile has everything that it has.
_LOOK = """
    SELECT pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
            ELSE pg_current_wal_flush_lsn() END, '0/0'),
        CASE WHEN pg_is_in_recovery() THEN extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())
            ELSE 0 END
"""

_log = logging.getLogger("shared.db")


class Wanted(NamedTuple):
    """At most so many seconds old, and holding what was written before that position of the log."""

    max_staleness: float
    after: int

    @classmethod
    def of(cls, max_staleness: float | None, after: str | None, default: float) -> Wanted:
        """What a session asks for. Raises `InvalidValueError` for what is no number of seconds, or no position."""
        if max_staleness is not None and not (
            isinstance(max_staleness, (int, float)) and not isinstance(max_staleness, bool) and max_staleness >= 0
        ):
            raise InvalidValueError(f"max_staleness must be a number of seconds from 0, not {max_staleness!r}")
        if max_staleness is None:
            max_staleness = default if after is None else math.inf
        return cls(max_staleness, 0 if after is None else _position(after))


class _Seen(NamedTuple):
    """What a server has told: up to where it has read the log, and when that was all there was."""

    position: int
    newest_at: float

    def is_enough(self, wanted: Wanted) -> bool:
        return self.position >= wanted.after and time.monotonic() - self.newest_at <= wanted.max_staleness


class Replica:
    """The standby at a URL, or one of several that it names."""

    def __init__(self, settings: DatabaseSettings, folder: str, url: URL) -> None:
        self.engine = as_read_only(make_engine(settings, folder, url))
        self._away_until = -math.inf

    def connection(self, wanted: Wanted) -> Connection | None:
        """A connection whose answers are new enough; None if the primary is to be asked: it is behind, or away."""
        if wanted.max_staleness == 0 or time.monotonic() < self._away_until:
            return None
        try:
            connection = self.engine.connect()
        except DatabaseFailure as error:
            self.leave(error)
            return None
        try:
            if _is_enough(connection, wanted):
                return connection
        except POSTGRESQL.error as error:
            connection.invalidate()
            self.leave(error)
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None

    def leave(self, error: Exception) -> None:
        """Ask the primary for a second, since the standby fails."""
        if time.monotonic() >= self._away_until:
            _log.warning("the replica failed with %s; the primary is asked instead", type(error).__name__)
        self._away_until = time.monotonic() + _AWAY

    def answers(self) -> bool:
        """Whether it can be asked now, for `db.health()`."""
        with self.engine.connect() as connection:
            return connection.exec_driver_sql("SELECT 1").scalar() == 1


def _is_enough(connection: Connection, wanted: Wanted) -> bool:
    # A server only ever goes forward, and the pool's connection stays with its server: what it told before holds.
    seen = connection.info.get(_SEEN)
    if seen is not None and seen.is_enough(wanted):
        return True
    patient_until = time.monotonic() + (_PATIENCE if wanted.after else 0)
    while True:
        seen = connection.info[_SEEN] = _look(connection)
        if seen.is_enough(wanted):
            return True
        if time.monotonic() >= patient_until:
            return False
        time.sleep(_PAUSE)  # until the log has come, of which a standby tells nobody


def _look(connection: Connection) -> _Seen:
    driver: Any = connection.connection.dbapi_connection
    asked_at = time.monotonic()
    driver.autocommit = True  # one message, which leaves no transaction
    try:
        with driver.cursor() as cursor:
            cursor.execute(_LOOK)
            position, age = cursor.fetchone()
    finally:
        if not driver.closed:
            driver.autocommit = False
    return _Seen(int(position or 0), -math.inf if age is None else asked_at - float(age))


def _position(text: str) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}", text):
        raise InvalidValueError("after must be what db.write_position() gave after the COMMIT, such as '0/16B3740'")
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)
