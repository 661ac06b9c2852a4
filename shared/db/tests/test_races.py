"""Two processes do the same at the same moment: what a repository reads before it writes still holds when it writes."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.db import (
    ApiCredential,
    ApiCredentialRepository,
    BybitAccount,
    DatabaseFactory,
    RowNotFoundError,
    Run,
    RunEndedError,
    RunRepository,
    Strategy,
    StrategyRepository,
    User,
)
from shared.db.tests.support import in_children, new_run, new_strategy, stored, with_and_without_policies

# Of the code that did not lock, half of the rounds went wrong.
_ROUNDS = 12
# What one process does in a session of the user's, in the round of that number; what it says is counted.
Attempt = Callable[[Session, int], object]


def _race(db: DatabaseFactory, *attempts: Attempt) -> list[Counter[str]]:
    """What the processes, one for each attempt, said in each round; every round has rows of its own."""
    with db.get_session() as session:
        session.execute(User.__table__.delete())  # type: ignore[attr-defined] # a Table, as declared
        user = stored(session, User(user_id="ann", username="ann"))
        for number in range(_ROUNDS):
            account = BybitAccount(account_id=f"acc-{number}", account_name=f"{number}", environment="testnet")
            user.accounts.append(account)
            session.flush()
            strategy = stored(session, new_strategy(account, strategy_id=f"str-{number}"))
            stored(session, new_run(account, strategy, run_id=f"run-{number}", status="running"))
            key = ApiCredential(credential_id=f"key-{number}", api_key_id="first", api_secret="s")
            account.credentials.append(key)
    together = multiprocessing.get_context("fork").Barrier(len(attempts))

    def take_part(number: int) -> list[str]:
        said = []
        for round_number in range(_ROUNDS):
            together.wait(30)
            try:
                with db.get_session(user_id="ann") as session:
                    answer = str(attempts[number](session, round_number))
            except (RunEndedError, RowNotFoundError) as error:
                answer = type(error).__name__
            said.append(answer)
        return said

    return [Counter(answers) for answers in zip(*in_children(len(attempts), take_part), strict=True)]


def _states(db: DatabaseFactory, number: int) -> list[str]:
    with db.get_session() as session:
        states = select(Run.status).where(Run.strategy_id == f"str-{number}").order_by(Run.status)
        return list(session.scalars(states))


def _start(session: Session, number: int) -> str:
    values = {"account_id": f"acc-{number}", "strategy_id": f"str-{number}", "run_type": "live"}
    return RunRepository(session).start(Run(user_id="ann", **values)).status


def _close_orphans(session: Session, number: int) -> int:
    return RunRepository(session).close_orphans(f"str-{number}", "live")


def _finish(session: Session, number: int) -> str:
    return RunRepository(session).finish(f"run-{number}").status


def _fail(session: Session, number: int) -> str:
    return RunRepository(session).fail(f"run-{number}").status


def _delete(session: Session, number: int) -> str:
    StrategyRepository(session).delete(Strategy(strategy_id=f"str-{number}"))
    return "deleted"


def _update_many(session: Session, number: int) -> int:
    return StrategyRepository(session).bulk_update([{"strategy_id": f"str-{number}", "strategy_type": "New"}])


def test_of_two_that_start_the_same_work_one_runs(lasting: DatabaseFactory) -> None:
    """Both are let in, one after the other, and the later one has closed the earlier one and the orphan."""
    for _ in with_and_without_policies(lasting):
        assert _race(lasting, _start, _start) == [Counter(running=2)] * _ROUNDS
        for number in range(_ROUNDS):
            assert _states(lasting, number) == ["failed", "failed", "running"]


def test_a_run_ends_in_one_way(lasting: DatabaseFactory) -> None:
    """Of finish() and fail() one is told that the run has ended, and the row says what the other one was told."""
    for _ in with_and_without_policies(lasting):
        for number, said in enumerate(_race(lasting, _finish, _fail)):
            assert said["RunEndedError"] == 1
            assert _states(lasting, number) == [state for state in said if state != "RunEndedError"]


def test_an_orphan_is_closed_once(lasting: DatabaseFactory) -> None:
    """By one of two that close orphans, and by neither where its own process finished it."""
    assert _race(lasting, _close_orphans, _close_orphans) == [Counter({"1": 1, "0": 1})] * _ROUNDS
    for number, said in enumerate(_race(lasting, _close_orphans, _finish)):
        assert said in (Counter({"0": 1, "completed": 1}), Counter({"1": 1, "RunEndedError": 1}))
        assert _states(lasting, number) == ["completed" if said["completed"] else "failed"]


def test_of_two_rotations_the_later_ones_key_is_active(lasting: DatabaseFactory) -> None:
    """Neither is refused, every key before it has ended, and once."""

    def rotate(session: Session, number: int) -> bool:
        return ApiCredentialRepository(session).rotate(f"acc-{number}", "next", "s").is_active

    for _ in with_and_without_policies(lasting):
        assert _race(lasting, rotate, rotate) == [Counter({"True": 2})] * _ROUNDS
        with lasting.get_session() as session:
            ended = func.count(ApiCredential.rotated_at)
            of_account = select(func.count(), ended).group_by(ApiCredential.account_id)
            assert session.execute(of_account).all() == [(3, 2)] * _ROUNDS


def test_a_row_is_deleted_once(lasting: DatabaseFactory) -> None:
    """The other one is told that there is no such row; so is whoever changes many rows meanwhile."""
    for _ in with_and_without_policies(lasting):
        assert _race(lasting, _delete, _delete) == [Counter(deleted=1, RowNotFoundError=1)] * _ROUNDS
        for said in _race(lasting, _delete, _update_many):
            assert said in (Counter({"deleted": 1, "1": 1}), Counter(deleted=1, RowNotFoundError=1))
