"""`python -m shared.db coverage`: what is stored, and what is missing in between.

Exit codes: 0 done, 1 failed, 2 usage.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from shared.db.commands.arguments import settings_from_arguments
from shared.db.commands.row_files import end_time, start_time, stream_argument
from shared.db.database import DatabaseFactory
from shared.db.errors import InputError
from shared.db.models import Base
from shared.db.ranges.reading import StreamReading
from shared.db.repositories import PrivateExecutionRepository, PublicTradeRepository, Repository
from shared.db.tables import stream_of
from shared.db.tenancy.user_ids import UNSET


def coverage_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` the arguments of coverage; the function that runs it."""
    parser.add_argument("--symbol", help="trades of this symbol only")
    parser.add_argument("--user", metavar="USER_ID", help="the executions of this user's runs, in place of trades")
    parser.add_argument("--run", dest="run_id", metavar="RUN_ID", help="of this run only; needs --user")
    parser.add_argument("--table", help="another declared stream, in place of trades and executions")
    parser.add_argument("--key", help="of that stream: of this key only")
    parser.add_argument("--gaps", type=float, metavar="SECONDS", help="list the times of more than so many without any")
    parser.add_argument("--from", dest="start", type=start_time, metavar="TIME", help="gaps: first day or time, UTC")
    parser.add_argument("--to", dest="end", type=end_time, metavar="TIME", help="gaps: last day or time, UTC; included")
    parser.add_argument("--json", action="store_true", help="print JSON")

    def run(options: argparse.Namespace) -> int:
        if options.run_id is not None and options.user is None:
            parser.error("--run needs --user, whose run it is")
        if options.user is not None and options.symbol is not None:
            parser.error("--symbol is of trades, --user and --run are of executions")
        if options.gaps is None and (options.start or options.end):
            parser.error("--from and --to are bounds of --gaps")
        if options.table is not None and (options.symbol or options.run_id):
            parser.error("--symbol and --run are of trades and executions; name a --key of the table")
        if options.table is None and options.key is not None:
            parser.error("--key needs --table, whose key it is")
        with DatabaseFactory(settings_from_arguments(options)) as db:
            db.check_schema()
            if options.table is not None:
                found = _rows(db, stream_argument(parser, options.table), options)
            else:
                found = _trades(db, options) if options.user is None else _executions(db, options)
        print(json.dumps(found) if options.json else "\n".join(_lines(found)))
        return 0

    return run


def _trades(db: DatabaseFactory, options: argparse.Namespace) -> list[dict[str, Any]]:
    with db.get_session(read_only=True) as session:
        repository = PublicTradeRepository(session)
        covered = [each for each in repository.coverage() if options.symbol in (None, each.symbol)]
        if options.symbol is not None and not covered and options.gaps is None:
            raise InputError(f"there is no trade of {options.symbol!r}; check the symbol")
        names = [each.symbol for each in covered] or ([] if options.symbol is None else [options.symbol])
        gaps = {
            name: list(repository.gaps(name, options.gaps, options.start, options.end))
            for name in (names if options.gaps is not None else ())
        }
    return _described("symbol", names, {each.symbol: each for each in covered}, gaps)


def _executions(db: DatabaseFactory, options: argparse.Namespace) -> list[dict[str, Any]]:
    with db.get_session(user_id=options.user, read_only=True) as session:
        repository = PrivateExecutionRepository(session)
        covered = repository.coverage(options.run_id)
        if options.run_id is not None and not covered:
            raise InputError(f"user {options.user!r} has no run {options.run_id!r}; check both ids")
        names = [each.run_id for each in covered]
        gaps = {
            name: list(repository.gaps(name, options.gaps, options.start, options.end))
            for name in (names if options.gaps is not None else ())
        }
    return _described("run_id", names, {each.run_id: each for each in covered}, gaps)


def _rows(db: DatabaseFactory, model: type[Base], options: argparse.Namespace) -> list[dict[str, Any]]:
    with db.get_session(user_id=UNSET if options.user is None else options.user, read_only=True) as session:
        repository = Repository(session, model)
        covered = {str(each.key): each for each in StreamReading.coverage(repository)}
        names = [name for name in covered if options.key in (None, name)]
        gaps = {
            name: list(repository.gaps(covered[name].key, options.gaps, options.start, options.end))
            for name in (names if options.gaps is not None else ())
        }
    return _described(stream_of(model).by, names, covered, gaps)


def _described(kind: str, names: Sequence[str], covered: dict[str, Any], gaps: dict[str, Any]) -> list[dict[str, Any]]:
    described = []
    for name in names:
        each = covered.get(name)
        entry: dict[str, Any] = {
            kind: name,
            "first_ts": each and each.first_ts and each.first_ts.isoformat(),
            "last_ts": each and each.last_ts and each.last_ts.isoformat(),
            "count": each.count if each else 0,
        }
        if name in gaps:
            entry["gaps"] = [
                {
                    "start_ts": gap.start_ts.isoformat(),
                    "end_ts": gap.end_ts.isoformat(),
                    "seconds": gap.length.total_seconds(),
                }
                for gap in gaps[name]
            ]
        described.append(entry)
    return described


def _lines(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return ["nothing is stored"]
    kind = next(iter(found[0]))
    table = [(kind, "first", "last", "count")]
    table += [(e[kind], e["first_ts"] or "-", e["last_ts"] or "-", f"{e['count']:,}") for e in found]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    for entry in found:
        if "gaps" in entry:
            lines.append(f"{entry[kind]}: {len(entry['gaps'])} gap{'' if len(entry['gaps']) == 1 else 's'}")
        lines += [f"  {gap['start_ts']}  {gap['end_ts']}  {gap['seconds']:,.6f} s" for gap in entry.get("gaps", ())]
    return lines
