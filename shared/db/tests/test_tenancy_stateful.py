"""Two users do everything that can be done with the library, in any order, each beside the other.

The parts are in `two_users`. `pytest -m soak` runs 10,000 steps on each database.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from shared.db import DatabaseFactory
from shared.db.tests.two_users.attacks import ATTACKS
from shared.db.tests.two_users.machine import TwoUsers
from shared.db.tests.two_users.reads import READS
from shared.db.tests.two_users.writes import WRITES

STEPS = 10_000
_AT_ONCE = 100


def _run(db: DatabaseFactory, examples: int, *, derandomize: bool) -> dict[str, int]:
    steps: dict[str, int] = {}
    run_state_machine_as_test(
        lambda: TwoUsers(db, steps),  # type: ignore[arg-type] # anything that makes a machine will do
        settings=settings(
            max_examples=examples,
            stateful_step_count=_AT_ONCE,
            deadline=None,
            derandomize=derandomize,
            database=None,
            phases=[Phase.generate] if derandomize else [Phase.generate, Phase.shrink],  # shrinking takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
    return steps


def test_two_users_never_meet(fleet: DatabaseFactory) -> None:
    """In a few hundred steps of reading, writing, attacking, undoing and nesting."""
    steps = _run(fleet, 4, derandomize=True)
    assert sum(steps.values()) > 100


@pytest.mark.slow
@pytest.mark.soak
def test_two_users_never_meet_in_a_long_time(
    fleet: DatabaseFactory, record_property: Callable[[str, object], None]
) -> None:
    """In 10,000 steps, among them every way to read, write and attack."""
    # Some steps find nothing to work on, and are not counted.
    steps = _run(fleet, STEPS * 3 // (2 * _AT_ONCE), derandomize=False)
    record_property("steps", steps)
    assert sum(steps.values()) >= STEPS
    assert {*READS, *WRITES, *ATTACKS} <= steps.keys()
