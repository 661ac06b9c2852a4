"""`python -m benchmarks [NAME ...]`: run the named benchmarks, or all but the long ones."""

from __future__ import annotations

import argparse
import sys

from benchmarks import (
    asynchronous,
    growth,
    imports,
    lake,
    mysql,
    partitions,
    points,
    reads,
    recorder,
    replicas,
    secrets,
    simulation,
    tenancy,
    writes,
)
from benchmarks.harness import outcomes, place, print_outcomes

BENCHMARKS = {
    **writes.BENCHMARKS,
    **imports.BENCHMARKS,
    **reads.BENCHMARKS,
    **points.BENCHMARKS,
    **asynchronous.BENCHMARKS,
    **tenancy.BENCHMARKS,
    **secrets.BENCHMARKS,
    **recorder.BENCHMARKS,
    **replicas.BENCHMARKS,
    **partitions.BENCHMARKS,
    **lake.BENCHMARKS,
    **mysql.BENCHMARKS,
    **simulation.BENCHMARKS,
}
SHORT = {**growth.SHORT}
LONG = {**growth.LONG}


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 0."""
    known = {**BENCHMARKS, **SHORT, **LONG}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--rounds", type=int, default=15, help="repetitions of each comparison (default 15)")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.names if name not in known]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    with place(asked.rounds) as here:
        for name in asked.names or BENCHMARKS:
            print(f"\n## {name}\n\n{known[name].__doc__}\n", flush=True)
            known[name](here)
    if outcomes:
        print_outcomes(f"\n## Goals: {sum(one.met for one in outcomes)} of {len(outcomes)} met", outcomes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
