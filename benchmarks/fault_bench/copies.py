"""A database of a million rows, copied to the other kind and back, and read in full each time."""

from __future__ import annotations

import hashlib
import json
import time
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import URL, select, update

from benchmarks.data import ExecutionStream, TradeStream
from benchmarks.fault_bench.figures import Figure
from benchmarks.fault_bench.ground import Ground
from benchmarks.fault_bench.images import store_parents
from shared.db import Base, DatabaseFactory, PrivateExecution, PublicTrade
from shared.db.bulk import bulk_create
from shared.db.column_types import exact_sum
from shared.db.operations.copy_database import copy_database

_CHUNK = 50_000


class Sums(NamedTuple):
    """What a database holds: rows, exact sums of money, and a hash over every value of every row in order."""

    rows: int
    price: Decimal
    size: Decimal
    fee: Decimal
    everything: str


def copies(ground: Ground) -> list[Figure]:
    """A million rows from SQLite to PostgreSQL, and from there into another SQLite file."""
    rows = ground.of(1_000_000, 40_000)
    first, middle, last = ground.new_sqlite(), ground.new_postgresql(), ground.new_sqlite()
    _fill(first, rows)
    began = time.monotonic()
    for source, target in ((first, middle), (middle, last)):
        with DatabaseFactory(source) as source_db, DatabaseFactory(target) as target_db:
            copy_database(source_db, target_db)
    seconds = time.monotonic() - began
    sums = [_sums(url) for url in (first, middle, last)]
    with DatabaseFactory(last) as db, db.get_session() as session:
        session.execute(
            update(PublicTrade).where(PublicTrade.id == 7).values(price=PublicTrade.price + Decimal("0.00000001"))
        )
    changed = _sums(last)
    return [
        Figure(
            f"{rows:,} rows copied from SQLite to PostgreSQL and back",
            "equal sums, every value the same",
            f"{sums[0].rows:,}, {sums[1].rows:,}, {sums[2].rows:,} rows; sum of prices {sums[0].price}, "
            f"{sums[1].price}, {sums[2].price}; hash of all {', '.join(one.everything for one in sums)}; "
            f"{seconds:.0f} s for both ways",
            sums[0] == sums[1] == sums[2] and sums[0].rows >= rows,
        ),
        Figure(
            "control: one price of the copy changed by 0.00000001",
            "another sum, another hash",
            f"sum of prices {changed.price}, hash {changed.everything}",
            changed.price != sums[0].price and changed.everything != sums[0].everything,
            control=True,
        ),
    ]


def _fill(url: URL, rows: int) -> None:
    trades, executions = TradeStream(), ExecutionStream("bench", "bench")
    with DatabaseFactory(url) as db:
        with db.get_session() as session:
            store_parents(session)
        for start in range(0, rows, _CHUNK):
            count = min(_CHUNK, rows - start)
            with db.get_session() as session:
                bulk_create(session, PublicTrade, trades.take(count - count // 10))
                bulk_create(session, PrivateExecution, executions.take(count // 10))


def _sums(url: URL) -> Sums:
    count, everything = 0, hashlib.sha256()
    with DatabaseFactory(url) as db, db.get_session(read_only=True) as session:
        for table in Base.metadata.sorted_tables:
            found = session.execute(select(table).order_by(*table.primary_key.columns), execution_options=_STREAM)
            for row in found:
                count += 1
                # PostgreSQL keeps the keys of a document in an order of its own.
                values = [json.dumps(one, sort_keys=True) if isinstance(one, dict) else one for one in row]
                everything.update(repr(values).encode())
        price, size = session.execute(select(exact_sum(PublicTrade.price), exact_sum(PublicTrade.size))).one()
        fee = session.scalar(select(exact_sum(PrivateExecution.exec_fee)))
    return Sums(count, price, size, fee or Decimal(0), everything.hexdigest()[:12])


_STREAM = {"yield_per": 5000}
