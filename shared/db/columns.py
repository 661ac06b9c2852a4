"""Columns that most tables have, each written once: a key, a parent's key, when, and one word of a list.

Every default is given twice, in Python for the ORM and in the schema for psql and COPY.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.column_types import BoundedString, UTCDateTime, Vocabulary, new_uuid, utc_now

ID_LENGTH: Final = 36
"""UUIDs are text, since the databases share no UUID type."""


def id_column() -> Mapped[str]:
    """A primary key: a random UUID as text."""
    return mapped_column(BoundedString(ID_LENGTH), primary_key=True, default=new_id, server_default=new_uuid())


def parent_column(key: str, **options: Any) -> Mapped[Any]:
    """The key of a row of another table, such as "runs.run_id", with which this one is deleted.

    `options` are those of `mapped_column`. It needs an index that begins with it.
    """
    return mapped_column(BoundedString(ID_LENGTH), ForeignKey(key, ondelete="CASCADE"), **options)


def created_column(comment: str | None = "Creation, UTC") -> Mapped[datetime]:
    """When a row was made, unless it says something else."""
    return mapped_column(UTCDateTime(), default=_now, server_default=utc_now(), comment=comment)


def updated_column(comment: str | None = "Last modification, UTC") -> Mapped[datetime]:
    """When a row was changed last by an update that does not say so itself."""
    return mapped_column(UTCDateTime(), default=_now, onupdate=_now, server_default=utc_now(), comment=comment)


def word_column(words: type[StrEnum], length: int, default: StrEnum) -> Mapped[str]:
    """One word of a list, of at most `length` characters; `one_of` in `__table_args__` is its CHECK."""
    return mapped_column(Vocabulary(words, length), default=default.value, server_default=default.value)


def new_id() -> str:
    """A key as `id_column` makes it."""
    return str(uuid.uuid4())


def _now() -> datetime:
    return datetime.now(UTC)
