"""What rows of a stream look like in files: columns, spelling, and the way back.

Times are ISO 8601 in UTC to the microsecond, numbers plain decimal digits without exponent, in JSON as strings:
neither a spreadsheet nor a JSON reader may make floats of them. Parquet holds money as decimal128(20, 8) and times
as timestamp[us, UTC].

In CSV, text that a spreadsheet would run as a formula gets an apostrophe before it, and so does text that begins
with one; reading takes one off. In a column that may be NULL an apostrophe alone is the empty text, which leaves
the empty cell to NULL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal, get_args
from uuid import UUID

from sqlalchemy import Column, Table

from shared.db.column_types import MONEY_PLACES, Json, Money, UTCDateTime, python_type
from shared.db.errors import MissingExtraError
from shared.db.tables import Stream, stream_of, streams

Format = Literal["csv", "jsonl", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)

# What spreadsheets take for the start of a formula, full-width signs and white space before it included; and the
# apostrophe that says it is none.
_NEEDS_APOSTROPHE = re.compile("\\s*[=+@\uff1d\uff0b\uff0d\uff20-]|[\t\r\n']")
# 2.29E+18 is what a spreadsheet makes of 2290000000098765432, and saves.
_SHORTENED = re.compile(r"^-?\d(?:[.,]\d+)?[eE][+-]\d+$", re.ASCII)
_PLAIN_DIGITS = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)", re.ASCII)
_IDS = {"trade_id", "exec_id", "order_id"}


@dataclass(frozen=True)
class Layout:
    """The columns of a stream in a file, in their order.

    CSV has `from_json` besides, for people and tax tools: columns with what the exchange's own message, kept in
    raw_json, says under another name. Reading ignores them.
    """

    model: type[Any]
    stream: Stream

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return self.stream.exported

    @property
    def from_json(self) -> Mapping[str, str]:
        """The names of those besides, and the message's names for them."""
        return self.stream.from_json

    def column(self, name: str) -> Column[Any]:
        """The table's column of this name."""
        table: Table = self.model.__table__
        return table.c[name]


def layout_of(model: type[Any]) -> Layout:
    """How the rows of `model` look in files. `InvalidValueError` if it declared no stream."""
    return Layout(model, stream_of(model))


def layouts() -> list[Layout]:
    """Those of every stream that is declared."""
    return [Layout(model, stream) for model, stream in streams().items()]


def encoder(column: Column[Any], kind: Format) -> Callable[[Any], Any]:
    """What turns a value of this column into what stands in a file of this kind."""
    if isinstance(column.type, Json):
        return _identity if kind == "jsonl" else _json_text
    if kind == "parquet":
        return _optional(str) if python_type(column.type) is UUID else _identity
    if isinstance(column.type, UTCDateTime):
        return _iso
    if isinstance(column.type, Money):
        return _plain_digits
    written, _ = _FORMS.get(python_type(column.type), _TEXT)
    if kind == "jsonl":
        return _optional(written)
    if python_type(column.type) is not str:
        return _cell_of(written)
    return _nullable_cell if column.nullable else cell


def decoder(column: Column[Any], kind: Format) -> Callable[[Any], Any]:
    """The way back: raises `ValueError` with the reason for what cannot have been written."""
    if isinstance(column.type, Json):
        return _identity if kind == "jsonl" else _from_json_text
    if isinstance(column.type, UTCDateTime):
        return _from_nullable_iso if column.nullable else _from_iso
    if isinstance(column.type, Money):
        return _from_money
    if python_type(column.type) is not str:
        return _read(_FORMS.get(python_type(column.type), _TEXT)[1], kind)
    if kind != "csv":
        return _identity
    if column.name in _IDS:
        return _from_id_cell
    return _from_nullable_cell if column.nullable else _from_cell


def _optional(form: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else form(value)


def _cell_of(form: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The cell of a value that is no text."""

    def written(value: Any) -> Any:
        found = None if value is None else form(value)
        return json.dumps(found) if isinstance(found, (bool, int, float)) else found

    return written


def _read(form: Callable[[Any], Any], kind: Format) -> Callable[[Any], Any]:
    """The way back: from a cell's text, from what JSON or Parquet holds."""

    def read(value: Any) -> Any:
        if value is None or (kind == "csv" and value == ""):
            return None
        if kind == "csv" and form in _FROM_JSON:
            value = json.loads(value)
        return form(value)

    return read


def _exactly(kind: type[Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{str(value)[:40]!r} is no {kind.__name__}")
        return value

    return read


def _parsed(parse: Callable[[str], Any], kind: type[Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if isinstance(value, str):
            return parse(value)
        if not isinstance(value, kind):
            raise ValueError(f"{str(value)[:40]!r} is no {kind.__name__}")
        return value

    return read


def cell(text: str) -> str:
    """Text that no spreadsheet runs as a formula."""
    return f"'{text}" if _NEEDS_APOSTROPHE.match(text) else text


def pyarrow() -> Any:
    """The library, with its Parquet part. Raises `MissingExtraError` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "frames") from error
    return pyarrow


def _identity(value: Any) -> Any:
    return value


def _iso(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _plain_digits(value: Decimal | None) -> str | None:
    if value is None:
        return None
    digits = format(value, "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _nullable_cell(text: str | None) -> str | None:
    return None if text is None else cell(text) or "'"


def _json_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, separators=(",", ":"))


def _from_nullable_iso(value: Any) -> datetime | None:
    return None if value is None or value == "" else _from_iso(value)


def _from_iso(value: Any) -> datetime:
    instant = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(instant, datetime) or instant.tzinfo is None:
        raise ValueError("is no time with its offset, such as 2025-05-19T00:00:36.878000Z")
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{instant} lies beyond the years 1 to 9999") from None


def _from_digits(value: Any) -> Decimal | None:
    if value is None or value == "":
        return None
    if not isinstance(value, (str, Decimal)):
        raise ValueError(f"is {type(value).__name__}; exact numbers are written as text")
    if isinstance(value, str) and _SHORTENED.search(value):
        raise ValueError(f"{value[:40]!r} has an exponent, as a spreadsheet writes what it has shortened; export again")
    if isinstance(value, str) and not _PLAIN_DIGITS.fullmatch(value):
        raise ValueError(f"{value[:40]!r} is not a number in plain digits")
    return Decimal(value)


def _from_money(value: Any) -> Decimal | None:
    amount = _from_digits(value)
    exponent = 0 if amount is None else amount.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -MONEY_PLACES:
        raise ValueError(f"{str(value)[:40]} has more than the {MONEY_PLACES} decimal places that are stored")
    return amount


def _from_json_text(value: Any) -> Any:
    if not value:
        return None
    try:
        return json.loads(value)
    except (TypeError, RecursionError):
        raise ValueError("is no JSON, or nested too deep") from None


def _from_cell(text: str) -> str:
    return text.removeprefix("'")


def _from_id_cell(text: str) -> str:
    if _SHORTENED.search(text):
        raise ValueError(f"{text!r} is what a spreadsheet leaves of a number; export again")
    return _from_cell(text)


def _from_nullable_cell(text: str) -> str | None:
    return _from_cell(text) if text else None


# How values are written that are neither text, money nor times of ours, and how they are read.
_FORMS: dict[type[Any], tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    bool: (_identity, _exactly(bool)),
    int: (_identity, _exactly(int)),
    float: (_identity, _exactly(float)),
    Decimal: (_plain_digits, _from_digits),
    date: (date.isoformat, _parsed(date.fromisoformat, date)),
    datetime: (datetime.isoformat, _parsed(datetime.fromisoformat, datetime)),
    UUID: (str, _parsed(UUID, UUID)),
}
_FROM_JSON = {_FORMS[kind][1] for kind in (bool, int, float)}
_TEXT = (_identity, _identity)
