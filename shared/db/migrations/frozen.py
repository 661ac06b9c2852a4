"""The column types and defaults that revisions write, as they were when the revisions were released.

Revisions do not import `column_types`: an edit there would rewrite what they did long ago. Nothing here is ever
edited either, but for what a further database needs. A new form gets a function of its own, with a revision that
moves the columns over to it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

_NOW = {
    "sqlite": "(strftime('%Y-%m-%d %H:%M:%f000', 'now'))",
    "postgresql": "now()",
    "mysql": "(utc_timestamp(6))",
}
_NEW_UUID = {
    "sqlite": "(lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || "
    "'-' || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))",
    "postgresql": "gen_random_uuid()::text",
    "mysql": "(lower(concat(hex(random_bytes(4)), '-', hex(random_bytes(2)), '-4', substr(hex(random_bytes(2)), 2), "
    "'-', substr('89ab', 1 + floor(rand() * 4), 1), substr(hex(random_bytes(2)), 2), '-', hex(random_bytes(6)))))",
}


def database() -> str:
    """Which one the step is for: "sqlite", "postgresql" or "mysql", which is MariaDB too."""
    name = op.get_context().dialect.name
    return "mysql" if name == "mariadb" else name


def text(length: int) -> sa.types.TypeEngine[str]:
    """`BoundedString`."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def word(length: int) -> sa.types.TypeEngine[str]:
    """`Vocabulary`; its words are a CHECK of the revision's own."""
    return sa.String(length)


def long_text() -> sa.types.TypeEngine[str]:
    """`CheckedText`."""
    return sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def money() -> sa.types.TypeEngine[Any]:
    """`Money`."""
    return sa.Numeric(20, 8).with_variant(sa.REAL(), "sqlite")


def instant() -> sa.types.TypeEngine[Any]:
    """`UTCDateTime`."""
    return sa.DateTime(timezone=True)


def flag() -> sa.types.TypeEngine[bool]:
    """`CheckedBoolean`."""
    return sa.Boolean()


def whole_number() -> sa.types.TypeEngine[int]:
    """`CheckedInteger`."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def document() -> sa.types.TypeEngine[Any]:
    """`Json`."""
    return sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def now() -> sa.TextClause:
    """Server default `utc_now`."""
    return sa.text(_NOW[database()])


def new_uuid() -> sa.TextClause:
    """Server default `new_uuid`."""
    return sa.text(_NEW_UUID[database()])


def create_document_index(table: str, column: str) -> None:
    """`document_index`."""
    if op.get_context().dialect.name == "postgresql":
        how: dict[str, Any] = {"postgresql_using": "gin", "postgresql_ops": {column: "jsonb_path_ops"}}
        op.create_index(f"ix_{table}_{column}", table, [column], **how)


def drop_document_index(table: str, column: str) -> None:
    """Its way back."""
    if op.get_context().dialect.name == "postgresql":
        op.drop_index(f"ix_{table}_{column}", table)
