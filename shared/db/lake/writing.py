"""Months into the lake, out of the database, and out of the lake: each only once what is left holds all rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from sqlalchemy import delete
from sqlalchemy.orm import Session

from shared.db.database import DatabaseFactory
from shared.db.errors import InputError, LakeError
from shared.db.lake.libraries import pa
from shared.db.lake.places import MICROSECOND, Manifest, Month, Period, Place, Shelf, named_failures
from shared.db.lake.rows import Writer, kept_source, notes_of, of_database, of_file, state_of
from shared.db.lake.seam import merged, slices, together
from shared.db.operations.checksum import checksum
from shared.db.operations.interruption import check, interruptible
from shared.db.operations.purge import give_way
from shared.db.ranges.bounds import RowRange, Source
from shared.db.ranges.reading import StreamReading
from shared.db.ranges.streams import at_one_moment
from shared.db.repositories import Repository

_SLICE = 20_000
# How often a month is written again for rows that came while it was being purged.
_ATTEMPTS = 5

State = Literal["written", "unchanged", "whole", "dropped", "kept"]
Told = Callable[["Written"], None]


@dataclass(frozen=True)
class Written:
    """What became of the rows of one key in one month.

    `state` is "written", or "unchanged" where the file held all of them; "whole" or "dropped"; or "kept", for the
    reason in `problem`. `purged` is how many went from the database.
    """

    key: Any
    month: str
    state: State
    rows: int
    purged: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class LakeReport:
    """What became of each month that was looked at; `finished` is False if it was stopped on the way."""

    table: str
    periods: tuple[Written, ...]
    finished: bool
    seconds: float

    @property
    def problems(self) -> tuple[Written, ...]:
        """Those with which something is wrong."""
        return tuple(one for one in self.periods if one.problem is not None)

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return asdict(self)


class Work:
    """One piece of work on the lake of one stream, for one key or all, on months that have ended before a time."""

    def __init__(
        self,
        place: Place,
        db: DatabaseFactory,
        model: type[Any],
        key: Any,
        before: datetime | None,
        stop: Callable[[], bool],
        told: Told,
    ) -> None:
        self._place, self._db, self._stop, self._told = place, db, stop, told
        self._source: Source = kept_source(model)
        self._shelf = Shelf(place, self._source)
        self._key = key
        now = datetime.now(UTC)
        before = self._source.instant(before)
        self._closed = Month.of(now if before is None else min(before, now))
        db.check_schema()

    def write(self, purge: bool) -> LakeReport:
        """Write what the database has of months that have ended, and delete it there if that is asked for."""
        with self._place.locked(), interruptible("what is written is whole; run the same command again to go on"):
            return self._each(self._stored(), lambda period: self._written(period, purge))

    def verify(self) -> LakeReport:
        """Compare files, manifests, and what the database still has."""
        self._shelf.expect()
        return self._each(self._kept(), self._verified)

    def drop(self, force: bool) -> LakeReport:
        """Take months out of the lake whose rows are all in the database."""
        with self._place.locked():
            return self._each(self._kept(), lambda period: self._dropped(period, force))

    def _each(self, periods: Iterable[Period], work: Callable[[Period], Written | None]) -> LakeReport:
        started, done, finished = time.monotonic(), [], True
        for period in periods:
            if self._stop():
                finished = False
                break
            result = work(period)
            if result is not None:
                done.append(result)
                self._told(result)
        table = str(self._source.model.__tablename__)
        return LakeReport(table, tuple(done), finished, time.monotonic() - started)

    def _stored(self) -> list[Period]:
        """What the database may have of months that have ended."""
        with self._session() as session:
            covered = StreamReading.coverage(Repository(session, self._source.model), count=False)
        periods = []
        for found in covered:
            month = Month.of(found.first_ts)
            while month < self._closed and month <= Month.of(found.last_ts):
                if self._key is None or found.key == self._key:
                    periods.append(Period(self._source, found.key, month))
                month = month.following
        return periods

    def _kept(self) -> list[Period]:
        keys = self._shelf.keys()
        return [
            period
            for key in keys
            if self._key is None or key == self._key
            for month, period in self._shelf.periods(key).items()
            if month < self._closed
        ]

    def _session(self) -> Any:
        # Of a standby nobody knows whether it has all that is there.
        return self._db.get_session(read_only=True, max_staleness=0)

    def _range(self, period: Period, low: datetime | None = None, high: datetime | None = None) -> RowRange:
        return self._source.range(period.key, low or period.month.start, high or period.month.end)

    def _written(self, period: Period, purge: bool) -> Written | None:
        state: State | None = None
        rows, purged = 0, 0
        for attempt in range(_ATTEMPTS if purge else 1):
            found = self._write(period, again=attempt > 0)
            if found is None:  # the database has nothing of it
                return None if state is None else Written(period.key, str(period.month), state, rows, purged)
            state, rows = "written" if state == "written" else found[0], found[1]
            if not purge:
                return Written(period.key, str(period.month), state, rows)
            gone, whole = self._purge(period)
            purged += gone
            if whole:
                return Written(period.key, str(period.month), state, rows, purged)
        assert state is not None
        why = "rows come faster than they are written; all of it is in the lake or the database: run it again later"
        return Written(period.key, str(period.month), state, rows, purged, why)

    def _write(self, period: Period, again: bool) -> tuple[State, int] | None:
        with self._session() as session:
            at_one_moment(session)
            state = state_of(session, self._range(period))
            if state["rows"] == "0":
                return None
            manifest, there = self._shelf.manifest(period), self._place.exists(period.path)
            if manifest is not None and not there:
                raise LakeError(
                    f"{period.path} is missing, and held {manifest.rows:,} rows; put it back from a copy of the lake, "
                    "or give it up by: python -m shared.db lake drop --force"
                )
            if manifest is not None and manifest.database == state and not again:
                return "unchanged", manifest.rows
            with self._place.writing(period.path) as part, Writer(str(part), self._source) as writer:
                before = of_file(self._place, period) if there else ()
                now = of_database(session, self._range(period))
                with named_failures(period.path):
                    for table in merged(before, now, self._source.stream.order):
                        check()
                        writer.add(table)
                    notes = writer.close()
                size, digest = part.stat().st_size, checksum(part)
            self._shelf.note(period, Manifest(notes.rows, notes.first, notes.last, size, digest, state))
        return "written", notes.rows

    def _purge(self, period: Period) -> tuple[int, bool]:
        """How many rows went, and whether the file has all that the database still had.

        A slice of the file at a time: in the transaction that deletes them, the rows are compared with it.
        """
        purged, whole = 0, True
        for table, low, high in self._slices(period):
            check()
            rows = self._range(period, low, high)
            begun = time.monotonic()
            work = partial(self._delete, table=table, rows=rows)
            gone = self._db.run_in_transaction(work, serializable=True, idempotent=True)
            if gone is None:
                whole = False
            elif gone:
                purged += gone
                give_way(time.monotonic() - begun)
        return purged, whole

    def _delete(self, session: Session, table: Any, rows: RowRange) -> int | None:
        stored = self._stored_in(session, rows, table)
        if not stored.num_rows:
            return 0
        if not together(table, stored, self._source.stream.order).equals(table):
            return None
        statement = delete(self._source.model).where(*rows.criteria())
        result: Any = session.execute(statement, execution_options={"synchronize_session": False})
        if result.rowcount != stored.num_rows:
            raise LakeError(f"{rows.key}: other rows were there to delete than were compared; nothing was deleted")
        return int(result.rowcount)

    def _stored_in(self, session: Session, rows: RowRange, table: Any) -> Any:
        """What the database has in the time of a slice; no more of it than tells that it has others."""
        found, count = [], 0
        for batch in of_database(session, rows):
            found.append(batch)
            count += len(batch)
            if count > 2 * table.num_rows + _SLICE:
                break
        return pa.Table.from_batches(found, table.schema)

    def _slices(self, period: Period) -> Iterator[tuple[Any, datetime, datetime]]:
        """The file's rows in order, with the times that each of these tables stands for: together the whole month."""
        when = self._source.stream.time
        low, waiting = period.month.start, None
        for table in slices(of_file(self._place, period), when, _SLICE):
            if waiting is not None:
                high = waiting[when][-1].as_py()
                yield waiting, low, high
                low = high + MICROSECOND
            waiting = table
        if waiting is not None:
            yield waiting, low, period.month.end

    def _verified(self, period: Period) -> Written:
        rows, problem = 0, None
        try:
            manifest = self._shelf.manifest(period)
            if not self._place.exists(period.path):
                problem = f"{period.path} is missing; put it back from a copy of the lake"
            elif manifest is None:
                problem = "it has no manifest, and was not finished; write it again"
            elif self._place.digest(period.path) != (manifest.bytes, manifest.digest):
                problem = (
                    "its file is not what the manifest says; put it back from a copy of the lake, or write it again"
                )
            else:
                rows = manifest.rows
                with self._place.parquet(period.path) as file:
                    if notes_of(file)[:3] != (manifest.rows, manifest.first, manifest.last):
                        problem = "its file and its manifest tell of other rows; write it again"
                problem = problem or self._difference(period)
        except LakeError as error:
            problem = str(error)
        return Written(period.key, str(period.month), "whole" if problem is None else "kept", rows, problem=problem)

    def _difference(self, period: Period) -> str | None:
        with self._session() as session:
            at_one_moment(session)
            for table, low, high in self._slices(period):
                stored = self._stored_in(session, self._range(period, low, high), table)
                both = together(table, stored, self._source.stream.order)
                if both.num_rows > table.num_rows:
                    return "the database has rows of it that the file has not; write it again"
                if not both.equals(table):
                    return "the database has rows of it with other values than the file; write it again"
        return None

    def _dropped(self, period: Period, force: bool) -> Written:
        rows, problem = 0, None
        try:
            manifest = self._shelf.manifest(period)
            rows = 0 if manifest is None else manifest.rows
            if not force:
                problem = self._only_here(period)
        except LakeError as error:
            problem = None if force else str(error)
        if problem is None:
            self._shelf.remove(period)
        return Written(period.key, str(period.month), "dropped" if problem is None else "kept", rows, problem=problem)

    def _only_here(self, period: Period) -> str | None:
        if not self._place.exists(period.path):
            return f"{period.path} is missing; --force gives its rows up"
        order = self._source.stream.order
        with self._session() as session:
            at_one_moment(session)
            for table, low, high in self._slices(period):
                found = list(of_database(session, self._range(period, low, high)))
                stored = pa.Table.from_batches(found, table.schema)
                if not together(stored, table, order).equals(stored):
                    return (
                        "it has rows that are nowhere else; import its file into the database first, or give --force "
                        "to lose them"
                    )
        return None


def refuse_everything(key: Any, before: datetime | None) -> None:
    """Raise `InputError` where nobody said what is to be dropped."""
    if key is None and before is None:
        raise InputError("the whole lake would go; name a key, or a time as before=")
