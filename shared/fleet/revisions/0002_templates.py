"""Templates.

Revision ID: 0002_templates
Revises: 0001_first_tables
Create Date: 2026-11-29
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from shared.db.migrations import frozen

revision = "0002_templates"
down_revision = "0001_first_tables"
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops: tuple[str, ...] = ("subscriptions", "bot_templates")


def upgrade() -> None:
    op.create_table(
        "bot_templates",
        sa.Column("template_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("creator_id", frozen.text(36), nullable=False),
        sa.Column("name", frozen.text(100), nullable=False, comment="Unique for its creator"),
        sa.Column("description", frozen.long_text(), nullable=True),
        sa.Column("config_json", frozen.document(), nullable=False),
        sa.Column("is_public", frozen.flag(), server_default=sa.false(), nullable=False),
        sa.Column("risk_level", frozen.word(20), server_default="medium", nullable=False),
        sa.Column("strategy_type", frozen.text(50), nullable=True),
        sa.Column("performance_data", frozen.document(), nullable=False),
        sa.Column("created_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="Creation, UTC"),
        sa.Column(
            "updated_at",
            frozen.instant(),
            server_default=frozen.now(),
            nullable=False,
            comment="Last modification, UTC",
        ),
        sa.CheckConstraint("risk_level IN ('low', 'medium', 'high')", name=op.f("ck_bot_templates_risk_level")),
        sa.ForeignKeyConstraint(
            ["creator_id"], ["users.user_id"], name=op.f("fk_bot_templates_creator_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("template_id", name=op.f("pk_bot_templates")),
        sa.UniqueConstraint("creator_id", "name", name=op.f("uq_bot_templates_creator_id_name")),
    )
    with op.batch_alter_table("bot_templates", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_bot_templates_is_public_name"), ["is_public", "name"], unique=False)

    op.create_table(
        "subscriptions",
        sa.Column("subscription_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("user_id", frozen.text(36), nullable=False),
        sa.Column("bot_id", frozen.text(36), nullable=False),
        sa.Column("template_id", frozen.text(36), nullable=False),
        sa.Column("allocation_amount", frozen.money(), nullable=True),
        sa.Column("status", frozen.word(20), server_default="active", nullable=False),
        sa.Column("performance_data", frozen.document(), nullable=False),
        sa.Column("created_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="Creation, UTC"),
        sa.Column(
            "updated_at",
            frozen.instant(),
            server_default=frozen.now(),
            nullable=False,
            comment="Last modification, UTC",
        ),
        sa.CheckConstraint("status IN ('active', 'paused', 'cancelled')", name=op.f("ck_subscriptions_status")),
        sa.CheckConstraint("allocation_amount >= 0", name=op.f("ck_subscriptions_allocation_amount")),
        sa.ForeignKeyConstraint(
            ["bot_id"], ["bots.bot_id"], name=op.f("fk_subscriptions_bot_id_bots"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["template_id"],
            ["bot_templates.template_id"],
            name=op.f("fk_subscriptions_template_id_bot_templates"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name=op.f("fk_subscriptions_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("subscription_id", name=op.f("pk_subscriptions")),
    )
    with op.batch_alter_table("subscriptions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_subscriptions_bot_id"), ["bot_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_subscriptions_template_id"), ["template_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_subscriptions_user_id_status"), ["user_id", "status"], unique=False)
        batch_op.create_index(
            "uq_subscriptions_active",
            ["user_id", "template_id"],
            unique=True,
            postgresql_where=sa.text("status = 'active'"),
            sqlite_where=sa.text("status = 'active'"),
        )

    frozen.create_document_index("bot_templates", "config_json")
    frozen.create_document_index("bot_templates", "performance_data")
    frozen.create_document_index("signals", "strategies")


def downgrade() -> None:
    frozen.drop_document_index("signals", "strategies")
    op.drop_table("subscriptions")
    op.drop_table("bot_templates")
