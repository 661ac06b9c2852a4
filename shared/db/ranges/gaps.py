"""What is missing between the rows of a range, and what there is of each run: found by the database."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Table, func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

from shared.db.dialects import port_of
from shared.db.errors import InvalidValueError
from shared.db.models import PrivateExecution, Run
from shared.db.ranges.bounds import RowRange
from shared.db.ranges.streams import read
from shared.db.tenancy.functions import allow_functions

_FETCHED = 1_000
_LONGEST = timedelta(days=3_660_000).total_seconds()


class Gap(NamedTuple):
    """A time without rows: from one row to the next one, or to the bound that was asked for. UTC."""

    start_ts: datetime
    end_ts: datetime

    @property
    def length(self) -> timedelta:
        """How long it is."""
        return self.end_ts - self.start_ts


class RunCoverage(NamedTuple):
    """What is stored of one run: the time of its first and last execution (UTC), None without any, and their number."""

    run_id: str
    first_ts: datetime | None
    last_ts: datetime | None
    count: int  # type: ignore[assignment] # in place of tuple.count(), which nobody misses here


class micros_between(FunctionElement[int]):
    """From one instant to a later one in microseconds."""

    type = BigInteger()
    inherit_cache = True
    name = "micros_between"

    def __init__(self, earlier: Any, later: Any) -> None:
        super().__init__(earlier, later)


allow_functions(micros_between)


@compiles(micros_between)
def _micros_between(element: micros_between, compiler: SQLCompiler, **how: Any) -> str:
    earlier, later = (compiler.process(clause, **how) for clause in element.clauses)
    return port_of(compiler.dialect).micros_between(earlier, later)


def gaps(session: Session, rows: RowRange, seconds: float | None) -> Iterator[Gap]:
    """The times of more than `seconds` without a row in a range, in order; they end with the transaction.

    The range's own bounds count as marks where they are given, so that a range without any row is one gap. Raises
    `InvalidValueError`, at once, for what is no number of seconds.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= _LONGEST:
        raise InvalidValueError(f"a gap is longer than a number of seconds, 0 or more, not {seconds!r}")
    return _gaps(session, rows, timedelta(microseconds=math.floor(seconds * 1_000_000)))


def _gaps(session: Session, rows: RowRange, longer_than: timedelta) -> Iterator[Gap]:
    when: Any = rows.source.time
    inside = (*rows.criteria(), *rows.confined)
    bounds: Any = read(session, select(func.min(when), func.max(when)).where(*inside)).one()
    first, last = bounds
    if first is None:
        last = rows.start
    else:
        yield from _longer(rows.start, first, longer_than)
        numbered = (
            select(func.lag(when, type_=when.type).over(order_by=when).label("start_ts"), when.label("end_ts"))
            .where(*inside)
            .subquery()
        )
        found = numbered.c
        statement = (
            select(found.start_ts, found.end_ts)
            .where(micros_between(found.start_ts, found.end_ts) > longer_than // timedelta(microseconds=1))
            .order_by(found.end_ts)
        )
        with read(session, statement, execution_options={"yield_per": _FETCHED}) as result:
            yield from map(Gap._make, result)
    yield from _longer(last, rows.end, longer_than)


def _longer(start: datetime | None, end: datetime | None, longer_than: timedelta) -> Iterator[Gap]:
    if start is not None and end is not None and end - start > longer_than:
        yield Gap(start, end)


def run_coverage(session: Session, user_id: str | None, run_id: str | None) -> list[RunCoverage]:
    """What is stored of each run of a user (None: of all users), of one if given, by the time it started."""
    runs: Table = Run.__table__  # type: ignore[assignment] # declared wider than it is
    executions: Table = PrivateExecution.__table__  # type: ignore[assignment] # as above
    when = executions.c.exchange_ts
    statement = (
        select(runs.c.run_id, func.min(when), func.max(when), func.count(when))
        .select_from(runs.outerjoin(executions, executions.c.run_id == runs.c.run_id))
        .group_by(runs.c.run_id, runs.c.start_ts)
        .order_by(runs.c.start_ts, runs.c.run_id)
    )
    if user_id is not None:
        statement = statement.where(runs.c.user_id == user_id)
    if run_id is not None:
        statement = statement.where(runs.c.run_id == run_id)
    return [RunCoverage._make(row) for row in read(session, statement)]
