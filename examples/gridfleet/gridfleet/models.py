"""Gridfleet's own tables: each says whose rows it holds, and all else follows from that."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from shared.db import (
    SHARED_BY_ALL,
    Base,
    BoundedString,
    CheckedInteger,
    Json,
    Money,
    Ownership,
    Stream,
    UTCDateTime,
    one_of,
    parent_column,
    word_column,
)


class OrderStatus(StrEnum):
    """Values of orders.status."""

    OPEN = "open"
    FILLED = "filled"
    CANCELLED = "cancelled"


def _numbered() -> Mapped[int]:
    return mapped_column(CheckedInteger(), primary_key=True, autoincrement=True)


class Order(Base):
    """An order of a run, on an account of the same user."""

    __tablename__ = "orders"
    __ownership__ = Ownership("run_id", references=("account_id",))
    __stream__ = Stream(by="run_id", time="placed_ts", tie="order_id")
    __table_args__ = (
        UniqueConstraint("run_id", "order_id"),
        Index(None, "run_id", "placed_ts"),
        one_of("status", OrderStatus),
    )

    id: Mapped[int] = _numbered()
    run_id: Mapped[str] = parent_column("runs.run_id")
    account_id: Mapped[str] = parent_column("bybit_accounts.account_id", index=True)
    order_id: Mapped[str] = mapped_column(BoundedString(50), comment="Exchange order ID")
    symbol: Mapped[str] = mapped_column(BoundedString(32))
    price: Mapped[Decimal] = mapped_column(Money(never_to_zero=True))
    qty: Mapped[Decimal] = mapped_column(Money(never_to_zero=True))
    placed_ts: Mapped[datetime] = mapped_column(UTCDateTime(), comment="Placing, UTC")
    status: Mapped[str] = word_column(OrderStatus, 10, OrderStatus.OPEN)


class Position(Base):
    """What a run holds of a symbol: one row for each."""

    __tablename__ = "positions"
    __ownership__ = Ownership("run_id")
    __table_args__ = (UniqueConstraint("run_id", "symbol"),)

    id: Mapped[int] = _numbered()
    run_id: Mapped[str] = parent_column("runs.run_id")
    symbol: Mapped[str] = mapped_column(BoundedString(32))
    size: Mapped[Decimal] = mapped_column(Money())
    cost: Mapped[Decimal] = mapped_column(Money(), comment="Paid for it so far")


class Wallet(Base):
    """The balance of a coin on an account at a moment."""

    __tablename__ = "wallets"
    __ownership__ = Ownership("account_id")
    __stream__ = Stream(by="account_id", time="exchange_ts", tie="coin")
    __table_args__ = (UniqueConstraint("account_id", "coin", "exchange_ts"),)

    id: Mapped[int] = _numbered()
    account_id: Mapped[str] = parent_column("bybit_accounts.account_id")
    coin: Mapped[str] = mapped_column(BoundedString(10))
    exchange_ts: Mapped[datetime] = mapped_column(UTCDateTime())
    balance: Mapped[Decimal] = mapped_column(Money())


class GridState(Base):
    """Where a run's grid stands, to go on from after a restart."""

    __tablename__ = "grid_states"
    __ownership__ = Ownership("run_id")

    run_id: Mapped[str] = parent_column("runs.run_id", primary_key=True)
    levels: Mapped[dict[str, Any]] = mapped_column(Json())
    saved_ts: Mapped[datetime] = mapped_column(UTCDateTime())


class Ticker(Base):
    """A price of the exchange at a moment: nobody's, so everybody's."""

    __tablename__ = "tickers"
    __ownership__ = SHARED_BY_ALL
    __stream__ = Stream(by="symbol", time="exchange_ts")
    __table_args__ = (UniqueConstraint("symbol", "exchange_ts"),)

    id: Mapped[int] = _numbered()
    symbol: Mapped[str] = mapped_column(BoundedString(32))
    exchange_ts: Mapped[datetime] = mapped_column(UTCDateTime())
    last_price: Mapped[Decimal] = mapped_column(Money(never_to_zero=True))
