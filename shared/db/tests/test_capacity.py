"""What docs/scale.md computes: bytes a row as measured, sums that are the sums, limits that are reached."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import PrimaryKeyConstraint, Table, UniqueConstraint, text

from benchmarks.capacity import BYTES_A_ROW, Costs, Fleet, Load, Server, disk_rows, load, steps, waits
from benchmarks.data import ExecutionStream, Rows, TradeStream
from benchmarks.simulation import trades_of
from shared.db import Base, DatabaseFactory, PrivateExecutionRepository, PublicTradeRepository
from shared.db.dialects import POSTGRESQL
from shared.db.tests.support import two_runs
from shared.db.tests.test_documents import DOCS

_BATCH = 1_000
_COSTS = Costs(**{name: 1e-4 * (place + 1) for place, name in enumerate(Costs.__dataclass_fields__)})


def bytes_of(db: DatabaseFactory, table: str) -> int:
    """What a table takes with its indexes; of an SQLite file, all that is in it."""
    with db.engine.connect() as connection:
        if db.settings.port is POSTGRESQL:
            return int(connection.scalar(text(f"SELECT pg_total_relation_size('{table}')")) or 0)
        size, count = (connection.exec_driver_sql(f"PRAGMA page_{what}").scalar() for what in ("size", "count"))
        return int(size or 0) * int(count or 0)


def test_a_row_takes_as_many_bytes_as_the_page_computes_with(lasting: DatabaseFactory) -> None:
    """Trades of five symbols and executions with a message of 600 bytes, a thousand a batch, within a twentieth."""
    db = lasting
    two_runs(db, executions=0)
    trades, executions = TradeStream(), ExecutionStream("run-ann", "acc-ann")
    work: dict[str, tuple[Any, int, Callable[[int], Rows], dict[str, str]]] = {
        "public_trades": (PublicTradeRepository, 10, lambda count: trades_of(trades, count), {}),
        "private_executions": (PrivateExecutionRepository, 5, executions.take, {"user_id": "ann"}),
    }
    for table, (repository, batches, take, whose) in work.items():
        before = bytes_of(db, table)
        for _ in range(batches):
            with db.get_session() as session:
                repository(session).bulk_create(take(_BATCH), **whose)
        measured = (bytes_of(db, table) - before) / (batches * _BATCH)
        assert measured == pytest.approx(BYTES_A_ROW[table][db.settings.port.title], rel=0.05), table


def test_the_page_s_table_of_the_disk_is_what_these_bytes_come_to() -> None:
    """As `python -m benchmarks disk` prints it; and the bytes a row of both databases stand there too."""
    page = (DOCS / "scale.md").read_text()
    for row in disk_rows():
        assert re.search(r"\| *" + r" *\| *".join(map(re.escape, row)) + r" *\|", page), row
    for table, sizes in BYTES_A_ROW.items():
        assert f"| `{table}` | {sizes['PostgreSQL']:,} | {sizes['SQLite']:,} |" in page


def keys_with(table: Table, column: str) -> str:
    """How many of a table's unique keys have that column, as Citus wants them all to have the one it distributes by."""
    kinds = (PrimaryKeyConstraint, UniqueConstraint)
    keys = [[*key.columns] for key in table.constraints if isinstance(key, kinds)]
    keys += [[*index.columns] for index in table.indexes if index.unique]
    if column not in table.columns:
        return "no such column"
    return f"{sum(table.columns[column] in key for key in keys)} of {len(keys)} keys"


def test_the_page_tells_which_of_our_keys_have_a_column_to_distribute_by() -> None:
    """For every table, from the schema as it is."""
    page = (DOCS / "scale.md").read_text()
    for table in Base.metadata.sorted_tables:
        cells = [f"`{table.name}`", *(keys_with(table, column) for column in ("user_id", "symbol", "run_id"))]
        assert f"| {' | '.join(cells)} |\n" in page


def test_at_each_limit_that_is_computed_the_server_is_full() -> None:
    """A fleet of as many bots as a step names needs just what one server has; steps stand in the order of need."""
    server = Server()
    found = steps(Fleet(), server, _COSTS)
    assert [bots for _, bots in found.values()] == sorted(bots for _, bots in found.values())

    def at(step: str) -> Load:
        return load(Fleet().of(found[step][1]), _COSTS)

    assert at("a standby for readers").cores == pytest.approx(server.cores * server.busy)
    assert at("more servers").writing == pytest.approx(server.cores * server.busy)
    assert at("partitions").purge_a_day == pytest.approx(server.purge_seconds)
    assert at("the lake").kept == pytest.approx(server.disk)
    full = at("PgBouncer")
    assert max(full.connections / 500, full.memory / (server.memory / 4)) == pytest.approx(1)


def test_a_fleet_s_load_is_the_sum_of_its_parts() -> None:
    """Each cost counts as often as the thing is done, the market's at its peak."""
    nothing = Costs(**dict.fromkeys(Costs.__dataclass_fields__, 0.0))
    fleet = Fleet(bots=86_400, trades_a_day=86_400 * 5)
    for name, times in {"trade": 50, "execution": 5_000, "heartbeat": 2_880, "question": 8_640, "page": 864}.items():
        assert load(fleet, replace(nothing, **{name: 1.0})).cores == pytest.approx(times), name
    assert load(fleet, replace(nothing, trade_read=1.0)).reading == pytest.approx(20)
    assert load(fleet, replace(nothing, log_trade=1.0)).log_a_day == pytest.approx(86_400 * 5)
    assert load(fleet, replace(nothing, trade_kept=1.0)).purge_a_day == pytest.approx(86_400 * 5 * 365)


@pytest.mark.parametrize(
    ("cores", "busy", "share"), [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (2, 1.6, 0.711111), (10, 8, 0.409180)]
)
def test_waiting_for_a_core_follows_erlang_s_formula(cores: int, busy: float, share: float) -> None:
    """Against values of its table."""
    assert waits(cores, busy) == pytest.approx(share, rel=1e-4)
