"""Ctrl-C and a service manager's stop: one line that says in which state the target is, and the same exit code."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import func, select

from shared.db import (
    BackupError,
    DatabaseFactory,
    DatabaseLockedError,
    PublicTrade,
    PublicTradeRepository,
    User,
    exact_sum,
)
from shared.db.commands.cli import main
from shared.db.operations import interruption, sqlite_backup
from shared.db.operations.backup import back_up, restore
from shared.db.operations.checksum import verify_checksum, write_checksum
from shared.db.operations.copy_database import copy_database
from shared.db.operations.export import export_trades
from shared.db.operations.interruption import Interrupted, check, finishing, interruptible
from shared.db.sqlite_functions import _ExactSum
from shared.db.tests.support import trade_values, usernames

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _tools(postgresql_tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_dump and pg_restore of the server's version stand first in the PATH."""
    monkeypatch.setenv("PATH", f"{postgresql_tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sqlite_backup, "_PAGES", 5)


def filled(db: DatabaseFactory, trades: int = 3_000) -> None:
    """A user and trades."""
    with db.get_session() as session:
        session.add(User(username="ann"))
        PublicTradeRepository(session).bulk_create(trade_values(number) for number in range(trades))


def stopping(number: int) -> Callable[[int, int], None]:
    """Sends this process a signal as soon as there is progress."""
    sent: list[int] = []

    def watch(done: int, rows: int) -> None:
        if not sent:
            sent.append(number)
            signal.raise_signal(number)

    return watch


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupted_operation_says_that_nothing_took_place(
    db: DatabaseFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture, number: signal.Signals
) -> None:
    """Backup, restore, copy and export, for both signals, and the handlers are back afterwards."""
    filled(db)
    before = [signal.getsignal(one) for one in SIGNALS]
    path = tmp_path / "folder" / "backup"
    path.parent.mkdir()
    with pytest.raises(Interrupted, match=r"no backup was made, and .*backup is as it was"):
        back_up(db, path, watch=stopping(number))
    with pytest.raises(Interrupted, match=r"trades\.csv is as it was"):
        export_trades(db, path.with_name("trades.csv"), "BTCUSDT", watch=stopping(number))
    assert list(path.parent.iterdir()) == []
    back_up(db, path)
    with db.get_session() as session:
        session.add(User(username="bob"))
    with pytest.raises(Interrupted, match=r"the restore did not take place, and .* is as it was"):
        restore(db, path, force=True, watch=stopping(number))
    assert usernames(db) == ["ann", "bob"]
    with DatabaseFactory("sqlite:///:memory:") as target:
        with pytest.raises(Interrupted, match=r"nothing was copied, and .*:memory: is as it was"):
            copy_database(db, target, watch=stopping(number))
        target.create_tables()
        assert usernames(target) == []
    assert [signal.getsignal(one) for one in SIGNALS] == before
    assert not caplog.records  # no cursor that was left open, and closed behind its connection


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_commit_says_that_it_took_place(
    db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Between the COMMIT and the note of it nothing is raised: whoever is told "as it was" can rely on it."""
    filled(db, 10)
    path = tmp_path / "backup"
    back_up(db, path)
    with db.get_session() as session:
        session.add(User(username="bob"))

    @contextmanager
    def interrupted(state: str) -> Iterator[None]:
        with finishing(state):
            yield
            signal.raise_signal(number)

    for module in ("sqlite_backup", "postgresql_backup", "mysql_backup"):
        monkeypatch.setattr(f"shared.db.operations.{module}.finishing", interrupted)
    with pytest.raises(Interrupted, match=r"the restore took place, and .* holds the rows of .*backup"):
        restore(db, path, force=True)
    assert usernames(db) == ["ann"]


@pytest.mark.parametrize("moment", ["before it is in place", "before its checksum is"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_backup_that_is_in_place_has_its_checksum(
    db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, moment: str
) -> None:
    """Once the old one's checksum has gone no signal ends the work before the new one's is there."""
    filled(db, 10)
    path = tmp_path / "backup"

    @contextmanager
    def interrupted(state: str) -> Iterator[None]:
        with finishing(state):
            signal.raise_signal(number)
            yield

    def written(path: Path, found: str) -> None:
        signal.raise_signal(number)
        write_checksum(path, found)

    if moment == "before its checksum is":
        monkeypatch.setattr("shared.db.operations.backup.write_checksum", written)
    else:
        monkeypatch.setattr("shared.db.operations.backup.finishing", interrupted)
    with pytest.raises(Interrupted, match=r"the backup .*backup is complete and verified"):
        back_up(db, path)
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith("backup")) == [
        "backup",
        "backup.sha256",
    ]
    verify_checksum(path)


def test_ctrl_c_in_a_sum_is_no_damage(db: DatabaseFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """On SQLite it hits a function of ours that SQLite calls, and whose failure is damage for any other reason."""
    filled(db, 10)

    def interrupted(aggregate: object, value: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_ExactSum, "step", interrupted)
    with db.get_session() as session:
        if db.settings.is_sqlite:
            with pytest.raises(KeyboardInterrupt):
                session.scalar(select(exact_sum(PublicTrade.price)))
        assert session.scalar(select(func.count()).select_from(PublicTrade)) == 10


def test_what_a_driver_makes_of_a_signal_is_not_told(tmp_path: Path) -> None:
    """Its error is the signal's doing; what this library itself has found wrong is told all the same."""
    with pytest.raises(Interrupted, match="as it was") as told, interruptible("as it was"):
        signal.raise_signal(signal.SIGTERM)
        raise DatabaseLockedError(sqlite3.OperationalError("interrupted"))
    assert told.value.__cause__ is None
    with pytest.raises(BackupError, match="does not verify"), interruptible("as it was"):
        signal.raise_signal(signal.SIGTERM)
        raise BackupError("does not verify")
    with pytest.raises(DatabaseLockedError), interruptible("as it was"):
        raise DatabaseLockedError(sqlite3.OperationalError("locked"))


def test_a_second_signal_ends_it_at_once_but_for_a_commit() -> None:
    """Wherever it is; the state that is told is still the one that it is in."""
    with pytest.raises(Interrupted, match="not done"), interruptible("not done"):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one is not waited for")
    with pytest.raises(Interrupted, match=r"^done"), interruptible("not done"):
        with finishing("done"):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        check()


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    """Where Python does not deliver them, an operation runs as ever."""
    done: list[bool] = []

    def work() -> None:
        with interruptible("not done"), finishing("done"):
            check()
            done.append(interruption.came())

    thread = threading.Thread(target=work)
    with interruptible("another's"):
        thread.start()
        thread.join()
    assert done == [False]


def run(*arguments: str, shell: str = '"$@"', **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, as a shell starts it."""
    return subprocess.run(
        ["/bin/sh", "-c", shell, "sh", sys.executable, "-m", "shared.db", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_the_program_loads_is_one_line(number: signal.Signals) -> None:
    """Not Python's traceback: nothing has begun."""
    code = "import sys, runpy, signal; sys.argv = ['-m']; sys.orig_argv = ['python', '-m', 'shared.db']\n"
    code += f"import shared.db.starting; signal.raise_signal({int(number)})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "shared.db: interrupted; nothing had begun\n")


def test_another_program_s_signals_are_left_alone() -> None:
    """The package does not touch them where it is merely imported."""
    code = "import signal; before = signal.getsignal(signal.SIGINT); import shared.db\n"
    code += "assert signal.getsignal(signal.SIGINT) is before; assert signal.getsignal(signal.SIGTERM) == 0"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["copy", "restore"])
def test_a_file_that_was_made_for_nothing_goes_again(tmp_path: Path, command: str) -> None:
    """A copy or restore that fails leaves no empty database behind, and one that was there stays."""
    source, target = tmp_path / "source.db", tmp_path / "target.db"
    with DatabaseFactory(f"sqlite:///{source}") as db:
        db.create_tables()
        filled(db, 2_000)
        back_up(db, tmp_path / "backup")
    arguments = {
        "copy": ["copy", f"sqlite:///{source}", f"sqlite:///{target}"],
        "restore": ["restore", str(tmp_path / "backup"), "--db-name", str(target)],
    }[command]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("shared.db.operations.progress.Progress.update", lambda *_: signal.raise_signal(signal.SIGINT))
        assert main(arguments) == 130
        assert sorted(path.name for path in tmp_path.glob("target*")) == []
        target.touch()
        assert main(arguments) == 130
        assert target.exists()
    assert main(arguments) == 0


@pytest.mark.slow
def test_an_output_that_nobody_can_write_to_is_one_line(tmp_path: Path) -> None:
    """Closed or on a full disk, with and without Python's buffer."""
    name = str(tmp_path / "bot.db")
    assert run("init", "--db-name", name).returncode == 0
    closed = run("status", "--db-name", name, shell='"$@" >&-')
    assert closed.returncode == 1
    assert closed.stderr == "shared.db: standard output is closed, and nothing was done; send it to /dev/null\n"
    for unbuffered in ("", "1"):
        full = run("status", "--db-name", name, shell='"$@" >/dev/full', PYTHONUNBUFFERED=unbuffered)
        assert full.returncode == 1
        assert full.stderr.startswith("shared.db: what was to be printed cannot be written (No space left on device)")
        assert full.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_working_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    """Whatever the command needs it for."""
    gone = tmp_path / "gone"
    gone.mkdir()
    ended = run("status", shell=f'cd "{gone}" && rmdir "{gone}" && "$@"')
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "the working folder was deleted" in ended.stderr


@pytest.mark.slow
def test_a_path_that_the_locale_has_no_letters_for_is_one_line(tmp_path: Path) -> None:
    """Under an ASCII locale it works, or the remedy is named."""
    ascii_locale = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "settings").write_text(f"GRIDBOT_DB_NAME={tmp_path}/é.db\n", encoding="utf-8")
    for arguments in (["--db-name", f"{tmp_path}/é.db"], ["--env-file", str(tmp_path / "settings")]):
        ended = run("init", *arguments, **ascii_locale)
        assert ended.returncode in (0, 1)
        assert ended.stderr.count("\n") == ended.returncode
        assert not ended.returncode or "set LC_ALL=C.UTF-8" in ended.stderr
