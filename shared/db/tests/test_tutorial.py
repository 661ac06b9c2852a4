"""docs/tutorial.md, followed block by block in an empty folder."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from shared.db.tests.forked import run_python

_PACKAGE = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./]+\.\w+|\.env)(, at the end)?\n")


class _Newcomer:
    """Somebody who types what stands there, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "site"
        self.environment = {"PYTHONPATH": str(self.site), "PYTHONDONTWRITEBYTECODE": "1"}
        self.printed: list[str] = []
        self.in_any_order = False
        self._server: subprocess.Popen[bytes] | None = None
        self._listening = socket.create_server(("127.0.0.1", 0))

    def follow(self, language: str, block: str) -> None:
        """Do what a block says, or compare what it promises with what the last one printed."""
        named = _FILE.match(block)
        if language == "text":
            promised = block.splitlines()
            assert promised == (sorted(self.printed) if self.in_any_order else self.printed)
        elif language == "crontab":
            command = block.partition("&& ")[2].replace("\\%", "%")
            self.printed = self._run(self._shell(f"echo {command}")[0])
        elif named is not None:
            path = self.folder / named[1]
            with path.open("a" if named[2] else "x") as file:
                file.write(block[named.end() :])
        else:
            assert language == "sh"
            self._type(block.splitlines())

    def _type(self, lines: list[str]) -> None:
        beside: list[Future[list[str]]] = []
        self.printed, self.in_any_order = [], "wait" in lines
        with ThreadPoolExecutor() as pool:
            for line in lines:
                if line.endswith(" &"):
                    beside.append(pool.submit(self._run, line.removesuffix(" &")))
                elif line != "wait":
                    self.printed += self._run(line)
        for one in beside:
            self.printed += one.result()

    def _run(self, line: str) -> list[str]:
        words = shlex.split(line)
        if words == ["uv", "sync"]:
            self._install()
            return []
        if words[:3] == ["uv", "run", "python"]:
            done = run_python("-W", "error", *words[3:], cwd=self.folder, environment=self.environment)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            return done.stdout.splitlines()
        if words[:3] == ["uv", "run", "uvicorn"]:
            self._serve(words[2:])
            return []
        return [self._ask(words)] if words[0] == "curl" else self._shell(line)

    def _install(self) -> None:
        """As uv does with the project itself; what it depends on is there."""
        project = tomllib.loads((self.folder / "pyproject.toml").read_text())["project"]
        ours = tomllib.loads((_PACKAGE / "pyproject.toml").read_text())["project"]
        (extras,) = re.findall(rf"{ours['name']}\[(.*)\]", project["dependencies"][0])
        assert {*extras.split(",")} <= ours["optional-dependencies"].keys()
        metadata = self.site / f"{project['name']}-{project['version']}.dist-info"
        metadata.mkdir(parents=True, exist_ok=True)
        (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
        points = project.get("entry-points", {})
        text = "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points[group].items()) for group in points)
        (metadata / "entry_points.txt").write_text(text)
        self.environment["GRIDBOT_DB_PACKAGES"] = ",".join(["shared.db", *points.get("shared.db.models", {})])

    def _serve(self, words: list[str]) -> None:
        number = self._listening.fileno()
        self._server = subprocess.Popen(
            [sys.executable, "-m", *words, "--fd", str(number), "--log-level", "warning"],
            cwd=self.folder,
            env=os.environ | self.environment,
            pass_fds=[number],
        )

    def _ask(self, words: list[str]) -> str:
        """What curl shows."""
        (address,) = (word.rstrip(";") for word in words if word.startswith("http"))
        headers = dict(words[place + 1].split(": ") for place, word in enumerate(words) if word == "-H")
        connection = http.client.HTTPConnection("127.0.0.1", self._listening.getsockname()[1], timeout=60)
        try:
            connection.request("GET", urlsplit(address).path, headers=headers)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def _shell(self, line: str) -> list[str]:
        done = subprocess.run(["bash", "-ec", f"{line}\npwd"], cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        *printed, folder = done.stdout.splitlines()
        self.folder = Path(folder)
        return printed

    def leave(self) -> None:
        """End what was started."""
        self._listening.close()
        if self._server is not None:
            self._server.terminate()
            self._server.wait()


@contextmanager
def _newcomer(folder: Path) -> Iterator[_Newcomer]:
    newcomer = _Newcomer(folder)
    try:
        yield newcomer
    finally:
        newcomer.leave()


@pytest.mark.slow
def test_the_tutorial_works_as_written(tmp_path: Path) -> None:
    """Each block does what the text says, one after the other, from an empty folder to a restored backup.

    The environment is the suite's own, since a new one could not be filled without a network: in place of `uv sync`
    the metadata is written that it would write. Folder, settings and database are new, and each command is a process.
    """
    page = (_PACKAGE / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = _BLOCK.findall(page)
    assert len(blocks) == page.count("```") // 2 > 30
    with _newcomer(tmp_path) as newcomer:
        for language, block in blocks:
            newcomer.follow(language, block)
        there = {path.name for path in newcomer.folder.rglob("*") if path.suffix in (".db", ".html")}
    assert {"fleet.db", "first.db", "report.html"} < there
    assert len(there) == 4, "and the night's backup"
