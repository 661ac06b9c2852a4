"""`require_tenant`: a plain session that touches users' tables is an error, on every path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import DDL, Sequence, delete, func, insert, lambda_stmt, literal, select, text, update
from sqlalchemy.orm import Session, aliased, joinedload
from sqlalchemy.schema import DropTable

from shared.db import (
    BybitAccount,
    DatabaseFactory,
    PublicTrade,
    Run,
    RunRepository,
    TenantScopeError,
    User,
    UserRepository,
)
from shared.db.tests.fleet import everything_of, fleet_on, rows_of, run_values
from shared.db.tests.support import trade_values

RUNS: Any = Run.__table__
TRADES: Any = PublicTrade.__table__


@pytest.fixture(params=("file", "postgresql", "policies"))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[DatabaseFactory, DatabaseFactory]]:
    """Two factories for one database of ann's and bob's: one that requires a user, and one that does not."""
    for fleet in fleet_on(request.param, request, tmp_path):
        with DatabaseFactory(fleet.settings.model_copy(update={"require_tenant": True})) as closed:
            yield closed, fleet


def _detached(session: Session, **values: Any) -> Run:
    """Ann's run as an object that another session has loaded."""
    run: Run = session.info["loaded"]
    for name, value in values.items():
        setattr(run, name, value)
    return run


def _entered(session: Session) -> Run:
    run = _detached(session)
    session.add(run)
    return run


def _write(entity: Callable[[Session], Any], how: str) -> Callable[[Session], object]:
    def attempt(session: Session) -> None:
        getattr(session, how)(entity(session))
        session.flush()

    return attempt


REFUSED: dict[str, Callable[[Session], object]] = {
    "an entity": lambda session: session.scalars(select(Run)).all(),
    "columns": lambda session: session.execute(select(Run.run_id)).all(),
    "a count": lambda session: session.scalar(select(func.count(Run.run_id))),
    "get": lambda session: session.get(User, "ann"),
    "a Query": lambda session: session.query(Run).all(),
    "an alias": lambda session: session.scalars(select(aliased(Run))).all(),
    "an eager load": lambda session: session.scalars(select(User).options(joinedload(User.runs))).all(),
    "a join to what is shared": lambda session: session.execute(
        select(PublicTrade.id).join(Run, Run.run_id != PublicTrade.symbol)
    ).all(),
    "a subquery": lambda session: session.scalars(select(PublicTrade.id).where(select(Run.run_id).exists())).all(),
    "a full join": lambda session: session.execute(
        select(PublicTrade.id).outerjoin(Run, Run.run_id == PublicTrade.symbol, full=True)
    ).all(),
    "a Core table": lambda session: session.execute(select(RUNS.c.run_id)).all(),
    "text": lambda session: session.execute(text("SELECT run_id FROM runs")).all(),
    "text in a statement": lambda session: session.execute(select(PublicTrade.id).where(text("1 = 1"))).all(),
    "text with columns": lambda session: session.execute(text("SELECT run_id FROM runs").columns(RUNS.c.run_id)).all(),
    "a lambda": lambda session: session.execute(lambda_stmt(lambda: select(Run.run_id))).all(),
    "DDL": lambda session: session.execute(DDL("DELETE FROM runs")),  # type: ignore[no-untyped-call] # it has no types
    "DROP TABLE": lambda session: session.execute(DropTable(RUNS)),
    "a sequence": lambda session: session.scalar(Sequence("private_executions_id_seq")),
    "a function that runs SQL": lambda session: session.scalar(
        select(func.query_to_xml("SELECT * FROM runs", True, False, ""))
    ),
    "the connection": lambda session: session.connection(),
    "add": _write(lambda session: Run(**run_values("ann")), "add"),
    "a changed object": _write(lambda session: _detached(session, gridcore_version="2"), "add"),
    "delete": _write(_detached, "delete"),
    "merge": _write(lambda session: Run(run_id="run-ann", gridcore_version="2"), "merge"),
    "a lazy load": lambda session: _entered(session).account,
    "a refresh": lambda session: session.refresh(_entered(session)),
    "INSERT": lambda session: session.execute(insert(Run), [run_values("ann")]),
    "INSERT of a Core table": lambda session: session.execute(insert(RUNS).values(run_values("ann"))),
    "INSERT FROM SELECT": lambda session: session.execute(
        insert(TRADES).from_select(["symbol"], select(RUNS.c.run_id))
    ),
    "UPDATE": lambda session: session.execute(update(Run).values(gridcore_version="2")),
    "DELETE": lambda session: session.execute(delete(Run)),
    "DELETE of a Core table": lambda session: session.execute(delete(RUNS)),
    "bulk_save_objects": lambda session: session.bulk_save_objects([Run(**run_values("ann"))]),
    "bulk_insert_mappings": lambda session: session.bulk_insert_mappings(Run.__mapper__, [run_values("ann")]),
    "bulk_update_mappings": lambda session: session.bulk_update_mappings(
        Run.__mapper__, [{"run_id": "run-ann", "gridcore_version": "2"}]
    ),
    "a repository": lambda session: RunRepository(session, user_id="ann").get_running(),
    "a repository across users": lambda session: RunRepository.across_users(session).get_all(),
    "the users": lambda session: UserRepository(session).get_by_username("name-ann"),
}


def test_users_tables_are_out_of_a_plain_sessions_reach(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """Whatever it tries raises, and nothing is written."""
    closed, fleet = pair
    before = [everything_of(fleet, user) for user in ("ann", "bob")]
    for what, attempt in REFUSED.items():
        with fleet.get_session() as plain:
            loaded = plain.get_one(Run, "run-ann")

        def try_it(attempt: Callable[[Session], object] = attempt, loaded: Run = loaded) -> None:
            with closed.get_session() as session:
                session.info["loaded"] = loaded
                attempt(session)

        with pytest.raises(TenantScopeError):
            try_it()
            raise AssertionError(what)
    assert [everything_of(fleet, user) for user in ("ann", "bob")] == before


def test_what_is_shared_by_all_is_within_reach(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """Public trades are read and written, as objects, statements and Core tables."""
    closed, _ = pair
    with closed.get_session() as session:
        session.add(PublicTrade(**trade_values(1)))
        session.execute(insert(PublicTrade), [trade_values(2)])
        assert session.scalar(select(func.count(PublicTrade.id))) == 2
        assert session.execute(select(TRADES.c.symbol, literal(1))).all() == [("BTCUSDT", 1)] * 2
        session.execute(delete(PublicTrade))


def test_users_sessions_are_as_ever(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """The setting closes the plain session alone."""
    closed, _ = pair
    with closed.get_session(user_id="ann") as session:
        assert session.scalars(select(Run.run_id)).all() == ["run-ann"]
        session.add(BybitAccount(user_id="ann", account_name="second", environment="testnet"))


def test_a_database_is_filled_by_its_users(tmp_path: Path) -> None:
    """Also in memory, where there is no second factory to do it."""
    for name in (":memory:", str(tmp_path / "own.db")):
        with (
            DatabaseFactory(f"sqlite:///{name}") as open_,
            DatabaseFactory(open_.settings.model_copy(update={"require_tenant": True})) as closed,
        ):
            closed.create_tables()
            for user in ("ann", "bob"):
                with closed.get_session(user_id=user) as session:
                    session.add_all(rows_of(user))
            with closed.get_session(user_id="ann") as session:
                assert session.scalars(select(User.user_id)).all() == ["ann"]
            with pytest.raises(TenantScopeError), closed.get_session() as session:
                session.scalars(select(User)).all()
