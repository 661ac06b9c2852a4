"""A byte that is another one than was written: in a live SQLite file, in its backup, in PostgreSQL's files.

What is promised differs, since stock SQLite keeps no checksum of what it stores. A flip inside a value that is in no
index gives another value, and no check of SQLite's sees it: that share is measured, and told. What can be promised of
the live file is that damage which shows has the library's own error, and that what an index holds too is found. The
backup has a checksum, and so have PostgreSQL's pages: there, every flip must be found.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sqlalchemy import URL, text

from benchmarks.fault_bench.figures import Figure
from benchmarks.fault_bench.ground import Ground
from benchmarks.fault_bench.images import Contents, Image, fill, make_image, read_all, url_of, use
from shared.db import Base, DatabaseFactory
from shared.db.errors import SharedDBError
from shared.db.operations.backup import back_up, restore

_SILENT = "wrong, not seen"


def bit_flips(ground: Ground) -> list[Figure]:
    """Random bytes, one at a time, each changed to a random other one."""
    image = make_image(ground.new_folder())
    return [
        *_in_live_file(ground, image, ground.of(200, 60)),
        _in_backup(ground, image, ground.of(200, 30)),
        _in_postgresql(ground, ground.of(40, 8)),
    ]


def _in_live_file(ground: Ground, image: Image, count: int) -> list[Figure]:
    path = ground.new_folder() / "flipped.db"
    outcomes, silent_in = Counter[str](), Counter[str]()
    for _ in range(count):
        _flip(ground, image.copy_to(path))
        with DatabaseFactory(url_of(path)) as db:
            said = use(db, image.contents)
            outcomes[said.outcome] += 1
            if said.outcome == "stray error":
                print(f"bit_flips: {said.error}", flush=True)
            if said.outcome == _SILENT:
                silent_in.update(_changed_columns(db, image.contents))
    told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    columns = ", ".join(f"{count} in {column}" for column, count in silent_in.most_common())
    return [
        Figure(
            f"{count} byte flips in a live SQLite file",
            "right data, a typed error, or seen by the check; wrong data never called healthy",
            told,
            outcomes["stray error"] == outcomes["wrong, called healthy"] == 0,
        ),
        Figure(
            "of these, another value that nothing sees (SQLite keeps no checksums, and `status --check` says so)",
            "none in a column of a unique key; elsewhere measured, not promised",
            f"{outcomes[_SILENT]} of {count}" + (f": {columns}" if columns else ""),
            not any(column in _KEYS for column in silent_in),
        ),
    ]


# Columns that an index holds too, so that SQLite's check compares two copies of them.
_KEYS = ("public_trades.trade_id", "public_trades.exchange_ts", "public_trades.symbol", "private_executions.exec_id")


def _changed_columns(db: DatabaseFactory, expected: Contents) -> set[str]:
    changed = set()
    for table, rows in read_all(db).items():
        names = Base.metadata.tables[table].columns.keys()
        for found, right in zip(rows, expected[table], strict=False):
            changed |= {f"{table}.{name}" for name, a, b in zip(names, found, right, strict=True) if a != b}
        if len(rows) != len(expected[table]):
            changed.add(f"{table} (number of rows)")
    return changed


def _in_backup(ground: Ground, image: Image, count: int) -> Figure:
    path = ground.new_folder() / "backup"
    with DatabaseFactory(url_of(image.path)) as db:
        back_up(db, path)
    whole = path.read_bytes()
    refused = 0
    for _ in range(count):
        path.write_bytes(whole)
        _flip(ground, path)
        with DatabaseFactory(URL.create("sqlite+pysqlite", database=":memory:")) as db:
            try:
                restore(db, path)
            except SharedDBError:
                refused += 1
    path.write_bytes(whole)
    with DatabaseFactory(URL.create("sqlite+pysqlite", database=":memory:")) as db:
        restore(db, path)
        right = read_all(db) == image.contents
    return Figure(
        f"{count} byte flips in a backup",
        "every one refused by restore, the whole one restored",
        f"{refused} of {count} refused, the whole one {'right' if right else 'WRONG'}",
        refused == count and right,
    )


def _in_postgresql(ground: Ground, count: int) -> Figure:
    """One flip in each of many databases, since the server has to stop for them."""
    original = ground.new_postgresql()
    with DatabaseFactory(original) as db:
        fill(db, trades=400, executions=40)
        contents = read_all(db)
    databases: list[tuple[URL, Path]] = []
    for number in range(count):
        ground.server.ask(f"CREATE DATABASE flipped_{number} TEMPLATE {original.database}")
        url = original.set(database=f"flipped_{number}")
        with DatabaseFactory(url) as db:
            databases.append((url, _some_file(ground, db)))
    checksums = ground.server.ask("SHOW data_checksums")[0][0]
    ground.server.stop("fast")
    for _, path in databases:
        _flip(ground, path)
    ground.server.start()
    outcomes = Counter[str]()
    for url, _ in databases:
        with DatabaseFactory(url) as db:
            outcomes[use(db, contents).outcome] += 1
    return Figure(
        f"{count} byte flips in PostgreSQL's files (data_checksums {checksums})",
        "right data, or the library's error",
        ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common()),
        set(outcomes) <= {"right", "refused"},
    )


def _some_file(ground: Ground, db: DatabaseFactory) -> Path:
    """The file of one of the two big tables or their indexes."""
    with db.get_session(read_only=True) as session:
        found = session.execute(
            text(
                "SELECT pg_relation_filepath(oid) FROM pg_class WHERE relkind IN ('r', 'i') "
                "AND pg_relation_size(oid) > 0 AND relname ~ 'public_trades|private_executions' ORDER BY 1"
            )
        )
        return ground.server.data / str(ground.random.choice(found.scalars().all()))


def _flip(ground: Ground, path: Path) -> None:
    offset, mask = ground.random.randrange(path.stat().st_size), ground.random.randrange(1, 256)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))
