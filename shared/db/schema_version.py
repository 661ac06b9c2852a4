"""Which revision of the schema a database has, and which one this code needs. Works without Alembic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Executable,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    literal,
    select,
)
from sqlalchemy.schema import CreateTable

from shared.db import packages
from shared.db.dialects import port_of
from shared.db.errors import SchemaVersionError
from shared.db.models import Base
from shared.db.packages import Line

# The newest file of migrations/versions, which makes what models.py says; `migrate new` moves it.
SCHEMA_REVISION = "0010_audit_log_always"

# The empty schema, before the first revision.
BASE = "base"

# Between the two revisions of a step.
_STEP = ".."

# One row for each package whose tables are there. Not Alembic's own table: that one is another program's, which may
# have tables of its own in the same database.
VERSION_TABLE = Table(
    "shared_db_version",
    MetaData(),
    Column("package", String(100), nullable=False),
    Column("revision", String(100), nullable=False),
    PrimaryKeyConstraint("package", name="pk_shared_db_version"),
)
# Where the releases before wrote the revision down, and which they knew.
FORMER_TABLE = Table("alembic_version", MetaData(), Column("version_num", String(32)))
_FORMER_REVISIONS = (
    "0001_initial",
    "0002_run_heartbeat",
    "0003_one_active_credential",
    "0004_audit_log",
    "0005_symbol_32",
    "0006_recording_runs",
    "0007_one_running_run",
    "0008_keys_for_runs",
    "0009_one_owner_of_a_run",
)


def read_revision(connection: Connection, package: str = packages.OURS) -> str | None:
    """The revision at which the database has the package's tables; None if it carries none."""
    return read_revisions(connection).get(package)


def read_revisions(connection: Connection) -> dict[str, str]:
    """The revision of each package that the database carries, those of packages that are not here among them.

    Of a step that has broken off it is the older one.
    """
    return {package: stamp.partition(_STEP)[0] for package, stamp in _stamps(connection).items()}


def broken_off(connection: Connection, package: str) -> bool:
    """Whether a step from the package's revision to the next one, or back, has broken off halfway."""
    return _STEP in _stamps(connection).get(package, "")


def step(older: str, newer: str) -> str:
    """What is written down while a step goes on, forward or back, where a failure does not undo it."""
    return f"{older}{_STEP}{newer}"


def _stamps(connection: Connection) -> dict[str, str]:
    there = port_of(connection).tables(connection)
    if VERSION_TABLE.name in there:
        return {row.package: row.revision for row in connection.execute(select(VERSION_TABLE))}
    former = _former_revision(connection, there)
    return {} if former is None else {packages.OURS: former}


def has_own_table(connection: Connection) -> bool:
    """Whether the revisions stand in a table of our own, or there are none."""
    return VERSION_TABLE.name in port_of(connection).tables(connection) or not read_revisions(connection)


def stamping(package: str, revision: str | None) -> list[Executable]:
    """The statements that write down that the package's tables are at `revision`; None: that there are none."""
    statements: list[Executable] = [VERSION_TABLE.delete().where(VERSION_TABLE.c.package == package)]
    if revision is not None:
        statements.append(VERSION_TABLE.insert().values(package=package, revision=revision))
    return statements


def stamp(connection: Connection, revision: str, package: str = packages.OURS) -> None:
    """Write down that the schema is at `revision`."""
    take_over(connection)
    for statement in stamping(package, revision):
        connection.execute(statement)


def take_over(connection: Connection) -> None:
    """Make the table that holds the revisions, and move the one there that an earlier release wrote down elsewhere."""
    there = port_of(connection).tables(connection)
    if VERSION_TABLE.name in there:
        return
    connection.execute(CreateTable(VERSION_TABLE, if_not_exists=True))
    former = _former_revision(connection, there)
    if former is not None:
        connection.execute(VERSION_TABLE.insert().values(package=packages.OURS, revision=former))
        FORMER_TABLE.drop(connection)


def _former_revision(connection: Connection, there: set[str]) -> str | None:
    if FORMER_TABLE.name not in there or not _own_tables(there):
        return None
    return formerly_ours(connection.scalars(select(FORMER_TABLE.c.version_num)).all())


def formerly_ours(stamped: Sequence[str]) -> str | None:
    """The revision that the contents of an `alembic_version` mean, None if it is another program's."""
    return stamped[0] if len(stamped) == 1 and stamped[0] in _FORMER_REVISIONS else None


def difference(
    connection: Connection, needed: str | None = None, line: Line | None = None
) -> SchemaVersionError | None:
    """The error that says how the database's revision differs from what is needed; None if it does not.

    It is ours unless `line` says whose, and the newest one is needed.
    """
    line = line or packages.OWN
    known = line.revisions()
    needed = needed or _newest(line) or BASE
    revision = read_revision(connection, line.package)
    if revision is None and not known:
        return None  # a package that writes no revisions yet
    if revision is None and not _tables_there(connection, line):
        return None if needed == BASE else SchemaVersionError("empty", None, needed, line.package)
    # Asked again: tables that another process has made between the two questions have come with their revision.
    revision = revision or read_revision(connection, line.package)
    if revision is None:
        return SchemaVersionError("unversioned", None, needed, line.package)
    if revision == needed:
        return None
    older = (BASE, *(known[: known.index(needed)] if needed in known else known))
    return SchemaVersionError("behind" if revision in older else "ahead", revision, needed, line.package)


def first_difference(connection: Connection) -> SchemaVersionError | None:
    """The same of all packages that are loaded: ours, or the first other one's.

    One that was loaded because it is installed, and has no table here, is not used here.
    """
    for line in packages.lines():
        problem = difference(connection, line=line)
        if problem is not None and not (problem.state == "empty" and packages.is_merely_installed(line.package)):
            return problem
    return None


def must_create(connection: Connection) -> bool:
    """Whether tables are missing. Raises `SchemaVersionError` unless there are none or they are this code's.

    Creating the missing tables of an older schema would leave the old ones without their new columns.
    """
    missing = False
    for line in packages.lines():
        problem = difference(connection, line=line)
        if problem is not None and problem.state != "empty" and not _can_be_made_anew(connection, line):
            raise problem
        missing = missing or problem is not None
    return missing or not {*Base.metadata.tables} <= port_of(connection).tables(connection)


def create(connection: Connection) -> None:
    """Make the tables that are missing, of all packages that are loaded, and write down their revisions.

    Where a failure does not undo that, it is written down before, and what a former one has left is made anew.
    """
    newest = {line.package: _newest(line) for line in packages.lines()}
    if not port_of(connection).undoes_ddl:
        left = [table for line in packages.lines() if creation_broke_off(connection, line) for table in line.tables()]
        if left:  # to SQLAlchemy 2.0 no table would mean all of them
            Base.metadata.drop_all(connection, tables=left)
        there = read_revisions(connection)
        for package, revision in newest.items():
            if revision is not None and there.get(package, BASE) == BASE:
                stamp(connection, step(BASE, revision), package)
    Base.metadata.create_all(connection)
    for package, revision in newest.items():
        if revision is not None:
            stamp(connection, revision, package)


def creation_broke_off(connection: Connection, line: Line) -> bool:
    """Whether `create` was making the package's tables, and has not come to its end."""
    newest = _newest(line)
    return newest is not None and _stamps(connection).get(line.package) == step(BASE, newest)


def _can_be_made_anew(connection: Connection, line: Line) -> bool:
    """Whether nothing would be lost by it."""
    if not creation_broke_off(connection, line):
        return False
    there = port_of(connection).tables(connection)
    tables = [table for table in line.tables() if table.name in there]
    return not any(connection.execute(select(literal(1)).select_from(table).limit(1)).all() for table in tables)


def _newest(line: Line) -> str | None:
    return SCHEMA_REVISION if line is packages.OWN else (line.revisions() or (None,))[-1]


def drop(connection: Connection) -> None:
    """Drop the tables of all packages that are loaded, and what says at which revision they were."""
    former = _former_revision(connection, port_of(connection).tables(connection))
    Base.metadata.drop_all(connection)
    VERSION_TABLE.drop(connection, checkfirst=True)
    if former is not None:
        FORMER_TABLE.drop(connection)


def not_ours(connection: Connection) -> list[str]:
    """The tables that are in no package that is loaded: another program's, or of a package that is not here."""
    return sorted(port_of(connection).tables(connection) - known_tables() - bookkeeping(connection))


def known_tables() -> set[str]:
    """The names of our tables, whether they are there or not, those of other packages that are loaded among them."""
    return {*Base.metadata.tables, VERSION_TABLE.name}


def bookkeeping(connection: Connection) -> set[str]:
    """The tables that hold revisions, ours alone: another program's are tables like any other."""
    there = port_of(connection).tables(connection)
    former = _former_revision(connection, there) is not None and VERSION_TABLE.name not in there
    return {VERSION_TABLE.name, *([FORMER_TABLE.name] if former else ())}


@contextmanager
def schema_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction in which nobody else changes the schema."""
    with port_of(engine).schema_transaction(engine) as connection:
        yield connection


def _own_tables(there: set[str]) -> set[str]:
    return there & {table.name for table in packages.OWN.tables()}


def _tables_there(connection: Connection, line: Line) -> bool:
    return not {table.name for table in line.tables()}.isdisjoint(port_of(connection).tables(connection))
