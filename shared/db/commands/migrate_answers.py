"""What each `migrate` command does and says."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from shared.db.commands.arguments import EXIT_DONE, EXIT_FAILED, EXIT_OTHER_REVISION, settings_from_arguments
from shared.db.commands.status import not_ours_told
from shared.db.database import DatabaseFactory
from shared.db.errors import SharedDBError
from shared.db.migrations import runner
from shared.db.migrations.revisions import BASE, new_revision
from shared.db.migrations.runner import Change
from shared.db.operations.interruption import interruptible
from shared.db.operations.sqlite_backup import empty_file_removed


@dataclasses.dataclass(frozen=True)
class Answer:
    """The text for people, the same for machines, and the exit code."""

    text: str
    found: Mapping[str, Any]
    exit_code: int = EXIT_DONE


def _status(options: argparse.Namespace) -> Answer:
    with _database(options) as db:
        status = runner.status(db)
    lines = [
        f"database: {status.database_revision or 'no revision'} ({status.state})",
        f"code:     {status.code_revision}",
        *(f"pending:  {revision}" for revision in status.pending),
    ]
    code = EXIT_DONE if status.state == "current" else EXIT_OTHER_REVISION
    return Answer("\n".join(lines), dataclasses.asdict(status), code)


def _up(options: argparse.Namespace) -> Answer:
    with _changing(options) as db:
        return _changed(runner.upgrade(db, options.revision, audit=options.audit))


def _down(options: argparse.Namespace) -> Answer:
    with _changing(options) as db:
        return _changed(runner.downgrade(db, options.revision, allow_data_loss=options.allow_data_loss))


def _adopt(options: argparse.Namespace) -> Answer:
    with _changing(options) as db:
        change = runner.adopt(db)
        status = runner.status(db)
    if change.before == change.after:
        return _changed(change)
    text = f"adopted at {change.after}"
    if status.pending:
        text += f"; {len(status.pending)} pending, run: python -m shared.db migrate up"
    return Answer(text, dataclasses.asdict(change))


def _check(options: argparse.Namespace) -> Answer:
    with _database(options) as db:
        differences, not_ours = runner.check(db), runner.not_ours(db)
    text = "\n".join(map(str, differences)) or "the schema is what the code says"
    if not_ours:
        text += f"\n{not_ours_told(not_ours)}"
    found = {"differences": [difference.as_json() for difference in differences], "not_ours": not_ours}
    return Answer(text, found, EXIT_FAILED if differences else EXIT_DONE)


def _sql(options: argparse.Namespace) -> Answer:
    settings = settings_from_arguments(options)
    # Host and user may be missing: nothing is connected to.
    sqlite = settings.is_sqlite if settings.database_url else settings.db_type == "sqlite"
    script = runner.sql("sqlite" if sqlite else "postgresql", options.start, options.revision, audit=options.audit)
    return Answer(script.rstrip(), {"sql": script})


def _new(options: argparse.Namespace) -> Answer:
    path = new_revision(options.name)
    return Answer(
        f"wrote {path}\nnow fill in upgrade() and downgrade(), and give it an entry in migrations/NOTES.md",
        {"path": str(path)},
    )


def _changed(change: Change) -> Answer:
    if change.before == change.after:
        text = f"nothing to do: the database is at {change.after}"
    else:
        text = f"the database was at {change.before} and is now at {change.after}"
    return Answer(text, dataclasses.asdict(change))


@contextmanager
def _database(options: argparse.Namespace) -> Iterator[DatabaseFactory]:
    with DatabaseFactory(settings_from_arguments(options)) as db:
        yield db


@contextmanager
def _changing(options: argparse.Namespace) -> Iterator[DatabaseFactory]:
    settings = settings_from_arguments(options)

    def state() -> str:
        try:
            with DatabaseFactory(settings) as db:
                revision = runner.status(db).database_revision or BASE
            return f"every step is whole or undone, and the database is at {revision}"
        except (SharedDBError, SQLAlchemyError):
            return "every step is whole or undone; run: python -m shared.db migrate status"

    with empty_file_removed(settings), interruptible(state), DatabaseFactory(settings) as db:
        yield db


ANSWERS: Mapping[str, Callable[[argparse.Namespace], Answer]] = {
    "status": _status,
    "up": _up,
    "down": _down,
    "adopt": _adopt,
    "check": _check,
    "sql": _sql,
    "new": _new,
}
