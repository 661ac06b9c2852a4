"""docs/migrations.md, followed word by word in a copy of the checkout."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL, text

from shared.db import DatabaseFactory
from shared.db.migrations import runner
from shared.db.testing import has_mysql
from shared.db.tests.forked import run_python
from shared.db.tests.migration_support import contents, run_by_hand, seed

_ROOT = Path(__file__).parents[3]
_PAGE = _ROOT / "shared/db/docs/migrations.md"
_INSTRUCTION = re.compile(r"^((?:In|Run)\b[^\n]*(?:\n[^\n]+)*?):\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BELOW = re.compile(r"In `(\S+)`, below the line that begins with `([^`]+)`, add")
_AT_END = re.compile(r"In `(\S+)`, at the end, add")
_ON_TOP = re.compile(r"In `(\S+)`, above the first entry, add \(NNNN")
_REPLACE = re.compile(r"In the new revision, replace everything from the line that begins with `drops` on")

# Runs `python -m shared.db` with each list of arguments, for all databases what concerns a database.
_COMMANDS = """
import json, os, sys
from shared.db.commands.cli import main
for arguments in json.loads(sys.argv[1]):
    for url in sys.argv[2:] if arguments[1] != "new" else sys.argv[2:3]:
        os.environ["GRIDBOT_DB_URL"] = url
        if code := main(arguments):
            sys.exit(code)
"""


class _Reader:
    """Somebody who does what the page says, and nothing else."""

    def __init__(self, checkout: Path, urls: list[str], environment: dict[str, str]) -> None:
        self.checkout = checkout
        self.urls = urls
        self.environment = environment
        self.revision = Path()
        self.done = 0

    def follow(self, instruction: str, block: str) -> None:
        """Do one step."""
        self.done += 1
        block = block.replace("NNNN", self.revision.stem[:4])
        if found := _BELOW.fullmatch(instruction):
            file, beginning = found.groups()
            self._edit(file, lambda lines: lines.insert(_only(lines, beginning) + 1, block))
        elif found := _AT_END.fullmatch(instruction):
            self._edit(found[1], lambda lines: lines.append("\n\n" + block))
        elif found := _ON_TOP.match(instruction):
            self._edit(found[1], lambda lines: lines.insert(_first(lines, "## "), block + "\n"))
        elif _REPLACE.fullmatch(instruction):
            self._edit(self.revision, lambda lines: lines.__setitem__(slice(_only(lines, "drops"), None), [block]))
        else:
            assert instruction == "Run", f"the page says what nobody can follow: {instruction!r}"
            self._run(block.splitlines())

    def _edit(self, name: str | Path, change: Callable[[list[str]], None]) -> None:
        path = self.checkout / name
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        change(lines)
        path.write_text("".join(lines), encoding="utf-8")

    def _run(self, commands: list[str]) -> None:
        environment = {
            "PYTHONPATH": str(self.checkout),
            **self.environment,
            # The copy is compiled once, not by each command.
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(self.checkout / "bytecode"),
        }
        arguments = ["-c", _COMMANDS, json.dumps([line.split()[3:] for line in commands]), *self.urls]
        if commands[0].startswith("uv run"):
            arguments = ["-m", *commands[0].split()[2:]]
        done = run_python(*arguments, cwd=self.checkout, environment=environment, ours=False)
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        for written in re.findall(r"^wrote (.*)$", done.stdout, re.MULTILINE):
            self.revision = Path(written)
            assert self.revision.is_relative_to(self.checkout)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["postgresql", *(("mysql",) if has_mysql() else ())])
def test_every_how_to_works_as_written(tmp_path: Path, server: str, request: pytest.FixtureRequest) -> None:
    """A column, a table, a status value and an index, added one after the other on all databases with rows in them.

    At the end the copy's own tests of its revisions pass, and the new schema does what it was changed for.
    """
    checkout = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("__pycache__", ".*", "*.db")
    shutil.copytree(_ROOT / "shared", checkout / "shared", ignore=ignore)
    shutil.copy(_ROOT / "pyproject.toml", checkout)
    urls: list[URL | str] = [f"sqlite:///{tmp_path}/grid_bot.db", request.getfixturevalue(f"{server}_url")]
    # The copy's tests are given the same server, and the other cores are busy with the tests beside this one.
    own = request.getfixturevalue(f"{server}_server").render_as_string(hide_password=False)
    given = {f"GRIDBOT_TEST_{server.upper()}_URL": own, "PYTEST_ADDOPTS": "-n0"}
    if server == "mysql":
        given["PYTEST_ADDOPTS"] += " -k mysql"
    else:
        given["GRIDBOT_TEST_MYSQL"] = ""
    with ExitStack() as open_until_the_end:
        databases = [open_until_the_end.enter_context(DatabaseFactory(url)) for url in urls]
        before = {}
        for db in databases:
            db.create_tables()
            seed(db)
            before[db] = contents(db)
        reader = _Reader(checkout, [db.settings.get_database_url() for db in databases], given)
        for instruction, block in _INSTRUCTION.findall(_PAGE.read_text(encoding="utf-8")):
            reader.follow(instruction, block)
        assert reader.done == _PAGE.read_text(encoding="utf-8").count("```") // 2

        for db in databases:
            assert contents(db, like=before[db]) == before[db]
            assert runner.status(db).state == "ahead"
            run_by_hand(db, "UPDATE users SET status = 'locked' WHERE user_id = 'u1'")
            with db.engine.connect() as connection:
                assert connection.scalar(text("SELECT count(*) FROM strategy_notes")) == 0
                assert connection.scalar(text("SELECT note FROM strategies")) is None


def _only(lines: list[str], beginning: str) -> int:
    places = [place for place, line in enumerate(lines) if line.strip().startswith(beginning)]
    assert len(places) == 1, f"{len(places)} lines begin with {beginning!r}"
    return places[0]


def _first(lines: list[str], beginning: str) -> int:
    return next(place for place, line in enumerate(lines) if line.startswith(beginning))
