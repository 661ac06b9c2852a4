from __future__ import annotations

import math
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pandas
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared.db import InputError, PrivateExecution, PublicTrade, Run, Side
from shared.db.recording.row_text import RowText, UnknownValue
from shared.db.tests.support import execution_values, trade_values

TRADES, EXECUTIONS = RowText(PublicTrade), RowText(PrivateExecution)

zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.decimals(allow_nan=False)
    | st.datetimes(timezones=st.none() | st.just(UTC) | zones, allow_imaginary=False)
    | st.dates()
    | st.uuids()
)
documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "$text", "$json", "$decimal"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def back(text: RowText, row: dict[str, Any]) -> dict[str, Any]:
    """The row after its way through text."""
    (row,) = text.decoded(text.encoded([row]))
    return row


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(row=st.dictionaries(st.sampled_from([*PublicTrade.__table__.columns.keys(), "no_column"]), values))
@example(row={"exchange_ts": "2025-05-19T00:00:00+00:00", "symbol": Decimal("1.50"), "price": datetime(2025, 1, 1)})  # noqa: DTZ001 # a naive one has to stay naive
def test_any_value_in_any_column_comes_back_as_it_was(row: dict[str, Any]) -> None:
    """Wrong ones too, so that what is refused now is refused after a restart; money as text may become a Decimal."""
    found = back(TRADES, row)
    assert list(found) == list(row)
    for name, value in row.items():
        kept = found[name]
        if name in ("price", "size") and isinstance(value, str):
            assert kept == value or kept == Decimal(value) or kept.is_nan()
            continue
        assert kept == value
        assert type(kept) is type(value)
        if isinstance(value, Decimal):
            assert str(kept) == str(value)
        if isinstance(value, datetime):
            assert kept.utcoffset() == value.utcoffset()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(document=st.lists(documents, max_size=3) | st.dictionaries(st.sampled_from(["a", "$text", "$json"]), documents))
def test_any_document_comes_back_as_it_was(document: Any) -> None:
    """Also one that looks like the marks of this format."""
    assert back(EXECUTIONS, {"raw_json": document}) == {"raw_json": document}


def test_a_good_row_is_easy_to_read_and_to_mend() -> None:
    """Plain JSON: ISO times, digits in strings, documents as they are."""
    run = Run(run_id="r", account_id="a")
    text = EXECUTIONS.encoded([execution_values(run, exec_price=Decimal("0.25"), side=Side.BUY)]).decode()
    assert '"exchange_ts":"2025-05-03T11:07:00+00:00"' in text
    assert '"exec_price":"0.25"' in text
    assert '"side":"Buy"' in text
    assert '"raw_json":{"execId":"exec-0"}' in text


def test_what_has_no_text_comes_back_as_something_no_column_takes() -> None:
    """With a description for whoever reads the file."""
    for value in (object(), b"bytes", time(11, 7), {1: 2}, {"price": math.nan}, 1 << 20_000, [object()]):
        for name in ("symbol", "price", "exchange_ts"):
            assert isinstance(back(TRADES, {name: value})[name], UnknownValue)
    assert "time: datetime.time" in repr(back(TRADES, {"symbol": time(11, 7)})["symbol"])
    assert math.isnan(back(TRADES, {"price": math.nan})["price"])


def test_pandas_timestamps_are_kept_unless_nanoseconds_would_be_lost() -> None:
    """As bulk_create has it."""
    when = trade_values()["exchange_ts"]
    assert back(TRADES, {"exchange_ts": pandas.Timestamp(when)}) == {"exchange_ts": when}
    fine = pandas.Timestamp(when) + pandas.Timedelta(1, "ns")
    assert isinstance(back(TRADES, {"exchange_ts": fine})["exchange_ts"], UnknownValue)
    assert isinstance(back(TRADES, {"exchange_ts": pandas.NaT})["exchange_ts"], UnknownValue)


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '[{"symbol": {"$no": 1}}]', '[{"price": {"$decimal": "x"}}]'])
def test_text_that_was_never_written_here_is_an_input_error(text: str) -> None:
    """And the error shows none of it."""
    with pytest.raises(InputError):
        TRADES.decoded(text)
