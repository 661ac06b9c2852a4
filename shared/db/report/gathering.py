"""What a report of a user's fills shows, gathered in that user's session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TypeVar

from sqlalchemy.orm import Session

from shared.db.errors import InputError
from shared.db.operations.interruption import check
from shared.db.ranges.gaps import Gap, RunCoverage
from shared.db.ranges.summaries import Candle, Coverage, added
from shared.db.report.figures import (
    Curve,
    Figures,
    curves,
    fees_can_be_subtracted,
    interval_for,
    ratio,
    settlement_coin,
)
from shared.db.report.questions import Fill, Part, Scope, fills, held_before, parts, steps
from shared.db.repositories import (
    BybitAccountRepository,
    PrivateExecutionRepository,
    PublicTradeRepository,
    RunRepository,
    StrategyRepository,
)

GAP_SECONDS = 3600.0
"""How long nothing is traded before a report calls it a gap, unless it is told otherwise."""

DRAWN = 12
"""How many symbols, and how many positions, have a picture; those with the most fills. All are in the tables."""

DRAWN_RUNS = 40
"""How many runs have a curve beside the one of all."""

_DRAWN_FILLS = 2_000

T = TypeVar("T")


@dataclass
class Prices:
    """The exchange's trades of a symbol, as far as they are stored, and the fills that are drawn over their candles."""

    coverage: Coverage | None
    gaps: list[Gap]
    last_price: Decimal | None = None
    candles: list[Candle] = field(default_factory=list)
    fills: list[Fill] = field(default_factory=list)


@dataclass
class Position:
    """What a run holds of a symbol; by interval its time, the quantity, and the value at the interval's mean price."""

    held: Decimal
    course: list[tuple[datetime, Decimal, Decimal]] = field(default_factory=list)


@dataclass
class Earnings:
    """What was earned and paid with the symbols that are settled in one coin, which alone can be added up."""

    after_fees: bool = True
    whole: Figures = field(default_factory=Figures)
    by_run: dict[str, Figures] = field(default_factory=lambda: defaultdict(Figures))
    by_symbol: dict[str, Figures] = field(default_factory=lambda: defaultdict(Figures))
    by_day: dict[date, Figures] = field(default_factory=lambda: defaultdict(Figures))
    curve: Curve = field(default_factory=Curve)
    curves: dict[str, Curve] = field(default_factory=dict)

    def add(self, part: Part) -> None:
        """Add the sums over further fills."""
        for figures in (
            self.whole,
            self.by_run[part.run_id],
            self.by_symbol[part.symbol],
            self.by_day[part.open_ts.date()],
        ):
            figures.add(part)

    def result(self, figures: Figures) -> Decimal:
        """Profit, less the fees where that can be told."""
        return figures.pnl - added(figures.fees.values()) if self.after_fees else figures.pnl


@dataclass
class Report:
    """What the page shows of the fills of a scope; the earnings by the coin that they are settled in."""

    username: str
    scope: Scope
    made_at: datetime
    gap_seconds: float
    runs: dict[str, str]
    coverage: dict[str, RunCoverage]
    first: datetime | None = None
    last: datetime | None = None
    interval: timedelta = timedelta(days=1)
    fills: int = 0
    earnings: dict[str, Earnings] = field(default_factory=lambda: defaultdict(Earnings))
    by_symbol: dict[str, Figures] = field(default_factory=dict)
    by_position: dict[tuple[str, str], Figures] = field(default_factory=lambda: defaultdict(Figures))
    positions: dict[tuple[str, str], Position] = field(default_factory=dict)
    prices: dict[str, Prices] = field(default_factory=dict)


def gather(session: Session, username: str, scope: Scope, gap_seconds: float = GAP_SECONDS) -> Report:
    """The numbers of a scope, read in its user's session, in an exact decimal context.

    Raises `InputError` if the user has no such run.
    """
    executions = PrivateExecutionRepository(session)
    coverage = {each.run_id: each for each in executions.coverage(scope.run_id)}
    if scope.run_id is not None and not coverage:
        raise InputError(f"user {username!r} has no run {scope.run_id!r}; check both")
    report = Report(username, scope, datetime.now(UTC), gap_seconds, _names(session, scope), coverage)
    times = [when for each in coverage.values() for when in (each.first_ts, each.last_ts) if when is not None]
    if not times:
        return report
    first = max(filter(None, (min(times), scope.start)))
    last = min(filter(None, (max(times), scope.end)))
    if first > last:
        return report
    report.first, report.last, report.interval = first, last, interval_for(last - first)
    check()
    found = parts(session, scope, report.interval)
    for part in found:
        report.fills += part.fills
        report.earnings[settlement_coin(part.symbol)].add(part)
        report.by_position[part.run_id, part.symbol].add(part)
    places = {run_id: place for place, run_id in enumerate(report.runs)}
    report.by_position = dict(sorted(report.by_position.items(), key=lambda item: (places[item[0][0]], item[0][1])))
    report.earnings = dict(sorted(report.earnings.items()))
    for coin, earnings in report.earnings.items():
        earnings.by_run = dict(sorted(earnings.by_run.items(), key=lambda item: places[item[0]]))
        earnings.by_symbol = dict(sorted(earnings.by_symbol.items()))
        report.by_symbol |= earnings.by_symbol
        earnings.after_fees = fees_can_be_subtracted(earnings.whole, coin)
        # All symbols are asked for by asking for none.
        symbols = tuple(earnings.by_symbol) if len(report.earnings) > 1 else None
        changes = steps(session, replace(scope, symbols=symbols), after_fees=earnings.after_fees)
        earnings.curve, earnings.curves = curves(changes, earnings.by_run, first, report.interval)
    report.by_symbol = dict(sorted(report.by_symbol.items()))
    report.positions = _positions(found, report.by_position, held_before(session, scope))
    report.prices = _prices(session, report, found)
    return report


def most_filled(figures: dict[T, Figures], count: int) -> list[T]:
    """Those with the most fills, in the order in which they are."""
    ranked = sorted(figures, key=lambda key: figures[key].fills, reverse=True)[:count]
    return [key for key in figures if key in ranked]


def _names(session: Session, scope: Scope) -> dict[str, str]:
    """What each run of the scope is called, oldest first: its account, symbol and type, and the beginning of its id."""
    accounts = {each.account_id: each.account_name for each in BybitAccountRepository(session).get_all()}
    symbols = {each.strategy_id: each.symbol for each in StrategyRepository(session).get_all()}
    return {
        run.run_id: f"{accounts[run.account_id]} {symbols[run.strategy_id]} {run.run_type} {run.run_id[:8]}"
        for run in reversed(RunRepository(session).get_by_user_id(scope.user_id))
        if scope.run_id in (None, run.run_id)
    }


def _positions(
    found: Iterable[Part], keys: Iterable[tuple[str, str]], before: dict[tuple[str, str], Decimal]
) -> dict[tuple[str, str], Position]:
    positions = {key: Position(before.get(key, Decimal(0))) for key in {**before, **dict.fromkeys(keys)}}
    moved: dict[tuple[str, str], dict[datetime, Figures]] = {key: defaultdict(Figures) for key in keys}
    for part in found:
        moved[part.run_id, part.symbol][part.open_ts].add(part)
    for key, intervals in moved.items():
        position = positions[key]
        for open_ts, figures in intervals.items():
            position.held += figures.held
            price = ratio(added(figures.turnover.values()), added(figures.quantity.values()))
            position.course.append((open_ts, position.held, position.held * (price or 0)))
    return positions


def _prices(session: Session, report: Report, found: Iterable[Part]) -> dict[str, Prices]:
    trades = PublicTradeRepository(session)
    covered = {each.symbol: each for each in trades.coverage(count=False)}
    prices: dict[str, Prices] = {}
    spans: dict[str, list[datetime]] = defaultdict(list)
    for part in found:
        spans[part.symbol].append(part.open_ts)
    for symbol, times in sorted(spans.items()):
        check()
        # Whole intervals: the first and last fill lie somewhere in them.
        start = max(min(times), report.first or min(times))
        end = min(max(times) + report.interval, report.last or max(times))
        prices[symbol] = Prices(covered.get(symbol), list(trades.gaps(symbol, report.gap_seconds, start, end)))
        last = trades.get_trade_at_or_before(symbol, report.scope.end or report.made_at)
        prices[symbol].last_price = None if last is None else last.price
    shown = most_filled(report.by_symbol, DRAWN)
    for symbol in shown:
        check()
        prices[symbol].candles = trades.candles(symbol, report.first, report.last, report.interval)
    few = {symbol for symbol in shown if report.by_symbol[symbol].fills <= _DRAWN_FILLS}
    for fill in fills(session, report.scope, few):
        prices[fill.symbol].fills.append(fill)
    many: dict[tuple[str, datetime, str], Figures] = defaultdict(Figures)
    for part in found:
        if part.symbol in shown and part.symbol not in few:
            many[part.symbol, part.open_ts, part.side].add(part)
    for (symbol, open_ts, side), figures in many.items():
        price = figures.mean_price(side)
        if price is not None:
            prices[symbol].fills.append(Fill(symbol, open_ts, side, price, figures.quantity[side]))
    return prices
