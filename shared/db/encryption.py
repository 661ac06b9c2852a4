"""The key ring; secrets sealed to their row.

A sealed secret is text: `enc:v1:<key id>:<base64 of nonce, ciphertext and tag>`, AES-256-GCM with a random 96-bit
nonce. Its associated data binds it to version, key id, table, column and row: copied to another row, it does not
open. Needs the extra `crypto` (the `cryptography` package); without a key ring nothing here is used.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Dialect, Engine, Text
from sqlalchemy.types import TypeEngine

from shared.db.column_types import CheckedText, CheckedType, checked_text
from shared.db.dialects import port_of
from shared.db.errors import SecretError, SettingsError, how_to_install
from shared.db.hidden import HiddenText
from shared.db.settings import DatabaseSettings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PREFIX = "enc:"
PLAIN = "plain"
_VERSION = "v1"
_KEY_BYTES = 32
_NONCE_BYTES = 12
_KEY_ID = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_ATTRIBUTE = "shared_db_encryption"
_HOW_TO = "write id:base64key entries, the active one first; `python -m shared.db keys generate` prints one"


class KeyRing:
    """AES-256 keys by id, the first one active: it seals, all of them open. Shows no key in any form."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        if not keys:
            raise SettingsError(f"the key ring is empty; {_HOW_TO}")
        cipher = _cipher()
        self._ciphers: dict[str, AESGCM] = {key_id: cipher(key) for key_id, key in keys.items()}
        self.active_id = next(iter(keys))

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """A ring from `id:base64key` entries, separated by commas, blanks or line ends; # begins a comment.

        Raises `SettingsError`, which tells the position of the bad entry and nothing of what it holds.
        """
        text = HiddenText(text)
        keys, problem = _parsed(text)
        # Raised where nothing is left of the keys: a traceback may be printed with its frames' variables.
        if problem:
            raise SettingsError(problem)
        return cls(keys)

    def __repr__(self) -> str:
        return f"<KeyRing active={self.active_id!r} of {len(self._ciphers)}>"

    def __reduce__(self) -> Any:
        raise TypeError("a key ring is not pickled: it would leave the keys wherever the pickle goes")

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of all keys, the active one first."""
        return tuple(self._ciphers)

    def seal(self, secret: str, place: str) -> str:
        """The envelope of `secret`, which opens at `place` ("table.column:row id") alone."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self.active_id].encrypt(nonce, secret.encode(), _bound_to(self.active_id, place))
        return f"{PREFIX}{_VERSION}:{self.active_id}:{base64.b64encode(nonce + sealed).decode()}"

    def open(self, envelope: str, place: str) -> str:
        """The secret in `envelope`. Raises `SecretError` for another place, an unknown key, or any change to it."""
        from cryptography.exceptions import InvalidTag

        key_id = key_id_of(envelope)
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise SecretError(
                f"the secret at {place} is sealed with the key {key_id!r}, which is not in the key ring; "
                "add it to GRIDBOT_DB_ENCRYPTION_KEYS"
            )
        payload = _decoded_payload(envelope, place)
        try:
            return cipher.decrypt(payload[:_NONCE_BYTES], payload[_NONCE_BYTES:], _bound_to(key_id, place)).decode()
        except InvalidTag:
            raise SecretError(
                f"the secret at {place} does not open with the key {key_id!r}: it was sealed for another row, "
                "changed, or sealed with another key of that id; restore the row, or set the secret anew"
            ) from None


class PlainSecret(HiddenText):
    """A secret in plain, as a mapped object and a statement's parameters hold it."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        raise TypeError("a secret is not pickled: it would stay in plain wherever the pickle goes")


class StoredSecret:
    """A secret as the database has it, to be opened at its row. Neither repr nor pickle shows or opens it."""

    def __init__(self, text: str, ring: KeyRing | None = None) -> None:
        self.text = text
        self._ring = ring

    def __repr__(self) -> str:
        return "<StoredSecret>"

    def __reduce__(self) -> Any:
        # Without the ring, and without a secret that is in plain (and refused): read it from the database there.
        return StoredSecret, (self.text if is_sealed(self.text) else "",)

    def open(self, place: str) -> str:
        """The secret. Raises `SecretError` unless the ring's key opens it at `place`."""
        if not is_sealed(self.text):
            raise SecretError(
                f"the secret at {place} is stored in plain, which encryption_strict refuses; "
                "run `python -m shared.db keys rotate`"
            )
        if self._ring is None:
            raise SecretError(
                f"the secret at {place} is sealed, and there is no key ring here; set GRIDBOT_DB_ENCRYPTION_KEYS"
            )
        return self._ring.open(self.text, place)


class SecretText(CheckedType):
    """A secret: text that is stored sealed to its row where there is a key ring, and as it is where there is none.

    `api_token: Mapped[str | None] = mapped_column(SecretText())` reads and writes plain text on mapped objects, which
    seal and open it themselves. A SELECT of the column alone gives what is sealed as an object that shows nothing,
    and a bare string in a statement is refused where there is a ring: neither knows the row. The table's key is one
    text that Python makes, or that the row is given.
    """

    impl = Text
    cache_ok = True
    secret = True
    frozen = "frozen.long_text()"

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """As `CheckedText`."""
        return dialect.type_descriptor(port_of(dialect).long_text())

    def kept(self, value: Any, dialect: Dialect) -> Any:
        """As it is: a secret in hand is sealed by the object, which knows the row."""
        return value

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """The text to store."""
        if value is None:
            return None
        if isinstance(value, StoredSecret):
            return value.text
        if encryption_of(dialect) is not None:
            raise self.refuse(
                "a secret is sealed to its row, which this statement does not know; add an object instead"
            )
        return storable_plain(value, self.column_name)

    def process_result_value(self, value: str | None, dialect: Dialect) -> PlainSecret | StoredSecret | None:
        """Plain text, or what has to be opened first."""
        if value is None:
            return None
        encryption = encryption_of(dialect)
        if is_sealed(value) or (encryption is not None and encryption.strict):
            return StoredSecret(value, None if encryption is None else encryption.ring)
        return PlainSecret(value)


def place_of(column: Any, key: Any) -> str:
    """What a sealed secret is bound to: its column, and the primary key of its row."""
    return f"{column.table.name}.{column.name}:{key}"


def sealed(value: Any, column: Any, key: Any, encryption: Encryption | None) -> PlainSecret | StoredSecret:
    """`value` as the row with this key is to store it. `InvalidValueError` for what is no plain text."""
    plain = storable_plain(value, f"{column.table.name}.{column.name}")
    if encryption is None:
        return plain
    return StoredSecret(encryption.ring.seal(plain, place_of(column, key)), encryption.ring)


def storable_plain(value: Any, column: str | None) -> PlainSecret:
    """`value` as text to store in plain; `InvalidValueError` for other types, and for what would pass as sealed."""
    kind = CheckedText()
    kind.column_name = column
    text = PlainSecret(checked_text(kind, value))
    if is_sealed(text):
        raise kind.refuse(f"a plain secret must not begin with {PREFIX!r}, which marks sealed ones")
    return text


@dataclass(frozen=True)
class Encryption:
    """What a factory tells its connections: the ring, and whether plain secrets are still readable."""

    ring: KeyRing
    strict: bool = False


def encryption_from(settings: DatabaseSettings) -> Encryption | None:
    """What the settings say; None without a key ring. Raises `SettingsError`, which shows no key material."""
    text = None if settings.encryption_keys is None else HiddenText(settings.encryption_keys)
    if settings.encryption_keys_file is not None:
        if text is not None:
            raise SettingsError("encryption_keys and encryption_keys_file are both set; keep one of them")
        text = _text_of(settings.encryption_keys_file)
        if text is None:
            raise SettingsError(
                "encryption_keys_file (GRIDBOT_DB_ENCRYPTION_KEYS_FILE) cannot be read as text; "
                "check its path and permissions"
            )
    if text is None:
        if settings.encryption_strict:
            raise SettingsError("encryption_strict is set without a key ring; set GRIDBOT_DB_ENCRYPTION_KEYS")
        return None
    return Encryption(KeyRing.parse(text), strict=settings.encryption_strict)


def encryption_of(source: Dialect | Connection | Engine) -> Encryption | None:
    """The encryption of the factory that a connection, its engine or its dialect belongs to."""
    return getattr(source if isinstance(source, Dialect) else source.dialect, _ATTRIBUTE, None)


def use_encryption(dialect: Dialect, encryption: Encryption) -> None:
    """Seal secrets on every connection of this dialect; each engine has one of its own."""
    setattr(dialect, _ATTRIBUTE, encryption)


def is_sealed(text: str) -> bool:
    """Whether `text` is an envelope, or claims to be one."""
    return text.startswith(PREFIX)


def key_id_of(envelope: str) -> str:
    """The id of the key that sealed an envelope. Raises `SecretError` for a version that is not known."""
    parts = envelope.split(":", 3)
    if len(parts) != 4 or parts[:2] != [PREFIX.rstrip(":"), _VERSION]:
        raise SecretError("the sealed secret has a form that this version does not know; upgrade shared.db")
    return parts[2]


def generate_entry(key_id: str) -> str:
    """A new `id:base64key` entry. Raises `SettingsError` for an id that cannot stand in a ring."""
    if not _KEY_ID.fullmatch(key_id):
        raise SettingsError("a key id has 1 to 32 letters, digits, '.', '_' or '-'")
    return f"{key_id}:{base64.b64encode(os.urandom(_KEY_BYTES)).decode()}"


def _text_of(path: str) -> HiddenText | None:
    # The error of a file that is no text has all of its bytes in it.
    try:
        return HiddenText(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def _parsed(text: str) -> tuple[dict[str, bytes], str | None]:
    """The keys, or what is wrong with the text."""
    keys: dict[str, bytes] = {}
    for position, entry in enumerate(_entries(text), start=1):
        key_id, colon, encoded = entry.partition(":")
        key = _decoded(encoded)
        if not colon or not _KEY_ID.fullmatch(key_id) or key is None:
            return {}, f"entry {position} of the key ring is not an id and {_KEY_BYTES} bytes of base64; {_HOW_TO}"
        if key_id in keys:
            return {}, f"entry {position} of the key ring has the id of an earlier one; ids are unique"
        keys[key_id] = key
    return keys, None


def _entries(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from line.partition("#")[0].replace(",", " ").split()


def _decoded(encoded: str) -> bytes | None:
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == _KEY_BYTES else None


def _decoded_payload(envelope: str, place: str) -> bytes:
    try:
        payload = base64.b64decode(envelope.split(":", 3)[3], validate=True)
    except (binascii.Error, ValueError):
        payload = b""
    if len(payload) <= _NONCE_BYTES:
        raise SecretError(f"the sealed secret at {place} is damaged; restore the row, or set the secret anew")
    return payload


def _bound_to(key_id: str, place: str) -> bytes:
    return f"{_VERSION}|{key_id}|{place}".encode()


def _cipher() -> type[AESGCM]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise SettingsError(
            f"encryption keys are set, but the cryptography package is missing; {how_to_install('crypto')}"
        ) from None
    return AESGCM
