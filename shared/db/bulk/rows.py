"""Rows as callers give them (mappings, objects, named tuples, frames), turned into columns of values.

Columns, because a check or a conversion of 250 values at once is one call into C where 250 rows need 250.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import inspect

from shared.db.errors import InvalidValueError

# Enough to make the cost of a call small, few enough to be converted while the server works on the ones before.
CHUNK = 250
Row = dict[str, Any]


class Chunk(NamedTuple):
    """Some rows with the same columns: `columns[i]` holds the `size` values of `names[i]`."""

    names: tuple[str, ...]
    columns: Sequence[Sequence[Any]]
    size: int


class RowBatch:
    """Rows that are written together: those of `rows` in `span`, or all of them.

    `position` is the first one's place in all that was given.
    """

    def __init__(
        self, model: type[Any], rows: list[Any], position: int, fillable: frozenset[str], span: range | None = None
    ) -> None:
        self.position = position
        self._model = model
        self._rows = rows
        self._fillable = fillable
        self._span = range(len(rows)) if span is None else span

    def __len__(self) -> int:
        return len(self._span)

    def row(self, index: int) -> Any:
        """A row as it was given."""
        return self._rows[self._span[index]]

    def names(self) -> tuple[str, ...]:
        """The column names of the first item that is a row."""
        for index in self._span:
            with suppress(InvalidValueError):
                return tuple(mapping_of(self._rows[index], self._model))
        return ()

    def chunks(self, start: int, stop: int) -> list[Chunk]:
        """The rows from `start` to before `stop`, in order; `InvalidValueError` for an item that is not a row."""
        part = self._span[start:stop]
        rows = self._rows[part.start : part.stop]
        alike = _alike(rows)
        return self._mixed(rows) if alike is None else [alike]

    def _mixed(self, rows: list[Any]) -> list[Chunk]:
        mappings = [mapping_of(row, self._model) for row in rows]
        union = tuple(dict.fromkeys(chain.from_iterable(mappings)))
        if all(name in self._fillable or all(name in row for row in mappings) for name in union):
            return [Chunk(union, [[row.get(name) for row in mappings] for name in union], len(rows))]
        return [_uniform(list(alike)) for _, alike in groupby(mappings, key=frozenset)]


class FrameBatch(RowBatch):
    """The same out of a frame, which has its columns already."""

    def __init__(self, model: type[Any], columns: dict[str, list[Any]], size: int, position: int) -> None:
        super().__init__(model, [], position, frozenset())
        self._columns = columns
        self._size = size

    def __len__(self) -> int:
        return self._size

    def row(self, index: int) -> Any:
        """A row as a mapping."""
        return {name: values[index] for name, values in self._columns.items()}

    def names(self) -> tuple[str, ...]:
        """The frame's columns."""
        return tuple(self._columns)

    def chunks(self, start: int, stop: int) -> list[Chunk]:
        """The rows from `start` to before `stop`."""
        size = min(stop, self._size) - start
        # A column that the frame has twice stays one, and is converted once.
        parts = {id(values): values[start:stop] for values in self._columns.values()}
        return [Chunk(tuple(self._columns), [parts[id(values)] for values in self._columns.values()], size)]


def row_batches(
    model: type[Any], rows: Iterable[Any], size: int, *, fillable: frozenset[str], by_shape: bool
) -> Iterator[RowBatch]:
    """`rows` in row_batches of at most `size`; of an iterable no more than that is ever held.

    Columns in `fillable` may be missing in some rows of a chunk and are None there. With `by_shape` all rows of a
    batch name the same columns.
    """
    position = 0
    frames = _frames(rows, size)
    if frames is not None:
        for given, height in frames:
            columns = dict(given)
            yield FrameBatch(model, columns, height, position)
            position += height
            columns.clear()
        return
    if isinstance(rows, (Mapping, str, bytes)) or not isinstance(rows, Iterable):
        raise InvalidValueError(
            f"rows are an iterable of mappings or {model.__name__} objects, an Arrow table or a polars DataFrame, "
            f"not a {type(rows).__name__}; a single row goes into a list"
        )
    if isinstance(rows, list) and not by_shape:
        # The caller holds them anyway: a copy of the references alone would take 8 MB a million.
        for position in range(0, len(rows), size):
            yield RowBatch(model, rows, position, fillable, range(position, min(position + size, len(rows))))
        return
    iterator = iter(rows)
    while taken := list(islice(iterator, size)):
        for part in _by_shape(taken, model) if by_shape else [taken]:
            yield RowBatch(model, part, position, fillable)
            position += len(part)
            # Whoever still holds the batch must not hold its rows while the next ones are made.
            part.clear()
        taken.clear()


def mapping_of(row: Any, model: type[Any]) -> Row:
    """A row's values by column name; of an object, those that are set, without the number that a database gave it."""
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, model):
        state = inspect(row)
        loaded = state.dict
        numbered = model.__table__.autoincrement_column if state.has_identity else None
        return {
            attribute.columns[0].name: loaded[attribute.key]
            for attribute in inspect(model).column_attrs
            if attribute.key in loaded and attribute.columns[0] is not numbered
        }
    if hasattr(row, "_asdict"):
        return dict(row._asdict())
    raise InvalidValueError(
        f"a row is a mapping or a {model.__name__}, not a {type(row).__name__}", model.__tablename__
    )


def _alike(rows: list[Any]) -> Chunk | None:
    """The chunk of rows that are plain dicts with the same keys; None if they are not."""
    if set(map(type, rows)) != {dict} or set(map(len, rows)) != {len(rows[0])}:
        return None
    try:
        return _uniform(rows)
    except KeyError:
        return None


def _uniform(rows: list[Row]) -> Chunk:
    names = tuple(rows[0])
    columns = tuple(zip(*map(_getter(names), rows), strict=True))
    return Chunk(names, columns, len(rows))


@lru_cache(maxsize=64)
def _getter(names: tuple[str, ...]) -> Callable[[Row], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda row: tuple(row.values())


def _by_shape(rows: list[Any], model: type[Any]) -> list[list[Any]]:
    def shape(row: Any) -> frozenset[str]:
        try:
            return frozenset(mapping_of(row, model))
        except InvalidValueError:
            return frozenset()  # refused when its turn comes, with its position

    return [list(alike) for _, alike in groupby(rows, key=shape)]


def _frames(rows: Any, size: int) -> Iterator[tuple[dict[str, list[Any]], int]] | None:
    """Slices of a frame as Python lists; None for what is no frame.

    Frames are known by their methods, so nothing is imported, and anything with `to_pydict`, `slice` and `num_rows`
    is as good as a record batch.
    """
    if hasattr(rows, "iter_slices") and hasattr(rows, "to_dict"):  # polars.DataFrame
        return (_polars_columns(part) for part in rows.iter_slices(size))
    if hasattr(rows, "to_batches") and hasattr(rows, "to_pydict"):  # pyarrow.Table
        return ((part.to_pydict(), part.num_rows) for part in rows.to_batches(max_chunksize=size))
    if hasattr(rows, "to_pydict") and hasattr(rows, "slice"):  # pyarrow.RecordBatch
        slices = (rows.slice(start, size) for start in range(0, rows.num_rows, size))
        return ((part.to_pydict(), part.num_rows) for part in slices)
    return None


def _polars_columns(frame: Any) -> tuple[dict[str, list[Any]], int]:
    for series in frame:
        # Its conversion to Python cuts nanoseconds off without a word.
        if getattr(series.dtype, "time_unit", None) == "ns" and (series.dt.nanosecond() % 1000 != 0).any():
            raise InvalidValueError("nanoseconds would be lost; round to microseconds first", series.name)
    return frame.to_dict(as_series=False), frame.height
