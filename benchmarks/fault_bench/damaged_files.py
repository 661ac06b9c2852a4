"""Files that are not what they should be, before they are opened or while they are open."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import pwd
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from sqlalchemy import func, select

from benchmarks.fault_bench.clients import batch
from benchmarks.fault_bench.figures import Figure
from benchmarks.fault_bench.ground import Ground
from benchmarks.fault_bench.images import Contents, Image, Said, make_image, read_all, url_of, use
from shared.db import DatabaseFactory, PublicTrade
from shared.db.bulk import bulk_create
from shared.db.errors import SharedDBError

_PAGE, _ROWS = 4096, 5
_FORK = multiprocessing.get_context("fork")


def _nothing(path: Path) -> None:
    """For a fault that is there before, or comes only later."""


@dataclass(frozen=True)
class Fault:
    """A kind of damage: `before` the file is opened, or `later`, while a factory has it open and pooled.

    With `restricted` it is used by a user who owns nothing. With `gone` there is nothing left to write to.
    """

    name: str
    before: Callable[[Path], None] = _nothing
    later: Callable[[Path], None] | None = None
    restricted: bool = False
    gone: bool = False


def damaged_files(ground: Ground) -> list[Figure]:
    """Each kind of damage: everything is read, then a batch is written, and looked for by somebody who opens anew."""
    image = make_image(ground.new_folder())
    other = make_image(ground.new_folder(), trades=300, executions=10, seed=2)
    figures = []
    for fault in _faults(other, ground.random):
        path = image.copy_to(_open_to_all(ground.new_folder()) / "grid_bot.db")
        path.chmod(0o666)
        read, written = _in_child(fault, path, image.contents)
        figures.append(
            Figure(
                f"file fault: {fault.name}",
                "a typed error" if fault.gone else "a typed error, or right data",
                f"read: {_told(read)}; write: {_told(written)}",
                {read.outcome, written.outcome} <= {"refused", "right", "wrong, and the check says so"}
                and (written.outcome == "refused" or not fault.gone),
            )
        )
    return figures


def _told(said: Said) -> str:
    return said.error.partition(":")[0] if said.outcome == "refused" else f"{said.outcome} {said.error}".strip()


def _open_to_all(folder: Path) -> Path:
    folder.chmod(0o777)
    return folder


def _faults(other: Image, random_: random.Random) -> list[Fault]:
    junk = random_.randbytes(20 * _PAGE)
    return [
        Fault("junk in place of the file", lambda path: _write(path, junk)),
        Fault("an empty file", lambda path: _write(path, b"")),
        Fault("a truncated header", lambda path: os.truncate(path, 60)),
        Fault("truncated in the middle", lambda path: os.truncate(path, path.stat().st_size // 2)),
        Fault("truncated by its last page", lambda path: os.truncate(path, path.stat().st_size - _PAGE)),
        Fault("another format (gzip)", lambda path: _write(path, gzip.compress(junk))),
        Fault("a folder missing and in the way a file", _put_file_in_the_way),
        Fault("a folder in place of the file", _put_folder),
        Fault("a read-only file", lambda path: path.chmod(0o444), restricted=True),
        Fault("a read-only folder", lambda path: path.parent.chmod(0o555), restricted=True),
        Fault("a file that may not be read", lambda path: path.chmod(0), restricted=True),
        Fault("a zeroed page in the middle", lambda path: _overwrite(path, bytes(_PAGE))),
        Fault("a page of another place (misdirected write)", _misdirect),
        Fault("junk as -wal", lambda path: _write(_beside(path, "-wal"), junk)),
        Fault("junk as -shm", lambda path: _write(_beside(path, "-shm"), junk[: 8 * _PAGE])),
        Fault("junk as -journal", lambda path: _write(_beside(path, "-journal"), junk)),
        Fault("the -wal of another database", lambda path: _put_foreign_log(path, other)),
        Fault("deleted while open", later=_delete, gone=True),
        Fault("replaced by another database while open", later=lambda path: _replace(path, other), gone=True),
        Fault("overwritten in place while open", later=lambda path: _write(path, junk)),
        Fault("the -wal deleted while open", later=lambda path: _beside(path, "-wal").unlink()),
        Fault("truncated while open", later=lambda path: os.truncate(path, path.stat().st_size // 2)),
    ]


def _in_child(fault: Fault, path: Path, expected: Contents) -> tuple[Said, Said]:
    """In a process of its own: it may have to give up root, and a fault might kill it."""
    fault.before(path)
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_use, args=(fault, path, expected, sender))
    process.start()
    sender.close()
    try:
        said: tuple[Said, Said] = receiver.recv()
    except EOFError:
        process.join()
        died = Said("stray error", f"the process died with {process.exitcode}")
        said = died, died
    process.join()
    path.parent.chmod(0o777)
    return said


def _use(fault: Fault, path: Path, expected: Contents, sender: Connection) -> None:
    if fault.restricted and os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
    with DatabaseFactory(url_of(path)) as db:
        if fault.later is not None:
            _change(db, "BEFORE")
            expected = read_all(db)
            fault.later(path)
        read = use(db, expected)
        sender.send((read, _written(db, path)))


def _written(db: DatabaseFactory, path: Path) -> Said:
    """A batch is written: if that was acknowledged, a factory opened anew must find it."""
    try:
        db.check_schema()  # as a program does that is about to write
        _change(db, "AFTER")
    except SharedDBError as error:
        return Said("refused", f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 # an error without a name of ours is what is looked for
        return Said("stray error", repr(error))
    db.close()
    with DatabaseFactory(url_of(path)) as fresh, suppress(Exception), fresh.get_session(read_only=True) as session:
        if session.scalar(select(func.count()).where(PublicTrade.symbol == "AFTER")) == _ROWS:
            return Said("right")
    return Said("wrong, called healthy", "(acknowledged, and not there)")


def _change(db: DatabaseFactory, symbol: str) -> None:
    with db.get_session() as session:
        bulk_create(session, PublicTrade, batch(symbol, 0, _ROWS))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o666)


def _overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // _PAGE // 2 * _PAGE)
        file.write(content)


def _misdirect(path: Path) -> None:
    _overwrite(path, path.read_bytes()[20 * _PAGE : 21 * _PAGE])


def _put_file_in_the_way(path: Path) -> None:
    folder = path.parent
    path.unlink()
    folder.rmdir()
    folder.write_text("no folder")


def _put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _put_foreign_log(path: Path, other: Image) -> None:
    """The log that a crash leaves behind: all of another database's last changes, none of them in its main file."""
    work = path.with_name("other.db")
    other.copy_to(work)
    with DatabaseFactory(url_of(work)) as db:
        _change(db, "OTHER")
        shutil.copyfile(_beside(work, "-wal"), _beside(path, "-wal"))


def _delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        _beside(path, suffix).unlink(missing_ok=True)


def _replace(path: Path, other: Image) -> None:
    os.replace(other.copy_to(path.with_name("new.db")), path)
