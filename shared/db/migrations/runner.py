"""Bringing a database's schema to a revision, and saying where it stands.

Alembic does the steps; its configuration is made here, so there is no ini file. Raises `MissingExtraError` on
import where Alembic is not installed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from shared.db import packages, schema_version
from shared.db.database import DatabaseFactory
from shared.db.dialects import SQLITE, port_of
from shared.db.errors import (
    DatabaseLockedError,
    DatabaseMissingError,
    DataLossError,
    MigrationError,
    SchemaDriftError,
    SchemaVersionError,
)
from shared.db.migrations import catalog
from shared.db.migrations.catalog import Difference
from shared.db.migrations.catalog.entry import ROW_SECURITY
from shared.db.migrations.exclusive import exclusive_connection, lock_holders, standbys_readers
from shared.db.migrations.revisions import Revisions, build
from shared.db.models import Base
from shared.db.schema_version import BASE
from shared.db.tenancy import row_security

_log = logging.getLogger(__name__)

LOCK_TIMEOUT = 2.0
ATTEMPTS = 5


@dataclass(frozen=True)
class Status:
    """Where a database stands: `state` is "current", "behind", "ahead", "unversioned" or "empty".

    `pending` lists the revisions that an upgrade would run, oldest first.
    """

    state: str
    database_revision: str | None
    code_revision: str
    pending: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """The revisions before and after; "base" is the empty schema."""

    before: str
    after: str


def status(db: DatabaseFactory, package: str = packages.OURS) -> Status:
    """Where the database stands with a package's tables. Takes no lock."""
    revisions = Revisions(packages.line_of(package))
    try:
        with _reading(db) as connection:
            problem = _difference(connection, revisions)
    except SchemaVersionError:
        problem = SchemaVersionError("empty", None, revisions.head, package)
    if problem is None:
        return Status("current", None if revisions.head == BASE else revisions.head, revisions.head, ())
    pending: tuple[str, ...] = ()
    if problem.state in ("empty", "behind"):
        pending = revisions.names[revisions.position(problem.database_revision or BASE) + 1 :]
    return Status(problem.state, problem.database_revision, revisions.head, pending)


def packages_with_revisions() -> list[str]:
    """The packages that have revisions and whose tables are loaded: ours first, each after those that it hangs on."""
    return [line.package for line in packages.lines()]


def upgrade(
    db: DatabaseFactory,
    revision: str = "head",
    *,
    package: str = packages.OURS,
    lock_timeout: float = LOCK_TIMEOUT,
    attempts: int = ATTEMPTS,
) -> Change:
    """Bring a package's tables forward to `revision`; nothing happens if they are there. Any number of processes may.

    On SQLite all steps are one transaction; on PostgreSQL each is one of its own, which waits at most
    `lock_timeout` seconds for a table and is tried `attempts` times. On MariaDB each statement commits: of a step that
    fails stays what was done until then, the database counts as behind, and the next upgrade does the rest. Row-level
    security, where it is enabled, is extended to what is new.

    Raises `SchemaVersionError` for a database that is newer than the code or carries no revision, and for one in which
    tables that the package's hang on are not at their newest revision; `UnknownRevisionError`; and `MigrationError`
    when the database is past `revision` or stays locked.
    """
    revisions = Revisions(packages.line_of(package))
    target = revisions.position(revision)

    def step(connection: Connection, start: int) -> None:
        if start > target:
            raise MigrationError(
                f"the database is at {revisions.names[start]}, past {revisions.names[target]}; use down to go back"
            )
        with _transaction(connection):
            _require_what_it_hangs_on(connection, package)
        revisions.move(connection, start, target)

    change = _move(db, revisions, target, step, lock_timeout, attempts)
    if change.before != change.after == revisions.head and db.row_security_status().problems:
        # Where policies are in force, a table that has just been made needs its own.
        db.enable_row_security()
    return change


def upgrade_all(db: DatabaseFactory) -> dict[str, Change]:
    """Bring the tables of every package that is loaded to their newest revision; what was done, by package.

    Those that others hang on come first. Raises what `upgrade` does; what was done before stays.
    """
    return {package: upgrade(db, package=package) for package in packages_with_revisions()}


def downgrade(
    db: DatabaseFactory,
    revision: str,
    *,
    package: str = packages.OURS,
    allow_data_loss: bool = False,
    lock_timeout: float = LOCK_TIMEOUT,
    attempts: int = ATTEMPTS,
) -> Change:
    """Bring a package's tables back to `revision` ("base": no tables); nothing happens if they are there.

    Raises `DataLossError`, before anything is changed, if a step deletes tables or columns and
    `allow_data_loss` is not given, and `MigrationError` if other packages' tables would hang on nothing; otherwise as
    `upgrade`.
    """
    revisions = Revisions(packages.line_of(package))
    target = revisions.position(revision)

    def step(connection: Connection, start: int) -> None:
        if start < target:
            raise MigrationError(
                f"the database is at {revisions.names[start]}, before {revisions.names[target]}; use up to go forward"
            )
        with _transaction(connection):
            if not target:
                _refuse_what_hangs_on_it(connection, package)
            there = port_of(connection).tables(connection)
        losses = [name for name in revisions.drops(start, target) if name.partition(".")[0] in there]
        if losses and not allow_data_loss:
            raise DataLossError(losses)
        revisions.move(connection, start, target)

    return _move(db, revisions, target, step, lock_timeout, attempts)


def downgrade_all(db: DatabaseFactory, *, allow_data_loss: bool = False) -> dict[str, Change]:
    """Remove the tables of every package that is loaded, those that hang on others first; what was done, by package.

    Raises what `downgrade` does; what was done before stays.
    """
    return {
        package: downgrade(db, BASE, package=package, allow_data_loss=allow_data_loss)
        for package in reversed(packages_with_revisions())
    }


def adopt(db: DatabaseFactory, package: str = packages.OURS) -> Change:
    """Write down the revision of tables that carry none, after comparing them with the code's.

    The newest revision that makes exactly these tables is taken; an upgrade goes on from there. Nothing happens if
    the database carries the newest one already.

    Raises `SchemaDriftError`, which lists how the schema differs from the models, if no revision fits, and
    `SchemaVersionError` for a database that is empty, behind or ahead.
    """
    revisions = Revisions(packages.line_of(package))
    with exclusive_connection(db, LOCK_TIMEOUT) as connection, _transaction(connection):
        schema_version.take_over(connection)
        problem = _difference(connection, revisions)
        if problem is None:
            return Change(revisions.head, revisions.head)
        if problem.state != "unversioned":
            raise problem
        tables = {table.name for table in revisions.line.tables()}
        # Policies are no revision's work.
        found = {
            entry: text
            for entry, text in catalog.only(catalog.read(connection), tables).items()
            if entry.kind not in ROW_SECURITY
        }
        for position in range(len(revisions.names) - 1, 0, -1):
            expected = catalog.only(
                catalog.built_by(connection, partial(build, revisions=revisions, target=position)), tables
            )
            if not catalog.compare(expected, found):
                schema_version.stamp(connection, revisions.names[position], package)
                return Change(BASE, revisions.names[position])
        raise SchemaDriftError(catalog.compare(catalog.only(catalog.built_by(connection, _create_all), tables), found))


def check(db: DatabaseFactory, package: str | None = None) -> list[Difference]:
    """Every difference between our tables as they are and the models, in both directions; none is an empty list.

    Tables, columns with types and defaults, constraints, indexes, triggers, and, where row-level security has been
    enabled, policies; of all packages that are loaded, or of one. Changes nothing. Raises
    `SchemaVersionError` for a database that is empty, behind or ahead: its differences are the pending revisions.
    """
    lines = packages.lines() if package is None else [packages.line_of(package)]
    known = schema_version.known_tables() if package is None else {table.name for table in lines[0].tables()}
    # On PostgreSQL the expected schema is built for comparison and rolled back, which a read-only one cannot do.
    with _reading(db, read_only=db.settings.port is SQLITE) as connection:
        for line in lines:
            problem = _difference(connection, Revisions(line))
            if problem is not None and problem.state != "unversioned":
                raise problem
        found = catalog.read(connection)
        secured = any(entry.kind == "policy" and entry.name == row_security.POLICY_NAME for entry in found)

        def build_expected(scratch: Connection) -> None:
            _create_all(scratch)
            if secured:
                row_security.enable(scratch, db.settings.tenant_role)

        expected = catalog.built_by(connection, build_expected)
        return catalog.compare(catalog.only(expected, known), catalog.only(found, known))


def not_ours(db: DatabaseFactory) -> list[str]:
    """The tables that `check` leaves alone: they are in no package that is loaded."""
    with _reading(db) as connection:
        return schema_version.not_ours(connection)


def sql(dialect: str, start: str = BASE, revision: str = "head", *, package: str = packages.OURS) -> str:
    """The SQL that brings a package's tables from `start` to `revision`, for review.

    For "sqlite", "postgresql" or "mysql", in MariaDB's words. Backward if `revision` is the older one. No database is
    needed. Steps that read rows and decide by them are written as for empty tables.
    """
    revisions = Revisions(packages.line_of(package))
    return revisions.sql(dialect, revisions.position(start), revisions.position(revision), LOCK_TIMEOUT)


def _move(
    db: DatabaseFactory,
    revisions: Revisions,
    target: int,
    step: Callable[[Connection, int], None],
    lock_timeout: float,
    attempts: int,
) -> Change:
    _ = db.engine  # makes the file where there is none
    with _reading(db) as connection:
        before = _position(connection, revisions)
        settled = schema_version.has_own_table(connection) and not _broken_off(connection, revisions)
    readers = standbys_readers(db) if before != target else None
    if readers is not None:
        _log.warning(
            "a standby waits with this migration, and with all that is committed after it, until those who read there "
            "have ended, and breaks them off at last; end long reads first. There read: %s",
            readers,
        )
    attempt = 0
    while before != target or not settled:
        attempt += 1
        try:
            with exclusive_connection(db, lock_timeout) as connection:
                # Read again: somebody else may have done it while this process waited.
                with _transaction(connection):
                    start = _position(connection, revisions)
                    if schema_version.creation_broke_off(connection, revisions.line) and len(revisions.names) > 2:
                        raise MigrationError(
                            "create_tables(), or init, was making the tables, and broke off; let it make them anew: "
                            "python -m shared.db init"
                        )
                    if target <= start and _broken_off(connection, revisions):
                        start += 1  # from which that step leads back
                if attempt == 1:
                    before = start
                if start == target:
                    with _transaction(connection):
                        schema_version.take_over(connection)
                else:
                    step(connection, start)
            break
        except DatabaseLockedError as error:
            if attempt >= attempts:
                holders = lock_holders(db) or "sessions that have ended meanwhile, or of another program"
                left = "was undone" if db.settings.port.undoes_ddl else "broke off, and will be taken up again"
                raise MigrationError(
                    f"the database stayed locked through {attempts} attempts, by {holders}; the step that waited "
                    f"{left}: end what holds the lock, or try again later"
                ) from error
            _log.warning("attempt %d of %d waited in vain for a lock; trying again", attempt, attempts)
            # Those who queued up behind the attempt go first.
            time.sleep(lock_timeout)
    return Change(revisions.names[before], revisions.names[target])


def _difference(connection: Connection, revisions: Revisions) -> SchemaVersionError | None:
    return schema_version.difference(connection, revisions.head, revisions.line)


def _broken_off(connection: Connection, revisions: Revisions) -> bool:
    return schema_version.broken_off(connection, revisions.line.package)


def _position(connection: Connection, revisions: Revisions) -> int:
    problem = _difference(connection, revisions)
    if problem is None:
        return len(revisions.names) - 1
    if problem.state in ("unversioned", "ahead"):
        raise problem
    return revisions.names.index(problem.database_revision or BASE)


def _require_what_it_hangs_on(connection: Connection, package: str) -> None:
    """Other packages' tables are made on top of the newest ones that they name."""
    for line in packages.lines():
        if line.package == package:
            return
        problem = _difference(connection, Revisions(line))
        if problem is not None:
            raise problem


def _refuse_what_hangs_on_it(connection: Connection, package: str) -> None:
    order = packages_with_revisions()
    before = order[: order.index(package) + 1]
    hanging = sorted(set(schema_version.read_revisions(connection)) - set(before))
    if hanging:
        raise MigrationError(
            f"the tables of {', '.join(hanging)} may hang on those of {package}; load these packages (--models), and "
            "bring all back: python -m shared.db migrate down base"
        )


def _create_all(scratch: Connection) -> None:
    Base.metadata.create_all(scratch, checkfirst=False)


@contextmanager
def _reading(db: DatabaseFactory, *, read_only: bool = True) -> Iterator[Connection]:
    only_reads = read_only or db.settings.read_only
    try:
        with db.get_session(read_only=read_only, max_staleness=0 if only_reads else None) as session:
            yield Session.connection(session)
    except DatabaseMissingError as error:
        raise SchemaVersionError("empty", None, schema_version.SCHEMA_REVISION) from error


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    # SQLite's exclusive connection comes with one, the others' without.
    with nullcontext() if connection.in_transaction() else connection.begin():
        yield
