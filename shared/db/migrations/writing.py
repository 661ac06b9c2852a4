"""Writing a revision: what the models say and the database does not have yet, as code that a person then reads."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Index, create_engine, false, true
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from shared.db import packages, schema_version
from shared.db.column_types import CheckedType, new_uuid, utc_now
from shared.db.database import DatabaseFactory
from shared.db.dialects import MYSQL, SQLITE
from shared.db.errors import MigrationError
from shared.db.migrations import catalog
from shared.db.migrations.catalog import Difference
from shared.db.migrations.revisions import Revisions, build
from shared.db.models import Base
from shared.db.packages import Line

_LONGEST = 27
_DEFAULTS: dict[type[Any], str] = {
    utc_now: "frozen.now()",
    new_uuid: "frozen.new_uuid()",
    type(true()): "sa.true()",  # else 1 or 0 where it is compared with SQLite
    type(false()): "sa.false()",
}


@dataclass(frozen=True)
class Written:
    """A revision's file, and the differences between models and revisions that it does not bring about."""

    path: Path
    left: tuple[Difference, ...]


def new_revision(db: DatabaseFactory, message: str, package: str = packages.OURS) -> Written:
    """Write the next revision of a package: what its models say and the database, at its newest revision, lacks.

    For a checkout. One revision serves all databases: types, defaults and the way in which a table is changed
    are put so that each does them in its own way. What such a comparison does not see (CHECKs, server defaults, new
    names, indexes of documents) is told in `left`, to be written by hand.

    Raises `MigrationError` for a message without a letter, in an installed package, and for one that has no revisions;
    `SchemaVersionError` for a database that is not at the newest ones.
    """
    line = packages.line_of(package)
    name = re.sub("[^a-z0-9]+", "_", message.lower()).strip("_")[:_LONGEST].rstrip("_")
    if not re.search("[a-z]", name):
        raise MigrationError(f"{message!r} is no message for a revision; say in a few words what it changes")
    in_checkout = (line.folder.parents[1] / "pyproject.toml").exists() if package == packages.OURS else True
    if "site-packages" in line.folder.parts or not in_checkout:
        raise MigrationError(f"revisions are written in a checkout of {package}, not in an installed package")
    before = Revisions(line)
    with db.get_session(read_only=True) as session:
        for each in packages.lines():
            problem = schema_version.difference(Session.connection(session), Revisions(each).head, each)
            # The first revision is for tables that are not there, or that carry no revision yet.
            if problem is not None and (each != line or len(before.names) > 1):
                raise problem
    with _to_compare(db) as connection:
        forward = _compared(connection, line, made=len(before.names) > 1)
    revision = f"{len(before.names):04}_{name}"
    backward = forward.reverse()
    gone = {one.table_name for one in backward.ops if isinstance(one, ops.DropTableOp)}
    # A table takes its indexes along; MariaDB drops none before that a foreign key needs.
    backward.ops = [one for one in backward.ops if not (isinstance(one, ops.ModifyTableOps) and one.table_name in gone)]
    before.directory.generate_revision(
        revision,
        message,
        head=before.head,
        version_path=str(line.folder),
        upgrades=_code(forward),
        downgrades=_code(backward),
        drops=tuple(_dropped(backward.ops)),
    )
    if package == packages.OURS:
        constant = Path(schema_version.__file__)
        source = constant.read_text(encoding="utf-8")
        needed = 'SCHEMA_REVISION = "{}"'
        constant.write_text(source.replace(needed.format(before.head), needed.format(revision)), encoding="utf-8")
    with _to_compare(db) as connection:
        return Written(line.folder / f"{revision}.py", tuple(_left(connection, line)))


@contextmanager
def _to_compare(db: DatabaseFactory) -> Iterator[Connection]:
    if db.settings.port is not MYSQL:
        with db.get_session(read_only=db.settings.port is SQLITE) as session:
            yield Session.connection(session)
        return
    # What MariaDB tells of its tables is too far from how they are declared: what the revisions make, in memory.
    engine = create_engine("sqlite://", poolclass=StaticPool)
    try:
        with engine.begin() as connection:
            last = Revisions(packages.lines()[-1])
            build(connection, last, len(last.names) - 1)
            yield connection
    finally:
        engine.dispose()


def _compared(connection: Connection, line: Line, *, made: bool) -> ops.UpgradeOps:
    """What has to be done; unless they were `made` by revisions, the package's tables count as not there."""
    tables = {table.name for table in line.tables()}
    options: dict[str, Any] = {
        "target_metadata": Base.metadata,
        "compare_type": True,
        "include_name": lambda name, kind, parents: kind != "table" or (made and name in tables),
        "include_object": lambda thing, name, kind, *_: (
            (kind != "table" or name in tables) and not _of_documents(thing)
        ),
    }
    found = produce_migrations(MigrationContext.configure(connection, opts=options), Base.metadata).upgrade_ops
    assert found is not None
    return found


def _of_documents(thing: Any) -> bool:
    """Whether it is an index that one database alone has: a revision for all makes it by a function of its own."""
    return isinstance(thing, Index) and thing.dialect_options["postgresql"]["using"] == "gin"


def _code(what: ops.UpgradeOps | ops.DowngradeOps) -> str:
    code = render_python_code(what, render_as_batch=True, render_item=_frozen)
    code = re.sub(r"^ *# (###|please)[^\n]*\n?", "", code, flags=re.MULTILINE).strip() or "pass"
    return textwrap.indent(textwrap.dedent("    " + code), "    ").strip()


def _frozen(kind: str, thing: Any, context: Any) -> Any:
    """A type or default of ours as revisions write it; False leaves it to Alembic."""
    if kind == "type" and isinstance(thing, CheckedType):
        # One of another package as SQLAlchemy's type behind it.
        return f"sa.{thing.impl_instance!r}" if thing.frozen is None else thing.frozen.format(thing.impl_instance)
    if kind == "server_default":
        return _DEFAULTS.get(type(getattr(thing, "arg", None)), False)
    return False


def _dropped(backward: Iterable[ops.MigrateOperation]) -> Iterable[str]:
    for step in backward:
        if isinstance(step, ops.DropTableOp):
            yield step.table_name
        elif isinstance(step, ops.ModifyTableOps):
            yield from (f"{step.table_name}.{one.column_name}" for one in step.ops if isinstance(one, ops.DropColumnOp))


def _left(connection: Connection, line: Line) -> list[Difference]:
    """How a schema that the revisions make, the new one among them, differs from the models."""
    tables = {table.name for table in line.tables()}
    after = Revisions(line)
    made = catalog.built_by(connection, partial(build, revisions=after, target=len(after.names) - 1))
    meant = catalog.built_by(connection, lambda scratch: Base.metadata.create_all(scratch, checkfirst=False))
    return catalog.compare(catalog.only(meant, tables), catalog.only(made, tables))
