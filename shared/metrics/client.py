"""`InfluxDBClientWrapper`: points to InfluxDB or VictoriaMetrics, and rows from there."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Self
from urllib.parse import urlencode

import urllib3

from shared.db import InvalidValueError, TenantScopeError
from shared.metrics.errors import MetricsAwayError, MetricsError
from shared.metrics.points import Point, line_of, moment_of, nanoseconds
from shared.metrics.writer import MetricsStats, Writer

Row = dict[str, Any]
_MARKET, _TRADES, _PERFORMANCE, _SYSTEM = "market_data", "trades", "performance_metrics", "system_metrics"
_TRADE_TAGS = ("bot_id", "symbol", "side")
_NOT_NOW = (408, 429, 500, 502, 503, 504)


class InfluxDBClientWrapper:
    """Writes points in the background and reads rows: InfluxDB by `/write` and `/query`, VictoriaMetrics by PromQL.

    Points are floats and may be lost: measurements, and no money. They are written `batch_size` at a time, or when they
    have waited for `interval` seconds. While the server is away up to `max_waiting` wait, then the oldest are dropped
    and counted in `stats`. What the server refuses is raised as `MetricsError` by the next write, `flush` or
    `disconnect`. Safe to share between threads; usable as a context manager.

    `bucket` is the database of InfluxDB 1. `timeout` is in seconds, for one call.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        org: str = "",
        bucket: str = "gridbot",
        *,
        batch_size: int = 5000,
        interval: float = 1.0,
        max_waiting: int = 100_000,
        timeout: float = 5.0,
    ) -> None:
        if batch_size < 1 or max_waiting < 1 or not interval >= 0 or not timeout > 0:
            raise InvalidValueError("batch_size and max_waiting are 1 or more, timeout above 0, interval 0 or more")
        try:
            address = urllib3.util.parse_url(url)
        except urllib3.exceptions.LocationParseError:
            address = urllib3.util.Url()
        if address.scheme not in ("http", "https") or not address.host or address.auth:
            raise InvalidValueError("the url is http://host:port or https://host:port; a password goes into the token")
        self._url, self._timeout = url.rstrip("/"), timeout
        self._where = {"db": bucket} | ({"org": org} if org else {})
        headers = {"Authorization": f"Token {token}"} if token else {}
        self._http = urllib3.PoolManager(headers=headers, timeout=timeout, retries=False, maxsize=4)
        self._kind: list[bool] = []  # whether it is an InfluxDB, once that is known
        self._writer = Writer(self._send, batch_size, interval, max_waiting)
        self.user_id: str | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.user_id or 'all'}>"

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *error: object) -> None:
        self.disconnect()

    @property
    def stats(self) -> MetricsStats:
        """What became of the points so far."""
        return self._writer.stats

    def for_user(self, user_id: str) -> Self:
        """The same connection for one user: its writers tag points with the user, its readers see no other's."""
        if not isinstance(user_id, str) or not user_id:
            raise TenantScopeError(f"{user_id!r} is not a user id; look the user up first")
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__, user_id=user_id)
        return other

    def connect(self) -> None:
        """Look whether the server is there. Away is no error: points wait for it."""
        self.health_check()

    def disconnect(self, timeout: float = 10.0) -> None:
        """Write what waits and close. Raises as `flush` does; what could not be written is dropped then."""
        try:
            self._writer.close(timeout)
        finally:
            self._http.clear()

    def flush(self, timeout: float = 10.0) -> None:
        """Return when all points are written.

        Raises `MetricsAwayError` at the first failure or after `timeout` seconds (they wait on), and `MetricsError` for
        what the server refused.
        """
        self._writer.flush(timeout)

    def health_check(self) -> bool:
        """Whether the server answers."""
        try:
            self._is_influx(anew=True)
        except MetricsError:
            return False
        return True

    def write_point(self, point: Any) -> None:
        """Take a `Point`, ours or influxdb-client's."""
        self.write_points([point])

    def write_points(self, points: Iterable[Any]) -> None:
        """Take points, all of them or none: `InvalidValueError` for what is none. Waits for nothing."""
        self._writer.add([line_of(point) for point in points])

    def write_market_data(self, symbol: str, price: float, volume: float, timestamp: datetime | None = None) -> None:
        """Write a price and a volume of a symbol."""
        self.write_point(self._point(_MARKET, {"price": price, "volume": volume}, {"symbol": symbol}, timestamp))

    def write_trade_data(self, trade_data: Mapping[str, Any]) -> None:
        """Write a trade: `bot_id`, `symbol` and `side`, its `timestamp`, and any numbers and text (`price`, ...).

        Two trades of a series at one moment are kept apart by their `trade_id`.
        """
        missing = [name for name in _TRADE_TAGS if trade_data.get(name) is None]
        if missing:
            raise InvalidValueError(f"a trade names its {', '.join(missing)}")
        rest = {name: value for name, value in trade_data.items() if name not in (*_TRADE_TAGS, "timestamp")}
        moment = nanoseconds(trade_data.get("timestamp"))
        if rest.get("trade_id") is not None and moment % 1000 == 0:
            moment += zlib.crc32(str(rest["trade_id"]).encode()) % 1000
        self.write_point(self._point(_TRADES, rest, {name: trade_data[name] for name in _TRADE_TAGS}, moment))

    def write_performance_metrics(
        self, bot_id: str, metrics: Mapping[str, Any], timestamp: datetime | None = None
    ) -> None:
        """Write what a bot achieved; what is None is left out."""
        self.write_point(self._point(_PERFORMANCE, metrics, {"bot_id": bot_id}, timestamp))

    def write_system_metrics(self, metrics: Mapping[str, Any], timestamp: datetime | None = None) -> None:
        """Write how a system does; text in it (`host`, ...) tells systems apart."""
        tags = {name: value for name, value in metrics.items() if isinstance(value, str)}
        fields = {name: value for name, value in metrics.items() if name not in tags}
        self.write_point(self._point(_SYSTEM, fields, tags, timestamp))

    def get_market_data(self, symbol: str, start_time: datetime, end_time: datetime) -> list[Row]:
        """What was written of a symbol from `start_time` to `end_time`, both included, in order of time.

        A row has `time` (UTC, to the microsecond), the tags and the fields, of which numbers are floats.
        """
        return self._rows(_MARKET, {"symbol": symbol}, start_time, end_time)

    def get_trade_history(self, bot_id: str, start_time: datetime, end_time: datetime) -> list[Row]:
        """The trades of a bot, as `get_market_data` gives rows."""
        return self._rows(_TRADES, {"bot_id": bot_id}, start_time, end_time)

    def get_performance_metrics(self, bot_id: str, start_time: datetime, end_time: datetime) -> list[Row]:
        """What a bot achieved, likewise."""
        return self._rows(_PERFORMANCE, {"bot_id": bot_id}, start_time, end_time)

    def get_system_metrics(self, start_time: datetime, end_time: datetime) -> list[Row]:
        """How systems did, likewise."""
        return self._rows(_SYSTEM, {}, start_time, end_time)

    def query_data(self, query: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        """The rows of a question in InfluxQL; values go into `params` and stand as `$name` in it, never pasted in.

        On VictoriaMetrics the question is PromQL, without `params`, and a row has `time`, `value` and the labels.
        """
        if self._is_influx():
            bound = {"params": json.dumps(dict(params))} if params else {}
            asked = self._ask("GET", "/query", self._where | {"q": query, "epoch": "ns"} | bound)
            return [row for result in json.loads(asked)["results"] for row in _influx_rows(result)]
        if params:
            raise InvalidValueError("PromQL has no parameters")
        found = json.loads(self._ask("GET", "/api/v1/query", {"query": query}))["data"]
        series = found["result"] if found["resultType"] == "vector" else [{"metric": {}, "value": found["result"]}]
        return [
            {"time": moment_of(int(one["value"][0] * 10**9)), "value": float(one["value"][1])} | one["metric"]
            for one in series
        ]

    def delete_data(self, start_time: datetime, end_time: datetime, measurement: str | None = None) -> None:
        """Delete what was measured from `start_time` to `end_time`, both included: of one measurement, or of all.

        Raises `MetricsError` on VictoriaMetrics, which deletes whole series alone.
        """
        if not self._is_influx():
            raise MetricsError("VictoriaMetrics deletes whole series alone; let its -retentionPeriod end them")
        start, end = _range(start_time, end_time)
        of = "" if measurement is None else f'FROM "{_escaped(measurement, chr(34))}" '
        self._ask("POST", "/query", self._where | {"q": f"DELETE {of}WHERE time >= {start} AND time <= {end}"})

    def _point(self, measurement: str, fields: Mapping[str, Any], tags: dict[str, str], time: Any) -> Point:
        return Point(measurement, fields, tags | ({"user_id": self.user_id} if self.user_id else {}), time)

    def _rows(self, measurement: str, tags: dict[str, str], start_time: datetime, end_time: datetime) -> list[Row]:
        start, end = _range(start_time, end_time)
        tags = tags | ({"user_id": self.user_id} if self.user_id else {})
        if self._is_influx():
            of = " AND ".join([*(f'"{tag}" = ${tag}' for tag in tags), f"time >= {start}", f"time <= {end}"])
            return self.query_data(f'SELECT * FROM "{measurement}" WHERE {of}', tags)
        labels = "".join(f',{tag}="{_escaped(value, chr(34))}"' for tag, value in tags.items())
        match = f'{{__name__=~"{measurement}_.+",db="{self._where["db"]}"{labels}}}'
        asked = {"match[]": match, "start": f"{start / 10**9:.3f}", "end": f"{end / 10**9:.3f}"}
        rows: dict[tuple[Any, ...], Row] = {}
        for line in self._ask("GET", "/api/v1/export", asked).splitlines():
            series = json.loads(line)
            label = series["metric"]
            field = label.pop("__name__").removeprefix(f"{measurement}_")
            del label["db"]
            for at, value in zip(series["timestamps"], series["values"], strict=True):
                row = rows.setdefault((at, *sorted(label.items())), {"time": moment_of(at * 10**6)} | label)
                row[field] = value
        return [rows[key] for key in sorted(rows)]

    def _is_influx(self, *, anew: bool = False) -> bool:
        if anew or not self._kind:
            headers = self._response("GET", "/ping", {}).headers
            self._kind[:] = ["X-Influxdb-Version" in headers]
        return self._kind[0]

    def _send(self, lines: bytes) -> None:
        self._response("POST", "/write", self._where | {"precision": "ns"}, lines)

    def _ask(self, method: str, path: str, fields: Mapping[str, str]) -> bytes:
        return self._response(method, path, fields).data

    def _response(
        self, method: str, path: str, fields: Mapping[str, str], body: bytes | None = None
    ) -> urllib3.BaseHTTPResponse:
        try:
            if body is None:
                answer = self._http.request(method, self._url + path, fields=fields)
            else:
                answer = self._http.request(method, f"{self._url}{path}?{urlencode(fields)}", body=body)
        except urllib3.exceptions.HTTPError as error:
            raise MetricsAwayError(f"the metrics server is away ({type(error).__name__})") from error
        if answer.status < 300:
            return answer
        said = f"{answer.status}: {answer.data.decode(errors='replace').strip():.300}"
        if answer.status in _NOT_NOW:
            raise MetricsAwayError(f"the metrics server cannot take or answer anything now ({said})")
        remedy = "make the database, or name another bucket" if answer.status == 404 else "correct what it names"
        raise MetricsError(f"the metrics server refused ({said}); {remedy}")


def _range(start_time: datetime, end_time: datetime) -> tuple[int, int]:
    for moment in (start_time, end_time):
        if not isinstance(moment, datetime) or moment.tzinfo is None:
            raise InvalidValueError("a range is from one aware datetime to another", "time")
    start, end = nanoseconds(min(start_time, end_time)), end_time
    return start, nanoseconds(end)


def _escaped(text: str, quote: str) -> str:
    return text.replace("\\", "\\\\").replace(quote, f"\\{quote}").replace("\n", "\\n")


def _influx_rows(result: Mapping[str, Any]) -> Iterable[Row]:
    if "error" in result:
        raise MetricsError(f"the metrics server refused the question ({result['error']}); correct it")
    for series in result.get("series", ()):
        for values in series["values"]:
            row = dict(zip(series["columns"], values, strict=True)) | series.get("tags", {})
            if isinstance(row.get("time"), int):
                row["time"] = moment_of(row["time"])
            # A float without a fraction is written as an integer there.
            yield {
                name: float(value) if type(value) is int else value for name, value in row.items() if value is not None
            }
