"""`python -m shared.db replay FILE...`: what a recorder could not store, once more.

Exit codes: 0 every row is stored, 1 failed or some rows were refused again, 2 usage.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict

from shared.db.commands.arguments import settings_from_arguments
from shared.db.database import DatabaseFactory
from shared.db.operations.interruption import interruptible
from shared.db.operations.replaying import replay


def add_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` the arguments of replay; the function that runs it."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="dead letters of a recorder, such as rejected.jsonl, or the folder of its spool",
    )
    parser.add_argument("--json", action="store_true", help="report as JSON")

    def run(options: argparse.Namespace) -> int:
        with (
            interruptible("what was stored stays, and nothing is lost; run the same command again to go on"),
            DatabaseFactory(settings_from_arguments(options)) as db,
        ):
            reports = [replay(db, file) for file in options.files]
        if options.json:
            print(json.dumps([asdict(report) for report in reports]))
        else:
            for report in reports:
                print(
                    f"{report.file}: {report.inserted:,} rows stored, {report.skipped:,} were already, "
                    f"{report.rejected:,} refused again, {report.unreadable:,} not readable"
                )
        return 1 if any(report.rejected or report.unreadable for report in reports) else 0

    return run
