"""A connection that breaks in the midst of a bulk call."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import URL, func, select

from shared.db import ConnectionLostError, DatabaseFactory, PublicTrade
from shared.db.bulk import bulk_create
from shared.db.driver_errors import named_errors
from shared.db.tests.cutting_proxy import CuttingProxy
from shared.db.tests.support import trade_values


@pytest.fixture
def proxy(postgresql_url: URL) -> Iterator[CuttingProxy]:
    """Between the library and a PostgreSQL database of the test's own."""
    with tempfile.TemporaryDirectory() as folder, CuttingProxy(postgresql_url, Path(folder)) as proxy:
        yield proxy


@pytest.mark.parametrize("stored_before", [0, 5])
def test_a_connection_lost_while_copying_is_named_and_made_good(proxy: CuttingProxy, stored_before: int) -> None:
    """Not hidden behind the rollback to a savepoint that is gone: so the transaction can be run again."""
    rows = [trade_values(number) for number in range(20)]
    with DatabaseFactory(proxy.url) as db:
        with db.get_session() as session:
            bulk_create(session, PublicTrade, rows[:stored_before])
        proxy.cut(b"COPY", "before")
        with pytest.raises(ConnectionLostError), db.get_session() as session:
            bulk_create(session, PublicTrade, rows)
        proxy.cut(b"COPY", "before")
        done = db.run_in_transaction(lambda session: bulk_create(session, PublicTrade, rows))
        assert (done.inserted, done.skipped) == (20 - stored_before, stored_before)
        with db.get_session() as session:
            assert session.scalar(select(func.count()).select_from(PublicTrade)) == 20


def test_the_drivers_stumble_is_told_as_the_drivers_error(postgresql_url: URL) -> None:
    """A SystemError that psycopg2's own error caused is that error; any other stays what it is."""
    with DatabaseFactory(postgresql_url) as db, db.engine.connect() as connection:
        with pytest.raises(ConnectionLostError), named_errors(connection):
            connection.connection.dbapi_connection.close()  # type: ignore[union-attr] # it is there
            raise SystemError("decode returned a result with an exception set") from psycopg2.OperationalError(
                "server closed the connection unexpectedly"
            )
        with pytest.raises(SystemError), named_errors(connection):
            raise SystemError("of the interpreter")
