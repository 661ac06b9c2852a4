"""At most one running run of a strategy and type.

Revision ID: 0007_one_running_run
Revises: 0006_recording_runs
Create Date: 2026-11-29
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from shared.db.migrations import broken_rows

revision = "0007_one_running_run"
down_revision = "0006_recording_runs"
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops = ()

_INDEX = "uq_runs_running_strategy_id_run_type"
_WHERE = sa.text("status = 'running'")


def upgrade() -> None:
    # Which of several is alive only its owner knows, so none is ended here.
    broken_rows.refuse(
        "SELECT run_id FROM runs WHERE status = 'running' AND EXISTS ("
        "SELECT 1 FROM runs AS other WHERE other.status = 'running' AND other.strategy_id = runs.strategy_id "
        "AND other.run_type = runs.run_type AND other.run_id <> runs.run_id) ORDER BY strategy_id, run_type, run_id",
        "at most one run of a strategy and type may be running",
        "end those that are dead, with RunRepository's fail(run_id) or UPDATE runs SET status = 'failed', "
        "end_ts = start_ts WHERE run_id = '...', and repeat this",
    )
    with op.get_context().autocommit_block():
        # A build that failed leaves an index of this name that nobody uses and IF NOT EXISTS would accept.
        op.drop_index(_INDEX, "runs", if_exists=True, postgresql_concurrently=True, postgresql_where=_WHERE)
        op.create_index(
            _INDEX,
            "runs",
            ["strategy_id", "run_type"],
            unique=True,
            if_not_exists=True,
            postgresql_concurrently=True,
            postgresql_where=_WHERE,
            sqlite_where=_WHERE,
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index(_INDEX, "runs", if_exists=True, postgresql_concurrently=True, postgresql_where=_WHERE)
