"""Bot tokens.

Revision ID: 0003_bot_tokens
Revises: 0002_templates
Create Date: 2026-11-29
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from shared.db.migrations import frozen

revision = "0003_bot_tokens"
down_revision = "0002_templates"
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops: tuple[str, ...] = ("bots.api_token",)


def upgrade() -> None:
    op.add_column("bots", sa.Column("api_token", frozen.long_text(), comment="Of the bot's own API, sealed"))


def downgrade() -> None:
    op.drop_column("bots", "api_token")
