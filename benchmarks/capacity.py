"""What a fleet asks of one PostgreSQL server, by formulas, and the size at which each limit of it is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

DAY = 86_400.0
GB = 1e9
# With their indexes, as `pg_total_relation_size` and the size of an SQLite file have it; test_capacity.py measures it.
BYTES_A_ROW: Mapping[str, Mapping[str, int]] = {
    "public_trades": {"PostgreSQL": 275, "SQLite": 214},
    "private_executions": {"PostgreSQL": 1075, "SQLite": 928},
}


@dataclass(frozen=True)
class Fleet:
    """What bots do, and those who look at them: `viewers` and executions are of each bot.

    In the busiest minute the market is `peak` times as lively as on average.
    """

    bots: float = 2_000
    trades_a_day: float = 50e6
    executions_a_day: float = 500
    heartbeat_every: float = 30.0
    question_every: float = 10.0
    viewers: float = 0.05
    page_every: float = 5.0
    trades_read: float = 4.0
    peak: float = 10.0
    connections: float = 2.0
    days_kept: float = 365.0

    def of(self, bots: float) -> Fleet:
        """The same with so many bots, and as many more symbols."""
        return replace(self, bots=bots, trades_a_day=self.trades_a_day * bots / self.bots)


@dataclass(frozen=True)
class Server:
    """The one server, and how much of it may be in use: of its cores in the busiest minute, of its memory by backends.

    And how long a day's purge may take.
    """

    cores: int = 16
    memory: float = 64 * GB
    disk: float = 4_000 * GB
    busy: float = 0.6
    connections: float = 500
    backends: float = 0.25
    purge_seconds: float = 3_600.0


@dataclass(frozen=True)
class Costs:
    """What was measured: seconds of the server's processor for one of each, and bytes."""

    trade: float
    execution: float
    heartbeat: float
    question: float
    page: float
    trade_read: float
    trade_purged: float
    trade_kept: float
    log_trade: float
    log_execution: float
    log_heartbeat: float
    connection: float


@dataclass(frozen=True)
class Load:
    """What a fleet asks of the server: cores at the busiest minute, then bytes and seconds."""

    writing: float
    reading: float
    connections: float
    memory: float
    log_a_day: float
    disk_a_day: float
    kept: float
    purge_a_day: float

    @property
    def cores(self) -> float:
        """All that keep busy."""
        return self.writing + self.reading


def load(fleet: Fleet, costs: Costs) -> Load:
    """The sums."""
    trades = fleet.trades_a_day / DAY
    executions = fleet.bots * fleet.executions_a_day / DAY
    heartbeats = fleet.bots / fleet.heartbeat_every
    questions = fleet.bots / fleet.question_every
    pages = fleet.bots * fleet.viewers / fleet.page_every
    market = fleet.peak * (trades * costs.trade + executions * costs.execution)
    reading = questions * costs.question + pages * costs.page + trades * fleet.trades_read * costs.trade_read
    rows = {"public_trades": fleet.trades_a_day, "private_executions": fleet.bots * fleet.executions_a_day}
    disk = sum(count * BYTES_A_ROW[table]["PostgreSQL"] for table, count in rows.items())
    log = trades * costs.log_trade + executions * costs.log_execution + heartbeats * costs.log_heartbeat
    return Load(
        writing=market + heartbeats * costs.heartbeat,
        reading=reading,
        connections=fleet.bots * fleet.connections,
        memory=fleet.bots * fleet.connections * costs.connection,
        log_a_day=log * DAY,
        disk_a_day=disk,
        kept=disk * fleet.days_kept,
        # VACUUM reads the indexes of all that stays.
        purge_a_day=fleet.trades_a_day * (costs.trade_purged + fleet.days_kept * costs.trade_kept),
    )


def waits(cores: int, busy: float) -> float:
    """The share of questions that find all cores busy, where `busy` of them are on average: Erlang's C formula."""
    blocked = 1.0
    for each in range(1, cores + 1):
        blocked = busy * blocked / (each + busy * blocked)
    return blocked / (1 - busy / cores * (1 - blocked))


# What grows with the fleet, the limit of one server, and what helps there.
_STEPS: Mapping[str, tuple[str, Callable[[Load, Server], float]]] = {
    "a standby for readers": ("cores busy at the peak", lambda load, server: load.cores / (server.cores * server.busy)),
    "PgBouncer": (
        "connections, or their memory",
        lambda load, server: max(
            load.connections / server.connections, load.memory / (server.memory * server.backends)
        ),
    ),
    "partitions": ("an hour a day to purge a day's rows", lambda load, server: load.purge_a_day / server.purge_seconds),
    "the lake": ("a year on the disk", lambda load, server: load.kept / server.disk),
    "more servers": (
        "cores busy by writers alone",
        lambda load, server: load.writing / (server.cores * server.busy),
    ),
}


def steps(fleet: Fleet, server: Server, costs: Costs) -> dict[str, tuple[str, float]]:
    """For each step, what runs out and how many bots the fleet has then; the first to be reached first.

    All that is limited grows as the fleet does, so a limit lies at the bots times limit through load.
    """
    asked = load(fleet, costs)
    found = {step: (what, fleet.bots / used(asked, server)) for step, (what, used) in _STEPS.items()}
    return dict(sorted(found.items(), key=lambda item: item[1][1]))


def disk_rows() -> list[tuple[str, ...]]:
    """GB on PostgreSQL in a day, 30 and 365, by symbols or bots with 500,000 trades or 500 executions of each a day."""
    rows = []
    for table, few, each in (("public_trades", (1, 10, 100), 500_000), ("private_executions", (20, 200, 2_000), 500)):
        for count in few:
            day = count * each * BYTES_A_ROW[table]["PostgreSQL"] / GB
            rows.append((table, f"{count:,}", f"{each:,}", *(f"{day * days:,.1f}" for days in (1, 30, 365))))
    return rows
