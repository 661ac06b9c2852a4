"""Packages that bring tables of their own: which are installed, where their models are, and where their revisions.

A package says so by entry points: one of the group `shared.db.models`, whose value is the module of its models, and
one of the group `shared.db.revisions`, whose value is the folder of its revisions, as a module. What a program imports
by itself needs none: a class is in the registry as soon as it is mapped.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from sqlalchemy import Table
from sqlalchemy.exc import InvalidRequestError

from shared.db.errors import MigrationError, PackageError, SettingsError
from shared.db.models import Base
from shared.db.settings import DatabaseSettings

MODELS: Final = "shared.db.models"
REVISIONS: Final = "shared.db.revisions"
OURS: Final = "shared.db"
"""The name of this package, among those that have revisions."""


@dataclass(frozen=True)
class Line:
    """The revisions of one package, one after the other, in files of `folder`; its classes stand below `root`."""

    package: str
    folder: Path
    root: str

    def tables(self) -> list[Table]:
        """The package's tables, of the classes that are loaded."""
        classes = [mapper.class_ for mapper in Base.registry.mappers]
        return [model.__table__ for model in classes if f"{model.__module__}.".startswith(f"{self.root}.")]

    def revisions(self) -> tuple[str, ...]:
        """The names of the revisions, oldest first: read off the files, without Alembic and without running them.

        Raises `MigrationError` for files that are no single line.
        """
        after: dict[str | None, str] = {}
        for path in sorted(self.folder.glob("*.py")):
            told = _assigned(path, path.stat().st_mtime_ns)
            if "revision" not in told:
                continue
            name, before = told["revision"], told.get("down_revision")
            if not isinstance(name, str) or not isinstance(before, str | None) or before in after:
                raise MigrationError(
                    f"the revisions of {self.package} are no single line: {path.name} follows {before}, as another "
                    "one does; have each follow the one before"
                )
            after[before] = name
        line: list[str] = []
        while (last := line[-1] if line else None) in after:
            line.append(after.pop(last))
        if after:
            raise MigrationError(
                f"the revisions of {self.package} are no single line: {', '.join(sorted(after.values()))} follow none "
                f"of the others in {self.folder}"
            )
        return tuple(line)


_merely_installed: set[str] = set()

OWN: Line = Line(OURS, Path(__file__).parent / "migrations" / "versions", "shared.db.models")


def load(settings: DatabaseSettings) -> None:
    """Import the models of every installed package that offers some, or of those in `settings.packages` alone.

    The modules in `settings.models` come after them. Raises `SettingsError` for a package that offers none,
    `PackageError` for models that cannot be imported, and `DeclarationError` for those that declare what cannot be.
    """
    offered = {point.module: point.name for point in _offered(MODELS)}
    if settings.packages is not None:
        wanted = {*settings.packages.split(",")} - {OURS}
        if unknown := wanted - {*offered.values()}:
            raise SettingsError(
                f"GRIDBOT_DB_PACKAGES names {', '.join(sorted(unknown))}, which offers no tables here; install it, or "
                f"name some of {', '.join([OURS, *sorted(offered.values())])}"
            )
        offered = {module: name for module, name in offered.items() if name in wanted}
    else:
        _merely_installed.update(name for module, name in offered.items() if module not in sys.modules)
    modules = settings.models.split(",") if settings.models else []
    for module, name in (offered | {module: module for module in modules if module not in offered}).items():
        try:
            importlib.import_module(module)
        except (ImportError, InvalidRequestError) as error:
            raise PackageError(name, module, str(error)) from error


def is_merely_installed(package: str) -> bool:
    """Whether a package's tables were loaded because it is installed, and nobody asked for them."""
    return package in _merely_installed


def lines() -> list[Line]:
    """Our own revisions, and those of the packages whose tables are loaded, each after those that it hangs on."""
    found = {line.package: line for line in _installed() if line.tables()}
    owner = {table: line.package for line in found.values() for table in line.tables()}
    parents = {
        name: sorted(
            {owner.get(key.column.table, name) for table in line.tables() for key in table.foreign_keys} - {name}
        )
        for name, line in sorted(found.items())
    }
    try:
        return [OWN, *(found[name] for name in TopologicalSorter(parents).static_order())]
    except CycleError as error:
        raise MigrationError(
            f"the tables of {' and '.join(sorted(set(error.args[1])))} name each other's rows, so that neither can be "
            "made first; move what both need into one of them"
        ) from error


def line_of(package: str) -> Line:
    """The revisions of a package that is loaded. Raises `MigrationError` if it has none."""
    there = {line.package: line for line in lines()}
    if package in there:
        return there[package]
    raise MigrationError(
        f"{package} has no revisions here; those that have are {', '.join(there)}. A package offers its own by an "
        f'entry point, and is installed again: [project.entry-points."{REVISIONS}"] "{package}" = "{package}.revisions"'
    )


def _installed() -> Iterable[Line]:
    for point in _offered(REVISIONS):
        root = point.module.rpartition(".")[0]
        if root and root not in sys.modules:
            continue  # of what nobody has loaded there are no tables, and to look into it would import it
        try:
            spec = find_spec(point.module)
        except ImportError as error:
            raise PackageError(point.name, point.module, str(error)) from error
        if spec is None or not spec.submodule_search_locations:
            raise PackageError(point.name, point.module, "it is no folder of a package")
        yield Line(point.name, Path(next(iter(spec.submodule_search_locations))), root)


def _offered(group: str) -> list[EntryPoint]:
    """The entry points of the packages that are installed; read again only after one was installed or removed."""
    changed = []
    for folder in sys.path:
        with suppress(OSError):  # it is not there, or not for this login, as importing finds out by itself
            changed.append((folder, Path(folder).stat().st_mtime_ns))
    return _entry_points(group, tuple(changed))


@lru_cache
def _entry_points(group: str, _folders: tuple[tuple[str, int], ...]) -> list[EntryPoint]:
    return sorted(entry_points(group=group))


@lru_cache
def _assigned(path: Path, _changed: int) -> dict[str, object]:
    """What a file assigns at its top, as far as it stands there in so many words."""
    found: dict[str, object] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Constant):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        found |= {target.id: node.value.value for target in targets if isinstance(target, ast.Name)}
    return found
