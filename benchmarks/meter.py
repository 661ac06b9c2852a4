"""The processor's time that a PostgreSQL server spends, which other jobs on the machine disturb less than the clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from shared.db import DatabaseFactory

_PROC = Path("/proc")


class Meter:
    """What work costs the server of a PostgreSQL database on this machine (Linux), whatever else runs there."""

    def __init__(self, db: DatabaseFactory) -> None:
        self._db = db
        with db.engine.connect() as connection:
            folder = str(connection.scalar(text("SHOW data_directory")))
        self._postmaster = (Path(folder) / "postmaster.pid").read_text().partition("\n")[0]

    def spent(self, work: Callable[[], Any]) -> tuple[float, int]:
        """Seconds of the processor, and bytes of the log."""
        with self._db.engine.connect() as connection:
            before, seconds = _log_position(connection), self._seconds()
            work()
            return self._seconds() - seconds, _log_position(connection) - before

    def memory(self) -> float:
        """Bytes that belong to one connection alone."""
        with self._db.engine.connect() as connection:
            process = connection.scalar(text("SELECT pg_backend_pid()"))
            status = (_PROC / str(process) / "status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    def _seconds(self) -> float:
        """Of all the server's processes that are there; a backend of the pool stays."""
        total = 0
        for status in _PROC.glob("[0-9]*/stat"):
            try:
                parent = status.read_text().rpartition(")")[2].split()[1]
                if parent == self._postmaster:
                    total += int((status.parent / "schedstat").read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                continue
        return total / 1e9


def _log_position(connection: Connection) -> int:
    return int(connection.scalar(text("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')")) or 0)
