"""`python -m shared.db.init_db` as a person meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import URL

from shared.db import Base, DatabaseFactory, User
from shared.db.commands import cli
from shared.db.init_db import main
from shared.db.tests.forked import run_python
from shared.db.tests.support import run_on_server


def init_db(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, every warning an error."""
    return run_python("-W", "error", "-m", "shared.db.init_db", *arguments, environment=environment)


def fails_in_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 1 and one line on stderr with these words, and no traceback."""
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "Traceback" not in line
    for word in words:
        assert word in line


def test_the_embedded_default_lands_in_the_current_folder(tmp_path: Path) -> None:
    """It says success, the URL and every table with its rows; again it changes nothing and says so."""
    first = init_db()
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    lines = first.stdout.splitlines()
    assert lines[:2] == ["Database initialized successfully", "URL: sqlite+pysqlite:///grid_bot.db"]
    assert {line.split()[0] for line in lines[2:]} == {*Base.metadata.tables}
    assert all(line.split()[1:] == ["0", "rows"] for line in lines[2:])
    content = (tmp_path / "grid_bot.db").read_bytes()
    second = init_db()
    assert second.returncode == 0
    assert "nothing changed" in second.stdout.splitlines()[0]
    assert (tmp_path / "grid_bot.db").read_bytes() == content


def test_the_counts_are_the_tables_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After rows were stored they are counted."""
    path = str(tmp_path / "deep" / "folder" / "bots.db")
    assert main(["--db-name", path]) == 0
    with DatabaseFactory(f"sqlite:///{path}") as db, db.get_session() as session:
        session.add_all([User(username="ann"), User(username="bob")])
    capsys.readouterr()
    assert main(["--db-type", "sqlite", "--db-name", path]) == 0
    assert "users" in (out := capsys.readouterr().out)
    assert next(line.split()[1] for line in out.splitlines() if line.startswith("  users")) == "2"


def test_the_url_is_printed_without_its_password(empty_postgresql_url: URL, capsys: pytest.CaptureFixture[str]) -> None:
    """Which login and which database, never the secret."""
    url = empty_postgresql_url.set(password="s3cret-canary").render_as_string(hide_password=False)
    assert main(["--db-url", url]) == 0
    said = capsys.readouterr()
    assert "s3cret-canary" not in said.out + said.err
    assert "***" in said.out
    assert str(empty_postgresql_url.database) in said.out


def test_an_environment_file_names_the_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--env-file takes the place of .env; a missing one is an error, not the default database."""
    (tmp_path / ".env").write_text("GRIDBOT_DB_NAME=wrong.db\n")
    (tmp_path / "fleet.env").write_text("GRIDBOT_DB_NAME=fleet.db\nOTHER_PROGRAM=1\n")
    assert main(["--env-file", "fleet.env"]) == 0
    assert (tmp_path / "fleet.db").exists()
    assert not (tmp_path / "wrong.db").exists()
    assert main(["--env-file", "none.env"]) == 1
    assert "none.env" in capsys.readouterr().err


def test_what_is_typed_overrules_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL in the environment does not silently win over --db-name."""
    monkeypatch.setenv("GRIDBOT_DB_URL", "sqlite:///from_environment.db")
    assert main(["--db-name", "typed.db"]) == 0
    assert (tmp_path / "typed.db").exists()
    assert not (tmp_path / "from_environment.db").exists()


def test_statements_can_be_logged() -> None:
    """--echo-sql shows the SQL."""
    done = init_db("--echo-sql")
    assert done.returncode == 0
    assert "CREATE TABLE" in done.stdout + done.stderr


def test_an_unreachable_server_is_one_line() -> None:
    """The cause and what to check."""
    done = init_db("--db-url", "postgresql://user:s3cret-canary@127.0.0.1:1/bots")
    fails_in_one_line(done, "cannot be reached", "port")
    assert "s3cret-canary" not in done.stderr


def test_a_missing_database_is_one_line(postgresql_server: URL) -> None:
    """It names the database that does not exist."""
    url = postgresql_server.set(database="no_such_database").render_as_string(hide_password=False)
    fails_in_one_line(init_db("--db-url", url), "no_such_database", "check")


def test_a_refused_login_is_one_line(postgresql_server: URL) -> None:
    """A login that the server does not know, or whose password is wrong."""
    url = postgresql_server.set(username="nobody_here").render_as_string(hide_password=False)
    fails_in_one_line(init_db("--db-url", url), "refused", "GRIDBOT_DB_USER")


@pytest.fixture(scope="session")
def asked_login(postgresql_server: URL) -> Iterator[URL]:
    """A login whose password the server asks for."""
    name = f"asked_{os.getpid()}"
    run_on_server(postgresql_server, f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD 'right'")
    if "GRIDBOT_TEST_POSTGRESQL_URL" not in os.environ:  # our own server trusts everybody
        rules = Path(_ask(postgresql_server, "SHOW hba_file"))
        rules.write_text(f"local all {name} scram-sha-256\n{rules.read_text()}")
        written = _ask(postgresql_server, "SELECT clock_timestamp()")
        run_on_server(postgresql_server, "SELECT pg_reload_conf()")
        while _ask(postgresql_server, f"SELECT pg_conf_load_time() < '{written}'") == "True":
            pass
    yield postgresql_server.set(username=name, password="right")
    run_on_server(postgresql_server, f"DROP ROLE {name}")


def _ask(url: URL, query: str) -> str:
    """The one value, on a connection of its own, which has what the server has loaded by now."""
    connection = psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            ((value,),) = cursor.fetchall()
            return str(value)
    finally:
        connection.close()


def test_a_wrong_password_is_one_line(asked_login: URL, empty_postgresql_url: URL) -> None:
    """It names the setting and repeats no password; with the right one everything is created."""
    login = asked_login.set(database=empty_postgresql_url.database)
    for password in ("wr0ng-canary", ""):
        done = init_db("--db-url", login.set(password=password).render_as_string(hide_password=False))
        fails_in_one_line(done, "refused the login", "GRIDBOT_DB_PASSWORD")
        assert "canary" not in done.stderr
    done = init_db("--db-url", login.render_as_string(hide_password=False))
    assert done.returncode == 0, done.stderr


def test_a_login_that_may_not_create_is_one_line(empty_postgresql_url: URL) -> None:
    """A missing privilege is told apart from a wrong password."""
    name = f"reader_{empty_postgresql_url.database}"
    run_on_server(empty_postgresql_url, f"CREATE ROLE {name} LOGIN", "REVOKE ALL ON SCHEMA public FROM PUBLIC")
    url = empty_postgresql_url.set(username=name).render_as_string(hide_password=False)
    try:
        done = init_db("--db-url", url)
    finally:
        run_on_server(empty_postgresql_url, f"DROP ROLE {name}")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_an_unwritable_path_is_one_line(tmp_path: Path) -> None:
    """A file where a folder should be, which not even root can write into."""
    (tmp_path / "file").write_text("")
    fails_in_one_line(init_db("--db-name", "file/bots.db"), "cannot be opened", "GRIDBOT_DB_NAME")


def test_another_file_is_left_as_it_is(tmp_path: Path) -> None:
    """What is not a database is not overwritten."""
    (tmp_path / "notes.txt").write_text("these are my notes, and there are many of them\n" * 50)
    fails_in_one_line(init_db("--db-name", "notes.txt"), "not an SQLite database", "left as it is")
    assert (tmp_path / "notes.txt").read_text().startswith("these are my notes")


def test_settings_that_cannot_be_used_are_one_line() -> None:
    """From the command line and from the environment."""
    fails_in_one_line(init_db(GRIDBOT_DB_TYPE="oracle"), "sqlite", "postgresql")
    fails_in_one_line(init_db(GRIDBOT_DB_TYPE="postgresql"), "GRIDBOT_DB_HOST", "GRIDBOT_DB_USER")
    fails_in_one_line(init_db("--db-url", "nonsense"), "postgresql://")


def test_settings_and_arguments_together_name_the_database(empty_postgresql_url: URL) -> None:
    """What is not typed comes from the environment; on PostgreSQL too a second run changes nothing and says so."""
    host = str(empty_postgresql_url.query.get("host") or empty_postgresql_url.host)
    environment = {"GRIDBOT_DB_HOST": host, "GRIDBOT_DB_USER": str(empty_postgresql_url.username)}
    if empty_postgresql_url.password:
        environment["GRIDBOT_DB_PASSWORD"] = str(empty_postgresql_url.password)
    if empty_postgresql_url.port:
        environment["GRIDBOT_DB_PORT"] = str(empty_postgresql_url.port)
    arguments = ("--db-type", "PostgreSQL", "--db-name", str(empty_postgresql_url.database))
    first, second = init_db(*arguments, **environment), init_db(*arguments, **environment)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout.startswith("Database initialized successfully\n")
    assert "nothing changed" in second.stdout.splitlines()[0]
    assert second.stdout.splitlines()[1:] == first.stdout.splitlines()[1:]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--no-such-flag"], "--no-such-flag"),
        (["--db-type", "oracle"], "oracle"),
        (["--db-name"], "--db-name"),
        (["--db-url", "sqlite:///a.db", "--db-name", "b.db"], "--db-name"),
        (["--db-url", "sqlite:///a.db", "--db-type", "sqlite"], "--db-type"),
        (["--db-url", ""], "empty"),
        (["stray"], "stray"),
    ],
    ids=" ".join,
)
def test_usage_errors_exit_with_two(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments that mean nothing, or that contradict each other, open no database."""
    for command in (main, lambda given: cli.main(["init", *given])):
        with pytest.raises(SystemExit) as end:
            command(arguments)
        assert end.value.code == 2
        assert problem in capsys.readouterr().err.splitlines()[-1]
    assert os.listdir() == []


def test_the_command_line_has_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m shared.db init` does and says the same; without a command it tells the commands."""
    assert main(["--db-name", "one.db"]) == 0
    said = capsys.readouterr().out
    assert cli.main(["init", "--db-name", "two.db"]) == 0
    assert capsys.readouterr().out == said.replace("one.db", "two.db")
    assert cli.main(["init", "--env-file", "none.env"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 2


def test_help_exits_with_zero() -> None:
    """And names every argument."""
    done = init_db("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("--db-type", "--db-name", "--db-url", "--env-file", "--echo-sql"))


@pytest.mark.parametrize("arguments", [("shared.db.init_db",), ("shared.db", "init")])
def test_a_reader_that_has_enough_ends_a_command_quietly(arguments: tuple[str, ...]) -> None:
    """As in `init_db | head -1`: no traceback, and the exit code that shells know from Unix tools."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        assert command.stderr.read() == ""
    assert command.returncode == 141
