"""What can go wrong, by name."""

from shared.db import SharedDBError


class MetricsError(SharedDBError):
    """The server refused points or a question; the message has its words. Correct what it names."""


class MetricsAwayError(MetricsError):
    """The server cannot be reached: points wait in memory, as many as may; start it, or try again later."""
