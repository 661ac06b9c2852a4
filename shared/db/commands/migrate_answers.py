"""What each `migrate` command does and says."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from shared.db import audit
from shared.db.commands.arguments import EXIT_DONE, EXIT_FAILED, EXIT_OTHER_REVISION, settings_from_arguments
from shared.db.commands.status import not_ours_told
from shared.db.database import DatabaseFactory
from shared.db.dialects import port_named
from shared.db.errors import SharedDBError
from shared.db.migrations import runner
from shared.db.migrations.runner import Change
from shared.db.migrations.writing import new_revision
from shared.db.operations.interruption import interruptible
from shared.db.operations.sqlite_backup import empty_file_removed
from shared.db.packages import OURS
from shared.db.schema_version import BASE


@dataclasses.dataclass(frozen=True)
class Answer:
    """The text for people, the same for machines, and the exit code."""

    text: str
    found: Mapping[str, Any]
    exit_code: int = EXIT_DONE


def _chosen(options: argparse.Namespace) -> list[str]:
    """The package that is asked for, or all that are loaded."""
    return runner.packages_with_revisions() if options.package is None else [options.package]


def _together(answers: Mapping[str, Answer]) -> Answer:
    """One answer of several packages': ours stands by itself, the others' behind it by their names."""
    package, first = next(iter(answers.items()))
    if len(answers) == 1:
        return first
    text = "\n".join(f"{name}:\n{textwrap.indent(answer.text, '  ')}" for name, answer in answers.items())
    found = {**first.found, "packages": {name: answer.found for name, answer in answers.items() if name != package}}
    return Answer(text, found, max(answer.exit_code for answer in answers.values()))


def _status(options: argparse.Namespace) -> Answer:
    with _database(options) as db:
        return _together({package: _standing(runner.status(db, package)) for package in _chosen(options)})


def _standing(status: runner.Status) -> Answer:
    lines = [
        f"database: {status.database_revision or 'no revision'} ({status.state})",
        f"code:     {status.code_revision}",
        *(f"pending:  {revision}" for revision in status.pending),
    ]
    code = EXIT_DONE if status.state == "current" else EXIT_OTHER_REVISION
    return Answer("\n".join(lines), dataclasses.asdict(status), code)


def _up(options: argparse.Namespace) -> Answer:
    with _changing(options) as db:
        if options.package is None and options.revision == "head":
            changes = runner.upgrade_all(db)
        else:
            package = options.package or OURS
            changes = {package: runner.upgrade(db, options.revision, package=package)}
        if options.audit is not None:
            (db.enable_audit if options.audit else db.disable_audit)()
        return _together({name: _changed(change) for name, change in changes.items()})


def _down(options: argparse.Namespace) -> Answer:
    with _changing(options) as db:
        if options.package is None and options.revision == BASE:
            changes = runner.downgrade_all(db, allow_data_loss=options.allow_data_loss)
            return _together({name: _changed(changes[name]) for name in reversed(changes)})
        package = options.package or OURS
        return _changed(
            runner.downgrade(db, options.revision, package=package, allow_data_loss=options.allow_data_loss)
        )


def _adopt(options: argparse.Namespace) -> Answer:
    with _changing(options) as db:
        # What is not there yet has nothing to adopt: an upgrade makes it.
        named = [
            package
            for package in _chosen(options)
            if package in (options.package, OURS) or runner.status(db, package).state == "unversioned"
        ]
        return _together({package: _adopted(db, package) for package in named})


def _adopted(db: DatabaseFactory, package: str) -> Answer:
    change = runner.adopt(db, package)
    status = runner.status(db, package)
    if change.before == change.after:
        return _changed(change)
    text = f"adopted at {change.after}"
    if status.pending:
        text += f"; {len(status.pending)} pending, run: python -m shared.db migrate up"
    return Answer(text, dataclasses.asdict(change))


def _check(options: argparse.Namespace) -> Answer:
    with _database(options) as db:
        differences, not_ours = runner.check(db, options.package), runner.not_ours(db)
    text = "\n".join(map(str, differences)) or "the schema is what the code says"
    if not_ours:
        text += f"\n{not_ours_told(not_ours)}"
    found = {"differences": [difference.as_json() for difference in differences], "not_ours": not_ours}
    return Answer(text, found, EXIT_FAILED if differences else EXIT_DONE)


def _sql(options: argparse.Namespace) -> Answer:
    settings = settings_from_arguments(options)
    # Host and user may be missing: nothing is connected to.
    port = settings.port if settings.database_url else port_named(settings.db_type)
    everything = options.package is None and (options.start, options.revision) == (BASE, "head")
    script = "\n\n".join(
        runner.sql(port.name, options.start, options.revision, package=package).rstrip()
        for package in (_chosen(options) if everything else [options.package or OURS])
    )
    if options.audit is not None:
        script += f"\n\n{audit.switching(options.audit)};"
    return Answer(script, {"sql": script})


def _new(options: argparse.Namespace) -> Answer:
    with _database(options) as db:
        written = new_revision(db, options.message, options.package)
    text = f"wrote {written.path}\nnow read upgrade() and downgrade(), and mend what is not meant so"
    if options.package == OURS:
        text += "; then give it an entry in migrations/NOTES.md"
    if written.left:
        text += "\nit leaves to you:\n" + "\n".join(f"  {difference}" for difference in written.left)
    left = [difference.as_json() for difference in written.left]
    return Answer(text, {"path": str(written.path), "left": left})


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
