"""A public row of another user's: seen in every position of a statement, written in none; a private one never seen."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import URL, delete, func, insert, inspect, literal, select, text, union_all, update
from sqlalchemy.orm import aliased, joinedload, make_transient_to_detached, selectinload, subqueryload

from shared.db import (
    DatabaseFactory,
    DatabaseSettings,
    Ownership,
    Repository,
    RowNotFoundError,
    TenantViolation,
    User,
)
from shared.db.dialects import MYSQL as MYSQL_PORT
from shared.db.tables import redeclare
from shared.db.testing import run_on_mysql
from shared.db.tests.fleet import MYSQL, PLACES
from shared.db.tests.public_rows import NOON, fill_public, public_tables, rows_of_bob
from shared.db.tests.support import run_on_server

SEEN = {"pub-ann", "own-ann", "pub-bob"}


@dataclass(frozen=True)
class House:
    """A database with these tables, and whether the server's policies are in force there."""

    db: DatabaseFactory
    m: Any
    policed: bool

    def ann(self, **options: Any) -> Any:
        """A session of ann's."""
        return self.db.get_session(user_id="ann", **options)


@pytest.fixture(scope="module", params=PLACES + MYSQL)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The database of each kind, made once for all tests here."""
    name = f"shared_db_public_{os.getpid()}"
    server: URL | None = None
    if request.param == "mysql":
        server = request.getfixturevalue("mysql_server")
        run_on_mysql(server, f"CREATE DATABASE {name}")
    elif request.param in ("postgresql", "policies"):
        server = request.getfixturevalue("postgresql_server")
        run_on_server(server, f"CREATE DATABASE {name}")
    if server is not None:
        url = server.set(database=name).render_as_string(hide_password=False)
        settings = DatabaseSettings(database_url=url, _env_file=None)
    else:
        file = str(tmp_path_factory.mktemp("public") / "grid_bot.db")
        settings = DatabaseSettings(db_name=":memory:" if request.param == "memory" else file, _env_file=None)
    with public_tables() as m, DatabaseFactory(settings) as db:
        db.create_tables()
        if request.param == "policies":
            db.enable_row_security()
        yield House(db, m, request.param == "policies")
    if server is not None and request.param == "mysql":
        run_on_mysql(server, f"DROP DATABASE {name}")
    elif server is not None:
        run_on_server(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def house(made: House) -> House:
    """The same with all rows as they were."""
    fill_public(made.db, made.m)
    return made


def _full_join(s: Any, m: Any) -> Any:
    if s.get_bind().dialect.name in ("mysql", "mariadb"):
        return s.scalars(select(m.Template.name))  # which has no full join
    return s.scalars(select(m.Template.name).join(User, literal(value=True), full=True).where(m.Template.name != ""))


READS: dict[str, Callable[[Any, Any], Any]] = {
    "an entity": lambda s, m: [t.name for t in s.scalars(select(m.Template))],
    "a column": lambda s, m: s.scalars(select(m.Template.name)),
    "an alias": lambda s, m: s.scalars(select(aliased(m.Template).name)),
    "a join": lambda s, m: s.scalars(select(m.Template.name).join(User, literal(value=True))),
    "an outer join": lambda s, m: s.scalars(
        select(m.Template.name).select_from(User).outerjoin(m.Template, literal(value=True))
    ),
    "a full join": _full_join,
    "a subquery": lambda s, m: s.scalars(select(select(m.Template.name).subquery().c.name)),
    "a CTE": lambda s, m: s.scalars(select(select(m.Template.name).cte("these").c.name)),
    "a union": lambda s, m: s.scalars(union_all(select(m.Template.name), select(m.Template.name))),
    "IN": lambda s, m: s.scalars(select(m.Page.name).where(m.Page.name.in_(select(m.Template.name)))),
    "EXISTS": lambda s, m: s.scalars(
        select(m.Page.name).where(select(m.Template.name).where(m.Template.name == m.Page.name).exists())
    ),
    "a limit": lambda s, m: s.scalars(select(m.Template.name).limit(100)),
    "a window": lambda s, m: [n for n, _ in s.execute(select(m.Template.name, func.count().over()))],
    "an indirect owner": lambda s, m: s.scalars(select(m.Page.name)),
    "an alias of an indirect owner": lambda s, m: s.scalars(select(aliased(m.Page).name)),
    "get": lambda s, m: [t.name for name in (*SEEN, "own-bob") if (t := s.get(m.Template, name)) is not None],
    "refresh": lambda s, m: [s.refresh(t) or t.name for t in s.scalars(select(m.Template))],
    "a repository": lambda s, m: [t.name for t in Repository(s, m.Template).get_all()],
    "a repository by key": lambda s, m: [
        t.name for n in (*SEEN, "own-bob") if (t := Repository(s, m.Template).get_by_id(n)) is not None
    ],
    "a range": lambda s, m: [row.source for row in Repository(s, m.Quote).iter_range("BTCUSDT")],
    "a range of objects": lambda s, m: [
        q.source for q in Repository(s, m.Quote).iter_range("BTCUSDT", as_objects=True)
    ],
    "a frame": lambda s, m: Repository(s, m.Quote).to_arrow("BTCUSDT").column("source").to_pylist(),
    "a stream of objects": lambda s, m: s.scalars(select(m.Quote.source).execution_options(yield_per=1)),
}


@pytest.mark.parametrize("read_only", [False, True], ids=["writing", "reading"])
def test_own_and_public_rows_are_seen(house: House, read_only: bool) -> None:
    """In every position; another user's private row in none."""
    for position, read in READS.items():
        with house.ann(read_only=read_only) as session:
            assert set(read(session, house.m)) == SEEN, position


def test_a_plain_session_is_told_whose_eyes_to_read_with(house: House) -> None:
    """A repository with a `user_id` reads what a session of that user would."""
    m = house.m
    with house.db.get_session() as session:
        templates, quotes = Repository(session, m.Template, "ann"), Repository(session, m.Quote, "ann")
        assert {found.name for found in templates.get_all()} == SEEN
        assert [name for name in (*SEEN, "own-bob") if templates.get_by_id(name) is None] == ["own-bob"]
        assert {row.source for row in quotes.iter_range("BTCUSDT")} == SEEN
        assert set(quotes.to_arrow("BTCUSDT").column("source").to_pylist()) == SEEN
        assert quotes.coverage()[0].count == 3


def test_counts_and_coverage_are_of_what_is_seen(house: House) -> None:
    """Own and public rows are counted, and nothing else."""
    with house.ann() as session:
        assert session.scalar(select(func.count()).select_from(house.m.Template)) == 3
        assert session.scalar(select(select(func.count(house.m.Page.page_id)).scalar_subquery())) == 3
        (covered,) = Repository(session, house.m.Quote).coverage()
        assert covered.count == 3


@pytest.mark.parametrize("load", [None, joinedload, selectinload, subqueryload])
def test_a_row_leads_to_the_public_one_it_names(house: House, load: Any) -> None:
    """By a lazy load and every eager one; once it is private, to nothing."""
    m = house.m
    statement = select(m.Subscription).where(m.Subscription.subscription_id == "sub")
    if load is not None:
        statement = statement.options(load(m.Subscription.template))
    with house.ann() as session:
        assert session.scalars(statement).one().template.name == "pub-bob"
    with house.db.get_session(user_id="bob") as session:
        session.get_one(m.Template, "pub-bob").is_public = False
    with house.ann() as session:
        found = session.scalars(statement).one()
        assert found.template is None
        assert found.template_id == "pub-bob"


def test_what_hangs_on_a_public_row_stays_private(house: House) -> None:
    """The column opens its own row alone, also where a parent's rows are read on the way."""
    with house.ann() as session:
        assert set(session.scalars(select(house.m.Step.step_id))) == {"pub-ann", "own-ann"}
        assert session.get_one(house.m.Template, "pub-bob").steps == []
        assert set(session.scalars(select(aliased(house.m.Step).step_id))) == {"pub-ann", "own-ann"}


LOCKED: dict[str, Callable[[Any, Any], Any]] = {
    "an entity": lambda s, m: [t.name for t in s.scalars(select(m.Template).with_for_update())],
    "a share": lambda s, m: s.scalars(select(m.Template.name).with_for_update(read=True)),
    "a subquery": lambda s, m: s.scalars(select(select(m.Template.name).subquery().c.name).with_for_update()),
    "a subquery by name": lambda s, m: s.scalars(
        select((named := select(m.Template.name).subquery()).c.name).with_for_update(of=named)
    ),
    "an outer join": lambda s, m: s.scalars(
        # PostgreSQL locks none of what a join can make up.
        select(m.Template.name).with_for_update()
        if "postgresql" in str(s.get_bind().url)
        else select(m.Template.name).select_from(User).outerjoin(m.Template, literal(value=True)).with_for_update()
    ),
    "what is named": lambda s, m: s.scalars(
        select(m.Template.name).join(User, literal(value=True)).with_for_update(of=m.Template)
    ),
    "an alias that is named": lambda s, m: s.scalars(
        select((also := aliased(m.Template)).name).join(User, literal(value=True)).with_for_update(of=also)
    ),
    "get": lambda s, m: [
        t.name for name in (*SEEN, "own-bob") if (t := s.get(m.Template, name, with_for_update=True)) is not None
    ],
}


@pytest.mark.parametrize("read", LOCKED)
def test_own_rows_alone_are_locked(house: House, read: str) -> None:
    """To lock a row keeps its owner from writing it, so another user's public row is not there for that."""
    with house.ann() as session:
        assert set(LOCKED[read](session, house.m)) == {"pub-ann", "own-ann"}


def test_what_is_not_locked_is_read_beside(house: House) -> None:
    """`of=` names what is locked; MariaDB, which has no such word, locks and shows own rows alone."""
    m = house.m
    statement = select(m.Template.name).join(m.Subscription, m.Subscription.template_id == m.Template.template_id)
    with house.ann() as session:
        found = set(session.scalars(statement.with_for_update(of=m.Subscription)))
    assert found == ({"pub-ann"} if house.db.settings.port is MYSQL_PORT else {"pub-ann", "pub-bob"})


def _with(model: str, key: str, change: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A change of an object, and the flush."""

    def write(s: Any, m: Any) -> None:
        change(s, s.get_one(getattr(m, model), key))
        s.flush()

    return write


def _loaded_before(s: Any, m: Any, model: str, key: str, **values: Any) -> Any:
    """A detached object that claims to have a row."""
    name = inspect(getattr(m, model)).primary_key[0].name
    found = getattr(m, model)(**{name: key})
    make_transient_to_detached(found)
    s.add(found)
    for column, value in values.items():
        setattr(found, column, value)
    s.flush()


REFUSED: dict[str, Callable[[Any, Any], Any]] = {
    "a change": _with("Template", "pub-bob", lambda s, t: setattr(t, "name", "x")),
    "a change of an indirect owner's": _with("Page", "pub-bob", lambda s, p: setattr(p, "name", "x")),
    "taking it": _with("Template", "pub-bob", lambda s, t: setattr(t, "user_id", "ann")),
    "taking it by its parent": _with("Page", "pub-bob", lambda s, p: setattr(p, "run_id", "run-ann")),
    "hiding it": _with("Template", "pub-bob", lambda s, t: setattr(t, "is_public", False)),
    "a delete": _with("Template", "pub-bob", lambda s, t: s.delete(t)),
    "a delete of an indirect owner's": _with("Page", "pub-bob", lambda s, p: s.delete(p)),
    "a change of what was never loaded": lambda s, m: _loaded_before(s, m, "Template", "pub-bob", name="x"),
    "taking what was never loaded": lambda s, m: _loaded_before(s, m, "Template", "pub-bob", user_id="ann"),
    "an object of a private one": lambda s, m: _loaded_before(s, m, "Template", "own-bob"),
    "a change of a private one": lambda s, m: _loaded_before(s, m, "Template", "own-bob", name="x"),
    "merge": lambda s, m: (s.merge(m.Template(template_id="pub-bob", name="x")), s.flush()),
    "merge to take it": lambda s, m: (s.merge(m.Template(template_id="pub-bob", user_id="ann")), s.flush()),
    "merge of a private one": lambda s, m: s.merge(m.Template(template_id="own-bob", user_id="ann")),
    "an orphan": _with("Folder", "pub-bob", lambda s, f: f.sheets.clear()),
    "what a relationship loses": _with("Folder", "pub-bob", lambda s, f: f.loose.clear()),
    "what a relationship is given": lambda s, m: (
        (own := s.get_one(m.Folder, "pub-ann")).loose.append(s.get_one(m.Sheet, "pub-bob")),
        s.flush(),
        own,
    ),
    "what a new parent is given": lambda s, m: (
        s.add(m.Folder(folder_id="new", user_id="ann", loose=[s.get_one(m.Sheet, "pub-bob")])),
        s.flush(),
    ),
    "a child": lambda s, m: (s.add(m.Step(step_id="x", template_id="pub-bob")), s.flush()),
    "a child by its parent": lambda s, m: (
        (public := s.get_one(m.Template, "pub-bob")).steps.append(m.Step(step_id="x")),
        s.flush(),
        public,
    ),
    "an insert of a child": lambda s, m: s.execute(insert(m.Step).values(step_id="x", template_id="pub-bob")),
    "an insert for another": lambda s, m: s.execute(
        insert(m.Template).values(template_id="x", user_id="bob", name="x", is_public=True)
    ),
    "an object for another": lambda s, m: (
        s.add(m.Template(template_id="x", user_id="bob", name="x", is_public=True)),
        s.flush(),
    ),
    "an own one given away": _with("Template", "pub-ann", lambda s, t: setattr(t, "user_id", "bob")),
    "an update by key": lambda s, m: s.execute(update(m.Template), [{"template_id": "pub-bob", "name": "x"}]),
    "a name of a private one": lambda s, m: (
        s.add(m.Subscription(subscription_id="x", user_id="ann", template_id="own-bob")),
        s.flush(),
    ),
    "a name of a private indirect owner's": lambda s, m: (
        s.add(m.Subscription(subscription_id="x", user_id="ann", template_id="own-ann", page_id="own-bob")),
        s.flush(),
    ),
    "a change to the name of a private one": _with(
        "Subscription", "sub", lambda s, x: setattr(x, "template_id", "own-bob")
    ),
    "an insert that names a private one": lambda s, m: s.execute(
        insert(m.Subscription).values(subscription_id="x", user_id="ann", template_id="own-bob")
    ),
    "many rows, one of which names a private one": lambda s, m: Repository(s, m.Subscription).bulk_create(
        [
            {"subscription_id": f"x{n}", "user_id": "ann", "template_id": name}
            for n, name in enumerate(["pub-bob", "own-bob"])
        ]
    ),
    "many rows of another's": lambda s, m: Repository(s, m.Template).bulk_create(
        [{"template_id": "x", "user_id": "bob", "name": "x"}]
    ),
    "an upsert": lambda s, m: Repository(s, m.Quote).bulk_create(
        [{"user_id": "ann", "symbol": "BTCUSDT", "quoted_ts": NOON, "source": "pub-bob", "is_public": False}],
        on_conflict="update",
    ),
    "a repository's update": lambda s, m: Repository(s, m.Template).update(m.Template(template_id="pub-bob", name="x")),
    "a repository's delete": lambda s, m: Repository(s, m.Template).delete(s.get_one(m.Template, "pub-bob")),
    "a repository's bulk_update": lambda s, m: Repository(s, m.Template).bulk_update(
        [{"template_id": "pub-bob", "name": "x"}]
    ),
    "a repository's update of an indirect owner's": lambda s, m: Repository(s, m.Page).update(
        m.Page(page_id="pub-bob", name="x")
    ),
    "bulk_save_objects": lambda s, m: s.bulk_save_objects([m.Template(template_id="pub-bob", name="x")]),
}


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "savepoint"])
@pytest.mark.parametrize("write", REFUSED)
def test_another_users_public_row_is_never_written(house: House, write: str, nested: bool) -> None:
    """As an object and in statements: refused by name, and nothing of it is stored, in a savepoint either."""
    before = rows_of_bob(house.db, house.m)

    def try_it() -> None:
        with house.ann() as session:
            if not nested:
                REFUSED[write](session, house.m)
                return
            with pytest.raises(TenantViolation), session.begin_nested():
                REFUSED[write](session, house.m)
            session.expunge_all()

    if nested:
        try_it()
    else:
        with pytest.raises(TenantViolation) as refused:
            try_it()
        assert "bob" not in str(refused.value)
    assert rows_of_bob(house.db, house.m) == before


PASSED_BY: dict[str, Callable[[Any], Any]] = {
    "UPDATE": lambda m: update(m.Template).values(name="x"),
    "UPDATE of an indirect owner's": lambda m: update(m.Page).values(name="x"),
    "UPDATE by a condition": lambda m: update(m.Template).where(m.Template.name == "pub-bob").values(name="x"),
    "UPDATE by a subquery": lambda m: update(m.Page).where(m.Page.name.in_(select(m.Template.name))).values(name="x"),
    "DELETE": lambda m: delete(m.Template),
    "DELETE of an indirect owner's": lambda m: delete(m.Page),
    "DELETE by a condition": lambda m: delete(m.Template).where(m.Template.name == "pub-bob"),
}


@pytest.mark.parametrize("synchronize", ["auto", "fetch", False])
@pytest.mark.parametrize("write", PASSED_BY)
def test_statements_pass_it_by(house: House, write: str, synchronize: Any) -> None:
    """They change and delete own rows alone, and objects of the others in the session stay as they are."""
    m = house.m
    before = rows_of_bob(house.db, m)
    with house.ann() as session:
        held = [session.get_one(m.Template, "pub-bob"), session.get_one(m.Page, "pub-bob")]
        session.execute(PASSED_BY[write](m), execution_options={"synchronize_session": synchronize})
        assert all(one in session and inspect(one).persistent and one.name == "pub-bob" for one in held)
    assert rows_of_bob(house.db, m) == before
    with house.db.get_session() as session:
        changed = session.scalars(select(m.Page.name if "indirect" in write else m.Template.name)).all()
        assert "condition" in write or "subquery" in write or "pub-ann" not in changed


def test_a_plain_session_writes_for_its_user_alone(house: House) -> None:
    """A repository with a `user_id` names public rows and writes none of them."""
    m = house.m
    before = rows_of_bob(house.db, m)
    for write in (
        lambda s: Repository(s, m.Template, "ann").update(m.Template(template_id="pub-bob", name="x")),
        lambda s: Repository(s, m.Page, "ann").update(m.Page(page_id="pub-bob", name="x")),
        lambda s: Repository(s, m.Template, "ann").delete(m.Template(template_id="pub-bob")),
        lambda s: Repository(s, m.Template, "ann").bulk_update([{"template_id": "pub-bob", "name": "x"}]),
        lambda s: Repository(s, m.Subscription, "ann").create(
            m.Subscription(subscription_id="x", user_id="ann", template_id="own-bob")
        ),
    ):
        with pytest.raises(TenantViolation), house.db.get_session() as session:
            write(session)
    with pytest.raises(TenantViolation), house.db.get_session() as session:
        public = session.get_one(m.Template, "pub-bob")
        public.name = "x"
        row = m.Subscription(subscription_id="x", user_id="ann", template=public)
        Repository(session, m.Subscription, "ann").create(row)
    with pytest.raises(RowNotFoundError), house.db.get_session() as session:
        Repository(session, m.Template, "ann").update(m.Template(template_id="own-bob", name="x"))
    assert rows_of_bob(house.db, m) == before
    with house.db.get_session() as session:
        public = session.get_one(m.Template, "pub-bob")
        Repository(session, m.Subscription, "ann").create(
            m.Subscription(subscription_id="x", user_id="ann", template=public)
        )
    assert rows_of_bob(house.db, m) == before


@pytest.mark.parametrize("how", ["key", "object", "detached", "statement", "many", "merge"])
def test_own_rows_name_public_ones(house: House, how: str) -> None:
    """By the key, by an object of this session or another's, in a statement, by the million; and are changed later."""
    m = house.m
    row = {"subscription_id": "new", "user_id": "ann"}
    with house.ann() as session:
        elsewhere = session.get_one(m.Template, "pub-bob")
    with house.ann() as session:
        if how == "key":
            session.add(m.Subscription(**row, template_id="pub-bob", page_id="pub-bob"))
        elif how == "object":
            session.add(m.Subscription(**row, template=session.get_one(m.Template, "pub-bob")))
        elif how == "detached":
            session.add(m.Subscription(**row, template=elsewhere))
        elif how == "merge":
            session.merge(m.Subscription(**row, template=elsewhere))
        elif how == "statement":
            session.execute(insert(m.Subscription).values(**row, template_id="pub-bob", page_id="pub-bob"))
        else:
            Repository(session, m.Subscription).bulk_create([row | {"template_id": "pub-bob", "page_id": "pub-bob"}])
    with house.ann() as session:
        found = session.get_one(m.Subscription, "new")
        assert found.template.name == "pub-bob"
        found.template_id = "own-ann"
        session.flush()
        found.template_id = "pub-bob"
    with house.ann() as session:
        found = session.get_one(m.Subscription, "new")
        assert found.template is not None
        found.status = "paused"
    with house.ann() as session:  # linked to what is loaded, and changed elsewhere
        found.status = "over"
        assert Repository(session, m.Subscription).update(found).status == "over"


def test_a_row_that_was_public_can_be_left(house: House) -> None:
    """Rows that name it are changed and deleted as before, by objects and statements; it is not named anew."""
    m = house.m
    with house.ann() as session:
        known = session.get_one(m.Subscription, "sub")
    with house.db.get_session(user_id="bob") as session:
        session.get_one(m.Template, "pub-bob").is_public = False
    with house.ann() as session:
        session.add(known)
        known.status = "cancelled"
        session.flush()
        session.execute(update(m.Subscription).values(status="over"))
        assert Repository(session, m.Subscription).bulk_update([{"subscription_id": "sub", "status": "gone"}]) == 1
    with pytest.raises(TenantViolation), house.ann() as session:
        session.add(m.Subscription(subscription_id="x", user_id="ann", template_id="pub-bob"))
    with house.ann() as session:
        session.delete(session.get_one(m.Subscription, "sub"))


def test_a_deleted_public_row_takes_along_what_names_it(house: House) -> None:
    """As the foreign key says, across users."""
    with house.db.get_session(user_id="bob") as session:
        session.execute(delete(house.m.Template).where(house.m.Template.template_id == "pub-bob"))
    with house.ann() as session:
        assert session.get(house.m.Subscription, "sub") is None


def test_what_was_public_a_moment_ago_is_not_named_by_a_long_session(house: House) -> None:
    """What others publish is asked for each time: they may have taken it back."""
    if house.db.settings.is_sqlite:
        return  # a session that writes keeps all others from writing
    m = house.m
    with pytest.raises(TenantViolation), house.ann() as session:
        session.add(m.Subscription(subscription_id="x", user_id="ann", template_id="pub-bob"))
        session.commit()
        with house.db.get_session(user_id="bob") as other:
            other.get_one(m.Template, "pub-bob").is_public = False
        session.add(m.Subscription(subscription_id="y", user_id="ann", template_id="pub-bob"))


RAW: dict[str, tuple[type[TenantViolation] | None, int]] = {
    "UPDATE templates SET name = 'x'": (None, 2),
    "UPDATE pages SET name = 'x' WHERE page_id = 'pub-bob'": (None, 0),
    "DELETE FROM templates WHERE template_id LIKE '%bob'": (None, 0),
    "DELETE FROM pages WHERE page_id LIKE '%bob'": (None, 0),
    "SELECT name FROM templates WHERE template_id = 'pub-bob' FOR UPDATE": (None, 0),
    "SELECT name FROM templates WHERE template_id = 'pub-bob' FOR KEY SHARE": (None, 0),
    "SELECT name FROM templates WHERE template_id LIKE '%bob'": (None, 1),
    "SELECT name FROM pages WHERE page_id LIKE '%bob'": (None, 1),
    "INSERT INTO subscriptions VALUES ('x', 'ann', 'own-bob', NULL, 'active')": (TenantViolation, 0),
    "INSERT INTO subscriptions VALUES ('x', 'ann', 'pub-bob', 'own-bob', 'active')": (TenantViolation, 0),
    "INSERT INTO subscriptions VALUES ('x', 'ann', 'pub-bob', 'pub-bob', 'active')": (None, 1),
    "INSERT INTO steps VALUES ('x', 'pub-bob')": (TenantViolation, 0),
    "INSERT INTO templates VALUES ('x', 'bob', 'x', true)": (TenantViolation, 0),
    "UPDATE templates SET user_id = 'bob' WHERE template_id = 'pub-ann'": (TenantViolation, 0),
    "UPDATE subscriptions SET status = 'x' WHERE subscription_id = 'sub'": (None, 1),
    "SELECT step_id FROM steps WHERE template_id = 'pub-bob'": (None, 0),
    # A hole: what a policy says of an UPDATE cannot tell a name that is kept from a new one.
    "UPDATE subscriptions SET template_id = 'own-bob' WHERE subscription_id = 'sub'": (None, 1),
}


@pytest.mark.parametrize("statement", RAW)
def test_the_server_says_the_same_of_raw_sql(house: House, statement: str) -> None:
    """Where the policies are in force; where they are not, raw SQL is refused as ever."""
    before = rows_of_bob(house.db, house.m)
    expected, rows = RAW[statement] if house.policed else (TenantViolation, 0)
    if expected is not None:
        with pytest.raises(expected), house.ann() as session:
            session.execute(text(statement))
    else:
        with house.ann() as session:
            result: Any = session.execute(text(statement))
            assert result.rowcount == rows
    assert rows_of_bob(house.db, house.m) == before


def test_the_policies_of_public_rows_are_watched(house: House) -> None:
    """`row-security status` names what is missing, altered or no longer declared; `enable` mends it."""
    if not house.policed:
        return
    db = house.db
    assert db.row_security_status().problems == ()
    for tampered, told in {
        "DROP POLICY shared_db_public_rows ON templates": "templates: the policy shared_db_public_rows is missing",
        "DROP POLICY shared_db_named_rows ON subscriptions": "subscriptions: .* shared_db_named_rows is missing",
        "ALTER POLICY shared_db_public_rows ON pages USING (true)": "pages: .*_public_rows differs from the models'",
        "CREATE POLICY shared_db_public_rows ON runs FOR SELECT USING (true)": "runs: .*declared otherwise",
    }.items():
        with db.engine.begin() as connection:
            connection.execute(text(tampered))
        (problem,) = db.row_security_status().problems
        assert re.fullmatch(f"{told}.*", problem)
        if "ALTER" not in tampered:
            with DatabaseFactory(db.settings) as later, later.get_session(user_id="ann") as session:
                with pytest.raises(TenantViolation):
                    session.execute(text("SELECT 1"))
                assert set(session.scalars(select(house.m.Template.name))) == SEEN
        db.enable_row_security()
        assert db.row_security_status().problems == ()


def test_a_table_that_is_no_longer_public_is_closed(house: House) -> None:
    """With the declaration its policy goes, once the policies are made again."""
    if not house.policed:
        return
    template = house.m.Template
    redeclare(template, Ownership("user_id"))
    try:
        assert house.db.row_security_status().problems != ()
        house.db.enable_row_security()
        with house.ann() as session:
            assert session.execute(text("SELECT name FROM templates WHERE template_id = 'pub-bob'")).all() == []
    finally:
        redeclare(template, Ownership("user_id", public="is_public"))
        house.db.enable_row_security()
