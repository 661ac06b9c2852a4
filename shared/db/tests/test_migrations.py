"""Revisions: each goes up, down and up with rows in it, and together they make what the models say."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import URL, Connection, select, text

import shared.db.migrations as migrations
from shared.db import AuditLog, DatabaseFactory, RunRepository, User
from shared.db.dialects import MYSQL, POSTGRESQL
from shared.db.errors import DataLossError, MigrationError
from shared.db.migrations import catalog, runner
from shared.db.migrations.revisions import Revisions
from shared.db.models import Base
from shared.db.schema_version import SCHEMA_REVISION, stamp
from shared.db.tests.migration_support import (
    REVISIONS,
    OwnRevisions,
    contents,
    dumped_schema,
    run_by_hand,
    schema_of,
    seed,
)

_VERSIONS = Path(migrations.__file__).parent / "versions"
# The revision that made the audit log as long as it was optional, and the one that makes it everywhere.
_OPTIONAL, _ALWAYS = "0004_audit_log", "0010_audit_log_always"


def make_optional_log(db: DatabaseFactory) -> None:
    """Make the audit log as earlier releases did, at any revision, where they were asked for it."""
    revision = runner.status(db).database_revision
    run_by_hand(db, runner.sql(db.engine.dialect.name, REVISIONS[REVISIONS.index(_ALWAYS) - 1], _ALWAYS))
    with db.engine.begin() as connection:
        stamp(connection, str(revision))


def test_a_revision_goes_up_down_and_up_without_touching_rows(empty_db: DatabaseFactory) -> None:
    """What each adds, its way back takes away, and every row of any age is there after each way.

    The printed SQL, run by hand, does the same. At the end the schema is what the models say.
    """
    dialect = empty_db.engine.dialect.name
    for before, revision in pairwise(REVISIONS):
        if before != "base":
            seed(empty_db, before[:4])
        old_schema, old_rows = schema_of(empty_db), contents(empty_db)

        assert runner.upgrade(empty_db, revision) == runner.Change(before, revision)
        new_schema = schema_of(empty_db)
        assert (new_schema == old_schema) == (revision == _OPTIONAL), revision
        assert contents(empty_db, like=old_rows) == old_rows, revision
        runner.downgrade(empty_db, before, allow_data_loss=True)
        assert schema_of(empty_db) == old_schema, revision
        assert contents(empty_db) == old_rows, revision

        run_by_hand(empty_db, runner.sql(dialect, before, revision))
        assert schema_of(empty_db) == new_schema, revision
        assert contents(empty_db, like=old_rows) == old_rows, revision
        assert runner.status(empty_db).database_revision == revision
        run_by_hand(empty_db, runner.sql(dialect, revision, before))
        assert schema_of(empty_db) == old_schema, revision
        assert contents(empty_db) == old_rows, revision
        assert runner.status(empty_db).database_revision == (None if before == "base" else before)

        runner.upgrade(empty_db, revision)
        assert schema_of(empty_db) == new_schema, revision
        assert contents(empty_db, like=old_rows) == old_rows, revision
    empty_db.check_schema()
    assert runner.check(empty_db) == []


def test_offline_sql_does_what_an_upgrade_does(empty_db: DatabaseFactory) -> None:
    """From the first revision to the newest and back in one script each, with rows, and as one upgrade leads there."""
    dialect, first = empty_db.engine.dialect.name, REVISIONS[1]
    run_by_hand(empty_db, runner.sql(dialect, revision=first))
    seed(empty_db)
    old_schema, rows = schema_of(empty_db), contents(empty_db)
    run_by_hand(empty_db, runner.sql(dialect, first))
    by_hand = schema_of(empty_db)
    assert contents(empty_db, like=rows) == rows
    empty_db.check_schema()

    run_by_hand(empty_db, runner.sql(dialect, "head", first))
    assert runner.status(empty_db).database_revision == first
    assert schema_of(empty_db) == old_schema
    assert contents(empty_db) == rows
    runner.upgrade(empty_db)
    assert schema_of(empty_db) == by_hand
    assert contents(empty_db, like=rows) == rows
    run_by_hand(empty_db, runner.sql(dialect, "head", "base"))
    assert schema_of(empty_db) == {}


def test_the_whole_way_down_leaves_nothing(empty_db: DatabaseFactory) -> None:
    """From the newest revision with rows back to the empty schema, and up again."""
    runner.upgrade(empty_db)
    seed(empty_db)
    assert runner.downgrade(empty_db, "base", allow_data_loss=True).after == "base"
    assert schema_of(empty_db) == {}
    runner.upgrade(empty_db)
    seed(empty_db)


def test_history_is_one_line_and_the_constant_is_its_end() -> None:
    """One first revision, one last one, no branches; ids are numbered, fit the column, and name their files."""
    names = Revisions().names[1:]
    assert names[-1] == SCHEMA_REVISION
    for number, name in enumerate(names, start=1):
        assert re.fullmatch(f"{number:04}_[a-z0-9_]+", name)
        assert len(name) <= 32
    files = {path.stem for path in _VERSIONS.glob("*.py")}
    assert files == set(names)


def test_every_revision_has_its_note() -> None:
    """NOTES.md has one entry a revision, in order, and no others."""
    notes = (_VERSIONS.parent / "NOTES.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", notes, re.MULTILINE) == list(Revisions().names[:0:-1])


@pytest.mark.parametrize("revision", REVISIONS[1:])
def test_a_revision_names_what_its_downgrade_deletes(revision: str, tmp_path: Path) -> None:
    """`drops` lists exactly the tables and columns that are gone afterwards: the refusal to lose data rests on it."""
    position = REVISIONS.index(revision)
    with DatabaseFactory(f"sqlite:///{tmp_path}/old.db") as db:
        runner.upgrade(db, revision)
        if revision == _OPTIONAL:
            make_optional_log(db)
        new = schema_of(db)
        runner.downgrade(db, REVISIONS[position - 1], allow_data_loss=True)
        gone = {entry for entry in new.keys() - schema_of(db).keys() if entry.kind in ("table", "column")}
    tables = {entry.table for entry in gone if entry.kind == "table"}
    columns = {f"{entry.table}.{entry.name}" for entry in gone if entry.table not in tables}
    assert set(Revisions().drops(position, position - 1)) == tables | columns


def test_the_newest_revision_is_what_create_tables_makes(empty_db: DatabaseFactory) -> None:
    """Both ways to a new database lead to the same one, by its own catalog."""
    runner.upgrade(empty_db)
    upgraded = schema_of(empty_db)
    empty_db.drop_tables()
    assert schema_of(empty_db) == {}
    empty_db.create_tables()
    assert schema_of(empty_db) == upgraded
    assert {entry.table for entry in upgraded} == set(Base.metadata.tables)


def test_the_newest_revision_is_what_create_tables_makes_in_every_word(tmp_path: Path) -> None:
    """On SQLite the two files' CREATE statements are the same text, apart from the order of the parts."""
    with DatabaseFactory(f"sqlite:///{tmp_path}/upgraded.db") as upgraded:
        runner.upgrade(upgraded)
        with DatabaseFactory(f"sqlite:///{tmp_path}/created.db") as created:
            created.create_tables()
            assert _statements(upgraded) == _statements(created)


def test_the_newest_revision_is_what_create_tables_makes_by_pg_dump(
    empty_postgresql_url: URL, postgresql_url: URL
) -> None:
    """On PostgreSQL the server's own dump tool sees no difference either, comments and sequences included."""
    with DatabaseFactory(empty_postgresql_url) as db:
        runner.upgrade(db)
    assert dumped_schema(empty_postgresql_url) == dumped_schema(postgresql_url)


@pytest.mark.parametrize("by_hand", [False, True], ids=["upgrade", "printed SQL"])
@pytest.mark.parametrize("there", [False, True], ids=["no log", "a log"])
@pytest.mark.parametrize("at", [1, REVISIONS.index(_ALWAYS) - 1], ids=["old", "just before"])
def test_a_log_that_was_there_goes_on(empty_db: DatabaseFactory, at: int, there: bool, by_hand: bool) -> None:
    """To be there was to be on: so it is on afterwards, though nothing was in it, and any other one is off."""
    runner.upgrade(empty_db, REVISIONS[at])
    if there:
        make_optional_log(empty_db)
    if by_hand:
        run_by_hand(empty_db, runner.sql(empty_db.engine.dialect.name, REVISIONS[at]))
    else:
        runner.upgrade(empty_db)
    assert runner.check(empty_db) == []
    with empty_db.get_session() as session:
        session.add(User(user_id="ann", username="ann"))
        assert session.scalars(select(AuditLog)).all() == [] or there
    with empty_db.get_session() as session:
        told = [(entry.entity, entry.entity_id) for entry in session.scalars(select(AuditLog).order_by(AuditLog.id))]
    assert told == ([("AuditLog", "recording"), ("User", "ann")] if there else [])


def test_an_older_log_that_is_adopted_goes_on(empty_db: DatabaseFactory) -> None:
    """It looks like one that was never switched on, but for its entries."""
    runner.upgrade(empty_db)
    run_by_hand(empty_db, "INSERT INTO audit_log (action, entity) VALUES ('delete', 'Run');")
    run_by_hand(empty_db, "DROP TABLE shared_db_version;")
    assert runner.adopt(empty_db).after == SCHEMA_REVISION
    with empty_db.get_session() as session:
        session.add(User(username="ann"))
    with empty_db.get_session() as session:
        assert session.scalars(select(AuditLog.entity).order_by(AuditLog.id)).all() == ["Run", "User"]


def test_going_back_keeps_a_log_that_is_on(empty_db: DatabaseFactory) -> None:
    """Earlier code records where the table is there, and nowhere else: so one that is off goes, with leave."""
    runner.upgrade(empty_db)
    before = REVISIONS[REVISIONS.index(_ALWAYS) - 1]
    for recording in (True, False):
        (empty_db.enable_audit if recording else empty_db.disable_audit)()
        with pytest.raises(DataLossError, match="audit_log"):
            runner.downgrade(empty_db, before)
        held = contents(empty_db)["audit_log"]
        runner.downgrade(empty_db, before, allow_data_loss=True)
        assert contents(empty_db).get("audit_log") == (held if recording else None)
        runner.upgrade(empty_db)
        assert (contents(empty_db)["audit_log"] == held) == recording
        assert runner.check(empty_db) == []


def test_offline_sql_for_sqlite_is_every_statement_with_its_values(own_revisions: OwnRevisions) -> None:
    """A rebuild is spelt out, values stand in their places, questions and a trigger's own steps are left out."""
    revision = own_revisions.add(
        """
        with op.batch_alter_table("strategies", recreate="always"): pass
        op.execute("CREATE TRIGGER one AFTER INSERT ON users BEGIN DELETE FROM users WHERE username = new.email; END")
        users = sa.table("users", sa.column("user_id"), sa.column("username"))
        op.execute("-- Why\\nINSERT INTO users (username) VALUES ('it''s me')")
        op.execute(users.update().values(username="it's you"))
        """
    )
    script = runner.sql("sqlite", SCHEMA_REVISION, revision)
    assert "INSERT INTO _alembic_tmp_strategies" in script
    assert "-- Why\nINSERT INTO users (username) VALUES ('it''s me');" in script
    assert "UPDATE users SET username='it''s you';" in script
    assert script.count("DELETE FROM users") == 1
    assert "table_info" not in script
    assert (script.count("BEGIN IMMEDIATE"), script.count("COMMIT")) == (1, 1)


@pytest.mark.parametrize("revision", REVISIONS[1:])
def test_the_sql_for_postgresql_has_no_known_risk(tmp_path: Path, revision: str) -> None:
    """Squawk, which knows what locks or rewrites a big table, finds nothing in any revision that is not meant."""
    meant = {
        "prefer-identity": "BIGSERIAL is what create_tables() makes of a key that counts up",
        "prefer-text-field": "the specification gives the lengths",
        "require-statement-timeout": "lock_timeout bounds the waiting; building a big index must be able to finish",
    }
    meant |= runpy.run_path(str(_VERSIONS / f"{revision}.py")).get("accepted", {})
    script = tmp_path / f"{revision}.sql"
    before = REVISIONS[REVISIONS.index(revision) - 1]
    script.write_text(runner.sql("postgresql", before, revision), encoding="utf-8")
    done = _linted(script, "--exclude", ",".join(meant))
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_squawk_would_find_a_risk(tmp_path: Path) -> None:
    """The linter is there and at work: an index built in the way of writers is a finding."""
    script = tmp_path / "risky.sql"
    script.write_text("CREATE INDEX ix_users_status ON users (status);", encoding="utf-8")
    done = _linted(script)
    assert done.returncode == 1
    assert "require-concurrent-index-creation" in done.stdout


def test_a_failed_check_leaves_no_scratch_schema_behind(empty_db: DatabaseFactory) -> None:
    """Whatever happens while the expected schema is built, nothing of it stays in the database."""
    runner.upgrade(empty_db)
    before = _schemas(empty_db)

    def fail(scratch: Connection) -> None:
        scratch.execute(text("CREATE TABLE half_done (id INTEGER)"))
        raise RuntimeError

    with empty_db.engine.begin() as connection, pytest.raises(RuntimeError):
        catalog.built_by(connection, fail)
    assert runner.check(empty_db) == []
    assert _schemas(empty_db) == before


def _linted(script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # Beside this Python, or in the environment that it is layered upon.
    squawk = shutil.which("squawk", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert squawk is not None
    return subprocess.run([squawk, "--reporter", "gcc", *options, script], capture_output=True, text=True)


def _schemas(db: DatabaseFactory) -> list[str]:
    if db.settings.is_sqlite:
        return []
    catalog = "information_schema.schemata" if db.settings.port is MYSQL else "pg_namespace"
    name = "schema_name" if db.settings.port is MYSQL else "nspname"
    with db.engine.connect() as connection:
        return sorted(connection.scalars(text(f"SELECT {name} FROM {catalog} WHERE {name} NOT LIKE 'pg_%'")))


def _statements(db: DatabaseFactory) -> dict[str, set[str]]:
    with db.engine.connect() as connection:
        rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")).all()
    # A table that was rebuilt has its name in quotes; a column that was added stands in the same line.
    return {
        name: {part.strip(" ,\t") for part in re.split(r"\n|, (?=CONSTRAINT|\w+ [A-Z])", sql.replace('"', ""))}
        for name, sql in rows
    }


def test_only_the_newest_active_credential_of_an_account_stays_active(empty_db: DatabaseFactory) -> None:
    """0003 ends the older ones before it forbids them, and touches no other account and no ended one."""
    runner.upgrade(empty_db, "0002_run_heartbeat")
    seed(empty_db)
    with empty_db.engine.begin() as connection:
        for key, account, active, when in (
            ("c2", "a1", True, "2025-05-05 00:00:00.000000"),
            ("c3", "a1", True, "2025-05-05 00:00:00.000000"),
            ("c4", "a1", False, "2025-05-06 00:00:00.000000"),
            ("c5", "a2", True, "2025-05-01 00:00:00.000000"),
        ):
            connection.execute(
                text("INSERT INTO api_credentials VALUES (:key, :account, 'k', 's', :active, :made, NULL)"),
                {"key": key, "account": account, "active": active, "made": when},
            )
    runner.upgrade(empty_db)
    with empty_db.engine.connect() as connection:
        query = text("SELECT credential_id FROM api_credentials WHERE is_active ORDER BY 1")
        still_active = connection.scalars(query).all()
    assert still_active == ["c3", "c5"]


@pytest.mark.parametrize(
    ("revision", "change", "named"),
    [
        (
            "0005_symbol_32",
            "UPDATE public_trades SET symbol = 'BTC-25JUN27-106000-C-USDT' WHERE trade_id IN ('t0', 't1')",
            "public_trades.symbol would have 20 characters, .* break it: BTC-25JUN27-106000-C-USDT; delete the rows",
        ),
        (
            "0006_recording_runs",
            "UPDATE runs SET run_type = 'recording' WHERE run_id <> 'r0'",
            "these rows break it: r1, r2; give these runs another type, or delete them",
        ),
    ],
)
def test_going_back_names_the_rows_that_the_older_schema_cannot_hold(
    empty_db: DatabaseFactory, revision: str, change: str, named: str
) -> None:
    """A step back that would need to change rows is refused, with the rows and what to do, and undoes nothing."""
    runner.upgrade(empty_db, revision)
    seed(empty_db)
    with empty_db.engine.begin() as connection:
        connection.execute(text(change))
    schema, rows = schema_of(empty_db), contents(empty_db)
    with pytest.raises(MigrationError, match=named):
        runner.downgrade(empty_db, REVISIONS[REVISIONS.index(revision) - 1])
    assert (schema_of(empty_db), contents(empty_db)) == (schema, rows)
    assert runner.status(empty_db).database_revision == revision


def test_runs_that_run_beside_each_other_are_named_before_they_are_forbidden(empty_db: DatabaseFactory) -> None:
    """0007 says which they are and how to end one, changes nothing, and goes through when that was done."""
    runner.upgrade(empty_db, "0006_recording_runs")
    seed(empty_db)
    with empty_db.engine.begin() as connection:
        connection.execute(text("UPDATE runs SET status = 'running'"))
        connection.execute(text("UPDATE runs SET run_type = 'shadow' WHERE run_id = 'r2'"))
    schema, rows = schema_of(empty_db), contents(empty_db)
    with pytest.raises(MigrationError, match=r"may be running, and these rows break it: r0, r1; .*fail\(run_id\)"):
        runner.upgrade(empty_db)
    assert (schema_of(empty_db), contents(empty_db)) == (schema, rows)
    with empty_db.get_session() as session:
        RunRepository.across_users(session).fail("r1")
    assert runner.upgrade(empty_db).after == SCHEMA_REVISION


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("user_id = 'u2'", "the user_id of a run must be that of the row of bybit_accounts which it names"),
        ("account_id = 'a2', user_id = 'u2'", "the account_id of a run must be that of the row of strategies"),
    ],
)
def test_runs_that_cross_users_are_named_before_they_are_forbidden(
    empty_db: DatabaseFactory, wrong: str, named: str
) -> None:
    """0009 says which they are, changes nothing, and goes through when they were corrected."""
    runner.upgrade(empty_db, "0008_keys_for_runs")
    seed(empty_db)
    with empty_db.engine.begin() as connection:
        connection.execute(text(f"UPDATE runs SET {wrong} WHERE run_id IN ('r1', 'r2')"))
    schema, rows = schema_of(empty_db), contents(empty_db)
    with pytest.raises(MigrationError, match=f"{named}.*: r1, r2; correct the .* of these runs, or delete them"):
        runner.upgrade(empty_db)
    assert (schema_of(empty_db), contents(empty_db)) == (schema, rows)
    with empty_db.engine.begin() as connection:
        connection.execute(text("UPDATE runs SET user_id = 'u1', account_id = 'a1'"))
    assert runner.upgrade(empty_db).after == SCHEMA_REVISION


def test_the_audit_log_is_checked_with_its_triggers(empty_db: DatabaseFactory) -> None:
    """Without one of them the schema differs; to switch the log on makes it again."""
    runner.upgrade(empty_db)
    policed = empty_db.settings.port is POSTGRESQL
    trigger = "audit_log_append_only ON audit_log" if policed else "audit_log_no_delete"
    with empty_db.engine.begin() as connection:
        connection.execute(text(f"DROP TRIGGER {trigger}"))
    assert [(found.entry.kind, found.found) for found in runner.check(empty_db)] == [("trigger", None)]
    empty_db.enable_audit()
    assert runner.check(empty_db) == []
