"""Ranges of the two big tables: which rows, in which order, from where on, and the plain rows they come as."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Table, bindparam, tuple_

from shared.db.column_types import BoundedString, UTCDateTime
from shared.db.errors import InvalidValueError
from shared.db.models import PrivateExecution, PublicTrade

# Where a row stands in its range: its time and the exchange's id.
Position = tuple[datetime, str]
_AFTER_TIME, _AFTER_TIE = "after_time", "after_tie"


class TradeRow(NamedTuple):
    """A public trade as a plain tuple: money as Decimal with 8 places, times as aware UTC."""

    symbol: str
    trade_id: str
    exchange_ts: datetime
    local_ts: datetime
    side: str
    price: Decimal
    size: Decimal

    @property
    def cursor(self) -> str:
        """Where this row stands in its range: `after=row.cursor` continues behind it."""
        return _cursor(self.exchange_ts, self.trade_id)


class ExecutionRow(NamedTuple):
    """An execution as a plain tuple: money as Decimal with 8 places, times as aware UTC; without `raw_json`."""

    run_id: str
    account_id: str
    symbol: str
    exec_id: str
    order_id: str
    order_link_id: str | None
    exchange_ts: datetime
    side: str
    exec_price: Decimal
    exec_qty: Decimal
    exec_fee: Decimal | None
    closed_pnl: Decimal | None

    @property
    def cursor(self) -> str:
        """Where this row stands in its range: `after=row.cursor` continues behind it."""
        return _cursor(self.exchange_ts, self.exec_id)


def cursor_of(row: TradeRow | ExecutionRow | PublicTrade | PrivateExecution) -> str:
    """Where a row stands in its range, as printable text: `after=` continues behind it.

    For plain rows and mapped objects alike. It holds the exchange's time and id of the row, nothing secret.
    """
    return _cursor(row.exchange_ts, row.trade_id if isinstance(row, (TradeRow, PublicTrade)) else row.exec_id)


@dataclass(frozen=True)
class BigTable:
    """One of the two tables, and the plain rows that stand for its own."""

    model: type[PublicTrade | PrivateExecution]
    row: type[TradeRow | ExecutionRow]
    owner: str
    tie: str

    @property
    def columns(self) -> Any:
        """The table's columns by name."""
        table: Table = self.model.__table__  # type: ignore[assignment] # declared wider than it is
        return table.c

    @property
    def read_columns(self) -> list[Column[Any]]:
        """The columns of a plain row, but for the owner, which is the same in all."""
        return [self.columns[name] for name in self.row._fields if name != self.owner]


TRADES = BigTable(PublicTrade, TradeRow, "symbol", "trade_id")
EXECUTIONS = BigTable(PrivateExecution, ExecutionRow, "run_id", "exec_id")


@dataclass(frozen=True)
class RowRange:
    """The rows of one symbol or run from `start` to `end`, ordered by time, those of one instant by the exchange's id.

    `within` are further criteria, `owned` is the one that they belong to the user, where it is needed.
    """

    source: BigTable
    owner: str
    start: datetime | None
    end: datetime | None
    within: tuple[ColumnElement[bool], ...] = ()
    owned: ColumnElement[bool] | None = None

    @property
    def confined(self) -> tuple[ColumnElement[bool], ...]:
        """The user's criterion, if any."""
        return () if self.owned is None else (self.owned,)

    def criteria(self, after: Position | None = None, *, reverse: bool = False) -> tuple[ColumnElement[bool], ...]:
        """What a row must meet to be in the range and later than `after` in the order of reading."""
        time, tie = self._key
        found = [self.source.columns[self.source.owner] == self.owner, *self.within]
        start, end = self.start, self.end
        # One bound a side: of two, SQLite may begin at the farther one and read all that lies between them.
        if after is not None and reverse and (end is None or after[0] <= end):
            found.append(tuple_(time, tie) < self._bound(after))
            end = None
        elif after is not None and not reverse and (start is None or after[0] >= start):
            found.append(tuple_(time, tie) > self._bound(after))
            start = None
        if start is not None:
            found.append(time >= start)
        if end is not None:
            found.append(time <= end)
        return tuple(found)

    @staticmethod
    def parameters(after: Position) -> dict[str, Any]:
        """What a statement with such criteria takes to continue behind another row."""
        return {_AFTER_TIME: after[0], _AFTER_TIE: after[1]}

    def order(self, *, reverse: bool = False) -> tuple[ColumnElement[Any], ...]:
        """The order of reading."""
        return tuple(column.desc() for column in self._key) if reverse else self._key

    def _bound(self, after: Position) -> Any:
        time, tie = self._key
        return tuple_(bindparam(_AFTER_TIME, after[0], time.type), bindparam(_AFTER_TIE, after[1], tie.type))

    @property
    def _key(self) -> tuple[Column[Any], Column[Any]]:
        return self.source.columns.exchange_ts, self.source.columns[self.source.tie]


def trade_range(symbol: str, start: datetime | None = None, end: datetime | None = None) -> RowRange:
    """The trades of a symbol, bounds inclusive. `InvalidValueError` for what cannot be a symbol or a bound."""
    columns = TRADES.columns
    return RowRange(
        TRADES, _text(columns.symbol, symbol), _instant(columns.exchange_ts, start), _instant(columns.exchange_ts, end)
    )


def execution_range(
    run_id: str,
    start: datetime | None = None,
    end: datetime | None = None,
    symbol: str | None = None,
    *,
    owned: ColumnElement[bool] | None,
) -> RowRange:
    """The executions of a run, of one symbol if given, bounds inclusive.

    `InvalidValueError` for what cannot be a run's id, a symbol or a bound.
    """
    columns = EXECUTIONS.columns
    return RowRange(
        EXECUTIONS,
        _text(columns.run_id, run_id),
        _instant(columns.exchange_ts, start),
        _instant(columns.exchange_ts, end),
        () if symbol is None else (columns.symbol == _text(columns.symbol, symbol),),
        owned,
    )


def position_of(cursor: str | None) -> Position | None:
    """Time and id that a cursor names. `InvalidValueError` if it is none."""
    if cursor is None:
        return None
    when, separator, tie = cursor.partition(_SEPARATOR) if isinstance(cursor, str) else ("", "", "")
    try:
        instant = datetime.fromisoformat(when)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None or not separator:
        raise InvalidValueError("after= takes the cursor of a row read before: row.cursor, or cursor_of(row)")
    return instant.astimezone(UTC), tie


_SEPARATOR = "/"


def _cursor(when: datetime, tie: str) -> str:
    return f"{when.isoformat()}{_SEPARATOR}{tie}"


def _instant(column: Column[Any], value: datetime | None) -> datetime | None:
    kind = column.type
    assert isinstance(kind, UTCDateTime)
    return None if value is None else kind.instant(value)


def _text(column: Column[Any], value: Any) -> str:
    kind = column.type
    assert isinstance(kind, BoundedString)
    return kind.text(value)
