"""Rows of one table as one database stores them, turned into what the other one stores: no digit and no bit else.

Nothing is decoded on the way. Sealed secrets stay the text they are, which is bound to the row's id and opens there;
JSON null and SQL NULL stay apart.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from sqlalchemy import Column, Connection, Dialect, Select, Table, select

from shared.db.dialects import MYSQL, POSTGRESQL, port_of
from shared.db.driver_errors import named_errors
from shared.db.errors import CopyError, InvalidValueError
from shared.db.value_forms.forms import DIALECTS, Cells, Convert, forms_of

_BATCH = 2_000


def stored_batches(source: Connection, table: Table, target: str) -> Generator[list[Cells]]:
    """All rows of a table in order of their key, some at a time, as columns of what `target`'s driver takes.

    Raises `CopyError`, which names table, row and column, for a value that the target cannot hold. To be closed where
    it is not read to its end: it has a cursor open on the source.
    """
    of_source, of_target = source.dialect, DIALECTS[target]
    convert = [_converter(column, of_source, of_target) for column in table.columns]
    stored = select(*(forms_of(column.type).copied(column, of_source, of_target) for column in table.columns))
    with closing(_pages(source, table, stored.order_by(*table.primary_key.columns))) as pages:
        for rows in pages:
            given: list[Cells] = list(zip(*rows, strict=True))
            try:
                turned = [cells if turn is None else turn(cells) for turn, cells in zip(convert, given, strict=True)]
            except _UNFIT:
                problem = _problem(table, convert, given)
            else:
                del rows, given
                yield turned
                del turned
                continue
            # Where nothing is left of the rows: a traceback may be printed with its frames' variables.
            del rows, given
            raise CopyError(problem)


_UNFIT = (ArithmeticError, InvalidValueError, TypeError, ValueError)


def _problem(table: Table, convert: Sequence[Convert | None], given: list[Cells]) -> str:
    """Which value does not fit, and why."""
    keys = given[_key_position(table)]
    for column, turn, cells in zip(table.columns, convert, given, strict=True):
        for key, cell in zip(keys, cells, strict=True):
            try:
                _ = None if turn is None else turn([cell])
            except _UNFIT as error:
                reason = error.problem if isinstance(error, InvalidValueError) else "is nothing that belongs there"
                return f"{table.name}, row {key!r}, column {column.name}: {reason}"
    return f"{table.name}: a row does not fit"


def _key_position(table: Table) -> int:
    (key,) = table.primary_key.columns
    return list(table.columns).index(key)


def _pages(source: Connection, table: Table, statement: Select[Any]) -> Generator[Sequence[Any]]:
    if port_of(source) is POSTGRESQL:
        # Through a server-side cursor.
        with source.execute(statement, execution_options={"yield_per": _BATCH}) as result:
            yield from result.partitions()
        return
    if port_of(source) is MYSQL:
        # Its driver would fetch the whole table: page by page, each behind the last row of the one before.
        (key,), place = table.primary_key.columns, _key_position(table)
        rows = source.execute(statement.limit(_BATCH)).all()
        while rows:
            yield rows
            rows = source.execute(statement.where(key > rows[-1][place]).limit(_BATCH)).all()
        return
    with source.execute(statement) as result:
        cursor: Any = result.cursor  # fetches no more than it is asked for
        while True:
            with named_errors(source):
                rows = cursor.fetchmany(_BATCH)
            if not rows:
                return
            yield rows


def _converter(column: Column[Any], source: Dialect, target: Dialect) -> Convert | None:
    """What turns stored values of one kind of database into those of the other; None where they are the same."""
    if source.name == target.name:
        return None
    turn = forms_of(column.type).converting(source, target)
    return turn if turn is None or not column.nullable else partial(_around_nulls, turn)


def _around_nulls(turn: Convert, cells: Cells) -> Cells:
    if None not in cells:
        return turn(cells)
    present = iter(turn([cell for cell in cells if cell is not None]))
    return [None if cell is None else next(present) for cell in cells]
