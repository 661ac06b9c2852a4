"""What becomes of rows that are not written, or otherwise than they came: kept, told, logged without a value."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sqlalchemy.exc import SQLAlchemyError

from shared.db.bulk import RejectedRow, RowNote
from shared.db.bulk.rows import Row
from shared.db.errors import DeadLettersError, RecorderError, SharedDBError
from shared.db.recording.dead_letters import DeadLetters

OnError = Callable[[RejectedRow], object]
OnNote = Callable[[RowNote], object]
OnWritten = Callable[[Sequence[Row]], object]


class Refusals:
    """Keeps rows in `dead_letters`, if there are any, and tells `on_error` of each; `name` says in the log whose.

    `on_note` is told of rows that are written, and otherwise than they came; `on_written` of all that are.
    """

    def __init__(
        self,
        name: str,
        dead_letters: DeadLetters | None,
        on_error: OnError | None,
        on_note: OnNote | None,
        on_written: OnWritten | None,
        log: logging.Logger,
    ) -> None:
        self.callback_errors = 0
        self._name = name
        self._dead_letters = dead_letters
        self._on_error = on_error
        self._on_note = on_note
        self._on_written = on_written
        self._log = log

    def tell(self, refused: Sequence[RejectedRow]) -> str:
        """Keep rows and call `on_error`; what went wrong last, a row's reason or an error of the callback's.

        Raises `DeadLettersError` if they cannot be kept.
        """
        if self._dead_letters is not None:
            try:
                self._dead_letters.append(refused)
            except OSError as error:
                raise DeadLettersError(str(self._dead_letters.path), error.strerror or type(error).__name__) from error
            what = f"kept in {self._dead_letters.path}"
        else:
            what = "LOST: give dead_letters or on_error" if self._on_error is None else "told to on_error alone"
        self._log.error("%s: %d rows were refused, and are %s", self._name, len(refused), what)
        last = refused[-1].reason
        if self._on_error is None:
            return last
        return self._called("on_error", self._on_error, refused) or last

    def note(self, notes: Sequence[RowNote], contradicted: int) -> str | None:
        """Call `on_note`, and say in the log how many rows contradict what is stored; what the callback raised last."""
        if contradicted:
            self._log.warning(
                "%s: %d rows have other values than what is stored, which stays", self._name, contradicted
            )
        return None if self._on_note is None else self._called("on_note", self._on_note, notes)

    def written(self, rows: Sequence[Row]) -> str | None:
        """Call `on_written`; what it raised."""
        return None if self._on_written is None else self._called("on_written", self._on_written, [rows])

    def _called(self, name: str, callback: Callable[[Any], object], rows: Sequence[Any]) -> str | None:
        raised = None
        for row in rows:
            try:
                callback(row)
            except BaseException as error:  # noqa: BLE001 # the caller's code must not end the recorder
                self._log.error("%s: %s raised %s%s", self._name, name, type(error).__name__, _raised_at(error))
                self.callback_errors += 1
                raised = f"{name} raised {type(error).__name__}: {error}"
        return raised

    def give_up(self, rows: Sequence[Row], first: int, why: str, failure: BaseException | None) -> NoReturn:
        """Keep rows that were not written when the recorder closed, the first of them at position `first`, and say so.

        Raises `RecorderError` in any case: they are not in the database.
        """
        reason = f"not written when the recorder closed: {why}"
        text = f"{len(rows)} rows are not in the database ({why})"
        if self._dead_letters is None:
            text += " and are LOST with this process; give a spool, or dead_letters"
        else:
            try:
                self._dead_letters.append([RejectedRow(first + n, reason, row) for n, row in enumerate(rows)])
                text += f"; they are in {self._dead_letters.path}: python -m shared.db replay writes them"
            except OSError as error:
                failure = error
                text += f" and are LOST with this process, since the dead letters failed too: {shown(error)}"
        self._log.error("%s: %s", self._name, text)
        raise RecorderError(text) from failure


def shown(error: BaseException) -> str:
    """The error without anything of a row: what the database says of one is cut off, and others may say anything."""
    if isinstance(error, OSError):
        said = f"{error.strerror} ({error.filename})"
    else:
        said = str(error) if isinstance(error, (SharedDBError, SQLAlchemyError, Warning)) else ""
    return f"{type(error).__name__}: {said}".partition("\n")[0].removesuffix(": ")


def _raised_at(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
