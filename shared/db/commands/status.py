"""`python -m shared.db status`: what `db.health()` finds, for people and for monitors."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator

from shared.db.commands.arguments import settings_from_arguments
from shared.db.database import DatabaseFactory
from shared.db.health.report import Health
from shared.db.report.page import size
from shared.db.report.status_page import read_before, status_page


def add_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` its arguments; the function that runs the command."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--prometheus", action="store_true", help="print metrics for Prometheus, exit with 0")
    form.add_argument("--html", action="store_true", help="print a page to look at")
    parser.add_argument(
        "--before",
        metavar="FILE",
        help="with --html: what --json printed earlier; the page tells the growth since then",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="read everything and look for damage (takes its time; PostgreSQL needs the extension amcheck)",
    )
    parser.add_argument("--timeout", type=_seconds, default=5.0, metavar="SECONDS", help="wait no longer (default: 5)")

    def run(options: argparse.Namespace) -> int:
        if options.before is not None and not options.html:
            parser.error("--before is for --html, which tells the growth since then")
        before = None if options.before is None else read_before(options.before)
        with DatabaseFactory(settings_from_arguments(options)) as db:
            health = db.health(check=options.check, timeout=options.timeout)
        if options.json:
            print(json.dumps(health.as_dict()))
        elif options.html:
            # In any locale: its scripts and styles have no other letters.
            print(status_page(health, before).encode("ascii", "xmlcharrefreplace").decode(), end="")
        elif options.prometheus:
            print("\n".join(_metrics(health)))
            return 0  # what is wrong is told by shared_db_up and shared_db_problems
        elif not health.reachable:
            print(f"shared.db: {'; '.join(health.problems)}", file=sys.stderr)
        else:
            print("\n".join(_lines(health)))
        return 1 if health.problems else 0

    return run


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 86400")
    return seconds


def _lines(health: Health) -> Iterator[str]:
    yield f"{health.url}: {health.version}, answers in {health.latency_ms} ms"
    revision = health.revision or "none"
    yield f"schema revision: {revision}" + (
        "" if revision == health.code_revision else f", the code's is {health.code_revision}"
    )
    if health.row_security is not None:
        yield f"row-level security: {'on' if health.row_security else 'off'}"
    if health.role == "standby":
        age = "unknown" if health.replay_lag_seconds is None else f"{health.replay_lag_seconds:.1f} s ago"
        behind = "unknown" if health.replay_lag_bytes is None else size(health.replay_lag_bytes)
        yield f"role: standby, {behind} to replay, which a promotion does first; its newest row was committed {age}"
    elif health.role is not None:
        yield f"role: {health.role}"
    for standby in health.standbys:
        missing = "unknown" if standby.missing_bytes is None else size(standby.missing_bytes)
        behind = "unknown" if standby.replay_bytes is None else size(standby.replay_bytes)
        late = "" if standby.replay_seconds is None else f" and {standby.replay_seconds:.3f} s"
        yield (
            f"  standby {standby.name} ({standby.state}, {standby.sync_state}): a promotion would lose {missing}; "
            f"its readers are {behind}{late} behind"
        )
    disk = [f"database {size(health.size_bytes)}"] if health.size_bytes is not None else []
    if health.wal_bytes is not None:
        disk.append(f"write-ahead log {size(health.wal_bytes)}")
    if health.disk_free_bytes is not None:
        disk.append(f"{size(health.disk_free_bytes)} free")
    if disk:
        yield f"on disk: {', '.join(disk)}" + (f"; journal mode {health.journal_mode}" if health.journal_mode else "")
    if health.connections is not None:
        by = ", ".join(f"{name} {count}" for name, count in sorted(health.connections.by_application.items()))
        yield (
            f"server connections: {health.connections.used} of {health.connections.limit} in use"
            + (f" (ours: {by})" if by else "")
            + f"; {health.connections.processes} of our processes may open {health.connections.possible}"
        )
    if health.tables:
        width = max(len(table.name) for table in health.tables)
        for table in health.tables:
            rows = "unknown" if table.rows is None else f"{'about ' if table.estimated else ''}{table.rows:,}"
            yield f"  {table.name:<{width}}  {rows:>18} rows" + (
                "" if table.size_bytes is None else f"  {size(table.size_bytes):>10}"
            )
    if health.not_ours:
        yield not_ours_told(health.not_ours)
    for stream in health.streams:
        yield f"newest in {stream.table} of {stream.key}: {stream.newest.isoformat()}"
    yield f"integrity: {health.integrity}" + (
        " (--check reads everything)" if health.integrity == "not checked" else ""
    )
    for warning in health.warnings:
        yield f"warning: {warning}"
    for problem in health.problems:
        yield f"problem: {problem}"
    if not health.problems:
        yield "no problem found"


_COUNTED = ("sequential_scans", "index_scans", "rows_inserted", "rows_deleted")


def _metrics(health: Health) -> Iterator[str]:
    """Prometheus' text format: https://prometheus.io/docs/instrumenting/exposition_formats/."""
    found: list[tuple[str, str, dict[str, str], float | None]] = [
        ("up", "gauge", {}, int(health.reachable)),
        ("problems", "gauge", {}, len(health.problems)),
        ("latency_seconds", "gauge", {}, None if health.latency_ms is None else health.latency_ms / 1000),
        ("size_bytes", "gauge", {}, health.size_bytes),
        ("wal_bytes", "gauge", {}, health.wal_bytes),
        ("disk_free_bytes", "gauge", {}, health.disk_free_bytes),
    ]
    found.append(("replay_lag_bytes", "gauge", {}, health.replay_lag_bytes))
    found.append(("replay_lag_seconds", "gauge", {}, health.replay_lag_seconds))
    found.extend(
        ("standby_missing_bytes", "gauge", {"standby": standby.name or ""}, standby.missing_bytes)
        for standby in health.standbys
    )
    if health.connections is not None:
        found.append(("connections_used", "gauge", {}, health.connections.used))
        found.append(("connections_limit", "gauge", {}, health.connections.limit))
    for name in ("rows", "size_bytes", *_COUNTED):
        kind, ending = ("counter", "_total") if name in _COUNTED else ("gauge", "")
        of_tables = ((table.name, getattr(table, name)) for table in health.tables)
        found.extend((f"table_{name}{ending}", kind, {"table": table}, value) for table, value in of_tables)
    found.extend(
        ("index_unused", "gauge", {"table": table.name, "index": index}, 1)
        for table in health.tables
        for index in table.unused_indexes
    )
    found.extend(
        (
            "stream_newest_timestamp_seconds",
            "gauge",
            {"table": stream.table, "key": stream.key},
            stream.newest.timestamp(),
        )
        for stream in health.streams
    )
    found.extend(("store_up", "gauge", {"store": store.name}, int(store.reachable)) for store in health.stores)
    told = ""
    for name, kind, labels, value in found:
        if value is None:
            continue
        if name != told:
            yield f"# TYPE shared_db_{name} {kind}"
            told = name
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"shared_db_{name}{'{' + inside + '}' if inside else ''} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def not_ours_told(tables: Iterable[str]) -> str:
    """What is said of tables that are in no package that is loaded."""
    return f"not ours: {', '.join(tables)} (another program's, or of a package that is not loaded: --models)"
