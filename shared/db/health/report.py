"""What a look at the database finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self


@dataclass(frozen=True)
class TableHealth:
    """A table: its rows (`estimated` where counting them would read much; None: not known) and bytes with indexes.

    On PostgreSQL also what has happened since the server's statistics began: how often it was read whole
    (`sequential_scans`) and by an index, how many rows were written to it and deleted (its growth is the difference of
    two looks), and the `unused_indexes` that no question has used and no rule needs; else None and none.
    """

    name: str
    rows: int | None
    estimated: bool
    size_bytes: int | None
    sequential_scans: int | None = None
    index_scans: int | None = None
    rows_inserted: int | None = None
    rows_deleted: int | None = None
    unused_indexes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SlowStatement:
    """A statement, by its text without values, that took the server `total_ms` in `calls`, and gave `rows` in all."""

    statement: str
    calls: int
    total_ms: float
    mean_ms: float
    rows: int


@dataclass(frozen=True)
class StandbyHealth:
    """A standby of a PostgreSQL primary, by its application_name.

    `missing_bytes` of the log it has not stored yet: those commits a promotion would lose. `replay_bytes` and
    `replay_seconds` tell how far its readers are behind. None is what the login may not see (pg_read_all_stats).
    """

    name: str | None
    state: str | None
    sync_state: str | None
    missing_bytes: int | None
    replay_bytes: int | None
    replay_seconds: float | None


@dataclass(frozen=True)
class StoreHealth:
    """A store beside the database that `db.add_store()` named, and whether it answered."""

    name: str
    reachable: bool


@dataclass(frozen=True)
class StreamHealth:
    """The newest time (UTC) of a stream: trades by symbol, executions by account (`key`), others likewise."""

    table: str
    key: str
    newest: datetime


@dataclass(frozen=True)
class PoolHealth:
    """The pool of this process's factory: `checked_out` of at most `size + max_overflow` connections are in use."""

    size: int
    max_overflow: int
    checked_out: int
    checked_in: int


@dataclass(frozen=True)
class ServerConnections:
    """The server's connections: `used` of the `limit` of server, database or role, whichever has least room.

    `by_application` counts those of our login. They belong to `processes` or more, which may open `possible` in all:
    exactly so many where each process has a GRIDBOT_DB_APPLICATION_NAME of its own.
    """

    used: int
    limit: int
    by_application: dict[str, int]
    processes: int
    possible: int


@dataclass(frozen=True)
class Health:
    """How the database is, as `db.health()` found it at `checked_at`.

    `problems` are sentences with their remedy, none if all that was looked at is well; `warnings` may be meant so.
    `integrity` is "ok" only after a look at every page (`check=True`), else it says what was not looked at: of SQLite
    always the values, which have no checksum there.
    `slow_statements` are the ten that took the longest in all, where PostgreSQL has the extension pg_stat_statements.
    `stores` are those beside the database that `db.add_store()` named; one that does not answer is a problem.
    `role` is PostgreSQL's, "primary", with its `standbys`, or "standby": that is `replay_lag_bytes` of what it has
    received behind, and its newest row was committed `replay_lag_seconds` ago.
    `not_ours` are tables of no package that is loaded: another program's, or of a package that is not here.
    What does not exist in this kind of database, or could not be read, is None.
    """

    url: str
    checked_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    reachable: bool = False
    version: str | None = None
    latency_ms: float | None = None
    revision: str | None = None
    code_revision: str | None = None
    row_security: bool | None = None
    role: str | None = None
    standbys: tuple[StandbyHealth, ...] = ()
    replay_lag_bytes: int | None = None
    replay_lag_seconds: float | None = None
    pool: PoolHealth | None = None
    connections: ServerConnections | None = None
    tables: tuple[TableHealth, ...] = ()
    not_ours: tuple[str, ...] = ()
    streams: tuple[StreamHealth, ...] = ()
    slow_statements: tuple[SlowStatement, ...] = ()
    stores: tuple[StoreHealth, ...] = ()
    size_bytes: int | None = None
    journal_mode: str | None = None
    wal_bytes: int | None = None
    disk_free_bytes: int | None = None
    integrity: str = "not checked"
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def with_problem(self, sentence: str) -> Self:
        """The same with one more problem; one that is known already is not said twice."""
        return self if sentence in self.problems else replace(self, problems=(*self.problems, sentence))

    def with_warning(self, sentence: str) -> Self:
        """The same with one more warning."""
        return replace(self, warnings=(*self.warnings, sentence))

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON, times in ISO 8601."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
