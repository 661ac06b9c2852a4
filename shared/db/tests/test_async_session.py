"""`get_async_session`, `arun` and `aiter`: today's sessions, each in a thread of its own, for coroutines."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import delete, event, func, insert, select, text, update
from sqlalchemy.orm import Session, joinedload, selectinload

from shared.db import (
    AsyncSession,
    AsyncSessionError,
    AuditLog,
    BybitAccount,
    ConnectionLostError,
    ConstraintError,
    DatabaseFactory,
    DatabaseReadOnlyError,
    ForkError,
    InvalidValueError,
    PoolExhaustedError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTradeRepository,
    Run,
    RunRepository,
    TenantScopeError,
    TenantViolation,
    TransactionAbandonedError,
    User,
    async_door,
)
from shared.db.tests.cutting_proxy import CuttingProxy
from shared.db.tests.fleet import everything_of
from shared.db.tests.support import execution_values, in_children, run_script, trade_values, two_runs, usernames
from shared.db.tests.test_retry import proxy  # noqa: F401 # a fixture
from shared.db.tests.test_tenancy_adversarial import _reads, _with_trades, unlinked
from shared.db.tests.test_tenancy_stateful import run_machine
from shared.db.tests.two_users.forms import INSERTS, Form, places
from shared.db.tests.two_users.machine import TwoUsers
from shared.db.tests.two_users.world import World

Attempt = Callable[[AsyncSession], Coroutine[Any, Any, Any]]


async def _in_session(db: DatabaseFactory, attempt: Attempt, **how: Any) -> Any:
    async with db.get_async_session(**how) as session:
        return await attempt(session)


def test_a_session_commits_when_its_block_ends_and_undoes_it_all_when_it_raises(db: DatabaseFactory) -> None:
    """As `get_session()` does; and what is loaded can be read afterwards."""

    async def main() -> User:
        async with db.get_async_session() as session:
            alice = User(username="alice")
            session.add(alice)
            assert alice in session
        with pytest.raises(ZeroDivisionError):
            async with db.get_async_session() as session:
                session.add_all([User(username="bob"), User(username="carol")])
                await session.flush()
                assert await session.scalar(select(func.count()).select_from(User)) == 3
                raise ZeroDivisionError
        assert db.open_sessions == 0
        return alice

    alice = asyncio.run(main())
    assert usernames(db) == [alice.username] == ["alice"]


def test_every_verb_of_a_session_is_there_to_be_awaited(db: DatabaseFactory) -> None:
    """With SQLAlchemy's arguments and answers, read whole: nothing of a result is left to ask the database for."""
    two_runs(db, executions=3)

    async def main() -> None:
        async with db.get_async_session() as session:
            ann = await session.get_one(User, "ann")
            assert await session.get(User, "nobody") is None
            users = (await session.scalars(select(User).options(selectinload(User.runs)).order_by(User.user_id))).all()
            assert [(user is ann, len(user.runs)) for user in users] == [(True, 1), (False, 1)]
            joined = await session.execute(select(Run).options(joinedload(Run.executions)).order_by(Run.run_id))
            assert [len(run.executions) for run in joined.unique().scalars()] == [3, 3]
            assert (await session.execute(select(Run.run_id, Run.status).order_by(Run.run_id))).all()[0] == (
                "run-ann",
                "running",
            )
            assert (await session.execute(text("SELECT username FROM users ORDER BY 1"))).scalars().all() == [
                "ann",
                "bob",
            ]
            changed = await session.execute(update(User).values(email="x@y.z").where(User.user_id == "ann"))
            assert changed.rowcount == 1  # type: ignore[attr-defined] # a CursorResult
            returned = await session.execute(
                insert(User).returning(User.username), [{"username": "dave"}, {"username": "eve"}]
            )
            assert sorted(returned.scalars()) == ["dave", "eve"]
            await session.refresh(ann, ["accounts"])
            assert [account.account_id for account in ann.accounts] == ["acc-ann"]
            merged = await session.merge(User(user_id="bob", username="robert"))
            await session.flush()
            assert merged.username == "robert"
            await session.commit()
            await session.delete(await session.get_one(User, "bob"))
            await session.rollback()
            await session.execute(delete(User).where(User.username.in_(["dave", "eve"])))

    asyncio.run(main())
    assert usernames(db) == ["ann", "robert"]


def test_errors_are_the_same_as_in_a_thread(db: DatabaseFactory) -> None:
    """The database's own by their names, a refused write, a stranger's row, a value that does not fit, no user."""
    two_runs(db, executions=1)

    async def refused(error: type[Exception], attempt: Attempt, **how: Any) -> None:
        with pytest.raises(error):
            await _in_session(db, attempt, **how)

    async def adds(session: AsyncSession) -> None:
        session.add(User(user_id="ann", username="ann"))

    async def main() -> None:
        await refused(ConstraintError, adds)
        await refused(DatabaseReadOnlyError, adds, read_only=True)
        await refused(TenantViolation, lambda s: s.execute(text("SELECT 1")), user_id="ann")
        await refused(TenantViolation, lambda s: s.run_sync(lambda inner: inner.connection()), user_id="ann")
        await refused(TenantScopeError, adds, user_id=None)
        await refused(InvalidValueError, lambda s: s.execute(update(User).values(username="x" * 999)))

    asyncio.run(main())


def test_repositories_bulk_writes_and_ranges_run_as_they_are(db: DatabaseFactory) -> None:
    """By `run_sync`, and `aiter` for rows that are read as they are needed; `db.arun` and `db.aiter` are the short."""
    two_runs(db, executions=1)
    rows = [trade_values(number) for number in range(2_500)]
    first, last = rows[0]["exchange_ts"], rows[-1]["exchange_ts"]

    async def main() -> None:
        async with db.get_async_session() as session:
            written = await session.run_sync(lambda s: PublicTradeRepository(s).bulk_create(rows))
            assert written.inserted == 2_500
            found = [
                trade.trade_id
                async for trade in session.aiter(
                    lambda s: PublicTradeRepository(s).iter_symbol_range("BTCUSDT", first, last)
                )
            ]
            assert found == [row["trade_id"] for row in rows]
        found = [t.trade_id async for t in db.aiter(PublicTradeRepository.iter_symbol_range, "BTCUSDT", first, last)]
        assert found == [row["trade_id"] for row in rows]
        (run,) = await db.arun(RunRepository.get_running, user_id="ann", read_only=True)
        assert run.run_id == "run-ann"
        assert await db.arun(RunRepository.get_by_user_id, "bob", limit=0) == []
        with pytest.raises(TenantScopeError):
            await db.arun(RunRepository.get_by_user_id, "bob", user_id="ann")

    asyncio.run(main())


def test_a_range_that_is_left_early_is_closed_in_its_thread(lasting: DatabaseFactory) -> None:
    """Its cursor, and with `db.aiter` its session, is gone when the generator is closed."""
    with lasting.get_session() as session:
        PublicTradeRepository(session).bulk_create([trade_values(number) for number in range(3_000)])
    start, end = trade_values(0)["exchange_ts"], trade_values(2_999)["exchange_ts"]
    closed_in: list[str] = []

    def rows(session: Session) -> Iterator[int]:
        try:
            yield from range(5_000)
        finally:
            closed_in.append(threading.current_thread().name)

    async def main() -> None:
        trades = lasting.aiter(PublicTradeRepository.iter_symbol_range, "BTCUSDT", start, end)
        assert (await anext(trades)).trade_id == "trade-0"
        assert lasting.open_sessions == 1
        await trades.aclose()
        assert lasting.open_sessions == 0
        async with lasting.get_async_session() as session:
            async for _ in session.aiter(rows):
                break
        assert [name.startswith("shared.db transaction") for name in closed_in] == [True]

    asyncio.run(main())


@pytest.mark.parametrize("question", [RunRepository.get_by_id, RunRepository.across_users, len, lambda session: 1])
def test_what_is_no_repositorys_own_method_is_refused_with_the_long_form(db: DatabaseFactory, question: Any) -> None:
    """Nobody can tell whose `get_by_id` it was."""
    with pytest.raises(InvalidValueError, match="arun_in_transaction"):
        asyncio.run(db.arun(question, "run-ann"))


def test_a_repository_of_a_consumers_own_is_asked_for_its_own_questions(db: DatabaseFactory) -> None:
    """And the one that it was made from still answers for those that it left alone."""

    class Mine(RunRepository):
        def names(self) -> list[str]:
            return [type(self).__name__, *(run.run_id for run in self.get_running())]

    two_runs(db, executions=1)
    assert asyncio.run(db.arun(Mine.names, user_id="ann")) == ["Mine", "run-ann"]
    assert [run.run_id for run in asyncio.run(db.arun(Mine.get_running, user_id="ann"))] == ["run-ann"]


def test_what_was_not_loaded_is_refused_outside_of_the_sessions_thread(db: DatabaseFactory) -> None:
    """A lazy load, an expired attribute, a stranger's object at the door, the session itself: by name, and no wait."""
    two_runs(db, executions=1)
    with db.get_session() as plain:
        stored = plain.get_one(Run, "run-ann")
        plain.expunge(stored)

    async def main() -> None:
        async with db.get_async_session(user_id="ann") as session:
            run = await session.get_one(Run, "run-ann")
            with pytest.raises(AsyncSessionError, match="selectinload"):
                _ = run.executions
            account = await session.run_sync(lambda _: run.account)
            assert account is run.account  # it is there now
            session.sync_session.expire(run)
            with pytest.raises(AsyncSessionError, match="run_sync"):
                _ = run.status
            with pytest.raises(AsyncSessionError):
                session.sync_session.execute(select(Run))
            await session.run_sync(lambda s: s.expunge(run))
            with pytest.raises(AsyncSessionError):
                session.add(stored)
            assert (await session.merge(stored)).run_id == "run-ann"

    asyncio.run(main())


def test_what_would_be_read_outside_is_refused_with_the_way_to_do_it(db: DatabaseFactory) -> None:
    """A result, a generator and a coroutine that `run_sync` would hand out."""

    async def coroutine(session: Session) -> None:
        raise AssertionError("it was run")

    async def main() -> None:
        async with db.get_async_session() as session:
            for work in (
                lambda s: s.scalars(select(User)),
                lambda s: PublicTradeRepository(s).iter_symbol_range(
                    "X", trade_values()["exchange_ts"], trade_values()["exchange_ts"]
                ),
            ):
                with pytest.raises(InvalidValueError, match="aiter"):
                    await session.run_sync(work)
            with pytest.raises(InvalidValueError, match="plain function"):
                await session.run_sync(coroutine)  # type: ignore[unused-coroutine] # which is refused

    asyncio.run(main())


def test_two_tasks_do_not_share_a_session(lasting: DatabaseFactory) -> None:
    """The second one is told so, and the first goes on."""
    begun, go_on = threading.Event(), threading.Event()

    def work(session: Session) -> str:
        begun.set()
        assert go_on.wait(30)
        return "done"

    async def main() -> None:
        async with lasting.get_async_session() as session:
            first = asyncio.create_task(session.run_sync(work))
            await asyncio.to_thread(begun.wait, 30)
            with pytest.raises(AsyncSessionError, match="each task"):
                await session.scalar(select(User.username))
            with pytest.raises(AsyncSessionError, match="each task"):
                session.add(User(username="x"))
            go_on.set()
            assert await first == "done"
        with pytest.raises(AsyncSessionError, match="has ended"):
            await session.scalar(select(User.username))

    asyncio.run(main())
    assert usernames(lasting) == []


def test_savepoints_go_back_alone(db: DatabaseFactory) -> None:
    """What failed in one is undone with it, and what came before is kept."""

    async def main() -> None:
        async with db.get_async_session() as session:
            session.add(User(username="alice"))
            await session.flush()
            with pytest.raises(ConstraintError):
                async with session.begin_nested():
                    session.add(User(username="alice"))
                    await session.flush()
            async with session.begin_nested():
                session.add(User(username="bob"))

    asyncio.run(main())
    assert usernames(db) == ["alice", "bob"]


def test_a_session_has_the_context_of_its_task_and_leaves_the_loops_threads_alone(lasting: DatabaseFactory) -> None:
    """As many at once as may have a connection, side by side, while the event loop still resolves names."""
    two_runs(lasting, executions=1)
    caller: ContextVar[str] = ContextVar("caller")
    count = lasting.settings.pool_size + lasting.settings.max_overflow
    together = threading.Barrier(count + 1)

    def work(session: Session) -> tuple[str, list[str], str]:
        together.wait(30)
        return caller.get(), list(session.scalars(select(Run.user_id))), threading.current_thread().name

    async def task(user: str) -> tuple[str, list[str], str]:
        caller.set(user)
        async with lasting.get_async_session(user_id=user, read_only=True) as session:
            return await session.run_sync(work)

    async def main() -> list[tuple[str, list[str], str]]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        tasks = [asyncio.create_task(task(("ann", "bob")[number % 2])) for number in range(count)]
        await asyncio.to_thread(together.wait, 30)
        return await asyncio.gather(*tasks)

    for user, found, thread in asyncio.run(main()):
        assert found == [user]
        assert thread.startswith("shared.db transaction")


@pytest.mark.parametrize("fails", [False, True])
def test_a_cancelled_task_leaves_no_session_open(lasting: DatabaseFactory, fails: bool) -> None:
    """It is cancelled once what it was doing has ended, all of which is undone; a failure of that is its cause."""
    begun, go_on = threading.Event(), threading.Event()

    def work(session: Session) -> None:
        session.add(User(username="alice"))
        session.flush()
        begun.set()
        assert go_on.wait(30)
        if fails:
            raise RuntimeError("on the way")

    async def main() -> BaseException | None:
        task = asyncio.create_task(_in_session(lasting, lambda session: session.run_sync(work)))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        assert lasting.open_sessions == 0
        return cancelled.value.__cause__

    assert isinstance(asyncio.run(main()), RuntimeError) is fails
    assert usernames(lasting) == []


def test_a_task_that_is_cancelled_while_it_waits_for_another_undoes_its_session(lasting: DatabaseFactory) -> None:
    """Between two calls nothing is under way, and everything before is undone."""

    async def main() -> None:
        written = asyncio.Event()

        async def task() -> None:
            async with lasting.get_async_session() as session:
                session.add(User(username="alice"))
                await session.flush()
                written.set()
                await asyncio.sleep(60)

        running = asyncio.create_task(task())
        await written.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert lasting.open_sessions == 0

    asyncio.run(main())
    assert usernames(lasting) == []


@pytest.mark.parametrize("committing", [False, True])
def test_a_cancelled_task_does_not_wait_for_ever(
    lasting: DatabaseFactory, committing: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What has not ended by then is undone, unless its COMMIT is on its way, and the log tells which."""
    monkeypatch.setattr(async_door, "_CANCELLED_WAITS", 0.01)
    begun, go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        begun.set()
        assert go_on.wait(30)

    async def work(session: AsyncSession) -> None:
        session.add(User(username="alice"))
        await session.flush()
        if committing:
            event.listen(lasting.engine, "commit", hold)
        else:
            with suppress(asyncio.CancelledError):  # who goes on all the same stores nothing
                await session.run_sync(hold)

    async def main() -> BaseException | None:
        task = asyncio.create_task(_in_session(lasting, work))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, TransactionAbandonedError)) as left:
            await task
        return left.value if isinstance(left.value, TransactionAbandonedError) else left.value.__cause__

    assert isinstance(asyncio.run(main()), TransactionAbandonedError)
    go_on.set()
    lasting._async_door._executor.shutdown()  # type: ignore[union-attr] # it was used
    assert [record.getMessage() for record in caplog.records if record.name == "shared.db"] == [
        "the transaction of a cancelled task " + ("has been committed after all" if committing else "was undone")
    ]
    lasting.close()
    assert usernames(lasting) == (["alice"] if committing else [])


def test_tasks_that_wait_for_one_another_are_told_so(db: DatabaseFactory) -> None:
    """A session in a session, where no thread comes free: an error within the pool's own time, for `arun` as well."""
    settings = db.settings.model_copy(update={"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05})

    async def main() -> None:
        with DatabaseFactory(settings) as small:
            small.create_tables()
            async with small.get_async_session() as session:
                for inner in (_in_session(small, AsyncSession.flush), small.arun(RunRepository.get_running)):
                    with pytest.raises(PoolExhaustedError, match="POOL_SIZE"):
                        await inner
                assert await session.scalar(select(func.count()).select_from(User)) == 0

    asyncio.run(main())


def test_a_queue_that_moves_is_waited_for(lasting: DatabaseFactory) -> None:
    """However long it is, and however short the time to wait for a connection."""
    settings = lasting.settings.model_copy(update={"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.2})

    async def main() -> int:
        with DatabaseFactory(settings) as small:
            sessions = [
                _in_session(small, lambda session: session.run_sync(lambda s: time.sleep(0.02)))  # for a queue to form
                for _ in range(40)
            ]
            return len(await asyncio.gather(*sessions))

    assert asyncio.run(main()) == 40


def test_transactions_that_wait_do_not_keep_others_from_beginning(lasting: DatabaseFactory) -> None:
    """As many as there may be connections are under way at once where none of them can go on before the last."""
    most = lasting.settings.pool_size + lasting.settings.max_overflow
    barrier = threading.Barrier(most)

    async def main() -> list[int]:
        return await asyncio.gather(*(lasting.arun_in_transaction(lambda _: barrier.wait(60)) for _ in range(most)))

    assert sorted(asyncio.run(main())) == list(range(most))


def test_a_forked_child_opens_sessions_of_its_own(postgresql_url: Any) -> None:
    """Its parent's is refused by name, and the parent's goes on."""
    with DatabaseFactory(postgresql_url) as db:

        async def main() -> None:
            async with db.get_async_session() as session:
                session.add(User(username="alice"))
                await session.flush()

                def child(number: int) -> bool:
                    asyncio.set_event_loop(None)
                    asyncio.events._set_running_loop(None)  # as in a process that multiprocessing made
                    with pytest.raises(ForkError):
                        session.add(User(username="bob"))
                    with pytest.raises(ForkError):
                        asyncio.run(session.flush())
                    return asyncio.run(_in_session(db, lambda own: own.scalar(select(User.username)))) is None

                assert in_children(1, child) == [True]
                session.add(User(username="carol"))

        asyncio.run(main())
        assert usernames(db) == ["alice", "carol"]


def test_a_session_that_nobody_left_keeps_no_process_from_ending(tmp_path: Path) -> None:
    """What it did is undone, as with any process that ends in the midst of a transaction."""
    code = """
import asyncio, sys
from shared.db import DatabaseFactory, User
db = DatabaseFactory("sqlite:///left.db")
db.create_tables()
opened = db.get_async_session()
async def main():
    session = await opened.__aenter__()
    session.add(User(username="alice"))
    await session.flush()
    return session
loop = asyncio.new_event_loop()
left = loop.run_until_complete(main())
"""
    ended = run_script(code)
    assert ended.returncode == 0, ended.stderr
    with DatabaseFactory(f"sqlite:///{tmp_path / 'left.db'}") as db:
        assert usernames(db) == []


def test_what_was_lost_on_the_way_is_run_again_by_arun_alone(
    proxy: CuttingProxy,  # noqa: F811 # the fixture
) -> None:
    """A session's block cannot be repeated by anybody but its author: it raises the error, which says so."""
    with DatabaseFactory(proxy.url) as db:
        two_runs(db, executions=1)
        proxy.cut(b"FROM runs", "before")
        assert len(asyncio.run(db.arun(RunRepository.get_running, user_id="ann"))) == 1
        proxy.cut(b"FROM runs", "before")
        with pytest.raises(ConnectionLostError) as lost:
            asyncio.run(_in_session(db, lambda session: session.scalars(select(Run))))
        assert lost.value.transient
        assert len(asyncio.run(_in_session(db, lambda session: session.scalars(select(Run)))).all()) == 2


def test_an_audit_log_is_kept(db: DatabaseFactory) -> None:
    """With the session's user as the one who did it."""
    two_runs(db, executions=1)
    db.enable_audit()

    async def work(session: AsyncSession) -> None:
        (await session.get_one(Run, "run-ann")).gridcore_version = "2"

    asyncio.run(_in_session(db, work, user_id="ann"))
    with db.get_session() as plain:
        noted = select(AuditLog.user_id, AuditLog.entity_id).where(AuditLog.actor == "ann")
        assert plain.execute(noted).all() == [("ann", "run-ann")]


@unlinked
def test_no_statement_shows_a_stranger_anything(fleet: DatabaseFactory) -> None:
    """Every position of a statement that the adversary tried, asked from a coroutine."""
    _with_trades(fleet)

    async def main() -> list[str]:
        leaks = []
        for name, statement in _reads(fleet).items():
            async with fleet.get_async_session(user_id="ann") as session:
                if "bob" in str((await session.execute(statement())).all()):
                    leaks.append(name)
        return leaks

    assert asyncio.run(main()) == []


def test_no_insert_stores_anything_of_a_stranger(fleet: DatabaseFactory) -> None:
    """Every one that the adversary tried, and a bulk write."""
    place = next(places(World(fleet).seen_by("ann"), (Run,), Random(0)))
    before = [everything_of(fleet, user) for user in ("ann", "bob")]

    def at_the_place(form: Form) -> Callable[[Session], object]:
        return lambda session: form(session, place)

    def in_bulk(session: Session) -> object:
        run = Run(run_id="run-bob", account_id="acc-bob")
        return PrivateExecutionRepository(session).bulk_create([execution_values(run)])

    async def main() -> None:
        for attempt in (*map(at_the_place, INSERTS.values()), in_bulk):
            with pytest.raises(TenantViolation):
                async with fleet.get_async_session(user_id="ann") as session:
                    await session.run_sync(attempt)

    asyncio.run(main())
    assert [everything_of(fleet, user) for user in ("ann", "bob")] == before


def test_many_tasks_of_two_users_never_mix(busy_fleet: DatabaseFactory) -> None:
    """Tasks take turns as ann and bob on few threads, some are cancelled: each reads and writes own rows only."""
    settings = busy_fleet.settings.model_copy(update={"pool_size": 2, "max_overflow": 1})

    async def task(db: DatabaseFactory, number: int) -> None:
        user = ("ann", "bob")[number % 2]
        async with db.get_async_session(user_id=user, read_only=number % 3 == 0) as session:
            for model in (User, BybitAccount, Run, PrivateExecution):
                (row,) = (await session.scalars(select(model))).all()
                assert user in str(row.__dict__)
            if number % 3:
                (await session.get_one(Run, f"run-{user}")).gridcore_version = user
            await asyncio.sleep(0)

    async def main() -> Counter[str]:
        with DatabaseFactory(settings) as db:
            tasks = [asyncio.create_task(task(db, number)) for number in range(60)]
            for number, running in enumerate(tasks):
                await asyncio.sleep(0)
                if number % 7 == 0:
                    running.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert db.open_sessions == 0
        return Counter(type(one).__name__ for one in ended)

    assert set(asyncio.run(main())) <= {"NoneType", "CancelledError"}
    with busy_fleet.get_session() as plain:
        assert {tuple(row) for row in plain.execute(select(Run.user_id, Run.gridcore_version))} <= {
            ("ann", "ann"),
            ("bob", "bob"),
            ("ann", None),
            ("bob", None),
        }


class ThroughTheDoor(TwoUsers):
    """The two users, whose sessions are a coroutine's: each of their steps is done in the session's thread."""

    def __init__(self, db: DatabaseFactory, steps: Counter[str]) -> None:
        super().__init__(db, steps)
        self.loop = asyncio.new_event_loop()
        self.door: AsyncSession | None = None

    @contextmanager
    def _through(self, user: str) -> Iterator[Session]:
        opened = self.db.get_async_session(user_id=user)
        self.door = self.loop.run_until_complete(opened.__aenter__())
        yield self.door.sync_session
        self.door = None
        self.loop.run_until_complete(opened.__aexit__(None, None, None))

    def _open(self, user: str) -> AbstractContextManager[Session]:
        return self._through(user)

    def _do(self, step: Callable[[], None]) -> None:
        assert self.door is not None
        self.loop.run_until_complete(self.door.run_sync(lambda _: step()))

    def teardown(self) -> None:
        """Close what is open, and the loop."""
        super().teardown()
        self.loop.close()


def test_two_users_never_meet_in_coroutines(fleet: DatabaseFactory) -> None:
    """In a few hundred steps of reading, writing, attacking, undoing and nesting."""
    steps: Counter[str] = Counter()
    run_machine(ThroughTheDoor, fleet, 2, steps)
    assert steps.total() > 50
