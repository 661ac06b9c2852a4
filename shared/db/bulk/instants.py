"""Datetimes as the text in which they are stored, many at once: ISO 8601, UTC, to the microsecond.

The text is put together from tables of its parts, which takes a third of the time of `isoformat()`; subtracting the
epoch converts to UTC on the way. The tables are of a fixed size: one of every second of a day would grow to 10 MB.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_DAY = (datetime(1, 1, 2, tzinfo=UTC) - _EPOCH).days
_LAST_DAY = (datetime(9999, 12, 29, tzinfo=UTC) - _EPOCH).days
_MANY_DAYS = 1000


class _Days(dict[int, str]):
    """Dates by the days since the epoch, each made once; `KeyError` for what `UTCDateTime` looks at more closely."""

    def __missing__(self, day: int) -> str:
        if not _FIRST_DAY <= day <= _LAST_DAY:
            raise KeyError(day)
        if len(self) >= _MANY_DAYS:
            self.clear()
        text = self[day] = (_EPOCH + timedelta(days=day)).date().isoformat()
        return text


_DAYS = _Days()
_MINUTES = [f" {minute // 60:02d}:{minute % 60:02d}:" for minute in range(24 * 60)]
_SECONDS = [f"{second:02d}." for second in range(60)]
_MILLIS = [f"{number:03d}" for number in range(1000)]
_MICROS_WITH_ZONE = [f"{number:03d}+00:00" for number in range(1000)]


def instant_texts(values: Iterable[datetime], *, with_zone: bool) -> list[str] | None:
    """The texts, such as 2025-05-19 12:00:00.123456, with +00:00 behind it or without.

    None if one of the values is naive, or within a day of the first or last that datetime can hold.
    """
    micros = _MICROS_WITH_ZONE if with_zone else _MILLIS
    try:
        return [
            f"{_DAYS[(passed := value - _EPOCH).days]}{_MINUTES[(second := passed.seconds) // 60]}"
            f"{_SECONDS[second % 60]}{_MILLIS[(micro := passed.microseconds) // 1000]}{micros[micro % 1000]}"
            for value in values
        ]
    except (TypeError, KeyError):
        return None
