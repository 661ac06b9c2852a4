"""`python -m shared.db docs`: the pages of the documentation, which are installed with the package."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import shared.db
from shared.db.errors import InputError

_FOLDER = Path(shared.db.__file__).parent / "docs"


def add_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Give `parser` its arguments; the function that runs the command."""
    parser.add_argument("page", nargs="?", help="the name of a page, to print it (default: say which there are)")

    def run(options: argparse.Namespace) -> int:
        pages = {path.stem: path for path in sorted(_FOLDER.glob("*.md"))}
        if options.page is None:
            print(_FOLDER)
            width = max(map(len, pages))
            for name, path in pages.items():
                print(f"  {name:<{width}}  {path.read_text(encoding='utf-8').partition(chr(10))[0].lstrip('# ')}")
        elif (name := options.page.removesuffix(".md")) in pages:
            print(pages[name].read_text(encoding="utf-8"), end="")
        else:
            raise InputError(f"there is no page {options.page!r}; without a name the command says which there are")
        return 0

    return run
