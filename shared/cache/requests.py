"""What is asked of Redis, without a connection: the one text of every method of both clients.

A request yields the commands of one round trip, is given their answers, and returns what the caller gets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, overload

from shared.cache.errors import CacheError
from shared.cache.values import checked_names, checked_ttl, decoded, decoded_all, encoded, encoded_all, prefix
from shared.db import InvalidValueError

P = ParamSpec("P")
T = TypeVar("T")
Command = tuple[Any, ...]
Steps = Generator[Sequence[Command], list[Any], T]

NAMESPACE = "trading_bot"
_AT_ONCE = 1000


_SET_ALL = "for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 1], 'EX', ARGV[1]) end"
_STREAMS = "streams"
_KNOWN_FOR = 30 * 24 * 3600
_LOCKS = "locks"
# What is newer than what is there: a number (a time), then the value.
_NEWEST = """
for i = 1, #ARGV, 3 do
  local there = redis.call('HGET', KEYS[1], ARGV[i])
  if not there or tonumber(string.match(there, '^-?%d+')) <= tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. ' ' .. ARGV[i + 2])
  end
end
"""


class StreamEntry(NamedTuple):
    """An entry of a stream: its id, by which it is acknowledged, and its value."""

    id: str
    value: Any


class Published(NamedTuple):
    """What `publish` did: how many entries are new to the stream, and whether its part was unknown before."""

    added: int
    first: bool


_PUBLISH = """
local known, added, now = redis.call('EXISTS', KEYS[2]), 0, redis.call('TIME')[1]
for i = 2, #ARGV, 2 do
  if redis.call('SADD', KEYS[2], ARGV[i]) == 1 then
    redis.call('XADD', KEYS[1], 'MINID', '~', (now - ARGV[1]) * 1000, '*', 'value', ARGV[i + 1])
    added = added + 1
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
return {added, known}
"""


class Blocking:
    """Marks a client whose methods answer."""


class Awaiting:
    """Marks a client whose methods are awaited."""


class Method(Generic[P, T]):
    """A method of the clients, from its steps: `async` in the one for asyncio.

    `away` makes what is answered while Redis is away; without it `CacheAwayError` is raised.
    """

    def __init__(
        self, steps: Callable[Concatenate[Any, P], Steps[T]], away: Callable[[], T] | None, writes: bool
    ) -> None:
        self.steps, self.away, self.writes = steps, away, writes
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, client: None, owner: object) -> Method[P, T]: ...
    @overload
    def __get__(self, client: Blocking, owner: object) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: Awaiting, owner: object) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Any, owner: object) -> Any:
        if client is None:
            return self

        @wraps(self.steps)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client._run(client._drive(self, self.steps(client, *args, **kwargs)))

        return method


def _asks(
    away: Callable[[], Any] | None = None, *, writes: bool = False
) -> Callable[[Callable[Concatenate[Any, P], Steps[T]]], Method[P, T]]:
    return lambda steps: Method(steps, away, writes)


def _nothing() -> Any:
    return None


class Requests:
    """The methods of both clients. A key belongs to its user (None: to all that share) and its namespace."""

    user_id: str | None = None
    timeout = 1.0
    _has_msetex = True  # until the server says no

    def _keys(self, namespace: str, *names: Any) -> list[str]:
        begin = prefix(self.user_id, namespace)
        return [begin + name for name in checked_names(names)]

    @_asks(bool, writes=True)
    def set(self, key: str, value: Any, ttl: int | None = None, namespace: str = NAMESPACE) -> Steps[bool]:
        """Keep a value under a key, for `ttl` seconds (None: for ever). False: Redis is away, and it was dropped."""
        (full,) = self._keys(namespace, key)
        expiry = () if ttl is None else ("EX", checked_ttl(ttl))
        yield [("SET", full, encoded(value, key), *expiry)]
        return True

    @_asks(_nothing)
    def get(self, key: str, namespace: str = NAMESPACE) -> Steps[Any]:
        """The value under a key, or None."""
        (value,) = yield [("GET", *self._keys(namespace, key))]
        return None if value is None else decoded(value)

    @_asks(bool, writes=True)
    def delete(self, key: str, namespace: str = NAMESPACE) -> Steps[bool]:
        """Delete a key; whether it was there."""
        (count,) = yield [("UNLINK", *self._keys(namespace, key))]
        return bool(count)

    @_asks(bool)
    def exists(self, key: str, namespace: str = NAMESPACE) -> Steps[bool]:
        """Whether there is such a key."""
        (count,) = yield [("EXISTS", *self._keys(namespace, key))]
        return bool(count)

    @_asks(bool, writes=True)
    def set_multiple(self, data: Mapping[str, Any], ttl: int | None = None, namespace: str = NAMESPACE) -> Steps[bool]:
        """Keep values under their keys, all of them at once and in one round trip."""
        keys = self._keys(namespace, *data)
        values = encoded_all(data)
        if not keys:
            return True
        pairs = keys + values
        pairs[::2], pairs[1::2] = keys, values
        if ttl is None:
            yield [("MSET", *pairs)]
            return True
        seconds = checked_ttl(ttl)
        if self._has_msetex:
            try:
                yield [("MSETEX", len(keys), *pairs, "EX", seconds)]
                return True
            except CacheError as error:  # before Redis 8.4 and Valkey 9.1
                if "unknown command" not in str(error):
                    raise
                self._has_msetex = False
        yield [("EVAL", _SET_ALL, len(keys), *keys, seconds, *values)]
        return True

    @_asks(dict)
    def get_multiple(self, keys: Iterable[str], namespace: str = NAMESPACE) -> Steps[dict[str, Any]]:
        """The values of those keys that are there, in one round trip."""
        names = checked_names(keys)
        if not names:
            return {}
        (values,) = yield [("MGET", *self._keys(namespace, *names))]
        return decoded_all(names, values)

    @_asks(int, writes=True)
    def delete_multiple(self, keys: Iterable[str], namespace: str = NAMESPACE) -> Steps[int]:
        """Delete keys; how many were there."""
        full = self._keys(namespace, *checked_names(keys))
        if not full:
            return 0
        (count,) = yield [("UNLINK", *full)]
        return int(count)

    @_asks(list)
    def get_keys_by_pattern(self, pattern: str, namespace: str = NAMESPACE) -> Steps[list[str]]:
        """The keys of a namespace that match a pattern (`*`, `?`, `[ab]`), in no order. By SCAN: nobody has to wait."""
        found = yield from self._scan(pattern, namespace)
        begin = len(prefix(self.user_id, namespace).encode())
        return [key[begin:].decode() for key in found]

    @_asks(int, writes=True)
    def clear_namespace(self, namespace: str = NAMESPACE) -> Steps[int]:
        """Delete every key of a namespace; how many there were."""
        found = yield from self._scan("*", namespace)
        deleted = 0
        for start in range(0, len(found), _AT_ONCE):
            (count,) = yield [("UNLINK", *found[start : start + _AT_ONCE])]
            deleted += count
        return deleted

    def _scan(self, pattern: str, namespace: str) -> Steps[list[bytes]]:
        (full,) = self._keys(namespace, pattern)
        found: dict[bytes, None] = {}  # SCAN may name a key twice
        cursor: Any = 0
        while True:
            ((cursor, keys),) = yield [("SCAN", cursor, "MATCH", full, "COUNT", _AT_ONCE)]
            found.update(dict.fromkeys(keys))
            if int(cursor) == 0:
                return list(found)

    @_asks(bool, writes=True)
    def set_hash(self, name: str, mapping: Mapping[str, Any], namespace: str = NAMESPACE) -> Steps[bool]:
        """Set fields of a hash; its other fields stay."""
        (key,) = self._keys(namespace, name)
        fields = [part for f in checked_names(mapping) for part in (f, encoded(mapping[f], f"{name}.{f}"))]
        if fields:
            yield [("HSET", key, *fields)]
        return True

    @_asks(dict)
    def get_hash(self, name: str, namespace: str = NAMESPACE) -> Steps[dict[str, Any]]:
        """All fields of a hash, {} if there is none."""
        (fields,) = yield [("HGETALL", *self._keys(namespace, name))]
        return {field.decode(): decoded(value) for field, value in fields.items()}

    @_asks(_nothing)
    def get_hash_field(self, name: str, field: str, namespace: str = NAMESPACE) -> Steps[Any]:
        """One field of a hash, or None."""
        (value,) = yield [("HGET", *self._keys(namespace, name), *checked_names(field))]
        return None if value is None else decoded(value)

    @_asks(bool, writes=True)
    def set_list(self, name: str, values: Iterable[Any], namespace: str = NAMESPACE) -> Steps[bool]:
        """Put these values in place of a list, at one moment."""
        (key,) = self._keys(namespace, name)
        items = [encoded(value, name) for value in values]
        script = "redis.call('DEL', KEYS[1]) for i = 1, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[i]) end"
        yield [("EVAL", script, 1, key, *items)]
        return True

    @_asks(list)
    def get_list(self, name: str, start: int = 0, end: int = -1, namespace: str = NAMESPACE) -> Steps[list[Any]]:
        """The values of a list from place `start` to `end`, both included; -1 is the last."""
        (values,) = yield [("LRANGE", *self._keys(namespace, name), start, end)]
        return [decoded(value) for value in values]

    @_asks(int, writes=True)
    def append_to_list(self, name: str, value: Any, namespace: str = NAMESPACE) -> Steps[int]:
        """Append a value to a list; its new length, 0 if Redis is away."""
        (length,) = yield [("RPUSH", *self._keys(namespace, name), encoded(value, name))]
        return int(length)

    @_asks(bool, writes=True)
    def set_expiry(self, key: str, ttl: int, namespace: str = NAMESPACE) -> Steps[bool]:
        """Have a key expire in `ttl` seconds; False if it is not there."""
        (done,) = yield [("EXPIRE", *self._keys(namespace, key), checked_ttl(ttl))]
        return bool(done)

    @_asks(lambda: -2)
    def get_ttl(self, key: str, namespace: str = NAMESPACE) -> Steps[int]:
        """The seconds that a key has to live; -1: it has no end, -2: it is not there."""
        (seconds,) = yield [("TTL", *self._keys(namespace, key))]
        return int(seconds)

    @_asks(bool)
    def health_check(self) -> Steps[bool]:
        """Whether Redis answers."""
        yield [("PING",)]
        return True

    @_asks(bool, writes=True)
    def set_newest(self, name: str, mapping: Mapping[str, tuple[int, Any]], namespace: str = NAMESPACE) -> Steps[bool]:
        """Set fields of a hash, each to (number, value), unless the number that is there already is larger."""
        (key,) = self._keys(namespace, name)
        triples = [(f, int(mapping[f][0]), encoded(mapping[f][1], f"{name}.{f}")) for f in checked_names(mapping)]
        if triples:
            yield [("EVAL", _NEWEST, 1, key, *(part for triple in triples for part in triple))]
        return True

    @_asks(dict)
    def get_newest(
        self, name: str, fields: Iterable[str], namespace: str = NAMESPACE
    ) -> Steps[dict[str, tuple[int, Any]]]:
        """What `set_newest` set, of those fields that are there, in one round trip."""
        names = checked_names(fields)
        if not names:
            return {}
        (found,) = yield [("HMGET", *self._keys(namespace, name), *names)]
        parts = {name: text.partition(b" ") for name, text in zip(names, found, strict=True) if text is not None}
        return {name: (int(number), decoded(value)) for name, (number, _, value) in parts.items()}

    @_asks(writes=True)
    def publish(self, stream: str, entries: Mapping[str, Any], part: str = "all") -> Steps[Published]:
        """Append entries, by their identity, to a stream, all or none; those that were published before are left out.

        An entry stays for 30 days, and identities until 30 days after the last of their `part` of the stream. Raises
        `CacheAwayError`.
        """
        names = checked_names(entries)
        if not names:
            return Published(0, first=False)
        keys = self._keys(_STREAMS, stream, f"{stream}:{part}")
        pairs = [part for name in names for part in (name, encoded(entries[name], name))]
        ((added, known),) = yield [("EVAL", _PUBLISH, 2, *keys, _KNOWN_FOR, *pairs)]
        return Published(added, not known)

    @_asks(writes=True)
    def read_stream(
        self,
        stream: str,
        group: str,
        consumer: str,
        *,
        count: int = 100,
        block: float = 0.0,
        again: bool = False,
        idle: float = 60.0,
    ) -> Steps[list[StreamEntry]]:
        """The next entries of a stream for a consumer of a group, about `count`; waits for up to `block` seconds.

        An entry goes to one consumer of the group, and is its own until it acknowledges it. With `again=True`, what it
        was given before and has not acknowledged: ask so after a restart until nothing comes. What another consumer has
        not acknowledged for `idle` seconds is taken over. Raises `CacheAwayError`. `block` is less than the timeout.
        """
        (key,) = self._keys(_STREAMS, stream)
        checked_names([group, consumer])
        if count < 1 or not idle > 0 or not 0 <= block < self.timeout:
            raise InvalidValueError("count is at least 1, idle more than 0 seconds, and block less than the timeout")
        waiting = ("BLOCK", int(block * 1000)) if block else ()
        next_ones = (
            "XREADGROUP",
            "GROUP",
            group,
            consumer,
            "COUNT",
            count,
            *waiting,
            "STREAMS",
            key,
            "0" if again else ">",
        )
        taken_over = ("XAUTOCLAIM", key, group, consumer, int(idle * 1000), "0-0", "COUNT", count)
        try:
            answers = yield [next_ones] if again else [taken_over, next_ones]
        except CacheError as error:
            if "NOGROUP" not in str(error):
                raise
            yield [("EVAL", "return redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')", 1, key, group)]
            answers = yield [next_ones]
        found = [] if len(answers) == 1 else list(answers[0][1])
        for _, entries in answers[-1] or ():
            found += entries
        return [StreamEntry(number.decode(), decoded(fields[b"value"])) for number, fields in found if fields]

    @_asks(writes=True)
    def acknowledge(self, stream: str, group: str, ids: Iterable[str]) -> Steps[int]:
        """Say that entries were dealt with: nobody of the group is given them again. How many had been given."""
        numbers = checked_names(ids)
        if not numbers:
            return 0
        (count,) = yield [("XACK", *self._keys(_STREAMS, stream), group, *numbers)]
        return int(count)

    @_asks(writes=True)
    def lock(self, name: str, token: str, ttl: int) -> Steps[bool]:
        """Take a lock for `ttl` seconds, or hold it for as long again; False if it is another token's."""
        script = (
            "if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) then return 1 end "
            "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('EXPIRE', KEYS[1], ARGV[2]) or 0"
        )
        (held,) = yield [("EVAL", script, 1, *self._keys(_LOCKS, name), token, checked_ttl(ttl))]
        return bool(held)

    @_asks(bool, writes=True)
    def unlock(self, name: str, token: str) -> Steps[bool]:
        """Let go of a lock; whether it was this token's."""
        script = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"
        (done,) = yield [("EVAL", script, 1, *self._keys(_LOCKS, name), token)]
        return bool(done)
