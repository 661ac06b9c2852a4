"""Many rows into SQLite: one prepared statement, run by the driver for every row.

A statement has as many bound variables as the table has columns, whatever the number of rows: the limit of 32,766
that stock builds have is never near.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shared.db.bulk.writer import Source, Writer


class SQLiteWriter(Writer):
    """Writes batches through `executemany`."""

    def write(self, source: Source, changing: list[str]) -> tuple[int, int]:
        """How many rows were new, and how many there were."""
        into = f"INSERT INTO {self.table} ({self.names}) VALUES ({', '.join('?' * len(self.layout.names))})"
        if self.on_conflict == "error":
            return self._run_for_each(into, source)
        new, count = self._run_for_each(f"{into} ON CONFLICT ({self.key}) DO NOTHING", source)
        if self.on_conflict == "update" and new < count and changing:
            # An upsert counts a changed row like a new one, hence two passes, the second one only if it is needed.
            self._run_for_each(f"{into} ON CONFLICT ({self.key}) DO UPDATE SET {self.assignments(changing)}", source)
        return new, count

    def run(self, *statements: str) -> None:
        """Run what is still unsent and then `statements`, none of which gives rows."""
        due = [*self._unsent, *statements]
        self._unsent.clear()
        with self.named_errors():
            for statement in due:
                self.driver.execute(statement)

    def _run_for_each(self, statement: str, source: Source) -> tuple[int, int]:
        self.run()
        count = 0

        def rows() -> Iterator[tuple[Any, ...]]:
            nonlocal count
            for columns in source():
                count += len(columns[0])
                yield from zip(*columns, strict=True)

        before = self.driver.total_changes
        with self.named_errors():
            self.driver.executemany(statement, rows())
        return self.driver.total_changes - before, count
