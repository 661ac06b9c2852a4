"""A package's line of revisions, from the empty schema to the code's own, and Alembic, by which they are run."""

from __future__ import annotations

import io
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine
from sqlalchemy.schema import CreateTable

from shared.db import packages
from shared.db.dialects import MYSQL, POSTGRESQL, SQLITE, PerDatabase, port_named, port_of
from shared.db.engine import mysql
from shared.db.errors import DatabaseFailure, MigrationError, MissingExtraError, UnknownRevisionError
from shared.db.packages import Line
from shared.db.schema_version import BASE, VERSION_TABLE, broken_off, stamping, step, take_over

try:
    from alembic.config import Config
    from alembic.operations import Operations
    from alembic.runtime.environment import EnvironmentContext
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
except ModuleNotFoundError as error:
    raise MissingExtraError("Alembic", "migrations") from error

# What a step only asks, what a trigger does (as a comment), and the transaction around it, which is written here.
_COMMENTS = re.compile(r"(\s*--[^\n]*(\n|$))*\s*")
_NOT_RECORDED = ("select", "pragma", "begin", "commit")


# How a script that is printed begins.
_BEGINNINGS: PerDatabase[str] = PerDatabase(
    "revisions",
    {
        SQLITE: "",
        POSTGRESQL: "SET lock_timeout = '{:g}s';",
        MYSQL: f"{mysql.SETTINGS}, lock_wait_timeout = {{:.0f}};",
    },
)


class Revisions:
    """The revisions of one package in order, oldest first: ours unless `line` says whose.

    `names[0]` is "base"; a position is an index into `names`. Raises `MigrationError` for files that are no line.
    """

    def __init__(self, line: Line | None = None) -> None:
        self.line = line or packages.OWN
        self.names = (BASE, *self.line.revisions())
        # Alembic's own template and settings are ours, whoever's the revisions are.
        home = Path(__file__).parent
        self.directory = ScriptDirectory(
            str(home),
            version_locations=[str(self.line.folder)],
            file_template="%(rev)s",
            messaging_opts={"quiet": True},
        )
        try:
            self._scripts = [self.directory.get_revision(name) for name in self.names[1:]]
        except CommandError as error:
            raise MigrationError(f"the revisions of {self.line.package} cannot be read: {error}") from error

    @property
    def head(self) -> str:
        """The newest revision."""
        return self.names[-1]

    def position(self, name: str) -> int:
        """The position of "head", "base", a revision, or the only one that begins with `name`."""
        found = [place for place, known in enumerate(self.names) if known.startswith(name)]
        if name == "head":
            return len(self.names) - 1
        if name in self.names:
            return self.names.index(name)
        if len(found) != 1 or not name:
            raise UnknownRevisionError(name, self.names)
        return found[0]

    def drops(self, start: int, target: int) -> list[str]:
        """The tables and columns that going back from `start` to `target` deletes."""
        modules = (script.module for script in reversed(self._scripts[target:start]))
        return [*dict.fromkeys(name for module in modules for name in getattr(module, "drops", ()))]

    def move(self, connection: Connection, start: int, target: int) -> None:
        """Run the steps from `start` to `target`, forward or back.

        Commits each step, unless a transaction is already open.
        """
        with nullcontext() if connection.in_transaction() else connection.begin():
            take_over(connection)
        with self._context(connection=connection) as context:
            if connection.in_transaction():
                # The caller's own transaction is around everything: a revision's autocommit block must not end it.
                context.autocommit_block = nullcontext  # type: ignore[assignment] # a context manager too
            self._run(context, start, target)

    def sql(self, dialect: str, start: int, target: int, lock_timeout: float) -> str:
        """The SQL of those steps, forward or backward."""
        beginning = _BEGINNINGS.named(dialect)  # or says that there are none
        if port_named(dialect) is SQLITE:
            return self._recorded(start, target)
        written = io.StringIO()
        print(f"{beginning.format(lock_timeout)}\n", file=written)
        # Of the two servers' words MariaDB's: which one it will be, nobody says here.
        how: dict[str, Any] = {
            "dialect_name": "mariadb" if port_named(dialect) is MYSQL else dialect,
            "dialect_opts": {"paramstyle": "named"},
            "literal_binds": True,
        }
        with self._context(as_sql=True, output_buffer=written, **how) as context:
            if port_named(dialect) is MYSQL:
                mysql.write_as_here(context.dialect)
            if target != start:
                context.execute(CreateTable(VERSION_TABLE, if_not_exists=True))
            self._run(context, start, target)
        return written.getvalue()

    def _run(self, context: MigrationContext, start: int, target: int) -> None:
        forward = target > start
        steps = range(start + 1, target + 1) if forward else range(start, target, -1)
        for position in steps:
            module = self._scripts[position - 1].module
            after = position if forward else position - 1
            undone = port_of(context.dialect).undoes_ddl
            with (
                context.begin_transaction(_per_migration=not undone),
                Operations.context(context),
                nullcontext() if undone else self._can_be_resumed(context, position),
            ):
                (module.upgrade if forward else module.downgrade)()
                for statement in stamping(self.line.package, self.names[after] if after else None):
                    context.execute(statement)

    @contextmanager
    def _can_be_resumed(self, context: MigrationContext, position: int) -> Iterator[None]:
        """A step between a revision and the one before, of which a failure leaves what was done until then.

        So it is written down before it begins. Run again, it passes over what it finds done.
        """
        package, run = self.line.package, context.impl._exec
        resumed = not context.as_sql and broken_off(_connection(context), package)
        for statement in stamping(package, step(self.names[position - 1], self.names[position])):
            context.execute(statement)

        def run_unless_done(*statement: Any, **how: Any) -> Any:
            try:
                return run(*statement, **how)
            except DatabaseFailure as failure:
                if not isinstance(failure.orig, Exception) or not MYSQL.is_done_already(failure.orig):
                    raise
                return None

        if resumed:
            context.impl._exec = run_unless_done  # type: ignore[method-assign] # of this context's own object
        try:
            yield
        finally:
            context.impl._exec = run  # type: ignore[method-assign] # as above

    @contextmanager
    def _context(self, **how: Any) -> Iterator[MigrationContext]:
        with EnvironmentContext(
            Config(stdout=io.StringIO()), self.directory, as_sql=how.pop("as_sql", False)
        ) as environment:
            environment.configure(**how)
            yield environment.get_context()

    def _recorded(self, start: int, target: int) -> str:
        # What is really run, since Alembic cannot write down how it rebuilds a table that it has not seen.
        statements: list[str] = []
        engine = create_engine("sqlite://")
        try:
            with engine.begin() as connection:
                driver: Any = connection.connection.dbapi_connection
                assert isinstance(driver, sqlite3.Connection)
                build(connection, self, start)
                driver.set_trace_callback(statements.append)
                if target != start:
                    connection.execute(CreateTable(VERSION_TABLE, if_not_exists=True))
                self.move(connection, start, target)
        finally:
            engine.dispose()
        return "\n\n".join(
            f"{statement.strip()};"
            for statement in (
                "PRAGMA foreign_keys=OFF",
                "BEGIN IMMEDIATE",
                *filter(_is_step, statements),
                "COMMIT",
                "PRAGMA foreign_keys=ON",
                "PRAGMA foreign_key_check",
            )
        )


def build(connection: Connection, revisions: Revisions, target: int) -> None:
    """Make the tables of a line up to `target` in an empty schema, and before them those that they hang on."""
    for line in packages.lines():
        if line.package == revisions.line.package:
            break
        before = Revisions(line)
        before.move(connection, 0, len(before.names) - 1)
    revisions.move(connection, 0, target)


def _connection(context: MigrationContext) -> Connection:
    assert context.connection is not None  # there is one, unless SQL is printed
    return context.connection


def _is_step(statement: str) -> bool:
    bare = _COMMENTS.sub("", statement, count=1).lower()
    return bool(bare) and not bare.startswith(_NOT_RECORDED)
