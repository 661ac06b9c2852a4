"""The questions, a line or two each, and the roll-up of candles from trades."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urldefrag

from sqlalchemy import func, select

from shared.db import BulkResult, InvalidValueError, PublicTradeRepository, Repository, exact_sum
from shared.market.models import (
    Feed,
    Instrument,
    InstrumentStatus,
    Interval,
    SeenNews,
    StoredCandle,
    interval_length,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MADE = ("open", "high", "low", "close", "volume", "vwap", "trade_count")


class InstrumentRepository(Repository[Instrument]):
    """What is traded, by symbol."""

    model = Instrument

    def get_by_symbol(self, symbol: str) -> Instrument | None:
        """The instrument of this symbol, None if there is none."""
        return self.get_by_id(symbol)

    def get_by_sector(self, sector: str) -> list[Instrument]:
        """Those of a sector."""
        return self._all(self._mine().where(Instrument.sector == sector).order_by(Instrument.symbol))

    def get_trading(self) -> list[Instrument]:
        """Those that are being traded."""
        trading = self._mine().where(Instrument.status == InstrumentStatus.TRADING)
        return self._all(trading.order_by(Instrument.symbol))

    def store(self, rows: Iterable[Any]) -> BulkResult:
        """Insert or renew instruments, each by its symbol; of one that is there, the columns that a row names."""
        return self.bulk_create(rows, on_conflict="update")


class CandleRepository(Repository[StoredCandle]):
    """Candles by symbol and interval ("1m" to "1d"); times are aware UTC, bounds are inclusive.

    Ranges, frames, gaps and the newest candle are those of any stream: `iter_range("BTCUSDT", interval="1m")`,
    `to_pandas("AAPL", interval="1d")`, `latest("AAPL", interval="1d")`.
    """

    model = StoredCandle

    def get_range(
        self,
        symbol: str,
        interval: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        limit: int | None = None,
    ) -> list[StoredCandle]:
        """The candles that begin from `start` to `end`, in order of time; None leaves a side open."""
        return self._some(self._between(self._mine(), symbol, interval, start, end).order_by(_C.open_ts), limit)

    def get_daily(self, symbol: str, start: datetime | None = None, end: datetime | None = None) -> list[StoredCandle]:
        """The candles of days."""
        return self.get_range(symbol, Interval.D1, start, end)

    def get_latest(self, symbol: str, interval: str = Interval.D1) -> StoredCandle | None:
        """The newest candle, None if there is none."""
        return self.latest(symbol, interval=interval)

    def get_volume(
        self, symbol: str, interval: str, start: datetime | None = None, end: datetime | None = None
    ) -> Decimal:
        """The sum of volumes, exact; 0 without candles."""
        summed = self._between(select(exact_sum(_C.volume)), symbol, interval, start, end)
        return self.session.scalar(summed) or Decimal(0)

    def store(self, rows: Iterable[Any]) -> BulkResult:
        """Take candles as somebody tells them, such as `read_klines`, `parse_klines` and `frame_candles` give them.

        One that is stored takes over the columns that the new one names. A candle that cannot be (low above high,
        a negative volume, NaN, a naive time) is left out, and told with its position and the reason.
        """
        return self.bulk_create(rows, on_conflict="update", errors="collect")

    def roll_up(
        self, symbol: str, interval: str, start: datetime | None = None, end: datetime | None = None
    ) -> BulkResult:
        """Make candles from the stored public trades, and write those that are new or have changed.

        From the candle in which `start` lies to the one in which `end` lies, both whole. Without `start`, from the
        newest one that was made so: it may have been under way. Trades of before that, stored since (an older archive,
        say), want a `start`. Again without new trades it writes nothing. An interval without a trade has no candle.
        """
        length = interval_length(interval)
        start = self._newest_made(symbol, interval) if start is None else _beginning(start, length)
        end = None if end is None else _beginning(end, length) + length - timedelta(microseconds=1)
        made = PublicTradeRepository(self.session).candles(symbol, start, end, length)
        if not made:
            return self.bulk_create([])
        stored = self.iter_range(symbol, made[0].open_ts, made[-1].open_ts, interval=interval)
        known = {candle.open_ts: tuple(getattr(candle, name) for name in _MADE) for candle in stored}
        changed = (
            {"symbol": symbol, "interval": interval, "open_ts": when, **dict(zip(_MADE, values, strict=True))}
            for when, values in ((one.open_ts, (*one[1:6], one.vwap, one.count)) for one in made)
            if known.get(when) != values
        )
        return self.bulk_create(changed, on_conflict="update")

    def _newest_made(self, symbol: str, interval: str) -> datetime | None:
        made = self._between(select(func.max(_C.open_ts)), symbol, interval).where(_C.trade_count.is_not(None))
        newest: datetime | None = self.session.scalar(made)
        return newest

    def _between(
        self, statement: Any, symbol: str, interval: str, start: datetime | None = None, end: datetime | None = None
    ) -> Any:
        return statement.where(_C.symbol == symbol, _C.interval == interval, *self._bounds(_C.open_ts, start, end))


class FeedRepository(Repository[Feed]):
    """Sources of news."""

    model = Feed

    def get_active(self) -> list[Feed]:
        """Those that are read, by name."""
        return self._all(self._mine().where(Feed.is_active).order_by(Feed.name, Feed.url))

    def get_by_url(self, url: str) -> Feed | None:
        """The feed of this address, None if there is none."""
        return self._first(self._mine().where(Feed.url == url))

    def note_fetched(self, feed: Feed) -> Feed:
        """Note that it was read now."""
        feed.fetched_ts = datetime.now(UTC)
        return self.update(feed)


class SeenNewsRepository(Repository[SeenNews]):
    """News that was seen. The SHA-256 of its address decides whether it is the same."""

    model = SeenNews

    def see(self, feed: Feed, url: str, title: str, published_ts: datetime | None = None) -> bool:
        """Note a piece of news; True if it was not seen before. Of processes that ask at once, one is told so."""
        row = {"url_hash": news_hash(url), "feed_id": feed.feed_id, "title": title, "url": url}
        return self.bulk_create([row | {"published_ts": published_ts}]).inserted == 1

    def was_seen(self, url: str) -> bool:
        """Whether it was seen before."""
        return self.get_by_id(news_hash(url)) is not None

    def get_recent(self, since: datetime) -> list[SeenNews]:
        """What was seen since then, of all feeds, newest first."""
        recent = self._mine().where(SeenNews.seen_ts >= since)
        return self._all(recent.order_by(SeenNews.seen_ts.desc(), SeenNews.url_hash))


def news_hash(url: str) -> str:
    """What an address is known by: its SHA-256, without spaces around it and without the part behind "#"."""
    return hashlib.sha256(urldefrag(url.strip()).url.encode()).hexdigest()


def _beginning(when: datetime, length: timedelta) -> datetime:
    if when.tzinfo is None:
        raise InvalidValueError("a naive datetime does not say which instant it means; write .replace(tzinfo=UTC)")
    return _EPOCH + (when - _EPOCH) // length * length


_C = StoredCandle
