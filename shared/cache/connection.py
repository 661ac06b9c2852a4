"""What both clients are made of: the connection, what happens while Redis is away, methods written once for both."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import wraps
from inspect import isawaitable
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from redis import exceptions

from shared.cache.errors import CacheAwayError, CacheError
from shared.cache.values import checked_user_id
from shared.db import InvalidValueError

P = ParamSpec("P")
T = TypeVar("T")
Text = Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]

_log = logging.getLogger(__name__)
_FAILURES = (exceptions.RedisError, OSError)
_LOGIN = (exceptions.AuthenticationError, exceptions.AuthorizationError)
_AWAY = (exceptions.ConnectionError, exceptions.TimeoutError, OSError, exceptions.ReadOnlyError)
_NOT_NOW = ("MISCONF", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "OOM", "command not allowed when used mem")


class Awaiting:
    """Marks a client whose methods are awaited."""

    @staticmethod
    def _run(answer: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return answer


class Blocking:
    """Marks a client whose methods answer. Nothing in them waits for an event loop, so that one step is all of them."""

    @staticmethod
    def _run(answer: Coroutine[Any, Any, T]) -> T:
        try:
            answer.send(None)
        except StopIteration as done:
            result: T = done.value
            return result
        raise AssertionError("a client without asyncio waited for an event loop")


class Method(Generic[P, T]):
    """A method of both clients, from one text: `async` in the one for asyncio.

    `away` makes what is answered while Redis is away; without it `CacheAwayError` is raised.
    """

    def __init__(self, text: Text[P, T], away: Callable[[], T] | None, writes: bool) -> None:
        self._text, self._away, self._writes = text, away, writes
        self.__doc__ = text.__doc__

    @overload
    def __get__(self, client: None, owner: object) -> Method[P, T]: ...
    @overload
    def __get__(self, client: Blocking, owner: object) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: Awaiting, owner: object) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, owner: object) -> Any:
        if client is None:
            return self

        return wraps(self._text)(lambda *args, **kwargs: client._run(self._answer(client, *args, **kwargs)))

    async def _answer(self, client: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._text(client, *args, **kwargs)
        except CacheAwayError:
            client._stats.missed += not self._writes
            client._stats.dropped += self._writes
            if self._away is None:
                raise
            return self._away()


@dataclass
class CacheStats:
    """What was not done since Redis was away: questions that had no answer, and writes that were dropped.

    `away_since` (UTC) is None while it answers; `last_error` is what it or the network said last.
    """

    missed: int = 0
    dropped: int = 0
    away_since: datetime | None = None
    last_error: str | None = None


class Connection:
    """A connection to Redis, with the keys of one user (None: that all share). Each call is sent once."""

    _from_url: Callable[..., Any]
    user_id: str | None = None

    def __init__(self, redis_url: str, *, timeout: float = 1.0, pause: float = 1.0) -> None:
        if not timeout > 0 or not pause >= 0:
            raise InvalidValueError("timeout is more than 0 seconds, and pause 0 or more")
        self.timeout, self._pause = timeout, pause
        self._stats = CacheStats()  # one for this client and all that `for_user` gives
        self._retry_at = [0.0]
        try:
            self._redis = self._from_url(redis_url, protocol=2, socket_timeout=timeout, socket_connect_timeout=timeout)
        except ValueError:
            raise InvalidValueError("this is no address of a Redis; give one such as redis://host:6379/0") from None

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
        other = copy(self)
        other.user_id = user_id
        return other

    async def _ask(self, *command: Any) -> Any:
        """The answer to one command, in one round trip."""
        if time.monotonic() < self._retry_at[0]:
            raise CacheAwayError(f"Redis is away ({self._stats.last_error}), and is not asked for a moment")
        try:
            answer = self._redis.execute_command(*command)
            if isawaitable(answer):
                answer = await answer
        except _FAILURES as error:
            failure = self._named(error)
        else:
            if self._stats.away_since is not None:
                self._stats.away_since, lost = None, (self._stats.missed, self._stats.dropped)
                _log.warning("Redis is back; so far %d reads found nothing and %d writes were dropped", *lost)
            return answer
        raise failure  # out here it does not carry redis-py's own, which may have values in its text

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


def asks(away: Callable[[], Any] | None = None, *, writes: bool = False) -> Callable[[Text[P, T]], Method[P, T]]:
    """Makes a method of both clients from an `async` one."""
    return lambda text: Method(text, away, writes)
