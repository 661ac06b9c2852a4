"""Candles, coverage, sums and look-ups, the same on every database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete
from sqlalchemy.orm import Session

from shared.db import (
    Candle,
    Coverage,
    DatabaseFactory,
    InvalidValueError,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    RunTotals,
    TenantScopeError,
    TradeRow,
)
from shared.db.column_types import money_units
from shared.db.ranges.summaries import interval_of
from shared.db.tests.support import execution_values, trade_values, two_runs, with_and_without_policies

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = datetime(2025, 5, 19, tzinfo=UTC)
UNIT = Decimal("1e-8")
MINUTE = timedelta(minutes=1)

units = st.integers(0, 10**15 - 1)
amounts = st.one_of(
    units.map(lambda number: Decimal(number).scaleb(-8)),
    units.map(lambda number: Decimal(number).scaleb(-3)),
    # Next to where a stored float times 1e8 is no longer a whole number.
    st.integers(2**24 * 1000 - 3, 2**24 * 1000 + 3).map(lambda number: Decimal(number).scaleb(-3)),
)
# Close together, on both sides of 1970, at the ends of intervals, and with every microsecond.
instants = st.builds(
    lambda origin, micros: origin + timedelta(microseconds=micros),
    st.sampled_from([START, EPOCH, datetime(1601, 3, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)]),
    st.one_of(st.integers(-(10**9), 10**9), st.sampled_from([-1, 0, 1, 999_999, 59_999_999, 60_000_000, -999_600])),
)
trades = st.lists(
    st.builds(trade_values, trade_id=st.text("ab", max_size=2), exchange_ts=instants, price=amounts, size=amounts),
    max_size=15,
    unique_by=lambda row: (row["exchange_ts"], row["trade_id"]),
)
intervals = st.one_of(
    st.sampled_from(["1s", "30s", "1m", "5m", "1h", "1d", "7d"]),
    st.integers(1, 10**10).map(lambda micros: timedelta(microseconds=micros)),
)


def expected_candles(rows: Sequence[TradeRow], interval: timedelta) -> list[Candle]:
    """Candles by Python's integers and fractions."""
    found = []
    for start, group in groupby(rows, key=lambda row: EPOCH + (row.exchange_ts - EPOCH) // interval * interval):
        inside = sorted(group, key=lambda row: (row.exchange_ts, len(row.trade_id), row.trade_id))
        volume = sum(Fraction(row.size) for row in inside)
        turnover = sum(Fraction(row.price) * Fraction(row.size) for row in inside)
        prices = [row.price for row in inside]
        mean = round(turnover / volume * 10**8) if volume else None  # half-even, as Fraction rounds
        found.append(
            Candle(
                start,
                prices[0],
                max(prices),
                min(prices),
                prices[-1],
                exact(volume * 10**8),
                len(inside),
                None if mean is None else exact(mean),
            )
        )
    return found


def exact(number: Fraction | int) -> Decimal:
    """That many units of 1e-8."""
    assert number == int(number)
    return Context(prec=60).scaleb(Decimal(int(number)), -8)


def test_candles_equal_those_counted_by_hand(db: DatabaseFactory) -> None:
    """On every database, for any interval and any trades, each digit of a candle is what exact arithmetic gives."""

    @settings(max_examples=60, deadline=None)
    @given(trades, intervals)
    def check(given_rows: list[dict[str, Any]], interval: timedelta | str) -> None:
        with db.get_session() as session:
            session.execute(delete(PublicTrade))
            session.add_all(PublicTrade(**row) for row in given_rows)
            repository = PublicTradeRepository(session)
            rows = list(repository.iter_symbol_range("BTCUSDT"))
            found = repository.candles("BTCUSDT", None, None, interval)
            wanted = expected_candles(rows, interval_of(interval))
            assert found == wanted
            assert [list(map(str, candle)) for candle in found] == [list(map(str, candle)) for candle in wanted]

    check()


def test_a_candle_opens_and_closes_by_time_then_id(session: Session) -> None:
    """Of trades at one instant the smallest id opens and the largest closes; bounds cut the first and last candle."""
    repository = PublicTradeRepository(session)
    two, four = Decimal(2), Decimal(4)
    one, three = two - 1, four - 1
    given_trades = [("b", 0, two), ("a", 0, one), ("c", 59, four), ("d", 59, three), ("e", 60, two), ("f", 300, two)]
    repository.bulk_create(
        trade_values(trade_id=name, exchange_ts=START + timedelta(seconds=second), price=price, size=one)
        for name, second, price in given_trades
    )
    first, second, last = repository.candles("BTCUSDT", START, None, "1m")
    assert first == Candle(START, one, four, one, three, four, 4, Decimal("2.5"))
    assert (second.open_ts, last.open_ts) == (START + MINUTE, START + 5 * MINUTE)
    end = START + timedelta(seconds=59)
    cut = Candle(START, four, four, three, three, two, 2, Decimal("3.5"))
    assert repository.candles("BTCUSDT", end, end, MINUTE) == [cut]
    assert repository.candles("ETHUSDT", None, None, "1d") == []


def test_the_mean_price_is_rounded_half_even(session: Session) -> None:
    """A mean exactly between two of 8 places goes to the even one, whatever the caller's own decimal context says."""
    repository = PublicTradeRepository(session)
    for symbol, low, wanted in (("EVEN", "1.00000000", "1.00000000"), ("ODD", "1.00000001", "1.00000002")):
        repository.bulk_create(
            trade_values(number, symbol=symbol, price=Decimal(low) + number * UNIT, size=Decimal(1))
            for number in range(2)
        )
        with localcontext(prec=3):
            (candle,) = repository.candles(symbol, None, None, "1m")
        assert str(candle.vwap) == wanted


def test_a_candle_without_volume_has_no_mean(session: Session) -> None:
    """Trades of size 0 give a candle with volume 0, and no mean price."""
    PublicTradeRepository(session).bulk_create([trade_values(size=Decimal(0))])
    (candle,) = PublicTradeRepository(session).candles("BTCUSDT", None, None, "1m")
    assert (str(candle.volume), candle.vwap) == ("0E-8", None)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("1s", timedelta(seconds=1)),
        ("15m", timedelta(minutes=15)),
        ("4h", timedelta(hours=4)),
        ("1d", timedelta(days=1)),
    ],
)
def test_an_interval_can_be_written_as_text(text: str, length: timedelta) -> None:
    """A number and one of s, m, h, d."""
    assert interval_of(text) == length


@pytest.mark.parametrize(
    "interval", ["", "m", "0m", "-1m", "1.5h", "1w", "1 m", "1M", "\u0661m", "99999d", timedelta(0), -MINUTE, 60, None]
)
def test_what_is_no_interval_is_refused(session: Session, interval: Any) -> None:
    """Anything but a positive length raises, naming what to write."""
    with pytest.raises(InvalidValueError, match="'1h'"):
        PublicTradeRepository(session).candles("BTCUSDT", None, None, interval)


def test_coverage_tells_first_last_and_count_of_each_symbol(session: Session) -> None:
    """One entry a symbol, by symbol; without the count it says None."""
    repository = PublicTradeRepository(session)
    assert repository.coverage() == []
    for symbol, count in (("ETHUSDT", 3), ("1000PEPEUSDT", 1), ("btcusdt", 1), ("BTCUSDT", 5), ("BTC-PERP", 2)):
        repository.bulk_create(trade_values(number, symbol=symbol) for number in range(count))
    wanted = [
        Coverage(symbol, START, START + timedelta(milliseconds=count - 1), count)
        for symbol, count in [("1000PEPEUSDT", 1), ("BTC-PERP", 2), ("BTCUSDT", 5), ("ETHUSDT", 3), ("btcusdt", 1)]
    ]
    assert repository.coverage() == wanted
    assert repository.coverage(count=False) == [entry._replace(count=None) for entry in wanted]


def test_the_last_trade_at_or_before_an_instant_is_found(session: Session) -> None:
    """At the instant itself counts, the largest id of an instant wins, and another symbol's trades do not."""
    repository = PublicTradeRepository(session)
    repository.bulk_create([trade_values(number) for number in (0, 5)])
    repository.bulk_create([trade_values(5, trade_id="trade-50"), trade_values(6, symbol="ETHUSDT")])

    def at(milliseconds: float) -> str | None:
        found = repository.get_trade_at_or_before("BTCUSDT", START + timedelta(milliseconds=milliseconds))
        return None if found is None else found.trade_id

    assert [at(-0.001), at(0), at(4.999), at(5), at(10**6)] == [None, "trade-0", "trade-0", "trade-50", "trade-50"]
    with pytest.raises(InvalidValueError):
        repository.get_trade_at_or_before("BTCUSDT", datetime(2025, 5, 19))  # noqa: DTZ001 # what the test is about


def test_the_last_trade_strictly_before_an_instant_can_be_asked_for(session: Session) -> None:
    """`before` itself does not count; without it the newest trade does."""
    repository = PublicTradeRepository(session)
    repository.bulk_create([trade_values(number) for number in (0, 5)])
    five = START + timedelta(milliseconds=5)
    assert repository.get_last_trade_ts("BTCUSDT") == five
    assert repository.get_last_trade_ts("BTCUSDT", before=five) == START
    assert repository.get_last_trade_ts("BTCUSDT", before=START) is None
    with pytest.raises(InvalidValueError):
        repository.get_last_trade_ts("BTCUSDT", before=datetime(2025, 5, 19))  # noqa: DTZ001 # what the test is about


def test_totals_are_exact_sums(db: DatabaseFactory) -> None:
    """Count, profit and loss, fees and volume by side are what adding the rows gives, digit for digit."""
    run, _ = two_runs(db)
    with db.get_session() as session:
        repository = PrivateExecutionRepository(session, "ann")
        rows = list(repository.iter_run_range(run.run_id))

        def wanted(*, symbol: str | None = None, first: int = 0, last: int = 19) -> RunTotals:
            inside = [row for row in rows[first : last + 1] if symbol in (None, row.symbol)]
            sides = {side: sum(row.exec_qty for row in inside if row.side == side) for side in ("Buy", "Sell")}
            fees = sum((row.exec_fee or Decimal(0) for row in inside), Decimal(0))
            return RunTotals(
                len(inside),
                sum((row.closed_pnl or Decimal(0) for row in inside), Decimal(0)),
                fees,
                Decimal(sides["Buy"]),
                Decimal(sides["Sell"]),
                {None: fees},
            )

        assert repository.totals(run.run_id) == wanted()
        assert repository.totals(run.run_id, "ETHUSDT") == wanted(symbol="ETHUSDT")
        start, end = rows[3].exchange_ts, rows[9].exchange_ts
        assert repository.totals(run.run_id, start=start, end=end) == wanted(first=3, last=9)
        nothing = repository.totals("no such run")
        assert nothing == RunTotals(0, Decimal(0), Decimal(0), Decimal(0), Decimal(0), {})
        assert all(str(value) == "0E-8" for value in nothing[1:5])


def test_fees_of_different_coins_are_not_added(db: DatabaseFactory) -> None:
    """A spot buy is charged in the coin it bought: fees are told by currency, and are one sum where there is one."""
    run, _ = two_runs(db, executions=0)

    def fill(number: int, fee: str | None, message: Any) -> dict[str, Any]:
        return execution_values(run, number, exec_fee=fee and Decimal(fee), raw_json=message)

    usdt = [fill(1, "0.25", {"feeCurrency": "USDT"}), fill(2, "-0.05", {"feeCurrency": "USDT"})]
    no_fee = [fill(3, None, {"feeCurrency": "BTC"}), fill(4, "0", {"feeCurrency": "ETH"}), fill(5, None, None)]
    untold = [fill(6, "1", None), fill(7, "2", {"feeCurrency": ""}), fill(8, "3", {"x": 1}), fill(9, "4", [1])]
    for _ in with_and_without_policies(db):
        with db.get_session(user_id="ann") as session:
            repository = PrivateExecutionRepository(session)
            repository.bulk_create(usdt + no_fee)
            totals = repository.totals(run.run_id)
            assert (totals.fees, totals.fees_by_currency) == (Decimal("0.2"), {"USDT": Decimal("0.2")})
            repository.bulk_create([fill(10, "0.000025", {"feeCurrency": "BTC"})])
            totals = repository.totals(run.run_id)
            assert (totals.count, totals.fees, totals.closed_pnl) == (6, None, Decimal(-75))
            assert totals.fees_by_currency == {"USDT": Decimal("0.2"), "BTC": Decimal("0.000025")}
            repository.bulk_create(untold)
            assert repository.totals(run.run_id).fees_by_currency[None] == 10
            session.execute(delete(PrivateExecution))


def test_trades_of_one_millisecond_follow_by_number(session: Session) -> None:
    """The first price of a candle is that of trade 9, not of trade 10, though "10" sorts before "9" as text."""
    prices = {"9": 100, "10": 101, "11": 102, "8": 99}
    rows = [trade_values(0, trade_id=trade_id, price=price) for trade_id, price in prices.items()]
    PublicTradeRepository(session).bulk_create(rows)
    (candle,) = PublicTradeRepository(session).candles("BTCUSDT", None, None, "1m")
    assert (candle.open, candle.close) == (Decimal(99), Decimal(102))


@settings(max_examples=500)
@given(st.one_of(st.integers(0, 2**25 * 10**8), st.integers(2**25 * 10**8, 2**26 * 10**8), st.integers(0, 10**20)))
def test_the_units_of_a_stored_amount_are_those_of_its_digits(units: int) -> None:
    """Whatever amount SQLite may store as a float, the number of its units of 1e-8 comes back exactly."""
    amount = Decimal(units).scaleb(-8)
    stored = float(amount)
    if Decimal(repr(stored)) == amount:
        assert (money_units(stored), money_units(-stored)) == (units, -units)


def test_totals_do_not_drift(db: DatabaseFactory) -> None:
    """Ten thousand amounts that no float holds add up exactly."""
    run, _ = two_runs(db, executions=0)
    amount = Decimal("1234567.12345678")
    with db.get_session() as session:
        repository = PrivateExecutionRepository.across_users(session)
        template = {"account_id": run.account_id, "symbol": "BTCUSDT", "order_id": "o", "side": "Buy", "exec_price": 1}
        repository.bulk_create(
            template
            | {"run_id": run.run_id, "exec_id": str(n), "exchange_ts": START, "exec_qty": amount, "closed_pnl": -amount}
            for n in range(10_000)
        )
        totals = repository.totals(run.run_id)
    assert (totals.buy_volume, totals.closed_pnl) == (amount * 10_000, -amount * 10_000)


def test_another_users_run_has_no_totals_and_no_last_execution(db: DatabaseFactory) -> None:
    """Sums and look-ups are confined to the user in either kind of session."""
    own, foreign = two_runs(db)
    end = datetime(2100, 1, 1, tzinfo=UTC)
    with db.get_session() as session:
        with pytest.raises(TenantScopeError):
            PrivateExecutionRepository(session).totals(own.run_id)
        named = PrivateExecutionRepository(session, "ann")
        assert (named.totals(own.run_id).count, named.totals(foreign.run_id).count) == (20, 0)
        assert named.get_execution_at_or_before(foreign.run_id, end) is None
    for _ in with_and_without_policies(db):
        with db.get_session(user_id="ann") as session:
            scoped = PrivateExecutionRepository(session)
            assert (scoped.totals(own.run_id).count, scoped.totals(foreign.run_id).count) == (20, 0)
            assert scoped.get_execution_at_or_before(foreign.run_id, end) is None
            last = scoped.get_execution_at_or_before(own.run_id, end, "BTCUSDT")
            assert last is not None
            assert last.exec_id == "000018"
            assert PublicTradeRepository(session).coverage() == []
            assert PublicTradeRepository(session).candles("BTCUSDT", None, None, "1m") == []
