"""docs/monitoring.md: what Grafana shows comes from the database, and is one user's."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import URL

from shared.db import DatabaseFactory
from shared.db.testing import run_on_server
from shared.db.tests.support import two_runs

DOCS = Path(__file__).parents[1] / "docs"
DASHBOARD = json.loads((DOCS / "grafana-dashboard.json").read_text())
QUERIES = {panel["title"]: target["rawSql"] for panel in DASHBOARD["panels"] for target in panel["targets"]}


@pytest.fixture
def login(policed_db: DatabaseFactory) -> Iterator[URL]:
    """The login that the page's statements make for ann, on a database with policies, bob's run and some trades."""
    ann, _ = two_runs(policed_db)
    (statements,) = re.findall(r"```sql\n(.*?)```", (DOCS / "monitoring.md").read_text(), re.DOTALL)
    name, url = f"grafana_{os.getpid()}", policed_db.settings.url
    run_on_server(url, statements.replace("USER_ID", ann.user_id).replace("grafana_alice", name))
    yield url.set(username=name, password="change-me")
    run_on_server(url, f"DROP SCHEMA {name} CASCADE", f"DROP ROLE {name}")


def asked(login: URL, query: str) -> list[tuple[object, ...]]:
    """What Grafana's data source gets, with its macro as it writes it."""
    query = re.sub(r"\$__timeFilter\((\w+)\)", r"\1 BETWEEN '2000-01-01T00:00:00Z' AND '2100-01-01T00:00:00Z'", query)
    connection = psycopg2.connect(login.set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()
    finally:
        connection.close()


def test_every_panel_of_the_dashboard_shows_the_users_rows_alone(policed_db: DatabaseFactory, login: URL) -> None:
    """Its queries run under that login, and count what the user has."""
    found = {title: asked(login, query) for title, query in QUERIES.items()}
    assert len(found) == 6
    fills = sum(int(str(row[1])) for row in found["Fills and fees by symbol"])
    assert fills == len(found["Closed PnL less fees, summed up"]) == 20
    assert len(found["Runs that are running"]) == 1
    assert policed_db.row_security_status().problems == ()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM public.runs",
        "SELECT * FROM public.api_credentials",
        "SET default_transaction_read_only = off; DELETE FROM runs",
        "SET search_path = public; SELECT * FROM private_executions",
        "SET shared_db.user_id = 'bob'; SELECT * FROM public.users",
        "SET ROLE {tenant}",
    ],
)
def test_no_panel_can_ask_for_more(policed_db: DatabaseFactory, login: URL, statement: str) -> None:
    """Whatever its editor sets, the login has no privilege on any table."""
    with pytest.raises((psycopg2.errors.InsufficientPrivilege, psycopg2.errors.ReadOnlySqlTransaction)):
        asked(login, statement.format(tenant=policed_db.settings.tenant_role))
