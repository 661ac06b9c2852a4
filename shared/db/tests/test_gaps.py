"""What is stored, and what is missing: the same on every database, by walking the index."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, text
from sqlalchemy.orm import Session

from shared.db import (
    DatabaseFactory,
    Gap,
    InvalidValueError,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    RunCoverage,
    TenantScopeError,
)
from shared.db.commands.cli import main
from shared.db.tests.support import trade_values, two_runs, with_and_without_policies

START = datetime(2025, 5, 19, tzinfo=UTC)
FILLS = datetime(2025, 5, 3, 11, 7, tzinfo=UTC)
SECOND = timedelta(seconds=1)

instants = st.builds(
    lambda origin, micros: origin + timedelta(microseconds=micros),
    st.sampled_from([START, datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), datetime(1, 1, 2, 1, tzinfo=UTC)]),
    st.integers(-3_000_000, 3_000_000) | st.sampled_from([-1, 0, 1, 999_999, 1_000_000, -999_600]),
)


def expected_gaps(times: list[datetime], seconds: float, start: datetime | None, end: datetime | None) -> list[Gap]:
    """Gaps by Python's own arithmetic."""
    inside = sorted(when for when in times if (start is None or when >= start) and (end is None or when <= end))
    marks = [*([start] if start else []), *inside, *([end] if end else [])]
    pairs = pairwise(marks)
    return [Gap(one, other) for one, other in pairs if (other - one) / timedelta(microseconds=1) > seconds * 1e6]


def test_gaps_are_those_counted_by_hand(db: DatabaseFactory) -> None:
    """To the microsecond, on both sides of 1970, with and without bounds."""

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(instants, max_size=8),
        st.sampled_from([0, 0.000001, 0.5, 1, 2.5, 86_400]),
        st.none() | instants,
        st.none() | instants,
    )
    def check(times: list[datetime], seconds: float, start: datetime | None, end: datetime | None) -> None:
        if start is not None and end is not None and start > end:
            start, end = end, start
        with db.get_session() as session:
            session.execute(delete(PublicTrade))
            session.add_all(PublicTrade(**trade_values(n, exchange_ts=when)) for n, when in enumerate(times))
            found = list(PublicTradeRepository(session).gaps("BTCUSDT", seconds, start, end))
            assert found == expected_gaps(times, seconds, start, end)

    check()


def test_a_gap_tells_how_long_it_is(session: Session) -> None:
    """From its first to its last instant; other symbols' trades do not fill it."""
    for second, symbol in ((0, "BTCUSDT"), (30, "ETHUSDT"), (90, "BTCUSDT")):
        session.add(PublicTrade(**trade_values(second, symbol=symbol, exchange_ts=START + second * SECOND)))
    (gap,) = PublicTradeRepository(session).gaps("BTCUSDT", 60)
    assert gap == Gap(START, START + 90 * SECOND)
    assert gap.length == 90 * SECOND
    assert list(PublicTradeRepository(session).gaps("XRPUSDT", 60)) == []
    assert list(PublicTradeRepository(session).gaps("XRPUSDT", 60, START, START + 61 * SECOND)) == [
        Gap(START, START + 61 * SECOND)
    ]


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "60", None, True])
def test_what_is_no_number_of_seconds_is_refused(session: Session, seconds: Any) -> None:
    """At once, not when the first gap is asked for."""
    with pytest.raises(InvalidValueError, match="a gap is longer than a number of seconds"):
        PublicTradeRepository(session).gaps("BTCUSDT", seconds)


def test_the_coverage_of_runs_is_the_user_s_own(db: DatabaseFactory) -> None:
    """First, last and count of each run, also of one without executions; another user's run is not there."""
    two_runs(db)
    last = FILLS + timedelta(milliseconds=19)
    for _ in with_and_without_policies(db):
        with db.get_session(user_id="ann") as session:
            repository = PrivateExecutionRepository(session)
            assert repository.coverage() == [RunCoverage("run-ann", FILLS, last, 20)]
            assert repository.coverage("run-ann") == repository.coverage()
            assert repository.coverage("run-bob") == []
            assert list(repository.gaps("run-bob", 0)) == []
            assert len(list(repository.gaps("run-ann", 0))) == 19
            assert len(list(repository.gaps("run-ann", 0.001, symbol="ETHUSDT"))) == 4
    with db.get_session() as session:
        with pytest.raises(TenantScopeError):
            PrivateExecutionRepository(session).coverage()
        both = PrivateExecutionRepository.across_users(session).coverage()
        assert {each.run_id for each in both} == {"run-ann", "run-bob"}
        assert PrivateExecutionRepository(session, user_id="bob").coverage()[0].count == 20
        for row in session.execute(text("SELECT id FROM private_executions")).all():
            session.execute(text("DELETE FROM private_executions WHERE id = :id"), {"id": row.id})
        assert PrivateExecutionRepository(session, user_id="bob").coverage() == [RunCoverage("run-bob", None, None, 0)]


def plan_of(session: Session, ask: Callable[[], Any]) -> str:
    """How the database answers the last statement of `ask`."""
    connection = session.connection()
    seen: list[tuple[str, Any]] = []

    def note(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        seen.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    ask()
    event.remove(connection, "before_cursor_execute", note)
    statement, parameters = seen[-1]
    name = connection.dialect.name
    if name == "postgresql":
        # A table of this size is faster read than looked up in.
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
    explain = "EXPLAIN QUERY PLAN" if name == "sqlite" else "EXPLAIN"
    rows = connection.exec_driver_sql(f"{explain} {statement}", parameters)
    return "\n".join(str(row) for row in rows)


def test_gaps_and_coverage_walk_the_index(db: DatabaseFactory) -> None:
    """In the index's own order, without sorting the trades and without reading the table."""
    two_runs(db)
    with db.get_session() as session:
        PublicTradeRepository(session).bulk_create(map(trade_values, range(2_000)))
    with db.get_session() as session:
        if db.engine.dialect.name == "postgresql":
            session.execute(text("ANALYZE"))
        trades = PublicTradeRepository(session)
        plan = plan_of(session, lambda: list(trades.gaps("BTCUSDT", 60, START, START + 2 * SECOND)))
        assert "symbol_exchange_ts_trade_id" in plan or "INDEX sqlite_autoindex_public_trades" in plan
        # What is sorted is the few gaps, by their end.
        assert any(words in plan for words in ("Only", "COVERING", "Using index"))
        executions = PrivateExecutionRepository(session, user_id="ann")
        plan = plan_of(session, lambda: executions.coverage("run-ann"))
        assert "uq_private_executions_run_id_exec_id" in plan or "INDEX sqlite_autoindex_private_executions" in plan


def test_the_command_tells_what_is_stored(busy_fleet: DatabaseFactory, capsys: pytest.CaptureFixture[str]) -> None:
    """A table for people, JSON for machines; trades by symbol, executions by the user's run."""
    url = ["--db-url", busy_fleet.settings.get_database_url()]
    assert main(["coverage", *url]) == 0
    assert capsys.readouterr().out == "nothing is stored\n"
    with busy_fleet.get_session() as session:
        for number, symbol in enumerate(("BTCUSDT", "BTCUSDT", "ETHUSDT")):
            session.add(PublicTrade(**trade_values(symbol=symbol, exchange_ts=START + 90 * number * SECOND)))
    assert main(["coverage", *url, "--gaps", "60"]) == 0
    assert capsys.readouterr().out == (
        "symbol   first                      last                       count\n"
        "BTCUSDT  2025-05-19T00:00:00+00:00  2025-05-19T00:01:30+00:00  2\n"
        "ETHUSDT  2025-05-19T00:03:00+00:00  2025-05-19T00:03:00+00:00  1\n"
        "BTCUSDT: 1 gap\n"
        "  2025-05-19T00:00:00+00:00  2025-05-19T00:01:30+00:00  90.000000 s\n"
        "ETHUSDT: 0 gaps\n"
    )
    assert main(["coverage", *url, "--symbol", "ETHUSDT", "--gaps", "60", "--from", "2025-05-19", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert [gap["seconds"] for gap in told["gaps"]] == [180]
    assert main(["coverage", *url, "--user", "ann", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["run_id"], told["count"]) == ("run-ann", 1)
    assert main(["coverage", *url, "--user", "ann", "--run", "run-bob"]) == 1
    assert "user 'ann' has no run 'run-bob'" in capsys.readouterr().err
    assert main(["coverage", *url, "--symbol", "XRPUSDT"]) == 1
    assert "there is no trade of 'XRPUSDT'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--run", "r"], ["--user", "u", "--symbol", "BTCUSDT"], ["--from", "2025-05-19"], ["--gaps", "many"]],
)
def test_arguments_that_do_not_fit_are_a_usage_error(arguments: list[str]) -> None:
    """Before anything is opened."""
    with pytest.raises(SystemExit, match="2"):
        main(["coverage", *arguments])
