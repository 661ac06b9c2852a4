"""`on_conflict="fill"`: a later message of a fill completes what an earlier one stored, and digits are never lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import permutations
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import delete, select

from shared.db import (
    DatabaseFactory,
    InvalidValueError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Run,
    TenantViolation,
    User,
    parse_execution_list,
    parse_executions,
)
from shared.db.bulk import BulkResult, RowNote, bulk_create
from shared.db.tests.bybit_samples import execution_entry, execution_message, rest_answer
from shared.db.tests.support import (
    execution_values,
    in_children,
    trade_values,
    two_runs,
    with_and_without_policies,
)

FAST = {"category", "symbol", "execId", "execPrice", "execQty", "orderId", "isMaker", "side", "execTime", "seq"}
FILLED = {"order_link_id": "grid-17", "exec_fee": Decimal("8.41974375"), "closed_pnl": Decimal("12.5")}


def fast(run: Run, **values: Any) -> list[dict[str, Any]]:
    """A fill as `execution.fast` tells it: without fee, profit and, for makers, the client's own id."""
    entry = {name: value for name, value in execution_entry(**values).items() if name in FAST}
    message = execution_message({**entry, "orderLinkId": ""}, topic="execution.fast")
    return parse_executions(message, run.run_id, run.account_id).rows


def slow(run: Run, **values: Any) -> list[dict[str, Any]]:
    """The same fill as `execution` tells it."""
    return parse_executions(execution_message(execution_entry(**values)), run.run_id, run.account_id).rows


def rest(run: Run, **values: Any) -> list[dict[str, Any]]:
    """The same fill as REST tells it: without the profit."""
    entry = {name: value for name, value in execution_entry(**values).items() if name != "execPnl"}
    return parse_execution_list(rest_answer(entry), run.run_id, run.account_id).rows


def counts(result: BulkResult) -> tuple[int, int, int, int]:
    """Inserted, updated, unchanged, contradicted."""
    return result.inserted, result.updated, result.skipped, result.contradicted


@pytest.fixture
def ann(db: DatabaseFactory) -> Iterator[Run]:
    """A user's run without executions."""
    run, _ = two_runs(db, executions=0)
    return run  # type: ignore[return-value] # a fixture may return as well as yield


@pytest.mark.parametrize("order", list(permutations((fast, slow, rest))))
def test_a_fill_is_whole_whichever_message_came_first(db: DatabaseFactory, ann: Run, order: Any) -> None:
    """What the fast stream, the slow one and REST know of a fill ends in one row, and none of them clears any."""
    for _ in with_and_without_policies(db):
        with db.get_session(user_id="ann") as session:
            repository = PrivateExecutionRepository(session)
            updated = 0
            for told in order:
                result = repository.bulk_create(told(ann), on_conflict="fill")
                assert (result.contradicted, result.notes) == (0, ())
                updated += result.updated
            stored = session.scalars(select(PrivateExecution)).one()
            assert {name: getattr(stored, name) for name in FILLED} == FILLED
            assert stored.raw_json is not None
            assert "execFee" in stored.raw_json, "the richer message is kept"
            assert updated == {fast: 2 - (order.index(slow) < order.index(rest)), slow: 0, rest: 1}[order[0]]
            session.execute(delete(PrivateExecution))


def _frame(rows: list[dict[str, Any]]) -> Any:
    names = [name for name in rows[0] if name != "raw_json"]
    money = pa.decimal128(20, 8)
    kinds = {"exec_price": money, "exec_qty": money, "exec_fee": money, "closed_pnl": money}
    kinds |= {"exchange_ts": pa.timestamp("us", "UTC"), "order_link_id": pa.string()}
    columns = {name: pa.array([row[name] for row in rows], kinds.get(name)) for name in names}
    return pa.table(columns)


FORMS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "dicts": list,
    "generator": iter,
    "objects": lambda rows: [PrivateExecution(**row) for row in rows],
    "frame": _frame,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [1, 4, 5000])
def test_what_became_of_each_row_is_counted(db: DatabaseFactory, ann: Run, form: str, batch_size: int) -> None:
    """Inserted, filled, unchanged and contradicting rows, among stored ones and within the call, however given."""
    empty: dict[str, Any] = {"exec_fee": None, "closed_pnl": None, "raw_json": None}
    first = [execution_values(ann, number, **empty) for number in range(3)]
    second = [
        execution_values(ann, 0, **empty),  # unchanged
        execution_values(ann, 1, **empty | {"exec_fee": Decimal(1)}),  # fills
        execution_values(ann, 2, **empty | {"exec_fee": Decimal(2), "side": "Buy"}),  # fills, and contradicts
        execution_values(ann, 3, **empty),  # new
        execution_values(ann, 3, **empty | {"exec_fee": Decimal(3)}),  # fills
        execution_values(ann, 3, **empty | {"exec_fee": Decimal(4)}),  # contradicts
        execution_values(ann, 3, **empty | {"closed_pnl": Decimal(5)}),  # fills
        execution_values(ann, 3, **empty | {"exec_fee": Decimal(3), "closed_pnl": Decimal(5)}),  # unchanged
        execution_values(ann, 4, **empty),  # new
    ]
    for _ in with_and_without_policies(db):
        with db.get_session(user_id="ann") as session:
            create = PrivateExecutionRepository(session).bulk_create
            assert counts(create(FORMS[form](first), on_conflict="fill", batch_size=batch_size)) == (3, 0, 0, 0)
            result = create(FORMS[form](second), on_conflict="fill", batch_size=batch_size)
            assert counts(result) == (2, 4, 3, 2)
            assert [(note.position, note.text) for note in result.notes] == [
                (2, "side: another value is stored, and stays"),
                (5, "exec_fee: another value is stored, and stays"),
            ]
            rows = session.execute(
                select(PrivateExecution.side, PrivateExecution.exec_fee, PrivateExecution.closed_pnl).order_by(
                    PrivateExecution.exec_id
                )
            )
            known = [("Sell", None, None), ("Sell", 1, None), ("Sell", 2, None), ("Sell", 3, 5), ("Sell", None, None)]
            assert [tuple(row) for row in rows] == known
            session.execute(delete(PrivateExecution))
            session.expunge_all()


def test_a_message_that_contradicts_brings_no_document(db: DatabaseFactory, ann: Run) -> None:
    """The stored columns and the stored message go on saying the same; what is NULL is filled all the same."""
    with db.get_session() as session:
        repository = PrivateExecutionRepository(session, "ann")
        repository.bulk_create(fast(ann))
        result = repository.bulk_create(slow(ann, execPrice="61234.6"), on_conflict="fill")
        assert counts(result) == (0, 1, 0, 1)
        stored = session.scalars(select(PrivateExecution)).one()
        assert (stored.exec_price, stored.exec_fee) == (Decimal("61234.5"), FILLED["exec_fee"])
        assert stored.raw_json is not None
        assert stored.raw_json["execPrice"] == "61234.5"
        stored.raw_json = None
        assert counts(repository.bulk_create(slow(ann, execPrice="7"), on_conflict="fill")) == (0, 1, 0, 1)
        assert stored.raw_json == slow(ann, execPrice="7")[0]["raw_json"], "and objects of the session show it"


def test_tables_without_gaps_are_compared_too(db: DatabaseFactory, ann: Run) -> None:
    """A trade has nothing to fill, and another price is told; defaults that no row names contradict nothing."""
    with db.get_session() as session:
        create = PublicTradeRepository(session).bulk_create
        assert counts(create([trade_values(1), trade_values(2)], on_conflict="fill")) == (2, 0, 0, 0)
        again = [trade_values(1, price=Decimal(1)), trade_values(2)]
        assert counts(create(again, on_conflict="fill")) == (0, 0, 2, 1)
        assert session.scalars(select(PublicTrade.price).distinct()).all() == [trade_values()["price"]]
        user = session.get_one(User, "ann")
        user.status, before = "suspended", user.updated_at
        session.flush()
        row: dict[str, Any] = {"user_id": "ann", "username": "ann"}
        assert counts(bulk_create(session, User, [row], on_conflict="fill")) == (0, 0, 1, 0)
        row |= {"status": "active", "email": "ann@example.org"}
        assert counts(bulk_create(session, User, [row], on_conflict="fill")) == (0, 1, 0, 1)
        assert (user.status, user.email) == ("suspended", "ann@example.org")
        assert user.updated_at >= before


def test_only_ones_own_rows_are_filled(db: DatabaseFactory) -> None:
    """Another user's run is refused, and a table whose key does not name the owner is not filled at all."""
    ann, bob = two_runs(db, executions=1)
    for _ in with_and_without_policies(db):
        with db.get_session(user_id="ann") as session:
            with pytest.raises(TenantViolation):
                PrivateExecutionRepository(session).bulk_create(
                    [execution_values(bob, 0, exec_id="000000", exec_fee=Decimal(7))], on_conflict="fill"
                )
            run = {"run_id": "run-bob", "user_id": "ann", "account_id": "acc-ann", "run_type": "live"}
            with pytest.raises(TenantViolation):
                bulk_create(session, Run, [run | {"strategy_id": ann.strategy_id}], on_conflict="fill")
        with db.get_session() as session:
            fees = session.scalars(select(PrivateExecution.exec_fee).where(PrivateExecution.run_id == "run-bob"))
            assert fees.all() == [None]


@pytest.mark.parametrize("rounds", [3])
def test_two_processes_fill_one_row(lasting: DatabaseFactory, rounds: int) -> None:
    """Two recorders of one account, one on each stream, write at the same moment, and no row lacks anything."""
    run, _ = two_runs(lasting, executions=0)
    for number in range(rounds):
        ids = [f"{number}-{index:03}" for index in range(200)]

        def write(child: int, ids: list[str] = ids) -> Any:
            told = (fast, slow)[child]
            with DatabaseFactory(lasting.settings) as db:
                rows = [row for exec_id in ids for row in told(run, execId=exec_id)]

                def work(session: Any) -> BulkResult:
                    return PrivateExecutionRepository(session).bulk_create(rows, on_conflict="fill", batch_size=50)

                return counts(db.run_in_transaction(work, user_id="ann"))

        results = in_children(2, write)
        assert sum(result[0] for result in results) == 200
        assert sum(result[3] for result in results) == 0
    with lasting.get_session() as session:
        columns = [getattr(PrivateExecution, name) for name in FILLED]
        rows = session.execute(select(*columns).distinct()).all()
    assert [row._mapping for row in rows] == [FILLED]


def test_digits_that_a_column_cannot_hold(db: DatabaseFactory, ann: Run) -> None:
    """Where raw_json keeps them no fill is dropped for its digits: columns keep what fits, and the result tells."""
    given = {
        "exec_fee": Decimal("748200776.01098546"),  # more digits than SQLite's floats give back
        "closed_pnl": Decimal("0.000000001"),  # would become 0
        "exec_price": Decimal("0.000009461"),
    }
    with db.get_session() as session:
        create = PrivateExecutionRepository(session, "ann").bulk_create
        on_sqlite = session.get_bind().dialect.name == "sqlite"
        for times in (1, 2):
            result = create([execution_values(ann, 0), execution_values(ann, 1, **given)], on_conflict="fill")
            assert (counts(result), result.rounded) == ((2, 0, 0, 0) if times == 1 else (0, 0, 2, 0), 1)
            (note,) = result.notes
            assert isinstance(note, RowNote)
            assert note.position == 1
            assert "exec_price 0.000009461 is stored as 0.00000946" in note.text
            assert "closed_pnl 1E-9 is stored as NULL" in note.text
            assert ("exec_fee" in note.text) == on_sqlite
        stored = session.scalars(select(PrivateExecution).where(PrivateExecution.exec_id == "exec-1")).one()
        assert stored.exec_fee == (Decimal("748200776.010985") if on_sqlite else given["exec_fee"])
        assert (stored.closed_pnl, stored.exec_price) == (None, Decimal("0.00000946"))
        # 13 digits before the point would be more than any column holds.
        nearly = create([execution_values(ann, 3, exec_qty=Decimal("999999999999.99999999"))], on_conflict="fill")
        assert (nearly.inserted, nearly.rounded) == (1, int(on_sqlite))
        at_most = session.scalars(select(PrivateExecution.exec_qty).where(PrivateExecution.exec_id == "exec-3")).one()
        assert at_most == Decimal("999999999999.999" if on_sqlite else "999999999999.99999999")
        too_large = create([execution_values(ann, 2, exec_fee=Decimal(10**15))], errors="collect")
        assert (too_large.inserted, too_large.rounded) == (1, 1)


def test_digits_that_nothing_keeps_are_refused(db: DatabaseFactory, ann: Run) -> None:
    """Without the message beside it, what the database cannot give back is an error; and a price is never 0 for it."""
    with db.get_session() as session:
        create = PrivateExecutionRepository(session, "ann").bulk_create
        tiny = Decimal("0.000000001234")
        bad = [
            execution_values(ann, 1, exec_price=tiny),
            execution_values(ann, 2, exec_qty=tiny, raw_json=None),
            execution_values(ann, 3, exec_fee=Decimal("748200776.01098546"), raw_json=None),
            execution_values(ann, 4, exec_fee=Decimal(10**15), raw_json=None),
        ]
        result = create(bad, errors="collect")
        refused = [0, 1, 2, 3] if session.get_bind().dialect.name == "sqlite" else [0, 1, 3]
        assert [row.position for row in result.errors] == refused
        assert all("would become 0" in row.reason for row in result.errors[:2])
        assert result.rounded == 0
        for values in (trade_values(1, price=tiny), trade_values(1, size=tiny)):
            with pytest.raises(InvalidValueError, match="would become 0"):
                PublicTradeRepository(session).bulk_create([values])
            with pytest.raises(InvalidValueError, match="would become 0"), session.begin_nested():
                session.add(PublicTrade(**values))
                session.flush()


def test_many_notes_are_counted_and_a_thousand_told(db: DatabaseFactory, ann: Run) -> None:
    """A call of any length keeps few rows in memory, and its counts are exact, also where batches are written twice."""
    rows = [execution_values(ann, number, exec_price=Decimal("1.123456789")) for number in range(1500)]
    with db.get_session() as session:
        create = PrivateExecutionRepository(session, "ann").bulk_create
        create(rows[1400:])
        result = create(iter(rows), batch_size=400, on_conflict="fill")
        assert (*counts(result), result.rounded) == (1400, 0, 100, 0, 1500)
        assert [note.position for note in result.notes] == list(range(1000))
