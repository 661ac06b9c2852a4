"""Whoever would wait for a lock of his own is told so at once; whoever waits for somebody else waits."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.db import DatabaseFactory, DatabaseLockedError, DatabaseSettings, SelfDeadlockError, User
from shared.db.tests.support import usernames


@pytest.fixture
def file_db(tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A factory on a file, whose writers wait longer than any test may take."""
    with DatabaseFactory(
        DatabaseSettings(db_name=str(tmp_path / "grid_bot.db"), sqlite_busy_timeout=600, _env_file=None)
    ) as db:
        db.create_tables()
        yield db


def add(session: Session, name: str) -> None:
    """A row, which takes the lock."""
    session.add(User(username=name))
    session.flush()


def test_a_session_inside_a_session_is_refused_at_once(file_db: DatabaseFactory) -> None:
    """By every door, through another factory and another name of the file too; the outer one goes on."""
    path = Path(str(file_db.engine.url.database))
    other_name = path.with_name("link.db")
    os.symlink(path, other_name)

    def helper(db: DatabaseFactory) -> None:
        with db.get_session() as session:
            session.execute(text("SELECT 1"))

    with DatabaseFactory(f"sqlite:///{other_name}") as other, DatabaseFactory("sqlite:///unlike.db") as unlike:
        with file_db.get_session() as outer:
            add(outer, "alice")
            unlike.create_tables()  # another file's lock is another matter, and does not hide this one's
            for call in (
                lambda: helper(file_db),
                lambda: helper(other),
                lambda: file_db.run_in_transaction(lambda session: add(session, "bob")),
                file_db.create_tables,
            ):
                with pytest.raises(SelfDeadlockError, match=r"this thread holds .* pass the open session on") as caught:
                    call()
                assert isinstance(caught.value, DatabaseLockedError)
                assert not caught.value.transient
            assert usernames(file_db) == []  # reading waits for nobody
            add(outer, "carol")
        helper(file_db)
        helper(other)
    assert usernames(file_db) == ["alice", "carol"]


def test_a_session_that_only_reads_holds_no_lock(file_db: DatabaseFactory) -> None:
    """Inside of it somebody may write."""
    with file_db.get_session(read_only=True) as outer:
        outer.execute(text("SELECT 1"))
        with file_db.get_session() as session:
            add(session, "alice")
    assert usernames(file_db) == ["alice"]


def test_a_coroutine_that_would_stop_the_event_loop_is_refused(file_db: DatabaseFactory) -> None:
    """Another one holds a session across an await, and could not go on to end it."""
    begun = asyncio.Event()
    refused = asyncio.Event()

    async def hold() -> None:
        with file_db.get_session() as session:
            add(session, "alice")
            begun.set()
            await refused.wait()

    async def write() -> None:
        await begun.wait()
        with pytest.raises(SelfDeadlockError, match="get_async_session"), file_db.get_session() as session:
            add(session, "bob")
        refused.set()

    async def both() -> None:
        await asyncio.gather(hold(), write())

    asyncio.run(both())
    assert usernames(file_db) == ["alice"]


def test_another_thread_is_waited_for(file_db: DatabaseFactory) -> None:
    """It can end its session, whatever this one does."""
    begun = threading.Event()
    waiting = threading.Event()

    def hold() -> None:
        with file_db.get_session() as session:
            add(session, "alice")
            begun.set()
            waiting.wait(30)

    with ThreadPoolExecutor(1) as executor:
        held = executor.submit(hold)
        begun.wait(30)
        threading.Timer(0.1, waiting.set).start()
        with file_db.get_session() as session:
            add(session, "bob")
        held.result()
    assert usernames(file_db) == ["alice", "bob"]


def test_a_session_that_another_thread_will_end_is_waited_for(file_db: DatabaseFactory) -> None:
    """A web framework runs a request's parts in whichever threads are free, each request in a context of its own."""
    block = file_db.get_session()
    session = contextvars.copy_context().run(block.__enter__)
    contextvars.copy_context().run(add, session, "alice")
    with ThreadPoolExecutor(1) as executor:
        ended = executor.submit(lambda: (threading.Event().wait(0.1), block.__exit__(None, None, None)))
        contextvars.copy_context().run(file_db.run_in_transaction, lambda other: add(other, "bob"))
        ended.result()
    assert usernames(file_db) == ["alice", "bob"]
