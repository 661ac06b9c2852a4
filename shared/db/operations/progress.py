"""How far a long job is, for whoever watches a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

WHOLE = 1_000_000
"""A total for jobs that know which share of them is done, and not how much there is."""

Watch = Callable[[int, int], None]
"""What a long job tells how far it is: of its total, and the rows so far."""

_INTERVAL = 0.1


class Progress:
    """A bar with rows, rows a second and the time left on stderr; silent where stderr is no terminal.

    Drawn by tqdm where the extra `cli` is installed: one module without dependencies that knows terminal widths
    and encodings. A plain line says the same without it.
    """

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self._label = label
        self._total = total
        self._stream = stream or sys.stderr
        self._started = self._drawn = time.monotonic()
        self._shown = self._stream.isatty()
        self._bar = _tqdm_bar(label, total, self._stream) if self._shown else None

    def update(self, done: int, rows: int) -> None:
        """Show that `done` of the total is done, which made so many rows in all."""
        now = time.monotonic()
        if not self._shown or now - self._drawn < _INTERVAL:
            return
        self._drawn = now
        elapsed = now - self._started
        speed = f"{rows:,} rows, {rows / elapsed:,.0f} rows/s"
        if self._bar is not None:
            self._bar.n = min(done, self._total)
            self._bar.set_postfix_str(speed)
            return
        share = min(done / self._total, 1.0) if self._total else 0.0
        left = f", {_clock(elapsed / share - elapsed)} left" if share else ""
        self._stream.write(f"\r{self._label} {share:4.0%}  {speed}{left}\x1b[K")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def _tqdm_bar(label: str, total: int, stream: TextIO) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    tqdm.monitor_interval = 0  # no thread beside ours: the job may start processes
    return tqdm(
        total=total or None,
        desc=label,
        file=stream,
        leave=False,
        dynamic_ncols=True,
        bar_format="{desc} {percentage:3.0f}% {bar} {postfix}, {remaining} left",
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
