"""The tables: none of their rows belongs to a user, and each that follows others in time says how."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from sqlalchemy import CheckConstraint, Index, UniqueConstraint, true
from sqlalchemy.orm import Mapped, mapped_column

from shared.db import (
    SHARED_BY_ALL,
    Base,
    BoundedString,
    CheckedBoolean,
    CheckedInteger,
    CheckedText,
    InvalidValueError,
    Money,
    Stream,
    UTCDateTime,
    Vocabulary,
    created_column,
    id_column,
    one_of,
    parent_column,
    updated_column,
    word_column,
)


class Interval(StrEnum):
    """Values of candles.interval, shortest first."""

    M1 = "1m"
    M2 = "2m"
    M3 = "3m"
    M5 = "5m"
    M15 = "15m"
    M30 = "30m"
    H1 = "1h"
    H2 = "2h"
    H4 = "4h"
    H6 = "6h"
    H12 = "12h"
    D1 = "1d"


_LENGTHS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def interval_length(interval: str) -> timedelta:
    """How long a candle of an interval lasts. `InvalidValueError` for what is none."""
    if interval not in {*Interval}:
        raise InvalidValueError(f"{interval!r} is not allowed; use one of {', '.join(Interval)}", "candles.interval")
    return int(interval[:-1]) * _LENGTHS[interval[-1]]


class InstrumentStatus(StrEnum):
    """Values of instruments.status."""

    PRE_LAUNCH = "pre_launch"
    TRADING = "trading"
    HALTED = "halted"
    DELISTED = "delisted"


class Instrument(Base):
    """What is traded: a coin, a contract, a share."""

    __tablename__ = "instruments"
    __ownership__ = SHARED_BY_ALL
    __table_args__ = (Index(None, "sector"), one_of("status", InstrumentStatus))
    _repr_names = ("symbol", "status")

    symbol: Mapped[str] = mapped_column(BoundedString(32), primary_key=True)
    name: Mapped[str | None] = mapped_column(BoundedString(255), comment="Company, coin or contract")
    sector: Mapped[str | None] = mapped_column(BoundedString(100))
    industry: Mapped[str | None] = mapped_column(BoundedString(100))
    # Money ends below 10**12, and the largest companies do not.
    market_cap: Mapped[int | None] = mapped_column(CheckedInteger(), comment="Whole units of its currency")
    tick_size: Mapped[Decimal | None] = mapped_column(Money(never_to_zero=True), comment="Smallest step of the price")
    lot_size: Mapped[Decimal | None] = mapped_column(Money(never_to_zero=True), comment="Smallest step of the quantity")
    status: Mapped[str] = word_column(InstrumentStatus, 10, InstrumentStatus.TRADING)
    updated_at: Mapped[datetime] = updated_column()


class StoredCandle(Base):
    """A candle of a symbol, of any interval, from trades or as somebody told it."""

    __tablename__ = "candles"
    __ownership__ = SHARED_BY_ALL
    __stream__ = Stream(by="symbol", time="open_ts", tie="interval")
    __table_args__ = (
        UniqueConstraint("symbol", "interval", "open_ts"),
        Index(None, "symbol", "open_ts", "interval"),
        one_of("interval", Interval),
        CheckConstraint("low <= open AND low <= close AND high >= open AND high >= close", name="low_to_high"),
        CheckConstraint("volume >= 0", name="volume"),
    )
    _repr_names = ("symbol", "interval", "open_ts")

    id: Mapped[int] = mapped_column(CheckedInteger(), primary_key=True, autoincrement=True)
    symbol: Mapped[str] = mapped_column(BoundedString(32))
    interval: Mapped[str] = mapped_column(Vocabulary(Interval, 3))
    open_ts: Mapped[datetime] = mapped_column(UTCDateTime(), comment="Its beginning, UTC; of a day, 0:00 of its date")
    open: Mapped[Decimal] = mapped_column(Money(never_to_zero=True))
    high: Mapped[Decimal] = mapped_column(Money(never_to_zero=True))
    low: Mapped[Decimal] = mapped_column(Money(never_to_zero=True))
    close: Mapped[Decimal] = mapped_column(Money(never_to_zero=True))
    volume: Mapped[Decimal] = mapped_column(Money())
    vwap: Mapped[Decimal | None] = mapped_column(Money(), comment="Mean price weighted by size")
    trade_count: Mapped[int | None] = mapped_column(CheckedInteger(), comment="Where it was made from stored trades")
    dividends: Mapped[Decimal | None] = mapped_column(Money(), comment="Paid for a share at that time")
    splits: Mapped[Decimal | None] = mapped_column(Money(), comment="Shares that one became; 0 or NULL: no split")


class Feed(Base):
    """A source of news."""

    __tablename__ = "feeds"
    __ownership__ = SHARED_BY_ALL
    __table_args__ = (UniqueConstraint("url"),)
    _repr_names = ("name", "is_active")

    feed_id: Mapped[str] = id_column()
    url: Mapped[str] = mapped_column(BoundedString(500))
    name: Mapped[str] = mapped_column(BoundedString(100))
    is_active: Mapped[bool] = mapped_column(CheckedBoolean(), default=True, server_default=true())
    fetched_ts: Mapped[datetime | None] = mapped_column(UTCDateTime(), comment="When it was last read, UTC")
    created_at: Mapped[datetime] = created_column(None)


class SeenNews(Base):
    """A piece of news that was seen; the same one is known by its hash, wherever it comes from."""

    __tablename__ = "seen_news"
    __ownership__ = SHARED_BY_ALL
    __stream__ = Stream(by="feed_id", time="seen_ts", tie="url_hash")
    __table_args__ = (Index(None, "feed_id", "seen_ts", "url_hash"),)
    _repr_names = ("url_hash",)

    url_hash: Mapped[str] = mapped_column(BoundedString(64), primary_key=True, comment="SHA-256 of the address")
    feed_id: Mapped[str] = parent_column("feeds.feed_id")
    title: Mapped[str] = mapped_column(CheckedText())
    url: Mapped[str] = mapped_column(CheckedText())
    published_ts: Mapped[datetime | None] = mapped_column(UTCDateTime(), comment="As the feed says, UTC")
    seen_ts: Mapped[datetime] = created_column(None)
