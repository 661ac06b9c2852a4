"""PostgreSQL's answers on MariaDB and MySQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, or_
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BindParameter, ClauseElement, Tuple, UnaryExpression

from shared.db.errors import InvalidValueError
from shared.db.same_answers import rules
from shared.db.same_answers.rules import no_join_makes_nulls, nulls, time_kind

_ORDER = {operators.lt, operators.le, operators.gt, operators.ge}
_OR_EQUAL = {operators.lt: operators.le, operators.gt: operators.ge}
_DIRECTIONS = (operators.asc_op, operators.desc_op)
_NULLS = (operators.nulls_first_op, operators.nulls_last_op)


class Rules(rules.Rules):
    """What SQLAlchemy would write otherwise, or the servers take otherwise."""

    def document(self, side: Any, **options: Any) -> str:
        """The same document, whatever the order of its keys; one of more than 31 levels on MariaDB the same text."""
        text = self.process(side, **options)
        return f"coalesce(json_normalize({text}), {text})" if self.dialect.is_mariadb else f"CAST({text} AS JSON)"

    def visit_binary(self, binary: Any, override_operator: Any = None, **options: Any) -> Any:
        """Several columns at once, (a, b) > (x, y), as conditions for which an index is used."""
        op = override_operator or binary.operator
        if op in _ORDER and isinstance(binary.left, Tuple) and isinstance(binary.right, Tuple):
            options.pop("eager_grouping", None)
            pairs = list(zip(binary.left.clauses, binary.right.clauses, strict=True))
            return f"({self.process(_lexical(op, pairs), **options)})"
        return super().visit_binary(binary, override_operator=override_operator, **options)

    def visit_is__binary(self, binary: Any, operator: Any, **options: Any) -> str:
        """IS takes words alone, and no parameter."""
        return self._same(binary, " IS ", "{} <=> {}", **options)

    def visit_is_not_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        """The same the other way round."""
        return self._same(binary, " IS NOT ", "NOT ({} <=> {})", **options)

    def _same(self, binary: Any, words: str, form: str, **options: Any) -> str:
        if not isinstance(binary.right, BindParameter):
            text: str = self._generate_generic_binary(binary, words, **options)
            return text
        options.pop("eager_grouping", None)
        return form.format(*(self.process(side, **options) for side in (binary.left, binary.right)))

    def visit_sub_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        """Of times refused: the servers subtract their digits."""
        return self._calculated(binary, " - ", **options)

    def visit_add_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        """The same."""
        return self._calculated(binary, " + ", **options)

    def _calculated(self, binary: Any, sign: str, **options: Any) -> str:
        if any(time_kind(side) is not None for side in (binary.left, binary.right)):
            raise InvalidValueError("times and durations are not calculated with on MySQL; do it in Python")
        text: str = self._generate_generic_binary(binary, sign, **options)
        return text

    def visit_length_func(self, function: Any, **options: Any) -> str:
        """In characters; the servers' own counts bytes."""
        return f"char_length{self.function_argspec(function, **options)}"

    def visit_funcfilter(self, funcfilter: Any, **options: Any) -> str:
        """FILTER is unknown: of the other rows nothing is counted or summed up."""
        function = funcfilter.func
        criterion = self.process(funcfilter.criterion, **options)
        arguments = [self.process(argument, **options) for argument in function.clauses]
        what = arguments[0] if arguments and arguments[0] != "*" else "1"
        return f"{function.name}(CASE WHEN {criterion} THEN {what} END)"

    def order_by_clause(self, select: Any, **options: Any) -> str:
        """NULL is the greatest, as on PostgreSQL; nothing is added where there is none, which keeps an index in use."""
        certain = no_join_makes_nulls(select)
        written = []
        for clause in select._order_by_clauses:
            bare, said = _without_nulls(clause)
            text = self.process(bare, **options)
            wanted = said or nulls(bare, certain=certain)
            if wanted and text:
                ordered = self._ordered(bare)
                expression = self.process(ordered, **options | {"within_columns_clause": False})
                written.append(f"({expression}) IS {'NOT ' if 'FIRST' in wanted else ''}NULL")
            if text:
                written.append(text)
        return f" ORDER BY {', '.join(written)}" if written else ""

    def _ordered(self, clause: Any) -> Any:
        """What a clause of ORDER BY orders by, without its direction.

        Of an aggregate not by its alias, which the servers know by itself alone, and not within an expression.
        """
        while True:
            if clause.__visit_name__ == "textual_label_reference":
                named, *_ = self.stack[-1]["compile_state"]._label_resolve_dict
                if clause.element not in named:
                    return clause  # of which SQLAlchemy tells that there is none
                clause = named[clause.element]
            elif _is_label(clause) or (isinstance(clause, UnaryExpression) and clause.modifier in _DIRECTIONS):
                clause = clause.element
            else:
                return clause


def _lexical(op: Any, pairs: list[Any]) -> Any:
    (left, right), *others = pairs
    if not others:
        return op(left, right)
    strict = {operators.le: operators.lt, operators.ge: operators.gt}.get(op, op)
    return and_(_OR_EQUAL.get(op, op)(left, right), or_(strict(left, right), _lexical(op, others)))


def _without_nulls(clause: Any) -> tuple[Any, str]:
    """A clause of ORDER BY without what it says of NULL, and that."""
    if isinstance(clause, UnaryExpression) and clause.modifier in _NULLS:
        return clause.element, "FIRST" if clause.modifier is operators.nulls_first_op else "LAST"
    return clause, ""


def _is_label(clause: ClauseElement) -> bool:
    return clause.__visit_name__ in ("label", "label_reference")
