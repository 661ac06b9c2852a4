"""Messages and archives in Bybit's formats, made up."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DERIVATIVES_HEADER = (
    "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional,RPI"
)
SPOT_HEADER = "id,timestamp,price,volume,side,rpi"


def trade_entry(**values: Any) -> dict[str, Any]:
    """An entry of a publicTrade message."""
    given = {
        "T": 1741600800123,
        "s": "BTCUSDT",
        "S": "Buy",
        "v": "0.013",
        "p": "64321.50",
        "L": "PlusTick",
        "i": "3fa85f64-5717-5562-b3fc-2c963f66afa6",
        "BT": False,
        "RPI": False,
        "seq": 9_007_199_254_740_993_123,
    }
    return given | values


def trade_message(*entries: dict[str, Any]) -> dict[str, Any]:
    """A publicTrade message with these entries."""
    return {
        "topic": "publicTrade.BTCUSDT",
        "type": "snapshot",
        "ts": 1741600800125,
        "data": list(entries or [trade_entry()]),
    }


def execution_entry(**values: Any) -> dict[str, Any]:
    """An entry of an execution message, or of an answer of /v5/execution/list."""
    given = {
        "category": "linear",
        "symbol": "BTCUSDT",
        "closedSize": "0.25",
        "execFee": "8.41974375",
        "execId": "11e2ae69-4edf-5800-a352-893d52b446ab",
        "execPrice": "61234.5",
        "execQty": "0.25",
        "execPnl": "12.5",
        "execType": "Trade",
        "execValue": "15308.625",
        "feeRate": "0.00055",
        "tradeIv": "",
        "markIv": "",
        "blockTradeId": "",
        "markPrice": "61230.11",
        "indexPrice": "",
        "underlyingPrice": "",
        "leavesQty": "0",
        "orderId": "22e324ff-99c2-4e89-9739-3086e47f9382",
        "orderLinkId": "grid-17",
        "orderPrice": "61200",
        "orderQty": "0.25",
        "orderType": "Limit",
        "stopOrderType": "UNKNOWN",
        "side": "Sell",
        "execTime": "1741600800353",
        "isLeverage": "0",
        "isMaker": False,
        "seq": 9_007_199_254_740_993_124,
        "feeCurrency": "USDT",
    }
    return given | values


def execution_message(*entries: dict[str, Any], topic: str = "execution") -> dict[str, Any]:
    """An execution message with these entries."""
    data = list(entries or [execution_entry()])
    return {"id": "1_BTCUSDT_1", "topic": topic, "creationTime": 1741600800355, "data": data}


def fast_execution_message(topic: str = "execution.fast") -> dict[str, Any]:
    """A message of the fast execution stream, which tells less."""
    entry = {
        "category": "linear",
        "symbol": "SOLUSDT",
        "execId": "33f361aa-0add-5c7b-a2e7-9679810944fc",
        "execPrice": "143.27",
        "execQty": "12",
        "orderId": "443d63bb-b4c3-4297-b7b1-23bca88b04dc",
        "isMaker": False,
        "orderLinkId": "",
        "side": "Buy",
        "execTime": "1741600801334",
        "seq": 34771365464,
    }
    return {"topic": topic, "creationTime": 1741600801338, "data": [entry]}


def rest_answer(*entries: dict[str, Any]) -> dict[str, Any]:
    """An answer of a V5 REST endpoint that lists these entries."""
    result = {"category": "linear", "nextPageCursor": "", "list": list(entries)}
    return {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": 1741600800400}


def archive_line(number: int = 0, **values: str) -> str:
    """A line of a linear archive, 1.7 ms after the one before."""
    moment = 17416008000547 + 17 * number
    given = {
        "timestamp": f"{moment // 10000}.{moment % 10000:04}",
        "symbol": "BTCUSDT",
        "side": "Sell" if number % 3 else "Buy",
        "size": f"0.{1 + number % 997:03}",
        "price": f"{64000 + number % 500}.{number % 10}0",
        "tickDirection": "ZeroMinusTick",
        "trdMatchID": f"00000000-0000-5000-8000-{number:012x}",
        "grossValue": "4.1170752e+11",
        "homeNotional": "0.038",
        "foreignNotional": "4.1e-05",
        "RPI": "0",
    }
    return ",".join((given | values).values())


def spot_line(number: int = 1, **values: str) -> str:
    """A line of a spot archive, numbered from 1 as each file is."""
    given = {
        "id": str(number),
        "timestamp": str(1741600800000 + 3 * number),
        "price": f"0.{2000 + number % 500}",
        "volume": f"{1 + number % 90}.5",
        "side": "sell" if number % 3 else "buy",
        "rpi": "0",
    }
    return ",".join((given | values).values())


def written(path: Path, header: str, lines: Iterable[str], end: str = "\n") -> Path:
    """An archive with these lines, gzipped if its name says so."""
    content = "".join(f"{line}{end}" for line in [header, *lines]).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def derivatives_archive(path: Path, rows: int, first: int = 0) -> Path:
    """A linear archive with so many rows."""
    return written(path, DERIVATIVES_HEADER, map(archive_line, range(first, first + rows)))


def spot_archive(path: Path, rows: int, day: int = 0) -> Path:
    """A spot archive with so many rows, of one day or of a later one: the ids start at 1 every day."""
    start = 1741600800000 + 86_400_000 * day
    lines = (spot_line(number, timestamp=str(start + 3 * number)) for number in range(1, rows + 1))
    return written(path, SPOT_HEADER, lines)
