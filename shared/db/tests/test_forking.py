"""What a fork does to open connections."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Column, MetaData, Table, event, select, text
from sqlalchemy.dialects.postgresql import _psycopg_common
from sqlalchemy.orm import loading, registry
from sqlalchemy.orm import session as orm_session

from shared.db import DatabaseFactory, ForkError, PublicTrade, Recorder, User, forking
from shared.db.tests.support import backend_of, in_children, trade_values, usernames, usernames_elsewhere


def test_forked_children_have_connections_of_their_own(lasting: DatabaseFactory) -> None:
    """Four children and their parent query at once on one factory; each gets his own answers."""
    with lasting.get_session() as session:
        session.add(User(username="parent"))

    def ask(number: int) -> list[int]:
        answers = []
        for count in range(50):
            with lasting.get_session(read_only=True) as session:
                answers.append(session.scalar(select(text(str(number * 1000 + count)))))
        return answers

    def work(number: int) -> tuple[list[int], int]:
        answers = ask(number)
        with lasting.get_session() as session:
            session.add(User(username=f"child-{number}"))
            backend = 0 if lasting.settings.is_sqlite else backend_of(session)
        return answers, backend

    asked_meanwhile: list[int] = []
    found = in_children(4, work, meanwhile=lambda: asked_meanwhile.extend(ask(9)))
    assert asked_meanwhile == [9000 + count for count in range(50)]
    assert [answers for answers, _ in found] == [[n * 1000 + count for count in range(50)] for n in range(4)]
    if not lasting.settings.is_sqlite:
        with lasting.get_session() as session:
            assert len({backend for _, backend in found} | {backend_of(session)}) == 5
    assert usernames(lasting) == [*(f"child-{number}" for number in range(4)), "parent"]


def test_an_open_session_of_the_parent_survives_its_children(postgresql_url: URL) -> None:
    """The parent's transaction goes on over the fork, on the same connection; children that try to use it cannot."""
    with DatabaseFactory(postgresql_url) as db:
        with db.get_session() as session:
            session.add(User(username="parent"))
            session.flush()
            backend = backend_of(session)

            def work(number: int) -> str:
                with pytest.raises(ForkError) as refused:
                    session.scalars(select(User.username)).all()
                with pytest.raises(ForkError):
                    session.commit()
                session.close()
                with db.get_session() as own:
                    own.add(User(username=f"child-{number}"))
                    assert backend_of(own) != backend
                return str(refused.value)

            assert all("belongs to the parent process" in text for text in in_children(3, work))
            assert backend_of(session) == backend
            assert session.scalars(select(User.username).where(User.username == "parent")).all() == ["parent"]
        assert usernames(db) == ["child-0", "child-1", "child-2", "parent"]


def test_what_a_child_commits_outlives_the_parents_close(tmp_path: Path) -> None:
    """With an inherited SQLite connection the child had no locks, and the parent's close took its log away."""
    context = multiprocessing.get_context("fork")
    opened, closed = context.Event(), context.Event()
    db = DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}")
    db.create_tables()

    def work() -> None:
        assert usernames(db) == []
        opened.set()
        assert closed.wait(30)
        with db.get_session() as session:
            session.add(User(username="child"))
        assert usernames_elsewhere(tmp_path / "grid_bot.db") == ["child"]

    child = context.Process(target=work)
    child.start()
    assert opened.wait(30)
    db.close()
    closed.set()
    child.join()
    assert child.exitcode == 0
    assert usernames(db) == ["child"]
    db.close()


def test_a_file_in_use_across_a_fork_is_refused_in_the_child(tmp_path: Path) -> None:
    """With a session open on it nothing could keep the child's commits safe, and a clear error says so."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db, DatabaseFactory("sqlite:///other.db") as other:
        db.create_tables()
        other.create_tables()
        with db.get_session() as session:
            session.add(User(username="parent"))
            session.flush()

            def work(number: int) -> tuple[str, str]:
                session.add(User(username="child"))
                with pytest.raises(ForkError) as inherited:
                    session.flush()
                session.rollback()
                same_file = DatabaseFactory("sqlite:///grid_bot.db")
                with pytest.raises(ForkError) as own, same_file.get_session() as fresh:
                    fresh.add(User(username="child"))
                assert usernames(other) == []
                return str(inherited.value), str(own.value)

            ((inherited, own),) = in_children(1, work)
            assert "belongs to the parent process" in inherited
            assert "multiprocessing's 'spawn'" in own
        assert usernames(db) == ["parent"]


def test_every_connection_that_meets_a_fork_is_closed(tmp_path: Path) -> None:
    """The idle one before it, the one in use when its session ends: nothing is left to the garbage collector."""
    closed: list[Any] = []
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db:
        db.create_tables()
        event.listen(db.engine, "close", lambda connection, record: closed.append(connection))
        with db.get_session(read_only=True) as session:
            assert session.scalars(select(User.username)).all() == []
            with db.get_session(read_only=True) as other:
                assert other.scalars(select(User.username)).all() == []
            in_children(1, lambda number: None)
            assert len(closed) == 1
        assert len(closed) == 2
        assert usernames(db) == []
    assert len(closed) == 3


def test_an_in_memory_database_is_copied_by_a_fork() -> None:
    """The child goes on with its own copy, and the parent's does not change."""
    with DatabaseFactory("sqlite:///:memory:") as db:
        db.create_tables()
        with db.get_session() as session:
            session.add(User(username="parent"))

        def work(number: int) -> list[str]:
            with db.get_session() as session:
                session.add(User(username="child"))
            return usernames(db)

        assert in_children(1, work) == [["child", "parent"]]
        assert usernames(db) == ["parent"]


def test_a_fork_waits_until_no_other_thread_is_inside_sqlite(tmp_path: Path) -> None:
    """SQLite's own locks are free in the child, so that it is neither refused nor hung."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db:
        db.create_tables()
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                assert usernames(db) == []
                over.wait(0.001)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                assert in_children(2, lambda number: usernames(db)) == [[], []]
        finally:
            over.set()
            for thread in threads:
                thread.join()


def test_a_child_is_refused_sqlite_if_another_thread_stayed_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for that thread's locks for good, whichever file it opens."""
    monkeypatch.setattr(forking, "_FORK_WAITS", 0.01)
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db, DatabaseFactory("sqlite:///other.db") as other:
        db.create_tables()
        entered, over = threading.Event(), threading.Event()

        def stay() -> None:
            with db.get_session(read_only=True) as session:
                assert session.scalars(select(User.username)).all() == []
                entered.set()
                over.wait(30)

        def work(number: int) -> list[str]:
            refused = []
            for factory in (db, other, DatabaseFactory("sqlite:///:memory:")):
                with pytest.raises(ForkError, match="another thread was using SQLite") as error:
                    factory.create_tables()
                refused.append(str(error.value))
            return refused

        thread = threading.Thread(target=stay)
        thread.start()
        assert entered.wait(30)
        try:
            ((first, *others),) = in_children(1, work)
        finally:
            over.set()
            thread.join()
        assert others == [first, first]
        assert usernames(db) == []


def test_a_child_does_not_wait_for_a_lock_of_sqlalchemys(lasting: DatabaseFactory) -> None:
    """One that another thread held at the fork, while it counted sessions, loads or cursors, or mapped a class."""
    with lasting.get_session() as session:
        session.add(User(username="alice"))
    held: list[Any] = [sys.modules["sqlalchemy.orm.mapper"].__dict__["_CONFIGURE_MUTEX"]]
    for counter in (orm_session._new_sessionid, loading._new_runid, _psycopg_common._server_side_id):
        held += [cell.cell_contents for cell in counter.__closure__ or () if hasattr(cell.cell_contents, "acquire")]
    assert len(held) == 4
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as stack:
            for lock in held:
                stack.enter_context(lock)
            begun.set()
            over.wait(60)

    def child(number: int) -> list[str]:
        found: list[str] = []

        def work() -> None:
            registry().map_imperatively(type("Late", (), {}), Table("late", MetaData(), Column("id", primary_key=True)))
            with lasting.get_session(read_only=True) as session:
                found.extend(user.username for user in session.scalars(select(User).execution_options(yield_per=1)))

        asking = threading.Thread(target=work, daemon=True)
        asking.start()
        asking.join(20)
        return found

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert begun.wait(30)
        assert in_children(1, child) == [["alice"]]
    finally:
        over.set()
        thread.join()


def test_a_fork_by_a_c_library_is_noticed_at_the_next_connection(lasting: DatabaseFactory) -> None:
    """As uWSGI does it, with none of Python's hooks: PostgreSQL is asked anew, an open SQLite file is refused."""
    with lasting.get_session() as session:
        session.add(User(username="parent"))
        session.flush()
        backend = 0 if lasting.settings.is_sqlite else backend_of(session)

    def another_backend() -> bool:
        with lasting.get_session() as own:
            return own.scalars(select(User.username)).all() == ["parent"] and backend_of(own) != backend

    with Recorder(lasting, PublicTrade) as recorder:
        asked, *recorded = told_by_c_child(another_backend, lambda: recorder.add([trade_values()]), recorder.stats)
    assert ["belongs to the parent process" in text for text in recorded] == [True, True]
    assert "lazy-apps" in asked if lasting.settings.is_sqlite else asked == "True"
    assert usernames(lasting) == ["parent"]


def told_by_c_child(*uses: Callable[[], Any]) -> list[str]:
    """What each gives, or the error it raises, in a process that is forked as a C library does it."""
    reading, writing = os.pipe()
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        try:
            for use in uses:
                try:
                    said = str(use())
                except Exception as error:  # noqa: BLE001 # the parent looks at it
                    said = str(error)
                os.write(writing, f"{said}\n".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        lines = answer.read().splitlines()
    os.waitpid(child, 0)
    return lines
