"""API secrets sealed to their row, and the keys that seal them."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import DetachedInstanceError

from shared.db import (
    ApiCredential,
    ApiCredentialRepository,
    BybitAccount,
    DatabaseFactory,
    DatabaseSettings,
    InvalidValueError,
    SecretError,
    SettingsError,
    TenantViolation,
    User,
)
from shared.db.bulk import bulk_create, bulk_update
from shared.db.commands.cli import main
from shared.db.encryption import KeyRing, StoredSecret, generate_entry, place_of
from shared.db.operations.key_rotation import rotate_keys

OLD, NEW = generate_entry("old"), generate_entry("new")
SECRET = "canary-9f3c"


def with_keys(db: DatabaseFactory, keys: str | None, *, strict: bool = False) -> DatabaseFactory:
    """Another factory on the same database with another key ring."""
    settings = db.settings.model_copy(update={"encryption_keys": keys, "encryption_strict": strict})
    return DatabaseFactory(settings)


@pytest.fixture
def sealing(shared_db: DatabaseFactory) -> Iterator[DatabaseFactory]:
    """The database through a factory with a key ring."""
    with with_keys(shared_db, OLD) as db:
        yield db


@pytest.fixture(params=("file", "postgresql"))
def shared_db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A database that several factories can open, with two accounts of one user."""
    if request.param == "file":
        settings = DatabaseSettings(db_name=str(tmp_path / "grid_bot.db"), _env_file=None)
    else:
        url = request.getfixturevalue("postgresql_url").render_as_string(hide_password=False)
        settings = DatabaseSettings(database_url=url, _env_file=None)
    with DatabaseFactory(settings) as db:
        db.create_tables()
        with db.get_session() as session:
            session.add(User(user_id="ann", username="ann"))
            for name in ("one", "two"):
                session.add(BybitAccount(account_id=name, user_id="ann", account_name=name, environment="testnet"))
        yield db


def store(db: DatabaseFactory, secret: str = SECRET, account: str = "one") -> str:
    """Store a credential and return its id."""
    with db.get_session(user_id="ann") as session:
        credential = ApiCredential(account_id=account, api_key_id="key", api_secret=secret)
        session.add(credential)
        session.flush()
        assert credential.api_secret == secret
        return credential.credential_id


def read(db: DatabaseFactory, credential_id: str) -> str:
    """The secret of a credential, as its attribute gives it."""
    with db.get_session(user_id="ann") as session:
        return session.get_one(ApiCredential, credential_id).api_secret


def stored_text(db: DatabaseFactory, credential_id: str) -> str:
    """What really stands in the column."""
    with db.get_session() as session:
        query = text("SELECT api_secret FROM api_credentials WHERE credential_id = :id")
        return str(session.execute(query, {"id": credential_id}).scalar_one())


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200), st.text(max_size=40))
def test_a_sealed_secret_opens_at_its_place_and_shows_nothing(secret: str, place: str) -> None:
    """Any text survives; the envelope holds none of it, and opens nowhere else."""
    ring = KeyRing.parse(OLD)
    place = place.encode(errors="ignore").decode()
    envelope = ring.seal(secret, place)
    assert ring.open(envelope, place) == secret
    assert envelope.startswith("enc:v1:old:")
    assert ring.seal(secret, place) != envelope
    with pytest.raises(SecretError):
        ring.open(envelope, place + "x")


def test_every_changed_byte_is_noticed() -> None:
    """No flipped bit of nonce, ciphertext or tag opens."""
    ring = KeyRing.parse(OLD)
    envelope = ring.seal(SECRET, "here")
    head, _, encoded = envelope.rpartition(":")
    payload = base64.b64decode(encoded)
    for position in range(len(payload)):
        changed = bytearray(payload)
        changed[position] ^= 1
        with pytest.raises(SecretError):
            ring.open(f"{head}:{base64.b64encode(bytes(changed)).decode()}", "here")
    for damaged in (envelope[:-8], f"{head}:", f"{head}:!!!", envelope.replace(":v1:", ":v2:"), "enc:", "enc:v1"):
        with pytest.raises(SecretError):
            ring.open(damaged, "here")


@pytest.mark.parametrize(
    "ring",
    [
        "",
        "   ",
        "# nothing but a comment",
        "k1",
        "k1:",
        "k1:abc",
        ":" + OLD.partition(":")[2],
        "k 1:" + OLD.partition(":")[2],
        "k1:" + base64.b64encode(b"x" * 16).decode(),
        f"{OLD},{OLD}",
        f"{OLD},k2:not-base64!",
        OLD + "A",
    ],
    ids=range(12),
)
def test_a_malformed_ring_is_refused_without_showing_it(ring: str, shared_db: DatabaseFactory) -> None:
    """At the factory's start, with a position and a remedy and no part of any key."""
    if not ring.strip():
        with pytest.raises(SettingsError):
            KeyRing.parse(ring)
        return
    with pytest.raises(SettingsError, match=r"keys generate|unique") as refused:
        with_keys(shared_db, ring)
    for part in OLD.split(":")[1:]:
        assert part not in str(refused.value)
        assert part[:12] not in str(refused.value)


def test_a_ring_shows_no_key() -> None:
    """Neither its repr, nor its settings' repr and dump, nor a pickle."""
    key = OLD.partition(":")[2]
    settings = DatabaseSettings(encryption_keys=OLD, _env_file=None)
    assert (
        key not in repr(KeyRing.parse(OLD)) + repr(settings) + str(settings.model_dump()) + settings.model_dump_json()
    )
    with pytest.raises(TypeError):
        pickle.dumps(KeyRing.parse(OLD))


def test_a_ring_comes_from_a_file_too(shared_db: DatabaseFactory, tmp_path: Path) -> None:
    """As mounted secrets do; both at once, and a missing file, are refused."""
    path = tmp_path / "ring"
    path.write_text(f"# the fleet's keys\n{NEW}\n{OLD}\n")
    settings = shared_db.settings.model_copy(update={"encryption_keys_file": str(path)})
    with DatabaseFactory(settings) as db:
        assert stored_text(db, store(db)).startswith("enc:v1:new:")
    with pytest.raises(SettingsError, match="both"):
        DatabaseFactory(settings.model_copy(update={"encryption_keys": OLD}))
    with pytest.raises(SettingsError, match="cannot be read"):
        DatabaseFactory(settings.model_copy(update={"encryption_keys_file": str(tmp_path / "none")}))
    with pytest.raises(SettingsError, match="key ring"):
        with_keys(shared_db, None, strict=True)


def test_a_secret_is_sealed_in_the_column_and_plain_in_the_attribute(sealing: DatabaseFactory) -> None:
    """After the flush, after a refresh, after a merge, after a change, and for another session."""
    credential_id = store(sealing)
    assert SECRET not in stored_text(sealing, credential_id)
    assert read(sealing, credential_id) == SECRET
    with sealing.get_session(user_id="ann") as session:
        credential = session.get_one(ApiCredential, credential_id)
        session.refresh(credential)
        assert credential.api_secret == SECRET
        merged = session.merge(ApiCredential(credential_id=credential_id, api_secret="second"))
        session.flush()
        assert merged.api_secret == "second"
        merged.api_secret = "third"
    assert read(sealing, credential_id) == "third"
    before = stored_text(sealing, credential_id)
    with sealing.get_session(user_id="ann") as session:
        session.get_one(ApiCredential, credential_id).api_key_id = "other"
    assert stored_text(sealing, credential_id) == before


def test_a_sealed_secret_does_not_open_in_another_row(sealing: DatabaseFactory) -> None:
    """Copied over by SQL it raises, and never gives another account's secret."""
    first, second = store(sealing), store(sealing, "other", account="two")
    with sealing.get_session() as session:
        values = {"a": first, "b": second}
        copied = (
            "UPDATE api_credentials SET api_secret = "
            "(SELECT api_secret FROM api_credentials WHERE credential_id = :a) WHERE credential_id = :b"
        )
        session.execute(text(copied), values)
    with pytest.raises(SecretError, match="another row"):
        read(sealing, second)


def test_a_sealed_secret_needs_its_key(sealing: DatabaseFactory) -> None:
    """No ring, a ring without the key, and another key of the same id all raise, and the row stays readable."""
    credential_id = store(sealing)
    for keys in (None, NEW, generate_entry("old")):
        with with_keys(sealing, keys) as db, db.get_session(user_id="ann") as session:
            credential = session.get_one(ApiCredential, credential_id)
            assert credential.api_key_id == "key"
            with pytest.raises(SecretError) as refused:
                _ = credential.api_secret
            assert SECRET not in str(refused.value)
            assert "enc:" not in str(refused.value)


def test_plain_stays_the_default_and_readable_under_a_ring(shared_db: DatabaseFactory) -> None:
    """A plain row opens with a ring until it is rewritten, and is refused when strict."""
    credential_id = store(shared_db)
    assert stored_text(shared_db, credential_id) == SECRET
    with with_keys(shared_db, OLD) as db:
        assert read(db, credential_id) == SECRET
    with with_keys(shared_db, OLD, strict=True) as db, pytest.raises(SecretError, match="keys rotate"):
        read(db, credential_id)


def test_a_plain_secret_cannot_pass_as_a_sealed_one(shared_db: DatabaseFactory) -> None:
    """Text that begins like an envelope is refused, with and without a ring."""
    for keys in (None, OLD):
        with with_keys(shared_db, keys) as db, pytest.raises(InvalidValueError, match="enc:"):
            store(db, "enc:v1:old:AAAA")


def test_statements_without_the_row_are_refused_under_a_ring(sealing: DatabaseFactory) -> None:
    """An INSERT or UPDATE of a bare string could not be bound to its row; in plain mode both work."""
    row = {"account_id": "one", "api_key_id": "key", "api_secret": SECRET}
    for statement in (insert(ApiCredential).values(row), update(ApiCredential).values(api_secret=SECRET)):
        with pytest.raises(InvalidValueError, match="sealed"), sealing.get_session() as session:
            session.execute(statement)
    with with_keys(sealing, None) as db, db.get_session() as session:
        session.execute(insert(ApiCredential), [row])
        session.execute(update(ApiCredential).values(api_secret="changed"))
        assert session.scalars(select(ApiCredential.api_secret)).all() == ["changed"]


@pytest.mark.parametrize("keys", [None, OLD], ids=["plain", "sealed"])
def test_bulk_paths_seal_to_the_row(shared_db: DatabaseFactory, keys: str | None) -> None:
    """bulk_create makes the key first; bulk_update seals too; neither takes a secret that looks like an envelope."""
    with with_keys(shared_db, keys) as db:
        credential_id = store(db)
        with db.get_session(user_id="ann") as session:
            bulk_update(session, ApiCredential, [{"credential_id": credential_id, "api_secret": "newer"}])
        assert read(db, credential_id) == "newer"
        assert stored_text(db, credential_id).startswith("newer" if keys is None else "enc:v1:old:")
        row = {"account_id": "two", "api_key_id": "key", "api_secret": SECRET}
        with db.get_session(user_id="ann") as session:
            assert bulk_create(session, ApiCredential, [row]).inserted == 1
            assert "credential_id" not in row
            created = session.scalars(select(ApiCredential).where(ApiCredential.account_id == "two")).one()
            assert created.api_secret == SECRET
        assert stored_text(db, created.credential_id).startswith(SECRET if keys is None else "enc:v1:old:")
        with pytest.raises(InvalidValueError, match="enc:"), db.get_session(user_id="ann") as session:
            bulk_create(session, ApiCredential, [row | {"api_secret": "enc:v1:old:AAAA"}])


def test_a_column_alone_gives_an_opaque_value(sealing: DatabaseFactory) -> None:
    """A SELECT of the column shows neither secret nor ciphertext by accident."""
    credential_id = store(sealing)
    with sealing.get_session() as session:
        value = session.scalars(select(ApiCredential.api_secret)).one()
        assert isinstance(value, StoredSecret)
        assert repr(value) == "<StoredSecret>"
        with pytest.raises(SecretError):
            pickle.loads(pickle.dumps(value)).open(place_of(ApiCredential.__table__.c.api_secret, credential_id))


@pytest.mark.parametrize("keys", [None, OLD], ids=["plain", "sealed"])
def test_a_pickled_credential_leaves_its_secret_behind(shared_db: DatabaseFactory, keys: str | None) -> None:
    """The copy has it in a session, and nowhere else; a secret that is not stored yet does not travel at all."""
    with with_keys(shared_db, keys) as db:
        credential_id = store(db)
        with db.get_session() as session:
            pickled = pickle.dumps(session.get_one(ApiCredential, credential_id))
        assert SECRET.encode() not in pickled
        with pytest.raises(DetachedInstanceError):
            _ = pickle.loads(pickled).api_secret
        with db.get_session() as session:
            copy = pickle.loads(pickled)
            session.add(copy)
            assert copy.api_secret == SECRET
        assert SECRET.encode() not in pickle.dumps(ApiCredential(api_secret=SECRET))


def test_rotation_brings_every_secret_under_the_active_key(shared_db: DatabaseFactory) -> None:
    """Plain and older ones, in batches, with progress; again it changes nothing; rotated_at is left alone."""
    plain = store(shared_db)
    with with_keys(shared_db, OLD) as db:
        older = store(db, "older", account="two")
    seen: list[tuple[int, int]] = []
    with with_keys(shared_db, f"{NEW},{OLD}") as db:
        rotation = rotate_keys(db, batch=1, progress=lambda done, total: seen.append((done, total)))
        assert (rotation.sealed, dict(rotation.by_key_id)) == (2, {"new": 2})
        assert seen == [(1, 2), (2, 2)]
        before = [stored_text(db, plain), stored_text(db, older)]
        assert rotate_keys(db).sealed == 0
        assert [stored_text(db, plain), stored_text(db, older)] == before
    with with_keys(shared_db, NEW, strict=True) as db:
        assert [read(db, plain), read(db, older)] == [SECRET, "older"]
        with db.get_session() as session:
            assert session.scalars(select(ApiCredential.rotated_at)).all() == [None, None]


def test_a_rotation_that_fails_keeps_what_it_sealed(shared_db: DatabaseFactory) -> None:
    """A secret that does not open stops it, with the batches before intact, and it goes on from there."""
    for number, account in enumerate(("one", "two")):
        with shared_db.get_session() as session:
            values = {"credential_id": str(number), "account_id": account, "api_key_id": "k", "api_secret": SECRET}
            session.add(ApiCredential(**values))
    damaged = update(ApiCredential).where(ApiCredential.credential_id == "1")
    with shared_db.get_session() as session:
        session.execute(damaged.values(api_secret=StoredSecret("enc:v1:lost:AAAA")))
    with with_keys(shared_db, NEW) as db:
        with pytest.raises(SecretError):
            rotate_keys(db, batch=1)
        assert stored_text(db, "0").startswith("enc:v1:new:")
        with db.get_session() as session:
            session.execute(damaged.values(api_secret=StoredSecret("mended")))
        assert rotate_keys(db).sealed == 1


def test_rotation_leaves_no_plain_text_in_a_sqlite_file(tmp_path: Path) -> None:
    """Neither in the file nor in its log."""
    path = tmp_path / "grid_bot.db"
    plain = DatabaseSettings(db_name=str(path), _env_file=None)
    with DatabaseFactory(plain) as db:
        db.create_tables()
        with db.get_session() as session:
            session.add(User(user_id="ann", username="ann"))
            session.add(BybitAccount(account_id="one", user_id="ann", account_name="one", environment="testnet"))
        store(db)
    assert any(SECRET.encode() in file.read_bytes() for file in tmp_path.glob("grid_bot.db*"))
    with DatabaseFactory(plain.model_copy(update={"encryption_keys": OLD})) as db:
        rotate_keys(db)
        assert not any(SECRET.encode() in file.read_bytes() for file in tmp_path.glob("grid_bot.db*"))


def test_the_keys_command_makes_a_ring_and_uses_it(
    shared_db: DatabaseFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What generate prints is a ring; rotate ends with a count per key; without a ring it says what to do."""
    store(shared_db)
    url = shared_db.settings.get_database_url()
    assert main(["keys", "generate", "--id", "2026-11"]) == 0
    monkeypatch.setenv("GRIDBOT_DB_ENCRYPTION_KEYS", capsys.readouterr().out.strip())
    assert main(["keys", "rotate", "--db-url", url]) == 0
    assert capsys.readouterr().out == "sealed 1 secrets\n  2026-11: 1\n"
    monkeypatch.delenv("GRIDBOT_DB_ENCRYPTION_KEYS")
    assert main(["keys", "rotate", "--db-url", url]) == 1
    assert "GRIDBOT_DB_ENCRYPTION_KEYS" in capsys.readouterr().err
    assert main(["keys", "generate", "--id", "a b"]) == 1


def test_rotating_a_credential_leaves_exactly_one_active(sealing: DatabaseFactory) -> None:
    """The old one ends with its time, the new one is active, in one transaction; a foreign account is refused."""
    first = store(sealing)
    with sealing.get_session(user_id="ann") as session:
        repository = ApiCredentialRepository(session)
        new = repository.rotate("one", "key-2", "second")
        active = repository.get_active_credential("one")
        assert active is new
        assert active.api_secret == "second"
        old = session.get_one(ApiCredential, first)
        assert not old.is_active
        assert old.rotated_at is not None
    with pytest.raises(TenantViolation), sealing.get_session(user_id="bob") as session:
        ApiCredentialRepository(session).rotate("one", "key-3", "third")
    assert read(sealing, new.credential_id) == "second"


def test_the_schema_allows_one_active_credential_an_account(sealing: DatabaseFactory) -> None:
    """A second active one is refused by the database itself, an inactive one is not."""
    store(sealing)
    with sealing.get_session() as session:
        session.add(ApiCredential(account_id="one", api_key_id="k", api_secret="s", is_active=False))
    with pytest.raises(IntegrityError):
        store(sealing)
