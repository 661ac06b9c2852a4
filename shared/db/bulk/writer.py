"""What the dialects' writers share: one call's rows going through the driver inside the session's transaction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, UniqueConstraint
from sqlalchemy.exc import DBAPIError

from shared.db.bulk.cells import CellLayout, Packed
from shared.db.bulk.result import OnConflict
from shared.db.bulk.rows import RowBatch
from shared.db.driver_errors import named_errors
from shared.db.value_forms.forms import Cells

Source = Callable[[], Iterable[list[Cells]]]


class Written(NamedTuple):
    """What became of a batch: how many rows were new, how many were given, and how many changed a stored one.

    `differing` has the places (from 0) of rows that contradict what is stored, with the names of the columns.
    """

    new: int
    given: int
    changed: int = 0
    differing: Sequence[tuple[int, str]] = ()


class Transaction(NamedTuple):
    """In what transaction rows are written.

    `alone` says that it began with this call; `as_tenant`, that it runs as the role of users' sessions, and
    `through_stage`, that this role may not COPY into the table, which has policies.
    """

    alone: bool
    as_tenant: bool
    through_stage: bool


class Writer(ABC):
    """Writes batches of cells to one table.

    `source()` gives the batch's chunks of cells anew each time it is called, so that a second attempt needs no copy
    of the first. `changing` names the columns that a stored row takes from a new one, or in which it is filled.
    """

    def __init__(self, connection: Connection, layout: CellLayout, on_conflict: OnConflict, how: Transaction) -> None:
        self.connection = connection
        self.layout = layout
        self.on_conflict = on_conflict
        self.quote = connection.dialect.identifier_preparer.quote
        self.table = self.quote(layout.table.name)
        self.names = ", ".join(map(self.quote, layout.names))
        self.key = ", ".join(map(self.quote, conflict_key(layout.table)))
        self._unsent: list[str] = []
        driver = connection.connection.dbapi_connection
        assert driver is not None
        self.driver: Any = driver

    def packed(self, batch: RowBatch, make: Callable[[CellLayout], Iterator[list[Cells]]]) -> Packed | None:
        """The batch in a form that is faster to write, of its columns or of the cells that `make` makes in a layout.

        None where there is none.
        """
        return None

    @abstractmethod
    def write(self, source: Source, changing: list[str]) -> Written:
        """Write a batch."""

    def write_packed(self, packed: Packed, changing: list[str]) -> Written:
        """Write a batch as `packed` gave it; `NotPackedError`, with nothing written, if that does not hold a value."""
        raise NotImplementedError

    @abstractmethod
    def run(self, *statements: str) -> None:
        """Run what is still unsent and then `statements`, none of which gives rows."""

    @contextmanager
    def savepoint(self, name: str) -> Iterator[None]:
        """Undo what was written in the block if it raises.

        The opening statement waits for the first one that has to be sent anyway: a round trip saved.
        """
        opening = f"SAVEPOINT {name}"
        self._unsent.append(opening)
        try:
            yield
        except BaseException:
            if opening in self._unsent:
                self._unsent.remove(opening)
            elif not self.connection.invalidated:
                with suppress(DBAPIError):  # a dead connection undoes everything; the first error says why
                    self.run(f"ROLLBACK TO SAVEPOINT {name}", f"RELEASE SAVEPOINT {name}")
            raise
        if opening in self._unsent:
            self._unsent.remove(opening)
        else:
            self.run(f"RELEASE SAVEPOINT {name}")

    def named_errors(self) -> AbstractContextManager[None]:
        """What the driver raises in the block, as SQLAlchemy and `errors.py` name it."""
        return named_errors(self.connection, f"INSERT INTO {self.table} ({self.names})")

    def assignments(self, changing: list[str]) -> str:
        """The SET list of an upsert."""
        return ", ".join(f"{name} = excluded.{name}" for name in map(self.quote, changing))


def conflict_key(table: Table) -> list[str]:
    """The columns by which two rows are the same: the only unique constraint, or else the primary key."""
    unique = [constraint for constraint in table.constraints if isinstance(constraint, UniqueConstraint)]
    same = unique[0] if len(unique) == 1 else table.primary_key
    return [column.name for column in same.columns]
