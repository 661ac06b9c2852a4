"""A database of another age is noticed at the start, and never half changed."""

from __future__ import annotations

import pytest

from shared.db import Base, DatabaseFactory
from shared.db.commands.cli import main
from shared.db.errors import SchemaVersionError
from shared.db.migrations import runner
from shared.db.schema_version import SCHEMA_REVISION
from shared.db.tests.migration_support import run_by_hand, schema_of, seed


def _make(db: DatabaseFactory, state: str) -> None:
    if state == "behind":
        runner.upgrade(db, "0001")
    elif state == "ahead":
        db.create_tables()
        run_by_hand(db, "UPDATE shared_db_version SET revision = '9999_future'")
    elif state == "unversioned":
        Base.metadata.create_all(db.engine)


@pytest.mark.parametrize(
    ("state", "found", "remedy"),
    [
        ("empty", None, "python -m shared.db init"),
        ("behind", "0001_initial", "python -m shared.db migrate up"),
        ("ahead", "9999_future", f"python -m shared.db migrate down {SCHEMA_REVISION}"),
        ("unversioned", None, "python -m shared.db migrate adopt"),
    ],
)
def test_a_schema_of_another_age_is_one_clear_error(
    empty_db: DatabaseFactory, state: str, found: str | None, remedy: str
) -> None:
    """It names the database's revision and the code's, and ends with the command to run."""
    _make(empty_db, state)
    with pytest.raises(SchemaVersionError) as refused:
        empty_db.check_schema()
    error = refused.value
    assert (error.state, error.database_revision, error.code_revision) == (state, found, SCHEMA_REVISION)
    assert SCHEMA_REVISION in str(error)
    assert (found or "") in str(error)
    assert str(error).endswith(remedy)


def test_a_schema_of_this_age_is_no_error(db: DatabaseFactory) -> None:
    """What `create_tables` has made passes, on every database."""
    db.check_schema()


@pytest.mark.parametrize("state", ["behind", "ahead", "unversioned"])
def test_creating_tables_never_touches_another_schema(empty_db: DatabaseFactory, state: str) -> None:
    """Missing tables beside old ones would be a schema that no revision knows: refused as `check_schema` does."""
    _make(empty_db, state)
    run_by_hand(empty_db, "DROP TABLE private_executions")
    before = schema_of(empty_db)
    with pytest.raises(SchemaVersionError) as refused:
        empty_db.create_tables()
    assert refused.value.state == state
    assert schema_of(empty_db) == before


def test_init_says_so_with_its_own_exit_code(empty_db: DatabaseFactory, capsys: pytest.CaptureFixture[str]) -> None:
    """A deployment can tell "migrate first" from every other failure."""
    runner.upgrade(empty_db, "0001")
    assert main(["init", "--db-url", empty_db.settings.get_database_url()]) == 3
    assert "migrate up" in capsys.readouterr().err


def test_creating_tables_completes_a_schema_of_this_age(empty_db: DatabaseFactory) -> None:
    """What is missing of the code's own schema is made again; then there is nothing to do."""
    assert empty_db.create_tables()
    schema = schema_of(empty_db)
    run_by_hand(empty_db, "DROP TABLE private_executions")
    assert empty_db.create_tables()
    assert schema_of(empty_db) == schema
    assert not empty_db.create_tables()


def test_dropped_tables_leave_no_revision(empty_db: DatabaseFactory) -> None:
    """After `drop_tables` the database is as good as new, whichever revision it had."""
    runner.upgrade(empty_db, "0001")
    empty_db.drop_tables()
    assert runner.status(empty_db).state == "empty"
    assert empty_db.create_tables()
    seed(empty_db)
    empty_db.check_schema()
