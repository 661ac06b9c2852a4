"""What rows of a stream look like in files: columns, spelling, and the way back.

Times are ISO 8601 in UTC to the microsecond, numbers plain decimal digits without exponent, in JSON as strings:
neither a spreadsheet nor a JSON reader may make floats of them. Parquet holds money as decimal128(20, 8) and times
as timestamp[us, UTC].

In CSV, text that a spreadsheet would run as a formula gets an apostrophe before it, and so does text that begins
with one; reading takes one off. In a column that may be NULL an apostrophe alone is the empty text, which leaves
the empty cell to NULL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Table

from shared.db.errors import MissingExtraError
from shared.db.tables import Stream, stream_of, streams
from shared.db.value_forms.files import Form, Format, refusing_shortened
from shared.db.value_forms.forms import forms_of

_IDS = {"trade_id", "exec_id", "order_id"}


@dataclass(frozen=True)
class FileLayout:
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


def file_layout_of(model: type[Any]) -> FileLayout:
    """How the rows of `model` look in files. `InvalidValueError` if it declared no stream."""
    return FileLayout(model, stream_of(model))


def file_layouts() -> list[FileLayout]:
    """Those of every stream that is declared."""
    return [FileLayout(model, stream) for model, stream in streams().items()]


def encoder(column: Column[Any], file: Format) -> Form:
    """What turns a value of this column into what stands in such a file."""
    return forms_of(column.type).written(file, nullable=bool(column.nullable))


def decoder(column: Column[Any], file: Format) -> Form:
    """The way back: raises `ValueError` with the reason for what cannot have been written."""
    forms = forms_of(column.type)
    form = forms.read(file, nullable=bool(column.nullable))
    return refusing_shortened(form) if column.name in _IDS and file == "csv" and forms.value_type is str else form


def pyarrow() -> Any:
    """The library, with its Parquet part. Raises `MissingExtraError` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "frames") from error
    return pyarrow
