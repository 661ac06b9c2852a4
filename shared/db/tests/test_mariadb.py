"""MariaDB: what holds there by other means than on the other databases, and what is refused by name.

Without a `mariadbd` or `mysqld`, or a GRIDBOT_TEST_MYSQL_URL, these are left out, which the last lines of the run say.
"""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    URL,
    CheckConstraint,
    Column,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    column,
    event,
    insert,
    inspect,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.orm import Mapped, Session, mapped_column
from sqlalchemy.sql.elements import quoted_name

from shared.db import (
    ApiCredential,
    BackupError,
    Base,
    BoundedString,
    CheckedInteger,
    ConstraintError,
    DatabaseFactory,
    DatabaseFailure,
    DatabaseLockedError,
    ExecutionRow,
    MigrationError,
    Ownership,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Repository,
    RowSecurityError,
    Run,
    RunRepository,
    SchemaVersionError,
    Strategy,
    Stream,
    TargetNotEmptyError,
    TenantViolation,
    TransactionAbortedError,
    TransactionConflictError,
    TransactionControlError,
    User,
    UTCDateTime,
    parent_column,
)
from shared.db.migrations import runner
from shared.db.operations import mysql_exchange
from shared.db.operations.backup import back_up, restore
from shared.db.operations.copy_database import copy_database
from shared.db.operations.interruption import Interrupted
from shared.db.testing import _MySQLDatabases, run_on_mysql
from shared.db.tests.fleet import everything_of, fill, run_values
from shared.db.tests.forked import run_python
from shared.db.tests.migration_support import REVISIONS, contents, schema_of, seed
from shared.db.tests.outside import outside_tables
from shared.db.tests.support import execution_values, statements_of, trade_values

NOW = datetime(2025, 5, 19, tzinfo=UTC)
_TRADE = (
    "INSERT INTO public_trades (symbol, trade_id, exchange_ts, local_ts, side, price, size) "
    "VALUES ('BTCUSDT', 't', now(), now(), 'Buy', 1, 1)"
)


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


@pytest.fixture
def long(maria: DatabaseFactory) -> DatabaseFactory:
    """A MariaDB of which one symbol's 3,000 trades are half."""
    rows = [trade_values(n, symbol=symbol) for n in range(3000) for symbol in ("BTCUSDT", "ETHUSDT")]
    with maria.get_session() as session:
        PublicTradeRepository(session).bulk_create(rows)
    with maria.engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE TABLE public_trades")
    return maria


def _looked_at(session: Session, work: Callable[[], object]) -> int:
    """How many rows, and entries of indexes, the server looked at for that."""
    connection = Session.connection(session)
    query = "SHOW SESSION STATUS WHERE variable_name LIKE 'Handler_read%%' OR variable_name = 'Handler_icp_attempts'"

    def seen() -> int:
        return sum(int(value) for _, value in connection.exec_driver_sql(query))

    first = seen()
    itself = (before := seen()) - first
    work()
    return seen() - before - itself


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("as_objects", [False, True])
def test_a_page_looks_at_its_own_rows_alone(long: DatabaseFactory, reverse: bool, as_objects: bool) -> None:
    """The server would begin with the symbol's first row, wherever the page begins: of a symbol that is half of all."""
    with long.get_session(read_only=True) as session:
        trades = PublicTradeRepository(session)
        after = [row.cursor for row in trades.iter_symbol_range("BTCUSDT")][1500]

        def page() -> None:
            rows = trades.iter_range("BTCUSDT", after=after, page_size=100, reverse=reverse, as_objects=as_objects)
            expected = range(1499, 1399, -1) if reverse else range(1501, 1601)
            assert [row.trade_id for row in itertools.islice(rows, 100)] == [f"trade-{n}" for n in expected]

        assert _looked_at(session, page) < 500


def test_the_last_row_before_a_time_is_looked_up(long: DatabaseFactory) -> None:
    """The server would go back to it from the symbol's newest row."""
    with long.get_session(read_only=True) as session:

        def look() -> None:
            found = PublicTradeRepository(session).get_trade_at_or_before("BTCUSDT", trade_values(1500)["exchange_ts"])
            assert found is not None
            assert found.trade_id == "trade-1500"

        assert _looked_at(session, look) < 10


def test_a_user_s_page_is_found_by_its_run(maria: DatabaseFactory) -> None:
    """By an equality, through which the server finds the run's owner; else it would sort all rows for each page."""
    with outside_tables():

        class Order(Base):
            """Some run's."""

            __tablename__ = "orders"
            __ownership__ = Ownership("run_id")
            __stream__ = Stream(by="run_id", time="placed_ts", tie="order_id")
            __table_args__ = (UniqueConstraint("run_id", "placed_ts", "order_id"),)
            id: Mapped[int] = mapped_column(CheckedInteger(), primary_key=True, autoincrement=True)
            run_id: Mapped[str] = parent_column("runs.run_id")
            order_id: Mapped[str] = mapped_column(BoundedString(50))
            placed_ts: Mapped[datetime] = mapped_column(UTCDateTime())

        maria.create_tables()
        with maria.get_session() as session:
            run = session.scalars(select(Run)).first()
            assert run is not None
            rows = [{"run_id": run.run_id, "order_id": f"{n}", "placed_ts": NOW} for n in range(1000, 2000)]
            Repository(session, Order).bulk_create(rows, user_id=run.user_id)
        with maria.get_session(user_id=run.user_id, read_only=True) as session:

            def page() -> None:
                found = Repository(session, Order).iter_range(run.run_id, page_size=10)
                assert [row.order_id for row in itertools.islice(found, 10)] == [f"{n}" for n in range(1000, 1010)]

            assert _looked_at(session, page) < 100
        with maria.engine.connect() as connection:
            connection.exec_driver_sql("DROP TABLE orders")


@pytest.mark.parametrize("reverse", [False, True])
def test_a_page_comes_as_one_text(long: DatabaseFactory, reverse: bool) -> None:
    """In the order of its rows: the driver takes its time for each row, and is given one a page."""
    with long.get_session(read_only=True) as session, statements_of(long) as sent:
        rows = PublicTradeRepository(session).iter_symbol_range("BTCUSDT", reverse=reverse, page_size=1000)
        numbers = reversed(range(3000)) if reverse else range(3000)
        assert [row.trade_id for row in rows] == [f"trade-{n}" for n in numbers]
    newest, *pages = sent
    assert "max(" in newest
    assert ["group_concat" in page for page in pages] == [True] * 4


def test_a_page_is_no_longer_than_a_text(maria: DatabaseFactory) -> None:
    """Whoever asks for more rows at a time gets them in several."""
    with maria.get_session() as session, statements_of(maria) as sent:
        trades = PublicTradeRepository(session)
        trades.bulk_create([trade_values(number) for number in range(20_001)])
        sent.clear()
        assert sum(1 for _ in trades.iter_symbol_range("BTCUSDT", page_size=50_000)) == 20_001
    assert sum("group_concat" in statement for statement in sent) == len(sent) - 1 == 2


def test_a_page_is_whole_whatever_the_server_cuts_off(maria: DatabaseFactory) -> None:
    """A text that is too long for it has no end, without a word; such a page comes row by row."""
    with maria.get_session() as session:
        trades = PublicTradeRepository(session)
        trades.bulk_create([trade_values(number, trade_id=f"é-{number}") for number in range(3)])
        whole = list(trades.iter_symbol_range("BTCUSDT"))
        with statements_of(maria) as sent:
            for longest in range(4, 400):
                session.connection().exec_driver_sql(f"SET SESSION group_concat_max_len = {longest}")
                assert list(trades.iter_symbol_range("BTCUSDT")) == whole
        pages = [statement for statement in sent if "LIMIT" in statement]
        assert 0 < sum("group_concat" not in statement for statement in pages) < 396


@pytest.mark.parametrize("odd", [None, "", "=", "x", "=x", "\n\t\\", "a\0b"])
def test_a_range_reads_what_its_rows_hold(maria: DatabaseFactory, odd: str | None) -> None:
    """A row comes as one text, in which NULL, the marks of a value and what others stored stay what they are."""
    with maria.get_session() as session:
        run = session.scalars(select(Run)).first()
        assert run is not None
        PrivateExecutionRepository(session).bulk_create(
            [execution_values(run, number) for number in range(5)], user_id=run.user_id
        )
        # As another program writes it: ours refuses NUL.
        session.connection().exec_driver_sql(
            "UPDATE private_executions SET order_link_id = %s, closed_pnl = NULL WHERE exec_id = 'exec-2'", (odd,)
        )
        session.commit()
        repository = PrivateExecutionRepository(session, user_id=run.user_id)
        for size in (2, 2000):
            plain = list(repository.iter_run_range(run.run_id, page_size=size))
            mapped = repository.iter_run_range(run.run_id, as_objects=True)
            assert plain == [tuple(getattr(row, name) for name in ExecutionRow._fields) for row in mapped]
            assert [row.order_link_id for row in plain if row.exec_id == "exec-2"] == [odd]


def test_an_error_shows_no_value(maria: DatabaseFactory) -> None:
    """The server quotes the key that is there already."""
    with maria.get_session() as session, pytest.raises(ConstraintError) as refused:
        session.execute(insert(User).values(user_id="x", username="name-bob"))
    assert "name-bob" not in f"{refused.value} {refused.value.orig} {refused.value.__cause__!r}"


def test_errors_keep_their_names_after_a_look_at_the_schema(maria: DatabaseFactory) -> None:
    """SQLAlchemy's inspect() would have the connection's errors go past whoever names them, and hides values."""
    with maria.get_session() as session:
        assert inspect(session.connection()).get_columns("users")
        assert not inspect(session.connection()).has_table("nowhere")
        with pytest.raises(ConstraintError) as refused:
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
    """By the server's own programs, with the rows of both counted, and views too, whichever needs which."""
    awkward = "it's \\ a ('name'); -- \n\r\té"
    with maria.get_session() as session:
        session.add(User(username=awkward))
    with maria.engine.connect() as connection:
        for name, source in (("named", "users"), ("alike", "named WHERE username LIKE 'name:%'")):
            connection.exec_driver_sql(
                f"CREATE VIEW {name} AS SELECT username FROM {source}", execution_options={"no_parameters": True}
            )
    maria.enable_audit()
    report = back_up(maria, tmp_path / "backup.sql")
    assert report.rows["users"] == 3
    assert restore(other_maria, tmp_path / "backup.sql").rows == report.rows
    other_maria.check_schema()
    for user in ("ann", "bob", "it's"):
        assert everything_of(other_maria, user) == everything_of(maria, user)
    with other_maria.get_session() as session:
        assert session.scalar(text("SELECT count(*) FROM named")) == 3
        assert session.scalar(text("SELECT count(*) FROM alike")) == 0


def _state(db: DatabaseFactory) -> tuple[object, object, list[str]]:
    """The schema with its triggers, all rows, and what is left beside it."""
    return schema_of(db), contents(db), [name for name in _databases(db) if "scratch" in name]


@pytest.fixture
def young(maria: DatabaseFactory, tmp_path: Path) -> DatabaseFactory:
    """A MariaDB with an audit log that has gone on since `backup.sql` was made."""
    maria.enable_audit()
    with maria.get_session() as session:
        session.add(User(username="old"))
    back_up(maria, tmp_path / "backup.sql")
    with maria.get_session() as session:
        session.add(User(username="young"))
    return maria


def test_a_restore_over_live_tables_replaces_them_at_once(young: DatabaseFactory, tmp_path: Path) -> None:
    """With their triggers; what is not in the backup stays, and views show the rows that came."""
    with young.engine.connect() as connection:
        for statement in (
            "CREATE TABLE notes (id INT, user_id VARCHAR(64) COLLATE utf8mb4_nopad_bin REFERENCES users (user_id))",
            "CREATE VIEW names AS SELECT username FROM users",
        ):
            connection.execute(text(statement))
    before = _state(young)
    with pytest.raises(BackupError, match=r"\.notes would stay, and has a foreign key"):
        restore(young, tmp_path / "backup.sql", force=True)
    with pytest.raises(TargetNotEmptyError, match=r"in .*users; .*--force"):
        restore(young, tmp_path / "backup.sql")
    assert _state(young) == before
    with young.engine.connect() as connection:
        key = connection.scalar(
            text("SELECT constraint_name FROM information_schema.referential_constraints WHERE table_name = 'notes'")
        )
        connection.execute(text(f"ALTER TABLE notes DROP FOREIGN KEY {key}"))
        connection.execute(text("INSERT INTO notes VALUES (1, 'young')"))
        connection.commit()
    report = restore(young, tmp_path / "backup.sql", force=True)
    assert report.rows["users"] == 3
    assert runner.check(young) == []
    assert [name for name in _databases(young) if "scratch" in name] == []
    with young.get_session() as session:
        assert session.scalar(text("SELECT count(*) FROM names")) == 3
        assert session.scalar(text("SELECT count(*) FROM notes")) == 1
        with pytest.raises(ConstraintError, match="append-only"), session.begin_nested():
            session.execute(text("DELETE FROM audit_log"))


def test_a_restore_that_fails_leaves_all_as_it_was(
    young: DatabaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged script, rows that are not its own, tables that are held, a trigger that cannot be made, a signal."""
    monkeypatch.setattr(mysql_exchange, "_LOCK_TIMEOUT", 0)
    path = tmp_path / "backup.sql"
    script = path.read_bytes()
    before = _state(young)
    for bad in (
        script[: len(script) // 2],
        script.replace(b"INSERT INTO `runs`", b"INSERT INTO `runz`"),
        script.replace(b"-- Dump completed", b"DELETE FROM `runs`;\n-- Dump completed"),
        script.replace(b"'name-bob'", b"'name-bob' name-bob"),
    ):
        (tmp_path / "bad.sql").write_bytes(bad)
        with pytest.raises(BackupError, match=r"in the middle|runz|not the backup's|what is not shown") as refused:
            restore(young, tmp_path / "bad.sql", force=True)
        assert "name-bob" not in str(refused.value)
        assert _state(young) == before
    with young.get_session() as session:
        assert session.scalars(select(User.username)).all()
        with pytest.raises(DatabaseLockedError):
            restore(young, path, force=True)
    assert _state(young) == before
    with _failing(young, "audit_log_no_update", times=1), pytest.raises(_PowerCut):
        restore(young, path, force=True)
    assert _state(young) == before
    told: list[int] = []

    def stop(done: int, rows: int) -> None:
        told.append(done)
        if len(told) == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"the restore did not take place, and .* is as it was"):
        restore(young, path, force=True, watch=stop)
    assert _state(young) == before


def test_rows_that_come_while_a_restore_loads_are_not_lost(
    young: DatabaseFactory, other_maria: DatabaseFactory, tmp_path: Path
) -> None:
    """Without force it looks again once nobody can write, and puts the tables back."""
    other_maria.create_tables()

    def write(done: int, rows: int) -> None:
        with other_maria.get_session() as session:
            session.add(User(username=f"late-{done}"))

    with pytest.raises(TargetNotEmptyError, match="in users"):
        restore(other_maria, tmp_path / "backup.sql", watch=write)
    with other_maria.get_session() as session:
        assert len(session.scalars(select(User)).all()) == 2
    assert runner.check(other_maria) == []


def test_a_connection_that_is_lost_while_tables_change_places_is_told(young: DatabaseFactory, tmp_path: Path) -> None:
    """With the state that may be left, which the next restore mends."""

    def kill(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("RENAME"):
            run_on_mysql(young.settings.url, f"KILL {connection.connection.dbapi_connection.thread_id()}")

    event.listen(young.engine, "before_cursor_execute", kill)
    try:
        with pytest.raises(
            BackupError, match=r"holds the old rows or the backup's, and may lack triggers; restore again"
        ):
            restore(young, tmp_path / "backup.sql", force=True)
    finally:
        event.remove(young.engine, "before_cursor_execute", kill)
    restore(young, tmp_path / "backup.sql", force=True)
    assert _state(young)[2] == []
    assert runner.check(young) == []


_KILLED = """
import os, sys
from sqlalchemy import event
from shared.db import DatabaseFactory
from shared.db.operations.backup import restore
with DatabaseFactory(sys.argv[1]) as db:
    @event.listens_for(db.engine, "before_cursor_execute")
    def die(connection, cursor, statement, *more):
        if statement.startswith(sys.argv[3]):
            os.kill(os.getpid(), 9)
    restore(db, sys.argv[2], force=True)
"""


@pytest.mark.parametrize("moment", ["USE", "RENAME TABLE", "CREATE DEFINER", "DROP DATABASE `"])
def test_a_restore_that_is_killed_leaves_the_old_rows_or_the_new(
    young: DatabaseFactory, tmp_path: Path, moment: str
) -> None:
    """If the audit log's triggers are missing, `migrate check` tells; `migrate up --audit` mends it, or a restore."""
    path = tmp_path / "backup.sql"
    old = contents(young)
    url = young.settings.url.render_as_string(hide_password=False)
    assert run_python("-c", _KILLED, url, str(path), moment).returncode == -9
    took_place = moment not in ("USE", "RENAME TABLE")
    assert (contents(young) == old) is not took_place
    young.check_schema()
    missing = [str(found) for found in runner.check(young)]
    unguarded = moment in ("RENAME TABLE", "CREATE DEFINER")
    assert (
        missing
        == [f"trigger audit_log.audit_log_no_{event} is missing" for event in ("delete", "update")][: 2 * unguarded]
    )
    if unguarded:
        young.enable_audit()
        assert runner.check(young) == []
    assert restore(young, path, force=True).rows["users"] == 3
    assert runner.check(young) == []
    assert [name for name in _databases(young) if "scratch" in name] == []


def test_a_copy_to_it_and_back_is_the_same(maria: DatabaseFactory, tmp_path: Path) -> None:
    """Compared column by column on both ways, as any copy."""
    with DatabaseFactory(f"sqlite:///{tmp_path}/grid.db") as file, maria.get_session() as session:
        rows = [trade_values(trade_id=f"'{n}\\", price=Decimal(n + 1) / 8) for n in range(2_500)]
        PublicTradeRepository(session).bulk_create(rows)
        session.commit()
        assert copy_database(maria, file).rows["public_trades"] == 2_500
        assert everything_of(file, "ann") == everything_of(maria, "ann")


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        (["INSERT INTO users (user_id, username) VALUES ('ann', 'ann')", _TRADE], True),
        (["CREATE TABLE notes (user_id varchar(36))"], True),
        (["ALTER TABLE users ADD COLUMN nick text"], False),
        (["CREATE TRIGGER noted BEFORE DELETE ON users FOR EACH ROW SET @a = 1"], False),
        (["UPDATE shared_db_version SET revision = 'mine'"], False),
    ],
)
def test_a_database_that_serves_test_after_test_is_new_to_each(
    mysql_server: URL, changes: list[str], again: bool
) -> None:
    """Rows and tables go, the numbers begin anew; what was changed in another way is not handed on."""
    with closing(_MySQLDatabases(mysql_server)) as databases:
        with databases.one() as first:
            run_on_mysql(first, *changes, "COMMIT")
        with databases.one() as second, DatabaseFactory(second) as db:
            assert (first == second) == again
            assert "notes" not in inspect(db.engine).get_table_names()
            with db.get_session() as session:
                assert session.scalars(select(User)).all() == []
                session.execute(text(_TRADE))
                assert session.scalars(select(PublicTrade.id)).all() == [1]


def test_what_it_has_not_is_refused_by_name(maria: DatabaseFactory) -> None:
    """Never done in another database's way."""
    with pytest.raises(RowSecurityError, match="MariaDB or MySQL has no row-level security"):
        maria.enable_row_security()


@pytest.fixture
def empty_maria(mysql_url: URL) -> Iterator[DatabaseFactory]:
    """One with nothing in it."""
    with DatabaseFactory(mysql_url) as db:
        yield db


class _PowerCut(Exception):
    """What breaks a step off."""


def _in_pieces(db: DatabaseFactory, move: Callable[[], object]) -> int:
    """Run `move` until it comes to its end, each time one statement farther; how many they are."""
    before = schema_of(db)
    for allowed in itertools.count(1):
        left = iter(range(allowed))

        def cut(_connection: Any, _cursor: Any, statement: str, *_: Any, left: Iterator[int] = left) -> None:
            changes = re.match(r"\s*(ALTER|CREATE|DROP|UPDATE)", statement) and "shared_db_version" not in statement
            if changes and next(left, None) is None:
                raise _PowerCut

        event.listen(db.engine, "before_cursor_execute", cut)
        try:
            move()
        except _PowerCut:
            if schema_of(db) != before:
                with pytest.raises(SchemaVersionError):
                    db.check_schema()
        else:
            return allowed
        finally:
            event.remove(db.engine, "before_cursor_execute", cut)
    raise AssertionError


def test_a_step_that_broke_off_anywhere_is_done_by_the_next_upgrade(empty_maria: DatabaseFactory) -> None:
    """DDL commits, statement by statement: the database counts as behind, and what is there already is passed over."""
    db = empty_maria
    there = [schema_of(db)]
    for revision in REVISIONS[1:]:
        runner.upgrade(db, revision)
        there.append(schema_of(db))
    rows = None
    for older, newer in reversed([*itertools.pairwise(range(len(REVISIONS)))]):
        back = partial(runner.downgrade, db, REVISIONS[older], allow_data_loss=True)
        _in_pieces(db, back)
        assert schema_of(db) == there[older]
        if rows is None:
            seed(db)
            rows = {"public_trades": contents(db)["public_trades"]}
        pieces = _in_pieces(db, partial(runner.upgrade, db, REVISIONS[newer]))
        assert pieces > (10 if newer == 1 else 0)
        assert schema_of(db) == there[newer]
        if older:
            assert contents(db, like=rows) == rows
        back()
    assert there[0] == schema_of(db) == {}


def test_a_step_that_broke_off_can_be_taken_back(empty_maria: DatabaseFactory) -> None:
    """Forward or back, whichever was under way."""
    db = empty_maria
    for target in (1, 0):
        runner.upgrade(db, REVISIONS[1])
        cut = _failing(db, "uq_bybit_accounts_account_id_user_id")
        with cut, pytest.raises(_PowerCut):
            runner.upgrade(db)
        assert runner.status(db).state == "behind"
        assert runner.status(db).database_revision == "0007_one_running_run"
        with pytest.raises(MigrationError, match="at 0008_keys_for_runs, past 0007"):
            runner.upgrade(db, "0007")
        runner.downgrade(db, REVISIONS[target], allow_data_loss=True)
        assert schema_of(db).keys() == (schema_of(db).keys() if target else set())
        assert runner.status(db).database_revision == (REVISIONS[1] if target else None)


def test_tables_whose_making_broke_off_are_made_anew(empty_maria: DatabaseFactory) -> None:
    """By create_tables(), as long as they are empty; nothing of what was there before is dropped."""
    db = empty_maria
    for word in ("users", "ix_runs_status", "private_executions"):
        with _failing(db, word), pytest.raises(_PowerCut):
            db.create_tables()
        with pytest.raises(SchemaVersionError):
            db.check_schema()
    with pytest.raises(MigrationError, match=r"make them anew: python -m shared.db init"):
        runner.upgrade(db)
    with db.engine.begin() as connection:
        connection.execute(insert(User).values(user_id="ann", username="ann"))
    with pytest.raises(SchemaVersionError):
        db.create_tables()
    with db.engine.begin() as connection:
        connection.execute(text("DELETE FROM users"))
    assert db.create_tables()
    assert runner.check(db) == []


def test_drift_of_outside_tables_is_seen(empty_maria: DatabaseFactory) -> None:
    """A column too many, another type, an index and a trigger that went: each by its name, and nothing else."""
    db = empty_maria
    db.create_tables()
    assert runner.check(db) == []
    assert [name for name in _databases(db) if "scratch" in name] == []
    with db.engine.connect() as connection:
        for change in (
            "ALTER TABLE users ADD COLUMN nickname VARCHAR(20)",
            "ALTER TABLE users MODIFY email VARCHAR(200) COMMENT 'Contact email'",
            "ALTER TABLE runs DROP CONSTRAINT ck_runs_status",
            "DROP INDEX ix_runs_status ON runs",
            "DROP TRIGGER audit_log_no_delete",
            "CREATE TABLE mine (id INT)",
        ):
            connection.execute(text(change))
    assert [str(found) for found in runner.check(db)] == [
        "trigger audit_log.audit_log_no_delete is missing",
        "constraint runs.ck_runs_status is missing",
        "index runs.ix_runs_status is missing",
        "column users.email is 'varchar(200) DEFAULT NULL' and should be 'varchar(255) DEFAULT NULL'",
        "column users.nickname is in the database but not in the models",
    ]
    assert runner.not_ours(db) == ["mine"]


def test_a_login_that_may_make_no_database_is_told_what_to_grant(empty_maria: DatabaseFactory, tmp_path: Path) -> None:
    """To compare schemas one is made beside; whoever may only change its own database may still upgrade it."""
    url = empty_maria.settings.url
    with empty_maria.engine.connect() as connection:
        connection.execute(text("CREATE USER IF NOT EXISTS bound@localhost IDENTIFIED BY 'word'"))
        connection.execute(text(f"GRANT ALL ON `{url.database}`.* TO bound@localhost"))
    with DatabaseFactory(url.set(username="bound", password="word")) as db:
        runner.upgrade(db)
        with pytest.raises(MigrationError, match=r"GRANT ALL ON `shared\\_db\\_scratch%`"):
            runner.check(db)
        back_up(db, tmp_path / "backup.sql")
        with pytest.raises(BackupError, match=r"GRANT ALL ON `shared\\_db\\_scratch%`"):
            restore(db, tmp_path / "backup.sql")
        with empty_maria.engine.connect() as connection:
            connection.exec_driver_sql(
                r"GRANT ALL ON `shared\_db\_scratch%`.* TO bound@localhost", execution_options={"no_parameters": True}
            )
    with DatabaseFactory(url.set(username="bound", password="word")) as db:
        assert restore(db, tmp_path / "backup.sql", force=True).rows["users"] == 0
    assert runner.check(empty_maria) == []
    with empty_maria.engine.connect() as connection:
        connection.execute(text("DROP USER bound@localhost"))


def test_an_upgrade_that_waits_in_vain_says_for_whom_and_is_taken_up_again(maria: DatabaseFactory) -> None:
    """A transaction that has read a table holds it; the step waits as long as it is told to, and no longer."""
    runner.downgrade(maria, "0008", allow_data_loss=True)
    with maria.get_session() as session:
        assert session.scalars(select(Run.run_id)).all()
        with pytest.raises(MigrationError, match=r"locked through 1 attempts, by process \d+ \(root.*broke off"):
            runner.upgrade(maria, lock_timeout=0.1, attempts=1)
    assert runner.upgrade(maria).after == REVISIONS[-1]
    assert runner.check(maria) == []


def _databases(db: DatabaseFactory) -> list[str]:
    with db.engine.connect() as connection:
        return [*connection.scalars(text("SHOW DATABASES"))]


def test_a_table_that_is_missing_is_made_beside_the_others(maria: DatabaseFactory) -> None:
    """With its rows, each table that is there stays."""
    before = contents(maria)
    with maria.engine.begin() as connection:
        connection.execute(text("DROP TABLE private_executions"))
    assert maria.create_tables()
    assert contents(maria) == before | {"private_executions": contents(maria)["private_executions"]}
    assert before["users"].rows == 2


@contextmanager
def _failing(db: DatabaseFactory, word: str, *, times: int = 1_000) -> Iterator[None]:
    left = iter(range(times))

    def cut(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith("CREATE") and word in statement and next(left, None) is not None:
            raise _PowerCut

    event.listen(db.engine, "before_cursor_execute", cut)
    try:
        yield
    finally:
        event.remove(db.engine, "before_cursor_execute", cut)


def test_what_a_step_finds_made_by_others_is_no_step_of_its_own(empty_maria: DatabaseFactory) -> None:
    """Only a step that has been begun passes over what is there."""
    runner.upgrade(empty_maria, "0001")
    with empty_maria.engine.connect() as connection:
        connection.execute(text("ALTER TABLE runs ADD COLUMN host INT"))
    with pytest.raises(DatabaseFailure, match="Duplicate column name"):
        runner.upgrade(empty_maria)


def test_a_run_that_is_running_is_found(maria: DatabaseFactory) -> None:
    """A condition on a boolean or a word takes a parameter; and the database is well."""
    with maria.get_session(user_id="ann") as session:
        runs = RunRepository(session)
        assert [run.run_id for run in runs.get_running()] == ["run-ann"]
        runs.finish("run-ann")
    assert maria.health(check=True).problems == ()
