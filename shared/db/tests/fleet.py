"""Two users, "ann" and "bob", who own one of everything, under ids that tell whose they are; on four databases.

The fixtures reach the tests by way of conftest.py.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, delete, select
from sqlalchemy.orm import Session

from shared.db import (
    ApiCredential,
    Base,
    BybitAccount,
    DatabaseFactory,
    DatabaseSettings,
    PrivateExecution,
    PublicTrade,
    Run,
    Strategy,
    TenantViolation,
    User,
)
from shared.db.dialects import MYSQL as MYSQL_PORT
from shared.db.testing import has_mysql, run_on_mysql
from shared.db.tests.support import execution_values, run_on_server

PLACES = ("memory", "file", "postgresql", "policies")
MYSQL = ("mysql",) if has_mysql() else ()
OWN: dict[type[Base], str] = {
    User: "ann",
    BybitAccount: "acc-ann",
    ApiCredential: "cred-ann",
    Strategy: "str-ann",
    Run: "run-ann",
}
FOREIGN = {model: key.replace("ann", "bob") for model, key in OWN.items()}


@pytest.fixture(scope="session")
def fleet_databases(postgresql_server: URL) -> Iterator[dict[str, URL]]:
    """Two PostgreSQL databases, without and with the policies, which tests fill anew one after the other."""
    urls = {place: postgresql_server.set(database=f"shared_db_{place}_{os.getpid()}") for place in PLACES[2:]}
    for place, url in urls.items():
        run_on_server(postgresql_server, f"CREATE DATABASE {url.database}")
        with DatabaseFactory(url) as db:
            db.create_tables()
            if place == "policies":
                db.enable_row_security()
    yield urls
    for url in urls.values():
        run_on_server(postgresql_server, f"DROP DATABASE {url.database} WITH (FORCE)")


@pytest.fixture(scope="session")
def fleet_on_mysql(mysql_server: URL) -> Iterator[dict[str, URL]]:
    """The same on MariaDB or MySQL."""
    url = mysql_server.set(database=f"shared_db_fleet_{os.getpid()}")
    run_on_mysql(mysql_server, f"CREATE DATABASE {url.database}")
    with DatabaseFactory(url) as db:
        db.create_tables()
    yield {"mysql": url}
    run_on_mysql(mysql_server, f"DROP DATABASE {url.database}")


@pytest.fixture(scope="session")
def fleet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with all rows in it, of which tests get a copy: making one anew takes ten times as long."""
    path = tmp_path_factory.mktemp("fleet") / "grid_bot.db"
    with DatabaseFactory(f"sqlite:///{path}") as db:
        db.create_tables()
        fill(db)
    return path


@pytest.fixture(params=PLACES + MYSQL)
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A database with all of ann's and bob's rows in it, and nothing else."""
    yield from fleet_on(request.param, request, tmp_path)


@pytest.fixture(params=PLACES[1:] + MYSQL)
def busy_fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """The same where several sessions can be open at once."""
    yield from fleet_on(request.param, request, tmp_path)


@pytest.fixture(params=PLACES[2:])
def postgresql_fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """The same on PostgreSQL, without and with its policies."""
    yield from fleet_on(request.param, request, tmp_path)


@pytest.fixture(params=PLACES[:3] + MYSQL)
def unpoliced_fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """The same where nothing but this library keeps the users apart."""
    yield from fleet_on(request.param, request, tmp_path)


@pytest.fixture
def policed_fleet(postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """The same on PostgreSQL with its policies, in a database of the test's own, whose policies it may change."""
    with DatabaseFactory(postgresql_url) as db:
        fill(db)
        db.enable_row_security()
        yield db


def fleet_on(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A filled database of the given kind, for one test."""
    if place not in ("memory", "file"):
        fixture = "fleet_on_mysql" if place == "mysql" else "fleet_databases"
        url: URL = request.getfixturevalue(fixture)[place]
        settings = DatabaseSettings(database_url=url.render_as_string(hide_password=False), _env_file=None)
        with DatabaseFactory(settings) as db:
            fill(db)
            yield db
        return
    filled: Path = request.getfixturevalue("fleet_file")
    name = ":memory:" if place == "memory" else str(shutil.copy(filled, tmp_path))
    with DatabaseFactory(DatabaseSettings(db_name=name, _env_file=None)) as db:
        if place == "memory":
            with closing(sqlite3.connect(filled)) as template, closing(db.engine.raw_connection()) as connection:
                memory: Any = connection.driver_connection
                template.backup(memory)
        yield db


def fill(db: DatabaseFactory) -> None:
    """Store all rows of both users, in place of what is there."""
    with db.get_session() as session:
        for model in (User, PublicTrade):
            session.execute(delete(model))
        for user in ("ann", "bob"):
            session.add_all(rows_of(user))


def rows_of(user: str) -> list[Base]:
    """One of everything for a user, not stored yet."""
    run = Run(run_id=f"run-{user}", user_id=user, account_id=f"acc-{user}", strategy_id=f"str-{user}", run_type="live")
    return [
        User(user_id=user, username=f"name-{user}", email=f"{user}@example.com"),
        BybitAccount(account_id=f"acc-{user}", user_id=user, account_name=f"main-{user}", environment="testnet"),
        ApiCredential(
            credential_id=f"cred-{user}",
            account_id=f"acc-{user}",
            api_key_id=f"key-{user}",
            api_secret=f"secret-{user}",
        ),
        Strategy(
            strategy_id=f"str-{user}", account_id=f"acc-{user}", strategy_type="Grid", symbol="BTCUSDT", config_json={}
        ),
        run,
        PrivateExecution(**execution_values(run, exec_id=f"exec-{user}")),
    ]


def run_values(user: str = "bob", **values: Any) -> dict[str, Any]:
    """The values of a new run under the user's account and strategy, which has ended: another is running."""
    given = {"user_id": user, "account_id": f"acc-{user}", "strategy_id": f"str-{user}", "run_type": "live"}
    return given | {"status": "completed"} | values


def everything_of(db: DatabaseFactory, user: str) -> list[Any]:
    """All rows of a user as a plain session sees them, whatever their ids."""
    with db.get_session() as session:
        return [
            tuple(row)
            for table in Base.metadata.sorted_tables
            for row in session.execute(select(table).order_by(*table.primary_key.columns))
            if user in str(row)
        ]


def run_without_keys(db: DatabaseFactory, statement: str) -> None:
    """Run a statement while no foreign key is looked at: so may rows have come that are older than the keys."""
    with closing(db.engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
        if db.settings.port is MYSQL_PORT:
            cursor.execute("SET foreign_key_checks = 0")
            cursor.execute(statement)
            connection.commit()
            cursor.execute("SET foreign_key_checks = 1")
        elif db.settings.is_sqlite:
            cursor.execute("PRAGMA query_only=OFF")  # as a read-only session leaves it
            cursor.execute("PRAGMA foreign_keys=OFF")
            cursor.execute(statement)
            connection.commit()
            cursor.execute("PRAGMA foreign_keys=ON")
        else:
            cursor.execute(f"SET LOCAL session_replication_role = replica; {statement}")
            connection.commit()


def cross(db: DatabaseFactory, run: str, user: str) -> None:
    """Hang a run, ended, under a user's account and strategy, and leave its owner as it is."""
    moved = f"account_id = 'acc-{user}', strategy_id = 'str-{user}', status = 'completed'"
    run_without_keys(db, f"UPDATE runs SET {moved} WHERE run_id = '{run}'")


def detached(db: DatabaseFactory, model: type[Base], key: str) -> Any:
    """A stored object, loaded in a plain session and taken out of it."""
    with db.get_session() as plain:
        found = plain.get(model, key)
        assert found is not None
        plain.expunge(found)
        return found


def refused_and_unwritten(db: DatabaseFactory, attempt: Callable[[Session], object]) -> TenantViolation:
    """`attempt` in ann's session raises TenantViolation, and afterwards the whole database is as it was."""
    before = [everything_of(db, user) for user in ("ann", "bob")]

    def try_it() -> None:
        with db.get_session(user_id="ann") as session:
            attempt(session)

    with pytest.raises(TenantViolation) as refused:
        try_it()
    assert [everything_of(db, user) for user in ("ann", "bob")] == before
    return refused.value
