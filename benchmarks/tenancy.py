"""What it costs to be confined: a user's session against a plain one that does the same work."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from sqlalchemy import ARRAY, URL, String, any_, func, select, text, true
from sqlalchemy.orm import Session

from benchmarks.data import ExecutionStream, Rows
from benchmarks.harness import Contender, Outcome, Place, outcomes, print_table, take_turns
from shared.db import (
    BybitAccount,
    DatabaseFactory,
    PrivateExecution,
    PrivateExecutionRepository,
    Run,
    RunRepository,
    Strategy,
    User,
    UserSession,
)

_USERS, _RUNS_EACH, _EXECUTIONS = 20, 20, 1_000_000
_USER, _RUN, _ACCOUNT = "user-07", "run-07-03", "account-07"
_READS, _INSERTS, _COUNTS = 40, 20, 2
_UNDER_POLICIES = {"insert and commit, a session each": "1.35", "bulk_create of 1,000": "1.15"}

# What is done in a session with one thing that was prepared.
Work = Callable[[Session, Any], None]


def tenancy(here: Place) -> None:
    """One user's reads and writes: the time in his session to that in a plain one, which names him in WHERE."""
    rows: list[tuple[str, ...]] = []
    for name, url in _databases(here):
        with DatabaseFactory(url) as db:
            rows += confined(db, name, here.rounds)
    print_table("", ("work", "ratio", "quartiles", "goal"), rows)


def confined(db: DatabaseFactory, name: str, rounds: int) -> Iterator[tuple[str, ...]]:
    """What it costs on one empty database; a table's row for each kind of work."""
    _fill(db)
    if name.endswith("policies"):
        db.enable_row_security()
    for what, goal, contenders in _contests(db):
        if name.endswith("policies"):
            goal = _UNDER_POLICIES.get(what, goal)
        take_turns(contenders, lambda number: number, rounds)
        cost = _costs(contenders[1], contenders[0])
        outcomes.append(Outcome(f"{what}, {name}: at most {goal}", *cost, float(cost[0]) <= float(goal)))
        yield f"{what}, {name}", *cost, goal


def policies(here: Place) -> None:
    """One user's executions counted, out of a million of 20 users, to the two ways to write the WHERE by hand."""
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
    run = PrivateExecution.run_id
    an_array = any_(func.array(own_runs.scalar_subquery(), type_=ARRAY(String)))
    for title, one, expected in (
        ("All of the user's, 50,000", true(), _EXECUTIONS // _USERS),
        ("Of one run, 2,500", run == _RUN, _EXECUTIONS // _USERS // _RUNS_EACH),
    ):
        wanted = select(func.count(PrivateExecution.id)).where(one)
        of_run = "" if expected == _EXECUTIONS // _USERS else f" WHERE run_id = '{_RUN}'"
        raw = text(f"SELECT count(id) FROM private_executions{of_run}")

        def count(db: DatabaseFactory, statement: Any, expected: int = expected, **user: Any) -> Callable[[int], None]:
            def run(number: int) -> None:
                for _ in range(_COUNTS):
                    with db.get_session(**user) as session:
                        assert session.scalar(statement) == expected

            return run

        contenders = [
            Contender("plain session, IN", count(db, wanted.where(run.in_(own_runs)))),
            Contender("plain session, = ANY (ARRAY)", count(db, wanted.where(run == an_array))),
            Contender("user's session, without policies", count(off, wanted, user_id=_USER)),
            Contender("user's session, with policies", count(db, wanted, user_id=_USER)),
            Contender("raw SQL in it, policies alone", count(db, raw, user_id=_USER)),
        ]
        take_turns(contenders, lambda number: number, here.rounds)
        rows = [
            (contender.name, *_costs(contender, contenders[0]), *_costs(contender, contenders[1]), "1.3")
            for contender in contenders
        ]
        print_table(title, ("count", "to IN", "quartiles", "to ANY", "quartiles", "goal"), rows)
        for name, ratio, spread, *_, goal in rows[2:]:
            outcomes.append(Outcome(f"{title}: {name}, at most {goal}", ratio, spread, float(ratio) <= float(goal)))


def _costs(contender: Contender, plain: Contender) -> tuple[str, str]:
    ratios = [contender.seconds[number] / plain.seconds[number] for number in contender.seconds]
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"{statistics.median(ratios):.2f}", f"{low:.2f}-{high:.2f}"


def _databases(here: Place) -> Iterator[tuple[str, URL]]:
    yield "SQLite file", here.new_sqlite()
    yield "PostgreSQL", here.new_postgresql()
    yield "with policies", here.new_postgresql()


def _contests(db: DatabaseFactory) -> Iterator[tuple[str, str, list[Contender]]]:
    numbers = itertools.count()
    stream = ExecutionStream(_RUN, _ACCOUNT)

    def new_rows(count: int) -> Callable[[Any], Rows]:
        return lambda number: [row | {"exec_id": f"{next(numbers)}"} for row in stream.take(count)]

    def get_by_id(session: Session, load: Any) -> None:
        assert RunRepository(session, user_id=_USER).get_by_id(_RUN) is not None

    def get_running(session: Session, load: Any) -> None:
        assert len(RunRepository(session, user_id=_USER).get_running()) == 2

    def insert(session: Session, row: Any) -> None:
        session.add(PrivateExecution(**row))
        session.commit()

    def bulk_create(session: Session, rows: Any) -> None:
        own = isinstance(session, UserSession)
        repository = (PrivateExecutionRepository if own else PrivateExecutionRepository.across_users)(session)
        assert repository.bulk_create(rows).inserted == len(rows)

    def pair(run: Callable[..., None], load: Callable[[Any], Any]) -> list[Contender]:
        return [Contender("plain", run, prepare=load), Contender("own", partial(run, user_id=_USER), prepare=load)]

    def each(work: Work, load: Callable[[Any], Any], *, read_only: bool = False) -> list[Contender]:
        """`work` with each of what is loaded, in a session of its own."""

        def run(loaded: Any, **user: Any) -> None:
            for one in loaded:
                with db.get_session(read_only=read_only, **user) as session:
                    work(session, one)

        return pair(run, load)

    def in_one(work: Work, load: Callable[[Any], Any], *, read_only: bool = False) -> list[Contender]:
        """The same in one session."""

        def run(loaded: Any, **user: Any) -> None:
            with db.get_session(read_only=read_only, **user) as session:
                for one in loaded:
                    work(session, one)

        return pair(run, load)

    reads = range(_READS)
    inserts = new_rows(_INSERTS)
    yield "get_by_id, a session each", "1.3", each(get_by_id, lambda number: reads, read_only=True)
    yield "get_by_id, in one session", "1.3", in_one(get_by_id, lambda number: reads, read_only=True)
    yield "get_running, a session each", "1.3", each(get_running, lambda number: reads, read_only=True)
    yield "get_running, in one session", "1.3", in_one(get_running, lambda number: reads, read_only=True)
    yield "insert and commit, a session each", "1.5", each(insert, inserts)
    yield "insert and commit, in one session", "1.5", in_one(insert, inserts)
    yield "bulk_create of 1,000", "1.1", each(bulk_create, lambda number: [new_rows(1_000)(number)])


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
                    strategy_id=strategy.strategy_id, run_type=("live", "shadow")[number % 2],
                    status="running" if number < 2 else "completed",
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
