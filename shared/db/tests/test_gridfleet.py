"""Packages with tables of their own pass their own tests, each in a process of its own.

They are the example of a consumer, with the fixtures for consumers, and those that stand beside this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from sqlalchemy import URL

_PACKAGE = Path(__file__).parents[1]
_EXAMPLE = _PACKAGE.parents[1] / "examples" / "gridfleet"
BESIDE = sorted(
    path.parent for path in _PACKAGE.parent.glob("*/pyproject.toml") if "entry-points" in path.read_text("utf-8")
)
"""The packages of the workspace that have tables."""


@pytest.fixture
def environment(tmp_path: Path, postgresql_server: URL) -> dict[str, str]:
    """Where the example is installed as its wheel would be, and a server is."""
    project = tomllib.loads((_EXAMPLE / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / "site" / "gridfleet-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: gridfleet\nVersion: 0.1.0\n")
    points = "".join(
        f"[{group}]\n{''.join(f'{name} = {value}' for name, value in those.items())}\n"
        for group, those in project["entry-points"].items()
    )
    (metadata / "entry_points.txt").write_text(points)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(_EXAMPLE)]),
        "GRIDBOT_TEST_POSTGRESQL_URL": postgresql_server.render_as_string(hide_password=False),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GRIDBOT_DB_PACKAGES": "gridfleet",
    }


@pytest.mark.slow
def test_the_example_passes_its_own_tests(tmp_path: Path, environment: dict[str, str]) -> None:
    """On every database and from the command line; the plugin takes nothing from what coverage counts."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--cov={_EXAMPLE}"),
            *(f"--cov={_PACKAGE}", f"--cov-report=json:{tmp_path / 'coverage.json'}", str(_EXAMPLE)),
        ],
        cwd=tmp_path,
        env=environment | {"COVERAGE_FILE": str(tmp_path / "coverage")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
    covered = json.loads((tmp_path / "coverage.json").read_text())["files"]
    shares = {"/".join(Path(name).parts[-2:]): found["summary"]["percent_covered"] for name, found in covered.items()}
    assert shares["gridfleet/models.py"] == shares["gridfleet/bot.py"] == 100
    assert shares["db/errors.py"] > 50, "what is imported at its top was counted"


@pytest.mark.slow
@pytest.mark.parametrize("package", BESIDE, ids=lambda path: path.name)
def test_a_package_beside_this_one_passes_its_own_tests(package: Path, postgresql_server: URL) -> None:
    """On every database; here alone, for whatever process imports it has its tables in every database."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(package)],
        cwd=package.parents[1],
        env=os.environ | {"GRIDBOT_TEST_POSTGRESQL_URL": postgresql_server.render_as_string(hide_password=False)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_the_example_stays_small() -> None:
    """Six hundred lines, all told."""
    files = [path for ending in ("py", "md", "toml") for path in _EXAMPLE.rglob(f"*.{ending}")]
    assert sum(len(path.read_text().splitlines()) for path in files) <= 600
