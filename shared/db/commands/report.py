"""`python -m shared.db report`: a page to look at, of what a user's bots did.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from shared.db.commands.arguments import settings_from_arguments
from shared.db.commands.row_files import counted, end_time, start_time
from shared.db.database import DatabaseFactory
from shared.db.report.gathering import GAP_SECONDS
from shared.db.report.user_report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` its arguments; the function that runs the command."""
    parser.add_argument("--user", required=True, metavar="NAME", help="whose fills, by their username")
    parser.add_argument("--run", dest="run_id", metavar="RUN_ID", help="of this run only")
    parser.add_argument("--from", dest="start", type=start_time, metavar="TIME", help="first day or time, UTC")
    parser.add_argument("--to", dest="end", type=end_time, metavar="TIME", help="last day or time, UTC; included")
    parser.add_argument(
        "--gaps",
        type=float,
        default=GAP_SECONDS,
        metavar="SECONDS",
        help=f"tell the times of more than so many without a trade of the exchange (default: {GAP_SECONDS:g})",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the page to write, or to replace")

    def run(options: argparse.Namespace) -> int:
        if options.start is not None and options.end is not None and options.start > options.end:
            parser.error("--from is later than --to; swap the two")
        started = time.monotonic()
        with DatabaseFactory(settings_from_arguments(options)) as db:
            fills = write_report(
                db, options.output, options.user, options.run_id, options.start, options.end, options.gaps
            )
        print(f"a report of {counted(fills, 'fill')} written to {options.output} in {time.monotonic() - started:.1f} s")
        return 0

    return run
