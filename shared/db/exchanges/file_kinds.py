"""What a file is that holds no rows: named, so that a person knows at once what to do with it."""

from __future__ import annotations

import stat
from pathlib import Path

from shared.db.errors import InputError

_BEGINNINGS = (
    (b"PK\x03\x04", "is a zip archive or a workbook of a spreadsheet; unpack it, or save the sheet as CSV"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it"),
    (b"Rar!", "is a rar archive; unpack it"),
    (b"\x1f\x8b", "is packed twice by gzip; unpack it once"),
    (b"\xd0\xcf\x11\xe0", "is a workbook of an old spreadsheet; save the sheet as CSV"),
    (b"BZh", "is packed by bzip2; unpack it"),
    (b"\xfd7zXZ", "is packed by xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "is packed by zstd; unpack it"),
    (b"SQLite format 3\0", "is an SQLite database; export its rows to CSV, or copy it with python -m shared.db copy"),
    (b"%PDF", "is a PDF"),
    (b"\xff\xfe", "is UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text; save it as UTF-8"),
    (b"<", "is a web page or XML, perhaps an error that was downloaded in place of the file; download it again"),
    (b"[", "is a JSON array; write one JSON object a line"),
)
_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"
# Columns of the files that Bybit gives a user of their own account.
_OF_ACCOUNTS = {"uid", "order no.", "order id", "order type", "direction", "filled value", "filled quantity"}
_OF_ACCOUNTS |= {"closed p&l", "trans id", "transaction id", "cash flow", "wallet balance", "change", "spot pairs"}
_OF_ACCOUNTS |= {"contracts", "closing direction", "executed price"}
# Columns of what can be read, of which any tells that the line is a header.
_OF_TRADES = {"timestamp", "symbol", "side", "price", "exchange_ts", "volume", "size"}


def refuse_no_file(path: Path) -> None:
    """`InputError` for what cannot be read twice from its beginning: a folder, a pipe, a device."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be opened: {reason}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder; name the files in it")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is a pipe or a device, not a regular file; save what comes from it first")


def refuse_beginning(path: Path, beginning: bytes) -> None:
    """`InputError` for the first bytes of a file, unpacked, that no rows begin with."""
    text = beginning.removeprefix(_BOM).lstrip()
    for signature, what in _BEGINNINGS:
        if beginning.startswith(signature) or (len(signature) == 1 and text.startswith(signature)):
            raise InputError(f"{path} {what}")
    if beginning[257:262] == b"ustar":
        raise InputError(f"{path} is a tar archive; unpack it")
    line, end, _ = text.partition(b"\n")
    if b"\r" in line.rstrip(b"\r") and not end and not beginning.startswith(_PARQUET):
        raise InputError(f"{path} ends its lines with CR alone, as old spreadsheets do; save it with line feeds")


def about_header(header: str) -> str | None:
    """What the first line of a table tells of why it is no archive; None if it tells nothing."""
    names = header.lower().replace('"', "")
    if not header.strip():
        return "it is empty"
    for separator, name in ((";", "';'"), ("\t", "tabs")):
        if len({word.strip() for word in names.split(separator)} & _OF_TRADES) > 1:
            return f"its columns are separated by {name}; save it with commas"
    if "\0" in header or any("\ud800" <= character <= "\udfff" for character in header):
        return (
            "it is binary, or text that is not UTF-8; take the files from https://public.bybit.com, or save it as UTF-8"
        )
    words = {name.strip() for name in names.split(",")}
    if names.startswith("uid") or len(words & _OF_ACCOUNTS) > 1:
        return "it is a file of an account (order history, asset changes), which is not read; fills come by the API"
    return None
