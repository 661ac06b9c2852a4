"""Tables of another package whose rows may be public, and two users' rows in them: "ann"'s and "bob"'s."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint, delete, select
from sqlalchemy.orm import Mapped, configure_mappers, mapped_column, relationship

from shared.db import (
    Base,
    BoundedString,
    CheckedBoolean,
    CheckedInteger,
    DatabaseFactory,
    Ownership,
    Stream,
    UTCDateTime,
)
from shared.db.tests.fleet import fill
from shared.db.tests.outside import outside_tables

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def _key(target: str | None = None, **options: Any) -> Any:
    keys = () if target is None else (ForeignKey(target, ondelete="CASCADE"),)
    return mapped_column(BoundedString(36), *keys, **options)


def _flag() -> Any:
    return mapped_column(CheckedBoolean(), default=False)


@contextmanager
def public_tables() -> Iterator[SimpleNamespace]:
    """The classes, in the block alone: templates, what hangs on them, and what names them."""
    with outside_tables():

        class Template(Base):
            __tablename__ = "templates"
            __ownership__ = Ownership("user_id", public="is_public")

            template_id: Mapped[str] = _key(primary_key=True)
            user_id: Mapped[str] = _key("users.user_id", index=True)
            name: Mapped[str] = mapped_column(BoundedString(50))
            is_public: Mapped[bool] = _flag()

            steps: Mapped[list[Any]] = relationship("Step", cascade="all, delete-orphan", passive_deletes=True)
            subscriptions: Mapped[list[Any]] = relationship("Subscription", back_populates="template")

        class Step(Base):
            """Private, whatever its template is."""

            __tablename__ = "steps"
            __ownership__ = Ownership("template_id")

            step_id: Mapped[str] = _key(primary_key=True)
            template_id: Mapped[str] = _key("templates.template_id", index=True)

        class Page(Base):
            """Of a run's user, by way of the run."""

            __tablename__ = "pages"
            __ownership__ = Ownership("run_id", public="shown")

            page_id: Mapped[str] = _key(primary_key=True)
            run_id: Mapped[str] = _key("runs.run_id", index=True)
            template_id: Mapped[str | None] = _key("templates.template_id", index=True)
            name: Mapped[str] = mapped_column(BoundedString(50))
            shown: Mapped[bool] = _flag()

        class Subscription(Base):
            __tablename__ = "subscriptions"
            __ownership__ = Ownership("user_id")

            subscription_id: Mapped[str] = _key(primary_key=True)
            user_id: Mapped[str] = _key("users.user_id", index=True)
            template_id: Mapped[str] = _key("templates.template_id", index=True)
            page_id: Mapped[str | None] = _key("pages.page_id", index=True)
            status: Mapped[str] = mapped_column(BoundedString(20), default="active")

            template: Mapped[Template] = relationship(back_populates="subscriptions")

        class Folder(Base):
            """Has pages without a relationship back: what it loses or is given, only a flush tells."""

            __tablename__ = "folders"
            __ownership__ = Ownership("user_id", public="is_public")

            folder_id: Mapped[str] = _key(primary_key=True)
            user_id: Mapped[str] = _key("users.user_id", index=True)
            is_public: Mapped[bool] = _flag()

            sheets: Mapped[list[Any]] = relationship("Sheet", cascade="all, delete-orphan")
            loose: Mapped[list[Any]] = relationship("Sheet", overlaps="sheets")

        class Sheet(Base):
            __tablename__ = "sheets"
            __ownership__ = Ownership("user_id", public="is_public")

            sheet_id: Mapped[str] = _key(primary_key=True)
            user_id: Mapped[str] = _key("users.user_id", index=True)
            folder_id: Mapped[str | None] = _key("folders.folder_id", index=True)
            is_public: Mapped[bool] = _flag()

        class Quote(Base):
            __tablename__ = "quotes"
            __ownership__ = Ownership("user_id", public="is_public")
            __table_args__ = (UniqueConstraint("symbol", "quoted_ts", "source"),)
            __stream__ = Stream(by="symbol", time="quoted_ts", tie="source")

            id: Mapped[int] = mapped_column(CheckedInteger(), primary_key=True, autoincrement=True)
            user_id: Mapped[str] = _key("users.user_id", index=True)
            symbol: Mapped[str] = mapped_column(BoundedString(20))
            quoted_ts: Mapped[datetime] = mapped_column(UTCDateTime())
            source: Mapped[str] = mapped_column(BoundedString(50))
            is_public: Mapped[bool] = _flag()

        configure_mappers()
        found = (Template, Step, Page, Subscription, Folder, Sheet, Quote)
        yield SimpleNamespace(**{model.__name__: model for model in found})


def fill_public(db: DatabaseFactory, m: Any) -> None:
    """All rows of both users, in place of what is there: each has a public one ("pub") and a private one ("own")."""
    fill(db)
    with db.get_session() as session:
        for model in (m.Subscription, m.Step, m.Page, m.Sheet, m.Folder, m.Template, m.Quote):
            session.execute(delete(model))
        for user in ("ann", "bob"):
            for kind, public in (("pub", True), ("own", False)):
                name = f"{kind}-{user}"
                session.add_all(
                    [
                        m.Template(template_id=name, user_id=user, name=name, is_public=public),
                        m.Page(page_id=name, run_id=f"run-{user}", name=name, shown=public),
                        m.Quote(user_id=user, symbol="BTCUSDT", quoted_ts=NOON, source=name, is_public=public),
                        m.Folder(folder_id=name, user_id=user, is_public=public),
                    ]
                )
                session.flush()
                session.add_all(
                    [
                        m.Step(step_id=name, template_id=name),
                        m.Sheet(sheet_id=name, user_id=user, folder_id=name, is_public=public),
                        m.Subscription(subscription_id=name, user_id=user, template_id=f"pub-{user}"),
                    ]
                )
        session.flush()
        session.add(m.Subscription(subscription_id="sub", user_id="ann", template_id="pub-bob", page_id="pub-bob"))


def rows_of_bob(db: DatabaseFactory, m: Any) -> dict[str, list[Any]]:
    """All that bob has in these tables."""
    found = {}
    with db.get_session() as session:
        for model in (m.Template, m.Step, m.Page, m.Subscription, m.Folder, m.Sheet, m.Quote):
            rows = session.execute(select(model.__table__).order_by(*model.__table__.primary_key.columns))
            found[model.__tablename__] = [tuple(row) for row in rows if "bob" in row or str(row[0]).endswith("-bob")]
    return found
