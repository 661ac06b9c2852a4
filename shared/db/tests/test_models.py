"""What the tables hold and refuse."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from shared.db import BybitAccount, Run, Strategy, User


def test_user_creation(session: Session) -> None:
    """A user gets an id, the status and both times by default."""
    user = User(username="bob")
    session.add(user)
    session.flush()
    assert len(user.user_id) == 36
    assert user.status == "active"
    assert user.created_at.tzinfo is not None
    assert user.updated_at.tzinfo is not None


def test_user_unique_username(session: Session, sample_user: User) -> None:
    """Two users cannot share a username."""
    session.add(User(username=sample_user.username))
    with pytest.raises(IntegrityError):
        session.flush()
    session.rollback()


def test_strategy_config_json(session: Session, sample_strategy: Strategy) -> None:
    """A configuration comes back as it was stored, and an edit in place at any depth is saved."""
    sample_strategy.config_json["grid"] = {"levels": [1, 2]}
    session.flush()
    sample_strategy.config_json["grid"]["levels"].append(3)
    session.flush()
    session.expire_all()
    assert sample_strategy.config_json == {"levels": 20, "step": "0.2", "grid": {"levels": [1, 2, 3]}}


def test_account_cascade_delete(
    session: Session, sample_user: User, sample_account: BybitAccount, sample_run: Run
) -> None:
    """Deleting a user removes its accounts."""
    session.delete(sample_user)
    session.flush()
    assert session.scalars(select(BybitAccount.account_id)).all() == []
    assert session.scalars(select(Run.run_id)).all() == []
