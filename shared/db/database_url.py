"""A database's address as text: read strictly, written so that it reads back, shown without secrets."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import sqlalchemy
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from shared.db.dialects import PORTS, POSTGRESQL, SQLITE
from shared.db.dialects.port import Port
from shared.db.errors import SettingsError

MASK = "***"
URL_FORMS = " or ".join(port.url_form for port in PORTS)

_PORTS = {scheme: port for port in PORTS for scheme in port.schemes}
_SEVERAL_HOSTS = re.compile(
    r"(?P<before>postgres(?:ql)?(?:\+\w+)?://(?:[^@/?]*@)?)(?P<places>[^@/?]*,[^@/?]*)"
    r"(?P<path>/[^?]*)?(?:\?(?P<query>.*))?\Z"
)
_PERCENT_ENCODE = (
    "percent-encode special characters in it (@ is %40, : is %3A, / is %2F, ? is %3F), or use GRIDBOT_DB_USER, "
    "GRIDBOT_DB_PASSWORD and the others, which take them as they are"
)
_SECRET_WORDS = ("password", "passwd", "pwd", "secret", "token", "key")


def parse_url(text: str) -> URL:
    """The URL with our driver filled in and credentials in their own fields, or `SettingsError`, which never quotes it.

    A scheme without a driver names the one that its dialect uses: `postgres://` and `postgresql://` psycopg2,
    `sqlite://` pysqlite. Several hosts, as libpq writes them (`postgresql://bot@a:5432,b:5433/gridbot`), are taken too.
    """
    one = _SEVERAL_HOSTS.sub(_hosts_in_query, text.strip())
    try:
        url = make_url(one)
    except (ArgumentError, ValueError):
        # The driver's own message quotes the URL, or what it took for the port, which may be half a password.
        url = None
    if url is None:
        raise SettingsError(f"the text is not a database URL; write {URL_FORMS}, and {_PERCENT_ENCODE}")
    # A password with a bare @, / or ? leaves its tail in the host, the name or the query, which every log shows.
    if url.get_backend_name() not in SQLITE.dialects and text.count("@") != (url.username is not None):
        raise SettingsError(f"the URL can be read in two ways; {_PERCENT_ENCODE}")
    return _normalised(url)


def _hosts_in_query(found: re.Match[str]) -> str:
    """SQLAlchemy reads one host with one port; in the query libpq takes them all."""
    hosts, ports = [], []
    for place in found["places"].split(","):
        host, port = re.fullmatch(r"(.*?)(?::(\d*))?", place).groups()  # type: ignore[union-attr] # it matches any text
        hosts.append(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
        ports.append(port or "")
        if not is_host(hosts[-1]) or not (port is None or port == "" or is_port(port)):
            raise SettingsError(f"one of the URL's hosts is neither a host name nor an IP address; {_PERCENT_ENCODE}")
    told = f"host={quote(','.join(hosts))}" + (f"&port={quote(','.join(ports))}" if any(ports) else "")
    return f"{found['before']}{found['path'] or '/'}?{told}" + (f"&{found['query']}" if found["query"] else "")


def _normalised(url: URL) -> URL:
    port = _PORTS.get(url.drivername.lower())
    if port is None:
        known = " or ".join(f"{port.name}:// (driver {port.driver.partition('+')[2]})" for port in PORTS)
        raise SettingsError(f"the URL names a database or driver that is not supported; use {known}")
    if port is SQLITE:
        if url.host or url.username or url.password or url.port:
            raise SettingsError(
                "a SQLite URL has no host; a relative path takes three slashes (sqlite:///grid_bot.db), "
                "an absolute one four (sqlite:////data/grid_bot.db)"
            )
        return url.set(drivername=port.driver)
    if not is_host(url.host or ""):
        raise SettingsError(f"the URL's host is neither a host name nor an IP address; {_PERCENT_ENCODE}")
    if url.port is not None and not is_port(str(url.port)):
        raise SettingsError("the URL's port is not a number from 1 to 65535")
    query = dict(url.query)
    fields: dict[str, Any] = {}
    for key in [key for key in query if key.lower() in port.fields_in_query]:
        value = query.pop(key)
        fields[port.fields_in_query[key.lower()]] = value if isinstance(value, str) else value[-1]
    url = url.set(drivername=port.driver, query=query, **fields)
    # SQLAlchemy writes no password where there is no user; libpq takes an empty one for its default.
    return url.set(username="") if url.password is not None and url.username is None else url


def url_text(url: URL, read: Callable[[str], URL]) -> str:
    """The URL as text with its password, from which `read` (`make_url` or `parse_url`) makes the same URL again."""
    url = _normalised(url)
    for text in _forms(url):
        try:
            if read(text) == url:
                return text
        except (ArgumentError, ValueError):
            continue  # cannot be read in this form
    if url.drivername == POSTGRESQL.driver and url.database is not None:
        # SQLAlchemy 2.0 does not encode a database's name; as a parameter of libpq it is.
        moved = url.set(database="").update_query_dict({"dbname": url.database})
        return moved.render_as_string(hide_password=False)
    raise SettingsError(
        f"the SQLite path has a '?', which SQLAlchemy {sqlalchemy.__version__} cannot write into a URL; "
        "rename the file, or use SQLAlchemy 2.1 or newer"
    )


class MaskedURL(URL):
    """A URL that shows no secret of its query either; SQLAlchemy's own masks the password alone."""

    def __repr__(self) -> str:
        return safe_text(self)

    __str__ = __repr__


def safe_url(text: str) -> str:
    """A database's URL with every secret in it masked: what may be printed or logged.

    The secrets are the password and what the query gives under a key such as `sslpassword`. Takes the URLs that
    `DatabaseSettings` takes, and raises `SettingsError`, which never quotes it, for any other text.
    """
    return safe_text(parse_url(text))


def safe_text(url: URL) -> str:
    """The URL as text with every secret masked."""
    hidden = {key: MASK for key in url.query if is_secret(key)}
    return _forms(url.update_query_dict(hidden), hide_password=True)[0].replace(quote(MASK), MASK)


def is_secret(key: str) -> bool:
    """Whether what a URL's query gives under this key is a secret, such as `sslpassword`."""
    return "file" not in key.lower() and any(word in key.lower() for word in _SECRET_WORDS)


def _forms(url: URL, hide_password: bool = False) -> list[str]:
    """The ways to write a URL, the most readable one first."""
    text = url.render_as_string(hide_password=hide_password)
    if url.drivername == SQLITE.driver and url.database and not url.query:
        # SQLAlchemy 2.1 writes even :memory: percent-encoded.
        return [f"{SQLITE.driver}:///{url.database}", text]
    return [text]


def port_of_url(url: URL) -> Port:
    """The database that a URL of ours leads to."""
    return _PORTS[url.drivername]


def is_memory(url: URL) -> bool:
    """Whether a SQLite URL means a database without a file."""
    database = url.database or ""
    if database in ("", ":memory:"):
        return True
    # SQLAlchemy takes "file:..." for the name of a file unless the query says uri=true.
    uri = str(url.query.get("uri", "")).lower() in ("true", "yes", "on", "y", "t", "1")
    return uri and (
        database.startswith("file::memory:") or "mode=memory" in database or url.query.get("mode") == "memory"
    )


def is_port(digits: str) -> bool:
    """Whether `digits` (ASCII digits only) are a port number."""
    return len(digits) <= 5 and 1 <= int(digits) <= 65535


def is_host(host: str) -> bool:
    """Whether `host` is a host, several with commas between, or one socket folder, and nothing that hides a secret."""
    if host.startswith("/"):
        return "," not in host  # the driver would take the parts for several hosts
    if "," in host:
        return all(is_host(each) and not each.startswith("/") for each in host.split(","))
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return False
    return not any(sign in "@/?#[]\\" or sign.isspace() for sign in host)
