"""The market recorder: prices of the exchange, for all users."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from gridfleet.models import Ticker
from shared.db import DatabaseFactory, Recorder


class MarketRecorder:
    """Stores prices, in batches and behind a journal on disk. A price that comes twice is stored once."""

    def __init__(self, db: DatabaseFactory, spool: Path | None = None) -> None:
        self._recorder = Recorder(db, Ticker, spool=spool)

    def record(self, symbol: str, prices: Iterable[tuple[datetime, Decimal]]) -> None:
        """Take prices of a symbol with their times (UTC)."""
        self._recorder.add({"symbol": symbol, "exchange_ts": when, "last_price": price} for when, price in prices)

    def close(self) -> int:
        """Write what was taken; how many prices were new to the database."""
        self._recorder.close()
        return self._recorder.stats().written
