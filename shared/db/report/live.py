"""The report as a page that follows what is stored: for this machine alone, read-only, one user for each login.

A token, made anew by each start, says whose report it is; a login changes it for a cookie. Nothing can be written
through it: every question is asked in the user's own read-only session.
"""

from __future__ import annotations

import asyncio
import hmac
import importlib
import json
import logging
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from decimal import localcontext
from functools import partial
from typing import Any, NamedTuple

from shared.db.database import DatabaseFactory
from shared.db.errors import InputError, MissingExtraError, SharedDBError
from shared.db.ranges.streams import at_one_moment
from shared.db.report.gathering import gather
from shared.db.report.page import Page, plotly_script
from shared.db.report.questions import Scope, newest
from shared.db.report.user_page import user_page
from shared.db.repositories import UserRepository
from shared.db.value_forms.amounts import EXACT
from shared.db.web import status_of

_COOKIE = "gridbot_report"
_log = logging.getLogger("shared.db")


class Login(NamedTuple):
    """Whose report a token opens."""

    username: str
    scope: Scope


def logins_for(db: DatabaseFactory, usernames: Iterable[str]) -> dict[str, Login]:
    """A new token for each user. Raises `InputError` if there is no such user."""
    found: dict[str, Login] = {}
    with db.get_session(read_only=True) as session:
        for username in usernames:
            user = UserRepository(session).get_by_username(username)
            if user is None:
                raise InputError(f"there is no user called {username!r}; give a name as it stands in users.username")
            found[secrets.token_urlsafe(24)] = Login(username, Scope(user.user_id))
    return found


def live_app(db: DatabaseFactory, logins: Mapping[str, Login], seconds: float) -> Any:
    """The application, for a server that this machine alone can reach, with the `logins` by their tokens.

    Every `seconds` it is looked whether there are new fills, for each page that is open. Raises `MissingExtraError`
    without Starlette, which FastAPI brings, and without plotly.
    """
    plotly_script()
    try:
        applications, routing, responses, hosts, threads = (
            importlib.import_module(f"starlette.{name}")
            for name in ("applications", "routing", "responses", "middleware.trustedhost", "concurrency")
        )
    except ImportError as error:
        raise MissingExtraError("FastAPI", "web") from error
    sessions: dict[str, Login] = {}
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}

    def whose(request: Any) -> Login | None:
        return sessions.get(request.cookies.get(_COOKIE, ""))

    def refused() -> Any:
        text = "open the address that `python -m shared.db serve` printed, with its token"
        return responses.PlainTextResponse(text, 401, headers)

    def read(login: Login) -> tuple[Page, int]:
        with db.get_session(user_id=login.scope.user_id, read_only=True) as session, localcontext(EXACT):
            at_one_moment(session)
            last = newest(session, login.scope)
            return user_page(gather(session, login.username, login.scope), live=last), last

    def last_of(login: Login) -> int:
        with db.get_session(user_id=login.scope.user_id, read_only=True) as session:
            return newest(session, login.scope)

    def page(request: Any) -> Any:
        token = request.query_params.get("token")
        if token is not None:
            given = token.encode()
            login = next((one for each, one in logins.items() if hmac.compare_digest(each.encode(), given)), None)
            if login is None:
                return refused()
            key = secrets.token_urlsafe(24)
            sessions[key] = login
            answer = responses.RedirectResponse("/", 303, headers)
            answer.set_cookie(_COOKIE, key, httponly=True, samesite="strict")
            return answer
        login = whose(request)
        return refused() if login is None else responses.HTMLResponse(read(login)[0].html(), headers=headers)

    async def events(login: Login, known: str) -> AsyncIterator[str]:
        while True:
            try:
                if str(await threads.run_in_threadpool(last_of, login)) == known:
                    yield ":\n\n"  # by which a connection that nobody has any more is noticed
                else:
                    found, last = await threads.run_in_threadpool(read, login)
                    known = str(last)
                    yield f"id: {known}\ndata: {json.dumps(found.changing(), separators=(',', ':'))}\n\n"
            except SharedDBError as error:
                status, sentence = status_of(error)
                _log.warning("a live report could not be read (%d): %s", status, type(error).__name__)
                yield f"event: trouble\ndata: {json.dumps(sentence)}\n\n"
            await asyncio.sleep(seconds)

    def figures(request: Any) -> Any:
        login = whose(request)
        if login is None:
            return refused()
        known = request.headers.get("last-event-id") or request.query_params.get("after", "")
        return responses.StreamingResponse(events(login, known), media_type="text/event-stream", headers=headers)

    get = partial(routing.Route, methods=["GET"])
    app = applications.Starlette(routes=[get("/", page), get("/figures", figures)])
    # Another name that leads here is a page from elsewhere that asks in the reader's name.
    app.add_middleware(hosts.TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False)
    return app
