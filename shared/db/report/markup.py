"""HTML as values: what is no `Markup` is text, and is escaped wherever it is put."""

from __future__ import annotations

from html import escape


class Markup(str):
    """HTML that is whole: every text in it is escaped."""

    __slots__ = ()


_VOID = {"br", "meta"}


def element(tag: str, /, *inside: str | None, **attributes: str | int | bool | None) -> Markup:
    """An element with what is inside of it, text or `Markup`; None is nothing.

    Attributes are named as in HTML, with `_` for `-` and after a word of Python's own (`class_`); True is an attribute
    without a value, False and None are no attribute.
    """
    told = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    start = f"<{tag}{told}>"
    return Markup(start if tag in _VOID else f"{start}{joined(*inside)}</{tag}>")


def joined(*parts: str | None) -> Markup:
    """One after the other, text escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts if part is not None))
