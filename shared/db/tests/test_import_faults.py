"""Files as people really have them: what is wrong with one costs that one alone, and nothing is stored twice."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tarfile
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, delete, func, select

from shared.db import DatabaseFactory, DatabaseSettings, InputError, PublicTrade, PublicTradeRepository
from shared.db.bulk.trade_sources import TradeSource, source_of
from shared.db.commands.cli import main
from shared.db.exchanges import files
from shared.db.operations import trade_file, trade_import
from shared.db.operations.export import export_trades
from shared.db.operations.row_layout import file_layout_of, pyarrow
from shared.db.operations.trade_file import ImportOptions
from shared.db.operations.trade_import import ImportReport, import_trades
from shared.db.tests.bybit_samples import (
    DERIVATIVES_HEADER,
    SPOT_HEADER,
    archive_line,
    derivatives_archive,
    spot_archive,
    spot_line,
    written,
)
from shared.db.tests.support import trade_values

DAY = 86_400_000
FIRST = 1741600800000


def stored_volume(db: DatabaseFactory, symbol: str = "AUSDT") -> int:
    """How many trades of a symbol there are."""
    with db.get_session(read_only=True) as session:
        return session.execute(select(func.count()).where(PublicTrade.symbol == symbol)).scalar_one()


def packed(content: bytes) -> bytes:
    """A zip with a file in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.csv", content)
    return file.getvalue()


def tarred(content: bytes) -> bytes:
    """A tar archive with a file in it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("a.csv")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def foreign_parquet() -> bytes:
    """A Parquet file with other columns."""
    arrow, file = pyarrow(), io.BytesIO()
    arrow.parquet.write_table(arrow.table({"a": [1]}), file)
    return file.getvalue()


KINDS: dict[str, tuple[bytes, str]] = {
    "zip": (packed(b"x"), "zip archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(range(256)), "7z archive"),
    "sqlite": (b"SQLite format 3\0" + bytes(4080), "SQLite database"),
    "parquet": (foreign_parquet(), "lacks columns"),
    "utf-16": ("timestamp,symbol\n1,2\n".encode("utf-16"), "UTF-16"),
    "page": (b"<!DOCTYPE html><html></html>", "web page"),
    "array": (json.dumps([{"a": 1}, {"b": 2}]).encode(), "JSON array"),
    "cr only": (DERIVATIVES_HEADER.encode() + b"\r" + archive_line().encode() + b"\r", "CR alone"),
    "semicolons": (DERIVATIVES_HEADER.replace(",", ";").encode() + b"\n", "separated by ';'"),
    "tabs": (DERIVATIVES_HEADER.replace(",", "\t").encode() + b"\n", "separated by tabs"),
    "empty": (b"", "is empty"),
    "empty gzip": (gzip.compress(b""), "is empty"),
    "order history": (b"Spot Pairs,Order Type,Direction,Filled Value,Order No.\n", "file of an account"),
    "asset changes": (b"UID: 1234567\nCurrency,Contract,Type,Direction\n", "file of an account"),
    "deep json": (b"[" * 100_000, "JSON array"),
    "deep object": (b'{"a":' * 100_000, "not a trade archive"),
    "quotes": (b'"' * 200_000, "not a trade archive"),
    "zip in gzip": (gzip.compress(packed(b"x")), "zip archive"),
    "tar": (tarred(b"x"), "tar archive"),
    "tar in gzip": (gzip.compress(tarred(b"x")), "tar archive"),
    "gzip in gzip": (gzip.compress(gzip.compress(b"x")), "packed twice"),
    "old workbook": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "workbook of an old spreadsheet"),
    "utf-16 without a mark": ("timestamp,symbol\n".encode("utf-16-le"), "is binary"),
    "another encoding": ("Währung,Preis\n".encode("latin-1"), "not UTF-8"),
}


def test_a_file_of_another_kind_is_named_and_costs_itself_alone(db: DatabaseFactory, tmp_path: Path) -> None:
    """The files before and after it are imported."""
    bad = [tmp_path / f"BTCUSDT2025-03-{number:02}.csv" for number in range(len(KINDS))]
    for path, (content, _) in zip(bad, KINDS.values(), strict=True):
        path.write_bytes(content)
    good = [derivatives_archive(tmp_path / f"{name}.csv", 5, first) for name, first in (("a", 0), ("b", 5))]
    report = import_trades(db, [good[0], *bad, good[1]])
    assert report.inserted == 10
    assert [file.file for file in report.failed] == list(map(str, bad))
    for kind, file in zip(KINDS, report.failed, strict=True):
        assert KINDS[kind][1] in str(file.error), kind


def test_what_is_no_file_is_named(db: DatabaseFactory, tmp_path: Path) -> None:
    """A folder, the current one included, a pipe, and a name that cannot be one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "folder").mkdir()
    report = import_trades(db, [".", tmp_path / "folder", pipe, "a\0b", derivatives_archive(tmp_path / "a.csv", 5)])
    assert report.inserted == 5
    said = " ".join(str(file.error) for file in report.failed)
    assert said.count("is a folder") == 2
    assert "is a pipe or a device" in said
    assert "null byte" in said


def test_an_empty_export_comes_back_in_every_format(db: DatabaseFactory, tmp_path: Path) -> None:
    """No rows are no fault, also where the file of no rows is empty."""
    for kind in ("csv", "jsonl", "parquet"):
        path = tmp_path / f"none.{kind}"
        assert export_trades(db, path, "BTCUSDT", kind=kind) == 0
        report = import_trades(db, [path])
        assert (report.failed, report.inserted) == ([], 0), kind


@pytest.mark.parametrize("place", range(5))
def test_a_flipped_bit_leaves_nothing_behind(db: DatabaseFactory, tmp_path: Path, place: int) -> None:
    """Not one row, invented or true, of an archive whose check sum is wrong."""
    path = derivatives_archive(tmp_path / "a.csv.gz", 3000)
    content = bytearray(path.read_bytes())
    bit = random.Random(place).randrange(100 * 8, (len(content) - 20) * 8)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    report = import_trades(db, [path])
    assert "download it again" in str(report.failed[0].error)
    assert stored_volume(db, "BTCUSDT") == 0


def test_a_damaged_parquet_file_leaves_nothing_behind(
    db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last rows are read before its first ones are stored."""
    monkeypatch.setattr(trade_file, "LINES_A_COMMIT", 100)
    import_trades(db, [derivatives_archive(tmp_path / "a.csv", 30_000)])
    path = tmp_path / "a.parquet"
    export_trades(db, path, "BTCUSDT", kind="parquet")
    with db.get_session() as session:
        session.execute(delete(PublicTrade))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    report = import_trades(db, [path])
    assert "is damaged" in str(report.failed[0].error)
    assert stored_volume(db, "BTCUSDT") == 0


def monthly(path: Path, days: int, rows: int) -> Path:
    """A monthly spot archive: the trades of its days, numbered from 1 through all of them."""
    lines = [
        spot_line(day * rows + number, timestamp=str(FIRST + DAY * day + 3 * number))
        for day in range(days)
        for number in range(1, rows + 1)
    ]
    return written(path, SPOT_HEADER, lines)


def test_daily_and_monthly_spot_files_are_not_counted_twice(db: DatabaseFactory, tmp_path: Path) -> None:
    """Whichever comes first, the other one ends where its ids are others."""
    days = [spot_archive(tmp_path / f"AUSDT_2025-03-{10 + day}.csv", 50, day) for day in range(3)]
    month = monthly(tmp_path / "AUSDT-2025-03.csv", 3, 50)
    import_trades(db, [month])
    report = import_trades(db, days)
    assert stored_volume(db) == 150
    # The first day has the month's own numbers.
    assert [file.file for file in report.failed] == [str(days[1]), str(days[2])]
    assert "trades of a spot archive" in str(report.failed[0].error)
    assert import_trades(db, [month]).skipped == 150


def test_a_monthly_file_over_a_daily_one_is_not_counted_twice(db: DatabaseFactory, tmp_path: Path) -> None:
    """The second day is stored; the month that begins before it ends with an error."""
    day = spot_archive(tmp_path / "AUSDT_2025-03-11.csv", 50, 1)
    import_trades(db, [day])
    report = import_trades(db, [monthly(tmp_path / "AUSDT-2025-03.csv", 3, 50)])
    assert "covered" in str(report.failed[0].error)
    assert stored_volume(db) == 50


@pytest.mark.parametrize("rows", [1, 2, 300])
def test_few_trades_a_day_and_many_are_not_counted_twice(db: DatabaseFactory, tmp_path: Path, rows: int) -> None:
    """Though a month's first day has the same numbers as that day's own file, and a day may have one trade."""
    days = [spot_archive(tmp_path / f"AUSDT_2025-03-{10 + day}.csv", rows, day) for day in range(3)]
    month = monthly(tmp_path / "AUSDT-2025-03.csv", 3, rows)
    assert import_trades(db, [*days, month]).failed
    assert stored_volume(db) == 3 * rows
    with db.get_session() as session:
        session.execute(delete(PublicTrade))
    report = import_trades(db, [month, *days])
    assert [file.file for file in report.failed] == [str(days[1]), str(days[2])]
    assert stored_volume(db) == 3 * rows


def test_an_import_goes_on_within_a_moment(
    db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trades of one moment stand on both sides of a transaction: those before it are not another file's."""
    monkeypatch.setattr(trade_file, "LINES_A_COMMIT", 1)
    lines = [spot_line(number, timestamp=str(FIRST + number // 1000)) for number in range(1, 4000)]
    path = written(tmp_path / "AUSDT_2025-03-10.csv", SPOT_HEADER, lines)
    stored: list[int] = []
    part = import_trades(db, [path], watch=lambda done, rows: stored.append(rows), stop=lambda: bool(stored))
    assert 0 < part.inserted < 1000
    assert import_trades(db, [path]).inserted == 3999 - part.inserted


@pytest.mark.parametrize("live", ["2290000000012345678", "33f361aa-0add-5c7b-a2e7-9679810944fc"])
def test_a_spot_archive_does_not_mix_with_trades_of_other_ids(db: DatabaseFactory, tmp_path: Path, live: str) -> None:
    """Live spot trades, or derivatives, of the same symbol and time: the file ends with the remedy."""
    seen = datetime.fromtimestamp((FIRST + 30) / 1000, UTC)
    with db.get_session() as session:
        PublicTradeRepository(session).bulk_create(
            [trade_values(symbol="AUSDT", trade_id=live, exchange_ts=seen, local_ts=seen)]
        )
    path = spot_archive(tmp_path / "AUSDT_2025-03-10.csv", 50)
    report = import_trades(db, [path])
    assert "--symbol AUSDT.SPOT" in str(report.failed[0].error)
    assert stored_volume(db) == 1
    assert import_trades(db, [path], symbol="AUSDT.SPOT").inserted == 50


def test_sources_one_after_the_other_in_time_are_no_mixture(db: DatabaseFactory, tmp_path: Path) -> None:
    """An archive of yesterday and a live stream of today are one history."""
    seen = datetime.fromtimestamp((FIRST + DAY) / 1000, UTC)
    with db.get_session() as session:
        PublicTradeRepository(session).bulk_create(
            [trade_values(symbol="AUSDT", trade_id="2290000000012345678", exchange_ts=seen, local_ts=seen)]
        )
    assert import_trades(db, [spot_archive(tmp_path / "AUSDT_2025-03-10.csv", 50)]).inserted == 50


def test_two_workers_do_not_mix_sources_either(postgresql_url: URL, tmp_path: Path) -> None:
    """Files of one symbol whose ids cannot be compared are one worker's."""
    spot = [spot_line(number, timestamp=str(1741600800054 + number)) for number in range(1, 2000)]
    files = [
        written(tmp_path / "BTCUSDT_2025-03-10.csv", SPOT_HEADER, spot),
        derivatives_archive(tmp_path / "BTCUSDT2025-03-10.csv", 2000),
        derivatives_archive(tmp_path / "ETHUSDT2025-03-10.csv", 1),
    ]
    with DatabaseFactory(postgresql_url) as db:
        report = import_trades(db, files, workers=2)
        assert [file.file for file in report.failed] == [str(files[1])]
        assert stored_volume(db, "BTCUSDT") == 1999 + 1


def test_two_workers_do_not_take_a_day_beside_its_month(postgresql_url: URL, tmp_path: Path) -> None:
    """Spot archives of a symbol whose names tell different spans, or none, are one worker's."""
    month, day = monthly(tmp_path / "AUSDT-2025-03.csv", 3, 2000), spot_archive(tmp_path / "x.csv", 2000, 1)
    with DatabaseFactory(postgresql_url) as db:
        for path in (day, day.rename(tmp_path / "AUSDT_2025-03-11.csv")):
            report = import_trades(db, [month, path], symbol="AUSDT", workers=2)
            assert [file.file for file in report.failed] == [str(path)]
            assert stored_volume(db) == 6000


def test_files_of_one_span_are_taken_by_all_workers(tmp_path: Path) -> None:
    """What cannot be told apart before it is read costs nobody a worker; rows that are no text neither."""
    days = [spot_archive(tmp_path / f"AUSDT_2025-03-{10 + day}.csv", 1, day) for day in range(3)]
    odd = tmp_path / "odd.jsonl"
    odd.write_text(
        json.dumps(dict.fromkeys(file_layout_of(PublicTrade).columns) | {"symbol": [1], "trade_id": 5}) + "\n"
    )
    assert trade_import._taken_together([*days, odd], ImportOptions()) == [[0], [1], [2], [3]]


EXPORTED = dict.fromkeys(("exchange_ts", "local_ts"), "2025-03-10T10:00:00.000000Z")
EXPORTED |= {"symbol": "AUSDT", "side": "Buy", "price": "1", "size": "2", "trade_id": "5"}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("exchange_ts", "0001-01-01T00:00:00+14:00"),
        ("exchange_ts", "9999-12-31T23:59:59-14:00"),
        ("price", "\u0661\u0662"),
        ("price", "1_0"),
        ("price", " 1"),
        ("price", "1e5"),
        ("size", "1.123456789"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_what_export_cannot_have_written_is_given_back(
    db: DatabaseFactory, tmp_path: Path, kind: str, column: str, value: str
) -> None:
    """Digits of other scripts, digits that would be rounded and times beyond all years cost their row alone."""
    path = tmp_path / f"a.{kind}"
    rows = [EXPORTED | {column: value}, EXPORTED]
    if kind == "csv":
        path.write_text("\n".join(",".join(row) for row in [list(EXPORTED), *(row.values() for row in rows)]) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = import_trades(db, [path])
    assert (report.inserted, report.rejected) == (1, 1)
    assert next(iter(report.files[0].reasons)).startswith(column)


def test_parquet_that_python_cannot_hold_costs_itself_alone(db: DatabaseFactory, tmp_path: Path) -> None:
    """A time beyond all years, and text that is no UTF-8."""
    arrow = pyarrow()
    row = {name: [None] for name in file_layout_of(PublicTrade).columns}
    far = arrow.array([2**62], arrow.timestamp("us", "UTC"))
    text = arrow.Array.from_buffers(arrow.string(), 1, arrow.array([b"\xff\xfe"]).buffers())
    paths = []
    for column, values in (("exchange_ts", far), ("symbol", text)):
        paths.append(tmp_path / f"{column}.parquet")
        arrow.parquet.write_table(arrow.table(row | {column: values}), paths[-1])
    report = import_trades(db, [*paths, derivatives_archive(tmp_path / "good.csv", 5)])
    assert [file.file for file in report.failed] == list(map(str, paths))
    assert report.inserted == 5


def test_ids_tell_their_source() -> None:
    """UUIDs, numbers of 19 digits, numbers from 1 on; of others nothing is said."""
    assert source_of("33f361aa-0add-5c7b-a2e7-9679810944fc") is TradeSource.DERIVATIVES
    assert source_of("2290000000012345678") is TradeSource.LIVE_SPOT
    assert source_of("1") is TradeSource.SPOT_ARCHIVE
    assert source_of("trade-1") is None
    assert source_of("") is None


@pytest.mark.parametrize(
    "name",
    [
        "BTCUSDT_SPOT_2025-05-19.csv",
        "BTCUSDT_TRADES_2025-05-19.csv",
        "SPOT_2025-05-19.csv",
        "BYBIT-BTCUSDT-2025-05-19.csv",
        "trades.csv",
    ],
)
def test_what_is_no_symbol_is_not_taken_for_one(db: DatabaseFactory, tmp_path: Path, name: str) -> None:
    """A spot file whose name does not begin with a symbol wants it given."""
    path = written(tmp_path / name, SPOT_HEADER, [spot_line()])
    report = import_trades(db, [path])
    assert "--symbol" in str(report.failed[0].error)
    taken = import_trades(db, [path], symbol="BTCUSDT").files[0]
    assert (taken.symbols, taken.inserted) == (["BTCUSDT"], 1)
    assert taken.first_ts == taken.last_ts == "2025-03-10T10:00:00.003000+00:00"


def test_spot_rows_with_a_column_more_than_their_header_are_taken(db: DatabaseFactory, tmp_path: Path) -> None:
    """As the exchange's own files of 2026-07 are, and a file in which the column begins in the middle."""
    header = SPOT_HEADER.removesuffix(",rpi")
    lines = [spot_line(number) for number in range(1, 50)]
    lines[:10] = [line.rpartition(",")[0] for line in lines[:10]]
    report = import_trades(db, [written(tmp_path / "AUSDT-2026-07.csv", header, [*lines, "1,2,3,4,5,6,7"])])
    assert (report.inserted, report.rejected) == (49, 1)
    # Only there: elsewhere a column too many is a line that was damaged.
    other = written(tmp_path / "b.csv", DERIVATIVES_HEADER, [archive_line() + ",1"])
    assert import_trades(db, [other]).rejected == 1


def test_one_reason_over_and_over_is_told_once(
    db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are counted; the file beside does not become larger than the source."""
    monkeypatch.setattr(trade_file, "_TOLD_OF_A_REASON", 100)
    lines = [archive_line(number, price=f"0.0000000{number:03}") for number in range(1, 900)]
    path = written(tmp_path / "a.csv", DERIVATIVES_HEADER, ["x", *lines])
    (report,) = import_trades(db, [path]).files
    assert (report.inserted, report.rejected) == (8, 892)
    assert sorted(report.reasons.values()) == [1, 891]
    told = (tmp_path / "a.csv.rejected.jsonl").read_text().splitlines()
    assert len(told) == 101


def test_an_archive_that_lies_where_nothing_can_be_written_is_imported(
    db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only rejected rows need a place: without one that file says so, and `rejected` names another."""
    folder = tmp_path / "data"
    folder.mkdir()
    files = [
        derivatives_archive(folder / "a.csv", 5),
        written(folder / "b.csv", DERIVATIVES_HEADER, [archive_line(7), "bad"]),
        derivatives_archive(folder / "c.csv", 5, 10),
    ]
    opened = os.open

    def refusing(path: Any, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_CREAT and Path(path).parent == folder:
            raise OSError(30, "Read-only file system", str(path))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    report = import_trades(db, files)
    assert report.inserted == 11
    assert [file.file for file in report.failed] == [str(files[1])]
    assert "Read-only file system" in str(report.failed[0].error)
    again = import_trades(db, files, rejected=tmp_path / "told" / "here")
    assert (again.failed, again.rejected) == ([], 1)
    assert (tmp_path / "told" / "here" / "b.csv.rejected.jsonl").exists()


def test_rejected_rows_of_two_files_of_one_name_are_not_mixed(db: DatabaseFactory, tmp_path: Path) -> None:
    """In one folder they would be one file: refused before anything is read."""
    (tmp_path / "other").mkdir()
    files = [derivatives_archive(tmp_path / "a.csv", 1), derivatives_archive(tmp_path / "other" / "a.csv", 1)]
    with pytest.raises(InputError, match=r"called a\.csv"):
        import_trades(db, files, rejected=tmp_path / "told")
    assert stored_volume(db, "BTCUSDT") == 0


def test_an_export_that_ends_before_it_begins_leaves_the_old_file(
    db: DatabaseFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A usage error on the command line, an InputError in Python."""
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(InputError, match="swap the two"):
        export_trades(db, path, "BTCUSDT", datetime(2025, 3, 2, tzinfo=UTC), datetime(2025, 3, 1, tzinfo=UTC))
    with pytest.raises(SystemExit) as ended:
        main(["export", "trades", "--symbol", "X", "--from", "2025-03-02", "--to", "2025-03-01", "-o", str(path)])
    assert ended.value.code == 2
    assert "--from is later than --to" in capsys.readouterr().err
    assert path.read_text() == "old"


def test_the_command_tells_what_each_file_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As text and as JSON: symbols, first and last time, and the reasons of what was rejected."""
    settings = DatabaseSettings(db_name=str(tmp_path / "grid_bot.db"), _env_file=None)
    with DatabaseFactory(settings) as db:
        db.create_tables()
    path = written(tmp_path / "a.csv", DERIVATIVES_HEADER, [archive_line(0), archive_line(9), "bad"])
    assert main(["import-trades", "--db-name", settings.db_name, str(path)]) == 1
    told = capsys.readouterr()
    assert "2 trades of BTCUSDT, 2025-03-10T10:00:00.054000+00:00 to 2025-03-10T10:00:00.070000+00:00" in told.out
    assert f"{path}: 1 row rejected: the line has 1 columns" in told.err
    folder = tmp_path / "told"
    assert main(["import-trades", "--db-name", settings.db_name, str(path), "--json", "--rejected", str(folder)]) == 1
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert file["symbols"] == ["BTCUSDT"]
    assert file["rejected_file"] == str(folder / "a.csv.rejected.jsonl")


_LINES = st.lists(
    st.one_of(
        st.just(DERIVATIVES_HEADER),
        st.just(SPOT_HEADER),
        st.builds(archive_line, st.integers(0, 50)),
        st.builds(spot_line, st.integers(1, 50)),
        st.sampled_from(['{"a": 1}', "[1]", '"', "\0", "\r", ",,,,", "null", "{}", "1e999999999", "NaN", "'"]),
        st.text(max_size=20),
        st.just("exchange_ts,symbol,side,price,size,trade_id,local_ts"),
        st.just(
            '{"exchange_ts":"2025-01-01T00:00:00Z","symbol":[1],"side":"Buy","price":"1","size":"NaN",'
            '"trade_id":{},"local_ts":1}'
        ),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(
    st.one_of(st.binary(max_size=400), _LINES.map(lambda lines: "\n".join(lines).encode("utf-8", "replace"))),
    st.booleans(),
    st.sampled_from(["BTCUSDT2025-03-10.csv", "a.jsonl"]),
)
def test_no_bytes_whatever_take_the_import_down(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, compress: bool, name: str
) -> None:
    """Every file ends in a report, and the good one beside it is stored."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / name).write_bytes(gzip.compress(content) if compress else content)
    good = derivatives_archive(folder / "good.csv", 1, 1000)
    with DatabaseFactory("sqlite:///:memory:") as db:
        db.create_tables()
        report: ImportReport = import_trades(db, [folder / name, good])
        assert report.files[1].finished or report.files[1].error
        assert report.files[0].finished or report.files[0].error
        json.dumps(report.as_dict())


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=300).map(lambda part: part * 300), max_size=3),
    st.one_of(st.integers(0, 9).map(bytes), st.binary(max_size=3)),  # a tape's padding, or what does not belong there
    st.one_of(st.none(), st.tuples(st.integers(0, 400), st.integers(0, 255))),
    st.integers(0, 400),
)
def test_a_packed_file_is_unpacked_as_gzip_does_it(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[bytes],
    end: bytes,
    flipped: tuple[int, int] | None,
    missing: int,
) -> None:
    """Of several parts, padded, damaged or cut short: the same bytes, or damage where Python's own reader sees it."""
    packed = bytearray(b"".join(map(gzip.compress, [b"first\n", *parts])) + end)
    if flipped is not None and flipped[0] < len(packed) - 10:
        packed[flipped[0] + 10] ^= flipped[1]  # behind the first header
    if missing % 3 == 0:
        del packed[max(len(packed) - missing, 20) :]
    path = tmp_path_factory.mktemp("packed") / "a.gz"
    path.write_bytes(packed)
    try:
        whole = gzip.decompress(packed)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        with pytest.raises(InputError, match="only half there"):
            files.check_whole(path, lambda: False)
        return
    assert files.check_whole(path, lambda: False)
    with files.opened(path) as (_, unpacked):
        assert unpacked.read() == whole


def test_a_line_without_a_time_costs_itself_alone(tmp_path: Path) -> None:
    """In a file of our own export, whose other rows are taken."""
    file = tmp_path / "trades.csv"
    file.write_text(
        "exchange_ts,symbol,side,price,size,trade_id,local_ts\n"
        ",BTCUSDT,Buy,1,1,a,2025-05-19T00:00:00Z\n"
        "2025-05-19T00:00:00Z,BTCUSDT,Buy,1,1,b,2025-05-19T00:00:00Z\n"
    )
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db:
        db.create_tables()
        (report,) = import_trades(db, [file]).files
    assert (report.inserted, report.rejected, report.error) == (1, 1, None)
