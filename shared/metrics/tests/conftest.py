"""Fixtures: one server of each kind for a process's tests, and one for each test that kills it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.db import DatabaseFactory
from shared.metrics import InfluxDBClientWrapper
from shared.metrics.tests.servers import DATABASE, PROGRAMS, Server

_numbers = itertools.count()


@pytest.fixture(scope="session", params=PROGRAMS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of each kind in turn."""
    server = Server(request.param, tmp_path_factory.mktemp(request.param))
    yield server
    server.kill()


@pytest.fixture(params=PROGRAMS)
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of each kind in turn, to kill."""
    server = Server(request.param, tmp_path)
    yield server
    server.kill()


@pytest.fixture
def client(server: Server) -> Iterator[InfluxDBClientWrapper]:
    """A client that writes at once."""
    with InfluxDBClientWrapper(server.url, bucket=DATABASE, interval=0) as client:
        yield client


@pytest.fixture
def name() -> str:
    """A name that no other test writes under: nothing has to be deleted."""
    return f"name {os.getpid()} {next(_numbers)}"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A database."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as factory:
        factory.create_tables()
        yield factory
