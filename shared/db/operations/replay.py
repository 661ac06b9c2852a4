"""Dead letters back into the database: what fits now is stored, what does not stays in the file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from shared.db.bulk import RejectedRow
from shared.db.bulk.rows import Row
from shared.db.database import DatabaseFactory
from shared.db.errors import InputError
from shared.db.models import Base, PrivateExecution, PublicTrade
from shared.db.recording.dead_letters import DeadLetters, append_lines, locked
from shared.db.recording.row_text import RowText
from shared.db.recording.storing import Storing
from shared.db.tenancy.guard import UNSET
from shared.db.tenancy.ownership import ownership_of

_BATCH = 1000
_MODELS: dict[str, type[Base]] = {model.__tablename__: model for model in (PublicTrade, PrivateExecution)}


@dataclass
class ReplayReport:
    """What became of the rows of a file: how many were new, stored already, refused again, and lines not understood.

    The last two are in the file again.
    """

    file: str
    inserted: int = 0
    skipped: int = 0
    rejected: int = 0
    unreadable: int = 0


class _Letter(NamedTuple):
    line: bytes
    about: tuple[str, str | None] | None  # table and user; None if the line is not understood
    position: int
    row: Row


def replay(db: DatabaseFactory, file: str | Path) -> ReplayReport:
    """Store the rows of a recorder's dead letters, each as the user it belongs to; what is refused stays in the file.

    The file may be in use by a recorder. Meanwhile its rows are in FILE.replaying; if the database fails, or the
    process is killed, they stay there, and the next replay of FILE begins with them. A row stored twice is one row.

    Raises `InputError` if there is no such file.
    """
    path = Path(file)
    taken = path.with_name(f"{path.name}.replaying")
    report = ReplayReport(str(path))
    if not path.is_file() and not taken.is_file():
        raise InputError(f"{path} is no file; name the dead letters of a recorder")
    if taken.exists():
        _replay_taken(db, taken, path, report)
    if path.exists():
        with locked(path):
            os.rename(path, taken)
        _replay_taken(db, taken, path, report)
    return report


def _replay_taken(db: DatabaseFactory, taken: Path, path: Path, report: ReplayReport) -> None:
    for about, alike in groupby(_letters(taken), key=lambda letter: letter.about):
        for letters in _parts(alike):
            if about is None:
                report.unreadable += len(letters)
                append_lines(path, b"".join(letter.line.rstrip(b"\n") + b"\n" for letter in letters))
            else:
                table, user_id = about
                _store(db, table, user_id, letters, path, report)
    taken.unlink()


def _store(
    db: DatabaseFactory, table: str, user_id: str | None, letters: list[_Letter], path: Path, report: ReplayReport
) -> None:
    model = _MODELS[table]
    everybody = user_id is None and ownership_of(model) is not None
    storing = Storing(db, model, UNSET if user_id is None else user_id, everybody)
    stored = storing.store([letter.row for letter in letters])
    report.inserted += stored.inserted
    report.skipped += stored.duplicates
    report.rejected += len(stored.rejected)
    if stored.rejected:
        DeadLetters(path, RowText(model), user_id).append(
            [RejectedRow(letters[row.position].position, row.reason, row.row) for row in stored.rejected]
        )


def _letters(path: Path) -> Iterator[_Letter]:
    texts = {table: RowText(model) for table, model in _MODELS.items()}
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield _letter(line, texts)


def _letter(line: bytes, texts: dict[str, RowText]) -> _Letter:
    try:
        said: dict[str, Any] = json.loads(line)
        table, user_id = said["table"], said["user_id"]
        (row,) = texts[table].decoded(json.dumps([said["row"]]))
    except (ValueError, KeyError, TypeError):
        return _Letter(line, None, 0, {})
    return _Letter(line, (table, user_id), said.get("position", 0), row)


def _parts(letters: Iterator[_Letter]) -> Iterator[list[_Letter]]:
    part: list[_Letter] = []
    for letter in letters:
        part.append(letter)
        if len(part) == _BATCH:
            yield part
            part = []
    if part:
        yield part
