"""MariaDB: what holds there by other means than on the other databases, and what is refused by name.

Without a `mariadbd` or `mysqld`, or a GRIDBOT_TEST_MYSQL_URL, these are left out, which the last lines of the run say.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import (
    URL,
    CheckConstraint,
    Column,
    Integer,
    MetaData,
    String,
    Table,
    column,
    insert,
    inspect,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.sql.elements import quoted_name

from shared.db import (
    ApiCredential,
    BackupError,
    ConstraintError,
    DatabaseFactory,
    PublicTrade,
    PublicTradeRepository,
    RowSecurityError,
    Run,
    RunRepository,
    Strategy,
    TargetNotEmptyError,
    TenantViolation,
    TransactionAbortedError,
    TransactionConflictError,
    TransactionControlError,
    UnknownDatabaseError,
    User,
)
from shared.db.migrations import runner
from shared.db.operations.backup import back_up, restore
from shared.db.operations.copy_database import copy_database
from shared.db.tests.fleet import everything_of, fill, run_values
from shared.db.tests.support import trade_values

NOW = datetime(2025, 5, 19, tzinfo=UTC)


@pytest.fixture
def maria(mysql_url: URL) -> Iterator[DatabaseFactory]:
    """A MariaDB with ann's and bob's rows."""
    with DatabaseFactory(mysql_url) as db:
        db.create_tables()
        fill(db)
        yield db


@pytest.fixture
def other_maria(mysql_server: URL, mysql_url: URL) -> Iterator[DatabaseFactory]:
    """A second one, with nothing in it."""
    url = mysql_url.set(database=f"{mysql_url.database}_other")
    with DatabaseFactory(mysql_url) as db, db.engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {url.database}")
    with DatabaseFactory(url) as db:
        yield db
    with DatabaseFactory(mysql_url) as db, db.engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {url.database}")


def test_a_hint_shows_nobody_else_s_rows(maria: DatabaseFactory) -> None:
    """MySQL writes any text behind a table's name: with_hint() could read everybody's rows."""
    stolen = "WHERE 1=0 UNION ALL SELECT u.username FROM users AS u JOIN runs"
    for statement in (
        select(Run.run_id).with_hint(Run, stolen),
        update(Run).values(gridcore_version="1").with_hint("-- "),
    ):
        with maria.get_session(user_id="ann") as session, pytest.raises(TenantViolation, match="a hint"):
            session.execute(statement)


def test_names_that_are_words_of_sql_are_quoted_in_users_sessions(maria: DatabaseFactory) -> None:
    """By MySQL's own quotes, which nothing in a name closes; the others there are of texts, with escapes."""
    with maria.get_session(user_id="ann") as session:
        labelled = select(Run.run_id.label("interval"), Run.run_id.label("a``b"))
        assert session.execute(labelled).one() == ("run-ann", "run-ann")
    other = "(SELECT max(api_key_id) FROM api_credentials)"
    for name in (f"`run_id`, {other}, `run_id`", f'"\\"", {other} -- "', f"`\\`, {other} -- `", "`run_id", "a b"):
        with (
            maria.get_session(user_id="ann") as session,
            pytest.raises(TenantViolation, match="a name that is not quoted"),
        ):
            session.execute(select(Run.run_id, column(quoted_name(name, False))))


def test_an_upsert_of_mysql_s_own_form_reaches_nobody(maria: DatabaseFactory) -> None:
    """It changes whichever row has one of the keys, and so is refused."""
    before = everything_of(maria, "bob")
    for model, values, stolen in (
        (Run, run_values("ann", run_id="run-bob"), {"status": "failed"}),
        (User, {"user_id": "ann", "username": "name-bob"}, {"email": "ann@example.org"}),
    ):
        statement = mysql_insert(model).values(**values).on_duplicate_key_update(**stolen)
        with maria.get_session(user_id="ann") as session, pytest.raises(TenantViolation, match="upsert"):
            session.execute(statement)
    assert everything_of(maria, "bob") == before


def test_an_update_over_two_tables_stays_with_own_rows(maria: DatabaseFactory) -> None:
    """MySQL lists the target among the tables that it reads."""
    with maria.get_session(user_id="ann") as session:
        statement = update(Run).where(Run.user_id == User.user_id).values(gridcore_version="2")
        session.execute(statement, execution_options={"synchronize_session": False})
    with maria.get_session() as session:
        assert session.execute(select(Run.run_id).where(Run.gridcore_version == "2")).scalars().all() == ["run-ann"]


def test_unique_indexes_of_some_rows_alone_hold(maria: DatabaseFactory) -> None:
    """There are none on MySQL; an invisible column that the database calculates stands for each."""
    with maria.get_session() as session:
        for active in (False, False):
            session.add(ApiCredential(account_id="acc-ann", api_key_id="k", api_secret="s", is_active=active))
        session.flush()
        second = ApiCredential(account_id="acc-ann", api_key_id="k", api_secret="s", is_active=True)
        with pytest.raises(ConstraintError, match="uq_api_credentials_active_account_id"), session.begin_nested():
            session.add(second)
            session.flush()


def test_texts_differ_by_case_and_by_a_blank_at_the_end(maria: DatabaseFactory) -> None:
    """The servers' own collations take them for equal."""
    with maria.get_session() as session:
        session.add_all([User(username=name) for name in ("a", "A", "a ", "á")])
        session.flush()
        assert session.scalars(select(User.username).where(User.username == "a")).all() == ["a"]


def test_a_document_may_have_a_hundred_levels(maria: DatabaseFactory) -> None:
    """MariaDB's own JSON ends at 31."""
    document: dict[str, object] = {}
    for _ in range(98):
        document = {"é": document}
    with maria.get_session() as session:
        session.get_one(Strategy, "str-ann").config_json = document
    with maria.get_session() as session:
        assert session.get_one(Strategy, "str-ann").config_json == document
        assert session.scalar(select(Strategy.strategy_id).where(Strategy.config_json == document)) == "str-ann"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_duplicates_are_counted_exactly(maria: DatabaseFactory, size: int) -> None:
    """Neither FOUND_ROWS nor INSERT IGNORE tells how many were new; a single row least of all."""
    rows = [trade_values(trade_id=str(number)) for number in range(6)]
    with maria.get_session() as session:
        trades = PublicTradeRepository(session)
        assert trades.bulk_create(rows[:3]).inserted == 3
        assert trades.bulk_create([*rows, rows[5]], batch_size=size).inserted == 3
        assert trades.bulk_create(rows, batch_size=size).inserted == 0


def test_a_later_page_is_found_by_the_index(maria: DatabaseFactory) -> None:
    """(a, b) > (x, y) would have MariaDB read every row before it."""
    with maria.get_session() as session:
        later = tuple_(PublicTrade.exchange_ts, PublicTrade.trade_id) > tuple_(NOW, "x")
        written = str(select(PublicTrade.id).where(later).compile(dialect=maria.engine.dialect))
        assert "exchange_ts >= " in written
        rows = [trade_values(trade_id=f"{n:02}", exchange_ts=NOW + timedelta(seconds=n // 3)) for n in range(20)]
        PublicTradeRepository(session).bulk_create(rows)
        found = PublicTradeRepository(session).iter_symbol_range(rows[0]["symbol"], page_size=2)
        assert [row.trade_id for row in found] == [f"{n:02}" for n in range(20)]


def test_an_error_shows_no_value(maria: DatabaseFactory) -> None:
    """The server quotes the key that is there already."""
    with maria.get_session() as session, pytest.raises(ConstraintError) as refused:
        session.execute(insert(User).values(user_id="x", username="name-bob"))
    assert "name-bob" not in f"{refused.value} {refused.value.orig} {refused.value.__cause__!r}"


def test_after_a_deadlock_nothing_is_stored_that_follows(maria: DatabaseFactory) -> None:
    """The server has ended the transaction; what the block goes on to write would be stored at once, by itself."""
    with pytest.raises(TransactionAbortedError), maria.get_session() as session:
        session.add(User(username="before"))
        session.flush()
        with pytest.raises(TransactionConflictError):
            session.execute(text("SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'Deadlock found'"))
        session.execute(insert(User).values(user_id="after", username="after"))
    with maria.get_session() as session:
        assert not session.scalars(select(User).where(User.username.in_(["before", "after"]))).all()


def test_ddl_that_ends_a_transaction_is_told(maria: DatabaseFactory) -> None:
    """It commits what came before, of which the session believes that it could undo it."""
    with pytest.raises(TransactionControlError), maria.get_session() as session:
        session.add(User(username="half"))
        session.flush()
        session.execute(text("CREATE TABLE another (id INT PRIMARY KEY)"))


def test_outside_tables_have_the_same_texts(maria: DatabaseFactory) -> None:
    """Any table that is made by a factory's engine compares by code points, plain columns too.

    And its CHECKs may name what is a word of SQL on MariaDB alone.
    """
    columns = Column("id", Integer, primary_key=True), Column("name", String(20)), Column("interval", String(8))
    outside = Table("outside", MetaData(), *columns, CheckConstraint("interval IN ('interval', '1h')"))
    outside.create(maria.engine)
    collations = maria.engine.connect().execute(
        text("SELECT DISTINCT collation_name FROM information_schema.columns WHERE table_name = 'outside'")
    )
    assert {name for (name,) in collations if name} == {"utf8mb4_nopad_bin"}
    outside.drop(maria.engine)


def test_a_backup_is_restored_into_a_new_database(
    maria: DatabaseFactory, other_maria: DatabaseFactory, tmp_path: Path
) -> None:
    """By the server's own programs, with the rows of both counted; over tables that are there it is refused."""
    awkward = "it's \\ a ('name'); -- \n\r\té"
    with maria.get_session() as session:
        session.add(User(username=awkward))
    maria.enable_audit()
    report = back_up(maria, tmp_path / "backup.sql")
    assert report.rows["users"] == 3
    assert restore(other_maria, tmp_path / "backup.sql").rows == report.rows
    other_maria.check_schema()
    for user in ("ann", "bob", "it's"):
        assert everything_of(other_maria, user) == everything_of(maria, user)
    with pytest.raises(TargetNotEmptyError):
        restore(other_maria, tmp_path / "backup.sql", force=True)


def test_a_backup_that_breaks_off_leaves_no_table(
    maria: DatabaseFactory, other_maria: DatabaseFactory, tmp_path: Path
) -> None:
    """DDL commits, so that what a failure has left is dropped."""
    back_up(maria, tmp_path / "backup.sql")
    script = (tmp_path / "backup.sql").read_bytes()
    for bad in (script[: len(script) // 2], script.replace(b"INSERT INTO `runs`", b"INSERT INTO `runz`")):
        (tmp_path / "bad.sql").write_bytes(bad)
        with pytest.raises(BackupError):
            restore(other_maria, tmp_path / "bad.sql")
        assert inspect(other_maria.engine).get_table_names() == []


def test_a_copy_to_it_and_back_is_the_same(maria: DatabaseFactory, tmp_path: Path) -> None:
    """Compared column by column on both ways, as any copy."""
    with DatabaseFactory(f"sqlite:///{tmp_path}/grid.db") as file, maria.get_session() as session:
        rows = [trade_values(trade_id=f"'{n}\\", price=Decimal(n + 1) / 8) for n in range(2_500)]
        PublicTradeRepository(session).bulk_create(rows)
        session.commit()
        assert copy_database(maria, file).rows["public_trades"] == 2_500
        assert everything_of(file, "ann") == everything_of(maria, "ann")


def test_what_it_has_not_is_refused_by_name(maria: DatabaseFactory) -> None:
    """Never done in another database's way."""
    with pytest.raises(RowSecurityError, match="MariaDB or MySQL has no row-level security"):
        maria.enable_row_security()
    with pytest.raises(UnknownDatabaseError, match="no catalog"):
        runner.check(maria)
    with pytest.raises(UnknownDatabaseError, match="no revisions"):
        runner.sql("mysql")


def test_a_run_that_is_running_is_found(maria: DatabaseFactory) -> None:
    """A condition on a boolean or a word takes a parameter; and the database is well."""
    with maria.get_session(user_id="ann") as session:
        runs = RunRepository(session)
        assert [run.run_id for run in runs.get_running()] == ["run-ann"]
        runs.finish("run-ann")
    assert maria.health(check=True).problems == ()
