"""Archives as Arrow's columns: the rows, the refusals and the lines are those of the reader of texts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from shared.db import DatabaseFactory, PublicTrade
from shared.db.exchanges.bybit import archives, read_archive
from shared.db.exchanges.bybit.arrow_archives import ArrowTrades
from shared.db.operations import import_trades, trade_file
from shared.db.tests.bybit_samples import DERIVATIVES_HEADER, SPOT_HEADER, archive_line, derivatives_archive, spot_line

ODD = [
    "",
    " ",
    "Buy\r",
    "sell\r\r",
    "1\r",
    "\r",
    "a\rb",
    '"',
    "+1",
    "0x10",
    "é",
    "\uff11",
    "nan",
    "inf",
    "null",
    "NULL",
    "\ufeff",
    "\0",
]
odd = st.text(st.characters(codec="utf-8"), max_size=6).map(lambda text: text.replace("\n", "")) | st.sampled_from(ODD)
FIELDS: dict[str, list[str]] = {
    "time": [
        "1741600800.1234", "1741600800.1", "1741600800", "1741600800.", "1741600800123", "0x5F000000.12",
        "1741600800.12a", " 741600800.1", "-741600800.1", "1741600800.99999999999999999999", "11741600800.5",
        "1262304000.0", "1262303999.9", "4102444799.999", "4102444800.0", "1741600800,1", "0000000000.5",
    ],
    "side": ["Buy", "Sell", "buy", "SELL", "bUy", "B"],
    "amount": [
        "65065.90", "0.001", "1", "0", "0.0", "0.00000001", "0.000000001", "1.100000000", "123456789012.12345678",
        "1234567890123", "00000000000001.5", ".5", "5.", "1.2.3", "1e3", "1E-8", "-1", "+1", " 1", "1_000", "1,5",
    ],
    "id": ["3fa85f64-5717-5562-b3fc-2c963f66afa6", "2290000000012345678", "1", "2.29e18", "1e+5", "x" * 64, "x" * 65],
    "symbol": ["BTCUSDT", "ETHUSDT", "btc", "B" * 33, "BTC-28MAR25-90000-C"],
}  # fmt: skip


KINDS = {
    "timestamp": "time", "symbol": "symbol", "side": "side", "size": "amount", "price": "amount",
    "volume": "amount", "trdMatchID": "id", "id": "id", "rpi": "amount", "RPI": "amount",
}  # fmt: skip
USUAL: dict[str, Callable[..., str]] = {
    DERIVATIVES_HEADER: archive_line,
    SPOT_HEADER: spot_line,
    SPOT_HEADER.removesuffix(",rpi"): lambda number, **values: spot_line(number, **values).rpartition(",")[0],
}


def line_of(header: str) -> st.SearchStrategy[str]:
    """A line of an archive with this header, of which one value at most is odd."""
    names = [name for name in header.split(",") if name in KINDS]
    values = {name: odd | st.sampled_from(FIELDS[KINDS[name]]) for name in names}
    one = st.sampled_from(names).flatmap(lambda name: values[name].map(lambda value: {name: value}))
    ends = st.sampled_from(["\n"] * 12 + ["\r\n", "\r\r\n", "\n\n", ",\n", "", "\x1f\n"])
    return st.tuples(st.just({}) | one, ends).map(lambda given: f"{USUAL[header](7, **given[0])}{given[1]}")


files = st.sampled_from([*USUAL]).flatmap(
    lambda header: st.lists(line_of(header), max_size=4).map(lambda lines: f"{header}\n{''.join(lines)}")
)


@settings(
    deadline=None, max_examples=400, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(files, st.sampled_from([1, 60, 10_000]), st.sampled_from([1, 3, 100]))
@example(f"{DERIVATIVES_HEADER}\n" + "".join(f"{archive_line(number)}\n" for number in range(50)), 700, 10)
@example(f"{DERIVATIVES_HEADER}\n{archive_line(1)}\n{archive_line(2)}", 10_000, 100)
@example(f"{DERIVATIVES_HEADER}\r\n{archive_line(1)}\r\n\r\n{archive_line(2)}\r\n", 1, 1)
def test_any_file_gives_the_same_rows_and_refusals_in_arrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, at_once: int, size: int
) -> None:
    """With their lines, whatever is in them, and wherever a block ends."""
    monkeypatch.setattr(archives, "_ARROW_CHUNK", at_once)
    path = tmp_path / "BTCUSDT2025-03-10.csv"
    path.write_text(content, "utf-8", newline="")

    assert_the_same_in_arrow(path, size)


@pytest.mark.parametrize("header", USUAL)
def test_each_value_that_is_not_usual_is_taken_or_refused_alike(tmp_path: Path, header: str) -> None:
    """One in a file: nothing else leads to a closer look at its line."""
    path = tmp_path / "BTCUSDT2025-03-10.csv"
    usual = USUAL[header](1)
    for name in (one for one in header.split(",") if one in KINDS):
        for value in (*FIELDS[KINDS[name]], *ODD):
            path.write_text(
                "\n".join([header, usual, USUAL[header](2, **{name: value}), usual, ""]), "utf-8", newline=""
            )
            assert_the_same_in_arrow(path, 100)


def assert_the_same_in_arrow(path: Path, size: int) -> None:
    """Both ways to read a file agree, in blocks of `size` lines and more."""
    full = all(line.strip() for line in path.read_bytes().decode().split("\n")[:-1])

    def found(in_arrow: bool) -> Any:
        reader = read_archive(path)
        reader.in_arrow = in_arrow
        rows, rejected = [], []
        for block in reader.blocks(size):
            # A block counts its lines without those that are empty.
            rows += [(full and block.line_of(index), row) for index, row in enumerate(block.rows)]
            rejected += [(row.position, row.reason, row.row) for row in block.rejected]
            assert block.rows.num_rows == len(list(block.rows))
        return rows, rejected

    assert found(True) == found(False)


def test_what_is_usual_comes_in_arrow(tmp_path: Path) -> None:
    """Derivatives and spot, packed and not; in blocks of texts are only the lines around one that is not."""
    path = derivatives_archive(tmp_path / "BTCUSDT2025-03-10.csv.gz", 5_000)
    reader = read_archive(path)
    reader.in_arrow = True
    assert [(type(block.rows), len(block.rows)) for block in reader.blocks(20_000)] == [(ArrowTrades, 5_000)]
    spot = tmp_path / "BTCUSDT_2025-03-10.csv"
    spot.write_text("\n".join([SPOT_HEADER, *map(spot_line, range(1, 9))]))
    reader = read_archive(spot)
    reader.in_arrow = True
    (block,) = reader.blocks(20_000)
    assert type(block.rows) is ArrowTrades
    assert block.rows.by_symbol().keys() == {"BTCUSDT"}
    lines = [archive_line(number) for number in range(9_000)]
    lines[4_000] = lines[4_000].replace("Buy", "Bought").replace("Sell", "Sold")
    damaged = tmp_path / "BTCUSDT2025-03-11.csv"
    damaged.write_text("\n".join([DERIVATIVES_HEADER, *lines]))
    reader = read_archive(damaged)
    reader.in_arrow = True
    blocks = list(reader.blocks(20_000))
    assert [type(block.rows) is ArrowTrades for block in blocks] == [True, False, True]
    assert sum(len(block.rows) for block in blocks) == 8_999
    assert [row.position for block in blocks for row in block.rejected] == [4_002]


def test_an_import_stores_and_tells_the_same_either_way(
    server: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, counts, refused lines and the trades of another source that stand among them."""
    lines = [archive_line(number) for number in range(30_000)]
    lines[17] = lines[17].replace("BTCUSDT", "ETHUSDT")
    lines[12_345] = "1741600800.1234,BTCUSDT,Buy,NaN"
    lines[20_000] = lines[19_999]
    path = tmp_path / "BTCUSDT2025-03-10.csv"
    path.write_text("\n".join([DERIVATIVES_HEADER, *lines]))
    columns = [column for column in PublicTrade.__table__.c if column.name != "id"]

    def outcome(pays: Callable[..., bool]) -> Any:
        monkeypatch.setattr(trade_file, "_pays_in_arrow", pays)
        told = [import_trades(server, [path]) for _ in range(2)]
        (rejected,) = tmp_path.glob("*.rejected.jsonl")
        with server.get_session() as session:
            stored = session.execute(select(*columns).order_by(PublicTrade.id)).all()
            session.execute(delete(PublicTrade))
        counts = [
            (file.inserted, file.skipped, file.rejected, file.reasons, file.error) for one in told for file in one.files
        ]
        return stored, counts, rejected.read_text()

    in_arrow = outcome(lambda *given: True)
    assert len(in_arrow[0]) == 29_998
    assert in_arrow == outcome(lambda *given: False)


def test_arrow_is_loaded_for_long_files_and_a_server_that_takes_its_columns(
    server: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is loaded already, for short ones too."""
    short = derivatives_archive(tmp_path / "BTCUSDT2025-03-10.csv", 5)
    assert trade_file._pays_in_arrow(server, short)
    with DatabaseFactory("sqlite://") as embedded:
        assert not trade_file._pays_in_arrow(embedded, short)
    monkeypatch.delitem(sys.modules, "pyarrow")
    assert not trade_file._pays_in_arrow(server, short)
    monkeypatch.setattr(trade_file, "_LOADING_PAYS", 100)
    assert trade_file._pays_in_arrow(server, short)
    assert not trade_file._pays_in_arrow(server, tmp_path / "missing.csv")
