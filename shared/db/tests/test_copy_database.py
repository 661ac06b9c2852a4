"""A whole database moved to another one: every row, every digit, and nothing at all where that is not possible."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, delete, inspect, select, text
from sqlalchemy.orm import Session

from shared.db import (
    ApiCredential,
    Base,
    ConstraintError,
    CopyError,
    DatabaseFactory,
    PrivateExecution,
    PublicTrade,
    PublicTradeRepository,
    SchemaVersionError,
    TargetNotEmptyError,
    User,
)
from shared.db.commands.cli import main
from shared.db.migrations import runner
from shared.db.operations.copy_database import copy_database, row_total
from shared.db.operations.digests import digest
from shared.db.schema_version import SCHEMA_REVISION
from shared.db.testing import has_mysql
from shared.db.tests.fleet import rows_of
from shared.db.tests.support import execution_values, run_on_server, trade_values
from shared.db.value_forms.amounts import MONEY_DIGITS

RING = "k1:" + "A" * 43 + "="
SECRET = "copy-canary-Zq7vT"

Make = Callable[[], DatabaseFactory]

# All that SQLite gives back: 15 digits anywhere in Numeric(20, 8).
amounts = st.builds(
    lambda number, places: Decimal(number).scaleb(-places), st.integers(-(10**12) + 1, 10**12 - 1), st.integers(0, 8)
) | st.integers(-(10**15) + 1, 10**15 - 1).map(lambda number: Decimal(number).scaleb(-8))
instants = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001 # hypothesis adds the zone
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8) | st.sampled_from(
    ["\\N", "\\.", "\t", "\n", "\r\n", "\\", "a\\tb", "'", '"', " ", ""]
)
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | texts | st.floats(-1e6, 1e6).map(lambda x: round(x, 3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
trades = st.fixed_dictionaries({"exchange_ts": instants, "local_ts": instants, "price": amounts, "size": amounts})
executions = st.fixed_dictionaries(
    {
        "order_link_id": st.none() | texts,
        "exchange_ts": instants,
        "exec_price": amounts,
        "exec_fee": st.none() | amounts,
        "closed_pnl": st.none() | amounts,
        "raw_json": st.none() | st.dictionaries(texts, documents, max_size=3) | st.lists(documents, max_size=3),
    }
)


@pytest.fixture
def new_sqlite(tmp_path: Path) -> Iterator[Make]:
    """Makes SQLite files, which are closed in the end."""
    made: list[DatabaseFactory] = []
    numbers = itertools.count()

    def make() -> DatabaseFactory:
        made.append(DatabaseFactory(f"sqlite:///{tmp_path / f'copy-{next(numbers)}.db'}"))
        return made[-1]

    yield make
    for db in made:
        db.close()


PAIRS = ["sqlite to postgresql", "postgresql to sqlite", "sqlite to sqlite", "postgresql to postgresql"]
if has_mysql():
    PAIRS += ["sqlite to mysql", "mysql to postgresql", "mysql to mysql"]


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest, new_sqlite: Make) -> Iterator[tuple[DatabaseFactory, DatabaseFactory]]:
    """A source with the schema, and a target with nothing in it."""
    kinds = str(request.param).split(" to ")

    def url(kind: str, fixture: str) -> URL:
        found: URL = new_sqlite().settings.url if kind == "sqlite" else request.getfixturevalue(fixture)
        return found

    source = url(kinds[0], {"postgresql": "postgresql_url"}.get(kinds[0], "mysql_copy"))
    target = url(kinds[1], {"postgresql": "empty_postgresql_url"}.get(kinds[1], "mysql_url"))
    with DatabaseFactory(source) as source_db, DatabaseFactory(target) as target_db:
        source_db.create_tables()
        yield source_db, target_db


def everything(db: DatabaseFactory) -> dict[str, list[Any]]:
    """All rows as Python has them, in order of their key; a secret as it is stored."""
    with db.get_session(read_only=True) as session:
        connection = Session.connection(session)
        return {
            table.name: [
                tuple(getattr(value, "text", value) for value in row)
                for row in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in Base.metadata.sorted_tables
        }


def tables_of(db: DatabaseFactory) -> list[str]:
    """The names of the tables that are there."""
    with db.engine.connect() as connection:
        return inspect(connection).get_table_names()


@pytest.mark.parametrize("way", ["postgresql", *(["mysql postgresql mysql"] if has_mysql() else [])])
def test_a_copy_holds_every_value(way: str, request: pytest.FixtureRequest, new_sqlite: Make) -> None:
    """SQLite to a server, or from one to the next, and on to SQLite: whatever the values, all hold the same."""

    @settings(max_examples=12 // len(way.split()), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(trades, max_size=5), st.lists(executions, max_size=5), texts)
    def check(given_trades: list[Any], given_executions: list[Any], name: str) -> None:
        source, target = new_sqlite(), new_sqlite()
        source.create_tables()
        with source.get_session() as session:
            ann = rows_of("ann")
            session.add_all([*ann, User(username=name)])
            session.flush()
            run: Any = ann[4]
            session.add_all(
                PublicTrade(**trade_values(number, id=7**number, **row)) for number, row in enumerate(given_trades)
            )
            session.add_all(
                PrivateExecution(**execution_values(run, number, id=5 + number, **row))
                for number, row in enumerate(given_executions)
            )
        expected = everything(source)
        for before, after in itertools.pairwise((source, *servers, target)):
            if after is not target:
                with after.get_session() as session:
                    for model in (User, PublicTrade):
                        session.execute(delete(model))
            copy_database(before, after)
            assert everything(after) == expected
        with closing(sqlite3.connect(str(source.engine.url.database))) as one:
            one.execute("ATTACH ? AS other", (str(target.engine.url.database),))
            for table in ("public_trades", "users"):
                # Stored alike too: whatever compares or indexes them finds the same.
                assert one.execute(f"SELECT * FROM {table} EXCEPT SELECT * FROM other.{table}").fetchall() == []

    fixtures = {"postgresql": "postgresql_url", "mysql": "mysql_copy"}
    with ExitStack() as last:
        made = {
            kind: last.enter_context(DatabaseFactory(request.getfixturevalue(fixtures[kind]))) for kind in way.split()
        }
        servers = [made[kind] for kind in way.split()]
        check()


def test_a_copy_says_what_it_copied(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """Rows by table, the revision, and progress up to the number of rows; the target goes on numbering."""
    source, target = pair
    with source.get_session() as session:
        session.add_all([*rows_of("ann"), *rows_of("bob")])
        PublicTradeRepository(session).bulk_create(map(trade_values, range(5_000)))
        session.execute(delete(PublicTrade).where(PublicTrade.id == 5_000))
    told: list[int] = []
    report = copy_database(source, target, watch=lambda done, rows: told.append(done))
    assert told == sorted(told)
    assert told[-1] == sum(report.rows.values()) == row_total(source) == 4_999 + 12
    assert everything(target) == everything(source)
    target.check_schema()
    with target.get_session() as session:
        PublicTradeRepository(session).bulk_create([trade_values(9_999)])
        assert session.scalars(select(PublicTrade.id).order_by(PublicTrade.id.desc()).limit(1)).one() == 5_000
        with pytest.raises(ConstraintError):
            session.execute(
                text("INSERT INTO bybit_accounts (user_id, account_name, environment) VALUES ('x', 'y', 'mainnet')")
            )
        session.rollback()


def test_sealed_secrets_and_audit_come_along(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """Never opened: without a key here, as they are stored there; with the key they open in the copy."""
    source, target = pair
    source.enable_audit()
    with (
        DatabaseFactory(source.settings.model_copy(update={"encryption_keys": RING})) as keyed,
        keyed.get_session() as session,
    ):
        ann = rows_of("ann")
        ann[2].api_secret = SECRET  # type: ignore[attr-defined] # the credential
        session.add_all(ann)
    copy_database(source, target)
    assert everything(target) == everything(source)
    assert len(everything(target)["audit_log"]) >= 6
    assert SECRET not in str(everything(target))
    with (
        DatabaseFactory(target.settings.model_copy(update={"encryption_keys": RING})) as keyed,
        keyed.get_session() as session,
    ):
        assert session.scalars(select(ApiCredential)).one().api_secret == SECRET
        session.add(User(username="audited"))
    assert len(everything(target)["audit_log"]) == len(everything(source)["audit_log"]) + 1
    with pytest.raises(ConstraintError, match="append-only"), target.get_session() as session:
        session.execute(text("DELETE FROM audit_log"))
        session.rollback()


def test_json_null_and_sql_null_stay_apart(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """Also where something else than this library has written JSON null."""
    source, target = pair
    with source.get_session() as session:
        session.add_all(rows_of("ann"))
        session.flush()
        session.execute(text("UPDATE private_executions SET raw_json = 'null'"))
    copy_database(source, target)
    for db in pair:
        with db.get_session() as session:
            kind = "CHAR" if db.settings.port.name == "mysql" else "TEXT"
            stored = session.execute(text(f"SELECT CAST(raw_json AS {kind}) FROM private_executions")).scalar_one()
            assert stored == "null"
            assert session.execute(text("SELECT config_snapshot FROM runs")).scalar_one() is None


def test_an_amount_that_sqlite_cannot_hold_stops_the_copy(postgresql_url: URL, new_sqlite: Make) -> None:
    """The error names table, row and column, and the target is left without a table."""
    target = new_sqlite()
    with DatabaseFactory(postgresql_url) as source:
        with source.get_session() as session:
            session.add_all(PublicTrade(**trade_values(number)) for number in range(3))
            most = Decimal("9" * (MONEY_DIGITS - 8) + "." + "9" * 8)
            session.add(PublicTrade(**trade_values(3, id=77, size=most)))
        with pytest.raises(
            CopyError, match=r"public_trades, row 77, column size: .* 8-byte floats give back"
        ) as refused:
            copy_database(source, target)
    assert "999999999999.99999999" in str(refused.value)
    assert tables_of(target) == []


@pytest.mark.parametrize(
    ("statement", "match"),
    [
        (
            "UPDATE public_trades SET price = 1e300 WHERE id = 2",
            "public_trades, row 2, column price: the amount does not fit",
        ),
        (
            "UPDATE public_trades SET price = 'cheap' WHERE id = 2",
            "public_trades, row 2, column price: the text is not",
        ),
        (
            "UPDATE public_trades SET exchange_ts = 'today' WHERE id = 2",
            "public_trades, row 2, column exchange_ts: is nothing",
        ),
        (
            "UPDATE public_trades SET symbol = x'ff' WHERE id = 2",
            "public_trades, row 2, column symbol: is nothing that belongs",
        ),
        (
            "UPDATE public_trades SET symbol = '123456789012345678901234567890123' WHERE id = 2",
            "public_trades, row 2 by its key, column symbol",
        ),
        ("UPDATE public_trades SET trade_id = 'a' || char(0) WHERE id = 2", "public_trades, row 2 by its key"),
    ],
)
def test_what_went_round_the_library_stops_the_copy(
    statement: str, match: str, empty_postgresql_url: URL, new_sqlite: Make
) -> None:
    """SQLite takes anything; what PostgreSQL does not take is named by table, row and column."""
    source = new_sqlite()
    source.create_tables()
    with source.get_session() as session:
        session.add_all(PublicTrade(**trade_values(number)) for number in range(3))
        session.flush()
        session.execute(text(statement))
    with DatabaseFactory(empty_postgresql_url) as target:
        with pytest.raises(CopyError, match=match):
            copy_database(source, target)
        assert tables_of(target) == []


def test_a_target_with_rows_is_refused(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """Its tables are named and it stays as it is; empty tables are no hindrance."""
    source, target = pair
    target.create_tables()
    with target.get_session() as session:
        session.add(User(username="zoe"))
    before = everything(target)
    with pytest.raises(TargetNotEmptyError, match="in users; copy into a new"):
        copy_database(source, target)
    assert everything(target) == before
    with target.get_session() as session:
        session.execute(delete(User))
    copy_database(source, target)
    assert everything(target) == everything(source)


def test_tables_that_the_code_does_not_know_are_not_forgotten(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """The copy is refused unless the caller says that they stay behind."""
    source, target = pair
    with source.get_session() as session:
        session.execute(text("CREATE TABLE notes (note TEXT)"))
    with pytest.raises(CopyError, match=r"loaded package knows: notes; .*--ignore-unknown"):
        copy_database(source, target)
    assert tables_of(target) == []
    copy_database(source, target, ignore_unknown=True)
    assert "notes" not in tables_of(target)


def test_other_revisions_are_refused(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """On either side: columns would be missing, or left behind."""
    source, target = pair
    target.create_tables()
    for db in pair:
        with db.get_session() as session:
            session.execute(text("UPDATE shared_db_version SET revision = '0001_initial'"))
        with pytest.raises(SchemaVersionError, match="0001_initial, older than this code's"):
            copy_database(source, target)
        with db.get_session() as session:
            session.execute(text("DELETE FROM shared_db_version"))
            session.execute(
                text("INSERT INTO shared_db_version VALUES ('shared.db', :head)"), {"head": SCHEMA_REVISION}
            )


def test_an_interrupted_copy_leaves_the_target_empty(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """Whatever comes in between, in the middle of a table."""
    source, target = pair
    with source.get_session() as session:
        session.add_all(rows_of("ann"))
        PublicTradeRepository(session).bulk_create(map(trade_values, range(5_000)))

    def interrupted(place: int) -> Callable[[int, int], None]:
        def interrupt(done: int, rows: int) -> None:
            if done > place:
                raise KeyboardInterrupt

        return interrupt

    with pytest.raises(KeyboardInterrupt):
        copy_database(source, target, watch=interrupted(3_000))
    assert tables_of(target) == []
    target.create_tables()
    source.enable_audit()
    there = tables_of(target)
    with pytest.raises(KeyboardInterrupt):
        copy_database(source, target, watch=interrupted(5_000))
    assert tables_of(target) == there
    assert not any(everything(target).values())
    copy_database(source, target)
    assert everything(target) == everything(source)


def test_a_copy_is_of_one_moment(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """What is written to the source meanwhile is not in it, in no table."""
    source, target = pair
    with source.get_session() as session:
        session.add_all(rows_of("ann"))
    expected = everything(source)
    written: list[int] = []

    def write(done: int, rows: int) -> None:
        if not written:
            written.append(done)
            with source.get_session() as session:
                session.add_all(rows_of("bob"))
                session.add(PublicTrade(**trade_values()))

    copy_database(source, target, watch=write)
    assert written
    assert everything(target) == expected != everything(source)


@pytest.mark.parametrize("pair", PAIRS[:2], indirect=True)
@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM private_executions",
        "UPDATE private_executions SET exec_fee = exec_fee + 0.00000001",
        "UPDATE private_executions SET closed_pnl = NULL",
        "UPDATE users SET username = 'n'",
        "UPDATE api_credentials SET is_active = (1 = 0)",
        "UPDATE public_trades SET id = 99",
    ],
)
def test_a_difference_is_found_and_undone(
    change: str, pair: tuple[DatabaseFactory, DatabaseFactory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row, a digit, a NULL, a letter, a flag or a number: the copy fails and the target is left without a table."""
    source, target = pair
    with source.get_session() as session:
        session.add_all([*rows_of("ann"), PublicTrade(**trade_values())])
    connections: set[Any] = set()

    def changed(connection: Any, table: Any) -> Any:
        if connection.engine.url == target.engine.url and not connections:
            connections.add(connection)
            connection.execute(text(change))
        return digest(connection, table)

    monkeypatch.setattr(import_module("shared.db.operations.copy_database"), "digest", changed)
    with pytest.raises(CopyError, match="differs from its source and was undone: "):
        copy_database(source, target)
    assert tables_of(target) == []


def test_policies_come_along(policed_fleet: DatabaseFactory, empty_postgresql_url: URL, new_sqlite: Make) -> None:
    """From PostgreSQL to PostgreSQL; all users' rows come, and a login that sees some of them is refused."""
    with DatabaseFactory(empty_postgresql_url) as target:
        copy_database(policed_fleet, target)
        assert everything(target) == everything(policed_fleet)
        assert target.row_security_status().enabled
        with target.get_session(user_id="ann") as session:
            assert session.scalars(select(User.user_id)).all() == ["ann"]
    url = policed_fleet.engine.url
    run_on_server(url, "CREATE ROLE copy_reader LOGIN", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO copy_reader")
    try:
        empty = new_sqlite()
        with DatabaseFactory(url.set(username="copy_reader")) as source, pytest.raises(CopyError, match="as the owner"):
            copy_database(source, empty)
        assert tables_of(empty) == []
    finally:
        run_on_server(url, "DROP OWNED BY copy_reader", "DROP ROLE copy_reader")


def test_a_copied_schema_is_what_the_code_makes(pair: tuple[DatabaseFactory, DatabaseFactory]) -> None:
    """Every constraint and index of it is there, whether the copy made the tables or found them."""
    source, target = pair
    source.enable_audit()
    for made_before in (False, True):
        if made_before:
            target.drop_tables()
            target.create_tables()
        copy_database(source, target)
        assert runner.check(target) == []


def test_memory_copies_too(new_sqlite: Make) -> None:
    """Into a file, to keep it, and back; not while a session is in the middle of something."""
    file = new_sqlite()
    with DatabaseFactory("sqlite:///:memory:") as memory, DatabaseFactory("sqlite:///:memory:") as other:
        memory.create_tables()
        with memory.get_session() as session:
            session.add_all(rows_of("ann"))
            session.flush()
            with pytest.raises(CopyError, match="still open; close it first"):
                copy_database(memory, file)
        copy_database(memory, file)
        copy_database(file, other)
        assert everything(other) == everything(memory)


def test_a_database_is_not_copied_onto_itself(new_sqlite: Make) -> None:
    """Also when it is empty."""
    db = new_sqlite()
    db.create_tables()
    with DatabaseFactory(db.settings) as same, pytest.raises(CopyError, match="the same database"):
        copy_database(db, same)


def test_the_command_copies(
    pair: tuple[DatabaseFactory, DatabaseFactory], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """URLs as they are, from a variable, or the one of the settings; words for people, JSON for machines."""
    source, target = pair
    with source.get_session() as session:
        session.add_all(rows_of("ann"))
    monkeypatch.setenv("GRIDBOT_DB_URL", source.settings.get_database_url())
    monkeypatch.setenv("TARGET", target.settings.get_database_url())
    assert main(["copy", "-", "env:TARGET", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["users"] == 1
    assert everything(target) == everything(source)
    assert main(["copy", source.settings.get_database_url(), "env:TARGET"]) == 1
    assert "rows already" in capsys.readouterr().err
    target.drop_tables()
    assert main(["copy", source.settings.get_database_url(), target.settings.get_database_url()]) == 0
    assert "compared: audit_log 0, public_trades 0, users 1" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["copy", "-", "env:NOTHING"])
    assert "there is no variable NOTHING" in capsys.readouterr().err


def test_no_password_is_printed(new_sqlite: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even the one of a server that is not there."""
    source = new_sqlite()
    source.create_tables()
    url = "postgresql://bot:copy-password-Xk3@localhost:1/bots"
    assert main(["copy", source.settings.get_database_url(), url]) == 1
    assert "copy-password-Xk3" not in "".join(capsys.readouterr())
