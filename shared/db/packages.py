"""Packages that bring tables of their own: which are installed, and their models imported when a command needs them.

A package says so by an entry point of the group `shared.db.models`, whose value is the module of its models. What a
program imports by itself needs none: a class is in the registry as soon as it is mapped.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Final

from sqlalchemy.exc import InvalidRequestError

from shared.db.errors import PackageError

MODELS: Final = "shared.db.models"


def load(modules: Iterable[str] = ()) -> None:
    """Import the models of every package that is installed and offers some, and the modules that are named.

    Raises `PackageError` for models that cannot be imported, and `DeclarationError` for those that declare what
    cannot be.
    """
    offered = {point.module: point.name for point in sorted(entry_points(group=MODELS))}
    for module, name in (offered | {module: module for module in modules if module not in offered}).items():
        try:
            importlib.import_module(module)
        except (ImportError, InvalidRequestError) as error:
            raise PackageError(name, module, str(error)) from error
