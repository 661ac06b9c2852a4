"""What a bot asks all day: one row, or a page of them, in a session of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
from sqlalchemy import URL, bindparam, create_engine, insert, select
from sqlalchemy.orm import Session

from benchmarks.harness import Contender, Goal, Place, compare
from shared.db import BybitAccount, DatabaseFactory, Environment, Run, RunRepository, RunStatus, RunType, Strategy, User

_USERS, _RUNS, _RUNNING, _CALLS, _LIMIT = 50, 100_000, 3, 100, 100
_START = datetime(2025, 1, 1, tzinfo=UTC)
_CONFIG = {"grid_count": 50, "grid_step": "0.2", "amount": "x0.001", "max_margin": "8", "min_liq_ratio": "0.8"}

_DRIVER, _READ_ONLY, _ORDINARY = "psycopg2, BEGIN .. COMMIT", "repository, read-only session", "repository"
_FIND = f"SELECT {', '.join(column.name for column in Run.__table__.columns)} FROM runs WHERE user_id = %(user)s"
_NEWEST = "ORDER BY start_ts DESC, run_id DESC"
_BY_USER = select(Run).order_by(Run.start_ts.desc(), Run.run_id.desc())

# A question: as the repository, the driver and a consumer of mapped classes ask it; how much slower than the driver
# the repository may be in a read-only session.
_QUESTIONS: list[tuple[str, Callable[[RunRepository, str, str], Any], str, Callable[[str, str], Any], float]] = [
    (
        "get_running",
        lambda runs, user, run: runs.get_running(user),
        f"{_FIND} AND status = 'running' {_NEWEST}",
        lambda user, run: _BY_USER.where(Run.user_id == user, Run.status == RunStatus.RUNNING.value),
        1.2,
    ),
    (
        f"get_by_user_id(limit={_LIMIT})",
        lambda runs, user, run: runs.get_by_user_id(user, limit=_LIMIT),
        f"{_FIND} {_NEWEST} LIMIT {_LIMIT}",
        lambda user, run: _BY_USER.where(Run.user_id == user).limit(_LIMIT),
        1.5,
    ),
    (
        "get_by_id",
        lambda runs, user, run: runs.get_by_id(run, user_id=user),
        f"{_FIND} AND run_id = %(run)s",
        lambda user, run: select(Run).where(Run.user_id == user, Run.run_id == run),
        1.1,
    ),
]


def points(here: Place) -> None:
    """Runs of a user out of 100,000 of 50 users, each question asked in a fresh session."""
    db = DatabaseFactory(filled(here.new_postgresql()))
    secured = DatabaseFactory(filled(here.new_postgresql()))
    secured.enable_row_security()
    for title, ask, sql, statement, limit in _QUESTIONS:
        compare(
            f"PostgreSQL, {title}",
            [
                Contender(_DRIVER, _driver(db.settings.url, sql)),
                Contender(_READ_ONLY, _asking(db, ask, read_only=True)),
                Contender(_ORDINARY, _asking(db, ask)),
                Contender("the same, user's session, read-only", _asking(db, ask, own=True, read_only=True)),
                Contender("the same, user's session", _asking(db, ask, own=True)),
                Contender("the same, under policies, read-only", _asking(secured, ask, own=True, read_only=True)),
                Contender("the same, under policies", _asking(secured, ask, own=True)),
                Contender("session.scalars(select(Run))", _selecting(db, statement)),
                Contender("the least: SQLAlchemy alone, prepared, AUTOCOMMIT", _prepared(db.settings.url, statement)),
                Contender("a session that is asked nothing", _empty(db)),
                Contender("psycopg2, autocommit", _driver(db.settings.url, sql, autocommit=True)),
            ],
            lambda number: range(number * _CALLS, (number + 1) * _CALLS),
            here.rounds,
            count=_CALLS,
            goals=[Goal(_READ_ONLY, 1 / limit, _DRIVER), Goal(_ORDINARY, 1 / 1.7, _DRIVER)],
        )
    db.close()
    secured.close()


def _driver(url: URL, sql: str, *, autocommit: bool = False) -> Callable[[range], None]:
    """psycopg2's tuples: it makes the datetimes and the JSON documents too."""
    connection = psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    connection.autocommit = autocommit

    def read(numbers: range) -> None:
        for number in numbers:
            with connection.cursor() as cursor:
                cursor.execute(sql, {"user": user_at(number), "run": run_at(number)})
                assert cursor.fetchall()
            connection.commit()

    return read


def _asking(
    db: DatabaseFactory, ask: Callable[[RunRepository, str, str], Any], *, own: bool = False, **how: Any
) -> Callable[[range], None]:
    """Our own repository, in a session of everybody's or the user's own."""

    def read(numbers: range) -> None:
        for number in numbers:
            user = user_at(number)
            with db.get_session(**how | ({"user_id": user} if own else {})) as session:
                assert ask(RunRepository(session), user, run_at(number))

    return read


def _selecting(db: DatabaseFactory, statement: Callable[[str, str], Any]) -> Callable[[range], None]:
    """What a consumer of mapped classes writes."""

    def read(numbers: range) -> None:
        for number in numbers:
            with Session(db.engine) as session:
                assert session.scalars(statement(user_at(number), run_at(number))).all()

    return read


def _prepared(url: URL, statement: Callable[[Any, Any], Any]) -> Callable[[range], None]:
    """What SQLAlchemy needs for a fresh session and its objects when nobody checks anything."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    prepared = statement(bindparam("user"), bindparam("run"))

    def read(numbers: range) -> None:
        for number in numbers:
            with Session(engine) as session:
                assert session.scalars(prepared, {"user": user_at(number), "run": run_at(number)}).all()

    return read


def _empty(db: DatabaseFactory) -> Callable[[range], None]:
    def read(numbers: range) -> None:
        for _ in numbers:
            with db.get_session(read_only=True):
                pass

    return read


def filled(url: URL) -> URL:
    """The database with users and their runs in it."""
    with DatabaseFactory(url) as db:
        with db.get_session() as session:
            for number in range(_USERS):
                user = User(user_id=user_at(number), username=user_at(number))
                account = BybitAccount(
                    account_id=user_at(number), user=user, account_name="a", environment=Environment.TESTNET
                )
                # Of a strategy and type one run at most is running.
                for running in range(_RUNNING):
                    strategy = Strategy(strategy_type="GridStrategy", symbol=f"{running}USDT", config_json=_CONFIG)
                    strategy.strategy_id, strategy.account = _strategy(number, running), account
                    session.add(strategy)
            session.flush()
            session.execute(insert(Run), [_values(number) for number in range(_RUNS)])
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    return url


def _values(number: int) -> dict[str, Any]:
    start, running = _START + timedelta(minutes=number), number >= _RUNS - _RUNNING * _USERS
    return {
        "run_id": run_at(number),
        "user_id": user_at(number),
        "account_id": user_at(number),
        "strategy_id": _strategy(number, number // _USERS % _RUNNING),
        "run_type": RunType.LIVE,
        "gridcore_version": "1.2.3",
        "config_snapshot": _CONFIG,
        "start_ts": start,
        "end_ts": None if running else start + timedelta(hours=1),
        "status": RunStatus.RUNNING if running else RunStatus.COMPLETED,
        "heartbeat_ts": start,
        "host": "trader-1",
    }


def user_at(number: int) -> str:
    """The name of one of the users in turn."""
    return f"user-{number % _USERS:04}"


def _strategy(number: int, of_user: int) -> str:
    return f"{user_at(number)}-{of_user}"


def run_at(number: int) -> str:
    """The id of one of the runs in turn."""
    return f"run-{number % _RUNS:032}"


BENCHMARKS = {"points": points}
