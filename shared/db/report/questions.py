"""What a report asks of a user's executions beside what repositories answer, in few questions however many there are.

Sums are the database's own, exact. Only the level of a curve after each fill is added up here, in exact Decimals too:
its deepest fall is between two fills, and no sum over an interval shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import repeat
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.orm import Session

from shared.db.column_types import exact_sum
from shared.db.dialects import dialect_of
from shared.db.models import PrivateExecution, Side
from shared.db.operations.interruption import check
from shared.db.ranges.bounds import source_of
from shared.db.ranges.decoding import undecoded
from shared.db.ranges.sql_functions import exact_product_sum, time_bucket
from shared.db.ranges.streams import read
from shared.db.ranges.summaries import fee_currency
from shared.db.tenancy.ownership import owned_by
from shared.db.value_forms.forms import forms_of

_FETCHED = 5_000


@dataclass(frozen=True)
class Scope:
    """Whose executions are meant, of which run and symbols (None: all), and from when to when, both included."""

    user_id: str
    run_id: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    symbols: tuple[str, ...] | None = None

    def criteria(self) -> list[ColumnElement[bool]]:
        """What an execution must meet to be in it."""
        columns = source_of(PrivateExecution).columns
        # Read past the ORM, where a user's session adds no criterion by itself.
        owned = owned_by(PrivateExecution, self.user_id)
        found = [] if owned is None else [owned]
        if self.run_id is not None:
            found.append(columns.run_id == self.run_id)
        if self.symbols is not None:
            found.append(columns.symbol.in_(self.symbols))
        if self.start is not None:
            found.append(columns.exchange_ts >= self.start)
        if self.end is not None:
            found.append(columns.exchange_ts <= self.end)
        return found


class Part(NamedTuple):
    """The sums over the fills of a run that are alike: of one symbol, interval, side, fee currency and outcome.

    `outcome` is 1 where they closed with a profit, -1 with a loss, else 0. `fee_in` is None where there is no fee, and
    '' where nobody says what it is charged in. `turnover` is the sum of price times quantity.
    """

    run_id: str
    symbol: str
    open_ts: datetime
    side: str
    fee_in: str | None
    outcome: int
    fills: int
    pnl: Decimal
    fee: Decimal
    quantity: Decimal
    turnover: Decimal


def parts(session: Session, scope: Scope, interval: timedelta) -> list[Part]:
    """The sums over all fills of the scope, by interval, oldest first."""
    columns = source_of(PrivateExecution).columns
    alike = (
        columns.run_id,
        columns.symbol,
        time_bucket(columns.exchange_ts, interval).label("open_ts"),
        columns.side,
        fee_currency(columns).label("fee_in"),
        case((columns.closed_pnl > 0, 1), (columns.closed_pnl < 0, -1), else_=0).label("outcome"),
    )
    statement = (
        select(
            *alike,
            func.count(),
            exact_sum(columns.closed_pnl),
            exact_sum(columns.exec_fee),
            exact_sum(columns.exec_qty),
            exact_product_sum(columns.exec_price, columns.exec_qty),
        )
        .where(*scope.criteria())
        .group_by(*alike)
    )
    nothing = Decimal(0)
    found: list[Part] = []
    row: Any  # of columns that have no types
    for row in read(session, statement):
        *kind, pnl, fee, quantity, turnover = row
        found.append(Part._make((*kind, pnl or nothing, fee or nothing, quantity, Decimal(turnover))))
    return sorted(found, key=lambda part: (part.open_ts, part.run_id, part.symbol, part.side))


def steps(session: Session, scope: Scope, *, after_fees: bool) -> Iterator[tuple[datetime, str, Decimal]]:
    """What each fill that earned or cost something changed: its time, its run and the amount, in order of time."""
    columns = source_of(PrivateExecution).columns
    asked = [columns.exchange_ts, columns.closed_pnl, *([columns.exec_fee] if after_fees else [])]
    dialect = dialect_of(session)
    decoders = [forms_of(column.type).decoding(dialect) for column in asked]
    statement = (
        select(columns.run_id, *undecoded(asked, dialect))
        .where(*scope.criteria(), or_(*(and_(column.is_not(None), column != 0) for column in asked[1:])))
        .order_by(columns.exchange_ts, columns.run_id, columns.exec_id)
    )
    nothing = Decimal(0)
    with read(session, statement, execution_options={"yield_per": _FETCHED}) as result:
        for page in result.partitions(_FETCHED):
            check()
            run_ids, *stored = zip(*page, strict=True)
            times, profits, *fees = (decode(values) for decode, values in zip(decoders, stored, strict=True))
            # strict=False: what stands for fees that are not asked for has no end.
            for when, run_id, profit, fee in zip(
                times, run_ids, profits, fees[0] if fees else repeat(None), strict=False
            ):
                yield when, run_id, (profit or nothing) - (fee or nothing)


def newest(session: Session, scope: Scope) -> int:
    """The number of the fill of the scope that was stored last, 0 without any."""
    number = source_of(PrivateExecution).columns.id
    return read(session, select(func.max(number)).where(*scope.criteria())).scalar() or 0


class Fill(NamedTuple):
    """One fill, as it is drawn over a price."""

    symbol: str
    when: datetime
    side: str
    price: Decimal
    quantity: Decimal


def fills(session: Session, scope: Scope, symbols: Collection[str]) -> list[Fill]:
    """The fills of these symbols, which are few, in order of time."""
    columns = source_of(PrivateExecution).columns
    asked = (columns.symbol, columns.exchange_ts, columns.side, columns.exec_price, columns.exec_qty)
    if not symbols:
        return []
    statement = select(*asked).where(*scope.criteria(), columns.symbol.in_(sorted(symbols)))
    return [Fill._make(row) for row in read(session, statement.order_by(columns.exchange_ts, columns.id))]


def held_before(session: Session, scope: Scope) -> dict[tuple[str, str], Decimal]:
    """What runs had bought and not sold before the scope begins, by run and symbol; short is negative."""
    if scope.start is None:
        return {}
    columns = source_of(PrivateExecution).columns
    earlier = Scope(scope.user_id, scope.run_id, end=scope.start - timedelta(microseconds=1))
    alike: tuple[Any, ...] = (columns.run_id, columns.symbol, columns.side)
    statement = select(*alike, exact_sum(columns.exec_qty)).where(*earlier.criteria()).group_by(*alike)
    held: dict[tuple[str, str], Decimal] = {}
    row: Any  # as above
    for row in read(session, statement):
        run_id, symbol, side, quantity = row
        held[run_id, symbol] = held.get((run_id, symbol), Decimal(0)) + (quantity if side == Side.BUY else -quantity)
    return held
