"""When a run was last known to be alive, and on which machine.

Revision ID: 0002_run_heartbeat
Revises: 0001_initial
Create Date: 2026-11-21
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from shared.db.migrations import frozen

revision = "0002_run_heartbeat"
down_revision = "0001_initial"
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops = ("runs.heartbeat_ts", "runs.host")


def upgrade() -> None:
    op.add_column("runs", sa.Column("heartbeat_ts", frozen.instant(), comment="Last sign of life, UTC"))
    op.add_column("runs", sa.Column("host", frozen.text(255), comment="Machine that runs it"))


def downgrade() -> None:
    op.drop_column("runs", "host")
    op.drop_column("runs", "heartbeat_ts")
