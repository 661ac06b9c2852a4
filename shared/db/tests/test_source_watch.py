"""A recorder says when it records trades among stored ones whose ids cannot be compared with them."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest

from shared.db import DatabaseFactory, PublicTrade, PublicTradeRepository, Recorder
from shared.db.recording import source_watch
from shared.db.tests.support import trade_values

START = datetime(2025, 5, 19, tzinfo=UTC)


def trades(kind: str, first: int = 0) -> list[dict[str, object]]:
    """Ten trades, a second apart, with ids of a source."""
    return [
        trade_values(
            number,
            trade_id=kind.format(number),
            exchange_ts=START + timedelta(seconds=first + number),
            local_ts=START,
        )
        for number in range(10)
    ]


SPOT, LINEAR = "22900000000123450{:02}", "33f361aa-0add-5c7b-a2e7-9679810944{:02}"


def test_spot_and_linear_under_one_symbol_are_told_once(
    db: DatabaseFactory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are kept all the same; the log names the symbol and the remedy."""
    caplog.set_level(logging.WARNING, "shared.db")
    monkeypatch.setattr(source_watch, "_PAUSE", 0)
    with db.get_session() as session:
        PublicTradeRepository(session).bulk_create(trades(SPOT))
    with Recorder(db, PublicTrade) as recorder:
        for row in trades(LINEAR):
            recorder.add([row])
            recorder.flush(30)
        assert recorder.stats().rejected == 0
    said = [record.getMessage() for record in caplog.records if "counted twice" in record.getMessage()]
    assert len(said) == 1
    assert "BTCUSDT.SPOT" in said[0]
    assert "a live spot stream" in said[0]


def test_both_in_one_message_are_told(db: DatabaseFactory, caplog: pytest.LogCaptureFixture) -> None:
    """The database has seen neither."""
    with Recorder(db, PublicTrade) as recorder:
        recorder.add([*trades(SPOT), *trades(LINEAR)])
        recorder.flush(30)
    assert "counted twice" in caplog.text


def test_one_source_is_no_news(db: DatabaseFactory, caplog: pytest.LogCaptureFixture) -> None:
    """Seen before, seen again, and one source after the other in time."""
    with Recorder(db, PublicTrade) as recorder:
        for rows in (trades(LINEAR), trades(LINEAR), trades(SPOT, first=100)):
            recorder.add(rows)
            recorder.flush(30)
    assert "counted twice" not in caplog.text
