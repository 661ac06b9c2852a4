"""Packages of other people: commands load their models, and name what is in no package that is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import URL, text

from shared.db import DatabaseFactory
from shared.db.tests.fleet import fill
from shared.db.tests.installed import MODELS, Installed
from shared.db.tests.roles import Roles

ROWS = """
    INSERT INTO orders (run_id, price, placed_ts) VALUES ('run-ann', {first}, NULL), ('run-bob', 0.00000001, {when});
    INSERT INTO tickers (id, symbol, is_live, seen, depth) VALUES (7, 'BTCUSDT', {yes}, '{seen}', 12);
"""


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    """A folder for packages."""
    return Installed(tmp_path / "site")


@pytest.fixture(params=("file", "postgresql"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database with nothing in it."""
    if request.param == "postgresql":
        found: URL = request.getfixturevalue("empty_postgresql_url")
        return found.render_as_string(hide_password=False)
    return f"sqlite:///{tmp_path / 'grid_bot.db'}"


def with_rows(url: str) -> None:
    """Rows in our tables, and in those of the package."""
    with DatabaseFactory(url) as db:
        fill(db)
        sqlite = db.settings.is_sqlite
        seen = "2025-05-19 00:00:36.878000"
        script = ROWS.format(
            first="12345.5",
            when=f"'{seen}'" if sqlite else f"'{seen}+00'",
            yes="1" if sqlite else "true",
            seen=seen,
        )
        with db.engine.begin() as connection:
            for statement in script.split(";")[:-1]:
                connection.execute(text(statement))


@pytest.mark.parametrize("way", ["entry point", "variable", "argument", "env file"])
def test_commands_load_other_packages_models(installed: Installed, url: str, tmp_path: Path, way: str) -> None:
    """By entry points where they are installed, and by name; `init` makes their tables then."""
    installed.package("fleetbot", points=way == "entry point")
    arguments, environment = ["--db-url", url], {}
    if way == "variable":
        environment["GRIDBOT_DB_MODELS"] = "fleetbot.models"
    elif way == "argument":
        arguments += ["--models", "fleetbot.models"]
    elif way == "env file":
        (tmp_path / ".env").write_text("GRIDBOT_DB_MODELS=fleetbot.models\n")
    made = installed.done("init", *arguments, **environment)
    assert "orders" in made
    assert "tickers" in made
    shown = installed.done("status", *arguments, **environment)
    assert "  orders " in shown
    assert "not ours" not in shown


def test_which_installed_packages_are_loaded_is_a_setting(installed: Installed) -> None:
    """Those that it names, and no others, whatever a package does when it is looked into; a wrong name is told."""
    (installed.package("fleetbot") / "__init__.py").write_text("import fleetbot.models\n")
    installed.package("other_fleet", models="import nowhere_to_be_found\n")
    shown = installed.done("init", "--db-name", "grid.db", GRIDBOT_DB_PACKAGES="fleetbot")
    assert "orders" in shown
    shown = installed.done("status", "--db-name", "grid.db", GRIDBOT_DB_PACKAGES="shared.db")
    assert "not ours: orders, tickers" in shown
    refused = installed.run("status", "--db-name", "grid.db", GRIDBOT_DB_PACKAGES="fleetbot,fleetbto")
    assert refused.returncode == 1
    assert "GRIDBOT_DB_PACKAGES names fleetbto, which offers no tables here" in refused.stderr
    names = refused.stderr.rpartition("name some of ")[2].strip().split(", ")
    assert {"shared.db", "fleetbot", "other_fleet"} <= set(names)


def test_models_that_cannot_be_imported_are_told(installed: Installed, tmp_path: Path) -> None:
    """In one line that names the package and what is missing; nothing was done."""
    installed.package("fleetbot", models="import nowhere_to_be_found\n")
    result = installed.run("init", "--db-name", "grid.db")
    assert result.returncode == 1
    assert "fleetbot" in result.stderr
    assert "nowhere_to_be_found" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "grid.db").exists()


def test_a_package_that_is_merely_installed_asks_for_nothing(installed: Installed) -> None:
    """A database that was made without its tables serves every command; one that names the package is told."""
    installed.done("init", "--db-url", "sqlite:///bots.db")
    models = MODELS.replace('"orders"', '"outside_orders"').replace('"tickers"', '"outside_tickers"')
    revisions = installed.package("outside_fleet", models=models) / "revisions"
    (revisions / "0001_first.py").write_text('revision = "0001_first"\ndown_revision = None\n')
    for command in (["export", "trades", "--symbol", "BTCUSDT", "-o", "trades.csv"], ["coverage"], ["status"]):
        installed.done(*command, "--db-url", "sqlite:///bots.db", GRIDBOT_DB_PACKAGES="")
    told = installed.run("coverage", "--db-url", "sqlite:///bots.db", GRIDBOT_DB_PACKAGES="outside_fleet")
    assert (told.returncode, told.stderr.count("no tables of outside_fleet yet")) == (3, 1)


def test_a_folder_that_cannot_be_looked_into_has_no_packages(
    db: DatabaseFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `sys.path`, as where a process gave up root whose home has the interpreter; importing takes it so too."""
    monkeypatch.syspath_prepend("x" * 300)  # longer than a name may be, which root is refused too
    with pytest.raises(OSError, match="too long"):
        Path("x" * 300).stat()
    db.check_schema()


def test_two_packages_with_one_table_are_told(installed: Installed) -> None:
    """Both cannot be right."""
    installed.package("first_fleet")
    installed.package("second_fleet")
    result = installed.run("status", "--db-url", "sqlite://")
    assert result.returncode == 1
    assert "second_fleet" in result.stderr
    assert "'orders' is already defined" in result.stderr
    assert installed.run("init", "--db-url", "sqlite://", GRIDBOT_DB_PACKAGES="first_fleet").returncode == 0
    assert "leave it out of GRIDBOT_DB_PACKAGES" in result.stderr


@pytest.mark.parametrize("names", ["../models.py", "a b", "1st.models", "models.py,-"])
def test_what_is_no_name_of_a_module_is_refused(installed: Installed, names: str) -> None:
    """As any other setting that cannot be used."""
    result = installed.run("status", "--models", names)
    assert result.returncode == 1
    assert "GRIDBOT_DB_MODELS" in result.stderr


def test_what_no_loaded_package_has_is_not_ours(installed: Installed, url: str) -> None:
    """`status`, `migrate check` and `row-security status` name it, and none of them calls it a fault."""
    installed.package("fleetbot", points=False)
    installed.done("init", "--db-url", url, "--models", "fleetbot.models")
    for command in (["status"], ["migrate", "check"], ["row-security", "status"]):
        shown = installed.done(*command, "--db-url", url)
        if command[0] != "row-security" or url.startswith("postgresql"):
            assert "not ours: orders, tickers" in shown, command
        assert "not ours" not in installed.done(*command, "--db-url", url, "--models", "fleetbot.models")


@pytest.mark.parametrize("target", ["file", "postgresql"])
def test_copy_takes_other_packages_rows_along(
    installed: Installed, url: str, target: str, tmp_path: Path, postgresql_server: URL, request: pytest.FixtureRequest
) -> None:
    """Every row, digit and microsecond, in columns of stock types too; without the package it says what is missing."""
    installed.package("fleetbot", points=False)
    installed.done("init", "--db-url", url, "--models", "fleetbot.models")
    with_rows(url)
    if target == "file":
        into = f"sqlite:///{tmp_path / 'copy.db'}"
    else:
        found: URL = request.getfixturevalue("postgresql_url")
        into = found.render_as_string(hide_password=False)
    refused = installed.run("copy", url, into)
    assert refused.returncode == 1
    assert "orders, tickers" in refused.stderr
    assert "--models" in refused.stderr
    assert "--ignore-unknown" in refused.stderr
    copied = installed.done("copy", url, into, "--models", "fleetbot.models")
    assert "orders 2" in copied
    assert "left behind" not in copied
    rows = []
    for address in (url, into):
        with DatabaseFactory(address) as db, db.engine.connect() as connection:
            orders = connection.execute(text("SELECT run_id, price, placed_ts FROM orders ORDER BY id")).all()
            tickers = connection.execute(text("SELECT id, symbol, is_live, seen, depth FROM tickers")).all()
            rows.append(
                [(run, float(price), str(when)[:26]) for run, price, when in orders]
                + [(key, symbol, bool(live), str(seen), depth) for key, symbol, live, seen, depth in tickers]
            )
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3


def test_copy_says_what_it_leaves_behind(installed: Installed, url: str, tmp_path: Path) -> None:
    """With `--ignore-unknown`, each table with its rows."""
    installed.package("fleetbot", points=False)
    installed.done("init", "--db-url", url, "--models", "fleetbot.models")
    with_rows(url)
    copied = installed.done("copy", url, f"sqlite:///{tmp_path / 'copy.db'}", "--ignore-unknown")
    assert "left behind: orders 2, tickers 1" in copied


def test_a_backup_holds_other_packages_rows(
    installed: Installed, url: str, tmp_path: Path, postgresql_tools: Path
) -> None:
    """Whether they are loaded or not, and a restore brings them back."""
    installed.package("fleetbot", points=False)
    installed.done("init", "--db-url", url, "--models", "fleetbot.models")
    with_rows(url)
    backup = str(tmp_path / "backup")
    tools = [] if url.startswith("sqlite") else ["--pg-bin", str(postgresql_tools)]
    made = installed.done("backup", backup, "--db-url", url, *tools)
    with DatabaseFactory(url) as db, db.engine.begin() as connection:
        connection.execute(text("DELETE FROM orders"))
    installed.done("restore", backup, "--force", "--db-url", url, *tools)
    with DatabaseFactory(url) as db, db.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM orders")) == 2
    assert made


def test_policies_confine_other_packages_tables(installed: Installed, roles: Roles, empty_postgresql_url: URL) -> None:
    """The command that loads them enables them, and its status is that of the package's own process."""
    url = empty_postgresql_url.render_as_string(hide_password=False)
    installed.package("fleetbot")
    installed.done("init", "--db-url", url)
    role = roles.name("tenant")
    assert ": on (" in installed.done("row-security", "enable", "--db-url", url, GRIDBOT_DB_TENANT_ROLE=role)
    with_rows(url)
    script = (
        "import fleetbot.models as models; from shared.db import DatabaseFactory; db = DatabaseFactory()\n"
        "assert not db.row_security_status().problems\n"
        "with db.get_session(user_id='ann') as session:\n"
        "    print(session.confined_by_server, [row.run_id for row in session.query(models.Order)])\n"
    )
    printed = installed.python("-c", script, GRIDBOT_DB_URL=url, GRIDBOT_DB_TENANT_ROLE=role)
    assert printed.stdout == "True ['run-ann']\n", printed.stderr
