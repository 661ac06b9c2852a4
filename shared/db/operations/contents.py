"""What a database holds, whoever made its tables."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, text

from shared.db.dialects import port_of
from shared.db.schema_version import bookkeeping


def row_counts(connection: Connection, tables: Iterable[str] | None = None) -> dict[str, int]:
    """The number of rows of every table, or of these, by name; not of the one that holds the revisions."""
    return {
        table: _scalar(connection, f"SELECT count(*) FROM {_quoted(connection, table)}")
        for table in (_all(connection) if tables is None else tables)
    }


def tables_with_rows(connection: Connection) -> list[str]:
    """The names of the tables that are not empty, but for the one that holds the revisions."""
    return [
        table
        for table in _all(connection)
        if _scalar(
            connection, f"SELECT CASE WHEN EXISTS (SELECT 1 FROM {_quoted(connection, table)}) THEN 1 ELSE 0 END"
        )
    ]


def _all(connection: Connection) -> list[str]:
    return sorted(port_of(connection).tables(connection) - bookkeeping(connection))


def _quoted(connection: Connection, table: str) -> str:
    return connection.dialect.identifier_preparer.quote(table)


def _scalar(connection: Connection, query: str) -> int:
    return int(connection.execute(text(query)).scalar_one())
