"""What a mapped object holds after it was written: what a later reader gets, to the type."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from typing import Any

import pytest
from sqlalchemy import Dialect, String, func, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from shared.db import (
    Json,
    Money,
    PrivateExecution,
    PrivateExecutionRepository,
    Run,
    RunStatus,
    RunType,
    Side,
    Strategy,
    UTCDateTime,
)
from shared.db.column_types import CheckedType
from shared.db.tests.support import new_run

TOKYO = timezone(timedelta(hours=9))
NOON = datetime(2026, 1, 2, 21, 0, 0, 123456, tzinfo=TOKYO)


class Word(StrEnum):
    """A key and a value of documents."""

    STEP = "step"


class Reversed(CheckedType):
    """A type of somebody else's: stores text the other way round, without its blanks."""

    impl = String(40)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Turned."""
        return None if value is None else str(value).strip()[::-1]

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """And back."""
        return None if value is None else value[::-1]


class OwnBase(DeclarativeBase):
    """Another package's own base."""


class Note(OwnBase):
    """Its table, with a default for each kind of value."""

    __tablename__ = "notes_of_values"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[Any] = mapped_column(Money(), default="1.5", onupdate=lambda: "2.5")
    at: Mapped[Any] = mapped_column(UTCDateTime(), default=lambda: NOON)
    body: Mapped[Any] = mapped_column(Json(), default=lambda: {"price": Decimal("1.10")})
    word: Mapped[Any] = mapped_column(Reversed(), default="abc")
    touched: Mapped[int] = mapped_column(default=0)


def exact(one: Any, other: Any) -> None:
    """Equal, of the same type and, for amounts and times, in the same form; documents all the way down."""
    if isinstance(one, dict):
        exact(sorted(one), sorted(other))  # JSONB has an order of its own
        exact([one[key] for key in sorted(one)], [other[key] for key in sorted(one)])
        return
    if isinstance(one, list):
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            exact(mine, its)
        return
    assert (type(one), str(one)) == (type(other), str(other))


def test_what_is_in_hand_after_create_is_what_is_stored(session: Session, sample_run: Run) -> None:
    """Amounts are Decimal with 8 places, times UTC, words plain strings, documents plain JSON: as all others read."""
    repository = PrivateExecutionRepository.across_users(session)
    given = PrivateExecution(
        run_id=sample_run.run_id,
        account_id=sample_run.account_id,
        symbol=Word.STEP,
        exec_id="e-1",
        order_id="o-1",
        exchange_ts=NOON,
        side=Side.BUY,
        exec_price="65065.80",
        exec_qty=2,
        exec_fee=Decimal("-0.123456789"),
        raw_json={"fee": Decimal("0.10"), Word.STEP: [(NOON, date(2026, 1, 2)), uuid.UUID(int=7), Word.STEP, {}]},
    )
    document = given.raw_json
    created = repository.create(given)
    assert created.exec_price * created.exec_qty == Decimal("130131.6")
    (ranged,) = repository.get_by_run_range(sample_run.run_id)
    assert ranged is created
    assert created.raw_json is document
    names = [column.name for column in PrivateExecution.__table__.columns]
    held = {name: getattr(created, name) for name in names}
    session.expunge_all()
    (read,) = repository.get_by_run_range(sample_run.run_id)
    for name, value in held.items():
        exact(value, getattr(read, name))
    assert read.exchange_ts.tzinfo is UTC
    assert type(held["symbol"]) is type(held["side"]) is str


def test_what_is_in_hand_after_a_change_is_what_is_stored(session: Session, sample_run: Run) -> None:
    """By assignment, by an edit in a document, and by an UPDATE of rows that the session holds."""
    sample_run.start_ts = NOON
    sample_run.status = RunStatus.COMPLETED
    sample_run.config_snapshot = {"levels": [1]}
    session.flush()
    assert sample_run.config_snapshot is not None
    sample_run.config_snapshot["levels"].append(Decimal("1.50"))
    session.flush()
    exact(sample_run.start_ts, NOON.astimezone(UTC))
    exact(sample_run.status, "completed")
    exact(sample_run.config_snapshot, {"levels": [1, "1.50"]})
    session.execute(update(Run).values(end_ts=NOON, run_type=RunType.SHADOW, config_snapshot={"x": Decimal("2.0")}))
    exact(sample_run.end_ts, NOON.astimezone(UTC))
    exact(sample_run.run_type, "shadow")
    exact(sample_run.config_snapshot, {"x": "2.0"})
    session.execute(update(Run), [{"run_id": sample_run.run_id, "end_ts": NOON + timedelta(1)}])
    exact(sample_run.end_ts, NOON.astimezone(UTC) + timedelta(1))


def test_defaults_and_types_of_other_packages_are_in_hand_as_they_are_stored(session: Session) -> None:
    """What a default brought in, and what a type made for itself."""
    OwnBase.metadata.create_all(session.connection())
    note, other = Note(), Note(word="  abc ")
    session.add_all([note, other])
    session.flush()
    for kept in (note, other):
        exact(kept.price, Decimal("1.50000000"))
        exact(kept.at, NOON.astimezone(UTC))
        exact(kept.body, {"price": "1.10"})
        exact(kept.word, "abc")
    note.touched = 1
    session.flush()
    exact(note.price, Decimal("2.50000000"))
    note.body["more"] = 1
    session.flush()
    session.expire(note)
    exact(note.body, {"price": "1.10", "more": 1})


def test_an_expression_is_left_to_the_database(session: Session, sample_run: Run) -> None:
    """SQL that was assigned is no value yet; after the flush the object has what it gave."""
    sample_run.host = func.upper("trader")
    sample_run.gridcore_version = Run.host
    session.flush()
    assert sample_run.host == "TRADER"


def test_a_flush_that_is_refused_says_so_as_ever(session: Session, sample_strategy: Strategy) -> None:
    """A value that does not fit is refused by its type, with the column's name, and the row stays out."""
    run = new_run(sample_strategy.account, sample_strategy, start_ts="yesterday")
    with pytest.raises(ValueError, match=r"runs\.start_ts"), session.begin_nested():
        session.add(run)
        session.flush()
    assert session.query(Run).all() == []
