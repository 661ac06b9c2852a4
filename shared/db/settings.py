"""What we are told: environment and arguments become checked values, and those a database URL."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal

import sqlalchemy
from pydantic import (
    AliasChoices,
    AliasGenerator,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from shared.db.errors import SettingsError

SQLITE_DRIVER = "sqlite+pysqlite"
POSTGRESQL_DRIVER = "postgresql+psycopg2"
MASK = "***"

_DRIVERS = {
    "sqlite": SQLITE_DRIVER,
    "sqlite+pysqlite": SQLITE_DRIVER,
    "postgres": POSTGRESQL_DRIVER,
    "postgresql": POSTGRESQL_DRIVER,
    "postgresql+psycopg2": POSTGRESQL_DRIVER,
}
_URL_FORMS = "sqlite:///path/to/file.db or postgresql://user:password@host:5432/dbname"
_PERCENT_ENCODE = (
    "percent-encode special characters in its user and password (@ is %40, : is %3A, / is %2F), "
    "or use GRIDBOT_DB_USER and GRIDBOT_DB_PASSWORD, which take them as they are"
)


def environment_names(field: str) -> list[str]:
    """The environment variables that set `field`, the documented one first.

    >>> environment_names("db_type")
    ['GRIDBOT_DB_TYPE', 'GRIDBOT_DB_DB_TYPE']
    >>> environment_names("database_url")
    ['GRIDBOT_DB_URL', 'GRIDBOT_DB_DATABASE_URL', 'GRIDBOT_DATABASE_URL']
    """
    # A plain prefix would read GRIDBOT_DB_DB_TYPE and silently ignore the name that the specification documents.
    upper = field.upper()
    documented = upper.removeprefix("DB_").removeprefix("DATABASE_")
    names = [f"GRIDBOT_DB_{documented}", f"GRIDBOT_DB_{upper}"]
    if upper.startswith("DATABASE_"):
        names.append(f"GRIDBOT_{upper}")
    return list(dict.fromkeys(names))


class DatabaseSettings(BaseSettings):
    """Where the database is and how to connect to it.

    A value comes from the constructor (by field name), else from the environment (`GRIDBOT_DB_TYPE` for
    `db_type`; see `environment_names`), else from a `.env` file in the current folder (another one with
    `_env_file=`, none with `_env_file=None`), else from the default. Empty variables count as not set, and keys
    of other programs are ignored. Settings stay assignable; each assignment is checked.

    Raises `SettingsError` for a value that cannot be used. Neither the error nor any repr holds a rejected
    value, a password or a URL that might contain one.
    """

    model_config = SettingsConfigDict(
        alias_generator=AliasGenerator(validation_alias=lambda name: AliasChoices(*environment_names(name))),
        populate_by_name=True,
        env_prefix="GRIDBOT_DB_",
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        validate_assignment=True,
        hide_input_in_errors=True,
    )

    database_url: str | None = Field(
        default=None, repr=False, description="Direct connection URL; overrides every other connection field"
    )
    db_type: Literal["sqlite", "postgresql"] = Field(default="sqlite", description="sqlite or postgresql")
    db_host: str | None = Field(
        default=None, description="PostgreSQL host, or the folder of its Unix socket (starts with /)"
    )
    db_port: str | None = Field(default=None, description="PostgreSQL port; 5432 when left out")
    db_user: str | None = Field(default=None, description="PostgreSQL user")
    db_password: str | None = Field(
        default=None, repr=False, description="PostgreSQL password, as it is, with no encoding"
    )
    db_name: str = Field(default="grid_bot.db", description="PostgreSQL database, or SQLite file path or :memory:")
    pool_size: int = Field(default=5, ge=1, description="Connections kept open by one process")
    max_overflow: int = Field(default=5, ge=0, description="Connections it may open beyond pool_size for a while")
    pool_timeout: float = Field(default=30.0, gt=0, description="Seconds to wait for a free connection")
    pool_recycle: int = Field(
        default=1800, ge=-1, description="Seconds after which a connection is replaced; -1: never"
    )
    pool_pre_ping: bool = Field(default=True, description="Test a connection before use (PostgreSQL)")
    sqlite_busy_timeout: float = Field(
        default=30.0, ge=0, description="Seconds a SQLite writer waits for another one to finish"
    )
    application_name: str = Field(
        default="shared.db", max_length=63, description="Name shown in PostgreSQL's pg_stat_activity"
    )
    tenant_role: str = Field(
        default="shared_db_tenant",
        min_length=1,
        max_length=63,
        description="PostgreSQL role that users' sessions adopt under row-level security",
    )
    require_tenant: bool = Field(default=False, description="Refuse to touch users' tables in a session without a user")
    echo_sql: bool = Field(default=False, description="Log SQL statements (never their values)")

    def __init__(self, **values: Any) -> None:
        known = type(self).model_fields
        for name in values:
            if name not in known and not name.startswith("_"):
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the settings are {', '.join(known)}"
                raise SettingsError(f"unknown setting {name!r}; {hint}")
        try:
            super().__init__(**values)
        except ValidationError as error:
            details = _details(error)
        else:
            return
        # Raised outside the except block: a chained ValidationError would carry the rejected values with it.
        raise SettingsError(_message(details), details)

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            details = _details(error)
        else:
            return
        raise SettingsError(_message(details), details)

    @field_validator("db_type", mode="before")
    @classmethod
    def _known_type(cls, value: object) -> object:
        if isinstance(value, str) and value.strip().lower() in ("sqlite", "postgresql"):
            return value.strip().lower()
        raise ValueError("must be 'sqlite' or 'postgresql'")

    @field_validator("db_port", mode="before")
    @classmethod
    def _port_number(cls, value: object) -> object:
        if value is None or value == "":
            return None
        text = str(value).strip()
        if isinstance(value, bool) or not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
            raise ValueError("must be a port number from 1 to 65535, such as 5432; leave it out for 5432")
        return text

    @field_validator("db_host", "db_user", "db_password", "database_url", mode="before")
    @classmethod
    def _empty_means_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("db_name")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty: a SQLite file path, :memory:, or a PostgreSQL database name")
        return value

    @field_validator("database_url", "db_host", "db_user", "db_password", "db_name", "application_name", "tenant_role")
    @classmethod
    def _no_nul(cls, value: str | None) -> str | None:
        if value is not None and "\0" in value:
            raise ValueError("must not contain a NUL character")
        return value

    @field_validator("database_url")
    @classmethod
    def _usable_url(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                _parse_url(value)
            except SettingsError as error:
                raise ValueError(error.problem) from None
        return value

    @field_serializer("db_password")
    def _mask_password(self, value: str | None) -> str | None:
        return None if value is None else MASK

    @field_serializer("database_url")
    def _mask_url(self, value: str | None) -> str | None:
        return None if value is None else _render_safe(_parse_url(value))

    @property
    def url(self) -> URL:
        """The database as SQLAlchemy's URL object: driver filled in, password out of the query string.

        Raises `SettingsError` naming every missing field and its variable.
        """
        if self.database_url is not None:
            return _parse_url(self.database_url)
        if self.db_type == "sqlite":
            return URL.create(SQLITE_DRIVER, database=self.db_name)
        missing = [name for name in ("db_host", "db_user") if getattr(self, name) is None]
        if missing:
            wanted = " and ".join(f"{name} ({environment_names(name)[0]})" for name in missing)
            raise SettingsError(
                f"db_type is postgresql but {wanted} {'is' if len(missing) == 1 else 'are'} not set; "
                f"set {'it' if len(missing) == 1 else 'them'}, or give the whole address as database_url "
                f"({environment_names('database_url')[0]})"
            )
        # libpq takes a socket folder as host, a URL's host part does not: it goes into the query.
        socket = self.db_host is not None and self.db_host.startswith("/")
        return URL.create(
            POSTGRESQL_DRIVER,
            username=self.db_user,
            password=self.db_password,
            host=None if socket else self.db_host,
            port=int(self.db_port or 5432),
            database=self.db_name,
            query={"host": str(self.db_host)} if socket else {},
        )

    def get_database_url(self) -> str:
        """The database as a URL string, password included: for connecting, never for printing (see `safe_url`).

        `sqlite+pysqlite:///grid_bot.db` or `postgresql+psycopg2://user:pass@host:port/dbname`; special
        characters in user, password and database name survive the way back through SQLAlchemy's `make_url`.
        Raises `SettingsError` naming every missing field and its variable.
        """
        url = self.url
        text = url.render_as_string(hide_password=False)
        if make_url(text) == url:
            return text
        # SQLAlchemy 2.0 does not encode "?" in a database name (2.1 does); libpq also takes the name as a parameter.
        if url.drivername == POSTGRESQL_DRIVER and url.database is not None:
            moved = url.set(database="").update_query_dict({"dbname": url.database})
            return moved.render_as_string(hide_password=False)
        raise SettingsError(
            f"the SQLite path of db_name has a '?', which SQLAlchemy {sqlalchemy.__version__} cannot write into a "
            "URL; rename the file, or use SQLAlchemy 2.1 or newer"
        )

    @property
    def safe_url(self) -> str:
        """The database as a URL string with every secret masked: the only form to print or log."""
        return _render_safe(self.url)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is SQLite, whichever field says so."""
        return self.url.drivername == SQLITE_DRIVER

    @property
    def is_memory(self) -> bool:
        """Whether the database is an in-memory SQLite, gone when its connection closes."""
        return self.is_sqlite and _is_memory(self.url)


def settings_from(source: DatabaseSettings | URL | str | None, **overrides: Any) -> DatabaseSettings:
    """Settings from what a caller may hold: settings, a URL, or nothing (the environment).

    Raises `SettingsError` for any other type, and for a value that cannot be used.
    """
    if isinstance(source, DatabaseSettings):
        return source
    if isinstance(source, URL):
        source = source.render_as_string(hide_password=False)
    if isinstance(source, str):
        return DatabaseSettings(database_url=source, **overrides)
    if source is None:
        return DatabaseSettings(**overrides)
    raise SettingsError(
        f"expected DatabaseSettings, a database URL ({_URL_FORMS}) or nothing, got {type(source).__name__}"
    )


def read_env_file(path: str | None) -> dict[str, Any]:
    """Constructor arguments that make `DatabaseSettings` read `path` in place of `.env`; none for None.

    Raises `SettingsError` if the file does not exist: a mistyped name must not fall back to the default database.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        raise SettingsError(f"there is no environment file {path!r}; copy .env.example to it, or correct the name")
    return {"_env_file": path}


def _details(error: ValidationError) -> list[dict[str, Any]]:
    details = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        name = str(item["loc"][0]) if item["loc"] else ""
        fields = [field for field in DatabaseSettings.model_fields if name in (field, *environment_names(field))]
        details.append(
            {
                "type": item["type"],
                "loc": (fields[0],) if fields else item["loc"],
                "msg": item["msg"].removeprefix("Value error, "),
            }
        )
    return details


def _message(details: list[dict[str, Any]]) -> str:
    parts = []
    for item in details:
        field = str(item["loc"][0]) if item["loc"] else "settings"
        names = f" ({environment_names(field)[0]})" if field in DatabaseSettings.model_fields else ""
        text = str(item["msg"])
        parts.append(f"{field}{names}: {text[:1].lower()}{text[1:]}")
    return "; ".join(parts)


def _parse_url(text: str) -> URL:
    try:
        url = make_url(text.strip())
    except (ArgumentError, ValueError):
        # The driver's own message quotes the URL, or what it took for the port, which may be half a password.
        url = None
    if url is None:
        raise SettingsError(f"is not a database URL; write {_URL_FORMS}, and {_PERCENT_ENCODE}")
    drivername = _DRIVERS.get(url.drivername.lower())
    if drivername is None:
        raise SettingsError(
            "names a database or driver that is not supported; use sqlite:/// (driver pysqlite) "
            "or postgresql:// (driver psycopg2)"
        )
    url = url.set(drivername=drivername)
    if drivername == SQLITE_DRIVER:
        if url.host or url.username or url.password:
            raise SettingsError(
                "is a SQLite URL with a host; a relative path takes three slashes (sqlite:///grid_bot.db), "
                "an absolute one four (sqlite:////data/grid_bot.db)"
            )
        return url
    # A password with a bare @ leaves its tail in the host, where every log would show it.
    if url.host is not None and any(sign in url.host for sign in "@/?#"):
        raise SettingsError(f"has a host with @, /, ? or # in it; {_PERCENT_ENCODE}")
    query = dict(url.query)
    for key in [key for key in query if key.lower() in ("password", "user")]:
        value = query.pop(key)
        value = value if isinstance(value, str) else value[-1]
        url = url.set(password=value) if key.lower() == "password" else url.set(username=value)
    return url.set(query=query)


def _render_safe(url: URL) -> str:
    secret = ("password", "passwd", "pwd", "secret", "token", "key")
    hidden = {key: MASK for key in url.query if any(word in key.lower() for word in secret) and "file" not in key}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def _is_memory(url: URL) -> bool:
    database = url.database or ""
    return (
        database in ("", ":memory:")
        or "mode=memory" in database
        or url.query.get("mode") == "memory"
        or (database.startswith("file::memory:"))
    )


def describe_settings() -> list[dict[str, str]]:
    """One row a setting (field, variable, default, description): what the README's table is checked against."""
    return [
        {
            "field": name,
            "variable": environment_names(name)[0],
            "default": "" if field.default is None else json.dumps(field.default).strip('"'),
            "description": field.description or "",
        }
        for name, field in DatabaseSettings.model_fields.items()
    ]
