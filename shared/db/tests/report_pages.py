"""What the tests of pages need: a user with much to show, and a page as its reader meets it."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any

from sqlalchemy.orm import Session

from shared.db import (
    BybitAccount,
    DatabaseFactory,
    PrivateExecutionRepository,
    PublicTradeRepository,
    Run,
    Strategy,
)
from shared.db.tests.support import trade_values

FIRST = datetime(2025, 5, 1, 22, 30, tzinfo=UTC)
# What would be markup, end a script, or be a link and a placeholder where plotly reads it.
HOSTILE = "<script>alert(1)</script>"
HOSTILE_SYMBOL = "</script><img src=x>"
HOSTILE_TYPE = '"><a href="https://evil.example/">%{x}</a>&amp;'
_TAKES_NO_END = {"meta", "br", "img", "link", "input"}


def trade_for(
    db: DatabaseFactory, user: str, fills: int = 120, symbols: tuple[str, ...] = ("BTCUSDT", "ETHUSDT"), seed: int = 1
) -> dict[str, list[dict[str, Any]]]:
    """Give a user of `fleet` an account with hostile names and a run on each symbol; the fills of each run."""
    chance = random.Random(seed)
    told: dict[str, list[dict[str, Any]]] = {}
    with db.get_session(user_id=user) as session:
        account = BybitAccount(user_id=user, account_name=f"{HOSTILE}{user}", environment="testnet")
        session.add(account)
        session.flush()
        for symbol in symbols:
            run = _run(session, user, account.account_id, symbol)
            told[run] = [_fill(chance, run, account.account_id, symbol, number) for number in range(fills)]
            PrivateExecutionRepository(session).bulk_create(told[run])
    return told


def store_prices(db: DatabaseFactory, symbol: str = "BTCUSDT", hours: int = 40) -> None:
    """Two trades an hour, but for five hours in between."""
    with db.get_session() as session:
        PublicTradeRepository(session).bulk_create(
            trade_values(
                number,
                symbol=symbol,
                exchange_ts=FIRST + timedelta(minutes=30 * number),
                price=Decimal(100) + Decimal(number) / 7 // Decimal("0.01") / 100,
            )
            for number in range(2 * hours)
            if not 20 <= number < 30
        )


def _run(session: Session, user: str, account_id: str, symbol: str) -> str:
    strategy = Strategy(account_id=account_id, strategy_type="Grid", symbol=symbol, config_json={})
    session.add(strategy)
    session.flush()
    run = Run(user_id=user, account_id=account_id, strategy_id=strategy.strategy_id, run_type="live", start_ts=FIRST)
    session.add(run)
    session.flush()
    return run.run_id


def _fill(chance: random.Random, run: str, account: str, symbol: str, number: int) -> dict[str, Any]:
    side = chance.choice(("Buy", "Sell"))
    closes = side == "Sell" and chance.random() < 0.8
    return {
        "run_id": run,
        "account_id": account,
        "symbol": symbol,
        "exec_id": f"{symbol}-{number}",
        "order_id": f"order-{number // 2}",
        "exchange_ts": FIRST + timedelta(minutes=17 * number, microseconds=chance.randrange(1_000_000)),
        "side": side,
        "exec_price": Decimal(chance.randrange(9_000_000_000, 11_000_000_000)).scaleb(-8),
        "exec_qty": Decimal(chance.randrange(1, 400_000_000)).scaleb(-8),
        "exec_fee": chance.choice((None, Decimal(0), Decimal(chance.randrange(-99_999, 999_999_999)).scaleb(-8))),
        "closed_pnl": Decimal(chance.randrange(-900_000_000, 999_999_999)).scaleb(-8) if closes else None,
        "raw_json": None,
    }


class Read(HTMLParser):
    """A page as a browser takes it apart: its elements with their attributes, its text, its tables and its pictures."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self.facts: dict[str, str] = {}
        self.open: list[str] = []
        self._scripts: list[str] = []
        self._rows: list[list[str]] = []
        self._term = ""
        self.feed(html)
        self.close()
        assert self.open == [], "elements that nobody ends"
        self.pictures: list[dict[str, Any]] = json.loads(self._scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attrs)))
        if tag not in _TAKES_NO_END:
            self.open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs)["aria-label"] or "", [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "dt":
            self._term = ""
        elif tag == "script":
            self._scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        """End the innermost element, which must be this one."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text."""
        if "script" in self.open:
            self._scripts[-1] += data
            return
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self._rows[-1][-1] += data
        elif "dt" in self.open:
            self._term += data
        elif "dd" in self.open:
            self.facts[self._term] = self.facts.get(self._term, "") + data

    def column(self, table: str, heading: str) -> dict[str, str]:
        """The cells of a column, by the first cell of their row."""
        head, *rows = next(rows for caption, rows in self.tables.items() if caption.startswith(table))
        return {row[0]: row[head.index(heading)] for row in rows}
