"""Files that are there whole or not at all, and never in the place of anything that is no ordinary file.

What is written stands beside its place under a name of its own until it is whole. The writer holds a lock on it, so
that what a killed one left is told from what is being written, and is removed by the next that writes into the folder.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from shared.db import database_file
from shared.db.database import DatabaseFactory
from shared.db.errors import BackupError, InputError
from shared.db.operations.interruption import check, finishing

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment] # None is what tells

_PART = ".shared-db.part"
_SHOWN_NAME = 50  # of a file's name in its part's name: file systems limit the length
# What SQLite keeps beside a database; it would apply an old one to a new file.
_BESIDE_SQLITE = ("-wal", "-shm", "-journal")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends, as `written_beside` says."""
    with written_beside(path) as part, part.open("wb") as file:
        yield file


@contextmanager
def written_beside(path: Path, force: bool = True) -> Iterator[Path]:
    """A file beside `path` that takes its place when the block ends, and leaves no trace when it raises.

    It is readable by its owner alone: what is written here may be one user's trading. Raises `InputError` where nothing
    can be written, and what `refuse_to_replace` does.
    """
    refuse_to_replace(path, force)
    _remove_leftovers(path.parent)
    try:
        descriptor, part = _made_beside(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; choose a folder you may write to") from error
    try:
        yield part
        _sync(part)
        check()
        with finishing(f"{path} is complete"):
            refuse_to_replace(path, force)
            os.replace(part, path)
            _sync(path.parent)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; free disk space, or choose another folder"
        ) from error
    finally:
        _remove(part)
        os.close(descriptor)


def refuse_to_replace(path: Path, force: bool = True) -> None:
    """Raise `InputError` unless `path` is free, or an ordinary file and no SQLite database that is in use.

    Without `force` a file that is there is a `BackupError`.

    A device or a pipe would be lost for the whole machine, and a symbolic link would be replaced rather than what it
    leads to.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; check the name and its folder") from error
    else:
        if stat.S_ISDIR(mode):
            raise InputError(f"{path} is a folder; name the file to write in it")
        if stat.S_ISLNK(mode):
            raise InputError(f"{path} is a symbolic link to {os.readlink(path)}; name that file itself")
        if not stat.S_ISREG(mode):
            raise InputError(f"{path} is no ordinary file but a device, pipe or socket; name another file")
        if not force:
            raise BackupError(
                f"{path} is there already; choose another name, or give --force (force=True) to replace it"
            )
    for suffix in _BESIDE_SQLITE:
        beside = path.with_name(f"{path.name}{suffix}")
        if os.path.lexists(beside):
            raise InputError(
                f"{path} is an SQLite database that is in use, or was not closed: {beside.name} stands beside it; "
                "name another file"
            )
        if path.name.endswith(suffix) and os.path.lexists(path.with_name(path.name.removesuffix(suffix))):
            raise InputError(f"{path} is a part of the SQLite database beside it; name another file")


def refuse_database(db: DatabaseFactory, path: Path) -> None:
    """Raise `InputError` if `path` is a file of the SQLite database `db`, under whatever name."""
    if not db.settings.is_sqlite or db.settings.is_memory:
        return
    database = database_file.path_of(db.engine.url)
    for file in (f"{database}{suffix}" for suffix in ("", *_BESIDE_SQLITE)):
        same = os.path.realpath(path) == os.path.realpath(file)
        with suppress(OSError):  # one of the two is not there
            same = same or os.path.samefile(path, file)
        if same:
            raise InputError(f"{path} is a file of the database itself; name another file")


def _made_beside(path: Path) -> tuple[int, Path]:
    while True:
        # Mode 0600, and a name of its own: two that write at once do not write into each other.
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:_SHOWN_NAME]}.", suffix=_PART, dir=path.parent)
        try:
            if _lock(descriptor, wait=True) and not _is_at(descriptor, name):
                os.close(descriptor)
                continue  # somebody took it for a leftover before it was locked
        except BaseException:
            os.close(descriptor)
            os.unlink(name)
            raise
        return descriptor, Path(name)


def _remove_leftovers(folder: Path) -> None:
    for part in folder.glob(f".*{_PART}"):
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # it has gone, or is somebody else's
        try:
            if _lock(descriptor, wait=False):
                with suppress(OSError):
                    _remove(part)
        finally:
            os.close(descriptor)


def _remove(part: Path) -> None:
    for suffix in (*_BESIDE_SQLITE, ""):
        part.with_name(f"{part.name}{suffix}").unlink(missing_ok=True)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether the file is now locked; not if somebody else has it, nor where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(descriptor: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(name))
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
