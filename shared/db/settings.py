"""What we are told: environment and arguments become checked values, and those a database URL."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, get_args

from pydantic import (
    AliasChoices,
    AliasGenerator,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy.engine import URL, make_url

from shared.db.database_url import (
    MASK,
    URL_FORMS,
    MaskedURL,
    is_host,
    is_memory,
    is_port,
    parse_url,
    port_of_url,
    safe_text,
    safe_url,
    url_text,
)
from shared.db.dialects import POSTGRESQL, SQLITE, DatabaseType, Port, port_named
from shared.db.errors import SettingsError
from shared.db.hidden import HiddenText

# What Kubernetes sets in every pod for each Service: tcp://10.96.0.7:5432.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")
_SECRETS = ("db_password", "database_url", "replica_url", "encryption_keys")
_TEXTS = (str, str | None)
_TYPES = get_args(DatabaseType)
TargetSession = Literal["any", "read-write", "read-only", "primary", "standby", "prefer-standby"]
# What both drivers' timers can count, with room to spare.
_LONGEST_WAIT = 86_400.0


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
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        validate_assignment=True,
        hide_input_in_errors=True,
    )

    database_url: str | None = Field(
        default=None, repr=False, description="Direct connection URL; overrides every other connection field"
    )
    db_type: DatabaseType = Field(default="sqlite", description="sqlite, postgresql, mysql or mariadb")
    db_host: str | None = Field(
        default=None,
        description="Server's host, PostgreSQL's folder of its Unix socket (starts with /), or its hosts: a,b",
    )
    db_port: str | None = Field(
        default=None, description="Server's port, or one for each host: 5432,5433; 5432 or 3306 when left out"
    )
    db_user: str | None = Field(default=None, description="Server's user")
    db_password: str | None = Field(
        default=None, repr=False, description="Server's password, as it is, with no encoding"
    )
    target_session_attrs: TargetSession | None = Field(
        default=None,
        description="Which of several PostgreSQL hosts: read-write (the default), primary, standby, "
        "prefer-standby or any",
    )
    replica_url: str | None = Field(
        default=None,
        repr=False,
        description="URL of a PostgreSQL standby, or with several hosts in it, that read-only sessions ask",
    )
    max_staleness: float = Field(
        default=10.0, ge=0, description="How many seconds old a standby's answer may be; 0: ask it only by after="
    )
    db_name: str = Field(default="grid_bot.db", description="Server's database, or SQLite file path or :memory:")
    pool_size: int = Field(default=5, ge=1, description="Connections kept open by one process")
    max_overflow: int = Field(default=5, ge=0, description="Connections it may open beyond pool_size for a while")
    pool_timeout: float = Field(
        default=30.0, gt=0, le=_LONGEST_WAIT, description="Seconds to wait for a free connection"
    )
    pool_recycle: int = Field(
        default=1800, ge=-1, description="Seconds after which a connection is replaced; -1: never"
    )
    pool_pre_ping: bool = Field(default=True, description="Test a connection that was idle before use (servers)")
    sqlite_busy_timeout: float = Field(
        default=30.0, ge=0, le=_LONGEST_WAIT, description="Seconds a SQLite writer waits for another one to finish"
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
    read_only: bool = Field(default=False, description="Every session only reads; no SQLite file is made or changed")
    require_tenant: bool = Field(default=False, description="Refuse to touch users' tables in a session without a user")
    encryption_keys: str | None = Field(
        default=None,
        repr=False,
        description="Key ring that seals API secrets: id:base64key entries, the active one first",
    )
    encryption_keys_file: str | None = Field(
        default=None, description="File with the key ring, such as a mounted secret, in place of encryption_keys"
    )
    encryption_strict: bool = Field(default=False, description="Refuse API secrets that are still stored in plain")
    echo_sql: bool = Field(default=False, description="Log SQL statements (never their values)")
    models: str | None = Field(
        default=None, description="Modules of other packages' tables, for the commands: package.module,package.module"
    )
    packages: str | None = Field(
        default=None,
        description="Installed packages whose tables the commands load, and no others; shared.db alone for ours only",
    )

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name not in _CONSTRUCTOR_OPTIONS and name not in type(self).model_fields:
                values.clear()
                _refuse_unknown(name)
        env_file = values.get("_env_file")
        if isinstance(env_file, (str, PathLike)) and not Path(env_file).expanduser().is_file():
            # Reading nothing would fall back to the default database, which somebody would then trade on.
            values.clear()
            raise SettingsError(
                f"there is no environment file {str(env_file)!r}; copy .env.example to it, or correct the name"
            )
        try:
            super().__init__(**{_key(name): value for name, value in values.items()})
        except ValidationError as error:
            details = _details(error)
        except UnicodeDecodeError:
            details = None
        else:
            return
        # Raised outside the except block and with the values dropped: a chained error, or a traceback that shows
        # local variables, would carry the rejected values with it.
        values.clear()
        if details is None:
            raise SettingsError("the environment file is not UTF-8 text; save it as UTF-8")
        raise SettingsError(_message(details), details)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).model_fields and not name.startswith("_"):
            del value
            _refuse_unknown(name)
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            details = _details(error)
        else:
            return
        del value
        raise SettingsError(_message(details), details)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Constructor, environment and file, in this order; what a source says about others is left out."""
        # Left to itself pydantic-settings lets the order of the aliases beat the order of the sources in some
        # versions, and takes the DATABASE_URL of another program's .env for ours.
        sources = (partial(_told, source) for source in (env_settings, dotenv_settings))
        return init_settings, *sources  # type: ignore[arg-type] # all that is done with a source is a call

    @model_validator(mode="wrap")
    @classmethod
    def _masked(cls, data: Any, handler: Callable[[Any], Self]) -> Self:
        # For whoever validates by model_validate() or as a field of a model of their own: pydantic's error holds its
        # input, in errors() and json() too.
        try:
            return handler(data)
        except ValidationError as error:
            details = _details(error)
        lines = [
            InitErrorDetails(
                type=PydanticCustomError(item["type"], "{msg}", {"msg": item["msg"]}), loc=item["loc"], input=MASK
            )
            for item in details
        ]
        raise ValidationError.from_exception_data(cls.__name__, lines)

    @field_validator("db_type", mode="before")
    @classmethod
    def _known_type(cls, value: object) -> object:
        if isinstance(value, str) and value.strip().lower() in _TYPES:
            return value.strip().lower()
        raise ValueError(f"must be one of {', '.join(map(repr, _TYPES))}")

    @field_validator("db_port", mode="before")
    @classmethod
    def _port_number(cls, value: object) -> object:
        if value is None or value == "":
            return None
        text = str(value).strip()
        if _SERVICE_LINK.match(text):
            return text  # see `_port_of_a_service`
        ports = text.replace(" ", "").split(",")
        if isinstance(value, bool) or not all(each.isascii() and each.isdigit() and is_port(each) for each in ports):
            raise ValueError("must be a port number from 1 to 65535, such as 5432; leave it out for 5432")
        return ",".join(ports)

    @field_validator("db_host")
    @classmethod
    def _plain_host(cls, value: str | None) -> str | None:
        host = (value or "").strip()
        if host.startswith("["):
            host = host.removeprefix("[").removesuffix("]")
        if not is_host(host):
            raise ValueError(
                "must be a host name, an IP address or the folder of a Unix socket, and nothing else: user, password, "
                "port and database have settings of their own, a whole URL goes into database_url "
                f"({environment_names('database_url')[0]})"
            )
        return host or None

    @field_validator(
        "db_host",
        "db_user",
        "db_password",
        "database_url",
        "replica_url",
        "encryption_keys",
        "encryption_keys_file",
        mode="before",
    )
    @classmethod
    def _empty_means_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("db_name")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty: a SQLite file path, :memory:, or a PostgreSQL database name")
        if "://" in value:
            # Taken as a file path it would be shown, password and all, wherever the path is.
            raise ValueError(f"is a URL, not a name; give it as database_url ({environment_names('database_url')[0]})")
        return value

    @field_validator(
        "database_url",
        "replica_url",
        "db_host",
        "db_user",
        "db_password",
        "db_name",
        "application_name",
        "tenant_role",
    )
    @classmethod
    def _no_nul(cls, value: str | None) -> str | None:
        if value is not None and "\0" in value:
            raise ValueError("must not contain a NUL character")
        return value

    @field_validator("models")
    @classmethod
    def _modules(cls, value: str | None) -> str | None:
        names = [name.strip() for name in (value or "").split(",") if name.strip()]
        if not all(part.isidentifier() for name in names for part in name.split(".")):
            raise ValueError("must be names of modules with commas between them, such as gridfleet.models")
        return ",".join(names) or None

    @field_validator("packages")
    @classmethod
    def _packages(cls, value: str | None) -> str | None:
        names = [name.strip() for name in (value or "").split(",") if name.strip()]
        if not all(re.fullmatch(r"[\w.-]+", name) for name in names):
            raise ValueError("must be names of packages with commas between them, such as shared.db,gridfleet")
        return ",".join(names) or None

    @field_validator("database_url", "replica_url")
    @classmethod
    def _usable_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            try:
                url = parse_url(value)
            except SettingsError as error:
                raise ValueError(error.problem) from None
            if info.field_name == "replica_url" and port_of_url(url) is not POSTGRESQL:
                raise ValueError("must be the URL of a PostgreSQL standby: no other database has one here")
        return value

    @field_validator(*_SECRETS)
    @classmethod
    def _hidden(cls, value: str | None) -> str | None:
        # For vars() and dict(), and for a traceback with its frames' variables.
        return None if value is None else HiddenText(value)

    # The last one of its mode: pydantic begins with it.
    @field_validator("*", mode="before")
    @classmethod
    def _as_it_was_meant(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        bare = value.rstrip("\r\n")
        if info.field_name in _SECRETS:
            value = bare  # of a mounted file, which ends in a newline
        elif bare != value:
            raise ValueError(
                "ends in a carriage return or newline: save the file it comes from with Unix line ends (\\n)"
            )
        if info.field_name != "db_password" and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            raise ValueError("stands in quotes, which docker's --env-file makes part of the value: leave them out")
        return value if cls.model_fields[str(info.field_name)].annotation in _TEXTS else value.strip()

    @model_validator(mode="after")
    def _port_of_a_service(self) -> Self:
        if self.db_port is not None and _SERVICE_LINK.match(self.db_port):
            if self.database_url is None and port_named(self.db_type) is not SQLITE:
                raise ValueError(
                    "the value of GRIDBOT_DB_PORT is what Kubernetes sets for a Service called gridbot-db: put "
                    "enableServiceLinks: false into the pod's spec, or rename the Service, and give the port as a "
                    "number from 1 to 65535"
                )
            self.__dict__["db_port"] = None  # of no use here; an assignment would be checked again
        return self

    @field_serializer("db_password", "encryption_keys")
    def _mask_password(self, value: str | None) -> str | None:
        return None if value is None else MASK

    @field_serializer("database_url", "replica_url")
    def _mask_url(self, value: str | None) -> str | None:
        return None if value is None else safe_url(value)

    @property
    def url(self) -> URL:
        """The database as SQLAlchemy's URL object: driver filled in, password out of the query string.

        Its repr and str are masked, those of its query's secrets too. Raises `SettingsError` naming every missing field
        and its variable.
        """
        return MaskedURL(*self._url)

    @property
    def _url(self) -> URL:
        url = self._address
        # The first that answers may be a standby, on which every write would fail.
        several = "," in str(url.query.get("host", "")) and not self.read_only
        wanted = self.target_session_attrs or ("read-write" if several else None)
        if wanted is None or port_of_url(url) is not POSTGRESQL:
            return url
        return url.update_query_dict({"target_session_attrs": wanted, **url.query})

    @property
    def _address(self) -> URL:
        if self.database_url is not None:
            return parse_url(self.database_url)
        port = port_named(self.db_type)
        if port is SQLITE:
            return URL.create(port.driver, database=self.db_name)
        missing = [name for name in ("db_host", "db_user") if getattr(self, name) is None]
        if missing:
            wanted = " and ".join(f"{name} ({environment_names(name)[0]})" for name in missing)
            raise SettingsError(
                f"db_type is {self.db_type} but {wanted} {'is' if len(missing) == 1 else 'are'} not set; "
                f"set {'it' if len(missing) == 1 else 'them'}, or give the whole address as database_url "
                f"({environment_names('database_url')[0]})"
            )
        hosts, ports = str(self.db_host), self.db_port or str(port.port_number or 0)
        several = "," in hosts or "," in ports
        if several and (port is not POSTGRESQL or ports.count(",") not in (0, hosts.count(","))):
            raise SettingsError(
                f"db_host names {hosts.count(',') + 1} hosts and db_port {ports.count(',') + 1} ports: PostgreSQL "
                f"alone takes several, with one port for all or one for each ({environment_names('db_port')[0]})"
            )
        # libpq takes a socket folder or several hosts, a URL's host part does not: they go into the query.
        in_query = several or hosts.startswith("/")
        return URL.create(
            port.driver,
            username=self.db_user,
            password=self.db_password,
            host=None if in_query else hosts,
            port=None if several else int(ports),
            database=self.db_name,
            query={"host": hosts} | ({"port": ports} if several else {}) if in_query else {},
        )

    @property
    def replica(self) -> URL | None:
        """The standby as SQLAlchemy's URL object, as `url`; None where there is none.

        Raises `SettingsError` where the database itself is no PostgreSQL.
        """
        if self.replica_url is None:
            return None
        if self.port is not POSTGRESQL:
            raise SettingsError(
                f"replica_url ({environment_names('replica_url')[0]}) is set, and the database itself is "
                f"{self.port.title}: only PostgreSQL has a standby here; leave it out"
            )
        url = parse_url(self.replica_url)
        several = "," in str(url.query.get("host", "")) and "target_session_attrs" not in url.query
        return MaskedURL(*(url.update_query_dict({"target_session_attrs": "prefer-standby"}) if several else url))

    def get_database_url(self) -> str:
        """The database as a URL string, password included: for connecting, never for printing (see `safe_url`).

        `sqlite+pysqlite:///grid_bot.db` or `postgresql+psycopg2://user:pass@host:port/dbname`; special
        characters in user, password and database name survive the way back through SQLAlchemy's `make_url`.
        Raises `SettingsError` naming every missing field and its variable.
        """
        return url_text(self.url, make_url)

    @property
    def safe_url(self) -> str:
        """The database as a URL string with every secret masked: the only form to print or log."""
        return safe_text(self.url)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is SQLite, whichever field says so."""
        return self.port is SQLITE

    @property
    def port(self) -> Port:
        """The kind of database, whichever field says so: what it is called, and what it can."""
        return port_of_url(self.url)

    @property
    def is_memory(self) -> bool:
        """Whether the database is an in-memory SQLite, gone when its connection closes."""
        return self.is_sqlite and is_memory(self.url)


def settings_from(source: DatabaseSettings | URL | str | None) -> DatabaseSettings:
    """Settings from what a caller may hold: settings, a URL, or nothing (the environment).

    Raises `SettingsError` for any other type, and for a value that cannot be used.
    """
    if isinstance(source, DatabaseSettings):
        return source
    if source is None:
        return DatabaseSettings()
    try:
        if isinstance(source, URL):
            return DatabaseSettings(database_url=url_text(source, parse_url))
        if isinstance(source, str):
            return DatabaseSettings(database_url=source)
        raise SettingsError(
            f"expected DatabaseSettings, a database URL ({URL_FORMS}) or nothing, got {type(source).__name__}"
        )
    except SettingsError:
        del source  # a traceback that shows local variables would carry it
        raise


def read_env_file(path: str | None) -> dict[str, Any]:
    """Constructor arguments that make `DatabaseSettings` read `path` in place of `.env`; none for None."""
    return {} if path is None else {"_env_file": path}


# pydantic-settings's own, such as _env_file: a mistyped one would be ignored.
_CONSTRUCTOR_OPTIONS = {name for name in inspect.signature(BaseSettings.__init__).parameters if name.startswith("_")}


def _key(name: str) -> str:
    """The one name under which every source tells a field: its first alias."""
    return name if name in _CONSTRUCTOR_OPTIONS else environment_names(name)[0]


def _told(source: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    values = source()
    return {
        _key(field): values[name]
        for field in DatabaseSettings.model_fields
        for name in reversed(environment_names(field))
        if values.get(name)  # an empty variable is one that is not set
    }


def _refuse_unknown(name: str) -> NoReturn:
    known = DatabaseSettings.model_fields
    close = difflib.get_close_matches(name, [*known, *_CONSTRUCTOR_OPTIONS], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"the settings are {', '.join(known)}"
    raise SettingsError(f"unknown setting {name!r}; {hint}")


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


def describe_settings() -> list[dict[str, str]]:
    """One row a setting (field, variable, default, description): what docs/configuration.md is checked against."""
    return [
        {
            "field": name,
            "variable": environment_names(name)[0],
            "default": "" if field.default is None else json.dumps(field.default).strip('"'),
            "description": field.description or "",
        }
        for name, field in DatabaseSettings.model_fields.items()
    ]
