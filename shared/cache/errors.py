"""What can go wrong, by name."""

from shared.db import SharedDBError


class CacheError(SharedDBError):
    """Redis refused a command or the login; the message has its words, and never a value."""


class CacheAwayError(CacheError):
    """Redis cannot be reached, and what was asked may not be dropped: start it, or try again later."""


class LeadershipLostError(CacheError):
    """Another process leads this strategy now: this one must stop trading it."""
