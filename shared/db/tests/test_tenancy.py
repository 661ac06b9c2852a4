"""A user's session against everything that has been seen to leak.

Every case runs on in-memory SQLite, file SQLite, PostgreSQL, and PostgreSQL with its policies in force. Users "ann"
and "bob" own one of everything, under ids that tell whose they are.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from sqlalchemy import (
    String,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    select,
    text,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import CompileError, IntegrityError, InvalidRequestError, NoResultFound
from sqlalchemy.orm import (
    Mapped,
    Session,
    aliased,
    contains_eager,
    immediateload,
    joinedload,
    make_transient_to_detached,
    mapped_column,
    selectinload,
    subqueryload,
)
from sqlalchemy.orm.exc import DetachedInstanceError

from shared.db import (
    ApiCredential,
    AuditLog,
    Base,
    BybitAccount,
    BybitAccountRepository,
    DatabaseFactory,
    PrivateExecution,
    PublicTrade,
    Run,
    RunRepository,
    Strategy,
    TenantScopeError,
    TenantViolation,
    UndeclaredTableError,
    User,
    UserSession,
)
from shared.db.dialects import MYSQL
from shared.db.tables import OWNERSHIP, ownership_of
from shared.db.tests.fleet import FOREIGN, OWN, cross, detached, everything_of, refused_and_unwritten, run_values
from shared.db.tests.support import execution_values, trade_values

# The audit log has tests of its own; its table is not there by default.
OWNED = [model for model, entry in OWNERSHIP.items() if entry is not None and model is not AuditLog]


def test_everything_of_a_user_is_seen_by_its_own_checker(fleet: DatabaseFactory) -> None:
    """The comparison that these tests rest on does notice a changed row."""
    before = everything_of(fleet, "bob")
    assert len(before) == 6
    with fleet.get_session() as session:
        session.execute(update(Run).where(Run.user_id == "bob").values(gridcore_version="1.0"))
    assert everything_of(fleet, "bob") != before


# Reads


@pytest.mark.parametrize("model", FOREIGN)
def test_a_foreign_row_is_not_found_by_its_key(fleet: DatabaseFactory, model: type[Base]) -> None:
    """get() gives None for another user's key, and the own row for the own key."""
    with fleet.get_session(user_id="ann") as session:
        assert session.get(model, FOREIGN[model]) is None
        assert session.get(model, FOREIGN[model], populate_existing=True) is None
        assert session.get(model, OWN[model]) is not None


def test_get_one_raises_for_a_foreign_row(fleet: DatabaseFactory) -> None:
    """get_one() says that there is no such row."""
    with fleet.get_session(user_id="ann") as session, pytest.raises(NoResultFound):
        session.get_one(Run, "run-bob")


@pytest.mark.parametrize("model", OWNED)
def test_a_select_gives_own_rows_only(fleet: DatabaseFactory, model: type[Base]) -> None:
    """select(Model), its columns and a Query see one of the two rows: the own one."""
    with fleet.get_session(user_id="ann") as session:
        (row,) = session.scalars(select(model)).all()
        assert "bob" not in str(vars(row))
        (columns,) = session.execute(select(*model.__table__.columns).select_from(model)).all()
        assert "bob" not in str(columns)
        assert len(session.query(model).all()) == 1


def test_public_trades_are_shared_by_all(fleet: DatabaseFactory) -> None:
    """A trade that one user's session stores is there for the other's."""
    with fleet.get_session(user_id="ann") as session:
        session.add(PublicTrade(**trade_values()))
    with fleet.get_session(user_id="bob") as session:
        assert session.scalar(select(func.count(PublicTrade.id))) == 1


def test_a_foreign_object_cannot_be_added(fleet: DatabaseFactory) -> None:
    """An object that another session loaded is refused at the door."""
    foreign = detached(fleet, Run, "run-bob")
    with fleet.get_session(user_id="ann") as session:
        with pytest.raises(TenantViolation):
            session.add(foreign)
        assert foreign not in session


def test_a_foreign_object_cannot_be_deleted(fleet: DatabaseFactory) -> None:
    """delete() of another user's object is refused, and its row stays."""
    foreign = detached(fleet, Run, "run-bob")
    before = everything_of(fleet, "bob")
    with fleet.get_session(user_id="ann") as session, pytest.raises(TenantViolation):
        session.delete(foreign)
    assert everything_of(fleet, "bob") == before


def _ghost(key: str = "run-bob") -> Run:
    """An object that claims to have been loaded, with every attribute still to come."""
    ghost = Run(run_id=key)
    make_transient_to_detached(ghost)
    return ghost


def test_a_smuggled_object_cannot_be_refreshed(fleet: DatabaseFactory) -> None:
    """An object made to look loaded does not get in, and so loads nothing."""
    ghost = _ghost()
    with fleet.get_session(user_id="ann") as session:
        with pytest.raises(TenantViolation):
            session.add(ghost)
        with pytest.raises(InvalidRequestError):
            session.refresh(ghost)
        assert "user_id" not in ghost.__dict__


def test_a_smuggled_objects_attributes_do_not_load(fleet: DatabaseFactory) -> None:
    """Neither do its expired attributes."""
    ghost = _ghost()
    with fleet.get_session(user_id="ann") as session:
        with suppress(TenantViolation):
            session.add(ghost)
        with pytest.raises(DetachedInstanceError):
            _ = ghost.user_id


def test_a_smuggled_object_is_not_given_out_by_get(fleet: DatabaseFactory) -> None:
    """After the attempt get() still finds nothing."""
    with fleet.get_session(user_id="ann") as session:
        with suppress(TenantViolation):
            session.add(_ghost())
        assert session.get(Run, "run-bob") is None


@pytest.mark.parametrize("how", [None, joinedload, selectinload, subqueryload, immediateload])
def test_a_foreign_parent_of_an_own_row_does_not_load(fleet: DatabaseFactory, how: Callable[..., Any] | None) -> None:
    """Every way of loading a relationship gives None for a parent that is another user's."""
    cross(fleet, "run-ann", "bob")
    with fleet.get_session(user_id="ann") as session:
        options = [] if how is None else [how(Run.account), how(Run.strategy)]
        run = session.execute(select(Run).options(*options)).scalar_one()
        assert run.account is None
        assert run.strategy is None


def test_an_inner_join_to_a_foreign_parent_gives_no_row(fleet: DatabaseFactory) -> None:
    """joinedload(innerjoin=True) and join() drop the row rather than show the parent."""
    cross(fleet, "run-ann", "bob")
    with fleet.get_session(user_id="ann") as session:
        assert session.scalars(select(Run).options(joinedload(Run.account, innerjoin=True))).all() == []
        assert session.execute(select(Run, BybitAccount).join(Run.account)).all() == []


def test_eager_loads_two_levels_deep_stay_own(fleet: DatabaseFactory) -> None:
    """Account to runs to executions: nothing foreign on any level, not even when an administrator mixed them up."""
    cross(fleet, "run-bob", "ann")
    for how in (joinedload, selectinload, subqueryload):
        with fleet.get_session(user_id="ann") as session:
            query = select(BybitAccount).options(how(BybitAccount.runs).options(how(Run.executions)))
            (account,) = session.scalars(query).unique().all()
            assert [run.run_id for run in account.runs] == ["run-ann"]
            assert [execution.exec_id for execution in account.runs[0].executions] == ["exec-ann"]


def test_a_lazy_collection_stays_own(fleet: DatabaseFactory) -> None:
    """account.runs leaves out another user's run that was hung under the account."""
    cross(fleet, "run-bob", "ann")
    with fleet.get_session(user_id="ann") as session:
        account = session.get_one(BybitAccount, "acc-ann")
        assert [run.run_id for run in account.runs] == ["run-ann"]


def test_contains_eager_stays_own(fleet: DatabaseFactory) -> None:
    """A join that fills a relationship is confined on both sides."""
    cross(fleet, "run-bob", "ann")
    with fleet.get_session(user_id="ann") as session:
        query = select(BybitAccount).join(BybitAccount.runs).options(contains_eager(BybitAccount.runs))
        (account,) = session.scalars(query).unique().all()
        assert [run.run_id for run in account.runs] == ["run-ann"]


def test_an_alias_is_confined(fleet: DatabaseFactory) -> None:
    """aliased() classes, alone and joined to themselves, show own rows only."""
    one, other = aliased(Run), aliased(Run)
    with fleet.get_session(user_id="ann") as session:
        assert session.scalars(select(one.run_id)).all() == ["run-ann"]
        pairs = session.execute(select(one.run_id, other.run_id).join(other, true())).all()
        assert [tuple(pair) for pair in pairs] == [("run-ann", "run-ann")]


def test_every_count_counts_own_rows_only(fleet: DatabaseFactory) -> None:
    """Four spellings of the same question."""
    with fleet.get_session(user_id="ann") as session:
        assert session.scalar(select(func.count(Run.run_id))) == 1
        assert session.scalar(select(func.count()).select_from(Run)) == 1
        assert session.query(Run).count() == 1
        assert session.scalar(select(func.count()).select_from(select(Run).subquery())) == 1


def test_nothing_tells_whether_a_foreign_key_exists(fleet: DatabaseFactory) -> None:
    """exists(), any(), has() and IN are false for another user's values, wherever they stand."""
    theirs = select(Run.run_id).where(Run.user_id == "bob")
    with fleet.get_session(user_id="ann") as session:
        assert session.scalar(select(theirs.exists())) is False
        assert session.scalars(select(User).where(User.runs.any(Run.user_id == "bob"))).all() == []
        assert session.scalars(select(Run).where(Run.user.has(User.username == "name-bob"))).all() == []
        assert session.scalars(select(User).where(exists().where(Run.user_id == "bob"))).all() == []
        assert session.scalars(select(User.user_id).where(literal("run-bob").in_(select(Run.run_id)))).all() == []
        assert session.scalar(select(literal(1)).where(theirs.exists())) is None
        assert session.scalar(select(literal(1)).where(Run.user_id == "bob")) is None
        theirs_again = aliased(Run)
        assert session.scalars(select(User).where(exists().where(theirs_again.user_id == "bob"))).all() == []
        own = select(User.user_id).where(User.runs.any(Run.status == "running"), exists().where(Run.run_type == "live"))
        assert session.scalars(own).all() == ["ann"]


def test_subqueries_of_every_kind_are_confined(fleet: DatabaseFactory) -> None:
    """CTE, UNION, subquery, scalar subquery and an alias over a subquery."""
    with fleet.get_session(user_id="ann") as session:
        cte = select(Run).cte()
        assert session.scalars(select(cte.c.run_id)).all() == ["run-ann"]
        assert session.scalars(union_all(select(Run.run_id), select(Run.run_id))).all() == ["run-ann"] * 2
        assert session.scalars(select(select(Run).subquery().c.run_id)).all() == ["run-ann"]
        assert session.scalar(select(select(func.count(Run.run_id)).scalar_subquery())) == 1
        over = aliased(Run, select(Run).subquery())
        assert [run.run_id for run in session.scalars(select(over))] == ["run-ann"]
        statement = select(Run).from_statement(union_all(select(Run), select(Run)))
        assert {run.run_id for run in session.scalars(statement)} == {"run-ann"}


def test_a_streamed_read_is_confined(fleet: DatabaseFactory) -> None:
    """yield_per changes nothing."""
    with fleet.get_session(user_id="ann") as session:
        assert session.scalars(select(Run.run_id).execution_options(yield_per=1)).all() == ["run-ann"]


# Writes


def test_an_update_without_where_touches_own_rows_only(fleet: DatabaseFactory) -> None:
    """With every way of synchronizing the session."""
    before = everything_of(fleet, "bob")
    for number, how in enumerate(("auto", "fetch", False)):
        with fleet.get_session(user_id="ann") as session:
            statement = update(Run).values(gridcore_version=str(number))
            session.execute(statement, execution_options={"synchronize_session": how})
            assert session.scalars(select(Run.gridcore_version)).all() == [str(number)]
            session.query(Strategy).update({"strategy_type": "Other"})
    assert everything_of(fleet, "bob") == before


def test_a_delete_without_where_removes_own_rows_only(fleet: DatabaseFactory) -> None:
    """And by the database's cascade only what is below them."""
    before = everything_of(fleet, "bob")
    with fleet.get_session(user_id="ann") as session:
        session.execute(delete(BybitAccount))
    with fleet.get_session() as plain:
        assert plain.scalars(select(Run.run_id)).all() == ["run-bob"]
    assert everything_of(fleet, "bob") == before


def test_an_update_cannot_give_rows_away(fleet: DatabaseFactory) -> None:
    """Assigning owner or parent in an UPDATE is refused, as a value and as an expression."""
    refused_and_unwritten(fleet, lambda session: session.execute(update(Run).values(user_id="bob")))
    refused_and_unwritten(fleet, lambda session: session.execute(update(Run).values(account_id="acc-bob")))
    refused_and_unwritten(fleet, lambda session: session.execute(update(Run).values(user_id=func.lower("BOB"))))
    refused_and_unwritten(fleet, lambda session: session.execute(update(Run), {"user_id": "bob"}))


def test_an_own_object_cannot_be_given_away(fleet: DatabaseFactory) -> None:
    """Setting another owner on an own object is refused at the flush."""

    def attempt(session: Session) -> None:
        session.get_one(Run, "run-ann").user_id = "bob"

    refused_and_unwritten(fleet, attempt)


def test_an_own_object_cannot_be_hung_under_a_foreign_one(fleet: DatabaseFactory) -> None:
    """By the parent's id, and by the parent as an object."""
    foreign = detached(fleet, BybitAccount, "acc-bob")

    def by_object(session: Session) -> None:
        session.get_one(Run, "run-ann").account = foreign

    def by_key(session: Session) -> None:
        session.get_one(Strategy, "str-ann").account_id = "acc-bob"

    refused_and_unwritten(fleet, by_object)
    refused_and_unwritten(fleet, by_key)


def test_a_new_row_cannot_name_a_foreign_owner(fleet: DatabaseFactory) -> None:
    """add() of a row of another user is refused, before a colliding name is."""
    refused_and_unwritten(fleet, lambda session: session.add(Run(**run_values())))
    taken = {"user_id": "bob", "account_name": "main-bob", "environment": "testnet"}
    refused_and_unwritten(fleet, lambda session: session.add(BybitAccount(**taken)))


@pytest.mark.parametrize(
    "child",
    [
        lambda: ApiCredential(account_id="acc-bob", api_key_id="k", api_secret="s"),
        lambda: Strategy(account_id="acc-bob", strategy_type="Grid", symbol="ETHUSDT", config_json={}),
        lambda: Run(**run_values("ann", account_id="acc-bob")),
        lambda: Run(**run_values("ann", strategy_id="str-bob")),
        lambda: PrivateExecution(**execution_values(Run(run_id="run-bob", account_id="acc-ann"))),
        lambda: PrivateExecution(**execution_values(Run(run_id="run-ann", account_id="acc-bob"))),
    ],
)
def test_a_new_row_cannot_name_a_foreign_parent(fleet: DatabaseFactory, child: Callable[[], Base]) -> None:
    """Every column that names a parent is checked, foreign key or not."""
    refused_and_unwritten(fleet, lambda session: session.add(child()))


def test_a_run_cannot_mix_a_strategy_with_another_account(fleet: DatabaseFactory) -> None:
    """Even between two accounts of the same user, by key and by object."""
    with fleet.get_session(user_id="ann") as session:
        session.add(BybitAccount(account_id="acc2-ann", user_id="ann", account_name="second", environment="testnet"))
    refused_and_unwritten(fleet, lambda session: session.add(Run(**run_values("ann", account_id="acc2-ann"))))

    def by_object(session: Session) -> None:
        account, strategy = session.get_one(BybitAccount, "acc2-ann"), session.get_one(Strategy, "str-ann")
        session.add(Run(user_id="ann", account=account, strategy=strategy, run_type="shadow"))

    refused_and_unwritten(fleet, by_object)


def test_a_violation_inside_a_savepoint_leaves_nothing(fleet: DatabaseFactory) -> None:
    """Caught, with the outer transaction committed, nothing of it is written; the rest is."""
    before = everything_of(fleet, "bob")
    with fleet.get_session(user_id="ann") as session:
        savepoint = session.begin_nested()
        session.add(Run(**run_values()))
        with pytest.raises(TenantViolation):
            session.flush()
        savepoint.rollback()
        session.get_one(Run, "run-ann").gridcore_version = "2.0"
    assert everything_of(fleet, "bob") == before
    with fleet.get_session(user_id="ann") as session:
        assert session.scalars(select(Run.gridcore_version)).all() == ["2.0"]


def test_a_violation_is_found_by_autoflush(fleet: DatabaseFactory) -> None:
    """A query that flushes first raises instead of writing."""

    def attempt(session: Session) -> None:
        session.add(Run(**run_values()))
        session.scalars(select(Run)).all()

    refused_and_unwritten(fleet, attempt)


def test_an_insert_with_one_foreign_row_writes_none(fleet: DatabaseFactory) -> None:
    """As a list of parameters, as multiple values, with RETURNING, with an expression for the owner."""
    mixed = [run_values("ann"), run_values("bob")]
    refused_and_unwritten(fleet, lambda session: session.execute(insert(Run), mixed))
    refused_and_unwritten(fleet, lambda session: session.execute(insert(Run).values(mixed)))
    refused_and_unwritten(fleet, lambda session: session.scalars(insert(Run).returning(Run), mixed).all())
    expression = run_values("ann", user_id=func.lower("ANN"))
    refused_and_unwritten(fleet, lambda session: session.execute(insert(Run).values(expression)))
    with fleet.get_session(user_id="ann") as session:
        session.execute(insert(Run), [run_values("ann"), run_values("ann")])
        assert session.scalar(select(func.count(Run.run_id))) == 3


def _upsert(db: DatabaseFactory, model: type[Base], values: dict[str, Any], key: list[str]) -> Any:
    dialect = sqlite if db.engine.dialect.name == "sqlite" else postgresql
    return dialect.insert(model).values(values), key


def test_an_upsert_cannot_reach_a_foreign_row(fleet: DatabaseFactory) -> None:
    """DO UPDATE on a key without the owner is refused; on the own (run, execution) it works."""
    statement, key = _upsert(fleet, Run, run_values("ann", run_id="run-bob"), ["run_id"])
    stolen = statement.on_conflict_do_update(index_elements=key, set_={"status": "failed"})
    refused_and_unwritten(fleet, lambda session: session.execute(stolen))
    own = execution_values(Run(run_id="run-ann", account_id="acc-ann"), exec_id="exec-ann", symbol="ETHUSDT")
    statement, key = _upsert(fleet, PrivateExecution, own, ["run_id", "exec_id"])
    moved = statement.on_conflict_do_update(index_elements=key, set_={"run_id": "run-bob"})
    refused_and_unwritten(fleet, lambda session: session.execute(moved))
    renamed = statement.on_conflict_do_update(index_elements=key, set_={"symbol": "ETHUSDT"})
    if fleet.settings.port is MYSQL:  # there is no ON CONFLICT; its own form test_mariadb.py tries
        with fleet.get_session(user_id="ann") as session, pytest.raises(CompileError):
            session.execute(renamed)
        return
    with fleet.get_session(user_id="ann") as session:
        session.execute(renamed)
        assert session.scalars(select(PrivateExecution.symbol)).all() == ["ETHUSDT"]


def test_a_bulk_update_by_key_reaches_own_rows_only(fleet: DatabaseFactory) -> None:
    """A list of keys with a foreign one changes nothing; own keys work."""
    rows = [{"run_id": "run-ann", "status": "failed"}, {"run_id": "run-bob", "status": "failed"}]
    refused_and_unwritten(fleet, lambda session: session.execute(update(Run), rows))
    refused_and_unwritten(
        fleet, lambda session: session.execute(update(Run), [{"run_id": "run-ann", "user_id": "bob"}])
    )
    with fleet.get_session(user_id="ann") as session:
        session.execute(update(Run), rows[:1])
        assert session.scalars(select(Run.status)).all() == ["failed"]


def test_an_update_copies_from_own_rows_only(fleet: DatabaseFactory) -> None:
    """UPDATE ... FROM another table, and a subquery, see what the user owns there."""
    before = everything_of(fleet, "bob")
    no_sync = {"synchronize_session": False}
    with fleet.get_session(user_id="ann") as session:
        linked = Strategy.strategy_type != Run.run_type
        theirs = update(Run).where(linked, Strategy.account_id == "acc-bob").values(gridcore_version=Strategy.symbol)
        session.execute(theirs, execution_options=no_sync)
        assert session.scalars(select(Run.gridcore_version)).all() == [None]
        any_of_them = update(Run).where(linked).values(gridcore_version=Strategy.strategy_id)
        session.execute(any_of_them, execution_options=no_sync)
        assert session.scalars(select(Run.gridcore_version)).all() == ["str-ann"]
        newest = select(func.max(BybitAccount.account_id)).scalar_subquery()
        session.execute(update(Run).values(gridcore_version=newest))
        assert session.scalars(select(Run.gridcore_version)).all() == ["acc-ann"]
    assert everything_of(fleet, "bob") == before


def test_merge_cannot_take_over_a_foreign_row(fleet: DatabaseFactory) -> None:
    """As it is, relabelled as one's own, and without looking; an own row merges."""
    refused_and_unwritten(fleet, lambda session: session.merge(Run(run_id="run-bob", **run_values())))
    refused_and_unwritten(fleet, lambda session: session.merge(Run(run_id="run-bob", **run_values("ann"))))
    foreign = detached(fleet, Run, "run-bob")
    refused_and_unwritten(fleet, lambda session: session.merge(foreign, load=False))
    with fleet.get_session(user_id="ann") as session:
        assert session.merge(Run(run_id="run-ann", gridcore_version="3.0")).user_id == "ann"
        assert session.merge(Run(run_id="run-new", **run_values("ann"))).run_id == "run-new"


# Raw SQL


def _raw_reads() -> dict[str, Any]:
    table = Run.__table__
    return {
        "text": text("SELECT run_id FROM runs"),
        "a Core table": select(table.c.run_id),
        "a Core alias": select(table.alias().c.run_id),
        "text as statement": select(Run.run_id).from_statement(text("SELECT run_id FROM runs")),
        "Core as statement": select(Run.run_id).from_statement(select(table.c.run_id)),
        "a mixed join": select(Strategy.__table__.c.strategy_id).select_from(Run).join(Strategy.__table__, true()),
        "a Core subquery": select(select(table).subquery().c.run_id),
        "an uncorrelated subquery": select(select(func.max(table.c.run_id)).correlate(None).scalar_subquery()),
        "a literal column": select(literal_column("(SELECT max(run_id) FROM runs)")).select_from(Run),
        "text in WHERE": select(Run.run_id).where(text("true OR run_id = 'x'")),
        "text columns": text("SELECT run_id FROM runs").columns(run_id=String),
    }


@pytest.mark.parametrize("what", _raw_reads())
def test_raw_sql_is_refused_or_confined_by_the_server(fleet: DatabaseFactory, what: str) -> None:
    """Nobody can see through it, so it is refused, unless PostgreSQL's own policies confine it."""
    with fleet.get_session(user_id="ann") as session:
        assert isinstance(session, UserSession)
        if session.confined_by_server:
            assert "bob" not in str(session.execute(_raw_reads()[what]).all())
        else:
            with pytest.raises(TenantViolation):
                session.execute(_raw_reads()[what])


def test_prefixes_and_hints_are_refused_where_the_server_does_not_confine(fleet: DatabaseFactory) -> None:
    """They carry text that nobody looks into; INSERT OR REPLACE would even delete a foreign row."""
    replace = insert(Run).prefix_with("OR REPLACE").values(run_values("ann", run_id="run-bob"))
    with fleet.get_session(user_id="ann") as session:
        assert isinstance(session, UserSession)
        if not session.confined_by_server:
            for statement in (select(Run).prefix_with("ALL"), select(Run).suffix_with("LIMIT 1"), replace):
                with pytest.raises(TenantViolation):
                    session.execute(statement)


def test_a_class_without_an_owner_is_refused(fleet: DatabaseFactory) -> None:
    """A mapped class that the ownership map does not know: refused, and confined if it is mapped to a known table."""

    class Unlisted(Base):
        __tablename__ = "unlisted"
        key: Mapped[str] = mapped_column(primary_key=True)

    class Again(Base):
        __table__ = Run.__table__

    try:
        with fleet.get_session(user_id="ann") as session:
            assert [vars(row)["run_id"] for row in session.scalars(select(Again))] == ["run-ann"]
            statements: tuple[Any, ...] = (
                select(Unlisted),
                select(func.count()).select_from(Unlisted),
                select(Run.run_id).where(select(Unlisted.key).exists()),
                insert(Unlisted).values(key="x"),
                update(Unlisted).values(key="x"),
                delete(Unlisted),
            )
            for statement in statements:
                with pytest.raises(UndeclaredTableError, match="__ownership__"):
                    session.execute(statement)
            session.add(Unlisted(key="x"))
            with pytest.raises(UndeclaredTableError, match="__ownership__"):
                session.flush()
            session.expunge_all()
    finally:
        for model in (Unlisted, Again):
            Base.registry._dispose_cls(model)
        Base.metadata.remove(Base.metadata.tables["unlisted"])


def test_the_bare_connection_is_refused_or_confined(fleet: DatabaseFactory) -> None:
    """session.connection() is given out only where the server confines it."""
    with fleet.get_session(user_id="ann") as session:
        assert isinstance(session, UserSession)
        if session.confined_by_server:
            assert session.connection().execute(text("SELECT run_id FROM runs")).all() == [("run-ann",)]
        else:
            with pytest.raises(TenantViolation):
                session.connection()


def test_the_legacy_bulk_methods_are_refused(fleet: DatabaseFactory) -> None:
    """bulk_save_objects and its siblings pass by every check."""
    refused_and_unwritten(fleet, lambda session: session.bulk_save_objects([Run(**run_values())]))
    refused_and_unwritten(fleet, lambda session: session.bulk_insert_mappings(Run, [run_values()]))
    rows = [{"run_id": "run-bob", "status": "failed"}]
    refused_and_unwritten(fleet, lambda session: session.bulk_update_mappings(Run, rows))


def test_insert_from_select_is_refused(fleet: DatabaseFactory) -> None:
    """The rows it would write cannot be checked beforehand."""
    statement = insert(User).from_select(["username"], select(User.username))
    refused_and_unwritten(fleet, lambda session: session.execute(statement))


# Sessions and users


def test_two_users_alternate_on_one_pool_without_mixing(fleet: DatabaseFactory) -> None:
    """Over 1,000 changes of user no cached statement and no setting crosses over."""
    for number in range(1000):
        user = ("ann", "bob")[number % 2]
        with fleet.get_session(user_id=user, read_only=number % 3 == 0) as session:
            assert session.scalars(select(Run.user_id)).all() == [user]


def test_an_error_leaves_the_next_session_clean(fleet: DatabaseFactory) -> None:
    """After a failed transaction the pooled connection serves the other user, and a plain session, as ever."""
    with pytest.raises(IntegrityError), fleet.get_session(user_id="ann") as session:
        session.add(BybitAccount(user_id="ann", account_name="main-ann", environment="testnet"))
    with fleet.get_session(user_id="bob") as session:
        assert session.scalars(select(Run.run_id)).all() == ["run-bob"]
    with fleet.get_session() as session:
        assert len(session.scalars(select(Run)).all()) == 2


def test_autocommit_is_refused(fleet: DatabaseFactory) -> None:
    """What confines a session ends with each transaction, so it needs them."""
    options = {"isolation_level": "AUTOCOMMIT"}
    with pytest.raises(TenantScopeError), fleet.get_session(user_id="ann") as session:
        Session.connection(session, execution_options=options).execute(text("SELECT 1"))


@pytest.mark.parametrize("user_id", [None, "", 7, b"ann", "x" * 37, "x" * 1_000_000, "a\0nn", "\ud800"])
def test_what_cannot_be_a_user_opens_no_session(fleet: DatabaseFactory, user_id: Any) -> None:
    """None above all: a value that somebody forgot must not open the plain session."""
    with pytest.raises(TenantScopeError), fleet.get_session(user_id=user_id):
        raise AssertionError("it opened")
    with pytest.raises(TenantScopeError), fleet.get_session() as session:
        RunRepository(session, user_id=user_id)


@pytest.mark.parametrize("user_id", ["ANN", "Ann", "ann ", "nobody", "'ann'", "ann' OR '1'='1", "NULL", "%", "*"])
def test_an_unknown_user_sees_nothing_and_writes_nothing(fleet: DatabaseFactory, user_id: str) -> None:
    """Other case, quotes and wildcards included."""
    with fleet.get_session(user_id=user_id) as session:
        for model in OWNED:
            assert session.scalars(select(model)).all() == []
    with pytest.raises(TenantViolation), fleet.get_session(user_id=user_id) as session:
        session.add(Run(**run_values("ann")))


class _Name(str, Enum):  # noqa: UP042 # not a StrEnum, whose str() is its text
    ANN = "ann"


def test_a_user_may_be_named_by_a_kind_of_text(fleet: DatabaseFactory) -> None:
    """What counts is the text of an enumeration's member, not the name that str() gives it."""
    with fleet.get_session(user_id=_Name.ANN) as session:
        assert session.scalars(select(Run.run_id)).all() == ["run-ann"]
        assert type(session.info["user_id"]) is str


def test_a_session_tells_its_user(fleet: DatabaseFactory) -> None:
    """session.info has the user; a plain session has none."""
    with fleet.get_session(user_id="ann") as session:
        assert session.info["user_id"] == "ann"
    with fleet.get_session() as session:
        assert "user_id" not in session.info


def test_nested_sessions_keep_their_users(busy_fleet: DatabaseFactory) -> None:
    """Bob's session inside ann's sees bob's rows, and ann's afterwards ann's."""
    with busy_fleet.get_session(user_id="ann", read_only=True) as outer:
        assert outer.scalars(select(Run.run_id)).all() == ["run-ann"]
        with busy_fleet.get_session(user_id="bob") as inner:
            assert inner.scalars(select(Run.run_id)).all() == ["run-bob"]
            with busy_fleet.get_session(read_only=True) as plain:
                assert len(plain.scalars(select(Run)).all()) == 2
        assert outer.scalars(select(Strategy.strategy_id)).all() == ["str-ann"]


def test_threads_with_different_users_never_mix(busy_fleet: DatabaseFactory) -> None:
    """Eight threads on one factory, four for each user."""
    wrong: list[Any] = []

    def work(user: str) -> None:
        for _ in range(20):
            with busy_fleet.get_session(user_id=user, read_only=True) as session:
                wrong.extend(found for found in session.scalars(select(Run.user_id)) if found != user)

    threads = [threading.Thread(target=work, args=(user,)) for user in ("ann", "bob") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_asyncio_tasks_with_different_users_never_mix(busy_fleet: DatabaseFactory) -> None:
    """Tasks that hold their sessions across an await, interleaved on one event loop."""

    async def work(user: str) -> list[str]:
        found: list[str] = []
        for _ in range(5):
            with busy_fleet.get_session(user_id=user, read_only=True) as session:
                found += session.scalars(select(Run.user_id)).all()
                await asyncio.sleep(0)
                found += session.scalars(select(BybitAccount.user_id)).all()
        return found

    async def both() -> list[list[str]]:
        return list(await asyncio.gather(work("ann"), work("bob")))

    assert asyncio.run(both()) == [["ann"] * 10, ["bob"] * 10]


def test_an_unpickled_object_does_not_enter_another_users_session(fleet: DatabaseFactory) -> None:
    """Pickling carries the object, not the right to it."""
    with fleet.get_session(user_id="bob") as session:
        pickled = pickle.dumps(session.get_one(Run, "run-bob"))
    with fleet.get_session(user_id="ann") as session, pytest.raises(TenantViolation):
        session.add(pickle.loads(pickled))


def test_an_object_from_a_users_session_works_unconfined_elsewhere(fleet: DatabaseFactory) -> None:
    """Its lazy loads in a plain session see what the plain session sees."""
    cross(fleet, "run-bob", "ann")
    with fleet.get_session(user_id="ann") as session:
        account = session.get_one(BybitAccount, "acc-ann")
        session.expunge(account)
    with fleet.get_session() as plain:
        plain.add(account)
        assert {run.run_id for run in account.runs} == {"run-ann", "run-bob"}


def test_no_error_text_holds_foreign_data(fleet: DatabaseFactory) -> None:
    """A violation names operation, entity and the own user, and nothing of the other one's row."""
    foreign = detached(fleet, ApiCredential, "cred-bob")
    attempts: list[Callable[[Session], object]] = [
        lambda session: session.add(foreign),
        lambda session: session.merge(Run(run_id="run-bob", **run_values("ann"))),
        lambda session: session.execute(update(Run), [{"run_id": "run-bob", "status": "failed"}]),
        lambda session: session.add(Strategy(account_id="acc-bob", strategy_type="G", symbol="S", config_json={})),
    ]
    for attempt in attempts:
        violation = refused_and_unwritten(fleet, attempt)
        assert violation.user_id == "ann"
        assert violation.entity in {"ApiCredential", "Run", "Strategy"}
        assert violation.operation
        assert not any(word in str(violation) for word in ("bob", "secret"))


def test_repositories_take_the_user_from_the_session(fleet: DatabaseFactory) -> None:
    """No user needs to be named; another one may not be."""
    with fleet.get_session(user_id="ann") as session:
        runs = RunRepository(session)
        assert [run.run_id for run in runs.get_running()] == ["run-ann"]
        assert [run.run_id for run in runs.get_by_user_id("ann")] == ["run-ann"]
        assert runs.get_by_id("run-bob") is None
        assert [account.account_id for account in BybitAccountRepository(session).get_enabled_accounts()] == ["acc-ann"]
        with pytest.raises(TenantScopeError):
            runs.get_by_user_id("bob")
        with pytest.raises(TenantScopeError):
            RunRepository(session, user_id="bob")
        with pytest.raises(TenantScopeError):
            RunRepository.across_users(session)
    with fleet.get_session() as session:
        assert len(RunRepository.across_users(session).get_all()) == 2


def test_a_user_can_build_everything_he_owns(fleet: DatabaseFactory) -> None:
    """From the account to the execution, by keys and by objects, in one flush and in several."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    with fleet.get_session(user_id="ann") as session:
        account = BybitAccount(user_id="ann", account_name="new", environment="mainnet")
        strategy = Strategy(account=account, strategy_type="Grid", symbol="BTCUSDT", config_json={})
        run = Run(user_id="ann", account=account, strategy=strategy, run_type="backtest", start_ts=start)
        account.credentials.append(ApiCredential(api_key_id="k", api_secret="s"))
        session.add_all([strategy, run])
        session.flush()
        session.add(PrivateExecution(**execution_values(run)))
    with fleet.get_session(user_id="ann") as session:
        assert len(session.scalars(select(PrivateExecution)).all()) == 2
        session.delete(session.get_one(BybitAccount, account.account_id))
    with fleet.get_session(user_id="ann") as session:
        assert len(session.scalars(select(PrivateExecution)).all()) == 1


def test_every_table_is_scoped_or_listed_as_shared() -> None:
    """A new model that does not say whose rows it holds fails here, and is refused when it is asked for."""
    ours = {mapper.class_ for mapper in Base.registry.mappers if mapper.class_.__module__ == "shared.db.models"}
    assert ours == set(OWNERSHIP)

    class Forgotten:
        secret = mapped_column(String)

    with pytest.raises(UndeclaredTableError, match="__ownership__"):
        ownership_of(Forgotten)
