"""Values as text and back, exactly; and keys, which no name can lead out of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any
from urllib.parse import quote
from uuid import UUID

from shared.db import InvalidValueError, TenantScopeError

_READ: dict[str, Callable[[str], Any]] = {"$decimal": Decimal, "$time": datetime.fromisoformat, "$uuid": UUID}
_SECONDS = 10**9


def encoded_all(data: Mapping[str, Any]) -> list[str]:
    """Values as `encoded` makes them: what is quick for many of them stands here."""
    return [
        # The usual case, and the one that has to be quick: =65065.80
        "=" + str(value) if type(value) is Decimal and value.is_finite() else encoded(value, name)
        for name, value in data.items()
    ]


def decoded_all(names: Iterable[str], texts: Iterable[bytes | None]) -> dict[str, Any]:
    """The values of those names that have one."""
    there = {name: text for name, text in zip(names, texts, strict=True) if text}
    # To take all apart at once is quicker; no text of ours has a NUL in it.
    said = ("\0" + b"\0".join(there.values()).decode()).split("\0=")
    if len(said) == len(there) + 1 and not said[0]:
        return dict(zip(there, map(Decimal, said[1:]), strict=True))
    return {name: decoded(text) for name, text in there.items()}


def encoded(value: Any, place: str) -> str:
    """A value as JSON; Decimal, aware datetime and UUID are tagged. `InvalidValueError`, naming `place`, for others."""
    if value is None:
        raise InvalidValueError("None cannot be told from a key that is not there; delete the key", place)
    try:
        return json.dumps(_plain(value, place), separators=(",", ":"))
    except RecursionError:
        raise InvalidValueError("the value holds itself, or is nested too deeply", place) from None


def decoded(text: bytes | None) -> Any:
    """The value that was encoded: lists for tuples, times in UTC."""
    if not text:
        return None
    return Decimal(text[1:].decode()) if text[:1] == b"=" else json.loads(text.decode(), object_hook=_tagged)


def _plain(value: Any, place: str) -> Any:
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Decimal) and value.is_finite():
        return {"$decimal": str(value)}
    if type(value) is datetime:
        if value.tzinfo is None:
            raise InvalidValueError("a naive datetime does not say which instant it means", place)
        return {"$time": value.astimezone(UTC).isoformat()}
    if isinstance(value, UUID):
        return {"$uuid": str(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(each, place) for each in value]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        # A name of ours in a document of the caller's keeps its own meaning.
        return {f"${name}" if name[:1] == "$" else name: _plain(each, place) for name, each in value.items()}
    raise InvalidValueError(
        f"a {type(value).__name__} cannot be kept exactly; give str, bool, int, finite float or Decimal, aware "
        "datetime, UUID, or lists and dicts (with names as keys) of them",
        place,
    )


def _tagged(document: dict[str, Any]) -> Any:
    if len(document) == 1:
        ((name, value),) = document.items()
        if name in _READ:
            return _READ[name](value)
    return {name[1:] if name[:1] == "$" else name: value for name, value in document.items()}


@lru_cache(maxsize=1024)
def prefix(user_id: str | None, namespace: str) -> str:
    """What every key of a user's namespace begins with: no other user's or namespace's keys do."""
    # Escaped, a part has no colon in it, and nothing that a pattern of SCAN could take for its own.
    owner = ["s"] if user_id is None else ["u", user_id]
    return ":".join(quote(part, safe="") for part in checked_names([*owner, namespace])) + ":"


def checked_user_id(user_id: Any) -> str:
    """The user id, if it is one; else `TenantScopeError`."""
    if not isinstance(user_id, str) or not user_id:
        raise TenantScopeError(f"{user_id!r} is not a user id; look the user up first")
    return user_id


def checked_names(names: Any) -> Sequence[str]:
    """Names that Redis can take as keys or fields, or `InvalidValueError`."""
    given = list(names) if isinstance(names, Iterable) and not isinstance(names, (str, bytes)) else [names]
    with suppress(TypeError, UnicodeEncodeError):  # what is no text, or half a character
        "".join(given).encode()
        if "" not in given:
            return given
    raise InvalidValueError("a name is text of at least one character, and of whole ones (no lone surrogate)")


def checked_ttl(ttl: Any) -> int:
    """Seconds to live, at least 1, or `InvalidValueError`."""
    if isinstance(ttl, bool) or not isinstance(ttl, int) or not 1 <= ttl <= _SECONDS:
        raise InvalidValueError(
            f"a time to live is 1 to {_SECONDS:,} whole seconds, not {ttl!r}; leave it out for ever"
        )
    return ttl
