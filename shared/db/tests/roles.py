"""What the tests of row-level security share: roles, logins and databases with a role of their own.

The fixtures reach the tests by way of conftest.py.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from sqlalchemy import URL

from shared.db import DatabaseFactory, DatabaseSettings
from shared.db.tests.fleet import fill
from shared.db.tests.support import run_on_server

_numbers = itertools.count()


class Roles:
    """Roles of one test's own; they belong to the whole server, so they must go when the test does."""

    def __init__(self, server: URL) -> None:
        self.server = server
        self._made: list[str] = []

    def name(self, what: str) -> str:
        """A name that nobody has, for a role that the test will make."""
        self._made.append(f"shared_db_{what}_{os.getpid()}_{next(_numbers)}")
        return self._made[-1]

    def login(self, what: str, attributes: str = "") -> str:
        """A new login."""
        name = self.name(what)
        run_on_server(self.server, f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'pw' {attributes}")
        return name

    def drop_all(self) -> None:
        """Drop what was made; the databases with their objects must be gone."""
        run_on_server(self.server, *(f'DROP ROLE IF EXISTS "{name}"' for name in self._made))


@pytest.fixture
def roles(postgresql_server: URL) -> Iterator[Roles]:
    """Roles that go with the test."""
    made = Roles(postgresql_server)
    yield made
    made.drop_all()


@pytest.fixture
def owner(roles: Roles, empty_postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """A database whose owner is a plain login, all of ann's and bob's rows in it, its tenant role not there yet."""
    name = roles.login("owner")
    run_on_server(roles.server, f'ALTER DATABASE {empty_postgresql_url.database} OWNER TO "{name}"')
    with factory(empty_postgresql_url.set(username=name, password="pw"), roles.name("tenant")) as db:
        db.create_tables()
        fill(db)
        yield db


@pytest.fixture
def own_role(roles: Roles, postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """A policed database of a superuser, whose tenant role is the test's own."""
    with factory(postgresql_url, roles.name("tenant")) as db:
        fill(db)
        db.enable_row_security()
        yield db


def factory(url: URL, role: str) -> DatabaseFactory:
    """A factory with a tenant role of its own."""
    return DatabaseFactory(
        DatabaseSettings(
            database_url=url.render_as_string(hide_password=False), tenant_role=role, pool_size=5, _env_file=None
        )
    )


def administrator(db: DatabaseFactory, roles: Roles, *statements: str) -> None:
    """Run statements in the database as the server's administrator."""
    run_on_server(roles.server.set(database=db.settings.url.database), *statements)


def driver(url: URL) -> Any:
    """The driver's own connection."""
    return closing(psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)))
