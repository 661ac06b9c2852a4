"""Files with every kind of fault among good rows, imported into both databases: one verdict, and no traceback."""

from __future__ import annotations

import gzip
import json
import random
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import select

from benchmarks.fault_bench.figures import Figure
from benchmarks.fault_bench.ground import Ground
from shared.db import DatabaseFactory, PublicTrade
from shared.db.operations.trade_file import FileReport
from shared.db.operations.trade_import import import_trades

Draw = random.Random
_DERIVATIVES = "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional"
_SPOT = "id,timestamp,price,volume,side,rpi"
_EXPORT = "exchange_ts,symbol,side,price,size,trade_id,local_ts"
_START = 1_741_600_800
_FILES = 40
_BAD_SHARE = 0.1
# What stands in place of a good value.
_BAD_VALUES = (
    "", " ", "0", "-1", "x", "nan", "NaN", "inf", "1e", "1e400", "1E+18", "2.29E+18", "0.000000000001", "9" * 40, "'",
    '"', "\0", "\r", "\ud800", "日本", "٣", "1.5.2", "+", "--", "null", "true", "[]", "{}", "1747612800000.abc",
)  # fmt: skip
_BAD_LINES = (
    "",
    ",",
    ",,,,,,,,,,,,,,",
    '"',
    '"a,b',
    "\0\0",
    "null",
    "[1]",
    '{"a":' * 500,
    "{}",
    "x" * 300,
    "\r\r",
    "a\rb",
)


def bad_files(ground: Ground) -> list[Figure]:
    """Archives, spot files and exports, of which every tenth line is bad, and files that are none."""
    lines = ground.of(1_000_000, 40_000)
    folder = ground.new_folder()
    paths = list(_written(folder, ground.random, lines // _FILES))
    reports: list[list[FileReport]] = []
    stored: list[list[tuple[Any, ...]]] = []
    for _, url in ground.new_databases():
        with DatabaseFactory(url) as db:
            reports.append(import_trades(db, paths).files)
            columns = [column for column in PublicTrade.__table__.columns if column.name != "id"]
            with db.get_session(read_only=True) as session:
                stored.append([tuple(row) for row in session.execute(select(*columns).order_by(*columns[:3]))])
    said = [[asdict(report) for report in of_one] for of_one in reports]
    reasons = Counter(reason for report in reports[0] for reason in report.reasons)
    rejected = sum(report.rejected for report in reports[0])
    failed = [report for report in reports[0] if report.error is not None]
    for one, other in zip(*said, strict=True):
        if one != other:
            print(f"bad_files: {one}\n           {other}", flush=True)
    return [
        Figure(
            f"{lines:,} lines in {len(paths)} files, every tenth bad, {len(_NO_FILES) + 2} files that are none",
            "the same verdict on both databases",
            f"{rejected:,} rows rejected for {len(reasons)} reasons, {len(failed)} files named; "
            + ("no difference" if said[0] == said[1] else "DIFFERENT"),
            said[0] == said[1] and len(failed) == len(_NO_FILES) + 2 and rejected > 0,
        ),
        Figure(
            "the rows that were taken, of the same files",
            "equal on both databases",
            f"{len(stored[0]):,} and {len(stored[1]):,} rows",
            stored[0] == stored[1] and len(stored[0]) > 0,
        ),
    ]


def _written(folder: Path, draw: Draw, lines: int) -> Iterator[Path]:
    for number in range(_FILES):
        name, content = _KINDS[number % len(_KINDS)](draw, number, lines)
        path = folder / name
        encoded = content.encode("utf-8", "surrogatepass")
        path.write_bytes(gzip.compress(encoded, 1) if name.endswith(".gz") else encoded)
        yield path
    for name, nothing in _NO_FILES.items():
        path = folder / name
        path.write_bytes(nothing)
        yield path
    archive = folder / "BTCUSDT2025-04-01.csv"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a", "b")
    yield archive
    yield folder


def _spoiled(draw: Draw, values: list[str]) -> str:
    if draw.random() < _BAD_SHARE:
        if draw.random() < 0.3:
            return draw.choice(_BAD_LINES)
        values[draw.randrange(len(values))] = draw.choice(_BAD_VALUES)
    return ",".join(values)


def _derivatives(draw: Draw, number: int, lines: int) -> tuple[str, str]:
    symbol = f"D{number}USDT"
    rows = [
        _spoiled(
            draw,
            [f"{_START + place}.{draw.randrange(10_000):04}", symbol, draw.choice(("Buy", "Sell")),
             f"{draw.randrange(1, 10**6) / 1000}", f"{draw.randrange(1, 10**7) / 100}", "PlusTick",
             f"{number:08x}-0000-5000-8000-{place:012x}", "1", "1", "1"],
        )
        for place in range(lines)
    ]  # fmt: skip
    return f"{symbol}2025-03-10.csv{'.gz' if number % 2 else ''}", "\n".join([_DERIVATIVES, *rows, ""])


def _spot(draw: Draw, number: int, lines: int) -> tuple[str, str]:
    header = _SPOT if number % 3 else _SPOT.removesuffix(",rpi")
    rows = [
        _spoiled(
            draw,
            [str(place + 1), str(_START * 1000 + 7 * place), f"0.{draw.randrange(1, 10**6):06}",
             f"{draw.randrange(1, 10**4) / 10}", draw.choice(("buy", "sell")), "0"],
        )
        for place in range(lines)
    ]  # fmt: skip
    return f"S{number}USDT_2025-03-10.csv{'.gz' if number % 2 else ''}", "\n".join([header, *rows, ""])


def _exported(draw: Draw, number: int, place: int) -> list[str]:
    when = f"2025-03-10T{place // 3600 % 24:02}:{place // 60 % 60:02}:{place % 60:02}.000000Z"
    return [when, f"E{number}USDT", "Buy", f"{draw.randrange(1, 999)}", "0.5", f"{number}-{place}", when]


def _csv_export(draw: Draw, number: int, lines: int) -> tuple[str, str]:
    rows = [_spoiled(draw, _exported(draw, number, place)) for place in range(lines)]
    return f"export-{number}.csv", "\n".join([_EXPORT, *rows, ""])


def _json_export(draw: Draw, number: int, lines: int) -> tuple[str, str]:
    rows = []
    names = _EXPORT.split(",")
    for place in range(lines):
        row: dict[str, Any] = dict(zip(names, _exported(draw, number, place), strict=True))
        if place and draw.random() < _BAD_SHARE:
            if draw.random() < 0.3:
                rows.append(draw.choice(_BAD_LINES))
                continue
            bad: Any = draw.choice([*_BAD_VALUES, None, 1, 1.5, True, [], {}, [[]], {"a": 1}])
            row[draw.choice(names)] = bad
        rows.append(json.dumps(row))
    return f"export-{number}.jsonl", "\n".join([*rows, ""])


_KINDS: tuple[Callable[[Draw, int, int], tuple[str, str]], ...] = (_derivatives, _spot, _csv_export, _json_export)
_NO_FILES = {
    "BTCUSDT2025-03-01.csv": b"SQLite format 3\0" + bytes(100),
    "BTCUSDT2025-03-02.csv": b"",
    "BTCUSDT2025-03-03.csv": b"7z\xbc\xaf\x27\x1c" + bytes(range(256)),
    "BTCUSDT2025-03-04.csv": _DERIVATIVES.encode("utf-16"),
    "BTCUSDT2025-03-05.csv": _DERIVATIVES.replace(",", ";").encode(),
    "BTCUSDT2025-03-06.csv": b"[" * 100_000,
    "BTCUSDT2025-03-07.csv": gzip.compress(_DERIVATIVES.encode() * 100)[:-5],
    "BTCUSDT2025-03-08.csv": bytes(range(256)) * 40,
    "BTCUSDT_SPOT_2025-03-09.csv": f"{_SPOT}\n1,{_START}000,1,1,buy,0\n".encode(),
}
