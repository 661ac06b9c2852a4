"""A run's account is its user's, and its strategy its account's: the schema says so, whoever writes it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
from sqlalchemy import insert, text, update
from sqlalchemy.orm import Session

from shared.db import BybitAccount, ConstraintError, DatabaseFactory, Run, RunRepository, Strategy
from shared.db.bulk import bulk_create
from shared.db.tests.fleet import everything_of, run_values

_ON_FOREIGN_ACCOUNT = run_values("ann", run_id="new", account_id="acc-bob", strategy_id="str-bob")
_OF_FOREIGN_STRATEGY = run_values("ann", run_id="new", strategy_id="str-bob")


def _by_sql(values: dict[str, object]) -> Callable[[Session], object]:
    names = ", ".join(values)
    statement = text(f"INSERT INTO runs ({names}) VALUES ({', '.join(f':{name}' for name in values)})")
    return lambda session: session.execute(statement, values)


def _set(model: type[Run | BybitAccount | Strategy], key: str, **values: str) -> Callable[[Session], object]:
    def change(session: Session) -> None:
        entity = session.get_one(model, key)
        for name, value in values.items():
            setattr(entity, name, value)
        session.flush()

    return change


@pytest.mark.parametrize(
    "write",
    [
        lambda session: RunRepository.across_users(session).bulk_update([{"run_id": "run-ann", "user_id": "bob"}]),
        lambda session: session.add(Run(**_ON_FOREIGN_ACCOUNT)),
        lambda session: session.add(Run(**_OF_FOREIGN_STRATEGY)),
        lambda session: session.execute(insert(Run).values(**_ON_FOREIGN_ACCOUNT)),
        lambda session: bulk_create(session, Run, [run_values("ann", run_id="good"), _OF_FOREIGN_STRATEGY]),
        _by_sql(_ON_FOREIGN_ACCOUNT),
        _by_sql(_OF_FOREIGN_STRATEGY),
        lambda session: session.execute(update(Run).where(Run.run_id == "run-ann").values(user_id="bob")),
        _set(Run, "run-ann", account_id="acc-bob"),
        _set(Run, "run-ann", strategy_id="str-bob", status="failed"),
        _set(BybitAccount, "acc-ann", user_id="bob"),
        _set(Strategy, "str-ann", account_id="acc-bob", symbol="X"),
        lambda session: session.execute(update(BybitAccount).values(user_id="bob")),
        lambda session: session.execute(text("UPDATE strategies SET account_id = 'acc-bob', symbol = strategy_id")),
    ],
)
def test_a_run_that_crosses_users_is_refused_by_whichever_way_it_comes(
    unpoliced_fleet: DatabaseFactory, write: Callable[[Session], object]
) -> None:
    """In plain sessions too, with one error that says what belongs together; so are moves of what has runs."""
    before = [everything_of(unpoliced_fleet, user) for user in ("ann", "bob")]

    def try_it() -> None:
        with unpoliced_fleet.get_session() as plain:
            write(plain)

    with pytest.raises(ConstraintError, match="a run's account must be its user's, its strategy its account's; an acc"):
        try_it()
    assert [everything_of(unpoliced_fleet, user) for user in ("ann", "bob")] == before


def test_a_copy_past_this_library_is_refused(postgresql_fleet: DatabaseFactory) -> None:
    """psql, COPY and every other tool meets the same rule."""
    with closing(postgresql_fleet.engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
        names = "run_id, user_id, account_id, strategy_id, run_type"
        with pytest.raises(Exception, match="fk_runs_account_id_bybit_accounts"):
            cursor.execute(f"INSERT INTO runs ({names}) VALUES ('new', 'ann', 'acc-bob', 'str-bob', 'shadow')")


def test_what_has_no_runs_may_move(unpoliced_fleet: DatabaseFactory) -> None:
    """An account to another user with its strategies, a strategy to another account, and a run with both."""
    with unpoliced_fleet.get_session() as plain:
        plain.add(BybitAccount(account_id="second", user_id="ann", account_name="second", environment="testnet"))
        plain.flush()
        plain.add(Strategy(strategy_id="other", account_id="second", strategy_type="G", symbol="X", config_json={}))
        plain.flush()
        plain.get_one(BybitAccount, "second").user_id = "bob"
        plain.flush()
        _set(Run, "run-ann", user_id="bob", account_id="second", strategy_id="other")(plain)
    with unpoliced_fleet.get_session(user_id="bob") as session:
        assert {run.run_id for run in RunRepository(session).get_all()} == {"run-ann", "run-bob"}
        assert session.get_one(Run, "run-ann").strategy.symbol == "X"
