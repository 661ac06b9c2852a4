"""Many rows into PostgreSQL: COPY, streamed, so that the server stores some rows while we convert the next.

Straight into the table as long as nothing collides, which the server finds out by itself: a collision undoes the
batch, and it goes again through a temporary table and INSERT ... SELECT ... ON CONFLICT, which costs half as much
again. As one batch collided or not, so probably will the next; that is remembered with the connection.

The columns of a frame, and rows by the thousand, go in binary form, of which the server parses nothing, if that holds
all of a batch.

INSERT ... SELECT FROM unnest(...) was measured for small batches: it is not faster than the temporary table. It
stands in for COPY where the driver has none: under a wait callback (gevent with psycogreen).
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from operator import add
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, IntegrityError

from shared.db.bulk.cells import CellColumn, CellLayout, NotPackedError, Packed, pays_to_pack
from shared.db.bulk.filling import Filling
from shared.db.bulk.result import OnConflict
from shared.db.bulk.rows import RowBatch, is_array
from shared.db.bulk.writer import Source, Transaction, Writer, Written, conflict_key
from shared.db.dialects.postgresql import FeatureNotSupported, UniqueViolation, has_copy, sends_utf8
from shared.db.errors import NumberingError
from shared.db.numbering import statement_that_mends
from shared.db.value_forms.amounts import MONEY_DIGITS, MONEY_PLACES
from shared.db.value_forms.forms import Cells

# The numbers that every server gives to these types.
_BUILT_IN = {
    16: "bool", 20: "int8", 21: "int2", 23: "int4", 25: "text", 114: "json", 701: "float8", 1042: "bpchar",
    1043: "varchar", 1184: "timestamptz", 1700: "numeric", 3802: "jsonb",
}  # fmt: skip
_MONEY = (MONEY_DIGITS, MONEY_PLACES)
# The server takes a message of COPY whole before it stores its first row, and libpq keeps the last of it back until
# more follows: one that fills the socket leaves the server idle while the next is made.
_MESSAGE = 2**15


@dataclass
class _Memory:
    """What is known of one pooled connection: tables with collisions, and the transaction that filled each stage.

    And those of which the last batch that was to fill was stored already, all of it, and those in partitions.
    """

    colliding: set[str] = field(default_factory=set)
    partitioned: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    filled_in: dict[str, weakref.ref[Any]] = field(default_factory=dict)


class PostgreSQLWriter(Writer):
    """Writes batches through COPY."""

    def __init__(self, connection: Connection, layout: CellLayout, on_conflict: OnConflict, how: Transaction) -> None:
        super().__init__(connection, layout, on_conflict, how)
        self._through_stage = how.through_stage
        # A temporary table belongs to the role that made it, and outlives this process where a pooler keeps the
        # server's sessions: so its name says whose it is, and what columns it has.
        self._stage_name = f"shared_db_stage_{layout.table.name}{'_of_tenant' if how.as_tenant else ''}_"
        self._stage = self.quote(self._stage_name + _shape(layout))
        self._stored_as: dict[str, str] | None = None
        self._may_pack = True
        self._memory: _Memory = connection.info.setdefault("shared_db_bulk", _Memory())

    def write(self, source: Source, changing: list[str]) -> Written:
        """Write a batch."""
        return self._written(lambda: CopyStream(source(), self.layout), changing)

    def packed(self, batch: RowBatch, make: Callable[[CellLayout], Iterator[list[Cells]]]) -> Packed | None:
        """In binary form, of which the server parses no number and no time."""
        of_frame = any(map(is_array, batch.columns.values()))
        # Columns of an archive's texts are COPY's own already: they would take as long as the server saves.
        if not (of_frame or (not batch.columns and self._may_pack and pays_to_pack(len(batch)))):
            return None
        if not has_copy() or not sends_utf8(self.driver):
            return None
        if of_frame:
            return self.layout.packed(batch.columns, len(batch), self._server_types())
        return self.layout.packed_cells(make, len(batch), self._server_types())

    def write_packed(self, packed: Packed, changing: list[str]) -> Written:
        """Write a batch as `packed` gave it."""
        try:
            return self._written(lambda: PackedStream(packed), changing)
        except NotPackedError:
            self._undo()
            self._may_pack = False  # what comes once in a call comes again
            raise

    def _server_types(self) -> dict[str, str]:
        """What the server calls the columns' types: somebody may have altered one, and would get other values.

        A numeric of other digits than those of `Money` is left out: there the binary form's zeros would stay.
        """
        if self._stored_as is None:
            with self.named_errors(), self.driver.cursor() as cursor:
                cursor.execute(self._with_unsent(f"SELECT {self.names} FROM {self.table} LIMIT 0"))
                self._stored_as = {
                    column.name: _BUILT_IN.get(column.type_code, "")
                    for column in cursor.description
                    if _BUILT_IN.get(column.type_code) != "numeric" or (column.precision, column.scale) == _MONEY
                }
            # A stage that is there already was made of the types that its name tells.
            self._stage = self.quote(self._stage_name + _digest(str(sorted(self._stored_as.items()))))
        return self._stored_as

    def _written(self, stream: Callable[[], Stream], changing: list[str]) -> Written:
        try:
            return self._write(stream, changing)
        except NumberingError:
            self._undo()
            self.run(statement_that_mends(self.connection, self.layout.table))
            return self._write(stream, changing)
        except DBAPIError as error:
            if not isinstance(error.orig, FeatureNotSupported) or self.table in self._memory.partitioned:
                raise
            self._undo()
            self._memory.partitioned.add(self.table)
            return self._write(stream, changing)

    def _write(self, stream: Callable[[], Stream], changing: list[str]) -> Written:
        if not self._through_stage and (self.on_conflict == "error" or self.table not in self._memory.colliding):
            rows = stream()
            self._unsent.append("SAVEPOINT shared_db_copy")
            try:
                self._copy(self.table, rows, "RELEASE SAVEPOINT shared_db_copy")
            except IntegrityError as error:
                if self.on_conflict == "error" or not isinstance(error.orig, UniqueViolation):
                    raise
                self._undo()
                self._memory.colliding.add(self.table)
            else:
                return Written(rows.count, rows.count)
        return self._write_staged(stream, changing)

    def _undo(self) -> None:
        self.run("ROLLBACK TO SAVEPOINT shared_db_copy", "RELEASE SAVEPOINT shared_db_copy")

    def run(self, *statements: str) -> None:
        """Run what is still unsent and then `statements`, none of which gives rows, in one round trip."""
        with self.named_errors(), self.driver.cursor() as cursor:
            cursor.execute(self._with_unsent(*statements))

    def _write_staged(self, stream: Callable[[], Stream], changing: list[str]) -> Written:
        rows = stream()
        self._empty_stage()
        self._unsent.append("SAVEPOINT shared_db_copy")
        self._copy(self._stage, rows)
        if self.on_conflict == "fill" and changing:
            written = self._fill(rows.count, changing)
        else:
            new = self._from_stage(changing)
            written = Written(new, rows.count, rows.count - new if self.on_conflict == "update" else 0)
        self._unsent.append("RELEASE SAVEPOINT shared_db_copy")
        if written.new == rows.count:
            self._memory.colliding.discard(self.table)
        return written

    def _fill(self, count: int, changing: list[str]) -> Written:
        """Insert the staged rows, and fill the stored ones with what those have that met one.

        Where all of the last batch was stored, so probably is this one, and nothing is inserted if that is so.
        """
        filling = Filling(self.layout.table, changing, self.quote, stored="stored", given="given")
        keys = conflict_key(self.layout.table)
        same = " AND ".join(f"stored.{name} = given.{name}" for name in map(self.quote, keys))
        names = ", ".join(f"{self.table}.{self.quote(name)}" for name in changing)
        key = ", ".join(f"given.{self.quote(name)}" for name in keys)
        of_key = " AND ".join(f"{self.table}.{name} = given.{name}" for name in map(self.quote, keys))
        # OFFSET 0 has the server look up each row by its key, whatever it believes of a table without statistics.
        found = f"LATERAL (SELECT {names}, true AS shared_db_met FROM {self.table} WHERE {of_key} OFFSET 0) stored"
        pairs = f"FROM {self._stage} given, {found}"
        numbered = f"(SELECT *, row_number() OVER (ORDER BY ctid) - 1 AS shared_db_place FROM {self._stage})"
        compare = (
            f"SELECT count(stored.shared_db_met), count(*) FILTER (WHERE stored.shared_db_met AND {filling.fills}), "
            f"count(*) FILTER (WHERE {filling.differs}) FROM {self._stage} given LEFT JOIN {found} ON true"
        )
        new = filled = met = 0
        with self.named_errors(), self.driver.cursor() as cursor:
            if self.table in self._memory.stored:
                cursor.execute(compare)
                met, fill, differ = cursor.fetchone()
            if met < count:
                new = self._from_stage(changing)
                if new == count:
                    self._memory.stored.discard(self.table)
                    return Written(new, count)
                # Those just inserted too: there may be several for one of them.
                cursor.execute(compare)
                _, fill, differ = cursor.fetchone()
                (self._memory.stored.discard if new else self._memory.stored.add)(self.table)
            while fill:
                # One statement changes a row once: the first of those that fill it, and in the next round the next.
                cursor.execute(
                    f"UPDATE {self.table} AS stored SET {filling.assignments} FROM (SELECT DISTINCT ON ({key}) given.* "
                    f"{pairs} WHERE {filling.fills} ORDER BY {key}, given.ctid) given "
                    f"WHERE {same} AND {filling.fills}"
                )
                filled += cursor.rowcount
                if cursor.rowcount == fill:
                    break
                # There are more for the same rows, or somebody else was faster.
                cursor.execute(f"SELECT count(*) FILTER (WHERE {filling.fills}) {pairs}")
                (fill,) = cursor.fetchone()
            # Whoever was faster may have filled what these rows contradict.
            if not (differ or filled):
                return Written(new, count, filled)
            cursor.execute(
                f"SELECT shared_db_place, {filling.names} FROM {numbered} given, {found} WHERE {filling.differs} "
                "ORDER BY 1"
            )
            return Written(new, count, filled, cursor.fetchall())

    def _ask(self, *statements: str) -> int:
        """How many rows the last statement says, or has, written."""
        with self.named_errors(), self.driver.cursor() as cursor:
            cursor.execute("; ".join(statements))
            return int(cursor.fetchone()[0] if cursor.description else cursor.rowcount)

    def _empty_stage(self) -> None:
        self._unsent.append(
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {self._stage} ON COMMIT DELETE ROWS "
            f"AS SELECT {self.names} FROM {self.table} WITH NO DATA"
        )
        # TRUNCATE costs as much as a thousand rows, and the end of a transaction empties the table anyway.
        transaction = self.connection.get_transaction()
        filled_in = self._memory.filled_in.get(self._stage)
        if filled_in is not None and filled_in() is transaction:
            self._unsent.append(f"TRUNCATE {self._stage}")
        self._memory.filled_in[self._stage] = weakref.ref(transaction)

    def _from_stage(self, changing: list[str]) -> int:
        """Insert the staged rows, or change those that are there, as `on_conflict` says; how many are new."""
        insert = f"INSERT INTO {self.table} ({self.names})"
        fresh = f"{insert} SELECT {self.names} FROM {self._stage}"
        if self.on_conflict == "error":
            return self._ask(fresh)
        if self.table not in self._memory.colliding:
            # To look for each row before it is stored costs a tenth, here as well as beside COPY.
            try:
                return self._ask("SAVEPOINT shared_db_fresh", fresh)  # it ends with the savepoint around it
            except IntegrityError as error:
                if not isinstance(error.orig, UniqueViolation):
                    raise
            self.run("ROLLBACK TO SAVEPOINT shared_db_fresh")
            self._memory.colliding.add(self.table)
        skip = f"{fresh} ON CONFLICT ({self.key}) DO NOTHING"
        if self.on_conflict in ("skip", "fill") or not changing:
            return self._ask(skip)
        # One statement must not change a row twice: of those with the same key, the last one given.
        upsert = (
            f"{insert} SELECT DISTINCT ON ({self.key}) {self.names} FROM {self._stage} "
            f"ORDER BY {self.key}, ctid DESC ON CONFLICT ({self.key}) DO UPDATE SET {self.assignments(changing)}"
        )
        if self.table in self._memory.partitioned:  # where no xmax can be read
            new = self._ask(skip)
            self._ask(upsert)
            return new
        # A row that was there before carries the lock of this transaction in xmax; a new one carries nothing.
        return self._ask(
            f"WITH written AS ({upsert} RETURNING (xmax = 0) AS is_new) "
            "SELECT count(*) FILTER (WHERE is_new) FROM written"
        )

    def _copy(self, table: str, rows: Stream, *afterwards: str) -> None:
        if isinstance(rows, CopyStream) and not has_copy():
            self._insert(table, rows, *afterwards)
            return
        copy = f"COPY {table} ({self.names}) FROM STDIN WITH ({rows.options})"
        try:
            with self.named_errors(), self.driver.cursor() as cursor:
                cursor.copy_expert(self._with_unsent(copy, *afterwards), rows, _MESSAGE)
        except DBAPIError:
            if not isinstance(rows.failure, NotPackedError):
                raise
        if rows.failure is not None:
            raise rows.failure

    def _insert(self, table: str, rows: CopyStream, *afterwards: str) -> None:
        places = [f"c{number}" for number in range(len(self.layout.names))]
        values = ", ".join(map(add, places, _casts(self.layout)))
        arrays = ", ".join(["%s::text[]"] * len(places))
        insert = (
            f"INSERT INTO {table} ({self.names}) SELECT {values} FROM unnest({arrays}) AS given ({', '.join(places)})"
        )
        for columns in rows.chunks():
            with self.named_errors(), self.driver.cursor() as cursor:
                cursor.execute(self._with_unsent(insert), [list(cells) for cells in columns])
        if self._unsent or afterwards:
            self.run(*afterwards)

    def _with_unsent(self, *statements: str) -> str:
        together = "; ".join((*self._unsent, *statements))
        self._unsent.clear()
        return together


@lru_cache(maxsize=64)
def _shape(layout: CellLayout) -> str:
    columns = (layout.table.columns[name] for name in layout.names)
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy's dialects have no types
    return _digest(", ".join(f"{column.name} {column.type.compile(dialect)}" for column in columns))


def _digest(described: str) -> str:
    return hashlib.sha256(described.encode()).hexdigest()[:8]


@lru_cache(maxsize=64)
def _casts(layout: CellLayout) -> list[str]:
    """How cells become values. Text is assigned as it is: a cast to VARCHAR(n) would cut it short without a word."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy's dialects have no types
    kinds = [layout.table.columns[name].type.compile(dialect) for name in layout.names]
    return ["" if kind.startswith(("VARCHAR", "CHAR", "TEXT")) else f"::{kind}" for kind in kinds]


class CopyStream:
    """The file that COPY reads: a chunk of rows a read, in its text format."""

    options = "ENCODING 'UTF8'"

    def __init__(self, chunks: Any, layout: CellLayout) -> None:
        self.count = 0
        self.failure: BaseException | None = None
        self._chunks: Iterator[list[Cells]] = iter(chunks)
        self._columns = layout.columns

    def chunks(self) -> Iterator[list[Cells]]:
        """The rows as they are, for who cannot COPY."""
        for columns in self._chunks:
            self.count += len(columns[0])
            yield columns

    def read(self, size: int = -1) -> bytes:
        """The next rows; nothing at the end, and after a failure, which must not pass through the driver."""
        try:
            columns = next(self._chunks, None)
            if columns is None:
                return b""
            self.count += len(columns[0])
            texts = map(_copy_texts, self._columns, columns)
            return ("\n".join(map("\t".join, zip(*texts, strict=True))) + "\n").encode()
        except BaseException as error:  # noqa: BLE001 # kept, and raised as soon as COPY has ended
            self.failure = error
            return b""


class PackedStream:
    """The same of rows in binary form."""

    options = "FORMAT binary"

    def __init__(self, packed: Packed) -> None:
        self.count = packed.size
        self.failure: BaseException | None = None
        self._parts = packed.parts()
        self._part = memoryview(b"")

    def read(self, size: int) -> bytes:
        """As `CopyStream` does it, at most so many bytes at once."""
        try:
            self._part = self._part or memoryview(next(self._parts, b""))
            read, self._part = self._part[:size], self._part[size:]
            return bytes(read)
        except NotPackedError as error:
            self.failure = error
            raise NotPackedError from None  # COPY fails, whose rows come again; the driver tells the server no more
        except BaseException as error:  # noqa: BLE001 # kept, and raised as soon as COPY has ended
            self.failure = error
            return b""


Stream = CopyStream | PackedStream


def _copy_texts(column: CellColumn, cells: Cells) -> Cells:
    if not (column.escaped or column.nullable):
        return cells
    try:
        together = "".join(cells)
    except TypeError:  # one of them is None
        return ["\\N" if cell is None else _escaped(cell) for cell in cells]
    if "\\" in together or "\t" in together or "\n" in together or "\r" in together:
        return list(map(_escaped, cells))
    return cells


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
