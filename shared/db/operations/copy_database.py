"""A whole database into another one, of the same kind or the other: every table, every row, compared at the end.

The source is read as it is at one moment, in one read-only transaction. The target is filled in one transaction,
which also makes its tables: it holds the whole copy, compared with the source, or what it held before.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

from sqlalchemy import Connection, Table, text
from sqlalchemy.exc import DataError, IntegrityError

from shared.db import schema_version
from shared.db.bulk.cells import cell_layout_of
from shared.db.bulk.mysql import MySQLWriter
from shared.db.bulk.postgresql import CopyStream
from shared.db.bulk.writer import Transaction
from shared.db.database import DatabaseFactory
from shared.db.dialects import MYSQL, POSTGRESQL, SQLITE, PerDatabase, port_of
from shared.db.driver_errors import named_errors
from shared.db.errors import CopyError, TargetNotEmptyError, TenantViolation
from shared.db.models import Base
from shared.db.operations.contents import row_counts, tables_with_rows
from shared.db.operations.copy_values import stored_batches
from shared.db.operations.digests import differences, digest
from shared.db.operations.interruption import check, finishing, interruptible
from shared.db.operations.progress import Watch
from shared.db.ranges.streams import at_one_moment
from shared.db.tenancy import row_security
from shared.db.value_forms.forms import Cells

_PLACE = re.compile(r"line (\d+)(?:, column (\w+))?")

_SHOWN = 5


@dataclass(frozen=True)
class CopyReport:
    """A copy that holds what the source does: the number of rows of each table, both URLs without secrets.

    `left_behind` has the tables, and their rows, of no package that is loaded, which `ignore_unknown` left out.
    """

    source: str
    target: str
    revision: str
    rows: dict[str, int]
    seconds: float
    left_behind: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return asdict(self)


def row_total(db: DatabaseFactory) -> int:
    """How many rows a copy would bring: what `watch` counts up to."""
    with _snapshot(db) as source:
        return sum(row_counts(source).values())


def copy_database(
    source_db: DatabaseFactory,
    target_db: DatabaseFactory,
    *,
    ignore_unknown: bool = False,
    watch: Watch = lambda done, rows: None,
) -> CopyReport:
    """Copy every row of one database into another, which has none; tables are made there if they are missing.

    Ids stay the same, sealed secrets are never opened, and the next row gets a number of its own. An audit log comes
    along, and between two PostgreSQL databases row-level security does. `watch` is told the rows so far, twice.

    Raises `SchemaVersionError` unless both are at this code's revision (or the target is empty), `TargetNotEmptyError`
    for a target with rows, `CopyError` for tables in the source that this code does not know (unless
    `ignore_unknown`), for a value that the target cannot hold, and for any difference between the two at the end.
    Whatever is raised, the target is as it was; `Interrupted`, a `KeyboardInterrupt`, says whether it is.
    """
    with interruptible(f"nothing was copied, and {target_db.settings.safe_url} is as it was"):
        return _copy_database(source_db, target_db, ignore_unknown, watch)


def _copy_database(
    source_db: DatabaseFactory, target_db: DatabaseFactory, ignore_unknown: bool, watch: Watch
) -> CopyReport:
    started = time.monotonic()
    source_db.check_schema()
    _refuse_open_sessions(source_db, target_db)
    with _snapshot(source_db) as source, _filling(target_db) as target:
        left_behind = _unknown(source, ignore_unknown)
        tables = _tables(source)
        _prepare(target)
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            check()
            watch(done, done)

        for table in tables:
            _copy(source, target, table, tell)
        found: list[str] = []
        rows = {}
        for table in tables:
            check()
            of_source = digest(source, table)
            rows[table.name] = of_source["rows"]
            found += differences(table, of_source, digest(target, table))
        if found:
            more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise CopyError(f"the copy differs from its source and was undone: {'; '.join(found[:_SHOWN])}{more}")
        if port_of(target).has_sequences:
            _number_on(target, tables)
        if (
            port_of(target).has_row_security
            and port_of(source).has_row_security
            and row_security.policed_tables(source)
        ):
            row_security.enable(target, target_db.settings.tenant_role)
    if not target_db.settings.is_memory:
        target_db.close()  # whether there are policies, and an audit log is kept, is found out anew
    seconds = time.monotonic() - started
    urls = source_db.settings.safe_url, target_db.settings.safe_url
    return CopyReport(*urls, schema_version.SCHEMA_REVISION, rows, seconds, left_behind)


@contextmanager
def _snapshot(db: DatabaseFactory) -> Iterator[Connection]:
    """A connection that sees the database as it is at one moment, and all rows of it."""
    with db.get_session(read_only=True, max_staleness=0) as session:
        connection = at_one_moment(session)
        if port_of(connection).has_row_security:
            # Rather fail than read no more than what a policy shows; and times as text that every server reads.
            connection.exec_driver_sql(
                "SET LOCAL row_security = off; SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = ISO"
            )
        try:
            yield connection
        except TenantViolation as error:
            raise CopyError(
                "the policies of row-level security hide rows from this login; connect as the owner of the tables"
            ) from error


@contextmanager
def _filling(db: DatabaseFactory) -> Iterator[Connection]:
    with ExitStack() as last, schema_version.schema_transaction(db.engine) as connection:
        there = port_of(connection).tables(connection)
        try:
            yield connection
            check()
        except BaseException:
            if not (port_of(connection).undoes_ddl or connection.invalidated):
                _drop_all_but(there, connection)
            raise
        last.enter_context(finishing(f"the copy took place, and {db.settings.safe_url} holds all rows"))


def _drop_all_but(there: set[str], connection: Connection) -> None:
    """Take out the rows, and our tables that were made for them."""
    connection.connection.rollback()  # or the first DROP would commit them
    tables = (schema_version.VERSION_TABLE, *Base.metadata.sorted_tables)
    made = port_of(connection).tables(connection) - there
    for table in reversed(tables):
        if table.name in made:
            table.drop(connection)


def _unknown(source: Connection, ignore_unknown: bool) -> dict[str, int]:
    """The rows of each table that stays behind."""
    unknown = schema_version.not_ours(source)
    if unknown and not ignore_unknown:
        raise CopyError(
            f"the source has tables that no loaded package knows: {', '.join(unknown)}; load their package "
            "(--models), or move them yourself and leave them out here with --ignore-unknown (ignore_unknown=True)"
        )
    return row_counts(source, unknown)


def _tables(source: Connection) -> list[Table]:
    """Ours that are in the source, parents first: a package's own may be missing there, until it is first used."""
    there = port_of(source).tables(source)
    return [table for table in Base.metadata.sorted_tables if table.name in there]


def _prepare(target: Connection) -> None:
    """Make what is missing of the schema in the target, and refuse one with rows."""
    if schema_version.must_create(target):
        schema_version.create(target)
    if filled := [table for table in tables_with_rows(target) if table in Base.metadata.tables]:
        raise TargetNotEmptyError(filled, "copy into a new file, or a new database (createdb)")


def _copy(source: Connection, target: Connection, table: Table, tell: Callable[[int], None]) -> None:
    with (
        closing(stored_batches(source, table, port_of(target).name)) as pages,
        _refusal_named(table),
        named_errors(target),
    ):
        chunks = _counted(pages, tell)
        first = next(chunks, None)
        if first is None:
            return
        chunks = chain([first], chunks)
        del first  # a traceback may be printed with its frames' variables
        _WAYS_IN.of(target)(target, table, chunks)


def _into_sqlite(target: Connection, table: Table, chunks: Iterator[list[Cells]]) -> None:
    into, names = _named(target, table)
    driver: Any = target.connection.dbapi_connection
    into_all = f"INSERT INTO {into} ({names}) VALUES ({', '.join('?' * len(table.columns))})"
    driver.executemany(into_all, chain.from_iterable(_rows(chunks)))


def _into_postgresql(target: Connection, table: Table, chunks: Iterator[list[Cells]]) -> None:
    into, names = _named(target, table)
    driver: Any = target.connection.dbapi_connection
    stream = CopyStream(chunks, cell_layout_of(table, POSTGRESQL.name, True))
    with driver.cursor() as cursor:
        cursor.copy_expert(f"COPY {into} ({names}) FROM STDIN WITH (ENCODING 'UTF8')", stream)
    if stream.failure is not None:
        raise stream.failure


def _into_mysql(target: Connection, table: Table, chunks: Iterator[list[Cells]]) -> None:
    layout = cell_layout_of(table, MYSQL.name, True)
    MySQLWriter(target, layout, "error", Transaction(False, False, False)).insert_all(chunks)


def _named(target: Connection, table: Table) -> tuple[str, str]:
    quote = target.dialect.identifier_preparer.quote
    return quote(table.name), ", ".join(quote(column.name) for column in table.columns)


_WAYS_IN: PerDatabase[Callable[[Connection, Table, Iterator[list[Cells]]], None]] = PerDatabase(
    "copy", {SQLITE: _into_sqlite, POSTGRESQL: _into_postgresql, MYSQL: _into_mysql}
)


def _counted(chunks: Iterator[list[Cells]], tell: Callable[[int], None]) -> Iterator[list[Cells]]:
    for columns in chunks:
        tell(len(columns[0]))
        yield columns
        del columns  # as above


def _rows(chunks: Iterator[list[Cells]]) -> Iterator[Iterator[tuple[Any, ...]]]:
    for columns in chunks:
        rows = zip(*columns, strict=True)
        del columns  # as above
        yield rows


@contextmanager
def _refusal_named(table: Table) -> Iterator[None]:
    """What the server does not take of a row, as `CopyError` with table, row and column."""
    try:
        yield
    except (IntegrityError, DataError) as error:
        context = getattr(getattr(error.orig, "diag", None), "context", None) or ""
        found = _PLACE.search(context)
        place = f", row {found[1]} by its key" + (f", column {found[2]}" if found[2] else "") if found else ""
        reason = str(error.orig).strip().partition("\n")[0]
        raise CopyError(f"{table.name}{place}: the target refuses what the source has ({reason})") from error


def _number_on(target: Connection, tables: list[Table]) -> None:
    """Have the server count on from the highest number that came."""
    for table in tables:
        column = table.autoincrement_column
        if column is not None:
            target.execute(
                text(
                    f"SELECT setval(pg_get_serial_sequence(:table, :column), greatest(max({column.name}), 1), "
                    f"max({column.name}) IS NOT NULL) FROM {table.name}"
                ),
                {"table": table.name, "column": column.name},
            )


def _refuse_open_sessions(*databases: DatabaseFactory) -> None:
    if not any(db.settings.is_memory for db in databases) and len({db.settings.url for db in databases}) == 1:
        raise CopyError("source and target are the same database; name another target")
    # They share the one connection of an in-memory database, which is then in the middle of something.
    if any(db.settings.is_memory and db.open_sessions for db in databases):
        raise CopyError("a session on an in-memory database is still open; close it first")
