"""The audit trail: every write of a session, in its transaction, and nothing that can be taken back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import delete, event, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from shared.db import (
    ApiCredential,
    ApiCredentialRepository,
    AuditError,
    AuditLog,
    AuditLogRepository,
    BybitAccount,
    DatabaseFactory,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTradeRepository,
    Run,
    RunRepository,
    Strategy,
    StrategyRepository,
    TenantScopeError,
    TenantViolation,
    User,
)
from shared.db.encryption import Encryption, KeyRing, use_encryption
from shared.db.tenancy.user_ids import UNSET, UserId
from shared.db.tests.roles import Roles, administrator, factory
from shared.db.tests.support import execution_values, trade_values, with_and_without_policies

REQUEST = {"actor": "support", "ip_address": "203.0.113.9", "user_agent": "console/1"}


@pytest.fixture
def audited(db: DatabaseFactory) -> DatabaseFactory:
    """A database with an audit log, in which ann and bob have a run each; the log of their making is passed over."""
    with db.get_session() as session:
        for name in ("ann", "bob"):
            session.add(User(user_id=name, username=name))
            session.add(BybitAccount(account_id=name, user_id=name, account_name="main", environment="testnet"))
            session.add(
                Strategy(
                    strategy_id=name, account_id=name, strategy_type="Grid", symbol="BTCUSDT", config_json={"a": 1}
                )
            )
            session.add(Run(run_id=name, user_id=name, account_id=name, strategy_id=name, run_type="live"))
    db.enable_audit()
    return db


def entries(db: DatabaseFactory) -> list[AuditLog]:
    """Everything that was recorded, oldest first, but for the switching itself."""
    with db.get_session() as session:
        return list(session.scalars(select(AuditLog).where(AuditLog.entity != "AuditLog").order_by(AuditLog.id)))


def told(db: DatabaseFactory) -> list[tuple[Any, ...]]:
    """The same in short."""
    return [(e.user_id, e.action, e.entity, e.entity_id, e.row_count, e.old_values, e.new_values) for e in entries(db)]


def switching(db: DatabaseFactory) -> list[tuple[Any, ...]]:
    """Who switched the log on or off, oldest first."""
    with db.get_session() as session:
        about_itself = select(AuditLog).where(AuditLog.entity == "AuditLog").order_by(AuditLog.id)
        return [(e.user_id, e.actor, e.action, e.entity_id, e.new_values) for e in session.scalars(about_itself)]


def test_nothing_is_recorded_before_the_log_is_switched_on(db: DatabaseFactory) -> None:
    """`create_tables()` makes the log, and sessions leave it alone."""
    with db.get_session() as session:
        session.add(User(username="ann"))
        session.scalars(select(User).from_statement(insert(User).values(username="bob").returning(User))).one()
    assert (entries(db), switching(db)) == ([], [])


def test_switching_on_and_off_is_recorded(db: DatabaseFactory) -> None:
    """Once each time, with who did it; while the log is off nothing is added, and nothing goes."""
    for name, switch in (("ann", db.enable_audit), ("bob", db.disable_audit), ("carl", db.enable_audit)):
        switch(actor=name)
        switch()
        with db.get_session() as session:
            session.add(User(user_id=name, username=name))
    assert [entry.entity_id for entry in entries(db)] == ["ann", "carl"]
    assert switching(db) == [
        (None, actor, "update", "recording", {"recording": recording})
        for actor, recording in (("ann", True), ("bob", False), ("carl", True))
    ]


def test_who_switches_is_the_login_unless_told(db: DatabaseFactory) -> None:
    """SQLite has no logins."""
    db.enable_audit()
    assert [row[1] for row in switching(db)] == [db.settings.url.username]


def test_other_processes_find_out_by_the_database(audited: DatabaseFactory) -> None:
    """A factory of another process, in whose settings nothing says so, records; after the switch it does not."""
    if audited.settings.is_memory:
        return
    for name, recorded in (("first", True), ("second", False)):
        with DatabaseFactory(audited.settings) as other, other.get_session() as session:
            session.add(User(user_id=name, username=name))
        assert (name in [entry.entity_id for entry in entries(audited)]) == recorded
        audited.disable_audit()


def test_whether_to_record_is_asked_once(db: DatabaseFactory) -> None:
    """While the log is off a process pays for it with its first write alone."""
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    event.listen(db.engine, "before_cursor_execute", note)
    for name in ("ann", "bob", "carl"):
        with db.get_session() as session:
            session.add(User(user_id=name, username=name))
            session.flush()
            session.execute(update(User).where(User.user_id == name).values(email=name))
        with db.get_session(user_id=name) as session:
            session.execute(update(User).values(email=f"{name}@example.com"))
    assert sum("audit_log" in statement for statement in asked) == 1


def test_a_change_is_not_recorded_because_a_user_says_so(postgresql_url: Any) -> None:
    """Under the policies raw SQL may write an own entry, and neither one that switches nor a table in its place."""
    forged = (
        "INSERT INTO audit_log (user_id, action, entity, entity_id, new_values) "
        """VALUES ({}, 'update', 'AuditLog', 'recording', '{{"recording"\\: false}}')"""
    )
    with DatabaseFactory(postgresql_url) as db:
        with db.get_session() as session:
            session.add_all([User(user_id="ann", username="ann"), User(user_id="bob", username="bob")])
        db.enable_audit()
        db.enable_row_security()
    with DatabaseFactory(postgresql_url) as db:
        with db.get_session(user_id="ann") as session:
            session.execute(text("CREATE TEMP TABLE audit_log (LIKE audit_log INCLUDING ALL)"))
            session.execute(text(forged.format("NULL")))
            session.get_one(User, "ann").email = "temporary@example.com"
        with db.get_session(user_id="ann") as session:
            session.execute(text(forged.format("'ann'")))
        with pytest.raises(TenantViolation), db.get_session(user_id="ann") as session:
            session.execute(text(forged.format("NULL")))
        with db.get_session(user_id="bob") as session:
            session.get_one(User, "bob").email = "bob@example.com"
    with DatabaseFactory(postgresql_url) as db:
        with db.get_session(user_id="bob") as session:
            session.get_one(User, "bob").email = "again@example.com"
        assert [entry.entity_id for entry in entries(db)] == ["bob", "bob"]


@pytest.mark.parametrize("granted", [False, True])
def test_a_login_that_may_not_read_the_log_works_without_it(
    owner: DatabaseFactory, roles: Roles, granted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was granted a few tables alone; it is told so, once."""
    owner.enable_audit()
    login = roles.login("bot")
    grants = ["SELECT, INSERT ON users"]
    if granted:
        grants += ["SELECT, INSERT ON audit_log", "USAGE ON SEQUENCE audit_log_id_seq"]
    administrator(owner, roles, *(f'GRANT {what} TO "{login}"' for what in grants))
    with factory(owner.settings.url.set(username=login), owner.settings.tenant_role) as theirs:
        for name in ("new", "newer"):
            with theirs.get_session() as session:
                session.add(User(user_id=name, username=name))
    assert [entry.entity_id for entry in entries(owner)] == ["new", "newer"] * granted
    assert ["GRANT SELECT, INSERT" in record.message for record in caplog.records] == [True] * (not granted)


def test_an_entry_says_who_when_and_from_where(audited: DatabaseFactory) -> None:
    """Owner of the data, actor, time in UTC, and the request, from session.info."""
    before = datetime.now(UTC)
    with audited.get_session() as session:
        session.info.update(REQUEST)
        session.get_one(Run, "ann").status = "failed"
    (entry,) = entries(audited)
    assert (entry.user_id, entry.actor, entry.ip_address, entry.user_agent) == ("ann", *REQUEST.values())
    assert before <= entry.created_at <= datetime.now(UTC)
    assert repr(entry).startswith("<AuditLog id=")


def test_the_actor_is_the_user_of_the_session_unless_told(audited: DatabaseFactory) -> None:
    """A user's own session needs no further word; a plain one has nobody."""
    with audited.get_session(user_id="ann") as session:
        session.get_one(Run, "ann").status = "failed"
    with audited.get_session() as session:
        session.get_one(Run, "bob").status = "failed"
    assert [(entry.user_id, entry.actor) for entry in entries(audited)] == [("ann", "ann"), ("bob", None)]


@pytest.mark.parametrize("user_id", [UNSET, "ann"])
def test_a_flush_records_old_and_new_values(audited: DatabaseFactory, user_id: UserId) -> None:
    """Created, changed and deleted rows: of a change only what changed, with edits inside JSON."""
    with audited.get_session(user_id=user_id) as session:
        session.add(Strategy(strategy_id="new", account_id="ann", strategy_type="Grid", symbol="X", config_json={}))
        session.flush()
        strategy = session.get_one(Strategy, "ann")
        strategy.config_json["a"] = 2
        strategy.is_enabled = False
        session.flush()
        session.delete(session.get_one(Strategy, "new"))
    created, changed, deleted = told(audited)
    assert created[:5] == ("ann", "create", "Strategy", "new", 1)
    assert (created[5], created[6]["symbol"], created[6]["is_enabled"]) == (None, "X", True)
    assert changed[:5] == ("ann", "update", "Strategy", "ann", 1)
    assert changed[5:] == (
        {"config_json": {"a": 1}, "is_enabled": True},
        {"config_json": {"a": 2}, "is_enabled": False},
    )
    assert deleted[:5] == ("ann", "delete", "Strategy", "new", 1)
    assert (deleted[5]["symbol"], deleted[6]) == ("X", None)


def test_an_overwritten_value_is_recorded_though_it_was_not_loaded(audited: DatabaseFactory) -> None:
    """An expired object and a merged one: the old value is what stood in the database."""
    with audited.get_session() as session:
        run = session.get_one(Run, "ann")
        session.expire(run)
        run.gridcore_version = "2"
        run.status = "completed"
        session.flush()
        session.merge(Run(run_id="bob", status="failed"))
    assert [(row[3], row[5]["status"], row[6]["status"]) for row in told(audited)] == [
        ("ann", "running", "completed"),
        ("bob", "running", "failed"),
    ]


@pytest.mark.parametrize("user_id", [UNSET, "ann"])
def test_an_update_statement_records_each_row(audited: DatabaseFactory, user_id: UserId) -> None:
    """ORM update() with a criterion, with an expression, and by primary key: one entry a row that changed."""
    with audited.get_session(user_id=user_id) as session:
        session.execute(update(Run).where(Run.run_type == "live").values(gridcore_version="1" + Run.user_id))
        session.execute(update(Run), [{"run_id": "ann", "status": "failed"}])
        session.execute(update(Run).where(Run.run_id == "nobody").values(status="failed"))
    rows = told(audited)
    assert ("ann", "update", "Run", "ann", 1, {"status": "running"}, {"status": "failed"}) in rows
    users = ["ann", "bob"] if user_id is UNSET else ["ann"]
    for user in users:
        assert (user, "update", "Run", user, 1, {"gridcore_version": None}, {"gridcore_version": "1" + user}) in rows
    assert len(rows) == 1 + len(users)


@pytest.mark.parametrize("user_id", [UNSET, "ann"])
def test_a_delete_statement_records_each_row(audited: DatabaseFactory, user_id: UserId) -> None:
    """ORM delete(): what was there stands in the log, in a user's session the user's own rows alone."""
    with audited.get_session(user_id=user_id) as session:
        session.execute(delete(Run).where(Run.status == "running"))
    rows = told(audited)
    assert sorted(row[:5] for row in rows) == [
        (user, "delete", "Run", user, 1) for user in (["ann", "bob"] if user_id is UNSET else ["ann"])
    ]
    assert all(row[5]["status"] == "running" for row in rows)


@pytest.mark.parametrize("user_id", [UNSET, "ann"])
def test_an_insert_statement_records_each_row_with_its_key(audited: DatabaseFactory, user_id: UserId) -> None:
    """insert() with values, with one mapping and with several, the keys made by Python included."""
    values = {"account_id": "ann", "strategy_type": "Grid", "config_json": {}}
    with audited.get_session(user_id=user_id) as session:
        session.execute(insert(Strategy).values(values | {"symbol": "A"}))
        session.execute(insert(Strategy), values | {"symbol": "B"})
        session.execute(insert(Strategy), [values | {"symbol": symbol} for symbol in "CD"])
        session.execute(insert(Strategy).values([values | {"strategy_id": "e", "symbol": "E"}]))
        stored = {
            s.symbol: s.strategy_id for s in session.scalars(select(Strategy).where(Strategy.symbol.in_(list("ABCDE"))))
        }
    assert [(row[0], row[1], row[3], row[6]["symbol"]) for row in told(audited)] == [
        ("ann", "create", stored[symbol], symbol) for symbol in "ABCDE"
    ]


def test_core_statements_of_a_session_are_recorded_too(audited: DatabaseFactory) -> None:
    """A plain session's update() of a table object leaves the same entry."""
    runs: Any = Run.__table__
    with audited.get_session() as session:
        session.execute(update(runs).where(runs.c.run_id == "ann").values(status="failed"))
    assert told(audited) == [("ann", "update", "Run", "ann", 1, {"status": "running"}, {"status": "failed"})]


@pytest.mark.parametrize("keys", [None, "k1:" + "A" * 43 + "="])
def test_a_secret_is_recorded_as_changed(audited: DatabaseFactory, keys: str | None) -> None:
    """By flush, rotation, statement and deletion: neither the secret nor its ciphertext is in the log."""
    if keys is not None:
        use_encryption(audited.engine.dialect, Encryption(KeyRing.parse(keys)))
    with audited.get_session(user_id="ann") as session:
        credentials = ApiCredentialRepository(session)
        credentials.create(ApiCredential(account_id="ann", api_key_id="1", api_secret="canary-1"))
        new = credentials.rotate("ann", "2", "canary-2")
        new.api_secret = "canary-3"
        session.flush()
        session.execute(update(ApiCredential).values(api_key_id="3"))
        session.delete(new)
    rows = entries(audited)
    assert not any(
        word in str((e.old_values, e.new_values)) for e in rows for word in ("canary", "enc:", "StoredSecret")
    )
    told_of = [(entry.old_values or {}, entry.new_values or {}) for entry in rows]
    assert [new["api_secret"] for _, new in told_of if "api_secret" in new] == ["changed"] * 3
    assert told_of[-1][0]["api_secret"] == "changed"


@pytest.mark.parametrize("user_id", [UNSET, "ann"])
def test_rows_by_the_million_are_one_entry_a_call(audited: DatabaseFactory, user_id: UserId) -> None:
    """bulk_create, a flush and statements over trades and executions record how many rows, not which."""
    with audited.get_session(user_id=user_id) as session:
        run = session.get_one(Run, "ann")
        PublicTradeRepository(session).bulk_create([trade_values(number) for number in range(7)])
        PublicTradeRepository(session).bulk_create([trade_values(number) for number in range(7)])
        executions = PrivateExecutionRepository(session, user_id="ann")
        executions.bulk_create([execution_values(run, number) for number in range(5)])
        session.add_all([PrivateExecution(**execution_values(run, number)) for number in range(10, 13)])
        session.flush()
        session.execute(insert(PrivateExecution), [execution_values(run, number) for number in range(20, 24)])
        session.execute(update(PrivateExecution).where(PrivateExecution.exec_id < "exec-3").values(symbol="X"))
        session.execute(delete(PrivateExecution))
    rows = [(row[1], row[2], row[3], row[4]) for row in told(audited)]
    updated = rows[4][3]
    assert rows == [
        ("create", "PublicTrade", None, 7),
        ("create", "PrivateExecution", None, 5),
        ("create", "PrivateExecution", None, 3),
        ("create", "PrivateExecution", None, 4),
        ("update", "PrivateExecution", None, updated),
        ("delete", "PrivateExecution", None, 12),
    ]
    assert updated > 0
    assert [row[0] for row in told(audited)][1:3] == ["ann", "ann"]


def test_a_changed_execution_is_recorded_by_itself(audited: DatabaseFactory) -> None:
    """Who rewrites history through an object is seen with old and new value."""
    with audited.get_session(user_id="ann") as session:
        run = session.get_one(Run, "ann")
        PrivateExecutionRepository(session).bulk_create([execution_values(run)])
        session.scalars(select(PrivateExecution)).one().symbol = "X"
    assert told(audited)[-1][5:] == ({"symbol": "BTCUSDT"}, {"symbol": "X"})


def test_an_undone_change_leaves_no_entry(audited: DatabaseFactory) -> None:
    """Rolled back, or in a savepoint that was: the entry goes with its change."""
    with audited.get_session() as session:
        session.get_one(Run, "ann").status = "failed"
        session.flush()
        session.rollback()
    with audited.get_session() as session:
        savepoint = session.begin_nested()
        session.execute(update(Run).values(status="failed"))
        savepoint.rollback()
    assert entries(audited) == []


TAMPERING = {
    "sqlite": "INSERT OR REPLACE INTO audit_log (id, action, entity) SELECT id, 'create', 'User' FROM audit_log",
    "postgresql": "TRUNCATE audit_log",
    "mysql": "REPLACE INTO audit_log (id, action, entity) SELECT id, 'create', 'User' FROM audit_log",
}


@pytest.mark.parametrize("change", ["UPDATE audit_log SET actor = 'nobody'", "DELETE FROM audit_log", None])
def test_the_database_refuses_to_change_an_entry(audited: DatabaseFactory, change: str | None) -> None:
    """UPDATE, DELETE and what amounts to them are refused to everybody, the owner of the table included."""
    with audited.get_session() as session:
        session.get_one(Run, "ann").status = "failed"
    before = told(audited)
    with pytest.raises(IntegrityError, match="append-only"), audited.get_session() as session:
        session.execute(text(change or TAMPERING[audited.engine.dialect.name]))
    assert told(audited) == before


def _add(session: Session) -> None:
    AuditLogRepository(session, user_id="ann").create(AuditLog(user_id="ann", action="create", entity="Run"))


def _change(session: Session) -> None:
    session.scalars(select(AuditLog)).all()[-1].actor = "nobody"


def _delete(session: Session) -> None:
    session.delete(session.scalars(select(AuditLog)).all()[-1])


@pytest.mark.parametrize(
    "write",
    [
        _add,
        _change,
        _delete,
        lambda session: session.execute(insert(AuditLog), [{"user_id": "ann", "action": "create", "entity": "Run"}]),
        lambda session: session.execute(update(AuditLog).values(actor="nobody")),
        lambda session: session.execute(delete(AuditLog)),
    ],
)
def test_a_session_refuses_to_write_entries_by_hand(audited: DatabaseFactory, write: Any) -> None:
    """Neither objects nor statements: what the log holds is what the sessions saw."""
    with audited.get_session() as session:
        session.get_one(Run, "ann").status = "failed"
    with pytest.raises(AuditError), audited.get_session() as session:
        write(session)
    assert len(entries(audited)) == 1


def _two_days(db: DatabaseFactory) -> tuple[datetime, datetime]:
    """A change of ann's, an instant, one of bob's, an instant, another one of ann's."""
    instants = []
    for user in ("ann", "bob", "ann"):
        with db.get_session(user_id=user) as session:
            run = session.get_one(Run, user)
            run.gridcore_version = (run.gridcore_version or "") + "1"
        instants.append(entries(db)[-1].created_at)
    return instants[0], instants[2]


def test_the_log_is_asked_by_user_by_row_and_by_action(audited: DatabaseFactory) -> None:
    """Newest first, bounds included, each user his own."""
    first, last = _two_days(audited)
    with audited.get_session() as session:
        log = AuditLogRepository(session)
        assert [e.created_at for e in log.get_by_user_id("ann")] == [last, first]
        assert [e.created_at for e in log.get_by_user_id("ann", first, first)] == [first]
        assert [e.created_at for e in log.get_by_user_id("ann", first + timedelta(microseconds=1))] == [last]
        assert [e.created_at for e in log.get_by_user_id("ann", limit=1)] == [last]
        assert len(log.get_by_resource("Run", "ann", user_id="ann")) == 2
        assert log.get_by_resource("Run", "bob", user_id="ann") == []
        assert log.get_by_resource("Run", "ann", None, first, user_id="ann") == log.get_by_user_id("ann", None, first)
        assert len(log.get_by_action("update", user_id="ann")) == 2
        assert log.get_by_action("delete", user_id="ann") == []
        assert len(AuditLogRepository.across_users(session).get_by_action("update", first, last)) == 3
        with pytest.raises(TenantScopeError):
            log.get_by_action("update")


@pytest.mark.parametrize("policies", [False, True])
def test_a_user_reads_his_own_entries_alone(audited: DatabaseFactory, policies: bool) -> None:
    """By repository, by statement and by key, with the server's policies and without."""
    if policies and audited.engine.dialect.name == "postgresql":
        audited.enable_row_security()
    _two_days(audited)
    foreign = next(entry.id for entry in entries(audited) if entry.user_id == "bob")
    with audited.get_session(user_id="ann") as session:
        assert {entry.user_id for entry in session.scalars(select(AuditLog))} == {"ann"}
        assert session.get(AuditLog, foreign) is None
        assert len(AuditLogRepository(session).get_by_action("update")) == 2
        with pytest.raises(TenantScopeError):
            AuditLogRepository(session).get_by_user_id("bob")


def test_policies_show_a_user_besides_his_own_entries_whether_the_log_is_on(postgresql_url: Any) -> None:
    """To raw SQL, since a user's session has to know; those of other users, and about nobody's rows, stay hidden."""
    with DatabaseFactory(postgresql_url) as db:
        db.enable_row_security()
        with db.get_session() as session:
            session.add_all([User(user_id="ann", username="ann"), User(user_id="bob", username="bob")])
        db.enable_audit()
        assert db.row_security_status().enabled
        for user in ("ann", "bob"):
            with db.get_session(user_id=user) as session:
                session.get_one(User, user).email = f"{user}@example.com"
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create([trade_values(1)])
        with db.get_session(user_id="ann") as session:
            found = session.connection().execute(text("SELECT user_id, entity FROM audit_log ORDER BY id")).all()
    assert [tuple(row) for row in found] == [(None, "AuditLog"), ("ann", "User")]


def test_enabling_twice_and_dropping_all_tables(audited: DatabaseFactory) -> None:
    """Enabled again it keeps its entries; `drop_tables()` takes it along, and the schema can be made anew."""
    with audited.get_session() as session:
        session.get_one(Run, "ann").status = "failed"
    audited.enable_audit()
    assert (len(entries(audited)), len(switching(audited))) == (1, 1)
    audited.drop_tables()
    audited.create_tables()
    with audited.get_session() as session:
        session.add(User(username="ann"))
    audited.enable_audit()
    assert entries(audited) == []


def test_what_repositories_do_is_recorded(audited: DatabaseFactory) -> None:
    """A repository's verbs are recorded like anything else."""
    with audited.get_session(user_id="ann") as session:
        RunRepository(session).finish("ann")
        StrategyRepository(session).delete(session.get_one(Strategy, "ann"))
    assert [row[1:4] for row in told(audited)] == [("update", "Run", "ann"), ("delete", "Strategy", "ann")]


def test_what_info_says_does_not_file_an_entry_under_another_user(audited: DatabaseFactory) -> None:
    """Whose an entry is, the session's guard says; without an actor the entry names the session's own user."""
    for _ in with_and_without_policies(audited):
        with audited.get_session(user_id="ann") as session:
            session.info["user_id"] = "bob"
            session.get_one(User, "ann").email = f"{uuid4()}@example.com"
        with audited.get_session() as plain:
            plain.info["user_id"] = "ann"
            plain.get_one(User, "bob").email = f"{uuid4()}@example.com"
        recorded = [(entry.user_id, entry.actor, entry.entity_id) for entry in entries(audited)]
        assert recorded[-2:] == [("ann", "ann", "ann"), ("bob", None, "bob")]
