"""The tables behave as those of `shared.db` do, on every database."""

from __future__ import annotations

from shared.db import DatabaseFactory
from shared.db.migrations import runner


def test_revisions_make_what_the_models_say(db: DatabaseFactory) -> None:
    """Up from nothing, back to nothing, and up again, with no difference left."""
    if db.settings.is_memory:
        return
    assert runner.check(db) == []
    runner.downgrade_all(db, allow_data_loss=True)
    runner.upgrade_all(db)
    assert runner.check(db) == []
    db.check_schema()
