"""What keeps a database alive takes every table of this package as it takes those of `shared.db`, on every database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

import shared.fleet
from shared.db import (
    AuditLogRepository,
    Base,
    DatabaseFactory,
    DatabaseSettings,
    Recorder,
    Repository,
    SecretError,
    Stream,
    User,
)
from shared.db.commands.cli import main
from shared.db.testing import has_mysql
from shared.db.tests.support import code_lines, postgresql_programs
from shared.fleet import Bot, BotRepository
from shared.fleet.tests.test_fleet import every_table, two_bots

TOKEN = "canary-5c1f"
TABLES: dict[type[Any], None] = {
    mapper.class_: None for mapper in Base.registry.mappers if mapper.class_.__module__ == "shared.fleet.models"
}
STREAMS: dict[type[Any], Stream] = {
    model: model.__stream__ for model in TABLES if isinstance(getattr(model, "__stream__", None), Stream)
}


@pytest.fixture(params=["file", "postgresql", "policies", *(["mysql"] if has_mysql() else [])])
def at(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatabaseFactory]:
    """Each database that commands can reach, with a row of each table of each of two users."""
    monkeypatch.chdir(tmp_path)
    if request.param == "policies":
        made: DatabaseFactory = request.getfixturevalue("policed_db")
        monkeypatch.setenv("GRIDBOT_DB_TENANT_ROLE", str(made.settings.tenant_role))
    else:
        file = f"sqlite:///{tmp_path / 'fleet.db'}"
        made = DatabaseFactory(file if request.param == "file" else request.getfixturevalue(f"{request.param}_url"))
    with made as db:
        db.create_tables()
        for bot in two_bots(db):
            with db.get_session(user_id=bot.user_id) as session:
                rows = every_table(bot)
                session.add_all(rows[:2])
                session.flush()
                session.add_all(rows[2:])
        yield db


def url_of(db: DatabaseFactory) -> str:
    """Where it is, as an argument says it."""
    return db.settings.url.render_as_string(hide_password=False)


def counts(db: DatabaseFactory) -> dict[str, int]:
    """How many rows each table has."""
    with db.get_session(read_only=True) as session:
        found = {model: session.scalar(select(func.count()).select_from(model)) for model in TABLES}
    return {model.__tablename__: number or 0 for model, number in found.items()}


def done(capsys: pytest.CaptureFixture[str], *command: str, code: int = 0) -> str:
    """What a command prints that must end so."""
    assert main(command) == code, (command, capsys.readouterr().err)
    return capsys.readouterr().out


def test_every_table_is_met_here(at: DatabaseFactory) -> None:
    """The sample has a row of each table for each user, so that what follows is about all of them."""
    assert counts(at) == {model.__tablename__: 2 for model in TABLES}
    assert len(TABLES) == 11
    assert len(STREAMS) == 6


def test_backup_and_restore_bring_every_row_back(at: DatabaseFactory, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever became of the tables meanwhile; `status` counts them all."""
    where, tools = ["--db-url", url_of(at)], ["--pg-bin", str(postgresql_programs())]
    if at.engine.dialect.name != "postgresql":
        tools = []
    done(capsys, "backup", "whole.backup", *where, *tools)
    with at.get_session() as session:
        session.delete(session.scalars(select(Bot).limit(1)).one())
    assert counts(at) != {model.__tablename__: 2 for model in TABLES}
    if at.engine.dialect.name == "mysql":
        at.drop_tables()  # its restores want a database without tables
    at.close()
    done(capsys, "restore", "whole.backup", "--force", *where, *tools)
    status = json.loads(done(capsys, "status", "--json", *where))
    told = {table["name"]: table["rows"] for table in status["tables"]}
    assert {name: told[name] for name in counts(at)} == {model.__tablename__: 2 for model in TABLES}
    assert status["problems"] == []


def test_copies_are_whole_from_and_to_each_database(
    at: DatabaseFactory, capsys: pytest.CaptureFixture[str], empty_postgresql_url: Any
) -> None:
    """Into SQLite and PostgreSQL, compared by the command itself; a copy is at the newest revisions."""
    targets = ["sqlite:///copy.db", empty_postgresql_url.render_as_string(hide_password=False)]
    for target in targets:
        done(capsys, "copy", url_of(at), target)
        with DatabaseFactory(target) as copied:
            assert counts(copied) == counts(at)
        done(capsys, "migrate", "check", "--db-url", target)
        assert "not ours" not in done(capsys, "migrate", "status", "--db-url", target)


@pytest.mark.parametrize("model", sorted(STREAMS, key=attrgetter("__tablename__")), ids=attrgetter("__tablename__"))
def test_a_stream_is_recorded_exported_purged_and_imported(
    at: DatabaseFactory, capsys: pytest.CaptureFixture[str], model: type[Any]
) -> None:
    """One user's alone: the other's rows stay where they are, and a second import changes nothing."""
    stream, table = STREAMS[model], model.__tablename__
    with at.get_session() as session:
        user_id, bot_id = session.execute(select(Bot.user_id, Bot.bot_id).order_by(Bot.bot_id).limit(1)).one()
    key = user_id if stream.by == "user_id" else bot_id
    with at.get_session(user_id=user_id) as session:
        row = vars(Repository(session, model).latest(key))
        given = {name: value for name, value in row.items() if name in model.__table__.columns}
    own = next(iter(model.__table__.primary_key.columns.keys()))
    again = given | {own: "recorded", stream.time: given[stream.time] + timedelta(days=1)}
    with Recorder(at, model, user_id=user_id) as recorder:
        recorder.add([again, again])
    assert (recorder.stats().written, recorder.stats().duplicates) == (1, 1)
    where = ["--user", user_id, "--db-url", url_of(at)]
    done(capsys, "export", table, "--key", key, "-o", "rows.jsonl", *where)
    if model is not shared.fleet.Signal:  # its trades would go with it
        assert f"2 rows of {table} deleted" in done(capsys, "purge", "--table", table, "--key", key, *where)
        assert counts(at)[table] == 1, "another user's"
        assert f"2 new rows of {table}, 0 already" in done(capsys, "import", table, "rows.jsonl", *where)
    assert f"0 new rows of {table}, 2 already" in done(capsys, "import", table, "rows.jsonl", *where)
    assert key in done(capsys, "coverage", "--table", table, *where)


def test_revisions_go_up_and_down_by_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], empty_postgresql_url: Any
) -> None:
    """On both databases that have them, step by step, with rows in the tables that a step leaves."""
    for url in (f"sqlite:///{tmp_path / 'steps.db'}", empty_postgresql_url.render_as_string(hide_password=False)):
        where = ["--db-url", url]
        done(capsys, "migrate", "up", *where)
        with DatabaseFactory(url) as db:
            bot, _ = two_bots(db)
        assert main(["migrate", "down", "0001", "--package", "shared.fleet", *where]) == 1, "templates would be lost"
        assert "--allow-data-loss" in capsys.readouterr().err
        done(capsys, "migrate", "down", "0001", "--package", "shared.fleet", "--allow-data-loss", *where)
        assert "0001_first_tables" in done(capsys, "migrate", "status", "--package", "shared.fleet", *where, code=3)
        done(capsys, "migrate", "up", *where)
        done(capsys, "migrate", "check", *where)
        with DatabaseFactory(url) as db, db.get_session(user_id=bot.user_id) as session:
            assert session.scalars(select(Bot.bot_id)).all() == [bot.bot_id]


def test_a_bot_s_token_is_sealed_and_its_key_is_rotated(
    at: DatabaseFactory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object gives it in plain; neither the column nor a repr, the audit log or a copy without the keys does."""
    old, new = (done(capsys, "keys", "generate", "--id", name).strip() for name in ("k1", "k2"))
    at.enable_audit()
    stored = select(text("api_token")).select_from(text("bots")).where(text("name = 'away'"))
    with DatabaseFactory(at.settings.model_copy(update={"encryption_keys": old})) as db:
        with db.get_session() as session:
            user_id = session.scalars(select(User.user_id).limit(1)).one()
        with db.get_session(user_id=user_id) as session:
            bot = Bot(user_id=user_id, name="away", bot_type="external", api_token=TOKEN)
            BotRepository(session).create(bot)
            assert TOKEN not in f"{bot!r} {vars(bot)!r}"
            noted = AuditLogRepository(session).get_by_resource("Bot", bot.bot_id)
            assert TOKEN not in str([(entry.old_values, entry.new_values) for entry in noted])
        with db.get_session() as session:
            assert session.scalars(stored).one().startswith("enc:v1:k1:")
    monkeypatch.setenv("GRIDBOT_DB_ENCRYPTION_KEYS", f"{new},{old}")
    done(capsys, "keys", "rotate", "--db-url", url_of(at))
    done(capsys, "copy", url_of(at), "sqlite:///copy.db")
    monkeypatch.delenv("GRIDBOT_DB_ENCRYPTION_KEYS")
    for settings in (at.settings, DatabaseSettings(database_url="sqlite:///copy.db", _env_file=None)):
        with DatabaseFactory(settings.model_copy(update={"encryption_keys": new})) as db:
            with db.get_session() as session:
                assert session.scalars(stored).one().startswith("enc:v1:k2:")
            with db.get_session(user_id=user_id) as session:
                found = BotRepository(session).get_by_name(user_id, "away")
                assert found is not None
                assert found.api_token == TOKEN
    with DatabaseFactory("sqlite:///copy.db") as db, db.get_session(user_id=user_id) as session:
        found = BotRepository(session).get_by_name(user_id, "away")
        with pytest.raises(SecretError):
            _ = found and found.api_token


def test_what_a_user_makes_is_in_the_audit_log(at: DatabaseFactory) -> None:
    """A row of each table, with its owner."""
    at.enable_audit()
    with at.get_session() as session:
        user = User(username="carl")
        session.add(user)
    with at.get_session(user_id=user.user_id) as session:
        bot = Bot(user_id=user.user_id, name="grid")
        session.add(bot)
        session.flush()
        rows = every_table(bot)
        session.add_all(rows[:2])
        session.flush()
        session.add_all(rows[2:])
    with at.get_session(user_id=user.user_id) as session:
        noted = AuditLogRepository(session).get_by_action("create")
    assert sorted(entry.entity for entry in noted if entry.entity != "User") == sorted(
        model.__name__ for model in TABLES
    )


def test_the_package_stays_thin() -> None:
    """Seven hundred lines of its own, without blanks, comments, docstrings and what `migrate new` wrote."""
    folder = Path(shared.fleet.__file__).parent
    assert sum(map(code_lines, folder.glob("*.py"))) < 700
