"""Trades are put into partitions, and taken out of them by the month, while bots write: no row is lost or doubled."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import URL, Identity, Index, UniqueConstraint, func, select, text
from sqlalchemy.orm import mapped_column

from shared.db import (
    SHARED_BY_ALL,
    AuditLog,
    Base,
    BoundedString,
    CheckedInteger,
    ConstraintError,
    DatabaseFactory,
    InputError,
    InvalidValueError,
    MigrationError,
    PrivateExecution,
    PublicTrade,
    PublicTradeRepository,
    Repository,
    Stream,
    User,
    UTCDateTime,
)
from shared.db.commands.cli import main
from shared.db.migrations import runner
from shared.db.operations import partitions
from shared.db.operations.partitions import drop_partitions, enable_partitions, extend_partitions
from shared.db.operations.purge import purge_trades
from shared.db.tests.outside import outside_tables
from shared.db.tests.roles import Roles
from shared.db.tests.support import in_children, in_threads, run_on_server, trade_values

NOW = datetime.now(UTC)
MAY = datetime(2025, 5, 1, tzinfo=UTC)


@pytest.fixture
def trades_db(postgresql_url: URL) -> Iterator[DatabaseFactory]:
    """A database with 300 trades of May 2025."""
    with DatabaseFactory(postgresql_url) as db:
        store(db, MAY, 300)
        yield db


def store(db: DatabaseFactory, start: datetime, count: int, symbol: str = "BTCUSDT") -> None:
    """Trades of one minute."""
    with db.get_session() as session:
        rows = [trade_values(n, symbol=symbol, exchange_ts=start + timedelta(milliseconds=n)) for n in range(count)]
        assert PublicTradeRepository(session).bulk_create(rows).inserted == count


def rows_in(db: DatabaseFactory) -> dict[str, int]:
    """The number of rows by the table in which they lie."""
    with db.engine.connect() as connection:
        found = connection.execute(text("SELECT tableoid::regclass::text, count(*) FROM public_trades GROUP BY 1"))
        return {row[0]: row[1] for row in found}


@pytest.mark.parametrize("killed_at", ["_validate", "_indexed", "_switch"])
def test_enabling_under_writers_loses_nothing_even_if_it_is_killed(
    trades_db: DatabaseFactory, killed_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes write in their ways all the while; a second run goes on where the first one was killed."""
    context = multiprocessing.get_context("fork")
    finished = context.Event()
    written = context.Semaphore(0)

    def write(number: int) -> list[str]:
        acknowledged: list[str] = []
        while not finished.is_set():
            ids = [f"{number}-{len(acknowledged) + each}" for each in range(5)]
            rows = [trade_values(symbol="NEW", trade_id=each, exchange_ts=datetime.now(UTC)) for each in ids]
            with trades_db.get_session() as session:
                if number == 0:
                    session.add_all(PublicTrade(**row) for row in rows)
                else:
                    # The last row of the time before too, as a recorder that begins again sends it.
                    how: Any = ("skip", "update")[number - 1]
                    PublicTradeRepository(session).bulk_create([*rows, *rows[:1]], on_conflict=how)
            acknowledged += ids
            written.release()
        return acknowledged

    def enable_and_die() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(partitions._Enabling, killed_at, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            enable_partitions(trades_db, PublicTrade)

    def meanwhile() -> None:
        try:
            for _ in range(3):
                assert written.acquire(timeout=30)
            killed = context.Process(target=enable_and_die)
            killed.start()
            killed.join()
            assert killed.exitcode == -signal.SIGKILL
            if killed_at == "_switch":
                with trades_db.engine.begin() as connection:  # as a server that stops while it builds one leaves it
                    index = "'ix_public_trades_of_partitions'::regclass"
                    connection.execute(text(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = {index}"))
            enable_partitions(trades_db, PublicTrade)
            for _ in range(written.get_value() + 6):
                assert written.acquire(timeout=30)
        finally:
            finished.set()

    acknowledged = [one for each in in_children(3, write, meanwhile) for one in each]
    with trades_db.get_session(read_only=True) as session:
        stored = session.scalars(select(PublicTrade.trade_id).where(PublicTrade.symbol == "NEW")).all()
    assert sorted(stored) == sorted(acknowledged)
    (first,) = rows_in(trades_db)
    assert first.startswith("public_trades_before_")
    assert runner.check(trades_db) == []
    with trades_db.engine.connect() as connection:
        left = "SELECT count(*) FROM pg_constraint WHERE conname LIKE 'ck_public_trades_before%'"
        assert connection.scalar(text(left)) == 0


def test_a_row_of_no_partition_is_kept_and_gets_one(trades_db: DatabaseFactory) -> None:
    """Of however many that extend at once one makes each partition; health says what is due until then."""
    made = enable_partitions(trades_db, PublicTrade)
    first, second, rest = made.partitions
    assert made.made == (second,)
    assert trades_db.health().warnings == ()
    store(trades_db, datetime(2031, 1, 31, 23, 59, 59, 900_000, tzinfo=UTC), 200)
    assert rows_in(trades_db) == {first: 300, rest: 200}
    (warning,) = trades_db.health().warnings
    assert "python -m shared.db partition extend --table public_trades" in warning

    reports = in_threads(4, lambda number: extend_partitions(trades_db, PublicTrade))
    assert sorted(name for report in reports for name in report.made) == [
        "public_trades_2031_01",
        "public_trades_2031_02",
    ]
    assert sum(report.moved for report in reports) == 200
    assert rows_in(trades_db) == {first: 300, "public_trades_2031_01": 100, "public_trades_2031_02": 100}
    assert extend_partitions(trades_db, PublicTrade, ahead=0).made == ()
    with trades_db.engine.begin() as connection:
        # Stand-ins for the extension's, which take no table that is no file of its own either.
        refuse = "IF (SELECT relkind IN ('p', 'I') FROM pg_class WHERE oid = one) THEN RAISE 'no file'; END IF;"
        for function, result in (
            ("bt_index_check(one regclass, whole bool)", "void"),
            ("verify_heapam(one regclass)", "msg"),
        ):
            returns = result if result == "void" else "TABLE (msg text)"
            body = f"LANGUAGE plpgsql AS $$ BEGIN {refuse} END $$"
            connection.execute(text(f"CREATE FUNCTION {function} RETURNS {returns} {body}"))
    health = trades_db.health(check=True)
    assert (health.integrity, health.problems, health.warnings) == ("ok", (), ())
    trades = next(table for table in health.tables if table.name == "public_trades")
    assert (trades.rows, trades.estimated, trades.rows_inserted is None) == (500, False, False)
    assert (trades.size_bytes or 0) > 100_000


def test_the_newest_trade_is_found_in_whichever_partition_it_lies(trades_db: DatabaseFactory) -> None:
    """Of the present, of an old month, of the default partition; and of a range's end, read-only and as a user."""
    with trades_db.engine.begin() as connection:
        connection.execute(text("TRUNCATE public_trades"))
    enable_partitions(trades_db, PublicTrade)
    extend_partitions(trades_db, PublicTrade, since=NOW - timedelta(days=100))
    old, present, beyond = NOW - timedelta(days=70), NOW - timedelta(minutes=1), NOW + timedelta(days=400)
    for symbol, times in {"OLD": [old], "NOW": [old, present], "FAR": [old, present, beyond]}.items():
        for when in times:
            store(trades_db, when, 1, symbol)
    assert len(rows_in(trades_db)) == 3
    trades_db.close()
    for how in ({}, {"read_only": True}, {"read_only": True, "user_id": "ann"}):
        with trades_db.get_session(**how) as session:
            trades = PublicTradeRepository(session)
            for symbol, newest in {"OLD": old, "NOW": present, "FAR": beyond}.items():
                found = trades.latest(symbol)
                assert found is not None
                assert found.exchange_ts == newest
            assert trades.latest("NONE") is None
            for ts, newest in {old: old, NOW - timedelta(days=2): old, NOW: present, beyond: beyond}.items():
                found = trades.get_trade_at_or_before("FAR", ts)
                assert found is not None
                assert found.exchange_ts == newest
            assert trades.get_trade_at_or_before("FAR", old - timedelta(days=40)) is None


def test_whole_months_go_by_dropping_them(trades_db: DatabaseFactory) -> None:
    """By drop, and by purge, which deletes the rest in batches; the audit log counts the rows of both."""
    trades_db.enable_audit()
    with trades_db.engine.begin() as connection:
        connection.execute(text("TRUNCATE public_trades"))
    enable_partitions(trades_db, PublicTrade)  # an empty table leaves no first partition
    extend_partitions(trades_db, PublicTrade, since=MAY)
    months = [MAY + timedelta(days=31 * number) for number in range(4)]
    for month in months:
        store(trades_db, month, 40)
    assert sorted(rows_in(trades_db)) == [f"public_trades_2025_0{number}" for number in (5, 6, 7, 8)]

    middle = months[2] + timedelta(days=5)
    counted = purge_trades(trades_db, middle, dry_run=True)
    assert (counted.rows, counted.partitions) == (120, ())
    would = drop_partitions(trades_db, PublicTrade, middle, dry_run=True)
    assert (would.dropped, would.rows) == (("public_trades_2025_05", "public_trades_2025_06"), 80)
    assert drop_partitions(trades_db, PublicTrade, months[1]).dropped == ("public_trades_2025_05",)
    # Of one symbol a month does not go whole.
    assert purge_trades(trades_db, middle, "ETHUSDT").partitions == ()
    told: list[frozenset[str]] = []
    trades_db.on_commit(told.append)
    stopped = purge_trades(trades_db, months[2], stop=lambda: True)
    assert (stopped.finished, stopped.rows) == (False, 0)
    purged = purge_trades(trades_db, middle)
    assert (purged.rows, purged.partitions) == (80, ("public_trades_2025_06",))
    assert told[0] == {"public_trades"}
    assert rows_in(trades_db) == {"public_trades_2025_08": 40}
    with trades_db.get_session() as session:
        deleted = select(func.sum(AuditLog.row_count)).where(AuditLog.action == "delete")
        assert session.scalar(deleted) == 120


def test_a_purge_without_the_right_to_drop_deletes_row_by_row(
    trades_db: DatabaseFactory, roles: Roles, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is granted the rows, and does not own the table, keeps that right in partitions."""
    enable_partitions(trades_db, PublicTrade)
    extend_partitions(trades_db, PublicTrade, since=MAY)
    login = roles.login("cleaner")
    with trades_db.engine.begin() as connection:
        connection.execute(text(f"GRANT SELECT, DELETE ON public_trades TO {login}"))
        connection.execute(text(f"GRANT SELECT ON shared_db_version TO {login}"))
    later = NOW + timedelta(days=100)
    with DatabaseFactory(trades_db.engine.url.set(username=login, password="pw")) as theirs:
        report = purge_trades(theirs, later)
    assert (report.rows, report.partitions) == (300, ())
    assert "dropped by their owner alone" in caplog.text
    run_on_server(trades_db.engine.url, f"DROP OWNED BY {login}")


def test_what_was_granted_and_numbered_stays(policed_db: DatabaseFactory, roles: Roles) -> None:
    """Grants, the owner, comments, further indexes, and ids that go on; users' sessions read and write as before."""
    login = roles.login("reader")
    store(policed_db, MAY, 10)
    with policed_db.engine.begin() as connection:
        connection.execute(text(f"GRANT SELECT ON public_trades TO {login} WITH GRANT OPTION"))
        connection.execute(text("COMMENT ON TABLE public_trades IS 'it''s kept'"))
        connection.execute(text("CREATE INDEX ix_own ON public_trades (price) WHERE size > 1"))
        acl = "SELECT relacl::text, obj_description(oid), relowner FROM pg_class WHERE relname = 'public_trades'"
        before = connection.execute(text(acl)).one()
        grants = text("SELECT count(*) FROM pg_class, aclexplode(relacl) WHERE relname = 'public_trades'")
        granted = connection.scalar(grants)
    enable_partitions(policed_db, PublicTrade)
    with policed_db.engine.begin() as connection:
        after = connection.execute(text(acl)).one()
        assert (after[1:], connection.scalar(grants)) == (before[1:], granted)
        assert f"{login}=r*/" in after[0]
        assert connection.scalar(text("SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_own'")).endswith(
            "(price) WHERE (size > (1)::numeric)"
        )
        connection.execute(text("DROP INDEX ix_own"))
    with policed_db.get_session() as session:
        session.add(User(user_id="ann", username="ann"))
    with policed_db.get_session(user_id="ann") as session:
        new = PublicTradeRepository(session).create(PublicTrade(**trade_values(11, exchange_ts=NOW)))
        assert new.id == 11
        assert PublicTradeRepository(session).latest("BTCUSDT") is new
    assert policed_db.row_security_status().problems == ()
    assert runner.check(policed_db) == []
    run_on_server(policed_db.engine.url, f"DROP OWNED BY {login}")


def test_a_stream_of_another_package_is_partitioned_by_the_day(postgresql_url: URL) -> None:
    """With an identity column, whose numbers go on, an index of its own, and a name that needs quotes."""
    with outside_tables(), DatabaseFactory(postgresql_url) as db:
        quotes: Any = type(
            "Quote",
            (Base,),
            {
                "__tablename__": "Quotes",
                "__ownership__": SHARED_BY_ALL,
                "__stream__": Stream(by="symbol", time="at"),
                "__table_args__": (UniqueConstraint("symbol", "at"), Index(None, "price")),
                "id": mapped_column(CheckedInteger(), Identity(), primary_key=True),
                "symbol": mapped_column(BoundedString(20), nullable=False),
                "at": mapped_column(UTCDateTime(), nullable=False),
                "price": mapped_column(CheckedInteger(), nullable=False),
            },
        )
        db.create_tables()

        def add(when: datetime) -> int:
            with db.get_session() as session:
                row = quotes(symbol="A", at=when, price=1)
                Repository(session, quotes).create(row)
                return int(row.id)

        assert [add(NOW), add(NOW + timedelta(hours=1))] == [1, 2]
        made = enable_partitions(db, quotes, by="day")
        far = NOW + timedelta(days=400)
        assert add(far) == 3
        extended = extend_partitions(db, quotes)
        assert [extended.moved, extended.made] == [1, (f"Quotes_{far:%Y_%m_%d}",)]
        assert made.made[0].count("_") == 3
        assert len(extended.partitions) == len(made.partitions) + 1


def test_what_cannot_be_partitioned_is_refused_by_name(
    trades_db: DatabaseFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of users, keys without the time, what would stay behind, old servers, odd partitions: nothing changes."""
    with pytest.raises(InputError, match=r"holds users' rows, and partitions are for .*public_trades"):
        enable_partitions(trades_db, PrivateExecution)
    with pytest.raises(InvalidValueError, match="no stream"):
        enable_partitions(trades_db, User)
    with pytest.raises(InputError, match="is no period; partitions are by month or day"):
        enable_partitions(trades_db, PublicTrade, by="week")
    with pytest.raises(
        InputError, match=r"not in partitions by exchange_ts; run: python -m shared.db partition enable"
    ):
        extend_partitions(trades_db, PublicTrade)
    with pytest.raises(InputError, match="not in partitions"):
        drop_partitions(trades_db, PublicTrade, NOW)
    with monkeypatch.context() as patch:
        patch.setattr(partitions, "OLDEST_SERVER", 99)
        with pytest.raises(InputError, match=r"PostgreSQL 99 or newer, and this server is \d\d; upgrade it"):
            enable_partitions(trades_db, PublicTrade)
    hanging = {
        "the view seen": ("CREATE VIEW seen AS SELECT * FROM public_trades", "DROP VIEW seen"),
        "the publication told": ("CREATE PUBLICATION told FOR TABLE public_trades", "DROP PUBLICATION told"),
        "the foreign key notes_id_fkey of notes": (
            "CREATE TABLE notes (id bigint REFERENCES public_trades)",
            "DROP TABLE notes",
        ),
        "the unique key once": ("CREATE UNIQUE INDEX once ON public_trades (trade_id)", "DROP INDEX once"),
    }
    for what, (make, drop) in hanging.items():
        run_on_server(trades_db.engine.url, make)
        with pytest.raises(InputError, match=what):
            enable_partitions(trades_db, PublicTrade)
        run_on_server(trades_db.engine.url, drop)
    with monkeypatch.context() as patch, trades_db.engine.begin() as connection:
        patch.setattr(partitions, "_ATTEMPTS", 2)
        patch.setattr(partitions, "_TURN", 0.01)
        patch.setattr(partitions, "_PAUSE", 0.01)
        connection.execute(text("LOCK TABLE public_trades IN ROW EXCLUSIVE MODE"))
        with pytest.raises(MigrationError, match="stayed locked through 2 attempts, by process"):
            enable_partitions(trades_db, PublicTrade)
    assert runner.check(trades_db) == []
    enable_partitions(trades_db, PublicTrade)
    with trades_db.engine.begin() as connection:
        newest = connection.scalar(text("SELECT max(relname) FROM pg_class WHERE relname ~ '^public_trades_2[0-9_]*$'"))
        connection.execute(text(f"DROP TABLE {newest}"))
        connection.execute(
            text("CREATE TABLE weekly PARTITION OF public_trades FOR VALUES FROM ('2040-01-02') TO ('2040-01-09')")
        )
    with pytest.raises(InputError, match="weekly is neither a month nor a day of UTC"):
        extend_partitions(trades_db, PublicTrade)


def test_a_row_beyond_the_first_partition_is_refused_until_it_is_there(trades_db: DatabaseFactory) -> None:
    """Between a killed run and the next one, by the constraint's name; health says what to do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions._Enabling, "_switch", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            enable_partitions(trades_db, PublicTrade)
    with pytest.raises(ConstraintError, match="ck_public_trades_before_"):
        store(trades_db, NOW + timedelta(days=100), 1)
    (problem,) = trades_db.health().problems
    assert "python -m shared.db partition enable --table public_trades" in problem
    store(trades_db, NOW, 1)
    enable_partitions(trades_db, PublicTrade)
    store(trades_db, NOW + timedelta(days=100), 1)
    assert sum(rows_in(trades_db).values()) == 302


def test_sqlite_has_no_partitions() -> None:
    """The error says which database has them, and what there is here."""
    with DatabaseFactory("sqlite:///file.db") as db:
        db.create_tables()
        with pytest.raises(InputError, match=r"need PostgreSQL 17 or newer, and this is SQLite, .*shared\.db purge"):
            enable_partitions(db, PublicTrade)


def test_the_command_does_it(trades_db: DatabaseFactory, capsys: pytest.CaptureFixture[str]) -> None:
    """Enable, extend and drop, for people and as JSON; arguments of another action are refused."""
    command = ["partition", "--table", "public_trades", "--db-url", trades_db.settings.get_database_url()]
    assert main([*command, "enable", "--by", "month"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("public_trades is in the partitions public_trades_before_")
    assert main([*command, "extend", "--since", "2025-01-01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == []
    assert main([*command, "drop", "--before", "2025-01-01"]) == 0
    assert capsys.readouterr().out == "no partition of public_trades dropped: 0 rows\n"
    assert main([*command, "drop", "--before", "2100-01-01", "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("of public_trades would go: 300 rows\n")
    for wrong in (["enable", "--before", "2025-01-01"], ["drop"], ["extend", "--by", "day"], ["enable", "--dry-run"]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, *wrong])
