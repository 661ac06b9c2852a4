"""Signals and trades from JSON files of other systems, those of an SQLite bot for one.

A file is an array of records, an object of arrays by their kind, JSON lines, or what an import has rejected. Names are
theirs or ours. A time without a zone is UTC, as theirs are. Whose a record is, is said by the caller alone.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import select

from shared.db import DatabaseFactory, InputError, Json, Money, Repository, UTCDateTime
from shared.fleet.models import Signal, Trade, TradeStatus
from shared.fleet.repositories import BotRepository

KINDS = ("signals", "trades")
"""What can be imported, in the order in which records name each other."""

RULES = {
    "zero-amount": "amount=0",
    "large-amount": "amount>1000",
    "high-price": "price>200000",
    "test-symbol": "symbol=TEST*",
}
"""The rules of the SQLite bot. They fit real fills too (of 0, of a cheap coin), so that none is applied unasked."""

_MODELS: dict[str, type[Signal | Trade]] = {"signals": Signal, "trades": Trade}
_THEIRS = {
    "signals": {"id": "signal_id", "timestamp": "ts"},
    "trades": {"id": "trade_id", "timestamp": "ts", "action": "side", "amount": "quantity"},
}
_SUFFIX = ".rejected.jsonl"
_NAMESPACE = uuid.UUID("6d5b3c0e-2f0a-4c7e-9a7e-5f1d5b0c3a11")
_RULE = re.compile(r"(\w+)([=<>])(.+)")
_BATCH = 5000


class TaggingRule(NamedTuple):
    """What tags a record as test data: a field, one of `=`, `<` and `>`, and a value; `TEST*` fits beginnings."""

    field: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> TaggingRule:
        """The rule that `text` writes or names. Raises `ValueError` for any other."""
        found = _RULE.fullmatch(RULES.get(text, text))
        if found is None:
            raise ValueError(
                f"{text!r} is no rule; write FIELD=VALUE, FIELD<VALUE or FIELD>VALUE, or one of {[*RULES]}"
            )
        rule = cls(*found.groups())
        if rule.operator != "=" and _number(rule.value) is None:
            raise ValueError(f"{text!r} compares with {rule.value!r}, which is no number")
        return rule

    def fits(self, row: dict[str, Any], theirs: dict[str, str]) -> bool:
        """Whether a record, by our names, is test data; `theirs` are the other names of its fields."""
        said = row.get(theirs.get(self.field, self.field))
        number, bound = _number(said), _number(self.value)
        if number is None or bound is None:
            if self.operator != "=" or not isinstance(said, str):
                return False
            return said.startswith(self.value[:-1]) if self.value.endswith("*") else said == self.value
        return number == bound if self.operator == "=" else number < bound if self.operator == "<" else number > bound


@dataclass
class JsonImport:
    """What became of the records of a file; `rejected_file` has those that were not taken, to be corrected there."""

    file: str
    rejected_file: str
    inserted: int = 0
    skipped: int = 0
    rejected: int = 0
    tagged: int = 0


class _Record(NamedTuple):
    kind: str
    position: int
    given: Any


def import_json(
    db: DatabaseFactory,
    files: Sequence[str | Path],
    *,
    user_id: str,
    bot: str,
    kind: str | None = None,
    rules: Sequence[TaggingRule] = (),
    leave_out: Sequence[str] = (),
) -> Iterator[JsonImport]:
    """Store the records of each file as those of a user's bot, 5,000 a transaction; a second time changes nothing.

    A record is known by its id and the bot, without one by what it says. One that cannot be stored goes with its reason
    into FILE.rejected.jsonl, which is imported as any other file, and then keeps what is refused again; it is
    removed when that is nothing. What was told there before stays, corrected or not. `rules` say which records are
    test data; one that says so itself stays it. `kind` is that of an array whose file's name begins with neither.

    Raises `InputError` for a file that cannot be read, before anything of it is stored, and if there is no such bot.
    """
    db.check_schema()
    with db.get_session(user_id=user_id, read_only=True) as session:
        found = BotRepository(session).get_by_name(user_id, bot)
        if found is None:
            raise InputError(f"user {user_id!r} has no bot called {bot!r}; name one that is there, or add it first")
        bot_id = found.bot_id
    for path in map(Path, files):
        records = _records(path, kind)
        again = path.name.endswith(_SUFFIX)
        target = path if again else path.with_name(path.name + _SUFFIX)
        report = JsonImport(str(path), str(target))
        rejected: list[tuple[_Record, str]] = []
        for one in KINDS:
            same = [record for record in records if record.kind == one]
            for start in range(0, len(same), _BATCH):
                _store(db, user_id, bot_id, same, start, rules, frozenset(leave_out), report, rejected)
        report.rejected = len(rejected)
        _tell(target, rejected, again)
        yield report


def _store(
    db: DatabaseFactory,
    user_id: str,
    bot_id: str,
    same: list[_Record],
    start: int,
    rules: Sequence[TaggingRule],
    leave_out: frozenset[str],
    report: JsonImport,
    rejected: list[tuple[_Record, str]],
) -> None:
    records, kind = same[start : start + _BATCH], same[0].kind
    earlier = Counter(_content(record.given) for record in same[:start]) if start else Counter[str]()
    model, theirs = _MODELS[kind], _THEIRS[kind]
    key = theirs["id"]
    taken: list[tuple[_Record, dict[str, Any]]] = []
    for record in records:
        content = _content(record.given)
        earlier[content] += 1
        try:
            row = _row(record, leave_out)
        except ValueError as error:
            rejected.append((record, str(error)))
            continue
        own = row.get(key)
        # The same record twice is two: whoever wrote no ids had no other way to tell of two equal trades.
        row[key] = _id(bot_id, kind, content, earlier[content]) if own is None else _id(bot_id, kind, own)
        if row.get("signal_id") is not None and kind == "trades":
            row["signal_id"] = _id(bot_id, "signals", row["signal_id"])
        if any(rule.fits(row, theirs) for rule in rules):
            row["test_mode"] = True
        taken.append((record, row | {"bot_id": bot_id}))
    with db.get_session(user_id=user_id) as session:
        if kind == "trades":
            named = sorted({row["signal_id"] for _, row in taken if row.get("signal_id") is not None})
            there: set[str] = set()
            for first in range(0, len(named), 500):
                part = named[first : first + 500]
                there |= set(session.scalars(select(Signal.signal_id).where(Signal.signal_id.in_(part))))
            lost = [
                record for record, row in taken if row.get("signal_id") is not None and row["signal_id"] not in there
            ]
            rejected += [(record, "its signal is not stored; import the signals first") for record in lost]
            taken = [
                (record, row) for record, row in taken if row.get("signal_id") is None or row["signal_id"] in there
            ]
        result = Repository(session, model).bulk_create([row for _, row in taken], errors="collect")
    refused = {error.position for error in result.errors}
    rejected += [(taken[error.position][0], error.reason) for error in result.errors]
    report.inserted += result.inserted
    report.skipped += result.skipped
    report.tagged += sum(row.get("test_mode") is True for at, (_, row) in enumerate(taken) if at not in refused)


def _row(record: _Record, leave_out: frozenset[str]) -> dict[str, Any]:
    """A record by our names, its texts read as its columns want them. `ValueError` says what is wrong with it."""
    if not isinstance(record.given, dict):
        raise ValueError("the record is no object")
    columns: Any = _MODELS[record.kind].__table__.columns
    row: dict[str, Any] = {}
    given: dict[str, Any] = record.given
    for field, value in given.items():
        if field in leave_out:
            continue
        name = _THEIRS[record.kind].get(field, field)
        if name not in columns or name == "bot_id":
            raise ValueError(f"{field} has no column; correct its name, or leave it out by --leave-out {field}")
        if name in row:
            raise ValueError(f"{field} and {name} are the same; keep one of them")
        kind = columns[name].type
        if isinstance(value, str) and isinstance(kind, Money):
            value = _number(value) if _number(value) is not None else value
        elif isinstance(value, str) and isinstance(kind, UTCDateTime):
            value = _instant(field, value)
        elif isinstance(kind, Json):
            value = _plain(value)
        if value is not None:
            row[name] = value
    if record.kind == "trades":
        if isinstance(row.get("side"), str):
            row["side"] = row["side"].capitalize()
        # Theirs are trades that were executed.
        row = {"status": TradeStatus.FILLED.value, "executed_price": row.get("price")} | row
    elif isinstance(row.get("final_signal"), str):
        row["final_signal"] = row["final_signal"].upper()
    missing = [
        name
        for name, column in columns.items()
        if not (column.nullable or column.default is not None or name in row or name == "bot_id")
    ]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing")
    return row


def _records(path: Path, kind: str | None) -> list[_Record]:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 at byte {error.start}; write it anew, nothing of it was stored") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    try:
        told = _parsed(text)
        lines = [told] if isinstance(told, dict) and not _by_kind(told) else None
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            at = len(text[: error.pos].encode())
            raise InputError(
                f"{path} is broken at byte {at} ({error.msg}); mend it, nothing of it was stored"
            ) from None
        lines = [_line(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):  # a number of thousands of digits, or brackets within brackets
        raise InputError(f"{path} has a number too long or is nested too deep; nothing of it was stored") from None
    if lines is None and isinstance(told, dict):
        return [_Record(of, at, given) for of, those in told.items() for at, given in enumerate(those)]
    given_ones = lines if lines is not None else told
    if not isinstance(given_ones, list):
        raise InputError(
            f"{path} holds no records; an array, an object of arrays by {KINDS}, or lines of JSON are read"
        )
    by_name = next((one for one in KINDS if path.name.startswith(one)), None)
    made = []
    for at, given in enumerate(given_ones):
        if isinstance(given, dict) and given.get("table") in KINDS and {"reason", "row", "position"} <= given.keys():
            made.append(_Record(given["table"], given["position"], given["row"]))
        elif (of := kind or by_name) is not None:
            made.append(_Record(of, at, given))
        else:
            raise InputError(f"{path} does not say what its records are; add --as, one of {', '.join(KINDS)}")
    return made


def _by_kind(told: dict[str, Any]) -> bool:
    return bool(told) and all(name in KINDS and isinstance(those, list) for name, those in told.items())


def _parsed(text: str) -> Any:
    return json.loads(text, parse_float=_float)


def _float(text: str) -> Decimal | str:
    number = _number(text)
    return text if number is None else number


def _line(line: str) -> Any:
    try:
        return _parsed(line)
    except (ValueError, RecursionError):
        return line


def _tell(target: Path, rejected: list[tuple[_Record, str]], again: bool) -> None:
    """Write what was rejected; a file of an earlier import is added to, for it may have been corrected meanwhile."""
    told = target.read_text("utf-8") if target.exists() and not again else ""
    known = {
        (said.get("table"), said.get("position")) for said in map(_line, told.splitlines()) if isinstance(said, dict)
    }
    for record, reason in rejected:
        if (record.kind, record.position) not in known:
            said = {"table": record.kind, "position": record.position, "reason": reason, "row": record.given}
            told += json.dumps(said, default=str) + "\n"
    if not told:
        target.unlink(missing_ok=True)
        return
    part = target.with_name(target.name + ".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(told)
        file.flush()
        os.fsync(file.fileno())
    part.replace(target)


def _content(given: Any) -> str:
    return json.dumps(given, sort_keys=True, default=str)


def _id(*parts: Any) -> str:
    return str(uuid.uuid5(_NAMESPACE, json.dumps(parts, default=str)))


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, str, Decimal)):
        return None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _instant(field: str, text: str) -> datetime:
    try:
        told = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{field}: {text!r} is no time of ISO 8601") from None
    return told if told.tzinfo is not None else told.replace(tzinfo=UTC)


def _plain(value: Any, levels: int = 100) -> Any:
    """A document with floats where JSON has them, as long as they are the same number; other Decimals stay exact."""
    if levels == 0:
        raise ValueError("a document has at most 100 levels")
    if isinstance(value, dict):
        return {name: _plain(one, levels - 1) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, levels - 1) for one in value]
    return float(value) if isinstance(value, Decimal) and Decimal(repr(float(value))) == value else value
