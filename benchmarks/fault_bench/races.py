"""Two processes that start the same run at the same moment."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import URL, create_engine, func, select, text, update
from sqlalchemy.orm import Session

from benchmarks.fault_bench.clients import finish, open_counters, start
from benchmarks.fault_bench.figures import Figure
from benchmarks.fault_bench.ground import Ground
from shared.db import DatabaseFactory, Run, RunRepository

_PROCESSES = 2
Start = Callable[[Session, Run], object]


def races(ground: Ground) -> list[Figure]:
    """Each round has a strategy of its own, and both processes start a run of it."""
    rounds = ground.of(200, 20)
    figures = [_started_together(name, url, rounds) for name, url in ground.new_databases()]
    return [*figures, _control(ground.new_postgresql(), rounds)]


def _started_together(name: str, url: URL, rounds: int) -> Figure:
    problems, right = _race(url, rounds, lambda session, run: RunRepository(session, "bench").start(run))
    return Figure(
        f"{rounds} runs started by {_PROCESSES} processes at once, {name}",
        f"{rounds} right: both stored, the later one running, no error",
        f"{right} of {rounds}" + "".join(f", {problem}" for problem in problems),
        right == rounds and not problems,
    )


def _control(url: URL, rounds: int) -> Figure:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX uq_runs_running_strategy_id_run_type"))
    engine.dispose()
    problems, right = _race(url, rounds, _by_hand)
    return Figure(
        f"control: the same by hand, without the rule of the schema, PostgreSQL, {rounds} runs",
        "two running of some",
        f"two running of {rounds - right} of {rounds}" + "".join(f", {problem}" for problem in problems),
        right < rounds,
        control=True,
    )


def _by_hand(session: Session, run: Run) -> None:
    """Close what is running, then start: nothing keeps another process from doing both in between."""
    running = (Run.strategy_id == run.strategy_id, Run.status == "running")
    session.execute(update(Run).where(*running).values(status="failed", end_ts=datetime.now(UTC)))
    session.add(run)


def _race(url: URL, rounds: int, begin: Start) -> tuple[list[str], int]:
    """What went wrong with the processes, and in how many rounds one run is running and the other one ended."""
    strategies = [f"s{number}" for number in range(rounds)]
    open_counters(url, strategies)
    together = multiprocessing.get_context("fork").Barrier(_PROCESSES)
    processes = [start(_start_each, url, strategies, together, begin) for _ in range(_PROCESSES)]
    problems = finish(processes, 600)
    with DatabaseFactory(url) as db, db.get_session(read_only=True) as session:
        ended = func.count(Run.end_ts)
        found = session.execute(select(func.count(), ended).select_from(Run).group_by(Run.strategy_id)).all()
    return problems, sum((both, over) == (_PROCESSES, _PROCESSES - 1) for both, over in found)


def _start_each(url: URL, strategies: list[str], together: Any, begin: Start) -> None:
    with DatabaseFactory(url) as db:
        for strategy in strategies:
            together.wait(60)
            with db.get_session() as session:
                begin(session, Run(user_id="bench", account_id="bench", strategy_id=strategy, run_type="live"))
