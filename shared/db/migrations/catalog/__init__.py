"""What a database's schema really is, and how it differs from what the code says.

A catalog is everything that the database itself tells about its schema, as text. The expected one is not worked
out from the models: the models, or the revisions, build an empty schema in the same kind of database (in memory
on SQLite, in a schema that is rolled back on PostgreSQL, in a database that is dropped again on MariaDB), and that
one is read in the same way. So both sides speak the database's own spelling, and nothing that it knows is left out:
types, defaults, CHECKs, predicates of partial indexes, triggers, policies.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from shared.db.dialects import MYSQL, POSTGRESQL, SQLITE, PerDatabase
from shared.db.migrations.catalog import mysql, postgresql, sqlite
from shared.db.migrations.catalog.entry import PARTITIONED, Catalog, Entry

_CATALOGS: PerDatabase[Any] = PerDatabase("catalog", {SQLITE: sqlite, POSTGRESQL: postgresql, MYSQL: mysql})


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
            return f"{self.entry} is in the database but not in the models"
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
    found: Catalog = _CATALOGS.of(connection).read(connection)
    return found


def built_by(connection: Connection, build: Callable[[Connection], None]) -> Catalog:
    """The catalog of an empty schema after `build`, in a database like the connection's; nothing of it stays.

    On PostgreSQL the login needs the privilege to create a schema, on MariaDB a database.
    """
    with _CATALOGS.of(connection).scratch(connection) as scratch:
        build(scratch)
        return read(scratch)


def only(found: Catalog, tables: Container[str]) -> Catalog:
    """What the catalog has of these tables."""
    return {entry: text for entry, text in found.items() if entry.table in tables}


def compare(expected: Catalog, found: Catalog) -> list[Difference]:
    """Every difference, in both directions. Of a table that only one side has, nothing but the table itself.

    Into how many partitions an administrator has put a table is his own business, and that its primary key therefore
    has the columns by which it is partitioned.
    """
    partitioned = {entry.table: columns for entry, columns in found.items() if entry.kind == PARTITIONED}
    found = {
        entry: _without_partitions(text, expected.get(entry), partitioned.get(entry.table))
        for entry, text in found.items()
        if entry.kind != PARTITIONED
    }
    tables = {entry.table for entry in expected if entry.kind == "table"}
    tables ^= {entry.table for entry in found if entry.kind == "table"}
    return [
        Difference(entry, expected.get(entry), found.get(entry))
        for entry in sorted(expected.keys() | found.keys())
        if expected.get(entry) != found.get(entry) and (entry.kind == "table" or entry.table not in tables)
    ]


def _without_partitions(found: str, expected: str | None, columns: str | None) -> str:
    widened = expected is not None and columns is not None and found == f"{expected.removesuffix(')')}, {columns})"
    return expected if widened and expected is not None and expected.startswith("PRIMARY KEY") else found
