"""The factory: engines, sessions, who commits, and what happens to files, threads and processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, inspect, make_url, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import QueuePool, StaticPool

import shared.db.database as database
from shared.db import (
    ApiCredential,
    Base,
    BybitAccount,
    DatabaseFactory,
    DatabaseReadOnlyError,
    DatabaseSettings,
    PublicTrade,
    SettingsError,
    User,
    get_db,
)
from shared.db.tests.support import trade_values

TABLES = {"users", "bybit_accounts", "api_credentials", "strategies", "runs", "public_trades", "private_executions"}


@pytest.fixture(params=("file", "postgresql"))
def shared_db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A database that several processes can open, schema in it."""
    if request.param == "file":
        settings = DatabaseSettings(db_name=str(tmp_path / "grid_bot.db"), _env_file=None)
    else:
        url = request.getfixturevalue("postgresql_url").render_as_string(hide_password=False)
        settings = DatabaseSettings(database_url=url, _env_file=None)
    with DatabaseFactory(settings) as db:
        db.create_tables()
        yield db


def in_processes(count: int, work: Callable[..., None], *arguments: Any) -> list[int]:
    """Run `work` in so many fresh processes that start together; their exit codes."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count)
    processes = [context.Process(target=work, args=(barrier, *arguments)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode or 0 for process in processes]


# Connecting


def test_sqlite_connection() -> None:
    """The engine of the in-memory default connects and answers."""
    with DatabaseFactory(DatabaseSettings(db_name=":memory:", _env_file=None)) as db, db.engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
        assert isinstance(db.engine.pool, StaticPool)


def test_nothing_is_opened_at_import_or_before_it_is_needed(tmp_path: Path) -> None:
    """Neither importing the package nor making a factory touches a file or a server."""
    code = (
        "import shared.db; db = shared.db.DatabaseFactory(); shared.db.DatabaseFactory('postgresql://u@127.0.0.1:1/x')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_factory_takes_settings_a_url_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what it takes when it is given something else."""
    assert DatabaseFactory().settings.db_name == "grid_bot.db"
    monkeypatch.setenv("GRIDBOT_DB_NAME", "other.db")
    assert DatabaseFactory().settings.db_name == "other.db"
    assert DatabaseFactory("postgres://u:p@h/d").settings.safe_url == "postgresql+psycopg2://u:***@h/d"
    assert DatabaseFactory(make_url("sqlite:///x.db")).settings.is_sqlite
    settings = DatabaseSettings(_env_file=None)
    assert DatabaseFactory(settings).settings is settings
    with pytest.raises(SettingsError, match="int"):
        DatabaseFactory(7)  # type: ignore[arg-type] # that is the mistake under test


def test_a_factory_shows_no_password() -> None:
    """Its repr is the masked URL."""
    assert repr(DatabaseFactory("postgresql://u:s3cret@h/d")) == "<DatabaseFactory postgresql+psycopg2://u:***@h/d>"


def test_threads_share_one_engine_and_one_session_factory(tmp_path: Path) -> None:
    """Sixteen threads that ask at the same moment get the same ones."""
    db = DatabaseFactory(f"sqlite:///{tmp_path}/x.db")
    barrier = threading.Barrier(16)
    seen: list[tuple[Engine, sessionmaker[Session]]] = []

    def ask() -> None:
        barrier.wait()
        seen.append((db.engine, db.session_factory))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 16
    assert len({id(engine) for engine, _ in seen}) == 1
    assert len({id(factory) for _, factory in seen}) == 1
    db.close()


def test_a_closed_factory_opens_again_when_asked(shared_db: DatabaseFactory) -> None:
    """close() gives the connections back, not the factory up."""
    with shared_db as db, db.get_session() as session:
        session.add(User(username="ann"))
    with shared_db.get_session() as session:
        assert session.scalar(select(func.count(User.user_id))) == 1


def test_the_pool_has_the_size_of_the_settings(tmp_path: Path) -> None:
    """And its time-outs."""
    settings = DatabaseSettings(
        db_name=str(tmp_path / "x.db"), pool_size=3, max_overflow=2, pool_timeout=1.5, _env_file=None
    )
    with DatabaseFactory(settings) as db:
        pool = db.engine.pool
        assert isinstance(pool, QueuePool)
        assert (pool.size(), pool._max_overflow, pool._timeout) == (3, 2, 1.5)


def test_postgresql_shows_the_application_name(postgresql_url: Any) -> None:
    """In the activity view, the URL's own name first."""
    with DatabaseFactory(postgresql_url) as db, db.get_session() as session:
        assert session.scalar(text("SELECT current_setting('application_name')")) == "shared.db"
    named = postgresql_url.update_query_dict({"application_name": "bot-7"})
    with DatabaseFactory(named) as db, db.get_session() as session:
        assert session.scalar(text("SELECT current_setting('application_name')")) == "bot-7"


# Schema


def test_create_tables(db: DatabaseFactory) -> None:
    """All seven tables exist; creating them again changes nothing and says so."""
    assert set(inspect(db.engine).get_table_names()) >= TABLES
    assert db.create_tables() is False


def test_drop_tables_removes_them(db: DatabaseFactory) -> None:
    """With their rows, and they can be made again."""
    with db.get_session() as session:
        session.add(User(username="ann"))
    db.drop_tables()
    assert not TABLES & set(inspect(db.engine).get_table_names())
    assert db.create_tables() is True
    with db.get_session() as session:
        assert session.scalars(select(User)).all() == []


def _create(barrier: Any, url: str) -> None:
    with DatabaseFactory(url) as db:
        barrier.wait()
        db.create_tables()


def test_eight_processes_create_the_schema_at_once(tmp_path: Path, empty_postgresql_url: Any) -> None:
    """All of them succeed, on a file that does not exist yet and on PostgreSQL."""
    for url in (f"sqlite:///{tmp_path}/new.db", empty_postgresql_url.render_as_string(hide_password=False)):
        assert in_processes(8, _create, url) == [0] * 8
        with DatabaseFactory(url) as db:
            assert set(inspect(db.engine).get_table_names()) >= TABLES


def test_a_change_of_schema_rolls_back(db: DatabaseFactory) -> None:
    """DDL is part of its transaction on both databases, which stock SQLite driver mode does not give."""
    with pytest.raises(ZeroDivisionError), db.get_session() as session:
        session.execute(text("CREATE TABLE half_done (x INTEGER)"))
        raise ZeroDivisionError
    assert "half_done" not in inspect(db.engine).get_table_names()


# Sessions


def test_session_context_manager(db: DatabaseFactory) -> None:
    """What was added is committed when the block ends, and the objects stay readable."""
    with db.get_session() as session:
        user = User(username="ann")
        session.add(user)
    assert user.username == "ann"
    assert user.created_at is not None
    with db.get_session() as session:
        assert session.scalars(select(User.username)).all() == ["ann"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_session_rollback_on_error(db: DatabaseFactory, error: type[BaseException]) -> None:
    """Nothing of a block that raises is kept, whatever it raises."""
    with pytest.raises(error), db.get_session() as session:
        session.add(User(username="ann"))
        session.flush()
        raise error
    with db.get_session() as session:
        assert session.scalars(select(User)).all() == []


def test_a_failing_commit_rolls_back(db: DatabaseFactory) -> None:
    """An error that only the flush at the end finds leaves nothing either, and the next session works."""
    with db.get_session() as session:
        session.add(User(username="ann"))
    with pytest.raises(IntegrityError), db.get_session() as session:
        session.add_all([User(username="bob"), User(username="ann")])
    with db.get_session() as session:
        assert session.scalars(select(User.username)).all() == ["ann"]


def test_a_savepoint_rolls_back_alone(db: DatabaseFactory) -> None:
    """And with the transaction around it, released or not."""
    with db.get_session() as session:
        session.add(User(username="kept"))
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            session.add(User(username="dropped"))
            session.flush()
            raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), db.get_session() as session:
        with session.begin_nested():
            session.add(User(username="released"))
        raise ZeroDivisionError
    with db.get_session() as session:
        assert session.scalars(select(User.username)).all() == ["kept"]


@pytest.mark.parametrize(
    "write",
    [
        lambda session: (session.add(User(username="x")), session.flush()),
        lambda session: session.execute(insert(User).values(user_id="1", username="x")),
        lambda session: session.execute(text("DELETE FROM users")),
        lambda session: session.execute(update(User).values(status="deleted")),
        lambda session: session.execute(text("CREATE TABLE sneaky (x INTEGER)")),
    ],
)
def test_a_read_only_session_refuses_every_write(db: DatabaseFactory, write: Callable[[Session], Any]) -> None:
    """By ORM, Core, SQL and schema, as a factory's first session and later; the connection writes again after it."""
    with pytest.raises(DatabaseReadOnlyError), db.get_session(read_only=True) as session:
        write(session)
    with db.get_session() as session:
        session.add(User(username="ann"))
    with pytest.raises(DatabaseReadOnlyError), db.get_session(read_only=True) as session:
        assert session.scalars(select(User.username)).all() == ["ann"]
        write(session)


def test_readers_and_a_writer_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """On a SQLite file a read-only session reads beside an open write, and the write commits beside an open read."""
    settings = DatabaseSettings(db_name=str(tmp_path / "x.db"), sqlite_busy_timeout=0, _env_file=None)
    with DatabaseFactory(settings) as db:
        db.create_tables()
        with db.get_session(read_only=True) as reader:
            assert reader.scalars(select(User)).all() == []
            with db.get_session() as writer:
                writer.add(User(username="ann"))
                writer.flush()
                with db.get_session(read_only=True) as other:
                    assert other.scalars(select(User)).all() == []
            assert reader.scalars(select(User)).all() == []
        with db.get_session(read_only=True) as reader:
            assert reader.scalars(select(User.username)).all() == ["ann"]


def test_overlapping_sessions_on_one_memory_database_warn() -> None:
    """They share a transaction; one after the other they do not, and a file's sessions never do."""
    with DatabaseFactory("sqlite://") as db:
        db.create_tables()
        with db.get_session(), pytest.warns(UserWarning, match="in-memory SQLite"), db.get_session():
            pass
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                with db.get_session():
                    pass


def test_no_value_reaches_the_log(db_settings: DatabaseSettings, caplog: pytest.LogCaptureFixture) -> None:
    """With echo_sql the statements are logged, and never what is bound to them."""
    settings = db_settings.model_copy(update={"echo_sql": True})
    with caplog.at_level(logging.DEBUG), DatabaseFactory(settings) as db:
        db.create_tables()
        with db.get_session() as session:
            session.add(User(user_id="u", username="ann"))
            session.flush()
            session.add(BybitAccount(account_id="a", user_id="u", account_name="m", environment="testnet"))
            session.flush()
            session.add(ApiCredential(account_id="a", api_key_id="k", api_secret="canary-secret"))
    assert "INSERT INTO api_credentials" in caplog.text
    assert "canary-secret" not in caplog.text
    with pytest.raises(IntegrityError) as refused, DatabaseFactory(settings) as db:
        db.create_tables()
        with db.get_session() as session:
            session.add(ApiCredential(account_id="nobody", api_key_id="k", api_secret="canary-secret"))
    assert "canary-secret" not in str(refused.value)


# Files


def test_a_sqlite_file_is_private_and_its_folder_is_made(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask, for the log beside it too; a file that exists keeps its mode."""
    path = tmp_path / "deep" / "folder" / "bots.db"
    mask = os.umask(0o022)
    try:
        with DatabaseFactory(f"sqlite:///{path}") as db:
            db.create_tables()
            with db.get_session() as session:
                session.add(User(username="ann"))
            files = sorted(path.parent.iterdir())
            assert [file.name for file in files] == ["bots.db", "bots.db-shm", "bots.db-wal"]
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        path.chmod(0o640)
        with DatabaseFactory(f"sqlite:///{path}") as db, db.get_session() as session:
            session.scalars(select(User)).all()
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(mask)


def test_a_later_change_of_folder_does_not_move_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path counts from where the engine was made."""
    (tmp_path / "elsewhere").mkdir()
    with DatabaseFactory("sqlite:///bots.db") as db:
        db.create_tables()
        monkeypatch.chdir(tmp_path / "elsewhere")
        db.engine.dispose()
        with db.get_session() as session:
            session.add(User(username="ann"))
    assert (tmp_path / "bots.db").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_sqlite_file_is_opened_as_decided(tmp_path: Path) -> None:
    """WAL, foreign keys, full synchronization, a busy timeout, and deleted content overwritten."""
    settings = DatabaseSettings(db_name=str(tmp_path / "x.db"), sqlite_busy_timeout=7, _env_file=None)
    with DatabaseFactory(settings) as db, db.engine.connect() as connection:
        found = {
            name: connection.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout", "secure_delete")
        }
        assert found == {
            "journal_mode": "wal",
            "foreign_keys": 1,
            "synchronous": 2,
            "busy_timeout": 7000,
            "secure_delete": 1,
        }
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection)
        assert driver.isolation_level is None


# Processes


def _count_up(barrier: Any, url: str, times: int) -> None:
    with DatabaseFactory(url) as db:
        barrier.wait()
        for _ in range(times):
            with db.get_session() as session:
                user = session.execute(select(User).with_for_update()).scalar_one()
                user.email = str(int(user.email or 0) + 1)


def test_no_update_is_lost_between_processes(shared_db: DatabaseFactory) -> None:
    """Four processes that each read, add one and write 25 times count to a hundred."""
    with shared_db.get_session() as session:
        session.add(User(username="counter", email="0"))
    url = shared_db.settings.get_database_url()
    shared_db.close()
    assert in_processes(4, _count_up, url, 25) == [0] * 4
    with shared_db.get_session() as session:
        assert session.scalars(select(User.email)).one() == "100"


def test_a_forked_child_has_connections_of_its_own(shared_db: DatabaseFactory) -> None:
    """Four children and their parent query at once through one factory; every answer is right, all connections live."""
    with shared_db.get_session() as session:
        session.execute(insert(PublicTrade), [trade_values(number) for number in range(50)])

    def ask(times: int) -> int:
        wrong = 0
        for number in range(times):
            with shared_db.get_session(read_only=True) as session:
                wanted = trade_values(number % 50)["trade_id"]
                found = session.scalar(select(PublicTrade.trade_id).where(PublicTrade.trade_id == wanted))
                wrong += found != wanted
        return wrong

    assert ask(5) == 0
    children = []
    for _ in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking with threads
            pid = os.fork()
        if pid == 0:
            try:
                with shared_db.get_session() as session:
                    session.add(User(username=f"child-{os.getpid()}"))
                os._exit(min(ask(50), 100))
            except BaseException:  # noqa: BLE001 # whatever it is, a child must not go on as a second pytest
                os._exit(101)
        children.append(pid)
    assert ask(50) == 0
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0, 0, 0, 0]
    assert ask(5) == 0
    with shared_db.get_session() as session:
        assert session.scalar(select(func.count(User.user_id))) == 4


# The process-wide factory


def test_the_process_wide_factory_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """get_db() gives the same factory to everybody; init_db() makes it from settings, schema included."""
    monkeypatch.setattr(database, "_default", None)
    assert get_db() is get_db()
    assert list(tmp_path.iterdir()) == []
    fresh = database.init_db(f"sqlite:///{tmp_path}/fresh.db")
    assert get_db() is fresh
    with get_db().get_session() as session:
        assert session.scalars(select(User)).all() == []
    fresh.close()


def test_base_metadata_is_all_that_is_created(empty_postgresql_url: Any) -> None:
    """create_tables() makes the tables of the metadata, and drop_tables() leaves foreign ones alone."""
    with DatabaseFactory(empty_postgresql_url) as db:
        with db.engine.begin() as connection:
            connection.execute(text("CREATE TABLE somebody_elses (x INTEGER)"))
        db.create_tables()
        assert set(inspect(db.engine).get_table_names()) >= {*Base.metadata.tables, "somebody_elses"}
        db.drop_tables()
        assert "somebody_elses" in inspect(db.engine).get_table_names()
