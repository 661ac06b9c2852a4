"""A backup that a disk changed is noticed, whatever was changed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from shared.db import DatabaseFactory, InputError, PublicTrade
from shared.db.operations.backup import back_up, restore
from shared.db.tests.support import trade_values


@pytest.fixture
def db(tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A SQLite file with a trade, and with a price that can be found in it."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'grid_bot.db'}") as db:
        db.create_tables()
        with db.get_session() as session:
            session.add(PublicTrade(**trade_values(trade_id="the-trade-itself")))
        yield db


def test_a_value_that_a_disk_changed_is_refused(db: DatabaseFactory, tmp_path: Path) -> None:
    """Also where SQLite's own checks see nothing: and nothing is restored."""
    path = tmp_path / "backup"
    back_up(db, path)
    whole = path.read_bytes()
    place = whole.index(b"Buy", whole.index(b"the-trade-itself")) + 4  # within the 8 bytes of the price
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with DatabaseFactory(f"sqlite:///{tmp_path / 'restored.db'}") as target:
        with pytest.raises(InputError, match=r"SHA-256 differs from the one in backup\.sha256; use another backup"):
            restore(target, path)
        (tmp_path / "backup.sha256").unlink()
        restore(target, path)  # nobody else notices: which is why the checksum is there
        with target.get_session() as session:
            assert session.scalar(select(PublicTrade.price)) != trade_values()["price"]


def test_the_checksum_is_the_files_and_is_replaced_with_it(db: DatabaseFactory, tmp_path: Path) -> None:
    """In the form that sha256sum checks."""
    path = tmp_path / "backup"
    back_up(db, path)
    with db.get_session() as session:
        session.add(PublicTrade(**trade_values(1)))
    back_up(db, path, force=True)
    subprocess.run(["sha256sum", "--check", "backup.sha256"], cwd=tmp_path, check=True, capture_output=True)
    with DatabaseFactory(f"sqlite:///{tmp_path / 'restored.db'}") as target:
        restore(target, path)
        with target.get_session() as session:
            assert session.scalar(select(func.count()).select_from(PublicTrade)) == 2


def test_a_checksum_that_cannot_be_read_is_not_ignored(db: DatabaseFactory, tmp_path: Path) -> None:
    """Neither one that is empty."""
    path = tmp_path / "backup"
    back_up(db, path)
    with DatabaseFactory(f"sqlite:///{tmp_path / 'restored.db'}") as target:
        for damage, told in ((b"\xff\xfe", "cannot be read"), (b"", "differs from the one")):
            (tmp_path / "backup.sha256").write_bytes(damage)
            with pytest.raises(InputError, match=told):
                restore(target, path)
