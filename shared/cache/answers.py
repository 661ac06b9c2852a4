"""`CachedAnswers`: answers of the database kept in Redis, until a commit writes a table that they come from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

from shared.cache.client import SyncRedisClient
from shared.cache.values import checked_ttl
from shared.db import Base, DatabaseFactory, InvalidValueError

_NAMESPACE = "answers"
_VERSIONS = "versions"


class CachedAnswers:
    """Answers of questions to `db`, each kept for at most `ttl` seconds, and never past a commit to its tables.

    Every commit of `db` (see `DatabaseFactory.on_commit`) gives the tables that it wrote a new mark in Redis, and an
    answer counts only while its tables have the marks that they had before the question was put. Answers are one
    user's where `redis` is, and the marks are everybody's.
    """

    def __init__(self, redis: SyncRedisClient, db: DatabaseFactory, *, ttl: int = 60) -> None:
        self._redis, self._ttl = redis, checked_ttl(ttl)
        self._shared = redis.for_all()
        self._lock = threading.Lock()
        self._unsaid: set[str] = set()  # tables whose new mark could not be set
        db.on_commit(self.forget)

    def get(self, key: str, tables: Iterable[type[Base]], question: Callable[[], Any]) -> Any:
        """The answer under `key`, or what `question()` returns, which reads these tables and is kept.

        Answers are what `set` takes, or None. While Redis is away the question is put every time.
        """
        names = sorted({model.__tablename__ for model in tables})
        if not names:
            raise InvalidValueError("say which tables the answer comes from, or no commit would ever renew it")
        if self._unsaid:
            self.forget(frozenset())
        marks = self._shared.get_multiple(names, namespace=_VERSIONS)
        if self._unsaid or len(marks) < len(names):  # of which nothing counts
            self.forget(frozenset(names) - marks.keys())
            return question()
        kept = self._redis.get(key, namespace=_NAMESPACE)
        if kept is not None and kept["marks"] == marks:
            return kept["answer"]
        answer = question()
        self._redis.set(key, {"marks": marks, "answer": answer}, self._ttl, namespace=_NAMESPACE)
        return answer

    def forget(self, tables: frozenset[str]) -> None:
        """Let no answer from these tables count any more; what Redis was not told is told before the next question."""
        with self._lock:
            self._unsaid |= tables
            mark = uuid4().hex
            if self._shared.set_multiple(dict.fromkeys(self._unsaid, mark), namespace=_VERSIONS):
                self._unsaid.clear()
