"""What the house asks of a database: one interface, and one object for each kind of database that has it.

Nothing else in `shared.db` asks a database for its name. What is too large for here (how an engine connects, the bulk
writer, the catalog, health, backups) is a module of the database's name in the room that it belongs to, and a
`PerDatabase` there picks it. So a database that is added is a module here and one in each of those rooms, and what it
lacks is refused by name: "not this one" never means "the other one".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import URL, Connection, DateTime, Dialect, Engine, Text, inspect
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from shared.db.errors import DatabaseFailure, UnknownDatabaseError

T = TypeVar("T")


class TransactionStatus(Enum):
    """What a driver knows of its connection's transaction."""

    NONE = "none has begun, or it has ended"
    OPEN = "it has begun, and goes on"
    ABORTED = "an error has aborted it: the server rolls it back, whatever else it is asked"
    UNKNOWN = "the connection is closed or lost"


@dataclass(frozen=True)
class Partition:
    """One of a table's partitions by time, with its rows from `start` to before `end`; None leaves a side open.

    The one that has what no other takes `is_default`.
    """

    name: str
    start: datetime | None
    end: datetime | None
    is_default: bool = False


Written = Callable[[], str]
"""What writes out a part of a statement."""


class Port(ABC):
    """One kind of database. Asked when an engine, a column or a statement is made, and never for each row."""

    # Its names.
    name: ClassVar[str]
    """As `GRIDBOT_DB_TYPE` says it."""
    title: ClassVar[str]
    """As its makers write it."""
    dialects: ClassVar[frozenset[str]]
    """What SQLAlchemy calls it."""
    driver: ClassVar[str]
    """Dialect and driver, as a URL begins."""
    schemes: ClassVar[frozenset[str]]
    """All that a URL may begin with."""
    url_form: ClassVar[str]
    """How its URLs are written, for messages."""
    port_number: ClassVar[int | None] = None
    """Where its servers listen; None for one that has no server."""
    fields_in_query: ClassVar[Mapping[str, str]] = {}
    """Parameters of a URL's query that the driver prefers to the URL's own parts."""

    # What it can, and how it keeps things.
    has_row_security: ClassVar[bool] = False
    """Whether the server confines a user's session by policies of its own."""
    has_sequences: ClassVar[bool] = False
    """Whether numbers of new rows come from a sequence that knows nothing of the rows there are."""
    rolls_back_statements: ClassVar[bool] = True
    """Whether a statement that fails is undone alone, and the transaction goes on."""
    runs_several: ClassVar[bool] = True
    """Whether its driver runs all statements of a text, and not the first one alone."""
    chooses_isolation: ClassVar[bool] = True
    """Whether a transaction has to ask to be serializable."""
    reads_by_value: ClassVar[bool] = False
    """Whether its driver takes a time for every value that it reads, so that one text a row is read sooner."""
    walks_equals: ClassVar[bool] = False
    """Whether it may look for rows of an equality from the first of them on, wherever else an index could begin."""
    keeps_cursors: ClassVar[bool] = True
    """Whether a result can be read from the server while other statements run on the connection."""
    locks_by_name: ClassVar[bool] = True
    """Whether a SELECT that locks rows of some of its tables leaves those of the others alone."""
    money_is_float: ClassVar[bool] = False
    """Whether amounts are stored as 8-byte floats."""
    keeps_zone: ClassVar[bool] = False
    """Whether times are stored with their zone, and not as UTC without one."""
    times_are_text: ClassVar[bool] = False
    """Whether its driver gives stored times as text."""
    checks_types: ClassVar[bool] = True
    """Whether a column holds nothing but its type's values."""
    undoes_ddl: ClassVar[bool] = True
    """Whether a change of the schema is undone with its transaction."""
    indexes_documents: ClassVar[bool] = False
    """Whether an index can find the documents that hold a part."""
    has_partitions: ClassVar[bool] = False
    """Whether a table can be kept in partitions by time."""
    takes_texts: ClassVar[bool] = False
    """Whether many rows go to it as text, whatever their columns hold."""

    def dialect(self) -> Dialect:
        """SQLAlchemy's dialect, of no engine."""
        kind: type[Dialect] = URL.create(self.driver).get_dialect()
        return kind()

    # Types.
    @abstractmethod
    def money(self, digits: int, places: int) -> TypeEngine[Any]:
        """What an amount is stored as."""

    @abstractmethod
    def total(self) -> TypeEngine[Any]:
        """What a sum of amounts is given as."""

    @abstractmethod
    def document(self) -> TypeEngine[Any]:
        """What a JSON document is stored as."""

    @abstractmethod
    def whole_number(self) -> TypeEngine[Any]:
        """64 bits, which count up by themselves where they are a primary key."""

    @abstractmethod
    def text(self, length: int) -> TypeEngine[Any]:
        """Text of so many characters, ordered by code point."""

    def long_text(self) -> TypeEngine[Any]:
        """Text of any length."""
        return Text()

    def instant(self) -> TypeEngine[Any]:
        """What a time is stored as."""
        return DateTime(timezone=True)

    @abstractmethod
    def bucket(self) -> TypeEngine[Any]:
        """What `time_bucket` gives."""

    # SQL of functions.
    @abstractmethod
    def now(self) -> str:
        """The clock, as a stored time, for a server default."""

    @abstractmethod
    def new_uuid(self) -> str:
        """A random UUID as text of 36 characters, for a server default."""

    @abstractmethod
    def exact_sum(self, amount: str) -> str:
        """An exact sum of an expression of money."""

    @abstractmethod
    def exact_product_sum(self, first: str, second: str) -> str:
        """An exact sum of products of money, as text."""

    @abstractmethod
    def holds(self, document: Written, part: Written, *paths: Written) -> str:
        """Whether a document holds a part. What is not called is not sent.

        `paths` say where the part's values stand: first in a text that escapes all but ASCII, then in a plain one.
        """

    @abstractmethod
    def micros_between(self, earlier: str, later: str) -> str:
        """Whole microseconds from one stored time to another."""

    @abstractmethod
    def time_bucket(self, time: str, micros: str, shift: str) -> str:
        """The beginning of a time's interval of `micros`; `shift` is a multiple of those from before the year 1."""

    # What is there.
    def tables(self, connection: Connection) -> set[str]:
        """The names of the tables in the current schema; parts of one table that is kept in parts are no tables."""
        return {*inspect(connection).get_table_names()}

    def partitions(self, connection: Connection, table: str, time: str) -> list[Partition] | None:
        """A table's partitions by the column `time`, the oldest first; None if it has none by that column alone."""
        return None

    def write_position(self, connection: Connection) -> str | None:
        """Where the server's log stands, to be waited for on a standby; None where there is none to ask."""
        return None

    # Triggers.
    @abstractmethod
    def append_only(self, table: str, refusal: str) -> Sequence[str]:
        """The statements by which every change to what a table holds is refused, with these words."""

    def append_only_no_more(self, table: str) -> Sequence[str]:
        """The statements by which the rest of that goes, after the table has gone."""
        return ()

    # Transactions, by the driver's own account.
    @contextmanager
    def schema_transaction(self, engine: Engine) -> Iterator[Connection]:
        """A transaction in which nobody else changes the schema: here any that writes."""
        with engine.begin() as connection:
            yield connection

    @abstractmethod
    def status(self, driver: Any) -> TransactionStatus:
        """How the transaction of a driver's connection stands; no server is asked."""

    def believes_to_go_on(self, driver: Any) -> bool:
        """Whether the driver believes in a transaction that has ended."""
        return True

    @abstractmethod
    def aborted(self) -> Exception:
        """The driver's error for a transaction that is no more."""

    def begin_again(self, driver: Any, error: BaseException) -> bool:
        """After a failure that ended a whole transaction: have what follows in one that is never committed.

        False where the failure has not ended it.
        """
        return self.status(driver) is TransactionStatus.ABORTED

    # Errors.
    error: ClassVar[type[Exception]]
    """The driver's base class of all of them."""

    @abstractmethod
    def failure(self, error: Exception) -> type[DatabaseFailure]:
        """Which failure of `errors.py` an error of the driver is."""

    @abstractmethod
    def lost(self, committing: bool) -> type[DatabaseFailure] | None:
        """The failure of a connection that was there and is gone; None where there is no connection to lose."""

    @abstractmethod
    def hide_row(self, error: Exception) -> str:
        """Cut from the error what it tells of a row; what is left of its text."""

    def is_done_already(self, error: Exception) -> bool:
        """Whether a change of the schema was refused because it has been made already."""
        return False

    def is_interruption(self, error: Exception) -> bool:
        """Whether a signal's handler raised in a function that the driver called, which says only that it failed."""
        return False


class PerDatabase(Generic[T]):
    """What each database has of one thing: `PerDatabase("backups", {SQLITE: ..., POSTGRESQL: ...})`."""

    def __init__(self, thing: str, made: Mapping[Port, T]) -> None:
        self._thing = thing
        self._by_dialect = {dialect: each for port, each in made.items() for dialect in port.dialects}

    def of(self, bound: Bound) -> T:
        """The one for the database behind an engine, a connection or a session.

        `UnknownDatabaseError` where that database has none.
        """
        return self.named(dialect_of(bound).name)

    def named(self, name: str) -> T:
        """The one for the database of that name; otherwise as `of`."""
        try:
            return self._by_dialect[name]
        except KeyError:
            raise UnknownDatabaseError(name, self._thing) from None


Bound = Dialect | Engine | Connection | Session


def dialect_of(bound: Bound) -> Dialect:
    """SQLAlchemy's dialect of what belongs to a database."""
    if isinstance(bound, Dialect):
        return bound
    return bound.get_bind().dialect if isinstance(bound, Session) else bound.dialect
