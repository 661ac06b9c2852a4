"""The audit log, where it is asked for: `migrate up --audit`.

Without that the revision makes nothing, and `enable_audit()` makes the same table whenever it is wanted.

Revision ID: 0004_audit_log
Revises: 0003_one_active_credential
Create Date: 2026-11-26
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

from shared.db.migrations import frozen

revision = "0004_audit_log"
down_revision = "0003_one_active_credential"
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops = ("audit_log",)

_TABLE = "audit_log"
_REFUSAL = "the audit log is append-only"
_TRIGGERS = {
    "sqlite": (
        f"CREATE TRIGGER IF NOT EXISTS audit_log_no_update BEFORE UPDATE ON audit_log "
        f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END",
        f"CREATE TRIGGER IF NOT EXISTS audit_log_no_delete BEFORE DELETE ON audit_log "
        f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END",
        f"CREATE TRIGGER IF NOT EXISTS audit_log_no_replace BEFORE INSERT ON audit_log "
        f"WHEN EXISTS (SELECT 1 FROM audit_log WHERE id = NEW.id) BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END",
    ),
    "postgresql": (
        "CREATE OR REPLACE FUNCTION audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION '{_REFUSAL}' USING ERRCODE = 'integrity_constraint_violation'; END $$",
        "DROP TRIGGER IF EXISTS audit_log_append_only ON audit_log",
        "CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_log_refuse()",
    ),
    "mysql": tuple(
        statement
        for event in ("update", "delete")
        for statement in (
            f"DROP TRIGGER IF EXISTS audit_log_no_{event}",
            f"CREATE TRIGGER audit_log_no_{event} BEFORE {event.upper()} ON audit_log FOR EACH ROW "
            f"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 4025, MESSAGE_TEXT = '{_REFUSAL}'",
        )
    ),
}


def upgrade() -> None:
    if not context.config.attributes["audit"]:
        return
    # It may be there already: enable_audit() works at every revision.
    op.create_table(
        _TABLE,
        sa.Column("id", frozen.whole_number(), nullable=False),
        sa.Column("created_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="When, UTC"),
        sa.Column("user_id", frozen.text(36), comment="Whose data it is"),
        sa.Column("actor", frozen.text(255), comment="Who did it"),
        sa.Column("action", frozen.word(10), nullable=False),
        sa.Column("entity", frozen.text(50), nullable=False, comment="Model, such as Run"),
        sa.Column("entity_id", frozen.text(36), comment="Its key; none for many rows"),
        sa.Column("row_count", frozen.whole_number(), server_default=sa.text("1"), nullable=False),
        sa.Column("old_values", frozen.document(), comment="Before, secrets left out"),
        sa.Column("new_values", frozen.document(), comment="After, secrets left out"),
        sa.Column("ip_address", frozen.text(45), comment="Where the request came from"),
        sa.Column("user_agent", frozen.text(1000), comment="What sent it"),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
        sa.CheckConstraint("action IN ('create', 'update', 'delete')", name="ck_audit_log_action"),
        if_not_exists=True,
    )
    for columns in (
        ["user_id", "created_at", "id"],
        ["entity", "entity_id", "created_at"],
        ["action", "created_at"],
    ):
        op.create_index(f"ix_audit_log_{'_'.join(columns)}", _TABLE, columns, if_not_exists=True)
    for statement in _TRIGGERS[frozen.database()]:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table(_TABLE, if_exists=True)
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION IF EXISTS audit_log_refuse()")
