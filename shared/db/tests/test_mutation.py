"""The mutation run (`python -m shared.db.tests.mutation`) has to know the code as it is."""

from __future__ import annotations

from pathlib import Path

from shared.db.tests.mutation.guards import PACKAGE, mutations
from shared.db.tests.mutation.patching import differences


def test_every_guard_that_is_listed_is_there() -> None:
    """What guards.txt takes away stands in the code once, and without it the code is still code, and other code."""
    found = list(mutations())
    assert len(found) > 200
    for mutation in found:
        assert differences(mutation), mutation.name


def test_the_tests_of_the_run_are_there() -> None:
    """A test module that was renamed would not be run."""
    text = (Path(__file__).parent / "mutation" / "__main__.py").read_text(encoding="utf-8")
    named = {word for word in text.split('"') if word.startswith("test_") and word.endswith(".py")}
    assert len(named) > 10
    assert {name for name in named if not (PACKAGE / "tests" / name).exists()} == set()
