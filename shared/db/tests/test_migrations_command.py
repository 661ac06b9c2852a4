"""`python -m shared.db migrate`: what it prints, for people and for machines, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from shared.db import AuditLog, DatabaseFactory, User
from shared.db.commands.cli import main
from shared.db.dialects import MYSQL
from shared.db.errors import MigrationError
from shared.db.migrations import runner
from shared.db.migrations.revisions import Revisions
from shared.db.migrations.writing import new_revision
from shared.db.schema_version import SCHEMA_REVISION
from shared.db.tests.migration_support import REVISIONS, run_by_hand

Run = Any


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on the database; its exit code, its output, its complaint."""

    def command(db: DatabaseFactory, *arguments: str) -> tuple[int, str, str]:
        url = db.settings.get_database_url()
        try:
            code = main(["migrate", *arguments, "--db-url", url])
        except SystemExit as left:
            code = int(str(left.code))
        printed = capsys.readouterr()
        return code, printed.out.rstrip(), printed.err.rstrip()

    return command


def test_the_way_of_a_database_through_the_commands(empty_db: DatabaseFactory, run: Run) -> None:
    """Empty, one step, all steps, nothing to do, back, and the exit codes on the way."""
    code, out, _ = run(empty_db, "status")
    assert (code, out.splitlines()[0]) == (3, "database: no revision (empty)")
    assert run(empty_db, "up", "0001") == (0, "the database was at base and is now at 0001_initial", "")
    code, out, _ = run(empty_db, "status")
    assert (code, out.splitlines()) == (
        3,
        [
            "database: 0001_initial (behind)",
            f"code:     {SCHEMA_REVISION}",
            *(f"pending:  {revision}" for revision in REVISIONS[2:]),
        ],
    )
    assert run(empty_db, "up") == (0, f"the database was at 0001_initial and is now at {SCHEMA_REVISION}", "")
    assert run(empty_db, "up") == (0, f"nothing to do: the database is at {SCHEMA_REVISION}", "")
    assert run(empty_db, "status")[0] == 0
    assert run(empty_db, "check") == (0, "the schema is what the code says", "")
    code, out, err = run(empty_db, "down", "0001")
    assert (code, out) == (1, "")
    assert err.startswith("shared.db: this downgrade deletes")
    assert run(empty_db, "down", "0001", "--allow-data-loss")[0] == 0
    assert run(empty_db, "down", "0001") == (0, "nothing to do: the database is at 0001_initial", "")


def test_the_same_for_machines(empty_db: DatabaseFactory, run: Run) -> None:
    """With --json each answer, a failure included, is one JSON object on stdout."""

    def ask(*arguments: str) -> tuple[int, Any]:
        code, out, err = run(empty_db, *arguments, "--json")
        assert err == ""
        return code, json.loads(out)

    assert ask("status") == (
        3,
        {
            "state": "empty",
            "database_revision": None,
            "code_revision": SCHEMA_REVISION,
            "pending": list(REVISIONS[1:]),
        },
    )
    assert ask("up", "0001") == (0, {"before": "base", "after": "0001_initial"})
    code, answer = ask("check")
    assert (code, answer["error"], answer["database_revision"]) == (3, "SchemaVersionError", "0001_initial")
    assert ask("up")[0] == 0
    code, answer = ask("down", "0001")
    assert (code, answer["error"]) == (1, "DataLossError")
    assert ask("check") == (0, {"differences": [], "not_ours": []})
    run_by_hand(empty_db, f"DROP INDEX ix_runs_status{' ON runs' if empty_db.settings.port is MYSQL else ''}")
    code, answer = ask("check")
    assert (code, [item["name"] for item in answer["differences"]]) == (1, ["ix_runs_status"])
    run_by_hand(empty_db, "DROP TABLE shared_db_version")
    code, refused = ask("adopt")
    assert (code, refused["error"]) == (1, "SchemaDriftError")
    assert refused["differences"] == answer["differences"]
    assert ask("sql", "0001", "--from", "0001")[0] == 0


def test_the_audit_log_is_switched_from_the_command_line(empty_db: DatabaseFactory, run: Run) -> None:
    """`up` leaves it as it is, `up --audit` switches it on at any time, `--no-audit` off, and `sql` prints either."""

    def recorded(name: str) -> bool:
        with DatabaseFactory(empty_db.settings) as db:
            with db.get_session() as session:
                session.add(User(user_id=name, username=name))
            with db.get_session() as session:
                return name in session.scalars(select(AuditLog.entity_id)).all()

    assert run(empty_db, "up")[0] == 0
    assert not recorded("before")
    nothing = (0, f"nothing to do: the database is at {SCHEMA_REVISION}", "")
    for number, (option, on) in enumerate([("--audit", True), ("--no-audit", False), ("--audit", True)]):
        assert run(empty_db, "up", option) == nothing
        assert run(empty_db, "up") == nothing
        assert recorded(f"by command {number}") == on
    for option, on in (("--no-audit", False), ("--audit", True)):
        code, script, _ = run(empty_db, "sql", "head", "--from", SCHEMA_REVISION, option)
        assert code == 0
        run_by_hand(empty_db, script[script.index("INSERT INTO audit_log") :])
        assert recorded(f"by script {on}") == on
    assert run(empty_db, "down", "base", "--allow-data-loss")[0] == 0
    assert run(empty_db, "up", "0009", "--audit")[0] == 3
    assert run(empty_db, "up", "--audit")[0] == 0
    assert recorded("at last")


def test_adopting_from_the_command_line(empty_db: DatabaseFactory, run: Run) -> None:
    """It says at which revision, and what is still to do."""
    runner.upgrade(empty_db, "0001")
    run_by_hand(empty_db, "DROP TABLE shared_db_version")
    code, out, err = run(empty_db, "up")
    assert (code, out) == (3, "")
    assert err.endswith("run: python -m shared.db migrate adopt")
    pending = len(REVISIONS) - 2
    assert run(empty_db, "adopt") == (
        0,
        f"adopted at 0001_initial; {pending} pending, run: python -m shared.db migrate up",
        "",
    )
    run(empty_db, "up")
    assert run(empty_db, "adopt") == (0, f"nothing to do: the database is at {SCHEMA_REVISION}", "")


def test_a_database_of_newer_code_is_left_alone(empty_db: DatabaseFactory, run: Run) -> None:
    """No command touches it; each names both revisions and exits with 3."""
    runner.upgrade(empty_db)
    run_by_hand(empty_db, "UPDATE shared_db_version SET revision = '9999_future'")
    for arguments in (["up"], ["down", "base", "--allow-data-loss"], ["adopt"], ["check"]):
        code, out, err = run(empty_db, *arguments)
        assert (code, out) == (3, "")
        assert "9999_future, newer than this code's " + SCHEMA_REVISION in err
    assert run(empty_db, "status")[0] == 3


@pytest.mark.parametrize(
    "arguments",
    [[], ["sideways"], ["up", "nonesuch"], ["up", "000"], ["up", ""], ["down"], ["sql", "--from", "nonesuch"]],
)
def test_what_cannot_be_understood_is_a_usage_error(empty_db: DatabaseFactory, run: Run, arguments: list[str]) -> None:
    """Exit code 2, before any database is touched."""
    assert run(empty_db, *arguments)[0] == 2


@pytest.mark.parametrize(("arguments", "hint"), [(["up", "0001"], "use down"), (["down", "head"], "use up")])
def test_the_wrong_direction_is_refused(empty_db: DatabaseFactory, run: Run, arguments: list[str], hint: str) -> None:
    """`up` never goes back and `down` never forward."""
    runner.upgrade(empty_db, "head" if arguments[0] == "up" else "0001")
    code, _, err = run(empty_db, *arguments)
    assert code == 1
    assert hint in err


def test_sql_for_review_needs_no_database(capsys: pytest.CaptureFixture[str]) -> None:
    """PostgreSQL's SQL is printed where neither host nor user is set."""
    assert main(["migrate", "sql", "--db-type", "postgresql", "--from", "0001", "0002"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("SET lock_timeout = '2s';")
    assert "ALTER TABLE runs ADD COLUMN heartbeat_ts TIMESTAMP WITH TIME ZONE" in printed
    assert main(["migrate", "sql", "--db-type", "sqlite", "--from", "0001", "0002"]) == 0
    assert "ALTER TABLE runs ADD COLUMN heartbeat_ts DATETIME" in capsys.readouterr().out


def test_every_other_command_works_without_alembic(tmp_path: Path) -> None:
    """Tables are made, stamped and checked; `migrate` names the extra to install."""
    script = """
import sys
sys.modules["alembic"] = None
from shared.db import DatabaseFactory
from shared.db.commands.cli import main
from shared.db.database import init_db
assert init_db("sqlite:///plain.db").create_tables() is False
assert main(["init", "--db-name", "plain.db"]) == 0
DatabaseFactory("sqlite:///plain.db").check_schema()
sys.exit(main(["migrate", "up", "--db-name", "plain.db"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("shared.db: Alembic is not installed; it comes with the extra 'migrations'")
    with DatabaseFactory(f"sqlite:///{tmp_path}/plain.db") as db:
        assert runner.status(db).state == "current"


@pytest.mark.parametrize("message", ["", "!", "0815"])
def test_a_revision_says_what_it_changes(db: DatabaseFactory, message: str) -> None:
    """Its name, which is a file's name anywhere, is made of the message."""
    with pytest.raises(MigrationError, match="in a few words"):
        new_revision(db, message)
    assert Revisions().names == REVISIONS
