"""`python -m shared.db migrate ...`: the functions of `runner` as commands.

Exit codes: 0 done, 1 failed, 2 usage, 3 the schema in the database is not at the code's revision.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from shared.db.commands.arguments import add_connection_arguments, exit_code
from shared.db.errors import SchemaDriftError, SchemaVersionError, SharedDBError, UnknownRevisionError
from shared.db.packages import OURS

USAGE = 2

_REVISION = "a revision, what it begins with (0002), head, or base for the empty schema"
_PACKAGE = {
    "default": None,
    "metavar": "NAME",
    "help": "of this package alone; without it head and base are those of all, and any other revision is of shared.db",
}
_AUDIT = {
    "action": argparse.BooleanOptionalAction,
    "default": None,
    "help": "switch the audit log on, or off, afterwards",
}
# name: (help, arguments)
_COMMANDS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "status": ("say at which revision the database and the code are, and what is pending", {"--package": _PACKAGE}),
    "up": (
        "bring the database forward",
        {
            "revision": {"nargs": "?", "default": "head", "help": _REVISION},
            "--package": _PACKAGE,
            "--audit": _AUDIT,
        },
    ),
    "down": (
        "bring the database back",
        {
            "revision": {"help": _REVISION},
            "--package": _PACKAGE,
            "--allow-data-loss": {"action": "store_true", "default": False, "help": "delete tables or columns"},
        },
    ),
    "adopt": (
        "take over a database whose tables carry no revision, if they are what the code makes",
        {"--package": _PACKAGE},
    ),
    "check": ("compare the live schema with the models, both ways", {"--package": _PACKAGE}),
    "sql": (
        "print the SQL for review; no database is needed",
        {
            "revision": {"nargs": "?", "default": "head", "help": _REVISION},
            "--from": {"dest": "start", "default": "base", "metavar": "REVISION", "help": "where to begin (base)"},
            "--package": _PACKAGE,
            "--audit": _AUDIT,
        },
    ),
    "new": (
        "write the next revision by comparing models and database (in a checkout), to be read and mended",
        {
            "message": {"help": "what it changes, such as 'stop price of orders'"},
            "--package": {"default": OURS, "metavar": "NAME", "help": "whose (shared.db)"},
        },
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` the commands; the function that runs the one that is chosen."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, (help_text, arguments) in _COMMANDS.items():
        # SUPPRESS: what is given before the command must not be overwritten because it is not given after it.
        command = commands.add_parser(name, help=help_text, description=help_text, argument_default=argparse.SUPPRESS)
        add_connection_arguments(command, default=argparse.SUPPRESS)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        for argument, details in arguments.items():
            command.add_argument(argument, **details)
        command.set_defaults(usage_error=command.error)
    return _run


def _run(options: argparse.Namespace) -> int:
    try:
        # Late: every other command works without Alembic.
        from shared.db.commands.migrate_answers import ANSWERS

        answer = ANSWERS[options.command](options)
    except (SharedDBError, SQLAlchemyError) as error:
        if options.json:
            print(json.dumps(_described(error)))
            return USAGE if isinstance(error, UnknownRevisionError) else exit_code(error)
        if isinstance(error, UnknownRevisionError):
            options.usage_error(str(error))
        raise
    print(json.dumps(answer.found) if options.json else answer.text)
    return answer.exit_code


def _described(error: Exception) -> dict[str, Any]:
    described: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, SchemaVersionError):
        described |= {"database_revision": error.database_revision, "code_revision": error.code_revision}
    if isinstance(error, SchemaDriftError):
        described["differences"] = [difference.as_json() for difference in error.differences]
    return described
