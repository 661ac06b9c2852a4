"""Many rows into MariaDB or MySQL: statements of up to a megabyte, with values that are written out here.

The driver's own way makes each literal by itself, for half the speed; LOAD DATA is hardly faster than this, and a
server that may ask for it may ask for any file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from decimal import Decimal
from typing import Any

from shared.db.bulk.cells import CellColumn
from shared.db.bulk.filling import Filling
from shared.db.bulk.writer import Source, Writer, Written, conflict_key
from shared.db.dialects.mysql import quoted
from shared.db.errors import UnsupportedError
from shared.db.value_forms.forms import Cells

# Far below every server's max_allowed_packet, and more gains nothing.
_STATEMENT = 1_000_000
_TOLD = re.compile(rb"Records: (\d+)  Duplicates: (\d+)")
_STAGE = "shared_db_stage"
_PLACE = "shared_db_place"


class MySQLWriter(Writer):
    """Writes batches through INSERT ... VALUES."""

    def run(self, *statements: str) -> None:
        """Run what is still unsent and then `statements`, none of which gives rows."""
        due = [*self._unsent, *statements]
        self._unsent.clear()
        with self.named_errors():
            for statement in due:
                self.driver.query(statement)

    def assignments(self, changing: list[str]) -> str:
        """The SET list of an upsert. VALUES() is what both servers know."""
        return ", ".join(f"{name} = VALUES({name})" for name in map(self.quote, changing))

    def write(self, source: Source, changing: list[str]) -> Written:
        """Write a batch."""
        if self.on_conflict == "error":
            count, _ = self._insert(self.table, source(), "")
            return Written(count, count)
        if self.on_conflict == "fill" and changing:
            return self._fill(source, changing)
        upserting = self.on_conflict == "update" and bool(changing)
        count, known = self._insert(self.table, source(), self._unless_known(changing if upserting else []))
        return Written(count - known, count, known if self.on_conflict == "update" else 0)

    def insert_all(self, chunks: Iterable[list[Cells]]) -> None:
        """Insert rows that come as cells."""
        self._insert(self.table, chunks, "")

    def _unless_known(self, changing: list[str]) -> str:
        # INSERT IGNORE would swallow more than duplicates: a parent that is not there, a text that is too long.
        key = self.quote(next(iter(self.layout.table.primary_key.columns)).name)
        return f" ON DUPLICATE KEY UPDATE {self.assignments(changing) or f'{self.table}.{key} = {self.table}.{key}'}"

    def _insert(
        self, table: str, chunks: Iterable[list[Cells]], on_conflict: str, *, placed: bool = False
    ) -> tuple[int, int]:
        """How many rows there were, and how many of them met a stored one or each other."""
        self.run()
        names = f"{self.names}, {_PLACE}" if placed else self.names
        begin = f"INSERT INTO {table} ({names}) VALUES "
        count = known = 0
        rows: list[str] = []
        size = 0
        for columns in chunks:
            literals = [
                self._literals(column, cells) for column, cells in zip(self.layout.columns, columns, strict=True)
            ]
            if placed:
                literals.append([str(place) for place in range(count, count + len(columns[0]))])
            made = list(map(",".join, zip(*literals, strict=True)))
            count += len(made)
            rows += made
            size += sum(map(len, made))
            if size > _STATEMENT:
                known += self._send(begin, rows, on_conflict)
                rows, size = [], 0
        if rows:
            known += self._send(begin, rows, on_conflict)
        return count, known

    def _send(self, begin: str, rows: list[str], on_conflict: str) -> int:
        """Send rows; how many were known. Of each the server says which, and of a lone one only if it comes twice."""
        alone = len(rows) == 1 and bool(on_conflict)
        statement = f"{begin}({'),('.join(rows * 2 if alone else rows)}){on_conflict}"
        with self.named_errors(), closing(self.driver.cursor()) as cursor:
            cursor.execute(statement)
            if not on_conflict:
                return 0
            told = _TOLD.search(cursor._result.message or b"")
        if told is None:
            raise UnsupportedError(RuntimeError("the server does not say how many rows it knew"))
        known = int(told[2])
        return known - 1 if alone else known

    def _literals(self, column: CellColumn, cells: Cells) -> Iterable[str]:
        if not column.escaped:
            return ["NULL" if cell is None else f"'{cell}'" for cell in cells]
        try:
            together = "".join(cells)
        except TypeError:  # some are None, or no text
            return list(map(self._literal, cells))
        if "'" in together or "\\" in together:
            return list(map(self._literal, cells))
        return [f"'{cell}'" for cell in cells]

    @staticmethod
    def _literal(cell: Any) -> str:
        if cell is None:
            return "NULL"
        if isinstance(cell, bytes):
            return f"X'{cell.hex()}'"
        if isinstance(cell, Decimal):
            return f"{cell:f}"  # with an exponent it would be a float
        if isinstance(cell, (int, float)):
            return str(int(cell) if isinstance(cell, bool) else cell)
        return quoted(str(cell))

    def _fill(self, source: Source, changing: list[str]) -> Written:
        """Insert the rows, and fill the stored ones with what those have that met one."""
        count, known = self._insert(self.table, source(), self._unless_known([]))
        if not known:
            return Written(count, count)
        filling = Filling(self.layout.table, changing, self.quote, stored="stored", given="given")
        keys = [self.quote(name) for name in conflict_key(self.layout.table)]
        same = " AND ".join(f"stored.{name} = given.{name}" for name in keys)
        stage = self.quote(f"{_STAGE}_{self.layout.table.name}"[:64])
        pairs = f"{stage} AS given JOIN {self.table} AS stored ON {same}"
        # A temporary table's DDL does not commit.
        self.run(
            f"DROP TEMPORARY TABLE IF EXISTS {stage}",
            f"CREATE TEMPORARY TABLE {stage} AS SELECT {self.names}, 0 AS {_PLACE} FROM {self.table} LIMIT 0",
        )
        # Those just inserted too: there may be several for one of them.
        self._insert(stage, source(), "", placed=True)
        with self.named_errors(), closing(self.driver.cursor()) as cursor:
            filled = 0
            while True:
                key = ", ".join(f"given.{name}" for name in keys)
                cursor.execute(f"SELECT given.{_PLACE}, {key} FROM {pairs} WHERE {filling.fills} ORDER BY 1")
                first: dict[Any, int] = {}
                for place, *values in cursor.fetchall():
                    first.setdefault(tuple(values), place)
                if not first:
                    break
                # A row is changed by one at a time, and in the next round by the next.
                for places in _parts(sorted(first.values()), 1_000):
                    cursor.execute(
                        f"UPDATE {self.table} AS stored JOIN {stage} AS given ON {same} SET "
                        f"{_qualified(filling.assignments, self.quote, changing)} WHERE given.{_PLACE} IN "
                        f"({', '.join(map(str, places))}) AND {filling.fills}"
                    )
                    filled += cursor.rowcount
            cursor.execute(f"SELECT given.{_PLACE}, {filling.names} FROM {pairs} WHERE {filling.differs} ORDER BY 1")
            return Written(count - known, count, filled, list(cursor.fetchall()))


def _qualified(assignments: str, quote: Callable[[str], str], names: list[str]) -> str:
    """The SET list, whose columns are the stored row's: of two tables it would not be clear whose they are."""
    for name in names:
        assignments = re.sub(rf"(^|, ){re.escape(quote(name))} = ", rf"\1stored.{quote(name)} = ", assignments, count=1)
    return assignments


def _parts(values: list[int], size: int) -> Iterator[list[int]]:
    yield from (values[start : start + size] for start in range(0, len(values), size))
