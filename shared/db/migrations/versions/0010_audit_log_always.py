"""The audit log in every database, switched on and off by its own entries.

Revision ID: 0010_audit_log_always
Revises: 0009_one_owner_of_a_run
Create Date: 2026-11-30
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

from shared.db.migrations import frozen

revision = "0010_audit_log_always"
down_revision = "0009_one_owner_of_a_run"
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
# The entries that say whether it is on.
_SWITCH = "entity = 'AuditLog' AND entity_id = 'recording'"
# Whether what is made last had been made before; asked between the table and that.
_WAS_THERE = {
    "sqlite": "EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = 'audit_log_no_replace')",
    "postgresql": "EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = 'audit_log'::regclass AND NOT tgisinternal)",
    "mysql": "EXISTS (SELECT 1 FROM information_schema.triggers "
    "WHERE trigger_schema = database() AND trigger_name = 'audit_log_no_delete')",
}


def upgrade() -> None:
    # Until now enable_audit() made it, at any revision.
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
    # What is made below is there already in a database where the log was on, and has to go on.
    op.execute(
        "INSERT INTO audit_log (action, entity, entity_id, new_values) "
        "SELECT 'update', 'AuditLog', 'recording', '{\"recording\": true}' FROM (SELECT 1 AS one) AS one "
        f"WHERE {_WAS_THERE[frozen.database()]} AND NOT EXISTS (SELECT 1 FROM audit_log WHERE {_SWITCH})"
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
    # The code before records where the table is there. Printed SQL has no rows to look at.
    if not context.is_offline_mode():
        newest = f"SELECT new_values FROM audit_log WHERE {_SWITCH} ORDER BY id DESC LIMIT 1"
        if "true" in str(op.get_bind().scalar(sa.text(newest))).lower():
            return
    op.drop_table(_TABLE, if_exists=True)
    if frozen.database() == "postgresql":
        op.execute("DROP FUNCTION IF EXISTS audit_log_refuse()")
