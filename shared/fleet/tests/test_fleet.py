"""The tables behave as those of `shared.db` do, on every database; what is asked of them is exact and a user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select, update

from shared.db import (
    ConstraintError,
    DatabaseFactory,
    InvalidValueError,
    TenantViolation,
    User,
)
from shared.db.migrations import runner
from shared.db.testing import has_mysql
from shared.fleet import (
    Alert,
    AlertRepository,
    BalanceSnapshot,
    BalanceSnapshotRepository,
    Bot,
    BotRepository,
    BotStatus,
    BotTemplate,
    BotTemplateRepository,
    BotType,
    Event,
    EventRepository,
    MLModel,
    MLModelRepository,
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
    TradeTotals,
    strategy_hash,
)

NOW = datetime(2025, 5, 19, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def signal(bot: Bot, **values: Any) -> Signal:
    """The signal of the SQLite bot's own example."""
    return Signal(
        **{
            "bot_id": bot.bot_id,
            "ts": NOW,
            "symbol": "BTCUSD",
            "price": Decimal("50000.00"),
            "final_signal": "BUY",
            "final_confidence": Decimal("0.85"),
            "aggregation_method": "weighted_average",
            "strategies": {"sentiment": {"signal": "BUY", "confidence": "0.9"}},
            "bot_version": "1.0.0",
        }
        | values
    )


def trade(bot: Bot, pnl: str | None, **values: Any) -> Trade:
    """A trade of a bot with this profit."""
    row: dict[str, Any] = {"bot_id": bot.bot_id, "ts": NOW, "symbol": "BTCUSD", "side": "Buy"}
    row["quantity"] = Decimal("0.1")
    return Trade(**row | {"price": Decimal(50000), "pnl": None if pnl is None else Decimal(pnl)} | values)


def two_bots(db: DatabaseFactory) -> tuple[Bot, Bot]:
    """A bot of each of two users."""
    with db.get_session() as session:
        users = [User(username="alice"), User(username="bob")]
        session.add_all(users)
        session.flush()
        bots = [Bot(user_id=user.user_id, name="grid", status=BotStatus.RUNNING) for user in users]
        session.add_all(bots)
        session.flush()
        return bots[0], bots[1]


def every_table(bot: Bot) -> list[Any]:
    """A row of each table, of one bot."""
    advice = signal(bot, signal_id=f"signal-{bot.bot_id}"[:36])
    own: dict[str, Any] = {"user_id": bot.user_id}
    template = BotTemplate(
        template_id=f"template-{bot.bot_id}"[:36], creator_id=bot.user_id, name="dca", config_json={}
    )
    return [
        advice,
        template,
        trade(bot, "1.5", signal_id=advice.signal_id),
        PortfolioPosition(
            bot_id=bot.bot_id, symbol="BTCUSD", side="Buy", quantity=Decimal(1), entry_price=Decimal(50000)
        ),
        BalanceSnapshot(
            **own, exchange="kraken", currency="USD", ts=NOW, total_balance=Decimal(9), available_balance=Decimal(8)
        ),
        Performance(
            bot_id=bot.bot_id, day_ts=NOW, total_trades=2, winning_trades=1, losing_trades=1, total_pnl=Decimal(1)
        ),
        Alert(**own, alert_type="drawdown", severity="high", title="Drawdown", message="5 %"),
        Event(**own, bot_id=bot.bot_id, level="error", event_type="feed", description="lost"),
        Subscription(**own, bot_id=bot.bot_id, template_id=template.template_id),
        MLModel(**own, name="lstm", model_type="lstm", version="1", file_path="models/lstm", is_active=True),
    ]


@pytest.fixture(params=["memory", "file", "postgresql", "policies", *(["mysql"] if has_mysql() else [])])
def either_db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """Each database in turn, and PostgreSQL with its policies in force."""
    if request.param == "policies":
        made: DatabaseFactory = request.getfixturevalue("policed_db")
    else:
        urls = {"memory": "sqlite://", "file": f"sqlite:///{tmp_path / 'fleet.db'}"}
        made = DatabaseFactory(urls.get(request.param) or request.getfixturevalue(f"{request.param}_url"))
    with made:
        made.create_tables()
        yield made


def test_revisions_make_what_the_models_say(db: DatabaseFactory) -> None:
    """Up from nothing, back to nothing, and up again, with no difference left."""
    if db.settings.is_memory or db.engine.dialect.name == "mysql":
        return
    assert runner.check(db) == []
    runner.downgrade_all(db, allow_data_loss=True)
    runner.upgrade_all(db)
    assert runner.check(db) == []
    db.check_schema()


def test_no_table_shows_a_user_the_rows_of_another(either_db: DatabaseFactory) -> None:
    """Reads, updates of all rows, references and rows under another's bot: each of ten tables, both users."""
    mine, others = two_bots(either_db)
    for bot in (mine, others):
        with either_db.get_session(user_id=bot.user_id) as session:
            rows = every_table(bot)
            session.add_all(rows[:2])
            session.flush()
            session.add_all(rows[2:])
    for kind in map(type, every_table(mine)):
        with either_db.get_session(user_id=mine.user_id) as session:
            row: Any = session.scalars(select(kind)).one()
            assert getattr(row, "user_id", mine.user_id) == mine.user_id
            assert getattr(row, "creator_id", mine.user_id) == mine.user_id
            assert getattr(row, "bot_id", mine.bot_id) == mine.bot_id
            assert session.scalar(select(func.count()).select_from(kind)) == 1
    with either_db.get_session(user_id=mine.user_id) as session:
        session.execute(update(Trade).values(pnl=Decimal(7)))
    with either_db.get_session(user_id=others.user_id) as session:
        assert session.scalars(select(Trade.pnl)).all() == [Decimal("1.5")]
    for foreign in every_table(others):
        with pytest.raises(TenantViolation), either_db.get_session(user_id=mine.user_id) as session:
            session.add(foreign)
    with pytest.raises(TenantViolation), either_db.get_session(user_id=mine.user_id) as session:
        session.add(trade(mine, "1", signal_id=f"signal-{others.bot_id}"[:36]))
    with pytest.raises(TenantViolation), either_db.get_session(user_id=mine.user_id) as session:
        TradeRepository(session).bulk_create([{"bot_id": others.bot_id, "ts": NOW, "symbol": "X", "side": "Buy"}])


def test_totals_are_exact_one_statement_and_without_test_rows(either_db: DatabaseFactory) -> None:
    """Count, wins, losses, profit, fees and win rate by bot and time, also where floats would drift."""
    bot, others = two_bots(either_db)
    with either_db.get_session(user_id=bot.user_id) as session:
        session.add_all(trade(bot, "0.1", ts=NOW + HOUR * hour, fee=Decimal("0.00000001")) for hour in range(10))
        session.add_all([trade(bot, "-0.3"), trade(bot, None), trade(bot, "0"), trade(bot, "9", test_mode=True)])
    with either_db.get_session(user_id=bot.user_id) as session:
        asked: list[str] = []
        event.listen(either_db.engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
        totals = TradeRepository(session).get_totals(bot.bot_id)
        assert totals == TradeTotals(13, 10, 1, Decimal("0.7"), Decimal("0.0000001"))
        assert len([one for one in asked if "bot_trades" in one]) == 1
        trades = TradeRepository(session)
        assert trades.get_win_rate(bot.bot_id) == Decimal(10) / 11
        assert trades.get_trade_count(bot.bot_id, NOW + HOUR, NOW + 3 * HOUR) == 3
        assert trades.get_total_pnl(bot.bot_id, NOW + HOUR) == Decimal("0.9")
        assert trades.get_totals(bot.bot_id, test_mode=True).pnl == 9
        assert trades.get_totals(bot.bot_id, test_mode=None).trades == 14
        assert trades.get_totals(others.bot_id) == TradeTotals(0, 0, 0, Decimal(0), Decimal(0))
        assert trades.get_win_rate(others.bot_id) is None
        assert [one.ts for one in trades.get_by_bot(bot.bot_id, limit=2)] == [NOW + 9 * HOUR, NOW + 8 * HOUR]
        assert len(trades.get_by_bot(bot.bot_id, offset=12)) == 1
        assert len(trades.get_by_date_range(NOW + HOUR, NOW + 2 * HOUR)) == 2
        assert len(trades.get_by_symbol("BTCUSD", test_mode=True)) == 1
    with either_db.get_session() as session:
        assert TradeRepository(session, user_id=bot.user_id).get_total_pnl(bot.bot_id) == Decimal("0.7")
        assert TradeRepository(session, user_id=others.user_id).get_total_pnl(bot.bot_id) == 0
        large = Decimal("9876543.21000001")
        same = {"bot_id": others.bot_id, "ts": NOW, "symbol": "X", "side": "Buy", "quantity": 1, "pnl": large}
        TradeRepository(session, user_id=others.user_id).bulk_create([same] * 200)
        assert TradeRepository(session, user_id=others.user_id).get_total_pnl(others.bot_id) == large * 200


def test_the_examples_of_the_sqlite_bot_run(either_db: DatabaseFactory) -> None:
    """A signal with its strategies, its trades, the last day's, the outer join; test rows apart."""
    bot, others = two_bots(either_db)
    with either_db.get_session(user_id=bot.user_id) as session:
        advice, ignored = signal(bot, strategy_version=strategy_hash({"b": 1, "a": Decimal("0.1")})), signal(bot)
        ignored.ts = NOW + HOUR
        session.add_all([advice, ignored, signal(bot, test_mode=True)])
        session.flush()
        session.add(trade(bot, "1", signal_id=advice.signal_id))
    with either_db.get_session(user_id=bot.user_id) as session:
        first = SignalRepository(session).get_signals("BTCUSD")[0]
        assert [one.pnl for one in first.trades] == [Decimal(1)]
        assert first.strategies["sentiment"]["signal"] == "BUY"
        assert first.strategy_version == strategy_hash({"a": Decimal("0.1"), "b": 1})
        joined = SignalRepository(session).with_trades()
        assert [(one.final_signal, other.side if other else None) for one, other in joined] == [
            ("BUY", "Buy"),
            ("BUY", None),
        ]
        assert len(SignalRepository(session).get_signals(test_mode=None)) == 3
    with either_db.get_session() as session:
        assert len(SignalRepository(session, user_id=bot.user_id).with_trades()) == 2
        assert SignalRepository(session, user_id=others.user_id).with_trades() == []
    with pytest.raises(ConstraintError), either_db.get_session(user_id=bot.user_id) as session:
        session.add(signal(bot, final_confidence=Decimal("1.7")))
    with pytest.raises(InvalidValueError), either_db.get_session(user_id=bot.user_id) as session:
        session.add(signal(bot, ts=NOW.replace(tzinfo=None)))


def test_the_other_questions_of_the_async_module_find_what_they_name(either_db: DatabaseFactory) -> None:
    """Bots, open positions, latest balance, days, unread alerts, errors and models."""
    bot, _ = two_bots(either_db)
    with either_db.get_session(user_id=bot.user_id) as session:
        session.add_all(every_table(bot))
        session.add(
            PortfolioPosition(
                bot_id=bot.bot_id,
                symbol="ETHUSD",
                side="Sell",
                quantity=Decimal(1),
                entry_price=Decimal(1),
                closed_at=NOW,
            )
        )
        later = {"ts": NOW + HOUR, "total_balance": Decimal(5), "available_balance": Decimal(5)}
        session.add(BalanceSnapshot(user_id=bot.user_id, exchange="kraken", currency="USD", **later))
    with either_db.get_session(user_id=bot.user_id) as session:
        bots = BotRepository(session)
        assert bots.get_running_bots() == bots.get_by_user_id(bot.user_id)
        named = bots.get_by_name(bot.user_id, "grid")
        assert named is not None
        assert named.bot_id == bot.bot_id
        assert bots.ping(bot.bot_id, "timeout").connection_error == "timeout"
        assert bots.ping(bot.bot_id).connection_error is None
        assert named.last_ping is not None
        assert [one.symbol for one in PortfolioPositionRepository(session).get_open_positions()] == ["BTCUSD"]
        assert len(PortfolioPositionRepository(session).get_by_bot(bot.bot_id)) == 2
        newest = BalanceSnapshotRepository(session).get_latest(bot.user_id, "kraken", "USD")
        assert newest is not None
        assert newest.total_balance == 5
        assert len(PerformanceRepository(session).get_by_bot(bot.bot_id, NOW, NOW)) == 1
        assert PerformanceRepository(session).get_by_bot(bot.bot_id, NOW + HOUR) == []
        alerts = AlertRepository(session)
        (alert,) = alerts.get_unread_by_user(bot.user_id)
        assert alerts.get_by_severity("high", limit=5) == [alert]
        assert alerts.get_by_severity("low") == []
        alerts.mark_read(alert)
        assert alerts.get_unread_by_user(bot.user_id) == []
        assert len(EventRepository(session).get_errors()) == 1
        assert len(MLModelRepository(session).get_active("lstm")) == 1
    with either_db.get_session() as session:
        assert len(BotRepository.across_users(session).get_running_bots()) == 2


def test_a_user_has_one_external_bot_at_an_address(db: DatabaseFactory) -> None:
    """A second one is refused, as is an address of a bot that is not external; another user may have it."""
    bot, others = two_bots(db)
    url = "https://bot.example"
    for user_id in (bot.user_id, others.user_id):
        with db.get_session(user_id=user_id) as session:
            session.add(Bot(user_id=user_id, name="away", bot_type=BotType.EXTERNAL, api_url=url))
    for refused in ({"name": "again", "bot_type": BotType.EXTERNAL}, {"name": "ours", "bot_type": BotType.PLATFORM}):
        with pytest.raises(ConstraintError), db.get_session(user_id=bot.user_id) as session:
            session.add(Bot(user_id=bot.user_id, api_url=url if refused["name"] == "again" else url + "2", **refused))


def test_a_public_template_is_everybody_s_to_read_and_its_creator_s_to_write(either_db: DatabaseFactory) -> None:
    """A private one is seen by its creator alone; another user follows the public one by an own bot, once at a time."""
    mine, others = two_bots(either_db)
    with either_db.get_session(user_id=mine.user_id) as session:
        for name, is_public in (("dca", True), ("secret", False)):
            config = {"grid": {"levels": 20, "step": "0.2"}, "kind": name}
            template = BotTemplate(creator_id=mine.user_id, name=name, is_public=is_public, config_json=config)
            BotTemplateRepository(session).create(template)
    with either_db.get_session(user_id=others.user_id) as session:
        templates = BotTemplateRepository(session)
        (public,) = templates.get_all()
        assert [public] == templates.get_public() == templates.get_by_config({"grid": {"levels": 20}})
        assert templates.get_by_config({"kind": "secret"}) == []
        assert templates.get_by_performance({"sharpe": 2}) == []
        following = {"user_id": others.user_id, "bot_id": others.bot_id, "template_id": public.template_id}
        first = SubscriptionRepository(session).create(Subscription(**following, allocation_amount=Decimal("0.5")))
    for foreign in ({"bot_id": mine.bot_id}, {"user_id": mine.user_id}):
        with pytest.raises(TenantViolation), either_db.get_session(user_id=others.user_id) as session:
            session.add(Subscription(**following | foreign, status="paused"))
    with pytest.raises(ConstraintError), either_db.get_session(user_id=others.user_id) as session:
        session.add(Subscription(**following))
    with pytest.raises(ConstraintError), either_db.get_session(user_id=others.user_id) as session:
        session.add(Subscription(**following, status="paused", allocation_amount=Decimal(-1)))
    with either_db.get_session(user_id=others.user_id) as session:
        subscriptions = SubscriptionRepository(session)
        assert [one.subscription_id for one in subscriptions.get_active(others.user_id)] == [first.subscription_id]
        subscriptions.cancel(subscriptions.get_active(others.user_id)[0])
        assert subscriptions.count_active(public.template_id) == 0
        subscriptions.create(Subscription(**following))
        assert subscriptions.count_active(public.template_id) == 1
    with pytest.raises(TenantViolation), either_db.get_session(user_id=others.user_id) as session:
        BotTemplateRepository(session).get_public()[0].name = "mine"
    with pytest.raises(TenantViolation, match="is public"), either_db.get_session(user_id=others.user_id) as session:
        BotTemplateRepository(session).delete(BotTemplateRepository(session).get_public()[0])
    with either_db.get_session(user_id=others.user_id) as session:
        session.execute(update(BotTemplate).values(name="mine"))
    with either_db.get_session(user_id=mine.user_id) as session:
        assert sorted(one.name for one in BotTemplateRepository(session).get_all()) == ["dca", "secret"]
        assert SubscriptionRepository(session).count_active(public.template_id) == 0, "another user's is not seen"
        session.execute(update(BotTemplate).values(is_public=False))
    with either_db.get_session(user_id=others.user_id) as session:
        assert BotTemplateRepository(session).get_all() == []
    with either_db.get_session() as session:
        assert SubscriptionRepository.across_users(session).count_active(public.template_id) == 1
        assert {one.name for one in BotTemplateRepository.across_users(session).get_all()} == {"dca", "secret"}


def test_signals_are_found_by_what_a_strategy_advised(either_db: DatabaseFactory) -> None:
    """Of one user, without rows of tests, exactly."""
    bot, others = two_bots(either_db)
    bought = {"macd": {"signal": "BUY", "confidence": 0.9}, "rsi": {"signal": "SELL"}}
    with either_db.get_session() as session:
        session.add_all(
            [
                signal(bot, strategies=bought),
                signal(bot, strategies={"macd": {"signal": "SELL"}, "rsi": {"signal": "BUY"}}),
                signal(bot, strategies={"macd": "BUY"}),
                signal(bot, strategies=bought, test_mode=True),
                signal(others, strategies=bought),
            ]
        )
    with either_db.get_session(user_id=bot.user_id) as session:
        (found,) = SignalRepository(session).get_by_strategy("macd", "BUY")
        assert found.strategies == bought
        assert len(SignalRepository(session).get_by_strategy("macd", "BUY", test_mode=None)) == 2
        assert SignalRepository(session).get_by_strategy("macd", "buy") == []
        assert SignalRepository(session).get_by_strategy("adx", "BUY") == []
    with either_db.get_session() as session:
        assert len(SignalRepository(session, user_id=others.user_id).get_by_strategy("macd", "BUY")) == 1


def test_postgresql_finds_documents_by_their_indexes(postgresql_url: Any) -> None:
    """Among thousands of rows the plans of the three questions name the GIN indexes."""
    with DatabaseFactory(postgresql_url) as db:
        db.create_tables()
        bot, _ = two_bots(db)
        rare = {"macd": {"signal": "BUY"}}
        with db.get_session(user_id=bot.user_id) as session:
            SignalRepository(session).bulk_create(
                {column: value for column, value in vars(signal(bot)).items() if column[0] != "_"}
                | {"strategies": rare if number % 2000 == 0 else {"macd": {"signal": "SELL", "at": number}}}
                for number in range(6000)
            )
            BotTemplateRepository(session).bulk_create(
                {"creator_id": bot.user_id, "name": str(n), "config_json": {"n": n}, "performance_data": {"n": n}}
                for n in range(3000)
            )
        with db.engine.begin() as connection:
            connection.exec_driver_sql("ANALYZE signals")
            connection.exec_driver_sql("ANALYZE bot_templates")
        asked: dict[str, Callable[[Any], Any]] = {
            "ix_signals_strategies": lambda session: SignalRepository(session).get_by_strategy("macd", "BUY"),
            "ix_bot_templates_config_json": lambda session: BotTemplateRepository(session).get_by_config({"n": 7}),
            "ix_bot_templates_performance_data": lambda session: BotTemplateRepository(session).get_by_performance(
                {"n": 7}
            ),
        }
        for index, ask in asked.items():
            statements: list[tuple[str, Any]] = []

            @event.listens_for(db.engine, "before_cursor_execute")
            def note(*given: Any, into: list[Any] = statements) -> None:
                into.append((given[2], given[3]))

            with db.get_session(user_id=bot.user_id) as session:
                assert 0 < len(ask(session)) < 4
            event.remove(db.engine, "before_cursor_execute", note)
            (question,) = [one for one in statements if " @> " in one[0]]
            with db.engine.connect() as connection:
                plan = connection.exec_driver_sql(f"EXPLAIN {question[0]}", question[1]).scalars().all()
            assert any(index in line for line in plan), plan
