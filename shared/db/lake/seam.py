"""Two ordered streams of rows as one: what the lake has, and what the database has, no row twice and none missing.

Where both have a row of one key, the database's counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shared.db.lake.libraries import np, pa, pc


def merged(lake: Iterable[Any], database: Iterable[Any], order: Sequence[str]) -> Iterator[Any]:
    """Arrow tables of the rows of both, in the order of the columns named in `order`, some of each at a time."""
    kept, newer = _Side(lake, order[0]), _Side(database, order[0])
    while True:
        kept.fill()
        newer.fill()
        if newer.rows is None or kept.rows is None:
            left = kept if newer.rows is None else newer
            if left.rows is None:
                return
            yield left.take(len(left))
            continue
        # All that is earlier than what either may still bring.
        cuts = [side.last for side in (kept, newer) if not side.ended]
        counts = [side.before(min(cuts)) if cuts else len(side) for side in (kept, newer)]
        if not any(counts):
            for side in (kept, newer):
                side.extend()
            continue
        yield together(kept.take(counts[0]), newer.take(counts[1]), order)


def together(lake: Any, database: Any, order: Sequence[str]) -> Any:
    """The same of two whole tables."""
    if not lake.num_rows or not database.num_rows:
        return lake if lake.num_rows else database
    both = pa.concat_tables([database, lake])
    number = pa.array(np.arange(len(both)))
    keys = [*((name, "ascending") for name in order), ("", "ascending")]
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
        times = _times(table, time)
        whole = int(np.searchsorted(times, times[-1]))
        if whole:
            yield table.slice(0, whole)
        parts, rows = [table.slice(whole)], len(table) - whole
    if rows:
        yield _table(parts)


class _Side:
    """One of the two streams, and those of its rows that were not taken yet."""

    def __init__(self, batches: Iterable[Any], time: str) -> None:
        self._batches = iter(batches)
        self._time = time
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
        return int(_times(self.rows, self._time)[-1])

    def before(self, time: int) -> int:
        """How many rows are earlier."""
        return int(np.searchsorted(_times(self.rows, self._time), time))

    def take(self, count: int) -> Any:
        assert self.rows is not None
        taken, left = self.rows.slice(0, count), self.rows.slice(count)
        self.rows = left if len(left) else None
        return taken


def _times(table: Any, time: str) -> Any:
    return table[time].cast(pa.int64()).to_numpy()


def _table(parts: Sequence[Any]) -> Any:
    return pa.concat_tables([pa.Table.from_batches([one]) if isinstance(one, pa.RecordBatch) else one for one in parts])
