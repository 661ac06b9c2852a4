"""A server that accepts and never answers, and connections that a failover left at a read-only server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import URL, Engine, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from benchmarks.fault_bench.clients import batch, stored_rows
from benchmarks.fault_bench.figures import Figure
from benchmarks.fault_bench.ground import Ground
from shared.db import DatabaseFactory, PublicTrade, Recorder, TransactionAbandonedError, User

_ROWS = 40
_TELLS_WITHIN = 25.0  # 15 s of silence, and a look every 5
_ANSWERS_WITHIN = 15.0  # 3 s until the task is cancelled, and 10 for its transaction
_WRITERS = 8


def silence(ground: Ground) -> list[Figure]:
    """The server is stopped in the midst of its work (SIGSTOP): sockets stay open, and nothing is answered."""
    return [*_silent(ground), *_failed_over(ground)]


def _silent(ground: Ground) -> list[Figure]:
    url = ground.new_postgresql()
    with DatabaseFactory(url) as db, Recorder(db, PublicTrade, max_rows=1) as recorder:
        with db.get_session() as one, db.get_session() as other:  # a connection for the recorder, and one for the task
            one.execute(text("SELECT 1"))
            other.execute(text("SELECT 1"))
        recorder.add(batch("SILENT", 0, _ROWS))
        recorder.flush(30)
        engine = create_engine(url)
        engine.connect().close()
        with ground.server.silent():
            began = time.monotonic()
            recorder.add(batch("SILENT", 1, _ROWS))
            stock = threading.Thread(target=_stock_question, args=(engine,), daemon=True)
            stock.start()
            answer = asyncio.run(_cancelled(db))
            answered = time.monotonic() - began
            while recorder.stats().away_since is None and time.monotonic() - began < _TELLS_WITHIN:
                time.sleep(0.1)  # what is measured
            told = time.monotonic() - began
            stats = recorder.stats()
            still_waits = stock.is_alive()
        recorder.close(60)
        stock.join(60)
        engine.dispose()
        db.close()
        _wait_until(lambda: db.open_sessions == 0)
        rows = len(stored_rows(db))
        with db.get_session(read_only=True) as session:
            undone = session.get(User, "cancelled") is None
    what = "a server that accepts and never answers"
    return [
        Figure(
            f"{what}: a recorder tells, and loses nothing",
            f"within {_TELLS_WITHIN:.0f} s, {2 * _ROWS} rows",
            f"after {told:.1f} s, {stats.failures} failures until then; {rows} rows stored",
            stats.away_since is not None and rows == 2 * _ROWS,
        ),
        Figure(
            f"{what}: a task that is cancelled after 3 s",
            f"its answer within {_ANSWERS_WITHIN:.0f} s, and what is said is true",
            f"{type(answer).__name__} after {answered:.1f} s, {'undone' if undone else 'stored'}",
            isinstance(answer, TransactionAbandonedError) and answered < _ANSWERS_WITHIN and undone,
        ),
        Figure(
            f"control: {what}, a stock engine",
            "waits without a word",
            f"{'waits' if still_waits else 'answered'} after {told:.1f} s",
            still_waits,
            control=True,
        ),
    ]


async def _cancelled(db: DatabaseFactory) -> BaseException | None:
    def work(session: Session) -> None:
        session.add(User(user_id="cancelled", username="cancelled"))

    try:
        await asyncio.wait_for(db.arun_in_transaction(work), 3)
    except TimeoutError as error:
        cancelled = error.__cause__
        return None if cancelled is None else cancelled.__cause__
    return None


def _stock_question(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


def _failed_over(ground: Ground) -> list[Figure]:
    """Pools are full of connections whose server was read-only when they were made, and stays so for them."""
    ours, stock = ground.new_postgresql(), ground.new_postgresql()
    with DatabaseFactory(ours) as db, ThreadPoolExecutor(_WRITERS) as writers:
        _read_only(ground, ours, True)
        together = threading.Barrier(_WRITERS)

        def connect(number: int) -> None:
            with db.get_session() as session:
                session.execute(text("SELECT 1"))
                together.wait(30)

        def write(number: int) -> None:
            db.run_in_transaction(lambda session: session.add(User(user_id=f"u{number}", username=f"u{number}")))

        list(writers.map(connect, range(_WRITERS)))
        _read_only(ground, ours, False)
        began = time.monotonic()
        list(writers.map(write, range(_WRITERS)))
        took = time.monotonic() - began
        with db.get_session(read_only=True) as session:
            stored = session.scalar(select(func.count()).select_from(User))
    engine = create_engine(stock)
    _read_only(ground, stock, True)
    engine.connect().close()
    _read_only(ground, stock, False)
    refused = sum(_stock_write_is_refused(engine) for _ in range(10))
    engine.dispose()
    return [
        Figure(
            f"after a failover, {_WRITERS} writers on a pool of connections to the old server",
            "all written at once",
            f"{stored} of {_WRITERS} in {took:.2f} s",
            stored == _WRITERS,
        ),
        Figure(
            "control: a stock engine after a failover, 10 writes one after the other",
            "refused",
            f"{refused} of 10 refused",
            refused == 10,
            control=True,
        ),
    ]


def _read_only(ground: Ground, url: URL, on: bool) -> None:
    ground.server.ask(f"ALTER DATABASE {url.database} SET default_transaction_read_only = {'on' if on else 'off'}")


def _stock_write_is_refused(engine: Engine) -> bool:
    try:
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM users"))
    except DBAPIError:
        return True
    return False


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)  # a thread ends
