"""What MariaDB and MySQL tell about themselves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, text

from shared.db.engine.mysql import SQL_MODE
from shared.db.health.report import Health, ServerConnections, TableHealth
from shared.db.settings import DatabaseSettings

_NEARLY_ALL = 0.8
_SMALL_TABLE = 1 << 20
_BINARY = ("utf8mb4_nopad_bin", "utf8mb4_0900_bin")


def limit(connection: Connection, timeout: float) -> None:
    """Nor does the server go on with what nobody waits for."""
    if _is_mariadb(connection):
        connection.execute(text(f"SET SESSION max_statement_time = {timeout:g}"))
    else:
        connection.execute(text(f"SET SESSION max_execution_time = {max(1, int(timeout * 1000))}"))


def look(connection: Connection, health: Health, settings: DatabaseSettings) -> Health:
    """Version, size, connections, and what would change values without a word."""
    version, allowed, mode = connection.execute(text("SELECT version(), @@max_connections, @@sql_mode")).one()
    # Without the privilege PROCESS a login sees its own connections alone.
    ours: Any = connection.execute(
        text("SELECT substring_index(host, ':', 1), count(*) FROM information_schema.processlist GROUP BY 1")
    ).all()
    by_host: Counter[str] = Counter({str(host): count for host, count in ours})
    used = int(connection.execute(text("SHOW GLOBAL STATUS LIKE 'Threads_connected'")).one()[1])
    each = settings.pool_size + settings.max_overflow
    processes = sum(math.ceil(count / each) for count in by_host.values())
    health = replace(
        health,
        version=f"{'MariaDB' if _is_mariadb(connection) else 'MySQL'} {version}",
        size_bytes=int(connection.scalar(_SIZE) or 0),
        connections=ServerConnections(used, allowed, dict(by_host), processes, processes * each),
    )
    if used >= allowed * _NEARLY_ALL:
        health = health.with_problem(
            f"{used} of the server's {allowed} connections are in use; lower GRIDBOT_DB_POOL_SIZE and "
            "GRIDBOT_DB_MAX_OVERFLOW, or raise max_connections"
        )
    missing = sorted(set(SQL_MODE.split(",")) - set(str(mode).split(",")))
    if missing:
        health = health.with_problem(
            f"sql_mode lacks {', '.join(missing)}, which each connection sets: something between here and the server, "
            "such as a proxy or init_connect, changes it back, and values that do not fit would be cut"
        )
    others = connection.scalars(_COLLATIONS, {"first": _BINARY[0], "second": _BINARY[1]}).all()
    if others:
        health = health.with_problem(
            f"texts in {', '.join(others)} are compared without regard to case or trailing blanks; make the tables "
            f"with this library, or ALTER TABLE ... CONVERT TO CHARACTER SET utf8mb4 COLLATE {_BINARY[0]}"
        )
    return health


def encoding_problem(connection: Connection) -> None:
    """None: each table of ours says in which it is."""


def tables(connection: Connection, names: Iterable[str]) -> tuple[TableHealth, ...]:
    """Rows as the server estimates them, and counted in a small table."""
    found = []
    for name in names:
        rows, size = connection.execute(_TABLE, {"name": name}).one()
        estimated = (size or 0) > _SMALL_TABLE
        if not estimated:
            rows = connection.scalar(text(f"SELECT count(*) FROM {name}"))
        found.append(
            TableHealth(name, None if rows is None else int(rows), estimated, None if size is None else int(size))
        )
    return tuple(found)


def check(connection: Connection, health: Health, names: Sequence[str]) -> Health:
    """Have the server read every page and compare every index with its table."""
    damaged = False
    for name in names:
        for table, _, kind, message in connection.execute(text(f"CHECK TABLE {name} EXTENDED")):
            if kind.lower() == "error" or (kind.lower() == "status" and message != "OK"):
                damaged = True
                health = health.with_problem(
                    f"{table} is damaged ({message}); stop writing and restore the last good backup"
                )
    return replace(health, integrity="damaged" if damaged else "ok")


def _is_mariadb(connection: Connection) -> bool:
    dialect: Any = connection.dialect
    return bool(dialect.is_mariadb)


_SIZE = text("SELECT sum(data_length + index_length) FROM information_schema.tables WHERE table_schema = database()")
_COLLATIONS = text(
    "SELECT DISTINCT table_name FROM information_schema.columns WHERE table_schema = database() "
    "AND collation_name IS NOT NULL AND collation_name NOT IN (:first, :second) ORDER BY 1"
)
_TABLE = text(
    "SELECT table_rows, data_length + index_length FROM information_schema.tables "
    "WHERE table_schema = database() AND table_name = :name"
)
