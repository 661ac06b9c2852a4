"""The report: exact, the user's own, and a page that asks nobody for anything."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from shared.db import (
    DatabaseFactory,
    InputError,
    MissingExtraError,
    PrivateExecutionRepository,
    PublicTradeRepository,
    RunRepository,
    User,
    UserRepository,
)
from shared.db.commands.cli import main
from shared.db.report.figures import curves, interval_for, settlement_coin
from shared.db.report.markup import Markup, element
from shared.db.report.page import Page, Picture, number
from shared.db.report.user_report import write_report
from shared.db.tests.report_pages import (
    FIRST,
    HOSTILE,
    HOSTILE_SYMBOL,
    HOSTILE_TYPE,
    Read,
    store_prices,
    trade_for,
)

Fills = dict[str, list[dict[str, Any]]]


@pytest.fixture
def page_path(tmp_path: Path) -> Path:
    """Where the page goes."""
    return tmp_path / "report.html"


def read_report(db: DatabaseFactory, path: Path, user: str = "name-ann", *scope: Any) -> Read:
    """The page of a user, taken apart."""
    write_report(db, path, user, *scope)
    return Read(path.read_text(encoding="utf-8"))


def nothing_for(value: Decimal | None) -> Decimal:
    """The amount, 0 where there is none."""
    return value or Decimal(0)


def deepest(fills: list[dict[str, Any]]) -> Decimal:
    """The deepest fall of the profit after fees, one fill after the other."""
    level = height = fall = Decimal(0)
    for fill in sorted(fills, key=lambda fill: (fill["exchange_ts"], fill["run_id"], fill["exec_id"])):
        level += nothing_for(fill["closed_pnl"]) - nothing_for(fill["exec_fee"])
        height = max(height, level)
        fall = max(fall, height - level)
    return fall


def test_every_run_has_the_database_s_own_sums(fleet: DatabaseFactory, page_path: Path) -> None:
    """Count, profit, fees and result of each run are what `totals` says, digit for digit, and so is its drawdown."""
    fills = trade_for(fleet, "ann")
    page = read_report(fleet, page_path)
    columns = {
        name: page.column("By run", name) for name in ("fills", "before fees", "fees", "after fees", "deepest drawdown")
    }
    with fleet.get_session(user_id="ann", read_only=True) as session:
        for run in RunRepository(session).get_by_user_id("ann"):
            totals = PrivateExecutionRepository(session).totals(run.run_id)
            (name,) = (name for name in columns["fills"] if name.endswith(run.run_id[:8]))
            assert columns["fills"][name] == number(totals.count)
            assert columns["before fees"][name] == number(totals.closed_pnl)
            assert totals.fees is not None
            assert columns["fees"][name] == number(totals.fees)
            assert columns["after fees"][name] == number(totals.closed_pnl - totals.fees)
            if run.run_id in fills:
                assert columns["deepest drawdown"][name] == number(deepest(fills[run.run_id]))


def test_all_together_days_and_symbols_are_exact(fleet: DatabaseFactory, page_path: Path) -> None:
    """The figures at the top, each day of UTC and each symbol are the sums of the fills, none rounded or left out."""
    given_fills = [fill for fills in trade_for(fleet, "ann").values() for fill in fills]
    start = FIRST - timedelta(minutes=1)
    page = read_report(fleet, page_path, "name-ann", None, start)
    results = [nothing_for(fill["closed_pnl"]) - nothing_for(fill["exec_fee"]) for fill in given_fills]
    won = [fill["closed_pnl"] for fill in given_fills if nothing_for(fill["closed_pnl"]) > 0]
    lost = [fill["closed_pnl"] for fill in given_fills if nothing_for(fill["closed_pnl"]) < 0]
    assert page.facts["Fills"] == number(len(given_fills) + 1)  # the one that the fleet has
    own = Decimal("-12.5") - Decimal("26.3725275")
    assert page.facts["Profit after fees"] == number(sum(results) + own)
    assert f"{number(len(won))} fills closed with a profit and {number(len(lost) + 1)} with a loss" in page.text
    assert f"{number(sum(won))} gained to {number(-sum(lost) + Decimal('12.5'))} lost" in page.text

    by_day: dict[str, Decimal] = defaultdict(Decimal)
    by_symbol: dict[str, Decimal] = defaultdict(Decimal)
    for fill, result in zip(given_fills, results, strict=True):
        by_day[str(fill["exchange_ts"].date())] += result
        by_symbol[fill["symbol"]] += result
    by_day["2025-05-03"] += own
    by_symbol["BTCUSDT"] += own
    assert page.column("By day", "after fees") == {day: number(result) for day, result in by_day.items()}
    assert page.column("By symbol", "after fees") == {symbol: number(result) for symbol, result in by_symbol.items()}


def test_nothing_of_another_user_is_on_the_page(fleet: DatabaseFactory, page_path: Path) -> None:
    """Neither names nor numbers of another user's, whose fills are of the same symbols and times."""
    trade_for(fleet, "ann", 30)
    foreign = trade_for(fleet, "bob", 40, seed=2)
    page = read_report(fleet, page_path)
    html = page_path.read_text(encoding="utf-8")
    body = html[: html.index('<script type="application/json"')] + str(page.pictures)
    assert "bob" not in body
    assert not [run for run in foreign if run[:8] in body]
    assert page.facts["Fills"] == "61"
    amounts = {number(fill["closed_pnl"]) for fills in foreign.values() for fill in fills if fill["closed_pnl"]}
    assert not [amount for amount in amounts if amount in body]


def test_a_run_of_another_user_is_no_run(fleet: DatabaseFactory, page_path: Path) -> None:
    """It is told apart from none at all by nobody, and the page that was there stays."""
    page_path.write_text("the page before")
    for run in ("run-bob", "run-of-nobody"):
        with pytest.raises(InputError, match=f"user 'name-ann' has no run '{run}'; check both"):
            write_report(fleet, page_path, "name-ann", run)
    with pytest.raises(InputError, match=r"there is no user called 'ann'; give a name as it stands in users\.username"):
        write_report(fleet, page_path, "ann")
    assert page_path.read_text() == "the page before"
    assert [path.name for path in page_path.parent.glob("*report*")] == ["report.html"]


def test_one_run_and_a_time_narrow_it_down(fleet: DatabaseFactory, page_path: Path) -> None:
    """Both bounds belong to it, and what was bought before is in what is held."""
    run, fills = next(iter(trade_for(fleet, "ann").items()))
    start, end = fills[20]["exchange_ts"], fills[70]["exchange_ts"]
    page = read_report(fleet, page_path, "name-ann", run, start, end)
    assert page.facts["Fills"] == "51"
    assert page.facts["Profit before fees"] == number(sum(nothing_for(fill["closed_pnl"]) for fill in fills[20:71]))
    held = sum(fill["exec_qty"] if fill["side"] == "Buy" else -fill["exec_qty"] for fill in fills[:71])
    assert list(page.column("Held at the end", "held").values()) == [number(held)]


def test_a_name_is_text_wherever_it_stands(fleet: DatabaseFactory, page_path: Path) -> None:
    """Tags, ends of scripts, quotes and links in names of users, accounts and symbols are shown, and are no markup."""
    trade_for(fleet, "ann", 10, (HOSTILE_SYMBOL, HOSTILE_TYPE[:20]))
    with fleet.get_session() as session:
        session.get_one(User, "ann").username = HOSTILE_TYPE
    page = read_report(fleet, page_path, HOSTILE_TYPE)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 3  # the numbers, plotly, and what draws with it
    assert not {"img", "a", "iframe", "link"} & {*tags}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for name in (HOSTILE, HOSTILE_SYMBOL, HOSTILE_TYPE):
        assert name in page.text
    # What plotly draws it takes for markup of its own, unless it is escaped.
    names = [trace[key] for one in page.pictures for trace in one["traces"] for key in ("name",) if key in trace]
    names += [name for one in page.pictures for trace in one["traces"] if trace["type"] == "bar" for name in trace["x"]]
    assert any("&lt;script&gt;" in name for name in names)
    assert not [name for name in names if "<" in name]


def test_a_text_in_a_picture_cannot_end_its_script() -> None:
    """Nor begin a comment in it: what plotly is told comes back as it was."""
    text = "</script><!--<script>\u2028&lt;"
    page = Page("pictures")
    page.section("one", Picture("caption", "a sentence", [{"name": text}], {}))
    assert Read(page.html()).pictures[0]["traces"] == [{"name": text}]


def test_the_page_asks_nobody_for_anything(fleet: DatabaseFactory, page_path: Path) -> None:
    """It names no file and no address to load, and its own policy would let none be loaded."""
    trade_for(fleet, "ann", 10)
    page = read_report(fleet, page_path)
    assert not {"src", "href", "action", "srcset", "data", "poster"} & {
        name for _, attributes in page.elements for name in attributes
    }
    (policy,) = (each["content"] for _, each in page.elements if each.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    style = re.findall(r"<style>(.*?)</style>", page_path.read_text(encoding="utf-8"), re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]


def test_every_picture_is_said_in_words(fleet: DatabaseFactory, page_path: Path) -> None:
    """Each has a sentence for who does not see it, each table and section a name; headings go down by one."""
    trade_for(fleet, "ann", 10)
    page = read_report(fleet, page_path)
    pictures = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    assert len(pictures) == len(page.pictures) >= 7
    assert all(len((attributes["aria-label"] or "").split()) > 5 for attributes in pictures)
    headings = [tag for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1"
    assert {*headings[1:]} == {"h2"}
    assert next(attributes for tag, attributes in page.elements if tag == "html")["lang"] == "en"


def test_fees_in_another_coin_are_not_subtracted(fleet: DatabaseFactory, page_path: Path) -> None:
    """Of spot, which charges the coin that was bought, each currency is told by itself, and the page says so."""
    for fills in trade_for(fleet, "ann", 6, ("BTCUSDT",)).values():
        with fleet.get_session(user_id="ann") as session:
            PrivateExecutionRepository(session).bulk_create(
                fill
                | {"exec_id": f"{currency}-{place}", "exec_fee": Decimal("0.1"), "raw_json": {"feeCurrency": currency}}
                for currency in ("BTC", "USDT")
                for place, fill in enumerate(fills)
            )
    page = read_report(fleet, page_path)
    with fleet.get_session(user_id="ann", read_only=True) as session:
        runs = RunRepository(session).get_by_user_id("ann")
        parts = [PrivateExecutionRepository(session).totals(run.run_id) for run in runs]
    fees: dict[str, Decimal] = defaultdict(Decimal)
    for part in parts:
        for currency, fee in part.fees_by_currency.items():
            fees[currency or "not named"] += fee
    assert page.column("Fees", "in all") == {currency: number(fee) for currency, fee in fees.items()}
    assert "Profit after fees" not in page.facts
    assert page.facts["Profit before fees"] == number(sum(part.closed_pnl for part in parts))
    assert "are not subtracted on this page" in page.text


def test_profits_in_different_coins_are_never_added_up(fleet: DatabaseFactory, page_path: Path) -> None:
    """Each coin that contracts settle in has its own sums, days, drawdown and win rate, all exact; runs stay whole."""
    symbols = {"BTCUSD": "BTC", "BTCPERP": "USDC", "SOLUSDT": "USDT"}
    fills = trade_for(fleet, "ann", 40, tuple(symbols))
    page = read_report(fleet, page_path, "name-ann", None, FIRST - timedelta(minutes=1))
    for told in fills.values():
        coin = symbols[told[0]["symbol"]]
        (run,) = (name for name in page.column(f"By run, settled in {coin}", "fills") if told[0]["run_id"][:8] in name)
        with fleet.get_session(user_id="ann", read_only=True) as session:
            totals = PrivateExecutionRepository(session).totals(told[0]["run_id"])
        assert totals.fees is not None
        result = number(totals.closed_pnl - totals.fees)
        assert page.column(f"By run, settled in {coin}", "after fees")[run] == result
        assert page.column(f"By run, settled in {coin}", "deepest drawdown")[run] == number(deepest(told))
        assert page.column(f"By symbol, settled in {coin}", "after fees")[told[0]["symbol"]] == result
        assert page.column(f"Fees, settled in {coin}", "in all").keys() == {"not named"}
        if coin != "USDT":  # in which the fleet has a fill beside
            assert len(page.column(f"By run, settled in {coin}", "fills")) == 1
            assert result in page.facts["Profit after fees"]
            days = page.column(f"By day, UTC, settled in {coin}", "fills")
            assert sum(map(int, days.values())) == len(told)


def test_a_symbol_of_the_exchange_tells_its_coin() -> None:
    """Linear, inverse and dated contracts, options and spot as Bybit calls them; of others nothing is guessed."""
    coins = {"BTCUSDT": "USDT", "10000SATSUSDT": "USDT", "BTCUSDT-26DEC25": "USDT", "BTC-26DEC25-90000-C-USDT": "USDT"}
    coins |= {"BTCPERP": "USDC", "BTC-26DEC25": "USDC", "ETH-5DEC25-3000-P": "USDC", "BTCUSDC": "USDC"}
    coins |= {"BTCUSD": "BTC", "ETHUSDZ25": "ETH", "ETHBTC": "BTC", "BTCEURQ": "EURQ", "BTCEUR": "EUR"}
    coins |= {HOSTILE_SYMBOL: "", "USDT": "", "gold": "", "": ""}
    assert {symbol: settlement_coin(symbol) for symbol in coins} == coins


def test_coverage_and_gaps_are_those_that_are_stored(fleet: DatabaseFactory, page_path: Path) -> None:
    """The times without a trade between a symbol's first and last fill, as `gaps` finds them; none stored is one."""
    fills = trade_for(fleet, "ann", 100)
    store_prices(fleet)
    (btc, eth) = (one for one in fills.values())
    page = read_report(fleet, page_path, "name-ann", btc[0]["run_id"])
    with fleet.get_session(read_only=True) as session:
        repository = PublicTradeRepository(session)
        found = list(repository.gaps("BTCUSDT", 3600, btc[0]["exchange_ts"], btc[-1]["exchange_ts"]))
        (candle, *_) = repository.candles("BTCUSDT", btc[0]["exchange_ts"], None, interval_for(timedelta(hours=28)))
    assert page.column("Trades of the exchange", "gaps") == {"BTCUSDT": number(len(found))}
    assert page.column("Trades of the exchange", "longest") == {"BTCUSDT": str(max(gap.length for gap in found))}
    (drawn,) = (trace for one in page.pictures for trace in one["traces"] if trace["type"] == "candlestick")
    assert (drawn["x"][0], drawn["open"][0]) == (candle.open_ts.timestamp() * 1000, float(candle.open))
    bare = read_report(fleet, page_path, "name-ann", eth[0]["run_id"])
    assert bare.column("Trades of the exchange", "first stored") == {"ETHUSDT": "-"}
    assert bare.column("Trades of the exchange", "gaps") == {"ETHUSDT": "1"}
    assert "no trade of the exchange is stored" in bare.text


def test_drawing_thins_and_sums_do_not(fleet: DatabaseFactory, page_path: Path) -> None:
    """Of 3,000 fills a picture has some hundred marks, and the numbers have all."""
    ((run, fills),) = trade_for(fleet, "ann", 3_000, ("BTCUSDT",)).items()
    page = read_report(fleet, page_path, "name-ann", run)
    marks = [trace for one in page.pictures for trace in one["traces"] if trace.get("mode") == "markers"]
    assert 0 < sum(len(trace["x"]) for trace in marks) <= 2 * 400
    lines = [trace for one in page.pictures for trace in one["traces"] if trace.get("mode") == "lines"]
    assert max(len(trace["x"]) for trace in lines) <= 401
    assert page.facts["Fills"] == "3,000"
    assert page.facts["Deepest drawdown"] == number(deepest(fills))
    assert page.column("By symbol", "bought") == {
        "BTCUSDT": number(sum(fill["exec_qty"] for fill in fills if fill["side"] == "Buy"))
    }


def test_a_report_sees_one_moment(busy_fleet: DatabaseFactory, page_path: Path) -> None:
    """What is stored while it is being read is in none of its numbers."""
    fills = trade_for(busy_fleet, "ann", 10, ("BTCUSDT",))
    ((run, (fill, *_)),) = fills.items()
    added: list[str] = []

    def add(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "private_executions" in statement and statement.lstrip().startswith("SELECT") and not added:
            added.append("now")
            with DatabaseFactory(busy_fleet.settings) as other, other.get_session(user_id="ann") as session:
                late = fill | {
                    "exec_id": "late",
                    "closed_pnl": Decimal(1000),
                    "exchange_ts": fills[run][-1]["exchange_ts"],
                }
                PrivateExecutionRepository(session).bulk_create([late])

    engine = busy_fleet._engine_for(read_only=True)
    event.listen(engine, "after_cursor_execute", add)
    try:
        page = read_report(busy_fleet, page_path, "name-ann", run)
    finally:
        event.remove(engine, "after_cursor_execute", add)
    assert added
    assert page.facts["Fills"] == "10"
    assert page.facts["Deepest drawdown"] == number(deepest(fills[run]))
    with busy_fleet.get_session(user_id="ann", read_only=True) as session:
        assert PrivateExecutionRepository(session).totals(run).count == 11


def test_a_user_without_fills_has_a_page_too(fleet: DatabaseFactory, page_path: Path) -> None:
    """It says that there is nothing in this time."""
    page = read_report(fleet, page_path, "name-ann", None, FIRST + timedelta(days=3650))
    assert "There is no fill in this time." in page.text
    assert page.pictures == []
    with fleet.get_session() as session:
        UserRepository(session).create(User(user_id="new", username="newcomer"))
    assert read_report(fleet, page_path, "newcomer").pictures == []


def test_without_plotly_the_error_says_how_to_install_it(
    fleet: DatabaseFactory, page_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is read or written."""
    from shared.db.report import page

    page.plotly_script.cache_clear()
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingExtraError, match=r"plotly is not installed.*WHEEL\[report\]"):
        write_report(fleet, page_path, "name-ann")
    assert not page_path.exists()


def test_the_command_writes_the_page(
    busy_fleet: DatabaseFactory, page_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It tells how many fills are in it, takes days as bounds, and refuses what ends before it begins."""
    trade_for(busy_fleet, "ann", 120)
    url = busy_fleet.settings.get_database_url()
    command = ["report", "--db-url", url, "--user", "name-ann", "-o", str(page_path)]
    assert main([*command, "--from", "2025-05-02", "--to", "2025-05-02", "--gaps", "60"]) == 0
    assert re.fullmatch(r"a report of \d+ fills written to .*report\.html in \d+\.\d s\n", capsys.readouterr().out)
    assert list(Read(page_path.read_text()).column("By day", "fills")) == ["2025-05-02"]
    with pytest.raises(SystemExit):
        main([*command, "--from", "2025-05-03", "--to", "2025-05-02"])
    assert "--from is later than --to; swap the two" in capsys.readouterr().err
    assert main(["report", "--db-url", url, "--user", "nobody", "-o", str(page_path)]) == 1
    assert "there is no user called 'nobody'" in capsys.readouterr().err


amounts = st.decimals(min_value=-10, max_value=10, places=8)


@given(st.lists(st.tuples(st.integers(0, 5_000), st.sampled_from(["one", "two"]), amounts), max_size=40))
def test_a_curve_ends_at_the_sum_and_knows_its_deepest_fall(steps: list[tuple[int, str, Decimal]]) -> None:
    """Of all and of each run, whatever the intervals cut apart."""
    timed = [
        (FIRST + timedelta(seconds=at), run, amount) for at, run, amount in sorted(steps, key=lambda step: step[0])
    ]
    whole, by_run = curves(iter(timed), ("one", "two"), FIRST, timedelta(minutes=5))
    for curve, mine in [(whole, timed)] + [(by_run[run], [each for each in timed if each[1] == run]) for run in by_run]:
        level = height = fall = Decimal(0)
        for _, _, amount in mine:
            level += amount
            height = max(height, level)
            fall = max(fall, height - level)
        assert (curve.level, curve.deepest) == (level, fall)
        assert len(curve.points) == len({(when - FIRST) // timedelta(minutes=5) for when, _, _ in mine})
        assert not mine or curve.points[-1][1] == level


@given(st.text(), st.text())
def test_whatever_text_comes_back_as_it_was(inside: str, attribute: str) -> None:
    """Between tags and in attributes; what is markup already is not escaped again."""
    found = Read(element("p", element("b", inside), title=attribute) + Markup("<script>[]</script>"))
    assert [tag for tag, _ in found.elements] == ["p", "b", "script"]
    assert found.elements[0][1] == {"title": attribute}
    assert found.text == inside


@given(st.decimals(allow_nan=False, allow_infinity=False, places=8, min_value=-(10**12), max_value=10**12))
def test_a_number_keeps_its_digits(value: Decimal) -> None:
    """Read again it is the same; it has no zeros at its end, and zero has no sign."""
    shown = number(value)
    assert Decimal(shown.replace(",", "")) == value
    assert not re.search(r"\.\d*0$|\.$|^-0$", shown)
    assert (number(None), number(Decimal("-0.00000000")), number(1234567)) == ("-", "0", "1,234,567")
