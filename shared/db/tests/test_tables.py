"""What a table declares about itself, and what follows from it for a table that another package brings."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ForeignKey, delete, func, insert, literal, select, update
from sqlalchemy.orm import mapped_column, relationship

from shared.db import (
    SHARED_BY_ALL,
    Base,
    BoundedString,
    BybitAccount,
    CheckedBoolean,
    CheckedInteger,
    DatabaseFactory,
    DeclarationError,
    Money,
    Ownership,
    Reference,
    Run,
    SharedDBError,
    Strategy,
    TenantScopeError,
    TenantViolation,
    UndeclaredTableError,
    User,
    exact_sum,
)
from shared.db.tables import OWNERSHIP, columns_to_agree, model_of
from shared.db.tests.fleet import MYSQL, PLACES, fill
from shared.db.tests.outside import outside_tables, source_at


def a_table(ownership: Any, *columns: tuple[str, Any], name: str = "outside") -> type[Any]:
    """A mapped class with an id and these columns; `ownership` is left out if it is Ellipsis."""
    body: dict[str, Any] = {"__tablename__": name, "id": mapped_column(CheckedInteger(), primary_key=True)}
    body |= {key: mapped_column(*given) if isinstance(given, tuple) else given for key, given in columns}
    if ownership is not Ellipsis:
        body["__ownership__"] = ownership
    return type(name.title(), (Base,), body)


def key_of(target: str, **options: Any) -> Any:
    """A column that names a row of another table."""
    return mapped_column(BoundedString(36), ForeignKey(target, ondelete="CASCADE"), **options)


def text_column(**options: Any) -> Any:
    """A column without a foreign key."""
    return mapped_column(BoundedString(36), **options)


@pytest.fixture(autouse=True)
def _forgotten_afterwards() -> Iterator[None]:
    """No table of a test is there for the next one."""
    with outside_tables():
        yield


@pytest.fixture(params=(*PLACES, *MYSQL))
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseFactory]:
    """A filled database of the test's own, to which outside tables may be added; with policies in the fourth case."""
    with DatabaseFactory(source_at(request, tmp_path)) as db:
        db.create_tables()
        fill(db)
        yield db


def opened(house: DatabaseFactory, request: pytest.FixtureRequest) -> DatabaseFactory:
    """The house once its outside tables are declared: they are made, and policed where policies are in force."""
    house.create_tables()
    if request.node.callspec.params["house"] == "policies":
        house.enable_row_security()
    return house


@pytest.mark.parametrize(
    ("ownership", "columns", "told"),
    [
        (Ownership("run_id"), (), "no column run_id"),
        (Ownership("symbol"), (("symbol", text_column()),), "no path to a user_id"),
        (Ownership("run_id"), (("run_id", key_of("nowhere.id")),), "import its class first"),
        (Ownership("trade"), (("trade", mapped_column(ForeignKey("public_trades.id"))),), "belong to no user"),
        (Ownership("run_id", references=("account_id",)), (("run_id", key_of("runs.run_id")),), "no column account_id"),
        (
            Ownership("run_id", references=("account_id",)),
            (("run_id", key_of("runs.run_id")), ("account_id", text_column())),
            "Reference",
        ),
        (
            Ownership("run_id", references=(Reference("account_id", BybitAccount, agrees=("symbol",)),)),
            (("run_id", key_of("runs.run_id")), ("account_id", text_column())),
            "no column symbol",
        ),
        (
            Ownership("owner"),
            (
                (
                    "owner",
                    mapped_column(BoundedString(36), ForeignKey("runs.run_id"), ForeignKey("strategies.strategy_id")),
                ),
            ),
            "Run and Strategy",
        ),
        (None, (), "neither an Ownership nor SHARED_BY_ALL"),
        ("user_id", (), "neither an Ownership nor SHARED_BY_ALL"),
        (SHARED_BY_ALL, (("other", mapped_column(CheckedInteger(), primary_key=True)),), "several columns"),
        (Ownership("user_id", public="open"), (("user_id", text_column()),), "no column open"),
        (
            Ownership("user_id", public="open"),
            (("user_id", text_column()), ("open", mapped_column(CheckedInteger()))),
            "CheckedBoolean",
        ),
        (
            Ownership("user_id", public="open"),
            (("user_id", text_column()), ("open", mapped_column(CheckedBoolean(), nullable=True))),
            "never NULL",
        ),
        (
            Ownership("id", public="open"),
            (
                ("open", mapped_column(CheckedBoolean(), nullable=False)),
                ("id", mapped_column(ForeignKey("users.user_id"), primary_key=True)),
            ),
            "users themselves",
        ),
    ],
    ids=range(15),
)
def test_what_cannot_be_declared_is_refused_when_the_class_is_made(
    ownership: Any, columns: tuple[tuple[str, Any], ...], told: str
) -> None:
    """With what is wrong and what to do; no table is left for `create_tables()`."""
    before = dict(OWNERSHIP)
    with pytest.raises(DeclarationError, match=told) as refused:
        a_table(ownership, *columns)
    assert isinstance(refused.value, SharedDBError)
    assert "outside" not in Base.metadata.tables
    assert dict(OWNERSHIP) == before


def test_foreign_keys_tell_the_parents() -> None:
    """Those of the owner's column, and those of every other column that names rows of users."""
    model = a_table(
        Ownership("run_id"),
        ("run_id", key_of("runs.run_id")),
        ("strategy_id", key_of("strategies.strategy_id", nullable=True)),
        ("trade", mapped_column(ForeignKey("public_trades.id"))),
    )
    entry = OWNERSHIP[model]
    assert entry is not None
    assert entry.parent is Run
    assert entry.further == (Reference("strategy_id", Strategy, optional=True),)
    assert model_of(model.__table__) is model
    assert OWNERSHIP[a_table(Ownership("user_id"), ("user_id", key_of("users.user_id")), name="mine")] == Ownership(
        "user_id"
    )


def test_what_must_agree_is_asked_of_a_parent_from_then_on() -> None:
    """The registry is asked at the moment of use, and forgets what is thrown away."""
    assert columns_to_agree(Run) == ()
    with outside_tables():
        a_table(
            Ownership("user_id", references=(Reference("run_id", Run, agrees=("account_id",)),)),
            ("user_id", key_of("users.user_id")),
            ("account_id", key_of("bybit_accounts.account_id")),
            ("run_id", key_of("runs.run_id")),
        )
        assert columns_to_agree(Run) == ("account_id",)
    assert columns_to_agree(Run) == ()


def test_a_class_over_a_declared_table_declares_nothing() -> None:
    """It cannot take the table's rows from their owners."""

    class Again(Base):
        __table__ = Run.__table__
        __ownership__ = SHARED_BY_ALL

    assert model_of(Run.__table__) is Run
    assert Again not in OWNERSHIP


def orders() -> type[Any]:
    """A table of users' orders: two references, one of them optional, and an amount."""
    return a_table(
        Ownership("run_id"),
        ("run_id", key_of("runs.run_id")),
        ("strategy_id", key_of("strategies.strategy_id", nullable=True)),
        ("price", mapped_column(Money())),
        ("run", relationship(Run)),
        name="orders",
    )


def test_an_outside_table_is_confined_like_ours(house: DatabaseFactory, request: pytest.FixtureRequest) -> None:
    """Objects, statements, joins and subqueries meet the user's own rows alone."""
    order = orders()
    db = opened(house, request)
    for user in ("ann", "bob"):
        with db.get_session(user_id=user) as session:
            session.add(
                order(id=100 if user == "ann" else 200, run_id=f"run-{user}", strategy_id=f"str-{user}", price="1")
            )
            session.flush()
            session.execute(insert(order).values(run_id=f"run-{user}", strategy_id=None, price=Decimal("0.1")))
    with db.get_session(user_id="ann") as session:
        assert {row.run_id for row in session.scalars(select(order))} == {"run-ann"}
        assert session.get(order, 200) is None
        assert session.execute(select(exact_sum(order.price))).scalar_one() == Decimal("1.1")
        joined = select(order, Run).join(Run, literal(value=True), full=db.settings.port.name != "mysql")
        assert {(row[0].run_id, row[1].run_id) for row in session.execute(joined)} == {("run-ann", "run-ann")}
        assert session.scalar(select(select(func.count(order.id)).scalar_subquery())) == 2
        session.execute(update(order).values(price=Decimal(5)))
        session.execute(delete(order).where(order.price == 5, order.id != 100))
    with db.get_session() as session:
        found = session.execute(select(order.run_id, order.price).order_by(order.run_id, order.price)).all()
        assert found == [("run-ann", Decimal(5)), ("run-bob", Decimal("0.1")), ("run-bob", Decimal(1))]


@pytest.mark.parametrize("values", [{"run_id": "run-bob"}, {"run_id": "run-ann", "strategy_id": "str-bob"}], ids=str)
def test_an_outside_row_names_own_parents_only(
    house: DatabaseFactory, request: pytest.FixtureRequest, values: dict[str, Any]
) -> None:
    """As an object and in a statement; nothing is written."""
    order = orders()
    db = opened(house, request)
    for attempt in (
        lambda session: session.add(order(price=1, **values)),
        lambda session: session.execute(insert(order).values(price=1, **values)),
    ):

        def try_it(attempt: Any = attempt) -> None:
            with db.get_session(user_id="ann") as session:
                attempt(session)

        with pytest.raises(TenantViolation):
            try_it()
    with db.get_session() as session:
        assert session.scalars(select(order)).all() == []


def test_an_outside_table_of_nobody_is_everybodys(house: DatabaseFactory, request: pytest.FixtureRequest) -> None:
    """`SHARED_BY_ALL` opens it to every user, and to sessions that require one."""
    ticker = a_table(SHARED_BY_ALL, ("price", mapped_column(Money())), name="tickers")
    db = opened(house, request)
    with db.get_session(user_id="ann") as session:
        session.add(ticker(price="2.5"))
    with db.get_session(user_id="bob") as session:
        assert session.scalars(select(ticker.price)).all() == [Decimal("2.5")]
    if not db.settings.is_memory:
        strict = DatabaseFactory(db.settings.model_copy(update={"require_tenant": True}))
        with strict, strict.get_session() as session:
            assert session.scalars(select(ticker.price)).all() == [Decimal("2.5")]


def test_a_table_that_declares_nothing_is_refused(house: DatabaseFactory, request: pytest.FixtureRequest) -> None:
    """In a user's session, with the remedy; a plain session may use it."""
    note = a_table(Ellipsis, ("note", text_column()), name="notes")
    db = opened(house, request)
    with db.get_session() as session:
        session.add(note(note="plain"))

    def add() -> None:
        with db.get_session(user_id="ann") as session:
            session.add(note(note="mine"))

    with pytest.raises(UndeclaredTableError, match="__ownership__"):
        add()
    with db.get_session() as session:
        assert session.scalars(select(note.note)).all() == ["plain"]


def test_require_tenant_holds_for_outside_tables(house: DatabaseFactory, request: pytest.FixtureRequest) -> None:
    """A session without a user does not touch them."""
    order = orders()
    db = opened(house, request)
    if db.settings.is_memory:
        return
    strict = DatabaseFactory(db.settings.model_copy(update={"require_tenant": True}))
    with strict, strict.get_session() as session, pytest.raises(TenantScopeError):
        session.scalars(select(order))


def test_deleting_a_user_takes_outside_rows_along(house: DatabaseFactory, request: pytest.FixtureRequest) -> None:
    """By the cascade of the foreign keys, like the built-in tables."""
    order = orders()
    db = opened(house, request)
    with db.get_session(user_id="ann") as session:
        session.add(order(run_id="run-ann", price=1))
    with db.get_session() as session:
        session.delete(session.get_one(User, "ann"))
    with db.get_session() as session:
        assert session.scalars(select(order)).all() == []
