"""What the foreign keys of 0009 point at: an account with its user, a strategy with its account.

Revision ID: 0008_keys_for_runs
Revises: 0007_one_running_run
Create Date: 2026-11-29
"""

from __future__ import annotations

from alembic import op

revision = "0008_keys_for_runs"
down_revision = "0007_one_running_run"
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops = ()

_INDEXES = {
    "uq_bybit_accounts_account_id_user_id": ("bybit_accounts", ["account_id", "user_id"]),
    "uq_strategies_strategy_id_account_id": ("strategies", ["strategy_id", "account_id"]),
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name, (table, columns) in _INDEXES.items():
            # A build that failed leaves an index of this name that nobody uses and IF NOT EXISTS would accept.
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
            op.create_index(name, table, columns, unique=True, if_not_exists=True, postgresql_concurrently=True)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name, (table, _) in _INDEXES.items():
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
