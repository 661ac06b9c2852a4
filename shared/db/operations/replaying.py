"""What a recorder could not store, into the database: its dead letters after they were corrected, or a whole spool."""

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
from shared.db.models import Base
from shared.db.operations.interruption import check
from shared.db.recording.dead_letters import DEAD_LETTERS, DeadLetters, append_lines, locked
from shared.db.recording.row_text import RowText
from shared.db.recording.spool import SUFFIX, Mark, done_in, locked_folder, salvaged
from shared.db.recording.storing import Storing
from shared.db.tables import ownership_of, stream_named, streams
from shared.db.tenancy.user_ids import UNSET

_BATCH = 1000


@dataclass
class ReplayReport:
    """What became of the rows of a file: how many were new, stored already, refused again, and what was not readable.

    The last counts lines, or damaged stretches of a spool. What was not stored is kept.
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

    From a folder, a spool that no recorder has open, every whole row is stored, or put into rejected.jsonl there;
    what is damaged stays beside it as NUMBER.damaged.

    The file may be in use by a recorder. Meanwhile its rows are in FILE.replaying; if the database fails, or the
    process is killed, they stay there, and the next replay of FILE begins with them. A row stored twice is one row.

    Raises `InputError` if there is no such file, `SpoolError` if the spool is in use.
    """
    path = Path(file)
    try:
        return _replay_spool(db, path) if path.is_dir() else _replay_letters(db, path)
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: {error.strerror}; nothing is lost: mend that, and replay {path} again"
        ) from error


def _replay_letters(db: DatabaseFactory, path: Path) -> ReplayReport:
    taken = path.with_name(f"{path.name}.replaying")
    report = ReplayReport(str(path))
    if not path.is_file() and not taken.is_file():
        raise InputError(f"{path} is no file; name the dead letters of a recorder, or the folder of its spool")
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


def _replay_spool(db: DatabaseFactory, folder: Path) -> ReplayReport:
    report = ReplayReport(str(folder))
    segments = sorted(folder.glob(f"*{SUFFIX}"))
    if not segments:
        raise InputError(f"{folder} holds no rows of a recorder; name its dead letters, or the folder of its spool")
    lock = locked_folder(folder)
    try:
        about, done = _said_of(segments)
        for segment in segments:
            damaged = 0
            for record in salvaged(segment):
                if record is None:
                    damaged += 1
                elif record.rows and record.end > done:
                    rows = RowText(_model(about[0])).decoded(record.payload)
                    letters = [_Letter(b"", about, position, row) for position, row in enumerate(rows)]
                    _store(db, *about, letters, folder / DEAD_LETTERS, report)
            report.unreadable += damaged
            if damaged:
                segment.rename(segment.with_suffix(".damaged"))
            else:
                segment.unlink()
    finally:
        os.close(lock)
    return report


def _said_of(segments: list[Path]) -> tuple[tuple[str, str | None], Mark]:
    """Table and user of a spool, and up to which place its rows were written."""
    about, done = None, Mark(0, 0)
    for record in (record for segment in segments for record in salvaged(segment)):
        if record is not None and not record.rows:
            if (place := done_in(record.payload)) is not None:
                done = place
            else:
                said = json.loads(json.loads(record.payload)["about"])
                about = said["table"], said["user_id"]
    if about is None:
        raise InputError(
            f"of {segments[0].parent} nothing is left that says whose rows they are; restore it from a backup"
        )
    return about, done


def _store(
    db: DatabaseFactory, table: str, user_id: str | None, letters: list[_Letter], path: Path, report: ReplayReport
) -> None:
    check()
    model = _model(table)
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


def _model(table: str) -> type[Base]:
    found = stream_named(table)
    if found is None:
        raise InputError(
            f"its rows are of the table {table!r}, which no loaded package declares; name the package's module in "
            "GRIDBOT_DB_MODELS, or import it first"
        )
    return found


def _letters(path: Path) -> Iterator[_Letter]:
    texts = {model.__tablename__: RowText(model) for model in streams()}
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
