"""PostgreSQL's answers on SQLite: rules, and the functions that a connection needs for them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from datetime import datetime
from decimal import Context, Decimal
from typing import Any, Final

from sqlalchemy import JSON, Date, DateTime, Float, Integer, Numeric, String
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import ClauseList, UnaryExpression

from shared.db.column_types import Money
from shared.db.dialects import SQLITE
from shared.db.errors import InvalidValueError
from shared.db.same_answers import rules
from shared.db.same_answers.rules import is_time, no_join_makes_nulls, nulls, time_kind

# As `UTCDateTime` is stored on SQLite, and there an interval too, as the moment that long after 1970 began.
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 # SQLite keeps no zone
_NOW: Final = SQLITE.now()


class Rules(rules.Rules):
    """PostgreSQL's answers on SQLite."""

    def document(self, side: Any, **options: Any) -> str:
        """The same document, whatever the order of its keys and the form of its numbers."""
        return f"shared_db_document({self.process(side, **options)})"

    # LIKE minds the case by a PRAGMA of the connection.

    def visit_like_op_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        """A backslash takes a sign of the pattern literally."""
        return super().visit_like_op_binary(binary, operator, **options) + _default_escape(binary)  # type: ignore[no-any-return] # text

    def visit_not_like_op_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        """The same the other way round."""
        return super().visit_not_like_op_binary(binary, operator, **options) + _default_escape(binary)  # type: ignore[no-any-return] # text

    def visit_now_func(self, function: Any, **options: Any) -> str:
        """In the form in which a time is stored."""
        return _NOW

    def visit_current_timestamp_func(self, function: Any, **options: Any) -> str:
        """The same clock."""
        return _NOW

    def visit_cast(self, cast: Any, **options: Any) -> str:
        """As a date SQLite would take the year alone, as a number."""
        if isinstance(cast.type, Date) and is_time(cast.clause):
            return f"date({self.process(cast.clause, **options)})"
        text: str = super().visit_cast(cast, **options)
        return text

    def visit_sub_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        """Differences of times."""
        return self._calculated(binary, " - ", **options)

    def visit_add_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        """Times and durations."""
        return self._calculated(binary, " + ", **options)

    def visit_mul_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        """Of durations refused."""
        return self._calculated(binary, " * ", **options)

    def visit_mod_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        """Of amounts: SQLite's own cuts them to whole numbers first."""
        if isinstance(binary.left.type, Money) or isinstance(binary.right.type, Money):
            return f"shared_db_remainder({self._sides(binary, **options)})"
        text: str = super().visit_mod_binary(binary, operator, **options)
        return text

    def _calculated(self, binary: Any, sign: str, **options: Any) -> str:
        kinds = [time_kind(side) for side in (binary.left, binary.right)]
        if kinds == [None, None]:
            text: str = self._generate_generic_binary(binary, sign, **options)
            return text
        if sign == " * " or None in kinds or (sign == " + " and kinds == [DateTime, DateTime]):
            raise InvalidValueError(
                "durations are added to and subtracted from times and each other, and compared; calculate anything "
                "else in Python"
            )
        return f"shared_db_time_{'less' if sign == ' - ' else 'plus'}({self._sides(binary, **options)})"

    def _sides(self, binary: Any, **options: Any) -> str:
        options.pop("eager_grouping", None)
        return ", ".join(self.process(side, **options) for side in (binary.left, binary.right))

    def visit_json_getitem_op_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        """What is not there is NULL, and a value is cast to the type that is asked for."""
        sides, kind = self._sides(binary, **options), binary.type._type_affinity
        found = f"json_extract({sides})"
        if kind is JSON:
            return f"CASE WHEN json_type({sides}) IS NOT NULL THEN json_quote({found}) END"
        if issubclass(kind, String):
            truth = "WHEN 'true' THEN 'true' WHEN 'false' THEN 'false'"
            return f"CASE json_type({sides}) {truth} ELSE CAST({found} AS TEXT) END"
        if issubclass(kind, Integer):
            return f"CAST({found} AS INTEGER)"
        return f"CAST({found} AS REAL)" if issubclass(kind, (Numeric, Float)) else found

    visit_json_path_getitem_op_binary = visit_json_getitem_op_binary

    def order_by_clause(self, select: Any, **options: Any) -> str:
        """NULL is the greatest, as on PostgreSQL; nothing is added where there is none, which keeps an index in use."""
        certain = no_join_makes_nulls(select)
        written = []
        for clause in select._order_by_clauses:
            text = self.process(clause, **options)
            if text:
                written.append(text + nulls(clause, certain=certain))
        return f" ORDER BY {', '.join(written)}" if written else ""

    def visit_over(self, over: Any, **options: Any) -> str:
        """The same within a window."""
        if over.order_by is not None and len(over.order_by):
            over = over._clone()
            over.order_by = ClauseList(*(_with_nulls(clause) for clause in over.order_by.clauses))
        text: str = super().visit_over(over, **options)
        return text


def _default_escape(binary: Any) -> str:
    return " ESCAPE '\\'" if binary.modifiers.get("escape") is None else ""


def _with_nulls(clause: Any) -> Any:
    wanted = nulls(clause, certain=False)
    if not wanted:
        return clause
    return UnaryExpression(clause, modifier=operators.nulls_first_op if "FIRST" in wanted else operators.nulls_last_op)


def register(connection: sqlite3.Connection) -> None:
    """Give a SQLite connection what the rules above write out."""
    connection.execute("PRAGMA case_sensitive_like=ON")
    functions: dict[str, tuple[int, Callable[..., Any]]] = {
        "shared_db_document": (1, _document),
        "shared_db_time_less": (2, _time_less),
        "shared_db_time_plus": (2, _time_plus),
        "shared_db_remainder": (2, _remainder),
    }
    for name, (count, function) in functions.items():
        connection.create_function(name, count, function, deterministic=True)


_EXACT = Context(prec=2_000)


def _document(text: str | None) -> str | None:
    """A JSON document in the one form that all equal documents have."""
    return None if text is None else _form_of(json.loads(text, parse_float=Decimal, parse_int=Decimal))


def _form_of(value: Any) -> str:
    if isinstance(value, Decimal):
        return str(value.normalize(_EXACT)) if value else "0"
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{_form_of(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(_form_of, value))}]"
    return json.dumps(value)


def _time_less(one: str | None, other: str | None) -> str | None:
    """A time, or the time between two, without a duration or another time."""
    if one is None or other is None:
        return None
    return _stored(_EPOCH + (datetime.fromisoformat(one) - datetime.fromisoformat(other)))


def _time_plus(one: str | None, other: str | None) -> str | None:
    """A time or duration, and a duration."""
    if one is None or other is None:
        return None
    return _stored(datetime.fromisoformat(one) + (datetime.fromisoformat(other) - _EPOCH))


def _stored(moment: datetime) -> str:
    return moment.isoformat(" ", "microseconds")


def _remainder(one: float | None, other: float | None) -> float | None:
    """What is left of an amount, with the sign that it has; NULL for a division by zero, as SQLite's own."""
    if one is None or not other:
        return None
    return float(_EXACT.remainder(Decimal(repr(one)), Decimal(repr(other))))
