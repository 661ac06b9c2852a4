"""Tables that take the places of others at once: the last step of a restore on MariaDB and MySQL.

One RENAME TABLE moves them all, which the server does whole or not at all. It takes no table with a trigger to another
database, and no view: those are dropped before, and made again in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, text

from shared.db.dialects import port_of
from shared.db.dialects.mysql import GRANT_SCRATCH, SCRATCH
from shared.db.engine.mysql import SETTINGS, expect_ddl
from shared.db.errors import BackupError, PermissionDeniedError, StatementRefusedError

_LOCK_TIMEOUT = 30
# A name ends at 64 characters.
_LONGEST = 64 - len(f"{SCRATCH}_new_")


class _Code(NamedTuple):
    """A trigger or a view: how it was made, and under which sql_mode if not under ours."""

    kind: str
    name: str
    created: str
    mode: str | None = None


@contextmanager
def databases_beside(connection: Connection) -> Iterator[tuple[str, str]]:
    """The names of two empty databases, which are gone afterwards: what comes is loaded into one, what goes the other.

    They are named after the database in use, so that what a process that was killed has left goes with the next.
    """
    here = _database(connection)
    known = here if len(here) <= _LONGEST else sha256(here.encode()).hexdigest()[:_LONGEST]
    new, old = (f"{SCRATCH}_{role}_{known}" for role in ("new", "old"))
    expect_ddl(connection)
    # Another program loads meanwhile, for hours perhaps.
    connection.execute(text("SET SESSION wait_timeout = 31536000"))
    try:
        for name in (new, old):
            _run(connection, f"DROP DATABASE IF EXISTS {_quoted(connection, name)}")
            _run(connection, f"CREATE DATABASE {_quoted(connection, name)}")
    except PermissionDeniedError as error:
        raise BackupError(
            "the backup is loaded into a database of its own first, and this login may make none; " + GRANT_SCRATCH
        ) from error
    try:
        yield new, old
    finally:
        if not connection.invalidated:
            for name in (new, old):
                _run(connection, f"DROP DATABASE {_quoted(connection, name)}")
            connection.execute(text(f"{SETTINGS}, wait_timeout = DEFAULT"))


@contextmanager
def using(connection: Connection, name: str) -> Iterator[None]:
    """Names without a database's are of this one."""
    here = _database(connection)
    _run(connection, f"USE {_quoted(connection, name)}")
    try:
        yield
    finally:
        if not connection.invalidated:
            _run(connection, f"USE {_quoted(connection, here)}")


def refuse_references(connection: Connection, replaced: Collection[str]) -> None:
    """`BackupError` if a table that stays has a foreign key to one that goes, and would have it from then on."""
    query = text(
        "SELECT DISTINCT concat(constraint_schema, '.', table_name) FROM information_schema.referential_constraints "
        "WHERE unique_constraint_schema = database() AND referenced_table_name IN :tables "
        "AND NOT (constraint_schema = database() AND table_name IN :tables)"
    ).bindparams(bindparam("tables", expanding=True))
    if found := sorted(connection.scalars(query, {"tables": [*replaced]})):
        raise BackupError(
            f"{', '.join(found)} would stay, and has a foreign key to a table that is replaced; drop that foreign key, "
            "and make it again afterwards"
        )


def exchange(
    connection: Connection, new: str, old: str, replaced: Collection[str], accept: Callable[[Connection], None]
) -> None:
    """Have all that is in `new` take the place of the tables `replaced` of the database in use, which go to `old`.

    `accept` looks at them there, where nobody writes to them any more. If it raises, or anything else does, all is as
    it was.
    """
    here = _database(connection)
    with using(connection, new):
        coming = port_of(connection).tables(connection)
        come = _triggers(connection, coming) + _views(connection)
    gone = _triggers(connection, replaced) + _views(connection, {code.name for code in come})
    forth = [(here, table, old) for table in replaced] + [(new, table, here) for table in coming]
    back = [(target, table, source) for source, table, target in reversed(forth)]
    moved = False
    try:
        with using(connection, new):
            _drop(connection, come, "TRIGGER")
        connection.execute(text(f"SET SESSION lock_wait_timeout = {_LOCK_TIMEOUT}"))
        _drop(connection, gone, "TRIGGER")
        _rename(connection, forth)
        moved = True
        connection.execute(text("SET SESSION lock_wait_timeout = DEFAULT"))
        with using(connection, old):
            accept(connection)
        _make(connection, come)
    except BaseException as error:
        if connection.invalidated:
            raise BackupError(
                f"the connection was lost while tables changed places: {here} holds the old rows or the backup's, and "
                "may lack triggers; restore again"
            ) from error
        connection.execute(text("SET SESSION lock_wait_timeout = DEFAULT"))
        if moved:
            _drop(connection, come, "TRIGGER")
            _rename(connection, back)
        _make(connection, gone)
        raise


def _triggers(connection: Connection, tables: Collection[str]) -> list[_Code]:
    query = "SELECT trigger_name, event_object_table FROM information_schema.triggers WHERE trigger_schema = database()"
    found = []
    for name, table in connection.execute(text(query)).all():
        if table in tables:
            shown = _run(connection, f"SHOW CREATE TRIGGER {_quoted(connection, name)}").one()
            found.append(_Code("TRIGGER", name, shown[2], shown[1]))
    return found


def _views(connection: Connection, among: Collection[str] | None = None) -> list[_Code]:
    query = "SELECT table_name FROM information_schema.views WHERE table_schema = database() ORDER BY 1"
    return [
        _Code("VIEW", name, _run(connection, f"SHOW CREATE VIEW {_quoted(connection, name)}").one()[1])
        for name in connection.scalars(text(query)).all()
        if among is None or name in among
    ]


def _drop(connection: Connection, codes: list[_Code], kind: str) -> None:
    for code in codes:
        if code.kind == kind:
            _run(connection, f"DROP {kind} IF EXISTS {_quoted(connection, code.name)}")


def _make(connection: Connection, codes: list[_Code]) -> None:
    """Make them anew. A view may need another one: what is refused is tried again once others are there."""
    left, refusal = codes, None
    while left:
        refused = []
        for code in left:
            _drop(connection, [code], code.kind)
            if code.mode is not None:
                connection.execute(text("SET SESSION sql_mode = :mode"), {"mode": code.mode})
            try:
                _run(connection, code.created)
            except StatementRefusedError as error:
                refused.append(code)
                refusal = error
            finally:
                if code.mode is not None and not connection.invalidated:
                    connection.execute(text(SETTINGS))
        if refusal is not None and len(refused) == len(left):
            raise refusal
        left = refused


def _rename(connection: Connection, moves: list[tuple[str, str, str]]) -> None:
    parts = (
        f"{_quoted(connection, source)}.{_quoted(connection, table)} TO "
        f"{_quoted(connection, target)}.{_quoted(connection, table)}"
        for source, table, target in moves
    )
    _run(connection, f"RENAME TABLE {', '.join(parts)}")


def _database(connection: Connection) -> str:
    return str(connection.scalar(text("SELECT database()")))


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote_identifier(name)


def _run(connection: Connection, statement: str) -> Any:
    # Without parameters a per cent sign is one.
    return connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
