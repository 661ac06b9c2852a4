"""A session answers with what the database has: after its own COMMIT, and below what was deleted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import ObjectDeletedError

from shared.db import (
    ApiCredential,
    ApiCredentialRepository,
    BybitAccount,
    BybitAccountRepository,
    DatabaseFactory,
    PrivateExecution,
    PrivateExecutionRepository,
    Run,
    RunRepository,
    SharedDBError,
    StaleDocumentError,
    StaleRowError,
    Strategy,
    User,
)
from shared.db.tests.support import execution_values, new_run, new_strategy, stored


def ids(session: Session) -> dict[str, str]:
    """One user with an account, a credential, a strategy and a run, committed; their keys."""
    user = stored(session, User(username="alice"))
    account = stored(session, BybitAccount(user=user, account_name="main", environment="testnet"))
    credential = stored(session, ApiCredential(account=account, api_key_id="k", api_secret="old"))
    strategy = stored(session, new_strategy(account))
    run = stored(session, new_run(account, strategy, status="running"))
    session.commit()
    keys = {"user": user.user_id, "account": account.account_id, "run": run.run_id}
    return keys | {"credential": credential.credential_id, "strategy": strategy.strategy_id}


def test_the_next_transaction_sees_what_another_one_wrote(lasting: DatabaseFactory) -> None:
    """Each way to ask, also in one user's session: no value of before the COMMIT, and no row that is gone since."""
    with lasting.get_session() as session:
        key = ids(session)
    for user in ({}, {"user_id": key["user"]}):
        with lasting.get_session(**user) as session:  # type: ignore[arg-type] # either kind
            runs = RunRepository(session, user_id=key["user"])
            credentials = ApiCredentialRepository(session, user_id=key["user"])
            held: list[Any] = [
                runs.get_by_id(key["run"]),
                credentials.get_active_credential(key["account"]),
                session.get_one(User, key["user"]),
            ]
            assert held[2].runs == [held[0]]
            session.commit()
            with lasting.get_session() as other:
                other.get_one(Run, key["run"]).status = "failed"
                other.get_one(Run, key["run"]).config_snapshot = {"by": "the other"}
                other.get_one(ApiCredential, key["credential"]).api_secret = "new"
            found = runs.get_by_id(key["run"])
            assert found is not None
            assert found is held[0] is runs.get_latest_by_type("live") is session.get(Run, key["run"])
            assert (found.status, found.config_snapshot) == ("failed", {"by": "the other"})
            active: Any = credentials.get_active_credential(key["account"])
            assert active is held[1] is not None
            assert active.api_secret == "new"
            session.commit()
            with lasting.get_session() as other:
                other.execute(update(Run).values(status="running", config_snapshot=None))
                other.get_one(ApiCredential, key["credential"]).api_secret = "old"
    with lasting.get_session() as session:
        user_held = session.get_one(User, key["user"])
        assert len(user_held.runs) == 1
        assert session.get(Strategy, key["strategy"])
        session.commit()
        with lasting.get_session() as other:
            other.execute(delete(Strategy))
        assert session.get(Run, key["run"]) is None
        assert session.get(Strategy, key["strategy"]) is None
        assert user_held.runs == []


def test_a_loop_that_polls_ends(lasting: DatabaseFactory) -> None:
    """Another connection's change reaches a session that commits between its looks."""
    with lasting.get_session() as session:
        key = ids(session)
    with lasting.get_session() as session:
        repository = RunRepository.across_users(session)
        run = repository.get_by_id(key["run"])
        for look in range(5):
            assert run is not None
            if run.status != "running":
                break
            session.commit()
            if look == 2:
                with lasting.get_session() as other:
                    RunRepository.across_users(other).finish(key["run"])
            run = repository.get_by_id(key["run"])
        assert run is not None
        assert (run.status, look) == ("completed", 3)


def test_objects_stay_readable_after_close(db: DatabaseFactory) -> None:
    """Whatever transactions followed, with what was seen of them last: columns, documents, collections, links."""
    with db.get_session() as session:
        key = ids(session)
    with db.get_session() as session:
        run = session.get_one(Run, key["run"])
        run.config_snapshot = {"levels": 1}
        user, strategy = run.user, run.strategy
        assert user.runs == [run]
        assert strategy.account.strategies == [strategy]
        session.commit()
        session.execute(select(1))
        session.commit()
        account = session.get_one(BybitAccount, key["account"])  # a transaction that reads none of the others
        session.commit()
        session.execute(select(1))
    assert (run.status, run.config_snapshot) == ("running", {"levels": 1})
    assert (user.username, user.runs, run.strategy) == ("alice", [run], strategy)
    assert (account.account_name, strategy.account, account.strategies) == ("main", account, [strategy])
    assert run.config_snapshot is not None
    run.config_snapshot["levels"] = 2
    user.runs.append(Run())  # a list like any other
    with db.get_session() as session:
        run = session.get_one(Run, key["run"])
        session.commit()
        session.get(User, key["user"])
        session.expunge(run)
    assert run.status == "running"


def test_a_change_that_begins_a_transaction_is_kept(db: DatabaseFactory) -> None:
    """Setting an attribute, editing a document or a collection right after COMMIT; all else is read again."""
    with db.get_session() as session:
        key = ids(session)
        run, account = session.get_one(Run, key["run"]), session.get_one(BybitAccount, key["account"])
        run.config_snapshot = {"levels": 1}
        session.commit()
        run.host = "here"
        session.commit()
        run.config_snapshot["levels"] = 2
        session.commit()
        account.strategies.append(new_strategy(account, "ETHUSDT"))
        session.commit()
        document = run.config_snapshot
        session.commit()
        session.execute(select(1))
        with pytest.raises(StaleDocumentError):
            document["levels"] = 3
        assert (run.host, run.config_snapshot) == ("here", {"levels": 2})
        assert [strategy.symbol for strategy in account.strategies] == ["BTCUSDT", "ETHUSDT"]


def _object(session: Session, account: BybitAccount) -> None:
    session.delete(account)
    session.flush()


def _repository(session: Session, account: BybitAccount) -> None:
    BybitAccountRepository.across_users(session).delete(account)


def _statement(session: Session, account: BybitAccount) -> None:
    session.execute(delete(BybitAccount).where(BybitAccount.account_id == account.account_id))


def _core(session: Session, account: BybitAccount) -> None:
    session.execute(delete(BybitAccount.__table__))  # type: ignore[arg-type] # declared wider than it is


def _sql(session: Session, account: BybitAccount) -> None:
    session.execute(text("DELETE FROM bybit_accounts"))


def _cascade(session: Session, account: BybitAccount) -> None:
    session.delete(account.user)
    session.flush()


@pytest.mark.parametrize("remove", [_object, _repository, _statement, _core, _sql, _cascade])
@pytest.mark.parametrize("in_savepoint", [False, True])
def test_nothing_below_a_deleted_row_is_answered(
    session: Session, remove: Callable[[Session, BybitAccount], None], in_savepoint: bool
) -> None:
    """However it was deleted: by key, in collections, and where the rows in between were never loaded."""
    key = ids(session)
    run = session.get_one(Run, key["run"])
    stored(session, PrivateExecution(**execution_values(run)))
    other = stored(session, BybitAccount(user_id=key["user"], account_name="other", environment="testnet"))
    beside = stored(session, new_strategy(other))
    session.commit()
    session.expunge_all()
    del run
    executions = PrivateExecutionRepository.across_users(session).get_by_run_range(key["run"])  # not so its run
    credential = session.get_one(ApiCredential, key["credential"])
    account, user = session.get_one(BybitAccount, key["account"]), session.get_one(User, key["user"])
    beside = session.get_one(Strategy, beside.strategy_id)
    assert (len(user.runs), len(user.accounts)) == (1, 2)
    savepoint = session.begin_nested() if in_savepoint else None
    remove(session, account)
    assert session.get(BybitAccount, key["account"]) is None
    assert session.get(PrivateExecution, executions[0].id) is None
    assert session.get(ApiCredential, key["credential"]) is None
    assert session.get(Run, key["run"]) is None
    survivor = session.get(User, key["user"])
    assert survivor is None if remove is _cascade else survivor is user
    if survivor is not None:
        assert survivor.runs == []
        rest = [one.account_name for one in survivor.accounts]
        assert rest == ([] if remove in (_core, _sql) else ["other"])
    if remove in (_object, _repository, _statement):
        assert session.get(Strategy, beside.strategy_id) is beside
    if savepoint is not None:
        savepoint.rollback()
        assert session.get(Run, key["run"]) is not None
        assert session.get(ApiCredential, key["credential"]) is credential
        assert credential.api_key_id == "k"
        assert len(session.get_one(User, key["user"]).accounts) == 2


def test_a_deleted_row_that_is_added_again_brings_no_ghosts(session: Session) -> None:
    """An account under its old id has no runs, whichever way one asks."""
    key = ids(session)
    run, account = session.get_one(Run, key["run"]), session.get_one(BybitAccount, key["account"])
    session.delete(account)
    session.flush()
    again = BybitAccount(account_id=key["account"], user_id=key["user"], account_name="m", environment="testnet")
    stored(session, again)
    assert session.get(BybitAccount, key["account"]) is again
    assert again.runs == []
    assert session.get(Run, key["run"]) is None
    assert run not in session


def test_what_a_deletion_does_not_concern_is_not_read_again(session: Session) -> None:
    """Rows that the session knows to be under other parents stay loaded."""
    key = ids(session)
    bob = stored(session, User(username="bob"))
    account = stored(session, BybitAccount(user=bob, account_name="main", environment="testnet"))
    strategy = stored(session, new_strategy(account))
    assert bob.accounts == [account]
    session.delete(session.get_one(User, key["user"]))
    session.flush()
    assert "symbol" in strategy.__dict__
    assert "account_name" in account.__dict__
    assert "accounts" in bob.__dict__


def _set(session: Session, run: Run) -> None:
    run.status = "failed"
    session.flush()


@pytest.mark.parametrize(
    "edit",
    [
        _set,
        lambda session, run: run.config_snapshot.update(levels=1),
        lambda session, run: RunRepository.across_users(session).finish(run.run_id),
        lambda session, run: RunRepository.across_users(session).update(run),
        lambda session, run: session.refresh(run),
        lambda session, run: run.host,
        lambda session, run: stored(session, PrivateExecution(**execution_values(run))),
    ],
)
def test_edits_of_what_is_gone_have_a_name(session: Session, edit: Callable[[Session, Run], Any]) -> None:
    """Whoever still holds a row below a deleted one is told so by an error of this library."""
    key = ids(session)
    run = session.get_one(Run, key["run"])
    run.config_snapshot = {}
    session.delete(session.get_one(Strategy, key["strategy"]))
    session.flush()
    with pytest.raises(SharedDBError) as caught:
        edit(session, run)
    session.rollback()
    if isinstance(caught.value, StaleRowError):
        assert isinstance(caught.value, ObjectDeletedError)
        assert "read the row again" in str(caught.value)


def test_a_row_read_after_it_was_changed_by_statement_is_as_stored(session: Session) -> None:
    """Also a column that the object in hand never had a value for."""
    key = ids(session)
    run = session.get_one(Run, key["run"])
    fresh = stored(session, new_run(run.account, run.strategy, run_type="shadow"))
    now = datetime.now(UTC)
    session.execute(update(Run).values(end_ts=now))
    assert run.end_ts == fresh.end_ts == now
