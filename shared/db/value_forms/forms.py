"""What a column type says about its values beside how one is bound: `Forms`, and `forms_of` any column type.

A form is resolved once for a column, and what it gives is called with many values at once where speed matters. A
column type of this library is its own `Forms`: it overrides what differs from the usual. Of SQLAlchemy's types, and
those of others, the forms are made from their bind and result processors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Dialect,
    Enum,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    case,
    cast,
    func,
    type_coerce,
)
from sqlalchemy.types import NullType, TypeEngine

from shared.db.dialects import PORTS, port_of
from shared.db.value_forms import files

Values = Sequence[Any]
Cells = Sequence[Any]
# Cells for all of the values; None, or `TypeError`, where any of them needs a closer look.
Shortcut = Callable[[Values], Cells | None]
Convert = Callable[[Cells], Cells]

DIALECTS: dict[str, Dialect] = {port.name: port.dialect() for port in PORTS}
_MOST_DIGITS = 38  # of Arrow's decimal128
_LINE_TYPES = (Boolean, Date, DateTime, Float, Integer, Numeric, String, Uuid)


class Rounded(NamedTuple):
    """What is stored of an amount, and what that lost of it, in words."""

    cell: Any
    lost: str | None


class Forms:
    """The forms of one column's values."""

    secret: ClassVar[bool] = False
    """Whether nothing of a value may be shown, compared, or written to a file."""
    document: ClassVar[bool] = False
    """Whether a value is a JSON document, which another message about the same row replaces."""
    escaped: ClassVar[bool] = True
    """Whether a cell may hold what COPY escapes."""
    alike: ClassVar[bool] = False
    """Whether every column of this type makes the same cells of the same values."""
    kept_in: str | None = None
    """The column that keeps all digits of a value that this one rounds."""

    @property
    def sql_type(self) -> TypeEngine[Any]:
        """SQLAlchemy's own type, which stands behind a type that decorates it."""
        kind = self._kind
        return kind.impl_instance if isinstance(kind, TypeDecorator) else kind

    @property
    def is_text(self) -> bool:
        """Whether every database stores the values in a column of text, which it gives as it is."""
        return isinstance(self.sql_type, String) and not isinstance(self.sql_type, Enum)

    @property
    def value_type(self) -> type[Any]:
        """The Python type of the values."""
        return self.sql_type.python_type

    @property
    def comparable(self) -> bool:
        """Whether two rows that hold the same thing hold equal values."""
        return not (self.secret or self.document)

    # Bulk statements.
    def shortcut(self, dialect: Dialect) -> Shortcut | None:
        """What makes the cells of usual values, none of them None, many at once."""
        return None

    def cell(self, dialect: Dialect) -> Callable[[Any], Any]:
        """What makes a cell of any value but None, as binding it would, in the form in which the driver sends it."""
        bind, as_text = self._binding(dialect), port_of(dialect).takes_texts

        def made(value: Any) -> Any:
            bound = bind(value)
            if isinstance(bound, datetime):
                if not as_text and bound.tzinfo is not None:  # a column has no zone there
                    bound = bound.astimezone(UTC).replace(tzinfo=None)
                return bound.isoformat(" ", "microseconds")
            if not as_text:
                return int(bound) if isinstance(bound, bool) else bound
            if isinstance(bound, bool):
                return "t" if bound else "f"
            if isinstance(bound, bytes):
                return f"\\x{bound.hex()}"
            return bound if isinstance(bound, str) else str(bound)

        return made

    def arrow_checked(self, values: Any, dialect: Dialect, arrow: ModuleType) -> Any:
        """An Arrow array of the same values in the one type that `value_forms.arrow` has for them.

        One of `arrow.NOT_HELD` where any of them needs a closer look.
        """
        raise arrow.NotHeldError

    def rounding(self, dialect: Dialect, *, nullable: bool) -> Callable[[Any, bool], Rounded] | None:
        """As `cell`, for a type that may lose digits; the second argument says whether they are kept elsewhere."""
        return None

    # Lines of a recorder's file, where a value stands as it was given, whether or not the column takes it.
    @property
    def has_lines(self) -> bool:
        """Whether a value can stand there."""
        return isinstance(self.sql_type, _LINE_TYPES) and not isinstance(self.sql_type, Enum)

    def line_writer(self) -> Callable[[Any], str | None] | None:
        """What writes a value as text, and gives None for one that the text could not tell from another.

        None where a line has values of this type as JSON has them, or with a mark of their type.
        """
        return None

    def line_reader(self) -> Callable[[str], Any]:
        """The way back; `ValueError` or `ArithmeticError` for what has not been written so."""
        return str

    # Files of rows.
    def written(self, file: files.Format, *, nullable: bool) -> files.Form:
        """What writes a value into a file."""
        return files.writer(self.value_type, file, nullable=nullable)

    def read(self, file: files.Format, *, nullable: bool) -> files.Form:
        """The way back; `ValueError`, with the reason, for what cannot have been written."""
        return files.reader(self.value_type, file, nullable=nullable)

    # Ranges.
    def fetched(self, column: Column[Any], dialect: Dialect) -> ColumnElement[Any]:
        """The column as `decoding` takes it: as the driver gives it, unless there is a faster way."""
        return type_coerce(column, NullType())

    def fetches_text(self, dialect: Dialect) -> bool:
        """Whether what `fetched` gives is text."""
        return isinstance(self.sql_type, String)

    def decoding(self, dialect: Dialect) -> Callable[[Sequence[Any]], Iterable[Any]]:
        """What reads many values as `fetched` gives them."""
        read = self._reading(dialect)
        return files.as_it_is if read is None else (lambda stored: list(map(read, stored)))

    # Arrow.
    def arrow_type(self, arrow: Any) -> Any:
        """The Arrow type of the values: exact, and text for what Arrow has no type for."""
        kind = self.sql_type
        if isinstance(kind, Float):
            return arrow.float64()
        if isinstance(kind, Numeric):
            return arrow.decimal128(kind.precision or _MOST_DIGITS, kind.scale or 0)
        known = {Integer: arrow.int64, Boolean: arrow.bool_, Date: arrow.date32}
        return next((made() for one, made in known.items() if isinstance(kind, one)), arrow.string())

    def arrow_read(self, arrow: Any) -> Any:
        """The Arrow type to read as what the database gives; it is cast to `arrow_type` afterwards."""
        return self.arrow_type(arrow)

    def exported(self, column: Column[Any]) -> ColumnElement[Any]:
        """The column as COPY gives it to `arrow_read`."""
        return column

    def arrow_array(self, stored: Sequence[Any], dialect: Dialect, arrow: Any) -> Any:
        """An Arrow array of values as `fetched` gives them."""
        found: Iterable[Any] = stored
        if not isinstance(self.sql_type, Enum):  # of which the word stands there that is stored, as in COPY
            found = self.decoding(dialect)(stored)
        kind = self.arrow_read(arrow)
        if arrow.types.is_string(kind):
            found = [value if value is None else str(value) for value in found]
        return arrow.array(found, kind)

    # Copies from one database to another.
    def copied(self, column: Column[Any], source: Dialect, target: Dialect) -> ColumnElement[Any]:
        """The column as `converting` takes it: as it is stored, and text between two PostgreSQL databases."""
        stored = type_coerce(column, NullType())
        return cast(stored, Text) if port_of(source).takes_texts and port_of(target).takes_texts else stored

    def converting(self, source: Dialect, target: Dialect) -> Convert | None:
        """What makes values that `source` stores, none of them None, into those of the other kind of database.

        None where they are the same. Raises `ValueError`, `TypeError`, `ArithmeticError` or `InvalidValueError` for
        a value that has no place there.
        """
        return texts_of if port_of(target).takes_texts else None

    def digest(self, column: Column[Any]) -> dict[str, ColumnElement[Any]]:
        """What tells two copies of a column apart, the same on every database: by name, nothing of a single text."""
        kind = self.sql_type
        if isinstance(kind, Boolean):
            return {"true values": func.count(case((column, 1)))}
        if isinstance(kind, (Integer, Numeric, Date)) or (isinstance(kind, DateTime) and not kind.timezone):
            return {"first": func.min(column), "last": func.max(column)}
        if isinstance(kind, Enum):
            return {"length": func.sum(func.length(cast(column, Text)))}
        if isinstance(kind, (String, LargeBinary)):
            return {"length": func.sum(func.length(column))}
        return {}  # of documents and the like: the databases write the same one differently

    @property
    def _kind(self) -> TypeEngine[Any]:
        assert isinstance(self, TypeEngine), "forms of another object's type say whose they are"
        return self

    def _binding(self, dialect: Dialect) -> Callable[[Any], Any]:
        return self._kind.dialect_impl(dialect).bind_processor(dialect) or files.as_it_is

    def _reading(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        kind = self.sql_type
        # PostgreSQL's number for a type of numbers: there SQLAlchemy's own reader depends on it.
        number = 701 if isinstance(kind, Float) else 1700 if isinstance(kind, Numeric) else None
        return self._kind.dialect_impl(dialect).result_processor(dialect, number)


class _OthersForms(Forms):
    """Those of a type that knows nothing of them."""

    def __init__(self, kind: TypeEngine[Any]) -> None:
        self._others = kind

    @property
    def _kind(self) -> TypeEngine[Any]:
        return self._others

    def arrow_checked(self, values: Any, dialect: Dialect, arrow: ModuleType) -> Any:
        """Of the types that bind a value as it is."""
        kind = self.sql_type
        checks = {Boolean: arrow.flags, Integer: arrow.whole_numbers, Float: arrow.floats, String: arrow.texts}
        found = next((check for one, check in checks.items() if isinstance(kind, one)), None)
        as_it_is = kind is self._kind and self._binding(dialect) is files.as_it_is
        if found is None or isinstance(kind, Enum) or not as_it_is:
            raise arrow.NotHeldError
        return found(values)

    def converting(self, source: Dialect, target: Dialect) -> Convert | None:
        """Read as the type reads on the one, and written as it writes on the other."""
        kind = self.sql_type
        if isinstance(kind, (Integer, String)) and not isinstance(kind, Enum) and kind is self._kind:
            return super().converting(source, target)
        read, cell = self._reading(source) or files.as_it_is, self.cell(target)
        return lambda cells: [cell(read(stored)) for stored in cells]


def forms_of(kind: TypeEngine[Any]) -> Forms:
    """The forms of a column type's values."""
    return kind if isinstance(kind, Forms) else _OthersForms(kind)


def texts_of(cells: Cells) -> Cells:
    """Texts and numbers as COPY takes them. `TypeError` for anything else."""
    kinds = set(map(type, cells))
    if kinds <= {str}:
        return cells
    if kinds <= {str, int, float}:
        return list(map(str, cells))
    raise TypeError


def each(turn: Callable[[Any], Any]) -> Convert:
    """A conversion of values one by one."""
    return lambda cells: list(map(turn, cells))


_REMEMBERED = 100_000


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


def remembering(turn: Callable[[Any], Any]) -> Convert:
    """As `each`, for values that repeat."""
    return each(_Remembered(turn).__getitem__)


def secrets_of(table: Table) -> frozenset[str]:
    """The names of the columns of which nothing may be shown."""
    return frozenset(column.name for column in table.columns if forms_of(column.type).secret)
