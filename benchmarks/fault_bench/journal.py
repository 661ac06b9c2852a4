"""What a client says it did: a line before each operation and one after it, on disk before the client goes on.

An operation is over when its line says so: `ok` (the commit returned), `fail` (it surely was not done) or `unknown`
(the commit itself failed, so nobody can tell). One that was only invoked is unknown too: its client was killed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

Kind = Literal["invoke", "ok", "fail", "unknown"]


@dataclass(frozen=True)
class Event:
    """A line of a journal. `rows` is how many the operation writes, `at` the machine's monotonic time in seconds."""

    client: str
    op: int
    kind: Kind
    rows: int
    at: float = 0.0
    why: str = ""


class Journal:
    """The journal of one client, opened for appending. Safe for the threads of one process."""

    def __init__(self, folder: Path, client: str) -> None:
        self.client = client
        self._file = os.open(folder / f"{client}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def write(self, op: int, kind: Kind, rows: int, why: str = "") -> None:
        """Write a line; it is on disk when this returns."""
        fields = {"client": self.client, "op": op, "kind": kind, "rows": rows, "at": time.monotonic(), "why": why}
        os.write(self._file, json.dumps(fields).encode() + b"\n")
        os.fsync(self._file)


def read_journals(folder: Path) -> Iterator[Event]:
    """Every line of every journal in a folder, each client's in its order."""
    for path in sorted(folder.glob("*.jsonl")):
        yield from parsed(path.read_text().splitlines(keepends=True))


def parsed(lines: Iterable[str]) -> Iterator[Event]:
    """The events of a journal's lines. A last line without its end was cut by the client's death and says nothing."""
    for line in lines:
        if line.endswith("\n"):
            yield Event(**json.loads(line))
