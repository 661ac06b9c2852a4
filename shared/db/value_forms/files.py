"""How single values are written in a file of rows, CSV, JSON lines or Parquet, and read back.

A reader raises `ValueError`, with the reason, for what cannot have been written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal, get_args
from uuid import UUID

Format = Literal["csv", "jsonl", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
Form = Callable[[Any], Any]

# What spreadsheets take for the start of a formula, full-width signs and white space before it included; and the
# apostrophe that says it is none.
_NEEDS_APOSTROPHE = re.compile("\\s*[=+@\uff1d\uff0b\uff0d\uff20-]|[\t\r\n']")
# 2.29E+18 is what a spreadsheet makes of 2290000000098765432, and saves.
_SHORTENED = re.compile(r"^-?\d(?:[.,]\d+)?[eE][+-]\d+$", re.ASCII)
_PLAIN_DIGITS = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)", re.ASCII)


def cell(text: str) -> str:
    """Text that no spreadsheet runs as a formula."""
    return f"'{text}" if _NEEDS_APOSTROPHE.match(text) else text


def writer(kind: type[Any], file: Format, *, nullable: bool) -> Form:
    """What writes the values of a Python type."""
    if file == "parquet":
        return optional(str) if kind is UUID else as_it_is
    written, _ = _FORMS.get(kind, _TEXT)
    if file == "jsonl":
        return optional(written)
    if kind is not str:
        return _cell_of(written)
    return _nullable_cell if nullable else cell


def reader(kind: type[Any], file: Format, *, nullable: bool) -> Form:
    """The way back."""
    if kind is not str:
        return _read(_FORMS.get(kind, _TEXT)[1], file)
    if file != "csv":
        return as_it_is
    return _from_nullable_cell if nullable else _from_cell


def as_it_is(value: Any) -> Any:
    """The value itself."""
    return value


def optional(form: Form) -> Form:
    """The same for values that may be None."""
    return lambda value: None if value is None else form(value)


def utc_text(value: datetime | None) -> str | None:
    """An aware UTC time to the microsecond, such as 2025-05-19T00:00:36.878000Z."""
    return None if value is None else value.isoformat(timespec="microseconds").replace("+00:00", "Z")


def from_utc_text(value: Any) -> datetime:
    """A time with its offset, as text or as it is, in UTC."""
    instant = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(instant, datetime) or instant.tzinfo is None:
        raise ValueError("is no time with its offset, such as 2025-05-19T00:00:36.878000Z")
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{instant} lies beyond the years 1 to 9999") from None


def from_empty(form: Form) -> Form:
    """The same for cells that may be empty, which stand for None."""
    return lambda value: None if value is None or value == "" else form(value)


def plain_digits(value: Decimal | None) -> str | None:
    """Decimal digits without an exponent, and without zeros at the end of a fraction."""
    if value is None:
        return None
    digits = format(value, "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def from_digits(value: Any) -> Decimal | None:
    """The way back."""
    if value is None or value == "":
        return None
    if not isinstance(value, (str, Decimal)):
        raise ValueError(f"is {type(value).__name__}; exact numbers are written as text")
    if isinstance(value, str) and _SHORTENED.search(value):
        raise ValueError(f"{value[:40]!r} has an exponent, as a spreadsheet writes what it has shortened; export again")
    if isinstance(value, str) and not _PLAIN_DIGITS.fullmatch(value):
        raise ValueError(f"{value[:40]!r} is not a number in plain digits")
    return Decimal(value)


def json_text(value: Any) -> str | None:
    """A document as text."""
    return None if value is None else json.dumps(value, separators=(",", ":"))


def from_json_text(value: Any) -> Any:
    """The way back."""
    if not value:
        return None
    try:
        return json.loads(value)
    except (TypeError, RecursionError):
        raise ValueError("is no JSON, or nested too deep") from None


def refusing_shortened(form: Form) -> Form:
    """The same for numbers that stand in text: what a spreadsheet has shortened is refused."""

    def read(text: str) -> Any:
        if _SHORTENED.search(text):
            raise ValueError(f"{text!r} is what a spreadsheet leaves of a number; export again")
        return form(text)

    return read


def _cell_of(form: Form) -> Form:
    """The cell of a value that is no text."""

    def written(value: Any) -> Any:
        found = None if value is None else form(value)
        return json.dumps(found) if isinstance(found, (bool, int, float)) else found

    return written


def _read(form: Form, file: Format) -> Form:
    """The way back: from a cell's text, from what JSON or Parquet holds."""

    def read(value: Any) -> Any:
        if value is None or (file == "csv" and value == ""):
            return None
        if file == "csv" and form in _FROM_JSON:
            value = json.loads(value)
        return form(value)

    return read


def _exactly(kind: type[Any]) -> Form:
    def read(value: Any) -> Any:
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{str(value)[:40]!r} is no {kind.__name__}")
        return value

    return read


def _parsed(parse: Callable[[str], Any], kind: type[Any]) -> Form:
    def read(value: Any) -> Any:
        if isinstance(value, str):
            return parse(value)
        if not isinstance(value, kind):
            raise ValueError(f"{str(value)[:40]!r} is no {kind.__name__}")
        return value

    return read


def _nullable_cell(text: str | None) -> str | None:
    return None if text is None else cell(text) or "'"


def _from_cell(text: str) -> str:
    return text.removeprefix("'")


def _from_nullable_cell(text: str) -> str | None:
    return _from_cell(text) if text else None


# How values are written that are neither text, money nor times of ours, and how they are read.
_FORMS: dict[type[Any], tuple[Form, Form]] = {
    bool: (as_it_is, _exactly(bool)),
    int: (as_it_is, _exactly(int)),
    float: (as_it_is, _exactly(float)),
    Decimal: (plain_digits, from_digits),
    date: (date.isoformat, _parsed(date.fromisoformat, date)),
    datetime: (datetime.isoformat, _parsed(datetime.fromisoformat, datetime)),
    UUID: (str, _parsed(UUID, UUID)),
}
_FROM_JSON = {_FORMS[kind][1] for kind in (bool, int, float)}
_TEXT = (as_it_is, as_it_is)
