"""Commands that are interrupted at random moments: what they say of the state that they leave, and whether it is so."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import URL, create_engine, func, select, text
from sqlalchemy.orm import Session

from benchmarks.fault_bench.clients import batch
from benchmarks.fault_bench.figures import Figure
from benchmarks.fault_bench.ground import Ground
from shared.db import (
    ApiCredential,
    BybitAccount,
    DatabaseFactory,
    DatabaseSettings,
    PublicTrade,
    PublicTradeRepository,
    User,
    starting,
)
from shared.db.commands.cli import main
from shared.db.encryption import generate_entry
from shared.db.migrations import runner
from shared.db.operations.backup import back_up
from shared.db.operations.checksum import verify_checksum
from shared.db.operations.contents import row_counts
from shared.db.operations.export import export_trades

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
_TRADES, _SECRETS, _IMPORTED = 4_000, 120, 20_000
_SHOWN = 5
_INTERRUPTED = 130


class Ending(NamedTuple):
    """How a command ended: its exit code, less than 0 for a signal's number, and what it printed to stderr."""

    code: int
    said: str

    @property
    def interrupted(self) -> bool:
        """Whether it ended as an interrupted command does."""
        return self.code == _INTERRUPTED


@dataclass
class Place:
    """A prepared database, of which every interruption gets a fresh copy, and what is around it."""

    ground: Ground
    name: str
    template: URL
    folder: Path
    _copies: int = 0
    new: URL = field(init=False)

    def fresh(self, template: URL | None = None) -> URL:
        """The database that is worked on, as the template has it."""
        template = template or self.template
        self._copies += 1
        if self.name == "SQLite":
            path = self.folder / "work.db"
            for suffix in ("", "-wal", "-shm"):
                path.with_name(f"work.db{suffix}").unlink(missing_ok=True)
            shutil.copy(str(template.database), path)
            return template.set(database=str(path))
        url = template.set(database="interrupted")
        self._on_server('DROP DATABASE IF EXISTS "interrupted" WITH (FORCE)')
        self._on_server(f'CREATE DATABASE "interrupted" TEMPLATE "{template.database}"')
        return url

    def nothing(self) -> URL:
        """The URL of a database without tables; on SQLite its file is not there."""
        if self.name == "SQLite":
            path = self.folder / "target.db"
            for suffix in ("", "-wal", "-shm"):
                path.with_name(f"target.db{suffix}").unlink(missing_ok=True)
            return self.template.set(database=str(path))
        self._on_server('DROP DATABASE IF EXISTS "target" WITH (FORCE)')
        self._on_server('CREATE DATABASE "target"')
        return self.template.set(database="target")

    def _on_server(self, statement: str) -> None:
        engine = create_engine(self.ground.server.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()


@dataclass
class Case:
    """One command: `begin` makes its database and gives its arguments, `look` what is wrong with what it left."""

    name: str
    begin: Callable[[Place], list[str]]
    look: Callable[[Place, Ending], list[str]]
    goes_on: bool = False  # run again, it does the rest; the others do all or nothing


def interruptions(ground: Ground) -> list[Figure]:
    """SIGINT, SIGTERM and SIGKILL, each at a random moment, of every command that changes something."""
    count = ground.of(143, 4)
    return [_interrupt(case, place, count) for place in _places(ground) for case in CASES]


def _places(ground: Ground) -> Iterator[Place]:
    for name, url in ground.new_databases():
        with DatabaseFactory(url) as db, db.get_session() as session:
            session.add(User(user_id="bench", username="bench"))
            session.flush()
            for number in range(_SECRETS):
                account = BybitAccount(user_id="bench", account_name=f"a{number}", environment="testnet")
                session.add(account)
                session.flush()
                session.add(
                    ApiCredential(account_id=account.account_id, api_key_id=f"k{number}", api_secret=f"s{number}")
                )
            PublicTradeRepository(session).bulk_create(
                row for op in range(_TRADES // 10) for row in batch("OLD", op, 10)
            )
        yield Place(ground, name, _settled(url), ground.new_folder())


def _settled(url: URL) -> URL:
    if url.get_backend_name() == "sqlite":
        with contextlib.closing(sqlite3.connect(str(url.database))) as file:
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return url


def _interrupt(case: Case, place: Place, count: int) -> Figure:
    random = place.ground.random
    os.environ["PATH"] = f"{place.ground.server.programs}{os.pathsep}{os.environ['PATH']}"
    endings: Counter[str] = Counter()
    problems: list[str] = []
    took = []
    for _ in range(3):
        arguments = case.begin(place)
        began = time.monotonic()
        ending = _run(arguments, place.folder, None, 0)
        took.append(time.monotonic() - began)
        problems += [f"uninterrupted: {problem}" for problem in case.look(place, ending)]
        if ending.code:
            problems.append(f"uninterrupted: {ending}")
    for number in range(count):
        arguments = case.begin(place)
        number_of = random.choice(_SIGNALS)
        ending = _run(arguments, place.folder, number_of, random.uniform(0, min(took)))
        endings["killed" if ending.code < 0 else "interrupted" if ending.interrupted else "done"] += 1
        found = _wrong_words(ending) + case.look(place, ending)
        if case.goes_on or ending.code < 0:
            again = _run(arguments if case.goes_on else case.begin(place), place.folder, None, 0)
            if again.code:
                found.append(f"the next run: {again}")
            found += [f"after the next run: {problem}" for problem in case.look(place, again)]
        if ending.code >= 0 or case.goes_on:
            found += [f"left {path.name}" for path in place.folder.glob(".*part*")]
        problems += [f"{number_of.name}, number {number}: {problem}" for problem in found]
    measured = ", ".join(f"{found} {how}" for how, found in sorted(endings.items()))
    more = "; ".join([*problems[:_SHOWN], *([f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])])
    return Figure(
        f"{count} interruptions of {case.name}, {place.name}",
        "old or new state, and said which",
        f"{measured}; {more}" if more else measured,
        not problems,
    )


def _wrong_words(ending: Ending) -> list[str]:
    lines = ending.said.splitlines()
    if ending.code < 0:
        return [] if ending.code == -signal.SIGKILL else [f"ended by signal {-ending.code}"]
    if ending.code == 0:
        return ["done, and says interrupted"] if "interrupted" in ending.said else []
    if not ending.interrupted or len(lines) != 1 or not lines[0].startswith("shared.db: interrupted; "):
        return [f"exit code {ending.code}, {ending.said[-300:]!r}"]
    return []


def _run(arguments: list[str], folder: Path, number: signal.Signals | None, after: float) -> Ending:
    """Run the command in a forked process, as the program does, and send it a signal after so many seconds."""
    said = folder / "said"
    said.unlink(missing_ok=True)
    # From its first moment on the child answers as the program that is being loaded does.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS[:2])
    child = os.fork()
    if not child:
        try:
            for answer in _SIGNALS[:2]:
                signal.signal(answer, starting.end)
            _print_into(said)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            sys.argv[1:] = arguments
            code = main()
            sys.stderr.flush()
        except BaseException:  # noqa: BLE001 # a forked process must not run on in its parent's code
            traceback.print_exc()
            sys.stderr.flush()
            code = 1
        os._exit(code)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if number is not None:
        time.sleep(after)  # the moment is what is random here
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ending(status, said.read_text() if said.exists() else "")


def _print_into(said: Path) -> None:
    output = os.open(os.devnull, os.O_WRONLY)
    errors = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115 # until the process ends


def _counts(url: URL) -> dict[str, int]:
    with DatabaseFactory(url) as db, db.get_session(read_only=True) as session:
        return row_counts(Session.connection(session))


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


# Each command


def _begin_backup(place: Place) -> list[str]:
    (place.folder / "backup").unlink(missing_ok=True)
    (place.folder / "backup.sha256").unlink(missing_ok=True)
    place.new = place.template
    return ["backup", str(place.folder / "backup"), "--db-url", _text(place.template)]


def _look_at_backup(place: Place, ending: Ending) -> list[str]:
    path = place.folder / "backup"
    problems = []
    if path.exists():
        verify_checksum(path)
        if not path.with_name("backup.sha256").exists() and ending.code >= 0:
            problems.append("a backup without its checksum")
    if ending.code >= 0 and path.exists() != (ending.code == 0 or "is complete" in ending.said):
        problems.append(f"a backup that is {'' if path.exists() else 'not '}there, and {ending}")
    return problems


def _begin_restore(place: Place) -> list[str]:
    path = place.folder / "to-restore"
    if not path.exists():
        url = place.fresh()
        with DatabaseFactory(url) as db:
            with db.get_session() as session:
                PublicTradeRepository(session).bulk_create(row for op in range(300) for row in batch("NEW", op, 10))
            back_up(db, path)
    place.new = place.fresh()
    return ["restore", str(path), "--force", "--db-url", _text(place.new)]


def _look_at_restored(place: Place, ending: Ending) -> list[str]:
    found = _counts(place.new)["public_trades"]
    if found not in (_TRADES, _TRADES + 3_000):
        return [f"half a restore: {found} trades"]
    took_place = ending.code == 0 or "the restore took place" in ending.said
    if ending.code >= 0 and took_place != (found > _TRADES):
        return [f"{found} trades, and {ending}"]
    return []


def _begin_copy(place: Place) -> list[str]:
    place.new = place.nothing()
    return ["copy", _text(place.template), _text(place.new)]


def _look_at_copied(place: Place, ending: Ending) -> list[str]:
    took_place = ending.code == 0 or "the copy took place" in ending.said
    if place.name == "SQLite" and not Path(str(place.new.database)).exists():
        return [f"no file, and {ending}"] if took_place else []
    try:
        found = _counts(place.new)
    except Exception as error:  # noqa: BLE001 # whatever it is, it is a finding
        return [f"{type(error).__name__}: {error}"]
    if found not in ({}, _counts(place.template)):
        return [f"half a copy: {found}"]
    problems = []
    if ending.code >= 0 and took_place != bool(found):
        problems.append(f"{sum(found.values())} rows, and {ending}")
    if ending.code > 0 and place.name == "SQLite" and not found:
        problems.append("an empty file is left")
    return problems


def _begin_migrate(place: Place) -> list[str]:
    place.new = place.fresh()
    with DatabaseFactory(place.new) as db:
        runner.downgrade(db, "0001", allow_data_loss=True)
    return ["migrate", "up", "--db-url", _text(place.new)]


def _look_at_migrated(place: Place, ending: Ending) -> list[str]:
    problems = []
    with DatabaseFactory(place.new) as db:
        status = runner.status(db)
        told = ending.said.rstrip().partition("the database is at ")[2]
        if ending.interrupted and told and told != status.database_revision:
            problems.append(f"at {status.database_revision}, and {ending}")
        if status.state == "current" and runner.check(db):
            problems.append("a schema that is not the code's")
        with db.get_session(read_only=True) as session:
            if session.scalar(select(func.count()).select_from(PublicTrade)) != _TRADES:
                problems.append("rows are gone")
    if ending.code == 0 and status.state != "current":
        problems.append(f"done, and {status.state}")
    return problems


def _begin_purge(place: Place) -> list[str]:
    place.new = place.fresh()
    return ["purge", "--table", "public_trades", "--before", "2030-01-01", "--db-url", _text(place.new)]


def _look_at_purged(place: Place, ending: Ending) -> list[str]:
    found = _counts(place.new)["public_trades"]
    if ending.code == 0 and found:
        return [f"done, and {found} trades are there"]
    return []


def _begin_rotation(place: Place) -> list[str]:
    place.new = place.fresh()
    return ["keys", "rotate", "--batch", "5", "--env-file", str(_key_file(place)), "--db-url", _text(place.new)]


def _key_file(place: Place) -> Path:
    path = place.folder / "keys.env"
    if not path.exists():
        path.write_text(f"GRIDBOT_DB_ENCRYPTION_KEYS={generate_entry('k1')}\n")
    return path


def _look_at_secrets(place: Place, ending: Ending) -> list[str]:
    settings = DatabaseSettings(database_url=_text(place.new), _env_file=_key_file(place))
    with DatabaseFactory(settings) as db, db.get_session(read_only=True) as session:
        found = [(one.api_key_id, str(one.api_secret)) for one in session.scalars(select(ApiCredential))]
    problems = [f"the secret of {key} is {secret}" for key, secret in found if secret != f"s{key[1:]}"]
    return problems if len(found) == _SECRETS else [*problems, f"{len(found)} secrets"]


def _begin_import(place: Place) -> list[str]:
    path = place.folder / "trades.csv"
    if not path.exists():
        with DatabaseFactory(place.fresh()) as db:
            with db.get_session() as session:
                PublicTradeRepository(session).bulk_create(
                    row | {"price": Decimal("1.5")} for op in range(_IMPORTED // 10) for row in batch("NEW", op, 10)
                )
            export_trades(db, path, "NEW")
    place.new = place.fresh()
    return ["import-trades", str(path), "--db-url", _text(place.new)]


def _look_at_imported(place: Place, ending: Ending) -> list[str]:
    found = _counts(place.new)["public_trades"]
    if not _TRADES <= found <= _TRADES + _IMPORTED or (ending.code == 0 and found != _TRADES + _IMPORTED):
        return [f"{found} trades, and {ending}"]
    return []


CASES = (
    Case("backup", _begin_backup, _look_at_backup),
    Case("restore", _begin_restore, _look_at_restored),
    Case("copy", _begin_copy, _look_at_copied),
    Case("migrate up", _begin_migrate, _look_at_migrated, goes_on=True),
    Case("purge", _begin_purge, _look_at_purged, goes_on=True),
    Case("keys rotate", _begin_rotation, _look_at_secrets, goes_on=True),
    Case("import-trades", _begin_import, _look_at_imported, goes_on=True),
)
