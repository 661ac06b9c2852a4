"""Rows as callers give them (mappings, objects, named tuples, frames), turned into columns of values.

Columns, because a check or a conversion of 250 values at once is one call into C where 250 rows need 250.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import inspect

from shared.db.errors import InvalidValueError, MissingExtraError

# Enough to make the cost of a call small, few enough to be converted while the server works on the ones before.
CHUNK = 250
# A call into Arrow costs more.
ARRAY_CHUNK = 5_000
# Columns are made already; and each chunk waits for its turn where another thread makes the next ones, as an import's.
LIST_CHUNK = 750
FRAME_AT_HAND, LIST_AT_HAND = 4, 16
"""So many times as many rows of a frame or a list are written together, which are there anyway: COPY has to begin.

Of a frame fewer, whose columns are checked before it does.
"""
Row = dict[str, Any]


class Chunk(NamedTuple):
    """Some rows with the same columns: `columns[i]` holds the `size` values of `names[i]`."""

    names: tuple[str, ...]
    columns: Sequence[Sequence[Any]]
    size: int


class RowBatch:
    """Rows that are written together: those of `rows` in `span`, or all of them.

    `position` is the first one's place in all that was given. `columns` are there where the rows came as such. They
    are converted `step` at a time.
    """

    def __init__(
        self, model: type[Any], rows: list[Any], position: int, fillable: frozenset[str], span: range | None = None
    ) -> None:
        self.position = position
        self.step = CHUNK
        self.columns: dict[str, Any] = {}
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

    def distinct(self, names: Sequence[str]) -> set[tuple[Any, ...]]:
        """What there is in these columns; `InvalidValueError` or `TypeError` if that cannot be told."""
        found: set[tuple[Any, ...]] = set()
        for start in range(0, len(self), CHUNK):
            part = self._span[start : start + CHUNK]
            rows = self._rows[part.start : part.stop]
            if set(map(type, rows)) == {dict}:
                with suppress(KeyError):
                    found.update(zip(*(map(itemgetter(name), rows) for name in names), strict=True))
                    continue
            for chunk in self.chunks(start, start + CHUNK):
                given = dict(zip(chunk.names, chunk.columns, strict=True))
                found.update(zip(*(given.get(name, [None] * chunk.size) for name in names), strict=True))
        return found

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
    """The same out of a frame, which has its columns already: lists, or Arrow arrays, which become lists if need be."""

    def __init__(self, model: type[Any], columns: dict[str, Any], size: int, position: int) -> None:
        super().__init__(model, [], position, frozenset())
        self.columns = columns
        self.step = ARRAY_CHUNK if any(map(is_array, columns.values())) else LIST_CHUNK
        self._size = size
        self._lists: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return self._size

    def row(self, index: int) -> Any:
        """A row as a mapping."""
        return {name: self._list(name)[index] for name in self.columns}

    def names(self) -> tuple[str, ...]:
        """The frame's columns."""
        return tuple(self.columns)

    def chunks(self, start: int, stop: int) -> list[Chunk]:
        """The rows from `start` to before `stop`."""
        size = min(stop, self._size) - start
        # A single row is asked for where something is wrong with it, and goes the way of any other.
        whole = [self._list(name) if size == 1 else values for name, values in self.columns.items()]
        # A column that the frame has twice stays one, and is converted once.
        parts = {id(values): _part_of(values, start, stop) for values in whole}
        return [Chunk(tuple(self.columns), [parts[id(values)] for values in whole], size)]

    def distinct(self, names: Sequence[str]) -> set[tuple[Any, ...]]:
        """Out of these columns alone."""
        nothing = [None] * self._size
        return set(zip(*(self._list(name) if name in self.columns else nothing for name in names), strict=True))

    def clear(self) -> None:
        """Let go of the rows."""
        self.columns.clear()
        self._lists.clear()

    def _list(self, name: str) -> list[Any]:
        if name not in self._lists:
            try:
                self._lists[name] = listed(self.columns[name])
            except ValueError as error:  # Arrow says what is wrong with it: nanoseconds, where pandas is not installed
                raise InvalidValueError(str(error), name) from error
        return self._lists[name]


def is_array(values: Any) -> bool:
    """Whether these are an Arrow array."""
    return hasattr(values, "null_count")


def _part_of(values: Any, start: int, stop: int) -> Any:
    part = values[start:stop]
    # Documents have no other way.
    return listed(part) if is_array(part) and part.type.num_fields else part


def listed(values: Any) -> list[Any]:
    """A column as a list."""
    converted: list[Any] = values.to_pylist() if is_array(values) else values
    return converted


def row_batches(
    model: type[Any], rows: Iterable[Any], size: int, *, fillable: frozenset[str], by_shape: bool, sifting: bool = False
) -> Iterator[RowBatch]:
    """`rows` in row_batches of at most `size`; of an iterable no more than that is ever held.

    Columns in `fillable` may be missing in some rows of a chunk and are None there. With `by_shape` all rows of a
    batch name the same columns; with `sifting` the cells of a whole batch are held.
    """
    position = 0
    frames = _frames(rows, size * FRAME_AT_HAND)
    if frames is not None:
        for columns, height in frames:
            batch = FrameBatch(model, columns, height, position)
            yield batch
            position += height
            batch.clear()
        return
    if isinstance(rows, (Mapping, str, bytes)) or not isinstance(rows, Iterable):
        raise InvalidValueError(
            f"rows are an iterable of mappings or {model.__name__} objects, a frame of pyarrow, polars or pandas, "
            f"not a {type(rows).__name__}; a single row goes into a list"
        )
    if isinstance(rows, list) and not by_shape:
        # The caller holds them anyway: a copy of the references alone would take 8 MB a million.
        size *= 1 if sifting else LIST_AT_HAND
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


def one_by_one(model: type[Any], rows: Iterable[Any], size: int) -> Iterable[Any]:
    """The rows, those of a frame as mappings."""
    frames = _frames(rows, size)
    if frames is None:
        return rows
    batches = (FrameBatch(model, columns, height, 0) for columns, height in frames)
    return (batch.row(index) for batch in batches for index in range(len(batch)))


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
    values = _getter(names)
    if len(rows) <= CHUNK:
        return Chunk(names, tuple(zip(*map(values, rows), strict=True)), len(rows))
    # More at once would be out of the processor's cache before they are read.
    columns: list[list[Any]] = [[] for _ in names]
    for start in range(0, len(rows), CHUNK):
        for column, more in zip(columns, zip(*map(values, rows[start : start + CHUNK]), strict=True), strict=True):
            column += more
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


def _frames(rows: Any, size: int) -> Iterator[tuple[dict[str, Any], int]] | None:
    """Slices of a frame as columns; None for what is no frame.

    Frames are known by their methods, so nothing is imported, and anything with `to_pydict`, `slice` and `num_rows`
    is as good as a record batch.
    """
    if hasattr(rows, "iter_slices") and hasattr(rows, "to_dict"):  # polars.DataFrame
        return (({one.name: _polars_column(one) for one in part}, part.height) for part in rows.iter_slices(size))
    if hasattr(rows, "itertuples") and hasattr(rows, "iloc"):  # pandas.DataFrame
        _one_of_each(rows.columns)
        parts = (rows.iloc[start : start + size] for start in range(0, len(rows), size))
        return (({name: _pandas_column(one) for name, one in part.items()}, len(part)) for part in parts)
    if hasattr(rows, "to_pydict") and hasattr(rows, "slice"):  # pyarrow.Table, pyarrow.RecordBatch
        slices = (rows.slice(start, size) for start in range(0, rows.num_rows, size))
        return ((_arrow_columns(part), part.num_rows) for part in slices)
    return None


def _arrow_columns(part: Any) -> dict[str, Any]:
    if type(part).__module__ != "pyarrow.lib":
        return dict(part.to_pydict())
    _one_of_each(part.schema.names)
    return dict(zip(part.schema.names, part.columns, strict=True))


def _polars_column(series: Any) -> Any:
    try:
        if str(series.dtype) != "Object":  # of which Arrow would get the addresses
            return series.to_arrow()
    except (ImportError, ValueError):  # pyarrow is not installed, or has no such type
        pass
    # Its conversion to Python cuts nanoseconds off without a word.
    if getattr(series.dtype, "time_unit", None) == "ns" and (series.dt.nanosecond() % 1000 != 0).any():
        raise InvalidValueError("nanoseconds would be lost; round to microseconds first", series.name)
    return series.to_list()


def _pandas_column(series: Any) -> Any:
    if series.dtype == object:
        return [None if _is_missing(value) else value for value in series]
    try:
        arrow = importlib.import_module("pyarrow")
    except ImportError as error:
        raise MissingExtraError("pyarrow", "frames") from error
    return arrow.array(series, from_pandas=True)


def _is_missing(value: Any) -> bool:
    """Whether it is what pandas has for no value: None, NA, NaT, or a float that is no number."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (type(value) is float and value != value)


def _one_of_each(names: Any) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InvalidValueError(f"the frame has more than one column {twice[0]!r}")
