"""`status --html`: what `db.health()` found, as a page of the same frame as the report's."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from shared.db import DatabaseFactory, InputError, User
from shared.db.commands.cli import main
from shared.db.health.report import Health, StoreHealth
from shared.db.report.page import number
from shared.db.report.status_page import read_before, status_page
from shared.db.tests.report_pages import HOSTILE, Read, store_prices


def test_the_page_has_what_health_found(fleet: DatabaseFactory) -> None:
    """The rows of each table, the newest of each stream and how long before the look it was."""
    store_prices(fleet)
    health = fleet.health()
    page = Read(status_page(health))
    rows = {each.name: ("about " if each.estimated else "") + number(each.rows) for each in health.tables}
    assert page.column("Rows and bytes", "rows") == rows
    (trades,) = (each for each in health.streams if each.table == "public_trades")
    lag = timedelta(seconds=(health.checked_at - trades.newest) // timedelta(seconds=1))
    assert page.column("The newest row", "lag")["public_trades"] == str(lag)
    assert page.facts["Schema revision"].startswith(health.revision or "none")
    assert "No problem found." in page.text
    assert page.pictures == []  # so that it needs no extra


def test_problems_come_first_and_are_text() -> None:
    """Whatever is in them; a store that does not answer is told."""
    health = Health(f"sqlite:///{HOSTILE}.db", problems=(f"no {HOSTILE}",), warnings=("in memory",), reachable=True)
    page = Read(status_page(replace(health, stores=(StoreHealth(HOSTILE, False),), not_ours=("their_table",))))
    assert [tag for tag, _ in page.elements].count("script") == 2  # the pictures, none, and what draws them
    assert f"Status of sqlite:///{HOSTILE}.db" in page.text
    assert page.text.index(f"no {HOSTILE}") < page.text.index("The database")
    assert page.column("Stores", "state") == {HOSTILE: "does not answer"}
    assert "their_table" in page.text


def test_growth_is_the_difference_of_two_looks(fleet: DatabaseFactory, tmp_path: Path) -> None:
    """Rows and bytes that have come, and rows a day at that speed."""
    earlier = fleet.health()
    (tmp_path / "before.json").write_text(json.dumps(earlier.as_dict()))
    before = read_before(tmp_path / "before.json")
    users = next(each for each in earlier.tables if each.name == "users")
    assert users.rows is not None
    tables = tuple(replace(each, rows=users.rows + 6) if each.name == "users" else each for each in earlier.tables)
    later = replace(earlier, tables=tables, checked_at=earlier.checked_at + timedelta(hours=12))
    page = Read(status_page(later, before))
    assert page.column("Rows and bytes", "more rows")["users"] == "6"
    assert page.column("Rows and bytes", "rows a day")["users"] == "12"
    assert page.column("Rows and bytes", "more rows")["runs"] == "0"
    same_time = Read(status_page(earlier, before))
    assert same_time.column("Rows and bytes", "rows a day")["users"] == "-"


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"tables": [{}], "checked_at": "x"}', '{"tables": 1}'])
def test_what_is_no_earlier_look_is_told(tmp_path: Path, text: str) -> None:
    """With the command that makes one."""
    (tmp_path / "before.json").write_text(text)
    with pytest.raises(InputError, match=r"is no earlier look; make it by: python -m shared\.db status --json > FILE"):
        read_before(tmp_path / "before.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_before(tmp_path / "missing.json")


def test_the_command_prints_the_page(
    busy_fleet: DatabaseFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In letters that every locale has, with the growth since the earlier look, and its exit code is as without it."""
    url = busy_fleet.settings.get_database_url()
    assert main(["status", "--db-url", url, "--json"]) == 0
    (tmp_path / "before.json").write_text(capsys.readouterr().out)
    with busy_fleet.get_session() as session:
        session.add(User(username="grünn"))
    assert main(["status", "--db-url", url, "--html", "--before", str(tmp_path / "before.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert "more rows" in Read(printed).text
    with pytest.raises(SystemExit):
        main(["status", "--db-url", url, "--before", "x"])
    assert "--before is for --html" in capsys.readouterr().err
    missing = f"sqlite:///{tmp_path}/missing.db"
    assert main(["status", "--db-url", missing, "--html"]) == 1
    assert "there is no database file" in Read(capsys.readouterr().out).text
