"""What a database's schema really is, and how it differs from what the code says.

A catalog is everything that the database itself tells about its schema, as text. The expected one is not worked
out from the models: the models, or the revisions, build an empty schema in the same kind of database (in memory
on SQLite, in a schema that is rolled back on PostgreSQL), and that one is read in the same way. So both sides
speak the database's own spelling, and nothing that it knows is left out: types, defaults, CHECKs, predicates of
partial indexes, triggers, policies.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.pool import StaticPool

from shared.db.migrations.catalog import postgresql, sqlite
from shared.db.migrations.catalog.entry import Catalog, Entry

_SCRATCH = "shared_db_scratch"


@dataclass(frozen=True)
class Difference:
    """One thing in which a schema differs: `expected` is None for one too many, `found` for a missing one."""

    entry: Entry
    expected: str | None
    found: str | None

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.entry} is missing"
        if self.expected is None:
            return f"{self.entry} is not the code's"
        return f"{self.entry} is {self.found!r} and should be {self.expected!r}"

    def as_json(self) -> Mapping[str, Any]:
        """The same for machines."""
        return {
            "kind": self.entry.kind,
            "table": self.entry.table,
            "name": self.entry.name,
            "expected": self.expected,
            "found": self.found,
        }


def read(connection: Connection) -> Catalog:
    """The catalog of the connection's current schema."""
    return postgresql.read(connection) if connection.dialect.name == "postgresql" else sqlite.read(connection)


def built_by(connection: Connection, build: Callable[[Connection], None]) -> Catalog:
    """The catalog of an empty schema after `build`, in a database like the connection's; nothing of it stays.

    On PostgreSQL the login needs the privilege to create a schema.
    """
    with _scratch(connection) as scratch:
        build(scratch)
        return read(scratch)


def only(found: Catalog, tables: Container[str]) -> Catalog:
    """What the catalog has of these tables."""
    return {entry: text for entry, text in found.items() if entry.table in tables}


def compare(expected: Catalog, found: Catalog) -> list[Difference]:
    """Every difference, in both directions. Of a table that only one side has, nothing but the table itself."""
    tables = {entry.table for entry in expected if entry.kind == "table"}
    tables ^= {entry.table for entry in found if entry.kind == "table"}
    return [
        Difference(entry, expected.get(entry), found.get(entry))
        for entry in sorted(expected.keys() | found.keys())
        if expected.get(entry) != found.get(entry) and (entry.kind == "table" or entry.table not in tables)
    ]


@contextmanager
def _scratch(connection: Connection) -> Iterator[Connection]:
    if connection.dialect.name == "sqlite":
        engine = create_engine("sqlite://", poolclass=StaticPool)
        try:
            with engine.begin() as scratch:
                yield scratch
        finally:
            engine.dispose()
        return
    event.listen(connection, "before_cursor_execute", _without_concurrently, retval=True)
    undone = connection.begin_nested()
    try:
        # Two processes may check at once; an uncommitted schema of the same name would make one wait.
        name = f"{_SCRATCH}_{connection.scalar(text('SELECT pg_backend_pid()'))}"
        connection.execute(text(f"CREATE SCHEMA {name}"))
        connection.execute(text(f"SET LOCAL search_path TO {name}"))
        yield connection
    finally:
        undone.rollback()
        event.remove(connection, "before_cursor_execute", _without_concurrently)


def _without_concurrently(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
) -> tuple[str, Any]:
    # Concurrent building is refused inside a transaction, and an empty scratch table has nobody to wait for.
    return statement.replace(" CONCURRENTLY", ""), parameters
