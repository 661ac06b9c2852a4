"""A request's session for FastAPI and Flask: its user's own, and committed before the response leaves.

Neither is needed to import this: FastAPI comes with the extra `web`, and Flask from whoever has a Flask application.
"""
# No `from __future__ import annotations`: FastAPI reads those of functions made here, by names that are local.

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

from sqlalchemy.orm import Session

from shared.db.async_door import AsyncSession
from shared.db.database import DatabaseFactory
from shared.db.errors import (
    CommitUnknownError,
    ConstraintError,
    DatabaseFailure,
    DatabaseFullError,
    DatabaseUnreachableError,
    InvalidValueError,
    MissingExtraError,
    PoolExhaustedError,
    RowNotFoundError,
    SharedDBError,
    StaleDocumentError,
    StaleRowError,
    StatementCanceledError,
    TenantViolation,
    TextEncodingError,
    TransactionConflictError,
    ValueRefusedError,
)
from shared.db.sessions import NamingSession

__all__ = ["FastAPIDoor", "FlaskDoor", "status_of"]

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
# The first that fits. What a client may know is in the sentence: an error's own text may name what is another's.
_STATUSES: tuple[tuple[tuple[type[SharedDBError], ...], int, str], ...] = (
    ((CommitUnknownError,), 503, "it is not known whether this was stored: look before you send it again"),
    ((ConstraintError, StaleRowError, StaleDocumentError), 409, "this conflicts with what is stored"),
    ((TransactionConflictError,), 409, "this met another request: send it again"),
    ((InvalidValueError, ValueRefusedError, TextEncodingError), 422, "a value cannot be stored"),
    # Whose it is, and whether it is there, is nobody else's business.
    ((RowNotFoundError, TenantViolation), 404, "there is no such thing"),
    ((DatabaseUnreachableError, PoolExhaustedError, DatabaseFullError, StatementCanceledError), 503, "try again later"),
)  # fmt: skip

_log = logging.getLogger("shared.db")


def status_of(error: SharedDBError) -> tuple[int, str]:
    """The HTTP status for an error of this library, and a sentence for the client, in which nothing is secret.

    409 for what conflicts with what is stored, 422 for a value that cannot be, 404 for a row that is not there or not
    the user's, 503 for a database that is away or full, and whatever else may pass; 500 for all others.
    """
    for kinds, status, sentence in _STATUSES:
        if isinstance(error, kinds):
            return status, sentence
    if isinstance(error, DatabaseFailure) and error.transient:
        return 503, "try again later"
    return 500, "this is the server's fault"


def _told(error: SharedDBError) -> tuple[int, dict[str, str], dict[str, str]]:
    """Status, body and headers; the log has the error itself."""
    status, sentence = status_of(error)
    level = logging.ERROR if status == 500 else logging.WARNING if status == 503 else logging.INFO
    _log.log(
        level, "a request ends with %d: %s", status, type(error).__name__, exc_info=error if status == 500 else None
    )
    return status, {"detail": sentence}, {"Retry-After": "1"} if status == 503 else {}


def _health(db: DatabaseFactory) -> tuple[int, dict[str, Any]]:
    """Whether requests can be served, and of how many problems the operator should read in `status`."""
    health = db.health()
    return 200 if health.reachable else 503, {"reachable": health.reachable, "problems": len(health.problems)}


class FastAPIDoor:
    """Sessions for the endpoints of a FastAPI application, as dependencies.

    `user` is the application's own dependency that tells a request's user id; one that gives None is answered with 401,
    before a connection is taken. Errors of this library are answered as `status_of()` says, and `GET health_path` says
    whether the database can be reached (None: no such path). Raises `MissingExtraError` without FastAPI 0.121.

    `def runs(session: Annotated[Session, door.session])` is a request's session in an endpoint of FastAPI's threads;
    `async def runs(session: Annotated[AsyncSession, door.async_session])` in one of the event loop's. Both only read
    where the method is GET, HEAD or OPTIONS, and commit before the response leaves, so that a failed COMMIT is the
    client's to know. A plain session is refused in the event loop (`AsyncSessionError`), which would stand still.
    """

    def __init__(
        self, app: Any, db: DatabaseFactory, *, user: Callable[..., Any], health_path: str | None = "/health"
    ) -> None:
        try:
            from fastapi import Depends, HTTPException, Request
            from fastapi.responses import JSONResponse

            depends = functools.partial(Depends, scope="function")
            depends(user)
        except (ImportError, TypeError) as error:
            raise MissingExtraError("FastAPI 0.121", "web") from error

        def known(request: Request, found: Annotated[Any, Depends(user)]) -> tuple[Any, bool]:
            if found is None:
                raise HTTPException(401)
            return found, request.method in _READS

        def opened(who: Annotated[tuple[Any, bool], Depends(known)]) -> Iterator[Session]:
            with db.get_session(user_id=who[0], read_only=who[1]) as session:
                assert isinstance(session, NamingSession)
                session.in_event_loops = False
                yield session

        async def opened_async(who: Annotated[tuple[Any, bool], Depends(known)]) -> AsyncIterator[AsyncSession]:
            async with db.get_async_session(user_id=who[0], read_only=who[1]) as session:
                yield session

        def answer(request: Request, error: Exception) -> JSONResponse:
            assert isinstance(error, SharedDBError)
            status, body, headers = _told(error)
            return JSONResponse(body, status, headers)

        def health() -> JSONResponse:
            status, body = _health(db)
            return JSONResponse(body, status)

        # With FastAPI's default scope the client has the 200 before COMMIT is sent.
        self.session = depends(opened)
        self.async_session = depends(opened_async)
        app.add_exception_handler(SharedDBError, answer)
        if health_path is not None:
            app.get(health_path, response_model=None)(health)


class FlaskDoor:
    """Sessions for the views of a Flask application.

    `user` is called without arguments in a request, and tells its user id; None is answered with 401. Errors of this
    library are answered as `status_of()` says, and `GET health_path` (None: no such path) says whether the database can
    be reached.

    `@door.session` below the route gives a view its request's session as its first argument, which only reads where the
    method is GET, HEAD or OPTIONS, and commits before the response leaves.
    """

    def __init__(
        self, app: Any, db: DatabaseFactory, *, user: Callable[[], Any], health_path: str | None = "/health"
    ) -> None:
        self._db = db
        self._user = user

        def answer(error: SharedDBError) -> tuple[dict[str, str], int, dict[str, str]]:
            status, body, headers = _told(error)
            return body, status, headers

        app.register_error_handler(SharedDBError, answer)
        if health_path is not None:
            app.add_url_rule(health_path, "shared_db_health", lambda: _health(db)[::-1], methods=["GET"])

    def session(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """The view with its session given. Raises `InvalidValueError` for an `async def`, whose loop would wait."""
        from flask import abort, request

        if inspect.iscoroutinefunction(view):
            raise InvalidValueError("a view with a session is a plain function: Flask runs each in a thread anyway")

        @functools.wraps(view)
        def with_session(*args: Any, **options: Any) -> Any:
            user = self._user()
            if user is None:
                abort(401)
            with self._db.get_session(user_id=user, read_only=request.method in _READS) as session:
                return view(session, *args, **options)

        return with_session
