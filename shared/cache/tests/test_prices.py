"""The latest prices: fed by a recorder, never older than before, and from the database where Redis has none."""

from __future__ import annotations

from decimal import Decimal

from shared.cache import LatestPrices, Price, SyncRedisClient
from shared.cache.tests.servers import Server
from shared.db import DatabaseFactory, PublicTrade, PublicTradeRepository, Recorder
from shared.db.tests.support import trade_values


def _price(number: int, price: str = "65065.80") -> Price:
    return Price(Decimal(price), trade_values(number)["exchange_ts"])


def test_a_recorder_feeds_the_latest_prices(db: DatabaseFactory, client: SyncRedisClient) -> None:
    """The newest of each symbol, to the microsecond and the last digit, when its trade is in the database."""
    prices = LatestPrices(client, db)
    with Recorder(db, PublicTrade, on_written=prices.note) as recorder:
        recorder.add(
            [trade_values(2, price="2.10"), trade_values(1), trade_values(7, symbol="ETHUSDT", price="0.0012")]
        )
        recorder.flush()
    found = prices.get(["BTCUSDT", "ETHUSDT", "XRPUSDT"])
    assert found == {"BTCUSDT": _price(2, "2.10"), "ETHUSDT": _price(7, "0.0012")}
    assert client.get_newest("prices", ["BTCUSDT", "XRPUSDT"], namespace="market").keys() == {"BTCUSDT"}


def test_an_older_trade_takes_no_newer_one_s_place(db: DatabaseFactory, client: SyncRedisClient) -> None:
    """As when a second recorder catches up."""
    prices = LatestPrices(client, db)
    prices.note([trade_values(5, price="5")])
    prices.note([trade_values(4, price="4")])
    assert prices.get(["BTCUSDT"]) == {"BTCUSDT": _price(5, "5")}


def test_without_redis_prices_come_from_the_database(db: DatabaseFactory) -> None:
    """To read them, and to feed them, raises nothing; what was dropped is counted."""
    client = SyncRedisClient("redis://127.0.0.1:1")
    prices = LatestPrices(client, db)
    with Recorder(db, PublicTrade, on_written=prices.note) as recorder:
        recorder.add([trade_values(1), trade_values(2)])
        recorder.flush()
        assert recorder.stats().callback_errors == 0
    assert prices.get(["BTCUSDT", "XRPUSDT"]) == {"BTCUSDT": _price(2)}
    assert client.stats.dropped == 1


def test_prices_are_right_again_when_redis_is_back(db: DatabaseFactory, own_server: Server) -> None:
    """Killed in between, it has the price from before until the symbol's next trade."""
    with SyncRedisClient(own_server.url, pause=0) as client:
        prices = LatestPrices(client, db)
        with Recorder(db, PublicTrade, on_written=prices.note) as recorder:
            for number in range(1, 40):
                if number == 10:
                    own_server.kill()
                if number == 30:
                    own_server.start()
                recorder.add([trade_values(number)])
                recorder.flush()
                if 10 <= number < 30:
                    assert prices.get(["BTCUSDT"]) == {"BTCUSDT": _price(number)}
            assert prices.get(["BTCUSDT"]) == {"BTCUSDT": _price(39)}
        with db.get_session() as session:
            assert len(list(PublicTradeRepository(session).iter_symbol_range("BTCUSDT"))) == 39
        assert client.stats.dropped == 20
