"""What does not run on MariaDB, and why: the one list. Every other test of the fixtures holds there too."""

from __future__ import annotations

_OWN_SQL = "speaks PostgreSQL's or SQLite's own SQL"
_COMMITS = "DDL commits there, by itself and what came before it"

NOT_ON_MYSQL: dict[str, dict[str, str]] = {
    "test_async_session.py": {
        "test_two_users_never_meet_in_coroutines": _OWN_SQL,
    },
    "test_capacity.py": {
        "test_a_row_takes_as_many_bytes_as_the_page_computes_with": "the page computes with PostgreSQL's and SQLite's",
    },
    "test_database.py": {
        "test_a_failed_change_of_the_schema_leaves_nothing": _COMMITS,
        "test_a_read_only_session_refuses_to_write[mysql-DDL]": _COMMITS,
        "test_a_factory_that_only_reads_refuses_to_write": _COMMITS,
        "test_close_lets_go_of_every_connection": _OWN_SQL,
    },
    "test_races.py": {
        "test_of_two_that_start_the_same_work_one_runs": "one may meet a deadlock there, which is told as transient",
    },
    "test_transaction_control.py": {
        "test_a_transaction_that_ended_all_the_same_is_noticed": "its driver tells what the last statement ended alone",
    },
}
"""File by file: a test, or one case of it."""


def runs_on_mysql(file: str, test: str) -> bool:
    """Whether a case of a test, by pytest's name for it, holds there too."""
    left_out = NOT_ON_MYSQL.get(file, {})
    return test not in left_out and test.partition("[")[0] not in left_out
