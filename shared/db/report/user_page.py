"""The page of a report: every number that is written is exact, floats are for the ink alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from shared.db.models import Side
from shared.db.report.figures import Curve, Figures
from shared.db.report.gathering import DRAWN, DRAWN_RUNS, Earnings, Report, most_filled
from shared.db.report.markup import Markup, element, joined
from shared.db.report.page import (
    Page,
    Picture,
    drawn,
    facts,
    folded,
    milliseconds,
    moment,
    named,
    number,
    sentences,
    table,
)

_LISTED_GAPS = 200
_IN_LEGEND = 6  # more would leave no room for the curves on a phone
_GAIN, _LOSS, _QUIET = "#0b5cad", "#b3470e", "#8c959f"
_SIDES = {Side.BUY: "bought", Side.SELL: "sold"}
_WEEKS = 12  # at least, lest a day be as wide as the page
_NO_CURRENCY = "not named"
_NO_COIN = "a coin that the symbol does not tell"
_TWO_ABOVE_ANOTHER = {
    "xaxis": {"anchor": "y2"},
    "yaxis": {"domain": [0.42, 1], "zeroline": True},
    "yaxis2": {"domain": [0, 0.36], "zeroline": True},
}
_DAY = timedelta(days=1)
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def user_page(report: Report, *, live: int | None = None) -> Page:
    """The page; `live` is where it stands of what is stored, if it is to be kept up to date."""
    scope = report.scope
    which = "all runs" if scope.run_id is None else joined("the run ", named(report.runs[scope.run_id]))
    since = () if scope.start is None else (" from ", moment(scope.start))
    until = () if scope.end is None else (" to ", moment(scope.end))
    page = Page(
        f"Report of {report.username}",
        joined(number(report.fills), " fills of ", which, *since, *until, ", read at ", moment(report.made_at), "."),
        live=live,
    )
    if not report.fills:
        page.section("Nothing to show", element("p", "There is no fill in this time."))
    else:
        for coin, earnings in report.earnings.items():
            # Where all is settled in one coin there is nothing to tell apart.
            of = f", settled in {coin or _NO_COIN}" if len(report.earnings) > 1 else ""
            page.section(f"In short{of}", *_in_short(report, earnings))
            page.section(f"Equity and drawdown{of}", *_equity(report, earnings, of))
            page.section(f"Profit and loss by day{of}", *_days(earnings, of))
            page.section(f"Profit and loss by symbol{of}", *_symbols(earnings, of))
            page.section(f"Fees by currency{of}", *_fees(earnings, of))
        page.section("Fills over the price", *_prices(report))
        page.section("Inventory and exposure", *_positions(report))
    page.section("What it rests on", *_coverage(report))
    return page


def _in_short(report: Report, earnings: Earnings) -> Iterator[Markup]:
    whole = earnings.whole
    after = [("Profit after fees", number(earnings.result(whole)))] if earnings.after_fees else []
    yield facts(
        [
            *after,
            ("Profit before fees", number(whole.pnl)),
            *((f"Fees, {currency or _NO_CURRENCY}", number(fee)) for currency, fee in _by_currency(whole)),
            ("Deepest drawdown", number(earnings.curve.deepest)),
            ("Win rate", _percent(whole.win_rate)),
            ("Profit factor", number(whole.profit_factor)),
            ("Fills", number(whole.fills)),
            ("First fill", moment(report.first)),
            ("Last fill", moment(report.last)),
        ]
    )
    yield sentences(
        f"Win rate: {number(whole.wins)} fills closed with a profit and {number(whole.losses)} with a loss.",
        f"Profit factor: {number(whole.gained)} gained to {number(-whole.lost)} lost, before fees.",
        "A profit is what the exchange told with the fill that closed; what is still held is not in it.",
        *(
            ()
            if earnings.after_fees
            else ("Fees are in another coin than the profit, and are not subtracted on this page.",)
        ),
    )


def _equity(report: Report, earnings: Earnings, of: str) -> Iterator[Markup | Picture | None]:
    shown = most_filled(earnings.by_run, DRAWN_RUNS) if len(earnings.by_run) > 1 else []
    result = _result_name(earnings)
    traces = [
        *(
            _line(report.runs[run_id], earnings.curves[run_id], width=1) | {"showlegend": len(shown) <= _IN_LEGEND}
            for run_id in shown
        ),
        _line("all" if shown else report.runs[next(iter(earnings.by_run))], earnings.curve, width=3, color="#1b1f24"),
        _fall(earnings.curve),
    ]
    yield Picture(
        f"{result} added up fill by fill, and below it how far all is under its height before.",
        f"{result} of all runs ends at {number(earnings.curve.level)}; its deepest drawdown is "
        f"{number(earnings.curve.deepest)}. The table below has the numbers of each run.",
        traces,
        _TWO_ABOVE_ANOTHER,
        height=520,
    )
    yield _left_out(len(earnings.by_run), len(shown) or 1, "runs")
    yield table(
        f"By run{of}",
        (
            "run",
            "first fill",
            "last fill",
            "fills",
            *_result_heads(earnings),
            "deepest drawdown",
            "win rate",
            "profit factor",
        ),
        [
            (
                named(report.runs[run_id]),
                moment(report.coverage[run_id].first_ts),
                moment(report.coverage[run_id].last_ts),
                number(figures.fills),
                *_results(earnings, figures),
                number(earnings.curves[run_id].deepest),
                _percent(figures.win_rate),
                number(figures.profit_factor),
            )
            for run_id, figures in earnings.by_run.items()
        ],
        texts=3,
    )


def _days(earnings: Earnings, of: str) -> Iterator[Markup | Picture]:
    days = {day: earnings.result(figures) for day, figures in sorted(earnings.by_day.items())}
    first, last = min(days), max(days)
    monday = first - timedelta(days=first.weekday())
    weeks = [monday + timedelta(weeks=week) for week in range(max((last - monday).days // 7 + 1, _WEEKS))]
    best, worst = max(days, key=days.__getitem__), min(days, key=days.__getitem__)
    heights = [[days.get(week + timedelta(days=weekday)) for week in weeks] for weekday in range(7)]
    most = max(map(abs, days.values()))
    yield Picture(
        f"{_result_name(earnings)} of each day, a column a week: blue is a profit, orange a loss. Days are of UTC.",
        f"A calendar of {number(len(days))} days with fills: the best is {best} with {number(days[best])}, the worst "
        f"{worst} with {number(days[worst])}. The table below has each day.",
        [
            {
                "type": "heatmap",
                "x": [week.isoformat() for week in weeks],
                "y": _WEEKDAYS,
                "z": [[None if value is None else _ink(value) for value in row] for row in heights],
                "text": [[_cell(week + timedelta(days=weekday), days) for week in weeks] for weekday in range(7)],
                "hoverinfo": "text",
                "zmin": -_ink(most) or -1,
                "zmax": _ink(most) or 1,
                "colorscale": [[0, _LOSS], [0.5, "#f6f8fa"], [1, _GAIN]],
                "showscale": False,
                "xgap": 2,
                "ygap": 2,
            }
        ],
        {
            "yaxis": {"autorange": "reversed", "fixedrange": True, "showgrid": False},
            "xaxis": {"type": "category", "nticks": 8, "showgrid": False},
        },
        times=False,
        height=280,
    )
    yield folded(
        f"Each of the {number(len(days))} days",
        table(
            f"By day, UTC{of}",
            ("day", "fills", *_result_heads(earnings), "win rate"),
            [
                (str(day), number(figures.fills), *_results(earnings, figures), _percent(figures.win_rate))
                for day, figures in sorted(earnings.by_day.items())
            ],
        ),
    )


def _symbols(earnings: Earnings, of: str) -> Iterator[Markup | Picture]:
    symbols = dict(sorted(earnings.by_symbol.items(), key=lambda item: (-earnings.result(item[1]), item[0])))
    results = [earnings.result(figures) for figures in symbols.values()]
    yield Picture(
        f"{_result_name(earnings)} of each symbol.",
        f"Bars of {number(len(symbols))} symbols; the table below has their numbers.",
        [
            {
                "type": "bar",
                "x": [drawn(symbol) for symbol in symbols],
                "y": [_ink(result) for result in results],
                "text": [number(result) for result in results],
                "textposition": "none",
                "hoverinfo": "x+text",
                "marker": {"color": [_GAIN if result >= 0 else _LOSS for result in results]},
            }
        ],
        {"xaxis": {"type": "category"}, "yaxis": {"zeroline": True}},
        times=False,
        height=300,
    )
    yield table(
        f"By symbol{of}",
        (
            *("symbol", "fills", *_result_heads(earnings), "win rate", "profit factor"),
            *("bought", "at a mean of", "sold", "at a mean of"),
        ),
        [
            (
                named(symbol),
                number(figures.fills),
                *_results(earnings, figures),
                _percent(figures.win_rate),
                number(figures.profit_factor),
                *(
                    number(value)
                    for side in (Side.BUY, Side.SELL)
                    for value in (figures.quantity[side], figures.mean_price(side))
                ),
            )
            for symbol, figures in symbols.items()
        ],
    )


def _fees(earnings: Earnings, of: str) -> Iterator[Markup]:
    yield table(
        f"Fees{of}; what is negative is a rebate",
        ("currency", "in all"),
        [(named(currency or _NO_CURRENCY), number(fee)) for currency, fee in _by_currency(earnings.whole)],
    )
    yield element(
        "p",
        "A fee without a currency is one of a contract, in the coin that it is settled in.",
        class_="quiet",
    )


def _prices(report: Report) -> Iterator[Markup | Picture | None]:
    shown = most_filled(report.by_symbol, DRAWN)
    yield _left_out(len(report.by_symbol), len(shown), "symbols")
    for symbol in shown:
        prices, figures = report.prices[symbol], report.by_symbol[symbol]
        candles = prices.candles
        traces: list[dict[str, Any]] = []
        if candles:
            traces.append(
                {
                    "type": "candlestick",
                    "name": "price",
                    "x": [milliseconds(candle.open_ts) for candle in candles],
                    **{
                        name: [_ink(getattr(candle, name)) for candle in candles]
                        for name in ("open", "high", "low", "close")
                    },
                    "increasing": {"line": {"color": _QUIET, "width": 1}, "fillcolor": "#fff"},
                    "decreasing": {"line": {"color": _QUIET, "width": 1}, "fillcolor": _QUIET},
                }
            )
        for side, mark, color in ((Side.BUY, "triangle-up", _GAIN), (Side.SELL, "triangle-down", _LOSS)):
            of_side = [fill for fill in prices.fills if fill.side == side]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": _SIDES[side],
                    "x": [milliseconds(fill.when) for fill in of_side],
                    "y": [_ink(fill.price) for fill in of_side],
                    "text": [f"{number(fill.quantity)} at {number(fill.price)}" for fill in of_side],
                    "hoverinfo": "x+text+name",
                    "marker": {"symbol": mark, "color": color, "size": 7},
                }
            )
        yield Picture(
            joined(named(symbol), f": {_what_is_drawn(report, symbol)}."),
            f"{symbol}: "
            + ", ".join(
                f"{told} {number(figures.quantity[side])} at a mean of {number(figures.mean_price(side))}"
                for side, told in _SIDES.items()
            ),
            traces,
            {"xaxis": {"rangeslider": {"visible": False}}},
        )


def _positions(report: Report) -> Iterator[Markup | Picture | None]:
    shown = most_filled(report.by_position, DRAWN)
    yield _left_out(len(report.by_position), len(shown), "positions")
    for run_id, symbol in shown:
        position = report.positions[run_id, symbol]
        times = [milliseconds(when + report.interval) for when, _, _ in position.course]
        yield Picture(
            joined(named(report.runs[run_id]), ", ", named(symbol), ": quantity held, and its value below it."),
            f"{report.runs[run_id]}, {symbol}: {number(position.held)} held at the end, below zero if it is short.",
            [
                _step("held", times, [held for _, held, _ in position.course], _GAIN, "y"),
                _step("value", times, [value for _, _, value in position.course], _LOSS, "y2"),
            ],
            _TWO_ABOVE_ANOTHER,
        )
    yield table(
        "Held at the end: what the fills bought less what they sold, below zero if it is short",
        ("run", "symbol", "held", "last price", "value at it"),
        [
            (named(report.runs[run_id]), named(symbol), number(position.held), *_worth(report, symbol, position.held))
            for (run_id, symbol), position in report.positions.items()
        ],
        texts=2,
    )


def _coverage(report: Report) -> Iterator[Markup]:
    yield table(
        "Fills stored of each run, at whatever time",
        ("run", "first", "last", "fills"),
        [
            (named(report.runs[each.run_id]), moment(each.first_ts), moment(each.last_ts), number(each.count))
            for each in report.coverage.values()
        ],
        texts=3,
    )
    if not report.prices:
        return
    yield table(
        f"Trades of the exchange, from the first to the last fill of a symbol; a gap is more than "
        f"{report.gap_seconds:g} s without one",
        ("symbol", "first stored", "last stored", "gaps", "longest", "in all"),
        [
            (
                named(symbol),
                *((moment(each.first_ts), moment(each.last_ts)) if (each := prices.coverage) else ("-", "-")),
                number(len(prices.gaps)),
                *(str(length) for length in _lengths(gap.length for gap in prices.gaps)),
            )
            for symbol, prices in report.prices.items()
        ],
        texts=3,
    )
    gaps = sorted(
        ((symbol, gap) for symbol, prices in report.prices.items() for gap in prices.gaps),
        key=lambda each: each[1].length,
        reverse=True,
    )
    if gaps:
        listed = gaps[:_LISTED_GAPS]
        yield folded(
            f"{number(len(gaps))} gaps"
            if gaps == listed
            else f"The {number(len(listed))} longest of {number(len(gaps))} gaps",
            table(
                "Times without a trade, the longest first",
                ("symbol", "from", "to", "length"),
                [(named(symbol), moment(gap.start_ts), moment(gap.end_ts), str(gap.length)) for symbol, gap in listed],
                texts=3,
            ),
        )


def _result_name(earnings: Earnings) -> str:
    return "Profit after fees" if earnings.after_fees else "Profit before fees"


def _result_heads(earnings: Earnings) -> tuple[str, ...]:
    return ("before fees", "fees", "after fees") if earnings.after_fees else ("before fees",)


def _results(earnings: Earnings, figures: Figures) -> tuple[str, ...]:
    before, after = number(figures.pnl), earnings.result(figures)
    return (before, number(figures.pnl - after), number(after)) if earnings.after_fees else (before,)


def _by_currency(figures: Figures) -> list[tuple[str | None, Decimal]]:
    return sorted(figures.fees.items(), key=lambda item: item[0] or "")


def _worth(report: Report, symbol: str, held: Decimal) -> tuple[str, str]:
    prices = report.prices.get(symbol)
    price = None if prices is None else prices.last_price
    return number(price), number(None if price is None else held * price)


def _percent(value: Decimal | None) -> str:
    return "-" if value is None else f"{number(value)} %"


def _lengths(lengths: Iterable[timedelta]) -> tuple[timedelta | str, timedelta | str]:
    found = list(lengths)
    return (max(found), sum(found, timedelta(0))) if found else ("-", "-")


def _length(interval: timedelta) -> str:
    minutes = interval // timedelta(minutes=1)
    return "a day" if interval == _DAY else f"{minutes // 60} h" if minutes % 60 == 0 else f"{minutes} min"


def _what_is_drawn(report: Report, symbol: str) -> str:
    prices, length = report.prices[symbol], _length(report.interval)
    each = len(prices.fills) == report.by_symbol[symbol].fills
    marks = "each fill" if each else f"the fills of each {length}, at their mean price"
    over = f"over candles of {length}" if prices.candles else "without a price: no trade of the exchange is stored"
    return f"{marks}, {over}"


def _left_out(there: int, shown: int, what: str) -> Markup | None:
    if there <= shown or shown == 1:
        return None
    return element("p", f"Drawn are the {number(shown)} {what} with the most fills, of {number(there)}.")


def _cell(day: date, days: dict[date, Decimal]) -> str:
    return f"{day}: {number(days.get(day))}"


def _ink(value: Decimal) -> float:
    return float(f"{value:.7g}")


def _line(name: str, curve: Curve, *, width: int, color: str | None = None) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": drawn(name),
        "x": [milliseconds(when) for when, _, _ in curve.points],
        "y": [_ink(level) for _, level, _ in curve.points],
        "line": {"shape": "hv", "width": width, **({} if color is None else {"color": color})},
    }


def _fall(curve: Curve) -> dict[str, Any]:
    falls = {"name": "drawdown", "y": [-_ink(fall) for _, _, fall in curve.points], "yaxis": "y2", "fill": "tozeroy"}
    return _line("drawdown", curve, width=1, color=_LOSS) | falls


def _step(name: str, times: list[int], values: list[Decimal], color: str, axis: str) -> dict[str, Any]:
    line = {"shape": "hv", "width": 2, "color": color}
    whole = {"type": "scatter", "mode": "lines", "name": name, "x": times, "y": [_ink(value) for value in values]}
    return whole | {"line": line, "yaxis": axis}
