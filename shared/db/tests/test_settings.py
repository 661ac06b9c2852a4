"""What we are told: every name, every source, every refusal, and no secret in anything that is shown."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2
import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError
from sqlalchemy import URL, make_url

from shared.db import DatabaseSettings, SettingsError, SharedDBError, safe_url
from shared.db.database_url import is_memory, parse_url
from shared.db.settings import describe_settings, environment_names, read_env_file, settings_from

FIELDS = DatabaseSettings.model_fields
SQLALCHEMY_2_0 = sqlalchemy.__version__.startswith("2.0.")
CANARY = "canary-4711"

# Another value than the default for each field, as the environment gives it, and what it becomes.
_SAMPLES: dict[type, tuple[str, object]] = {
    int: ("17", 17),
    float: ("2.5", 2.5),
    str: ("abc", "abc"),
}
_SPECIAL = {
    "target_session_attrs": ("standby", "standby"),
    "db_type": ("postgresql", "postgresql"),
    "db_port": ("6543", "6543"),
    "database_url": ("postgresql://u@h/d", "postgresql://u@h/d"),
    "replica_url": ("postgresql://u@h/d", "postgresql://u@h/d"),
}


@pytest.fixture(autouse=True)
def _no_setting(_empty_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here nothing is set, not even whose tables are loaded."""
    monkeypatch.delenv("GRIDBOT_DB_PACKAGES")


def sample(field: str) -> tuple[str, Any]:
    """A text that the environment may give for `field`, and the value that it means."""
    if field in _SPECIAL:
        return _SPECIAL[field]
    default = FIELDS[field].default
    if isinstance(default, bool):
        return str(not default).lower(), not default
    return _SAMPLES[type(default) if default is not None else str]


def settings_of(**values: Any) -> DatabaseSettings:
    """Settings without a .env."""
    return DatabaseSettings(_env_file=None, **values)


def postgresql(**values: Any) -> DatabaseSettings:
    """Settings of a PostgreSQL server."""
    return settings_of(**({"db_type": "postgresql", "db_host": "db.example", "db_user": "bot"} | values))


# --- sources ---------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_specifications() -> None:
    """Without any setting: a SQLite file in the current folder, and the documented pool."""
    assert settings_of().model_dump() == {name: field.default for name, field in FIELDS.items()}
    told = {name: FIELDS[name].default for name in FIELDS}
    assert (
        told
        | {
            "database_url": None,
            "replica_url": None,
            "db_type": "sqlite",
            "db_host": None,
            "db_port": None,
            "db_user": None,
            "db_password": None,
            "db_name": "grid_bot.db",
            "pool_size": 5,
            "max_overflow": 5,
            "pool_timeout": 30.0,
            "pool_recycle": 1800,
            "pool_pre_ping": True,
            "sqlite_busy_timeout": 30.0,
            "echo_sql": False,
        }
        == told
    )


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_documented_under_one_name_without_a_doubled_prefix(field: str) -> None:
    """The first variable is GRIDBOT_DB_ and the field's name without its own `db_` or `database_`."""
    documented, *aliases = environment_names(field)
    rest = field.removeprefix("db_").removeprefix("database_").upper()
    assert documented == f"GRIDBOT_DB_{rest}"
    assert f"GRIDBOT_DB_{field.upper()}" in (documented, *aliases)
    assert (f"GRIDBOT_{field.upper()}" in aliases) == field.startswith("database_")


@pytest.mark.parametrize(
    ("field", "variable"), [(field, name) for field in FIELDS for name in environment_names(field)]
)
def test_a_field_is_read_from_each_of_its_variables(
    field: str, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every documented name and alias sets its field, from the environment and from .env, in either case."""
    text, value = sample(field)
    monkeypatch.setenv(variable, text)
    assert getattr(settings_of(), field) == value
    monkeypatch.delenv(variable)
    monkeypatch.setenv(variable.lower(), text)
    assert getattr(settings_of(), field) == value
    monkeypatch.delenv(variable.lower())
    assert getattr(settings_of(), field) == FIELDS[field].default
    Path(".env").write_text(f"{variable}={text}\n")
    assert getattr(DatabaseSettings(), field) == value


@pytest.mark.parametrize("field", FIELDS)
def test_the_constructor_wins_over_the_environment_and_that_over_the_file(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constructor, then environment, then .env, then default, whichever alias each of them uses."""
    text, value = sample(field)
    default = FIELDS[field].default
    for in_file in environment_names(field):
        Path(".env").write_text(f"{in_file}={text}\n")
        for in_environment in environment_names(field):
            if default is not None:
                with monkeypatch.context() as patch:
                    patch.setenv(in_environment, str(default))
                    assert getattr(DatabaseSettings(), field) == default
                    assert getattr(DatabaseSettings(**{field: value}), field) == value
            with monkeypatch.context() as patch:
                patch.setenv(in_environment, text)
                assert getattr(DatabaseSettings(**{field: default}), field) == default


def test_the_documented_name_wins_over_its_aliases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several names of a field are set at once, the first one counts."""
    for name, value in zip(
        environment_names("database_url"), ("sqlite:///a", "sqlite:///b", "sqlite:///c"), strict=True
    ):
        monkeypatch.setenv(name, value)
    assert settings_of().database_url == "sqlite:///a"
    monkeypatch.delenv("GRIDBOT_DB_URL")
    assert settings_of().database_url == "sqlite:///b"


def test_a_dot_env_of_the_current_folder_is_read_and_can_be_replaced_or_left_out(tmp_path: Path) -> None:
    """`.env` by default, another file by `_env_file=`, none by `_env_file=None`."""
    Path(".env").write_text("GRIDBOT_DB_NAME=from_dot_env.db\n")
    other = tmp_path / "other.env"
    other.write_text("GRIDBOT_DB_NAME=from_other.db\n")
    assert DatabaseSettings().db_name == "from_dot_env.db"
    assert DatabaseSettings(_env_file=other).db_name == "from_other.db"
    assert DatabaseSettings(**read_env_file(str(other))).db_name == "from_other.db"
    assert DatabaseSettings(**read_env_file(None)).db_name == "from_dot_env.db"
    assert DatabaseSettings(_env_file=None).db_name == "grid_bot.db"


def test_a_mistyped_environment_file_is_refused(tmp_path: Path) -> None:
    """A file that was named but does not exist is an error, not a silent way to the default database."""
    with pytest.raises(SettingsError, match=r"there is no environment file .*typo\.env"):
        DatabaseSettings(_env_file=tmp_path / "typo.env")
    with pytest.raises(SettingsError, match=r"did you mean '_env_file'"):
        DatabaseSettings(_env_fil=None)


def test_an_environment_file_that_is_not_utf8_is_refused_in_words() -> None:
    """A file in another encoding gives one clear error."""
    Path(".env").write_bytes("GRIDBOT_DB_USER=Jürgen\n".encode("latin-1"))
    with pytest.raises(SettingsError, match="not UTF-8"):
        DatabaseSettings()


def test_quoted_values_of_a_dot_env_keep_their_special_characters() -> None:
    """In single quotes a password of signs comes through the file as it is."""
    Path(".env").write_text("GRIDBOT_DB_PASSWORD='p@ss: w/o#rd?%41 \"x\"'\n")
    assert DatabaseSettings().db_password == 'p@ss: w/o#rd?%41 "x"'


@pytest.mark.parametrize("field", FIELDS)
def test_an_empty_variable_counts_as_not_set(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`GRIDBOT_DB_X=` in the environment or in .env leaves the default."""
    monkeypatch.setenv(environment_names(field)[0], "")
    assert getattr(settings_of(), field) == FIELDS[field].default
    monkeypatch.delenv(environment_names(field)[0])
    Path(".env").write_text(f"{environment_names(field)[0]}=\n")
    assert getattr(DatabaseSettings(), field) == FIELDS[field].default


def test_keys_of_other_programs_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other programs keep in the environment or in .env neither fails nor sets anything."""
    foreign = ["BYBIT_API_SECRET", "GRIDBOT_TELEGRAM_TOKEN", "GRIDBOT_DB_NO_SUCH_FIELD", "DATABASE_URL"]
    unprefixed = [name for field in FIELDS for name in (field, field.upper())]
    for name in (*foreign, *unprefixed):
        monkeypatch.setenv(name, CANARY)
    Path(".env").write_text("".join(f"{name}={CANARY}\n" for name in (*foreign, *unprefixed)))
    assert DatabaseSettings() == settings_of()
    assert DatabaseSettings().model_dump() == {name: field.default for name, field in FIELDS.items()}


# --- assignment and refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", FIELDS)
def test_every_setting_stays_assignable(field: str) -> None:
    """A setting can be changed after construction, and its text form is converted as the environment's is."""
    text, value = sample(field)
    changed = settings_of()
    setattr(changed, field, text)
    assert getattr(changed, field) == value


BAD_VALUES: list[tuple[str, object]] = [
    ("db_type", "oracle"),
    ("db_type", "postgres"),
    ("db_type", ""),
    ("db_type", None),
    ("db_port", "abc"),
    ("db_port", "0"),
    ("db_port", "65536"),
    ("db_port", "-1"),
    ("db_port", "5432.0"),
    ("db_port", 5432.0),
    ("db_port", True),
    ("db_port", "٥٤٣٢"),
    ("db_port", "9" * 5000),
    ("db_host", "postgresql://bot:canary-4711@db.example/grid"),
    ("db_host", "bot:canary-4711@db.example"),
    ("db_host", "db.example:5432"),
    ("db_host", "db.example/grid"),
    ("db_host", "db example"),
    ("db_host", "/tmp/a,/tmp/b"),
    ("db_host", "a\0b"),
    ("db_name", ""),
    ("db_name", "  "),
    ("db_name", "postgresql://bot:canary-4711@db.example/grid"),
    ("db_name", "a\0b"),
    ("db_user", "a\0b"),
    ("db_password", "canary-4711\0"),
    ("db_password", 4711),
    ("application_name", "x" * 64),
    ("application_name", "a\0b"),
    ("pool_size", 0),
    ("pool_size", "canary-4711"),
    ("max_overflow", -1),
    ("pool_timeout", 0),
    ("pool_timeout", "inf"),
    ("pool_timeout", "nan"),
    ("pool_recycle", -2),
    ("pool_pre_ping", "canary-4711"),
    ("sqlite_busy_timeout", -0.1),
    ("sqlite_busy_timeout", 1e30),
    ("sqlite_busy_timeout", "nan"),
    ("echo_sql", "canary-4711"),
    ("database_url", "canary-4711"),
    ("database_url", "://canary-4711"),
    ("database_url", "oracle://bot:canary-4711@db.example/grid"),
    ("database_url", "postgresql+asyncpg://bot:canary-4711@db.example/grid"),
    ("database_url", "postgresql+psycopg://bot:canary-4711@db.example/grid"),
    ("database_url", "sqlite+aiosqlite:///canary-4711.db"),
    ("database_url", "postgresql://bot:canary-4711@db.example:port/grid"),
    ("database_url", "postgresql://bot:x@canary-4711:54a32/grid"),
    ("replica_url", "postgresql://bot:p@canary-4711@db.example/grid"),
    ("replica_url", "sqlite:///canary-4711.db"),
    ("database_url", "postgresql://bot:x@db.example:0/grid"),
    ("database_url", "postgresql://bot:x@db.example:99999/grid"),
    ("database_url", "postgresql://bot:p@canary-4711@db.example/grid"),
    ("database_url", "postgresql://bot:p@ss/canary-4711@db.example/grid"),
    ("database_url", "postgresql://bot:p@ss?a=canary-4711@db.example/grid"),
    ("database_url", "postgresql://bo/t:canary-4711@db.example/grid"),
    ("database_url", "sqlite://grid.db"),
    ("database_url", "sqlite://bot:canary-4711@db.example/grid.db"),
    ("database_url", "sqlite:///a\0b"),
    ("database_url", 4711),
]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_a_value_that_cannot_be_used_is_refused_alike_everywhere(
    field: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constructor, assignment and environment refuse the same values, with the field, its variable and no value."""
    with pytest.raises(SettingsError) as constructed:
        settings_of(**{field: value})
    refused = settings_of()
    with pytest.raises(SettingsError) as assigned:
        setattr(refused, field, value)
    assert refused == settings_of()
    assert str(assigned.value) == str(constructed.value)
    assert str(constructed.value).startswith(f"{field} ({environment_names(field)[0]}): ")
    assert [item["loc"] for item in constructed.value.errors()] == [(field,)]
    assert isinstance(constructed.value, (SharedDBError, ValueError))
    if isinstance(value, str) and value and "\0" not in value:
        for variable in environment_names(field):
            with monkeypatch.context() as patch:
                patch.setenv(variable, value)
                with pytest.raises(SettingsError) as given:
                    settings_of()
            assert str(given.value) == str(constructed.value)


def test_several_bad_values_are_named_in_one_error() -> None:
    """Whoever corrects his settings sees everything at once."""
    with pytest.raises(SettingsError) as caught:
        settings_of(db_type="oracle", db_port="x", pool_size=0)
    assert {item["loc"] for item in caught.value.errors()} == {("db_type",), ("db_port",), ("pool_size",)}
    assert json.loads(caught.value.json()) == [{**item, "loc": list(item["loc"])} for item in caught.value.errors()]
    for name in ("GRIDBOT_DB_TYPE", "GRIDBOT_DB_PORT", "GRIDBOT_DB_POOL_SIZE"):
        assert name in str(caught.value)


def test_an_unknown_setting_is_refused_with_a_hint() -> None:
    """A mistyped name is an error that names the likely one, in the constructor and in an assignment."""
    with pytest.raises(SettingsError, match="unknown setting 'db_pasword'; did you mean 'db_password'"):
        settings_of(db_pasword=CANARY)
    with pytest.raises(SettingsError, match=r"unknown setting 'zzz'; the settings are database_url, db_type"):
        settings_of(zzz=1)
    with pytest.raises(SettingsError, match="unknown setting 'db_nam'; did you mean 'db_name'"):
        settings_of().db_nam = "x"
    with pytest.raises(SettingsError, match="unknown setting 'GRIDBOT_DB_TYPE'"):
        settings_of(GRIDBOT_DB_TYPE="sqlite")


def test_missing_host_and_user_are_named_together() -> None:
    """PostgreSQL without host or user is one error that names every missing field and its variable."""
    nothing = settings_of(db_type="postgresql")
    for ask in (nothing.get_database_url, lambda: nothing.safe_url, lambda: nothing.url):
        with pytest.raises(SettingsError) as both:
            ask()
        for name in ("db_host", "GRIDBOT_DB_HOST", "db_user", "GRIDBOT_DB_USER", "GRIDBOT_DB_URL"):
            assert name in str(both.value)
    with pytest.raises(SettingsError) as one:
        settings_of(db_type="postgresql", db_host="h").get_database_url()
    assert "GRIDBOT_DB_USER" in str(one.value)
    assert "GRIDBOT_DB_HOST" not in str(one.value)
    nothing.db_host, nothing.db_user = "h", "u"
    assert nothing.get_database_url() == "postgresql+psycopg2://u@h:5432/grid_bot.db"


def test_what_differs_only_in_form_is_accepted() -> None:
    """Case and blanks around the type, a port as a number, a bracketed IPv6 address, several hosts."""
    assert settings_of(db_type=" PostgreSQL ").db_type == "postgresql"
    assert settings_of(db_port=5432).db_port == settings_of(db_port=" 5432 ").db_port == "5432"
    assert settings_of(db_port="").db_port is None
    assert settings_of(db_host="[::1]").db_host == settings_of(db_host=" ::1 ").db_host == "::1"
    assert settings_of(db_host="one.example,two.example").db_host == "one.example,two.example"
    assert settings_of(db_host=" ").db_host is None
    assert settings_of(db_user="", db_password="", database_url="", db_host="") == settings_of()


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("postgresql://bot:p%2Cw@a:1,b:2/gridbot", {"host": "a,b", "port": "1,2"}),
        ("postgres://bot@a,b:2?sslmode=require", {"host": "a,b", "port": ",2", "sslmode": "require"}),
        ("postgresql+psycopg2://[::1]:5432,10.0.0.1/gridbot", {"host": "::1,10.0.0.1", "port": "5432,"}),
        ("postgresql://bot@a,b/gridbot?target_session_attrs=any", {"host": "a,b", "target_session_attrs": "any"}),
    ],
)
def test_several_hosts_are_written_as_libpq_has_them(text: str, query: dict[str, str]) -> None:
    """In the URL, and read back from it the same; a process looks for the one that may be written."""
    settings = settings_of(database_url=text)
    assert dict(settings.url.query) == {"target_session_attrs": "read-write"} | query
    assert settings_of(database_url=settings.get_database_url()).url == settings.url
    assert settings.url.database in ("gridbot", "", None)


def test_hosts_and_ports_go_in_pairs() -> None:
    """One port for all or one for each; another database takes no list."""
    told = {"db_host": "a,b", "db_user": "bot", "db_name": "gridbot"}
    assert dict(postgresql(**told, db_port=" 1, 2 ").url.query)["port"] == "1,2"
    assert dict(postgresql(**told).url.query) == {"host": "a,b", "port": "5432", "target_session_attrs": "read-write"}
    assert dict(postgresql(**told | {"db_host": "::1,10.0.0.1"}, db_port=1).url.query)["host"] == "::1,10.0.0.1"
    assert "target_session_attrs" not in postgresql(**told, read_only=True).url.query
    assert postgresql(**told, target_session_attrs="standby").url.query["target_session_attrs"] == "standby"
    for wrong in (postgresql(**told, db_port="1,2,3"), settings_of(**told, db_type="mysql", db_port="1,2")):
        with pytest.raises(SettingsError, match="one for each"):
            _ = wrong.url
    with pytest.raises(SettingsError, match="one of the URL's hosts"):
        settings_of(database_url="postgresql://bot@a:1,b:port/gridbot")


# --- URLs ------------------------------------------------------------------------------------------------------


def test_the_database_url_has_the_specifications_two_forms() -> None:
    """The strings are exactly those of the specification; the port may be left out, and so may the password."""
    assert settings_of().get_database_url() == "sqlite+pysqlite:///grid_bot.db"
    assert settings_of(db_name=":memory:").get_database_url() == "sqlite+pysqlite:///:memory:"
    assert settings_of(db_name="/data/bot.db").get_database_url() == "sqlite+pysqlite:////data/bot.db"
    told = {"db_user": "user", "db_password": "pass", "db_host": "host", "db_port": "5433", "db_name": "dbname"}
    assert postgresql(**told).get_database_url() == "postgresql+psycopg2://user:pass@host:5433/dbname"
    del told["db_port"]
    assert postgresql(**told).get_database_url() == "postgresql+psycopg2://user:pass@host:5432/dbname"
    del told["db_password"]
    assert postgresql(**told).get_database_url() == "postgresql+psycopg2://user@host:5432/dbname"


@pytest.mark.parametrize(
    ("given_url", "written", "sqlite"),
    [
        ("postgres://u:p@h/d", "postgresql+psycopg2://u:p@h/d", False),
        ("postgresql://u:p@h:5433/d", "postgresql+psycopg2://u:p@h:5433/d", False),
        ("postgresql+psycopg2://u:p@h/d?sslmode=require", "postgresql+psycopg2://u:p@h/d?sslmode=require", False),
        ("POSTGRESQL://u:p@h/d", "postgresql+psycopg2://u:p@h/d", False),
        ("postgresql:///d", "postgresql+psycopg2:///d", False),
        ("postgresql://h/d?user=u&password=p%40", "postgresql+psycopg2://u:p%40@h/d", False),
        ("postgresql://old:older@h/d?user=u&password=p&password=q", "postgresql+psycopg2://u:q@h/d", False),
        ("postgresql://h/d?password=p", "postgresql+psycopg2://:p@h/d", False),
        ("postgresql://u@h?dbname=d", "postgresql+psycopg2://u@h/d", False),
        ("postgresql://u:p@[::1]:5433/d", "postgresql+psycopg2://u:p@[::1]:5433/d", False),
        (" sqlite:///grid.db\n", "sqlite+pysqlite:///grid.db", True),
        ("sqlite:////data/grid.db", "sqlite+pysqlite:////data/grid.db", True),
        ("sqlite+pysqlite:///grid.db", "sqlite+pysqlite:///grid.db", True),
        ("sqlite://", "sqlite+pysqlite://", True),
        ("sqlite:///path@home.db", "sqlite+pysqlite:///path@home.db", True),
    ],
)
def test_urls_are_normalised(given_url: str, written: str, sqlite: bool) -> None:
    """Every accepted spelling names the same driver, credentials leave the query, and the other fields do not count."""
    told = settings_of(database_url=given_url, db_type="sqlite" if not sqlite else "postgresql", db_name="ignored")
    assert told.get_database_url() == written
    assert told.is_sqlite is sqlite
    assert settings_from(make_url(given_url.strip())).url == told.url


@pytest.mark.parametrize(
    ("url", "memory"),
    [
        ("sqlite://", True),
        ("sqlite:///:memory:", True),
        ("sqlite:///file::memory:?cache=shared&uri=true", True),
        ("sqlite:///file:shared?mode=memory&cache=shared&uri=true", True),
        ("sqlite:///grid.db", False),
        ("sqlite:///mode=memory.db", False),
        ("sqlite:///file:grid.db?mode=ro&uri=true", False),
        ("sqlite:///grid.db?mode=memory", False),
    ],
)
def test_a_database_without_a_file_is_recognised(url: str, memory: bool) -> None:
    """What SQLite keeps in memory is known as such, and nothing else is."""
    assert settings_of(database_url=url).is_memory is memory
    assert is_memory(parse_url(url)) is memory
    assert not postgresql(db_name=":memory:").is_memory


# Every sign that means something in a URL, blanks, letters of several alphabets, and what looks encoded already.
hard_text = st.one_of(
    st.text(st.sampled_from("ab1@:/#%?&=+ ;[]\\\"'.,~!$*()<>|{}^`é€𝄞"), min_size=1, max_size=12),
    st.sampled_from(["%40", "a%2Fb", "100%", "+", "p@ss:/?#%w", " lead and trail "]),
)
# In quotes on both sides only a password is taken as it is.
unquoted = hard_text.filter(lambda text: len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'")
hosts = st.one_of(
    st.sampled_from(["localhost", "db.example.com", "10.0.0.7", "::1", "fe80::1%eth0", "2001:db8::8a2e:370:7334"]),
    st.ip_addresses(v=6).map(str),
    st.ip_addresses(v=4).map(str),
    st.text(st.sampled_from("ab1@:#%? ._-+=&é"), max_size=10).map("/run/{}".format),
)


@settings(max_examples=300, deadline=None)
@given(user=unquoted, password=st.none() | hard_text, name=unquoted.filter(lambda n: "://" not in n), host=hosts)
def test_a_postgresql_url_survives_the_way_through_text(user: str, password: str | None, name: str, host: str) -> None:
    """User, password, database and host come out of `make_url`, and reach the driver, as they went in."""
    if not name.strip():
        name += "x"
    host = host.rstrip()
    told = postgresql(db_user=user, db_password=password, db_name=name, db_host=host, db_port="5433")
    for read in (make_url(told.get_database_url()), settings_from(told.url).url):
        # SQLAlchemy 2.0 cannot write every name into the path; a parameter of libpq is the same to the driver.
        assert (read.query.get("dbname") or read.database) == name
        assert (read.username, read.password, read.port) == (user, password, 5433)
        assert (read.query.get("host") if host.startswith("/") else read.host) == host
        assert read.drivername == "postgresql+psycopg2"
    (_, arguments) = told.url.get_dialect()().create_connect_args(told.url)
    assert arguments.pop("password", None) == password
    assert arguments == {"user": user, "dbname": name, "host": host, "port": 5433}
    assert psycopg2.extensions.parse_dsn(psycopg2.extensions.make_dsn(**arguments)) == {**arguments, "port": "5433"}


@settings(max_examples=200, deadline=None)
@given(name=hard_text.filter(lambda n: "://" not in n))
def test_a_sqlite_path_survives_the_way_through_text(name: str) -> None:
    """A file's path comes out of `make_url` as it went in; what SQLAlchemy 2.0 cannot write is refused, not changed."""
    told = settings_of(db_name=f"/data/{name}.db")
    assert told.url.database == f"/data/{name}.db"
    if SQLALCHEMY_2_0 and "?" in name:
        with pytest.raises(SettingsError, match=r"use SQLAlchemy 2\.1"):
            told.get_database_url()
    else:
        assert make_url(told.get_database_url()) == told.url


def test_a_name_with_an_at_sign_takes_its_encoded_form_in_a_url() -> None:
    """A bare @ behind the host is refused with the way to write it, since it may as well be half a password."""
    with pytest.raises(SettingsError, match="can be read in two ways; percent-encode"):
        settings_of(database_url="postgresql://u:p@h/my@db")
    assert settings_of(database_url="postgresql://u:p@h/?dbname=my%40db").url.database == "my@db"


def test_settings_come_from_whatever_a_caller_holds() -> None:
    """Settings, a URL as text or object, or nothing; anything else is one clear error."""
    told = settings_of(pool_size=7)
    assert settings_from(told) is told
    assert settings_from(None) == settings_of()
    assert settings_from("postgres://u:p%40@h/d").url.password == "p@"
    assert settings_from(URL.create("postgresql", "u", "p@:/", "h", database="d")).url.password == "p@:/"
    with pytest.raises(SettingsError, match=r"expected DatabaseSettings, a database URL .* got PosixPath"):
        settings_from(Path("grid.db"))  # type: ignore[arg-type] # the mistake that is refused
    with pytest.raises(SettingsError, match="not supported"):
        settings_from(URL.create("oracle", "u", CANARY, "h"))


# --- secrets ---------------------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """Everything that a log line may make of a value."""
    return "\n".join([repr(value), str(value), f"{value}", repr([value]), repr(vars(type(value)).get("__doc__"))])


SECRETIVE = [
    {"db_type": "postgresql", "db_host": "h", "db_user": "u", "db_password": CANARY},
    {"database_url": f"postgresql://u:{CANARY}@h/d"},
    {"database_url": f"postgresql://u@h/d?password={CANARY}"},
    {"database_url": f"postgresql://h/d?PASSWORD={CANARY}&sslmode=require"},
    {"database_url": f"postgresql://u@h/d?sslpassword={CANARY}&sslkey=/k&passfile=/f"},
    {"database_url": f"postgresql://u@h/d?oauth_client_secret={CANARY}"},
    {"database_url": f"postgresql://u@h/d?scram_client_key={CANARY}"},
    {"database_url": f"sqlite:///grid.db?password={CANARY}"},
]


@pytest.mark.parametrize("values", SECRETIVE)
def test_nothing_that_is_shown_of_settings_holds_a_secret(values: dict[str, Any]) -> None:
    """repr, str, safe_url, dumps and the repr of copies and of pickled settings are free of secrets."""
    told = settings_of(**values)
    assert "***" in told.safe_url
    for form in (
        shown(told),
        told.safe_url,
        repr(told.model_dump()),
        told.model_dump_json(),
        shown(copy.copy(told)),
        shown(copy.deepcopy(told)),
        shown(pickle.loads(pickle.dumps(told))),
        shown(told.model_copy()),
        shown(told.url),
        shown(vars(told)),
        shown(dict(told)),
        json.dumps(DatabaseSettings.model_json_schema()),
    ):
        assert CANARY not in form
    assert CANARY in told.get_database_url()
    assert pickle.loads(pickle.dumps(told)).get_database_url() == told.get_database_url()


SECRET_TEXTS = st.text("abcXYZ019!#%&*+,-.:;<=>@[]^_{|}~ ", min_size=6, max_size=20).filter(
    lambda text: "***" not in text
)


@given(SECRET_TEXTS)
def test_a_masked_url_shows_no_secret(secret: str) -> None:
    """`safe_url` masks the password and the query's secrets of every database's URL, and leaves the rest readable."""
    quoted = quote(secret, safe="")
    for scheme in ("postgresql", "postgres", "mysql", "mariadb", "postgresql+psycopg2"):
        told = safe_url(f"{scheme}://bot:{quoted}@db.example:5433/grid?ssl_key=k.pem&sslpassword={quoted}")
        assert "bot:***@db.example:5433/grid" in told
        assert secret not in told
        assert quoted not in told
    assert safe_url("sqlite:///grid_bot.db") == "sqlite+pysqlite:///grid_bot.db"


@given(SECRET_TEXTS)
def test_what_is_no_database_s_url_is_not_masked_but_refused(secret: str) -> None:
    """`safe_url` raises an error that says how to write one, and quotes nothing of it."""
    for text in (f"redis://:{quote(secret, safe='')}@cache:6379/0", f"{secret}", f"postgresql://bot:{secret}@/@@x"):
        with pytest.raises(SettingsError) as refused:
            safe_url(text)
        assert secret not in str(refused.value)


def test_safe_url_shows_everything_else() -> None:
    """What is not a secret stays readable."""
    told = settings_of(database_url=f"postgresql://bot:{CANARY}@db.example:5433/grid?sslmode=require&sslkeylogfile=/l")
    assert told.safe_url == "postgresql+psycopg2://bot:***@db.example:5433/grid?sslkeylogfile=%2Fl&sslmode=require"
    assert settings_of().safe_url == "sqlite+pysqlite:///grid_bot.db"


class Application(BaseModel):
    """A consumer's own settings, with ours inside."""

    db: DatabaseSettings


def _assign(name: str, value: object) -> None:
    setattr(settings_of(db_password=CANARY), name, value)


def _from_environment() -> None:
    Path(".env").write_text(f"GRIDBOT_DB_PASSWORD={CANARY}\nGRIDBOT_DB_POOL_SIZE={CANARY}\nOTHER={CANARY}\n")
    DatabaseSettings()


def _from_wrong_encoding() -> None:
    Path(".env").write_bytes(f"GRIDBOT_DB_PASSWORD={CANARY}\xff\n".encode("latin-1"))
    DatabaseSettings()


BAD = {"db_password": CANARY, "db_type": "oracle"}
FAILURES: dict[str, Callable[[], object]] = {
    "a bad neighbour": lambda: settings_of(**BAD),
    "an unknown neighbour": lambda: settings_of(db_password=CANARY, db_typ="sqlite"),
    "an unknown name": lambda: settings_of(db_pasword=CANARY),
    "a missing file": lambda: DatabaseSettings(_env_file="missing.env", db_password=CANARY),
    "assigned": lambda: _assign("db_password", CANARY + "\0"),
    "assigned to nothing": lambda: _assign("db_pasword", CANARY),
    "from the environment": _from_environment,
    "from a file in another encoding": _from_wrong_encoding,
    "missing fields": lambda: settings_of(db_type="postgresql", db_password=CANARY).get_database_url(),
    "a URL": lambda: settings_from(f"postgresql://u:{CANARY}@h@h/d"),
    "a URL object": lambda: settings_from(URL.create("oracle", "u", CANARY, "h")),
    "no settings": lambda: settings_from([CANARY]),  # type: ignore[arg-type] # the mistake that is refused
    "model_validate": lambda: DatabaseSettings.model_validate(BAD),
    "model_validate_json": lambda: DatabaseSettings.model_validate_json(json.dumps(BAD)),
    "model_validate_strings": lambda: DatabaseSettings.model_validate_strings(BAD),
    "a type adapter": lambda: TypeAdapter(DatabaseSettings).validate_python(BAD),
    "inside another model": lambda: Application(db=BAD),  # type: ignore[arg-type] # pydantic takes a dict
    "unknown inside another model": lambda: Application(db={"db_pasword": CANARY}),  # type: ignore[arg-type] # as above
}
FAILURES |= {
    f"{field} {str(value)[:40]!r}": partial(settings_of, **{field: value})
    for field, value in BAD_VALUES
    if CANARY in str(value)
}


def _texts_of(error: BaseException) -> list[str]:
    texts = [str(error), repr(error), repr(error.args)]
    if isinstance(error, (SettingsError, ValidationError)):
        texts += [repr(error.errors()), error.json()]
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    # Local variables of our own code only: what the caller's frames and the driver's hold is not ours to change.
    texts += [
        repr(frame.locals) for frame in told.stack if "shared/db/" in frame.filename and "/tests/" not in frame.filename
    ]
    texts.append("".join(traceback.format_exception(error)))
    for chained in (error.__cause__, error.__context__):
        if chained is not None:
            texts += _texts_of(chained)
    return texts


@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)
def test_no_failure_holds_a_secret(fail: Callable[[], object]) -> None:
    """Not the text, not errors() or json(), not a chained error, not a traceback that shows local variables."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # SettingsError, or pydantic's own when it is in charge
        fail()
    assert isinstance(caught.value, (SettingsError, ValidationError))
    for text in _texts_of(caught.value):
        assert CANARY not in text


# --- the documented table --------------------------------------------------------------------------------------


def test_the_table_of_settings_is_complete() -> None:
    """One row a field, each with its variable and a description, and a default that means the default."""
    rows = describe_settings()
    assert [row["field"] for row in rows] == list(FIELDS)
    for row in rows:
        assert set(row) == {"field", "variable", "default", "description"}
        assert row["variable"] == environment_names(row["field"])[0]
        assert row["description"]
        default = FIELDS[row["field"]].default
        assert (row["default"] == "") == (default is None)
        if default is not None:
            assert getattr(settings_of(**{row["field"]: row["default"]}), row["field"]) == default


LINK = "tcp://10.96.0.7:5432"


@pytest.mark.parametrize("given", [{}, {"GRIDBOT_DB_URL": "postgresql://bot@db/grid"}, {"GRIDBOT_DB_NAME": ":memory:"}])
def test_a_port_of_a_kubernetes_service_is_ignored_where_no_port_is_used(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Service called gridbot-db sets GRIDBOT_DB_PORT in every pod; with SQLite or a URL nobody asked for it."""
    expected = DatabaseSettings(**_env(monkeypatch, given)).url
    monkeypatch.setenv("GRIDBOT_DB_PORT", LINK)
    settings = DatabaseSettings()
    assert settings.url == expected
    assert settings.db_port is None


def test_a_port_of_a_kubernetes_service_is_named_where_a_port_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cause and the line of the pod's spec, at start and at an assignment."""
    _env(monkeypatch, {"GRIDBOT_DB_TYPE": "postgresql", "GRIDBOT_DB_HOST": "db", "GRIDBOT_DB_USER": "bot"})
    settings = DatabaseSettings()
    monkeypatch.setenv("GRIDBOT_DB_PORT", LINK)
    for refused in (DatabaseSettings, partial(setattr, settings, "db_port", LINK)):
        with pytest.raises(SettingsError, match="enableServiceLinks: false") as error:
            refused()
        assert "10.96" not in str(error.value)


@pytest.mark.parametrize(
    "variable", ["NAME", "HOST", "USER", "PORT", "TYPE", "URL", "POOL_SIZE", "ECHO_SQL", "TENANT_ROLE"]
)
@pytest.mark.parametrize("quote", ['"', "'"])
def test_quotes_of_an_env_file_are_named(variable: str, quote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's --env-file makes them part of the value; a file called "grid.db", quotes and all, helps nobody."""
    monkeypatch.setenv(f"GRIDBOT_DB_{variable}", f"{quote}value{quote}")
    with pytest.raises(SettingsError, match=rf"GRIDBOT_DB_{variable}\): stands in quotes"):
        DatabaseSettings()


@pytest.mark.parametrize("variable", ["NAME", "HOST", "USER", "PORT", "TYPE", "POOL_SIZE", "TENANT_ROLE"])
def test_a_carriage_return_of_an_env_file_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with Windows line ends leaves one at the end of every value."""
    monkeypatch.setenv(f"GRIDBOT_DB_{variable}", "value\r")
    with pytest.raises(SettingsError, match=rf"GRIDBOT_DB_{variable}\): ends in a carriage return"):
        DatabaseSettings()


def test_the_newline_of_a_mounted_secret_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else of a password, whose quotes and spaces may be its own; of a number and a switch, spaces are."""
    for end in ("\n", "\r\n"):
        _env(
            monkeypatch,
            {"GRIDBOT_DB_PASSWORD": f' "s\'" {end}', "GRIDBOT_DB_ECHO_SQL": "True ", "GRIDBOT_DB_POOL_SIZE": " 7"},
        )
        settings = DatabaseSettings()
        assert (settings.db_password, settings.echo_sql, settings.pool_size) == (' "s\'" ', True, 7)
        assert DatabaseSettings(database_url=f"postgresql://bot:pw@db/grid{end}").url.database == "grid"


def _env(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return {}
