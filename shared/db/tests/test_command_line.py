"""`python -m shared.db` as a whole: its help, where its options stand, and what a shell completes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import shared.db
from shared.db.commands.cli import GROUPS, main
from shared.db.tests.forked import run_python


def completed(line: str, folder: Path) -> list[str]:
    """What a shell would offer behind `line`."""
    asked = {"_ARGCOMPLETE": "3", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(folder / "completed")}
    asked |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    run_python("-m", "shared.db", environment=asked)
    return (folder / "completed").read_text().split()


def test_the_help_groups_commands_by_what_a_person_wants(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command stands once, with its help, under the heading of its group, in the order of the code."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    sections = dict(re.findall(r"^(\S.*):\n((?:  .*\n)+)", told, re.MULTILINE))
    for title, group in GROUPS.items():
        assert re.findall(r"^  ([a-z-]+)  ", sections[title], re.MULTILINE) == list(group)
        words = " ".join(sections[title].split())
        assert all(f"{name} {help_text}" in words for name, (help_text, _) in group.items())
    assert "--env-file" in sections["the database, before or behind the command"]


def test_which_database_is_said_before_or_behind_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options before it are those of every command, and of a command's own commands; behind it they overrule."""
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    (tmp_path / "fleet.env").write_text(f"GRIDBOT_DB_URL={url}\n")
    for arguments in (
        ["--db-url", url, "init"],
        ["init", "--db-url", url],
        ["--env-file", "fleet.env", "init"],
        ["--db-url", "sqlite:///wrong.db", "init", "--db-url", url],
        ["--env-file", "fleet.env", "migrate", "status"],
        ["migrate", "--env-file", "fleet.env", "status"],
        ["migrate", "status", "--env-file", "fleet.env"],
    ):
        assert main(arguments) == 0, arguments
        told = capsys.readouterr().out
        assert "fleet.db" in told or "(current)" in told, arguments
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["fleet.db"]


def test_a_shell_completes_commands_options_and_words(tmp_path: Path) -> None:
    """What begins as what was typed, behind the options of the database too, and nothing is run."""
    assert completed("python -m shared.db re", tmp_path) == ["report", "restore", "replay"]
    assert completed("python -m shared.db --db-url sqlite:///a.db ini", tmp_path) == ["init"]
    assert completed("python -m shared.db report --us", tmp_path) == ["--user"]
    assert completed("python -m shared.db migrate ad", tmp_path) == ["adopt"]
    assert completed("python -m shared.db row-security ", tmp_path)[-3:] == ["enable", "disable", "status"]
    assert list(tmp_path.glob("*.db")) == []


def test_completion_costs_nothing_where_no_shell_asks() -> None:
    """The library for it is not loaded, and need not be there; a shell that asks for it is told the extra."""
    ordinary = "import sys\nfrom shared.db.commands.cli import main\nmain(['keys', 'generate'])\n"
    assert run_python("-c", ordinary + "assert 'argcomplete' not in sys.modules").returncode == 0
    missing = "import sys\nsys.modules['argcomplete'] = None\n" + ordinary
    assert run_python("-c", missing).returncode == 0
    asked = run_python("-c", missing + "sys.exit(main([]))", environment={"_ARGCOMPLETE": "1"})
    assert asked.returncode == 1
    assert "[cli]" in asked.stderr


def test_the_pages_are_named_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its title; one as it is, and of a page that is not there it is said how to find the others."""
    folder = Path(shared.db.__file__).parent / "docs"
    assert main(["docs"]) == 0
    first, *pages = capsys.readouterr().out.splitlines()
    assert first == str(folder)
    assert [line.split()[0] for line in pages] == sorted(path.stem for path in folder.glob("*.md"))
    assert "FastAPI and Flask" in next(line for line in pages if line.split()[0] == "web")
    assert main(["docs", "web"]) == 0
    assert capsys.readouterr().out == (folder / "web.md").read_text()
    assert main(["docs", "nothing"]) == 1
    assert "there is no page 'nothing'" in capsys.readouterr().err
