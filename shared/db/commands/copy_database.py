"""`python -m shared.db copy SOURCE TARGET`.

Exit codes: 0 done and compared, 1 failed or different (the target is as it was), 2 usage, 3 the source's schema is
not at the newest revision, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable

from shared.db.commands.arguments import settings_from_arguments, with_packages
from shared.db.database import DatabaseFactory
from shared.db.operations.copy_database import copy_database, row_total
from shared.db.operations.progress import Progress
from shared.db.operations.sqlite_backup import empty_file_removed
from shared.db.settings import DatabaseSettings, read_env_file

_CONFIGURED = "-"
_FROM_ENVIRONMENT = "env:"
_URL_HELP = (
    "a database URL; env:NAME for the one in the variable NAME, which other users of this machine do not see; or - for "
    "the database of the settings"
)


def copy_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` the arguments of copy; the function that runs it."""
    parser.add_argument("source", metavar="SOURCE_URL", help=_URL_HELP)
    parser.add_argument("target", metavar="TARGET_URL", help="likewise: the database to fill, which has no rows")
    parser.add_argument(
        "--ignore-unknown", action="store_true", help="leave out tables that this code does not know, and do not fail"
    )
    parser.add_argument("--json", action="store_true", help="report as JSON")

    def run(options: argparse.Namespace) -> int:
        from_settings, into_settings = (
            _settings(parser, options, address) for address in (options.source, options.target)
        )
        with (
            empty_file_removed(into_settings),
            DatabaseFactory(from_settings) as source,
            DatabaseFactory(into_settings) as target,
            Progress("copying", row_total(source)) as progress,
        ):
            report = copy_database(source, target, ignore_unknown=options.ignore_unknown, watch=progress.update)
        if options.json:
            print(json.dumps(report.as_dict()))
            return 0
        rows = sum(report.rows.values())
        print(f"{report.source} copied to {report.target}: {rows:,} rows, {report.seconds:.1f} s")
        if report.left_behind:
            print("left behind: " + ", ".join(f"{table} {count:,}" for table, count in report.left_behind.items()))
        print("compared: " + ", ".join(f"{table} {count:,}" for table, count in report.rows.items()))
        return 0

    return run


def _settings(parser: argparse.ArgumentParser, options: argparse.Namespace, address: str) -> DatabaseSettings:
    if address == _CONFIGURED:
        return settings_from_arguments(options)
    if address.startswith(_FROM_ENVIRONMENT):
        name = address.removeprefix(_FROM_ENVIRONMENT)
        address = os.environ.get(name, "")
        if not address:
            parser.error(f"there is no variable {name}; set it to a database URL")
    given = {} if options.models is None else {"models": options.models}
    return with_packages(
        DatabaseSettings(**read_env_file(options.env_file), database_url=address, echo_sql=options.echo_sql, **given)
    )
