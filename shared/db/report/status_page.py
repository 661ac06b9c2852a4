"""What `db.health()` found, as a page for operators: problems first, then sizes, growth, streams and their lag."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from shared.db.errors import InputError
from shared.db.health.report import Health, StreamHealth, TableHealth
from shared.db.report.markup import Markup, element
from shared.db.report.page import Page, facts, moment, named, number, sentences, size, table

_SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Before:
    """An earlier look at the same database: when it was, and the rows and bytes of each table then."""

    checked_at: datetime
    rows: dict[str, int | None]
    sizes: dict[str, int | None]


def read_before(path: str | Path) -> Before:
    """An earlier look, from a file that `status --json` wrote. Raises `InputError` for a file that is none."""
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        tables = {each["name"]: each for each in told["tables"]}
        return Before(
            datetime.fromisoformat(told["checked_at"]),
            {name: each["rows"] for name, each in tables.items()},
            {name: each["size_bytes"] for name, each in tables.items()},
        )
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check the name") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no earlier look; make it by: python -m shared.db status --json > FILE") from error


def status_page(health: Health, before: Before | None = None) -> str:
    """The whole page; with an earlier look, how much each table has grown since."""
    page = Page(f"Status of {health.url}", Markup(f"Looked at {moment(health.checked_at)}."))
    page.section("Problems", *_problems(health))
    page.section("The database", facts(_itself(health)))
    if health.tables:
        page.section("Tables", *_tables(health, before))
    if health.streams:
        page.section("Streams and their lag", _streams(health))
    if health.stores:
        told = [(named(store.name), "answers" if store.reachable else "does not answer") for store in health.stores]
        page.section("Stores beside it", table("Stores", ("store", "state"), told, texts=2))
    if health.slow_statements:
        page.section("Slowest statements", _slow(health))
    return page.html()


def _problems(health: Health) -> Iterator[Markup]:
    if health.problems:
        yield element("div", sentences(*health.problems), class_="bad")
    else:
        yield element("p", "No problem found.")
    if health.warnings:
        yield element("p", "What may be meant so:")
        yield sentences(*health.warnings)
    if health.not_ours:
        yield element("p", "Tables that are not ours, or of a package not loaded: ", ", ".join(health.not_ours))


def _itself(health: Health) -> Iterator[tuple[str, str]]:
    told = {
        "Server": health.version,
        "Answers in": None if health.latency_ms is None else f"{health.latency_ms} ms",
        "Size": None if health.size_bytes is None else size(health.size_bytes),
        "Write-ahead log": None if health.wal_bytes is None else size(health.wal_bytes),
        "Free on its disk": None if health.disk_free_bytes is None else size(health.disk_free_bytes),
        "Schema revision": health.revision or "none",
        "The code's revision": None if health.revision == health.code_revision else health.code_revision,
        "Row-level security": None if health.row_security is None else "on" if health.row_security else "off",
        "Connections": None
        if health.connections is None
        else f"{number(health.connections.used)} of {number(health.connections.limit)}",
        "Integrity": health.integrity,
    }
    yield from ((name, value) for name, value in told.items() if value is not None)


def _tables(health: Health, before: Before | None) -> Iterator[Markup]:
    largest = max((each.size_bytes or 0 for each in health.tables), default=0) or 1
    grown = () if before is None else ("more rows", "more bytes", "rows a day")
    yield table(
        "Rows and bytes, indexes included" + (", and what has come since the earlier look" if before else ""),
        ("table", "", "size", "rows", *grown, "written", "deleted", "read whole", "unused indexes"),
        [
            (
                named(each.name),
                element("span", class_="bar", style=f"width:{100 * (each.size_bytes or 0) // largest}px"),
                "-" if each.size_bytes is None else size(each.size_bytes),
                f"{'about ' if each.estimated else ''}{number(each.rows)}",
                *(() if before is None else _growth(each, before, health.checked_at)),
                *map(number, (each.rows_inserted, each.rows_deleted, each.sequential_scans)),
                ", ".join(each.unused_indexes) or "-",
            )
            for each in health.tables
        ],
        texts=2,
    )
    if before is not None:
        yield element("p", "The earlier look was at ", moment(before.checked_at), ".", class_="quiet")


def _growth(now: TableHealth, before: Before, checked_at: datetime) -> tuple[str, str, str]:
    rows, then = now.rows, before.rows.get(now.name)
    more = None if rows is None or then is None else rows - then
    size_then = before.sizes.get(now.name)
    heavier = None if now.size_bytes is None or size_then is None else now.size_bytes - size_then
    passed = checked_at - before.checked_at
    daily = None if more is None or passed <= timedelta(0) else round(more * (timedelta(days=1) / passed))
    return number(more), number(heavier), number(daily)


def _streams(health: Health) -> Markup:
    return table(
        "The newest row of each key, and how long before the look it was",
        ("table", "key", "newest", "lag"),
        [
            (each.table, named(str(each.key)), moment(each.newest), _lag(each, health))
            for each in sorted(health.streams, key=lambda each: each.newest)
        ],
        texts=3,
    )


def _lag(stream: StreamHealth, health: Health) -> str:
    return str((health.checked_at - stream.newest) // _SECOND * _SECOND)


def _slow(health: Health) -> Markup:
    return table(
        "Statements that took the longest in all",
        ("statement", "calls", "ms in all", "ms each", "rows"),
        [
            (each.statement, number(each.calls), f"{each.total_ms:,.1f}", f"{each.mean_ms:,.3f}", number(each.rows))
            for each in health.slow_statements
        ],
    )
