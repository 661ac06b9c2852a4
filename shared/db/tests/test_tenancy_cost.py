"""How often a user's session asks the database whose a row is; the benchmark `tenancy` has what that costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from shared.db import (
    BybitAccount,
    DatabaseFactory,
    PrivateExecution,
    PrivateExecutionRepository,
    Run,
    TenantViolation,
)
from shared.db.tests.support import execution_values, statements_of

RUN = Run(run_id="run-ann", account_id="acc-ann")


@contextmanager
def questions(db: DatabaseFactory) -> Iterator[list[str]]:
    """The SELECTs that read something, once the block has ended.

    To adopt the role, and to ask whether the audit log is on, are none.
    """
    asked: list[str] = []
    with statements_of(db) as sent:
        yield asked
    asked += [one for one in sent if one.startswith("SELECT") and "FROM" in one and "audit_log" not in one]


def add(session: Session, number: int) -> None:
    """Store an execution of ann's run."""
    session.add(PrivateExecution(**execution_values(RUN, number)))
    session.flush()


def test_all_parents_of_a_row_are_proved_in_one_question_and_once(fleet: DatabaseFactory) -> None:
    """An execution names a run and an account: one SELECT for the first, none for the next, also after a commit."""
    with fleet.get_session(user_id="ann") as session:
        with questions(fleet) as asked:
            add(session, 1)
        assert len(asked) == 1
        with questions(fleet) as asked:
            add(session, 2)
            session.commit()
            add(session, 3)
            PrivateExecutionRepository(session).bulk_create([execution_values(RUN, number) for number in range(4, 9)])
        assert asked == []


def test_what_was_rolled_back_is_asked_again(fleet: DatabaseFactory) -> None:
    """What a transaction saw that never was proves nothing: without policies it is asked for, and refused with them."""
    with fleet.get_session(user_id="ann") as session:
        add(session, 1)
        session.rollback()
        with questions(fleet) as asked:
            add(session, 1)
        assert len(asked) == (0 if session.confined_by_server else 1)  # type: ignore[attr-defined] # a UserSession
        session.rollback()
        known = session.get_one(Run, "run-ann")
        session.add(
            Run(run_id="never", user_id="ann", account_id="acc-ann", strategy_id=known.strategy_id, run_type="backtest")
        )
        session.flush()
        never = Run(run_id="never", account_id="acc-ann")
        session.add(PrivateExecution(**execution_values(never, 2)))
        session.flush()
        session.rollback()
        session.add(PrivateExecution(**execution_values(never, 2)))
        with pytest.raises(TenantViolation):
            session.flush()
        session.rollback()
        assert session.scalars(select(PrivateExecution.exec_id)).all() == ["exec-ann"]


def test_under_policies_the_next_session_asks_no_more(policed_fleet: DatabaseFactory) -> None:
    """Whose a run and an account are, one session asks; the server's policies look at each later row that is written.

    Of a parent that a row must agree with, each session asks: what it says may have changed.
    """
    with policed_fleet.get_session(user_id="ann") as session:
        add(session, 1)
        strategy = session.get_one(Run, "run-ann").strategy_id
    for number, kind in enumerate(("backtest", "shadow")):
        with questions(policed_fleet) as asked, policed_fleet.get_session(user_id="ann") as session:
            PrivateExecutionRepository(session).bulk_create([execution_values(RUN, 10 + number)])
            add(session, 20 + number)
        assert asked == []
        with questions(policed_fleet) as asked, policed_fleet.get_session(user_id="ann") as session:
            session.add(Run(user_id="ann", account_id="acc-ann", strategy_id=strategy, run_type=kind))
        assert len(asked) == 1
        assert "strategies" in asked[0]
    with questions(policed_fleet) as asked, policed_fleet.get_session(user_id="bob") as session:
        with pytest.raises(TenantViolation):
            add(session, 30)
        session.expunge_all()
    assert len(asked) == 1


NO_MORE: dict[str, list[str]] = {
    "deleted": ["DELETE FROM runs WHERE run_id = 'run-ann'"],
    "another user's of the same name": [
        "DELETE FROM private_executions",
        "DELETE FROM runs WHERE run_id = 'run-ann'",
        "UPDATE runs SET run_id = 'run-ann' WHERE run_id = 'run-bob'",
    ],
}
"""Owners and accounts of runs do not change: foreign keys see to it."""
WRITES: dict[str, Callable[[Session], object]] = {
    "an object": lambda session: add(session, 2),
    "a statement": lambda session: session.execute(insert(PrivateExecution).values(execution_values(RUN, 2))),
    "many rows": lambda session: PrivateExecutionRepository(session).bulk_create(
        [execution_values(RUN, number) for number in range(2, 9)]
    ),
}


@pytest.mark.parametrize("policies", ["on", "turned off"])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("now", NO_MORE)
def test_a_parent_that_is_the_users_no_more_is_refused_all_the_same(
    policed_fleet: DatabaseFactory, now: str, write: str, policies: str
) -> None:
    """By the server; and where its policies were turned off meanwhile, the session asks after all."""
    with policed_fleet.get_session(user_id="ann") as session:
        add(session, 1)
        session.rollback()
    with policed_fleet.engine.begin() as administrator:
        for statement in NO_MORE[now]:
            administrator.execute(text(statement))
    with policed_fleet.get_session(user_id="ann") as session:
        if policies == "turned off":
            with DatabaseFactory(policed_fleet.settings) as other:
                other.disable_row_security()
        with pytest.raises(TenantViolation):
            WRITES[write](session)
        session.rollback()
        with pytest.raises(TenantViolation):
            WRITES[write](session)
        session.rollback()
    with policed_fleet.get_session() as session:
        stored = select(PrivateExecution.exec_id).where(PrivateExecution.run_id == "run-ann")
        assert session.scalars(stored).all() == []


def test_one_parent_among_others_that_are_not_own_is_still_told_apart(fleet: DatabaseFactory) -> None:
    """The one question gives each parent its own answer, whichever of them is missing."""
    with fleet.get_session(user_id="ann") as session:
        guard = session.guard  # type: ignore[attr-defined] # a UserSession
        guard._prove_all(session, {Run: {"run-ann"}, BybitAccount: {"acc-bob"}})
        assert set(guard._proved) == {(Run, "run-ann")}
        guard._prove_all(session, {Run: {"run-bob"}, BybitAccount: {"acc-ann"}})
        assert set(guard._proved) == {(Run, "run-ann"), (BybitAccount, "acc-ann")}
