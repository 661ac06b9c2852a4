"""The numbers that PostgreSQL gives to new rows, and what is done when they lag behind.

A sequence knows nothing of rows that came with ids of their own, by psql, COPY, a restore of the rows alone or
`PublicTrade(id=...)`: it goes on to give ids that are taken. SQLite takes the next number from the table itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, text
from sqlalchemy.engine import ExceptionContext

from shared.db.dialects import port_of
from shared.db.dialects.postgresql import UniqueViolation
from shared.db.errors import NumberingError
from shared.db.tables import OWNERSHIP

# The columns that an INSERT or COPY names.
_NAMED = re.compile(r"(?:INSERT INTO|COPY) \S+ \(([^)]*)\)")
# Forward only, whatever rows it is asked for: what a session had numbered meanwhile may not be committed yet.
_MEND = """
    SELECT setval(sequence, newest) FROM {lag}
    WHERE has_sequence_privilege(sequence, 'UPDATE') AND NOT row_security_active('{table}')
"""
# Of a sequence that has given no number yet the last one is NULL.
_LAG = """
    (SELECT sequence::regclass,
        CASE WHEN has_sequence_privilege(sequence, 'USAGE, SELECT')
        THEN coalesce(pg_sequence_last_value(sequence::regclass), 0) END AS given,
        (SELECT max({column}) FROM {table}) AS newest
    FROM pg_get_serial_sequence('{table}', '{key}') AS sequence) AS lag
"""


@dataclass(frozen=True)
class Lag:
    """A table whose sequence gave `given` last, while the newest id is `newest`."""

    table: str
    given: int
    newest: int


def numbering_error(context: ExceptionContext) -> NumberingError | None:
    """The failure behind a driver's error, if the database gave a row a primary key that is taken."""
    error = context.original_exception
    if not isinstance(error, UniqueViolation):
        return None
    table = next((one for one in _numbered() if one.name == error.diag.table_name), None)
    if table is None or error.diag.constraint_name != table.primary_key.name:
        return None
    named = _NAMED.search(context.statement or "")
    brought = named is not None and _key(table) in {name.strip(' "') for name in named[1].split(",")}
    return None if brought else NumberingError(error, context.statement)


def lags(connection: Connection) -> list[Lag]:
    """The tables whose sequence lags behind, of those that are there."""
    if not port_of(connection).has_sequences:
        return []
    there = port_of(connection).tables(connection)
    found = []
    for table in _numbered():
        if table.name in there:
            lag = connection.execute(text(f"SELECT given, newest FROM {_lag(connection, table)} WHERE given < newest"))
            found += [Lag(table.name, *numbers) for numbers in lag]
    return found


def mend(connection: Connection) -> list[Lag]:
    """Bring each sequence that lags forward to its table's newest id; which did.

    At once and for good, whatever becomes of the transaction. Not where the login may not set the sequence, or does not
    see every row.
    """
    mended = []
    for lag in lags(connection):
        table = next(one for one in _numbered() if one.name == lag.table)
        if connection.execute(text(statement_that_mends(connection, table))).first() is not None:
            mended.append(lag)
    return mended


def statement_that_mends(connection: Connection, table: Table) -> str:
    """SQL that brings the table's sequence forward if it lags; a row tells that it did."""
    quoted = connection.dialect.identifier_preparer.quote(table.name)
    return f"{_MEND.format(lag=_lag(connection, table), table=quoted)} AND given < newest"


def _lag(connection: Connection, table: Table) -> str:
    quote = connection.dialect.identifier_preparer.quote
    return _LAG.format(table=quote(table.name), column=quote(_key(table)), key=_key(table))


def _numbered() -> list[Table]:
    """The declared tables whose rows the database numbers."""
    tables: list[Any] = [model.__table__ for model in OWNERSHIP]
    return [table for table in tables if table.autoincrement_column is not None]


def _key(table: Table) -> str:
    assert table.autoincrement_column is not None
    return table.autoincrement_column.name
