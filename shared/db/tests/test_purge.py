"""Old rows go in short batches: those that were meant, all of them, and nobody else's."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from shared.db import (
    AuditLog,
    DatabaseFactory,
    InputError,
    InvalidValueError,
    PrivateExecution,
    PublicTrade,
    PublicTradeRepository,
    Run,
    RunRepository,
)
from shared.db.commands.cli import main
from shared.db.operations import purge
from shared.db.operations.purge import purge_executions, purge_trades
from shared.db.tests.support import trade_values, two_runs

START = datetime(2025, 5, 19, tzinfo=UTC)
BEFORE = START + timedelta(milliseconds=600)


def fill(db: DatabaseFactory, trades: int = 1_000) -> None:
    """Trades of two symbols, one a millisecond."""
    with db.get_session() as session:
        for symbol in ("BTCUSDT", "ETHUSDT"):
            PublicTradeRepository(session).bulk_create(trade_values(number, symbol=symbol) for number in range(trades))


def left(db: DatabaseFactory) -> dict[str, list[datetime]]:
    """The times of the trades that are there, by symbol."""
    with db.get_session(read_only=True) as session:
        found: dict[str, list[datetime]] = {}
        for symbol, when in session.execute(
            select(PublicTrade.symbol, PublicTrade.exchange_ts).order_by(PublicTrade.exchange_ts)
        ):
            found.setdefault(symbol, []).append(when)
    return found


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a thousand rows take several."""
    monkeypatch.setattr(purge, "_LARGEST", 250)
    monkeypatch.setattr(purge, "_SHORTEST_PAUSE", 0)


@pytest.mark.parametrize("symbol", [None, "BTCUSDT", "XRPUSDT"])
def test_what_is_older_goes(db: DatabaseFactory, symbol: str | None) -> None:
    """Strictly before the time, of the symbol alone if one is named; a dry run counts exactly that, and leaves it."""
    fill(db)
    before = left(db)
    counted = purge_trades(db, BEFORE, symbol, dry_run=True)
    assert left(db) == before
    report = purge_trades(db, BEFORE, symbol)
    kept = {
        each: [when for when in times if when >= BEFORE or symbol not in (None, each)] for each, times in before.items()
    }
    assert left(db) == kept
    assert report.rows == counted.rows == sum(map(len, before.values())) - sum(map(len, kept.values()))
    assert report.finished
    assert not report.dry_run
    assert counted.dry_run
    assert purge_trades(db, BEFORE, symbol).rows == 0


def test_a_stopped_purge_goes_on(db: DatabaseFactory) -> None:
    """It ends after the batch at hand, which stays deleted; the next one does the rest."""
    fill(db)
    told: list[int] = []
    report = purge_trades(db, BEFORE, watch=lambda done, rows: told.append(done), stop=lambda: len(told) == 2)
    assert not report.finished
    assert 0 < report.rows == told[-1] < 1_200
    assert purge_trades(db, BEFORE).rows == 1_200 - report.rows
    assert [len(times) for times in left(db).values()] == [400, 400]


def test_a_naive_time_is_refused(db: DatabaseFactory) -> None:
    """It does not say which trades are meant."""
    with pytest.raises(InvalidValueError, match="naive"):
        purge_trades(db, datetime(2025, 5, 19))  # noqa: DTZ001 # what is refused


def test_the_executions_of_one_run_go(db: DatabaseFactory) -> None:
    """Those of the user's run alone, those before a time if given; the run itself stays."""
    two_runs(db, executions=300)
    middle = datetime(2025, 5, 3, 11, 7, 0, 100_000, tzinfo=UTC)
    with pytest.raises(InputError, match="still running; finish it first"):
        purge_executions(db, "run-ann", "ann")
    with db.get_session(user_id="ann") as session:
        RunRepository(session).finish("run-ann")
    assert purge_executions(db, "run-ann", "ann", dry_run=True).rows == 300
    assert purge_executions(db, "run-ann", "ann", middle).rows == 100
    assert purge_executions(db, "run-ann", "ann").rows == 200
    with db.get_session() as session:
        counts = session.execute(select(PrivateExecution.run_id, func.count()).group_by(PrivateExecution.run_id))
        assert {tuple(row) for row in counts} == {("run-bob", 300)}
        assert session.scalar(select(func.count()).select_from(Run)) == 2


def test_another_user_s_run_is_not_found(busy_fleet: DatabaseFactory) -> None:
    """By whatever id it is asked for."""
    for run_id in ("run-bob", "run-nobody"):
        with pytest.raises(InputError, match="has no run"):
            purge_executions(busy_fleet, run_id, "ann")


def test_the_audit_log_counts_what_went(db: DatabaseFactory) -> None:
    """One entry a batch, with its number of rows."""
    db.enable_audit()
    fill(db, 300)
    purge_trades(db, BEFORE)
    with db.get_session() as session:
        deleted = select(func.sum(AuditLog.row_count)).where(
            AuditLog.action == "delete", AuditLog.entity == "PublicTrade"
        )
        assert session.scalar(deleted) == 600


def test_writers_get_in_between(busy_fleet: DatabaseFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that never waits longer than half a second for the lock writes all the while."""
    monkeypatch.setattr(purge, "_LARGEST", 20_000)
    monkeypatch.setattr(purge, "_SHORTEST_PAUSE", 0.02)
    fill(busy_fleet, 5_000)
    hasty = busy_fleet.settings.model_copy(update={"sqlite_busy_timeout": 0.5})
    finished = threading.Event()
    written: list[int] = []

    def write() -> None:
        with DatabaseFactory(hasty) as db:
            while not finished.is_set():
                with db.get_session() as session:
                    session.add(PublicTrade(**trade_values(len(written), symbol="NEW", exchange_ts=datetime.now(UTC))))
                written.append(1)
                time.sleep(0.005)  # a recorder's batches have time between them

    writer = threading.Thread(target=write)
    writer.start()
    try:
        report = purge_trades(busy_fleet, START + timedelta(days=1))
    finally:
        finished.set()
        writer.join()
    assert report.rows == 10_000
    assert len(written) > 5
    assert {symbol: len(times) for symbol, times in left(busy_fleet).items()} == {"NEW": len(written)}


def test_the_command_purges(busy_fleet: DatabaseFactory, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run, the real one, JSON, and a word on the file's size on SQLite."""
    fill(busy_fleet)
    url = ["--db-url", busy_fleet.settings.get_database_url()]
    trades = ["purge", "--table", "public_trades", "--before", "2025-05-19T00:00:00.600", *url]
    assert main([*trades, "--dry-run"]) == 0
    assert capsys.readouterr().out == "1,200 rows of public_trades would go\n"
    assert main([*trades, "--symbol", "BTCUSDT", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 600
    assert main(trades) == 0
    said = capsys.readouterr().out
    assert said.startswith("600 rows of public_trades deleted in ")
    assert ("VACUUM" in said) == busy_fleet.settings.is_sqlite
    executions = ["purge", "--table", "private_executions", *url, "--run", "run-ann"]
    assert main([*executions, "--user", "bob"]) == 1
    assert "user 'bob' has no run 'run-ann'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--table", "public_trades"],
        ["--table", "public_trades", "--before", "2025-05-19", "--run", "r"],
        ["--table", "private_executions", "--before", "2025-05-19"],
        ["--table", "private_executions", "--run", "r"],
        ["--table", "private_executions", "--run", "r", "--user", "u", "--symbol", "BTCUSDT"],
        ["--table", "users", "--before", "2025-05-19"],
        ["--before", "2025-05-19"],
    ],
)
def test_executions_never_go_by_default(arguments: list[str]) -> None:
    """What is to go is named in full, or nothing is done."""
    with pytest.raises(SystemExit, match="2"):
        main(["purge", *arguments])


def test_ctrl_c_ends_it_after_a_batch(
    busy_fleet: DatabaseFactory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the exit code of an interruption, and a word on how to go on."""
    fill(busy_fleet)
    pauses: list[Any] = []

    def interrupt(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(time, "sleep", interrupt)
    arguments = ["purge", "--table", "public_trades", "--before", "2025-05-20"]
    assert main([*arguments, "--db-url", busy_fleet.settings.get_database_url()]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert 0 < sum(map(len, left(busy_fleet).values())) < 2_000
