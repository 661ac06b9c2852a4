"""Text that no repr shows."""

from __future__ import annotations


class HiddenText(str):
    """A password or key as text that works like any other, but is not shown among a traceback's variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"
