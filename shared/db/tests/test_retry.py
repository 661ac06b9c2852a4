"""A transaction that failed for the moment is run again, and only such a one."""

from __future__ import annotations

import asyncio
import inspect
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import URL, event, func, select, text, update
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from shared.db import (
    AuthenticationError,
    CommitUnknownError,
    ConnectionLostError,
    ConstraintError,
    DatabaseCorruptError,
    DatabaseFactory,
    DatabaseFailure,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseMovedError,
    DatabaseReadOnlyError,
    DatabaseSettings,
    DatabaseUnreachableError,
    InvalidValueError,
    PublicTrade,
    PublicTradeRepository,
    Run,
    ServerReadOnlyError,
    Strategy,
    TenantScopeError,
    TooManyConnectionsError,
    TransactionAbandonedError,
    TransactionConflictError,
    User,
    UserSession,
    async_door,
)
from shared.db.retry import Caller, until_done
from shared.db.tests.cutting_proxy import CuttingProxy, When
from shared.db.tests.support import (
    backend_of,
    in_children,
    in_threads,
    run_on_server,
    trade_values,
    two_runs,
    usernames,
)


@pytest.fixture
def server(postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """A PostgreSQL database with the schema."""
    with DatabaseFactory(postgresql_url) as factory:
        yield factory


@pytest.fixture
def proxy(postgresql_url: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CuttingProxy]:
    """The way to the same database through a proxy that cuts."""
    with CuttingProxy(postgresql_url, tmp_path_factory.mktemp("p")) as proxy:
        yield proxy


class Counted:
    """Work that counts how often it is run; `at` maps a run's number to what happens before it."""

    def __init__(self, work: Callable[[Session], Any], at: dict[int, Callable[[Session], Any]] | None = None) -> None:
        self.runs = 0
        self._work, self._at = work, at or {}

    def __call__(self, session: Session) -> Any:
        """Run it."""
        self.runs += 1
        if self.runs in self._at:
            self._at[self.runs](session)
        return self._work(session)


def add_ann(session: Session) -> str:
    """Store a user."""
    session.add(User(username="ann", user_id="ann"))
    session.flush()
    return "ann"


def users(db: DatabaseFactory) -> int:
    """How many users there are."""
    with db.get_session(read_only=True) as session:
        return session.scalars(select(func.count()).select_from(User)).one()


def end_connection(url: URL) -> Callable[[Session], None]:
    """What ends the connection of a session, as an administrator does."""

    def end(session: Session) -> None:
        pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        run_on_server(url, f"SELECT pg_terminate_backend({pid}, 10000)")

    return end


# --- without a failure ---------------------------------------------------------------------------------------------


def test_what_the_work_returns_is_returned_once_it_is_committed(db: DatabaseFactory) -> None:
    """One run, committed, its value given back, and objects stay readable."""
    work = Counted(add_ann)
    assert db.run_in_transaction(work) == "ann"
    assert (work.runs, users(db)) == (1, 1)
    assert db.run_in_transaction(lambda session: session.get_one(User, "ann"), read_only=True).username == "ann"


def test_a_user_s_work_is_confined_and_a_forgotten_user_is_refused(db: DatabaseFactory) -> None:
    """`user_id` gives a user's session; an explicit None raises, and nothing is run."""
    two_runs(db, executions=1)

    def work(session: Session) -> list[str]:
        assert isinstance(session, UserSession)
        return [strategy.account.user_id for strategy in session.scalars(select(Strategy))]

    for serializable in (False, True):
        assert db.run_in_transaction(work, user_id="ann", serializable=serializable) == ["ann"]
    nothing = Counted(work)
    with pytest.raises(TenantScopeError):
        db.run_in_transaction(nothing, user_id=None)  # type: ignore[arg-type] # the mistake that is refused
    assert nothing.runs == 0


def test_read_only_work_cannot_write(db: DatabaseFactory) -> None:
    """As in a read-only session."""
    with pytest.raises(DatabaseReadOnlyError):
        db.run_in_transaction(add_ann, read_only=True)


def test_serializable_is_postgresql_s_isolation_for_this_transaction_alone(server: DatabaseFactory) -> None:
    """The next one on the same connection has the server's default again."""
    level = text("SHOW transaction_isolation")
    assert server.run_in_transaction(lambda session: session.scalar(level), serializable=True) == "serializable"
    assert server.run_in_transaction(lambda session: session.scalar(level)) == "read committed"


# --- what is not transient -----------------------------------------------------------------------------------------


def _violates(session: Session) -> None:
    session.execute(text("INSERT INTO users (username) VALUES (NULL)"))


def _fails(session: Session) -> None:
    raise LookupError("the work's own")


@pytest.mark.parametrize(("fail", "kind"), [(_violates, ConstraintError), (_fails, LookupError)])
def test_other_errors_are_raised_at_once(
    db: DatabaseFactory, fail: Callable[[Session], None], kind: type[Exception]
) -> None:
    """A broken rule, or an error of the work itself: one run, the error as it is, nothing written."""
    work = Counted(fail, {1: add_ann})
    with pytest.raises(kind) as caught:
        db.run_in_transaction(work, idempotent=True)
    assert (work.runs, users(db)) == (1, 0)
    assert not hasattr(caught.value, "__notes__")


def test_a_login_or_database_that_does_not_exist_is_not_waited_for(
    postgresql_server: URL, caplog: pytest.LogCaptureFixture
) -> None:
    """What will not get better by itself is said at once."""
    for url, kind in (
        (postgresql_server.set(username="nobody_by_this_name"), AuthenticationError),
        (postgresql_server.set(database="no_database_by_this_name"), DatabaseUnreachableError),
    ):
        with DatabaseFactory(url) as db, pytest.raises(kind):
            db.run_in_transaction(add_ann)
    assert not caplog.records


def test_what_was_committed_inside_is_never_done_again(db: DatabaseFactory, caplog: pytest.LogCaptureFixture) -> None:
    """Work that commits by itself cannot go on after that, so no repetition can double it."""

    def commit_inside(session: Session) -> None:
        add_ann(session)
        session.commit()
        session.execute(text("SELECT 1"))

    work = Counted(commit_inside)
    with pytest.raises(InvalidRequestError):
        db.run_in_transaction(work)
    assert (work.runs, users(db)) == (1, 1)


@pytest.mark.parametrize(("bound", "value"), [("attempts", 0), ("attempts", 1.5), ("max_seconds", -1)])
def test_a_bound_that_makes_no_sense_is_refused(db: DatabaseFactory, bound: str, value: Any) -> None:
    """By its name, before anything is run."""
    work = Counted(add_ann)
    with pytest.raises(InvalidValueError, match=bound):
        db.run_in_transaction(work, **{bound: value})
    assert work.runs == 0


# --- conflicts -----------------------------------------------------------------------------------------------------


def test_the_loser_of_a_deadlock_is_run_again(server: DatabaseFactory) -> None:
    """Both transactions end well, and both did their work once."""
    two_runs(server, executions=1)
    both_hold_one = threading.Barrier(2)
    met: set[int] = set()

    def rename(number: int, session: Session) -> None:
        session.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
        for name in ("ann", "bob")[:: 1 - 2 * number]:
            session.execute(update(User).where(User.user_id == name).values(username=User.username + "!"))
            if number not in met:
                met.add(number)
                both_hold_one.wait(30)

    works = [Counted(partial(rename, number)) for number in range(2)]
    in_threads(2, lambda number: server.run_in_transaction(works[number]))
    assert sum(work.runs for work in works) == 3
    with server.get_session() as session:
        assert sorted(session.scalars(select(User.username))) == ["ann!!", "bob!!"]


def test_a_conflict_that_shows_at_commit_is_known_not_to_be_committed(server: DatabaseFactory) -> None:
    """Each of two transactions has read what the other one writes: the server refuses the later COMMIT, and says so."""
    two_runs(server, executions=1)

    def swap(name: str, session: Session) -> None:
        names = dict(session.execute(select(User.user_id, User.username)).all())
        other = {"ann": "bob", "bob": "ann"}[name]
        session.execute(update(User).where(User.user_id == name).values(username=names[other] + "'"))

    def outer(session: Session) -> None:
        swap("ann", session)
        if work.runs == 1:
            server.run_in_transaction(partial(swap, "bob"), serializable=True)

    work = Counted(outer)
    server.run_in_transaction(work, serializable=True)
    assert work.runs == 2
    with server.get_session() as session:
        assert session.scalars(select(User.username).order_by(User.user_id)).all() == ["ann''", "ann'"]


def test_no_update_is_lost_among_eight_processes(empty_db: DatabaseFactory) -> None:
    """Each reads a number, and writes it back raised by one, without any lock of its own; no error surfaces."""
    empty_db.create_tables()
    empty_db.run_in_transaction(add_ann)

    def count_up(session: Session) -> None:
        user = session.get_one(User, "ann")
        user.email = str(int(user.email or 0) + 1)

    def work(number: int) -> None:
        for _ in range(10):
            empty_db.run_in_transaction(count_up, serializable=True, attempts=100)

    in_children(8, work)
    with empty_db.get_session() as session:
        assert session.get_one(User, "ann").email == "80"


# --- lost connections ----------------------------------------------------------------------------------------------


def test_a_connection_lost_before_commit_is_replaced_and_the_work_done_again(
    server: DatabaseFactory, postgresql_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    """Once more, on a connection of its own, under the same user's policies; the log names no value."""
    two_runs(server, executions=1)
    server.enable_row_security()

    def rename(session: Session) -> Any:
        session.get_one(User, "ann").email = "canary@example.com"
        session.flush()
        return session.execute(text("SELECT current_user")).scalar_one()

    work = Counted(rename, {1: end_connection(postgresql_url)})
    with caplog.at_level(logging.INFO, "shared.db"):
        assert server.run_in_transaction(work, user_id="ann") == server.settings.tenant_role
    assert work.runs == 2
    (record,) = (record for record in caplog.records if record.name == "shared.db")
    assert (record.name, record.levelname) == ("shared.db", "WARNING")
    assert record.getMessage().startswith("ConnectionLostError in attempt 1 of 20")
    assert "canary" not in record.getMessage()
    with server.get_session() as session:
        assert session.get_one(User, "ann").email == "canary@example.com"


def test_a_server_that_is_away_for_a_while_is_waited_for(proxy: CuttingProxy, caplog: pytest.LogCaptureFixture) -> None:
    """The connection breaks, the next ones are refused, and then the work is done."""
    with DatabaseFactory(proxy.url) as db:
        work = Counted(add_ann)
        assert users(db) == 0
        proxy.cut(b"INSERT INTO users", "after")
        proxy.refuse(2)
        assert db.run_in_transaction(work) == "ann"
        assert users(db) == 1
    said = [record.getMessage().partition(" ")[0] for record in caplog.records]
    assert said == ["ConnectionLostError", "DatabaseUnreachableError", "DatabaseUnreachableError"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_without_an_answer_is_not_repeated_unasked(
    when: When, proxy: CuttingProxy, server: DatabaseFactory
) -> None:
    """It took place or not, the client cannot know: the error says so, and the work is run once."""
    with DatabaseFactory(proxy.url) as db:
        proxy.cut(b"COMMIT", when)
        work = Counted(add_ann)
        with pytest.raises(CommitUnknownError) as caught:
            db.run_in_transaction(work)
        assert (caught.value.connection_invalidated, caught.value.transient) == (True, False)
        assert "unknown" in str(caught.value)
        assert work.runs == 1
        assert users(server) == (when == "after")
        # A plain session says the same.
        proxy.cut(b"COMMIT", when)
        with pytest.raises(CommitUnknownError), db.get_session() as session:
            session.add(User(username="bob"))
        assert users(server) == 2 * (when == "after")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_without_an_answer_is_repeated_for_idempotent_work(
    when: When, proxy: CuttingProxy, server: DatabaseFactory
) -> None:
    """Whether it took place or not, the rows are there, once."""
    work = Counted(lambda session: PublicTradeRepository(session).bulk_create(map(trade_values, range(100))))
    with DatabaseFactory(proxy.url) as db:
        proxy.cut(b"COMMIT", when)
        stored = db.run_in_transaction(work, idempotent=True)
    assert work.runs == 2
    assert stored.inserted == (0 if when == "after" else 100)
    with server.get_session() as session:
        assert session.scalar(select(func.count()).select_from(PublicTrade)) == 100


def test_reading_is_always_repeated(proxy: CuttingProxy) -> None:
    """A read-only transaction has nothing that a COMMIT could do twice."""
    work = Counted(lambda session: session.scalars(select(User)).all())
    with DatabaseFactory(proxy.url) as db:
        proxy.cut(b"COMMIT", "after")
        assert db.run_in_transaction(work, read_only=True) == []
    assert work.runs == 2


def test_a_broken_rollback_is_not_taken_for_a_commit(proxy: CuttingProxy) -> None:
    """The connection that breaks while work is undone leaves nothing unknown."""
    with DatabaseFactory(proxy.url) as db:
        users(db)
        proxy.cut(b"ROLLBACK", "before")
        with pytest.raises(ConnectionLostError):
            db.run_in_transaction(_violates, attempts=1)


# --- SQLite --------------------------------------------------------------------------------------------------------

_HOLD_THE_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
print("free", flush=True)
"""


@contextmanager
def locked_file(path: Path) -> Iterator[tuple[DatabaseFactory, Callable[[Session], None]]]:
    """A factory that does not wait, on a file that another process has locked, and what has it let go."""
    with DatabaseFactory(DatabaseSettings(db_name=str(path), sqlite_busy_timeout=0, _env_file=None)) as db:
        db.create_tables()
        holder = subprocess.Popen(
            [sys.executable, "-c", _HOLD_THE_LOCK, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with holder:
            to_holder, from_holder = holder.stdin, holder.stdout
            assert to_holder is not None
            assert from_holder is not None
            assert from_holder.readline() == "held\n"

            def let_go(session: Session) -> None:
                to_holder.write("\n")
                to_holder.flush()
                assert from_holder.readline() == "free\n"

            try:
                yield db, let_go
            finally:
                holder.kill()


def test_a_file_that_another_process_locks_is_waited_for(tmp_path: Path) -> None:
    """Refused at BEGIN, again and again, until the other one is done."""
    with locked_file(tmp_path / "a.db") as (db, let_go):
        work = Counted(add_ann, {3: let_go})
        assert db.run_in_transaction(work) == "ann"
        assert (work.runs, users(db)) == (3, 1)


@pytest.mark.parametrize(("bounds", "runs"), [({"attempts": 3}, 3), ({"max_seconds": 0}, 1)])
def test_there_is_an_end_to_it(bounds: dict[str, Any], runs: int, tmp_path: Path) -> None:
    """After so many attempts, or so many seconds, the failure is raised as it is, with a note."""
    with locked_file(tmp_path / "a.db") as (db, _):
        work = Counted(add_ann)
        with pytest.raises(DatabaseLockedError) as caught:
            db.run_in_transaction(work, **bounds)
    assert work.runs == runs
    assert caught.value.__notes__[0].startswith(f"given up after {runs} attempt")
    assert not isinstance(caught.value.__context__, DatabaseLockedError)


# --- the classes ---------------------------------------------------------------------------------------------------


def test_each_failure_says_whether_it_may_pass() -> None:
    """By its class, apart from what no wait helps against."""
    said = Exception("said")
    passing = [DatabaseLockedError, TransactionConflictError, ConnectionLostError, TooManyConnectionsError]
    staying = [DatabaseFullError, DatabaseCorruptError, DatabaseMovedError, CommitUnknownError, ConstraintError]
    kinds: list[type[DatabaseFailure]] = [*passing, *staying]
    assert [kind for kind in kinds if kind(said).transient] == passing
    words: dict[str, bool] = {
        'connection to server failed: FATAL:  database "x" does not exist': False,
        'could not translate host name "x" to address: Name or service not known': False,
        'could not translate host name "x" to address: Temporary failure in name resolution': True,
        "connection to server failed: FATAL:  the database system is starting up": True,
        "connection to server failed: Connection refused": True,
    }
    failure: type[DatabaseFailure] = DatabaseUnreachableError
    assert {text: failure(Exception(text)).transient for text in words} == words


# asyncio


def test_a_coroutine_is_no_work(lasting: DatabaseFactory) -> None:
    """Nobody would await it, so its transaction would be committed before it has begun."""

    async def work(session: Session) -> None:
        raise AssertionError("it was run")

    coroutine: Any = work  # the type checker would find it as well
    with pytest.raises(InvalidValueError, match="plain function"):
        lasting.run_in_transaction(coroutine)
    with pytest.raises(InvalidValueError, match="plain function"):
        asyncio.run(lasting.arun_in_transaction(coroutine))


def test_the_event_loop_goes_on_while_transactions_run(lasting: DatabaseFactory) -> None:
    """Those of two users side by side, each confined to its own, with the context variables of its task."""
    caller: ContextVar[str] = ContextVar("caller")
    two_runs(lasting)
    goes_on = threading.Event()
    found: list[tuple[str, list[str]]] = []

    def work(session: Session) -> int:
        assert goes_on.wait(10), "the event loop waits for the transaction"
        found.append((caller.get(), list(session.scalars(select(Run.user_id)))))
        return threading.get_ident()

    async def task(user: str) -> int:
        caller.set(user)
        return await lasting.arun_in_transaction(work, user_id=user, read_only=True)

    async def main() -> list[int]:
        tasks = [asyncio.create_task(task(user)) for user in ("ann", "bob")]
        await asyncio.sleep(0)
        goes_on.set()
        return await asyncio.gather(*tasks)

    threads = asyncio.run(main())
    assert threading.get_ident() not in threads
    assert sorted(found) == [("ann", ["ann"]), ("bob", ["bob"])]


def test_an_asynchronous_transaction_is_run_again_and_raises_as_the_other_one(proxy: CuttingProxy) -> None:
    """It takes the same options, and they mean the same."""
    twins = DatabaseFactory.run_in_transaction, DatabaseFactory.arun_in_transaction
    assert inspect.signature(twins[0]) == inspect.signature(twins[1])

    def add(session: Session) -> str:
        user = User(username="alice")
        session.add(user)
        session.flush()
        return user.username

    with DatabaseFactory(proxy.url) as db:
        proxy.cut(b"INSERT", "before")
        assert asyncio.run(db.arun_in_transaction(add)) == "alice"
        proxy.cut(b"INSERT", "before")
        with pytest.raises(ConnectionLostError):
            asyncio.run(db.arun_in_transaction(lambda session: session.add(User(username="bob")), attempts=1))
        proxy.cut(b"COMMIT", "after")
        with pytest.raises(CommitUnknownError):
            asyncio.run(db.arun_in_transaction(lambda session: session.add(User(username="carol"))))
        proxy.cut(b"COMMIT", "before")
        asyncio.run(db.arun_in_transaction(lambda session: session.add(User(username="dave")), idempotent=True))
        level = asyncio.run(
            db.arun_in_transaction(
                lambda session: session.scalar(text("SHOW transaction_isolation")), serializable=True
            )
        )
        assert level == "serializable"
        with pytest.raises(DatabaseReadOnlyError):
            asyncio.run(db.arun_in_transaction(add, read_only=True))


@pytest.mark.parametrize("fails", [False, True])
def test_a_cancelled_task_leaves_no_transaction_running(lasting: DatabaseFactory, fails: bool) -> None:
    """It is cancelled once the transaction is over, which is stored as a whole, or whose error it has for its cause."""
    begun, go_on = threading.Event(), threading.Event()

    def work(session: Session) -> None:
        session.add(User(username="alice"))
        session.flush()
        begun.set()
        assert go_on.wait(10)
        if fails:
            raise RuntimeError("on the way")

    async def main() -> BaseException | None:
        task = asyncio.create_task(lasting.arun_in_transaction(work))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        assert lasting.open_sessions == 1
        go_on.set()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        assert lasting.open_sessions == 0
        return cancelled.value.__cause__

    cause = asyncio.run(main())
    assert isinstance(cause, RuntimeError) is fails
    with lasting.get_session() as session:
        assert session.scalars(select(User.username)).all() == ([] if fails else ["alice"])


@pytest.mark.parametrize("committing", [False, True])
def test_a_cancelled_task_is_answered_within_a_bound(
    lasting: DatabaseFactory, committing: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What has not ended by then is undone, unless its COMMIT is on its way, and the log tells which."""
    monkeypatch.setattr(async_door, "_CANCELLED_WAITS", 0.01)
    begun, go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        begun.set()
        assert go_on.wait(30)

    def work(session: Session) -> None:
        session.add(User(username="alice"))
        if not committing:
            event.listen(session, "after_flush", hold)  # the flush that is part of committing

    if committing:
        event.listen(lasting.engine, "commit", hold)

    async def main() -> BaseException | None:
        task = asyncio.create_task(lasting.arun_in_transaction(work))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        return cancelled.value.__cause__

    assert isinstance(asyncio.run(main()), TransactionAbandonedError)
    go_on.set()
    lasting._async_door._executor.shutdown()  # type: ignore[union-attr] # it was used
    assert [record.getMessage() for record in caplog.records if record.name == "shared.db"] == [
        "the transaction of a cancelled task " + ("has been committed after all" if committing else "was undone")
    ]
    lasting.close()
    assert usernames(lasting) == (["alice"] if committing else [])


def test_a_transaction_that_never_began_is_left_undone(lasting: DatabaseFactory) -> None:
    """A task that is cancelled while it waits for a thread ends at once, and as many run as may have a connection."""
    settings = lasting.settings.model_copy(update={"pool_size": 1, "max_overflow": 0})
    go_on, worked = threading.Event(), []

    def work(session: Session, name: str) -> None:
        worked.append(name)
        assert go_on.wait(30)

    async def main() -> None:
        with DatabaseFactory(settings) as db:
            first = asyncio.create_task(db.arun_in_transaction(partial(work, name="first")))
            while not worked:
                await asyncio.sleep(0.001)
            second = asyncio.create_task(db.arun_in_transaction(partial(work, name="second")))
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await second
            assert cancelled.value.__cause__ is None
            go_on.set()
            await first

    asyncio.run(main())
    assert worked == ["first"]


def test_a_cancelled_task_has_its_transaction_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a repetition."""
    caller, error = Caller(), ConnectionLostError(psycopg2.OperationalError("gone"))
    attempts = []

    def transaction() -> None:
        attempts.append(1)
        caller.is_cancelled.set()
        raise error

    with pytest.raises(ConnectionLostError):
        until_done(transaction, idempotent=False, caller=caller)
    assert len(attempts) == 1


def test_slow_transactions_leave_the_loops_own_threads_alone(lasting: DatabaseFactory) -> None:
    """As many as may have a connection are under way, and the event loop still resolves names."""
    count = lasting.settings.pool_size + lasting.settings.max_overflow
    all_there, go_on = threading.Barrier(count + 1), threading.Event()

    def work(session: Session) -> str:
        all_there.wait(30)
        assert go_on.wait(30)
        return threading.current_thread().name

    async def main() -> list[str]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        tasks = [asyncio.create_task(lasting.arun_in_transaction(work, read_only=True)) for _ in range(count)]
        await asyncio.to_thread(all_there.wait, 30)
        go_on.set()
        return await asyncio.gather(*tasks)

    assert all(name.startswith("shared.db transaction") for name in asyncio.run(main()))
    # A forked child has threads of its own, too.
    assert in_children(1, lambda number: asyncio.run(lasting.arun_in_transaction(lambda session: number))) == [0]


def test_connections_to_a_server_that_became_read_only_are_ended(postgresql_url: URL, postgresql_server: URL) -> None:
    """After a failover the first write ends the whole pool, however it writes, and the next one reaches the primary."""

    def by_statement(session: Session) -> None:
        session.execute(text("UPDATE users SET username = username"))

    def by_object(session: Session) -> None:
        session.add(User(username="alice"))

    def in_bulk(session: Session) -> None:
        PublicTradeRepository(session).bulk_create([trade_values()])

    for write in (by_statement, by_object, in_bulk):
        # What makes a session read-only when it begins, and leaves it so: as a connection to a standby stays one to it.
        run_on_server(
            postgresql_server, f"ALTER DATABASE {postgresql_url.database} SET default_transaction_read_only = on"
        )
        with DatabaseFactory(postgresql_url) as db:
            with db.get_session() as first, db.get_session() as second:
                old = {backend_of(first), backend_of(second)}
            run_on_server(
                postgresql_server, f"ALTER DATABASE {postgresql_url.database} SET default_transaction_read_only = off"
            )
            with pytest.raises(ServerReadOnlyError) as refused, db.get_session() as session:
                write(session)
            assert refused.value.transient
            with db.get_session() as first, db.get_session() as second:
                assert not old & {backend_of(first), backend_of(second)}
                write(first)


def test_a_failover_is_waited_for(postgresql_url: URL, postgresql_server: URL) -> None:
    """run_in_transaction goes on by itself; a session that asked for no more than reading loses no connection."""
    setting = f"ALTER DATABASE {postgresql_url.database} SET default_transaction_read_only = "
    run_on_server(postgresql_server, setting + "on")
    with DatabaseFactory(postgresql_url) as db:
        with db.get_session(read_only=True) as session:
            backend = backend_of(session)
        run_on_server(postgresql_server, setting + "off")
        with pytest.raises(DatabaseReadOnlyError) as refused, db.get_session(read_only=True) as session:
            session.add(User(username="alice"))
        assert not isinstance(refused.value, ServerReadOnlyError)
        with db.get_session(read_only=True) as session:
            assert backend_of(session) == backend
        db.run_in_transaction(lambda session: session.add(User(username="alice")))
        assert usernames(db) == ["alice"]
