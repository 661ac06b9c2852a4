"""What each thing that a fleet does costs the server here, and what sizes of fleets come to by that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from benchmarks.capacity import GB, Costs, Fleet, Server, disk_rows, load, steps, waits
from benchmarks.data import ExecutionStream, Rows, TradeStream
from benchmarks.harness import Place, print_table
from benchmarks.meter import Meter
from benchmarks.points import filled, run_at, user_at
from shared.db import DatabaseFactory, PrivateExecutionRepository, PublicTradeRepository, RunRepository
from shared.db.operations.purge import purge_trades

_TRADES, _BATCH, _CALLS, _SYMBOLS = 100_000, 1_000, 1_000, 5
_PURGED = 10_000
_RUNS, _RUNNING = 100_000, 150  # of `filled`: the last ones are running
_BOTS: Final = (20, 200, 2_000, 20_000)


def disk(here: Place) -> None:
    """GB on PostgreSQL by symbols or bots, rows of each a day, and days kept. Computed from the bytes a row."""
    head = ("table", "symbols or bots", "rows of each a day", "a day", "30 days", "365 days")
    print_table("", head, disk_rows())


def simulation(here: Place) -> None:
    """Server's processor measured for one of each, on an otherwise empty database; then computed for fleets."""
    costs = _measured(here)
    fleet, server = Fleet(), Server()
    rows = []
    for bots in _BOTS:
        of = fleet.of(bots)
        asked = load(of, costs)
        rows.append(
            (
                f"{bots:,}",
                f"{of.trades_a_day / 1e6:,.1f} M",
                f"{asked.writing:.2f}",
                f"{asked.reading:.2f}",
                f"{asked.connections:,.0f}",
                f"{asked.memory / GB:.1f}",
                f"{asked.log_a_day / GB:,.1f}",
                f"{asked.disk_a_day / GB:,.1f}",
                f"{asked.kept / GB:,.0f}",
                f"{asked.purge_a_day / 60:,.1f}",
            )
        )
    head = (
        "bots",
        "trades a day",
        "cores writing",
        "cores reading",
        "connections",
        "their GB",
        "log GB/day",
        "disk GB/day",
        "a year, GB",
        "purge min/day",
    )
    print_table(f"Fleets on one server of {server.cores} cores", head, rows)
    reached = steps(fleet, server, costs)
    print_table(
        "Where each step is needed",
        ("step", "what runs out", "bots", "trades a day"),
        [
            (step, what, f"{bots:,.0f}", f"{fleet.of(bots).trades_a_day / 1e6:,.1f} M")
            for step, (what, bots) in reached.items()
        ],
    )

    busy = server.cores * server.busy
    share = waits(server.cores, busy)
    mean = share * costs.question / (server.cores - busy)
    print(
        f"With {server.busy:.0%} of {server.cores} cores busy a question finds none free {share:.1%} of the time, and "
        f"waits {mean * 1e6:.0f} us on average, beside the {costs.question * 1e6:.0f} that it takes.\n"
    )


def trades_of(stream: TradeStream, count: int) -> Rows:
    """Trades of several symbols, in the order of time, as a recorder writes them."""
    return [row | {"symbol": f"{number % _SYMBOLS}USDT"} for number, row in enumerate(stream.take(count))]


def _measured(here: Place) -> Costs:
    """By the processor's time of the server's processes, so that other programs on the machine count for little."""
    with DatabaseFactory(filled(here.new_postgresql())) as db:
        meter = Meter(db)
        trades, executions = TradeStream(), ExecutionStream(run_at(0), user_at(0))
        fills = executions.take(_CALLS)

        def store(rows: Rows) -> None:
            for start in range(0, len(rows), _BATCH):
                with db.get_session() as session:
                    PublicTradeRepository(session).bulk_create(rows[start : start + _BATCH])

        def fill() -> None:
            for row in fills:
                with db.get_session(user_id=user_at(0)) as session:
                    PrivateExecutionRepository(session).bulk_create([row])

        def ask(question: Callable[[RunRepository, int], Any], *, read_only: bool = True) -> None:
            for number in range(_RUNS - _CALLS if read_only else _RUNS - _RUNNING, _RUNS):
                with db.get_session(user_id=user_at(number), read_only=read_only) as session:
                    question(RunRepository(session), number)

        def read() -> None:
            start = TradeStream.time_of(0)
            end = TradeStream.time_of(2 * _TRADES)
            with db.get_session(read_only=True) as session:
                for symbol in range(_SYMBOLS):
                    for _ in PublicTradeRepository(session).iter_symbol_range(f"{symbol}USDT", start, end):
                        pass

        def vacuum() -> None:
            with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM (INDEX_CLEANUP ON, PARALLEL 0) public_trades")

        rows = trades_of(trades, _TRADES)
        # In this order: what is purged was read before. Each name is that of the field of Costs.
        work: dict[str, tuple[int, Callable[[], Any]]] = {
            "trade": (_TRADES, lambda: store(rows)),
            "execution": (_CALLS, fill),
            "heartbeat": (_RUNNING, lambda: ask(lambda runs, at: runs.heartbeat(run_at(at)), read_only=False)),
            "question": (_CALLS, lambda: ask(lambda runs, at: runs.get_running())),
            "page": (_CALLS, lambda: ask(lambda runs, at: runs.get_by_user_id(user_at(at), limit=100))),
            "trade_read": (_TRADES, read),
            "trade_purged": (_PURGED, lambda: purge_trades(db, TradeStream.time_of(_PURGED + 1))),
            "trade_kept": (_TRADES - _PURGED, vacuum),
        }
        measured, printed = {}, []
        for name, (count, run) in work.items():
            cpu, log = (spent / count for spent in meter.spent(run))
            measured[name], measured[f"log_{name}"] = cpu, log
            printed.append((name.replace("_", " "), f"{cpu * 1e6:.2f}", f"{log:,.0f}"))
        memory = meter.memory()
        title = "One of each, on the server"
        print_table(title, ("what", "server's processor, us", "bytes of log"), printed)
        print(f"A connection that has asked all of this keeps {memory / 1e6:.1f} MB of its own.\n")
        known = Costs.__dataclass_fields__
        return Costs(connection=memory, **{name: value for name, value in measured.items() if name in known})


BENCHMARKS = {"disk": disk, "simulation": simulation}
