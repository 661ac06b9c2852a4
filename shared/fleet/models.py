"""The tables: each says whose rows it holds, and all else follows from that."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, Index, UniqueConstraint, false, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from shared.db import (
    Base,
    BoundedString,
    CheckedBoolean,
    CheckedInteger,
    CheckedText,
    Json,
    Money,
    Ownership,
    SecretText,
    Side,
    Stream,
    UTCDateTime,
    Vocabulary,
    created_column,
    document_index,
    id_column,
    one_of,
    parent_column,
    updated_column,
    word_column,
)


class BotType(StrEnum):
    """Values of bots.bot_type."""

    EXTERNAL, SHARED, PLATFORM = "external", "shared", "platform"


class BotStatus(StrEnum):
    """Values of bots.status."""

    INACTIVE, STARTING, RUNNING, STOPPING = "inactive", "starting", "running", "stopping"
    STOPPED, CONNECTED, ERROR = "stopped", "connected", "error"


class Verdict(StrEnum):
    """Values of signals.final_signal."""

    BUY, SELL, HOLD = "BUY", "SELL", "HOLD"


class TradeStatus(StrEnum):
    """Values of bot_trades.status, of the order that was placed."""

    NEW, PARTIALLY_FILLED, FILLED, CANCELLED, REJECTED = "new", "partially_filled", "filled", "cancelled", "rejected"


class RiskLevel(StrEnum):
    """Values of bot_templates.risk_level."""

    LOW, MEDIUM, HIGH = "low", "medium", "high"


class SubscriptionStatus(StrEnum):
    """Values of subscriptions.status."""

    ACTIVE, PAUSED, CANCELLED = "active", "paused", "cancelled"


class Severity(StrEnum):
    """Values of alerts.severity."""

    LOW, MEDIUM, HIGH, CRITICAL = "low", "medium", "high", "critical"


class EventLevel(StrEnum):
    """Values of events.level."""

    INFO, WARNING, ERROR = "info", "warning", "error"


def _where(condition: str) -> dict[str, Any]:
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}


def _test_mode() -> Mapped[bool]:
    return mapped_column(
        CheckedBoolean(), default=False, server_default=false(), comment="Questions leave it out unless asked"
    )


class Bot(Base):
    """A bot of a user: one of another system, one that several share, or one of this platform."""

    __tablename__ = "bots"
    __ownership__ = Ownership("user_id")
    __table_args__ = (
        UniqueConstraint("user_id", "name"),
        # The address is of external bots alone, so that the key needs no condition, which not every database knows.
        UniqueConstraint("user_id", "api_url"),
        CheckConstraint("api_url IS NULL OR bot_type = 'external'", name="api_url"),
        CheckConstraint("exposed_host_port BETWEEN 1 AND 65535", name="exposed_host_port"),
        one_of("bot_type", BotType),
        one_of("status", BotStatus),
    )
    _repr_names = ("name", "bot_type", "status")

    bot_id: Mapped[str] = id_column()
    user_id: Mapped[str] = parent_column("users.user_id")
    name: Mapped[str] = mapped_column(BoundedString(100), comment="Unique for its user")
    description: Mapped[str | None] = mapped_column(CheckedText())
    bot_type: Mapped[str] = word_column(BotType, 20, BotType.PLATFORM)
    status: Mapped[str] = word_column(BotStatus, 20, BotStatus.INACTIVE)
    strategy_type: Mapped[str | None] = mapped_column(BoundedString(50))
    exchange: Mapped[str | None] = mapped_column(BoundedString(50))
    config: Mapped[dict[str, Any]] = mapped_column(Json(), default=dict)
    api_url: Mapped[str | None] = mapped_column(BoundedString(500), comment="Of an external bot; unique for its user")
    api_token: Mapped[str | None] = mapped_column(SecretText(), comment="Of the bot's own API, sealed")
    exposed_host_port: Mapped[int | None] = mapped_column(CheckedInteger())
    last_ping: Mapped[datetime | None] = mapped_column(UTCDateTime(), comment="When it last answered, UTC")
    connection_error: Mapped[str | None] = mapped_column(CheckedText(), comment="Why it did not; NULL once it did")
    last_active: Mapped[datetime | None] = mapped_column(UTCDateTime())
    created_at: Mapped[datetime] = created_column("UTC")
    updated_at: Mapped[datetime] = updated_column("UTC")


class BotTemplate(Base):
    """A strategy that its creator offers: of all users to read where it is public, and its creator's alone to write."""

    __tablename__ = "bot_templates"
    __ownership__ = Ownership("creator_id", public="is_public")
    __table_args__ = (
        UniqueConstraint("creator_id", "name"),
        Index(None, "is_public", "name"),
        document_index("config_json"),
        document_index("performance_data"),
        one_of("risk_level", RiskLevel),
    )
    _repr_names = ("name", "is_public", "risk_level")

    template_id: Mapped[str] = id_column()
    creator_id: Mapped[str] = parent_column("users.user_id")
    name: Mapped[str] = mapped_column(BoundedString(100), comment="Unique for its creator")
    description: Mapped[str | None] = mapped_column(CheckedText())
    config_json: Mapped[dict[str, Any]] = mapped_column(Json())
    is_public: Mapped[bool] = mapped_column(CheckedBoolean(), default=False, server_default=false())
    risk_level: Mapped[str] = word_column(RiskLevel, 20, RiskLevel.MEDIUM)
    strategy_type: Mapped[str | None] = mapped_column(BoundedString(50))
    performance_data: Mapped[dict[str, Any]] = mapped_column(Json(), default=dict)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()


class Subscription(Base):
    """That a bot of a user follows a template, of the user's own or a public one."""

    __tablename__ = "subscriptions"
    __ownership__ = Ownership("user_id", references=("bot_id", "template_id"))
    __table_args__ = (
        # One that is active for a user and template, and any number of former ones.
        Index("uq_subscriptions_active", "user_id", "template_id", unique=True, **_where("status = 'active'")),
        Index(None, "user_id", "status"),
        Index(None, "bot_id"),
        Index(None, "template_id"),
        CheckConstraint("allocation_amount >= 0", name="allocation_amount"),
        one_of("status", SubscriptionStatus),
    )
    _repr_names = ("bot_id", "template_id", "status")

    subscription_id: Mapped[str] = id_column()
    user_id: Mapped[str] = parent_column("users.user_id")
    bot_id: Mapped[str] = parent_column("bots.bot_id")
    template_id: Mapped[str] = parent_column("bot_templates.template_id")
    allocation_amount: Mapped[Decimal | None] = mapped_column(Money())
    status: Mapped[str] = word_column(SubscriptionStatus, 20, SubscriptionStatus.ACTIVE)
    performance_data: Mapped[dict[str, Any]] = mapped_column(Json(), default=dict)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()


class Signal(Base):
    """What the strategies of a bot advised at a time, each of them and together."""

    __tablename__ = "signals"
    __ownership__ = Ownership("bot_id")
    __stream__ = Stream(by="bot_id", time="ts", tie="signal_id")
    __table_args__ = (
        Index(None, "bot_id", "ts", "signal_id"),
        document_index("strategies"),
        CheckConstraint("final_confidence >= 0 AND final_confidence <= 1", name="final_confidence"),
        one_of("final_signal", Verdict),
    )
    _repr_names = ("symbol", "ts", "final_signal")

    signal_id: Mapped[str] = id_column()
    bot_id: Mapped[str] = parent_column("bots.bot_id")
    ts: Mapped[datetime] = mapped_column(UTCDateTime(), comment="UTC")
    symbol: Mapped[str] = mapped_column(BoundedString(32))
    price: Mapped[Decimal] = mapped_column(Money())
    final_signal: Mapped[str] = mapped_column(Vocabulary(Verdict, 4))
    final_confidence: Mapped[Decimal] = mapped_column(Money(), comment="0 to 1")
    aggregation_method: Mapped[str | None] = mapped_column(BoundedString(50))
    strategies: Mapped[dict[str, Any]] = mapped_column(Json(), default=dict, comment="What each strategy advised")
    entry_price: Mapped[Decimal | None] = mapped_column(Money())
    target_price: Mapped[Decimal | None] = mapped_column(Money())
    stop_loss: Mapped[Decimal | None] = mapped_column(Money())
    regime: Mapped[str | None] = mapped_column(BoundedString(50))
    reasons: Mapped[str | None] = mapped_column(CheckedText())
    strategy_version: Mapped[str | None] = mapped_column(BoundedString(64), comment="What strategy_hash() gives")
    bot_version: Mapped[str | None] = mapped_column(BoundedString(50))
    test_mode: Mapped[bool] = _test_mode()

    trades: Mapped[list[Trade]] = relationship(
        back_populates="signal", cascade="all", passive_deletes=True, order_by="(Trade.ts, Trade.trade_id)"
    )


class Trade(Base):
    """An order that a bot placed, and what came of it."""

    __tablename__ = "bot_trades"
    __ownership__ = Ownership("bot_id", references=("signal_id",))
    __stream__ = Stream(by="bot_id", time="ts", tie="trade_id")
    __table_args__ = (
        Index(None, "bot_id", "ts", "trade_id"),
        Index(None, "signal_id"),
        CheckConstraint("quantity >= 0", name="quantity"),
        one_of("side", Side),
        one_of("status", TradeStatus),
    )
    _repr_names = ("symbol", "ts", "side", "status")

    trade_id: Mapped[str] = id_column()
    bot_id: Mapped[str] = parent_column("bots.bot_id")
    signal_id: Mapped[str | None] = parent_column("signals.signal_id", nullable=True)
    ts: Mapped[datetime] = mapped_column(UTCDateTime(), comment="UTC")
    symbol: Mapped[str] = mapped_column(BoundedString(32))
    side: Mapped[str] = mapped_column(Vocabulary(Side, 4))
    order_type: Mapped[str | None] = mapped_column(BoundedString(20))
    quantity: Mapped[Decimal] = mapped_column(Money())
    price: Mapped[Decimal | None] = mapped_column(Money(), comment="Of the order; NULL at market")
    executed_price: Mapped[Decimal | None] = mapped_column(Money(), comment="Mean price of what was filled")
    fee: Mapped[Decimal] = mapped_column(Money(), default=Decimal(0), server_default="0")
    pnl: Mapped[Decimal | None] = mapped_column(Money(), comment="Realised; NULL where it closed nothing")
    status: Mapped[str] = word_column(TradeStatus, 20, TradeStatus.NEW)
    bot_version: Mapped[str | None] = mapped_column(BoundedString(50))
    test_mode: Mapped[bool] = _test_mode()

    signal: Mapped[Signal | None] = relationship(back_populates="trades")


class PortfolioPosition(Base):
    """What a bot holds of a symbol, or held until it was closed."""

    __tablename__ = "portfolio_positions"
    __ownership__ = Ownership("bot_id")
    __table_args__ = (
        Index(None, "bot_id", "closed_at"),
        CheckConstraint("quantity >= 0", name="quantity"),
        one_of("side", Side),
    )
    _repr_names = ("symbol", "side", "closed_at")

    position_id: Mapped[str] = id_column()
    bot_id: Mapped[str] = parent_column("bots.bot_id")
    symbol: Mapped[str] = mapped_column(BoundedString(32))
    side: Mapped[str] = mapped_column(Vocabulary(Side, 4))
    quantity: Mapped[Decimal] = mapped_column(Money())
    entry_price: Mapped[Decimal] = mapped_column(Money())
    current_price: Mapped[Decimal | None] = mapped_column(Money())
    unrealized_pnl: Mapped[Decimal] = mapped_column(Money(), default=Decimal(0), server_default="0")
    realized_pnl: Mapped[Decimal] = mapped_column(Money(), default=Decimal(0), server_default="0")
    created_at: Mapped[datetime] = created_column("UTC")
    updated_at: Mapped[datetime] = updated_column("UTC")
    closed_at: Mapped[datetime | None] = mapped_column(UTCDateTime(), comment="NULL while it is open")


class BalanceSnapshot(Base):
    """What a user had of a currency at an exchange, at a time."""

    __tablename__ = "balance_snapshots"
    __ownership__ = Ownership("user_id")
    __stream__ = Stream(by="user_id", time="ts", tie="snapshot_id")
    __table_args__ = (
        UniqueConstraint("user_id", "exchange", "currency", "ts"),
        CheckConstraint("locked_balance >= 0", name="locked_balance"),
    )
    _repr_names = ("exchange", "currency", "ts")

    snapshot_id: Mapped[str] = id_column()
    user_id: Mapped[str] = parent_column("users.user_id")
    exchange: Mapped[str] = mapped_column(BoundedString(50))
    currency: Mapped[str] = mapped_column(BoundedString(20))
    ts: Mapped[datetime] = mapped_column(UTCDateTime(), comment="UTC")
    total_balance: Mapped[Decimal] = mapped_column(Money())
    available_balance: Mapped[Decimal] = mapped_column(Money())
    locked_balance: Mapped[Decimal] = mapped_column(Money(), default=Decimal(0), server_default="0")


class Performance(Base):
    """How a bot did on a day. The win rate follows from the counts and is not stored."""

    __tablename__ = "performance"
    __ownership__ = Ownership("bot_id")
    __stream__ = Stream(by="bot_id", time="day_ts")
    __table_args__ = (
        UniqueConstraint("bot_id", "day_ts"),
        CheckConstraint(
            "winning_trades >= 0 AND losing_trades >= 0 AND winning_trades + losing_trades <= total_trades",
            name="trades",
        ),
    )
    _repr_names = ("bot_id", "day_ts")

    performance_id: Mapped[str] = id_column()
    bot_id: Mapped[str] = parent_column("bots.bot_id")
    day_ts: Mapped[datetime] = mapped_column(UTCDateTime(), comment="0:00 UTC of the day")
    total_trades: Mapped[int] = mapped_column(CheckedInteger())
    winning_trades: Mapped[int] = mapped_column(CheckedInteger())
    losing_trades: Mapped[int] = mapped_column(CheckedInteger())
    total_pnl: Mapped[Decimal] = mapped_column(Money())
    portfolio_value: Mapped[Decimal | None] = mapped_column(Money())
    volatility: Mapped[Decimal | None] = mapped_column(Money())
    sharpe_ratio: Mapped[Decimal | None] = mapped_column(Money())
    max_drawdown: Mapped[Decimal | None] = mapped_column(Money())
    created_at: Mapped[datetime] = created_column("UTC")


class Alert(Base):
    """What a user is to be told."""

    __tablename__ = "alerts"
    __ownership__ = Ownership("user_id")
    __stream__ = Stream(by="user_id", time="ts", tie="alert_id")
    __table_args__ = (Index(None, "user_id", "ts"), one_of("severity", Severity))
    _repr_names = ("severity", "title", "ts")

    alert_id: Mapped[str] = id_column()
    user_id: Mapped[str] = parent_column("users.user_id")
    alert_type: Mapped[str] = mapped_column(BoundedString(50))
    severity: Mapped[str] = mapped_column(Vocabulary(Severity, 20))
    title: Mapped[str] = mapped_column(BoundedString(200))
    message: Mapped[str] = mapped_column(CheckedText())
    details: Mapped[dict[str, Any]] = mapped_column(Json(), default=dict)
    ts: Mapped[datetime] = created_column("UTC")
    read_at: Mapped[datetime | None] = mapped_column(UTCDateTime(), comment="NULL while it is unread")


class Event(Base):
    """What happened in the system of a user, errors among it."""

    __tablename__ = "events"
    __ownership__ = Ownership("user_id", references=("bot_id",))
    __stream__ = Stream(by="user_id", time="ts", tie="event_id")
    __table_args__ = (
        Index(None, "user_id", "ts", "event_id"),
        Index(None, "bot_id"),
        one_of("level", EventLevel),
    )
    _repr_names = ("level", "event_type", "ts")

    event_id: Mapped[str] = id_column()
    user_id: Mapped[str] = parent_column("users.user_id")
    bot_id: Mapped[str | None] = parent_column("bots.bot_id", nullable=True)
    ts: Mapped[datetime] = created_column("UTC")
    level: Mapped[str] = mapped_column(Vocabulary(EventLevel, 20))
    event_type: Mapped[str] = mapped_column(BoundedString(50))
    description: Mapped[str] = mapped_column(CheckedText())
    details: Mapped[dict[str, Any]] = mapped_column(Json(), default=dict)
    bot_version: Mapped[str | None] = mapped_column(BoundedString(50))


class MLModel(Base):
    """A trained model of a user: where its file is, and how well it did."""

    __tablename__ = "ml_models"
    __ownership__ = Ownership("user_id")
    __table_args__ = (UniqueConstraint("user_id", "name", "version"),)
    _repr_names = ("name", "version", "is_active")

    model_id: Mapped[str] = id_column()
    user_id: Mapped[str] = parent_column("users.user_id")
    name: Mapped[str] = mapped_column(BoundedString(100))
    model_type: Mapped[str] = mapped_column(BoundedString(50))
    version: Mapped[str] = mapped_column(BoundedString(50))
    file_path: Mapped[str] = mapped_column(CheckedText())
    details: Mapped[dict[str, Any]] = mapped_column(Json(), default=dict)
    performance_metrics: Mapped[dict[str, Any]] = mapped_column(Json(), default=dict)
    is_active: Mapped[bool] = mapped_column(CheckedBoolean(), default=False, server_default=false())
    created_at: Mapped[datetime] = created_column("UTC")
    updated_at: Mapped[datetime] = updated_column("UTC")
