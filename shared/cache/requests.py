"""What is asked of Redis: the one text of every method of both clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple

from shared.cache.connection import Connection, asks
from shared.cache.errors import CacheError
from shared.cache.values import checked_names, checked_ttl, decoded, decoded_all, encoded, encoded_all, prefix
from shared.db import InvalidValueError

Numbered = tuple[int, Any]
NAMESPACE = "trading_bot"
_STREAMS, _LOCKS = "streams", "locks"
_AT_ONCE = 1000
_KNOWN_FOR = 30 * 24 * 3600

_SET_ALL = "for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 1], 'EX', ARGV[1]) end"
_SET_LIST = "redis.call('DEL', KEYS[1]) for i = 1, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[i]) end"
# What is newer than what is there: a number (a time), then the value.
_NEWEST = """
for i = 1, #ARGV, 3 do
  local there = redis.call('HGET', KEYS[1], ARGV[i])
  if not there or tonumber(string.match(there, '^-?%d+')) <= tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. ' ' .. ARGV[i + 2])
  end
end
"""
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
# It says nothing of a group that another consumer has made meanwhile; what else is wrong, the next command says.
_GROUP = "redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')"
_LOCK = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) then return 1 end
return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('EXPIRE', KEYS[1], ARGV[2])
"""
_UNLOCK = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])"


class StreamEntry(NamedTuple):
    """An entry of a stream: its id, by which it is acknowledged, and its value."""

    id: str
    value: Any


class Published(NamedTuple):
    """What `publish` did: how many entries are new to the stream, and whether its part was unknown before."""

    added: int
    first: bool


class Requests(Connection):
    """The methods of both clients. A key belongs to its user (None: to all that share) and its namespace."""

    _has_msetex = True  # until the server says no

    def _keys(self, namespace: str, names: Iterable[str]) -> list[str]:
        begin = prefix(self.user_id, namespace)
        return [begin + name for name in checked_names(names)]

    def _key(self, namespace: str, name: str) -> str:
        return self._keys(namespace, [name])[0]

    async def _run_script(self, script: str, keys: Sequence[str], *args: Any) -> Any:
        return await self._ask("EVAL", script, len(keys), *keys, *args)

    @asks(NoneType)
    async def connect(self) -> None:
        """Look whether Redis is there; `CacheError` if it refuses the login. Away is no error: it may come back."""
        await self._ask("PING")

    @asks(bool)
    async def health_check(self) -> bool:
        """Whether Redis answers."""
        return bool(await self._ask("PING"))

    @asks(bool, writes=True)
    async def set(self, key: str, value: Any, ttl: int | None = None, namespace: str = NAMESPACE) -> bool:
        """Keep a value under a key, for `ttl` seconds (None: for ever). False: Redis is away, and it was dropped."""
        expiry = () if ttl is None else ("EX", checked_ttl(ttl))
        return bool(await self._ask("SET", self._key(namespace, key), encoded(value, key), *expiry))

    @asks(NoneType)
    async def get(self, key: str, namespace: str = NAMESPACE) -> Any:
        """The value under a key, or None."""
        return decoded(await self._ask("GET", self._key(namespace, key)))

    @asks(bool, writes=True)
    async def delete(self, key: str, namespace: str = NAMESPACE) -> bool:
        """Delete a key; whether it was there."""
        return bool(await self._ask("UNLINK", self._key(namespace, key)))

    @asks(bool)
    async def exists(self, key: str, namespace: str = NAMESPACE) -> bool:
        """Whether there is such a key."""
        return bool(await self._ask("EXISTS", self._key(namespace, key)))

    @asks(bool, writes=True)
    async def set_multiple(self, data: Mapping[str, Any], ttl: int | None = None, namespace: str = NAMESPACE) -> bool:
        """Keep values under their keys, all of them at once and in one round trip."""
        keys, values = self._keys(namespace, data), encoded_all(data)
        pairs = [part for pair in zip(keys, values, strict=True) for part in pair]
        if not keys:
            return True
        if ttl is None:
            return bool(await self._ask("MSET", *pairs))
        if self._has_msetex:
            try:
                return bool(await self._ask("MSETEX", len(keys), *pairs, "EX", checked_ttl(ttl)))
            except CacheError as error:  # before Redis 8.4 and Valkey 9.1
                if "unknown command" not in str(error):
                    raise
                self._has_msetex = False
        await self._run_script(_SET_ALL, keys, checked_ttl(ttl), *values)
        return True

    @asks(dict)
    async def get_multiple(self, keys: Iterable[str], namespace: str = NAMESPACE) -> dict[str, Any]:
        """The values of those keys that are there, in one round trip."""
        names = checked_names(keys)
        return decoded_all(names, await self._ask("MGET", *self._keys(namespace, names))) if names else {}

    @asks(int, writes=True)
    async def delete_multiple(self, keys: Iterable[str], namespace: str = NAMESPACE) -> int:
        """Delete keys; how many were there."""
        full = self._keys(namespace, keys)
        return int(await self._ask("UNLINK", *full)) if full else 0

    @asks(list)
    async def get_keys_by_pattern(self, pattern: str, namespace: str = NAMESPACE) -> list[str]:
        """The keys of a namespace that match a pattern (`*`, `?`, `[ab]`), in no order. By SCAN: nobody has to wait."""
        begin = len(prefix(self.user_id, namespace).encode())
        return [key[begin:].decode() for key in await self._scan(pattern, namespace)]

    @asks(int, writes=True)
    async def clear_namespace(self, namespace: str = NAMESPACE) -> int:
        """Delete every key of a namespace; how many there were."""
        found = await self._scan("*", namespace)
        chunks = [found[start : start + _AT_ONCE] for start in range(0, len(found), _AT_ONCE)]
        return sum([await self._ask("UNLINK", *chunk) for chunk in chunks])

    async def _scan(self, pattern: str, namespace: str) -> list[bytes]:
        full = self._key(namespace, pattern)
        found: dict[bytes, None] = {}  # SCAN may name a key twice
        cursor: Any = None
        while cursor != 0:
            cursor, keys = await self._ask("SCAN", cursor or 0, "MATCH", full, "COUNT", _AT_ONCE)
            found.update(dict.fromkeys(keys))
        return list(found)

    @asks(bool, writes=True)
    async def set_hash(self, name: str, mapping: Mapping[str, Any], namespace: str = NAMESPACE) -> bool:
        """Set fields of a hash; its other fields stay."""
        key = self._key(namespace, name)
        fields = [part for f in checked_names(mapping) for part in (f, encoded(mapping[f], f"{name}.{f}"))]
        if fields:
            await self._ask("HSET", key, *fields)
        return True

    @asks(dict)
    async def get_hash(self, name: str, namespace: str = NAMESPACE) -> dict[str, Any]:
        """All fields of a hash, {} if there is none."""
        fields = await self._ask("HGETALL", self._key(namespace, name))
        return {field.decode(): decoded(value) for field, value in fields.items()}

    @asks(NoneType)
    async def get_hash_field(self, name: str, field: str, namespace: str = NAMESPACE) -> Any:
        """One field of a hash, or None."""
        return decoded(await self._ask("HGET", self._key(namespace, name), *checked_names([field])))

    @asks(bool, writes=True)
    async def set_list(self, name: str, values: Iterable[Any], namespace: str = NAMESPACE) -> bool:
        """Put these values in place of a list, at one moment."""
        await self._run_script(_SET_LIST, [self._key(namespace, name)], *(encoded(value, name) for value in values))
        return True

    @asks(list)
    async def get_list(self, name: str, start: int = 0, end: int = -1, namespace: str = NAMESPACE) -> list[Any]:
        """The values of a list from place `start` to `end`, both included; -1 is the last."""
        return [decoded(value) for value in await self._ask("LRANGE", self._key(namespace, name), start, end)]

    @asks(int, writes=True)
    async def append_to_list(self, name: str, value: Any, namespace: str = NAMESPACE) -> int:
        """Append a value to a list; its new length, 0 if Redis is away."""
        return int(await self._ask("RPUSH", self._key(namespace, name), encoded(value, name)))

    @asks(bool, writes=True)
    async def set_expiry(self, key: str, ttl: int, namespace: str = NAMESPACE) -> bool:
        """Have a key expire in `ttl` seconds; False if it is not there."""
        return bool(await self._ask("EXPIRE", self._key(namespace, key), checked_ttl(ttl)))

    @asks(lambda: -2)
    async def get_ttl(self, key: str, namespace: str = NAMESPACE) -> int:
        """The seconds that a key has to live; -1: it has no end, -2: it is not there."""
        return int(await self._ask("TTL", self._key(namespace, key)))

    @asks(bool, writes=True)
    async def set_newest(self, name: str, mapping: Mapping[str, Numbered], namespace: str = NAMESPACE) -> bool:
        """Set fields of a hash, each to (number, value), unless the number that is there already is larger."""
        key = self._key(namespace, name)
        triples = [(f, int(mapping[f][0]), encoded(mapping[f][1], f"{name}.{f}")) for f in checked_names(mapping)]
        if triples:
            await self._run_script(_NEWEST, [key], *(part for triple in triples for part in triple))
        return True

    @asks(dict)
    async def get_newest(self, name: str, fields: Iterable[str], namespace: str = NAMESPACE) -> dict[str, Numbered]:
        """What `set_newest` set, of those fields that are there, in one round trip."""
        names, key = checked_names(fields), self._key(namespace, name)
        found = await self._ask("HMGET", key, *names) if names else []
        parts = {name: text.partition(b" ") for name, text in zip(names, found, strict=True) if text is not None}
        return {name: (int(number), decoded(value)) for name, (number, _, value) in parts.items()}

    @asks(writes=True)
    async def publish(self, stream: str, entries: Mapping[str, Any], part: str = "all") -> Published:
        """Append entries, by their identity, to a stream, all or none; those that were published before are left out.

        An entry stays for 30 days, and identities until 30 days after the last of their `part` of the stream. Raises
        `CacheAwayError`.
        """
        pairs = [part for name in checked_names(entries) for part in (name, encoded(entries[name], name))]
        if not pairs:
            return Published(0, first=False)
        keys = self._keys(_STREAMS, [stream, f"{stream}:{part}"])
        added, known = await self._run_script(_PUBLISH, keys, _KNOWN_FOR, *pairs)
        return Published(added, not known)

    @asks(writes=True)
    async def read_stream(
        self,
        stream: str,
        group: str,
        consumer: str,
        *,
        count: int = 100,
        block: float = 0.0,
        again: bool = False,
        idle: float = 60.0,
    ) -> list[StreamEntry]:
        """The next entries of a stream for a consumer of a group, about `count`; waits for up to `block` seconds.

        An entry goes to one consumer of the group, and is its own until it acknowledges it. With `again=True`, what it
        was given before and has not acknowledged: ask so after a restart until nothing comes. What another consumer has
        not acknowledged for `idle` seconds is taken over. Raises `CacheAwayError`. `block` is less than the timeout.
        """
        key, who = self._key(_STREAMS, stream), checked_names([group, consumer])
        if count < 1 or not idle > 0 or not 0 <= block < self.timeout:
            raise InvalidValueError("count is at least 1, idle more than 0 seconds, and block less than the timeout")
        wait = ("BLOCK", int(block * 1000)) if block else ()
        next_ones = ("XREADGROUP", "GROUP", *who, "COUNT", count, *wait, "STREAMS", key, "0" if again else ">")
        try:
            # By itself and first: what is taken over does not wait for what may come.
            claim = ("XAUTOCLAIM", key, *who, int(idle * 1000), 0, "COUNT", count)
            taken = [] if again else [entry for entry in (await self._ask(*claim))[1] if entry[1]]
            streams = [(key, taken)] if taken else await self._ask(*next_ones)
        except CacheError as error:
            if "NOGROUP" not in str(error):
                raise
            await self._run_script(_GROUP, [key], group)
            streams = await self._ask(*next_ones)
        entries = [entry for _, found in streams or () for entry in found]
        return [StreamEntry(number.decode(), decoded(fields[b"value"])) for number, fields in entries if fields]

    @asks(writes=True)
    async def acknowledge(self, stream: str, group: str, ids: Iterable[str]) -> int:
        """Say that entries were dealt with: nobody of the group is given them again. How many had been given."""
        key, numbers = self._key(_STREAMS, stream), checked_names(ids)
        return int(await self._ask("XACK", key, group, *numbers)) if numbers else 0

    @asks(writes=True)
    async def lock(self, name: str, token: str, ttl: int) -> bool:
        """Take a lock for `ttl` seconds, or hold it for as long again; False if it is another token's."""
        return bool(await self._run_script(_LOCK, [self._key(_LOCKS, name)], token, checked_ttl(ttl)))

    @asks(bool, writes=True)
    async def unlock(self, name: str, token: str) -> bool:
        """Let go of a lock; whether it was this token's."""
        return bool(await self._run_script(_UNLOCK, [self._key(_LOCKS, name)], token))
