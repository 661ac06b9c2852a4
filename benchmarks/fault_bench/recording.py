"""Recorders that are killed, also while the database is away, and what the next one on the same spool makes good."""

from __future__ import annotations

import itertools
import logging
import time
from pathlib import Path

from sqlalchemy import URL

from benchmarks.fault_bench.checker import Verdict, check
from benchmarks.fault_bench.clients import batch, kill, start, stored_rows
from benchmarks.fault_bench.figures import Figure, of_verdict
from benchmarks.fault_bench.ground import Ground
from benchmarks.fault_bench.journal import Journal, read_journals
from shared.db import DatabaseFactory, PublicTrade, Recorder

_ROWS = 7


def recording(ground: Ground) -> list[Figure]:
    """Recorders killed in the midst of `add`, one after another on one spool, some while the server is down."""
    count = ground.of(40, 8)
    figures = []
    for name, url in ground.new_databases():
        verdict, away = _kill(ground, url, count, with_spool=True)
        figures.append(
            of_verdict(
                f"{count} kill -9 of a recorder with a spool, {name}",
                verdict,
                more=f"{away} of them with the server down" if away else "",
            )
        )
    control, _ = _kill(ground, ground.new_sqlite(), 5, with_spool=False)
    figures.append(
        Figure(
            "control: 5 kill -9 of a recorder without a spool",
            "rows lost",
            str(control),
            control.count("lost") > 0,
            control=True,
        )
    )
    return figures


def _kill(ground: Ground, url: URL, count: int, *, with_spool: bool) -> tuple[Verdict, int]:
    journals, spool = ground.new_folder(), ground.new_folder() if with_spool else None
    away = 0
    for number in range(count):
        down = with_spool and url.get_backend_name() == "postgresql" and number % 3 == 2
        process = start(_record, url, journals, spool, f"c{number}")
        time.sleep(ground.random.uniform(0.05, 0.4))  # the moment is what is random here
        if down:
            away += 1
            ground.server.stop("fast")
            time.sleep(ground.random.uniform(0.05, 0.4))  # rows come in while the server is down
        kill(process)
        if down:
            ground.server.start()
    if url.get_backend_name() == "postgresql":
        ground.server.wait_until_idle(str(url.database))
    with DatabaseFactory(url) as db:
        with Recorder(db, PublicTrade, spool=spool) as recorder:
            recorder.flush()
        return check(read_journals(journals), stored_rows(db)), away


def _record(url: URL, journals: Path, spool: Path | None, client: str) -> None:
    logging.disable()  # that the server is down, and that rows are waiting, is what is wanted here
    db = DatabaseFactory(url)
    recorder = Recorder(db, PublicTrade, max_rows=40, max_seconds=0.05, spool=spool)
    with Journal(journals, client) as journal, recorder:
        for op in itertools.count():
            journal.write(op, "invoke", _ROWS)
            recorder.add(batch(client, op, _ROWS))
            journal.write(op, "ok", _ROWS)
            time.sleep(0.001)  # a stream, not a flood: what is killed is a recorder that keeps up
