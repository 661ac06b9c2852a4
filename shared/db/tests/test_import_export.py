"""Trades in from files, trades and executions out to files: nothing lost, doubled or changed on the way."""

from __future__ import annotations

import csv
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, select

from shared.db import (
    BybitAccount,
    DatabaseFactory,
    DatabaseSettings,
    InputError,
    MissingExtraError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Run,
    SharedDBError,
    Strategy,
    User,
)
from shared.db.commands.cli import main
from shared.db.exchanges.bybit import parse_executions, parse_public_trades, read_archive
from shared.db.operations import trade_file
from shared.db.operations.export import export_executions, export_trades
from shared.db.operations.progress import WHOLE
from shared.db.operations.replaying import replay
from shared.db.operations.row_files import read_export, writing
from shared.db.operations.row_layout import FileLayout, file_layout_of, pyarrow
from shared.db.operations.trade_import import import_trades
from shared.db.tests.bybit_samples import (
    DERIVATIVES_HEADER,
    SPOT_HEADER,
    archive_line,
    derivatives_archive,
    execution_entry,
    execution_message,
    spot_archive,
    spot_line,
    trade_entry,
    trade_message,
    written,
)
from shared.db.tests.forked import run_python
from shared.db.tests.support import execution_values, new_run, new_strategy, stored, trade_values
from shared.db.value_forms.files import FORMATS, Format

Rows = list[dict[str, Any]]


TRADES, EXECUTIONS = file_layout_of(PublicTrade), file_layout_of(PrivateExecution)


def rows_of(db: DatabaseFactory, layout: FileLayout = TRADES) -> Rows:
    """Every stored row of a table without its number, by time and id."""
    model: Any = layout.model
    columns = [column for column in model.__table__.columns if column.name != "id"]
    tie = columns[1] if layout is TRADES else model.exec_id
    with db.get_session(read_only=True) as session:
        return [dict(row) for row in session.execute(select(*columns).order_by(model.exchange_ts, tie)).mappings()]


def file_settings(tmp_path: Path, name: str = "import.db") -> DatabaseSettings:
    """Settings of a SQLite file with the schema in it."""
    settings = DatabaseSettings(db_name=str(tmp_path / name), _env_file=None)
    with DatabaseFactory(settings) as db:
        db.create_tables()
    return settings


@pytest.fixture
def postgresql_settings(postgresql_url: URL) -> DatabaseSettings:
    """Settings of a PostgreSQL database with the schema in it."""
    return DatabaseSettings(database_url=postgresql_url.render_as_string(hide_password=False), _env_file=None)


@pytest.fixture(params=("file", "postgresql"))
def lasting_settings(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseSettings:
    """A database that other processes see too: a SQLite file and PostgreSQL in turn."""
    if request.param == "file":
        return file_settings(tmp_path)
    given: DatabaseSettings = request.getfixturevalue("postgresql_settings")
    return given


def on(settings: DatabaseSettings) -> list[str]:
    """The arguments that say which database."""
    return ["--db-url", settings.get_database_url()]


def command(settings: DatabaseSettings, *arguments: object, before: str = "") -> list[str]:
    """The command line of a command of ours, in a process of its own; `before` is run in it first."""
    code = f"import sys\n{before}\nfrom shared.db.commands.cli import main\nsys.exit(main(sys.argv[1:]))"
    name, *rest = map(str, arguments)
    return [sys.executable, "-c", code, name, *on(settings), *rest]


def run_command(settings: DatabaseSettings, *arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """What a command of ours does in a process of its own."""
    return run_python(*command(settings, *arguments, before=before)[1:])


class TestImport:
    """import_trades."""

    def test_every_row_is_stored_as_the_archive_has_it(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """Price and size digit for digit, the time to the millisecond."""
        report = import_trades(db, [derivatives_archive(tmp_path / "a.csv.gz", 700)])
        assert (report.inserted, report.skipped, report.rejected) == (700, 0, 0)
        assert report.finished
        stored_rows = rows_of(db)
        assert len(stored_rows) == 700
        assert stored_rows[0] == {
            "symbol": "BTCUSDT",
            "trade_id": "00000000-0000-5000-8000-000000000000",
            "exchange_ts": datetime(2025, 3, 10, 10, 0, 0, 54000, tzinfo=UTC),
            "local_ts": datetime(2025, 3, 10, 10, 0, 0, 54000, tzinfo=UTC),
            "side": "Buy",
            "price": Decimal("64000.00"),
            "size": Decimal("0.001"),
        }

    def test_importing_again_inserts_nothing(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """The same file, and a file that overlaps it."""
        first = derivatives_archive(tmp_path / "a.csv", 300)
        overlapping = derivatives_archive(tmp_path / "b.csv", 300, first=200)
        import_trades(db, [first])
        again = import_trades(db, [first])
        assert (again.inserted, again.skipped) == (0, 300)
        more = import_trades(db, [overlapping])
        assert (more.inserted, more.skipped) == (200, 100)
        assert len(rows_of(db)) == 500

    def test_two_spot_days_of_one_symbol_lose_nothing(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """Each file numbers its trades from 1; the day tells them apart."""
        days = [spot_archive(tmp_path / f"AUSDT_2025-03-{10 + day}.csv.gz", 50, day) for day in range(2)]
        report = import_trades(db, days)
        assert report.inserted == 100
        assert sorted(row["trade_id"] for row in rows_of(db)) == sorted([str(n) for n in range(1, 51)] * 2)

    def test_a_trade_seen_live_and_again_in_the_archive_is_one_row(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """The archive's 0.1 ms do not make it another one; the local time of the first stays."""
        received = datetime(2025, 3, 10, 10, 0, 1, tzinfo=UTC)
        entry = trade_entry(T=1741600800054, i="00000000-0000-5000-8000-000000000000", p="64000.00", v="0.001")
        with db.get_session() as session:
            live = parse_public_trades(trade_message(entry), received)
            PublicTradeRepository(session).bulk_create(live.rows)
        report = import_trades(db, [derivatives_archive(tmp_path / "a.csv", 1)])
        assert (report.inserted, report.skipped) == (0, 1)
        assert [row["local_ts"] for row in rows_of(db)] == [received]

    def test_bad_rows_are_told_in_a_file_beside(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """One JSON object a line, with place and reason; the good rows are stored."""
        bad = archive_line(1, price="")
        path = written(tmp_path / "a.csv", DERIVATIVES_HEADER, [archive_line(0), bad, archive_line(2), "x"])
        report = import_trades(db, [path])
        assert (report.inserted, report.rejected) == (2, 2)
        told = Path(report.files[0].rejected_file or "").read_text().splitlines()
        assert [[json.loads(line)[name] for name in ("position", "reason", "line")] for line in told] == [
            [3, "price is empty", bad],
            [5, "the line has 1 columns, not the header's 11", "x"],
        ]
        assert Path(report.files[0].rejected_file or "") == tmp_path / "a.csv.rejected.jsonl"

    def test_rejected_rows_are_corrected_and_replayed(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """As a recorder's dead letters: what fits now is stored, and what does not stays in the file."""
        bad = [archive_line(1, price=""), archive_line(2, size="1e-9", side="sideways"), "x"]
        import_trades(db, [written(tmp_path / "a.csv", DERIVATIVES_HEADER, [archive_line(0), *bad])])
        file = tmp_path / "a.csv.rejected.jsonl"
        letters = [json.loads(line) for line in file.read_text().splitlines()]
        letters[0]["row"]["price"] = "64000.50"
        letters[1]["row"] |= {"size": "0.00000001", "side": "Sell"}
        file.write_text("".join(json.dumps(letter) + "\n" for letter in letters))
        report = replay(db, file)
        assert (report.inserted, report.rejected, report.unreadable) == (2, 1, 0)
        assert [json.loads(line)["row"]["price"] for line in file.read_text().splitlines()] == [""]
        wanted = list(read_archive(derivatives_archive(tmp_path / "good.csv", 3)))
        wanted[1] |= {"price": Decimal("64000.50")}
        wanted[2] |= {"size": Decimal("0.00000001"), "side": "Sell"}
        assert rows_of(db) == wanted

    def test_a_spreadsheets_ids_are_refused(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """2.29E+18 was another id for each trade, and would be one for all; so is a price that lost its digits."""
        header = "exchange_ts,symbol,side,price,size,trade_id,local_ts"
        line = "2025-05-19T00:00:00Z,BTCUSDT,Buy,{},1,{},2025-05-19T00:00:00Z"
        cells = [("100000", "2290000000098765432"), ("100000", "2.29E+18"), ("1.00E+05", "1")]
        lines = [line.format(*pair) for pair in cells]
        report = import_trades(db, [written(tmp_path / "a.csv", header, lines)])
        assert (report.inserted, report.rejected) == (1, 2)
        spot = written(tmp_path / "BTCUSDT_2025-05-19.csv", SPOT_HEADER, [spot_line(1), spot_line(2, id="2.29E+18")])
        assert import_trades(db, [spot], symbol="BTCUSDT.SPOT").rejected == 1

    def test_a_later_import_without_bad_rows_removes_the_file(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """What it said is no longer true."""
        path = written(tmp_path / "a.csv", DERIVATIVES_HEADER, ["bad"])
        import_trades(db, [path])
        assert (tmp_path / "a.csv.rejected.jsonl").exists()
        derivatives_archive(path, 1)
        import_trades(db, [path])
        assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith("a.")) == ["a.csv"]

    def test_a_row_that_the_database_refuses_is_told_with_its_line(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """SQLite cannot give 20 digits back; PostgreSQL can, and takes the row."""
        lines = [archive_line(0), "bad", archive_line(1), archive_line(2, size="123456789012.12345678"), "worse"]
        path = written(tmp_path / "a.csv", DERIVATIVES_HEADER, [*lines, archive_line(3)])
        report = import_trades(db, [path])
        told = [json.loads(line) for line in (tmp_path / "a.csv.rejected.jsonl").read_text().splitlines()]
        if db.settings.is_sqlite:
            assert report.inserted == 3
            assert sorted(row["position"] for row in told) == [3, 5, 6]
            (refused,) = (row for row in told if row["position"] == 5)
            assert "SQLite" in refused["reason"]
        else:
            assert report.inserted == 4
            assert sorted(row["position"] for row in told) == [3, 6]
            assert Decimal("123456789012.12345678") in [row["size"] for row in rows_of(db)]

    def test_a_file_that_cannot_be_read_does_not_stop_the_others(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """It is reported, and what comes after it imported."""
        wrong = written(tmp_path / "wrong.csv", "a,b", ["1,2"])
        missing = tmp_path / "missing.csv"
        report = import_trades(db, [wrong, missing, derivatives_archive(tmp_path / "a.csv", 5)])
        assert report.inserted == 5
        assert [file.file for file in report.failed] == [str(wrong), str(missing)]
        assert "not a trade archive" in str(report.failed[0].error)

    def test_nothing_of_a_damaged_file_is_stored(
        self, db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Half a download is reported before anything is committed; the whole one is imported afterwards."""
        monkeypatch.setattr(trade_file, "LINES_A_COMMIT", 100)
        path = derivatives_archive(tmp_path / "a.csv.gz", 3000)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        report = import_trades(db, [path])
        assert "only half there" in str(report.failed[0].error)
        assert report.inserted == len(rows_of(db)) == 0
        path.write_bytes(whole)
        assert import_trades(db, [path]).inserted == 3000
        assert len(rows_of(db)) == 3000

    def test_a_stopped_import_goes_on_when_run_again(
        self, db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It ends between two transactions, says so, and leaves no half-told bad rows behind."""
        monkeypatch.setattr(trade_file, "LINES_A_COMMIT", 100)
        lines = ["bad", *map(archive_line, range(2999))]
        path = written(tmp_path / "a.csv", DERIVATIVES_HEADER, lines)
        seen: list[int] = []
        stopped = import_trades(db, [path], watch=lambda done, rows: seen.append(rows), stop=lambda: len(seen) > 2)
        assert not stopped.finished
        assert stopped.inserted == seen[-1] == len(rows_of(db)) < 2999
        assert not list(tmp_path.glob("a.csv.*"))
        again = import_trades(db, [path])
        assert again.finished
        assert (again.inserted, again.skipped) == (2999 - stopped.inserted, stopped.inserted)

    def test_how_far_it_is_can_be_watched(
        self, db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Bytes and rows of all files together, up to the end."""
        monkeypatch.setattr(trade_file, "LINES_A_COMMIT", 100)
        paths = [derivatives_archive(tmp_path / "a.csv", 900), derivatives_archive(tmp_path / "b.csv.gz", 1900)]
        seen: list[tuple[int, int]] = []
        import_trades(db, paths, watch=lambda done, rows: seen.append((done, rows)))
        assert seen == sorted(seen)
        assert len(seen) > 4
        assert seen[-1] == (sum(path.stat().st_size for path in paths), 2800)

    def test_a_failure_of_the_database_ends_the_import(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """It would be the same with every further file."""
        db.drop_tables()
        with pytest.raises(SharedDBError, match=r"run: python -m shared\.db init"):
            import_trades(db, [derivatives_archive(tmp_path / "a.csv", 5)])

    def test_no_workers_are_an_error(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """Somebody must do it."""
        with pytest.raises(InputError, match="use 1 or more"):
            import_trades(db, [derivatives_archive(tmp_path / "a.csv", 5)], workers=0)

    def test_bad_rows_that_cannot_be_told_are_an_error(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """Rather than rows that vanish without a word."""
        (tmp_path / "a.csv.rejected.jsonl").mkdir()
        report = import_trades(db, [written(tmp_path / "a.csv", DERIVATIVES_HEADER, ["bad"])])
        assert "is a folder" in str(report.failed[0].error)


# Run in the process of a command: small transactions, and a signal to itself in the middle of one.
SMALL_STEPS = """
from shared.db.operations import progress, trade_file
trade_file.LINES_A_COMMIT = 500
progress._INTERVAL = 0
"""
SIGNAL_IN_FOURTH_COMMIT = (
    SMALL_STEPS
    + """
import os, signal
from sqlalchemy import Engine, event
commits = []
@event.listens_for(Engine, "commit")
def _(connection):
    commits.append(connection)
    if len(commits) == 4:
        os.kill(os.getpid(), signal.{})
"""
)
NO_TQDM = "import sys; sys.modules['tqdm'] = None\n"


class TestImportCommand:
    """import-trades, in a process of its own."""

    @pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM"])
    def test_an_import_that_dies_in_the_middle_goes_on(
        self, lasting_settings: DatabaseSettings, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Killed or asked to end while it commits: run again, it leaves what one uninterrupted run leaves."""
        path = derivatives_archive(tmp_path / "a.csv.gz", 5000)
        died = run_command(lasting_settings, "import-trades", path, before=SIGNAL_IN_FOURTH_COMMIT.format(name))
        if name == "SIGKILL":
            assert died.returncode == -signal.SIGKILL, died.stderr
        else:
            assert died.returncode == 130
            assert died.stderr.startswith("shared.db: interrupted; ")
            assert died.stderr.endswith(" trades are stored, run the same command again to go on\n")
            assert "trades in 1 file" in died.stdout
        with DatabaseFactory(lasting_settings) as db:
            before = len(rows_of(db))
            assert 0 < before < 5000
            assert main(["import-trades", *on(lasting_settings), str(path), "--json"]) == 0
            report = json.loads(capsys.readouterr().out)
            assert (report["inserted"], report["skipped"]) == (5000 - before, before)
            after = rows_of(db)
        with DatabaseFactory(file_settings(tmp_path, "whole.db")) as db:
            import_trades(db, [path])
            assert after == rows_of(db)

    def test_several_files_at_once_are_all_there(
        self, postgresql_settings: DatabaseSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """With workers the rows are those of one after the other, overlaps and bad rows included."""
        paths = [
            derivatives_archive(tmp_path / "a.csv.gz", 2000),
            derivatives_archive(tmp_path / "b.csv.gz", 2000, first=1500),
            written(tmp_path / "c.csv", DERIVATIVES_HEADER, [archive_line(9999), "bad"]),
        ]
        arguments = ["import-trades", *on(postgresql_settings), *map(str, paths), "--workers", "2", "--json"]
        assert main(arguments) == 1
        report = json.loads(capsys.readouterr().out)
        assert (report["inserted"], report["skipped"], report["rejected"]) == (3501, 500, 1)
        assert [file["file"] for file in report["files"]] == [str(path) for path in paths]
        assert [file["inserted"] + file["skipped"] for file in report["files"]] == [2000, 2000, 1]
        assert (tmp_path / "c.csv.rejected.jsonl").exists()
        with DatabaseFactory(postgresql_settings) as db:
            assert len(rows_of(db)) == 3501

    def test_workers_end_when_asked_to(self, postgresql_settings: DatabaseSettings, tmp_path: Path) -> None:
        """Each after its transaction; the files they did not take are reported as not finished."""
        paths = [derivatives_archive(tmp_path / f"{number}.csv", 10, 10 * number) for number in range(3)]
        with DatabaseFactory(postgresql_settings) as db:
            report = import_trades(db, paths, workers=2, stop=lambda: True)
        assert [file.file for file in report.files] == list(map(str, paths))
        assert not report.finished or report.inserted == 30

    def test_a_failure_in_a_worker_is_told_in_one_line(
        self, postgresql_settings: DatabaseSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As a failure without workers is, and the remedy with it."""
        with DatabaseFactory(postgresql_settings) as db, db.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE public_trades RENAME COLUMN price TO other")
        paths = [str(derivatives_archive(tmp_path / f"{number}.csv", 10, 10 * number)) for number in range(2)]
        assert main(["import-trades", *on(postgresql_settings), *paths, "--workers", "2"]) == 1
        said = capsys.readouterr().err
        assert "price" in said
        assert said.endswith("run the same command again to go on\n")
        assert len(said.splitlines()) == 1

    def test_sqlite_has_one_writer_and_says_so(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The files are imported all the same, and without a terminal there is one line."""
        paths = [str(derivatives_archive(tmp_path / f"{number}.csv", 10, 10 * number)) for number in range(2)]
        assert main(["import-trades", *on(file_settings(tmp_path)), *paths, "--workers", "2"]) == 0
        told = capsys.readouterr()
        assert told.err == "SQLite has one writer at a time: the files were imported one after the other\n"
        assert told.out.startswith("20 trades in 2 files: 20 new, 0 already stored, 0 rows rejected;")
        assert told.out.splitlines()[1:] == [
            f"  {path}: 10 trades of BTCUSDT, 2025-03-10T10:00:00.{first}+00:00 to 2025-03-10T10:00:00.{last}+00:00"
            for path, first, last in zip(paths, ("054000", "071000"), ("070000", "087000"), strict=True)
        ]

    @pytest.mark.parametrize("library", ["", NO_TQDM], ids=["tqdm", "plain"])
    def test_a_terminal_shows_how_far_it_is(self, tmp_path: Path, library: str) -> None:
        """Rows, rows a second and the time left, with the progress library and without it."""
        path = derivatives_archive(tmp_path / "a.csv", 5000)
        shown, summary = self._on_a_terminal(
            command(file_settings(tmp_path), "import-trades", path, before=library + SMALL_STEPS)
        )
        assert "importing" in shown
        assert "rows/s" in shown
        assert "left" in shown
        assert summary.startswith("5,000 trades in 1 file: 5,000 new")

    @staticmethod
    def _on_a_terminal(arguments: Sequence[str]) -> tuple[str, str]:
        """What a command writes to a terminal's stderr, and to a pipe as stdout."""
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
            os.close(theirs)
            shown = b""
            while True:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # how a terminal says that the other side has hung up
                    break
            os.close(ours)
            assert process.stdout is not None
            summary = process.stdout.read()
        return shown.decode(), summary

    @pytest.mark.parametrize(
        ("lines", "code"), [([archive_line()], 0), ([archive_line(), "bad"], 1), (["bad"], 1), ([], 0)]
    )
    def test_the_exit_code_says_whether_every_row_was_taken(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], code: int
    ) -> None:
        """1 if any was rejected, and stderr says where the reasons are."""
        path = written(tmp_path / "a.csv", DERIVATIVES_HEADER, lines)
        assert main(["import-trades", "--db-name", file_settings(tmp_path).db_name, str(path)]) == code
        assert ("a.csv.rejected.jsonl" in capsys.readouterr().err) == (code == 1)

    def test_a_file_of_another_kind_fails_in_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Exit code 1, the file and the remedy on stderr, no traceback."""
        path = written(tmp_path / "a.csv", "open,close", ["1,2"])
        assert main(["import-trades", "--db-name", file_settings(tmp_path).db_name, str(path)]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"shared.db: {path} is not a trade archive")
        assert len(said.splitlines()) == 1

    def test_a_symbol_can_be_given(self, tmp_path: Path) -> None:
        """For spot archives with any name."""
        given = file_settings(tmp_path)
        path = spot_archive(tmp_path / "trades.csv", 5)
        arguments = ["import-trades", "--db-name", given.db_name, "--symbol", "AUSDT", "--category", "spot", str(path)]
        assert main(arguments) == 0
        with DatabaseFactory(given) as db:
            assert {row["symbol"] for row in rows_of(db)} == {"AUSDT"}


def odd_trades() -> Rows:
    """Trades that a careless format would change."""
    first = datetime(2025, 3, 10, tzinfo=UTC)
    values: Rows = [
        {"trade_id": "plain"},
        {"trade_id": "1"},
        {"trade_id": "=cmd|' /C calc'!A0"},
        {"trade_id": "+1"},
        {"trade_id": "-1"},
        {"trade_id": "@SUM(1)"},
        {"trade_id": "\t=1"},
        {"trade_id": " =1"},
        {"trade_id": "'=1"},
        {"trade_id": "'"},
        {"trade_id": "\uff1d1"},
        {"trade_id": 'a "quoted", one'},
        {"trade_id": "two\nlines\r\nor three"},
        {"trade_id": "", "price": Decimal("0.00000001"), "size": Decimal("123456.78901234")},
        {"trade_id": "zeros", "price": Decimal("1000000.00000000"), "size": Decimal(0)},
        {"trade_id": "micro", "local_ts": datetime(2025, 3, 10, 23, 59, 59, 999999, tzinfo=UTC)},
        {"trade_id": "\u5e01\u5b89"},
    ]
    return [
        trade_values(number, symbol="AUSDT", exchange_ts=first + timedelta(microseconds=number), **value)
        for number, value in enumerate(values)
    ]


class TestExport:
    """export trades and export executions, and the way back."""

    @pytest.mark.parametrize("kind", FORMATS)
    def test_exported_trades_import_to_equal_rows(self, db: DatabaseFactory, tmp_path: Path, kind: Format) -> None:
        """Times to the microsecond, numbers to the last digit, text that a spreadsheet would take for a formula."""
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create(odd_trades())
        before = rows_of(db)
        path = tmp_path / f"a.{kind}"
        assert export_trades(db, path, "AUSDT", kind=kind) == len(before)
        db.drop_tables()
        db.create_tables()
        report = import_trades(db, [path])
        assert report.rejected == 0
        assert rows_of(db) == before

    @pytest.mark.parametrize("kind", FORMATS)
    def test_exported_executions_read_back_as_equal_rows(
        self, db: DatabaseFactory, tmp_path: Path, kind: Format
    ) -> None:
        """Nothing told stays nothing told, and empty text empty text; raw_json comes back whole."""
        run = self._run_with_executions(db)
        before = rows_of(db, EXECUTIONS)
        path = tmp_path / f"a.{kind}"
        assert export_executions(db, path, run.run_id, run.user_id, kind=kind) == len(before)
        export = read_export(path)
        assert export.layout == EXECUTIONS
        with db.get_session() as session:
            session.query(PrivateExecution).delete()
            PrivateExecutionRepository(session, run.user_id).bulk_create(export)
        assert export.rejected == []
        assert rows_of(db, EXECUTIONS) == before

    def test_the_csv_of_executions_suits_spreadsheets_and_tax_tools(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """ISO times in UTC, plain digits, the fee's currency, and no cell that would run as a formula."""
        run = self._run_with_executions(db)
        path = tmp_path / "a.csv"
        export_executions(db, path, run.run_id, run.user_id)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        first = rows[0]
        assert first["exchange_ts"] == "2025-03-10T10:00:00.353000Z"
        assert (first["exec_price"], first["exec_qty"], first["exec_fee"]) == ("61234.5", "0.25", "-0.00000001")
        assert (first["fee_currency"], first["exec_type"], first["category"]) == ("USDT", "Trade", "linear")
        assert first["order_link_id"] == "'=HYPERLINK(1)"
        assert (rows[1]["exec_fee"], rows[1]["closed_pnl"], rows[1]["order_link_id"]) == ("", "", "")
        for row in rows:
            assert not any(cell.startswith(("=", "+", "@", "\t")) for cell in row.values())
            assert not any("E" in row[name] for name in ("exec_price", "exec_qty", "exec_fee", "closed_pnl"))

    def test_bounds_are_included(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """From the first to the last instant that is named."""
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create(trade_values(number) for number in range(10))
        start, end = trade_values(3)["exchange_ts"], trade_values(5)["exchange_ts"]
        assert export_trades(db, tmp_path / "a.csv", "BTCUSDT", start, end) == 3

    def test_a_day_on_the_command_line_means_all_of_it(self, tmp_path: Path) -> None:
        """Both `--from` and `--to`, in UTC."""
        given = file_settings(tmp_path)
        times = [
            datetime(2025, 3, 9, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(2025, 3, 10, tzinfo=UTC),
            datetime(2025, 3, 10, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(2025, 3, 11, tzinfo=UTC),
        ]
        with DatabaseFactory(given) as db, db.get_session() as session:
            PublicTradeRepository(session).bulk_create(
                trade_values(number, exchange_ts=time) for number, time in enumerate(times)
            )
        path = tmp_path / "a.jsonl"
        base = ["export", "trades", "--db-name", given.db_name, "--symbol", "BTCUSDT", "-o", str(path)]
        for bounds, expected in (
            (("2025-03-10", "2025-03-10"), [1, 2]),
            (("2025-03-10T00:00:00.000001", "2025-03-11"), [2, 3]),
            (("2025-03-09", "2025-03-10T00:00"), [0, 1]),
            (("2025-03-10T02:00+01:00", "2025-03-10T02:00:01+01:00"), []),
        ):
            assert main([*base, "--from", bounds[0], "--to", bounds[1]]) == 0
            written_ids = [json.loads(line)["trade_id"] for line in path.read_text().splitlines()]
            assert written_ids == [f"trade-{number}" for number in expected]

    def test_a_run_of_another_user_is_not_exported(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """It is not told apart from one that does not exist, and no file appears."""
        run = self._run_with_executions(db)
        with db.get_session() as session:
            other = stored(session, User(username="mallory")).user_id
        for run_id, user_id in ((run.run_id, other), ("no-such-run", run.user_id)):
            with pytest.raises(InputError, match=f"has no run '{run_id}'"):
                export_executions(db, tmp_path / "a.csv", run_id, user_id)
        assert not list(tmp_path.glob("a.csv*"))

    def test_an_export_is_there_whole_or_not_at_all(
        self, db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When it fails in the middle, the file of before is untouched and nothing else is left."""
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create(trade_values(number) for number in range(5000))
        path = tmp_path / "a.csv"
        path.write_text("before")

        def fail(done: int, rows: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export_trades(db, path, "BTCUSDT", watch=fail)
        assert path.read_text() == "before"
        assert not list(tmp_path.glob("*.part"))

    def test_an_export_is_for_its_owner_alone(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """It may hold somebody's trading."""
        export_trades(db, tmp_path / "a.csv", "BTCUSDT")
        assert (tmp_path / "a.csv").stat().st_mode & 0o777 == 0o600

    def test_how_far_it_is_can_be_watched(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """By the share of the time range, which needs no counting, up to the whole."""
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create(trade_values(number) for number in range(5000))
        seen: list[tuple[int, int]] = []
        export_trades(db, tmp_path / "a.csv", "BTCUSDT", watch=lambda done, rows: seen.append((done, rows)))
        assert seen == sorted(seen)
        assert len(seen) > 1
        assert seen[-1] == (WHOLE, 5000)

    def test_an_empty_range_gives_an_empty_file(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """With its header, which imports as no rows."""
        for kind in ("csv", "parquet"):
            assert export_trades(db, tmp_path / f"a.{kind}", "NOSUCH", kind=kind) == 0
            assert import_trades(db, [tmp_path / f"a.{kind}"]).finished

    def test_parquet_without_its_library_names_the_extra(
        self, db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And leaves no file."""
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(MissingExtraError, match=r"WHEEL\[frames\]"):
            export_trades(db, tmp_path / "a.parquet", "BTCUSDT", kind="parquet")
        assert not list(tmp_path.glob("a.parquet*"))

    def test_parquet_holds_exact_numbers_and_times(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """Other tools read decimals and UTC timestamps, not text or floats."""
        export_trades(db, tmp_path / "a.parquet", "BTCUSDT", kind="parquet")
        schema = pyarrow().parquet.read_schema(tmp_path / "a.parquet")
        assert str(schema.field("price").type) == "decimal128(20, 8)"
        assert str(schema.field("exchange_ts").type) == "timestamp[us, tz=UTC]"

    def test_rows_that_somebody_spoilt_are_given_back(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """An export edited by hand costs the rows that no longer read."""
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create(trade_values(number) for number in range(4))
        csv_path, json_path = tmp_path / "a.csv", tmp_path / "a.jsonl"
        export_trades(db, csv_path, "BTCUSDT")
        lines = csv_path.read_text().splitlines()
        lines[2] = lines[2].replace("65065.8", "much")
        lines[3] = lines[3].replace("Z,", ",")
        csv_path.write_text("\r\n".join([*lines, "x", ""]))
        export = read_export(csv_path)
        assert len(list(export)) == 2
        assert [(rejected.position, rejected.reason.partition(":")[0]) for rejected in export.rejected] == [
            (3, "price"),
            (4, "exchange_ts"),
            (6, "exchange_ts"),
        ]
        export_trades(db, json_path, "BTCUSDT", kind="jsonl")
        json_path.write_text(json_path.read_text().replace('"65065.8"', "65065.8", 1) + "[]\nnot json\n")
        export = read_export(json_path)
        assert len(list(export)) == 3
        assert [rejected.position for rejected in export.rejected] == [1, 5, 6]
        assert "float" in export.rejected[0].reason

    def test_an_export_of_executions_is_not_imported_as_trades(self, db: DatabaseFactory, tmp_path: Path) -> None:
        """They have an owner; the command says so."""
        run = self._run_with_executions(db)
        path = tmp_path / "a.csv"
        export_executions(db, path, run.run_id, run.user_id)
        report = import_trades(db, [path])
        assert "holds private_executions, not trades" in str(report.failed[0].error)

    def test_what_export_did_not_write_is_not_read_as_its_own(self, tmp_path: Path) -> None:
        """An archive of Bybit's has its own reader."""
        with pytest.raises(InputError, match="read_archive"):
            read_export(derivatives_archive(tmp_path / "a.csv", 1))

    @pytest.mark.parametrize(
        "arguments",
        [
            ["trades", "-o", "a.csv"],
            ["trades", "--symbol", "A", "--run", "r", "-o", "a.csv"],
            ["executions", "--run", "r", "-o", "a.csv"],
            ["executions", "--user", "u", "-o", "a.csv"],
            ["trades", "--symbol", "A", "-o", "a.txt"],
            ["trades", "--symbol", "A", "-o", "a.csv", "--from", "yesterday"],
            ["trades", "--symbol", "A"],
        ],
        ids=" ".join,
    )
    def test_arguments_that_do_not_fit_are_a_matter_of_usage(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit code 2, and what is wanted."""
        with pytest.raises(SystemExit) as ended:
            main(["export", *arguments])
        assert ended.value.code == 2
        assert "error:" in capsys.readouterr().err

    def test_the_command_says_what_it_wrote(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], lasting_settings: DatabaseSettings
    ) -> None:
        """For executions too, by run and user."""
        with DatabaseFactory(lasting_settings) as db:
            run = self._run_with_executions(db)
        path = tmp_path / "a.csv"
        arguments = ["--db-url", lasting_settings.get_database_url(), "--run", run.run_id, "--user", run.user_id]
        assert main(["export", "executions", *arguments, "-o", str(path)]) == 0
        assert capsys.readouterr().out.startswith(f"2 executions written to {path} in ")
        assert len(path.read_text().splitlines()) == 3

    @staticmethod
    def _run_with_executions(db: DatabaseFactory) -> Run:
        with db.get_session() as session:
            user = stored(session, User(username="alice"))
            account = stored(session, BybitAccount(user_id=user.user_id, account_name="main", environment="testnet"))
            strategy: Strategy = stored(session, new_strategy(account))
            run = stored(session, new_run(account, strategy))
            entry = execution_entry(orderLinkId="=HYPERLINK(1)", execFee="-0.00000001")
            rows = parse_executions(execution_message(entry), run.run_id, run.account_id).rows
            bare = {"exec_fee": None, "closed_pnl": None, "raw_json": None, "order_id": "", "order_link_id": None}
            when = rows[0]["exchange_ts"] + timedelta(seconds=1)
            rows.append(execution_values(run, 1, exchange_ts=when) | bare)
            PrivateExecutionRepository(session, user.user_id).bulk_create(rows)
            return run


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
instants = st.datetimes(datetime(2, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 # given a zone
amounts = st.decimals(-(10**11), 10**11, places=8)
documents = st.dictionaries(texts, st.none() | texts | st.integers() | st.booleans() | st.lists(texts), max_size=3)


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(FORMATS),
    rows=st.lists(
        st.tuples(
            *(instants, texts, st.sampled_from(["Buy", "Sell"]), amounts, amounts, st.none() | amounts),
            *(st.none() | amounts, texts, texts, st.none() | texts, texts, texts, st.none() | documents),
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_any_row_reads_back_equal(
    kind: Format, rows: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever a row may hold, in every format."""
    path = tmp_path_factory.mktemp("export") / "a"
    with writing(path, EXECUTIONS, kind) as write:
        write(rows)
    export = read_export(path)
    assert [tuple(row.values()) for row in export] == rows
    assert export.rejected == []
