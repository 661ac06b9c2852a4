"""Transactions end where their session ends them, and never in the text of a statement.

A COMMIT or ROLLBACK in raw SQL is unknown to SQLAlchemy and to the driver: what follows it commits by itself, statement
by statement, an exception undoes nothing, and of a user's session under PostgreSQL's policies nothing is confined any
more. So each text is refused that holds one; and whatever ended a transaction all the same is noticed with the next
raw statement, without asking the server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import ExecutionContext
from sqlalchemy.pool import StaticPool
from sqlalchemy.sql.elements import ReleaseSavepointClause, RollbackToSavepointClause, SavepointClause

from shared.db.dialects import port_of
from shared.db.dialects.port import TransactionStatus
from shared.db.errors import TransactionControlError
from shared.db.transactions import transaction_status

_SAVEPOINTS = (SavepointClause, RollbackToSavepointClause, ReleaseSavepointClause)
_WORDS = frozenset({"COMMIT", "ROLLBACK", "ABORT", "BEGIN", "END"})
_WORDS_OF_SAVEPOINTS = frozenset({"SAVEPOINT", "RELEASE", "ROLLBACK TO"})
_PAIRS = frozenset({("START", "TRANSACTION"), ("PREPARE", "TRANSACTION")})
# What most statements do not even begin with, so that they need no second look. A comment may hide what follows it.
_SUSPECT = re.compile(
    r"[\s;\ufeff]*(--|/\*|(commit|rollback|abort|begin|end|start|prepare|savepoint|release)\b)", re.IGNORECASE
)
# What a text without any of them need not be taken apart for, whatever else it holds, by whether savepoints count.
_ANYWHERE = {
    savepoints: re.compile(rf"\b(commit|rollback|abort|begin|end|start|prepare{others})\b", re.IGNORECASE)
    for savepoints, others in ((False, ""), (True, "|savepoint|release"))
}
# A string may hold what looks like a statement. With standard_conforming_strings off a backslash escapes in each of
# them: which one it is, only the server knows.
_EDGE_OF_COMMENT = re.compile(r"/\*|\*/")
_NAME = r"[^\W\d]|[\x80-\U0010ffff]"
_TOKENS = {
    escapes: re.compile(
        rf"""
        --[^\n\r]* | (?P<comment>/\*)
        | \$(?P<tag>(?:(?:{_NAME})(?:\w|[\x80-\U0010ffff])*)?)\$.*?\$(?P=tag)\$
        | [eE]'(?:[^'\\]|\\.|'')*'
        | '(?:{string}|'')*'
        | "[^"]*"
        | (?P<word>(?:\w|[\x80-\U0010ffff])(?:[\w$]|[\x80-\U0010ffff])*)
        | (?P<end>;)
        | (?P<other>\S)
        """,
        re.DOTALL | re.VERBOSE,
    )
    for escapes, string in ((False, r"[^']"), (True, r"[^'\\]|\\."))
}


def statements(sql: str, *, escapes: bool = False, nested: bool = True) -> Iterator[list[str]]:
    """The words of each statement in `sql`, in capitals; whatever else stands in it is "?".

    Comments are `nested` on PostgreSQL, and on SQLite end where the first one does.
    """
    words: list[str] = []
    place = 0
    while token := _TOKENS[escapes].search(sql, place):
        place = token.end()
        if token["comment"]:
            place = _end_of_comment(sql, place, nested=nested)
        elif token["end"]:
            yield words
            words = []
        elif token["word"]:
            words.append(token["word"].upper())
        elif token["other"] or token[0][:2] != "--":
            words.append("?")
    yield words


def _end_of_comment(sql: str, place: int, *, nested: bool) -> int:
    depth = 1
    while depth and (edge := _EDGE_OF_COMMENT.search(sql, place)):
        place = edge.end()
        depth += -1 if edge[0] == "*/" else int(nested)
    return len(sql) if depth else place


def control_in(sql: str, *, stacked: bool = True, savepoints: bool = True) -> str | None:
    """What in `sql` begins or ends a transaction, or a savepoint too, by its name; None if nothing does.

    Not `stacked` for a driver that runs the first statement of a text alone.
    """
    if ((";" not in sql or not stacked) and not _SUSPECT.match(sql)) or not _ANYWHERE[savepoints].search(sql):
        return None
    if not stacked:
        sql = sql.replace("\ufeff", " ")  # which it is to SQLite, and part of a name to PostgreSQL
    for escapes in (False, True) if "\\" in sql else (False,):
        in_body = False
        for words in statements(sql, escapes=escapes, nested=stacked):
            if in_body and words == ["END"]:
                in_body = False  # of the body of a function that is written out: CREATE FUNCTION ... BEGIN ATOMIC
                continue
            control = _control(words)
            if control is not None and (savepoints or control not in _WORDS_OF_SAVEPOINTS):
                return control
            if words and not stacked:
                return None
            if words[:1] == ["CREATE"]:
                in_body = ("BEGIN", "ATOMIC") in pairwise(words)
    return None


def _control(words: list[str]) -> str | None:
    if tuple(words[:2]) in _PAIRS:
        return " ".join(words[:2])
    first = words[0] if words else ""
    if first == "ROLLBACK" and "TO" in words[1:3]:
        return "ROLLBACK TO"
    return first if first in _WORDS or first in _WORDS_OF_SAVEPOINTS else None


def is_raw(context: ExecutionContext) -> bool:
    """Whether a statement is text, or holds some; what is made of constructs alone the compiler of `tenancy/` marks."""
    raw: bool = getattr(context.compiled, "passed_raw_sql", True)
    return raw


def refuse(connection: Connection, cursor: Any, statement: str, context: ExecutionContext) -> None:
    """Before a statement is sent: `TransactionControlError` if its text begins or ends a transaction or a savepoint."""
    if ";" not in statement and not _SUSPECT.match(statement):
        return
    # Outside of a transaction it is the one that begins it.
    if connection.get_transaction() is None or getattr(cursor.connection, "autocommit", False) is True:
        return
    control = control_in(statement, stacked=port_of(connection).runs_several)
    compiled: Any = context.compiled
    if control is not None and not (compiled is not None and isinstance(compiled.statement, _SAVEPOINTS)):
        raise TransactionControlError(control)


def make_sure(connection: Connection) -> None:
    """After a raw statement: `TransactionControlError` if it has ended the transaction all the same."""
    if connection.get_transaction() is None:
        return
    over = transaction_status(connection) is TransactionStatus.NONE
    # On the one connection of an in-memory database another session may have ended the transaction.
    if over and not isinstance(connection.engine.pool, StaticPool):
        over = port_of(connection).believes_to_go_on(connection.connection.dbapi_connection)
    else:
        over = False
    if over:
        raise TransactionControlError("something in this statement")


class GuardedCursor:
    """Before a driver's class of cursors: also for who takes it from a session's connection, it ends no transaction."""

    connection: Any

    def execute(self, query: Any, vars: Any = None) -> None:
        """As the driver's; `TransactionControlError` for a COMMIT or the like."""
        if not isinstance(query, str) or ";" in query or _SUSPECT.match(query):
            self._look_at(query)
        super().execute(query, vars)  # type: ignore[misc] # of the driver's class, which stands behind this one

    def executemany(self, query: Any, vars_list: Any) -> None:
        """As the driver's; `TransactionControlError` for a COMMIT or the like."""
        self._look_at(query)
        super().executemany(query, vars_list)  # type: ignore[misc] # as above

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        """As the driver's; `TransactionControlError` for a COMMIT or the like."""
        self._look_at(sql)
        super().copy_expert(sql, file, size)  # type: ignore[misc] # as above

    def _look_at(self, query: Any) -> None:
        if self.connection.autocommit:
            return
        if hasattr(query, "as_string"):  # psycopg2's composed statements
            query = query.as_string(self)
        text = query if isinstance(query, str) else bytes(query).decode(errors="replace")
        # SQLAlchemy's savepoints come this way too; those that do not were refused before.
        control = control_in(text, savepoints=False)
        if control is not None:
            raise TransactionControlError(control)
