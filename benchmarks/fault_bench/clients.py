"""Clients: processes that write batches, or count, and keep a journal of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from multiprocessing.process import BaseProcess
from typing import Any

from sqlalchemy import URL, select
from sqlalchemy.orm import Session

from benchmarks.fault_bench.checker import Stored
from shared.db import BybitAccount, DatabaseFactory, PublicTrade, Strategy, User
from shared.db.bulk import bulk_create

_START = datetime(2025, 1, 1, tzinfo=UTC)
_FORK = multiprocessing.get_context("fork")


def open_counters(url: URL, clients: Iterable[str]) -> None:
    """Store a counter for each client: a strategy whose configuration counts what was applied."""
    with DatabaseFactory(url) as db, db.get_session() as session:
        session.add(User(user_id="bench", username="bench"))
        session.flush()
        session.add(BybitAccount(account_id="bench", user_id="bench", account_name="a", environment="testnet"))
        session.flush()
        for client in clients:
            session.add(
                Strategy(
                    strategy_id=client,
                    account_id="bench",
                    strategy_type="GridStrategy",
                    symbol=client,
                    config_json={"applied": 0},
                )
            )


def count_up(session: Session, client: str) -> None:
    """Read a counter, add one in Python, write it back."""
    strategy = session.get(Strategy, client)
    assert strategy is not None
    strategy.config_json["applied"] += 1
    session.flush()


def batch(client: str, op: int, rows: int) -> list[dict[str, Any]]:
    """The rows of an operation. Which they are can be read from them."""
    when = _START + timedelta(milliseconds=op)
    return [
        {
            "symbol": client,
            "trade_id": f"{op}-{part}",
            "exchange_ts": when,
            "local_ts": when,
            "side": "Buy",
            "price": Decimal(op),
            "size": Decimal(part + 1),
        }
        for part in range(rows)
    ]


def apply(session: Session, client: str, op: int, rows: int) -> None:
    """An operation, if it has not been applied yet: half of its rows in bulk, its counter, the others by the ORM."""
    values = batch(client, op, rows)
    done = bulk_create(session, PublicTrade, values[: rows // 2])
    if done.inserted:
        count_up(session, client)
        session.add_all(PublicTrade(**one) for one in values[rows // 2 :])
        session.flush()


def stored_rows(db: DatabaseFactory) -> list[Stored]:
    """The rows that clients' operations left behind."""
    with db.get_session(read_only=True) as session:
        found = session.execute(select(PublicTrade.symbol, PublicTrade.trade_id, PublicTrade.id)).all()
    ids = ((client, trade_id.partition("-"), position) for client, trade_id, position in found)
    return [Stored(client, int(op), int(part), position) for client, (op, _, part), position in ids]


def stored_counters(db: DatabaseFactory) -> dict[str, int]:
    """Where the clients' counters stand."""
    with db.get_session(read_only=True) as session:
        return {
            name: config["applied"]
            for name, config in session.execute(select(Strategy.strategy_id, Strategy.config_json))
        }


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Run `work` in a forked process. What it raises goes to standard error and makes its exit code 1."""

    def run() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the bench's own process answers to Ctrl+C
        try:
            work(*arguments)
        except BaseException:  # noqa: BLE001 # a forked process must not run on in its parent's code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    process = _FORK.Process(target=run, daemon=True)
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    """Kill -9, and wait for the end."""
    process.kill()
    process.join()
    process.close()


def finish(processes: Iterable[BaseProcess], seconds: float) -> list[str]:
    """Wait for all; a problem for each that failed or did not end in time."""
    problems = []
    for process in processes:
        process.join(seconds)
        if process.exitcode is None:
            problems.append("a client hung")
            process.kill()
            process.join()
        elif process.exitcode:
            problems.append(f"a client ended with {process.exitcode}")
        process.close()
    return problems
