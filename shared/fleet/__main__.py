"""`python -m shared.fleet import-json FILE ... --user USER_ID --bot NAME`: records of other systems' JSON files.

Exit codes: 0 done, 1 failed or some records were not taken, 2 usage, 3 the schema is not at the newest revision, 130
interrupted.
"""

# PYTHON_ARGCOMPLETE_OK: a shell may ask it what could be typed next

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from shared.db import DatabaseFactory
from shared.db.commands import check, interruptible, run_commands, settings_from_arguments
from shared.fleet.import_json import KINDS, RULES, import_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    what = "store signals and trades of JSON files; again it changes nothing"
    commands = {"move data": {"import-json": (what, _import_json)}}
    return run_commands("shared.fleet", "Tools of shared.fleet, with the settings of shared.db.", commands, arguments)


def _import_json(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="array, object of arrays, or lines of JSON")
    add("--user", required=True, metavar="USER_ID", help="whose the records are, whatever they say")
    add("--bot", required=True, metavar="NAME", help="the user's bot whose they are")
    add("--as", dest="kind", choices=KINDS, help="what an array holds, if its file's name does not say")
    add("--leave-out", action="append", default=[], metavar="FIELD", help="a field that has no column")
    tags = f"tag as test what it fits: FIELD=VALUE, FIELD<NUMBER, FIELD>NUMBER, FIELD=BEGIN*, or {', '.join(RULES)}"
    add("--test-rule", action="append", default=[], metavar="RULE", help=tags)

    def run(options: argparse.Namespace) -> int:
        how = {name: getattr(options, name) for name in ("bot", "kind", "leave_out")}
        code = 0
        with (
            interruptible("what was stored stays; run the same command again to go on"),
            DatabaseFactory(settings_from_arguments(options)) as db,
        ):
            for report in import_json(db, options.files, user_id=options.user, rules=options.test_rule, **how):
                print(
                    f"{report.file}, {report.kind}: {report.inserted:,} new, {report.skipped:,} already stored, "
                    f"{report.rejected:,} rejected; {report.tagged:,} tagged as test"
                )
                if report.rejected:
                    remedy = f"correct it there, and run: python -m shared.db replay {report.rejected_file}"
                    print(f"shared.fleet: {report.rejected_file} tells what was not taken, {remedy}", file=sys.stderr)
                    code = 1
                check()
        return code

    return run


if __name__ == "__main__":
    sys.exit(main())
