"""What ought to be stored: the rows of ann and bob, kept in step with what is done to the database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

from sqlalchemy import UniqueConstraint, select
from sqlalchemy.orm import Session

from shared.db import (
    ApiCredential,
    AuditLog,
    Base,
    BybitAccount,
    DatabaseFactory,
    PrivateExecution,
    PublicTrade,
    Run,
    Strategy,
    User,
)
from shared.db.column_types import BoundedString, CheckedBoolean, CheckedInteger, Json, Money, UTCDateTime
from shared.db.tables import OWNERSHIP
from shared.db.tests.fleet import fill, rows_of, run_without_keys
from shared.db.tests.support import execution_values, trade_values

Values = dict[str, Any]
Rows = dict[type[Base], dict[str, Values]]

USERS = ("ann", "bob")
# What a row is called here. Executions have numbers for keys, which the database gives them.
NAMES: dict[type[Base], str] = {
    User: "user_id",
    BybitAccount: "account_id",
    ApiCredential: "credential_id",
    Strategy: "strategy_id",
    Run: "run_id",
    PrivateExecution: "exec_id",
    PublicTrade: "trade_id",
}
# A column that may be changed to any text; an account's name must differ from those of the other accounts.
TEXTS: dict[type[Base], str] = {
    User: "email",
    BybitAccount: "account_name",
    ApiCredential: "api_key_id",
    Strategy: "strategy_type",
    Run: "gridcore_version",
    PrivateExecution: "order_id",
}
_SAMPLES: dict[type[Any], Any] = {
    BoundedString: "x",
    Money: Decimal(1),
    UTCDateTime: datetime(2025, 5, 19, tzinfo=UTC),
    CheckedInteger: 1,
    CheckedBoolean: False,
    Json: {},
}
# Of these a column of an outside table may be that is changed.
_CHANGED = (BoundedString, Money, UTCDateTime)


def _outside() -> Iterator[tuple[type[Base], str, str]]:
    """What other packages have declared that this process has imported: classes, names and columns to be changed.

    A row is known by its one text that is a key, or that a unique key has beside its parent.
    """
    models = {model.__table__: model for model, ownership in OWNERSHIP.items() if ownership and model not in NAMES}
    del models[AuditLog.__table__]  # which the sessions alone write
    for table in Base.metadata.sorted_tables:
        if table not in models:
            continue
        unique = {column for key in table.constraints if isinstance(key, UniqueConstraint) for column in key.columns}
        texts = [column for column in table.columns if type(column.type) is BoundedString]
        key = [column for column in texts if column.primary_key] or [
            column for column in texts if column in unique and not column.foreign_keys
        ]
        plain = {*table.columns} - unique - {*key} - {*table.primary_key}
        changed = [
            column.name
            for kind in _CHANGED
            for column in table.columns
            if column in plain and type(column.type) is kind and not column.foreign_keys
        ]
        yield models[table], key[0].name, changed[0]


def needed(model: type[Base]) -> Values:
    """A value for each column of an outside table to which somebody must give one."""
    return {
        column.name: _SAMPLES[type(column.type)]
        for column in model.__table__.columns
        if not (column.nullable or column.server_default or column.default or column.autoincrement is True)
    }


OUTSIDE: list[type[Base]] = []
for _model, _name, _text in list(_outside()):
    OUTSIDE.append(_model)
    NAMES[_model], TEXTS[_model] = _name, _text
OWNED: tuple[type[Base], ...] = tuple(TEXTS)
# What can be made and deleted in a user's session, parents first.
MADE = OWNED[1:]
# Those whose name is their key.
KEYED = tuple(model for model in OWNED if [NAMES[model]] == [column.key for column in model.__table__.primary_key])
MADE_KEYED = tuple(model for model in MADE if model in KEYED)
STREAMS = tuple(model for model in OWNED if model in OWNERSHIP.streams())


def _tracked(model: type[Base]) -> tuple[str, ...]:
    ownership = OWNERSHIP[model]
    if ownership is None:
        return NAMES[model], "symbol"
    return tuple(sorted({NAMES[model], TEXTS[model], *ownership.columns}))


TRACKED: dict[type[Base], tuple[str, ...]] = {model: _tracked(model) for model in NAMES}
_MODELS = {model.__table__: model for model in NAMES}
# (child, its column, parent): what a deleted parent takes along.
CHILDREN = [
    (model, key.parent.name, _MODELS[key.column.table])
    for model in NAMES
    for key in model.metadata.tables[model.__tablename__].foreign_keys
    if key.column.primary_key
]


class NotNow(Exception):
    """What was to be tried needs rows that are not there."""


class World:
    """The rows as the open session of `user` has them (`rows`) and as they were committed last.

    Kept are the columns that name a row, say whose it is, and one of text.
    """

    def __init__(self, db: DatabaseFactory) -> None:
        fill(db)
        self.db = db
        self.user = USERS[0]
        self._number = 0
        self._given: set[str] = set()
        self.rows: Rows = {}
        for user in USERS:
            self._read()
            self._furnish(user)
        self._read()

    def _read(self) -> None:
        self.committed: Rows = tracked(stored(self.db))
        self.rows = copy_of(self.committed)

    def _furnish(self, user: str) -> None:
        """Give a user a row of each outside table."""
        view = self.seen_by(user)
        for model in OUTSIDE:
            view.store(model, Random(0))
        self._number = view._number

    def store(self, model: type[Base], rng: Random) -> None:
        """Give the session's user one more row, as an administrator would."""
        values = self.new(model, rng)
        with self.db.get_session() as plain:
            plain.add(model(**values))
        self.put(model, values)

    @property
    def other(self) -> str:
        """The user whose session it is not."""
        return USERS[1 - USERS.index(self.user)]

    def owner(self, model: type[Base], name: str) -> str | None:
        """The user who owns a row, None if it is not there."""
        values = self.rows[model].get(name)
        ownership = OWNERSHIP[model]
        if values is None or ownership is None:
            return None
        owner: str = values[ownership.column]
        return owner if ownership.parent is None else self.owner(ownership.parent, owner)

    def of(self, model: type[Base], user: str) -> dict[str, Values]:
        """A user's rows."""
        return {name: values for name, values in self.rows[model].items() if self.owner(model, name) == user}

    def own(self, model: type[Base]) -> dict[str, Values]:
        """The rows of the session's user."""
        return self.of(model, self.user)

    def an_own(self, model: type[Base], rng: Random) -> str:
        """The name of one of them that may be written: not one that is crossed."""
        return one_of([name for name in self.own(model) if not self.is_crossed(model, name)], rng)

    def a_foreign(self, model: type[Base], rng: Random) -> str:
        """The name of one of the other user's rows."""
        return one_of(list(self.of(model, self.other)), rng)

    def is_crossed(self, model: type[Base], name: str) -> bool:
        """Whether a row names another one that is not its owner's, or is no more: policies refuse to have it written.

        An administrator may have hung it there; and an execution outlives the account that it names, if its run is on
        another one by then.
        """
        ownership, values = OWNERSHIP[model], self.rows[model][name]
        references = () if ownership is None else ownership.further
        owner = self.owner(model, name)
        return any(self.owner(reference.parent, values[reference.column]) != owner for reference in references)

    def wholly_own(self, model: type[Base]) -> None:
        """Go on only if none of the user's rows is crossed."""
        if any(self.is_crossed(model, name) for name in self.own(model)):
            raise NotNow

    def text(self, model: type[Base] = User) -> Any:
        """A value that is nowhere yet of the column that is changed: a text, except in some outside tables."""
        self._number += 1
        kind = _column_type(model, TEXTS[model]) if model in OUTSIDE else None
        if kind is Money:
            return Decimal(self._number)
        if kind is UTCDateTime:
            return datetime(2025, 5, 19, tzinfo=UTC) + timedelta(seconds=self._number)
        return f"text {self._number}"

    def name(self, model: type[Base]) -> str:
        """The name of a row that is nowhere yet."""
        self._number += 1
        return f"{model.__tablename__[0]}{self._number:04}-{self.user}"

    def new(self, model: type[Base], rng: Random, **given: Any) -> Values:
        """All values of a new row of the user."""
        name, text = self.name(model), self.text(model)
        if self.user not in self.rows[User] and model is not PublicTrade:
            raise NotNow  # he has deleted himself
        if model is BybitAccount:
            values: Values = {"user_id": self.user, "environment": "testnet"}
        elif model is ApiCredential:
            values = {"account_id": self.an_own(BybitAccount, rng), "api_secret": "s", "is_active": False}
        elif model is Strategy:
            values = {"account_id": self.an_own(BybitAccount, rng), "symbol": name[:20], "config_json": {}}
        elif model is Run:
            strategy = self.an_own(Strategy, rng)
            account = self.rows[Strategy][strategy]["account_id"]
            values = {"user_id": self.user, "account_id": account, "strategy_id": strategy, "run_type": "live"}
            values["status"] = "completed"  # of a strategy and type one at most is running
        elif model is PrivateExecution:
            run = Run(run_id=self.an_own(Run, rng), account_id=self.an_own(BybitAccount, rng))
            values = execution_values(run, self._number)
        elif model is PublicTrade:
            return trade_values(self._number, trade_id=name) | given
        else:
            values = self._values_of_an_outside_row(model, rng)
            name = values.get(NAMES[model], name)
        return values | {NAMES[model]: name, TEXTS[model]: text} | given

    def _values_of_an_outside_row(self, model: type[Base], rng: Random) -> Values:
        ownership = OWNERSHIP[model]
        assert ownership is not None
        parents: dict[str, type[Base]] = {reference.column: reference.parent for reference in ownership.parents}
        values = needed(model)
        for column in model.__table__.columns:
            parent = parents.get(column.name)
            if column.name == NAMES[model] and parent is not None:  # one for each row of the parent
                free = [name for name in self.own(parent) if name not in {*self.rows[model], *self._given}]
                values[column.name] = name = one_of([name for name in free if not self.is_crossed(parent, name)], rng)
                self._given.add(name)
            elif parent is not None:
                values[column.name] = self.an_own(parent, rng)
            elif column.name == ownership.column:
                values[column.name] = self.user
            elif column.name == NAMES[model]:
                values.pop(column.name, None)  # its row gets a name of its own
        return values

    def put(self, model: type[Base], values: Values) -> None:
        """Note a new row, or new values of one."""
        name = values[NAMES[model]]
        known = self.rows[model].setdefault(name, {})
        known.update({column: values[column] for column in TRACKED[model] if column in values})

    def taken_along(self, model: type[Base], name: str) -> Iterator[tuple[type[Base], str]]:
        """A row and what is deleted with it."""
        yield model, name
        for child, column, parent in CHILDREN:
            if parent is model:
                for found in [key for key, values in self.rows[child].items() if values[column] == name]:
                    yield from self.taken_along(child, found)

    def deletable(self, model: type[Base], name: str) -> bool:
        """Whether what is deleted with a row is all the user's: of what was crossed, some is not."""
        return all(self.owner(*row) == self.user for row in self.taken_along(model, name))

    def delete(self, model: type[Base], name: str) -> None:
        """Note that a row and all below it are gone."""
        for table, key in list(self.taken_along(model, name)):
            self.rows[table].pop(key, None)

    def seen_by(self, user: str) -> World:
        """What a session of that user sees that is opened now."""
        view = World.__new__(World)
        view.__dict__ |= self.__dict__ | {"user": user, "rows": copy_of(self.committed)}
        return view

    def cross(self, rng: Random) -> None:
        """Hang one user's run under the other's account and strategy, past the foreign keys; or put it back."""
        crossed = [name for name in self.rows[Run] if self.is_crossed(Run, name)]
        name = one_of(crossed or list(self.rows[Run]), rng)
        owner = self.rows[Run][name]["user_id"]
        whose = owner if crossed else USERS[1 - USERS.index(owner)]
        strategy = one_of(list(self.of(Strategy, whose)), rng)
        values = {"strategy_id": strategy, "account_id": self.rows[Strategy][strategy]["account_id"]}
        moved = ", ".join(f"{column} = '{value}'" for column, value in values.items())
        run_without_keys(self.db, f"UPDATE runs SET {moved}, status = 'completed' WHERE run_id = '{name}'")
        self.put(Run, {"run_id": name, **values})
        self.committed = copy_of(self.rows)

    def settle(self, user: str) -> None:
        """Give a user who deleted himself one of everything again."""
        if user not in self.rows[User]:
            with self.db.get_session() as plain:
                plain.add_all(rows_of(user))
            self._read()
            self._furnish(user)
            self._read()


def stored(db: DatabaseFactory) -> Rows:
    """Every row with every column, as Core reads it in a plain session."""
    with db.get_session(read_only=True) as plain:
        found: Rows = {}
        for model, name in NAMES.items():
            rows = plain.connection().execute(select(model.__table__)).mappings()
            found[model] = {row[name]: dict(row) for row in rows}
        return found


def tracked(rows: Rows) -> Rows:
    """The columns that a `World` keeps."""
    return {
        model: {name: {column: values[column] for column in TRACKED[model]} for name, values in found.items()}
        for model, found in rows.items()
    }


def copy_of(rows: Rows) -> Rows:
    """A copy that may be changed."""
    return {model: {name: dict(values) for name, values in found.items()} for model, found in rows.items()}


def one_of(names: list[str], rng: Random) -> str:
    """One of the names; `NotNow` if there is none."""
    if not names:
        raise NotNow
    return rng.choice(names)


def loaded(session: Session, model: type[Base], name: str) -> Any:
    """The session's object of that name."""
    if model not in KEYED:
        return session.scalars(select(model).where(getattr(model, NAMES[model]) == name)).one()
    return session.get_one(model, name)


def _column_type(model: type[Base], name: str) -> type[Any]:
    return type(model.__table__.c[name].type)


def values_of(entity: Any) -> Values:
    """What a `World` keeps of an object."""
    return {column: getattr(entity, column) for column in TRACKED[type(entity)]}
