"""What the related systems' own pages show is done here with other names, on every database.

How asyncio, FastAPI and Flask are used: `test_front_doors.py`. Prices and news: the tests of `shared.market`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import desc, func, select, text

import shared.fleet
from shared.db import (
    DatabaseFactory,
    Repository,
    RowNotFoundError,
    User,
    UserRepository,
    exact_sum,
    initialize_database,
)
from shared.db.commands.cli import main
from shared.fleet import (
    Alert,
    AlertRepository,
    BalanceSnapshot,
    BalanceSnapshotRepository,
    Bot,
    BotRepository,
    BotStatus,
    BotTemplate,
    BotType,
    Event,
    EventRepository,
    Performance,
    PerformanceRepository,
    PortfolioPosition,
    PortfolioPositionRepository,
    Signal,
    SignalRepository,
    Subscription,
    SubscriptionRepository,
    Trade,
    TradeRepository,
)
from shared.fleet.tests.test_fleet import either_db, two_bots  # noqa: F401 # a fixture

HOUR = timedelta(hours=1)


def test_the_package_s_own_page(either_db: DatabaseFactory) -> None:  # noqa: F811 # the fixture
    """Its example runs as it stands, for a bot and a template."""
    bot, _ = two_bots(either_db)
    with either_db.get_session(user_id=bot.user_id) as session:
        session.add(BotTemplate(creator_id=bot.user_id, name="grid", config_json={"grid": {"levels": 20, "step": 1}}))
    page = (Path(shared.fleet.__file__).parent / "docs" / "fleet.md").read_text()
    given = {"db": either_db, "user_id": bot.user_id, "start": None, "end": None}
    exec(page.partition("```python\n")[2].partition("```")[0], vars(shared.fleet) | given)
    with either_db.get_session(user_id=bot.user_id) as session:
        assert len(SubscriptionRepository(session).get_active(bot.user_id)) == 1


def test_the_sqlite_bot_s_page(either_db: DatabaseFactory) -> None:  # noqa: F811 # the fixture
    """A signal goes in; production rows, the last day, a symbol, the trades of a signal, and both joined, come out."""
    bot, _ = two_bots(either_db)
    now = datetime.now(UTC)
    with either_db.get_session(user_id=bot.user_id) as db:
        signal = Signal(
            bot_id=bot.bot_id,
            ts=now,
            symbol="BTCUSD",
            price=Decimal("50000.00"),
            final_signal="BUY",
            final_confidence=Decimal("0.85"),
            aggregation_method="weighted_average",
            strategies={
                "sentiment": {"signal": "BUY", "confidence": 0.9},
                "technical": {"signal": "BUY", "confidence": 0.8},
            },
            test_mode=False,
            bot_version="1.0.0",
        )
        db.add(signal)
        db.add(Signal(bot_id=bot.bot_id, ts=now, symbol="TESTUSD", price=1, final_signal="HOLD", final_confidence=0))
        db.flush()
        made = {"bot_id": bot.bot_id, "side": "Buy", "quantity": Decimal("0.1"), "price": Decimal(50000)}
        db.add(Trade(**made, signal_id=signal.signal_id, symbol="BTCUSD", ts=now))
        db.add(Trade(**made, symbol="BTCUSD", ts=now - 48 * HOUR))
        db.add(Trade(**made, symbol="BTCUSD", ts=now, test_mode=True))
        db.commit()

    with either_db.get_session(user_id=bot.user_id) as db:
        assert len(db.query(Trade).filter(Trade.test_mode == False).all()) == 2  # noqa: E712 # as it stands there
        assert len(db.query(Trade).filter(Trade.test_mode == True).all()) == 1  # noqa: E712 # as it stands there
        first = db.query(Signal).filter(Signal.symbol == "BTCUSD").first()
        assert first is not None
        assert [trade.signal_id for trade in first.trades] == [first.signal_id]

        recent = (
            db.query(Trade)
            .filter(Trade.test_mode == False)  # noqa: E712 # as it stands there
            .filter(Trade.ts >= now - 24 * HOUR)
            .order_by(Trade.ts.desc())
            .all()
        )
        assert recent == TradeRepository(db).get_by_date_range(now - 24 * HOUR, now)
        assert len(TradeRepository(db).get_by_symbol("BTCUSD")) == 2

        joined = (
            db.query(Signal, Trade)
            .outerjoin(Trade, Signal.signal_id == Trade.signal_id)
            .filter(Signal.test_mode == False)  # noqa: E712 # as it stands there
            .order_by(Signal.symbol)
            .all()
        )
        told = [(one.final_signal, trade.side if trade else "not executed") for one, trade in joined]
        assert told == [("BUY", "Buy"), ("HOLD", "not executed")]
        assert sorted(SignalRepository(db).with_trades(), key=lambda pair: pair[0].symbol) == [
            tuple(row) for row in joined
        ]
        trades = TradeRepository(db)
        assert trades.get_trade_count(bot.bot_id) == 2
        assert trades.get_totals(bot.bot_id, test_mode=True).trades == 1


def test_the_sqlite_bot_s_housekeeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The database makes itself, says how it is and how many rows it has, and is backed up while it is open."""
    monkeypatch.chdir(tmp_path)
    with initialize_database("sqlite:///trading_bot.db") as db:
        bot, _ = two_bots(db)
        with db.get_session(user_id=bot.user_id) as session:
            session.add(Trade(bot_id=bot.bot_id, ts=datetime.now(UTC), symbol="BTCUSD", side="Buy", quantity=1))
        health = db.health()
        assert health.reachable
        assert health.size_bytes is not None
        assert health.size_bytes >= 4096
        assert main(["backup", "trading_bot_20250519.db", "--db-url", "sqlite:///trading_bot.db"]) == 0
        capsys.readouterr()
        assert main(["status", "--json", "--db-url", "sqlite:///trading_bot_20250519.db"]) == 0
    counts = {table["name"]: table["rows"] for table in json.loads(capsys.readouterr().out)["tables"]}
    assert (counts["users"], counts["signals"], counts["bot_trades"]) == (2, 0, 1)


def test_traderrr_s_page(either_db: DatabaseFactory) -> None:  # noqa: F811 # the fixture
    """Holdings summed up by ticker, largest first and exact; performance, signals and events of a day."""
    bot, others = two_bots(either_db)
    day = datetime(2025, 1, 1, tzinfo=UTC)
    held = {"bot_id": bot.bot_id, "side": "Buy", "entry_price": Decimal(150)}
    with either_db.get_session() as session:
        for symbol, shares in (("AAPL", "0.1"), ("AAPL", "0.2"), ("MSFT", "0.25")):
            session.add(PortfolioPosition(**held, symbol=symbol, quantity=Decimal(shares)))
        session.add(PortfolioPosition(**held | {"bot_id": others.bot_id}, symbol="AAPL", quantity=Decimal(9)))
    with either_db.get_session(user_id=bot.user_id) as session:
        total = exact_sum(PortfolioPosition.quantity).label("total_shares")
        results = (
            session.query(PortfolioPosition.symbol, total)
            .group_by(PortfolioPosition.symbol)
            .order_by(desc(total))
            .all()
        )
        assert [tuple(row) for row in results] == [("AAPL", Decimal("0.3")), ("MSFT", Decimal("0.25"))]
        session.add(
            Performance(
                bot_id=bot.bot_id,
                day_ts=day,
                total_trades=3,
                winning_trades=2,
                losing_trades=1,
                total_pnl=Decimal("12.5"),
                portfolio_value=Decimal(10_000),
                volatility=Decimal("0.02"),
                max_drawdown=Decimal("0.1"),
            )
        )
        session.add(
            Signal(
                bot_id=bot.bot_id,
                ts=day,
                symbol="AAPL",
                price=Decimal(150),
                final_signal="HOLD",
                final_confidence=Decimal("0.5"),
                entry_price=Decimal(150),
                target_price=Decimal(165),
                stop_loss=Decimal(140),
                regime="sideways",
                reasons="no trend",
            )
        )
        session.add(Event(user_id=bot.user_id, level="error", event_type="download", description="no answer", ts=day))
        session.commit()
    with either_db.get_session(user_id=bot.user_id) as session:
        (performance,) = PerformanceRepository(session).get_by_bot(bot.bot_id, day, day)
        assert (performance.portfolio_value, performance.sharpe_ratio) == (Decimal(10_000), None)
        (signal,) = SignalRepository(session).get_signals("AAPL", day, day)
        assert (signal.target_price, signal.reasons) == (Decimal(165), "no trend")
        assert [event.description for event in EventRepository(session).get_errors(day)] == ["no answer"]


def test_tradewise_s_tables(either_db: DatabaseFactory) -> None:  # noqa: F811 # the fixture
    """Its three kinds of bots with their defaults and health, a template and its subscribers, counted when asked."""
    bot, others = two_bots(either_db)
    with either_db.get_session(user_id=bot.user_id) as session:
        url = "https://bot.example/api"
        session.add(Bot(user_id=bot.user_id, name="away", bot_type=BotType.EXTERNAL, api_url=url))
        session.add(Bot(user_id=bot.user_id, name="ours", bot_type=BotType.SHARED, exposed_host_port=8080))
        template = BotTemplate(
            creator_id=bot.user_id, name="DCA", config_json={"every": "1d"}, is_public=True, strategy_type="dca"
        )
        session.add(template)
        session.flush()
        session.add(Subscription(user_id=bot.user_id, bot_id=bot.bot_id, template_id=template.template_id))
    with either_db.get_session(user_id=bot.user_id) as session:
        away = BotRepository(session).get_by_name(bot.user_id, "away")
        assert away is not None
        assert (away.status, away.last_ping, away.connection_error) == ("inactive", None, None)
        BotRepository(session).ping(away.bot_id, "refused")
        session.expire_all()
        assert (away.last_ping, away.connection_error) == (None, "refused")
        assert template.risk_level == "medium"
        subscribers = select(func.count()).select_from(Subscription).where(Subscription.status == "active")
        assert session.scalar(subscribers.where(Subscription.template_id == template.template_id)) == 1
        if getattr(session, "confined_by_server", False):
            assert session.scalar(text("SELECT count(*) FROM bots")) == 3
    with either_db.get_session() as session:
        session.delete(session.get_one(User, bot.user_id))
    with either_db.get_session() as session:
        left = [session.scalars(select(model)).all() for model in (Bot, BotTemplate, Subscription)]
        assert [[row.user_id for row in rows if isinstance(row, Bot)] for rows in left] == [[others.user_id], [], []]
        assert left[1:] == [[], []]


def test_the_async_module_s_queries(either_db: DatabaseFactory) -> None:  # noqa: F811 # the fixture
    """Its generic verbs and every question of its list, of one user alone."""
    bot, _ = two_bots(either_db)
    start = datetime(2025, 5, 19, tzinfo=UTC)
    user_id, own = bot.user_id, {"bot_id": bot.bot_id}
    with either_db.get_session() as session:
        users = UserRepository(session)
        created = users.create(User(username="trader1", email="trader@example.com"))
        assert users.get_by_email("trader@example.com") is created is users.get_by_username("trader1")
        assert created in users.get_active_users()
    with either_db.get_session(user_id=user_id) as session:
        trades = TradeRepository(session)
        made = {**own, "symbol": "BTCUSDT", "side": "Buy", "quantity": Decimal(1), "status": "filled"}
        pnls = ("1.5", "-0.5", "0.00000001", None)
        rows: list[Any] = [made | {"ts": start + n * HOUR, "pnl": pnl} for n, pnl in enumerate(pnls)]
        assert trades.bulk_create(rows).inserted == 4
        (newest,) = trades.get_by_bot(bot.bot_id, limit=1)
        assert trades.get_by_id(newest.trade_id) is newest
        assert len(trades.get_all(limit=3, offset=2)) == 2
        assert trades.bulk_update([{"trade_id": newest.trade_id, "fee": Decimal("0.1")}]) == 1
        newest.order_type = "limit"
        assert trades.update(newest) is newest
        assert len(trades.get_by_symbol("BTCUSDT", start, start + HOUR)) == 2
        assert len(trades.get_by_date_range(start + HOUR, start + 9 * HOUR)) == 3
        assert trades.get_total_pnl(bot.bot_id) == Decimal("1.00000001")
        assert trades.get_total_pnl(bot.bot_id, start + HOUR, start + HOUR) == Decimal("-0.5")
        assert trades.get_trade_count(bot.bot_id, None, start) == 1
        assert trades.get_win_rate(bot.bot_id) == Decimal(2) / 3
        exported = [row._asdict() for row in trades.iter_range(bot.bot_id, start, start + HOUR)]
        assert [one["pnl"] for one in exported] == [Decimal("1.5"), Decimal("-0.5")]
        trades.delete(newest)
        assert trades.get_by_id(newest.trade_id) is None
        with pytest.raises(RowNotFoundError):
            trades.delete(newest)
    with either_db.get_session(user_id=user_id) as session:
        bots = BotRepository(session)
        assert [one.name for one in bots.get_by_user_id(user_id)] == ["grid"]
        assert [one.bot_id for one in bots.get_running_bots()] == [bot.bot_id]
        positions = Repository(session, PortfolioPosition)
        position: dict[str, Any] = {**own, "side": "Buy", "quantity": 1, "entry_price": 1}
        positions.create(PortfolioPosition(**position, symbol="BTCUSDT"))
        positions.create(PortfolioPosition(**position, symbol="ETHUSDT", closed_at=start))
        assert len(PortfolioPositionRepository(session).get_by_bot(bot.bot_id)) == 2
        assert [one.symbol for one in PortfolioPositionRepository(session).get_open_positions()] == ["BTCUSDT"]
        for n in range(2):
            session.add(
                BalanceSnapshot(
                    user_id=user_id,
                    exchange="bybit",
                    currency="USDT",
                    ts=start + n * HOUR,
                    total_balance=n,
                    available_balance=n,
                )
            )
        session.flush()
        latest = BalanceSnapshotRepository(session).get_latest(user_id, "bybit", "USDT")
        assert latest is not None
        assert latest.total_balance == 1
        assert BalanceSnapshotRepository(session).get_latest(user_id, "bybit", "BTC") is None
        for severity in ("low", "critical"):
            session.add(Alert(user_id=user_id, alert_type="drawdown", severity=severity, title="t", message="m"))
        session.flush()
        alerts = AlertRepository(session)
        (critical,) = alerts.get_by_severity("critical", limit=1)
        assert len(alerts.get_unread_by_user(user_id)) == 2
        alerts.mark_read(critical)
        assert [one.severity for one in alerts.get_unread_by_user(user_id)] == ["low"]
    with either_db.get_session() as session:
        running = select(Bot).where(Bot.status == BotStatus.RUNNING)
        assert len(BotRepository.across_users(session).get_running_bots()) == len(session.scalars(running).all()) == 2
