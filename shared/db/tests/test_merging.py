"""`update()` writes what was changed on an object, and nothing of what it only remembers."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, make_transient, mapped_column

from shared.db import (
    ApiCredential,
    BybitAccount,
    BybitAccountRepository,
    DatabaseFactory,
    RowNotFoundError,
    Run,
    RunRepository,
    StaleRowError,
    Strategy,
    StrategyRepository,
    User,
    UserRepository,
)
from shared.db.merging import merge_changes
from shared.db.tests.support import in_children, stored

KINDS: dict[str, dict[str, Any]] = {"plain session": {}, "user's session": {"user_id": "ann"}}
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(params=KINDS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What makes a plain session, and one of the user's own."""
    return KINDS[request.param]


def load(db: DatabaseFactory, options: dict[str, Any], touch: Callable[[Run], object] = lambda run: None) -> Run:
    """The running run of ann out of a session that has ended, with whatever `touch` had it load."""
    with db.get_session() as session:
        if session.get(User, "ann") is None:
            rows = (
                User(user_id="ann", username="ann"),
                BybitAccount(account_id="acc", user_id="ann", account_name="main", environment="testnet"),
                Strategy(
                    strategy_id="str", account_id="acc", strategy_type="Grid", symbol="BTCUSDT", config_json={"n": 1}
                ),
                Run(
                    run_id="run",
                    user_id="ann",
                    account_id="acc",
                    strategy_id="str",
                    run_type="live",
                    start_ts=START,
                    config_snapshot={"levels": 10, "deep": [1]},
                ),
            )
            for row in rows:
                stored(session, row)
    with db.get_session(**options) as session:
        run = session.get_one(Run, "run")
        touch(run)
    return run


def finish(db: DatabaseFactory) -> None:
    """What another process does meanwhile."""
    with db.get_session(user_id="ann") as session:
        RunRepository(session).finish("run")


def test_an_update_leaves_what_others_wrote_since(db: DatabaseFactory, options: dict[str, Any]) -> None:
    """A run that another session finished stays finished when one that was loaded before brings another value."""
    run = load(db, options)
    finish(db)
    run.gridcore_version = "1.2"
    with db.get_session(**options) as session:
        written = RunRepository(session, "ann").update(run)
        assert written is session.get(Run, "run") is not run
        assert (written.status, written.gridcore_version) == ("completed", "1.2")
    with db.get_session() as session:
        stored_run = session.get_one(Run, "run")
        assert (stored_run.status, stored_run.gridcore_version) == ("completed", "1.2")
        assert stored_run.end_ts is not None


def test_an_update_leaves_what_another_process_wrote(lasting: DatabaseFactory) -> None:
    """The same by a process of its own, and the object comes out of a pickle."""
    run = pickle.loads(pickle.dumps(load(lasting, {})))
    in_children(1, lambda _: finish(lasting))
    run.gridcore_version = "1.2"
    with lasting.get_session(user_id="ann") as session:
        assert RunRepository(session).update(run).status == "completed"


def _assigned(run: Run) -> None:
    run.config_snapshot = {"levels": 30}


def _edited(run: Run) -> None:
    assert run.config_snapshot is not None
    run.config_snapshot["levels"] = 30


def _edited_deep(run: Run) -> None:
    assert run.config_snapshot is not None
    run.config_snapshot["deep"].append(30)


@pytest.mark.parametrize("edit", [_assigned, _edited, _edited_deep])
def test_a_changed_document_is_written(
    db: DatabaseFactory, options: dict[str, Any], edit: Callable[[Run], None]
) -> None:
    """However it was changed; the rest of the row stays as it is by now, and both documents go on being tracked."""
    run = load(db, options)
    finish(db)
    edit(run)
    assert run.config_snapshot is not None
    with db.get_session(**options) as session:
        written = RunRepository(session, "ann").update(run)
        assert written.config_snapshot == run.config_snapshot
        assert written.config_snapshot is not run.config_snapshot
        assert written.config_snapshot is not None
        written.config_snapshot["more"] = 1
    with db.get_session() as session:
        again = session.get_one(Run, "run")
        assert (again.status, again.config_snapshot) == ("completed", run.config_snapshot | {"more": 1})


def test_an_unchanged_document_leaves_a_newer_one(db: DatabaseFactory, options: dict[str, Any]) -> None:
    """Nor is it written that was set to what it was already."""
    run = load(db, options)
    with db.get_session() as session:
        other = session.get_one(Run, "run")
        other.config_snapshot, other.host = {"levels": 99}, "elsewhere"
    run.host = run.host
    run.gridcore_version = None
    with db.get_session(**options) as session:
        written = RunRepository(session, "ann").update(run)
        assert (written.config_snapshot, written.host) == ({"levels": 99}, "elsewhere")


def test_a_value_that_was_taken_away_is_null(db: DatabaseFactory, options: dict[str, Any]) -> None:
    """Set to None, or deleted from the object."""
    run = load(db, options)
    run.config_snapshot = None
    with db.get_session(**options) as session:
        assert RunRepository(session, "ann").update(run).config_snapshot is None
        session.get_one(Run, "run").host = "here"
    run = load(db, options)
    del run.host
    with db.get_session(**options) as session:
        RunRepository(session, "ann").update(run)
    assert load(db, options).host is None


def test_what_is_linked_brings_its_changes_and_nothing_else(db: DatabaseFactory, options: dict[str, Any]) -> None:
    """An account and a strategy that were loaded with a run: what was set on them, and no old value."""
    run = load(db, options, lambda run: (run.account.strategies, run.strategy.account))
    with db.get_session() as session:
        session.get_one(BybitAccount, "acc").status = "disabled"
        session.get_one(Strategy, "str").is_enabled = False
        session.add(Strategy(account_id="acc", strategy_type="Grid", symbol="ETHUSDT", config_json={}))
    run.account.account_name = "renamed"
    run.strategy.config_json["n"] = 2
    with db.get_session(**options) as session:
        RunRepository(session, "ann").update(run)
    with db.get_session() as session:
        account, strategy = session.get_one(BybitAccount, "acc"), session.get_one(Strategy, "str")
        assert (account.account_name, account.status) == ("renamed", "disabled")
        assert (strategy.config_json, strategy.is_enabled) == ({"n": 2}, False)
        assert sorted(each.symbol for each in account.strategies) == ["BTCUSDT", "ETHUSDT"]


def test_new_rows_come_along(db: DatabaseFactory, options: dict[str, Any]) -> None:
    """What was hung on a loaded object since is inserted, once, beside what others hung there meanwhile."""
    account = load(db, options, lambda run: (run.account.strategies, run.account.credentials)).account
    with db.get_session() as session:
        session.add(Strategy(account_id="acc", strategy_type="Grid", symbol="ETHUSDT", config_json={}))
    account.strategies.append(Strategy(strategy_type="Grid", symbol="SOLUSDT", config_json={"n": 3}))
    account.credentials = [ApiCredential(api_key_id="key", api_secret="secret")]
    with db.get_session(**options) as session:
        written = BybitAccountRepository(session, "ann").update(account)
        assert written is not account
        assert [each.symbol for each in written.strategies] == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    with db.get_session() as session:
        found = session.scalars(select(Strategy).order_by(Strategy.symbol)).all()
        assert [(each.symbol, each.config_json) for each in found][2] == ("SOLUSDT", {"n": 3})
        assert len(found) == 3
        assert session.scalars(select(ApiCredential)).one().api_secret == "secret"


def test_a_link_to_another_row_is_written(db: DatabaseFactory, options: dict[str, Any]) -> None:
    """A run that is given another strategy as an object, itself loaded elsewhere."""
    run = load(db, options)
    finish(db)
    with db.get_session() as session:
        other = Strategy(strategy_id="str-2", account_id="acc", strategy_type="Grid", symbol="ETHUSDT", config_json={})
        session.add(other)
    run.strategy = other
    with db.get_session(**options) as session:
        assert RunRepository(session, "ann").update(run).strategy is session.get(Strategy, "str-2")
    again = load(db, options)
    assert (again.strategy_id, again.status) == ("str-2", "completed")


def test_an_object_made_by_hand_gives_all_that_is_set_on_it(db: DatabaseFactory, options: dict[str, Any]) -> None:
    """As with session.merge(): what it does not name stays, and what it names is written, whatever the row has."""
    run = load(db, options)
    finish(db)
    with db.get_session(**options) as session:
        RunRepository(session, "ann").update(Run(run_id="run", host="here"))
    again = load(db, options)
    assert (again.status, again.host, again.start_ts) == ("completed", "here", START)
    make_transient(run)
    run.status = "failed"
    with db.get_session(**options) as session:
        assert RunRepository(session, "ann").update(run).host is None
    assert load(db, options).status == "failed"


def test_an_object_made_by_hand_does_not_come_along_with_its_parent(
    db: DatabaseFactory, options: dict[str, Any]
) -> None:
    """What was changed on it is written, and the parent that it names has the row and not the object."""
    load(db, options)
    with db.get_session(**options) as session:
        account = session.scalars(select(BybitAccount)).one()
        given = Run(run_id="run", account=account, host="here")
        written = RunRepository(session, "ann").update(given)
        account.account_name = "renamed"  # flushed, and with it whatever it believes to have
        session.flush()
        assert account.runs == [written] != [given]


def test_an_object_of_another_session_keeps_its_changes(lasting: DatabaseFactory) -> None:
    """What it holds is copied; it stays where it is, and so does what is set on it."""
    load(lasting, {})
    with lasting.get_session(read_only=True) as session:
        run = session.get_one(Run, "run")
        run.host = "here"
        with lasting.get_session(user_id="ann") as other:
            assert RunRepository(other).update(run) is not run
        assert run.host == "here"
        assert run in session
        session.expunge_all()
    assert load(lasting, {}).host == "here"


def test_what_was_linked_and_is_gone_matters_only_if_it_was_changed(
    db: DatabaseFactory, options: dict[str, Any]
) -> None:
    """A child that another session deleted since does not stand in the way, and an edit of it is told by name."""

    def elsewhere() -> User:
        with db.get_session() as session:
            session.add(ApiCredential(credential_id="cred", account_id="acc", api_key_id="k", api_secret="s"))
        user = load(db, options, lambda run: run.user.accounts[0].credentials).user
        with db.get_session() as session:
            session.delete(session.get_one(ApiCredential, "cred"))
        return user

    load(db, options)
    user = elsewhere()
    user.email = "ann@example.com"
    with db.get_session(**options) as session:
        assert UserRepository(session).update(user).accounts[0].credentials == []
    user = elsewhere()
    user.accounts[0].credentials[0].api_key_id = "new"
    with db.get_session(**options) as session, pytest.raises(RowNotFoundError, match="no ApiCredential 'cred'"):
        UserRepository(session).update(user)


def test_a_row_that_is_gone_is_not_made_anew(db: DatabaseFactory, options: dict[str, Any]) -> None:
    """Also when it was there a moment ago: a changed object is an edit, never an INSERT."""
    run = load(db, options)
    with db.get_session() as session:
        session.delete(session.get_one(Run, "run"))
    run.host = "here"
    with db.get_session(**options) as session, pytest.raises((RowNotFoundError, StaleRowError)):
        RunRepository(session, "ann").update(run)
    with db.get_session() as session:
        assert session.scalars(select(Run)).all() == []


def test_two_who_change_different_columns_do_not_undo_each_other(db: DatabaseFactory, options: dict[str, Any]) -> None:
    """Each with an object of the same row that was loaded before the other one wrote."""
    first, second = (load(db, options, lambda run: run.strategy).strategy for _ in range(2))
    first.config_json = {"n": 7}
    second.is_enabled = False
    for changed in (first, second):
        with db.get_session(**options) as session:
            StrategyRepository(session, "ann").update(changed)
    strategy = load(db, options, lambda run: run.strategy).strategy
    assert (strategy.config_json, strategy.is_enabled) == ({"n": 7}, False)


class OwnBase(DeclarativeBase):
    """The base of another package."""


class Versioned(OwnBase):
    """A row that counts its versions."""

    __tablename__ = "versioned"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 # as SQLAlchemy declares it


def test_a_version_that_is_not_the_newest_is_refused(db: DatabaseFactory) -> None:
    """Where a model counts its versions, an object of an older one changes nothing, as a flush of it would not."""
    OwnBase.metadata.create_all(db.engine)
    with db.get_session() as session:
        held = stored(session, Versioned(id=1, name="first"))
    with db.get_session() as session:
        session.get_one(Versioned, 1).name = "second"
    held.name = "late"
    with db.get_session() as session, pytest.raises(StaleRowError, match="has version 2 by now, and this is 1"):
        merge_changes(session, held)
    with db.get_session() as session:
        merge_changes(session, Versioned(id=1, name="third"))
    with db.get_session() as session:
        assert session.get_one(Versioned, 1).name == "third"
