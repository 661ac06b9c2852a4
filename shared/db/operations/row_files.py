"""Rows of a stream to CSV, JSON lines and Parquet, and back. What is written reads back equal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from shared.db.bulk import RejectedRow
from shared.db.bulk.rows import Row
from shared.db.errors import InputError
from shared.db.exchanges.files import Block, BlockReader, check_whole, open_text
from shared.db.models import PublicTrade
from shared.db.operations.replacing import replacing
from shared.db.operations.row_layout import FileLayout, decoder, encoder, file_layout_of, file_layouts, pyarrow
from shared.db.value_forms.files import Format, cell
from shared.db.value_forms.forms import forms_of

FileRows = Sequence[Sequence[Any]]

_LINE_LIMIT = 1_000_000
_PARQUET_BATCH = 10_000
_ROW_GROUP = 100_000


@contextmanager
def writing(path: Path, layout: FileLayout, kind: Format) -> Iterator[Callable[[FileRows], None]]:
    """A function that takes batches of rows, values in the layout's order; the file is there when the block ends.

    Raises `InputError` if it cannot be written, `MissingExtraError` for Parquet without pyarrow.
    """
    encoders = [encoder(layout.column(name), kind) for name in layout.columns]
    with replacing(path) as file, _WRITERS[kind](file, layout) as write:

        def encoded(rows: FileRows) -> None:
            # Column by column, so that the loops over the values run in C.
            columns = zip(*rows, strict=True)
            write(rows, [list(map(encode, column)) for encode, column in zip(encoders, columns, strict=True)])

        yield encoded


def read_export(
    path: str | Path, *, symbol: str | None = None, on_rejected: Callable[[RejectedRow], None] | None = None
) -> ExportedFile:
    """The rows of a file that `export` wrote, for `bulk_create` of the repository of its `layout.model`.

    CSV and JSON lines may be gzipped. With `symbol` only its rows are taken. Reading starts with the iteration,
    streams, and may be repeated. Raises `InputError` for a file that is missing, damaged, or not of `export`.
    """
    found = recognized(Path(path))
    if found is None:
        raise InputError(f"{path} was not written by export; archives of Bybit are read by read_archive")
    return ExportedFile(Path(path), *found, symbol, on_rejected)


def recognized(path: Path) -> tuple[FileLayout, Format] | None:
    """What kind of exported file this is, by its content; None if it is none. `InputError` if it cannot be read."""
    with open_text(path) as (file, text):
        if file.peek(4)[:4] == b"PAR1":
            with _whole(path):
                found = _layout_with(pyarrow().parquet.read_schema(path).names, "parquet")
            if found is None:
                raise InputError(f"{path} is Parquet, and lacks columns of what export writes; convert it first")
            return found
        first = text.readline(_LINE_LIMIT)
    if not first and ".jsonl" in path.suffixes:
        return file_layout_of(PublicTrade), "jsonl"  # an export without rows
    try:
        return _layout_with(_parsed(first), "jsonl")
    except ValueError:
        pass
    try:
        return _layout_with(next(csv.reader([first]), []), "csv")
    except csv.Error:
        return None


def _parsed(line: str) -> Any:
    """What a line of JSON says. `ValueError` for any other, one that is nested too deep included."""
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("the line is nested too deep") from None


class ExportedFile(BlockReader):
    """The rows of an exported file, in its order. Made by `read_export`."""

    def __init__(
        self,
        path: Path,
        layout: FileLayout,
        kind: Format,
        symbol: str | None,
        on_rejected: Callable[[RejectedRow], None] | None,
    ) -> None:
        super().__init__(on_rejected)
        self.path = path
        self.layout = layout
        self.symbol = symbol
        self._kind = kind
        self._first_line = 2 if kind == "csv" else 1
        self._lines = {"csv": self._csv, "jsonl": self._jsonl, "parquet": self._parquet}[kind]
        self._decoders = [(name, decoder(layout.column(name), kind)) for name in layout.columns]

    def check_whole(self, stop: Callable[[], bool]) -> bool:
        """`InputError` if the file is packed, or Parquet, and damaged anywhere; False if `stop()` ended it early."""
        if self._kind != "parquet":
            return check_whole(self.path, stop)
        with _whole(self.path), pyarrow().parquet.ParquetFile(self.path) as file:
            for _ in file.iter_batches(_PARQUET_BATCH, columns=list(self.layout.columns)):
                if stop():
                    return False
        return True

    def as_row(self, given: Any) -> Row:
        """What a line that was not taken says."""
        row: Row = {}
        for name, decode in self._decoders:
            value = row[name] = given.get(name) if isinstance(given, dict) else None
            if isinstance(value, str):
                with suppress(ValueError):
                    row[name] = decode(value)
        return row

    def blocks(self, size: int) -> Iterator[Block]:
        """The rows by blocks of about `size` lines, as mappings."""
        block = Block([], [], self._first_line)
        for position, given in self._lines():
            try:
                block.rows.append(self._decoded(given))
            except ValueError as error:
                block.rejected.append(RejectedRow(position, str(error), given))
            if position - block.first_line + 1 >= size:
                yield block
                block = Block([], [], position + 1)
        yield block

    def _decoded(self, given: Any) -> Row:
        if not isinstance(given, dict):
            raise ValueError("the line is no row")
        row = {}
        for name, decode in self._decoders:
            if name not in given:
                raise ValueError(f"{name} is missing")
            try:
                row[name] = decode(given[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if self.symbol not in (None, row.get("symbol")):
            raise ValueError(f"symbol is {row.get('symbol')!r}, and only {self.symbol!r} was asked for")
        return row

    def _csv(self) -> Iterator[tuple[int, Any]]:
        with open_text(self.path) as (file, text):
            lines = csv.reader(text)
            header = next(lines, [])
            while True:
                try:
                    for values in lines:
                        self.bytes_read = file.tell()
                        yield lines.line_num, dict(zip(header, values, strict=False))
                    return
                except csv.Error as error:
                    yield lines.line_num, str(error)

    def _jsonl(self) -> Iterator[tuple[int, Any]]:
        with open_text(self.path) as (file, text):
            for position, line in enumerate(text, 1):
                self.bytes_read = file.tell()
                try:
                    given = _parsed(line)
                except ValueError:
                    given = line.rstrip("\n")
                yield position, given

    def _parquet(self) -> Iterator[tuple[int, Any]]:
        size = self.path.stat().st_size
        with _whole(self.path), pyarrow().parquet.ParquetFile(self.path) as file:
            before, total = 0, file.metadata.num_rows
            for batch in file.iter_batches(_PARQUET_BATCH, columns=list(self.layout.columns)):
                yield from enumerate(batch.to_pylist(), before + 1)
                before += batch.num_rows
                self.bytes_read = size * before // total


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    # The last two: a time beyond all years, text that is no UTF-8.
    except (pyarrow().ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged or only half there ({error}); export it again") from error


def _layout_with(names: Any, kind: Format) -> tuple[FileLayout, Format] | None:
    present = {name for name in names if isinstance(name, str)} if isinstance(names, (list, dict)) else set()
    # The columns of one table may all be among another one's.
    fitting = [layout for layout in file_layouts() if present.issuperset(layout.columns)]
    return (max(fitting, key=lambda layout: len(layout.columns)), kind) if fitting else None


Write = Callable[[FileRows, list[list[Any]]], None]


@contextmanager
def _csv_writer(file: BinaryIO, layout: FileLayout) -> Iterator[Write]:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    lines = csv.writer(text)
    lines.writerow([*layout.columns, *layout.from_json])
    message = layout.columns.index("raw_json") if layout.from_json else 0

    def write(rows: FileRows, columns: list[list[Any]]) -> None:
        told = ([_said(row[message], key) for row in rows] for key in layout.from_json.values())
        lines.writerows(zip(*columns, *told, strict=True))

    try:
        yield write
    finally:
        text.detach()


@contextmanager
def _jsonl_writer(file: BinaryIO, layout: FileLayout) -> Iterator[Write]:
    def write(rows: FileRows, columns: list[list[Any]]) -> None:
        for values in zip(*columns, strict=True):
            line = json.dumps(dict(zip(layout.columns, values, strict=True)), separators=(",", ":"))
            file.write(line.encode() + b"\n")

    yield write


@contextmanager
def _parquet_writer(file: BinaryIO, layout: FileLayout) -> Iterator[Write]:
    arrow = pyarrow()
    schema = arrow.schema([(name, forms_of(layout.column(name).type).arrow_type(arrow)) for name in layout.columns])
    waiting: list[Any] = []

    def write(rows: FileRows, columns: list[list[Any]]) -> None:
        waiting.append(arrow.record_batch(columns, schema=schema))
        if sum(batch.num_rows for batch in waiting) >= _ROW_GROUP:
            flush()

    def flush() -> None:
        # One row group for all of them: small ones cost readers time and space.
        parquet.write_table(arrow.Table.from_batches(waiting, schema))
        waiting.clear()

    with arrow.parquet.ParquetWriter(file, schema) as parquet:
        yield write
        flush()


_WRITERS = {"csv": _csv_writer, "jsonl": _jsonl_writer, "parquet": _parquet_writer}


def _said(message: Any, key: str) -> str:
    value = message.get(key) if isinstance(message, dict) else None
    return "" if value is None else cell(str(value))
