"""What a damaged SQLite file holds in place of a value is named, and never shown."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import select

from shared.db import ApiCredential, BybitAccount, DatabaseCorruptError, DatabaseFactory, InvalidValueError, User
from shared.db.models import Base, PrivateExecution, PublicTrade
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
