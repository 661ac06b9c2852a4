"""Tells, once for each symbol, when a recorder's trades lie among stored ones of another source."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from shared.db.bulk.rows import Row
from shared.db.bulk.trade_sources import incomparable

_log = logging.getLogger("shared.db.recording.recorder")
# A look is two questions to the index: too much for each symbol of each batch, nothing once a minute.
_PAUSE = 60.0


class SourceWatch:
    """Looks at each symbol's trades now and then. For the one thread that writes."""

    def __init__(self) -> None:
        self._next_look: dict[str, float] = {}

    def look(self, session: Session, rows: Sequence[Row]) -> None:
        """Warn of symbols whose stored trades have other ids for the same trades as these have."""
        now = time.monotonic()
        due: dict[str, tuple[list[datetime], list[str]]] = {}
        for row in rows:
            symbol = row.get("symbol")
            if isinstance(symbol, str) and self._next_look.get(symbol, now) <= now:
                when, trade_id = row.get("exchange_ts"), row.get("trade_id")
                # Anything else is the database's to refuse.
                if isinstance(when, datetime) and when.tzinfo is not None and isinstance(trade_id, str):
                    times, ids = due.setdefault(symbol, ([], []))
                    times.append(when)
                    ids.append(trade_id)
        for symbol, (times, ids) in due.items():
            other = incomparable(session, symbol, times, ids)
            self._next_look[symbol] = now + _PAUSE if other is None else float("inf")
            if other is not None:
                _log.warning(
                    "trades of %r are recorded among stored ones of %s, whose ids are others for the same trades: they "
                    "are counted twice; record one of the two under a symbol of its own, such as %s.SPOT",
                    symbol,
                    other.value,
                    symbol,
                )
