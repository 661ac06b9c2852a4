"""PostgreSQL's row-level security: whom it holds, what undoes it, and who is told.

That users' sessions are confined under the policies is for the tenancy suites, which run with and without them.
"""

from __future__ import annotations

import tempfile
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import psycopg2
import psycopg2.errors
import pytest
from sqlalchemy import URL, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from shared.db import (
    ConnectionLostError,
    DatabaseFactory,
    DatabaseUnreachableError,
    RowSecurityError,
    Run,
    TenantViolation,
    UserSession,
)
from shared.db.tables import OWNERSHIP, primary_key
from shared.db.tests.cutting_proxy import CuttingProxy
from shared.db.tests.fleet import everything_of, fill
from shared.db.tests.roles import Roles, administrator, driver, factory
from shared.db.tests.support import in_children, run_on_server

SECURED = {model: entry for model, entry in OWNERSHIP.items() if entry is not None and model.__name__ != "AuditLog"}
TABLES = sorted(model.__tablename__ for model in SECURED)


def runs_seen(url: URL, role: str | None, user: str | None) -> list[str] | str:
    """The runs that a login sees, as itself or in a role, with the setting or without; "refused" if it may not look."""
    with driver(url) as connection, connection.cursor() as cursor:
        try:
            if user is not None:
                cursor.execute("SELECT set_config('shared_db.user_id', %s, true)", (user,))
            if role is not None:
                cursor.execute(f'SET LOCAL ROLE "{role}"')
            cursor.execute("SELECT run_id FROM runs ORDER BY 1")
        except psycopg2.errors.InsufficientPrivilege:
            return "refused"
        return [run_id for (run_id,) in cursor]


# Whom it holds


def test_neither_the_role_nor_the_user_outlives_the_transaction(policed_fleet: DatabaseFactory) -> None:
    """Nor where no raw SQL ran, after which the connection would be swept."""
    settings = policed_fleet.settings.model_copy(update={"pool_size": 1, "max_overflow": 0})
    with DatabaseFactory(settings) as db:
        with db.get_session(user_id="ann") as session:
            assert session.scalars(select(Run.run_id)).all() == ["run-ann"]
        with db.engine.connect() as connection:
            left = "SELECT current_setting('role'), current_setting('shared_db.user_id', true)"
            assert tuple(connection.exec_driver_sql(left).one()) == ("none", "")


def test_only_the_tenant_role_is_held_and_unset_it_sees_nothing(owner: DatabaseFactory, roles: Roles) -> None:
    """Owner and superuser see all, as themselves; the role, whoever adopts it, the set user's rows; others nothing."""
    tenant, url = owner.settings.tenant_role, owner.settings.url
    with pytest.raises(RowSecurityError):
        owner.enable_row_security()
    administrator(owner, roles, f'CREATE ROLE "{tenant}"', f'GRANT "{tenant}" TO "{url.username}"')
    owner.enable_row_security()
    stranger, reader, member = roles.login("stranger"), roles.login("reader"), roles.login("member")
    administrator(owner, roles, f'GRANT SELECT ON runs TO "{reader}"', f'GRANT "{tenant}" TO "{member}"')

    everybody, settings = ["run-ann", "run-bob"], (None, "", "ann", "nobody")
    nothing: list[list[str]] = [[]] * 4
    own: list[list[str]] = [[], [], ["run-ann"], []]
    superuser = roles.server.set(database=url.database)
    matrix: list[tuple[URL, str | None, Any]] = [
        (url, None, [everybody] * 4),
        (superuser, None, [everybody] * 4),
        (url, tenant, own),
        (superuser, tenant, own),
        (url.set(username=member), tenant, own),
        (url.set(username=member), None, own),  # what it inherits comes with the policies
        (url.set(username=reader), None, nothing),
        (url.set(username=reader), tenant, ["refused"] * 4),
        (url.set(username=stranger), None, ["refused"] * 4),
        (url.set(username=stranger), tenant, ["refused"] * 4),
    ]
    for login, role, expected in matrix:
        seen = [runs_seen(login, role, user) for user in settings]
        assert seen == expected, (login.username, role)


def test_under_the_role_every_table_shows_and_takes_own_rows_only(policed_fleet: DatabaseFactory) -> None:
    """By raw SQL: no table shows bob's rows, and WITH CHECK refuses every column that could name his."""
    with policed_fleet.get_session(user_id="ann") as session:
        for model, entry in SECURED.items():
            table = model.__tablename__
            rows = session.execute(text(f"SELECT * FROM {table}")).all()
            assert len(rows) == 1, table
            assert "bob" not in str(rows)
            for column in {entry.column, *(reference.column for reference in entry.parents)}:
                kept = session.execute(text(f"UPDATE {table} SET {column} = {column}"))
                assert kept.rowcount == 1, (table, column)  # type: ignore[attr-defined] # a CursorResult
                with pytest.raises(TenantViolation), session.begin_nested():
                    session.execute(text(f"UPDATE {table} SET {column} = replace({column}, 'ann', 'bob')"))


def test_a_parents_other_columns_must_agree_on_the_server_too(policed_fleet: DatabaseFactory) -> None:
    """A run on one own account with the strategy of another own account is refused to raw SQL as well."""
    with policed_fleet.get_session(user_id="ann") as session:
        session.execute(
            text(
                "INSERT INTO bybit_accounts (account_id, user_id, account_name, environment) "
                "VALUES ('acc-2', 'ann', 'second', 'testnet')"
            )
        )
        with pytest.raises(TenantViolation), session.begin_nested():
            session.execute(text("UPDATE runs SET account_id = 'acc-2'"))


def test_the_policies_have_the_form_that_is_cheap_and_are_not_forced(own_role: DatabaseFactory) -> None:
    """One policy a table, TO the role, parents by = ANY(ARRAY(subselect)), every one of them checked, no FORCE."""
    with own_role.get_session() as session:
        flags = session.execute(
            text(
                "SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class "
                "WHERE relname = ANY(:tables) AND relnamespace = 'public'::regnamespace ORDER BY 1"
            ),
            {"tables": TABLES},
        )
        assert [tuple(row) for row in flags] == [(table, True, False) for table in TABLES]
        own = text("SELECT * FROM pg_policies WHERE policyname = 'shared_db_own_rows'")
        policies = {row.tablename: row for row in session.execute(own)}
    assert sorted(policies) == sorted([*TABLES, "audit_log"])
    for model, entry in SECURED.items():
        policy = policies[model.__tablename__]
        assert (policy.cmd, policy.permissive) == ("ALL", "PERMISSIVE")
        assert policy.roles == [own_role.settings.tenant_role]
        assert " IN (" not in policy.qual + policy.with_check
        for reference in entry.parents:
            key = f"{reference.parent.__tablename__}.{primary_key(reference.parent)}"
            checked = f"(({reference.column})::text = ANY ((ARRAY( SELECT {key}\n"
            assert checked in policy.with_check, (model.__name__, reference.column)


def test_copy_out_is_filtered_and_copy_in_refused(policed_fleet: DatabaseFactory) -> None:
    """COPY TO shows own rows; COPY FROM, which no policy could check, and TRUNCATE are refused."""
    with driver(policed_fleet.settings.url) as connection, connection.cursor() as cursor:
        role = policed_fleet.settings.tenant_role
        cursor.execute("SELECT set_config('role', %s, false), set_config('shared_db.user_id', 'ann', false)", (role,))
        connection.commit()
        for table in TABLES:
            copied = StringIO()
            cursor.copy_expert(f"COPY {table} TO STDOUT", copied)
            assert copied.getvalue().count("\n") == 1
            assert "bob" not in copied.getvalue()
            with pytest.raises(psycopg2.errors.FeatureNotSupported):
                cursor.copy_expert(f"COPY {table} FROM STDIN", copied)
            connection.rollback()
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(f"TRUNCATE {table} CASCADE")
            connection.rollback()


HELD = (
    "SELECT * FROM pg_stats WHERE tablename = 'private_executions'",
    "SELECT stxname, stxstattarget FROM pg_statistic_ext",
    "SELECT * FROM runs WHERE CASE WHEN user_id = 'bob' THEN 1 / 0 END IS NULL",
    "SELECT run_id FROM runs WHERE (run_id || user_id)::int = 0 AND user_id = 'bob'",
    "SELECT row_to_json(c) FROM api_credentials c",
    "SELECT * FROM api_credentials TABLESAMPLE BERNOULLI (100)",
    "UPDATE runs SET gridcore_version = 'stolen' WHERE user_id = 'bob' RETURNING run_id",
    "MERGE INTO runs USING users ON runs.user_id = 'bob' WHEN MATCHED THEN DELETE",
    "WITH gone AS (DELETE FROM users RETURNING user_id) SELECT * FROM gone WHERE user_id = 'bob'",
    "CREATE TRIGGER spy AFTER INSERT ON runs EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE RULE spy AS ON INSERT TO runs DO NOTHING",
    "CREATE TABLE public.spy AS SELECT * FROM api_credentials",
    "CREATE INDEX ON runs (user_id)",
    "ALTER TABLE runs DISABLE ROW LEVEL SECURITY",
    "DROP POLICY shared_db_own_rows ON runs",
    "GRANT SELECT ON runs TO PUBLIC",
    "SELECT setval('private_executions_id_seq', 1, false)",
    "SELECT last_value FROM private_executions_id_seq",
    "SELECT pg_ls_dir('.')",
    "SELECT pg_read_file('PG_VERSION')",
    "SHOW data_directory",
    "SELECT pg_reload_conf()",
    "SELECT query FROM pg_stat_activity WHERE query ILIKE 'of b' || 'ob'",
    "SET SESSION AUTHORIZATION postgres",
    "COPY (SELECT 1) TO PROGRAM 'true'",
)


def test_raw_sql_finds_nothing_of_another_user(owner: DatabaseFactory, roles: Roles) -> None:
    """Statistics, errors, samples, triggers, sequences, files: denied, or own rows only are shown and changed."""
    administrator(owner, roles, f'ALTER ROLE "{owner.settings.url.username}" CREATEROLE')
    owner.enable_row_security()
    with owner.engine.begin() as connection:
        connection.execute(text("ANALYZE"))
    before = everything_of(owner, "bob")
    for statement in HELD:
        with owner.get_session(user_id="ann") as session:
            try:
                result: Any = session.connection().exec_driver_sql(statement)
                found = str(result.all()) if result.returns_rows else ""
            except SQLAlchemyError as error:
                found = f"{error.orig if isinstance(error, DBAPIError) else error}"
            session.rollback()
        assert "bob" not in found, statement
    assert everything_of(owner, "bob") == before
    assert owner.row_security_status().enabled


# The transaction


def test_the_role_is_left_with_the_transaction(postgresql_url: URL) -> None:
    """Commit, rollback and savepoints: confined all the while, and the pooled connection goes back as it came."""
    asked = text("SELECT current_user, current_setting('shared_db.user_id', true)")
    with factory(postgresql_url, "shared_db_tenant") as db:
        fill(db)
        db.enable_row_security()
        with db.get_session() as plain:
            login = plain.execute(text("SELECT current_user, pg_backend_pid()")).one()
        with db.get_session(user_id="ann") as session:
            for end in (session.commit, session.rollback, session.commit):
                with session.begin_nested() as savepoint:
                    assert session.execute(asked).one() == ("shared_db_tenant", "ann")
                    savepoint.rollback()
                with session.begin_nested():
                    assert session.execute(asked).one() == ("shared_db_tenant", "ann")
                assert session.execute(asked).one() == ("shared_db_tenant", "ann")
                end()
        with db.get_session() as plain:
            assert plain.execute(text("SELECT current_user, pg_backend_pid()")).one() == login
            assert plain.execute(asked).one() == (login[0], "")


def test_a_new_connection_is_confined_like_the_lost_one(postgresql_fleet: DatabaseFactory) -> None:
    """When the server drops the connection in mid-transaction, the transaction that follows is confined again."""
    with postgresql_fleet.get_session(user_id="ann") as session:
        assert isinstance(session, UserSession)
        pid = Session.connection(session).scalar(text("SELECT pg_backend_pid()"))
        with postgresql_fleet.get_session() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        with pytest.raises(DatabaseUnreachableError):
            session.scalars(select(Run)).all()
        session.rollback()
        assert session.scalars(select(Run.run_id)).all() == ["run-ann"]
        if session.confined_by_server:
            assert session.scalars(text("SELECT run_id FROM runs")).all() == ["run-ann"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_connection_lost_at_the_adoption_is_named_and_made_good(
    policed_fleet: DatabaseFactory, when: Literal["before", "after"]
) -> None:
    """The statement that begins a transaction goes past SQLAlchemy, and fails as every other one."""
    with tempfile.TemporaryDirectory() as folder, CuttingProxy(policed_fleet.settings.url, Path(folder)) as proxy:
        with DatabaseFactory(proxy.url) as db:
            proxy.cut(b"shared_db.user_id", when)
            with db.get_session(user_id="ann") as session:
                with pytest.raises(ConnectionLostError):
                    session.scalars(select(Run.run_id)).all()
                session.rollback()
                assert session.scalars(select(Run.run_id)).all() == ["run-ann"]
            proxy.cut(b"shared_db.user_id", when)
            found = db.run_in_transaction(lambda session: session.scalars(select(Run.run_id)).all(), user_id="ann")
        assert found == ["run-ann"]


# Setting it up


def test_without_the_privilege_three_statements_are_printed_that_make_it_work(
    roles: Roles, empty_postgresql_url: URL
) -> None:
    """Also for a role with an odd name and a schema of one's own; running exactly these is enough."""
    login = roles.login("owner")
    role, schema, url = roles.name("Tenants' 100%: x"), "grid bot", empty_postgresql_url
    run_on_server(url, f'CREATE SCHEMA "{schema}" AUTHORIZATION "{login}"')
    run_on_server(url, f"ALTER ROLE \"{login}\" SET search_path = '{schema}'")
    with factory(url.set(username=login, password="pw"), role) as db:
        db.create_tables()
        fill(db)
        with pytest.raises(RowSecurityError, match="have an administrator run: ") as refused:
            db.enable_row_security()
        assert not db.row_security_status().enabled
        assert not db.row_security_status().problems
        statements = str(refused.value).partition("run: ")[2].split("; ")
        assert len(statements) == 3
        run_on_server(url, *statements)
        db.enable_row_security()
        assert db.row_security_status().enabled
        with db.get_session(user_id="ann") as session:
            assert session.execute(text("SELECT current_user")).scalar_one() == role
            assert session.scalars(text("SELECT run_id FROM runs")).all() == ["run-ann"]
            session.get_one(Run, "run-ann").gridcore_version = "2"


def test_only_what_is_missing_is_printed(owner: DatabaseFactory, roles: Roles) -> None:
    """Of a role that another database brought along, the administrator gives what this login lacks."""
    administrator(owner, roles, f'CREATE ROLE "{owner.settings.tenant_role}"')
    with pytest.raises(RowSecurityError) as refused:
        owner.enable_row_security()
    (statement,) = str(refused.value).partition("run: ")[2].split("; ")
    administrator(owner, roles, statement)
    owner.enable_row_security()
    assert owner.row_security_status().enabled


def test_a_login_that_may_create_roles_needs_nobody(owner: DatabaseFactory, roles: Roles) -> None:
    """CREATEROLE is enough: it makes the role, and gives it to itself."""
    administrator(owner, roles, f'ALTER ROLE "{owner.settings.url.username}" CREATEROLE')
    owner.enable_row_security()
    with owner.get_session(user_id="ann") as session:
        assert session.scalars(text("SELECT run_id FROM runs")).all() == ["run-ann"]


def test_a_role_that_no_policy_holds_is_refused(owner: DatabaseFactory, roles: Roles) -> None:
    """The owner himself, one who may pass for him, a superuser, BYPASSRLS: none of them would be confined."""
    login = owner.settings.url.username
    assert login is not None
    heir, super_, bypass = roles.login("heir"), roles.login("super", "SUPERUSER"), roles.login("bypass", "BYPASSRLS")
    administrator(owner, roles, f'GRANT "{login}" TO "{heir}"', f'GRANT "{bypass}" TO "{login}"')
    superuser = roles.server.set(database=owner.settings.url.database)
    for url, role in (
        (owner.settings.url, login),
        (superuser, heir),
        (superuser, super_),
        (owner.settings.url, bypass),
    ):
        with factory(url, role) as db:
            with pytest.raises(RowSecurityError, match="GRIDBOT_DB_TENANT_ROLE"):
                db.enable_row_security()
            assert not db.row_security_status().problems


def test_a_login_that_may_not_adopt_the_role_is_told_so(own_role: DatabaseFactory, roles: Roles) -> None:
    """Enabled by one login, used by another that nobody gave the role: one error with the remedy, which works."""
    bot, role = roles.login("bot"), own_role.settings.tenant_role
    administrator(own_role, roles, f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{bot}"')
    with factory(own_role.settings.url.set(username=bot, password="pw"), role) as db:
        with pytest.raises(RowSecurityError, match="GRANT") as refused, db.get_session(user_id="ann") as session:
            session.scalars(select(Run.run_id)).all()
        assert role in str(refused.value)
        assert any("may not adopt" in problem for problem in db.row_security_status().problems)
        administrator(own_role, roles, f'GRANT "{role}" TO "{bot}"')
        with db.get_session(user_id="ann") as session:
            assert session.scalars(select(Run.run_id)).all() == ["run-ann"]
        assert db.row_security_status().enabled


def test_processes_that_enable_at_once_all_succeed(
    roles: Roles, postgresql_url: URL, empty_postgresql_url: URL
) -> None:
    """Four processes on two databases of one server, all of which want the same new role."""
    role = roles.name("tenant")
    urls = (postgresql_url, empty_postgresql_url)
    with factory(urls[1], role) as db:
        db.create_tables()

    def enable(number: int) -> bool:
        with factory(urls[number % 2], role) as db:
            db.enable_row_security()
            return db.row_security_status().enabled

    assert in_children(4, enable) == [True] * 4
