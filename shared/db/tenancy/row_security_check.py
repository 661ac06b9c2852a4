"""Whether PostgreSQL's row-level security is in force as the code has it, and whatever goes round it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from shared.db.dialects.postgresql import look_past_temporary_tables
from shared.db.schema_version import not_ours
from shared.db.tables import OWNERSHIP
from shared.db.tenancy.row_security import (
    NAMES,
    PRIVILEGES,
    declared_tables,
    exemption,
    expected_policies,
    fingerprint_of,
    live_policies,
    may_adopt,
    outdated,
    quoted_name,
    role_exists,
    secured_tables,
    sequence_of,
)


@dataclass(frozen=True)
class RowSecurityStatus:
    """Whether row-level security confines users' sessions.

    `supported` is False on SQLite. `problems` lists every difference between the policies in the database and
    those of the code, and everything that goes round them; `enabled` is True when there are policies and no problems.
    `not_ours` names the tables of no package that is loaded, which this code knows no policy for.
    """

    supported: bool
    enabled: bool
    role: str
    problems: tuple[str, ...] = ()
    not_ours: tuple[str, ...] = ()


def status(connection: Connection, role: str) -> RowSecurityStatus:
    """Compare what is in the database with what the code would make."""
    look_past_temporary_tables(connection)
    others = tuple(not_ours(connection))
    if not live_policies(connection) and not secured_tables(connection):
        return RowSecurityStatus(supported=True, enabled=False, role=role, not_ours=others)
    problems = [*_policies(connection, role), *_other_policies(connection), *_role(connection, role)]
    return RowSecurityStatus(supported=True, enabled=not problems, role=role, problems=tuple(problems), not_ours=others)


def _policies(connection: Connection, role: str) -> Iterator[str]:
    found, secured = live_policies(connection), secured_tables(connection)
    for table, policies in expected_policies(connection).items():
        if table not in secured:
            yield f"{table}: row-level security is off"
        for name, policy in policies.items():
            live = found.get(table, {}).get(name)
            if live is None:
                yield f"{table}: the policy {name} is missing"
                continue
            said = (live.cmd, live.permissive, _comment(connection, table, name))
            if said != (policy.command, policy.kind, fingerprint_of(policy, live)):
                yield f"{table}: the policy {name} differs from the models'"
            if live.roles != [role]:
                yield f"{table}: the policy {name} is for {', '.join(live.roles)}, not for {role}"
    for table, name in outdated(connection):
        declared = "declared otherwise by now" if table in found else "declared to be shared by all"
        yield f"{table}: the policy {name} is for a table that is {declared}"


def _other_policies(connection: Connection) -> list[str]:
    rows = connection.execute(
        text(
            "SELECT tablename, policyname FROM pg_policies WHERE schemaname = current_schema() "
            "AND policyname <> ALL(:names) AND permissive = 'PERMISSIVE' AND tablename = ANY(:tables) "
            "ORDER BY tablename, policyname"
        ),
        {"names": [*NAMES], "tables": [*expected_policies(connection)]},
    )
    return [
        f"{table}: the policy {name} is not of this library, and may show other users' rows" for table, name in rows
    ]


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
    for model in declared_tables(connection):
        table = model.__tablename__
        lacking = [
            privilege
            for privilege in PRIVILEGES
            if not connection.scalar(
                text("SELECT has_table_privilege(:role, :table, :privilege)"),
                {"role": role, "table": quoted_name(table), "privilege": privilege},
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
    """What the role can reach and no policy confines: tables, views, and functions with their owner's rights."""
    arguments: dict[str, Any] = {"role": role, "declared": [model.__tablename__ for model in OWNERSHIP]}
    for name, kind in connection.execute(text(_REACHED), arguments):
        if kind in ("v", "m"):
            yield (
                f"the view {name} shows what its owner sees, all users' rows, to each: it needs security_invoker, or "
                f"to be taken from {role} and PUBLIC"
            )
        else:
            yield (
                f"the table {name} is open to all users, and no policy confines it: take it from {role} and PUBLIC, "
                "or declare whose rows it holds (__ownership__) and run row-security enable"
            )
    for owner, schema in connection.execute(text(_DEFAULT_PRIVILEGES), {"role": role}):
        yield (
            f"default privileges open every table that {owner} makes in {schema or 'any schema'} to all users: "
            f"ALTER DEFAULT PRIVILEGES ... REVOKE ALL ON TABLES FROM {role}, PUBLIC"
        )
    for function in connection.scalars(text(_FUNCTIONS), {"role": role}):
        yield f"the function {function} runs with its owner's rights, past every policy: take EXECUTE from PUBLIC"


# Whatever the privilege came from: a grant to the role, to one that it is a member of, to PUBLIC, to single columns.
# Declared tables are looked at one by one. Foreign tables have no policies, and a view has those of its owner, unless
# it runs with the rights of whoever asks. What an extension brings along is its own affair.
_REACHED = """
    SELECT c.oid::regclass::text, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm')
    AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
    AND has_schema_privilege(:role, n.oid, 'USAGE')
    AND (has_table_privilege(:role, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
        OR has_any_column_privilege(:role, c.oid, 'SELECT, INSERT, UPDATE'))
    AND NOT (n.nspname = current_schema() AND c.relname = ANY(:declared))
    AND NOT (c.relkind IN ('r', 'p') AND c.relrowsecurity AND NOT pg_has_role(:role, c.relowner, 'USAGE'))
    AND NOT (c.relkind = 'v' AND EXISTS (
        SELECT FROM pg_options_to_table(c.reloptions)
        WHERE option_name = 'security_invoker' AND option_value IN ('true', 'on', 'yes', '1')
    ))
    AND NOT EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e'
    )
    ORDER BY 1
"""
_DEFAULT_PRIVILEGES = """
    SELECT DISTINCT pg_get_userbyid(d.defaclrole), n.nspname
    FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace, aclexplode(d.defaclacl) granted
    WHERE d.defaclobjtype = 'r' AND (granted.grantee = 0 OR pg_has_role(:role, granted.grantee, 'USAGE'))
    ORDER BY 1, 2
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


def _comment(connection: Connection, table: str, policy: str) -> str | None:
    comment: str | None = connection.scalar(
        text(
            "SELECT obj_description(oid, 'pg_policy') FROM pg_policy "
            "WHERE polname = :name AND polrelid = to_regclass(:table)"
        ),
        {"name": policy, "table": quoted_name(table)},
    )
    return comment
