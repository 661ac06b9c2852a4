"""Rows that came with ids of their own leave PostgreSQL's sequence behind: no later row is lost or blamed for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from shared.db import (
    ConstraintError,
    DatabaseFactory,
    NumberingError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Recorder,
    Run,
)
from shared.db.commands.cli import main
from shared.db.numbering import Lag, lags, mend
from shared.db.tests.support import execution_values, trade_values, two_runs, with_and_without_policies

_LAG = 30


def _leave_behind(session: Session) -> None:
    """Trades that came with their ids, as psql or a restore brings them."""
    session.add_all(PublicTrade(id=number, **trade_values(number)) for number in range(1, _LAG + 1))
    session.flush()


@pytest.mark.parametrize("errors", ["raise", "collect"])
@pytest.mark.parametrize("on_conflict", ["skip", "update", "error"])
def test_bulk_rows_are_all_stored(session: Session, on_conflict: Any, errors: Any) -> None:
    """In one batch and in several, the straight way and through the temporary table, counted as ever."""
    _leave_behind(session)
    trades = PublicTradeRepository(session)
    known = [] if on_conflict == "error" else [trade_values(3)]
    rows = [*(trade_values(number) for number in range(100, 110)), *known]
    result = trades.bulk_create(rows, on_conflict=on_conflict, errors=errors, batch_size=4)
    assert (result.inserted, result.skipped + result.updated, result.rejected) == (10, len(known), 0)
    assert session.scalar(select(func.count()).select_from(PublicTrade)) == _LAG + 10
    session.add(PublicTrade(**trade_values(200)))
    session.flush()


def test_another_insert_is_refused_by_a_name_of_its_own(session: Session) -> None:
    """It is no IntegrityError, which many take for "it is there already", and it names the command; the others go on.

    A row that brought its id is to blame itself.
    """
    _leave_behind(session)
    with pytest.raises(ConstraintError), session.begin_nested():
        session.execute(PublicTrade.__table__.insert().values(id=5, **trade_values(100)))  # type: ignore[attr-defined] # a Table
    if session.get_bind().dialect.name != "postgresql":
        session.add(PublicTrade(**trade_values(100)))
        session.flush()
        return
    with pytest.raises(NumberingError, match=r"shared\.db sequences"), session.begin_nested():
        session.add(PublicTrade(**trade_values(100)))
        session.flush()


def test_a_recorder_loses_and_refuses_nothing(lasting: DatabaseFactory, tmp_path: Path) -> None:
    """Neither trades nor one user's executions, whose role may not set the sequence."""
    ann, _ = two_runs(lasting, executions=0)
    for number, _ in enumerate(with_and_without_policies(lasting)):
        with lasting.get_session() as session:
            session.execute(delete(PublicTrade))
            _leave_behind(session)
            first = number * 1000
            fills = [execution_values(ann, first + n, id=first + n) for n in range(1, _LAG + 1)]
            PrivateExecutionRepository.across_users(session).bulk_create(fills)
        with (
            Recorder(lasting, PublicTrade, dead_letters=tmp_path / "trades") as trades,
            Recorder(lasting, PrivateExecution, user_id="ann", dead_letters=tmp_path / "fills") as executions,
        ):
            trades.add([trade_values(n) for n in range(500, 550)])
            executions.add([execution_values(ann, first + n) for n in range(500, 550)])
            trades.flush()
            executions.flush()
        for recorder in (trades, executions):
            assert (recorder.stats().written, recorder.stats().rejected) == (50, 0)
    assert not (tmp_path / "trades").exists()
    assert not (tmp_path / "fills").exists()


def test_status_tells_and_a_command_mends(db: DatabaseFactory, capsys: pytest.CaptureFixture[str]) -> None:
    """The problem names table, numbers and command; afterwards there is none, and the next number is free."""
    if db.settings.is_memory:
        return  # the command cannot reach it
    with db.get_session() as session:
        _leave_behind(session)
    arguments = ["sequences", "--db-url", db.settings.url.render_as_string(hide_password=False)]
    if db.engine.dialect.name == "postgresql":
        (problem,) = db.health().problems
        assert "public_trades: the newest id is 30, and the sequence is at 0" in problem
        assert problem.endswith("run: python -m shared.db sequences")
        assert main(arguments) == 0
        assert "public_trades: brought from 0 to 30" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "no sequence lags behind" in capsys.readouterr().out
    assert db.health().problems == ()
    with db.get_session() as session:
        session.add(PublicTrade(**trade_values(100)))


def test_a_sequence_is_never_set_back(postgresql_url: Any) -> None:
    """One that is ahead of its rows stays there: what it gave may not be committed yet."""
    with DatabaseFactory(postgresql_url) as db:
        with db.get_session() as session:
            _leave_behind(session)
            session.execute(text("SELECT setval('public_trades_id_seq', 77)"))
        with db.engine.begin() as connection:
            assert lags(connection) == mend(connection) == []
            assert connection.scalar(text("SELECT nextval('public_trades_id_seq')")) == 78
            connection.execute(text("SELECT setval('public_trades_id_seq', 5)"))
            assert mend(connection) == [Lag("public_trades", 5, 30)]


def test_a_login_that_may_not_mend_keeps_its_rows(postgresql_fleet: DatabaseFactory) -> None:
    """Under policies a user's own bulk write is refused as a whole, by the name that says what to do."""
    with postgresql_fleet.get_session() as session:
        highest = session.scalar(select(func.max(PrivateExecution.id))) or 0
        # Two, for the writer tries twice.
        for number, run_id in enumerate(("run-bob", "run-ann"), start=1):
            of_run = update(PrivateExecution).where(PrivateExecution.run_id == run_id)
            session.execute(of_run.values(id=highest + number))
        session.execute(text("SELECT setval('private_executions_id_seq', :n)"), {"n": highest})
    with postgresql_fleet.get_session(user_id="ann") as session:
        run = session.get_one(Run, "run-ann")
        confined = session.confined_by_server  # type: ignore[attr-defined] # a UserSession
        create = PrivateExecutionRepository(session).bulk_create
        rows = [execution_values(run, number) for number in range(3)]
        if confined:
            with pytest.raises(NumberingError, match="sequences"):
                create(rows, errors="collect")
        else:
            assert create(rows).inserted == 3
