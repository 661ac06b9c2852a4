"""Reading MariaDB's and MySQL's catalog: what SHOW CREATE says of each table, and its triggers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, text

from shared.db.dialects import port_of
from shared.db.dialects.mysql import GRANT_SCRATCH, SCRATCH
from shared.db.engine.mysql import expect_ddl
from shared.db.errors import MigrationError, PermissionDeniedError
from shared.db.migrations.catalog.entry import Catalog, Entry
from shared.db.schema_version import bookkeeping

# A part of a table, which stands in a line of its own, with its name; a primary key has none.
_PART = re.compile(r"(?P<kind>(?:UNIQUE |FULLTEXT |SPATIAL )?KEY |CONSTRAINT |)`(?P<name>(?:[^`]|``)+)`(?P<rest>.*)")
_COMMENT = re.compile(r" COMMENT '(?:[^'\\]|''|\\.)*'$")
_COUNTED = re.compile(r" AUTO_INCREMENT=\d+")


@contextmanager
def scratch(connection: Connection) -> Iterator[Connection]:
    """An empty database of its own, which the connection uses meanwhile: DDL commits, so nothing can be rolled back."""
    # Of a process that was killed one may be left: the number of its connection is free again, and no other uses it.
    name = f"{SCRATCH}_{connection.scalar(text('SELECT connection_id()'))}"
    used = connection.dialect.identifier_preparer.quote_identifier(connection.scalar(text("SELECT database()")))
    expect_ddl(connection)
    try:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name}"))
        connection.execute(text(f"CREATE DATABASE {name}"))
    except PermissionDeniedError as error:
        raise MigrationError(
            "the schema that is meant is made in a database of its own, to be compared, and this login may make none; "
            + GRANT_SCRATCH
        ) from error
    try:
        connection.execute(text(f"USE {name}"))
        yield connection
    finally:
        if not connection.invalidated:
            connection.execute(text(f"USE {used}"))
            connection.execute(text(f"DROP DATABASE {name}"))


def read(connection: Connection) -> Catalog:
    """The catalog of the database that the session uses. Comments, as elsewhere, are no part of it."""
    quoted = connection.dialect.identifier_preparer.quote_identifier
    catalog: dict[Entry, str] = {}
    ignored = bookkeeping(connection)
    for table in sorted(port_of(connection).tables(connection) - ignored):
        _, created = connection.execute(text(f"SHOW CREATE TABLE {_in_text(quoted(table))}")).one()
        catalog |= _table(table, created)
    triggers = connection.execute(
        text(
            "SELECT event_object_table, trigger_name, concat_ws(' ', action_timing, event_manipulation, "
            "action_statement) FROM information_schema.triggers WHERE trigger_schema = database()"
        )
    )
    return catalog | {Entry(table, "trigger", name): told for table, name, told in triggers if table not in ignored}


# A conversion to the column's own character set, which the server writes into a default once the table was altered.
_CONVERTED = re.compile(r"convert\(((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*) using utf8mb4\)")


def _table(table: str, created: str) -> Catalog:
    # CREATE TABLE `name` (, a line for each part, ) options
    _, *parts, options = created.split("\n")
    while not options.startswith(") "):  # it is kept in partitions, which more lines tell
        options = parts.pop() + "\n" + options
    catalog = {Entry(table, "table", table): _COUNTED.sub("", _COMMENT.sub("", options.removeprefix(") ")))}
    for part in parts:
        bare = part.strip().removesuffix(",")
        found = _PART.match(bare)
        if found is None:
            catalog[Entry(table, "constraint", "PRIMARY")] = bare
            continue
        name = found["name"].replace("``", "`")
        if not found["kind"]:
            catalog[Entry(table, "column", name)] = _CONVERTED.sub(r"\1", _COMMENT.sub("", found["rest"])).strip()
        elif found["kind"] == "CONSTRAINT ":
            catalog[Entry(table, "constraint", name)] = found["rest"].strip()
        else:
            catalog[Entry(table, "index", name)] = found["kind"] + found["rest"].strip()
    return catalog


def _in_text(name: str) -> str:
    return name.replace(":", "\\:")  # which would be a parameter
