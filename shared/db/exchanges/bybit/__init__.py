"""Bybit's own formats as row values: V5 streams, V5 REST answers, daily archives.

What comes out goes into `bulk_create` of the trades' or the executions' repository. One bad row never costs the
others: it is given back as `RejectedRow`, with its place and the reason. A message or file of another kind is an
`InputError`.

Numbers go from text to `Decimal`, never through a float. The exchange's time is cut to the millisecond, the
resolution of the streams: archives have 0.1 ms, and a trade seen live and again in the archive must be one row.
(Spot archives number their trades themselves; only there do the two have no id in common.)
Field names are those of https://bybit-exchange.github.io/docs/v5 and of https://public.bybit.com.
"""

from shared.db.exchanges.bybit.archives import Archive, Category, TradeColumns, read_archive
from shared.db.exchanges.bybit.messages import (
    FILLS,
    Parsed,
    parse_answer,
    parse_execution_list,
    parse_executions,
    parse_private_message,
    parse_public_message,
    parse_public_trades,
    parse_recent_trades,
)

__all__ = [
    "FILLS",
    "Archive",
    "Category",
    "Parsed",
    "TradeColumns",
    "parse_answer",
    "parse_execution_list",
    "parse_executions",
    "parse_private_message",
    "parse_public_message",
    "parse_public_trades",
    "parse_recent_trades",
    "read_archive",
]
