"""What could end without a word: a swallowed error of a statement, and rows whose number was given away before."""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import URL, Insert, create_engine, insert
from sqlalchemy.exc import IntegrityError

from benchmarks.fault_bench.clients import batch, stored_rows
from benchmarks.fault_bench.figures import Figure
from benchmarks.fault_bench.ground import Ground
from shared.db import ConstraintError, DatabaseFactory, PublicTrade, Recorder, TransactionAbortedError, User


def quiet_losses(ground: Ground) -> list[Figure]:
    """Blocks that catch an error of a statement and go on: stored as a whole, or refused by name."""
    count = ground.of(200, 20)
    figures = [_swallowed(name, url, count) for name, url in ground.new_databases()]
    figures += [_control(ground.new_postgresql(), count)]
    rows = ground.of(5_000, 500)
    return [*figures, _lagging(ground.new_postgresql(), rows), _lagging_control(ground.new_postgresql(), rows)]


def _swallowed(name: str, url: URL, count: int) -> Figure:
    stored, told = 0, 0
    with DatabaseFactory(url) as db:
        for number in range(count):
            try:
                with db.get_session() as session:
                    session.execute(_row(number, "first"))
                    with suppress(ConstraintError):  # "it is there already": what is tried here
                        session.execute(_row(number, "second"))
            except TransactionAbortedError:
                told += 1
            with db.get_session(read_only=True) as session:
                stored += session.get(User, f"{number}-first") is not None
    return Figure(
        f"{count} blocks that caught a broken rule and went on, {name}",
        "stored, or an error by name",
        f"{stored} stored, {told} told",
        stored + told == count,
    )


def _control(url: URL, count: int) -> Figure:
    engine, lost = create_engine(url), 0
    for number in range(count):
        with engine.begin() as connection:
            connection.execute(_row(number, "first"))
            with suppress(IntegrityError):
                connection.execute(_row(number, "second"))
        with engine.connect() as connection:
            lost += not connection.exec_driver_sql(f"SELECT 1 FROM users WHERE user_id = '{number}-first'").all()
    engine.dispose()
    return Figure(
        f"control: the same with a stock engine, PostgreSQL, {count} blocks",
        "blocks lost without a word",
        f"{lost} of {count} lost without a word",
        lost > 0,
        control=True,
    )


def _lagging(url: URL, rows: int) -> Figure:
    """Trades that came with their ids (psql, COPY, a restore) leave the sequence behind; then a recorder goes on."""
    with DatabaseFactory(url) as db:
        _leave_behind(db, rows)
        with Recorder(db, PublicTrade, max_rows=10) as recorder:
            recorder.add(batch("AFTER", 1, rows))
            recorder.close(120)
            stats = recorder.stats()
        stored = len(stored_rows(db))
    return Figure(
        f"a sequence {rows:,} ids behind its table, and a recorder that is given {rows:,} trades",
        f"{2 * rows:,} stored, none rejected",
        f"{stored:,} stored, {stats.rejected} rejected, {stats.failures} failures",
        stored == 2 * rows and not stats.rejected,
    )


def _lagging_control(url: URL, rows: int) -> Figure:
    with DatabaseFactory(url) as db:
        _leave_behind(db, rows)
    engine, refused = create_engine(url), 0
    for row in batch("AFTER", 1, rows):
        try:
            with engine.begin() as connection:
                connection.execute(insert(PublicTrade).values(**row))
        except IntegrityError:
            refused += 1
    engine.dispose()
    return Figure(
        "control: the same trades by a stock engine",
        "refused as duplicates of the primary key",
        f"{refused:,} of {rows:,} refused",
        refused > 0,
        control=True,
    )


def _leave_behind(db: DatabaseFactory, rows: int) -> None:
    with db.get_session() as session:
        came = [row | {"id": number} for number, row in enumerate(batch("BEFORE", 0, rows), start=1)]
        session.execute(insert(PublicTrade), came)


def _row(number: int, part: str) -> Insert:
    return insert(User).values(user_id=f"{number}-{part}", username=f"user {number}")
