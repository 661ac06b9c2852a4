"""A table of another package with secrets: what holds for our API secrets holds for them."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas
import polars
import pyarrow
import pytest
from sqlalchemy import ForeignKey, Text, UniqueConstraint, insert, select, text, type_coerce, update
from sqlalchemy.orm import Mapped, aliased, mapped_column
from sqlalchemy.orm.exc import DetachedInstanceError

from shared.db import (
    ApiCredential,
    AuditLog,
    Base,
    BoundedString,
    CheckedBoolean,
    CheckedInteger,
    DatabaseFactory,
    DatabaseSettings,
    DeclarationError,
    InvalidValueError,
    Ownership,
    Repository,
    SecretError,
    SecretText,
    Stream,
    UTCDateTime,
)
from shared.db.encryption import StoredSecret, generate_entry
from shared.db.operations.copy_database import copy_database
from shared.db.operations.key_rotation import rotate_keys
from shared.db.tests.fleet import MYSQL, PLACES, fill
from shared.db.tests.outside import outside_tables, source_at

OLD, NEW = generate_entry("old"), generate_entry("new")
SECRET = "canary-71aa"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass
class House:
    """A database with a table of bots, and where it is."""

    settings: DatabaseSettings
    bot: Any

    def open(self, keys: str | None = OLD, *, strict: bool = False) -> DatabaseFactory:
        """A factory with this key ring."""
        return DatabaseFactory(self.settings.model_copy(update={"encryption_keys": keys, "encryption_strict": strict}))

    def stored_in(self, session: Any, bot_id: str) -> Any:
        """The same, of the first one, in a session's transaction."""
        return session.scalars(select(type_coerce(self.bot.api_token, Text)).where(self.bot.bot_id == bot_id)).one()

    def stored(self, db: DatabaseFactory, bot_id: str = "bot") -> Any:
        """What the columns hold."""
        with db.engine.connect() as connection:
            found = connection.execute(text("SELECT api_token, webhook FROM bots WHERE bot_id = :id"), {"id": bot_id})
            return found.one()


def declare_bot() -> Any:
    """The class, as a package would declare it."""

    class Bot(Base):
        __tablename__ = "bots"
        __ownership__ = Ownership("user_id")
        __table_args__ = (UniqueConstraint("name", "seen_ts"),)
        __stream__ = Stream(by="name", time="seen_ts")
        _repr_names = ("name", "api_token")

        bot_id: Mapped[str] = mapped_column(BoundedString(36), primary_key=True, default=lambda: str(uuid.uuid4()))
        user_id: Mapped[str] = mapped_column(BoundedString(36), ForeignKey("users.user_id", ondelete="CASCADE"))
        name: Mapped[str] = mapped_column(BoundedString(50))
        seen_ts: Mapped[datetime] = mapped_column(UTCDateTime(), default=NOON)
        api_token: Mapped[str | None] = mapped_column(SecretText())
        webhook: Mapped[str | None] = mapped_column("webhook", SecretText())

    return Bot


@pytest.fixture(params=(*PLACES[1:], *MYSQL))
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    """A database of the test's own with both users' rows."""
    source = source_at(request, tmp_path)
    with outside_tables():
        bot = declare_bot()
        with DatabaseFactory(source) as db:
            db.create_tables()
            db.enable_audit()
            fill(db)
            if request.param == "policies":
                db.enable_row_security()
            found = House(db.settings, bot)
        yield found


def store(db: DatabaseFactory, bot: Any, **values: Any) -> None:
    """Ann's bot."""
    with db.get_session(user_id="ann") as session:
        session.add(bot(**{"bot_id": "bot", "user_id": "ann", "name": "first", "api_token": SECRET} | values))


def test_it_is_sealed_in_the_column_and_plain_in_the_attribute(house: House) -> None:
    """By the plain declaration; no repr shows it, and a SELECT of the column gives what shows nothing."""
    with house.open() as db:
        store(db, house.bot)
        assert house.stored(db).api_token.startswith("enc:v1:old:")
        with db.get_session(user_id="ann") as session:
            found = session.get_one(house.bot, "bot")
            assert (found.api_token, found.webhook) == (SECRET, None)
            assert SECRET not in f"{found!r} {vars(found)!r}"
            assert isinstance(session.scalars(select(aliased(house.bot).api_token)).one(), StoredSecret)
            found.webhook = "other"
            session.flush()
            session.expire(found)
            assert (found.api_token, found.webhook) == (SECRET, "other")
            found.api_token = None
        assert house.stored(db).api_token is None
    with house.open(None) as db:
        store(db, house.bot, bot_id="plain", name="second")
        assert house.stored(db, "plain").api_token == SECRET
        with db.get_session() as session:
            assert session.get_one(house.bot, "plain").api_token == SECRET
    with house.open(strict=True) as db, db.get_session() as session, pytest.raises(SecretError, match="plain"):
        _ = session.get_one(house.bot, "plain").api_token


def test_it_opens_at_its_row_and_column_alone(house: House) -> None:
    """Copied to another row, or to another column of its row, it does not open."""
    with house.open() as db:
        store(db, house.bot, webhook="other")
        store(db, house.bot, bot_id="bot-2", name="second")
        with db.engine.begin() as connection:
            (api_token,) = connection.execute(text("SELECT api_token FROM bots WHERE bot_id = 'bot'")).one()
            connection.execute(text("UPDATE bots SET webhook = :it WHERE bot_id = 'bot'"), {"it": api_token})
            connection.execute(text("UPDATE bots SET api_token = :it WHERE bot_id = 'bot-2'"), {"it": api_token})
        with db.get_session() as session:
            first, second = session.get_one(house.bot, "bot"), session.get_one(house.bot, "bot-2")
            assert first.api_token == SECRET
            with pytest.raises(SecretError, match=r"bots\.webhook:bot does not open"):
                _ = first.webhook
            with pytest.raises(SecretError, match=r"bots\.api_token:bot-2 does not open"):
                _ = second.api_token


def test_many_at_once_and_changes_from_elsewhere_are_sealed(house: House) -> None:
    """bulk_create, bulk_update, update() and merge() of another session's object; bare strings are refused."""
    row = {"bot_id": "bot", "user_id": "ann", "name": "first", "api_token": SECRET}
    with house.open() as db:
        with db.get_session(user_id="ann") as session:
            rows = [row, {"user_id": "ann", "name": "second", "api_token": SECRET}]
            assert Repository(session, house.bot).bulk_create(rows).inserted == 2
            assert {found.api_token for found in session.scalars(select(house.bot))} == {SECRET}
            Repository(session, house.bot).bulk_update([{"bot_id": "bot", "webhook": "newer"}])
        with db.get_session(user_id="ann") as session:
            elsewhere = session.get_one(house.bot, "bot")
        elsewhere.api_token = "changed"
        with db.get_session(user_id="ann") as session:
            assert Repository(session, house.bot).update(elsewhere).api_token == "changed"
        with db.get_session(user_id="ann") as session:
            session.merge(house.bot(bot_id="bot", user_id="ann", name="first", webhook="merged"))
        with db.get_session(user_id="ann") as session:
            found = session.get_one(house.bot, "bot")
            assert (found.api_token, found.webhook) == ("changed", "merged")
        assert all(value.startswith("enc:v1:old:") for value in house.stored(db))
        for statement in (
            insert(house.bot).values(row | {"bot_id": "x", "name": "x"}),
            update(house.bot).values(webhook="x"),
        ):
            with pytest.raises(InvalidValueError, match="sealed"), db.get_session(user_id="ann") as session:
                session.execute(statement)
        with pytest.raises(InvalidValueError, match="enc:"):
            store(db, house.bot, bot_id="x", name="x", api_token="enc:v1:old:AAAA")


@pytest.mark.parametrize("frame", [pandas.DataFrame, polars.DataFrame, pyarrow.table])
def test_a_frame_of_secrets_is_sealed_row_by_row(house: House, frame: Any) -> None:
    """Its columns are not stored as they are."""
    with house.open() as db, db.get_session(user_id="ann") as session:
        rows = frame({"user_id": ["ann", "ann"], "name": ["first", "second"], "api_token": [SECRET, None]})
        assert Repository(session, house.bot).bulk_create(rows, batch_size=1).inserted == 2
        stored = session.scalars(select(house.bot).order_by(house.bot.name)).all()
        assert [found.api_token for found in stored] == [SECRET, None]
        assert house.stored_in(session, stored[0].bot_id).startswith("enc:v1:old:")


def test_rotation_brings_every_tables_secrets_under_the_active_key(house: House) -> None:
    """Ours and theirs, each column, plain ones and those of older keys; what is NULL stays."""
    with house.open(None) as db:
        store(db, house.bot)
    with house.open() as db:
        store(db, house.bot, bot_id="bot-2", name="second", webhook="other")
    with house.open(f"{NEW},{OLD}") as db:
        looked_at: list[tuple[int, int]] = []
        rotation = rotate_keys(db, 1, lambda done, total: looked_at.append((done, total)))
        assert (rotation.sealed, dict(rotation.by_key_id), rotation.finished) == (5, {"new": 5}, True)
        assert looked_at[-1] == (6, 6)
        assert rotate_keys(db).sealed == 0
        assert rotate_keys(db, 1, stop=lambda: True).finished is False
    with house.open(NEW) as db, db.get_session() as session:
        assert {found.api_token for found in session.scalars(select(house.bot))} == {SECRET}
        assert session.get_one(house.bot, "bot-2").webhook == "other"
        assert session.get_one(ApiCredential, "cred-ann").api_secret == "secret-ann"


def test_the_audit_log_says_that_it_was_written_and_not_what(house: House) -> None:
    """Made, changed by an object, by a statement in plain mode, in bulk, and deleted."""
    with house.open(None) as db:
        store(db, house.bot)
        with db.get_session(user_id="ann") as session:
            session.get_one(house.bot, "bot").api_token = "canary-2"
            session.flush()
            session.execute(update(house.bot).values(webhook="canary-3"))
            Repository(session, house.bot).bulk_update([{"bot_id": "bot", "webhook": "canary-4"}])
            session.delete(session.get_one(house.bot, "bot"))
        with db.get_session() as session:
            entries = session.scalars(select(AuditLog).where(AuditLog.entity == "Bot")).all()
            assert [entry.action for entry in sorted(entries, key=lambda one: one.id)] == [
                "create",
                *["update"] * 3,
                "delete",
            ]
            assert "canary" not in str([(entry.old_values, entry.new_values) for entry in entries])
            assert "api_token" in str([entry.new_values for entry in entries])


def test_what_leaves_the_database_leaves_it_behind(house: House) -> None:
    """Ranges, frames and pickles; a misspelt keyword's error has it nowhere."""
    with house.open() as db:
        store(db, house.bot)
        with db.get_session(user_id="ann") as session:
            bots = Repository(session, house.bot)
            (row,) = bots.iter_range("first")
            assert set(row._fields) == {"bot_id", "user_id", "name", "seen_ts"}
            assert set(bots.to_arrow("first").column_names).isdisjoint({"api_token", "webhook"})
            found = session.get_one(house.bot, "bot")
            assert found.api_token == SECRET
            assert {"api_token", "webhook"}.isdisjoint(found.__getstate__())
        with pytest.raises(TypeError, match="'token'"):
            house.bot(token=SECRET)


def test_a_copy_has_it_sealed_and_opens_it(house: House, tmp_path: Path) -> None:
    """With the key ring alone; the copy itself needs none."""
    with house.open() as db:
        store(db, house.bot)
    target = DatabaseSettings(db_name=str(tmp_path / "copy.db"), _env_file=None)
    with house.open(None) as source, DatabaseFactory(target) as copy:
        copy_database(source, copy)
        assert house.stored(copy) == house.stored(source)
    with House(target, house.bot).open() as copy, copy.get_session() as session:
        assert session.get_one(house.bot, "bot").api_token == SECRET


@pytest.mark.parametrize("case", ["numbered", "two keys", "public"])
def test_where_it_cannot_be_sealed_it_cannot_be_declared(case: str) -> None:
    """Its row needs a key before it is stored, and a secret that every user reads is none."""
    key: Any = {"primary_key": True}
    body: dict[str, Any] = {"__tablename__": "outside", "token": mapped_column(SecretText())}
    body["id"] = mapped_column(*([CheckedInteger()] if case == "numbered" else [BoundedString(36)]), **key)
    if case == "two keys":
        body["other"] = mapped_column(BoundedString(36), **key)
    if case == "public":
        body["user_id"] = mapped_column(BoundedString(36), ForeignKey("users.user_id"))
        body["open"] = mapped_column(CheckedBoolean(), nullable=False)
        body["__ownership__"] = Ownership("user_id", public="open")
    with outside_tables():
        with pytest.raises(DeclarationError, match="every user" if case == "public" else "one key"):
            type("Outside", (Base,), body)
        assert "outside" not in Base.metadata.tables


def test_a_pickled_object_loads_it_again() -> None:
    """In a session; outside of one there is nothing."""
    with DatabaseFactory("sqlite:///:memory:") as db:
        db.create_tables()
        fill(db)
        with db.get_session() as session:
            pickled = pickle.dumps(session.get_one(ApiCredential, "cred-ann"))
        assert b"secret-ann" not in pickled
        with pytest.raises(DetachedInstanceError):
            _ = pickle.loads(pickled).api_secret
        with db.get_session() as session:
            again = pickle.loads(pickled)
            session.add(again)
            assert again.api_secret == "secret-ann"
