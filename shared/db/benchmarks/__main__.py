"""`python -m shared.db.benchmarks [NAME ...]`: run the named benchmarks, or all but the long ones."""

from __future__ import annotations

import argparse
import sys

from shared.db.benchmarks import reads, recorder, secrets, writes
from shared.db.benchmarks.harness import place

BENCHMARKS = {**writes.BENCHMARKS, **reads.BENCHMARKS, **secrets.BENCHMARKS, **recorder.BENCHMARKS}
LONG = {**writes.LONG}


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 0."""
    known = {**BENCHMARKS, **LONG}
    parser = argparse.ArgumentParser(prog="python -m shared.db.benchmarks", description=__doc__)
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
