"""The pages as a reader meets them, in a real Chromium at the width of a desk and of a phone.

On one database: that the numbers of a page are each database's own is for `test_report.py`.
Needs the program `chromium` and the group `browser`, and runs with `pytest -m browser` only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from shared.db import DatabaseFactory, PrivateExecutionRepository, RunRepository
from shared.db.report.live import live_app, logins_for
from shared.db.report.page import number
from shared.db.report.status_page import status_page
from shared.db.report.user_report import write_report
from shared.db.tests.report_pages import HOSTILE, store_prices, trade_for
from shared.db.tests.serving import uvicorn_serving

pytestmark = pytest.mark.browser
WIDTHS = (1280, 390)
ZONE = "Asia/Kolkata"  # half an hour from any whole one


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, without a window."""
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("these tests need the program chromium: apt-get install chromium", pytrace=False)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its own sandbox needs what containers do not give; the pages are ours.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that is open, and what happened in it."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Note what it asks for and complains of from now on."""
        self.page.on("request", lambda asked: self.requests.append(asked.url))
        self.page.on("console", lambda said: self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))

    def look_at_all(self) -> None:
        """Scroll through it, so that all is drawn."""
        for number_of_it in range(self.page.locator(".plot").count()):
            plot = self.page.locator(".plot").nth(number_of_it)
            plot.scroll_into_view_if_needed()
            plot.locator(".main-svg").first.wait_for()
        self.page.evaluate("window.scrollTo(0, 0)")

    def facts(self) -> dict[str, str]:
        """The large numbers at the top."""
        names, values = (self.page.locator(f"dl {tag}").all_inner_texts() for tag in ("dt", "dd"))
        return dict(zip(names, values, strict=True))


@contextmanager
def visiting(browser: Any, file: Path, width: int) -> Iterator[Visit]:
    """A page that was looked at from top to bottom in a window of one width; its screenshot where it is asked for."""
    window = browser.new_context(
        viewport={"width": width, "height": 900}, timezone_id=ZONE, locale="en-GB", reduced_motion="reduce"
    )
    opened = Visit(window.new_page())
    opened.listen()
    opened.page.goto(file.as_uri())
    opened.look_at_all()
    yield opened
    if folder := os.environ.get("GRIDBOT_TEST_SCREENSHOTS"):
        opened.page.screenshot(path=Path(folder) / f"{file.stem}-{width}.png", full_page=True)
    window.close()


@pytest.fixture(params=WIDTHS)
def visit(
    browser: Any, request: pytest.FixtureRequest, policed_fleet: DatabaseFactory, tmp_path: Path
) -> Iterator[Visit]:
    """The report of ann, who has hostile names."""
    trade_for(policed_fleet, "ann")
    trade_for(policed_fleet, "bob", seed=2)
    store_prices(policed_fleet)
    write_report(policed_fleet, tmp_path / "report.html", "name-ann")
    with visiting(browser, tmp_path / "report.html", request.param) as opened:
        yield opened


def test_the_page_opens_in_peace_and_alone(visit: Visit, tmp_path: Path) -> None:
    """It draws every picture, complains of nothing, asks for nothing but itself, and is as wide as the window."""
    assert visit.page.locator(".plot[data-drawn] .main-svg").count() >= visit.page.locator(".plot").count() >= 7
    assert visit.complaints == []
    assert visit.requests == [(tmp_path / "report.html").as_uri()]
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_for_operators_opens_in_peace_too(
    browser: Any, width: int, policed_fleet: DatabaseFactory, tmp_path: Path
) -> None:
    """With no picture, no complaint and no request, as wide as the window, and its times in the reader's zone."""
    health = policed_fleet.health()
    (tmp_path / "status.html").write_text(status_page(health.with_problem("run: python -m shared.db migrate up")))
    with visiting(browser, tmp_path / "status.html", width) as visit:
        assert visit.complaints == []
        assert visit.requests == [(tmp_path / "status.html").as_uri()]
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        local = health.checked_at.astimezone(ZoneInfo(ZONE))
        assert f"Looked at {local.day} {local:%b %Y, %H:%M:%S}" in visit.page.locator("main").inner_text()


@pytest.mark.parametrize("width", WIDTHS)
def test_an_open_page_follows_what_is_stored(browser: Any, width: int, policed_fleet: DatabaseFactory) -> None:
    """A fill that comes is in its numbers, while what was unfolded stays so and the keyboard stays where it was."""
    ((fill, *_), *_) = trade_for(policed_fleet, "ann", 20).values()
    logins = logins_for(policed_fleet, ["name-ann"])
    with uvicorn_serving(live_app(policed_fleet, logins, 0.1)) as ask:
        window = browser.new_context(viewport={"width": width, "height": 900}, timezone_id=ZONE, locale="en-GB")
        opened = Visit(window.new_page())
        opened.listen()
        address = f"http://127.0.0.1:{ask.port}/"
        opened.page.goto(f"{address}?token={next(iter(logins))}")
        assert opened.page.url == address
        opened.look_at_all()
        days = opened.page.locator("summary").first
        days.focus()
        days.press("Enter")
        assert opened.facts()["Fills"] == "41"
        with policed_fleet.get_session(user_id="ann") as session:
            late = fill | {"exec_id": "late", "exchange_ts": fill["exchange_ts"] + timedelta(hours=3)}
            PrivateExecutionRepository(session).bulk_create([late])
        opened.page.get_by_text("Brought up to date at").wait_for()
        opened.look_at_all()
        assert opened.facts()["Fills"] == "42"
        assert opened.page.locator("details[open]").count() == 1
        assert opened.page.evaluate("document.activeElement.tagName") == "SUMMARY"
        assert opened.complaints == []
        assert {asked.partition("?")[0] for asked in opened.requests} == {address, f"{address}figures"}
        window.close()


def test_the_numbers_in_the_window_are_the_database_s(visit: Visit, policed_fleet: DatabaseFactory) -> None:
    """What a reader sees at the top is what the totals of the runs add up to."""
    with policed_fleet.get_session(user_id="ann", read_only=True) as session:
        totals = [
            PrivateExecutionRepository(session).totals(run.run_id)
            for run in RunRepository(session).get_by_user_id("ann")
        ]
    seen = visit.facts()
    assert seen["Fills"] == number(sum(each.count for each in totals))
    assert seen["Profit before fees"] == number(sum(each.closed_pnl for each in totals))
    assert seen["Fees, not named"] == number(sum(each.fees or 0 for each in totals))


def test_times_are_in_the_zone_of_the_reader(visit: Visit, policed_fleet: DatabaseFactory) -> None:
    """The first fill is told as the reader's own clock showed it, and pictures have the same hours."""
    with policed_fleet.get_session(user_id="ann", read_only=True) as session:
        coverage = PrivateExecutionRepository(session).coverage()
        first = min(each.first_ts or datetime.now(UTC) for each in coverage)
    local = first.astimezone(ZoneInfo(ZONE))
    assert visit.page.locator("#zone").inner_text() in (ZONE, "Asia/Calcutta")
    assert visit.facts()["First fill"] == f"{local.day} {local:%b %Y, %H:%M:%S}"
    drawn = visit.page.evaluate(
        "document.querySelector('[aria-label^=\"BTCUSDT:\"]').data.find(trace => trace.name === 'bought').x"
    )
    with policed_fleet.get_session(user_id="ann", read_only=True) as session:
        runs = RunRepository(session).get_by_user_id("ann")
        bought = [
            fill.exchange_ts
            for run in runs
            for fill in PrivateExecutionRepository(session).iter_run_range(run.run_id, symbol="BTCUSDT")
            if fill.side == "Buy"
        ]
    assert drawn == [f"{when.astimezone(ZoneInfo(ZONE)):%Y-%m-%d %H:%M:%S}" for when in sorted(bought)]


def test_a_hostile_name_is_seen_as_it_is(visit: Visit) -> None:
    """In the tables and in what plotly wrote; nothing of it ran, and another user's is nowhere."""
    assert f"{HOSTILE}ann BTCUSDT" in visit.page.locator("main").inner_text()
    written = " ".join(visit.page.locator("svg text").all_text_contents())
    assert f"{HOSTILE}ann" in written
    assert "bob" not in visit.page.locator("main").inner_text() + written
    assert visit.page.locator("main script, svg script").count() == 0


def test_a_keyboard_reaches_what_is_folded_and_what_scrolls(visit: Visit) -> None:
    """By Tab alone, and Enter opens the days."""
    reached: set[str] = set()
    for _ in range(200):
        visit.page.keyboard.press("Tab")
        tag = visit.page.evaluate("document.activeElement.tagName + '.' + document.activeElement.className")
        if tag == "BODY.":
            break
        reached.add(tag)
        if tag == "SUMMARY.":
            visit.page.keyboard.press("Enter")
    assert {"DIV.scroll", "SUMMARY."} <= reached
    assert visit.page.locator("details[open]").count() == visit.page.locator("details").count() >= 1


def test_text_has_enough_contrast(visit: Visit) -> None:
    """Each text of the page against what is behind it: 4.5 to 1, as WCAG asks (AA)."""
    pairs = visit.page.evaluate(
        """() => [...document.querySelectorAll('main *')].filter(e => e.textContent.trim()).map(e => {
            let behind = e, back = 'rgba(0, 0, 0, 0)';
            while (behind && back === 'rgba(0, 0, 0, 0)') {
                back = getComputedStyle(behind).backgroundColor; behind = behind.parentElement;
            }
            return [getComputedStyle(e).color, back];
        })"""
    )
    found = {_contrast(*pair) for pair in {tuple(pair) for pair in pairs}}
    assert min(found) >= 4.5


def _contrast(one: str, other: str) -> float:
    """Of two colours as CSS writes them: https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio."""

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
