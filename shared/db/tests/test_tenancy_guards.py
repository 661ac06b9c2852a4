"""Guards that no other test of tenancy would miss: the mutation run found each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import BindParameter, ColumnElement, String, bindparam, cast, event, func, insert, select, text, update
from sqlalchemy.orm import Session, load_only

from shared.db import (
    BybitAccount,
    BybitAccountRepository,
    DatabaseFactory,
    Run,
    RunRepository,
    Strategy,
    StrategyRepository,
    TenantScopeError,
    TenantViolation,
    UserSession,
)
from shared.db.bulk import bulk_update
from shared.db.tests.fleet import refused_and_unwritten, run_values


class _TemplateString(ColumnElement[str]):
    """What SQLAlchemy 2.1 makes of a template string of Python 3.14, as far as its compiler can tell."""

    __visit_name__ = "tstring"
    inherit_cache = False


def test_template_strings_are_raw_sql(unpoliced_fleet: DatabaseFactory) -> None:
    """They are refused like text()."""
    with unpoliced_fleet.get_session(user_id="ann") as session, pytest.raises(TenantViolation):
        session.execute(select(_TemplateString()))


def test_a_merge_leaves_the_session_under_its_policies(fleet: DatabaseFactory) -> None:
    """It asks for a moment, outside of the role, whether a key is anybody's."""
    with fleet.get_session(user_id="ann") as session:
        assert isinstance(session, UserSession)
        session.merge(Run(run_id="run-new", **run_values("ann")))
        session.flush()
        if session.confined_by_server:
            assert set(session.scalars(text("SELECT run_id FROM runs"))) == {"run-ann", "run-new"}


def test_a_session_that_reads_merges_nobody_elses_row(busy_fleet: DatabaseFactory) -> None:
    """It adopts its role with its first question, and leaves it for the moment in which it asks for anybody's key."""
    with busy_fleet.get_session(user_id="ann", read_only=True) as session:
        with pytest.raises(TenantViolation, match="belongs to another user"):
            session.merge(Run(run_id="run-bob", **run_values("ann")))
        assert session.scalars(select(Run.run_id)).all() == ["run-ann"]


@contextmanager
def _given_to_bob_by_a_hook() -> Iterator[None]:
    def give(mapper: Any, connection: Any, account: BybitAccount) -> None:
        account.user_id = "bob"

    event.listen(BybitAccount, "before_insert", give)
    try:
        yield
    finally:
        event.remove(BybitAccount, "before_insert", give)


def test_what_a_hook_sets_while_a_new_row_is_written_is_judged_too(fleet: DatabaseFactory) -> None:
    """An application's listener runs after the first look at a row, in users' sessions and in repositories' writes."""

    def account(name: str) -> BybitAccount:
        return BybitAccount(account_id=f"acc-{name}", user_id="ann", account_name=name, environment="testnet")

    with _given_to_bob_by_a_hook():
        refused_and_unwritten(fleet, lambda session: session.add(account("1")))
        with fleet.get_session() as plain:
            with pytest.raises(TenantViolation):
                BybitAccountRepository(plain, user_id="ann").create(account("2"))
            plain.rollback()


def test_a_parent_given_as_an_object_is_judged_before_anything_is_sent(fleet: DatabaseFactory) -> None:
    """So that the refusal has its name, and is not the database's."""

    def swap(session: Session) -> None:
        session.add(BybitAccount(account_id="acc-2", user_id="ann", account_name="2", environment="testnet"))
        strategy = Strategy(strategy_id="str-2", account_id="acc-2", strategy_type="G", symbol="X", config_json={})
        session.add(strategy)
        session.flush()
        session.get_one(Run, "run-ann").strategy = strategy
        session.flush()

    refused_and_unwritten(fleet, swap)


def test_a_parent_that_moved_is_proved_anew(fleet: DatabaseFactory) -> None:
    """What a strategy's account was when it was looked up does not count after it has another one."""

    def move(session: Any) -> None:
        session.add(BybitAccount(account_id="acc-2", user_id="ann", account_name="2", environment="testnet"))
        session.add(Strategy(strategy_id="str-2", account_id="acc-ann", strategy_type="G", symbol="X", config_json={}))
        session.flush()
        run = Run(run_id="run-1", **run_values("ann", strategy_id="str-2"))
        session.add(run)
        session.flush()
        run.strategy_id = "str-ann"  # a strategy that has runs stays on its account
        session.flush()
        session.get_one(Strategy, "str-2").account_id = "acc-2"
        session.flush()

    def stale(session: Any) -> None:
        move(session)
        session.add(Run(run_id="run-2", **run_values("ann", strategy_id="str-2")))

    refused_and_unwritten(fleet, stale)
    with fleet.get_session(user_id="ann") as session:
        move(session)
        session.add(Run(run_id="run-2", **run_values("ann", account_id="acc-2", strategy_id="str-2")))


def test_an_update_assigns_neither_key_nor_owner_in_any_spelling(fleet: DatabaseFactory) -> None:
    """ordered_values() included."""
    refused_and_unwritten(fleet, lambda session: session.execute(update(Run).ordered_values((Run.user_id, "bob"))))
    refused_and_unwritten(fleet, lambda session: session.execute(update(Run).values(run_id="run-other")))


def test_a_repositorys_check_ends_with_its_call(fleet: DatabaseFactory) -> None:
    """Afterwards a plain session may do with the row what plain sessions may."""
    with fleet.get_session() as plain:
        run = RunRepository(plain, user_id="ann").create(Run(run_id="run-1", **run_values("ann")))
        run.user_id, run.account_id, run.strategy_id = "bob", "acc-bob", "str-bob"
    with fleet.get_session(user_id="bob") as session:
        assert session.get(Run, "run-1") is not None


def test_a_new_row_that_was_refused_is_not_written_later(fleet: DatabaseFactory) -> None:
    """Not even one that its parent had brought into the session before."""
    with fleet.get_session() as plain:
        account = plain.get_one(BybitAccount, "acc-ann")
        run = Run(user_id="bob", strategy_id="str-bob", run_type="live")
        with plain.no_autoflush:
            account.runs.append(run)
            with pytest.raises(TenantViolation):
                RunRepository(plain, user_id="ann").create(run)
    with fleet.get_session() as plain:
        assert set(plain.scalars(select(Run.run_id))) == {"run-ann", "run-bob"}


def test_nor_is_what_came_along_with_a_refused_row(fleet: DatabaseFactory) -> None:
    """The session holds new parents of a row that was refused for their sake; its next flush leaves them out."""
    strategy = Strategy(strategy_id="str-2", account_id="acc-bob", strategy_type="Grid", symbol="X", config_json={})
    with fleet.get_session() as plain, pytest.raises(TenantViolation):
        RunRepository(plain, user_id="ann").create(
            Run(user_id="ann", account_id="acc-ann", strategy=strategy, run_type="live")
        )
    with fleet.get_session() as plain:
        assert set(plain.scalars(select(Strategy.strategy_id))) == {"str-ann", "str-bob"}


def test_a_partly_loaded_row_is_checked_with_what_is_stored(fleet: DatabaseFactory) -> None:
    """Owner and parents count though the object does not have them: an own change passes, a foreign one does not."""

    def change(session: Session, strategy_id: str) -> None:
        run = session.scalars(select(Run).options(load_only(Run.run_id))).one()
        run.strategy_id = strategy_id
        session.flush()

    refused_and_unwritten(fleet, lambda session: change(session, "str-bob"))
    with fleet.get_session(user_id="ann") as session:
        session.add(
            Strategy(strategy_id="str-2", account_id="acc-ann", strategy_type="Grid", symbol="X", config_json={})
        )
        session.flush()
        change(session, "str-2")
    with fleet.get_session() as session:
        assert session.get_one(Run, "run-ann").strategy_id == "str-2"


def test_a_tool_writes_rows_that_name_no_user_themselves(fleet: DatabaseFactory) -> None:
    """Whose they are is told by their parents."""
    strategy = Strategy(strategy_id="str-2", account_id="acc-bob", strategy_type="Grid", symbol="X", config_json={})
    with fleet.get_session() as session:
        StrategyRepository.across_users(session).create(strategy)
    with fleet.get_session(user_id="bob") as session:
        assert session.get(Strategy, "str-2") is not None


def test_a_users_session_does_not_look_across_users(fleet: DatabaseFactory) -> None:
    """The named door for tools is shut in it."""
    with fleet.get_session(user_id="ann") as session, pytest.raises(TenantScopeError, match="never looks across users"):
        RunRepository.across_users(session)


def test_a_table_that_a_subquery_reads_is_confined_beside_it_too(busy_fleet: DatabaseFactory) -> None:
    """UPDATE ... FROM a table that a value of the UPDATE reads as well: whether bob's account is there is not told."""
    accounts = select(func.count(BybitAccount.account_id)).correlate(None).scalar_subquery()
    copied = update(Run).values(gridcore_version=cast(accounts, String))
    beside = copied.where(BybitAccount.account_name == "main-bob", BybitAccount.account_id != Run.account_id)
    with busy_fleet.get_session(user_id="ann") as session:
        changed = session.execute(beside, execution_options={"synchronize_session": False})
        assert changed.rowcount == 0  # type: ignore[attr-defined] # a CursorResult
        session.execute(copied, execution_options={"synchronize_session": False})
        assert session.scalars(select(Run.gridcore_version)).all() == ["1"]


def test_a_bulk_update_is_refused_by_its_own_name(fleet: DatabaseFactory) -> None:
    """Before anything is set on an object, not by the flush that would follow."""
    moved = [{"run_id": "run-ann", "strategy_id": "str-bob"}]
    refused = refused_and_unwritten(fleet, lambda session: RunRepository(session).bulk_update(moved))
    assert refused.operation == "bulk_update"
    directly = refused_and_unwritten(fleet, lambda session: bulk_update(session, Run, moved))
    assert directly.operation == "bulk_update"


def test_a_value_that_a_function_gives_is_nobodys(fleet: DatabaseFactory) -> None:
    """An INSERT whose owner is told only when it is run is refused."""
    owner: BindParameter[str] = bindparam("owner", callable_=lambda: "bob", unique=True)
    values = run_values("bob") | {"user_id": owner}
    refused_and_unwritten(fleet, lambda session: session.execute(insert(Run).values(run_id="run-new", **values)))


def test_a_row_that_names_no_parent_is_refused_by_that_name(fleet: DatabaseFactory) -> None:
    """Before the database says that a value is missing, in words of its own."""
    values = run_values("ann")
    del values["strategy_id"]
    refused = refused_and_unwritten(fleet, lambda session: session.execute(insert(Run).values(**values)))
    assert "names no strategy_id" in str(refused)
