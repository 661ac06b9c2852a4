"""How PostgreSQL connects and begins."""

from __future__ import annotations

import math
import time
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

from shared.db import forking, transaction_control
from shared.db.database_url import is_secret
from shared.db.dialects import postgresql
from shared.db.engine import round_trips
from shared.db.engine.options import Pool, Request, only_reads
from shared.db.hidden import HiddenText
from shared.db.tenancy import leftovers

_CONNECT_TIMEOUT = 10
# A server that is silent is given up after half a minute, between questions (keepalives) and in the midst of one (what
# was sent is not acknowledged). The system's own two hours are longer than anybody watches a bot.
_SILENCE = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}


def make(request: Request) -> Engine:
    """An engine for a server's database."""
    settings, url = request.settings, request.url
    hidden = {key: value for key, value in url.query.items() if is_secret(key)}
    engine = create_engine(
        url.difference_update_query(hidden),
        **request.common,
        **request.pool,
        poolclass=Pool,
        pool_recycle=settings.pool_recycle,
        pool_pre_ping=settings.pool_pre_ping,
        connect_args={
            **request.unless_in_url(
                application_name=settings.application_name, connect_timeout=_CONNECT_TIMEOUT, **_SILENCE
            ),
            # Whatever the URL, the environment or the database prefers: COPY writes UTF-8, and what a session in
            # another encoding cannot decode it cannot read back.
            "client_encoding": "utf8",
            "connection_factory": postgresql.Connection,
            "cursor_factory": _Cursor,
            # Out of the URL, which the engine's repr shows, or in place of its part, which a traceback with its
            # frames' variables would show.
            **{key: HiddenText(value if isinstance(value, str) else value[-1]) for key, value in hidden.items()},
            **({} if url.password is None else {"password": HiddenText(url.password)}),
        },
    )
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "connect", _forget_cursors)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "checkin", _come_back)
    round_trips.spare(engine)
    leftovers.watch(engine)
    forking.protect(engine)
    return engine


def probing(url: URL, folder: str, timeout: float) -> URL:
    """The URL by which to look at the server, in that time. The driver takes a second for two."""
    return url.update_query_dict({"connect_timeout": str(max(2, math.ceil(timeout)))})


def became_read_only(error: BaseException, connection: Connection) -> bool:
    """Whether the server refuses to write by itself, as a standby does, and not since the session asked for it."""
    driver: Any = connection.connection.dbapi_connection
    return isinstance(error, postgresql.ReadOnlySqlTransaction) and not (only_reads(connection) or driver.readonly)


class _Cursor(transaction_control.GuardedCursor, round_trips.AdoptingCursor):
    """The driver's cursor, guarded."""

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        """As the driver's; `CopyUnsupportedError` under gevent."""
        if not postgresql.has_copy():
            raise postgresql.no_copy()
        super().copy_expert(sql, file, size)


def _connect(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> Any:
    try:
        return dialect.connect(*arguments, **options)
    except dialect.loaded_dbapi.Error as error:
        # Without the driver's frames, one of which has the password among its variables.
        raise error.with_traceback(None)  # noqa: B904 # the same error


def _forget_cursors(connection: Any, record: Any) -> None:
    connection.has_other_cursors = False  # of the driver's and SQLAlchemy's own, which are gone


def _begin(connection: Connection) -> None:
    driver: Any = connection.connection.dbapi_connection
    driver.adoption = None  # of a transaction in which nothing was sent
    # In place of SQLAlchemy's own option `postgresql_readonly`, whose handling takes as long as a round trip.
    if only_reads(connection):
        driver.readonly = True  # psycopg2 sends BEGIN READ ONLY before the first statement


def _come_back(connection: Any, record: Any) -> None:
    # Not one that was lost, nor one of the parent's after a fork.
    if isinstance(connection, postgresql.Connection) and not connection.closed:
        connection.last_used = time.monotonic()
        if connection.readonly:
            connection.readonly = None
