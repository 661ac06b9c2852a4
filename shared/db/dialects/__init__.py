"""The databases, and which of them something belongs to."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Dialect

from shared.db.dialects.mysql import MySQL
from shared.db.dialects.port import Bound, PerDatabase, Port, dialect_of
from shared.db.dialects.postgresql import PostgreSQL
from shared.db.dialects.sqlite import SQLite
from shared.db.dialects.standard import Standard
from shared.db.errors import UnknownDatabaseError

__all__ = [
    "MYSQL",
    "PORTS",
    "POSTGRESQL",
    "SQLITE",
    "Bound",
    "DatabaseType",
    "PerDatabase",
    "Port",
    "dialect_of",
    "port_named",
    "port_of",
    "port_of_error",
]

DatabaseType = Literal["sqlite", "postgresql", "mysql", "mariadb"]
"""What `GRIDBOT_DB_TYPE` may say."""

SQLITE = SQLite()
POSTGRESQL = PostgreSQL()
MYSQL = MySQL()
PORTS: tuple[Port, ...] = (SQLITE, POSTGRESQL, MYSQL)

_BY_DIALECT = {dialect: port for port in (*PORTS, Standard()) for dialect in port.dialects}


def port_of(bound: Bound) -> Port:
    """The database behind an engine, a connection, a session or a dialect. `UnknownDatabaseError` for any other."""
    return port_named((bound if isinstance(bound, Dialect) else dialect_of(bound)).name)


def port_named(name: str) -> Port:
    """The database of that name. `UnknownDatabaseError` for any other."""
    try:
        return _BY_DIALECT[name]
    except KeyError:
        raise UnknownDatabaseError(name) from None


def port_of_error(error: BaseException | None) -> Port | None:
    """The database whose driver raised the error; None for any other error."""
    return next((port for port in PORTS if isinstance(error, port.error)), None)
