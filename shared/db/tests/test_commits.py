"""What a commit wrote is told, by table, whichever way it was written."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import URL, delete, insert, select, text, update
from sqlalchemy.orm import Session

from shared.db import (
    BybitAccount,
    CommitUnknownError,
    DatabaseFactory,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Recorder,
    Run,
    Strategy,
    StrategyRepository,
    User,
)
from shared.db.tests.support import execution_values, new_run, new_strategy, run_on_server, stored, trade_values

Told = list[frozenset[str]]
Log = pytest.LogCaptureFixture
USERS = {"users", "bybit_accounts", "api_credentials", "strategies", "runs", "private_executions"}


@pytest.fixture
def db(lasting: DatabaseFactory) -> DatabaseFactory:
    """A database on which sessions may overlap."""
    return lasting


@pytest.fixture
def run(db: DatabaseFactory) -> Run:
    """A stored run."""
    with db.get_session() as session:
        user = stored(session, User(username="alice"))
        account = stored(session, BybitAccount(user_id=user.user_id, account_name="main", environment="testnet"))
        return stored(session, new_run(account, stored(session, new_strategy(account))))


@pytest.fixture
def told(db: DatabaseFactory, run: Run) -> Told:
    """What was told since all was set up."""
    told: Told = []
    db.on_commit(told.append)
    return told


def _merge(session: Session, run: Run) -> None:
    session.merge(Run(run_id=run.run_id, status="completed"))


BELOW_A_STRATEGY = {"strategies", "runs", "private_executions"}
WRITES: dict[str, tuple[Any, set[str]]] = {
    "added": (lambda s, run: s.add(User(username="bob")), {"users"}),
    "changed": (_merge, {"runs"}),
    "deleted": (
        lambda s, run: s.delete(s.get(Strategy, run.strategy_id)),
        {"strategies", "runs", "private_executions"},
    ),
    "insert": (lambda s, run: s.execute(insert(User).values(username="bob")), {"users"}),
    "update": (lambda s, run: s.execute(update(Strategy).values(is_enabled=False)), {"strategies"}),
    "delete": (lambda s, run: s.execute(delete(Run)), {"runs", "private_executions"}),
    "bulk": (lambda s, run: PublicTradeRepository(s).bulk_create([trade_values()]), {"public_trades"}),
    "bulk update": (
        lambda s, run: StrategyRepository(s, user_id=run.user_id).bulk_update(
            [{"strategy_id": run.strategy_id, "symbol": "ETHUSDT"}]
        ),
        {"strategies"},
    ),
    "savepoint": (lambda s, run: _in_savepoint(s), {"users"}),
}


def _in_savepoint(session: Session) -> None:
    with session.begin_nested():
        session.add(User(username="bob"))


@pytest.mark.parametrize("how", WRITES)
def test_a_commit_tells_which_tables_it_wrote(db: DatabaseFactory, told: Told, run: Run, how: str) -> None:
    """However they were written, once, and with those whose rows go with a deleted one."""
    write, tables = WRITES[how]
    with db.get_session() as session:
        write(session, run)
        session.flush()
        assert told == []
    assert told == [tables]


def test_a_user_s_session_tells_too(db: DatabaseFactory, told: Told, run: Run) -> None:
    """As a plain one does."""
    with db.get_session(user_id=run.user_id) as session:
        PrivateExecutionRepository(session).bulk_create([execution_values(run)])
    assert told == [{"private_executions"}]


def test_raw_sql_may_have_written_everything(db: DatabaseFactory, told: Told) -> None:
    """A text is not understood: all tables are told, unless it is a SELECT."""
    with db.get_session() as session:
        session.execute(text("SELECT 1"))
        session.execute(select(User).from_statement(text("SELECT * FROM users"))).all()
    assert told == []
    with db.get_session() as session:
        session.execute(text("UPDATE users SET email = NULL"))
    (tables,) = told
    assert tables >= USERS | {"public_trades"}


def test_what_was_rolled_back_or_read_tells_nothing(db: DatabaseFactory, told: Told) -> None:
    """Only a commit that may have written is told."""
    with suppress(ZeroDivisionError), db.get_session() as session:
        session.add(User(username="bob"))
        session.flush()
        raise ZeroDivisionError
    with db.get_session() as session:
        session.scalars(select(User)).all()
    assert told == []


def test_a_callback_that_raises_fails_no_commit(db: DatabaseFactory, told: Told, caplog: Log) -> None:
    """It is logged, and those after it are called."""

    def fail(tables: frozenset[str]) -> None:
        raise RuntimeError("bob's secret")

    db.on_commit(fail)
    db.on_commit(told.append)
    with db.get_session() as session:
        session.add(User(username="bob"))
    assert told == [{"users"}] * 2
    assert "raised RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_a_commit_that_was_not_answered_is_told(postgresql_url: URL) -> None:
    """It may have taken place, and who keeps an answer must not go on with it."""
    told: Told = []
    with DatabaseFactory(postgresql_url) as db:
        db.on_commit(told.append)
        with pytest.raises(CommitUnknownError), db.get_session() as session:
            session.add(User(username="bob"))
            session.flush()
            pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
            run_on_server(postgresql_url, f"SELECT pg_terminate_backend({pid}, 10000)")
    assert told == [{"users"}]


def test_a_recorder_tells_what_it_has_written(db: DatabaseFactory, told: Told) -> None:
    """`on_written` gets the rows of a batch when they can be read by anybody, without those that were refused."""
    seen: list[Any] = []

    def see(rows: Any) -> None:
        with db.get_session(read_only=True) as session:
            seen.append(
                ([row["trade_id"] for row in rows], PublicTradeRepository(session).exists_by_trade_id("trade-0"))
            )

    with Recorder(db, PublicTrade, on_written=see) as recorder:
        recorder.add([trade_values(0), trade_values(1, side="Neither"), trade_values(2)])
        recorder.flush()
        assert seen == [(["trade-0", "trade-2"], True)]
        recorder.add([trade_values(3, side="Neither")])
    assert len(seen) == 1
    assert told == [{"public_trades"}]


def test_what_on_written_raises_holds_up_nothing(db: DatabaseFactory) -> None:
    """The rows are in the database; it is counted as the other callbacks' errors are."""

    def fail(rows: Any) -> None:
        raise RuntimeError

    with Recorder(db, PublicTrade, on_written=fail) as recorder:
        recorder.add([trade_values(0)])
        recorder.flush()
        assert recorder.stats().callback_errors == 1
        assert recorder.stats().written == 1


def _record_and_die(url: str, spool: str) -> None:
    db = DatabaseFactory(url)
    recorder = Recorder(db, PublicTrade, spool=spool, on_written=lambda rows: os._exit(9))
    recorder.add([trade_values(0), trade_values(1)])
    recorder.flush()


def test_a_kill_between_commit_and_on_written_has_it_told_again(lasting: DatabaseFactory, tmp_path: Any) -> None:
    """The rows leave the spool after they were told, so the next recorder tells them."""
    url = lasting.settings.url.render_as_string(hide_password=False)
    child = multiprocessing.get_context("spawn").Process(target=_record_and_die, args=(url, str(tmp_path / "spool")))
    child.start()
    child.join()
    assert child.exitcode == 9
    seen: list[Any] = []
    with Recorder(lasting, PublicTrade, spool=tmp_path / "spool", on_written=seen.extend) as recorder:
        recorder.flush()
        assert recorder.stats().duplicates == 2
    assert [row["trade_id"] for row in seen] == ["trade-0", "trade-1"]
