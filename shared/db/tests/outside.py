"""Tables of another package, as one would declare them, made for one test and forgotten afterwards."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import URL
from sqlalchemy.orm import configure_mappers

from shared.db import Base
from shared.db.tables import OWNERSHIP, forget


@contextmanager
def outside_tables() -> Iterator[None]:
    """Whatever classes the block maps on `Base` are gone after it."""
    classes, tables = {mapper.class_ for mapper in Base.registry.mappers}, {*Base.metadata.tables}
    # So they stay among the youngest, and the collector need not walk all that tests have made before.
    gc.disable()
    try:
        yield
    finally:
        for model in set(OWNERSHIP) - classes:
            forget(model)
        for name in {*Base.metadata.tables} - tables:
            Base.metadata.remove(Base.metadata.tables[name])
        for model in {mapper.class_ for mapper in Base.registry.mappers} - classes:
            Base.registry._dispose_cls(model)
        gc.collect(0)
        gc.enable()


@contextmanager
def imported_siblings(*names: str) -> Iterator[list[ModuleType]]:
    """The packages beside this one of these names, in the block alone: their tables would be in every database."""
    before = {*sys.modules}
    try:
        with outside_tables():
            modules = [importlib.import_module(f"shared.{name}") for name in names]
            configure_mappers()  # else a class that is gone and names another in text fails every mapper
            yield modules
    finally:
        for name in {*sys.modules} - before:
            if name.startswith(tuple(f"shared.{sibling}" for sibling in names)):
                del sys.modules[name]


def source_at(request: pytest.FixtureRequest, tmp_path: Path) -> str | URL:
    """The empty database of a fixture whose parameter is one of `PLACES` or `MYSQL`."""
    if request.param not in ("memory", "file"):
        url: URL = request.getfixturevalue("mysql_url" if request.param == "mysql" else "postgresql_url")
        return url
    return "sqlite:///:memory:" if request.param == "memory" else f"sqlite:///{tmp_path / 'grid_bot.db'}"
