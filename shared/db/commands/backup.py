"""`python -m shared.db backup` and `restore`.

Exit codes: 0 done and verified, 1 failed (nothing was put in place), 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from shared.db.commands.arguments import settings_from_arguments
from shared.db.database import DatabaseFactory
from shared.db.operations.backup import BackupReport, back_up, restore
from shared.db.operations.progress import WHOLE, Progress
from shared.db.operations.sqlite_backup import empty_file_removed
from shared.db.schema_version import SCHEMA_REVISION


def backup_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` the arguments of backup; the function that runs it."""
    _add_arguments(parser, "the file to write", "replace FILE if it is there")

    def run(options: argparse.Namespace) -> int:
        with (
            DatabaseFactory(settings_from_arguments(options)) as db,
            Progress("backing up", WHOLE) as progress,
        ):
            report = back_up(db, options.file, force=options.force, pg_bin=options.pg_bin, watch=progress.update)
        _tell(report, options.json, f"{report.database} backed up to {report.path}")
        return 0

    return run


def restore_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` the arguments of restore; the function that runs it."""
    _add_arguments(parser, "the backup to read", "replace everything in a database that has rows")

    def run(options: argparse.Namespace) -> int:
        settings = settings_from_arguments(options)
        with (
            empty_file_removed(settings),
            DatabaseFactory(settings) as db,
            Progress("restoring", WHOLE) as progress,
        ):
            report = restore(db, options.file, force=options.force, pg_bin=options.pg_bin, watch=progress.update)
        _tell(report, options.json, f"{report.database} restored from {report.path}")
        for role in report.missing_roles:
            print(f"shared.db: this server has no role {role}; its grants were left out", file=sys.stderr)
        if report.revision != SCHEMA_REVISION:
            print(
                f"shared.db: the backup's schema is at {report.revision or 'no revision'}; now run: "
                f"python -m shared.db migrate {'up' if report.revision else 'adopt'}",
                file=sys.stderr,
            )
        return 0

    return run


def _add_arguments(parser: argparse.ArgumentParser, file_help: str, force_help: str) -> None:
    parser.add_argument("file", metavar="FILE", help=file_help)
    parser.add_argument("--force", action="store_true", help=force_help)
    parser.add_argument(
        "--pg-bin",
        metavar="DIR",
        help="folder of pg_dump and pg_restore, or mariadb-dump and mariadb; the PATH unless given",
    )
    parser.add_argument("--json", action="store_true", help="report as JSON")


def _tell(report: BackupReport, as_json: bool, done: str) -> None:
    if as_json:
        print(json.dumps(report.as_dict()))
        return
    rows = sum(report.rows.values())
    print(f"{done}: {rows:,} rows in {len(report.rows)} tables, {report.size:,} bytes, {report.seconds:.1f} s")
    print("verified: " + ", ".join(f"{table} {count:,}" for table, count in report.rows.items()))
