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
drops: tuple[str, ...] = (
    "bot_trades",
    "signals",
    "portfolio_positions",
    "performance",
    "events",
    "ml_models",
    "bots",
    "balance_snapshots",
    "alerts",
)


def upgrade() -> None:
    op.create_table(
        "alerts",
        sa.Column("alert_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("user_id", frozen.text(36), nullable=False),
        sa.Column("alert_type", frozen.text(50), nullable=False),
        sa.Column("severity", frozen.word(20), nullable=False),
        sa.Column("title", frozen.text(200), nullable=False),
        sa.Column("message", frozen.long_text(), nullable=False),
        sa.Column("details", frozen.document(), nullable=False),
        sa.Column("ts", frozen.instant(), server_default=frozen.now(), nullable=False, comment="UTC"),
        sa.Column("read_at", frozen.instant(), nullable=True, comment="NULL while it is unread"),
        sa.CheckConstraint("severity IN ('low', 'medium', 'high', 'critical')", name=op.f("ck_alerts_severity")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name=op.f("fk_alerts_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("alert_id", name=op.f("pk_alerts")),
    )
    with op.batch_alter_table("alerts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_alerts_user_id_ts"), ["user_id", "ts"], unique=False)

    op.create_table(
        "balance_snapshots",
        sa.Column("snapshot_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("user_id", frozen.text(36), nullable=False),
        sa.Column("exchange", frozen.text(50), nullable=False),
        sa.Column("currency", frozen.text(20), nullable=False),
        sa.Column("ts", frozen.instant(), nullable=False, comment="UTC"),
        sa.Column("total_balance", frozen.money(), nullable=False),
        sa.Column("available_balance", frozen.money(), nullable=False),
        sa.Column("locked_balance", frozen.money(), server_default="0", nullable=False),
        sa.CheckConstraint("locked_balance >= 0", name=op.f("ck_balance_snapshots_locked_balance")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name=op.f("fk_balance_snapshots_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("snapshot_id", name=op.f("pk_balance_snapshots")),
        sa.UniqueConstraint(
            "user_id", "exchange", "currency", "ts", name=op.f("uq_balance_snapshots_user_id_exchange_currency_ts")
        ),
    )
    op.create_table(
        "bots",
        sa.Column("bot_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("user_id", frozen.text(36), nullable=False),
        sa.Column("name", frozen.text(100), nullable=False, comment="Unique for its user"),
        sa.Column("description", frozen.long_text(), nullable=True),
        sa.Column("bot_type", frozen.word(20), server_default="platform", nullable=False),
        sa.Column("status", frozen.word(20), server_default="inactive", nullable=False),
        sa.Column("strategy_type", frozen.text(50), nullable=True),
        sa.Column("exchange", frozen.text(50), nullable=True),
        sa.Column("config", frozen.document(), nullable=False),
        sa.Column("api_url", frozen.text(500), nullable=True, comment="Of an external bot; unique for its user"),
        sa.Column("exposed_host_port", frozen.whole_number(), nullable=True),
        sa.Column("last_ping", frozen.instant(), nullable=True, comment="When it last answered, UTC"),
        sa.Column("connection_error", frozen.long_text(), nullable=True, comment="Why it did not; NULL once it did"),
        sa.Column("last_active", frozen.instant(), nullable=True),
        sa.Column("created_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="UTC"),
        sa.Column("updated_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="UTC"),
        sa.CheckConstraint("api_url IS NULL OR bot_type = 'external'", name=op.f("ck_bots_api_url")),
        sa.CheckConstraint("bot_type IN ('external', 'shared', 'platform')", name=op.f("ck_bots_bot_type")),
        sa.CheckConstraint(
            "status IN ('inactive', 'starting', 'running', 'stopping', 'stopped', 'connected', 'error')",
            name=op.f("ck_bots_status"),
        ),
        sa.CheckConstraint("exposed_host_port BETWEEN 1 AND 65535", name=op.f("ck_bots_exposed_host_port")),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name=op.f("fk_bots_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("bot_id", name=op.f("pk_bots")),
        sa.UniqueConstraint("user_id", "api_url", name=op.f("uq_bots_user_id_api_url")),
        sa.UniqueConstraint("user_id", "name", name=op.f("uq_bots_user_id_name")),
    )
    op.create_table(
        "ml_models",
        sa.Column("model_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("user_id", frozen.text(36), nullable=False),
        sa.Column("name", frozen.text(100), nullable=False),
        sa.Column("model_type", frozen.text(50), nullable=False),
        sa.Column("version", frozen.text(50), nullable=False),
        sa.Column("file_path", frozen.long_text(), nullable=False),
        sa.Column("details", frozen.document(), nullable=False),
        sa.Column("performance_metrics", frozen.document(), nullable=False),
        sa.Column("is_active", frozen.flag(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="UTC"),
        sa.Column("updated_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="UTC"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name=op.f("fk_ml_models_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("model_id", name=op.f("pk_ml_models")),
        sa.UniqueConstraint("user_id", "name", "version", name=op.f("uq_ml_models_user_id_name_version")),
    )
    op.create_table(
        "events",
        sa.Column("event_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("user_id", frozen.text(36), nullable=False),
        sa.Column("bot_id", frozen.text(36), nullable=True),
        sa.Column("ts", frozen.instant(), server_default=frozen.now(), nullable=False, comment="UTC"),
        sa.Column("level", frozen.word(20), nullable=False),
        sa.Column("event_type", frozen.text(50), nullable=False),
        sa.Column("description", frozen.long_text(), nullable=False),
        sa.Column("details", frozen.document(), nullable=False),
        sa.Column("bot_version", frozen.text(50), nullable=True),
        sa.CheckConstraint("level IN ('info', 'warning', 'error')", name=op.f("ck_events_level")),
        sa.ForeignKeyConstraint(["bot_id"], ["bots.bot_id"], name=op.f("fk_events_bot_id_bots"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name=op.f("fk_events_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_events")),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_events_bot_id"), ["bot_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_events_user_id_ts_event_id"), ["user_id", "ts", "event_id"], unique=False)

    op.create_table(
        "performance",
        sa.Column("performance_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("bot_id", frozen.text(36), nullable=False),
        sa.Column("day_ts", frozen.instant(), nullable=False, comment="0:00 UTC of the day"),
        sa.Column("total_trades", frozen.whole_number(), nullable=False),
        sa.Column("winning_trades", frozen.whole_number(), nullable=False),
        sa.Column("losing_trades", frozen.whole_number(), nullable=False),
        sa.Column("total_pnl", frozen.money(), nullable=False),
        sa.Column("portfolio_value", frozen.money(), nullable=True),
        sa.Column("volatility", frozen.money(), nullable=True),
        sa.Column("sharpe_ratio", frozen.money(), nullable=True),
        sa.Column("max_drawdown", frozen.money(), nullable=True),
        sa.Column("created_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="UTC"),
        sa.CheckConstraint(
            "winning_trades >= 0 AND losing_trades >= 0 AND winning_trades + losing_trades <= total_trades",
            name=op.f("ck_performance_trades"),
        ),
        sa.ForeignKeyConstraint(
            ["bot_id"], ["bots.bot_id"], name=op.f("fk_performance_bot_id_bots"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("performance_id", name=op.f("pk_performance")),
        sa.UniqueConstraint("bot_id", "day_ts", name=op.f("uq_performance_bot_id_day_ts")),
    )
    op.create_table(
        "portfolio_positions",
        sa.Column("position_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("bot_id", frozen.text(36), nullable=False),
        sa.Column("symbol", frozen.text(32), nullable=False),
        sa.Column("side", frozen.word(4), nullable=False),
        sa.Column("quantity", frozen.money(), nullable=False),
        sa.Column("entry_price", frozen.money(), nullable=False),
        sa.Column("current_price", frozen.money(), nullable=True),
        sa.Column("unrealized_pnl", frozen.money(), server_default="0", nullable=False),
        sa.Column("realized_pnl", frozen.money(), server_default="0", nullable=False),
        sa.Column("created_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="UTC"),
        sa.Column("updated_at", frozen.instant(), server_default=frozen.now(), nullable=False, comment="UTC"),
        sa.Column("closed_at", frozen.instant(), nullable=True, comment="NULL while it is open"),
        sa.CheckConstraint("side IN ('Buy', 'Sell')", name=op.f("ck_portfolio_positions_side")),
        sa.CheckConstraint("quantity >= 0", name=op.f("ck_portfolio_positions_quantity")),
        sa.ForeignKeyConstraint(
            ["bot_id"], ["bots.bot_id"], name=op.f("fk_portfolio_positions_bot_id_bots"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("position_id", name=op.f("pk_portfolio_positions")),
    )
    with op.batch_alter_table("portfolio_positions", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_portfolio_positions_bot_id_closed_at"), ["bot_id", "closed_at"], unique=False
        )

    op.create_table(
        "signals",
        sa.Column("signal_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("bot_id", frozen.text(36), nullable=False),
        sa.Column("ts", frozen.instant(), nullable=False, comment="UTC"),
        sa.Column("symbol", frozen.text(32), nullable=False),
        sa.Column("price", frozen.money(), nullable=False),
        sa.Column("final_signal", frozen.word(4), nullable=False),
        sa.Column("final_confidence", frozen.money(), nullable=False, comment="0 to 1"),
        sa.Column("aggregation_method", frozen.text(50), nullable=True),
        sa.Column("strategies", frozen.document(), nullable=False, comment="What each strategy advised"),
        sa.Column("entry_price", frozen.money(), nullable=True),
        sa.Column("target_price", frozen.money(), nullable=True),
        sa.Column("stop_loss", frozen.money(), nullable=True),
        sa.Column("regime", frozen.text(50), nullable=True),
        sa.Column("reasons", frozen.long_text(), nullable=True),
        sa.Column("strategy_version", frozen.text(64), nullable=True, comment="What strategy_hash() gives"),
        sa.Column("bot_version", frozen.text(50), nullable=True),
        sa.Column(
            "test_mode",
            frozen.flag(),
            server_default=sa.false(),
            nullable=False,
            comment="Questions leave it out unless asked",
        ),
        sa.CheckConstraint("final_signal IN ('BUY', 'SELL', 'HOLD')", name=op.f("ck_signals_final_signal")),
        sa.CheckConstraint("final_confidence >= 0 AND final_confidence <= 1", name=op.f("ck_signals_final_confidence")),
        sa.ForeignKeyConstraint(["bot_id"], ["bots.bot_id"], name=op.f("fk_signals_bot_id_bots"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("signal_id", name=op.f("pk_signals")),
    )
    with op.batch_alter_table("signals", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_signals_bot_id_ts_signal_id"), ["bot_id", "ts", "signal_id"], unique=False)

    op.create_table(
        "bot_trades",
        sa.Column("trade_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("bot_id", frozen.text(36), nullable=False),
        sa.Column("signal_id", frozen.text(36), nullable=True),
        sa.Column("ts", frozen.instant(), nullable=False, comment="UTC"),
        sa.Column("symbol", frozen.text(32), nullable=False),
        sa.Column("side", frozen.word(4), nullable=False),
        sa.Column("order_type", frozen.text(20), nullable=True),
        sa.Column("quantity", frozen.money(), nullable=False),
        sa.Column("price", frozen.money(), nullable=True, comment="Of the order; NULL at market"),
        sa.Column("executed_price", frozen.money(), nullable=True, comment="Mean price of what was filled"),
        sa.Column("fee", frozen.money(), server_default="0", nullable=False),
        sa.Column("pnl", frozen.money(), nullable=True, comment="Realised; NULL where it closed nothing"),
        sa.Column("status", frozen.word(20), server_default="new", nullable=False),
        sa.Column("bot_version", frozen.text(50), nullable=True),
        sa.Column(
            "test_mode",
            frozen.flag(),
            server_default=sa.false(),
            nullable=False,
            comment="Questions leave it out unless asked",
        ),
        sa.CheckConstraint("side IN ('Buy', 'Sell')", name=op.f("ck_bot_trades_side")),
        sa.CheckConstraint(
            "status IN ('new', 'partially_filled', 'filled', 'cancelled', 'rejected')",
            name=op.f("ck_bot_trades_status"),
        ),
        sa.CheckConstraint("quantity >= 0", name=op.f("ck_bot_trades_quantity")),
        sa.ForeignKeyConstraint(
            ["bot_id"], ["bots.bot_id"], name=op.f("fk_bot_trades_bot_id_bots"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["signal_id"], ["signals.signal_id"], name=op.f("fk_bot_trades_signal_id_signals"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trade_id", name=op.f("pk_bot_trades")),
    )
    with op.batch_alter_table("bot_trades", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_bot_trades_bot_id_ts_trade_id"), ["bot_id", "ts", "trade_id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_bot_trades_signal_id"), ["signal_id"], unique=False)


def downgrade() -> None:
    op.drop_table("bot_trades")
    op.drop_table("signals")
    op.drop_table("portfolio_positions")
    op.drop_table("performance")
    op.drop_table("events")
    op.drop_table("ml_models")
    op.drop_table("bots")
    op.drop_table("balance_snapshots")
    op.drop_table("alerts")
