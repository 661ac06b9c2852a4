"""`LatestPrices`: the newest price of each symbol, fed by a recorder after its commits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from shared.cache.client import SyncRedisClient
from shared.db import DatabaseFactory, PublicTradeRepository

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_HASH, _NAMESPACE = "prices", "market"


class Price(NamedTuple):
    """A price, and the exchange's time of the trade that made it (UTC, to the microsecond)."""

    price: Decimal
    exchange_ts: datetime


class LatestPrices:
    """The newest price of each symbol: `Recorder(db, PublicTrade, on_written=prices.note)` feeds it.

    An older trade never takes the place of a newer one, whichever recorder brings it. What Redis does not know, also
    because it is away, is looked up in the database. For asyncio: `await asyncio.to_thread(prices.get, symbols)`.
    """

    def __init__(self, redis: SyncRedisClient, db: DatabaseFactory) -> None:
        self._redis = redis
        self._db = db

    def note(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the newest price of each symbol from trades that are in the database. Raises nothing for Redis."""
        newest: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            there = newest.get(row["symbol"])
            if there is None or row["exchange_ts"] >= there["exchange_ts"]:
                newest[row["symbol"]] = row
        found = {s: ((row["exchange_ts"] - _EPOCH) // _MICROSECOND, Decimal(row["price"])) for s, row in newest.items()}
        self._redis.set_newest(_HASH, found, namespace=_NAMESPACE)

    def get(self, symbols: Iterable[str]) -> dict[str, Price]:
        """The newest price of those symbols that were ever traded."""
        symbols = list(symbols)
        known = self._redis.get_newest(_HASH, symbols, namespace=_NAMESPACE)
        prices = {symbol: Price(price, _EPOCH + at * _MICROSECOND) for symbol, (at, price) in known.items()}
        unknown = [symbol for symbol in symbols if symbol not in prices]
        if unknown:
            with self._db.get_session(read_only=True) as session:
                trades = PublicTradeRepository(session)
                for symbol in unknown:
                    last = next(trades.iter_symbol_range(symbol, reverse=True, page_size=1), None)
                    if last is not None:
                        prices[symbol] = Price(last.price, last.exchange_ts)
        return prices
