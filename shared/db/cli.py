"""`python -m shared.db COMMAND`: thin, one function an operation, all the work elsewhere.

Exit codes: 0 done, 1 failed (one line on stderr names cause and remedy), 2 usage.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import shared.db.init_db as init_db

# A command adds its arguments to its parser and gives the function that runs it and returns the exit code.
Command = Callable[[argparse.ArgumentParser], Callable[[argparse.Namespace], int]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.db",
        description="Tools of shared.db. Settings come from GRIDBOT_DB_* variables and .env.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (help_text, command) in COMMANDS.items():
        subparser = commands.add_parser(name, help=help_text, description=help_text)
        init_db.add_connection_arguments(subparser)
        subparser.set_defaults(run=command(subparser))
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    return init_db.report_failure("shared.db", lambda: run(options))


COMMANDS: dict[str, tuple[str, Command]] = {
    "init": ("create missing tables and say what is there", lambda parser: init_db.initialize),
}
