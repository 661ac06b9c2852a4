"""`Point`: one measurement, and its line in InfluxDB's line protocol."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from shared.db import InvalidValueError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_AHEAD = 60 * 10**9
_NAME = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ "})
_TEXT = str.maketrans({'"': r"\"", "\\": r"\\"})


class Point:
    """A measurement of one moment: text `tags` say of what, `fields` hold what was measured.

    Fields are numbers, which are kept as 8-byte floats whatever they are (so never money that has to be exact), bools
    or text; None is left out. `time` is an aware datetime, or an int in nanoseconds since 1970; left out, now. A series
    (measurement and tags) has one point of a moment: a later one takes its place.

    Raises `InvalidValueError` for a naive time or one more than a minute ahead, NaN and infinity, names and tags that
    are empty or hold a line break, a backslash or no text, and a point without a field.
    """

    __slots__ = ("line",)

    def __init__(
        self,
        measurement: str,
        fields: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        time: datetime | int | None = None,
    ) -> None:
        found = [f"{_name(name)}={_field(name, value)}" for name, value in fields.items() if value is not None]
        if not found:
            raise InvalidValueError("a point has at least one field that is not None", measurement)
        series = [_name(measurement), *(f"{_name(tag)}={_name((tags or {})[tag], tag)}" for tag in sorted(tags or {}))]
        if measurement[0] in "#_":
            raise InvalidValueError("a measurement that begins with # or _ is not kept", measurement)
        self.line = f"{','.join(series)} {','.join(found)} {nanoseconds(time)}"

    def __repr__(self) -> str:
        return f"<Point {self.line}>"

    def to_line_protocol(self) -> str:
        """The point as a line, in nanoseconds."""
        return self.line


def nanoseconds(moment: datetime | int | None) -> int:
    """A moment as nanoseconds since 1970, or `InvalidValueError`."""
    now = time.time_ns()
    if moment is None:
        return now
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise InvalidValueError("a naive datetime does not say which instant it means", "time")
        moment = (moment - _EPOCH) // _MICROSECOND * 1000
    if isinstance(moment, bool) or not isinstance(moment, int) or not 0 <= moment <= now + _AHEAD:
        raise InvalidValueError(f"a time lies between 1970 and a minute from now, and {moment!r} does not", "time")
    return moment


def moment_of(number: int) -> datetime:
    """Nanoseconds since 1970 as an aware datetime, UTC, cut to the microsecond."""
    return _EPOCH + number // 1000 * _MICROSECOND


def line_of(point: Any) -> str:
    """The line of a `Point`, ours or influxdb-client's; `InvalidValueError` for anything else."""
    to_line = getattr(point, "to_line_protocol", None)
    line = to_line() if callable(to_line) else None
    if not isinstance(line, str) or not line or "\n" in line:
        # influxdb-client leaves out a field that is NaN, and then may have none.
        raise InvalidValueError(f"this is no point with a field: {type(point).__name__}")
    return line


def _name(text: Any, what: str = "a name") -> str:
    if not isinstance(text, str) or not text or not text.isprintable() or "\\" in text:
        raise InvalidValueError(f"{text!r:.60} is not one line of text without a backslash", what)
    return _escaped(text)


@lru_cache(maxsize=4096)
def _escaped(text: str) -> str:
    return text.translate(_NAME)


def _field(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and "\n" not in value:
        return f'"{value.translate(_TEXT)}"'
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidValueError(f"{value!r:.60} is neither a finite number nor a bool or one line of text", name)
    return repr(number)
