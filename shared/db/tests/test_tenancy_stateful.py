"""Two users do everything that can be done with the library, in any order, each beside the other.

The parts are in `two_users`. `pytest -m soak` runs 10,000 steps on each database, others each time;
`GRIDBOT_TEST_SEED=1` gives the same ones again, and the number after @seed in a failure repeats that.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from shared.db import DatabaseFactory
from shared.db.dialects import MYSQL
from shared.db.tests.two_users.attacks import ATTACKS
from shared.db.tests.two_users.machine import TwoUsers
from shared.db.tests.two_users.reads import READS
from shared.db.tests.two_users.world import OWNED
from shared.db.tests.two_users.writes import WRITES

STEPS = 10_000
WAYS = {*READS, *WRITES, *ATTACKS}
# It has no FULL JOIN, and no INSERT that skips what is there.
UNKNOWN_TO_MARIADB = {"full_joins", "upsert", "skip_a_taken_key"}
_AT_ONCE = 100
# A round is 20 times so many steps; some of them find nothing to work on, and are not counted.
_ROUNDS = 20


def run_machine(
    kind: type[TwoUsers], db: DatabaseFactory, examples: int, steps: Counter[str], first_seed: int | None = None
) -> None:
    """Have it do a hundred steps in each of the `examples`; always the same ones without a seed."""

    def machine() -> TwoUsers:
        return kind(db, steps)

    run_state_machine_as_test(
        machine if first_seed is None else seed(first_seed)(machine),  # type: ignore[arg-type] # a function will do
        settings=settings(
            max_examples=examples,
            stateful_step_count=_AT_ONCE,
            deadline=None,
            derandomize=first_seed is None,
            database=None,
            phases=[Phase.generate] if first_seed is None else [Phase.generate, Phase.shrink],  # that takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_two_users_never_meet(fleet: DatabaseFactory, record_property: Callable[[str, object], None]) -> None:
    """In a few hundred steps of reading, writing, attacking, undoing and nesting, over every table that is declared."""
    steps: Counter[str] = Counter()
    record_property("tables", " ".join(model.__tablename__ for model in OWNED))
    run_machine(TwoUsers, fleet, 4, steps)
    assert steps.total() > 100


@pytest.mark.slow
@pytest.mark.soak
def test_two_users_never_meet_in_a_long_time(
    fleet: DatabaseFactory, record_property: Callable[[str, object], None]
) -> None:
    """In 10,000 steps, and until every way to read, write and attack was among them."""
    steps: Counter[str] = Counter()
    first_seed = int(os.environ.get("GRIDBOT_TEST_SEED") or random.randrange(2**32))
    ways = WAYS - UNKNOWN_TO_MARIADB if fleet.settings.port is MYSQL else WAYS
    for further in range(_ROUNDS):
        run_machine(TwoUsers, fleet, 20, steps, first_seed + further)
        if steps.total() >= STEPS and steps.keys() >= ways:
            break
    record_property("steps", dict(steps))
    assert steps.total() >= STEPS
    assert steps.keys() >= ways
