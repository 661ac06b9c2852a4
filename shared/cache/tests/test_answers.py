"""Cached answers: asked once, and again after every commit that may change them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from shared.cache import CachedAnswers, SyncRedisClient
from shared.cache.tests.servers import Server
from shared.db import (
    DatabaseFactory,
    InvalidValueError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Run,
)
from shared.db.tests.support import execution_values, trade_values

Question = Callable[[], Any]


class Counted:
    """The number of trades, asked of the database, and how often it was."""

    def __init__(self, db: DatabaseFactory) -> None:
        self.db = db
        self.times = 0

    def __call__(self) -> int:
        """Ask."""
        self.times += 1
        with self.db.get_session(read_only=True) as session:
            return len(list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT")))


def _store(db: DatabaseFactory, number: int) -> None:
    with db.get_session() as session:
        PublicTradeRepository(session).bulk_create([trade_values(number)])


@pytest.fixture
def question(db: DatabaseFactory) -> Counted:
    """A question."""
    return Counted(db)


def test_an_answer_is_kept_until_a_commit_writes_its_table(
    db: DatabaseFactory, client: SyncRedisClient, question: Counted, run: Run
) -> None:
    """Asked once; again after a commit to its table, by any session of the factory; not after one to another table."""
    answers = CachedAnswers(client, db)
    answers.get("count", [PublicTrade], question)  # there were no marks yet
    assert [answers.get("count", [PublicTrade], question) for _ in range(3)] == [0] * 3
    before = question.times
    _store(db, 1)
    assert [answers.get("count", [PublicTrade], question) for _ in range(3)] == [1] * 3
    assert question.times == before + 1
    with db.get_session(user_id=run.user_id) as session:
        PrivateExecutionRepository(session).bulk_create([execution_values(run)])
    assert answers.get("count", [PublicTrade], question) == 1
    assert question.times == before + 1
    assert answers.get("count", [PublicTrade, PrivateExecution], question) == 1
    assert question.times > before + 1


def test_another_process_s_commit_counts_too(
    db: DatabaseFactory, client: SyncRedisClient, question: Counted, server: Server
) -> None:
    """Whose factory has cached answers on the same Redis."""
    answers = CachedAnswers(client, db)
    for _ in range(2):
        assert answers.get("count", [PublicTrade], question) == 0
    with DatabaseFactory(db.settings) as other, SyncRedisClient(server.url) as redis:
        CachedAnswers(redis, other)
        _store(other, 1)
    assert answers.get("count", [PublicTrade], question) == 1


def test_a_commit_between_question_and_answer_makes_it_not_count(db: DatabaseFactory, client: SyncRedisClient) -> None:
    """An answer that was read before a commit is not kept past it."""
    answers = CachedAnswers(client, db)
    count = Counted(db)

    def slow() -> int:
        read = count()
        _store(db, 1)
        return read

    for _ in range(2):
        answers.get("other", [PublicTrade], count)
    assert answers.get("count", [PublicTrade], slow) == 0
    assert answers.get("count", [PublicTrade], count) == 1


def test_an_answer_is_exact_and_may_be_none(db: DatabaseFactory, client: SyncRedisClient) -> None:
    """Of its own type, whatever a key may hold, and None."""
    answers = CachedAnswers(client, db)
    answers.get("first", [PublicTrade], lambda: 1)  # there were no marks
    values: tuple[Any, ...] = (None, Decimal("1.10"), {"a": [None]})
    for value in values:
        asked = iter([value])
        for _ in range(3):
            found = answers.get(repr(value), [PublicTrade], partial(next, asked))
            assert found == value
            assert type(found) is type(value)
    with pytest.raises(InvalidValueError, match="which tables"):
        answers.get("key", [], lambda: 1)


def test_an_answer_is_its_user_s_alone(db: DatabaseFactory, client: SyncRedisClient) -> None:
    """The same key of another user is another answer; a commit renews both."""
    of = {user: CachedAnswers(client.for_user(user), db) for user in ("alice", "bob")}
    for _ in range(2):
        for user, answers in of.items():
            assert answers.get("key", [PublicTrade], partial(str, user)) == user
    _store(db, 1)
    for answers in of.values():
        assert answers.get("key", [PublicTrade], lambda: "again") == "again"


def test_without_redis_every_question_is_put(db: DatabaseFactory, question: Counted) -> None:
    """And commits go on."""
    answers = CachedAnswers(SyncRedisClient("redis://127.0.0.1:1"), db)
    for number in range(3):
        assert answers.get("count", [PublicTrade], question) == number
        _store(db, number)
    assert question.times == 3


def test_a_commit_while_redis_was_away_is_told_when_it_is_back(db: DatabaseFactory, own_server: Server) -> None:
    """Answers from before the outage do not count any more, under load as well."""
    with SyncRedisClient(own_server.url, pause=0) as client:
        answers = CachedAnswers(client, db)
        count = Counted(db)
        for _ in range(3):
            assert answers.get("count", [PublicTrade], count) == 0
        own_server.kill()
        _store(db, 0)
        restart = threading.Thread(target=own_server.start)
        restart.start()
        while restart.is_alive():
            assert answers.get("count", [PublicTrade], count) == 1
        restart.join()
        before = count.times
        assert [answers.get("count", [PublicTrade], count) for _ in range(4)] == [1] * 4
        assert count.times <= before + 2
