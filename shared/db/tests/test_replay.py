from __future__ import annotations

import json
import os
import shutil
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import select

from shared.db import DatabaseFactory, InputError, PrivateExecution, PublicTrade, Recorder, Run, SpoolError
from shared.db.commands.cli import main
from shared.db.operations.replaying import replay
from shared.db.recording.row_text import RowText
from shared.db.recording.spool import Spool
from shared.db.tests.support import execution_values, in_threads, trade_values


def refused(db: DatabaseFactory, *rows: dict[str, object]) -> Path:
    """The dead letters of a recorder that was given these trades."""
    path = Path("letters.jsonl").absolute()
    with Recorder(db, PublicTrade, dead_letters=path) as recorder:
        recorder.add(rows)
    return path


def lines(path: Path) -> list[dict[str, object]]:
    """The letters in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_corrected_row_is_stored_and_the_others_stay(db: DatabaseFactory) -> None:
    """Exactly: every digit and microsecond; what is still wrong is in the file with its reason, as it was."""
    good = trade_values(7, price=Decimal("65065.12345678"))
    good["local_ts"] = good["local_ts"].replace(microsecond=123457)
    path = refused(db, good | {"size": 1.5}, trade_values(1, side="Hold"), trade_values(2))
    first, second = path.read_text().splitlines()
    path.write_text(first.replace('"size":1.5', '"size":"0.038"') + "\n" + second + "\n")
    report = replay(db, path)
    assert (report.inserted, report.skipped, report.rejected, report.unreadable) == (1, 0, 1, 0)
    with db.get_session() as session:
        row = session.scalars(select(PublicTrade).where(PublicTrade.trade_id == "trade-7")).one()
        assert {name: getattr(row, name) for name in good} == good
    (left,) = lines(path)
    before = json.loads(second)
    assert {name: left[name] for name in before if name != "noted_at"} == {
        name: before[name] for name in before if name != "noted_at"
    }
    assert not path.with_name("letters.jsonl.replaying").exists()


def test_replaying_again_changes_nothing(db: DatabaseFactory) -> None:
    """A row that is stored already counts as such, and the file is gone when nothing is left of it."""
    path = refused(db, trade_values(1, size=1.5))
    text = path.read_text().replace('"size":1.5', '"size":"1.5"')
    for inserted in (1, 0):
        path.write_text(text)
        report = replay(db, path)
        assert (report.inserted, report.skipped) == (inserted, 1 - inserted)
        assert not path.exists()


def test_an_execution_is_replayed_as_its_user_s(fleet: DatabaseFactory) -> None:
    """It must be his now: a foreign row is refused again, and only his own stored."""
    ann, bob = Run(run_id="run-ann", account_id="acc-ann"), Run(run_id="run-bob", account_id="acc-bob")
    with Recorder(fleet, PrivateExecution, user_id="ann", dead_letters="letters") as recorder:
        recorder.add([execution_values(bob, 1), execution_values(ann, 2, exec_fee=0.5)])
    path = Path("letters")
    path.write_text(path.read_text().replace('"exec_fee":0.5', '"exec_fee":"0.5"'))
    report = replay(fleet, path)
    assert (report.inserted, report.rejected) == (1, 1)
    assert [letter["user_id"] for letter in lines(path)] == ["ann"]
    with fleet.get_session() as session:
        stored = session.scalars(select(PrivateExecution).where(PrivateExecution.exec_id == "exec-2")).one()
        assert (stored.run_id, stored.exec_fee, stored.raw_json) == ("run-ann", Decimal("0.5"), {"execId": "exec-2"})


def test_lines_that_are_not_understood_stay(db: DatabaseFactory) -> None:
    """Byte for byte, one cut short at the file's end too."""
    path = refused(db, trade_values(1, size=1.5))
    strange = b'half a li\n{"table":"users","user_id":null,"row":{}}\n\xff\xfe'
    path.write_bytes(strange)
    report = replay(db, path)
    assert (report.inserted, report.rejected, report.unreadable) == (0, 0, 3)
    assert path.read_bytes() == strange + b"\n"


def test_an_interrupted_replay_goes_on(db: DatabaseFactory) -> None:
    """What a killed one left in FILE.replaying comes first, and what the recorder refused since then is kept."""
    path = refused(db, trade_values(1, size=1.5))
    taken = path.with_name("letters.jsonl.replaying")
    taken.write_text(path.read_text().replace('"size":1.5', '"size":"1.5"'))
    path.unlink()
    refused(db, trade_values(2, size=2.5))
    report = replay(db, path)
    assert (report.inserted, report.rejected) == (1, 1)
    assert [letter["row"]["size"] for letter in lines(path)] == [2.5]  # type: ignore[index] # a row
    assert not taken.exists()


def test_a_failing_database_loses_no_letter(tmp_path: Path) -> None:
    """The rows wait in FILE.replaying for the next replay."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db:
        db.create_tables()
        path = refused(db, trade_values(1, size=1.5))
        path.write_text(path.read_text().replace('"size":1.5', '"size":"1.5"'))
        db.drop_tables()
        with pytest.raises(Exception, match="no such table"):
            replay(db, path)
        db.create_tables()
        assert replay(db, path).inserted == 1


def test_a_recorder_may_use_the_file_meanwhile(tmp_path: Path) -> None:
    """No letter is lost between replays and a recorder that writes more of them."""
    path = tmp_path / "letters"
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db:
        db.create_tables()

        def work(number: int) -> None:
            if number == 0:
                with Recorder(db, PublicTrade, max_rows=1, max_seconds=0, dead_letters=path) as recorder:
                    for row in range(60):
                        recorder.add([trade_values(row, size=1.5)])
                        recorder.flush()
            else:
                for _ in range(10):
                    if path.exists():
                        replay(db, path)

        in_threads(2, work)
        replay(db, path)
    kept = {letter["row"]["trade_id"] for letter in lines(path)}  # type: ignore[index] # a row
    assert kept == {f"trade-{row}" for row in range(60)}


def test_the_command_reports_and_exits_with_1_if_rows_are_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words or as JSON; 0 when all are stored; a missing file is one line on stderr."""
    monkeypatch.setenv("GRIDBOT_DB_NAME", str(tmp_path / "grid_bot.db"))
    with DatabaseFactory() as db:
        db.create_tables()
        path = refused(db, trade_values(1, size=1.5))
    assert main(["replay", str(path)]) == 1
    assert capsys.readouterr().out == (f"{path}: 0 rows stored, 0 were already, 1 refused again, 0 not readable\n")
    path.write_text(path.read_text().replace('"size":1.5', '"size":"1.5"'))
    assert main(["replay", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"file": str(path), "inserted": 1, "skipped": 0, "rejected": 0, "unreadable": 0}
    ]
    assert main(["replay", str(path)]) == 1
    assert "is no file; name the dead letters of a recorder" in capsys.readouterr().err


def test_replaying_needs_a_file(db: DatabaseFactory) -> None:
    """A missing file, and a folder without rows, are named."""
    os.mkdir("folder")
    for wrong, said in (("missing", "missing is no file"), ("folder", "folder holds no rows")):
        with pytest.raises(InputError, match=said):
            replay(db, wrong)


def spooled(db: DatabaseFactory, count: int) -> Path:
    """A spool with trades in it, each in a record of its own, the last of which is refused."""
    folder = Path("spool").absolute()
    spool = Spool(folder, json.dumps({"table": "public_trades", "user_id": None}), limit=20_000)
    text = RowText(PublicTrade)
    for number in range(count):
        spool.append([(text.encoded([trade_values(number, size=1.5 if number == count - 1 else "1.5")]), 1)])
    spool.close()
    return folder


def test_a_whole_spool_is_stored(db: DatabaseFactory) -> None:
    """In order, without a recorder; nothing is left of it but what was refused."""
    folder = spooled(db, 40)
    assert len(list(folder.glob("*.rows"))) > 1
    report = replay(db, folder)
    assert (report.inserted, report.rejected, report.unreadable) == (39, 1, 0)
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "rejected.jsonl"]
    with db.get_session() as session:
        found = session.scalars(select(PublicTrade.trade_id).order_by(PublicTrade.id)).all()
        assert found == [f"trade-{number}" for number in range(39)]


def test_of_a_spool_only_what_was_not_written_is_stored(db: DatabaseFactory) -> None:
    """Rows that a recorder had written, and somebody deleted, do not come back."""
    folder = spooled(db, 40)
    spool = Spool(folder, json.dumps({"table": "public_trades", "user_id": None}), limit=20_000)
    spool.drop(spool.read(spool.start, 10)[-1].end)
    spool.close()
    report = replay(db, folder)
    assert (report.inserted, report.rejected, report.unreadable) == (29, 1, 0)


def test_of_a_damaged_spool_every_whole_row_is_stored(db: DatabaseFactory) -> None:
    """Wherever a byte is wrong: never a wrong row, and a recorder can begin on the folder again."""
    for place in (0, 40, 300, 1000, 2400):
        folder = spooled(db, 40)
        segment = min(folder.glob("*.rows"))
        text = bytearray(segment.read_bytes())
        text[place] ^= 1
        segment.write_bytes(text)
        with pytest.raises(SpoolError, match=r"is damaged .* python -m shared.db replay"):
            Recorder(db, PublicTrade, spool=folder)
        report = replay(db, folder)
        rows = report.inserted + report.skipped + report.rejected
        # The opening has no row.
        assert rows == (40 if place < 120 else 39)
        assert report.unreadable == 1
        assert (folder / "0000000001.damaged").read_bytes() == text
        with Recorder(db, PublicTrade, spool=folder) as recorder:
            assert recorder.stats().recovered == 0
        shutil.rmtree(folder)
    with db.get_session() as session:
        assert len(session.scalars(select(PublicTrade).where(PublicTrade.size == Decimal("1.5"))).all()) == 39


def test_a_spool_that_is_in_use_is_left_alone(db: DatabaseFactory) -> None:
    """Its recorder writes it."""
    folder = spooled(db, 3)
    with Recorder(db, PublicTrade, spool=folder) as recorder:
        recorder.flush()
        with pytest.raises(SpoolError, match="another recorder has this spool"):
            replay(db, folder)


def test_a_file_that_cannot_be_moved_is_an_input_error(db: DatabaseFactory) -> None:
    """A folder in the way is named, and the letters stay."""
    path = refused(db, trade_values(1, size=1.5))
    before = path.read_text()
    path.with_name("letters.jsonl.replaying").mkdir()
    with pytest.raises(InputError, match=r"replaying: Is a directory; nothing is lost"):
        replay(db, path)
    assert path.read_text() == before
