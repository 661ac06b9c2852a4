"""Every guard that keeps users apart, each with the source in which it is gone.

The statements are found in the syntax tree: every `raise`, every call made for its effect, every event listener. What
guards by an expression (a condition, a criterion, a pattern, an entry of the ownership map) is listed in guards.txt.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import shared.db.tests

PACKAGE = Path(shared.db.tests.__file__).parents[1]
GUARDS = Path(__file__).parent / "guards.txt"


@dataclass(frozen=True)
class Mutation:
    """One guard taken away: `module` (a path below shared/db) then has `source`."""

    module: str
    line: int
    what: str
    source: str

    @property
    def name(self) -> str:
        """The place and what was there."""
        return f"{self.module}:{self.line} {self.what}"


# Modules whose every statement of these kinds is a guard.
_WHOLLY = (
    "tenancy/session_scope.py",
    "tenancy/flush_guard.py",
    "tenancy/statement_guard.py",
    "tenancy/guard.py",
    "tenancy/user_ids.py",
    "tenancy/entity_values.py",
    "tenancy/plain_writes.py",
    "tenancy/confined_sql.py",
    "tenancy/leftovers.py",
    "transaction_control.py",
    "tenancy/written_text.py",
    "tenancy/functions.py",
    "tenancy/self_check.py",
)
# Modules of which only some are, by what the statement's text contains.
_PARTLY = {
    "transaction_control.py": ("TransactionControlError(", "_look_at(", "event.listen("),
    "engine/make.py": ("_statement)", "_statement,", "leftovers.", "transaction_control.", "confined_sql."),
    "bulk/create.py": (".violation(", "_prove", "check_rows(", "session.connection()"),
    "bulk/update.py": ("check_rows(", "RowNotFoundError("),
    "repositories.py": ("TenantScopeError(", "agreed_user(", "discard_changes(", "raise RowNotFoundError(self.model"),
}
# Calls that are made for their effect and guard nothing.
_NO_GUARDS = (
    "super().__init__",
    ".append(",
    ".extend(",
    ".add(",
    ".setdefault(",
    "to_visit.",
    "NotImplementedError",
    "_writing.reset",
)


def mutations() -> Iterator[Mutation]:
    """All of them."""
    for module in (*_WHOLLY, *_PARTLY):
        yield from _statements(module)
    for module, what, old, new in _listed():
        text = (PACKAGE / module).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{module} has this {text.count(old)} times; guards.txt wants it once:\n{old}"
        yield Mutation(module, text[: text.index(old)].count("\n") + 1, what, text.replace(old, new))


def _statements(module: str) -> Iterator[Mutation]:
    text = (PACKAGE / module).read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    seen: set[int] = set()  # a function within a function is walked twice
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for decorator in function.decorator_list:
            if "listens_for" in ast.unparse(decorator):
                mutated = _without(lines, decorator.lineno, decorator.end_lineno or 0, "")
                yield Mutation(module, decorator.lineno, f"the listener {function.name}()", mutated)
        for node in ast.walk(function):
            called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            if not (called or isinstance(node, ast.Raise)):
                continue
            assert isinstance(node, (ast.Expr, ast.Raise))
            said = ast.unparse(node)
            if node.lineno in seen or any(word in said for word in _NO_GUARDS) or said == "raise":
                continue
            if module in _PARTLY and not any(word in said for word in _PARTLY[module]):
                continue
            seen.add(node.lineno)
            indent = " " * node.col_offset
            mutated = _without(lines, node.lineno, node.end_lineno or 0, f"{indent}pass\n")
            short = said if len(said) <= 70 else said[:67] + "..."
            yield Mutation(module, node.lineno, f"{function.name}(): {short}", mutated)


def _without(lines: list[str], first: int, last: int, instead: str) -> str:
    return "".join([*lines[: first - 1], instead, *lines[last:]])


def _listed() -> Iterator[tuple[str, str, str, str]]:
    """Module, what is taken away, the text, and the text without it, as guards.txt has them."""
    for entry in re.split(r"^@@ ", GUARDS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, *lines = entry.splitlines()
        module, _, what = title.partition(": ")
        old, new = ("\n".join(line[1:] for line in lines if line[:1] == sign) for sign in "-+")
        yield module, what, old, new
