"""Enforcer 2: PostgreSQL's row-level security, generated from what the tables declare.

The policies are TO a role that nobody can log in as. A user's session adopts it for one transaction at a time
(`set_config(..., true)`), so nothing leaks to the next one on a pooled connection. They are not FORCEd: the owner
sees all rows, which keeps plain sessions and dumps whole (under FORCE an owner's dump is silently empty).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError

from shared.db.dialects import port_of
from shared.db.dialects.postgresql import (
    DuplicateObject,
    InsufficientPrivilege,
    InvalidParameterValue,
    UniqueViolation,
)
from shared.db.driver_errors import named_errors
from shared.db.errors import HOW_TO_DELETE, DatabaseLockedError, RowSecurityError, TenantViolation
from shared.db.models import Base
from shared.db.tables import OWNERSHIP, Ownership, Reference, primary_key

_PREPARER = PGDialect().identifier_preparer  # type: ignore[no-untyped-call] # SQLAlchemy gives it no types
_log = logging.getLogger(__name__)

POLICY_NAME: Final = "shared_db_own_rows"
_PUBLIC_ROWS: Final = "shared_db_public_rows"
_NAMED_ROWS: Final = "shared_db_named_rows"
NAMES: Final = (POLICY_NAME, _PUBLIC_ROWS, _NAMED_ROWS)
PRIVILEGES: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
# Wrapped in a SELECT it is evaluated once, not once a row. Unset it is NULL or '': no row matches either.
_CURRENT_USER = "(SELECT current_setting('shared_db.user_id', true))"
ADOPTED: Final = "shared_db_user_id"
"""Where a connection's `info` has the user for whom it adopted the role, until it goes back to the pool."""
# Where an engine's dialect has the name of the tables' schema, quoted: it is asked for once.
_SCHEMA = "shared_db_schema"
# Where it has the tables that the log named as being without a policy.
_TOLD = "shared_db_told_without_policy"
# How long the tables of a busy fleet are waited for, and how long others may have to wait meanwhile (seconds).
_PATIENCE = 30.0
_TURN = 0.2


@dataclass(frozen=True)
class Policy:
    """What a policy says of a `command`: which rows are visible (`using`) and which may be written (`check`).

    One that is not `permissive` opens nothing, and narrows what others open.
    """

    using: str | None = None
    check: str | None = None
    command: str = "ALL"
    permissive: bool = True

    @property
    def kind(self) -> str:
        """As PostgreSQL spells it."""
        return "PERMISSIVE" if self.permissive else "RESTRICTIVE"

    def created(self, name: str, table: str, role: str) -> str:
        """The statement that makes it, of quoted names."""
        using = "" if self.using is None else f" USING ({self.using})"
        check = "" if self.check is None else f" WITH CHECK ({self.check})"
        return f"CREATE POLICY {name} ON {table} AS {self.kind} FOR {self.command} TO {role}{using}{check}"


def expected_policies(connection: Connection) -> Mapping[str, Mapping[str, Policy]]:
    """The policies of every table that holds users' rows, by table and name. Tables count where they are there."""
    found = {}
    for model in declared_tables(connection):
        entry = OWNERSHIP[model]
        if entry is not None:
            found[model.__tablename__] = _policies_of(model, entry)
    return found


def _policies_of(model: type[Any], entry: Ownership) -> dict[str, Policy]:
    own, named = _may_write(model, entry)
    policies = {POLICY_NAME: Policy(_own(model.__tablename__, entry), own)}
    public = _column(model.__tablename__, entry.public) if entry.public else getattr(model, "_shown_to_all", None)
    if public is not None:
        # Of all that is granted for SELECT, a row that is written or locked must be the user's own as well.
        policies[_PUBLIC_ROWS] = Policy(using=public, command="SELECT")
    if named:
        # For INSERT alone: what was public when it was named may be private by now, and its name must not lock the row.
        policies[_NAMED_ROWS] = Policy(check=named, command="INSERT", permissive=False)
    return policies


def declared_tables(connection: Connection) -> list[type[Any]]:
    """The declared classes whose tables are there: a package's own may not be made yet, or never in this database."""
    there = port_of(connection).tables(connection)
    return [model for model in OWNERSHIP if model.__tablename__ in there]


def enable(connection: Connection, role: str) -> None:
    """Create the role and its grants, and (re)create every policy.

    Raises `RowSecurityError` without the privilege, or for a role that policies do not hold, and
    `DatabaseLockedError` if the tables cannot be had.
    """
    create_role(connection, role)
    _require_subject(connection, role)
    quoted = _quoted(role)
    expected = expected_policies(connection)
    if not expected:
        raise RowSecurityError("there are no tables of users' rows yet; run: python -m shared.db init")
    no_longer = {table for table, _ in outdated(connection)} - expected.keys()
    _lock(connection, [*expected, *no_longer])
    _remove(connection, [*expected, *no_longer])
    for model in declared_tables(connection):
        table = model.__tablename__
        _run(connection, f"GRANT {', '.join(PRIVILEGES)} ON {quoted_name(table)} TO {quoted}")
        sequence = sequence_of(connection, model)
        if sequence:
            _run(connection, f"GRANT USAGE ON SEQUENCE {sequence} TO {quoted}")
    for table, policies in expected.items():
        made = [policy.created(name, quoted_name(table), quoted) for name, policy in policies.items()]
        _run(connection, *made, f"ALTER TABLE {quoted_name(table)} ENABLE ROW LEVEL SECURITY")
    # The server keeps its own spelling of a policy. The fingerprint of both spellings tells later whether the code
    # has moved on, or somebody has altered the policy by hand.
    for table, live in live_policies(connection).items():
        for name, row in live.items():
            fingerprint = fingerprint_of(expected[table][name], row)
            _run(connection, f"COMMENT ON POLICY {name} ON {quoted_name(table)} IS '{fingerprint}'")


def disable(connection: Connection, role: str) -> None:
    """Drop the policies, and take the tables from the role. The role itself stays: it belongs to the whole server.

    A process that began with the policies may still adopt the role. Without the grants it is refused what no policy
    would confine any more.
    """
    live = _all_policies(connection)
    # Those of packages that are not loaded here among them: they are ours all the same.
    tables = sorted({*expected_policies(connection), *live})
    if not tables:
        return
    _lock(connection, tables)
    roles = {role, *(name for policies in live.values() for row in policies.values() for name in row.roles)}
    known = connection.scalars(text("SELECT rolname FROM pg_roles WHERE rolname = ANY(:roles)"), {"roles": [*roles]})
    listed = ", ".join(map(quoted_name, tables))
    for name in known.all():
        _run(connection, f"REVOKE {', '.join(PRIVILEGES)} ON {listed} FROM {_quoted(name)}")
    _remove(connection, tables)


def outdated(connection: Connection) -> list[tuple[str, str]]:
    """The policies of ours, by table and name, that declared tables have from a time when they were declared so."""
    declared, expected = {model.__tablename__ for model in declared_tables(connection)}, expected_policies(connection)
    return [
        (table, name)
        for table, live in _all_policies(connection).items()
        if table in declared
        for name in live
        if name not in expected.get(table, {})
    ]


def _remove(connection: Connection, tables: Iterable[str]) -> None:
    for table in map(quoted_name, tables):
        dropped = [f"DROP POLICY IF EXISTS {name} ON {table}" for name in NAMES]
        _run(connection, *dropped, f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")


def is_installed(connection: Connection) -> bool:
    """Whether every table that holds users' rows has its policies: the short form, asked once by each process.

    Where some have theirs and others do not, a line in the log says which.
    """
    expected, policed = set(expected_policies(connection)), policed_tables(connection)
    lacking = sorted(expected - policed)
    if policed and lacking != getattr(connection.dialect, _TOLD, []):
        setattr(connection.dialect, _TOLD, lacking)
        if lacking:
            _log.warning(
                "row-level security is on, but not for %s: until it is, the server confines no user's session of this "
                "process, which goes on alone and refuses raw SQL; run: python -m shared.db row-security enable",
                ", ".join(lacking),
            )
    return bool(policed) and not lacking


def policed_tables(connection: Connection) -> set[str]:
    """The tables of users' rows that have their policies, none but those, in force."""
    expected, live = expected_policies(connection), _all_policies(connection)
    whole = {table for table, policies in expected.items() if policies.keys() == live.get(table, {}).keys()}
    return secured_tables(connection) & whole


def adopt_role(connection: Connection, role: str, user_id: str) -> bool:
    """Confine the rest of the transaction to one user; False, and nothing is done, if the policies are gone by now.

    Raises `RowSecurityError` if the login may not adopt the role.
    """
    # One statement, and both settings end with the transaction: a pooled connection goes back as it came.
    try:
        # By the driver itself: each transaction of each user begins with it, and SQLAlchemy would double its time.
        with named_errors(connection), closing(connection.connection.cursor()) as cursor:
            if not hasattr(connection.dialect, _SCHEMA):
                cursor.execute("SELECT quote_ident(current_schema())")
                ((schema,),) = cursor.fetchall()
                if schema is None:
                    return False
                setattr(connection.dialect, _SCHEMA, schema)
            confining = _confining(getattr(connection.dialect, _SCHEMA), _owned())
            cursor.execute(f"SELECT {confining}", {"role": role, "user_id": user_id})
            ((confined,),) = cursor.fetchall()
    except DBAPIError as error:
        if not isinstance(error.orig, (InsufficientPrivilege, InvalidParameterValue)):
            raise
        raise RowSecurityError(
            f"this login cannot adopt the role {role}, which the policies are for; run python -m shared.db "
            f"row-security status, and have an administrator run: GRANT {_quoted(role)} TO this login"
        ) from error
    if not confined:
        leave(connection)
        is_installed(connection)  # which says what is missing, where others are in force
        return False
    connection.info[ADOPTED] = user_id
    return True


def adopting(connection: Connection, cursor: Any, role: str, user_id: str) -> bytes | None:
    """What does the same in front of a statement, in one message with it, and fails if the policies are gone by now.

    None as long as nobody knows the tables' schema, which `adopt_role()` asks for.
    """
    schema = getattr(connection.dialect, _SCHEMA, None)
    if schema is None:
        return None
    # What the first of several statements gives nobody sees, and an error of it ends the message.
    statement = f"SELECT 1 / ({_confining(schema, _owned())})::int; "
    message: bytes = cursor.mogrify(statement, {"role": role, "user_id": user_id})
    return message


def adopting_unasked(cursor: Any, role: str, user_id: str) -> bytes:
    """What does the same in front of a question that is confined without the policies, for which nobody asks."""
    statement: bytes = cursor.mogrify(_ADOPT_UNASKED, {"role": role, "user_id": user_id})
    return statement


def leave(connection: Connection) -> None:
    """Go on with the transaction as the login itself."""
    with named_errors(connection), closing(connection.connection.cursor()) as cursor:
        cursor.execute("SELECT set_config('role', 'none', true)")


_ADOPT_UNASKED = "SELECT set_config('role', %(role)s, true), set_config('shared_db.user_id', %(user_id)s, true); "


def _owned() -> tuple[type[Any], ...]:
    return tuple(model for model, entry in OWNERSHIP.items() if entry is not None)


@lru_cache(maxsize=8)
def _confining(schema: str, owned: tuple[type[Any], ...]) -> str:
    """What adopts the role, and says whether the tables that hold users' rows have their policies."""
    # Evaluated from left to right: whether the policies hold is asked as the role they are for, and by the full name,
    # since a temporary table of the same name would come first.
    conditions = [
        "set_config('role', %(role)s, true) IS NOT NULL",
        "set_config('shared_db.user_id', %(user_id)s, true) IS NOT NULL",
    ]
    for model in owned:
        name = f"{schema}.{_quoted(model.__tablename__)}".replace("'", "''").replace("%", "%%")
        # A table need not be there, and may come while this process runs.
        conditions.append(f"coalesce(row_security_active(to_regclass('{name}')), true)")
    return " AND ".join(conditions)


REMEDY_FOR_USERS: Final = (
    "a user's session reaches declared tables alone: declare in its class whose rows a table holds (__ownership__) and "
    "run row-security enable; opened to the role by hand, no policy would confine it"
)


def violation_of(context: ExceptionContext) -> TenantViolation | None:
    """The violation behind a driver's error, if the server's policies refused a row."""
    error = context.original_exception
    if not isinstance(error, InsufficientPrivilege) or "row-level security" not in str(error):
        return None
    table = str(error).partition('for table "')[2].partition('"')[0]
    user_id = context.connection.info.get(ADOPTED) if context.connection is not None else None
    reason = "the database's own policy allows no such row to this user"
    if (context.statement or "").startswith("UPDATE"):
        reason += f"; {HOW_TO_DELETE}"
    return TenantViolation("write", table, user_id, reason)


def create_role(connection: Connection, role: str) -> None:
    """Create the role without login, with what it needs, unless it is there. Raises `RowSecurityError` if refused."""
    for _ in range(3):
        missing = _missing_grants(connection, role)
        if not missing:
            return
        try:
            with connection.begin_nested():
                _run(connection, *missing)
        except DBAPIError as error:
            # Roles belong to the whole server: another database's fleet may be making the same one right now.
            if isinstance(error.orig, (UniqueViolation, DuplicateObject)):
                continue
            if not isinstance(error.orig, InsufficientPrivilege):
                raise
            raise _lacking(connection, role, missing) from error
    # A GRANT that one may not give is a mere warning for some kinds of objects.
    missing = _missing_grants(connection, role)
    if missing:
        raise _lacking(connection, role, missing)


def _lacking(connection: Connection, role: str, missing: list[str]) -> RowSecurityError:
    login = connection.scalar(text("SELECT current_user"))
    return RowSecurityError(
        f"the login {login} may not create the role {role}; have an administrator run: " + "; ".join(missing)
    )


def _missing_grants(connection: Connection, role: str) -> list[str]:
    """The statements by which the login gets the role, and the role the schema; all three if there is no role."""
    quoted = _quoted(role)
    login, schema = connection.execute(text("SELECT current_user, current_schema()")).one()
    granted = f"GRANT {quoted} TO {_quoted(str(login))}"
    usage = f"GRANT USAGE ON SCHEMA {_quoted(str(schema))} TO {quoted}"
    if not role_exists(connection, role):
        return [f"CREATE ROLE {quoted} NOLOGIN", granted, usage]
    missing = [] if may_adopt(connection, role) else [granted]
    if not connection.scalar(
        text("SELECT has_schema_privilege(:role, :schema, 'USAGE')"), {"role": role, "schema": schema}
    ):
        missing.append(usage)
    return missing


def role_exists(connection: Connection, role: str) -> bool:
    """Whether the server has the role."""
    return bool(connection.scalar(text("SELECT count(*) FROM pg_roles WHERE rolname = :role"), {"role": role}))


def may_adopt(connection: Connection, role: str) -> bool:
    """Whether the login may take on the role, which must exist."""
    # Since version 16 a member need not have that right: whoever creates a role has all of it but this.
    version = connection.dialect.server_version_info or (0,)
    right = "SET" if version >= (16,) else "MEMBER"
    return bool(connection.scalar(text(f"SELECT pg_has_role(current_user, :role, '{right}')"), {"role": role}))


def exemption(connection: Connection, role: str) -> str | None:
    """Why policies would not hold the role, None if they do."""
    found = connection.execute(
        text("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = :role"), {"role": role}
    ).first()
    if found is not None and any(found):
        return f"the role {role} is a superuser or has BYPASSRLS, so no policy holds it"
    owned = connection.scalars(
        text(
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(current_schema())) "
            "AND relname = ANY(:tables) AND relkind IN ('r', 'p') AND pg_has_role(:role, relowner, 'USAGE') "
            "ORDER BY relname"
        ),
        {"role": role, "tables": [*expected_policies(connection)]},
    ).all()
    return f"the role {role} owns {', '.join(owned)}, so no policy holds it" if owned else None


def _require_subject(connection: Connection, role: str) -> None:
    reason = exemption(connection, role)
    if reason is not None:
        raise RowSecurityError(f"{reason}; name another one in GRIDBOT_DB_TENANT_ROLE")


def _lock(connection: Connection, tables: Iterable[str]) -> None:
    """Have all tables to ourselves before the first one is changed: bots that wait in the middle could deadlock."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            with connection.begin_nested():
                # Whoever waits for a table makes every later reader wait too: only for a moment, then
                # all is let go.
                _run(
                    connection,
                    f"SET LOCAL lock_timeout = '{int(_TURN * 1000)}ms'",
                    f"LOCK TABLE {', '.join(map(quoted_name, tables))} IN ACCESS EXCLUSIVE MODE",
                )
        except DatabaseLockedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_TURN)  # the bots' turn
        else:
            return


def sequence_of(connection: Connection, model: type[Base]) -> str | None:
    """The sequence that numbers the rows of `model`, quoted; None if they are not numbered."""
    found: str | None = connection.scalar(
        text("SELECT pg_get_serial_sequence(:table, :key)"),
        {"table": quoted_name(model.__tablename__), "key": primary_key(model)},
    )
    return found


def live_policies(connection: Connection) -> dict[str, dict[str, Any]]:
    """What the server has of the policies that are expected, by table and name: roles, cmd, qual and so on."""
    expected = expected_policies(connection)
    return {
        table: {name: row for name, row in live.items() if name in expected[table]}
        for table, live in _all_policies(connection).items()
        if table in expected
    }


def _all_policies(connection: Connection) -> dict[str, dict[str, Any]]:
    rows = connection.execute(
        text(
            "SELECT tablename, policyname, roles::text[] AS roles, cmd, permissive, qual, with_check FROM pg_policies "
            "WHERE schemaname = current_schema() AND policyname = ANY(:names) ORDER BY tablename, policyname"
        ),
        {"names": [*NAMES]},
    )
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row.tablename, {})[row.policyname] = row
    return found


def secured_tables(connection: Connection) -> set[str]:
    """The tables of users' rows for which row-level security is on."""
    rows = connection.scalars(
        text(
            "SELECT relname FROM pg_class WHERE relrowsecurity AND relkind IN ('r', 'p') "
            "AND relnamespace = to_regnamespace(quote_ident(current_schema()))"
        )
    )
    return set(rows) & set(expected_policies(connection))


def fingerprint_of(policy: Policy, live: Any) -> str:
    """What tells a policy in both spellings, the code's and the server's, from every other."""
    spelling = (policy.using, policy.check, live.qual, live.with_check)
    return hashlib.sha256("\n".join(map(str, spelling)).encode()).hexdigest()


def _own(table: str, entry: Ownership) -> str:
    if entry.parent is None:
        return f"{_column(table, entry.column)} = {_CURRENT_USER}"
    return _names(table, entry.column, _own_keys(entry.parent))


def _column(table: str, column: str) -> str:
    return f"{quoted_name(table)}.{quoted_name(column)}"


def _names(table: str, column: str, keys: str) -> str:
    # An ARRAY of a subselect is built once; IN and EXISTS cost five to eight times as much a scan.
    return f"{_column(table, column)} = ANY (ARRAY({keys}))"


def _own_keys(model: type[Base], *, or_public: bool = False) -> str:
    entry = OWNERSHIP[model]
    assert entry is not None, "only owned rows are named as parents"
    table = model.__tablename__
    condition = _own(table, entry)
    if or_public and entry.public is not None:
        condition += f" OR {_column(table, entry.public)}"
    return f"SELECT {_column(table, primary_key(model))} FROM {quoted_name(table)} WHERE {condition}"


def _may_write(model: type[Base], entry: Ownership) -> tuple[str, str]:
    """What a row must be to be written: own, under own parents; and what it must name besides when it is made."""
    # Every parent is named: foreign keys are checked without regard to policies.
    own: list[str] = [_own(model.__tablename__, entry)]
    named: list[str] = []
    for reference in entry.further:
        parent = OWNERSHIP[reference.parent]
        public = parent is not None and parent.public is not None
        (named if public else own).append(_may_name(model, reference))
    return " AND ".join(own), " AND ".join(named)


def _may_name(model: type[Base], reference: Reference) -> str:
    table = quoted_name(model.__tablename__)
    column = f"{table}.{quoted_name(reference.column)}"
    named = _names(model.__tablename__, reference.column, _own_keys(reference.parent, or_public=True))
    if reference.agrees:
        parent = quoted_name(reference.parent.__tablename__)
        same = [f"p.{quoted_name(primary_key(reference.parent))} = {column}"]
        same += [f"p.{name} = {table}.{name}" for name in map(quoted_name, reference.agrees)]
        named += f" AND EXISTS (SELECT 1 FROM {parent} p WHERE {' AND '.join(same)})"
    return f"({column} IS NULL OR {named})" if reference.optional else named


def quoted_name(name: str) -> str:
    """The name of a table or column as SQL has it: in quotes where it needs them."""
    return str(_PREPARER.quote(name))


def _quoted(name: str) -> str:
    # SQLAlchemy's own quoting doubles % too, for the driver.
    return '"' + name.replace('"', '""') + '"'


def _run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        # A colon in a role's name is no parameter.
        connection.execute(text(statement.replace(":", "\\:")))
