"""A daily archive into PostgreSQL, against COPY of the same rows as ready text."""

from __future__ import annotations

import gzip
import random
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import URL

from shared.db import DatabaseFactory
from shared.db.benchmarks.harness import Contender, Place, compare, peak_growth, print_table
from shared.db.bybit import read_archive
from shared.db.operations.trade_import import import_trades

_HEADER = "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional,RPI\n"
_COLUMNS = "symbol, trade_id, exchange_ts, local_ts, side, price, size"
_DAY = 1_735_689_600
# Of real trades about two in three have a time of their own; the others belong to the order before.
_OWN_TIME = 0.63


def archive(here: Place) -> None:
    """A day of 2 million trades, in the archive's format, imported whole (takes several minutes)."""
    _compare(here, 2_000_000, rounds=min(here.rounds, 5))


def small_archive(here: Place) -> None:
    """The same with 200,000 trades, for a quick look."""
    _compare(here, 200_000, rounds=min(here.rounds, 7))


BENCHMARKS = {"small_archive": small_archive}
LONG = {"archive": archive}


def _compare(here: Place, count: int, rounds: int) -> None:
    plain = here.folder / "BTCUSDT2025-01-01.csv"
    packed = here.folder / "BTCUSDT2025-01-01.csv.gz"
    _write_archive(plain, count)
    with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
        shutil.copyfileobj(source, target)
    text = here.folder / "ready.txt"
    with text.open("w", encoding="utf-8") as file:
        file.writelines(_copy_text(plain))
    ready, ours, ours_packed, again = (here.new_postgresql() for _ in range(4))
    with DatabaseFactory(again) as db:
        import_trades(db, [plain])

    def load(number: int) -> None:
        for url in (ready, ours, ours_packed):
            _truncate(url)

    compare(
        f"{count:,} trades",
        [
            Contender("COPY of ready text, one transaction", lambda load: _copy(ready, text)),
            Contender("import-trades FILE.csv", lambda load: _import(ours, plain)),
            Contender("import-trades FILE.csv.gz", lambda load: _import(ours_packed, packed)),
            Contender("the same again, all stored already", lambda load: _import(again, plain)),
            Contender("parsing alone, FILE.csv", lambda load: _parse(plain)),
            Contender("parsing alone, FILE.csv.gz", lambda load: _parse(packed)),
        ],
        load,
        rounds,
        count=count,
    )
    _truncate(ours)
    grown = peak_growth(lambda: None, lambda prepared: _import(ours, plain))
    print_table("", ("one import", "MB at the peak"), [(f"{count:,} trades", f"{grown:.1f}")])


def _write_archive(path: Path, count: int) -> None:
    draw = random.Random(count)
    moment, price = _DAY * 10_000, 650_658
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


def _import(url: URL, path: Path) -> None:
    with DatabaseFactory(url) as db:
        report = import_trades(db, [path])
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
