"""Fixtures. Every contract test that asks for `db` (or for what is built on it) runs on three databases."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from shared.db import DatabaseFactory
from shared.db.testing import *  # noqa: F403 # its fixtures
from shared.db.tests.fleet import (  # noqa: F401 # fixtures
    MYSQL,
    busy_fleet,
    fleet,
    fleet_databases,
    fleet_file,
    fleet_on_mysql,
    policed_fleet,
    postgresql_fleet,
    unpoliced_fleet,
)
from shared.db.tests.kinds import kind, server  # noqa: F401 # fixtures
from shared.db.tests.migration_support import OwnRevisions
from shared.db.tests.on_mysql import runs_on_mysql
from shared.db.tests.on_partitions import IN_PARTITIONS, has_tests_in_partitions, runs_in_partitions
from shared.db.tests.roles import own_role, owner, roles  # noqa: F401 # fixtures
from shared.db.tests.support import postgresql_programs


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes, or a program that is not everywhere, runs only where its marker is asked for by name."""
    # Not by addopts: an `-m` of the caller's own would take its place.
    left_out = [mark for mark in ("browser", "pgbouncer", "soak") if mark not in config.option.markexpr]
    deselected = [item for item in items if any(map(item.get_closest_marker, left_out)) or not _runs_here(item)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]


def _runs_here(item: pytest.Item) -> bool:
    if IN_PARTITIONS:
        return runs_in_partitions(item)
    case = getattr(item, "callspec", None)
    return case is None or "mysql" not in case.params.values() or runs_on_mysql(item.path.name, item.name)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where trades are in partitions, what has to do with trades runs alone."""
    is_test = collection_path.match("test_*.py")
    return True if IN_PARTITIONS and is_test and not has_tests_in_partitions(collection_path) else None


@pytest.fixture(autouse=True)
def _empty_folder(clean_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # a fixture
    """No variable and no .env of the machine reaches a test; each starts in an empty folder, and our tables alone."""
    monkeypatch.setenv("GRIDBOT_DB_PACKAGES", "shared.db")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A command that a test runs as the last thing of its process leaves signals ignored: not for the next test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def postgresql_tools() -> Path:
    """The folder of pg_dump and pg_restore."""
    return postgresql_programs()


@pytest.fixture(params=("file", "postgresql", *MYSQL))
def empty_db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A factory on a database with nothing in it: file SQLite, PostgreSQL and MariaDB in turn."""
    if request.param != "file":
        url: URL | str = request.getfixturevalue(
            {"postgresql": "empty_postgresql_url", "mysql": "mysql_url"}[request.param]
        )
    else:
        url = f"sqlite:///{tmp_path / 'grid_bot.db'}"
    with DatabaseFactory(url) as factory:
        yield factory


@pytest.fixture(params=("file", "postgresql", *MYSQL))
def lasting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A database that several connections and processes share."""
    url = {"postgresql": "postgresql_url", "mysql": "mysql_copy"}.get(request.param)
    with DatabaseFactory(request.getfixturevalue(url) if url else f"sqlite:///{tmp_path / 'grid_bot.db'}") as factory:
        factory.create_tables()
        yield factory


@pytest.fixture
def own_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OwnRevisions:
    """A copy of the migrations, in use in place of the package's, to which a test adds revisions of its own."""
    return OwnRevisions(tmp_path, monkeypatch)
