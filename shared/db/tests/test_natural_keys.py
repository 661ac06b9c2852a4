"""`get_or_create()`: one row for one natural key, and never another one than was asked for."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.db import (
    BybitAccount,
    BybitAccountRepository,
    ConstraintError,
    DatabaseFactory,
    InvalidValueError,
    StoredDifferentlyError,
    Strategy,
    StrategyRepository,
    TenantViolation,
    User,
    UserRepository,
)
from shared.db.tests.support import in_children, stored

CONFIG: dict[str, Any] = {"levels": 20, "step": Decimal("0.2"), "sides": ("Buy", "Sell")}


class Net(StrEnum):
    """Somebody else's enumeration."""

    TEST = "testnet"


def seed(session: Session, **strategy: Any) -> tuple[User, BybitAccount, Strategy]:
    """What a bot asks for whenever it starts."""
    user = UserRepository(session).get_or_create(User(user_id="ann", username="ann"))
    account = BybitAccountRepository(session, "ann").get_or_create(
        BybitAccount(user=user, account_name="main", environment=Net.TEST)
    )
    values = {"strategy_type": "Grid", "symbol": "BTCUSDT", "config_json": CONFIG} | strategy
    return user, account, StrategyRepository(session, "ann").get_or_create(Strategy(account=account, **values))


def count(session: Session) -> list[int]:
    """How many users, accounts and strategies there are."""
    return [session.scalar(select(func.count()).select_from(model)) or 0 for model in (User, BybitAccount, Strategy)]


def test_what_is_there_is_given_and_what_is_not_is_made(db: DatabaseFactory) -> None:
    """Again and again, in plain sessions and in the user's own, with parents as objects, nothing is made twice."""
    keys = set()
    for options in ({}, {}, {"user_id": "ann"}):
        with db.get_session(**options) as session:  # type: ignore[arg-type] # either kind
            seeded = seed(session)
            assert seed(session) == seeded
            keys.add((seeded[1].account_id, seeded[2].strategy_id))
            assert count(session) == [1, 1, 1]
            assert seeded[1].strategies == [seeded[2]]
        with db.get_session() as session:
            assert count(session) == [1, 1, 1]
    assert len(keys) == 1


def test_what_is_stored_differently_is_refused(db: DatabaseFactory) -> None:
    """The error names the columns and no value, the row stays, and nothing is made instead."""
    with db.get_session() as session:
        seed(session)
    for options in ({}, {"user_id": "ann"}):
        with db.get_session(**options) as session:  # type: ignore[arg-type] # either kind
            seed(session)
            with pytest.raises(StoredDifferentlyError, match="config_json, is_enabled") as refusal:
                seed(session, config_json={"levels": 99}, is_enabled=False)
            assert (refusal.value.entity, refusal.value.columns) == ("Strategy", ("config_json", "is_enabled"))
            assert "99" not in str(refusal.value)
        with db.get_session(**options) as session:  # type: ignore[arg-type] # either kind
            assert count(session) == [1, 1, 1]
            _, _, strategy = seed(session)
            assert (strategy.config_json["levels"], strategy.is_enabled) == (20, True)
    with db.get_session() as session, pytest.raises(StoredDifferentlyError, match="another user_id"):
        UserRepository(session).get_or_create(User(user_id="other", username="ann"))


def test_what_the_row_leaves_out_may_be_anything(db: DatabaseFactory) -> None:
    """Only what is set is compared: an explicit None is, a column that was not named is not."""
    with db.get_session() as session:
        user = stored(session, User(username="ann", email="ann@example.com"))
        users = UserRepository(session)
        assert users.get_or_create(User(username="ann")) is user
        with pytest.raises(StoredDifferentlyError, match="another email"):
            users.get_or_create(User(username="ann", email=None))


def test_a_key_that_is_taken_otherwise_is_a_broken_rule(db: DatabaseFactory) -> None:
    """The primary key or another unique column is another row's: as create() would say; the session goes on."""
    with db.get_session() as session:
        stored(session, User(user_id="ann", username="ann", email="ann@example.com"))
        for wrong in (User(user_id="ann", username="bea"), User(username="bea", email="ann@example.com")):
            with pytest.raises(ConstraintError):
                UserRepository(session).get_or_create(wrong)
        UserRepository(session).get_or_create(User(username="bea"))
    with db.get_session() as session:
        assert session.scalars(select(User.username).order_by(User.username)).all() == ["ann", "bea"]


def test_what_create_would_refuse_is_refused(db: DatabaseFactory) -> None:
    """Another user's account, and a value that no row can have, whether the row is there or not."""
    with db.get_session() as session:
        seed(session)
        stored(session, User(user_id="bob", username="bob"))
    for options in ({}, {"user_id": "bob"}):
        with db.get_session(**options) as session:  # type: ignore[arg-type] # either kind
            with pytest.raises(TenantViolation):
                BybitAccountRepository(session, "bob").get_or_create(
                    BybitAccount(user_id="ann", account_name="main", environment="testnet")
                )
            for name in ("main", "second"):
                with pytest.raises(InvalidValueError, match="'moon' is not allowed"):
                    BybitAccountRepository(session, "bob").get_or_create(
                        BybitAccount(user_id="bob", account_name=name, environment="moon")
                    )
        with db.get_session() as session:
            assert count(session) == [2, 1, 1]


def test_two_processes_at_once_get_one_row(lasting: DatabaseFactory) -> None:
    """Whoever is later waits, and gets what the other one made; nobody ends in an error."""
    with lasting.get_session() as session:
        stored(session, User(user_id="ann", username="ann"))
    for number in range(8):

        def start(_: int, name: str = f"account {number}") -> str:
            with lasting.get_session(user_id="ann") as session:
                wanted = BybitAccount(user_id="ann", account_name=name, environment="testnet")
                return BybitAccountRepository(session).get_or_create(wanted).account_id

        assert len(set(in_children(3, start))) == 1
    with lasting.get_session() as session:
        assert count(session)[1] == 8
