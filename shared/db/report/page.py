"""The frame of every page: one file that asks nobody for anything, and shows its numbers without its pictures too.

What a page may do is said in its own policy: run the scripts that it brings, by their digests, and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from shared.db.errors import MissingExtraError
from shared.db.report.markup import Markup, element, joined

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
# Within <script> HTML knows no entities, so that what could end it or begin a comment is written as JSON has it.
_IN_SCRIPT = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Picture:
    """What plotly draws: its traces and layout. `said` is the same in a sentence, for who does not see it.

    The x of `traces` are milliseconds since 1970 where `times` says so, and are drawn in the reader's zone.
    """

    caption: str
    said: str
    traces: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    times: bool = True
    height: int = 380


class Page:
    """A page in the making: sections are added to it, and `html()` is the whole of it.

    `live` is where it stands of what is stored, for a page that a server keeps up to date; None for a file.
    """

    def __init__(self, title: str, *under_title: str, live: int | None = None) -> None:
        self._title = title
        self._live = live
        self._head: list[str | None] = [
            element("h1", title),
            *(element("p", line) for line in under_title),
            element("p", "Times are in ", element("span", "UTC", id="zone"), ".", class_="quiet"),
            None if live is None else element("p", "It is kept up to date.", id="live", role="status", class_="quiet"),
        ]
        self._sections: list[Markup] = []
        self._pictures: list[Picture] = []

    def section(self, heading: str, *parts: str | Picture | None) -> None:
        """Add a heading and what is below it."""
        inside = [self._figure(part) if isinstance(part, Picture) else part for part in parts]
        self._sections.append(element("section", element("h2", heading), *inside))

    def _figure(self, picture: Picture) -> Markup:
        number = len(self._pictures)
        self._pictures.append(picture)
        plot = element(
            "div", class_="plot", role="img", aria_label=picture.said, data_picture=number, style=_height(picture)
        )
        return element("figure", element("figcaption", picture.caption), plot)

    def changing(self) -> dict[str, Any]:
        """What may be another the next time, for a page that is open: its sections and its pictures."""
        return {"sections": self._sections, "pictures": [_told(picture) for picture in self._pictures]}

    def html(self) -> str:
        """The page. Raises `MissingExtraError` if it has pictures and plotly is not installed."""
        scripts = [plotly_script()] if self._pictures else []
        scripts.append(_beside("page.js"))
        allowed = " ".join(map(_digest, scripts))
        policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"
        if self._live is not None:
            policy += "; connect-src 'self'"
        head = element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="referrer", content="no-referrer"),
            element("title", self._title),
            element("style", Markup(_beside("page.css"))),
        )
        told = json.dumps(self.changing()["pictures"], separators=(",", ":"), allow_nan=False)
        body = element(
            "body",
            element("main", *self._head, *self._sections, data_live=self._live),
            element("script", Markup(told.translate(_IN_SCRIPT)), type="application/json", id="pictures"),
            *(element("script", Markup(script)) for script in scripts),
        )
        return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def number(value: Decimal | int | None) -> str:
    """A number with all its digits, without zeros that say nothing; a dash where there is none."""
    if value is None:
        return "-"
    if not value:
        return "0"  # without the sign that a Decimal's may have
    text = f"{value:,f}" if isinstance(value, Decimal) else f"{value:,}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def size(count: float) -> str:
    """A number of bytes, shortened."""
    for unit in _UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"


def moment(when: datetime | None) -> Markup:
    """A time: UTC as it is written, and in the reader's own zone once the page is open; a dash where there is none."""
    if when is None:
        return Markup("-")
    utc = when.astimezone(UTC)
    return element("time", f"{utc:%Y-%m-%d %H:%M:%S} UTC", datetime=f"{utc:%Y-%m-%dT%H:%M:%S.%f}Z")


def milliseconds(when: datetime) -> int:
    """A time as pictures have it."""
    return int(when.timestamp() * 1000)


def named(text: str) -> Markup:
    """A name that somebody gave, which does not change how the text around it is read."""
    return element("bdi", text)


def drawn(text: str) -> str:
    """A text for a picture: plotly takes tags and entities in it for markup."""
    return escape(text, quote=False)


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> Markup:
    """A table that scrolls by itself where it is wider than the page; its first `texts` columns are no numbers."""

    def cells(tag: str, row: Sequence[str], first: int, **attributes: str) -> list[Markup]:
        kinds = [None] * texts + ["number"] * (len(row) - texts)
        return [element(tag, cell, class_=kind, **attributes) for cell, kind in zip(row, kinds, strict=True)][first:]

    header = element("tr", *cells("th", head, 0, scope="col"))
    body = [element("tr", element("th", row[0], scope="row"), *cells("td", row, 1)) for row in rows]
    whole = element("table", element("thead", header), element("tbody", *body), aria_label=caption)
    scrolling = element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)
    return joined(element("p", caption, class_="caption"), scrolling)


def folded(summary: str, *inside: str) -> Markup:
    """What is shown when it is asked for."""
    return element("details", element("summary", summary), *inside)


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """What matters most, large: names and numbers."""
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in pairs))


def sentences(*lines: str) -> Markup:
    """A list of sentences."""
    return element("ul", *(element("li", line) for line in lines))


@cache
def plotly_script() -> str:
    """What draws. Raises `MissingExtraError` if plotly is not installed."""
    try:
        script = importlib.import_module("plotly.offline").get_plotlyjs()
    except ImportError as error:
        raise MissingExtraError("plotly", "report") from error
    return str(script).replace("</script", "<\\/script")


@cache
def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _height(picture: Picture) -> str:
    return f"height:{picture.height}px"


def _told(picture: Picture) -> dict[str, Any]:
    return {"traces": picture.traces, "layout": picture.layout, "times": picture.times}
