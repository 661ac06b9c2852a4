"""Who asks a session: repositories; and which of them a method belongs to that is handed over by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy.orm import Session

from shared.db.errors import InvalidValueError


class Asking:
    """Made with a session, which its methods ask."""

    def __init__(self, session: Session) -> None:
        self.session = session


def asked_by(question: Callable[..., Any], *args: Any, **options: Any) -> Callable[[Session], Any]:
    """What calls `question`, a method such as `RunRepository.get_running`, on a repository with the session.

    Raises `InvalidValueError` for anything else, and for a method that several repositories have: Python does not tell
    by which of them it was named.
    """
    name = getattr(question, "__name__", "")
    having = [one for one in _kinds(Asking) if inspect.getattr_static(one, name, None) is question]
    # A consumer's class may have it from one of ours.
    first = [one for one in having if all(issubclass(other, one) for other in having)]
    if len(first) != 1 or not inspect.isfunction(question) or not hasattr(first[0], "model"):
        raise InvalidValueError(
            f"{name or question!r} is not the method of one repository alone, as RunRepository.get_running is; say "
            f"which one asks: arun_in_transaction(lambda session: RunRepository(session).{name or 'get_running'}(...))"
        )
    repository: Any = first[0]
    return lambda session: question(repository(session), *args, **options)


def _kinds(kind: type[Asking]) -> Iterator[type[Asking]]:
    for one in kind.__subclasses__():
        yield one
        yield from _kinds(one)
