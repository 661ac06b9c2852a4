"""`python -m shared.db serve`: the report as a page that is kept up to date, for this machine alone.

Exit codes: 1 failed, 2 usage, 130 interrupted, as it ends by Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import socket
from collections.abc import Callable

from shared.db.commands.arguments import settings_from_arguments
from shared.db.database import DatabaseFactory
from shared.db.errors import InputError, MissingExtraError
from shared.db.report.live import live_app, logins_for

_HOST = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` its arguments; the function that runs the command."""
    parser.add_argument("--user", action="append", required=True, metavar="NAME", help="whose report; may come again")
    parser.add_argument("--port", type=int, default=0, help="the port (default: one that is free)")
    parser.add_argument(
        "--every", type=float, default=5.0, metavar="SECONDS", help="look for new fills so often (default: 5)"
    )

    def run(options: argparse.Namespace) -> int:
        if not 0.1 <= options.every <= 86_400:
            parser.error("--every is a number of seconds from 0.1 to 86400")
        if not 0 <= options.port < 65_536:
            parser.error("--port is a number from 0 to 65535")
        try:
            uvicorn = importlib.import_module("uvicorn")
        except ImportError as error:
            raise MissingExtraError("uvicorn", "web") from error
        with DatabaseFactory(settings_from_arguments(options)) as db:
            db.check_schema()
            logins = logins_for(db, options.user)
            app = live_app(db, logins, options.every)
            with _listening(options.port) as listening:
                for token, login in logins.items():
                    print(f"{login.username}: http://{_HOST}:{listening.getsockname()[1]}/?token={token}", flush=True)
                # A log of requests would have the tokens. Pages that are open are not waited for when it ends.
                config = uvicorn.Config(
                    app, access_log=False, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
                )
                uvicorn.Server(config).run(sockets=[listening])
        return 0

    return run


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server((_HOST, port))
    except OSError as error:
        raise InputError(f"nothing can be served at port {port}: {error.strerror}; choose another --port") from error
