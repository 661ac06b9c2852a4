"""A transaction ends with its session, whatever the text of a statement says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg2.extensions
import pytest
from psycopg2.sql import SQL
from sqlalchemy import URL, insert, select, text
from sqlalchemy.orm import Session

from shared.db import DatabaseFactory, TransactionControlError, User
from shared.db.tests.support import usernames
from shared.db.transaction_control import control_in

CONTROL = {
    "COMMIT": "COMMIT",
    " commit work ;": "COMMIT",
    "/* first */ -- then\n COMMIT": "COMMIT",
    "/*/* within */ */ COMMIT": "COMMIT",
    "/* /* */ ' */ COMMIT --'": "COMMIT",
    "END": "END",
    "abort": "ABORT",
    "ROLLBACK": "ROLLBACK",
    "ROLLBACK AND CHAIN": "ROLLBACK",
    "rollback to a": "ROLLBACK TO",
    "ROLLBACK WORK TO SAVEPOINT a": "ROLLBACK TO",
    "BEGIN": "BEGIN",
    "START /* a */ TRANSACTION": "START TRANSACTION",
    "PREPARE TRANSACTION 'a'": "PREPARE TRANSACTION",
    "COMMIT PREPARED 'a'": "COMMIT",
    "SAVEPOINT a": "SAVEPOINT",
    "RELEASE a": "RELEASE",
}
STACKED = (
    "SELECT 1; COMMIT",
    "SELECT 1;COMMIT;BEGIN;SELECT 2",
    ";;COMMIT",
    "SELECT ';' ; END",
    "SELECT $$ ; $$ ; ROLLBACK",
    "SELECT $a$ $$ $a$; COMMIT",
    "SELECT 1 AS a$b$; COMMIT; SELECT 2 AS a$b$",
    "SELECT 1 AS \U0001f600$$; COMMIT; SELECT 2 AS \U0001f600$$",
    r"SELECT E'\''; COMMIT; SELECT ''",
    r"SELECT '\'; COMMIT; SELECT '",
    r"SELECT '\''; COMMIT; SELECT 'where a backslash escapes'",
    'SELECT 1 AS "a;"; COMMIT',
    "SELECT 1 -- ;\r; COMMIT",
    "SELECT 1 /* /* */ ' */; COMMIT; --'",
    "CREATE FUNCTION a() RETURNS int BEGIN ATOMIC SELECT 1; END; END; BEGIN",
    "CREATE FUNCTION a() RETURNS int BEGIN ATOMIC SELECT 1; END AND CHAIN",
    "SELECT begin atomic FROM a; END",
)
HARMLESS = (
    "SELECT 1",
    "SELECT 'a'; SELECT 'b'",
    "SELECT '; COMMIT'; SELECT 1",
    "SELECT 'a''; COMMIT'; SELECT 1",
    "SELECT 1 /* ; COMMIT; */; SELECT 2",
    "SELECT 1 /* /* */ ; COMMIT; */; SELECT 2",
    "SELECT 1; -- COMMIT",
    'SELECT 1 AS "; COMMIT"; SELECT 2',
    "DO $$ BEGIN PERFORM 1; END $$",
    "DO $do$ BEGIN PERFORM 1; COMMIT; END $do$",  # the server refuses it inside of a transaction
    "CREATE FUNCTION a() RETURNS int BEGIN ATOMIC SELECT CASE 1 WHEN 1 THEN 2 END; SELECT 1; END",
    "CREATE FUNCTION a() RETURNS int BEGIN ATOMIC SELECT 1; END; SELECT 2",
    "PREPARE a AS SELECT 1",
    "SELECT commit FROM a",
    "WITH commit AS (SELECT 1) SELECT * FROM commit; SELECT 1",
    "ENDING",
    "",
)


def test_the_words_that_control_a_transaction_are_found() -> None:
    """By themselves, behind comments, in any case, and behind other statements, whatever those hide them in."""
    assert {sql: control_in(sql) for sql in CONTROL} == CONTROL
    assert [sql for sql in STACKED if control_in(sql) is None] == []


def test_the_same_words_elsewhere_are_none_of_them() -> None:
    """In strings, comments, names and bodies of functions they end nothing."""
    assert {sql: control_in(sql) for sql in HARMLESS} == dict.fromkeys(HARMLESS)


def test_of_a_text_of_which_the_first_statement_is_run_the_others_do_not_count() -> None:
    """SQLite's driver takes one statement, and a trigger's body is part of it."""
    trigger = "CREATE TRIGGER a BEFORE UPDATE ON b BEGIN SELECT RAISE(ABORT, 'no'); END"
    assert control_in(trigger, stacked=False) is None
    for sql in (" ;/* a */; COMMIT", "/* /* */ COMMIT", "\ufeffCOMMIT", "/* a */\ufeff COMMIT"):
        assert control_in(sql, stacked=False) == "COMMIT"
    assert control_in("/* /* */ ' */ COMMIT --'", stacked=False) is None


def _text(sql: str) -> Callable[[Session], object]:
    return lambda session: session.execute(text(sql))


def _driver_sql(session: Session) -> object:
    return session.connection().exec_driver_sql("COMMIT")


def _part_of_a_statement(session: Session) -> object:
    return session.execute(select(text("1; COMMIT; BEGIN; SELECT 1")))


def _cursor(query: Any, method: str = "execute", *arguments: Any) -> Callable[[Session], object]:
    def run(session: Session) -> None:
        with closing(session.connection().connection.cursor()) as cursor:
            getattr(cursor, method)(query, *arguments)

    return run


EVERYWHERE = (
    *map(_text, ("COMMIT", "ROLLBACK", "END", "SAVEPOINT a", "ROLLBACK TO a", "/* a */ commit", " ; COMMIT")),
    _driver_sql,
)
POSTGRESQL_ALONE = (
    _text("SELECT 1; COMMIT; BEGIN"),
    _part_of_a_statement,
    _cursor("COMMIT"),
    _cursor(b"SELECT 1; COMMIT; BEGIN"),
    _cursor(SQL("COMMIT")),
    _cursor("COMMIT", "executemany", [()]),
    _cursor("COMMIT; COPY users TO STDOUT", "copy_expert", None),
    lambda session: session.connection().connection.cursor("named").execute("SELECT 1; COMMIT"),
)


def test_nothing_stays_of_a_session_whose_text_would_commit(db: DatabaseFactory) -> None:
    """The text is refused by name before it is sent, and what came before it is undone with the session."""
    attempts = EVERYWHERE + (POSTGRESQL_ALONE if db.engine.dialect.name == "postgresql" else ())

    def write(attempt: Callable[[Session], object], *, caught: bool) -> None:
        with db.get_session() as session:
            session.add(User(username="half"))
            session.flush()
            with pytest.raises(TransactionControlError, match="begin_nested"):
                attempt(session)
            if not caught:
                raise ZeroDivisionError

    for attempt in attempts:
        with pytest.raises(ZeroDivisionError):
            write(attempt, caught=False)
        assert usernames(db) == []
    write(attempts[0], caught=True)  # nothing has happened to the transaction
    assert usernames(db) == ["half"]


def test_a_transaction_that_ended_all_the_same_is_noticed(lasting: DatabaseFactory) -> None:
    """By the next raw statement, from what the driver knows, when somebody ended it behind SQLAlchemy's back."""

    def behind_its_back(session: Session) -> None:
        driver: Any = session.connection().connection.dbapi_connection
        if lasting.engine.dialect.name == "sqlite":
            driver.executescript("SELECT 1")  # which commits first
        elif lasting.engine.dialect.name == "mysql":
            driver.query("COMMIT")
        else:
            with closing(driver.cursor()) as cursor:
                psycopg2.extensions.cursor.execute(cursor, "COMMIT")

    def write() -> None:
        with lasting.get_session() as session:
            session.add(User(username="stored"))
            session.flush()
            behind_its_back(session)
            session.execute(text("SELECT username FROM users"))

    with pytest.raises(TransactionControlError, match="something"):
        write()
    assert usernames(lasting) == ["stored"]


def test_a_connection_of_its_own_in_autocommit_may_control_transactions(postgresql_url: URL) -> None:
    """There SQL is the way to have one."""
    with DatabaseFactory(postgresql_url) as db, db.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text("BEGIN"))
        connection.execute(insert(User).values(username="undone"))
        connection.execute(text("ROLLBACK"))
        assert usernames(db) == []
