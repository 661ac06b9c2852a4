"""Which user is meant: what a caller may give as `user_id`, and what it says together with session and repository."""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

from shared.db.columns import ID_LENGTH
from shared.db.errors import TenantScopeError


class Unset(Enum):
    """The type of `UNSET`."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


# The default of every `user_id` parameter. None is not: a value that somebody forgot must not open all data.
UNSET: Final = Unset.UNSET
UserId = str | Literal[Unset.UNSET]


def checked_user_id(user_id: object) -> str:
    """`user_id` if it can be one, else `TenantScopeError`."""
    if isinstance(user_id, str) and 0 < len(user_id) <= ID_LENGTH and "\0" not in user_id:
        # A plain string, also of an enumeration's member; a lone surrogate has no form that a driver could send.
        try:
            return str.encode(user_id).decode()
        except UnicodeEncodeError:
            pass
    shown = "an over-long text" if isinstance(user_id, str) and len(user_id) > ID_LENGTH else repr(user_id)
    raise TenantScopeError(
        f"{shown} is not a user id; pass the user's user_id (1 to {ID_LENGTH} characters), "
        "or leave user_id out where no single user is meant"
    )


def agreed_user(known: UserId, named: object) -> UserId:
    """The one user that both name, of whom `known` was checked before; `TenantScopeError` if they differ."""
    if named is UNSET:
        return known
    user_id = checked_user_id(named)
    if known not in (UNSET, user_id):
        raise TenantScopeError(
            "the session, the repository and the call name different users; open a session for the user you mean"
        )
    return user_id
