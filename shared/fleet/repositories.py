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
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import case, func, select

from shared.db import Repository, exact_sum, holds
from shared.fleet.models import (
    Alert,
    BalanceSnapshot,
    Bot,
    BotStatus,
    BotTemplate,
    Event,
    EventLevel,
    MLModel,
    Performance,
    PortfolioPosition,
    Signal,
    Subscription,
    SubscriptionStatus,
    Trade,
)

_Time = datetime | None
_Tests = bool | None
_T = TypeVar("_T", Signal, Trade)


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
        answered = {"last_ping": datetime.now(UTC)} if error is None else {}
        return self.update(Bot(bot_id=bot_id, connection_error=error, **answered))


class BotTemplateRepository(Repository[BotTemplate]):
    """The templates that a user may read: the own ones and all that are public."""

    model = BotTemplate

    def get_public(self) -> list[BotTemplate]:
        """Those that are public, whoever made them, by name."""
        return self._all(self._mine().where(BotTemplate.is_public).order_by(BotTemplate.name, BotTemplate.template_id))

    def get_by_config(self, part: Mapping[str, Any]) -> list[BotTemplate]:
        """Those whose configuration says at least this, by name."""
        found = self._mine().where(holds(BotTemplate.config_json, part))
        return self._all(found.order_by(BotTemplate.name, BotTemplate.template_id))

    def get_by_performance(self, part: Mapping[str, Any]) -> list[BotTemplate]:
        """Those of whose performance at least this is known, by name."""
        found = self._mine().where(holds(BotTemplate.performance_data, part))
        return self._all(found.order_by(BotTemplate.name, BotTemplate.template_id))


class SubscriptionRepository(Repository[Subscription]):
    """What a user's bots follow. A second active subscription of a user to a template is a `ConstraintError`."""

    model = Subscription

    def get_active(self, user_id: str) -> list[Subscription]:
        """Those of a user that are active, oldest first."""
        found = self._mine(user_id).where(Subscription.status == SubscriptionStatus.ACTIVE)
        return self._all(found.order_by(Subscription.created_at, Subscription.subscription_id))

    def count_active(self, template_id: str) -> int:
        """How many follow a template: of a user's own, and of all by `SubscriptionRepository.across_users(session)`."""
        active = (Subscription.template_id == template_id, Subscription.status == SubscriptionStatus.ACTIVE)
        counted: int = self.session.scalar(self._confined(select(func.count()).where(*active), self._user_id))
        return counted

    def cancel(self, subscription: Subscription) -> Subscription:
        """End one; the user may subscribe to the template again."""
        subscription.status = SubscriptionStatus.CANCELLED.value
        return self.update(subscription)


class _TestedRepository(Repository[_T]):
    def _asked(self, statement: Any, start: _Time, end: _Time, test_mode: _Tests) -> Any:
        found = statement.where(*self._bounds(self.model.ts, start, end))
        return found if test_mode is None else found.where(self.model.test_mode.is_(test_mode))


class SignalRepository(_TestedRepository[Signal]):
    """What the strategies of a user's bots advised."""

    model = Signal

    def get_signals(
        self, symbol: str | None = None, start: _Time = None, end: _Time = None, *, test_mode: _Tests = False
    ) -> list[Signal]:
        """Those of a symbol (None: of all) from `start` to `end`, oldest first."""
        mine = self._mine() if symbol is None else self._mine().where(Signal.symbol == symbol)
        return self._all(self._asked(mine, start, end, test_mode).order_by(Signal.ts, Signal.signal_id))

    def get_by_strategy(self, strategy: str, signal: str, *, test_mode: _Tests = False) -> list[Signal]:
        """Those in which a strategy advised this ("BUY"), oldest first."""
        found = self._mine().where(holds(Signal.strategies, {strategy: {"signal": signal}}))
        return self._all(self._asked(found, None, None, test_mode).order_by(Signal.ts, Signal.signal_id))

    def with_trades(
        self, start: _Time = None, end: _Time = None, *, test_mode: _Tests = False
    ) -> list[tuple[Signal, Trade | None]]:
        """Each signal with each trade that it led to, or with None if it led to none; one outer join."""
        joined = self._confined(select(Signal, Trade).outerjoin(Signal.trades), self._user_id)
        order = (Signal.ts, Signal.signal_id, Trade.ts, Trade.trade_id)
        rows = self.session.execute(self._asked(joined, start, end, test_mode).order_by(*order))
        return [(signal, trade) for signal, trade in rows]


class TradeRepository(_TestedRepository[Trade]):
    """What a user's bots traded; a large range is gone through by `iter_range(bot_id, ...)`, which needs no offset."""

    model = Trade

    def get_by_bot(
        self, bot_id: str, limit: int | None = None, offset: int = 0, *, test_mode: _Tests = False
    ) -> list[Trade]:
        """The trades of a bot, newest first."""
        found = self._asked(self._mine().where(Trade.bot_id == bot_id), None, None, test_mode)
        return self._some(found.order_by(Trade.ts.desc(), Trade.trade_id), limit, offset)

    def get_by_symbol(
        self, symbol: str, start: _Time = None, end: _Time = None, *, test_mode: _Tests = False
    ) -> list[Trade]:
        """The trades of a symbol, of all bots, oldest first."""
        found = self._asked(self._mine().where(Trade.symbol == symbol), start, end, test_mode)
        return self._all(found.order_by(Trade.ts, Trade.trade_id))

    def get_by_date_range(self, start: datetime, end: datetime, *, test_mode: _Tests = False) -> list[Trade]:
        """The trades of all bots and symbols from `start` to `end`, oldest first."""
        return self._all(self._asked(self._mine(), start, end, test_mode).order_by(Trade.ts, Trade.trade_id))

    def get_totals(
        self, bot_id: str, start: _Time = None, end: _Time = None, *, test_mode: _Tests = False
    ) -> TradeTotals:
        """How many trades, wins and losses, profit and fees of a bot, by one statement; zeros without trades."""
        won, lost = (func.count(case((those, 1))) for those in (Trade.pnl > 0, Trade.pnl < 0))
        totals = select(func.count(), won, lost, exact_sum(Trade.pnl), exact_sum(Trade.fee))
        mine = self._confined(totals.where(Trade.bot_id == bot_id), self._user_id)
        trades, wins, losses, pnl, fees = self.session.execute(self._asked(mine, start, end, test_mode)).one()
        return TradeTotals(trades, wins, losses, pnl or Decimal(0), fees or Decimal(0))

    def get_total_pnl(self, bot_id: str, start: _Time = None, end: _Time = None) -> Decimal:
        """The realised profit of a bot, exact."""
        return self.get_totals(bot_id, start, end).pnl

    def get_trade_count(self, bot_id: str, start: _Time = None, end: _Time = None) -> int:
        """How many trades a bot made."""
        return self.get_totals(bot_id, start, end).trades

    def get_win_rate(self, bot_id: str, start: _Time = None, end: _Time = None) -> Decimal | None:
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
        return self.latest(user_id, user_id=user_id, exchange=exchange, currency=currency)


class PerformanceRepository(Repository[Performance]):
    """How bots did, day by day."""

    model = Performance

    def get_by_bot(self, bot_id: str, start: _Time = None, end: _Time = None) -> list[Performance]:
        """The days of a bot from `start` to `end`, in order."""
        return list(self.iter_range(bot_id, start, end, as_objects=True))


class AlertRepository(Repository[Alert]):
    """What a user is to be told."""

    model = Alert

    def get_unread_by_user(self, user_id: str) -> list[Alert]:
        """What was not read, newest first."""
        return self._all(self._mine(user_id).where(Alert.read_at.is_(None)).order_by(Alert.ts.desc(), Alert.alert_id))

    def get_by_severity(self, severity: str, limit: int | None = None) -> list[Alert]:
        """Those of a severity, newest first."""
        found = self._mine().where(Alert.severity == severity)
        return self._some(found.order_by(Alert.ts.desc(), Alert.alert_id), limit)

    def mark_read(self, alert: Alert) -> Alert:
        """Note that it was read now; when it first was, stays."""
        alert.read_at = alert.read_at or datetime.now(UTC)
        return self.update(alert)


class EventRepository(Repository[Event]):
    """What happened."""

    model = Event

    def get_errors(self, start: _Time = None, end: _Time = None) -> list[Event]:
        """The errors from `start` to `end`, newest first."""
        found = self._mine().where(Event.level == EventLevel.ERROR, *self._bounds(Event.ts, start, end))
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


_P = PortfolioPosition
