"""shared.db.testing: a database that serves test after test is new to each of them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, text

from shared.db.testing import _Databases, run_on_server
from shared.db.tests.on_mysql import NOT_ON_MYSQL
from shared.db.tests.on_partitions import NOT_IN_PARTITIONS

ROWS = (
    "INSERT INTO users (user_id, username) VALUES ('ann', 'ann'); "
    "INSERT INTO public_trades (symbol, trade_id, exchange_ts, local_ts, side, price, size) "
    "VALUES ('BTCUSDT', 't', now(), now(), 'Buy', 1, 1)"
)
# The number of the first trade, and a table that the test before may have made.
FOUND = "SELECT id FROM public_trades UNION ALL SELECT 0 FROM pg_class WHERE relname = 'notes'"


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (ROWS, True),
        ("CREATE TABLE notes (note text); INSERT INTO notes VALUES ('mine')", True),
        ("CREATE TABLE notes (user_id varchar(36) REFERENCES users)", True),
        ("ALTER TABLE users ADD COLUMN nick text", False),
        ("ALTER TABLE users DROP COLUMN email", False),
        ("CREATE INDEX ON users (email)", False),
        ("CREATE VIEW names AS SELECT username FROM users", False),
        ("CREATE SCHEMA elsewhere", False),
        ("CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'", False),
        ("CREATE POLICY everybody ON users USING (true)", False),
        ("ALTER TABLE users ENABLE ROW LEVEL SECURITY", False),
        ("GRANT SELECT ON users TO PUBLIC", False),
        ("ALTER SEQUENCE public_trades_id_seq INCREMENT 7", False),
        ("DELETE FROM shared_db_version", False),
        (f"{ROWS}; ANALYZE users", False),
        ("ALTER DATABASE {name} SET statement_timeout = 5000", False),
        ("ALTER DATABASE {name} CONNECTION LIMIT 2", False),
    ],
)
def test_the_next_test_meets_nothing_of_the_one_before(
    postgresql_server: URL, postgresql_template: str, change: str, again: bool
) -> None:
    """What was changed but for rows and tables of its own is not handed on, and what is handed on is empty."""
    with closing(_Databases(postgresql_server, postgresql_template)) as databases:
        with databases.one() as first:
            run_on_server(first, change.format(name=first.database))
        with databases.one() as second:
            assert (second == first) is again
            run_on_server(second, ROWS)
            engine = create_engine(second)
            with engine.connect() as connection:
                assert connection.execute(text(FOUND)).scalars().all() == [1]
            engine.dispose()


@pytest.mark.parametrize("left_out", [NOT_ON_MYSQL, NOT_IN_PARTITIONS])
def test_what_does_not_run_on_mariadb_or_in_partitions_is_there(left_out: dict[str, dict[str, str]]) -> None:
    """Each name of a list is one of a test in its file: a list that outlives its tests hides others."""
    for file, tests in left_out.items():
        defined = Path(__file__).with_name(file).read_text(encoding="utf-8")
        assert [test for test in tests if test and f"def {test.partition('[')[0]}(" not in defined] == []
