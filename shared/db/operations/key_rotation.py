"""Seal the secrets that are still plain, and seal anew those of older keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Text, func, select, type_coerce, update
from sqlalchemy.orm import Session

from shared.db.database import DatabaseFactory
from shared.db.dialects import SQLITE, port_of
from shared.db.encryption import PLAIN, Encryption, encryption_of, is_sealed, key_id_of, place_of, sealed
from shared.db.errors import SettingsError
from shared.db.models import Base
from shared.db.sealing import secret_columns


@dataclass
class KeyRotation:
    """What a rotation did: secrets sealed now, and how many there are for each key id in the end.

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
    """Bring every secret of every table under the active key, `batch` rows a transaction.

    Of the tables that this process knows: those of other packages too, whose models are imported. Interrupted and run
    again it goes on where it was; run again afterwards it changes nothing. `rotated_at`, the exchange's rotation, is
    left alone. `progress` is told (rows looked at, rows in all) after each batch; when `stop()` says so it ends there.

    Raises `SettingsError` without a key ring, `SecretError` for a secret that does not open; what was sealed before
    it stays sealed.
    """
    encryption = encryption_of(db.engine.dialect)
    if encryption is None:
        raise SettingsError("there is no key ring to seal with; set GRIDBOT_DB_ENCRYPTION_KEYS")
    rotation, columns = KeyRotation(), _secrets(db)
    done = 0
    with db.get_session(read_only=True, max_staleness=0) as session:
        total = sum(session.scalar(select(func.count()).select_from(column.table)) or 0 for column in columns)
    for column in columns:
        for sealed_now, looked_at in _rotated(db, encryption, column, batch):
            rotation.sealed += sealed_now
            done += looked_at
            progress(done, max(done, total))
            if stop():
                rotation.finished = False
                break
        if not rotation.finished:
            break
    if port_of(db.engine) is SQLITE:
        # What was plain is overwritten in the file itself, but stands in the log until this.
        connection = db.engine.raw_connection()  # a checkpoint runs outside of any transaction
        try:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
    with db.get_session(read_only=True, max_staleness=0) as session:
        for column in columns:
            stored = session.scalars(select(_stored(column)).where(column.is_not(None)))
            rotation.by_key_id.update(key_id_of(text) if is_sealed(text) else PLAIN for text in stored)
    return rotation


def _secrets(db: DatabaseFactory) -> list[Any]:
    """The columns with secrets, of the tables that are there."""
    with db.engine.connect() as connection:
        there = port_of(connection).tables(connection)
    return [column for table in Base.metadata.sorted_tables if table.name in there for column in secret_columns(table)]


def _stored(column: Any) -> Any:
    return type_coerce(column, Text)


def _rotated(db: DatabaseFactory, encryption: Encryption, column: Any, batch: int) -> Iterator[tuple[int, int]]:
    """Of each batch of rows how many were sealed now, and how many there are."""
    (key,) = column.table.primary_key.columns
    page = select(key, _stored(column)).order_by(key).limit(batch)
    following = page
    while True:
        with db.get_session() as session:
            rows = session.execute(following).all()
            sealed_now = sum(_seal(session, encryption, column, key == row[0], *row) for row in rows)
        if not rows:
            return
        yield sealed_now, len(rows)
        following = page.where(key > rows[-1][0])


def _seal(session: Session, encryption: Encryption, column: Any, its_row: Any, key: Any, stored: str | None) -> int:
    if stored is None or (is_sealed(stored) and key_id_of(stored) == encryption.ring.active_id):
        return 0
    secret = encryption.ring.open(stored, place_of(column, key)) if is_sealed(stored) else stored
    changed = (
        update(column.table)
        # Somebody may have set a new secret since it was read: that one stays.
        .where(its_row, stored == _stored(column))
        .values({column: sealed(secret, column, key, encryption)})
    )
    result: Any = session.execute(changed)
    return int(result.rowcount)
