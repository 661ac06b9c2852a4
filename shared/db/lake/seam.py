"""Two ordered streams of rows as one: what the lake has, and what the database has, no row twice and none missing.

Where both have a row of one key, the database's counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shared.db.lake.libraries import np, pa, pc


def merged(
    lake: Iterable[Any], database: Iterable[Any], order: Sequence[str], *, reverse: bool = False
) -> Iterator[Any]:
    """Arrow tables of the rows of both, in the order of the columns named in `order`, some of each at a time.

    With `reverse` both begin with the last row, and so does what comes of them.
    """
    kept, newer = (_Side(side, order[0], reverse) for side in (lake, database))
    while True:
        kept.fill()
        newer.fill()
        if newer.rows is None or kept.rows is None:
            left = kept if newer.rows is None else newer
            if left.rows is None:
                return
            yield left.take(len(left))
            continue
        # All that comes before what either may still bring.
        cuts = [side.last for side in (kept, newer) if not side.ended]
        counts = [side.before(min(cuts)) if cuts else len(side) for side in (kept, newer)]
        if not any(counts):
            for side in (kept, newer):
                side.extend()
            continue
        yield together(kept.take(counts[0]), newer.take(counts[1]), order, reverse=reverse)


def together(lake: Any, database: Any, order: Sequence[str], *, reverse: bool = False) -> Any:
    """The same of two whole tables."""
    if not lake.num_rows or not database.num_rows:
        return lake if lake.num_rows else database
    both = pa.concat_tables([database, lake])
    number = pa.array(np.arange(len(both)))
    keys = [*((name, "descending" if reverse else "ascending") for name in order), ("", "ascending")]
    places = pc.sort_indices(both.select(list(order)).append_column("", number), keys)
    found = both.take(places)
    again = pa.chunked_array([pa.repeat(pa.scalar(True), len(found) - 1)])
    for name in order:
        column = found[name]
        again = pc.and_(again, pc.equal(column.slice(1), column.slice(0, len(found) - 1)))
    return found.filter(pa.chunked_array([pa.array([True]), *pc.invert(again).chunks]))


def slices(batches: Iterable[Any], time: str, size: int) -> Iterator[Any]:
    """Tables of about so many rows, none of which ends between two rows of one instant."""
    rows, parts = 0, []
    for batch in batches:
        parts.append(batch)
        rows += len(batch)
        if rows < size:
            continue
        table = _table(parts)
        times = numbers(table[time])
        whole = int(np.searchsorted(times, times[-1]))
        if whole:
            yield table.slice(0, whole)
        parts, rows = [table.slice(whole)], len(table) - whole
    if rows:
        yield _table(parts)


class _Side:
    """One of the two streams, and those of its rows that were not taken yet."""

    def __init__(self, batches: Iterable[Any], time: str, reverse: bool) -> None:
        self._batches = iter(batches)
        self._time, self._sign = time, -1 if reverse else 1
        self.rows: Any | None = None
        self.ended = False

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    def fill(self) -> None:
        while self.rows is None and not self.ended:
            self.extend()

    def extend(self) -> None:
        """Some rows more."""
        batch = next(self._batches, None)
        if batch is None:
            self.ended = True
        elif len(batch):
            self.rows = _table([batch] if self.rows is None else [self.rows, batch])

    @property
    def last(self) -> int:
        return int(self._times()[-1])

    def before(self, time: int) -> int:
        """How many rows come earlier."""
        return int(np.searchsorted(self._times(), time))

    def take(self, count: int) -> Any:
        assert self.rows is not None
        taken, left = self.rows.slice(0, count), self.rows.slice(count)
        self.rows = left if len(left) else None
        return taken

    def _times(self) -> Any:
        """Of the rows, so that they rise."""
        assert self.rows is not None
        return self._sign * numbers(self.rows[self._time])


def numbers(values: Any) -> Any:
    """A column of whole numbers of 64 bits, or of times, in numpy's form.

    By pyarrow's own way to it pandas is imported wherever it is installed, which takes longer than a day's work here.
    """
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return np.frombuffer(array.buffers()[1], np.int64)[array.offset :][: len(array)]


def _table(parts: Sequence[Any]) -> Any:
    return pa.concat_tables([pa.Table.from_batches([one]) if isinstance(one, pa.RecordBatch) else one for one in parts])
