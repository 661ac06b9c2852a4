"""Whether PostgreSQL's row-level security is in force as the code has it, and whatever goes round it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from shared.db.schema_version import look_past_temporary_tables
from shared.db.tables import OWNERSHIP
from shared.db.tenancy.row_security import (
    POLICY_NAME,
    PRIVILEGES,
    exemption,
    expected_policies,
    fingerprint_of,
    has_table,
    live_policies,
    may_adopt,
    role_exists,
    secured_tables,
    sequence_of,
)


@dataclass(frozen=True)
class RowSecurityStatus:
    """Whether row-level security confines users' sessions.

    `supported` is False on SQLite. `problems` lists every difference between the policies in the database and
    those of the code, and everything that goes round them; `enabled` is True when there are policies and no problems.
    """

    supported: bool
    enabled: bool
    role: str
    problems: tuple[str, ...] = ()


def status(connection: Connection, role: str) -> RowSecurityStatus:
    """Compare what is in the database with what the code would make."""
    look_past_temporary_tables(connection)
    if not live_policies(connection) and not secured_tables(connection):
        return RowSecurityStatus(supported=True, enabled=False, role=role)
    problems = [*_policies(connection, role), *_other_policies(connection), *_role(connection, role)]
    return RowSecurityStatus(supported=True, enabled=not problems, role=role, problems=tuple(problems))


def _policies(connection: Connection, role: str) -> Iterator[str]:
    found, secured = live_policies(connection), secured_tables(connection)
    for table, policy in expected_policies(connection).items():
        if table not in secured:
            yield f"{table}: row-level security is off"
        live = found.get(table)
        if live is None:
            yield f"{table}: the policy {POLICY_NAME} is missing"
            continue
        if (live.cmd, live.permissive, _comment(connection, table)) != (
            "ALL",
            "PERMISSIVE",
            fingerprint_of(policy, live),
        ):
            yield f"{table}: the policy {POLICY_NAME} is not the code's"
        if live.roles != [role]:
            yield f"{table}: the policy {POLICY_NAME} is for {', '.join(live.roles)}, not for {role}"


def _other_policies(connection: Connection) -> list[str]:
    rows = connection.execute(
        text(
            "SELECT tablename, policyname FROM pg_policies WHERE schemaname = current_schema() "
            "AND policyname <> :name AND permissive = 'PERMISSIVE' AND tablename = ANY(:tables) "
            "ORDER BY tablename, policyname"
        ),
        {"name": POLICY_NAME, "tables": [*expected_policies(connection)]},
    )
    return [f"{table}: the policy {name} is not the code's, and may show other users' rows" for table, name in rows]


def _role(connection: Connection, role: str) -> Iterator[str]:
    if not role_exists(connection, role):
        yield f"the role {role} does not exist"
        return
    reason = exemption(connection, role)
    if reason is not None:
        yield reason
        return
    if connection.scalar(text("SELECT rolcanlogin FROM pg_roles WHERE rolname = :role"), {"role": role}):
        yield f"the role {role} can log in, and then name any user: ALTER ROLE ... NOLOGIN"
    if not may_adopt(connection, role):
        yield f"this login may not adopt the role {role}: GRANT it to the login"
    yield from _missing_privileges(connection, role)
    yield from _ways_round(connection, role)


def _missing_privileges(connection: Connection, role: str) -> Iterator[str]:
    if not connection.scalar(text("SELECT has_schema_privilege(:role, current_schema(), 'USAGE')"), {"role": role}):
        yield f"the role {role} lacks USAGE on the schema"
    for model in OWNERSHIP:
        if not has_table(connection, model):
            continue
        table = model.__tablename__
        lacking = [
            privilege
            for privilege in PRIVILEGES
            if not connection.scalar(
                text("SELECT has_table_privilege(:role, :table, :privilege)"),
                {"role": role, "table": table, "privilege": privilege},
            )
        ]
        sequence = sequence_of(connection, model)
        if sequence and not connection.scalar(
            text("SELECT has_sequence_privilege(:role, :sequence, 'USAGE')"), {"role": role, "sequence": sequence}
        ):
            lacking.append("USAGE of its sequence")
        if lacking:
            yield f"{table}: the role {role} lacks {', '.join(lacking)}"


def _ways_round(connection: Connection, role: str) -> Iterator[str]:
    """Views and functions that run with their owner's rights, where the role may use them."""
    arguments: dict[str, Any] = {"role": role, "tables": [*expected_policies(connection)]}
    for view in connection.scalars(text(_VIEWS), arguments):
        yield f"the view {view} shows all users' rows to each: it needs security_invoker, or to be taken from {role}"
    for function in connection.scalars(text(_FUNCTIONS), arguments):
        yield f"the function {function} runs with its owner's rights, past every policy: take EXECUTE from PUBLIC"


# Views over the tables, directly or by way of other views, wherever they are. A view that runs with the rights of
# whoever asks is harmless by itself, but not below one that does not.
_VIEWS = """
    WITH RECURSIVE reached(oid) AS (
        SELECT oid FROM pg_class WHERE relname = ANY(:tables) AND relkind IN ('r', 'p')
        AND relnamespace = to_regnamespace(quote_ident(current_schema()))
        UNION
        SELECT rule.ev_class FROM pg_depend used JOIN reached ON used.refobjid = reached.oid
        JOIN pg_rewrite rule ON rule.oid = used.objid
        WHERE used.classid = 'pg_rewrite'::regclass AND used.refclassid = 'pg_class'::regclass
    )
    SELECT oid::regclass::text FROM pg_class JOIN reached USING (oid)
    WHERE relkind IN ('v', 'm') AND has_table_privilege(:role, oid, 'SELECT')
    AND NOT (relkind = 'v' AND EXISTS (
        SELECT FROM pg_options_to_table(reloptions)
        WHERE option_name = 'security_invoker' AND option_value IN ('true', 'on', 'yes', '1')
    ))
    ORDER BY 1
"""
# What an extension brings along is its own affair.
_FUNCTIONS = """
    SELECT oid::regprocedure::text FROM pg_proc
    WHERE prosecdef AND pronamespace = to_regnamespace(quote_ident(current_schema()))
    AND has_function_privilege(:role, oid, 'EXECUTE')
    AND NOT EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = pg_proc.oid AND deptype = 'e'
    )
    ORDER BY 1
"""


def _comment(connection: Connection, table: str) -> str | None:
    comment: str | None = connection.scalar(
        text(
            "SELECT obj_description(oid, 'pg_policy') FROM pg_policy "
            "WHERE polname = :name AND polrelid = to_regclass(:table)"
        ),
        {"name": POLICY_NAME, "table": table},
    )
    return comment
