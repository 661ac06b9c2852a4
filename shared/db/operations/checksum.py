"""The checksum beside a file: `FILE.sha256`, as `sha256sum --check` reads it too.

SQLite's own checks follow its pages and indexes, and see nothing of a price that a disk changed: of 200 random bytes
changed in a file they passed a dozen. The checksum sees every one.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from shared.db.errors import InputError
from shared.db.operations.replacing import replacing


def checksum_path(path: Path) -> Path:
    """Where the checksum of a file stands."""
    return path.with_name(f"{path.name}.sha256")


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksum(path: Path, found: str) -> None:
    """Put `found` beside `path`, readable by its owner alone."""
    with replacing(checksum_path(path)) as file:
        file.write(os.fsencode(f"{found}  {path.name}\n"))


def verify_checksum(path: Path) -> None:
    """Raise `InputError` if a checksum stands beside the file and is another one's."""
    beside = checksum_path(path)
    try:
        expected = [word.decode("ascii") for word in beside.read_bytes().split(maxsplit=1)[:1]]
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{beside} cannot be read ({error}); mend it, or delete it to go without") from error
    if expected != [checksum(path)]:
        raise InputError(
            f"{path} is not what was written: its SHA-256 differs from the one in {beside.name}; use another backup "
            "(delete that file to go without its check)"
        )
