"""Many small reads at once in one event loop, each in a session of its own, beside SQLAlchemy's AsyncSession."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

from sqlalchemy import URL, Select, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from benchmarks.harness import Contender, Goal, Place, at_most, compare
from benchmarks.points import filled, user_at
from shared.db import DatabaseFactory, Run, RunRepository

_CALLS, _LIMIT, _AT_ONCE = 1_000, 20, (50, 500)
# How much later than it wanted a timer of the event loop comes, at its worst 1 in 100.
_LATEST, _TICK, _WORST = 20.0, 0.005, 0.99

_SESSION, _SHORT, _BARE = "get_async_session, read-only", "arun, read-only", "AsyncSession on psycopg 3"
_Read = Callable[[int], Awaitable[object]]


def asynchronous(here: Place) -> None:
    """The newest 20 runs of a user out of 100,000 of 50 users."""
    url = filled(here.new_postgresql())
    for at_once in _AT_ONCE:
        lags: dict[str, list[float]] = {}
        title = f"PostgreSQL, {at_once} at once"
        compare(
            title,
            [
                Contender(name, _rounds(opened(url), at_once, lags.setdefault(name, [])))
                for name, opened in ((_BARE, _bare), (_SESSION, _session), (_SHORT, _short))
            ],
            lambda number: range(number * _CALLS, (number + 1) * _CALLS),
            here.rounds,
            count=_CALLS,
            goals=[Goal(_SESSION, 0.9, _BARE), Goal(_SHORT, 0.9, _BARE)],
        )
        for name, found in lags.items():
            late = sorted(found)[int(len(found) * _WORST)] * 1000
            if name == _BARE:
                print(f"{name}: the event loop is {late:.1f} ms late at most, 99 times in 100")
            else:
                at_most(f"{title}, {name}: the event loop is late", _LATEST, late, "ms")


def _rounds(read: _Read, at_once: int, lags: list[float]) -> Callable[[range], None]:
    loop = asyncio.new_event_loop()

    async def all_of(numbers: range) -> None:
        places = asyncio.Semaphore(at_once)

        async def one(number: int) -> None:
            async with places:
                await read(number)

        gc.collect()
        gc.freeze()  # as servers do once they have started: a collection of all there is takes 50 ms and more
        watch = asyncio.create_task(_watch(lags))
        await asyncio.gather(*map(one, numbers))
        watch.cancel()

    return lambda numbers: loop.run_until_complete(all_of(numbers))


async def _watch(lags: list[float]) -> None:
    while True:
        due = time.perf_counter() + _TICK
        await asyncio.sleep(_TICK)
        lags.append(time.perf_counter() - due)


def _newest(number: int) -> Select[Run]:
    return (
        select(Run).where(Run.user_id == user_at(number)).order_by(Run.start_ts.desc(), Run.run_id.desc()).limit(_LIMIT)
    )


def _bare(url: URL) -> _Read:
    engine = create_async_engine(url.set(drivername="postgresql+psycopg"), pool_size=5, max_overflow=5)

    async def read(number: int) -> object:
        async with AsyncSession(engine) as session:
            return (await session.scalars(_newest(number))).all()

    return read


def _session(url: URL) -> _Read:
    db = DatabaseFactory(url)

    async def read(number: int) -> object:
        async with db.get_async_session(read_only=True) as session:
            return (await session.scalars(_newest(number))).all()

    return read


def _short(url: URL) -> _Read:
    db = DatabaseFactory(url)
    return lambda number: db.arun(RunRepository.get_by_user_id, user_at(number), limit=_LIMIT, read_only=True)


BENCHMARKS = {"asynchronous": asynchronous}
