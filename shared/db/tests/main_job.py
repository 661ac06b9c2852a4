"""The main job, as a fleet's first script would do it: `python main_job.py TRADES.csv EXECUTION.json`.

Registers two users with accounts, strategies and runs in the database that GRIDBOT_DB_* names, stores a day of spot
trades and one execution under the first user's run, and reads everything back: the same count, digits and
milliseconds, and nothing of the run for the other user. Fails with an AssertionError at the first difference.
"""

from __future__ import annotations

import csv
import json
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import select

from shared.db import (
    BybitAccount,
    DatabaseFactory,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTradeRepository,
    Run,
    RunRepository,
    Strategy,
    User,
)

SYMBOL = "1INCHUSDT"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def main(trades_file: str, execution_file: str) -> int:
    """Do the whole job. Returns the number of trades stored."""
    trades = read_trades(Path(trades_file))
    message = json.loads(Path(execution_file).read_text(encoding="utf-8"))["data"][0]
    with DatabaseFactory() as db:
        runs = {name: register(db, name) for name in ("alice", "bob")}
        with db.get_session(user_id=runs["alice"].user_id) as session:
            assert stored(PublicTradeRepository(session).bulk_create(trades)) == len(trades)
            assert stored(PublicTradeRepository(session).bulk_create(trades)) == 0
            assert stored(PrivateExecutionRepository(session).bulk_create([execution(message, runs["alice"])])) == 1
        check_trades(db, trades)
        check_execution(db, message, runs)
    return len(trades)


def stored(result: Any) -> int:
    """The number of rows that a bulk_create() inserted."""
    return int(getattr(result, "inserted", result))


def read_trades(path: Path) -> list[dict[str, Any]]:
    """The rows of a daily spot archive: id, timestamp in ms, price, volume, side, rpi."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {
                "symbol": SYMBOL,
                "trade_id": row["id"],
                "exchange_ts": instant(row["timestamp"]),
                "local_ts": instant(row["timestamp"]),
                "side": row["side"].capitalize(),
                "price": Decimal(row["price"]),
                "size": Decimal(row["volume"]),
            }
            for row in csv.DictReader(file)
        ]


def instant(milliseconds: str) -> datetime:
    """Milliseconds since 1970 as an aware time, without a float in between."""
    return _EPOCH + timedelta(milliseconds=int(milliseconds))


def register(db: DatabaseFactory, name: str) -> Run:
    """A user with an account, a strategy and a running run."""
    with db.get_session() as session:
        user = User(username=name)
        account = BybitAccount(user=user, account_name="main", environment="testnet")
        strategy = Strategy(account=account, strategy_type="GridStrategy", symbol=SYMBOL, config_json={"levels": 20})
        session.add_all([user, strategy])
    with db.get_session(user_id=user.user_id) as session:
        run = Run(user_id=user.user_id, account_id=account.account_id, strategy_id=strategy.strategy_id)
        run.run_type = "live"
        return RunRepository(session).start(run)


def execution(message: dict[str, Any], run: Run) -> dict[str, Any]:
    """The row of an execution of Bybit's private stream."""
    return {
        "run_id": run.run_id,
        "account_id": run.account_id,
        "symbol": message["symbol"],
        "exec_id": message["execId"],
        "order_id": message["orderId"],
        "order_link_id": message["orderLinkId"] or None,
        "exchange_ts": instant(message["execTime"]),
        "side": message["side"],
        "exec_price": message["execPrice"],
        "exec_qty": message["execQty"],
        "exec_fee": message["execFee"],
        "raw_json": message,
    }


def check_trades(db: DatabaseFactory, trades: list[dict[str, Any]]) -> None:
    """Every trade is there once, with its digits and its milliseconds."""
    with db.get_session(read_only=True) as session:
        found = PublicTradeRepository(session).get_by_symbol_range(
            SYMBOL, trades[0]["exchange_ts"], trades[-1]["exchange_ts"]
        )
    assert len(found) == len(trades), (len(found), len(trades))
    by_id = {trade.trade_id: trade for trade in found}
    for row in trades:
        trade = by_id[row["trade_id"]]
        for name, value in row.items():
            assert getattr(trade, name) == value, (row["trade_id"], name)


def check_execution(db: DatabaseFactory, message: dict[str, Any], runs: dict[str, Run]) -> None:
    """Its owner reads it with all digits; the other user sees none of the run."""
    alice, bob = runs["alice"], runs["bob"]
    with db.get_session(user_id=alice.user_id, read_only=True) as session:
        (fill,) = PrivateExecutionRepository(session).get_by_run_range(alice.run_id)
        assert fill.exchange_ts == instant(message["execTime"])
        assert fill.exec_price == Decimal(message["execPrice"])
        assert fill.exec_qty == Decimal(message["execQty"])
        assert fill.exec_fee == Decimal(message["execFee"])
        assert fill.raw_json == message
    with db.get_session(user_id=bob.user_id, read_only=True) as session:
        assert RunRepository(session).get_by_id(alice.run_id) is None
        assert PrivateExecutionRepository(session).get_by_run_range(alice.run_id) == []
        assert session.scalars(select(PrivateExecution)).all() == []
        assert [run.run_id for run in session.scalars(select(Run))] == [bob.run_id]


if __name__ == "__main__":
    print(f"stored and read back {main(*sys.argv[1:])} trades and 1 execution")
