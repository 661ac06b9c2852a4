"""`shared.cache`: Redis beside `shared.db`, for what may be lost, and a stream and a lock that lose nothing."""

from shared.cache.answers import CachedAnswers
from shared.cache.client import RedisClient, SyncRedisClient
from shared.cache.connection import CacheStats
from shared.cache.errors import CacheAwayError, CacheError, LeadershipLostError
from shared.cache.fills import FillFeed
from shared.cache.leader import Leader
from shared.cache.prices import LatestPrices, Price
from shared.cache.requests import Published, StreamEntry

__all__ = [
    "CacheAwayError",
    "CacheError",
    "CacheStats",
    "CachedAnswers",
    "FillFeed",
    "LatestPrices",
    "Leader",
    "LeadershipLostError",
    "Price",
    "Published",
    "RedisClient",
    "StreamEntry",
    "SyncRedisClient",
]
