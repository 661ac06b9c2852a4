"""What does not run where trades are in partitions, and why: the one list. Every other test of trades does there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

IN_PARTITIONS = os.environ.get("GRIDBOT_TEST_PARTITIONS", "") not in ("", "0")
# They make databases of their own, with trades in one table.
_ELSEWHERE = {"empty_db", "fleet", "busy_fleet", "postgresql_fleet", "unpoliced_fleet", "policed_fleet"}
_OF_TRADES = re.compile("PublicTrade|public_trades|trade_values")
_OWN = "makes the tables that it is about itself"
_KEYS = "keys of a table in partitions have the time in them"

NOT_IN_PARTITIONS: dict[str, dict[str, str]] = {
    "test_bulk.py": {
        "test_rows_and_counts_are_those_of_writing_one_row_after_the_other": "is of executions alone, for a minute",
    },
    "test_capacity.py": {
        "test_a_row_takes_as_many_bytes_as_the_page_computes_with": "the page computes with one table's keys",
    },
    "test_column_types.py": {"": _OWN},
    "test_documents.py": {"": "the pages are the same"},
    "test_frames_in.py": {
        "test_stored_rows_are_met_as_those_of_dicts_are[update]": "the first one is sent twice: no xmax is read there",
    },
    "test_main_job.py": {"": _OWN},
    "test_mariadb.py": {"": "is of another database"},
    "test_migrations.py": {"": _OWN},
    "test_migrations_check.py": {
        "test_a_change_by_hand_is_seen_on_postgresql[not logged]": "the server logs every table in partitions",
    },
    "test_migrations_safety.py": {"": _OWN},
    "test_models.py": {
        "test_keys_and_indexes_are_the_specifications[postgresql-public_trades]": _KEYS,
    },
    "test_numbering.py": {
        "test_another_insert_is_refused_by_a_name_of_its_own": f"{_KEYS}: an id with another time is stored",
    },
    "test_pages.py": {"": "starts the programs of the pages, of which none asks for the layout"},
    "test_partition_commands.py": {"": _OWN},
    "test_partitions.py": {"": _OWN},
    "test_same_answers.py": {"": _OWN},
}
"""File by file: a test, or one case of it, or "" for all of them."""


def has_tests_in_partitions(file: Path) -> bool:
    """Whether trades play a part in it."""
    return "" not in NOT_IN_PARTITIONS.get(file.name, {}) and bool(_OF_TRADES.search(file.read_text(encoding="utf-8")))


def runs_in_partitions(item: pytest.Item) -> bool:
    """Whether a test gets a database with trades in partitions, and holds there."""
    fixtures: set[str] = {*getattr(item, "fixturenames", ())}
    case = getattr(item, "callspec", None)
    places = () if case is None or fixtures & _ELSEWHERE else case.params.values()
    if "postgresql_template" not in fixtures and not any("postgresql" in str(place) for place in places):
        return False
    left_out = NOT_IN_PARTITIONS.get(item.path.name, {})
    return item.name not in left_out and item.name.partition("[")[0] not in left_out
