"""Messages of Bybit's V5 streams and REST answers as row values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from shared.db.bulk import RejectedRow
from shared.db.bulk.rows import Row
from shared.db.column_types import Json
from shared.db.errors import InputError, InvalidValueError
from shared.db.exchanges.bybit.values import (
    SYMBOL_LENGTH,
    TRADE_ID_LENGTH,
    RefusedError,
    TradeFields,
    checked_id,
    fill_amount,
    fitting_text,
    instant_of,
    price_of,
    side_of,
    size_of,
    stored_length,
    told_amount,
    written,
)
from shared.db.models import PrivateExecution

Message = Mapping[str, Any] | str | bytes | bytearray | memoryview

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
_any_json = Json()
_SHOWN = 60


class Parsed(NamedTuple):
    """What a message gave: row values, and the rows not taken."""

    rows: list[Row]
    rejected: list[RejectedRow]


def parse_public_trades(message: Message, local_ts: datetime | None = None) -> Parsed:
    """Trades of a `publicTrade` stream message, as a mapping or as JSON text.

    `local_ts` is when it was received: now, unless given. Raises `InputError` for a message of another topic.
    """
    received = datetime.now(UTC) if local_ts is None else local_ts
    entries = _stream_entries(_decoded(message), "publicTrade")
    return _parsed(entries, lambda entry: _trade(entry, _STREAM, received))


def parse_public_message(message: Message, local_ts: datetime | None = None) -> Parsed:
    """Trades of any message of a public socket: none for other topics, pongs and replies to what was asked.

    Otherwise as `parse_public_trades`. Raises `InputError` for a reply that refuses, such as a failed subscription,
    and for what is no message of a socket.
    """
    decoded = _decoded(message)
    return Parsed([], []) if _is_of_others(decoded, "publicTrade") else parse_public_trades(decoded, local_ts)


def parse_recent_trades(response: Message, local_ts: datetime | None = None) -> Parsed:
    """Trades of an answer of `/v5/market/recent-trade`, the whole answer or its `result`.

    `local_ts` is when it was received: now, unless given. Raises `InputError` for an answer that reports a failure
    or has no list.
    """
    received = datetime.now(UTC) if local_ts is None else local_ts
    return _parsed(_response_entries(response), lambda entry: _trade(entry, _REST, received))


def parse_answer(response: Message) -> Mapping[str, Any]:
    """The `result` of an answer of Bybit's REST API, or what is given if it is the result; numbers as they are written.

    Raises `InputError` for an answer that reports a failure, and for what is none.
    """
    decoded = _decoded(response)
    if not _is_ok(decoded):
        code, said = decoded["retCode"], decoded.get("retMsg")
        raise InputError(f"Bybit answered {_plain(code)} ({_plain(said)}), nothing to read; ask again")
    result = decoded.get("result", decoded)
    return result if isinstance(result, Mapping) else {}


def parse_executions(message: Message, run_id: str, account_id: str) -> Parsed:
    """Fills of an `execution` or `execution.fast` stream message, to be recorded under a run of an account.

    Only fills are taken, see `FILLS`; other execution types (`Funding`, say) are given back as rejected, and so is the
    combination of a spread, whose legs are fills of their own. A type that is not told counts as a trade: the fast
    stream sends nothing else, and neither tells the fee, which is None then.

    Amounts have all their digits. `bulk_create` rounds those that the columns cannot hold, and tells: `raw_json` has
    the whole entry. A price or quantity that would become 0, or is too large, is given back; so is an entry that no
    JSON column can hold. Raises `InputError` for a message of another topic.
    """
    entries = _stream_entries(_decoded(message), "execution")
    return _parsed(entries, lambda entry: _execution(entry, run_id, account_id))


def parse_private_message(message: Message, run_id: str, account_id: str) -> Parsed:
    """Fills of any message of a private socket: none for other topics, pongs and replies to what was asked.

    Otherwise as `parse_executions`. Raises `InputError` for a reply that refuses, such as a failed login, and for what
    is no message of a socket.
    """
    decoded = _decoded(message)
    return Parsed([], []) if _is_of_others(decoded, "execution") else parse_executions(decoded, run_id, account_id)


def parse_execution_list(response: Message, run_id: str, account_id: str) -> Parsed:
    """Fills of an answer of `/v5/execution/list`, the whole answer or its `result`; else as `parse_executions`.

    Where REST tells no profit or loss, `closed_pnl` is None. Raises `InputError` for an answer that reports a
    failure or has no list.
    """
    return _parsed(_response_entries(response), lambda entry: _execution(entry, run_id, account_id))


def _trade(entry: Mapping[str, Any], names: TradeFields, received: datetime) -> Row:
    return {
        "symbol": fitting_text(entry.get(names.symbol), "symbol", SYMBOL_LENGTH),
        "trade_id": checked_id(entry.get(names.trade_id), "trade id", TRADE_ID_LENGTH),
        "exchange_ts": instant_of(written(entry, names.time)),
        "local_ts": received,
        "side": side_of(written(entry, names.side)),
        "price": price_of(written(entry, names.price)),
        "size": size_of(written(entry, names.size)),
    }


def _execution(entry: Mapping[str, Any], run_id: str, account_id: str) -> Row:
    kind = entry.get("execType") or "Trade"
    if not isinstance(kind, str) or kind not in FILLS:
        raise RefusedError(f"execType {_shown(kind)} is no fill; fills are {', '.join(sorted(FILLS))}")
    if entry.get("legs"):
        raise RefusedError("the entry is a combination of a spread; its legs are fills, of execType FutureSpread")
    order_id, link_id = entry.get("orderId"), entry.get("orderLinkId")
    price, quantity = fill_amount(entry, "execPrice"), fill_amount(entry, "execQty")
    if price < 0 or quantity <= 0:
        raise RefusedError(f"execPrice {price} and execQty {quantity} are those of no fill")
    return {
        "run_id": run_id,
        "account_id": account_id,
        "symbol": fitting_text(entry.get("symbol"), "symbol", SYMBOL_LENGTH),
        "exec_id": checked_id(entry.get("execId"), "execId", _EXEC_ID_LENGTH),
        # What the exchange does by itself, settling a delisted contract say, may have no order.
        "order_id": checked_id(order_id, "orderId", _ORDER_ID_LENGTH) if order_id or kind == "Trade" else "",
        "order_link_id": fitting_text(link_id, "orderLinkId", _LINK_ID_LENGTH) if link_id else None,
        "exchange_ts": instant_of(written(entry, "execTime")),
        "side": side_of(written(entry, "side")),
        "exec_price": price,
        "exec_qty": quantity,
        "exec_fee": told_amount(entry, "execFee"),
        "closed_pnl": told_amount(entry, "execPnl"),
        "raw_json": _kept(entry),
    }


def _kept(entry: Mapping[str, Any]) -> Any:
    try:
        return _any_json.plain(entry)
    except InvalidValueError as error:
        raise RefusedError(f"the entry cannot be kept in raw_json: {error.problem}") from None


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


def _stream_entries(decoded: Mapping[str, Any], topic: str) -> list[Any]:
    given = decoded.get("topic")
    if not _is_topic(given, topic):
        raise InputError(
            f"this is a message of topic {_shown(given)}, not of {topic}; hand over only what that topic sends, or use "
            "parse_public_message and parse_private_message, which pass over the others"
        )
    return _entries(decoded.get("data"), "data")


def _is_topic(given: Any, topic: str) -> bool:
    return isinstance(given, str) and given.partition(".")[0] == topic


def _is_of_others(decoded: Mapping[str, Any], topic: str) -> bool:
    """Whether a message of a socket is another topic's, or answers something; `InputError` if the answer is a no."""
    given = decoded.get("topic")
    if isinstance(given, str):
        return not _is_topic(given, topic)
    if not isinstance(decoded.get("op", decoded.get("type")), str):
        raise InputError(f"a message of a socket has a topic or an op, and this one {_names(decoded)}")
    data = decoded.get("data")
    failed = isinstance(data, Mapping) and data.get("failTopics")
    if decoded.get("success") is False or not _is_ok(decoded) or failed:
        topics = ", ".join(map(_plain, failed[:5])) if isinstance(failed, list) else failed
        said = decoded.get("ret_msg") or decoded.get("retMsg") or topics
        raise InputError(f"Bybit refused {_shown(decoded.get('op', 'what was asked'))}: {_shown(said)}")
    return True


def _response_entries(response: Message) -> list[Any]:
    return _entries(parse_answer(response).get("list"), "list")


def _is_ok(decoded: Mapping[str, Any]) -> bool:
    return decoded.get("retCode") in (None, 0, "0")


def _entries(entries: Any, name: str) -> list[Any]:
    if not isinstance(entries, list):
        raise InputError(f"the message has no {name}; hand over the whole message as Bybit sent it")
    return entries


def _decoded(message: Message) -> Mapping[str, Any]:
    if isinstance(message, (bytearray, memoryview)):
        message = bytes(message)
    if isinstance(message, (str, bytes)):
        try:
            message = json.loads(message, parse_float=Decimal)
        except (ValueError, ArithmeticError, RecursionError) as error:
            told = str(error)
            if isinstance(error, RecursionError):
                told = "it is nested too deeply"
            elif isinstance(error, ArithmeticError):
                told = "it holds a number beyond all range"
            raise InputError(f"the message is not JSON ({told}); hand it over as Bybit sent it") from None
    if not isinstance(message, Mapping):
        raise InputError(f"a message is a mapping or JSON text, not {type(message).__name__}")
    return message


def _shown(value: Any) -> str:
    """A short text with quotation marks, or what else it is."""
    return repr(value[:_SHOWN]) if isinstance(value, str) else type(value).__name__


def _plain(value: Any) -> str:
    short = isinstance(value, int) and value.bit_length() <= 64
    return str(value)[:_SHOWN] if short or isinstance(value, str) else type(value).__name__


def _names(decoded: Mapping[str, Any]) -> str:
    return f"has {', '.join(map(_shown, list(decoded)[:5]))}" if decoded else "is empty"
