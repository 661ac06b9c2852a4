"""`serve`: a report that is kept up to date, over real HTTP: who gets in, whose rows, and what a page is told."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from shared.db import DatabaseFactory, InputError, MissingExtraError, PrivateExecutionRepository
from shared.db.commands.cli import main
from shared.db.report.live import live_app, logins_for
from shared.db.report.page import number
from shared.db.tests.report_pages import Read, trade_for
from shared.db.tests.serving import uvicorn_serving


@dataclass(frozen=True)
class Served:
    """Reports of ann and bob, by their tokens."""

    port: int
    tokens: dict[str, str]
    runs: dict[str, list[dict[str, Any]]]
    opened: list[Any] = field(default_factory=list)

    def ask(self, path: str, cookie: str = "", method: str = "GET", host: str = "") -> http.client.HTTPResponse:
        """The answer to one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Cookie": cookie, "Host": host or f"127.0.0.1:{self.port}"}
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        self.opened.extend((connection, answer))
        return answer

    def close(self) -> None:
        """End what was asked: the server would wait for streams that somebody reads."""
        for each in self.opened:
            each.close()

    def login(self, user: str) -> str:
        """The cookie of a login."""
        told = self.ask(f"/?token={self.tokens[user]}").getheader("Set-Cookie")
        assert told is not None
        return told.partition(";")[0]

    def page(self, cookie: str) -> Read:
        """The page that a login has."""
        return Read(self.ask("/", cookie).read().decode())


@pytest.fixture
def served(busy_fleet: DatabaseFactory) -> Iterator[Served]:
    """A server that looks for new fills ten times a second."""
    runs = trade_for(busy_fleet, "ann", 20)
    trade_for(busy_fleet, "bob", 30, seed=2)
    logins = logins_for(busy_fleet, ["name-ann", "name-bob"])
    with uvicorn_serving(live_app(busy_fleet, logins, 0.1)) as ask:
        served = Served(ask.port, {login.username: token for token, login in logins.items()}, runs)
        yield served
        served.close()


def events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    """The name and data of each event, as they come."""
    name = "message"
    for line in iter(answer.readline, b""):
        said = line.decode().rstrip("\n")
        if said.startswith("event: "):
            name = said.removeprefix("event: ")
        elif said.startswith("data: "):
            yield name, json.loads(said.removeprefix("data: "))
            name = "message"


def test_without_a_token_there_is_nothing(served: Served) -> None:
    """Nor with a wrong one, or a cookie that nobody gave; the answer says where the address is."""
    for path, cookie in (
        ("/", ""),
        ("/figures", ""),
        ("/?token=", ""),
        ("/?token=%C3%A9", ""),
        ("/", "gridbot_report=x"),
    ):
        answer = served.ask(path, cookie)
        assert (answer.status, b"name-ann" in (body := answer.read())) == (401, False)
        assert b"python -m shared.db serve" in body
    assert served.ask("/elsewhere", served.login("name-ann")).status == 404


def test_a_token_becomes_a_cookie_that_scripts_do_not_see(served: Served) -> None:
    """It goes nowhere else, and leaves the address; nothing is kept in a cache."""
    answer = served.ask(f"/?token={served.tokens['name-ann']}")
    assert (answer.status, answer.getheader("Location")) == (303, "/")
    (cookie,) = SimpleCookie(answer.getheader("Set-Cookie") or "").values()
    assert (cookie["httponly"], cookie["samesite"]) == (True, "strict")
    page = served.ask("/", f"{cookie.key}={cookie.value}")
    assert (page.status, page.getheader("Cache-Control"), page.getheader("X-Frame-Options")) == (
        200,
        "no-store",
        "DENY",
    )
    assert served.tokens["name-ann"] not in page.read().decode()


def test_each_login_has_its_own_user(served: Served) -> None:
    """Both at once, each with their own fills, and no name of the other."""
    cookies = {user: served.login(user) for user in ("name-ann", "name-bob")}
    pages = {user: served.page(cookie) for user, cookie in cookies.items()}
    assert (pages["name-ann"].facts["Fills"], pages["name-bob"].facts["Fills"]) == ("41", "61")
    assert "bob" not in pages["name-ann"].text
    assert "ann" not in pages["name-bob"].text.replace("Report of", "")


def test_it_answers_to_no_other_name_and_writes_nothing(served: Served) -> None:
    """A page from elsewhere whose name leads here gets nothing, and there is nothing to send."""
    cookie = served.login("name-ann")
    assert served.ask("/", cookie, host="evil.example").status == 400
    assert served.ask("/", cookie, host=f"localhost:{served.port}").status == 200
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert served.ask("/", cookie, method).status == 405


def test_a_new_fill_is_told_with_the_database_s_sums(served: Served, busy_fleet: DatabaseFactory) -> None:
    """To a page that is open, as all that has changed; another user's fill is told to nobody but them."""
    cookie = served.login("name-ann")
    html = served.ask("/", cookie).read().decode()
    (live,) = re.findall(r'<main data-live="(\d+)">', html)
    stream = events(served.ask(f"/figures?after={live}", cookie))
    run, (fill, *_) = next(iter(served.runs.items()))
    late = fill | {"exchange_ts": fill["exchange_ts"] + timedelta(hours=9)}
    with busy_fleet.get_session(user_id="bob") as session:
        foreign = {"run_id": "run-bob", "account_id": "acc-bob", "exec_id": "late"}
        PrivateExecutionRepository(session).bulk_create([late | foreign])
    with busy_fleet.get_session(user_id="ann") as session:
        PrivateExecutionRepository(session).bulk_create(
            [late | {"exec_id": "late", "closed_pnl": Decimal("77.00000001")}]
        )
    with busy_fleet.get_session(user_id="ann", read_only=True) as session:
        totals = PrivateExecutionRepository(session).totals(run)
    name, told = next(stream)
    assert name == "message"
    page = Read("<script>[]</script>" + "".join(told["sections"]))
    assert page.facts["Fills"] == "42"
    (profit,) = (cell for row, cell in page.column("By run", "before fees").items() if row.endswith(run[:8]))
    assert profit == number(totals.closed_pnl)
    assert len(told["pictures"]) == len(Read(html).pictures)
    assert "bob" not in json.dumps(told)


def test_a_database_that_fails_is_told_in_a_sentence(served: Served, busy_fleet: DatabaseFactory) -> None:
    """Which has nothing secret in it, and the page goes on by itself when it is back."""
    cookie = served.login("name-ann")
    stream = events(served.ask("/figures?after=", cookie))
    assert next(stream)[0] == "message"
    table = "private_executions"
    with busy_fleet.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {table} RENAME TO away"))
    name, told = next(stream)
    with busy_fleet.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE away RENAME TO {table}"))
    assert name == "trouble"
    assert told in ("this is the server's fault", "try again later")
    with busy_fleet.get_session(user_id="ann") as session:
        ((fill, *_), *_) = served.runs.values()
        PrivateExecutionRepository(session).bulk_create([fill | {"exec_id": "late"}])
    assert "message" in (name for name, _ in stream)


def test_who_is_not_there_has_no_token(fleet: DatabaseFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without the extra the error says how to install it."""
    with pytest.raises(InputError, match="there is no user called 'nobody'"):
        logins_for(fleet, ["name-ann", "nobody"])
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(MissingExtraError, match=r"FastAPI is not installed.*WHEEL\[web\]"):
        live_app(fleet, {}, 1)


def test_the_command_serves_this_machine_until_it_is_ended(busy_fleet: DatabaseFactory) -> None:
    """It prints an address with a token, listens to nobody else, and ends with an open page within seconds."""
    trade_for(busy_fleet, "ann", 3)
    command = [sys.executable, "-m", "shared.db", "serve", "--user", "name-ann", "--every", "0.1"]
    environment = os.environ | {"GRIDBOT_DB_URL": busy_fleet.settings.get_database_url()}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"name-ann: http://127\.0\.0\.1:(\d+)/\?token=([\w-]{32})\n", line)
        assert found is not None
        served = Served(int(found[1]), {"name-ann": found[2]}, {})
        cookie = served.login("name-ann")
        assert served.page(cookie).facts["Fills"] == "7"
        stream = events(served.ask("/figures?after=0", cookie))
        assert next(stream)[0] == "message"
        assert {each.split()[1] for each in listening(served.port)} == {f"0100007F:{served.port:04X}"}
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        served.close()
    assert process.returncode == 130
    assert found[2] not in said
    assert "Traceback" not in said


def listening(port: int) -> list[str]:
    """The kernel's lines of sockets that listen at a port, at whatever address."""
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [line for line in lines if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"]


def test_a_port_that_is_taken_is_told(busy_fleet: DatabaseFactory, capsys: pytest.CaptureFixture[str]) -> None:
    """With the argument that names another; so is one that is none."""
    url = busy_fleet.settings.get_database_url()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--db-url", url, "--user", "name-ann", "--port", str(port)]) == 1
        assert f"nothing can be served at port {port}: Address already in use" in capsys.readouterr().err
    for wrong in (["--port", "70000"], ["--port", "-1"], ["--every", "nan"], ["--every", "0"]):
        with pytest.raises(SystemExit):
            main(["serve", "--db-url", url, "--user", "name-ann", *wrong])
        assert f"{wrong[0]} is a number" in capsys.readouterr().err
