"""Backup and restore of a database of MariaDB or MySQL, by the server's own programs: a script of SQL.

The script makes tables, and that cannot be undone there: so it is run in a database of its own, whose tables take the
places of those that are there only when all their rows have been counted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

from sqlalchemy import Connection

from shared.db import packages, schema_version
from shared.db.database import DatabaseFactory
from shared.db.dialects import port_of
from shared.db.dialects.mysql import without_values
from shared.db.errors import BackupError
from shared.db.operations.contents import row_counts, tables_with_rows
from shared.db.operations.interruption import check, finishing, waiting
from shared.db.operations.mysql_exchange import databases_beside, exchange, refuse_references, using
from shared.db.operations.sqlite_backup import refuse_rows

MAGIC = (b"/*M!999999", b"-- MariaDB dump", b"-- MySQL dump")
_END = b"-- Dump completed"
_STRINGS = re.compile(rb"'(?:[^'\\]|\\.)*'", re.DOTALL)
_CREATE = re.compile(rb"CREATE TABLE `([^`]+)`")
# With the names of its columns, which a table with calculated ones has.
_INSERT = re.compile(rb"INSERT INTO `([^`]+)`(?: \([^)]*\))? VALUES")
_REVISION = re.compile(rb"'%s','([^']*)'" % re.escape(packages.OURS.encode()))
_SECRET_OPTIONS = ("ssl_ca", "ssl_cert", "ssl_key")


class Script(NamedTuple):
    """What a backup holds: the rows of each table, and our schema's revision."""

    rows: dict[str, int]
    revision: str | None


def back_up(
    db: DatabaseFactory, part: Path, folder: str | Path | None, watch: Callable[[float], None]
) -> dict[str, int]:
    """Write the database as it is at one moment to the file `part`; the rows of each table in it."""
    options = ("--single-transaction", "--skip-lock-tables", "--hex-blob", "--no-tablespaces", "--skip-dump-date")
    program = _program(("mariadb-dump", "mysqldump"), folder)
    arguments, name, password = _login(db)
    with part.open("wb") as file:
        _run([program, *arguments, *options, name], file, stdin=None, secret=password)
    watch(0.5)
    return read_script(part).rows


def read_script(path: Path) -> Script:
    """What the script inserts, read to its end. `BackupError` for one that is not whole."""
    rows: dict[str, int] = {}
    revision, last, inside = None, b"", None
    with path.open("rb") as file:
        for line in file:
            check()
            last = line if line.strip() else last
            made = None if inside else _CREATE.match(line)
            if made:
                rows.setdefault(made[1].decode(), 0)
            begun = None if inside else _INSERT.match(line)
            if begun:
                inside, line = begun[1].decode(), line[begun.end() :]
            if inside is None:
                continue
            # A text's own line ends are written as \\n, so that none goes on in the next line.
            bare = _STRINGS.sub(b"", line)
            rows[inside] = rows.get(inside, 0) + bare.count(b"(")
            if inside == schema_version.VERSION_TABLE.name and (found := _REVISION.search(line)):
                revision = found[1].decode()
            if bare.rstrip().endswith(b";"):
                inside = None
    if inside or not last.startswith(_END):
        raise BackupError(f"{path} ends in the middle: what wrote it did not come to its end; back up again")
    rows.pop(schema_version.VERSION_TABLE.name, None)
    return Script(rows, revision)


def restore(
    db: DatabaseFactory,
    path: Path,
    script: Script,
    *,
    force: bool,
    folder: str | Path | None,
    watch: Callable[[float], None],
    done_state: str,
) -> None:
    """Load the script into a database beside, whose tables then take the places of those that are there, at once.

    `done_state` is what an interruption says from then on.

    Raises `TargetNotEmptyError` unless they are empty or `force` is given, `DatabaseLockedError` when others do not
    let go of them within 30 s, `BackupError` for a login that may not make a database beside.
    """
    program = _program(("mariadb", "mysql"), folder)
    arguments, _, password = _login(db)
    with schema_version.schema_transaction(db.engine) as connection:
        known = schema_version.known_tables() | schema_version.bookkeeping(connection) | {*script.rows}

        def refuse(where: Connection) -> None:
            refuse_rows([] if force else [table for table in tables_with_rows(where) if table in known])

        refuse(connection)
        with databases_beside(connection) as (new, old):
            with path.open("rb") as file:
                _run([program, *arguments, new], None, stdin=file, secret=password)
            watch(0.5)
            with using(connection, new):
                found = row_counts(connection)
            if found != script.rows:
                raise BackupError("the rows that were loaded are not the backup's; the database is as it was")
            replaced = port_of(connection).tables(connection) & known
            refuse_references(connection, replaced)
            watch(1.0)
            check()
            with finishing(done_state):
                exchange(connection, new, old, replaced, refuse)
    db.close()  # whether an audit log is kept is found out anew


def _program(names: tuple[str, ...], folder: str | Path | None) -> str:
    for name in names:
        found = shutil.which(name, path=None if folder is None else str(folder))
        if found is not None:
            return found
    raise BackupError(
        f"neither {' nor '.join(names)} is in {'the PATH' if folder is None else folder}; install the server's client "
        "programs (Debian: mariadb-client), or name their folder with --pg-bin (pg_bin=)"
    )


def _login(db: DatabaseFactory) -> tuple[list[str], str, str | None]:
    """The arguments that lead to the server, the database's name, and the password, which no argument shows."""
    url = db.settings.url
    socket = url.query.get("unix_socket")
    arguments = ["--no-defaults", "--default-character-set=utf8mb4", f"--user={url.username or ''}"]
    if socket:
        arguments += ["--protocol=socket", f"--socket={socket if isinstance(socket, str) else socket[-1]}"]
    else:
        arguments += ["--protocol=tcp", f"--host={url.host or 'localhost'}", f"--port={url.port or 3306}"]
    for name in _SECRET_OPTIONS:
        if name in url.query:
            arguments.append(f"--{name.replace('_', '-')}={url.query[name]}")
    return arguments, str(url.database), None if url.password is None else str(url.password)


def _run(command: list[str], output: IO[bytes] | None, *, stdin: IO[bytes] | None, secret: str | None) -> None:
    passed = ("PATH", "HOME", "USER", "TMPDIR", "TZ", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in passed if name in os.environ} | {"LC_ALL": "C.UTF-8"}
    if secret is not None:
        environment["MYSQL_PWD"] = secret
    with (
        TemporaryFile() as words,
        subprocess.Popen(  # noqa: S603 # a program of the server's own, and no shell
            command,
            stdin=stdin or subprocess.DEVNULL,
            stdout=output or subprocess.DEVNULL,
            stderr=words,
            env=environment,
        ) as process,
    ):
        try:
            with waiting(process.kill):
                process.wait()
        except BaseException:
            process.kill()
            raise
        if process.returncode:
            check()
            words.seek(0)
            told = without_values(words.read().decode(errors="replace")).splitlines()
            said = [line for line in told if "error" in line.lower()]
            raise BackupError(f"{Path(command[0]).name} failed: {said[-1] if said else 'it does not say why'}")
