"""Guards that no other test of tenancy would miss: the mutation run found each of them."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import ColumnElement, select, text, update

from shared.db import BybitAccount, DatabaseFactory, Run, RunRepository, Strategy, TenantViolation, UserSession
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


def test_a_parent_that_moved_is_proved_anew(fleet: DatabaseFactory) -> None:
    """What a strategy's account was when it was looked up does not count after it has another one."""

    def move(session: Any) -> None:
        session.add(Run(run_id="run-1", **run_values("ann")))
        session.add(BybitAccount(account_id="acc-2", user_id="ann", account_name="2", environment="testnet"))
        session.flush()
        session.get_one(Strategy, "str-ann").account_id = "acc-2"
        session.flush()

    def stale(session: Any) -> None:
        move(session)
        session.add(Run(run_id="run-2", **run_values("ann")))

    refused_and_unwritten(fleet, stale)
    with fleet.get_session(user_id="ann") as session:
        move(session)
        session.add(Run(run_id="run-2", **run_values("ann", account_id="acc-2")))


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
