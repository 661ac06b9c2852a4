"""The numbers of a report: added up from the database's exact sums, and thinned for nothing but the pictures."""

from __future__ import annotations

import re
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
_COIN = r"[A-Z0-9]+"
_DATE = r"-\d{1,2}[A-Z]{3}\d{2}"
# BTCUSD, and BTCUSDZ25 with the month and the year of its delivery.
_INVERSE = re.compile(rf"({_COIN})USD(?:[FGHJKMNQUVXZ]\d\d)?")
# BTCUSDT, BTCUSDT-26DEC25, an option BTC-26DEC25-90000-C-USDT, and pairs of spot.
_QUOTED = re.compile(
    rf"{_COIN}(?:{_DATE}-\d+-[CP]-)?(USDT|USDC|USDE|USD1|USDQ|EUR|EURQ|BTC|ETH|DAI|BRL|BRZ|PLN|TRY|MNT|GBP|AED|SOL|KZT)(?:{_DATE})?"
)
# BTCPERP, BTC-26DEC25, and an option BTC-26DEC25-90000-C.
_IN_USDC = re.compile(rf"{_COIN}?PERP|{_COIN}{_DATE}(?:-\d+-[CP])?")


def interval_for(length: timedelta) -> timedelta:
    """What a picture of so long a time has a point for: a part of a day that makes at most 400, or else a day."""
    return next((one for one in _INTERVALS if length <= one * _POINTS), _INTERVALS[-1])


def settlement_coin(symbol: str) -> str:
    """The coin in which a symbol of Bybit's settles its profits, '' where its name does not tell.

    A linear contract's name ends in USDT, or for USDC in PERP or in a date alone, an inverse one's begins with the
    coin that it is settled in, and a pair of spot ends in what it is quoted in.
    """
    if found := _INVERSE.fullmatch(symbol):
        return found[1]
    if found := _QUOTED.fullmatch(symbol):
        return found[1]
    return "USDC" if _IN_USDC.fullmatch(symbol) else ""


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


def fees_can_be_subtracted(whole: Figures, coin: str) -> bool:
    """Whether all fees are in the coin that the profit is in, as a contract's are that names none.

    Not those of spot in the coin that was bought, nor where a fee names a coin and a symbol tells none.
    """
    return whole.fees.keys() <= {None, coin}


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
