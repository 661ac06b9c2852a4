"""What PostgreSQL tells of itself, to a login without privileges too."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from sqlalchemy import Connection, text

from shared.db.dialects import port_of
from shared.db.health.report import Health, ServerConnections, SlowStatement, StandbyHealth, TableHealth
from shared.db.settings import DatabaseSettings
from shared.db.tables import streams

# What is counted within milliseconds.
_SMALL_TABLE = 1 << 20
_NEARLY_ALL = 0.9


def look(connection: Connection, health: Health, settings: DatabaseSettings) -> Health:
    """Version, size, and the server's connections."""
    what, limit, used = connection.execute(_LEAST_ROOM).one()
    ours = connection.execute(_OUR_CONNECTIONS).all()
    by_application: Counter[str] = Counter()
    for application, _, count in ours:
        by_application[application] += count
    each = settings.pool_size + settings.max_overflow
    processes = sum(math.ceil(count / each) for _, _, count in ours)
    health = replace(
        health,
        version=f"PostgreSQL {connection.scalar(text('SHOW server_version'))}",
        size_bytes=connection.scalar(text("SELECT pg_database_size(current_database())")),
        connections=ServerConnections(used, limit, dict(by_application), processes, processes * each),
        slow_statements=_slow_statements(connection),
    )
    health = _with_partitions(connection, _with_role(connection, health))
    remedy = "lower GRIDBOT_DB_POOL_SIZE and GRIDBOT_DB_MAX_OVERFLOW, or raise max_connections"
    if used >= limit * _NEARLY_ALL:
        health = health.with_problem(f"{used} of the {what}'s {limit} connections are in use; {remedy}")
    encoding = encoding_problem(connection)
    if encoding is not None:
        health = health.with_problem(encoding)
    if processes * each > limit:
        health = health.with_problem(
            f"{processes} processes or more may open up to {each} connections each, {processes * each} in all, and the "
            f"{what} allows {limit}; {remedy}"
        )
    return health


def _with_role(connection: Connection, health: Health) -> Health:
    standby, behind, age = connection.execute(_RECOVERY).one()
    if standby:
        health = replace(health, role="standby", replay_lag_bytes=behind, replay_lag_seconds=age)
        paused, receives = connection.execute(_REPLAY).one()
        if paused:
            health = health.with_warning("its replay of the log is paused; end that: SELECT pg_wal_replay_resume()")
        if not receives:
            health = health.with_warning(
                "it receives nothing from its primary (unless out of an archive), and a promotion would find nothing "
                "that was committed since; see whether the primary runs, and its primary_conninfo"
            )
        return health
    standbys = tuple(StandbyHealth(*row) for row in connection.execute(_STANDBYS))
    health = replace(health, role="primary", standbys=standbys)
    # None is what this login may not see.
    waited_for = not standbys or all(found.sync_state in ("async", "potential") for found in standbys)
    if waited_for and connection.scalar(text("SHOW synchronous_standby_names")):
        health = health.with_problem(
            "every COMMIT waits for a synchronous standby, and none is connected; start it, or empty "
            "synchronous_standby_names and reload the server"
        )
    for slot, kept in connection.execute(_SLOTS):
        health = health.with_warning(
            f"the replication slot {slot} keeps {kept:,} bytes of the log for a standby that is not connected; start "
            f"it, or drop the slot before the disk is full: SELECT pg_drop_replication_slot('{slot}')"
        )
    return health


def _with_partitions(connection: Connection, health: Health) -> Health:
    """Streams whose partitions are behind, or were begun and not finished."""
    port = port_of(connection)
    for model, stream in streams().items():
        table, command = model.__tablename__, f"run: python -m shared.db partition %s --table {model.__tablename__}"
        found = port.partitions(connection, table, stream.time)
        if found is None:
            if connection.scalar(_BEGUN, {"table": table, "name": f"ck_{table}_before_%"}):
                health = health.with_problem(
                    f"{table} was to be partitioned, and is not yet: until then it refuses rows that are a month or so "
                    f"ahead of their time; {command % 'enable'}"
                )
            continue
        quoted = [connection.dialect.identifier_preparer.quote(one.name) for one in found if one.is_default]
        if any(connection.scalar(text(f"SELECT EXISTS (SELECT FROM {name})")) for name in quoted):
            health = health.with_warning(
                f"{table} has rows in its default partition, for want of one of their time; {command % 'extend'}"
            )
    return health


_BEGUN = text(
    "SELECT EXISTS (SELECT FROM pg_constraint "
    "WHERE conrelid = to_regclass(quote_ident(:table)) AND contype = 'c' AND conname LIKE :name)"
)
_RECOVERY = text(
    """
    SELECT pg_is_in_recovery(), pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint,
        extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8
    """
)
_REPLAY = text("SELECT pg_is_wal_replay_paused(), EXISTS (SELECT FROM pg_stat_wal_receiver)")
_SLOTS = text(
    """
    SELECT slot_name, pg_wal_lsn_diff(pg_current_wal_flush_lsn(), restart_lsn)::bigint FROM pg_replication_slots
    WHERE NOT active AND restart_lsn IS NOT NULL ORDER BY 1
    """
)
_STANDBYS = text(
    """
    SELECT application_name, state, sync_state, pg_wal_lsn_diff(pg_current_wal_flush_lsn(), flush_lsn)::bigint,
        pg_wal_lsn_diff(pg_current_wal_flush_lsn(), replay_lsn)::bigint, extract(epoch FROM replay_lag)::float8
    FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup' ORDER BY 1
    """
)


def _slow_statements(connection: Connection) -> tuple[SlowStatement, ...]:
    schema = connection.scalar(_STATEMENTS_SCHEMA)
    if schema is None:
        return ()
    return tuple(SlowStatement(*row) for row in connection.execute(text(_SLOW_STATEMENTS.format(schema=schema))))


# The setting is there only where the server has loaded the library; without it the view raises.
_STATEMENTS_SCHEMA = text(
    """
    SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
    WHERE extname = 'pg_stat_statements' AND current_setting('pg_stat_statements.max', true) IS NOT NULL
        AND has_schema_privilege(nspname, 'USAGE')
    """
)
# The extension puts $1 for a value, but not in commands (ALTER ROLE ... PASSWORD), in comments, nor in a text that it
# threw away while the statement ran. So questions and writes alone are told, and none with a quote, comment or number.
# Another login's text is "<insufficient privilege>" to one without pg_read_all_stats.
_SLOW_STATEMENTS = r"""
    SELECT query, sum(calls)::bigint, sum(total_exec_time), sum(total_exec_time) / sum(calls), sum(rows)::bigint
    FROM {schema}.pg_stat_statements
    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND calls > 0
        AND query ~* '^\s*(select|insert|update|delete|merge|with)\M'
        AND strpos(query, chr(39)) = 0 AND query !~ '/\*|--|\$[A-Za-z_]*\$|(^|[^$A-Za-z0-9_.])[0-9]'
    GROUP BY query ORDER BY 3 DESC LIMIT 10
"""


def limit(connection: Connection, timeout: float) -> None:
    """Nor does the server go on with what nobody waits for."""
    connection.execute(text(f"SET LOCAL statement_timeout = {max(1, int(timeout * 1000))}"))


def encoding_problem(connection: Connection) -> str | None:
    """What is wrong with the encoding in which the server stores text; None if it is UTF-8."""
    encoding = connection.scalar(text("SHOW server_encoding"))
    if encoding == "UTF8":
        return None
    return (
        f"the database stores text as {encoding}, which cannot hold or does not check every text; make a new one "
        "(createdb --template=template0 --encoding=UTF8), and bring over what there is: python -m shared.db copy"
    )


# Of pg_stat_activity a login sees the whole of its own sessions alone; the numbers of pg_stat_database are for all.
# This connection is not counted, nor what is kept back for administrators.
_LEAST_ROOM = text(
    """
    WITH limits (what, allowed, used) AS (
        SELECT 'server', current_setting('max_connections')::int
                - current_setting('superuser_reserved_connections')::int
                - coalesce(current_setting('reserved_connections', true)::int, 0),
            (SELECT sum(numbackends)::int - 1 FROM pg_stat_database WHERE datname IS NOT NULL)
        UNION ALL
        SELECT 'database', datconnlimit, numbackends - 1 FROM pg_database JOIN pg_stat_database USING (datname)
        WHERE datname = current_database()
        UNION ALL
        SELECT 'role', rolconnlimit, (SELECT count(*)::int - 1 FROM pg_stat_activity WHERE usename = current_user)
        FROM pg_roles WHERE rolname = current_user
    )
    SELECT what, allowed, used FROM limits WHERE allowed >= 0 ORDER BY allowed - used LIMIT 1
    """
)
_OUR_CONNECTIONS = text(
    """
    SELECT application_name, client_addr, count(*) FROM pg_stat_activity
    WHERE usename = current_user AND backend_type = 'client backend' AND pid <> pg_backend_pid() GROUP BY 1, 2
    """
)


def tables(connection: Connection, names: Iterable[str]) -> tuple[TableHealth, ...]:
    """Rows as the last VACUUM or ANALYZE estimated them (None before the first), and counted in a small table."""
    found = []
    for name in names:
        rows, pages, size, whole, by_index, inserted, deleted = connection.execute(_TABLE, {"name": name}).one()
        estimated = pages > _SMALL_TABLE
        if not estimated:
            rows = connection.scalar(text(f"SELECT count(*) FROM {name}"))
        unused = tuple(connection.scalars(_UNUSED_INDEXES, {"name": name}))
        known = rows if rows >= 0 else None
        found.append(TableHealth(name, known, estimated, size, whole, by_index, inserted, deleted, unused))
    return tuple(found)


# A table's own rows, or those of all its partitions, whose numbers are the table's.
_ITSELF = """
    (SELECT oid, reltuples, pg_relation_size(oid) AS size FROM pg_class WHERE relkind <> 'p' AND (
        oid = to_regclass(:name) OR oid IN (SELECT relid FROM pg_partition_tree(to_regclass(:name)))
    )) AS itself
"""
_TABLE = text(
    f"""
    SELECT CASE WHEN bool_or(reltuples < 0 AND size > 0) THEN -1 ELSE sum(greatest(reltuples, 0))::bigint END,
        sum(size)::bigint, sum(pg_total_relation_size(oid))::bigint, sum(seq_scan)::bigint, sum(idx_scan)::bigint,
        sum(n_tup_ins)::bigint, sum(n_tup_del)::bigint
    FROM {_ITSELF} LEFT JOIN pg_stat_user_tables ON relid = oid
    """
)
# One that keeps a rule works without ever being asked. On a standby, or after a reset, others may have been in use too.
_UNUSED_INDEXES = text(
    """
    SELECT relname FROM pg_index JOIN pg_class ON oid = indexrelid
    WHERE indrelid = to_regclass(:name) AND NOT indisunique AND NOT EXISTS (
        SELECT FROM pg_stat_user_indexes AS used WHERE idx_scan > 0 AND (
            used.indexrelid = oid OR used.indexrelid IN (SELECT relid FROM pg_partition_tree(oid))))
    ORDER BY 1
    """
)


def check(connection: Connection, health: Health, names: Sequence[str]) -> Health:
    """Read every row; have the extension amcheck, where it is installed, verify tables and indexes."""
    for name in names:
        # As text, so that what is stored apart (TOAST) is read too; the server verifies the checksum of each page.
        connection.execute(text(f"SELECT count(t::text) FROM {name} t")).close()
    if not connection.scalar(text("SELECT to_regprocedure('bt_index_check(regclass,boolean)') IS NOT NULL")):
        return replace(health, integrity="every row read, indexes not checked").with_problem(
            "indexes were not checked: the extension amcheck is not installed; have an administrator run "
            "CREATE EXTENSION amcheck in this database"
        )
    damaged = False
    for name in names:
        connection.execute(_CHECK_INDEXES, {"name": name}).close()
        for message in connection.scalars(_CHECK_TABLE, {"name": name}):
            damaged = True
            health = health.with_problem(
                f"{name} is damaged ({message}); stop writing and restore the last good backup"
            )
    return replace(health, integrity="damaged" if damaged else "ok")


_CHECK_INDEXES = text(
    f"""
    SELECT bt_index_check(indexrelid::regclass, true) FROM {_ITSELF} JOIN pg_index ON indrelid = itself.oid
    JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
    WHERE amname = 'btree'
    """
)
_CHECK_TABLE = text(f"SELECT msg FROM {_ITSELF}, LATERAL verify_heapam(oid) LIMIT 3")
