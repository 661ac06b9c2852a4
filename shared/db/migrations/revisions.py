"""The chain of revisions, from the empty schema to the code's own, and Alembic, which runs them."""

from __future__ import annotations

import io
import re
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine

from shared.db.errors import MigrationError, MissingExtraError, UnknownRevisionError

try:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
except ModuleNotFoundError as error:
    raise MissingExtraError("Alembic", "migrations") from error

# The empty schema, before the first revision.
BASE = "base"
_LOCATION = "shared.db:migrations"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,26}")
# What a step only asks, what a trigger does (as a comment), and the transaction around it, which is written here.
_COMMENTS = re.compile(r"(\s*--[^\n]*(\n|$))*\s*")
_NOT_RECORDED = ("select", "pragma", "begin", "commit")


class Revisions:
    """The revisions in order, oldest first. `names[0]` is "base"; a position is an index into `names`."""

    def __init__(self) -> None:
        directory = ScriptDirectory.from_config(_config(None))
        self._scripts = list(reversed(list(directory.walk_revisions())))
        self.names = (BASE, *(script.revision for script in self._scripts))

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
        return [name for script in reversed(self._scripts[target:start]) for name in script.module.drops]

    def upgrade(self, connection: Connection, target: int, *, audit: bool = False) -> None:
        """Run the steps up to `target`, the optional audit log's too if asked for.

        Commits each step, unless a transaction is already open.
        """
        command.upgrade(_config(connection, audit), self.names[target])

    def downgrade(self, connection: Connection, target: int) -> None:
        """Undo the steps down to `target`."""
        command.downgrade(_config(connection), self.names[target])

    def sql(self, dialect: str, start: int, target: int, lock_timeout: float, *, audit: bool = False) -> str:
        """The SQL of those steps, forward or backward."""
        if dialect == "sqlite":
            return self._recorded(start, target, audit)
        config = _config(None, audit)
        config.output_buffer = io.StringIO()
        print(f"SET lock_timeout = '{lock_timeout:g}s';\n", file=config.output_buffer)
        run = command.upgrade if target > start else command.downgrade
        if target != start:
            run(config, f"{self.names[start]}:{self.names[target]}", sql=True)
        return config.output_buffer.getvalue()

    def _recorded(self, start: int, target: int, audit: bool) -> str:
        # What is really run, since Alembic cannot write down how it rebuilds a table that it has not seen.
        statements: list[str] = []
        engine = create_engine("sqlite://")
        try:
            with engine.begin() as connection:
                driver: Any = connection.connection.dbapi_connection
                assert isinstance(driver, sqlite3.Connection)
                if start:
                    self.upgrade(connection, start)
                driver.set_trace_callback(statements.append)
                if target > start:
                    self.upgrade(connection, target, audit=audit)
                else:
                    self.downgrade(connection, target)
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


def new_revision(name: str) -> Path:
    """Write the next revision, to be filled in, and make it the one that this code needs; the path of its file.

    For a checkout of shared.db. Raises `MigrationError` for a name that is not lower-case letters, digits and
    underscores, and in an installed package.
    """
    if not _NAME.fullmatch(name):
        raise MigrationError(f"{name!r} is not a name for a revision; use up to 27 of a-z, 0-9 and _")
    package = Path(__file__).parent.parent
    constant = package / "schema_version.py"
    if not (package / "pyproject.toml").exists():
        raise MigrationError("revisions are written in a checkout of shared.db, not in an installed package")
    revisions = Revisions()
    revision = f"{len(revisions.names):04}_{name}"
    config = _config(None)
    config.set_main_option("file_template", "%%(rev)s")
    script = command.revision(config, message=name.replace("_", " "), rev_id=revision)
    source = constant.read_text(encoding="utf-8")
    constant.write_text(source.replace(f'"{revisions.head}"', f'"{revision}"'), encoding="utf-8")
    return Path(script.path)  # type: ignore[union-attr] # one script, since one was asked for


def _is_step(statement: str) -> bool:
    bare = _COMMENTS.sub("", statement, count=1).lower()
    return bool(bare) and not bare.startswith(_NOT_RECORDED)


def _config(connection: Connection | None, audit: bool = False) -> Config:
    config = Config(stdout=io.StringIO())
    config.set_main_option("script_location", _LOCATION)
    config.attributes["connection"] = connection
    config.attributes["audit"] = audit
    return config
