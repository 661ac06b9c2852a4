"""Fuzz targets: whatever a parser of messages is given, it gives storable rows, reasons, or an `InputError`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from shared.db import (
    DatabaseFactory,
    InputError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    parse_execution_list,
    parse_executions,
    parse_private_message,
    parse_public_message,
    parse_public_trades,
    parse_recent_trades,
)
from shared.db.exchanges.bybit import Parsed
from shared.db.tests.bybit_samples import execution_entry, trade_entry
from shared.db.tests.support import two_runs

RUN, ACCOUNT = "run-ann", "acc-ann"
TARGETS: dict[str, Callable[[Any], Parsed]] = {
    "public trades": parse_public_trades,
    "recent trades": parse_recent_trades,
    "public socket": parse_public_message,
    "executions": lambda message: parse_executions(message, RUN, ACCOUNT),
    "execution list": lambda message: parse_execution_list(message, RUN, ACCOUNT),
    "private socket": lambda message: parse_private_message(message, RUN, ACCOUNT),
}

texts = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["", "0", "1e-9", "1e15", "-1", "NaN", "2.29E+18", "1741600800123", "1741600800.5", "Buy", "\0"]),
    st.decimals().map(str),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just(4000).map(lambda digits: 10**digits)
)
values = st.recursive(scalars, lambda inner: st.one_of(st.lists(inner), st.dictionaries(texts, inner)), max_leaves=5)
rest_entry: dict[str, Any] = {
    "execId": "1",
    "symbol": "S",
    "price": "1",
    "size": "1",
    "side": "Buy",
    "time": "1741600800123",
}


def variants(entry: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The entry with some of its fields replaced by anything."""
    changes = st.dictionaries(st.sampled_from([*entry, "legs", "note"]), values, max_size=3)
    return changes.map(lambda changed: entry | changed)


entries = st.one_of(variants(trade_entry()), variants(execution_entry()), variants(rest_entry), values)
topics = st.one_of(st.sampled_from(["publicTrade.X", "execution", "execution.fast", "tickers"]), values)
messages = st.one_of(
    st.fixed_dictionaries({"topic": topics, "data": st.one_of(st.lists(entries, max_size=3), values)}),
    st.fixed_dictionaries(
        {"retCode": values, "result": st.fixed_dictionaries({"list": st.lists(entries, max_size=3)})}
    ),
    st.dictionaries(st.sampled_from(["op", "type", "success", "ret_msg", "data", "retCode", "retMsg"]), values),
    values,
)
given_forms = st.one_of(messages, messages.map(str), st.binary(max_size=100), st.text(max_size=100))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[DatabaseFactory]:
    """An SQLite file, which takes the fewest digits, with the run that the fills name."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db:
        db.create_tables()
        two_runs(db, executions=0)
        yield db


@pytest.mark.parametrize("target", TARGETS)
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(given_forms, st.booleans())
def test_a_parser_raises_nothing_but_an_input_error(
    fleet: DatabaseFactory, target: str, message: Any, as_text: bool
) -> None:
    """As mapping, JSON text or any bytes; and what it takes, the database takes."""
    if as_text:
        with suppress(ValueError, TypeError):
            message = json.dumps(message)
    try:
        rows, rejected = TARGETS[target](message)
    except InputError:
        return
    assert all(row.reason for row in rejected)
    with fleet.get_session() as session:
        if rows and "run_id" in rows[0]:
            session.execute(delete(PrivateExecution))
            PrivateExecutionRepository.across_users(session).bulk_create(rows, on_conflict="fill")
        else:
            session.execute(delete(PublicTrade))
            PublicTradeRepository(session).bulk_create(rows)
