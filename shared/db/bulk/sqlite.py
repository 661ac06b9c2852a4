"""Many rows into SQLite: one prepared statement, run by the driver for every row.

A statement has as many bound variables as the table has columns, whatever the number of rows: the limit of 32,766
that stock builds have is never near.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from sqlalchemy import Connection

from shared.db.bulk.cells import CellLayout
from shared.db.bulk.filling import Filling
from shared.db.bulk.result import OnConflict
from shared.db.bulk.writer import Source, Transaction, Writer, Written


@dataclass
class _Meeting:
    """What SQL calls, on one connection, for a row that meets a stored one and differs from it.

    Made once a connection: SQLite does not let a function be replaced while any statement is being read.
    """

    told: Callable[[int, int, str], int]

    def tell(self, place: int, fills: int, names: str) -> int:
        """Tell the row's place, whether it fills the stored one, and the names of columns that contradict."""
        return self.told(place, fills, names)


class SQLiteWriter(Writer):
    """Writes batches through `executemany`.

    As long as nothing is written in a transaction that began with this call, undoing needs no savepoint, under which
    SQLite copies every page before its first change: a quarter of the time for executions.
    """

    def __init__(self, connection: Connection, layout: CellLayout, on_conflict: OnConflict, how: Transaction) -> None:
        super().__init__(connection, layout, on_conflict, how)
        self._untouched = how.alone

    @contextmanager
    def savepoint(self, name: str) -> Iterator[None]:
        """Undo what was written in the block if it raises."""
        if not self._untouched:
            with super().savepoint(name):
                yield
            return
        try:
            yield
        except BaseException:
            if self.driver.in_transaction:
                self.run("ROLLBACK")
            self.run("BEGIN")  # SQLAlchemy believes that its transaction goes on
            self._untouched = True
            raise

    def write(self, source: Source, changing: list[str]) -> Written:
        """Write a batch."""
        into = f"INSERT INTO {self.table} ({self.names}) VALUES ({', '.join('?' * len(self.layout.names))})"
        if self.on_conflict == "error":
            return Written(*self._run_for_each(into, source))
        if self.on_conflict == "fill" and changing:
            return self._fill(into, source, changing)
        new, count = self._run_for_each(f"{into} ON CONFLICT ({self.key}) DO NOTHING", source)
        if self.on_conflict == "update" and new < count and changing:
            # An upsert counts a changed row like a new one, hence two passes, the second one only if it is needed.
            self._run_for_each(f"{into} ON CONFLICT ({self.key}) DO UPDATE SET {self.assignments(changing)}", source)
        return Written(new, count, count - new if self.on_conflict == "update" else 0)

    def _fill(self, into: str, source: Source, changing: list[str]) -> Written:
        filling = Filling(self.layout.table, changing, self.quote, stored=self.table, given="excluded")
        filled = 0
        differing: list[tuple[int, str]] = []

        def met(place: int, fills: int, names: str) -> int:
            nonlocal filled
            filled += fills
            if names:
                differing.append((place, names))
            return fills

        meeting = self.connection.info.get("shared_db_meeting")
        if meeting is None:
            meeting = self.connection.info["shared_db_meeting"] = _Meeting(met)
            self.driver.create_function("shared_db_met", 3, meeting.tell)
        meeting.told = met
        changed, count = self._run_for_each(
            f"{into} ON CONFLICT ({self.key}) DO UPDATE SET {filling.assignments} WHERE CASE WHEN "
            f"{filling.fills} OR {filling.differs} THEN shared_db_met(?, {filling.fills}, {filling.names}) END",
            source,
            placed=True,
        )
        return Written(changed - filled, count, filled, differing)

    def run(self, *statements: str) -> None:
        """Run what is still unsent and then `statements`, none of which gives rows."""
        due = [*self._unsent, *statements]
        self._unsent.clear()
        with self.named_errors():
            for statement in due:
                self.driver.execute(statement)

    def _run_for_each(self, statement: str, source: Source, *, placed: bool = False) -> tuple[int, int]:
        """How many rows were written, and how many there were; with `placed` a row's place comes after its values."""
        self.run()
        self._untouched = False
        count = 0

        def rows() -> Iterator[Iterable[tuple[Any, ...]]]:
            nonlocal count
            for columns in source():
                places = range(count, count := count + len(columns[0]))
                yield zip(*columns, places, strict=True) if placed else zip(*columns, strict=True)

        before = self.driver.total_changes
        with self.named_errors():
            self.driver.executemany(statement, chain.from_iterable(rows()))
        return self.driver.total_changes - before, count
