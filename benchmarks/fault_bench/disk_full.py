"""A disk that is full, at twenty different points, and that has room again later."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, event, func, select

from benchmarks.fault_bench.clients import batch
from benchmarks.fault_bench.figures import Figure
from benchmarks.fault_bench.ground import Ground
from benchmarks.fault_bench.kills import damages
from shared.db import DatabaseFactory, PublicTrade
from shared.db.bulk import bulk_create
from shared.db.errors import DatabaseFullError

_ROWS = 50
_KILOBYTE, _MEGABYTE = 1024, 1024 * 1024


def disk_full(ground: Ground) -> list[Figure]:
    """Batches until the database is full; then room is made, and the same factory goes on."""
    points = ground.of(20, 6)
    limited = points // 2 if _may_mount(ground) else points
    outcomes = [_page_limit(ground.new_sqlite(), 220 + 37 * point) for point in range(limited)]
    figures = [_figure(f"disk full, SQLite, page limit at {limited} sizes", outcomes)]
    if limited < points:
        outcomes = [_small_disk(ground, 700 + 173 * point) for point in range(points - limited)]
        figures.append(_figure(f"disk full, SQLite, tmpfs of {points - limited} sizes", outcomes))
        count = ground.of(4, 1)
        outcomes = [_small_tablespace(ground, 700 + 300 * number, number) for number in range(count)]
        figures.append(_figure(f"disk full, PostgreSQL, tablespace on a tmpfs of {count} sizes", outcomes))
    else:
        print("disk_full: this user may not mount a tmpfs, so the page limit stands for all points", flush=True)
    return figures


def _figure(what: str, outcomes: list[tuple[int, list[str]]]) -> Figure:
    problems = sorted({problem for _, found in outcomes for problem in found})
    intact = sum(not found for _, found in outcomes)
    stored = [rows for rows, _ in outcomes]
    return Figure(
        what,
        "DatabaseFullError, all committed rows there, goes on when there is room",
        "; ".join([f"{intact} of {len(outcomes)}, full after {min(stored):,} to {max(stored):,} rows", *problems]),
        not problems and min(stored) > 0,
    )


def _page_limit(url: URL, pages: int) -> tuple[int, list[str]]:
    limit = pages

    def set_limit(connection: Any, record: Any, *_: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={limit}")

    def make_room() -> None:
        nonlocal limit
        limit = 10 * pages

    with DatabaseFactory(url) as db:
        event.listen(db.engine, "connect", set_limit)
        event.listen(db.engine, "checkout", set_limit)
        return _fill(db, make_room)


def _small_disk(ground: Ground, kilobytes: int) -> tuple[int, list[str]]:
    folder = ground.new_folder()
    with _tmpfs(folder, kilobytes + 1024):
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(1024 * _KILOBYTE))
        with DatabaseFactory(URL.create("sqlite+pysqlite", database=str(folder / "grid_bot.db"))) as db:
            db.create_tables()
            return _fill(db, ballast.unlink)


def _small_tablespace(ground: Ground, kilobytes: int, number: int) -> tuple[int, list[str]]:
    folder, server = ground.new_folder(), ground.server
    name = f"full_{number}"
    with _tmpfs(folder, kilobytes + 10 * _MEGABYTE // _KILOBYTE):
        place = folder / "tablespace"
        place.mkdir()
        server.give(place)
        server.ask(f"CREATE TABLESPACE {name} LOCATION '{place}'")
        try:
            server.ask(f"CREATE DATABASE {name} TABLESPACE {name}")
            with DatabaseFactory(server.url.set(database=name)) as db:
                db.create_tables()
                ballast = folder / "ballast"
                _take_all_but(folder, ballast, kilobytes * _KILOBYTE)
                return _fill(db, ballast.unlink)
        finally:
            server.ask(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            server.ask(f"DROP TABLESPACE {name}")


def _take_all_but(folder: Path, ballast: Path, left: int) -> None:
    """Fill the disk up to `left` bytes."""
    found = os.statvfs(folder)
    ballast.write_bytes(bytes(max(found.f_bavail * found.f_frsize - left, 0)))


def _fill(db: DatabaseFactory, make_room: Callable[[], None]) -> tuple[int, list[str]]:
    """Write until it is full, look, make room, write on, look again: the rows at the first look, and all problems."""
    problems: list[str] = []
    done = 0
    try:
        for op in range(10_000):
            _write(db, op)
            done += 1
        problems.append("it never became full")
    except DatabaseFullError:
        pass
    except Exception as error:  # noqa: BLE001 # any other error is what is looked for
        problems.append(f"{type(error).__name__} in place of DatabaseFullError: {error}")
    rows = done * _ROWS
    problems += _look(db, rows, "while full")
    make_room()
    for op in range(done, done + 3):
        try:
            _write(db, op)
            rows += _ROWS
        except Exception as error:  # noqa: BLE001 # any error is what is looked for
            problems.append(f"after room was made: {error!r}")
    problems += _look(db, rows, "afterwards")
    return done * _ROWS, problems


def _write(db: DatabaseFactory, op: int) -> None:
    with db.get_session() as session:
        bulk_create(session, PublicTrade, batch("FULL", op, _ROWS))


def _look(db: DatabaseFactory, rows: int, when: str) -> list[str]:
    with db.get_session(read_only=True) as session:
        count, sizes = session.execute(select(func.count(), func.sum(PublicTrade.size))).one()
    expected = rows // _ROWS * sum(range(1, _ROWS + 1))
    problems = [f"damaged {when}: {damage}" for damage in damages(db.engine.url)]
    if count != rows or (sizes or 0) != expected:
        problems.append(f"{count} rows in place of {rows} {when}")
    return problems


@contextmanager
def _tmpfs(folder: Path, kilobytes: int) -> Iterator[None]:
    _run("mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(folder))


def _may_mount(ground: Ground) -> bool:
    if os.geteuid() != 0:
        return False
    try:
        with _tmpfs(ground.new_folder(), 64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 # fixed words and our own folder
