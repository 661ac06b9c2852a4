"""The fault bench's checker finds each fault that it is there to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fault_bench.checker import Fault, Stored, check, check_counter
from benchmarks.fault_bench.journal import Event, Journal, Kind, parsed, read_journals

ROWS = 3


def events(*outcomes: Kind | None, client: str = "a") -> list[Event]:
    """The journal of a client whose operations 0, 1, ... ended like this; None: it was killed before the end."""
    return [
        event
        for op, outcome in enumerate(outcomes)
        for event in (
            Event(client, op, "invoke", ROWS, at=op),
            *([] if outcome is None else [Event(client, op, outcome, ROWS, at=op + 0.5)]),
        )
    ]


def rows(*ops: int, client: str = "a") -> list[Stored]:
    """All rows of these operations, stored in this order."""
    return [Stored(client, op, part, n * ROWS + part) for n, op in enumerate(ops) for part in range(ROWS)]


def test_a_database_that_lost_nothing_is_found_whole() -> None:
    """Whatever is unknown may be there or not."""
    verdict = check(events("ok", "fail", "unknown", None, None), rows(0, 2, 3), {"a": 3})
    assert verdict.holds
    assert (verdict.acknowledged_rows, verdict.refused, verdict.unknown, verdict.unknown_applied) == (3, 1, 3, 2)


@pytest.mark.parametrize(
    ("fault", "stored", "counters"),
    [
        ("lost", rows(0), {"a": 1}),
        ("partial", rows(0, 1)[:-1], {"a": 2}),
        ("partial", [*rows(0, 1), Stored("a", 3, 1, 90)], {"a": 3}),
        ("doubled", [*rows(0, 1), Stored("a", 1, 2, 90)], {"a": 2}),
        ("refused but there", rows(0, 1, 2), {"a": 3}),
        ("invented", rows(0, 1, 7), {"a": 3}),
        ("invented", [*rows(0, 1), *rows(0, client="b")], {"a": 2, "b": 1}),
        ("invented", [*rows(0, 1), Stored("a", 1, ROWS, 90)], {"a": 2}),
        ("out of order", rows(1, 0), {"a": 2}),
        ("miscounted", rows(0, 1), {"a": 1}),
        ("miscounted", rows(0, 1), {"a": 3}),
        ("miscounted", rows(0, 1), {}),
    ],
)
def test_each_fault_is_found(fault: Fault, stored: list[Stored], counters: dict[str, int]) -> None:
    """Two operations acknowledged, one refused, one in flight."""
    verdict = check(events("ok", "ok", "fail", None), stored, counters)
    assert not verdict.holds
    assert verdict.count(fault) >= 1
    assert fault in str(verdict)


def test_an_empty_comparison_proves_nothing() -> None:
    """A scenario in which no client got anything done does not hold."""
    assert not check([], []).holds


def test_a_copy_need_not_hold_what_was_acknowledged_after_it_began() -> None:
    """But everything before."""
    assert check(events("ok", "ok"), rows(0), since=1.2).holds
    assert check(events("ok", "ok"), rows(1), since=1.2).count("lost") == ROWS


@pytest.mark.parametrize(("count", "fault"), [(1, "lost"), (2, None), (3, None), (4, "miscounted")])
def test_a_shared_counter_lies_between_acknowledged_and_possible(count: int, fault: Fault | None) -> None:
    """Two increments acknowledged, one in flight, one refused."""
    verdict = check_counter([*events("ok", "fail"), *events("ok", None, client="b")], count)
    assert verdict.holds == (fault is None)
    assert fault is None or verdict.count(fault) == 1


def test_a_journal_is_read_back_as_written(tmp_path: Path) -> None:
    """Also by a client that goes on with one that is there."""
    kinds: list[Kind] = ["invoke", "ok"]
    for kind in kinds:
        with Journal(tmp_path, "a") as journal:
            journal.write(1, kind, ROWS)
    assert [(event.client, event.op, event.kind) for event in read_journals(tmp_path)] == [
        ("a", 1, "invoke"),
        ("a", 1, "ok"),
    ]


def test_a_line_cut_by_death_says_nothing() -> None:
    """Its operation stays unknown."""
    whole = '{"client": "a", "op": 0, "kind": "invoke", "rows": 3}\n'
    assert [event.kind for event in parsed([whole, whole.replace("invoke", "ok")[:-2]])] == ["invoke"]
