"""Reading PostgreSQL's catalog."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, event, text

from shared.db.migrations.catalog.entry import PARTITIONED, Catalog, Entry
from shared.db.schema_version import bookkeeping

_SCRATCH = "shared_db_scratch"
# Ordinary and partitioned tables of the current schema; neither partitions nor what an extension brought along.
_TABLES = """
    WITH tables AS (
        SELECT c.oid, c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity
        FROM pg_class c
        WHERE c.relnamespace = to_regnamespace(quote_ident(current_schema()))
          AND c.relkind IN ('r', 'p') AND NOT c.relispartition
          AND NOT EXISTS (
              SELECT 1 FROM pg_depend d
              WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    )
"""
# Each gives table, name, definition. The pretty form of the pg_get_... functions leaves out the schema's name.
_QUERIES = {
    "table": "SELECT relname, relname, CASE relpersistence WHEN 'u' THEN 'UNLOGGED' ELSE '' END FROM tables",
    PARTITIONED: """
        SELECT relname, relname, substring(pg_get_partkeydef(oid) FROM '\\((.*)\\)') FROM tables WHERE relkind = 'p'
    """,
    "column": """
        SELECT relname, attname, concat_ws(' ',
            format_type(a.atttypid, a.atttypmod),
            'COLLATE ' || nullif(a.attcollation, t.typcollation)::regcollation,
            CASE WHEN a.attnotnull THEN 'NOT NULL' END,
            CASE a.attgenerated WHEN '' THEN 'DEFAULT ' ELSE 'GENERATED ' END || pg_get_expr(d.adbin, d.adrelid),
            CASE a.attidentity WHEN 'a' THEN 'IDENTITY ALWAYS' WHEN 'd' THEN 'IDENTITY BY DEFAULT' END)
        FROM tables
        JOIN pg_attribute a ON a.attrelid = tables.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    """,
    # NOT NULL is told by the column.
    "constraint": """
        SELECT relname, conname, pg_get_constraintdef(con.oid, true)
        FROM tables JOIN pg_constraint con ON con.conrelid = tables.oid AND con.contype IN ('p', 'u', 'f', 'c', 'x')
    """,
    # A failed CREATE INDEX CONCURRENTLY leaves an index that is there, and is not used.
    "index": """
        SELECT tables.relname, i.relname, concat_ws(' ',
            pg_get_indexdef(i.oid, 0, true), CASE WHEN NOT x.indisvalid THEN 'INVALID' END)
        FROM tables JOIN pg_index x ON x.indrelid = tables.oid JOIN pg_class i ON i.oid = x.indexrelid
        WHERE NOT EXISTS (
            SELECT 1 FROM pg_constraint con WHERE con.conindid = i.oid AND con.contype IN ('p', 'u', 'x'))
    """,
    "trigger": """
        SELECT relname, tgname, concat_ws(' ',
            pg_get_triggerdef(g.oid, true), 'ENABLED ' || nullif(g.tgenabled, 'O')::text, p.prosrc)
        FROM tables JOIN pg_trigger g ON g.tgrelid = tables.oid AND NOT g.tgisinternal
        JOIN pg_proc p ON p.oid = g.tgfoid
    """,
    "row-level security of": """
        SELECT relname, relname, CASE WHEN relforcerowsecurity THEN 'forced' ELSE 'on' END
        FROM tables WHERE relrowsecurity OR relforcerowsecurity
    """,
    "policy": """
        SELECT tablename, policyname, concat_ws(' ',
            permissive, cmd, 'TO', array_to_string(roles, ', '), 'USING ' || qual, 'WITH CHECK ' || with_check)
        FROM pg_policies JOIN tables ON relname = tablename WHERE schemaname = current_schema()
    """,
}


# What `x IN ('a', 'b')` becomes in a table that was created, and (below) in one that pg_restore made of it.
_CAST_LIST = re.compile(r"ARRAY\[((?:'(?:[^']|'')*'::character varying(?:, )?)+)\]::text\[\]")
_CAST = re.compile(r"('(?:[^']|'')*'::character varying)")


def _one_form(definition: str) -> str:
    return _CAST_LIST.sub(lambda found: "ARRAY[" + _CAST.sub(r"\1::text", found[1]) + "]", definition)


@contextmanager
def scratch(connection: Connection) -> Iterator[Connection]:
    """An empty schema, which is rolled back."""
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


def read(connection: Connection) -> Catalog:
    """The catalog of the current schema."""
    ignored = bookkeeping(connection)
    return {
        Entry(table, kind, name): _one_form(definition)
        for kind, query in _QUERIES.items()
        for table, name, definition in connection.execute(text(_TABLES + query))
        if table not in ignored
    }
