"""The seven tables of the specification.

Revision ID: 0001_initial
Revises:
Create Date: 2026-11-21
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from shared.db.migrations import frozen

revision = "0001_initial"
down_revision = None
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops = (
    "users",
    "bybit_accounts",
    "api_credentials",
    "strategies",
    "runs",
    "public_trades",
    "private_executions",
)


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("user_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("username", frozen.text(100), nullable=False, comment="Login username"),
        sa.Column("email", frozen.text(255), comment="Contact email"),
        sa.Column("status", frozen.word(20), server_default="active", nullable=False),
        sa.Column(
            "created_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="Account creation, UTC"
        ),
        sa.Column(
            "updated_at",
            frozen.instant(),
            server_default=frozen.now(),
            nullable=False,
            comment="Last modification, UTC",
        ),
        sa.PrimaryKeyConstraint("user_id", name="pk_users"),
        sa.CheckConstraint("status IN ('active', 'suspended', 'deleted')", name="ck_users_status"),
        sa.UniqueConstraint("username", name="uq_users_username"),
        sa.UniqueConstraint("email", name="uq_users_email"),
    )
    op.create_table(
        "bybit_accounts",
        sa.Column("account_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("user_id", frozen.text(36), nullable=False, comment="Owner"),
        sa.Column("account_name", frozen.text(100), nullable=False, comment="Label, unique for its user"),
        sa.Column("environment", frozen.word(10), nullable=False),
        sa.Column("status", frozen.word(20), server_default="enabled", nullable=False),
        sa.Column("created_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="Creation, UTC"),
        sa.PrimaryKeyConstraint("account_id", name="pk_bybit_accounts"),
        sa.UniqueConstraint("user_id", "account_name", name="uq_bybit_accounts_user_id_account_name"),
        sa.CheckConstraint("environment IN ('mainnet', 'testnet')", name="ck_bybit_accounts_environment"),
        sa.CheckConstraint("status IN ('enabled', 'disabled', 'error')", name="ck_bybit_accounts_status"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name="fk_bybit_accounts_user_id_users", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "api_credentials",
        sa.Column("credential_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("account_id", frozen.text(36), nullable=False),
        sa.Column("api_key_id", frozen.text(100), nullable=False, comment="Bybit API key (public part)"),
        sa.Column("api_secret", frozen.long_text(), nullable=False, comment="Bybit API secret"),
        sa.Column("is_active", frozen.flag(), server_default=sa.true(), nullable=False),
        sa.Column("created_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="Creation, UTC"),
        sa.Column("rotated_at", frozen.instant(), comment="Last rotation at the exchange, UTC"),
        sa.PrimaryKeyConstraint("credential_id", name="pk_api_credentials"),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["bybit_accounts.account_id"],
            name="fk_api_credentials_account_id_bybit_accounts",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_api_credentials_account_id", "api_credentials", ["account_id"])
    op.create_table(
        "strategies",
        sa.Column("strategy_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("account_id", frozen.text(36), nullable=False),
        sa.Column("strategy_type", frozen.text(50), nullable=False, comment="Such as GridStrategy"),
        sa.Column("symbol", frozen.text(20), nullable=False, comment="Trading pair, such as BTCUSDT"),
        sa.Column("config_json", frozen.document(), nullable=False, comment="GridConfig"),
        sa.Column("is_enabled", frozen.flag(), server_default=sa.true(), nullable=False),
        sa.Column("created_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="Creation, UTC"),
        sa.PrimaryKeyConstraint("strategy_id", name="pk_strategies"),
        sa.UniqueConstraint("account_id", "symbol", name="uq_strategies_account_id_symbol"),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["bybit_accounts.account_id"],
            name="fk_strategies_account_id_bybit_accounts",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "runs",
        sa.Column("run_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("user_id", frozen.text(36), nullable=False, comment="Owner"),
        sa.Column("account_id", frozen.text(36), nullable=False),
        sa.Column("strategy_id", frozen.text(36), nullable=False),
        sa.Column("run_type", frozen.word(20), nullable=False),
        sa.Column("gridcore_version", frozen.text(50), comment="For reproducing the run"),
        sa.Column("config_snapshot", frozen.document(), comment="GridConfig when the run started"),
        sa.Column("start_ts", frozen.instant(), server_default=frozen.now(), nullable=False, comment="Start, UTC"),
        sa.Column("end_ts", frozen.instant(), comment="End, UTC"),
        sa.Column("status", frozen.word(20), server_default="running", nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
        sa.CheckConstraint("run_type IN ('live', 'backtest', 'shadow')", name="ck_runs_run_type"),
        sa.CheckConstraint("status IN ('running', 'completed', 'failed')", name="ck_runs_status"),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="fk_runs_user_id_users", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["bybit_accounts.account_id"], name="fk_runs_account_id_bybit_accounts", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["strategy_id"], ["strategies.strategy_id"], name="fk_runs_strategy_id_strategies", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_runs_account_id", "runs", ["account_id"])
    op.create_index("ix_runs_status", "runs", ["status"])
    op.create_index("ix_runs_strategy_id", "runs", ["strategy_id"])
    op.create_index("ix_runs_user_id_start_ts_run_id", "runs", ["user_id", "start_ts", "run_id"])
    op.create_index("ix_runs_user_id_status_start_ts", "runs", ["user_id", "status", "start_ts"])
    op.create_table(
        "public_trades",
        sa.Column("id", frozen.whole_number(), nullable=False),
        sa.Column("symbol", frozen.text(20), nullable=False),
        sa.Column("trade_id", frozen.text(50), nullable=False, comment="Exchange trade ID"),
        sa.Column("exchange_ts", frozen.instant(), nullable=False, comment="Exchange time, UTC"),
        sa.Column("local_ts", frozen.instant(), nullable=False, comment="Local receive time, UTC"),
        sa.Column("side", frozen.word(4), nullable=False, comment="The taker's side"),
        sa.Column("price", frozen.money(), nullable=False),
        sa.Column("size", frozen.money(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_public_trades"),
        sa.UniqueConstraint("symbol", "exchange_ts", "trade_id", name="uq_public_trades_symbol_exchange_ts_trade_id"),
        sa.CheckConstraint("side IN ('Buy', 'Sell')", name="ck_public_trades_side"),
    )
    op.create_table(
        "private_executions",
        sa.Column("id", frozen.whole_number(), nullable=False),
        sa.Column("run_id", frozen.text(36), nullable=False),
        sa.Column("account_id", frozen.text(36), nullable=False, comment="Account that traded"),
        sa.Column("symbol", frozen.text(20), nullable=False),
        sa.Column("exec_id", frozen.text(50), nullable=False, comment="Exchange execution ID"),
        sa.Column("order_id", frozen.text(50), nullable=False, comment="Exchange order ID"),
        sa.Column("order_link_id", frozen.text(50), comment="Client order ID, for matching"),
        sa.Column("exchange_ts", frozen.instant(), nullable=False, comment="Execution time, UTC"),
        sa.Column("side", frozen.word(4), nullable=False),
        sa.Column("exec_price", frozen.money(), nullable=False),
        sa.Column("exec_qty", frozen.money(), nullable=False),
        sa.Column("exec_fee", frozen.money(), comment="Negative for a rebate"),
        sa.Column("closed_pnl", frozen.money(), comment="Realized profit or loss"),
        sa.Column("raw_json", frozen.document(), comment="The exchange's full message"),
        sa.PrimaryKeyConstraint("id", name="pk_private_executions"),
        sa.UniqueConstraint("run_id", "exec_id", name="uq_private_executions_run_id_exec_id"),
        sa.CheckConstraint("side IN ('Buy', 'Sell')", name="ck_private_executions_side"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name="fk_private_executions_run_id_runs", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_private_executions_account_id_exchange_ts", "private_executions", ["account_id", "exchange_ts"])


def downgrade() -> None:
    for table in reversed(drops):
        op.drop_table(table)
