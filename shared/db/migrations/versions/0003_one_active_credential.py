"""At most one active credential of an account.

Revision ID: 0003_one_active_credential
Revises: 0002_run_heartbeat
Create Date: 2026-11-21
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from shared.db.migrations import frozen

revision = "0003_one_active_credential"
down_revision = "0002_run_heartbeat"
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops = ()

_INDEX = "uq_api_credentials_active_account_id"
_WHERE = sa.text("is_active")


def upgrade() -> None:
    # Nothing kept an account from having several: all but the newest end, or the index could not be built.
    newer = "api_credentials"
    if frozen.database() == "mysql":
        # Which MySQL does not read in its own UPDATE, unless it is copied first.
        newer = f"(SELECT DISTINCT credential_id, account_id, created_at, is_active FROM {newer})"
    op.execute(
        "UPDATE api_credentials SET is_active = false WHERE is_active AND EXISTS ("
        f"SELECT 1 FROM {newer} AS newer WHERE newer.is_active "
        "AND newer.account_id = api_credentials.account_id AND (newer.created_at > api_credentials.created_at "
        "OR (newer.created_at = api_credentials.created_at AND newer.credential_id > api_credentials.credential_id)))"
    )
    with op.get_context().autocommit_block():
        # A build that failed leaves an index of this name that nobody uses and IF NOT EXISTS would accept.
        op.drop_index(_INDEX, "api_credentials", if_exists=True, postgresql_concurrently=True, postgresql_where=_WHERE)
        op.create_index(
            _INDEX,
            "api_credentials",
            ["account_id"],
            unique=True,
            if_not_exists=True,
            postgresql_concurrently=True,
            postgresql_where=_WHERE,
            sqlite_where=_WHERE,
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index(_INDEX, "api_credentials", if_exists=True, postgresql_concurrently=True, postgresql_where=_WHERE)
