"""What `db.health()` and `python -m shared.db status` tell of a database, above all of one that is not well."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, event, text

from shared.db import (
    DatabaseFactory,
    DatabaseSettings,
    Health,
    PublicTradeRepository,
    SlowStatement,
    TableHealth,
    database_file,
)
from shared.db.commands import status
from shared.db.commands.cli import main
from shared.db.health import look, postgresql, sqlite
from shared.db.schema_version import SCHEMA_REVISION
from shared.db.tests.forked import run_python
from shared.db.tests.support import run_on_server, trade_values, two_runs


@pytest.fixture
def server(postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """A PostgreSQL database with the schema."""
    with DatabaseFactory(postgresql_url) as factory:
        yield factory


def file_database(path: Path, **values: Any) -> DatabaseFactory:
    """A factory for a SQLite file."""
    return DatabaseFactory(DatabaseSettings(db_name=str(path), _env_file=None, **values))


def run_status(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return run_python("-W", "error", "-m", "shared.db", "status", *arguments)


def only_problem(health: Health) -> str:
    """The one problem that there is."""
    (problem,) = health.problems
    return problem


# --- a database that is well ---------------------------------------------------------------------------------------


def test_a_database_that_is_well_has_no_problem(db: DatabaseFactory) -> None:
    """Reachable, at the code's revision, and each table with its rows; the report cannot be changed."""
    two_runs(db, executions=3)
    health = db.health()
    assert health.reachable
    assert health.problems == ()
    assert (health.revision, health.code_revision) == (SCHEMA_REVISION, SCHEMA_REVISION)
    assert health.latency_ms is not None
    rows = {table.name: (table.rows, table.estimated) for table in health.tables}
    assert rows["private_executions"] == (6, False)
    assert rows["users"] == (2, False)
    assert len(rows) == 8
    assert health.integrity == "not checked"
    with pytest.raises(FrozenInstanceError):
        health.reachable = False  # type: ignore[misc] # the mistake that is refused


def test_each_stream_has_its_newest_row(db: DatabaseFactory) -> None:
    """Trades by symbol, executions by account, in UTC, one row a stream whatever its length."""
    two_runs(db, executions=3)
    with db.get_session() as session:
        for symbol, count in (("BTCUSDT", 5), ("ETHUSDT", 2)):
            PublicTradeRepository(session).bulk_create(trade_values(n, symbol=symbol) for n in range(count))
    newest = {(stream.table, stream.key): stream.newest for stream in db.health().streams}
    assert newest == {
        ("public_trades", "BTCUSDT"): datetime(2025, 5, 19, 0, 0, 0, 4000, tzinfo=UTC),
        ("public_trades", "ETHUSDT"): datetime(2025, 5, 19, 0, 0, 0, 1000, tzinfo=UTC),
        ("private_executions", "acc-ann"): datetime(2025, 5, 3, 11, 7, 0, 2000, tzinfo=UTC),
        ("private_executions", "acc-bob"): datetime(2025, 5, 3, 11, 7, 0, 2000, tzinfo=UTC),
    }


@pytest.mark.parametrize("empty_db", ["file", "postgresql"], indirect=True)
def test_rows_that_are_many_are_estimated_and_said_to_be(
    empty_db: DatabaseFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of millions is not counted: SQLite's highest row id, PostgreSQL's last ANALYZE, unknown before it."""
    monkeypatch.setattr(sqlite, "_FEW_ROWS", 10)
    monkeypatch.setattr(postgresql, "_SMALL_TABLE", 0)
    db = empty_db
    db.create_tables()
    with db.get_session() as session:
        PublicTradeRepository(session).bulk_create(map(trade_values, range(100)))

    def trades() -> TableHealth:
        return next(table for table in db.health().tables if table.name == "public_trades")

    if db.settings.is_sqlite:
        with db.engine.begin() as connection:
            connection.execute(text("DELETE FROM public_trades WHERE id = 50"))
    else:
        assert (trades().rows, trades().estimated) == (None, True)
        with db.engine.begin() as connection:
            connection.execute(text("ANALYZE public_trades"))
    assert (trades().rows, trades().estimated) == (100, True)
    assert (trades().size_bytes or 0) > 8000


def test_the_newest_rows_are_found_by_the_index(db: DatabaseFactory) -> None:
    """No statement of a look reads a whole table of trades or executions to find its newest rows."""
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if "WITH RECURSIVE" in statement:
            word = "EXPLAIN QUERY PLAN " if db.settings.is_sqlite else "EXPLAIN "
            small = "SET enable_seqscan = off" if db.engine.dialect.name == "postgresql" else "SELECT 1"
            looker = connection.connection.dbapi_connection.cursor()
            looker.execute(small)
            looker.fetchall() if small == "SELECT 1" else None
            looker.execute(word + statement, parameters)
            plans.append(" ".join(str(row) for row in looker.fetchall()))

    with db.engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", explain)
        look._streams(connection, db.health())
    assert len(plans) == 2
    for plan in plans:
        assert "SCAN public_trades" not in plan
        assert "SCAN private_executions" not in plan
        assert "Seq Scan" not in plan
        assert ("Using index" in plan) == (db.engine.dialect.name == "mysql")


def test_the_pool_of_this_process_is_shown_and_not_needed(empty_db: DatabaseFactory) -> None:
    """With every connection of the factory in use there is still an answer, and that is the problem it names."""
    settings = empty_db.settings.model_copy(update={"pool_size": 1, "max_overflow": 1, "pool_timeout": 0.01})
    with DatabaseFactory(settings) as db:
        db.create_tables()
        with db.get_session(read_only=True) as one, db.get_session(read_only=True) as other:
            one.execute(text("SELECT 1"))
            assert db.health().problems == ()
            other.execute(text("SELECT 1"))
            health = db.health()
        assert "GRIDBOT_DB_POOL_SIZE" in only_problem(health)
        assert health.pool is not None
        assert (health.pool.size, health.pool.max_overflow, health.pool.checked_out) == (1, 1, 2)


def test_a_look_writes_nothing_and_waits_for_no_writer(tmp_path: Path) -> None:
    """Beside a session that writes, on SQLite's one file."""
    with file_database(tmp_path / "a.db") as db:
        db.create_tables()
        with db.get_session() as session:
            session.execute(text("INSERT INTO users (user_id, username) VALUES ('ann', 'ann')"))
            health = db.health()
        assert health.problems == ()
        assert next(table.rows for table in health.tables if table.name == "users") == 0


# --- one that is not -----------------------------------------------------------------------------------------------


def test_a_missing_file_is_named_and_not_made(tmp_path: Path) -> None:
    """Looking for a database does not create one."""
    with file_database(tmp_path / "deep" / "missing.db") as db:
        health = db.health()
    assert not health.reachable
    assert "python -m shared.db init" in only_problem(health)
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_tables_or_of_another_age_is_named(empty_db: DatabaseFactory) -> None:
    """With the command to run."""
    assert "python -m shared.db init" in only_problem(empty_db.health())
    empty_db.create_tables()
    with empty_db.engine.begin() as connection:
        connection.execute(text("UPDATE shared_db_version SET revision = '0001_initial'"))
    assert "python -m shared.db migrate up" in only_problem(empty_db.health())


def test_an_in_memory_database_is_warned_of() -> None:
    """Its rows are gone with the process; an open session is not disturbed."""
    with DatabaseFactory("sqlite:///:memory:") as db:
        db.create_tables()
        assert "GRIDBOT_DB_NAME" in db.health().warnings[0]
        with db.get_session() as session:
            session.execute(text("INSERT INTO users (user_id, username) VALUES ('ann', 'ann')"))
            assert "was not looked into" in db.health().warnings[1]
        assert next(table.rows for table in db.health().tables if table.name == "users") == 1


def test_a_file_in_a_folder_for_temporary_files_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such folders are emptied; another folder is not warned of."""
    monkeypatch.setattr(sqlite, "_TEMPORARY", ())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for folder, warned in (("tmp", True), ("tmp-not", False)):
        with file_database(tmp_path / folder / "a.db") as db:
            db.create_tables()
            assert any("temporary files" in warning for warning in db.health().warnings) == warned


def test_a_large_log_is_a_problem_until_nobody_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that stays open has the write-ahead log grow; after it, two commits bring it back to its usual size."""
    monkeypatch.setattr(database_file, "USUAL_LOG", 100_000)
    with file_database(tmp_path / "a.db") as db:
        db.create_tables()

        def store(first: int, count: int) -> None:
            with db.get_session() as session:
                PublicTradeRepository(session).bulk_create(map(trade_values, range(first, first + count)))

        with db.get_session(read_only=True) as reader:
            reader.execute(text("SELECT count(*) FROM users"))
            store(0, 25_000)
            health = db.health()
            assert "write-ahead log" in only_problem(health)
            assert (health.wal_bytes or 0) > 4_000_000
        store(25_000, 1)  # folds it in
        store(25_001, 1)  # begins it anew
        health = db.health()
    assert health.problems == ()
    assert 0 < (health.wal_bytes or 0) <= 100_000


def test_a_disk_that_is_nearly_full_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before writes are refused."""
    monkeypatch.setattr(sqlite, "_LITTLE_SPACE", 1 << 60)
    with file_database(tmp_path / "a.db") as db:
        db.create_tables()
        assert "of the disk are free" in only_problem(db.health())


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
        ((3, 6, 23), False),
    ],
)
def test_a_sqlite_with_the_wal_reset_race_is_told(version: tuple[int, ...], affected: bool) -> None:
    """By its version, backports included."""
    assert sqlite.has_wal_reset_race(version) == affected


def test_a_damaged_file_is_never_called_well(tmp_path: Path) -> None:
    """Damage that a look does not meet is found by a check; damage that it meets is a problem at once."""
    path = tmp_path / "a.db"
    with file_database(path) as db:
        db.create_tables()
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create(map(trade_values, range(2000)))
    content = bytearray(path.read_bytes())
    size = len(content)
    for number, damaged in enumerate((slice(size - 4096, size), slice(4096, size), slice(0, 4096))):
        broken = bytearray(content)
        broken[damaged] = b"\xa5" * (damaged.stop - damaged.start)
        path.write_bytes(broken)
        with file_database(path) as db:
            health = db.health(check=True)
        assert health.integrity == "damaged" or not health.reachable, number
        assert health.problems, number
    done = run_status("--db-name", str(path), "--check")
    assert done.returncode == 1
    assert "no problem found" not in done.stdout


def test_an_index_that_differs_from_its_table_is_found_by_a_check_alone(tmp_path: Path) -> None:
    """No statement of a look fails then, and the look claims nothing."""
    path = tmp_path / "a.db"
    with file_database(path) as db:
        db.create_tables()
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create(map(trade_values, range(2000)))
    path.write_bytes(path.read_bytes().replace(b"trade-1500", b"trade-15x0", 1))
    with file_database(path) as db:
        health = db.health()
        assert (health.problems, health.integrity) == ((), "not checked")
        health = db.health(check=True)
    assert only_problem(health).startswith("the database is damaged (row 1501 missing from index")
    assert health.integrity == "damaged"


def test_a_look_leaves_the_files_as_they_are(tmp_path: Path) -> None:
    """Not even the log that a killed process left is folded into the file: it may be needed to see what happened."""
    with file_database(tmp_path / "from.db") as db:
        db.create_tables()
        with db.get_session() as session:
            session.execute(text("INSERT INTO users (user_id, username) VALUES ('ann', 'ann')"))
        for ending in ("", "-wal"):
            shutil.copyfile(tmp_path / f"from.db{ending}", tmp_path / f"a.db{ending}")
    before = [(tmp_path / name).read_bytes() for name in ("a.db", "a.db-wal")]
    with file_database(tmp_path / "a.db") as db:
        assert next(table.rows for table in db.health(check=True).tables if table.name == "users") == 1
    assert [(tmp_path / name).read_bytes() for name in ("a.db", "a.db-wal")] == before


def test_rows_without_their_parent_are_found_by_a_check(tmp_path: Path) -> None:
    """As a program without foreign keys leaves them."""
    with file_database(tmp_path / "a.db") as db:
        db.create_tables()
        assert db.health(check=True).integrity.startswith("pages, indexes and foreign keys ok; values have no checksum")
        driver = db.engine.raw_connection()
        driver.cursor().execute("PRAGMA foreign_keys = OFF")
        driver.cursor().execute(
            "INSERT INTO strategies (strategy_id, account_id, strategy_type, symbol, config_json) "
            "VALUES ('s', 'nobody', 'GridStrategy', 'BTCUSDT', '{}')"
        )
        driver.close()
        health = db.health(check=True)
    assert "strategies" in only_problem(health)
    assert health.integrity == "damaged"


# --- PostgreSQL ----------------------------------------------------------------------------------------------------


def test_the_servers_connections_are_counted_against_its_limit(server: DatabaseFactory, postgresql_url: URL) -> None:
    """Those of each application, the processes they come from at the least, and what these may open in all."""
    names = ("bot-1", "bot-2")
    factories = [
        DatabaseFactory(DatabaseSettings(database_url=_text(postgresql_url), application_name=name, _env_file=None))
        for name in names
    ]
    open_ones = [factory.engine.connect() for factory in factories for _ in range(2)]
    try:
        found = server.health().connections
    finally:
        for connection in open_ones:
            connection.close()
        for factory in factories:
            factory.close()
    assert found is not None
    assert {name: found.by_application[name] for name in names} == {"bot-1": 2, "bot-2": 2}
    assert found.processes >= 2
    assert found.possible == found.processes * 10
    assert found.used >= 4
    assert found.limit == 97


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def test_pools_that_do_not_fit_together_are_a_problem(server: DatabaseFactory, postgresql_url: URL) -> None:
    """Also against the limit of this database alone; a server that is nearly used up is another one."""
    settings = DatabaseSettings(database_url=_text(postgresql_url), pool_size=60, max_overflow=40, _env_file=None)
    with DatabaseFactory(settings) as db, db.engine.connect():
        assert "1 processes or more may open up to 100" in only_problem(db.health())
    run_on_server(server.settings.url, f"ALTER DATABASE {postgresql_url.database} CONNECTION LIMIT 2")
    with server.engine.connect(), server.engine.connect():
        problems = server.health().problems
    assert any("2 of the database's 2 connections are in use" in problem for problem in problems)


def test_row_level_security_is_told_and_gaps_in_it_are_problems(server: DatabaseFactory) -> None:
    """Off, on, and with a policy missing."""
    assert server.health().row_security is False
    server.enable_row_security()
    health = server.health()
    assert (health.row_security, health.problems) == (True, ())
    with server.engine.begin() as connection:
        connection.execute(text("ALTER TABLE runs DISABLE ROW LEVEL SECURITY"))
    health = server.health()
    assert health.row_security is False
    assert all("row-security enable" in problem for problem in health.problems)


def test_a_check_without_amcheck_says_what_was_not_checked(server: DatabaseFactory) -> None:
    """It is no clean bill of health."""
    two_runs(server, executions=1)
    with server.engine.begin() as connection:
        connection.execute(text("DROP EXTENSION IF EXISTS amcheck"))
    health = server.health(check=True)
    assert health.integrity == "every row read, indexes not checked"
    assert "CREATE EXTENSION amcheck" in only_problem(health)


def test_what_amcheck_finds_is_a_problem(server: DatabaseFactory) -> None:
    """Functions of its names and arguments stand in for it: a sound table, a damaged one, a damaged index."""
    two_runs(server, executions=1)
    declared = "verify_heapam(relation regclass) RETURNS TABLE (msg text) LANGUAGE sql AS"
    with server.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION bt_index_check(index regclass, heapallindexed boolean) RETURNS void"
                " LANGUAGE plpgsql AS $$ BEGIN IF current_setting('shared_db.broken', true) = index::text THEN"
                " RAISE EXCEPTION 'item order invariant violated' USING ERRCODE = 'XX002'; END IF; END $$"
            )
        )
        connection.execute(text(f"CREATE FUNCTION {declared} $$ SELECT 'x' WHERE false $$"))
    assert server.health(check=True).integrity == "ok"
    with server.engine.begin() as connection:
        connection.execute(
            text(f"CREATE OR REPLACE FUNCTION {declared} $$ SELECT 'bad page' WHERE relation = 'runs'::regclass $$")
        )
    health = server.health(check=True)
    assert "runs is damaged (bad page)" in only_problem(health)
    assert health.integrity == "damaged"
    name = server.settings.url.database
    run_on_server(server.settings.url, f"ALTER DATABASE {name} SET shared_db.broken = 'uq_strategies_account_id'")
    health = server.health(check=True)
    assert "damaged" in only_problem(health)
    assert health.integrity == "damaged"


def test_a_server_that_never_answers_is_not_waited_for() -> None:
    """It accepts connections and says nothing: the look ends after the time that was given."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with DatabaseFactory(f"postgresql://u@127.0.0.1:{port}/d") as db:
            health = db.health(timeout=0.2)
        # It is still waiting: the socket, once closed, lets it go.
        assert any(thread.name == "shared.db health" for thread in threading.enumerate())
    assert not health.reachable
    assert "did not answer" in only_problem(health)


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_what_there_is(db_settings: DatabaseSettings, capsys: pytest.CaptureFixture[str]) -> None:
    """For people: every part of the report; exit code 0 without a problem, and never more than was looked at."""
    if db_settings.is_memory:
        return  # gone with the command
    with DatabaseFactory(db_settings) as db:
        db.create_tables()
        two_runs(db, executions=3)
        lines = "\n".join(status._lines(db.health()))
    assert "newest in private_executions of acc-ann: 2025-05-03T11:07:00.002000+00:00" in lines
    assert "integrity: not checked (--check reads everything)" in lines
    assert lines.endswith("no problem found")
    assert ("row-level security: off" in lines) == (db.engine.dialect.name == "postgresql")
    assert ("server connections:" in lines) == (not db_settings.is_sqlite)
    assert ("journal mode wal" in lines) == db_settings.is_sqlite


def test_the_command_gives_one_json_object(tmp_path: Path) -> None:
    """For monitors, also where the database is not there; times in ISO 8601."""
    with file_database(tmp_path / "a.db") as db:
        db.create_tables()
        two_runs(db, executions=1)
    done = run_status("--db-name", str(tmp_path / "a.db"), "--json", "--check")
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert (told["problems"], told["integrity"][:9], told["reachable"]) == ([], "pages, in", True)
    assert datetime.fromisoformat(told["streams"][0]["newest"]) == datetime(2025, 5, 3, 11, 7, tzinfo=UTC)
    done = run_status("--db-name", "missing.db", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["reachable"], len(told["problems"])) == (1, False, 1)


def test_the_command_is_one_line_where_there_is_no_database(tmp_path: Path) -> None:
    """On stderr, with the remedy, exit code 1, nothing created."""
    for arguments in (("--db-name", "missing.db"), ("--db-url", "postgresql://u:canary@127.0.0.1:1/d")):
        done = run_status(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("shared.db: ")
        assert "canary" not in line
    assert os.listdir(tmp_path) == []


def test_postgresql_tells_how_its_tables_are_read(server: DatabaseFactory, postgresql_url: URL) -> None:
    """Whole or by an index, how they grow, and which indexes nothing has used; those that keep a rule are in use."""
    found = {table.name: table for table in server.health().tables}["public_trades"]
    run_on_server(
        postgresql_url, "CREATE INDEX ix_nobody_asks ON runs (host)", *["SELECT count(*) FROM public_trades"] * 3
    )
    with server.get_session() as session:
        PublicTradeRepository(session).bulk_create(map(trade_values, range(7)))
        session.execute(text("DELETE FROM public_trades WHERE id = (SELECT max(id) FROM public_trades)"))
    counted = ("sequential_scans", "index_scans", "rows_inserted", "rows_deleted")
    deadline = time.monotonic() + 30
    while True:  # the server writes its statistics down when a session has ended, and in its own time
        tables = {table.name: table for table in server.health().tables}
        grown = [getattr(tables["public_trades"], name) - (getattr(found, name) or 0) for name in counted]
        if all(now >= least for now, least in zip(grown, (3, 0, 7, 1), strict=True)):
            break
        assert time.monotonic() < deadline, grown
    assert "ix_nobody_asks" in tables["runs"].unused_indexes
    assert not [name for name in tables["runs"].unused_indexes if name.startswith(("pk_", "uq_"))]


def test_the_command_gives_metrics(db_settings: DatabaseSettings, capsys: pytest.CaptureFixture[str]) -> None:
    """In Prometheus' form: each name has one type and stands in one place; a key of any text is escaped."""
    with DatabaseFactory(db_settings) as db:
        db.create_tables()
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create([trade_values(symbol='A"B\\C')])
        health = db.health()
    lines = list(status._metrics(health))
    types = [line.split()[2] for line in lines if line.startswith("#")]
    assert len(types) == len(set(types))
    label = r'\w+="([^"\\]|\\.)*"'
    metric = rf"shared_db_\w+(\{{{label}(,{label})*\}})? [\d.e+-]+"
    assert [line for line in lines if not re.fullmatch(rf"# TYPE shared_db_\w+ (gauge|counter)|{metric}", line)] == []
    assert "shared_db_up 1" in lines
    assert f"shared_db_problems {len(health.problems)}" in lines
    newest = [line for line in lines if line.startswith("shared_db_stream_newest_timestamp_seconds{")]
    when = trade_values()["exchange_ts"].timestamp()
    assert newest == ['shared_db_stream_newest_timestamp_seconds{table="public_trades",key="A\\"B\\\\C"} ' + str(when)]
    assert any(line.startswith('shared_db_table_rows{table="public_trades"} ') for line in lines)
    assert main(["status", "--prometheus", "--db-name", "missing.db"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "shared_db_up 0"


def test_no_value_of_a_statement_is_told(server: DatabaseFactory) -> None:
    """Of a table with the extension's columns: the longest first, a text in which a value may be left never."""
    told = ["SELECT price FROM public_trades WHERE symbol = $1 LIMIT $2", "  with a1 AS (SELECT $1) DELETE FROM runs"]
    kept = [
        *("ALTER ROLE a PASSWORD 'canary'", "SELECT 'canary'", "SELECT $$canary$$", "SELECT $a$canary$a$"),
        *("SELECT /* canary */ a", "SELECT a -- canary", "SELECT a FROM b WHERE c=4711", "SELECT 4711", "canary"),
    ]
    with server.engine.begin() as connection:
        assert postgresql._slow_statements(connection) == ()  # this server has no such extension
        connection.execute(text("CREATE SCHEMA odd"))
        connection.execute(
            text(
                "CREATE TABLE odd.pg_stat_statements AS SELECT oid AS dbid, query, 2::bigint AS calls,"
                " 10 / place::float8 AS total_exec_time, 3::bigint AS rows FROM pg_database,"
                " unnest(CAST(:texts AS text[])) WITH ORDINALITY AS t (query, place) WHERE datname = current_database()"
            ),
            {"texts": told + kept},
        )
        found = connection.execute(text(postgresql._SLOW_STATEMENTS.format(schema="odd"))).all()
    assert [SlowStatement(*row) for row in found] == [
        SlowStatement(told[0], 2, 10.0, 5.0, 3),
        SlowStatement(told[1], 2, 5.0, 2.5, 3),
    ]


def test_the_stores_beside_the_database_are_asked_too(tmp_path: Path) -> None:
    """One that says no, raises or hangs is a problem by its name, without the words of its client."""
    released = threading.Event()

    def broken() -> bool:
        raise ConnectionError("redis://:canary@host")

    with file_database(tmp_path / "a.db") as db:
        db.create_tables()
        stores = {"cache": lambda: True, "metrics": lambda: False, "replica": broken, "hung": released.wait}
        for name, answers in stores.items():
            db.add_store(name, answers)
        health = db.health(timeout=2)
        released.set()
    assert {store.name: store.reachable for store in health.stores} == {name: name == "cache" for name in stores}
    assert [problem.partition(";")[0] for problem in health.problems] == [
        "the store metrics does not answer",
        "the store replica does not answer (ConnectionError)",
        "the store hung does not answer",
    ]
    assert health.reachable
    assert "canary" not in repr(health)
    assert 'shared_db_store_up{store="metrics"} 0' in list(status._metrics(health))


def test_no_secret_is_in_a_report(server: DatabaseFactory, postgresql_url: URL) -> None:
    """Neither the password nor that of the certificate's key."""
    url = postgresql_url.set(password="canary-1").update_query_dict({"sslpassword": "canary-2"})
    with DatabaseFactory(url) as db:
        health = db.health()
    assert health.reachable
    assert "canary" not in json.dumps(health.as_dict()) + repr(health)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_server_encoding_that_is_not_utf_8_is_named(postgresql_server: URL, encoding: str) -> None:
    """Where the tables are made, and in every report."""
    name = f"shared_db_{encoding.lower()}_{os.getpid()}"
    create = f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    run_on_server(postgresql_server, create)
    try:
        with DatabaseFactory(postgresql_server.set(database=name)) as db:
            with pytest.warns(UserWarning, match=f"stores text as {encoding}.*--encoding=UTF8"):
                db.create_tables()
            (problem,) = db.health().problems
            assert f"stores text as {encoding}" in problem
    finally:
        run_on_server(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")
