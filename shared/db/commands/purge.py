"""`python -m shared.db purge`.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted (what went is gone, and the same command goes on).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from shared.db.commands.arguments import EXIT_INTERRUPTED, settings_from_arguments
from shared.db.commands.row_files import counted, key_argument, start_time, stream_argument
from shared.db.database import DatabaseFactory
from shared.db.models import PrivateExecution, PublicTrade
from shared.db.operations.interruption import noted_signals
from shared.db.operations.progress import Progress
from shared.db.operations.purge import PurgeReport, purge_executions, purge_rows
from shared.db.tenancy.user_ids import UNSET

_STATE = "what was deleted is gone in whole batches; run the same command again to go on"


def purge_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` the arguments of purge; the function that runs it."""
    # Named in full each time: rows must not go because somebody left something out.
    parser.add_argument("--table", required=True, help="public_trades, private_executions, or another declared stream")
    parser.add_argument("--before", type=start_time, metavar="TIME", help="day or time, UTC; what is older goes")
    parser.add_argument("--symbol", help="trades of this symbol only")
    parser.add_argument("--run", dest="run_id", metavar="RUN_ID", help="whose executions; the run itself stays")
    parser.add_argument("--key", help="of another stream: whose rows, by the column that it is ordered by")
    parser.add_argument("--user", metavar="USER_ID", help="whose rows, where they belong to users")
    parser.add_argument("--dry-run", action="store_true", help="count what would go, and delete nothing")
    parser.add_argument("--json", action="store_true", help="report as JSON")

    def run(options: argparse.Namespace) -> int:
        settings = settings_from_arguments(options)
        model = stream_argument(parser, options.table)
        if model is PublicTrade and (options.before is None or options.run_id or options.user or options.key):
            parser.error("trades are purged by --before (and --symbol), and belong to no run or user")
        executions = model is PrivateExecution
        if executions and (options.run_id is None or options.user is None or options.symbol or options.key):
            parser.error("executions are purged by --run and --user (and --before)")
        others = model not in (PublicTrade, PrivateExecution)
        if others and ((options.before is None and options.key is None) or options.symbol or options.run_id):
            parser.error(f"rows of {options.table} are purged by --before or --key, and --user where they are a user's")

        def purge(db: DatabaseFactory, **how: Any) -> PurgeReport:
            if executions:
                return purge_executions(db, options.run_id, options.user, options.before, **how)
            user = UNSET if options.user is None else options.user
            key = options.symbol if model is PublicTrade else key_argument(parser, model, options.key)
            return purge_rows(db, model, options.before, key, user_id=user, **how)

        with DatabaseFactory(settings) as db, noted_signals(_STATE) as stop:
            report = purge(db, dry_run=True)
            if not options.dry_run:
                with Progress("purging", report.rows) as progress:
                    report = purge(db, watch=progress.update, stop=stop)
        rows = counted(report.rows, "row")
        if options.json:
            print(json.dumps(report.as_dict()))
        elif report.dry_run:
            print(f"{rows} of {report.table} would go")
        else:
            print(
                f"{rows} of {report.table} deleted in {report.seconds:.1f} s, "
                f"in transactions of at most {report.longest_batch:.2f} s"
            )
        if not report.finished:
            print(f"shared.db: interrupted; {rows} were deleted, run the same command again to go on", file=sys.stderr)
            return EXIT_INTERRUPTED
        if report.rows and not report.dry_run and not options.json and settings.is_sqlite:
            print("the file keeps its size, and the space is used again; to give it back: sqlite3 FILE VACUUM")
        return 0

    return run
