"""Questions about the rows of the lake and of the database as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, select
from sqlalchemy.orm import Session

from shared.db.database import DatabaseFactory
from shared.db.errors import InvalidValueError
from shared.db.lake.libraries import duckdb, np, pa
from shared.db.lake.places import MICROSECOND, Period, Place, Shelf, named_failures
from shared.db.lake.rows import kept_source, notes_of, of_file
from shared.db.lake.seam import merged
from shared.db.models import PublicTrade
from shared.db.ranges import frames
from shared.db.ranges.bounds import RowRange
from shared.db.ranges.streams import at_one_moment, read
from shared.db.ranges.summaries import Candle, PartOfCandle, interval_of, joined, parts_of_candles
from shared.db.value_forms.amounts import EXACT, MONEY_PLACES
from shared.db.value_forms.forms import DIALECTS, forms_of

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST = datetime(1, 1, 1, tzinfo=UTC)
# What DuckDB reads as a pattern in a file's name.
_PATTERN = frozenset("*?[")
_SPLIT = 10_000_000_000
_UNITS = 10**MONEY_PLACES


class LakeReading:
    """Questions about the rows of one key, wherever they are: each row comes once, and none is missing at the seam.

    Where the lake and the database have a row of one key, the database's counts. Each question has a session of its
    own, and sees the database as it is at one moment; the lake is looked at after that, so that a month which is being
    purged meanwhile is in one of them. Bounds are inclusive, and None leaves a side open.
    """

    def __init__(self, place: Place, db: DatabaseFactory, model: type[Any]) -> None:
        self._place, self._db = place, db
        self._source = kept_source(model)
        self._columns = [self._source.column(name) for name in self._source.row._fields]

    def iter_range(self, key: Any, start: datetime | None = None, end: datetime | None = None) -> Iterator[Any]:
        """The rows from `start` to `end`, as plain named tuples in order of time and of the stream's tie.

        Any number of them, some thousands at a time in memory. Its session is open until the last row was taken.
        """
        rows = self._source.range(key, start, end)
        return chain.from_iterable(map(self._plain, self._tables(rows)))

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
            parts: list[PartOfCandle] = []
            for period, rows in self._segments(self._source.range(symbol, start, end)):
                if period is None:
                    parts += parts_of_candles(session, rows, length)
                else:
                    parts += self._parts(session, period, rows, length)
            return joined(parts)

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

    def _tables(self, rows: RowRange) -> Iterator[Any]:
        with self._now() as session:
            for period, within in self._segments(rows):
                yield from self._both(session, period, within, self._columns)

    def _both(self, session: Session, period: Period | None, rows: RowRange, columns: Sequence[Column[Any]]) -> Any:
        kept = () if period is None else of_file(self._place, period, columns, rows.start, rows.end)
        return merged(kept, frames.batches(session, rows, columns), self._source.stream.order)

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

    def _parts(self, session: Session, period: Period, rows: RowRange, length: timedelta) -> list[PartOfCandle]:
        criteria = rows.criteria()
        alone = read(session, select(self._source.time).where(*criteria).limit(1)).first() is None
        local = self._place.local_path(period.path)
        with named_failures(period.path), duckdb.connect(":memory:") as connection:
            with self._place.parquet(period.path) as file:
                even = alone and notes_of(file).even
            times = f"exchange_ts BETWEEN TIMESTAMPTZ '{rows.start}' AND TIMESTAMPTZ '{rows.end}'"
            if rows.start == period.month.start and rows.end == period.month.end:
                times = "true"

            def asked(exact: bool) -> list[PartOfCandle]:
                if alone and local is not None and not _PATTERN & set(str(local)):
                    source = "read_parquet($path, file_row_number = true, hive_partitioning = false)"
                    where, given = times, {"path": str(local)}
                else:
                    trades = self._reader(session, period, rows)  # noqa: F841 # DuckDB finds it by its name
                    source, where, given = "trades", "true", {}
                return _parts(connection.execute(_candles(source, where, length, even, exact), given), exact=exact)

            try:
                return asked(exact=False)
            except (duckdb.ConversionException, duckdb.OutOfRangeException):
                # Products of amounts beyond what DuckDB multiplies as they are.
                return asked(exact=True)

    def _reader(self, session: Session, period: Period, rows: RowRange) -> Any:
        columns = [self._source.column(name) for name in ("exchange_ts", "trade_id", "price", "size")]
        kinds = [(column.name, forms_of(column.type).arrow_type(pa)) for column in columns]
        schema = pa.schema([*kinds, ("file_row_number", pa.int64())])

        def numbered() -> Iterator[Any]:
            count = 0
            for table in self._both(session, period, rows, columns):
                number = pa.array(np.arange(count, count + len(table)))
                count += len(table)
                yield from table.append_column("file_row_number", number).cast(schema).to_batches()

        return pa.RecordBatchReader.from_batches(schema, numbered())


def _candles(source: str, where: str, length: timedelta, even: bool, exact: bool) -> str:
    micros = length // MICROSECOND
    shift = micros * ((_EPOCH - _EARLIEST) // length + 1)
    place = "file_row_number" if even else "{t: exchange_ts, n: length(trade_id), i: trade_id}"
    turnover = "sum(price::DECIMAL(19, 8) * size::DECIMAL(19, 8)), 0"
    if exact:
        units = [f"({name} * {_UNITS})::HUGEINT" for name in ("price", "size")]
        turnover = f"sum({units[0]} * ({units[1]} // {_SPLIT})), sum({units[0]} * ({units[1]} % {_SPLIT}))"
    return f"""
        SELECT (epoch_us(exchange_ts) + {shift}) // {micros} * {micros} - {shift} AS open_ts,
            arg_min(price, {place}), max(price), min(price), arg_max(price, {place}), sum(size), count(*), {turnover}
        FROM {source} WHERE {where} GROUP BY open_ts ORDER BY open_ts
    """


def _parts(found: Any, *, exact: bool) -> list[PartOfCandle]:
    parts = []
    for micros, *told, turnover, rest in found.fetchall():
        if exact:
            turnover = EXACT.scaleb(Decimal(turnover * _SPLIT + rest), -2 * MONEY_PLACES)
        parts.append(PartOfCandle._make((_EPOCH + micros * MICROSECOND, *told, turnover)))
    return parts
