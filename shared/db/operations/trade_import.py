"""Files of trades into the database, one after the other or several at once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shared.db.bulk.trade_sources import TradeSource, sources_of
from shared.db.database import DatabaseFactory
from shared.db.errors import InputError
from shared.db.exchanges.bybit import Category
from shared.db.operations.import_workers import import_in_parallel
from shared.db.operations.trade_file import FileReport, ImportOptions, import_file, read_trades

_DATE = re.compile(r"\d{4}-\d\d(-\d\d)?(?!\d)")


@dataclass
class ImportReport:
    """What an import did, file by file. `finished` is False if it was asked to stop before the end."""

    files: list[FileReport]
    seconds: float
    workers: int

    @property
    def inserted(self) -> int:
        """Trades that are new in the database."""
        return sum(file.inserted for file in self.files)

    @property
    def skipped(self) -> int:
        """Trades that were stored already."""
        return sum(file.skipped for file in self.files)

    @property
    def rejected(self) -> int:
        """Rows that were not taken."""
        return sum(file.rejected for file in self.files)

    @property
    def failed(self) -> list[FileReport]:
        """Files that could not be read to their end."""
        return [file for file in self.files if file.error is not None]

    @property
    def finished(self) -> bool:
        """Whether every file was dealt with."""
        return all(file.finished or file.error is not None for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """The report in JSON's own types."""
        totals = {name: getattr(self, name) for name in ("inserted", "skipped", "rejected", "finished")}
        return {**totals, "seconds": round(self.seconds, 3), "files": [asdict(file) for file in self.files]}


def import_trades(
    db: DatabaseFactory,
    files: Sequence[str | Path],
    *,
    symbol: str | None = None,
    category: Category | None = None,
    workers: int = 1,
    rejected: str | Path | None = None,
    watch: Callable[[int, int], None] = lambda done, rows: None,
    stop: Callable[[], bool] = lambda: False,
) -> ImportReport:
    """Insert the trades of Bybit's archives, or of our own exports, that are not stored yet.

    Files stream through transactions of a few thousand rows, so that an import which is interrupted, or killed,
    goes on where it was when it is run again: nothing is lost, nothing doubled. Rows that are not taken go to
    FILE.rejected.jsonl, beside the file or in the folder `rejected`, with the reason. A file that cannot be read does
    not keep the others from being imported, and nothing of a damaged one is stored; a failure of the database ends
    everything and is raised, and so is `SchemaVersionError`.

    A file whose trades lie among stored ones of another source (spot and derivatives of one symbol, a live spot stream
    and an archive, monthly and daily spot files) ends there with an error: their ids are others for the same trades.

    `symbol` and `category` are those of `read_archive`. `workers` processes take files in turn on PostgreSQL; SQLite
    has one writer at a time, and gets one. `watch` is told bytes and rows done so far, and `stop` asked now and then
    whether to end early.
    """
    if workers < 1:
        raise InputError(f"{workers} workers import nothing; use 1 or more")
    db.check_schema()
    started = time.monotonic()
    # A file given twice would only wait for itself.
    paths = list({Path(file).absolute(): Path(file) for file in files}.values())
    options = ImportOptions(symbol, category, _folder(rejected, paths))
    workers = 1 if db.settings.is_sqlite else min(workers, len(paths))
    if workers > 1:
        turns = _taken_together(paths, options)
        reports = import_in_parallel(db.settings, paths, turns, options, workers, watch, stop)
    else:
        bytes_done, rows_done = [0] * len(paths), [0] * len(paths)

        def note(index: int, done: int, rows: int) -> None:
            bytes_done[index], rows_done[index] = done, rows
            watch(sum(bytes_done), sum(rows_done))

        reports = [import_file(db, path, options, partial(note, index), stop) for index, path in enumerate(paths)]
    return ImportReport(reports, time.monotonic() - started, workers)


def _folder(rejected: str | Path | None, paths: Sequence[Path]) -> Path | None:
    if rejected is None:
        return None
    names = [path.name for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two files are called {twice}, and so would be their rejected rows; import them one by one")
    folder = Path(rejected)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be a folder for rejected rows: {error.strerror}; name another") from error
    return folder


def _taken_together(paths: Sequence[Path], options: ImportOptions) -> list[list[int]]:
    """The places of the files, those together that one worker has to take one after the other.

    Two workers would not see that the other one's trades of the same symbol have ids that cannot be compared: those of
    two sources, or of spot archives of a day and of a month.
    """
    sources: dict[str, set[Any]] = {}
    symbols: dict[int, str] = {}
    for place, path in enumerate(paths):
        try:
            first = next(iter(read_trades(path, options.symbol, options.category)), None)
        except InputError:
            continue  # told when its turn comes
        # Anything else than text is the database's to refuse.
        if first is not None and isinstance(first["symbol"], str) and isinstance(first["trade_id"], str):
            symbols[place] = first["symbol"]
            for source in sources_of([first["trade_id"]]):
                span = _span_of(path) if source is TradeSource.SPOT_ARCHIVE else None
                sources.setdefault(first["symbol"], set()).add((source, span))
    together: dict[Any, list[int]] = {}
    for place in range(len(paths)):
        symbol = symbols.get(place)
        mixed = len(sources.get(symbol or "", ())) > 1
        together.setdefault(symbol if mixed else place, []).append(place)
    return list(together.values())


def _span_of(path: Path) -> Any:
    """What tells archives of a day from those of a month in their names; of other names nothing is known."""
    found = _DATE.search(path.name)
    return path if found is None else bool(found[1])
