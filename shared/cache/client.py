"""The two clients, for asyncio and without."""

from __future__ import annotations

from functools import partial
from typing import Self

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.cache.connection import Awaiting, Blocking
from shared.cache.requests import Requests


class SyncRedisClient(Requests, Blocking):
    """Redis without asyncio, for the keys that all share; `for_user()` gives a user's. Safe to share between threads.

    While Redis is away, reads answer as if nothing were there and writes are dropped, both counted in `stats`; what has
    to do with streams and locks raises `CacheAwayError`. Nothing waits longer than `timeout` seconds, nothing is sent
    twice, and after a failure nothing is tried for `pause` seconds. A wrong password raises `CacheError`.
    """

    _from_url = partial(redis.Redis.from_url, retry=Retry(NoBackoff(), 0))

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *error: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connections; what is asked later opens new ones."""
        self._redis.connection_pool.disconnect()


class RedisClient(Requests, Awaiting):
    """Redis for asyncio, for the keys that all share; `for_user()` gives a user's. For one event loop.

    Every method is a coroutine, and else as that of `SyncRedisClient`.
    """

    _from_url = partial(redis.asyncio.Redis.from_url, retry=AsyncRetry(NoBackoff(), 0))

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.disconnect()

    async def disconnect(self) -> None:
        """As `SyncRedisClient.disconnect`."""
        await self._redis.connection_pool.disconnect()
