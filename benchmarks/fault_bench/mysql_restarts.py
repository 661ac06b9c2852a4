"""A MariaDB server that restarts, is killed, and breaks connections, under writers who use the retry."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any

from benchmarks.fault_bench.checker import check
from benchmarks.fault_bench.clients import batch, stored_rows
from benchmarks.fault_bench.figures import Figure
from benchmarks.fault_bench.ground import Ground
from benchmarks.fault_bench.journal import Journal, read_journals
from benchmarks.fault_bench.restarts import under_writers
from benchmarks.mysql_server import MySQLServer, program, pymysql_connection
from shared.db import DatabaseFactory

_WRITERS, _ROWS = 8, 6


def mysql_restarts(ground: Ground) -> list[Figure]:
    """Restarts under 8 writers: in order, by kill -9, and a connection that is killed, in turn."""
    if program() is None:
        print("NOT RUN: mysql_restarts, for want of mariadbd or mysqld", flush=True)
        return []
    with MySQLServer(ground.folder / "mysql") as server:
        url = server.new_database()

        def in_order() -> None:
            server.stop()
            server.start()

        def killed() -> None:
            server.kill()
            server.start()

        count = ground.of(12, 3)
        faults = islice(cycle((in_order, killed, lambda: server.kill_connection(str(url.database)))), count)
        return [
            under_writers(f"{count} restarts of MariaDB", ground, url, _WRITERS, faults),
            _control(ground, server),
        ]


def _control(ground: Ground, server: MySQLServer) -> Figure:
    """PyMySQL by hand, which connects anew where it finds its connection lost, and goes on with the batch."""
    url, folder = server.new_database(), ground.new_folder()
    connection = pymysql_connection(url)
    with Journal(folder, "hand") as journal:
        for op in range(10):
            values = batch("hand", op, _ROWS)
            journal.write(op, "invoke", _ROWS)
            _insert(connection, values[: _ROWS // 2])
            server.kill_connection(str(url.database))
            connection.ping(reconnect=True)
            _insert(connection, values[_ROWS // 2 :])
            connection.commit()
            journal.write(op, "ok", _ROWS)
    connection.close()
    with DatabaseFactory(url) as db:
        verdict = check(read_journals(folder), stored_rows(db))
    lost = verdict.count("lost")
    what = "control: 10 batches, each gone on with on a new connection after its own was killed, MariaDB"
    return Figure(what, "rows lost", f"{lost} of {10 * _ROWS} rows lost", lost > 0, control=True)


def _insert(connection: Any, rows: list[dict[str, Any]]) -> None:
    columns, marks = ", ".join(rows[0]), ", ".join(["%s"] * len(rows[0]))
    with connection.cursor() as cursor:
        statement = f"INSERT INTO public_trades ({columns}) VALUES ({marks})"
        cursor.executemany(statement, [tuple(row.values()) for row in rows])
