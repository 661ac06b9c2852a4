"""Where the faults happen: a PostgreSQL server and a folder, both thrown away afterwards."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL

from benchmarks.fault_bench.server import PostgreSQLServer
from benchmarks.harness import Place

T = TypeVar("T")


@dataclass
class Ground:
    """What a scenario gets. `random` draws every moment, offset and value that is left to chance."""

    server: PostgreSQLServer
    folder: Path
    short: bool
    random: random.Random
    _place: Place
    _folders: int = 0

    def of(self, full: T, short: T) -> T:
        """One figure of the two forms of the bench."""
        return short if self.short else full

    def new_sqlite(self) -> URL:
        """The URL of a new SQLite file with the schema in it."""
        return self._place.new_sqlite()

    def new_postgresql(self) -> URL:
        """The URL of a new PostgreSQL database with the schema in it."""
        return self._place.new_postgresql()

    def new_databases(self) -> list[tuple[str, URL]]:
        """Both, with the names that figures call them by."""
        return [("SQLite", self.new_sqlite()), ("PostgreSQL", self.new_postgresql())]

    def new_folder(self) -> Path:
        """A new empty folder."""
        self._folders += 1
        folder = self.folder / f"folder-{self._folders}"
        folder.mkdir()
        return folder


@contextmanager
def ground(*, short: bool, seed: int) -> Iterator[Ground]:
    """A ground of this run's own."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shared-db-faults-")))
        folder.chmod(0o755)  # the server, and children that give up root, must get through
        server = stack.enter_context(PostgreSQLServer(folder / "postgresql"))
        yield Ground(server, folder, short, random.Random(seed), Place(server.url, folder, rounds=0))
