"""What a repository is asked of a declared stream: one short method a question, whichever table it is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from sqlalchemy.orm import Session

from shared.db.models import Base, ExecutionRow, PrivateExecution, PublicTrade, TradeRow
from shared.db.ranges import frames, gaps, summaries
from shared.db.ranges.bounds import RowRange, source_of
from shared.db.ranges.gaps import Gap, RunCoverage
from shared.db.ranges.streams import PAGE_SIZE, latest, stream
from shared.db.ranges.summaries import Candle, Coverage, RunTotals, StreamCoverage
from shared.db.tables import stream_of
from shared.db.tenancy.ownership import readable_by
from shared.db.tenancy.user_ids import UNSET, UserId

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

T = TypeVar("T", bound=Base)


class StreamReading(Generic[T]):
    """Questions about the rows of one key (a symbol, a run), of a model that declared a `__stream__`.

    Bounds are inclusive, and None leaves a side open. The key is given first, or by its column's name (`symbol=`,
    `run_id=`), and further keyword arguments are columns with the value that they must have; None stands for any.
    Raises `InvalidValueError` for a model without a stream, a column that it has not, and a naive time. Rows that are
    not the user's are as if they were not there.
    """

    session: Session
    model: type[T]

    if TYPE_CHECKING:

        def _resolve(self, user_id: UserId) -> str | None: ...

    def iter_range(
        self,
        key: Any = None,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        reverse: bool = False,
        after: str | None = None,
        as_objects: bool = False,
        page_size: int = PAGE_SIZE,
        user_id: UserId = UNSET,
        **equal: Any,
    ) -> Iterator[Any]:
        """The rows of a key from `start` to `end`, one by one, in order of time and of the stream's tie.

        As plain named tuples, or as mapped objects with `as_objects=True`; any number of them, `page_size` at a time
        in memory. `reverse=True` begins with the newest; `after=row.cursor` goes on behind a row that was read before.
        Meanwhile the session may do anything else, commit included. What it writes meanwhile does not come, or on
        PostgreSQL only after a commit. Raises `InvalidValueError` for an `after` that is no cursor.
        """
        rows = self._range(key, start, end, user_id, equal)
        return stream(self.session, rows, reverse=reverse, after=after, as_objects=as_objects, page_size=page_size)

    def to_arrow(
        self,
        key: Any = None,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        user_id: UserId = UNSET,
        **equal: Any,
    ) -> pyarrow.Table:
        """The rows as a pyarrow Table with the columns of the plain rows: decimal128(20, 8), timestamp[us, UTC].

        This and its two sisters are exact. They need the extra `frames`; without it they raise `MissingExtraError`.
        """
        return frames.to_arrow(self.session, self._range(key, start, end, user_id, equal))

    def to_polars(
        self,
        key: Any = None,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        user_id: UserId = UNSET,
        **equal: Any,
    ) -> polars.DataFrame:
        """The rows as a polars DataFrame."""
        return frames.to_polars(self.session, self._range(key, start, end, user_id, equal))

    def to_pandas(
        self,
        key: Any = None,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        user_id: UserId = UNSET,
        **equal: Any,
    ) -> pandas.DataFrame:
        """The rows as a pandas DataFrame of Arrow types."""
        return frames.to_pandas(self.session, self._range(key, start, end, user_id, equal))

    def latest(self, key: Any = None, *, user_id: UserId = UNSET, **equal: Any) -> T | None:
        """The newest row of a key as a mapped object, None if it has none."""
        return latest(self.session, self._range(key, None, None, user_id, equal))

    def at_or_before(self, key: Any, ts: datetime, *, user_id: UserId = UNSET, **equal: Any) -> T | None:
        """The last row of a key at `ts` or before it as a mapped object, None if there is none."""
        return latest(self.session, self._range(key, None, ts, user_id, equal))

    def coverage(self, *, count: bool = True, user_id: UserId = UNSET) -> list[StreamCoverage]:
        """First and last time of the rows of each key, and their number, by key.

        With `count=False` and a table shared by all it takes milliseconds, whatever is stored.
        """
        user = self._resolve(user_id)
        owned = None if user is None else readable_by(self.model, user)
        return summaries.coverage(self.session, source_of(self.model), owned, count=count)

    def gaps(
        self,
        key: Any = None,
        seconds: float | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        user_id: UserId = UNSET,
        **equal: Any,
    ) -> Iterator[Gap]:
        """The times of more than `seconds` without a row of a key, in order, as the session's transaction goes on.

        From `start` to `end`, which count as marks where they are given: a key without any row there is one gap. The
        database walks the index. Raises `InvalidValueError` for what is no number of seconds.
        """
        return gaps.gaps(self.session, self._range(key, start, end, user_id, equal), seconds)

    def _range(
        self, key: Any, start: datetime | None, end: datetime | None, user_id: UserId, equal: dict[str, Any]
    ) -> RowRange:
        user = self._resolve(user_id)
        if key is None:
            key = equal.pop(stream_of(self.model).by, None)
        # A range is read past the ORM, where a user's session adds no criterion by itself.
        owned = None if user is None else readable_by(self.model, user)
        return source_of(self.model).range(key, start, end, equal, owned)


class TradeReading(StreamReading[PublicTrade]):
    """Questions about the trades of a symbol."""

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
        self, symbol: str, start: datetime | None = None, end: datetime | None = None, **how: Any
    ) -> Iterator[Any]:
        """The trades of a symbol from `start` to `end`, in order of time and trade id, as `iter_range`.

        As `TradeRow`s, or as `PublicTrade`s with `as_objects=True`.
        """
        return self.iter_range(symbol, start, end, **how)

    def candles(
        self, symbol: str, start: datetime | None, end: datetime | None, interval: timedelta | str
    ) -> list[Candle]:
        """Candles of the trades from `start` to `end`, one a `timedelta` or a "30s", "5m", "1h", "1d", by time.

        Intervals count from 1970-01-01T00:00Z; one without a trade has no candle. The database computes them, to the
        same digits on each. Raises `InvalidValueError` for what is no interval.
        """
        return summaries.candles(self.session, self._range(symbol, start, end, UNSET, {}), interval)

    def coverage(  # type: ignore[override] # rows that call the key a symbol, and are never without a time
        self, *, count: bool = True
    ) -> list[Coverage]:
        """First and last time of each symbol's trades, and their number, by symbol.

        With `count=False` it takes milliseconds, whatever is stored; counting reads the whole index.
        """
        found = summaries.coverage(self.session, source_of(PublicTrade), None, count=count)
        return [Coverage._make(each) for each in found]

    def get_trade_at_or_before(self, symbol: str, ts: datetime) -> PublicTrade | None:
        """The last trade of a symbol at `ts` or before it, None if there is none."""
        return self.at_or_before(symbol, ts)


class ExecutionReading(StreamReading[PrivateExecution]):
    """Questions about a run's executions, of one symbol if given; empty for a run that is not the user's."""

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
        user_id: UserId = UNSET,
        **how: Any,
    ) -> Iterator[Any]:
        """The executions of a run from `start` to `end`, in order of time and execution id, as `iter_range`.

        As `ExecutionRow`s, which leave out `raw_json`, or as `PrivateExecution`s with `as_objects=True`.
        """
        return self.iter_range(run_id, start, end, user_id=user_id, **how)

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
        return summaries.totals(self.session, self._range(run_id, start, end, user_id, {"symbol": symbol}))

    def coverage(  # type: ignore[override] # runs without an execution are told too
        self, run_id: str | None = None, *, user_id: UserId = UNSET
    ) -> list[RunCoverage]:
        """First and last time and number of executions of each of the user's runs, of one if given, oldest first."""
        return gaps.run_coverage(self.session, self._resolve(user_id), run_id)

    def get_execution_at_or_before(
        self, run_id: str, ts: datetime, symbol: str | None = None, *, user_id: UserId = UNSET
    ) -> PrivateExecution | None:
        """The last execution of a run at `ts` or before it, None if there is none."""
        return self.at_or_before(run_id, ts, user_id=user_id, symbol=symbol)
