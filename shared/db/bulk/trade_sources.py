"""Where trades come from, as their ids tell: sources whose ids cannot be compared must not meet in one stream.

A trade's identity is (symbol, exchange_ts, trade_id). Derivatives have UUIDs, live and in the archives. Spot trades
have numbers of 19 digits live, and numbers from 1 on in each archive, daily or monthly. The same trade from two such
sources has two ids, and would be stored and counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db.models import PublicTrade
from shared.db.value_forms.instants import ends_of

_UUID_LENGTH = 36
_LIVE_DIGITS = 16
_LOOKED_AT = 100
_NOISE = 20


class TradeSource(StrEnum):
    """What a trade's id tells of where it comes from; the value says it to a person."""

    DERIVATIVES = "derivatives"
    LIVE_SPOT = "a live spot stream"
    SPOT_ARCHIVE = "a spot archive"


def source_of(trade_id: str) -> TradeSource | None:
    """Where a trade with this id comes from; None for an id that Bybit does not give."""
    if len(trade_id) == _UUID_LENGTH:
        return TradeSource.DERIVATIVES
    if trade_id.isascii() and trade_id.isdigit():
        return TradeSource.LIVE_SPOT if len(trade_id) >= _LIVE_DIGITS else TradeSource.SPOT_ARCHIVE
    return None


def incomparable(
    session: Session, symbol: str, times: Sequence[datetime], ids: Sequence[str], *, numbered_by_file: bool = False
) -> TradeSource | None:
    """The source of stored trades of a symbol that lie among these and cannot be compared with them; None if none do.

    Looks up the first and the last stored trades between the earliest and the latest of `times` in the index, whatever
    the number stored. `numbered_by_file` says that ids may count from 1 in their file, so that another file has other
    ids for the same trades: then they are incomparable if most of the first, or of the last, are not among these.
    """
    mine = sources_of(ids)
    if not mine:
        return None
    if len(mine) > 1:
        return mine[1]
    first, last = ends_of(times)
    looks = _stored_between(session, symbol, first, last)
    found = [row.trade_id for look in looks for row in look]
    others = [source for source in sources_of(found) if source != mine[0]]
    if others:
        return others[0]
    if found and numbered_by_file and mine[0] is TradeSource.SPOT_ARCHIVE:
        known = set(zip(times, ids, strict=True))
        numbers = [int(trade_id) for trade_id in ids if source_of(trade_id) is TradeSource.SPOT_ARCHIVE]
        lowest, highest = min(numbers), max(numbers)

        def is_of_neighbour(when: datetime, trade_id: str) -> bool:
            """Whether it may be of the block of this file that comes before, or after: that shares a moment with it."""
            if when == first:
                return int(trade_id) < lowest
            return when == last and int(trade_id) > highest

        # A file of days may begin as one of months does, with the same numbers: each end is looked at by itself.
        for look in looks:
            rows = [(row.exchange_ts, row.trade_id) for row in look if source_of(row.trade_id) is mine[0]]
            rows = [row for row in rows if not is_of_neighbour(*row)]
            if sum(row not in known for row in rows) * 2 > len(rows):
                return TradeSource.SPOT_ARCHIVE
    return None


def sources_of(ids: Sequence[str]) -> list[TradeSource]:
    """Where trades with these ids come from, most of them first; ids that Bybit does not give are left out.

    A damaged row may have any id, and costs itself alone: a source of one row in twenty, or less, is none.
    """
    examples = dict(zip(map(len, ids), ids, strict=True))
    # Nearly always all are of one length, and one of them tells.
    lengths = Counter(map(len, ids)) if len(examples) > 1 else dict.fromkeys(examples, len(ids))
    counts = Counter[TradeSource]()
    for length, count in lengths.items():
        source = source_of(examples[length])
        if source is not None:
            counts[source] += count
    return [source for source, count in counts.most_common() if count * _NOISE > len(ids)]


def _stored_between(session: Session, symbol: str, first: datetime, last: datetime) -> list[Sequence[Any]]:
    """The first of the stored trades in this range and, if there are more, the last."""
    when, tie = PublicTrade.exchange_ts, PublicTrade.trade_id
    between = select(when, tie).where(PublicTrade.symbol == symbol, when >= first, when <= last).limit(_LOOKED_AT)
    found = session.execute(between.order_by(when, tie)).all()
    if len(found) < _LOOKED_AT:
        return [found]
    return [found, session.execute(between.order_by(when.desc(), tie.desc())).all()]
