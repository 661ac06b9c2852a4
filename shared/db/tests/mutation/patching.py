"""Put a mutation into the modules of a running process, in place: objects that refer to them see it too."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cached_property, lru_cache
from types import CodeType
from typing import Any, NamedTuple

from sqlalchemy import event

from shared.db import tables
from shared.db.tests.mutation.guards import PACKAGE, Mutation


def differences(mutation: Mutation) -> dict[str, tuple[ast.stmt, ast.stmt]]:
    """The functions and constants that differ, by name: as they are, and as the mutation has them."""
    before = _parts((PACKAGE / mutation.module).read_text(encoding="utf-8"))
    after = _parts(mutation.source)
    return {
        name: (before[name].node, after[name].node)
        for name in before
        if before[name].text != after[name].text and ast.dump(before[name].node) != ast.dump(after[name].node)
    }


def apply(mutation: Mutation) -> None:
    """Have every function, listener and constant that differs in the mutated source be as it is there."""
    module = importlib.import_module("shared.db." + mutation.module.removesuffix(".py").replace("/", "."))
    compiled = compile(mutation.source, str(PACKAGE / mutation.module), "exec")
    codes = {code.co_qualname: code for code in _codes(compiled)}
    changed = differences(mutation)
    assert changed, f"{mutation.name} changes nothing"
    for name, (old, new) in changed.items():
        if isinstance(old, ast.FunctionDef):
            assert isinstance(new, ast.FunctionDef)
            function = _function(module, name)
            for listener in old.decorator_list[len(new.decorator_list) :]:
                assert isinstance(listener, ast.Call)
                target, identifier = (eval(ast.unparse(argument), vars(module)) for argument in listener.args)
                event.remove(target, identifier, function)
            function.__code__ = codes[name]
        elif name.endswith(".__ownership__"):
            assert isinstance(new, ast.Assign)
            tables.redeclare(vars(module)[name.partition(".")[0]], eval(ast.unparse(new.value), vars(module)))
        else:
            namespace = {"__name__": module.__name__}
            exec(compiled, namespace)
            value: Any = namespace[name]
            if isinstance(value, dict):  # which other modules have imported
                vars(module)[name].update(value)
            else:
                setattr(module, name, value)


class _Part(NamedTuple):
    node: ast.stmt
    text: list[str]


@lru_cache(maxsize=2)
def _parts(source: str) -> dict[str, _Part]:
    """Functions and declared ownerships by their qualified name, the module's assignments by the name assigned to."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{method.name}": method for method in node.body if isinstance(method, ast.FunctionDef)
            }
            found |= {
                f"{node.name}.__ownership__": line
                for line in node.body
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "__ownership__"
            }
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[ast.unparse(target)] = node
    lines = source.splitlines()
    return {name: _Part(node, lines[_first_line(node) - 1 : node.end_lineno]) for name, node in found.items()}


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _function(module: Any, name: str) -> Any:
    """The function itself, whatever it is wrapped in."""
    owner, _, last = name.rpartition(".")
    found = vars(vars(module)[owner])[last] if owner else vars(module)[last]
    if isinstance(found, property):
        found = found.fget
    elif isinstance(found, cached_property):
        found = found.func
    return inspect.unwrap(getattr(found, "__func__", found))
