"""What SQLite tells of itself."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable
from dataclasses import replace

from sqlalchemy import Connection, text

from shared.db import database_file
from shared.db.health.report import Health, TableHealth
from shared.db.settings import DatabaseSettings

_LITTLE_SPACE = 512 << 20
# What is counted, or walked through page by page, within milliseconds.
_FEW_ROWS = 10_000
_SMALL_FILE = 64 << 20
_LISTED = 10
_WHOLE = "pages, indexes and foreign keys ok; values have no checksum in SQLite"
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 # to be recognized, not used


def limit(connection: Connection, timeout: float) -> None:
    """Nothing: what is asked here is asked in this process."""


def encoding_problem(connection: Connection) -> None:
    """None: text is UTF-8, or UTF-16, which reads the same."""


def look(connection: Connection, health: Health, settings: DatabaseSettings) -> Health:
    """Version, file, log and disk."""
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection)
    health = replace(
        health, version=f"SQLite {sqlite3.sqlite_version}", journal_mode=connection.scalar(text("PRAGMA journal_mode"))
    )
    if health.journal_mode == "memory":
        return health
    path = database_file.opened_file(driver).path
    log = os.path.getsize(f"{path}-wal") if os.path.exists(f"{path}-wal") else 0
    free = shutil.disk_usage(os.path.dirname(path)).free
    health = replace(health, size_bytes=os.path.getsize(path), wal_bytes=log, disk_free_bytes=free)
    if log > database_file.USUAL_LOG:
        health = health.with_problem(
            f"the write-ahead log has {log >> 20} MB: a session that stays open keeps it from being folded into the "
            "file, or the last transaction was that large; end long sessions, and the next commits make it small"
        )
    if free < _LITTLE_SPACE:
        health = health.with_problem(f"only {free >> 20} MB of the disk are free; make room before writes are refused")
    if health.journal_mode != "wal":
        health = health.with_warning(
            f"the journal mode is {health.journal_mode}, not wal: readers and the writer wait for each other; put the "
            "file on a local disk where this user may write"
        )
    elif has_wal_reset_race(sqlite3.sqlite_version_info):
        health = health.with_warning(
            f"SQLite {sqlite3.sqlite_version} can, very rarely, damage a file that several connections write and "
            "checkpoint at once; use a Python linked to SQLite 3.51.3 or newer, and keep backups"
        )
    if any(_is_below(path, folder) for folder in {tempfile.gettempdir(), *_TEMPORARY}):
        health = health.with_warning(
            f"{path} is in a folder for temporary files, which may be emptied; set GRIDBOT_DB_NAME to a lasting place"
        )
    return health


def has_wal_reset_race(version: tuple[int, ...]) -> bool:
    """Whether a SQLite of this version has the race that its makers call the WAL-reset bug.

    From 3.7.0 to 3.51.2, apart from the repaired 3.44.6 and 3.50.7 (sqlite.org/wal.html, "The WAL-Reset Bug").
    """
    repaired = (version[:2] == (3, 44) and version >= (3, 44, 6)) or (version[:2] == (3, 50) and version >= (3, 50, 7))
    return (3, 7, 0) <= version < (3, 51, 3) and not repaired


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath((os.path.realpath(path), os.path.realpath(folder))) == os.path.realpath(folder)


def tables(connection: Connection, names: Iterable[str]) -> tuple[TableHealth, ...]:
    """Rows by the highest row id, which is at least their number; counted where they are few."""
    sizes = _sizes(connection)
    found = []
    for name in names:
        rows = connection.scalar(text(f"SELECT coalesce(max(rowid), 0) FROM {name}"))
        estimated = rows > _FEW_ROWS
        if not estimated:
            rows = connection.scalar(text(f"SELECT count(*) FROM {name}"))
        found.append(TableHealth(name, rows, estimated, sizes.get(name)))
    return tuple(found)


def _sizes(connection: Connection) -> dict[str, int]:
    # The only way to them reads every page of the file.
    pages = connection.scalar(text("PRAGMA page_count")) * connection.scalar(text("PRAGMA page_size"))
    if pages > _SMALL_FILE or not connection.scalar(text("SELECT 1 FROM pragma_module_list WHERE name = 'dbstat'")):
        return {}
    sizes = connection.execute(
        text(
            "SELECT s.tbl_name, sum(d.pgsize) AS size FROM dbstat d JOIN sqlite_schema s ON s.name = d.name "
            "WHERE d.aggregate = TRUE GROUP BY s.tbl_name"
        )
    )
    return {row.tbl_name: row.size for row in sizes}


def check(connection: Connection, health: Health, names: list[str]) -> Health:
    """Read every page, compare every index with its table, and look for rows without their parent."""
    found = connection.scalars(text(f"PRAGMA integrity_check({_LISTED})")).all()
    orphans = connection.execute(text("PRAGMA foreign_key_check")).all()
    if found != ["ok"]:
        listed = "; ".join(" ".join(str(line).split()) for line in found)
        health = health.with_problem(
            f"the database is damaged ({listed}); stop writing, keep a copy of the files, and restore the last good "
            "backup"
        )
    if orphans:
        where = ", ".join(sorted({row[0] for row in orphans}))
        health = health.with_problem(
            f"{len(orphans)} rows of {where} belong to rows that do not exist: something wrote without this library; "
            "restore the last good backup, or delete them"
        )
    # Not "ok": a disk that changes a byte of a price changes the price, and SQLite keeps no checksum to tell.
    return replace(health, integrity="damaged" if found != ["ok"] or orphans else _WHOLE)
