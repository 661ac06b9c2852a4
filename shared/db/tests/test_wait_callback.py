"""gevent with psycogreen sets the driver's wait callback, under which it has no COPY."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2.extensions
import psycopg2.extras
import pytest
from sqlalchemy import URL, delete

from shared.db import (
    BulkResult,
    ConstraintError,
    CopyUnsupportedError,
    DatabaseFactory,
    InvalidValueError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Recorder,
    Run,
)
from shared.db.operations.copy_database import copy_database
from shared.db.tests.support import execution_values, trade_values, two_runs, usernames, with_and_without_policies

ODD = ("plain", "tab\tand\nline\\n", 'it\'s "quoted" %s {}', "日本", "\\N", "")


@contextmanager
def green() -> Iterator[None]:
    """In this block the driver waits as psycogreen has it wait: by a function of Python's."""
    psycopg2.extensions.set_wait_callback(psycopg2.extras.wait_select)
    try:
        yield
    finally:
        psycopg2.extensions.set_wait_callback(None)


@pytest.fixture
def server(postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """PostgreSQL; what the other databases do hangs on no wait callback."""
    with DatabaseFactory(postgresql_url) as factory:
        yield factory


def odd_executions(run: Run) -> list[dict[str, object]]:
    """Texts that COPY escapes, and columns that are empty."""
    return [
        execution_values(run, number, exec_id=f"odd-{number}", order_link_id=text or None, raw_json={text: [None]})
        for number, text in enumerate(ODD)
    ]


def written(repository: PrivateExecutionRepository, run: Run) -> list[BulkResult]:
    """What comes of new rows, and of one that is there already."""
    rows = odd_executions(run)
    changed = [rows[0] | {"symbol": "ETHUSDT"}, execution_values(run, 99, exec_id="new", exec_fee=None)]
    return [repository.bulk_create(rows), repository.bulk_create(changed, on_conflict="update")]


def test_bulk_writes_store_the_same_without_copy(server: DatabaseFactory) -> None:
    """In users' sessions, with and without policies; what cannot be stored is refused alike."""
    ann, bob = two_runs(server, 0)
    for _ in with_and_without_policies(server):
        with server.get_session(user_id=ann.user_id) as session:
            expected = written(PrivateExecutionRepository(session), ann)
        with green(), server.get_session(user_id=bob.user_id) as session:
            repository = PrivateExecutionRepository(session)
            assert written(repository, bob) == expected
            with pytest.raises(ConstraintError):
                repository.bulk_create([execution_values(bob, 98), *odd_executions(bob)], on_conflict="error")
            with pytest.raises(InvalidValueError):
                repository.bulk_create([execution_values(bob, 98), execution_values(bob, 97, exec_qty=0.5)])
        with server.get_session() as session:
            of_ann, of_bob = (
                [
                    (row.exec_id, row.symbol, row.order_link_id, row.exec_fee, row.exchange_ts, row.raw_json)
                    for row in PrivateExecutionRepository.across_users(session).get_by_run_range(run.run_id)
                ]
                for run in (ann, bob)
            )
            session.execute(delete(PrivateExecution))
        assert of_bob == of_ann
        assert len(of_bob) == len(ODD) + 1


def test_frames_are_the_same_without_copy(server: DatabaseFactory) -> None:
    """The same Arrow table, with the same types."""
    ann, _ = two_runs(server, 20)
    with server.get_session(user_id=ann.user_id, read_only=True) as session:
        repository = PrivateExecutionRepository(session)
        copied = repository.to_arrow(ann.run_id)
        with green():
            assert repository.to_arrow(ann.run_id).equals(copied)


def test_a_recorder_works_without_copy(server: DatabaseFactory) -> None:
    """Every row it took is stored."""
    with green(), Recorder(server, PublicTrade) as recorder:
        recorder.add([trade_values(number) for number in range(20)])
        recorder.add([trade_values(number) for number in range(10, 30)])
    with server.get_session(read_only=True) as session:
        assert len(PublicTradeRepository(session).get_all()) == 30


def test_a_database_is_not_copied_without_copy(server: DatabaseFactory, empty_postgresql_url: URL) -> None:
    """It is refused by name, and the target is as it was."""
    two_runs(server, 1)
    with DatabaseFactory(empty_postgresql_url) as target:
        target.create_tables()
        with green(), pytest.raises(CopyUnsupportedError, match="in a process of its own"):
            copy_database(server, target)
        assert usernames(target) == []
