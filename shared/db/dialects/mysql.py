"""MariaDB and MySQL, through PyMySQL (the extra `mysql`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Connection, Engine, Numeric, String, text
from sqlalchemy.dialects.mysql import DATETIME, LONGTEXT
from sqlalchemy.types import TypeEngine

from shared.db.dialects.port import Port, TransactionStatus, Written
from shared.db.errors import (
    AuthenticationError,
    CommitUnknownError,
    ConnectionLostError,
    ConstraintError,
    DatabaseCorruptError,
    DatabaseDiskError,
    DatabaseFailure,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseReadOnlyError,
    DatabaseUnreachableError,
    PermissionDeniedError,
    StatementCanceledError,
    StatementRefusedError,
    TextEncodingError,
    TooManyConnectionsError,
    TransactionConflictError,
    UnnamedFailure,
    UnsupportedError,
    ValueRefusedError,
)

try:
    import pymysql
except ModuleNotFoundError:  # the extra `mysql` is not installed
    pymysql = None  # type: ignore[assignment] # None is what tells

# What is made beside a database for a while, and what a login needs for that.
SCRATCH = "shared_db_scratch"
GRANT_SCRATCH = f"GRANT ALL ON `{SCRATCH.replace('_', chr(92) + '_')}%`.* to it"

_LOCK = "shared_db_schema"
_LOCK_SECONDS = 3600
# SERVER_STATUS_IN_TRANS of the protocol, which every answer but an error brings up to date.
_IN_TRANSACTION = 0x0001

_FAILURES: dict[int, type[DatabaseFailure]] = {
    number: failure
    for failure, numbers in (
        (DatabaseLockedError, (1205, 3572)),
        (TransactionConflictError, (1213, 1020)),
        (DatabaseFullError, (1021, 1114)),
        (DatabaseReadOnlyError, (1290, 1792, 1836)),
        (StatementCanceledError, (1317, 1969, 3024)),
        (AuthenticationError, (1045, 1251, 1698, 2059)),
        (PermissionDeniedError, (1044, 1142, 1143, 1227, 1370)),
        (TooManyConnectionsError, (1040, 1203, 1226)),
        (DatabaseUnreachableError, (1049, 1053, 1927, 2002, 2003, 2005, 2006, 2013, 2026, 2055, 4031)),
        (DatabaseDiskError, (3, 1016, 1030)),
        (DatabaseCorruptError, (126, 127, 145, 1034, 1035, 1712, 1877)),
        # 4025 and 3819 are CHECKs, of MariaDB and of MySQL.
        (ConstraintError, (1048, 1062, 1216, 1217, 1364, 1451, 1452, 1557, 1586, 1761, 3819, 4025)),
        (ValueRefusedError, (1264, 1265, 1292, 1365, 1366, 1367, 1406, 1411, 1690)),
        (TextEncodingError, (1300, 3854, 3988)),
        (UnsupportedError, (1235, 1286)),
        (StatementRefusedError, (1054, 1064, 1091, 1146, 1149, 1305)),
    )
    for number in numbers
}
# With them the whole transaction is gone, and not the statement alone.
_ENDS_ALL = frozenset({1213, 1020})
# What DDL makes is there, or what it drops is not. Of two foreign keys of one name MariaDB says no more than 1005.
_DONE = frozenset({1050, 1051, 1060, 1061, 1091, 1359, 1360, 1826, 3822})
_SAME_KEY = (1005, "errno: 121 ")
# What they say of values: Duplicate entry '...' for key; ... value: '...' for column; ... near '...' at line 1.
_SHOWN = (
    (re.compile(r"(Duplicate entry) '.*'( for key)", re.DOTALL), r"\1\2"),
    (re.compile(r"(value:?) '.*'(?= for | at row|$)", re.DOTALL), r"\1"),
    (re.compile(r"( near) '.*'( at line)", re.DOTALL), r"\1 what is not shown\2"),
    (re.compile(r"(out of range in) '.*'$", re.DOTALL), r"\1 the statement"),
    (re.compile(r"(character string:?) '.*'", re.DOTALL), r"\1"),
)
_RANDOM = "hex(random_bytes({}))"


class _NoDriver(Exception):  # never raised
    """Stands for the driver's errors where there is no driver."""


class MySQL(Port):
    """Servers of the two, which differ in few places; their DDL commits."""

    name: ClassVar[str] = "mysql"
    title: ClassVar[str] = "MariaDB or MySQL"
    dialects: ClassVar[frozenset[str]] = frozenset({"mysql", "mariadb"})
    driver: ClassVar[str] = "mysql+pymysql"
    schemes: ClassVar[frozenset[str]] = frozenset({"mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"})
    url_form: ClassVar[str] = "mysql://user:password@host:3306/dbname"
    port_number: ClassVar[int | None] = 3306
    fields_in_query: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("password", "passwd"), "password"),
        "user": "username",
        **dict.fromkeys(("database", "db"), "database"),
    }
    error: ClassVar[type[Exception]] = _NoDriver if pymysql is None else pymysql.MySQLError
    # It throws away a range that costs more than the whole table, LIMIT or not, and has `ref` left on the same index:
    # from a symbol's first row to a page, or to one that is read backwards from its last.
    walks_equals: ClassVar[bool] = True
    # A second statement on the connection ends the reading of the first one, without a word.
    keeps_cursors: ClassVar[bool] = False
    reads_by_value: ClassVar[bool] = True
    locks_by_name: ClassVar[bool] = False
    undoes_ddl: ClassVar[bool] = False

    def money(self, digits: int, places: int) -> TypeEngine[Any]:
        """Exact, under the strict mode that each connection sets."""
        return Numeric(digits, places)

    def total(self) -> TypeEngine[Any]:
        """Of any size."""
        return Numeric()

    def document(self) -> TypeEngine[Any]:
        """On MariaDB written as LONGTEXT, since its own JSON takes no more than 31 levels (`engine/mysql.py`)."""
        return JSON(none_as_null=True)

    def whole_number(self) -> TypeEngine[Any]:
        """BIGINT."""
        return BigInteger()

    def text(self, length: int) -> TypeEngine[Any]:
        """In the order and equality of code points, by the collation that `engine/mysql.py` gives each table."""
        return String(length)

    def long_text(self) -> TypeEngine[Any]:
        """TEXT ends at 64 kB."""
        return LONGTEXT()

    def instant(self) -> TypeEngine[Any]:
        """UTC without a zone: TIMESTAMP ends in 2038."""
        return DATETIME(fsp=6)

    def bucket(self) -> TypeEngine[Any]:
        """Microseconds since 1970."""
        return BigInteger()

    def now(self) -> str:
        """When the statement began."""
        return "(utc_timestamp(6))"

    def new_uuid(self) -> str:
        """Version 4; the server's own uuid() tells its machine and the time."""
        two = _RANDOM.format(2)
        variant = "substr('89ab', 1 + floor(rand() * 4), 1)"
        return (
            f"(lower(concat({_RANDOM.format(4)}, '-', {two}, '-4', substr({two}, 2), '-', {variant}, "
            f"substr({two}, 2), '-', {_RANDOM.format(6)})))"
        )

    def exact_sum(self, amount: str) -> str:
        """The server's own is exact."""
        return f"sum({amount})"

    def exact_product_sum(self, first: str, second: str) -> str:
        """The server's own is exact."""
        return f"CAST(sum({first} * {second}) AS CHAR)"

    def holds(self, document: Written, part: Written, *paths: Written) -> str:
        """By a function of its own, which also finds a value in a list where the value itself should stand."""
        stored = document()
        kinds = [f"json_type(json_extract({stored}, {path()}))" for path in paths]
        held = [f"json_contains({stored}, {part()})"]
        texts = zip(kinds[: len(kinds) // 2], kinds[len(kinds) // 2 :], strict=True)
        held += [f"coalesce({escaped}, {plain}, 'ARRAY') <> 'ARRAY'" for escaped, plain in texts]
        return f"if({stored} IS NULL, NULL, {' AND '.join(held)})"

    def micros_between(self, earlier: str, later: str) -> str:
        """A whole number."""
        return f"timestampdiff(MICROSECOND, {earlier}, {later})"

    def time_bucket(self, time: str, micros: str, shift: str) -> str:
        """The shift keeps the division from rounding towards 1970 what lies before it."""
        since = f"timestampdiff(MICROSECOND, timestamp'1970-01-01 00:00:00', {time})"
        return f"(({since} + {shift}) DIV {micros} * {micros} - {shift})"

    def append_only(self, table: str, refusal: str) -> Sequence[str]:
        """By two triggers. TRUNCATE goes round them, and needs the privilege to drop the table."""
        refuse = f"FOR EACH ROW SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 4025, MESSAGE_TEXT = '{refusal}'"
        return tuple(
            statement
            for event in ("update", "delete")
            for statement in (
                f"DROP TRIGGER IF EXISTS {table}_no_{event}",
                f"CREATE TRIGGER {table}_no_{event} BEFORE {event.upper()} ON {table} {refuse}",
            )
        )

    def tables(self, connection: Connection) -> set[str]:
        """Of the database that the session uses, which need not be the one that it connected to."""
        query = (
            "SELECT table_name FROM information_schema.tables WHERE table_schema = database() AND table_type = :kind"
        )
        return {*connection.scalars(text(query), {"kind": "BASE TABLE"})}

    @contextmanager
    def schema_transaction(self, engine: Engine) -> Iterator[Connection]:
        """Under a lock of the session's: DDL commits, so that none of a transaction's own would hold."""
        with engine.connect() as connection, schema_lock(connection), connection.begin():
            yield connection

    def status(self, driver: Any) -> TransactionStatus:
        """As the server said with its last answer."""
        if driver is None or not driver.open:
            return TransactionStatus.UNKNOWN
        return TransactionStatus.OPEN if driver.server_status & _IN_TRANSACTION else TransactionStatus.NONE

    def believes_to_go_on(self, driver: Any) -> bool:
        """Whether one was open before the last statement (`engine/mysql.py`): the first one need not begin any."""
        return bool(getattr(driver, "shared_db_was_open", False))

    def aborted(self) -> Exception:
        """The server says nothing: what follows would be a transaction of its own."""
        return self.error(1213, "the transaction was rolled back")

    def begin_again(self, driver: Any, error: BaseException) -> bool:
        """A deadlock ends the whole transaction; a lock that was not had in time, the statement alone."""
        return _number(error) in _ENDS_ALL

    def failure(self, error: Exception) -> type[DatabaseFailure]:
        """By its number: the classes of the driver differ between the two servers."""
        number = _number(error)
        if number == 0 or (number is None and isinstance(error, getattr(pymysql, "InterfaceError", ()))):
            return DatabaseUnreachableError  # of a connection that was lost before
        return _FAILURES.get(number or 0, UnnamedFailure)

    def lost(self, committing: bool) -> type[DatabaseFailure]:
        """Of a COMMIT without an answer nobody knows."""
        return CommitUnknownError if committing else ConnectionLostError

    def is_done_already(self, error: Exception) -> bool:
        """By its number, and where that says too little by its text."""
        number, part = _SAME_KEY
        return _number(error) in _DONE or (_number(error) == number and part in str(error))

    def hide_row(self, error: Exception) -> str:
        """The values that it quotes; the number stays, and so does the driver's own form of the text."""
        if len(error.args) < 2 or not isinstance(error.args[1], str):
            return str(error)
        error.args = (error.args[0], without_values(error.args[1]))
        return str(error)


def without_values(message: str) -> str:
    """What a server says, without what it quotes of a row or statement."""
    for shown, instead in _SHOWN:
        message = shown.sub(instead, message)
    return message


# Under the sql_mode that each connection sets a backslash escapes.
_ESCAPES = str.maketrans({"\\": "\\\\", "'": "\\'", "\0": "\\0", "\n": "\\n", "\r": "\\r", "\x1a": "\\Z"})


def quoted(value: str) -> str:
    """Text as a literal of SQL."""
    return f"'{value.translate(_ESCAPES)}'"


@contextmanager
def schema_lock(connection: Connection) -> Iterator[None]:
    """Nobody else changes the schema. It outlasts transactions, and ends with the block or the connection."""
    # Locks belong to the whole server, and their names end at 64 characters.
    lock = {"name": f"{_LOCK}_{connection.engine.url.database}"[:64]}
    query = text("SELECT GET_LOCK(:name, :seconds)")
    if connection.scalar(query, lock | {"seconds": _LOCK_SECONDS}) != 1:
        raise DatabaseLockedError(TimeoutError(f"the schema's lock was not free within {_LOCK_SECONDS} s"))
    connection.rollback()  # which keeps the lock
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.rollback()
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), lock)
            connection.rollback()


def has_driver() -> bool:
    """Whether PyMySQL is installed."""
    return pymysql is not None


def _number(error: BaseException) -> int | None:
    return error.args[0] if error.args and isinstance(error.args[0], int) else None
