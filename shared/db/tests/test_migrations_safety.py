"""A migration that is killed, fails, waits or meets seven others harms neither the data nor the bots."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, event, text
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError

from shared.db import DatabaseFactory, DatabaseSettings
from shared.db.dialects import postgresql as dialect
from shared.db.errors import DataLossError, MigrationError, SchemaVersionError
from shared.db.migrations import runner
from shared.db.migrations.catalog.entry import Entry
from shared.db.migrations.exclusive import exclusive_connection
from shared.db.schema_version import SCHEMA_REVISION
from shared.db.tests.forked import run_python
from shared.db.tests.migration_support import OwnRevisions, contents, schema_of, seed

# Runs an upgrade and stops for ever behind the statement that begins with its second argument.
_STOPPING = """
import sys
from sqlalchemy import event
from shared.db import DatabaseFactory
from shared.db.migrations import runner

db = DatabaseFactory(sys.argv[1])

@event.listens_for(db.engine, "after_cursor_execute")
def stop(connection, cursor, statement, *rest):
    if statement.strip().startswith(sys.argv[2]):
        print("stopped", flush=True)
        sys.stdin.read()

runner.upgrade(db)
"""

# Eight processes that start at the same moment; every second one creates in place of upgrading.
_EIGHT = """
import json, multiprocessing, sys
from shared.db import DatabaseFactory
from shared.db.migrations import runner

def work(number, barrier, results):
    with DatabaseFactory(sys.argv[1]) as db:
        barrier.wait()
        try:
            if sys.argv[2] == "mixed" and number % 2:
                results.put("created" if db.create_tables() else "nothing")
            else:
                change = runner.upgrade(db)
                results.put("nothing" if change.before == change.after else f"{change.before} to {change.after}")
        except Exception as error:
            results.put(str(error))

fork = multiprocessing.get_context("fork")
barrier, results = fork.Barrier(8), fork.Queue()
processes = [fork.Process(target=work, args=(number, barrier, results)) for number in range(8)]
for process in processes:
    process.start()
for process in processes:
    process.join()
print(json.dumps([results.get() for _ in processes]))
"""


@pytest.fixture
def sqlite_db(tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A SQLite file with the newest schema and rows in every table of the first."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db:
        runner.upgrade(db)
        seed(db)
        yield db


@pytest.fixture
def postgresql_db(postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """The same on PostgreSQL."""
    with DatabaseFactory(postgresql_url) as db:
        seed(db)
        yield db


@pytest.mark.parametrize(
    ("start", "statement"),
    [
        ("base", "CREATE TABLE runs"),
        ("0001_initial", "ALTER TABLE runs ADD COLUMN heartbeat_ts"),
        ("0001_initial", "DELETE FROM shared_db_version"),
    ],
)
def test_a_killed_upgrade_leaves_the_database_as_it_was(empty_db: DatabaseFactory, start: str, statement: str) -> None:
    """After kill -9 in the middle of a step nothing of the step is there; the next upgrade does it."""
    runner.upgrade(empty_db, start)
    if start != "base":
        seed(empty_db)
    schema, rows = schema_of(empty_db), contents(empty_db)

    with subprocess.Popen(
        [sys.executable, "-c", _STOPPING, _url(empty_db), statement],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stopped\n"
        os.kill(process.pid, signal.SIGKILL)

    if empty_db.settings.port.undoes_ddl:
        assert schema_of(empty_db) == schema
        assert contents(empty_db) == rows
        assert runner.status(empty_db).database_revision == (None if start == "base" else start)
    else:
        assert runner.status(empty_db).state == "behind"
    runner.upgrade(empty_db)
    assert runner.check(empty_db) == []
    assert contents(empty_db, like=rows) == rows


@pytest.mark.parametrize("kind", ["upgraders", "mixed"])
def test_of_eight_at_once_one_does_it(empty_db: DatabaseFactory, kind: str) -> None:
    """Eight processes that upgrade (or create) at the same moment all succeed, and one of them did the work."""
    done = run_python("-c", _EIGHT, _url(empty_db), kind)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results.count("nothing") == 7, (results, done.stderr)
    assert {"created", f"base to {SCHEMA_REVISION}"} & set(results)
    assert runner.check(empty_db) == []


def test_a_rebuild_of_users_keeps_everything_below_them(
    sqlite_db: DatabaseFactory, own_revisions: OwnRevisions
) -> None:
    """SQLite rebuilds a table by dropping the old one; with foreign keys on, that would empty every table below."""
    own_revisions.add('with op.batch_alter_table("users", recreate="always"): pass')
    schema, rows = schema_of(sqlite_db), contents(sqlite_db)
    runner.upgrade(sqlite_db)
    assert contents(sqlite_db) == rows
    assert schema_of(sqlite_db) == schema
    # And they are on again for everybody else.
    with sqlite_db.get_session() as session:
        session.execute(text("DELETE FROM users"))
    assert contents(sqlite_db)["runs"].rows == 0


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        ("DELETE FROM public_trades WHERE trade_id = 't7'", "public_trades had 50 rows and would have 49"),
        ("UPDATE runs SET strategy_id = 'gone'", "runs has rows that name no row of strategies"),
    ],
)
def test_a_revision_that_loses_rows_is_undone(
    sqlite_db: DatabaseFactory, own_revisions: OwnRevisions, step: str, complaint: str
) -> None:
    """Before the commit rows are counted and foreign keys followed: a rebuild that loses some never happened."""
    own_revisions.add(f'op.execute("{step}")')
    schema, rows = schema_of(sqlite_db), contents(sqlite_db)
    with pytest.raises(MigrationError, match=complaint):
        runner.upgrade(sqlite_db)
    assert (schema_of(sqlite_db), contents(sqlite_db)) == (schema, rows)


def test_a_revision_that_fails_half_way_is_undone(empty_db: DatabaseFactory, own_revisions: OwnRevisions) -> None:
    """What a failing step has done is gone, DDL included; the error is the step's own."""
    runner.upgrade(empty_db)
    seed(empty_db)
    own_revisions.add(
        """
        op.create_table("half_done", sa.Column("id", sa.Integer))
        with op.batch_alter_table("users", recreate="auto") as batch:
            batch.add_column(sa.Column("nickname", sa.String(20)))
        op.execute("INSERT INTO no_such_table VALUES (1)")
        """,
        """
        op.drop_table("half_done")
        op.drop_column("users", "nickname")
        """,
    )
    schema, rows, revision = schema_of(empty_db), contents(empty_db), runner.status(empty_db).database_revision
    for _ in range(2):
        with pytest.raises(DBAPIError, match="no_such_table"):
            runner.upgrade(empty_db)
        assert runner.status(empty_db).database_revision == revision
    if not empty_db.settings.port.undoes_ddl:
        # What was done stays, until it is taken back.
        assert schema_of(empty_db) != schema
        runner.downgrade(empty_db, str(revision))
    assert (schema_of(empty_db), contents(empty_db)) == (schema, rows)
    assert empty_db.create_tables() is False


def test_foreign_keys_that_cannot_be_turned_off_stop_a_migration() -> None:
    """In an open transaction SQLite ignores the pragma: refused before anything is dropped."""
    with DatabaseFactory("sqlite://") as db:
        db.create_tables()
        with db.get_session() as session:
            session.execute(text("SELECT 1"))
            with pytest.raises(MigrationError, match="still open"), exclusive_connection(db, 1):
                raise AssertionError("it began")


def test_a_downgrade_that_deletes_data_needs_leave(empty_db: DatabaseFactory) -> None:
    """It is refused, naming what would go, before anything is changed; with leave it is done."""
    runner.upgrade(empty_db)
    seed(empty_db)
    rows = contents(empty_db)
    with pytest.raises(DataLossError, match="--allow-data-loss") as refused:
        runner.downgrade(empty_db, "0001")
    assert refused.value.losses == ("audit_log", "runs.heartbeat_ts", "runs.host")
    with pytest.raises(DataLossError) as refused:
        runner.downgrade(empty_db, "base")
    assert set(refused.value.losses) == {"runs.heartbeat_ts", "runs.host", *rows}
    assert contents(empty_db) == rows
    assert runner.downgrade(empty_db, "0001", allow_data_loss=True).after == "0001_initial"


def test_a_downgrade_that_deletes_nothing_needs_no_leave(
    empty_db: DatabaseFactory, own_revisions: OwnRevisions
) -> None:
    """An index can be taken away without asking."""
    revision = own_revisions.add(
        'op.create_index("ix_users_status", "users", ["status"])', 'op.drop_index("ix_users_status", "users")'
    )
    runner.upgrade(empty_db)
    assert runner.downgrade(empty_db, SCHEMA_REVISION) == runner.Change(revision, SCHEMA_REVISION)


def test_a_migration_that_waits_lets_readers_pass(postgresql_db: DatabaseFactory, own_revisions: OwnRevisions) -> None:
    """While one idle reader keeps a step from its table, everybody else reads on; when he ends, it goes through."""
    own_revisions.add('op.add_column("runs", sa.Column("colour", sa.String(20)))')
    tried, finished = threading.Event(), threading.Event()

    @event.listens_for(postgresql_db.engine, "handle_error")
    def note(context: ExceptionContext) -> None:
        tried.set()

    def upgrade() -> None:
        runner.upgrade(postgresql_db, lock_timeout=0.1, attempts=1000)
        finished.set()

    with postgresql_db.get_session() as reader:
        reader.execute(text("SELECT count(*) FROM runs"))
        upgrader = threading.Thread(target=upgrade)
        upgrader.start()
        assert tried.wait(30)
        for _ in range(30):
            with postgresql_db.get_session() as other:
                # Without the timeout each of these would wait for the reader, behind the upgrade.
                other.execute(text("SET LOCAL statement_timeout = '3s'"))
                assert other.scalar(text("SELECT count(*) FROM runs")) == 3
        assert not finished.is_set()
    upgrader.join(30)
    assert finished.is_set()
    assert "colour" in contents(postgresql_db)["runs"].columns


def test_a_migration_that_waits_in_vain_names_who_is_in_the_way(
    postgresql_db: DatabaseFactory, own_revisions: OwnRevisions
) -> None:
    """It gives up after its attempts, says which sessions hold the locks, and leaves everything as it was."""
    own_revisions.add('op.add_column("runs", sa.Column("colour", sa.String(20)))')
    schema = schema_of(postgresql_db)
    with postgresql_db.get_session() as reader:
        reader.execute(text("SELECT count(*) FROM runs"))
        process = reader.scalar(text("SELECT pg_backend_pid()"))
        with pytest.raises(MigrationError, match=rf"2 attempts, by process {process} \(shared.db, idle in transaction"):
            runner.upgrade(postgresql_db, lock_timeout=0.05, attempts=2)
    assert schema_of(postgresql_db) == schema


def test_a_migration_of_a_busy_file_gives_up_with_a_remedy(tmp_path: Path) -> None:
    """A writer that does not end is waited for as often as was asked, then the upgrade says that the file is locked."""
    settings = DatabaseSettings(db_name=str(tmp_path / "busy.db"), sqlite_busy_timeout=0.05)
    with DatabaseFactory(settings) as db:
        runner.upgrade(db, "0001")
        with db.get_session() as writer:
            writer.execute(text("INSERT INTO users (username) VALUES ('carol')"))
            with pytest.raises(MigrationError, match="stayed locked through 2 attempts"):
                runner.upgrade(db, lock_timeout=0.01, attempts=2)
        assert runner.upgrade(db).after == SCHEMA_REVISION


def test_an_index_can_be_built_beside_writers(postgresql_db: DatabaseFactory, own_revisions: OwnRevisions) -> None:
    """A step outside of a transaction works, and a database that has it can be adopted."""
    revision = own_revisions.add(
        """
        with op.get_context().autocommit_block():
            op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_users_status")
            op.create_index("ix_users_status", "users", ["status"], postgresql_concurrently=True)
        """,
        'op.drop_index("ix_users_status", "users")',
    )
    runner.upgrade(postgresql_db)
    assert Entry("users", "index", "ix_users_status") in schema_of(postgresql_db)
    with postgresql_db.engine.begin() as connection:
        connection.execute(text("DROP TABLE shared_db_version"))
    assert runner.adopt(postgresql_db).after == revision


def test_a_bot_that_starts_while_an_index_is_built_waits_for_it(
    postgresql_db: DatabaseFactory, own_revisions: OwnRevisions
) -> None:
    """Building beside writers waits for every older snapshot: a bot waiting for the schema must not hold one."""
    own_revisions.add(
        """
        with op.get_context().autocommit_block():
            op.create_index("ix_users_status", "users", ["status"], postgresql_concurrently=True)
        """
    )
    asked, results = threading.Event(), []

    def start_bot() -> None:
        with DatabaseFactory(postgresql_db.settings) as bot:
            event.listen(bot.engine, "after_cursor_execute", lambda *_: asked.set())
            try:
                bot.create_tables()
            except SchemaVersionError as error:
                results.append(error.state)

    bot = threading.Thread(target=start_bot)

    @event.listens_for(postgresql_db.engine, "before_cursor_execute")
    def meet(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("CREATE INDEX CONCURRENTLY"):
            bot.start()
            assert asked.wait(30)

    runner.upgrade(postgresql_db)
    bot.join(30)
    assert results == ["ahead"]


def test_a_long_wait_says_who_is_waited_for(
    postgresql_url: URL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log names the process that is changing the schema; when it ends, the wait does."""
    monkeypatch.setattr(dialect, "_PATIENCE", 0)
    said = threading.Event()

    def note(record: logging.LogRecord) -> bool:
        said.set()
        return True

    with DatabaseFactory(postgresql_url) as db, db.engine.connect() as holder:
        process = holder.scalar(text("SELECT pg_backend_pid()"))
        dialect.lock_schema(holder)
        caplog.handler.addFilter(note)
        waiter = threading.Thread(target=db.create_tables)
        waiter.start()
        assert said.wait(30)
        holder.rollback()
        waiter.join(30)
        assert not waiter.is_alive()
    assert caplog.messages == [f"waiting for process {process} (shared.db), which is changing the schema"]


def _url(db: DatabaseFactory) -> str:
    return db.settings.get_database_url()
