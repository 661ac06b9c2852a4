"""One API secret, one database password and one key ring, and a stage on which everything they show is kept."""

from __future__ import annotations

import contextlib
import pickle
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.db import (
    ApiCredential,
    DatabaseFactory,
    DatabaseSettings,
)

SECRET = "canary-secret-Zq7vT"
PASSWORD = "canary-password-Xk3"
KEY = "canaryCANARYcanaryCANARYcanaryCANARYcanaryC="
RING = f"k1:{KEY}"
OTHER_RING = "k1:" + "A" * 43 + "="
CANARIES = (SECRET, PASSWORD, KEY[:-1])
ROLE = "canary_login"


@dataclass
class Stage:
    """One database in one mode, and everything that has been seen so far."""

    settings: DatabaseSettings
    folder: Path
    sealed: bool
    # Not in its repr, which is made of the variables of each frame, of the canary's own too.
    seen: list[tuple[str, str]] = field(default_factory=list, repr=False)
    failed: list[str] = field(default_factory=list, repr=False)
    _opened: list[DatabaseFactory] = field(default_factory=list, repr=False)

    def open(self, **changes: Any) -> DatabaseFactory:
        """A factory on the database, with other settings where wanted."""
        self._opened.append(DatabaseFactory(self.settings.model_copy(update=changes)))
        return self._opened[-1]

    def close(self) -> None:
        """Close what nobody has closed."""
        for factory in self._opened:
            factory.close()

    def see(self, where: str, *shown: object) -> None:
        """Keep what somebody would see: text, repr, and the pickle where there is one."""
        for value in shown:
            self.seen += [(where, str(value)), (where, repr(value))]
            with contextlib.suppress(Exception):  # not everything can be pickled; what can is looked through
                self.seen.append((where, pickle.dumps(value).decode("latin-1")))

    def see_failure(self, name: str, error: BaseException) -> None:
        """Keep all of an error and of those chained to it, with the variables of each frame but the canary's own."""
        self.failed.append(name)
        chain: list[BaseException] = []
        following: BaseException | None = error
        while following is not None and following not in chain:
            chain.append(following)
            following = following.__cause__ or following.__context__
        for link in chain:
            self.see(name, link, link.args, {key: value for key, value in vars(link).items() if key != "add_note"})
            told = traceback.TracebackException(type(link), link, link.__traceback__, capture_locals=True)
            told.stack = traceback.StackSummary.from_list(
                [f for f in told.stack if "canary" not in Path(f.filename).stem]
            )
            told.__cause__ = told.__context__ = None
            self.seen.append((name, "".join(told.format())))
            for method in ("errors", "json"):
                if hasattr(link, method):
                    self.see(name, getattr(link, method)())


def new_credential(**values: Any) -> ApiCredential:
    """A credential of ann's with the secret, not stored yet."""
    given = {"account_id": "ann", "api_key_id": "key", "api_secret": SECRET}
    return ApiCredential(**(given | values))


def stored_credential(session: Any, key: str = "stored") -> ApiCredential:
    """The stored one."""
    found: ApiCredential = session.get_one(ApiCredential, key)
    return found


def leaks(seen: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Where a canary shows, and which."""
    return sorted({(where, canary) for where, shown in seen for canary in CANARIES if canary in shown})
