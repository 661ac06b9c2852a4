"""A bot's questions through a standby, beside the same through the primary."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import URL

from benchmarks.fault_bench.server import PostgreSQLServer, Standby
from benchmarks.harness import Contender, Goal, Place, compare
from benchmarks.points import filled, user_at
from shared.db import DatabaseFactory, DatabaseSettings, RunRepository

_CALLS, _LIMIT = 500, 100
_PRIMARY, _REPLICA, _OWN = "the primary", "the standby", "the standby, after a position"


def replicas(here: Place) -> None:
    """Runs of a user out of 100,000 of 50 users, each question in a session of its own that only reads."""
    folder = here.folder / "pair"
    folder.mkdir()
    here.folder.chmod(0o755)  # the servers' user must get through
    folder.chmod(0o755)
    with PostgreSQLServer(folder / "a") as primary, Standby(primary, folder / "b") as standby:
        primary.ask("CREATE DATABASE fleet")
        url = filled(_schema(primary.url.set(database="fleet")))
        settings = DatabaseSettings(
            database_url=url.render_as_string(hide_password=False),
            replica_url=standby.url.set(database="fleet").render_as_string(hide_password=False),
            max_staleness=3600,
            _env_file=None,
        )
        with DatabaseFactory(settings) as db:
            position = db.write_position()
            with db.get_session(read_only=True, after=position) as session:
                RunRepository(session).get_running(user_at(0))
            questions: list[tuple[str, Callable[[RunRepository, int], Any]]] = [
                ("get_running", lambda runs, number: runs.get_running(user_at(number))),
                ("a page of 100", lambda runs, number: runs.get_by_user_id(user_at(number), limit=_LIMIT)),
            ]
            for title, ask in questions:
                compare(
                    f"PostgreSQL, {title}",
                    [
                        Contender(_PRIMARY, partial(_asked, db, ask, max_staleness=0)),
                        Contender(_REPLICA, partial(_asked, db, ask)),
                        Contender(_OWN, partial(_asked, db, ask, after=position)),
                    ],
                    lambda number: range(number * _CALLS, (number + 1) * _CALLS),
                    here.rounds,
                    count=_CALLS,
                    goals=[Goal(_REPLICA, 1 / 1.2, _PRIMARY), Goal(_OWN, 1 / 1.2, _PRIMARY)],
                )


def _asked(db: DatabaseFactory, ask: Callable[[RunRepository, int], Any], numbers: range, **how: Any) -> None:
    for number in numbers:
        with db.get_session(read_only=True, **how) as session:
            ask(RunRepository(session), number)


def _schema(url: URL) -> URL:
    with DatabaseFactory(url) as db:
        db.create_tables()
    return url


BENCHMARKS = {"replicas": replicas}
