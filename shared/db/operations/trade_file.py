"""One file of trades into the database: streamed, committed as it goes, safe to repeat."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from sqlalchemy.orm import Session

from shared.db.bulk import BulkResult, RejectedRow
from shared.db.bulk.cells import arrow_is_loaded
from shared.db.bulk.trade_sources import incomparable
from shared.db.database import DatabaseFactory
from shared.db.dialects import POSTGRESQL, port_of
from shared.db.errors import InputError, InvalidValueError
from shared.db.exchanges.bybit import Category, TradeColumns, read_archive
from shared.db.exchanges.files import Block, BlockReader
from shared.db.models import PublicTrade
from shared.db.operations.replacing import replacing
from shared.db.operations.row_files import read_export, recognized
from shared.db.recording.row_text import RowText
from shared.db.repositories import PublicTradeRepository
from shared.db.value_forms.instants import ends_of

# A transaction of this size costs next to nothing beside its rows, and lets another SQLite writer in soon.
LINES_A_COMMIT = 20_000
# Packed bytes that take about a second to unpack.
_LONG_TO_CHECK = 50_000_000
# Bytes, packed or not, for which the half second and the 100 MB that it takes to load Arrow are well spent.
_LOADING_PAYS = 20_000_000
_TEXT = RowText(PublicTrade)
_TOLD_OF_A_REASON = 1_000
_REASONS = 100
# What differs between reasons of one kind: numbers, and what is quoted.
_VALUE = re.compile(r"'[^']*'|[-+]?\d[\w.+-]*")


@dataclass(frozen=True)
class ImportOptions:
    """What is asked of every file: `symbol` and `category` as in `read_archive`, and where rejected rows are told."""

    symbol: str | None = None
    category: Category | None = None
    rejected: Path | None = None


@dataclass
class FileReport:
    """What became of one file's rows.

    `symbols`, `first_ts` and `last_ts` (ISO 8601, UTC) tell what the rows taken are. `rejected_file` tells of the rows
    that were not, if there are any, and `reasons` how many there are of each reason; `error` why the file was not
    imported, or not to its end. Nothing of a damaged file is stored.
    """

    file: str
    inserted: int = 0
    skipped: int = 0
    rejected: int = 0
    symbols: list[str] = field(default_factory=list)
    first_ts: str | None = None
    last_ts: str | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    rejected_file: str | None = None
    error: str | None = None
    finished: bool = False

    def note(self, symbols: Iterable[str], first: datetime, last: datetime) -> None:
        """Note what rows of a block are."""
        self.symbols = sorted({*self.symbols, *symbols})
        times = [datetime.fromisoformat(told) for told in (self.first_ts, self.last_ts) if told is not None]
        self.first_ts, self.last_ts = (pick([first, last, *times]).isoformat() for pick in (min, max))


def import_file(
    db: DatabaseFactory,
    path: Path,
    options: ImportOptions,
    watch: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> FileReport:
    """Insert the trades of one file that are not stored yet.

    `watch` is told bytes and rows done after each transaction, and `stop` asked whether to end there. What cannot be
    read ends up in the report; a failure of the database is raised.
    """
    report = FileReport(str(path))
    try:
        source = read_trades(path, options.symbol, options.category)
        source.in_arrow = _pays_in_arrow(db, path)
        with RejectedRows(path, options.rejected) as rejected:
            try:
                _insert(db, source, rejected, report, watch, stop)
            except InputError as error:
                report.error = str(error)
            report.rejected, report.reasons = rejected.count, rejected.reasons
    except InputError as error:
        report.error = str(error)
        return report
    except _StoppedError:
        return report
    report.finished = report.error is None
    report.rejected_file = str(rejected.path) if rejected.count else None
    return report


def _pays_in_arrow(db: DatabaseFactory, path: Path) -> bool:
    """Whether the server takes Arrow's columns as they are, and the file is long enough to load Arrow for it."""
    if port_of(db.engine) is not POSTGRESQL:
        return False
    return arrow_is_loaded() or (path.is_file() and path.stat().st_size > _LOADING_PAYS)


def read_trades(path: Path, symbol: str | None, category: Category | None) -> BlockReader:
    """The trades of a file, Bybit's archive or our own export. Raises `InputError` for any other."""
    found = recognized(path)
    if found is None:
        return read_archive(path, symbol, category)
    if found[0].model is not PublicTrade:
        raise InputError(f"{path} holds {found[0].model.__tablename__}, not trades; read it with read_export")
    return read_export(path, symbol=symbol)


class RejectedRows:
    """The rows of a file that are not taken, one JSON object a line, in FILE.rejected.jsonl, in `folder` if given.

    They are dead letters, as a recorder's, which `replay` stores after they were corrected, with the `line` besides.

    The file appears when the block ends, whole; one of an earlier import is replaced, or removed if there are none. Of
    rows that are refused for the same reason over and over the first thousand are told and the others counted: whoever
    corrects that has the file itself.
    """

    def __init__(self, source: Path, folder: Path | None = None) -> None:
        self.path = (folder or source.parent) / f"{source.name}.rejected.jsonl"
        self.count = 0
        self.reasons: dict[str, int] = {}
        self._alike: dict[str, str] = {}
        self._stack = ExitStack()
        self._file: BinaryIO | None = None

    def add(self, row: RejectedRow, values: Mapping[str, Any]) -> None:
        """Note a row that was not taken, and what it says by the table's columns."""
        self.count += 1
        # The first reason stands for those that differ in a value alone.
        kind = _VALUE.sub("", row.reason)
        reason = self._alike.setdefault(kind if len(self._alike) < _REASONS else "", row.reason)
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if self.reasons[reason] > _TOLD_OF_A_REASON:
            return
        if self._file is None:
            self._file = self._stack.enter_context(replacing(self.path))
        (written,) = json.loads(_TEXT.encoded([dict(values)]))
        letter = {"table": _TEXT.model.__tablename__, "user_id": None, "position": row.position, "reason": row.reason}
        letter |= {"row": written} if isinstance(row.row, Mapping) else {"row": written, "line": row.row}
        self._file.write(json.dumps(letter, default=str).encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if error is None and not self.count and self.path.exists():
            try:
                self.path.unlink()
            except OSError as refused:
                raise InputError(
                    f"{self.path} tells of an earlier import and cannot be removed: {refused.strerror}; remove it"
                ) from refused


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
    with _checked_meanwhile(db, source, report, stop) as check:
        _insert_blocks(db, source, rejected, report, watch, stop, check)


@contextmanager
def _checked_meanwhile(
    db: DatabaseFactory, source: BlockReader, report: FileReport, stop: Callable[[], bool]
) -> Iterator[Callable[[], None]]:
    """What is called before each commit: it waits until the whole file is known to be sound, else nothing is committed.

    The file is unpacked once more for that, by another core, while the first rows are on their way.
    """
    ended = False
    with ThreadPoolExecutor(1) as executor:
        sound = executor.submit(source.check_whole, lambda: ended or stop())
        if db.settings.is_sqlite and Path(report.file).stat().st_size > _LONG_TO_CHECK:
            sound.result()  # rather than to keep others from writing meanwhile

        def check() -> None:
            if not sound.result():
                raise _StoppedError

        try:
            yield check
        finally:
            ended = True


def _insert_blocks(
    db: DatabaseFactory,
    source: BlockReader,
    rejected: RejectedRows,
    report: FileReport,
    watch: Callable[[int, int], None],
    stop: Callable[[], bool],
    check: Callable[[], None],
) -> None:
    for block in _read_ahead(source.blocks(LINES_A_COMMIT)):
        if stop():
            raise _StoppedError
        result = _stored(db, block, source, report, check)
        report.inserted += result.inserted
        report.skipped += result.skipped
        for row in block.rejected:
            rejected.add(row, source.as_row(row.row))
        for row in result.errors:
            rejected.add(RejectedRow(block.line_of(row.position), row.reason, row.row), row.row)
        watch(source.bytes_read, report.inserted + report.skipped)


def _read_ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """The blocks, each read in a thread while the one before is stored, which is mostly waiting for the database."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = reader.submit(next, blocks, None)
            yield block


def _stored(
    db: DatabaseFactory, block: Block, source: BlockReader, report: FileReport, check: Callable[[], None]
) -> BulkResult:
    """Write a block in one transaction. Only if a row does not fit, do it again in the slower way that tells which."""
    try:
        with db.get_session() as session:
            _note_and_compare(session, block, source, report)
            result = PublicTradeRepository(session).bulk_create(block.rows, batch_size=len(block.rows) or 1)
            check()
    except InvalidValueError:
        with db.get_session() as session:
            result = PublicTradeRepository(session).bulk_create(block.rows, errors="collect")
            check()
    return result


def _note_and_compare(session: Session, block: Block, source: BlockReader, report: FileReport) -> None:
    """Note what the rows are. `InputError` if trades of another source, with other ids, are stored among them."""
    if not len(block.rows):
        return
    rows_of: Mapping[str, tuple[Sequence[datetime], list[str]]] = (
        block.rows.by_symbol() if isinstance(block.rows, TradeColumns) else _by_symbol(block.rows)
    )
    for symbol, (times, ids) in rows_of.items():
        first, last = ends_of(times)
        report.note([symbol], first, last)
        other = incomparable(session, symbol, times, ids, numbered_by_file=source.numbered_by_file)
        if other is not None:
            raise InputError(
                f"{report.file}: among its trades of {symbol} ({first} to {last}) stand trades of {other}, "
                "whose ids are others for the same trades: they would be counted twice. Nothing from there on is "
                "stored. Leave out the files of times that are covered, or keep the spot trades under a symbol of "
                f"their own (--symbol {symbol}.SPOT)"
            )


def _by_symbol(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[list[datetime], list[str]]]:
    found: dict[str, tuple[list[datetime], list[str]]] = {}
    for row in rows:
        if not isinstance(row["symbol"], str) or not isinstance(row["trade_id"], str):
            continue  # the database's turn to refuse it
        times, ids = found.setdefault(row["symbol"], ([], []))
        times.append(row["exchange_ts"])
        ids.append(row["trade_id"])
    return found
