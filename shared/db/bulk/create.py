"""`bulk_create`: any number of rows into one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, get_args

from sqlalchemy import Column, Engine, Table
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from shared.db import commits
from shared.db.audit import record_bulk
from shared.db.bulk.cells import (
    CellLayout,
    Losses,
    NotPackedError,
    Packed,
    cell_layout_of,
    cells_of_row,
    prepared,
)
from shared.db.bulk.mysql import MySQLWriter
from shared.db.bulk.postgresql import PostgreSQLWriter
from shared.db.bulk.result import NOTES, BulkResult, OnBadRow, OnConflict, RejectedRow, RowNote
from shared.db.bulk.rows import CHUNK, Row, RowBatch, is_array, listed, mapping_of, one_by_one, row_batches
from shared.db.bulk.sqlite import SQLiteWriter
from shared.db.bulk.writer import Transaction, Writer, conflict_key
from shared.db.dialects import MYSQL, POSTGRESQL, SQLITE, PerDatabase, port_of
from shared.db.encryption import encryption_of, sealed
from shared.db.errors import InvalidValueError
from shared.db.models import AuditAction
from shared.db.sealing import secret_columns
from shared.db.tables import ownership_of, primary_key
from shared.db.tenancy.guard import OwnershipGuard
from shared.db.tenancy.session_scope import TenantRequiredSession, UserSession
from shared.db.value_forms.forms import Cells

BATCH_SIZE = 5000


def bulk_create(
    session: Session,
    model: type[Any],
    rows: Iterable[Any],
    *,
    on_conflict: OnConflict = "skip",
    errors: OnBadRow = "raise",
    batch_size: int = BATCH_SIZE,
    guard: OwnershipGuard | None = None,
) -> BulkResult:
    """Insert any number of rows as one unit of the caller's transaction, and say what became of them.

    `rows`: mappings, objects of the model or named tuples, from any iterable, of which at most `batch_size` are in
    memory at a time; or a pyarrow Table or RecordBatch, or a DataFrame of polars or pandas, whose index is no column
    and whose missing values are NULL. Of what is there anyway more are written together: of a frame four times as many
    rows, of a list sixteen times. Columns that may be NULL or have a default may be missing.

    A row whose unique key is stored already, or came earlier in `rows`, is left out with `on_conflict="skip"`; gives
    the stored row the columns it names with "update"; raises `IntegrityError` with "error". With "fill" it gives the
    stored row what is NULL there, and counts as updated; it clears nothing, and where it has another value than the
    stored one it is told in the result, and the stored one stays. A JSON document is not compared: a row that fills
    something and contradicts nothing brings its own. A column with a default counts if the row names it.

    An amount with more than 8 decimal places is rounded, and told in the result. Where its column says which JSON
    column of the row keeps all digits (`Money.kept_in`), and that is not NULL, the row is not refused for them either:
    SQLite's 8-byte floats take the nearest amount of 15 digits, and NULL stands for one that would become 0 or is too
    large, if the column may be NULL.

    A row that does not fit raises `InvalidValueError` with its position and column, one that the database refuses
    SQLAlchemy's `IntegrityError`; with `errors="collect"` both are left out and told in the result. A row that is not
    the guarded user's own raises `TenantViolation` either way. Whatever is raised, also by the iterable itself,
    nothing of the call is written.
    """
    for value, choices in ((on_conflict, OnConflict), (errors, OnBadRow)):
        if value not in get_args(choices):
            raise InvalidValueError(f"{value!r} is not one of {', '.join(map(repr, get_args(choices)))}")
    if batch_size < 1:
        raise InvalidValueError(f"a batch has at least one row, not {batch_size}")
    if guard is None and isinstance(session, UserSession):
        guard = session.guard
    table: Table = model.__table__
    ownership = ownership_of(model)
    if ownership and isinstance(session, TenantRequiredSession):
        session.connection()  # refuses, and says why
    changes = on_conflict in ("update", "fill")
    if guard and ownership and changes and ownership.column not in conflict_key(table):
        raise guard.violation("bulk_create", model, "the row to change may be another user's; use bulk_update()")
    session.flush()
    creation = _Creation(session, model, on_conflict, guard)
    take = creation.take if errors == "raise" else creation.take_what_fits
    # Rows that name different columns change different ones; to be filled with nothing changes none.
    by_shape = on_conflict == "update" or (on_conflict == "fill" and any(map(_has_default, table.columns)))
    optional = () if by_shape else (c.name for c in table.columns if c.nullable and c.default is None)
    if secret_columns(table):
        rows = _with_sealed_secrets(session, model, one_by_one(model, rows, batch_size))
    sifting = errors == "collect"
    given = row_batches(model, rows, batch_size, fillable=frozenset(optional), by_shape=by_shape, sifting=sifting)
    first = next(given, None)
    if first is not None:
        writer = creation.open(first)
        with writer.savepoint("shared_db_bulk"):
            take(first)
            for batch in given:
                take(batch)
    result = creation.result()
    if result.inserted or result.updated:
        commits.note(session, [table])
    user_id = None if guard is None else guard.user_id
    record_bulk(session, model, AuditAction.CREATE, result.inserted, user_id)
    record_bulk(session, model, AuditAction.UPDATE, result.updated, user_id)
    return result


def _has_default(column: Column[Any]) -> bool:
    return column.default is not None and not column.primary_key


def _with_sealed_secrets(session: Session, model: type[Any], rows: Iterable[Any]) -> Iterator[Row]:
    """The rows as mappings, each with its key made first, to which its secrets are sealed where there is a key ring."""
    table: Table = model.__table__
    key: Any = table.c[primary_key(model)]
    encryption = encryption_of(Session.connection(session))
    secrets = secret_columns(table)
    for row in rows:
        values = dict(mapping_of(row, model))
        if values.get(key.name) is None and key.default is not None:
            values[key.name] = key.default.arg(None)
        for column in secrets:
            if values.get(column.name) is not None:
                values[column.name] = sealed(values[column.name], column, values.get(key.name), encryption)
        yield values


_WRITERS: PerDatabase[type[Writer]] = PerDatabase(
    "bulk writer", {SQLITE: SQLiteWriter, POSTGRESQL: PostgreSQLWriter, MYSQL: MySQLWriter}
)


class _Creation:
    """One call: where its rows go and what became of them."""

    def __init__(
        self, session: Session, model: type[Any], on_conflict: OnConflict, guard: OwnershipGuard | None
    ) -> None:
        self._session = session
        self._model = model
        self._table: Table = model.__table__
        self._on_conflict = on_conflict
        self._guard = guard
        self._proved: set[tuple[Any, ...]] = set()
        self._new = self._written = self._changed = self._contradicted = 0
        self._rejected: list[RejectedRow] = []
        self._rounded = 0
        self._rounded_now: Losses = {}  # of the batch at hand
        self._notes: list[RowNote] = []

    def open(self, first: RowBatch) -> Writer:
        """Make the writer, for rows that are numbered as those of the first batch are."""
        bind = self._session.get_bind(self._model)
        # Sessions on one memory database share their connection and its transaction.
        alone = (
            not self._session.in_transaction() and isinstance(bind, Engine) and not isinstance(bind.pool, StaticPool)
        )
        connection = Session.connection(self._session)
        numbered = self._table.autoincrement_column
        layout = cell_layout_of(
            self._table, port_of(connection).name, numbered is not None and numbered.name in first.names()
        )
        as_tenant = isinstance(self._session, UserSession) and self._session.confined_by_server
        how = Transaction(alone, as_tenant, as_tenant and ownership_of(self._model) is not None)
        self._writer: Writer = _WRITERS.of(connection)(connection, layout, self._on_conflict, how)
        self._owners = [layout.names.index(name) for name in self._owner_names()]
        return self._writer

    def take(self, batch: RowBatch) -> None:
        """Write a batch; the first bad row raises."""
        self._prove_batch(batch)
        packed = self._packed(batch)
        try:
            self._write(packed or partial(self._cells, batch, self._writer.layout), batch)
        except NotPackedError:
            self._write(partial(self._cells, batch, self._writer.layout), batch)
        self._note_rounded(batch)

    def take_what_fits(self, batch: RowBatch) -> None:
        """Write the rows of a batch that can be written, and keep the reason for every other one."""
        self._rounded_now.clear()
        if self._took_all(batch):
            return
        positions: list[int] = []
        columns: list[list[Any]] = [[] for _ in self._writer.layout.columns]
        for start in range(0, len(batch), batch.step):
            for numbers, cells in self._sifted(batch, start, min(start + batch.step, len(batch))):
                positions += numbers
                for column, more in zip(columns, cells, strict=True):
                    column += more
        self._prove(set(zip(*(columns[index] for index in self._owners), strict=True)))
        if positions:
            self._salvage(batch, positions, columns)
        self._note_rounded(batch)

    def _packed(self, batch: RowBatch) -> Packed | None:
        # Objects may claim to be what they are not, and only cells tell: see `_owned`.
        told = not batch.columns or all(is_array(batch.columns.get(name)) for name in self._owner_names())
        return self._writer.packed(batch, partial(self._cells, batch)) if told else None

    def _cells(self, batch: RowBatch, layout: CellLayout) -> Iterator[list[Cells]]:
        return self._owned(prepared(layout, batch, self._rounded_now))

    def _took_all(self, batch: RowBatch) -> bool:
        """Write a batch of which nothing needs a closer look, if it is one."""
        packed = self._packed(batch) if batch.columns else None
        if packed is None:
            return False
        self._prove_batch(batch)
        with suppress(IntegrityError, DataError), self._writer.savepoint("shared_db_part"):
            self._write(packed, batch)
            return True
        return False

    def result(self) -> BulkResult:
        """What became of the rows so far."""
        if self._changed:
            for entity in list(self._session.identity_map.values()):
                if isinstance(entity, self._model):
                    self._session.expire(entity)
        return BulkResult(
            inserted=self._new,
            skipped=self._written - self._new - self._changed,
            updated=self._changed,
            rejected=len(self._rejected),
            errors=tuple(sorted(self._rejected, key=lambda row: row.position)),
            contradicted=self._contradicted,
            rounded=self._rounded,
            notes=tuple(self._notes),
        )

    def _write(self, source: Any, batch: RowBatch, positions: Sequence[int] | None = None) -> None:
        """Write rows of a batch: those at `positions`, or all."""
        write: Any = self._writer.write_packed if isinstance(source, Packed) else self._writer.write
        new, count, changed, differing = write(source, self._changing(batch))
        self._new += new
        self._written += count
        self._changed += changed
        self._contradicted += len(differing)
        for place, names in differing[: NOTES - len(self._notes)]:
            index = place if positions is None else positions[place]
            self._note(batch, index, f"{', '.join(names.split())}: another value is stored, and stays")

    def _note_rounded(self, batch: RowBatch) -> None:
        self._rounded += len(self._rounded_now)
        for index, text in islice(self._rounded_now.items(), NOTES):
            self._note(batch, index, text)
        self._rounded_now.clear()
        self._notes = sorted(self._notes, key=lambda note: note.position)[:NOTES]

    def _note(self, batch: RowBatch, index: int, text: str) -> None:
        self._notes.append(RowNote(batch.position + index, text, batch.row(index)))

    def _changing(self, batch: RowBatch) -> list[str]:
        """The columns that a stored row takes over: those that the rows name, and what changes with every update.

        With "fill", those that it is compared in: a column that no row names is NULL in all, and makes no difference.
        """
        if self._on_conflict not in ("update", "fill"):
            return []
        fixed = {*conflict_key(self._table), *self._table.primary_key.columns.keys()}
        named = set(batch.names())
        if self._on_conflict == "fill":
            named |= {column.name for column in self._table.columns if not _has_default(column)}
            return [name for name in self._writer.layout.names if name in named and name not in fixed]
        return [
            column.name
            for column in self._table.columns
            if column.name not in fixed and (column.name in named or column.onupdate is not None)
        ]

    def _sifted(self, batch: RowBatch, start: int, stop: int) -> Iterator[tuple[Iterable[int], list[Cells]]]:
        layout, first, made = self._writer.layout, start, []
        rounded: Losses = {}
        try:
            for chunk in batch.chunks(start, stop):
                made.append(layout.cells(chunk, rounded, first))
                first += chunk.size
        except InvalidValueError:
            for index in range(start, stop):
                rounded = {}
                try:
                    yield (index,), cells_of_row(layout, batch, index, rounded)
                    self._rounded_now |= rounded
                except InvalidValueError as error:
                    self._reject(batch, index, str(InvalidValueError(error.problem, error.column)))
        else:
            self._rounded_now |= rounded
            for cells in made:
                yield range(start, start + len(cells[0])), cells
                start += len(cells[0])

    def _salvage(self, batch: RowBatch, positions: list[int], columns: list[list[Any]]) -> None:
        """Write what the database takes, by halves around each row that it refuses."""

        def source() -> Iterator[list[Cells]]:
            for start in range(0, len(positions), CHUNK):
                yield [column[start : start + CHUNK] for column in columns]

        try:
            with self._writer.savepoint("shared_db_part"):
                self._write(source, batch, positions)
        except (IntegrityError, DataError) as error:
            if len(positions) == 1:
                self._reject(batch, positions[0], str(error.orig).partition("\n")[0])
                return
            half = len(positions) // 2
            for part in (slice(None, half), slice(half, None)):
                self._salvage(batch, positions[part], [column[part] for column in columns])

    def _reject(self, batch: RowBatch, index: int, reason: str) -> None:
        self._rejected.append(RejectedRow(batch.position + index, reason, batch.row(index)))
        self._rounded_now.pop(index, None)

    def _owner_names(self) -> list[str]:
        """The columns that say whose a row is; none if nobody asks."""
        ownership = ownership_of(self._model)
        return [] if self._guard is None or ownership is None else list(ownership.judged)

    def _prove_batch(self, batch: RowBatch) -> None:
        """Check whose the rows are, before COPY begins: it leaves no room for a question to the server."""
        if not self._owners:
            return
        try:
            found = batch.distinct(self._owner_names())
        except (InvalidValueError, TypeError):
            for _ in prepared(self._writer.layout, batch, {}):
                pass  # raises, with the row's position
            raise
        self._prove(found)

    def _prove(self, found: set[tuple[Any, ...]]) -> None:
        if self._guard is not None and (unknown := found - self._proved):
            names = self._owner_names()
            self._guard.check_rows(
                self._session, "bulk_create", self._model, [dict(zip(names, row, strict=True)) for row in unknown]
            )
            self._proved |= unknown

    def _owned(self, chunks: Iterator[list[Cells]]) -> Iterator[list[Cells]]:
        """The same chunks; what is written must be what was proved, whatever objects the values were."""
        for cells in chunks:
            owners = (listed(cells[index]) for index in self._owners)
            if self._owners and not self._proved.issuperset(zip(*owners, strict=True)):
                assert self._guard is not None
                raise self._guard.violation("bulk_create", self._model, "its owner was not proved")
            yield cells
