"""A figure: what was promised, what was measured, and whether the promise held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.fault_bench.checker import Verdict


@dataclass(frozen=True)
class Figure:
    """A row of the results. A control is the same work done in a way that must fail: it shows that the check can."""

    what: str
    promised: str
    measured: str
    holds: bool
    control: bool = False


def of_verdict(what: str, verdict: Verdict, *, problems: Sequence[str] = (), more: str = "") -> Figure:
    """The figure of a comparison with journals; `problems` are further ways in which the promise was broken."""
    parts = [str(verdict), *([more] if more else []), *problems]
    return Figure(what, "0 lost, 0 partial, 0 doubled", "; ".join(parts), verdict.holds and not problems)


def print_figures(figures: Sequence[Figure]) -> None:
    """All rows as a Markdown table."""
    print("| what | promised | measured | verdict |\n|---|---|---|---|")
    for figure in figures:
        print(f"| {figure.what} | {figure.promised} | {figure.measured} | {verdict_word(figure)} |", flush=True)


def verdict_word(figure: Figure) -> str:
    """How a figure ended, in a word."""
    if figure.control:
        return "seen, as it must be" if figure.holds else "NOT SEEN"
    return "holds" if figure.holds else "BROKEN"
