"""Questions about the rows of the lake and of the database as one."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, select
from sqlalchemy.orm import Session

from shared.db.database import DatabaseFactory
from shared.db.errors import InvalidValueError
from shared.db.lake.candles import PRICE, SIZE, TIE, TIME, pieces
from shared.db.lake.libraries import pa, pc
from shared.db.lake.places import MICROSECOND, Period, Place, Shelf, named_failures
from shared.db.lake.rows import kept_source, notes_of, of_file
from shared.db.lake.seam import merged, slices
from shared.db.models import PublicTrade
from shared.db.ranges import frames
from shared.db.ranges.bounds import Position, RowRange
from shared.db.ranges.streams import at_one_moment, read
from shared.db.ranges.summaries import Candle, Piece, interval_of, joined, parts_of_candles, piece_of
from shared.db.value_forms.forms import DIALECTS, forms_of

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

# Rows that are read from the database at a time, and trades that are made candles of.
_PAGE, _MANY = 20_000, 100_000


class LakeReading:
    """Questions about the rows of one key, wherever they are: each row comes once, and none is missing at the seam.

    Where the lake and the database have a row of one key, the database's counts. Each question has a session of its
    own, and sees the database as it is at one moment; the lake is looked at after that, so that a month which is being
    purged meanwhile is in one of them. Bounds are inclusive, and None leaves a side open.
    """

    def __init__(self, place: Place, db: DatabaseFactory, model: type[Any]) -> None:
        self._place, self._db = place, db
        self._source = kept_source(model)
        Shelf(place, self._source).expect()
        self._columns = [self._source.column(name) for name in self._source.row._fields]

    def iter_range(
        self,
        key: Any,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        reverse: bool = False,
        after: str | None = None,
    ) -> Iterator[Any]:
        """The rows from `start` to `end`, as plain named tuples in order of time and of the stream's tie.

        Any number of them, some thousands at a time in memory. `reverse=True` begins with the newest;
        `after=row.cursor` goes on behind a row that was read before, here or from the database. Its session is open
        until the last row was taken. Raises `InvalidValueError` for an `after` that is no cursor.
        """
        rows = self._source.range(key, start, end)
        tables = self._tables(rows, rows.position_of(after), reverse=reverse)
        return chain.from_iterable(map(self._plain, tables))

    def latest(self, key: Any) -> Any | None:
        """The newest row of a key as a plain named tuple, None if it has none."""
        return self._last(self._source.range(key))

    def at_or_before(self, key: Any, ts: datetime) -> Any | None:
        """The last row of a key at `ts` or before it as a plain named tuple, None if there is none."""
        return self._last(self._source.range(key, None, ts))

    def to_arrow(self, key: Any, start: datetime | None = None, end: datetime | None = None) -> pyarrow.Table:
        """The rows as a pyarrow Table with the columns of the plain rows: decimal128(20, 8), timestamp[us, UTC]."""
        kinds = [(column.name, forms_of(column.type).arrow_type(pa)) for column in self._columns]
        found = list(self._tables(self._source.range(key, start, end)))
        return pa.concat_tables([pa.schema(kinds).empty_table(), *found])

    def to_polars(self, key: Any, start: datetime | None = None, end: datetime | None = None) -> polars.DataFrame:
        """The rows as a polars DataFrame."""
        return frames.as_polars(self.to_arrow(key, start, end))

    def to_pandas(self, key: Any, start: datetime | None = None, end: datetime | None = None) -> pandas.DataFrame:
        """The rows as a pandas DataFrame of Arrow types."""
        return frames.as_pandas(self.to_arrow(key, start, end))

    def candles(
        self, symbol: str, start: datetime | None, end: datetime | None, interval: timedelta | str
    ) -> list[Candle]:
        """The candles of trades, as `PublicTradeRepository.candles` has them, to the last digit."""
        if self._source.model is not PublicTrade:
            raise InvalidValueError(f"candles are made of trades, and not of {self._source.model.__name__}")
        length = interval_of(interval)
        with self._now() as session:
            return joined(self._pieces(session, self._source.range(symbol, start, end), length))

    @contextmanager
    def _now(self) -> Iterator[Session]:
        with self._db.get_session(read_only=True) as session:
            at_one_moment(session)
            # That moment is the first read's.
            read(session, select(self._source.time).limit(1)).first()
            yield session

    def _segments(self, rows: RowRange) -> Iterator[tuple[Period | None, RowRange]]:
        """The range in pieces, in order: months of which the lake has a file, and what lies between them."""
        low = rows.start
        for month, period in Shelf(self._place, self._source).periods(rows.key).items():
            outside = (rows.end is not None and rows.end < month.start) or (low is not None and low > month.end)
            if outside or not self._place.exists(period.path):
                continue
            if low is None or low < month.start:
                yield None, self._source.range(rows.key, low, month.start - MICROSECOND)
            within = max(low or month.start, month.start), min(rows.end or month.end, month.end)
            yield period, self._source.range(rows.key, *within)
            low = month.following.start
        if low is None or rows.end is None or low <= rows.end:
            yield None, self._source.range(rows.key, low, rows.end)

    def _last(self, rows: RowRange) -> Any | None:
        with closing(self._tables(rows, reverse=True, size=1)) as tables:
            return next((row for table in tables for row in self._plain(table.slice(0, 1))), None)

    def _tables(
        self, rows: RowRange, after: Position | None = None, *, reverse: bool = False, size: int | None = None
    ) -> Generator[Any]:
        """The rows in tables, those behind `after` in the order of reading; of the database so many at a time."""
        if after is not None and reverse:
            rows = replace(rows, end=after[0] if rows.end is None else min(rows.end, after[0]))
        elif after is not None:
            rows = replace(rows, start=after[0] if rows.start is None else max(rows.start, after[0]))
        with self._now() as session:
            segments = list(self._segments(rows))
            for period, within in reversed(segments) if reverse else segments:
                for table in self._both(session, period, within, self._columns, size, reverse=reverse):
                    yield table if after is None else self._behind(table, after, reverse)

    def _behind(self, table: Any, after: Position, reverse: bool) -> Any:
        time, *ties = (table[name] for name in self._source.stream.order)
        behind = pc.not_equal(time, pa.scalar(after[0], time.type))
        for tie, value in zip(ties, after[1:], strict=True):
            beyond = pc.less if reverse else pc.greater
            behind = pc.or_(behind, beyond(tie, pa.scalar(value, tie.type)))
        return table.filter(behind)

    def _both(
        self,
        session: Session,
        period: Period | None,
        rows: RowRange,
        columns: Sequence[Column[Any]],
        size: int | None = None,
        *,
        reverse: bool = False,
    ) -> Iterator[Any]:
        kept = () if period is None else of_file(self._place, period, columns, rows.start, rows.end, reverse=reverse)
        stored = frames.batches(session, rows, columns, size or _PAGE, reverse=reverse)
        return merged(kept, stored, self._source.stream.order, reverse=reverse)

    def _plain(self, table: Any) -> Iterator[Any]:
        dialect = DIALECTS["postgresql"]
        columns = []
        for column in self._columns:
            array = table[column.name]
            if pa.types.is_timestamp(array.type):
                array = array.cast(pa.timestamp("us"))
            if pa.types.is_timestamp(array.type) or pa.types.is_decimal(array.type):
                array = array.cast(pa.string())
            columns.append(forms_of(column.type).decoding(dialect)(array.to_pylist()))
        return map(partial(tuple.__new__, self._source.row), zip(*columns, strict=True))

    def _pieces(self, session: Session, rows: RowRange, length: timedelta) -> Iterator[Piece]:
        for period, within in self._segments(rows):
            if period is None:
                parts = parts_of_candles(session, within, length)
                yield from [piece_of(parts)] if parts else ()
            else:
                yield from pieces(self._trades(session, period, within), length)

    def _trades(self, session: Session, period: Period, rows: RowRange) -> Iterator[Any]:
        """Time, price and size of a period's trades, and the id where their order is not that of candles."""
        first = select(self._source.time).where(*rows.criteria()).limit(1)
        if read(session, first).first() is None:
            with named_failures(period.path), self._place.parquet(period.path) as file:
                even = notes_of(file).even
            names = (TIME, PRICE, SIZE) if even else (TIME, TIE, PRICE, SIZE)
            found = of_file(self._place, period, list(map(self._source.column, names)), rows.start, rows.end, _MANY)
            return found if even else slices(found, TIME, _MANY)
        columns = list(map(self._source.column, (TIME, TIE, PRICE, SIZE)))
        return slices(self._both(session, period, rows, columns), TIME, _MANY)
