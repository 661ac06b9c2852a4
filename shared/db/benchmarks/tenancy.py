"""What it costs to be confined: a user's session against a plain one that does the same work."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from sqlalchemy import URL, func, select, text
from sqlalchemy.orm import Session

from shared.db import (
    BybitAccount,
    DatabaseFactory,
    PrivateExecution,
    PrivateExecutionRepository,
    Run,
    RunRepository,
    Strategy,
    User,
)
from shared.db.benchmarks.data import ExecutionStream
from shared.db.benchmarks.harness import Contender, Place, print_table, take_turns

_USERS, _RUNS_EACH, _EXECUTIONS = 20, 20, 1_000_000
_USER, _RUN, _ACCOUNT = "user-07", "run-07-03", "account-07"
_READS, _INSERTS, _COUNTS = 100, 40, 3

# What is done in one session: as often as asked.
Work = Callable[[Session, int], Any]


def tenancy(here: Place) -> None:
    """Reads and writes of one user: time in his session for each 1.00 in a plain one; the median of paired ratios."""
    rows: list[tuple[str, ...]] = []
    for name, url in _databases(here):
        db = DatabaseFactory(url)
        _fill(db)
        if name.endswith("policies"):
            db.enable_row_security()
        for what, goal, runs in _contests(db):
            contenders = [Contender("plain", runs[0]), Contender("user's", runs[1])]
            take_turns(contenders, lambda number: number, here.rounds)
            rows.append(_row(f"{what}, {name}", goal, contenders))
        db.close()
    print_table("", ("work", "ratio", "quartiles", "goal"), rows)


def policies(here: Place) -> None:
    """Counting one user's executions of a million of 20 users: 1.00 is the explicit WHERE in a plain session."""
    db = DatabaseFactory(here.new_postgresql())
    _fill(db)
    _fill_executions(db)
    off = DatabaseFactory(db.settings)
    with off.get_session(user_id=_USER) as session:
        session.scalar(select(Run.run_id).limit(1))  # it learns now that there are no policies
    db.enable_row_security()
    with db.get_session(user_id=_USER) as session:
        assert session.confined_by_server  # type: ignore[attr-defined] # a UserSession
    own_runs = select(Run.run_id).where(Run.user_id == _USER)
    everything = select(func.count(PrivateExecution.id))
    contenders = [
        Contender("explicit WHERE, plain session", _count(db, everything.where(PrivateExecution.run_id.in_(own_runs)))),
        Contender("user's session, without policies", _count(off, everything, user_id=_USER)),
        Contender("user's session, with policies", _count(db, everything, user_id=_USER)),
        Contender(
            "raw SQL, policies alone", _count(db, text("SELECT count(id) FROM private_executions"), user_id=_USER)
        ),
    ]
    take_turns(contenders, lambda number: number, here.rounds)
    print_table(
        "All of the user's",
        ("count", "ratio", "quartiles", "goal"),
        [_row(contender.name, "1.3", [contenders[0], contender]) for contender in contenders],
    )


def _count(db: DatabaseFactory, statement: Any, **user: str) -> Callable[[int], None]:
    def run(number: int) -> None:
        for _ in range(_COUNTS):
            with db.get_session(**user) as session:  # type: ignore[arg-type] # user_id or nothing
                assert session.scalar(statement) == _EXECUTIONS // _USERS

    return run


def _row(name: str, goal: str, contenders: list[Contender]) -> tuple[str, ...]:
    plain, own = (contender.seconds for contender in contenders)
    ratios = [own[number] / plain[number] for number in own]
    low, _, high = statistics.quantiles(ratios, n=4)
    return name, f"{statistics.median(ratios):.2f}", f"{low:.2f}-{high:.2f}", goal


def _databases(here: Place) -> Iterator[tuple[str, URL]]:
    yield "SQLite file", here.new_sqlite()
    yield "PostgreSQL", here.new_postgresql()
    yield "with policies", here.new_postgresql()


def _contests(db: DatabaseFactory) -> Iterator[tuple[str, str, list[Callable[[int], None]]]]:
    numbers = count()
    stream = ExecutionStream(_RUN, _ACCOUNT)

    def runs(session: Session) -> RunRepository:
        return RunRepository(session, user_id=_USER)

    def executions(session: Session) -> PrivateExecutionRepository:
        if "user_id" in session.info:
            return PrivateExecutionRepository(session)
        return PrivateExecutionRepository.across_users(session)

    def insert(session: Session) -> None:
        session.add(PrivateExecution(**stream.take(1)[0] | {"exec_id": f"one-{next(numbers)}"}))
        session.commit()

    def each(work: Callable[[Session], Any], times: int, read_only: bool) -> list[Callable[[int], None]]:
        """`work` again and again, in a session of its own each time."""

        def run(**user: str) -> Callable[[int], None]:
            def repeat(number: int) -> None:
                for _ in range(times):
                    with db.get_session(read_only=read_only, **user) as session:
                        work(session)

            return repeat

        return [run(), run(user_id=_USER)]

    def in_one(work: Callable[[Session], Any], times: int, read_only: bool) -> list[Callable[[int], None]]:
        """The same in one session."""

        def repeated(session: Session) -> None:
            for _ in range(times):
                work(session)

        return each(repeated, 1, read_only)

    yield "get_by_id, a session each", "1.3", each(lambda session: runs(session).get_by_id(_RUN), _READS, True)
    yield "get_by_id, in one session", "1.3", in_one(lambda session: runs(session).get_by_id(_RUN), _READS, True)
    yield "get_running, a session each", "1.3", each(lambda session: runs(session).get_running(), _READS, True)
    yield "get_running, in one session", "1.3", in_one(lambda session: runs(session).get_running(), _READS, True)
    yield "insert and commit, a session each", "1.5", each(insert, _INSERTS, False)
    yield "insert and commit, in one session", "1.5", in_one(insert, _INSERTS, False)
    yield (
        "bulk_create of 1,000",
        "1.1",
        each(lambda session: executions(session).bulk_create(stream.take(1_000)), 2, False),
    )


def _fill(db: DatabaseFactory) -> None:
    """Users with an account, a strategy and runs each, two of them running."""
    with db.get_session() as session:
        for user in (f"{number:02}" for number in range(_USERS)):
            account = BybitAccount(
                account_id=f"account-{user}", user_id=f"user-{user}", account_name="main", environment="testnet"
            )
            strategy = Strategy(
                strategy_id=f"strategy-{user}", account_id=account.account_id, strategy_type="Grid", symbol="BTCUSDT",
                config_json={},
            )  # fmt: skip
            session.add_all([User(user_id=f"user-{user}", username=user), account, strategy])
            session.add_all(
                Run(
                    run_id=f"run-{user}-{number:02}", user_id=f"user-{user}", account_id=account.account_id,
                    strategy_id=strategy.strategy_id, run_type="live", status="running" if number < 2 else "completed",
                )
                for number in range(_RUNS_EACH)
            )  # fmt: skip


def _fill_executions(db: DatabaseFactory) -> None:
    """A million executions, evenly over all runs, in the order in which the users would have traded."""
    with db.get_session() as session:
        session.execute(
            text(
                "INSERT INTO private_executions (run_id, account_id, symbol, exec_id, order_id, exchange_ts, side, "
                "exec_price, exec_qty) SELECT format('run-%s-%s', lpad((n % :users)::text, 2, '0'), "
                "lpad((n / :users % :runs)::text, 2, '0')), format('account-%s', lpad((n % :users)::text, 2, '0')), "
                "'BTCUSDT', n::text, n::text, timestamptz '2025-01-01' + n * interval '1 second', 'Buy', 1, 1 "
                "FROM generate_series(0, :count - 1) AS n"
            ),
            {"users": _USERS, "runs": _RUNS_EACH, "count": _EXECUTIONS},
        )
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


BENCHMARKS = {"tenancy": tenancy, "policies": policies}
