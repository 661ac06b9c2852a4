"""The comparison of a live schema with the code sees every difference, and adopting rests on it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import URL, select, text

from shared.db import Base, DatabaseFactory, PrivateExecution
from shared.db.dialects import MYSQL
from shared.db.errors import SchemaDriftError, SchemaVersionError
from shared.db.migrations import catalog, runner
from shared.db.schema_version import SCHEMA_REVISION
from shared.db.tests.migration_support import REVISIONS, contents, run_by_hand, schema_of, seed
from shared.db.tests.support import run_script

# What somebody does to a PostgreSQL database by hand, and what the comparison calls it: kind, name, which side.
_BY_HAND_POSTGRESQL = {
    "column dropped": ("ALTER TABLE runs DROP COLUMN host", "column runs.host", "missing"),
    "column added": ("ALTER TABLE runs ADD COLUMN colour text", "column runs.colour", "extra"),
    "fewer decimals": (
        "ALTER TABLE public_trades ALTER COLUMN price TYPE numeric(20, 6)",
        "column public_trades.price",
        "differs",
    ),
    "another type": ("ALTER TABLE users ALTER COLUMN email TYPE text", "column users.email", "differs"),
    "another collation": (
        'ALTER TABLE runs ALTER COLUMN host TYPE varchar(255) COLLATE "default"',
        "column runs.host",
        "differs",
    ),
    "zone lost": ("ALTER TABLE runs ALTER COLUMN end_ts TYPE timestamp", "column runs.end_ts", "differs"),
    "null allowed": ("ALTER TABLE users ALTER COLUMN username DROP NOT NULL", "column users.username", "differs"),
    "default dropped": ("ALTER TABLE users ALTER COLUMN status DROP DEFAULT", "column users.status", "differs"),
    "check dropped": (
        "ALTER TABLE users DROP CONSTRAINT ck_users_status",
        "constraint users.ck_users_status",
        "missing",
    ),
    "check widened": (
        "ALTER TABLE users DROP CONSTRAINT ck_users_status, "
        "ADD CONSTRAINT ck_users_status CHECK (status IN ('active', 'suspended', 'deleted', 'locked'))",
        "constraint users.ck_users_status",
        "differs",
    ),
    "check not validated": (
        "ALTER TABLE users DROP CONSTRAINT ck_users_status, "
        "ADD CONSTRAINT ck_users_status CHECK (status IN ('active', 'suspended', 'deleted')) NOT VALID",
        "constraint users.ck_users_status",
        "differs",
    ),
    "unique dropped": (
        "ALTER TABLE users DROP CONSTRAINT uq_users_email",
        "constraint users.uq_users_email",
        "missing",
    ),
    "cascade lost": (
        "ALTER TABLE runs DROP CONSTRAINT fk_runs_user_id_users, "
        "ADD CONSTRAINT fk_runs_user_id_users FOREIGN KEY (user_id) REFERENCES users (user_id)",
        "constraint runs.fk_runs_user_id_users",
        "differs",
    ),
    "index dropped": ("DROP INDEX ix_runs_status", "index runs.ix_runs_status", "missing"),
    "index made partial": (
        "DROP INDEX ix_runs_status; CREATE INDEX ix_runs_status ON runs (status) WHERE status = 'running'",
        "index runs.ix_runs_status",
        "differs",
    ),
    "index added": ("CREATE INDEX ix_mine ON runs (end_ts)", "index runs.ix_mine", "extra"),
    "trigger added": (
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
        "CREATE TRIGGER no_trades BEFORE INSERT ON public_trades FOR EACH ROW EXECUTE FUNCTION nothing()",
        "trigger public_trades.no_trades",
        "extra",
    ),
    "policy added": ("CREATE POLICY everyone ON users USING (true)", "policy users.everyone", "extra"),
    "row security on": (
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY",
        "row-level security of users.users",
        "extra",
    ),
    "table dropped": ("DROP TABLE private_executions", "table private_executions", "missing"),
    "not logged": ("ALTER TABLE public_trades SET UNLOGGED", "table public_trades", "differs"),
}
# SQLite has no ALTER for these; what a table was made with is kept as text.
_REWRITE = "PRAGMA writable_schema=ON; UPDATE sqlite_master SET sql = replace(sql, {}) WHERE name = {}"
_BY_HAND_SQLITE = {
    "column dropped": ("ALTER TABLE runs DROP COLUMN host", "column runs.host", "missing"),
    "column added": ("ALTER TABLE runs ADD COLUMN colour TEXT", "column runs.colour", "extra"),
    "another type": (
        _REWRITE.format("'price REAL', 'price NUMERIC'", "'public_trades'"),
        "column public_trades.price",
        "differs",
    ),
    "null allowed": (
        _REWRITE.format("'username VARCHAR(100) NOT NULL', 'username VARCHAR(100)'", "'users'"),
        "column users.username",
        "differs",
    ),
    "default changed": (
        _REWRITE.format("'''active'' NOT', '''deleted'' NOT'", "'users'"),
        "column users.status",
        "differs",
    ),
    "check widened": (
        _REWRITE.format("'''deleted'')', '''deleted'', ''locked'')'", "'users'"),
        "constraint users.ck_users_status",
        "differs",
    ),
    "case of a word": (
        _REWRITE.format("'''Buy''', '''buy'''", "'public_trades'"),
        "constraint public_trades.ck_public_trades_side",
        "differs",
    ),
    "cascade lost": (
        _REWRITE.format(
            "'REFERENCES runs (run_id) ON DELETE CASCADE', 'REFERENCES runs (run_id)'", "'private_executions'"
        ),
        "constraint private_executions.fk_private_executions_run_id_runs",
        "differs",
    ),
    "index dropped": ("DROP INDEX ix_runs_status", "index runs.ix_runs_status", "missing"),
    "index made partial": (
        "DROP INDEX ix_runs_status; CREATE INDEX ix_runs_status ON runs (status) WHERE status = 'running'",
        "index runs.ix_runs_status",
        "differs",
    ),
    "index made unique": (
        "DROP INDEX ix_runs_status; CREATE UNIQUE INDEX ix_runs_status ON runs (status)",
        "index runs.ix_runs_status",
        "differs",
    ),
    "trigger added": (
        "CREATE TRIGGER no_trades BEFORE INSERT ON public_trades BEGIN SELECT RAISE(IGNORE); END",
        "trigger public_trades.no_trades",
        "extra",
    ),
    "table dropped": ("DROP TABLE private_executions", "table private_executions", "missing"),
}


def _sides(db: DatabaseFactory) -> dict[str, str]:
    return {
        str(difference.entry): "missing"
        if difference.found is None
        else "extra"
        if difference.expected is None
        else "differs"
        for difference in runner.check(db)
    }


@pytest.mark.parametrize("deed", _BY_HAND_POSTGRESQL)
def test_a_change_by_hand_is_seen_on_postgresql(postgresql_url: URL, deed: str) -> None:
    """Whatever was changed behind the revisions' back is named, and nothing else is."""
    script, entry, side = _BY_HAND_POSTGRESQL[deed]
    with DatabaseFactory(postgresql_url) as db:
        run_by_hand(db, script)
        assert _sides(db) == {entry: side}


@pytest.mark.parametrize("deed", _BY_HAND_SQLITE)
def test_a_change_by_hand_is_seen_on_sqlite(tmp_path: Path, deed: str) -> None:
    """Whatever was changed behind the revisions' back is named, and nothing else is."""
    script, entry, side = _BY_HAND_SQLITE[deed]
    with DatabaseFactory(f"sqlite:///{tmp_path}/grid_bot.db") as db:
        db.create_tables()
        run_by_hand(db, script)
        assert _sides(db) == {entry: side}


def test_an_index_that_failed_to_build_is_seen(postgresql_url: URL) -> None:
    """What a failed CREATE INDEX CONCURRENTLY leaves behind has the name of the index and is not used."""
    with DatabaseFactory(postgresql_url) as db:
        seed(db)
        run_by_hand(db, "DROP INDEX ix_runs_status")
        with pytest.raises(AssertionError, match="could not create unique index"):
            run_by_hand(db, "CREATE UNIQUE INDEX CONCURRENTLY ix_runs_status ON runs (status)")
        (difference,) = runner.check(db)
        assert str(difference.entry) == "index runs.ix_runs_status"
        assert difference.found is not None
        assert difference.found.endswith("INVALID")


def test_a_difference_says_what_is_and_what_should_be(postgresql_url: URL) -> None:
    """A person can mend the schema from the message alone."""
    with DatabaseFactory(postgresql_url) as db:
        run_by_hand(
            db, "ALTER TABLE users ALTER COLUMN email TYPE text; DROP INDEX ix_runs_status; CREATE TABLE mine ()"
        )
        assert runner.not_ours(db) == ["mine"]
        assert list(map(str, runner.check(db))) == [
            "index runs.ix_runs_status is missing",
            "column users.email is 'text' and should be 'character varying(255) COLLATE \"C\"'",
        ]


def test_policies_are_the_codes_while_row_security_is_on(postgresql_url: URL) -> None:
    """Enabled by the code they are expected, as the code has them: altered, dropped or added by hand they are named."""
    with DatabaseFactory(postgresql_url) as db:
        db.enable_row_security()
        assert runner.check(db) == []
        run_by_hand(db, "ALTER POLICY shared_db_own_rows ON runs USING (true)")
        run_by_hand(db, "DROP POLICY shared_db_own_rows ON users")
        run_by_hand(db, "CREATE POLICY everyone ON strategies USING (true)")
        run_by_hand(db, "ALTER TABLE bybit_accounts DISABLE ROW LEVEL SECURITY")
        run_by_hand(db, "ALTER TABLE runs FORCE ROW LEVEL SECURITY")
        assert _sides(db) == {
            "policy runs.shared_db_own_rows": "differs",
            "policy users.shared_db_own_rows": "missing",
            "policy strategies.everyone": "extra",
            "row-level security of bybit_accounts.bybit_accounts": "missing",
            "row-level security of runs.runs": "differs",
        }
        db.disable_row_security()
        run_by_hand(db, "DROP POLICY everyone ON strategies; ALTER TABLE runs NO FORCE ROW LEVEL SECURITY")
        assert runner.check(db) == []


def test_an_upgrade_extends_row_security_to_what_is_new(postgresql_url: URL) -> None:
    """Where policies are in force, an upgrade leaves none missing; where they are not, it adds none."""
    with DatabaseFactory(postgresql_url) as db:
        runner.downgrade(db, "base", allow_data_loss=True)
        runner.upgrade(db)
        assert not db.row_security_status().enabled
        db.enable_row_security()
        runner.downgrade(db, "0001", allow_data_loss=True)
        run_by_hand(db, "DROP POLICY shared_db_own_rows ON runs")
        runner.upgrade(db)
        assert db.row_security_status().enabled


def test_checking_writes_nothing_and_waits_for_nobody(empty_db: DatabaseFactory) -> None:
    """A writer in the middle of a transaction neither stops a check nor is stopped by it."""
    runner.upgrade(empty_db)
    seed(empty_db)
    rows = contents(empty_db)
    with empty_db.get_session() as writer:
        writer.execute(text("UPDATE runs SET host = 'here'"))
        assert runner.check(empty_db) == []
        assert runner.status(empty_db).state == "current"
        writer.rollback()
    assert contents(empty_db) == rows


def test_a_database_without_a_revision_is_adopted_at_the_one_it_is_at(empty_db: DatabaseFactory) -> None:
    """The tables tell their age; upgrades go on from there, and every row of any age stays."""
    for revision in REVISIONS[1:]:
        runner.upgrade(empty_db, revision)
        seed(empty_db, revision[:4])
        rows = contents(empty_db)
        if revision.startswith("0003_"):
            continue  # without an audit log 0004 has the same schema, which is adopted as the newer one
        run_by_hand(empty_db, "DROP TABLE shared_db_version")
        assert runner.status(empty_db).state == "unversioned"
        assert runner.adopt(empty_db) == runner.Change("base", revision)
        assert contents(empty_db) == rows
    assert runner.check(empty_db) == []


def test_a_database_made_by_the_models_alone_is_adopted(empty_db: DatabaseFactory) -> None:
    """`Base.metadata.create_all`, as people write it, makes what the newest revision makes."""
    Base.metadata.create_all(empty_db.engine)
    assert runner.check(empty_db) == []
    assert runner.adopt(empty_db).after == SCHEMA_REVISION
    assert runner.adopt(empty_db) == runner.Change(SCHEMA_REVISION, SCHEMA_REVISION)
    empty_db.check_schema()


def test_row_security_does_not_stand_in_the_way_of_adopting(postgresql_url: URL) -> None:
    """Policies are no revision's work: a database that has them is adopted all the same."""
    with DatabaseFactory(postgresql_url) as db:
        db.enable_row_security()
        run_by_hand(db, "DROP TABLE shared_db_version")
        assert runner.adopt(db).after == SCHEMA_REVISION


def test_a_database_that_differs_is_not_adopted(empty_db: DatabaseFactory) -> None:
    """What differs is listed, and no revision is written down."""
    Base.metadata.create_all(empty_db.engine)
    on = " ON runs" if empty_db.settings.port is MYSQL else ""
    run_by_hand(empty_db, f"DROP INDEX ix_runs_status{on}; ALTER TABLE users ADD COLUMN nickname VARCHAR(20)")
    with pytest.raises(SchemaDriftError) as refused:
        runner.adopt(empty_db)
    assert [str(difference) for difference in refused.value.differences] == [
        "index runs.ix_runs_status is missing",
        "column users.nickname is in the database but not in the models",
    ]
    assert "ix_runs_status is missing; column users.nickname" in str(refused.value)
    assert runner.status(empty_db).state == "unversioned"


@pytest.mark.parametrize(("start", "state"), [("base", "empty"), ("0001", "behind")])
def test_only_a_schema_of_this_age_is_compared_or_adopted(empty_db: DatabaseFactory, start: str, state: str) -> None:
    """An older schema differs by its pending revisions, which is said in place of a list of differences."""
    runner.upgrade(empty_db, start)
    for question in (runner.check, runner.adopt):
        with pytest.raises(SchemaVersionError) as refused:
            question(empty_db)
        assert refused.value.state == state


def test_spelling_is_no_difference_on_sqlite(tmp_path: Path) -> None:
    """Case, quotes, white space and comments of a hand-written CREATE TABLE say nothing; a text's case does."""
    with DatabaseFactory(f"sqlite:///{tmp_path}/grid_bot.db") as db:
        run_by_hand(db, "CREATE TABLE a (id INTEGER NOT NULL, word VARCHAR(9) DEFAULT 'x', CHECK (word <> 'y, (z'))")
        plain = schema_of(db)
        run_by_hand(
            db,
            """DROP TABLE a; create table "a"(`id` integer not null, -- its number, (the)
            [word] varchar ( 9 ) default 'x' /* , ( */ , check("word"<>'y, (z'))""",
        )
        assert schema_of(db) == plain
        run_by_hand(db, "DROP TABLE a; CREATE TABLE a (id INTEGER NOT NULL, word VARCHAR(9) DEFAULT 'X')")
        differences = catalog.compare(plain, schema_of(db))
        assert {difference.entry.kind for difference in differences} == {"column", "constraint"}


def test_a_foreign_database_is_told_in_a_few_words_and_its_rows_come_over(tmp_path: Path) -> None:
    """Made by another program from the same specification: the kinds of differences, and the recipe of the docs."""
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as foreign:
        foreign.executescript(FOREIGN)
    with DatabaseFactory(f"sqlite:///{old}") as db, pytest.raises(SchemaDriftError) as refused:
        runner.adopt(db)
    assert len(refused.value.differences) > 50
    assert 2 < len(refused.value.kinds()) <= 20
    assert len(str(refused.value)) < 2_000
    assert "docs/foreign-databases.md" in str(refused.value)

    page = (Path(runner.__file__).parents[1] / "docs" / "foreign-databases.md").read_text(encoding="utf-8")
    script = page.partition("```python\n")[2].partition("```")[0]
    new = tmp_path / "new.db"
    done = run_script(script, f"sqlite:///{old}", f"sqlite:///{new}")
    assert done.returncode == 0, done.stderr
    with DatabaseFactory(f"sqlite:///{new}") as db, db.get_session(user_id="u1") as session:
        (execution,) = session.scalars(select(PrivateExecution))
        assert (execution.id, execution.exec_price) == (7, Decimal("95900.1"))
        assert execution.exchange_ts == datetime(2025, 5, 3, 11, 7, 0, 123456, tzinfo=UTC)
        assert execution.raw_json == {"execId": "e1"}


FOREIGN = """
    CREATE TABLE users (user_id TEXT PRIMARY KEY, username VARCHAR UNIQUE, email VARCHAR, status VARCHAR, created_at DATETIME, updated_at DATETIME);
    CREATE TABLE bybit_accounts (account_id TEXT PRIMARY KEY, user_id TEXT REFERENCES users, account_name VARCHAR, environment VARCHAR, status VARCHAR, created_at DATETIME);
    CREATE TABLE strategies (strategy_id TEXT PRIMARY KEY, account_id TEXT REFERENCES bybit_accounts, strategy_type VARCHAR, symbol VARCHAR, config_json JSON, is_enabled BOOLEAN, created_at DATETIME, note TEXT);
    CREATE TABLE runs (run_id TEXT PRIMARY KEY, user_id TEXT, account_id TEXT, strategy_id TEXT, run_type VARCHAR, start_ts DATETIME, status VARCHAR);
    CREATE TABLE private_executions (id INTEGER PRIMARY KEY, run_id TEXT, account_id TEXT, symbol VARCHAR, exec_id VARCHAR, order_id VARCHAR, exchange_ts DATETIME, side VARCHAR, exec_price FLOAT, exec_qty NUMERIC(20, 8), raw_json JSON);
    INSERT INTO users VALUES ('u1', 'alice', NULL, 'active', '2025-05-03 11:07:00', '2025-05-03 11:07:00');
    INSERT INTO bybit_accounts VALUES ('a1', 'u1', 'main', 'testnet', 'enabled', '2025-05-03 11:07:00');
    INSERT INTO strategies VALUES ('s1', 'a1', 'GridStrategy', 'BTCUSDT', '{"levels": 20}', 1, '2025-05-03 11:07:00', 'old');
    INSERT INTO runs VALUES ('r1', 'u1', 'a1', 's1', 'live', '2025-05-03 11:07:00', 'completed');
    INSERT INTO private_executions VALUES (7, 'r1', 'a1', 'BTCUSDT', 'e1', 'o1', '2025-05-03 11:07:00.123456', 'Buy', 95900.1, 0.5, '{"execId": "e1"}');
"""  # noqa: E501 # as the other program wrote it
