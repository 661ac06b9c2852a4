"""Where SQLAlchemy writes for PostgreSQL what it would not take as meant."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Date
from sqlalchemy.sql.elements import ColumnClause

from shared.db.same_answers import rules
from shared.db.same_answers.rules import is_time


class Rules(rules.Rules):
    """What differs from SQLAlchemy's own there."""

    def document(self, side: Any, **options: Any) -> str:
        """SQLAlchemy sends a document as JSON, which has no equality."""
        text: str = self.process(side, **options)
        return text if isinstance(side, ColumnClause) else f"CAST({text} AS JSONB)"

    def visit_extract(self, extract: Any, **options: Any) -> str:
        """In UTC, whatever the session's zone."""
        if is_time(extract.expr) and extract.field != "epoch":
            field = self.extract_map.get(extract.field, extract.field)
            return f"EXTRACT({field} FROM {self._in_utc(extract.expr, **options)})"
        text: str = super().visit_extract(extract, **options)
        return text

    def visit_cast(self, cast: Any, **options: Any) -> str:
        """A day is one of UTC's, too."""
        if isinstance(cast.type, Date) and is_time(cast.clause):
            return f"CAST({self._in_utc(cast.clause, **options)} AS DATE)"
        text: str = super().visit_cast(cast, **options)
        return text

    def _in_utc(self, expression: Any, **options: Any) -> str:
        return f"timezone('UTC', {self.process(expression, **options)})"
