"""Real servers of a test's own: InfluxDB 1 and VictoriaMetrics, from the packages of Debian or wherever they are."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import urllib3

PROGRAMS = {"influxdb": "influxd", "victoria": "victoria-metrics"}
DATABASE = "measured"


class Server:
    """A server with a database of its own in `folder`, at `url`."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        address, other = _address(), _address()
        self.url = f"http://{address}"
        self._http = urllib3.PoolManager(retries=False, timeout=5)
        if kind == "influxdb":
            self._command = ["influxd", "run", "-config", ""]
            folders = {f"INFLUXDB_{name}_DIR": str(folder / name) for name in ("META", "DATA", "DATA_WAL")}
            addresses = {"INFLUXDB_HTTP_BIND_ADDRESS": address, "INFLUXDB_BIND_ADDRESS": other}
            quiet = {"INFLUXDB_REPORTING_DISABLED": "true", "INFLUXDB_MONITOR_STORE_ENABLED": "false"}
            self._environment = os.environ | folders | addresses | quiet | {"HOME": str(folder)}
        else:
            kept = [f"-storageDataPath={folder / 'data'}", "-retentionPeriod=100y", "-search.latencyOffset=0s"]
            self._command = ["victoria-metrics", f"-httpListenAddr={address}", *kept]
            self._environment = dict(os.environ)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, env=self._environment, stdout=quiet, stderr=quiet)
        for _ in range(1500):
            try:
                self._http.request("GET", f"{self.url}/ping")
            except urllib3.exceptions.HTTPError:
                assert self._process.poll() is None, "the server ended"
                time.sleep(0.02)  # it is starting, and says nothing until it answers
            else:
                return self.clear()
        raise AssertionError("the server does not answer")

    def clear(self) -> None:
        """Have the database, if that is what it takes."""
        if self.kind == "influxdb":
            self._http.request("POST", f"{self.url}/query", fields={"q": f"CREATE DATABASE {DATABASE}"})

    def settle(self) -> None:
        """Have what was written be found."""
        if self.kind == "victoria":
            self._http.request("GET", f"{self.url}/internal/force_flush")

    def kill(self) -> None:
        """Kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._http.clear()


def _address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"
