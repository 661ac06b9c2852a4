"""`python -m benchmarks.cache`: 500 symbols' prices into Redis and out of it, against bare redis-py."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from statistics import median

import redis

from benchmarks.harness import print_table
from shared.cache import SyncRedisClient
from shared.cache.tests.servers import Server, programs

_PRICES = {f"SYMBOL{number}USDT": Decimal("65065.80") + number for number in range(500)}
_ROUNDS, _CALLS = 41, 40
Pair = tuple[Callable[[], object], Callable[[], object]]


def _bare_write(bare: redis.Redis) -> None:
    bare.mset({f"price:{symbol}": str(price) for symbol, price in _PRICES.items()})


def _bare_pipeline(bare: redis.Redis) -> None:
    with bare.pipeline(transaction=False) as pipeline:
        for symbol, price in _PRICES.items():
            pipeline.set(f"price:{symbol}", str(price), ex=60)
        pipeline.execute()


def _bare_read(bare: redis.Redis) -> dict[str, Decimal]:
    found: list[bytes | None] = bare.mget([f"price:{symbol}" for symbol in _PRICES])  # type: ignore[assignment] # it may also decode
    return {symbol: Decimal(price.decode()) for symbol, price in zip(_PRICES, found, strict=True) if price is not None}


def main() -> None:
    """Print how often a second each is done, rounds of both in turn."""
    with tempfile.TemporaryDirectory(prefix="cache-") as folder:
        server = Server(programs()[0], Path(folder), "--appendonly", "no")
        try:
            with redis.Redis.from_url(server.url, protocol=2) as bare, SyncRedisClient(server.url) as ours:
                pairs: dict[str, Pair] = {
                    "write (MSET)": (lambda: _bare_write(bare), lambda: ours.set_multiple(_PRICES)),
                    "read (MGET)": (lambda: _bare_read(bare), lambda: ours.get_multiple(_PRICES)),
                    "write, each with a ttl": (lambda: _bare_pipeline(bare), lambda: ours.set_multiple(_PRICES, 60)),
                }
                _bare_write(bare)
                assert ours.set_multiple(_PRICES)
                assert ours.get_multiple(_PRICES) == _bare_read(bare) == _PRICES
                rows = [_compared(name, *pair) for name, pair in pairs.items()]
        finally:
            server.kill()
    print_table("", ["500 prices", "bare redis-py", "shared.cache", "ratio"], rows)


def _compared(name: str, bare: Callable[[], object], ours: Callable[[], object]) -> list[str]:
    rates = [(_rate(bare), _rate(ours)) for _ in range(_ROUNDS)]
    theirs, mine = (median(rate[side] for rate in rates) for side in (0, 1))
    return [name, f"{theirs:,.0f}/s", f"{mine:,.0f}/s", f"{median(b / a for a, b in rates):.2f}"]


def _rate(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(_CALLS):
        call()
    return _CALLS / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
