"""Which revision of the schema a database has, and which one this code needs. Works without Alembic."""

from __future__ import annotations

import logging
import time

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, inspect, select, text

from shared.db.errors import SchemaVersionError
from shared.db.models import Base, OptionalBase

_log = logging.getLogger(__name__)

# The newest file of migrations/versions, which makes what models.py says; `migrate new` moves it.
SCHEMA_REVISION = "0009_one_owner_of_a_run"

# Any constant will do, as long as every process of the fleet uses the same one.
_SCHEMA_LOCK = 7_305_510_021
# Seconds between two questions for it, and until a wait is worth a line in the log.
_PAUSE = 0.05
_PATIENCE = 5.0

# As Alembic makes it, so that each finds the other's.
VERSION_TABLE = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def read_revision(connection: Connection) -> str | None:
    """The revision that the database carries; None if it carries none."""
    if not inspect(connection).has_table(VERSION_TABLE.name):
        return None
    return max(connection.scalars(select(VERSION_TABLE.c.version_num)), default=None)


def stamp(connection: Connection, revision: str) -> None:
    """Write down that the schema is at `revision`."""
    VERSION_TABLE.create(connection, checkfirst=True)
    connection.execute(VERSION_TABLE.delete())
    connection.execute(VERSION_TABLE.insert().values(version_num=revision))


def difference(connection: Connection, needed: str = SCHEMA_REVISION) -> SchemaVersionError | None:
    """The error that says how the database's revision differs from `needed`; None if it does not."""
    revision = read_revision(connection)
    if revision is None and not _own_tables(connection):
        return SchemaVersionError("empty", None, needed)
    # Asked again: tables that another process has made between the two questions have come with their revision.
    revision = revision or read_revision(connection)
    if revision is None:
        return SchemaVersionError("unversioned", None, needed)
    if revision == needed:
        return None
    # Revision ids begin with their number.
    return SchemaVersionError("behind" if revision < needed else "ahead", revision, needed)


def must_create(connection: Connection) -> bool:
    """Whether tables are missing. Raises `SchemaVersionError` unless there are none or they are this code's.

    Creating the missing tables of an older schema would leave the old ones without their new columns.
    """
    problem = difference(connection)
    if problem is None:
        return _own_tables(connection) < set(Base.metadata.tables)
    if problem.state == "empty":
        return True
    raise problem


def not_ours(connection: Connection) -> list[str]:
    """The tables that are in no package that is loaded: another program's, or of a package that is not here."""
    return sorted(set(inspect(connection).get_table_names()) - known_tables())


def known_tables() -> set[str]:
    """The names of our tables, whether they are there or not, those of other packages that are loaded among them."""
    return {*Base.metadata.tables, *OptionalBase.metadata.tables, VERSION_TABLE.name}


def lock_schema(connection: Connection, function: str = "pg_try_advisory_xact_lock") -> None:
    """Wait until no other process changes the schema (PostgreSQL); a long wait is logged, with who is waited for.

    Asking again and again, since a blocking call would hold a snapshot, and CREATE INDEX CONCURRENTLY in the
    process that has the lock waits until every older snapshot is gone. For as long as the lock is held, a temporary
    table that is named like one of the schema's does not hide it.
    """
    started = time.monotonic()
    told = False
    while not connection.scalar(text(f"SELECT {function}(:key)"), {"key": _SCHEMA_LOCK}):
        if not told and time.monotonic() - started > _PATIENCE:
            _log.warning("waiting for %s, which is changing the schema", _lock_holder(connection))
            told = True
        time.sleep(_PAUSE)
    look_past_temporary_tables(connection, transaction="xact" in function)


def look_past_temporary_tables(connection: Connection, *, transaction: bool = True) -> None:
    """Have the schema's own tables found first, which temporary ones of the same name would hide (PostgreSQL).

    For the rest of the transaction, or of the server's session.
    """
    # Not where there is no other schema: then tables would be made there, and be gone with the connection.
    look = "set_config('search_path', current_setting('search_path') || ', pg_temp', :transaction)"
    connection.execute(text(f"SELECT {look} WHERE current_schema() IS NOT NULL"), {"transaction": transaction})


def _lock_holder(connection: Connection) -> str:
    holder = connection.execute(
        text(
            "SELECT a.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
            "WHERE l.locktype = 'advisory' AND l.granted AND (l.classid::bigint << 32) + l.objid::bigint = :key"
        ),
        {"key": _SCHEMA_LOCK},
    ).first()
    return f"process {holder.pid} ({holder.application_name})" if holder else "a process that has ended meanwhile"


def _own_tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) & set(Base.metadata.tables)
