"""Signals and trades from JSON files of other systems, those of an SQLite bot for one.

A file is an array of records, an object of arrays by their kind, or JSON lines. Names are theirs or ours. A time
without a zone is UTC, as theirs are. Whose a record is, is said by the caller alone.
"""

from __future__ import annotations

import json
import operator
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

from shared.db import DatabaseFactory, InputError, Recorder, read_json
from shared.fleet.models import Signal, Trade, TradeStatus
from shared.fleet.repositories import BotRepository

KINDS: dict[str, type[Signal | Trade]] = {"signals": Signal, "trades": Trade}
"""What can be imported, in the order in which records name each other."""

RULES = {
    "zero-amount": "amount=0",
    "large-amount": "amount>1000",
    "high-price": "price>200000",
    "test-symbol": "symbol=TEST*",
}
"""The rules of the SQLite bot. They fit real fills too (of 0, of a cheap coin), so that none is applied unasked."""

# What says whose a record is has no column of that name, and is refused.
_THEIRS = {"timestamp": "ts", "action": "side", "amount": "quantity", "bot_id": "bot_of_the_file"}
_NAMESPACE = uuid.UUID("6d5b3c0e-2f0a-4c7e-9a7e-5f1d5b0c3a11")
_RULE = re.compile(r"(\w+)(=|[<>](?=-?\d+(?:\.\d+)?$))(.+)")
_Fits = Callable[[dict[str, Any]], bool]
_COMPARED = {"=": operator.eq, "<": operator.lt, ">": operator.gt}


class JsonImport(NamedTuple):
    """What became of a file's records of a kind; `rejected_file` has those not taken, to be corrected there."""

    file: str
    kind: str
    rejected_file: str
    inserted: int
    skipped: int
    rejected: int
    tagged: int


def import_json(
    db: DatabaseFactory,
    files: Sequence[str | Path],
    *,
    user_id: str,
    bot: str,
    kind: str | None = None,
    rules: Sequence[str] = (),
    leave_out: Sequence[str] = (),
) -> Iterator[JsonImport]:
    """Store the records of each file as those of a user's bot, 1,000 a transaction; a second time changes nothing.

    A record is known by its id and the bot, without one by what it says. One that cannot be stored goes with its reason
    into FILE.rejected.jsonl, the dead letters of a recorder: corrected there, it is stored by
    `python -m shared.db replay`. What was told there before stays, corrected or not. `rules` say which records are
    test data, by a name of `RULES` or in words ("price>200000"); one that says so itself stays it. `kind` is that of an
    array whose file's name begins with neither.

    Raises `InputError` for a file that cannot be read, before anything of it is stored, for a rule that is none, and if
    there is no such bot.
    """
    tagging = [*map(_rule, rules)]
    db.check_schema()
    with db.get_session(user_id=user_id, read_only=True, max_staleness=0) as session:
        found = BotRepository(session).get_by_name(user_id, bot)
        if found is None:
            raise InputError(f"user {user_id!r} has no bot called {bot!r}; name one that is there, or add it first")
        bot_id = found.bot_id
    for path in map(Path, files):
        records = _records(path, kind)
        for each in (one for one in KINDS if one in records):
            yield _store(db, user_id, each, _rows(records[each], each, bot_id, tagging, leave_out), path)


def _store(db: DatabaseFactory, user_id: str, kind: str, rows: list[dict[str, Any]], path: Path) -> JsonImport:
    model, key, target = KINDS[kind], f"{kind[:-1]}_id", path.with_name(f"{path.name}.rejected.jsonl")
    told = target.read_text("utf-8") if target.exists() else ""
    known = {*re.findall(rf'"table": ?"{model.__tablename__}".*"{key}": ?"([^"]*)"', told)}
    new = [row for row in rows if row[key] not in known]
    written: list[Any] = []
    room = 2 * len(new) + 2
    with Recorder(
        db, model, user_id=user_id, max_buffered=room, dead_letters=target, on_written=written.extend
    ) as recorder:
        recorder.add(new)
        recorder.flush()
    stats = recorder.stats()
    rejected = stats.rejected + len(rows) - len(new)
    tagged = sum(row["test_mode"] is True for row in written)
    return JsonImport(str(path), kind, str(target), stats.written, stats.duplicates, rejected, tagged)


def _rows(
    records: Sequence[Any], kind: str, bot_id: str, rules: Sequence[_Fits], leave_out: Sequence[str]
) -> list[dict[str, Any]]:
    """The records by our names. What is no record, or has a field without a column, is left to be refused."""
    key, seen, rows = f"{kind[:-1]}_id", Counter[str](), []
    names = _THEIRS | {"id": key}
    for given in records:
        fields = given if isinstance(given, dict) else {"no_object": given}
        row = {
            name if (name := names.get(field, field)) not in fields else field: _value(name, value)
            for field, value in fields.items()
            if field not in leave_out and value is not None
        }
        content = json.dumps(given, sort_keys=True, default=str)
        seen[content] += 1
        # The same record twice is two: whoever wrote no ids had no other way to tell of two equal trades.
        row[key] = _id(bot_id, kind, row[key]) if key in row else _id(bot_id, kind, content, seen[content])
        if kind == "trades":
            # Theirs are trades that were executed.
            row = {"status": TradeStatus.FILLED.value, "executed_price": row.get("price")} | row
            if "signal_id" in row:
                row["signal_id"] = _id(bot_id, "signals", row["signal_id"])
        row["test_mode"] = any(fits(row) for fits in rules) or row.get("test_mode", False)
        rows.append(row | {"bot_id": bot_id})
    return rows


def _value(name: str, value: Any) -> Any:
    """What a field says, as its column wants it; what it cannot be is left as it is, and refused there."""
    if isinstance(value, str) and name == "ts":
        try:
            told = datetime.fromisoformat(value)
        except ValueError:
            return value
        return told if told.tzinfo is not None else told.replace(tzinfo=UTC)
    if isinstance(value, str) and name in ("side", "final_signal"):
        return value.capitalize() if name == "side" else value.upper()
    return json.loads(json.dumps(value, default=_number)) if isinstance(value, (dict, list)) else value


def _records(path: Path, kind: str | None) -> dict[str, list[Any]]:
    """The records of a file by their kind."""
    told = read_json(path)
    if isinstance(told, dict):
        if told and all(name in KINDS and isinstance(those, list) for name, those in told.items()):
            return told
        told = [told]  # a single line
    kind = kind or next((one for one in KINDS if path.name.startswith(one)), None)
    if kind is None:
        raise InputError(f"{path} does not say what its records are; add --as, one of {', '.join(KINDS)}")
    return {kind: told}


def _number(number: Decimal) -> float | str:
    """A number of a document, as text where no float is the same."""
    return float(number) if Decimal(repr(float(number))) == number else str(number)


def _id(*parts: Any) -> str:
    return str(uuid.uuid5(_NAMESPACE, json.dumps(parts, default=str)))


def _rule(text: str) -> _Fits:
    """Whether a record, by our names, is test data by the rule that `text` writes or names."""
    found = _RULE.fullmatch(RULES.get(text, text))
    if found is None:
        raise InputError(f"{text!r} is no rule; write FIELD=VALUE, FIELD<NUMBER or FIELD>NUMBER, or one of {[*RULES]}")
    field, sign, value = found.groups()

    def fits(row: dict[str, Any]) -> bool:
        said: Any = row.get(_THEIRS.get(field, field))
        if sign == "=" and value.endswith("*"):
            return isinstance(said, str) and said.startswith(value[:-1])
        try:
            return bool(_COMPARED[sign](Decimal(said), Decimal(value)))
        except (TypeError, ValueError, InvalidOperation):
            return sign == "=" and said == value

    return fits
