"""Rows that a revision's new rule would refuse: named before anything is changed, with what to do about them."""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import text

from shared.db.errors import MigrationError

# As many as a person reads; the query in the message finds the others.
_SHOWN = 10


def refuse(query: str, rule: str, remedy: str) -> None:
    """Raise `MigrationError` if `query` finds rows; what it gives of them names them in the message.

    Printed SQL has no rows to look at: run by hand, the rule itself refuses them.
    """
    if context.is_offline_mode():
        return
    found = op.get_bind().execute(text(query))
    names = [" of ".join(str(value) for value in row) for row in found.fetchmany(_SHOWN)]
    more = len(found.all())
    if names:
        rest = f" and {more} more" if more else ""
        raise MigrationError(f"undone: {rule}, and these rows break it: {', '.join(names)}{rest}; {remedy}")
