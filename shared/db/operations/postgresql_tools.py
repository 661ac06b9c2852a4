"""pg_dump and pg_restore: where they are, whether they fit the server, and how they are run without a secret leaking.

The password reaches pg_dump in its environment, never on the command line, which every user of the machine can read.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from sqlalchemy import Connection

from shared.db.database import DatabaseFactory
from shared.db.dialects.postgresql import make_dsn
from shared.db.errors import BackupError
from shared.db.operations.interruption import check, waiting

_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")
_SECRET_OPTIONS = {"sslpassword"}
_REASON = re.compile(r"\w+: (error|detail|hint): ")
_REMEMBERED = 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Tools:
    """The two programs, of one version that is not older than the server's."""

    dump: str
    restore: str


def tools_for(connection: Connection, folder: str | Path | None) -> Tools:
    """pg_dump and pg_restore from `folder`, or from the PATH.

    Raises `BackupError` where one is missing, or older than the server: an older pg_dump does not know what a newer
    server has, and refuses.
    """
    server = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one()) // 10_000
    found = []
    for name in ("pg_dump", "pg_restore"):
        program = shutil.which(name, path=None if folder is None else str(folder))
        if program is None:
            raise BackupError(
                f"{name} is not in {'the PATH' if folder is None else folder}; install PostgreSQL's client programs "
                f"of version {server} or newer, or name their folder with --pg-bin (pg_bin=)"
            )
        version = _version(program)
        if version < server:
            raise BackupError(
                f"{program} is of version {version}, older than the server's {server}; install PostgreSQL's client "
                f"programs of version {server} or newer, or name their folder with --pg-bin (pg_bin=)"
            )
        found.append(program)
    return Tools(*found)


def _version(program: str) -> int:
    try:
        said = subprocess.run(  # noqa: S603 # a program that the caller names, and no shell
            [program, "--version"], capture_output=True, text=True, check=True, env=_environment({}, connects=False)
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BackupError(f"{program} cannot be run ({error}); reinstall PostgreSQL's client programs") from error
    version = _VERSION.search(said)
    if version is None:
        raise BackupError(f"{program} --version says {said.strip()[:80]!r}, which is no version of PostgreSQL's")
    return int(version[1])


def address(db: DatabaseFactory) -> tuple[str, dict[str, str]]:
    """The database as libpq's connection text without its password, and the environment with it."""
    options: dict[str, Any] = dict(db.engine.dialect.create_connect_args(db.settings.url)[1])
    if hidden := _SECRET_OPTIONS & set(options):
        raise BackupError(
            f"the URL has {', '.join(hidden)}, which would show on pg_dump's command line; put it into a service file"
        )
    password = options.pop("password", None)
    options.setdefault("application_name", db.settings.application_name)
    return make_dsn(**options), {} if password is None else {"PGPASSWORD": str(password)}


@contextmanager
def output_of(program: str, *arguments: str) -> Iterator[IO[bytes]]:
    """What the program writes, while it runs; at the end of the block it has ended well, or `BackupError` says why not.

    If the block raises, the program is ended.
    """
    with (
        TemporaryFile() as words,
        subprocess.Popen(  # noqa: S603 # as above
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            env=_environment({}, connects=False),
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield process.stdout
            while process.stdout.read(_CHUNK):
                pass
        except BaseException:
            process.kill()
            raise
        if process.wait():
            check()  # Ctrl-C reaches every process of a terminal
            words.seek(0)
            raise BackupError(_failure(program, words.read().decode(errors="replace").splitlines()))


def run(program: str, arguments: Sequence[str], secrets: Mapping[str, str], watch: Callable[[str], None]) -> None:
    """Run the program; `watch` is told each line it says. Raises `BackupError` with its own words when it fails."""
    said: deque[str] = deque(maxlen=_REMEMBERED)
    with subprocess.Popen(  # noqa: S603 # as above
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_environment(secrets, connects=True),
        text=True,
        errors="replace",
    ) as process:
        assert process.stderr is not None
        try:
            with waiting(process.kill):
                for line in process.stderr:
                    said.append(line.rstrip())
                    watch(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        check()  # as above
        raise BackupError(_failure(program, said))


def _environment(secrets: Mapping[str, str], *, connects: bool) -> dict[str, str]:
    """What the program needs of our environment, in which our own keys and passwords, and others' tokens, may stand.

    Only one that connects gets libpq's variables.
    """
    passed = re.compile(
        r"PATH|HOME|USER|LOGNAME|TMPDIR|TZ|SYSTEMROOT|(LD|DYLD|SSL|KRB5)_?.*" + ("|PG.*" if connects else "")
    )
    needed = {name: value for name, value in os.environ.items() if passed.fullmatch(name)}
    # In English, since its words are looked into.
    return {**needed, "LC_ALL": "C", **secrets}


def _failure(program: str, said: Iterable[str]) -> str:
    name = Path(program).name
    reasons = [line.removeprefix(f"{name}: ") for line in said if _REASON.match(line)]
    return f"{name} failed: {'; '.join(reasons) or 'it does not say why'}"
