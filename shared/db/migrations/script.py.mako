"""${message[:1].upper() + message[1:].rstrip(".")}.

Revision ID: ${up_revision}
Revises: ${down_revision}
Create Date: ${create_date.date()}
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from shared.db.migrations import frozen

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops: tuple[str, ...] = ${repr(drops)}


def upgrade() -> None:
    ${upgrades}


def downgrade() -> None:
    ${downgrades}
