"""Compares what clients were told with what is stored. Knows no database: a pure function of journals and rows.

What holds of a database that loses nothing: every row of an `ok` operation is there, none of a `fail`, all or none of
an unknown one; no row twice, none that nobody wrote; a client's operations stand in its order; and a counter that
each operation increments in the same transaction equals the operations that are there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

from benchmarks.fault_bench.journal import Event

Fault = Literal["lost", "doubled", "partial", "refused but there", "invented", "out of order", "miscounted"]


class Stored(NamedTuple):
    """A row of the end state: the `part`th of a client's operation, at its place in the order of insertion."""

    client: str
    op: int
    part: int
    position: int


@dataclass(frozen=True)
class Finding:
    """One broken promise."""

    fault: Fault
    client: str
    op: int
    rows: int = 1


@dataclass
class Verdict:
    """What a comparison found, and how much it compared."""

    acknowledged: int = 0
    acknowledged_rows: int = 0
    refused: int = 0
    unknown: int = 0
    unknown_applied: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Nothing was found, and there was something to compare."""
        return not self.findings and self.acknowledged > 0

    def count(self, *faults: Fault) -> int:
        """The rows (of a counter: the operations) that these faults concern."""
        return sum(finding.rows for finding in self.findings if finding.fault in faults)

    def __str__(self) -> str:
        faults = Counter[str]()
        for finding in self.findings:
            faults[finding.fault] += finding.rows
        found = ", ".join(f"{count:,} {fault}" for fault, count in faults.items())
        return f"{self.acknowledged_rows:,} rows acknowledged: {found or '0 lost, 0 partial, 0 doubled'}"


@dataclass
class _Operation:
    rows: int
    outcome: str = "unknown"


def check(
    events: Iterable[Event], rows: Iterable[Stored], counters: Mapping[str, int] | None = None, *, since: float = 0.0
) -> Verdict:
    """Compare journals with the end state.

    `counters`: of each client, how often its counter was incremented; left out where operations increment none.
    With `since`, an operation that was acknowledged at that monotonic time or later counts as unknown: a copy that
    began then need not hold it.
    """
    operations = _operations(events, since)
    stored: dict[tuple[str, int], list[Stored]] = defaultdict(list)
    for row in rows:
        stored[row.client, row.op].append(row)
    verdict = Verdict()
    for (client, op), operation in operations.items():
        _judge(verdict, client, op, operation, stored.get((client, op), []))
    for (client, op), found in stored.items():
        if (client, op) not in operations:
            verdict.findings.append(Finding("invented", client, op, len(found)))
    _check_order(verdict, stored)
    if counters is not None:
        _check_counters(verdict, operations, stored, counters)
    return verdict


def check_counter(events: Iterable[Event], count: int) -> Verdict:
    """Compare the journals of clients that all increment one counter, an operation each, with where it stands."""
    verdict = Verdict()
    for operation in _operations(events, 0.0).values():
        verdict.acknowledged += operation.outcome == "ok"
        verdict.refused += operation.outcome == "fail"
        verdict.unknown += operation.outcome == "unknown"
    verdict.acknowledged_rows = verdict.acknowledged
    if count < verdict.acknowledged:
        verdict.findings.append(Finding("lost", "", 0, verdict.acknowledged - count))
    if count > verdict.acknowledged + verdict.unknown:
        verdict.findings.append(Finding("miscounted", "", 0, count - verdict.acknowledged - verdict.unknown))
    return verdict


def _operations(events: Iterable[Event], since: float) -> dict[tuple[str, int], _Operation]:
    operations: dict[tuple[str, int], _Operation] = {}
    for event in events:
        operation = operations.setdefault((event.client, event.op), _Operation(event.rows))
        if event.kind != "invoke" and not (since and event.kind == "ok" and event.at >= since):
            operation.outcome = event.kind
    return operations


def _judge(verdict: Verdict, client: str, op: int, operation: _Operation, found: list[Stored]) -> None:
    parts = Counter(row.part for row in found)
    missing = sum(part not in parts for part in range(operation.rows))
    if operation.outcome == "ok":
        verdict.acknowledged += 1
        verdict.acknowledged_rows += operation.rows
        if missing:
            verdict.findings.append(Finding("lost", client, op, missing))
    elif operation.outcome == "fail":
        verdict.refused += 1
        if found:
            verdict.findings.append(Finding("refused but there", client, op, len(found)))
    else:
        verdict.unknown += 1
        verdict.unknown_applied += bool(found)
    if found and missing:
        verdict.findings.append(Finding("partial", client, op, len(parts)))
    doubled = sum(parts.values()) - len(parts)
    if doubled:
        verdict.findings.append(Finding("doubled", client, op, doubled))
    foreign = sum(part not in range(operation.rows) for part in parts)
    if foreign:
        verdict.findings.append(Finding("invented", client, op, foreign))


def _check_order(verdict: Verdict, stored: Mapping[tuple[str, int], list[Stored]]) -> None:
    by_client: dict[str, list[Stored]] = defaultdict(list)
    for found in stored.values():
        for row in found:
            by_client[row.client].append(row)
    for client, found in by_client.items():
        found.sort(key=lambda row: row.position)
        for before, after in pairwise(found):
            if (after.op, after.part) < (before.op, before.part):
                verdict.findings.append(Finding("out of order", client, after.op))


def _check_counters(
    verdict: Verdict,
    operations: Mapping[tuple[str, int], _Operation],
    stored: Mapping[tuple[str, int], list[Stored]],
    counters: Mapping[str, int],
) -> None:
    applied = Counter(client for client, _ in stored)
    for client in {client for client, _ in operations} | set(counters):
        wrong = abs(counters.get(client, 0) - applied[client])
        if wrong:
            verdict.findings.append(Finding("miscounted", client, 0, wrong))
