"""The numbers of a report: added up from the database's exact sums, and thinned for nothing but the pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

from shared.db.models import Side
from shared.db.report.questions import Part
from shared.db.value_forms.amounts import EXACT, QUANTUM

_MINUTE = timedelta(minutes=1)
# Each a part of a day, so that a day is a sum of intervals.
_INTERVALS = tuple(minutes * _MINUTE for minutes in (1, 2, 5, 10, 15, 30, 60, 120, 240, 480, 720, 1440))
_POINTS = 400


def interval_for(length: timedelta) -> timedelta:
    """What a picture of so long a time has a point for: a part of a day that makes at most 400, or else a day."""
    return next((one for one in _INTERVALS if length <= one * _POINTS), _INTERVALS[-1])


def ratio(amount: Decimal | int, of: Decimal | int, places: Decimal = QUANTUM) -> Decimal | None:
    """A quotient, rounded half-even; None of nothing."""
    return EXACT.quantize(EXACT.divide(Decimal(amount), Decimal(of)), places) if of else None


@dataclass
class Figures:
    """The sums over some fills. `gained` and `lost` are those of the fills that closed with a profit or with a loss."""

    fills: int = 0
    pnl: Decimal = Decimal(0)
    fees: dict[str | None, Decimal] = field(default_factory=dict)
    wins: int = 0
    losses: int = 0
    gained: Decimal = Decimal(0)
    lost: Decimal = Decimal(0)
    quantity: dict[str, Decimal] = field(default_factory=lambda: dict.fromkeys(map(str, Side), Decimal(0)))
    turnover: dict[str, Decimal] = field(default_factory=lambda: dict.fromkeys(map(str, Side), Decimal(0)))

    def add(self, part: Part) -> None:
        """Add the sums over further fills."""
        self.fills += part.fills
        self.pnl += part.pnl
        if part.fee_in is not None:
            currency = part.fee_in or None
            self.fees[currency] = self.fees.get(currency, Decimal(0)) + part.fee
        if part.outcome > 0:
            self.wins += part.fills
            self.gained += part.pnl
        elif part.outcome < 0:
            self.losses += part.fills
            self.lost += part.pnl
        self.quantity[part.side] += part.quantity
        self.turnover[part.side] += part.turnover

    @property
    def win_rate(self) -> Decimal | None:
        """The part of fills with a profit among those with a profit or a loss, in percent; None without any."""
        return ratio(100 * self.wins, self.wins + self.losses, Decimal("0.01"))

    @property
    def profit_factor(self) -> Decimal | None:
        """What was gained for each unit that was lost; None while nothing was lost."""
        return ratio(self.gained, -self.lost, Decimal("0.001"))

    def mean_price(self, side: str) -> Decimal | None:
        """What was paid or got for a unit."""
        return ratio(self.turnover[side], self.quantity[side])

    @property
    def held(self) -> Decimal:
        """What was bought and not sold; short is negative."""
        return self.quantity[Side.BUY] - self.quantity[Side.SELL]


def fees_can_be_subtracted(whole: Figures, symbols: Iterable[str]) -> bool:
    """Whether profit and fees are in the same coin, as far as the rows say it.

    Not where there are several currencies, or the fee is in the coin that was bought, as of spot.
    """
    currencies = set(whole.fees)
    return len(currencies) < 2 and not any(
        currency is not None and symbol.startswith(currency) for currency in currencies for symbol in symbols
    )


class Curve:
    """A level that steps change: where it stands, its deepest fall from a height before, and points to draw.

    A point is an interval's end: the time, the level, and the deepest that it was below its height in the interval.
    """

    def __init__(self) -> None:
        self.level = self.height = self.deepest = self._here = Decimal(0)
        self.points: list[tuple[datetime, Decimal, Decimal]] = []

    def step(self, amount: Decimal) -> None:
        """Change the level."""
        self.level += amount
        if self.level > self.height:
            self.height = self.level
        elif self.height - self.level > self._here:
            self._here = self.height - self.level

    def point(self, when: datetime) -> None:
        """End an interval."""
        self.deepest = max(self.deepest, self._here)
        self.points.append((when, self.level, self._here))
        self._here = self.height - self.level


def curves(
    changes: Iterable[tuple[datetime, str, Decimal]], run_ids: Iterable[str], start: datetime, interval: timedelta
) -> tuple[Curve, dict[str, Curve]]:
    """The curve of all and that of each run, from steps in order of time."""
    whole, by_run = Curve(), {run_id: Curve() for run_id in run_ids}
    touched: set[str] = set()
    last, until = start, start + interval

    def end_interval() -> None:
        whole.point(last)
        for run_id in touched:
            by_run[run_id].point(last)
        touched.clear()

    for when, run_id, amount in changes:
        if when >= until:
            if touched:
                end_interval()
            until += (when - until) // interval * interval + interval
        last = when
        touched.add(run_id)
        whole.step(amount)
        by_run[run_id].step(amount)
    if touched:
        end_interval()
    return whole, by_run
