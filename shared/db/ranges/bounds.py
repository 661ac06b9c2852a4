"""Ranges of a stream of rows: which rows, in which order, from where on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Table, bindparam, tuple_

from shared.db.column_types import BoundedString, UTCDateTime
from shared.db.dialects.port import Port
from shared.db.errors import InvalidValueError
from shared.db.tables import OWNERSHIP, Stream, begins_index, cursor_text, generated_key, stream_of, streams
from shared.db.value_forms.forms import forms_of

# Where a row stands in its range: its time, and what tells it from others of that time, if they may be several.
Position = tuple[Any, ...]
_AFTER = ("after_time", "after_tie")


def cursor_of(row: Any) -> str:
    """Where a row stands in its range, as printable text: `after=` continues behind it.

    For plain rows and mapped objects of every declared stream. It holds the row's time and the exchange's id of it,
    nothing secret. Raises `InvalidValueError` for what is no row of a stream.
    """
    declared = streams().get(type(row))
    if declared is not None:
        return cursor_text(*(getattr(row, name) for name in declared.order))
    if not any(type(row) is stream.row for stream in streams().values()):
        raise InvalidValueError(f"a {type(row).__name__} is no row of a stream, and has no place in a range")
    cursor: str = row.cursor
    return cursor


@dataclass(frozen=True)
class Source:
    """A declared stream, as ranges read it."""

    model: type[Any]
    stream: Stream

    @property
    def row(self) -> Any:
        """The class of its plain rows."""
        return self.stream.row

    @property
    def columns(self) -> Any:
        """The table's columns by name."""
        table: Table = self.model.__table__
        return table.c

    @property
    def time(self) -> Column[Any]:
        """The column of the rows' time."""
        return self.column(self.stream.time)

    @property
    def order(self) -> tuple[Column[Any], ...]:
        """The columns by which the rows of a range are ordered."""
        return tuple(map(self.column, self.stream.order))

    @property
    def number(self) -> Column[Any] | None:
        """The column of the numbers that the database gives to rows as they come, if it gives any."""
        key = generated_key(self.model)
        return None if key is None else self.column(key)

    @property
    def read_columns(self) -> list[Column[Any]]:
        """The columns of a plain row, but for the one that is the same in all of a range."""
        return [self.columns[name] for name in self.row._fields if name != self.stream.by]

    def column(self, name: str) -> Column[Any]:
        """One column. `InvalidValueError` if the table has none of this name."""
        found = self.columns.get(name)
        if found is None:
            raise InvalidValueError(f"{self.model.__name__} has no column {name}")
        column: Column[Any] = found
        return column

    def range(
        self,
        key: Any,
        start: datetime | None = None,
        end: datetime | None = None,
        equal: Mapping[str, Any] | None = None,
        owned: ColumnElement[bool] | None = None,
    ) -> RowRange:
        """The rows of one `key`, bounds inclusive, with these values in further columns (None: any).

        `InvalidValueError` for what cannot be a key, a bound or such a value.
        """
        alike = {name: value for name, value in (equal or {}).items() if value is not None}
        within = tuple(self.column(name) == _value(self.column(name), value) for name, value in alike.items())
        key = _value(self.column(self.stream.by), key)
        return RowRange(self, key, self.instant(start), self.instant(end), within, owned)

    def instant(self, value: datetime | None) -> datetime | None:
        """A bound in UTC. `InvalidValueError` for a naive one."""
        kind = self.time.type
        assert isinstance(kind, UTCDateTime)
        return None if value is None else kind.instant(value)


def source_of(model: type[Any]) -> Source:
    """The stream that `model` declared. `InvalidValueError` if it declared none."""
    return Source(model, stream_of(model))


@dataclass(frozen=True)
class RowRange:
    """The rows of one key from `start` to `end`, ordered by time, those of one instant by the stream's tie.

    `within` are further criteria, `owned` is the one that they belong to the user, where it is needed. `spanned` asks
    for the key as for whatever lies from it to itself.
    """

    source: Source
    key: Any
    start: datetime | None
    end: datetime | None
    within: tuple[ColumnElement[bool], ...] = ()
    owned: ColumnElement[bool] | None = None
    spanned: bool = False

    def few_for(self, port: Port) -> RowRange:
        """The same range, for a statement that asks for few of its rows, the first of them in either order.

        Where the database would walk all rows of the key before them, though an index has the range: see
        `Port.walks_equals`. Users' rows are confined by their owners, whom it finds by an equality alone.
        """
        source = self.source
        shared = OWNERSHIP[source.model] is None
        spanned = port.walks_equals and shared and begins_index(source.model, source.stream.by, *source.stream.order)
        return replace(self, spanned=spanned)

    @property
    def confined(self) -> tuple[ColumnElement[bool], ...]:
        """The user's criterion, if any."""
        return () if self.owned is None else (self.owned,)

    def criteria(self, after: Position | None = None, *, reverse: bool = False) -> tuple[ColumnElement[bool], ...]:
        """What a row must meet to be in the range and later than `after` in the order of reading."""
        order = self.source.order
        time, by = order[0], self.source.column(self.source.stream.by)
        found = [by >= self.key, by <= self.key] if self.spanned else [by == self.key]
        found += self.within
        start, end = self.start, self.end
        # One bound a side: of two, SQLite may begin at the farther one and read all that lies between them.
        if after is not None and reverse and (end is None or after[0] <= end):
            found.append(tuple_(*order) < self._bound(after))
            end = None
        elif after is not None and not reverse and (start is None or after[0] >= start):
            found.append(tuple_(*order) > self._bound(after))
            start = None
        if start is not None:
            found.append(time >= start)
        if end is not None:
            found.append(time <= end)
        return tuple(found)

    def up_to(self, last: Position, *, reverse: bool = False) -> ColumnElement[bool]:
        """The criterion that a row is not later than `last` in the order of reading."""
        order = self.source.order
        key = tuple_(*order)
        bound = tuple_(*(bindparam(None, value, column.type) for value, column in zip(last, order, strict=True)))
        return key >= bound if reverse else key <= bound

    @staticmethod
    def parameters(after: Position) -> dict[str, Any]:
        """What a statement with such criteria takes to continue behind another row."""
        return dict(zip(_AFTER, after, strict=False))

    def order(self, *, reverse: bool = False) -> tuple[ColumnElement[Any], ...]:
        """The order of reading."""
        order = self.source.order
        if self.spanned:
            order = (self.source.column(self.source.stream.by), *order)
        return tuple(column.desc() for column in order) if reverse else order

    def position_of(self, cursor: str | None) -> Position | None:
        """Time and tie that a cursor names. `InvalidValueError` if it is none."""
        if cursor is None:
            return None
        when, separator, tie = cursor.partition("/") if isinstance(cursor, str) else ("", "", "")
        try:
            instant = datetime.fromisoformat(when)
            told = tuple(forms_of(column.type).value_type(tie) for column in self.source.order[1:])
        except ValueError:
            instant = None
        if instant is None or instant.tzinfo is None or not separator:
            raise InvalidValueError("after= takes the cursor of a row read before: row.cursor, or cursor_of(row)")
        return instant.astimezone(UTC), *told

    def _bound(self, after: Position) -> Any:
        named = zip(_AFTER, after, self.source.order, strict=False)
        return tuple_(*(bindparam(name, value, column.type) for name, value, column in named))


def _value(column: Column[Any], value: Any) -> Any:
    if value is None:
        raise InvalidValueError("None is no value to look for", f"{column.table.name}.{column.name}")
    return column.type.text(value) if isinstance(column.type, BoundedString) else value
