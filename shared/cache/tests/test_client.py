"""Both clients: what is kept comes back, no key leaves its user, and a Redis that is away stops nobody."""

from __future__ import annotations

import asyncio
import inspect
import math
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.cache import CacheAwayError, CacheError, RedisClient, SyncRedisClient
from shared.cache.tests.conftest import Ask
from shared.cache.tests.servers import Server, programs
from shared.cache.values import decoded, encoded, prefix
from shared.db import InvalidValueError, SharedDBError, TenantScopeError

KEPT: dict[str, Any] = {
    "text": "grün \ud83d",
    "number": 2**70,
    "yes": True,
    "float": 0.1,
    "money": Decimal("65065.80000000"),
    "tiny": Decimal("-1E-27"),
    "time": datetime(2025, 5, 19, 0, 0, 36, 878001, tzinfo=UTC),
    "id": UUID(int=7),
    "list": [1, "a", None, [Decimal("1.10")]],
    "document": {"$decimal": "no tag", "$$time": {"at": datetime(2025, 1, 1, tzinfo=UTC)}, "": None},
    "empty": {},
}
# The methods of the related system's RedisClient, by name.
NAMED = [
    "connect",
    "disconnect",
    "set",
    "get",
    "delete",
    "exists",
    "set_multiple",
    "get_multiple",
    "delete_multiple",
    "get_keys_by_pattern",
    "clear_namespace",
    "set_hash",
    "get_hash",
    "get_hash_field",
    "set_list",
    "get_list",
    "append_to_list",
    "set_expiry",
    "get_ttl",
    "health_check",
]


@pytest.mark.parametrize("name", NAMED)
def test_both_clients_have_every_method_of_the_related_one(name: str) -> None:
    """Under its name, to be awaited in the one for asyncio, and with a docstring."""
    client, plain = RedisClient("redis://127.0.0.1:1"), SyncRedisClient("redis://127.0.0.1:1")
    assert inspect.getdoc(getattr(client, name))
    answer = getattr(plain, name)
    assert inspect.signature(answer) == inspect.signature(getattr(client, name))


@pytest.mark.parametrize("name", KEPT)
def test_a_value_comes_back_as_it_was(ask: Ask, name: str) -> None:
    """Of its own type and to the last digit, from a key, a hash, a list and among many."""
    value = KEPT[name]
    assert ask("set", "key", value) is True
    assert ask("set_multiple", {"a": value, "b": 1}) is True
    assert ask("set_hash", "hash", {"field": value}) is True
    assert ask("set_list", "list", [value, value]) is True
    found = [ask("get", "key"), ask("get_multiple", ["a", "none"])["a"], ask("get_hash", "hash")["field"]]
    found += [ask("get_hash_field", "hash", "field"), *ask("get_list", "list")]
    assert found == [value] * 6
    assert {type(one) for one in found} == {type(value)}
    assert list(map(str, found)) == [str(value)] * 6


DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(fold=0))
    | st.uuids(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(["$time", "$$"]), inner),
    max_leaves=8,
)


@given(DOCUMENTS.filter(lambda value: value is not None))
def test_every_document_has_a_text_that_gives_it_back(value: Any) -> None:
    """Whatever it holds, names that look like our tags included."""
    back = decoded(encoded(value, "key").encode())
    assert back == value
    assert repr(back) == repr(value)


def test_a_time_of_another_zone_comes_back_as_the_same_instant(ask: Ask) -> None:
    """In UTC."""
    noon = datetime(2025, 5, 19, 12, tzinfo=timezone(timedelta(hours=2)))
    ask("set", "noon", noon)
    assert str(ask("get", "noon")) == "2025-05-19 10:00:00+00:00"


LOOP: list[Any] = []
LOOP.append(LOOP)
REFUSED: dict[str, Any] = {
    "nothing": None,
    "not a number": math.nan,
    "infinite": Decimal("Infinity"),
    "naive": datetime(2025, 1, 1),  # noqa: DTZ001 # the mistake that is meant
    "an object": object(),
    "bytes": b"x",
    "a set": {1},
    "a number as a name": {"a": {1: 2}},
    "itself": LOOP,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_before_anything_is_sent(ask: Ask, name: str) -> None:
    """With an error that names the key, and with nothing of the call stored."""
    with pytest.raises(InvalidValueError, match="bad"):
        ask("set_multiple", {"good": 1, "bad": REFUSED[name]})
    assert ask("exists", "good") is False


@pytest.mark.parametrize("ttl", [0, -1, True, 1.5, "60", 2**40])
def test_a_time_to_live_is_whole_seconds(ask: Ask, ttl: Any) -> None:
    """From 1 on; refused before anything is sent."""
    for call in (("set", "key", 1, ttl), ("set_multiple", {"key": 1}, ttl), ("set_expiry", "key", ttl)):
        with pytest.raises(InvalidValueError, match="time to live"):
            ask(*call)
    assert ask("exists", "key") is False


@pytest.mark.parametrize("name", ["", None, 7, b"key", "\ud800"])
def test_a_name_is_text(ask: Ask, name: Any) -> None:
    """Of at least one character, as a key, a field and a namespace."""
    for call in (("get", name), ("get_hash_field", "hash", name), ("get_multiple", ["a", name]), ("get", "a", name)):
        with pytest.raises(InvalidValueError, match="a name"):
            ask(*call)


def test_keys_live_as_long_as_they_were_told(ask: Ask) -> None:
    """A ttl counts, one by one and many at once; -1 stands for ever, -2 for not there."""
    ask("set", "for ever", 1)
    ask("set", "short", 1, 100)
    ask("set_multiple", {"a": 1, "b": 2}, 200)
    assert ask("get_ttl", "for ever") == -1
    assert ask("get_ttl", "none") == -2
    assert 0 < ask("get_ttl", "short") <= 100 < ask("get_ttl", "a") <= 200
    assert ask("set_expiry", "for ever", 300) is True
    assert ask("get_ttl", "for ever") > 200
    assert ask("set_expiry", "none", 300) is False


@pytest.mark.parametrize("program", programs())
def test_many_expire_at_once_on_old_servers_and_new(program: str) -> None:
    """With MSETEX, or where there is none, with a script: in one round trip either way."""
    with tempfile.TemporaryDirectory(prefix="cache-") as folder:
        server = Server(program, Path(folder), "--appendonly", "no")
        try:
            with SyncRedisClient(server.url) as client:
                for _ in range(2):
                    assert client.set_multiple({f"k{n}": Decimal(n) for n in range(500)}, 60)
                assert client.get_multiple(f"k{n}" for n in range(500)) == {f"k{n}": Decimal(n) for n in range(500)}
                assert 0 < client.get_ttl("k499") <= 60
        finally:
            server.kill()


def test_keys_are_deleted_and_counted(ask: Ask) -> None:
    """One by one, many at once, and a whole namespace."""
    ask("set_multiple", {f"k{n}": n for n in range(2500)})
    ask("set", "k0", "other", namespace="elsewhere")
    assert ask("exists", "k0") is True
    assert ask("delete", "k0") is True
    assert ask("delete", "k0") is False
    assert ask("delete_multiple", ["k0", "k1", "k2"]) == 2
    assert ask("delete_multiple", []) == 0
    assert ask("get_multiple", []) == {}
    assert ask("clear_namespace") == 2497
    assert ask("get_keys_by_pattern", "*") == []
    assert ask("get", "k0", namespace="elsewhere") == "other"


def test_a_pattern_finds_its_keys_alone(ask: Ask) -> None:
    """In the namespace, by Redis's own patterns."""
    ask("set_multiple", {"price:BTCUSDT": 1, "price:ETHUSDT": 2, "volume:BTCUSDT": 3, "price*": 4})
    ask("set", "price:XRPUSDT", 5, namespace="trading_bot2")
    assert sorted(ask("get_keys_by_pattern", "price:*")) == ["price:BTCUSDT", "price:ETHUSDT"]
    assert ask("get_keys_by_pattern", r"price\*") == ["price*"]
    assert len(ask("get_keys_by_pattern", "*")) == 4


def test_hashes_and_lists_do_what_they_say(ask: Ask) -> None:
    """A hash keeps its other fields; a list is replaced, appended to, and read from place to place."""
    ask("set_hash", "h", {"a": 1, "b": 2})
    ask("set_hash", "h", {"b": 3})
    ask("set_hash", "h", {})
    assert ask("get_hash", "h") == {"a": 1, "b": 3}
    assert ask("get_hash_field", "h", "none") is None
    assert ask("get_hash", "none") == {}
    ask("set_list", "l", [1, 2, 3])
    ask("set_list", "l", [4, 5])
    assert ask("append_to_list", "l", 6) == 3
    assert ask("get_list", "l") == [4, 5, 6]
    assert ask("get_list", "l", 1, 1) == [5]
    ask("set_list", "l", [])
    assert ask("get_list", "l") == []


def test_a_key_of_another_kind_is_told(ask: Ask) -> None:
    """Redis's own refusal is a `CacheError`, and no sign that Redis is away."""
    ask("set_list", "l", [1])
    with pytest.raises(CacheError, match="WRONGTYPE"):
        ask("get", "l")
    assert ask("get_list", "l") == [1]


NAMES = st.text(min_size=1, max_size=8) | st.text(alphabet=":%*?[]\\^-u ", min_size=1, max_size=8)


def _split(parts: list[str], user: int, namespace: int) -> tuple[str, str, str]:
    return ":".join(parts[:user]), ":".join(parts[user:namespace]), ":".join(parts[namespace:])


@given(parts=st.lists(NAMES, min_size=4, max_size=4))
def test_no_two_names_meet_in_one_key(parts: list[str]) -> None:
    """Wherever the separators of one text are taken for their own; and what all share is nobody's."""
    places = [_split(parts, user, namespace) for user, namespace in ((1, 2), (1, 3), (2, 3))]
    with suppress(InvalidValueError):  # half a character
        keys = {prefix(user, namespace) + key for user, namespace, key in places}
        keys |= {prefix(None, namespace) + key for _, namespace, key in places[:2]}
        keys |= {prefix(None, f"{user}:{namespace}") + key for user, namespace, key in places[:2]}
        assert len(keys) == 7
        for user, namespace, _ in places:
            assert sum(key.startswith(prefix(user, namespace)) for key in keys) == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(user=NAMES, namespace=NAMES, key=NAMES, pattern=NAMES)
def test_no_key_leaves_its_user(client: SyncRedisClient, user: str, namespace: str, key: str, pattern: str) -> None:
    """Whatever one user reads, writes, searches or clears, another user's keys stay as they were."""
    mine, theirs = client.for_user(user), client.for_user(f"{user}'")
    with suppress(InvalidValueError):
        theirs.set(key, "theirs", namespace=namespace)
        client.set(key, "shared", namespace=namespace)
        mine.set(key, "mine", namespace=namespace)
        assert mine.get_keys_by_pattern("*", namespace=namespace) == [key]
        assert set(mine.get_keys_by_pattern(pattern, namespace=namespace)) <= {key}
        assert mine.clear_namespace(namespace) == 1
        assert theirs.get(key, namespace=namespace) == "theirs"
        assert client.get(key, namespace=namespace) == "shared"


@pytest.mark.parametrize("user_id", [None, "", 7])
def test_what_is_no_user_opens_nobody_s_keys(client: SyncRedisClient, user_id: Any) -> None:
    """As in the database."""
    with pytest.raises(TenantScopeError, match="is not a user id"):
        client.for_user(user_id)


def test_a_newer_value_is_never_replaced_by_an_older_one(ask: Ask) -> None:
    """By number, field by field, negative ones included."""
    ask("set_newest", "n", {"a": (5, "five"), "b": (-7, "minus seven")})
    ask("set_newest", "n", {"a": (4, "four"), "b": (-6, "minus six"), "c": (1_747_612_836_878_001, "now")})
    found = {"a": (5, "five"), "b": (-6, "minus six"), "c": (1_747_612_836_878_001, "now")}
    assert ask("get_newest", "n", ["a", "b", "c", "d"]) == found
    assert ask("get_newest", "n", []) == {}


@pytest.fixture(params=("sync", "async"))
def away(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Ask]]:
    """A client of either kind whose Redis is not there, and how to ask it."""
    with asyncio.Runner() as runner:
        kind: Any = SyncRedisClient if request.param == "sync" else RedisClient
        client = kind("redis://127.0.0.1:1", timeout=0.5)

        def ask(name: str, *args: Any, **options: Any) -> Any:
            answer = getattr(client, name)(*args, **options)
            return runner.run(answer) if request.param == "async" else answer

        yield client, ask


def test_a_redis_that_is_away_stops_nobody(away: tuple[Any, Ask], caplog: pytest.LogCaptureFixture) -> None:
    """Reads find nothing, writes are dropped; both are counted, and said once."""
    client, ask = away
    ask("connect")
    assert [ask("get", "k"), ask("exists", "k"), ask("get_hash_field", "h", "f")] == [None, False, None]
    assert [ask("get_multiple", ["k"]), ask("get_hash", "h"), ask("get_newest", "h", ["f"])] == [{}, {}, {}]
    assert [ask("get_list", "l"), ask("get_keys_by_pattern", "*"), ask("get_ttl", "k")] == [[], [], -2]
    assert ask("health_check") is False
    missed = 11
    assert [ask("set", "k", 1), ask("set_multiple", {"k": 1}), ask("delete", "k")] == [False] * 3
    assert [ask("set_hash", "h", {"f": 1}), ask("set_list", "l", [1]), ask("set_expiry", "k", 1)] == [False] * 3
    assert [ask("append_to_list", "l", 1), ask("delete_multiple", ["k"]), ask("clear_namespace")] == [0] * 3
    assert ask("set_newest", "h", {"f": (1, 1)}) is False
    stats = client.stats
    assert (stats.missed, stats.dropped) == (missed, 10)
    assert stats.away_since is not None
    assert "ConnectionError" in str(stats.last_error)
    assert len(caplog.records) == 1


def test_streams_and_locks_raise_while_redis_is_away(away: tuple[Any, Ask]) -> None:
    """What may not be dropped is told to the caller."""
    _, ask = away
    for call in (
        ("publish", "s", {"a": 1}),
        ("read_stream", "s", "g", "c"),
        ("acknowledge", "s", "g", ["1-0"]),
        ("lock", "l", "token", 10),
    ):
        with pytest.raises(CacheAwayError, match="away"):
            ask(*call)


def test_a_server_that_hangs_is_asked_once() -> None:
    """One connection, one timeout, and then nobody waits for it until the pause is over."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections: list[socket.socket] = []

        def take() -> None:
            with suppress(OSError):
                while True:
                    connections.append(listener.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        client = SyncRedisClient(f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout=0.2, pause=60)
        for _ in range(50):
            assert client.get("key") is None
        client.disconnect()
        assert len(connections) == 1
        assert client.stats.missed == 50
        for connection in connections:
            connection.close()


def test_redis_killed_and_back_under_load(own_server: Server) -> None:
    """No caller sees an error, what was answered is there afterwards, and what was not is counted."""
    client = SyncRedisClient(own_server.url, timeout=0.5, pause=0)
    answered: list[str] = []
    dropped = 0
    down = threading.Event()

    def kill_and_start() -> None:
        down.wait(10)
        own_server.kill()
        own_server.start()

    killer = threading.Thread(target=kill_and_start)
    killer.start()
    number = 0
    while killer.is_alive() or number < 500:
        if client.set(f"k{number}", number):
            answered.append(f"k{number}")
        else:
            dropped += 1
        number += 1
        if number == 300:
            down.set()
    killer.join()
    assert client.set("after", "all") is True
    assert dropped == client.stats.dropped > 0
    assert client.stats.away_since is None
    found = client.get_multiple(answered)
    assert len(found) == len(answered)
    client.disconnect()


def test_a_stopped_server_is_found_again(own_server: Server) -> None:
    """A server that hangs costs its timeout, and is used again once it goes on."""
    with SyncRedisClient(own_server.url, timeout=0.2, pause=0) as client:
        client.set("key", 1)
        own_server.signal(signal.SIGSTOP)
        assert client.get("key") is None
        own_server.signal(signal.SIGCONT)
        assert client.get("key") == 1  # and not an answer that came too late


def test_a_login_that_is_refused_is_an_error_and_shows_no_password() -> None:
    """It passes by nothing but a correction, so it is not taken for a Redis that is away."""
    with tempfile.TemporaryDirectory(prefix="cache-") as folder:
        server = Server(programs()[0], Path(folder), "--requirepass", "right")
        try:
            for url in (server.url, server.url.replace("unix://", "unix://:hunter2@")):
                client = SyncRedisClient(url)
                with pytest.raises(CacheError) as caught:
                    client.connect()
                assert not isinstance(caught.value, CacheAwayError)
                assert "hunter2" not in f"{caught.value!r} {client!r}"
                client.disconnect()
            with SyncRedisClient(server.url.replace("unix://", "unix://:right@")) as client:
                assert client.health_check()
        finally:
            server.kill()


@pytest.mark.parametrize("url", ["http://user:hunter2@host", "redis://:hunter2@host:port", ""])
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    """At once, when the client is made."""
    with pytest.raises(InvalidValueError, match="no address") as caught:
        SyncRedisClient(url)
    assert "hunter2" not in str(caught.value)


def test_an_error_shows_no_value(client: SyncRedisClient, server: Server) -> None:
    """Redis repeats what it does not understand; that is left out."""
    with redis.Redis.from_url(server.url) as plain:
        plain.config_set("maxmemory", "1")
        try:
            assert client.set("key", "hunter2") is False  # full, which passes
            assert client.stats.dropped == 1
            assert "hunter2" not in str(client.stats)
        finally:
            plain.config_set("maxmemory", "0")
    assert issubclass(CacheError, SharedDBError)
