"""What a condition means, where the databases would answer it differently: what PostgreSQL takes it to mean.

By rules of the compiler, and by functions that SQLite is given.

A condition is written out once for each form of statement, so that most of this costs nothing when it runs. What is
left is in `docs/same_answers.md`, and what must not pass in silence is refused by name.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Engine

from shared.db.dialects import MYSQL, POSTGRESQL, SQLITE, PerDatabase
from shared.db.same_answers import mysql, postgresql, sqlite

_RULES: PerDatabase[Any] = PerDatabase(
    "rules of conditions", {SQLITE: sqlite.Rules, POSTGRESQL: postgresql.Rules, MYSQL: mysql.Rules}
)


def unify(engine: Engine) -> None:
    """Have an engine write out conditions by these rules."""
    compiler: Any = engine.dialect.statement_compiler
    # Each engine has a dialect of its own.
    engine.dialect.statement_compiler = _with_rules(_RULES.of(engine), compiler)


@lru_cache
def _with_rules(rules: Any, compiler: Any) -> Any:
    return type(compiler.__name__, (rules, compiler), {})
