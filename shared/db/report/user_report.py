"""What a user's bots did, as one page that opens without a network."""

from __future__ import annotations

from datetime import datetime
from decimal import localcontext
from pathlib import Path

from shared.db.database import DatabaseFactory
from shared.db.errors import InputError
from shared.db.operations.interruption import interruptible
from shared.db.operations.replacing import refuse_database, replacing
from shared.db.ranges.streams import at_one_moment
from shared.db.report.gathering import GAP_SECONDS, gather
from shared.db.report.page import plotly_script
from shared.db.report.questions import Scope
from shared.db.report.user_page import user_page
from shared.db.repositories import UserRepository
from shared.db.value_forms.amounts import EXACT


def write_report(
    db: DatabaseFactory,
    path: str | Path,
    username: str,
    run_id: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    gap_seconds: float = GAP_SECONDS,
) -> int:
    """Write the page of a user's fills, or of one run's, from `start` to `end`, both included, to `path`; their number.

    All of it is read in the user's own read-only session, and at one moment. A gap in the prices is longer than
    `gap_seconds`. Raises `MissingExtraError` without plotly, `InputError` if there is no such user or run, if the time
    would end before it begins, and if the file cannot be written.
    """
    plotly_script()
    if start is not None and end is not None and start > end:
        raise InputError(f"the report would begin at {start} and end before that, at {end}; swap the two")
    refuse_database(db, Path(path))
    db.check_schema()
    with db.get_session(read_only=True) as session:
        user = UserRepository(session).get_by_username(username)
    if user is None:
        raise InputError(f"there is no user called {username!r}; give a name as it stands in users.username")
    scope = Scope(user.user_id, run_id, start, end)
    with interruptible(f"{path} is as it was"), replacing(Path(path)) as file, localcontext(EXACT):
        with db.get_session(user_id=user.user_id, read_only=True) as session:
            at_one_moment(session)
            report = gather(session, username, scope, gap_seconds)
        file.write(user_page(report).html().encode())
    return report.fills
