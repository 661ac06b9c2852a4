"""JSON files of the SQLite bot come in once, with what is bad in them kept to be corrected, on every database."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from shared.db import DatabaseFactory, User
from shared.db.commands.cli import main as command_of_db
from shared.fleet import Bot, Signal, SignalRepository, Trade
from shared.fleet.__main__ import main

SIGNALS = (
    # The example of the SQLite bot's own document.
    {
        "id": 1,
        "timestamp": "2025-05-19T12:00:00.123456",
        "symbol": "BTCUSD",
        "price": 50000.00,
        "final_signal": "BUY",
        "final_confidence": 0.85,
        "aggregation_method": "weighted_average",
        "strategies": {"sentiment": {"signal": "BUY", "confidence": 0.9}},
        "test_mode": False,
        "bot_version": "1.0.0",
    },
    {
        "id": 2,
        "timestamp": "2025-05-19T12:00:00Z",
        "symbol": "TESTUSD",
        "price": 1,
        "final_signal": "HOLD",
        "final_confidence": 0,
    },
    {
        "id": 3,
        "timestamp": "2025-05-19T12:00:00Z",
        "symbol": "BTCUSD",
        "price": 1,
        "final_signal": "BUY",
        "final_confidence": 1.7,
    },
)
FILL = {"timestamp": "2025-05-19T12:00:01", "symbol": "PEPE", "action": "BUY", "amount": "1000.00000001", "price": 0.1}


def written(path: Path, told: Any) -> str:
    """A file of JSON."""
    path.write_text(told if isinstance(told, str) else json.dumps(told))
    return str(path)


@pytest.fixture(params=["file", "postgresql", "policies"])
def at(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The URL of a database with a bot of each of two users, and its factory."""
    if request.param == "policies":
        policed = request.getfixturevalue("policed_db")
        url = policed.engine.url
        monkeypatch.setenv("GRIDBOT_DB_TENANT_ROLE", policed.settings.tenant_role)
    else:
        url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    where = f"sqlite:///{tmp_path / 'fleet.db'}" if url is None else url.render_as_string(hide_password=False)
    with DatabaseFactory(where) as db:
        db.create_tables()
        with db.get_session() as session:
            session.add_all(User(user_id=name, username=name) for name in ("ann", "bob"))
            session.flush()
            session.add_all(Bot(bot_id=f"bot-{name}", user_id=name, name="grid") for name in ("ann", "bob"))
        yield where, db


def test_records_come_in_once_and_bad_ones_are_corrected_and_replayed(
    at: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exact, attributed, each user's own; tagged by the rules that are given, and again nothing is new."""
    url, db = at
    trades = [FILL, FILL, FILL | {"signal_id": 1}, FILL | {"signal_id": 3}, FILL | {"mood": "good"}, "half a rec"]
    file = written(tmp_path / "all.json", {"trades": trades, "signals": SIGNALS})
    command = ["import-json", file, "--bot", "grid", "--db-url", url]
    ann = [*command, "--user", "ann", "--test-rule", "test-symbol", "--test-rule", "amount>5000"]
    assert main(ann) == 1
    printed = capsys.readouterr().out
    assert "signals: 2 new, 0 already stored, 1 rejected; 1 tagged" in printed
    assert "trades: 3 new, 0 already stored, 3 rejected; 0 tagged" in printed
    with db.get_session(user_id="ann") as session:
        (first,) = SignalRepository(session).get_signals()
        assert first.ts.isoformat() == "2025-05-19T12:00:00.123456+00:00"
        assert (first.price, first.final_confidence) == (Decimal(50000), Decimal("0.85"))
        assert first.strategies == SIGNALS[0]["strategies"]
        assert [(one.side, one.quantity, one.status) for one in first.trades] == [
            ("Buy", Decimal("1000.00000001"), "filled")
        ]
        assert session.scalars(select(Signal.symbol).where(Signal.test_mode)).all() == ["TESTUSD"]
    kept = Path(f"{file}.rejected.jsonl")
    before = kept.read_text()
    told = {(said["table"], said["position"]): said["reason"] for said in map(json.loads, before.splitlines())}
    assert "signal_id" in told["bot_trades", 3]
    assert "no column 'mood'" in told["bot_trades", 4]
    assert "no column 'no_object'" in told["bot_trades", 5]
    assert "final_confidence" in told["signals", 2]
    assert main(ann) == 1
    assert "trades: 0 new, 3 already stored, 3 rejected" in capsys.readouterr().out
    assert kept.read_text() == before
    kept.write_text(before.replace("1.7", "0.7").replace('"mood":"good"', '"pnl":"-0.00000001"'))
    assert main(ann) == 1, "the correction is there, and is not lost to a second run of the first file"
    assert "0.7" in kept.read_text()
    again = ["replay", str(kept), "--db-url", url]
    assert command_of_db(again) == 1
    assert "3 rows stored, 0 were already, 1 refused again" in capsys.readouterr().out
    (left,) = map(json.loads, kept.read_text().splitlines())
    left["row"] |= {"symbol": "PEPE", "side": "Buy", "quantity": "1", "ts": "2025-05-19T12:00:00Z"}
    del left["row"]["no_object"]
    kept.write_text(json.dumps(left))
    assert command_of_db(again) == 0
    assert not kept.exists()
    assert main([*command, "--user", "bob"]) == 1, "their ids are the bot's own"
    with db.get_session(user_id="bob") as session:
        assert set(session.scalars(select(Trade.bot_id))) == {"bot-bob"}
        assert not session.scalars(select(Signal.symbol).where(Signal.test_mode)).all(), "no rule by default"


@pytest.mark.parametrize(
    ("told", "more", "words"),
    [
        ('[{"id": 1},\n {"id": é]', [], "broken at byte 20"),
        ([FILL], [], "add --as"),
        ([FILL], ["--as", "trades", "--bot", "other"], "no bot called 'other'"),
        ([FILL], ["--as", "trades", "--test-rule", "large"], "is no rule"),
        ({"orders": 1}, ["--as", "trades"], "rejected"),
        ([FILL | {"amount": "NaN"}], ["--as", "trades", "--test-rule", "large-amount"], "rejected"),
        ([{"symbol": "X"}], ["--as", "trades"], "rejected"),
        ('[{"amount": 1e99999999999999999999}]', ["--as", "trades"], "rejected"),
        (f'[{{"amount": {"9" * 5000}}}]', ["--as", "trades"], "a number too long"),
        ("[" * 100_000, ["--as", "trades"], "nested too deep"),
        ([{"strategies": json.loads("[" * 400 + "]" * 400)}], ["--as", "signals"], "rejected"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    told: Any, more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the remedy, and nothing is stored."""
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    with DatabaseFactory(url) as db:
        db.create_tables()
        with db.get_session() as session:
            session.add(User(user_id="ann", username="ann"))
            session.flush()
            session.add(Bot(user_id="ann", name="grid"))
    file = written(tmp_path / "x.json", told)
    command = ["import-json", file, "--user", "ann", "--bot", "grid", "--db-url", url, *more]
    assert main(command) == 1
    assert words in capsys.readouterr().err
    with DatabaseFactory(url) as db, db.get_session() as session:
        assert session.scalars(select(Trade)).all() == []
