"""What the factory and its sessions promise."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, func, insert, inspect, select, text
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool, StaticPool

from shared.db import (
    ApiCredential,
    Base,
    BybitAccount,
    ConnectionLostError,
    DatabaseFactory,
    DatabaseFileError,
    DatabaseLockedError,
    DatabaseMissingError,
    DatabaseReadOnlyError,
    DatabaseSettings,
    DatabaseUnreachableError,
    InvalidValueError,
    NotADatabaseError,
    PublicTrade,
    PublicTradeRepository,
    Recorder,
    SchemaVersionError,
    SettingsError,
    User,
    database,
)
from shared.db.tests.support import (
    backend_of,
    in_children,
    in_threads,
    new_strategy,
    run_on_server,
    run_script,
    stored,
    trade_values,
    usernames,
    usernames_elsewhere,
)

TABLES = set(Base.metadata.tables)


def url_of(db: DatabaseFactory) -> str:
    """The factory's database as a URL string."""
    return db.settings.get_database_url()


def other_settings(db: DatabaseFactory, **values: Any) -> DatabaseSettings:
    """Settings of the same database, with other options."""
    return DatabaseSettings(database_url=url_of(db), _env_file=None, **values)


@pytest.fixture
def file_db(tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A SQLite file whose writers do not wait for each other."""
    settings = DatabaseSettings(db_name=str(tmp_path / "grid_bot.db"), sqlite_busy_timeout=0, _env_file=None)
    with DatabaseFactory(settings) as factory:
        factory.create_tables()
        yield factory


@pytest.fixture
def own_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process-wide factory belongs to this test alone."""
    monkeypatch.setattr(database, "_default", None)
    yield
    if database._default is not None:
        database._default.close()


# The factory


def test_sqlite_connection(db: DatabaseFactory) -> None:
    """The engine connects and answers, on every database."""
    with db.engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1


def test_create_tables(db: DatabaseFactory) -> None:
    """All eight tables are there, and calling again changes nothing and says so."""
    assert len(TABLES) == 8
    assert set(inspect(db.engine).get_table_names()) >= TABLES
    if db.settings.is_sqlite:
        with db.engine.connect() as connection:
            master = connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'table'"))
            assert set(master) >= TABLES
    assert db.create_tables() is False


def test_create_tables_says_that_it_created_something(empty_postgresql_url: URL, tmp_path: Path) -> None:
    """The first call returns True, and one missing table is enough for another True."""
    for source in (empty_postgresql_url, f"sqlite:///{tmp_path / 'new.db'}"):
        with DatabaseFactory(source) as db:
            assert db.create_tables() is True
            assert db.create_tables() is False
            with db.engine.begin() as connection:
                connection.execute(text("DROP TABLE public_trades"))
            assert db.create_tables() is True


def test_drop_tables_removes_rows_and_tables(db: DatabaseFactory) -> None:
    """Nothing of this library is left, and the tables can be created again, empty."""
    with db.get_session() as session:
        session.add(User(username="alice"))
    db.drop_tables()
    assert not set(inspect(db.engine).get_table_names()) & TABLES
    db.create_tables()
    assert usernames(db) == []


def test_tables_of_others_are_left_alone(db: DatabaseFactory) -> None:
    """A database may hold more than this library's tables."""
    with db.engine.begin() as connection:
        connection.execute(text("CREATE TABLE somebody_elses (x INTEGER)"))
    db.drop_tables()
    db.create_tables()
    assert inspect(db.engine).has_table("somebody_elses")


def test_nothing_is_opened_at_import_nor_by_a_new_factory(tmp_path: Path) -> None:
    """No file and no connection before the first use."""
    code = """
import os, sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(event) if event.startswith(("sqlite3", "socket")) else None)
import shared.db, shared.db.database, shared.db.init_db, shared.db.commands.cli
for factory in (shared.db.DatabaseFactory(), shared.db.get_db()):
    repr(factory)
    factory.close()
opened = [event for event in opened if event not in ("socket.gethostname",)]
assert opened == [], opened
assert os.listdir() == [], os.listdir()
shared.db.get_db().create_tables()
assert "grid_bot.db" in os.listdir()
assert "sqlite3.connect" in opened
shared.db.get_db().close()
"""
    result = run_script(code)
    assert result.returncode == 0, result.stderr


def test_no_server_is_asked_before_the_first_use() -> None:
    """A factory for a server that is not there fails when it is used, and not before."""
    db = DatabaseFactory("postgresql://bot@127.0.0.1:1/gridbot")
    assert db.engine.dialect.name == "postgresql"
    assert db.session_factory is not None
    with pytest.raises(DatabaseUnreachableError), db.get_session() as session:
        session.execute(text("SELECT 1"))


def test_threads_get_one_engine_and_one_session_factory(db_settings: DatabaseSettings) -> None:
    """Sixteen threads that ask at the same moment are given the same objects."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            with DatabaseFactory(db_settings) as db:
                factories = set(in_threads(16, lambda number: id(db.session_factory)))
            with DatabaseFactory(db_settings) as db:
                engines = set(in_threads(16, lambda number: id(db.engine)))
            assert (len(engines), len(factories)) == (1, 1)
    finally:
        sys.setswitchinterval(interval)


def test_threads_write_at_the_same_moment(lasting: DatabaseFactory) -> None:
    """Sixteen threads share one factory; nothing is lost."""

    def write(number: int) -> None:
        with lasting.get_session() as session:
            session.add(User(username=f"user-{number:02}"))

    in_threads(16, write)
    assert usernames(lasting) == [f"user-{number:02}" for number in range(16)]


def test_a_factory_takes_settings_a_url_or_nothing(
    db_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All spellings of one database lead there."""
    monkeypatch.setenv("GRIDBOT_DB_URL", db_settings.get_database_url())
    sources = (db_settings, db_settings.get_database_url(), db_settings.url, None)
    for factory in (*(DatabaseFactory(source) for source in sources), DatabaseFactory()):
        with factory as db, db.engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
            assert db.settings.url == db_settings.url


@pytest.mark.parametrize("source", [42, b"sqlite://", ["sqlite://"], {"db_name": "x.db"}, Path("grid_bot.db")])
def test_a_factory_refuses_what_is_no_address(source: Any) -> None:
    """Anything else is a SettingsError that says what is taken."""
    with pytest.raises(SettingsError, match="expected DatabaseSettings, a database URL"):
        DatabaseFactory(source)


def test_a_factory_shows_no_secret() -> None:
    """Its repr has the masked URL."""
    shown = repr(DatabaseFactory("postgresql://bot:hush@db.example.com/gridbot"))
    assert "hush" not in shown
    assert "db.example.com/gridbot" in shown


def test_a_factory_that_lacks_settings_can_be_shown() -> None:
    """A debugger or log line that meets it says what is missing, in place of raising."""
    assert "db_host (GRIDBOT_DB_HOST)" in repr(DatabaseFactory(DatabaseSettings(db_type="postgresql", _env_file=None)))


def test_a_secret_in_the_query_of_a_url_is_never_shown(
    postgresql_url: URL, postgresql_server: URL, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by the engine, its URL, its pool, its connections, nor by what the pool logs; the driver still gets it."""
    url = postgresql_url.update_query_dict({"sslpassword": "canary-7", "sslmode": "prefer"})
    with (
        DatabaseFactory(url) as db,
        caplog.at_level(logging.DEBUG, "sqlalchemy"),
        db.engine.connect() as connection,
    ):
        driver: Any = connection.connection.dbapi_connection
        assert driver.info.dsn_parameters["sslmode"] == "prefer"
        shown = [db, db.settings, db.engine, db.engine.url, db.engine.pool, connection, connection.connection, driver]
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        run_on_server(postgresql_server, f"SELECT pg_terminate_backend({pid}, 10000)")
        with pytest.raises(ConnectionLostError) as lost:
            connection.execute(text("SELECT 1"))
    assert "canary-7" in driver.dsn
    assert [record.name for record in caplog.records if "Invalidate connection" in record.message] == [
        "sqlalchemy.pool.impl.QueuePool"
    ]
    told = traceback.TracebackException.from_exception(lost.value, capture_locals=True)
    variables = [str(frame.locals) for frame in told.stack if "/tests/" not in frame.filename]
    assert "canary-7" not in "".join([caplog.text, *variables, *(f"{each!r}{each}" for each in shown)])


def test_close_lets_go_of_every_connection(lasting: DatabaseFactory, postgresql_server: URL) -> None:
    """Afterwards nobody is connected; the factory opens new connections when asked."""
    with lasting.get_session() as session:
        session.add(User(username="alice"))
    lasting.close()
    if lasting.settings.is_sqlite:
        # The last one to close the file takes the write-ahead log along.
        assert os.listdir(Path(lasting.settings.db_name or "").parent) == ["grid_bot.db"]
    else:
        name = lasting.settings.url.database
        # PostgreSQL renames only what nobody is connected to.
        run_on_server(postgresql_server, f"ALTER DATABASE {name} RENAME TO {name}_2")
        run_on_server(postgresql_server, f"ALTER DATABASE {name}_2 RENAME TO {name}")
    lasting.close()
    assert usernames(lasting) == ["alice"]


def test_a_factory_is_closed_by_its_with_block(tmp_path: Path) -> None:
    """Also when the block raises."""

    def use_and_fail() -> None:
        with DatabaseFactory(f"sqlite:///{tmp_path / 'x.db'}") as db:
            db.create_tables()
            assert (tmp_path / "x.db-wal").exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    assert os.listdir(tmp_path) == ["x.db"]


def test_eight_processes_create_the_tables_at_the_same_moment(empty_postgresql_url: URL, tmp_path: Path) -> None:
    """All of them succeed, one of them does it, on a file that is not there yet and on a server."""
    for source in (f"sqlite:///{tmp_path / 'deep' / 'er' / 'new.db'}", empty_postgresql_url):

        def create(number: int, source: Any = source) -> tuple[bool, int]:
            with DatabaseFactory(source) as db:
                return db.create_tables(), len(inspect(db.engine).get_table_names())

        created, tables = zip(*in_children(8, create), strict=True)
        assert sorted(created) == [False] * 7 + [True]
        assert min(tables) >= 7


def test_the_pool_is_as_large_as_the_settings_say(lasting: DatabaseFactory) -> None:
    """pool_size and max_overflow together are the limit, pool_timeout the wait."""
    with DatabaseFactory(other_settings(lasting, pool_size=2, max_overflow=1, pool_timeout=0.01)) as db:
        connections = [db.engine.connect() for _ in range(3)]
        with pytest.raises(PoolTimeoutError):
            db.engine.connect()
        for connection in connections:
            connection.close()
        assert isinstance(db.engine.pool, QueuePool)
        assert db.engine.pool.checkedin() == 2


def test_an_in_memory_database_has_one_connection(db: DatabaseFactory) -> None:
    """StaticPool for it, as the specification says; a queue of connections for the others."""
    assert isinstance(db.engine.pool, StaticPool if db.settings.is_memory else QueuePool)


# PostgreSQL's connections


def test_the_application_name_is_seen_by_the_server(postgresql_url: URL) -> None:
    """Who looks at pg_stat_activity knows the program; the URL's own name wins."""
    query = text("SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    named = postgresql_url.update_query_dict({"application_name": "by url"})
    for url, name in ((postgresql_url, "recorder 7"), (named, "by url")):
        text_url = url.render_as_string(hide_password=False)
        settings = DatabaseSettings(database_url=text_url, application_name="recorder 7", _env_file=None)
        with DatabaseFactory(settings) as db, db.get_session() as session:
            assert session.scalar(query) == name


def test_a_silent_server_is_noticed_by_the_connection(postgresql_url: URL) -> None:
    """In half a minute, unless the URL says otherwise; the system's own limit is two hours."""
    with DatabaseFactory(postgresql_url) as db, db.engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        told = driver.info.dsn_parameters
    assert (told["keepalives_idle"], told["keepalives_interval"], told["keepalives_count"]) == ("15", "5", "3")
    assert told["tcp_user_timeout"] == "30000"
    slow = postgresql_url.update_query_dict({"tcp_user_timeout": "90000"})
    with DatabaseFactory(slow) as db, db.engine.connect() as connection:
        other: Any = connection.connection.dbapi_connection
        assert other.info.dsn_parameters["tcp_user_timeout"] == "90000"


def test_every_session_speaks_utf_8(postgresql_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever environment, database and URL prefer: what COPY stores can be read back."""
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    run_on_server(postgresql_url, f"ALTER DATABASE {postgresql_url.database} SET client_encoding = 'LATIN1'")
    with DatabaseFactory(postgresql_url.update_query_dict({"client_encoding": "LATIN1"})) as db:
        with db.get_session() as session:
            session.add(User(username="日本"))
            PublicTradeRepository(session).bulk_create([trade_values(trade_id="日本")])
        assert usernames(db) == ["日本"]
        with db.get_session(read_only=True) as session:
            assert session.scalars(select(PublicTrade.trade_id)).all() == ["日本"]


def test_connecting_does_not_wait_for_ever(postgresql_url: URL) -> None:
    """There is a limit of ten seconds, unless the URL sets another one."""
    for url, limit in ((postgresql_url, "10"), (postgresql_url.update_query_dict({"connect_timeout": "3"}), "3")):
        with DatabaseFactory(url) as db, db.engine.connect() as connection:
            driver: Any = connection.connection.dbapi_connection
            assert driver.info.dsn_parameters["connect_timeout"] == limit


def test_a_lost_connection_is_replaced_before_it_is_used(postgresql_url: URL) -> None:
    """A connection that the server dropped while it was idle costs no error."""
    with DatabaseFactory(postgresql_url) as db:
        with db.get_session() as session:
            lost = backend_of(session)
        run_on_server(postgresql_url, f"SELECT pg_terminate_backend({lost}, 10000)")
        with db.get_session() as session:
            assert backend_of(session) != lost


def test_without_the_ping_a_lost_connection_is_a_named_failure(postgresql_url: URL) -> None:
    """pool_pre_ping=False saves the round trip, and the next session tells that the connection is gone."""
    text_url = postgresql_url.render_as_string(hide_password=False)
    settings = DatabaseSettings(database_url=text_url, pool_pre_ping=False, _env_file=None)
    with DatabaseFactory(settings) as db:
        with db.get_session() as session:
            lost = backend_of(session)
        run_on_server(postgresql_url, f"SELECT pg_terminate_backend({lost}, 10000)")
        with pytest.raises(DatabaseUnreachableError), db.get_session() as session:
            session.execute(text("SELECT 1"))
        assert usernames(db) == []


def test_old_connections_are_replaced(postgresql_url: URL) -> None:
    """A connection older than pool_recycle seconds is not used again; -1 keeps it."""
    text_url = postgresql_url.render_as_string(hide_password=False)
    for seconds, different in ((0, 3), (-1, 1)):
        settings = DatabaseSettings(database_url=text_url, pool_recycle=seconds, _env_file=None)
        with DatabaseFactory(settings) as db:
            backends = set()
            for _ in range(3):
                with db.get_session() as session:
                    backends.add(backend_of(session))
        assert len(backends) == different


# SQLite's files


def test_a_sqlite_connection_is_set_up(db: DatabaseFactory) -> None:
    """Foreign keys are enforced, deleted secrets overwritten; a file has a write-ahead log, flushed at each commit."""
    if not db.settings.is_sqlite:
        return
    expected: dict[str, Any] = {"foreign_keys": 1, "secure_delete": 1}
    if not db.settings.is_memory:
        expected |= {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30_000}
    with db.get_session(read_only=True) as session:
        assert {name: session.scalar(text(f"PRAGMA {name}")) for name in expected} == expected
        driver = session.connection().connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection)
        assert driver.isolation_level is None


def test_a_relative_path_is_made_absolute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chdir after the first use does not move the database, for new connections, after close(), nor in init_db."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with DatabaseFactory("sqlite:///data/grid_bot.db") as db:
        db.create_tables()
        monkeypatch.chdir(elsewhere)
        with db.get_session() as session:
            session.add(User(username="alice"))
            with db.get_session(read_only=True) as second:
                assert second.scalar(select(func.count(User.user_id))) == 0
        db.close()
        assert usernames(db) == ["alice"]
        assert db.create_tables() is False
    assert os.listdir(elsewhere) == []
    assert usernames_elsewhere(tmp_path / "data" / "grid_bot.db") == ["alice"]


def test_the_folder_of_a_sqlite_file_is_made(tmp_path: Path) -> None:
    """Every missing folder on the way."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'a' / 'b' / 'grid_bot.db'}") as db:
        db.create_tables()
    assert (tmp_path / "a" / "b" / "grid_bot.db").is_file()


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Mode 0600 for the file and what SQLite puts beside it, whatever the umask; an existing file keeps its mode."""
    (tmp_path / "old.db").touch(mode=0o640)
    before = os.umask(0o022)
    try:
        for name, mode in (("new.db", 0o600), ("old.db", 0o640)):
            with DatabaseFactory(f"sqlite:///{name}") as db:
                db.create_tables()
                modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob(f"{name}*")}
                assert modes == {name: mode, f"{name}-wal": mode, f"{name}-shm": mode}
    finally:
        os.umask(before)


def test_a_second_factory_does_not_drop_the_locks_of_the_first(tmp_path: Path) -> None:
    """A process holds locks on a file until it closes any descriptor of it: a second factory must not.

    Without them another process takes itself for the last one, deletes the write-ahead log, and what this one
    commits afterwards is seen by nobody.
    """
    url = f"sqlite:///{tmp_path / 'grid_bot.db'}"
    with DatabaseFactory(url) as first:
        first.create_tables()
        with first.get_session() as session:
            session.add(User(username="alice"))
        assert DatabaseFactory(url).engine is not first.engine
        assert usernames_elsewhere(tmp_path / "grid_bot.db") == ["alice"]
        with first.get_session() as session:
            session.add(User(username="bob"))
        assert usernames_elsewhere(tmp_path / "grid_bot.db") == ["alice", "bob"]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell would have it; a name that merely begins with one is a name."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, path in (("~/x.db", tmp_path / "home" / "x.db"), ("~x.db", tmp_path / "~x.db")):
        with DatabaseFactory(DatabaseSettings(db_name=name)) as db:
            db.create_tables()
        assert path.is_file()


def test_the_urls_own_options_win(tmp_path: Path) -> None:
    """What the query of a SQLite URL says is not overruled by the settings."""
    with DatabaseFactory("sqlite:///x.db?timeout=0.5") as db, db.get_session() as session:
        assert session.scalar(text("PRAGMA busy_timeout")) == 500


def test_a_sqlite_uri_opens_as_it_says(tmp_path: Path) -> None:
    """mode=ro reads, and a write is refused by name; a file system without shared memory works without the log."""
    with DatabaseFactory("sqlite:///x.db") as db:
        db.create_tables()
    with DatabaseFactory(f"sqlite:///file:{tmp_path / 'x.db'}?mode=ro&uri=true") as db:
        assert usernames(db) == []
        with pytest.raises(DatabaseReadOnlyError), db.get_session() as session:
            session.add(User(username="alice"))
    with DatabaseFactory(f"sqlite:///file:{tmp_path / 'y.db'}?vfs=unix-none&uri=true") as db:
        db.create_tables()
        with db.get_session() as session:
            assert session.scalar(text("PRAGMA journal_mode")) == "delete"


def test_a_path_that_cannot_be_opened_is_a_named_failure(tmp_path: Path) -> None:
    """Below a regular file, or a folder itself: one error that names the setting; put right, the factory works."""
    (tmp_path / "notes.txt").write_text("milk")
    (tmp_path / "folder").mkdir()
    for name in ("notes.txt/grid_bot.db", "folder"):
        with DatabaseFactory(f"sqlite:///{name}") as db, pytest.raises(DatabaseFileError, match="GRIDBOT_DB_NAME"):
            db.create_tables()
    with DatabaseFactory("sqlite:///notes.txt/grid_bot.db") as db:
        with pytest.raises(DatabaseFileError):
            db.create_tables()
        (tmp_path / "notes.txt").unlink()
        (tmp_path / "notes.txt").mkdir()
        assert db.create_tables() is True


def test_what_is_not_a_database_is_left_as_it_is(tmp_path: Path) -> None:
    """A file of another kind is refused by name and not written to."""
    (tmp_path / "notes.txt").write_text("milk, eggs, " * 1000)
    with DatabaseFactory("sqlite:///notes.txt") as db, pytest.raises(NotADatabaseError):
        db.create_tables()
    assert (tmp_path / "notes.txt").read_text() == "milk, eggs, " * 1000


# Sessions


def test_session_context_manager(db: DatabaseFactory) -> None:
    """A session commits when its block ends, and gives its connection back."""
    with db.get_session() as session:
        session.add(User(username="alice"))
    assert not session.in_transaction()
    assert usernames(db) == ["alice"]
    if isinstance(db.engine.pool, QueuePool):
        assert db.engine.pool.checkedout() == 0


def _use_and_raise(db: DatabaseFactory, error: BaseException) -> None:
    with db.get_session() as session:
        session.add(User(username="alice"))
        session.flush()
        raise error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
def test_session_rollback_on_error(db: DatabaseFactory, error: BaseException) -> None:
    """A session rolls back when its block raises, be it Ctrl-C, and lets the error through as it is."""
    with pytest.raises(type(error)) as raised:
        _use_and_raise(db, error)
    assert raised.value is error
    assert usernames(db) == []
    if isinstance(db.engine.pool, QueuePool):
        assert db.engine.pool.checkedout() == 0


def test_a_failing_commit_is_rolled_back(db: DatabaseFactory) -> None:
    """What only the last flush brings to light raises out of the block, and nothing of the session is written."""

    def write_twice() -> None:
        with db.get_session() as session:
            session.add(User(username="carol"))
            session.flush()
            session.add(User(username="alice"))

    with db.get_session() as session:
        session.add(User(username="alice"))
    with pytest.raises(IntegrityError):
        write_twice()
    assert usernames(db) == ["alice"]


def test_a_failed_flush_that_was_caught_is_not_committed_half(db: DatabaseFactory) -> None:
    """Who swallows the error and goes on is told at the end of the block; nothing is written."""

    def swallow() -> None:
        with db.get_session() as session:
            session.add(User(username="alice"))
            session.flush()
            session.add(User(username="alice"))
            with pytest.raises(IntegrityError):
                session.flush()

    with pytest.raises(PendingRollbackError):
        swallow()
    assert usernames(db) == []


def test_objects_are_usable_after_their_session(db: DatabaseFactory) -> None:
    """Commit and close expire nothing."""
    with db.get_session() as session:
        user = User(username="alice")
        session.add(user)
    assert (user.username, user.status, len(user.user_id)) == ("alice", "active", 36)
    assert user.created_at.tzinfo is not None


def test_a_released_savepoint_goes_with_its_transaction(db: DatabaseFactory) -> None:
    """What a savepoint kept is still undone by the rollback around it (SQLite's driver by itself would keep it)."""

    def keep_and_fail() -> None:
        with db.get_session() as session:
            with session.begin_nested():
                session.add(User(username="alice"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        keep_and_fail()
    assert usernames(db) == []


def test_a_savepoint_undoes_its_own_part_only(db: DatabaseFactory) -> None:
    """Rows before and after it stay; an error inside it does not end the transaction."""
    with db.get_session() as session:
        session.add(User(username="alice"))
        savepoint = session.begin_nested()
        session.add_all([User(username="bob"), User(username="alice")])
        with pytest.raises(IntegrityError):
            session.flush()
        savepoint.rollback()
        session.add(User(username="carol"))
    assert usernames(db) == ["alice", "carol"]


def test_a_failed_change_of_the_schema_leaves_nothing(db: DatabaseFactory) -> None:
    """DDL is part of the transaction, on SQLite too."""

    def change_and_fail() -> None:
        with db.engine.begin() as connection:
            connection.execute(text("CREATE TABLE extra (id INTEGER)"))
            connection.execute(text("ALTER TABLE users ADD COLUMN extra INTEGER"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change_and_fail()
    inspector = inspect(db.engine)
    assert not inspector.has_table("extra")
    assert "extra" not in {column["name"] for column in inspector.get_columns("users")}


def _by_orm(session: Session) -> object:
    session.add(User(username="mallory"))
    session.flush()
    return session


WRITES: dict[str, Callable[[Session], Any]] = {
    "ORM": _by_orm,
    "Core": lambda session: session.execute(insert(Base.metadata.tables["users"]).values(username="mallory")),
    "raw insert": lambda session: session.execute(text("INSERT INTO users (username) VALUES ('mallory')")),
    "raw update": lambda session: session.execute(text("UPDATE users SET username = 'mallory'")),
    "raw delete": lambda session: session.execute(text("DELETE FROM users")),
    "the connection": lambda session: session.connection().exec_driver_sql("DELETE FROM users"),
    "DDL": lambda session: session.execute(text("CREATE TABLE mallory (id INTEGER)")),
    "after a read": lambda session: (session.scalars(select(User)).all(), _by_orm(session)),
    "a savepoint": lambda session: (session.begin_nested(), _by_orm(session)),
}


@pytest.mark.parametrize("how", WRITES)
def test_a_read_only_session_refuses_to_write(db: DatabaseFactory, how: str) -> None:
    """By every path, with the same error on every database, which names the remedy; reading works."""
    with db.get_session() as session:
        session.add(User(username="alice"))

    def read_and_write() -> None:
        with db.get_session(read_only=True) as session:
            assert session.scalar(select(User.username)) == "alice"
            WRITES[how](session)

    with pytest.raises(DatabaseReadOnlyError, match="opened without read_only=True"):
        read_and_write()
    assert usernames(db) == ["alice"]


def test_reading_leaves_a_file_as_it_is(tmp_path: Path) -> None:
    """Byte for byte, in a journal mode that we would not choose too; the first who writes switches it."""
    path = tmp_path / "theirs.db"
    with DatabaseFactory(f"sqlite:///{path}") as db:
        db.create_tables()
    with closing(sqlite3.connect(path)) as theirs:
        theirs.execute("PRAGMA journal_mode=DELETE")
    before = path.read_bytes()
    with DatabaseFactory(f"sqlite:///{path}") as db:
        assert usernames(db) == []
        db.check_schema()
        db.close()
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["theirs.db"]
        assert usernames(db) == []
        with db.get_session() as session:
            session.add(User(username="alice"))
        assert usernames(db) == ["alice"]
        with db.engine.connect() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "wal"


@pytest.mark.parametrize("whole_factory", [False, True])
def test_reading_makes_no_file(whole_factory: bool, tmp_path: Path) -> None:
    """Neither folder nor file, in every kind of session; the error says what makes one."""
    name = str(tmp_path / "folder" / "grid_bot.db")
    with DatabaseFactory(DatabaseSettings(db_name=name, read_only=whole_factory, _env_file=None)) as db:
        reading: dict[str, Any] = {} if whole_factory else {"read_only": True}
        users: list[dict[str, Any]] = [{}, {"user_id": "ann"}]
        for who in users:
            with (
                pytest.raises(DatabaseMissingError, match=r"python -m shared\.db init"),
                db.get_session(**reading, **who) as session,
            ):
                session.scalars(select(User)).all()
        with pytest.raises(DatabaseMissingError, match="there is no database file"):
            db.run_in_transaction(lambda session: session.scalars(select(User)).all(), **reading)
        with pytest.raises(SchemaVersionError, match=r"python -m shared\.db init"):
            db.check_schema()
        if whole_factory:
            with pytest.raises(DatabaseMissingError):
                db.create_tables()
        assert os.listdir(tmp_path) == []


def test_a_factory_that_only_reads_refuses_to_write(lasting: DatabaseFactory) -> None:
    """By whatever door; its sessions of either kind read, and nothing is changed."""
    with lasting.get_session() as session:
        session.add(User(user_id="ann", username="alice"))
    with DatabaseFactory(other_settings(lasting, read_only=True)) as db:
        doors: list[Callable[[], Any]] = [
            db.drop_tables,
            db.enable_audit,
            lambda: db.run_in_transaction(_by_orm),
            lambda: add_by(db.session_factory),
        ]
        for door in doors:
            with pytest.raises(DatabaseReadOnlyError, match="GRIDBOT_DB_READ_ONLY"):
                door()
        for write in WRITES.values():
            with pytest.raises(DatabaseReadOnlyError), db.get_session() as session:
                write(session)
            with pytest.raises(DatabaseReadOnlyError), db.engine.begin() as connection:
                connection.execute(text("DELETE FROM users"))
        with pytest.raises(InvalidValueError, match="GRIDBOT_DB_READ_ONLY"):
            Recorder(db, PublicTrade)
        assert not db.create_tables()
        with db.get_session(user_id="ann") as session:
            assert session.scalars(select(User.username)).all() == ["alice"]
        assert usernames(db) == ["alice"]


def add_by(sessions: Callable[[], Session]) -> None:
    """Add a user in a session that the factory does not open itself."""
    with sessions() as session:
        _by_orm(session)


def test_a_connection_that_only_read_writes_again(db: DatabaseFactory) -> None:
    """Reading and writing sessions take turns on one connection, also after an error and after a refused write."""
    expected = []
    for number in range(4):
        with pytest.raises(DatabaseReadOnlyError), db.get_session(read_only=True) as session:
            session.add(User(username="mallory"))
        with db.get_session(read_only=True) as session:
            assert session.scalar(select(func.count(User.user_id))) == number
        with db.get_session() as session:
            session.add(User(username=f"user-{number}"))
        expected.append(f"user-{number}")
        with db.engine.begin() as connection:
            connection.execute(text("UPDATE users SET email = NULL"))
    assert usernames(db) == expected
    if isinstance(db.engine.pool, QueuePool):
        assert db.engine.pool.checkedin() == 1


def test_readers_and_a_writer_do_not_wait_for_each_other(file_db: DatabaseFactory) -> None:
    """On a file a reader sees what was committed when it began, while somebody writes and commits (nobody may wait)."""
    with file_db.get_session() as session:
        session.add(User(username="alice"))
    with file_db.get_session(read_only=True) as early:
        assert early.scalars(select(User.username)).all() == ["alice"]
        with file_db.get_session() as writer:
            writer.add(User(username="bob"))
            writer.flush()
            assert usernames(file_db) == ["alice"]
        assert usernames(file_db) == ["alice", "bob"]
        assert early.scalars(select(User.username)).all() == ["alice"]


def test_a_second_writer_waits_at_its_first_statement(file_db: DatabaseFactory) -> None:
    """The write lock is taken before anything is read, so that nobody writes what he computed from old rows."""

    def read(_: int) -> None:
        with file_db.get_session() as session:
            session.scalars(select(User.username)).all()

    with file_db.get_session() as one:
        one.add(User(username="alice"))
        one.flush()
        with pytest.raises(DatabaseLockedError, match="GRIDBOT_DB_SQLITE_BUSY_TIMEOUT"):
            in_threads(1, read)
    with file_db.get_session() as session:
        session.add(User(username="bob"))
    assert usernames(file_db) == ["alice", "bob"]


def test_no_update_of_many_processes_is_lost(lasting: DatabaseFactory) -> None:
    """Four processes read, add one and write back, fifty times each."""
    with lasting.get_session() as session:
        user = stored(session, User(username="alice"))
        account = stored(session, BybitAccount(user_id=user.user_id, account_name="main", environment="testnet"))
        strategy = stored(session, new_strategy(account, config_json={"count": 0}))
    model, key = type(strategy), strategy.strategy_id

    def count_up(number: int) -> None:
        for _ in range(50):
            with lasting.get_session() as session:
                counted = session.get_one(model, key, with_for_update=True)
                counted.config_json["count"] += 1

    in_children(4, count_up)
    with lasting.get_session() as session:
        assert session.get_one(model, key).config_json == {"count": 200}


def test_overlapping_sessions_in_memory_warn(db: DatabaseFactory) -> None:
    """They share one transaction there, and the warning points to the line that opened the second one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with db.get_session(), db.get_session(read_only=True):
                pass
        with db.get_session():
            pass
    if db.settings.is_memory:
        assert [warning.filename for warning in caught] == [__file__] * 2
        assert all("single transaction" in str(warning.message) for warning in caught)
    else:
        assert caught == []


def test_after_an_overlap_that_raised_the_next_session_is_alone(db: DatabaseFactory) -> None:
    """With warnings as errors the second session does not open, and is not counted as open."""
    if db.settings.is_memory:
        with db.get_session() as session:
            session.add(User(username="alice"))
            with pytest.raises(UserWarning, match="single transaction"), db.get_session():
                raise AssertionError("it opened")
    with db.get_session() as session:
        session.add(User(username="bob"))
    assert usernames(db)[-1] == "bob"


def test_a_stored_secret_is_never_logged(
    db_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """echo_sql shows statements and never their values; neither does the error of a statement that failed."""
    # With a handler in place SQLAlchemy adds none that would outlive this test.
    monkeypatch.setattr(logging.getLogger("sqlalchemy.engine.Engine"), "handlers", [logging.NullHandler()])
    settings = DatabaseSettings(database_url=db_settings.get_database_url(), echo_sql=True, _env_file=None)
    canary = "canary-7f3a"

    def store_twice() -> None:
        with DatabaseFactory(settings) as db:
            db.create_tables()
            with db.get_session() as session:
                user = stored(session, User(username="alice"))
                account = BybitAccount(user_id=user.user_id, account_name="main", environment="testnet")
                stored(session, account)
                for _ in range(2):
                    key = {"credential_id": "same", "account_id": account.account_id, "api_key_id": "k"}
                    session.add(ApiCredential(**key, api_secret=canary))
                    session.flush()
                    session.expunge_all()

    with pytest.raises(IntegrityError) as raised:
        store_twice()
    assert "INSERT INTO api_credentials" in caplog.text
    assert canary not in caplog.text
    assert canary not in str(raised.value)
    assert canary not in repr(raised.value)


# The process-wide factory


@pytest.mark.usefixtures("own_default")
def test_get_db_is_one_factory_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sixteen threads get the same one, made on first use."""
    monkeypatch.setenv("GRIDBOT_DB_NAME", "env.db")
    (db, *others) = in_threads(16, lambda number: database.get_db())
    assert all(other is db for other in others)
    assert os.listdir(tmp_path) == []
    db.create_tables()
    assert "env.db" in os.listdir(tmp_path)


@pytest.mark.usefixtures("own_default")
def test_init_db_makes_the_factory_and_the_tables(db_settings: DatabaseSettings) -> None:
    """Afterwards get_db() gives the factory that init_db() returned."""
    db = database.init_db(db_settings)
    assert database.get_db() is db
    assert set(inspect(db.engine).get_table_names()) >= TABLES


@pytest.mark.usefixtures("own_default")
def test_init_db_again_closes_the_earlier_factory(tmp_path: Path) -> None:
    """The new one takes its place; one that fails does not."""
    first = database.init_db("sqlite:///first.db")
    assert "first.db-wal" in os.listdir(tmp_path)
    second = database.init_db("sqlite:///second.db")
    assert "first.db-wal" not in os.listdir(tmp_path)
    assert database.get_db() is second is not first
    (tmp_path / "notes.txt").write_text("milk, eggs, " * 100)
    with pytest.raises(NotADatabaseError):
        database.init_db("sqlite:///notes.txt")
    assert database.get_db() is second
    assert usernames(second) == []


@pytest.mark.usefixtures("own_default")
def test_the_process_wide_factory_works_in_a_child(lasting: DatabaseFactory) -> None:
    """Also where another thread of the parent held its locks at the moment of the fork."""
    db = database.init_db(lasting.settings)

    def work(number: int) -> list[str]:
        with database.get_db().get_session() as session:
            session.add(User(username=f"child-{number}"))
        return usernames(database.get_db())

    with db._lock, database._default_lock:
        (seen,) = in_children(1, work)
    assert seen == ["child-0"] == usernames(db)


def test_of_several_hosts_the_one_that_answers_is_taken(postgresql_url: URL) -> None:
    """A server that is not there costs nothing but the question."""
    places = DatabaseSettings(database_url=postgresql_url.render_as_string(hide_password=False), _env_file=None).url
    host = places.query.get("host") or places.host
    port = places.query.get("port") or places.port or 5432
    several = postgresql_url.set(host=None, port=None, query={"host": f"127.0.0.1,{host}", "port": f"1,{port}"})
    with DatabaseFactory(several) as db:
        assert db.create_tables() is False
        assert db.health().problems == ()
