"""A JSON file of whatever shape, for those who make rows of it."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from shared.db.errors import InputError
from shared.db.exchanges.files import opened


def read_json(path: str | Path) -> dict[str, Any] | list[Any]:
    """What a JSON file says; of one of JSON lines a list of what each says. It may be gzipped, and is held in memory.

    Numbers with a point are Decimals, exact. A line that is no JSON, and a number that no Decimal holds, come as the
    text that they are, so that whoever takes the rest refuses them alone. A file of a single line gives what it says.

    Raises `InputError` for a file that is missing, that is no UTF-8 or no JSON from some byte on, that has a number of
    thousands of digits or hundreds of brackets within each other, or that says a single value.
    """
    path = Path(path)
    with opened(path) as (_, unpacked):
        content = unpacked.read()
    try:
        text = content.decode("utf-8-sig")
        said = _parsed(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 at byte {error.start}; write it anew, nothing of it was taken") from None
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            at = len(content) - len(text[error.pos :].encode())
            raise InputError(f"{path} is broken at byte {at} ({error.msg}); mend it, nothing of it was taken") from None
        said = [_line(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        raise InputError(f"{path} has a number too long or is nested too deep; nothing of it was taken") from None
    if isinstance(said, (dict, list)):
        return said
    raise InputError(f"{path} holds no records; write an object, an array, or lines of JSON")


def _parsed(text: str) -> Any:
    return json.loads(text, parse_float=_decimal)


def _line(line: str) -> Any:
    try:
        return _parsed(line)
    except (ValueError, RecursionError):
        return line


def _decimal(text: str) -> Decimal | str:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of twenty digits
        return text
