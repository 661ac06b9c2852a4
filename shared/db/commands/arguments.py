"""What every command shares: the arguments that say which database, and how a failure is told.

Exit codes: 0 done, 1 failed, 2 usage, 3 a failure that has its own remedy (the schema is older or newer than this
code), 130 interrupted, 141 the reader of the output is gone.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from sqlalchemy.exc import SQLAlchemyError

from shared.db import packages
from shared.db.dialects import DatabaseType
from shared.db.errors import MissingExtraError, SchemaVersionError, SharedDBError
from shared.db.operations.interruption import Interrupted, between_operations
from shared.db.settings import DatabaseSettings, read_env_file

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_OTHER_REVISION = 3
EXIT_INTERRUPTED = 130  # as a shell reports it of tools that the signal SIGINT (2) has ended
EXIT_READER_GONE = 141  # as a shell reports it of tools that the signal SIGPIPE (13) has ended


# A command adds its arguments to its parser and gives the function that runs it and returns the exit code.
Command = Callable[[argparse.ArgumentParser], Callable[[argparse.Namespace], int]]


def run_commands(
    package: str,
    description: str,
    commands: Mapping[str, Mapping[str, tuple[str, Command]]],
    arguments: Sequence[str] | None,
) -> int:
    """Run the one of `commands` that `arguments` name (None: the program's own) for `python -m PACKAGE`.

    They stand in groups, by what a person wants, which the help shows. Each is its help and what adds its arguments to
    a parser and gives the function that runs it; all take those that say which database, before or behind the command.
    A failure that is to be expected is told in one line. Returns the exit code.
    """
    parser = parser_of(package, description, commands)

    def run() -> int:
        if "_ARGCOMPLETE" in os.environ:
            _complete(parser)
        options = parser.parse_args(arguments)
        code: int = options.run(options)
        return code

    return report_failure(package, run, ends_process=arguments is None)


def parser_of(
    package: str, description: str, commands: Mapping[str, Mapping[str, tuple[str, Command]]]
) -> argparse.ArgumentParser:
    """The parser of all of `python -m PACKAGE`."""
    prog = f"python -m {package}"
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [-h] [DATABASE] COMMAND ...",
        description=description,
        epilog=f"{prog} COMMAND --help tells what the command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # what is short for an option of the command is no option of ours
    )
    parsers = parser.add_subparsers(prog=prog, metavar="COMMAND", help=argparse.SUPPRESS, required=True)
    width = max(len(name) for group in commands.values() for name in group)
    for title, group in commands.items():
        parser.add_argument_group(title, "\n".join(_line(name, text, width) for name, (text, _) in group.items()))
        for name, (help_text, command) in group.items():
            subparser = parsers.add_parser(name, description=help_text)
            # SUPPRESS: what is given before the command is not overwritten because it is not given behind it.
            add_connection_arguments(subparser, default=argparse.SUPPRESS)
            subparser.set_defaults(run=command(subparser))
    add_connection_arguments(parser)
    return parser


def _line(name: str, help_text: str, width: int) -> str:
    there = shutil.get_terminal_size().columns - 2  # as argparse has it
    return textwrap.fill(
        help_text, max(there, width + 20), initial_indent=f"{name:<{width}}  ", subsequent_indent=" " * (width + 2)
    )


def _complete(parser: argparse.ArgumentParser) -> None:
    """Tell the shell that asks what could be typed next, and end the process."""
    try:
        argcomplete = importlib.import_module("argcomplete")
    except ImportError as error:
        raise MissingExtraError("argcomplete", "cli") from error
    argcomplete.autocomplete(parser)


def add_connection_arguments(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """The arguments that say which database, the same for every command; `default` where they are not given."""
    kinds = get_args(DatabaseType)
    group = parser.add_argument_group("the database, before or behind the command")
    told = " or ".join(kinds)
    group.add_argument("--db-type", metavar="TYPE", type=str.lower, choices=kinds, default=default, help=told)
    group.add_argument(
        "--db-name", metavar="NAME", default=default, help="SQLite file path or PostgreSQL database name"
    )
    group.add_argument("--db-url", metavar="URL", default=default, help="whole database URL, in place of the others")
    group.add_argument("--env-file", metavar="FILE", default=default, help="read this file in place of .env")
    models = "load these modules' tables too: package.module,..."
    group.add_argument("--models", metavar="MODULES", default=default, help=models)
    echo = "log SQL statements (never their values)"
    group.add_argument("--echo-sql", action="store_true", default=default or False, help=echo)
    parser.set_defaults(refuse=parser.error)


def settings_from_arguments(options: argparse.Namespace) -> DatabaseSettings:
    """Settings from those arguments, what is not given from the environment, with other packages' models loaded.

    Raises `SettingsError` and `PackageError`. Arguments that contradict each other end the program as a usage error.
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
        "models": options.models,
        "echo_sql": options.echo_sql or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if "db_type" in given or "db_name" in given:
        # What is typed here is meant: a URL in the environment must not overrule it.
        given.setdefault("database_url", None)
    return with_packages(DatabaseSettings(**read_env_file(options.env_file), **given))


def with_packages(settings: DatabaseSettings) -> DatabaseSettings:
    """The settings, once the tables of other packages are loaded, as they say."""
    packages.load(settings)
    return settings


def exit_code(error: Exception) -> int:
    """The exit code for an error."""
    return EXIT_OTHER_REVISION if isinstance(error, SchemaVersionError) else EXIT_FAILED


def report_failure(program: str, run: Callable[[], int], *, ends_process: bool) -> int:
    """What `run` returns; an expected failure becomes one line on stderr, without a traceback, and its exit code.

    SIGINT and SIGTERM alike are such a failure, and so is an output that nobody can write to. Where the process has
    nothing else to do (`ends_process`), a signal outside of an operation ends it on the spot: nothing is under way.
    """
    if sys.stdout is None:
        # The database's file might get its descriptor, and whatever prints would write into it.
        return _failed(program, "standard output is closed, and nothing was done; send it to /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for what the locale cannot say
    interrupted: list[Interrupted] = []

    def end(told: Interrupted) -> None:
        if ends_process:
            os.write(2, f"{program}: interrupted; {told}\n".encode(errors="backslashreplace"))
            os._exit(EXIT_INTERRUPTED)
        interrupted.append(told)
        raise told

    with between_operations("nothing was changed", end=end, last=ends_process):
        try:
            try:
                return run()
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt as error:
            return _failed(program, f"interrupted; {error}".rstrip("; "), EXIT_INTERRUPTED)
        except BrokenPipeError:
            # Whoever read our output, such as `head`, has what it wants.
            _drop_output()
            return EXIT_READER_GONE
        except (SharedDBError, SQLAlchemyError) as error:
            if interrupted:  # the driver's word for it
                return _failed(program, f"interrupted; {interrupted[0]}", EXIT_INTERRUPTED)
            return _failed(program, str(error).strip(), exit_code(error))
        except UnicodeEncodeError as error:
            return _failed(
                program, f"the encoding {error.encoding} of this locale has no {error.object!a}; set LC_ALL=C.UTF-8"
            )
        except OSError as error:
            return _failed(program, _cause_of(error))


def _cause_of(error: OSError) -> str:
    why = error.strerror or str(error)
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        _drop_output()
        return f"what was to be printed cannot be written ({why}); whatever the command had to do is done"
    try:
        os.getcwd()
    except OSError:
        return f"the working folder was deleted ({why}); change into another one"
    return why if error.filename is None else f"{os.fsdecode(error.filename)}: {why}"


def _failed(program: str, why: str, code: int = EXIT_FAILED) -> int:
    if sys.stderr is not None:
        # Of a message of several lines the rest is the driver's own detail.
        print(f"{program}: {why.splitlines()[0]}", file=sys.stderr)
    return code


def _drop_output() -> None:
    """What is still to be written to stdout goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
