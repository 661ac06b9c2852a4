"""The rules that all databases need."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import JSON, Column, DateTime, Interval
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import (
    BinaryExpression,
    ClauseElement,
    ColumnElement,
    Grouping,
    TextClause,
    UnaryExpression,
)
from sqlalchemy.sql.selectable import Join

from shared.db.column_types import Money, MoneyTotal
from shared.db.errors import InvalidValueError
from shared.db.value_forms.amounts import MONEY_PLACES

_EQUALITIES: Final = {operators.eq: "=", operators.ne: "!="}
_ORDERINGS: Final = frozenset({operators.lt, operators.le, operators.gt, operators.ge, operators.between_op})
_COMPARISONS: Final = frozenset(
    {*_EQUALITIES, *_ORDERINGS, operators.not_between_op, operators.in_op, operators.not_in_op}
)
_CALCULATIONS: Final = frozenset({operators.add, operators.sub, operators.mul, operators.truediv, operators.mod})

_NULLS: Final = frozenset({operators.nulls_first_op, operators.nulls_last_op})

_Untyped: Any = SQLCompiler


class _Rounded(ColumnElement[Decimal]):
    """The result of a calculation with money, to the places that a stored amount has."""

    __visit_name__ = "rounded_money"
    inherit_cache = False  # it is made while a statement is written, and is never part of one before

    def __init__(self, element: ColumnElement[Any]) -> None:
        self.element = element
        self.type = element.type

    @property
    def _from_objects(self) -> Any:
        return self.element._from_objects


class Rules(_Untyped):  # type: ignore[misc] # SQLAlchemy's compilers have no types
    """What every database needs, before its own."""

    def visit_binary(self, binary: Any, override_operator: Any = None, **options: Any) -> Any:
        """Comparisons of documents, and of calculated amounts."""
        op = override_operator or binary.operator
        if op in _COMPARISONS:
            if op in _ORDERINGS and (is_json(binary.left) or is_json(binary.right)):
                raise InvalidValueError(
                    "documents have no order; compare what is in them as a type: column['key'].as_float() > 1"
                )
            if op in _EQUALITIES and (is_json(binary.left) or is_json(binary.right)):
                for option in ("from_linter", "lateral_from_linter", "eager_grouping"):
                    options.pop(option, None)
                sides = [self.document(side, **options) for side in (binary.left, binary.right)]
                return f" {_EQUALITIES[op]} ".join(sides)
            if _is_calculated(binary.left) or _is_calculated(binary.right):
                binary = binary._clone()
                binary.left, binary.right = _rounded(binary.left), _rounded(binary.right)
        return super().visit_binary(binary, override_operator=override_operator, **options)

    def visit_rounded_money(self, element: Any, **options: Any) -> str:
        """On SQLite 0.1 * 3 is not 0.3; on PostgreSQL a product has up to 16 places."""
        return f"round({self.process(element.element, **options)}, {MONEY_PLACES})"

    def document(self, side: Any, **options: Any) -> str:
        """A side of a comparison of documents."""
        raise NotImplementedError


def is_json(side: Any) -> bool:
    """Whether an expression is a document."""
    return getattr(side, "type", None) is not None and side.type._type_affinity is JSON


def _is_calculated(side: Any) -> bool:
    while isinstance(side, Grouping):
        side = side.element
    return (
        isinstance(side, BinaryExpression)
        and side.operator in _CALCULATIONS
        and isinstance(side.type, Money)
        and not isinstance(side.type, MoneyTotal)
    )


def _rounded(side: Any) -> Any:
    return _Rounded(side) if _is_calculated(side) else side


def is_time(expression: Any) -> bool:
    """Whether an expression is an instant."""
    return issubclass(expression.type._type_affinity, DateTime)


def time_kind(side: Any) -> type[Any] | None:
    """DateTime or Interval, if an expression is one of the two."""
    affinity = side.type._type_affinity
    return next((kind for kind in (DateTime, Interval) if issubclass(affinity, kind)), None)


def _sources(select: Any) -> Iterator[Any]:
    froms = select.get_final_froms() if hasattr(select, "get_final_froms") else ()
    waiting = list(froms)
    while waiting:
        source = waiting.pop()
        yield source
        if isinstance(source, Join):
            waiting += [source.left, source.right]


def _makes_nulls(join: Join) -> bool:
    return bool(join.isouter or join.full)


def no_join_makes_nulls(select: Any) -> bool:
    """Whether a column that is never NULL is none in this SELECT either."""
    return not any(isinstance(source, Join) and _makes_nulls(source) for source in _sources(select))


def nulls(clause: Any, *, certain: bool) -> str:
    """What has to be said of NULL behind a clause of ORDER BY."""
    descending = False
    while not isinstance(clause, Column):
        if isinstance(clause, TextClause) or getattr(clause, "is_literal", False):
            return ""  # raw SQL says itself what it wants
        if isinstance(clause, UnaryExpression):
            if clause.modifier in _NULLS:
                return ""
            descending = descending or clause.modifier is operators.desc_op
        inner = getattr(clause, "element", None)
        if not isinstance(inner, ClauseElement) or (isinstance(clause, UnaryExpression) and clause.modifier is None):
            break
        clause = inner
    if isinstance(clause, Column) and not clause.nullable and certain:
        return ""
    return " NULLS FIRST" if descending else " NULLS LAST"
