"""`python -m shared.db COMMAND`: thin, one function per operation, all the work elsewhere.

Exit codes: 0 done, 1 failed (one line on stderr names cause and remedy), 2 usage, 3 the schema is not at the
newest revision, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import shared.db.commands.backup as backup
import shared.db.commands.copy_database as copy_database
import shared.db.commands.coverage as coverage
import shared.db.commands.docs as docs
import shared.db.commands.lake as lake
import shared.db.commands.migrate as migrate
import shared.db.commands.partition as partition
import shared.db.commands.purge as purge
import shared.db.commands.replay as replay
import shared.db.commands.report as report
import shared.db.commands.row_files as row_files
import shared.db.commands.serve as serve
import shared.db.commands.status as status_command
import shared.db.numbering as numbering
from shared.db.commands.arguments import EXIT_INTERRUPTED, Command, run_commands, settings_from_arguments
from shared.db.commands.initialize import initialize
from shared.db.database import DatabaseFactory
from shared.db.encryption import generate_entry
from shared.db.operations.interruption import interruptible, noted_signals
from shared.db.operations.key_rotation import rotate_keys
from shared.db.operations.progress import WHOLE, Progress

DESCRIPTION = "Tools of shared.db. Settings come from GRIDBOT_DB_* variables and .env."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    return run_commands("shared.db", DESCRIPTION, GROUPS, arguments)


def _row_security(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("action", choices=("enable", "disable", "status"))

    def run(options: argparse.Namespace) -> int:
        changing = options.action != "status"
        state = "the policies are all in force or none is; run: python -m shared.db row-security status"
        with (
            interruptible(state) if changing else nullcontext(),
            DatabaseFactory(settings_from_arguments(options)) as db,
        ):
            if options.action == "enable":
                db.enable_row_security()
            elif options.action == "disable":
                db.disable_row_security()
            status = db.row_security_status()
        state = "on" if status.enabled else "off" if not status.problems else "on, but not as the code has it"
        print(f"row-level security: {state if status.supported else 'not available on SQLite'} (role {status.role})")
        for problem in status.problems:
            print(f"  {problem}")
        if status.not_ours:
            print(f"  {status_command.not_ours_told(status.not_ours)}")
        return 1 if status.problems else 0

    return run


def _keys(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.add_argument("action", choices=("generate", "rotate"))
    parser.add_argument("--id", default="k1", help="generate: the new key's id, not used before (default: k1)")
    parser.add_argument("--batch", type=int, default=100, metavar="N", help="rotate: rows a transaction (default: 100)")

    def run(options: argparse.Namespace) -> int:
        if options.action == "generate":
            print(generate_entry(options.id))
            return 0
        with (
            DatabaseFactory(settings_from_arguments(options)) as db,
            noted_signals("what was sealed stays sealed; run the same command again to go on") as stop,
            Progress("sealing", WHOLE) as progress,
        ):
            rotation = rotate_keys(
                db, options.batch, lambda done, total: progress.update(WHOLE * done // max(total, 1), done), stop
            )
        print(f"sealed {rotation.sealed} secrets")
        for key_id, count in sorted(rotation.by_key_id.items()):
            print(f"  {key_id}: {count}")
        if not rotation.finished:
            print(
                f"shared.db: interrupted; {rotation.sealed} secrets were sealed, run the same command again to go on",
                file=sys.stderr,
            )
            return EXIT_INTERRUPTED
        return 0

    return run


def _sequences(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        with DatabaseFactory(settings_from_arguments(options)) as db, db.engine.begin() as connection:
            mended, lagging = numbering.mend(connection), numbering.lags(connection)
        for lag in mended:
            print(f"{lag.table}: brought from {lag.given} to {lag.newest}")
        for lag in lagging:
            print(
                f"shared.db: {lag.table} stays at {lag.given}, and its newest id is {lag.newest}: this login may not "
                "set its sequence; run this as the owner of the table",
                file=sys.stderr,
            )
        if not mended and not lagging:
            print("no sequence lags behind its rows")
        return 1 if lagging else 0

    return run


# By what a person wants.
GROUPS: dict[str, dict[str, tuple[str, Command]]] = {
    "set up": {
        "init": ("create missing tables and say what is there", lambda parser: initialize),
        "migrate": ("change the schema by revisions, or say where it stands", migrate.add_arguments),
        "docs": ("say which pages of documentation there are, or print one", docs.add_arguments),
    },
    "look": {
        "status": ("say how the database is, and what to do about it", status_command.add_arguments),
        "report": ("write a page to look at: what a user's bots did", report.add_arguments),
        "serve": ("show a report that is kept up to date, to this machine alone", serve.add_arguments),
        "coverage": (
            "say what is stored of each symbol, run or key, and what is missing",
            coverage.coverage_arguments,
        ),
    },
    "move data": {
        "import-trades": (
            "store the trades of Bybit's daily archives, or of files that export wrote",
            row_files.import_arguments,
        ),
        "export": ("write rows of a stream to a CSV, JSON lines or Parquet file", row_files.export_arguments),
        "import": ("store rows of a stream from files that export wrote", row_files.import_rows_arguments),
        "copy": ("move a whole database to another one, of whichever kind, and compare", copy_database.copy_arguments),
    },
    "keep it alive": {
        "backup": ("write the whole database to a file, verified, while bots go on writing", backup.backup_arguments),
        "restore": ("put the database into the state of a backup, all or nothing", backup.restore_arguments),
        "lake": ("keep closed months of a stream as Parquet files, beside the database", lake.add_arguments),
        "purge": ("delete old rows of a stream, in short batches", purge.purge_arguments),
        "partition": (
            "PostgreSQL: keep a stream that is shared by all in partitions by time",
            partition.partition_arguments,
        ),
        "replay": ("store what a recorder put into its dead letters, after it was corrected", replay.add_arguments),
        "sequences": ("PostgreSQL: bring sequences that lag behind their rows' ids forward", _sequences),
    },
    "keep secrets, and keep users apart": {
        "keys": ("generate an encryption key, or bring all secrets under the active one", _keys),
        "row-security": (
            "PostgreSQL's row-level security for users' sessions: turn it on, off, or check it",
            _row_security,
        ),
    },
}
COMMANDS: dict[str, tuple[str, Command]] = {
    name: command for group in GROUPS.values() for name, command in group.items()
}
