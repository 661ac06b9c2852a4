"""What is installed: the files of the packages, and that they work where nothing else is.

Built with hatchling as it stands in the environment, and installed from uv's cache: no network is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest

import shared.db

WORKSPACE = Path(__file__).parents[3]
PACKAGE = WORKSPACE / "shared" / "db"
# What lies about in a developer's folder; none of it may reach a user.
DECOYS = (
    ".env",
    "grid_bot.db",
    "grid_bot.db-wal",
    "trades.csv.gz",
    "notes.txt",
    "conftest.py",
    "tests/test_decoy.py",
    "tests/conftest.py",
    "results.json",
    "tenancy/.env",
    "bulk/backup.db",
    "docs/.env",
    "docs/decoy.db",
    "docs/decoy.json",
)


@dataclass
class CleanEnvironment:
    """A virtual environment with the core dependencies, as locked, and nothing else."""

    folder: Path

    def install(self, *wheels: Path) -> None:
        """Install wheels, replacing what is there, without asking an index."""
        run(
            "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--reinstall", "--python", self.folder, *wheels
        )

    def python(self, *arguments: str, where: Path) -> str:
        """Run Python in the folder `where`, warnings being errors; what it printed. The second run compiles nothing."""
        interpreter = self.folder / "bin" / "python"
        kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": ""}
        return run(interpreter, "-W", "error", *arguments, where=where, **kept)


def run(*command: str | Path, where: Path = WORKSPACE, **environment: str) -> str:
    """Run a command; what it printed. A failure shows all that it said."""
    result = subprocess.run(command, cwd=where, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}{result.stderr}"
    return result.stdout


def build(project: Path, *options: str) -> Path:
    """Build one artefact of a project; its path."""
    output = project / "built-here"
    run(sys.executable, "-m", "hatchling", "build", "-d", output, *options, where=project)
    (artefact,) = output.iterdir()
    return artefact.rename(project.parent / artefact.name)


def python_files(project: Path) -> set[str]:
    """What belongs into the packages, relative to the project: the allow-list, spelt another way."""
    files = {
        path.relative_to(project).as_posix()
        for pattern in ("*.py", "*.mako", "page.*", "docs/*.md")
        for path in project.rglob(pattern)
        if path.relative_to(project).parts[0] not in ("tests", ".venv")
    }
    return files | {"py.typed", "migrations/NOTES.md", "docs/grafana-dashboard.json"}


def second_member(workspace: Path) -> Path:
    """Another member of the same workspace, `shared.cache`, packaged as shared.db is."""
    project = workspace / "shared" / "cache"
    project.mkdir()
    text = (PACKAGE / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(
        text.replace("gridbot-shared-db", "gridbot-shared-cache").replace("shared/db", "shared/cache")
    )
    (project / "README.md").write_text("# shared.cache\n")
    (project / "py.typed").touch()
    (project / "__init__.py").write_text('"""A neighbour."""\n')
    return project


@pytest.fixture(scope="module")
def littered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with decoys in it, and without the .gitignore that would hide them from the build."""
    project = tmp_path_factory.mktemp("workspace") / "shared" / "db"
    shutil.copytree(PACKAGE, project, ignore=shutil.ignore_patterns("__pycache__"))
    for name in DECOYS:
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("# must not be shipped\n")
    return project


@pytest.fixture(scope="module")
def wheel(littered: Path) -> Path:
    """The wheel."""
    return build(littered, "-t", "wheel")


@pytest.fixture(scope="module")
def sdist(littered: Path) -> Path:
    """The source distribution."""
    return build(littered, "-t", "sdist")


@pytest.fixture
def clean(tmp_path_factory: pytest.TempPathFactory) -> CleanEnvironment:
    """A clean environment of the test's own."""
    folder = tmp_path_factory.mktemp("clean")
    run(
        *(
            "uv",
            "sync",
            "--quiet",
            "--frozen",
            "--no-dev",
            "--no-install-workspace",
            "--package",
            "gridbot-shared-db",
            "--python",
            sys.executable,
        ),
        UV_PROJECT_ENVIRONMENT=str(folder),
    )
    return CleanEnvironment(folder)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Every module is in the wheel; tests, secrets and data of the folder are not."""
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.startswith("gridbot_shared_db-") and ".dist-info/" in name}
    assert {name.rpartition("/")[2] for name in metadata} == {"METADATA", "WHEEL", "RECORD"}
    assert names - metadata == {f"shared/db/{name}" for name in python_files(PACKAGE)}


def test_the_source_distribution_holds_the_package_and_nothing_else(sdist: Path) -> None:
    """The source distribution holds the same files and what building them takes."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names == python_files(PACKAGE) | {"README.md", "pyproject.toml", "PKG-INFO"}


def test_a_wheel_from_the_source_distribution_is_the_same(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    """Installing from the source distribution gives what the wheel gives."""
    run("tar", "-xzf", sdist, "-C", tmp_path)  # tarfile's own safe extraction came with 3.11.4
    (project,) = tmp_path.iterdir()
    rebuilt = zipfile.ZipFile(build(project, "-t", "wheel"))
    original = zipfile.ZipFile(wheel)
    assert {name: rebuilt.read(name) for name in rebuilt.namelist()} == {
        name: original.read(name) for name in original.namelist()
    }


def test_the_wheel_asks_for_three_libraries(wheel: Path) -> None:
    """SQLAlchemy, pydantic-settings and psycopg2 are all that an installation brings; the rest are extras."""
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(archive.read(name))
    wanted = {line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert wanted == {"sqlalchemy<2.2,>=2.0", "pydantic-settings>=2.0", "psycopg2-binary>=2.9.10"}
    assert metadata["Requires-Python"] == ">=3.11"


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(wheel: Path, clean: CleanEnvironment, tmp_path: Path) -> None:
    """With nothing but the core dependencies the schema is made in an empty folder; commands and pages are there."""
    clean.install(wheel)
    first = clean.python("-m", "shared.db.init_db", where=tmp_path)
    assert first.startswith("Database initialized successfully\n")
    assert "nothing changed" in clean.python("-m", "shared.db", "init", where=tmp_path)
    refused = "try:\n import shared.db.lake\nexcept ImportError as error:\n print(error)"
    assert re.search(r"is not installed.*WHEEL\[lake\]", clean.python("-c", refused, where=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["grid_bot.db"]
    assert clean.python("-m", "shared.db", "docs", "web", where=tmp_path) == (PACKAGE / "docs" / "web.md").read_text()


@pytest.mark.slow
def test_the_wheel_brings_its_migrations(wheel: Path, clean: CleanEnvironment, tmp_path: Path) -> None:
    """With the extra `migrations` the installed package upgrades a database from its own revisions."""
    clean.install(wheel)
    run(
        *(
            "uv",
            "sync",
            "--quiet",
            "--frozen",
            "--no-dev",
            "--no-install-workspace",
            "--package",
            "gridbot-shared-db",
            "--inexact",
        ),
        *("--extra", "migrations", "--python", sys.executable),
        UV_PROJECT_ENVIRONMENT=str(clean.folder),
    )
    assert "is now at" in clean.python("-m", "shared.db", "migrate", "up", where=tmp_path)
    assert clean.python("-m", "shared.db", "migrate", "check", where=tmp_path) == "the schema is what the code says\n"


@pytest.mark.slow
def test_another_member_shares_the_namespace(wheel: Path, clean: CleanEnvironment, tmp_path: Path) -> None:
    """`shared` belongs to nobody: a second package in it installs and imports beside this one."""
    (tmp_path / "shared").mkdir()
    clean.install(wheel, build(second_member(tmp_path), "-t", "wheel"))
    printed = clean.python("-c", "import shared.cache, shared.db; print(shared.cache.__doc__)", where=tmp_path)
    assert printed == "A neighbour.\n"


@pytest.mark.slow
def test_an_editable_install_follows_the_files(littered: Path, clean: CleanEnvironment, tmp_path: Path) -> None:
    """Installed editable, the package and its neighbour import from any folder, and from where they are edited."""
    cache = second_member(littered.parents[1])
    clean.install(*(build(project, "-t", "wheel:editable") for project in (littered, cache)))
    lines = clean.python(
        "-c", "import shared.db, shared.cache; print(shared.db.__file__, shared.cache.__file__)", where=tmp_path
    )
    assert lines.split() == [str(littered / "__init__.py"), str(cache / "__init__.py")]


def test_the_environment_of_the_tests_is_this_checkout(tmp_path: Path) -> None:
    """What is tested is what is edited, from whichever folder it is imported."""
    printed = run(sys.executable, "-c", "import shared.db; print(shared.db.__file__)", where=tmp_path)
    assert printed.strip() == shared.db.__file__ == str(PACKAGE / "__init__.py")


def test_shared_is_a_namespace() -> None:
    """`shared/__init__.py` would hide every other member of the namespace."""
    assert not (WORKSPACE / "shared" / "__init__.py").exists()
