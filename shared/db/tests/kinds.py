"""A table with columns of every type, for what goes into PostgreSQL in binary form."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import pytest
from sqlalchemy import URL, Float, SmallInteger, String
from sqlalchemy.orm import mapped_column

from shared.db import (
    SHARED_BY_ALL,
    Base,
    BoundedString,
    CheckedBoolean,
    CheckedInteger,
    CheckedText,
    DatabaseFactory,
    Json,
    Money,
    UTCDateTime,
    Vocabulary,
)
from shared.db.tests.outside import outside_tables


class Mood(StrEnum):
    """Words of a closed list."""

    CALM = "calm"
    WILD = "wïld"


def a_kind() -> type[Any]:
    """A table with columns of every type that has a binary form, and of SQLAlchemy's own."""
    columns: dict[str, Any] = {
        "words": CheckedText(),
        "short": BoundedString(6),
        "mood": Vocabulary(Mood, 4),
        "amount": Money(),
        "at": UTCDateTime(),
        "number": CheckedInteger(),
        "flag": CheckedBoolean(),
        "document": Json(),
        "ratio": Float(),
        "small": SmallInteger(),
        "plain": String(10),
    }
    body: dict[str, Any] = {
        "__tablename__": "kinds",
        "__ownership__": SHARED_BY_ALL,
        "key": mapped_column(CheckedInteger(), primary_key=True, autoincrement=False),
    }
    body |= {name: mapped_column(kind, nullable=True) for name, kind in columns.items()}
    return type("Kind", (Base,), body)


@pytest.fixture
def server(postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """PostgreSQL alone."""
    with DatabaseFactory(postgresql_url) as db:
        yield db


@pytest.fixture
def kind(server: DatabaseFactory) -> Iterator[type[Any]]:
    """The table, in the database."""
    with outside_tables():
        made = a_kind()
        server.create_tables()
        yield made
