"""`python -m shared.db.init_db`: create the schema and say what is there. Exit codes: 0 done, 1 failed, 2 usage.

3 is a failure that has its own remedy: the schema is older or newer than this code.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from shared.db.database import DatabaseFactory
from shared.db.errors import SchemaVersionError, SharedDBError
from shared.db.models import Base
from shared.db.settings import DatabaseSettings, read_env_file

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_OTHER_REVISION = 3
EXIT_READER_GONE = 141  # as a shell reports it of tools that the signal SIGPIPE (13) has ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Create missing tables; print the masked URL and each table's number of rows. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.db.init_db",
        description="Create the tables of shared.db. Settings come from GRIDBOT_DB_* variables and .env.",
    )
    add_connection_arguments(parser)
    return report_failure("init_db", lambda: initialize(parser.parse_args(arguments)))


def initialize(options: argparse.Namespace) -> int:
    """Create missing tables and print what is there."""
    settings = settings_from_arguments(options)
    with DatabaseFactory(settings) as db:
        created = db.create_tables()
        with db.get_session(read_only=True) as session:
            counts = {
                table.name: session.scalar(select(func.count()).select_from(table))
                for table in Base.metadata.sorted_tables
            }
    print("Database initialized successfully" + ("" if created else " (nothing changed: the schema was already there)"))
    print(f"URL: {settings.safe_url}")
    width = max(map(len, counts))
    for name, count in counts.items():
        print(f"  {name:<{width}}  {count:>12,} rows")
    return EXIT_DONE


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which database, the same for every command."""
    kinds = ("sqlite", "postgresql")
    parser.add_argument("--db-type", metavar="TYPE", type=str.lower, choices=kinds, help="sqlite or postgresql")
    parser.add_argument("--db-name", metavar="NAME", help="SQLite file path or PostgreSQL database name")
    parser.add_argument("--db-url", metavar="URL", help="whole database URL, in place of the other settings")
    parser.add_argument("--env-file", metavar="FILE", help="read this file in place of .env")
    parser.add_argument("--echo-sql", action="store_true", help="log SQL statements (never their values)")
    parser.set_defaults(refuse=parser.error)


def settings_from_arguments(options: argparse.Namespace) -> DatabaseSettings:
    """Settings from those arguments, what is not given from the environment. Raises `SettingsError`.

    Arguments that contradict each other end the program as a usage error.
    """
    if options.db_url == "":
        # As from --db-url "$URL" with URL not set: must not fall back to the default database.
        options.refuse("argument --db-url: is empty; leave it out for the other settings")
    if options.db_url is not None and (options.db_type is not None or options.db_name is not None):
        options.refuse("argument --db-url: is the whole address; leave out --db-type and --db-name")
    given: dict[str, Any] = {
        "db_type": options.db_type,
        "db_name": options.db_name,
        "database_url": options.db_url,
        "echo_sql": options.echo_sql or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if "db_type" in given or "db_name" in given:
        # What is typed here is meant: a URL in the environment must not overrule it.
        given.setdefault("database_url", None)
    return DatabaseSettings(**read_env_file(options.env_file), **given)


def exit_code(error: Exception) -> int:
    """The exit code for an error."""
    return EXIT_OTHER_REVISION if isinstance(error, SchemaVersionError) else EXIT_FAILED


def report_failure(program: str, run: Callable[[], int]) -> int:
    """What `run` returns; an expected failure becomes one line on stderr, without a traceback, and its exit code."""
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has what he wants. What is still to be written goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_READER_GONE
    except (SharedDBError, SQLAlchemyError) as error:
        # Of a message of several lines the rest is the driver's own detail.
        print(f"{program}: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main())
