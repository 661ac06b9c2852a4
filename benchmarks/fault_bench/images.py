"""A SQLite file with known rows, and what the library says of a copy of it that was damaged."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import URL, select
from sqlalchemy.orm import Session

from benchmarks.data import ExecutionStream, TradeStream
from shared.db import Base, BybitAccount, DatabaseFactory, PrivateExecution, PublicTrade, Run, Strategy, User
from shared.db.bulk import bulk_create
from shared.db.errors import SharedDBError

Contents = dict[str, list[tuple[Any, ...]]]
Outcome = Literal[
    "refused", "right", "wrong, and the check says so", "wrong, not seen", "wrong, called healthy", "stray error"
]


@dataclass(frozen=True)
class Image:
    """A file and what is in it."""

    path: Path
    contents: Contents

    def copy_to(self, path: Path) -> Path:
        """A copy of the file, without anything beside it."""
        shutil.copyfile(self.path, path)
        return path


@dataclass(frozen=True)
class Said:
    """What became of an attempt to use a file: the outcome, and the error's name and text, if there was one."""

    outcome: Outcome
    error: str = ""


def make_image(folder: Path, trades: int = 1500, executions: int = 150, seed: int = 1) -> Image:
    """A file with rows in most tables, closed, with no write-ahead log beside it."""
    path = folder / "image.db"
    with DatabaseFactory(url_of(path)) as db:
        db.create_tables()
        fill(db, trades, executions, seed)
        contents = read_all(db)
    return Image(path, contents)


def fill(db: DatabaseFactory, trades: int, executions: int, seed: int = 1) -> None:
    """Store rows in most tables."""
    with db.get_session() as session:
        store_parents(session)
        bulk_create(session, PublicTrade, TradeStream(seed).take(trades))
        bulk_create(session, PrivateExecution, ExecutionStream("bench", "bench", seed).take(executions))


def store_parents(session: Session) -> None:
    """A user, an account, a strategy and a run, all called "bench"."""
    for parent in (
        User(user_id="bench", username="bench", email="bench@example.com"),
        BybitAccount(account_id="bench", user_id="bench", account_name="a", environment="testnet"),
        Strategy(strategy_id="bench", account_id="bench", strategy_type="G", symbol="B", config_json={"step": 1}),
        Run(run_id="bench", user_id="bench", account_id="bench", strategy_id="bench", run_type="live"),
    ):
        session.add(parent)
        session.flush()


def url_of(path: Path) -> URL:
    """The URL of a SQLite file."""
    return URL.create("sqlite+pysqlite", database=str(path))


def read_all(db: DatabaseFactory) -> Contents:
    """Every value of every row, as the library reads it."""
    with db.get_session(read_only=True) as session:
        return {
            table.name: [tuple(row) for row in session.execute(select(table).order_by(*table.primary_key.columns))]
            for table in Base.metadata.sorted_tables
        }


def use(db: DatabaseFactory, expected: Contents) -> Said:
    """Check the schema, read everything; if that gave other data, ask `db.health(check=True)`."""
    try:
        db.check_schema()
        found = read_all(db)
        if found == expected:
            return Said("right")
        health = db.health(check=True)
    except SharedDBError as error:
        return Said("refused", f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 # an error without a name of ours is what is looked for
        return Said("stray error", repr(error))
    if health.problems:
        return Said("wrong, and the check says so")
    return Said("wrong, called healthy" if health.integrity == "ok" else "wrong, not seen")
