"""`python -m shared.fleet import-json FILE ... --user USER_ID --bot NAME`: records of other systems' JSON files.

Exit codes: 0 done, 1 failed or some records were not taken, 2 usage, 3 the schema is not at the newest revision, 130
interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from shared.db import DatabaseFactory, SchemaVersionError, SharedDBError
from shared.fleet.import_json import KINDS, RULES, TaggingRule, import_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.fleet", description="Tools of shared.fleet. Settings come from GRIDBOT_DB_* variables."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    text = "store signals and trades of JSON files; again it changes nothing"
    add = commands.add_parser("import-json", help=text, description=text).add_argument
    add("--db-url", type=_url, metavar="URL", help="whole database URL, in place of the settings")
    add("files", nargs="+", metavar="FILE", help="array, object of arrays, or lines of JSON")
    add("--user", required=True, metavar="USER_ID", help="whose the records are, whatever they say")
    add("--bot", required=True, metavar="NAME", help="the user's bot whose they are")
    add("--as", dest="kind", choices=KINDS, help="what an array holds, if its file's name does not say")
    add("--leave-out", action="append", default=[], metavar="FIELD", help="a field that has no column")
    tags = f"tag as test what it fits: FIELD=VALUE, FIELD<NUMBER, FIELD>NUMBER, FIELD=BEGIN*, or {', '.join(RULES)}"
    add("--test-rule", action="append", default=[], type=_rule, metavar="RULE", help=tags)
    try:
        return _import(parser.parse_args(arguments))
    except KeyboardInterrupt:
        return _failed("interrupted; what was stored stays, run the same command again to go on", 130)
    except (SharedDBError, SQLAlchemyError) as error:
        return _failed(str(error), 3 if isinstance(error, SchemaVersionError) else 1)
    except OSError as error:
        return _failed(f"{error.filename or 'output'}: {error.strerror or error}", 1)


def _import(options: argparse.Namespace) -> int:
    how = {name: getattr(options, name) for name in ("bot", "kind", "leave_out")}
    left = 0
    with DatabaseFactory(options.db_url) as db:
        for report in import_json(db, options.files, user_id=options.user, rules=options.test_rule, **how):
            print(
                f"{report.file}: {report.inserted:,} new, {report.skipped:,} already stored, "
                f"{report.rejected:,} rejected; {report.tagged:,} tagged as test"
            )
            if report.rejected:
                left = _failed(
                    f"{report.rejected_file} tells what was not taken, and why; correct it there, and store it by "
                    f"python -m shared.db replay"
                )
    return left


def _failed(why: str, code: int = 1) -> int:
    print(f"shared.fleet: {why.strip().splitlines()[0]}", file=sys.stderr)
    return code


def _rule(text: str) -> TaggingRule:
    try:
        return TaggingRule.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _url(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty; leave it out for the other settings")
    return text


if __name__ == "__main__":
    sys.exit(main())
