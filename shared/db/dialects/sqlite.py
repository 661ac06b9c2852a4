"""SQLite, through the standard library's driver."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

from sqlalchemy import JSON, REAL, Integer, String, Text
from sqlalchemy.types import TypeEngine

from shared.db.dialects.port import Port, TransactionStatus, Written
from shared.db.errors import (
    ConstraintError,
    DatabaseCorruptError,
    DatabaseDiskError,
    DatabaseFailure,
    DatabaseFileError,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseMovedError,
    DatabaseReadOnlyError,
    NotADatabaseError,
    StatementCanceledError,
    StatementRefusedError,
    TransactionAbortedError,
    UnnamedFailure,
    UnsupportedError,
    ValueRefusedError,
)

# Extended result codes, longest match first.
_FAILURES: tuple[tuple[str, type[DatabaseFailure]], ...] = (
    ("SQLITE_READONLY_DBMOVED", DatabaseMovedError),
    ("SQLITE_READONLY", DatabaseReadOnlyError),
    ("SQLITE_BUSY", DatabaseLockedError),
    ("SQLITE_LOCKED", DatabaseLockedError),
    ("SQLITE_FULL", DatabaseFullError),
    ("SQLITE_CORRUPT", DatabaseCorruptError),
    ("SQLITE_NOTADB", NotADatabaseError),
    ("SQLITE_CANTOPEN", DatabaseFileError),
    ("SQLITE_IOERR", DatabaseDiskError),
    ("SQLITE_PROTOCOL", DatabaseLockedError),
    ("SQLITE_PERM", DatabaseFileError),
    ("SQLITE_CONSTRAINT", ConstraintError),
    ("SQLITE_MISMATCH", ConstraintError),
    ("SQLITE_ABORT_ROLLBACK", TransactionAbortedError),
    ("SQLITE_INTERRUPT", StatementCanceledError),
    ("SQLITE_ERROR", StatementRefusedError),
)
# What has no entry above: by the driver's own class.
_BY_CLASS: tuple[tuple[type[Exception], type[DatabaseFailure]], ...] = (
    (sqlite3.IntegrityError, ConstraintError),
    (sqlite3.DataError, ValueRefusedError),
    (sqlite3.NotSupportedError, UnsupportedError),
    (sqlite3.ProgrammingError, StatementRefusedError),
)
# Text that is no UTF-8, a document that is no JSON: nothing of this library can have stored them.
_NO_TEXT_OF_OURS = ("Could not decode to UTF-8", "malformed JSON")
# Of the failure of a function of ours SQLite tells nothing else. It failed since a value is no number or no document,
# which `note_damage` was told, or since Ctrl-C came while it ran.
_OURS_FAILED = "user-defined "
_found = threading.local()
# Of stored text that is no UTF-8 it quotes all: 'column 'api_secret' with text '...''.
_UNDECODABLE = re.compile(r"(Could not decode to UTF-8 column '\w+') with text .*", re.DOTALL)
# strftime would round a fraction up to the next second: it gets none.
_MICROS = "strftime('%s', substr({0}, 1, 19)) * 1000000 + substr({0}, 21, 6)"


class SQLite(Port):
    """Files and databases in memory. Amounts are 8-byte floats there, and times text."""

    name: ClassVar[str] = "sqlite"
    title: ClassVar[str] = "SQLite"
    dialects: ClassVar[frozenset[str]] = frozenset({"sqlite"})
    driver: ClassVar[str] = "sqlite+pysqlite"
    schemes: ClassVar[frozenset[str]] = frozenset({"sqlite", "sqlite+pysqlite"})
    url_form: ClassVar[str] = "sqlite:///path/to/file.db"
    error: ClassVar[type[Exception]] = sqlite3.Error
    runs_several: ClassVar[bool] = False
    chooses_isolation: ClassVar[bool] = False
    keeps_cursors: ClassVar[bool] = False
    money_is_float: ClassVar[bool] = True
    times_are_text: ClassVar[bool] = True
    checks_types: ClassVar[bool] = False

    def money(self, digits: int, places: int) -> TypeEngine[Any]:
        """A NUMERIC column would keep 5 as an integer and divide it as one (5 / 2 = 2)."""
        return REAL()

    def total(self) -> TypeEngine[Any]:
        """Text, which keeps every digit."""
        return Text()

    def document(self) -> TypeEngine[Any]:
        """Text."""
        return JSON(none_as_null=True)

    def whole_number(self) -> TypeEngine[Any]:
        """The only type that counts up by itself."""
        return Integer()

    def text(self, length: int) -> TypeEngine[Any]:
        """SQLite orders by code point, and keeps no length."""
        return String(length)

    def bucket(self) -> TypeEngine[Any]:
        """Microseconds since 1970."""
        return Integer()

    def now(self) -> str:
        """CURRENT_TIMESTAMP has no fraction, and '12:00:00' does not equal '12:00:00.000000' as text."""
        return "(strftime('%Y-%m-%d %H:%M:%f000', 'now'))"

    def new_uuid(self) -> str:
        """Version 4."""
        return (
            "(lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' || "
            "substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))"
        )

    def exact_sum(self, amount: str) -> str:
        """By a function that each connection brings along; in an order of numbers by its collation."""
        return f"(exact_sum({amount}) COLLATE exact_money)"

    def exact_product_sum(self, first: str, second: str) -> str:
        """By a function that each connection brings along."""
        return f"exact_product_sum({first}, {second})"

    def holds(self, document: Written, part: Written, *paths: Written) -> str:
        """By a function that each connection brings along."""
        return f"document_holds({document()}, {part()})"

    def micros_between(self, earlier: str, later: str) -> str:
        """Out of the text."""
        return f"(({_MICROS.format(later)}) - ({_MICROS.format(earlier)}))"

    def time_bucket(self, time: str, micros: str, shift: str) -> str:
        """The shift keeps the division from rounding towards 1970 what lies before it."""
        return f"(({_MICROS.format(time)} + {shift}) / {micros} * {micros} - {shift})"

    def append_only(self, table: str, refusal: str) -> Sequence[str]:
        """By three triggers: INSERT OR REPLACE deletes without asking one for DELETE."""
        refuse = f"BEGIN SELECT RAISE(ABORT, '{refusal}'); END"
        return (
            f"CREATE TRIGGER IF NOT EXISTS {table}_no_update BEFORE UPDATE ON {table} {refuse}",
            f"CREATE TRIGGER IF NOT EXISTS {table}_no_delete BEFORE DELETE ON {table} {refuse}",
            f"CREATE TRIGGER IF NOT EXISTS {table}_no_replace BEFORE INSERT ON {table} "
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id) {refuse}",
        )

    def status(self, driver: Any) -> TransactionStatus:
        """An error aborts none: it is undone alone, or has ended the transaction."""
        return TransactionStatus.OPEN if driver.in_transaction else TransactionStatus.NONE

    def aborted(self) -> sqlite3.Error:
        """As SQLite would say it."""
        return coded(sqlite3.OperationalError("the transaction was rolled back"), "SQLITE_ABORT_ROLLBACK")

    def begin_again(self, driver: Any, error: BaseException) -> bool:
        """A full disk and the like end the whole transaction, and what follows would be stored at once, by itself."""
        if driver.in_transaction:
            return False  # undone is the statement alone
        driver.execute("BEGIN")
        return True

    def failure(self, error: Exception) -> type[DatabaseFailure]:
        """By the extended result code."""
        said = str(error)
        if said.startswith(_NO_TEXT_OF_OURS) or (said.startswith(_OURS_FAILED) and _damage_was_noted()):
            return DatabaseCorruptError
        code = getattr(error, "sqlite_errorname", None) or ""
        by_code = (failure for prefix, failure in _FAILURES if code.startswith(prefix))
        by_class = (failure for kind, failure in _BY_CLASS if isinstance(error, kind))
        return next(by_code, None) or next(by_class, UnnamedFailure)

    def lost(self, committing: bool) -> None:
        """There is no server."""

    def hide_row(self, error: Exception) -> str:
        """It quotes what cannot be decoded, and nothing else."""
        return _UNDECODABLE.sub(r"\1", str(error))

    def is_interruption(self, error: Exception) -> bool:
        """A function of ours failed, and not because of what is stored."""
        return str(error).startswith(_OURS_FAILED) and not getattr(_found, "damage", False)


def coded(error: sqlite3.Error, name: str) -> sqlite3.Error:
    """The error with the name and number of a result code, as the driver gives them."""
    error.sqlite_errorcode, error.sqlite_errorname = getattr(sqlite3, name), name
    return error


def note_damage() -> None:
    """Say of a function that SQLite calls that it fails because of a stored value, before it raises."""
    _found.damage = True


def _damage_was_noted() -> bool:
    noted, _found.damage = getattr(_found, "damage", False), False
    return noted
