"""Enforcer 2: PostgreSQL's row-level security, generated from the ownership map.

The policies are TO a role that nobody can log in as. A user's session adopts it for one transaction at a time
(`set_config(..., true)`), so nothing leaks to the next one on a pooled connection. They are not FORCEd: the owner
sees all rows, which keeps plain sessions and dumps whole (under FORCE an owner's dump is silently empty).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg2.errors
from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError

from shared.db.errors import RowSecurityError, TenantViolation
from shared.db.models import Base, OptionalBase
from shared.db.tenancy.ownership import OWNERSHIP, Ownership, Reference, primary_key

POLICY_NAME = "shared_db_own_rows"
# Wrapped in a SELECT it is evaluated once, not once a row. Unset it is NULL or '': no row matches either.
_CURRENT_USER = "(SELECT current_setting('shared_db.user_id', true))"


_ADOPTED = "shared_db_user_id"


@dataclass(frozen=True)
class Policy:
    """What a table's policy says: which rows are visible (`using`) and which may be written (`check`)."""

    using: str
    check: str


@dataclass(frozen=True)
class RowSecurityStatus:
    """Whether row-level security confines users' sessions.

    `supported` is False on SQLite. `problems` lists every difference between the policies in the database and
    those of the code; `enabled` is True when there are policies and no problems.
    """

    supported: bool
    enabled: bool
    role: str
    problems: tuple[str, ...] = ()


def expected_policies(connection: Connection) -> Mapping[str, Policy]:
    """The policy of every table that holds users' rows, by table name. Optional tables count where they are there."""
    return {
        model.__tablename__: Policy(_own(model.__tablename__, entry), _may_write(model, entry))
        for model, entry in OWNERSHIP.items()
        if entry is not None and _has_table(connection, model)
    }


def enable(connection: Connection, role: str) -> None:
    """Create the role and its grants, and (re)create every policy. Raises `RowSecurityError` without the privilege."""
    create_role(connection, role)
    quoted = _quoted(connection, role)
    for model in OWNERSHIP:
        table = model.__tablename__
        if not _has_table(connection, model):
            continue
        connection.execute(text(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {quoted}"))
        sequence = connection.scalar(
            text("SELECT pg_get_serial_sequence(:table, :key)"), {"table": table, "key": primary_key(model)}
        )
        if sequence:
            connection.execute(text(f"GRANT USAGE ON SEQUENCE {sequence} TO {quoted}"))
    expected = expected_policies(connection)
    for table, policy in expected.items():
        connection.execute(text(f"DROP POLICY IF EXISTS {POLICY_NAME} ON {table}"))
        connection.execute(
            text(
                f"CREATE POLICY {POLICY_NAME} ON {table} TO {quoted} USING ({policy.using}) WITH CHECK ({policy.check})"
            )
        )
        connection.execute(text(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"))
    # The server keeps its own spelling of a policy. The fingerprint of both spellings tells later whether the code
    # has moved on, or somebody has altered the policy by hand.
    for table, (using, check) in _live_policies(connection).items():
        fingerprint = _fingerprint(expected[table], using, check)
        connection.execute(text(f"COMMENT ON POLICY {POLICY_NAME} ON {table} IS '{fingerprint}'"))


def disable(connection: Connection) -> None:
    """Drop the policies. The role stays: it belongs to the whole server, not to this database."""
    for table in expected_policies(connection):
        connection.execute(text(f"DROP POLICY IF EXISTS {POLICY_NAME} ON {table}"))
        connection.execute(text(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"))


def status(connection: Connection, role: str) -> RowSecurityStatus:
    """Compare the policies in the database with the code's."""
    expected = expected_policies(connection)
    found = _live_policies(connection)
    if not found and not _tables_with_security(connection):
        return RowSecurityStatus(supported=True, enabled=False, role=role)
    problems = []
    secured = _tables_with_security(connection)
    for table, policy in expected.items():
        if table not in secured:
            problems.append(f"{table}: row-level security is off")
        if table not in found:
            problems.append(f"{table}: the policy {POLICY_NAME} is missing")
        elif _comment(connection, table) != _fingerprint(policy, *found[table]):
            problems.append(f"{table}: the policy {POLICY_NAME} is not the code's")
    for table, name in _foreign_policies(connection):
        problems.append(f"{table}: the policy {name} is not the code's, and may show other users' rows")
    if not connection.scalar(text("SELECT count(*) FROM pg_roles WHERE rolname = :role"), {"role": role}):
        problems.append(f"the role {role} does not exist")
    return RowSecurityStatus(supported=True, enabled=not problems, role=role, problems=tuple(problems))


def is_installed(connection: Connection) -> bool:
    """Whether every table that holds users' rows has its policy: the short form, asked once by each process."""
    return set(expected_policies(connection)) <= _tables_with_security(connection) & set(_live_policies(connection))


def adopt(connection: Connection, role: str, user_id: str) -> None:
    """Confine the rest of the transaction to one user."""
    # One statement, and both end with the transaction: a pooled connection goes back as it came.
    connection.exec_driver_sql(
        "SELECT set_config('role', %(role)s, true), set_config('shared_db.user_id', %(user_id)s, true)",
        {"role": role, "user_id": user_id},
    )
    connection.info[_ADOPTED] = user_id


def violation_of(context: ExceptionContext) -> TenantViolation | None:
    """The violation behind a driver's error, if the server's policies refused a row."""
    error = context.original_exception
    if not isinstance(error, psycopg2.errors.InsufficientPrivilege) or "row-level security" not in str(error):
        return None
    table = str(error).partition('"')[2].partition('"')[0]
    user_id = context.connection.info.get(_ADOPTED) if context.connection is not None else None
    return TenantViolation("write", table, user_id, "the database's own policy allows no such row to this user")


def create_role(connection: Connection, role: str) -> None:
    """Create the role without login, unless it is there. Raises `RowSecurityError` without the privilege."""
    quoted = _quoted(connection, role)
    login = connection.scalar(text("SELECT current_user"))
    schema = connection.scalar(text("SELECT current_schema()"))
    statements = [
        f"CREATE ROLE {quoted} NOLOGIN",
        f"GRANT {quoted} TO {_quoted(connection, str(login))}",
        f"GRANT USAGE ON SCHEMA {_quoted(connection, str(schema))} TO {quoted}",
    ]
    exists = connection.scalar(text("SELECT count(*) FROM pg_roles WHERE rolname = :role"), {"role": role})
    usable = exists and connection.scalar(text("SELECT pg_has_role(current_user, :role, 'MEMBER')"), {"role": role})
    try:
        with connection.begin_nested():
            for statement in statements[1 if exists else 0 :]:
                if not (statement.startswith(f"GRANT {quoted} TO") and usable):
                    connection.execute(text(statement))
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg2.errors.InsufficientPrivilege):
            raise
        raise RowSecurityError(
            f"the login {login} may not create the role {role}; have an administrator run: " + "; ".join(statements)
        ) from error


def _has_table(connection: Connection, model: type[Base]) -> bool:
    """Whether a table is there, or is none that may be missing."""
    return not issubclass(model, OptionalBase) or bool(inspect(connection).has_table(model.__tablename__))


def _own(table: str, entry: Ownership) -> str:
    if entry.parent is None:
        return f"{table}.{entry.column} = {_CURRENT_USER}"
    return _names_own(table, Reference(entry.column, entry.parent))


def _names_own(table: str, reference: Reference) -> str:
    # An ARRAY of a subselect is built once; IN and EXISTS cost five to eight times as much a scan.
    return f"{table}.{reference.column} = ANY (ARRAY({_own_keys(reference.parent)}))"


def _own_keys(model: type[Base]) -> str:
    entry = OWNERSHIP[model]
    assert entry is not None, "only owned rows are named as parents"
    table = model.__tablename__
    return f"SELECT {table}.{primary_key(model)} FROM {table} WHERE {_own(table, entry)}"


def _may_write(model: type[Base], entry: Ownership) -> str:
    # Every parent is named: foreign keys are checked without regard to policies.
    table = model.__tablename__
    conditions = [_own(table, entry)]
    for reference in entry.references:
        conditions.append(_names_own(table, reference))
        if reference.agrees:
            parent = reference.parent.__tablename__
            same = [f"p.{primary_key(reference.parent)} = {table}.{reference.column}"]
            same += [f"p.{column} = {table}.{column}" for column in reference.agrees]
            conditions.append(f"EXISTS (SELECT 1 FROM {parent} p WHERE {' AND '.join(same)})")
    return " AND ".join(conditions)


def _live_policies(connection: Connection) -> dict[str, tuple[str, str]]:
    rows = connection.execute(
        text(
            "SELECT tablename, qual, with_check FROM pg_policies "
            "WHERE schemaname = current_schema() AND policyname = :name ORDER BY tablename"
        ),
        {"name": POLICY_NAME},
    )
    expected = expected_policies(connection)
    return {row.tablename: (row.qual, row.with_check) for row in rows if row.tablename in expected}


def _foreign_policies(connection: Connection) -> list[Any]:
    rows = connection.execute(
        text(
            "SELECT tablename, policyname FROM pg_policies WHERE schemaname = current_schema() "
            "AND policyname <> :name AND permissive = 'PERMISSIVE' ORDER BY tablename, policyname"
        ),
        {"name": POLICY_NAME},
    )
    expected = expected_policies(connection)
    return [tuple(row) for row in rows if row.tablename in expected]


def _tables_with_security(connection: Connection) -> set[str]:
    rows = connection.scalars(
        text(
            "SELECT relname FROM pg_class WHERE relrowsecurity AND relkind IN ('r', 'p') "
            "AND relnamespace = to_regnamespace(quote_ident(current_schema()))"
        )
    )
    return set(rows) & set(expected_policies(connection))


def _comment(connection: Connection, table: str) -> str | None:
    comment: str | None = connection.scalar(
        text(
            "SELECT obj_description(oid, 'pg_policy') FROM pg_policy "
            "WHERE polname = :name AND polrelid = to_regclass(:table)"
        ),
        {"name": POLICY_NAME, "table": table},
    )
    return comment


def _fingerprint(policy: Policy, using: str, check: str) -> str:
    return hashlib.sha256("\n".join((policy.using, policy.check, using, check)).encode()).hexdigest()


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote_identifier(name)
