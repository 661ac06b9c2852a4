"""Tables of another package, as one would declare them, made for one test and forgotten afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from shared.db import Base
from shared.db.tables import OWNERSHIP, forget


@contextmanager
def outside_tables() -> Iterator[None]:
    """Whatever classes the block maps on `Base` are gone after it."""
    classes, tables = {mapper.class_ for mapper in Base.registry.mappers}, {*Base.metadata.tables}
    try:
        yield
    finally:
        for model in set(OWNERSHIP) - classes:
            forget(model)
        for name in {*Base.metadata.tables} - tables:
            Base.metadata.remove(Base.metadata.tables[name])
        for model in {mapper.class_ for mapper in Base.registry.mappers} - classes:
            Base.registry._dispose_cls(model)
        gc.collect()
