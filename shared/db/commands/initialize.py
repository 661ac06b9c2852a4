"""The command `init`, which `python -m shared.db.init_db` is too: create the schema and say what is there."""

from __future__ import annotations

import argparse

from sqlalchemy import func, select

from shared.db.commands.arguments import EXIT_DONE, settings_from_arguments
from shared.db.database import DatabaseFactory
from shared.db.models import Base
from shared.db.operations.interruption import interruptible
from shared.db.operations.sqlite_backup import empty_file_removed


def initialize(options: argparse.Namespace) -> int:
    """Create missing tables and print what is there."""
    settings = settings_from_arguments(options)
    state = "the tables are all there or none is; run the same command again"
    with interruptible(state), empty_file_removed(settings), DatabaseFactory(settings) as db:
        created = db.create_tables()
        with db.get_session(read_only=True, max_staleness=0) as session:
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
