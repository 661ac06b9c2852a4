"""Each package has its own line of revisions: written by comparing, run in order, and apart from everybody else's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from shared.db import DatabaseFactory, MigrationError
from shared.db.migrations import runner
from shared.db.schema_version import SCHEMA_REVISION, read_revision, read_revisions
from shared.db.tests.fleet import fill
from shared.db.tests.installed import Installed
from shared.db.tests.migration_support import contents, run_by_hand, schema_of, seed

STOP_PRICE = """
        stop_price: Mapped[Decimal | None] = mapped_column(Money(), comment="Where it ends")
    state: Mapped[str] = mapped_column(BoundedString(10), default="open", server_default="open")
    is_live: Mapped[bool] = mapped_column(Boolean, default=True, server_default=true())
""".strip()


@pytest.fixture
def fleetbot(tmp_path: Path) -> Installed:
    """A package with two tables and no revision yet."""
    installed = Installed(tmp_path / "site")
    installed.package("fleetbot")
    return installed


def url_of(db: DatabaseFactory) -> str:
    """Its address."""
    return db.settings.get_database_url()


def written(installed: Installed, db: DatabaseFactory, message: str) -> Path:
    """The file of the revision that `migrate new` writes, which leaves nothing to its reader."""
    out = installed.done("migrate", "new", message, "--package", "fleetbot", "--db-url", url_of(db))
    assert "leaves to you" not in out, out
    (path,) = re.findall(r"^wrote (.*)$", out, re.MULTILINE)
    return Path(path)


def test_a_packages_schema_moves_in_its_own_revisions(fleetbot: Installed, empty_db: DatabaseFactory) -> None:
    """Written by comparing, run after ours, undone and done again with rows; one of ours and one of its is stamped.

    A column that is added is seen by `check`, makes `migrate status` end with 3 once its revision is written, and is
    there after `up`, in the words of the database.
    """
    url = url_of(empty_db)
    fleetbot.done("migrate", "up", "--db-url", url)  # it has no revision yet
    first = written(fleetbot, empty_db, "Orders and tickers!")
    assert first.name == "0001_orders_and_tickers.py"
    code = first.read_text()
    for form in ("frozen.money()", "frozen.text(36)", "frozen.whole_number()", "frozen.instant()", "op.create_table"):
        assert form in code
    assert "sa.Column('odds', sa.String(length=40), nullable=True)" in code.replace('"', "'")  # of a type of its own
    assert "column_types" not in code
    up = fleetbot.done("migrate", "up", "--db-url", url)
    assert up.index("shared.db") < up.index("fleetbot:")
    assert fleetbot.done("migrate", "check", "--db-url", url) == "the schema is what the code says\n"
    with empty_db.engine.connect() as connection:
        assert read_revisions(connection) == {"shared.db": SCHEMA_REVISION, "fleetbot": "0001_orders_and_tickers"}
    fill(empty_db)
    with empty_db.engine.begin() as connection:
        connection.execute(text("INSERT INTO orders (run_id, price) VALUES ('run-ann', 12345.5)"))
    before = contents(empty_db)

    fleetbot.package("fleetbot", columns=STOP_PRICE)
    checked = fleetbot.run("migrate", "check", "--db-url", url)
    assert checked.returncode == 1
    assert "column orders.stop_price is missing" in checked.stdout
    second = written(fleetbot, empty_db, "stop price")
    text_of = second.read_text().replace('"', "'")
    assert "drops: tuple[str, ...] = ('orders.is_live', 'orders.state', 'orders.stop_price')" in text_of
    assert "server_default=sa.true()" in text_of
    status = fleetbot.run("migrate", "status", "--json", "--db-url", url)
    assert status.returncode == 3
    assert json.loads(status.stdout)["packages"]["fleetbot"]["pending"] == ["0002_stop_price"]
    behind = fleetbot.run("migrate", "check", "--package", "fleetbot", "--db-url", url)
    assert behind.returncode == 3
    assert "of fleetbot is at revision 0001_orders_and_tickers" in behind.stderr
    fleetbot.done("migrate", "up", "--package", "fleetbot", "--db-url", url)
    assert fleetbot.done("migrate", "check", "--db-url", url) == "the schema is what the code says\n"
    after = schema_of(empty_db)

    kept = fleetbot.run("migrate", "down", "0001", "--package", "fleetbot", "--db-url", url)
    assert "orders.stop_price" in kept.stderr
    back = ("--package", "fleetbot", "--allow-data-loss", "--db-url", url)
    fleetbot.done("migrate", "down", "0001", *back)
    assert contents(empty_db) == before
    fleetbot.done("migrate", "up", "--db-url", url)
    assert schema_of(empty_db) == after
    assert contents(empty_db, like=before) == before


def test_making_all_tables_is_running_all_revisions(fleetbot: Installed, empty_db: DatabaseFactory) -> None:
    """`init` stamps a package's tables at its newest revision; `down base` removes everybody's, in their order."""
    url = url_of(empty_db)
    fleetbot.done("migrate", "up", "--db-url", url)
    written(fleetbot, empty_db, "first")
    fleetbot.done("migrate", "up", "--db-url", url)
    made = schema_of(empty_db)
    fleetbot.done("migrate", "down", "base", "--allow-data-loss", "--db-url", url)
    assert schema_of(empty_db) == {}
    fleetbot.done("init", "--db-url", url)
    assert schema_of(empty_db) == made
    with empty_db.engine.connect() as connection:
        assert read_revision(connection, "fleetbot") == "0001_first"
    assert fleetbot.run("migrate", "status", "--db-url", url).returncode == 0
    # A process that does not know the package leaves it alone, and does not take the ground from under it.
    assert runner.check(empty_db) == []
    assert runner.status(empty_db).state == "current"
    with pytest.raises(MigrationError, match=r"fleetbot.*--models"):
        runner.downgrade(empty_db, "base", allow_data_loss=True)
    script = fleetbot.done("migrate", "sql", "--db-url", url)
    assert script.index("CREATE TABLE users") < script.index("CREATE TABLE orders")
    alone = fleetbot.done("migrate", "sql", "--package", "fleetbot", "--db-url", url)
    assert "CREATE TABLE users" not in alone
    assert "CREATE TABLE orders" in alone


def test_a_bot_notices_that_its_package_is_behind(fleetbot: Installed, empty_db: DatabaseFactory) -> None:
    """`check_schema` and `create_tables` of a process that has the models, without Alembic."""
    url = url_of(empty_db)
    fleetbot.done("migrate", "up", "--db-url", url)
    written(fleetbot, empty_db, "first")
    script = (
        "import sys; sys.modules['alembic'] = None\n"
        "import fleetbot.models; from shared.db import DatabaseFactory, SchemaVersionError\n"
        "db = DatabaseFactory()\n"
        "for question in (db.check_schema, db.create_tables):\n"
        "    try:\n"
        "        print(question())\n"
        "    except SchemaVersionError as error:\n"
        "        print(error.package, error.state, error.database_revision, error.code_revision)\n"
    )

    def told() -> str:
        done = fleetbot.python("-c", script, GRIDBOT_DB_URL=url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert told() == "fleetbot empty None 0001_first\nTrue\n"
    assert told() == "None\nFalse\n"
    fleetbot.package("fleetbot", columns=STOP_PRICE)
    written(fleetbot, empty_db, "stop price")
    assert told() == "fleetbot behind 0001_first 0002_stop_price\n" * 2
    run_by_hand(empty_db, "UPDATE shared_db_version SET revision = '0003_later' WHERE package = 'fleetbot'")
    assert told() == "fleetbot ahead 0003_later 0002_stop_price\n" * 2
    run_by_hand(empty_db, "DELETE FROM shared_db_version WHERE package = 'fleetbot'")
    assert told() == "fleetbot unversioned None 0002_stop_price\n" * 2
    adopted = fleetbot.done("migrate", "adopt", "--db-url", url)
    assert "adopted at 0001_first; 1 pending" in adopted


def test_a_revision_of_an_earlier_release_goes_over(empty_db: DatabaseFactory) -> None:
    """What it wrote into `alembic_version` counts, and moves into our own table with the next migration."""
    runner.upgrade(empty_db, "0008")
    seed(empty_db)
    run_by_hand(
        empty_db,
        "DROP TABLE shared_db_version; CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY); "
        "INSERT INTO alembic_version VALUES ('0008_keys_for_runs')",
    )
    assert runner.status(empty_db).database_revision == "0008_keys_for_runs"
    assert runner.not_ours(empty_db) == []
    runner.upgrade(empty_db, "0008")
    with empty_db.engine.connect() as connection:
        assert not inspect(connection).has_table("alembic_version")
        assert read_revision(connection) == "0008_keys_for_runs"
    runner.upgrade(empty_db)
    assert runner.check(empty_db) == []


@pytest.mark.parametrize("stamped", ["1975ea83b712", "0042_theirs", "0001_initial"])
def test_somebody_elses_alembic_is_not_disturbed(empty_db: DatabaseFactory, stamped: str) -> None:
    """Its `alembic_version` says nothing about our tables, whatever stands in it, and stays as it is."""
    run_by_hand(
        empty_db,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY); CREATE TABLE theirs (id INTEGER);"
        f"INSERT INTO alembic_version VALUES ('{stamped}')",
    )
    assert runner.status(empty_db).state == "empty"
    runner.upgrade(empty_db)
    empty_db.check_schema()
    assert runner.not_ours(empty_db) == ["alembic_version", "theirs"]
    assert runner.check(empty_db) == []
    runner.downgrade(empty_db, "0008", allow_data_loss=True)
    runner.upgrade(empty_db)
    with empty_db.engine.connect() as connection:
        assert connection.scalars(text("SELECT version_num FROM alembic_version")).all() == [stamped]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a": None, "b": None}, "as another one does"),
        ({"a": None, "b": "nowhere"}, "follow none of the others"),
    ],
)
def test_revisions_that_are_no_line_are_told(
    fleetbot: Installed, empty_db: DatabaseFactory, files: dict[str, str | None], told: str
) -> None:
    """Two that follow the same one, or one that follows none: named, and nothing is run."""
    for name, before in files.items():
        (fleetbot.folder / "fleetbot" / "revisions" / f"{name}.py").write_text(
            f"revision = {name!r}\ndown_revision = {before!r}\n"
        )
    refused = fleetbot.run("migrate", "up", "--db-url", url_of(empty_db))
    assert refused.returncode == 1
    assert "fleetbot" in refused.stderr
    assert told in refused.stderr


def test_a_package_without_revisions_is_told(fleetbot: Installed, empty_db: DatabaseFactory) -> None:
    """With what to write into its pyproject.toml."""
    refused = fleetbot.run("migrate", "new", "x", "--package", "otherbot", "--db-url", url_of(empty_db))
    assert refused.returncode == 1
    assert '[project.entry-points."shared.db.revisions"]' in refused.stderr
