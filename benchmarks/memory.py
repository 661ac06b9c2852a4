"""Memory of one piece of work, in a process that has done nothing else."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def peak_growth(prepare: Callable[[], Any], work: Callable[[Any], Any]) -> float:
    """By how many MB the resident memory of a new process peaks above what `prepare()` left it with.

    A new one, not a fork: what its parent allocated and freed would be there to be used again, and hide the growth.
    Both functions therefore have to be picklable; `work` gets what `prepare` returned. Linux only: the peak is reset
    in between, which no other system can do.
    """
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(prepare, work, sending))
    child.start()
    sending.close()
    try:
        grown: int = receiving.recv()
    except EOFError:
        raise RuntimeError("the measured process failed; its error stands above") from None
    finally:
        child.join()
    return grown / 1024


def _measure(prepare: Callable[[], Any], work: Callable[[Any], Any], sending: Connection) -> None:
    prepared = prepare()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    work(prepared)
    sending.send(_kilobytes("VmHWM") - before)


def _kilobytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise LookupError(name)
