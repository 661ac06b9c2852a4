"""One file of trades into the database: streamed, committed as it goes, safe to repeat."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from shared.db.bulk import BulkResult, RejectedRow
from shared.db.bybit import Block, BlockReader, Category, read_archive
from shared.db.database import DatabaseFactory
from shared.db.errors import InputError, InvalidValueError
from shared.db.operations.replacing import replacing
from shared.db.operations.row_files import read_export, recognized
from shared.db.operations.row_layout import TRADES
from shared.db.repositories import PublicTradeRepository

# A transaction of this size costs next to nothing beside its rows, and lets another SQLite writer in soon.
LINES_A_COMMIT = 20_000
_SWITCH_INTERVAL = 0.0005


@dataclass
class FileReport:
    """What became of one file's rows.

    `rejected_file` tells of the rows that were not taken, if there are any; `error` why the file could not be read
    to its end. Rows inserted before that stay.
    """

    file: str
    inserted: int = 0
    skipped: int = 0
    rejected: int = 0
    rejected_file: str | None = None
    error: str | None = None
    finished: bool = False


def import_file(
    db: DatabaseFactory,
    path: Path,
    symbol: str | None,
    category: Category | None,
    watch: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> FileReport:
    """Insert the trades of one file that are not stored yet.

    `watch` is told bytes and rows done after each transaction, and `stop` asked whether to end there. What cannot be
    read ends up in the report; a failure of the database is raised.
    """
    report = FileReport(str(path))
    try:
        with RejectedRows(path) as rejected:
            try:
                _insert(db, read_trades(path, symbol, category), rejected, report, watch, stop)
            except InputError as error:
                report.error = str(error)
    except _StoppedError:
        return report
    report.finished = report.error is None
    report.rejected = rejected.count
    report.rejected_file = str(rejected.path) if rejected.count else None
    return report


def read_trades(path: Path, symbol: str | None, category: Category | None) -> BlockReader:
    """The trades of a file, Bybit's archive or our own export. Raises `InputError` for any other."""
    found = recognized(path)
    if found is None:
        return read_archive(path, symbol, category)
    if found[0] is not TRADES:
        raise InputError(f"{path} holds {found[0].model.__tablename__}, not trades; read it with read_export")
    return read_export(path, symbol=symbol)


class RejectedRows:
    """The rows of a file that are not taken, one JSON object a line, in FILE.rejected.jsonl.

    The file appears when the block ends, whole; one of an earlier import is replaced, or removed if there are none.
    """

    def __init__(self, source: Path) -> None:
        self.path = source.with_name(f"{source.name}.rejected.jsonl")
        self.count = 0
        self._stack = ExitStack()
        self._file: BinaryIO | None = None

    def add(self, row: RejectedRow) -> None:
        """Note a row that was not taken."""
        if self._file is None:
            self._file = self._stack.enter_context(replacing(self.path))
        self._file.write(json.dumps(row._asdict(), default=str).encode() + b"\n")
        self.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if error is None and not self.count:
            self.path.unlink(missing_ok=True)


class _StoppedError(Exception):
    """Somebody asked the import to end here."""


def _insert(
    db: DatabaseFactory,
    source: BlockReader,
    rejected: RejectedRows,
    report: FileReport,
    watch: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> None:
    for block in _read_ahead(source.blocks(LINES_A_COMMIT)):
        if stop():
            raise _StoppedError
        result = _stored(db, block)
        for row in block.rejected:
            rejected.add(row)
        for row in result.errors:
            rejected.add(RejectedRow(block.line_of(row.position), row.reason, row.row))
        report.inserted += result.inserted
        report.skipped += result.skipped
        watch(source.bytes_read, report.inserted + report.skipped)


def _read_ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """The blocks, each read in a thread while the one before is stored, which is mostly waiting for the database.

    Python lets a thread run for 5 ms before another one gets its turn. In that time the server would run out of rows.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(next, blocks, None)
            while (block := coming.result()) is not None:
                coming = reader.submit(next, blocks, None)
                yield block
    finally:
        sys.setswitchinterval(usual)


def _stored(db: DatabaseFactory, block: Block) -> BulkResult:
    """Write a block in one transaction. Only if a row does not fit, do it again in the slower way that tells which."""
    try:
        with db.get_session() as session:
            return PublicTradeRepository(session).bulk_create(block.rows, batch_size=len(block.rows) or 1)
    except InvalidValueError:
        with db.get_session() as session:
            return PublicTradeRepository(session).bulk_create(block.rows, errors="collect")
