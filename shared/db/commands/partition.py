"""`python -m shared.db partition enable|extend|drop`.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted (what is done stays, and the same command goes on).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from shared.db.commands.arguments import settings_from_arguments
from shared.db.commands.row_files import counted, start_time, stream_argument
from shared.db.database import DatabaseFactory
from shared.db.operations.interruption import interruptible
from shared.db.operations.partitions import (
    DropReport,
    PartitionReport,
    Period,
    drop_partitions,
    enable_partitions,
    extend_partitions,
)

_STATE = "what was done stays, and no row is lost; run the same command again to go on"


def partition_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` the arguments of partition; the function that runs it."""
    actions = {
        "enable": "keep the table in partitions from now on, while writers go on",
        "extend": "make the partitions of the present and the near future; run it daily",
        "drop": "drop the partitions whose rows are all older than a time",
    }
    told = "; ".join(f"{name}: {what}" for name, what in actions.items())
    parser.add_argument("action", choices=tuple(actions), help=told)
    parser.add_argument("--table", required=True, help="public_trades, or another declared stream shared by all")
    parser.add_argument("--by", choices=tuple(map(str, Period)), help="enable: a partition's length (default: month)")
    parser.add_argument(
        "--ahead", type=int, default=1, metavar="N", help="enable, extend: periods to come (default: 1)"
    )
    parser.add_argument(
        "--since", type=start_time, metavar="TIME", help="extend: partitions of the past from here on, too"
    )
    parser.add_argument("--before", type=start_time, metavar="TIME", help="drop: day or time, UTC")
    parser.add_argument("--dry-run", action="store_true", help="drop: count what would go, and drop nothing")
    parser.add_argument("--json", action="store_true", help="report as JSON")

    def run(options: argparse.Namespace) -> int:
        settings = settings_from_arguments(options)
        model = stream_argument(parser, options.table)
        dropping, action = options.action == "drop", options.action
        if dropping != (options.before is not None) or (options.dry_run and not dropping):
            parser.error("drop takes --before (and --dry-run), and nothing else does")
        if (options.by and action != "enable") or (options.since and action != "extend"):
            parser.error("--by is for enable, and --since for extend")
        report: DropReport | PartitionReport
        with interruptible(_STATE), DatabaseFactory(settings) as db:
            if action == "enable":
                report = enable_partitions(db, model, by=options.by or Period.MONTH, ahead=options.ahead)
            elif action == "extend":
                report = extend_partitions(db, model, ahead=options.ahead, since=options.since)
            else:
                report = drop_partitions(db, model, options.before, dry_run=options.dry_run)
        if options.json:
            print(json.dumps(report.as_dict()))
        elif isinstance(report, DropReport):
            gone = ", ".join(report.dropped) or "no partition"
            print(
                f"{gone} of {report.table} {'would go' if report.dry_run else 'dropped'}: {counted(report.rows, 'row')}"
            )
        else:
            print(f"{report.table} is in the partitions {', '.join(report.partitions)}")
            print(f"made: {', '.join(report.made) or 'none'}")
            if report.moved:
                print(f"{counted(report.moved, 'row')} brought to them from the default one")
        return 0

    return run
