"""What does not run on MariaDB, and why: the one list. Every other test of the fixtures holds there too."""

from __future__ import annotations

_OWN_SQL = "speaks PostgreSQL's or SQLite's own SQL"
_COMMITS = "DDL commits there, by itself and what came before it"
_EMPTY = "a backup is restored into a database without tables only"

NOT_ON_MYSQL: dict[str, dict[str, str]] = {
    "test_async_session.py": {
        "test_two_users_never_meet_in_coroutines": _OWN_SQL,
    },
    "test_backup.py": {
        "test_a_restored_backup_has_every_row": _EMPTY,
        "test_a_restored_schema_is_no_other_one": _EMPTY,
        "test_sealed_secrets_stay_sealed": _EMPTY,
        "test_a_database_with_rows_is_not_replaced_unless_told": _EMPTY,
        "test_empty_tables_are_no_hindrance": _EMPTY,
        "test_other_processes_see_the_restored_rows": _EMPTY,
        "test_a_restore_waits_for_a_writer_and_gives_up": _EMPTY,
        "test_an_interrupted_restore_leaves_the_database": _EMPTY,
        "test_closed_users_tables_are_backed_up_and_copied": _EMPTY,
        "test_the_commands_back_up_and_restore": _EMPTY,
        "test_an_older_backup_says_how_to_go_on": _EMPTY,
        "test_two_backups_at_once_are_both_whole": _EMPTY,
        "test_times_are_not_shifted": _EMPTY,
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
    "test_interruptions.py": {
        "test_an_interrupted_operation_says_that_nothing_took_place": _EMPTY,
        "test_a_signal_after_the_commit_says_that_it_took_place": _EMPTY,
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
