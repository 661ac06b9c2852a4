"""What a session promises about its transaction: it is stored as a whole, or somebody is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, select, text
from sqlalchemy.orm import Session, SessionTransaction

from shared.db import (
    BybitAccount,
    ConstraintError,
    DatabaseFactory,
    TransactionAbortedError,
    User,
    UserRepository,
)
from shared.db.tests.support import usernames, with_and_without_policies


def swallow_a_failure(executor: Session | Connection, name: str = "alice") -> None:
    """Store a row, and take the next one's refusal for "it is there already"."""
    executor.execute(insert(User).values(user_id=name, username=name))
    with pytest.raises(ConstraintError):
        executor.execute(insert(User).values(user_id="other", username=name))


def in_a_session(db: DatabaseFactory) -> None:
    """The block's own end commits."""
    with db.get_session() as session:
        swallow_a_failure(session)


def by_its_own_commit(db: DatabaseFactory) -> None:
    """Code that commits in the midst."""
    with db.get_session() as session:
        swallow_a_failure(session)
        session.commit()


def in_run_in_transaction(db: DatabaseFactory) -> None:
    """Work that returns as if done."""
    db.run_in_transaction(swallow_a_failure)


def in_an_engine_s_transaction(db: DatabaseFactory) -> None:
    """No session at all."""
    with db.engine.begin() as connection:
        swallow_a_failure(connection)


@pytest.mark.parametrize("block", [in_a_session, by_its_own_commit, in_run_in_transaction, in_an_engine_s_transaction])
def test_a_block_whose_error_was_swallowed_never_ends_as_if_it_were_stored(
    block: Callable[[DatabaseFactory], None], db: DatabaseFactory
) -> None:
    """PostgreSQL has given it up, and that is said by name; others undid the one statement, and keep the rest."""
    if db.engine.dialect.name != "postgresql":
        block(db)
        assert usernames(db) == ["alice"]
        return
    with pytest.raises(TransactionAbortedError, match=r"uq_users_username.*begin_nested"):
        block(db)
    assert usernames(db) == []


def test_a_user_s_block_whose_error_was_swallowed_is_refused_too(db: DatabaseFactory) -> None:
    """With and without the server's own policies."""
    with db.get_session() as session:
        session.add(User(user_id="ann", username="ann"))
    row = {"user_id": "ann", "account_name": "main", "environment": "testnet", "account_id": "a-1"}

    def swallow() -> None:
        with db.get_session(user_id="ann") as session:
            session.execute(insert(BybitAccount).values(row))
            with pytest.raises(ConstraintError):
                session.execute(insert(BybitAccount).values(row))

    for _ in with_and_without_policies(db):
        if db.engine.dialect.name != "postgresql":
            swallow()
        else:
            with pytest.raises(TransactionAbortedError):
                swallow()
            with db.get_session() as session:
                assert session.scalars(select(BybitAccount)).all() == []


def test_a_failure_caught_around_a_savepoint_costs_the_savepoint_alone(db: DatabaseFactory) -> None:
    """The way that the error's text names, in sessions and on connections."""
    with db.get_session() as session:
        session.execute(insert(User).values(username="alice"))
        with pytest.raises(ConstraintError), session.begin_nested():
            session.execute(insert(User).values(username="alice"))
    with db.engine.begin() as connection:
        connection.execute(insert(User).values(username="bob"))
        with pytest.raises(ConstraintError), connection.begin_nested():
            connection.execute(insert(User).values(username="bob"))
    assert usernames(db) == ["alice", "bob"]


def test_a_failure_swallowed_inside_a_savepoint_is_told_at_the_savepoint_s_end(lasting: DatabaseFactory) -> None:
    """And what stands around the savepoint can still be stored."""

    def swallow(session: Session) -> None:
        with session.begin_nested():
            swallow_a_failure(session)

    with lasting.get_session() as session:
        session.execute(insert(User).values(username="before"))
        if lasting.engine.dialect.name == "postgresql":
            with pytest.raises(TransactionAbortedError, match="uq_users_username"):
                swallow(session)
    assert usernames(lasting) == ["before"]


def test_what_follows_in_an_aborted_transaction_says_what_aborted_it(lasting: DatabaseFactory) -> None:
    """Any further statement has the same name as the commit, and the first failure's words, not the last one's."""
    if lasting.engine.dialect.name != "postgresql":
        return
    with lasting.engine.connect() as connection:
        swallow_a_failure(connection)
        for _ in range(2):
            with pytest.raises(TransactionAbortedError, match="uq_users_username") as caught:
                connection.execute(text("SELECT 1"))
            assert caught.value.earlier is not None
            assert not caught.value.transient
        with pytest.raises(TransactionAbortedError, match="uq_users_username"):
            connection.commit()
        connection.rollback()
        # The same connection, in a transaction that has nothing to do with all that.
        connection.execute(insert(User).values(username="bob"))
        connection.commit()
    assert usernames(lasting) == ["bob"]


def test_a_swallowed_failure_that_may_pass_is_run_again(lasting: DatabaseFactory) -> None:
    """A deadlock or the like aborts the whole transaction whoever catches it; so the whole is run again."""
    fail = "DO $$ BEGIN RAISE EXCEPTION 'said' USING ERRCODE = '40001'; END $$"
    runs: list[int] = []

    def work(session: Session) -> str:
        runs.append(1)
        UserRepository(session).create(User(username="alice"))
        if len(runs) == 1 and lasting.engine.dialect.name == "postgresql":
            with pytest.raises(Exception, match="said"):
                session.execute(text(fail))
        return "done"

    assert lasting.run_in_transaction(work) == "done"
    assert usernames(lasting) == ["alice"]


@pytest.mark.parametrize("place", ["memory", "file"])
def test_a_transaction_that_sqlite_gave_up_by_itself_is_refused(place: str, tmp_path: Any) -> None:
    """A full disk or a rule of somebody's trigger undoes it all, and no later statement is stored without it."""
    with DatabaseFactory("sqlite:///:memory:" if place == "memory" else f"sqlite:///{tmp_path}/grid_bot.db") as db:
        db.create_tables()

        def swallow() -> None:
            with db.get_session() as session:
                session.add(User(username="alice"))
                session.flush()
                with pytest.raises(ConstraintError):
                    session.execute(text("INSERT OR ROLLBACK INTO users (username) VALUES ('alice')"))
                session.execute(insert(User).values(username="bob"))

        with pytest.raises(TransactionAbortedError, match=r"users\.username.*begin_nested"):
            swallow()
        assert usernames(db) == []
        with db.get_session() as session:
            session.add(User(username="carol"))
        assert usernames(db) == ["carol"]


def test_a_transaction_that_is_over_is_not_followed_by_an_empty_one(db: DatabaseFactory) -> None:
    """Nothing is begun after the last COMMIT, which would have all that was loaded looked at again."""
    begun: list[SessionTransaction] = []
    event.listen(db.session_factory, "after_transaction_create", lambda _, transaction: begun.append(transaction))
    with db.get_session() as session:
        session.add(User(username="alice"))
        session.commit()
    assert sum(transaction.parent is None for transaction in begun) == 1
    begun.clear()
    assert db.run_in_transaction(lambda session: len(session.scalars(select(User)).all()), read_only=True) == 1
    assert sum(transaction.parent is None for transaction in begun) == 1


def test_what_was_changed_without_a_transaction_is_stored_at_the_block_s_end(db: DatabaseFactory) -> None:
    """After a COMMIT in its midst, whatever was added, changed or deleted since."""
    with db.get_session() as session:
        alice, bob = User(username="alice"), User(username="bob")
        session.add_all([alice, bob])
        session.commit()
        session.add(User(username="carol"))
        session.commit()
        alice.username = "alicia"
    with db.get_session() as session:
        session.commit()
        bob.username = "robert"
        session.add(bob)
    with db.get_session() as session:
        session.add(bob)
        session.commit()
        session.delete(bob)
    assert usernames(db) == ["alicia", "carol"]
