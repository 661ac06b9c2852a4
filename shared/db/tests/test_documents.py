"""What the documents say is true: examples run, tables match the code, links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError

import shared.db
from shared.db import (
    Base,
    BybitAccount,
    DatabaseFactory,
    DatabaseSettings,
    PublicTradeRepository,
    Run,
    RunRepository,
    Strategy,
    User,
    UserRepository,
)
from shared.db.commands.cli import COMMANDS, GROUPS
from shared.db.settings import describe_settings
from shared.db.tests import reference
from shared.db.tests.forked import run_python
from shared.db.tests.outside import imported_siblings
from shared.db.tests.support import in_threads, run_on_server, trade_values
from shared.db.tests.test_architecture import imported, modules

WORKSPACE = Path(__file__).parents[3]
PACKAGE = WORKSPACE / "shared" / "db"
README = WORKSPACE / "README.md"
DOCS = PACKAGE / "docs"
DOCUMENTS = sorted(
    [*WORKSPACE.glob("*.md"), *WORKSPACE.glob("shared/*/*.md"), *WORKSPACE.glob("shared/*/docs/**/*.md")]
)


def section(document: Path, heading: str) -> str:
    """The text under a second-level heading."""
    return document.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def blocks(markdown: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", markdown, re.DOTALL | re.MULTILINE)


def run_as_script(code: str, folder: Path) -> str:
    """Run a script in `folder`, warnings being errors; what it printed."""
    result = run_python("-W", "error", "-c", code, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_quick_start_prints_what_it_promises(tmp_path: Path) -> None:
    """The README's quick start runs as it stands, in an empty folder, and takes at most 30 lines."""
    (code,) = blocks(section(README, "Quick start"), "python")
    (promised,) = blocks(section(README, "Quick start"), "text")
    assert len(code.splitlines()) <= 30
    assert run_as_script(code, tmp_path) == promised


def test_the_example_of_the_package_index_runs(tmp_path: Path) -> None:
    """The package's own readme shows working code, and links to nothing that an index could not show."""
    readme = PACKAGE / "README.md"
    (code,) = blocks(readme.read_text(), "python")
    assert run_as_script(code, tmp_path) == "[]\n"
    assert "](" not in readme.read_text()


def test_the_page_on_asyncio_prints_what_it_promises(tmp_path: Path) -> None:
    """Its program runs as it stands, in an empty folder."""
    page = (PACKAGE / "docs" / "asyncio.md").read_text()
    (code,), (promised,) = blocks(page, "python"), blocks(page, "text")
    assert run_as_script(code, tmp_path) == promised


def test_the_table_of_settings_is_the_code_s() -> None:
    """docs/configuration.md lists every setting with its default and meaning as `describe_settings()` has them."""
    rows = [
        f"| `{setting['variable']}` | {setting['default'] and '`' + setting['default'] + '`'} "
        f"| {setting['description']} |\n"
        for setting in describe_settings()
    ]
    page = (DOCS / "configuration.md").read_text()
    (table,) = re.findall(r"<!-- settings:.*?-->\n(.*?)<!-- end of settings -->", page, re.DOTALL)
    expected = "| variable | default | meaning |\n|---|---|---|\n" + "".join(rows)
    assert table == expected, f"put this into docs/configuration.md between the settings comments:\n{expected}"


def example_lines() -> dict[str, str]:
    """The line of each variable in .env.example, uncommented, by variable."""
    lines = re.findall(r"^# ((GRIDBOT_\w+)=.*)$", (WORKSPACE / ".env.example").read_text(), re.MULTILINE)
    return {variable: line for line, variable in lines}


def test_the_env_example_lists_every_setting() -> None:
    """`.env.example` has every variable, with its meaning and its default above it, in the order of the settings."""
    text = (WORKSPACE / ".env.example").read_text()
    expected = [
        f"# {setting['description']}. Default: {setting['default'] or 'none'}\n# {setting['variable']}="
        for setting in describe_settings()
    ]
    missing = [entry for entry in expected if f"\n\n{entry}" not in text]
    assert not missing, "add to .env.example, each with an example:\n" + "\n".join(missing)
    assert list(example_lines()) == [setting["variable"] for setting in describe_settings()]


def test_the_env_example_as_it_is_changes_nothing() -> None:
    """Copied without an edit, `.env.example` gives the defaults."""
    assert DatabaseSettings(_env_file=WORKSPACE / ".env.example") == DatabaseSettings(_env_file=None)


@pytest.mark.parametrize("setting", describe_settings(), ids=lambda setting: setting["field"])
def test_an_uncommented_line_of_the_env_example_sets_its_setting(
    setting: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uncommenting a line of `.env.example` sets that setting to the example, and no other."""
    monkeypatch.delenv("GRIDBOT_DB_PACKAGES")
    line = example_lines()[setting["variable"]]
    (tmp_path / ".env").write_text(line + "\n")
    # Attributes, not model_dump(), which masks secrets.
    found, default = DatabaseSettings(), DatabaseSettings(_env_file=None)
    changed = {name for name in DatabaseSettings.model_fields if getattr(found, name) != getattr(default, name)}
    assert changed == {setting["field"]}
    given: dict[str, Any] = {setting["field"]: line.partition("=")[2]}
    assert DatabaseSettings(**given, _env_file=None) == found


def test_the_env_example_tells_how_to_quote(tmp_path: Path) -> None:
    """In single quotes a value of `.env` may hold spaces, # and double quotes, as `.env.example` says."""
    (tmp_path / ".env").write_text("GRIDBOT_DB_PASSWORD='p @:/ #\"%'\n")
    assert DatabaseSettings().db_password == 'p @:/ #"%'


def test_every_public_name_is_in_the_reference() -> None:
    """docs/reference.md has one entry for every name that `shared.db` and its public modules export, and no other."""
    documented = re.findall(r"^- `(\w+)`: ", (PACKAGE / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(reference.PUBLIC)


def test_the_signatures_of_the_reference_are_the_code_s() -> None:
    """docs/reference.md has the signatures, fields and columns of every public name as they are."""
    document = reference.REFERENCE.read_text(encoding="utf-8")
    assert document == reference.written(document), "run: uv run python -m shared.db.tests.reference"


def test_every_method_of_the_repositories_exists() -> None:
    """The table of docs/sessions.md names all seven, and only methods that they have."""
    repositories = section(DOCS / "sessions.md", "Repositories")
    table = re.findall(r"^\| `(\w+Repository)` \| (.*) \|$", repositories, re.MULTILINE)
    assert {name for name, _ in table} == {
        name
        for name in shared.db.__all__
        if name.endswith("Repository") and name not in ("BaseRepository", "Repository")
    }
    named = [(name, method) for name, methods in table for method in re.findall(r"`(\w+)`", methods)]
    assert [pair for pair in named if not hasattr(getattr(shared.db, pair[0]), pair[1])] == []


def test_every_command_is_in_the_docs() -> None:
    """The tables of docs/commands.md have those of `python -m shared.db`, in the groups of its help."""
    page = (DOCS / "commands.md").read_text()
    told = {
        heading.lower(): re.findall(r"^\| `([\w-]+)` \|", section(DOCS / "commands.md", heading), re.MULTILINE)
        for heading in re.findall(r"^## (.*)$", page, re.MULTILINE)
    }
    assert {heading: names for heading, names in told.items() if names} == {
        title: list(group) for title, group in GROUPS.items()
    }


def rows_of_related_systems() -> list[list[str]]:
    """The rows of its tables: what is promised, its state, and what gives it."""
    page = (PACKAGE / "docs" / "related-systems.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", page, re.MULTILINE)
    ]
    return [row for row in rows if row[1] != "state" and set(row[0]) != {"-"}]


def test_every_promise_of_the_related_systems_has_its_answer() -> None:
    """It works by something that has a name, or says why it is done otherwise, or why it is not there."""
    for promise, state, answer in rows_of_related_systems():
        assert state in ("works", "differs", "open"), f"{promise}: {state} is no state"
        assert len(answer.split()) > 2 or (state != "open" and "`" in answer), (
            f"{promise}: say what gives it, or why not"
        )


def test_every_name_that_answers_a_related_system_exists() -> None:
    """Names of Python are public ones here or beside us, commands are commands, and tables are there."""
    named = sorted({name for row in rows_of_related_systems() for name in re.findall(r"`([^`]+)`", row[2])})
    assert len(named) > 80
    with imported_siblings("cache", "fleet", "market", "metrics") as siblings:
        public = reference.PUBLIC | {name: getattr(module, name) for module in siblings for name in module.__all__}
        tables = {*Base.metadata.tables}
    known = public.keys() | tables | {setting["variable"] for setting in describe_settings()}

    def exists(name: str) -> bool:
        owner, _, attribute = name.partition(".")
        if name in known or name.split()[0] in COMMANDS or name.startswith("shared."):
            return not name.startswith("shared.") or find_spec(name) is not None
        thing = public.get(owner)
        members = {*dir(thing), *getattr(thing, "__annotations__", {}), *getattr(thing, "model_fields", {})}
        return thing is not None and attribute in members

    assert [name for name in named if not exists(name)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(WORKSPACE).as_posix())
def test_every_link_leads_somewhere(document: Path) -> None:
    """A relative link in a document names a file of the project."""
    links = re.findall(r"\]\((?!\w+://)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "RULES.md"])
def test_every_file_that_is_named_exists(name: str) -> None:
    """A path in backticks is one of the project, counted from its root or from shared/db."""
    paths = re.findall(r"`([\w./]+(?:/|\.(?:py|md|toml)))`", (WORKSPACE / name).read_text())
    generated = {"dist/"}
    missing = [p for p in paths if not ((WORKSPACE / p).exists() or (PACKAGE / p).exists() or p in generated)]
    assert missing == []


@pytest.mark.slow
def test_the_drawing_of_the_tables_is_up_to_date() -> None:
    """docs/er-diagram.md shows the tables as the models have them."""
    command = ["-c", "from paracelsus.cli import app; app()", "graph"]
    result = subprocess.run([sys.executable, *command], cwd=WORKSPACE, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    written = (PACKAGE / "docs" / "er-diagram.md").read_text(encoding="utf-8")
    drawing = written.partition("```mermaid\n")[2].partition("```")[0]
    # Lines in any order: a column of two foreign keys draws them in the order of a set, another one each time.
    there, wanted = (sorted(filter(None, map(str.strip, text.splitlines()))) for text in (drawing, result.stdout))
    assert there == wanted, "run `uv run paracelsus inject shared/db/docs/er-diagram.md`"


def test_the_picture_of_the_house_is_true() -> None:
    """Each box of the README's drawing is a room, and each arrow leads from one to another that it imports."""
    (drawing,) = blocks(README.read_text(), "mermaid")
    arrows = re.findall(r"^ *(\w+)(?:\[.*?\])? --> (\w+)", drawing, re.MULTILINE)
    assert len(arrows) == drawing.count("-->") > 10
    imports = {(room, other) for _, room, tree in modules() for other, _ in imported(tree)}
    assert [arrow for arrow in arrows if arrow not in imports] == []


def test_the_readme_is_read_in_ten_minutes() -> None:
    """It names what there is; what a reader looks up stands on a page of its own, which the index of all pages has."""
    readme = README.read_text()
    assert len(readme.splitlines()) <= 120
    assert "](shared/db/docs/README.md)" in readme


def test_every_page_is_of_one_kind() -> None:
    """The index of the pages has each once: a tutorial, a how-to, a reference or an explanation."""
    index = DOCS / "README.md"
    kinds = re.findall(r"^## (\w+)", index.read_text(), re.MULTILINE)
    assert kinds == ["Tutorial", "How", "Reference", "Explanation"]
    listed = re.findall(r"\]\(([\w-]+\.md)\)", index.read_text())
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md") if page != index)


def test_ci_runs_what_the_readme_says() -> None:
    """`.ci/run` can be executed, and runs the README's two commands."""
    script = WORKSPACE / ".ci" / "run"
    assert os.access(script, os.X_OK)
    start = section(README, "Start")
    for command in ("uv run python -m shared.db.init_db", "uv run pytest"):
        assert command in start
        assert command in script.read_text()


def _locked(postgresql: URL) -> None:
    with DatabaseFactory(DatabaseSettings(sqlite_busy_timeout=0)) as db:
        db.create_tables()
        with db.get_session() as one:
            UserRepository(one).get_all()
            in_threads(1, lambda _: db.run_in_transaction(lambda other: UserRepository(other).get_all(), attempts=1))


def _not_a_database(postgresql: URL) -> None:
    Path("notes.db").write_text("milk, eggs, " * 100)
    with DatabaseFactory("sqlite:///notes.db") as db:
        db.create_tables()


def _not_a_file(postgresql: URL) -> None:
    Path("folder.db").mkdir()
    with DatabaseFactory("sqlite:///folder.db") as db:
        db.create_tables()


def _no_tables(postgresql: URL) -> None:
    with DatabaseFactory() as db, db.get_session() as session:
        UserRepository(session).get_all()


def _write_in_a_read_only_session(postgresql: URL) -> None:
    with DatabaseFactory() as db:
        db.create_tables()
        with db.get_session(read_only=True) as session:
            UserRepository(session).create(User(username="alice"))


def _unknown_login(postgresql: URL) -> None:
    with DatabaseFactory(postgresql.set(username="nobody_at_all", password="wrong")) as db:
        db.create_tables()


def _no_server(postgresql: URL) -> None:
    with DatabaseFactory("postgresql://bot@127.0.0.1:1/gridbot") as db:
        db.create_tables()


def _too_many_connections(postgresql: URL) -> None:
    role = f"limited_{os.getpid()}"
    run_on_server(postgresql, f"CREATE ROLE {role} LOGIN PASSWORD 'fixed' CONNECTION LIMIT 0")
    try:
        with DatabaseFactory(postgresql.set(username=role, password="fixed")) as db:
            db.create_tables()
    finally:
        run_on_server(postgresql, f"DROP ROLE {role}")


def _pool_exhausted(postgresql: URL) -> None:
    with DatabaseFactory(DatabaseSettings(pool_timeout=0.01)) as db:
        connections = [db.engine.connect() for _ in range(10)]
        try:
            db.engine.connect()
        finally:
            for connection in connections:
                connection.close()


def _session_in_a_session(postgresql: URL) -> None:
    with DatabaseFactory() as db:
        db.create_tables()
        with db.get_session() as outer, db.get_session() as inner:
            UserRepository(outer).get_all()
            UserRepository(inner).get_all()


def _swallowed(postgresql: URL) -> None:
    with DatabaseFactory(postgresql) as db, db.get_session() as session, suppress(DBAPIError):
        session.execute(text("SELECT 1 / 0"))


def _connection_lost(postgresql: URL) -> None:
    with DatabaseFactory(postgresql) as db, db.get_session() as session:
        pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        run_on_server(postgresql, f"SELECT pg_terminate_backend({pid}, 10000)")
        session.execute(text("SELECT 1"))


def _commit_lost(postgresql: URL) -> None:
    with DatabaseFactory(postgresql) as db, db.get_session() as session:
        pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        run_on_server(postgresql, f"SELECT pg_terminate_backend({pid}, 10000)")


def _file_moved(postgresql: URL) -> None:
    with DatabaseFactory() as db:
        db.create_tables()
        Path("grid_bot.db").rename("elsewhere.db")
        UserRepository(db.session_factory()).get_all()


def _store_trade(**values: Any) -> None:
    with DatabaseFactory() as db:
        db.create_tables()
        with db.get_session() as session:
            PublicTradeRepository(session).bulk_create([trade_values(**values)])


def _naive_datetime(postgresql: URL) -> None:
    _store_trade(exchange_ts=datetime(2025, 5, 19))  # noqa: DTZ001 # the mistake that is meant


def _overlap(postgresql: URL) -> None:
    with DatabaseFactory("sqlite:///:memory:") as db, db.get_session(), db.get_session():
        pass


def _no_user(postgresql: URL) -> None:
    with DatabaseFactory() as db, db.get_session() as session:
        RunRepository(session).get_by_id("some-run")


def _user_is_none(postgresql: URL) -> None:
    with DatabaseFactory() as db, db.get_session(user_id=None):  # type: ignore[arg-type] # the mistake that is meant
        pass


def _run_of_another_user(postgresql: URL) -> None:
    with DatabaseFactory() as db:
        db.create_tables()
        with db.get_session(user_id="alice") as session:
            RunRepository(session).create(Run(user_id="bob", run_type="live"))


def _settings(**values: Any) -> None:
    DatabaseSettings(**values)


# How to run into each symptom of docs/troubleshooting.md.
SYMPTOMS: dict[str, Callable[[URL], None]] = {
    "the database is locked by another connection (database is locked)": _locked,
    "this thread holds the write lock of the database in another session": _session_in_a_session,
    "the file is not an SQLite database (file is not a database)": _not_a_database,
    "the database file cannot be opened (unable to open database file)": _not_a_file,
    "no such table: users": _no_tables,
    "this session or database is read-only": _write_in_a_read_only_session,
    "the server refused the login": _unknown_login,
    "the database cannot be reached": _no_server,
    "too many connections": _too_many_connections,
    "QueuePool limit of size 5 overflow 5 reached, connection timed out": _pool_exhausted,
    "an earlier error was caught, and nothing of its transaction or savepoint is stored": _swallowed,
    "the connection to the database was lost": _connection_lost,
    "the connection was lost during COMMIT, and whether it took place is unknown": _commit_lost,
    "the database file was moved, deleted or replaced while open": _file_moved,
    "a naive datetime does not say which instant it means": _naive_datetime,
    "a float is not exact money": lambda url: _store_trade(price=0.1),
    "has more digits than SQLite's 8-byte floats give back": lambda url: _store_trade(
        price=Decimal("123456789012.12345678")
    ),
    "two open sessions on one in-memory SQLite share a single transaction": _overlap,
    "needs to know whose data is meant": _no_user,
    "is not a user id": _user_is_none,
    "refused for user": _run_of_another_user,
    "the value of GRIDBOT_DB_PORT is what Kubernetes sets for a Service called gridbot-db": lambda url: _settings(
        db_type="postgresql", db_host="db", db_user="bot", db_port="tcp://10.96.0.7:5432"
    ),
    "stands in quotes": lambda url: _settings(db_name='"grid.db"'),
}


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_a_symptom_of_the_troubleshooting_is_the_real_text(symptom: str, postgresql_server: URL) -> None:
    """The page quotes the errors as they are: each is provoked here."""
    with pytest.raises(Exception, match=re.escape(symptom)):
        SYMPTOMS[symptom](postgresql_server)


def test_every_symptom_of_the_troubleshooting_is_provoked() -> None:
    """No text is quoted on the page without a proof above."""
    headings = re.findall(r"^## `(.+?)`", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    by_other_tests = ["this address leads to a connection pooler"]  # test_pgbouncer.py
    assert [heading for heading in headings if heading not in by_other_tests] == [*SYMPTOMS, "uv: command not found"]


def test_the_commands_of_the_page_on_reports_run(tmp_path: Path) -> None:
    """docs/report.md's commands, in their order, write the files that they name."""
    url = f"sqlite:///{tmp_path / 'grid_bot.db'}"
    with DatabaseFactory(url) as db:
        db.create_tables()
        with db.get_session() as session:
            account = BybitAccount(account_name="main", environment="testnet", user=User(username="alice"))
            strategy = Strategy(account=account, strategy_type="Grid", symbol="BTCUSDT", config_json={})
            session.add(Run(run_id="RUN_ID", user=account.user, account=account, strategy=strategy, run_type="live"))
    for line in "".join(blocks((DOCS / "report.md").read_text(), "bash")).splitlines():
        command, _, target = line.partition(" > ")
        result = run_python(*command.split()[1:], cwd=tmp_path, environment={"GRIDBOT_DB_URL": url})
        assert result.returncode == 0, result.stderr
        if target:
            (tmp_path / target).write_text(result.stdout)
    written = {path.name for ending in ("html", "json") for path in tmp_path.glob(f"*.{ending}")}
    assert written == {"report.html", "may.html", "yesterday.json", "status.html"}


def test_the_example_of_the_lake_prints_what_it_promises(tmp_path: Path) -> None:
    """docs/lake.md's first block runs as it stands, in an empty folder."""
    text = (PACKAGE / "docs" / "lake.md").read_text()
    assert run_as_script(blocks(text, "python")[0], tmp_path) == blocks(text, "text")[0]


def test_the_example_of_the_recorder_prints_what_it_promises(tmp_path: Path) -> None:
    """docs/recorder.md's first block runs as it stands, in an empty folder."""
    text = (PACKAGE / "docs" / "recorder.md").read_text()
    assert run_as_script(blocks(text, "python")[0], tmp_path) == blocks(text, "text")[0]
