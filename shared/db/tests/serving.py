"""Real web servers of a test's own, each in a thread, and a client that asks them over a socket."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI
from flask import Flask
from werkzeug.serving import make_server


@dataclass(frozen=True)
class Ask:
    """A client of the server at a port."""

    port: int

    def __call__(self, method: str, path: str, user: str | None = None) -> tuple[int, Any]:
        """Status and document of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, headers={} if user is None else {"X-User": user})
            answer = connection.getresponse()
            text = answer.read().decode()
            return answer.status, json.loads(text) if text.startswith(("{", "[", '"')) else text
        finally:
            connection.close()


@contextmanager
def uvicorn_serving(app: FastAPI) -> Iterator[Ask]:
    """A uvicorn with the application."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)  # it is starting
    try:
        yield Ask(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def werkzeug_serving(app: Flask) -> Iterator[Ask]:
    """A werkzeug with the application, a thread for each request."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Ask(server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
