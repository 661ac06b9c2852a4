"""`DatabaseFactory`: engine, sessions, who commits, schema.

Nothing is opened before it is needed, and nothing at import.
"""

from __future__ import annotations

import inspect
import os
import threading
import warnings
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from shared.db import audit, commits, database_file, forking, retry, schema_version
from shared.db.asking import asked_by
from shared.db.async_door import AsyncDoor, AsyncSession
from shared.db.commits import OnCommit
from shared.db.dialects import port_of
from shared.db.encryption import encryption_from, use_encryption
from shared.db.engine.make import as_read_only, make_engine
from shared.db.engine.replica import Replica, Wanted
from shared.db.errors import (
    CommitUnknownError,
    DatabaseFailure,
    DatabaseMissingError,
    InvalidValueError,
    RowSecurityError,
    SchemaVersionError,
    SettingsError,
    TransactionAbandonedError,
)
from shared.db.health.look import encoding_problem, look, with_stores
from shared.db.health.report import Health
from shared.db.sessions import NamingSession
from shared.db.settings import DatabaseSettings, settings_from
from shared.db.tenancy import row_security, row_security_check
from shared.db.tenancy.guard import ProvedBefore
from shared.db.tenancy.row_security_check import RowSecurityStatus
from shared.db.tenancy.session_scope import TenantRequiredSession, UserSession
from shared.db.tenancy.user_ids import UNSET, UserId, checked_user_id

T = TypeVar("T")


class _Engines(NamedTuple):
    """The engine, the same with transactions that only read, and what makes sessions. One pool serves them all.

    And the standby with a pool of its own, where there is one.
    """

    writing: Engine
    reading: Engine
    sessions: sessionmaker[Session]
    replica: Replica | None


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
        self._async_door = AsyncDoor(self.settings)
        self._engines: _Engines | None = None
        self._file_is_made = False
        self._folder: str | None = None
        self._open_sessions = 0
        self._policies_installed: bool | None = None
        self._proved_before = ProvedBefore()
        self._on_commit: list[OnCommit] = []
        self._stores: dict[str, Callable[[], bool]] = {}
        _factories.add(self)

    def __repr__(self) -> str:
        try:
            return f"<DatabaseFactory {self.settings.safe_url}>"
        except SettingsError as error:
            return f"<DatabaseFactory without a database: {error}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine, made on first use, and with it the file of an SQLite database.

        With the setting `read_only` its transactions cannot write, and no file is made.
        """
        return self._engine_for(read_only=False)

    @property
    def session_factory(self) -> sessionmaker[Session]:
        """The sessionmaker behind `get_session()`. Its objects stay readable after commit and close."""
        self._engine_for(read_only=False)
        return self._opened().sessions

    def _engine_for(self, *, read_only: bool) -> Engine:
        """The engine for sessions that only read, which never make a file, or for all others."""
        opened = self._opened()
        if read_only or self.settings.read_only:
            if not self._file_is_made:
                database_file.require(opened.writing.url)
            return opened.reading
        if not self._file_is_made:
            database_file.make(opened.writing.url)
            self._file_is_made = True
        return opened.writing

    def _opened(self) -> _Engines:
        if self._engines is None:
            with self._lock:
                if self._engines is None:
                    self._engines = self._open()
        return self._engines

    def _open(self) -> _Engines:
        settings = self.settings
        if self._folder is None and settings.is_sqlite:
            # What a relative path counts from, for good: a later chdir must not open a second, empty database, not
            # even after close().
            self._folder = os.getcwd()
        writing = make_engine(settings, self._folder or "")
        url = settings.replica
        replica = None if url is None else Replica(settings, self._folder or "", url)
        if self._encryption is not None:
            for engine in (writing, *([replica.engine] if replica else [])):
                use_encryption(engine.dialect, self._encryption)
        reading = as_read_only(writing)
        kind: type[Session] = TenantRequiredSession if settings.require_tenant else NamingSession
        sessions = sessionmaker(
            reading if settings.read_only else writing,
            class_=kind,
            expire_on_commit=False,
            info={commits.CALLBACKS: self._on_commit},
        )
        audit.watch(sessions)
        self._file_is_made = not settings.is_sqlite or settings.is_memory
        return _Engines(writing, reading, sessions, replica)

    @property
    def open_sessions(self) -> int:
        """How many sessions of `get_session()` are open now in this process."""
        return self._open_sessions

    def write_position(self) -> str | None:
        """Where the server's log stands, for `get_session(read_only=True, after=...)`: ask for it after a COMMIT.

        All that was committed before is before it. None on databases that have no standby here.
        """
        with self._engine_for(read_only=True).connect() as connection:
            return port_of(connection).write_position(connection)

    @contextmanager
    def get_session(
        self,
        *,
        user_id: UserId = UNSET,
        read_only: bool = False,
        max_staleness: float | None = None,
        after: str | None = None,
    ) -> Iterator[Session]:
        """A session that commits when the block ends, rolls back when it raises, and is closed either way.

        With `user_id` nothing of another user can be read or written in it (`TenantViolation`); None, or what
        cannot be a user id, raises `TenantScopeError`. Left out, it is a plain session, which sees everything.

        With `read_only=True`, or the setting of that name, every write is refused (`DatabaseReadOnlyError`), and on
        SQLite the session never waits for a writer nor makes one wait, and makes no file. There all its reads see one
        moment; on PostgreSQL each sees what was committed when it began, as in any session, unless a stricter isolation
        level is asked for. A repository's read there takes one round trip and leaves no transaction open.

        Where `replica_url` is set, sessions that only read ask that standby: if its answers are at most `max_staleness`
        seconds old (the setting of that name, where neither is given; 0: never), and hold what was committed before
        `after`, which `write_position()` gave. Else, and where it cannot be reached, they ask the primary. Where it
        fails in the midst, the error is transient and the next session asks the primary. `InvalidValueError` for either
        of the two in a session that writes. Without a standby every answer is new.
        """
        read_only = read_only or self.settings.read_only
        if not read_only and (max_staleness is not None or after is not None):
            raise InvalidValueError("max_staleness and after are for sessions that only read: pass read_only=True")
        engine = self._engine_for(read_only=read_only)
        replica = self._opened().replica if read_only else None
        standby = None
        if replica is not None or max_staleness is not None or after is not None:
            wanted = Wanted.of(max_staleness, after, self.settings.max_staleness)
            standby = None if replica is None else replica.connection(wanted)
        session = self._new_session(engine if standby is None else standby, user_id)
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
            # A transaction begun for nothing would have all that was loaded looked at again.
            if session.in_transaction():
                session.commit()
        except BaseException as error:
            session.rollback()
            if isinstance(error, CommitUnknownError):
                commits.tell(session)
            if replica is not None and standby is not None and isinstance(error, DatabaseFailure) and error.transient:
                replica.leave(error)
            raise
        finally:
            with self._lock:
                self._open_sessions -= 1
            session.close()
            if standby is not None:
                standby.close()

    def run_in_transaction(
        self,
        work: Callable[[Session], T],
        *,
        user_id: UserId = UNSET,
        read_only: bool = False,
        serializable: bool = False,
        idempotent: bool = False,
        attempts: int = retry.ATTEMPTS,
        max_seconds: float = retry.MAX_SECONDS,
        max_staleness: float | None = None,
        after: str | None = None,
    ) -> T:
        """What `work(session)` returns, committed; run again, whole, when it failed for a reason that may pass.

        That is: a deadlock or serialization failure, a connection lost before COMMIT, a server that restarts, an
        SQLite file that stays locked. So `work` may run several times: it makes its objects inside, has no effects
        outside of the session, and neither commits nor rolls back. After a random, growing wait, at most `attempts`
        times and within `max_seconds`; then, and for every other error, the error is raised as it is.

        A connection that breaks during COMMIT leaves open whether it took place: `CommitUnknownError`, unless
        `idempotent=True` declares that doing it twice is the same as once (`bulk_create` that skips duplicates).

        With `serializable=True` PostgreSQL too runs it as if nobody else were at work (SQLite's writers always do):
        what was read holds until COMMIT, without a lock in any statement; only the primary can do that. `user_id`,
        `read_only`, `max_staleness` and `after` as in `get_session()`.
        """
        fresh = (max_staleness, after)
        return self._transaction(work, user_id, read_only, fresh, serializable, idempotent, attempts, max_seconds)

    async def arun_in_transaction(
        self,
        work: Callable[[Session], T],
        *,
        user_id: UserId = UNSET,
        read_only: bool = False,
        serializable: bool = False,
        idempotent: bool = False,
        attempts: int = retry.ATTEMPTS,
        max_seconds: float = retry.MAX_SECONDS,
        max_staleness: float | None = None,
        after: str | None = None,
    ) -> T:
        """`run_in_transaction` for asyncio: in a thread, so that the event loop goes on meanwhile.

        `work` is a plain function all the same, and has the caller's context variables. As many run at once as this
        factory may open connections, in threads of its own.

        A task that is cancelled waits for the transaction to end, and is cancelled then: what it was given to do is
        stored, or failed with the error that is the cancellation's cause. After 10 seconds it waits no longer, and the
        cause is a `TransactionAbandonedError`: the transaction is undone, unless its COMMIT was on its way, which the
        log of `shared.db` tells.
        """
        fresh = (max_staleness, after)
        return await self._async_door.run(
            partial(self._transaction, work, user_id, read_only, fresh, serializable, idempotent, attempts, max_seconds)
        )

    def get_async_session(
        self,
        *,
        user_id: UserId = UNSET,
        read_only: bool = False,
        max_staleness: float | None = None,
        after: str | None = None,
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """`get_session` for asyncio: `async with db.get_async_session(...) as session`, and `await` what it does.

        It is the same session, in a thread of this factory for as long as the block lasts, with the context variables
        of its beginning. As many are open at once as there may be connections; others wait, and raise
        `PoolExhaustedError` when none of those ended for `pool_timeout` seconds. A task that is cancelled waits for
        what the session is doing, then undoes it all, and is cancelled; after 10 seconds as in `arun_in_transaction`.
        """
        return self._async_door.session(
            partial(self.get_session, user_id=user_id, read_only=read_only, max_staleness=max_staleness, after=after)
        )

    async def arun(
        self,
        question: Callable[..., T],
        *args: Any,
        user_id: UserId = UNSET,
        read_only: bool = False,
        **options: Any,
    ) -> T:
        """What a repository's method gives, such as `RunRepository.get_running`, in a transaction of its own.

        `await db.arun(RunRepository.get_running, user_id="alice", read_only=True)` is short for `arun_in_transaction`
        with `lambda session: RunRepository(session).get_running()`; what else is given goes to the method. Raises
        `InvalidValueError` for a method that several repositories have, as `get_by_id` is: that needs the long form.
        """
        return await self.arun_in_transaction(
            asked_by(question, *args, **options), user_id=user_id, read_only=read_only
        )

    async def aiter(
        self, question: Callable[..., Iterable[T]], *args: Any, user_id: UserId = UNSET, **options: Any
    ) -> AsyncGenerator[T]:
        """The rows of a repository's method, such as `PublicTradeRepository.iter_symbol_range`, one after the other.

        `async for trade in db.aiter(PublicTradeRepository.iter_symbol_range, "BTCUSDT", start, end)`: they are read as
        they are needed, in a read-only session that is open until the last one, or until `aclose()` of what this gives.
        `InvalidValueError` as for `arun`.
        """
        async with self.get_async_session(user_id=user_id, read_only=True) as session:
            with suppress(GeneratorExit):  # of `aclose()`, which waits for the session's end as the last row does
                async for row in session.aiter(asked_by(question, *args, **options)):
                    yield row

    def _transaction(
        self,
        work: Callable[[Session], T],
        user_id: UserId,
        read_only: bool,
        fresh: tuple[float | None, str | None],
        serializable: bool,
        idempotent: bool,
        attempts: int,
        max_seconds: float,
        caller: retry.Caller | None = None,
    ) -> T:
        if inspect.iscoroutinefunction(work):
            raise InvalidValueError("work must be a plain function: nobody would await a coroutine")

        max_staleness, after = fresh
        if serializable and read_only:
            max_staleness = 0  # a standby cannot

        def transaction() -> T:
            opened = self.get_session(user_id=user_id, read_only=read_only, max_staleness=max_staleness, after=after)
            with opened as session, session.begin():
                if serializable and port_of(self.engine).chooses_isolation:
                    Session.connection(session, execution_options={"isolation_level": "SERIALIZABLE"})
                result = work(session)
                if caller is not None:
                    session.flush()  # which may take its time, too: now there is only COMMIT left
                if caller is not None and caller.has_gone.is_set():
                    raise TransactionAbandonedError("the task that asked for this transaction was cancelled")
                return result

        return retry.until_done(
            transaction,
            idempotent=idempotent or read_only or self.settings.read_only,
            attempts=attempts,
            max_seconds=max_seconds,
            caller=caller,
        )

    def _new_session(self, bind: Engine | Connection, user_id: UserId) -> Session:
        factory = self._opened().sessions
        if user_id is UNSET:
            return factory(bind=bind)
        user_id = checked_user_id(user_id)
        installed = self._policies_installed
        if installed is None:
            with bind.engine.connect() as connection:
                some = self._is_secured(connection)
                installed = some and row_security.is_installed(connection)
                if installed:
                    audit.look(connection)  # before anybody's own SQL could hide the log behind a temporary table
            if installed == some:  # else asked again: the tables that lack their policies may get them
                self._policies_installed = installed
        adopt = (self.settings.tenant_role, user_id) if installed else None
        return UserSession(
            **(factory.kw | {"bind": bind}), user_id=user_id, adopt=adopt, proved_before=self._proved_before
        )

    def enable_row_security(self) -> None:
        """Have PostgreSQL confine users' sessions too: create the role and the policies, or renew them.

        Processes that are running take notice when they start again. Raises `RowSecurityError` on SQLite, and
        where the login may not create the role: then the message has the statements for an administrator. Waits for
        running transactions, and lets others pass meanwhile; `DatabaseLockedError` if it waited half a minute in vain.
        """
        with self._row_security_transaction() as connection:
            row_security.enable(connection, self.settings.tenant_role)

    def disable_row_security(self) -> None:
        """Drop the policies; the role stays. Users' sessions are still confined by the ORM's side.

        That goes for running processes too, from their next transaction on; one that is just beginning may be refused
        (`PermissionDeniedError`) and can be tried again. Waits as enabling does.
        """
        with self._row_security_transaction() as connection:
            row_security.disable(connection, self.settings.tenant_role)

    def row_security_status(self) -> RowSecurityStatus:
        """Whether the policies are in place, and every way in which they differ from the code's."""
        role = self.settings.tenant_role
        with self.engine.connect() as connection:
            if not port_of(connection).has_row_security:
                return RowSecurityStatus(supported=False, enabled=False, role=role)
            return row_security_check.status(connection, role)

    def on_commit(self, callback: OnCommit) -> None:
        """Have `callback` called after each commit of this factory's sessions, recorders included.

        It gets the names of the tables that were written or may have been, those of the rows that went with a deleted
        one included. Also when a COMMIT was not answered, since it may have taken place. It runs in the thread that
        commits, which waits for it; what it raises is logged alone. Not noticed is what goes round the sessions: other
        programs, engines, the commands, and a session's `connection()`.
        """
        commits.watch()
        self._on_commit.append(callback)

    def enable_audit(self, *, actor: str | None = None) -> None:
        """Keep an audit log from now on: every session of a factory writes to it, whichever process it is in.

        That is an entry of the log too, by `actor`, or else by the database's login. Processes that are running take
        notice when they start again. Nothing happens if it is on already. Raises `SchemaVersionError` for a database
        whose tables are not there, or older than the log.
        """
        self._switch_audit(True, actor)

    def disable_audit(self, *, actor: str | None = None) -> None:
        """Write no more entries, after one that says so, as `enable_audit` does. Those that are there stay."""
        self._switch_audit(False, actor)

    def _switch_audit(self, recording: bool, actor: str | None) -> None:
        with self._schema_transaction() as connection:
            problem = schema_version.difference(connection)
            if problem is not None and problem.state in ("empty", "behind"):
                raise problem
            audit.switch(connection, recording, actor or connection.engine.url.username)
        audit.remember(self.engine.dialect, recording)

    def _is_secured(self, connection: Connection) -> bool:
        return port_of(connection).has_row_security and bool(row_security.policed_tables(connection))

    @contextmanager
    def _row_security_transaction(self) -> Iterator[Connection]:
        port = port_of(self.engine)
        if not port.has_row_security:
            raise RowSecurityError(
                f"{port.title} has no row-level security; users' sessions are confined without it there"
            )
        with self._schema_transaction() as connection:
            yield connection
        self._policies_installed = None

    def health(self, *, check: bool = False, timeout: float = 5.0) -> Health:
        """How the database is, and what to do about what is wrong.

        A look on a connection of its own, which writes nothing, creates no file, and ends after `timeout` seconds. A
        database that cannot be reached is a report too, with `reachable=False`. With `check=True` everything is read to
        find damage, which takes its time; without, `integrity` stays "not checked". Stores beside the database that
        `add_store()` named are asked after it, for `timeout` seconds at most.
        """
        engine = None if self._engines is None else self._engines.writing
        if self.settings.is_memory:
            # Its only connection is that of the sessions, and what ends there ends for all.
            engine = None if self._open_sessions else self._engine_for(read_only=True)
        health = look(self.settings, self._folder or os.getcwd(), engine, check=check, timeout=timeout)
        replica = None if self.settings.replica_url is None else self._opened().replica
        stores = self._stores if replica is None else {"replica": replica.answers} | self._stores
        return with_stores(health, stores, timeout)

    def add_store(self, name: str, answers: Callable[[], bool]) -> None:
        """Have `health()` ask a store beside the database too: a cache, metrics, a replica.

        `answers` says whether the store can be used. It is called in a thread of its own; what it raises, or no answer
        within the report's timeout, counts as no. A name that was added before is replaced.
        """
        self._stores[name] = answers

    def create_tables(self) -> bool:
        """Create what is missing of the schema; True if anything was. Any number of processes may call it at once.

        Raises `SchemaVersionError` for a database with the tables of an older, newer or unknown schema. Warns of a
        server that stores text in another encoding than UTF-8.
        """
        with self._schema_transaction() as connection:
            if not schema_version.must_create(connection):
                return False
            problem = encoding_problem(connection)
            if problem is not None:
                warnings.warn(problem, stacklevel=2)
            secured = self._is_secured(connection)
            schema_version.create(connection)
            if secured:
                row_security.enable(connection, self.settings.tenant_role)  # for the new tables, too
            return True

    def check_schema(self) -> None:
        """Make sure, at start-up, that the schema is the one this code was written for.

        Raises `SchemaVersionError`, which names both revisions and the command to run, if it is older, newer,
        unknown or not there. Needs no Alembic.
        """
        try:
            engine = self._engine_for(read_only=True)
        except DatabaseMissingError as error:
            raise SchemaVersionError("empty", None, schema_version.SCHEMA_REVISION) from error
        with engine.connect() as connection:
            problem = schema_version.first_difference(connection)
        if problem is not None:
            raise problem

    def drop_tables(self) -> None:
        """Drop every table of this library, with all rows (for tests)."""
        with self._schema_transaction() as connection:
            schema_version.drop(connection)
        audit.remember(self.engine.dialect, None)

    def close(self) -> None:
        """Close every pooled connection. The factory stays usable and opens new ones when asked."""
        with self._lock:
            engines, self._engines = self._engines, None
            self._policies_installed = None
        self._async_door.close()
        if engines is not None:
            engines.writing.dispose()
            if engines.replica is not None:
                engines.replica.engine.dispose()

    @contextmanager
    def _schema_transaction(self) -> Iterator[Connection]:
        # Two creators that both find a table missing both create it, and all but one fail: one at a time.
        with schema_version.schema_transaction(self.engine) as connection:
            yield connection


audit.watch(UserSession)

_factories: weakref.WeakSet[DatabaseFactory] = weakref.WeakSet()


def _renew_locks() -> None:
    # Another thread of the parent may have held them, and that thread is not here to let go.
    global _default_lock
    _default_lock = threading.Lock()
    for factory in list(_factories):
        factory._lock = threading.Lock()
        factory._async_door.renew()


forking.in_child(_renew_locks)

_default: DatabaseFactory | None = None
_default_lock = threading.Lock()


def get_db() -> DatabaseFactory:
    """The process-wide factory, made from the environment on first use (or by `init_db`)."""
    global _default
    with _default_lock:
        if _default is None:
            _default = DatabaseFactory()
        return _default


def initialize_database(settings: DatabaseSettings | URL | str | None = None) -> DatabaseFactory:
    """A factory of the caller's own, whose missing tables are made; the process-wide one stays as it is."""
    fresh = DatabaseFactory(settings)
    try:
        fresh.create_tables()
    except BaseException:
        fresh.close()
        raise
    return fresh


def init_db(settings: DatabaseSettings | URL | str | None = None) -> DatabaseFactory:
    """Make the process-wide factory from `settings`, create missing tables, and return it.

    A factory made earlier is closed first.
    """
    global _default
    fresh = initialize_database(settings)
    with _default_lock:
        previous, _default = _default, fresh
    if previous is not None:
        previous.close()
    return fresh
