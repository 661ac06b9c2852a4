"""Rows like those that Bybit gives, made from a seed."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

_START = datetime(2025, 1, 1, tzinfo=UTC)
Rows = list[dict[str, Any]]


class TradeStream:
    """BTCUSDT trades: random ids, prices of two places, times to the millisecond, on and on."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._count = 0
        self._price = 6_500_000
        self._recent: Rows = []

    @staticmethod
    def time_of(number: int) -> datetime:
        """When the trade with this number, counted from 1, took place."""
        return _START + timedelta(milliseconds=number * 37)

    def take(self, count: int, duplicates: float = 0.0) -> Rows:
        """The next `count` trades, of which a share repeats one of the 5,000 before."""
        rows = []
        for _ in range(count):
            if self._recent and self._random.random() < duplicates:
                rows.append(dict(self._random.choice(self._recent)))
            else:
                rows.append(self._next())
                if duplicates:
                    self._recent.append(rows[-1])
        self._recent = self._recent[-5000:]
        return rows

    def _next(self) -> dict[str, Any]:
        self._count += 1
        self._price += self._random.randrange(-50, 51)
        when = self.time_of(self._count)
        return {
            "symbol": "BTCUSDT",
            "trade_id": str(uuid.UUID(int=self._random.getrandbits(128))),
            "exchange_ts": when,
            "local_ts": when + timedelta(microseconds=self._random.randrange(5_000, 90_000)),
            "side": self._random.choice(("Buy", "Sell")),
            "price": Decimal(self._price).scaleb(-2),
            "size": Decimal(self._random.randrange(1, 99_999)).scaleb(-3),
        }


class ExecutionStream:
    """Executions of one run, each with the exchange's message of about 600 bytes."""

    def __init__(self, run_id: str, account_id: str, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._run_id = run_id
        self._account_id = account_id
        self._count = 0

    def take(self, count: int) -> Rows:
        """The next `count` executions."""
        return [self._next() for _ in range(count)]

    def _next(self) -> dict[str, Any]:
        self._count += 1
        draw = self._random.randrange
        exec_id, order_id = (str(uuid.UUID(int=self._random.getrandbits(128))) for _ in range(2))
        when = _START + timedelta(milliseconds=self._count * 137)
        price, quantity = Decimal(draw(6_000_000, 7_000_000)).scaleb(-2), Decimal(draw(1, 999)).scaleb(-3)
        fee, pnl = Decimal(draw(-9_999, 99_999)).scaleb(-6), Decimal(draw(-99_999, 99_999)).scaleb(-4)
        side = self._random.choice(("Buy", "Sell"))
        return {
            "run_id": self._run_id,
            "account_id": self._account_id,
            "symbol": "BTCUSDT",
            "exec_id": exec_id,
            "order_id": order_id,
            "order_link_id": f"grid-{self._count % 40}" if self._count % 3 else None,
            "exchange_ts": when,
            "side": side,
            "exec_price": price,
            "exec_qty": quantity,
            "exec_fee": fee,
            "closed_pnl": pnl,
            "raw_json": {
                "category": "linear",
                "symbol": "BTCUSDT",
                "closedSize": "0",
                "execFee": str(fee),
                "execId": exec_id,
                "execPrice": str(price),
                "execQty": str(quantity),
                "execType": "Trade",
                "execValue": str(price * quantity),
                "feeRate": "0.00055",
                "tradeIv": "",
                "markIv": "",
                "blockTradeId": "",
                "markPrice": str(price + 1),
                "indexPrice": "",
                "underlyingPrice": "",
                "leavesQty": "0",
                "orderId": order_id,
                "orderLinkId": "",
                "orderPrice": str(price),
                "orderQty": str(quantity),
                "orderType": "Limit",
                "stopOrderType": "UNKNOWN",
                "side": side,
                "execTime": str(1_735_689_600_000 + self._count),
                "isLeverage": "0",
                "isMaker": True,
                "seq": 4_688_002_127 + self._count,
                "extraFees": "",
            },
        }
