"""`DatabaseFactory`: engine, sessions, who commits, schema.

Nothing is opened before it is needed, and nothing at import. What differs between SQLite and PostgreSQL in
connecting and in beginning a transaction is here and nowhere else.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import psycopg2.extensions
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import QueuePool, StaticPool

from shared.db import audit, forking, round_trips, schema_version
from shared.db.bulk import sql_functions
from shared.db.column_types import register_sqlite_functions
from shared.db.encryption import encryption_from, use_encryption
from shared.db.errors import RowSecurityError, hide_row, typed_failure
from shared.db.hidden import HiddenText
from shared.db.models import Base
from shared.db.settings import DatabaseSettings, settings_from
from shared.db.tenancy import confined_sql, row_security
from shared.db.tenancy.guard import UNSET, UserId, checked_user_id
from shared.db.tenancy.row_security import RowSecurityStatus
from shared.db.tenancy.session_scope import TenantRequiredSession, UserSession

_READ_ONLY = "shared_db_read_only"
_CONNECT_TIMEOUT = 10


class DatabaseFactory:
    """The way to one database: its engine, its sessions and its schema.

    Takes settings, a database URL, or nothing (settings from the environment). Safe to share between threads;
    usable as a context manager, which closes it. After a fork the child opens connections of its own.

    Raises `SettingsError` for settings that cannot be used. Connecting happens later, and its failures are
    `DatabaseFailure`s.
    """

    def __init__(self, settings: DatabaseSettings | URL | str | None = None) -> None:
        self.settings = settings_from(settings)
        self._encryption = encryption_from(self.settings)
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._read_only_engine: Engine | None = None
        self._folder: str | None = None
        self._session_factory: sessionmaker[Session] | None = None
        self._open_sessions = 0
        self._policies_installed: bool | None = None
        _factories.add(self)

    def __repr__(self) -> str:
        return f"<DatabaseFactory {self.settings.safe_url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine, made on first use."""
        if self._engine is None:
            with self._lock:
                if self._engine is None:
                    if self._folder is None and self.settings.is_sqlite:
                        # What a relative path counts from, for good: a later chdir must not open a second, empty
                        # database, not even after close().
                        self._folder = os.getcwd()
                    engine = _make_engine(self.settings, self._folder or "")
                    if self._encryption is not None:
                        use_encryption(engine.dialect, self._encryption)
                    self._read_only_engine = engine.execution_options(**{_READ_ONLY: True})
                    self._engine = engine
        return self._engine

    @property
    def session_factory(self) -> sessionmaker[Session]:
        """The sessionmaker behind `get_session()`. Its objects stay readable after commit and close."""
        if self._session_factory is None:
            engine = self.engine
            with self._lock:
                if self._session_factory is None:
                    kind = TenantRequiredSession if self.settings.require_tenant else Session
                    sessions = sessionmaker(engine, class_=kind, expire_on_commit=False)
                    audit.watch(sessions)
                    self._session_factory = sessions
        return self._session_factory

    @contextmanager
    def get_session(self, *, user_id: UserId = UNSET, read_only: bool = False) -> Iterator[Session]:
        """A session that commits when the block ends, rolls back when it raises, and is closed either way.

        With `user_id` nothing of another user can be read or written in it (`TenantViolation`); None, or what
        cannot be a user id, raises `TenantScopeError`. Left out, it is a plain session, which sees everything.

        With `read_only=True` every write is refused (`DatabaseReadOnlyError`), and on SQLite the session never
        waits for a writer nor makes one wait. There all its reads see one moment; on PostgreSQL each sees what was
        committed when it began, as in any session, unless a stricter isolation level is asked for. A repository's
        read there takes one round trip and leaves no transaction open.
        """
        engine = self.engine
        session = self._new_session(user_id, self._read_only_engine if read_only else engine)
        with self._lock:
            overlap = self._open_sessions > 0 and isinstance(engine.pool, StaticPool)
            self._open_sessions += 1
        try:
            if overlap:
                warnings.warn(
                    "two open sessions on one in-memory SQLite share a single transaction: closing one undoes what "
                    "the other has not committed; use one session at a time, or a file",
                    stacklevel=3,
                )
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            with self._lock:
                self._open_sessions -= 1
            session.close()

    def _new_session(self, user_id: UserId, bind: Engine | None) -> Session:
        factory = self.session_factory
        if user_id is UNSET:
            return factory(bind=bind)
        user_id = checked_user_id(user_id)
        if self._policies_installed is None:
            with self.engine.connect() as connection:
                self._policies_installed = connection.dialect.name == "postgresql" and row_security.is_installed(
                    connection
                )
        adopt = (self.settings.tenant_role, user_id) if self._policies_installed else None
        return UserSession(**(factory.kw | {"bind": bind}), user_id=user_id, adopt=adopt)

    def enable_row_security(self) -> None:
        """Have PostgreSQL confine users' sessions too: create the role and the policies, or renew them.

        Processes that are running take notice when they start again. Raises `RowSecurityError` on SQLite, and
        where the login may not create the role: then the message has the statements for an administrator.
        """
        with self._row_security_transaction() as connection:
            row_security.enable(connection, self.settings.tenant_role)

    def disable_row_security(self) -> None:
        """Drop the policies; the role stays. Users' sessions are still confined by the ORM's side."""
        with self._row_security_transaction() as connection:
            row_security.disable(connection)

    def row_security_status(self) -> RowSecurityStatus:
        """Whether the policies are in place, and every way in which they differ from the code's."""
        role = self.settings.tenant_role
        with self.engine.connect() as connection:
            if connection.dialect.name != "postgresql":
                return RowSecurityStatus(supported=False, enabled=False, role=role)
            return row_security.status(connection, role)

    def enable_audit(self) -> None:
        """Keep an audit log from now on: create its table, and have every session of a factory write to it.

        Processes that are running take notice when they start again. Nothing happens if it is there already.
        """
        with self._schema_transaction() as connection:
            secured = connection.dialect.name == "postgresql" and row_security.is_installed(connection)
            audit.create(connection)
            if secured:
                row_security.enable(connection, self.settings.tenant_role)

    @contextmanager
    def _row_security_transaction(self) -> Iterator[Connection]:
        if self.engine.dialect.name != "postgresql":
            raise RowSecurityError("SQLite has no row-level security; users' sessions are confined without it there")
        with self._schema_transaction() as connection:
            yield connection
        self._policies_installed = None

    def create_tables(self) -> bool:
        """Create what is missing of the schema; True if anything was. Any number of processes may call it at once.

        Raises `SchemaVersionError` for a database with the tables of an older, newer or unknown schema.
        """
        with self._schema_transaction() as connection:
            if not schema_version.must_create(connection):
                return False
            Base.metadata.create_all(connection)
            schema_version.stamp(connection, schema_version.SCHEMA_REVISION)
            return True

    def check_schema(self) -> None:
        """Make sure, at start-up, that the schema is the one this code was written for.

        Raises `SchemaVersionError`, which names both revisions and the command to run, if it is older, newer,
        unknown or not there. Needs no Alembic.
        """
        engine = self.engine
        with (self._read_only_engine or engine).connect() as connection:
            problem = schema_version.difference(connection)
        if problem is not None:
            raise problem

    def drop_tables(self) -> None:
        """Drop every table of this library, with all rows (for tests)."""
        with self._schema_transaction() as connection:
            audit.drop(connection)
            Base.metadata.drop_all(connection)
            schema_version.VERSION_TABLE.drop(connection, checkfirst=True)

    def close(self) -> None:
        """Close every pooled connection. The factory stays usable and opens new ones when asked."""
        with self._lock:
            engine, self._engine, self._session_factory = self._engine, None, None
            self._policies_installed = None
        if engine is not None:
            engine.dispose()

    @contextmanager
    def _schema_transaction(self) -> Iterator[Connection]:
        # Two creators that both find a table missing both create it, and all but one fail: one at a time.
        # SQLite needs no lock of its own here, its transactions begin IMMEDIATE.
        with self.engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                schema_version.lock_schema(connection)
            yield connection


audit.watch(UserSession)

_factories: weakref.WeakSet[DatabaseFactory] = weakref.WeakSet()


def _renew_locks_after_fork() -> None:
    # Another thread of the parent may have held them, and that thread is not here to let go.
    global _default_lock
    _default_lock = threading.Lock()
    for factory in list(_factories):
        factory._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks_after_fork)

_default: DatabaseFactory | None = None
_default_lock = threading.Lock()


def get_db() -> DatabaseFactory:
    """The process-wide factory, made from the environment on first use (or by `init_db`)."""
    global _default
    with _default_lock:
        if _default is None:
            _default = DatabaseFactory()
        return _default


def init_db(settings: DatabaseSettings | URL | str | None = None) -> DatabaseFactory:
    """Make the process-wide factory from `settings`, create missing tables, and return it.

    A factory made earlier is closed first.
    """
    global _default
    fresh = DatabaseFactory(settings)
    try:
        fresh.create_tables()
    except BaseException:
        fresh.close()
        raise
    with _default_lock:
        previous, _default = _default, fresh
    if previous is not None:
        previous.close()
    return fresh


def _make_engine(settings: DatabaseSettings, folder: str) -> Engine:
    # hide_parameters: neither echo_sql nor an error text may show a secret that is being stored.
    common: dict[str, Any] = {"echo": settings.echo_sql, "hide_parameters": True}
    pool: dict[str, Any] = {
        "poolclass": QueuePool,
        "pool_size": settings.pool_size,
        "max_overflow": settings.max_overflow,
        "pool_timeout": settings.pool_timeout,
    }
    if not settings.is_sqlite:
        url = settings.url
        engine = create_engine(
            url,
            **common,
            **pool,
            pool_recycle=settings.pool_recycle,
            pool_pre_ping=settings.pool_pre_ping,
            connect_args={
                **_unless_in_url(url, application_name=settings.application_name, connect_timeout=_CONNECT_TIMEOUT),
                # In place of the URL's, which a traceback with its frames' variables would show.
                **({} if url.password is None else {"password": HiddenText(url.password)}),
            },
        )
        event.listen(engine, "do_connect", _connect_postgresql)
        event.listen(engine, "begin", _begin_postgresql)
        event.listen(engine, "checkin", _write_again)
        round_trips.spare(engine)
        forking.protect(engine)
    elif settings.is_memory:
        engine = create_engine(settings.url, **common, poolclass=StaticPool, connect_args={"check_same_thread": False})
        event.listen(engine, "connect", _on_connect_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(
            _prepared_file(settings.url, folder),
            **common,
            **pool,
            connect_args={"check_same_thread": False}
            | _unless_in_url(settings.url, timeout=settings.sqlite_busy_timeout),
        )
        forking.protect(engine)
        event.listen(engine, "connect", _on_connect_sqlite)
        event.listen(engine, "connect", _on_connect_sqlite_file)
        event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "handle_error", _name_failure)
    confined_sql.confine(engine)
    return engine


def _unless_in_url(url: URL, **options: Any) -> dict[str, Any]:
    """The driver's options, without those that the URL's query sets: that was written for this one database."""
    return {key: value for key, value in options.items() if key not in url.query}


def _connect_postgresql(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> Any:
    try:
        return dialect.connect(*arguments, **options)
    except dialect.loaded_dbapi.Error as error:
        # Without the driver's frames, one of which has the password among its variables.
        raise error.with_traceback(None)  # noqa: B904 # the same error


def _prepared_file(url: URL, folder: str) -> URL:
    """The URL with an absolute path, its folder made, and the file readable by its owner alone."""
    assert url.database is not None
    if url.database.startswith("file:"):
        return url  # a SQLite URI says itself where and how to open
    path = os.path.abspath(os.path.join(folder, os.path.expanduser(url.database)))
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # Created here, since SQLite would give it the umask's mode; -wal and -shm take over the file's. Never opened
        # if it is there already: closing it would drop every lock that this process holds on it, and another process
        # would delete the write-ahead log under our open connections.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError:
        pass  # it is there; or connecting says what is wrong with the path, as SQLite sees it and with a remedy
    return url.set(database=path)


def _on_connect_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    # The driver must not begin transactions by itself: it does so only before a write, deferred, and then a
    # read-modify-write loses updates (889 of 960 with 16 processes). `_begin_sqlite` does it.
    connection.isolation_level = None
    register_sqlite_functions(connection)
    sql_functions.register(connection)
    connection.execute("PRAGMA foreign_keys=ON")
    # Deleted secrets are overwritten, not just unlinked.
    connection.execute("PRAGMA secure_delete=ON")


def _on_connect_sqlite_file(connection: sqlite3.Connection, record: Any) -> None:
    # WAL: readers and the writer do not block each other. Asked first, since switching takes an exclusive lock.
    # mmap_size is left alone: with it, SQLite's rare WAL-reset race has corrupted files.
    deadline = time.monotonic() + connection.execute("PRAGMA busy_timeout").fetchone()[0] / 1000
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            # Where the file system has no shared memory SQLite keeps the mode it had: slower, as safe.
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            # Several processes that open a new file at once switch at once, and SQLite does not wait here.
            if error.sqlite_errorname == "SQLITE_READONLY":
                break
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    # NORMAL may lose the last commits when the power fails.
    connection.execute("PRAGMA synchronous=FULL")


def _begin_postgresql(connection: Connection) -> None:
    # In place of SQLAlchemy's own option `postgresql_readonly`, whose handling takes as long as a round trip.
    if connection.get_execution_options().get(_READ_ONLY):
        driver: Any = connection.connection.dbapi_connection
        driver.readonly = True  # psycopg2 sends BEGIN READ ONLY before the first statement


def _write_again(connection: Any, record: Any) -> None:
    # Not one that was lost, nor one of the parent's after a fork.
    if isinstance(connection, psycopg2.extensions.connection) and not connection.closed and connection.readonly:
        connection.readonly = None


def _begin_sqlite(connection: Connection) -> None:
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection)
    if driver.in_transaction:
        return  # another session on the same in-memory database has begun already
    read_only = bool(connection.get_execution_options().get(_READ_ONLY))
    if read_only != connection.info.get(_READ_ONLY, False):
        driver.execute(f"PRAGMA query_only={'ON' if read_only else 'OFF'}")
        connection.info[_READ_ONLY] = read_only
    # IMMEDIATE takes the write lock first, under the busy timeout. A transaction that reads first and asks for
    # the lock later is refused at once, timeout or not, when somebody has written in between.
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _name_failure(context: ExceptionContext) -> BaseException | None:
    if context.is_pre_ping:
        return None  # the pool knows the driver's own error, and replaces the connection
    hide_row(context.original_exception, context.sqlalchemy_exception)
    return row_security.violation_of(context) or typed_failure(context.original_exception)
