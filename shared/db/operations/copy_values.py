"""Rows of one table as one database stores them, turned into what the other one stores: no digit and no bit else.

Nothing is decoded on the way. Sealed secrets stay the text they are, which is bound to the row's id and opens there;
JSON null and SQL NULL stay apart.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Select, Table, Text, cast, func, select, type_coerce
from sqlalchemy.types import NullType

from shared.db.bulk.cells import Cells
from shared.db.column_types import MONEY_PLACES, SCALABLE, CheckedBoolean, Json, Money, UTCDateTime
from shared.db.dialects import POSTGRESQL, SQLITE, port_of
from shared.db.driver_errors import named_errors
from shared.db.errors import CopyError, InvalidValueError

_BATCH = 2_000
_REMEMBERED = 100_000
# Of 15 digits and a point every 8-byte float gives all back.
_SURELY_EXACT = 16
_TIME_LENGTH = len("2025-05-19 00:00:36.878000")

Convert = Callable[[Cells], Cells]


def batches(source: Connection, table: Table, target: str) -> Generator[list[Cells]]:
    """All rows of a table in order of their key, some at a time, as columns of what `target`'s driver takes.

    Raises `CopyError`, which names table, row and column, for a value that the target cannot hold. To be closed where
    it is not read to its end: it has a cursor open on the source.
    """
    columns = list(table.columns)
    convert = [_converter(column, port_of(source).name, target) for column in columns]
    with closing(_pages(source, _stored(table, port_of(source).name, target))) as pages:
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


def _stored(table: Table, source: str, target: str) -> Select[Any]:
    if source == SQLITE.name:
        columns: list[ColumnElement[Any]] = [type_coerce(column, NullType()) for column in table.columns]
    else:
        columns = [_of_postgresql(column, target) for column in table.columns]
    return select(*columns).order_by(*table.primary_key.columns)


def _of_postgresql(column: Column[Any], target: str) -> ColumnElement[Any]:
    if isinstance(column.type, UTCDateTime) and target == SQLITE.name:
        return func.to_char(func.timezone("UTC", column), "YYYY-MM-DD HH24:MI:SS.US")
    if target == POSTGRESQL.name or isinstance(column.type, (Money, Json)):
        return cast(type_coerce(column, NullType()), Text)
    return type_coerce(column, NullType())


def _pages(source: Connection, statement: Select[Any]) -> Generator[Sequence[Any]]:
    if port_of(source) is POSTGRESQL:
        # Through a server-side cursor.
        with source.execute(statement, execution_options={"yield_per": _BATCH}) as result:
            yield from result.partitions()
        return
    with source.execute(statement) as result:
        cursor: Any = result.cursor  # fetches no more than it is asked for
        while True:
            with named_errors(source):
                rows = cursor.fetchmany(_BATCH)
            if not rows:
                return
            yield rows


def _converter(column: Column[Any], source: str, target: str) -> Convert | None:
    """What turns stored values of one kind of database into those of the other; None where they are the same."""
    if source == target:
        return None
    turn = _to_postgresql(column.type) if target == POSTGRESQL.name else _to_sqlite(column.type)
    if turn is None or not column.nullable:
        return turn
    return partial(_around_nulls, turn)


def _to_postgresql(kind: Any) -> Convert:
    if isinstance(kind, Money):
        return partial(_mapped, _Remembered(partial(_amount, kind)).__getitem__)
    if isinstance(kind, UTCDateTime):
        return lambda cells: [f"{cell}+00" for cell in _times(cells)]
    return _texts


def _to_sqlite(kind: Any) -> Convert | None:
    if isinstance(kind, Money):
        return partial(_mapped, _Remembered(partial(_float, kind)).__getitem__)
    if isinstance(kind, UTCDateTime):
        return _times
    if isinstance(kind, CheckedBoolean):
        return partial(_mapped, int)
    return None


def _around_nulls(turn: Convert, cells: Cells) -> Cells:
    if None not in cells:
        return turn(cells)
    present = iter(turn([cell for cell in cells if cell is not None]))
    return [None if cell is None else next(present) for cell in cells]


def _mapped(turn: Callable[[Any], Any], cells: Cells) -> Cells:
    return list(map(turn, cells))


def _times(cells: Cells) -> Cells:
    # PostgreSQL also knows infinity, and SQLite takes any text.
    if not {_TIME_LENGTH}.issuperset(map(len, cells)):
        raise ValueError
    return cells


def _texts(cells: Cells) -> Cells:
    kinds = set(map(type, cells))
    if kinds <= {str}:
        return cells
    if kinds <= {str, int, float}:
        return list(map(str, cells))
    raise TypeError


class _Remembered(dict[Any, Any]):
    """What was made of a value before: prices and sizes repeat."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, stored: Any) -> Any:
        if len(self) >= _REMEMBERED:
            self.clear()
        made = self[stored] = self._make(stored)
        return made


def _amount(kind: Money, stored: Any) -> str:
    """The decimal that a stored float stands for."""
    if isinstance(stored, float) and -SCALABLE < stored < SCALABLE:
        return f"{stored:.{MONEY_PLACES}f}"  # off by less than half of the last digit
    # repr() is the shortest decimal that gives the same float: what the column's type reads, too.
    return format(kind.exact(repr(stored) if isinstance(stored, float) else stored), "f")


def _float(kind: Money, stored: str) -> float:
    return float(stored) if len(stored) <= _SURELY_EXACT else kind.as_float(kind.exact(stored))
