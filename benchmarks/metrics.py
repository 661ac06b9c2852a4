"""`python -m benchmarks.metrics`: points a second into InfluxDB and VictoriaMetrics, until the last one is answered."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from influxdb_client.client.write.point import Point as KeptPoint

from benchmarks.harness import print_table
from shared.metrics import InfluxDBClientWrapper, Point
from shared.metrics.tests.servers import DATABASE, PROGRAMS, Server

_POINTS, _ROUNDS = 50_000, 5


def main() -> None:
    """Print how many are made, and how many are made and written."""
    makers: dict[str, Callable[[], list[Any]]] = {
        "made": _points,
        "made as lines by influxdb-client": _kept_client_s_lines,
    }
    rows = [[name, f"{median(_made(make) for _ in range(_ROUNDS)):,.0f}"] for name, make in makers.items()]
    for kind in PROGRAMS:
        with tempfile.TemporaryDirectory(prefix="metrics-") as folder:
            server = Server(kind, Path(folder))
            try:
                rows.append([f"{kind}, made and written", f"{median(_written(server) for _ in range(_ROUNDS)):,.0f}"])
            finally:
                server.kill()
    print_table("", ["what", "points a second"], rows)


def _points() -> list[Point]:
    now = time.time_ns() - _POINTS * 10**6
    fields = {"price": 65065.8, "volume": 0.038}
    return [Point("market_data", fields, {"symbol": "BTCUSDT"}, now + number * 10**6) for number in range(_POINTS)]


def _kept_client_s_lines() -> list[str]:
    fields, now = {"price": 65065.8, "volume": 0.038}, time.time_ns()
    said = {"measurement": "market_data", "tags": {"symbol": "BTCUSDT"}, "fields": fields}
    return [KeptPoint.from_dict(said | {"time": now + number}).to_line_protocol() for number in range(_POINTS)]


def _made(make: Callable[[], list[Any]]) -> float:
    start = time.perf_counter()
    return len(make()) / (time.perf_counter() - start)


def _written(server: Server) -> float:
    with InfluxDBClientWrapper(server.url, bucket=DATABASE, timeout=60) as client:
        start = time.perf_counter()
        client.write_points(_points())
        client.flush(60)
        return client.stats.written / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
