"""The questions, a line or two each. All are of one user's rows, whose session or `user_id` says which.

Times are aware UTC, bounds are inclusive, None leaves a side open. Rows of tests are left out unless they are asked
for: `test_mode=True` for these alone, `None` for all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import func, select

from shared.db import Repository, RowNotFoundError, exact_sum
from shared.fleet.models import (
    Alert,
    BalanceSnapshot,
    Bot,
    BotStatus,
    Event,
    EventLevel,
    MLModel,
    Performance,
    PortfolioPosition,
    Signal,
    Trade,
)


class TradeTotals(NamedTuple):
    """What came of the trades of a bot, exact."""

    trades: int
    wins: int
    losses: int
    pnl: Decimal
    fees: Decimal

    @property
    def win_rate(self) -> Decimal | None:
        """The part of trades with a profit among those with a profit or a loss, 0 to 1; None if there are neither."""
        decided = self.wins + self.losses
        return Decimal(self.wins) / decided if decided else None


class BotRepository(Repository[Bot]):
    """A user's bots."""

    model = Bot

    def get_by_user_id(self, user_id: str) -> list[Bot]:
        """All of a user's, by name."""
        return self._all(self._mine(user_id).order_by(Bot.name))

    def get_by_name(self, user_id: str, name: str) -> Bot | None:
        """The bot of this name, None if there is none."""
        return self._first(self._mine(user_id).where(Bot.name == name))

    def get_running_bots(self) -> list[Bot]:
        """Those that run, by name; of all users only by `BotRepository.across_users(session)`."""
        return self._all(self._mine().where(Bot.status == BotStatus.RUNNING).order_by(Bot.name, Bot.bot_id))

    def ping(self, bot_id: str, error: str | None = None) -> Bot:
        """Note that a bot answers now, or why it does not. `RowNotFoundError` if the user has none of this id."""
        bot = self.get_by_id(bot_id)
        if bot is None:
            raise RowNotFoundError("Bot", bot_id)
        bot.connection_error = error
        if error is None:
            bot.last_ping = datetime.now(UTC)
        return self.update(bot)


class SignalRepository(Repository[Signal]):
    """What the strategies of a user's bots advised."""

    model = Signal

    def get_signals(
        self,
        symbol: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        test_mode: bool | None = False,
    ) -> list[Signal]:
        """Those of a symbol (None: of all) from `start` to `end`, oldest first."""
        found = _within(self._mine(), Signal, start, end, test_mode)
        found = found if symbol is None else found.where(Signal.symbol == symbol)
        return self._all(found.order_by(Signal.ts, Signal.signal_id))

    def with_trades(
        self, start: datetime | None = None, end: datetime | None = None, *, test_mode: bool | None = False
    ) -> list[tuple[Signal, Trade | None]]:
        """Each signal with each trade that it led to, or with None if it led to none; one outer join."""
        joined = select(Signal, Trade).outerjoin(Trade, Signal.signal_id == Trade.signal_id)
        found = _within(self._confined(joined, self._user_id), Signal, start, end, test_mode)
        rows = self.session.execute(found.order_by(Signal.ts, Signal.signal_id, Trade.ts, Trade.trade_id))
        return [(signal, trade) for signal, trade in rows]


class TradeRepository(Repository[Trade]):
    """What a user's bots traded; a large range is gone through by `iter_range(bot_id, ...)`, which needs no offset."""

    model = Trade

    def get_by_bot(
        self, bot_id: str, limit: int | None = None, offset: int = 0, *, test_mode: bool | None = False
    ) -> list[Trade]:
        """The trades of a bot, newest first."""
        found = _within(self._mine().where(Trade.bot_id == bot_id), Trade, None, None, test_mode)
        return self._all(found.order_by(Trade.ts.desc(), Trade.trade_id).limit(limit).offset(offset))

    def get_by_symbol(
        self,
        symbol: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        test_mode: bool | None = False,
    ) -> list[Trade]:
        """The trades of a symbol, of all bots, oldest first."""
        found = _within(self._mine().where(Trade.symbol == symbol), Trade, start, end, test_mode)
        return self._all(found.order_by(Trade.ts, Trade.trade_id))

    def get_by_date_range(self, start: datetime, end: datetime, *, test_mode: bool | None = False) -> list[Trade]:
        """The trades of all bots and symbols from `start` to `end`, oldest first."""
        found = _within(self._mine(), Trade, start, end, test_mode)
        return self._all(found.order_by(Trade.ts, Trade.trade_id))

    def get_totals(
        self,
        bot_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        test_mode: bool | None = False,
    ) -> TradeTotals:
        """How many trades, wins and losses, profit and fees of a bot, by one statement; zeros without trades."""
        counted = select(
            func.count(),
            func.count().filter(Trade.pnl > 0),
            func.count().filter(Trade.pnl < 0),
            exact_sum(Trade.pnl),
            exact_sum(Trade.fee),
        ).where(Trade.bot_id == bot_id)
        found = _within(self._confined(counted, self._user_id), Trade, start, end, test_mode)
        trades, wins, losses, pnl, fees = self.session.execute(found).one()
        return TradeTotals(trades, wins, losses, pnl or Decimal(0), fees or Decimal(0))

    def get_total_pnl(self, bot_id: str, start: datetime | None = None, end: datetime | None = None) -> Decimal:
        """The realised profit of a bot, exact."""
        return self.get_totals(bot_id, start, end).pnl

    def get_trade_count(self, bot_id: str, start: datetime | None = None, end: datetime | None = None) -> int:
        """How many trades a bot made."""
        return self.get_totals(bot_id, start, end).trades

    def get_win_rate(self, bot_id: str, start: datetime | None = None, end: datetime | None = None) -> Decimal | None:
        """The part of winning trades, 0 to 1; None while nothing was won or lost."""
        return self.get_totals(bot_id, start, end).win_rate


class PortfolioPositionRepository(Repository[PortfolioPosition]):
    """What a user's bots hold and held."""

    model = PortfolioPosition

    def get_by_bot(self, bot_id: str) -> list[PortfolioPosition]:
        """All of a bot, oldest first."""
        return self._all(self._mine().where(_P.bot_id == bot_id).order_by(_P.created_at, _P.position_id))

    def get_open_positions(self) -> list[PortfolioPosition]:
        """What is open, of all of a user's bots, oldest first."""
        return self._all(self._mine().where(_P.closed_at.is_(None)).order_by(_P.created_at, _P.position_id))


class BalanceSnapshotRepository(Repository[BalanceSnapshot]):
    """What a user had."""

    model = BalanceSnapshot

    def get_latest(self, user_id: str, exchange: str, currency: str) -> BalanceSnapshot | None:
        """The newest of a currency at an exchange, None if there is none."""
        found = self._mine(user_id).where(BalanceSnapshot.exchange == exchange, BalanceSnapshot.currency == currency)
        return self._first(found.order_by(BalanceSnapshot.ts.desc()).limit(1))


class PerformanceRepository(Repository[Performance]):
    """How bots did, day by day."""

    model = Performance

    def get_by_bot(self, bot_id: str, start: datetime | None = None, end: datetime | None = None) -> list[Performance]:
        """The days of a bot from `start` to `end`, in order."""
        found = self._mine().where(Performance.bot_id == bot_id)
        found = found if start is None else found.where(Performance.day_ts >= start)
        found = found if end is None else found.where(Performance.day_ts <= end)
        return self._all(found.order_by(Performance.day_ts))


class AlertRepository(Repository[Alert]):
    """What a user is to be told."""

    model = Alert

    def get_unread_by_user(self, user_id: str) -> list[Alert]:
        """What was not read, newest first."""
        return self._all(self._mine(user_id).where(Alert.read_at.is_(None)).order_by(Alert.ts.desc(), Alert.alert_id))

    def get_by_severity(self, severity: str, limit: int | None = None) -> list[Alert]:
        """Those of a severity, newest first."""
        found = self._mine().where(Alert.severity == severity)
        return self._all(found.order_by(Alert.ts.desc(), Alert.alert_id).limit(limit))

    def mark_read(self, alert: Alert) -> Alert:
        """Note that it was read now; when it first was, stays."""
        alert.read_at = alert.read_at or datetime.now(UTC)
        return self.update(alert)


class EventRepository(Repository[Event]):
    """What happened."""

    model = Event

    def get_errors(self, start: datetime | None = None, end: datetime | None = None) -> list[Event]:
        """The errors from `start` to `end`, newest first."""
        found = self._mine().where(Event.level == EventLevel.ERROR)
        found = found if start is None else found.where(Event.ts >= start)
        found = found if end is None else found.where(Event.ts <= end)
        return self._all(found.order_by(Event.ts.desc(), Event.event_id))


class MLModelRepository(Repository[MLModel]):
    """A user's trained models."""

    model = MLModel

    def get_active(self, name: str) -> list[MLModel]:
        """The versions of a model that are in use, by version."""
        return self._all(self._mine().where(MLModel.name == name, MLModel.is_active).order_by(MLModel.version))


def strategy_hash(config: Mapping[str, Any]) -> str:
    """What a configuration is known by: the SHA-256 of its JSON with sorted keys, of Decimals as they are written."""
    written = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.sha256(written.encode()).hexdigest()


def _within(
    statement: Any, model: type[Signal | Trade], start: datetime | None, end: datetime | None, test_mode: bool | None
) -> Any:
    statement = statement if start is None else statement.where(model.ts >= start)
    statement = statement if end is None else statement.where(model.ts <= end)
    return statement if test_mode is None else statement.where(model.test_mode.is_(test_mode))


_P = PortfolioPosition
