"""Backup and restore of a whole database: verified before either is reported good, and all or nothing.

SQLite by its online backup API, PostgreSQL by pg_dump and pg_restore in custom format. Sealed secrets stay sealed:
neither reads a row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shared.db import schema_version
from shared.db.database import DatabaseFactory
from shared.db.dialects import MYSQL, POSTGRESQL, SQLITE, Port
from shared.db.errors import BackupError, InputError
from shared.db.operations import mysql_backup, postgresql_backup, sqlite_backup
from shared.db.operations.checksum import checksum, checksum_path, verify_checksum, write_checksum
from shared.db.operations.interruption import check, finishing, interruptible
from shared.db.operations.postgresql_tools import tools_for
from shared.db.operations.progress import WHOLE, Watch
from shared.db.operations.replacing import refuse_database, refuse_to_replace, written_beside


@dataclass(frozen=True)
class BackupReport:
    """A verified backup or restore: the file, the schema's revision, and the number of rows of each table in it.

    `missing_roles` are PostgreSQL roles that grants in a restored backup name and this server does not have; those
    grants were left out.
    """

    path: str
    database: str
    revision: str | None
    rows: dict[str, int]
    size: int
    seconds: float
    missing_roles: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return asdict(self)


def back_up(
    db: DatabaseFactory,
    path: str | Path,
    *,
    force: bool = False,
    pg_bin: str | Path | None = None,
    watch: Watch = lambda done, rows: None,
) -> BackupReport:
    """Write the database as it is now to the file `path`, while others go on writing to it.

    The file is made under another name beside `path`, readable by its owner alone, verified (every page or row is
    read again, and the rows counted), and then put in place, with its SHA-256 in `FILE.sha256` beside it. `pg_bin` is
    the folder of pg_dump and pg_restore, the PATH unless given. `watch` is told how far it is, of `WHOLE`, and the rows
    once they are known.

    Raises `BackupError` if `path` is there already and `force` is not given, for a database without tables, and when
    the tools are missing or older than the server; `InputError` if nothing can be written there, and for anything but
    an ordinary file, the database's own files, and those of any SQLite database in use. A failure leaves no file, and
    what was there as it was, and so does an interruption (`Interrupted`, a `KeyboardInterrupt` that says so).
    """
    with interruptible(f"no backup was made, and {path} is as it was"):
        return _back_up(db, Path(path), force, pg_bin, watch)


def _back_up(db: DatabaseFactory, path: Path, force: bool, pg_bin: str | Path | None, watch: Watch) -> BackupReport:
    started = time.monotonic()

    def told(share: float) -> None:
        check()
        watch(int(WHOLE * share), 0)

    refuse_to_replace(path, force)
    _refuse_open_sessions(db)
    for file in (path, checksum_path(path)):
        refuse_database(db, file)
    with db.engine.connect() as connection:
        revision, problem = schema_version.read_revision(connection), schema_version.difference(connection)
    if problem is not None and problem.state == "empty":
        raise BackupError(f"there is nothing to back up: {db.settings.safe_url} has no tables; is it the right one?")
    with _written_with_checksum(path, force) as part:
        if db.settings.is_sqlite:
            rows = sqlite_backup.back_up(db, part, lambda share: told(share / 2))
            contents = sqlite_backup.verified(part)
            if contents.rows != rows or contents.revision != revision:
                raise BackupError("the backup does not hold what the database does; nothing was kept, try again")
        elif db.settings.port is MYSQL:
            rows = mysql_backup.back_up(db, part, pg_bin, told)
        else:
            rows = postgresql_backup.back_up(db, part, pg_bin, told)
        size = part.stat().st_size
        watch(WHOLE, sum(rows.values()))
    return BackupReport(str(path), db.settings.safe_url, revision, rows, size, time.monotonic() - started)


def restore(
    db: DatabaseFactory,
    path: str | Path,
    *,
    force: bool = False,
    pg_bin: str | Path | None = None,
    watch: Watch = lambda done, rows: None,
) -> BackupReport:
    """Put the database into the state that the backup `path` holds: verified first, then all at once.

    Processes that have the database open see the old rows or the new ones. They are best restarted: whether there is
    an audit log, or row-level security, each finds out once.

    Raises `TargetNotEmptyError` for a database with rows, unless `force` is given; `InputError` for a file that is
    damaged, is not the one whose checksum stands beside it, is of the other kind of database, or of a newer schema than
    this code's; `DatabaseLockedError` when other sessions do not let go of the tables. A failure leaves the database
    as it was. `Interrupted`, a `KeyboardInterrupt`, says whether the restore took place.
    """
    with interruptible(f"the restore did not take place, and {db.settings.safe_url} is as it was"):
        return _restore(db, Path(path), force, pg_bin, watch)


def _restore(db: DatabaseFactory, path: Path, force: bool, pg_bin: str | Path | None, watch: Watch) -> BackupReport:
    started = time.monotonic()
    _refuse_other_kind(path, db.settings.port)
    verify_checksum(path)
    _refuse_open_sessions(db)
    refuse_database(db, path)

    restored = f"the restore took place, and {db.settings.safe_url} holds the rows of {path}"

    def told(share: float) -> None:
        check()
        watch(int(WHOLE * share), 0)

    missing_roles: list[str] = []
    if db.settings.is_sqlite:
        contents = sqlite_backup.verified(path)
        rows, revision = contents.rows, contents.revision
        _refuse_newer(path, revision, rows)
        sqlite_backup.restore(db, path, contents, force, told, restored)
    elif db.settings.port is MYSQL:
        script = mysql_backup.read_script(path)
        rows, revision = script.rows, script.revision
        _refuse_newer(path, revision, rows)
        mysql_backup.restore(db, path, script, force=force, folder=pg_bin, watch=told, done_state=restored)
    else:
        with db.engine.connect() as connection:
            tools = tools_for(connection, pg_bin)
        archive = postgresql_backup.read_dump(path, tools, lambda rows: check())
        rows, revision = dict(archive.rows), archive.revision
        _refuse_newer(path, revision, rows)
        missing_roles = sorted(postgresql_backup.restore(db, archive, force, told, restored).missing_roles)
    seconds = time.monotonic() - started
    return BackupReport(str(path), db.settings.safe_url, revision, rows, path.stat().st_size, seconds, missing_roles)


@contextmanager
def _written_with_checksum(path: Path, force: bool) -> Iterator[Path]:
    """A new file beside `path`, which takes its place when the block ends, with its checksum beside it."""
    with ExitStack() as last:
        with written_beside(path, force) as part:
            yield part
            refuse_to_replace(path, force)
            found = checksum(part)
            check()
            last.enter_context(finishing(f"the backup {path} is complete and verified"))
            checksum_path(path).unlink(missing_ok=True)  # first, so that a kill leaves no wrong one
        write_checksum(path, found)


def _refuse_other_kind(path: Path, wanted: Port) -> None:
    try:
        with path.open("rb") as file:
            begin = file.read(len(sqlite_backup.MAGIC))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check the name and its permissions") from error
    magic: dict[Port, bytes | tuple[bytes, ...]] = {
        SQLITE: sqlite_backup.MAGIC,
        POSTGRESQL: postgresql_backup.MAGIC,
        MYSQL: mysql_backup.MAGIC,
    }
    found = next((port for port, known in magic.items() if begin.startswith(known)), None)
    if found is None:
        raise InputError(
            f"{path} is no backup: neither an SQLite database nor an archive of pg_dump, nor a script of mariadb-dump; "
            "check the name"
        )
    if found is not wanted:
        raise InputError(
            f"{path} is a backup of {found.title}, and the database is {wanted.title}; restore it into its own kind, "
            "and use copy to change the kind"
        )


def _refuse_newer(path: Path, revision: str | None, rows: dict[str, int]) -> None:
    if "users" not in rows:
        raise InputError(f"{path} is no backup of this library's tables; check the name")
    if revision is not None and revision > schema_version.SCHEMA_REVISION:
        raise InputError(
            f"{path} has the schema's revision {revision}, newer than this code's {schema_version.SCHEMA_REVISION}; "
            "install the release that made it"
        )


def _refuse_open_sessions(db: DatabaseFactory) -> None:
    # They share the one connection of an in-memory database, which is then in the middle of something.
    if db.settings.is_memory and db.open_sessions:
        raise BackupError("a session on this in-memory database is still open; close it first")
