"""Candles that follow the recorder of trades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from shared.db import DatabaseFactory
from shared.market.models import interval_length
from shared.market.repositories import CandleRepository


class CandleFeed:
    """Makes the candles of trades as they are stored, late ones too.

    `Recorder(db, PublicTrade, on_written=CandleFeed(db, "1m", "1h").trades)`. Each batch has its candles read anew from
    the stored trades; what cannot be written is kept and made with the next batch. Raises `InvalidValueError` for what
    is no interval.
    """

    def __init__(self, db: DatabaseFactory, *intervals: str) -> None:
        for interval in intervals:
            interval_length(interval)
        self._db, self._intervals = db, intervals
        self._due: dict[str, tuple[datetime, datetime]] = {}

    def trades(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make the candles in which these stored trades lie, and what is left of the batches before."""
        for row in rows:
            symbol, when = row["symbol"], row["exchange_ts"]
            first, last = self._due.get(symbol, (when, when))
            self._due[symbol] = min(first, when), max(last, when)
        self._db.run_in_transaction(self._make)
        self._due.clear()

    def _make(self, session: Session) -> None:
        for symbol, (first, last) in self._due.items():
            for interval in self._intervals:
                CandleRepository(session).roll_up(symbol, interval, first, last)
