"""Files that are put in place whole: what they may take the place of, and what a killed writer leaves."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.db import DatabaseFactory, InputError, PublicTradeRepository, User
from shared.db.commands.cli import main
from shared.db.operations.backup import back_up, restore
from shared.db.operations.export import export_trades
from shared.db.operations.replacing import replacing
from shared.db.tests.support import in_children, trade_values, usernames

Write = Callable[[DatabaseFactory, Path], object]
WRITERS: list[Write] = [
    lambda db, path: back_up(db, path, force=True),
    lambda db, path: export_trades(db, path, "BTCUSDT"),
]


@pytest.fixture(params=WRITERS, ids=["backup", "export"])
def write(request: pytest.FixtureRequest) -> Write:
    """Each operation that puts a file in place."""
    writer: Write = request.param
    return writer


@pytest.fixture
def live(tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A database that a bot has open."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'bot.db'}") as db:
        db.create_tables()
        with db.get_session() as session:
            session.add(User(username="ann"))
            PublicTradeRepository(session).bulk_create([trade_values()])
        yield db


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("way", ["itself", "symbolic link", "hard link"])
def test_the_live_database_is_not_replaced(
    live: DatabaseFactory, write: Write, tmp_path: Path, suffix: str, way: str
) -> None:
    """Neither its file nor what SQLite keeps beside it, by whatever name: bots would go on in a file that is gone."""
    path = tmp_path / f"bot.db{suffix}"
    if way == "symbolic link":
        (tmp_path / "link").symlink_to(path)
    elif way == "hard link":
        (tmp_path / "link").hardlink_to(path)
    before = path.stat().st_ino
    with pytest.raises(InputError, match=r"database|symbolic link"):
        write(live, path if way == "itself" else tmp_path / "link")
    assert path.stat().st_ino == before
    assert usernames(live) == ["ann"]


def test_another_database_in_use_is_not_replaced(live: DatabaseFactory, write: Write, tmp_path: Path) -> None:
    """A file with a write-ahead log beside it belongs to somebody, and the log would be applied to the new file."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'other.db'}") as other:
        other.create_tables()
        with pytest.raises(InputError, match=r"in use, or was not closed: other\.db-wal stands beside it"):
            write(live, tmp_path / "other.db")
        assert usernames(other) == []


def test_the_database_is_not_named_as_a_checksum(tmp_path: Path) -> None:
    """The checksum's place is looked at as the backup's own is."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'bot.sha256'}") as db:
        db.create_tables()
        with pytest.raises(InputError, match="is a file of the database itself"):
            back_up(db, tmp_path / "bot")
        assert usernames(db) == []


def test_a_database_is_not_restored_from_itself(live: DatabaseFactory, tmp_path: Path) -> None:
    """It is named, and stays."""
    with pytest.raises(InputError, match="is a file of the database itself"):
        restore(live, tmp_path / "bot.db", force=True)
    assert usernames(live) == ["ann"]


def test_only_an_ordinary_file_is_replaced(live: DatabaseFactory, write: Write, tmp_path: Path) -> None:
    """Neither a pipe, nor a symbolic link, nor what it leads to."""
    pipe, target, link = tmp_path / "pipe", tmp_path / "target", tmp_path / "link"
    os.mkfifo(pipe)
    target.write_text("precious")
    link.symlink_to(target)
    with pytest.raises(InputError, match="is no ordinary file"):
        write(live, pipe)
    with pytest.raises(InputError, match=r"is a symbolic link to .*target; name that file itself"):
        write(live, link)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink()
    assert target.read_text() == "precious"
    write(live, target)
    assert target.read_text(errors="replace") != "precious"


def test_a_device_is_not_replaced(live: DatabaseFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not by root either, for whom /dev can be written."""
    what = ["trades", "--symbol", "BTCUSDT", "--format", "csv", "-o", "/dev/null"]
    assert main(["export", *what, "--db-name", str(tmp_path / "bot.db")]) == 1
    assert "/dev/null is no ordinary file" in capsys.readouterr().err
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_what_a_killed_writer_left_goes_with_the_next(live: DatabaseFactory, write: Write, tmp_path: Path) -> None:
    """Whatever its file's name was; what another one is writing, and what is not ours, stays."""

    def killed(number: int) -> None:
        with replacing(tmp_path / "yesterday"):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(EOFError):
        in_children(1, killed)
    (left,) = tmp_path.glob(".yesterday.*.part")
    left.with_name(f"{left.name}-journal").touch()
    (tmp_path / ".download.part").touch()
    with replacing(tmp_path / "tomorrow") as file:
        write(live, tmp_path / "today")
        file.write(b"whole")
    assert (tmp_path / "tomorrow").read_bytes() == b"whole"
    assert sorted(path.name for path in tmp_path.glob("*part*")) == [".download.part"]
