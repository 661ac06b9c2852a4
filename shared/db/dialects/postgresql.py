"""PostgreSQL, through psycopg2."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

import psycopg2
import psycopg2.errors
from psycopg2 import extensions
from sqlalchemy import BigInteger, DateTime, Engine, Numeric, String, text
from sqlalchemy import Connection as BoundConnection
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from shared.db.dialects.port import Partition, Port, TransactionStatus, Written
from shared.db.errors import (
    AuthenticationError,
    CommitUnknownError,
    ConnectionLostError,
    ConstraintError,
    CopyUnsupportedError,
    DatabaseCorruptError,
    DatabaseDiskError,
    DatabaseFailure,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseReadOnlyError,
    DatabaseUnreachableError,
    PermissionDeniedError,
    StatementCanceledError,
    StatementRefusedError,
    TextEncodingError,
    TooManyConnectionsError,
    TransactionAbortedError,
    TransactionConflictError,
    UnnamedFailure,
    UnsupportedError,
    ValueRefusedError,
)

_log = logging.getLogger(__name__)
# Any constant will do, as long as every process of the fleet uses the same one.
_SCHEMA_LOCK = 7_305_510_021
# Seconds between two questions for it, and until a wait is worth a line in the log.
_PAUSE = 0.05
_PATIENCE = 5.0
# What other rooms need of the driver, so that another driver is a change of this module.
Cursor = extensions.cursor
DivisionByZero = psycopg2.errors.DivisionByZero
DuplicateObject = psycopg2.errors.DuplicateObject
FeatureNotSupported = psycopg2.errors.FeatureNotSupported
InsufficientPrivilege = psycopg2.errors.InsufficientPrivilege
InvalidParameterValue = psycopg2.errors.InvalidParameterValue
ReadOnlySqlTransaction = psycopg2.errors.ReadOnlySqlTransaction
UniqueViolation = psycopg2.errors.UniqueViolation
STATUS_READY = extensions.STATUS_READY
TRANSACTION_STATUS_INERROR = extensions.TRANSACTION_STATUS_INERROR
make_dsn = extensions.make_dsn
# SQLSTATEs, class or whole.
_FAILURES: tuple[tuple[str, type[DatabaseFailure]], ...] = (
    ("55P03", DatabaseLockedError),
    ("40001", TransactionConflictError),
    ("40P01", TransactionConflictError),
    ("53100", DatabaseFullError),
    ("25006", DatabaseReadOnlyError),
    ("25P02", TransactionAbortedError),
    ("57014", StatementCanceledError),
    ("22P05", TextEncodingError),
    ("22021", TextEncodingError),
    ("XX001", DatabaseCorruptError),
    ("XX002", DatabaseCorruptError),
    ("28", AuthenticationError),
    ("42501", PermissionDeniedError),
    ("53300", TooManyConnectionsError),
    ("57P0", DatabaseUnreachableError),
    ("08", DatabaseUnreachableError),
    ("58030", DatabaseDiskError),
    ("23", ConstraintError),
)
# What has no entry above: by the driver's own class.
_BY_CLASS: tuple[tuple[type[Exception], type[DatabaseFailure]], ...] = (
    (psycopg2.IntegrityError, ConstraintError),
    (psycopg2.DataError, ValueRefusedError),
    (psycopg2.NotSupportedError, UnsupportedError),
    (psycopg2.ProgrammingError, StatementRefusedError),
)
# What these say of a value they say after a colon: invalid input syntax for type integer: "...".
_QUOTED_VALUE = re.compile(r':? ?".*"', re.DOTALL)
# libpq gives no SQLSTATE for a connection that was never made, only the server's words. A role is named in many of
# them ("too many connections for role"): only these two mean that the login was refused.
_CONNECT_FAILURES: tuple[tuple[re.Pattern[str], type[DatabaseFailure]], ...] = (
    (re.compile(r'FATAL: +role ".*" (does not exist|is not permitted to log in)'), AuthenticationError),
    (re.compile(r"FATAL: +(\S+ authentication failed for user|(no )?pg_hba\.conf )"), AuthenticationError),
    (re.compile(r"no password supplied$", re.MULTILINE), AuthenticationError),
    (re.compile(r"FATAL: +permission denied for database"), PermissionDeniedError),
    (re.compile(r"FATAL: +(sorry, )?too many (clients|connections)|FATAL: +remaining conn"), TooManyConnectionsError),
    (re.compile(""), DatabaseUnreachableError),
)
_STATUS = {
    extensions.TRANSACTION_STATUS_IDLE: TransactionStatus.NONE,
    extensions.TRANSACTION_STATUS_ACTIVE: TransactionStatus.OPEN,
    extensions.TRANSACTION_STATUS_INTRANS: TransactionStatus.OPEN,
    extensions.TRANSACTION_STATUS_INERROR: TransactionStatus.ABORTED,
}


class Adoption(Protocol):
    """How a connection comes to be confined to a user, before or with the first statement of a transaction."""

    def in_front(self, cursor: Cursor) -> bytes | None:
        """What adopts the role in one message with a statement; None where it takes a message of its own."""

    def unasked(self, cursor: Cursor) -> bytes:
        """The same, without asking whether the policies hold, for a question that is confined without them."""

    def took_place(self) -> None:
        """A message with `in_front()` has succeeded."""

    def now(self) -> None:
        """Adopt it by a message of its own."""


class Connection(extensions.connection):
    """The driver's connection, which SQLAlchemy's pool logs: its own repr hides the password, and no other secret."""

    adoption: Adoption | None = None
    """What the first statement of this transaction has to adopt, whichever cursor sends it."""

    has_other_cursors = False
    """Whether somebody may have one of another kind than ours, which adopts nothing with its first statement."""

    def cursor(self, *args: Any, **options: Any) -> Any:
        """As the driver's."""
        if len(args) > 1 or "cursor_factory" in options:
            self.has_other_cursors = True
            if self.adoption is not None:
                self.adoption.now()
        return super().cursor(*args, **options)

    def lobject(self, *args: Any, **options: Any) -> Any:
        """As the driver's, which sends by no cursor."""
        if self.adoption is not None:
            self.adoption.now()
        return super().lobject(*args, **options)

    last_used = -math.inf
    """When it came back to the pool, by the monotonic clock."""

    def __repr__(self) -> str:
        return f"<PostgreSQL connection {id(self):#x}, closed: {self.closed}>"

    __str__ = __repr__  # the driver has one of its own, which says as much


def has_copy() -> bool:
    """Whether the driver can COPY, which it cannot under a wait callback (gevent with psycogreen)."""
    return extensions.get_wait_callback() is None


def sends_utf8(driver: Any) -> bool:
    """Whether the server takes a connection's text for UTF-8, which COPY cannot be told in binary form."""
    return bool(driver.get_parameter_status("client_encoding") == "UTF8")


@contextmanager
def along_an_index(cursor: Any) -> Iterator[None]:
    """A block in which the server reads rows in order along an index, where there is one, and sorts none.

    Of a table that was filled just now it has no statistics, takes a month for five rows, and would sort all of them
    for each page.
    """
    cursor.execute("SET LOCAL enable_sort TO off")
    yield
    cursor.execute("SET LOCAL enable_sort TO DEFAULT")


def no_copy() -> CopyUnsupportedError:
    """The error to raise where COPY is asked for all the same."""
    return CopyUnsupportedError(psycopg2.NotSupportedError("a wait callback is set"))


class PostgreSQL(Port):
    """A server that has everything."""

    name: ClassVar[str] = "postgresql"
    title: ClassVar[str] = "PostgreSQL"
    dialects: ClassVar[frozenset[str]] = frozenset({"postgresql"})
    # Of the two drivers SQLAlchemy 2.1 takes psycopg 3 where a URL does not say.
    driver: ClassVar[str] = "postgresql+psycopg2"
    schemes: ClassVar[frozenset[str]] = frozenset({"postgres", "postgresql", "postgresql+psycopg2"})
    url_form: ClassVar[str] = "postgresql://user:password@host:5432/dbname"
    port_number: ClassVar[int | None] = 5432
    # libpq takes these as parameters too, and then prefers them to the URL's own parts.
    fields_in_query: ClassVar[Mapping[str, str]] = {"password": "password", "user": "username", "dbname": "database"}
    error: ClassVar[type[Exception]] = psycopg2.Error
    has_row_security: ClassVar[bool] = True
    has_sequences: ClassVar[bool] = True
    rolls_back_statements: ClassVar[bool] = False
    keeps_zone: ClassVar[bool] = True
    has_partitions: ClassVar[bool] = True
    takes_texts: ClassVar[bool] = True
    indexes_documents: ClassVar[bool] = True

    def money(self, digits: int, places: int) -> TypeEngine[Any]:
        """Exact."""
        return Numeric(digits, places)

    def total(self) -> TypeEngine[Any]:
        """Of any size."""
        return Numeric()

    def document(self) -> TypeEngine[Any]:
        """The kind that can be compared."""
        return JSONB(none_as_null=True)

    def whole_number(self) -> TypeEngine[Any]:
        """BIGINT."""
        return BigInteger()

    def text(self, length: int) -> TypeEngine[Any]:
        """Ordered by code point, which is faster than by a locale's rules, too."""
        return String(length, collation="C")

    def bucket(self) -> TypeEngine[Any]:
        """A time."""
        return DateTime(timezone=True)

    def now(self) -> str:
        """When the transaction began."""
        return "now()"

    def new_uuid(self) -> str:
        """Version 4."""
        return "gen_random_uuid()::text"

    def exact_sum(self, amount: str) -> str:
        """The server's own is exact."""
        return f"sum({amount})"

    def exact_product_sum(self, first: str, second: str) -> str:
        """The server's own is exact."""
        return f"CAST(sum({first} * {second}) AS TEXT)"

    def holds(self, document: Written, part: Written, *paths: Written) -> str:
        """By an operator of its own."""
        return f"({document()} @> {part()})"

    def micros_between(self, earlier: str, later: str) -> str:
        """Out of an interval."""
        return f"CAST(extract(epoch FROM {later} - {earlier}) * 1000000 AS BIGINT)"

    def time_bucket(self, time: str, micros: str, shift: str) -> str:
        """Counted from 1970."""
        return f"date_bin({micros} * interval '1 microsecond', {time}, timestamptz '1970-01-01 00:00:00+00')"

    def write_position(self, connection: BoundConnection) -> str | None:
        """What is flushed: what is only inserted into the log is sent to nobody before somebody commits."""
        return str(connection.scalar(text("SELECT pg_current_wal_flush_lsn()")))

    def tables(self, connection: BoundConnection) -> set[str]:
        """Those of the current schema, without partitions: their rows are the partitioned table's."""
        found = connection.execute(
            text(
                "SELECT relname FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition "
                "AND relnamespace = to_regnamespace(quote_ident(current_schema()))"
            )
        )
        return {*found.scalars()}

    def partitions(self, connection: BoundConnection, table: str, time: str) -> list[Partition] | None:
        """Those of the table that its name finds."""
        names = {"table": table, "time": time}
        if not connection.scalar(_PARTITIONED_BY, names):
            return None
        return [
            Partition(name, _in_utc(start), _in_utc(end), is_default)
            for name, is_default, start, end in connection.execute(_PARTITIONS, names)
        ]

    def append_only(self, table: str, refusal: str) -> Sequence[str]:
        """By one trigger for each statement, TRUNCATE too."""
        return (
            f"CREATE OR REPLACE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"RAISE EXCEPTION '{refusal}' USING ERRCODE = 'integrity_constraint_violation'; END $$",
            f"DROP TRIGGER IF EXISTS {table}_append_only ON {table}",
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_refuse()",
        )

    def append_only_no_more(self, table: str) -> Sequence[str]:
        """The trigger's function."""
        return (f"DROP FUNCTION IF EXISTS {table}_refuse()",)

    @contextmanager
    def schema_transaction(self, engine: Engine) -> Iterator[BoundConnection]:
        """Under an advisory lock, which ends with the transaction."""
        with engine.begin() as connection:
            lock_schema(connection)
            yield connection

    def status(self, driver: Any) -> TransactionStatus:
        """As libpq follows it."""
        return _STATUS.get(driver.get_transaction_status(), TransactionStatus.UNKNOWN)

    def believes_to_go_on(self, driver: Any) -> bool:
        """psycopg2 has sent BEGIN, and saw no end."""
        return bool(driver.status == extensions.STATUS_BEGIN)

    def aborted(self) -> psycopg2.Error:
        """As the server would say it."""
        return psycopg2.errors.InFailedSqlTransaction("current transaction is aborted")

    def failure(self, error: Exception) -> type[DatabaseFailure]:
        """By the SQLSTATE."""
        code = getattr(error, "pgcode", None) or ""
        if not code and isinstance(error, psycopg2.OperationalError):
            said = str(error)
            return next(failure for words, failure in _CONNECT_FAILURES if words.search(said))
        by_code = (failure for prefix, failure in _FAILURES if code.startswith(prefix))
        by_class = (failure for kind, failure in _BY_CLASS if isinstance(error, kind))
        return next(by_code, None) or next(by_class, UnnamedFailure)

    def lost(self, committing: bool) -> type[DatabaseFailure]:
        """Whatever it said last: of a COMMIT without an answer nobody knows."""
        return CommitUnknownError if committing else ConnectionLostError

    def hide_row(self, error: Exception) -> str:
        """It tells of "Failing row contains", "Key (...)", "LINE 1: ..."."""
        restored: Any = error
        if restored.diag.message_primary is None:
            return str(error)
        code = restored.pgcode or ""
        kept: str = restored.diag.message_primary
        if code.startswith("22"):
            kept = _QUOTED_VALUE.sub("", kept)
        restored.__setstate__({"pgerror": kept, "pgcode": code})
        return kept


_PARTITIONED_BY = text(
    """
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_partitioned_table JOIN pg_catalog.pg_attribute ON attrelid = partrelid
        WHERE partrelid = to_regclass(quote_ident(:table)) AND attname = :time
            AND partstrat = 'r' AND partnatts = 1 AND partattrs[0] = attnum
    )
    """
)
# A bound is told as text of the session's own, which the session reads again; MINVALUE and MAXVALUE are no times.
_PARTITIONS = text(
    r"""
    SELECT relname, bound = 'DEFAULT', substring(bound FROM $$FROM \('([^']+)'\)$$)::timestamptz AS start,
        substring(bound FROM $$TO \('([^']+)'\)$$)::timestamptz
    FROM pg_catalog.pg_inherits JOIN pg_catalog.pg_class ON pg_class.oid = inhrelid,
        LATERAL pg_get_expr(relpartbound, pg_class.oid) AS bound
    WHERE inhparent = to_regclass(quote_ident(:table)) ORDER BY 2, start NULLS FIRST
    """
)


def _in_utc(bound: datetime | None) -> datetime | None:
    return None if bound is None else bound.astimezone(UTC)


def lock_schema(connection: BoundConnection, function: str = "pg_try_advisory_xact_lock") -> None:
    """Wait until no other process changes the schema; a long wait is logged, with who is waited for.

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
        time.sleep(_PAUSE)  # a blocking call would hold a snapshot, see above
    look_past_temporary_tables(connection, transaction="xact" in function)


def look_past_temporary_tables(connection: BoundConnection, *, transaction: bool = True) -> None:
    """Have the schema's own tables found first, which temporary ones of the same name would hide (PostgreSQL).

    For the rest of the transaction, or of the server's session.
    """
    # Not where there is no other schema: then tables would be made there, and be gone with the connection.
    look = "set_config('search_path', current_setting('search_path') || ', pg_temp', :transaction)"
    connection.execute(text(f"SELECT {look} WHERE current_schema() IS NOT NULL"), {"transaction": transaction})


def _lock_holder(connection: BoundConnection) -> str:
    holder = connection.execute(
        text(
            "SELECT a.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
            "WHERE l.locktype = 'advisory' AND l.granted AND (l.classid::bigint << 32) + l.objid::bigint = :key"
        ),
        {"key": _SCHEMA_LOCK},
    ).first()
    return f"process {holder.pid} ({holder.application_name})" if holder else "a process that has ended meanwhile"
