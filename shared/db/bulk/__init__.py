"""Many rows at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

_BATCH = 1000
_INSERT: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def insert_new(session: Session, table: Any, key: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Insert the rows whose `key` columns are not in the table yet; the number really inserted.

    Of rows with the same key the first one wins. Part of the caller's transaction.
    """
    session.flush()
    connection = Session.connection(session)
    statement = _INSERT[connection.dialect.name](table).on_conflict_do_nothing(index_elements=key)
    counted = statement.returning(table.c[key[0]])
    inserted = 0
    iterator = iter(rows)
    while batch := [dict(row) for row in islice(iterator, _BATCH)]:
        inserted += len(connection.execute(counted, batch).all())
    return inserted
