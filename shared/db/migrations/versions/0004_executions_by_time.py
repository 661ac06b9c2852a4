"""The executions of a run in order of time.

Revision ID: 0004_executions_by_time
Revises: 0003_one_active_credential
Create Date: 2026-11-21
"""

from __future__ import annotations

from alembic import op

revision = "0004_executions_by_time"
down_revision = "0003_one_active_credential"
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops: tuple[str, ...] = ()

_INDEX = "ix_private_executions_run_id_exchange_ts_exec_id"
_TABLE = "private_executions"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # A build that failed leaves an index of this name that nobody uses and IF NOT EXISTS would accept.
        op.drop_index(_INDEX, _TABLE, if_exists=True, postgresql_concurrently=True)
        op.create_index(
            _INDEX, _TABLE, ["run_id", "exchange_ts", "exec_id"], if_not_exists=True, postgresql_concurrently=True
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index(_INDEX, _TABLE, if_exists=True, postgresql_concurrently=True)
