"""One look at a database: nothing is written, nothing is created, and nothing is waited for long."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Column, Connection, Engine, Select, func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from shared.db import database_file, numbering, schema_version
from shared.db.dialects import MYSQL, POSTGRESQL, SQLITE, PerDatabase, port_of
from shared.db.engine.make import make_probe
from shared.db.errors import DatabaseCorruptError, DatabaseUnreachableError, NotADatabaseError, SharedDBError
from shared.db.health import mysql, postgresql, sqlite
from shared.db.health.report import Health, PoolHealth, StoreHealth, StreamHealth
from shared.db.models import Base
from shared.db.settings import DatabaseSettings
from shared.db.tables import index_leads_to, streams
from shared.db.tenancy import row_security_check

_ROOMS: PerDatabase[Any] = PerDatabase("health report", {SQLITE: sqlite, POSTGRESQL: postgresql, MYSQL: mysql})
# What adds to a report.
Section = Callable[[Connection, Health], Health]


def look(settings: DatabaseSettings, folder: str, in_use: Engine | None, *, check: bool, timeout: float) -> Health:
    """The health of the database of `settings`; `in_use` is the engine whose pool is meant, None if there is none yet.

    Without an answer in `timeout` seconds the report says so, and holds what was found by then. A `check` of
    everything takes its time after that.
    """
    health = _of_pool(settings, in_use, Health(settings.safe_url, code_revision=schema_version.SCHEMA_REVISION))
    if settings.is_memory:
        health = health.with_warning(
            "the database is in memory and gone when this process ends; set GRIDBOT_DB_NAME to a file to keep it"
        )
        if in_use is None:
            return replace(health, reachable=True).with_warning("a session is open in it; it was not looked into")
        engine = in_use
    else:
        missing = _missing_file(settings, folder)
        if missing is not None:
            return health.with_problem(f"there is no database file {missing}; run: python -m shared.db init")
        engine = make_probe(settings, folder, timeout)
    try:
        health = _within(timeout, health, _sections(settings, timeout), engine)
        if check and health.reachable:
            health = _added(engine, health, _check)
    finally:
        if engine is not in_use:
            engine.dispose()
    return health


def _of_pool(settings: DatabaseSettings, in_use: Engine | None, health: Health) -> Health:
    pool = in_use.pool if in_use is not None else None
    if not isinstance(pool, QueuePool):
        return health
    found = PoolHealth(pool.size(), settings.max_overflow, pool.checkedout(), pool.checkedin())
    health = replace(health, pool=found)
    if found.checked_out >= found.size + found.max_overflow:
        health = health.with_problem(
            f"all {found.checked_out} connections of this process are in use; end sessions sooner, or raise "
            "GRIDBOT_DB_POOL_SIZE or GRIDBOT_DB_MAX_OVERFLOW"
        )
    return health


def _missing_file(settings: DatabaseSettings, folder: str) -> str | None:
    name = settings.url.database or ""
    if not settings.is_sqlite or name.startswith("file:"):
        return None
    path = database_file.absolute(name, folder)
    return None if os.path.lexists(path) else path


def _within(timeout: float, health: Health, sections: Iterable[Section], engine: Engine) -> Health:
    """The report with all sections, or with those that were done in time."""
    reports, failures = [health], []

    def run() -> None:
        try:
            for section in sections:
                before = reports[-1]
                reports.append(_added(engine, before, section))
                if not reports[-1].reachable:
                    return
        except BaseException as error:  # noqa: BLE001 # raised below
            failures.append(error)

    # A server may accept a connection and never answer, and a network file system may hang: no timeout of a driver
    # covers all of it. The thread is left behind then.
    thread = threading.Thread(target=run, name="shared.db health", daemon=True)
    thread.start()
    thread.join(timeout)
    if failures:
        raise failures[0]
    if thread.is_alive():
        return reports[-1].with_problem(
            f"the database did not answer everything within {timeout:g} s; see whether its machine, disk or network is "
            "overloaded, or allow more time"
        )
    return reports[-1]


def _added(engine: Engine, health: Health, section: Section) -> Health:
    """The report with this section; its failure is a problem of the database."""
    try:
        with engine.connect() as connection:
            return section(connection, health)
    except (SharedDBError, SQLAlchemyError, OSError) as error:
        lost = isinstance(error, DatabaseUnreachableError)
        damaged = isinstance(error, (DatabaseCorruptError, NotADatabaseError))
        return replace(
            health,
            reachable=health.reachable and not lost,
            integrity="damaged" if damaged else health.integrity,
        ).with_problem(str(error).strip().partition("\n")[0])


def _sections(settings: DatabaseSettings, timeout: float) -> Iterable[Section]:
    def first(connection: Connection, health: Health) -> Health:
        started = time.perf_counter()
        connection.scalar(text("SELECT 1"))
        return replace(health, reachable=True, latency_ms=round((time.perf_counter() - started) * 1000, 3))

    def itself(connection: Connection, health: Health) -> Health:
        looked: Health = _ROOMS.of(connection).look(connection, health, settings)
        return looked

    def policies(connection: Connection, health: Health) -> Health:
        if not port_of(connection).has_row_security:
            return health
        status = row_security_check.status(connection, settings.tenant_role)
        health = replace(health, row_security=status.enabled)
        for problem in status.problems:
            health = health.with_problem(f"{problem}; run: python -m shared.db row-security enable")
        return health

    def limited(section: Section) -> Section:
        def run(connection: Connection, health: Health) -> Health:
            _ROOMS.of(connection).limit(connection, timeout)
            return section(connection, health)

        return run

    return map(limited, (first, itself, _revision, policies, _tables, _streams, _sequences))


def _revision(connection: Connection, health: Health) -> Health:
    health = replace(health, revision=schema_version.read_revision(connection))
    problem = schema_version.first_difference(connection)
    return health if problem is None else health.with_problem(str(problem))


def _own_tables(connection: Connection) -> list[str]:
    there = port_of(connection).tables(connection)
    return [name for name in Base.metadata.tables if name in there]


def _tables(connection: Connection, health: Health) -> Health:
    others = tuple(schema_version.not_ours(connection))
    return replace(health, tables=_ROOMS.of(connection).tables(connection, _own_tables(connection)), not_ours=others)


def _streams(connection: Connection, health: Health) -> Health:
    there = _own_tables(connection)
    return replace(
        health,
        streams=tuple(
            StreamHealth(key.table.name, name, newest)
            for key, when in _marks()
            if key.table.name in there
            for name, newest in connection.execute(_newest(key, when))
        ),
    )


def _sequences(connection: Connection, health: Health) -> Health:
    for lag in numbering.lags(connection):
        health = health.with_problem(
            f"{lag.table}: the newest id is {lag.newest}, and the sequence is at {lag.given}, so that new rows get ids "
            "which are taken; run: python -m shared.db sequences"
        )
    return health


def _marks() -> Iterator[tuple[Any, Any]]:
    """What tells one stream from another, and its time: columns with which an index begins."""
    for model, stream in streams().items():
        columns, leading = model.__table__.columns, index_leads_to(model, stream.time)
        if leading:
            yield columns[stream.by if stream.by in leading else leading[0]], columns[stream.time]


def _newest(key: Column[Any], when: Column[Any]) -> Select[Any]:
    # From each value to the next one by the index, in place of reading every row.
    walk = select(func.min(key).label("key")).cte("walk", recursive=True)
    following = select(func.min(key)).where(key > walk.c.key).scalar_subquery()
    walk = walk.union_all(select(following).where(walk.c.key.is_not(None)))
    newest = select(func.max(when)).where(key == walk.c.key).scalar_subquery()
    return select(walk.c.key, newest).where(walk.c.key.is_not(None)).order_by(walk.c.key)


def _check(connection: Connection, health: Health) -> Health:
    checked: Health = _ROOMS.of(connection).check(connection, health, _own_tables(connection))
    return checked


def with_stores(health: Health, stores: Mapping[str, Callable[[], bool]], timeout: float) -> Health:
    """The report with what each store answers, all asked at once; one that is silent for `timeout` seconds is away."""
    answers: dict[str, bool] = {}
    why: dict[str, str] = {}

    def ask(name: str, answers_now: Callable[[], bool]) -> None:
        try:
            answers[name] = bool(answers_now())
        except Exception as error:  # noqa: BLE001 # of any client's kind: only its type is told: it may name a password
            why[name] = f" ({type(error).__name__})"

    threads = [
        threading.Thread(target=ask, args=store, name="shared.db health", daemon=True) for store in stores.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    health = replace(health, stores=tuple(StoreHealth(name, answers.get(name, False)) for name in stores))
    for store in health.stores:
        if not store.reachable:
            health = health.with_problem(
                f"the store {store.name} does not answer{why.get(store.name, '')}; see whether its server runs and "
                "can be reached from here"
            )
    return health


def encoding_problem(connection: Connection) -> str | None:
    """What is wrong with the encoding in which the database stores text; None if it is UTF-8."""
    problem: str | None = _ROOMS.of(connection).encoding_problem(connection)
    return problem
