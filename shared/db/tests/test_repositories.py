"""The questions a bot asks, in plain sessions: what they answer, whose rows they touch, and what they refuse.

Users "ann" and "bob" own one of everything, under ids that tell whose they are.
"""

from __future__ import annotations

import inspect as introspection
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.orm import Session, load_only

from shared.db import (
    ApiCredential,
    ApiCredentialRepository,
    AuditLog,
    AuditLogRepository,
    Base,
    BaseRepository,
    BybitAccount,
    BybitAccountRepository,
    DatabaseFactory,
    InvalidValueError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Repository,
    RowNotFoundError,
    Run,
    RunEndedError,
    RunRepository,
    RunStatus,
    Strategy,
    StrategyRepository,
    TenantScopeError,
    TenantViolation,
    User,
    UserRepository,
)
from shared.db.tenancy.user_ids import UNSET
from shared.db.tests.support import execution_values, stored, trade_values

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
KINDS: list[type[BaseRepository[Any]]] = [*BaseRepository.__subclasses__(), *Repository.__subclasses__()]
REPOSITORIES: dict[Any, type[BaseRepository[Any]]] = {kind.model: kind for kind in KINDS if kind is not Repository}
SEVEN: list[type[Base]] = [User, BybitAccount, ApiCredential, Strategy, Run, PublicTrade, PrivateExecution]
# What the specification and the consumers of this layer call.
NAMES: dict[type[BaseRepository[Any]], str] = {
    UserRepository: "get_by_username get_by_email get_active_users",
    BybitAccountRepository: "get_by_user_id get_enabled_accounts",
    ApiCredentialRepository: "get_by_account_id get_active_credential",
    StrategyRepository: "get_by_account_id get_enabled_strategies get_by_symbol",
    RunRepository: "get_by_user_id get_running get_by_account_id get_by_run_type get_latest_by_type "
    "start finish fail close_orphans",
    PublicTradeRepository: "bulk_create get_by_symbol_range get_last_trade_ts exists_by_trade_id",
    PrivateExecutionRepository: "bulk_create get_by_run_range get_last_execution_ts exists_by_exec_id",
}


def rows_of(user: str) -> list[Base]:
    """One of everything."""
    run = Run(run_id=f"run-{user}", user_id=user, account_id=f"acc-{user}", strategy_id=f"str-{user}", run_type="live")
    run.start_ts = START
    return [
        User(user_id=user, username=f"name-{user}"),
        BybitAccount(account_id=f"acc-{user}", user_id=user, account_name="main", environment="testnet"),
        ApiCredential(credential_id=f"cred-{user}", account_id=f"acc-{user}", api_key_id="k", api_secret="s"),
        Strategy(
            strategy_id=f"str-{user}", account_id=f"acc-{user}", strategy_type="Grid", symbol="BTCUSDT", config_json={}
        ),
        run,
        PrivateExecution(**execution_values(run, exec_id=f"exec-{user}")),
    ]


@pytest.fixture
def fleet(db: DatabaseFactory) -> DatabaseFactory:
    """A database with all of ann's and bob's rows in it."""
    with db.get_session() as session:
        for user in ("ann", "bob"):
            for row in rows_of(user):
                stored(session, row)
    return db


@pytest.fixture
def plain(fleet: DatabaseFactory) -> Iterator[Session]:
    """A plain session on it."""
    with fleet.get_session() as session:
        yield session


def everything(db: DatabaseFactory) -> list[Any]:
    """Every row of every table."""
    with db.get_session(read_only=True) as session:
        return [
            tuple(row)
            for table in Base.metadata.sorted_tables
            for row in session.execute(select(table).order_by(*table.primary_key.columns))
        ]


def new_run(user: str = "ann", **values: Any) -> Run:
    """A run of the user's that has ended, not stored yet: another one of its strategy is running."""
    given = {"user_id": user, "account_id": f"acc-{user}", "strategy_id": f"str-{user}", "run_type": "live"}
    return Run(**(given | {"status": "completed"} | values))


def refused(
    db: DatabaseFactory,
    error: type[Exception] | tuple[type[Exception], ...],
    attempt: Callable[..., object],
    *arguments: Any,
) -> None:
    """`attempt` raises; whoever catches that and goes on has written nothing of it when his session ends."""
    before = everything(db)
    # After a refusal inside the flush the session only rolls back, and says so when it is to commit.
    with suppress(PendingRollbackError), db.get_session() as session:
        with pytest.raises(error):
            attempt(session, *arguments)
        session.flush()
    assert everything(db) == before


# The specification's own


def test_get_by_username(session: Session, sample_user: User) -> None:
    """A user is found by the login name, which is taken as it is written; nobody else is."""
    users = UserRepository(session)
    assert users.get_by_username("alice") is sample_user
    assert users.get_by_username("Alice") is None
    assert users.get_by_username("nobody") is None
    assert users.get_by_email("alice@example.com") is sample_user
    assert users.get_by_email("alice") is None


def test_get_active_users(session: Session) -> None:
    """Only those with status "active", by name."""
    for name, status in (("dan", "active"), ("bob", "suspended"), ("ann", "active"), ("eve", "deleted")):
        session.add(User(username=name, status=status))
    assert [user.username for user in UserRepository(session).get_active_users()] == ["ann", "dan"]


def test_runs_filtered_by_user(plain: Session) -> None:
    """A user's runs are his own, whatever is asked."""
    runs = RunRepository(plain)
    assert [run.run_id for run in runs.get_by_user_id("ann")] == ["run-ann"]
    assert [run.run_id for run in runs.get_running("bob")] == ["run-bob"]
    assert runs.get_by_user_id("nobody") == []


# The five verbs


def test_every_table_has_a_repository() -> None:
    """All seven, with every name that consumers call."""
    assert set(SEVEN) == {kind.model for kind in NAMES}
    for kind, names in NAMES.items():
        for name in ("get_by_id", "get_all", "create", "update", "delete", *names.split()):
            assert callable(getattr(kind, name, None)), f"{kind.__name__}.{name}"


NEW: dict[type[Base], Callable[[], tuple[Base, str, Any]]] = {
    User: lambda: (User(username="carol"), "email", "carol@example.com"),
    BybitAccount: lambda: (
        BybitAccount(user_id="ann", account_name="second", environment="mainnet"),
        "account_name",
        "third",
    ),
    ApiCredential: lambda: (
        ApiCredential(account_id="acc-ann", api_key_id="k2", api_secret="s2", is_active=False),
        "api_secret",
        "s3",
    ),
    Strategy: lambda: (
        Strategy(account_id="acc-ann", strategy_type="Grid", symbol="ETHUSDT", config_json={"levels": 2}),
        "config_json",
        {"levels": [3, 4]},
    ),
    Run: lambda: (new_run(), "gridcore_version", "2.0"),
    PublicTrade: lambda: (PublicTrade(**trade_values()), "price", Decimal("1.5")),
    PrivateExecution: lambda: (
        PrivateExecution(**execution_values(new_run(run_id="run-ann"))),
        "exec_fee",
        Decimal("-0.5"),
    ),
}


@pytest.mark.parametrize("model", SEVEN)
def test_the_five_verbs_work_on_every_table(fleet: DatabaseFactory, model: type[Base]) -> None:
    """Create, find, list, update and delete, each seen by the next session."""
    entity, name, changed = NEW[model]()
    user = {"user_id": "ann"} if model not in (User, PublicTrade) else {}
    key_name = model.__mapper__.primary_key[0].name
    with fleet.get_session() as session:
        assert REPOSITORIES[model](session, **user).create(entity) is entity
        key = getattr(entity, key_name)
    before = everything(fleet)
    with fleet.get_session() as session:
        repository = REPOSITORIES[model](session, **user)
        found = repository.get_by_id(key)
        assert found is not None
        assert found in repository.get_all()
        updated = repository.update(model(**{key_name: key, name: changed}))
        assert updated is found
    after = everything(fleet)
    # One row differs, in that value (and in when it was written, where that is kept).
    (old,), (new,) = [row for row in before if row not in after], [row for row in after if row not in before]
    differing = sum(one != other for one, other in zip(old, new, strict=True))
    assert differing == (2 if model is User else 1)
    with fleet.get_session() as session:
        repository = REPOSITORIES[model](session, **user)
        repository.delete(updated)
        assert repository.get_by_id(key) is None
    assert len(everything(fleet)) == len(before) - 1


def test_repositories_flush_and_never_commit(fleet: DatabaseFactory) -> None:
    """What a repository wrote goes with the session's rollback."""
    before = everything(fleet)

    def write_and_fail() -> None:
        with fleet.get_session() as session:
            RunRepository(session, "ann").start(new_run())
            RunRepository(session, "ann").update(Run(run_id="run-ann", gridcore_version="9"))
            PublicTradeRepository(session).bulk_create([trade_values()])
            StrategyRepository(session, "bob").delete(Strategy(strategy_id="str-bob"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert everything(fleet) == before


def test_get_all_is_ordered_and_paginated(session: Session) -> None:
    """By primary key; pages laid side by side give everything once."""
    for number in range(7):
        session.add(User(user_id=f"user-{(number * 5) % 7}", username=f"name-{number}"))
    users = UserRepository(session)
    ids = [user.user_id for user in users.get_all()]
    assert ids == [f"user-{number}" for number in range(7)]
    pages = [users.get_all(limit=3, offset=offset) for offset in (0, 3, 6, 9)]
    assert [len(page) for page in pages] == [3, 3, 1, 0]
    assert [user.user_id for page in pages for user in page] == ids
    assert users.get_all(limit=0) == []
    assert [user.user_id for user in users.get_all(offset=5)] == ids[5:]
    assert [user.user_id for user in users.get_all(2, 1)] == ids[1:3]


def test_a_negative_limit_or_offset_is_refused(plain: Session) -> None:
    """By every method that takes one: SQLite would take it for "all of them"."""
    refusing = 0
    for kind in REPOSITORIES.values():
        for name, method in public_methods(kind).items():
            for parameter in {"limit", "offset"} & set(parameters(method)):
                arguments = required_arguments(kind, name) | {parameter: -1}
                if "user_id" in parameters(method):
                    arguments["user_id"] = "ann"
                with pytest.raises(InvalidValueError, match=f"{parameter} must be 0 or more, not -1"):
                    getattr(kind(plain), name)(**arguments)
                refusing += 1
    assert refusing >= 8 * 2 + 3


# Who is meant


def public_methods(kind: type[BaseRepository[Any]]) -> dict[str, Any]:
    """The methods of a repository by name, without the ways to make one."""
    members = introspection.getmembers(kind, introspection.isfunction)
    return {name: member for name, member in members if not name.startswith("_")}


def parameters(method: Any) -> dict[str, introspection.Parameter]:
    """The parameters of a method, without self."""
    return dict(list(introspection.signature(method).parameters.items())[1:])


# Something for every parameter, all of it ann's and all of it there.
ARGUMENTS: dict[str, Any] = {
    "id": "run-ann",
    "account_id": "acc-ann",
    "strategy_id": "str-ann",
    "run_id": "run-ann",
    "key": "run-ann",
    "exec_id": "exec-ann",
    "symbol": "BTCUSDT",
    "run_type": "live",
    "entity": "Run",
    "entity_id": "run-ann",
    "action": "create",
    "username": "name-ann",
    "trade_id": "trade-0",
    "start": START,
    "end": START,
    "ts": START,
    "seconds": 60,
    "new_key_id": "key",
    "new_secret": "secret",
    "mappings": [{"run_id": "run-ann", "status": "failed"}],
}


def required_arguments(kind: type[BaseRepository[Any]], name: str) -> dict[str, Any]:
    """Arguments for a method, fresh ones where it takes something to write."""
    given = ARGUMENTS | {
        "run": new_run(),
        "rows": iter([execution_values(new_run(run_id="run-ann"), 7)]),
    }
    if name in ("create", "update", "delete"):
        given["entity"] = kind.model()
    method = parameters(public_methods(kind)[name])
    required = [
        key
        for key, parameter in method.items()
        if parameter.default is parameter.empty and key != "user_id" and parameter.kind is not parameter.VAR_KEYWORD
    ]
    return {key: given[key] for key in required}


TENANT_METHODS = [
    (kind, name)
    for model, kind in REPOSITORIES.items()
    if model not in (User, PublicTrade)
    for name in public_methods(kind)
]


@pytest.fixture
def quiet(plain: Session) -> Iterator[Session]:
    """A plain session in which no statement may be run."""
    assert plain.bind is not None
    engine: Engine = plain.connection().engine
    ran: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        ran.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield plain
    event.remove(engine, "before_cursor_execute", note)
    assert ran == []
    assert not plain.new
    assert not plain.dirty


def test_without_a_user_nothing_is_asked(quiet: Session) -> None:
    """Every method of every repository of users' data raises, runs no statement and takes no row out of an iterable."""
    for kind, name in TENANT_METHODS:
        arguments = required_arguments(kind, name)
        by_specification = parameters(public_methods(kind)[name])["user_id"].default is introspection.Parameter.empty
        with pytest.raises(TypeError if by_specification else TenantScopeError):
            getattr(kind(quiet), name)(**arguments)
        if "executions" in arguments:
            assert len(list(arguments["executions"])) == 1


def test_none_is_no_user(quiet: Session) -> None:
    """An explicit None, which somebody forgot to fill in, raises and asks nothing; so does what cannot be an id."""
    for kind, name in TENANT_METHODS:
        nobodies: tuple[Any, ...] = (None, "", 7, "x" * 37)
        for nobody in nobodies:
            with pytest.raises(TenantScopeError):
                getattr(kind(quiet), name)(**required_arguments(kind, name), user_id=nobody)
            with pytest.raises(TenantScopeError):
                kind(quiet, user_id=nobody)


def test_users_that_differ_are_refused(quiet: Session) -> None:
    """The repository's user and the call's must be the same one."""
    for kind, name in TENANT_METHODS:
        with pytest.raises(TenantScopeError, match="name different users"):
            getattr(kind(quiet, user_id="ann"), name)(**required_arguments(kind, name), user_id="bob")


def test_every_method_of_users_data_takes_the_user() -> None:
    """By the keyword `user_id`, also where the specification has none."""
    for kind, name in TENANT_METHODS:
        assert "user_id" in parameters(public_methods(kind)[name]), f"{kind.__name__}.{name}"


def test_the_user_may_come_from_everywhere(plain: Session) -> None:
    """From the constructor, from the call, from both."""
    for runs, user in ((RunRepository(plain, "ann"), {}), (RunRepository(plain), {"user_id": "ann"})):
        assert runs.get_by_id("run-ann", **user) is not None
        assert runs.get_by_id("run-bob", **user) is None
    assert RunRepository(plain, user_id="ann").get_by_id("run-ann", user_id="ann") is not None
    assert [run.run_id for run in RunRepository(plain, "ann").get_running()] == ["run-ann"]


def test_users_and_trades_can_be_read_without_a_user(plain: Session) -> None:
    """Trades are shared by all, and somebody must be able to find a user; a user that is named confines."""
    PublicTradeRepository(plain).bulk_create([trade_values()])
    assert len(PublicTradeRepository(plain).get_all()) == 1
    assert len(PublicTradeRepository(plain, user_id="ann").get_all()) == 1
    assert len(UserRepository(plain).get_all()) == 2
    assert [user.user_id for user in UserRepository(plain, user_id="ann").get_all()] == ["ann"]
    assert UserRepository(plain).get_by_id("bob", user_id="ann") is None
    assert UserRepository(plain, user_id="ann").get_by_username("name-bob") is None


# What each user gets. Every method is either asked for ann's row, as ann and as bob, or has its refusal below.

READS: list[tuple[type[BaseRepository[Any]], str, dict[str, Any]]] = [
    (BybitAccountRepository, "get_by_id", {"id": "acc-ann"}),
    (ApiCredentialRepository, "get_by_id", {"id": "cred-ann"}),
    (StrategyRepository, "get_by_id", {"id": "str-ann"}),
    (RunRepository, "get_by_id", {"id": "run-ann"}),
    (ApiCredentialRepository, "get_by_account_id", {}),
    (ApiCredentialRepository, "get_active_credential", {}),
    (StrategyRepository, "get_by_account_id", {}),
    (StrategyRepository, "get_enabled_strategies", {}),
    (StrategyRepository, "get_by_symbol", {}),
    (RunRepository, "get_by_account_id", {}),
    (RunRepository, "get_latest_by_type", {"strategy_id": "str-ann"}),
    (PrivateExecutionRepository, "get_by_run_range", {}),
    (PrivateExecutionRepository, "get_last_execution_ts", {"run_id": "run-ann"}),
    (PrivateExecutionRepository, "get_last_execution_ts", {"account_id": "acc-ann"}),
    (RunRepository, "get_active_at", {"ts": START, "strategy_id": "str-ann"}),
    (PrivateExecutionRepository, "exists_by_exec_id", {}),
    (PrivateExecutionRepository, "at_or_before", {"ts": datetime.max.replace(year=9000, tzinfo=UTC)}),
    (PrivateExecutionRepository, "get_execution_at_or_before", {"ts": datetime.max.replace(year=9000, tzinfo=UTC)}),
]
# How many executions each of these gives.
RANGE_READS: dict[str, Callable[[Any], int]] = {
    "iter_run_range": lambda rows: len(list(rows)),
    "iter_range": lambda rows: len(list(rows)),
    "latest": lambda row: int(row is not None),
    "to_arrow": lambda table: int(table.num_rows),
    "to_polars": len,
    "to_pandas": len,
    "totals": lambda sums: int(sums.count),
    "coverage": lambda runs: sum(run.count for run in runs),
}
# These name no row; each user gets his own.
OWN_READS: list[tuple[type[BaseRepository[Any]], str]] = [
    *((kind, "get_all") for model, kind in REPOSITORIES.items() if model not in (User, PublicTrade, AuditLog)),
    (BybitAccountRepository, "get_by_user_id"),
    (BybitAccountRepository, "get_enabled_accounts"),
    (RunRepository, "get_by_user_id"),
    (RunRepository, "get_running"),
    (RunRepository, "get_by_run_type"),
    (RunRepository, "get_latest_by_type"),
]
WRITES: dict[str, Callable[[Session], object]] = {
    "create": lambda session: RunRepository(session, "bob").create(new_run("ann")),
    "update": lambda session: RunRepository(session, "bob").update(Run(run_id="run-ann", status="failed")),
    "delete": lambda session: RunRepository(session, "bob").delete(Run(run_id="run-ann")),
    "bulk_update": lambda session: RunRepository(session, "bob").bulk_update([{"run_id": "run-ann", "host": "x"}]),
    "get_or_create": lambda session: StrategyRepository(session, "bob").get_or_create(
        Strategy(account_id="acc-ann", strategy_type="Grid", symbol="BTCUSDT", config_json={})
    ),
    "start": lambda session: RunRepository(session, "bob").start(new_run("ann")),
    "finish": lambda session: RunRepository(session, "bob").finish("run-ann"),
    "fail": lambda session: RunRepository(session, "bob").fail("run-ann"),
    "heartbeat": lambda session: RunRepository(session, "bob").heartbeat("run-ann"),
    "rotate": lambda session: ApiCredentialRepository(session, "bob").rotate("acc-ann", "key", "secret"),
    "bulk_create": lambda session: PrivateExecutionRepository(session, "bob").bulk_create(
        [execution_values(new_run("bob", run_id="run-bob"), 7), execution_values(new_run(run_id="run-ann"), 7)]
    ),
}


def test_a_row_of_another_user_is_not_found(plain: Session) -> None:
    """What ann finds is not there for bob, by whichever method he asks."""
    for kind, name, given in READS:
        arguments = required_arguments(kind, name) | given
        assert getattr(kind(plain), name)(**arguments, user_id="ann"), name
        assert not getattr(kind(plain), name)(**arguments, user_id="bob"), name
        assert not getattr(kind(plain, user_id="nobody"), name)(**arguments), name


def test_a_run_of_another_user_reads_as_empty(plain: Session) -> None:
    """As rows, as frames and as sums."""
    for name, number_in in RANGE_READS.items():
        assert number_in(getattr(PrivateExecutionRepository(plain), name)("run-ann", user_id="ann")) == 1, name
        assert number_in(getattr(PrivateExecutionRepository(plain), name)("run-ann", user_id="bob")) == 0, name


def test_a_run_of_another_user_has_the_gaps_of_a_run_that_is_not_there(plain: Session) -> None:
    """Its execution does not part the time that is asked about."""
    executions, hour = PrivateExecutionRepository(plain), timedelta(hours=1)
    when = executions.get_last_execution_ts(run_id="run-ann", user_id="ann")
    assert when is not None
    around = ("run-ann", 60, when - hour, when + hour)
    assert len(list(executions.gaps(*around, user_id="ann"))) == 2
    assert [gap.length for gap in executions.gaps(*around, user_id="bob")] == [2 * hour]


def test_everybody_gets_his_own(plain: Session) -> None:
    """A question without a key is about the user's own rows."""
    for kind, name in OWN_READS:
        for user, other in (("ann", "bob"), ("bob", "ann")):
            answer = getattr(kind(plain), name)(**required_arguments(kind, name), user_id=user)
            shown = str([vars(row) for row in (answer if isinstance(answer, list) else [answer])])
            assert f"-{user}'" in shown, name
            assert other not in shown, name


@pytest.mark.parametrize("name", WRITES)
def test_another_users_row_is_never_written(fleet: DatabaseFactory, name: str) -> None:
    """Each way of writing is refused, and nothing is written, not even of an own row beside the foreign one."""
    refused(fleet, (TenantViolation, RowNotFoundError), WRITES[name])


def test_orphans_of_another_user_are_not_closed(fleet: DatabaseFactory) -> None:
    """Asked for by strategy and type they are simply not there."""
    before = everything(fleet)
    with fleet.get_session() as session:
        assert RunRepository(session, "bob").close_orphans("str-ann", "live") == 0
    assert everything(fleet) == before


def test_every_method_was_tried_for_the_other_user() -> None:
    """A new method needs its line above."""
    tried = {(kind, name) for kind, name, _ in READS} | set(OWN_READS)
    tried |= {(PrivateExecutionRepository, name) for name in (*RANGE_READS, "gaps")}
    for kind, name in TENANT_METHODS:
        if kind is AuditLogRepository or (kind is PrivateExecutionRepository and name == "get_by_id"):
            continue  # test_audit.py has the log; an execution's id is the database's own, see below
        assert (kind, name) in tried or name in WRITES or name == "close_orphans", f"{kind.__name__}.{name}"


def test_an_execution_of_another_user_is_not_found_by_its_number(plain: Session) -> None:
    """Ids that count up can be guessed."""
    executions = PrivateExecutionRepository(plain)
    (of_ann,) = executions.get_all(user_id="ann")
    assert executions.get_by_id(of_ann.id, user_id="ann") is of_ann
    assert executions.get_by_id(of_ann.id, user_id="bob") is None


# Updates and deletes


def test_an_update_keeps_what_it_does_not_name(fleet: DatabaseFactory) -> None:
    """Columns and children that are not set on the object stay."""
    with fleet.get_session() as session:
        RunRepository(session, "ann").update(Run(run_id="run-ann", config_snapshot={"levels": 3}))
        renamed = BybitAccount(account_id="acc-ann", account_name="renamed")
        assert BybitAccountRepository(session, "ann").update(renamed).environment == "testnet"
    with fleet.get_session() as session:
        run = session.get_one(Run, "run-ann")
        assert (run.status, run.start_ts, run.config_snapshot) == ("running", START, {"levels": 3})
        assert len(run.executions) == 1
        assert run.account.account_name == "renamed"


def test_an_unknown_key_is_refused(fleet: DatabaseFactory) -> None:
    """update() never inserts, delete() never passes over what is not there, and the error names model and key."""

    def update(session: Session, entity: Base) -> object:
        return REPOSITORIES[type(entity)](session, user_id="ann").update(entity)

    def delete(session: Session, entity: Base) -> None:
        REPOSITORIES[type(entity)](session, user_id="ann").delete(entity)

    for entity in (Run(run_id="run-new", user_id="ann"), Run(), BybitAccount(account_id="acc-none")):
        refused(fleet, RowNotFoundError, update, entity)
        refused(fleet, RowNotFoundError, delete, entity)
    refused(fleet, RowNotFoundError, lambda session: UserRepository(session).update(User(user_id="carol")))
    refused(fleet, RowNotFoundError, lambda session: PublicTradeRepository(session).delete(PublicTrade(id=9)))
    with fleet.get_session() as session, pytest.raises(RowNotFoundError, match=r"no Run 'run-new'") as refusal:
        RunRepository(session, "ann").update(Run(run_id="run-new"))
    assert (refusal.value.entity, refusal.value.key) == ("Run", "run-new")


def test_an_object_that_is_not_loaded_is_deleted_too(fleet: DatabaseFactory) -> None:
    """By its key alone, detached, or while the session has loaded it; the cascade takes what is below."""
    with fleet.get_session() as session:
        detached = session.get_one(Strategy, "str-bob")
    with fleet.get_session() as session:
        loaded = session.get_one(Strategy, "str-bob")
        StrategyRepository(session, "bob").delete(detached)
        assert loaded not in session
        RunRepository(session, "ann").delete(Run(run_id="run-ann"))
    with fleet.get_session() as session:
        assert session.scalars(select(Run)).all() == []
        assert session.scalars(select(PrivateExecution)).all() == []
        assert session.scalars(select(Strategy.strategy_id)).all() == ["str-ann"]


def test_an_object_whose_owner_is_not_loaded_is_judged_by_its_row(fleet: DatabaseFactory) -> None:
    """Partly loaded and expired objects of the user's own are written, in plain sessions and in his own."""
    for options in ("plain", "own"):
        user: Any = UNSET if options == "plain" else "ann"
        with fleet.get_session(user_id=user) as session:
            run = session.scalars(select(Run).where(Run.run_id == "run-ann").options(load_only(Run.status))).one()
            run.gridcore_version = f"partly {options}"
            RunRepository(session, "ann").update(run)
            assert "user_id" not in run.__dict__
        with fleet.get_session(user_id=user) as session:
            run = session.get_one(Run, "run-ann")
            assert run.gridcore_version == f"partly {options}"
            session.expire(run)
            run.gridcore_version = "expired"
            RunRepository(session, "ann").update(run)


def _given_away(session: Session) -> object:
    return RunRepository(session, "ann").update(Run(run_id="run-ann", user_id="bob"))


def _given_away_loaded(session: Session) -> object:
    run = session.get_one(Run, "run-ann")
    run.user_id = "bob"
    return RunRepository(session, "ann").update(run)


def _given_away_as_object(session: Session) -> object:
    run = session.get_one(Run, "run-ann")
    with session.no_autoflush:
        run.user = session.get_one(User, "bob")
    return RunRepository(session, "ann").update(run)


def _given_away_from_the_other_end(session: Session) -> object:
    run, bob = session.get_one(Run, "run-ann"), session.get_one(User, "bob")
    bob.runs.append(run)
    return RunRepository(session, "ann").update(run)


def _given_away_twice(session: Session) -> object:
    # Refused for its user_id before the flush, with a relationship changed besides.
    run, foreign = session.get_one(Run, "run-ann"), session.get_one(BybitAccount, "acc-bob")
    assert len(foreign.runs) == 1
    run.account = foreign
    run.user_id = "bob"
    return RunRepository(session, "ann").update(run)


def _new_object_with_foreign_parent(session: Session) -> object:
    changed = Run(run_id="run-ann", account=session.get_one(BybitAccount, "acc-bob"))
    return RunRepository(session, "ann").update(changed)


def _foreign_and_changed(session: Session) -> object:
    run = session.get_one(Run, "run-bob")
    run.gridcore_version = "mallory"
    return RunRepository(session, "ann").update(run)


def _foreign_relabelled(session: Session) -> object:
    return RunRepository(session, "ann").update(new_run(run_id="run-bob"))


def _foreign_credential(session: Session) -> object:
    moved = ApiCredential(credential_id="cred-ann", account_id="acc-bob")
    return ApiCredentialRepository(session, "ann").update(moved)


def _foreign_children(session: Session) -> object:
    account = session.get_one(BybitAccount, "acc-ann")
    account.runs.append(session.get_one(Run, "run-bob"))
    return BybitAccountRepository(session, "ann").update(account)


def _new_foreign_children(session: Session) -> object:
    account = BybitAccount(user_id="ann", account_name="second", environment="testnet")
    account.runs.append(Run(user_id="bob", strategy_id="str-bob", run_type="shadow"))
    return BybitAccountRepository(session, "ann").create(account)


@pytest.mark.parametrize(
    "attempt",
    [
        _given_away,
        _given_away_loaded,
        _given_away_as_object,
        _given_away_from_the_other_end,
        _given_away_twice,
        _new_object_with_foreign_parent,
        _foreign_and_changed,
        _foreign_relabelled,
        _foreign_credential,
        _foreign_children,
        _new_foreign_children,
    ],
)
def test_a_refused_change_is_not_written_later(fleet: DatabaseFactory, attempt: Callable[[Session], object]) -> None:
    """Owners and parents stay what they are, whichever end they are changed from, also if the refusal is caught."""
    refused(fleet, (TenantViolation, RowNotFoundError), attempt)


def test_a_parent_that_is_given_away_in_the_same_flush_is_no_parent(plain: Session) -> None:
    """It was the user's when it was asked for, and is another one's when the row is stored below it."""
    account = stored(plain, BybitAccount(user_id="ann", account_name="second", environment="testnet"))
    key = ApiCredential(account_id=account.account_id, api_key_id="k", api_secret="s")
    account.user_id = "bob"
    with pytest.raises(TenantViolation, match="account_id"):
        ApiCredentialRepository(plain, "ann").create(key)
    plain.rollback()


def test_what_was_done_before_a_refusal_is_kept(fleet: DatabaseFactory) -> None:
    """A change that is refused before the flush leaves the session and everybody else's changes in it good."""
    with fleet.get_session() as session:
        session.get_one(Run, "run-bob").gridcore_version = "bob's"
        with pytest.raises(TenantViolation):
            _given_away_loaded(session)
        with pytest.raises(TenantViolation):
            RunRepository(session, "ann").create(new_run("bob"))
        RunRepository(session, "ann").update(Run(run_id="run-ann", gridcore_version="ann's"))
    with fleet.get_session() as session:
        versions = session.scalars(select(Run.gridcore_version).order_by(Run.run_id)).all()
        assert versions == ["ann's", "bob's"]


# A run and its parents


def _second_account(session: Session) -> None:
    stored(session, BybitAccount(account_id="acc2-ann", user_id="ann", account_name="second", environment="testnet"))
    second = Strategy(strategy_id="str2-ann", account_id="acc2-ann", strategy_type="Grid", symbol="X", config_json={})
    stored(session, second)


MIXED = {
    "another user's account": {"account_id": "acc-bob"},
    "another user's strategy": {"strategy_id": "str-bob"},
    "another user's account and strategy": {"account_id": "acc-bob", "strategy_id": "str-bob"},
    "an own strategy of another account": {"strategy_id": "str2-ann"},
    "an own account that the strategy is not of": {"account_id": "acc2-ann"},
}


@pytest.mark.parametrize("across", [False, True], ids=["one user", "across users"])
@pytest.mark.parametrize("how", ["by id", "by object"])
def test_a_run_names_an_account_and_strategy_of_its_own_user(fleet: DatabaseFactory, how: str, across: bool) -> None:
    """And a strategy of that account; anything else is refused when it is inserted and when it is updated."""
    with fleet.get_session() as session:
        _second_account(session)

    def repository(session: Session) -> RunRepository:
        return RunRepository.across_users(session) if across else RunRepository(session, user_id="ann")

    def mixed(session: Session, wrong: dict[str, str], **values: Any) -> Run:
        if how == "by id":
            return Run(**(values | wrong))
        for name, key in wrong.items():
            model: type[Base] = BybitAccount if name == "account_id" else Strategy
            values.pop(name, None)
            values[name.removesuffix("_id")] = session.get_one(model, key)
        return Run(**values)

    own = {"user_id": "ann", "account_id": "acc-ann", "strategy_id": "str-ann", "run_type": "live", "status": "failed"}

    def create(session: Session, wrong: dict[str, str]) -> object:
        return repository(session).create(mixed(session, wrong, **own))

    def start(session: Session, wrong: dict[str, str]) -> object:
        return repository(session).start(mixed(session, wrong, **own))

    def update(session: Session, wrong: dict[str, str]) -> object:
        return repository(session).update(mixed(session, wrong, run_id="run-ann"))

    for wrong in MIXED.values():
        for attempt in (create, start, update):
            refused(fleet, TenantViolation, attempt, wrong)


def test_a_run_on_an_account_that_does_not_exist_is_refused(fleet: DatabaseFactory) -> None:
    """It is not the user's, whether the repository names him or the row itself; past repositories the key says so."""
    lost = new_run(account_id="acc-nobody")
    refused(fleet, TenantViolation, lambda session: RunRepository(session, "ann").create(lost))
    refused(fleet, TenantViolation, lambda session: RunRepository.across_users(session).create(lost))
    refused(fleet, IntegrityError, lambda session: stored(session, new_run(account_id="acc-nobody")))


def test_a_run_may_move_to_another_account_with_its_strategy(fleet: DatabaseFactory) -> None:
    """By keys and by objects, as long as both are the user's and belong together."""
    with fleet.get_session() as session:
        _second_account(session)
        runs = RunRepository(session, "ann")
        runs.update(Run(run_id="run-ann", account_id="acc2-ann", strategy_id="str2-ann"))
        parents = {"user": User, "account": BybitAccount, "strategy": Strategy}
        keys = {"user": "ann", "account": "acc-ann", "strategy": "str-ann"}
        objects = {name: session.get_one(model, keys[name]) for name, model in parents.items()}
        by_object = runs.create(Run(run_type="backtest", **objects))
    with fleet.get_session() as session:
        moved = session.get_one(Run, "run-ann")
        assert (moved.account_id, moved.strategy_id) == ("acc2-ann", "str2-ann")
        assert session.get_one(Run, by_object.run_id).account_id == "acc-ann"


def test_an_execution_names_a_run_and_account_of_one_user(fleet: DatabaseFactory) -> None:
    """The account has no foreign key, and is checked like the run."""

    def create(session: Session, execution: PrivateExecution) -> object:
        return PrivateExecutionRepository(session, "ann").create(execution)

    for values in ({"run_id": "run-bob"}, {"account_id": "acc-bob"}):
        given = execution_values(new_run(run_id="run-ann"), 7) | values
        refused(fleet, TenantViolation, create, PrivateExecution(**given))


# Across users


def test_tools_look_across_users(plain: Session) -> None:
    """By name only, and then at everybody; a user named in the call confines again."""
    runs = RunRepository.across_users(plain)
    assert sorted(run.run_id for run in runs.get_all()) == ["run-ann", "run-bob"]
    assert runs.get_by_id("run-bob") is not None
    assert len(runs.get_running()) == 2
    assert [run.run_id for run in runs.get_running("ann")] == ["run-ann"]
    assert runs.finish("run-ann").status == "completed"
    assert PrivateExecutionRepository.across_users(plain).exists_by_exec_id("exec-bob")


def test_tools_write_rows_that_belong_together(fleet: DatabaseFactory) -> None:
    """Anybody's, but not moved from one user to another."""
    with fleet.get_session() as session:
        RunRepository.across_users(session).create(new_run("bob", run_id="run-2"))
        RunRepository.across_users(session).update(Run(run_id="run-ann", gridcore_version="3"))
        ApiCredentialRepository.across_users(session).delete(ApiCredential(credential_id="cred-bob"))
    with fleet.get_session() as session:
        assert session.scalar(select(func.count(Run.run_id))) == 3
        assert session.get_one(Run, "run-ann").gridcore_version == "3"
    moved = new_run("bob", run_id="run-ann")
    refused(fleet, TenantViolation, lambda session: RunRepository.across_users(session).update(moved))


# Questions


def test_accounts_of_a_user(plain: Session) -> None:
    """By name; get_enabled_accounts leaves out the others."""
    for name, status in (("b", "enabled"), ("a", "disabled"), ("z", "error")):
        plain.add(BybitAccount(user_id="ann", account_name=name, environment="testnet", status=status))
    accounts = BybitAccountRepository(plain)
    assert [account.account_name for account in accounts.get_by_user_id("ann")] == ["a", "b", "main", "z"]
    assert [account.account_name for account in accounts.get_enabled_accounts("ann")] == ["b", "main"]


def test_credentials_of_an_account(plain: Session) -> None:
    """Oldest first, ties by id; the active one is told."""
    for number, hours in enumerate((3, 1, 1)):
        plain.add(
            ApiCredential(
                credential_id=f"cred-{number}",
                account_id="acc-ann",
                api_key_id="k",
                api_secret="s",
                is_active=False,
                created_at=START + timedelta(hours=hours),
            )
        )
    plain.flush()
    plain.get_one(ApiCredential, "cred-ann").created_at = START
    credentials = ApiCredentialRepository(plain, "ann")
    found = [credential.credential_id for credential in credentials.get_by_account_id("acc-ann")]
    assert found == ["cred-ann", "cred-1", "cred-2", "cred-0"]
    active = credentials.get_active_credential("acc-ann")
    assert active is not None
    assert active.credential_id == "cred-ann"
    active.is_active = False
    assert credentials.get_active_credential("acc-ann") is None


def test_strategies_of_an_account(plain: Session) -> None:
    """By symbol, all or the enabled ones, or the one on a symbol."""
    for symbol, enabled in (("XRPUSDT", True), ("ADAUSDT", False)):
        strategy = Strategy(account_id="acc-ann", strategy_type="Grid", symbol=symbol, config_json={})
        strategy.is_enabled = enabled
        plain.add(strategy)
    strategies = StrategyRepository(plain, "ann")
    assert [one.symbol for one in strategies.get_by_account_id("acc-ann")] == ["ADAUSDT", "BTCUSDT", "XRPUSDT"]
    assert [one.symbol for one in strategies.get_enabled_strategies("acc-ann")] == ["BTCUSDT", "XRPUSDT"]
    found = strategies.get_by_symbol("acc-ann", "ADAUSDT")
    assert found is not None
    assert found.symbol == "ADAUSDT"
    assert strategies.get_by_symbol("acc-ann", "DOGEUSDT") is None


def test_runs_come_newest_first(plain: Session) -> None:
    """Ties by id, backwards too; by account, type and status, with pages."""
    other = Strategy(strategy_id="str2", account_id="acc-ann", strategy_type="Grid", symbol="ETHUSDT", config_json={})
    stored(plain, other)
    for number, (hours, kind, status) in enumerate(
        ((2, "live", "completed"), (5, "shadow", "running"), (5, "live", "failed"), (1, "backtest", "completed"))
    ):
        run = new_run(run_id=f"run-{number}", run_type=kind, status=status, start_ts=START + timedelta(hours=hours))
        run.strategy_id = "str2" if number == 2 else "str-ann"
        plain.add(run)
    runs = RunRepository(plain, "ann")

    def ids(found: list[Run]) -> list[str]:
        return [run.run_id for run in found]

    assert ids(runs.get_by_user_id("ann")) == ["run-2", "run-1", "run-0", "run-3", "run-ann"]
    assert ids(runs.get_by_user_id("ann", limit=2, offset=1)) == ["run-1", "run-0"]
    assert ids(runs.get_running()) == ["run-1", "run-ann"]
    assert ids(runs.get_by_account_id("acc-ann")) == ids(runs.get_by_user_id("ann"))
    assert ids(runs.get_by_run_type("live")) == ["run-2", "run-0", "run-ann"]
    latest, of_strategy = runs.get_latest_by_type("live"), runs.get_latest_by_type("live", strategy_id="str-ann")
    assert latest is not None
    assert of_strategy is not None
    assert (latest.run_id, of_strategy.run_id) == ("run-2", "run-0")
    assert runs.get_latest_by_type("shadow", strategy_id="str2") is None


def test_runs_of_some_statuses(plain: Session) -> None:
    """Whichever way they are asked for; an empty list gives none, and a word alone or an unknown one is refused."""
    for number, status in enumerate(("completed", "failed", "completed")):
        plain.add(new_run(run_id=f"run-{number}", status=status, start_ts=START + timedelta(hours=number)))
    runs = RunRepository(plain, "ann")
    ways: list[Callable[..., list[Run]]] = [
        lambda **how: runs.get_by_user_id("ann", **how),
        lambda **how: runs.get_by_account_id("acc-ann", **how),
        lambda **how: runs.get_by_run_type("live", **how),
        lambda **how: [run for run in [runs.get_latest_by_type("live", **how)] if run is not None],
    ]
    for number, ask in enumerate(ways):
        one = slice(1 if number == 3 else None)
        assert [run.run_id for run in ask(statuses=["running", "failed"])] == ["run-1", "run-ann"][one]
        assert [run.run_id for run in ask(statuses={RunStatus.COMPLETED})] == ["run-2", "run-0"][one]
        assert ask(statuses=[]) == []
        assert ask(statuses=None)
        with pytest.raises(InvalidValueError, match="a list of words"):
            ask(statuses="running")
        with pytest.raises(InvalidValueError, match="'done' is not allowed"):
            ask(statuses=["done"])


def test_runs_that_were_active_at_an_instant(plain: Session) -> None:
    """From their first instant to their last; without an end those that are running still."""
    hour = timedelta(hours=1)
    plain.add_all(
        [
            new_run(run_id="run-early", start_ts=START - hour, end_ts=START, run_type="shadow"),
            new_run(run_id="run-late", start_ts=START + hour, end_ts=START + 2 * hour),
            new_run(run_id="run-unknown", start_ts=START - hour, status="failed"),
        ]
    )
    runs = RunRepository(plain, "ann")

    def ids(when: datetime, **how: Any) -> list[str]:
        return [run.run_id for run in runs.get_active_at(when, **how)]

    tick = timedelta(microseconds=1)
    assert ids(START - hour - tick) == []
    assert ids(START - hour) == ids(START - tick) == ["run-early"]
    assert ids(START) == ["run-ann", "run-early"]
    assert ids(START, run_types=["shadow"]) == ["run-early"]
    assert ids(START, run_types=[]) == ids(START, strategy_id="str-none") == []
    assert ids(START, strategy_id="str-ann") == ids(START)
    assert ids(START + tick) == ["run-ann"]
    assert ids(START + hour) == ids(START + 2 * hour) == ["run-late", "run-ann"]
    assert ids(START + 2 * hour + tick) == ["run-ann"]
    for wrong in (START.replace(tzinfo=None), None):
        with pytest.raises(InvalidValueError):
            runs.get_active_at(wrong)  # type: ignore[arg-type] # what the test is about
    with pytest.raises(InvalidValueError, match="a list of words"):
        ids(START, run_types="live")


def test_the_last_execution_of_a_run_an_account_or_both(plain: Session) -> None:
    """Before an instant if one is given; an account's id is no run's, and without either the question is refused."""
    plain.add(new_run(run_id="run-2"))
    plain.flush()
    executions = PrivateExecutionRepository(plain, "ann")
    rows = [("run-ann", "e-1", 1), ("run-2", "e-2", 2), ("run-2", "e-3", 3)]
    executions.bulk_create(
        execution_values(new_run(run_id=run), exec_id=key, exchange_ts=START + timedelta(hours=hours))
        for run, key, hours in rows
    )
    at = {hours: START + timedelta(hours=hours) for _, _, hours in rows}
    assert executions.get_last_execution_ts(account_id="acc-ann") == at[3]
    assert executions.get_last_execution_ts(account_id="acc-ann", before=at[3]) == at[2]
    assert executions.get_last_execution_ts(account_id="acc-ann", run_id="run-ann") == at[1]
    assert executions.get_last_execution_ts(run_id="run-2", before=at[2]) is None
    assert executions.get_last_execution_ts(account_id="acc-bob") is None
    with pytest.raises(InvalidValueError, match="run_id="):
        executions.get_last_execution_ts()
    with pytest.raises(TypeError):
        executions.get_last_execution_ts("acc-ann")  # type: ignore[call-arg] # what the test is about


def test_an_open_side_of_a_range_is_open_for_every_method_that_takes_one(session: Session) -> None:
    """No method with a start and an end takes None for a bound of the past or for one that nothing meets."""
    found = 0
    for kind in REPOSITORIES.values():
        for name, method in introspection.getmembers(kind, callable):
            parameters = {} if name.startswith("_") else introspection.signature(method).parameters
            for bound in {"start", "end", "before"} & set(parameters):
                found += 1
                assert "None" in parameters[bound].annotation, f"{kind.__name__}.{name}({bound})"
    assert found > 30
    trades = PublicTradeRepository(session)
    trades.bulk_create([trade_values(number) for number in range(3)])
    first, last = (trade_values(number)["exchange_ts"] for number in (0, 2))
    for bounds in ((), (None,), (None, None), (first, None), (None, last), (first, last), (first,)):
        assert len(trades.get_by_symbol_range("BTCUSDT", *bounds)) == 3
        assert len(list(trades.iter_symbol_range("BTCUSDT", *bounds))) == 3
    assert [trade.trade_id for trade in trades.get_by_symbol_range("BTCUSDT", last)] == ["trade-2"]
    assert [trade.trade_id for trade in trades.get_by_symbol_range("BTCUSDT", None, first)] == ["trade-0"]
    for bounds in ((first.replace(tzinfo=None),), (None, last.replace(tzinfo=None)), ("2025",)):
        with pytest.raises(InvalidValueError):
            trades.get_by_symbol_range("BTCUSDT", *bounds)


def test_trades_of_a_range_include_both_bounds(session: Session) -> None:
    """In order of time and, within one millisecond, of trade id; of one symbol, with a limit if one is given."""
    trades = PublicTradeRepository(session)
    at = [START + timedelta(milliseconds=number) for number in range(4)]
    rows = [trade_values(trade_id=f"t{number}", exchange_ts=when) for number, when in enumerate(at)]
    rows += [trade_values(trade_id="t9", exchange_ts=at[1]), trade_values(trade_id="t10", exchange_ts=at[1])]
    rows += [trade_values(trade_id="other", exchange_ts=at[1], symbol="ETHUSDT")]
    trades.bulk_create(reversed(rows))

    def ids(start: datetime, end: datetime, limit: int | None = None) -> list[str]:
        return [trade.trade_id for trade in trades.get_by_symbol_range("BTCUSDT", start, end, limit=limit)]

    assert ids(at[1], at[2]) == ["t1", "t10", "t9", "t2"]
    assert ids(at[0], at[3], limit=2) == ["t0", "t1"]
    assert ids(at[3], at[3]) == ["t3"]
    assert ids(at[2], at[1]) == []
    half = timedelta(microseconds=500)
    assert ids(at[0] + half, at[3] - half) == ["t1", "t10", "t9", "t2"]
    assert ids(at[0].astimezone(), at[0].astimezone()) == ["t0"]
    assert trades.get_last_trade_ts("BTCUSDT") == at[3]
    assert trades.get_last_trade_ts("DOGEUSDT") is None
    assert trades.exists_by_trade_id("t3")
    assert trades.exists_by_trade_id("other", "ETHUSDT")
    assert not trades.exists_by_trade_id("other", "BTCUSDT")
    assert not trades.exists_by_trade_id("t4")


def test_executions_of_a_range_include_both_bounds(plain: Session) -> None:
    """In order of time and execution id; either bound may be left out."""
    executions = PrivateExecutionRepository(plain, "ann")
    run = new_run(run_id="run-ann")
    plain.delete(executions.get_all()[0])
    at = [START + timedelta(milliseconds=number) for number in range(3)]
    rows = [execution_values(run, exec_id=f"e{number}", exchange_ts=when) for number, when in enumerate(at)]
    rows += [execution_values(run, exec_id="e10", exchange_ts=at[1])]
    executions.bulk_create(reversed(rows))

    def ids(start: datetime | None = None, end: datetime | None = None, limit: int | None = None) -> list[str]:
        found = executions.get_by_run_range("run-ann", start, end, limit=limit)
        return [execution.exec_id for execution in found]

    assert ids() == ["e0", "e1", "e10", "e2"]
    assert ids(at[1], at[1]) == ["e1", "e10"]
    assert ids(at[1]) == ["e1", "e10", "e2"]
    assert ids(None, at[1]) == ["e0", "e1", "e10"]
    assert ids(at[0], at[2], limit=3) == ["e0", "e1", "e10"]
    assert ids(at[2], at[0]) == []
    assert executions.get_last_execution_ts(run_id="run-ann") == at[2]
    assert executions.get_last_execution_ts(run_id="run-none") is None
    assert executions.exists_by_exec_id("e10")
    assert executions.exists_by_exec_id("e10", "run-ann")
    assert not executions.exists_by_exec_id("e10", "run-other")
    assert not executions.exists_by_exec_id("e11")


# The life of a run


def test_a_run_starts_and_finishes(fleet: DatabaseFactory) -> None:
    """start() makes it running, whatever it says; finish() ends it now, once."""
    with fleet.get_session() as session:
        runs = RunRepository(session, "ann")
        run = runs.start(new_run(run_type="backtest", status="completed"))
        assert (run.status, run.end_ts) == ("running", None)
        before = datetime.now(UTC)
        assert runs.finish(run.run_id) is run
        assert run.status == "completed"
        assert run.end_ts is not None
        assert before <= run.end_ts <= datetime.now(UTC)
        ended = run.end_ts
    with fleet.get_session() as session:
        runs = RunRepository(session, "ann")
        assert runs.finish(run.run_id).end_ts == ended
        with pytest.raises(RunEndedError, match="has already ended as completed"):
            runs.fail(run.run_id)


def test_a_run_fails(plain: Session) -> None:
    """fail() ends it now, once, and it cannot be finished afterwards."""
    runs = RunRepository(plain, "ann")
    before = datetime.now(UTC)
    failed = runs.fail("run-ann")
    assert failed.status == "failed"
    assert failed.end_ts is not None
    assert before <= failed.end_ts <= datetime.now(UTC)
    ended = failed.end_ts
    assert runs.fail("run-ann").end_ts == ended
    with pytest.raises(RunEndedError) as refusal:
        runs.finish("run-ann")
    assert (refusal.value.run_id, refusal.value.status) == ("run-ann", "failed")
    with pytest.raises(RowNotFoundError):
        runs.finish("run-none")


@pytest.mark.parametrize(
    ("executions", "end"),
    [
        (["-1 day", "4 h", "5 h"], START + timedelta(hours=5, microseconds=7)),
        # Recorded late: it must not end the run before its start.
        (["-1 day"], START),
        ([], START),
    ],
)
def test_starting_closes_the_orphan_of_the_same_strategy_and_type(
    fleet: DatabaseFactory, executions: list[str], end: datetime
) -> None:
    """As failed, with the time of its last execution or else of its start; nothing else is touched."""
    after = {"-1 day": timedelta(days=-1), "4 h": timedelta(hours=4), "5 h": timedelta(hours=5, microseconds=7)}
    with fleet.get_session() as session:
        session.execute(PrivateExecution.__table__.delete())  # type: ignore[attr-defined] # a Table, as declared
        _second_account(session)
        runs: dict[str, dict[str, Any]] = {
            "other-type": {"run_type": "shadow", "status": "running"},
            "other-strategy": {"account_id": "acc2-ann", "strategy_id": "str2-ann", "status": "running"},
            "ended": {"status": "completed", "end_ts": START},
        }
        for run_id, values in runs.items():
            stored(session, new_run(run_id=run_id, **values))
        for number, when in enumerate(executions):
            of_run = execution_values(new_run(run_id="run-ann"), number, exchange_ts=START + after[when])
            stored(session, PrivateExecution(**of_run))
        new = RunRepository(session, "ann").start(new_run(run_id="new"))
    with fleet.get_session() as session:
        found = {run.run_id: (run.status, run.end_ts) for run in session.scalars(select(Run))}
    assert found == {
        "run-ann": ("failed", end),
        "run-bob": ("running", None),
        "other-type": ("running", None),
        "other-strategy": ("running", None),
        "ended": ("completed", START),
        new.run_id: ("running", None),
    }


def test_orphans_are_closed_for_a_strategy_given_as_an_object(plain: Session) -> None:
    """The same as by its id."""
    account, strategy = plain.get_one(BybitAccount, "acc-ann"), plain.get_one(Strategy, "str-ann")
    RunRepository(plain, "ann").start(Run(user_id="ann", account=account, strategy=strategy, run_type="live"))
    assert plain.get_one(Run, "run-ann").status == "failed"
    assert plain.get_one(Run, "run-bob").status == "running"


def test_a_start_that_is_refused_closes_nothing(fleet: DatabaseFactory) -> None:
    """What runs goes on running when the new run cannot be."""
    refused(fleet, TenantViolation, lambda session: RunRepository(session, "ann").start(new_run(user_id="bob")))
    refused(fleet, IntegrityError, lambda session: RunRepository(session, "ann").start(new_run(run_id="run-ann")))


def test_close_orphans_counts_what_it_closed(plain: Session) -> None:
    """And closes it once."""
    runs = RunRepository(plain)
    assert runs.close_orphans("str-ann", "live", user_id="ann") == 1
    assert runs.close_orphans("str-ann", "live", user_id="ann") == 0
    assert runs.get_running("ann") == []


# Many rows at once (test_bulk.py has the rest)


def test_bulk_create_counts_the_rows_really_inserted(plain: Session) -> None:
    """Duplicates inside a call and of earlier rows are skipped; mappings and objects mix; a generator is enough."""
    run = new_run(run_id="run-ann")
    trades, executions = PublicTradeRepository(plain), PrivateExecutionRepository(plain, "ann")
    rows = (trade_values(number % 4) for number in range(6))
    assert trades.bulk_create(rows).inserted == 4
    assert trades.bulk_create([PublicTrade(**trade_values(3)), trade_values(4)]).inserted == 1
    fills: list[Any] = [
        PrivateExecution(**execution_values(run, 1)),
        execution_values(run, 1),
        execution_values(run, 2),
    ]
    assert executions.bulk_create(fills).inserted == 2
    assert executions.bulk_create(iter(fills)).inserted == 0
    assert (len(trades.get_all()), len(executions.get_all())) == (5, 3)


def test_the_same_ids_of_another_key_are_other_rows(plain: Session) -> None:
    """Another symbol or day has its own trade 1, another run its own copy of an execution."""
    trades = PublicTradeRepository(plain)
    day = timedelta(days=1)
    rows = [
        trade_values(),
        trade_values(symbol="ETHUSDT"),
        trade_values(exchange_ts=trade_values()["exchange_ts"] + day),
    ]
    assert trades.bulk_create(rows).inserted == 3
    plain.add(new_run(run_id="second"))
    plain.flush()
    both = [execution_values(new_run(run_id=run_id)) for run_id in ("run-ann", "second")]
    assert PrivateExecutionRepository(plain, "ann").bulk_create(both).inserted == 2
