"""Children of a process that uses its database: forked while it is idle or in the midst of queries, or started anew."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from sqlalchemy import URL, Engine, create_engine, literal, select

from benchmarks.fault_bench.clients import batch
from benchmarks.fault_bench.figures import Figure
from benchmarks.fault_bench.ground import Ground
from shared.db import DatabaseFactory, PublicTrade
from shared.db.bulk import bulk_create
from shared.db.errors import ForkError

_TRADES = 500
# Of the short form: new processes take a second or two each to start.
_LEFT_OUT = (("spawn", "SQLite"), ("forkserver", "PostgreSQL"))
Answers = Counter[str]
Ask = Callable[[str, int], tuple[Any, ...]]


class Size(NamedTuple):
    """How many children, and how many queries each."""

    children: int
    queries: int

    def __str__(self) -> str:
        return f"{self.children} children x {self.queries} queries"


def forks(ground: Ground) -> list[Figure]:
    """Four ways to start four children, each of which asks 300 questions while the parent goes on asking."""
    figures = []
    size = Size(children=ground.of(4, 2), queries=ground.of(300, 60))
    for name, url in ground.new_databases():
        with DatabaseFactory(url) as db:
            with db.get_session() as session:
                bulk_create(session, PublicTrade, batch("FORK", 0, _TRADES))
            for mode, method, busy in (
                ("fork, parent idle", "fork", False),
                ("fork, parent querying", "fork", True),
                ("spawn", "spawn", True),
                ("forkserver", "forkserver", True),
            ):
                if ground.short and (method, name) in _LEFT_OUT:
                    continue
                figures.append(_figure(name, mode, _in_children(db, method, size, busy=busy), size))
    figures.append(_control(ground.new_postgresql(), size))
    return figures


def _figure(name: str, mode: str, answers: Answers, size: Size) -> Figure:
    """On SQLite a child of a parent in the midst of a session is refused, by name; it is never answered wrongly."""
    refused_by_design = name == "SQLite" and mode == "fork, parent querying"
    total = size.children * size.queries
    right = answers["right"] + (answers["refused"] if refused_by_design else 0)
    return Figure(
        f"{mode}, {name}, {size}",
        "0 wrong, parent alive" + (", or a ForkError" if refused_by_design else ""),
        _told(answers),
        right == total and answers["parent right"] > 0 and answers["parent wrong"] == 0,
    )


def _told(answers: Answers) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(answers.items()))


def ask_factory(db: DatabaseFactory) -> Ask:
    """A question through the library."""

    def ask(token: str, number: int) -> tuple[Any, ...]:
        with db.get_session(read_only=True) as session:
            return tuple(session.execute(_question(token, number)).one())

    return ask


def _question(token: str, number: int) -> Any:
    return select(literal(token), PublicTrade.size).where(PublicTrade.trade_id == f"0-{number}")


def _in_children(db: DatabaseFactory, method: str, size: Size, *, busy: bool) -> Answers:
    context: Any = multiprocessing.get_context(method)
    ask = ask_factory(db)
    ask("warm", 0)
    given: Any = db if method == "fork" else db.settings.url  # engines do not travel: a new process makes its own
    answers: Answers = Counter()
    with _asking(ask, answers) if busy else _asking_afterwards(ask, answers, size.queries):
        answers += _collect(_begin(context, _child, given, size), size.queries, 60)
    return answers


def _begin(context: Any, work: Callable[..., None], given: Any, size: Size) -> list[tuple[Any, Connection]]:
    children = []
    for number in range(size.children):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(given, number, size.queries, sender), daemon=True)
        process.start()
        sender.close()
        children.append((process, receiver))
    return children


def _collect(children: list[tuple[Any, Connection]], count: int, patience: float) -> Answers:
    deadline = time.monotonic() + patience
    answers: Answers = Counter()
    for process, receiver in children:
        try:
            answered = wait([receiver], max(0.0, deadline - time.monotonic()))
            answers += receiver.recv() if answered else Counter({"hung": count})
        except EOFError:
            answers["died"] += count
        process.kill()
        process.join()
    return answers


def _child(given: DatabaseFactory | URL, number: int, count: int, sender: Connection) -> None:
    with DatabaseFactory(given) if isinstance(given, URL) else given as db:
        sender.send(_answers(ask_factory(db), f"child {number}", count))


def _answers(ask: Ask, who: str, count: int) -> Answers:
    answers: Answers = Counter()
    for query in range(count):
        token, number = f"{who}, question {query}", query % _TRADES
        try:
            answer = ask(token, number)
        except ForkError:
            answers["refused"] += 1
        except Exception as error:  # noqa: BLE001 # whatever comes in place of an answer is counted
            answers[f"failed with {type(error).__name__}"] += 1
        else:
            answers["right" if answer == (token, number + 1) else "WRONG"] += 1
    return answers


@contextmanager
def _asking(ask: Ask, answers: Answers) -> Iterator[None]:
    """Two threads of this process ask on and on."""
    over = threading.Event()
    found: list[Answers] = []

    def run(number: int) -> None:
        mine: Answers = Counter()
        while not over.is_set():
            mine += _answers(ask, f"parent {number}", 5)
            time.sleep(0.05)  # the children need the processors too
        found.append(mine)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    _count_parent(sum(found, Counter()), answers)


@contextmanager
def _asking_afterwards(ask: Ask, answers: Answers, count: int) -> Iterator[None]:
    yield
    _count_parent(_answers(ask, "parent", count), answers)


def _count_parent(found: Answers, answers: Answers) -> None:
    answers["parent right"] = found.pop("right", 0)
    if found:
        answers["parent wrong"] = found.total()


def _control(url: URL, size: Size) -> Figure:
    """The same with a stock engine, whose one connection all children inherit."""
    with DatabaseFactory(url) as db, db.get_session() as session:
        bulk_create(session, PublicTrade, batch("FORK", 0, _TRADES))
    engine = create_engine(url, pool_size=1, max_overflow=0)
    _ask_engine(engine)("warm", 0)
    context: Any = multiprocessing.get_context("fork")
    answers = _collect(_begin(context, _stock_child, engine, size), size.queries, 5)
    engine.dispose(close=False)
    return Figure(
        f"control: a stock engine inherited by fork, PostgreSQL, {size}",
        "wrong or failed answers",
        _told(answers),
        answers["right"] < size.children * size.queries,
        control=True,
    )


def _ask_engine(engine: Engine) -> Ask:
    def ask(token: str, number: int) -> tuple[Any, ...]:
        with engine.connect() as connection:
            return tuple(connection.execute(_question(token, number)).one())

    return ask


def _stock_child(engine: Engine, number: int, count: int, sender: Connection) -> None:
    logging.disable()  # the pool would print each error that is counted here
    sender.send(_answers(_ask_engine(engine), f"child {number}", count))
