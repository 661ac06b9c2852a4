"""Backup and restore: everything comes back, nothing half-done is left, and the writers go on meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, MetaData, select, text
from sqlalchemy.orm import Session

from shared.db import (
    ApiCredential,
    BackupError,
    DatabaseFactory,
    DatabaseLockedError,
    DatabaseSettings,
    InputError,
    PublicTrade,
    PublicTradeRepository,
    RowSecurityError,
    TargetNotEmptyError,
    User,
)
from shared.db.commands.cli import main
from shared.db.dialects import port_of
from shared.db.migrations.runner import check
from shared.db.operations import mysql_exchange, postgresql_backup, replacing, sqlite_backup
from shared.db.operations.backup import back_up, restore
from shared.db.operations.contents import row_counts
from shared.db.operations.copy_database import copy_database
from shared.db.operations.progress import WHOLE, Progress
from shared.db.operations.purge import purge_trades
from shared.db.schema_version import SCHEMA_REVISION
from shared.db.tests.fleet import rows_of
from shared.db.tests.support import in_threads, run_on_server, trade_values

SECRET = "backup-canary-Zq7vT"
RING = "k1:" + "A" * 43 + "="


@pytest.fixture(autouse=True)
def _tools(postgresql_tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_dump and pg_restore of the server's version stand first in the PATH."""
    monkeypatch.setenv("PATH", f"{postgresql_tools}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def make_target(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[DatabaseFactory], DatabaseFactory]]:
    """Gives a second, empty database of the same kind as a first one."""
    made: list[DatabaseFactory] = []

    def make(db: DatabaseFactory) -> DatabaseFactory:
        if db.settings.is_memory:
            source: URL | str = "sqlite:///:memory:"
        elif db.settings.is_sqlite:
            source = f"sqlite:///{tmp_path / 'target.db'}"
        else:
            fixture = {"postgresql": "empty_postgresql_url", "mysql": "mysql_url"}[db.settings.port.name]
            source = request.getfixturevalue(fixture)
        made.append(DatabaseFactory(source))
        return made[-1]

    yield make
    for target in made:
        target.close()


def everything(db: DatabaseFactory) -> dict[str, list[Any]]:
    """All rows of all tables that are in the database, as they are stored."""
    with db.get_session(read_only=True) as session:
        connection = Session.connection(session)
        metadata = MetaData()
        metadata.reflect(connection, only=sorted(port_of(connection).tables(connection)))
        return {table.name: sorted(map(repr, connection.execute(select(table)))) for table in metadata.sorted_tables}


def fill(db: DatabaseFactory, trades: int = 50) -> None:
    """Rows in every table, of two users, with hard values and sealed secrets where there is a key ring."""
    with db.get_session() as session:
        for user in ("ann", "bob"):
            session.add_all(rows_of(user))
        session.add(User(username="Zoë \\N \\. \t\n☃ \U0001f600"))
        PublicTradeRepository(session).bulk_create(
            trade_values(number, price=Decimal("0.00000001") * (number + 1)) for number in range(trades)
        )


def sealed(db: DatabaseFactory) -> DatabaseFactory:
    """A factory for the same database that seals secrets."""
    return DatabaseFactory(db.settings.model_copy(update={"encryption_keys": RING}))


def test_a_restored_backup_has_every_row(
    db: DatabaseFactory, make_target: Callable[[DatabaseFactory], DatabaseFactory], tmp_path: Path
) -> None:
    """Row for row in every table, audit log and revision included, no drift, and new rows get new numbers."""
    db.enable_audit()
    fill(db)
    report = back_up(db, tmp_path / "backup")
    target = make_target(db)
    restored = restore(target, tmp_path / "backup")
    assert everything(target) == everything(db)
    assert (
        restored.rows
        == report.rows
        == {table: len(rows) for table, rows in everything(db).items() if table != "shared_db_version"}
    )
    assert report.rows["audit_log"] > 0
    target.check_schema()
    with target.get_session() as session:
        PublicTradeRepository(session).bulk_create([trade_values(9_999)])
        newest = session.scalars(select(PublicTrade).order_by(PublicTrade.id.desc())).first()
        assert newest is not None
        assert newest.trade_id == "trade-9999"
        session.add(User(username="audited in the restored database too"))
    assert len(everything(target)["audit_log"]) == report.rows["audit_log"] + 2


def test_a_restored_schema_is_no_other_one(
    db: DatabaseFactory, make_target: Callable[[DatabaseFactory], DatabaseFactory], tmp_path: Path
) -> None:
    """PostgreSQL writes a restored CHECK in other words; `migrate check` finds no difference in it."""
    db.enable_audit()
    fill(db)
    back_up(db, tmp_path / "backup")
    target = make_target(db)
    restore(target, tmp_path / "backup")
    assert check(target) == []


def test_a_backup_is_one_private_file(db: DatabaseFactory, tmp_path: Path) -> None:
    """Mode 0600, nothing beside it but its checksum, and readable without a write-ahead log."""
    fill(db)
    folder = tmp_path / "backups"
    folder.mkdir()
    report = back_up(db, folder / "one")
    assert sorted(path.name for path in folder.iterdir()) == ["one", "one.sha256"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    assert report.size == (folder / "one").stat().st_size


def test_a_backup_holds_what_is_only_in_the_write_ahead_log(tmp_path: Path) -> None:
    """Which a copy of the main file does not have."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'bot.db'}") as db:
        db.create_tables()
        with closing(sqlite3.connect(tmp_path / "bot.db")) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        fill(db)
        shutil.copy(tmp_path / "bot.db", tmp_path / "copied.db")
        report = back_up(db, tmp_path / "backup.db")
    with closing(sqlite3.connect(tmp_path / "copied.db")) as copied:
        assert copied.execute("SELECT count(*) FROM public_trades").fetchone() == (0,)
    assert report.rows["public_trades"] == 50


def test_a_backup_does_not_replace_a_file_unless_told(db: DatabaseFactory, tmp_path: Path) -> None:
    """Whatever it is; with `force` the new backup takes its place as a whole."""
    path = tmp_path / "backup"
    path.write_text("precious")
    with pytest.raises(BackupError, match=r"is there already; .*--force"):
        back_up(db, path)
    assert path.read_text() == "precious"
    back_up(db, path, force=True)
    assert path.read_bytes() != b"precious"
    with pytest.raises(InputError, match="is a folder"):
        back_up(db, tmp_path, force=True)


def test_a_file_that_appears_meanwhile_is_not_replaced(
    db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for again before the backup is put in place."""
    monkeypatch.setattr(replacing, "_sync", lambda path: (tmp_path / "backup").write_text("precious"))
    with pytest.raises(BackupError, match="is there already"):
        back_up(db, tmp_path / "backup")
    assert (tmp_path / "backup").read_text() == "precious"


def test_a_folder_that_is_not_there_is_named(db: DatabaseFactory, tmp_path: Path) -> None:
    """Before anything is done."""
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        back_up(db, tmp_path / "missing" / "backup")


def test_an_empty_database_is_not_backed_up(empty_db: DatabaseFactory, tmp_path: Path) -> None:
    """It is mostly the wrong one: a typo in a file's name makes a new file."""
    with pytest.raises(BackupError, match="has no tables; is it the right one"):
        back_up(empty_db, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_sealed_secrets_stay_sealed(
    db: DatabaseFactory, make_target: Callable[[DatabaseFactory], DatabaseFactory], tmp_path: Path
) -> None:
    """The backup holds no secret in plain, and the restored row opens with the key."""
    with sealed(db) as keyed:
        keyed.create_tables()  # in memory it is another database
        with keyed.get_session() as session:
            rows = rows_of("ann")
            rows[2].api_secret = SECRET  # type: ignore[attr-defined] # the credential
            session.add_all(rows)
        back_up(keyed, tmp_path / "backup")
    assert SECRET.encode() not in (tmp_path / "backup").read_bytes()
    with sealed(make_target(db)) as target:
        restore(target, tmp_path / "backup")
        with target.get_session() as session:
            assert session.scalars(select(ApiCredential)).one().api_secret == SECRET


def test_a_database_with_rows_is_not_replaced_unless_told(
    db: DatabaseFactory, make_target: Callable[[DatabaseFactory], DatabaseFactory], tmp_path: Path
) -> None:
    """The error names the tables and nothing is changed; with `force` only the backup's rows are left."""
    fill(db)
    back_up(db, tmp_path / "backup")
    target = make_target(db)
    target.create_tables()
    target.enable_audit()
    with target.get_session() as session:
        session.add(User(user_id="carl", username="carl"))
        session.add(PublicTrade(**trade_values(7_777)))
    before = everything(target)
    with pytest.raises(TargetNotEmptyError, match=r"in audit_log, public_trades, users; .*--force") as refused:
        restore(target, tmp_path / "backup")
    assert refused.value.tables == ("audit_log", "public_trades", "users")
    assert everything(target) == before
    restore(target, tmp_path / "backup", force=True)
    assert everything(target) == everything(db)
    with target.get_session() as session:
        session.add(User(username="no audit log any more"))


def test_empty_tables_are_no_hindrance(
    db: DatabaseFactory, make_target: Callable[[DatabaseFactory], DatabaseFactory], tmp_path: Path
) -> None:
    """A database that `init` has just made takes a backup without `force`."""
    fill(db)
    back_up(db, tmp_path / "backup")
    target = make_target(db)
    target.create_tables()
    restore(target, tmp_path / "backup")
    assert everything(target) == everything(db)


def test_a_damaged_backup_changes_nothing(db: DatabaseFactory, tmp_path: Path) -> None:
    """Cut short, changed in the middle, empty, or something else: refused, with `force` too, and nothing done."""
    fill(db, 2_000)
    path = tmp_path / "backup"
    back_up(db, path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = bytes(byte ^ 0xFF for byte in whole[middle : middle + 4000])
    with db.get_session() as session:
        session.execute(text("DELETE FROM public_trades"))
    before = everything(db)
    for damaged in (
        whole[:middle],
        whole[:-100],
        whole[:middle] + flipped + whole[middle + 4000 :],
        b"",
        b"CREATE TABLE users ();",
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged|no backup|does not hold"):
            restore(db, path, force=True)
    assert everything(db) == before


def test_a_file_that_is_not_there_is_named(db: DatabaseFactory, tmp_path: Path) -> None:
    """And no database is made of it."""
    with pytest.raises(InputError, match="cannot be read: No such file"):
        restore(db, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_backup_of_the_other_kind_is_refused(db: DatabaseFactory, tmp_path: Path) -> None:
    """With a word on how to change the kind."""
    path = tmp_path / "backup"
    path.write_bytes(postgresql_backup.MAGIC if db.settings.is_sqlite else sqlite_backup.MAGIC)
    with pytest.raises(InputError, match="use copy to change the kind"):
        restore(db, path)


def test_a_backup_of_a_newer_schema_is_refused(db: DatabaseFactory, tmp_path: Path) -> None:
    """Its revision is named, and the database stays as it was."""
    with db.get_session() as session:
        session.execute(text("UPDATE shared_db_version SET revision = '9999_future'"))
    back_up(db, tmp_path / "backup")
    with pytest.raises(InputError, match="9999_future, newer than this code's"):
        restore(db, tmp_path / "backup")


def test_a_database_of_something_else_is_no_backup(tmp_path: Path) -> None:
    """An SQLite file without our tables."""
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE notes (text)")
    with (
        DatabaseFactory(f"sqlite:///{tmp_path / 'bot.db'}") as db,
        pytest.raises(InputError, match="no backup of this"),
    ):
        restore(db, tmp_path / "other.db")


def test_backups_under_load_hold_everything_acknowledged_before(busy_fleet: DatabaseFactory, tmp_path: Path) -> None:
    """While writers commit pairs of trades, each backup is of one moment: whole pairs, and none of before missing."""
    db = busy_fleet
    stop = threading.Event()
    acknowledged = [0, 0]

    def write(number: int) -> None:
        while not stop.is_set():
            place = acknowledged[number]
            with db.get_session() as session:
                for half in ("a", "b"):
                    session.add(PublicTrade(**trade_values(place, symbol=f"W{number}", trade_id=half)))
            acknowledged[number] = place + 1

    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for writer in writers:
        writer.start()
    try:
        taken = []
        for number in range(3):
            before = list(acknowledged)
            report = back_up(db, tmp_path / f"backup-{number}")
            taken.append((before, report, list(acknowledged)))
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    for before, report, after in taken:
        assert report.rows["public_trades"] % 2 == 0
        assert 2 * sum(before) <= report.rows["public_trades"] <= 2 * (sum(after) + 2)
    assert sum(acknowledged) > sum(taken[0][0]), "nobody wrote"


def test_a_writer_commits_in_the_middle_of_a_backup(
    busy_fleet: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither waits for the other, and the backup is of the moment it began."""
    db = busy_fleet
    monkeypatch.setattr(sqlite_backup, "_PAGES", 5)
    rows: list[int] = []

    def watch(done: int, so_far: int) -> None:
        if len(rows) < 3:
            rows.append(done)
            with db.get_session() as session:
                session.add(PublicTrade(**trade_values(len(rows))))

    report = back_up(db, tmp_path / "backup", watch=watch)
    assert rows
    assert report.rows["public_trades"] == 0
    assert done_in_order(rows)


def done_in_order(done: list[int]) -> bool:
    """Whether progress only grows, up to the whole."""
    return done == sorted(done) and done[-1] <= WHOLE


def test_other_processes_see_the_restored_rows(busy_fleet: DatabaseFactory, tmp_path: Path) -> None:
    """A session that was opened before sees them in its next transaction; an SQLite file stays the same file."""
    db = busy_fleet
    back_up(db, tmp_path / "backup")
    expected = everything(db)
    with DatabaseFactory(db.settings) as other:
        with other.get_session() as session:
            session.add(PublicTrade(**trade_values()))
        file = Path(str(db.engine.url.database))
        inode = file.stat().st_ino if db.settings.is_sqlite else 0
        restore(db, tmp_path / "backup", force=True)
        assert everything(other) == expected
        with other.get_session() as session:
            session.add(PublicTrade(**trade_values()))
        assert len(everything(db)["public_trades"]) == 1
        assert not db.settings.is_sqlite or file.stat().st_ino == inode


def test_a_restore_waits_for_a_writer_and_gives_up(
    busy_fleet: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a named error, and the database as it was."""
    db = busy_fleet
    back_up(db, tmp_path / "backup")
    monkeypatch.setattr(postgresql_backup, "_LOCK_TIMEOUT_MS", 100)
    monkeypatch.setattr(mysql_exchange, "_LOCK_TIMEOUT", 0)
    hasty = DatabaseFactory(db.settings.model_copy(update={"sqlite_busy_timeout": 0.1}))
    with hasty, db.get_session() as session:
        session.add(PublicTrade(**trade_values()))
        session.flush()
        with pytest.raises(DatabaseLockedError):
            restore(hasty, tmp_path / "backup", force=True)
    assert len(everything(db)["public_trades"]) == 1


def test_a_restore_gives_up_on_a_writer_that_comes_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver would try again for ever."""
    path = tmp_path / "bot.db"
    settings = DatabaseSettings(db_name=str(path), sqlite_busy_timeout=0.1, _env_file=None)
    with DatabaseFactory(settings) as db, closing(sqlite3.connect(path, isolation_level=None)) as writer:
        db.create_tables()
        back_up(db, tmp_path / "backup")
        monkeypatch.setattr(sqlite_backup, "_refuse_other_page_size", lambda *each: writer.execute("BEGIN IMMEDIATE"))
        with pytest.raises(DatabaseLockedError):
            restore(db, tmp_path / "backup")
        writer.execute("ROLLBACK")
        monkeypatch.undo()
        restore(db, tmp_path / "backup")


def test_rows_written_before_the_lock_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database found empty that is written to in the next moment is looked at again under the lock."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'bot.db'}") as db:
        db.create_tables()
        back_up(db, tmp_path / "backup")

        def somebody_writes(*connections: sqlite3.Connection) -> None:
            with db.get_session() as session:
                session.add(PublicTrade(**trade_values()))

        monkeypatch.setattr(sqlite_backup, "_refuse_other_page_size", somebody_writes)
        with pytest.raises(TargetNotEmptyError, match="public_trades"):
            restore(db, tmp_path / "backup")
        assert len(everything(db)["public_trades"]) == 1


def test_an_interrupted_restore_leaves_the_database(
    db: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle undoes all of it; in the middle of a backup it leaves no file."""
    fill(db, 3_000)
    monkeypatch.setattr(sqlite_backup, "_PAGES", 5)
    folder = tmp_path / "backups"
    folder.mkdir()

    def interrupt(done: int, rows: int) -> None:
        if done > WHOLE // 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(db, folder / "backup", watch=interrupt)
    assert list(folder.iterdir()) == []
    back_up(db, folder / "backup")
    with db.get_session() as session:
        session.execute(text("DELETE FROM users"))
    before = everything(db)
    with pytest.raises(KeyboardInterrupt):
        restore(db, folder / "backup", force=True, watch=interrupt)
    assert everything(db) == before


def test_a_service_manager_s_stop_leaves_nothing(
    busy_fleet: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM ends a backup like Ctrl-C: its exit code, no file, and the process's own handler is back."""
    folder = tmp_path / "backups"
    folder.mkdir()
    monkeypatch.setattr(Progress, "update", lambda progress, done, rows: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    url = busy_fleet.settings.get_database_url()
    assert main(["backup", str(folder / "backup"), "--db-url", url]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(folder.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_closed_users_tables_are_backed_up_and_copied(busy_fleet: DatabaseFactory, tmp_path: Path) -> None:
    """`require_tenant` is for bots: these tools go round it, and read no user's rows for anybody."""
    strict = busy_fleet.settings.model_copy(update={"require_tenant": True})
    with DatabaseFactory(strict) as db, DatabaseFactory(f"sqlite:///{tmp_path / 'copy.db'}") as copy:
        expected = everything(busy_fleet)
        back_up(db, tmp_path / "backup")
        restore(db, tmp_path / "backup", force=True)
        assert everything(busy_fleet) == expected
        assert copy_database(db, copy).rows["users"] == 2
        assert purge_trades(db, datetime.now(UTC)).rows == 0


def test_an_open_session_in_memory_is_refused(tmp_path: Path) -> None:
    """It shares the one connection: its half-done work would be backed up, or overwritten in the middle."""
    with DatabaseFactory("sqlite:///:memory:") as db:
        db.create_tables()
        back_up(db, tmp_path / "backup")
        with db.get_session() as session:
            session.add(User(username="half-done"))
            session.flush()
            for attempt in (back_up, restore):
                with pytest.raises(BackupError, match="still open; close it first"):
                    attempt(db, tmp_path / "backup", force=True)


def test_a_damaged_database_is_restored(tmp_path: Path) -> None:
    """With `force`; or, where SQLite cannot open it any more, beside the one moved away."""
    path = tmp_path / "bot.db"
    with DatabaseFactory(f"sqlite:///{path}") as db:
        db.create_tables()
        fill(db, 2_000)
        back_up(db, tmp_path / "backup")
        expected = everything(db)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(len(whole) - middle))
    with DatabaseFactory(f"sqlite:///{path}") as db:
        restore(db, tmp_path / "backup", force=True)
        assert everything(db) == expected
    for damaged in (whole[:4096] + bytes(len(whole) - 4096), b"rubbish" * 2_000):
        path.write_bytes(damaged)
        with DatabaseFactory(f"sqlite:///{path}") as db:
            for force in (False, True):
                with pytest.raises(BackupError, match=r"is damaged .*; move it out of the way .* keep them"):
                    restore(db, tmp_path / "backup", force=force)
        assert path.read_bytes() == damaged
        path.unlink()
        with DatabaseFactory(f"sqlite:///{path}") as db:
            restore(db, tmp_path / "backup")
            assert everything(db) == expected


def test_policies_and_grants_come_back(
    policed_fleet: DatabaseFactory, empty_postgresql_url: URL, tmp_path: Path
) -> None:
    """All users' rows are in the backup, and in the restored database row-level security is on, as the code has it."""
    run_on_server(empty_postgresql_url, "CREATE ROLE backup_reader")
    try:
        with policed_fleet.get_session() as session:
            session.execute(text("GRANT SELECT ON public_trades TO backup_reader"))
        expected = everything(policed_fleet)
        back_up(policed_fleet, tmp_path / "backup")
        with policed_fleet.get_session() as session:
            session.execute(text("REVOKE ALL ON public_trades FROM backup_reader"))
    finally:
        run_on_server(empty_postgresql_url, "DROP ROLE IF EXISTS backup_reader")
    with DatabaseFactory(empty_postgresql_url) as db:
        report = restore(db, tmp_path / "backup")
        assert report.missing_roles == ["backup_reader"]
        assert everything(db) == expected
        assert db.row_security_status().enabled
        with db.get_session(user_id="ann") as session:
            assert session.scalars(select(User.user_id)).all() == ["ann"]
        assert restore(db, tmp_path / "backup", force=True).rows == report.rows


def test_a_role_that_is_not_there_is_made(
    policed_fleet: DatabaseFactory, empty_postgresql_url: URL, tmp_path: Path
) -> None:
    """A dump does not hold roles; where the login may not make one, the statements for an administrator are named."""
    renamed = policed_fleet.settings.model_copy(update={"tenant_role": "backup_tenant"})
    with DatabaseFactory(renamed) as db:
        db.enable_row_security()
        back_up(db, tmp_path / "backup")
        db.drop_tables()
        with db.get_session() as session:
            session.execute(text("DROP OWNED BY backup_tenant"))
            session.execute(text("DROP ROLE backup_tenant"))
            session.execute(text("CREATE ROLE backup_login LOGIN"))
            session.execute(text(f"ALTER DATABASE {empty_postgresql_url.database} OWNER TO backup_login"))
    try:
        login = empty_postgresql_url.set(username="backup_login")
        with DatabaseFactory(login) as db:
            with pytest.raises(RowSecurityError, match='CREATE ROLE "backup_tenant" NOLOGIN'):
                restore(db, tmp_path / "backup")
            assert everything(db) == {}
        with DatabaseFactory(
            DatabaseSettings(
                database_url=str(empty_postgresql_url.render_as_string(False)), tenant_role="backup_tenant"
            )
        ) as db:
            restore(db, tmp_path / "backup")
            assert db.row_security_status().enabled
    finally:
        run_on_server(
            empty_postgresql_url,
            f"ALTER DATABASE {empty_postgresql_url.database} OWNER TO postgres",
            "DROP OWNED BY backup_tenant, backup_login",
            "DROP ROLE backup_tenant, backup_login",
        )


def test_a_login_that_policies_bind_makes_no_backup(policed_fleet: DatabaseFactory, tmp_path: Path) -> None:
    """It would be a part of the rows, which nobody would notice."""
    url = policed_fleet.engine.url
    run_on_server(
        url, "CREATE ROLE backup_reader LOGIN", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO backup_reader"
    )
    try:
        with (
            DatabaseFactory(url.set(username="backup_reader")) as db,
            pytest.raises(BackupError, match="connect as the owner"),
        ):
            back_up(db, tmp_path / "backup")
        assert not (tmp_path / "backup").exists()
    finally:
        run_on_server(url, "DROP OWNED BY backup_reader", "DROP ROLE backup_reader")


def test_tools_that_are_missing_are_named(postgresql_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version that is needed and the option that says where they are."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with DatabaseFactory(postgresql_url) as db:
        for attempt in (back_up, restore):
            path = tmp_path / attempt.__name__
            if attempt is restore:
                path.write_bytes(postgresql_backup.MAGIC)
            with pytest.raises(BackupError, match=r"pg_dump is not in the PATH; .*version \d+ or newer.*--pg-bin"):
                attempt(db, path)
            with pytest.raises(BackupError, match=f"pg_dump is not in {tmp_path}"):
                attempt(db, path, pg_bin=tmp_path)


def test_tools_older_than_the_server_are_named(postgresql_url: URL, tmp_path: Path) -> None:
    """Before the dump is tried."""
    program = tmp_path / "pg_dump"
    program.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n")
    program.chmod(0o755)
    with (
        DatabaseFactory(postgresql_url) as db,
        pytest.raises(BackupError, match="of version 9, older than the server's"),
    ):
        back_up(db, tmp_path / "backup", pg_bin=tmp_path)


def test_the_password_is_in_no_argument_and_no_error(
    postgresql_url: URL, postgresql_tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pg_dump finds it in its environment, and no other secret; pg_restore, which does not connect, finds none."""
    for name in ("pg_dump", "pg_restore"):
        program = tmp_path / name
        program.write_text(
            f'#!/bin/sh\ncd {tmp_path}\nif [ "$1" != --version ]; then echo "$@" >>arguments; env >>environment\n'
            f'echo "{name}: error: no luck" >&2; exit 1; fi\nexec {postgresql_tools / name} "$@"\n'
        )
        program.chmod(0o755)
    url = postgresql_url.set(password="backup-password-Xk3")
    monkeypatch.setenv("GRIDBOT_DB_ENCRYPTION_KEYS", RING)
    monkeypatch.setenv("A_TOKEN", "backup-token-Xk3")
    with DatabaseFactory(url) as db, pytest.raises(BackupError, match=r"^pg_dump failed: error: no luck$"):
        back_up(db, tmp_path / "backup", pg_bin=tmp_path)
    assert "backup-password-Xk3" not in (tmp_path / "arguments").read_text()
    assert "PGPASSWORD=backup-password-Xk3" in (tmp_path / "environment").read_text()
    (tmp_path / "environment").unlink()
    (tmp_path / "archive").write_bytes(postgresql_backup.MAGIC)
    monkeypatch.setenv("PGPASSWORD", "backup-password-Xk3")
    with DatabaseFactory(url) as db, pytest.raises(InputError, match="no luck"):
        restore(db, tmp_path / "archive", pg_bin=tmp_path)
    environment = (tmp_path / "environment").read_text()
    for secret in (RING, "backup-token-Xk3", "backup-password-Xk3"):
        assert secret not in environment
    assert not (tmp_path / "backup").exists()


def wrapped(folder: Path, tools: Path, dump: str = '"$@"', restore: str = '"$@"') -> Path:
    """A folder of pg_dump and pg_restore that are called with other arguments, or whose output is changed."""
    for name, arguments in (("pg_dump", dump), ("pg_restore", restore)):
        program = folder / name
        program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec {tools / name} "$@"\n{tools / name} {arguments}\n')
        program.chmod(0o755)
    return folder


def test_a_dump_without_all_rows_is_not_kept(
    policed_fleet: DatabaseFactory, postgresql_tools: Path, tmp_path: Path
) -> None:
    """A dump that ends well, but has left the rows of a table out, is no backup."""
    tools = wrapped(tmp_path, postgresql_tools, dump='"$@" --exclude-table-data=users')
    with pytest.raises(BackupError, match="does not hold what the database does"):
        back_up(policed_fleet, tmp_path / "backup", pg_bin=tools)
    assert not (tmp_path / "backup").exists()


def test_a_restore_that_lost_a_row_is_undone(
    policed_fleet: DatabaseFactory, postgresql_tools: Path, tmp_path: Path
) -> None:
    """The rows are counted before they are committed."""
    back_up(policed_fleet, tmp_path / "backup")
    before = everything(policed_fleet)
    tools = wrapped(
        tmp_path, postgresql_tools, restore='"$@" | if [ $1 = --clean ]; then sed /exec-ann/d; else cat; fi'
    )
    with pytest.raises(BackupError, match="undone, the database is as it was"):
        restore(policed_fleet, tmp_path / "backup", force=True, pg_bin=tools)
    assert everything(policed_fleet) == before
    assert policed_fleet.row_security_status().enabled


def test_an_sqlite_backup_without_all_rows_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted in the transaction of the backup has to be in the file."""
    with DatabaseFactory(f"sqlite:///{tmp_path / 'bot.db'}") as db:
        db.create_tables()
        counts = iter([{"users": 1}, {}])  # of the database, then of its copy
        monkeypatch.setattr(sqlite_backup, "row_counts", lambda connection: row_counts(connection) | next(counts))
        with pytest.raises(BackupError, match="nothing was kept"):
            back_up(db, tmp_path / "backup")
        assert not (tmp_path / "backup").exists()


def test_the_commands_back_up_and_restore(
    busy_fleet: DatabaseFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str], postgresql_tools: Path
) -> None:
    """Exit codes, words for people, JSON for machines."""
    db = busy_fleet
    url = db.settings.get_database_url()
    path = str(tmp_path / "backup")
    expected = everything(db)
    found = shutil.which("mariadb-dump") if db.settings.port.name == "mysql" else postgresql_tools / "pg_dump"
    assert main(["backup", path, "--db-url", url, "--pg-bin", str(Path(str(found)).parent)]) == 0
    said = capsys.readouterr()
    assert "verified: api_credentials 2, audit_log 0, bybit_accounts 2, private_executions 2" in said.out
    assert main(["backup", path, "--db-url", url]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["backup", path, "--db-url", url, "--force", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"]["users"] == 2
    assert told["size"] == os.path.getsize(path)
    assert main(["restore", path, "--db-url", url]) == 1
    assert "give --force" in capsys.readouterr().err
    assert main(["restore", path, "--db-url", url, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == told["rows"]
    assert everything(db) == expected


def test_an_older_backup_says_how_to_go_on(
    busy_fleet: DatabaseFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Restoring the state before a migration is what backups are for."""
    url = busy_fleet.settings.get_database_url()
    with busy_fleet.get_session() as session:
        session.execute(text("UPDATE shared_db_version SET revision = '0002_run_heartbeat'"))
    try:
        assert main(["backup", str(tmp_path / "backup"), "--db-url", url]) == 0
        assert main(["restore", str(tmp_path / "backup"), "--db-url", url, "--force"]) == 0
        assert "python -m shared.db migrate up" in capsys.readouterr().err
    finally:
        with busy_fleet.get_session() as session:
            session.execute(text("UPDATE shared_db_version SET revision = :head"), {"head": SCHEMA_REVISION})


def test_two_backups_at_once_are_both_whole(busy_fleet: DatabaseFactory, tmp_path: Path) -> None:
    """Also when they write the same file."""
    reports = in_threads(2, lambda number: back_up(busy_fleet, tmp_path / "backup", force=True))
    assert reports[0].rows == reports[1].rows
    restore(busy_fleet, tmp_path / "backup", force=True)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_times_are_not_shifted(
    db: DatabaseFactory, make_target: Callable[[DatabaseFactory], DatabaseFactory], tmp_path: Path
) -> None:
    """To the microsecond, at the ends of what is allowed."""
    instants = [
        datetime(1, 1, 2, tzinfo=UTC),
        datetime(9999, 12, 30, tzinfo=UTC),
        datetime(2025, 1, 1, 0, 0, 0, 1, UTC),
    ]
    with db.get_session() as session:
        session.add_all(PublicTrade(**trade_values(number, exchange_ts=when)) for number, when in enumerate(instants))
    back_up(db, tmp_path / "backup")
    target = make_target(db)
    restore(target, tmp_path / "backup")
    with target.get_session() as session:
        assert set(session.scalars(select(PublicTrade.exchange_ts))) == set(instants)
