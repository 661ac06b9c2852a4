"""Points: refused where they are none, written in batches, found again, and counted where they are lost."""

from __future__ import annotations

import inspect
import math
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from influxdb_client.client.write.point import Point as KeptPoint

from shared.db import (
    BybitAccount,
    DatabaseFactory,
    InvalidValueError,
    PrivateExecutionRepository,
    PublicTrade,
    Recorder,
    Run,
    Strategy,
    TenantScopeError,
    User,
)
from shared.db.tests.support import execution_values, trade_values
from shared.metrics import InfluxDBClientWrapper, MetricsAwayError, MetricsError, MetricsFeed, Point
from shared.metrics.tests.servers import DATABASE, Server

NOON = datetime(2025, 5, 19, 12, 0, 0, 878000, tzinfo=UTC)
HOUR = timedelta(hours=1)
AROUND = (NOON - HOUR, NOON + HOUR)
# The methods of the related system's InfluxDBClientWrapper, by name.
NAMED = [
    *("connect", "disconnect", "write_point", "write_points", "query_data", "write_market_data", "write_trade_data"),
    *("write_performance_metrics", "write_system_metrics", "get_market_data", "get_trade_history"),
    *("get_performance_metrics", "get_system_metrics", "delete_data", "health_check"),
]


@pytest.mark.parametrize("method", NAMED)
def test_the_client_has_every_method_of_the_related_one(method: str) -> None:
    """Under its name, with a docstring."""
    assert inspect.getdoc(getattr(InfluxDBClientWrapper("http://127.0.0.1:1", "token", "org", "bucket"), method))


def test_what_the_four_writers_write_the_four_readers_find(
    client: InfluxDBClientWrapper, server: Server, name: str
) -> None:
    """In order of time, with their tags, and nothing of another symbol, bot or hour."""
    trade = {"bot_id": name, "symbol": "BTCUSDT", "side": "Buy", "price": 2.5, "timestamp": NOON}
    for moment, price in ((NOON + HOUR, 3.0), (NOON, 2.5), (NOON - HOUR, 1), (NOON - 2 * HOUR, 9)):
        client.write_market_data(name, price, 0.5, moment)
    client.write_market_data("another", 4.0, 1.0, NOON)
    client.write_trade_data(trade)
    client.write_performance_metrics(name, {"pnl": -1.5, "win_rate": None, "trades": 7}, NOON)
    client.write_system_metrics({"host": name, "cpu": 0.25}, NOON)
    client.flush()
    server.settle()
    market = client.get_market_data(name, *AROUND)
    assert [(row["time"], row["price"], row["volume"]) for row in market] == [
        (NOON - HOUR, 1.0, 0.5),
        (NOON, 2.5, 0.5),
        (NOON + HOUR, 3.0, 0.5),
    ]
    (found,) = client.get_trade_history(name, *AROUND)
    assert found == {"time": NOON, "bot_id": name, "symbol": "BTCUSDT", "side": "Buy", "price": 2.5}
    assert client.get_performance_metrics(name, *AROUND) == [{"time": NOON, "bot_id": name, "pnl": -1.5, "trades": 7.0}]
    systems = [row for row in client.get_system_metrics(*AROUND) if row["host"] == name]
    assert systems == [{"time": NOON, "host": name, "cpu": 0.25}]


def test_a_user_sees_no_other_user_s_points(client: InfluxDBClientWrapper, server: Server, name: str) -> None:
    """The bot's id alone does not open another user's trades."""
    alice, bob = client.for_user("alice"), client.for_user('bob" OR "1"="1')
    alice.write_performance_metrics(name, {"pnl": 1}, NOON)
    client.flush()
    server.settle()
    assert [row["pnl"] for row in alice.get_performance_metrics(name, *AROUND)] == [1.0]
    assert bob.get_performance_metrics(name, *AROUND) == []
    assert client.get_performance_metrics(f"{name}' OR 'a'='a", *AROUND) == []
    for nobody in (None, "", 7):
        with pytest.raises(TenantScopeError):
            client.for_user(nobody)  # type: ignore[arg-type] # the mistake that is meant


def test_two_trades_of_one_moment_are_two(client: InfluxDBClientWrapper, server: Server, name: str) -> None:
    """Kept apart by their id on InfluxDB; written twice, one there is still one."""
    trade = {"bot_id": name, "symbol": "BTCUSDT", "side": "Buy", "timestamp": NOON}
    for number in (1, 2, 2):
        client.write_trade_data(trade | {"trade_id": f"t-{number}", "price": float(number)})
    client.flush()
    server.settle()
    if server.kind == "influxdb":  # VictoriaMetrics cuts to milliseconds and keeps no text
        found = client.get_trade_history(name, *AROUND)
        assert sorted((row["trade_id"], row["price"]) for row in found) == [("t-1", 1.0), ("t-2", 2.0)]
    with pytest.raises(InvalidValueError, match="bot_id, side"):
        client.write_trade_data({"symbol": "BTCUSDT"})


TEXT = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=8) | st.text(alphabet=' ,="\\#', min_size=1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tag=TEXT, value=TEXT, text=TEXT, number=st.floats(allow_nan=False, allow_infinity=False))
def test_a_point_that_is_taken_comes_back_as_it_was(
    client: InfluxDBClientWrapper, server: Server, name: str, tag: str, value: str, text: str, number: float
) -> None:
    """Whatever its names and texts are made of, with every digit, on InfluxDB: it is refused or taken, never cut."""
    try:
        point = Point(name, {"number": number, "text": text}, {f"a{tag}": value}, NOON)
    except InvalidValueError:
        return
    if server.kind == "victoria":
        return
    client.delete_data(*AROUND, name)
    client.write_point(point)
    client.flush()
    (row,) = client.query_data(f'SELECT * FROM "{name}"')
    assert row == {"time": NOON, "number": number, "text": text, f"a{tag}": value}


REFUSED: dict[str, Any] = {
    "not a number": ({"a": math.nan}, {}, NOON),
    "infinite": ({"a": Decimal("-Infinity")}, {}, NOON),
    "an object": ({"a": object()}, {}, NOON),
    "no field": ({"a": None}, {}, NOON),
    "naive": ({"a": 1}, {}, datetime(2025, 1, 1)),  # noqa: DTZ001 # the mistake that is meant
    "future": ({"a": 1}, {}, datetime.now(UTC) + HOUR),
    "before 1970": ({"a": 1}, {}, -1),
    "line break in a tag": ({"a": 1}, {"tag": "x\ny"}, NOON),
    "line break in a field's name": ({"a\n": 1}, {}, NOON),
    "empty tag": ({"a": 1}, {"tag": ""}, NOON),
    "tag that is no text": ({"a": 1}, {"tag": 7}, NOON),
    "backslash": ({"a": 1}, {"tag": "x\\"}, NOON),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_point_is_refused_at_once(what: str) -> None:
    """Before it waits for its batch."""
    fields, tags, moment = REFUSED[what]
    with pytest.raises(InvalidValueError):
        Point("measurement", fields, tags, moment)


def test_the_kept_client_s_points_are_taken(client: InfluxDBClientWrapper, server: Server, name: str) -> None:
    """Those of influxdb-client, unless nothing of them is left; nothing else is a point."""
    mine: Any = KeptPoint.from_dict(
        {"measurement": "market_data", "tags": {"symbol": name}, "fields": {"price": 1.5}, "time": NOON}
    )
    empty: Any = KeptPoint.from_dict({"measurement": "market_data", "fields": {"price": math.nan}})
    client.write_points([mine])
    client.flush()
    server.settle()
    assert [(row["time"], row["price"]) for row in client.get_market_data(name, *AROUND)] == [(NOON, 1.5)]
    for nothing in (empty, "market_data price=1", None):
        with pytest.raises(InvalidValueError, match="no point"):
            client.write_points([mine, nothing])
    assert client.stats.accepted == 1


def test_influxdb_s_refusal_is_raised(tmp_path: Path, client: InfluxDBClientWrapper, server: Server, name: str) -> None:
    """By the next write or flush, once, and counted; what comes after is written. VictoriaMetrics refuses nothing."""
    client.write_point(Point(name, {"kind": 1.0}, time=NOON))
    client.flush()
    client.write_point(Point(name, {"kind": "text"}, time=NOON))
    if server.kind == "victoria":
        client.flush()
        return
    with pytest.raises(MetricsError, match="field type conflict"):
        client.flush()
    client.write_point(Point(name, {"kind": 2.0}, time=NOON))
    client.flush()
    stats = client.stats
    assert (stats.accepted, stats.written, stats.refused, stats.waiting) == (3, 2, 1, 0)
    with pytest.raises(MetricsError, match="error parsing query"):
        client.query_data("SELEC")
    with InfluxDBClientWrapper(server.url, bucket="none") as other:
        other.write_point(Point(name, {"a": 1}))
        with pytest.raises(MetricsError, match="make the database"):
            other.flush()


def test_questions_take_their_values_apart(client: InfluxDBClientWrapper, server: Server, name: str) -> None:
    """In InfluxQL by `$name`; VictoriaMetrics is asked in PromQL."""
    client.write_market_data(name, 1.5, 1.0, datetime.now(UTC) - timedelta(seconds=10))
    client.flush()
    server.settle()
    if server.kind == "influxdb":
        (row,) = client.query_data("SELECT price FROM market_data WHERE symbol = $symbol", {"symbol": name})
        assert row["price"] == 1.5
        return
    (row,) = client.query_data(f'market_data_price{{symbol="{name}"}}')
    assert (row["value"], row["symbol"]) == (1.5, name)
    assert client.query_data("1 + 1")[0]["value"] == 2.0
    with pytest.raises(InvalidValueError):
        client.query_data("up", {"a": 1})


def test_what_is_deleted_is_of_the_range_alone(client: InfluxDBClientWrapper, server: Server, name: str) -> None:
    """Of one measurement; VictoriaMetrics says that it cannot."""
    if server.kind == "victoria":
        with pytest.raises(MetricsError, match="whole series"):
            client.delete_data(*AROUND)
        return
    client.write_points(Point(name, {"a": n}, time=NOON + n * HOUR) for n in range(4))
    client.flush()
    client.delete_data(NOON + HOUR, NOON + 2 * HOUR, name)
    assert [row["a"] for row in client.query_data(f'SELECT * FROM "{name}"')] == [0.0, 3.0]
    client.delete_data(NOON, NOON + 9 * HOUR, name)
    assert client.query_data(f'SELECT * FROM "{name}"') == []


def test_health_asks_the_server_and_notices_that_it_has_gone(own_server: Server, db: DatabaseFactory) -> None:
    """It is one report over the database and the store beside it."""
    with InfluxDBClientWrapper(own_server.url, bucket=DATABASE) as client:
        db.add_store("metrics", client.health_check)
        assert [(store.name, store.reachable) for store in db.health().stores] == [("metrics", True)]
        own_server.kill()
        health = db.health()
    assert health.reachable
    assert [(store.name, store.reachable) for store in health.stores] == [("metrics", False)]
    assert [problem.partition(";")[0] for problem in health.problems] == ["the store metrics does not answer"]


def test_a_server_that_is_away_stops_nobody_and_all_is_counted() -> None:
    """As many points wait as may, the oldest are dropped; reading says so."""
    client = InfluxDBClientWrapper("http://127.0.0.1:1", bucket=DATABASE, max_waiting=10, batch_size=5)
    client.connect()
    assert client.health_check() is False
    client.write_points(Point("m", {"a": n}, time=n) for n in range(25))
    with pytest.raises(MetricsAwayError):
        client.flush()
    stats = client.stats
    assert (stats.accepted, stats.dropped, stats.waiting, stats.written) == (25, 15, 10, 0)
    assert stats.away_since is not None
    with pytest.raises(MetricsAwayError):
        client.get_market_data("BTCUSDT", *AROUND)
    with pytest.raises(MetricsAwayError):
        client.disconnect()
    assert client.stats.dropped == 25


def test_points_written_while_the_server_is_killed_are_written_when_it_is_back(own_server: Server) -> None:
    """Each of them, as long as no more wait than may, and the writer is never held up."""
    with InfluxDBClientWrapper(own_server.url, bucket=DATABASE, interval=0.01, batch_size=500) as client:
        for number in range(6000):
            client.write_point(Point("load", {"n": number}, {"of": "test"}, NOON + number * timedelta(milliseconds=1)))
            if number == 2000:
                client.flush()
                own_server.settle()
                own_server.kill()
            if number == 4000:
                with pytest.raises(MetricsAwayError):
                    client.flush()
                own_server.start()
        while client.stats.waiting:
            try:
                client.flush()
            except MetricsAwayError:
                assert client.stats.dropped == 0
        own_server.settle()
        stats = client.stats
        assert (stats.written, stats.dropped, stats.refused, stats.away_since) == (6000, 0, 0, None)
        if own_server.kind == "influxdb":
            (row,) = client.query_data("SELECT count(n) FROM load")
            assert row["count"] == 6000
        else:
            (row,) = client.query_data(f"count_over_time(load_n[{int(time.time() - NOON.timestamp()) + 60}s])")
            # What it had in memory when it was killed is its own loss.
            assert row["value"] >= 3999


def test_a_server_that_hangs_costs_one_timeout() -> None:
    """A question waits for `timeout` seconds and is not put again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = InfluxDBClientWrapper(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.2)
        with pytest.raises(MetricsAwayError, match="Timeout"):
            client.query_data("SELECT 1")
        listener.settimeout(0)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            listener.accept()
        client.disconnect()


@pytest.mark.parametrize("url", ["ftp://host", "host:8086", "http://user:hunter2@host", "http://[", ""])
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    """At once."""
    with pytest.raises(InvalidValueError, match="http://host:port") as caught:
        InfluxDBClientWrapper(url)
    assert "hunter2" not in str(caught.value)


def test_the_token_is_shown_nowhere() -> None:
    """Not in the repr, not in an error."""
    client = InfluxDBClientWrapper("http://127.0.0.1:1", "hunter2")
    with pytest.raises(MetricsAwayError) as caught:
        client.query_data("SELECT 1")
    assert "hunter2" not in f"{client!r} {caught.value!r}"


def test_the_feed_tells_of_recorder_database_and_runs(
    db: DatabaseFactory, client: InfluxDBClientWrapper, server: Server, name: str
) -> None:
    """What they say of themselves, and the market as it was recorded."""
    with db.get_session() as session:
        user = User(username=name)
        account = BybitAccount(user=user, account_name="main", environment="testnet")
        strategy = Strategy(account=account, strategy_type="GridStrategy", symbol="BTCUSDT", config_json={})
        run = Run(user=user, account=account, strategy=strategy, run_type="live")
        session.add(run)
    with db.get_session(user_id=user.user_id) as session:
        PrivateExecutionRepository(session).bulk_create([execution_values(run, number) for number in range(3)])
    feed = MetricsFeed(client, db, user_id=user.user_id, every=3600)
    with feed, Recorder(db, PublicTrade, on_written=feed.market) as recorder:
        feed.watch(name, recorder)
        recorder.add([trade_values(n, symbol=name[:32], price=str(n + 1), size="0.5") for n in range(3)])
        recorder.flush()
        feed.measure()
        assert recorder.stats().callback_errors == 0
    client.flush()
    server.settle()
    day = (datetime(2025, 5, 18, tzinfo=UTC), datetime(2025, 5, 20, tzinfo=UTC))
    market = client.get_market_data(name[:32], *day)
    assert [(row["price"], row["volume"]) for row in market] == [(1.0, 0.5), (2.0, 0.5), (3.0, 0.5)]
    now = (datetime.now(UTC) - HOUR, datetime.now(UTC))
    runs = client.for_user(user.user_id).get_performance_metrics(run.run_id, *now)
    assert {(row["count"], row["closed_pnl"]) for row in runs} == {(3.0, -37.5)}
    if server.kind == "influxdb":
        recorded = client.query_data("SELECT * FROM recorder WHERE recorder = $name", {"name": name})
        assert {(row["written"], row["away"]) for row in recorded} == {(3.0, False)}
        assert client.query_data("SELECT last(reachable) FROM database_health")[0]["last"] is True


def test_what_a_feed_cannot_measure_is_logged_and_tried_again(
    db: DatabaseFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is away ends no feed, and no recorder is held up by it."""
    client = InfluxDBClientWrapper("http://127.0.0.1:1", max_waiting=100)
    measured = threading.Event()

    class Failing(DatabaseFactory):
        def health(self, **options: Any) -> Any:
            measured.set()
            raise MetricsError("nothing to see")

    with MetricsFeed(client, Failing(db.settings), every=0.01):
        measured.wait(10)
        measured.clear()
        assert measured.wait(10)
    assert "nothing was measured: nothing to see" in caplog.text
    client.disconnect()
