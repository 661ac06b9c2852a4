"""`python -m shared.db.init_db`: create the schema and say what is there. Exit codes: 0 done, 1 failed, 2 usage.

3 is a failure that has its own remedy: the schema is older or newer than this code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from shared.db.commands.arguments import add_connection_arguments, report_failure
from shared.db.commands.initialize import initialize
from shared.db.database import initialize_database

__all__ = ["initialize_database", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Create missing tables; print the masked URL and each table's number of rows. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.db.init_db",
        description="Create the tables of shared.db. Settings come from GRIDBOT_DB_* variables and .env.",
    )
    add_connection_arguments(parser)
    return report_failure("init_db", lambda: initialize(parser.parse_args(arguments)), ends_process=arguments is None)


if __name__ == "__main__":
    sys.exit(main())
