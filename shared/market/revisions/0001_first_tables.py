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
drops: tuple[str, ...] = ("seen_news", "instruments", "feeds", "candles")


def upgrade() -> None:
    op.create_table(
        "candles",
        sa.Column("id", frozen.whole_number(), autoincrement=True, nullable=False),
        sa.Column("symbol", frozen.text(32), nullable=False),
        sa.Column("interval", frozen.word(3), nullable=False),
        sa.Column(
            "open_ts", frozen.instant(), nullable=False, comment="Its beginning, UTC; of a day, 0:00 of its date"
        ),
        sa.Column("open", frozen.money(), nullable=False),
        sa.Column("high", frozen.money(), nullable=False),
        sa.Column("low", frozen.money(), nullable=False),
        sa.Column("close", frozen.money(), nullable=False),
        sa.Column("volume", frozen.money(), nullable=False),
        sa.Column("vwap", frozen.money(), nullable=True, comment="Mean price weighted by size"),
        sa.Column("trade_count", frozen.whole_number(), nullable=True, comment="Where it was made from stored trades"),
        sa.Column("dividends", frozen.money(), nullable=True, comment="Paid for a share at that time"),
        sa.Column("splits", frozen.money(), nullable=True, comment="Shares that one became; 0 or NULL: no split"),
        sa.CheckConstraint(
            "interval IN ('1m', '2m', '3m', '5m', '15m', '30m', '1h', '2h', '4h', '6h', '12h', '1d')",
            name=op.f("ck_candles_interval"),
        ),
        sa.CheckConstraint(
            "low <= open AND low <= close AND high >= open AND high >= close", name=op.f("ck_candles_low_to_high")
        ),
        sa.CheckConstraint("volume >= 0", name=op.f("ck_candles_volume")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_candles")),
        sa.UniqueConstraint("symbol", "interval", "open_ts", name=op.f("uq_candles_symbol_interval_open_ts")),
    )
    with op.batch_alter_table("candles", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_candles_symbol_open_ts_interval"), ["symbol", "open_ts", "interval"], unique=False
        )

    op.create_table(
        "feeds",
        sa.Column("feed_id", frozen.text(36), server_default=frozen.new_uuid(), nullable=False),
        sa.Column("url", frozen.text(500), nullable=False),
        sa.Column("name", frozen.text(100), nullable=False),
        sa.Column("is_active", frozen.flag(), server_default=sa.true(), nullable=False),
        sa.Column("fetched_ts", frozen.instant(), nullable=True, comment="When it was last read, UTC"),
        sa.Column("created_at", frozen.instant(), server_default=frozen.now(), nullable=False),
        sa.PrimaryKeyConstraint("feed_id", name=op.f("pk_feeds")),
        sa.UniqueConstraint("url", name=op.f("uq_feeds_url")),
    )
    op.create_table(
        "instruments",
        sa.Column("symbol", frozen.text(32), nullable=False),
        sa.Column("name", frozen.text(255), nullable=True, comment="Company, coin or contract"),
        sa.Column("sector", frozen.text(100), nullable=True),
        sa.Column("industry", frozen.text(100), nullable=True),
        sa.Column("market_cap", frozen.whole_number(), nullable=True, comment="Whole units of its currency"),
        sa.Column("tick_size", frozen.money(), nullable=True, comment="Smallest step of the price"),
        sa.Column("lot_size", frozen.money(), nullable=True, comment="Smallest step of the quantity"),
        sa.Column("status", frozen.word(10), server_default="trading", nullable=False),
        sa.Column(
            "updated_at",
            frozen.instant(),
            server_default=frozen.now(),
            nullable=False,
            comment="Last modification, UTC",
        ),
        sa.CheckConstraint(
            "status IN ('pre_launch', 'trading', 'halted', 'delisted')", name=op.f("ck_instruments_status")
        ),
        sa.PrimaryKeyConstraint("symbol", name=op.f("pk_instruments")),
    )
    with op.batch_alter_table("instruments", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_instruments_sector"), ["sector"], unique=False)

    op.create_table(
        "seen_news",
        sa.Column("url_hash", frozen.text(64), nullable=False, comment="SHA-256 of the address"),
        sa.Column("feed_id", frozen.text(36), nullable=False),
        sa.Column("title", frozen.long_text(), nullable=False),
        sa.Column("url", frozen.long_text(), nullable=False),
        sa.Column("published_ts", frozen.instant(), nullable=True, comment="As the feed says, UTC"),
        sa.Column("seen_ts", frozen.instant(), server_default=frozen.now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["feed_id"], ["feeds.feed_id"], name=op.f("fk_seen_news_feed_id_feeds"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("url_hash", name=op.f("pk_seen_news")),
    )
    with op.batch_alter_table("seen_news", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_seen_news_feed_id_seen_ts_url_hash"), ["feed_id", "seen_ts", "url_hash"], unique=False
        )


def downgrade() -> None:
    op.drop_table("seen_news")
    op.drop_table("instruments")
    op.drop_table("feeds")
    op.drop_table("candles")
