"""Ways to fail with the canaries at hand, each by its name."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, text

from shared.db import (
    ApiCredential,
    ApiCredentialRepository,
    DatabaseFactory,
    DatabaseSettings,
    PublicTrade,
    Recorder,
    TransactionConflictError,
    User,
)
from shared.db.commands.cli import main
from shared.db.encryption import KeyRing
from shared.db.operations.backup import back_up, restore
from shared.db.operations.copy_database import copy_database
from shared.db.tests.canary import KEY, OTHER_RING, PASSWORD, RING, SECRET, Stage, new_credential, stored_credential
from shared.db.tests.support import postgresql_programs, run_on_server, trade_values


def _flush(**values: Any) -> Callable[[Stage], None]:
    """Store a credential with the secret and something that is wrong."""

    def fail(stage: Stage) -> None:
        with stage.open() as db, db.get_session() as session:
            session.add(new_credential(**({"account_id": "ann-2"} | values)))
            session.flush()

    return fail


def _change(**values: Any) -> Callable[[Stage], None]:
    """Change the stored credential, its secret included, in a way that is refused."""

    def fail(stage: Stage) -> None:
        with stage.open() as db, db.get_session() as session:
            credential = stored_credential(session)
            for name, value in ({"api_secret": SECRET} | values).items():
                setattr(credential, name, value)

    return fail


def _in_session(act: Callable[[Any], object], **scope: Any) -> Callable[[Stage], None]:
    def fail(stage: Stage) -> None:
        with stage.open() as db, db.get_session(**scope) as session:
            act(session)

    return fail


def _on(**changes: Any) -> Callable[[Stage], None]:
    """Connect with something wrong."""

    def fail(stage: Stage) -> None:
        with stage.open(**changes) as db:
            db.create_tables()

    return fail


def _settings(**values: Any) -> Callable[[Stage], None]:
    def fail(stage: Stage) -> None:
        DatabaseFactory(DatabaseSettings(**values, _env_file=None))

    return fail


def _spoiled(spoil: str, **changes: Any) -> Callable[[Stage], None]:
    """Read a credential after its stored text was changed by SQL; nothing of that stays."""

    def fail(stage: Stage) -> None:
        with stage.open(**changes) as db, db.get_session() as session:
            session.execute(text(f"UPDATE api_credentials SET api_secret = {spoil} WHERE credential_id = 'stored'"))
            session.expire_all()
            try:
                _ = stored_credential(session).api_secret
            finally:
                session.rollback()

    return fail


def _locked(stage: Stage) -> None:
    with stage.open(sqlite_busy_timeout=0.0) as db, db.get_session() as one:
        one.add(new_credential(account_id="ann-2"))
        one.flush()
        with stage.open(sqlite_busy_timeout=0.0) as second, second.get_session() as other:
            other.execute(text(_IMPATIENT[db.engine.dialect.name]))
            other.add(new_credential(account_id="ann-2"))
            other.flush()


_IMPATIENT = {"sqlite": "SELECT 1", "postgresql": "SET LOCAL lock_timeout = 100"}


def _exhausted(stage: Stage) -> None:
    with stage.open(pool_size=1, max_overflow=0, pool_timeout=0.01) as db, db.get_session() as one:
        one.add(new_credential(account_id="ann-2"))
        one.flush()
        try:
            db.engine.connect()
        finally:
            one.rollback()


def _without_tables(stage: Stage) -> None:
    with stage.open() as db, db.get_session() as session:
        session.execute(text("DROP TABLE api_credentials"))
        try:
            session.add(new_credential())
            session.flush()
        finally:
            session.rollback()


def _recorded_without_a_server(stage: Stage) -> None:
    with (
        DatabaseFactory(f"postgresql://bot:{PASSWORD}@127.0.0.1:1/x") as db,
        Recorder(db, PublicTrade, spool=stage.folder / "spool") as recorder,
    ):
        recorder.add([trade_values()])
        try:
            recorder.flush()
        finally:
            stage.see("recorder", recorder, recorder.stats())


def _cut_off(stage: Stage) -> None:
    with stage.open() as db, db.get_session() as session:
        session.add(new_credential(account_id="ann-2"))
        connection = session.connection()
        if connection.dialect.name == "postgresql":
            with stage.open() as other, other.engine.connect() as second:
                pid = connection.scalar(text("SELECT pg_backend_pid()"))
                second.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        else:
            driver: Any = connection.connection.dbapi_connection
            driver.close()
        session.flush()


def _given_up(stage: Stage) -> None:
    def work(session: Any) -> None:
        session.add(new_credential(account_id="ann-2"))
        session.flush()
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        raise TransactionConflictError(Exception(""))  # SQLite has none

    with stage.open() as db:
        db.run_in_transaction(work, attempts=2)


def _pickle_pending(stage: Stage) -> None:
    with stage.open() as db, db.get_session() as session:
        credential = stored_credential(session)
        credential.api_secret = SECRET
        credential.api_secret = SECRET + "2"
        stage.see("pickled", pickle.dumps(credential).decode("latin-1"))
        pickle.dumps(vars(credential)["api_secret"])


def _attempt(act: Callable[[Stage], object]) -> Callable[[Stage], None]:
    def fail(stage: Stage) -> None:
        act(stage)

    return fail


def _restore(spoil: Callable[[bytes], bytes]) -> Callable[[Stage], None]:
    """Restore a backup that was changed, or cut short in the middle of a row."""

    def fail(stage: Stage) -> None:
        path = stage.folder / "spoiled"
        path.write_bytes(spoil((stage.folder / "backup").read_bytes()))
        try:
            with stage.open() as db:
                restore(db, path, force=True, pg_bin=postgresql_programs())
        finally:
            path.unlink()

    return fail


def _copy_of(spoil: str) -> Callable[[Stage], None]:
    """Copy from SQLite what SQL has changed so that PostgreSQL does not take it."""

    def fail(stage: Stage) -> None:
        with DatabaseFactory(f"sqlite:///{stage.folder / 'copied.db'}") as source, stage.open() as db:
            with source.get_session() as session:
                session.execute(text(f"UPDATE api_credentials SET {spoil} WHERE credential_id = 'stored'"))
            if stage.settings.is_sqlite:
                raise RuntimeError("SQLite takes anything")
            run_on_server(db.engine.url, "DROP DATABASE IF EXISTS target", "CREATE DATABASE target")
            with DatabaseFactory(db.engine.url.set(database="target")) as target:
                copy_database(source, target)

    return fail


def _copy_onto_rows(stage: Stage) -> None:
    with stage.open() as db, DatabaseFactory(f"sqlite:///{stage.folder / 'copied.db'}") as target:
        copy_database(db, target)


def _command(*arguments: str) -> Callable[[Stage], None]:
    def fail(stage: Stage) -> None:
        code = main(list(arguments))
        raise RuntimeError(f"exit code {code}") if code else AssertionError("it ran")

    return fail


def _command_on(*arguments: str) -> Callable[[Stage], None]:
    """A command that fails on the stage's own database."""
    return lambda stage: _command(*arguments, "--db-url", stage.settings.get_database_url())(stage)


def _keys_file(content: bytes) -> Callable[[Stage], None]:
    def fail(stage: Stage) -> None:
        path = stage.folder / "ring"
        path.write_bytes(content)
        try:
            with stage.open(encryption_keys=None, encryption_keys_file=str(path)) as db:
                _ = db.engine
        finally:
            path.unlink()

    return fail


def _open_key_of(stage: Stage) -> None:
    KeyRing.parse(RING).open("enc:v1:k1:AAAA", "here")


NOW = datetime.now(UTC)
FAILURES: dict[str, Callable[[Stage], None]] = {
    "no key id": _flush(api_key_id=None),
    "no account": _flush(account_id=None),
    "unknown account": _flush(account_id="nobody"),
    "stored already": _flush(credential_id="stored"),
    "second active one": _flush(account_id="ann"),
    "too long account": _flush(account_id="x" * 37),
    "too long key id": _flush(api_key_id="x" * 101),
    "no boolean": _flush(is_active="maybe"),
    "naive time": _flush(created_at=NOW.replace(tzinfo=None)),
    "text for a time": _flush(rotated_at="yesterday"),
    "NUL in the secret": _flush(api_secret=SECRET + "\0"),
    "surrogate in the secret": _flush(api_secret=SECRET + "\ud800"),
    "secret like an envelope": _flush(api_secret="enc:" + SECRET),
    "no secret": _flush(api_secret=None),
    "misspelt keyword": _attempt(lambda stage: ApiCredential(api_secrt=SECRET)),
    "changed to no key id": _change(api_key_id=None),
    "changed to an unknown account": _change(account_id="nobody"),
    "changed to an active one more": _in_session(
        lambda session: (
            (session.add(new_credential(is_active=False, credential_id="late")), session.flush())
            and ApiCredentialRepository(session, user_id="ann").update(
                ApiCredential(credential_id="late", is_active=True, api_secret=SECRET)
            )
        )
    ),
    "changed to a key that is taken": _change(credential_id="other"),
    "changed to a long key id": _change(api_key_id="x" * 101),
    "changed to NUL": _change(api_secret=SECRET + "\0"),
    "several at once": _in_session(
        lambda session: (
            session.add_all([new_credential(account_id="ann-2", is_active=False) for _ in range(3)])
            or session.add(new_credential(account_id="nobody"))
        )
    ),
    "in a savepoint": _in_session(
        lambda session: (session.begin_nested(), session.add(new_credential(account_id="nobody")), session.flush())
    ),
    "by autoflush": _in_session(
        lambda session: (session.add(new_credential(account_id="nobody")), session.scalars(select(User)).all())
    ),
    "at commit": _in_session(lambda session: session.add(new_credential(account_id="nobody"))),
    "merged": _in_session(lambda session: session.merge(new_credential(credential_id="stored", account_id="nobody"))),
    "by rotation": _in_session(
        lambda session: ApiCredentialRepository(session, user_id="ann").rotate("bob", "key", SECRET)
    ),
    "for another user": _in_session(lambda session: session.add(new_credential(account_id="bob")), user_id="ann"),
    "update of nothing": _in_session(
        lambda session: ApiCredentialRepository(session).update(new_credential(credential_id="nobody")), user_id="ann"
    ),
    "no user": _in_session(lambda session: ApiCredentialRepository(session).create(new_credential())),
    "read-only session": _in_session(lambda session: session.add(new_credential(account_id="ann-2")), read_only=True),
    "raw SQL for a user": _in_session(
        lambda session: session.execute(text("SELECT nothing FROM api_credentials")), user_id="ann"
    ),
    "no such column": _in_session(lambda session: session.execute(text("SELECT nothing FROM api_credentials"))),
    "locked": _locked,
    "pool exhausted": _exhausted,
    "no table": _without_tables,
    "connection lost": _cut_off,
    "run again in vain": _given_up,
    "status without a server": _command("status", "--db-url", f"postgresql://bot:{PASSWORD}@127.0.0.1:1/x"),
    "not the row's": _spoiled(
        "(SELECT api_secret FROM api_credentials WHERE credential_id = 'other')", encryption_strict=True
    ),
    "tampered with": _spoiled("'enc:v1:k1:AAAABBBBCCCCDDDDEEEE'"),
    "damaged": _spoiled("'enc:v1:k1:'"),
    "of a later version": _spoiled("'enc:v9:k1:AAAA'"),
    "of an unknown key": _spoiled("'enc:v1:k0:AAAABBBBCCCCDDDDEEEE'"),
    "no ring": _spoiled("'enc:v1:k1:AAAA'", encryption_keys=None),
    "another ring": _spoiled("'enc:v1:k1:AAAABBBBCCCCDDDDEEEE'", encryption_keys=OTHER_RING),
    "plain under strict": _spoiled("'plain'", encryption_keys=RING, encryption_strict=True),
    "open nothing": _open_key_of,
    "pickled ring": lambda stage: stage.see("pickle", pickle.dumps(KeyRing.parse(RING))),
    "pickled secret": _pickle_pending,
    "malformed ring": _on(encryption_keys=f"{RING}, {KEY}"),
    "ring with one id twice": _on(encryption_keys=f"{RING}, {RING}"),
    "ring and file": _on(encryption_keys=RING, encryption_keys_file="ring"),
    "no ring file": _on(encryption_keys=None, encryption_keys_file="nowhere"),
    "ring file of bytes": _keys_file(b"\xff" + KEY.encode()),
    "ring file of junk": _keys_file(f"k1 {KEY}".encode()),
    "unknown login": _on(database_url=f"postgresql://nobody:{PASSWORD}@127.0.0.1:1/x"),
    "password in the query": _on(database_url=f"postgresql://nobody@127.0.0.1:1/x?password={PASSWORD}"),
    "SQLite where no file can be": _on(database_url=None, db_type="sqlite", db_name="/dev/null/x/grid_bot.db"),
    "URL with a bare @": _settings(database_url=f"postgresql://bot:{PASSWORD}@x@localhost/x"),
    "URL of another database": _settings(database_url=f"oracle://bot:{PASSWORD}@localhost/x"),
    "URL with a bad port": _settings(database_url=f"postgresql://bot:@localhost:{PASSWORD}/x"),
    "password as a port": _settings(db_port=PASSWORD),
    "password as a number": _settings(pool_size=PASSWORD),
    "password as a type": _settings(db_type=PASSWORD),
    "password with NUL": _settings(db_password=PASSWORD + "\0"),
    "no host": lambda stage: DatabaseSettings(db_type="postgresql", db_password=PASSWORD, _env_file=None).url and None,
    "command without a server": _command("init", "--db-url", f"postgresql://bot:{PASSWORD}@127.0.0.1:1/x"),
    "command with a bad URL": _command("init", "--db-url", f"oracle://bot:{PASSWORD}@127.0.0.1:1/x"),
    "backup where a file is": _attempt(lambda stage: back_up(stage.open(), stage.folder / "backup")),
    "backup without tools, or anywhere": _attempt(lambda stage: back_up(stage.open(), "/no/x", pg_bin="/no")),
    "restore of a part": _restore(lambda whole: whole[: len(whole) * 2 // 3]),
    "restore of junk": _restore(lambda whole: SECRET.encode()),
    "copy onto rows": _copy_onto_rows,
    "copy of what is too long": _copy_of("api_key_id = hex(zeroblob(60))"),
    "copy of a time that is none": _copy_of("created_at = 'today', api_key_id = 'k'"),
    "copy to a server that is not there": _attempt(
        lambda stage: copy_database(stage.open(), DatabaseFactory(f"postgresql://bot:{PASSWORD}@127.0.0.1:1/x"))
    ),
    "command that copies nowhere": _command("copy", "sqlite:///empty.db", f"postgresql://bot:{PASSWORD}@x:y/x"),
    "rotation without a ring": _command("keys", "rotate", "--db-name", "empty.db"),
    "recorder without a server": _recorded_without_a_server,
    "export where no file can be": _command("export", "trades", "--symbol", "X", "-o", "/dev/null/x.csv"),
    "export of another user's run": _command_on("export", "executions", "--run", "r", "--user", "bob", "-o", "x.csv"),
    "import of no archive": _command_on("import-trades", "nowhere.csv.gz"),
    "migration backwards": _command_on("migrate", "down", "base"),
}
