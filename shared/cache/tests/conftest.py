"""Fixtures: one Redis for a process's tests, one for each test that kills it, and a database beside it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import URL

from shared.cache import RedisClient, SyncRedisClient
from shared.cache.tests.servers import Server, programs
from shared.db import BybitAccount, DatabaseFactory, Run, Strategy, User
from shared.db.testing import (  # noqa: F401 # fixtures
    postgresql_copies,
    postgresql_server,
    postgresql_template,
    postgresql_url,
)

Ask = Callable[..., Any]


@pytest.fixture(scope="session")
def running() -> Iterator[Server]:
    """A Redis of this process's tests."""
    # Not in pytest's own folder, whose path is too long for a socket.
    with tempfile.TemporaryDirectory(prefix="cache-") as folder:
        server = Server(programs()[0], Path(folder), "--appendonly", "no")
        yield server
        server.kill()


@pytest.fixture
def server(running: Server) -> Server:
    """The same, with nothing in it."""
    with redis.Redis.from_url(running.url) as client:
        client.flushall()
    return running


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A Redis to kill, which keeps every answered write."""
    with tempfile.TemporaryDirectory(prefix="cache-") as folder:
        server = Server(programs()[0], Path(folder))
        yield server
        server.kill()


@pytest.fixture
def client(server: Server) -> Iterator[SyncRedisClient]:
    """A client without asyncio."""
    with SyncRedisClient(server.url) as client:
        yield client


@pytest.fixture(params=("sync", "async"))
def ask(request: pytest.FixtureRequest, server: Server) -> Iterator[Ask]:
    """`ask("get", "key")`: a method of either client, for a user if `user_id` is given."""
    if request.param == "sync":
        with SyncRedisClient(server.url) as plain:
            yield lambda name, *args, user_id=None, **options: getattr(
                plain.for_user(user_id) if user_id else plain, name
            )(*args, **options)
        return
    client = RedisClient(server.url)
    with asyncio.Runner() as runner:
        runner.run(client.connect())

        def asked(name: str, *args: Any, user_id: str | None = None, **options: Any) -> Any:
            of = client.for_user(user_id) if user_id else client
            return runner.run(getattr(of, name)(*args, **options))

        yield asked
        runner.run(client.disconnect())


@pytest.fixture
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A database that several processes share: a file, or on PostgreSQL where a test asks for it."""
    url: URL | str = f"sqlite:///{tmp_path / 'grid_bot.db'}"
    if getattr(request, "param", "file") == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    with DatabaseFactory(url) as factory:
        factory.create_tables()
        yield factory


@pytest.fixture
def strategy(db: DatabaseFactory) -> Strategy:
    """A stored strategy of a stored user."""
    with db.get_session() as session:
        user = User(username="alice")
        account = BybitAccount(user=user, account_name="main", environment="testnet")
        strategy = Strategy(account=account, strategy_type="GridStrategy", symbol="BTCUSDT", config_json={})
        session.add(strategy)
    return strategy


@pytest.fixture
def user_id(strategy: Strategy) -> str:
    """Whose strategy it is."""
    return strategy.account.user_id


@pytest.fixture
def run(db: DatabaseFactory, strategy: Strategy, user_id: str) -> Run:
    """A stored run of the strategy."""
    run = Run(user_id=user_id, account_id=strategy.account_id, strategy_id=strategy.strategy_id, run_type="live")
    with db.get_session() as session:
        session.add(run)
    return run
