"""What sealing costs: a secret sealed and opened, and a credential read from its table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness import Contender, Place, compare
from shared.db import ApiCredential, ApiCredentialRepository, BybitAccount, DatabaseFactory, DatabaseSettings, User
from shared.db.encryption import KeyRing, generate_entry

_SECRET = "a" * 36
_RING = generate_entry("bench")
_READS, _SEALS = 300, 5_000


def sealing(here: Place) -> None:
    """An API secret of 36 characters sealed and opened again, thousands of times."""
    ring = KeyRing.parse(_RING)

    def seal_and_open(count: int) -> None:
        for _ in range(count):
            ring.open(ring.seal(_SECRET, "place"), "place")

    compare("Seal and open", [Contender("KeyRing", seal_and_open)], lambda number: _SEALS, here.rounds, count=_SEALS)


def credentials(here: Place) -> None:
    """The active credential of an account, its secret read, a session each: plain first, then sealed."""
    for title, url in (("SQLite", here.new_sqlite()), ("PostgreSQL", here.new_postgresql())):
        text = url.render_as_string(hide_password=False)
        plain = DatabaseFactory(DatabaseSettings(database_url=text, _env_file=None))
        sealed = DatabaseFactory(DatabaseSettings(database_url=text, encryption_keys=_RING, _env_file=None))
        with plain, sealed:
            compare(
                title,
                [Contender("plain", _reader(plain, "plain")), Contender("sealed", _reader(sealed, "sealed"))],
                lambda number: _READS,
                here.rounds,
                count=_READS,
            )


def _reader(db: DatabaseFactory, name: str) -> Callable[[int], Any]:
    with db.get_session() as session:
        session.add(User(user_id=name, username=name))
        session.add(BybitAccount(account_id=name, user_id=name, account_name=name, environment="testnet"))
        session.add(ApiCredential(account_id=name, api_key_id="key", api_secret=_SECRET))

    def read(count: int) -> None:
        for _ in range(count):
            with db.get_session(user_id=name, read_only=True) as session:
                credential = ApiCredentialRepository(session).get_active_credential(name)
                assert credential is not None
                assert credential.api_secret == _SECRET

    return read


BENCHMARKS = {"sealing": sealing, "credentials": credentials}
