"""How three related systems are used at their doors, here with other names: asyncio with Redis, FastAPI, and Flask.

Behind real servers, on every database.
"""
# No `from __future__ import annotations`: FastAPI reads those of functions made here, by names that are local.

import asyncio
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Header
from flask import Flask, request
from sqlalchemy import URL
from sqlalchemy.orm import Session

from shared.cache import RedisClient, SyncRedisClient
from shared.cache.tests.servers import Server, programs
from shared.db import DatabaseFactory, User, initialize_database
from shared.db.tests.serving import uvicorn_serving, werkzeug_serving
from shared.db.web import FastAPIDoor, FlaskDoor
from shared.fleet import Bot, BotRepository, BotType, Signal, SignalRepository, Trade, TradeRepository


def trade(bot: Bot, number: int, pnl: str) -> Trade:
    """An executed trade of a bot."""
    return Trade(
        bot_id=bot.bot_id,
        trade_id=f"trade-{number}",
        ts=datetime(2025, 5, 19, 12, number, tzinfo=UTC),
        symbol="BTCUSDT",
        side="Buy",
        quantity=Decimal("0.1"),
        price=Decimal(50000),
        status="filled",
        pnl=Decimal(pnl),
    )


@pytest.fixture
def redis_server() -> Iterator[Server]:
    """A Redis of the test's own, to be stopped."""
    with tempfile.TemporaryDirectory(prefix="doors-") as folder:
        server = Server(programs()[0], Path(folder), "--appendonly", "no")
        yield server
        server.kill()


def test_the_async_module_s_usage_runs(db: DatabaseFactory, redis_server: Server) -> None:
    """A user is created and a bot's trades and sum are asked in one session; prices and a portfolio are in Redis."""

    async def main() -> None:
        async with db.get_async_session() as session:
            user = User(username="trader1", email="trader@example.com")
            session.add(user)
            await session.flush()
            bot = Bot(user_id=user.user_id, name="grid", bot_type=BotType.PLATFORM)
            session.add(bot)
            await session.flush()
            session.add_all([trade(bot, number, "1.00000001") for number in range(12)])
        async with db.get_async_session(user_id=user.user_id) as session:
            trades = await session.run_sync(lambda s: TradeRepository(s).get_by_bot(bot.bot_id, limit=10))
            totals = await session.run_sync(lambda s: TradeRepository(s).get_totals(bot.bot_id))
            assert await session.get(Bot, bot.bot_id) is not None
        assert [one.trade_id for one in trades] == [f"trade-{number}" for number in range(11, 1, -1)]
        assert totals.pnl == Decimal("12.00000012")
        found = await db.arun(BotRepository.get_by_name, user.user_id, "grid", user_id=user.user_id)
        assert found is not None

        async with RedisClient(redis_server.url) as redis_client:
            await redis_client.connect()
            await redis_client.set("price:BTCUSDT", 50000, ttl=60)
            assert await redis_client.get("price:BTCUSDT") == 50000
            assert 0 < await redis_client.get_ttl("price:BTCUSDT") <= 60
            await redis_client.set_hash("portfolio:user1", {"total_value": 10000, "positions": 5})
            assert await redis_client.get_hash("portfolio:user1") == {"total_value": 10000, "positions": 5}
            assert await redis_client.health_check()

    asyncio.run(main())


def test_health_asks_a_real_redis_and_notices_that_it_has_gone(db: DatabaseFactory, redis_server: Server) -> None:
    """It is one report over the database and the store beside it."""
    with SyncRedisClient(redis_server.url) as client:
        db.add_store("cache", client.health_check)
        health = db.health()
        assert [(store.name, store.reachable) for store in health.stores] == [("cache", True)]
        assert health.problems == ()
        redis_server.kill()
        health = db.health()
        assert health.reachable
        assert [(store.name, store.reachable) for store in health.stores] == [("cache", False)]
        assert any(problem.startswith("the store cache does not answer") for problem in health.problems)


def test_the_sqlite_bots_fastapi_usage_runs(db: DatabaseFactory) -> None:
    """Signals are stored and listed by requests, each in its own user's session; another user sees none of them."""
    app = FastAPI()

    def current_user(x_user: Annotated[str | None, Header()] = None) -> str | None:
        return x_user

    door = FastAPIDoor(app, db, user=current_user)

    @app.get("/signals")
    def get_signals(session: Annotated[Session, door.session]) -> list[dict[str, Any]]:
        found = session.query(Signal).filter(Signal.test_mode == False).limit(10).all()  # noqa: E712 # as it stands there
        return [{"symbol": one.symbol, "price": str(one.price), "strategies": dict(one.strategies)} for one in found]

    @app.post("/signals", status_code=201)
    def add_signal(session: Annotated[Session, door.session]) -> None:
        user_id = session.info["user_id"]
        bot = BotRepository(session).get_by_name(user_id, "grid")
        if bot is None:
            bot = BotRepository(session).create(Bot(user_id=user_id, name="grid", bot_type=BotType.PLATFORM))
        session.add(
            Signal(
                bot_id=bot.bot_id,
                ts=datetime.now(UTC),
                symbol="BTCUSD",
                price=Decimal("50000.00"),
                final_signal="BUY",
                final_confidence=Decimal("0.85"),
                aggregation_method="weighted_average",
                strategies={"sentiment": {"signal": "BUY", "confidence": 0.9}},
                test_mode=False,
                bot_version="1.0.0",
            )
        )
        session.commit()

    with db.get_session() as session:
        session.add_all([User(user_id=name, username=name) for name in ("ann", "bob")])
    with uvicorn_serving(app) as ask:
        assert ask("POST", "/signals", "ann")[0] == 201
        status, signals = ask("GET", "/signals", "ann")
        assert status == 200
        assert [(one["symbol"], Decimal(one["price"])) for one in signals] == [("BTCUSD", Decimal(50000))]
        assert signals[0]["strategies"]["sentiment"]["signal"] == "BUY"
        assert ask("GET", "/signals", "bob") == (200, [])
        assert ask("GET", "/signals")[0] == 401


def create_app(url: URL | str) -> tuple[Flask, DatabaseFactory]:
    """The application factory: the schema is made once, when it is called, and each request has its session."""
    db_manager = initialize_database(url)
    app = Flask(__name__)
    door = FlaskDoor(app, db_manager, user=lambda: request.headers.get("X-User"))

    @app.get("/signals")
    @door.session
    def signals(session: Session) -> list[str]:
        return [signal.symbol for signal in SignalRepository(session).get_all()]

    return app, db_manager


def test_the_flask_app_factory_runs(db: DatabaseFactory) -> None:
    """On an empty database, as often as it is called; its health endpoint tells nothing of where the database is."""
    url = db.settings.url
    db.close()
    for _ in range(2):
        app, db_manager = create_app(url)
        with db_manager, werkzeug_serving(app) as ask:
            with db_manager.get_session() as session:
                session.merge(User(user_id="ann", username="ann"))
            assert ask("GET", "/signals", "ann") == (200, [])
            assert ask("GET", "/signals")[0] == 401
            assert ask("GET", "/health") == (200, {"reachable": True, "problems": 0})
