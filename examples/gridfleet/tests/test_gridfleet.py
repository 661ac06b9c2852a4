"""Gridfleet's tables behave as those of `shared.db` do, on every database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from gridfleet.bot import Bot
from gridfleet.market import MarketRecorder
from gridfleet.models import GridState, Order, Position, Ticker, Wallet
from sqlalchemy import delete, insert, select, text

from shared.db import BybitAccount, DatabaseFactory, Repository, Run, Strategy, TenantViolation, User
from shared.db.commands.cli import main
from shared.db.migrations import runner
from shared.db.testing import has_mysql

NOON = datetime(2025, 5, 19, 12, tzinfo=UTC)
SERVERS = ("postgresql", *(("mysql",) if has_mysql() else ()))


def fleet(db: DatabaseFactory) -> DatabaseFactory:
    """Two users with a run each, and a price."""
    with db.get_session() as session:
        for user in ("ann", "bob"):
            keys = {"account_id": f"acc-{user}", "strategy_id": f"str-{user}"}
            session.add(User(user_id=user, username=user))
            session.flush()
            session.add(
                BybitAccount(user_id=user, account_id=keys["account_id"], account_name="main", environment="testnet")
            )
            session.flush()
            session.add(Strategy(**keys, strategy_type="GridStrategy", symbol="BTCUSDT", config_json={}))
            session.flush()
            session.add(Run(run_id=f"run-{user}", user_id=user, **keys, run_type="live"))
    assert recorded(db, (NOON, Decimal("65065.8"))) == 1
    return db


def recorded(db: DatabaseFactory, *prices: tuple[datetime, Decimal], spool: Path | None = None) -> int:
    """Record prices of BTCUSDT; how many are new."""
    recorder = MarketRecorder(db, spool)
    recorder.record("BTCUSDT", prices)
    return recorder.close()


@pytest.fixture(params=["memory", "file", *SERVERS, "policies"])
def fleet_db(request: pytest.FixtureRequest, tmp_path: Path, clean_environment: None) -> Iterator[DatabaseFactory]:
    """The same databases, filled."""
    if request.param == "policies":
        yield fleet(request.getfixturevalue("policed_db"))
        return
    url: Any = f"sqlite:///{tmp_path / 'fleet.db'}" if request.param == "file" else "sqlite://"
    if request.param in SERVERS:
        url = request.getfixturevalue(f"{request.param}_url")
    with DatabaseFactory(url) as db:
        db.create_tables()
        yield fleet(db)


def test_a_bot_trades_and_goes_on_after_a_restart(fleet_db: DatabaseFactory) -> None:
    """Orders, position, wallet and grid state are the user's, exact, and still there for the next process."""
    placed = Bot(fleet_db, "ann", "run-ann").place_grid("BTCUSDT", 3, Decimal("0.01"), Decimal("0.1"))
    bot = Bot(fleet_db, "ann", "run-ann")
    assert bot.bound() == Decimal("0.3")
    bot.filled(placed[0], "USDT", Decimal("1000.5"))
    assert list(bot.grid()) == placed[1:]
    assert bot.grid()[placed[1]] == Decimal("65065.8") * Decimal("0.98")
    with fleet_db.get_session(user_id="ann") as session:
        held = session.scalars(select(Position)).one()
        assert (held.size, held.cost) == (Decimal("0.1"), Decimal("6441.5142"))
        assert session.scalars(select(Wallet.balance)).all() == [Decimal("1000.5")]


def test_a_bot_waits_for_a_price(fleet_db: DatabaseFactory) -> None:
    """Without one it places nothing, and says so."""
    with pytest.raises(LookupError, match="no price of ETHUSDT"):
        Bot(fleet_db, "ann", "run-ann").place_grid("ETHUSDT", 1, Decimal("0.01"), Decimal("0.1"))


def test_nobody_reaches_another_users_rows(fleet_db: DatabaseFactory) -> None:
    """By object, statement, repository or raw SQL; and tickers are everybody's."""
    for user in ("ann", "bob"):
        Bot(fleet_db, user, f"run-{user}").place_grid("BTCUSDT", 2, Decimal("0.01"), Decimal(1))
    with fleet_db.get_session(user_id="ann") as session:
        assert {order.run_id for order in Repository(session, Order).get_all()} == {"run-ann"}
        assert session.get(GridState, "run-bob") is None
        assert session.scalars(select(Ticker.last_price)).all() == [Decimal("65065.8")]
        session.execute(delete(Order))
    with fleet_db.get_session() as session:
        assert set(session.scalars(select(Order.run_id))) == {"run-bob"}
    row = {"order_id": "x", "symbol": "BTCUSDT", "price": Decimal(1), "qty": Decimal(1), "placed_ts": NOON}
    for foreign in ({"run_id": "run-bob", "account_id": "acc-ann"}, {"run_id": "run-ann", "account_id": "acc-bob"}):
        with pytest.raises(TenantViolation), fleet_db.get_session(user_id="ann") as session:
            session.add(Order(**row, **foreign))
            session.flush()
        with pytest.raises(TenantViolation), fleet_db.get_session(user_id="ann") as session:
            session.execute(insert(Order).values(**row, **foreign))


def test_the_server_confines_raw_sql_where_policies_are_in_force(policed_db: DatabaseFactory) -> None:
    """They were made from the declarations, and differ from them in nothing."""
    db = fleet(policed_db)
    assert db.row_security_status().enabled
    Bot(db, "bob", "run-bob").place_grid("BTCUSDT", 2, Decimal("0.01"), Decimal(1))
    with db.get_session(user_id="ann") as session:
        assert session.scalars(text("SELECT run_id FROM orders")).all() == []
        assert session.scalars(text("SELECT symbol FROM tickers")).all() == ["BTCUSDT"]


def test_a_price_that_comes_twice_is_stored_once(db: DatabaseFactory, tmp_path: Path) -> None:
    """A feed that reconnects sends again what it sent; a journal on disk keeps what was taken."""
    later = NOON + timedelta(seconds=1)
    prices = ((NOON, Decimal("65065.8")), (later, Decimal(65066)))
    assert recorded(fleet(db), *prices, spool=tmp_path / "spool") == 1
    with db.get_session(read_only=True) as session:
        tickers = Repository(session, Ticker)
        assert [row.exchange_ts for row in tickers.iter_range("BTCUSDT", page_size=1)] == [NOON, later]
        assert [row.last_price for row in tickers.iter_range("BTCUSDT", reverse=True)] == [Decimal(65066), prices[0][1]]
        assert tickers.to_arrow("BTCUSDT").num_rows == 2
        assert [gap.length for gap in tickers.gaps("BTCUSDT", 0.5)] == [timedelta(seconds=1)]


def test_the_sample_rows_take_an_order(session: Any, sample_run: Run) -> None:
    """What `shared.db.testing` stores is enough for a row of our own."""
    session.add(GridState(run_id=sample_run.run_id, levels={"1": "65065.8"}, saved_ts=NOON))
    session.flush()
    assert session.scalars(select(GridState.levels)).all() == [{"1": "65065.8"}]


def test_revisions_make_what_the_models_say(db: DatabaseFactory) -> None:
    """Up from nothing, back to nothing, and up again, with no difference left."""
    if db.settings.is_memory:
        return
    assert runner.check(db) == []
    runner.downgrade_all(db, allow_data_loss=True)
    changes = runner.upgrade_all(db)
    assert list(changes) == ["shared.db", "gridfleet"]
    assert runner.check(db) == []
    db.check_schema()


@pytest.mark.parametrize("place", ["file", *SERVERS[1:]])  # of PostgreSQL the tests have no programs for a backup
def test_the_environment_alone_says_where(
    place: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any, capsys: Any, clean_environment: None
) -> None:
    """The bot and the commands are the same whatever it is: schema, status, backup, restore, copies to the servers."""

    def url(where: str) -> Any:
        server = None if where == "file" else request.getfixturevalue(f"{where}_url")
        return server.render_as_string(hide_password=False) if server else f"sqlite:///{tmp_path / 'fleet.db'}"

    monkeypatch.setenv("GRIDBOT_DB_URL", url(place))
    backup, copies = str(tmp_path / "backup"), [url(server) for server in SERVERS if server != place]
    assert main(["migrate", "up"]) == 0
    with DatabaseFactory() as db:
        placed = Bot(fleet(db), "ann", "run-ann").place_grid("BTCUSDT", 3, Decimal("0.01"), Decimal("0.1"))
    for command in (["migrate", "check"], ["status"], ["status", "--json"], ["backup", backup]):
        assert main(command) == 0, capsys.readouterr().err
    with DatabaseFactory() as db:
        Bot(db, "ann", "run-ann").filled(placed[0], "USDT", Decimal(1))
    for command in (["restore", backup, "--force"], *(["copy", "-", into] for into in copies)):
        assert main(command) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert [told in printed for told in ("orders 3", "not ours")] == [True, False]
    for where in (url(place), *copies):
        with DatabaseFactory(where) as db:
            assert list(Bot(db, "ann", "run-ann").grid()) == placed


def test_orders_travel_through_files_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], clean_environment: None
) -> None:
    """Exported, purged, imported again, and covered as before; nothing of it is another user's to do."""
    url, file = f"sqlite:///{tmp_path / 'fleet.db'}", str(tmp_path / "orders.csv")
    with DatabaseFactory(url) as db:
        db.create_tables()
        Bot(fleet(db), "ann", "run-ann").place_grid("BTCUSDT", 3, Decimal("0.01"), Decimal("0.1"))
    owned = ["--user", "ann", "--db-url", url]
    for command in (
        ["export", "orders", "--key", "run-ann", "-o", file, *owned],
        ["purge", "--table", "orders", "--key", "run-ann", "--user", "bob", "--db-url", url],
        ["purge", "--table", "orders", "--key", "run-ann", *owned],
        ["import", "orders", file, *owned],
        ["import", "orders", file, *owned],
        ["coverage", "--table", "orders", *owned],
    ):
        assert main(command) == 0, capsys.readouterr().err
    assert main(["import", "orders", file, "--user", "bob", "--db-url", url]) == 1
    printed = capsys.readouterr().out
    assert [told for told in ("3 rows written", "0 rows of orders", "3 rows of orders") if told not in printed] == []
    assert [told for told in ("3 new rows of orders, 0", "0 new rows of orders, 3") if told not in printed] == []
    assert "run-ann" in printed
