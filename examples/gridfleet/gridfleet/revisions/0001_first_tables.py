"""First tables.

Revision ID: 0001_first_tables
Revises: None
Create Date: 2026-11-29
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from shared.db.migrations import frozen

revision = "0001_first_tables"
down_revision = None
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops: tuple[str, ...] = ("positions", "orders", "grid_states", "wallets", "tickers")


def upgrade() -> None:
    op.create_table(
        "tickers",
        sa.Column("id", frozen.whole_number(), autoincrement=True, nullable=False),
        sa.Column("symbol", frozen.text(32), nullable=False),
        sa.Column("exchange_ts", frozen.instant(), nullable=False),
        sa.Column("last_price", frozen.money(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tickers")),
        sa.UniqueConstraint("symbol", "exchange_ts", name=op.f("uq_tickers_symbol_exchange_ts")),
    )
    op.create_table(
        "wallets",
        sa.Column("id", frozen.whole_number(), autoincrement=True, nullable=False),
        sa.Column("account_id", frozen.text(36), nullable=False),
        sa.Column("coin", frozen.text(10), nullable=False),
        sa.Column("exchange_ts", frozen.instant(), nullable=False),
        sa.Column("balance", frozen.money(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["bybit_accounts.account_id"],
            name=op.f("fk_wallets_account_id_bybit_accounts"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_wallets")),
        sa.UniqueConstraint("account_id", "coin", "exchange_ts", name=op.f("uq_wallets_account_id_coin_exchange_ts")),
    )
    op.create_table(
        "grid_states",
        sa.Column("run_id", frozen.text(36), nullable=False),
        sa.Column("levels", frozen.document(), nullable=False),
        sa.Column("saved_ts", frozen.instant(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name=op.f("fk_grid_states_run_id_runs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_grid_states")),
    )
    op.create_table(
        "orders",
        sa.Column("id", frozen.whole_number(), autoincrement=True, nullable=False),
        sa.Column("run_id", frozen.text(36), nullable=False),
        sa.Column("account_id", frozen.text(36), nullable=False),
        sa.Column("order_id", frozen.text(50), nullable=False, comment="Exchange order ID"),
        sa.Column("symbol", frozen.text(32), nullable=False),
        sa.Column("price", frozen.money(), nullable=False),
        sa.Column("qty", frozen.money(), nullable=False),
        sa.Column("placed_ts", frozen.instant(), nullable=False, comment="Placing, UTC"),
        sa.Column("status", frozen.word(10), server_default="open", nullable=False),
        sa.CheckConstraint("status IN ('open', 'filled', 'cancelled')", name=op.f("ck_orders_status")),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["bybit_accounts.account_id"],
            name=op.f("fk_orders_account_id_bybit_accounts"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_orders_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_orders")),
        sa.UniqueConstraint("run_id", "order_id", name=op.f("uq_orders_run_id_order_id")),
    )
    with op.batch_alter_table("orders", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_orders_account_id"), ["account_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_orders_run_id_placed_ts"), ["run_id", "placed_ts"], unique=False)

    op.create_table(
        "positions",
        sa.Column("id", frozen.whole_number(), autoincrement=True, nullable=False),
        sa.Column("run_id", frozen.text(36), nullable=False),
        sa.Column("symbol", frozen.text(32), nullable=False),
        sa.Column("size", frozen.money(), nullable=False),
        sa.Column("cost", frozen.money(), nullable=False, comment="Paid for it so far"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_positions_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_positions")),
        sa.UniqueConstraint("run_id", "symbol", name=op.f("uq_positions_run_id_symbol")),
    )


def downgrade() -> None:
    op.drop_table("positions")
    op.drop_table("orders")
    op.drop_table("grid_states")
    op.drop_table("wallets")
    op.drop_table("tickers")
