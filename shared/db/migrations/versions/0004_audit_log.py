"""Where the audit log was made, as long as it was optional; 0010 makes it everywhere.

Revision ID: 0004_audit_log
Revises: 0003_one_active_credential
Create Date: 2026-11-26
"""

from __future__ import annotations

from alembic import op

revision = "0004_audit_log"
down_revision = "0003_one_active_credential"
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops = ("audit_log",)


def upgrade() -> None:
    pass


def downgrade() -> None:
    op.drop_table("audit_log", if_exists=True)
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION IF EXISTS audit_log_refuse()")
