"""The tables behave as those of `shared.db` do, on every database; candles are exact, whoever tells them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import desc, select, text

import shared.market
from shared.db import (
    ConstraintError,
    DatabaseFactory,
    InputError,
    InvalidValueError,
    PublicTrade,
    PublicTradeRepository,
    Recorder,
    User,
)
from shared.db.commands.cli import main
from shared.db.migrations import runner
from shared.db.testing import has_mysql
from shared.db.tests.support import code_lines, postgresql_programs
from shared.market import (
    CandleFeed,
    CandleRepository,
    Feed,
    FeedRepository,
    Instrument,
    InstrumentRepository,
    Interval,
    SeenNews,
    SeenNewsRepository,
    StoredCandle,
    frame_candles,
    parse_klines,
    read_klines,
)

DAY = datetime(2025, 5, 19, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
MADE = ("open_ts", "open", "high", "low", "close", "volume", "vwap")


def trades(start: datetime, count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Trades of BTCUSDT, some of the same instant, with as many digits as the columns hold."""
    chance = random.Random(seed)
    times = sorted(start + timedelta(milliseconds=chance.randrange(7_200) * 1_000) for _ in range(count))
    return [
        {
            "symbol": "BTCUSDT",
            "trade_id": f"{seed}-{number}",
            "exchange_ts": when,
            "local_ts": when,
            "side": chance.choice(("Buy", "Sell")),
            "price": Decimal(chance.randrange(6_400_000, 6_500_000)) / 100,
            "size": Decimal(chance.randrange(1, 10**9)) / 10**8,
        }
        for number, when in enumerate(times)
    ]


@pytest.fixture(params=["memory", "file", "postgresql", "policies", *(["mysql"] if has_mysql() else [])])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """Each database in turn, and PostgreSQL with its policies in force; with a user and two hours of trades."""
    if request.param == "policies":
        made: DatabaseFactory = request.getfixturevalue("policed_db")
    else:
        urls = {"memory": "sqlite://", "file": f"sqlite:///{tmp_path / 'market.db'}"}
        made = DatabaseFactory(urls.get(request.param) or request.getfixturevalue(f"{request.param}_url"))
    with made:
        made.create_tables()
        with made.get_session() as session:
            session.add(User(user_id="ann", username="ann"))
            PublicTradeRepository(session).bulk_create(trades(DAY, 400))
        yield made


def bar(when: datetime, interval: str = "1d", **values: Any) -> dict[str, Any]:
    """A candle of AAPL."""
    prices = {name: Decimal(price) for name, price in (("open", 150), ("high", 155), ("low", 149), ("close", 153))}
    return {"symbol": "AAPL", "interval": interval, "open_ts": when, **prices, "volume": 1_000_000} | values


def values_of(candles: list[Any]) -> list[tuple[Any, ...]]:
    """What candles say, wherever they come from."""
    return [tuple(getattr(candle, name) for name in MADE) for candle in candles]


@pytest.mark.parametrize("user", [None, "ann"])
def test_candles_roll_up_from_trades_and_again_without_a_change(db: DatabaseFactory, user: str | None) -> None:
    """To the digit, from where the last time ended; trades that came later change their own candle alone."""
    whose: dict[str, Any] = {} if user is None else {"user_id": user}
    for interval in Interval:
        with db.get_session(**whose) as session:
            candles, computed = CandleRepository(session), PublicTradeRepository(session)
            meant = computed.candles("BTCUSDT", None, None, interval.value)
            assert candles.roll_up("BTCUSDT", interval).inserted == len(meant) > 0
            found = candles.get_range("BTCUSDT", interval)
            assert values_of(found) == values_of(meant)
            assert [one.trade_count for one in found] == [one.count for one in meant]
            for again in (candles.roll_up("BTCUSDT", interval), candles.roll_up("BTCUSDT", interval, DAY)):
                assert (again.inserted, again.updated, again.skipped) == (0, 0, 0)
    late = [trades(DAY + timedelta(hours=2), 1, seed=2)[0], trades(DAY, 1, seed=3)[0]]
    with db.get_session(**whose) as session:
        PublicTradeRepository(session).bulk_create(late)
        candles = CandleRepository(session)
        newer = candles.roll_up("BTCUSDT", "1h")
        assert (newer.inserted, newer.updated) == (1, 0)
        older = candles.roll_up("BTCUSDT", "1h", late[1]["exchange_ts"], late[1]["exchange_ts"])
        assert (older.inserted, older.updated) == (0, 1), "whole candles, though the bounds lie within one"
        meant = PublicTradeRepository(session).candles("BTCUSDT", None, None, "1h")
        assert values_of(candles.get_range("BTCUSDT", "1h")) == values_of(meant)
        assert candles.get_volume("BTCUSDT", "1h") == sum((one.volume for one in meant), Decimal(0))
        assert candles.get_latest("BTCUSDT", "1h") is not None
        with pytest.raises(InvalidValueError, match="'1w' is not allowed; use one of 1m, 2m"):
            candles.roll_up("BTCUSDT", "1w")
        with pytest.raises(InvalidValueError, match="naive"):
            candles.roll_up("BTCUSDT", "1h", datetime(2025, 5, 19))  # noqa: DTZ001 # it must be refused


def test_the_exchanges_candles_are_those_of_its_trades(db: DatabaseFactory) -> None:
    """Its REST answer, once for each category, gives the digits that the trades give; a second time changes nothing."""
    with db.get_session() as session:
        meant = PublicTradeRepository(session).candles("BTCUSDT", None, None, "5m")
        rows = trades(DAY, 400)
        told = []
        for one in reversed(meant):
            within = [row for row in rows if one.open_ts <= row["exchange_ts"] < one.open_ts + 5 * MINUTE]
            turnover = sum((row["price"] * row["size"] for row in within), Decimal(0))
            prices = [str(value) for value in (one.open, one.high, one.low, one.close, one.volume, turnover)]
            told.append([str(round(one.open_ts.timestamp() * 1000)), *prices])
        answer = {"retCode": 0, "result": {"category": "spot", "symbol": "BTCUSDT", "list": told}}
        candles = CandleRepository(session)
        assert candles.store(parse_klines(json.dumps(answer), "5m")).inserted == len(meant)
        again = candles.store(parse_klines(answer["result"], "5"))
        assert (again.inserted, again.updated, again.rejected) == (0, len(meant), 0)
        assert values_of(candles.get_range("BTCUSDT", "5m")) == values_of(meant)
        assert candles.roll_up("BTCUSDT", "5m").updated == len(meant), "which now know how many trades they are of"
        assert values_of(list(candles.iter_range("BTCUSDT", interval="5m"))) == values_of(meant)
    contract = {"category": "inverse", "symbol": "BTCUSD", "list": [["1747612800000", *["4"] * 4, "8", "2"]]}
    assert parse_klines(contract, "1m")[0]["vwap"] == 4, "its volume is money, and its turnover coins"
    with pytest.raises(InputError, match="Bybit answered 10001"):
        parse_klines({"retCode": 10001, "retMsg": "params error", "result": {}}, "5m")
    with pytest.raises(InvalidValueError, match="'W' is not allowed; use one of 1m, 2m"):
        parse_klines(answer, "W")
    with pytest.raises(InputError, match="no symbol or no list"):
        parse_klines({"retCode": 0, "result": {}}, "5m")


def test_a_candle_that_cannot_be_costs_itself_alone(db: DatabaseFactory) -> None:
    """Each is told with its position and the reason, and the others are stored."""
    good = ["1747612800000", "150", "155", "149", "153", "10", "1520"]
    bad = {
        1: [good[0], "150", "148", *good[3:]],
        2: [*good[:5], "-1", "1520"],
        3: [good[0], "NaN", *good[2:]],
        4: ["yesterday", *good[1:]],
        5: good[:4],
        6: "candle",
    }
    listed = [good, *bad.values(), ["1747612860000", *good[1:]]]
    with db.get_session(user_id="ann") as session:
        stored = CandleRepository(session).store(parse_klines({"symbol": "BTCUSDT", "list": listed}, "1m"))
        assert (stored.inserted, [row.position for row in stored.errors]) == (2, [*bad])
    reasons = " | ".join(row.reason for row in stored.errors)
    for reason in ("low_to_high", "candles_volume", "NaN is not an amount", "takes an aware datetime, not str"):
        assert reason in reasons
    with pytest.raises(ConstraintError), db.get_session() as session:
        session.add(StoredCandle(**bar(DAY, high=Decimal(1))))


def test_an_archive_of_candles_is_read_by_its_own_clock(tmp_path: Path) -> None:
    """Which is three hours before UTC; packed or not, and never with a guess about what it does not say."""
    lines = "2022.01.01 00:00,46200.5,46250.5,46190.5,46230,123.456\n2022.01.01 00:01,46230,46231,46229,46230,1\n"
    packed = tmp_path / "BTCUSDT_1_2022-01-01_2022-01-31.csv.gz"
    packed.write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "plain.csv").write_text(lines)
    rows = read_klines(packed)
    assert rows == read_klines(tmp_path / "plain.csv", "BTCUSDT", "1m")
    with DatabaseFactory("sqlite://") as db:
        db.create_tables()
        with db.get_session() as session:
            assert CandleRepository(session).store(rows).inserted == 2
            first = CandleRepository(session).get_range("BTCUSDT", "1m")[0]
            assert first.open_ts == datetime(2021, 12, 31, 21, tzinfo=UTC)
            assert (first.open, first.volume, first.vwap) == (Decimal("46200.5"), Decimal("123.456"), None)
    packed.write_bytes(packed.read_bytes()[:-9])
    for refused, match in (
        (packed, "cannot be read"),
        (tmp_path / "BTCUSDT_1_2023-01-01_2023-01-31.csv.gz", "cannot be read"),
        (tmp_path / "plain.csv", "give symbol= and interval="),
        (packed.rename(tmp_path / "BTCUSDT_240_2022-01-01_2022-01-31.csv.gz"), "ask REST for 4h"),
    ):
        with pytest.raises(InputError, match=match):
            read_klines(refused)


def test_frames_of_shares_come_in_by_their_days(db: DatabaseFactory) -> None:
    """With dividends and splits, of one symbol or of several; a day is its date, and a missing price costs its row."""
    days = pd.DatetimeIndex(["2025-05-16", "2025-05-19", "2025-11-03"], tz="America/New_York", name="Date")
    told = {"Open": [150.25, 151.0, 1.1], "High": [155.0, 152.0, 1.2], "Low": [149.0, 150.5, 1.0]}
    told |= {"Close": [153.1, float("nan"), 1.15], "Volume": [1_000_000, 5, 7], "Dividends": [0.25, 0.0, 0.0]}
    one = pd.DataFrame(told | {"Stock Splits": [0.0, 0.0, 4.0]}, index=days)
    several = pd.concat({"AAPL": one, "MSFT": one * 2}, axis=1)
    with db.get_session() as session:
        candles = CandleRepository(session)
        stored = candles.store(frame_candles(one, "AAPL"))
        assert (stored.inserted, [row.position for row in stored.errors]) == (2, [1])
        for frame in (several, several.swaplevel(axis=1)):
            assert candles.store(frame_candles(frame, "MSFT")).rejected == 1
        last = candles.get_latest("AAPL")
        assert last is not None
        assert (last.open_ts, last.splits) == (datetime(2025, 11, 3, tzinfo=UTC), Decimal(4))
        assert [row.dividends for row in candles.get_daily("MSFT")] == [Decimal("0.5"), 0]
        hours = one.set_axis(days + pd.Timedelta(hours=9.5), axis=0)
        assert candles.store(frame_candles(hours, "AAPL", "1h")).inserted == 2
        assert candles.get_range("AAPL", "1h")[0].open_ts == datetime(2025, 5, 16, 13, 30, tzinfo=UTC)
        naive = candles.store(frame_candles(hours.tz_localize(None), "AAPL", "30m"))
        assert (naive.inserted, naive.rejected) == (0, 3), "which says of no instant when it was"
    with pytest.raises(InputError, match="nothing of TSLA"):
        frame_candles(several, "TSLA")
    with pytest.raises(InputError, match="no Close"):
        frame_candles(one.drop(columns="Close"), "AAPL")


def test_the_examples_of_the_related_systems_run(db: DatabaseFactory) -> None:
    """Those of traderrr about prices and of the SQLite bot about news, with names changed."""
    with db.get_session() as session:
        session.add(StoredCandle(**bar(datetime(2025, 1, 1, tzinfo=UTC))))
        session.add(StoredCandle(**bar(datetime(2025, 1, 2, tzinfo=UTC), close=Decimal("154.5"))))
        session.add(Instrument(symbol="AAPL", name="Apple Inc.", sector="Technology", market_cap=3_500_000_000_000))
    with db.get_session(user_id="ann") as session:
        newest = select(StoredCandle).where(StoredCandle.symbol == "AAPL").order_by(desc(StoredCandle.open_ts))
        last = session.scalars(newest.limit(1)).one()
        assert last.close == Decimal("154.5")
        assert last is CandleRepository(session).get_latest("AAPL")
        if getattr(session, "confined_by_server", False):
            assert session.scalars(text("SELECT symbol FROM candles")).all() == ["AAPL"] * 2
        instruments = InstrumentRepository(session)
        renewed = instruments.store([{"symbol": "AAPL", "industry": "Consumer Electronics"}, {"symbol": "BTCUSDT"}])
        assert (renewed.inserted, renewed.updated) == (1, 1)
        (apple,) = instruments.get_by_sector("Technology")
        assert (apple.name, apple.industry, apple.market_cap) == ("Apple Inc.", "Consumer Electronics", 3_500 * 10**9)
        assert [one.symbol for one in instruments.get_trading()] == ["AAPL", "BTCUSDT"]
        with pytest.raises(InvalidValueError, match="'open' is not allowed"):
            instruments.store([{"symbol": "AAPL", "status": "open"}])


def test_news_is_new_once(db: DatabaseFactory) -> None:
    """Its hash decides, whichever feed brings it and whoever asks; a feed takes its news with it."""
    url = "https://news.example/a?id=1"
    with db.get_session(user_id="ann") as session:
        feeds, news = FeedRepository(session), SeenNewsRepository(session)
        one, other = (feeds.create(Feed(url=f"https://{name}.example/rss", name=name)) for name in ("one", "other"))
        asked = [news.see(one, url, "A"), news.see(one, url, "A"), news.see(other, f" {url}#top", "A again")]
        assert [*asked, news.see(other, f"{url}2", "B")] == [True, False, False, True]
        assert news.was_seen(url)
        assert not news.was_seen("https://news.example/b")
        assert sorted(row.title for row in news.get_recent(datetime.now(UTC) - MINUTE)) == ["A", "B"]
        other.is_active = False
        session.flush()
        assert [feed.name for feed in feeds.get_active()] == ["one"]
        assert feeds.note_fetched(one).fetched_ts is not None
        found = feeds.get_by_url("https://one.example/rss")
        assert found is one
        feeds.delete(one)
        assert session.scalars(select(SeenNews.title)).all() == ["B"]


def test_the_recorder_takes_candles(db: DatabaseFactory, tmp_path: Path) -> None:
    """Through its journal on disk, and one that comes twice is stored once."""
    with Recorder(db, StoredCandle, spool=tmp_path / "spool") as recorder:
        recorder.add([bar(DAY, "1m"), bar(DAY + MINUTE, "1m"), bar(DAY, "1m"), bar(DAY)])
    assert recorder.stats().written == 3
    with db.get_session(read_only=True) as session:
        assert [gap.length for gap in CandleRepository(session).gaps("AAPL", 30, interval="1m")] == [MINUTE]


def test_candles_follow_the_recorder_of_trades(db: DatabaseFactory, caplog: pytest.LogCaptureFixture) -> None:
    """Batch by batch, late trades too; what could not be written while the table was away is made with the next one."""
    feed = CandleFeed(db, "1m", "1d")

    def record(rows: list[dict[str, Any]]) -> None:
        with Recorder(db, PublicTrade, on_written=feed.trades) as recorder:
            recorder.add(rows)

    def differ(*intervals: str) -> list[str]:
        with db.get_session() as session:
            candles, computed = CandleRepository(session), PublicTradeRepository(session)
            start = DAY + timedelta(days=1)
            meant = {one: values_of(computed.candles("BTCUSDT", start, None, one)) for one in intervals}
            return [one for one in intervals if values_of(candles.get_range("BTCUSDT", one, start)) != meant[one]]

    rows = trades(DAY + timedelta(days=1), 60, seed=4)
    record(rows[30:])
    assert differ("1m", "1d") == []
    with db.engine.begin() as connection:
        connection.execute(text("ALTER TABLE candles RENAME TO away"))
    record(rows[:20])
    assert "on_written" in caplog.text
    with db.engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO candles"))
    assert differ("1m", "1d") == ["1m", "1d"]
    record(rows[20:30])
    assert differ("1m", "1d") == []
    with pytest.raises(InvalidValueError, match="'1w' is not allowed"):
        CandleFeed(db, "1w")


def test_the_commands_know_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], postgresql_url: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schema, status, export, purge, import, coverage, backup and restore, here and in a copy on PostgreSQL."""
    monkeypatch.chdir(tmp_path)
    url, into = "sqlite:///market.db", postgresql_url.render_as_string(hide_password=False)
    at, there, tools = ["--db-url", url], ["--db-url", into], ["--pg-bin", str(postgresql_programs())]
    assert main(["migrate", "up", *at]) == 0
    with DatabaseFactory(url) as db, db.get_session() as session:
        CandleRepository(session).store([bar(DAY + number * MINUTE, "1m") for number in range(3)])
        CandleRepository(session).store([bar(DAY, volume=Decimal("0.12345678"))])
        SeenNewsRepository(session).see(FeedRepository(session).create(Feed(url="u", name="n")), "x", "X")
    for command in (
        ["migrate", "check", *at],
        ["status", *at],
        ["backup", "backup.db", *at],
        ["export", "candles", "--key", "AAPL", "-o", "candles.csv", *at],
        ["purge", "--table", "candles", "--key", "AAPL", *at],
        ["import", "candles", "candles.csv", *at],
        ["import", "candles", "candles.csv", *at],
        ["coverage", "--table", "candles", *at],
        ["purge", "--table", "seen_news", "--before", "2100-01-01", *at],
        ["restore", "backup.db", "--force", *at],
        ["copy", url, into],
        ["migrate", "check", *there],
        ["backup", "backup.dump", *there, *tools],
        ["purge", "--table", "candles", "--key", "AAPL", *there],
        ["restore", "backup.dump", "--force", *there, *tools],
    ):
        assert main(command) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    told = [
        "4 rows written",
        "4 rows of candles deleted",
        "4 new rows of candles, 0",
        "0 new rows of candles, 4",
        "AAPL",
    ]
    told += ["1 row of seen_news deleted", "candles 4", "seen_news 1"]
    assert [words for words in told if words not in printed] == []
    assert "not ours" not in printed
    with DatabaseFactory(into) as db, db.get_session(read_only=True) as session:
        assert CandleRepository(session).get_volume("AAPL", "1d") == Decimal("0.12345678")
        assert session.scalars(select(SeenNews.title)).all() == ["X"]


def test_a_question_about_one_interval_reads_its_index(db: DatabaseFactory) -> None:
    """However many candles of other intervals lie between."""
    named = db.engine.dialect.identifier_preparer.quote("interval")
    asked = f"SELECT open_ts FROM candles WHERE symbol = 'AAPL' AND {named} = '1d' ORDER BY open_ts DESC LIMIT 1"
    with db.get_session() as session:
        CandleRepository(session).store(bar(DAY + number * MINUTE, "1m") for number in range(3000))
        CandleRepository(session).store([bar(DAY)])
    with db.engine.connect() as connection:
        if not db.settings.is_sqlite:
            table = "TABLE " if db.engine.dialect.name == "mysql" else ""
            connection.execute(text(f"ANALYZE {table}candles")).close()
        explain = "EXPLAIN QUERY PLAN" if db.settings.is_sqlite else "EXPLAIN"
        plan = " ".join(str(row) for row in connection.execute(text(f"{explain} {asked}")))
    assert "uq_candles_symbol_interval_open_ts" in plan or "sqlite_autoindex_candles_1" in plan


def test_revisions_make_what_the_models_say(db: DatabaseFactory) -> None:
    """Up from nothing, back to nothing, and up again, with no difference left."""
    if db.settings.is_memory or db.engine.dialect.name == "mysql":
        return
    assert runner.check(db) == []
    runner.downgrade_all(db, allow_data_loss=True)
    assert list(runner.upgrade_all(db)) == ["shared.db", "shared.market"]
    assert runner.check(db) == []
    db.check_schema()


def test_the_page_s_example_runs(db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, with an answer, an archive and a library that give a candle each."""
    monkeypatch.chdir(tmp_path)
    page = (Path(shared.market.__file__).parent / "docs" / "market.md").read_text()
    line = b"2022.01.01 00:00,150,155,149,153,10\n"
    (tmp_path / "BTCUSDT_1_2022-01-01_2022-01-31.csv.gz").write_bytes(gzip.compress(line))
    prices = {"Open": [1.5], "High": [2.0], "Low": [1.0], "Close": [1.25], "Volume": [10]}
    frame = pd.DataFrame(prices, index=pd.DatetimeIndex(["2025-05-19"], tz="America/New_York"))
    ticker = SimpleNamespace(history=lambda period: frame)
    candle = ["1640995200000", "150", "155", "149", "153", "10", "1520"]
    given = {"answer": {"symbol": "BTCUSDT", "list": [candle]}, "start": None, "end": None, "db": db}
    exec(
        page.partition("```python\n")[2].partition("```")[0],
        {name: getattr(shared.market, name) for name in shared.market.__all__}
        | {"yfinance": SimpleNamespace(Ticker=lambda symbol: ticker)}
        | given,
    )
    with db.get_session(read_only=True) as session:
        stored = {one.key: one.count for one in CandleRepository(session).coverage()}
        made = PublicTradeRepository(session).candles("BTCUSDT", None, None, "1m")
    assert stored == {"AAPL": 1, "BTCUSDT": len(made) + 2}


def test_the_readme_s_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands."""
    readme = (Path(shared.market.__file__).parent / "README.md").read_text()
    exec(readme.partition("```python\n")[2].partition("```")[0], {})
    assert capsys.readouterr().out == "[]\n"


def test_the_package_stays_thin() -> None:
    """Seven hundred lines of its own, without blanks, comments and docstrings."""
    folder = Path(shared.market.__file__).parent
    own = [path for path in folder.rglob("*.py") if "tests" not in path.parts]
    assert sum(map(code_lines, own)) < 700
