"""Every public operation and command, used with the canaries; what they print, return, show or write is kept."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from shared.db import (
    ApiCredential,
    ApiCredentialRepository,
    AuditLogRepository,
    BybitAccountRepository,
    DatabaseFactory,
    PrivateExecutionRepository,
    PublicTrade,
    PublicTradeRepository,
    Recorder,
    Run,
    RunRepository,
)
from shared.db.bulk import bulk_create
from shared.db.commands.cli import main
from shared.db.encryption import KeyRing, StoredSecret
from shared.db.lake import Lake
from shared.db.operations.backup import back_up, restore
from shared.db.operations.copy_database import copy_database
from shared.db.operations.key_rotation import rotate_keys
from shared.db.operations.partitions import drop_partitions, enable_partitions, extend_partitions
from shared.db.operations.purge import purge_trades
from shared.db.tests.canary import RING, SECRET, Stage, new_credential, stored_credential
from shared.db.tests.support import execution_values, postgresql_programs, trade_values
from shared.db.value_forms.files import FORMATS


def _store_whose_error_shows_its_password() -> bool:
    raise ConnectionError(f"redis://:{SECRET}@cache:6379")


def use_everything(stage: Stage) -> None:
    """The public operations, with everything that they print, return or show."""
    with stage.open() as db:
        stage.see(
            "factory",
            db,
            db.engine,
            str(db.engine.url),
            repr(db.engine.url),
            db.session_factory,
            db.row_security_status(),
            db.write_position(),
        )
        # A pickle of settings or of a URL is for connecting elsewhere: it has to hold the password.
        stage.seen.append(("settings", repr(db.settings) + str(db.settings)))
        stage.see("settings", db.settings.model_dump(), db.settings.model_dump_json(), db.settings.safe_url)
        with db.get_session(user_id="ann") as session:
            credential = stored_credential(session)
            assert credential.api_secret == SECRET
            stage.see("credential", credential, vars(credential), session, session.info, session.identity_map.values())
            stage.see(
                "column",
                session.scalars(select(ApiCredential.api_secret)).all(),
                session.execute(select(ApiCredential.__mapper__.class_)).all(),
            )
            session.refresh(credential)
            session.merge(new_credential(credential_id="stored"))
            session.flush()
            new = ApiCredentialRepository(session).rotate("ann", "key-2", SECRET)
            assert ApiCredentialRepository(session).get_active_credential("ann") is new
            stage.see("rotated", new, ApiCredentialRepository(session).get_by_account_id("ann"))
            changes = [{"credential_id": new.credential_id, "api_secret": SECRET}]
            stage.see("changed", ApiCredentialRepository(session).bulk_update(changes))
            stage.see("by id", ApiCredentialRepository(session).get_by_id(new.credential_id))
            new.api_secret = SECRET + "2"
            session.flush()
            ApiCredentialRepository(session).update(
                ApiCredential(credential_id=new.credential_id, api_secret=SECRET, account_id="ann", api_key_id="k")
            )
            ApiCredentialRepository(session).delete(new)
            credential.is_active = True
            session.execute(update(ApiCredential).values(api_key_id="key-3"))
            session.execute(delete(ApiCredential).where(ApiCredential.api_key_id == "nobody"))
            run = session.get_one(Run, "r")
            stage.see("bulk", PrivateExecutionRepository(session).bulk_create([execution_values(run)]))
            stage.see("bulk", PublicTradeRepository(session).bulk_create([trade_values()]))
            stage.see("lists", BybitAccountRepository(session).get_all(), RunRepository(session).get_running())
            read_in_every_way(stage, session)
        with db.get_session(user_id="ann") as session:
            for entry in AuditLogRepository(session).get_by_user_id("ann"):
                stage.see("audit", entry, vars(entry))
        stage.see(
            "in a transaction",
            db.run_in_transaction(stored_credential),
            db.run_in_transaction(stored_credential, serializable=True),
        )
        db.add_store("cache", _store_whose_error_shows_its_password)
        stage.see("health", db.health(check=True), db.health().as_dict())
        with db.get_session() as session:
            bulk_create(session, ApiCredential, [{"account_id": "ann-2", "api_key_id": "k", "api_secret": SECRET}])
            stage.see("everybody's", ApiCredentialRepository.across_users(session).get_all())
            session.rollback()
        if stage.sealed:
            stage.see("rotation", rotate_keys(db))
        stage.see("backup", back_up(db, stage.folder / "backup", pg_bin=postgresql_programs()))
        stage.see("restore", restore(db, stage.folder / "backup", force=True, pg_bin=postgresql_programs()))
        with DatabaseFactory(f"sqlite:///{stage.folder / 'copied.db'}") as copied:
            stage.see("copy", copy_database(db, copied))
        if not stage.settings.is_sqlite:
            stage.see("partitions", enable_partitions(db, PublicTrade), extend_partitions(db, PublicTrade))
            stage.see("dropped", drop_partitions(db, PublicTrade, datetime(2020, 1, 1, tzinfo=UTC)))
        lake = Lake(stage.folder / "lake")
        stage.see("lake", lake, lake.write(db), lake.verify(db), lake.drop(db, before=datetime.now(UTC)))
        stage.see("lake's rows", lake.reading(db), list(lake.reading(db).iter_range("BTCUSDT", reverse=True)))
        stage.see("lake's last row", lake.reading(db).latest("BTCUSDT"))
        stage.see("lake's row of a time", lake.reading(db).at_or_before("BTCUSDT", datetime.now(UTC)))
        stage.see("purge", purge_trades(db, datetime.now(UTC)))
        record(stage, db)
    ring = KeyRing.parse(RING)
    stage.see("ring", ring, vars(ring), StoredSecret(SECRET))
    run_every_command(stage)
    with stage.open() as db:
        db.check_schema()
        if not stage.settings.is_sqlite:
            db.enable_row_security()
            stage.see("policies", db.row_security_status())
            with db.get_session(user_id="ann") as session:
                assert stored_credential(session).api_secret == SECRET
            db.disable_row_security()


def record(stage: Stage, db: DatabaseFactory) -> None:
    """A recorder with a row that is refused: its numbers, what `on_error` is told, and the dead letters."""
    told: list[Any] = []
    rejected = stage.folder / "rejected.jsonl"
    with Recorder(db, PublicTrade, on_error=told.append, spool=stage.folder / "spool", dead_letters=rejected) as one:
        one.add([trade_values(1), trade_values(2, side="Both")])
        one.flush()
        stage.see("recorder", one, one.stats(), told)
    assert len(told) == 1
    letters = rejected.read_text(encoding="utf-8")
    stage.see("dead letters", letters)
    rejected.write_text(letters.replace('"Both"', '"Buy"'), encoding="utf-8")  # corrected, for the command


def read_in_every_way(stage: Stage, session: Session) -> None:
    """What a bot or a backtest reads, with the executions' own documents."""
    trades, executions = PublicTradeRepository(session), PrivateExecutionRepository(session)
    stage.see("ranges", list(trades.iter_symbol_range("BTCUSDT")), list(executions.iter_run_range("r")))
    stage.see("objects", [vars(row) for row in executions.iter_run_range("r", as_objects=True)])
    for frame in (trades.to_arrow("BTCUSDT"), executions.to_polars("r"), executions.to_pandas("r")):
        stage.see("frame", frame)
    stage.see("summaries", list(trades.coverage()), executions.totals("r"))


def commands(stage: Stage, folder: Path) -> list[list[str]]:
    """Each command with arguments with which it does something; what it writes goes into `folder`."""
    exports = [
        ["export", what, *of, "-o", str(folder / f"{what}.{kind}")]
        for kind in FORMATS
        for what, of in (("trades", ["--symbol", "BTCUSDT"]), ("executions", ["--run", "r", "--user", "ann"]))
    ]
    backup, tools = str(stage.folder / "by_command"), ["--pg-bin", str(postgresql_programs()), "--json"]
    return [
        ["init"],
        ["row-security", "status"],
        ["sequences"],
        ["status"],
        ["status", "--json"],
        ["status", "--prometheus"],
        ["status", "--html"],
        ["coverage"],
        ["keys", "generate", "--id", "k9"],
        *([["keys", "rotate"]] if stage.sealed else []),
        *exports,
        ["import-trades", str(folder / "trades.csv"), "--json"],
        ["docs"],
        ["import", "private_executions", str(folder / "executions.csv"), "--user", "ann"],
        ["report", "--user", "ann", "-o", str(folder / "report.html")],
        ["lake", "write", "--lake", str(stage.folder / "lake"), "--before", "2020-01-01", "--purge", "--json"],
        ["lake", "verify", "--lake", str(stage.folder / "lake")],
        ["lake", "drop", "--lake", str(stage.folder / "lake"), "--before", "2020-01-01"],
        ["replay", str(stage.folder / "rejected.jsonl")],
        ["purge", "--table", "public_trades", "--before", "2020-01-01", "--dry-run"],
        *([] if stage.settings.is_sqlite else [["partition", "extend", "--table", "public_trades"]]),
        ["backup", backup, *tools],
        ["restore", backup, "--force", *tools],
        ["copy", "-", f"sqlite:///{stage.folder / 'copied_by_command.db'}", "--json"],
        *(["migrate", *step] for step in (["status"], ["up", "--audit"], ["check"], ["sql", "--audit"])),
    ]


def run_every_command(stage: Stage) -> None:
    """Each command, its output caught with the streams; what it writes must not show a secret either."""
    folder = stage.folder / "written"
    folder.mkdir()
    for arguments in commands(stage, folder):
        command = [*arguments, "--db-url", stage.settings.get_database_url()]
        with pytest.MonkeyPatch.context() as patch:
            if stage.sealed:
                patch.setenv("GRIDBOT_DB_ENCRYPTION_KEYS", RING)
            assert main(command if arguments[:2] != ["keys", "generate"] else arguments) == 0, arguments
    for path in folder.iterdir():
        stage.seen.append((path.name, path.read_bytes().decode("latin-1")))
    assert len(list(folder.iterdir())) >= 2 * len(FORMATS)
