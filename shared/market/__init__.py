"""`shared.market`: prices that belong to nobody, and news, in tables beside those of `shared.db`."""

from shared.market.feed import CandleFeed
from shared.market.klines import frame_candles, parse_klines, read_klines
from shared.market.models import Feed, Instrument, InstrumentStatus, Interval, SeenNews, StoredCandle
from shared.market.repositories import (
    CandleRepository,
    FeedRepository,
    InstrumentRepository,
    SeenNewsRepository,
    news_hash,
)

__all__ = [
    "CandleFeed",
    "CandleRepository",
    "Feed",
    "FeedRepository",
    "Instrument",
    "InstrumentRepository",
    "InstrumentStatus",
    "Interval",
    "SeenNews",
    "SeenNewsRepository",
    "StoredCandle",
    "frame_candles",
    "news_hash",
    "parse_klines",
    "read_klines",
]
