"""Backup and restore of PostgreSQL: pg_dump's custom format, written by it, read by pg_restore.

The archive is restored through a connection of our own rather than pg_restore's: so the tables that the backup does
not know are dropped, what is stored is counted, and nobody writes in between, all in the one transaction that brings
the rows, and any failure leaves the database as it was.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from shared.db.database import DatabaseFactory
from shared.db.dialects import port_of
from shared.db.dialects.postgresql import lock_schema
from shared.db.driver_errors import named_errors
from shared.db.errors import BackupError, InputError, TenantViolation
from shared.db.models import Base
from shared.db.operations.contents import row_counts, tables_with_rows
from shared.db.operations.interruption import check, finishing
from shared.db.operations.postgresql_tools import Tools, address, output_of, run, tools_for
from shared.db.operations.sqlite_backup import WatchShare, refuse_rows
from shared.db.packages import OURS
from shared.db.schema_version import FORMER_TABLE, VERSION_TABLE, bookkeeping, formerly_ours
from shared.db.tenancy import row_security

MAGIC = b"PGDMP"
_LOCK_TIMEOUT_MS = 30_000
_LINES = 2_000
_DUMPING = re.compile(r'pg_dump: dumping contents of table "(.+)"')
_TABLE_DATA = re.compile(r"^\d+; \d+ \d+ TABLE DATA (\S+) (.+) \S+$", re.MULTILINE)
_COPY = re.compile(rb"^COPY (\S+)\.(.+?) \(.*\) FROM stdin;\n$")
_END_OF_COPY = b"\\.\n"
# psql's own commands, the schema itself, which is there, and waiting for locks for ever.
_LEFT_OUT = re.compile(
    r"^(\\(un)?restrict .*|(CREATE|DROP) SCHEMA .*;|COMMENT ON SCHEMA .*;|SET (lock|transaction)_timeout = .*;)$",
    re.MULTILINE,
)
_STATEMENT = re.compile(r"^(?!--|$)", re.MULTILINE)
_POLICY_ROLES = re.compile(r"^CREATE POLICY .+? TO (.+?) (?:USING|WITH CHECK) ", re.MULTILINE)
_GRANT = re.compile(r"^(?:GRANT .* TO|REVOKE .* FROM) (.+?)( WITH GRANT OPTION)?;\n", re.MULTILINE)


@dataclass
class Dump:
    """A verified archive: its tables, the rows of all but what holds revisions, and the revision of our schema."""

    path: Path
    tools: Tools
    schema: str
    tables: frozenset[str]
    rows: Mapping[str, int]
    revision: str | None


@dataclass
class Restored:
    """What was left out of a restore: grants to `missing_roles`, which this server does not have."""

    missing_roles: set[str] = field(default_factory=set)


def back_up(db: DatabaseFactory, part: Path, pg_bin: str | Path | None, watch: WatchShare) -> dict[str, int]:
    """Dump the schema with all rows of one snapshot to the file `part`; the number of rows of each table in it.

    The archive is read again, and its rows counted. Row-level security hides nothing: policies do not bind the
    owner, and for a login that they do bind the dump fails rather than leave rows out.
    """
    with db.get_session(read_only=True, max_staleness=0) as session:
        # The isolation level keeps the snapshot until the dump has taken it over and the rows are counted.
        connection = Session.connection(session, execution_options={"isolation_level": "REPEATABLE READ"})
        tools = tools_for(connection, pg_bin)
        # Rather fail than count, or dump, the rows that a policy shows.
        connection.exec_driver_sql("SET LOCAL row_security = off")
        try:
            counts = row_counts(connection)
        except TenantViolation as error:
            raise BackupError(
                "the policies of row-level security hide rows from this login; connect as the owner of the tables"
            ) from error
        snapshot, schema = connection.exec_driver_sql("SELECT pg_export_snapshot(), current_schema()").one()
        location, secrets = address(db)
        total = max(sum(counts.values()), 1)
        done = dumping = 0

        def note(line: str) -> None:
            nonlocal done, dumping
            if found := _DUMPING.match(line):
                done, dumping = done + dumping, counts.get(found[1].rpartition(".")[2], 0)
                watch(done / total / 2)

        run(
            tools.dump,
            [
                "--format=custom",
                f"--snapshot={snapshot}",
                f"--schema={_pattern(schema)}",
                f"--lock-wait-timeout={_LOCK_TIMEOUT_MS}",
                "--encoding=UTF8",
                "--load-via-partition-root",
                "--verbose",
                "--no-password",
                f"--file={part}",
                f"--dbname={location}",
            ],
            secrets,
            note,
        )
    archive = read_dump(part, tools, lambda rows: watch(0.5 + rows / total / 2))
    if archive.rows != counts:
        raise BackupError(f"the dump does not hold what the database does; nothing was kept: {archive.rows}, {counts}")
    return counts


def read_dump(path: Path, tools: Tools, watch: Any = lambda rows: None) -> Dump:
    """What the archive holds, after reading all of it. Raises `InputError` for one that is damaged or cut short."""
    rows: Counter[str] = Counter()
    stamped: dict[str, list[str]] = {VERSION_TABLE.name: [], FORMER_TABLE.name: []}
    try:
        with output_of(tools.restore, "--list", str(path)) as lines:
            listed = _TABLE_DATA.findall(lines.read().decode())
        seen = parts = 0
        with output_of(tools.restore, "--data-only", "--file=-", str(path)) as lines:
            for part in _parts(lines):
                if isinstance(part, str):
                    continue
                parts += 1  # one for each partition, under the partitioned table's name
                if part.table in stamped:
                    stamped[part.table] = part.read().decode().split()
                while part.read():
                    watch(seen + part.count)
                part.raise_failure()
                rows[part.table] += part.count
                seen += part.count
    except BackupError as error:
        raise InputError(f"{path} is damaged or no archive of pg_dump ({error}); use another backup") from error
    schemas = {schema for schema, _ in listed}
    if len(listed) != parts or len(schemas) > 1:
        raise InputError(f"{path} does not hold what it lists; use another backup")
    tables = frozenset(rows)
    if rows.pop(VERSION_TABLE.name, None) is not None:
        words = stamped[VERSION_TABLE.name]
        revision = dict(zip(words[::2], words[1::2], strict=True)).get(OURS)
    else:
        revision = formerly_ours(stamped[FORMER_TABLE.name])
        if revision is not None:
            del rows[FORMER_TABLE.name]
    return Dump(path, tools, schemas.pop() if schemas else "", tables, rows, revision)


def restore(db: DatabaseFactory, archive: Dump, force: bool, watch: WatchShare, done_state: str) -> Restored:
    """Replace the tables by the archive's in one transaction, in which nobody else reads or writes them.

    `done_state` is what an interruption says from its COMMIT on.

    Raises `TargetNotEmptyError` unless they are empty or `force` is given, `DatabaseLockedError` when others do not
    let go of them within 30 s, `RowSecurityError` where the login may not create a role that the policies need.
    """
    restored = Restored()
    total = max(sum(archive.rows.values()), 1)
    with db.engine.connect() as connection:
        try:
            with ExitStack() as last, connection.begin():
                lock_schema(connection)
                _clear_the_way(connection, archive, force)
                with (
                    output_of(
                        archive.tools.restore, "--clean", "--if-exists", "--no-owner", "--file=-", str(archive.path)
                    ) as lines,
                    closing(connection.connection.cursor()) as driver_cursor,
                    named_errors(connection),
                ):
                    cursor: Any = driver_cursor  # psycopg2's own has COPY
                    done = 0
                    for part in _parts(lines):
                        if isinstance(part, str):
                            if sql := _executable(connection, part, archive.schema, restored):
                                cursor.execute(sql)
                        else:
                            part.watch = partial(_tell, watch, done, total)
                            cursor.copy_expert(part.statement, part)
                            part.raise_failure()
                            done += part.count
                _search(connection, connection.dialect.identifier_preparer.quote(archive.schema))
                found = row_counts(connection)
                if {table: found.get(table) for table in archive.rows} != archive.rows:
                    raise BackupError("the restored rows are not the backup's; undone, the database is as it was")
                check()
                last.enter_context(finishing(done_state))
        finally:
            # The script has changed its settings.
            connection.invalidate()
    db.close()  # whether there are policies, and an audit log is kept, is found out anew
    return restored


def _tell(watch: WatchShare, before: int, total: int, rows: int) -> None:
    watch((before + rows) / total)


def _clear_the_way(connection: Connection, archive: Dump, force: bool) -> None:
    schema = connection.scalar(text("SELECT current_schema()"))
    if archive.schema != schema:
        raise BackupError(
            f"the backup is of the schema {archive.schema!r}, and this connection's is {schema!r}; connect with "
            f"search_path={archive.schema}"
        )
    connection.execute(text("SELECT set_config('lock_timeout', :limit, true)"), {"limit": f"{_LOCK_TIMEOUT_MS}ms"})
    connection.exec_driver_sql("SET LOCAL row_security = off")
    known = {*Base.metadata.tables, *bookkeeping(connection), *archive.tables}
    quote = connection.dialect.identifier_preparer.quote
    there = [table for table in port_of(connection).tables(connection) if table in known]
    if there:
        connection.exec_driver_sql(f"LOCK TABLE {', '.join(map(quote, there))} IN ACCESS EXCLUSIVE MODE")
    if not force:
        refuse_rows([table for table in tables_with_rows(connection) if table in known])
    # What the archive has is dropped by its own script; what came later, or was never backed up, here. And what lies in
    # partitions, whose constraints that script would drop one by one, which the server refuses.
    partitioned = connection.execute(
        text(
            "SELECT relname FROM pg_class WHERE relkind = 'p' AND relnamespace = to_regnamespace(quote_ident(:schema))"
        ),
        {"schema": schema},
    )
    by_itself = set(archive.tables).difference(partitioned.scalars())
    for table in there:
        if table not in by_itself:
            connection.exec_driver_sql(f"DROP TABLE {quote(table)}")


def _search(connection: Connection, schema: str) -> None:
    """Find unqualified names in this schema, or with "" in none, until the script says otherwise."""
    connection.execute(text("SELECT set_config('search_path', :schema, true)"), {"schema": schema})


def _executable(connection: Connection, script: str, schema: str, restored: Restored) -> str:
    """The script without what only psql knows, and without grants to roles that are not here; policies' are made.

    Nothing if only comments are left, which the driver takes for a mistake.
    """
    script = _LEFT_OUT.sub("", script)
    if not _STATEMENT.search(script):
        return ""
    there = set(connection.exec_driver_sql("SELECT rolname FROM pg_catalog.pg_roles").scalars()) | {"PUBLIC"}
    quote = connection.dialect.identifier_preparer.quote
    for roles in _POLICY_ROLES.findall(script):
        for role in map(_unquoted, roles.split(", ")):
            if role not in there:
                _search(connection, quote(schema))
                row_security.create_role(connection, role)
                _search(connection, "")
                there.add(role)

    def kept(grant: re.Match[str]) -> str:
        missing = set(map(_unquoted, grant[1].split(", "))) - there
        restored.missing_roles |= missing
        return "" if missing else grant[0]

    return _GRANT.sub(kept, script)


class _Copy:
    """The rows of one COPY, as pg_restore writes them: a file for the driver."""

    def __init__(self, statement: str, table: str, lines: Iterator[bytes]) -> None:
        self.statement = statement
        self.table = table
        self.count = 0
        self.watch: Any = lambda rows: None
        self._failure: BaseException | None = None
        self._lines = self._until_end(lines)

    def read(self, size: int = -1) -> bytes:
        """Some more rows; nothing at the end, and after a failure, which must not pass through the driver."""
        try:
            self.watch(self.count)
            return b"".join(islice(self._lines, _LINES))
        except BaseException as error:  # noqa: BLE001 # kept, and raised as soon as COPY has ended
            self._failure = error
            return b""

    def raise_failure(self) -> None:
        """Raise what came in the way of reading the rows."""
        if self._failure is not None:
            raise self._failure

    def _until_end(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        for line in lines:
            if line == _END_OF_COPY:
                return
            self.count += 1
            yield line
        line = b""  # a traceback may be printed with its frames' variables
        raise BackupError("the archive ends within the rows of a table")


def _parts(lines: IO[bytes]) -> Iterator[str | _Copy]:
    """The script in pieces: SQL without rows, and the rows of one table each."""
    sql: list[bytes] = []
    for line in lines:
        if found := _COPY.match(line):
            yield b"".join(sql).decode()
            sql.clear()
            copy = _Copy(line.decode().rstrip(), _unquoted(found[2].decode()), lines)
            yield copy
            while copy.read():
                pass  # what nobody wanted
        else:
            sql.append(line)
    yield b"".join(sql).decode()


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _pattern(schema: str) -> str:
    """A schema's name as pg_dump's pattern that matches it alone."""
    return '"' + schema.replace('"', '""') + '"'
