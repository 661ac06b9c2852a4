"""What every session of a factory does beside SQLAlchemy's own: it names what goes wrong in the ORM itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from shared.db.errors import StaleRowError


class NamingSession(Session):
    """A session whose own errors have names of `errors.py`; the driver's get theirs in the engine."""

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """As Session.flush(); `StaleRowError` for a row that is gone."""
        try:
            super().flush(objects)
        except StaleDataError as error:
            raise StaleRowError(str(error)) from error

    def execute(self, *args: Any, **options: Any) -> Any:
        """As Session.execute(); `StaleRowError` for a row that is gone, among those of an UPDATE by primary keys."""
        try:
            return super().execute(*args, **options)
        except StaleDataError as error:
            raise StaleRowError(str(error)) from error
