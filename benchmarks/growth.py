"""Whether a database that has grown is slower, by its rows or by its users."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import URL, event, text

from benchmarks.contenders import bulk_trades
from benchmarks.data import Rows, TradeStream
from benchmarks.harness import Contender, Goal, Place, at_most, compare, print_outcomes, print_table
from benchmarks.meter import Meter
from shared.db import DatabaseFactory, Run, RunRepository, RunStatus, RunType

_MILLION = 1_000_000
# The trades that are written later, BTCUSDT, then have their place amidst the others, as in a fleet's database.
_SYMBOLS = ("ADAUSDT", "BTCUSDT", "ETHUSDT", "XRPUSDT")
_INTO = "INSERT INTO public_trades (symbol, trade_id, exchange_ts, local_ts, side, price, size)"
_POSTGRESQL = f"""
{_INTO}
SELECT (ARRAY{list(_SYMBOLS)})[1 + n % {len(_SYMBOLS)}], gen_random_uuid()::text, moment, moment, 'Buy',
       65000 + n % 1000 * 0.1, 0.001 + n % 100 * 0.001
FROM generate_series(%(first)s, %(last)s) AS n,
     LATERAL (SELECT timestamptz '2020-01-01Z' + n * interval '4 ms') AS t (moment)
"""
_SQLITE = f"""
WITH RECURSIVE numbers (n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last),
rows AS (SELECT n, strftime('%Y-%m-%d %H:%M:%f000', 1577836800 + n * 0.004, 'unixepoch') AS moment FROM numbers)
{_INTO}
SELECT CASE n % {len(_SYMBOLS)} {" ".join(f"WHEN {place} THEN '{name}'" for place, name in enumerate(_SYMBOLS))} END,
       lower(hex(randomblob(18))), moment, moment, 'Buy', 65000 + n % 1000 * 0.1, 0.001 + n % 100 * 0.001
FROM rows
"""

# A question of a user's.
Question = Callable[[RunRepository, str], Any]
_ASKS = "user-7"
_FEW, _MANY, _RUNS, _CALLS = 100, 10_000, 100, 100
_STEP = 7_919  # a prime, so that the users that ask are all over the tables
_USERS = (
    "INSERT INTO users (user_id, username) SELECT 'user-' || n, 'user-' || n FROM generate_series(0, :count - 1) AS n",
    "INSERT INTO bybit_accounts (account_id, user_id, account_name, environment) "
    "SELECT user_id, user_id, 'main', 'testnet' FROM users",
    "INSERT INTO strategies (strategy_id, account_id, strategy_type, symbol, config_json) "
    "SELECT account_id, account_id, 'GridStrategy', 'BTCUSDT', '{}' FROM bybit_accounts",
    # In the order of time, in which the users' runs are mixed.
    "INSERT INTO runs (run_id, user_id, account_id, strategy_id, run_type, start_ts, end_ts, status) "
    "SELECT gen_random_uuid(), id, id, id, 'live', began, CASE WHEN run < :runs THEN began + interval '1 hour' END, "
    "CASE WHEN run < :runs THEN 'completed' ELSE 'running' END "
    "FROM generate_series(1, :runs) AS run, generate_series(0, :count - 1) AS n, "
    "LATERAL (SELECT 'user-' || n AS id, timestamptz '2025-01-01Z' + run * interval '1 day' + n * interval '1 second' "
    "AS began) AS t",
)


def growth(here: Place) -> None:
    """20 million trades stored against 1 million, written in turn, 10,000 a batch (takes minutes to fill them)."""
    _compare(here, _MILLION, 20 * _MILLION)


def small_growth(here: Place) -> None:
    """The same with 1 million against 100,000, for a quick look."""
    _compare(here, _MILLION // 10, _MILLION)


def users(here: Place) -> None:
    """A bot's questions among 10,000 users with 100 runs each against 100 such users, with the policies and without.

    By the processor's time of both sides in turns; a million runs are stored first. Beside them the driver alone, which
    sends the statement that the repository makes: what it pays too is the database's.
    """
    factories = [DatabaseFactory(_with_users(here.new_postgresql(), count)) for count in (_FEW, _MANY)]
    questions: dict[str, Question] = {
        "get_running": lambda runs, user: runs.get_running(),
        "a page of 100": lambda runs, user: runs.get_by_user_id(user, limit=_RUNS),
        "create": lambda runs, user: runs.create(
            Run(user_id=user, account_id=user, strategy_id=user, run_type=RunType.LIVE, status=RunStatus.COMPLETED)
        ),
    }
    for title in ("PostgreSQL", "PostgreSQL, under policies"):
        for what, ask in questions.items():
            spent: list[list[float]] = []
            for number in range(here.rounds + 1):
                numbers = range(number * _CALLS, (number + 1) * _CALLS)
                turn = zip(factories, (_FEW, _MANY), strict=True)
                spent.append([_spent(db, count, ask, numbers, read_only=what != "create") for db, count in turn])
            ratio = statistics.median(many / few for few, many in spent[1:])  # the first round warms up
            goal = at_most(f"{title}, {what}: {_MANY:,} users to {_FEW:,}", 1.1, ratio, "x the processor's time")
            print_outcomes("", [goal])
        if title == "PostgreSQL":
            for what in ("get_running", "a page of 100"):
                _compare_drivers(factories, what, questions[what], here.rounds)
        for db in factories:
            db.enable_row_security()
    for db in factories:
        db.close()


SHORT = {"small-growth": small_growth}
LONG = {"growth": growth, "users": users}


def _spent(db: DatabaseFactory, count: int, ask: Question, numbers: range, *, read_only: bool) -> float:
    """Seconds of the processor, here and in the server, for a question of one user after the other."""

    def work() -> None:
        for number in numbers:
            user = f"user-{number * _STEP % count}"
            with db.get_session(user_id=user, read_only=read_only) as session:
                ask(RunRepository(session), user)

    began = time.process_time()
    server, _ = Meter(db).spent(work)
    return server + time.process_time() - began


def _compare_drivers(factories: Sequence[DatabaseFactory], what: str, ask: Question, rounds: int) -> None:
    """Print what the driver alone takes for the same, of users that ask in turn, and of one that asks again."""
    rows = []
    with ExitStack() as stack:
        sides = [
            (stack.enter_context(closing(_connected(db))), _statement_of(db, ask), count)
            for db, count in zip(factories, (_FEW, _MANY), strict=True)
        ]
        for who, step in (("another user each time", _STEP), ("one user", 0)):
            ratios = []
            for number in range(4 * rounds + 1):
                numbers = range(number * _CALLS, (number + 1) * _CALLS)
                # Whoever comes second finds the processor warm.
                turn = sides if number % 2 else sides[::-1]
                spent = {count: _spent_by_driver(driver, asked, count, numbers, step) for driver, asked, count in turn}
                ratios.append(spent[_MANY] / spent[_FEW])
            rows.append((f"{what}, {who}", f"{statistics.median(ratios[1:]):.2f}"))
    print_table("The driver alone", (f"{_MANY:,} users to {_FEW:,}", "x the processor's time"), rows)


def _statement_of(db: DatabaseFactory, ask: Question) -> tuple[str, dict[str, Any]]:
    """What a user's question sends, with its parameters."""
    sent: list[tuple[str, dict[str, Any]]] = []

    def note(connection: object, cursor: object, statement: str, parameters: Any, *rest: object) -> None:
        sent.append((statement, parameters))

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        with db.get_session(user_id=_ASKS, read_only=True) as session:
            ask(RunRepository(session), _ASKS)
    finally:
        event.remove(db.engine, "before_cursor_execute", note)
    return sent[-1]


def _connected(db: DatabaseFactory) -> Any:
    driver = psycopg2.connect(db.settings.url.set(drivername="postgresql").render_as_string(hide_password=False))
    driver.autocommit = True
    return driver


def _spent_by_driver(driver: Any, asked: tuple[str, dict[str, Any]], count: int, numbers: range, step: int) -> float:
    statement, parameters = asked
    server = Path(f"/proc/{driver.info.backend_pid}/schedstat")
    with driver.cursor() as cursor:
        began = time.process_time() + int(server.read_text().split()[0]) / 1e9
        for number in numbers:
            user = f"user-{number * step % count}"
            cursor.execute(statement, {name: user if had == _ASKS else had for name, had in parameters.items()})
            cursor.fetchall()
        return time.process_time() + int(server.read_text().split()[0]) / 1e9 - began


def _with_users(url: URL, count: int) -> URL:
    """The database with so many users of 100 runs each, of which the last is running."""
    with DatabaseFactory(url).engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in _USERS:
            connection.execute(text(statement), {"count": count, "runs": _RUNS})
        connection.execute(text("VACUUM ANALYZE"))
    return url


def _compare(here: Place, few: int, many: int) -> None:
    for name, new in (("PostgreSQL", here.new_postgresql), ("SQLite file", here.new_sqlite)):
        stream = TradeStream()

        def load(number: int, stream: TradeStream = stream) -> list[Rows]:
            return [stream.take(10_000) for _ in range(2)]

        full, grown = f"{few:,} trades stored", f"{many:,} trades stored"
        compare(
            f"Growth, {name}",
            [
                Contender(full, bulk_trades(_filled(new(), few))),
                Contender(grown, bulk_trades(_filled(new(), many))),
            ],
            load,
            here.rounds,
            count=20_000,
            goals=[Goal(grown, 0.8, full)],
        )


def _filled(url: URL, count: int) -> URL:
    """The database with so many trades in it, made by itself; a million at a time."""
    parts = [{"first": first, "last": min(first + _MILLION, count + 1) - 1} for first in range(1, count + 1, _MILLION)]
    if url.get_backend_name() == "sqlite":
        with DatabaseFactory(url) as db:
            driver = db.engine.raw_connection().dbapi_connection
            for part in parts:
                driver.execute(_SQLITE, part)  # type: ignore[union-attr] # it is connected
        return url
    with closing(
        psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    ) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for part in parts:
                cursor.execute(_POSTGRESQL.replace(" % ", " %% "), part)
            cursor.execute("VACUUM ANALYZE public_trades")
            cursor.execute("CHECKPOINT")
    return url
