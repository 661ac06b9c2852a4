"""A run that is alive says so; one that was taken for dead is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from shared.db import (
    BybitAccount,
    DatabaseFactory,
    InvalidValueError,
    PrivateExecution,
    RowNotFoundError,
    Run,
    RunEndedError,
    RunRepository,
    Strategy,
    User,
)
from shared.db.tests.support import execution_values, new_run, stored


def test_a_heartbeat_is_the_present_instant(session: Session, sample_run: Run) -> None:
    """Each one overwrites the last; the machine stays what it was unless it is given."""
    runs = RunRepository(session, user_id=sample_run.user_id)
    before = datetime.now(UTC)
    assert runs.heartbeat(sample_run.run_id, host="bot-1").host == "bot-1"
    first = sample_run.heartbeat_ts
    assert first is not None
    assert before <= first <= datetime.now(UTC)
    again = runs.heartbeat(sample_run.run_id)
    assert again.heartbeat_ts is not None
    assert again.heartbeat_ts >= first
    session.expire_all()
    assert (sample_run.heartbeat_ts, sample_run.host) == (again.heartbeat_ts, "bot-1")
    with pytest.raises(InvalidValueError, match="255"):
        runs.heartbeat(sample_run.run_id, host="x" * 256)
    session.rollback()


def test_a_heartbeat_of_another_users_run_finds_nothing(session: Session, sample_run: Run) -> None:
    """Neither his run nor one that does not exist is told apart."""
    other = stored(session, User(username="mallory"))
    for run_id in (sample_run.run_id, "no such run"):
        with pytest.raises(RowNotFoundError):
            RunRepository(session).heartbeat(run_id, user_id=other.user_id)
    assert sample_run.heartbeat_ts is None


def test_a_bot_that_was_taken_for_dead_learns_it(session: Session, sample_run: Run) -> None:
    """Also where it has read its run before, and another process has closed it since."""
    runs = RunRepository(session, user_id=sample_run.user_id)
    runs.heartbeat(sample_run.run_id)
    session.execute(
        update(Run.__table__).values(status="failed")  # type: ignore[arg-type] # a Table, past this session's memory
    )
    with pytest.raises(RunEndedError, match="failed"):
        runs.heartbeat(sample_run.run_id)
    with pytest.raises(RunEndedError, match="failed"):
        runs.finish(sample_run.run_id)


def test_a_user_session_beats_for_its_own_run(db: DatabaseFactory) -> None:
    """The shortest path works: no user to name."""
    with db.get_session() as session:
        user = stored(session, User(username="alice"))
        account = stored(session, BybitAccount(user_id=user.user_id, account_name="main", environment="testnet"))
        strategy = stored(
            session,
            Strategy(account_id=account.account_id, strategy_type="Grid", symbol="BTCUSDT", config_json={}),
        )
        run = stored(session, new_run(account, strategy, status="running"))
    with db.get_session(user_id=user.user_id) as session:
        assert RunRepository(session).heartbeat(run.run_id, host="bot-1").heartbeat_ts is not None


@pytest.mark.parametrize(
    ("execution", "heartbeat", "end"),
    [(None, None, 0), (None, 7, 7), (5, None, 5), (5, 7, 7), (9, 7, 9), (None, -3, 0)],
)
def test_an_orphan_ended_when_it_was_last_seen(
    session: Session,
    sample_run: Run,
    sample_account: BybitAccount,
    sample_strategy: Strategy,
    execution: int | None,
    heartbeat: int | None,
    end: int,
) -> None:
    """Its end is the later one of its last execution and its last heartbeat, and never before its start."""
    start = sample_run.start_ts
    if execution is not None:
        values = execution_values(sample_run, exchange_ts=start + timedelta(seconds=execution))
        stored(session, PrivateExecution(**values))
    sample_run.heartbeat_ts = None if heartbeat is None else start + timedelta(seconds=heartbeat)
    session.flush()
    runs = RunRepository(session, user_id=sample_run.user_id)
    fresh = runs.start(new_run(sample_account, sample_strategy))
    assert sample_run.status == "failed"
    assert sample_run.end_ts == start + timedelta(seconds=end)
    assert fresh.status == "running"
