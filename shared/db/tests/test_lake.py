"""Months of a stream as Parquet: written whole, read with the database as one, and gone from nowhere else's place."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import groupby, pairwise
from operator import mul
from pathlib import Path
from typing import Any

import polars
import pyarrow
import pyarrow.compute
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import pytest
from sqlalchemy import URL, delete, func, select, update

from shared.db import (
    Candle,
    DatabaseFactory,
    InputError,
    InvalidValueError,
    LakeError,
    PrivateExecution,
    PublicTrade,
    PublicTradeRepository,
    TradeRow,
)
from shared.db.commands.cli import main
from shared.db.lake import Lake, candles, seam, writing
from shared.db.lake import reading as lake_reading
from shared.db.lake import rows as lake_rows
from shared.db.operations import purge
from shared.db.operations.trade_import import import_trades
from shared.db.ranges.summaries import joined
from shared.db.tests.forked import run_python
from shared.db.tests.support import trade_values

MAY = datetime(2025, 5, 1, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
JUNE, JULY = MAY.replace(month=6), MAY.replace(month=7)
NOW = datetime.now(UTC)


def trades(count: int = 40, symbol: str = "BTCUSDT", start: datetime = MAY, **values: Any) -> list[dict[str, Any]]:
    """Trades over two months and into a third, several at one instant, ids of several lengths."""
    step = timedelta(days=65) / count
    return [
        trade_values(symbol=symbol, trade_id=str(number), **{"exchange_ts": start + step * (number // 3 * 3)} | values)
        | {"price": Decimal(65_000 + number * 37 % 11).scaleb(-number % 3), "size": Decimal(number % 7 + 1).scaleb(-3)}
        for number in range(count)
    ]


def store(db: DatabaseFactory, rows: list[dict[str, Any]], **how: Any) -> None:
    """Into the database."""
    with db.get_session() as session:
        PublicTradeRepository(session).bulk_create(rows, **how)


def stored(db: DatabaseFactory) -> int:
    """How many trades the database has."""
    with db.get_session(read_only=True) as session:
        return session.scalar(select(func.count()).select_from(PublicTrade)) or 0


def answers(reading: Any) -> list[Any]:
    """What is asked of the trades of a symbol, by the lake or by a repository."""
    bounds = [(None, None), (MAY, JULY), (MAY + timedelta(days=3), MAY + timedelta(days=40)), (JULY, None), (None, MAY)]
    found: list[Any] = [list(reading.iter_range("BTCUSDT", *bound)) for bound in bounds]
    for bound in bounds:
        table = reading.to_arrow("BTCUSDT", *bound)
        table.validate(full=True)
        found.append((table.schema, [tuple(row.values()) for row in table.to_pylist()]))
    for interval in ("1m", "7h", "1d", timedelta(days=30)):
        found += [reading.candles("BTCUSDT", *bound, interval) for bound in bounds]
    for bound in bounds:
        found.append(list(reading.iter_range("BTCUSDT", *bound, reverse=True)))
    for row in found[0][::9]:
        for bound in bounds[::2]:
            for reverse in (False, True):
                found.append(list(reading.iter_range("BTCUSDT", *bound, reverse=reverse, after=row.cursor)))
    last = [reading.latest("BTCUSDT"), *(reading.at_or_before("BTCUSDT", MAY + DAY * days) for days in (-1, 0, 20, 35))]
    return [*found, [row and [getattr(row, name) for name in TradeRow._fields] for row in last]]


def of_database(db: DatabaseFactory) -> list[Any]:
    """The same, asked of the database alone."""
    with db.get_session(read_only=True) as session:
        return answers(PublicTradeRepository(session))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few rows take several slices, groups and pages, and no pause makes a test long."""
    for module, name, size in (
        (writing, "_SLICE", 5),
        (lake_rows, "_ROW_GROUP", 11),
        (lake_rows, "_BATCH", 4),
        (lake_reading, "_PAGE", 3),
        (lake_reading, "_MANY", 6),
    ):
        monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(purge, "_SHORTEST_PAUSE", 0)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake in a folder that is made by writing."""
    return Lake(tmp_path / "lake")


def files(tmp_path: Path) -> list[str]:
    """What stands in the lake's folder, manifests left out."""
    root = tmp_path / "lake"
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("rows.parquet"))


def test_a_lake_that_is_not_there_is_no_empty_one(db: DatabaseFactory, lake: Lake, tmp_path: Path) -> None:
    """Who mistypes its name is told so, where rows that were purged would be missing; nothing is made there."""
    store(db, trades(3))
    lake.write(db, purge=True)
    mistyped = Lake(tmp_path / "lak")
    for ask in (lambda: mistyped.reading(db), lambda: mistyped.verify(db)):
        with pytest.raises(LakeError, match=r"nothing of public_trades in .*/lak; look at the lake's name"):
            ask()
    assert not (tmp_path / "lak").exists()
    assert len(list(lake.reading(db).iter_range("BTCUSDT"))) == 3


def test_a_purged_lake_and_the_database_answer_as_the_database_did(
    db: DatabaseFactory, lake: Lake, tmp_path: Path
) -> None:
    """Ranges, tables and candles are the same digit for digit, before, halfway and after; closed months alone go."""
    store(db, trades() + trades(6, "1000PEPE/USDT"))
    open_month = trades(3, start=NOW.replace(day=1, hour=0, minute=0, second=0, microsecond=0))
    store(db, [row | {"trade_id": "new" + row["trade_id"], "exchange_ts": NOW} for row in open_month])
    before = of_database(db)
    lake.write(db, key="1000PEPE/USDT")
    reading = lake.reading(db)
    assert answers(reading) == before  # nothing of the symbol is in the lake
    report = lake.write(db)
    assert [(one.key, one.month, one.state) for one in report.periods][-2:] == [
        ("BTCUSDT", "2025-06", "written"),
        ("BTCUSDT", "2025-07", "written"),
    ]
    assert files(tmp_path)[0] == "public_trades/symbol=1000PEPE%2FUSDT/month=2025-05/rows.parquet"
    assert answers(reading) == before  # all is in both
    assert {one.state for one in lake.write(db).periods} == {"unchanged"}
    with db.get_session() as session:  # a half of what the lake has
        session.execute(delete(PublicTrade).where(PublicTrade.exchange_ts < MAY + timedelta(days=20)))
    assert answers(reading) == before
    purged = lake.write(db, purge=True)
    assert purged.problems == ()
    assert stored(db) == 3
    assert answers(reading) == before
    assert reading.to_polars("BTCUSDT").rows() == before[0]
    assert len(reading.to_pandas("BTCUSDT")) == len(before[0])
    assert lake.write(db, purge=True).periods == ()
    assert not lake.verify(db).problems
    # A file is an export like any other: back it goes.
    imported = import_trades(db, [tmp_path / "lake" / path for path in files(tmp_path)])
    assert (imported.failed, imported.rejected) == ([], 0)
    assert of_database(db) == before


def test_what_comes_late_is_noticed(db: DatabaseFactory, lake: Lake) -> None:
    """A row into a written month, or a purged one, or with other values, is read at once, and written with the rest."""
    rows = trades()
    store(db, rows)
    lake.write(db, purge=True)
    late = rows[4] | {"trade_id": "late"}
    store(db, [late, rows[5] | {"price": Decimal("1.5")}])
    found = list(lake.reading(db).iter_range("BTCUSDT"))
    assert len(found) == len(rows) + 1
    assert {row.price for row in found if row.trade_id == "5"} == {Decimal("1.5")}
    (problem,) = lake.verify(db).problems
    assert (problem.month, "write it again" in str(problem.problem)) == ("2025-05", True)
    (written,) = lake.write(db).periods
    assert (written.state, written.rows) == ("written", found_in_may(found))
    assert not lake.verify(db).problems
    assert lake.write(db, purge=True).periods[0].purged == 2
    assert stored(db) == 0
    assert list(lake.reading(db).iter_range("BTCUSDT")) == found


def found_in_may(rows: list[TradeRow]) -> int:
    """How many of the rows are May's."""
    return sum(row.exchange_ts < JUNE for row in rows)


def test_rows_that_come_while_a_month_is_purged_are_kept(
    lasting: DatabaseFactory, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between writing and purging, into a slice that was compared and one that was not: none of them is lost."""
    rows = trades()
    store(lasting, rows)
    late = [rows[number] | {"trade_id": f"late-{number}"} for number in (0, 3, 12)]
    slices = writing.Work._slices

    def meanwhile(work: Any, period: Any) -> Any:
        for number, one in enumerate(slices(work, period)):
            yield one
            if late and number == 0:
                store(lasting, [late.pop()])

    monkeypatch.setattr(writing.Work, "_slices", meanwhile)
    assert not lake.write(lasting, purge=True).problems
    assert late == []
    everything = list(lake.reading(lasting).iter_range("BTCUSDT"))
    assert len(everything) == len({row.trade_id for row in everything}) == len(rows) + 3
    assert not lake.write(lasting, purge=True).problems  # those that came into what had gone already
    assert stored(lasting) == 0
    assert list(lake.reading(lasting).iter_range("BTCUSDT")) == everything


def test_nothing_is_purged_that_the_file_does_not_hold(
    lasting: DatabaseFactory, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that differ from the file, in number or in any value, stay in the database."""
    store(lasting, trades())
    monkeypatch.setattr(writing, "_ATTEMPTS", 1)
    purge = writing.Work._purge

    def changed_before(work: Any, period: Any) -> Any:
        with lasting.get_session() as session:
            session.execute(update(PublicTrade).values(size=PublicTrade.size + Decimal("0.00000001")))
        return purge(work, period)

    monkeypatch.setattr(writing.Work, "_purge", changed_before)
    assert len(lake.write(lasting, purge=True).problems) == 3
    assert stored(lasting) == 40


def test_a_damaged_or_missing_file_is_named(db: DatabaseFactory, lake: Lake, tmp_path: Path) -> None:
    """By verify, by reading, and by writing, which loses nothing of what only the file had."""
    store(db, trades())
    lake.write(db, purge=True)
    store(db, trades()[:3])
    may, june, july = (tmp_path / "lake" / path for path in files(tmp_path))
    content = may.read_bytes()
    may.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    june.unlink()
    manifest = tmp_path / "lake" / "_manifest" / july.parent.relative_to(tmp_path / "lake")
    manifest.with_name("month=2025-07.json").write_text("{}")
    reasons = [str(one.problem) for one in lake.verify(db).problems]
    assert ["is not what the manifest says" in reasons[0], "is missing" in reasons[1]] == [True, True]
    assert "is no manifest" in reasons[2]
    with pytest.raises(LakeError, match="cannot be used"):
        list(lake.reading(db).iter_range("BTCUSDT"))
    with pytest.raises(LakeError, match="cannot be used"):
        lake.write(db)
    may.unlink()
    with pytest.raises(LakeError, match=r"is missing, and held \d+ rows"):
        lake.write(db)
    assert stored(db) == 3


def test_a_month_leaves_the_lake_only_when_the_database_has_it(db: DatabaseFactory, lake: Lake, tmp_path: Path) -> None:
    """Unless it is forced; and never without saying which."""
    store(db, trades())
    lake.write(db)
    with db.get_session() as session:
        session.execute(delete(PublicTrade).where(PublicTrade.trade_id == "0"))
    with pytest.raises(InputError, match="whole lake"):
        lake.drop(db)
    report = lake.drop(db, before=JULY)
    assert [(one.month, one.state) for one in report.periods] == [("2025-05", "kept"), ("2025-06", "dropped")]
    assert "nowhere else" in str(report.problems[0].problem)
    assert [path.split("/")[2] for path in files(tmp_path)] == ["month=2025-05", "month=2025-07"]
    assert lake.drop(db, key="BTCUSDT", force=True).problems == ()
    assert files(tmp_path) == []
    assert list((tmp_path / "lake" / "_manifest").rglob("*.json")) == []
    assert lake.verify(db).periods == ()


def test_a_file_is_there_whole_or_not_at_all(db: DatabaseFactory, lake: Lake, tmp_path: Path, monkeypatch: Any) -> None:
    """What fails while a month is written, or written again, leaves what was there, and no trace."""
    store(db, trades())
    lake.write(db, before=JUNE)
    before = {path: (tmp_path / "lake" / path).read_bytes() for path in files(tmp_path)}
    store(db, [trades()[4] | {"trade_id": "late"}])

    def fail(*given: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(LakeError, match="No space left"):
        patch.setattr(lake_rows.Writer, "close", fail)
        lake.write(db)
    assert {path: (tmp_path / "lake" / path).read_bytes() for path in files(tmp_path)} == before


@pytest.mark.parametrize("kind", ["file URL", "mock", "subtree"])
def test_a_lake_may_be_anywhere_that_pyarrow_reaches(tmp_path: Path, kind: str) -> None:
    """A URL, or a file system of pyarrow's own, in which nothing is renamed by us; answers are the same."""
    places: dict[str, Callable[[], Lake]] = {
        "file URL": lambda: Lake((tmp_path / "lake").as_uri()),
        "mock": lambda: Lake("lake", pyarrow.fs._MockFileSystem()),
        "subtree": lambda: Lake("", pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())),
    }
    lake = places[kind]()
    with DatabaseFactory(f"sqlite:///{tmp_path / 'bot.db'}") as db:
        db.create_tables()
        store(db, trades())
        before = of_database(db)
        lake.write(db, before=JUNE, purge=True)
        assert stored(db) < 40
        assert answers(lake.reading(db)) == before
        assert not lake.verify(db).problems
        assert len(lake.drop(db, before=JULY).problems) == 1


def test_other_programs_read_the_files_as_they_are(tmp_path: Path, lake: Lake) -> None:
    """DuckDB, polars and pyarrow find symbol and month in the folders' names, and exact types in the files."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'bot.db'}") as db:
        db.create_tables()
        store(db, trades() + trades(6, "ETHUSDT"))
        lake.write(db)
        with db.get_session(read_only=True) as session:
            total = sum(row.size for row in PublicTradeRepository(session).iter_range("BTCUSDT", MAY, JUNE))
    folder = tmp_path / "lake" / "public_trades"
    where = "symbol = 'BTCUSDT' AND month = '2025-05'"
    query = f"SELECT sum(size) FROM read_parquet('{folder}/*/*/*.parquet') WHERE {where}"
    # In a process of its own, which tells at its end of types that it leaked.
    asked = run_python("-c", f"import duckdb; print(duckdb.sql({query!r}).fetchall()[0][0])")
    assert asked.stdout == f"{total}\n", asked.stderr
    scan = polars.scan_parquet(folder, hive_partitioning=True)
    frame = scan.filter(symbol="BTCUSDT", month="2025-05").collect()
    assert (frame["size"].sum(), frame.schema["price"]) == (total, polars.Decimal(20, 8))
    names = pyarrow.schema([("symbol", pyarrow.string()), ("month", pyarrow.string())])
    layout = pyarrow.dataset.partitioning(names, flavor="hive")
    table = pyarrow.parquet.read_table(folder, partitioning=layout, filters=[("symbol", "=", "BTCUSDT")])
    table = table.filter(pyarrow.compute.equal(table["month"], "2025-05"))
    assert sum(table["size"].to_pylist()) == total


def test_candles_are_exact_beyond_what_a_decimal_holds(db: DatabaseFactory, lake: Lake) -> None:
    """The largest amounts, whose products have 40 digits, and times before 1970."""
    old = datetime(1969, 12, 31, 23, tzinfo=UTC)
    values = [
        trade_values(number, exchange_ts=old + timedelta(hours=number // 2), price=Decimal(price), size=Decimal(size))
        for number, (price, size) in enumerate([("9999999", "12345678.9"), ("3", "0.1"), ("8388608.5", "0.00000001")])
    ]
    if not db.settings.is_sqlite:  # which keeps fewer digits of an amount
        values.append(
            trade_values(9, exchange_ts=old, price=Decimal("999999999999.99999999"), size=Decimal(99999999999))
        )
    store(db, values)
    before = of_database(db)
    lake.write(db, purge=True)
    assert answers(lake.reading(db)) == before


@pytest.mark.parametrize("kind", ["usual", "large", "at the edge of 64 bits", "beyond 64 bits"])
def test_candles_of_columns_are_exact(kind: str) -> None:
    """Of any trades, in tables of any size: as the arithmetic of fractions has them, ties rounded half-even."""
    chance = random.Random(kind)
    money, time = pyarrow.decimal128(20, 8), pyarrow.timestamp("us", "UTC")
    schema = pyarrow.schema([("exchange_ts", time), ("trade_id", pyarrow.string()), ("price", money), ("size", money)])
    digits = {"usual": (4, 3), "large": (15, 18), "at the edge of 64 bits": (18, 18), "beyond 64 bits": (20, 20)}[kind]
    for _ in range(300):
        units = [tuple(chance.randrange(10**most) for most in digits) for _ in range(chance.randrange(1, 30))]
        rows = [
            (MAY + timedelta(microseconds=chance.randrange(8) - 4), str(chance.randrange(120)), price, size)
            for price, size in (chance.choice([one, (-one[0], one[1]), (one[0], 0), (5, 2)]) for one in units)
        ]
        if kind == "beyond 64 bits":
            rows = [(*row[:3], row[3] * chance.choice((1, -1))) for row in rows]
        rows.sort(key=lambda row: (row[0], len(row[1]), row[1]))
        columns = [[*column] for column in zip(*rows, strict=True)]
        columns[2:] = [[Decimal(one).scaleb(-8) for one in column] for column in columns[2:]]
        table = pyarrow.table([pyarrow.array(*one) for one in zip(columns, schema.types, strict=True)], schema=schema)
        length = timedelta(microseconds=chance.randrange(1, 6))
        tables = table.drop(["trade_id"]).to_batches(max_chunksize=chance.randrange(1, 12))
        assert joined(candles.pieces(tables, length)) == (expected := candles_of(rows, length))
        shuffled = table.take(sorted(range(len(rows)), key=lambda number: (rows[number][0], rows[number][1])))
        assert joined(candles.pieces([shuffled], length)) == expected


def candles_of(rows: list[tuple[datetime, str, int, int]], length: timedelta) -> list[Candle]:
    """The candles of trades in order, with their amounts in units of eight places."""
    found = []
    for opened, group in groupby(rows, lambda row: EPOCH + (row[0] - EPOCH) // length * length):
        prices, sizes = zip(*(row[2:] for row in group), strict=True)
        worth, volume = sum(map(mul, prices, sizes)), sum(sizes)
        amounts = (prices[0], max(prices), min(prices), prices[-1], volume)
        mean = Decimal(round(Fraction(worth, volume))).scaleb(-8) if volume else None
        found.append(Candle._make((opened, *(Decimal(one).scaleb(-8) for one in amounts), len(prices), mean)))
    return found


def test_streams_of_users_are_refused_by_name(db: DatabaseFactory, lake: Lake) -> None:
    """Whoever can read a lake's files reads all of them."""
    with pytest.raises(InputError, match="rows of private_executions belong to users"):
        lake.write(db, PrivateExecution)
    with pytest.raises(InvalidValueError, match="naive"):
        lake.write(db, before=datetime(2025, 5, 19))  # noqa: DTZ001 # what the test is about


@pytest.mark.parametrize("seed", range(3))
def test_two_streams_make_one_wherever_they_are_cut(seed: int) -> None:
    """Of any two sets of rows, in batches of any size, the union comes in order, and the newer row of each key."""
    chance = random.Random(seed)
    for _ in range(60):
        keys = [(chance.randrange(8), str(chance.randrange(4))) for _ in range(chance.randrange(30))]
        sides = [sorted({key for key in keys if chance.random() < share}) for share in (0.6, chance.random())]
        tables = [
            pyarrow.table(
                {
                    "ts": pyarrow.array([ts for ts, _ in side], pyarrow.int64()),
                    "tie": pyarrow.array([tie for _, tie in side], pyarrow.string()),
                    "of": pyarrow.array([name] * len(side), pyarrow.string()),
                }
            )
            for side, name in zip(sides, ("lake", "database"), strict=True)
        ]
        batches = [table.to_batches(max_chunksize=chance.randrange(1, 6)) for table in tables]
        found = [
            tuple(row.values())
            for table in seam.merged(batches[0], batches[1], ("ts", "tie"))
            for row in table.to_pylist()
        ]
        newer = {*sides[1]}
        expected = [(*key, "database" if key in newer else "lake") for key in sorted({*sides[0], *newer})]
        assert found == expected
        descending = [("ts", "descending"), ("tie", "descending")]
        backwards = [table.sort_by(descending).to_batches(max_chunksize=chance.randrange(1, 6)) for table in tables]
        found = [
            tuple(row.values())
            for table in seam.merged(backwards[0], backwards[1], ("ts", "tie"), reverse=True)
            for row in table.to_pylist()
        ]
        assert found == expected[::-1]
        cut = list(seam.slices(tables[0].to_batches(max_chunksize=2), "ts", chance.randrange(1, 6)))
        assert [row for table in cut for row in table.to_pylist()] == tables[0].to_pylist()
        assert all(one["ts"][-1].as_py() < other["ts"][0].as_py() for one, other in pairwise(cut))


def test_the_command_writes_verifies_and_drops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With exit codes that a script may go by, and reports for people and for programs."""
    database = f"sqlite:///{tmp_path / 'bot.db'}"
    with DatabaseFactory(database) as db:
        db.create_tables()
        store(db, trades())
    place = ["--lake", str(tmp_path / "lake"), "--db-url", database]
    assert main(["lake", "write", "--purge", "--before", "2025-07-01", *place]) == 0
    assert "BTCUSDT 2025-05" in (told := capsys.readouterr().out)
    assert "purged" in told
    assert main(["lake", "verify", "--json", *place]) == 0
    assert [one["state"] for one in json.loads(capsys.readouterr().out)["periods"]] == ["whole", "whole"]
    assert main(["lake", "drop", "--symbol", "BTCUSDT", *place]) == 1
    assert "nowhere else" in capsys.readouterr().err
    assert main(["lake", "drop", "--symbol", "BTCUSDT", "--force", *place]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["lake", "drop", *place])
    with pytest.raises(SystemExit, match="2"):
        main(["lake", "verify", "--purge", *place])
    assert main(["lake", "write", "--table", "private_executions", *place]) == 1


def test_nothing_is_loaded_that_is_not_needed(postgresql_url: URL, tmp_path: Path) -> None:
    """Writing a month out of PostgreSQL loads no pandas, which pyarrow does wherever it turns values into Python's."""
    with DatabaseFactory(postgresql_url) as db:
        store(db, trades(6))
    code = (
        "import sys; from shared.db.commands.cli import main; from shared.db.ranges import frames; "
        "frames.batches.__defaults__ = (1,); main(sys.argv[1:]); print('pandas' in sys.modules)"
    )
    url = postgresql_url.render_as_string(hide_password=False)
    result = run_python("-c", code, "lake", "write", "--lake", str(tmp_path / "lake"), "--db-url", url)
    assert files(tmp_path) != []
    assert result.stdout.splitlines()[-1] == "False"


def test_a_missing_library_names_its_extra(tmp_path: Path) -> None:
    """The command says in one line what is not installed, and how to install it."""
    code = "import sys; sys.modules['pyarrow'] = None; from shared.db.commands.cli import main; main(sys.argv[1:])"
    result = run_python("-c", code, "lake", "verify", "--lake", "lake", "--db-url", "sqlite://", cwd=tmp_path)
    assert "pyarrow is not installed" in result.stderr
    assert "WHEEL[lake]" in result.stderr
