"""Rows as JSON text and back: what a spool and a file of dead letters hold.

Times are ISO 8601 and amounts decimal digits in strings, so that a person can read a line and correct it. Whatever
else stands in a column is marked ({"$text": ...} in a column of times), so that it comes back as what it was: a row
that a database would refuse is refused after a restart too, and never mended by the way through a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from sqlalchemy import Table

from shared.db.bulk.rows import Row, mapping_of, row_batches
from shared.db.column_types import Json
from shared.db.errors import InputError, InvalidValueError
from shared.db.value_forms.forms import Forms, forms_of
from shared.db.value_forms.instants import iso_text

_REPR_LIMIT = 200
_INTEGER_BITS = 1024
_encode_json = json.JSONEncoder(separators=(",", ":")).encode
_any_json = Json()


class UnknownValue:
    """Stands for a value that no text can give back; every column refuses it. `text` describes what it was."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"<{self.text}>"


class RowText:
    """The rows of one model as text."""

    def __init__(self, model: type[Any]) -> None:
        self.model = model
        table: Table = model.__table__
        numbered = table.autoincrement_column
        self._number = None if numbered is None else numbered.name
        self._table = table.name
        for column in table.columns:
            if not forms_of(column.type).has_lines:
                raise InvalidValueError(
                    f"a recorder's files cannot hold values of type {type(column.type).__name__}; give the column "
                    "another type of this library",
                    f"{table.name}.{column.name}",
                )
        forms = {column.name: forms_of(column.type) for column in table.columns}
        self._documents = [name for name, one in forms.items() if one.document]
        self._encoders = {name: _encoder(one) for name, one in forms.items()}
        self._decoders = {name: _decoder(one) for name, one in forms.items()}

    def taken(self, rows: Iterable[Any], size: int) -> list[list[Row]]:
        """The rows as mappings of their own, in parts of at most `size`.

        Later changes to the caller's rows have no effect. Takes what `bulk_create` takes. Raises `InvalidValueError`
        for what is no row.
        """
        if type(rows) is list:  # the usual way, and the shorter one
            return [
                [self._taken(row, position) for position, row in enumerate(rows[start : start + size], start)]
                for start in range(0, len(rows), size)
            ]
        return [
            [self._taken(batch.row(index), batch.position + index) for index in range(len(batch))]
            for batch in row_batches(self.model, rows, size, fillable=frozenset(), by_shape=False)
        ]

    def encoded(self, rows: list[Row]) -> bytes:
        """The rows as one JSON array."""
        encode = self._encoders.get
        return _encode_json(
            [
                {name if type(name) is str else repr(name): encode(name, _marked)(value) for name, value in row.items()}
                for row in rows
            ]
        ).encode()

    def decoded(self, text: bytes | str) -> list[Row]:
        """The way back. Raises `InputError` for what `encoded` cannot have written."""
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise InputError(f"not JSON: {error}") from None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError("not a list of rows")
        decoders = self._decoders
        return [{name: decoders.get(name, _unmarked)(value) for name, value in row.items()} for row in rows]

    def _taken(self, row: Any, position: int) -> Row:
        try:
            values = dict(row) if type(row) is dict else mapping_of(row, self.model)
        except InvalidValueError as error:
            raise InvalidValueError(error.problem, error.column, position) from None
        if self._number in values:
            raise InvalidValueError("a recorder leaves it to the database", f"{self._table}.{self._number}", position)
        for name in self._documents:
            if values.get(name) is not None:
                with suppress(InvalidValueError):  # refused when it is written, with everything else that does not fit
                    values[name] = _any_json.plain(values[name])
        return values


def _encoder(forms: Forms) -> Callable[[Any], Any]:
    write = forms.line_writer()
    if write is None:
        return _document if forms.document else _marked

    def encode(value: Any) -> Any:
        text = write(value)
        if text is not None:
            return text
        return {"$text": value} if type(value) is str else _marked(value)

    return encode


def _decoder(forms: Forms) -> Callable[[Any], Any]:
    if forms.line_writer() is None:
        return _unmarked
    read = forms.line_reader()

    def decode(value: Any) -> Any:
        if isinstance(value, str):
            try:
                return read(value)
            except (ValueError, ArithmeticError):
                return value  # somebody's correction; refused when it is written
        return _unmarked(value)

    return decode


def _document(value: Any) -> Any:
    marked = _marked(value)
    document = marked.get("$json") if isinstance(marked, dict) else None
    return marked if document is None or _looks_marked(document) else document


def _marked(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, float)):
        return value
    if isinstance(value, int) and value.bit_length() <= _INTEGER_BITS:
        return int(value)
    if type(value) is Decimal:
        return {"$decimal": str(value)}
    if type(value) is datetime and (text := iso_text(value)) is not None:
        return {"$time": text}
    if type(value) is date:
        return {"$date": value.isoformat()}
    if type(value) is UUID:
        return {"$uuid": str(value)}
    if isinstance(value, (Mapping, list, tuple)):
        try:
            return {"$json": _any_json.plain(value)}
        except InvalidValueError:
            pass
    return {"$unknown": _description(value)}


def _description(value: Any) -> str:
    try:
        return f"{type(value).__name__}: {value!r}"[:_REPR_LIMIT]
    except Exception:  # noqa: BLE001 # a repr may raise anything, and what it is of is still worth keeping
        return type(value).__name__


def _looks_marked(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)).startswith("$")


def _unmarked(value: Any) -> Any:
    if not _looks_marked(value):
        return value
    ((mark, content),) = value.items()
    try:
        return _MARKS[mark](content)
    except (KeyError, ValueError, TypeError, InvalidOperation):
        raise InputError(f"a value marked {mark!r} cannot be read") from None


def _same(value: Any) -> Any:
    return value


_MARKS: dict[str, Callable[[Any], Any]] = {
    "$text": str,
    "$decimal": Decimal,
    "$time": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$uuid": UUID,
    "$json": _same,
    "$unknown": UnknownValue,
}
