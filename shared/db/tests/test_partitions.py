"""A table that an administrator has partitioned is whole for everything: its partitions are its rows, and no tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import URL, select, text

from shared.db import DatabaseFactory, PublicTrade, PublicTradeRepository
from shared.db.bulk.result import OnConflict
from shared.db.commands.cli import main
from shared.db.migrations import runner
from shared.db.operations.backup import back_up, restore
from shared.db.operations.copy_database import copy_database
from shared.db.tests.support import trade_values

BY_HAND = """
    ALTER TABLE public_trades RENAME TO plain;
    ALTER TABLE plain RENAME CONSTRAINT pk_public_trades TO pk_plain;
    CREATE TABLE public_trades (LIKE plain INCLUDING DEFAULTS INCLUDING CONSTRAINTS) PARTITION BY RANGE (exchange_ts);
    ALTER SEQUENCE public_trades_id_seq OWNED BY public_trades.id;
    DROP TABLE plain;
    ALTER TABLE public_trades ADD CONSTRAINT pk_public_trades PRIMARY KEY (id, exchange_ts);
    ALTER TABLE public_trades
        ADD CONSTRAINT uq_public_trades_symbol_exchange_ts_trade_id UNIQUE (symbol, exchange_ts, trade_id);
    CREATE TABLE public_trades_2025_05 PARTITION OF public_trades
        FOR VALUES FROM ('2025-05-01 00:00+00') TO ('2025-06-01 00:00+00');
    CREATE TABLE public_trades_rest PARTITION OF public_trades DEFAULT;
"""


@pytest.fixture
def partitioned(postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """A database whose trades lie in one partition for May 2025 and one for the rest, 30 in each."""
    with DatabaseFactory(postgresql_url) as db:
        with db.engine.begin() as connection:
            connection.exec_driver_sql(BY_HAND)
        with db.get_session() as session:
            trades = [trade_values(number, exchange_ts=when(number)) for number in range(60)]
            assert PublicTradeRepository(session).bulk_create(trades).inserted == 60
        yield db


def when(number: int) -> datetime:
    """In May and in June by turns."""
    return datetime(2025, 5 + number % 2, 1, 0, 0, number, tzinfo=UTC)


def stored(db: DatabaseFactory) -> list[tuple[object, ...]]:
    """All trades, with their columns."""
    with db.get_session(read_only=True) as session:
        query = f"SELECT {', '.join(PublicTrade.__table__.columns.keys())} FROM public_trades ORDER BY exchange_ts"
        return [tuple(row) for row in session.execute(text(query))]


@pytest.mark.parametrize("on_conflict", ["skip", "fill", "update"])
def test_rows_that_are_there_are_counted_as_everywhere(partitioned: DatabaseFactory, on_conflict: OnConflict) -> None:
    """Also by an upsert, which cannot read from a partition who wrote a row."""
    trades = [trade_values(number, exchange_ts=when(number), size="9") for number in range(50, 60)]
    trades += [trade_values(number, exchange_ts=when(number - 50) + timedelta(1), size="9") for number in range(60, 70)]
    with partitioned.get_session() as session:
        result = PublicTradeRepository(session).bulk_create([*trades, trades[0]], on_conflict=on_conflict)
    changed = 11 if on_conflict == "update" else 0
    assert (result.inserted, result.updated, result.skipped) == (10, changed, 11 - changed)
    with partitioned.get_session(read_only=True) as session:
        nines = session.scalars(select(PublicTrade.trade_id).where(PublicTrade.size == Decimal(9))).all()
    assert len(nines) == (20 if on_conflict == "update" else 10)


def test_a_partition_is_no_table_of_somebody_elses(
    partitioned: DatabaseFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status and migrate check see one table, as the models have it."""
    health = partitioned.health()
    assert (health.problems, health.not_ours) == ((), ())
    assert runner.check(partitioned) == []
    partitioned.check_schema()
    assert main(["init", "--db-url", partitioned.settings.get_database_url()]) == 0
    assert "public_trades                 60 rows" in capsys.readouterr().out.replace("\t", " ")


def test_a_copy_takes_the_rows_of_all_partitions(partitioned: DatabaseFactory, tmp_path: Path) -> None:
    """Out of them and back, into partitions that are there already."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'copy.db'}") as target:
        copy_database(partitioned, target)
        assert [row[:2] for row in stored(target)] == [row[:2] for row in stored(partitioned)]
        before = stored(partitioned)
        with partitioned.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM public_trades")
        copy_database(target, partitioned)
    assert stored(partitioned) == before


def test_a_backup_holds_all_partitions_and_brings_them_back(
    partitioned: DatabaseFactory, empty_postgresql_url: URL, postgresql_tools: Path, tmp_path: Path
) -> None:
    """Into an empty database and over what is there, partitioned as before."""
    assert back_up(partitioned, tmp_path / "trades.backup", pg_bin=postgresql_tools).rows["public_trades"] == 60
    before = stored(partitioned)
    with partitioned.engine.begin() as connection:
        connection.execute(text("DELETE FROM public_trades WHERE id % 3 = 0"))
    restore(partitioned, tmp_path / "trades.backup", force=True, pg_bin=postgresql_tools)
    with DatabaseFactory(empty_postgresql_url) as empty:
        restore(empty, tmp_path / "trades.backup", pg_bin=postgresql_tools)
        for db in (partitioned, empty):
            assert stored(db) == before
            with db.engine.connect() as connection:
                assert connection.scalar(text("SELECT count(*) FROM public_trades_2025_05")) == 30
