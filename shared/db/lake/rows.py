"""Rows of a stream as the lake has them: which columns, from the database, and from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, Self

from sqlalchemy import Column, func, select
from sqlalchemy.orm import Session

from shared.db.errors import InputError, LakeError
from shared.db.lake.libraries import np, pa, pc, pq
from shared.db.lake.places import EPOCH, MICROSECOND, Period, Place, named_failures
from shared.db.lake.seam import numbers
from shared.db.operations.digests import sums
from shared.db.ranges import frames
from shared.db.ranges.bounds import RowRange, Source, source_of
from shared.db.ranges.streams import read
from shared.db.tables import OWNERSHIP, generated_key
from shared.db.value_forms.forms import forms_of

_ROW_GROUP = 100_000
_BATCH = 20_000
_NOTES = b"shared.db"


def kept_source(model: type[Any]) -> Source:
    """The stream of a model whose rows a lake may hold; `InputError` for one whose rows it must not."""
    source = source_of(model)
    table = model.__tablename__
    if OWNERSHIP.get(model) is not None:
        raise InputError(
            f"rows of {table} belong to users, and whoever can read a lake's files reads all of them; the lake takes "
            "what is shared by all, and export writes the rows of one user"
        )
    unfit = [column.name for column in source.columns if forms_of(column.type).document or forms_of(column.type).secret]
    if unfit:
        raise InputError(f"{table} has {unfit[0]}, a document or a secret, which a lake does not take; use export")
    return source


def columns_of(source: Source) -> list[Column[Any]]:
    """All columns but a number that the database gives."""
    return [column for column in source.columns if column.name != generated_key(source.model)]


def of_database(session: Session, rows: RowRange) -> Iterator[Any]:
    """Batches of a range as the database has it, with all columns of the lake."""
    return frames.batches(session, rows, columns_of(rows.source))


def of_file(
    place: Place,
    period: Period,
    columns: Sequence[Column[Any]] = (),
    low: datetime | None = None,
    high: datetime | None = None,
    size: int | None = None,
    *,
    reverse: bool = False,
) -> Iterator[Any]:
    """Batches of what the file of a period holds, from `low` to `high`, or back. `LakeError` for a damaged file."""
    wanted = columns or columns_of(period.source)
    schema = pa.schema([(column.name, forms_of(column.type).arrow_type(pa)) for column in wanted])
    time = period.source.stream.time
    low = None if low is None or low <= period.month.start else low
    high = None if high is None or high >= period.month.end else high
    with named_failures(period.path), place.parquet(period.path) as file:
        groups = [number for number in range(file.num_row_groups) if _reaches(file, number, time, low, high)]
        there = [name for name in schema.names if name in file.schema_arrow.names]
        read = partial(_backwards, file) if reverse else file.iter_batches
        for batch in read(size or _BATCH, groups, there):
            found = _fitted(batch, schema, wanted, period)
            if low is not None:
                found = found.filter(pc.greater_equal(found[time], pa.scalar(low, found[time].type)))
            if high is not None:
                found = found.filter(pc.less_equal(found[time], pa.scalar(high, found[time].type)))
            yield found


def _backwards(file: Any, size: int, groups: Sequence[int], columns: Sequence[str]) -> Iterator[Any]:
    for group in reversed(groups):
        table = file.read_row_group(group, columns)
        for batch in reversed(table.combine_chunks().to_batches(size)):
            yield batch.take(pa.array(np.arange(len(batch) - 1, -1, -1)))


def _reaches(file: Any, group: int, time: str, low: datetime | None, high: datetime | None) -> bool:
    told = file.metadata.row_group(group).column(file.schema_arrow.names.index(time)).statistics
    if told is None or not told.has_min_max:
        return True
    return (low is None or told.max >= low) and (high is None or told.min <= high)


def _fitted(batch: Any, schema: Any, wanted: Sequence[Column[Any]], period: Period) -> Any:
    """With the columns that the table has by now: one that came later is NULL in what was written before."""
    arrays = []
    for column, kind in zip(wanted, schema.types, strict=True):
        if column.name in batch.schema.names:
            arrays.append(batch.column(column.name).cast(kind))
        elif column.nullable:
            arrays.append(pa.nulls(len(batch), kind))
        else:
            raise LakeError(f"{period.path} has no {column.name}; drop it from the lake, import it, and write it again")
    return pa.record_batch(arrays, schema=schema)


def state_of(session: Session, rows: RowRange) -> dict[str, str]:
    """What tells a range in the database from another state of it: how many rows, and the newest one's number.

    Where the database numbers no rows, exact sums, first and last of each column in its place.
    """
    number = rows.source.number
    asked: dict[str, Any] = {"rows": func.count()}
    if number is not None:
        asked["newest"] = func.max(number)
    else:
        for column in columns_of(rows.source):
            asked |= {f"{name} of {column.name}": what for name, what in sums(column).items()}
    statement = select(*(what.label(name) for name, what in asked.items())).where(*rows.criteria())
    return {name: str(value) for name, value in read(session, statement).mappings().one().items()}


class Notes(NamedTuple):
    """What a file says of itself: the times of its first and last row, and `even`.

    That is whether rows of one instant are in the order of candles too, where a shorter id comes first.
    """

    rows: int
    first: str
    last: str
    even: bool


def notes_of(file: Any) -> Notes:
    """Those of an opened Parquet file."""
    told = json.loads((file.metadata.metadata or {}).get(_NOTES, b"{}"))
    return Notes(file.metadata.num_rows, told.get("first", ""), told.get("last", ""), told.get("even", False))


class Writer:
    """Writes batches into a Parquet file, in row groups of one size, in flat memory."""

    def __init__(self, path: str, source: Source) -> None:
        self._order = source.stream.order
        columns = columns_of(source)
        kinds = [(column.name, forms_of(column.type).arrow_type(pa)) for column in columns]
        times = [name for name, kind in kinds if pa.types.is_timestamp(kind)]
        words = [name for name, kind in kinds if pa.types.is_string(kind) and name not in self._order]
        self._file = pq.ParquetWriter(
            path,
            pa.schema(kinds),
            compression="zstd",
            use_dictionary=words,
            column_encoding=dict.fromkeys(times, "DELTA_BINARY_PACKED"),
            write_page_checksum=True,
            sorting_columns=[pq.SortingColumn([name for name, _ in kinds].index(name)) for name in self._order],
        )
        self._waiting: list[Any] = []
        self._rows = 0
        self._total = 0
        self._first: int | None = None
        self._last: int | None = None
        self._length = 0  # the last row's id
        self._even = True
        self._thread = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._file.close()

    def add(self, table: Any) -> None:
        """The next rows."""
        if not table.num_rows:
            return
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        self._note(table)
        self._waiting.append(table)
        self._rows += table.num_rows
        if self._rows >= _ROW_GROUP:
            self._flush()

    def close(self) -> Notes:
        """The end; what the file says of itself."""
        self._flush()
        self._flush()  # and what it began
        notes = Notes(self._total, _text(self._first), _text(self._last), self._even)
        self._file.add_key_value_metadata({_NOTES: json.dumps(notes._asdict())})
        self._file.close()
        return notes

    def _flush(self) -> None:
        if self._written is not None:
            self._written.result()
        if self._waiting:
            # Beside the reading of those that follow: Arrow needs no lock of the interpreter's for it.
            table, self._waiting, self._rows = pa.concat_tables(self._waiting), [], 0
            self._written = self._thread.submit(self._file.write_table, table, row_group_size=_ROW_GROUP)

    def _note(self, table: Any) -> None:
        time, *ties = (table[name] for name in self._order)
        times = numbers(time)
        if self._even and ties and pa.types.is_string(ties[0].type):
            longer = numbers(pc.utf8_length(ties[0]).cast(pa.int64()))
            shrinks = (times[1:] == times[:-1]) & (longer[1:] < longer[:-1])
            self._even = not (np.any(shrinks) or (self._last == times[0] and self._length > longer[0]))
            self._length = int(longer[-1])
        self._total += table.num_rows
        self._first = int(times[0]) if self._first is None else self._first
        self._last = int(times[-1])


def _text(micros: int | None) -> str:
    return "" if micros is None else (EPOCH + micros * MICROSECOND).isoformat()
