"""Packages with tables of their own pass their own tests, each in a process of its own.

They are the example of a consumer, with the fixtures for consumers, and those that stand beside this one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sqlalchemy import URL

from shared.db.tests.forked import run_python

_PACKAGE = Path(__file__).parents[1]
_EXAMPLE = _PACKAGE.parents[1] / "examples" / "gridfleet"
BESIDE = sorted(
    path.parent for path in _PACKAGE.parent.glob("*/pyproject.toml") if "entry-points" in path.read_text("utf-8")
)
"""The packages of the workspace that have tables."""


# How many orders the API tells each user of. A server of its own is in the tests of shared.db.web.
ASKED = """
import asyncio, json
from decimal import Decimal
from gridfleet.api import api
from gridfleet.bot import Bot
from shared.db import DatabaseFactory
from tests.test_gridfleet import fleet

async def asked(user):
    sent = []
    async def receive():
        return {"type": "http.request"}
    async def send(message):
        sent.append(message)
    headers = [(b"x-user", user)] if user else []
    scope = {"type": "http", "method": "GET", "path": "/orders", "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    print(sent[0]["status"], len(json.loads(sent[1]["body"])))

with DatabaseFactory("sqlite://") as db:
    db.create_tables()
    app = api(fleet(db))
    Bot(db, "ann", "run-ann").place_grid("BTCUSDT", 2, Decimal("0.01"), Decimal("0.1"))
    for user in (b"ann", b"bob", b""):
        asyncio.run(asked(user))
"""


# The machine's steps on PostgreSQL with and without its policies differ little; what a plain session sees, not at all.
_OUTSIDE = (
    "(stateful and (file or policies)) or ((outside or by_registry) and not memory) "
    "and not (these_statements and policies)"
)


@pytest.fixture
def environment(postgresql_server: URL) -> dict[str, str]:
    """Where the example's tests are, and a server is; the workspace has installed it."""
    return {
        "PYTHONPATH": str(_EXAMPLE),
        "GRIDBOT_TEST_POSTGRESQL_URL": postgresql_server.render_as_string(hide_password=False),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.mark.slow
def test_the_example_passes_its_own_tests(tmp_path: Path, environment: dict[str, str]) -> None:
    """On every database and from the command line; the plugin takes nothing from what coverage counts."""
    # Of ours a file that is loaded first of all, since counting all of them takes half of the time.
    (tmp_path / "counted").write_text(f"[run]\ninclude =\n    {_EXAMPLE}/*\n    {_PACKAGE}/errors.py\n")
    done = run_python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--cov", "--cov-config=counted"),
        *(f"--cov-report=json:{tmp_path / 'coverage.json'}", str(_EXAMPLE)),
        cwd=tmp_path,
        environment=environment | {"COVERAGE_FILE": str(tmp_path / "coverage")},
        ours=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
    covered = json.loads((tmp_path / "coverage.json").read_text())["files"]
    shares = {"/".join(Path(name).parts[-2:]): found["summary"]["percent_covered"] for name, found in covered.items()}
    assert shares["gridfleet/models.py"] == shares["gridfleet/bot.py"] == 100
    assert shares["db/errors.py"] > 50, "what is imported at its top was counted"


@pytest.mark.slow
def test_two_users_never_meet_in_outside_tables(tmp_path: Path, environment: dict[str, str]) -> None:
    """The machine and the cases take whatever the registry has: where the example is imported, its tables too.

    With the library alone, and with PostgreSQL's policies beside it.
    """
    done = run_python(
        *("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-p", "gridfleet.models", "-k", _OUTSIDE),
        *("-o", "junit_family=xunit1", f"--junitxml={tmp_path / 'steps.xml'}"),
        *(str(_PACKAGE / "tests" / f"test_tenancy_{name}.py") for name in ("stateful", "adversarial", "by_registry")),
        cwd=_PACKAGE.parents[1],
        environment=environment,
        ours=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
    met = re.search(r'name="tables" value="(.*?)"', (tmp_path / "steps.xml").read_text())
    assert met is not None
    assert {"orders", "positions", "wallets", "grid_states"} < {*met[1].split()}
    assert "outside" in (tmp_path / "steps.xml").read_text(), "the cases ran"


@pytest.mark.slow
@pytest.mark.parametrize("package", BESIDE, ids=lambda path: path.name)
def test_a_package_beside_this_one_passes_its_own_tests(package: Path, postgresql_server: URL) -> None:
    """On every database; here alone, for whatever process imports it has its tables in every database."""
    done = run_python(
        *("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(package)),
        cwd=package.parents[1],
        environment={"GRIDBOT_TEST_POSTGRESQL_URL": postgresql_server.render_as_string(hide_password=False)},
        ours=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_the_api_shows_each_user_their_own_orders(environment: dict[str, str]) -> None:
    """One request after the other, each in a session of its own; without a user none."""
    ended = run_python("-c", ASKED, environment=environment)
    assert ended.stdout.splitlines() == ["200 2", "200 0", "401 1"], ended.stderr


def test_the_example_stays_small() -> None:
    """Six hundred lines, all told."""
    files = [path for ending in ("py", "md", "toml") for path in _EXAMPLE.rglob(f"*.{ending}")]
    assert sum(len(path.read_text().splitlines()) for path in files) <= 600
