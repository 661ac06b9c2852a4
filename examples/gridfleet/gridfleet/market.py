"""The market recorder: prices of the exchange, for all users."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

from sqlalchemy import select

from gridfleet.models import Ticker
from shared.db import DatabaseFactory


class MarketRecorder:
    """Stores prices. A price that comes twice is stored once."""

    def __init__(self, db: DatabaseFactory) -> None:
        self._db = db

    def record(self, symbol: str, prices: Iterable[tuple[datetime, Decimal]]) -> int:
        """Store prices of a symbol with their times (UTC); how many are new."""
        given = dict(prices)
        with self._db.get_session() as session:
            known = select(Ticker.exchange_ts).where(Ticker.symbol == symbol, Ticker.exchange_ts.in_(list(given)))
            there = set(session.scalars(known))
            new = [
                Ticker(symbol=symbol, exchange_ts=when, last_price=price)
                for when, price in given.items()
                if when not in there
            ]
            session.add_all(new)
        return len(new)
