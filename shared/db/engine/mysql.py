"""How MariaDB and MySQL connect and begin, and how tables are made there."""

from __future__ import annotations

import math
import re
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import ExecutionContext

from shared.db import forking
from shared.db.database_url import is_secret
from shared.db.dialects.mysql import MySQL, has_driver
from shared.db.dialects.port import TransactionStatus
from shared.db.engine.options import Pool, Request, only_reads
from shared.db.errors import MissingExtraError
from shared.db.hidden import HiddenText

_CONNECT_TIMEOUT = 10
# A value that does not fit is refused and not cut, as everywhere; `||` joins texts, as everywhere.
SQL_MODE = (
    "STRICT_ALL_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION,PIPES_AS_CONCAT"
)
_CHANGES_SCHEMA = "shared_db_changes_schema"
_TEXTS = re.compile(r"('(?:[^']|'')*')")
# A page of rows comes as one text (`ranges/decoding.py`), of which MySQL would cut off all but 1 kB.
_LONGEST_TEXT = 16 * 1024 * 1024
SETTINGS = f"SET SESSION sql_mode = '{SQL_MODE}', time_zone = '+00:00', group_concat_max_len = {_LONGEST_TEXT}"


def make(request: Request) -> Engine:
    """An engine for a server's database. `MissingExtraError` without PyMySQL."""
    if not has_driver():
        raise MissingExtraError("PyMySQL", "mysql")
    settings, url = request.settings, request.url
    hidden = {key: value for key, value in url.query.items() if is_secret(key) and not key.startswith("ssl_")}
    engine = create_engine(
        url.difference_update_query(hidden),
        **request.common,
        **request.pool,
        poolclass=Pool,
        pool_recycle=settings.pool_recycle,
        pool_pre_ping=settings.pool_pre_ping,
        # REPEATABLE READ, the server's own choice, reads older rows than it changes: updates get lost.
        isolation_level="READ COMMITTED",
        connect_args={
            **request.unless_in_url(
                program_name=settings.application_name, connect_timeout=_CONNECT_TIMEOUT, charset="utf8mb4"
            ),
            "init_command": SETTINGS,
            **({} if url.password is None else {"password": HiddenText(url.password)}),
        },
    )
    dialect: Any = engine.dialect
    # A second statement on the connection would end the reading of the first, and what is left be missing in silence.
    dialect.supports_server_side_cursors = False
    write_as_here(dialect)
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "before_cursor_execute", _note, retval=True)
    event.listen(engine, "set_connection_execution_options", _keep_names)
    forking.protect(engine)
    return engine


def write_as_here(dialect: Any) -> None:
    """Have a dialect write tables as they are made here."""
    dialect.ddl_compiler = _with_ddl(dialect.ddl_compiler)
    dialect.type_compiler_instance = _with_types(type(dialect.type_compiler_instance))(dialect)


def expect_ddl(connection: Connection) -> None:
    """From now on raw SQL on this connection may be DDL, which ends the transaction that is open."""
    connection.execution_options(**{_CHANGES_SCHEMA: True})


def probing(url: URL, folder: str, timeout: float) -> URL:
    """The URL by which to look at the server, in that time."""
    return url.update_query_dict({"connect_timeout": str(max(1, math.ceil(timeout)))})


def became_read_only(error: BaseException, connection: Connection) -> bool:
    """Whether the server refuses to write by itself, as a replica does, and not since the session asked for it."""
    return bool(error.args) and error.args[0] in (1290, 1836) and not only_reads(connection)


def _connect(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> Any:
    try:
        # The driver would write text in Latin-1, which has not all of a password's letters.
        password = options.get("password")
        return dialect.connect(
            *arguments, **(options | ({} if password is None else {"password": str(password).encode()}))
        )
    except dialect.loaded_dbapi.Error as error:
        # Without the driver's frames, some of which have the password among their variables.
        raise error.with_traceback(None)  # noqa: B904 # the same error


def _begin(connection: Connection) -> None:
    if only_reads(connection):
        driver: Any = connection.connection.dbapi_connection
        driver.query("START TRANSACTION READ ONLY")


def _keep_names(connection: Connection, options: dict[str, Any]) -> None:
    # inspect() asks so for a statement of its own, and the connection keeps it: errors would lose their names from then
    # on, and show the values that the server quotes.
    options.pop("skip_user_error_events", None)


_port = MySQL()


def _note(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: ExecutionContext, executemany: bool
) -> tuple[str, Any]:
    driver = connection.connection.dbapi_connection
    was_open = _port.status(driver) is TransactionStatus.OPEN
    # DDL of constructs is expected to end it; of raw SQL nobody may have known, but for who changes the schema.
    expected = getattr(context, "isddl", False) or _CHANGES_SCHEMA in connection.get_execution_options()
    driver.shared_db_was_open = was_open and not expected  # type: ignore[union-attr] # the driver's own object
    return statement, parameters


def _with_ddl(compiler: Any) -> Any:
    class Tables(compiler):  # type: ignore[misc] # SQLAlchemy's compilers have no types
        """Tables whose texts are equal and ordered by code points, and unique indexes over some of their rows."""

        def post_create_table(self, table: Any) -> str:
            collation = "utf8mb4_nopad_bin" if self.dialect.is_mariadb else "utf8mb4_0900_bin"
            return f"{super().post_create_table(table)} DEFAULT CHARACTER SET utf8mb4 COLLATE {collation}"

        def visit_check_constraint(self, constraint: Any, **options: Any) -> str:
            # Written by hand, for other databases: names that are words of SQL here alone, such as `interval`.
            text: str = super().visit_check_constraint(constraint, **options)
            quoted = {name: self.preparer.quote(name) for name in (each.name for each in constraint.table.columns)}
            reserved = [name for name, written in quoted.items() if written != name]
            if not reserved:
                return text
            bare = re.compile(rf"(?<![`\w])({'|'.join(map(re.escape, reserved))})(?![`\w])")
            parts = _TEXTS.split(text)  # every second one is a text
            parts[::2] = [bare.sub(lambda found: quoted[found[1]], part) for part in parts[::2]]
            return "".join(parts)

        def visit_create_index(self, create: Any, **options: Any) -> str:
            # There is no index of some rows alone; of NULLs a unique one has as many as it likes.
            index = create.element
            where = index.dialect_options["postgresql"]["where"]
            if where is None or not index.unique:
                text: str = super().visit_create_index(create, **options)
                return text
            quote = self.preparer.quote
            condition = self.sql_compiler.process(where, include_table=False, literal_binds=True)
            name = quote(f"only_{index.name}"[:64])
            virtual = f"TINYINT GENERATED ALWAYS AS (IF({condition}, 1, NULL)) VIRTUAL INVISIBLE"
            columns = ", ".join([name, *(quote(column.name) for column in index.columns)])
            return (
                f"ALTER TABLE {self.preparer.format_table(index.table)} ADD COLUMN {name} {virtual}, "
                f"ADD UNIQUE INDEX {self._prepared_index_name(index)} ({columns})"
            )

        def visit_drop_index(self, drop: Any, **options: Any) -> str:
            # With one over some rows goes the column that stands for it.
            index = drop.element
            if index.dialect_options["postgresql"]["where"] is None:
                text: str = super().visit_drop_index(drop, **options)
                return text
            there = "IF EXISTS " if drop.if_exists and self.dialect.is_mariadb else ""
            name = self.preparer.quote(f"only_{index.name}"[:64])
            return (
                f"ALTER TABLE {self.preparer.format_table(index.table)} "
                f"DROP INDEX {there}{self._prepared_index_name(index)}, DROP COLUMN {there}{name}"
            )

    return Tables


def _with_types(compiler: Any) -> Any:
    class Types(compiler):  # type: ignore[misc] # as above
        """JSON of any depth."""

        def visit_JSON(self, type_: Any, **options: Any) -> str:  # noqa: N802 # SQLAlchemy's name
            # MariaDB's own is this text with a CHECK, which takes no more than 31 levels.
            return "LONGTEXT" if self.dialect.is_mariadb else "JSON"

        def visit_DATETIME(self, type_: Any, **options: Any) -> str:  # noqa: N802 # SQLAlchemy's name
            # Without a number it would have no fractions: those of outside tables' plain times, too.
            return f"DATETIME({6 if getattr(type_, 'fsp', None) is None else type_.fsp})"

    return Types
