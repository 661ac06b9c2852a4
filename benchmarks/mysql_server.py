"""A MariaDB or MySQL server to be measured and mistreated: its own data, its own socket, flushed at each commit."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import pymysql
from sqlalchemy import URL, create_engine
from sqlalchemy.exc import DBAPIError

from shared.db import DatabaseFactory

# Debian has servers where only the administrator's PATH leads.
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
_OPTIONS = (
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-doublewrite=1",
    "--max-connections=100",
    "--skip-networking",
)


def program() -> str | None:
    """The server's program, if one is found."""
    return shutil.which("mariadbd", path=_PATH) or shutil.which("mysqld", path=_PATH)


class MySQLServer:
    """A server in a folder of its own; running inside the `with` block."""

    def __init__(self, folder: Path) -> None:
        found = program()
        assert found is not None, "install mariadb-server"
        self._program = found
        self._data, self._socket = folder / "data", folder / "socket"
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        folder.mkdir()

    def __enter__(self) -> Self:
        user = f"--user={getpass.getuser()}"
        if "mariadb" in self._program:
            install = shutil.which("mariadb-install-db", path=_PATH) or "mariadb-install-db"
            make = [install, "--auth-root-authentication-method=normal"]
        else:
            make = [self._program, "--initialize-insecure"]
        subprocess.run(  # noqa: S603 # the machine's own program
            [make[0], "--no-defaults", *make[1:], f"--datadir={self._data}", user], check=True, capture_output=True
        )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> URL:
        """Where it is."""
        return URL.create("mysql+pymysql", username="root", query={"unix_socket": str(self._socket)})

    def new_database(self) -> URL:
        """The URL of a new database with the schema in it."""
        self._databases += 1
        url = self.url.set(database=f"bench_{self._databases}")
        self._ask(f"CREATE DATABASE {url.database}")
        with DatabaseFactory(url) as db:
            db.create_tables()
        return url

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        self._process = subprocess.Popen(  # noqa: S603 # the machine's own program
            [
                *(self._program, "--no-defaults", f"--datadir={self._data}", f"--socket={self._socket}"),
                *(*_OPTIONS, f"--user={getpass.getuser()}"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server does not start")
            time.sleep(0.05)  # it is asked again until it answers

    def stop(self) -> None:
        """Stop it in order: transactions that are open are rolled back."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9`."""
        self._end(signal.SIGKILL)

    def kill_connection(self, database: str) -> None:
        """Break one connection to `database`, whatever it is at."""
        query = "SELECT id FROM information_schema.processlist WHERE db = %s ORDER BY command = 'Query' DESC LIMIT 1"
        for (connection,) in self._ask(query, database):
            self._ask(f"KILL CONNECTION {int(connection)}")

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def _answers(self) -> bool:
        # A connection that is refused would be left open by its driver.
        try:
            return self._socket.exists() and bool(self._ask("SELECT 1"))
        except DBAPIError:
            return False

    def _ask(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                result = connection.exec_driver_sql(statement, values)
                return [tuple(row) for row in result] if result.returns_rows else []
        finally:
            engine.dispose()


def pymysql_connection(url: URL, **options: Any) -> Any:
    """PyMySQL's own connection to the URL's database."""
    return pymysql.connect(
        host=url.host or "localhost", port=url.port or 3306, user=url.username, password=url.password or "",
        database=url.database, unix_socket=url.query.get("unix_socket"), **options,
    )  # fmt: skip
