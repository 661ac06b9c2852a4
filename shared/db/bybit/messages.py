"""Messages of Bybit's V5 streams and REST answers as row values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from shared.db.bulk import RejectedRow
from shared.db.bybit.values import (
    SYMBOL_LENGTH,
    TRADE_ID_LENGTH,
    RefusedError,
    Row,
    TradeFields,
    checked_text,
    instant_of,
    number,
    price_of,
    side_of,
    size_of,
    stored_length,
    written,
)
from shared.db.errors import InputError
from shared.db.models import PrivateExecution

Message = Mapping[str, Any] | str | bytes

# The values of execType that change a position (https://bybit-exchange.github.io/docs/v5/enum#exectype). Funding is
# not one: its entries carry the size of the whole position as their quantity and change none of it, so that every
# sum over stored fills would count the position again every eight hours.
FILLS = frozenset(
    {"Trade", "AdlTrade", "BustTrade", "Delivery", "Settle", "BlockTrade", "MovePosition", "FutureSpread"}
)

_STREAM = TradeFields("s", "i", "T", "S", "p", "v")
_REST = TradeFields("symbol", "execId", "time", "side", "price", "size")
_EXEC_ID_LENGTH = stored_length(PrivateExecution.exec_id)
_ORDER_ID_LENGTH = stored_length(PrivateExecution.order_id)
_LINK_ID_LENGTH = stored_length(PrivateExecution.order_link_id)


class Parsed(NamedTuple):
    """What a message gave: row values, and the rows not taken."""

    rows: list[Row]
    rejected: list[RejectedRow]


def parse_public_trades(message: Message, local_ts: datetime | None = None) -> Parsed:
    """Trades of a `publicTrade` stream message, as a mapping or as JSON text.

    `local_ts` is when it was received: now, unless given. Raises `InputError` for a message of another topic.
    """
    received = datetime.now(UTC) if local_ts is None else local_ts
    entries = _stream_entries(message, "publicTrade")
    return _parsed(entries, lambda entry: _trade(entry, _STREAM, received))


def parse_recent_trades(response: Message, local_ts: datetime | None = None) -> Parsed:
    """Trades of an answer of `/v5/market/recent-trade`, the whole answer or its `result`.

    `local_ts` is when it was received: now, unless given. Raises `InputError` for an answer that reports a failure
    or has no list.
    """
    received = datetime.now(UTC) if local_ts is None else local_ts
    return _parsed(_response_entries(response), lambda entry: _trade(entry, _REST, received))


def parse_executions(message: Message, run_id: str, account_id: str) -> Parsed:
    """Fills of an `execution` or `execution.fast` stream message, to be recorded under a run of an account.

    Only fills are taken, see `FILLS`; other execution types (`Funding`, say) are given back as rejected. A type
    that is not told counts as a trade: the fast stream sends nothing else, and neither tells the fee, which is
    None then. Each entry is kept whole in `raw_json`, where prices and fees of more than 8 decimal places, which
    the columns round, keep every digit. Raises `InputError` for a message of another topic.
    """
    return _parsed(_stream_entries(message, "execution"), lambda entry: _execution(entry, run_id, account_id))


def parse_execution_list(response: Message, run_id: str, account_id: str) -> Parsed:
    """Fills of an answer of `/v5/execution/list`, the whole answer or its `result`; else as `parse_executions`.

    Where REST tells no profit or loss, `closed_pnl` is None. Raises `InputError` for an answer that reports a
    failure or has no list.
    """
    return _parsed(_response_entries(response), lambda entry: _execution(entry, run_id, account_id))


def _trade(entry: Mapping[str, Any], names: TradeFields, received: datetime) -> Row:
    return {
        "symbol": checked_text(entry.get(names.symbol), "symbol", SYMBOL_LENGTH),
        "trade_id": checked_text(entry.get(names.trade_id), "trade id", TRADE_ID_LENGTH),
        "exchange_ts": instant_of(written(entry, names.time)),
        "local_ts": received,
        "side": side_of(written(entry, names.side)),
        "price": price_of(written(entry, names.price)),
        "size": size_of(written(entry, names.size)),
    }


def _execution(entry: Mapping[str, Any], run_id: str, account_id: str) -> Row:
    kind = entry.get("execType") or "Trade"
    if not isinstance(kind, str) or kind not in FILLS:
        raise RefusedError(f"execType {kind!r} is no fill; fills are {', '.join(sorted(FILLS))}")
    order_id, link_id = entry.get("orderId"), entry.get("orderLinkId")
    price, quantity = number(entry, "execPrice"), number(entry, "execQty")
    if price < 0 or quantity <= 0:
        raise RefusedError(f"execPrice {price} and execQty {quantity} are those of no fill")
    return {
        "run_id": run_id,
        "account_id": account_id,
        "symbol": checked_text(entry.get("symbol"), "symbol", SYMBOL_LENGTH),
        "exec_id": checked_text(entry.get("execId"), "execId", _EXEC_ID_LENGTH),
        # What the exchange does by itself, settling a delisted contract say, may have no order.
        "order_id": checked_text(order_id, "orderId", _ORDER_ID_LENGTH) if order_id or kind == "Trade" else "",
        "order_link_id": checked_text(link_id, "orderLinkId", _LINK_ID_LENGTH) if link_id else None,
        "exchange_ts": instant_of(written(entry, "execTime")),
        "side": side_of(written(entry, "side")),
        "exec_price": price,
        "exec_qty": quantity,
        "exec_fee": number(entry, "execFee") if _told(entry, "execFee") else None,
        "closed_pnl": number(entry, "execPnl") if _told(entry, "execPnl") else None,
        "raw_json": dict(entry),
    }


def _told(entry: Mapping[str, Any], name: str) -> bool:
    # Bybit writes "" where it has nothing to say.
    return entry.get(name) not in (None, "")


def _parsed(entries: list[Any], row_of: Callable[[Mapping[str, Any]], Row]) -> Parsed:
    parsed = Parsed([], [])
    for position, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            parsed.rejected.append(RejectedRow(position, "the entry is not an object", entry))
            continue
        try:
            parsed.rows.append(row_of(entry))
        except RefusedError as error:
            parsed.rejected.append(RejectedRow(position, str(error), entry))
    return parsed


def _stream_entries(message: Message, topic: str) -> list[Any]:
    decoded = _decoded(message)
    given = decoded.get("topic")
    if not isinstance(given, str) or given.partition(".")[0] != topic:
        raise InputError(f"this is a message of topic {given!r}, not of {topic}; hand over only what that topic sends")
    return _entries(decoded.get("data"), "data")


def _response_entries(response: Message) -> list[Any]:
    decoded = _decoded(response)
    if decoded.get("retCode") not in (None, 0):
        raise InputError(f"Bybit answered {decoded['retCode']} ({decoded.get('retMsg')}), nothing to read; ask again")
    result = decoded.get("result", decoded)
    return _entries(result.get("list") if isinstance(result, Mapping) else None, "list")


def _entries(entries: Any, name: str) -> list[Any]:
    if not isinstance(entries, list):
        raise InputError(f"the message has no {name}; hand over the whole message as Bybit sent it")
    return entries


def _decoded(message: Message) -> Mapping[str, Any]:
    if isinstance(message, (str, bytes)):
        try:
            message = json.loads(message, parse_float=Decimal)
        except ValueError as error:
            raise InputError(f"the message is not JSON ({error}); hand it over as Bybit sent it") from error
    if not isinstance(message, Mapping):
        raise InputError(f"a message is a mapping or JSON text, not {type(message).__name__}")
    return message
