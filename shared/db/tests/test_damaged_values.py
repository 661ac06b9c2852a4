"""What a damaged SQLite file holds in place of a value is named, and never shown."""

from __future__ import annotations

import sqlite3
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db import (
    ApiCredential,
    BybitAccount,
    DatabaseCorruptError,
    DatabaseFactory,
    InvalidValueError,
    PrivateExecutionRepository,
    PublicTradeRepository,
    User,
    holds,
)
from shared.db.models import Base, PrivateExecution, PublicTrade, Strategy
from shared.db.tests.support import execution_values, stored, trade_values, two_runs


@pytest.mark.parametrize(
    ("model", "column", "damage"),
    [
        (PublicTrade, "exchange_ts", b"2025-05-19 0z:00:00.000000"),
        (PublicTrade, "exchange_ts", 17.5),
        (PublicTrade, "exchange_ts", b"2025-05-19 0\xff:00:00.000000"),
        (PublicTrade, "trade_id", b"trade-\xff"),
        (PublicTrade, "price", b"6506x.80"),
        (PrivateExecution, "raw_json", b'{"execId": "exec-0}'),
        (PrivateExecution, "raw_json", b'{"execId": "\xff"}'),
        (ApiCredential, "api_secret", b"my-own-secret\xff"),
    ],
)
def test_a_damaged_value_is_named_and_not_shown(
    tmp_path: Path, model: type[Base], column: str, damage: bytes | float
) -> None:
    """By the ORM and by Core, with the column's name and none of what stands there."""
    path = tmp_path / "grid_bot.db"
    with DatabaseFactory(f"sqlite:///{path}") as db:
        db.create_tables()
        run, _ = two_runs(db, executions=0)
        with db.get_session() as session:
            session.add(PublicTrade(**trade_values()))
            session.add(PrivateExecution(**execution_values(run)))
            session.add(ApiCredential(account_id=run.account_id, api_key_id="key", api_secret="my-own-secret"))
        with sqlite3.connect(path) as connection:
            value = "CAST(? AS TEXT)" if isinstance(damage, bytes) else "?"
            connection.execute(f"UPDATE {model.__tablename__} SET {column} = {value}", (damage,))
        connection.close()
        for statement in (select(model), select(model.__table__)):
            with pytest.raises(DatabaseCorruptError, match=column) as caught, db.get_session() as session:
                for row in session.execute(statement).all():
                    _ = row[0].api_secret if isinstance(row[0], ApiCredential) else None
            assert "restore the last good backup" in str(caught.value)
            chain: BaseException | None = caught.value
            while chain is not None:
                assert not any(shown in f"{chain!r} {chain}" for shown in ("trade-", "06x", "execId", "my-own", "0z:"))
                chain = chain.__cause__ or chain.__context__


READINGS: list[Callable[[Session, str], object]] = [
    lambda session, run_id: list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT")),
    lambda session, run_id: list(
        PublicTradeRepository(session).iter_symbol_range("BTCUSDT", reverse=True, page_size=1)
    ),
    lambda session, run_id: PublicTradeRepository(session).to_arrow("BTCUSDT"),
    lambda session, run_id: PublicTradeRepository(session).candles("BTCUSDT", None, None, "1h"),
    lambda session, run_id: list(PrivateExecutionRepository(session).iter_run_range(run_id)),
    lambda session, run_id: PrivateExecutionRepository(session).to_arrow(run_id),
]
TIMES = ["2025-05-19 0z:00:00.000000", 17.5, "17.5"]
AMOUNTS = ["6506x.80"]


@pytest.mark.parametrize("reading", READINGS, ids=["rows", "pages", "arrow", "candles", "executions", "their arrow"])
def test_the_ways_past_the_orm_name_it_as_well(tmp_path: Path, reading: Callable[[Session, str], object]) -> None:
    """Rows, pages, frames and candles: no wrong time, no driver's or interpreter's error, and none of the value."""
    path = tmp_path / "grid_bot.db"
    with DatabaseFactory(f"sqlite:///{path}") as db:
        db.create_tables()
        run, _ = two_runs(db, executions=0)
        user = run.user_id
        with db.get_session() as session:
            session.add_all([PublicTrade(**trade_values(number, symbol="BTCUSDT")) for number in range(3)])
            session.add_all([PrivateExecution(**execution_values(run, number)) for number in range(3)])
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for columns, damages in (
                ({"public_trades": "exchange_ts", "private_executions": "exchange_ts"}, TIMES),
                ({"public_trades": "price", "private_executions": "exec_fee"}, AMOUNTS),
                ({"public_trades": "size", "private_executions": "exec_qty"}, AMOUNTS),
            ):
                for damage in damages:
                    connection.execute("BEGIN")
                    for table, column in columns.items():
                        connection.execute(f"UPDATE {table} SET {column} = ? WHERE id % 3 = 1", (damage,))
                    connection.execute("COMMIT")
                    with pytest.raises(DatabaseCorruptError) as caught, db.get_session(user_id=user) as session:
                        reading(session, run.run_id)
                    assert "restore the last good backup" in str(caught.value)
                    assert str(damage) not in "".join(traceback.format_exception(caught.value))
                    for table, column in columns.items():
                        connection.execute(
                            f"UPDATE {table} SET {column} = o.{column} FROM {table} o WHERE o.id % 3 = 2"
                        )


@pytest.mark.parametrize("column", ["exec_fee", "closed_pnl", "raw_json"])
def test_a_sum_over_what_is_no_number_is_named(tmp_path: Path, column: str) -> None:
    """The exact sums are functions of ours, of whose failure SQLite tells nothing but that they failed."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db:
        db.create_tables()
        run, _ = two_runs(db, executions=0)
        with db.get_session() as session:
            session.add(PrivateExecution(**execution_values(run)))
        with closing(sqlite3.connect(tmp_path / "grid_bot.db")) as connection, connection:
            connection.execute(f"UPDATE private_executions SET {column} = '1x'")
        with (
            pytest.raises(DatabaseCorruptError, match="last good backup"),
            db.get_session(user_id=run.user_id) as session,
        ):
            PrivateExecutionRepository(session).totals(run.run_id)


def test_a_document_that_is_none_is_named_where_it_is_looked_into(tmp_path: Path) -> None:
    """What looks for its parts is a function of ours too."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db:
        db.create_tables()
        run, _ = two_runs(db, executions=0)
        with closing(sqlite3.connect(tmp_path / "grid_bot.db")) as connection, connection:
            connection.execute("UPDATE strategies SET config_json = '{1x'")
        with (
            pytest.raises(DatabaseCorruptError, match="last good backup"),
            db.get_session(user_id=run.user_id) as session,
        ):
            session.scalars(select(Strategy.strategy_id).where(holds(Strategy.config_json, {"a": 1}))).all()


def test_a_schema_that_is_no_text_any_more_is_named(tmp_path: Path) -> None:
    """SQLite quotes it in its message, which the driver cannot decode."""
    path = tmp_path / "grid_bot.db"
    with DatabaseFactory(f"sqlite:///{path}") as db:
        db.create_tables()
    whole = path.read_bytes()
    place = whole.index(b"UNIQUE (username)") + 4
    path.write_bytes(whole[:place] + b"\xc3" + whole[place + 1 :])
    with DatabaseFactory(f"sqlite:///{path}") as db, pytest.raises(DatabaseCorruptError, match="last good backup"):
        db.check_schema()


def test_a_key_that_cannot_be_hashed_is_refused_by_name(db: DatabaseFactory) -> None:
    """Not by SQLAlchemy's TypeError, which names no column and no remedy."""
    with (
        pytest.raises(InvalidValueError, match=r"users\.user_id: text is needed, not list"),
        db.get_session() as session,
    ):
        stored(session, User(user_id=["a"], username="a"))
    with pytest.raises(InvalidValueError, match=r"bybit_accounts\.account_id"), db.get_session() as session:
        stored(session, BybitAccount(account_id={}, user_id="a", account_name="a", environment="testnet"))
