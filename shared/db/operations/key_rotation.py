"""Seal the API secrets that are still plain, and seal anew those of older keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Text, func, select, type_coerce, update
from sqlalchemy.orm import Session

from shared.db.database import DatabaseFactory
from shared.db.dialects import SQLITE, port_of
from shared.db.encryption import PLAIN, Encryption, StoredSecret, encryption_of, is_sealed, key_id_of
from shared.db.errors import SettingsError
from shared.db.models import ApiCredential

_TABLE: Any = ApiCredential.__table__
_STORED: Any = type_coerce(_TABLE.c.api_secret, Text)


@dataclass
class KeyRotation:
    """What a rotation did: credentials sealed now, and how many there are for each key id in the end.

    `finished` is False if it was stopped on the way.
    """

    sealed: int = 0
    finished: bool = True
    by_key_id: Counter[str] = field(default_factory=Counter)


def rotate_keys(
    db: DatabaseFactory,
    batch: int = 100,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> KeyRotation:
    """Bring every API secret under the active key, `batch` rows a transaction.

    Interrupted and run again it goes on where it was; run again afterwards it changes nothing. `rotated_at`, the
    exchange's rotation, is left alone. `progress` is told (rows looked at, rows in all) after each batch; when `stop()`
    says so it ends there.

    Raises `SettingsError` without a key ring, `SecretError` for a secret that does not open; what was sealed before
    it stays sealed.
    """
    encryption = encryption_of(db.engine.dialect)
    if encryption is None:
        raise SettingsError("there is no key ring to seal with; set GRIDBOT_DB_ENCRYPTION_KEYS")
    rotation = KeyRotation()
    done, after = 0, ""
    with db.get_session(read_only=True) as session:
        total = session.scalar(select(func.count()).select_from(_TABLE)) or 0
    while True:
        with db.get_session() as session:
            page = select(_TABLE.c.credential_id, _STORED).where(_TABLE.c.credential_id > after)
            rows = session.execute(page.order_by(_TABLE.c.credential_id).limit(batch)).all()
            for credential_id, stored in rows:
                rotation.sealed += _seal(session, encryption, credential_id, stored)
        if not rows:
            break
        done, after = done + len(rows), rows[-1][0]
        progress(done, max(done, total))
        if stop():
            rotation.finished = False
            break
    if port_of(db.engine) is SQLITE:
        # What was plain is overwritten in the file itself, but stands in the log until this.
        connection = db.engine.raw_connection()  # a checkpoint runs outside of any transaction
        try:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
    with db.get_session(read_only=True) as session:
        rotation.by_key_id.update(
            key_id_of(stored) if is_sealed(stored) else PLAIN for stored in session.scalars(select(_STORED))
        )
    return rotation


def _seal(session: Session, encryption: Encryption, credential_id: str, stored: str) -> int:
    ring, place = encryption.ring, ApiCredential.place_of_secret(credential_id)
    if is_sealed(stored) and key_id_of(stored) == ring.active_id:
        return 0
    secret = ring.open(stored, place) if is_sealed(stored) else stored
    changed = (
        update(_TABLE)
        # Somebody may have set a new secret since it was read: that one stays.
        .where(_TABLE.c.credential_id == credential_id, stored == _STORED)
        .values(api_secret=StoredSecret(ring.seal(secret, place), ring))
    )
    result: Any = session.execute(changed)
    return int(result.rowcount)
