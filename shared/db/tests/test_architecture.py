"""The rules of the house. Each message says what to do."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy.types import TypeEngine

import shared.db
import shared.db.commands
from shared.db import Base, BaseRepository, column_types
from shared.db.dialects import PORTS
from shared.db.tables import OWNERSHIP
from shared.db.tests.outside import imported_siblings
from shared.db.tests.reference import PUBLIC

PACKAGE = Path(shared.db.__file__).parent
# A module may import what stands before it, and its own room.
ROOMS = (
    "starting",
    "errors",
    "dialects",
    "driver_errors",
    "transactions",
    "transaction_control",
    "hidden",
    "database_url",
    "settings",
    "tracked_json",
    "value_forms",
    "column_types",
    "columns",
    "sqlite_functions",
    "mapped_values",
    "encryption",
    "sealing",
    "tables",
    "models",
    "packages",
    "numbering",
    "schema_version",
    "staleness",
    "merging",
    "sessions",
    "commits",
    "asking",
    "tenancy",
    "audit",
    "bulk",
    "ranges",
    "forking",
    "database_file",
    "write_lock",
    "same_answers",
    "engine",
    "health",
    "retry",
    "async_door",
    "database",
    "web",
    "natural_keys",
    "repositories",
    "recording",
    "exchanges",
    "migrations",
    "operations",
    "lake",
    "report",
    "commands",
    "init_db",
    "testing",
    "__main__",
)
# What imports an optional library at its top, so that whoever offers it imports it late.
NEEDS_AN_EXTRA = {
    "shared.db.commands.migrate_answers",
    "shared.db.lake",
    "shared.db.value_forms.arrow",
    "shared.db.value_forms.binary",
    "shared.db.value_forms.binary_rows",
}
# Where the databases differ: `dialects/`, and the modules of one database's name in the rooms that pick one of them.
DATABASES = tuple(port.name for port in PORTS)
# Modules that still know one database without being called by its name. It is to become shorter, and never longer.
KNOWS_ONE = {
    "database_file.py": "sqlite3",
    "write_lock.py": "sqlite3",
    "forking.py": "sqlite3 sqlalchemy.dialects",
    "migrations/exclusive.py": "sqlite3",
    "migrations/revisions.py": "sqlite3",
    "migrations/frozen.py": "sqlalchemy.dialects",
    "tenancy/row_security.py": "sqlalchemy.dialects",
    "tenancy/statement_guard.py": "sqlalchemy.dialects",
    "testing.py": "psycopg2 sqlite3",
}
DRIVERS = ("sqlite3", "psycopg2", "sqlalchemy.dialects")


def modules() -> Iterator[tuple[Path, str, ast.Module]]:
    """Every module of the library, with its room."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        if parts[0] == "tests" or parts == ("__init__.py",):
            continue
        yield path.relative_to(PACKAGE), parts[0].removesuffix(".py"), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The rooms that a module imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "use absolute imports: pytest would load a relative one a second time as `db`"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name.split(".")[2], node.lineno) for name in names if name.startswith("shared.db."))


def test_imports_point_one_way() -> None:
    """A room imports only rooms above it in the list."""
    for path, room, tree in modules():
        assert room in ROOMS, f"{path}: give the new room {room!r} its place in ROOMS and in RULES.md"
        for other, line in imported(tree):
            assert other in ROOMS[: ROOMS.index(room) + 1], (
                f"{path}:{line} imports {other}, which stands below {room}; move the code down, or what it needs up"
            )


def test_no_import_hides_in_a_function() -> None:
    """There it would hide a cycle. Other people's optional libraries may be imported late."""
    for path, _, tree in modules():
        for function in ast.walk(tree):
            for node in ast.walk(function) if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) else ():
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                late = [name for name in names if name.startswith("shared.db") and name not in NEEDS_AN_EXTRA]
                assert not late, f"{path}: import {late[0]} at the top of the module, or move what needs it down"


def test_only_the_database_room_commits() -> None:
    """Repositories flush; the session's context commits."""
    for path, room, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "commit":
                assert room in ("database", "async_door", "migrations"), (
                    f"{path}:{node.lineno} commits; flush and leave that to the caller"
                )


def test_every_model_has_an_owner() -> None:
    """Or is listed as shared by all."""
    ours = {mapper.class_ for mapper in Base.registry.mappers if mapper.class_.__module__ == "shared.db.models"}
    assert not [model for model in ours if model not in OWNERSHIP], "give the model an __ownership__"


def named_for_one(path: Path) -> bool:
    """Whether a module is one database's own, by its name."""
    return path.stem.startswith(DATABASES)


def test_what_differs_between_databases_stands_behind_the_port() -> None:
    """No room asks a database for its name, or imports a driver: "not this one" would mean "the other one"."""
    for path, room, tree in modules():
        if room == "dialects" or named_for_one(path) or "versions" in path.parts:
            continue
        allowed = KNOWS_ONE.get(path.as_posix(), "").split()
        for node in ast.walk(tree):
            place = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and node.attr == "name" and path.as_posix() != "migrations/frozen.py":
                of = node.value
                asked = of.attr if isinstance(of, ast.Attribute) else of.id if isinstance(of, ast.Name) else ""
                assert asked != "dialect", f"{place} asks for a dialect's name; ask port_of(...) what it can"
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            known = [name for name in names if name.startswith(DRIVERS) and not name.startswith(tuple(allowed or "-"))]
            assert not known, f"{place} imports {known[0]}; put what needs it into dialects/, or a module named for it"


def test_each_exception_is_needed() -> None:
    """Who no longer knows one database leaves the list."""
    for name, drivers in KNOWS_ONE.items():
        text = (PACKAGE / name).read_text(encoding="utf-8")
        assert all(re.search(rf"^\s*(from|import) {driver}", text, re.MULTILINE) for driver in drivers.split()), (
            f"take {name} out of KNOWS_ONE, or what it no longer imports"
        )


# Rooms where values go by many, on ways on which each type has a form of its own; and who may name a type there all the
# same: for the bounds of a range, which are times.
_ROOMS_OF_FORMS = {"bulk", "ranges", "recording", "operations", "commands", "health", "audit"}
_MAY_ASK_FOR_A_TYPE = {Path("ranges/bounds.py")}


def test_a_column_type_owns_the_forms_of_its_values() -> None:
    """Where a type is asked which one it is, the next type is forgotten."""
    types = {name for name, one in vars(column_types).items() if isinstance(one, type) and issubclass(one, TypeEngine)}
    for path, room, tree in modules():
        for node in ast.walk(tree) if room in _ROOMS_OF_FORMS and path not in _MAY_ASK_FOR_A_TYPE else ():
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                named = types & {one.id for one in ast.walk(node.args[1]) if isinstance(one, ast.Name)}
                assert not named, f"{path}:{node.lineno} asks for {named}; make it a form, in value_forms/forms.py"


def test_no_module_shadows_the_standard_library() -> None:
    """`types.py` or `secrets.py` would be imported in place of Python's own."""
    for path, _, _ in modules():
        assert path.stem == "__init__" or path.stem == "__main__" or path.stem not in sys.stdlib_module_names, (
            f"rename {path}"
        )


# The packages beside this one: each a project of its own, which needs this one, and which this one does not know.
SIBLINGS = sorted(path.parent for path in PACKAGE.parent.glob("*/pyproject.toml") if path.parent != PACKAGE)


def test_the_library_imports_no_sibling() -> None:
    """What stands beside it is optional."""
    siblings = {f"shared.{path.name}" for path in SIBLINGS}
    for path, _, tree in modules():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            known = [name for name in names if ".".join(name.split(".")[:2]) in siblings]
            assert not known, f"{path} imports {known}: offer a hook, and let the sibling take it"


@pytest.mark.parametrize("sibling", SIBLINGS, ids=lambda path: path.name)
def test_a_sibling_imports_public_names_alone(sibling: Path) -> None:
    """Of `shared.db`, what `__all__` has; the rooms are free to change. Tests may use its tests' tools and commands."""
    for path in sorted(sibling.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shared.db"):
                commands = ("shared.db.tests", "shared.db.commands", "shared.db.migrations")
                within = "tests" in path.parts and (node.module or "").startswith(commands)
                names = {alias.name for alias in node.names}
                assert (
                    within
                    or node.module == "shared.db.testing"
                    or (
                        node.module in ("shared.db.lake", "shared.db.operations", "shared.db.web")
                        and names <= {*PUBLIC}
                    )
                    or ("revisions" in path.parts and node.module == "shared.db.migrations")
                    or (node.module == "shared.db" and names <= set(shared.db.__all__))
                    or (node.module == "shared.db.commands" and names <= set(shared.db.commands.__all__))
                ), f"{path}:{node.lineno} reaches into shared.db; import from shared.db what __all__ has"
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            assert not [name for name in names if name.startswith("shared.db")], f"{path}: import names, not modules"


@pytest.mark.parametrize("sibling", SIBLINGS, ids=lambda path: path.name)
def test_a_sibling_says_what_each_of_its_names_is_for(sibling: Path) -> None:
    """Every public name has a docstring, and stands in the package's documents."""
    with imported_siblings(sibling.name) as modules:
        public = [(name, getattr(module, name)) for module in modules for name in module.__all__]
    documents = "".join(path.read_text(encoding="utf-8") for path in sibling.rglob("*.md"))
    for name, thing in public:
        assert thing.__doc__, f"{name} needs a docstring"
        assert re.search(rf"\b{name}\b", documents), f"say in {sibling.name}/docs what {name} is for"


def test_shared_is_a_namespace_without_an_init() -> None:
    """Other packages live beside this one under `shared`."""
    assert not (PACKAGE.parent / "__init__.py").exists(), "delete shared/__init__.py"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring(name: str) -> None:
    """Of its own, not the one of a base class."""
    public = PUBLIC[name]
    assert inspect.getdoc(public), f"{name} needs a docstring"
    if inspect.isclass(public):
        assert public.__doc__, f"{name} needs a docstring of its own"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_documents(name: str) -> None:
    """Somebody who reads the README and docs/ comes across it."""
    assert name in _words_of_the_documents(), (
        f"say in shared/db/docs/reference.md what {name} is for, or take it out of __all__"
    )


@cache
def _words_of_the_documents() -> set[str]:
    documents = [*PACKAGE.parents[1].glob("README.md"), *PACKAGE.glob("README.md"), *PACKAGE.glob("docs/*.md")]
    assert len(documents) >= 3
    return {word for document in documents for word in re.findall(r"\w+", document.read_text(encoding="utf-8"))}


def test_the_public_names_are_what_the_package_offers() -> None:
    """`__all__` is complete, and names nothing that is not there."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    offered = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert offered == set(shared.db.__all__), "__init__.py imports the public names and nothing else"


def test_the_base_repository_stays_small() -> None:
    """One class that does everything is how repositories grow to thousands of lines."""
    lines = len(inspect.getsource(BaseRepository).splitlines())
    assert lines <= 150, f"BaseRepository has {lines} lines; move what one table needs to its own class"


def test_every_ignored_rule_has_its_reason() -> None:
    """On the same line, for the type checker and the linter alike."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(r"#\s*(type: ignore|noqa|pragma)", line) and "re.search" not in line:
                assert re.search(r"(ignore\[[a-z-, ]+\]|noqa: [A-Z0-9, ]+) # \S", line), (
                    f"{path.name}:{number}: say why"
                )
