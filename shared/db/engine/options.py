"""What the engines of all databases are made with."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sqlalchemy import URL, Connection
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from shared.db import forking
from shared.db.errors import PoolExhaustedError
from shared.db.settings import DatabaseSettings

READ_ONLY: Final = "shared_db_read_only"
"""The execution option of an engine whose transactions cannot write."""


class Request(NamedTuple):
    """An engine for `settings`, or for another `url` with them. A relative path of a file counts from `folder`."""

    settings: DatabaseSettings
    folder: str
    url: URL

    @property
    def common(self) -> dict[str, Any]:
        """What every engine gets. Neither echo_sql nor an error text may show a secret that is being stored."""
        return {"echo": self.settings.echo_sql, "hide_parameters": True}

    @property
    def pool(self) -> dict[str, Any]:
        """The size of its pool, and how long to wait for it."""
        return {
            "pool_size": self.settings.pool_size,
            "max_overflow": self.settings.max_overflow,
            "pool_timeout": self.settings.pool_timeout,
        }

    def unless_in_url(self, **options: Any) -> dict[str, Any]:
        """The driver's options, without those that the URL's query sets: that was written for this one database."""
        return {key: value for key, value in options.items() if key not in self.url.query}


def only_reads(connection: Connection) -> bool:
    """Whether the connection's engine is one whose transactions cannot write."""
    return bool(connection.get_execution_options().get(READ_ONLY))


class Pool(forking.ForkAwarePool, QueuePool):
    """A pool that says, when nothing comes free, what to do about it."""

    _sqla_logger_namespace = "sqlalchemy.pool.impl.QueuePool"  # where everybody looks for what a pool logs

    def connect(self) -> PoolProxiedConnection:
        """A connection; `PoolExhaustedError` after the wait."""
        try:
            return super().connect()
        except PoolTimeoutError as error:
            raise PoolExhaustedError(
                f"no connection of this process came free ({error.args[0]}); end sessions sooner (a `with` block for "
                "each, none across a network call), or raise GRIDBOT_DB_POOL_SIZE or GRIDBOT_DB_MAX_OVERFLOW"
            ) from error
