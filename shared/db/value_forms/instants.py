"""Datetimes as the text in which they are stored, and back, many at once: ISO 8601, UTC, to the microsecond.

The text is put together from tables of its parts, which takes a third of the time of `isoformat()`; subtracting the
epoch converts to UTC on the way. The tables are of a fixed size: one of every second of a day would grow to 10 MB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import repeat
from operator import add
from typing import Any

from shared.db.value_forms.forms import Cells, Values
from shared.db.value_forms.texts import StoredTexts

# What a stored time lacks to be read as UTC.
_UTC_OFFSET = "+00:00"
_LENGTH = len("2025-05-19 00:00:36.878000")
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


class InstantTexts(StoredTexts[datetime]):
    """Instants as such texts, without a zone."""

    @staticmethod
    def value(text: str) -> datetime:
        """The instant."""
        return datetime.fromisoformat(text + _UTC_OFFSET)

    @cached_property
    def ends(self) -> tuple[datetime, datetime]:
        """The first instant and the last: the texts sort as the instants do."""
        return self.value(min(self.texts)), self.value(max(self.texts))


def ends_of(times: Sequence[datetime]) -> tuple[datetime, datetime]:
    """The first of some instants, and the last."""
    ends: tuple[datetime, datetime] | None = getattr(times, "ends", None)  # of those that know them
    return (min(times), max(times)) if ends is None else ends


def second_text(passed: int) -> str:
    """How the text of an instant begins, up to the point, by the seconds since 1970."""
    day, second = divmod(passed, 24 * 60 * 60)
    return f"{_DAYS[day]}{_MINUTES[second // 60]}{_SECONDS[second % 60]}"


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


def stored_texts(values: Values) -> Cells | None:
    """Cells without a zone; None where one of the values needs a closer look."""
    if isinstance(values, InstantTexts):
        return values.texts
    return instant_texts(values, with_zone=False) if set(map(type, values)) == {datetime} else None


def stored_texts_with_zone(values: Values) -> Cells | None:
    """Cells with +00:00 behind them; None where one of the values needs a closer look."""
    if isinstance(values, InstantTexts):
        return list(map(add, values.texts, repeat(_UTC_OFFSET)))
    return instant_texts(values, with_zone=True) if set(map(type, values)) == {datetime} else None


def from_stored_texts(stored: Sequence[str | None]) -> list[datetime | None]:
    """The way back from texts without a zone. `ValueError` or `TypeError` for what is none."""
    if None in stored:
        return [None if text is None else datetime.fromisoformat(text + _UTC_OFFSET) for text in stored]
    return list(map(datetime.fromisoformat, map(add, stored, repeat(_UTC_OFFSET))))


def iso_text(value: Any) -> str | None:
    """A datetime as text that gives it back, in its own zone or without one; None for whatever has no such text."""
    if not isinstance(value, datetime):
        return None
    try:
        text = value.isoformat()
        # pandas has one with nanoseconds
        return text if type(value) is datetime or datetime.fromisoformat(text) == value else None
    except Exception:  # noqa: BLE001 # of a time zone that does not work; told when the row is written
        return None


def unchanged(cells: Cells) -> Cells:
    """Stored texts as they are; `ValueError` if one has not the length of all."""
    if not {_LENGTH}.issuperset(map(len, cells)):
        raise ValueError
    return cells


def with_offset(cells: Cells) -> Cells:
    """The same as PostgreSQL takes them."""
    return [f"{cell}+00" for cell in unchanged(cells)]
