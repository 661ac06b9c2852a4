"""What the repositories of the two big tables are asked for many rows at once; one short method a question."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, overload

from sqlalchemy.orm import Session

from shared.db.models import PrivateExecution, PublicTrade
from shared.db.ranges import frames, gaps, summaries
from shared.db.ranges.bounds import ExecutionRow, RowRange, TradeRow, execution_range, trade_range
from shared.db.ranges.gaps import Gap, RunCoverage
from shared.db.ranges.streams import PAGE_SIZE, latest, stream
from shared.db.ranges.summaries import Candle, Coverage, RunTotals
from shared.db.tenancy.guard import UNSET, UserId
from shared.db.tenancy.ownership import owned_by

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow


class TradeReading:
    """Ranges of a symbol's trades.

    Bounds are inclusive, None leaves a side open; naive ones raise `InvalidValueError`.
    """

    session: Session

    @overload
    def iter_symbol_range(
        self,
        symbol: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        reverse: bool = False,
        after: str | None = None,
        as_objects: Literal[False] = False,
        page_size: int = PAGE_SIZE,
    ) -> Iterator[TradeRow]: ...

    @overload
    def iter_symbol_range(
        self,
        symbol: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        reverse: bool = False,
        after: str | None = None,
        as_objects: Literal[True],
        page_size: int = PAGE_SIZE,
    ) -> Iterator[PublicTrade]: ...

    def iter_symbol_range(
        self,
        symbol: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        reverse: bool = False,
        after: str | None = None,
        as_objects: bool = False,
        page_size: int = PAGE_SIZE,
    ) -> Iterator[Any]:
        """The trades of a symbol from `start` to `end`, one by one, in order of time and trade id.

        As `TradeRow`s, or as `PublicTrade`s with `as_objects=True`; any number of them, `page_size` at a time in
        memory. `reverse=True` begins with the newest; `after=row.cursor` goes on behind a row that was read before.
        Meanwhile the session may do anything else, commit included. What it writes meanwhile does not come, or on
        PostgreSQL only after a commit. Raises `InvalidValueError` for an `after` that is no cursor.
        """
        rows = trade_range(symbol, start, end)
        return stream(self.session, rows, reverse=reverse, after=after, as_objects=as_objects, page_size=page_size)

    def to_arrow(self, symbol: str, start: datetime | None = None, end: datetime | None = None) -> pyarrow.Table:
        """The trades as a pyarrow Table of `TradeRow`'s columns: decimal128(20, 8) and timestamp[us, UTC], exact.

        This and its two sisters need the extra `frames`; without it they raise `MissingExtraError`.
        """
        return frames.to_arrow(self.session, trade_range(symbol, start, end))

    def to_polars(self, symbol: str, start: datetime | None = None, end: datetime | None = None) -> polars.DataFrame:
        """The trades as a polars DataFrame, exact."""
        return frames.to_polars(self.session, trade_range(symbol, start, end))

    def to_pandas(self, symbol: str, start: datetime | None = None, end: datetime | None = None) -> pandas.DataFrame:
        """The trades as a pandas DataFrame of Arrow types, exact."""
        return frames.to_pandas(self.session, trade_range(symbol, start, end))

    def candles(
        self, symbol: str, start: datetime | None, end: datetime | None, interval: timedelta | str
    ) -> list[Candle]:
        """Candles of the trades from `start` to `end`, one a `timedelta` or a "30s", "5m", "1h", "1d", by time.

        Intervals count from 1970-01-01T00:00Z; one without a trade has no candle. The database computes them, to the
        same digits on each. Raises `InvalidValueError` for what is no interval.
        """
        return summaries.candles(self.session, trade_range(symbol, start, end), interval)

    def coverage(self, *, count: bool = True) -> list[Coverage]:
        """First and last time of each symbol's trades, and their number, by symbol.

        With `count=False` it takes milliseconds, whatever is stored; counting reads the whole index.
        """
        return summaries.coverage(self.session, count=count)

    def gaps(
        self, symbol: str, seconds: float, start: datetime | None = None, end: datetime | None = None
    ) -> Iterator[Gap]:
        """The times of more than `seconds` without a trade of a symbol, in order, as the session's transaction goes on.

        From `start` to `end`, which count as marks where they are given: a symbol without any trade there is one gap.
        The database walks the index. Raises `InvalidValueError` for what is no number of seconds.
        """
        return gaps.gaps(self.session, trade_range(symbol, start, end), seconds)

    def get_trade_at_or_before(self, symbol: str, ts: datetime) -> PublicTrade | None:
        """The last trade of a symbol at `ts` or before it, None if there is none."""
        return latest(self.session, trade_range(symbol, None, ts))


class ExecutionReading:
    """Ranges of a run's executions, of one symbol if given; empty for a run that is not the user's.

    Bounds are inclusive, None leaves a side open; naive ones raise `InvalidValueError`.
    """

    session: Session

    if TYPE_CHECKING:

        def _resolve(self, user_id: UserId) -> str | None: ...

    @overload
    def iter_run_range(
        self,
        run_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        symbol: str | None = None,
        reverse: bool = False,
        after: str | None = None,
        as_objects: Literal[False] = False,
        page_size: int = PAGE_SIZE,
        user_id: UserId = UNSET,
    ) -> Iterator[ExecutionRow]: ...

    @overload
    def iter_run_range(
        self,
        run_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        symbol: str | None = None,
        reverse: bool = False,
        after: str | None = None,
        as_objects: Literal[True],
        page_size: int = PAGE_SIZE,
        user_id: UserId = UNSET,
    ) -> Iterator[PrivateExecution]: ...

    def iter_run_range(
        self,
        run_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        symbol: str | None = None,
        reverse: bool = False,
        after: str | None = None,
        as_objects: bool = False,
        page_size: int = PAGE_SIZE,
        user_id: UserId = UNSET,
    ) -> Iterator[Any]:
        """The executions of a run from `start` to `end`, one by one, in order of time and execution id.

        As `ExecutionRow`s, which leave out `raw_json`, or as `PrivateExecution`s with `as_objects=True`; all else as
        in `PublicTradeRepository.iter_symbol_range`.
        """
        rows = self._range(run_id, start, end, symbol, user_id)
        return stream(self.session, rows, reverse=reverse, after=after, as_objects=as_objects, page_size=page_size)

    def to_arrow(
        self,
        run_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        symbol: str | None = None,
        user_id: UserId = UNSET,
    ) -> pyarrow.Table:
        """The executions as a pyarrow Table of `ExecutionRow`'s columns: decimal128(20, 8) and timestamp[us, UTC].

        This and its two sisters need the extra `frames`; without it they raise `MissingExtraError`.
        """
        return frames.to_arrow(self.session, self._range(run_id, start, end, symbol, user_id))

    def to_polars(
        self,
        run_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        symbol: str | None = None,
        user_id: UserId = UNSET,
    ) -> polars.DataFrame:
        """The executions as a polars DataFrame, exact."""
        return frames.to_polars(self.session, self._range(run_id, start, end, symbol, user_id))

    def to_pandas(
        self,
        run_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        symbol: str | None = None,
        user_id: UserId = UNSET,
    ) -> pandas.DataFrame:
        """The executions as a pandas DataFrame of Arrow types, exact."""
        return frames.to_pandas(self.session, self._range(run_id, start, end, symbol, user_id))

    def totals(
        self,
        run_id: str,
        symbol: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        user_id: UserId = UNSET,
    ) -> RunTotals:
        """Number, profit and loss, fees and volume by side of the executions: exact sums, zeros if there are none."""
        return summaries.totals(self.session, self._range(run_id, start, end, symbol, user_id))

    def coverage(self, run_id: str | None = None, *, user_id: UserId = UNSET) -> list[RunCoverage]:
        """First and last time and number of executions of each of the user's runs, of one if given, oldest first."""
        return gaps.run_coverage(self.session, self._resolve(user_id), run_id)

    def gaps(
        self,
        run_id: str,
        seconds: float,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        symbol: str | None = None,
        user_id: UserId = UNSET,
    ) -> Iterator[Gap]:
        """The times of more than `seconds` without an execution of a run, as in `PublicTradeRepository.gaps`."""
        return gaps.gaps(self.session, self._range(run_id, start, end, symbol, user_id), seconds)

    def get_execution_at_or_before(
        self, run_id: str, ts: datetime, symbol: str | None = None, *, user_id: UserId = UNSET
    ) -> PrivateExecution | None:
        """The last execution of a run at `ts` or before it, None if there is none."""
        return latest(self.session, self._range(run_id, None, ts, symbol, user_id))

    def _range(
        self, run_id: str, start: datetime | None, end: datetime | None, symbol: str | None, user_id: UserId
    ) -> RowRange:
        user = self._resolve(user_id)
        owned = None if user is None else owned_by(PrivateExecution, user)
        return execution_range(run_id, start, end, symbol, owned=owned)
