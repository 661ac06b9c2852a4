"""The two clients, for asyncio and without, and what happens while Redis is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

import redis
import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.cache.errors import CacheAwayError, CacheError
from shared.cache.requests import Awaiting, Blocking, Command, Method, Requests, Steps
from shared.cache.values import checked_user_id
from shared.db import InvalidValueError

T = TypeVar("T")
Drive = Generator[Sequence[Command], Any, T]

_log = logging.getLogger(__name__)
_FAILURES = (exceptions.RedisError, OSError)
_LOGIN = (exceptions.AuthenticationError, exceptions.AuthorizationError)
_AWAY = (exceptions.ConnectionError, exceptions.TimeoutError, OSError, exceptions.ReadOnlyError)
_NOT_NOW = ("MISCONF", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "OOM", "command not allowed when used mem")


@dataclass
class CacheStats:
    """What was not done since Redis was away: questions that had no answer, and writes that were dropped.

    `away_since` (UTC) is None while it answers; `last_error` is what it or the network said last.
    """

    missed: int = 0
    dropped: int = 0
    away_since: datetime | None = None
    last_error: str | None = None


class _Client(Requests):
    _redis: Any

    def __init__(self, redis_url: str, *, timeout: float = 1.0, pause: float = 1.0) -> None:
        if not timeout > 0 or not pause >= 0:
            raise InvalidValueError("timeout is more than 0 seconds, and pause 0 or more")
        self.timeout = timeout
        self._pause = pause
        self._stats = CacheStats()  # one for this client and all that `for_user` gives
        self._retry_at = [0.0]
        try:
            self._redis = self._connected_to(redis_url, socket_timeout=timeout, socket_connect_timeout=timeout)
        except ValueError:
            raise InvalidValueError("this is no address of a Redis; give one such as redis://host:6379/0") from None

    def _connected_to(self, redis_url: str, **options: Any) -> Any:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.user_id or 'all'}>"

    @property
    def stats(self) -> CacheStats:
        """What happened so far, to this client and those made from it."""
        return replace(self._stats)

    def for_user(self, user_id: str) -> Self:
        """The same connections with the keys of one user, which no other user's client can reach.

        Raises `TenantScopeError` for what is no user id.
        """
        return self._for(checked_user_id(user_id))

    def for_all(self) -> Self:
        """The same connections with the keys that all share."""
        return self._for(None)

    def _for(self, user_id: str | None) -> Self:
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__, user_id=user_id)
        return other

    def _drive(self, method: Method[Any, T], steps: Steps[T]) -> Drive[T]:
        """The steps of a request; each yield is given the answers, or the exception that came in their place."""
        try:
            commands = next(steps)
            if time.monotonic() < self._retry_at[0]:
                raise CacheAwayError(f"Redis is away ({self._stats.last_error}), and is not asked for a moment")
            while True:
                answers = yield commands
                if isinstance(answers, Exception):
                    commands = steps.throw(self._named(answers))
                else:
                    self._note_answer()
                    commands = steps.send(answers)
        except StopIteration as done:
            result: T = done.value
            return result
        except CacheAwayError:
            self._stats.missed += not method.writes
            self._stats.dropped += method.writes
            if method.away is None:
                raise
            return method.away()

    def _named(self, error: Exception) -> CacheError:
        # Redis repeats the arguments of what it does not understand: they may be anybody's.
        said = f"{type(error).__name__}: {error}".partition("\n")[0].partition(", with args")[0]
        if isinstance(error, _LOGIN):
            return CacheError(f"Redis refused the login ({said}); check user and password of its address")
        if not isinstance(error, _AWAY) and not str(error).startswith(_NOT_NOW):
            return CacheError(f"Redis refused the command ({said})")
        if self._stats.away_since is None:
            self._stats.away_since = datetime.now(UTC)
            _log.warning("Redis is away: reads find nothing, and writes are dropped (%s)", said)
        self._stats.last_error = said
        self._retry_at[0] = time.monotonic() + self._pause
        return CacheAwayError(f"Redis is away ({said}) and nothing was done; start it, or try again later")

    def _note_answer(self) -> None:
        if self._stats.away_since is not None:
            self._stats.away_since = None
            _log.warning("Redis is back; so far %d reads found nothing and %d writes were dropped", *self._lost())

    def _lost(self) -> tuple[int, int]:
        return self._stats.missed, self._stats.dropped


class SyncRedisClient(_Client, Blocking):
    """Redis without asyncio, for the keys that all share; `for_user()` gives a user's. Safe to share between threads.

    While Redis is away, reads answer as if nothing were there and writes are dropped, both counted in `stats`; what has
    to do with streams and locks raises `CacheAwayError`. Nothing waits longer than `timeout` seconds, nothing is sent
    twice, and after a failure nothing is tried for `pause` seconds. A wrong password raises `CacheError`.
    """

    def _connected_to(self, redis_url: str, **options: Any) -> Any:
        return redis.Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0), protocol=2, **options)

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *error: object) -> None:
        self.disconnect()

    def connect(self) -> None:
        """Look whether Redis is there; `CacheError` if it refuses the login. Away is no error: it may come back."""
        self.health_check()

    def disconnect(self) -> None:
        """Close the connections; what is asked later opens new ones."""
        self._redis.connection_pool.disconnect()

    def _run(self, drive: Drive[T]) -> T:
        try:
            commands = next(drive)
            while True:
                commands = drive.send(self._trip(commands))
        except StopIteration as done:
            result: T = done.value
            return result

    def _trip(self, commands: Sequence[Command]) -> Any:
        try:
            if len(commands) == 1:
                return [self._redis.execute_command(*commands[0])]
            with self._redis.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                return _first_error(pipeline.execute(raise_on_error=False))
        except _FAILURES as error:
            return error


class RedisClient(_Client, Awaiting):
    """Redis for asyncio, for the keys that all share; `for_user()` gives a user's. For one event loop.

    Every method is a coroutine, and else as that of `SyncRedisClient`.
    """

    def _connected_to(self, redis_url: str, **options: Any) -> Any:
        return redis.asyncio.Redis.from_url(redis_url, retry=AsyncRetry(NoBackoff(), 0), protocol=2, **options)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.disconnect()

    async def connect(self) -> None:
        """As `SyncRedisClient.connect`."""
        await self.health_check()

    async def disconnect(self) -> None:
        """As `SyncRedisClient.disconnect`."""
        await self._redis.connection_pool.disconnect()

    async def _run(self, drive: Drive[T]) -> T:
        try:
            commands = next(drive)
            while True:
                commands = drive.send(await self._trip(commands))
        except StopIteration as done:
            result: T = done.value
            return result

    async def _trip(self, commands: Sequence[Command]) -> Any:
        try:
            if len(commands) == 1:
                return [await self._redis.execute_command(*commands[0])]
            async with self._redis.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                return _first_error(await pipeline.execute(raise_on_error=False))
        except _FAILURES as error:
            return error


def _first_error(answers: list[Any]) -> Any:
    # redis-py's own error of a pipeline would have the command in its text, and so the values.
    return next((answer for answer in answers if isinstance(answer, Exception)), answers)
