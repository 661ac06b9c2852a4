"""`shared.db.web` behind real servers: uvicorn and werkzeug, each in a thread, with HTTP over a socket."""
# No `from __future__ import annotations`: FastAPI reads those of functions made here, by names that are local.

import http.client
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header
from fastapi.responses import StreamingResponse
from flask import Flask
from flask import request as flask_request
from sqlalchemy import URL, event, select
from sqlalchemy.orm import Session

from shared.db import (
    AsyncSession,
    BybitAccount,
    CommitUnknownError,
    ConstraintError,
    DatabaseFactory,
    InvalidValueError,
    Run,
    RunRepository,
    SharedDBError,
    TenantScopeError,
    TenantViolation,
    User,
)
from shared.db.tests.cutting_proxy import CuttingProxy
from shared.db.tests.serving import Ask, uvicorn_serving, werkzeug_serving
from shared.db.tests.support import two_runs
from shared.db.tests.test_documents import PACKAGE, blocks
from shared.db.tests.test_retry import proxy  # noqa: F401 # a fixture
from shared.db.web import FastAPIDoor, FlaskDoor, status_of

SECRET = "hunter2-secret"


def current_user(x_user: Annotated[str | None, Header()] = None) -> str | None:
    """Whoever says who he is: the tests' log-in."""
    return x_user


def fastapi_app(db: DatabaseFactory) -> FastAPI:
    """Three questions and an order, for sessions of both kinds."""
    app = FastAPI()
    door = FastAPIDoor(app, db, user=current_user)

    @app.get("/runs")
    def runs(session: Annotated[Session, door.session]) -> list[str]:
        return [run.run_id for run in RunRepository(session).get_running()]

    @app.get("/async/runs")
    async def runs_in_loop(session: Annotated[AsyncSession, door.async_session]) -> list[str]:
        return [run.run_id for run in await session.run_sync(lambda s: RunRepository(s).get_running())]

    @app.post("/accounts/{name}", status_code=201)
    def account(name: str, session: Annotated[Session, door.session]) -> str:
        session.add(BybitAccount(user_id=session.info["user_id"], account_name=name, environment="testnet"))
        return name

    @app.post("/async/accounts/{name}", status_code=201)
    async def account_in_loop(name: str, session: Annotated[AsyncSession, door.async_session]) -> str:
        session.add(BybitAccount(user_id=session.info["user_id"], account_name=name, environment="testnet"))
        return name

    @app.get("/accounts/{name}")  # where nothing is written
    def account_by_get(name: str, session: Annotated[Session, door.session]) -> str:
        session.add(BybitAccount(user_id=session.info["user_id"], account_name=name, environment="testnet"))
        return name

    @app.post("/of-another")
    def of_another(session: Annotated[Session, door.session]) -> None:
        session.add(BybitAccount(user_id="bob", account_name=SECRET, environment="testnet"))

    @app.get("/stream")
    def stream() -> StreamingResponse:
        def lines() -> Iterator[str]:
            with db.get_session(user_id="ann", read_only=True) as session:
                yield json.dumps(list(session.scalars(select(Run.run_id))))

        return StreamingResponse(lines())

    return app


def flask_app(db: DatabaseFactory) -> Flask:
    """The same for Flask."""
    app = Flask(__name__)
    door = FlaskDoor(app, db, user=lambda: flask_request.headers.get("X-User"))

    @app.get("/runs")
    @door.session
    def runs(session: Session) -> list[str]:
        return [run.run_id for run in RunRepository(session).get_running()]

    @app.route("/accounts/<name>", methods=["GET", "POST"])
    @door.session
    def account(session: Session, name: str) -> tuple[list[str], int]:
        session.add(BybitAccount(user_id=session.info["user_id"], account_name=name, environment="testnet"))
        return [name], 201

    @app.post("/of-another")
    @door.session
    def of_another(session: Session) -> list[str]:
        session.add(BybitAccount(user_id="bob", account_name=SECRET, environment="testnet"))
        return []

    return app


@contextmanager
def serving(kind: str, db: DatabaseFactory) -> Iterator[Ask]:
    """A server of one of the kinds, in front of the database."""
    with uvicorn_serving(fastapi_app(db)) if kind == "fastapi" else werkzeug_serving(flask_app(db)) as ask:
        yield ask


@pytest.fixture(params=["fastapi", "flask"])
def kind(request: pytest.FixtureRequest) -> str:
    """Either framework."""
    return str(request.param)


def accounts(db: DatabaseFactory) -> set[tuple[str, str]]:
    """Whose accounts are stored."""
    with db.get_session(read_only=True) as session:
        return {(row.user_id, row.account_name) for row in session.execute(select(BybitAccount.__table__))}


def test_a_request_has_the_session_of_its_user(lasting: DatabaseFactory, kind: str) -> None:
    """It reads own rows, stores with POST and is not let write with GET; without a user it is 401, at no connection."""
    two_runs(lasting, executions=1)
    with serving(kind, lasting) as ask:
        lasting.close()
        assert ask("GET", "/runs")[0] == 401
        assert lasting._engines is None
        assert ask("GET", "/runs", "ann") == (200, ["run-ann"])
        assert ask("GET", "/runs", "nobody") == (200, [])
        assert ask("POST", "/accounts/second", "ann")[0] == 201
        assert ask("GET", "/accounts/third", "ann")[0] == 500
        assert ask("GET", "/health") == (200, {"reachable": True, "problems": 0})
        if kind == "fastapi":
            assert ask("GET", "/async/runs", "bob") == (200, ["run-bob"])
            assert ask("POST", "/async/accounts/second", "bob")[0] == 201
            assert ask("GET", "/stream") == (200, ["run-ann"])
        assert lasting.open_sessions == 0
    assert accounts(lasting) >= {("ann", "main"), ("ann", "second")}
    assert "third" not in {name for _, name in accounts(lasting)}


def test_a_conflict_is_the_clients_409_and_nothing_secret_is_told(
    lasting: DatabaseFactory, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A rule of the database that COMMIT's flush breaks, and a stranger's row: told in a sentence of ours."""
    two_runs(lasting, executions=1)
    with caplog.at_level(logging.DEBUG, "shared.db"), serving(kind, lasting) as ask:
        told = [ask("POST", "/accounts/main", "ann"), ask("POST", "/of-another", "ann")]
        if kind == "fastapi":
            told.append(ask("POST", "/async/accounts/main", "ann"))
    assert [status for status, _ in told] == [409, 404, 409][: len(told)]
    for text in [str(body) for _, body in told] + [
        record.getMessage() for record in caplog.records if record.name == "shared.db"
    ]:
        assert SECRET not in text
        assert "main" not in text
        assert "bob" not in text


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_commit_is_the_clients_503(
    proxy: CuttingProxy,  # noqa: F811 # the fixture
    kind: str,
    when: Any,
) -> None:
    """He does not have a 201 for what is not stored, or not known to be."""
    with DatabaseFactory(proxy.url) as db:
        two_runs(db, executions=1)
        with serving(kind, db) as ask:
            for path in ["/accounts/x"] + ["/async/accounts/y"] * (kind == "fastapi"):
                proxy.cut(b"COMMIT", when)
                status, body = ask("POST", path, "ann")
                assert status == 503
                assert "not known" in body["detail"]
            assert ask("GET", "/runs", "ann") == (200, ["run-ann"])


def test_fastapis_default_scope_would_tell_of_success_before_the_commit(
    proxy: CuttingProxy,  # noqa: F811 # the fixture
) -> None:
    """The trap that the door keeps from: with a dependency of the default scope the same failure is a 200."""
    with DatabaseFactory(proxy.url) as db:
        two_runs(db, executions=1)
        app = FastAPI()

        def trap() -> Iterator[Session]:
            with db.get_session(user_id="ann") as session:
                yield session

        @app.post("/trap")
        def post(session: Annotated[Session, Depends(trap)]) -> str:
            session.add(BybitAccount(user_id="ann", account_name="x", environment="testnet"))
            return "stored"

        with uvicorn_serving(app) as ask:
            proxy.cut(b"COMMIT", "before")
            assert ask("POST", "/trap") == (200, "stored")
        assert accounts(db) == {("ann", "main"), ("bob", "main")}


def test_a_plain_session_is_refused_in_the_event_loop(lasting: DatabaseFactory) -> None:
    """An `async def` endpoint that asks it would freeze the server: it is told so, and a plain `def` is not."""
    two_runs(lasting, executions=1)
    app = FastAPI()
    door = FastAPIDoor(app, lasting, user=current_user)

    def in_a_thread(session: Annotated[Session, door.session]) -> list[str]:
        return [run.run_id for run in RunRepository(session).get_running()]

    @app.get("/trap")
    async def trap(session: Annotated[Session, door.session]) -> list[str]:
        return in_a_thread(session)

    @app.get("/below")
    async def below(found: Annotated[list[str], Depends(in_a_thread)]) -> list[str]:
        return found

    with uvicorn_serving(app) as ask:
        assert ask("GET", "/trap", "ann")[0] == 500
        assert ask("GET", "/below", "ann") == (200, ["run-ann"])
    with pytest.raises(InvalidValueError, match="plain function"):
        FlaskDoor(Flask(__name__), lasting, user=lambda: None).session(trap)


def test_a_slow_request_holds_up_no_other(lasting: DatabaseFactory) -> None:
    """While one waits in its session, in a thread or for asyncio, the event loop answers the rest."""
    two_runs(lasting, executions=1)
    app = fastapi_app(lasting)
    door = FastAPIDoor(app, lasting, user=current_user, health_path=None)
    waiting, go_on = threading.Semaphore(0), threading.Event()

    def wait(session: Session) -> str:
        session.scalars(select(User)).all()
        waiting.release()
        assert go_on.wait(30)
        return "done"

    @app.get("/slow")
    def slow(session: Annotated[Session, door.session]) -> str:
        return wait(session)

    @app.get("/async/slow")
    async def slow_in_loop(session: Annotated[AsyncSession, door.async_session]) -> str:
        return await session.run_sync(wait)

    with uvicorn_serving(app) as ask, ThreadPoolExecutor(2) as others:
        slow_ones = [others.submit(ask, "GET", path, "ann") for path in ("/slow", "/async/slow")]
        for _ in slow_ones:
            assert waiting.acquire(timeout=30)
        assert ask("GET", "/async/runs", "bob") == (200, ["run-bob"])
        go_on.set()
        assert [one.result() for one in slow_ones] == [(200, "done")] * 2


def test_three_users_at_once_under_load_never_meet(postgresql_url: URL, kind: str) -> None:
    """Each reads and stores many times over, on few connections: own rows only, every one that was answered 201."""
    users = ("ann", "bob", "carol")
    with DatabaseFactory(postgresql_url) as db:
        two_runs(db, executions=1)
        with db.get_session() as session:
            session.add(User(user_id="carol", username="carol"))
        db.enable_row_security()
        doors = ["", "/async"] if kind == "fastapi" else [""]
        with serving(kind, db) as ask:

            def load(number: int) -> list[tuple[str, str]]:
                user, stored = users[number % len(users)], []
                for turn in range(10):
                    door = doors[turn % len(doors)]
                    own = [] if user == "carol" else [f"run-{user}"]
                    assert ask("GET", f"{door}/runs", user) == (200, own)
                    name = f"{user}-{number}-{turn}"
                    assert ask("POST", f"{door}/accounts/{name}", user)[0] == 201
                    stored.append((user, name))
                return stored

            with ThreadPoolExecutor(2 * len(users)) as clients:
                stored = [one for some in clients.map(load, range(2 * len(users))) for one in some]
        assert accounts(db) == {*stored, ("ann", "main"), ("bob", "main")}


def test_a_database_that_is_away_is_503_and_so_says_the_health_endpoint(kind: str) -> None:
    """With nothing of its address in the answer."""
    with (
        DatabaseFactory(f"postgresql://somebody:{SECRET}@127.0.0.1:1/nowhere") as db,
        serving(kind, db) as ask,
    ):
        for method, path in (("GET", "/health"), ("GET", "/runs"), ("POST", "/accounts/x")):
            status, body = ask(method, path, "ann")
            assert status == 503
            assert SECRET not in str(body)
            assert "somebody" not in str(body)


def test_statuses_are_of_the_errors_kind() -> None:
    """And whatever has none is the server's fault."""
    driver_error = Exception(SECRET)
    found = [
        status_of(error)[0]
        for error in (
            ConstraintError(driver_error),
            CommitUnknownError(driver_error),
            InvalidValueError(SECRET),
            TenantViolation(SECRET, SECRET, SECRET, SECRET),
            TenantScopeError(SECRET),
            SharedDBError(SECRET),
        )
    ]
    assert found == [409, 503, 422, 404, 500, 500]


def test_a_client_that_goes_away_leaves_no_session_open(lasting: DatabaseFactory) -> None:
    """What it began is stored or undone as a whole, and its connection is free again."""
    two_runs(lasting, executions=1)
    begun = threading.Event()
    event.listen(lasting.engine, "commit", lambda connection: begun.set())
    with uvicorn_serving(fastapi_app(lasting)) as ask:
        gone = http.client.HTTPConnection("127.0.0.1", ask.port)
        gone.request("POST", "/async/accounts/gone", headers={"X-User": "ann"})
        gone.close()
        assert begun.wait(30)
        assert ask("GET", "/runs", "ann") == (200, ["run-ann"])
    assert lasting.open_sessions == 0


@pytest.mark.parametrize("which", [0, 1])
def test_the_applications_of_the_page_run(which: int, postgresql_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, on a database of the environment, behind a real server, for two users."""
    monkeypatch.setenv("GRIDBOT_DB_URL", postgresql_url.render_as_string(hide_password=False))
    monkeypatch.setattr("shared.db.database._default", None)  # the process's own, which is another one's else
    page = (PACKAGE / "docs" / "web.md").read_text()
    module = ModuleType("app_of_the_page")
    exec(blocks(page, "python")[which], module.__dict__)  # the page's own code
    try:
        with uvicorn_serving(module.app) if which == 0 else werkzeug_serving(module.app) as ask:
            for user in ("alice", "bob"):
                assert ask("POST", f"/sign-up/{user}")[0] == 201
                assert ask("POST", f"/accounts/of-{user}", user)[0] == 201
                assert ask("POST", f"/accounts/of-{user}", user)[0] == 409
            assert ask("GET", "/accounts", "alice") == (200, ["of-alice"])
            assert ask("GET", "/runs", "alice") == (200, [])
            assert ask("GET", "/accounts")[0] == 401
    finally:
        module.db.close()
