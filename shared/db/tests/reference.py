"""Signatures, fields, errors and examples of the public names for docs/reference.md.

`python -m shared.db.tests.reference` writes them.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import shared.db
from shared.db import Base, operations, web

# Every public name; those that are not of `shared.db` itself are of the modules beside it.
PUBLIC: dict[str, Any] = {
    name: getattr(module, name) for module in (shared.db, operations, web) for name in module.__all__
}
REFERENCE = Path(shared.db.__file__).parent / "docs" / "reference.md"
_BEGIN, _END = "<!-- signatures: uv run python -m shared.db.tests.reference -->\n", "<!-- end of signatures -->\n"


def signatures() -> str:
    """Those of every public name in the order of the alphabet."""
    shown = examples()
    return "".join(_entry(name, public, shown.get(name)) for name, public in sorted(PUBLIC.items()))


def written(document: str) -> str:
    """The document with what stands between the marks made anew."""
    before, _, rest = document.partition(_BEGIN)
    return f"{before}{_BEGIN}{signatures()}{_END}{rest.partition(_END)[2]}"


def examples() -> dict[str, str]:
    """A page with a program that uses a name, by name; those programs are run by the tests."""
    found: dict[str, str] = {}
    for path in sorted(REFERENCE.parent.glob("*.md"), key=lambda path: (path.name == "examples.md", path.name)):
        programs = "".join(
            re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        )
        for name in PUBLIC if path != REFERENCE else ():
            if re.search(rf"\b{name}\b", programs):
                found.setdefault(name, path.name)
    return found


def _entry(name: str, public: Any, example: str | None) -> str:
    lines = list(_lines(name, public))
    shown = f"\nExample: [{example}]({example}).\n" if example else ""
    return f"\n```python\n{chr(10).join(lines)}\n```\n{shown}" if lines else shown


def _lines(name: str, public: Any) -> Iterator[str]:
    if inspect.isfunction(public):
        yield f"{name}{_signature(public)}{_raised(public)}"
    elif not inspect.isclass(public):
        return
    elif issubclass(public, Exception):
        yield from _error(name, public)
    elif issubclass(public, Enum):
        yield f"class {name}(StrEnum):  # {', '.join(public)}"
    elif issubclass(public, Base):
        if public is not Base:
            yield f"class {name}(Base):"
            for column in public.__table__.columns:
                yield f"    {column.name}: {type(column.type).__name__}{' | None' if column.nullable else ''}"
    else:
        yield from _class(name, public)


def _error(name: str, public: type[Exception]) -> Iterator[str]:
    yield f"class {name}({', '.join(base.__name__ for base in public.__bases__)}):"
    yield from (f"    {field}: {kind}" for field, kind in _attributes(public).items())
    raisers = sorted(told for told, function in _functions() if name in _errors_of(function))
    if raisers:
        yield f"    # from {', '.join(raisers)}"


def _attributes(public: type[Exception]) -> dict[str, str]:
    """What instances carry that they have not from a public base: as `__init__` sets it, and as the class says."""
    found: dict[str, str] = {}
    tree = ast.parse(inspect.getsource(public)).body[0]
    assert isinstance(tree, ast.ClassDef)
    for line in tree.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            found[line.target.id] = ast.unparse(line.annotation)
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            given = {
                one.arg: ast.unparse(one.annotation) for one in line.args.args + line.args.kwonlyargs if one.annotation
            }
            for node in ast.walk(line):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    found.setdefault(node.attr, given.get(node.attr, "Any"))
    return {field: kind for field, kind in found.items() if not field.startswith("_") and "ClassVar" not in kind}


def _functions() -> Iterator[tuple[str, Any]]:
    """The public functions and methods, each by what it is called."""
    for name, public in PUBLIC.items():
        if inspect.isfunction(public):
            yield f"{name}()", public
        elif inspect.isclass(public) and not issubclass(public, (Base, Enum, Exception)):
            yield name, public
            yield from ((f"{name}.{member}()", value) for member, value in _members(public))


def _errors_of(function: Any) -> list[str]:
    """Our errors that its docstring says it raises."""
    _, _, told = (inspect.getdoc(function) or "").partition("Raises ")
    return [name for name in re.findall(r"`(\w+)`", told) if _is_error(name)]


def _is_error(name: str) -> bool:
    public = PUBLIC.get(name)
    return inspect.isclass(public) and issubclass(public, Exception)


def _raised(function: Any) -> str:
    errors = dict.fromkeys(_errors_of(function))
    return f"  # raises {', '.join(errors)}" if errors else ""


def _class(name: str, public: type[Any]) -> Iterator[str]:
    fields = _fields(public)
    made = "" if fields or "__init__" not in vars(public) else _signature(public.__init__, bound=True)
    made = "" if re.search(r"\b_[A-Z]", made) else made.partition(" -> ")[0]  # by the library alone
    bases = [base.__name__ for base in public.__mro__[1:] if base.__name__ in PUBLIC]
    yield f"class {name}{made}:{f'  # a {bases[0]}' if bases else ''}"
    yield from (f"    {field}" for field in fields)
    for member, value in _members(public):
        if isinstance(value, property):
            yield f"    {member}: {_returned(value.fget)}"
        else:
            word = "async def" if inspect.iscoroutinefunction(value) else "def"
            yield f"    {word} {member}{_signature(value, bound=True)}{_raised(value)}"


def _fields(public: type[Any]) -> list[str]:
    if dataclasses.is_dataclass(public):
        return [f"{one.name}: {one.type}" for one in dataclasses.fields(public) if not one.name.startswith("_")]
    if issubclass(public, tuple) and hasattr(public, "_fields"):
        kinds = [vars(one).get("__annotations__", {}) for one in public.__mro__]
        return [f"{name}: {_shown(next(one[name] for one in kinds if name in one))}" for name in public._fields]
    if hasattr(public, "model_fields"):
        kinds = vars(public)["__annotations__"]
        return [f"{field}: {kinds[field]}" for field in public.model_fields]
    return []


def _members(public: type[Any]) -> Iterator[tuple[str, Any]]:
    """What the class brings that a public base, or one of another library, has not; in the order of the code."""
    public_bases = [base for base in public.__mro__[1:] if base.__name__ in PUBLIC]
    shown_there = {above for base in public_bases for above in base.__mro__}
    own = [base for base in public.__mro__ if base.__module__.startswith("shared.db") and base not in shown_there]
    known = {name for base in public.__mro__ if base not in own for name in vars(base)} | {"merge_all"}  # of 2.1
    for name, value in {name: value for base in reversed(own) for name, value in vars(base).items()}.items():
        plain = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        documented = inspect.isfunction(plain) or isinstance(plain, property)
        if documented and not name.startswith("_") and name not in known and inspect.getdoc(plain):
            yield name, plain


def _signature(function: Any, *, bound: bool = False) -> str:
    signature = inspect.signature(inspect.unwrap(function))
    given = list(signature.parameters.values())[1 if bound else 0 :]
    shown = signature.replace(parameters=[one.replace(default=_Default(one.default)) for one in given])
    return str(shown).replace("'", "").replace('"', "'")


class _Default:
    """A default, as the code would have it."""

    def __new__(cls, value: Any) -> Any:
        return value if value is inspect.Parameter.empty else super().__new__(cls)

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        if isinstance(self._value, str):
            return f'"{self._value}"'
        return "..." if callable(self._value) or "<" in repr(self._value) else repr(self._value)


def _returned(function: Any) -> str:
    return _shown(inspect.signature(function).return_annotation)


def _shown(kind: Any) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__forward_arg__", None) or inspect.formatannotation(kind)


if __name__ == "__main__":
    REFERENCE.write_text(written(REFERENCE.read_text(encoding="utf-8")), encoding="utf-8")
