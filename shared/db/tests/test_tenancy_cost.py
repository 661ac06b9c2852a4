"""How often a user's session asks the database whose a row is; the benchmark `tenancy` has what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event
from sqlalchemy.orm import Session

from shared.db import BybitAccount, DatabaseFactory, PrivateExecution, PrivateExecutionRepository, Run
from shared.db.tests.support import execution_values

RUN = Run(run_id="run-ann", account_id="acc-ann")


@contextmanager
def questions(db: DatabaseFactory) -> Iterator[list[str]]:
    """The SELECTs that read something in the block; to adopt the role, and whether the audit log is on, are none."""
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith("SELECT") and "FROM" in statement and "audit_log" not in statement:
            asked.append(statement)

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(db.engine, "before_cursor_execute", note)


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
    """What a transaction saw that never was proves nothing."""
    with fleet.get_session(user_id="ann") as session:
        add(session, 1)
        session.rollback()
        with questions(fleet) as asked:
            add(session, 1)
        assert len(asked) == 1


def test_one_parent_among_others_that_are_not_own_is_still_told_apart(fleet: DatabaseFactory) -> None:
    """The one question gives each parent its own answer, whichever of them is missing."""
    with fleet.get_session(user_id="ann") as session:
        guard = session.guard  # type: ignore[attr-defined] # a UserSession
        guard._prove_all(session, {Run: {"run-ann"}, BybitAccount: {"acc-bob"}})
        assert set(guard._proved) == {(Run, "run-ann")}
        guard._prove_all(session, {Run: {"run-bob"}, BybitAccount: {"acc-ann"}})
        assert set(guard._proved) == {(Run, "run-ann"), (BybitAccount, "acc-ann")}
