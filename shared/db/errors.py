"""What can go wrong, by name. Every error of this library derives from `SharedDBError` and names its remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from sqlalchemy import exc
from sqlalchemy.exc import (
    DatabaseError,
    DataError,
    DBAPIError,
    DontWrapMixin,
    IntegrityError,
    InterfaceError,
    InternalError,
    InvalidRequestError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError


class SharedDBError(Exception):
    """Base of every error that `shared.db` raises itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own calls the class with `args`, which are not what the constructors here take: an error of a
        # worker process would then end its whole pool.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[SharedDBError], args: tuple[Any, ...], attributes: dict[str, Any]) -> SharedDBError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class SettingsError(SharedDBError, ValueError):
    """A setting is missing or cannot be used.

    `errors()` and `json()` give one entry per field, as pydantic does, without the rejected values.
    """

    def __init__(self, problem: str, details: list[dict[str, Any]] | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self._details = details or []

    def errors(self) -> list[dict[str, Any]]:
        """One entry a rejected field: type, loc (the field) and msg; never the value."""
        return [dict(item) for item in self._details]

    def json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.errors())


class InvalidValueError(SharedDBError, ValueError, DontWrapMixin):
    """A value does not fit its column: refused before it reaches the database, the same on every one.

    `column` names the place ("public_trades.price"), or is None where the value stood alone. `position` is the
    row's place, from 0, in the rows given to a bulk call.
    """

    def __init__(self, problem: str, column: str | None = None, position: int | None = None) -> None:
        where = "" if position is None else f" (row {position})"
        super().__init__(f"{column}: {problem}{where}" if column else f"{problem}{where}")
        self.problem = problem
        self.column = column
        self.position = position


class InputError(SharedDBError, ValueError):
    """What was given to read or to write is not there, cannot be read, or is of another kind than expected."""


def how_to_install(extra: str) -> str:
    """The remedy for a library that comes with an extra of this package, which no package index has."""
    return (
        f"it comes with the extra {extra!r}: uv sync --extra {extra} in the checkout, or pip install 'WHEEL[{extra}]' "
        "with the path of this package's wheel"
    )


class MissingExtraError(SharedDBError, ImportError):
    """An optional library is needed here and not installed.

    `library` is its name, `extra` the extra of this package that brings it.
    """

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed; {how_to_install(extra)}", name=library)
        self.library = library
        self.extra = extra


class BackupError(SharedDBError):
    """A backup or restore was not done, or did not verify; nothing was put in place. The message says what to do."""


class LakeError(SharedDBError):
    """The lake was left as it is: a file of it is missing or damaged, or the only place where some rows are."""


class CopyError(SharedDBError):
    """A database was not copied, and the target is as it was; the message names what is in the way."""


class TargetNotEmptyError(SharedDBError):
    """The database that a restore or copy would fill has rows; `tables` names where."""

    def __init__(self, tables: Sequence[str], remedy: str) -> None:
        super().__init__(f"the database has rows already, in {', '.join(tables)}; {remedy}")
        self.tables = tuple(tables)


class RowNotFoundError(SharedDBError, LookupError):
    """The row to change does not exist, or belongs to another user (which is not told apart).

    `entity` is the model's name, `key` the primary key asked for.
    """

    def __init__(self, entity: str, key: object) -> None:
        super().__init__(
            f"there is no {entity} {key!r} to change for this user; "
            "look it up first, or create() it if it is meant to be new"
        )
        self.entity = entity
        self.key = key


class StoredDifferentlyError(SharedDBError):
    """`get_or_create()` found the row, and it is not what was asked for; it was left as it is.

    `entity` is the model's name, `columns` are those that differ. No value is told.
    """

    def __init__(self, entity: str, key: Sequence[str], columns: Sequence[str]) -> None:
        super().__init__(
            f"a {entity} with this {' and '.join(key)} is stored already, with another {', '.join(columns)}; leave out "
            "what may differ, or get() it and update() it if the new values are meant"
        )
        self.entity = entity
        self.columns = tuple(columns)


class StaleRowError(SharedDBError, ObjectDeletedError, StaleDataError):
    """A row that was read is gone: somebody deleted it since. No change to it was written."""

    def __init__(self, said: str) -> None:
        super().__init__(
            None,  # type: ignore[arg-type] # the state is for a text of its own
            f"a row is not there any more ({said}); no change to it was written: roll back, read the row again, and "
            "decide anew",
        )


class StaleDocumentError(SharedDBError, InvalidRequestError):
    """A JSON document was edited that no row would save: it was read as a column, or its row has another one by now.

    The edit was not made.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"an edit of this JSON document would be lost: {problem}; read the row again and edit the document it has "
            "then, assign the document to the row, or take a copy of your own with copy.deepcopy()"
        )


class DeclarationError(SharedDBError, TypeError):
    """A mapped class declares what cannot be: a column that is not there, no path to a user, or two.

    Raised while the class is made, whose table is then left out.
    """

    def __init__(self, model: str, problem: str) -> None:
        super().__init__(f"{model} cannot be declared so: {problem}")
        self.model = model


class PackageError(SharedDBError, ImportError):
    """The models of another package cannot be loaded; `package` is its name."""

    def __init__(self, package: str, module: str, problem: str) -> None:
        super().__init__(
            f"the models of {package} cannot be imported from {module} ({problem}); install what is missing there, "
            "uninstall it, or leave it out of GRIDBOT_DB_PACKAGES, which names the packages to load"
        )
        self.package = package


class SecretError(SharedDBError):
    """A sealed secret does not open: wrong row, wrong or missing key, or changed. The text never holds the secret."""


class AuditError(SharedDBError):
    """The audit log takes no entry by hand, and gives none up: it is append-only, and the sessions write it."""


class RunEndedError(SharedDBError):
    """The run has ended already, in another way: what is recorded about its end is not overwritten.

    `run_id` and `status` ("completed" or "failed") say which one and how.
    """

    def __init__(self, run_id: str, status: str) -> None:
        super().__init__(f"run {run_id!r} has already ended as {status}; start() a new run for new work")
        self.run_id = run_id
        self.status = status


class ForkError(SharedDBError, DontWrapMixin):
    """A connection, or an SQLite file or SQLite itself, in use when this process was forked was asked for in it."""


class TransactionAbandonedError(SharedDBError):
    """A task was cancelled and did not wait for its transaction any more: it is undone, unless COMMIT was on its way.

    The cause of the task's `CancelledError`. How the transaction ended is in the log of `shared.db`.
    """


class AsyncSessionError(SharedDBError, DontWrapMixin):
    """A session of `get_async_session()` was used where it cannot be: outside of its thread, by two tasks, too late."""


class PoolExhaustedError(SharedDBError, exc.TimeoutError):
    """Every connection that this process may open was in use for as long as we may wait. SQLAlchemy's is chained."""


class TransactionControlError(SharedDBError, DontWrapMixin):
    """A statement's text would begin or end a transaction, or did: what follows it would be stored whatever happens.

    `control` is what it was, by its SQL name.
    """

    def __init__(self, control: str) -> None:
        super().__init__(
            f"a transaction is not begun or ended by SQL ({control}): leave the session's `with` block, or call "
            "session.commit() or session.rollback(); for a savepoint, use session.begin_nested()"
        )
        self.control = control


class TenantError(SharedDBError, DontWrapMixin):
    """Base of the errors that keep users apart."""


class TenantScopeError(TenantError):
    """It is not clear whose data is meant: no user was given, or two that differ."""


class UndeclaredTableError(TenantError, LookupError):
    """A mapped class does not say whose rows it holds, so no user's session may touch them.

    `model` is its name.
    """

    def __init__(self, model: str) -> None:
        super().__init__(
            f"{model} does not say whose rows it holds; declare it in the class, as __ownership__ = Ownership(COLUMN) "
            "or __ownership__ = SHARED_BY_ALL, both of shared.db, or use a plain session from db.get_session()"
        )
        self.model = model


class TenantViolation(TenantError):
    """An operation reached for what belongs to another user, and was refused before anything was written.

    `operation`, `entity` and `user_id` (the session's own user) say what was tried. The other user's data is
    never part of it.
    """

    def __init__(self, operation: str, entity: str, user_id: str | None, reason: str) -> None:
        super().__init__(f"{operation} of {entity} refused for user {user_id!r}: {reason}")
        self.operation = operation
        self.entity = entity
        self.user_id = user_id


class UnknownDatabaseError(SharedDBError):
    """The database is of a kind for which `shared.db` has no dialect, or not this part of one.

    `database` is the kind's name, `thing` what there is none of for it (None: there is nothing at all).
    """

    def __init__(self, database: str, thing: str | None = None) -> None:
        lacking = "no dialect" if thing is None else f"no {thing}"
        super().__init__(f"shared.db has {lacking} for the database {database}")
        self.database, self.thing = database, thing


class RowSecurityError(SharedDBError):
    """Row-level security cannot be set up here, or its role not adopted; the message has what an administrator runs."""


class SchemaVersionError(SharedDBError):
    """The schema in the database is not the one that this code was written for.

    `state` is "empty" (no tables), "unversioned" (tables of unknown age), "behind" or "ahead";
    `database_revision` (None in the first two) and `code_revision` say what is there and what is needed; `package` is
    the one whose tables they are.
    """

    _MESSAGES: ClassVar[dict[str, str]] = {
        "empty": "the database has no tables{of} yet, and this code needs revision {1}; run: python -m shared.db init",
        "unversioned": "the database's tables{of} carry no revision, and this code needs {1}; "
        "run: python -m shared.db migrate adopt",
        "behind": "the database's schema{of} is at revision {0}, older than this code's {1}; "
        "run: python -m shared.db migrate up",
        "ahead": "the database's schema{of} is at revision {0}, newer than this code's {1}; install the release that "
        "made it, or run with that one: python -m shared.db migrate down {1}{option}",
    }

    def __init__(
        self, state: str, database_revision: str | None, code_revision: str, package: str = "shared.db"
    ) -> None:
        ours = package == "shared.db"
        of, option = ("", "") if ours else (f" of {package}", f" --package {package}")
        super().__init__(self._MESSAGES[state].format(database_revision, code_revision, of=of, option=option))
        self.package = package
        self.state = state
        self.database_revision = database_revision
        self.code_revision = code_revision


class MigrationError(SharedDBError):
    """A migration was not started, or was undone; the message says why and what to do."""


class UnknownRevisionError(MigrationError):
    """No revision has this name, or several begin with it; `name` is what was asked for."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no single revision {name!r}; use head or one of {', '.join(known)}")
        self.name = name


class DataLossError(MigrationError):
    """A downgrade would delete data; `losses` names the tables and columns."""

    def __init__(self, losses: Sequence[str]) -> None:
        super().__init__(
            f"this downgrade deletes {', '.join(losses)} with all contents; make a backup, "
            "then repeat it with --allow-data-loss (allow_data_loss=True)"
        )
        self.losses = tuple(losses)


class SchemaDriftError(MigrationError):
    """The schema in the database is not what the code's revisions make; `differences` lists how it differs.

    The message names each difference, or where there are many, what kinds there are and how many of each.
    """

    _LISTED = 10
    _EXAMPLES = 3

    def __init__(self, differences: Sequence[Any]) -> None:
        self.differences = tuple(differences)
        if len(self.differences) <= self._LISTED:
            told = f"mend it and try again: {'; '.join(map(str, self.differences))}"
        else:
            told = (
                "to bring another program's rows into a new database, follow docs/foreign-databases.md; "
                f"{len(self.differences)} differences: {'; '.join(self.kinds())}"
            )
        super().__init__(f"the schema differs from every revision of this code; {told}")

    def kinds(self) -> list[str]:
        """What kinds of things differ, a line for each: how many, in which way, and some of them."""
        groups: dict[tuple[str, str], list[str]] = {}
        for one in self.differences:
            way = "missing" if one.found is None else "not in the models" if one.expected is None else "different"
            name = one.entry.name if one.entry.kind == "table" else f"{one.entry.table}.{one.entry.name}"
            groups.setdefault((one.entry.kind, way), []).append(name)
        return [
            f"{len(names)} of kind {kind} {way} ({', '.join(names[: self._EXAMPLES])}"
            f"{', ...' if len(names) > self._EXAMPLES else ''})"
            for (kind, way), names in sorted(groups.items())
        ]


class RecorderError(SharedDBError):
    """The recorder cannot do what it was asked: it is closed, it ended, or rows could not be written in time."""


class RecorderFullError(RecorderError):
    """The recorder holds as many rows as it may and could not write them yet. Nothing of this add() was accepted."""


class DeadLettersError(RecorderError):
    """The recorder cannot keep the rows that were refused, and goes no further until it can. `path` is their file.

    The rows before them, and the good ones of their batch, are in the database.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(
            f"refused rows cannot be written to the dead letters {path} ({problem}); free disk space, or make the file "
            "writable"
        )
        self.path = path


class SpoolFullError(RecorderFullError):
    """The recorder's spool has reached its limit, or its disk is full. Nothing of this add() was accepted.

    `path` is the spool's folder.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(
            f"the spool {path} is full ({problem}) and nothing of this add() was accepted; bring the database back, "
            "free disk space, or raise spool_limit, then add the rows again"
        )
        self.path = path


class SpoolError(RecorderError):
    """The recorder's spool cannot be used: another recorder has it, it is another table's, damaged, or unwritable.

    `path` is the file or folder.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class DatabaseFailure(SharedDBError, DBAPIError):
    """The database itself failed. The driver's error is chained and kept as `orig`; `remedy` says what to do.

    Also a SQLAlchemy error of the kind that stock SQLAlchemy would raise, so that existing handlers keep working:
    `statement` is the SQL (its values, `params`, are left out) and `connection_invalidated` says whether the
    connection is gone.
    """

    problem = "the database failed"
    remedy = "see the driver's message"

    def __init__(
        self, driver_error: BaseException, statement: str | None = None, connection_invalidated: bool = False
    ) -> None:
        super().__init__(
            statement, None, driver_error, hide_parameters=True, connection_invalidated=connection_invalidated
        )

    @property
    def transient(self) -> bool:
        """Whether nothing was written and the same transaction, run again, may well succeed."""
        return False

    def __str__(self) -> str:
        said = str(self.orig).strip().partition("\n")[0]
        return f"{self.problem} ({said}); {self.remedy}"


class ConstraintError(DatabaseFailure, IntegrityError):
    """A rule of the schema refuses the row: unique, foreign key, NOT NULL, CHECK. The text names the rule, no value."""

    problem = "a rule of the schema refuses the row"
    remedy = "correct the values; for a key that is stored already, look the row up and update() it"

    def __init__(
        self, driver_error: BaseException, statement: str | None = None, connection_invalidated: bool = False
    ) -> None:
        super().__init__(driver_error, statement, connection_invalidated)
        if _NOT_NULL.search(str(driver_error)) and (statement or "").startswith("UPDATE"):
            self.remedy = f"give the column a value; {HOW_TO_DELETE}"
        elif _FOREIGN_KEY.search(str(driver_error)):
            self.remedy = HOW_TO_NAME


HOW_TO_DELETE = "to delete a row that was taken out of its parent's collection, call session.delete(row)"
HOW_TO_NAME = (
    "name rows that are there, and that belong together: a run's account must be its user's, its strategy its "
    "account's; an account or strategy that has runs keeps its user or account, so make a new one"
)
_NOT_NULL = re.compile("not[- ]null|cannot be null", re.IGNORECASE)
# SQLite says no more than this, PostgreSQL names the rule.
_FOREIGN_KEY = re.compile("foreign key constraint", re.IGNORECASE)


class NumberingError(DatabaseFailure, OperationalError):
    """PostgreSQL gave a new row an id that is taken: its sequence lags behind rows that came with ids of their own.

    No row is to blame, so this is no `IntegrityError`: whoever takes one for "it is stored already" would lose the row.
    `bulk_create` and recorders bring the sequence forward by themselves, where their login may.
    """

    problem = "the database numbered a new row with an id that is taken, since its sequence lags behind"
    remedy = "bring it forward: python -m shared.db sequences; then write the rows again"


class DatabaseLockedError(DatabaseFailure, OperationalError):
    """Another connection holds a lock for longer than we may wait."""

    problem = "the database is locked by another connection"
    remedy = "keep transactions short, or raise GRIDBOT_DB_SQLITE_BUSY_TIMEOUT"

    def __init__(
        self, driver_error: BaseException, statement: str | None = None, connection_invalidated: bool = False
    ) -> None:
        super().__init__(driver_error, statement, connection_invalidated)
        if hasattr(driver_error, "pgcode"):
            self.problem = "another transaction holds the lock on a row or table"
            self.remedy = "keep transactions short, or allow more time (SET LOCAL lock_timeout = '10s')"
        elif not hasattr(driver_error, "sqlite_errorname"):
            self.problem = "another transaction holds the lock on a row or table"
            self.remedy = "keep transactions short, or allow more time (SET SESSION innodb_lock_wait_timeout = 100)"

    @property
    def transient(self) -> bool:
        """True, unless it is this very connection that is in its own way."""
        return not getattr(self.orig, "sqlite_errorname", "").startswith("SQLITE_LOCKED")


class SelfDeadlockError(DatabaseLockedError):
    """The very thread that asks holds SQLite's write lock, in a session that it would have to end first."""

    problem = "this thread holds the write lock of the database in another session"
    remedy = (
        "pass the open session on to what needs one, or end it before; only to read, get_session(read_only=True) waits "
        "for nobody; in asyncio use db.get_async_session()"
    )

    @property
    def transient(self) -> bool:
        """Never."""
        return False


class TransactionConflictError(DatabaseFailure, OperationalError):
    """The server chose this transaction to give way (deadlock or serialization failure)."""

    problem = "the transaction met another one on the same rows and was rolled back"
    remedy = "run the whole transaction again, as db.run_in_transaction() does"

    @property
    def transient(self) -> bool:
        """Always."""
        return True


class StatementCanceledError(DatabaseFailure, OperationalError):
    """The server ended the statement: it took longer than statement_timeout allows, or somebody canceled it."""

    problem = "the statement was canceled"
    remedy = "ask for less at once, or with an index; or allow more time (SET LOCAL statement_timeout = '60s')"


class StatementRefusedError(DatabaseFailure, ProgrammingError, OperationalError):
    """The database does not understand a statement, or there is no such table, column or function in it."""

    problem = "the database cannot run this statement"
    remedy = "correct it; where a table or column is missing, python -m shared.db status says what the schema lacks"


class ValueRefusedError(DatabaseFailure, DataError):
    """The database cannot work with a value: a division by zero, a number out of range, text that is no number."""

    problem = "the database refuses a value"
    remedy = "correct the value, or the condition or expression that it stands in"


class TextEncodingError(DatabaseFailure, DataError):
    """Text has no form in the encoding of the server's database, or bytes are no text in it."""

    problem = "the database's encoding has no form for this text"
    remedy = "move to a database whose encoding is UTF8 (CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0)"


class UnsupportedError(DatabaseFailure, NotSupportedError):
    """The database has no such feature, as a standby has no serializable transactions."""

    problem = "the database does not support this"
    remedy = "ask in another way; on a standby leave out serializable=True, or connect to the primary"


class CopyUnsupportedError(UnsupportedError):
    """COPY was asked for under a wait callback (gevent with psycogreen), where the driver has none.

    Only whole databases are copied and restored by COPY alone: rows are written and read without it there.
    """

    problem = "the driver has no COPY while it waits for gevent"
    remedy = "copy and restore databases in a process of its own, by python -m shared.db"


class UnnamedFailure(DatabaseFailure, OperationalError, InternalError, InterfaceError):
    """The database or its driver failed in a way that is rare enough to have no name here; the text has its words."""

    problem = "the database failed in an unusual way"
    remedy = "look for these words in the database's documentation, and in the server's log"


class TransactionAbortedError(DatabaseFailure, OperationalError, InternalError):
    """An error was caught in the midst of a transaction, which the database had given up: nothing of it is stored.

    The same of a savepoint. `earlier` is what the earlier error said, None if that is not known.
    """

    problem = "an earlier error was caught, and nothing of its transaction or savepoint is stored"
    remedy = "let that error end the block, or put what may fail into a savepoint: with session.begin_nested(): ..."
    earlier: str | None = None
    earlier_transient = False

    @property
    def transient(self) -> bool:
        """Whether the earlier error was."""
        return self.earlier_transient

    def __str__(self) -> str:
        said = str(self.orig).strip().partition("\n")[0]
        return f"{self.problem} ({said}{f'; before: {self.earlier}' if self.earlier else ''}); {self.remedy}"


class DatabaseFullError(DatabaseFailure, OperationalError):
    """The disk or the database's size limit is full; what was committed before is intact."""

    problem = "the database has no space left"
    remedy = "free disk space and try again; nothing of this transaction was written"


class DatabaseReadOnlyError(DatabaseFailure, OperationalError, InternalError):
    """A write where only reading is allowed: a read-only session, file or server."""

    problem = "this session or database is read-only"
    remedy = (
        "write in a session opened without read_only=True and without GRIDBOT_DB_READ_ONLY, and check that this user "
        "may write the file, its -wal and -shm, and their folder"
    )


class ServerReadOnlyError(DatabaseReadOnlyError):
    """A write on a connection that leads to a read-only server, such as a standby, or one that was the primary once.

    After a failover a pool is full of such connections. All of them are ended, so that the next transaction asks anew
    who is behind the address.
    """

    problem = "the server at the other end of this connection is read-only"
    remedy = (
        "the connection was ended: run the whole transaction again, as db.run_in_transaction() does, and check that "
        "GRIDBOT_DB_HOST leads to the primary"
    )

    @property
    def transient(self) -> bool:
        """Always: a failover passes."""
        return True


class DatabaseMovedError(DatabaseFailure, OperationalError):
    """The database file was deleted or replaced while it was open: what is written there would be lost.

    The factory refuses every transaction from then on, until it is closed and opens the file that is there then.
    """

    problem = "the database file was moved, deleted or replaced while open"
    remedy = "put the right file in its place, then restart this process (or call close() on its DatabaseFactory)"


class DatabaseCorruptError(DatabaseFailure, InternalError):
    """The database's own checks failed."""

    problem = "the database is damaged"
    remedy = "stop writing, keep a copy of the files, and restore the last good backup"


class NotADatabaseError(DatabaseFailure, DatabaseError):
    """The file is not an SQLite database."""

    problem = "the file is not an SQLite database"
    remedy = "check GRIDBOT_DB_NAME; the file was left as it is"


class DatabaseUnreachableError(DatabaseFailure, OperationalError):
    """No connection: the server does not answer, the database does not exist, the file cannot be opened."""

    problem = "the database cannot be reached"
    remedy = "check host, port and database name, and that the server runs and accepts connections"

    @property
    def transient(self) -> bool:
        """True, unless the server answers that there is no such database, or the host has no address."""
        return not _NOT_THERE.search(str(self.orig))


_NOT_THERE = re.compile(r'FATAL: +database ".*" does not exist|could not translate host name(?!.*Temporary)')


class ConnectionLostError(DatabaseUnreachableError, InternalError, InterfaceError):
    """The connection broke in the middle of a transaction, which the server then undoes."""

    problem = "the connection to the database was lost"
    remedy = "nothing of this transaction was written: run it again, as db.run_in_transaction() does"

    @property
    def transient(self) -> bool:
        """Always."""
        return True


class CommitUnknownError(DatabaseUnreachableError, InternalError, InterfaceError):
    """The connection broke during COMMIT: the transaction is in the database as a whole, or not at all.

    `db.run_in_transaction(..., idempotent=True)` runs such work again; what may not be done twice has to be looked up.
    """

    problem = "the connection was lost during COMMIT, and whether it took place is unknown"
    remedy = (
        "look whether the rows are there before you write them again; "
        "work that may be done twice goes through db.run_in_transaction(..., idempotent=True)"
    )

    @property
    def transient(self) -> bool:
        """Never: run again, it may be done twice."""
        return False


class TooManyConnectionsError(DatabaseUnreachableError):
    """The server, the database or the role has no connection left."""

    problem = "the server has no connection left"
    remedy = (
        "(GRIDBOT_DB_POOL_SIZE + GRIDBOT_DB_MAX_OVERFLOW) times the number of processes must stay below its "
        "max_connections: lower them, or raise the limit"
    )


class DatabaseFileError(DatabaseFailure, OperationalError):
    """The SQLite file cannot be opened, created or read."""

    problem = "the database file cannot be opened"
    remedy = "check that GRIDBOT_DB_NAME is a file path in a folder this user may write to"


class DatabaseMissingError(DatabaseFileError):
    """There is no such SQLite file, and who only reads makes none."""

    problem = "there is no database file"
    remedy = "check GRIDBOT_DB_NAME, or make one: python -m shared.db init"


class DatabaseDiskError(DatabaseFileError):
    """The operating system could not read or write what the database asked it to."""

    problem = "the disk or file system under the database failed"
    remedy = "check the disk, its file system, quotas and limits; nothing of this transaction was written"


class AuthenticationError(DatabaseFailure, OperationalError):
    """The server refused user or password."""

    problem = "the server refused the login"
    remedy = "check GRIDBOT_DB_USER and GRIDBOT_DB_PASSWORD"


class PermissionDeniedError(DatabaseFailure, ProgrammingError, OperationalError):
    """The login may not do this."""

    problem = "the login lacks a privilege"
    remedy = "grant it to GRIDBOT_DB_USER, or connect as the owner of the schema"
