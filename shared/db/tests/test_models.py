"""What a row is: the specification's tables, its defaults, its relationships and its cascade, on every database."""

from __future__ import annotations

import pickle
import re
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, assert_type

import pytest
from sqlalchemy import func, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import RelationshipProperty, Session, configure_mappers

from shared.db import (
    AccountStatus,
    ApiCredential,
    Base,
    BybitAccount,
    DatabaseFactory,
    Environment,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Run,
    RunStatus,
    RunType,
    Side,
    Strategy,
    User,
    UserStatus,
)
from shared.db.tests.support import execution_values, new_run, new_strategy, statements_of, stored, trade_values

# The specification's section 3, table by table: column, type, and NULL, NOT NULL or its default (then NOT NULL too).
ID, NAME, TIME, MONEY = "String(36)", "String(50)", "DateTime(tz)", "Numeric(20,8)"
# Its widths are minima: a symbol has 20 there, and the exchange's options have 25.
SPECIFICATION: dict[str, list[tuple[str, str, str]]] = {
    "users": [
        ("user_id", ID, "UUID"),
        ("username", "String(100)", "NOT NULL"),
        ("email", "String(255)", "NULL"),
        ("status", "String(20)", "active"),
        ("created_at", TIME, "NOW"),
        ("updated_at", TIME, "NOW"),
    ],
    "bybit_accounts": [
        ("account_id", ID, "UUID"),
        ("user_id", ID, "NOT NULL"),
        ("account_name", "String(100)", "NOT NULL"),
        ("environment", "String(10)", "NOT NULL"),
        ("status", "String(20)", "enabled"),
        ("created_at", TIME, "NOW"),
    ],
    "api_credentials": [
        ("credential_id", ID, "UUID"),
        ("account_id", ID, "NOT NULL"),
        ("api_key_id", "String(100)", "NOT NULL"),
        ("api_secret", "Text", "NOT NULL"),
        ("is_active", "Boolean", "TRUE"),
        ("created_at", TIME, "NOW"),
        ("rotated_at", TIME, "NULL"),
    ],
    "strategies": [
        ("strategy_id", ID, "UUID"),
        ("account_id", ID, "NOT NULL"),
        ("strategy_type", NAME, "NOT NULL"),
        ("symbol", "String(32)", "NOT NULL"),
        ("config_json", "JSON", "NOT NULL"),
        ("is_enabled", "Boolean", "TRUE"),
        ("created_at", TIME, "NOW"),
    ],
    "runs": [
        ("run_id", ID, "UUID"),
        ("user_id", ID, "NOT NULL"),
        ("account_id", ID, "NOT NULL"),
        ("strategy_id", ID, "NOT NULL"),
        ("run_type", "String(20)", "NOT NULL"),
        ("gridcore_version", NAME, "NULL"),
        ("config_snapshot", "JSON", "NULL"),
        ("start_ts", TIME, "NOW"),
        ("end_ts", TIME, "NULL"),
        ("status", "String(20)", "running"),
    ],
    "public_trades": [
        ("id", "BigInteger", "COUNT"),
        ("symbol", "String(32)", "NOT NULL"),
        ("trade_id", NAME, "NOT NULL"),
        ("exchange_ts", TIME, "NOT NULL"),
        ("local_ts", TIME, "NOT NULL"),
        ("side", "String(4)", "NOT NULL"),
        ("price", MONEY, "NOT NULL"),
        ("size", MONEY, "NOT NULL"),
    ],
    "private_executions": [
        ("id", "BigInteger", "COUNT"),
        ("run_id", ID, "NOT NULL"),
        ("account_id", ID, "NOT NULL"),
        ("symbol", "String(32)", "NOT NULL"),
        ("exec_id", NAME, "NOT NULL"),
        ("order_id", NAME, "NOT NULL"),
        ("order_link_id", NAME, "NULL"),
        ("exchange_ts", TIME, "NOT NULL"),
        ("side", "String(4)", "NOT NULL"),
        ("exec_price", MONEY, "NOT NULL"),
        ("exec_qty", MONEY, "NOT NULL"),
        ("exec_fee", MONEY, "NULL"),
        ("closed_pnl", MONEY, "NULL"),
        ("raw_json", "JSON", "NULL"),
    ],
}
# What the library added since, by revisions, behind the specification's columns.
ADDED = {"runs": [("heartbeat_ts", TIME, "NULL"), ("host", "String(255)", "NULL")]}
COLUMNS = {table: columns + ADDED.get(table, []) for table, columns in SPECIFICATION.items()}
PRIMARY_KEYS = {table: columns[0][0] for table, columns in SPECIFICATION.items()}
FOREIGN_KEYS = {
    ("bybit_accounts", "user_id"): "users",
    ("api_credentials", "account_id"): "bybit_accounts",
    ("strategies", "account_id"): "bybit_accounts",
    ("runs", "user_id"): "users",
    # What must agree goes along: an account of the user, a strategy of the account.
    ("runs", "account_id", "user_id"): "bybit_accounts",
    ("runs", "strategy_id", "account_id"): "strategies",
    ("private_executions", "run_id"): "runs",
}
UNIQUE = {
    "users": {("username",), ("email",)},
    "bybit_accounts": {("user_id", "account_name")},
    "api_credentials": set(),
    "strategies": {("account_id", "symbol")},
    "runs": set(),
    # These two serve the specification's indexes on (symbol, exchange_ts) and run_id by their leading columns.
    "public_trades": {("symbol", "exchange_ts", "trade_id")},
    "private_executions": {("run_id", "exec_id")},
}
INDEXES: dict[str, set[tuple[str, ...]]] = {
    "users": set(),
    "bybit_accounts": set(),
    "api_credentials": {("account_id",)},
    "strategies": set(),
    # The first two serve the specification's index on user_id by their leading column.
    "runs": {
        ("user_id", "start_ts", "run_id"),
        ("user_id", "status", "start_ts"),
        ("account_id",),
        ("status",),
        ("strategy_id",),
    },
    "public_trades": set(),
    "private_executions": {("account_id", "exchange_ts")},
}
# Unique under names of their own: only among some rows (one active credential of an account, one running run of a
# strategy and type), or for a foreign key of two columns to point at.
NAMED_UNIQUE: dict[str, set[tuple[str, ...]]] = {
    "bybit_accounts": {("uq_bybit_accounts_account_id_user_id", "account_id", "user_id")},
    "strategies": {("uq_strategies_strategy_id_account_id", "strategy_id", "account_id")},
    "api_credentials": {("uq_api_credentials_active_account_id", "account_id")},
    "runs": {("uq_runs_running_strategy_id_run_type", "strategy_id", "run_type")},
}
CHECKS = {
    "users": {"status"},
    "bybit_accounts": {"environment", "status"},
    "api_credentials": set(),
    "strategies": set(),
    "runs": {"run_type", "status"},
    "public_trades": {"side"},
    "private_executions": {"side"},
}
# What the types of the specification are called in each database.
LIVE_TYPES = {
    "sqlite": {"DateTime(tz)": "DATETIME", "Numeric(20,8)": "REAL", "BigInteger": "INTEGER", "JSON": "JSON"},
    "postgresql": {
        "DateTime(tz)": "TIMESTAMP",
        "Numeric(20,8)": "NUMERIC(20, 8)",
        "BigInteger": "BIGINT",
        "JSON": "JSONB",
    },
    "mysql": {
        "DateTime(tz)": "DATETIME",
        "Numeric(20,8)": "DECIMAL(20, 8)",
        "BigInteger": "BIGINT",
        "Boolean": "TINYINT",
        "JSON": "LONGTEXT",
        "Text": "LONGTEXT",
    },
}
RELATIONSHIPS = [
    (User, "accounts", BybitAccount, "user"),
    (User, "runs", Run, "user"),
    (BybitAccount, "credentials", ApiCredential, "account"),
    (BybitAccount, "strategies", Strategy, "account"),
    (BybitAccount, "runs", Run, "account"),
    (Strategy, "runs", Run, "strategy"),
    (Run, "executions", PrivateExecution, "run"),
]
TABLES = sorted(SPECIFICATION)
# What MariaDB has in place of a unique index over some rows: a flag before its columns, NULL in the other rows.
INVISIBLE = {"only_uq_api_credentials_active_account_id", "only_uq_runs_running_strategy_id_run_type"}


# --- the specification's tests -----------------------------------------------------------------------------------


def test_user_creation(session: Session) -> None:
    """A user gets an id, the status and both times by default."""
    user = stored(session, User(username="bob"))
    assert str(uuid.UUID(user.user_id)) == user.user_id
    assert user.status == UserStatus.ACTIVE.value == "active"
    assert user.email is None
    session.expire(user)
    now = datetime.now(UTC)
    for when in (user.created_at, user.updated_at):
        assert when.tzinfo is UTC
        assert timedelta(0) <= now - when < timedelta(seconds=60)
    assert (user.accounts, user.runs) == ([], [])


def test_user_unique_username(session: Session, sample_user: User) -> None:
    """Two users cannot share a username."""
    session.add(User(username=sample_user.username))
    with pytest.raises(IntegrityError):
        session.flush()
    session.rollback()


def test_account_creation(session: Session, sample_user: User) -> None:
    """An account belongs to its user and is enabled by default; without a user it cannot exist."""
    account = stored(
        session, BybitAccount(user_id=sample_user.user_id, account_name="main", environment=Environment.MAINNET)
    )
    session.expire_all()
    assert str(uuid.UUID(account.account_id)) == account.account_id
    assert (account.account_name, account.environment, account.status) == ("main", "mainnet", AccountStatus.ENABLED)
    assert account.created_at.tzinfo is UTC
    assert account.user is sample_user
    assert sample_user.accounts == [account]
    session.commit()
    for orphan in ({"user_id": str(uuid.uuid4())}, {"user_id": None}, {}):
        session.add(BybitAccount(account_name="other", environment=Environment.TESTNET, **orphan))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()


def test_account_cascade_delete(session: Session, sample_user: User, sample_account: BybitAccount) -> None:
    """Deleting a user removes its accounts."""
    session.delete(sample_user)
    session.flush()
    session.expire_all()
    assert session.scalars(select(BybitAccount.account_id)).all() == []


def test_strategy_config_json(session: Session, sample_strategy: Strategy) -> None:
    """A configuration comes back as it was stored, and an edit in place at any depth is saved."""
    session.expire_all()
    assert sample_strategy.config_json == {"levels": 20, "step": "0.2"}
    sample_strategy.config_json["grid"] = {"levels": [1, 2.5, None, True], "step": Decimal("0.10")}
    session.flush()
    sample_strategy.config_json["grid"]["levels"].append({"last": "é"})
    session.flush()
    session.expire_all()
    assert sample_strategy.config_json == {
        "levels": 20,
        "step": "0.2",
        "grid": {"levels": [1, 2.5, None, True, {"last": "é"}], "step": "0.10"},
    }


# --- the schema --------------------------------------------------------------------------------------------------


def test_the_tables_are_the_specifications(db: DatabaseFactory) -> None:
    """The seven tables exist in the models and in the database, with these columns in this order; so does the log."""
    live = inspect(db.engine)
    assert sorted(Base.metadata.tables) == sorted([*TABLES, "audit_log"])
    assert set(TABLES) <= set(live.get_table_names())
    for table, columns in COLUMNS.items():
        assert [column.name for column in Base.metadata.tables[table].columns] == [name for name, _, _ in columns]
        found = [column["name"] for column in live.get_columns(table)]
        assert [name for name in found if name not in INVISIBLE] == [name for name, _, _ in columns]


@pytest.mark.parametrize("table", TABLES)
def test_the_columns_are_the_specifications(db: DatabaseFactory, table: str) -> None:
    """Type, nullability and default of every column, in the live schema."""
    dialect = db.engine.dialect.name
    live = {column["name"]: column for column in inspect(db.engine).get_columns(table)}
    for name, kind, rule in COLUMNS[table]:
        column = live[name]
        length = re.fullmatch(r"String\((\d+)\)", kind)
        expected = f"VARCHAR({length[1]})" if length else LIVE_TYPES[dialect].get(kind, kind.upper())
        assert str(column["type"]).removesuffix(' COLLATE "C"') == expected, name
        if kind == TIME and dialect == "postgresql":
            assert column["type"].timezone is True  # type: ignore[attr-defined] # a TIMESTAMP
        assert column["nullable"] is (rule == "NULL"), name
        # MariaDB's own counting SQLAlchemy does not see, and of functions put together not always.
        if dialect != "mysql" or rule not in ("COUNT", "UUID"):
            unseen = ("COUNT",) if dialect == "sqlite" else ()
            assert (column["default"] is None) is (rule in ("NULL", "NOT NULL", *unseen))


def uniques_and_indexes(db: DatabaseFactory, table: str) -> tuple[list[Any], list[Any]]:
    """Unique constraints, and indexes that are none of them, as the live schema has them."""
    live = inspect(db.engine)
    constraints: list[Any] = live.get_unique_constraints(table)
    indexes: list[Any] = live.get_indexes(table)
    if db.engine.dialect.name == "mysql":
        # There both are one, and a foreign key has an index of its name.
        named = {name for name, *_ in NAMED_UNIQUE.get(table, set())}
        keys = [key["name"] for key in live.get_foreign_keys(table)]
        constraints = [unique for unique in constraints if unique["name"] not in named]
        indexes = [
            dict(index, column_names=[name for name in index["column_names"] if name not in INVISIBLE])
            for index in indexes
            if (index["name"] in named if index["unique"] else index["name"] not in keys)
        ]
    return constraints, [index for index in indexes if "duplicates_constraint" not in index]


@pytest.mark.parametrize("table", TABLES)
def test_keys_and_indexes_are_the_specifications(db: DatabaseFactory, table: str) -> None:
    """Primary key, foreign keys with their cascade, unique constraints and indexes: these, and no others."""
    live = inspect(db.engine)
    assert live.get_pk_constraint(table)["constrained_columns"] == [PRIMARY_KEYS[table]]
    keys = {(table, *key["constrained_columns"]): key for key in live.get_foreign_keys(table)}
    wanted = {key: parent for key, parent in FOREIGN_KEYS.items() if key[0] == table}
    assert {key: found["referred_table"] for key, found in keys.items()} == wanted
    for key in keys.values():
        assert key["options"]["ondelete"] == "CASCADE"
        assert key["referred_columns"][0] == PRIMARY_KEYS[key["referred_table"]]
        assert key["referred_columns"][1:] == key["constrained_columns"][1:]
    constraints, indexes = uniques_and_indexes(db, table)
    assert {tuple(unique["column_names"]) for unique in constraints} == UNIQUE[table]
    assert {tuple(index["column_names"]) for index in indexes if not index["unique"]} == INDEXES[table]
    unique = {(index["name"], *index["column_names"]) for index in indexes if index["unique"]}
    assert unique == NAMED_UNIQUE.get(table, set())


@pytest.mark.parametrize("table", TABLES)
def test_every_constraint_is_named_by_the_convention(db: DatabaseFactory, table: str) -> None:
    """Names tell kind, table and columns, so that a migration can address every constraint on every database."""
    live = inspect(db.engine)
    names = {f"pk_{table}": live.get_pk_constraint(table)["name"]} if db.engine.dialect.name != "mysql" else {}
    for key in live.get_foreign_keys(table):
        names[f"fk_{table}_{key['constrained_columns'][0]}_{key['referred_table']}"] = key["name"]
    constraints, indexes = uniques_and_indexes(db, table)
    for unique in constraints:
        names[f"uq_{table}_{'_'.join(unique['column_names'])}"] = unique["name"]
    for index in indexes:
        if not index["unique"]:
            names[f"ix_{table}_{'_'.join(map(str, index['column_names']))}"] = index["name"]
    assert {check["name"] for check in live.get_check_constraints(table)} == {
        f"ck_{table}_{of}" for of in CHECKS[table]
    }
    for expected, name in names.items():
        assert name == expected
        assert len(expected) <= 63


# --- defaults ----------------------------------------------------------------------------------------------------


def _raw_insert(session: Session, table: str, row: dict[str, str]) -> None:
    session.execute(
        text(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})"), row
    )


def test_rows_of_raw_sql_get_the_same_defaults(session: Session) -> None:
    """A row that names only what has no default, as psql or COPY writes it, is what the ORM would have made."""
    _raw_insert(session, "users", {"username": "raw"})
    user = session.scalars(select(User)).one()
    _raw_insert(session, "bybit_accounts", {"user_id": user.user_id, "account_name": "main", "environment": "testnet"})
    account = session.scalars(select(BybitAccount)).one()
    _raw_insert(session, "api_credentials", {"account_id": account.account_id, "api_key_id": "k", "api_secret": "s"})
    strategy_row = {
        "account_id": account.account_id,
        "strategy_type": "GridStrategy",
        "symbol": "X",
        "config_json": "{}",
    }
    _raw_insert(session, "strategies", strategy_row)
    strategy = session.scalars(select(Strategy)).one()
    run_row = {"user_id": user.user_id, "account_id": account.account_id, "strategy_id": strategy.strategy_id}
    _raw_insert(session, "runs", run_row | {"run_type": "live"})
    credential, run = session.scalars(select(ApiCredential)).one(), session.scalars(select(Run)).one()

    now = datetime.now(UTC)
    for row, key in (
        (user, user.user_id),
        (account, account.account_id),
        (credential, credential.credential_id),
        (strategy, strategy.strategy_id),
        (run, run.run_id),
    ):
        parsed = uuid.UUID(key)
        assert (str(parsed), parsed.version) == (key, 4)
        created = row.start_ts if isinstance(row, Run) else row.created_at
        assert created.tzinfo is UTC
        assert abs(now - created) < timedelta(seconds=60)
    assert abs(now - user.updated_at) < timedelta(seconds=60)
    assert (user.status, account.status, run.status) == ("active", "enabled", "running")
    assert (credential.is_active, strategy.is_enabled) == (True, True)
    assert (user.email, credential.rotated_at, run.end_ts, run.config_snapshot) == (None,) * 4
    # The stored forms are the type's own: rows of both makers are found and ordered alike.
    assert session.scalars(select(User).where(User.created_at == user.created_at)).all() == [user]
    later = stored(session, User(username="orm"))
    assert session.scalars(select(User.username).order_by(User.created_at)).all() == ["raw", later.username]
    assert session.scalars(select(Strategy).where(Strategy.is_enabled)).all() == [strategy]
    assert session.scalars(select(Strategy).where(Strategy.is_enabled.is_(True))).all() == [strategy]


@pytest.mark.parametrize("table", TABLES)
def test_every_default_is_given_twice(table: str) -> None:
    """What the specification gives a default has one in Python and one in the schema; nothing else has."""
    for name, _, rule in COLUMNS[table]:
        column = Base.metadata.tables[table].columns[name]
        wanted = rule not in ("NULL", "NOT NULL", "COUNT")
        assert (column.default is not None) is wanted
        assert (column.server_default is not None) is wanted
        assert (column.onupdate is not None) is (name == "updated_at")


def test_updated_at_follows_every_update(session: Session, sample_user: User) -> None:
    """A change by the ORM or by an UPDATE statement renews updated_at, and leaves created_at."""
    past = datetime(2020, 1, 1, tzinfo=UTC)
    created = sample_user.created_at
    changes = (
        lambda: setattr(sample_user, "email", "new@example.com"),
        lambda: session.execute(update(User).values(status="suspended")),
    )
    for change in changes:
        session.execute(update(User).values(updated_at=past))
        session.refresh(sample_user)
        assert sample_user.updated_at == past
        change()
        session.flush()
        session.refresh(sample_user)
        assert datetime.now(UTC) - sample_user.updated_at < timedelta(seconds=60)
        assert sample_user.created_at == created


# --- identity ----------------------------------------------------------------------------------------------------


def _refused(session: Session, entity: Base) -> None:
    with pytest.raises(IntegrityError), session.begin_nested():
        stored(session, entity)


def test_what_must_be_unique_is(session: Session, sample_run: Run) -> None:
    """E-mail, account name per user, symbol per account, what runs of a strategy; trades and executions."""
    user, account, strategy = sample_run.user, sample_run.account, sample_run.strategy
    stored(session, User(username="x", email="x@example.com"))
    _refused(session, User(username="y", email="x@example.com"))
    other = stored(session, User(username="y"))
    stored(session, User(username="z"))
    _refused(session, BybitAccount(user_id=user.user_id, account_name=account.account_name, environment="mainnet"))
    stored(session, BybitAccount(user_id=other.user_id, account_name=account.account_name, environment="mainnet"))
    _refused(session, new_strategy(account, strategy.symbol))
    stored(session, new_strategy(account, "OTHER"))

    trade = trade_values(1)
    stored(session, PublicTrade(**trade))
    _refused(session, PublicTrade(**trade | {"price": Decimal(1), "side": "Sell"}))
    for change in ({"symbol": "ETHUSDT"}, {"trade_id": "2"}, {"exchange_ts": trade["exchange_ts"] + timedelta(days=1)}):
        stored(session, PublicTrade(**trade | change))
    _refused(session, new_run(account, strategy, status="running"))
    stored(session, new_run(account, strategy, status="running", run_type="shadow"))
    second = stored(session, new_run(account, strategy))
    stored(session, PrivateExecution(**execution_values(sample_run, 1)))
    _refused(session, PrivateExecution(**execution_values(sample_run, 1, order_id="another")))
    stored(session, PrivateExecution(**execution_values(second, 1)))


# --- relationships -----------------------------------------------------------------------------------------------


def test_relationships_are_two_way_as_the_specification_lists_them() -> None:
    """Each parent lists its children and each child names its parent; there are no others."""
    configure_mappers()
    # Tables of other packages, which other tests declare, may hang on ours.
    ours = [mapper for mapper in Base.registry.mappers if mapper.class_.__module__ == "shared.db.models"]
    found = {(mapper.class_, relation.key): relation for mapper in ours for relation in mapper.relationships}
    assert set(found) == {end for parent, many, child, one in RELATIONSHIPS for end in ((parent, many), (child, one))}
    for parent, many, child, one in RELATIONSHIPS:
        down: RelationshipProperty[Any] = found[parent, many]
        up: RelationshipProperty[Any] = found[child, one]
        assert (down.mapper.class_, up.mapper.class_) == (child, parent)
        assert (down.uselist, up.uselist) == (True, False)
        assert (down.back_populates, up.back_populates) == (one, many)
        assert down.passive_deletes is True
        assert down.cascade.delete
        assert not up.cascade.delete
        assert down.order_by


def test_relationships_follow_objects_and_rows(session: Session) -> None:
    """A whole tree given as objects is stored by one add, seen from both sides at once and after reading it anew."""
    user = User(username="tree")
    account = BybitAccount(user=user, account_name="main", environment=Environment.TESTNET)
    credential = ApiCredential(account=account, api_key_id="k", api_secret="s")
    strategy = Strategy(account=account, strategy_type="GridStrategy", symbol="BTCUSDT", config_json={})
    run = Run(user=user, account=account, strategy=strategy, run_type=RunType.BACKTEST)
    values = {name: value for name, value in trade_values(1).items() if name in ("symbol", "exchange_ts", "side")}
    amounts = {"exec_price": Decimal(1), "exec_qty": Decimal(1), "exec_id": "e", "order_id": "o"}
    stored(session, user)
    execution = stored(session, PrivateExecution(run=run, account_id=account.account_id, **values, **amounts))
    for _ in range(2):
        assert (user.accounts, user.runs) == ([account], [run])
        assert (account.user, account.credentials, account.strategies) == (user, [credential], [strategy])
        assert (account.runs, strategy.runs) == ([run], [run])
        assert (credential.account, strategy.account) == (account, account)
        assert (run.user, run.account, run.strategy, run.executions) == (user, account, strategy, [execution])
        assert execution.run is run
        session.flush()
        session.expire_all()
    assert_type(user.accounts, list[BybitAccount])
    assert_type(run.executions, list[PrivateExecution])
    assert_type(execution.run, Run)
    assert_type(execution.closed_pnl, Decimal | None)


def test_children_come_in_a_stable_order(session: Session, sample_run: Run) -> None:
    """Accounts by name, strategies by symbol, runs by start, executions by time and id, however they were stored."""
    user, account, strategy = sample_run.user, sample_run.account, sample_run.strategy
    for name in ("zeta", "alpha"):
        stored(session, BybitAccount(user_id=user.user_id, account_name=name, environment=Environment.TESTNET))
    for symbol in ("ZZZ", "AAA"):
        stored(session, new_strategy(account, symbol))
    earlier = stored(session, new_run(account, strategy, start_ts=datetime(2020, 1, 1, tzinfo=UTC)))
    for number in (3, 1, 2):
        stored(session, PrivateExecution(**execution_values(sample_run, number)))
    session.expire_all()
    assert [each.account_name for each in user.accounts] == ["alpha", "main", "zeta"]
    assert [each.symbol for each in account.strategies] == ["AAA", "BTCUSDT", "ZZZ"]
    assert user.runs == account.runs == strategy.runs == [earlier, sample_run]
    assert [each.exec_id for each in sample_run.executions] == ["exec-1", "exec-2", "exec-3"]


# --- the cascade -------------------------------------------------------------------------------------------------


def _counts(session: Session) -> dict[str, int]:
    tables = [Base.metadata.tables[name] for name in TABLES]
    return {table.name: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables}


def _fleet(session: Session, username: str) -> User:
    """A user with two accounts, a credential and a strategy each, a run of each, and 200 executions a run."""
    user = stored(session, User(username=username))
    for name in ("one", "two"):
        account = stored(session, BybitAccount(user_id=user.user_id, account_name=name, environment="testnet"))
        stored(session, ApiCredential(account_id=account.account_id, api_key_id="k", api_secret="s"))
        run = stored(session, new_run(account, stored(session, new_strategy(account))))
        session.execute(insert(PrivateExecution), [execution_values(run, number) for number in range(200)])
    return user


OF_ONE_USER = {
    "users": 1,
    "bybit_accounts": 2,
    "api_credentials": 2,
    "strategies": 2,
    "runs": 2,
    "private_executions": 400,
    "public_trades": 1,
}


def test_deleting_a_user_removes_everything_below_without_reading_it(db: DatabaseFactory, session: Session) -> None:
    """One DELETE of the user; the database does the rest; another user's rows and the public trades stay."""
    user, _other = _fleet(session, "alice"), _fleet(session, "bob")
    stored(session, PublicTrade(**trade_values(1)))
    session.expunge_all()
    user = session.scalars(select(User).where(User.username == "alice")).one()
    with statements_of(db) as sent:
        session.delete(user)
        session.flush()
    assert [statement.split()[:3] for statement in sent] == [["DELETE", "FROM", "users"]]
    assert _counts(session) == OF_ONE_USER


@pytest.mark.parametrize(
    ("model", "gone"),
    [
        (BybitAccount, ["bybit_accounts", "api_credentials", "strategies", "runs", "private_executions"]),
        (Strategy, ["strategies", "runs", "private_executions"]),
        (Run, ["runs", "private_executions"]),
        (ApiCredential, ["api_credentials"]),
    ],
)
def test_deleting_any_row_removes_what_is_below_it(
    db: DatabaseFactory, session: Session, model: type[Base], gone: list[str]
) -> None:
    """Accounts, strategies and runs take with them what belongs to them, and nothing else, unread."""
    _fleet(session, "alice")
    session.expunge_all()
    row = session.scalars(select(model).limit(1)).one()
    with statements_of(db) as sent:
        session.delete(row)
        session.flush()
    assert [statement.split()[0] for statement in sent] == ["DELETE"]
    assert _counts(session) == {
        table: count // 2 if table in gone else count for table, count in (OF_ONE_USER | {"public_trades": 0}).items()
    }


def test_raw_sql_cascades_too(session: Session) -> None:
    """The cascade is the database's own: a DELETE by hand leaves nothing behind."""
    _fleet(session, "alice")
    session.execute(text("DELETE FROM users"))
    assert set(_counts(session).values()) == {0}


def test_children_that_are_loaded_are_deleted_with_their_parent(session: Session, sample_run: Run) -> None:
    """Objects that the session holds already are marked deleted, not left behind as ghosts."""
    user = sample_run.user
    assert user.accounts
    assert user.runs
    session.delete(user)
    session.flush()
    assert inspect(sample_run).deleted
    assert set(_counts(session).values()) == {0}


# --- reprs and copies --------------------------------------------------------------------------------------------


def _one_of_each(session: Session, run: Run) -> list[Base]:
    credential = ApiCredential(account_id=run.account_id, api_key_id="key-4711", api_secret="canary-4711")
    rows = [credential, PublicTrade(**trade_values(1)), PrivateExecution(**execution_values(run, 1))]
    session.add_all(rows)
    session.flush()
    return [run.user, run.account, run.strategy, run, *rows]


def test_a_repr_shows_ids_and_names_and_never_a_secret(db: DatabaseFactory, session: Session, sample_run: Run) -> None:
    """Fresh, expired, detached or not stored yet: a repr says which row it is, runs no query and holds no secret."""
    rows = _one_of_each(session, sample_run)
    with statements_of(db) as sent:
        for row in rows:
            (key,) = inspect(row).identity or ()
            assert repr(row).startswith(f"<{type(row).__name__} {PRIMARY_KEYS[row.__table__.name]}={key!r}")  # type: ignore[attr-defined] # a Table
            assert "canary" not in repr(row)
            assert "canary" not in str([row])
        assert "username='alice'" in repr(sample_run.user)
        assert "symbol='BTCUSDT'" in repr(sample_run.strategy)
        session.expire_all()
        assert [repr(row) for row in rows] == [f"<{type(row).__name__} >" for row in rows]
        session.expunge_all()
        assert [repr(row) for row in rows] == [f"<{type(row).__name__} >" for row in rows]
        assert repr(ApiCredential(api_secret="canary-4711")) == "<ApiCredential >"
        assert repr(User(username="new")) == "<User username='new'>"
    assert sent == []


def test_entities_travel_between_processes(db: DatabaseFactory, session: Session, sample_run: Run) -> None:
    """Every entity pickles with its values, but for a secret, and can be merged into a session of another process."""
    rows = _one_of_each(session, sample_run)
    twins = [pickle.loads(pickle.dumps(row)) for row in rows]
    for row, twin in zip(rows, twins, strict=True):
        names = [column.key for column in inspect(row).mapper.column_attrs if column.key != "api_secret"]
        assert "canary" not in str(pickle.dumps(row))
        assert {name: getattr(twin, name) for name in names} == {name: getattr(row, name) for name in names}
    session.expunge_all()
    with statements_of(db) as sent:
        for twin in twins:
            session.merge(twin)
        session.flush()
    assert {statement.split()[0] for statement in sent} == {"SELECT"}  # nothing to write


def test_enumerations_are_their_words(session: Session, sample_run: Run) -> None:
    """Members may be given and compared; what is read are plain strings."""
    sample_run.status = RunStatus.COMPLETED
    session.flush()
    session.expire_all()
    assert type(sample_run.status) is str
    assert sample_run.status == RunStatus.COMPLETED
    trade = stored(session, PublicTrade(**trade_values(1, side=Side.SELL)))
    session.expire_all()
    assert trade.side == "Sell"
    assert session.scalars(select(Run).where(Run.status == RunStatus.COMPLETED)).all() == [sample_run]


def test_rows_stay_readable_after_commit(db: DatabaseFactory) -> None:
    """What a session stored is used on when it is closed, without another query."""
    with db.get_session() as session:
        user = User(username="alice")
        session.add(user)
    assert (user.username, user.status) == ("alice", "active")


def test_the_longest_symbols_of_the_exchange_fit(session: Session, sample_run: Run) -> None:
    """An option's symbol is stored and read back in all three tables, by each way to write."""
    option = "BTC-25JUN27-106000-C-USDT"
    strategy = stored(session, new_strategy(sample_run.account, option))
    PublicTradeRepository(session).bulk_create([trade_values(symbol=option)])
    fills = PrivateExecutionRepository(session, user_id=sample_run.user_id)
    fills.bulk_create([execution_values(sample_run, symbol=option)])
    session.expire_all()
    trade, fill = session.scalars(select(PublicTrade)).one(), session.scalars(select(PrivateExecution)).one()
    assert [strategy.symbol, trade.symbol, fill.symbol] == [option] * 3
