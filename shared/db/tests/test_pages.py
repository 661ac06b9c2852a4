"""The blocks of the how-to pages: programs run, commands are ones that there are, settings have their names."""

from __future__ import annotations

import ast
import asyncio
import configparser
import http.client
import inspect
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import CoroutineType
from typing import Any

import pytest
import yaml
from sqlalchemy import URL, text

import shared.db
from shared.db import DatabaseFactory, DatabaseSettings, PrivateExecution, PublicTradeRepository
from shared.db.commands.arguments import parser_of
from shared.db.commands.cli import DESCRIPTION, GROUPS, main
from shared.db.encryption import generate_entry
from shared.db.settings import describe_settings
from shared.db.tests import reference
from shared.db.tests.forked import run_python
from shared.db.tests.support import trade_values, two_runs, usernames
from shared.db.tests.test_documents import DOCS, README, blocks
from shared.db.web import FlaskDoor

# Pages whose blocks say what one does with a database, a run and a user that are there: all that stands before them.
WORLD = """
import json, logging, sys
from datetime import *
from decimal import Decimal
from fractions import Fraction
from typing import Any
from sqlalchemy import *
from sqlalchemy.orm import Mapped, mapped_column
from shared.db import *
from shared.db.commands import run_commands, settings_from_arguments
from shared.db.commands.cli import main
from shared.db.column_types import CheckedType
from shared.db.tests.support import execution_values, two_runs

db = DatabaseFactory("sqlite:///world.db")
db.create_tables()
run, _ = two_runs(db, executions=1)
user_id = uid = run.user_id
run_id = run.run_id
log = logging.getLogger("bot")
class MyConstruct(ColumnElement): ...
"""
TOKEN = """
class Token(Base):
    __tablename__ = "tokens"
    __ownership__ = Ownership("user_id")

    token_id: Mapped[str] = id_column()
    user_id: Mapped[str] = parent_column("users.user_id", index=True)
"""
ORDERS = """
OrderRepository = lambda session: Repository(session, Order)
db.create_tables()
sys.argv[1:] = ["orders", "--user", "ann"]
"""
EXPORTED = "main(['export', 'executions', '-o', 'fills.csv', '--run', run_id, '--user', user_id])"
PONG = 'on_public_message(\'{"op": "pong"}\'); trades.close(); fills.close()'
# What those blocks need beside it, before and after each.
AROUND = {
    "bybit.md": [("", PONG), (EXPORTED, "")],
    "operations.md": [("with db.get_session(user_id=user_id) as s: RunRepository(s).finish(run_id)", ""), ("", "")],
    "scale.md": [("", ""), ("", "")],
    "security.md": [("db.enable_audit()", "")],
    "tenancy.md": [("", "")],
    "your-own-tables.md": [("", ""), ("", ""), ("", ""), (TOKEN, ""), ("", ""), (ORDERS, "")],
}
# In place of Celery, which is not installed here: a decorator that leaves the function as it is.
CELERY = """
import types

class Celery:
    def __init__(self, name, broker): ...
    def task(self, **options): return lambda work: work

sys.modules["celery"] = types.ModuleType("celery")
sys.modules["celery"].Celery = Celery
"""


def page(name: str) -> str:
    """A page of the documentation."""
    return (DOCS / name).read_text()


def test_every_command_of_a_page_is_one() -> None:
    """Each `python -m shared.db` of a block is understood by the program, with all of its arguments."""
    parser, understood = parser_of("shared.db", DESCRIPTION, GROUPS), 0
    for path in [*DOCS.glob("*.md"), README]:
        for block in blocks(path.read_text(), "(?:bash|sh)"):
            for line in block.splitlines():
                _, found, arguments = line.partition("python -m shared.db ")
                if found:
                    parser.parse_args(shlex.split(arguments.partition(" > ")[0], comments=True))
                    understood += 1
    assert understood > 40


def test_every_setting_of_a_page_is_one() -> None:
    """A variable that a page names is one of the settings."""
    known = {setting["variable"] for setting in describe_settings()} | {"GRIDBOT_DB_DB_TYPE", "GRIDBOT_DATABASE_URL"}
    named = {
        (path.name, word) for path in DOCS.glob("*.md") for word in re.findall(r"GRIDBOT_DB_\w*[A-Z]", path.read_text())
    }
    assert [found for found in named if found[1] not in known] == []


@pytest.mark.parametrize("name", AROUND)
def test_the_pieces_of_a_page_run(name: str, tmp_path: Path) -> None:
    """What a page does with a database and a run that are there, it can do."""
    pieces, around = blocks(page(name), "python"), AROUND[name]
    code = WORLD
    for piece, (before, after) in zip(pieces, around, strict=True):
        code += f"{before}\n{piece}\n{after}\n"
    if name == "operations.md":  # its factory is of the settings
        code = code.replace('finish("run-1")', "finish(run_id)").replace('"alice"', "user_id")
    done = run_python("-c", code, cwd=tmp_path, environment={"GRIDBOT_DB_NAME": "world.db"})
    assert done.returncode == 0, done.stderr


def test_the_application_of_the_page_runs_under_gunicorn(postgresql_url: URL, tmp_path: Path) -> None:
    """The Flask application, by the page's own configuration: several workers, which each take requests."""
    configuration, application = blocks(page("servers.md"), "python")[0], blocks(page("web.md"), "python")[1]
    (tmp_path / "gunicorn.conf.py").write_text(configuration)
    (tmp_path / "app.py").write_text(application)
    address = str(tmp_path / "socket")
    command = [sys.executable, "-m", "gunicorn", "--bind", f"unix:{address}", "--log-level", "warning"]
    environment = {**os.environ, "GRIDBOT_DB_URL": postgresql_url.render_as_string(hide_password=False)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as server:
        try:
            while not Path(address).exists():
                assert server.poll() is None
                time.sleep(0.05)  # it is starting
            for user in ("alice", "bob"):
                assert asked(address, "POST", f"/sign-up/{user}", user) == (201, [user])
                assert asked(address, "POST", f"/accounts/of-{user}", user)[0] == 201
            assert asked(address, "GET", "/accounts", "alice") == (200, ["of-alice"])
            with DatabaseFactory(postgresql_url) as db, db.engine.connect() as connection:
                names = connection.scalars(text("SELECT DISTINCT application_name FROM pg_stat_activity"))
                assert "api" in set(names)
        finally:
            server.terminate()


def asked(address: str, method: str, path: str, user: str) -> tuple[int, Any]:
    """The status and the answer of a server at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(60)
        connected.connect(address)
        connection = http.client.HTTPConnection("localhost")
        connection.sock = connected
        connection.request(method, path, headers={"X-User": user})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_the_task_of_the_page_stores_a_fill_once(tmp_path: Path) -> None:
    """As often as it comes."""
    fill = {"category": "linear", "symbol": "BTCUSDT", "execId": "e-1", "orderId": "o-1", "side": "Buy"}
    fill |= {"execType": "Trade", "execPrice": "65065.8", "execQty": "0.038", "execTime": "1747612800000"}
    message = json.dumps({"topic": "execution", "data": [fill]})
    call = f"store(user_id, run_id, run.account_id, {message!r})"
    code = f"{WORLD}{CELERY}{blocks(page('servers.md'), 'python')[1]}\nprint({call}, {call})"
    done = run_python("-c", code, cwd=tmp_path, environment={"GRIDBOT_DB_NAME": "world.db"})
    assert (done.stdout, done.stderr) == ("1 0\n", "")


def test_the_program_of_the_page_runs_under_gevent(postgresql_url: URL, tmp_path: Path) -> None:
    """With everything patched, in a process of its own, greenlets take turns at the connections."""
    program, promised = blocks(page("servers.md"), "python")[2], blocks(page("servers.md"), "text")[0]
    environment = {**os.environ, "GRIDBOT_DB_URL": postgresql_url.render_as_string(hide_password=False)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, promised), done.stderr


def test_the_page_of_examples_prints_what_it_promises(tmp_path: Path) -> None:
    """Its pieces are one program, which runs as it stands in an empty folder."""
    program, (promised,) = "\n".join(blocks(page("examples.md"), "python")), blocks(page("examples.md"), "text")
    done = run_python("-W", "error", "-c", program, cwd=tmp_path)
    assert (done.stdout, done.stderr) == (promised, "")


def test_every_public_name_has_an_example() -> None:
    """A page shows each name of `shared.db` at work in a program that is run; of the errors a few do for all."""
    shown = reference.examples()
    errors = {name for name in shared.db.__all__ if name.endswith(("Error", "Violation", "Failure"))}
    assert sorted({*shared.db.__all__} - shown.keys() - errors) == []


def test_uwsgi_is_told_to_load_the_program_in_each_worker() -> None:
    """The page's configuration is one, and has what a fork in C needs."""
    parsed = configparser.ConfigParser()
    parsed.read_string(blocks(page("servers.md"), "ini")[0])
    assert parsed["uwsgi"].getboolean("lazy-apps")


def test_the_cells_of_the_page_run_as_a_notebook_runs_them(tmp_path: Path) -> None:
    """One after the other in a running event loop, with await outside of a function."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db:
        db.create_tables()
        two_runs(db, executions=3)
        with db.get_session() as session:
            noon = datetime(2025, 5, 19, 12, tzinfo=UTC)
            PublicTradeRepository(session).bulk_create([trade_values(exchange_ts=noon)])

    async def run() -> dict[str, Any]:
        cells: dict[str, Any] = {}
        for code in blocks(page("notebooks.md"), "python"):
            way = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            result = eval(compile(code.replace('"alice"', '"ann"'), "<cell>", "exec", flags=way), cells)
            if isinstance(result, CoroutineType):
                await result
        return cells

    cells = asyncio.run(run())
    try:
        assert (len(cells["fills"]), len(cells["candles"]), len(cells["running"])) == (3, 1, 1)
    finally:
        cells["db"].close()


def test_the_commands_of_the_page_move_a_fleet(
    empty_postgresql_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From SQLite to an empty PostgreSQL in the page's order, policies and all."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db:
        db.create_tables()
        two_runs(db, executions=3)
    monkeypatch.setenv("GRIDBOT_DB_URL", empty_postgresql_url.render_as_string(hide_password=False))
    (commands,) = blocks(page("moving.md"), "bash")
    for line in commands.splitlines():
        assert main(shlex.split(line)[3:]) == 0, line
    with DatabaseFactory() as db:
        assert usernames(db) == ["ann", "bob"]
        assert db.row_security_status().enabled
        with db.get_session(user_id="ann") as session:
            assert session.query(PrivateExecution).count() == 3


def manifests() -> Iterator[dict[str, Any]]:
    """The objects of the page on Kubernetes."""
    (block,) = blocks(page("kubernetes.md"), "yaml")
    yield from yaml.safe_load_all(block)


def test_the_pods_of_the_page_get_settings_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and values are taken by the settings, secrets and files are ones that the page makes, commands exist."""
    by_kind = {found["kind"]: found for found in manifests()}
    data, secrets = by_kind["ConfigMap"]["data"], by_kind["Secret"]["stringData"]
    for kind in ("Job", "Deployment"):
        pod = by_kind[kind]["spec"]["template"]["spec"]
        assert pod["enableServiceLinks"] is False
        (container,) = pod["containers"]
        given = {**data}
        for variable in container["env"]:
            source = variable.get("valueFrom", {})
            assert source.get("secretKeyRef", {"key": "password"})["key"] in secrets
            given[variable["name"]] = variable.get("value", "a-pod")
        assert given.keys() <= {setting["variable"] for setting in describe_settings()}
        keys = tmp_path / "keys"
        keys.write_text(generate_entry("2026-11"))
        mounted = {f"{mount['mountPath']}/keys": str(keys) for mount in container.get("volumeMounts", ())}
        for name, value in given.items():
            monkeypatch.setenv(name, mounted.get(value, value))
        settings = DatabaseSettings()
        assert settings.url.host == "db.example"
        assert bool(settings.encryption_keys or settings.encryption_keys_file) == (kind == "Deployment")
    command = by_kind["Job"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:3] == ["python", "-m", "shared.db"]
    parser_of("shared.db", DESCRIPTION, GROUPS).parse_args(command[3:])
    probe = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
    assert probe == inspect.signature(FlaskDoor.__init__).parameters["health_path"].default
