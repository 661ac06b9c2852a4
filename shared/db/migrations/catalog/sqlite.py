"""Reading SQLite's catalog: its tables are known by their CREATE statements, and by nothing else in full."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import StaticPool

from shared.db.migrations.catalog.entry import Catalog, Entry
from shared.db.schema_version import bookkeeping

_TOKEN = re.compile(
    r"""
    (?P<comment> --[^\n]* | /\*.*?\*/ | \s+ )
    | (?P<string> '(?:[^']|'')*' )
    | (?P<quoted> "(?:[^"]|"")*" | `[^`]*` | \[[^\]]*\] )
    | (?P<word> [\w.]+ )
    | (?P<sign> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_CONSTRAINTS = ("constraint", "primary", "unique", "check", "foreign")


@contextmanager
def scratch(connection: Connection) -> Iterator[Connection]:
    """An empty schema, in memory."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    try:
        with engine.begin() as scratch:
            yield scratch
    finally:
        engine.dispose()


def read(connection: Connection) -> Catalog:
    """The catalog of the main database."""
    rows = connection.execute(
        text(
            "SELECT type, tbl_name, name, sql FROM sqlite_master WHERE type IN ('table', 'index', 'trigger') "
            "AND sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        )
    )
    ignored = bookkeeping(connection)
    catalog: dict[Entry, str] = {}
    for kind, table, name, sql in rows:
        if table in ignored:
            continue
        tokens = list(_tokens(sql))
        if kind == "table":
            catalog |= _table(table, tokens)
        else:
            catalog[Entry(table, kind, name)] = " ".join(tokens)
    return catalog


def _table(table: str, tokens: list[str]) -> Catalog:
    # CREATE TABLE name ( parts ) options
    parts, options = _parts(tokens[tokens.index("(") + 1 :])
    catalog = {Entry(table, "table", table): options}
    for part in parts:
        if part[0] == "constraint":
            catalog[Entry(table, "constraint", part[1])] = " ".join(part[2:])
        elif part[0] in _CONSTRAINTS:
            catalog[Entry(table, "constraint", f"({' '.join(part)})")] = "unnamed"
        else:
            catalog[Entry(table, "column", part[0])] = " ".join(part[1:])
    return catalog


def _parts(tokens: list[str]) -> tuple[list[list[str]], str]:
    """What stands between the commas of the outermost parentheses, and what follows them."""
    parts: list[list[str]] = [[]]
    depth = 0
    for position, sign in enumerate(tokens):
        if sign == ")" and depth == 0:
            return parts, " ".join(tokens[position + 1 :])
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(sign)
    raise ValueError("a CREATE TABLE without its closing parenthesis")


def _tokens(sql: str) -> Iterator[str]:
    # Case, quotes around names, white space and comments say nothing; text in single quotes is kept.
    for match in _TOKEN.finditer(sql):
        if match.lastgroup == "string":
            yield match.group()
        elif match.lastgroup == "quoted":
            yield match.group()[1:-1].lower()
        elif match.lastgroup in ("word", "sign"):
            yield match.group().lower()
