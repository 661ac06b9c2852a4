"""`python -m shared.db purge`.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted (what went is gone, and the same command goes on).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from shared.db.commands.arguments import EXIT_INTERRUPTED, settings_from_arguments
from shared.db.commands.row_files import counted, start_time
from shared.db.database import DatabaseFactory
from shared.db.models import PrivateExecution, PublicTrade
from shared.db.operations.interruption import noted_signals
from shared.db.operations.progress import Progress
from shared.db.operations.purge import PurgeReport, purge_executions, purge_trades

_STATE = "what was deleted is gone in whole batches; run the same command again to go on"


def purge_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` the arguments of purge; the function that runs it."""
    # Named in full each time: executions must not go because somebody left something out.
    parser.add_argument("--table", required=True, choices=(PublicTrade.__tablename__, PrivateExecution.__tablename__))
    parser.add_argument("--before", type=start_time, metavar="TIME", help="day or time, UTC; what is older goes")
    parser.add_argument("--symbol", help="trades of this symbol only")
    parser.add_argument("--run", dest="run_id", metavar="RUN_ID", help="whose executions; the run itself stays")
    parser.add_argument("--user", metavar="USER_ID", help="the run's owner")
    parser.add_argument("--dry-run", action="store_true", help="count what would go, and delete nothing")
    parser.add_argument("--json", action="store_true", help="report as JSON")

    def run(options: argparse.Namespace) -> int:
        of_trades = options.table == PublicTrade.__tablename__
        if of_trades and (options.before is None or options.run_id or options.user):
            parser.error("trades are purged by --before (and --symbol), and belong to no run or user")
        if not of_trades and (options.run_id is None or options.user is None or options.symbol):
            parser.error("executions are purged by --run and --user (and --before)")
        settings = settings_from_arguments(options)

        def purge(db: DatabaseFactory, **how: object) -> PurgeReport:
            if of_trades:
                return purge_trades(db, options.before, options.symbol, **how)  # type: ignore[arg-type] # as named below
            return purge_executions(db, options.run_id, options.user, options.before, **how)  # type: ignore[arg-type] # as above

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
