"""Backup and restore of SQLite by its online backup API, in both directions.

Writing the backup's pages into the live database, rather than putting the file in its place, keeps the file that
other processes have open and asks for the same lock as any writer: it is one transaction, which a crash undoes. A
file put in its place would leave them writing into the deleted one, and a crash at the wrong moment would leave the
old write-ahead log beside it, which SQLite would apply to the new file.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from shared.db import audit, database_file, forking
from shared.db.database import DatabaseFactory
from shared.db.driver_errors import typed_failure
from shared.db.errors import (
    BackupError,
    DatabaseCorruptError,
    DatabaseLockedError,
    InputError,
    NotADatabaseError,
    TargetNotEmptyError,
)
from shared.db.operations.contents import row_counts, tables_with_rows
from shared.db.operations.interruption import came, check, finishing
from shared.db.schema_version import read_revision
from shared.db.settings import DatabaseSettings

MAGIC = b"SQLite format 3\0"
# 4 MB at a time: few enough that Ctrl-C and the display never wait.
_PAGES = 1000
# Of SQLite's machine, between two looks for a signal: a millisecond or so.
_STEPS = 50_000
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_SHOWN_PROBLEMS = 3

# Told the share that is done, from 0 to 1.
WatchShare = Callable[[float], None]


@dataclass(frozen=True)
class FileContents:
    """What a verified SQLite file holds."""

    revision: str | None
    rows: dict[str, int]


def back_up(db: DatabaseFactory, part: Path, watch: WatchShare) -> dict[str, int]:
    """Copy the database as it is now into the file `part`; the number of rows of each table in that state.

    Writers go on meanwhile: it is read in one transaction, which in WAL mode stops nobody, and whose state the
    copy keeps to the end. (Without it the API would begin anew whenever somebody writes.)
    """
    with db.get_session(read_only=True) as session:
        connection = Session.connection(session)
        counts = row_counts(connection)  # begins the transaction's view
        source = connection.connection.dbapi_connection
        assert isinstance(source, sqlite3.Connection)
        with backup_errors(), forking.inside_sqlite(), closing(sqlite3.connect(part, isolation_level=None)) as target:
            # The file is synced as a whole at the end.
            target.execute("PRAGMA synchronous=OFF")
            source.backup(target, pages=_PAGES, progress=_progress(watch))
            # One file, which can be read where nothing may be written.
            target.execute("PRAGMA journal_mode=DELETE")
    return counts


def verified(path: Path) -> FileContents:
    """What the file holds, after SQLite's own checks of every page, index, constraint and foreign key.

    Raises `InputError` for a file that is damaged, cut short, or no SQLite database.
    """
    try:
        with forking.inside_sqlite(), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as file:
            file.set_progress_handler(came, _STEPS)
            problems = [row[0] for row in file.execute("PRAGMA integrity_check")]
            if problems == ["ok"]:
                problems = [
                    f"a row of {row[0]} names no row of {row[2]}" for row in file.execute("PRAGMA foreign_key_check")
                ]
                if not problems:
                    return _contents(file)
    except (sqlite3.DatabaseError, DBAPIError) as error:
        check()
        raise InputError(f"{path} is damaged or no SQLite database ({error}); use another backup") from error
    raise InputError(f"{path} is damaged ({'; '.join(problems[:_SHOWN_PROBLEMS])}); use another backup")


def restore(
    db: DatabaseFactory, path: Path, contents: FileContents, force: bool, watch: WatchShare, restored: str
) -> None:
    """Write the verified file's pages into the database, as one transaction under SQLite's own locks.

    `restored` is what an interruption says from then on.

    Raises `TargetNotEmptyError` unless the database is empty or `force` is given, `DatabaseLockedError` when a
    writer does not finish in time.
    """
    with (
        backup_errors(),
        forking.inside_sqlite(),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
        _writable(db, force) as target,
    ):
        _refuse_other_page_size(source, target)

        def check_again() -> None:
            # The database is locked for writing now; somebody may have written since it was found empty.
            if not force and not db.settings.is_memory:
                with db.get_session(read_only=True) as session:
                    refuse_rows(tables_with_rows(Session.connection(session)))

        # Not all pages in the first step: once the last one is written there is nothing left to refuse.
        pages = source.execute("PRAGMA page_count").fetchone()[0]
        step = min(_PAGES, max(pages - 1, 1))
        progress = _progress(watch, once_locked=check_again)
        with ExitStack() as last:

            def after_a_step(status: int, remaining: int, total: int) -> None:
                progress(status, remaining, total)
                if remaining <= step:
                    last.enter_context(finishing(restored))

            source.backup(target, pages=step, progress=after_a_step)
        if not db.settings.is_memory:
            target.execute("PRAGMA wal_checkpoint")  # as far as no reader is in the way
    audit.remember(db.engine.dialect, None)
    with db.get_session(read_only=True) as session:
        found = row_counts(Session.connection(session))
        checked = [row[0] for row in Session.connection(session).exec_driver_sql("PRAGMA integrity_check")]
    if found != contents.rows or checked != ["ok"]:
        raise BackupError("the restored database does not verify; stop writing, check the disk, and restore again")


@contextmanager
def _writable(db: DatabaseFactory, force: bool) -> Iterator[sqlite3.Connection]:
    """The driver's connection to a database that is empty, or may be replaced; it can be written, and has not begun."""
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(db.engine.connect())
            with connection.begin():  # a writer's transaction: it also ends the connection's read-only mode
                refuse_rows([] if force else tables_with_rows(connection))
        except (NotADatabaseError, DatabaseCorruptError) as error:
            raise BackupError(
                f"{db.engine.url.database} is damaged ({error.orig}); move it out of the way with its -wal and -shm "
                "files, keep them, and restore again"
            ) from error
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection)
        yield driver


@contextmanager
def empty_file_removed(settings: DatabaseSettings) -> Iterator[None]:
    """A block that may make the file of an SQLite database; if it raises and no table came into it, it goes again."""
    if not settings.is_sqlite or settings.is_memory:
        yield
        return
    # As the engine has it, which nothing has been opened with yet.
    path = Path(database_file.path_of(database_file.located(settings.url, os.getcwd())))
    was_there = os.path.lexists(path)
    try:
        yield
    except BaseException:
        if not was_there and path.is_file():
            with suppress(sqlite3.Error, OSError):
                _remove_if_empty(path)
        raise


def _remove_if_empty(path: Path) -> None:
    with forking.inside_sqlite(), closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")  # nobody makes a table meanwhile
        if not file.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").fetchone()[0]:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)


def refuse_rows(tables: list[str]) -> None:
    """`TargetNotEmptyError` if there are any tables with rows."""
    if tables:
        raise TargetNotEmptyError(
            tables, "restore into an empty database, or give --force (force=True) to replace everything in it"
        )


@contextmanager
def backup_errors() -> Iterator[None]:
    """What SQLite raises in the block, as `errors.py` names it."""
    try:
        yield
    except sqlite3.Error as error:
        failure = typed_failure(error)
        if failure is None:
            raise
        raise failure from error


def _contents(file: sqlite3.Connection) -> FileContents:
    engine = create_engine("sqlite://", creator=lambda: file, poolclass=StaticPool)
    with engine.connect() as connection:
        return FileContents(read_revision(connection), row_counts(connection))


def _progress(watch: WatchShare, once_locked: Callable[[], None] | None = None) -> Callable[[int, int, int], None]:
    first = True

    def progress(status: int, remaining: int, total: int) -> None:
        nonlocal first
        if status in _BUSY:
            # The driver would try again for ever; the busy timeout has passed already.
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorname = "SQLITE_BUSY"
            raise DatabaseLockedError(error)
        if status == sqlite3.SQLITE_DONE:
            return
        if first and once_locked is not None:
            once_locked()
        first = False
        watch(1 - remaining / max(total, 1))

    return progress


def _refuse_other_page_size(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    sizes = [connection.execute("PRAGMA page_size").fetchone()[0] for connection in (source, target)]
    if sizes[0] != sizes[1]:
        raise BackupError(
            f"the backup has pages of {sizes[0]} bytes and the database of {sizes[1]}, which SQLite cannot mix; "
            f'run: sqlite3 FILE "PRAGMA page_size={sizes[1]}; VACUUM" on a copy of the backup, and restore that'
        )
