"""Room for the exchange's longest symbols: 32 characters.

Revision ID: 0005_symbol_32
Revises: 0004_audit_log
Create Date: 2026-11-29
"""

from __future__ import annotations

from alembic import op

from shared.db.migrations import broken_rows, frozen

revision = "0005_symbol_32"
down_revision = "0004_audit_log"
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops = ()
# What the linter finds and is meant: rule, and why.
accepted = {"changing-column-type": "a longer VARCHAR of the same collation is written in the catalog alone"}

# With the column's comment, which MariaDB has repeated.
_TABLES = {"strategies": "Trading pair, such as BTCUSDT", "public_trades": None, "private_executions": None}


def upgrade() -> None:
    _change(32)


def downgrade() -> None:
    # Characters, as anywhere else.
    length = "char_length" if frozen.database() == "mysql" else "length"
    for table in _TABLES:
        # SQLite would keep them in a column that says 20.
        broken_rows.refuse(
            f"SELECT DISTINCT symbol FROM {table} WHERE {length}(symbol) > 20 ORDER BY symbol",
            f"{table}.symbol would have 20 characters",
            "delete the rows with these symbols, or stay at this revision",
        )
    _change(20)


def _change(length: int) -> None:
    for table, comment in _TABLES.items():
        # SQLite knows no change of a type: Alembic makes a new table and moves the rows.
        with op.batch_alter_table(table) as changed:
            changed.alter_column("symbol", type_=frozen.text(length), existing_nullable=False, existing_comment=comment)
