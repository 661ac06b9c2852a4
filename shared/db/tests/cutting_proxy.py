"""Between a client and PostgreSQL: passes everything on, and cuts the connection where a test says so."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from sqlalchemy import URL

When = Literal["before", "after"]
# What the server sends when it has answered: ReadyForQuery, with its length.
_READY = b"Z\x00\x00\x00\x05"


class CuttingProxy:
    """A Unix socket in `folder` that leads to the server of `url`; `self.url` is the same database through it.

    `cut(b"COMMIT", "before")` has the next message with these bytes not reach the server, and the connection break;
    "after" lets the server carry it out, and breaks the connection in place of its answer. `refuse(n)` breaks the next
    n connections as they are made. `messages` has what a client sent, as it came.
    """

    def __init__(self, url: URL, folder: Path) -> None:
        self.url = url.set(host=None, port=None, query={"host": str(folder)})
        self._target = url
        self._lock = threading.Lock()
        self.messages: list[bytes] = []
        self._cuts: list[tuple[bytes, When]] = []
        self._refuse = 0
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / ".s.PGSQL.5432"))
        self._listener.listen()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (self._listener, *self._open):
            _close(each)

    def cut(self, marker: bytes, when: When, times: int = 1) -> None:
        """Break the connection at the next `times` messages that have `marker` in them."""
        with self._lock:
            self._cuts += [(marker, when)] * times

    def refuse(self, times: int) -> None:
        """Break the next `times` connections at once."""
        self._refuse = times

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            if self._refuse:
                self._refuse -= 1
                _close(client)
                continue
            server = self._connected()
            self._open += [client, server]
            threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()

    def _connected(self) -> socket.socket:
        host, port = self._target.query.get("host", self._target.host), self._target.port or 5432
        if str(host).startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port}")
            return server
        return socket.create_connection((str(host), port))

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        hold_back = threading.Event()
        threading.Thread(target=self._to_client, args=(client, server, hold_back), daemon=True).start()
        try:
            while message := client.recv(1 << 16):
                self.messages.append(message)
                when = self._cut_at(message)
                if when == "after":
                    hold_back.set()
                if when != "before":
                    server.sendall(message)
                if when == "before":
                    break
                if when == "after":
                    return  # the other thread breaks the connection once the answer is here
        except OSError:
            pass  # the other side is gone
        _close(client)
        _close(server)

    def _to_client(self, client: socket.socket, server: socket.socket, hold_back: threading.Event) -> None:
        try:
            while answer := server.recv(1 << 16):
                if not hold_back.is_set():
                    client.sendall(answer)
                elif _READY in answer:
                    break
        except OSError:
            pass  # the other side is gone
        _close(client)
        _close(server)

    def _cut_at(self, message: bytes) -> When | None:
        with self._lock:
            for cut in self._cuts:
                if cut[0] in message:
                    self._cuts.remove(cut)
                    return cut[1]
        return None


def _close(end: socket.socket) -> None:
    with suppress(OSError):  # not connected any more
        end.shutdown(socket.SHUT_RDWR)
    end.close()
