"""`python -m shared.db import-trades` and `export`: rows from files and into files.

Exit codes: 0 done, 1 failed or some rows were not taken, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from shared.db.bulk import RejectedRow
from shared.db.commands.arguments import EXIT_INTERRUPTED, settings_from_arguments
from shared.db.database import DatabaseFactory
from shared.db.models import Base
from shared.db.operations.export import export_executions, export_rows, export_trades
from shared.db.operations.import_rows import RowImport, import_rows
from shared.db.operations.import_workers import short_turns
from shared.db.operations.interruption import noted_signals
from shared.db.operations.progress import WHOLE, Progress
from shared.db.operations.trade_import import import_trades
from shared.db.tables import stream_named, stream_of, streams
from shared.db.tenancy.user_ids import UNSET
from shared.db.value_forms.files import FORMATS
from shared.db.value_forms.forms import forms_of

_STATE = "what was stored stays; run the same command again to go on"


def import_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` the arguments of import-trades; the function that runs it."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="archive of Bybit (csv, csv.gz), or an own export")
    parser.add_argument("--symbol", help="symbol of spot archives whose name does not tell it; else the only one taken")
    parser.add_argument("--category", choices=("linear", "inverse", "spot"), help="refuse archives of another kind")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="files imported at once (PostgreSQL)")
    parser.add_argument("--rejected", metavar="FOLDER", help="where to tell of rows not taken, if not beside the files")
    parser.add_argument("--json", action="store_true", help="report as JSON")

    def run(options: argparse.Namespace) -> int:
        size = sum(Path(file).stat().st_size for file in options.files if Path(file).is_file())
        settings = settings_from_arguments(options)
        with (
            DatabaseFactory(settings) as db,
            noted_signals(_STATE) as stop,
            Progress("importing", size) as progress,
            short_turns(),
        ):
            report = import_trades(
                db,
                options.files,
                symbol=options.symbol,
                category=options.category,
                workers=options.workers,
                rejected=options.rejected,
                watch=progress.update,
                stop=stop,
            )
        if report.workers < min(options.workers, len(report.files)):
            print("SQLite has one writer at a time: the files were imported one after the other", file=sys.stderr)
        for file in report.files:
            if file.error:
                print(f"shared.db: {file.error}", file=sys.stderr)
            for reason, count in file.reasons.items():
                print(f"{file.file}: {counted(count, 'row')} rejected: {reason}", file=sys.stderr)
            if file.rejected_file:
                print(f"{file.file}: what was rejected is told in {file.rejected_file}", file=sys.stderr)
        rows = report.inserted + report.skipped
        if options.json:
            print(json.dumps(report.as_dict()))
        else:
            speed = f", {rows / report.seconds:,.0f} rows/s" if report.seconds >= 1 else ""
            print(
                f"{counted(rows, 'trade')} in {counted(len(report.files), 'file')}: {report.inserted:,} new, "
                f"{report.skipped:,} already stored, {counted(report.rejected, 'row')} rejected; "
                f"{report.seconds:.1f} s{speed}"
            )
            for file in report.files:
                if file.symbols:
                    taken = counted(file.inserted + file.skipped, "trade")
                    print(f"  {file.file}: {taken} of {', '.join(file.symbols)}, {file.first_ts} to {file.last_ts}")
        if not report.finished:
            print(
                f"shared.db: interrupted; {rows:,} trades are stored, run the same command again to go on",
                file=sys.stderr,
            )
            return EXIT_INTERRUPTED
        return 1 if report.failed or report.rejected else 0

    return run


def export_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` the arguments of export; the function that runs it."""
    parser.add_argument("what", metavar="TABLE", help="trades, executions, or the table of another declared stream")
    parser.add_argument("--symbol", help="whose trades")
    parser.add_argument("--run", dest="run_id", metavar="RUN_ID", help="whose executions")
    parser.add_argument("--key", help="of another stream: whose rows, by the column that it is ordered by")
    parser.add_argument("--user", metavar="USER_ID", help="whose rows, where they belong to users")
    parser.add_argument("--from", dest="start", type=start_time, metavar="TIME", help="first day or time, UTC")
    parser.add_argument("--to", dest="end", type=end_time, metavar="TIME", help="last day or time, UTC; included")
    parser.add_argument("--format", choices=FORMATS, help="as the ending of the file's name says, unless given")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the file to write, or to replace")

    def run(options: argparse.Namespace) -> int:
        ending = Path(options.output).suffix.removeprefix(".")
        kind = options.format or (ending if ending in FORMATS else None)
        if kind is None:
            parser.error(f"give --format, or a file whose name ends in .{', .'.join(FORMATS)}")
        if options.start is not None and options.end is not None and options.start > options.end:
            parser.error("--from is later than --to; swap the two")
        if options.what == "trades" and (options.symbol is None or options.run_id or options.user or options.key):
            parser.error("trades are exported by --symbol, and belong to no run or user")
        if options.what == "executions" and (options.run_id is None or options.user is None or options.symbol):
            parser.error("executions are exported by --run and --user")
        started = time.monotonic()
        settings = settings_from_arguments(options)
        model = None if options.what in ("trades", "executions") else stream_argument(parser, options.what)
        if model is not None and options.key is None:
            parser.error(f"rows of {options.what} are exported by --key, a value of {stream_of(model).by}")
        with DatabaseFactory(settings) as db, Progress("exporting", WHOLE) as progress:
            bounds = (options.start, options.end, kind, progress.update)
            if options.what == "trades":
                rows = export_trades(db, options.output, options.symbol, *bounds)
            elif model is None:
                rows = export_executions(db, options.output, options.run_id, options.user, *bounds)
            else:
                user = UNSET if options.user is None else options.user
                key = key_argument(parser, model, options.key)
                rows = export_rows(db, options.output, model, key, *bounds, user_id=user)
        noun = "row" if model is not None else options.what[:-1]
        print(f"{counted(rows, noun)} written to {options.output} in {time.monotonic() - started:.1f} s")
        return 0

    return run


def import_rows_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` the arguments of import; the function that runs it."""
    parser.add_argument("what", metavar="TABLE", help="the table of a declared stream")
    parser.add_argument("files", nargs="+", metavar="FILE", help="files that export wrote")
    parser.add_argument("--user", metavar="USER_ID", help="whose rows, where they belong to users")
    parser.add_argument("--json", action="store_true", help="report as JSON")

    def run(options: argparse.Namespace) -> int:
        settings = settings_from_arguments(options)
        model = stream_argument(parser, options.what)
        user = UNSET if options.user is None else options.user
        reports: list[RowImport] = []
        with DatabaseFactory(settings) as db:
            for file in options.files:
                report = import_rows(db, file, model, user_id=user, on_rejected=partial(_tell_rejected, file))
                reports.append(report)
                if not options.json:
                    print(
                        f"{file}: {counted(report.inserted, 'new row')} of {report.table}, {report.skipped:,} already "
                        f"stored, {report.rejected:,} rejected"
                    )
        if options.json:
            print(json.dumps([report.as_dict() for report in reports]))
        return 1 if any(report.rejected for report in reports) else 0

    return run


def _tell_rejected(file: str, row: RejectedRow) -> None:
    print(f"{file}, line {row.position}: {row.reason}", file=sys.stderr)


def stream_argument(parser: argparse.ArgumentParser, table: str) -> type[Base]:
    """The class of the stream in the table that an argument names, once all models are loaded; else a usage error."""
    found = stream_named(table)
    if found is None:
        known = ", ".join(sorted(model.__tablename__ for model in streams()))
        parser.error(f"{table} is no table of a declared stream; there are: {known}")
    model: type[Base] = found
    return model


def key_argument(parser: argparse.ArgumentParser, model: type[Base], text: str | None) -> Any:
    """The key that an argument names, as its column holds it; else a usage error."""
    by = stream_of(model).by
    try:
        return None if text is None else forms_of(model.__table__.c[by].type).value_type(text)
    except ValueError:
        parser.error(f"{text!r} is no {by}")


def start_time(text: str) -> datetime:
    """An argument's day or time, UTC unless it says otherwise."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 2025-05-19 or 2025-05-19T12:00") from None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def end_time(text: str) -> datetime:
    """The same for the end of a range, to which a whole day belongs."""
    # A day means all of it.
    whole_day = len(text) <= len("2025-05-19")
    return start_time(text) + (timedelta(days=1, microseconds=-1) if whole_day else timedelta(0))


def counted(number: int, noun: str) -> str:
    """Such as "1 trade" and "2 trades"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
