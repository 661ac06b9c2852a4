"""A thousand values that do not fit their columns, by every door, on both databases."""

from __future__ import annotations

import random
import string
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from sqlalchemy import Column, Table, func, select
from sqlalchemy.orm import Session

from benchmarks.fault_bench.figures import Figure
from benchmarks.fault_bench.ground import Ground
from shared.db import (
    ApiCredential,
    ApiCredentialRepository,
    Base,
    BaseRepository,
    BybitAccount,
    BybitAccountRepository,
    DatabaseFactory,
    PrivateExecution,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Run,
    RunRepository,
    Strategy,
    StrategyRepository,
    User,
    UserRepository,
)
from shared.db.bulk import bulk_create
from shared.db.column_types import BoundedString, CheckedBoolean, CheckedInteger, Json, Money, UTCDateTime, Vocabulary
from shared.db.encryption import SecretText
from shared.db.errors import DatabaseFailure

Values = dict[str, Any]
Draw = random.Random
_REPOSITORIES: dict[type[Base], type[BaseRepository[Any]]] = {
    User: UserRepository,
    BybitAccount: BybitAccountRepository,
    ApiCredential: ApiCredentialRepository,
    Strategy: StrategyRepository,
    Run: RunRepository,
    PublicTrade: PublicTradeRepository,
    PrivateExecution: PrivateExecutionRepository,
}
_NOW = datetime(2025, 5, 19, 12, tzinfo=UTC)
_NAMED = ("InvalidValueError: ", "ConstraintError: ", "TenantViolation: ")
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_MISSING = object()


@dataclass(frozen=True)
class BadRow:
    """A row that would be good but for one value, and a name for what is wrong with it."""

    model: type[Base]
    column: str
    kind: str
    values: Values


def bad_input(ground: Ground) -> list[Figure]:
    """Each bad row between good ones by the ORM, `bulk_create` and its repository: the verdicts are compared."""
    rows = [bad_row(ground.random, number) for number in range(ground.of(1000, 250))]
    sqlite, postgresql = DatabaseFactory(ground.new_sqlite()), DatabaseFactory(ground.new_postgresql())
    differences: list[str] = []
    nameless: list[str] = []
    kinds, verdicts = Counter[str](), Counter[str]()
    written = 0
    with sqlite, postgresql:
        for db in (sqlite, postgresql):
            _store_parents(db)
        before = [_count(db) for db in (sqlite, postgresql)]
        for number, row in enumerate(rows):
            for door in _DOORS:
                said = [_verdict(db, door, row, number) for db in (sqlite, postgresql)]
                kinds[row.kind] += 1
                verdicts[said[0].partition(":")[0]] += 1
                told = f"{row.model.__name__}.{row.column} {row.kind} by {door}: {' | '.join(sorted(set(said)))}"
                if said[0] != said[1]:
                    differences.append(told)
                if not all(words.startswith(("accepted", *_NAMED)) for words in said):
                    nameless.append(told)
        written = sum(_count(db) != count for db, count in zip((sqlite, postgresql), before, strict=True))
    for told in [*differences, *nameless][:20]:
        print(f"bad_input: {told}", flush=True)
    return [
        Figure(
            f"{len(rows):,} bad rows of {len(kinds)} kinds, {len(_DOORS)} doors each",
            "the same verdict on both databases, an error of the library",
            f"{len(differences)} differ, {len(nameless)} other errors; "
            + ", ".join(f"{count:,} {kind}" for kind, count in verdicts.most_common()),
            not differences and not nameless,
        ),
        Figure(
            "the same rows, counted afterwards in the seven tables",
            "nothing half-written",
            f"changed on {written} of 2 databases",
            written == 0,
        ),
    ]


def _orm(session: Session, model: type[Base], rows: list[Values]) -> None:
    for values in rows:
        session.add(model(**values))
    session.flush()


def _bulk(session: Session, model: type[Base], rows: list[Values]) -> None:
    bulk_create(session, model, rows, on_conflict="error")


def _repository(session: Session, model: type[Base], rows: list[Values]) -> None:
    repository = _REPOSITORIES[model].across_users(session)
    for values in rows:
        repository.create(model(**values))


_DOORS: dict[str, Callable[[Session, type[Base], list[Values]], None]] = {
    "ORM": _orm,
    "bulk_create": _bulk,
    "repository": _repository,
}


class _UndoError(Exception):
    """Rolls back what was accepted."""


def _verdict(db: DatabaseFactory, door: str, row: BadRow, number: int) -> str:
    """What is said of the row, in words that must not depend on the database.

    Whoever catches the error of `bulk_create` and goes on commits with it nothing of the batch; that of a session's
    other writes ends the session.
    """
    rows = [good_values(row.model, f"a{number}"), dict(row.values), good_values(row.model, f"b{number}")]
    said = ""
    try:
        with db.get_session() as session:
            try:
                _DOORS[door](session, row.model, rows)
            except Exception as error:  # any error is compared
                said = _words(error)
                if door == "bulk_create":
                    return said
                raise
            said = f"accepted{_read_back(session, row)}"
            raise _UndoError
    except Exception:  # noqa: BLE001 # told above
        return said


def _words(error: Exception) -> str:
    """An error's type and message; of a failure of the database without the driver's words, which are its own."""
    text = f"{error.problem}; {error.remedy}" if isinstance(error, DatabaseFailure) else str(error)
    return f"{type(error).__name__}: {text}"


def _read_back(session: Session, row: BadRow) -> str:
    column = row.model.__table__.c[row.column]
    if row.values.get(column.name) is None or isinstance(column.type, CheckedInteger):
        return ""  # a default of the moment, or a number of the database's own counting
    return f": {sorted(map(repr, session.scalars(select(column))))}"


def _count(db: DatabaseFactory) -> list[int]:
    with db.get_session(read_only=True) as session:
        return [session.scalar(select(func.count()).select_from(table)) or 0 for table in Base.metadata.sorted_tables]


def _store_parents(db: DatabaseFactory) -> None:
    with db.get_session() as session:
        for model in _REPOSITORIES:
            session.add(model(**good_values(model, "good")))
            session.flush()


def good_values(model: type[Base], tag: str) -> Values:
    """Every column of a good row but a number of the database's own; `tag` makes it unlike every other one."""
    given: Values = {
        "user_id": tag if model is User else "good",
        "account_id": tag if model is BybitAccount else "good",
        "strategy_id": tag if model is Strategy else "good",
        "run_id": tag if model is Run else "good",
        "credential_id": tag,
        "username": tag,
        "email": f"{tag}@example.com",
        "status": {User: "active", BybitAccount: "enabled"}.get(model, "running"),
        "account_name": tag,
        "environment": "testnet",
        "api_key_id": tag,
        "api_secret": tag,
        "is_active": False,
        "strategy_type": "GridStrategy",
        "symbol": tag,
        "config_json": {"step": "0.2"},
        "is_enabled": True,
        "run_type": "live",
        "gridcore_version": "1.0",
        "config_snapshot": {"step": "0.2"},
        "host": "bench",
        "side": "Buy",
        "raw_json": {"execId": tag},
        "trade_id": tag,
        "exec_id": tag,
        "order_id": tag,
        "order_link_id": tag,
    }
    values: Values = {}
    for column in model.__table__.columns:
        if isinstance(column.type, UTCDateTime):
            values[column.name] = _NOW
        elif isinstance(column.type, Money):
            values[column.name] = Decimal("1.5")
        elif column.name in given:
            values[column.name] = given[column.name]
    return values


def bad_row(draw: Draw, number: int) -> BadRow:
    """A row with one value that is wrong, or that looks wrong and is not: the databases must agree on either."""
    model = draw.choice(list(_REPOSITORIES))
    table: Table = model.__table__  # type: ignore[assignment] # declared wider than it is
    column = draw.choice(list(table.columns))
    values = good_values(model, f"x{number}")
    kind, value = draw.choice(_wrong_for(column, draw))
    if value is _MISSING:
        values.pop(column.name, None)
    else:
        values[column.name] = value
    return BadRow(model, column.name, kind, values)


def _wrong_for(column: Column[Any], draw: Draw) -> list[tuple[str, Any]]:
    wrong = _WRONG[type(column.type)](column, draw)
    wrong += [("NULL", None), ("missing", _MISSING), ("an object", ...), ("bytes", draw.randbytes(4)), ("a set", {1})]
    if column.foreign_keys:
        wrong += [("unknown parent", f"nobody-{draw.randrange(10**6)}"), ("a parent's id in capitals", "GOOD")]
    if column.unique or column.primary_key:
        wrong.append(("stored already", good_values(_model_of(column), "good").get(column.name, 1)))
    return wrong


def _model_of(column: Column[Any]) -> type[Base]:
    return next(model for model in _REPOSITORIES if model.__table__ is column.table)


def _text(column: Column[Any], draw: Draw) -> list[tuple[str, Any]]:
    limit = getattr(column.type, "length", None) or 40
    letters = "".join(draw.choices(string.ascii_letters + "äß漢😀", k=draw.randrange(1, 9)))
    return [
        ("over-long text", letters[0] * (limit + draw.randrange(1, 400))),
        ("text at its limit", (letters * limit)[:limit]),
        ("NUL in text", letters + "\0"),
        ("lone surrogate", letters + chr(draw.randrange(0xD800, 0xE000))),
        ("empty text", ""),
        ("a number for text", draw.randrange(10**6)),
        ("a list for text", [letters]),
        ("a boolean for text", True),
    ]


def _word(column: Column[Any], draw: Draw) -> list[tuple[str, Any]]:
    kind = column.type
    assert isinstance(kind, Vocabulary)
    word = draw.choice(list(kind.words))
    return [
        ("wrong word", "".join(draw.choices(string.ascii_lowercase, k=draw.randrange(1, 30)))),
        ("word in other case", word.value.swapcase()),
        ("word with a space", f"{word.value} "),
        ("a member of the vocabulary", word),
        *_text(column, draw),
    ]


def _money(column: Column[Any], draw: Draw) -> list[tuple[str, Any]]:
    # Numbers of more than 15 digits are left out: SQLite refuses by design what its floats would change.
    digits = Decimal(draw.randrange(1, 10**9))
    return [
        ("a float for money", draw.uniform(-1e6, 1e6)),
        ("NaN", Decimal(draw.choice(("NaN", "sNaN", "-NaN")))),
        ("Infinity", draw.choice((Decimal("Infinity"), Decimal("-Infinity"), "Infinity", "inf"))),
        ("out of range", draw.choice((10**12, Decimal("1e30"), "-1e999999", 2**200))),
        ("words for money", draw.choice(("1,5", "abc", "", "1.5 USDT", "0x10", "--1"))),
        ("a boolean for money", True),
        ("more than 8 places", digits.scaleb(-draw.randrange(9, 15))),
        ("a number as text", str(digits.scaleb(-3))),
    ]


def _instant(column: Column[Any], draw: Draw) -> list[tuple[str, Any]]:
    return [
        ("naive datetime", _NOW.replace(tzinfo=None)),
        ("a date", date(2025, 5, draw.randrange(1, 30))),
        ("text for a time", draw.choice(("2025-05-19T12:00:00Z", "now", ""))),
        ("a number for a time", draw.choice((1_747_656_000_000, 1.5))),
        ("a time out of range", draw.choice((_FIRST, _LAST))),
        ("another zone", _NOW.astimezone(timezone(timedelta(minutes=draw.randrange(-800, 800))))),
    ]


def _json(column: Column[Any], draw: Draw) -> list[tuple[str, Any]]:
    deep: Any = []
    for _ in range(draw.randrange(101, 300)):
        deep = [deep]
    return [
        ("NaN in JSON", {"a": [float("nan")]}),
        ("Infinity in JSON", {"a": float("-inf")}),
        ("NUL in JSON", {"a": "\0"}),
        ("lone surrogate in JSON", {"a\ud800": 1}),
        ("a set in JSON", {"a": {1, 2}}),
        ("a key that is no text", {1: "a"}),
        ("deep JSON", deep),
        ("a scalar for JSON", draw.choice((1, "text", 1.5, True))),
        ("a float that JSONB changes", {"a": 1e23}),
        ("naive datetime in JSON", [datetime(2025, 1, 1)]),  # noqa: DTZ001 # what is wrong with it
        ("Decimals in JSON", {"a": Decimal("1.10"), "b": (1, None)}),
    ]


def _integer(column: Column[Any], draw: Draw) -> list[tuple[str, Any]]:
    return [
        ("more than 64 bits", draw.choice((2**63, -(2**63) - 1, 10**30))),
        ("a float for a number", 1.5),
        ("text for a number", "1"),
        ("a boolean for a number", True),
    ]


def _boolean(column: Column[Any], draw: Draw) -> list[tuple[str, Any]]:
    return [
        ("a number for a boolean", draw.choice((0, 1, 2))),
        ("text for a boolean", draw.choice(("yes", "true", ""))),
    ]


_WRONG: Mapping[type[Any], Callable[[Column[Any], Draw], list[tuple[str, Any]]]] = {
    BoundedString: _text,
    SecretText: _text,
    Vocabulary: _word,
    Money: _money,
    UTCDateTime: _instant,
    Json: _json,
    CheckedInteger: _integer,
    CheckedBoolean: _boolean,
}
