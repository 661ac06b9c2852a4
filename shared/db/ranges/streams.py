"""Reading a range of any length in flat memory, as plain tuples or as mapped objects.

Where a result can be read while other statements run (PostgreSQL), through a server-side cursor in the session's own
transaction; elsewhere page by page, each page one statement that continues behind the last row of the one before. When
a transaction ends while its cursor is being read, it goes on in the same way in the session's next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import Column, Connection, CursorResult, Executable, Result, Select, func, select
from sqlalchemy.orm import Session

from shared.db.dialects import SQLITE, dialect_of, port_of
from shared.db.dialects.port import Partition
from shared.db.driver_errors import named_errors
from shared.db.errors import InvalidValueError
from shared.db.ranges.bounds import Position, RowRange
from shared.db.ranges.decoding import InOneText, decode_rows, undecoded
from shared.db.tables import OWNERSHIP
from shared.db.tenancy.session_scope import UserSession, connection_for
from shared.db.value_forms.forms import forms_of

PAGE_SIZE = 2000
# A table of so few pages may rather be read as a whole, and sorted, for each page of a span (`RowRange.few_for`).
_FEW_PAGES = 25
# Where an engine's dialect has the partitions of tables, and for how long they are taken for true.
_PARTITIONS = "shared_db_partitions"
_KNOWN_SECONDS = 60.0


def stream(
    session: Session,
    rows: RowRange,
    *,
    reverse: bool = False,
    after: str | None = None,
    as_objects: bool = False,
    page_size: int = PAGE_SIZE,
) -> Iterator[Any]:
    """The rows of a range, one by one, `page_size` of them in memory at a time.

    `InvalidValueError`, at once, for an `after` that is no cursor or a `page_size` that is no positive number.
    """
    if isinstance(page_size, bool) or not isinstance(page_size, int) or page_size < 1:
        raise InvalidValueError(f"page_size is the number of rows fetched at a time, 1 or more, not {page_size!r}")
    position = rows.position_of(after)
    if as_objects:
        return _objects(session, rows, position, reverse, page_size)
    pages = raw_pages(session, rows, position, reverse=reverse, page_size=page_size)
    same = (rows.source.stream.by, rows.key)
    return decode_rows(pages, rows.source.read_columns, rows.source.row, same, dialect_of(session))


def _objects(
    session: Session, rows: RowRange, position: Position | None, reverse: bool, page_size: int
) -> Iterator[Any]:
    order = rows.source.stream.order

    def position_in(row: Any) -> Position:
        return tuple(getattr(row[0], name) for name in order)

    for page in _pages(
        session, session.execute, _mapped(session, rows), rows, position, position_in, reverse, page_size
    ):
        for (entity,) in page:
            yield entity


def latest(session: Session, rows: RowRange) -> Any | None:
    """The last row of a range as a mapped object, None if it is empty.

    Of a table in partitions those of the present, or of the range's end, are asked first: to look into each of them
    costs ten times as much as the answer.
    """
    rows = rows.few_for(port_of(session))
    newest = _mapped(session, rows).order_by(*rows.order(reverse=True)).limit(1)
    start = _newest_partition(session, rows)
    if start is not None and (rows.start is None or rows.start < start):
        found = session.scalars(newest.where(*replace(rows, start=start).criteria())).first()
        if found is not None:
            return found
    return session.scalars(newest.where(*rows.criteria())).first()


def _newest_partition(session: Session, rows: RowRange) -> datetime | None:
    """Where the partition begins that holds the present, or the range's end; None where there are no partitions.

    They are asked for once a minute: of those of a minute ago the first question finds as much, or nothing.
    """
    port, model = port_of(session), rows.source.model
    if not port.has_partitions or OWNERSHIP[model] is not None:
        return None
    known: dict[str, tuple[float, list[Partition]]] = dialect_of(session).__dict__.setdefault(_PARTITIONS, {})
    table = model.__tablename__
    asked, found = known.get(table, (-math.inf, []))
    if time.monotonic() - asked > _KNOWN_SECONDS:
        # What is asked of the session itself may be one message, which a transaction would not be.
        if session.in_transaction():
            found = port.partitions(Session.connection(session), table, rows.source.time.name) or []
        else:
            with session.get_bind().engine.connect() as connection:
                found = port.partitions(connection, table, rows.source.time.name) or []
        known[table] = time.monotonic(), found
    when = rows.end or datetime.now(UTC)
    return max((one.start for one in found if one.start is not None and one.start <= when), default=None)


def _mapped(session: Session, rows: RowRange) -> Select[Any]:
    # A user's session adds its criteria to mapped classes itself, and takes no other's.
    return select(rows.source.model).where(*(() if isinstance(session, UserSession) else rows.confined))


def raw_pages(
    session: Session,
    rows: RowRange,
    position: Position | None = None,
    *,
    columns: Sequence[Column[Any]] = (),
    reverse: bool = False,
    page_size: int = PAGE_SIZE,
) -> Iterator[Sequence[Any]]:
    """Pages of the range's `read_columns`, or of others, as the driver gives them, for `decoding`."""
    columns = columns or rows.source.read_columns
    names = [column.name for column in columns]
    when, *tie = map(names.index, rows.source.stream.order)

    read_times = forms_of(columns[when].type).decoding(dialect_of(session))

    def position_in(row: Any) -> Position:
        return *read_times((row[when],)), *(row[place] for place in tie)

    dialect = dialect_of(session)
    statement = select(*undecoded(columns, dialect)).where(*rows.confined)
    texts = InOneText.of(columns, dialect)
    if texts is not None:
        page_size = min(page_size, texts.most)
    return _pages(session, partial(read, session), statement, rows, position, position_in, reverse, page_size, texts)


def read(
    session: Session, statement: Executable, parameters: dict[str, Any] | None = None, **options: Any
) -> Result[Any]:
    """Run a Core SELECT that confines itself to its user, after what is pending in the session was flushed."""
    return flushed(session, statement).execute(statement, parameters, **options)


def at_one_moment(session: Session) -> Connection:
    """Let a read-only session see the database as it is now in all that it reads; its connection. Asked first of all.

    On SQLite its reads do so anyway.
    """
    if port_of(session) is SQLITE:
        return Session.connection(session)
    return Session.connection(session, execution_options={"isolation_level": "REPEATABLE READ"})


def flushed(session: Session, statement: Executable) -> Connection:
    """The connection for such a statement, after what is pending in the session was flushed."""
    if session.autoflush:
        session.flush()
    return connection_for(session, statement)


def _fetched(result: Result[Any], page_size: int) -> Iterator[Sequence[Any]]:
    if not isinstance(result, CursorResult):
        yield from result.partitions(page_size)
        return
    # From a cursor at the server SQLAlchemy has fetched one row already. All others stay the driver's own tuples: a
    # quarter of the time would go into making SQLAlchemy's rows of them.
    page = [tuple(row) for row in result.fetchmany(1)]
    cursor = result.cursor
    while cursor is not None:
        with named_errors(result.connection):
            page += cursor.fetchmany(page_size)
        if page:
            yield page
        if len(page) < page_size:
            return
        page = []


def _pages(
    session: Session,
    execute: Callable[..., Result[Any]],
    statement: Any,
    rows: RowRange,
    position: Position | None,
    position_in: Callable[[Any], Position],
    reverse: bool,
    page_size: int,
    texts: InOneText | None = None,
) -> Iterator[Sequence[Any]]:
    port = port_of(session)
    if not port.keeps_cursors:
        # A later page must not bring what this session writes meanwhile: whoever writes ahead of where they read
        # would never come to an end.
        number = rows.source.number
        if number is not None:
            newest = read(session, select(func.max(number))).scalar() or 0
            statement = statement.where(number <= newest)
            if newest > page_size * _FEW_PAGES:
                rows = rows.few_for(port)
        else:
            rows = rows.few_for(port)
            farthest = (
                select(*rows.source.order)
                .where(*rows.criteria(), *rows.confined)
                .order_by(*rows.order(reverse=not reverse))
            )
            last: Any = read(session, farthest.limit(1)).first()
            if last is None:
                return
            statement = statement.where(rows.up_to(tuple(last), reverse=reverse))
        statement = statement.order_by(*rows.order(reverse=reverse)).limit(page_size)
        asked, behind = statement.where(*rows.criteria(position, reverse=reverse)), None
        sooner = None if texts is None else texts.asking(asked, rows.source.order, reverse=reverse)

        def page_of(question: Any) -> Sequence[Any]:
            with execute(question, {} if behind is None or position is None else rows.parameters(position)) as result:
                return next(_fetched(result, page_size), ())

        while True:
            split = None if texts is None else texts.split(page_of(sooner))
            page = page_of(asked) if split is None else split
            if page:
                # Before the page is handed on: who reads mapped objects may change them.
                position = position_in(page[-1])
                yield page
            if len(page) < page_size:
                return
            if behind is None:
                # Made once: of a page's time, putting a statement together would be a tenth.
                asked = behind = statement.where(*rows.criteria(position, reverse=reverse))
                sooner = None if texts is None else texts.asking(asked, rows.source.order, reverse=reverse)
    statement = statement.order_by(*rows.order(reverse=reverse))
    options = {"stream_results": True, "yield_per": page_size}
    while True:
        result = execute(statement.where(*rows.criteria(position, reverse=reverse)), execution_options=options)
        connection = Session.connection(session)
        transaction = connection.get_nested_transaction() or connection.get_transaction()
        assert transaction is not None
        try:
            for page in _fetched(result, page_size):
                position = position_in(page[-1])
                yield page
                if not transaction.is_active:
                    break
            else:
                return
        finally:
            # A cursor ends with its transaction; by then its connection may be somebody else's.
            if transaction.is_active:
                result.close()
