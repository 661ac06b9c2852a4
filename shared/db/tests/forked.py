"""Python processes for tests that need one of their own, forked from one that has loaded the library already.

What they do is what `python ARGUMENTS` does, in a fifth of the time; who tests how a program starts starts one.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

_REQUEST = 1 << 20
_OTHERS = (
    *("alembic.autogenerate", "alembic.command", "alembic.config", "cryptography.fernet", "psycopg2"),
    *("pydantic_settings", "pytest", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite"),
    *("sqlalchemy.ext.asyncio", "sqlalchemy.orm"),
)
_OURS = (
    *("alembic.autogenerate", "alembic.command", "alembic.config", "shared.db.commands.cli"),
    *(f"shared.db.commands.{name}" for name in ("backup", "copy_database", "initialize", "migrate", "status")),
    *("shared.db.commands.row_files", "shared.db.migrations.runner"),
)


def run_python(
    *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None, ours: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `python [-W error] (-m MODULE | -c CODE) ...` in `cwd`, the current folder if there is none.

    With `ours=False` only others' libraries are loaded beforehand: for a copy of ours, or to see ours being loaded.
    """
    request = json.dumps([arguments, {**os.environ, **(environment or {})}, str(cwd or Path.cwd())]).encode()
    assert len(request) < _REQUEST
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked,
    ):
        asked.settimeout(600)
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST)
        asked.connect(_server(os.getpid(), _OURS if ours else _OTHERS))
        socket.send_fds(asked, [request], [out.fileno(), err.fileno()])
        code = int(asked.recv(16))
        out.seek(0)
        err.seek(0)
        # As text, with line ends as a pipe that is read as text gives them.
        texts = [file.read().decode().replace("\r\n", "\n") for file in (out, err)]
    return subprocess.CompletedProcess(["python", *arguments], code, *texts)


@lru_cache
def _server(process: int, loaded: tuple[str, ...]) -> str:
    """The address of the process that forks; one for each process of tests, and gone with it."""
    folder = tempfile.mkdtemp(prefix="forked-")
    address = str(Path(folder) / "socket")
    server = subprocess.Popen([sys.executable, __file__, address, *loaded], stdin=subprocess.PIPE, cwd=folder)

    def end() -> None:
        if os.getpid() != process:
            return  # a child that a test forked, and that ends as programs do
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    while not Path(address).exists():
        assert server.poll() is None
        time.sleep(0.01)  # it is loading the library
    return address


def _serve(address: str, *loaded: str) -> None:
    for name in loaded:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"{address}.new")
        listening.listen(8)
        os.rename(f"{address}.new", address)
        while listening in select.select([listening, sys.stdin], [], [])[0]:  # stdin alone: whoever asks has ended
            asked, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _answer(asked)
            asked.close()
            _bury()


def _answer(asked: socket.socket) -> None:
    """In a process that waits for the one that does it, since it alone can tell how that one ended."""
    request, (out, err), _, _ = socket.recv_fds(asked, _REQUEST, 2)
    child = os.fork()
    if child == 0:
        asked.close()
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _run(*json.loads(request))
        sys.exit()
    _, status = os.waitpid(child, 0)
    asked.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _bury() -> None:
    """Those that have answered."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _run(arguments: list[str], environment: dict[str, str], cwd: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(cwd)
    sys.orig_argv[:] = [sys.executable, *arguments]
    if arguments[:2] == ["-W", "error"]:
        warnings.simplefilter("error")
        arguments = arguments[2:]
    way, what, *rest = arguments
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.pycache_prefix = environment.get("PYTHONPYCACHEPREFIX")
    sys.path[:1] = ["" if way == "-c" else cwd, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    if way == "-m":
        sys.argv[:] = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert way == "-c", way
        sys.argv[:] = ["-c", *rest]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)  # as python -c


if __name__ == "__main__":
    _serve(*sys.argv[1:])
