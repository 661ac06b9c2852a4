"""A stream that is shared by all, kept in partitions by time: each month, or day, is a table of its own (PostgreSQL).

A month that is over goes by dropping its table, in place of deleting row after row. A table with rows becomes the
first partition as it is: that no row lies beyond its end is made sure beforehand, while writers go on, so that it is
locked for some statements about names alone. What no partition takes is in the default one, from which
`extend_partitions` brings it to partitions of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from shared.db import audit, commits
from shared.db.database import DatabaseFactory
from shared.db.dialects import port_of
from shared.db.dialects.port import Partition
from shared.db.dialects.postgresql import lock_schema
from shared.db.driver_errors import named_errors
from shared.db.errors import ConstraintError, DatabaseLockedError, InputError, MigrationError, TransactionConflictError
from shared.db.migrations.exclusive import exclusive_connection, lock_holders
from shared.db.models import AuditAction, Base
from shared.db.operations.interruption import check
from shared.db.ranges.bounds import Source, source_of
from shared.db.ranges.reading import StreamReading
from shared.db.repositories import Repository
from shared.db.tables import OWNERSHIP, streams

T = TypeVar("T")
_log = logging.getLogger(__name__)

OLDEST_SERVER = 17
# Seconds for which others may have to wait while a table is waited for, until it is tried again, and how often.
_TURN = 0.5
_PAUSE = 0.5
_ATTEMPTS = 60
# How far from now the first partition ends: until then its rows may come while it is enabled, or until somebody goes on
# with it.
_AHEAD = timedelta(days=31)
_LONGEST_NAME = 63


class Period(StrEnum):
    """How much time a partition holds."""

    MONTH = "month"
    DAY = "day"

    def start(self, when: datetime) -> datetime:
        """The beginning of the period with this time, UTC."""
        day = when.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return day if self is Period.DAY else day.replace(day=1)

    def after(self, start: datetime) -> datetime:
        """The beginning of the next one."""
        return self.start(start + timedelta(days=1 if self is Period.DAY else 31))

    def label(self, start: datetime) -> str:
        """The end of its partition's name."""
        return f"{start:%Y_%m_%d}" if self is Period.DAY else f"{start:%Y_%m}"


@dataclass(frozen=True)
class PartitionReport:
    """The partitions that a table has now, those that were `made`, and the `moved` rows from the default one."""

    table: str
    partitions: tuple[str, ...]
    made: tuple[str, ...]
    moved: int

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class DropReport:
    """The partitions that went, or would go in a dry run, with their number of rows.

    It took `seconds` in all, and others were kept from the table for `longest` seconds at most.
    """

    table: str
    dropped: tuple[str, ...]
    rows: int
    dry_run: bool
    longest: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return asdict(self)


def enable_partitions(
    db: DatabaseFactory, model: type[Base], *, by: str = Period.MONTH, ahead: int = 1
) -> PartitionReport:
    """Keep the table of a stream that is shared by all in partitions by "month" or "day", while writers go on.

    Its rows stay where they are, as the first partition, which ends a month or more from now. What is interrupted goes
    on when it is called again, by another process too; until then a row of a time after that end is refused
    (`ConstraintError`). A table that is partitioned already is only extended, as `extend_partitions` does.

    Raises `InputError` for another kind of database, a server before PostgreSQL 17, a table that does not hold such a
    stream, and one on which something hangs that would stay with the first partition alone; `MigrationError`, with who
    holds it, for a table that could not be locked for half a second in a minute.
    """
    source, period = _source_of(db, model), _period(by)
    _require_server(db)
    db.check_schema()
    with db.engine.connect() as connection:
        whole = _is_whole(connection, source)
    if whole:
        with db.get_session(read_only=True, max_staleness=0) as session:
            last = [one.last_ts for one in StreamReading.coverage(Repository(session, model), count=False)]
        with exclusive_connection(db, _TURN) as connection:
            enabling = _Enabling(db, connection, source, period)
            if _is_whole(connection, source):  # else another process was first
                enabling.run(max([datetime.now(UTC), *last]))
    return extend_partitions(db, model, by=by if whole else None, ahead=ahead)


def extend_partitions(
    db: DatabaseFactory,
    model: type[Base],
    *,
    by: str | None = None,
    ahead: int = 1,
    since: datetime | None = None,
) -> PartitionReport:
    """Make the partitions that are missing: of the present, of `ahead` periods to come, of all since `since` if given.

    And of each period of which the default partition has rows, which are brought there; writers of that partition wait
    meanwhile. As long a period as the partitions have that are there; `by` is for the first one. Any number of
    processes may do it at once. Raises `InputError` for a table that is not partitioned by its time, or by other
    periods than months and days; all else as `enable_partitions`.
    """
    source = _source_of(db, model)
    if ahead < 0:
        raise InputError(f"ahead is the number of periods to come, 0 or more, not {ahead}")
    since = source.instant(since)
    _require_server(db)
    db.check_schema()
    with db.engine.connect() as connection:
        found = _partitions(connection, source)
        period = _period_of(source, found, by)
        wanted = {*_periods_in_default(connection, source, period)}
    ends = [one.end for one in found if one.end is not None]
    if ends and all(one.start is None for one in found):
        wanted.add(period.start(max(ends)))  # which tells the next time how long a period is
    now = datetime.now(UTC)
    start = period.start(now if since is None else min(since, now))
    while start <= now:
        wanted.add(start)
        start = period.after(start)
    for _ in range(ahead):
        wanted.add(start)
        start = period.after(start)
    made, moved = [], 0
    for start in sorted(wanted):
        check()
        name, rows = _in_turn(db, partial(_make, source, period, start))
        moved += rows
        made += [name] if name else []
    with db.engine.begin() as connection:
        if made:
            # Of the whole table the server keeps statistics only when it is told to.
            connection.execute(text(f"ANALYZE {_quoted(connection, source.model.__tablename__)}"))
        names = tuple(one.name for one in _partitions(connection, source))
    return PartitionReport(source.model.__tablename__, names, tuple(made), moved)


def drop_partitions(
    db: DatabaseFactory,
    model: type[Base],
    before: datetime,
    *,
    dry_run: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> DropReport:
    """Drop the partitions whose rows are all older than `before`, the oldest first, until `stop()` says so.

    Their rows are counted first. Each is a transaction of its own, and an entry of the audit log. Raises `InputError`
    for a table that is not partitioned by its time, `MigrationError` as `enable_partitions`.
    """
    source = _source_of(db, model)
    instant = source.instant(before)
    assert instant is not None
    db.check_schema()
    with db.engine.connect() as connection:
        _partitions(connection, source)
    return drop_whole(db, source, instant, dry_run=dry_run, stop=stop)


def drop_whole(
    db: DatabaseFactory,
    source: Source,
    before: datetime,
    *,
    dry_run: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> DropReport:
    """The same of any stream, of which nothing goes where it has no partitions by its time."""
    table, dropped, rows, longest, started = source.model.__tablename__, [], 0, 0.0, time.monotonic()
    with db.engine.connect() as connection:
        found = port_of(connection).partitions(connection, table, source.time.name) or []
    for partition in found:
        if partition.is_default or partition.end is None or partition.end > before:
            continue
        if stop():
            break
        with db.engine.connect() as connection:
            counted = connection.scalar(text(f"SELECT count(*) FROM {_quoted(connection, partition.name)}")) or 0
        begun = time.monotonic()
        if dry_run or _in_turn(db, partial(_drop, source, partition, counted)):
            dropped.append(partition.name)
            rows += counted
        longest = max(longest, time.monotonic() - begun)
    return DropReport(table, tuple(dropped), rows, dry_run, longest, time.monotonic() - started)


class _Enabling:
    """Turns a table with rows into the first partition of one that takes its place."""

    def __init__(self, db: DatabaseFactory, connection: Connection, source: Source, period: Period) -> None:
        self._db = db
        self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        self._source = source
        self._period = period
        self._name = source.model.__tablename__
        self._table = self._quote(self._name)
        self._time = self._quote(source.time.name)
        self._index = f"ix_{self._name}_of_partitions"

    def run(self, newest: datetime) -> None:
        """All of it; what an earlier run has done stays."""
        self._refuse()
        end = self._bounded(newest)
        self._indexed()
        check()
        started = time.monotonic()
        self._patiently(*self._switch(end))
        _log.info("%s is partitioned; it was locked for %.3f s or less", self._name, time.monotonic() - started)

    def _refuse(self) -> None:
        if len(f"{self._name}_before_2000_01_01_00") > _LONGEST_NAME:
            raise InputError(f"{self._name} is too long a name to have partitions named after it; rename the table")
        hanging = [str(what) for what in self._connection.scalars(text(_HANGING), self._names())]
        if hanging:
            raise InputError(
                f"{self._name} cannot be partitioned as it is: {', '.join(hanging)}; drop it, and make it again for "
                "the partitioned table"
            )
        keys = self._connection.scalars(text(_KEYS_WITHOUT_TIME), self._names()).all()
        if keys:
            raise InputError(
                f"the unique key {keys[0]} of {self._name} does not have {self._source.time.name}, as every key of a "
                "table in partitions by it must; such a stream stays in one table, and purge deletes its old rows"
            )

    def _bounded(self, newest: datetime) -> datetime:
        """Have the server know that all rows are before a time, those that come meanwhile too; which time."""
        marks = self._connection.execute(text(_BOUNDS), self._names() | {"like": f"ck_{self._name}_before_%"}).all()
        for name, validated, end in marks:
            if end is None or end.astimezone(UTC) <= newest or self._period.start(end) != end.astimezone(UTC):
                self._patiently(f"ALTER TABLE {self._table} DROP CONSTRAINT {self._quote(name)}")
                continue
            if not validated:
                self._validate(name)
            return end.astimezone(UTC)  # type: ignore[no-any-return] # a time, as selected
        end = self._period.start(newest + _AHEAD)
        if end < newest + _AHEAD:
            end = self._period.after(end)
        name = f"ck_{self._name}_before_{end:%Y%m%d}"
        self._patiently(
            f"ALTER TABLE {self._table} ADD CONSTRAINT {self._quote(name)} CHECK ({self._time} < '{end.isoformat()}') "
            "NOT VALID"
        )
        self._validate(name)
        return end

    def _validate(self, name: str) -> None:
        check()
        try:
            self._at_leisure(f"ALTER TABLE {self._table} VALIDATE CONSTRAINT {self._quote(name)}")
        except ConstraintError as error:
            self._patiently(f"ALTER TABLE {self._table} DROP CONSTRAINT {self._quote(name)}")
            raise InputError(
                f"{self._name} got a row of a later time than its newest meanwhile; run it again"
            ) from error

    def _indexed(self) -> None:
        """Make the index of the primary key that the table will have: the server builds it while writers go on."""
        index = self._quote(self._index)
        valid = self._connection.scalar(
            text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)"), {"index": index}
        )
        if valid:
            return
        check()
        if valid is not None:  # of a run that was killed
            self._at_leisure(f"DROP INDEX CONCURRENTLY {index}")
        keys = ", ".join(map(self._quote, self._key()))
        self._at_leisure(f"CREATE UNIQUE INDEX CONCURRENTLY {index} ON {self._table} ({keys})")

    def _switch(self, end: datetime) -> list[str]:
        """What puts a partitioned table into the place of the one that is there, which becomes a partition."""
        table, time = self._table, self._time
        name = f"{self._name}_before_{self._period.label(end)}"
        old, rest = self._quote(name), self._quote(f"{self._name}_rest")
        owner = self._connection.scalar(text(_OWNER), self._names())
        primary, *constraints = self._connection.execute(text(_CONSTRAINTS), self._names()).all()
        indexes = self._connection.execute(text(_INDEXES), self._names() | {"index": self._index}).all()
        check_name = self._quote(f"ck_{self._name}_before_{end:%Y%m%d}")
        mine = [f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"]
        mine += [
            f"ALTER TABLE {table} RENAME TO {old}",
            f"ALTER TABLE {old} DROP CONSTRAINT {self._quote(primary.conname)}",
        ]
        widened, index = self._quote(f"pk_{name}"), self._quote(self._index)
        mine.append(f"ALTER TABLE {old} ADD CONSTRAINT {widened} PRIMARY KEY USING INDEX {index}")
        for number, one in enumerate(constraints):
            mine.append(
                f"ALTER TABLE {old} RENAME CONSTRAINT {self._quote(one.conname)} TO {self._quote(f'{name}_{number}')}"
            )
        for number, (other, _) in enumerate(indexes, len(constraints)):
            mine.append(f"ALTER INDEX {self._quote(other)} RENAME TO {self._quote(f'{name}_{number}')}")
        mine += [
            f"CREATE TABLE {table} (LIKE {old} INCLUDING ALL EXCLUDING INDEXES) PARTITION BY RANGE ({time})",
            f"ALTER TABLE {table} DROP CONSTRAINT {check_name}",
            f"ALTER TABLE {table} OWNER TO {self._quote(owner)}",
        ]
        keys = ", ".join(map(self._quote, self._key()))
        mine.append(f"ALTER TABLE {table} ADD CONSTRAINT {self._quote(primary.conname)} PRIMARY KEY ({keys})")
        mine += [
            f"ALTER TABLE {table} ADD CONSTRAINT {self._quote(one.conname)} {one.definition}" for one in constraints
        ]
        mine += [definition for _, definition in indexes]
        mine += self._connection.scalars(text(_NUMBERING), self._names() | {"old": old, "new": table}).all()
        mine += self._connection.scalars(text(_GRANTS), self._names() | {"old": old, "new": table}).all()
        # An empty one would only be in the way of partitions of the past.
        mine += [
            f"DO $do$ BEGIN IF EXISTS (SELECT FROM {old}) THEN "
            f"ALTER TABLE {table} ATTACH PARTITION {old} FOR VALUES FROM (MINVALUE) TO ('{end.isoformat()}'); "
            f"ALTER TABLE {old} DROP CONSTRAINT {check_name}; ELSE DROP TABLE {old}; END IF; END $do$",
            f"CREATE TABLE {rest} PARTITION OF {table} DEFAULT",
            f"ALTER TABLE {rest} OWNER TO {self._quote(owner)}",
        ]
        return mine

    def _key(self) -> list[str]:
        return [*(column.name for column in self._source.model.__table__.primary_key), self._source.time.name]

    def _names(self) -> dict[str, str]:
        return {"table": self._name, "time": self._source.time.name}

    def _quote(self, name: str) -> str:
        return _quoted(self._connection, name)

    def _at_leisure(self, statement: str) -> None:
        """Run what keeps nobody from writing, however long it waits."""
        _run(self._connection, "SET lock_timeout = 0")
        _run(self._connection, statement)

    def _patiently(self, *statements: str) -> None:
        """Run them as one transaction, which waits for a moment for the table, and again when others had a turn."""
        timeout = f"SET lock_timeout = '{int(_TURN * 1000)}ms'"
        _run(self._connection, timeout)
        _again(self._db, lambda: _run(self._connection, *statements))


def _make(source: Source, period: Period, start: datetime, session: Session) -> tuple[str | None, int]:
    """The partition of one period, with its rows from the default one; None if there is one already."""
    connection = Session.connection(session)
    end = period.after(start)
    found = _partitions(connection, source)
    table = source.model.__tablename__
    for one in found:
        if not one.is_default and (one.start is None or one.start < end) and (one.end is None or one.end > start):
            return None, 0
    name = f"{table}_{period.label(start)}"
    quoted, parent, when = (_quoted(connection, each) for each in (name, table, source.time.name))
    _run(connection, f"CREATE TABLE {quoted} (LIKE {parent} INCLUDING ALL EXCLUDING IDENTITY)")
    owner = connection.scalar(text(_OWNER), {"table": table})
    _run(connection, f"ALTER TABLE {quoted} OWNER TO {_quoted(connection, str(owner))}")
    moved = 0
    default = next((_quoted(connection, one.name) for one in found if one.is_default), None)
    if default is not None:
        bounds = {"start": start, "end": end}
        within = f"FROM {default} WHERE {when} >= :start AND {when} < :end"
        if connection.scalar(text(f"SELECT EXISTS (SELECT {within})"), bounds):
            # Nobody reads or writes it until they are where they belong, which is then one moment for everybody.
            _run(connection, f"LOCK TABLE {default} IN ACCESS EXCLUSIVE MODE")
            columns = connection.scalars(text(_COLUMNS), {"table": table}).all()
            names = ", ".join(_quoted(connection, column) for column in columns)
            moved = connection.execute(
                text(
                    f"WITH moved AS (DELETE {within} RETURNING {names}) "
                    f"INSERT INTO {quoted} ({names}) SELECT {names} FROM moved"
                ),
                bounds,
            ).rowcount
    _run(
        connection,
        f"ALTER TABLE {parent} ATTACH PARTITION {quoted} "
        f"FOR VALUES FROM ('{start.isoformat()}') TO ('{end.isoformat()}')",
    )
    return name, moved


def _drop(source: Source, partition: Partition, rows: int, session: Session) -> bool:
    """Whether it was there to be dropped: another process may have been first."""
    connection = Session.connection(session)
    if partition not in (
        port_of(connection).partitions(connection, source.model.__tablename__, source.time.name) or []
    ):
        return False
    _run(connection, f"DROP TABLE {_quoted(connection, partition.name)}")
    audit.record_bulk(session, source.model, AuditAction.DELETE, rows)
    commits.note(session, [source.model.__table__])
    return True


def _in_turn(db: DatabaseFactory, change: Callable[[Session], T]) -> T:
    """What `change` gives in a transaction in which nobody else changes the schema; it waits but for a moment."""

    def once() -> T:
        with db.get_session() as session:
            connection = Session.connection(session)
            lock_schema(connection)
            _run(connection, f"SET LOCAL lock_timeout = '{int(_TURN * 1000)}ms'")
            return change(session)

    return _again(db, once)


def _again(db: DatabaseFactory, work: Callable[[], T]) -> T:
    for _ in range(_ATTEMPTS - 1):
        try:
            return work()
        except (DatabaseLockedError, TransactionConflictError):
            check()
            time.sleep(_PAUSE)  # those who queued up behind it go first
    try:
        return work()
    except (DatabaseLockedError, TransactionConflictError) as error:
        holders = lock_holders(db) or "sessions that have ended meanwhile, or of another program"
        raise MigrationError(
            f"the table stayed locked through {_ATTEMPTS} attempts, by {holders}; the step that waited was undone: end "
            "what holds the lock, or try again later"
        ) from error


def _source_of(db: DatabaseFactory, model: type[Base]) -> Source:
    source = source_of(model)
    port = port_of(db.engine)
    if not port.has_partitions:
        raise InputError(
            f"partitions need PostgreSQL {OLDEST_SERVER} or newer, and this is {port.title}, where old rows are "
            "deleted by: python -m shared.db purge"
        )
    if OWNERSHIP[model] is not None:
        shared = sorted(one.__tablename__ for one in streams() if OWNERSHIP[one] is None)
        raise InputError(
            f"{model.__tablename__} holds users' rows, and partitions are for streams that are shared by all: "
            f"{', '.join(shared)}"
        )
    return source


def _require_server(db: DatabaseFactory) -> None:
    with db.engine.connect() as connection:
        version = int(connection.scalar(text("SELECT current_setting('server_version_num')::int")) or 0)
    if version < OLDEST_SERVER * 10_000:
        raise InputError(
            f"partitions need PostgreSQL {OLDEST_SERVER} or newer, and this server is {version // 10_000}; upgrade it "
            "(pg_upgrade, or python -m shared.db copy to a newer one)"
        )


def _period(by: str) -> Period:
    try:
        return Period(by)
    except ValueError:
        raise InputError(f"{by!r} is no period; partitions are by {' or '.join(Period)}") from None


def _is_whole(connection: Connection, source: Source) -> bool:
    """Whether the table is in one piece. `InputError` for one that is not there, or partitioned otherwise."""
    table = source.model.__tablename__
    kind = connection.scalar(
        text("SELECT relkind::text FROM pg_class WHERE oid = to_regclass(quote_ident(:table))"), {"table": table}
    )
    if kind is None:
        raise InputError(f"there is no table {table}; run: python -m shared.db init")
    if kind != "p":
        return True
    _partitions(connection, source)
    return False


def _partitions(connection: Connection, source: Source) -> list[Partition]:
    table, when = source.model.__tablename__, source.time.name
    found = port_of(connection).partitions(connection, table, when)
    if found is None:
        raise InputError(
            f"{table} is not in partitions by {when}; run: python -m shared.db partition enable --table {table}, if it "
            "is in one piece"
        )
    return found


def _period_of(source: Source, found: list[Partition], by: str | None) -> Period:
    """The period of the newest partition with two ends."""
    for one in reversed(found):
        if one.start is not None and one.end is not None:
            for period in Period:
                if period.start(one.start) == one.start and period.after(one.start) == one.end:
                    return period
            raise InputError(
                f"{one.name} is neither a month nor a day of UTC; extend {source.model.__tablename__} as it was made"
            )
    return _period(by or Period.MONTH)


def _periods_in_default(connection: Connection, source: Source, period: Period) -> list[datetime]:
    """Those of which the default partition has rows."""
    default = next((one.name for one in _partitions(connection, source) if one.is_default), None)
    if default is None:
        return []
    when = _quoted(connection, source.time.name)
    found = connection.scalars(
        text(f"SELECT DISTINCT date_trunc('{period}', {when}, 'UTC') FROM {_quoted(connection, default)}")
    )
    return [start.astimezone(UTC) for start in found]


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote(name)


def _run(connection: Connection, *statements: str) -> None:
    """Send them as one message: outside of a transaction they are one of their own."""
    with named_errors(connection), closing(connection.connection.cursor()) as cursor:
        cursor.execute("; ".join(statements))


_OWNER = """
    SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass(quote_ident(:table))
"""
_COLUMNS = """
    SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(quote_ident(:table)) AND attnum > 0
        AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
# What knows the table by its number, and would go on with the first partition alone.
_HANGING = """
    WITH one AS (SELECT to_regclass(quote_ident(:table))::oid AS oid)
    SELECT 'the foreign key ' || conname || ' of ' || conrelid::regclass FROM pg_constraint, one
    WHERE contype = 'f' AND confrelid = one.oid
    UNION ALL
    SELECT DISTINCT 'the view ' || ev_class::regclass FROM pg_rewrite, pg_depend, one
    WHERE pg_depend.classid = 'pg_rewrite'::regclass AND objid = pg_rewrite.oid
        AND refclassid = 'pg_class'::regclass AND refobjid = one.oid AND ev_class <> one.oid
    UNION ALL
    SELECT 'the trigger ' || tgname FROM pg_trigger, one WHERE tgrelid = one.oid AND NOT tgisinternal
    UNION ALL
    SELECT 'the policy ' || polname FROM pg_policy, one WHERE polrelid = one.oid
    UNION ALL
    SELECT 'the publication ' || pubname
    FROM pg_publication_rel JOIN pg_publication ON pg_publication.oid = prpubid, one
    WHERE prrelid = one.oid
    UNION ALL
    SELECT 'the constraint ' || conname FROM pg_constraint, one WHERE conrelid = one.oid AND contype = 'x'
    UNION ALL
    SELECT 'the inheriting table ' || inhrelid::regclass FROM pg_inherits, one WHERE inhparent = one.oid
"""
_KEYS_WITHOUT_TIME = """
    SELECT indexrelid::regclass::text FROM pg_index
    WHERE indrelid = to_regclass(quote_ident(:table)) AND indisunique AND NOT indisprimary AND NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = indrelid AND attnum = ANY (indkey) AND attname = :time)
"""
_BOUNDS = """
    SELECT conname, convalidated, substring(pg_get_constraintdef(oid) FROM '''([^'']+)''')::timestamptz
    FROM pg_constraint
    WHERE conrelid = to_regclass(quote_ident(:table)) AND contype = 'c' AND conname LIKE :like
"""
# The primary key first.
_CONSTRAINTS = """
    SELECT conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint
    WHERE conrelid = to_regclass(quote_ident(:table)) AND contype IN ('p', 'u', 'f') ORDER BY contype <> 'p', conname
"""
_INDEXES = """
    SELECT relname, pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = to_regclass(quote_ident(:table)) AND indisvalid AND relname <> :index
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))
    ORDER BY 1
"""
# A sequence belongs to the new table, and an identity column gets one that goes on where the other was.
_NUMBERING = """
    WITH numbered AS (
        SELECT quote_ident(attname) AS column, attname, attidentity <> '' AS is_identity,
            pg_get_serial_sequence(quote_ident(:table), attname) AS sequence
        FROM pg_attribute WHERE attrelid = to_regclass(quote_ident(:table)) AND attnum > 0 AND NOT attisdropped
    )
    SELECT CASE WHEN is_identity THEN format(
            'SELECT setval(pg_get_serial_sequence(%L, %L), last_value, is_called) FROM %s; '
            'ALTER TABLE %s ALTER COLUMN %s DROP IDENTITY', :new, attname, sequence, :old, "column")
        ELSE format('ALTER SEQUENCE %s OWNED BY %s.%s', sequence, :new, "column") END
    FROM numbered WHERE sequence IS NOT NULL
"""
# Not on the partition itself: row-level security takes an open table that nobody declared for a hole.
_GRANTS = """
    WITH one AS (SELECT * FROM pg_class WHERE oid = to_regclass(quote_ident(:table))),
    given AS (
        SELECT acl.*, '' AS place FROM one, aclexplode(relacl) AS acl
        UNION ALL
        SELECT acl.*, ' (' || quote_ident(attname) || ')' FROM one JOIN pg_attribute ON attrelid = one.oid,
            aclexplode(attacl) AS acl
    )
    SELECT format('GRANT %1$s%2$s ON %3$s TO %4$s%5$s; REVOKE ALL ON %6$s FROM %4$s CASCADE',
        privilege_type, place, :new,
        CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
        CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END, :old)
    FROM given, one WHERE grantee <> relowner
    UNION ALL
    SELECT format('COMMENT ON TABLE %s IS %L', :new, obj_description(oid, 'pg_class')) FROM one
    WHERE obj_description(oid, 'pg_class') IS NOT NULL
"""
