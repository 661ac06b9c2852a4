"""A package of somebody else with tables of its own, installed for one test as a wheel would be."""

from __future__ import annotations

import subprocess
import textwrap
from pathlib import Path

from shared.db.tests.forked import run_python

MODELS = """
    from datetime import datetime
    from decimal import Decimal

    from sqlalchemy import Boolean, DateTime, ForeignKey, Integer, LargeBinary, String, true
    from sqlalchemy.orm import Mapped, mapped_column

    from shared.db import SHARED_BY_ALL, Base, BoundedString, CheckedInteger, CheckedType, Money, Ownership, UTCDateTime


    class Odds(CheckedType):
        impl = String(40)
        cache_ok = True


    class Order(Base):
        __tablename__ = "orders"
        __ownership__ = Ownership("run_id")

        id: Mapped[int] = mapped_column(CheckedInteger(), primary_key=True, autoincrement=True)
        run_id: Mapped[str] = mapped_column(
            BoundedString(36), ForeignKey("runs.run_id", ondelete="CASCADE"), index=True
        )
        price: Mapped[Decimal] = mapped_column(Money())
        placed_ts: Mapped[datetime | None] = mapped_column(UTCDateTime())
        odds: Mapped[str | None] = mapped_column(Odds())
        #COLUMNS#


    class Ticker(Base):
        __tablename__ = "tickers"
        __ownership__ = SHARED_BY_ALL

        id: Mapped[int] = mapped_column(Integer, primary_key=True)
        symbol: Mapped[str] = mapped_column(String(20))
        is_live: Mapped[bool] = mapped_column(Boolean)
        seen: Mapped[datetime] = mapped_column(DateTime)
        depth: Mapped[int | None] = mapped_column(Integer)
"""


class Installed:
    """A folder of installed packages, in which processes of the test find them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.offered = folder, list[str]()
        folder.mkdir()

    def package(self, name: str, *, points: bool = True, columns: str = "", models: str = MODELS) -> Path:
        """Install a package with the tables `orders` and `tickers`, or replace it; its folder.

        With `points` it offers its models and its revisions by entry points. `columns` are further ones of `orders`.
        """
        package = self.folder / name
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text('"""Somebody else\'s."""\n')
        (package / "revisions").mkdir(exist_ok=True)
        (package / "models.py").write_text(textwrap.dedent(models).replace("#COLUMNS#", columns))
        metadata = self.folder / f"{name}-1.0.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        if points:
            self.offered.append(name)
            (metadata / "entry_points.txt").write_text(
                f"[shared.db.models]\n{name} = {name}.models\n[shared.db.revisions]\n{name} = {name}.revisions\n"
            )
        return package

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`python -m shared.db` with these arguments, where the packages are installed."""
        return self.python("-m", "shared.db", *arguments, **environment)

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Python, warnings being errors, where the packages are installed."""
        where = {
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "GRIDBOT_DB_PACKAGES": ",".join(["shared.db", *self.offered]),
        }
        return run_python("-W", "error", *arguments, environment=where | environment)

    def done(self, *arguments: str, **environment: str) -> str:
        """What a command printed that did what it was asked to."""
        result = self.run(*arguments, **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout
