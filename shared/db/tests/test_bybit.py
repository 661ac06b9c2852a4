"""What Bybit sends becomes rows, or is given back with a reason."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db import InputError, PrivateExecution, PrivateExecutionRepository, Run
from shared.db.exchanges.bybit import (
    FILLS,
    Category,
    parse_execution_list,
    parse_executions,
    parse_private_message,
    parse_public_message,
    parse_public_trades,
    parse_recent_trades,
    read_archive,
)
from shared.db.exchanges.bybit.values import RefusedError, instant_of, instant_texts
from shared.db.tests.bybit_samples import (
    DERIVATIVES_HEADER,
    SPOT_HEADER,
    archive_line,
    derivatives_archive,
    execution_entry,
    execution_message,
    fast_execution_message,
    rest_answer,
    spot_archive,
    spot_line,
    trade_entry,
    trade_message,
    written,
)
from shared.db.value_forms.instants import InstantTexts, ends_of

# A folder of real files of Bybit's, on machines that have one.
REAL_SAMPLES = os.environ.get("GRIDBOT_TEST_DATA")

RECEIVED = datetime(2025, 3, 10, 10, 0, 1, tzinfo=UTC)


def fields(**values: Any) -> dict[str, Any]:
    """A trade message whose only entry has these values."""
    return trade_message(trade_entry(**values))


class TestPublicTradeStream:
    """publicTrade messages."""

    def test_an_entry_becomes_the_row_that_is_stored(self) -> None:
        """Every column has the message's value, the price and size digit for digit."""
        parsed = parse_public_trades(trade_message(), RECEIVED)
        assert parsed.rejected == []
        assert parsed.rows == [
            {
                "symbol": "BTCUSDT",
                "trade_id": "3fa85f64-5717-5562-b3fc-2c963f66afa6",
                "exchange_ts": datetime(2025, 3, 10, 10, 0, 0, 123000, tzinfo=UTC),
                "local_ts": RECEIVED,
                "side": "Buy",
                "price": Decimal("64321.50"),
                "size": Decimal("0.013"),
            }
        ]

    @pytest.mark.parametrize(
        "form",
        [
            lambda text: text,
            json.loads,
            str.encode,
            lambda text: bytearray(text, "utf-8"),
            lambda text: memoryview(text.encode()),
        ],
        ids=["text", "mapping", "bytes", "bytearray", "memoryview"],
    )
    def test_a_message_may_come_as_text_bytes_or_mapping(self, form: Any) -> None:
        """All of them give the same rows."""
        text = json.dumps(trade_message())
        assert parse_public_trades(form(text), RECEIVED) == parse_public_trades(trade_message(), RECEIVED)

    def test_the_receive_time_is_now_unless_given(self) -> None:
        """Without `local_ts` the row is stamped with the present time, in UTC."""
        before = datetime.now(UTC)
        row = parse_public_trades(trade_message()).rows[0]
        assert before <= row["local_ts"] <= datetime.now(UTC)

    @pytest.mark.parametrize("absent", ["L", "BT", "RPI", "seq"])
    def test_fields_that_are_not_stored_may_be_absent(self, absent: str) -> None:
        """Spot has no tick direction, options have no RPI flag, and so on."""
        entry = trade_entry()
        del entry[absent]
        assert len(parse_public_trades(trade_message(entry)).rows) == 1

    def test_fields_that_are_new_do_no_harm(self) -> None:
        """A field of tomorrow is passed over."""
        assert len(parse_public_trades(fields(new={"nested": 1})).rows) == 1

    @pytest.mark.parametrize("side", ["buy", "BUY", "Buy"])
    def test_sides_are_spelt_one_way(self, side: str) -> None:
        """However Bybit cases the side, it is stored as Buy or Sell."""
        assert parse_public_trades(fields(S=side)).rows[0]["side"] == "Buy"

    def test_a_spot_id_of_19_digits_is_kept(self) -> None:
        """Spot trades are numbered; the number is an id, whole, as text or not."""
        for number in ("2290000000098765432", 2290000000098765432):
            assert parse_public_trades(fields(i=number)).rows[0]["trade_id"] == "2290000000098765432"

    def test_an_exact_number_may_come_without_quotation_marks(self) -> None:
        """Whole numbers, and decimals that JSON text holds, are as exact as text."""
        text = json.dumps(fields(v=3)).replace('"64321.50"', "64321.12345678")
        row = parse_public_trades(text).rows[0]
        assert (row["price"], row["size"]) == (Decimal("64321.12345678"), Decimal(3))

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("p", "", "price is empty"),
            ("p", None, "p is missing"),
            ("p", "abc", "is not a number"),
            ("p", "NaN", "is not a number"),
            ("p", "Infinity", "is not a number"),
            ("p", "1_000", "is not a number"),
            ("p", " 1", "is not a number"),
            ("p", "0", "is not above zero"),
            ("p", "-1", "is not above zero"),
            ("p", "1e12", "is too large"),
            ("p", "1e999", "is too large"),
            ("p", "0.000004321", "more than the 8 decimal places"),
            ("p", 64321.5, "came as a float"),
            ("p", True, "is bool"),
            ("v", "", "size is empty"),
            ("v", "0", "is not above zero"),
            ("v", [], "is list"),
            ("S", "", "is neither Buy nor Sell"),
            ("S", "None", "is neither Buy nor Sell"),
            ("S", None, "S is missing"),
            ("i", "", "trade id is missing or empty"),
            ("i", "x" * 51, "more than the 50"),
            ("i", "a\x00b", "is not plain text"),
            ("s", "", "symbol is missing or empty"),
            ("s", None, "symbol is missing or empty"),
            ("s", "X" * 33, "more than the 32"),
            ("T", "", "no Unix time"),
            ("T", "2025-03-10", "no Unix time"),
            ("T", 1741600800123000, "no Unix time"),
            ("T", 1741600800123.5, "came as a float"),
            ("T", -1741600800123, "no Unix time"),
            ("T", 5, "no Unix time"),
            ("T", "1741600800123.abc", "is not a number"),
            ("T", "1741600800123.", "is not a number"),
            ("T", "\u0661\u0667\u0664\u0661\u0666\u0660\u0660\u0668\u0660\u0660", "no Unix time"),
            ("T", "1741600800.\u0661", "is not a number"),
            ("T", "1" * 5000, "no Unix time"),
            ("i", "2.29E+18", "what a spreadsheet leaves of a number"),
        ],
    )
    def test_a_value_that_cannot_be_stored_costs_its_row_alone(self, name: str, value: Any, reason: str) -> None:
        """The row is given back with its place and the reason; the others are taken."""
        bad = trade_entry(**{name: value})
        parsed = parse_public_trades(trade_message(trade_entry(), bad, trade_entry(i="other")))
        assert [row["trade_id"] for row in parsed.rows] == [trade_entry()["i"], "other"]
        (rejected,) = parsed.rejected
        assert rejected.position == 1
        assert reason in rejected.reason
        assert rejected.row == bad

    @pytest.mark.parametrize("name", ["p", "i", "s", "T"])
    def test_a_number_without_end_costs_its_row_alone(self, name: str) -> None:
        """Python refuses to write numbers of more than 4,300 digits; a mapping may hold them."""
        parsed = parse_public_trades(fields(**{name: 10**5000}))
        assert (parsed.rows, len(parsed.rejected)) == ([], 1)
        assert "more than 300 digits" in parsed.rejected[0].reason

    @pytest.mark.parametrize("name", ["p", "v", "S", "i", "s", "T"])
    def test_a_field_that_is_stored_must_be_there(self, name: str) -> None:
        """Without it the row is given back."""
        entry = trade_entry()
        del entry[name]
        parsed = parse_public_trades(trade_message(entry))
        assert parsed.rows == []
        assert "is missing" in parsed.rejected[0].reason

    def test_an_entry_that_is_no_object_is_given_back(self) -> None:
        """Neither text nor a list is a trade."""
        parsed = parse_public_trades({"topic": "publicTrade.BTCUSDT", "data": ["x", [1], None, trade_entry()]})
        assert [rejected.position for rejected in parsed.rejected] == [0, 1, 2]
        assert len(parsed.rows) == 1

    @pytest.mark.parametrize(
        "message",
        [
            {"success": True, "op": "subscribe"},
            {"topic": "tickers.BTCUSDT", "data": {}},
            {"topic": "publicTradeX.BTCUSDT", "data": []},
            {"topic": "publicTrade.BTCUSDT"},
            {"topic": "publicTrade.BTCUSDT", "data": {}},
            [],
            "not json",
            "[1]",
            None,
        ],
        ids=repr,
    )
    def test_a_message_of_another_kind_is_an_error(self, message: Any) -> None:
        """Whoever hands over a subscription reply or another topic is told so."""
        with pytest.raises(InputError):
            parse_public_trades(message)


class TestRecentTrades:
    """/v5/market/recent-trade."""

    ENTRY: ClassVar = {
        "execId": "2190000000012345678",
        "symbol": "BTCUSDT",
        "price": "64000.25",
        "size": "0.00031",
        "side": "Buy",
        "time": "1741600800758",
        "isBlockTrade": False,
        "isRPITrade": False,
        "seq": "1532604332",
    }

    @pytest.mark.parametrize("part", [lambda answer: answer, lambda answer: answer["result"]], ids=["all", "result"])
    def test_an_answer_becomes_rows(self, part: Any) -> None:
        """The whole answer and its result give the same rows."""
        assert parse_recent_trades(part(rest_answer(self.ENTRY)), RECEIVED).rows == [
            {
                "symbol": "BTCUSDT",
                "trade_id": "2190000000012345678",
                "exchange_ts": datetime(2025, 3, 10, 10, 0, 0, 758000, tzinfo=UTC),
                "local_ts": RECEIVED,
                "side": "Buy",
                "price": Decimal("64000.25"),
                "size": Decimal("0.00031"),
            }
        ]

    def test_a_trade_is_the_same_row_from_stream_and_rest(self) -> None:
        """Symbol, time and id, which are its identity, do not depend on where it was seen."""
        streamed = parse_public_trades(trade_message(), RECEIVED).rows
        entry = trade_entry()
        names = {"symbol": "s", "execId": "i", "time": "T", "side": "S", "price": "p", "size": "v"}
        asked = {name: str(entry[short]) for name, short in names.items()}
        assert parse_recent_trades(rest_answer(asked), RECEIVED).rows == streamed

    def test_a_failure_that_bybit_reports_is_an_error(self) -> None:
        """An answer with a return code has nothing to read, and says why."""
        with pytest.raises(InputError, match=r"10006 \(Too many visits\)"):
            parse_recent_trades({"retCode": 10006, "retMsg": "Too many visits", "result": {}})

    @pytest.mark.parametrize("code", [0, "0", None])
    def test_a_return_code_of_0_is_none(self, code: Any) -> None:
        """As a number, as some clients have it, as text, or left out."""
        assert len(parse_recent_trades({**rest_answer(self.ENTRY), "retCode": code}).rows) == 1

    @pytest.mark.parametrize("answer", [{"retCode": 0, "result": {}}, {"retCode": 0, "result": None}, {}], ids=repr)
    def test_an_answer_without_a_list_is_an_error(self, answer: dict[str, Any]) -> None:
        """It is the answer of something else."""
        with pytest.raises(InputError, match="no list"):
            parse_recent_trades(answer)


class TestSockets:
    """Any message of a public or a private socket."""

    REPLIES: ClassVar = [
        {"success": True, "ret_msg": "subscribe", "conn_id": "c", "req_id": "", "op": "subscribe"},
        {"success": True, "ret_msg": "pong", "conn_id": "c", "req_id": "", "op": "ping"},
        {"success": True, "ret_msg": "", "op": "auth", "conn_id": "c"},
        {"req_id": "r", "op": "pong", "args": ["1741600800123"], "conn_id": "c"},
        {"success": True, "conn_id": "c", "data": {"failTopics": [], "successTopics": ["a"]}, "type": "COMMAND_RESP"},
        {"topic": "tickers.BTCUSDT", "type": "snapshot", "data": {"symbol": "BTCUSDT"}},
        {"topic": "order", "data": [{"orderId": "1"}]},
        {"topic": "executions", "data": [{}]},
        {"topic": "publicTradeX.BTCUSDT", "data": [{}]},
    ]
    REFUSALS: ClassVar = [
        {"success": False, "ret_msg": "error:handler not found,topic:x", "conn_id": "c", "op": "subscribe"},
        {"success": True, "conn_id": "c", "data": {"failTopics": ["x"], "successTopics": []}, "type": "COMMAND_RESP"},
        {"retCode": 10004, "retMsg": "Invalid sign", "op": "auth", "connId": "c"},
        {},
        {"data": []},
        {"topic": None},
        {"op": 7},
        [],
        "pong",
        b"\xff\xfe",
        None,
    ]

    @staticmethod
    def ways() -> list[Any]:
        """Both parsers."""
        return [parse_public_message, lambda message: parse_private_message(message, "r", "a")]

    @pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: str(reply.get("op", reply.get("topic"))))
    def test_a_reply_or_another_topic_gives_nothing(self, reply: Any) -> None:
        """Nothing is to be stored of it, and a loop over the socket's messages goes on."""
        for parse in self.ways():
            assert parse(reply) == ([], [])
            assert parse(json.dumps(reply)) == ([], [])

    def test_a_refusal_says_which_topics_failed(self) -> None:
        """So that a person knows what is not recorded."""
        for parse in self.ways():
            with pytest.raises(InputError, match=r"publicTrade\.NONE"):
                parse({"success": True, "type": "COMMAND_RESP", "data": {"failTopics": ["publicTrade.NONE"]}})

    @pytest.mark.parametrize("message", REFUSALS, ids=repr)
    def test_a_refusal_or_what_is_no_message_is_an_error(self, message: Any) -> None:
        """A subscription that failed must not look like a quiet market."""
        for parse in self.ways():
            with pytest.raises(InputError):
                parse(message)

    def test_its_own_topic_gives_rows(self) -> None:
        """The same as the parser of that topic."""
        trades = parse_public_trades(trade_message(), RECEIVED)
        assert parse_public_message(json.dumps(trade_message()), RECEIVED) == trades
        fills = parse_executions(execution_message(), "r", "a")
        assert parse_private_message(execution_message(), "r", "a") == fills
        with pytest.raises(InputError, match="no data"):
            parse_public_message({"topic": "publicTrade.X"})


@pytest.mark.parametrize(
    "text",
    [
        '{"topic":"publicTrade.X","data":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"topic":"publicTrade.X","data":[{"p":1e99999999999999999999}]}',
        '{"topic":"publicTrade.X","data":[{"p":' + "1" * 5000 + "}]}",
    ],
    ids=["deep", "exponent", "digits"],
)
def test_json_that_python_cannot_read_is_an_input_error(text: str) -> None:
    """Neither a RecursionError nor an error of decimal comes out of a parser, not even its name."""
    for parse in (parse_public_trades, parse_recent_trades, parse_public_message):
        with pytest.raises(InputError, match=r"not JSON \([A-Za-z]"):
            parse(text)
    for parse_private in (parse_executions, parse_execution_list, parse_private_message):
        with pytest.raises(InputError, match="not JSON"):
            parse_private(text, "r", "a")


class TestExecutions:
    """execution and execution.fast messages, and /v5/execution/list."""

    def test_an_entry_becomes_the_row_that_is_stored(self) -> None:
        """Every column has the message's value, and raw_json the whole entry."""
        parsed = parse_executions(execution_message(), "run-1", "account-1")
        assert parsed.rejected == []
        assert parsed.rows == [
            {
                "run_id": "run-1",
                "account_id": "account-1",
                "symbol": "BTCUSDT",
                "exec_id": "11e2ae69-4edf-5800-a352-893d52b446ab",
                "order_id": "22e324ff-99c2-4e89-9739-3086e47f9382",
                "order_link_id": "grid-17",
                "exchange_ts": datetime(2025, 3, 10, 10, 0, 0, 353000, tzinfo=UTC),
                "side": "Sell",
                "exec_price": Decimal("61234.5"),
                "exec_qty": Decimal("0.25"),
                "exec_fee": Decimal("8.41974375"),
                "closed_pnl": Decimal("12.5"),
                "raw_json": execution_entry(),
            }
        ]

    @pytest.mark.parametrize("topic", ["execution", "execution.linear", "execution.spot"])
    def test_the_topic_may_name_its_category(self, topic: str) -> None:
        """One subscription for all categories or one for each: the entries are the same."""
        assert len(parse_executions(execution_message(topic=topic), "r", "a").rows) == 1

    @pytest.mark.parametrize("topic", ["execution.fast", "execution.fast.linear"])
    def test_the_fast_stream_tells_neither_fee_nor_profit(self, topic: str) -> None:
        """They are None, not zero; what it does tell is stored."""
        (row,) = parse_executions(fast_execution_message(topic), "run-1", "account-1").rows
        assert row["exec_fee"] is None
        assert row["closed_pnl"] is None
        assert (row["exec_price"], row["exec_qty"]) == (Decimal("143.27"), Decimal(12))
        assert row["exchange_ts"] == datetime(2025, 3, 10, 10, 0, 1, 334000, tzinfo=UTC)

    def test_an_empty_text_is_nothing(self) -> None:
        """Bybit writes "" for a link id, fee or profit that there is none of."""
        entry = execution_entry(orderLinkId="", execFee="", execPnl="", markPrice="", feeRate="")
        (row,) = parse_executions(execution_message(entry), "r", "a").rows
        assert (row["order_link_id"], row["exec_fee"], row["closed_pnl"]) == (None, None, None)

    def test_rebates_and_losses_keep_their_sign(self) -> None:
        """A negative fee is a rebate, a negative profit a loss."""
        entry = execution_entry(execFee="-0.0031", execPnl="-4.25")
        (row,) = parse_executions(execution_message(entry), "r", "a").rows
        assert (row["exec_fee"], row["closed_pnl"]) == (Decimal("-0.0031"), Decimal("-4.25"))

    @pytest.mark.parametrize("kind", sorted(FILLS))
    def test_every_type_that_changes_a_position_is_a_fill(self, kind: str) -> None:
        """Liquidations, deleveraging, settlements and moved positions are stored as trades are."""
        assert len(parse_executions(execution_message(execution_entry(execType=kind)), "r", "a").rows) == 1

    @pytest.mark.parametrize("kind", ["Funding", "SessionSettlePnL", "UNKNOWN", "Invented", 7, ["Trade"]])
    def test_a_type_that_is_no_fill_is_given_back(self, kind: Any) -> None:
        """Funding carries the size of the whole position, which was not traded; what is unknown may do so too."""
        parsed = parse_executions(execution_message(execution_entry(execType=kind), execution_entry()), "r", "a")
        assert len(parsed.rows) == 1
        assert parsed.rejected[0].position == 0
        assert "is no fill" in parsed.rejected[0].reason

    @pytest.mark.parametrize("kind", [None, ""])
    def test_a_type_that_is_not_told_counts_as_a_trade(self, kind: str | None) -> None:
        """Losing a fill for a field that is not stored would be worse."""
        assert len(parse_executions(execution_message(execution_entry(execType=kind)), "r", "a").rows) == 1

    def test_what_the_exchange_does_by_itself_may_have_no_order(self) -> None:
        """A settlement without an order is stored with an empty order id; a trade without one is given back."""
        settled = execution_entry(execType="Settle", orderId="")
        traded = execution_entry(orderId="")
        parsed = parse_executions(execution_message(settled, traded), "r", "a")
        assert [row["order_id"] for row in parsed.rows] == [""]
        assert "orderId" in parsed.rejected[0].reason

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("execPrice", "", "execPrice is empty"),
            ("execPrice", "-1", "no fill"),
            ("execPrice", 1.5, "came as a float"),
            ("execPrice", "1e13", "too large"),
            ("execPrice", "0.000000001234", "would become 0"),
            ("execQty", "0.000000001", "would become 0"),
            ("execQty", "-1e-9", "would become 0"),
            ("execId", "2.29E+18", "what a spreadsheet leaves of a number"),
            ("orderId", "1.5e+10", "what a spreadsheet leaves of a number"),
            ("legs", [{"symbol": "SOLUSDT", "execId": "x"}], "combination of a spread"),
            ("note", "a\0b", "cannot be kept in raw_json"),
            ("note", "\ud800", "cannot be kept in raw_json"),
            ("note", float("nan"), "cannot be kept in raw_json"),
            ("execQty", "0", "no fill"),
            ("execQty", "-1", "no fill"),
            ("execQty", None, "execQty is missing"),
            ("execFee", "free", "is not a number"),
            ("execFee", 0.1, "came as a float"),
            ("execPnl", "NaN", "is not a number"),
            ("execId", "", "execId is missing or empty"),
            ("execId", "x" * 51, "more than the 50"),
            ("orderLinkId", "x" * 51, "more than the 50"),
            ("orderLinkId", ["x"], "not plain text"),
            ("symbol", "X" * 33, "more than the 32"),
            ("side", "", "neither Buy nor Sell"),
            ("execTime", "", "no Unix time"),
            ("execTime", None, "execTime is missing"),
        ],
    )
    def test_a_value_that_cannot_be_stored_costs_its_row_alone(self, name: str, value: Any, reason: str) -> None:
        """The row is given back with its place and the reason; the others are taken."""
        bad = execution_entry(**{name: value})
        parsed = parse_executions(execution_message(execution_entry(), bad), "r", "a")
        assert len(parsed.rows) == 1
        (rejected,) = parsed.rejected
        assert (rejected.position, rejected.row) == (1, bad)
        assert reason in rejected.reason

    def test_the_list_over_rest_gives_the_same_rows(self) -> None:
        """Stream and REST spell an execution alike."""
        asked = parse_execution_list(rest_answer(execution_entry()), "run-1", "account-1")
        assert asked == parse_executions(execution_message(), "run-1", "account-1")

    def test_the_list_over_rest_without_profit_leaves_it_open(self) -> None:
        """The documented answer has no execPnl."""
        entry = execution_entry()
        del entry["execPnl"]
        assert parse_execution_list(rest_answer(entry), "r", "a").rows[0]["closed_pnl"] is None

    @pytest.mark.parametrize("amount", ["0.000000001", "1e15", "123456789012.123456789"])
    def test_a_fill_is_never_dropped_for_the_digits_of_its_fee(
        self, session: Session, sample_run: Run, amount: str
    ) -> None:
        """What the columns cannot hold of a fee or profit is told, raw_json has it, and 0 is only what is 0."""
        entry = execution_entry(execFee=amount, execPnl=f"-{amount}")
        rows, rejected = parse_executions(execution_message(entry), sample_run.run_id, sample_run.account_id)
        assert rejected == []
        result = PrivateExecutionRepository(session, sample_run.user_id).bulk_create(rows)
        assert (result.inserted, result.rounded) == (1, 1)
        stored = session.scalars(select(PrivateExecution)).one()
        assert stored.raw_json == entry
        assert stored.exec_fee != 0
        assert stored.exec_fee is None or abs(stored.exec_fee - Decimal(amount)) < Decimal("0.001")
        assert stored.closed_pnl == (None if stored.exec_fee is None else -stored.exec_fee)

    @pytest.mark.parametrize("topic", ["order", "executions", "publicTrade.BTCUSDT", None])
    def test_a_message_of_another_topic_is_an_error(self, topic: str | None) -> None:
        """Orders are no executions."""
        with pytest.raises(InputError, match="not of execution"):
            parse_executions({"topic": topic, "data": []}, "r", "a")

    def test_a_stored_execution_keeps_every_digit(self, session: Session, sample_run: Run) -> None:
        """A 19-digit seq, and a price and fee beyond 8 places, come back from raw_json as they were sent."""
        entry = execution_entry(seq=9_223_372_036_854_775_807, execFee="0.005403779", execPrice="0.000004321")
        rows = parse_executions(execution_message(entry), sample_run.run_id, sample_run.account_id).rows
        PrivateExecutionRepository(session, sample_run.user_id).bulk_create(rows)
        stored = session.scalars(select(PrivateExecution)).one()
        assert stored.raw_json == entry
        assert stored.exec_fee == Decimal("0.00540378")


class TestArchives:
    """Daily archives."""

    def test_a_line_of_a_linear_archive_becomes_the_row_that_is_stored(self, tmp_path: Path) -> None:
        """The exchange's time, cut to the millisecond, stands in for the local one, which archives do not know."""
        moment = datetime(2025, 3, 10, 10, 0, 0, 54000, tzinfo=UTC)
        assert list(read_archive(derivatives_archive(tmp_path / "any.csv", 1))) == [
            {
                "symbol": "BTCUSDT",
                "trade_id": "00000000-0000-5000-8000-000000000000",
                "exchange_ts": moment,
                "local_ts": moment,
                "side": "Buy",
                "price": Decimal("64000.00"),
                "size": Decimal("0.001"),
            }
        ]

    def test_a_line_of_a_spot_archive_becomes_the_row_that_is_stored(self, tmp_path: Path) -> None:
        """The symbol is the file's, the id its number in the file, the side spelt as everywhere."""
        moment = datetime(2025, 3, 10, 10, 0, 0, 3000, tzinfo=UTC)
        assert list(read_archive(spot_archive(tmp_path / "1INCHUSDT_2025-03-10.csv.gz", 1))) == [
            {
                "symbol": "1INCHUSDT",
                "trade_id": "1",
                "exchange_ts": moment,
                "local_ts": moment,
                "side": "Sell",
                "price": Decimal("0.2001"),
                "size": Decimal("2.5"),
            }
        ]

    @pytest.mark.parametrize(
        ("written_time", "microseconds"),
        [
            ("1741600800.0547", 54_000),
            ("1741600800.9999", 999_000),
            ("1741600800.05", 50_000),
            ("1741600800.1", 100_000),
            ("1741600800", 0),
            ("1741600800000", 0),
            ("1741600800054", 54_000),
            ("1741600800054.7", 54_000),
        ],
    )
    def test_times_come_in_seconds_and_milliseconds(self, tmp_path: Path, written_time: str, microseconds: int) -> None:
        """With a fraction or whole; what is finer than a millisecond is cut off, never rounded up."""
        path = written(tmp_path / "a.csv", DERIVATIVES_HEADER, [archive_line(timestamp=written_time)])
        (row,) = read_archive(path)
        assert row["exchange_ts"] == datetime(2025, 3, 10, 10, 0, 0, microseconds, tzinfo=UTC)

    @pytest.mark.parametrize("header", [DERIVATIVES_HEADER, DERIVATIVES_HEADER.removesuffix(",RPI")])
    def test_the_rpi_column_may_be_there_or_not(self, tmp_path: Path, header: str) -> None:
        """Archives before and after its introduction read alike."""
        line = ",".join(archive_line().split(",")[: header.count(",") + 1])
        assert len(list(read_archive(written(tmp_path / "a.csv", header, [line])))) == 1

    def test_a_spot_archive_of_five_columns_ends_with_the_side(self, tmp_path: Path) -> None:
        """The last column does not keep the line's end."""
        path = written(tmp_path / "AUSDT_2022-11-10.csv", "id,timestamp,price,volume,side", ["1,1741600800,2,3,buy"])
        assert [row["side"] for row in read_archive(path)] == ["Buy"]

    def test_columns_go_by_name(self, tmp_path: Path) -> None:
        """Their order, their letters' case and further ones do not matter."""
        header = "TRDMATCHID,Price,extra,size,side,symbol,Timestamp"
        path = written(tmp_path / "a.csv", header, ["id-1,2.5,x,3,Buy,ETHUSDT,1741600800"])
        (row,) = read_archive(path)
        assert (row["trade_id"], row["price"], row["size"], row["symbol"]) == ("id-1", Decimal("2.5"), 3, "ETHUSDT")

    def test_scientific_notation_is_a_number(self, tmp_path: Path) -> None:
        """In columns that are stored it is read exactly; in the others it is nobody's business."""
        line = archive_line(size="1e-05", price="6.5e+4", grossValue="1.2e+400", foreignNotional="?")
        (row,) = read_archive(written(tmp_path / "a.csv", DERIVATIVES_HEADER, [line]))
        assert (row["size"], row["price"]) == (Decimal("0.00001"), Decimal(65000))

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    @pytest.mark.parametrize("start", ["", "\ufeff"])
    def test_line_ends_and_a_byte_order_mark_are_no_part_of_the_data(
        self, tmp_path: Path, start: str, end: str
    ) -> None:
        """Neither is an empty line."""
        path = written(tmp_path / "AUSDT_2022-11-10.csv", f"{start}{SPOT_HEADER}", [spot_line(), ""], end)
        archive = read_archive(path)
        assert len(list(archive)) == 1
        assert archive.rejected == []

    def test_gzip_is_known_by_its_content(self, tmp_path: Path) -> None:
        """A file that a browser unpacked and one that lost its ending both read."""
        packed = derivatives_archive(tmp_path / "a.csv.gz", 3).rename(tmp_path / "packed.csv")
        unpacked = derivatives_archive(tmp_path / "b.csv", 3).rename(tmp_path / "unpacked.csv.gz")
        assert list(read_archive(packed)) == list(read_archive(unpacked))

    @pytest.mark.parametrize(
        ("name", "symbol"),
        [
            ("BTCUSDT_2025-05-19.csv.gz", "BTCUSDT"),
            ("BTCUSDT_2025-05-19.csv", "BTCUSDT"),
            ("BTCUSDT-2025-05.csv.gz", "BTCUSDT"),
            ("1000PEPEUSDT_2025-05-19.csv.gz", "1000PEPEUSDT"),
            ("spot_1INCHUSDT_2025-05-19.csv", "1INCHUSDT"),
            ("BTCUSDT_2025-05-19 (1).csv.gz", "BTCUSDT"),
            ("BTCUSDT2025-05-19.csv.gz", "BTCUSDT"),
        ],
    )
    def test_a_spot_archive_is_of_the_symbol_in_its_name(self, tmp_path: Path, name: str, symbol: str) -> None:
        """As Bybit names its files, and as they are called after a download or two."""
        assert {row["symbol"] for row in read_archive(spot_archive(tmp_path / name, 2))} == {symbol}

    def test_a_given_symbol_goes_before_the_name_of_a_spot_archive(self, tmp_path: Path) -> None:
        """A file may be called anything when the symbol is told."""
        for name in ("trades.csv", "BTCUSDT_2025-05-19.csv"):
            assert {row["symbol"] for row in read_archive(spot_archive(tmp_path / name, 2), "ETHUSDT")} == {"ETHUSDT"}

    def test_a_spot_archive_of_no_known_symbol_is_an_error(self, tmp_path: Path) -> None:
        """The remedy is named."""
        with pytest.raises(InputError, match=r"--symbol"):
            list(read_archive(spot_archive(tmp_path / "trades.csv", 2)))

    def test_a_given_symbol_that_does_not_fit_is_an_error(self, tmp_path: Path) -> None:
        """It would spoil every row."""
        with pytest.raises(InputError, match="more than the 32"):
            list(read_archive(spot_archive(tmp_path / "trades.csv", 2), "X" * 33))

    def test_a_given_symbol_is_the_only_one_taken_from_the_others(self, tmp_path: Path) -> None:
        """Rows of another symbol are given back."""
        lines = [archive_line(0), archive_line(1, symbol="ETHUSDT")]
        archive = read_archive(written(tmp_path / "a.csv", DERIVATIVES_HEADER, lines), "ETHUSDT")
        assert [row["symbol"] for row in archive] == ["ETHUSDT"]
        assert [rejected.position for rejected in archive.rejected] == [2]

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            ({"timestamp": ""}, "no Unix time"),
            ({"timestamp": "timestamp"}, "no Unix time"),
            ({"timestamp": "1741600800."}, "is not a number"),
            ({"timestamp": "1741600800.05x"}, "is not a number"),
            ({"timestamp": "1.7416008e9"}, "is not a number"),
            ({"timestamp": "1741600800123456"}, "no Unix time"),
            ({"symbol": ""}, "symbol is missing or empty"),
            ({"symbol": "X" * 33}, "more than the 32"),
            ({"side": ""}, "neither Buy nor Sell"),
            ({"size": ""}, "size is empty"),
            ({"size": "0"}, "not above zero"),
            ({"size": "0.000000001"}, "more than the 8 decimal places"),
            ({"price": "12,5"}, "12 columns, not the header's 11"),
            ({"price": "nan"}, "is not a number"),
            ({"price": "1e12"}, "too large"),
            ({"trdMatchID": ""}, "trade id is missing or empty"),
            ({"trdMatchID": "x" * 51}, "more than the 50"),
            ({"trdMatchID": "\udcff"}, "is not plain text"),
        ],
    )
    def test_a_bad_line_costs_itself_alone(self, tmp_path: Path, values: dict[str, str], reason: str) -> None:
        """It is given back whole, with its number in the file and the reason; the lines around it are taken."""
        bad = archive_line(1, **values)
        path = tmp_path / "a.csv"
        lines = [DERIVATIVES_HEADER, archive_line(0), bad, archive_line(2)]
        path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
        archive = read_archive(path)
        assert [row["trade_id"][-1] for row in archive] == ["0", "2"]
        (rejected,) = archive.rejected
        assert (rejected.position, rejected.row) == (3, bad)
        assert reason in rejected.reason

    @pytest.mark.parametrize("bad", ["1741600800,BTCUSDT", archive_line(1)[:60], '"', "x", "\x00", ",,,,,,,,,,"])
    def test_a_broken_line_costs_itself_alone(self, tmp_path: Path, bad: str) -> None:
        """A quotation mark too: Bybit quotes nothing, and it must not swallow what follows."""
        path = written(tmp_path / "a.csv", DERIVATIVES_HEADER, [archive_line(0), bad, archive_line(2)])
        archive = read_archive(path)
        assert len(list(archive)) == 2
        assert [rejected.position for rejected in archive.rejected] == [3]

    def test_rejected_lines_go_where_the_caller_wants_them(self, tmp_path: Path) -> None:
        """With `on_rejected` nothing piles up, however many there are."""
        seen: list[int] = []
        path = written(tmp_path / "a.csv", DERIVATIVES_HEADER, ["bad", archive_line(), "worse"])
        archive = read_archive(path, on_rejected=lambda rejected: seen.append(rejected.position))
        assert len(list(archive)) == 1
        assert seen == [2, 4]
        assert archive.rejected == []

    def test_an_archive_can_be_read_again(self, tmp_path: Path) -> None:
        """Each iteration starts from the beginning, its rejected lines too."""
        archive = read_archive(written(tmp_path / "a.csv", DERIVATIVES_HEADER, ["bad", archive_line()]))
        assert list(archive) == list(archive)
        assert len(archive.rejected) == 1

    @pytest.mark.parametrize(
        ("make", "category", "taken"),
        [
            (spot_archive, "spot", True),
            (spot_archive, "linear", False),
            (spot_archive, "inverse", False),
            (derivatives_archive, "spot", False),
            (derivatives_archive, "linear", True),
            (derivatives_archive, "inverse", True),
        ],
    )
    def test_a_given_category_must_be_the_files(
        self, tmp_path: Path, make: Any, category: Category, taken: bool
    ) -> None:
        """An archive of another kind is refused before its first row."""
        archive = read_archive(make(tmp_path / "BTCUSDT_2025-03-10.csv", 1), category=category)
        if taken:
            assert len(list(archive)) == 1
        else:
            with pytest.raises(InputError, match=f"not one of category {category}"):
                next(iter(archive))

    def test_a_category_that_bybit_does_not_have_is_an_error(self, tmp_path: Path) -> None:
        """Options have no such archives."""
        with pytest.raises(InputError, match="linear, inverse or spot"):
            read_archive(tmp_path / "a.csv", category="option")  # type: ignore[arg-type] # what a caller may try

    @pytest.mark.parametrize("content", [b"", b"\n"], ids=["empty", "blank"])
    def test_an_empty_file_is_said_to_be_empty(self, tmp_path: Path, content: bytes) -> None:
        """A download that never began is told from one of another kind."""
        path = tmp_path / "BTCUSDT_2025-05-19.csv"
        path.write_bytes(content)
        with pytest.raises(InputError, match="is empty"):
            list(read_archive(path))

    @pytest.mark.parametrize(
        "content",
        [
            b"open,high,low,close\n1,2,3,4\n",
            b"1,1741600800000,0.2,3,buy,0\n",
            bytes(range(256)) * 100,
            b"x" * 1_000_000,
        ],
        ids=["candles", "no header", "binary", "one long line"],
    )
    def test_a_file_of_another_kind_is_an_error(self, tmp_path: Path, content: bytes) -> None:
        """It is told what its first line is, and where archives are."""
        path = tmp_path / "BTCUSDT_2025-05-19.csv"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"public\.bybit\.com"):
            list(read_archive(path))

    def test_a_header_alone_is_a_day_without_trades(self, tmp_path: Path) -> None:
        """It has no rows, and nothing is wrong."""
        assert list(read_archive(derivatives_archive(tmp_path / "a.csv", 0))) == []

    @pytest.mark.parametrize("name", ["missing.csv", "."])
    def test_a_file_that_cannot_be_opened_is_an_error(self, tmp_path: Path, name: str) -> None:
        """A folder cannot be either."""
        with pytest.raises(InputError, match=r"cannot be opened|is a folder"):
            list(read_archive(tmp_path / name))

    def test_half_a_download_is_an_error_after_its_rows(self, tmp_path: Path) -> None:
        """What is there is read, then it is said that the rest is missing."""
        path = derivatives_archive(tmp_path / "a.csv.gz", 5000)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        rows = iter(read_archive(path))
        assert next(rows)["symbol"] == "BTCUSDT"
        with pytest.raises(InputError, match="only half there"):
            list(rows)

    def test_a_damaged_download_is_an_error(self, tmp_path: Path) -> None:
        """The checksum tells."""
        path = derivatives_archive(tmp_path / "a.csv.gz", 5000)
        content = bytearray(path.read_bytes())
        content[-8] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            list(read_archive(path))

    def test_how_far_the_reading_is_can_be_asked(self, tmp_path: Path) -> None:
        """In bytes of the file as it lies there, so that a progress bar knows its end."""
        for name in ("a.csv", "a.csv.gz"):
            path = derivatives_archive(tmp_path / name, 20_000)  # more than gzip reads at a time
            archive = read_archive(path)
            assert archive.bytes_read == 0
            seen = [archive.bytes_read for _ in archive]
            assert 0 < seen[0] < seen[-1] == path.stat().st_size


amounts = st.decimals(min_value=Decimal("0.00000001"), max_value=Decimal(999999999999), places=8)
milliseconds = st.integers(min_value=1_420_070_400_000, max_value=2_051_222_400_000)
trades = st.lists(
    st.tuples(milliseconds, st.integers(0, 9), st.sampled_from(["Buy", "Sell"]), amounts, amounts), max_size=20
)


@settings(max_examples=100, deadline=None)
@given(trades=trades, spot=st.booleans(), rpi=st.booleans(), packed=st.booleans(), end=st.sampled_from(["\n", "\r\n"]))
def test_any_archive_reads_back_as_what_was_written(
    trades: list[tuple[int, int, str, Decimal, Decimal]],
    spot: bool,
    rpi: bool,
    packed: bool,
    end: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Every price and size digit for digit, every time to the millisecond, in every form of the format."""
    lines = []
    for number, (moment, tenth, side, size, price) in enumerate(trades, 1):
        if spot:
            values = [str(number), str(moment), f"{price:f}", f"{size:f}", side.lower()]
        else:
            time = f"{moment // 1000}.{moment % 1000:03}{tenth}"
            unused = [f"{size * price:e}", f"{size:f}", f"{price:e}"]
            values = [time, "BTCUSDT", side, f"{size:f}", f"{price:f}", "PlusTick", f"id-{number}", *unused]
        lines.append(",".join([*values, "1"] if rpi else values))
    header = SPOT_HEADER if spot else DERIVATIVES_HEADER
    name = f"BTCUSDT_2025-03-10.csv{'.gz' if packed else ''}"
    path = tmp_path_factory.mktemp("archive") / name
    archive = read_archive(written(path, header if rpi else header.rpartition(",")[0], lines, end))
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert [
        (row["exchange_ts"], row["local_ts"], row["symbol"], row["trade_id"], row["side"], row["size"], row["price"])
        for row in archive
    ] == [
        (
            epoch + timedelta(milliseconds=moment),
            epoch + timedelta(milliseconds=moment),
            "BTCUSDT",
            str(number) if spot else f"id-{number}",
            side,
            size,
            price,
        )
        for number, (moment, _, side, size, price) in enumerate(trades, 1)
    ]
    assert archive.rejected == []


@given(text=st.text(alphabet=st.sampled_from("0123456789.eE+-_ ,NaInfx\u0663"), max_size=12))
def test_a_text_is_the_number_it_says_or_is_given_back(text: str) -> None:
    """No spelling slips through as another number, and none breaks the message."""
    parsed = parse_public_trades(trade_message(trade_entry(p=text)))
    assert len(parsed.rows) + len(parsed.rejected) == 1
    for row in parsed.rows:
        assert re.fullmatch(r"\+?[0-9.]+([eE][+-]?[0-9]+)?", text)
        assert row["price"] == Decimal(text)


_times = st.from_regex(
    r"(16999999|1735689|40000000)[0-9]{2,3}(\.[0-9]{0,6})?|1735689[0-9]{6}|[0-9.]{0,16}", fullmatch=True
)


@settings(deadline=None)
@given(st.lists(st.one_of(_times, st.text(max_size=14)), min_size=1, max_size=4))
@example(["1735689600123", "173568960.123"])  # of the same length
@example(["1735689600.123\u0663"])
@example(["1735689600."])
def test_many_times_are_read_as_each_is(texts: list[str]) -> None:
    """Together or one by one, as datetimes or as the texts that are stored; and all refuse the same."""
    try:
        each = [instant_of(text) for text in texts]
    except RefusedError:
        with pytest.raises(RefusedError):
            instant_texts(texts)
        return
    together = InstantTexts(instant_texts(texts))
    assert list(together) == each
    assert together.texts == [f"{when:%Y-%m-%d %H:%M:%S.%f}" for when in each]
    assert ends_of(together) == ends_of(each)


def test_every_sample_is_read_whole(tmp_path: Path) -> None:
    """Rows made here and, where GRIDBOT_TEST_DATA names a folder of real files, those: none is given back."""
    spot_archive(tmp_path / "spot_AUSDT_2025-03-10.csv", 100)
    derivatives_archive(tmp_path / "linear_archive_rows.csv", 100)
    (tmp_path / "ws_public_trade.json").write_text(json.dumps(trade_message()))
    (tmp_path / "ws_execution_linear.json").write_text(json.dumps(execution_message()))
    folders = [tmp_path, *([Path(REAL_SAMPLES)] if REAL_SAMPLES else [])]
    files = [path for folder in folders for path in sorted(folder.iterdir())]
    for path in files:
        if path.name.startswith("ws_public_trade"):
            assert parse_public_trades(path.read_bytes()).rejected == []
        elif path.name.startswith("ws_execution"):
            assert parse_executions(path.read_bytes(), "run", "account").rejected == []
        else:
            archive = read_archive(path)
            assert len(list(archive)) == len(path.read_text().splitlines()) - 1
            assert archive.rejected == []
    assert len(files) >= 4
