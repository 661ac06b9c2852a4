"""What a catalog is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Entry(NamedTuple):
    """One thing of a schema: a table, or a column, constraint, index, trigger or policy of it."""

    table: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.table if self.kind == 'table' else f'{self.table}.{self.name}'}"


# Each thing with its definition, in the database's own words.
Catalog = Mapping[Entry, str]

# The kinds that PostgreSQL's row-level security consists of.
ROW_SECURITY = ("row-level security of", "policy")

# The kind that says by which columns a table is partitioned.
PARTITIONED = "partitioned by"
