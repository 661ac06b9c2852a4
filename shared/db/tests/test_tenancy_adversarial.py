"""What an adversary found: ways round a user's session that worked once, or might work in another implementation.

Each runs on in-memory SQLite, file SQLite, PostgreSQL, and PostgreSQL with its policies.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from sqlalchemy import (
    DDL,
    JSON,
    ColumnElement,
    Insert,
    Integer,
    LargeBinary,
    Numeric,
    Sequence,
    String,
    Uuid,
    all_,
    any_,
    bindparam,
    case,
    cast,
    column,
    create_engine,
    delete,
    extract,
    func,
    insert,
    join,
    lambda_stmt,
    literal,
    literal_column,
    not_,
    or_,
    select,
    table,
    tablesample,
    text,
    true,
    tuple_,
    union_all,
    update,
    values,
)
from sqlalchemy import Enum as SqlEnum
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import CompileError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import (
    Bundle,
    Session,
    aliased,
    column_property,
    joinedload,
    load_only,
    make_transient_to_detached,
    outerjoin,
    registry,
    selectinload,
    synonym,
    with_loader_criteria,
    with_parent,
)
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.loading import merge_frozen_result
from sqlalchemy.schema import DropTable
from sqlalchemy.sql.dml import Update
from sqlalchemy.sql.elements import UnaryExpression, quoted_name
from sqlalchemy.sql.expression import Function, FunctionElement
from sqlalchemy.sql.operators import custom_op

from shared.db import (
    ApiCredential,
    Base,
    BybitAccount,
    DatabaseFactory,
    InvalidValueError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    RowNotFoundError,
    Run,
    RunRepository,
    SharedDBError,
    Strategy,
    TenantScopeError,
    TenantViolation,
    TransactionControlError,
    UndeclaredTableError,
    User,
    UserSession,
    allow_functions,
)
from shared.db.bulk import bulk_create
from shared.db.column_types import exact_sum, holds, new_uuid, utc_now
from shared.db.dialects import MYSQL
from shared.db.tables import OWNERSHIP
from shared.db.tenancy import functions
from shared.db.tenancy.confined_sql import OwnRows
from shared.db.tenancy.user_ids import UNSET, UserId
from shared.db.tests.fleet import FOREIGN, cross, detached, everything_of, refused_and_unwritten, run_values
from shared.db.tests.support import execution_values, trade_values
from shared.db.tests.two_users.forms import SHAPES, forms_of, places, try_form
from shared.db.tests.two_users.world import MADE, NAMES, OUTSIDE, World, stored

TABLES: Any = Run.metadata.tables
RUNS, CREDENTIALS = TABLES["runs"], TABLES["api_credentials"]
STRATEGIES, TRADES = TABLES["strategies"], TABLES["public_trades"]
NO_SYNC = {"synchronize_session": False}


@dataclass(frozen=True)
class Target:
    """A table that holds users' rows, one of each user, as the cases read it.

    `key` is a column of text in which the two rows have `names`, ann's and bob's; bob's is the greater one. The column
    that says whose they are has `owners`.
    """

    model: Any
    key: str
    names: tuple[str, str]
    owners: tuple[str, str]

    @property
    def name(self) -> Any:
        """The column that tells the rows apart."""
        return getattr(self.model, self.key)

    @property
    def owner(self) -> Any:
        """The column that says whose a row is."""
        return getattr(self.model, OWNERSHIP[self.model].column)  # type: ignore[union-attr] # users' rows

    @property
    def bobs(self) -> str:
        """What bob's row is called."""
        return self.names[1]

    @property
    def table(self) -> Any:
        """The Core table."""
        return self.model.__table__

    @property
    def core(self) -> Any:
        """The Core table's column that tells the rows apart."""
        return self.table.c[self.key]

    def under(self, alias: Any) -> Any:
        """That column of an alias of the class."""
        return getattr(alias, self.key)


Read = Callable[[Target, Target], Any]
Targets = Callable[[DatabaseFactory], list[Target]]

RUN = Target(Run, "run_id", ("run-ann", "run-bob"), ("ann", "bob"))
CREDENTIAL = Target(ApiCredential, "api_key_id", ("key-ann", "key-bob"), ("acc-ann", "acc-bob"))


def _secret(of: Target = CREDENTIAL) -> Any:
    """The greatest secret that can be seen: bob's, if anything of his can."""
    return select(func.max(of.name)).scalar_subquery()


def _count(of: Target) -> Any:
    """The number of rows that can be seen: one, or two."""
    return select(func.count(of.name)).scalar_subquery()


def _seen(of: Target = RUN) -> Any:
    """Whether bob's row can be seen."""
    return select(of.name).where(of.owner == of.owners[1]).exists()


def _if(condition: Any) -> Any:
    return select(literal("bob")).where(condition)


def _more_than_one(rows: Any) -> Any:
    return _if(select(rows.subquery()).offset(1).exists())


def _recursive(of: Target) -> Any:
    cte = select(literal("x").label(of.key)).cte("found", recursive=True)
    return select(cte.union(select(of.name)).c[of.key])


def _full_join_to_alias(of: Target) -> Any:
    rows = aliased(of.model)
    return select(PublicTrade.id, of.under(rows)).outerjoin(rows, PublicTrade.symbol == of.under(rows), full=True)


def _aliased_relationship() -> Any:
    runs = aliased(Run)
    return _if(select(User.user_id).where(User.runs.of_type(runs).any(runs.user_id == "bob")).exists())


def _another_class(of: Target, way: Callable[[Any], Any]) -> Any:
    """Trades that are read from the table, if it has a column of the same name, or else from that of the strategies."""
    columns = (*of.table.columns, *STRATEGIES.columns)
    shared = next(column for column in columns if column.name in TRADES.c)
    trades = aliased(PublicTrade, way(shared.table), adapt_on_names=True)
    return _if(select(func.count(getattr(trades, shared.name))).scalar_subquery() > 1)


# Statements on one table of users' rows and another that would show "bob" if anything of his could be seen. Two public
# trades are there.
READS: dict[str, Read] = {
    "LIMIT": lambda one, other: _more_than_one(select(TRADES.c.id).order_by(TRADES.c.id).limit(_count(one))),
    "OFFSET": lambda one, other: _if(~select(select(TRADES.c.id).limit(9).offset(_count(one)).subquery()).exists()),
    "CASE": lambda one, other: select(case((TRADES.c.id > 0, _secret(other)))),
    "CASE ... ELSE": lambda one, other: select(case((TRADES.c.id < 0, "x"), else_=_secret(other))),
    "CASE value": lambda one, other: select(case({other.bobs: "bob"}, value=_secret(other))),
    "CAST": lambda one, other: select(cast(_secret(other), String)),
    "a function's argument": lambda one, other: select(func.coalesce(_secret(other), "x")),
    "a concatenation": lambda one, other: select(literal("x") + _secret(other)),
    "a tuple": lambda one, other: _if(tuple_(literal(other.bobs), literal("x")).in_(select(other.name, literal("x")))),
    "IN": lambda one, other: _if(literal(other.bobs).in_(select(other.name))),
    "BETWEEN": lambda one, other: _if(literal(other.bobs).between(_secret(other), _secret(other))),
    "NOT": lambda one, other: _if(not_(_secret(other) != other.bobs)),
    "NOT NOT EXISTS": lambda one, other: _if(not_(~_seen(one))),
    "OR": lambda one, other: _if(or_(_seen(one), literal("a") == "b")),
    "minus": lambda one, other: _if(-_count(one) == -2),
    "HAVING": lambda one, other: (
        select(literal("bob"), TRADES.c.symbol).group_by(TRADES.c.symbol).having(_secret(other) == other.bobs)
    ),
    "GROUP BY": lambda one, other: _more_than_one(
        select(func.count(TRADES.c.id)).group_by(case((_secret(other) == other.bobs, TRADES.c.id), else_=0))
    ),
    "DISTINCT": lambda one, other: select(TRADES.c.symbol, _secret(other)).distinct(),
    "a window's argument": lambda one, other: select(func.max(_secret(other)).over(order_by=TRADES.c.id)),
    "a window's order": lambda one, other: select(func.first_value(one.name).over(order_by=one.name.desc())),
    "a window's order alone": lambda one, other: _more_than_one(
        select(func.row_number().over(order_by=one.name).label("n"))
    ),
    "a window's partition alone": lambda one, other: _more_than_one(
        select(func.row_number().over(partition_by=one.name).label("n"))
    ),
    "FILTER": lambda one, other: select(func.max(one.name).filter(one.owner != "")),
    "UNION with a shared table": lambda one, other: union_all(select(TRADES.c.symbol), select(one.name)),
    "UNION ... LIMIT": lambda one, other: _more_than_one(
        union_all(select(TRADES.c.id), select(TRADES.c.id)).limit(_count(one))
    ),
    "a CTE": lambda one, other: select(select(one.name).cte().c[one.key]),
    "a CTE and a bare column": lambda one, other: select(column(one.key)).select_from(select(one.name).cte("found")),
    "a recursive CTE": lambda one, other: _recursive(one),
    "VALUES": lambda one, other: select(values(column("x", String), name="v").data([(_secret(other),)]).cte().c.x),
    "an explicit join": lambda one, other: select(TRADES.c.id, one.name).select_from(join(TRADES, one.model, true())),
    "ON alone": lambda one, other: select(literal("bob")).select_from(join(TRADES, one.model, one.name == one.bobs)),
    "EXISTS in ON": lambda one, other: select(literal("bob")).select_from(join(TRADES, TRADES.alias(), _seen(one))),
    "WHERE alone": lambda one, other: select(literal("bob")).where(
        TRADES.c.symbol != one.name, one.owner == one.owners[1]
    ),
    "an alias in WHERE alone": lambda one, other: _if(one.under(aliased(one.model)) == one.bobs),
    "a left join": lambda one, other: select(PublicTrade.id, one.name).outerjoin(
        one.model, PublicTrade.symbol != one.name
    ),
    "a full join": lambda one, other: select(PublicTrade.id, one.name).outerjoin(
        one.model, PublicTrade.symbol == one.name, full=True
    ),
    "a full join to an alias": lambda one, other: _full_join_to_alias(one),
    "a full join between users' tables": lambda one, other: select(one.name, User.user_id).select_from(
        outerjoin(User, one.model, User.user_id == one.name, full=True)
    ),
    "a nested join": lambda one, other: select(User.user_id, one.name, Strategy.strategy_id).select_from(
        outerjoin(User, join(one.model, Strategy, one.owner != Strategy.symbol), User.username != one.owner)
    ),
    "an alias of a Core alias": lambda one, other: select(one.under(aliased(one.model, one.table.alias()))),
    "an alias of a Core join": lambda one, other: select(
        one.under(aliased(one.model, one.table.join(other.table, true())))
    ),
    "a shared class over a users' table": lambda one, other: _another_class(one, lambda source: source),
    "a shared class over a users' table's alias": lambda one, other: _another_class(one, lambda source: source.alias()),
    "a shared class over a join with a users' table": lambda one, other: _more_than_one(
        select(aliased(PublicTrade, TRADES.join(other.table, TRADES.c.trade_id == "trade-0")).symbol)
    ),
    "a bundle": lambda one, other: select(Bundle("b", Strategy.strategy_id, one.name)).where(
        Strategy.symbol != one.owner
    ),
    "a correlated subquery": lambda one, other: select(
        one.name, select(one.name).where(one.name == one.bobs).correlate(one.model).scalar_subquery()
    ),
    "a subquery that correlates to nothing": lambda one, other: select(
        User.user_id, select(func.max(one.name)).correlate_except(None).scalar_subquery()
    ),
    "an unmapped column beside its class": lambda one, other: select(one.owner, one.core),
    "an unmapped column under its class": lambda one, other: select(
        one.name, select(func.max(one.core)).correlate(None).scalar_subquery()
    ),
    "ORM inside Core inside ORM": lambda one, other: select(literal("bob"), User.user_id).where(
        select(TRADES.c.id).where(_seen(one)).exists()
    ),
    "row locks": lambda one, other: select(one.name).with_for_update(),
    "a parameter that was another statement's": lambda one, other: select(one.name).where(
        bindparam("user_id_1", "bob") == "bob"
    ),
    "another user's option": lambda one, other: select(one.name).options(OwnRows("bob", policed=True)),
    "criteria that read a Core table": lambda one, other: select(literal("bob"), one.name).options(
        with_loader_criteria(one.model, select(other.table).where(other.core == other.bobs).exists())
    ),
    "a relationship's criteria that read a Core table": lambda one, other: select(literal("bob"), User.user_id).join(
        User.runs.and_(select(other.table).where(other.core == other.bobs).exists())
    ),
    "EXISTS in ORDER BY": lambda one, other: _if(
        select(TRADES.c.trade_id)
        .order_by(case((_seen(one), TRADES.c.id), else_=-TRADES.c.id))
        .limit(1)
        .scalar_subquery()
        == "trade-0"
    ),
    "a flat alias of a join": lambda one, other: select(
        one.under(aliased(one.model, one.table.join(STRATEGIES, one.core != STRATEGIES.c.symbol), flat=True))
    ),
    "an alias named like a table": lambda one, other: select(
        one.under(aliased(one.model, name="bybit_accounts")), Strategy.strategy_id
    ).join(Strategy, true()),
}


# The same of what one of the databases has.
READS_ON: dict[str, dict[str, Read]] = {
    "sqlite": {
        "a table function": lambda one, other: select(
            func.json_each(func.json_array(_secret(other))).table_valued("value").c.value
        ),
        "a path into a document": lambda one, other: _if(
            func.json_extract(func.json_object(other.bobs, 1), literal('$."') + _secret(other) + '"') == 1
        ),
    },
    "postgresql": {
        "LATERAL": lambda one, other: _beside(one, select(one.name).where(one.owner != "").lateral("beside")),
        "ANY": lambda one, other: _if(literal(other.bobs) == any_(select(other.name).scalar_subquery())),
        "ALL": lambda one, other: _if(~(literal(f"{other.names[0]}z") > all_(select(other.name).scalar_subquery()))),
        "TABLESAMPLE": lambda one, other: select(one.under(_sample(one))),
        "a whole row": lambda one, other: select(func.row_to_json(select(one.name).subquery().table_valued())),
        "an array": lambda one, other: select(func.array(select(one.name).scalar_subquery())),
    },
}


def _beside(of: Target, rows: Any) -> Any:
    return select(User.user_id, rows.c[of.key]).join(rows, true())


def _sample(of: Target) -> Any:
    return aliased(of.model, tablesample(of.table, 100))


# It has no FULL JOIN, and its LIMIT takes nothing but a number.
UNKNOWN_TO_MARIADB = (
    *("LIMIT", "OFFSET", "UNION ... LIMIT"),
    *("a full join", "a full join to an alias", "a full join between users' tables"),
)


def _reads(db: DatabaseFactory, targets: list[Target] | None = None) -> dict[str, Callable[[], Any]]:
    """The cases with each of the targets but the last as the first table, and the next one as the other.

    The first is a run's and the other that of the secrets, unless targets are given.
    """
    targets = targets or [RUN, CREDENTIAL]
    reads = READS | READS_ON.get(db.settings.port.name, {})
    unknown = UNKNOWN_TO_MARIADB if db.settings.port is MYSQL else ()
    found: dict[str, Callable[[], Any]] = {
        f"{name}, {one.table.name} and {other.table.name}": partial(read, one, other)
        for one, other in pairwise(targets)
        for name, read in reads.items()
        if name not in unknown
    }
    return found if RUN not in targets else found | {"an aliased relationship": _aliased_relationship}


def _outside_targets(db: DatabaseFactory) -> list[Target]:
    """The users' tables that other packages have declared, each with a row of ann's and one of bob's.

    The secrets come before and after them, so that each is the first table of the cases once, and the other.
    """
    World(db)
    targets = []
    with db.get_session() as plain:
        for model in OUTSIDE:
            target = Target(model, NAMES[model], ("", ""), ("", ""))
            ann, bob = plain.execute(select(target.name, target.owner).order_by(target.name)).all()
            targets.append(Target(model, target.key, (ann[0], bob[0]), (ann[1], bob[1])))
    return [CREDENTIAL, *targets, CREDENTIAL]


def _with_trades(db: DatabaseFactory) -> None:
    with db.get_session() as plain:
        plain.add_all(PublicTrade(**trade_values(number)) for number in range(2))


unlinked = pytest.mark.filterwarnings("ignore:SELECT statement has a cartesian product:sqlalchemy.exc.SAWarning")


targets_of = pytest.mark.parametrize(
    "targets_of",
    [
        pytest.param(lambda db: [RUN, CREDENTIAL], id="own"),
        *([pytest.param(_outside_targets, id="outside")] if OUTSIDE else ()),
    ],
)


@unlinked
@targets_of
def test_no_position_in_a_statement_shows_foreign_rows(fleet: DatabaseFactory, targets_of: Targets) -> None:
    """Wherever a mapped class stands, only the session's user's rows are there; also right after the other user."""
    targets = targets_of(fleet)
    _with_trades(fleet)
    leaks = []
    for name, statement in _reads(fleet, targets).items():
        # Bob first: what SQLAlchemy remembers of his statement must not show ann his rows.
        for user in ("bob", "ann"):
            with fleet.get_session(user_id=user) as session:
                found = str(session.execute(statement()).all())
            if user == "ann" and "bob" in found:
                leaks.append((name, found))
    assert leaks == []


@unlinked
@targets_of
def test_these_statements_do_see_what_a_plain_session_shows(fleet: DatabaseFactory, targets_of: Targets) -> None:
    """Each of them would tell: in a session that sees everything it shows bob."""
    targets = targets_of(fleet)
    _with_trades(fleet)
    blind = []
    for name, statement in _reads(fleet, targets).items():
        with fleet.get_session() as plain:
            if not name.startswith("another user's option") and "bob" not in str(plain.execute(statement()).all()):
                blind.append(name)
    assert blind == []


def test_a_map_of_schemas_changes_nothing_about_whose_rows_are_read(fleet: DatabaseFactory) -> None:
    """The tables are the same under the name of their schema."""
    database = str(fleet.settings.url.database)
    here = {"sqlite": "main", "postgresql": "public", "mysql": database}[fleet.settings.port.name]
    with fleet.get_session(user_id="ann") as session:
        options = {"schema_translate_map": {None: here}}
        assert session.scalars(select(Run.run_id), execution_options=options).all() == ["run-ann"]
        assert session.scalars(select(Strategy.strategy_id), execution_options=options).all() == ["str-ann"]


def test_a_sample_beside_other_tables_is_confined_or_an_error(postgresql_fleet: DatabaseFactory) -> None:
    """What is read in a table's place has no sample."""
    _with_trades(postgresql_fleet)
    runs = _sample(RUN)
    for full in (False, True):
        joined = select(PublicTrade.id, runs.run_id).outerjoin(runs, PublicTrade.symbol == runs.run_id, full=full)
        with suppress(SharedDBError), postgresql_fleet.get_session(user_id="ann") as session:
            assert "bob" not in str(session.execute(joined).all())


def test_a_class_of_somebodys_own_over_a_users_table_is_confined(fleet: DatabaseFactory) -> None:
    """What it reads by properties of its own, and what it calls the owner, is confined by the table."""

    class Shadow:
        """A second class over the runs."""

    mapping = registry()
    secret = select(func.max(CREDENTIALS.c.api_key_id)).scalar_subquery()
    properties = {"secret": column_property(secret, deferred=True), "mine": synonym("user_id")}
    mapping.map_imperatively(Shadow, RUNS, properties=properties)
    shadow: Any = Shadow
    before = everything_of(fleet, "bob")
    try:
        with fleet.get_session(user_id="ann") as session, suppress(TenantViolation, UndeclaredTableError):
            found = session.scalars(select(shadow)).all()
            assert [one.run_id for one in found] == ["run-ann"]
            assert "bob" not in str([one.secret for one in found])
            assert "bob" not in str(session.execute(select(shadow.secret)).all())
        for assigned in ({"mine": "bob"}, {shadow.mine: "bob"}, {shadow.user_id: "bob"}):
            with suppress(TenantViolation, UndeclaredTableError), fleet.get_session(user_id="ann") as session:
                session.execute(update(shadow).values(assigned), execution_options=NO_SYNC)
        assert everything_of(fleet, "bob") == before
        with fleet.get_session() as plain:
            assert plain.get_one(Run, "run-ann").user_id == "ann"
    finally:
        mapping.dispose()


@pytest.mark.parametrize("name", ["user_id_1", "shared_db_user_id", "shared_db_user_id_1"])
def test_a_parameter_does_not_take_the_users_place(fleet: DatabaseFactory, name: str) -> None:
    """Whatever a caller's parameters are called, and however they are given, the session's user stays who he is."""
    before = everything_of(fleet, "bob")
    for _ in range(2):  # the second time with what SQLAlchemy remembers of the first
        with fleet.get_session(user_id="ann") as session:
            for statement, own in ((select(Run.run_id), "run-ann"), (select(Strategy.strategy_id), "str-ann")):
                assert session.scalars(statement, {name: "bob"}).all() == [own]
                assert session.scalars(statement.params({name: "bob"})).all() == [own]
                nested = select(statement.params({name: "bob"}).scalar_subquery())
                assert session.scalars(nested).all() == [own]
            assert session.query(Run.run_id).params({name: "bob"}).all() == [("run-ann",)]
            session.execute(delete(PrivateExecution), {name: "bob"})
    assert everything_of(fleet, "bob") == before


def test_a_refreshed_object_does_not_bring_along_a_foreign_parent(fleet: DatabaseFactory) -> None:
    """An eager load is confined again when the object is loaded again."""
    cross(fleet, "run-ann", "bob")
    with fleet.get_session(user_id="ann") as session:
        run = session.scalars(select(Run).options(joinedload(Run.account))).one()
        session.refresh(run)
        assert run.account is None
        session.expire(run)
        assert run.status == "completed"
        assert run.account is None
        session.refresh(run, ["account"])
        assert run.account is None


def test_an_object_that_is_another_users_by_now_is_not_loaded_again(busy_fleet: DatabaseFactory) -> None:
    """What is in memory stays, but a refresh finds no row of the user."""
    with busy_fleet.get_session(user_id="ann", read_only=True) as session:
        run = session.get_one(Run, "run-ann")
        session.rollback()
        with busy_fleet.get_session() as plain:
            plain.execute(update(Run).values(**run_values("bob")))
        with pytest.raises(Exception, match="refresh"):
            session.refresh(run)


def test_relationships_of_a_new_object_load_nothing_foreign(fleet: DatabaseFactory) -> None:
    """Not even when the session is told to treat it as stored, or asked for what a foreign object has."""
    bob = detached(fleet, User, "bob")
    with fleet.get_session(user_id="ann") as session:
        run = Run(run_id="run-bob", **run_values())
        session.enable_relationship_loading(run)
        assert run.account is None
        assert run.executions == []
        session.expunge(run)
        assert session.scalars(select(Run).where(with_parent(bob, User.runs))).all() == []


def test_a_loaded_object_can_be_pickled(fleet: DatabaseFactory) -> None:
    """Nothing of the session hangs on it."""
    with fleet.get_session(user_id="ann") as session:
        run = session.scalars(select(Run).options(joinedload(Run.account))).one()
        assert pickle.loads(pickle.dumps(run)).account.account_id == "acc-ann"


# Raw SQL in disguise

INJECTED = "(SELECT max(api_key_id) FROM api_credentials)"

# That run SQL given as text, leave the role, show or change what is not the user's, or end another one's session.
FUNCTIONS_NOT_ALLOWED = (
    "query_to_xml",
    "QUERY_TO_XML",
    "table_to_xmlschema",
    "cursor_to_xml",
    "schema_to_xml_and_xmlschema",
    "database_to_xml",
    "ts_stat",
    "ts_rewrite",
    "set_config",
    "dblink",
    "dblink_exec",
    "crosstab",
    "crosstab4",
    "connectby",
    "load_extension",
    "load_file",
    "LOAD_FILE",
    "sleep",
    "benchmark",
    "get_lock",
    "release_lock",
    "last_insert_id",
    "lo_import",
    "lo_get",
    "pg_read_file",
    "pg_read_binary_file",
    "pg_stat_get_activity",
    "pg_stat_get_backend_activity",
    "setval",
    "nextval",
    "currval",
    "lastval",
    "pg_terminate_backend",
    "pg_cancel_backend",
    "pg_reload_conf",
    "pg_ls_dir",
    "pg_hba_file_rules",
    "pg_show_all_file_settings",
    "pg_switch_wal",
    "pg_promote",
    "pg_advisory_lock",
    "pg_sleep",
    "pg_notify",
    "current_setting",
    "dbstat",
    "pragma_database_list",
    "fts3_tokenizer",
    "sqlite_compileoption_get",
    "a_function_of_somebodys_own",
)


class _Recipe(ColumnElement[str]):
    """A construct of the application's, after SQLAlchemy's own recipe."""

    inherit_cache = False


@compiles(_Recipe)
def _recipe(element: _Recipe, compiler: Any, **how: Any) -> str:
    return INJECTED


class _RecipeOfFunction(FunctionElement[str]):
    type = String()
    name = "lower"
    inherit_cache = True


@compiles(_RecipeOfFunction, "sqlite")
@compiles(_RecipeOfFunction, "postgresql")
def _recipe_of_function(element: _RecipeOfFunction, compiler: Any, **how: Any) -> str:
    return INJECTED


class _RecipeOfStatement(Insert):
    inherit_cache = False


@compiles(_RecipeOfStatement)
def _recipe_of_statement(element: _RecipeOfStatement, compiler: Any, **how: Any) -> str:
    return "UPDATE runs SET gridcore_version = 'x'"


def _unquoted(text: str) -> Any:
    return quoted_name(text, False)


# Names that SQLAlchemy is told not to quote, wherever one is written, in a statement about a text column.
UNQUOTED: dict[str, Callable[[Any], Any]] = {
    "column": lambda key: select(key, column(_unquoted(INJECTED))),
    "quotes that close": lambda key: select(key, column(_unquoted(f'"symbol", {INJECTED}, "symbol"'))),
    "MySQL's quotes that close": lambda key: select(key, column(_unquoted(f"`symbol`, {INJECTED}, `symbol`"))),
    "label": lambda key: select(key.label(_unquoted(f"x, {INJECTED}"))),
    "alias": lambda key: select(getattr(aliased(key.class_, name=_unquoted("runs, api_credentials")), key.key)),
    "alias of a subquery": lambda key: select(select(key.label("x")).subquery(_unquoted("x, api_credentials")).c.x),
    "CTE": lambda key: select(select(key.label("x")).cte(_unquoted(f"x AS {INJECTED}, y")).c.x),
    "VALUES": lambda key: select(
        key, values(column("x", String), name="v").data([("x",)]).alias(_unquoted("v, runs")).c.x
    ),
    "column of VALUES": lambda key: select(
        key, values(column(_unquoted(f"x), (SELECT {INJECTED}"), String), name="v").data([("x",)]).c[0]
    ),
    "function": lambda key: select(Function(_unquoted(f"coalesce({INJECTED},'') || lower"), "x"), key),
    "package of a function": lambda key: select(
        Function("lower", "x", packagenames=(_unquoted(f"coalesce({INJECTED},'') || pg_catalog"),)), key
    ),
    "table function": lambda key: select(
        key, func.json_each("{}").table_valued(column(_unquoted(f"key, {INJECTED}")), name=_unquoted("x, runs")).c[0]
    ),
    "collation": lambda key: select(key.collate(_unquoted(f"BINARY || {INJECTED}"))),
    "sequence": lambda key: select(key, Sequence(_unquoted("x') || (SELECT 'y")).next_value()),
    "UPDATE": lambda key: update(key.class_).values({key: column(_unquoted(INJECTED))}),
    "DELETE": lambda key: delete(key.class_).where(column(_unquoted(f"1=1 OR {INJECTED}")) == "x"),
    "RETURNING": lambda key: delete(key.class_).returning(column(_unquoted(INJECTED))),
    "INSERT": lambda key: insert(PublicTrade).values(**trade_values(7, symbol=column(_unquoted(INJECTED)))),
    "INSERT of several": lambda key: insert(PublicTrade).values([trade_values(7, symbol=column(_unquoted(INJECTED)))]),
    "stacked statements": lambda key: select(
        key, column(_unquoted("1; UPDATE runs SET gridcore_version = 'x' WHERE user_id = 'bob'; SELECT 'x' AS x"))
    ),
}


RAW_SQL: dict[str, Callable[[], Any]] = {
    "an operator": lambda: select(Run.run_id.op(f"|| {INJECTED} ||")("x")),
    "an operator that closes a parenthesis": lambda: select(Run.run_id).where(
        Run.run_id.op("IS NOT NULL) OR (1=1 OR 'a' =")("b")
    ),
    "an operator with a comment": lambda: select(Run.run_id).where(Run.run_id.op("<> '' --")("b")),
    "a comment as an operator": lambda: select(Run.run_id).where(Run.run_id.op("<>--")("b")),
    "the beginning of a comment as an operator": lambda: select(Run.run_id).where(Run.run_id.op("/*")("b")),
    "an operator of one word": lambda: select(Run.run_id).where(Run.run_id.op("OR")("b")),
    "a boolean operator": lambda: select(Run.run_id).where(Run.run_id.bool_op("IS NOT NULL) OR (1=1 OR 'a' =")("b")),
    "a type": lambda: select(cast(Run.run_id, String(collation=f'C"), {INJECTED}, ("x'))),
    "text in a relationship's criteria": lambda: select(User.user_id).join(User.runs.and_(text("1=1) OR (1=1"))),
    "text in VALUES": lambda: select(values(column("x", String), name="v").data([(text(INJECTED),)]).cte().c.x),
    "text in a function": lambda: select(func.coalesce(text(INJECTED), Run.run_id)),
    "text in ORDER BY": lambda: select(Run.run_id).order_by(text("run_id")),
    "a literal column from a lambda": lambda: select(Run.run_id).where(lambda: literal_column("1=1) OR (1=1") == 1),
    "a lambda": lambda: lambda_stmt(lambda: select(Run.run_id)),
    "a literal column in WHERE": lambda: select(Run.run_id).where(literal_column(INJECTED) != "x"),
    "a Core table under a function": lambda: select(func.max(select(RUNS.c.run_id).scalar_subquery())),
    "a Core table in IN": lambda: select(Run.run_id).where(literal("x").in_(select(CREDENTIALS.c.api_key_id))),
    "a table of another MetaData": lambda: select(func.count(RUNS.to_metadata(type(Run.metadata)()).c.run_id)),
    "a bare function": lambda: func.coalesce("x"),
    "a CTE named like a table": lambda: select(Strategy.strategy_id).add_cte(_forged("bybit_accounts")),
    "a CTE named like a table, in capitals": lambda: select(Strategy.strategy_id).add_cte(_forged("BYBIT_ACCOUNTS")),
    "a CTE that writes": lambda: select(Run.run_id).add_cte(delete(Run).returning(Run.run_id).cte("gone")),
    "a function that runs SQL": lambda: select(func.query_to_xml("SELECT * FROM runs", True, False, ""), Run.run_id),
    "a function that leaves the role": lambda: select(func.set_config("role", "none", True), Run.run_id),
    "an operator before its operand": lambda: select(
        UnaryExpression(Run.run_id.expression, operator=custom_op(f"{INJECTED} ||"))
    ),
    "an operator behind its operand": lambda: select(
        UnaryExpression(Run.run_id.expression, modifier=custom_op(f"|| {INJECTED}"))
    ),
    "DDL": lambda: DDL("DELETE FROM runs"),  # type: ignore[no-untyped-call] # SQLAlchemy gives it no types
    "DROP TABLE": lambda: DropTable(RUNS),
    "a suffix": lambda: select(Run.run_id).suffix_with("LIMIT 1"),
    "a hint": lambda: select(Run.run_id).with_statement_hint("/* */"),
    "a Core table with a name of its own": lambda: select(table(_unquoted("api_credentials"), column("api_key_id"))),
    "a Core table's schema": lambda: select(table("runs", column("run_id"), schema=_unquoted("public"))),
    "a sequence": lambda: select(Run.run_id, Sequence("private_executions_id_seq").next_value()),
    "a sequence alone": lambda: Sequence("private_executions_id_seq"),
    "a type of a table function's column": lambda: select(
        func.json_to_recordset("[]")
        .table_valued(column("a", String(collation=f'C"), api_credentials, {INJECTED}, ("x')))
        .render_derived(with_types=True)
        .c.a
    ),
    "a function of another schema": lambda: select(func.somebodys.lower("x"), Run.run_id),
    "a construct": lambda: select(Run.run_id, _Recipe()),
    "a construct in WHERE": lambda: select(Run.run_id).where(_Recipe() == "x"),
    "a construct from a lambda": lambda: select(Run.run_id).where(lambda: _Recipe() == "x"),
    "a construct in a subquery": lambda: select(Run.run_id).where(select(_Recipe()).exists()),
    "a construct in ORDER BY": lambda: select(Run.run_id).order_by(_Recipe()),
    "a construct in a relationship's criteria": lambda: select(User.user_id).join(User.runs.and_(_Recipe() == "x")),
    "a construct in a loader's criteria": lambda: select(Run.run_id).options(
        with_loader_criteria(Run, _Recipe() == "x")
    ),
    "a construct of a function": lambda: select(Run.run_id, _RecipeOfFunction()),
    "a construct in an UPDATE": lambda: update(Run).values(gridcore_version=_Recipe()),
    "a construct in an INSERT of several": lambda: insert(PublicTrade).values([trade_values(7, symbol=_Recipe())]),
    "a construct in VALUES": lambda: select(values(column("x", String), name="v").data([(_Recipe(),)]).cte().c.x),
    "a construct in VALUES for a value": lambda: select(
        values(column("x", String)).data([(func.lower(_Recipe()),)]).scalar_values()
    ),
    "a construct as a prefix": lambda: select(Run.run_id).prefix_with(_Recipe()),
    "a construct as a suffix": lambda: select(select(Run.run_id).cte().suffix_with(_Recipe()).c.run_id),
    "a construct before INTO": lambda: insert(Run).prefix_with(_Recipe()).values(**run_values("ann")),
    "a construct among the columns of a conflict": lambda: (
        postgresql.insert(Run).values(**run_values("ann")).on_conflict_do_nothing(index_elements=[_Recipe()])
    ),
    "the same on SQLite": lambda: (
        sqlite.insert(Run).values(**run_values("ann")).on_conflict_do_nothing(index_elements=[_Recipe()])
    ),
    "a construct for a statement": lambda: _RecipeOfStatement(RUNS).values(**run_values("ann")),
    **{f"an unquoted name: {what}": partial(make, Run.gridcore_version) for what, make in UNQUOTED.items()},
}


def _forged(name: str) -> Any:
    return select(literal("acc-bob").label("account_id"), literal("ann").label("user_id")).cte(name)


def test_raw_sql_in_disguise_is_refused(unpoliced_fleet: DatabaseFactory) -> None:
    """Text that reaches the database unseen could read everything, and write."""
    before = everything_of(unpoliced_fleet, "bob")
    raw_sql = dict(RAW_SQL)
    if unpoliced_fleet.settings.port is MYSQL:
        # Of a text's type it writes the kind alone.
        with unpoliced_fleet.get_session(user_id="ann") as session:
            assert session.execute(raw_sql.pop("a type")()).all() == [("run-ann",)]
        with unpoliced_fleet.get_session(user_id="ann") as session, pytest.raises(CompileError, match="a length"):
            session.execute(raw_sql.pop("a type of a table function's column")())
    for what, make in raw_sql.items():
        with unpoliced_fleet.get_session(user_id="ann") as session, pytest.raises(TenantViolation):
            session.execute(make(), execution_options=NO_SYNC)
            raise AssertionError(what)
    assert everything_of(unpoliced_fleet, "bob") == before


def test_functions_that_nobody_allowed_are_refused(unpoliced_fleet: DatabaseFactory) -> None:
    """Whatever they do: nobody has looked at it."""
    with unpoliced_fleet.get_session(user_id="ann") as session:
        for name in FUNCTIONS_NOT_ALLOWED:
            with pytest.raises(TenantViolation, match="allow_functions"):
                session.execute(select(getattr(func, name)("SELECT 1"), Run.run_id))


def test_nor_is_raw_sql_a_way_round_require_tenant(unpoliced_fleet: DatabaseFactory) -> None:
    """A plain session that must not touch users' tables refuses the same disguises, of what is shared by all.

    That goes for attributes as well: what is shared may be written there, and no expression that reads.
    """
    settings = unpoliced_fleet.settings.model_copy(update={"require_tenant": True})
    disguises: list[Callable[[Any], Any]] = [
        *UNQUOTED.values(),
        lambda key: select(key, _Recipe()),
        lambda key: select(key).prefix_with(_Recipe()),
        lambda key: select(key, values(column("x", String), name="v").data([(_Recipe(),)]).c.x),
        lambda key: select(func.dbstat(), key),
    ]
    with DatabaseFactory(settings) as closed:
        if settings.is_memory:
            closed.create_tables()  # another factory's database in memory is another one
        for make in disguises:
            with closed.get_session() as session, pytest.raises(TenantScopeError):
                session.execute(make(PublicTrade.symbol), execution_options=NO_SYNC)
        expressions: list[Any] = [_secret(), column(_unquoted(INJECTED)), text(INJECTED), _Recipe()]
        for expression in expressions:
            with pytest.raises(TenantScopeError), closed.get_session() as session:
                session.add(PublicTrade(**trade_values(5, symbol=expression)))


def test_a_schema_is_quoted_when_it_is_filled_in(unpoliced_fleet: DatabaseFactory) -> None:
    """A map of schemas puts its names into text that was made before."""
    names = _unquoted("api_credentials, main") if unpoliced_fleet.settings.is_sqlite else _unquoted("runs r, public")
    with unpoliced_fleet.get_session(user_id="ann") as session, pytest.raises(TenantViolation):
        session.execute(select(PublicTrade.id), execution_options={"schema_translate_map": {None: names}}).all()


def test_a_type_of_an_array_is_a_name(unpoliced_fleet: DatabaseFactory) -> None:
    """PostgreSQL's ARRAY writes its type out by itself."""
    evil = postgresql.VARCHAR(length=f"1)[] || ARRAY{INJECTED}::VARCHAR(9")  # type: ignore[arg-type] # that is the point
    if unpoliced_fleet.engine.dialect.name == "postgresql":
        with unpoliced_fleet.get_session(user_id="ann") as session:
            with pytest.raises(TenantViolation):
                session.execute(select(Run.run_id, postgresql.array([], type_=evil))).all()
            with pytest.raises(TenantViolation):
                session.execute(select(cast(Run.run_id, postgresql.ARRAY(evil)))).all()
            assert session.scalar(select(postgresql.array([], type_=String(9)))) == []


@pytest.mark.filterwarnings("ignore:Additional column names:sqlalchemy.exc.SAWarning")
def test_a_constraint_of_an_upsert_is_quoted(unpoliced_fleet: DatabaseFactory) -> None:
    """As are the columns that it assigns."""
    trades = _insert(unpoliced_fleet)(PublicTrade).values(**trade_values(0))
    key = ["symbol", "exchange_ts", "trade_id"]
    upserts = [trades.on_conflict_do_update(index_elements=key, set_={_unquoted(f"symbol = {INJECTED}, side"): "Buy"})]
    upserts += [trades.on_conflict_do_nothing(index_elements=[_unquoted("symbol) DO NOTHING; --")])]
    if unpoliced_fleet.engine.dialect.name == "postgresql":
        upserts += [trades.on_conflict_do_nothing(constraint=_unquoted("x DO NOTHING; --"))]
    refused = CompileError if unpoliced_fleet.settings.port is MYSQL else TenantViolation
    for upsert in upserts:
        with unpoliced_fleet.get_session(user_id="ann") as session, pytest.raises(refused):
            session.execute(upsert)


def test_what_quoting_would_not_change_need_not_be_quoted(fleet: DatabaseFactory) -> None:
    """A name that is told not to be quoted passes where it is a name."""
    with fleet.get_session(user_id="ann") as session:
        assert session.scalar(select(Run.run_id.label(_unquoted("Ours")))) == "run-ann"
        assert session.scalar(select(Run.run_id.label('a "quoted" name; --'))) == "run-ann"
        assert session.scalar(select(cast(Run.run_id, String(30, collation="C" if _is_pg(fleet) else "BINARY"))))


def _is_pg(db: DatabaseFactory) -> bool:
    return db.engine.dialect.name == "postgresql"


ORDINARY: dict[str, Callable[[], Any]] = {
    "aggregates": lambda: select(func.count(), func.max(Run.run_id), func.min(Run.run_id), func.avg(1), func.sum(1)),
    "string": lambda: select(
        func.lower("X"), func.substr("abc", 2), func.replace("a", "a", "b"), func.trim(" x "), func.length("abc")
    ),
    "math": lambda: select(func.abs(-1), func.round(1.5), func.floor(1.5), func.sqrt(4.0), func.mod(7, 2)),
    "choice": lambda: select(func.coalesce(None, "x"), func.nullif("a", "b")),
    "time": lambda: select(func.now(), func.current_timestamp(), func.current_date()),
    "windows": lambda: select(
        func.row_number().over(order_by=Run.run_id),
        func.lag(Run.run_id).over(order_by=Run.run_id),
        func.first_value(Run.run_id).over(order_by=Run.run_id),
        func.rank().over(order_by=Run.run_id),
    ),
    "our own sum": lambda: select(exact_sum(PrivateExecution.exec_fee)),
    "our own look into documents": lambda: select(holds(Strategy.config_json, {})),
    "our own clock and keys": lambda: select(utc_now(), new_uuid()),
}
ORDINARY_ON: dict[str, dict[str, Callable[[], Any]]] = {
    "sqlite": {
        "time": lambda: select(func.strftime("%Y", Run.start_ts), func.julianday(Run.start_ts)),
        "json": lambda: select(func.json_extract(Strategy.config_json, "$.x"), func.json_array_length("[1]")),
        "tables": lambda: select(func.json_each("[1]").table_valued("key", "value").c.value),
        "groups": lambda: select(func.group_concat(Run.run_id), func.total(1)),
    },
    "postgresql": {
        "time": lambda: select(func.date_trunc("hour", Run.start_ts), func.timezone("UTC", Run.start_ts)),
        "json": lambda: select(
            func.jsonb_extract_path_text(Strategy.config_json, "x"), func.jsonb_build_object("a", 1)
        ),
        "tables": lambda: select(func.generate_series(1, 2).column_valued("n")),
        "groups": lambda: select(
            func.string_agg(Run.run_id, ","),
            func.array_agg(Run.run_id),
            func.percentile_cont(0.5).within_group(literal(1.5)),
        ),
        "by its schema": lambda: select(func.pg_catalog.lower("X")),
    },
    "mysql": {
        "json": lambda: select(func.json_extract(Strategy.config_json, "$.x")),
        "groups": lambda: select(func.group_concat(Run.run_id)),
    },
}


def test_the_functions_that_people_call_are_allowed(fleet: DatabaseFactory) -> None:
    """On each database those that it has, in users' sessions and where a tenant is required."""
    statements = ORDINARY | {f"{what} here": make for what, make in ORDINARY_ON[fleet.engine.dialect.name].items()}
    with fleet.get_session(user_id="ann") as session:
        for make in statements.values():
            assert session.execute(make()).all()


def test_an_application_adds_functions(unpoliced_fleet: DatabaseFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, or the class of a construct; what is neither is refused."""
    monkeypatch.setattr(functions, "_ALLOWED", set(functions._ALLOWED))
    monkeypatch.setattr(functions, "_CONSTRUCTS", set(functions._CONSTRUCTS))
    names = {"sqlite": "sqlite_version", "postgresql": "pg_catalog.version", "mysql": "version"}
    ours = names[unpoliced_fleet.settings.port.name]
    call = func.pg_catalog.version if "." in ours else getattr(func, ours)
    with unpoliced_fleet.get_session(user_id="ann") as session:
        with pytest.raises(TenantViolation, match="allow_functions"):
            session.scalar(select(call()))
        allow_functions(ours.removeprefix("pg_catalog.").upper(), _Recipe)
        assert session.scalar(select(call()))
        assert session.execute(select(_Recipe())).all()
        with pytest.raises(TenantViolation):
            session.scalar(select(_RecipeOfFunction()))
    wrong: Any
    for wrong in ("", "a b", "lower(x)", "x;", 3, int, None, "a..b"):
        with pytest.raises(InvalidValueError, match="neither"):
            allow_functions("fine", wrong)
    assert "fine" not in functions._ALLOWED


def test_a_field_of_extract_is_a_word(unpoliced_fleet: DatabaseFactory) -> None:
    """EXTRACT takes its field as text; on SQLite SQLAlchemy itself knows the fields."""
    field = f"year FROM now())::text || {INJECTED} || extract(year"
    with unpoliced_fleet.get_session(user_id="ann") as session:
        with pytest.raises(TenantViolation):
            session.execute(select(extract(field, Run.start_ts)))
        assert session.scalar(select(extract("year", Run.start_ts) > 2000))


def test_a_type_may_not_close_its_cast(unpoliced_fleet: DatabaseFactory) -> None:
    """INTERVAL takes its fields as text."""
    if unpoliced_fleet.engine.dialect.name == "postgresql":
        statement = select(cast(Run.run_id, postgresql.INTERVAL(fields=f"YEAR), {INJECTED}")))
        with unpoliced_fleet.get_session(user_id="ann") as session, pytest.raises(TenantViolation):
            session.execute(statement)


def test_text_in_a_loaders_criteria_is_refused(unpoliced_fleet: DatabaseFactory) -> None:
    """Whichever way the option is loaded."""
    for how in (joinedload, selectinload):
        with unpoliced_fleet.get_session(user_id="ann") as session, pytest.raises(TenantViolation):
            session.scalars(
                select(User).options(how(User.runs.and_(literal_column("1=1) OR (1=1") == 1)))
            ).unique().all()


def test_a_table_without_a_class_in_a_loaders_criteria_is_refused(unpoliced_fleet: DatabaseFactory) -> None:
    """In statements that SQLAlchemy makes to load tables stand unmapped; one that nobody knows is not among them."""
    secrets = select(table("api_credentials", column("api_key_id")).c.api_key_id).exists()
    for how in (joinedload, selectinload):
        with unpoliced_fleet.get_session(user_id="ann") as session, pytest.raises(TenantViolation):
            session.scalars(select(User).options(how(User.runs.and_(secrets)))).unique().all()


def test_ordinary_operators_types_and_functions_are_not_raw_sql(fleet: DatabaseFactory) -> None:
    """What mapped code needs passes."""
    with fleet.get_session(user_id="ann") as session:
        assert session.scalar(select(Run.run_id.op("||")("x"))) == "run-annx"
        assert session.scalar(select(cast(Run.start_ts, String(30)))) is not None
        assert session.scalar(select(func.upper(Run.run_id))) == "RUN-ANN"
        assert (
            session.scalar(select(Run.run_id).where(Run.run_id.like("run%"), Run.run_id.regexp_match("^run")))
            == "run-ann"
        )
        assert session.scalar(select(Run).group_by(Run.run_id).having(func.count(Run.run_id) == 1)) is not None


def test_a_session_works_on_its_own_factorys_engine_only(fleet: DatabaseFactory) -> None:
    """An engine made elsewhere would write statements out unconfined."""
    stranger = create_engine("sqlite://")
    with fleet.get_session(user_id="ann") as session, pytest.raises(TenantScopeError):
        session.execute(select(Run.run_id), bind_arguments={"bind": stranger})
    stranger.dispose()


# Writes


def _insert(db: DatabaseFactory) -> Any:
    return sqlite.insert if db.engine.dialect.name == "sqlite" else postgresql.insert


def _let_through(db: DatabaseFactory, models: tuple[type[Base], ...]) -> list[str]:
    """The forms of statements that store what names another user's row, by table and column."""
    found = []
    for place in places(World(db).seen_by("ann"), models, Random(0)):
        before = stored(db)
        for what, form in forms_of(place).items():
            try:
                with db.get_session(user_id="ann") as session:
                    try_form(form, session, place)
            except (TenantViolation, RowNotFoundError):
                continue
            found.append(f"{what}: {place.model.__tablename__}.{place.column}")
        assert stored(db) == before or found, place
    return found


def test_a_row_is_judged_as_what_is_stored(fleet: DatabaseFactory) -> None:
    """Not for what a statement, an object or a value seems to say: in a table of each shape, in memory in all."""
    assert _let_through(fleet, MADE if fleet.settings.is_memory else SHAPES) == []


def test_own_values_may_come_in_any_spelling(fleet: DatabaseFactory) -> None:
    """A member of an enumeration is its text, a literal its value."""

    class Ids(StrEnum):
        ME = "ann"

    with fleet.get_session(user_id="ann") as session:
        session.add(Run(run_id="run-1", **run_values("ann", user_id=Ids.ME)))
        session.execute(insert(Run).values(run_id="run-2", **run_values("ann", user_id=Ids.ME)))
        session.execute(insert(Run).values(run_id="run-3", **run_values("ann", user_id=literal("ann"))))
        session.execute(
            insert(Run).values(run_id="run-4", **run_values("ann", user_id=literal("ann", Run.user_id.type)))
        )
        bulk_create(session, Run, [{"run_id": "run-5", **run_values("ann", user_id=Ids.ME)}])
    with fleet.get_session(user_id="ann") as session:
        assert session.scalar(select(func.count(Run.run_id))) == 6


# Text that closes the quotes it stands in, where SQLAlchemy writes a value or a name into the statement itself.
CLOSING = f"x' || {INJECTED} || '"

PLAIN_TEXT: dict[str, Callable[[], Any]] = {
    "a literal": lambda: select(literal(CLOSING, literal_execute=True), Run.run_id),
    "an enumeration": lambda: select(bindparam(None, CLOSING, SqlEnum(CLOSING), literal_execute=True), Run.run_id),
    "a document": lambda: select(bindparam(None, {CLOSING: CLOSING}, JSON(), literal_execute=True), Run.run_id),
    "a UUID": lambda: select(bindparam(None, CLOSING, Uuid(as_uuid=False), literal_execute=True), Run.run_id),
    "a number": lambda: select(bindparam(None, CLOSING, Numeric(), literal_execute=True), Run.run_id),
    "a whole number": lambda: select(bindparam(None, CLOSING, Integer(), literal_execute=True), Run.run_id),
    "bytes": lambda: select(bindparam(None, CLOSING.encode(), LargeBinary(), literal_execute=True), Run.run_id),
    "an array": lambda: select(
        bindparam(None, [CLOSING], postgresql.ARRAY(String()), literal_execute=True), Run.run_id
    ),
    "VALUES": lambda: select(
        values(column("x", String), name="v", literal_binds=True).data([(CLOSING,)]).c.x, Run.run_id
    ),
    "a label": lambda: select(Run.run_id.label(quoted_name(f'x", {INJECTED} AS "y', True))),
    "flags of a pattern": lambda: select(Run.run_id).where(Run.run_id.regexp_match("x", flags=CLOSING)),
    "a configuration of a search": lambda: select(
        Run.run_id, func.to_tsvector(cast(CLOSING, postgresql.REGCONFIG), "x")
    ),
    "a name of a parameter": lambda: select(bindparam(f"x) || {INJECTED} || (%s", "x"), Run.run_id),
    "an empty list of an odd type": lambda: select(Run.run_id).where(
        bindparam(None, "x", postgresql.INTERVAL(fields=f"DAY) || {INJECTED} || (")).in_([])
    ),
    "a separator": lambda: select(func.aggregate_strings(Run.run_id, CLOSING)),
}


@unlinked
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
def test_text_in_a_statement_stays_text(unpoliced_fleet: DatabaseFactory) -> None:
    """What is written into it as a value is quoted, refused, or an error; it is never SQL."""
    for what, make in PLAIN_TEXT.items():
        found = ""
        # Whichever error it is; a type may know by itself that the value is none of its own.
        with suppress(Exception), unpoliced_fleet.get_session(user_id="ann") as session:
            found = str(session.execute(make()).all())
        assert "key-" not in found.replace(CLOSING, ""), what


def test_an_upsert_has_one_conflict(fleet: DatabaseFactory) -> None:
    """SQLite takes several, of which each may assign: refused by name, or by SQLAlchemy."""
    statement = _insert(fleet)(Run).values(**run_values("ann", run_id="run-bob"))

    def upsert() -> Any:
        for key in ("run_id", "user_id"):
            nonlocal statement
            statement = statement.on_conflict_do_update(index_elements=[key], set_={"gridcore_version": "x"})
        return statement

    before = everything_of(fleet, "bob")
    with fleet.get_session(user_id="ann") as session, pytest.raises((TenantViolation, InvalidRequestError)):
        session.execute(upsert())
    assert everything_of(fleet, "bob") == before


def test_params_of_a_subquery_do_not_reach_the_insert(fleet: DatabaseFactory) -> None:
    """SQLAlchemy 2.1 gathers them from everywhere in a statement, and would put them in place of checked values."""
    before = everything_of(fleet, "bob")
    status = select(Run.status).params(user_id="bob").scalar_subquery()
    with suppress(TenantViolation), fleet.get_session(user_id="ann") as session:
        session.execute(insert(Run).values(**run_values("ann", gridcore_version=status)))
    assert everything_of(fleet, "bob") == before


READ_INTO: dict[str, Callable[[Any], Any]] = {
    "INSERT of a run": lambda dialect_insert: (
        insert(Run).values(**run_values("ann", gridcore_version=_secret())).returning(Run.gridcore_version)
    ),
    "INSERT of several runs": lambda dialect_insert: (
        insert(Run).values([run_values("ann", gridcore_version=_secret())]).returning(Run.gridcore_version)
    ),
    "INSERT of a public trade": lambda dialect_insert: (
        insert(PublicTrade).values(**trade_values(9, symbol=_secret())).returning(PublicTrade.symbol)
    ),
    "INSERT FROM SELECT": lambda dialect_insert: (
        insert(PublicTrade)
        .from_select(
            ["symbol", "trade_id", "exchange_ts", "local_ts", "side", "price", "size"],
            select(Run.run_id, Run.run_id, Run.start_ts, Run.start_ts, literal("Buy"), literal(1), literal(1)),
        )
        .returning(PublicTrade.symbol)
    ),
    "RETURNING of an INSERT": lambda dialect_insert: insert(Run).values(**run_values("ann")).returning(_secret()),
    "RETURNING of an UPDATE": lambda dialect_insert: update(Run).values(gridcore_version="1").returning(_secret()),
    "RETURNING of a DELETE": lambda dialect_insert: delete(TRADES).returning(_secret()),
    "UPDATE of a Core table": lambda dialect_insert: (
        update(TRADES).values(trade_id=_secret()).returning(TRADES.c.trade_id)
    ),
    "UPDATE ... FROM": lambda dialect_insert: (
        update(PublicTrade)
        .where(PublicTrade.symbol != Strategy.strategy_id, Strategy.account_id == "acc-bob")
        .values(trade_id=Strategy.strategy_id)
        .returning(PublicTrade.trade_id)
    ),
    "an upsert's assignment": lambda dialect_insert: (
        dialect_insert(PublicTrade)
        .values(**trade_values(0))
        .on_conflict_do_update(index_elements=["symbol", "exchange_ts", "trade_id"], set_={"trade_id": _secret()})
        .returning(PublicTrade.trade_id)
    ),
    "an upsert's condition": lambda dialect_insert: (
        dialect_insert(PublicTrade)
        .values(**trade_values(0))
        .on_conflict_do_update(
            index_elements=["symbol", "exchange_ts", "trade_id"], set_={"trade_id": "bob"}, where=_seen()
        )
        .returning(PublicTrade.trade_id)
    ),
}


@pytest.mark.parametrize("what", READ_INTO)
def test_a_write_reads_own_rows_only(fleet: DatabaseFactory, what: str) -> None:
    """A subquery in any part of INSERT, upsert, UPDATE or DELETE."""
    _with_trades(fleet)
    with fleet.get_session(user_id="ann") as session:
        statement = READ_INTO[what](_insert(fleet))
        options = {} if what.startswith("INSERT") or "upsert" in what or "INSERT" in what else NO_SYNC
        if fleet.settings.port is MYSQL and "upsert" in what:
            with pytest.raises(CompileError):  # there is no ON CONFLICT; its own form test_mariadb.py tries
                session.execute(statement)
            return
        without_returning = fleet.settings.port is MYSQL and isinstance(statement, Update)
        if without_returning:
            statement._returning = ()  # which an UPDATE has not there; what it has written is read below
        result = session.execute(statement, execution_options=options)
        assert without_returning or "bob" not in str(result.all())
        assert "bob" not in str(session.execute(select(PublicTrade.symbol, PublicTrade.trade_id)).all())


@pytest.mark.parametrize("strategy", ["auto", "orm", "core_only"])
def test_no_strategy_writes_foreign_rows(fleet: DatabaseFactory, strategy: Any) -> None:
    """SQLAlchemy's ways of running an UPDATE or DELETE, one of which passes by the ORM."""
    before = everything_of(fleet, "bob")
    options = {"dml_strategy": strategy, "synchronize_session": False}
    with fleet.get_session(user_id="ann") as session:
        session.execute(update(Run).values(gridcore_version="1"), execution_options=options)
        session.execute(update(Run).values(gridcore_version="2").execution_options(**options))
        assert session.scalars(select(Run.gridcore_version)).all() == ["2"]
        session.execute(delete(Run), execution_options=options)
        assert session.scalars(select(Run.gridcore_version)).all() == []
    assert everything_of(fleet, "bob") == before


def test_an_update_of_many_reaches_own_rows_only(fleet: DatabaseFactory) -> None:
    """Rows found by another column, with the strategy that allows it."""
    statement = update(Run).where(Run.run_id == bindparam("key")).values(gridcore_version=bindparam("version"))
    options = {"dml_strategy": "core_only", "synchronize_session": None}
    refused_and_unwritten(
        fleet,
        lambda session: session.execute(statement, [{"key": "run-bob", "version": "x"}], execution_options=options),
    )


def test_an_upsert_names_its_conflict_by_columns(fleet: DatabaseFactory) -> None:
    """A label that calls the key by the owner's name changes nothing about what it is."""
    statement = _insert(fleet)(Run).values(**run_values("ann", run_id="run-bob"))
    upsert = statement.on_conflict_do_update(
        index_elements=[RUNS.c.run_id.label("user_id")], set_={"gridcore_version": "x"}
    )
    refused_and_unwritten(fleet, lambda session: session.execute(upsert))


def test_an_upsert_may_take_over_what_was_excluded(fleet: DatabaseFactory) -> None:
    """The usual upsert of own rows works, for one row and for many."""
    own = execution_values(Run(run_id="run-ann", account_id="acc-ann"), exec_id="exec-ann", symbol="ETHUSDT")
    with fleet.get_session(user_id="ann") as session:
        for statement, parameters in (
            (_insert(fleet)(PrivateExecution).values(**own), None),
            (_insert(fleet)(PrivateExecution), [own]),
        ):
            upsert = statement.on_conflict_do_update(
                index_elements=["run_id", "exec_id"], set_={"symbol": statement.excluded.symbol}
            )
            if fleet.settings.port is MYSQL:  # it has no ON CONFLICT
                with pytest.raises(CompileError):
                    session.execute(upsert, parameters)
                return
            session.execute(upsert, parameters)
        assert session.scalars(select(PrivateExecution.symbol)).all() == ["ETHUSDT"]


# The flush


def _forge_key(session: Session) -> Run:
    """An own run, made to look as if it had been loaded under bob's key."""
    run = session.get_one(Run, "run-ann")
    set_committed_value(run, "run_id", "run-bob")
    return run


def _forged_update(session: Session) -> None:
    _forge_key(session).gridcore_version = "x"


def _forged_ghost(session: Session) -> None:
    ghost = Run(run_id="run-ann")
    make_transient_to_detached(ghost)
    for name, value in run_values("ann", run_id="run-bob").items():
        set_committed_value(ghost, name, value)
    session.add(ghost)
    ghost.gridcore_version = "x"


def _forged_child(session: Session) -> None:
    own = execution_values(Run(run_id="run-ann", account_id="acc-ann"), 7)
    del own["run_id"]
    session.add(PrivateExecution(**own, run=_forge_key(session)))


def _forged_member(session: Session) -> None:
    strategy = session.get_one(Strategy, "str-ann")
    set_committed_value(strategy, "strategy_id", "str-bob")
    session.add(
        BybitAccount(
            account_id="acc-new", user_id="ann", account_name="2", environment="testnet", strategies=[strategy]
        )
    )


@pytest.mark.parametrize(
    "attempt",
    [
        _forged_update,
        lambda session: session.delete(_forge_key(session)),
        _forged_ghost,
        _forged_child,
        _forged_member,
    ],
)
def test_a_flush_writes_the_row_that_was_proved(fleet: DatabaseFactory, attempt: Callable[[Session], None]) -> None:
    """An object's key as an attribute is not what it was let in with; UPDATE and DELETE go by the attribute."""
    refused_and_unwritten(fleet, attempt)


@pytest.mark.parametrize(
    "expression",
    [
        _secret,
        lambda: ApiCredential.api_key_id,
        lambda: CREDENTIALS.c.api_key_id,
        lambda: select(func.max(CREDENTIALS.c.api_key_id)).scalar_subquery(),
        lambda: text(INJECTED),
        lambda: literal_column(INJECTED),
        lambda: literal("x").op(f"|| {INJECTED} ||")("y"),
        lambda: case((_seen(), "bob"), else_="x"),
        lambda: func.coalesce(_secret(), "x"),
        lambda: select(func.max(Run.run_id)).scalar_subquery(),
        lambda: values(column("x", String)).data([(_secret(),)]).scalar_values(),
        lambda: func.max(CREDENTIALS.table_valued()),
        lambda: func.max(CREDENTIALS.alias().table_valued()),
        lambda: column(_unquoted(INJECTED)),
        lambda: column(_unquoted("1; UPDATE runs SET gridcore_version = 'x' WHERE user_id = 'bob'; SELECT 'x' AS x")),
        lambda: Function(_unquoted(f"coalesce({INJECTED},'') || lower"), "x"),
        lambda: literal("x").collate(_unquoted(f"BINARY || {INJECTED}")),
        lambda: func.query_to_xml("SELECT 1"),
        _Recipe,
    ],
)
def test_an_attribute_cannot_be_an_expression_that_reads(
    unpoliced_fleet: DatabaseFactory, expression: Callable[[], Any]
) -> None:
    """The flush would write it out as it is: into a stored object, a new one, and one that is shared by all."""

    def stored(session: Session) -> None:
        session.get_one(Run, "run-ann").gridcore_version = expression()

    refused_and_unwritten(unpoliced_fleet, stored)
    refused_and_unwritten(
        unpoliced_fleet, lambda session: session.add(Run(**run_values("ann", gridcore_version=expression())))
    )
    refused_and_unwritten(
        unpoliced_fleet, lambda session: session.add(PublicTrade(**trade_values(5, symbol=expression())))
    )


def test_an_attribute_may_be_computed_from_its_own_row(fleet: DatabaseFactory) -> None:
    """Functions and the row's own columns are no one else's."""
    with fleet.get_session(user_id="ann") as session:
        run = session.get_one(Run, "run-ann")
        run.gridcore_version = func.upper("v") + Run.run_type
    with fleet.get_session(user_id="ann") as session:
        assert session.scalars(select(Run.gridcore_version)).all() == ["Vlive"]


def test_owner_and_parent_cannot_be_expressions(fleet: DatabaseFactory) -> None:
    """Nobody could tell before the flush what they come to."""
    refused_and_unwritten(fleet, lambda session: session.add(Run(**run_values("ann", user_id=literal("bob")))))
    refused_and_unwritten(
        fleet, lambda session: session.add(Run(**run_values("ann", account_id=func.lower("ACC-BOB"))))
    )


def test_a_partly_loaded_object_can_be_changed(fleet: DatabaseFactory) -> None:
    """What is not loaded has not changed, so it is still the user's own."""
    with fleet.get_session(user_id="ann") as session:
        session.scalars(select(Run).options(load_only(Run.status))).one().gridcore_version = "2"
    with fleet.get_session(user_id="ann") as session:
        assert session.scalars(select(Run.gridcore_version)).all() == ["2"]
    with fleet.get_session(user_id="ann") as session:
        session.add(BybitAccount(account_id="acc-2", user_id="ann", account_name="2", environment="testnet"))

    def attempt(session: Session) -> None:
        session.scalars(select(Run).options(load_only(Run.status))).one().account_id = "acc-2"

    refused_and_unwritten(fleet, attempt)  # its strategy, which is not loaded, is of the other account


def test_what_a_merge_takes_along_is_checked(fleet: DatabaseFactory) -> None:
    """A foreign row under an own one is refused like a foreign row; so is a list with one."""

    def nested(session: Session) -> None:
        session.merge(BybitAccount(account_id="acc-ann", runs=[Run(run_id="run-bob", **run_values("ann"))]))

    def listed(session: Session) -> None:
        assert isinstance(session, UserSession)
        session.merge_all([Run(run_id="run-ann"), Run(run_id="run-bob", **run_values("ann"))])

    refused_and_unwritten(fleet, nested)
    refused_and_unwritten(fleet, listed)


@pytest.mark.parametrize("load", [True, False])
def test_a_frozen_result_does_not_bring_in_foreign_objects(fleet: DatabaseFactory, load: bool) -> None:
    """At the latest the flush refuses to write another user's object, or its copy."""
    with fleet.get_session() as plain:
        frozen = plain.execute(select(Run).where(Run.user_id == "bob")).freeze()
        plain.expunge_all()

    def merge(session: Session) -> None:
        merged: Any = merge_frozen_result(session, select(Run), frozen, load)  # type: ignore[no-untyped-call] # as it is
        for run in merged().scalars():
            run.gridcore_version = "x"

    refused_and_unwritten(fleet, merge)


@pytest.mark.parametrize("link", ["strategies", "account"])
def test_a_relationship_that_was_set_as_loaded_takes_nothing_along(fleet: DatabaseFactory, link: str) -> None:
    """A foreign object in a collection, or as a parent, that the session was told it had loaded."""
    foreign: Any = {"strategies": Strategy, "account": BybitAccount}[link]
    before = everything_of(fleet, "bob")
    found = detached(fleet, foreign, FOREIGN[foreign])
    with suppress(TenantViolation), fleet.get_session(user_id="ann") as session:
        if link == "strategies":
            account = session.get_one(BybitAccount, "acc-ann")
            set_committed_value(account, link, [found])
            session.delete(account)
        else:
            strategy = session.get_one(Strategy, "str-ann")
            set_committed_value(strategy, link, found)
            found.account_name = "x"
            strategy.symbol = "x"
    assert everything_of(fleet, "bob") == before


def test_rows_that_are_read_after_the_end_of_their_session_are_own_rows(busy_fleet: DatabaseFactory) -> None:
    """A result that is read in pages, and goes on when the session does not."""
    with busy_fleet.get_session(user_id="ann") as session:
        pages = session.scalars(select(Run.run_id).execution_options(yield_per=1))
        session.close()
    with suppress(Exception):
        assert "run-bob" not in pages.all()


@pytest.mark.filterwarnings("ignore:The merge_result")
def test_a_merged_result_does_not_bring_in_foreign_objects(fleet: DatabaseFactory) -> None:
    """Query.merge_result() takes objects as they are."""
    foreign = detached(fleet, Run, "run-bob")
    with fleet.get_session(user_id="ann") as session, pytest.raises(TenantViolation):
        session.query(Run).merge_result([foreign], load=False)


def test_what_went_with_a_deleted_row_is_not_proved_any_more(fleet: DatabaseFactory) -> None:
    """After an account is deleted its key names nothing, though it was looked up a moment ago."""
    with fleet.get_session(user_id="ann") as session:
        session.add(BybitAccount(account_id="acc-2", user_id="ann", account_name="2", environment="testnet"))

    def by_object(session: Session) -> None:
        session.add(PrivateExecution(**execution_values(Run(run_id="run-ann", account_id="acc-2"), 1)))
        session.flush()
        session.delete(session.get_one(BybitAccount, "acc-2"))
        session.flush()
        session.add(PrivateExecution(**execution_values(Run(run_id="run-ann", account_id="acc-2"), 2)))

    def by_statement(session: Session) -> None:
        session.add(PrivateExecution(**execution_values(Run(run_id="run-ann", account_id="acc-2"), 1)))
        session.flush()
        session.execute(delete(BybitAccount).where(BybitAccount.account_id == "acc-2"))
        session.add(PrivateExecution(**execution_values(Run(run_id="run-ann", account_id="acc-2"), 2)))

    refused_and_unwritten(fleet, by_object)
    refused_and_unwritten(fleet, by_statement)


def test_what_a_savepoint_took_back_is_not_proved_any_more(fleet: DatabaseFactory) -> None:
    """A parent that a savepoint stored and rolled back names nothing."""

    def attempt(session: Session) -> None:
        with session.begin_nested() as savepoint:
            session.add(BybitAccount(account_id="acc-2", user_id="ann", account_name="2", environment="testnet"))
            session.flush()
            session.add(PrivateExecution(**execution_values(Run(run_id="run-ann", account_id="acc-2"), 1)))
            session.flush()
            savepoint.rollback()
        session.add(PrivateExecution(**execution_values(Run(run_id="run-ann", account_id="acc-2"), 2)))

    refused_and_unwritten(fleet, attempt)


# Sessions talked out of what confines them

TRANSACTION_CONTROL = (
    "COMMIT",
    "ROLLBACK",
    "/* a */ ROLLBACK -- b",
    "SELECT 1; COMMIT; BEGIN",
    "ROLLBACK; UPDATE runs SET gridcore_version = 'stolen'",
    "END; SELECT 1",
    "SAVEPOINT a",
)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("statement", TRANSACTION_CONTROL)
def test_raw_sql_does_not_end_what_confines_it(fleet: DatabaseFactory, statement: str, read_only: bool) -> None:
    """After a COMMIT or ROLLBACK the rest of the session would be the login's own: refused, and all is as it was."""
    before = [everything_of(fleet, user) for user in ("ann", "bob")]

    def attempt(way: Callable[[Session], object]) -> None:
        with fleet.get_session(user_id="ann", read_only=read_only) as session:
            with pytest.raises((TransactionControlError, TenantViolation)):
                way(session)
            with suppress(TenantViolation):
                assert "bob" not in str(session.execute(text("SELECT user_id FROM runs")).all())
            assert session.scalars(select(Run.run_id)).all() == ["run-ann"]
            raise ZeroDivisionError

    ways: tuple[Callable[[Session], object], ...] = (
        lambda session: session.execute(text(statement)),
        lambda session: session.connection().exec_driver_sql(statement),
        lambda session: session.execute(select(Run.run_id, text(f"1; {statement}"))),
    )
    for way in ways if statement.startswith("SELECT") or fleet.engine.dialect.name == "sqlite" else ways[:2]:
        with pytest.raises(ZeroDivisionError):
            attempt(way)
    assert [everything_of(fleet, user) for user in ("ann", "bob")] == before


def test_no_user_leaves_anything_for_the_next(fleet: DatabaseFactory) -> None:
    """Raw SQL is refused, or what it made is gone before another session gets the connection."""
    with suppress(TenantViolation), fleet.get_session(user_id="bob") as session:
        session.execute(text("CREATE TEMPORARY TABLE report AS SELECT * FROM api_credentials"))
        session.execute(text("CREATE TEMPORARY TABLE runs AS SELECT * FROM public.runs"))
    users: tuple[UserId, ...] = ("ann", UNSET)
    for user in users:
        with fleet.get_session(user_id=user) as session:
            assert len(session.scalars(select(Run.run_id)).all()) == (1 if user == "ann" else 2)
            with pytest.raises((TenantViolation, SQLAlchemyError)):
                session.execute(text("SELECT * FROM report"))
            session.rollback()


def test_no_user_locks_the_others_out(fleet: DatabaseFactory) -> None:
    """LOCK TABLE is refused by name: policies do not tell it from a write."""
    for statement in ("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE", "SELECT 1; /* a */ lock runs"):
        refused_and_unwritten(fleet, lambda session, statement=statement: session.execute(text(statement)))  # type: ignore[misc] # lambdas with a default


INFO: dict[str, Callable[[Session], object]] = {
    "another user": lambda session: session.info.update(user_id="bob"),
    "nobody": lambda session: session.info.clear(),
    "no user": lambda session: session.info.update(user_id=None),
}


@pytest.mark.parametrize("forged", INFO)
def test_what_info_says_is_for_display(fleet: DatabaseFactory, forged: str) -> None:
    """Whatever a caller merges into `session.info`, the session and its repositories are still the user's."""
    with fleet.get_session(user_id="ann") as session:
        INFO[forged](session)
        bounds = (datetime(2025, 5, 1, tzinfo=UTC), datetime(2025, 5, 9, tzinfo=UTC))
        executions = PrivateExecutionRepository(session)
        assert [row.run_id for row in executions.get_by_run_range("run-ann")] == ["run-ann"]
        assert list(executions.iter_run_range("run-bob")) == []
        assert executions.get_by_run_range("run-bob") == []
        assert executions.totals("run-bob").count == 0
        assert [found.run_id for found in executions.coverage()] == ["run-ann"]
        assert list(executions.gaps("run-bob", 0.5, *bounds)) == [bounds]
        assert executions.to_arrow("run-bob").num_rows == 0
        assert executions.get_last_execution_ts(run_id="run-bob") is None
        assert RunRepository(session).get_by_user_id("ann")[0].run_id == "run-ann"
        with pytest.raises(TenantScopeError):
            RunRepository(session).get_by_user_id("bob")
        with pytest.raises(TenantScopeError):
            RunRepository(session, user_id="bob")
        for repository in (PrivateExecutionRepository, RunRepository):
            with pytest.raises(TenantScopeError):
                repository.across_users(session)

    def write(session: Session) -> None:
        INFO[forged](session)
        RunRepository(session).create(Run(**run_values("bob")))

    refused_and_unwritten(fleet, write)


def test_a_plain_session_is_nobodys_whatever_info_says(fleet: DatabaseFactory) -> None:
    """Only `get_session(user_id=...)` names a user."""
    with fleet.get_session() as plain:
        plain.info["user_id"] = "ann"
        with pytest.raises(TenantScopeError):
            RunRepository(plain).get_by_id("run-ann")
        assert len(RunRepository.across_users(plain).get_all()) == 2


class _Foreign(dict[Any, Any]):
    """A cache that gives what it has, whatever it is asked for."""

    def get(self, key: Any, default: Any = None) -> Any:
        return next(iter(self.values()), default)


@pytest.mark.parametrize("given", ["to the call", "to the query"])
def test_no_compiled_text_of_another_session_is_run(fleet: DatabaseFactory, given: str) -> None:
    """`compiled_cache` would have a statement run as a plain session compiled it; None only turns the cache off."""
    cache = _Foreign()
    with fleet.get_session() as plain:
        assert len(plain.scalars(select(Run.run_id), execution_options={"compiled_cache": cache}).all()) == 2
    assert cache

    def attempt(session: Session) -> Any:
        if given == "to the query":
            return session.query(Run.run_id).execution_options(compiled_cache=cache).all()
        return session.scalars(select(Run.run_id), execution_options={"compiled_cache": cache}).all()

    refused_and_unwritten(fleet, attempt)
    with fleet.get_session(user_id="ann") as session:
        assert session.scalars(select(Run.run_id), execution_options={"compiled_cache": None}).all() == ["run-ann"]
