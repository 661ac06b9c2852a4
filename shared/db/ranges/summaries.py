"""Questions about many rows that the database answers with few: candles, coverage, sums."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import reduce
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, asc, case, desc, func, select
from sqlalchemy.orm import Session

from shared.db.column_types import exact_sum
from shared.db.errors import InvalidValueError
from shared.db.models import Side
from shared.db.ranges.bounds import RowRange, Source
from shared.db.ranges.sql_functions import exact_product_sum, time_bucket
from shared.db.ranges.streams import read
from shared.db.value_forms.amounts import QUANTUM


class Candle(NamedTuple):
    """The trades of one interval: money as Decimal with 8 places, `open_ts` the interval's start in UTC.

    `volume` is the sum of sizes, `vwap` the mean price weighted by size, rounded half-even; None if all sizes are 0.
    """

    open_ts: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    count: int  # type: ignore[assignment] # in place of tuple.count(), which nobody misses here
    vwap: Decimal | None


class Coverage(NamedTuple):
    """What is stored of one symbol: its first and last trade's time (UTC), and how many there are (None: not asked)."""

    symbol: str
    first_ts: datetime
    last_ts: datetime
    count: int | None  # type: ignore[assignment] # in place of tuple.count(), as above


class StreamCoverage(NamedTuple):
    """What is stored of one key of a stream: the time of its first and last row (UTC), and their number if asked."""

    key: Any
    first_ts: datetime
    last_ts: datetime
    count: int | None  # type: ignore[assignment] # in place of tuple.count(), as above


class RunTotals(NamedTuple):
    """Sums over executions, exact, with 8 places; fees are negative where rebates outweigh them.

    `fees_by_currency` tells fees apart by the `feeCurrency` of Bybit's message in raw_json; None stands for those whose
    message is not there or names none, as a contract's, whose fees are in the coin that it is settled in. `fees` is
    their sum, or None if there are several currencies: spot buys are charged in the coin that was bought.
    """

    count: int  # type: ignore[assignment] # in place of tuple.count(), which nobody misses here
    closed_pnl: Decimal
    fees: Decimal | None
    buy_volume: Decimal
    sell_volume: Decimal
    fees_by_currency: dict[str | None, Decimal]


class PartOfCandle(NamedTuple):
    """The trades of one interval that stand in one place, with the sum of their prices times sizes as `turnover`."""

    open_ts: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    count: int  # type: ignore[assignment] # in place of tuple.count(), as above
    turnover: Decimal


class Piece(NamedTuple):
    """The candles of some trades in order of time: of the first and of the last, other places may have trades too."""

    first: PartOfCandle
    inner: Sequence[Candle]
    last: PartOfCandle | None


def candles(session: Session, trades: RowRange, interval: timedelta | str) -> list[Candle]:
    """The candles of a symbol in order of time; an interval without a trade has none.

    Trades of one millisecond follow each other by id, numbers as numbers: a shorter id comes before a longer one, and
    ids of one length are in the order of their characters.

    Raises `InvalidValueError` for what is no interval, and `DatabaseCorruptError` for a stored value that is no time.
    """
    return list(map(_whole, parts_of_candles(session, trades, interval)))


def piece_of(parts: Sequence[PartOfCandle]) -> Piece:
    """The candles of some parts, at least one."""
    return Piece(parts[0], list(map(_whole, parts[1:-1])), parts[-1] if len(parts) > 1 else None)


def joined(pieces: Iterable[Piece]) -> list[Candle]:
    """The candles of pieces in order of time, of which several may have trades of one candle."""
    found: list[Candle] = []
    waiting: PartOfCandle | None = None
    for first, inner, last in pieces:
        if waiting is not None and waiting.open_ts == first.open_ts:
            first = _both(waiting, first)
        elif waiting is not None:
            found.append(_whole(waiting))
        waiting = first
        if last is not None:
            found += (_whole(first), *inner)
            waiting = last
    return found if waiting is None else [*found, _whole(waiting)]


def _both(one: PartOfCandle, later: PartOfCandle) -> PartOfCandle:
    return PartOfCandle(
        one.open_ts,
        one.open,
        max(one.high, later.high),
        min(one.low, later.low),
        later.close,
        _EXACT.add(one.volume, later.volume),
        one.count + later.count,
        _EXACT.add(one.turnover, later.turnover),
    )


def _whole(part: PartOfCandle) -> Candle:
    return Candle._make((*part[:-1], _mean(part.turnover, part.volume)))


def parts_of_candles(session: Session, trades: RowRange, interval: timedelta | str) -> list[PartOfCandle]:
    """What the database has of each candle, in order of time."""
    columns = trades.source.columns
    bucket = time_bucket(columns.exchange_ts, interval_of(interval))
    grouped = (
        select(
            bucket.label("open_ts"),
            func.min(columns.exchange_ts).label("first_ts"),
            func.max(columns.exchange_ts).label("last_ts"),
            func.max(columns.price).label("high"),
            func.min(columns.price).label("low"),
            exact_sum(columns.size).label("volume"),
            func.count().label("count"),
            exact_product_sum(columns.price, columns.size).label("turnover"),
        )
        .where(*trades.criteria())
        .group_by(bucket)
        .subquery()
    )
    first, last = (
        # Two index look-ups a candle, in place of sorting every interval's trades.
        select(columns.price)
        .where(columns.symbol == trades.key, columns.exchange_ts == instant)
        .order_by(*(order(key) for key in (func.length(columns.trade_id), columns.trade_id)))
        .limit(1)
        .scalar_subquery()
        for instant, order in ((grouped.c.first_ts, asc), (grouped.c.last_ts, desc))
    )
    found = grouped.c
    # First the times themselves, for their type's sake: of what is no time SQLite makes an interval all the same.
    statement = select(
        found.first_ts,
        found.last_ts,
        found.open_ts,
        first,
        found.high,
        found.low,
        last,
        found.volume,
        found.count,
        found.turnover,
    ).order_by(found.open_ts)
    return [PartOfCandle._make((*row[2:-1], Decimal(row.turnover))) for row in read(session, statement)]


def coverage(
    session: Session, source: Source, owned: ColumnElement[bool] | None, *, count: bool
) -> list[StreamCoverage]:
    """What is stored of each key of a stream that meets `owned`, by key.

    For a stream that is shared by all, first and last are looked up in the index, whatever the number of rows.
    """
    by, time = source.column(source.stream.by), source.time
    asked = [func.min(time), func.max(time), *([func.count()] if count else [])]
    if owned is None:
        # From each key to the next one, in place of reading every row for its distinct values.
        walk = select(func.min(by).label("key")).cte("walk", recursive=True)
        following = select(func.min(by)).where(by > walk.c.key).scalar_subquery()
        walk = walk.union_all(select(following).where(walk.c.key.is_not(None)))
        statement = (
            select(walk.c.key, *(select(what).where(by == walk.c.key).scalar_subquery() for what in asked))
            .where(walk.c.key.is_not(None))
            .order_by(walk.c.key)
        )
    else:
        statement = select(by, *asked).where(owned).group_by(by).order_by(by)
    return [StreamCoverage._make(row if count else (*row, None)) for row in read(session, statement)]


def totals(session: Session, executions: RowRange) -> RunTotals:
    """The sums over a range of executions; zeros if there are none."""
    columns = executions.source.columns
    currency = fee_currency(columns)
    statement = (
        select(
            currency,
            func.count(),
            exact_sum(columns.closed_pnl),
            exact_sum(columns.exec_fee),
            *(exact_sum(case((columns.side == side, columns.exec_qty))) for side in (Side.BUY, Side.SELL)),
        )
        .where(*executions.criteria(), *executions.confined)
        .group_by(currency)
    )
    parts: Sequence[Any] = read(session, statement).all()
    fees = {part[0] or None: part[3] for part in parts if part[0] is not None}
    closed_pnl, fee, bought, sold = (added(part[place] for part in parts) for place in range(2, 6))
    return RunTotals(sum(part[1] for part in parts), closed_pnl, None if len(fees) > 1 else fee, bought, sold, fees)


def fee_currency(columns: Any) -> ColumnElement[Any]:
    """What an execution's fee is charged in: NULL where there is no fee, '' where there is one and nobody says it."""
    return case((columns.exec_fee != 0, func.coalesce(columns.raw_json["feeCurrency"].as_string(), "")))


def added(amounts: Iterable[Decimal | None]) -> Decimal:
    """The sum, exact: sum() rounds in the caller's context."""
    return reduce(_EXACT.add, (amount for amount in amounts if amount is not None), _ZERO)


def interval_of(interval: timedelta | str) -> timedelta:
    """A positive timedelta, also from text: "30s", "5m", "1h", "1d". `InvalidValueError` for anything else."""
    length = interval
    if isinstance(interval, str) and (found := _INTERVAL.fullmatch(interval)):
        length = timedelta(**{_UNITS[found[2]]: int(found[1])})
    if not isinstance(length, timedelta) or not timedelta(0) < length <= _LONGEST:
        raise InvalidValueError(
            f"{interval!r} is no interval; write a timedelta of up to {_LONGEST.days} days, or a number and a unit, "
            "such as '30s', '5m', '1h' or '1d'"
        )
    return length


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_INTERVAL = re.compile(r"([1-9][0-9]{0,8})([smhd])", re.ASCII)
_LONGEST = timedelta(days=3660)
_ZERO = Decimal(0).quantize(QUANTUM)
# Enough digits that a quotient never looks like a tie which it is not.
_EXACT = Context(prec=100, rounding=ROUND_HALF_EVEN)


def _mean(turnover: Decimal, volume: Decimal) -> Decimal | None:
    return _EXACT.quantize(_EXACT.divide(turnover, volume), QUANTUM) if volume else None
