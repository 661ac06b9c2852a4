"""The stream of fills: each once, and none lost, whoever is killed."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from shared.cache import CacheAwayError, FillFeed, SyncRedisClient
from shared.cache.tests.conftest import Ask
from shared.cache.tests.servers import Server
from shared.db import DatabaseFactory, PrivateExecution, PrivateExecutionRepository, Recorder, Run, TenantScopeError
from shared.db.tests.support import execution_values, in_children

Streamed = list[dict[str, Any]]


def _read(client: Any, consumer: str = "one", group: str = "risk", **options: Any) -> Streamed:
    """What a consumer is given until nothing comes, acknowledged."""
    found: Streamed = []
    while entries := client.read_stream("fills", group, consumer, **options):
        found += [entry.value for entry in entries]
        client.acknowledge("fills", group, [entry.id for entry in entries])
    return found


def _ids(fills: Streamed) -> list[str]:
    return [fill["exec_id"] for fill in fills]


def _expected(*numbers: int) -> list[str]:
    return [f"exec-{number}" for number in numbers]


@pytest.fixture
def mine(client: SyncRedisClient, user_id: str) -> SyncRedisClient:
    """The client of the run's user."""
    return client.for_user(user_id)


@pytest.fixture
def feed(mine: SyncRedisClient, db: DatabaseFactory) -> Iterator[FillFeed]:
    """A feed of the user's fills."""
    feed = FillFeed(mine, db, pause=0.01)
    yield feed
    feed.close()


def test_a_recorder_feeds_the_stream(
    db: DatabaseFactory, mine: SyncRedisClient, feed: FillFeed, run: Run, user_id: str
) -> None:
    """What was committed comes once, as the database has it, whether it was given as text or read from there."""
    with Recorder(db, PrivateExecution, user_id=user_id, on_written=feed) as recorder:
        for number in range(3):
            recorder.add([execution_values(run, number, exec_price="95900.1"), execution_values(run, number)])
            recorder.flush()
        recorder.add([execution_values(run, 3, side="Neither")])
    fills = _read(mine)
    assert _ids(fills) == _expected(0, 1, 2)
    with db.get_session(user_id=user_id) as session:
        stored = [row._asdict() for row in PrivateExecutionRepository(session).iter_run_range(run.run_id)]
    assert [{k: str(v) for k, v in fill.items()} for fill in fills] == [
        {k: str(v) for k, v in row.items()} for row in stored
    ]


def test_the_stream_is_its_user_s_alone(client: SyncRedisClient, db: DatabaseFactory, mine: SyncRedisClient) -> None:
    """Nobody else reads it, and without a user there is no feed."""
    mine.publish("fills", {"exec-0": 1})
    assert client.for_user("bob").read_stream("fills", "risk", "one") == []
    assert client.read_stream("fills", "risk", "one") == []
    with pytest.raises(TenantScopeError):
        FillFeed(client, db)


def test_what_was_published_before_is_left_out(ask: Ask) -> None:
    """By its identity within a part; `first` says that nothing of the part was known."""
    assert tuple(ask("publish", "s", {"a": 1, "b": 2}, "run-1")) == (2, True)
    assert tuple(ask("publish", "s", {"b": 2, "c": 3}, "run-1")) == (1, False)
    assert tuple(ask("publish", "s", {"a": 1}, "run-2")) == (1, True)
    assert tuple(ask("publish", "s", {}, "run-3")) == (0, False)
    assert [entry.value for entry in ask("read_stream", "s", "g", "c")] == [1, 2, 3, 1]


def test_each_entry_goes_to_one_consumer_of_a_group(ask: Ask) -> None:
    """And to one of every group, at most `count` at a time."""
    ask("publish", "s", {str(n): n for n in range(6)})
    shares = [ask("read_stream", "s", "g", consumer, count=2) for consumer in ("a", "b", "a", "b")]
    assert [[entry.value for entry in share] for share in shares] == [[0, 1], [2, 3], [4, 5], []]
    assert len(ask("read_stream", "s", "other", "a")) == 6


def test_consumers_that_start_at_once_share_a_group(server: Server) -> None:
    """Whichever of them makes it, of many streams that nobody has read before: none is refused."""

    def read(number: int) -> int:
        with SyncRedisClient(server.url) as client:
            return sum(len(client.read_stream(f"s{n}", "g", f"c{number}")) for n in range(300))

    assert in_children(2, read) == [0, 0]


def test_a_consumer_that_starts_again_is_given_what_it_did_not_acknowledge(ask: Ask) -> None:
    """And nothing that it did."""
    ask("publish", "s", {str(n): n for n in range(4)})
    entries = ask("read_stream", "s", "g", "a")
    assert ask("acknowledge", "s", "g", [entry.id for entry in entries[:2]]) == 2
    assert [entry.value for entry in ask("read_stream", "s", "g", "a", again=True)] == [2, 3]
    assert ask("read_stream", "s", "g", "a") == []
    assert ask("acknowledge", "s", "g", [entry.id for entry in entries[2:]]) == 2
    assert ask("acknowledge", "s", "g", []) == 0
    assert ask("read_stream", "s", "g", "a", again=True) == []


def test_what_a_dead_consumer_had_is_taken_over(ask: Ask) -> None:
    """After `idle` seconds, by whoever asks next; not before."""
    ask("publish", "s", {"a": 1})
    assert len(ask("read_stream", "s", "g", "dead")) == 1
    assert ask("read_stream", "s", "g", "alive") == []
    found: list[Any] = []
    while not found:
        found = ask("read_stream", "s", "g", "alive", idle=0.001)
    assert [entry.value for entry in found] == [1]


def test_a_reader_waits_for_what_comes(client: SyncRedisClient) -> None:
    """Up to `block` seconds, which are fewer than the client's timeout."""
    assert client.read_stream("s", "g", "a") == []
    writer = threading.Timer(0.05, client.publish, ["s", {"a": 1}])
    writer.start()
    found: list[Any] = []
    while not found:
        found = client.read_stream("s", "g", "a", block=0.9)
    writer.join()
    assert [entry.value for entry in found] == [1]
    for wrong in ({"block": 1.0}, {"block": -1}, {"count": 0}, {"idle": 0}):
        with pytest.raises(ValueError, match="less than the timeout"):
            client.read_stream("s", "g", "a", **wrong)


def test_nothing_is_lost_when_redis_is_killed_under_load(
    db: DatabaseFactory, own_server: Server, run: Run, user_id: str
) -> None:
    """What was committed meanwhile comes when it is back, without another fill, once each; recording goes on."""
    with SyncRedisClient(own_server.url, pause=0) as client:
        mine = client.for_user(user_id)
        feed = FillFeed(mine, db, pause=0.01)
        seen: Streamed = []
        with Recorder(db, PrivateExecution, user_id=user_id, max_rows=5, on_written=feed) as recorder:
            for number in range(200):
                if number == 60:
                    own_server.kill()
                    with pytest.raises(CacheAwayError):
                        mine.read_stream("fills", "risk", "one")
                recorder.add([execution_values(run, number)])
                if number < 60:
                    seen += _read(mine)
            recorder.flush()
            assert recorder.stats().callback_errors == 0
            assert feed.behind == {run.run_id}
            own_server.start()
            while feed.behind:
                pass
        seen += _read(mine)
        feed.close()
        assert _ids(seen) == _expected(*range(200))


def test_a_redis_that_lost_its_data_is_filled_again(
    db: DatabaseFactory, server: Server, mine: SyncRedisClient, feed: FillFeed, run: Run, user_id: str
) -> None:
    """With the run's next fill; the group reads from the beginning."""
    with Recorder(db, PrivateExecution, user_id=user_id, on_written=feed) as recorder:
        recorder.add([execution_values(run, number) for number in range(3)])
        recorder.flush()
        assert _ids(_read(mine)) == _expected(0, 1, 2)
        with redis.Redis.from_url(server.url) as plain:
            plain.flushall()
        recorder.add([execution_values(run, 3)])
        recorder.flush()
    assert sorted(_ids(_read(mine))) == _expected(0, 1, 2, 3)


def _write_and_die(url: str, db: DatabaseFactory, run: Run, spool: Path, death: str) -> None:
    feed = FillFeed(SyncRedisClient(url).for_user(run.user_id), db)

    def die_at_50(rows: Sequence[Mapping[str, Any]]) -> None:
        last = rows[-1]["exec_id"] == "exec-50"
        if death == "after" or not last:
            feed(rows)
        if last:
            os._exit(9)

    with Recorder(db, PrivateExecution, user_id=run.user_id, spool=spool, max_rows=5, on_written=die_at_50) as recorder:
        for number in range(51):
            recorder.add([execution_values(run, number)])
            recorder.flush()


def _read_and_die(url: str, user_id: str, seen: Path) -> None:
    client, count = SyncRedisClient(url).for_user(user_id), 0
    while True:
        for entry in client.read_stream("fills", "risk", "one", count=10, block=0.5):
            count += 1
            if count == 17:
                os._exit(9)
            with seen.open("a") as file:
                file.write(entry.value["exec_id"] + "\n")
            client.acknowledge("fills", "risk", [entry.id])


@pytest.mark.parametrize("death", ["before", "after"])
def test_nothing_is_lost_when_either_side_is_killed(
    db: DatabaseFactory, server: Server, mine: SyncRedisClient, run: Run, user_id: str, death: str, tmp_path: Path
) -> None:
    """A writer between its commit and the stream, or just behind; a reader that has not acknowledged."""
    spool, read = tmp_path / "spool", tmp_path / "read"
    fork = multiprocessing.get_context("fork").Process
    reader = fork(target=_read_and_die, args=(server.url, user_id, read))
    writer = fork(target=_write_and_die, args=(server.url, db, run, spool, death))
    for process in (reader, writer):
        process.start()
    for process in (reader, writer):
        process.join()
        assert process.exitcode == 9
    feed = FillFeed(mine, db)
    with Recorder(db, PrivateExecution, user_id=user_id, spool=spool, on_written=feed) as recorder:
        recorder.add([execution_values(run, 51)])
    feed.close()
    seen = [*read.read_text().split(), *_ids(_read(mine, again=True)), *_ids(_read(mine))]
    assert seen == _expected(*range(52))


def test_a_feed_brings_what_a_dead_one_left_behind(
    db: DatabaseFactory, mine: SyncRedisClient, feed: FillFeed, run: Run, user_id: str
) -> None:
    """A process that ended while Redis was away: the next one's first fill, or `catch_up`, brings the run's others."""
    with db.get_session(user_id=user_id) as session:
        PrivateExecutionRepository(session).bulk_create([execution_values(run, number) for number in range(1200)])
    feed.catch_up(run.run_id)
    feed.catch_up(run.run_id)
    assert _ids(_read(mine, count=5000)) == _expected(*range(1200))
