"""A daily archive into PostgreSQL, against COPY of the same rows as ready text."""

from __future__ import annotations

import gzip
import random
import shutil
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import URL

from benchmarks.harness import Contender, Goal, Place, compare, print_table
from benchmarks.memory import peak_growth
from shared.db import DatabaseFactory
from shared.db.exchanges.bybit import read_archive
from shared.db.operations.import_workers import short_turns
from shared.db.operations.trade_import import import_trades

_HEADER = "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional,RPI\n"
_COLUMNS = "symbol, trade_id, exchange_ts, local_ts, side, price, size"
_DAY = 1_735_689_600
# Of real trades about two in three have a time of their own; the others belong to the order before.
_OWN_TIME = 0.63


_READY, _IMPORT, _PACKED = "COPY of ready text", "import-trades FILE.csv", "import-trades FILE.csv.gz"
_ONE, _TWO = "import-trades, 1 worker", "import-trades, 2 workers"


def archive(here: Place) -> None:
    """A day of 2 million trades, in the archive's format, imported whole, and what of it is parsing."""
    _compare(here, 2_000_000, rounds=min(here.rounds, 3), packed=False)


def small_archive(here: Place) -> None:
    """A day of 200,000 trades, packed as it comes from the exchange, and imported a second time."""
    _compare(here, 200_000, rounds=min(here.rounds, 7), packed=True)


def two_archives(here: Place) -> None:
    """Two days of a million trades each, imported by one process and by two, a day each."""
    count, rounds = 1_000_000, min(here.rounds, 3)
    days = [here.folder / f"BTCUSDT2025-01-0{day + 1}.csv" for day in range(2)]
    text = here.folder / "ready.txt"
    with text.open("w", encoding="utf-8") as file:
        for number, day in enumerate(days):
            _write_archive(day, count, day=number)
            file.writelines(_copy_text(day))
    ready, one, two = (here.new_postgresql() for _ in range(3))

    def load(number: int) -> None:
        for url in (ready, one, two):
            _truncate(url)

    compare(
        "Archives of two days, 1,000,000 trades each",
        [
            Contender(_READY, lambda load: _copy(ready, text)),
            Contender(_ONE, lambda load: _import(one, days)),
            Contender(_TWO, lambda load: _import(two, days, workers=2)),
        ],
        load,
        rounds,
        count=2 * count,
        goals=[Goal(_ONE, 0.85, _READY), Goal(_TWO, 1.0, _READY)],
        warm_up=False,
    )


BENCHMARKS = {"small-archive": small_archive, "archive": archive, "two-archives": two_archives}


def _compare(here: Place, count: int, rounds: int, *, packed: bool) -> None:
    plain = here.folder / "BTCUSDT2025-01-01.csv"
    _write_archive(plain, count)
    text = here.folder / "ready.txt"
    with text.open("w", encoding="utf-8") as file:
        file.writelines(_copy_text(plain))
    emptied = [here.new_postgresql(), here.new_postgresql()]
    ready, ours = emptied
    contenders = [
        Contender(_READY, lambda load: _copy(ready, text)),
        Contender(_IMPORT, lambda load: _import(ours, [plain])),
        Contender("parsing alone, FILE.csv", lambda load: _parse(plain)),
    ]
    if packed:
        zipped = here.folder / "BTCUSDT2025-01-01.csv.gz"
        with plain.open("rb") as source, gzip.open(zipped, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target)
        unpacked, again = here.new_postgresql(), here.new_postgresql()
        emptied.append(unpacked)
        with DatabaseFactory(again) as db:
            import_trades(db, [plain])
        contenders += [
            Contender(_PACKED, lambda load: _import(unpacked, [zipped])),
            Contender("parsing alone, FILE.csv.gz", lambda load: _parse(zipped)),
            Contender("the same again, all stored already", lambda load: _import(again, [plain])),
        ]

    def load(number: int) -> None:
        for url in emptied:
            _truncate(url)

    compare(
        f"Archive of {count:,} trades",
        contenders,
        load,
        rounds,
        count=count,
        goals=[Goal(_IMPORT, 0.60, _READY)] + ([Goal(_PACKED, 0.60, _READY)] if packed else []),
        warm_up=packed,
    )
    _truncate(ours)
    grown = peak_growth(partial(_emptied, ours), partial(_import, paths=[plain]))
    print_table("", ("one import, started with it", "MB at the peak"), [(f"{count:,} trades", f"{grown:.1f}")])


def _emptied(url: URL) -> URL:
    _truncate(url)
    return url


def _write_archive(path: Path, count: int, *, day: int = 0) -> None:
    draw = random.Random(count + day)
    moment, price = (_DAY + 86_400 * day) * 10_000, 650_658
    with path.open("w", encoding="utf-8") as file:
        file.write(_HEADER)
        for _ in range(count):
            if draw.random() < _OWN_TIME:
                moment += 1 + int(draw.expovariate(count * _OWN_TIME / 863_000_000))
            price += draw.randrange(-1, 2)
            size = draw.choice((1, 1, 1, 2, 3, 5, 10, 50, draw.randrange(1, 20_000)))
            trade = uuid.UUID(int=draw.getrandbits(128), version=5)
            file.write(
                f"{moment // 10_000}.{moment % 10_000:04},BTCUSDT,{draw.choice(('Buy', 'Sell'))},{size / 1000:.3f},"
                f"{price / 10:.2f},ZeroPlusTick,{trade},{price * size * 1e4:.10g},{size / 1000},"
                f"{price * size / 1e4},0\n"
            )


def _copy_text(archive: Path) -> Iterator[str]:
    for row in read_archive(archive):
        time = row["exchange_ts"].isoformat()
        yield (f"{row['symbol']}\t{row['trade_id']}\t{time}\t{time}\t{row['side']}\t{row['price']}\t{row['size']}\n")


def _copy(url: URL, text: Path) -> None:
    connection = _psycopg2(url)
    with connection, connection.cursor() as cursor, text.open("rb") as file:
        cursor.copy_expert(f"COPY public_trades ({_COLUMNS}) FROM STDIN", file, 1 << 18)
    connection.close()


def _import(url: URL, paths: Sequence[Path], workers: int = 1) -> None:
    with short_turns(), DatabaseFactory(url) as db:  # as the command does
        report = import_trades(db, paths, workers=workers)
    assert report.finished
    assert report.rejected == 0


def _parse(path: Path) -> None:
    for _ in read_archive(path).blocks(20_000):
        pass


def _truncate(url: URL) -> None:
    connection = _psycopg2(url)
    with connection, connection.cursor() as cursor:
        cursor.execute("TRUNCATE public_trades")
    connection.close()


def _psycopg2(url: URL) -> Any:
    return psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
