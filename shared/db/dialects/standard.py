"""No database at all: how a statement is printed, and the tables are drawn."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, String
from sqlalchemy.types import TypeEngine

from shared.db.dialects.postgresql import PostgreSQL


class Standard(PostgreSQL):
    """PostgreSQL's SQL, which is the nearest to the standard, without types of its own."""

    dialects: ClassVar[frozenset[str]] = frozenset({"default"})

    def document(self) -> TypeEngine[Any]:
        """JSON."""
        return JSON(none_as_null=True)

    def text(self, length: int) -> TypeEngine[Any]:
        """In no order in particular."""
        return String(length)
