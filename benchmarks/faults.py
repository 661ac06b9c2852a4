"""`python -m benchmarks.faults [NAME ...] [--short]`: the fault bench, all of it or the named scenarios.

Exits with 1 if a promise was broken, or if a control (the same work done carelessly) did not show the fault that the
scenario looks for. `docs/reliability.md` says what is measured and how.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time

from benchmarks.fault_bench.backups import backups
from benchmarks.fault_bench.bad_files import bad_files
from benchmarks.fault_bench.bad_input import bad_input
from benchmarks.fault_bench.bit_flips import bit_flips
from benchmarks.fault_bench.contention import contention
from benchmarks.fault_bench.copies import copies
from benchmarks.fault_bench.damaged_files import damaged_files
from benchmarks.fault_bench.disk_full import disk_full
from benchmarks.fault_bench.figures import Figure, print_figures
from benchmarks.fault_bench.forks import forks
from benchmarks.fault_bench.ground import ground
from benchmarks.fault_bench.interruptions import interruptions
from benchmarks.fault_bench.kills import kills
from benchmarks.fault_bench.mysql_restarts import mysql_restarts
from benchmarks.fault_bench.promotions import promotions
from benchmarks.fault_bench.quiet_losses import quiet_losses
from benchmarks.fault_bench.races import races
from benchmarks.fault_bench.recording import recording
from benchmarks.fault_bench.restarts import restarts
from benchmarks.fault_bench.silence import silence

_ALL = (
    contention,
    races,
    kills,
    recording,
    restarts,
    mysql_restarts,
    promotions,
    silence,
    quiet_losses,
    forks,
    disk_full,
    damaged_files,
    bit_flips,
    bad_files,
    bad_input,
    backups,
    copies,
    interruptions,
)
SCENARIOS = {scenario.__name__: scenario for scenario in _ALL}


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 1 if anything did not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--short", action="store_true", help="fewer of everything, for CI: at most 4 minutes")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="draw the same faults again")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.names if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    print(f"--seed {asked.seed}", flush=True)
    logging.disable(logging.WARNING)  # what the library tells of the faults that are wanted here
    os.environ["GRIDBOT_DB_PACKAGES"] = "shared.db"  # and no tables of the packages beside it
    figures: list[Figure] = []
    with ground(short=asked.short, seed=asked.seed) as here:
        for name in asked.names or SCENARIOS:
            began = time.monotonic()
            found = SCENARIOS[name](here)
            figures += found
            broken = [figure for figure in found if not figure.holds]
            print(f"{name}: {len(found)} figures, {len(broken)} broken, {time.monotonic() - began:.0f} s", flush=True)
            if broken:
                print_figures(broken)
    print()
    print_figures(figures)
    return int(not all(figure.holds for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
