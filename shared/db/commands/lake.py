"""`python -m shared.db lake write|verify|drop`.

Exit codes: 0 done, 1 failed or a month has a problem, 2 usage, 130 interrupted.
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
from shared.db.models import PublicTrade
from shared.db.operations.interruption import noted_signals

_STATE = "each month is whole as it is; run the same command again to go on"


def add_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` its arguments; the function that runs the command."""
    parser.add_argument("action", choices=("write", "verify", "drop"))
    parser.add_argument(
        "--lake", required=True, metavar="FOLDER", help="folder, or URL that pyarrow reaches (s3://...)"
    )
    parser.add_argument("--table", default=PublicTrade.__tablename__, help="a stream shared by all (public_trades)")
    parser.add_argument("--symbol", "--key", dest="key", help="whose rows only, by the column that they are ordered by")
    parser.add_argument(
        "--before", type=start_time, metavar="TIME", help="write, drop: months that have ended by then, UTC"
    )
    parser.add_argument("--purge", action="store_true", help="write: delete from the database what the files hold")
    parser.add_argument("--force", action="store_true", help="drop: also what is nowhere else")
    parser.add_argument("--json", action="store_true", help="report as JSON")

    def run(options: argparse.Namespace) -> int:
        writes, drops = options.action == "write", options.action == "drop"
        if (
            (options.purge and not writes)
            or (options.force and not drops)
            or (options.before and not (writes or drops))
        ):
            parser.error("--purge belongs to write, --force to drop, and --before to both")
        if drops and options.key is None and options.before is None:
            parser.error("the whole lake would go; name a --symbol, or a time by --before")
        settings = settings_from_arguments(options)
        model = stream_argument(parser, options.table)
        key = key_argument(parser, model, options.key)
        from shared.db.lake import Lake, Written

        def told(one: Written) -> None:
            if one.problem is not None:
                print(f"shared.db: {one.key} {one.month}: {one.problem}", file=sys.stderr)
            elif not options.json:
                purged = f", {counted(one.purged, 'row')} purged" if options.purge else ""
                print(f"{one.key} {one.month}: {one.state}, {counted(one.rows, 'row')}{purged}", flush=True)

        lake = Lake(options.lake)
        with DatabaseFactory(settings) as db, noted_signals(_STATE) as stop:
            how: dict[str, Any] = {"stop": stop, "told": told}
            if writes:
                report = lake.write(db, model, key, options.before, purge=options.purge, **how)
            elif drops:
                report = lake.drop(db, model, key, options.before, force=options.force, **how)
            else:
                report = lake.verify(db, model, key, **how)
        if options.json:
            print(json.dumps(report.as_dict()))
        else:
            print(f"{counted(len(report.periods), 'month')} of {report.table} in {report.seconds:.1f} s")
        if not report.finished:
            print(f"shared.db: interrupted; {_STATE}", file=sys.stderr)
            return EXIT_INTERRUPTED
        return 1 if report.problems else 0

    return run
