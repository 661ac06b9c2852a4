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
    ids for the same trades: then they are incomparable if most of those found are not among these.
    """
    mine = sources_of(ids)
    if not mine:
        return None
    if len(mine) > 1:
        return mine[1]
    first, last = min(times), max(times)
    found = _stored_between(session, symbol, first, last)
    others = [source for source in sources_of([row.trade_id for row in found]) if source != mine[0]]
    if others:
        return others[0]
    # Trades of the very first and last moment may be of the blocks before and after.
    inside = [(row.exchange_ts, row.trade_id) for row in found if first < row.exchange_ts < last]
    if inside and numbered_by_file and mine[0] is TradeSource.SPOT_ARCHIVE:
        known = set(zip(times, ids, strict=True))
        if sum(row not in known for row in inside) * 2 > len(inside):
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


def _stored_between(session: Session, symbol: str, first: datetime, last: datetime) -> Sequence[Any]:
    when, tie = PublicTrade.exchange_ts, PublicTrade.trade_id
    between = select(when, tie).where(PublicTrade.symbol == symbol, when >= first, when <= last).limit(_LOOKED_AT)
    found = session.execute(between.order_by(when, tie)).all()
    if len(found) == _LOOKED_AT:
        found = [*found, *session.execute(between.order_by(when.desc(), tie.desc())).all()]
    return found
