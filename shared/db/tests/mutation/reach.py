"""Which lines of the library each test reaches, and how long it takes."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from pathlib import Path

import coverage
import pytest

from shared.db.tests.mutation.guards import PACKAGE, Mutation


@dataclass
class Reach:
    """By test: the seconds that it takes; by module and line: the tests that reach it."""

    seconds: dict[str, float] = field(default_factory=dict)
    tests: dict[tuple[str, int], set[str]] = field(default_factory=dict)

    def of(self, mutation: Mutation, items: Iterable[pytest.Item]) -> list[pytest.Item]:
        """Those of the tests that reach the line of a guard."""
        names = self.tests.get((mutation.module, mutation.line), set())
        return [item for item in items if item.nodeid in names]


def recorded(session: pytest.Session, workers: int, scratch: Path) -> Reach:
    """Run all tests once, file by file in so many forked children, and say what was seen."""
    files = [list(items) for _, items in groupby(session.items, key=lambda item: item.path)]
    children = {}
    for number in range(min(workers, len(files))):
        data, times = scratch / f"reach{number}", scratch / f"times{number}"
        child = os.fork()
        if not child:
            _record(session, [item for file in files[number::workers] for item in file], data, times)
        children[child] = data, times
    reach = Reach()
    while children:
        child, status = os.wait()
        if child not in children:
            continue  # a process of the server's
        data, times = children.pop(child)
        if status:
            raise RuntimeError(f"the tests could not be run as they are: status {status}")
        for line in times.read_text(encoding="utf-8").splitlines():
            seconds, _, name = line.partition(" ")
            reach.seconds[name] = float(seconds)
        seen = coverage.CoverageData(str(data))
        seen.read()
        for file in seen.measured_files():
            module = Path(file).relative_to(PACKAGE).as_posix()
            for number, names in seen.contexts_by_lineno(file).items():
                reach.tests.setdefault((module, number), set()).update(filter(None, names))
    return reach


def _record(session: pytest.Session, items: list[pytest.Item], data: Path, times: Path) -> None:
    code = 1
    try:
        watching = coverage.Coverage(
            data_file=str(data), include=[f"{PACKAGE}/*"], omit=[f"{PACKAGE}/tests/*"], config_file=False
        )
        watching.start()
        with times.open("w", encoding="utf-8") as file:
            for item, following in zip_longest(items, items[1:]):
                watching.switch_context(item.nodeid)
                started = time.monotonic()
                item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
                file.write(f"{time.monotonic() - started:.3f} {item.nodeid}\n")
        watching.stop()
        watching.save()
        code = 0
    except BaseException:  # noqa: BLE001 # told before the process ends
        traceback.print_exc()
    os._exit(code)
