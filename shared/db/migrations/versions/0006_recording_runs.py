"""Runs that only record: run_type "recording".

Revision ID: 0006_recording_runs
Revises: 0005_symbol_32
Create Date: 2026-11-29
"""

from __future__ import annotations

from alembic import op

from shared.db.migrations import broken_rows, frozen

revision = "0006_recording_runs"
down_revision = "0005_symbol_32"
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops = ()
# What the linter finds and is meant: rule, and why.
accepted = {"ban-drop-constraint": "the CHECK comes back in the next statement, one word wider"}


def upgrade() -> None:
    _allow("run_type IN ('live', 'backtest', 'shadow', 'recording')")


def downgrade() -> None:
    broken_rows.refuse(
        "SELECT run_id FROM runs WHERE run_type = 'recording' ORDER BY run_id",
        "a run would no longer be of type 'recording'",
        "give these runs another type, or delete them",
    )
    _allow("run_type IN ('live', 'backtest', 'shadow')")


def _allow(condition: str) -> None:
    if frozen.database() == "mysql":
        # One statement, since each commits: the table is never without it. It scans the table in the way of writers.
        drop, add = "DROP CONSTRAINT ck_runs_run_type", f"ADD CONSTRAINT ck_runs_run_type CHECK ({condition})"
        op.execute(f"ALTER TABLE runs {drop}, {add}")
        return
    if frozen.database() == "sqlite":
        # A CHECK there stays as long as its table: Alembic makes a new table and moves the rows.
        with op.batch_alter_table("runs") as runs:
            runs.drop_constraint("ck_runs_run_type", type_="check")
            runs.create_check_constraint("ck_runs_run_type", condition)
        return
    # Not validated it takes no scan, and validating it blocks nobody.
    op.drop_constraint("ck_runs_run_type", "runs", if_exists=True)
    op.create_check_constraint("ck_runs_run_type", "runs", condition, postgresql_not_valid=True)
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE runs VALIDATE CONSTRAINT ck_runs_run_type")
